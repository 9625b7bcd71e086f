//! A world under an API server: pods are objects there, with kubepods-shaped cgroups and a pause process in each
//! sandbox, as kubelet and a container runtime make them; an istiod in small announces those that are annotated.
//!
//! ```text
//! <node>/kubepods/{,burstable/,besteffort/}pod<uid>/<container>                                     Driver::Cgroupfs
//! <node>/kubepods.slice/kubepods-<qos>.slice/kubepods-<qos>-pod<uid>.slice/cri-containerd-<id>.scope  Driver::Systemd
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{FIRST_DAEMON, FIRST_POD, Node, PodPlan, World, record};
use crate::apiserver::{ApiServer, Kind, Rule, Shared};
use crate::model::{self, MODE_LABEL, Model};
use crate::pod::{self, App, Pod};
use crate::serve::Place;
use crate::{cgroup, netns, place, wait};

/// What the daemon writes onto pods.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// On static pods: what their cgroups are named after instead of the UID.
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// Most time for a sandbox's first process to be there.
const STEP_MAX: Duration = Duration::from_secs(10);
/// Address part of the API server on the wire.
const HOST: u8 = 101;
/// Its port.
const PORT: u16 = 6443;

/// Who makes the cgroups of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// kubelet itself
    Cgroupfs,
    /// systemd, on behalf of kubelet
    Systemd,
}

/// Quality of service: where in the tree a pod's cgroup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    /// directly below the root of all pods
    Guaranteed,
    /// in a group
    Burstable,
    /// in another group
    BestEffort,
}

impl Qos {
    /// One after the other, so that a world has all of them.
    fn of(number: u32) -> Self {
        [Self::Burstable, Self::BestEffort, Self::Guaranteed][number as usize % 3]
    }

    fn name(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }

    /// The directory between root and pod.
    fn group(self, driver: Driver) -> PathBuf {
        let name = self.name().to_ascii_lowercase();
        match (self, driver) {
            (Self::Guaranteed, _) => PathBuf::new(),
            (_, Driver::Cgroupfs) => PathBuf::from(name),
            (_, Driver::Systemd) => PathBuf::from(format!("kubepods-{name}.slice")),
        }
    }
}

impl Driver {
    /// The directory of all pods, below the node's.
    pub fn root(self) -> &'static str {
        match self {
            Self::Cgroupfs => "kubepods",
            Self::Systemd => "kubepods.slice",
        }
    }

    /// The directory of one pod, below the root.
    fn pod(self, qos: Qos, uid: &str) -> PathBuf {
        let group = qos.group(self);
        match self {
            Self::Cgroupfs => group.join(format!("pod{uid}")),
            Self::Systemd => {
                let above = match qos {
                    Qos::Guaranteed => "kubepods".to_owned(),
                    _ => format!("kubepods-{}", qos.name().to_ascii_lowercase()),
                };
                group.join(format!("{above}-pod{}.slice", uid.replace('-', "_")))
            }
        }
    }

    /// The directory of one container, below the pod's.
    fn container(self, uid: &str, number: u8) -> PathBuf {
        let stem: String = uid.chars().filter(char::is_ascii_hexdigit).collect();
        let id = format!("{stem}{number:032x}");
        match self {
            Self::Cgroupfs => PathBuf::from(id),
            Self::Systemd => PathBuf::from(format!("cri-containerd-{id}.scope")),
        }
    }

    /// kubelet's own directory, below the node's.
    fn kubelet(self) -> &'static str {
        match self {
            Self::Cgroupfs => "system/kubelet",
            Self::Systemd => "system.slice/kubelet.service",
        }
    }
}

/// What a world has besides under an API server.
pub(super) struct Kubernetes {
    api: ApiServer,
    driver: Driver,
    /// processes named `kubelet`, one per node
    kubelets: Vec<App>,
    /// pause processes by pod name
    pauses: BTreeMap<String, App>,
    _publisher: Publisher,
}

/// Writes the mesh state whenever the API server's objects change, as istiod does.
struct Publisher {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Publisher {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // a thread that panicked has said so on standard error
            let _ = thread.join();
        }
    }
}

