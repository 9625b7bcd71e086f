//! What most tests of a waypoint begin with: clients on one node, servers on the other, an Envoy that stands before them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::cni::{Rules, Site};
use integration::envoy::{Seat, Waypoint};
use integration::model::Gateway;
use integration::{
    AccessLine, App, Daemon, Envoy, Layout, Metrics, Model, Pod, PodPlan, Service, World, place,
    until, world,
};
use serde_json::Value;

/// The service's addresses.
pub const VIP: &str = "10.96.0.10";
pub const VIP6: &str = "fd96::10";
/// Its host name.
pub const HOST: &str = "server.shop.svc.cluster.local";
/// Its ports for HTTP, gRPC, and two for bytes; what they lead to in the pods is in [`ports`].
pub const HTTP: u16 = 80;
pub const GRPC: u16 = 8083;
pub const ECHO: u16 = 9000;
pub const GREET: u16 = 9001;
/// A port of the service that no waypoint here serves.
pub const UNSERVED: u16 = 7777;
/// Most time for something that another process does at once.
pub const SOON: Duration = Duration::from_secs(10);

/// Who captures, and where the mesh state comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// our programs, files
    Ebpf,
    /// our programs, a control plane
    Istiod,
    /// rules of an agent, files
    External,
}

/// A world with a daemon on each node; `shop` is in the mesh, but for its waypoints.
pub struct Ground {
    /// dropped first
    pub apps: Vec<App>,
    /// one per node
    pub daemons: Vec<Daemon>,
    sites: Vec<Site>,
    /// dropped last
    pub world: World,
}

/// `client-0`, `intruder-0` and `waypoint-0` on the first node, `server-0`, `server-1` and `canary-0`, which is a waypoint
/// as well, on the second.
pub fn layout() -> Layout {
    let aside = |name: &str, node| {
        PodPlan::new("shop", name, node).labelled(integration::model::MODE_LABEL, "none")
    };
    Layout {
        nodes: 2,
        pods: vec![
            PodPlan::new("shop", "client-0", 0),
            PodPlan::new("shop", "intruder-0", 0),
            aside("waypoint-0", 0),
            PodPlan::new("shop", "server-0", 1),
            PodPlan::new("shop", "server-1", 1),
            aside("canary-0", 1),
        ],
        services: vec![Service {
            name: "server".to_owned(),
            namespace: "shop".to_owned(),
            vips: [VIP, VIP6].map(ip).to_vec(),
            ports: vec![
                (HTTP, 8080),
                (GRPC, 8083),
                (ECHO, 9000),
                (GREET, 9001),
                (UNSERVED, 8080),
            ],
            pods: vec!["server-0".to_owned(), "server-1".to_owned()],
            ..Service::default()
        }],
    }
}

/// An address that is known to be one.
pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// An address of the service.
pub fn vip(port: u16) -> SocketAddr {
    SocketAddr::new(ip(VIP), port)
}

impl Ground {
    /// Our capture, state from files, `waypoint-0` before the service; no Envoy runs yet.
    pub fn up() -> Result<Self> {
        Self::raise(How::Ebpf)
    }

    /// The same in another way.
    pub fn raise(how: How) -> Result<Self> {
        Self::raise_with(how, &[])
    }

    /// The same with settings of the daemons, as in [`Daemon::start`].
    pub fn raise_with(how: How, env: &[(&str, &str)]) -> Result<Self> {
        place::build_once()?;
        place::envoy()?;
        let world = match how {
            How::Istiod => World::raise_under_istiod(&layout())?,
            How::Ebpf | How::External => World::raise(&layout())?,
        };
        let gateway = Gateway::at(world.pod("waypoint-0").v4);
        world.edit(|model| {
            for pod in &mut model.pods {
                pod.native_tunnel = ["waypoint-0", "canary-0"].contains(&pod.name.as_str());
            }
            if let Some(service) = model.service_mut("server") {
                service.waypoint = Some(gateway);
            }
        })?;
        let mut sites = Vec::new();
        if how == How::External {
            for node in world.nodes() {
                sites.push(Site::raise(node)?);
            }
        }
        let started = |node| Daemon::start(node, env);
        let daemons: Vec<_> = if sites.is_empty() {
            world.nodes().iter().map(started).collect::<Result<_>>()?
        } else {
            sites
                .iter()
                .map(|site| started(&site.node))
                .collect::<Result<_>>()?
        };
        let ground = Self {
            apps: Vec::new(),
            daemons,
            sites,
            world,
        };
        ground.enroll()?;
        Ok(ground)
    }

    fn enroll(&self) -> Result<()> {
        let all: Vec<_> = self.daemons.iter().collect();
        if self.sites.is_empty() {
            return self.world.label("shop", true, &all);
        }
        self.world.model().label("shop", true);
        for pod in self.world.pods() {
            let enrolled = {
                let model = self.world.model();
                model
                    .pods
                    .iter()
                    .any(|one| one.name == pod.name && model.enrolled(one))
            };
            if enrolled {
                self.sites[pod.node].enroll(pod, &Rules::default())?;
            }
        }
        self.world.publish_state()?;
        self.world.settled_state(&all)
    }

    /// Starts `podapp` in a pod.
    pub fn serve(&mut self, pod: &str, args: &[&str]) -> Result<()> {
        let app = self.world.pod(pod).serve(args)?;
        self.apps.push(app);
        Ok(())
    }

    /// HTTP in both versions: `v1` in `server-0`, `v2` in `server-1`.
    pub fn serve_http(&mut self) -> Result<()> {
        self.serve("server-0", &["http", "--name", "v1"])?;
        self.serve("server-1", &["http", "--name", "v2"])
    }

