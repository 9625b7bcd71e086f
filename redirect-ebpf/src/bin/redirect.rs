//! Programs attached at the capture cgroup: mark connections as they are made, and keep the mark on them.
//! Thin shells: the decisions are in `redirect_common::verdict`.
#![no_std]
#![no_main]

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::{bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_setsockopt};
use aya_ebpf::macros::{cgroup_sock_addr, cgroup_sockopt};
use aya_ebpf::programs::{SockAddrContext, SockoptContext};
use redirect_common::{
    Address, Attempt, Caller, Connect, Counter, Former, Pod, REDIRECT_MARK, SocketOption, Standing,
    Wait, connect, setsockopt, standing,
};
use redirect_ebpf::lineage::Current;
use redirect_ebpf::{CAPTURED, count, excludes_port, excludes_range, field, is_daemon, pod};

const DENY: i32 = 0;
const ALLOW: i32 = 1;
const SOCK_STREAM: u32 = 1;
const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;
const SO_BINDTODEVICE: i32 = 25;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;
/// `TCP_CLOSE` of `enum tcp_state`.
const TCP_CLOSE: u32 = 7;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    let raw = ctx.sock_addr;
    let address = Address::v4(field!((*raw).user_ip4));
    decide(
        &ctx,
        address,
        field!((*raw).user_port),
        field!((*raw).type_),
        field!((*raw).protocol),
    )
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    let raw = ctx.sock_addr;
    let address = Address::v6([
        field!((*raw).user_ip6[0]),
        field!((*raw).user_ip6[1]),
        field!((*raw).user_ip6[2]),
        field!((*raw).user_ip6[3]),
    ]);
    decide(
        &ctx,
        address,
        field!((*raw).user_port),
        field!((*raw).type_),
        field!((*raw).protocol),
    )
}

/// The process that calls `connect()`.
struct Process {
    cookie: u64,
}

impl Caller for Process {
    #[inline(always)]
    fn cookie(&self) -> u64 {
        self.cookie
    }

    #[inline(always)]
    fn pod(&self) -> Option<Pod> {
        pod(self.cookie)
    }

    #[inline(always)]
    fn is_daemon(&self) -> bool {
        is_daemon(own_cgroup())
    }

    #[inline(always)]
    fn standing(&self) -> Standing {
        standing(&Current)
    }

    #[inline(always)]
    fn excludes_range(&self, destination: &Address) -> bool {
        excludes_range(self.cookie, destination)
    }

    #[inline(always)]
    fn excludes_port(&self, port: u16) -> bool {
        excludes_port(self.cookie, port)
    }
}

/// Id of the calling process's cgroup.
#[inline(always)]
fn own_cgroup() -> u64 {
    // SAFETY: the helper takes no argument.
    unsafe { bpf_get_current_cgroup_id() }
}

#[inline(always)]
fn decide(
    ctx: &SockAddrContext,
    destination: Address,
    port_be: u32,
    kind: u32,
    protocol: u32,
) -> i32 {
    // SAFETY: the context is the program's own.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let tcp = kind == SOCK_STREAM && (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP);
    // The port stands in the low half, in network byte order.
    let attempt = Attempt {
        tcp,
        destination,
        port: u16::from_be(port_be as u16),
    };
    match connect(&attempt, &Process { cookie }) {
        Connect::Foreign => leave(ctx, 0),
        Connect::Pass => {
            count(Counter::ConnectPassed);
            leave(ctx, 0)
        }
        Connect::Exclude => {
            count(Counter::ConnectPassed);
            leave(ctx, Former::PASSED)
        }
        Connect::Capture => keep(ctx, Former::CAPTURED, Counter::ConnectCaptured),
        Connect::Hold(Wait::Enrolment) => keep(ctx, Former::HELD, Counter::ConnectHeld),
        Connect::Hold(Wait::Namespace) => keep(ctx, Former::HELD, Counter::ConnectHeldNetns),
        Connect::Deny => {
            count(Counter::ConnectDeniedHold);
            DENY
        }
    }
}

/// Keeps the connection in, or denies it.
#[inline(always)]
fn keep(ctx: &SockAddrContext, flag: u32, done: Counter) -> i32 {
    match capture(ctx, flag) {
        Ok(()) => {
            count(done);
            ALLOW
        }
        Err(reason) => {
            count(reason);
            DENY
        }
    }
}

