//! Rules, routes and addresses of a network namespace, by rtnetlink. Leaves which ones are wanted to [`crate::pod`], and what
//! is to be thought of those of others to [`crate::netlink::others`].
//!
//! Source: rtnetlink(7), `linux/rtnetlink.h`, `linux/fib_rules.h`, `linux/if_addr.h`.

mod others;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
    setsockopt, socket,
};
use nix::sys::time::TimeVal;
use redirect_common::{
    DAEMON_MARK, DNS_PORT, LOOPBACK_IFINDEX, PREF_DAEMON, PREF_DNS, PREF_REDIRECT, REDIRECT_MARK,
    TABLE,
};
use sys::Netns;

pub(crate) use self::others::Stray;

const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_DUMP_INTR: u16 = 0x10;

const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_IP_PROTO: u16 = 22;
const FRA_DPORT_RANGE: u16 = 24;
const FR_ACT_TO_TBL: u8 = 1;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PREFSRC: u16 = 7;
const RTA_TABLE: u16 = 15;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_HOST: u8 = 254;
const RT_TABLE_MAIN: u32 = 254;
const RTN_LOCAL: u8 = 2;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
/// IPv6: duplicate address detection failed, deprecated, or not yet done.
const IFA_F_UNUSABLE: u32 = 0x08 | 0x20 | 0x40;
const IPPROTO_UDP: u8 = 17;
const LOOPBACK_NAME: &[u8] = b"lo\0";

const HEADER: usize = 16;
const ATTRIBUTE: usize = 4;
/// Wait for an answer of the kernel, which comes at once unless something is very wrong.
const ANSWER_SECONDS_MAX: i64 = 5;
/// The kernel's own limit of one part of a dump is 32 KiB.
const PART_MAX: usize = 64 * 1024;
/// Entries of one dump that are looked at; a namespace with more is not a pod's.
const ENTRIES_MAX: usize = 65_536;
/// Dumps repeated because the table changed meanwhile.
const DUMP_TRIES_MAX: usize = 5;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    const fn number(self) -> u8 {
        match self {
            Self::V4 => nix::libc::AF_INET as u8,
            Self::V6 => nix::libc::AF_INET6 as u8,
        }
    }

    fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// One of the policy routing rules that capture makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// The daemon's own packets: main table.
    Daemon(Family),
    /// Redirected connections: capture table.
    Redirect(Family),
    /// Questions to resolvers: capture table.
    Dns(Family),
}

impl Rule {
    const fn family(self) -> Family {
        match self {
            Self::Daemon(family) | Self::Redirect(family) | Self::Dns(family) => family,
        }
    }

    const fn priority(self) -> u32 {
        match self {
            Self::Daemon(_) => PREF_DAEMON,
            Self::Redirect(_) => PREF_REDIRECT,
            Self::Dns(_) => PREF_DNS,
        }
    }

    const fn table(self) -> u32 {
        match self {
            Self::Daemon(_) => RT_TABLE_MAIN,
            Self::Redirect(_) | Self::Dns(_) => TABLE,
        }
    }

    /// Attributes other than table and priority, as the kernel shows them.
    fn selectors(self) -> Vec<(u16, Vec<u8>)> {
        let mark = |mark: u32| {
            vec![
                (FRA_FWMARK, mark.to_ne_bytes().to_vec()),
                (FRA_FWMASK, u32::MAX.to_ne_bytes().to_vec()),
            ]
        };
        match self {
            Self::Daemon(_) => mark(DAEMON_MARK),
            Self::Redirect(_) => mark(REDIRECT_MARK),
            Self::Dns(_) => {
                let port = DNS_PORT.to_ne_bytes();
                vec![
                    (FRA_IIFNAME, LOOPBACK_NAME.to_vec()),
                    (FRA_IP_PROTO, vec![IPPROTO_UDP]),
                    (FRA_DPORT_RANGE, [port, port].concat()),
                ]
            }
        }
    }

    fn body(self) -> Vec<u8> {
        // struct fib_rule_hdr: family, dst_len, src_len, tos, table, two reserved, action, flags.
        let mut body = vec![
            self.family().number(),
            0,
            0,
            0,
            0,
            0,
            0,
            FR_ACT_TO_TBL,
            0,
            0,
            0,
            0,
        ];
        attribute(&mut body, FRA_PRIORITY, &self.priority().to_ne_bytes());
        attribute(&mut body, FRA_TABLE, &self.table().to_ne_bytes());
        for (kind, value) in self.selectors() {
            attribute(&mut body, kind, &value);
        }
        body
    }

