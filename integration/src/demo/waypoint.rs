//! The story of a waypoint: a real Envoy before the server, what it adds, and that nobody gets around it.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::scenes::{Scene, encrypted, label, raise, with};
use super::stage::{ECHO, Front, HTTP, SECRET, SHOP, Setting, Stage, VIP};
use super::tell::Teller;
use crate::envoy::{self, Seat};
use crate::model::Gateway;
use crate::{AccessLine, Envoy, Pod, Policy, place, wait};

/// Port of the service.
const PORT: u16 = 80;
/// Most time for another process to do something.
const SOON: Duration = Duration::from_secs(20);
/// Requests after the waypoint's return, all of which must be answered.
const AFTER: &str = "200";
/// How long after its return a request that was begun before may still fail, in milliseconds.
const GRACE_MS: u64 = 1000;

/// The first scene: there is no stage yet.
pub const RAISE: Scene = Scene {
    step: "world",
    title: "Two nodes, five pods",
    prose: "Nodes and pods are network namespaces with their cgroups, as Kubernetes makes them. Each node has one \
            ztunnel daemon. gate-0 is not in the mesh itself: there the waypoint will run, an unmodified Envoy.",
    play: |_, teller| raise(Setting::Waypoint, teller),
};

/// The scenes between the first and the last.
pub const SCENES: [Scene; 6] = [
    Scene {
        step: "label",
        title: "One label",
        prose: "The namespace shop gets istio.io/dataplane-mode: ambient, so web-0, guest-0 and cart-0 have identities \
                and tunnels. What the mesh knows of is connections, not requests.",
        play: |stage, teller| with(stage, |stage| label(stage, teller)),
    },
    Scene {
        step: "waypoint",
        title: "A waypoint for the service",
        prose: "Envoy starts in gate-0, and the service cart names it as its waypoint. Nothing restarts: the next \
                connection goes from web-0's daemon to Envoy, and from there in a tunnel of Envoy's own to cart-0's daemon.",
        play: |stage, teller| with(stage, |stage| through(stage, teller)),
    },
    Scene {
        step: "rules",
        title: "Rules by path and by who asks",
        prose: "Envoy reads the requests: /public/ is for everybody in the mesh, /api/ for web-0 alone. Who asks is what \
                the daemon proved by a certificate, not what a header says.",
        play: |stage, teller| with(stage, |stage| rules(stage, teller)),
    },
    Scene {
        step: "who",
        title: "Who called whom",
        prose: "Three logs tell of one request: web-0's daemon to the waypoint, the waypoint itself, the waypoint to \
                cart-0's daemon.",
        play: |stage, teller| with(stage, |stage| who(stage, teller)),
    },
    Scene {
        step: "around",
        title: "No way around it",
        prose: "A policy lets only the waypoint's identity in to cart-0. guest-0 dials cart-0's own address, past the \
                waypoint; then a pod without an identity does.",
        play: |stage, teller| with(stage, |stage| around(stage, teller)),
    },
    Scene {
        step: "restart",
        title: "The waypoint dies and comes back",
        prose: "Envoy is killed while web-0 asks and asks. Requests fail while it is away: the mesh never goes around it. \
                Once it is back, all are answered; no dead tunnel is used again.",
        play: |stage, teller| with(stage, |stage| restart(stage, teller)),
    },
];

fn front(stage: &Stage) -> Result<&Front> {
    stage.front.as_ref().context("this story has a waypoint")
}

fn service() -> SocketAddr {
    SocketAddr::new(VIP, PORT)
}

