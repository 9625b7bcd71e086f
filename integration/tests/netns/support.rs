//! What most tests begin with.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::istiod::{Event, Kind, gate};
use integration::{AccessLine, App, Daemon, Istiod, Layout, Model, Pod, World, place};
use proto::discovery::DeltaDiscoveryRequest;
use serde_json::Value;

/// Most time for something that another process does at once.
pub const SOON: Duration = Duration::from_secs(10);
/// Most time for a daemon to come back to the control plane: its longest pause and some.
pub const RECONNECT_MAX: Duration = Duration::from_secs(25);

/// A world with the binaries built.
pub fn world(layout: &Layout) -> Result<World> {
    place::build_once()?;
    World::raise(layout)
}

/// A world under a control plane, with the binaries built.
pub fn governed(layout: &Layout) -> Result<World> {
    place::build_once()?;
    World::raise_under_istiod(layout)
}

/// A world with a daemon on each node.
pub struct Mesh {
    /// one per node, in order; dropped before the world
    pub daemons: Vec<Daemon>,
    /// the world
    pub world: World,
}

impl Mesh {
    /// Daemons run, nothing is labelled.
    pub fn plain(layout: &Layout) -> Result<Self> {
        let world = world(layout)?;
        Ok(Self {
            daemons: world.daemons()?,
            world,
        })
    }

    /// Daemons run, namespace `shop` is labelled.
    pub fn up(layout: &Layout) -> Result<Self> {
        let mesh = Self::plain(layout)?;
        mesh.label("shop", true)?;
        Ok(mesh)
    }

    /// The same under a control plane.
    ///
    /// - `env`: for each daemon, as in [`Daemon::start`]
    pub fn governed(layout: &Layout, env: &[(&str, &str)]) -> Result<Self> {
        let world = governed(layout)?;
        let daemons = world.nodes().iter().map(|node| Daemon::start(node, env));
        let mesh = Self {
            daemons: daemons.collect::<Result<_>>()?,
            world,
        };
        mesh.label("shop", true)?;
        Ok(mesh)
    }

    /// The control plane.
    pub fn istiod(&self) -> &Istiod {
        self.world.istiod()
    }

    /// Labels or un-labels a namespace and waits until that is in force.
    pub fn label(&self, namespace: &str, ambient: bool) -> Result<()> {
        self.world.label(namespace, ambient, &self.all())
    }

    /// Changes the mesh state and waits until all daemons have it.
    pub fn edit(&self, change: impl FnOnce(&mut Model)) -> Result<()> {
        self.world.edit(change)?;
        self.world.settled_state(&self.all())
    }

    /// References to all daemons.
    pub fn all(&self) -> Vec<&Daemon> {
        self.daemons.iter().collect()
    }

    /// A pod.
    pub fn pod(&self, name: &str) -> &Pod {
        self.world.pod(name)
    }

    /// The daemon of a pod's node.
    pub fn daemon_of(&self, pod: &Pod) -> &Daemon {
        &self.daemons[pod.node]
    }

    /// The client side's access-log line of a connection, by the local address that the application saw.
    pub fn outbound(&self, client: &Pod, seen: &Value) -> Result<AccessLine> {
        let local = local(seen)?;
        self.daemon_of(client)
            .wait_access(&format!("outbound line of {local}"), |line| {
                line.is("outbound") && line.field("src.addr") == local
            })
    }

    /// The server side's access-log line of the connection with that number of bytes received.
    pub fn inbound(&self, server: &Pod, fits: impl Fn(&AccessLine) -> bool) -> Result<AccessLine> {
        self.daemon_of(server)
            .wait_access("inbound line", |line| line.is("inbound") && fits(line))
    }
}

/// The local address that the application saw, without the v4-mapped form.
pub fn local(seen: &Value) -> Result<String> {
    let text = seen["local"]
        .as_str()
        .with_context(|| format!("no local address: {seen}"))?;
    let addr: SocketAddr = text.parse()?;
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
pub fn echo(pod: &Pod, to: SocketAddr, more: &[&str]) -> Result<Value> {
    let seen = connect(pod, to, more)?;
    let sent = more
        .iter()
        .skip_while(|arg| **arg != "--send")
        .nth(1)
        .unwrap_or(&"hello");
    let right = seen["ok"] == true && seen["received"] == *sent;
    ensure!(
        right,
        "{} to {to} with {more:?}: not echoed: {seen}",
        pod.name
    );
    Ok(seen)
}

/// A connection that is held open and in use.
pub fn hold(pod: &Pod, to: SocketAddr) -> Result<App> {
    let binary = place::binary("podapp")?;
    let app = pod.spawn(&[&binary.to_string_lossy(), "hold", "--to", &to.to_string()])?;
    app.wait_line(SOON, "tick 3", |line| line == "tick 3")?;
    Ok(app)
}

/// Waits until a held connection has worked a few more times.
pub fn still_held(app: &App) -> Result<()> {
    let now = app
        .lines()
        .iter()
        .filter(|line| line.starts_with("tick"))
        .count();
    app.wait_line(SOON, "more ticks", |line| {
        line == format!("tick {}", now + 3)
    })?;
    Ok(())
}

/// The longest time that a held connection has waited for an answer so far.
pub fn longest_wait(app: &App) -> Result<Duration> {
    let lines = app.lines();
    let mut found = lines
        .iter()
        .filter_map(|line| line.strip_prefix("longest "));
    let text = found.next_back().unwrap_or("0");
    let millis = text.parse().with_context(|| format!("{text:?} ms"))?;
    Ok(Duration::from_millis(millis))
}

/// The first request of a type that a node's daemon sent on a stream opened after `from`, with the stream's number.
pub fn subscribed(
    istiod: &Istiod,
    from: usize,
    node: &str,
    kind: Kind,
) -> Result<(u64, DeltaDiscoveryRequest)> {
    let what = format!("first request for {} of {node}", kind.url());
    istiod.record().wait(from, RECONNECT_MAX, &what, |event| {
        let (stream, request) = event.request_of(kind)?;
        let from = gate::text(request.node.as_ref()?, "NODE_NAME")?;
        (from == node).then(|| (stream, request.clone()))
    })
}

/// The answer to the response of a type on a stream that `fits` the names of its resources and removals.
pub fn answered(
    istiod: &Istiod,
    from: usize,
    stream: u64,
    fits: impl Fn(&[String], &[String]) -> bool,
) -> Result<DeltaDiscoveryRequest> {
    let nonce = istiod.record().wait(from, SOON, "response", |event| {
        let Event::Response {
            stream: on,
            nonce,
            names,
            removed,
            ..
        } = event
        else {
            return None;
        };
        (*on == stream && fits(names, removed)).then(|| nonce.clone())
    })?;
    istiod
        .record()
        .wait(from, SOON, "answer to a response", |event| match event {
            Event::Request {
                stream: on,
                request,
            } if *on == stream && request.response_nonce == nonce => Some(request.clone()),
            _ => None,
        })
}
