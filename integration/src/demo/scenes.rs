//! The steps of the story, in order; each looks for itself whether what it tells is true.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::nothing_left;
use super::stage::{ECHO, HTTP, SECRET, SHOP, Setting, Stage, VIP, describe};
use super::tell::Teller;
use crate::{AccessLine, App, Daemon, Packets, Pod, Policy, wait};

/// One step: what it is called, what is said before, and what is done.
pub struct Scene {
    /// name in the JSON report
    pub step: &'static str,
    /// headline
    pub title: &'static str,
    /// what the reader should know
    pub prose: &'static str,
    /// takes the stage, gives it back with what was verified
    pub play: fn(Option<Stage>, &Teller) -> Played,
}

/// The stage for the next scene, and what was verified in a few words.
pub type Played = Result<(Option<Stage>, String)>;

/// Most time for a running application to notice something.
const NOTICE_MAX: Duration = Duration::from_secs(10);
/// Port of HBONE.
const HBONE: u16 = 15008;
/// Connections per burst of the load under which daemons are replaced.
const BURST: &str = "200";
/// The policy of the story.
const POLICY: &str = "no-raw-tcp";

/// The first scene: there is no stage yet.
pub const RAISE: Scene = Scene {
    step: "world",
    title: "Two nodes, three pods",
    prose: "Nodes and pods are network namespaces with their cgroups, as Kubernetes makes them. Each node has one \
            ztunnel daemon, outside of the pods. In the pods run plain applications: no sidecar, no proxy variable, \
            no certificate.",
    play: |_, teller| raise(Setting::Files, teller),
};

/// The same under a control plane.
pub const RAISE_UNDER_ISTIOD: Scene = Scene {
    prose: "Nodes and pods are network namespaces with their cgroups, as Kubernetes makes them. Each node has one \
            ztunnel daemon, outside of the pods. Workloads, services, policies and certificates come from a control \
            plane that speaks istiod's protocols over TLS: delta xDS, and a CA that signs one request per identity. \
            In the pods run plain applications.",
    play: |_, teller| raise(Setting::Istiod, teller),
    ..RAISE
};

/// Raises the stage and shows who is on it.
pub(super) fn raise(setting: Setting, teller: &Teller) -> Played {
    let stage = Stage::raise(setting)?;
    let mut pods = vec![
        (&stage.web, "curl"),
        (&stage.cart, "HTTP server, TCP echo"),
        (&stage.ledger, "HTTP server"),
    ];
    if let Some(front) = &stage.front {
        pods.extend([(&front.guest, "curl"), (&front.gate, "nothing yet")]);
    }
    for (pod, what) in pods {
        teller.show(&format!(
            "node{}  {}/{}  {}  {what}",
            pod.node + 1,
            pod.namespace,
            pod.name,
            pod.v4
        ));
    }
    Ok((
        Some(stage),
        "both daemons ready, no pod enrolled".to_owned(),
    ))
}

