//! The two networks with everything that runs in them, and what the tests ask of it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::envoy::{self, Envoy, Seat};
use integration::model::{Gateway, HBONE_PORT, MODE_LABEL};
use integration::world::networks::{Named, Networks};
use integration::{AccessLine, App, Daemon, Layout, Model, Pod, PodPlan, Service, place, until};
use serde_json::Value;

/// Most time for something that another process does at once.
pub const SOON: Duration = Duration::from_secs(10);
/// Index of the west side.
pub const WEST: usize = 0;
/// Index of the east side.
pub const EAST: usize = 1;
/// Port of the services for HTTP.
pub const HTTP: u16 = 80;
/// Port of the services that echo.
pub const ECHO: u16 = 9000;
/// Port of the services that speak first.
pub const GREET: u16 = 9001;
/// Port of the services that speak first, and end their direction first.
pub const GREET_AND_END: u16 = 9002;
/// What the services offer, and where the pods listen for it.
const PORTS: [(u16, u16); 4] = [
    (HTTP, 8080),
    (ECHO, ECHO),
    (GREET, GREET),
    (GREET_AND_END, GREET_AND_END),
];
/// Names in the east that its gateway leads to a port of `server-east-0` where nobody speaks TLS: one that answers to
/// anything by its close, one that waits for more, one that sends back what it gets, one where nobody is.
pub const STRANGERS: [(&str, u16); 4] = [
    ("babbler", 8080),
    ("silence", 53),
    ("mirror", 9000),
    ("nobody", 7),
];
/// The second family's form of a virtual address's last part.
const VIP6: &str = "fd96::";

/// A service at `10.96.0.<host>` and `fd96::<host>` of its network.
fn service(name: &str, host: u8, ports: &[(u16, u16)], pod: &str) -> Service {
    let vips = [format!("10.96.0.{host}"), format!("{VIP6}{host}")];
    Service {
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        vips: vips.iter().filter_map(|vip| vip.parse().ok()).collect(),
        ports: ports.to_vec(),
        pods: vec![pod.to_owned()],
        ..Service::default()
    }
}

/// West: `client-west-0`, `other-west-0`, `server-west-0`. East: `client-east-0`, which has the address of `client-west-0`,
/// `server-east-0`, and `fronted-0` behind the waypoint `waypoint-0`. The service `both` has a pod in each.
fn layouts() -> [Layout; 2] {
    let pods = |names: &[&str]| {
        names
            .iter()
            .map(|name| PodPlan::new("shop", name, 0))
            .collect()
    };
    let west = Layout {
        nodes: 1,
        pods: pods(&["client-west-0", "server-west-0", "other-west-0"]),
        services: vec![
            service("server-west", 10, &PORTS, "server-west-0"),
            service("both", 50, &PORTS, "server-west-0"),
        ],
    };
    let mut fronted = service("fronted", 30, &PORTS, "fronted-0");
    let waypoint = service("waypoint", 40, &[(15008, 15008)], "waypoint-0");
    fronted.waypoint = Some(Gateway::named("shop", &waypoint.hostname()));
    let mut east: Vec<PodPlan> = pods(&["client-east-0", "server-east-0", "fronted-0"]);
    let unenrolled = PodPlan::new("shop", "waypoint-0", 0);
    east.push(unenrolled.labelled(MODE_LABEL, "none"));
    let east = Layout {
        nodes: 1,
        pods: east,
        services: vec![
            service("server-east", 20, &PORTS, "server-east-0"),
            service("both", 50, &PORTS, "server-east-0"),
            fronted,
            waypoint,
        ],
    };
    [west, east]
}

/// All of it. Fields go in the order in which they stand.
pub struct Scene {
    /// applications of the servers
    _apps: Vec<App>,
    /// the ones that end first, with the side of each
    enders: Vec<(usize, App)>,
    /// east-west gateways, by side
    pub gateways: Vec<Envoy>,
    /// the waypoint in the east
    pub waypoint: Envoy,
    /// by side
    pub daemons: Vec<Daemon>,
    /// the networks
    pub net: Networks,
}

