//! Assembles the daemon and runs it: one control thread, N data threads.
//!
//! The order is that of a start that can fail early and say why; the end is graceful and leaves capture in place.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::Context;
use capture::{Capture, DriftKind, external, own_cgroup};
use control::Publisher;
use enroll::cgroups::CgroupEvent;
use enroll::kubernetes::{self, Reporter};
use enroll::place;
use enroll::{Rules, own, zds};
use identity::Crl;
use mesh::{Index, Resource as MeshResource, Str};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proxy::{Refusals, Shards, Shared};
use telemetry::log::{Format, LogHandle};
use telemetry::metrics::{Counters, Registry};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, LocalSet};

use crate::check;
use crate::config::{self, Config, DnsAddress, Enroll, Local, LogFormat, Mode, Redirect, World};
use crate::control_plane;
use crate::crl_file;
use crate::dedicated;
use crate::dump::Dumper;
use crate::endpoint::admin::Admin;
use crate::endpoint::ready::Ready;
use crate::endpoint::{self, metrics, ready};
use crate::finder::Finder;
use crate::mesh_file::{self, Fault};
use crate::meters;
use crate::node::{Keeper, Node, Parts, READY_TASK, Redirection, Source, lock};
use crate::own::OwnPod;
use crate::panics;
use crate::repair;
use crate::resolver::Names;
use crate::version::Version;

/// Events of the enrolment source that wait; each is a whole snapshot, so few are enough.
const EVENTS_MAX: usize = 4;
/// Orders of istio-cni that wait; it waits for the answer to each.
const ORDERS_MAX: usize = 1;
/// Search domains of this machine that are used.
const SEARCH_MAX: usize = 32;
/// Readiness task: names can be answered.
const DNS_TASK: &str = "dns proxy";
/// Readiness task: the data plane is built.
const PROXY_TASK: &str = "proxy";
/// Readiness task: the mesh's state is known.
const STATE_TASK: &str = "state manager";

/// Runs the daemon until it is told to end.
///
/// Errors: whatever keeps it from starting.
pub fn proxy() -> anyhow::Result<()> {
    let config = config::read(&World::of_process())?;
    let format = if config.log_format == LogFormat::Json {
        Format::Json
    } else {
        Format::Plain
    };
    let log = telemetry::log::init(format, config.log_filter.as_deref()).context("RUST_LOG")?;
    panics::watch();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("control runtime")?;
    let ended = LocalSet::new().block_on(&runtime, serve(config, log.clone()));
    if let Err(error) = &ended {
        tracing::error!(error = format!("{error:#}"), "ending");
    }
    log.flush();
    // a name that is being resolved must not hold up the end
    runtime.shutdown_background();
    ended
}