impl Kubernetes {
    /// Makes the API server's namespace, begins to serve in it, and gives each node what leads its daemons there.
    ///
    /// Errors: of `ip`, the cgroup hierarchy, or an address that cannot be bound.
    pub(super) fn raise(
        world: &str,
        dir: &Path,
        driver: Driver,
        nodes: &mut [Node],
        model: &Arc<Mutex<Model>>,
    ) -> Result<Self> {
        let mine = format!("{world}-api");
        let v4 = Ipv4Addr::new(172, 31, 0, HOST);
        let v6 = Ipv6Addr::new(0xfd31, 0, 0, 0, 0, 0, 0, HOST.into());
        wire(world, &mine, v4, v6, nodes)?;
        let names = [&*v4.to_string(), "kubernetes.default.svc"];
        let place = Place {
            netns: Some(netns::path(&mine)),
            address: (v4, PORT).into(),
        };
        let api = ApiServer::start(&dir.join("api"), &names, place)?;
        api.settings().rules = Rule::of_chart()?;
        for name in ["default", "kube-system", "istio-system"] {
            api.namespace(name, &BTreeMap::new());
        }
        let mut kubelets = Vec::new();
        for node in &mut *nodes {
            node.kubepods = node.cgroup.join(driver.root());
            for qos in [Qos::Burstable, Qos::BestEffort] {
                cgroup::make(&node.kubepods.join(qos.group(driver)))?;
            }
            kubelets.push(kubelet(node, &node.cgroup.join(driver.kubelet()))?);
            node.env = env(node, &api, driver);
        }
        let state = dir.join("mesh.yaml");
        Ok(Self {
            _publisher: publisher(api.shared(), Arc::clone(model), state)?,
            api,
            driver,
            kubelets,
            pauses: BTreeMap::new(),
        })
    }
}

/// Variables of the daemons of a node.
fn env(node: &Node, api: &ApiServer, driver: Driver) -> Vec<(String, String)> {
    let path = |path: PathBuf| path.to_string_lossy().into_owned();
    let pairs = [
        ("ENROLL", "kubernetes".to_owned()),
        ("ENROLL_FILE", String::new()),
        ("KUBECONFIG", path(api.kubeconfig())),
        ("CAPTURE_EXEMPT_SOURCES", String::new()),
        ("KUBELET_CGROUP", path(node.cgroup.join(driver.kubelet()))),
        ("POD_NAME", format!("ztunnel-{}", node.name)),
        ("POD_NAMESPACE", "istio-system".to_owned()),
    ];
    pairs.map(|(key, value)| (key.to_owned(), value)).into()
}

/// A process that is named `kubelet`, in kubelet's cgroup and the node's network.
fn kubelet(node: &Node, home: &Path) -> Result<App> {
    cgroup::make(home)?;
    let binary = node.dir.join("kubelet");
    if !binary.exists() {
        symlink("/bin/sleep", &binary).context("name a process kubelet")?;
    }
    let mut command = pod::enter(home, &node.netns, binary);
    command.arg("infinity");
    let what = format!("kubelet of {}", node.name);
    App::start(command, &what, &node.dir.join("apps.log"))
}

fn wire(world: &str, mine: &str, v4: Ipv4Addr, v6: Ipv6Addr, nodes: &[Node]) -> Result<()> {
    let wire = format!("{world}-wire");
    netns::make(mine)?;
    let link = format!("link add api netns {wire} type veth peer name wire0 netns {mine}");
    netns::ip(None, &[link])?;
    netns::ip(Some(&wire), &["link set api master br0 up".to_owned()])?;
    let mut lines = vec![
        "link set lo up".to_owned(),
        "link set wire0 up".to_owned(),
        format!("addr add {v4}/24 dev wire0"),
        format!("addr add {v6}/64 dev wire0 nodad"),
    ];
    for node in nodes {
        lines.push(format!("route add {}/24 via {}", node.v4(0), node.wire4));
        lines.push(format!("route add {}/64 via {}", node.v6(0), node.wire6));
    }
    netns::ip(Some(mine), &lines)
}

/// Names of the pods that are announced with HBONE: those that are annotated and not ended.
fn announced(shared: &Shared) -> Vec<String> {
    let content = shared.store.lock();
    let enabled = content.list(Kind::Pods).filter(|pod| {
        pod["metadata"]["annotations"][REDIRECTION] == "enabled"
            && pod["status"]["phase"] == "Running"
    });
    let names = enabled.filter_map(|pod| pod["metadata"]["name"].as_str());
    names.map(str::to_owned).collect()
}

