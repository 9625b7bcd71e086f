//! Kernel programs: each kind with the helpers and fields that capture uses, the maps, the links, and the daemon's own.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use sys::bpf::probe::{Instruction, Kind, Rejected, hash, load, socket_hash, trie};
use sys::bpf::{self, Attach};
use sys::socket::{ListenOptions, listen};

use super::instruction::{
    EXIT, R, add, call, clear, copy, map, read32, read64, set, skip_if_zero, stack,
};
use super::{Finding, Scratch};
use crate::error::StartError;
use crate::pins::Pins;
use crate::{maps, programs};

const MAP_LOOKUP_ELEM: i32 = 1;
const MAP_UPDATE_ELEM: i32 = 2;
const SETSOCKOPT: i32 = 49;
const SKB_CGROUP_ID: i32 = 79;
const GET_CURRENT_CGROUP_ID: i32 = 80;
const SKB_ANCESTOR_CGROUP_ID: i32 = 83;
const SK_RELEASE: i32 = 86;
const SK_FULLSOCK: i32 = 95;
const SK_STORAGE_GET: i32 = 107;
const GET_NETNS_COOKIE: i32 = 122;
const GET_CURRENT_ANCESTOR_CGROUP_ID: i32 = 123;
const SK_ASSIGN: i32 = 124;
const KTIME_GET_NS: i32 = 5;
const SKB_LOAD_BYTES: i32 = 26;
const SOCK_OPS_CB_FLAGS_SET: i32 = 59;

const SOL_SOCKET: i32 = nix::libc::SOL_SOCKET;
const SO_MARK: i32 = nix::libc::SO_MARK;
/// `BPF_SK_LOOKUP_F_NO_REUSEPORT`.
const NO_REUSEPORT: i32 = 2;

/// Offsets in the programs' contexts (`struct bpf_sock_addr`, `__sk_buff`, `bpf_sockopt`, `bpf_sk_lookup`, `bpf_sock_ops`).
const SOCK_ADDR_SK: i16 = 64;
const SKB_SK: i16 = 168;
const SOCKOPT_SK: i16 = 0;
const SK_LOOKUP_INGRESS_IFINDEX: i16 = 64;
const SOCK_OPS_LOCAL_PORT: i16 = 68;
const SOCK_OPS_SK: i16 = 184;

/// What to do when the kernel lacks something.
const UPGRADE: &str = "kernel programs need Linux 5.17 or later with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF, and CAP_NET_ADMIN with CAP_SYS_ADMIN; without them CAPTURE=external with istio-cni works";

/// Whether this build holds the daemon's kernel programs.
pub fn built() -> Finding {
    if programs::BUILT {
        return Finding::ok("kernel programs", "in this build");
    }
    Finding::failed(
        "kernel programs",
        "not in this build",
        "build ztunnel where a BPF toolchain is installed, or use CAPTURE=external",
    )
}

/// Programs of each kind with the helpers and fields that capture needs of them: one finding a kind.
pub fn loads() -> Vec<Finding> {
    let storage = match bpf::sk_storage("probe") {
        Ok(storage) => storage,
        Err(error) => {
            let detail = format!("socket storage: {error}");
            return vec![Finding::failed("maps", detail, UPGRADE)];
        }
    };
    let mut findings = vec![maps()];
    findings.extend([
        kind(
            "cgroup connect programs",
            "SO_MARK, cgroup ids, namespace cookie, socket storage",
            connect(&storage),
        ),
        kind(
            "cgroup egress program",
            "cgroup ids and bytes of packets, socket storage",
            packets(&storage, Attach::CgroupEgress),
        ),
        kind(
            "cgroup ingress program",
            "cgroup ids and bytes of packets, socket storage",
            packets(&storage, Attach::CgroupIngress),
        ),
        kind(
            "cgroup setsockopt program",
            "socket storage",
            setsockopt(&storage),
        ),
        kind(
            "sockops program",
            "SO_MARK, namespace cookie, ports, clock, socket storage",
            sockops(&storage),
        ),
        kind(
            "sk_lookup program",
            "device of arrival, choice of the socket",
            sk_lookup(),
        ),
    ]);
    findings
}