async fn serve(config: Config, log: LogHandle) -> anyhow::Result<()> {
    let version = Version::new(&config.istio_version);
    tracing::info!("version: {version}");
    raise_descriptors();
    tracing::info!("running with config: {}", config::view::settings(&config));
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let config = Arc::new(config);
    let mut tasks = vec![STATE_TASK, PROXY_TASK];
    tasks.extend(config.capture.dns.then_some(DNS_TASK));
    tasks.extend((config.mode == Mode::Shared).then_some(READY_TASK));
    let ready = Ready::new(tasks);
    let (quit, stop) = watch::channel(false);
    // before anything that takes time: as the first process of a container it would not even be killed by them
    let signals = Signals::new().context("signal handlers")?;
    tokio::task::spawn_local(signals.follow(quit.clone()));
    // before any socket is made: what a predecessor left captures this process too
    let _exempt = dedicated::exempt(&config)?;

    let (publisher, local) = mesh_state(&config).await?;
    let fault = Fault::default();
    let crl = config.crl_path.is_some().then(Crl::new);
    let xds = control_plane::subscribe(&config, &publisher)?;
    let shared = shared(&config, &log, &publisher, crl.as_ref(), xds.as_ref())?;
    let shared = Arc::new(shared);
    let shards = Arc::new(Shards::start(config.threads, &shared).context("data threads")?);
    shared.registry.process(&config.istio_version)?;
    panics::register(&shared.registry)?;
    let metrics = shared.registry.pods()?;

    if let (Some(path), Some(crl)) = (&config.crl_path, &crl) {
        crl_file::register(&shared.registry, crl)?;
        tokio::task::spawn_local(crl_file::follow(path.clone(), crl.clone()));
    }
    if let Some(xds) = &xds {
        control_plane::register(&shared.registry, xds)?;
    }

    let own = OwnPod::bind(&config)?;
    let views = Arc::default();
    let posture = Arc::default();
    let enroll_fault = Fault::default();
    let dumper = Dumper {
        config: Arc::clone(&config),
        version,
        shared: Arc::clone(&shared),
        shards: Arc::clone(&shards),
        views: Arc::clone(&views),
        posture: Arc::clone(&posture),
        fault: Arc::clone(&fault),
        enroll_fault: Arc::clone(&enroll_fault),
        own: own.as_ref().map(OwnPod::seen),
        xds: xds.clone(),
    };
    let admin = Admin {
        dumper,
        log: log.clone(),
        quit,
    };
    listen(&config, &ready, &shards, &shared, admin, &stop).await?;
    let early = dedicated::listen_early(&config)?;
    if let Some(Local::File(path)) = &config.local {
        let (path, publisher, fault) = (path.clone(), publisher.clone(), Arc::clone(&fault));
        tokio::task::spawn_local(mesh_file::follow(path, local, publisher, fault));
    }
    if !synced(xds.as_ref(), &stop).await {
        tracing::info!("ending before the control plane has said what the mesh is");
        return Ok(());
    }
    ready.done(STATE_TASK);
    let own = match own {
        Some(own) => {
            let ends = own.serve(&shards, stop.clone(), config.drain_deadline);
            Some(tokio::task::spawn_local(ends.await))
        }
        None => None,
    };
    check::at_start(&config).context("this machine lacks something")?;
    // last of what can fail: from here on a predecessor that still runs has let go
    let (redirection, cgroup) = redirection(&config)?;
    meters::register(&shared.registry, &shared, &shards, &fault)?;
    if let Redirection::Ebpf(capture) = &redirection {
        meters::register_capture(&shared.registry, capture)?;
    }
    let states = shared
        .registry
        .capture(DriftKind::ALL.map(DriftKind::label))?;
    let repair = match &redirection {
        Redirection::Ebpf(capture) => {
            let drift = states.drift.clone();
            Some(repair::Keeper::new(
                Arc::clone(capture),
                drift,
                ready.clone(),
            ))
        }
        Redirection::External(_) => None,
    };
    let holds = meters::holds(&shared.registry)?;
    ready.done(DNS_TASK);
    let served = match config.mode {
        Mode::Shared => {
            ready.done(PROXY_TASK);
            READY_TASK
        }
        // done once its only member is served
        Mode::Dedicated(_) => PROXY_TASK,
    };

    let (keeper, cgroups) = keeper(&config, &redirection, cgroup.as_deref(), holds);
    let (source, reporter, source_task) = source(&config, cgroup, &log).await?;
    let parts = Parts {
        config,
        redirection,
        early,
        keeper,
        cgroups,
        reporter,
        source_task,
        shards,
        shared,
        ready,
        served,
        metrics,
        repair,
        states,
        views,
        posture,
        enroll_fault,
    };
    Node::new(parts).run(source, stop).await?;
    if let Some(own) = own {
        // it has drained beside the pods, within the same time
        let _ = own.await;
    }
    tracing::info!("drained, ending");
    Ok(())
}

/// Starts capture, or says where others bring the connections. The cgroup that holds all pods goes along, where it is ours to know.
fn redirection(config: &Config) -> anyhow::Result<(Redirection, Option<PathBuf>)> {
    if let Some(options) = external_options(config) {
        return Ok((Redirection::External(options), None));
    }
    let (capture, cgroup) = start_capture(config)?;
    let capture = Arc::new(Mutex::new(capture));
    Ok((Redirection::Ebpf(capture), Some(cgroup)))
}

