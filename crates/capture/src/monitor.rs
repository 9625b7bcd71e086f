//! Being told by the kernel that rules, routes, addresses or devices of a network namespace have changed.
//!
//! Leaves waiting, and looking at what has changed, to the caller: a notice only says that it is worth a look.
//! Source: rtnetlink(7), netlink(7) on `ENOBUFS`, `enum rtnetlink_groups` of `linux/rtnetlink.h`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use sys::Netns;

/// A group's bit of the bind address (`RTNLGRP_*` counts from 1).
const fn group(number: u32) -> u32 {
    1 << (number - 1)
}

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV4_RULE: u32 = 8;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
const RTNLGRP_IPV6_RULE: u32 = 19;
/// All that can take a pod out of capture, or change what its own addresses are.
const GROUPS: u32 = group(RTNLGRP_LINK)
    | group(RTNLGRP_IPV4_IFADDR)
    | group(RTNLGRP_IPV4_ROUTE)
    | group(RTNLGRP_IPV4_RULE)
    | group(RTNLGRP_IPV6_IFADDR)
    | group(RTNLGRP_IPV6_ROUTE)
    | group(RTNLGRP_IPV6_RULE);
/// Notices taken at one time; what waits behind them only says the same.
const NOTICES_MAX: usize = 256;

/// A subscription to the changes of one network namespace. It keeps the namespace alive.
#[derive(Debug)]
pub struct Changes {
    socket: OwnedFd,
}

impl Changes {
    /// Subscribes; non-blocking.
    pub fn open(netns: &Netns) -> io::Result<Self> {
        let socket = netns.run(|| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let (family, protocol) = (AddressFamily::Netlink, SockProtocol::NetlinkRoute);
            let socket = socket(family, SockType::Raw, flags, protocol)?;
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
            Ok::<_, Errno>(socket)
        })??;
        Ok(Self { socket })
    }

    /// Takes the notices that wait; whether there were any. Lost ones count: they say that much has changed.
    pub fn take(&self) -> io::Result<bool> {
        let mut any = false;
        // what the notices say is not read: one byte each is enough to consume them
        let mut notice = [0u8; 1];
        for _ in 0..NOTICES_MAX {
            match recv(self.socket.as_raw_fd(), &mut notice, MsgFlags::empty()) {
                Ok(_) | Err(Errno::ENOBUFS) => any = true,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(any)
    }
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Changes {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}
