//! Nodes, a wire between them, and pods behind them.
//!
//! ```text
//!            wire namespace: bridge, 172.31.0.0/24, fd31::/64
//!            /                                             \
//!   node1: wire0 172.31.0.1                       node2: wire0 172.31.0.2
//!          cni0  10.244.1.1, fd44:0:0:1::1               cni0  10.244.2.1, fd44:0:0:2::1
//!            |        |                                    |        |
//!        pod eth0   pod eth0                           pod eth0   daemon eth0
//!        10.244.1.10   .11                             10.244.2.10   10.244.2.200
//! ```
//!
//! A world under a control plane has one more namespace on the wire, 172.31.0.100 and fd31::64; its daemons are told
//! there what others read from files. One under an API server has one at 172.31.0.101 and fd31::65.
//!
//! Packets between nodes cross `wire0`, where they can be captured. Each daemon lives in a namespace of its own, as a
//! DaemonSet pod does, so that an old and a new one can run at the same time. Everything is named after the world's
//! id, so several worlds live side by side, and all of it goes when the world is dropped or its process dies.

mod control;
pub mod kubernetes;
pub mod networks;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::mount::{MsFlags, mount};
use serde_json::Value;

use self::kubernetes::{Driver, Kubernetes};
use crate::daemon::Daemon;
use crate::envoy::Ca;
use crate::istiod::Istiod;
use crate::model::{self, Model, PodRecord, Service};
use crate::pod::Pod;
use crate::wire::Capture;
use crate::{cgroup, leftovers, netns, place};

/// Most time for a daemon to act on a changed file.
pub const APPLY_MAX: Duration = Duration::from_secs(20);
/// Port-less address part of the first pod of a node.
const FIRST_POD: u8 = 10;
/// Address part of the first daemon of a node.
const FIRST_DAEMON: u8 = 200;

/// What a world is made of.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// number of nodes, 1 to 9
    pub nodes: u8,
    /// pods
    pub pods: Vec<PodPlan>,
    /// services
    pub services: Vec<Service>,
}

/// A pod to be made.
#[derive(Debug, Clone)]
pub struct PodPlan {
    /// pod name, unique in the world
    pub name: String,
    /// namespace
    pub namespace: String,
    /// service account
    pub service_account: String,
    /// index of its node
    pub node: usize,
    /// labels
    pub labels: Vec<(String, String)>,
    /// annotations
    pub annotations: Vec<(String, String)>,
    /// last part of its addresses; none = the next that was never used. Under an API server only
    pub host: Option<u8>,
    /// shares the node's network. Under an API server only
    pub host_network: bool,
}

impl PodPlan {
    /// A pod whose service account is named as its workload.
    pub fn new(namespace: &str, name: &str, node: usize) -> Self {
        let stem = name.rsplit_once('-').map_or(name, |(stem, _)| stem);
        Self {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            service_account: stem.to_owned(),
            node,
            labels: Vec::new(),
            annotations: Vec::new(),
            host: None,
            host_network: false,
        }
    }

    /// The same at the addresses of that number; those of a pod that is gone can be used again.
    #[must_use]
    pub fn at_host(mut self, host: u8) -> Self {
        self.host = Some(host);
        self
    }

    /// The same in the node's network.
    #[must_use]
    pub fn on_host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    /// The same with an annotation.
    #[must_use]
    pub fn annotated(mut self, key: &str, value: &str) -> Self {
        self.annotations.push((key.to_owned(), value.to_owned()));
        self
    }

    /// The same with a label.
    #[must_use]
    pub fn labelled(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }
}

impl Layout {
    /// Two nodes; `shop`: `client-0` on the first node, `server-0` on the second behind the service `server`
    /// (10.96.0.10 and fd96::10, port 80 to 8080 and 9000 to 9000); `other`: `outsider-0` on the second node.
    pub fn standard() -> Self {
        Self {
            nodes: 2,
            pods: vec![
                PodPlan::new("shop", "client-0", 0),
                PodPlan::new("shop", "server-0", 1),
                PodPlan::new("other", "outsider-0", 1),
            ],
            services: vec![Service {
                name: "server".to_owned(),
                namespace: "shop".to_owned(),
                vips: vec![
                    IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)),
                    IpAddr::V6(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0x10)),
                ],
                ports: vec![(80, 8080), (9000, 9000)],
                pods: vec!["server-0".to_owned()],
                ..Service::default()
            }],
        }
    }
}

