//! DNS of pods by real clients: what the mesh answers, what it passes on to the resolver, and what becomes of others.

mod clients;
mod errors;
mod external;
mod flood;
mod hostile;
mod names;
mod passing;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use integration::model::PodRecord;
use integration::{App, Daemon, Layout, Pod, PodPlan, Service, until};
use serde_json::Value;

use crate::support::{Mesh, SOON, world};

/// Settings of the daemons: each answer is told in the log.
const ENV: [(&str, &str); 1] = [("RUST_LOG", "info,dns=debug")];
/// What a pod's `/etc/resolv.conf` says beside the name server.
const SEARCH: &str =
    "search shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5";
/// Endpoints of the headless Service `many`.
const MANY: u32 = 256;

/// One node; in `shop`, which is in the mesh: `client-0` and `other-0`, `private-0` that keeps its DNS to itself, the
/// servers `db-0` and `db-1`; `resolver-0` outside.
fn layout() -> Layout {
    let private = "ambient.istio.io/dns-capture";
    let shop = |name| PodPlan::new("shop", name, 0);
    Layout {
        nodes: 1,
        pods: vec![
            shop("client-0"),
            shop("other-0"),
            shop("private-0").annotated(private, "false"),
            shop("db-0"),
            shop("db-1"),
            PodPlan::new("other", "resolver-0", 0),
        ],
        services: services(),
    }
}

fn services() -> Vec<Service> {
    let v4 = |d| IpAddr::V4(Ipv4Addr::new(10, 96, 0, d));
    let v6 = |d| IpAddr::V6(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, d));
    let one = |name: &str, namespace: &str, vips: &[IpAddr]| Service {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        vips: vips.to_vec(),
        ports: vec![(80, 8080)],
        ..Service::default()
    };
    let named = |host: &str, vip| Service {
        host: host.to_owned(),
        ..one("entry", "shop", &[vip])
    };
    vec![
        Service {
            pods: vec!["db-0".to_owned()],
            ..one("web", "shop", &[v4(4), v6(4)])
        },
        Service {
            pods: vec!["db-0".to_owned(), "db-1".to_owned()],
            ..one("db", "shop", &[])
        },
        Service {
            pods: (0..MANY).map(|n| format!("many-{n}")).collect(),
            ..one("many", "shop", &[])
        },
        Service {
            remote_vips: vec![("far".to_owned(), v4(5))],
            ..one("api", "ext", &[])
        },
        Service {
            ip_families: Some("IPv4".to_owned()),
            ..one("only4", "shop", &[v4(6), v6(6)])
        },
        Service {
            private: true,
            ..one("hidden", "ext", &[v4(7)])
        },
        named("*.corp.example", v4(9)),
        named("pay.example.com", v4(10)),
    ]
}

/// A world with a daemon and a resolver outside of the mesh.
struct Scene {
    upstream: App,
    mesh: Mesh,
}

impl Scene {
    /// Everything runs, and the pods of `shop` are in the mesh.
    fn set() -> Result<Self> {
        Self::with(&[])
    }

    /// - `env`: more for the daemon
    fn with(env: &[(&str, &str)]) -> Result<Self> {
        let world = world(&layout())?;
        let many = (0..MANY).map(|n| {
            let ip = IpAddr::V4(Ipv4Addr::from_bits(0xf000_0000 + n));
            PodRecord::stranger("shop", &format!("many-{n}"), &[ip])
        });
        world.model().others.extend(many);
        let upstream = world.pod("resolver-0").serve(&["dns"])?;
        let env = [&ENV[..], env].concat();
        let daemons = vec![Daemon::start(world.node(0), &env)?];
        let mesh = Mesh { daemons, world };
        mesh.label("shop", true)?;
        Ok(Self { upstream, mesh })
    }

    fn daemon(&self) -> &Daemon {
        &self.mesh.daemons[0]
    }

    fn pod(&self, name: &str) -> &Pod {
        self.mesh.pod(name)
    }

    /// The resolver's address.
    fn resolver(&self) -> IpAddr {
        self.pod("resolver-0").v4.into()
    }

    /// What `client-0` is told by `dig`.
    fn dig(&self, args: &[&str]) -> Result<Reply> {
        let reply = dig(self.pod("client-0"), self.resolver(), args);
        reply.with_context(|| format!("log:\n{}", self.daemon().tail()))
    }

    /// How often the resolver was asked for a name so far, whatever the type. All that was asked before this is in it.
    fn asked(&self, name: &str) -> Result<usize> {
        count(&self.upstream, self.pod("private-0"), self.resolver(), name)
    }
}

/// How often a resolver was asked for a name, seen after a question that passes by the daemon.
fn count(upstream: &App, private: &Pod, resolver: IpAddr, name: &str) -> Result<usize> {
    let mark = format!("mark{}.test", upstream.lines().len());
    dig(private, resolver, &[&mark])?;
    upstream.wait_line(SOON, "the mark", |line| line == format!("asked {mark} 1"))?;
    let asked = format!("asked {name} ");
    let lines = upstream.lines();
    Ok(lines.iter().filter(|line| line.starts_with(&asked)).count())
}

