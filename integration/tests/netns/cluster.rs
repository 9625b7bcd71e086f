//! Worlds under an API server: what the tests of the Kubernetes source and of holding begin with.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::apiserver::Request;
use integration::{
    AccessLine, Daemon, Driver, Layout, Pod, REDIRECTION, World, place, until, world,
};
use serde_json::Value;

use crate::support::{SOON, echo, local};

/// Most time for a change at the API server to be in force, on a machine that has other things to do as well.
pub const IN_FORCE_MAX: Duration = Duration::from_secs(20);
/// A text that must not be seen on the wire.
pub const MARKER: &str = "marker-of-the-clear-text";

/// A world under an API server with the binaries built, no daemon.
pub fn bare(layout: &Layout, driver: Driver) -> Result<World> {
    place::build_once()?;
    World::raise_kubernetes(layout, driver)
}

/// A world under an API server with a daemon on each node.
pub struct Cluster {
    /// one per node, in order; dropped before the world
    pub daemons: Vec<Daemon>,
    /// the world
    pub world: World,
}

impl Cluster {
    /// Daemons run, nothing is labelled.
    ///
    /// - `env`: for each daemon, as in [`Daemon::start`]
    pub fn up(layout: &Layout, driver: Driver, env: &[(&str, &str)]) -> Result<Self> {
        let world = bare(layout, driver)?;
        let daemons = world.nodes().iter().map(|node| Daemon::start(node, env));
        Ok(Self {
            daemons: daemons.collect::<Result<_>>()?,
            world,
        })
    }

    /// Daemons run, namespace `shop` is labelled and in force.
    pub fn labelled(driver: Driver, env: &[(&str, &str)]) -> Result<Self> {
        let cluster = Self::up(&Layout::standard(), driver, env)?;
        cluster.world.label_namespace("shop", true);
        cluster.captured("client-0")?;
        cluster.captured("server-0")?;
        Ok(cluster)
    }

    /// A pod.
    pub fn pod(&self, name: &str) -> &Pod {
        self.world.pod(name)
    }

    /// The daemon of a pod's node.
    pub fn daemon_of(&self, pod: &Pod) -> &Daemon {
        &self.daemons[pod.node]
    }

    /// Waits until a pod is in the mesh for everybody: its node's daemon serves it, it is annotated, and all daemons
    /// know that it is reached by HBONE.
    pub fn captured(&self, name: &str) -> Result<()> {
        let pod = self.pod(name);
        self.annotated(name, Some("enabled"))?;
        let what = format!("{name} served");
        self.daemon_of(pod)
            .wait_dump(IN_FORCE_MAX, &what, |dump| world::is_in(dump, &pod.uid))?;
        self.announced(name, "HBONE")
    }

    /// Waits until a pod has left the mesh for everybody.
    pub fn released(&self, name: &str) -> Result<()> {
        let pod = self.pod(name);
        self.annotated(name, None)?;
        let what = format!("{name} released");
        self.daemon_of(pod)
            .wait_dump(IN_FORCE_MAX, &what, |dump| world::is_out(dump, &pod.uid))?;
        self.announced(name, "TCP")
    }

    /// Waits for a pod's redirection annotation to be as given.
    pub fn annotated(&self, name: &str, wanted: Option<&str>) -> Result<()> {
        let since = Instant::now();
        let seen = until(IN_FORCE_MAX, "the annotation", || {
            let seen = self.world.redirection(name);
            Ok((seen.as_deref() == wanted).then_some(()))
        });
        let daemon = self.daemon_of(self.pod(name));
        seen.with_context(|| {
            let object = self.world.api().pod(&self.pod(name).namespace, name);
            format!(
                "{name}: annotation is {:?}, wanted {wanted:?} since {:?}; {:?} {:?}; log of its daemon:\n{}",
                self.world.redirection(name),
                since.elapsed(),
                object.map(|object| object["status"].to_string()),
                daemon.config_dump().map(|dump| dump["workloadState"].to_string()),
                daemon.tail()
            )
        })
    }

    /// Waits until all daemons know by which protocol a pod is reached.
    pub fn announced(&self, name: &str, protocol: &str) -> Result<()> {
        for daemon in &self.daemons {
            let what = format!("{name} announced as {protocol}");
            daemon.wait_dump(IN_FORCE_MAX, &what, |dump| {
                let workloads = dump["workloads"].as_array();
                workloads.is_some_and(|all| {
                    all.iter()
                        .any(|one| one["name"] == name && one["protocol"] == protocol)
                })
            })?;
        }
        Ok(())
    }

    /// A connection that is echoed and that both ends saw as authenticated.
    pub fn authenticated(&self, client: &Pod, server: &Pod, more: &[&str]) -> Result<Value> {
        let seen = echo(client, server.at(9000), more).with_context(|| {
            let logs = self.daemons.iter().map(Daemon::tail);
            logs.collect::<Vec<_>>().join("\n\nand of the next:\n")
        })?;
        let line = self.outbound(client, &seen)?;
        ensure!(
            line.field("dst.addr").ends_with(":15008")
                && line.field("src.identity") == client.identity()
                && line.field("dst.identity") == server.identity(),
            "{}",
            line.text
        );
        Ok(seen)
    }

    /// The client side's access-log line of a connection.
    pub fn outbound(&self, client: &Pod, seen: &Value) -> Result<AccessLine> {
        let local = local(seen)?;
        let what = format!("outbound line of {local}");
        self.daemon_of(client).wait_access(&what, |line| {
            line.is("outbound") && line.field("src.addr") == local
        })
    }

    /// Patches of the redirection annotation since a position of the record.
    pub fn patches(&self, from: usize) -> Vec<Request> {
        let mut all = self.world.api().record().since(from);
        all.retain(|one| one.is("patch", "pods") && one.annotation(REDIRECTION).is_some());
        all
    }

    /// Nothing was refused to the daemons, so their rules are enough.
    pub fn nothing_refused(&self) -> Result<()> {
        let asked = self.world.api().record().since(0);
        let refused = asked
            .iter()
            .find(|one| matches!(one.status, 401 | 403 | 405 | 415 | 422));
        ensure!(refused.is_none(), "refused: {refused:?}");
        Ok(())
    }
}

/// Waits until something that is looked at from outside becomes true.
pub fn soon(what: &str, look: impl FnMut() -> bool) -> Result<()> {
    integration::wait::until_true(SOON, what, look)
}