fn publisher(shared: Arc<Shared>, model: Arc<Mutex<Model>>, state: PathBuf) -> Result<Publisher> {
    let (stop, mut stopped) = oneshot::channel::<()>();
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let thread = std::thread::Builder::new().name("announcer".to_owned());
    let thread = thread.spawn(move || {
        let mut changes = shared.store.subscribe();
        let mut said = Vec::new();
        loop {
            let more = async {
                tokio::select! {
                    changed = changes.changed() => changed.is_ok(),
                    _ = &mut stopped => false,
                }
            };
            if !runtime.block_on(more) {
                return;
            }
            let names = announced(&shared);
            if names != said {
                let model = model.lock().unwrap_or_else(PoisonError::into_inner);
                if let Err(error) = model::replace(&state, &model.state(&names)) {
                    eprintln!("announce {names:?}: {error:#}");
                }
                said = names;
            }
        }
    })?;
    Ok(Publisher {
        stop: Some(stop),
        thread: Some(thread),
    })
}

impl World {
    /// Makes a world under an API server: daemons of its nodes enrol what that says. It serves when this returns; no
    /// namespace is labelled. They may do there what the chart's role lets them. Workloads, services and policies come
    /// from a file that follows the pods' annotations.
    ///
    /// Errors: as [`World::raise`].
    pub fn raise_kubernetes(layout: &super::Layout, driver: Driver) -> Result<Self> {
        Self::make(layout, super::Control::Kubernetes(driver))
    }

    fn kubernetes(&self) -> &Kubernetes {
        self.kubernetes
            .as_ref()
            .expect("a world under an API server")
    }

    fn kubernetes_mut(&mut self) -> &mut Kubernetes {
        self.kubernetes
            .as_mut()
            .expect("a world under an API server")
    }

    /// The API server.
    ///
    /// Panics: the world has none.
    pub fn api(&self) -> &ApiServer {
        &self.kubernetes().api
    }

    /// The API server, to stop or start it.
    ///
    /// Panics: the world has none.
    pub fn api_mut(&mut self) -> &mut ApiServer {
        &mut self.kubernetes_mut().api
    }

    /// Names of the pods to announce, in a world under an API server.
    pub(super) fn announced(&self) -> Option<Vec<String>> {
        let kubernetes = self.kubernetes.as_ref()?;
        Some(announced(&kubernetes.api.shared()))
    }

    /// Plugs the API server's cable in or out: without it packets vanish, and nobody is told.
    ///
    /// Errors: of `ip`.
    pub fn plug_api(&self, plugged: bool) -> Result<()> {
        let state = if plugged { "up" } else { "down" };
        let wire = format!("{}-wire", self.id());
        netns::ip(Some(&wire), &[format!("link set api {state}")])
    }

    /// Labels or un-labels a namespace, and does not wait.
    pub fn label_namespace(&self, namespace: &str, ambient: bool) {
        let mode = ambient.then(|| (MODE_LABEL.to_owned(), "ambient".to_owned()));
        self.api().namespace(namespace, &mode.into_iter().collect());
    }

    /// Changes the object of a pod.
    pub fn edit_pod(&self, name: &str, edit: impl FnOnce(&mut Value)) {
        let namespace = self.pod(name).namespace.clone();
        self.api().edit(Kind::Pods, &namespace, name, edit);
    }

    /// The redirection annotation of a pod.
    pub fn redirection(&self, name: &str) -> Option<String> {
        let namespace = &self.pod(name).namespace;
        self.api().annotation(namespace, name, REDIRECTION)
    }

