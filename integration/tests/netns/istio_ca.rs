//! Certificates from the control plane's authority: renewal, outages short and long, roots that rotate, intermediates.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::istiod::{Ca, Event};
use integration::{App, Daemon, Layout, Pod, PodPlan, until};
use tonic::Code;

use crate::support::{Mesh, SOON, connect, echo, hold, still_held};

/// Lifetime of short-lived certificates; renewed after half of it.
const LIFE: &str = "6s";
/// The same, with more time between two renewals.
const LIFE_OF_STEPS: &str = "12s";
/// Time for several renewals, and for retries that have grown to a few seconds.
const RENEWALS: Duration = Duration::from_secs(30);

/// A mesh with an open connection, and certificates of a short life.
struct Scene {
    mesh: Mesh,
    client: Pod,
    server: Pod,
    held: App,
    _echo: App,
}

impl Scene {
    fn set(layout: &Layout, life: &str) -> Result<Self> {
        let mesh = Mesh::governed(layout, &[("SECRET_TTL", life)])?;
        let (client, server) = (mesh.pod("client-0").clone(), mesh.pod("server-0").clone());
        let _echo = server.serve(&["echo"])?;
        let held = hold(&client, server.at(9000))?;
        Ok(Self {
            mesh,
            client,
            server,
            held,
            _echo,
        })
    }

    /// Waits until both ends have got a certificate signed after `from`.
    fn renewed(&self, from: usize) -> Result<()> {
        self.signed(from, &self.client)?;
        self.signed(from, &self.server)
    }

    /// Waits until a pod has got a certificate signed after `from`.
    fn signed(&self, from: usize, pod: &Pod) -> Result<()> {
        let record = self.mesh.istiod().record();
        let what = format!("certificate of {}", pod.name);
        record.wait(from, RENEWALS, &what, |event| match event {
            Event::Signed { identity, .. } => (*identity == pod.identity()).then_some(()),
            _ => None,
        })?;
        self.shown(pod)
    }

    /// Waits until the daemon of the pod shows the newest certificate that was signed for it.
    fn shown(&self, pod: &Pod) -> Result<()> {
        let daemon = self.mesh.daemon_of(pod);
        until(SOON, "the new certificate in use", || {
            let newest = {
                let authority = self.mesh.istiod().authority();
                let mut of_pod = authority.issued().iter().rev();
                let found = of_pod.find(|one| one.identity == pod.identity());
                found.map(|one| one.serial.to_string())
            };
            Ok((serial(daemon, &pod.identity())? == newest).then_some(()))
        })
    }
}

/// Serial number of the current certificate of an identity.
fn serial(daemon: &Daemon, identity: &str) -> Result<Option<String>> {
    let dump = daemon.config_dump()?;
    let mut all = dump["certificates"].as_array().into_iter().flatten();
    let own = all.find(|entry| entry["identity"] == identity);
    let text = own.and_then(|own| own["certChain"][0]["serialNumber"].as_str());
    Ok(text.map(str::to_owned))
}

/// Connections of a daemon that failed for want of a certificate.
fn without_identity(daemon: &Daemon) -> Result<f64> {
    let labels = [("response_flags", "IDENTITY_ERROR")];
    Ok(daemon
        .metrics()?
        .sum("istio_tcp_connections_failed_total", &labels))
}

