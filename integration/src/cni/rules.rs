//! The rules that the agent installs in a pod's namespace, by the real tools, from the table of the contract.

use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::pod::Pod;
use crate::world::Node;

/// Where probes of the node's own processes seem to come from, IPv4.
pub const PROBE_V4: &str = "169.254.7.127";
/// The same, IPv6.
pub const PROBE_V6: &str = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff";

/// Mark and mask of the proxy's packets.
const PROXY: &str = "0x539/0xfff";
/// Mark and mask of connections, and of packets that are to come back over loopback.
const CONNECTION: &str = "0x111/0xfff";

/// What differs from pod to pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// DNS questions are captured
    pub dns: bool,
    /// inbound plaintext is not captured
    pub bypass_inbound: bool,
    /// whatever comes in on these interfaces is the pod's own outbound traffic
    pub reroute: Vec<String>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            dns: true,
            bypass_inbound: false,
            reroute: Vec::new(),
        }
    }
}

/// One family's words.
struct Family {
    restore: &'static str,
    loopback: &'static str,
    any: &'static str,
    probe: &'static str,
    ip: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        restore: "iptables-restore",
        loopback: "127.0.0.1/32",
        any: "0.0.0.0/0",
        probe: PROBE_V4,
        ip: "-4",
    },
    Family {
        restore: "ip6tables-restore",
        loopback: "::1/128",
        any: "::/0",
        probe: PROBE_V6,
        ip: "-6",
    },
];

impl Rules {
    /// Installs the rules for both families.
    ///
    /// Errors: of the tools.
    pub fn install(&self, pod: &Pod) -> Result<()> {
        for family in &FAMILIES {
            restore(&pod.netns, family.restore, &self.tables(family))?;
            routing(family, &pod.netns_name, "add")?;
        }
        Ok(())
    }

    /// Removes them again.
    ///
    /// Errors: of the tools.
    pub fn remove(&self, pod: &Pod) -> Result<()> {
        for family in &FAMILIES {
            let mut tables = vec!["mangle", "nat"];
            if self.dns {
                tables.push("raw");
            }
            let text: String = tables.iter().map(|table| unmade(table)).collect();
            restore(&pod.netns, family.restore, &text)?;
            routing(family, &pod.netns_name, "del")?;
        }
        Ok(())
    }

    fn tables(&self, family: &Family) -> String {
        let mut all = table(
            "mangle",
            &[
                format!(
                    "-A ISTIO_PRERT -m mark --mark {PROXY} -j CONNMARK --set-xmark {CONNECTION}"
                ),
                format!(
                    "-A ISTIO_OUTPUT -m connmark --mark {CONNECTION} \
                     -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff"
                ),
            ],
        );
        let mut nat = self.nat_in(family);
        nat.extend(self.nat_out(family));
        all.push_str(&table("nat", &nat));
        if self.dns {
            all.push_str(&table(
                "raw",
                &[
                    format!(
                        "-A ISTIO_OUTPUT -p udp --dport 53 -m mark --mark {PROXY} -j CT --zone 1"
                    ),
                    format!(
                        "-A ISTIO_PRERT -p udp --sport 53 -m mark ! --mark {PROXY} -j CT --zone 1"
                    ),
                ],
            ));
        }
        all
    }

    fn nat_in(&self, family: &Family) -> Vec<String> {
        let mut lines = Vec::new();
        for device in &self.reroute {
            lines.push(format!(
                "-A ISTIO_PRERT -i {device} -p tcp -j REDIRECT --to-ports 15001"
            ));
            lines.push(format!("-A ISTIO_PRERT -i {device} -j RETURN"));
        }
        if !self.bypass_inbound {
            let Family {
                probe, loopback, ..
            } = family;
            lines.push(format!("-A ISTIO_PRERT -s {probe} -p tcp -j ACCEPT"));
            lines.push(format!(
                "-A ISTIO_PRERT ! -d {loopback} -p tcp ! --dport 15008 -m mark ! --mark {PROXY} \
                 -j REDIRECT --to-ports 15006"
            ));
        }
        lines
    }

