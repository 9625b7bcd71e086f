//! The daemon's own endpoints.

use anyhow::Result;
use integration::Layout;

use crate::support::{Mesh, echo, hold};

#[test]
fn config_dump_holds_what_is_known() -> Result<()> {
    let mesh = Mesh::up(&Layout::standard())?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let _held = hold(client, server.at(9000))?;
    let dump = mesh.daemons[1].config_dump()?;
    let state = &dump["workloadState"][&server.uid];
    assert_eq!(state["state"], "Up", "{state}");
    assert_eq!(
        (&state["info"]["name"], &state["info"]["namespace"]),
        (&"server-0".into(), &"shop".into())
    );
    let open = &state["connections"]["inbound"][0];
    assert_eq!(
        (&open["protocol"], &open["actualDst"]),
        (&"HBONE".into(), &server.at(9000).to_string().into()),
        "{state}"
    );
    let dump_client = mesh.daemons[0].config_dump()?;
    let open = &dump_client["workloadState"][&client.uid]["connections"]["outbound"][0];
    assert_eq!(
        (&open["protocol"], &open["originalDst"]),
        (&"HBONE".into(), &server.at(9000).to_string().into()),
        "{open}"
    );
    assert_eq!(open["actualDst"], server.at(15008).to_string());
    let identities: Vec<_> = dump["certificates"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    let own = identities
        .iter()
        .find(|cert| cert["identity"] == server.identity());
    let own = own.unwrap_or_else(|| {
        panic!(
            "no certificate of {}: {}",
            server.identity(),
            dump["certificates"]
        )
    });
    assert_eq!(own["state"], "Available");
    let leaf = &own["certChain"][0];
    assert!(
        leaf["serialNumber"]
            .as_str()
            .is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit())),
        "{leaf}"
    );
    assert!(
        leaf["validFrom"].as_str().is_some_and(|t| t.ends_with('Z')),
        "{leaf}"
    );
    assert!(
        !own["rootCerts"].as_array().is_none_or(Vec::is_empty),
        "{own}"
    );
    assert_eq!(
        dump["services"][0]["hostname"],
        "server.shop.svc.cluster.local"
    );
    assert_eq!(dump["services"][0]["ports"]["80"], 8080);
    assert!(dump["version"]["version"].is_string());
    assert!(dump["config"].is_object() && dump["staticConfig"]["workloads"].is_array());
    let text = mesh.daemons[1].get(15000, "/config_dump")?;
    assert!(
        text.head
            .to_ascii_lowercase()
            .contains("content-type: application/json"),
        "{}",
        text.head
    );
    assert!(
        !text.body.contains("PRIVATE KEY") && !text.body.contains("UFJJVkFURSBLRV"),
        "a key in the dump"
    );
    Ok(())
}

#[test]
fn logging_readiness_and_metrics_answer_as_specified() -> Result<()> {
    let mesh = Mesh::up(&Layout::standard())?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let daemon = &mesh.daemons[0];
    let said = |path: &str| -> Result<(u16, String)> {
        let answer = daemon.post(15000, path)?;
        Ok((answer.status, answer.body))
    };
    let (status, at_start) = said("/logging")?;
    assert!(
        status == 200
            && at_start.starts_with("current log level is ")
            && at_start.ends_with("info\n"),
        "{at_start}"
    );
    let (status, text) = said("/logging?level=access=debug")?;
    assert!(status == 200 && text.contains("access=debug"), "{text}");
    let seen = echo(client, server.at(9000), &[])?;
    let local = crate::support::local(&seen)?;
    daemon.wait_access("connection opened", |line| {
        line.message == "connection opened" && line.field("src.addr") == local
    })?;
    assert_eq!(said("/logging?reset")?, (200, at_start));
    assert_eq!(said("/logging?level=nonsense")?.0, 400);
    assert_eq!(daemon.get(15000, "/logging")?.status, 405);
    assert_eq!(daemon.get(15000, "/quitquitquit")?.status, 405);
    assert_eq!(daemon.get(15000, "/nothing")?.status, 404);
    let ready = daemon.get(15021, "/healthz/ready")?;
    assert_eq!((ready.status, ready.body.as_str()), (200, "ready\n"));
    assert_eq!(daemon.post(15021, "/healthz/ready")?.status, 405);
    for path in ["/metrics", "/stats/prometheus"] {
        let answer = daemon.get(15020, path)?;
        assert_eq!(answer.status, 200);
        assert!(answer.body.ends_with("# EOF\n"), "{}", answer.body);
        assert!(
            answer
                .head
                .to_ascii_lowercase()
                .contains("content-type: text/plain; charset=utf-8")
        );
    }
    let accept = [(
        "Accept",
        "text/plain;q=0.5,application/openmetrics-text;version=1.0.0",
    )];
    let localhost = std::net::SocketAddr::from(([127, 0, 0, 1], 15020));
    let answer =
        integration::http::request_with(daemon.netns(), "GET", localhost, "/metrics", &accept)?;
    assert!(
        answer
            .head
            .contains("application/openmetrics-text;charset=utf-8;version=1.0.0"),
        "{}",
        answer.head
    );
    let metrics = daemon.metrics()?;
    for name in [
        "istio_build",
        "process_open_fds",
        "process_max_fds",
        "workload_manager_proxies_started_total",
    ] {
        assert!(
            metrics
                .samples
                .iter()
                .any(|sample| sample.name == name && sample.value > 0.0),
            "{name}"
        );
    }
    // the admin port answers on loopback only
    let address = daemon.node().v4(200);
    let outside = std::net::SocketAddr::from((address, 15000));
    let refused =
        integration::http::request(&mesh.world.node(0).netns, "GET", outside, "/config_dump");
    assert!(refused.is_err(), "the admin port is reachable from outside");
    Ok(())
}
