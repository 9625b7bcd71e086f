//! This network namespace: ports of the endpoints, packet size towards others, IPv6, settings that touch captured connections.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use capture::probe::Finding;
use nix::sys::socket::{getsockopt, sockopt::IpMtu};

use super::Ground;
use crate::config::{Config, Redirect};

/// Smallest packet that IPv6 takes (RFC 8200, section 5); tunnels with less fragment.
const MTU_MIN: i32 = 1280;
/// For documentation (RFC 5737): whatever lies behind the default route.
const ELSEWHERE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), 9);
/// Settings of the kernel for this namespace.
const SYSCTL: &str = "/proc/sys/net";

/// All of it.
pub fn findings(ground: &Ground) -> Vec<Finding> {
    let config = &ground.config;
    let mut found = vec![
        ports(config, ground.running),
        packet_size(mtu()),
        ipv6(config),
    ];
    if config.capture.redirect == Redirect::Ebpf {
        found.push(reverse_path());
        found.push(source_ports(
            &read("ipv4/ip_local_port_range").unwrap_or_default(),
        ));
    }
    found
}

fn read(name: &str) -> Option<String> {
    let text = std::fs::read_to_string(Path::new(SYSCTL).join(name)).ok()?;
    Some(text.trim().to_owned())
}

/// Whether the endpoints' ports are free, where no daemon has them.
fn ports(config: &Config, running: bool) -> Finding {
    const NAME: &str = "ports of the endpoints";
    let ports = [
        ("admin", Ipv4Addr::LOCALHOST, config.admin_port),
        ("metrics", Ipv4Addr::UNSPECIFIED, config.stats_port),
        ("readiness", Ipv4Addr::UNSPECIFIED, config.readiness_port),
    ];
    if running {
        return Finding::ok(NAME, "taken by the daemon that runs here");
    }
    let taken: Vec<String> = ports
        .iter()
        .filter_map(
            |(what, address, port)| match TcpListener::bind((*address, *port)) {
                Ok(_) => None,
                Err(error) => Some(format!("{what} {port}: {error}")),
            },
        )
        .collect();
    if taken.is_empty() {
        let free = ports.map(|(what, _, port)| format!("{what} {port}"));
        return Finding::ok(NAME, format!("{}: free", free.join(", ")));
    }
    Finding::failed(
        NAME,
        taken.join(", "),
        "another process has it (ss -ltnp): end it, or set ADMIN_PORT, STATS_PORT, READINESS_PORT",
    )
}

/// Largest packet of the default route.
fn mtu() -> io::Result<i32> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // sends nothing: the kernel only looks for the route
    socket.connect(ELSEWHERE)?;
    Ok(getsockopt(&socket, IpMtu)?)
}

fn packet_size(mtu: io::Result<i32>) -> Finding {
    const NAME: &str = "packet size";
    match mtu {
        Ok(mtu) if mtu >= MTU_MIN => Finding::ok(NAME, format!("{mtu} bytes by the default route")),
        Ok(mtu) => Finding::warning(
            NAME,
            format!("{mtu} bytes by the default route"),
            "below 1280 IPv6 does not work and tunnels are slow: raise the MTU of the pod network",
        ),
        Err(error) if error.raw_os_error() == Some(nix::libc::ENETUNREACH) => Finding::warning(
            NAME,
            "no default route",
            "a daemon without one reaches neighbours only: is that how this network is meant?",
        ),
        Err(error) => Finding::warning(NAME, error.to_string(), "the route could not be asked for"),
    }
}

fn ipv6(config: &Config) -> Finding {
    const NAME: &str = "IPv6";
    let kernel = match read("ipv6/conf/all/disable_ipv6").as_deref() {
        None => "not in this kernel",
        Some("0") => "on",
        Some(_) => "off",
    };
    if config.capture.ipv6 {
        return Finding::ok(NAME, format!("{kernel}, and served where a pod has it"));
    }
    if kernel == "on" {
        return Finding::warning(
            NAME,
            "on, and IPV6_ENABLED=false",
            "IPv6 connections of pods are refused: unset IPV6_ENABLED if pods have IPv6 addresses",
        );
    }
    Finding::ok(NAME, format!("{kernel}, and IPV6_ENABLED=false"))
}

/// Captured connections go over loopback with the route that they were given, which no reverse path filter asks about.
fn reverse_path() -> Finding {
    const NAME: &str = "reverse path filter";
    let value = |name: &str| read(&format!("ipv4/conf/{name}/rp_filter"));
    let word = |name: &str| match value(name).as_deref() {
        Some("0") => "off",
        Some("1") => "strict",
        Some("2") => "loose",
        _ => "unknown",
    };
    let (all, new) = (word("all"), word("default"));
    Finding::ok(
        NAME,
        format!("{all} for all devices, {new} for new ones; does not touch captured connections"),
    )
}

/// Ports under which the daemon shows applications their clients' addresses, and those of the kernel's own choice.
fn source_ports(range: &str) -> Finding {
    const NAME: &str = "source ports";
    let ours = crate::net::KEPT_SOURCE_PORTS;
    let mut ends = range.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(first)), Some(Ok(last))) = (ends.next(), ends.next()) else {
        return Finding::warning(NAME, "the kernel's range is not known", "is /proc mounted?");
    };
    if first > *ours.end() || last < *ours.start() {
        let detail = format!(
            "the kernel picks from {first}-{last}, ztunnel from {}-{}",
            ours.start(),
            ours.end()
        );
        return Finding::ok(NAME, detail);
    }
    Finding::warning(
        NAME,
        format!(
            "the kernel picks from {first}-{last}, which reaches into ztunnel's {}-{}",
            ours.start(),
            ours.end()
        ),
        "where pods have this range as well, a port may be taken and another is tried: leave 61000-65535 out of net.ipv4.ip_local_port_range",
    )
}

#[cfg(test)]
mod tests {
    use capture::probe::Status;

    use super::*;

    #[test]
    fn ranges() {
        let cases = [
            ("32768\t60999", Status::Ok),
            ("1024 65535", Status::Warning),
            ("61000 61000", Status::Warning),
            ("rubbish", Status::Warning),
        ];
        for (range, status) in cases {
            assert_eq!(source_ports(range).status, status, "{range}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(packet_size(Ok(1500)).status, Status::Ok);
        assert_eq!(packet_size(Ok(1279)).status, Status::Warning);
        let none = io::Error::from_raw_os_error(nix::libc::ENETUNREACH);
        assert_eq!(packet_size(Err(none)).detail, "no default route");
    }
}
