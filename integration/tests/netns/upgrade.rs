//! Daemons are replaced under load, again and again, on both nodes: nothing fails and nothing is cut, and the old ones
//! end by themselves once what they hold is over.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::cni::{Rules, Site};
use integration::istiod::Xds;
use integration::{App, Daemon, Layout, Node, Pod, World, cni, place};
use nix::sys::signal::Signal;

use crate::support::{SOON, governed, world};

/// How long new connections are made.
const LOAD: Duration = Duration::from_secs(60);
/// Most time for everything to end after that.
const END_MAX: Duration = Duration::from_secs(60);
/// How often each daemon is replaced within that time.
const ROUNDS: u32 = 3;
/// Long connections that are open from the beginning.
const LONG: usize = 100;
/// Further ones, opened through each generation of daemons.
const LATER: usize = 10;
/// How long an old daemon may take, which is far longer than the test.
const DRAIN: [(&str, &str); 1] = [("DRAIN_MAX", "10m")];
/// How soon a daemon that serves nothing has to be gone.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Everything that must not notice.
struct Load {
    stop: PathBuf,
    client: Pod,
    short: Vec<App>,
    long: Vec<App>,
}

impl Load {
    /// Begins, and waits until all of it works.
    fn begin(dir: &Path, client: &Pod, server: &Pod) -> Result<Self> {
        let mut load = Self {
            stop: dir.join("enough"),
            client: client.clone(),
            short: Vec::new(),
            long: Vec::new(),
        };
        for to in [
            server.at(9000),
            server.at6(9000),
            "10.96.0.10:9000".parse()?,
        ] {
            let to = to.to_string();
            let args = [
                "load",
                "--to",
                &to,
                "--threads",
                "8",
                "--count",
                "100",
                "--stop-file",
            ];
            let app = load.start(&args)?;
            app.wait_line(SOON, "done 100", |line| line == "done 100")?;
            load.short.push(app);
        }
        let to = server.at(8082).to_string();
        let stream = load.start(&["stream", "--to", &to, "--stop-file"])?;
        stream.wait_line(SOON, "the stream", |line| line == "open 1")?;
        load.long.push(stream);
        load.hold(LONG, server)?;
        Ok(load)
    }

    /// Opens further long connections.
    fn hold(&mut self, count: usize, server: &Pod) -> Result<()> {
        let [v4, v6] = [server.at(9000), server.at6(9000)].map(|to: SocketAddr| to.to_string());
        let text = count.to_string();
        let args = [
            "many",
            "--to",
            &v4,
            "--to",
            &v6,
            "--count",
            &text,
            "--stop-file",
        ];
        let app = self.start(&args)?;
        app.wait_line(2 * SOON, "all open", |line| line == format!("open {count}"))?;
        self.long.push(app);
        Ok(())
    }

    /// `args` end where the name of the stop file is to stand.
    fn start(&self, args: &[&str]) -> Result<App> {
        let binary = place::binary("podapp")?;
        let (binary, stop) = (binary.to_string_lossy(), self.stop.to_string_lossy());
        let mut all = vec![&*binary];
        all.extend(args);
        all.push(&stop);
        self.client.spawn(&all)
    }

    /// Ends, and says how many connections were made; anything that failed or was cut is an error.
    fn end(mut self) -> Result<u64> {
        fs::write(&self.stop, "").context("end the load")?;
        let mut made = 0;
        for app in &mut self.short {
            let told = app.finish(END_MAX)?.1.context("the load told nothing")?;
            ensure!(told["failed"] == 0, "new connections: {told}");
            made += told["ok"].as_u64().unwrap_or_default();
        }
        for app in &mut self.long {
            let told = app.finish(END_MAX)?.1.context("a held one told nothing")?;
            let cut = told["cut"].as_array().is_none_or(|cut| !cut.is_empty());
            ensure!(!cut, "long connections: {told}");
            ensure!(told["exchanges"].as_u64() > Some(0), "{told}");
        }
        Ok(made)
    }
}