fn through(stage: &mut Stage, teller: &Teller) -> Result<String> {
    stage.early = None;
    let (gate, cart) = (front(stage)?.gate.clone(), stage.cart.clone());
    let config = envoy::Waypoint {
        http: vec![service().to_string()],
        tcp: Vec::new(),
        v1: cart.at(HTTP),
        v2: cart.at(HTTP),
        opaque: cart.at(ECHO),
        client: stage.web.identity(),
        server: cart.identity(),
        idle: envoy::Waypoint::IDLE,
    };
    let running = Envoy::waypoint(Seat::in_pod(&stage.world, &gate)?, &config)?;
    teller.show(&format!("gate-0: Envoy, pid {}, port 15008", running.pid()));
    teller.show("kubectl label service cart istio.io/use-waypoint=gate  (here: a line in a file)");
    stage.front.as_mut().context("the front")?.envoy = Some(running);
    stage.world.edit(|model| {
        if let Some(pod) = model.pod_mut("gate-0") {
            pod.native_tunnel = true;
        }
        if let Some(service) = model.service_mut("cart") {
            service.waypoint = Some(Gateway::at(gate.v4));
        }
    })?;
    stage.world.settled_state(&stage.all())?;
    let capture = stage.world.node(0).capture(stage.world.node(1))?;
    let asked = ask(&stage.web, service(), "/api/order", teller)?;
    let packets = capture.stop()?;
    ensure!(asked.status == 200, "answered {}", asked.status);
    let headers = &asked.body["headers"];
    for key in ["x-waypoint", "x-forwarded-client-cert", "x-forwarded-for"] {
        let value = headers[key].as_str().unwrap_or_default();
        teller.show(&format!("cart-0 got {key}: {value}"));
    }
    ensure!(
        headers["x-waypoint"] == "gate-0",
        "no header of the waypoint: {headers}"
    );
    let identity = format!("URI={}", stage.web.identity());
    ensure!(
        headers["x-forwarded-client-cert"] == identity.as_str(),
        "the client is not {identity}: {headers}"
    );
    encrypted(&packets, cart.at(HTTP))?;
    Ok(
        "the waypoint added its header and says who asks; between the nodes it is all TLS"
            .to_owned(),
    )
}

/// What curl got.
struct Asked {
    status: u16,
    body: Value,
}

/// A request with the secret in a header.
fn ask(pod: &Pod, to: SocketAddr, path: &str, teller: &Teller) -> Result<Asked> {
    let (url, header) = (format!("http://{to}{path}"), format!("x-card: {SECRET}"));
    let (_, text) = pod.curl(&["-H", &header, "-w", "\n%{http_code}", &url])?;
    let mut lines = text.lines().rev();
    // a failed curl says why after the code, which is 000 then
    let status = lines.find_map(|line| line.trim().parse().ok()).unwrap_or(0);
    let body = lines.find_map(|line| serde_json::from_str(line).ok());
    teller.show(&format!("{}$ curl {url}  {status:03}", pod.name));
    Ok(Asked {
        status,
        body: body.unwrap_or_default(),
    })
}

fn rules(stage: &mut Stage, teller: &Teller) -> Result<String> {
    let (web, guest) = (&stage.web, &front(stage)?.guest);
    for (pod, path, status) in [
        (web, "/public/prices", 200),
        (guest, "/public/prices", 200),
        (web, "/api/order", 200),
        (guest, "/api/order", 403),
    ] {
        let asked = ask(pod, service(), path, teller)?;
        ensure!(
            asked.status == status,
            "{} was answered {}, not {status}",
            pod.name,
            asked.status
        );
    }
    Ok("web-0 may use both paths, guest-0 only the public one: 403".to_owned())
}

fn who(stage: &mut Stage, teller: &Teller) -> Result<String> {
    let front = front(stage)?;
    let [web, gate, cart] = [&stage.web, &front.gate, &stage.cart].map(Pod::identity);
    let find = |node: usize, from: &str, to: &str| -> Result<AccessLine> {
        let line = stage.daemons[node].wait_access(&format!("{from} to {to}"), |line| {
            line.message == "connection complete"
                && line.field("src.identity") == from
                && line.field("dst.identity") == to
        })?;
        ensure!(line.field("error").is_empty(), "an error: {}", line.text);
        teller.show(&line.text.replace('\t', " "));
        Ok(line)
    };
    let first = find(0, &web, &gate)?;
    ensure!(
        first.field("dst.service").starts_with("cart."),
        "not for the service: {}",
        first.text
    );
    let envoy = front.envoy.as_ref().context("Envoy")?;
    let request = envoy.wait_access("l7", "the request", |entry| {
        entry["source"] == web.as_str() && entry["path"] == "/api/order"
    })?;
    teller.show(&format!("gate-0: {request}"));
    // Envoy's pool keeps its tunnels for a while; their line comes when they end
    let second = find(1, &gate, &cart)?;
    ensure!(
        second.field("dst.hbone_addr") == stage.cart.at(HTTP).to_string(),
        "not to cart-0's application: {}",
        second.text
    );
    Ok(format!(
        "{web} to {gate} to {cart}, in two mutually authenticated tunnels"
    ))
}