/// The scenes between the first and the last.
pub const SCENES: [Scene; 9] = [
    Scene {
        step: "plaintext",
        title: "Before: the wire can be read",
        prose: "web-0 on node 1 asks cart-0 on node 2 and sends a card number along. Here is what anyone between the \
                nodes sees.",
        play: |stage, teller| with(stage, |stage| plaintext(stage, teller)),
    },
    Scene {
        step: "label",
        title: "One label",
        prose: "The namespace shop gets istio.io/dataplane-mode: ambient. The daemons see it and attach eBPF programs \
                to its pods. No pod restarts, and a connection that is already open stays as it is.",
        play: |stage, teller| with(stage, |stage| label(stage, teller)),
    },
    Scene {
        step: "tunnel",
        title: "The same curl again",
        prose: "The kernel now hands web-0's connection to the daemon of its node, which reaches the other node's \
                daemon over HBONE: HTTP/2 CONNECT inside mutual TLS 1.3, on port 15008.",
        play: |stage, teller| with(stage, |stage| tunnel(stage, teller)),
    },
    Scene {
        step: "addresses",
        title: "Nobody in the pods can tell",
        prose: "The server sees the client's own address, and the client's getpeername() names the server it asked \
                for: programs that look at addresses keep working. The service's virtual address works as well, \
                though no kube-proxy runs here.",
        play: |stage, teller| with(stage, |stage| addresses(stage, teller)),
    },
    Scene {
        step: "identities",
        title: "Who talked to whom",
        prose: "Both daemons write one line per connection, with the identities that the certificates proved. Here is \
                the curl, as node 1 and node 2 saw it.",
        play: |stage, teller| with(stage, |stage| identities(stage, teller)),
    },
    Scene {
        step: "deny",
        title: "A policy refuses, and cuts",
        prose: "web-0 holds a raw TCP connection to cart-0, port 9000. Then a DENY policy forbids just that. HTTP on \
                port 8080 stays allowed.",
        play: |stage, teller| with(stage, |stage| deny(stage, teller)),
    },
    Scene {
        step: "outsider",
        title: "The world outside the mesh",
        prose: "ledger-0 lives in another namespace, without the label. Both directions work, in plain TCP: a mesh can \
                be entered one namespace at a time.",
        play: |stage, teller| with(stage, |stage| outsider(stage, teller)),
    },
    Scene {
        step: "restart",
        title: "New daemons under load",
        prose: "While web-0 asks and asks, each node's daemon is replaced: the successor starts, takes over the pods' \
                sockets, then the old one ends.",
        play: |stage, teller| with(stage, |stage| restart(stage, teller)),
    },
    Scene {
        step: "unlabel",
        title: "And out again",
        prose: "The label goes. The pods are as they were, down to routing rules and sysctls, and the wire can be read \
                again.",
        play: |stage, teller| with(stage, |stage| unlabel(stage, teller)),
    },
];

/// The last scene, unless everything is to stay.
pub const CLEAN: Scene = Scene {
    step: "cleanup",
    title: "Taking it down",
    prose: "Daemons, pods, namespaces, cgroups, pinned programs: all of it goes. Had this been killed, it would go too.",
    play: |stage, _| {
        let stage = stage.context("there is no stage")?;
        let id = stage.world.id().to_owned();
        drop(stage);
        nothing_left(&id)?;
        Ok((None, "nothing is left on this machine".to_owned()))
    },
};

/// The last scene if everything is to stay.
pub const KEEP: Scene = Scene {
    step: "keep",
    title: "Look around",
    prose: "The namespace is labelled again, and everything goes on running.",
    play: |stage, teller| {
        let stage = stage.context("there is no stage")?;
        stage.world.label(SHOP, true, &stage.all())?;
        guide(&stage, teller);
        stage.keep()?;
        Ok((
            None,
            "left running; to take it down: cargo xtask demo --clean".to_owned(),
        ))
    },
};

/// Plays on the stage; what the daemons complained of goes along with a failure.
pub(super) fn with(
    stage: Option<Stage>,
    play: impl FnOnce(&mut Stage) -> Result<String>,
) -> Played {
    let mut stage = stage.context("there is no stage")?;
    let detail = play(&mut stage).with_context(|| stage.complaints())?;
    Ok((Some(stage), detail))
}

fn plaintext(stage: &mut Stage, teller: &Teller) -> Result<String> {
    let (_, packets) = stage.curl_watched(&stage.web, stage.cart.at(HTTP), teller)?;
    let readable = packets
        .all
        .iter()
        .find(|packet| String::from_utf8_lossy(&packet.payload).contains(SECRET));
    let readable =
        readable.context("the card number was not seen on the wire between the nodes")?;
    teller.show(&describe(readable));
    ensure!(
        packets.tls(HBONE) == 0,
        "there is TLS on port {HBONE} already"
    );
    Ok("the card number is on the wire in plain text".to_owned())
}

/// The label, under a connection that is open.
pub(super) fn label(stage: &mut Stage, teller: &Teller) -> Result<String> {
    let early = hold(&stage.web, stage.cart.at(ECHO))?;
    let pids: Vec<u32> = stage
        .apps
        .iter()
        .map(App::pid)
        .chain(stage.daemons.iter().map(Daemon::pid))
        .collect();
    teller.show(
        "kubectl label namespace shop istio.io/dataplane-mode=ambient  (here: a line in a file)",
    );
    let started = Instant::now();
    stage.world.label(SHOP, true, &stage.all())?;
    let took = started.elapsed().as_millis();
    next_tick(&early).context("the connection from before the label")?;
    stage.early = Some(early);
    let now: Vec<u32> = stage
        .apps
        .iter()
        .map(App::pid)
        .chain(stage.daemons.iter().map(Daemon::pid))
        .collect();
    ensure!(
        pids == now && stage.daemons.iter_mut().all(Daemon::alive),
        "something was restarted"
    );
    Ok(format!(
        "all pods of shop enrolled after {took} ms; the connection opened before still answers"
    ))
}