/// A node. Cheap to clone; does not own what it names (the world does).
#[derive(Debug, Clone)]
pub struct Node {
    /// id of the world
    pub world: String,
    /// index, from 0
    pub index: usize,
    /// `node1`, ...
    pub name: String,
    /// name of the network namespace
    pub netns_name: String,
    /// network namespace file
    pub netns: PathBuf,
    /// cgroup of everything on the node
    pub cgroup: PathBuf,
    /// cgroup of its pods
    pub kubepods: PathBuf,
    /// address on the wire
    pub wire4: Ipv4Addr,
    /// address on the wire
    pub wire6: Ipv6Addr,
    /// address towards its pods
    pub gateway4: Ipv4Addr,
    /// address towards its pods
    pub gateway6: Ipv6Addr,
    /// run directory of the world
    pub dir: PathBuf,
    /// the enrolment file of this node
    pub enrolment: PathBuf,
    /// the mesh state file, the same for all nodes
    pub state: PathBuf,
    /// the embedded CA's directory, the same for all nodes
    pub ca: PathBuf,
    /// where its daemon pins; on a bpffs of this node's own
    pub pins: PathBuf,
    /// variables that its daemons get besides the usual ones; an empty value removes one
    pub env: Vec<(String, String)>,
    daemons: Arc<AtomicU32>,
}

impl Node {
    fn new(world: &str, index: u8) -> Result<Self> {
        let (name, dir) = (format!("node{}", index + 1), leftovers::dir(world));
        let netns_name = format!("{world}-{name}");
        let cgroup = place::cgroup_root()?.join(world).join(&name);
        let v6 = |subnet, host| {
            Ipv6Addr::new(
                subnet,
                0,
                0,
                if subnet == 0xfd44 {
                    u16::from(index) + 1
                } else {
                    0
                },
                0,
                0,
                0,
                host,
            )
        };
        Ok(Self {
            world: world.to_owned(),
            index: usize::from(index),
            netns: netns::path(&netns_name),
            netns_name,
            kubepods: cgroup.join("kubepods"),
            cgroup,
            wire4: Ipv4Addr::new(172, 31, 0, index + 1),
            wire6: v6(0xfd31, u16::from(index) + 1),
            gateway4: Ipv4Addr::new(10, 244, index + 1, 1),
            gateway6: v6(0xfd44, 1),
            enrolment: dir.join(format!("{name}-pods.yaml")),
            state: dir.join("mesh.yaml"),
            ca: dir.join("ca"),
            pins: dir.join(format!("{name}-bpf")).join("ztunnel"),
            dir,
            name,
            env: Vec::new(),
            daemons: Arc::default(),
        })
    }

    /// The address number `host` behind this node.
    pub fn v4(&self, host: u8) -> Ipv4Addr {
        let [a, b, c, _] = self.gateway4.octets();
        Ipv4Addr::new(a, b, c, host)
    }

    /// The address number `host` behind this node.
    pub fn v6(&self, host: u8) -> Ipv6Addr {
        let mut segments = self.gateway6.segments();
        segments[7] = u16::from(host);
        Ipv6Addr::from(segments)
    }

    /// Where a test may put a `/etc/resolv.conf` for the daemons of this node that start after that.
    pub fn resolver(&self) -> PathBuf {
        self.dir.join(format!("{}-resolv.conf", self.name))
    }

    /// Number of the next daemon on this node.
    pub(crate) fn next_daemon(&self) -> u8 {
        let count = self.daemons.fetch_add(1, Ordering::Relaxed) % 50;
        FIRST_DAEMON + u8::try_from(count).unwrap_or_default()
    }

    /// Records everything between this node and the others.
    ///
    /// - `other`: a node on the far side
    ///
    /// Errors: tcpdump does not begin.
    pub fn capture(&self, other: &Node) -> Result<Capture> {
        Capture::start(&self.netns, "wire0", IpAddr::V4(other.wire4), &self.dir)
    }

