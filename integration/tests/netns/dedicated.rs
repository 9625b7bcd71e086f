//! Dedicated mode: a machine with a daemon of its own is a member of the mesh, beside nodes with ordinary pods.
//!
//! The machine is a namespace with a cgroup of its own; the daemon lives in both, beside the applications.

mod away;
mod endpoints;
mod external;
mod member;
mod names;
mod part;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use integration::{Daemon, Layout, Node, Pod, PodPlan, World, cgroup, netns};
use serde_json::Value;

use crate::support::{Mesh, governed, world};

/// Text that must not be seen between machines.
const MARKER: &str = "marker-of-the-clear-text";
/// The machine's node, which has no daemon of its own.
const SITE: usize = 2;

/// Who tells the daemons what the mesh is.
#[derive(Clone, Copy)]
enum Told {
    ByFiles,
    ByIstiod,
}

/// Two nodes with pods as in [`Layout::standard`], a resolver, and a third node with the machine `vm-0` behind it; `shop` is in the mesh.
struct Scene {
    /// the machine's
    daemon: Daemon,
    mesh: Mesh,
    vm: Pod,
}

impl Scene {
    fn set(told: Told) -> Result<Self> {
        let mesh = mesh(told)?;
        let vm = mesh.pod("vm-0").clone();
        let daemon = launch(&mesh.world, &vm, &[], &[])?;
        Self::of(mesh, daemon)
    }

    /// Waits until the daemon of the machine is ready and knows the mesh.
    fn of(mesh: Mesh, mut daemon: Daemon) -> Result<Self> {
        daemon.wait_ready()?;
        mesh.world.settled_state(&[&daemon])?;
        let vm = mesh.pod("vm-0").clone();
        Ok(Self { daemon, mesh, vm })
    }

    /// Another daemon of the same machine.
    fn another(&self) -> Result<Daemon> {
        launch(&self.mesh.world, &self.vm, &[], &[])
    }

    /// Changes the mesh state and waits until all daemons have it.
    fn edit(&self, change: impl FnOnce(&mut integration::Model)) -> Result<()> {
        self.mesh.edit(change)?;
        self.mesh.world.settled_state(&[&self.daemon])
    }
}

fn layout() -> Layout {
    let mut layout = Layout::standard();
    layout.nodes = 3;
    layout.pods.push(PodPlan::new("other", "resolver-0", 1));
    layout.pods.push(PodPlan::new("shop", "vm-0", SITE));
    layout
}

/// The nodes with pods, in the mesh.
fn mesh(told: Told) -> Result<Mesh> {
    let world = match told {
        Told::ByFiles => world(&layout())?,
        Told::ByIstiod => governed(&layout())?,
    };
    let vm = world.pod("vm-0").clone();
    if let Told::ByIstiod = told {
        let istiod = world.istiod();
        for address in [vm.v4.into(), vm.v6.into()] {
            istiod.machine_at(address, &vm.identity());
        }
    }
    let daemons = vec![world.daemon(0)?, world.daemon(1)?];
    let mesh = Mesh { daemons, world };
    mesh.label("shop", true)?;
    Ok(mesh)
}

/// Starts a daemon of the machine.
///
/// - `env`: added to or replacing the usual variables; an empty value removes one
fn launch(world: &World, vm: &Pod, env: &[(&str, &str)], launcher: &[PathBuf]) -> Result<Daemon> {
    let who = format!("{}/{}/{}", vm.namespace, vm.name, vm.service_account);
    let cgroup = vm.cgroup.to_string_lossy();
    let usual = [
        ("PROXY_MODE", "dedicated"),
        ("PROXY_WORKLOAD_INFO", &who),
        ("CAPTURE_CGROUP", &cgroup),
        ("ENROLL", ""),
        ("ENROLL_FILE", ""),
        ("CAPTURE_EXEMPT_SOURCES", ""),
        // of no node that the control plane knows
        ("NODE_NAME", "a-machine"),
    ];
    let env = usual.iter().chain(env);
    let env = env.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Daemon::launch_on(vm, site(world), env.collect(), launcher)
}

fn site(world: &World) -> &Node {
    world.node(SITE)
}

/// State of the only member, as the dump says it.
fn member_state(daemon: &Daemon) -> Result<Value> {
    let dump = daemon.config_dump()?;
    let all = dump["workloadState"].as_object().context("no members")?;
    ensure!(all.len() == 1, "one member: {all:?}");
    let state = all.values().next().map(|member| member["state"].clone());
    state.context("no state")
}

/// Something that runs beside the machine's applications in a namespace of its own, as a container does: behind a veth and
/// masqueraded.
fn container(vm: &Pod) -> Result<Pod> {
    let mut inner = vm.clone();
    inner.name = "container".to_owned();
    inner.netns_name = format!("{}-box", vm.netns_name);
    inner.netns = netns::path(&inner.netns_name);
    inner.v4 = "192.168.77.2".parse()?;
    inner.home = vm.cgroup.join("container");
    cgroup::make(&inner.home)?;
    netns::make(&inner.netns_name)?;
    let (outer, box_) = (&vm.netns_name, &inner.netns_name);
    netns::ip(
        None,
        &[format!(
            "link add box0 netns {outer} type veth peer name eth0 netns {box_}"
        )],
    )?;
    netns::ip(
        Some(outer),
        &[
            "link set box0 up".to_owned(),
            "addr add 192.168.77.1/24 dev box0".to_owned(),
        ],
    )?;
    netns::ip(
        Some(box_),
        &[
            "link set lo up".to_owned(),
            "link set eth0 up".to_owned(),
            "addr add 192.168.77.2/24 dev eth0".to_owned(),
            "route add default via 192.168.77.1".to_owned(),
        ],
    )?;
    netns::set_sysctl(&vm.netns, "net/ipv4/ip_forward", "1")?;
    let rule = "-t nat -A POSTROUTING -s 192.168.77.0/24 -o eth0 -j MASQUERADE";
    let words: Vec<&str> = ["iptables"].into_iter().chain(rule.split(' ')).collect();
    vm.read(&words)?;
    Ok(inner)
}

/// Gives the machine a `/etc/resolv.conf`, for daemons of it that start after that and for [`resolving`].
fn resolver(world: &World, text: &str) -> Result<()> {
    fs::write(site(world).resolver(), text).context("write the resolver's file")
}

/// Runs a program on the machine with its `/etc/resolv.conf`.
fn resolving(scene: &Scene, words: &[&str]) -> Result<String> {
    let file = site(&scene.mesh.world).resolver();
    let file = file.to_string_lossy();
    let script = "mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"";
    let mut all = vec!["unshare", "--mount", "--", "sh", "-c", script, "sh", &file];
    all.extend(words);
    scene.vm.read(&all)
}
