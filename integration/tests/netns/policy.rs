//! Authorization as the two ends see it: refused with the reason, and cut while open.

use anyhow::Result;
use integration::{Layout, Policy};

use crate::support::{Mesh, SOON, connect, echo, hold, local, still_held};

#[test]
fn a_deny_refuses_new_connections_and_cuts_open_ones() -> Result<()> {
    let mesh = Mesh::up(&Layout::standard())?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let (_echo, _http) = (server.serve(&["echo"])?, server.serve(&["http"])?);
    let held = hold(client, server.at(9000))?;
    let deny =
        "{principals: [!Exact \"cluster.local/ns/shop/sa/client\"], destinationPorts: [9000]}";
    mesh.edit(|model| {
        model
            .policies
            .push(Policy::new("Deny", "shop", "no-echo", &[deny]))
    })?;
    held.wait_line(SOON, "the cut", |line| line.starts_with("cut"))?;
    let cut = "connection closed due to policy change";
    mesh.inbound(server, |line| line.field("error") == cut)?;

    let seen = connect(client, server.at(9000), &[])?;
    assert_ne!(seen["received"], "hello", "{seen}");
    let why = "connection closed due to policy rejection: explicitly denied by: shop/no-echo";
    let line = mesh.inbound(server, |line| line.field("error") == why)?;
    assert_eq!(
        (line.level.as_str(), line.message.as_str()),
        ("error", "connection complete")
    );
    mesh.daemon_of(client)
        .wait_access("the refusal as the client's side sees it", |line| {
            line.is("outbound")
                && line
                    .field("error")
                    .contains("http status: 401 Unauthorized")
        })?;
    let denied = mesh.daemons[1].metrics()?.sum(
        "istio_tcp_connections_failed_total",
        &[("response_flags", "DENY")],
    );
    assert!(denied >= 2.0, "{denied}");

    let (status, body) = client.curl(&[&format!("http://{}/", server.at(8080))])?;
    assert_eq!(status, 0, "another port is not concerned: {body}");
    mesh.edit(|model| model.policies.clear())?;
    echo(client, server.at(9000), &[])?;
    Ok(())
}

#[test]
fn an_allow_lets_in_only_whom_it_names() -> Result<()> {
    let mesh = Mesh::up(&Layout::standard())?;
    let (client, server, outsider) = (
        mesh.pod("client-0"),
        mesh.pod("server-0"),
        mesh.pod("outsider-0"),
    );
    let _echo = server.serve(&["echo"])?;
    let (kept, cut) = (
        hold(client, server.at(9000))?,
        hold(outsider, server.at(9000))?,
    );
    let allow = "{principals: [!Exact \"cluster.local/ns/shop/sa/client\"]}";
    mesh.edit(|model| {
        model
            .policies
            .push(Policy::new("Allow", "shop", "only-client", &[allow]))
    })?;
    cut.wait_line(SOON, "the cut", |line| line.starts_with("cut"))?;
    still_held(&kept)?;
    echo(client, server.at(9000), &[])?;
    for to in [server.at(9000), server.at6(9000)] {
        let seen = connect(outsider, to, &[])?;
        assert_ne!(seen["received"], "hello", "{seen}");
    }
    let why = "connection closed due to policy rejection: allow policies exist, but none allowed";
    let line = mesh.inbound(server, |line| line.field("error") == why)?;
    assert_eq!(line.field("src.identity"), "", "{}", line.text);
    Ok(())
}

#[test]
fn strict_refuses_plaintext_and_nothing_else() -> Result<()> {
    let mesh = Mesh::up(&Layout::standard())?;
    let (client, server, outsider) = (
        mesh.pod("client-0"),
        mesh.pod("server-0"),
        mesh.pod("outsider-0"),
    );
    let _echo = server.serve(&["echo"])?;
    mesh.edit(|model| {
        let mut strict = Policy::new(
            "Deny",
            "istio-system",
            "istio_converted_static_strict",
            &["{notPrincipals: [!Presence []]}"],
        );
        strict.scope = "WorkloadSelector".to_owned();
        model.policies.push(strict);
        if let Some(pod) = model.pod_mut("server-0") {
            pod.policies
                .push("istio-system/istio_converted_static_strict".to_owned());
        }
    })?;
    echo(client, server.at(9000), &[])?;
    let seen = connect(outsider, server.at(9000), &[])?;
    assert_ne!(seen["received"], "hello", "{seen}");
    if let Ok(from) = local(&seen) {
        let line = mesh.inbound(server, |line| line.field("src.addr") == from)?;
        assert!(
            line.field("error")
                .contains("explicitly denied by: istio-system/"),
            "{}",
            line.text
        );
    }
    Ok(())
}