    /// Makes a namespace behind this node, with `eth0`, its addresses and routes.
    ///
    /// Errors: of `ip`.
    pub fn attach(&self, netns_name: &str, host: u8) -> Result<()> {
        let port = format!("p{host}");
        netns::make(netns_name)?;
        let (mine, theirs) = (&self.netns_name, netns_name);
        netns::ip(
            None,
            &[format!(
                "link add {port} netns {mine} type veth peer name eth0 netns {theirs}"
            )],
        )?;
        netns::ip(
            Some(&self.netns_name),
            &[format!("link set {port} master cni0 up")],
        )?;
        netns::ip(
            Some(netns_name),
            &[
                "link set lo up".to_owned(),
                "link set eth0 up".to_owned(),
                format!("addr add {}/24 dev eth0", self.v4(host)),
                format!("addr add {}/64 dev eth0 nodad", self.v6(host)),
                format!("route add default via {}", self.gateway4),
                format!("route add default via {}", self.gateway6),
            ],
        )
    }
}

/// Who tells the daemons of a world what they need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Control {
    /// files
    Files,
    /// a control plane, but for the pods
    Istiod,
    /// an API server tells the pods, files the rest
    Kubernetes(Driver),
}

/// The world. Dropping it takes everything down.
pub struct World {
    id: String,
    nodes: Vec<Node>,
    pods: Vec<Pod>,
    made: u32,
    model: Arc<Mutex<Model>>,
    istiod: Option<Istiod>,
    kubernetes: Option<Kubernetes>,
    reaper: Option<Child>,
    kept: bool,
}

impl World {
    /// Makes a world, after having swept away those of processes that are gone. No daemon runs and no namespace is
    /// labelled yet.
    ///
    /// Errors: no root, a missing tool, or whatever `ip`, mount or the cgroup hierarchy refuse.
    pub fn raise(layout: &Layout) -> Result<Self> {
        Self::make(layout, Control::Files)
    }

    /// The same under a control plane: daemons get workloads, services, policies and certificates from there. It serves
    /// when this returns, and says what the model says; the enrolment stays a file.
    ///
    /// Errors: as there.
    pub fn raise_under_istiod(layout: &Layout) -> Result<Self> {
        Self::make(layout, Control::Istiod)
    }

    fn make(layout: &Layout, control: Control) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        place::require()?;
        leftovers::sweep();
        let id = format!(
            "{}{}-{}",
            leftovers::PREFIX,
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        fs::create_dir_all(leftovers::dir(&id)).context("make the run directory")?;
        leftovers::claim(&id)?;
        let reaper = reaper(&id);
        let mut world = Self {
            id,
            nodes: Vec::new(),
            pods: Vec::new(),
            made: 0,
            model: Arc::default(),
            istiod: None,
            kubernetes: None,
            reaper,
            kept: false,
        };
        world.make_wire(layout.nodes)?;
        world.make_files()?;
        match control {
            Control::Files => (),
            Control::Istiod => {
                let dir = world.dir().join("istiod");
                world.istiod = Some(control::raise(&world.id, &dir, &mut world.nodes)?);
            }
            Control::Kubernetes(driver) => {
                let (dir, nodes) = (world.dir(), &mut world.nodes);
                let made = Kubernetes::raise(&world.id, &dir, driver, nodes, &world.model)?;
                world.kubernetes = Some(made);
            }
        }
        for plan in &layout.pods {
            world.add_pod(plan)?;
        }
        world.model().services.clone_from(&layout.services);
        world.publish_enrolment()?;
        world.publish_state()?;
        Ok(world)
    }

    /// Name of the world; namespaces, cgroups and the run directory begin with it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The run directory: logs, state files, captures.
    pub fn dir(&self) -> PathBuf {
        leftovers::dir(&self.id)
    }

    /// A node by index.
    ///
    /// Panics: the layout has no such node.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A pod by name.
    ///
    /// Panics: there is no such pod.
    pub fn pod(&self, name: &str) -> &Pod {
        self.pods
            .iter()
            .find(|pod| pod.name == name)
            .unwrap_or_else(|| panic!("no pod {name} in this world"))
    }

    /// All pods.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// The control plane.
    ///
    /// Panics: the world has none.
    pub fn istiod(&self) -> &Istiod {
        self.istiod.as_ref().expect("a world under a control plane")
    }