/// Flags the socket, frees it from any device, and marks it; the flag comes first, because it is what the guard looks at.
#[inline(always)]
fn capture(ctx: &SockAddrContext, flag: u32) -> Result<(), Counter> {
    let raw = ctx.sock_addr;
    let socket = socket(raw);
    let (mark, device) = (field!((*socket).mark), field!((*socket).bound_dev_if));
    // SAFETY: the socket is the context's.
    let mut former = unsafe { CAPTURED.create(socket.cast()) }.ok_or(Counter::ConnectDeniedFlag)?;
    // SAFETY: the entry lives as long as the socket, which the program holds.
    let former = unsafe { former.as_mut() };
    if former.captured != Former::CAPTURED && former.captured != Former::HELD {
        former.mark = mark;
    }
    former.captured = flag;
    if device != 0 && !set(raw, SO_BINDTODEVICE, 0) {
        return Err(Counter::ConnectDeniedDevice);
    }
    if !set(raw, SO_MARK, REDIRECT_MARK) {
        return Err(Counter::ConnectDeniedMark);
    }
    Ok(())
}

/// A socket used again for something that is not captured gets its former mark back; a new flag is kept at it, unless it is 0.
#[inline(always)]
fn leave(ctx: &SockAddrContext, flag: u32) -> i32 {
    let raw = ctx.sock_addr;
    let socket = socket(raw);
    // SAFETY: the socket is the context's.
    if let Some(mut former) = unsafe { CAPTURED.find(socket.cast()) } {
        // SAFETY: the entry lives as long as the socket.
        let former = unsafe { former.as_mut() };
        if former.captured != Former::PASSED && !set(raw, SO_MARK, former.mark) {
            count(Counter::ConnectDeniedMark);
            return DENY;
        }
        if flag == 0 {
            // SAFETY: the socket is the context's.
            unsafe { CAPTURED.remove(socket.cast()) };
        } else {
            former.captured = flag;
        }
        return ALLOW;
    }
    if flag != 0 {
        // Without memory the guard judges by the address.
        // SAFETY: the socket is the context's.
        if let Some(mut former) = unsafe { CAPTURED.create(socket.cast()) } {
            // SAFETY: the entry lives as long as the socket.
            unsafe { former.as_mut() }.captured = flag;
        }
    }
    ALLOW
}

#[inline(always)]
fn socket(raw: *mut bpf_sock_addr) -> *mut bpf_sock {
    field!((*raw).__bindgen_anon_1.sk)
}

/// Sets a four-byte option of the context's socket. For `SO_BINDTODEVICE` zero is the empty name: no device.
#[inline(always)]
fn set(raw: *mut bpf_sock_addr, option: i32, value: u32) -> bool {
    let mut value = value;
    // SAFETY: pointer and length describe `value`.
    let result = unsafe {
        bpf_setsockopt(
            raw.cast(),
            SOL_SOCKET,
            option,
            (&raw mut value).cast(),
            size_of::<u32>() as i32,
        )
    };
    result == 0
}

#[cgroup_sockopt(setsockopt)]
pub fn options(ctx: SockoptContext) -> i32 {
    let raw = ctx.sockopt;
    let (level, name, socket) = (
        field!((*raw).level),
        field!((*raw).optname),
        field!((*raw).__bindgen_anon_1.sk),
    );
    // "Nothing changed": the kernel takes the caller's own buffer, of whatever size, not the part copied for us.
    // SAFETY: a writable context field.
    unsafe { (*raw).optlen = 0 };
    if level != SOL_SOCKET {
        return ALLOW;
    }
    let (kind, state, mark) = (
        field!((*socket).type_),
        field!((*socket).state),
        field!((*socket).mark),
    );
    let option = SocketOption {
        level,
        name,
        stream: kind == SOCK_STREAM,
        closed: state == TCP_CLOSE,
        multipath: field!((*socket).protocol) == IPPROTO_MPTCP,
        mark,
    };
    if !setsockopt(&option) || is_daemon(own_cgroup()) {
        return ALLOW;
    }
    // SAFETY: the context is the program's own.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if pod(cookie).is_none() {
        return ALLOW;
    }
    count(Counter::SetsockoptRefused);
    DENY
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";