    /// The first step of a pod's life: it is bound to its node; nothing of it is on the node yet.
    ///
    /// Errors: the name or the address is taken.
    pub fn bind_pod(&mut self, plan: &PodPlan) -> Result<Pod> {
        let driver = self.kubernetes().driver;
        let node = self.nodes.get(plan.node);
        let node = node
            .with_context(|| format!("{}: no node {}", plan.name, plan.node))?
            .clone();
        let fresh = self.pods.iter().all(|pod| pod.name != plan.name);
        ensure!(fresh, "pod {} twice", plan.name);
        let number = self.next_pod();
        let host = match plan.host {
            Some(host) => host,
            None => FIRST_POD + u8::try_from(number).context("too many pods")?,
        };
        ensure!(host < FIRST_DAEMON, "too many pods");
        let uid = self.uid(number);
        let qos = Qos::of(number);
        let annotated = |key: &str| plan.annotations.iter().find(|(known, _)| known == key);
        let own = annotated(CONFIG_HASH).map_or(uid.as_str(), |(_, hash)| hash.as_str());
        let cgroup = node.kubepods.join(driver.pod(qos, own));
        let netns_name = format!("{}-{}-{number}", self.id(), plan.name);
        let mut pod = Pod {
            name: plan.name.clone(),
            namespace: plan.namespace.clone(),
            service_account: plan.service_account.clone(),
            node: plan.node,
            v4: node.v4(host),
            v6: node.v6(host),
            netns: netns::path(&netns_name),
            netns_name,
            home: cgroup.join(driver.container(&uid, 1)),
            cgroup,
            uid,
            host,
            labels: plan.labels.iter().cloned().collect(),
            annotations: plan.annotations.iter().cloned().collect(),
            dir: self.dir(),
        };
        if plan.host_network {
            (pod.v4, pod.v6) = (node.wire4, node.wire6);
            (pod.netns, pod.netns_name) = (node.netns.clone(), node.netns_name.clone());
        }
        let mut record = record(&pod, &node);
        record.host_network = plan.host_network;
        self.model().pods.push(record);
        self.model()
            .namespaces
            .entry(pod.namespace.clone())
            .or_default();
        let api = &self.kubernetes().api;
        if api
            .content()
            .get(Kind::Namespaces, "", &pod.namespace)
            .is_none()
        {
            api.namespace(&pod.namespace, &BTreeMap::new());
        }
        let object = object(&pod, &node, qos, plan.host_network);
        api.change(|content| content.put(Kind::Pods, object));
        self.pods.push(pod.clone());
        Ok(pod)
    }

    /// The second step: cgroups, and a sandbox with a pause process and the pod's addresses.
    ///
    /// Errors: of `ip` or the cgroup hierarchy.
    pub fn make_sandbox(&mut self, name: &str) -> Result<()> {
        let pod = self.pod(name).clone();
        let node = self.node(pod.node).clone();
        if pod.netns != node.netns {
            node.attach(&pod.netns_name, pod.host)?;
        }
        cgroup::make(&pod.home)?;
        self.start_pause(&pod)
    }

    fn start_pause(&mut self, pod: &Pod) -> Result<()> {
        let kubernetes = self.kubernetes_mut();
        let sandbox = pod.cgroup.join(kubernetes.driver.container(&pod.uid, 0));
        cgroup::make(&sandbox)?;
        let mut command = pod::enter(&sandbox, &pod.netns, "sleep");
        command.arg("infinity");
        let what = format!("pause of {}", pod.name);
        let pause = App::start(command, &what, &pod.dir.join("apps.log"))?;
        // the program has taken the shell's place, so it is in the cgroup and the namespace
        let comm = format!("/proc/{}/comm", pause.pid());
        wait::until_true(STEP_MAX, &what, || {
            fs::read_to_string(&comm).is_ok_and(|name| name.trim() == "sleep")
        })?;
        kubernetes.pauses.insert(pod.name.clone(), pause);
        Ok(())
    }

    /// The third step: kubelet says that it runs, and which addresses it has.
    pub fn tell_running(&self, name: &str) {
        let pod = self.pod(name).clone();
        let wire4 = self.node(pod.node).wire4;
        self.edit_pod(name, |object| {
            object["status"] = running(&pod, wire4, &object["status"]["qosClass"]);
        });
    }

    /// All three, with the mesh state made to know it.
    ///
    /// Errors: as theirs.
    pub fn start_pod(&mut self, plan: &PodPlan) -> Result<Pod> {
        let pod = self.bind_pod(plan)?;
        self.publish_state()?;
        self.make_sandbox(&plan.name)?;
        self.tell_running(&plan.name);
        Ok(pod)
    }

    /// The sandbox dies and is made anew, under the same UID and with the same addresses; applications are gone.
    ///
    /// Errors: of `ip` or the cgroup hierarchy.
    pub fn renew_sandbox(&mut self, name: &str) -> Result<Pod> {
        self.take_sandbox(name)?;
        let number = self.next_pod();
        let fresh = format!("{}-{name}-{number}", self.id());
        let pod = self.pods.iter_mut().find(|pod| pod.name == name);
        let pod = pod.ok_or_else(|| anyhow!("no pod {name}"))?;
        pod.netns = netns::path(&fresh);
        pod.netns_name = fresh;
        let pod = pod.clone();
        self.make_sandbox(name)?;
        Ok(pod)
    }