    /// Whether this is the rule, and nothing in it makes it fit less than it should.
    fn matches(self, body: &[u8]) -> bool {
        let value = |kind| find(body.get(12..).unwrap_or_default(), kind);
        let number = |kind| value(kind).and_then(u32_of);
        body.first() == Some(&self.family().number())
            && body.get(7) == Some(&FR_ACT_TO_TBL)
            && body[1..4] == [0, 0, 0]
            && others::narrowed_by(body).iter().all(|kind| {
                let mut own = self.selectors().into_iter();
                own.any(|(own, _)| own == *kind)
            })
            && number(FRA_PRIORITY) == Some(self.priority())
            && number(FRA_TABLE) == Some(self.table())
            && self
                .selectors()
                .iter()
                .all(|(kind, want)| value(*kind) == Some(want))
    }
}

/// The route that makes every destination local: `local default dev lo src <source> table 139`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Source address of connections that have none yet.
    pub source: IpAddr,
}

impl Route {
    fn body(self) -> Vec<u8> {
        let scope = if self.source.is_ipv4() {
            RT_SCOPE_HOST
        } else {
            RT_SCOPE_UNIVERSE
        };
        let mut body = route_header(Family::of(self.source), scope);
        attribute(&mut body, RTA_OIF, &LOOPBACK_IFINDEX.to_ne_bytes());
        match self.source {
            IpAddr::V4(ip) => attribute(&mut body, RTA_PREFSRC, &ip.octets()),
            IpAddr::V6(ip) => attribute(&mut body, RTA_PREFSRC, &ip.octets()),
        }
        body
    }
}

fn route_header(family: Family, scope: u8) -> Vec<u8> {
    // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags. The table fits eight bits.
    let mut body = vec![
        family.number(),
        0,
        0,
        0,
        TABLE as u8,
        RTPROT_STATIC,
        scope,
        RTN_LOCAL,
        0,
        0,
        0,
        0,
    ];
    attribute(&mut body, RTA_TABLE, &TABLE.to_ne_bytes());
    body
}

/// A table of the kernel, as far as it concerns capture.
#[derive(Clone, Debug)]
pub(crate) struct Table<T> {
    /// What capture makes.
    pub ours: BTreeSet<T>,
    /// What stands where only capture's may stand: to be removed.
    pub strays: Vec<Stray>,
    /// What comes before capture's and may take away what is to be captured: somebody else's, for a human.
    pub foreign: BTreeSet<String>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            ours: BTreeSet::new(),
            strays: Vec::new(),
            foreign: BTreeSet::new(),
        }
    }
}

/// An address of the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAddress {
    /// The address.
    pub ip: IpAddr,
    /// Index of its device.
    pub device: u32,
    /// Reachable from anywhere, and usable as a source now.
    pub global: bool,
}