fn kind(name: &'static str, uses: &str, loaded: Result<(), Rejected>) -> Finding {
    Finding::of(name, loaded, |()| uses.to_owned(), UPGRADE)
}

fn maps() -> Finding {
    let made = hash().and_then(|_| trie()).and_then(|_| socket_hash());
    Finding::of(
        "maps",
        made,
        |_| "hash, prefix trie, socket hash, socket storage".to_owned(),
        UPGRADE,
    )
}

/// `r0 = storage of r2`, looked up or made.
fn storage_get(storage: &OwnedFd, create: i32) -> Vec<Instruction> {
    let mut program = map(R::R1, storage.as_raw_fd()).to_vec();
    program.extend([set(R::R3, 0), set(R::R4, create), call(SK_STORAGE_GET)]);
    program
}

const PASS: [Instruction; 2] = [set(R::R0, 1), EXIT];

fn connect(storage: &OwnedFd) -> Result<(), Rejected> {
    let mut program = vec![
        copy(R::R6, R::R1),
        call(GET_NETNS_COOKIE),
        call(GET_CURRENT_CGROUP_ID),
        set(R::R1, 1),
        call(GET_CURRENT_ANCESTOR_CGROUP_ID),
        call(KTIME_GET_NS),
        clear(-8),
        copy(R::R1, R::R6),
        set(R::R2, SOL_SOCKET),
        set(R::R3, SO_MARK),
    ];
    program.extend(stack(R::R4, -8));
    program.extend([
        set(R::R5, 4),
        call(SETSOCKOPT),
        read64(R::R2, R::R6, SOCK_ADDR_SK),
    ]);
    program.extend(storage_get(storage, 1));
    program.extend(PASS);
    load(Kind::CgroupSockAddr, Attach::Connect4 as u32, &program)?;
    load(Kind::CgroupSockAddr, Attach::Connect6 as u32, &program).map(drop)
}

fn packets(storage: &OwnedFd, attach: Attach) -> Result<(), Rejected> {
    let found = storage_get(storage, 0);
    let mut program = vec![
        copy(R::R6, R::R1),
        call(SKB_CGROUP_ID),
        copy(R::R1, R::R6),
        set(R::R2, 1),
        call(SKB_ANCESTOR_CGROUP_ID),
        clear(-8),
        copy(R::R1, R::R6),
        set(R::R2, 0),
        copy(R::R3, R::R10),
        add(R::R3, -8),
        set(R::R4, 8),
        call(SKB_LOAD_BYTES),
        read64(R::R1, R::R6, SKB_SK),
        skip_if_zero(R::R1, found.len() as i16 + 3),
        call(SK_FULLSOCK),
        skip_if_zero(R::R0, found.len() as i16 + 1),
        copy(R::R2, R::R0),
    ];
    program.extend(found);
    program.extend(PASS);
    load(Kind::CgroupSkb, attach as u32, &program).map(drop)
}

/// Whether the guards can be told a packet's namespace (Linux 6.12): where not, they know only what was seen at `connect()`.
pub fn packets_know_namespace() -> bool {
    let mut program = vec![call(GET_NETNS_COOKIE)];
    program.extend(PASS);
    load(Kind::CgroupSkb, Attach::CgroupEgress as u32, &program).is_ok()
}

/// What a daemon that captures its own namespace needs beside the rest.
pub fn dedicated() -> Vec<Finding> {
    let loaded = programs::load_own().map_err(|error| shortened(&error));
    let uses = |_| "mark of new sockets".to_owned();
    let mut found = vec![Finding::of("cgroup socket program", loaded, uses, UPGRADE)];
    found.push(if packets_know_namespace() {
        Finding::ok("namespace of packets", "told by this kernel")
    } else {
        Finding::warning(
            "namespace of packets",
            "not told by this kernel",
            "capture works; its second line of defence then knows only connections that connect() saw. Linux 6.12 tells",
        )
    });
    found
}