    /// All processes of a pod end and its sandbox goes, with the cgroups: what kubelet does by itself.
    ///
    /// Errors: of `ip` or the cgroup hierarchy.
    pub fn take_sandbox(&mut self, name: &str) -> Result<()> {
        let pod = self.pod(name).clone();
        let node = self.node(pod.node).clone();
        cgroup::remove(&pod.cgroup)?;
        drop(self.kubernetes_mut().pauses.remove(name));
        unplug(&node, &pod)
    }

    /// The sandbox dies and is made anew in the pod's own cgroup, at other addresses, which the API server is not told.
    ///
    /// Errors: of `ip` or the cgroup hierarchy.
    pub fn move_sandbox(&mut self, name: &str) -> Result<Pod> {
        let before = self.pod(name).clone();
        let node = self.node(before.node).clone();
        cgroup::empty(&before.cgroup)?;
        drop(self.kubernetes_mut().pauses.remove(name));
        unplug(&node, &before)?;
        let number = self.next_pod();
        let host = FIRST_POD + u8::try_from(number).context("too many pods")?;
        ensure!(host < FIRST_DAEMON, "too many pods");
        let netns_name = format!("{}-{name}-{number}", self.id());
        let pod = self.pods.iter_mut().find(|pod| pod.name == name);
        let pod = pod.ok_or_else(|| anyhow!("no pod {name}"))?;
        (pod.host, pod.v4, pod.v6) = (host, node.v4(host), node.v6(host));
        pod.netns = netns::path(&netns_name);
        pod.netns_name = netns_name;
        let pod = pod.clone();
        self.make_sandbox(name)?;
        Ok(pod)
    }

    /// A pod ends by itself: `Succeeded` or `Failed`; its object stays.
    ///
    /// Errors: as [`World::take_sandbox`].
    pub fn end_pod(&mut self, name: &str, phase: &str) -> Result<()> {
        self.take_sandbox(name)?;
        self.edit_pod(name, |pod| pod["status"]["phase"] = json!(phase));
        Ok(())
    }

    /// Deletes a pod in the order of a cluster: marked, ended, gone from the API server and from the mesh state.
    ///
    /// Errors: as [`World::take_sandbox`].
    pub fn delete_pod(&mut self, name: &str) -> Result<()> {
        self.edit_pod(name, |pod| {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-02T03:04:35Z");
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(30);
        });
        if self.pod(name).cgroup.exists() {
            self.take_sandbox(name)?;
        }
        let namespace = self.pod(name).namespace.clone();
        let api = self.api();
        api.change(|content| content.remove(Kind::Pods, &namespace, name));
        self.pods.retain(|pod| pod.name != name);
        self.model().pods.retain(|pod| pod.name != name);
        self.publish_state()
    }

    /// A command that runs as kubelet does: in its cgroup, from the node's network.
    pub fn kubelet(&self, node: usize, program: &str) -> Command {
        let node = self.node(node);
        let home = node.cgroup.join(self.kubernetes().driver.kubelet());
        pod::enter(&home, &node.netns, program)
    }

    /// Ends kubelet's process on a node and starts another.
    ///
    /// Errors: it cannot be started.
    pub fn restart_kubelet(&mut self, node: usize) -> Result<()> {
        let home = self.kubernetes().driver.kubelet();
        let of = self.node(node).clone();
        let fresh = kubelet(&of, &of.cgroup.join(home))?;
        self.kubernetes_mut().kubelets[node] = fresh;
        Ok(())
    }

    /// A TCP probe by kubelet: what `podapp connect` saw.
    ///
    /// Errors: it cannot be run.
    pub fn probe_tcp(&self, node: usize, to: SocketAddr) -> Result<Value> {
        let podapp = place::binary("podapp")?.to_string_lossy().into_owned();
        let mut command = self.kubelet(node, &podapp);
        seen(command.args(["connect", "--to", &to.to_string()]))
    }

    /// An HTTP probe by kubelet: the status, 0 for none.
    ///
    /// Errors: curl cannot be run.
    pub fn probe_http(&self, node: usize, to: SocketAddr) -> Result<u16> {
        let mut command = self.kubelet(node, "curl");
        let url = format!("http://{to}/healthz");
        command.args([
            "-s",
            "-o",
            "/dev/null",
            "-m",
            "5",
            "-w",
            "%{http_code}",
            &url,
        ]);
        let out = run(&mut command)?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        text.trim()
            .parse()
            .with_context(|| format!("status {text:?}"))
    }