/// A conversation with the kernel about one network namespace.
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens it in `netns`.
    pub fn open(netns: &Netns) -> io::Result<Self> {
        let socket = netns.run(|| {
            socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkRoute,
            )
        })??;
        setsockopt(
            &socket,
            ReceiveTimeout,
            &TimeVal::new(ANSWER_SECONDS_MAX, 0),
        )?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// All addresses.
    pub fn addresses(&mut self) -> io::Result<Vec<LocalAddress>> {
        let body = [0u8; 8];
        Ok(self
            .dump(RTM_GETADDR, RTM_NEWADDR, &body)?
            .iter()
            .filter_map(|entry| address(entry))
            .collect())
    }

    /// Those of capture's rules that are there.
    pub fn rules(&mut self) -> io::Result<BTreeSet<Rule>> {
        Ok(self.all_rules()?.ours)
    }

    /// All rules, as far as they concern capture.
    pub fn all_rules(&mut self) -> io::Result<Table<Rule>> {
        let mut found = Table::default();
        for family in [Family::V4, Family::V6] {
            let mut body = [0u8; 12];
            body[0] = family.number();
            // A kernel without IPv6 answers for all families it has, or not at all.
            for entry in self
                .dump(RTM_GETRULE, RTM_NEWRULE, &body)
                .or_else(no_family)?
            {
                let mut ours = [
                    Rule::Daemon(family),
                    Rule::Redirect(family),
                    Rule::Dns(family),
                ]
                .into_iter();
                match ours.find(|rule| rule.matches(&entry)) {
                    Some(rule) => drop(found.ours.insert(rule)),
                    None => others::sort_rule(entry, &mut found),
                }
            }
        }
        Ok(found)
    }

    /// Adds a rule; there already is fine.
    pub fn add_rule(&mut self, rule: Rule) -> io::Result<()> {
        match self.ask(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, &rule.body()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    /// Removes a rule; not there is fine.
    pub fn remove_rule(&mut self, rule: Rule) -> io::Result<()> {
        absent_is_fine(self.ask(RTM_DELRULE, 0, &rule.body()))
    }

    /// All routes of the capture table.
    pub fn all_routes(&mut self) -> io::Result<Table<Route>> {
        let mut found = Table::default();
        for family in [Family::V4, Family::V6] {
            let mut body = [0u8; 12];
            body[0] = family.number();
            for entry in self
                .dump(RTM_GETROUTE, RTM_NEWROUTE, &body)
                .or_else(no_family)?
            {
                match route(&entry) {
                    Some(route) => drop(found.ours.insert(route)),
                    None => others::sort_route(entry, &mut found),
                }
            }
        }
        Ok(found)
    }

    /// Removes what somebody else put in our way; not there is fine.
    pub fn remove_stray(&mut self, stray: &Stray) -> io::Result<()> {
        absent_is_fine(self.ask(stray.removal, 0, &stray.body))
    }

    /// Adds the route of its family, or changes its source.
    pub fn set_route(&mut self, route: Route) -> io::Result<()> {
        self.ask(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &route.body())
    }

    /// Removes the route of a family; not there is fine.
    pub fn remove_route(&mut self, family: Family) -> io::Result<()> {
        let scope = if family == Family::V4 {
            RT_SCOPE_HOST
        } else {
            RT_SCOPE_UNIVERSE
        };
        absent_is_fine(self.ask(RTM_DELROUTE, 0, &route_header(family, scope)))
    }

    /// A request that is answered by success or an error.
    fn ask(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.send(kind, flags | NLM_F_ACK, body)?;
        let mut part = vec![0; PART_MAX];
        loop {
            let len = recv(self.socket.as_raw_fd(), &mut part, MsgFlags::empty())?;
            for message in Messages(&part[..len]) {
                let message = message?;
                if message.sequence == self.sequence && message.kind == NLMSG_ERROR {
                    return error_of(message.body);
                }
            }
        }
    }

    /// All entries of a table; asked again when the table changed meanwhile.
    fn dump(&mut self, kind: u16, answer: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        for _ in 0..DUMP_TRIES_MAX {
            if let Some(entries) = self.dump_once(kind, answer, body)? {
                return Ok(entries);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::Interrupted,
            "the table keeps changing",
        ))
    }

    fn dump_once(
        &mut self,
        kind: u16,
        answer: u16,
        body: &[u8],
    ) -> io::Result<Option<Vec<Vec<u8>>>> {
        self.send(kind, NLM_F_DUMP, body)?;
        let mut entries = Vec::new();
        let mut whole = true;
        let mut part = vec![0; PART_MAX];
        loop {
            let len = recv(self.socket.as_raw_fd(), &mut part, MsgFlags::empty())?;
            for message in Messages(&part[..len]) {
                let message = message?;
                if message.sequence != self.sequence {
                    continue;
                }
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_DONE => return Ok(whole.then_some(entries)),
                    NLMSG_ERROR => return error_of(message.body).map(|()| Some(entries)),
                    kind if kind == answer && entries.len() < ENTRIES_MAX => {
                        entries.push(message.body.to_vec())
                    }
                    kind if kind == answer => return Err(io::ErrorKind::OutOfMemory.into()),
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = Vec::with_capacity(HEADER + body.len());
        // Bodies are made here and short.
        message.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(body);
        sendto(
            self.socket.as_raw_fd(),
            &message,
            &NetlinkAddr::new(0, 0),
            MsgFlags::empty(),
        )?;
        Ok(())
    }
}

fn no_family(error: io::Error) -> io::Result<Vec<Vec<u8>>> {
    let absent = [Some(nix::libc::EAFNOSUPPORT), Some(nix::libc::EOPNOTSUPP)];
    if absent.contains(&error.raw_os_error()) {
        Ok(Vec::new())
    } else {
        Err(error)
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    let absent = [
        Some(nix::libc::ENOENT),
        Some(nix::libc::ESRCH),
        Some(nix::libc::EAFNOSUPPORT),
    ];
    match result {
        Err(error) if absent.contains(&error.raw_os_error()) => Ok(()),
        other => other,
    }
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The messages in one datagram.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = io::Result<Message<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let header = self
            .0
            .get(..HEADER)
            .and_then(|header| Some((u32_of(&header[..4])? as usize, header)));
        let Some((len, header)) = header.filter(|(len, _)| (HEADER..=self.0.len()).contains(len))
        else {
            self.0 = &[];
            return Some(Err(io::ErrorKind::InvalidData.into()));
        };
        let message = Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32_of(&header[8..12])?,
            body: &self.0[HEADER..len],
        };
        self.0 = self.0.get(align(len)..).unwrap_or_default();
        Some(Ok(message))
    }
}

/// The outcome in an `NLMSG_ERROR` body: 0 or a negative errno.
fn error_of(body: &[u8]) -> io::Result<()> {
    let code = body
        .get(..4)
        .and_then(u32_of)
        .ok_or(io::ErrorKind::InvalidData)? as i32;
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(-code))
    }
}

