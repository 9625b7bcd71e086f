//! Whether an inbound connection is for this pod, and where in the pod it is delivered.
//!
//! Covers CONNECT requests and plain connections. Leaves to others: who may connect (`authorize`), dialling, the HTTP answer.

mod authority;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

pub use authority::{Authority, BadAuthority};

use crate::index::{Index, Referent};
use crate::name::Str;
use crate::ports::is_internal_port;
use crate::service::Service;
use crate::workload::{ApplicationTunnel, TunnelFormat, Workload};

/// One CONNECT request.
#[derive(Clone, Copy, Debug)]
pub struct Connect<'a> {
    /// The pod's own workload.
    pub local: &'a Arc<Workload>,
    /// Address that the tunnel was accepted on.
    pub tunnel_local: IpAddr,
    /// What the peer asks for.
    pub authority: &'a Authority,
    /// `host=` of its `forwarded` header: only says which Service to report.
    pub forwarded_host: Option<&'a str>,
    /// Whether the SOCKS listener is open, which makes its port one of ours.
    pub socks: bool,
    /// Whether application tunnels of format PROXY are delivered on loopback.
    pub localhost_app_tunnel: bool,
}

/// Where an admitted connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// What to dial.
    pub to: SocketAddr,
    /// What policy is asked about: address in the mesh and the port that is really used.
    pub destination: SocketAddr,
    /// Destination to state in a PROXY v2 header before the application's bytes; `None` = no such header.
    pub proxy_header: Option<SocketAddr>,
    /// The Service to report.
    pub service: Option<Arc<Service>>,
}

impl Admitted {
    /// Whether the client's address may be kept as the source of the connection to `to`.
    ///
    /// Not towards loopback, and not for a client that has the destination's own address.
    pub fn may_keep_source(&self, client: IpAddr) -> bool {
        client.to_canonical() != self.to.ip() && !self.to.ip().is_loopback()
    }
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
            check_address(index, connect.local, pod, asked.ip())?;
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

/// One connection that came without a tunnel.
#[derive(Clone, Copy, Debug)]
pub struct Plain<'a> {
    /// The pod's own workload.
    pub local: &'a Arc<Workload>,
    /// Original destination.
    pub target: SocketAddr,
    /// Whether the SOCKS listener is open, which makes its port one of ours.
    pub socks: bool,
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
        destination: to,
        proxy_header: None,
        service,
    })
}

/// The address must be the pod's, or one that it stands for: by an application tunnel, or as a waypoint.
fn check_address(
    index: &Index,
    local: &Arc<Workload>,
    pod: IpAddr,
    asked: IpAddr,
) -> Result<(), Rejection> {
    if asked == pod
        || local.application_tunnel.is_some()
        || is_waypoint_for(index, local, pod, asked)
    {
        return Ok(());
    }
    Err(Rejection::Mismatch {
        accepted_on: pod,
        asked_for: asked,
    })
}

fn is_waypoint_for(index: &Index, local: &Arc<Workload>, pod: IpAddr, asked: IpAddr) -> bool {
    let waypoint = match index.workload_by_ip(&local.network, asked) {
        Some(workload) => workload.waypoint.as_ref(),
        None => index
            .service_by_ip(&local.network, asked, None)
            .and_then(|service| service.waypoint.as_ref()),
    };
    match waypoint.and_then(|reference| index.referent(&reference.destination, None)) {
        Some(Referent::Service(service)) => index.endpoint(service, &local.uid).is_some(),
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
    let own = index
        .endpoint(service, &local.uid)
        .and_then(|endpoint| endpoint.ports.target(port));
    let target = own
        .filter(|p| *p != 0)
        .or_else(|| service.ports.target(port).filter(|p| *p != 0));
    let target = target.ok_or_else(|| Rejection::UnknownPort {
        host: host.clone(),
        port,
    })?;
    Ok((service, target))
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
            let own = index.endpoint(service, &local.uid);
            service.ports.leads_to(port)
                || own.is_some_and(|endpoint| endpoint.ports.leads_to(port))
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
        Some(stated(connect, service)?)
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
        Authority::Address(asked) => Ok(*asked),
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