    /// What `podapp connect` sees that runs beside kubelet: in the node's network, in a cgroup that is neither
    /// kubelet's nor a pod's.
    ///
    /// Errors: it cannot be run.
    pub fn host_connect(&self, node: usize, to: SocketAddr) -> Result<Value> {
        let node = self.node(node);
        let home = node.cgroup.join("system-other");
        cgroup::make(&home)?;
        let podapp = place::binary("podapp")?;
        let mut command = pod::enter(&home, &node.netns, podapp);
        seen(command.args(["connect", "--to", &to.to_string()]))
    }
}

fn run(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().context("run a probe")
}

fn seen(command: &mut Command) -> Result<Value> {
    let out = run(command)?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).with_context(|| {
        let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        format!("probe: {}: printed {text:?}: {said}", out.status)
    })
}

/// A pod as it is after it was bound to its node.
fn object(pod: &Pod, node: &Node, qos: Qos, host_network: bool) -> Value {
    let set: String = pod
        .name
        .rsplit_once('-')
        .map_or(&*pod.name, |(stem, _)| stem)
        .to_owned();
    let mut object = json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {
            "name": pod.name, "generateName": format!("{set}-"), "namespace": pod.namespace, "uid": pod.uid,
            "labels": {"app": set},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set,
                "uid": "00000000-0000-4000-a000-000000000001", "controller": true, "blockOwnerDeletion": true}],
            "managedFields": [{"manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1",
                "time": "2026-01-02T03:04:05Z", "fieldsType": "FieldsV1",
                "fieldsV1": {"f:metadata": {"f:generateName": {}}, "f:spec": {"f:containers": {}}}}],
        },
        "spec": {
            "nodeName": node.name, "serviceAccountName": pod.service_account,
            "serviceAccount": pod.service_account, "restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
            "containers": [{"name": "app", "image": "registry.example/app:1", "resources": {}}],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists",
                "effect": "NoExecute", "tolerationSeconds": 300}],
        },
        "status": {
            "phase": "Pending", "qosClass": qos.name(),
            "conditions": [{"type": "PodScheduled", "status": "True",
                "lastProbeTime": null, "lastTransitionTime": "2026-01-02T03:04:05Z"}],
        },
    });
    for (key, value) in &pod.labels {
        object["metadata"]["labels"][key] = json!(value);
    }
    if !pod.annotations.is_empty() {
        object["metadata"]["annotations"] = json!(pod.annotations);
    }
    if host_network {
        object["spec"]["hostNetwork"] = json!(true);
    }
    object
}

/// The status of a pod that runs.
fn running(pod: &Pod, node: Ipv4Addr, qos: &Value) -> Value {
    let addresses = [IpAddr::V4(pod.v4), IpAddr::V6(pod.v6)];
    json!({
        "phase": "Running", "qosClass": qos, "hostIP": node, "hostIPs": [{"ip": node}],
        "podIP": pod.v4, "podIPs": addresses.map(|ip| json!({"ip": ip})),
        "startTime": "2026-01-02T03:04:05Z",
        "conditions": [{"type": "Ready", "status": "True",
            "lastProbeTime": null, "lastTransitionTime": "2026-01-02T03:04:06Z"}],
        "containerStatuses": [{"name": "app", "ready": true, "restartCount": 0, "started": true,
            "image": "registry.example/app:1", "imageID": "", "state": {"running": {"startedAt": "2026-01-02T03:04:06Z"}}}],
    })
}

/// Takes a sandbox off its node.
fn unplug(node: &Node, pod: &Pod) -> Result<()> {
    if pod.netns == node.netns {
        return Ok(());
    }
    // the daemon may hold the namespace for a while; the addresses are not to stay with it
    let lines = [
        format!("link delete p{}", pod.host),
        // whoever has the addresses next has another link address
        format!("neigh flush dev cni0 to {}", pod.v4),
        format!("neigh flush dev cni0 to {}", pod.v6),
    ];
    netns::ip(Some(&node.netns_name), &lines)?;
    netns::ip(None, &[format!("netns delete {}", pod.netns_name)])
}