    /// Who signs for the daemons of this world.
    pub fn ca(&self) -> Ca<'_> {
        match &self.istiod {
            Some(istiod) => Ca::Istiod(istiod),
            None => Ca::Directory(&self.nodes[0].ca),
        }
    }

    /// The control plane, to stop or start it.
    ///
    /// Panics: the world has none.
    pub fn istiod_mut(&mut self) -> &mut Istiod {
        self.istiod.as_mut().expect("a world under a control plane")
    }

    /// Starts a daemon on a node and waits until it is ready.
    ///
    /// Errors: it ends or does not get ready; the end of its log is in the text.
    pub fn daemon(&self, node: usize) -> Result<Daemon> {
        Daemon::start(self.node(node), &[])
    }

    /// Starts a daemon on every node.
    ///
    /// Errors: as [`World::daemon`].
    pub fn daemons(&self) -> Result<Vec<Daemon>> {
        self.nodes
            .iter()
            .map(|node| Daemon::start(node, &[]))
            .collect()
    }

    /// The model behind the files; publish after a change.
    pub fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the model and writes all files.
    ///
    /// Errors: a file cannot be written.
    pub fn edit(&self, change: impl FnOnce(&mut Model)) -> Result<()> {
        change(&mut self.model());
        self.publish_enrolment()?;
        self.publish_state()
    }

    /// Writes the enrolment file of every node.
    ///
    /// Errors: a file cannot be written.
    pub fn publish_enrolment(&self) -> Result<()> {
        let model = self.model();
        if let Some(istiod) = &self.istiod {
            istiod.place(&model);
        }
        self.nodes
            .iter()
            .try_for_each(|node| model::replace(&node.enrolment, &model.enrolment(&node.name)))
    }

    /// Writes the mesh state: pods whose labels enrol them are announced with HBONE.
    ///
    /// Errors: the file cannot be written.
    pub fn publish_state(&self) -> Result<()> {
        let model = self.model();
        if let Some(announced) = self.announced() {
            return model::replace(&self.dir().join("mesh.yaml"), &model.state(&announced));
        }
        let enrolled: Vec<_> = model
            .pods
            .iter()
            .filter(|pod| model.enrolled(pod))
            .map(|pod| pod.name.clone())
            .collect();
        if let Some(istiod) = &self.istiod {
            istiod.publish(&model, &enrolled)?;
        }
        model::replace(&self.dir().join("mesh.yaml"), &model.state(&enrolled))
    }

    /// Labels or un-labels a namespace, in the order in which a cluster does it (capture first, then announce; the
    /// other way round when leaving), and waits until the daemons show it.
    ///
    /// Errors: a daemon does not get there.
    pub fn label(&self, namespace: &str, ambient: bool, daemons: &[&Daemon]) -> Result<()> {
        self.model().label(namespace, ambient);
        if ambient {
            self.publish_enrolment()?;
            self.settled_enrolment(daemons)?;
            self.publish_state()?;
            self.settled_state(daemons)
        } else {
            self.publish_state()?;
            self.settled_state(daemons)?;
            self.publish_enrolment()?;
            self.settled_enrolment(daemons)
        }
    }

    /// Waits until each daemon serves exactly the pods of its node that the labels enrol.
    ///
    /// Errors: one does not get there.
    pub fn settled_enrolment(&self, daemons: &[&Daemon]) -> Result<()> {
        for daemon in daemons {
            let pods: Vec<_> = {
                let model = self.model();
                let here = model
                    .pods
                    .iter()
                    .filter(|pod| pod.node == daemon.node().name);
                here.map(|pod| (pod.uid.clone(), pod.name.clone(), model.enrolled(pod)))
                    .collect()
            };
            for (uid, name, wanted) in pods {
                let what = format!(
                    "pod {name} on {} {}",
                    daemon.node().name,
                    if wanted { "enrolled" } else { "released" }
                );
                daemon.wait_dump(APPLY_MAX, &what, |dump| {
                    if wanted {
                        is_in(dump, &uid)
                    } else {
                        is_out(dump, &uid)
                    }
                })?;
            }
        }
        Ok(())
    }

    /// Waits until each daemon knows the workloads and policies of the model.
    ///
    /// Errors: one does not get there.
    pub fn settled_state(&self, daemons: &[&Daemon]) -> Result<()> {
        let (pods, policies) = {
            let model = self.model();
            let protocol = |pod: &PodRecord| {
                if model.takes_tunnels(pod) {
                    "HBONE"
                } else {
                    "TCP"
                }
            };
            let all = model.pods.iter().chain(&model.others);
            let pods: Vec<_> = all.map(|pod| (pod.name.clone(), protocol(pod))).collect();
            let mut policies: Vec<_> = model
                .policies
                .iter()
                .map(|policy| format!("{}/{}", policy.namespace, policy.name))
                .collect();
            policies.sort();
            (pods, policies)
        };
        for daemon in daemons {
            daemon.wait_dump(
                APPLY_MAX,
                &format!("mesh state on {}", daemon.node().name),
                |dump| {
                    let rows = |key: &str| dump[key].as_array().cloned().unwrap_or_default();
                    let workloads = rows("workloads");
                    let known = pods.iter().all(|(name, protocol)| {
                        workloads
                            .iter()
                            .any(|w| w["name"] == name.as_str() && w["protocol"] == *protocol)
                    });
                    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
                    let mut found: Vec<_> = rows("policies")
                        .iter()
                        .map(|p| format!("{}/{}", text(&p["namespace"]), text(&p["name"])))
                        .collect();
                    found.sort();
                    let all = known && workloads.len() == pods.len() && found == policies;
                    all && self.model().waypoints_shown(dump)
                },
            )?;
        }
        Ok(())
    }

    /// Makes a pod; the files are not written.
    ///
    /// Errors: of `ip` or the cgroup hierarchy.
    pub fn add_pod(&mut self, plan: &PodPlan) -> Result<Pod> {
        if self.kubernetes.is_some() {
            return self.start_pod(plan);
        }
        let node = self
            .nodes
            .get(plan.node)
            .ok_or_else(|| anyhow!("{}: no node {}", plan.name, plan.node))?
            .clone();
        ensure!(
            self.pods.iter().all(|pod| pod.name != plan.name),
            "pod {} twice",
            plan.name
        );
        let number = self.next_pod();
        let host = FIRST_POD + u8::try_from(number).context("too many pods")?;
        ensure!(host < FIRST_DAEMON, "too many pods");
        let netns_name = format!("{}-{}", self.id, plan.name);
        node.attach(&netns_name, host)?;
        let cgroup = node.kubepods.join(format!("pod-{}", plan.name));
        cgroup::make(&cgroup)?;
        let pod = Pod {
            name: plan.name.clone(),
            namespace: plan.namespace.clone(),
            service_account: plan.service_account.clone(),
            uid: self.uid(number),
            host,
            home: cgroup.clone(),
            node: plan.node,
            v4: node.v4(host),
            v6: node.v6(host),
            netns: netns::path(&netns_name),
            netns_name,
            cgroup,
            labels: plan.labels.iter().cloned().collect(),
            annotations: plan.annotations.iter().cloned().collect(),
            dir: self.dir(),
        };
        self.model()
            .namespaces
            .entry(pod.namespace.clone())
            .or_default();
        self.model().pods.push(record(&pod, &node));
        self.pods.push(pod.clone());
        Ok(pod)
    }

    /// Number of the next pod; none is used twice.
    fn next_pod(&mut self) -> u32 {
        self.made += 1;
        self.made - 1
    }

    /// UID of a pod, which no other pod on this machine has.
    fn uid(&self, number: u32) -> String {
        let world = self.id.rsplit_once('-').map(|(_, number)| number);
        let world: u16 = world.and_then(|text| text.parse().ok()).unwrap_or_default();
        let pid = std::process::id();
        format!("{pid:08x}-{world:04x}-4000-8000-{number:012x}")
    }

    /// Lets the world stay when this value and this process are gone; `world down` takes it away.
    ///
    /// Errors: the run directory is not writable.
    pub fn keep(&mut self) -> Result<()> {
        leftovers::keep(&self.id)?;
        self.kept = true;
        Ok(())
    }

    fn make_wire(&mut self, nodes: u8) -> Result<()> {
        ensure!((1..=9).contains(&nodes), "1 to 9 nodes");
        let wire = format!("{}-wire", self.id);
        netns::make(&wire)?;
        netns::ip(
            Some(&wire),
            &[
                "link set lo up".to_owned(),
                "link add br0 address 02:00:00:00:00:01 type bridge mcast_snooping 0".to_owned(),
                "link set br0 up".to_owned(),
            ],
        )?;
        for index in 0..nodes {
            let node = Node::new(&self.id, index)?;
            make_node(&node, &wire)?;
            self.nodes.push(node);
        }
        for node in &self.nodes {
            let others = self.nodes.iter().filter(|other| other.index != node.index);
            let routes: Vec<_> = others
                .flat_map(|other| {
                    [
                        format!("route add {}/24 via {}", other.v4(0), other.wire4),
                        format!("route add {}/64 via {}", other.v6(0), other.wire6),
                    ]
                })
                .collect();
            netns::ip(Some(&node.netns_name), &routes)?;
        }
        Ok(())
    }

    fn make_files(&self) -> Result<()> {
        for node in &self.nodes {
            cgroup::make(&node.kubepods)?;
            let bpffs = node.pins.parent().context("pins lie on a bpffs")?;
            fs::create_dir_all(bpffs).context("make the mount point of bpffs")?;
            mount(
                Some("bpf"),
                bpffs,
                Some("bpf"),
                MsFlags::empty(),
                None::<&Path>,
            )
            .with_context(|| format!("mount bpffs at {}", bpffs.display()))?;
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.istiod.take());
        drop(self.kubernetes.take());
        if !self.kept
            && let Err(error) = leftovers::demolish(&self.id)
        {
            eprintln!("taking down {}: {error:#}", self.id);
        }
        if let Some(mut reaper) = self.reaper.take() {
            drop(reaper.stdin.take());
            // an error means that it is already gone
            let _ = reaper.wait();
        }
    }
}

