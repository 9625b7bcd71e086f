//! Whether an inbound connection is for this pod, and where in the pod it is delivered.
//!
//! Covers CONNECT requests and plain connections. Networks as in `route`: the one that the control plane states for the pod's
//! own workload. Leaves to others: who may connect (`authorize`), dialling, the HTTP answer.

mod authority;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

pub use authority::Authority;

use crate::index::{Index, Referent};
use crate::name::{NamespacedHostname, NetworkAddress, Str};
use crate::ports::{Ports, is_internal_port};
use crate::service::Service;
use crate::spiffe::SpiffeId;
use crate::workload::{ApplicationTunnel, TunnelFormat, Workload};

/// One CONNECT request.
#[derive(Clone, Copy, Debug)]
pub struct Connect<'a> {
    /// The pod's own workload.
    pub local: &'a Arc<Workload>,
    /// Address that the tunnel was accepted on.
    pub tunnel_local: IpAddr,
    /// TCP peer of the tunnel.
    pub client: SocketAddr,
    /// Identity that the peer proved.
    pub identity: Option<&'a SpiffeId>,
    /// What the peer asks for.
    pub authority: &'a Authority,
    /// `host=` of its `forwarded` header: only says which Service to report.
    pub forwarded_host: Option<&'a str>,
    /// Whether the SOCKS listener is open, which makes its port one of ours.
    pub socks: bool,
    /// Whether application tunnels of format PROXY are delivered on loopback.
    pub localhost_app_tunnel: bool,
    /// Whether this listener keeps clients' addresses at all: it is transparent, and not that of the daemon's own pod.
    pub keep_source: bool,
}

impl<'a> Connect<'a> {
    /// The namespace of the peer, which decides what it may see; `None` when it proved no identity.
    fn client_namespace(&self) -> Option<&'a str> {
        self.identity.map(SpiffeId::namespace)
    }
}

/// Where an admitted connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// What to dial.
    pub to: SocketAddr,
    /// The client's address, to be kept as the source; `None` = the pod's own, chosen by the kernel.
    pub from: Option<IpAddr>,
    /// What policy is asked about: address in the mesh and the port that is really used.
    pub destination: SocketAddr,
    /// What to state in a PROXY v2 header before the application's bytes; `None` = no such header.
    pub proxy_header: Option<ProxyHeader>,
    /// The Service to report.
    pub service: Option<Arc<Service>>,
}

/// The facts of a PROXY v2 header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// TCP peer of the tunnel.
    pub source: SocketAddr,
    /// What the peer asked for, as an address. May be of another family than `source`.
    pub destination: SocketAddr,
    /// Identity of the peer, for the TLV of type 0xD0.
    pub identity: Option<SpiffeId>,
}

/// The source to bind towards `to`: none towards loopback, and none for a client that has the destination's own address.
fn kept(client: SocketAddr, to: SocketAddr, keep: bool) -> Option<IpAddr> {
    let client = client.ip().to_canonical();
    (keep && client != to.ip() && !to.ip().is_loopback()).then_some(client)
}

/// Why a connection is not admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The request is for another address, and this pod is not its waypoint.
    #[error("ip mismatch: {accepted_on} != {asked_for}")]
    Mismatch {
        /// Address that the tunnel was accepted on.
        accepted_on: IpAddr,
        /// Address in the authority.
        asked_for: IpAddr,
    },
    /// No Service of that host name is visible to this pod.
    #[error("no service or workload for hostname: {0}")]
    UnknownHost(Str),
    /// The Service has no such port, or this pod none for it.
    #[error("requested service {host}:{port} found, but cannot resolve port")]
    UnknownPort {
        /// Host name in the authority.
        host: Str,
        /// Port in the authority.
        port: u16,
    },
    /// The port is one of our own listeners'.
    #[error("attempted recursive call to ourselves")]
    SelfCall,
    /// A PROXY header is wanted, and the Service has no address to state in it.
    #[error("service {0} has no address to state in a PROXY header")]
    NoAddress(Str),
}

impl Rejection {
    /// The HTTP status that answers a CONNECT.
    pub fn status(&self) -> u16 {
        match self {
            Self::Mismatch { .. } => 400,
            Self::UnknownHost(_)
            | Self::UnknownPort { .. }
            | Self::SelfCall
            | Self::NoAddress(_) => 503,
        }
    }
}