impl Scene {
    /// Everything runs, and each side knows the other's services.
    pub fn set(named: Named) -> Result<Self> {
        Self::set_with(named, &[])
    }

    /// The same with settings of the daemons, as in [`Daemon::start`].
    pub fn set_with(named: Named, env: &[(&str, &str)]) -> Result<Self> {
        place::build_once()?;
        let [west, east] = layouts();
        let net = Networks::raise(&west, &east)?;
        net.sides[EAST].world.edit(|model| {
            if let Some(pod) = model.pod_mut("waypoint-0") {
                pod.native_tunnel = true;
            }
        })?;
        net.tell(WEST, "server-west", named)?;
        net.tell(EAST, "server-east", named)?;
        net.tell(EAST, "both", named)?;
        net.tell(EAST, "fronted", named)?;
        let mut daemons = Vec::new();
        for side in &net.sides {
            let daemon = Daemon::start(side.world.node(0), env)?;
            side.world.label("shop", true, &[&daemon])?;
            daemons.push(daemon);
        }
        let (mut apps, mut enders) = (Vec::new(), Vec::new());
        for (side, name) in [
            (WEST, "server-west-0"),
            (EAST, "server-east-0"),
            (EAST, "fronted-0"),
        ] {
            let pod = net.sides[side].world.pod(name);
            apps.push(pod.serve(&["http", "--name", name])?);
            apps.push(pod.serve(&["echo"])?);
            apps.push(pod.serve(&["greeter"])?);
            let end_first = ["greeter", "--listen", "[::]:9002", "--end-first"];
            enders.push((side, pod.serve(&end_first)?));
        }
        Ok(Self {
            _apps: apps,
            enders,
            gateways: vec![gateway(&net, WEST)?, gateway(&net, EAST)?],
            waypoint: front(&net)?,
            daemons,
            net,
        })
    }

    /// A pod of either side.
    pub fn pod(&self, name: &str) -> &Pod {
        let all = self.net.sides.iter().flat_map(|side| side.world.pods());
        let mut found = all.filter(|pod| pod.name == name);
        found.next().unwrap_or_else(|| panic!("no pod {name}"))
    }

    /// The application of a side's first server that ends its direction first.
    pub fn end_first(&self, side: usize) -> &App {
        let mut here = self.enders.iter().filter(|(at, _)| *at == side);
        &here.next().expect("each side has one").1
    }

    /// Changes what the daemon of a side is told, and waits until `shown` of its dump.
    pub fn edit(
        &self,
        side: usize,
        change: impl FnOnce(&mut Model),
        shown: impl Fn(&Value) -> bool,
    ) -> Result<()> {
        let daemon = &self.daemons[side];
        self.net.sides[side].world.edit(change)?;
        self.net.sides[side].world.settled_state(&[daemon])?;
        daemon.wait_dump(SOON, "the change in the dump", shown)?;
        Ok(())
    }

    /// The access-log line of the client's daemon for a connection, by what the application saw.
    pub fn outbound(&self, side: usize, seen: &Value) -> Result<AccessLine> {
        let local = local(seen)?;
        self.daemons[side].wait_access(&format!("outbound line of {local}"), |line| {
            line.is("outbound")
                && line.field("src.addr") == local
                && !line.message.contains("opened")
        })
    }

    /// The first access-log line of a server's daemon from a position of its access log on.
    pub fn inbound(&self, side: usize, after: usize) -> Result<AccessLine> {
        let daemon = &self.daemons[side];
        until(SOON, "an inbound line", || {
            let lines = daemon.access().into_iter().skip(after);
            Ok(lines.into_iter().find(|line| line.is("inbound")))
        })
        .with_context(|| daemon.tail())
    }

    /// Length of the access log of a side's daemon; connections that have just ended may be missing there.
    pub fn lines(&self, side: usize) -> usize {
        self.daemons[side].access().len()
    }
}

