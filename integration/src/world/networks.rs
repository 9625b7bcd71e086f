//! Two networks that share a trust root and nothing else: each is a world of its own, with the same addresses for its
//! pods, and only gateways and routers have a leg on what lies between.
//!
//! ```text
//!        network west                  transit                   network east
//!  pods 10.244.1.0/24 ─ node1 ─ .11 ┐ 198.51.100.0/24 ┌ .21 ─ node1 ─ pods 10.244.1.0/24
//!  eastwest-west 10.244.1.x ─── .10 ┴── fd51::/64 ────┴ .20 ─── eastwest-east 10.244.1.x
//! ```
//!
//! A pod that dials the other side's gateway leaves through its node, under the node's address on the transit: its own
//! address means another pod over there. What runs in the gateways' pods is the caller's matter.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Layout, Node, PodPlan, World};
use crate::model::{Gateway, HBONE_PORT, Model, PodRecord, Service};
use crate::netns;
use crate::pod::Pod;
use crate::wire::Capture;

/// Names of the two networks.
pub const NAMES: [&str; 2] = ["west", "east"];
/// Namespace of the gateways.
pub const GATEWAY_NAMESPACE: &str = "istio-system";
/// Address part of a side's gateway on the transit, by index of the side; its nodes come after it.
const GATEWAY_HOSTS: [u8; 2] = [10, 20];
/// Device of whoever has a leg on the transit.
const LEG: &str = "transit0";

/// Both networks. Dropping it takes everything down; daemons go before it.
pub struct Networks {
    /// west and east
    pub sides: [Side; 2],
}

/// One of the networks.
pub struct Side {
    /// its name
    pub network: &'static str,
    /// its nodes and pods
    pub world: World,
    /// where its gateway runs: a pod of the first node, with a leg on the transit
    pub gateway: Pod,
    /// the gateway's address on the transit
    pub outside4: Ipv4Addr,
    /// the gateway's address on the transit
    pub outside6: Ipv6Addr,
}

/// How the gateway of a network is named in the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// by its address on the transit, IPv4
    Address,
    /// by its address on the transit, IPv6
    Address6,
    /// by the host name of its service
    Hostname,
}

impl Networks {
    /// Makes both networks, each with its own pods and services, and the gateways' pods. Nothing is known across yet, no
    /// daemon runs, nothing is labelled.
    ///
    /// Errors: as [`World::raise`]; no iptables.
    pub fn raise(west: &Layout, east: &Layout) -> Result<Self> {
        let mut worlds = [World::raise(west)?, World::raise(east)?];
        let transit = format!("{}-transit", worlds[0].id());
        let ca = worlds[0].node(0).ca.clone();
        netns::make(&transit)?;
        netns::ip(
            Some(&transit),
            &[
                "link set lo up".to_owned(),
                "link add br0 type bridge mcast_snooping 0".to_owned(),
                "link set br0 up".to_owned(),
            ],
        )?;
        for node in &mut worlds[1].nodes {
            node.ca.clone_from(&ca);
        }
        let [west, east] = worlds;
        Ok(Self {
            sides: [
                Side::join(0, west, &transit)?,
                Side::join(1, east, &transit)?,
            ],
        })
    }

    /// Tells the other side of a service: the service with its virtual addresses and the identities of its pods, and its
    /// pods without addresses, behind their network's gateway. A waypoint before it that is named by host name is told
    /// of as well. Where the other side has a service of the same host name, the two become one.
    ///
    /// - `from`: index of the side that has the service
    ///
    /// Errors: there is no such service, or a file cannot be written.
    pub fn tell(&self, from: usize, service: &str, named: Named) -> Result<()> {
        let (own, other) = (&self.sides[from], &self.sides[1 - from]);
        let (told, pods) = {
            let model = own.world.model();
            own.seen_from_outside(&model, service, named)?
        };
        other.world.edit(|model| {
            own.gateway_seen(model);
            for service in told {
                let remote = service.vips.iter();
                let remote = remote.map(|&vip| (own.network.to_owned(), vip)).collect();
                merge(model, service, remote, other.network);
            }
            for pod in pods {
                if model.others.iter().all(|known| known.name != pod.name) {
                    model.others.push(pod);
                }
            }
        })
    }

    /// Records everything at a gateway's leg on the transit.
    ///
    /// - `side`: index of the side whose gateway it is
    ///
    /// Errors: tcpdump does not begin.
    pub fn capture(&self, side: usize) -> Result<Capture> {
        let (own, other) = (&self.sides[side], &self.sides[1 - side]);
        let dir = own.world.dir();
        Capture::start(&own.gateway.netns, LEG, other.outside4.into(), &dir)
    }
}

impl Side {
    fn join(index: usize, mut world: World, transit: &str) -> Result<Self> {
        let network = NAMES[index];
        let host = GATEWAY_HOSTS[index];
        for node in &mut world.nodes {
            node.env.push(("NETWORK".to_owned(), network.to_owned()));
            let number = host + 1 + u8::try_from(node.index)?;
            leg(transit, &node.netns_name, number)?;
            hide_pods(node)?;
        }
        let plan = PodPlan::new(GATEWAY_NAMESPACE, &format!("eastwest-{network}-0"), 0);
        let gateway = world.add_pod(&plan)?;
        leg(transit, &gateway.netns_name, host)?;
        world.edit(|model| {
            for pod in &mut model.pods {
                network.clone_into(&mut pod.network);
                pod.cluster = format!("cluster-{network}");
            }
            for service in &mut model.services {
                network.clone_into(&mut service.network);
            }
        })?;
        Ok(Self {
            network,
            world,
            gateway,
            outside4: outside4(host),
            outside6: outside6(host),
        })
    }

