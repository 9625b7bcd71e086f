//! The program at the cgroup of a daemon that captures its own namespace: the daemon's questions to resolvers must not come back to it.
//! Without any map, so that it can be attached before anything else is there.
#![no_std]
#![no_main]

use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;
use redirect_common::DAEMON_MARK;

const ALLOW: i32 = 1;
const SOCK_DGRAM: u32 = 2;

/// Marks the daemon's datagram sockets as they are made; routing keeps marked questions on their way. One may be marked otherwise later.
#[cgroup_sock(sock_create)]
pub fn created(ctx: SockContext) -> i32 {
    let socket = ctx.sock;
    // SAFETY: a readable field of the program's context.
    let kind = unsafe { (&raw const (*socket).type_).read_volatile() };
    if kind == SOCK_DGRAM {
        // SAFETY: a writable field of the program's context.
        unsafe { (&raw mut (*socket).mark).write_volatile(DAEMON_MARK) };
    }
    ALLOW
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";
