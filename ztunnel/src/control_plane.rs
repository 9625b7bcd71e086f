//! istiod's part of the daemon: the subscription to the mesh's state, the issuer of certificates, and what they count.
//!
//! Leaves to others: the protocol (`control`) and what the state means (`mesh`).

use std::sync::Arc;

use anyhow::Context;
use control::Publisher;
use control::ca::IstioCa;
use control::xds::Client;
use identity::{Certs, Crl, EmbeddedCa, Issuer, Tls};
use serde_json::{Value, json};
use telemetry::metrics::{Family, RegisterError, Registry};

use crate::config::{Ca, Config, Mode};

/// Subscribes to the control plane if there is one; the worker runs as a task of the control thread.
///
/// Errors: settings that cannot be used. An unreachable server is none: it is tried for ever.
pub fn subscribe(config: &Config, publisher: &Publisher) -> anyhow::Result<Option<Client>> {
    let Some(xds) = &config.xds else {
        return Ok(None);
    };
    let settings = control::xds::Config {
        channel: xds.server.clone(),
        node: config.node.clone(),
        on_demand: xds.on_demand,
    };
    let (client, worker) = Client::new(settings, publisher.clone()).context("XDS_ADDRESS")?;
    tokio::task::spawn_local(worker.run());
    Ok(Some(client))
}

/// Certificates of the local pods, by the authority that was chosen.
///
/// Errors: roots or directory of the authority cannot be read.
pub fn certificates(config: &Config, crl: Option<&Crl>) -> anyhow::Result<Certs> {
    let issuer: Arc<dyn Issuer> = match &config.ca {
        Ca::Embedded(directory) => {
            Arc::new(EmbeddedCa::open(directory, config.secret_ttl).context("EMBEDDED_CA_DIR")?)
        }
        Ca::Istio(server) => {
            let ca = IstioCa::new((**server).clone(), config.secret_ttl).context("CA_ADDRESS")?;
            Arc::new(match config.mode {
                Mode::Shared => ca,
                Mode::Dedicated(_) => ca.as_workload(),
            })
        }
    };
    let settings = identity::Config {
        tls: Tls::new(config.tls12, config.post_quantum_only),
        crl: crl.cloned(),
        // a machine's authority knows it by its token, and may name it as it likes
        strict: config.mode.member().is_none(),
        ..Default::default()
    };
    Ok(Certs::spawn(issuer, settings))
}

/// Registers what the subscription counts.
pub fn register(registry: &Registry, client: &Client) -> Result<(), RegisterError> {
    let of = client.clone();
    registry.register(
        Family::counter(
            "istio_xds_connection_terminations",
            "Streams to the control plane that ended, and attempts that failed, by reason",
        ),
        move |samples| {
            for (reason, count) in of.counts().terminations {
                samples.push(&[("reason", reason)], count);
            }
        },
    )?;
    let of = client.clone();
    registry.register(
        Family::counter("istio_xds_message", "Responses of the control plane"),
        move |samples| {
            for of_type in of.counts().types {
                samples.push(&[("url", of_type.url)], of_type.messages);
            }
        },
    )?;
    let of = client.clone();
    registry.register(
        Family::counter(
            "istio_xds_message_bytes",
            "Bytes of the resources that the control plane sent",
        )
        .in_unit("bytes"),
        move |samples| {
            for of_type in of.counts().types {
                samples.push(&[("url", of_type.url)], of_type.bytes);
            }
        },
    )?;
    let of = client.clone();
    registry.register(
        Family::counter(
            "ztunnel_xds_resources_rejected",
            "Resources of the control plane that were refused",
        ),
        move |samples| {
            for of_type in of.counts().types {
                samples.push(&[("url", of_type.url)], of_type.rejected);
            }
        },
    )?;
    let of = client.clone();
    registry.register(
        Family::gauge(
            "ztunnel_xds_connected",
            "Whether a stream to the control plane is open",
        ),
        move |samples| samples.push(&[], u64::from(of.counts().connected)),
    )
}

/// How the subscription stands, for the dump.
pub fn view(client: &Client) -> Value {
    let counts = client.counts();
    json!({
        "synced": *client.synced().borrow(),
        "connected": counts.connected,
        "lastError": counts.last_error,
        "lastNack": counts.last_nack,
    })
}
