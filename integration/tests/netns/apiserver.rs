//! An API server that has troubles, and daemons that live through them: what is known stays in force, nothing flaps.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use integration::apiserver::{Content, Fault, Gone, How, Kind, Order, Rule};
use integration::{Driver, Layout, PodPlan, world};

use crate::cluster::{Cluster, IN_FORCE_MAX, soon};
use crate::support::{SOON, hold, still_held};

/// How long the API server is away.
const AWAY: Duration = Duration::from_secs(60);
/// How long it is silent, which takes a while to be noticed.
const SILENT: Duration = Duration::from_secs(20);
/// Most warnings of a daemon about an API server that is away for a minute.
const WARNINGS_MAX: usize = 15;
/// Most time until a daemon has come back to an API server, with its longest pause.
const BACK_MAX: Duration = Duration::from_secs(75);

/// Labels or un-labels the pod outside of the mesh, and waits until that is in force.
fn turns(cluster: &Cluster, ambient: bool) -> Result<()> {
    let mode = if ambient { "ambient" } else { "none" };
    cluster.world.edit_pod("outsider-0", |pod| {
        pod["metadata"]["labels"]["istio.io/dataplane-mode"] = mode.into();
    });
    let wanted = ambient.then_some("enabled");
    integration::until(BACK_MAX, "the label in force", || {
        Ok((cluster.world.redirection("outsider-0").as_deref() == wanted).then_some(()))
    })
    .map_err(|error| error.context(cluster.daemons[1].tail()))?;
    if ambient {
        cluster.captured("outsider-0")
    } else {
        cluster.released("outsider-0")
    }
}

/// Patches of pods that nothing was to happen to.
fn flapped(cluster: &Cluster, from: usize) -> Vec<String> {
    let patches = cluster.patches(from);
    let others = patches.iter().filter(|one| one.name() != "outsider-0");
    others
        .map(|one| format!("{} {}", one.line, one.body))
        .collect()
}