fn tunnel(stage: &mut Stage, teller: &Teller) -> Result<String> {
    let (_, packets) = stage.curl_watched(&stage.web, stage.cart.at(HTTP), teller)?;
    encrypted(&packets, stage.cart.at(HTTP))?;
    let records = packets
        .all
        .iter()
        .filter(|packet| matches!(packet.payload.first(), Some(22 | 23)));
    for packet in records.filter(|packet| packet.to.port() == HBONE).take(3) {
        teller.show(&describe(packet));
    }
    let early = stage
        .early
        .take()
        .context("the connection from before the label is gone")?;
    next_tick(&early).context("the connection from before the label")?;
    let records = packets.tls(HBONE);
    Ok(format!(
        "answered through the tunnel: {records} packets of TLS, no card number, nothing to port {HTTP}"
    ))
}

/// Only TLS was on the wire, and nothing beside the tunnel.
pub(super) fn encrypted(packets: &Packets, server: SocketAddr) -> Result<()> {
    ensure!(
        !packets.shows(SECRET),
        "the card number is still on the wire"
    );
    ensure!(packets.tls(HBONE) > 0, "no TLS records on port {HBONE}");
    ensure!(
        packets.tcp_to(server) == 0,
        "packets went to {server} beside the tunnel"
    );
    Ok(())
}

fn addresses(stage: &mut Stage, teller: &Teller) -> Result<String> {
    let to = stage.cart.at(HTTP);
    let request = "GET / HTTP/1.1\r\nHost: cart\r\nConnection: close\r\n\r\n";
    let seen = stage
        .web
        .podapp(&["connect", "--to", &to.to_string(), "--send", request])?;
    let (local, peer) = (field(&seen, "local"), field(&seen, "peer"));
    ensure!(
        peer == to.to_string(),
        "getpeername() in web-0 says {peer}, not {to}: {seen}"
    );
    let received = field(&seen, "received");
    let body = received.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let server: Value =
        serde_json::from_str(body).with_context(|| format!("cart-0 answered {seen}"))?;
    let client: SocketAddr = field(&server, "peer")
        .parse()
        .with_context(|| format!("cart-0 answered {server}"))?;
    teller.show(&format!("web-0:  my address {local}, getpeername() {peer}"));
    teller.show(&format!(
        "cart-0: my address {}, getpeername() {client}",
        field(&server, "local")
    ));
    ensure!(
        client.ip() == stage.web.v4,
        "cart-0 sees {client}, not web-0's {}",
        stage.web.v4
    );
    ensure!(
        field(&server, "local") == to.to_string(),
        "cart-0's own address is not {to}: {server}"
    );
    let vip = SocketAddr::new(VIP, 80);
    let answer = stage.curl(&stage.web, vip)?;
    ensure!(field(&answer, "app") == "cart", "{vip} answered {answer}");
    teller.show(&format!("web-0$ curl http://{vip}/  {answer}"));
    Ok("both ends see each other's real addresses; the service address works".to_owned())
}

fn identities(stage: &mut Stage, teller: &Teller) -> Result<String> {
    let hbone = stage.cart.at(HTTP).to_string();
    let (web, cart) = (stage.web.identity(), stage.cart.identity());
    for (daemon, direction) in stage.daemons.iter().zip(["outbound", "inbound"]) {
        let complete =
            |line: &AccessLine| line.message == "connection complete" && line.is(direction);
        let line = daemon.wait_access(&format!("{direction} line for {hbone}"), |line| {
            complete(line) && line.field("dst.hbone_addr") == hbone
        })?;
        for (key, wanted) in [("src.identity", &web), ("dst.identity", &cart)] {
            ensure!(
                line.field(key) == wanted,
                "{key} is not {wanted}: {}",
                line.text
            );
        }
        teller.show(&line.text.replace('\t', " "));
        let reporter = if direction == "outbound" {
            "source"
        } else {
            "destination"
        };
        let labels = [
            ("reporter", reporter),
            ("source_principal", web.as_str()),
            ("destination_principal", cart.as_str()),
        ];
        let opened = daemon
            .metrics()?
            .sum("istio_tcp_connections_opened_total", &labels);
        ensure!(
            opened >= 1.0,
            "the metrics of {} do not count it",
            daemon.node().name
        );
    }
    Ok(format!(
        "{web} talked to {cart}: both logs and both metrics agree"
    ))
}

