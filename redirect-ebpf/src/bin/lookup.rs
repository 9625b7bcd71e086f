//! The program attached to each pod's network namespace: hands connections and questions to the daemon's sockets.
//! A thin shell: the decision is in `redirect_common::verdict`. The pod is told by read-only data written at load.
#![no_std]
#![no_main]

use aya_ebpf::EbpfContext;
use aya_ebpf::Global;
use aya_ebpf::helpers::{bpf_sk_assign, bpf_sk_release};
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use redirect_common::{
    Address, Arrival, Counter, Kind, LOOPBACK_IFINDEX, Lookup, Mismatch, SocketKey, Via, lookup,
};
use redirect_ebpf::door::Home;
use redirect_ebpf::{SOCKETS, count, field};

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const AF_INET: u32 = 2;
/// `BPF_SK_LOOKUP_F_NO_REUSEPORT`: our socket itself, not one of a group it might be in.
const NO_REUSEPORT: u64 = 2;

/// The pod's namespace cookie.
#[unsafe(no_mangle)]
static COOKIE: Global<u64> = Global::new(0);

#[sk_lookup]
pub fn pod_lookup(ctx: SkLookupContext) -> u32 {
    let raw = ctx.lookup;
    let (family, protocol, device) = (
        field!((*raw).family),
        field!((*raw).protocol),
        field!((*raw).ingress_ifindex),
    );
    let (port, source_port_be) = (field!((*raw).local_port), field!((*raw).remote_port));
    let (source4, destination4) = (field!((*raw).remote_ip4), field!((*raw).local_ip4));
    let source6 = [
        field!((*raw).remote_ip6[0]),
        field!((*raw).remote_ip6[1]),
        field!((*raw).remote_ip6[2]),
        field!((*raw).remote_ip6[3]),
    ];
    let destination6 = [
        field!((*raw).local_ip6[0]),
        field!((*raw).local_ip6[1]),
        field!((*raw).local_ip6[2]),
        field!((*raw).local_ip6[3]),
    ];
    let (source, destination) = if family == AF_INET {
        (Address::v4(source4), Address::v4(destination4))
    } else {
        (Address::v6(source6), Address::v6(destination6))
    };
    let via = if device == LOOPBACK_IFINDEX {
        Via::Loopback
    } else {
        Via::Elsewhere
    };
    // Ports are 16 bits wide.
    let arrival = Arrival {
        tcp: protocol == IPPROTO_TCP,
        via,
        source,
        source_port: u16::from_be(source_port_be),
        destination,
        port: port as u16,
    };
    let cookie = COOKIE.load();
    match lookup(&arrival, &Home { cookie }) {
        Lookup::Pass => {
            count(Counter::LookupPassed);
            SK_PASS
        }
        Lookup::Drop(Mismatch::NoPod) => {
            count(Counter::LookupDroppedPod);
            SK_DROP
        }
        Lookup::Assign(kind) => assign(&ctx, &SocketKey::new(cookie, kind), kind),
    }
}

#[inline(always)]
fn assign(ctx: &SkLookupContext, key: &SocketKey, kind: Kind) -> u32 {
    let Some(socket) = SOCKETS.find(key) else {
        count(Counter::LookupDroppedSocket);
        return SK_DROP;
    };
    // SAFETY: the socket was found just now and is given back right after.
    let result = unsafe { bpf_sk_assign(ctx.as_ptr().cast(), socket.as_ptr(), NO_REUSEPORT) };
    // SAFETY: gives back the reference of the lookup.
    unsafe { bpf_sk_release(socket.as_ptr()) };
    if result != 0 {
        count(Counter::LookupDroppedSocket);
        return SK_DROP;
    }
    count(match kind {
        Kind::Outbound => Counter::LookupOutbound,
        Kind::Hbone => Counter::LookupHbone,
        Kind::Plaintext => Counter::LookupPlaintext,
        Kind::Dns => Counter::LookupDns,
    });
    SK_PASS
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";