fn away(
    cluster: &mut Cluster,
    go: fn(&mut Cluster, bool) -> Result<()>,
    time: Duration,
) -> Result<()> {
    let plan = PodPlan::new("shop", "extra-0", 0);
    let extra = cluster.world.start_pod(&plan)?;
    cluster.captured("extra-0")?;
    let (client, server) = (
        cluster.pod("client-0").clone(),
        cluster.pod("server-0").clone(),
    );
    let _echo = server.serve(&["echo"])?;
    let held = hold(&client, server.at(9000))?;
    let from = cluster.world.api().record().len();
    let logs: Vec<_> = cluster
        .daemons
        .iter()
        .map(|daemon| daemon.log_len())
        .collect();
    let since = Instant::now();
    go(cluster, false)?;
    cluster.authenticated(&client, &server, &[])?;
    cluster.world.delete_pod("extra-0")?;
    let mut unready = None;
    while since.elapsed() < time {
        cluster.authenticated(&client, &server, &[])?;
        for daemon in &cluster.daemons {
            let ready = daemon.get(15021, "/healthz/ready")?;
            if ready.status != 200 {
                unready = Some(ready.body);
            }
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    for (daemon, &from) in cluster.daemons.iter().zip(&logs) {
        let log = daemon.log_from(from);
        let said: Vec<_> = log
            .lines()
            .filter(|line| line.contains("\twarn\t"))
            .collect();
        ensure!(!said.is_empty(), "nothing was said about it:\n{log}");
        ensure!(
            said.len() <= WARNINGS_MAX,
            "too much was said:\n{}",
            said.join("\n")
        );
    }
    go(cluster, true)?;
    turns(cluster, true)?;
    turns(cluster, false)?;
    cluster.daemons[0].wait_dump(SOON, "the end of extra-0", |dump| {
        world::is_out(dump, &extra.uid)
    })?;
    still_held(&held)?;
    cluster.authenticated(&client, &server, &[])?;
    let flapped = flapped(cluster, from);
    let expected = |line: &String| line.contains("/pods/extra-0");
    ensure!(flapped.iter().all(expected), "{flapped:?}");
    ensure!(
        unready.is_none(),
        "not ready without an API server: {unready:?}"
    );
    Ok(())
}

#[test]
fn an_api_server_that_is_away_for_a_minute_is_not_missed() -> Result<()> {
    let mut cluster = Cluster::labelled(Driver::Cgroupfs, &[])?;
    let go = |cluster: &mut Cluster, there| {
        if there {
            cluster.world.api_mut().restart()
        } else {
            cluster.world.api_mut().stop();
            Ok(())
        }
    };
    away(&mut cluster, go, AWAY)
}

#[test]
fn an_api_server_whose_packets_vanish_is_found_again() -> Result<()> {
    let cluster = Cluster::labelled(Driver::Systemd, &[])?;
    let (client, server) = (
        cluster.pod("client-0").clone(),
        cluster.pod("server-0").clone(),
    );
    let _echo = server.serve(&["echo"])?;
    let from = cluster.world.api().record().len();
    cluster.world.plug_api(false)?;
    let since = Instant::now();
    while since.elapsed() < SILENT {
        cluster.authenticated(&client, &server, &[])?;
        std::thread::sleep(Duration::from_millis(500));
    }
    cluster.world.plug_api(true)?;
    turns(&cluster, true)?;
    ensure!(
        flapped(&cluster, from).is_empty(),
        "{:?}",
        flapped(&cluster, from)
    );
    Ok(())
}

#[test]
fn broken_watches_are_begun_anew_without_flapping() -> Result<()> {
    let cluster = Cluster::labelled(Driver::Cgroupfs, &[])?;
    let (client, server) = (cluster.pod("client-0"), cluster.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let held = hold(client, server.at(9000))?;
    let api = cluster.world.api();
    let from = api.record().len();
    let mut ambient = true;
    for order in [
        Order::Bookmark,
        Order::End,
        Order::Break,
        Order::BreakInLine,
        Order::Garbage,
        Order::Expire,
    ] {
        api.order(order);
        turns(&cluster, ambient).map_err(|error| error.context(format!("after {order:?}")))?;
        ambient = !ambient;
    }
    for gone in [Gone::InStream, Gone::Status] {
        api.settings().gone = gone;
        api.forget();
        turns(&cluster, ambient).map_err(|error| error.context(format!("after 410 {gone:?}")))?;
        ambient = !ambient;
    }
    still_held(&held)?;
    ensure!(
        flapped(&cluster, from).is_empty(),
        "{:?}",
        flapped(&cluster, from)
    );
    Ok(())
}

#[test]
fn refused_lists_and_patches_are_tried_again() -> Result<()> {
    let cluster = Cluster::labelled(Driver::Systemd, &[])?;
    let api = cluster.world.api();
    let from = api.record().len();
    let mut ambient = true;
    for how in [
        How::Status(429, Some(1)),
        How::Status(500, None),
        How::Status(503, None),
        How::Drop,
    ] {
        for verb in ["list", "watch", "patch"] {
            api.fault(Fault::new(verb, "", how).times(3));
        }
        api.change(Content::compact);
        api.order(Order::Break);
        turns(&cluster, ambient).map_err(|error| error.context(format!("after {how:?}")))?;
        ambient = !ambient;
        api.heal();
    }
    // somebody else changes the pod at the same time
    api.fault(Fault::new("patch", "pods", How::Status(409, None)).times(2));
    turns(&cluster, ambient)?;
    ensure!(
        flapped(&cluster, from).is_empty(),
        "{:?}",
        flapped(&cluster, from)
    );
    Ok(())
}

#[test]
fn requests_that_are_never_answered_do_not_stop_the_rest() -> Result<()> {
    let cluster = Cluster::labelled(Driver::Cgroupfs, &[])?;
    let api = cluster.world.api();
    // one pod's annotation hangs, another's does not wait for it
    api.fault(Fault::new("patch", "pods", How::Hang).times(1));
    turns(&cluster, true)?;
    api.heal();
    turns(&cluster, false)
}

#[test]
fn without_the_right_to_patch_pods_are_captured_and_the_log_says_what_lacks() -> Result<()> {
    let cluster = Cluster::up(&Layout::standard(), Driver::Cgroupfs, &[])?;
    cluster.world.api().settings().rules = Rule::without("patch", "pods");
    let from = cluster.daemons[0].log_len();
    cluster.world.label_namespace("shop", true);
    for name in ["client-0", "server-0"] {
        let pod = cluster.pod(name);
        let daemon = cluster.daemon_of(pod);
        daemon.wait_dump(IN_FORCE_MAX, "served", |dump| world::is_in(dump, &pod.uid))?;
    }
    cluster.daemons[0].wait_log(from, &["patch", "pods", "ClusterRole"])?;
    assert_eq!(cluster.world.redirection("client-0"), None);
    // the right is given
    cluster.world.api().settings().rules = Rule::minimal();
    integration::until(BACK_MAX, "the annotation", || {
        Ok(cluster
            .world
            .redirection("client-0")
            .filter(|value| value == "enabled"))
    })?;
    cluster.captured("client-0")
}

#[test]
fn without_the_right_to_list_nothing_is_ready_and_the_log_says_what_lacks() -> Result<()> {
    for (verb, resource) in [("list", "namespaces"), ("watch", "pods")] {
        let world = crate::cluster::bare(&Layout::standard(), Driver::Cgroupfs)?;
        world.api().settings().rules = Rule::without(verb, resource);
        let mut daemon = integration::Daemon::launch(world.node(0), &[])?;
        daemon.wait_log(0, &[verb, resource, "ClusterRole"])?;
        if verb == "list" {
            let ready = daemon.get(15021, "/healthz/ready")?;
            assert_eq!(ready.status, 500, "{}", ready.body);
        }
        world.api().settings().rules = Rule::minimal();
        let uid = world.pod("client-0").uid.clone();
        world.label_namespace("shop", true);
        daemon.wait_ready()?;
        daemon.wait_dump(BACK_MAX, "served", |dump| world::is_in(dump, &uid))?;
    }
    Ok(())
}

#[test]
fn a_token_that_is_exchanged_is_read_again() -> Result<()> {
    let cluster = Cluster::labelled(Driver::Cgroupfs, &[])?;
    let api = cluster.world.api();
    std::fs::write(api.token_file(), "second-token")?;
    api.settings().tokens = vec!["second-token".to_owned()];
    api.order(Order::Break);
    turns(&cluster, true)
}

#[test]
fn requests_are_modest() -> Result<()> {
    let cluster = Cluster::labelled(Driver::Cgroupfs, &[])?;
    let api = cluster.world.api();
    let asked = api.record().since(0);
    for one in &asked {
        ensure!(
            one.agent.starts_with("ztunnel/"),
            "{}: {}",
            one.line,
            one.agent
        );
        let pods = one.is("list", "pods") || one.is("watch", "pods");
        let own = one.line.contains("fieldSelector=spec.nodeName%3Dnode")
            || one.line.contains("fieldSelector=spec.nodeName=node");
        ensure!(
            !pods || own,
            "pods of other nodes are asked for: {}",
            one.line
        );
    }
    let watches = |resource| asked.iter().filter(|one| one.is("watch", resource)).count();
    assert_eq!((watches("pods"), watches("namespaces")), (2, 2));
    // a change that matters to nobody leads to no request
    let from = api.record().len();
    cluster.world.edit_pod("client-0", |pod| {
        pod["status"]["conditions"] = serde_json::json!([])
    });
    api.change(|content| {
        let pod = content.get(Kind::Pods, "shop", "server-0").cloned();
        if let Some(pod) = pod {
            let mut pod = (*pod).clone();
            pod["metadata"]["labels"]["version"] = "2".into();
            content.put(Kind::Pods, pod);
        }
    });
    cluster.world.label_namespace("other", true);
    cluster.captured("outsider-0")?;
    soon("only the one patch", || cluster.patches(from).len() == 1)?;
    cluster.nothing_refused()
}