/// Decides about one CONNECT request.
pub fn admit(index: &Index, connect: &Connect<'_>) -> Result<Admitted, Rejection> {
    let pod = connect.tunnel_local.to_canonical();
    let named = match connect.authority {
        Authority::Address(asked) => {
            check_address(index, connect, pod, asked.ip().to_canonical())?;
            None
        }
        Authority::Host { host, port } => Some(find_service(index, connect.local, host, *port)?),
    };
    let (service, port) = match named {
        Some((service, port)) => (Some(service), port),
        None => (None, connect.authority.port()),
    };
    if is_internal_port(port, connect.socks) {
        return Err(Rejection::SelfCall);
    }
    let service = match service {
        Some(service) => Some(service),
        None => reported_service(index, connect.local, port, connect.forwarded_host),
    };
    deliver(connect, pod, port, service)
}

/// What a daemon that holds only part of the mesh must ask the control plane for before [`admit`] can decide.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    /// What has this address.
    Address(NetworkAddress),
    /// What has this host name.
    Host(NamespacedHostname),
}

/// What [`admit`] lacks, if anything: what an address means that is not the pod's own, or the Service of a host name.
pub fn lookup_inbound(index: &Index, connect: &Connect<'_>) -> Option<Name> {
    let local = connect.local;
    match connect.authority {
        Authority::Address(asked) => {
            let ip = asked.ip().to_canonical();
            let at = || NetworkAddress {
                network: local.network.clone(),
                ip,
            };
            let is_clear =
                ip == connect.tunnel_local.to_canonical() || local.application_tunnel.is_some();
            let known = || index.at(&local.network, ip, connect.client_namespace());
            let is_gap = !is_clear && matches!(known(), None | Some(Referent::Range(_)));
            is_gap.then(|| Name::Address(at()))
        }
        Authority::Host { host, .. } => {
            let known = index.service_by_host(host, Some(&local.namespace));
            known.is_none().then(|| {
                Name::Host(NamespacedHostname {
                    namespace: local.namespace.clone(),
                    hostname: host.clone(),
                })
            })
        }
    }
}

/// One connection that came without a tunnel.
#[derive(Clone, Copy, Debug)]
pub struct Plain<'a> {
    /// The pod's own workload.
    pub local: &'a Arc<Workload>,
    /// Original destination.
    pub target: SocketAddr,
    /// TCP peer.
    pub client: SocketAddr,
    /// Whether the SOCKS listener is open, which makes its port one of ours.
    pub socks: bool,
    /// Whether this listener keeps clients' addresses at all: it is transparent.
    pub keep_source: bool,
}

/// Decides about one connection that came without a tunnel: all but our own ports, delivered as dialled.
pub fn admit_plain(index: &Index, plain: &Plain<'_>) -> Result<Admitted, Rejection> {
    let to = SocketAddr::new(plain.target.ip().to_canonical(), plain.target.port());
    if is_internal_port(to.port(), plain.socks) {
        return Err(Rejection::SelfCall);
    }
    let service = reported_service(index, plain.local, to.port(), None).cloned();
    Ok(Admitted {
        to,
        from: kept(plain.client, to, plain.keep_source),
        destination: to,
        proxy_header: None,
        service,
    })
}

/// The address must be the pod's, or one that it stands for: by an application tunnel, or as a waypoint.
fn check_address(
    index: &Index,
    connect: &Connect<'_>,
    pod: IpAddr,
    asked: IpAddr,
) -> Result<(), Rejection> {
    if asked == pod
        || connect.local.application_tunnel.is_some()
        || is_waypoint_for(index, connect, pod, asked)
    {
        return Ok(());
    }
    Err(Rejection::Mismatch {
        accepted_on: pod,
        asked_for: asked,
    })
}

/// Whether what the peer means by `asked` has this pod as its waypoint. Seen with the peer's eyes, as `route` does for it.
fn is_waypoint_for(index: &Index, connect: &Connect<'_>, pod: IpAddr, asked: IpAddr) -> bool {
    let (local, namespace) = (connect.local, connect.client_namespace());
    let waypoint = match index.at(&local.network, asked, namespace) {
        Some(Referent::Service(service) | Referent::Range(service)) => service.waypoint.as_ref(),
        Some(Referent::Workload(workload)) => workload.waypoint.as_ref(),
        None => None,
    };
    match waypoint.and_then(|reference| index.referent(&reference.destination, namespace)) {
        Some(Referent::Service(service) | Referent::Range(service)) => {
            index.endpoint(service, &local.uid).is_some()
        }
        Some(Referent::Workload(workload)) => workload.addresses.contains(&pod),
        None => false,
    }
}