    fn nat_out(&self, family: &Family) -> Vec<String> {
        let Family {
            probe, loopback, ..
        } = family;
        let mut lines = vec![format!("-A ISTIO_OUTPUT -d {probe} -p tcp -j ACCEPT")];
        if self.dns {
            lines.push(format!(
                "-A ISTIO_OUTPUT ! -o lo -p udp --dport 53 -m mark ! --mark {PROXY} -j REDIRECT --to-ports 15053"
            ));
            lines.push(format!(
                "-A ISTIO_OUTPUT ! -d {loopback} -p tcp --dport 53 -m mark ! --mark {PROXY} \
                 -j REDIRECT --to-ports 15053"
            ));
        }
        lines.push(format!(
            "-A ISTIO_OUTPUT -p tcp -m mark --mark {CONNECTION} -j ACCEPT"
        ));
        lines.push(format!("-A ISTIO_OUTPUT ! -d {loopback} -o lo -j ACCEPT"));
        lines.push(format!(
            "-A ISTIO_OUTPUT ! -d {loopback} -p tcp -m mark ! --mark {PROXY} -j REDIRECT --to-ports 15001"
        ));
        lines
    }
}

/// What the agent does on the node: TCP that a process of the node itself opens to the pod seems to come from the
/// probe address.
///
/// Errors: of the tools.
pub fn snat_probes(node: &Node, pod: &Pod) -> Result<()> {
    let pairs = [
        (&FAMILIES[0], IpAddr::V4(pod.v4)),
        (&FAMILIES[1], IpAddr::V6(pod.v6)),
    ];
    for (family, to) in pairs {
        let rule = format!(
            "*nat\n-A POSTROUTING -m owner --socket-exists -p tcp -d {to} -j SNAT --to-source {}\nCOMMIT\n",
            family.probe
        );
        restore(&node.netns, family.restore, &rule)?;
    }
    Ok(())
}

/// A table with the agent's two chains and the jumps to them.
fn table(name: &str, lines: &[String]) -> String {
    let lines = lines.join("\n");
    format!(
        "*{name}\n:ISTIO_PRERT - [0:0]\n:ISTIO_OUTPUT - [0:0]\n\
         -A PREROUTING -j ISTIO_PRERT\n-A OUTPUT -j ISTIO_OUTPUT\n{lines}\nCOMMIT\n"
    )
}

fn unmade(name: &str) -> String {
    format!(
        "*{name}\n-D PREROUTING -j ISTIO_PRERT\n-D OUTPUT -j ISTIO_OUTPUT\n\
         -F ISTIO_PRERT\n-F ISTIO_OUTPUT\n-X ISTIO_PRERT\n-X ISTIO_OUTPUT\nCOMMIT\n"
    )
}

/// The way back over loopback.
fn routing(family: &Family, netns_name: &str, verb: &str) -> Result<()> {
    let lines = [
        format!("rule {verb} fwmark {CONNECTION} pref 32764 lookup 100"),
        format!("route {verb} local {} dev lo table 100", family.any),
    ];
    for line in lines {
        let out = Command::new("ip")
            .args([family.ip, "-n", netns_name])
            .args(line.split(' '))
            .output()
            .context("run ip")?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
            bail!("ip {} {line}: {said}", family.ip);
        }
    }
    Ok(())
}

/// Runs the tool inside the namespace; what is there already stays.
fn restore(netns: &Path, tool: &str, text: &str) -> Result<()> {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", netns.display()))
        .args(["--", tool, "--noflush"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("run {tool}"))?;
    let mut stdin = child.stdin.take().context("stdin of the tool")?;
    stdin
        .write_all(text.as_bytes())
        .with_context(|| format!("write to {tool}"))?;
    drop(stdin);
    let out = child.wait_with_output()?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        bail!("{tool} (Debian: apt-get install iptables): {said}\n{text}");
    }
    Ok(())
}