fn around(stage: &mut Stage, teller: &Teller) -> Result<String> {
    let (guest, gate) = {
        let front = front(stage)?;
        (front.guest.clone(), front.gate.clone())
    };
    let principal = gate.identity().replace("spiffe://", "");
    let rule = format!("{{principals: [!Exact \"{principal}\"]}}");
    teller.show(&format!("policy {SHOP}/only-waypoint: ALLOW {rule}"));
    stage.world.edit(|model| {
        let policy = Policy::new("Allow", SHOP, "only-waypoint", &[&rule]);
        model.policies.push(policy);
    })?;
    stage.world.settled_state(&stage.all())?;
    let (near, to) = (stage.daemons[0].log_len(), stage.cart.at(HTTP));
    let why = "policy rejection: allow policies exist, but none allowed";
    for (pod, identity) in [(&guest, guest.identity()), (&stage.ledger, String::new())] {
        let asked = ask(pod, to, "/public/prices", teller)?;
        ensure!(
            asked.status == 0,
            "{} was answered {}",
            pod.name,
            asked.status
        );
        let prefix = format!("{}:", pod.v4);
        let line = stage.daemons[1].wait_access("the refusal", |line| {
            line.is("inbound")
                && line.field("src.addr").starts_with(&prefix)
                && line.field("error").contains(why)
        })?;
        ensure!(line.field("src.identity") == identity, "{}", line.text);
        let refused = line.field("error");
        teller.show(&format!("node2: {} -> cart-0  {refused}", pod.name));
    }
    stage.daemons[0].wait_log(near, &["http status: 401"])?;
    teller.show("node1: guest-0 -> cart-0  http status: 401 Unauthorized");
    let asked = ask(&stage.web, service(), "/api/order", teller)?;
    ensure!(
        asked.status == 200,
        "through the waypoint: {}",
        asked.status
    );
    Ok("refused with and without an identity, the reason in the log; through the waypoint all is well".to_owned())
}

fn restart(stage: &mut Stage, teller: &Teller) -> Result<String> {
    let mut running = stage.front.as_mut().and_then(|front| front.envoy.take());
    let envoy = running.as_mut().context("Envoy")?;
    let stop = stage.world.dir().join("stop-load");
    let (to, stop_file) = (service().to_string(), stop.to_string_lossy().into_owned());
    let binary = place::binary("podapp")?;
    let mut load = vec![
        "load",
        "--to",
        &to,
        "--http",
        "/public/load",
        "--client-ends",
    ];
    load.extend(["--threads", "4", "--count"]);
    let binary = binary.to_string_lossy();
    let mut args = vec![&*binary];
    args.extend(&load);
    args.extend(["100", "--stop-file", &stop_file]);
    let mut app = stage.web.spawn(&args)?;
    let done = |app: &crate::App| {
        app.lines()
            .iter()
            .filter(|line| line.starts_with("done"))
            .count()
    };
    let more = |app: &crate::App| {
        let wanted = done(app) + 1;
        wait::until_true(SOON, "more requests", || done(app) >= wanted)
    };
    more(&app)?;
    let killed = unix_ms();
    envoy.kill()?;
    teller.show("gate-0: Envoy killed");
    let away = Instant::now();
    more(&app)?;
    envoy.restart()?;
    let (back, away) = (unix_ms(), away.elapsed().as_millis());
    teller.show(&format!(
        "gate-0: Envoy is back after {away} ms, pid {}",
        envoy.pid()
    ));
    more(&app)?;
    more(&app)?;
    std::fs::write(&stop, "").context("end the load")?;
    let (_, seen) = app.finish(SOON)?;
    let seen = seen.context("the load says what it saw")?;
    let number = |key: &str| seen[key].as_u64().unwrap_or_default();
    let (ok, failed) = (number("ok"), number("failed"));
    ensure!(ok > 0 && failed > 0, "the load saw no difference: {seen}");
    ensure!(
        number("failed_begin") + GRACE_MS >= killed && number("failed_end") <= back + GRACE_MS,
        "requests failed while the waypoint was there: {seen}"
    );
    load.push(AFTER);
    let after = stage.web.podapp(&load)?;
    ensure!(after["failed"] == 0, "after its return: {after}");
    let direct = stage.daemons[1].access();
    let gate = format!("/ns/{SHOP}/sa/gate");
    let direct = direct.iter().find(|line| {
        line.is("inbound") && line.field("error").is_empty() && {
            let from = line.field("src.identity");
            !from.is_empty()
                && !from.ends_with(&gate)
                && line.field("dst.hbone_addr").ends_with(":8080")
        }
    });
    ensure!(direct.is_none(), "a request went around: {direct:?}");
    if let Some(front) = stage.front.as_mut() {
        front.envoy = running;
    }
    Ok(format!(
        "{ok} requests answered, {failed} failed, all of them while it was away; {AFTER} of {AFTER} after that"
    ))
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}
