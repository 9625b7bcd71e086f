//! A node under istio-cni and a node with capture of its own are one mesh.

use anyhow::Result;
use integration::cni::{Rules, Site};
use integration::{Daemon, Layout};

use crate::support::{echo, local, world};

const MARKER: &str = "marker-of-the-clear-text";

#[test]
fn nodes_of_both_kinds_talk_through_hbone() -> Result<()> {
    let world = world(&Layout::standard())?;
    let site = Site::raise(world.node(0))?;
    let daemons = [Daemon::start(&site.node, &[])?, world.daemon(1)?];
    let (client, server) = (world.pod("client-0"), world.pod("server-0"));
    site.enroll(client, &Rules::default())?;
    world.model().label("shop", true);
    world.publish_enrolment()?;
    world.settled_enrolment(&[&daemons[1]])?;
    world.publish_state()?;
    world.settled_state(&[&daemons[0], &daemons[1]])?;
    let _apps = (server.serve(&["echo"])?, client.serve(&["echo"])?);
    let wire = world.node(0).capture(world.node(1))?;
    let pairs = [
        (client, server.at(9000), server),
        (client, server.at6(9000), server),
        (server, client.at(9000), client),
        (server, client.at6(9000), client),
    ];
    for (from, to, owner) in pairs {
        let seen = echo(from, to, &["--send", MARKER])?;
        let local = local(&seen)?;
        let line = daemons[from.node].wait_access("outbound line", |line| {
            line.is("outbound") && line.field("src.addr") == local
        })?;
        assert_eq!(
            line.field("dst.identity"),
            owner.identity(),
            "{}",
            line.text
        );
        let ip = local.rsplit_once(':').map_or("", |(ip, _)| ip).to_owned();
        daemons[owner.node].wait_access("inbound line with the client's address", |line| {
            line.is("inbound")
                && line.field("src.addr").starts_with(&ip)
                && line.field("src.identity") == from.identity()
        })?;
    }
    assert!(!wire.stop()?.shows(MARKER), "clear text on the wire");
    Ok(())
}
