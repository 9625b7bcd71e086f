//! Programs attached at the capture cgroup that look at packets: what leaves or enters a pod past the programs that should have
//! redirected it is dropped. Thin shells: the decisions are in `redirect_common::guard`.
#![no_std]
#![no_main]

use core::mem::MaybeUninit;

use aya_ebpf::Global;
use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use aya_ebpf::helpers::{
    bpf_get_netns_cookie, bpf_sk_fullsock, bpf_skb_cgroup_id, bpf_skb_load_bytes,
};
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use redirect_common::{
    Address, Arrival, Counter, Departure, Egress, Ingress, Lookup, Pod, Receiver, Request, Sender,
    Standing, Via, by_namespace, egress, ingress, lookup, standing,
};
use redirect_ebpf::door::Home;
use redirect_ebpf::lineage::Packet;
use redirect_ebpf::{CAPTURED, count, excludes_port, excludes_range, field, is_daemon, pod};

/// Not 0: the kernel tells the namespace of a packet (Linux 6.12), and one of the pods is a whole namespace. Where it is 0 the verifier
/// never looks at the call that an older kernel does not have.
#[unsafe(no_mangle)]
static BY_NAMESPACE: Global<u32> = Global::new(0);

const DROP: i32 = 0;
const PASS: i32 = 1;
const IPPROTO_TCP: u32 = 6;
/// `TCP_SYN_SENT` and `TCP_LISTEN` of `enum tcp_state`.
const TCP_SYN_SENT: u32 = 2;
const TCP_LISTEN: u32 = 10;
const AF_INET: u32 = 2;
/// Flags of a TCP header, 14th byte.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A packet and the socket that it belongs to.
struct Parcel {
    skb: *mut __sk_buff,
    socket: *mut bpf_sock,
}

impl Parcel {
    #[inline(always)]
    fn of(ctx: &SkBuffContext) -> Self {
        let skb = ctx.skb.skb;
        let socket = field!((*skb).__bindgen_anon_2.sk);
        Self { skb, socket }
    }

    #[inline(always)]
    fn device(&self) -> u32 {
        field!((*self.skb).ifindex)
    }

    /// The whole socket, if it is TCP and in `state`.
    #[inline(always)]
    fn tcp(&self, state: u32) -> Option<*mut bpf_sock> {
        if self.socket.is_null() || field!((*self.socket).state) != state {
            return None;
        }
        // SAFETY: the socket is the context's and not null.
        let full = unsafe { bpf_sk_fullsock(self.socket) };
        if full.is_null() || field!((*full).protocol) != IPPROTO_TCP {
            return None;
        }
        Some(full)
    }

    #[inline(always)]
    fn is_daemon(&self) -> bool {
        // SAFETY: the context's pointer.
        is_daemon(unsafe { bpf_skb_cgroup_id(self.skb) })
    }

    /// By the socket's cgroup, else by the namespace.
    #[inline(always)]
    fn stands(&self) -> Standing {
        let known = standing(&Packet(self.skb));
        if known != Standing::Free || BY_NAMESPACE.load() == 0 {
            return known;
        }
        // SAFETY: the context's pointer.
        let cookie = unsafe { bpf_get_netns_cookie(self.skb.cast()) };
        by_namespace(cookie, pod(cookie))
    }
}

impl Sender for Parcel {
    #[inline(always)]
    fn flag(&self) -> u32 {
        if self.socket.is_null() {
            return 0;
        }
        // SAFETY: the socket is the context's and not null.
        let former = unsafe { CAPTURED.find(self.socket.cast()) };
        // SAFETY: the entry lives as long as the socket, which the packet holds.
        former.map_or(0, |former| unsafe { former.as_ref() }.captured)
    }

    #[inline(always)]
    fn is_foreign(&self) -> bool {
        if BY_NAMESPACE.load() == 0 {
            return false;
        }
        // SAFETY: the context's pointer.
        pod(unsafe { bpf_get_netns_cookie(self.skb.cast()) }).is_none()
    }

    #[inline(always)]
    fn is_connecting(&self) -> bool {
        self.tcp(TCP_SYN_SENT).is_some()
    }

    #[inline(always)]
    fn is_daemon(&self) -> bool {
        self.is_daemon()
    }

    #[inline(always)]
    fn standing(&self) -> Standing {
        self.stands()
    }

    #[inline(always)]
    fn destination(&self) -> (Address, u16) {
        let Some(socket) = self.tcp(TCP_SYN_SENT) else {
            return (Address::v4(0), 0);
        };
        let port = u16::from_be(field!((*socket).dst_port));
        let v4 = field!((*socket).dst_ip4);
        let v6 = [
            field!((*socket).dst_ip6[0]),
            field!((*socket).dst_ip6[1]),
            field!((*socket).dst_ip6[2]),
            field!((*socket).dst_ip6[3]),
        ];
        if field!((*socket).family) == AF_INET {
            (Address::v4(v4), port)
        } else {
            (Address::v6(v6), port)
        }
    }

    #[inline(always)]
    fn pod(&self, cookie: u64) -> Option<Pod> {
        pod(cookie)
    }

    #[inline(always)]
    fn excludes_range(&self, cookie: u64, destination: &Address) -> bool {
        excludes_range(cookie, destination)
    }