#[test]
fn an_authority_that_refuses_at_first_is_asked_again() -> Result<()> {
    let mesh = Mesh::governed(&Layout::standard(), &[])?;
    // a pod of an identity that nobody has a certificate for yet
    let istiod = mesh.istiod();
    let why = "the authority is being set up";
    istiod.settings().ca = Ca::Refuse(Code::Unavailable, why.to_owned());
    mesh.label("other", true)?;
    let (outsider, server) = (mesh.pod("outsider-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let seen = connect(outsider, server.at(9000), &[])?;
    ensure!(seen["received"] != "hello", "{seen}");
    let daemon = mesh.daemon_of(outsider);
    let line = daemon.wait_access("the failure", |line| {
        line.is("outbound") && line.field("error").contains(why)
    })?;
    let text = line.field("error");
    assert!(text.contains("signing gRPC error"), "{text}");
    assert!(without_identity(daemon)? >= 1.0);
    let state = |dump: &serde_json::Value| {
        let all = dump["certificates"].as_array().cloned().unwrap_or_default();
        let own = all.iter().find(|c| c["identity"] == outsider.identity());
        own.and_then(|own| own["state"].as_str().map(str::to_owned))
            .unwrap_or_default()
    };
    let shown = state(&daemon.config_dump()?);
    assert!(
        shown.starts_with("Unavailable: ") && shown.contains(why),
        "{shown}"
    );

    istiod.settings().ca = Ca::Issue(None);
    daemon.wait_dump(RENEWALS, "a certificate", |dump| state(dump) == "Available")?;
    echo(outsider, server.at(9000), &[])?;
    Ok(())
}

#[test]
fn a_short_outage_is_not_noticed_and_a_long_one_ends() -> Result<()> {
    let mut scene = Scene::set(&Layout::standard(), LIFE)?;
    let from = scene.mesh.istiod().record().len();
    scene.renewed(from)?;

    // away for one attempt: what is there goes on
    let from = scene.mesh.istiod().record().len();
    let away = Ca::Refuse(Code::Unavailable, "just a moment".to_owned());
    scene.mesh.istiod().settings().ca = away;
    let record = scene.mesh.istiod().record();
    record.wait(from, RENEWALS, "request in vain", |event| match event {
        Event::Asked { identity, .. } => (*identity == scene.client.identity()).then_some(()),
        _ => None,
    })?;
    echo(&scene.client, scene.server.at(9000), &[])?;
    let from = scene.mesh.istiod().record().len();
    scene.mesh.istiod().settings().ca = Ca::Issue(None);
    scene.renewed(from)?;
    for daemon in &scene.mesh.daemons {
        ensure!(
            without_identity(daemon)? == 0.0,
            "noticed:\n{}",
            daemon.tail()
        );
    }

    // down for longer than certificates live
    scene.mesh.world.istiod_mut().ca.stop();
    let gone = |dump: &serde_json::Value| {
        let mut all = dump["certificates"].as_array().into_iter().flatten();
        all.any(|own| {
            own["identity"] == scene.client.identity()
                && own["state"]
                    .as_str()
                    .is_some_and(|text| text.starts_with("Unavailable: "))
        })
    };
    scene.mesh.daemons[0].wait_dump(RENEWALS, "the end of the certificate", gone)?;
    still_held(&scene.held)?;
    // a connection that needs a tunnel of its own
    let seen = connect(&scene.client, scene.server.at6(9000), &[])?;
    ensure!(seen["received"] != "hello", "{seen}");
    let line = scene.mesh.daemons[0].wait_access("the failure", |line| {
        line.is("outbound")
            && line
                .field("error")
                .contains("signing gRPC error (Unavailable)")
    })?;
    assert_eq!(line.message, "connection complete", "{}", line.text);
    assert!(without_identity(&scene.mesh.daemons[0])? >= 1.0);

    let from = scene.mesh.istiod().record().len();
    scene.mesh.world.istiod_mut().ca.start()?;
    scene.renewed(from)?;
    echo(&scene.client, scene.server.at6(9000), &[])?;
    still_held(&scene.held)
}

#[test]
fn roots_rotate_under_traffic() -> Result<()> {
    const STEPS: usize = 3;
    let mut layout = Layout::standard();
    for number in 0..=STEPS {
        let (namespace, name) = (late_namespace(number), format!("late{number}-0"));
        layout.pods.push(PodPlan::new(&namespace, &name, 0));
    }
    let scene = Scene::set(&layout, LIFE_OF_STEPS)?;
    let fresh = {
        let mut authority = scene.mesh.istiod().authority();
        authority.use_intermediates(true)?;
        authority.add_root()?
    };
    let authority = || scene.mesh.istiod().authority();
    let steps: [&dyn Fn(); STEPS] = [
        &|| authority().trust(&[0, fresh]),
        &|| authority().sign_with(fresh),
        &|| authority().trust(&[fresh]),
    ];
    for (number, step) in steps.iter().enumerate() {
        // the server has just renewed, and will not be at it again before half of the lifetime is over
        scene.signed(scene.mesh.istiod().record().len(), &scene.server)?;
        let own = serial(
            scene.mesh.daemon_of(&scene.server),
            &scene.server.identity(),
        )?;
        let from = scene.mesh.istiod().record().len();
        step();
        // each step is seen by one end before the other: this one gets its first certificate after it
        reach_from_late(&scene, number, from)?;
        let still = serial(
            scene.mesh.daemon_of(&scene.server),
            &scene.server.identity(),
        )?;
        ensure!(
            own == still,
            "the server was not the later one in step {number}"
        );
        scene.renewed(from)?;
        still_held(&scene.held)?;
    }
    reach_from_late(&scene, STEPS, 0)?;
    let dump = scene.mesh.daemons[1].config_dump()?;
    let mut all = dump["certificates"].as_array().into_iter().flatten();
    let own = all.find(|entry| entry["identity"] == scene.server.identity());
    let own = own.context("no certificate of the server")?;
    assert_eq!(own["rootCerts"].as_array().map(Vec::len), Some(1), "{own}");
    Ok(())
}

fn late_namespace(number: usize) -> String {
    format!("late{number}")
}

/// Enrols a pod of an identity that nobody has had a certificate for, and has it reach the server.
fn reach_from_late(scene: &Scene, number: usize, from: usize) -> Result<()> {
    let late = scene.mesh.pod(&format!("late{number}-0"));
    scene.mesh.label(&late_namespace(number), true)?;
    scene.signed(from, late)?;
    let seen = echo(late, scene.server.at(9000), &[])?;
    let line = scene.mesh.outbound(late, &seen)?;
    assert_eq!(line.field("src.identity"), late.identity());
    Ok(())
}

#[test]
fn an_authority_that_answers_nonsense_is_named() -> Result<()> {
    let mesh = Mesh::governed(&Layout::standard(), &[])?;
    let istiod = mesh.istiod();
    istiod.settings().ca = Ca::Answer(Vec::new());
    mesh.label("other", true)?;
    let (outsider, server) = (mesh.pod("outsider-0"), mesh.pod("server-0"));
    let daemon = mesh.daemon_of(outsider);
    let dumped = |text: &str| {
        let text = text.to_owned();
        let identity = outsider.identity();
        daemon
            .wait_dump(RENEWALS, &text.clone(), move |dump| {
                let mut all = dump["certificates"].as_array().into_iter().flatten();
                all.any(|own| {
                    own["identity"] == *identity
                        && own["state"]
                            .as_str()
                            .is_some_and(|state| state.contains(&text))
                })
            })
            .map(drop)
    };
    dumped("chain returned from CA is empty for: spiffe://cluster.local/ns/other/sa/outsider")?;
    // somebody else's certificate
    let chain = {
        let key = rcgen::KeyPair::generate()?;
        let csr = rcgen::CertificateParams::default().serialize_request(&key)?;
        let other = "spiffe://cluster.local/ns/shop/sa/server";
        let life = Duration::from_secs(60);
        istiod.authority().sign(&csr.pem()?, other, life)?.0
    };
    istiod.settings().ca = Ca::Answer(chain);
    dumped("Unavailable: ")?;
    istiod.settings().ca = Ca::Issue(None);
    dumped("Available")?;
    let _echo = server.serve(&["echo"])?;
    echo(outsider, server.at(9000), &[]).context("in the end")?;
    Ok(())
}