/// The local address that the application saw.
fn local(seen: &Value) -> Result<String> {
    let text = seen["local"].as_str();
    let addr: SocketAddr = text
        .with_context(|| format!("no local address: {seen}"))?
        .parse()?;
    Ok(SocketAddr::new(addr.ip().to_canonical(), addr.port()).to_string())
}

/// A connection from `pod` with `podapp connect`.
pub fn connect(pod: &Pod, to: SocketAddr, more: &[&str]) -> Result<Value> {
    let to = to.to_string();
    let args: Vec<_> = ["connect", "--to", &to]
        .iter()
        .chain(more)
        .copied()
        .collect();
    pod.podapp(&args)
}

/// The same, and it has to be echoed.
pub fn echo(pod: &Pod, to: SocketAddr, send: &str) -> Result<Value> {
    let seen = connect(pod, to, &["--send", send])?;
    let right = seen["ok"] == true && seen["received"] == *send;
    ensure!(right, "{} to {to}: not echoed: {seen}", pod.name);
    Ok(seen)
}

/// The virtual addresses of a service, by the last part.
pub fn vips(host: u8, port: u16) -> [SocketAddr; 2] {
    let v4 = SocketAddr::new([10, 96, 0, host].into(), port);
    let six: std::net::Ipv6Addr = format!("{VIP6}{host}")
        .parse()
        .expect("digits are hexadecimal too");
    [v4, SocketAddr::new(six.into(), port)]
}

/// A connection that is held open and in use.
pub fn hold(pod: &Pod, to: SocketAddr) -> Result<App> {
    let binary = place::binary("podapp")?;
    let app = pod.spawn(&[&binary.to_string_lossy(), "hold", "--to", &to.to_string()])?;
    app.wait_line(SOON, "tick 3", |line| line == "tick 3")?;
    Ok(app)
}

/// Starts the gateway of a side, which leads to all services there.
fn gateway(net: &Networks, side: usize) -> Result<Envoy> {
    let side = &net.sides[side];
    let mut routes = Vec::new();
    for service in side
        .world
        .model()
        .services
        .iter()
        .filter(|service| service.network == side.network)
    {
        let pods = side.world.pods();
        let mut behind = pods.iter().filter(|pod| service.pods.contains(&pod.name));
        let Some(pod) = behind.next() else { continue };
        // a service with a waypoint is reached through it alone
        let to = service
            .waypoint
            .as_ref()
            .map_or(pod, |_| side.world.pod("waypoint-0"));
        for (port, _) in PORTS {
            routes.push((format!("{}:{port}", service.hostname()), to.at(HBONE_PORT)));
        }
    }
    let strangers = STRANGERS.iter().filter(|_| side.network == "east");
    for (name, port) in strangers {
        let at = side.world.pod("server-east-0").at(*port);
        routes.push((format!("{name}.shop.svc.cluster.local:{ECHO}"), at));
    }
    Envoy::gateway(
        Seat::in_pod(&side.world, &side.gateway)?,
        &envoy::Gateway { routes },
    )
}

/// Starts the waypoint before `fronted`; `client-west` may use all of it.
fn front(net: &Networks) -> Result<Envoy> {
    let (world, west) = (&net.sides[EAST].world, &net.sides[WEST].world);
    let server = world.pod("fronted-0");
    let host = "fronted.shop.svc.cluster.local";
    let all = |port: u16| {
        let vips = vips(30, port).map(|vip| vip.to_string());
        vips.into_iter().chain([format!("{host}:{port}")]).collect()
    };
    let waypoint = envoy::Waypoint {
        http: all(HTTP),
        tcp: all(ECHO),
        v1: server.at(8080),
        v2: server.at(8080),
        opaque: server.at(9000),
        client: west.pod("client-west-0").identity(),
        server: server.identity(),
        idle: envoy::Waypoint::IDLE,
    };
    Envoy::waypoint(Seat::in_pod(world, world.pod("waypoint-0"))?, &waypoint)
}