/// What `dig` says of an answer.
#[derive(Debug, Default)]
struct Reply {
    /// `NOERROR`, ...
    status: String,
    /// `qr aa rd ra`
    flags: String,
    /// records of the answer section: name, TTL, type, data, with a blank between
    answers: Vec<String>,
    /// of the additional section, without the OPT record
    additionals: Vec<String>,
    /// what it says of the OPT record
    edns: String,
    /// bytes received
    size: usize,
    over_tcp: bool,
    text: String,
}

impl Reply {
    fn parse(text: &str) -> Result<Self> {
        let mut reply = Self {
            text: text.to_owned(),
            ..Self::default()
        };
        let mut section = "";
        for line in text.lines() {
            let after = |mark: &str| line.split_once(mark).map(|(_, rest)| rest.trim());
            if let Some(rest) = after("status: ") {
                reply.status = rest.split(',').next().unwrap_or_default().to_owned();
            } else if let Some(rest) = after(";; flags:") {
                reply.flags = rest.split(';').next().unwrap_or_default().to_owned();
            } else if let Some(rest) = after("; EDNS:") {
                reply.edns = rest.to_owned();
            } else if let Some(rest) = after(";; MSG SIZE  rcvd:") {
                reply.size = rest.parse().context("size")?;
            } else if line.starts_with(";; SERVER:") {
                reply.over_tcp = line.contains("(TCP)");
            } else if line.ends_with("SECTION:") {
                section = line;
            } else if !line.starts_with(';') && !line.is_empty() {
                let record = line.split_whitespace().filter(|part| *part != "IN");
                let record = record.collect::<Vec<_>>().join(" ");
                match section {
                    ";; ANSWER SECTION:" => reply.answers.push(record),
                    ";; ADDITIONAL SECTION:" => reply.additionals.push(record),
                    _ => {}
                }
            }
        }
        ensure!(!reply.status.is_empty(), "no answer: {text}");
        Ok(reply)
    }

    /// The data of the answers of a type, sorted.
    fn data(&self, kind: &str) -> Vec<String> {
        let of_kind = self.answers.iter().filter_map(|record| {
            let mut parts = record.splitn(4, ' ').skip(2);
            (parts.next() == Some(kind)).then(|| parts.next().unwrap_or_default().to_owned())
        });
        let mut all: Vec<_> = of_kind.collect();
        all.sort();
        all
    }

    fn has_flag(&self, flag: &str) -> bool {
        self.flags.split(' ').any(|f| f == flag)
    }
}

/// Asks once, and waits longer than anyone may take to answer.
fn dig(pod: &Pod, server: IpAddr, args: &[&str]) -> Result<Reply> {
    let server = format!("@{server}");
    let show = [
        "+noall",
        "+comments",
        "+answer",
        "+additional",
        "+stats",
        "+tries=1",
        "+time=20",
    ];
    let all = [&["dig", &server][..], &show, args].concat();
    let out = pod.run(&all)?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() {
        bail!("dig {args:?} in {}: {}: {text}", pod.name, out.status);
    }
    Reply::parse(&text)
}

/// Runs a program in a pod that has a resolver file of its own.
struct Resolving<'a> {
    pod: &'a Pod,
    file: PathBuf,
}

impl<'a> Resolving<'a> {
    fn new(scene: &Scene, pod: &'a Pod, server: IpAddr, rest: &str) -> Result<Self> {
        let file = scene
            .mesh
            .world
            .dir()
            .join(format!("{}-resolv.conf", pod.name));
        fs::write(&file, format!("nameserver {server}\n{rest}\n"))?;
        Ok(Self { pod, file })
    }

    /// What it prints, and whether it ended well.
    fn run(&self, args: &[&str]) -> Result<(bool, String)> {
        let mounted = "mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"";
        let file = self.file.to_string_lossy();
        let all = [
            &["unshare", "--mount", "--", "sh", "-c", mounted, "sh", &file][..],
            args,
        ]
        .concat();
        let out = self.pod.run(&all)?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        Ok((out.status.success(), text))
    }
}

/// Waits until the daemon's counter of DNS questions reaches a sum over labels.
fn wait_counter(daemon: &Daemon, name: &str, labels: &[(&str, &str)], wanted: f64) -> Result<()> {
    let mut last = 0.0;
    until(SOON, name, || {
        last = daemon.metrics()?.sum(name, labels);
        Ok((last == wanted).then_some(()))
    })
    .with_context(|| format!("{name} {labels:?}: {last} instead of {wanted}"))
}

/// A connection to port 53 or a question with these bytes; what came back, if anything.
fn raw(
    pod: &Pod,
    server: IpAddr,
    over: &str,
    bytes: &[u8],
    timeout_ms: u32,
) -> Result<Option<String>> {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let (server, timeout) = (
        std::net::SocketAddr::new(server, 53).to_string(),
        timeout_ms.to_string(),
    );
    let args = [
        "dig",
        "--server",
        &server,
        "--way",
        over,
        "--timeout-ms",
        &timeout,
        "--raw",
        &digits,
    ];
    let seen: Value = pod.podapp(&args)?;
    Ok(seen["back"].as_str().map(str::to_owned))
}
