//! The control plane of a world: a namespace of its own on the wire between the nodes, and what their daemons are told.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::Result;

use super::{FIRST_DAEMON, Node};
use crate::istiod::{Istiod, Place};
use crate::netns;

/// Address part on the wire.
const HOST: u8 = 100;
/// Port of discovery, in the control plane's own namespace.
const XDS_PORT: u16 = 15012;
/// Port of the certificate service there.
const CA_PORT: u16 = 15013;
/// Namespace that the daemons say they are in.
const NAMESPACE: &str = "istio-system";

/// Makes the namespace, begins to serve in it, and gives each node the variables that lead its daemons there.
///
/// - `dir`: for the files that daemons are given
///
/// Errors: of `ip`, or an address cannot be bound.
pub(super) fn raise(world: &str, dir: &Path, nodes: &mut [Node]) -> Result<Istiod> {
    let mine = format!("{world}-istiod");
    let v4 = Ipv4Addr::new(172, 31, 0, HOST);
    let v6 = Ipv6Addr::new(0xfd31, 0, 0, 0, 0, 0, 0, HOST.into());
    wire(world, &mine, v4, v6, nodes)?;
    let place = |port| Place {
        netns: Some(netns::path(&mine)),
        address: (v4, port).into(),
    };
    let (v4, v6) = (v4.to_string(), v6.to_string());
    let names = [v4.as_str(), v6.as_str(), "istiod.istio-system.svc"];
    let istiod = Istiod::start(dir, &names, place(XDS_PORT), place(CA_PORT))?;
    for node in nodes {
        for host in FIRST_DAEMON..=u8::MAX {
            istiod.node_at(node.v4(host).into(), &node.name);
            istiod.node_at(node.v6(host).into(), &node.name);
        }
        node.env = istiod.env();
        for (key, value) in [
            ("POD_NAME", format!("ztunnel-{}", node.name)),
            ("POD_NAMESPACE", NAMESPACE.to_owned()),
        ] {
            node.env.push((key.to_owned(), value));
        }
    }
    Ok(istiod)
}

fn wire(world: &str, mine: &str, v4: Ipv4Addr, v6: Ipv6Addr, nodes: &[Node]) -> Result<()> {
    let wire = format!("{world}-wire");
    netns::make(mine)?;
    let link = format!("link add istiod netns {wire} type veth peer name wire0 netns {mine}");
    netns::ip(None, &[link])?;
    netns::ip(Some(&wire), &["link set istiod master br0 up".to_owned()])?;
    let mut lines = vec![
        "link set lo up".to_owned(),
        "link set wire0 up".to_owned(),
        format!("addr add {v4}/24 dev wire0"),
        format!("addr add {v6}/64 dev wire0 nodad"),
    ];
    for node in nodes {
        lines.push(format!("route add {}/24 via {}", node.v4(0), node.wire4));
        lines.push(format!("route add {}/64 via {}", node.v6(0), node.wire6));
    }
    netns::ip(Some(mine), &lines)
}