fn setsockopt(storage: &OwnedFd) -> Result<(), Rejected> {
    let mut program = vec![copy(R::R6, R::R1), read64(R::R2, R::R6, SOCKOPT_SK)];
    program.extend(storage_get(storage, 0));
    program.extend(PASS);
    load(Kind::CgroupSockopt, Attach::Setsockopt as u32, &program).map(drop)
}

fn sockops(storage: &OwnedFd) -> Result<(), Rejected> {
    let table = hash().map_err(unmade)?;
    let mut program = vec![
        copy(R::R6, R::R1),
        call(KTIME_GET_NS),
        copy(R::R1, R::R6),
        call(GET_NETNS_COOKIE),
        copy(R::R1, R::R6),
        set(R::R2, 0),
        call(SOCK_OPS_CB_FLAGS_SET),
        read32(R::R2, R::R6, SOCK_OPS_LOCAL_PORT),
        clear(-8),
        clear(-16),
        copy(R::R1, R::R6),
        set(R::R2, SOL_SOCKET),
        set(R::R3, SO_MARK),
        copy(R::R4, R::R10),
        add(R::R4, -8),
        set(R::R5, 4),
        call(SETSOCKOPT),
    ];
    program.extend(map(R::R1, table.as_raw_fd()));
    program.extend(stack(R::R2, -8));
    program.extend(stack(R::R3, -16));
    program.extend([set(R::R4, 0), call(MAP_UPDATE_ELEM)]);
    let found = storage_get(storage, 0);
    program.push(read64(R::R2, R::R6, SOCK_OPS_SK));
    program.push(skip_if_zero(R::R2, found.len() as i16));
    program.extend(found);
    program.extend(PASS);
    load(Kind::SockOps, Attach::SockOps as u32, &program).map(drop)
}

fn sk_lookup() -> Result<(), Rejected> {
    let sockets = socket_hash().map_err(unmade)?;
    let mut program = vec![
        copy(R::R6, R::R1),
        read32(R::R2, R::R6, SK_LOOKUP_INGRESS_IFINDEX),
        clear(-8),
    ];
    program.extend(map(R::R1, sockets.as_fd().as_raw_fd()));
    program.extend([copy(R::R2, R::R10), add(R::R2, -8), call(MAP_LOOKUP_ELEM)]);
    let assign = [
        copy(R::R7, R::R0),
        copy(R::R1, R::R6),
        copy(R::R2, R::R7),
        set(R::R3, NO_REUSEPORT),
        call(SK_ASSIGN),
        copy(R::R1, R::R7),
        call(SK_RELEASE),
    ];
    program.push(skip_if_zero(R::R0, assign.len() as i16));
    program.extend(assign);
    program.extend(PASS);
    load(Kind::SkLookup, Attach::SkLookup as u32, &program).map(drop)
}

fn unmade(cause: io::Error) -> Rejected {
    let log = String::new();
    Rejected { cause, log }
}

/// A TCP listener is put into a socket map and found there again.
pub fn socket_map() -> Finding {
    let tried = || -> io::Result<()> {
        let map = socket_hash()?;
        let listener = listen(
            std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
            &ListenOptions::default(),
        )?;
        map.insert(&[0; 4], &listener)?;
        let found = map.cookie(&[0; 4])?;
        if found != Some(sys::socket::cookie(&listener)?) {
            return Err(io::Error::other("the listener is not found again"));
        }
        Ok(())
    };
    Finding::of(
        "listeners in a socket map",
        tried(),
        |()| "put in and found".to_owned(),
        UPGRADE,
    )
}

/// A link to a cgroup made for this, and a change of its program in place.
pub fn cgroup_link(scratch: &Scratch) -> Finding {
    const NAME: &str = "links to a cgroup";
    let cgroup = match scratch.cgroup() {
        Ok(cgroup) => cgroup,
        Err(error) => {
            return Finding::warning(
                NAME,
                format!("not tried: {error}"),
                "a cgroup v2 mount that can be written lets it be tried, and lets the daemon have a cgroup of its own",
            );
        }
    };
    let tried = std::fs::File::open(cgroup)
        .map_err(|error| error.to_string())
        .and_then(|target| {
            let connect = (Kind::CgroupSockAddr, Attach::Connect4);
            linked(connect, target.as_fd())
        });
    Finding::of(NAME, tried, |()| "made and changed".to_owned(), UPGRADE)
}