const fn align(len: usize) -> usize {
    len.next_multiple_of(4)
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Values are made here and short.
    body.extend_from_slice(&((ATTRIBUTE + value.len()) as u16).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(align(body.len()), 0);
}

/// The value of the first attribute of a kind.
fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    while attributes.len() >= ATTRIBUTE {
        let len = usize::from(u16::from_ne_bytes([attributes[0], attributes[1]]));
        let this = u16::from_ne_bytes([attributes[2], attributes[3]]);
        let value = attributes.get(ATTRIBUTE..len)?;
        if this == kind {
            return Some(value);
        }
        attributes = attributes.get(align(len)..).unwrap_or_default();
    }
    None
}

fn u32_of(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

fn ip_of(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(bytes)
        .ok()
        .map(|v6| Ipv6Addr::from(v6).into())
}

fn address(entry: &[u8]) -> Option<LocalAddress> {
    // struct ifaddrmsg: family, prefixlen, flags, scope, index.
    let attributes = entry.get(8..)?;
    let ip = find(attributes, IFA_LOCAL)
        .or_else(|| find(attributes, IFA_ADDRESS))
        .and_then(ip_of)?;
    let flags = find(attributes, IFA_FLAGS)
        .and_then(u32_of)
        .unwrap_or(u32::from(entry[2]));
    let usable = ip.is_ipv4() || flags & IFA_F_UNUSABLE == 0;
    Some(LocalAddress {
        ip,
        device: u32_of(&entry[4..8])?,
        global: entry[3] == RT_SCOPE_UNIVERSE && usable,
    })
}

fn route(entry: &[u8]) -> Option<Route> {
    let attributes = entry.get(12..)?;
    let ours = find(attributes, RTA_TABLE).and_then(u32_of) == Some(TABLE)
        && entry[1] == 0
        && entry[7] == RTN_LOCAL
        && find(attributes, RTA_DST).is_none()
        && find(attributes, RTA_OIF).and_then(u32_of) == Some(LOOPBACK_IFINDEX);
    let source = find(attributes, RTA_PREFSRC).and_then(ip_of)?;
    ours.then_some(Route { source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_know_themselves_again() {
        for family in [Family::V4, Family::V6] {
            let all = [
                Rule::Daemon(family),
                Rule::Redirect(family),
                Rule::Dns(family),
            ];
            for a in all {
                for b in all {
                    assert_eq!(a.matches(&b.body()), a == b, "{a:?} {b:?}");
                }
            }
        }
        assert!(!Rule::Dns(Family::V4).matches(&Rule::Dns(Family::V6).body()));
    }

    #[test]
    fn routes_know_themselves_again() {
        for ip in ["10.0.0.2", "fd00::2"] {
            let wanted = Route {
                source: ip.parse().unwrap(),
            };
            assert_eq!(route(&wanted.body()), Some(wanted));
        }
        assert_eq!(route(&[0; 12]), None);
    }

    #[test]
    fn broken_answers_are_errors() {
        for bytes in [
            &[1u8, 2, 3][..],
            &[0; 16],
            &[200, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert!(Messages(bytes).next().unwrap().is_err());
        }
        assert_eq!(find(&[3, 0, 1, 0], 1), None);
        assert_eq!(find(&[0, 0, 1, 0], 1), None);
        assert_eq!(find(&[9, 0, 1, 0, 5], 1), None);
        assert_eq!(address(&[0; 8]), None);
        assert!(error_of(&[]).is_err());
    }
}