    #[inline(always)]
    fn excludes_port(&self, cookie: u64, port: u16) -> bool {
        excludes_port(cookie, port)
    }
}

impl Receiver for Parcel {
    #[inline(always)]
    fn is_listening(&self) -> bool {
        self.tcp(TCP_LISTEN).is_some()
    }

    #[inline(always)]
    fn is_daemon(&self) -> bool {
        self.is_daemon()
    }

    #[inline(always)]
    fn standing(&self) -> Standing {
        self.stands()
    }

    #[inline(always)]
    fn request(&self) -> Request {
        read(self.skb).unwrap_or(Request::Opaque)
    }

    #[inline(always)]
    fn lookup(&self, cookie: u64, arrival: &Arrival) -> Lookup {
        lookup(arrival, &Home { cookie })
    }
}

#[cgroup_skb(egress)]
pub fn leaving(ctx: SkBuffContext) -> i32 {
    let parcel = Parcel::of(&ctx);
    let departure = Departure {
        device: parcel.device(),
        mark: field!((*parcel.skb).mark),
    };
    let reason = match egress(&departure, &parcel) {
        Egress::Pass => return PASS,
        Egress::Captured => Counter::EgressDropped,
        Egress::Held => Counter::EgressDroppedHeld,
        Egress::Uncaptured => Counter::EgressDroppedUncaptured,
    };
    count(reason);
    DROP
}

#[cgroup_skb(ingress)]
pub fn entering(ctx: SkBuffContext) -> i32 {
    let parcel = Parcel::of(&ctx);
    let reason = match ingress(parcel.device(), &parcel) {
        Ingress::Pass => return PASS,
        Ingress::Held => Counter::IngressDroppedHeld,
        Ingress::Uncaptured => Counter::IngressDroppedUncaptured,
    };
    count(reason);
    DROP
}

/// RFC 791, section 3.1, without options.
#[derive(Clone, Copy)]
#[repr(C)]
struct Ipv4 {
    version_length: u8,
    _tos: u8,
    _rest: [u16; 5],
    source: u32,
    destination: u32,
}

/// RFC 8200, section 3.
#[derive(Clone, Copy)]
#[repr(C)]
struct Ipv6 {
    _flow: u32,
    _length: u16,
    next: u8,
    _hops: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

/// RFC 9293, section 3.1, the first 16 bytes.
#[derive(Clone, Copy)]
#[repr(C)]
struct Tcp {
    source: u16,
    destination: u16,
    _numbers: [u32; 2],
    _offset: u8,
    flags: u8,
    _window: u16,
}

/// Begin of an IPv6 extension header (RFC 8200, section 4).
#[derive(Clone, Copy)]
#[repr(C)]
struct Extension {
    next: u8,
    length: u8,
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
/// Extension headers that are passed over; a packet with more is taken for a request.
const EXTENSIONS_MAX: u32 = 6;

/// What the packet, received by a listening TCP socket, asks for; none when it cannot be understood.
#[inline(always)]
fn read(skb: *mut __sk_buff) -> Option<Request> {
    let first: u8 = load(skb, 0)?;
    if first >> 4 == 4 {
        let ip: Ipv4 = load(skb, 0)?;
        let length = u32::from(ip.version_length & 0xf) * 4;
        let (source, destination) = (Address::v4(ip.source), Address::v4(ip.destination));
        return Some(request(load(skb, length)?, source, destination));
    }
    let ip: Ipv6 = load(skb, 0)?;
    let (mut next, mut offset) = (ip.next, size_of::<Ipv6>() as u32);
    let mut passed = 0;
    while passed < EXTENSIONS_MAX && u32::from(next) != IPPROTO_TCP {
        let extension: Extension = load(skb, offset)?;
        offset += match next {
            HOP_BY_HOP | ROUTING | DESTINATION => (u32::from(extension.length) + 1) * 8,
            FRAGMENT => 8,
            AUTHENTICATION => (u32::from(extension.length) + 2) * 4,
            _ => return None,
        };
        next = extension.next;
        passed += 1;
    }
    if u32::from(next) != IPPROTO_TCP {
        return None;
    }
    let (source, destination) = (Address::v6(ip.source), Address::v6(ip.destination));
    Some(request(load(skb, offset)?, source, destination))
}

#[inline(always)]
fn request(tcp: Tcp, source: Address, destination: Address) -> Request {
    if tcp.flags & (SYN | ACK) != SYN {
        return Request::No;
    }
    Request::Yes(Arrival {
        tcp: true,
        via: Via::Elsewhere,
        source,
        source_port: u16::from_be(tcp.source),
        destination,
        port: u16::from_be(tcp.destination),
    })
}

/// Bytes of the packet from `offset` after the network header's begin. Only for types of integers without padding.
#[inline(always)]
fn load<T: Copy>(skb: *mut __sk_buff, offset: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the context's pointer; pointer and length describe `value`.
    let result = unsafe {
        bpf_skb_load_bytes(
            skb.cast_const().cast(),
            offset,
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
        )
    };
    if result != 0 {
        return None;
    }
    // SAFETY: the helper has filled it, and all bit patterns are valid.
    Some(unsafe { value.assume_init() })
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";