/// The Service meant by a host name, and this pod's port for it.
fn find_service<'a>(
    index: &'a Index,
    local: &Workload,
    host: &Str,
    port: u16,
) -> Result<(&'a Arc<Service>, u16), Rejection> {
    let service = index.service_by_host(host, Some(&local.namespace));
    let service = service.ok_or_else(|| Rejection::UnknownHost(host.clone()))?;
    let own = own_ports(service, local).and_then(|ports| ports.target(port));
    let target = own
        .filter(|p| *p != 0)
        .or_else(|| service.ports.target(port).filter(|p| *p != 0));
    let target = target.ok_or_else(|| Rejection::UnknownPort {
        host: host.clone(),
        port,
    })?;
    Ok((service, target))
}

/// This pod's own ports for a Service that it is an endpoint of. Its health does not matter: it has the connection already.
fn own_ports<'a>(service: &'a Service, local: &'a Workload) -> Option<&'a Ports> {
    let stated = service
        .endpoints
        .iter()
        .find(|own| own.workload_uid == local.uid);
    match stated {
        Some(stated) => Some(&stated.ports),
        None => (local.membership(&service.namespace, &service.hostname)).map(|m| &m.ports),
    }
}

/// The Service to report for a connection to a port of this pod: the one the peer names if it is the pod's,
/// else the first, by name, that leads to the port.
fn reported_service<'a>(
    index: &'a Index,
    local: &'a Workload,
    port: u16,
    forwarded_host: Option<&str>,
) -> Option<&'a Arc<Service>> {
    let named =
        forwarded_host.and_then(|host| index.services_of(local).find(|s| *s.hostname == *host));
    named.or_else(|| {
        index.services_of(local).find(|service| {
            service.ports.leads_to(port)
                || own_ports(service, local).is_some_and(|ports| ports.leads_to(port))
        })
    })
}

/// Applies the pod's application tunnel.
fn deliver(
    connect: &Connect<'_>,
    pod: IpAddr,
    port: u16,
    service: Option<&Arc<Service>>,
) -> Result<Admitted, Rejection> {
    let tunnel = connect.local.application_tunnel;
    let port = tunnel.and_then(|t| t.port).unwrap_or(port);
    let destination = SocketAddr::new(pod, port);
    let is_proxy = matches!(
        tunnel,
        Some(ApplicationTunnel {
            protocol: TunnelFormat::Proxy,
            ..
        })
    );
    let proxy_header = if is_proxy {
        Some(ProxyHeader {
            source: SocketAddr::new(connect.client.ip().to_canonical(), connect.client.port()),
            destination: stated(connect, service)?,
            identity: connect.identity.cloned(),
        })
    } else {
        None
    };
    let to = if is_proxy && connect.localhost_app_tunnel {
        SocketAddr::new(loopback(pod), port)
    } else {
        destination
    };
    Ok(Admitted {
        to,
        from: kept(connect.client, to, connect.keep_source),
        destination,
        proxy_header,
        service: service.cloned(),
    })
}

fn loopback(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// The destination to state in a PROXY header: what was asked for; for a host name an address of its Service,
/// of the pod's own network first, then IPv4 first.
fn stated(connect: &Connect<'_>, service: Option<&Arc<Service>>) -> Result<SocketAddr, Rejection> {
    match connect.authority {
        Authority::Address(asked) => Ok(SocketAddr::new(asked.ip().to_canonical(), asked.port())),
        Authority::Host { host, port } => {
            let vips = service.into_iter().flat_map(|service| &service.vips);
            let vip =
                vips.min_by_key(|vip| (vip.network != connect.local.network, vip.ip.is_ipv6()));
            vip.map(|vip| SocketAddr::new(vip.ip, *port))
                .ok_or_else(|| Rejection::NoAddress(host.clone()))
        }
    }
}

#[cfg(test)]
mod tests;