    /// What an Envoy before the service is told: HTTP to both versions, bytes to the echo of `server-0`.
    pub fn waypoint(&self) -> Waypoint {
        let (server, next) = (self.pod("server-0"), self.pod("server-1"));
        Waypoint {
            http: authorities(HTTP),
            tcp: authorities(ECHO),
            v1: server.at(8080),
            v2: next.at(8080),
            opaque: server.at(9000),
            client: self.pod("client-0").identity(),
            server: server.identity(),
            idle: Waypoint::IDLE,
        }
    }

    /// An Envoy in a pod, told that.
    pub fn envoy(&self, pod: &str) -> Result<Envoy> {
        self.envoy_with(pod, &self.waypoint())
    }

    /// An Envoy in a pod, told something else.
    pub fn envoy_with(&self, pod: &str, waypoint: &Waypoint) -> Result<Envoy> {
        Envoy::waypoint(Seat::in_pod(&self.world, self.pod(pod))?, waypoint)
    }

    /// A pod.
    pub fn pod(&self, name: &str) -> &Pod {
        self.world.pod(name)
    }

    /// Changes the mesh state and waits until all daemons have it.
    pub fn edit(&self, change: impl FnOnce(&mut Model)) -> Result<()> {
        if self.sites.is_empty() {
            self.world.edit(change)?;
        } else {
            change(&mut self.world.model());
            self.world.publish_state()?;
        }
        let all: Vec<_> = self.daemons.iter().collect();
        self.world.settled_state(&all)
    }

    /// Another waypoint before the service, or none.
    pub fn before_service(&self, waypoint: Option<Gateway>) -> Result<()> {
        self.edit(|model| {
            if let Some(service) = model.service_mut("server") {
                service.waypoint = waypoint;
            }
        })
    }

    /// The clients' daemon.
    pub fn near(&self) -> &Daemon {
        &self.daemons[0]
    }

    /// The servers' daemon.
    pub fn far(&self) -> &Daemon {
        &self.daemons[1]
    }

    /// Whether a pod is captured.
    pub fn captured(&self, name: &str) -> Result<bool> {
        let pod = self.pod(name);
        Ok(world::is_in(
            &self.daemons[pod.node].config_dump()?,
            &pod.uid,
        ))
    }
}

/// What a tunnel to the service may ask for.
pub fn authorities(port: u16) -> Vec<String> {
    vec![
        format!("{VIP}:{port}"),
        format!("[{VIP6}]:{port}"),
        format!("{HOST}:{port}"),
    ]
}

/// An answer of the application, as curl got it.
pub struct Answer {
    /// status, 0 where none came
    pub status: u16,
    /// head in lower case, if asked for by `-i`
    pub head: String,
    /// the application's JSON, or null
    pub body: Value,
    /// all that curl printed
    pub text: String,
}

/// One request with curl.
pub fn get(pod: &Pod, url: &str, more: &[&str]) -> Result<Answer> {
    let mut args = vec!["-i", "--max-time", "15", url];
    args.extend(more);
    let (_, text) = pod.curl(&args)?;
    // what precedes the last head are interim answers
    let start = text.rfind("HTTP/1.1 ").unwrap_or(text.len());
    let (head, body) = text[start..].split_once("\r\n\r\n").unwrap_or_default();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok(Answer {
        status: status.unwrap_or(0),
        head: head.to_lowercase(),
        body: serde_json::from_str(body).unwrap_or_default(),
        text: text.clone(),
    })
}

/// A request that the application has to answer.
pub fn answered(pod: &Pod, url: &str, more: &[&str]) -> Result<Answer> {
    let answer = get(pod, url, more)?;
    ensure!(
        answer.status == 200 && answer.body.is_object(),
        "{url} from {}: {}",
        pod.name,
        answer.text
    );
    Ok(answer)
}

/// `podapp` against the service, which has to say that it worked.
pub fn worked(pod: &Pod, args: &[&str]) -> Result<Value> {
    let seen = pod.podapp(args)?;
    ensure!(seen["ok"] == true, "{args:?} in {}: {seen}", pod.name);
    Ok(seen)
}

/// Waits for the outbound line of a failure.
pub fn failed(daemon: &Daemon, from: u64, parts: &[&str]) -> Result<AccessLine> {
    let mut all = vec!["direction=\"outbound\""];
    all.extend(parts);
    let line = daemon.wait_log(from, &all)?;
    AccessLine::parse(&line).with_context(|| format!("no access line: {line}"))
}

/// Waits until a counter has at least that value.
pub fn counted(
    daemon: &Daemon,
    name: &str,
    labels: &[(&str, &str)],
    least: f64,
) -> Result<Metrics> {
    let mut last = 0.0;
    until(SOON, &format!("{name} {labels:?}"), || {
        let metrics = daemon.metrics()?;
        last = metrics.sum(name, labels);
        Ok((last >= least).then_some(metrics))
    })
    .with_context(|| format!("{last} instead of {least}\nlog:\n{}", daemon.tail()))
}

/// Waits until a daemon has neither connections nor lines of ended ones to write; what it counts and logs is whole then.
pub fn at_rest(daemon: &Daemon) -> Result<()> {
    let mut last = String::new();
    until(SOON, "the end of all connections", || {
        let metrics = daemon.metrics()?;
        let [opened, closed] = ["opened", "closed"]
            .map(|what| metrics.sum(&format!("istio_tcp_connections_{what}_total"), &[]));
        let told = daemon.access().len() as f64;
        last = format!("{opened} opened, {closed} closed, {told} told");
        Ok((opened == closed && told >= closed).then_some(()))
    })
    .with_context(|| format!("{last}\nlog:\n{}", daemon.tail()))
}
