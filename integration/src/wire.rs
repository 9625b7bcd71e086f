//! What went over an interface: a tcpdump to a file, and the packets read back from it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{netns, wait};

/// Most time for tcpdump to begin, and for the end mark to arrive.
const STEP_MAX: Duration = Duration::from_secs(10);
/// Port of the datagram that marks the end of a capture (discard).
const MARK_PORT: u16 = 9;

/// A capture that runs.
pub struct Capture {
    child: Child,
    file: PathBuf,
    netns: PathBuf,
    towards: IpAddr,
    mark: Vec<u8>,
}

impl Capture {
    /// Starts to record `device` inside a namespace.
    ///
    /// - `towards`: an address whose packets leave through that device; a datagram to it marks the end
    /// - `dir`: where the file goes
    ///
    /// Errors: tcpdump does not begin.
    pub fn start(netns: &Path, device: &str, towards: IpAddr, dir: &Path) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let file = dir.join(format!("capture-{count}.pcap"));
        let said = dir.join(format!("capture-{count}.txt"));
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", netns.display()))
            .args(["--", "tcpdump", "-n", "-U", "-i", device]);
        command
            .args([
                "--immediate-mode",
                "-B",
                "32768",
                "-s",
                "0",
                "-Z",
                "root",
                "-w",
            ])
            .arg(&file);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(fs::File::create(&said).context("file for tcpdump's messages")?);
        let child = command.spawn().context("start tcpdump")?;
        let mark = format!("end of capture {} {count}", std::process::id()).into_bytes();
        let mut capture = Self {
            child,
            file,
            netns: netns.to_owned(),
            towards,
            mark,
        };
        wait::until(STEP_MAX, "tcpdump listening", || {
            let text = fs::read_to_string(&said).unwrap_or_default();
            let ended = capture.child.try_wait()?.is_some();
            ensure!(!ended, "tcpdump on {device}: {}", text.trim());
            Ok(text.contains("listening on").then_some(()))
        })?;
        Ok(capture)
    }

    /// Ends the capture after everything sent before has been recorded, and reads it.
    ///
    /// Errors: the end mark does not arrive, or the file cannot be read.
    pub fn stop(self) -> Result<Packets> {
        let to = SocketAddr::new(self.towards, MARK_PORT);
        wait::until(STEP_MAX, "the end of the capture", || {
            netns::send_mark(&self.netns, to, &self.mark)?;
            let bytes = fs::read(&self.file).unwrap_or_default();
            Ok(find(&bytes, &self.mark).then_some(()))
        })?;
        let bytes =
            fs::read(&self.file).with_context(|| format!("read {}", self.file.display()))?;
        Packets::parse(&bytes)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // an error means that it is already gone
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }
}

/// One TCP or UDP packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// sender
    pub from: SocketAddr,
    /// receiver
    pub to: SocketAddr,
    /// TCP, else UDP
    pub tcp: bool,
    /// TCP flags
    pub flags: u8,
    /// bytes carried
    pub payload: Vec<u8>,
}

/// Everything recorded that is TCP or UDP over IPv4 or IPv6.
#[derive(Debug, Clone, Default)]
pub struct Packets {
    /// in order of arrival
    pub all: Vec<Packet>,
}