/// How the listeners are that others bring connections to; none where we capture.
pub fn external_options(config: &Config) -> Option<external::Options> {
    let Redirect::External { mark, reuse_port } = config.capture.redirect else {
        return None;
    };
    Some(external::Options {
        mark,
        reuse_port,
        transparent: config.capture.keep_source,
        ipv6: config.capture.ipv6,
        dns: config.capture.dns,
        dns_at: match config.capture.dns_address {
            DnsAddress::Localhost(port) => external::DnsAt::Loopback(port),
            DnsAddress::At(address) => external::DnsAt::One(address),
        },
        socks: config.socks5,
        proc: config.capture.host_proc.clone(),
    })
}

/// Holds pods until they are enrolled, if that is wanted. Cgroups are followed where the source knows pods by API alone.
fn keeper(
    config: &Config,
    redirection: &Redirection,
    cgroup: Option<&Path>,
    counts: Counters,
) -> (Keeper, Option<mpsc::Receiver<CgroupEvent>>) {
    let Redirection::Ebpf(capture) = redirection else {
        return (Keeper::idle(), None);
    };
    let Some(rule) = config.capture.hold else {
        // a predecessor may have asked for it
        if let Err(error) = lock(capture).hold_unknown(None) {
            tracing::warn!(%error, "pods may still be held as a former daemon wanted");
        }
        return (Keeper::idle(), None);
    };
    let followed = cgroup.filter(|_| matches!(config.enroll, Enroll::Kubernetes { .. }));
    let only_pods = followed.filter(|root| enroll::cgroups::holds_only_pods(root));
    if let Some(root) = followed.filter(|_| only_pods.is_none()) {
        tracing::warn!(cgroup = %root.display(), "new pods are held only once the API server has told about them: set CAPTURE_CGROUP to the directory of the pods alone, such as kubepods.slice");
    }
    let existing = only_pods.map(enroll::cgroups::scan);
    let finder = place::Finder::new(&config.capture.host_proc);
    let finder = finder
        .inspect_err(|error| tracing::warn!(%error, "pods of the node's network are held until they are known"))
        .ok();
    let keeper = Keeper::new(capture, rule, existing, finder, counts);
    let cgroups = followed.map(|root| enroll::cgroups::watch(root.to_owned()));
    (keeper, cgroups)
}

/// Starts the source that says which pods are ours.
async fn source(
    config: &Config,
    cgroup: Option<PathBuf>,
    log: &LogHandle,
) -> anyhow::Result<(Source, Option<Reporter>, AbortHandle)> {
    let (events, seen) = mpsc::channel(EVENTS_MAX);
    match &config.enroll {
        Enroll::Own => {
            let member = config.mode.member().context("PROXY_MODE=dedicated")?;
            let member = own::Member {
                namespace: member.namespace.as_str().into(),
                name: member.name.as_str().into(),
                service_account: member.service_account.as_str().into(),
            };
            let stay = own::source(&member, events).context("PROXY_MODE=dedicated")?;
            let task = tokio::task::spawn_local(stay);
            Ok((Source::Events(seen), None, task.abort_handle()))
        }
        Enroll::File(path) => {
            let follow =
                enroll::file::source(path.clone(), rules(config), Default::default(), events);
            let task = tokio::task::spawn_local(follow);
            Ok((Source::Events(seen), None, task.abort_handle()))
        }
        Enroll::Kubernetes { node } => {
            let settings = kubernetes::Config {
                node_name: node.clone(),
                host_proc: config.capture.host_proc.clone(),
                cgroup_root: match cgroup {
                    Some(cgroup) => cgroup,
                    None => own_cgroup::default_cgroup().context("CAPTURE_CGROUP is not set")?,
                },
                rules: rules(config),
                kubeconfig: config.kubeconfig.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            };
            let (reporter, follow) = kubernetes::start(settings, events)
                .await
                .context("ENROLL=kubernetes")?;
            let task = tokio::task::spawn_local(follow);
            Ok((Source::Events(seen), Some(reporter), task.abort_handle()))
        }
        Enroll::Zds {
            socket,
            strict_exit,
        } => {
            let (orders, ordered) = mpsc::channel(ORDERS_MAX);
            let (standing, stands) = watch::channel(zds::Standing::default());
            let settings = zds::Config {
                path: socket.clone(),
                strict_exit: *strict_exit,
            };
            let log = log.clone();
            let task = tokio::task::spawn_local(async move {
                let broken = zds::run(settings, orders, standing).await;
                tracing::error!(error = %broken, "istio-cni broke the protocol, ending at once (ZDS_STRICT_EXIT)");
                log.flush();
                std::process::exit(1);
            });
            Ok((Source::Orders(ordered, stands), None, task.abort_handle()))
        }
    }
}

