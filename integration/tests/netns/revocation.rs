//! Revoked certificates: open tunnels end, new ones are refused, and all others go on.

use anyhow::{Context, Result, ensure};
use integration::istiod::Authority;
use integration::{Daemon, Layout, Pod, PodPlan, until};

use crate::support::{Mesh, SOON, connect, echo, hold, local, still_held};

/// Two clients on the first node, and certificates of the control plane.
fn mesh(intermediates: bool) -> Result<Mesh> {
    let mut layout = Layout::standard();
    layout.pods.push(PodPlan::new("shop", "buyer-0", 0));
    let world = crate::support::governed(&layout)?;
    world
        .istiod()
        .authority()
        .use_intermediates(intermediates)?;
    let text = world.istiod().crl_file().to_string_lossy().into_owned();
    let daemons = world
        .nodes()
        .iter()
        .map(|node| Daemon::start(node, &[("CRL_PATH", &text)]));
    let mesh = Mesh {
        daemons: daemons.collect::<Result<_>>()?,
        world,
    };
    mesh.label("shop", true)?;
    Ok(mesh)
}

/// Serial numbers of all certificates signed for a pod.
fn serials(mesh: &Mesh, pod: &Pod) -> Vec<u64> {
    let authority = mesh.istiod().authority();
    let own = authority.issued().iter();
    own.filter(|one| one.identity == pod.identity())
        .map(|one| one.serial)
        .collect()
}

fn rejections(daemon: &Daemon, reporter: &str) -> Result<f64> {
    let labels = [("reporter", reporter)];
    Ok(daemon
        .metrics()?
        .sum("istio_crl_policy_rejections_total", &labels))
}

#[test]
fn a_revoked_client_is_cut_off_and_the_other_is_not() -> Result<()> {
    let mesh = mesh(false)?;
    let (client, buyer, server) = (
        mesh.pod("client-0"),
        mesh.pod("buyer-0"),
        mesh.pod("server-0"),
    );
    let _echo = server.serve(&["echo"])?;
    let file = mesh.istiod().crl_file();
    let (held, kept) = (
        hold(client, server.at(9000))?,
        hold(buyer, server.at(9000))?,
    );
    let revoked = serials(&mesh, client);
    ensure!(!revoked.is_empty(), "no certificate of {}", client.name);
    mesh.istiod().authority().write_revoked(&file, &revoked)?;
    held.wait_line(SOON, "the cut", |line| line.starts_with("cut"))?;
    let why = "connection closed: peer certificate revoked by CRL";
    let line = mesh.inbound(server, |line| line.field("error") == why)?;
    assert_eq!(
        line.field("src.identity"),
        client.identity(),
        "{}",
        line.text
    );
    let flag = [("response_flags", "CERT_REVOKED")];
    let failed = |daemon: &Daemon| {
        Ok::<_, anyhow::Error>(
            daemon
                .metrics()?
                .sum("istio_tcp_connections_failed_total", &flag),
        )
    };
    assert_eq!(failed(&mesh.daemons[1])?, 1.0);
    assert_eq!(rejections(&mesh.daemons[1], "destination")?, 1.0);
    still_held(&kept)?;

    let seen = connect(client, server.at(9000), &[])?;
    ensure!(seen["received"] != "hello", "{seen}");
    until(SOON, "the refused handshake is counted", || {
        Ok((rejections(&mesh.daemons[1], "destination")? >= 2.0).then_some(()))
    })?;
    if let Ok(from) = local(&seen) {
        let line = mesh.daemon_of(client).wait_access("the failure", |line| {
            line.is("outbound") && line.field("src.addr") == from
        })?;
        ensure!(!line.field("error").is_empty(), "{}", line.text);
    }
    echo(buyer, server.at(9000), &[])?;
    still_held(&kept)?;

    // a list that cannot be read changes nothing
    integration::model::replace(
        &file,
        "-----BEGIN X509 CRL-----\nno\n-----END X509 CRL-----\n",
    )?;
    mesh.daemons[1].wait_log(0, &["revocation lists not loaded"])?;
    let seen = connect(client, server.at(9000), &[])?;
    ensure!(seen["received"] != "hello", "{seen}");
    still_held(&kept)
}

#[test]
fn a_revoked_server_is_dropped_by_its_clients() -> Result<()> {
    let mesh = mesh(false)?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let held = hold(client, server.at(9000))?;
    let file = mesh.istiod().crl_file();
    let revoked = serials(&mesh, server);
    mesh.istiod().authority().write_revoked(&file, &revoked)?;
    held.wait_line(SOON, "the cut", |line| line.starts_with("cut"))?;
    let daemon = mesh.daemon_of(client);
    let why = "connection closed: peer certificate revoked by CRL";
    daemon.wait_access("the cut in the log", |line| {
        line.is("outbound") && line.field("error") == why
    })?;
    assert_eq!(rejections(daemon, "source")?, 1.0);
    let seen = connect(client, server.at(9000), &[])?;
    ensure!(seen["received"] != "hello", "{seen}");
    until(SOON, "the refused handshake is counted", || {
        Ok((rejections(daemon, "source")? >= 2.0).then_some(()))
    })
    .with_context(|| daemon.tail())?;

    mesh.istiod().authority().write_revoked(&file, &[])?;
    until(SOON, "forgiven", || {
        let seen = connect(client, server.at(9000), &[])?;
        Ok((seen["received"] == "hello").then_some(()))
    })
    .with_context(|| daemon.tail())
}

#[test]
fn a_revoked_intermediate_takes_all_below_it_along() -> Result<()> {
    let mesh = mesh(true)?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let held = hold(client, server.at(9000))?;
    let file = mesh.istiod().crl_file();
    let revoke = |authority: &mut Authority| authority.write_intermediate_revoked(&file);
    revoke(&mut mesh.istiod().authority())?;
    held.wait_line(SOON, "the cut", |line| line.starts_with("cut"))?;
    let seen = connect(client, server.at(9000), &[])?;
    ensure!(seen["received"] != "hello", "{seen}");
    until(SOON, "counted", || {
        let sum =
            rejections(&mesh.daemons[0], "source")? + rejections(&mesh.daemons[1], "destination")?;
        Ok((sum >= 2.0).then_some(()))
    })
}