impl Packets {
    /// Reads a capture file of Ethernet frames.
    ///
    /// Errors: it is no such file.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let magic = bytes.get(..4).context("empty capture file")?;
        ensure!(
            magic == 0xa1b2_c3d4_u32.to_le_bytes(),
            "not a capture file of this machine"
        );
        let link = bytes.get(20..24).context("capture file cut short")?;
        ensure!(link == 1u32.to_le_bytes(), "not Ethernet");
        let mut all = Vec::new();
        let mut rest = &bytes[24..];
        while let Some((head, after)) = rest.split_at_checked(16) {
            let len = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
            let Some((frame, after)) = after.split_at_checked(len) else {
                break;
            };
            all.extend(packet(frame));
            rest = after;
        }
        Ok(Self { all })
    }

    /// Whether the bytes occur in the payload, in one packet or over the border of two of one direction.
    pub fn shows(&self, marker: &str) -> bool {
        let mut streams: BTreeMap<(SocketAddr, SocketAddr), Vec<u8>> = BTreeMap::new();
        for packet in &self.all {
            streams
                .entry((packet.from, packet.to))
                .or_default()
                .extend_from_slice(&packet.payload);
        }
        streams.values().any(|bytes| find(bytes, marker.as_bytes()))
    }

    /// TCP packets to or from that port that carry a TLS record's head.
    pub fn tls(&self, port: u16) -> usize {
        let here = |packet: &&Packet| {
            packet.tcp && (packet.to.port() == port || packet.from.port() == port)
        };
        self.all
            .iter()
            .filter(here)
            .filter(|packet| is_tls(&packet.payload))
            .count()
    }

    /// TCP packets to that address.
    pub fn tcp_to(&self, to: SocketAddr) -> usize {
        self.all
            .iter()
            .filter(|packet| packet.tcp && packet.to == to)
            .count()
    }

    /// First packets of TCP connections to that address.
    pub fn syn_to(&self, to: SocketAddr) -> usize {
        // flag 0x02 = SYN, 0x10 = ACK
        let first = |packet: &&Packet| packet.tcp && packet.to == to && packet.flags & 0x12 == 0x02;
        self.all.iter().filter(first).count()
    }

    /// UDP packets to that port.
    pub fn udp_to_port(&self, port: u16) -> usize {
        self.all
            .iter()
            .filter(|packet| !packet.tcp && packet.to.port() == port)
            .count()
    }
}

fn is_tls(payload: &[u8]) -> bool {
    // content type handshake, change cipher spec or application data, then version 3.x
    matches!(payload, [20 | 22 | 23, 3, 1..=3, ..])
}

fn packet(frame: &[u8]) -> Option<Packet> {
    let kind = u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]);
    let ip = frame.get(14..)?;
    let (from, to, protocol, body) = match kind {
        0x0800 => {
            let head = usize::from(*ip.first()? & 0x0f) * 4;
            let total = usize::from(u16::from_be_bytes([*ip.get(2)?, *ip.get(3)?]));
            let body = ip.get(head..end(total, head, ip.len()))?;
            let address = |at: usize| {
                Some(Ipv4Addr::from(
                    <[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?,
                ))
            };
            (
                IpAddr::V4(address(12)?),
                IpAddr::V4(address(16)?),
                *ip.get(9)?,
                body,
            )
        }
        0x86dd => {
            let carried = usize::from(u16::from_be_bytes([*ip.get(4)?, *ip.get(5)?]));
            let total = if carried == 0 { 0 } else { carried + 40 };
            let body = ip.get(40..end(total, 40, ip.len()))?;
            let address = |at: usize| {
                Some(Ipv6Addr::from(
                    <[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?,
                ))
            };
            (
                IpAddr::V6(address(8)?),
                IpAddr::V6(address(24)?),
                *ip.get(6)?,
                body,
            )
        }
        _ => return None,
    };
    let tcp = match protocol {
        6 => true,
        17 => false,
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?]));
    let head = if tcp {
        usize::from(*body.get(12)? >> 4) * 4
    } else {
        8
    };
    let flags = if tcp { *body.get(13)? } else { 0 };
    Some(Packet {
        from: SocketAddr::new(from, port(0)?),
        to: SocketAddr::new(to, port(2)?),
        tcp,
        flags,
        payload: body.get(head..)?.to_vec(),
    })
}

/// End of an IP packet in its frame; a length field of 0 stands for a packet too big for it.
fn end(total: usize, head: usize, frame: usize) -> usize {
    if total == 0 {
        frame.max(head)
    } else {
        total.clamp(head, frame.max(head))
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes
        .windows(wanted.len().max(1))
        .any(|window| window == wanted)
}
