//! Certificates are renewed at half-life, under live connections, and both daemons trust one root.

use std::time::Duration;

use anyhow::{Result, ensure};
use integration::{Daemon, Layout, wait};
use serde_json::Value;

use crate::support::{Mesh, echo, hold, still_held, world};

/// Lifetime of the certificates here; renewed after half of it.
const LIFETIME: &str = "8s";
/// Time for several renewals.
const RENEWALS: Duration = Duration::from_secs(30);

#[test]
fn certificates_are_renewed_and_nothing_notices() -> Result<()> {
    let world = world(&Layout::standard())?;
    let daemons = [0, 1]
        .iter()
        .map(|&node| Daemon::start(world.node(node), &[("SECRET_TTL", LIFETIME)]))
        .collect::<Result<Vec<_>>>()?;
    let mesh = Mesh { daemons, world };
    mesh.label("shop", true)?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let held = hold(client, server.at(9000))?;
    let who = [client.identity(), server.identity()];
    let mut last = serials(&mesh, &who)?;
    ensure!(
        last[0] != last[1],
        "two identities, one certificate: {last:?}"
    );
    for round in 1..=3 {
        let mut now = last.clone();
        wait::until_true(RENEWALS, &format!("renewal {round} of both"), || {
            now = serials(&mesh, &who).unwrap_or_else(|_| last.clone());
            now.iter().zip(&last).all(|(now, last)| now != last)
        })?;
        last = now;
    }
    // the certificates that the first tunnel was made with have expired by now
    still_held(&held)?;
    let seen = echo(client, server.at(9000), &[])?;
    let line = mesh.outbound(client, &seen)?;
    ensure!(line.field("dst.identity") == server.identity(), "{line:?}");
    Ok(())
}

/// Serial number of the current certificate of each identity: the client's from node 1, the server's from node 2.
fn serials(mesh: &Mesh, identities: &[String; 2]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (daemon, identity) in mesh.daemons.iter().zip(identities) {
        let dump = daemon.config_dump()?;
        let all = dump["certificates"].as_array().cloned().unwrap_or_default();
        let own = all.iter().find(|c| c["identity"] == **identity);
        let serial = own.map_or(&Value::Null, |c| &c["certChain"][0]["serialNumber"]);
        ensure!(serial.is_string(), "no certificate of {identity}: {all:?}");
        found.push(serial.to_string());
    }
    Ok(found)
}