/// The whole of it; `nodes` say with what their daemons are started.
fn upgrade(world: &World, nodes: [&Node; 2], mut daemons: Vec<Daemon>) -> Result<()> {
    let (client, server) = (world.pod("client-0"), world.pod("server-0"));
    let _apps = (server.serve(&["echo"])?, server.serve(&["h2"])?);
    let begun = Instant::now();
    let mut load = Load::begin(&world.dir(), client, server)?;
    let mut old = Vec::new();
    for round in 0..ROUNDS {
        for (index, node) in nodes.iter().enumerate() {
            let mut next = Daemon::start(node, &DRAIN).with_context(|| {
                format!("round {round}, log of the old:\n{}", daemons[index].tail())
            })?;
            std::mem::swap(&mut daemons[index], &mut next);
            next.signal(Signal::SIGTERM)?;
            old.push(next);
        }
        load.hold(LATER, server)?;
        // the rounds are spread over the time that the load is to take
        let until = LOAD * (round + 1) / (ROUNDS + 1);
        thread::sleep(until.saturating_sub(begun.elapsed()));
    }
    thread::sleep(LOAD.saturating_sub(begun.elapsed()));
    for daemon in &mut old {
        ensure!(
            daemon.alive(),
            "an old daemon ended before its connections:\n{}",
            daemon.tail()
        );
    }
    let made = load.end().with_context(|| troubles(&old, &daemons))?;
    ensure!(made > 1000, "only {made} connections");
    for daemon in &mut old {
        let exit = daemon.wait_exit(END_MAX)?;
        ensure!(exit.status.success(), "{}\n{}", exit.status, daemon.tail());
    }
    println!("{made} connections, {:?}", begun.elapsed());
    Ok(())
}

/// What the daemons said above the level info, and how their lives went.
fn troubles(old: &[Daemon], new: &[Daemon]) -> String {
    let parts = ["\terror\t", "\twarn\t", "drain", "successor", "panicked"];
    let mut said = String::new();
    for daemon in old.iter().chain(new) {
        let name = daemon.netns_name();
        let log = daemon.log();
        let lines = log
            .lines()
            .filter(|line| parts.iter().any(|part| line.contains(part)));
        for line in lines.take(12) {
            said.push_str(&format!("{name}: {line}\n"));
        }
    }
    said
}

#[test]
fn with_capture_of_its_own_no_connection_fails_or_is_cut() -> Result<()> {
    let world = world(&Layout::standard())?;
    let daemons: Vec<_> = (world.nodes().iter())
        .map(|node| Daemon::start(node, &DRAIN))
        .collect::<Result<_>>()?;
    world.label("shop", true, &daemons.iter().collect::<Vec<_>>())?;
    upgrade(&world, [world.node(0), world.node(1)], daemons)
}

#[test]
fn under_istio_cni_no_connection_fails_or_is_cut() -> Result<()> {
    let world = world(&Layout::standard())?;
    let sites = [Site::raise(world.node(0))?, Site::raise(world.node(1))?];
    let daemons: Vec<_> = (sites.iter())
        .map(|site| Daemon::start(&site.node, &DRAIN))
        .collect::<Result<_>>()?;
    for (index, name) in ["client-0", "server-0"].into_iter().enumerate() {
        sites[index].enroll(world.pod(name), &Rules::default())?;
    }
    world.model().label("shop", true);
    world.publish_state()?;
    world.settled_state(&daemons.iter().collect::<Vec<_>>())?;
    upgrade(&world, [&sites[0].node, &sites[1].node], daemons)
}

/// SIGTERM, and it is gone at once and well.
fn ends_at_once(daemon: &mut Daemon) -> Result<()> {
    let status = format!("/proc/{}/status", daemon.pid());
    integration::until(SOON, "a handler for SIGTERM", || {
        let text = fs::read_to_string(&status)?;
        let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        // bit 0 is signal 1
        Ok(caught.filter(|mask| mask & (1 << (Signal::SIGTERM as u32 - 1)) != 0))
    })?;
    let exit = daemon.terminate()?;
    ensure!(exit.status.success(), "{}\n{}", exit.status, daemon.tail());
    ensure!(exit.took < AT_ONCE, "{:?}\n{}", exit.took, daemon.tail());
    Ok(())
}

#[test]
fn before_the_first_sync_it_ends_at_once() -> Result<()> {
    let world = governed(&Layout::standard())?;
    world.istiod().behave(Xds::Silent);
    let node = world.node(0);
    let mut daemon = Daemon::launch(node, &DRAIN)?;
    ends_at_once(&mut daemon)?;
    // and under istio-cni, which it does not even dial before that
    let site = Site::raise(node)?;
    let mut daemon = Daemon::launch(&site.node, &DRAIN)?;
    ends_at_once(&mut daemon)?;
    ensure!(
        site.agent.record().is_empty(),
        "{:?}",
        site.agent.record().since(0)
    );
    Ok(())
}

#[test]
fn without_an_agent_it_ends_at_once() -> Result<()> {
    let world = world(&Layout::standard())?;
    let mut daemon = Daemon::launch(&cni::settings(world.node(0)), &DRAIN)?;
    ends_at_once(&mut daemon)
}
