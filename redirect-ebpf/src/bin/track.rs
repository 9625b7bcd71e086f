//! Programs told of what becomes of connections: one at kubelet's cgroup, so that its probes are known in the pods, one at the capture
//! cgroup, so that what was held is held no longer. Thin shells: the decision is in `redirect_common::guard`.
#![no_std]
#![no_main]

use aya_ebpf::EbpfContext;
use aya_ebpf::Global;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_ops};
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_setsockopt, bpf_sock_ops_cb_flags_set};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use redirect_common::{Address, Counter, Former, Pod, ProbeKey, Settled, settle};
use redirect_ebpf::lineage::now;
use redirect_ebpf::{CAPTURED, PROBES, count, field, pod};

/// Not 0: nobody is ever held here, so a marked connection of a namespace that is not known is another daemon's.
#[unsafe(no_mangle)]
static HOLDS_NOBODY: Global<u32> = Global::new(0);

/// `BPF_SOCK_OPS_TCP_CONNECT_CB`: before the first packet, with both ends chosen.
const CONNECT: u32 = 3;
/// `BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB`: the answer has come.
const ESTABLISHED: u32 = 4;
/// `BPF_SOCK_OPS_STATE_CB`.
const STATE: u32 = 10;
/// `BPF_SOCK_OPS_STATE_CB_FLAG`.
const STATE_FLAG: i32 = 1 << 2;
/// `TCP_CLOSE` of `enum tcp_state`.
const TCP_CLOSE: u32 = 7;
const AF_INET: u32 = 2;
const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;
const BPF_ANY: u64 = 0;
/// What a program of this kind returns has no meaning.
const DONE: u32 = 1;

#[sock_ops]
pub fn probes(ctx: SockOpsContext) -> u32 {
    let raw = ctx.ops;
    match field!((*raw).op) {
        CONNECT => {
            // Without the callback an entry lives on for its time.
            // SAFETY: the program's context.
            unsafe { bpf_sock_ops_cb_flags_set(raw, STATE_FLAG) };
            if PROBES.insert(key(raw), now(), BPF_ANY).is_ok() {
                count(Counter::ProbeRecorded);
            }
        }
        STATE if field!((*raw).__bindgen_anon_1.args[1]) == TCP_CLOSE => {
            let _ = PROBES.remove(key(raw));
        }
        _ => {}
    }
    DONE
}

/// The connection as the other side sees it.
#[inline(always)]
fn key(raw: *mut bpf_sock_ops) -> ProbeKey {
    let (source4, destination4) = (field!((*raw).local_ip4), field!((*raw).remote_ip4));
    let source6 = [
        field!((*raw).local_ip6[0]),
        field!((*raw).local_ip6[1]),
        field!((*raw).local_ip6[2]),
        field!((*raw).local_ip6[3]),
    ];
    let destination6 = [
        field!((*raw).remote_ip6[0]),
        field!((*raw).remote_ip6[1]),
        field!((*raw).remote_ip6[2]),
        field!((*raw).remote_ip6[3]),
    ];
    let (source, destination) = if field!((*raw).family) == AF_INET {
        (Address::v4(source4), Address::v4(destination4))
    } else {
        (Address::v6(source6), Address::v6(destination6))
    };
    // Ports are 16 bits wide; the remote one comes in network byte order.
    ProbeKey {
        source,
        destination,
        source_port: field!((*raw).local_port) as u16,
        destination_port: u32::from_be(field!((*raw).remote_port)) as u16,
    }
}

#[sock_ops]
pub fn settled(ctx: SockOpsContext) -> u32 {
    if HOLDS_NOBODY.load() != 0 {
        return DONE;
    }
    let raw = ctx.ops;
    if field!((*raw).op) != ESTABLISHED {
        return DONE;
    }
    let socket: *mut bpf_sock = field!((*raw).__bindgen_anon_2.sk);
    if socket.is_null() {
        return DONE;
    }
    let (mark, device) = (field!((*socket).mark), field!((*socket).bound_dev_if));
    // SAFETY: the socket is the context's and not null.
    let kept = unsafe { CAPTURED.find(socket.cast()) };
    let (mut flag, mut own) = (0, 0);
    if let Some(kept) = kept {
        let former = kept.as_ptr();
        (flag, own) = (field!((*former).captured), field!((*former).mark));
    }
    let captured = || {
        // SAFETY: the program's context.
        let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
        pod(cookie).is_some_and(|pod| pod.has(Pod::CAPTURE))
    };
    match settle(flag, mark, device != 0, captured) {
        Settled::Unchanged => {}
        Settled::Captured => {
            if let Some(kept) = kept {
                // SAFETY: the entry lives as long as the socket.
                unsafe { (*kept.as_ptr()).captured = Former::CAPTURED };
            }
        }
        Settled::Free => {
            // On failure the mark stays, and with it the guard.
            // SAFETY: pointer and length describe `own`.
            let result = unsafe {
                bpf_setsockopt(
                    raw.cast(),
                    SOL_SOCKET,
                    SO_MARK,
                    (&raw mut own).cast(),
                    size_of::<u32>() as i32,
                )
            };
            if result == 0 && kept.is_some() {
                // SAFETY: the socket is the context's and not null.
                unsafe { CAPTURED.remove(socket.cast()) };
            }
        }
    }
    DONE
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";
