//! What the daemon needs when others redirect: sockets with a mark on shared ports in the pods' namespaces.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use nix::libc::{ENOENT, ENOPROTOOPT};
use sys::socket::{ListenOptions, listen};

use super::{Finding, Scratch};

/// Listeners as in a pod: entered by setns, marked, transparent, and two of them on one port.
pub fn in_namespace(scratch: &Scratch, mark: Option<u32>, reuse_port: bool) -> Finding {
    let options = ListenOptions {
        transparent: true,
        mark,
        reuse_port,
        ..ListenOptions::default()
    };
    let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let tried = scratch.netns().run(|| -> io::Result<()> {
        let first = listen(any(0), &options)?;
        if reuse_port {
            listen(any(first.local_addr()?.port()), &options)?;
        }
        Ok(())
    });
    let shared = if reuse_port { ", port shared" } else { "" };
    let marked = mark.map_or_else(String::new, |mark| format!("marked {mark:#x}, "));
    Finding::of(
        "sockets in a pod",
        tried.and_then(|result| result),
        |()| format!("entered, {marked}transparent{shared}"),
        "setns needs CAP_SYS_ADMIN, SO_MARK and IP_TRANSPARENT need CAP_NET_ADMIN",
    )
}

/// Whether the kernel can say where a redirected connection wanted to go.
pub fn original_destination() -> Finding {
    const NAME: &str = "original destination";
    let asked = || -> io::Result<SocketAddr> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        let address = socket2::SockRef::from(&stream).original_dst_v4()?;
        address
            .as_socket()
            .ok_or_else(|| io::Error::other("no address"))
    };
    match asked() {
        Ok(_) => Finding::ok(NAME, "SO_ORIGINAL_DST answers"),
        // no rule, no record: what can be asked is there
        Err(error) if error.raw_os_error() == Some(ENOENT) => {
            Finding::ok(NAME, "SO_ORIGINAL_DST answers")
        }
        Err(error) if error.raw_os_error() == Some(ENOPROTOOPT) => Finding::warning(
            NAME,
            "SO_ORIGINAL_DST is not known yet",
            "the kernel loads connection tracking with the first REDIRECT rule; where modules cannot be loaded, load nf_conntrack and nf_nat on the host",
        ),
        Err(error) => Finding::failed(
            NAME,
            error.to_string(),
            "the kernel needs CONFIG_NF_CONNTRACK and CONFIG_NF_NAT",
        ),
    }
}