/// Capture, and the cgroup of all pods.
fn start_capture(config: &Config) -> anyhow::Result<(Capture, PathBuf)> {
    let cgroup = dedicated::capture_cgroup(config).context("CAPTURE_CGROUP is not set")?;
    let daemon_cgroup_id = own_cgroup::settle(&cgroup)
        .context("the daemon needs a cgroup of its own, so that it can be told from pods")?;
    let settings = capture::Config {
        cgroup: cgroup.clone(),
        pins: config.capture.pins.clone(),
        daemon_cgroup_id,
        dedicated: config.mode.member().is_some(),
        exempt_sources: config.capture.exempt_sources.clone(),
        host_proc: config.capture.host_proc.clone(),
        kubelet_cgroup: config.capture.kubelet_cgroup.clone(),
    };
    let capture = Capture::start(settings).context("CAPTURE=ebpf")?;
    Ok((capture, cgroup))
}

/// Waits until the mesh's state is known. Nothing is captured before: an old daemon that still serves goes on until then.
///
/// `false` when the process is told to end first.
async fn synced(xds: Option<&control::xds::Client>, stop: &watch::Receiver<bool>) -> bool {
    let Some(xds) = xds else {
        return true;
    };
    let (mut synced, mut stop) = (xds.synced(), stop.clone());
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => false,
        known = synced.wait_for(|synced| *synced) => known.is_ok(),
    }
}

/// The state to begin with, and what the local file or text holds of it.
async fn mesh_state(config: &Config) -> anyhow::Result<(Publisher, Vec<MeshResource>)> {
    let resources = match &config.local {
        Some(Local::File(path)) => mesh_file::read(path)?,
        Some(Local::Inline(text)) => mesh::local::parse(text).context("LOCAL_XDS")?,
        None => Vec::new(),
    };
    // a machine of its own may be of no node, as the control plane sees it
    let node = config
        .node_name
        .clone()
        .filter(|_| config.mode == Mode::Shared);
    let node = node.unwrap_or_default();
    let publisher = Publisher::new(Index::for_node(node));
    publisher.apply_local(&resources).await;
    Ok((publisher, resources))
}

fn shared(
    config: &Config,
    log: &LogHandle,
    publisher: &Publisher,
    crl: Option<&Crl>,
    xds: Option<&control::xds::Client>,
) -> anyhow::Result<Shared> {
    let certs = control_plane::certificates(config, crl)?;
    let hbone = hbone::Settings {
        stream_window: config.http2.stream_window,
        connection_window: config.http2.connection_window,
        frame_size: config.http2.frame_size,
        client_streams: config.http2.pool_max_streams.into(),
        pool_idle: config.http2.pool_idle,
        ..Default::default()
    };
    let data_plane = proxy::Config {
        network: config.network.as_str().into(),
        hbone,
        response_baggage: config.response_baggage,
        localhost_app_tunnel: config.localhost_app_tunnel,
        policy_info: config.policy_info,
        ipv4_only: !config.capture.ipv6,
        socks: config.socks5,
        dns: proxy::DnsConfig {
            on: config.capture.dns,
            cluster_domain: config.cluster_domain.as_str().into(),
            preferred_namespace: config.preferred_namespace.as_deref().map(Into::into),
            search: config.mode.member().map(|_| search_domains()),
        },
    };
    let finder = xds.and_then(control::xds::Client::finder);
    Ok(Shared {
        config: data_plane,
        index: publisher.subscribe(),
        state: publisher.current(),
        certs,
        access: log.access(),
        registry: Registry::new(),
        refusals: Refusals::default(),
        resolver: Arc::new(Names::of_node(!config.capture.ipv6)),
        finder: finder.map(|finder| Arc::new(Finder(finder)) as _),
    })
}