/// A link to a network namespace made for this, and a change of its program in place.
pub fn netns_link(scratch: &Scratch) -> Finding {
    let tried = linked((Kind::SkLookup, Attach::SkLookup), scratch.netns().as_fd());
    Finding::of(
        "links to a network namespace",
        tried,
        |()| "made and changed".to_owned(),
        UPGRADE,
    )
}

fn linked(
    (kind, attach): (Kind, Attach),
    target: std::os::fd::BorrowedFd<'_>,
) -> Result<(), String> {
    let program = || load(kind, attach as u32, &PASS).map_err(|error| error.to_string());
    let (first, second) = (program()?, program()?);
    let link = bpf::link(first.as_fd(), target, attach)
        .map_err(|error| format!("cannot attach: {error}"))?;
    bpf::link_update(link.as_fd(), second.as_fd())
        .map_err(|error| format!("cannot change the program of a link: {error}"))
}

/// Directory beside the pins in which the daemon's own programs are tried; the process id follows.
const TRIAL: &str = "-check-";

/// The daemon's own programs pass the verifier, with maps of their own that are gone afterwards.
///
/// - `pins`, `dedicated`: as of [`crate::Config`]; a directory beside the pins is used
pub fn own_programs(pins: &Path, dedicated: bool) -> Finding {
    const NAME: &str = "the daemon's programs";
    if !programs::BUILT {
        return Finding::warning(NAME, "not in this build", "see kernel programs");
    }
    if !sys::bpffs::holds(pins).unwrap_or(false) {
        let hint = "see the directory of pins";
        return Finding::warning(NAME, "not tried: no bpf file system for their maps", hint);
    }
    let mut trial = pins.as_os_str().to_owned();
    trial.push(format!("{TRIAL}{}", std::process::id()));
    let tried = Pins::create(Path::new(&trial))
        .map_err(|error| format!("{}: {error}", trial.display()))
        .and_then(|place| {
            let loaded = maps::prepare(&place)
                .and_then(|()| programs::load_shared(&place, dedicated))
                .and_then(|_| programs::load_lookup(&place, 0));
            // nothing is attached, so nothing is in use
            let cleared = place.clear();
            loaded.map_err(|error| shortened(&error))?;
            cleared.map_err(|error| format!("{} stays: {error}", trial.display()))
        });
    Finding::of(
        NAME,
        tried,
        |()| "pass the verifier".to_owned(),
        "the message of the verifier says what this kernel lacks; please report it with the kernel's version",
    )
}

/// Of a refusal the program and the verifier's last words; the whole stands in the log of a daemon that starts.
fn shortened(error: &StartError) -> String {
    let StartError::Load { program, cause } = error else {
        return error.to_string();
    };
    let words: Vec<&str> = cause
        .lines()
        .map(str::trim)
        .take_while(|line| {
            !line.starts_with("verification time") && !line.starts_with("processed ")
        })
        .filter(|line| !line.is_empty())
        .collect();
    let last = &words[words.len().saturating_sub(2)..];
    format!("cannot load the program {program}: {}", last.join(": "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifiers_last_words() {
        let error = |cause: &str| StartError::Load {
            program: "guard",
            cause: cause.to_owned(),
        };
        let long = "0: (bf) r6 = r1\n23: (bf) r9 = r2\nR2 !read_ok\nverification time 332 usec\nprocessed 87 insns\n\n: Permission denied";
        assert_eq!(
            shortened(&error(long)),
            "cannot load the program guard: 23: (bf) r9 = r2: R2 !read_ok"
        );
        assert_eq!(
            shortened(&error("no memory")),
            "cannot load the program guard: no memory"
        );
    }
}