fn make_node(node: &Node, wire: &str) -> Result<()> {
    let name = &node.netns_name;
    netns::make(name)?;
    netns::ip(
        None,
        &[format!(
            "link add {} netns {wire} type veth peer name wire0 netns {name}",
            node.name
        )],
    )?;
    netns::ip(
        Some(wire),
        &[format!("link set {} master br0 up", node.name)],
    )?;
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        netns::set_sysctl(&node.netns, key, "1")?;
    }
    netns::ip(
        Some(name),
        &[
            "link set lo up".to_owned(),
            "link set wire0 up".to_owned(),
            format!("addr add {}/24 dev wire0", node.wire4),
            format!("addr add {}/64 dev wire0 nodad", node.wire6),
            // without an address of its own a bridge takes the lowest of its ports', and a new port changes it
            format!(
                "link add cni0 address 02:00:00:00:{:02x}:01 type bridge mcast_snooping 0",
                node.index + 1
            ),
            "link set cni0 up".to_owned(),
            format!("addr add {}/24 dev cni0", node.gateway4),
            format!("addr add {}/64 dev cni0 nodad", node.gateway6),
        ],
    )
}

fn record(pod: &Pod, node: &Node) -> PodRecord {
    PodRecord {
        uid: pod.uid.clone(),
        name: pod.name.clone(),
        namespace: pod.namespace.clone(),
        service_account: pod.service_account.clone(),
        node: node.name.clone(),
        ips: vec![IpAddr::V4(pod.v4), IpAddr::V6(pod.v6)],
        netns: pod.netns.clone(),
        cgroup: pod.cgroup.clone(),
        host_network: false,
        phase: "Running".to_owned(),
        labels: pod.labels.clone(),
        annotations: pod.annotations.clone(),
        ..PodRecord::default()
    }
}

/// Whether a dump says that the pod is enrolled.
pub fn is_in(dump: &Value, uid: &str) -> bool {
    dump["workloadState"][uid]["state"] == "Up"
}

/// Whether a dump says that nothing new of the pod is captured: it is not listed, or not as enrolled or as about to be.
/// Connections made before may still go on.
pub fn is_out(dump: &Value, uid: &str) -> bool {
    let state = &dump["workloadState"][uid]["state"];
    state != "Up" && state != "Pending"
}

/// A companion that takes the world down when this process ends in any way: it waits for the end of its input. It has
/// a process group of its own, so that Ctrl-C does not take it along. Without it the next world sweeps.
fn reaper(id: &str) -> Option<Child> {
    let binary = place::binary("world").ok()?;
    let mut command = Command::new(binary);
    command.args(["reap", id]).process_group(0);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().ok()
}