/// The search domains of this machine, which the resolver library of its applications appends.
fn search_domains() -> Arc<[Str]> {
    match hickory_resolver::system_conf::read_system_conf() {
        Ok((config, _)) => {
            let all = config.domain().into_iter().chain(config.search());
            let mut list: Vec<Str> = Vec::new();
            for name in all.filter(|name| !name.is_root()) {
                let name: Str = (name.to_lowercase().to_ascii().trim_end_matches('.')).into();
                if !list.contains(&name) && list.len() < SEARCH_MAX {
                    list.push(name);
                }
            }
            list.into()
        }
        Err(error) => {
            tracing::warn!(%error, "no search domains: short names of the mesh are not completed");
            Arc::default()
        }
    }
}

pub fn rules(config: &Config) -> Rules {
    let namespaces_excluded = config
        .excluded_namespaces
        .iter()
        .map(|n| n.as_str().into())
        .collect();
    Rules {
        namespaces_excluded,
        ..Rules::default()
    }
}

/// Binds and serves the endpoints. IPv6 loopback is left out where the machine has none.
async fn listen(
    config: &Config,
    ready: &Ready,
    shards: &Shards,
    shared: &Arc<Shared>,
    admin: Admin,
    stop: &watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let v6 = config.capture.ipv6 && has_v6_loopback();
    let probe =
        endpoint::bind(wildcard(v6, config.readiness_port)).context("readiness endpoint")?;
    let (told, until) = (ready.clone(), stop.clone());
    shards
        .run(move || async move {
            let answer = move |request: hyper::Request<hyper::body::Incoming>| {
                let answer = ready::answer(&told, &request);
                async move { answer }
            };
            end_of("readiness", endpoint::serve(probe, until, answer).await);
        })
        .await;
    let loopback = [
        Some(IpAddr::from(Ipv4Addr::LOCALHOST)),
        v6.then_some(IpAddr::from(Ipv6Addr::LOCALHOST)),
    ];
    for address in loopback.into_iter().flatten() {
        let listener = endpoint::bind(SocketAddr::new(address, config.admin_port))
            .context("admin endpoint")?;
        let (admin, until) = (admin.clone(), stop.clone());
        tokio::task::spawn_local(async move {
            end_of(
                "admin",
                endpoint::serve(listener, until, move |request| {
                    admin.clone().answer(request)
                })
                .await,
            );
        });
    }
    let listener = endpoint::bind(wildcard(v6, config.stats_port)).context("metrics endpoint")?;
    let (registry, until) = (shared.registry.clone(), stop.clone());
    tokio::task::spawn_local(async move {
        let answer = move |request: hyper::Request<hyper::body::Incoming>| {
            let answer = metrics::answer(&registry, &request);
            async move { answer }
        };
        end_of("metrics", endpoint::serve(listener, until, answer).await);
    });
    Ok(())
}

fn end_of(endpoint: &str, ended: std::io::Result<()>) {
    if let Err(error) = ended {
        tracing::error!(endpoint, %error, "endpoint failed");
    }
}

fn wildcard(v6: bool, port: u16) -> SocketAddr {
    let any = if v6 {
        IpAddr::from(Ipv6Addr::UNSPECIFIED)
    } else {
        IpAddr::from(Ipv4Addr::UNSPECIFIED)
    };
    SocketAddr::new(any, port)
}

fn has_v6_loopback() -> bool {
    std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
        .is_ok_and(|off| off.trim() == "0")
}

/// Raises the soft limit of descriptors to the hard one: a busy node needs two for each connection.
fn raise_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of descriptors could not be raised");
    }
}

/// The signals that end the process. Once this exists, they no longer do so by default.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// SIGTERM and the first SIGINT end gracefully; a second SIGINT ends at once.
    async fn follow(mut self, quit: watch::Sender<bool>) {
        let mut interrupted = false;
        loop {
            tokio::select! {
                _ = self.terminate.recv() => tracing::info!("received SIGTERM, ending gracefully"),
                _ = self.interrupt.recv() => {
                    if std::mem::replace(&mut interrupted, true) {
                        std::process::exit(0);
                    }
                    tracing::info!("received SIGINT, ending gracefully");
                }
            }
            quit.send_replace(true);
        }
    }
}