fn deny(stage: &mut Stage, teller: &Teller) -> Result<String> {
    let to = stage.cart.at(ECHO);
    let live = hold(&stage.web, to)?;
    let principal = stage.web.identity().replace("spiffe://", "");
    let rule = format!("{{principals: [!Exact \"{principal}\"], destinationPorts: [{ECHO}]}}");
    teller.show(&format!("policy {SHOP}/{POLICY}: DENY {rule}"));
    stage.world.edit(|model| {
        model
            .policies
            .push(Policy::new("Deny", SHOP, POLICY, &[&rule]))
    })?;
    let cut = live.wait_line(NOTICE_MAX, "cut", |line| line.starts_with("cut"))?;
    teller.show(&format!("the live connection: {cut}"));
    let source = stage.daemons[0].log_len();
    let refused = stage.web.podapp(&["connect", "--to", &to.to_string()])?;
    ensure!(
        field(&refused, "received") != "hello",
        "a new connection went through: {refused}"
    );
    let denied = format!("policy rejection: explicitly denied by: {SHOP}/{POLICY}");
    for reason in ["connection closed due to policy change", denied.as_str()] {
        let line =
            stage.daemons[1].wait_access(reason, |line| line.field("error").contains(reason))?;
        teller.show(&format!(
            "node2: {} -> {}  {}",
            line.field("src.workload"),
            line.field("dst.workload"),
            line.field("error")
        ));
    }
    stage.daemons[0].wait_log(source, &["http status: 401"])?;
    stage
        .curl(&stage.web, stage.cart.at(HTTP))
        .context("HTTP is still allowed")?;
    stage.world.edit(|model| model.policies.clear())?;
    stage.world.settled_state(&stage.all())?;
    let again = stage.web.podapp(&["connect", "--to", &to.to_string()])?;
    ensure!(
        field(&again, "received") == "hello",
        "refused though the policy is gone: {again}"
    );
    Ok("live connection cut, new one refused with 401, HTTP unharmed; all well once the policy is gone".to_owned())
}

fn outsider(stage: &mut Stage, teller: &Teller) -> Result<String> {
    let (out, packets) = stage.curl_watched(&stage.web, stage.ledger.at(HTTP), teller)?;
    ensure!(field(&out, "app") == "ledger", "ledger-0 answered {out}");
    ensure!(
        packets.shows(SECRET),
        "ledger-0 has no identity, and yet the request was not in plain TCP"
    );
    teller.show(&format!("ledger-0: {out}"));
    let back = stage.curl(&stage.ledger, stage.cart.at(HTTP))?;
    teller.show(&format!(
        "ledger-0$ curl http://{}/  {back}",
        stage.cart.at(HTTP)
    ));
    let peer: SocketAddr = field(&back, "peer")
        .parse()
        .with_context(|| format!("cart-0 answered {back}"))?;
    ensure!(
        peer.ip() == stage.ledger.v4,
        "cart-0 sees {peer}, not ledger-0's {}",
        stage.ledger.v4
    );
    let plain = stage.daemons[1].wait_access("ledger's connection", |line| {
        line.is("inbound") && line.field("src.workload") == "ledger-0"
    })?;
    ensure!(
        plain.field("src.identity").is_empty(),
        "an identity out of nowhere: {}",
        plain.text
    );
    Ok("web-0 reaches ledger-0, ledger-0 reaches cart-0, neither with an identity that it has not proved".to_owned())
}

