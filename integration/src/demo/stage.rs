//! What the demo plays on: two nodes with a daemon each, three pods with real applications, and ways to look at them.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::tell::Teller;
use crate::model::MODE_LABEL;
use crate::netns;
use crate::wire::Packet;
use crate::{AccessLine, App, Daemon, Envoy, Layout, Packets, Pod, PodPlan, Service, World, place};

/// Port of the HTTP applications.
pub const HTTP: u16 = 8080;
/// Port of the raw TCP echo.
pub const ECHO: u16 = 9000;
/// The namespace that is labelled.
pub const SHOP: &str = "shop";
/// What must not be read by others: sent with every request of the story.
pub const SECRET: &str = "4929-1837-2204-5561";
/// The service's virtual address; no kube-proxy serves it here.
pub const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));

/// File in the run directory of a world that a demo left running.
pub const MARK: &str = "demo";
/// Address of each node's bridge, locally administered.
const BRIDGE_MAC: &str = "02:00:00:00:00:01";
/// Warnings and errors that are shown of one log.
const COMPLAINTS_MAX: usize = 5;
/// Bytes of a payload that are shown.
const SHOWN_BYTES: usize = 12;
/// Characters of a readable payload that are shown.
const SHOWN_CHARS: usize = 110;
/// Sysctls that enrolment may set in a pod and must restore.
const SYSCTLS: [&str; 2] = ["net/ipv4/tcp_fwmark_accept", "net/ipv4/fwmark_reflect"];

/// What a story is played with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// mesh state and certificates from files
    Files,
    /// from a control plane
    Istiod,
    /// from files, and an Envoy before the service
    Waypoint,
}

/// What only the story of a waypoint has.
pub struct Front {
    /// `guest-0` in `shop` on node 1: another identity than `web-0`
    pub guest: Pod,
    /// `gate-0` in `shop` on node 1, where Envoy runs; not in the mesh
    pub gate: Pod,
    /// Envoy, once it is started; it goes before the daemons
    pub envoy: Option<Envoy>,
}

/// Everything the scenes play with. Dropping it takes all of it down.
pub struct Stage {
    /// `web-0` in `shop` on node 1, where curl runs
    pub web: Pod,
    /// `cart-0` in `shop` on node 2: HTTP and a raw TCP echo
    pub cart: Pod,
    /// `ledger-0` in `legacy` on node 2: never in the mesh
    pub ledger: Pod,
    /// applications, as long as the story lasts
    pub apps: Vec<App>,
    /// a connection from before the label
    pub early: Option<App>,
    /// of the story of a waypoint
    pub front: Option<Front>,
    /// what the pods looked like before the label
    pub before: String,
    /// one per node
    pub daemons: Vec<Daemon>,
    /// namespaces, cgroups, files; last, so that it goes last
    pub world: World,
}

impl Stage {
    /// Raises the world, its daemons and applications.
    ///
    /// Errors: whatever the machine refuses; a daemon that does not get ready, with the end of its log.
    pub fn raise(setting: Setting) -> Result<Self> {
        let cart = Service {
            name: "cart".to_owned(),
            namespace: SHOP.to_owned(),
            vips: vec![VIP],
            ports: vec![(80, HTTP)],
            pods: vec!["cart-0".to_owned()],
            ..Service::default()
        };
        let pods = [
            (SHOP, "web-0", 0),
            (SHOP, "cart-0", 1),
            ("legacy", "ledger-0", 1),
        ];
        let mut pods = pods
            .map(|(namespace, name, node)| PodPlan::new(namespace, name, node))
            .to_vec();
        if setting == Setting::Waypoint {
            pods.push(PodPlan::new(SHOP, "guest-0", 0));
            pods.push(PodPlan::new(SHOP, "gate-0", 0).labelled(MODE_LABEL, "none"));
        }
        let layout = Layout {
            nodes: 2,
            pods,
            services: vec![cart],
        };
        let world = match setting {
            Setting::Istiod => World::raise_under_istiod(&layout)?,
            Setting::Files | Setting::Waypoint => World::raise(&layout)?,
        };
        let front = (setting == Setting::Waypoint).then(|| Front {
            guest: world.pod("guest-0").clone(),
            gate: world.pod("gate-0").clone(),
            envoy: None,
        });
        for node in world.nodes() {
            // a bridge without an address of its own takes a port's, and another when a daemon's port goes
            netns::ip(
                Some(&node.netns_name),
                &[format!("link set cni0 address {BRIDGE_MAC}")],
            )?;
        }
        let daemons = world.daemons()?;
        let [web, cart, ledger] =
            ["web-0", "cart-0", "ledger-0"].map(|name| world.pod(name).clone());
        let apps = servers(&cart, &ledger)
            .iter()
            .map(|(pod, args)| pod.serve(args))
            .collect::<Result<_>>()?;
        let mut stage = Self {
            web,
            cart,
            ledger,
            apps,
            early: None,
            front,
            before: String::new(),
            daemons,
            world,
        };
        stage.before = stage.traces()?;
        Ok(stage)
    }