    /// Host name of its gateway's service.
    pub fn gateway_host(&self) -> String {
        gateway_service(self.network).hostname()
    }

    /// How the other side refers to its gateway.
    pub fn reference(&self, named: Named) -> Gateway {
        match named {
            Named::Address => Gateway::on(self.network, self.outside4),
            Named::Address6 => Gateway::on(self.network, self.outside6),
            Named::Hostname => Gateway::named(GATEWAY_NAMESPACE, &self.gateway_host()),
        }
    }

    /// A service and the waypoint's before it, with their pods, as they are told to the other side.
    fn seen_from_outside(
        &self,
        model: &Model,
        name: &str,
        named: Named,
    ) -> Result<(Vec<Service>, Vec<PodRecord>)> {
        let service = model.services.iter().find(|service| service.name == name);
        let mut wanted = vec![service.with_context(|| format!("no service {name}"))?];
        let before = |waypoint: &Gateway| {
            let same = |service: &&Service| {
                waypoint.destination.to_string()
                    == format!("{}/{}", service.namespace, service.hostname())
            };
            model.services.iter().find(same)
        };
        wanted.extend(wanted[0].waypoint.as_ref().and_then(before));
        let (mut services, mut pods) = (Vec::new(), Vec::<PodRecord>::new());
        for service in wanted {
            let behind = model
                .pods
                .iter()
                .filter(|pod| service.pods.contains(&pod.name));
            let behind: Vec<_> = behind.collect();
            let mut told = service.clone();
            told.subject_alt_names = behind.iter().map(|pod| pod.identity()).collect();
            services.push(told);
            for pod in behind {
                if pods.iter().all(|known| known.name != pod.name) {
                    pods.push(self.remote(pod, named));
                }
            }
        }
        Ok((services, pods))
    }

    /// A pod as the other side knows it: no address, behind the gateway.
    fn remote(&self, pod: &PodRecord, named: Named) -> PodRecord {
        let mut remote = PodRecord::stranger(&pod.namespace, &pod.name, &[]);
        remote.service_account.clone_from(&pod.service_account);
        remote.network.clone_from(&pod.network);
        remote.cluster.clone_from(&pod.cluster);
        remote.node.clone_from(&pod.node);
        remote.network_gateway = Some(self.reference(named));
        remote
    }

    /// Adds the gateway as the other side knows it: a workload on this network with its addresses on the transit, and a
    /// service before it, which is on no network that pods dial.
    fn gateway_seen(&self, model: &mut Model) {
        let name = &self.gateway.name;
        if model.others.iter().any(|known| known.name == *name) {
            return;
        }
        let ips: [IpAddr; 2] = [self.outside4.into(), self.outside6.into()];
        let mut gateway = PodRecord::stranger(GATEWAY_NAMESPACE, name, &ips);
        gateway
            .service_account
            .clone_from(&self.gateway.service_account);
        self.network.clone_into(&mut gateway.network);
        gateway.cluster = format!("cluster-{}", self.network);
        model.others.push(gateway);
        let mut service = gateway_service(self.network);
        service.pods.push(name.clone());
        model.services.push(service);
    }
}

/// Adds a service of the other network, or, where there is one of the same host name, its pods to that.
fn merge(model: &mut Model, told: Service, remote: Vec<(String, IpAddr)>, network: &str) {
    let mut all = model.services.iter_mut();
    let Some(known) = all.find(|known| known.hostname() == told.hostname()) else {
        model.services.push(Service {
            remote_vips: remote,
            network: network.to_owned(),
            ..told
        });
        return;
    };
    known.pods.extend(told.pods);
    known.subject_alt_names.extend(told.subject_alt_names);
    known.remote_vips.extend(remote);
}

fn gateway_service(network: &str) -> Service {
    Service {
        name: format!("eastwest-{network}"),
        namespace: GATEWAY_NAMESPACE.to_owned(),
        ports: vec![(HBONE_PORT, HBONE_PORT)],
        ..Service::default()
    }
}

fn outside4(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, host)
}

fn outside6(host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd51, 0, 0, 0, 0, 0, 0, host.into())
}

/// Gives a namespace an address on the transit.
fn leg(transit: &str, theirs: &str, host: u8) -> Result<()> {
    let port = format!("t{host}");
    netns::ip(
        None,
        &[format!(
            "link add {port} netns {transit} type veth peer name {LEG} netns {theirs}"
        )],
    )?;
    netns::ip(Some(transit), &[format!("link set {port} master br0 up")])?;
    netns::ip(
        Some(theirs),
        &[
            format!("link set {LEG} up"),
            format!("addr add {}/24 dev {LEG}", outside4(host)),
            format!("addr add {}/64 dev {LEG} nodad", outside6(host)),
        ],
    )
}

/// What leaves a node for the transit has the node's address.
fn hide_pods(node: &Node) -> Result<()> {
    for tool in ["iptables", "ip6tables"] {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", node.netns.display()));
        command.args(["--", tool, "-w", "-t", "nat", "-A", "POSTROUTING"]);
        let out = command.args(["-o", LEG, "-j", "MASQUERADE"]).output();
        let out = out.with_context(|| format!("run {tool}"))?;
        let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        ensure!(
            out.status.success(),
            "{tool} (Debian: apt-get install iptables): {said}"
        );
    }
    Ok(())
}
