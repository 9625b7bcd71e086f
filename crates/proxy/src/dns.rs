//! DNS of a pod: a server for the questions that capture steers here.
//!
//! - Addresses of the mesh are told from its state (`mesh::dns` decides), `localhost` from RFC 6761.
//! - All else is forwarded from within the pod's namespace, so that the resolver sees the pod and policies on its traffic hold: to
//!   the resolver that the pod asked, where capture keeps that address, so that the pod's own `dnsConfig` stays true; else to the
//!   node's. What comes back goes on with every section and type as it was, but the id, the spelling of the question and lifetimes
//!   that have run. Flags, EDNS and its DO bit are the client's; cookies, padding and keepalive of EDNS end here. What has other
//!   options (a client subnet), or further records such as a signature, is passed on by itself, unchanged.
//! - Answers are kept per pod. Nobody's `/etc/hosts` is consulted. Zone transfers are refused.
//!
//! `message`, `relay`, `wire` are bytes only; `desk` takes one question to its answer; `memory`, `cache`, `forward` are what is asked
//! of resolvers; `udp` and `tcp` the pod's side.

mod cache;
mod desk;
mod forward;
mod kinds;
pub mod laws;
mod memory;
mod message;
mod relay;
mod tcp;
mod udp;
mod wire;

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

pub(crate) use self::memory::Memory;
pub(crate) use self::tcp::serve as serve_tcp;
pub(crate) use self::udp::serve;

use self::desk::{Desk, Via};
use self::message::{Transport, ask_addresses, read_addresses};
use crate::pod::Pod;
use crate::shard::Shard;

/// The addresses of `host` as the pod's own DNS tells them: IPv6 (AAAA) if `v6`, else IPv4 (A). Empty when there are none.
///
/// Errors: no answer; why, as text for the access log.
pub(crate) async fn resolve(
    shard: &Rc<Shard>,
    pod: &Arc<Pod>,
    host: &str,
    v6: bool,
) -> Result<Vec<IpAddr>, String> {
    let message = ask_addresses(host, v6).ok_or("it is not a host name")?;
    let desk = Desk {
        shard: Rc::clone(shard),
        pod: Arc::clone(pod),
    };
    let via = Via {
        transport: Transport::Tcp,
        resolver: None,
    };
    let answer = desk.answer(&message, via).await;
    Ok(read_addresses(&answer.unwrap_or_default())?)
}

#[cfg(test)]
mod tests;