    /// All daemons, as the world's waits want them.
    pub fn all(&self) -> Vec<&Daemon> {
        self.daemons.iter().collect()
    }

    /// curl in a pod, with the secret in a header; what the HTTP application answered, but for the headers it saw.
    ///
    /// Errors: curl failed or the answer is not the application's.
    pub fn curl(&self, pod: &Pod, to: SocketAddr) -> Result<Value> {
        let mut answer = self.curl_all(pod, to)?;
        if let Some(fields) = answer.as_object_mut() {
            fields.remove("headers");
        }
        Ok(answer)
    }

    fn curl_all(&self, pod: &Pod, to: SocketAddr) -> Result<Value> {
        let (url, header) = (format!("http://{to}/"), format!("x-card: {SECRET}"));
        let (code, text) = pod.curl(&["-H", &header, &url])?;
        ensure!(
            code == 0,
            "curl {url} in {} ended with {code}: {}",
            pod.name,
            text.trim()
        );
        serde_json::from_str(&text)
            .with_context(|| format!("curl {url} in {} printed {text:?}", pod.name))
    }

    /// curl in a pod while the wire between the nodes is recorded.
    ///
    /// Errors: of curl or of the capture.
    pub fn curl_watched(
        &self,
        pod: &Pod,
        to: SocketAddr,
        teller: &Teller,
    ) -> Result<(Value, Packets)> {
        teller.show(&format!(
            "{}$ curl -H 'x-card: {SECRET}' http://{to}/",
            pod.name
        ));
        let capture = self.world.node(0).capture(self.world.node(1))?;
        let answer = self.curl(pod, to)?;
        Ok((answer, capture.stop()?))
    }

    /// What enrolment could leave behind in the pods of the namespace: rules, routes, settings of lo, sysctls.
    ///
    /// Errors: of `ip`, or a sysctl that this kernel lacks.
    pub fn traces(&self) -> Result<String> {
        let mut text = String::new();
        for pod in [&self.web, &self.cart] {
            for args in [["-4", "rule"], ["-6", "rule"]] {
                text.push_str(&netns::show(&pod.netns_name, &args)?);
            }
            for family in ["-4", "-6"] {
                text.push_str(&netns::show(
                    &pod.netns_name,
                    &[family, "route", "show", "table", "all"],
                )?);
            }
            text.push_str(&netns::show(
                &pod.netns_name,
                &["-d", "link", "show", "dev", "lo"],
            )?);
            for key in SYSCTLS {
                let _ = writeln!(text, "{key} = {}", netns::sysctl(&pod.netns, key)?);
            }
        }
        // the kernel's own link-local addresses come when it is done looking for twins
        let kept = text.lines().filter(|line| !line.contains("fe80:"));
        Ok(kept.collect::<Vec<_>>().join("\n"))
    }