fn restart(stage: &mut Stage, teller: &Teller) -> Result<String> {
    let to = stage.cart.at(HTTP).to_string();
    let (web, daemons) = (&stage.web, &mut stage.daemons);
    let (requests, failed) = thread::scope(|scope| -> Result<(u64, u64)> {
        let swap = scope.spawn(|| {
            daemons
                .iter_mut()
                .try_for_each(|daemon| daemon.restart_with_successor().map(drop))
        });
        let (mut requests, mut failed) = (0, 0);
        loop {
            let last = swap.is_finished();
            let load = web.podapp(&[
                "load",
                "--to",
                &to,
                "--http",
                "/",
                "--count",
                BURST,
                "--threads",
                "4",
            ])?;
            failed += load["failed"].as_u64().context("the load counts")?;
            requests += load["ok"].as_u64().context("the load counts")?;
            ensure!(
                failed == 0,
                "requests failed while a daemon was replaced: {load}"
            );
            if last {
                swap.join()
                    .map_err(|_| anyhow::anyhow!("the restart panicked"))??;
                return Ok((requests, failed));
            }
        }
    })?;
    for daemon in &stage.daemons {
        teller.show(&format!("{}: now pid {}", daemon.node().name, daemon.pid()));
    }
    Ok(format!("{requests} requests, {failed} failed"))
}

fn unlabel(stage: &mut Stage, teller: &Teller) -> Result<String> {
    teller.show("kubectl label namespace shop istio.io/dataplane-mode-");
    stage.world.label(SHOP, false, &stage.all())?;
    let (_, packets) = stage.curl_watched(&stage.web, stage.cart.at(HTTP), teller)?;
    ensure!(packets.shows(SECRET), "the request is not in plain text");
    ensure!(packets.tls(HBONE) == 0, "something still uses port {HBONE}");
    let (before, now) = (&stage.before, stage.traces()?);
    let left = now
        .lines()
        .find(|line| !before.lines().any(|old| old == *line));
    ensure!(
        *before == now,
        "left in a pod: {}",
        left.unwrap_or("fewer lines than before")
    );
    Ok(
        "in plain text again; rules, routes and sysctls of the pods are as before the label"
            .to_owned(),
    )
}

/// Starts a connection that is kept in use, and waits for its first answer.
fn hold(pod: &Pod, to: SocketAddr) -> Result<App> {
    let app = pod.spawn(&[
        &crate::place::binary("podapp")?.to_string_lossy(),
        "hold",
        "--to",
        &to.to_string(),
    ])?;
    app.wait_line(NOTICE_MAX, "first answer", |line| line.starts_with("tick"))?;
    Ok(app)
}

/// Waits until the held connection has been answered once more.
fn next_tick(app: &App) -> Result<()> {
    let lines = app.lines().len();
    wait::until(NOTICE_MAX, "another answer", || {
        let now = app.lines();
        ensure!(
            !now.iter().any(|line| line.starts_with("cut")),
            "it was cut: {:?}",
            now.last()
        );
        // two lines on, so that the exchange began after the call
        Ok((now.len() >= lines + 2).then_some(()))
    })
}

fn field(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

/// How to look around in what is left running.
fn guide(stage: &Stage, teller: &Teller) {
    for daemon in &stage.daemons {
        let (netns, log) = (daemon.netns_name(), daemon.log_file().display());
        teller.say(&format!(
            "The daemon on {}, pid {}: dump, metrics, level of the log, log.",
            daemon.node().name,
            daemon.pid()
        ));
        teller.command(&format!(
            "ip netns exec {netns} curl -s http://127.0.0.1:15000/config_dump"
        ));
        teller.command(&format!(
            "ip netns exec {netns} curl -s http://127.0.0.1:15020/metrics"
        ));
        teller.command(&format!(
            "ip netns exec {netns} curl -s -X POST http://127.0.0.1:15000/logging?level=debug"
        ));
        teller.command(&format!("tail -f {log}"));
    }
    teller.say("A shell in web-0. Its cgroup matters: that is where connections are captured.");
    let (cgroup, netns) = (stage.web.cgroup.display(), &stage.web.netns_name);
    teller.command(&format!(
        "sh -c 'echo $$ > {cgroup}/cgroup.procs; exec ip netns exec {netns} bash'"
    ));
    teller.command(&format!("curl -i http://{}/", stage.cart.at(HTTP)));
    let wire = &stage.world.node(0).netns_name;
    teller.say("The wire between the nodes, and the files that say who is in the mesh and what is allowed.");
    teller.command(&format!("ip netns exec {wire} tcpdump -nA -i wire0 tcp"));
    for file in [
        &stage.world.node(0).enrolment,
        &stage.world.node(1).enrolment,
        &stage.world.node(0).state,
    ] {
        teller.command(&file.display().to_string());
    }
}