    /// What the daemons, also those already replaced, wrote as warnings and errors: for a step that failed.
    pub fn complaints(&self) -> String {
        let mut text = String::from("warnings and errors of the daemons:\n");
        let entries = fs::read_dir(self.world.dir())
            .into_iter()
            .flatten()
            .flatten();
        let mut logs: Vec<_> = entries.map(|entry| entry.path()).collect();
        logs.retain(|path| path.extension().is_some_and(|end| end == "log"));
        logs.sort();
        for path in logs {
            let log = fs::read_to_string(&path).unwrap_or_default();
            let grave = |line: &&str| {
                ["warn", "error"].contains(&line.split('\t').nth(1).unwrap_or_default())
            };
            let lines: Vec<_> = log.lines().filter(grave).collect();
            for line in &lines[lines.len().saturating_sub(COMPLAINTS_MAX)..] {
                let name = path.file_stem().unwrap_or_default().to_string_lossy();
                let _ = writeln!(text, "{name}: {}", brief(line));
            }
        }
        text
    }

    /// Lets world, daemons and applications go on after this process.
    ///
    /// Errors: a file cannot be written, an application cannot be started again.
    pub fn keep(mut self) -> Result<()> {
        // The applications so far write to pipes of ours: others, which do not, take their place.
        self.apps.clear();
        let binary = place::binary("podapp")?;
        for (pod, args) in servers(&self.cart, &self.ledger) {
            let log = File::create(
                self.world
                    .dir()
                    .join(format!("{}-{}.log", pod.name, args[0])),
            )?;
            let mut command = pod.command(&binary);
            command
                .args(args)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .process_group(0);
            command
                .spawn()
                .with_context(|| format!("start {} in {}", args[0], pod.name))?;
        }
        self.daemons.iter_mut().for_each(Daemon::keep);
        fs::write(self.world.dir().join(MARK), "").context("mark the world as the demo's")?;
        self.world.keep()
    }
}

/// Which application runs where.
fn servers<'a>(cart: &'a Pod, ledger: &'a Pod) -> [(&'a Pod, &'static [&'static str]); 3] {
    [
        (cart, &["http", "--name", "cart"]),
        (cart, &["echo"]),
        (ledger, &["http", "--name", "ledger"]),
    ]
}

/// A log line; of the access log only what a failure is about.
fn brief(line: &str) -> String {
    let Some(access) = AccessLine::parse(line) else {
        return line.to_owned();
    };
    let time = line.split('\t').next().unwrap_or_default();
    let field = |key| access.field(key);
    let (message, from, to) = (&access.message, field("src.addr"), field("dst.addr"));
    format!(
        "{time} {} {message}: {from} > {to}: {}",
        field("direction"),
        field("error")
    )
}

/// One packet as a line: readable text as it stands, TLS records by kind, anything else as bytes.
pub fn describe(packet: &Packet) -> String {
    let (from, to, payload) = (packet.from, packet.to, &packet.payload);
    let text: String = String::from_utf8_lossy(payload)
        .replace("\r\n", " / ")
        .chars()
        .take(SHOWN_CHARS)
        .collect();
    if payload
        .iter()
        .all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
    {
        return format!("{from} > {to}  {text}");
    }
    let record = match payload.first() {
        Some(22) => "TLS handshake",
        Some(23) => "TLS application data",
        _ => "bytes",
    };
    let hex = payload
        .iter()
        .take(SHOWN_BYTES)
        .fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x} ");
            hex
        });
    format!("{from} > {to}  {record}, {} bytes: {hex}...", payload.len())
}

#[cfg(test)]
mod tests {
    use super::describe;
    use crate::wire::Packet;

    #[test]
    fn packets_are_described() {
        let [from, to] = ["10.0.0.1:5", "10.0.0.2:80"].map(|text| text.parse().unwrap());
        let packet = |payload: &[u8]| {
            describe(&Packet {
                from,
                to,
                tcp: true,
                flags: 0x18,
                payload: payload.to_vec(),
            })
        };
        assert_eq!(
            packet(b"GET / HTTP/1.1\r\n\r\n"),
            "10.0.0.1:5 > 10.0.0.2:80  GET / HTTP/1.1 /  / "
        );
        assert_eq!(
            packet(&[23, 3, 3, 0, 1, 0x9f]),
            "10.0.0.1:5 > 10.0.0.2:80  TLS application data, 6 bytes: 17 03 03 00 01 9f ..."
        );
    }
}
