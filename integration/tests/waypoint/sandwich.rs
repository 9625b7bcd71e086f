//! A waypoint that speaks no HBONE: the daemon terminates the tunnels in its pod and hands connections over behind PROXY
//! headers to a real Envoy, whose own connections it then captures like anybody's.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use integration::envoy::{Sandwich, Seat};
use integration::model::{AppTunnel, Gateway, HBONE_PORT, TRUST_DOMAIN};
use integration::{App, Daemon, Envoy, Layout, Pod, PodPlan, Policy, Service, World, place};
use serde_json::Value;

use crate::ground::SOON;

/// Where the waypoint takes connections.
const INSIDE: u16 = 15088;
/// Port of the service, and where its pod listens.
const PORT: u16 = 9000;

/// Dropped in order.
struct Scene {
    _app: App,
    envoy: Envoy,
    daemons: Vec<Daemon>,
    world: World,
}

impl Scene {
    /// Two clients and the waypoint on the first node, the server on the second; all are in the mesh.
    fn set() -> Result<Self> {
        place::build_once()?;
        let pods = ["client-0", "other-0", "middle-0"].map(|name| PodPlan::new("shop", name, 0));
        let mut layout = Layout {
            nodes: 2,
            pods: pods.to_vec(),
            services: vec![
                Service {
                    name: "middle".to_owned(),
                    namespace: "shop".to_owned(),
                    ports: vec![(HBONE_PORT, HBONE_PORT)],
                    pods: vec!["middle-0".to_owned()],
                    ..Service::default()
                },
                Service {
                    name: "server".to_owned(),
                    namespace: "shop".to_owned(),
                    vips: [vip(), vip6()].map(|vip| vip.ip()).to_vec(),
                    ports: vec![(PORT, PORT)],
                    pods: vec!["server-0".to_owned()],
                    waypoint: Some(Gateway::named(
                        "shop",
                        &format!("middle.shop.svc.{TRUST_DOMAIN}"),
                    )),
                    ..Service::default()
                },
            ],
        };
        layout.pods.push(PodPlan::new("shop", "server-0", 1));
        let world = World::raise(&layout)?;
        let (middle, server) = (world.pod("middle-0").clone(), world.pod("server-0").clone());
        world.edit(|model| {
            if let Some(pod) = model.pod_mut("middle-0") {
                pod.app_tunnel = Some(AppTunnel {
                    proxy: true,
                    port: Some(INSIDE),
                });
            }
            // only the waypoint may come to the server
            let mine = format!("{TRUST_DOMAIN}/ns/shop/sa/{}", middle.service_account);
            let matches =
                format!("{{principals: [!Exact \"{mine}\"], destinationPorts: [{PORT}]}}");
            let inside = format!("{{destinationPorts: [{INSIDE}]}}");
            let policy = Policy::new("Allow", "shop", "by-the-waypoint", &[&matches, &inside]);
            model.policies.push(policy);
        })?;
        let daemons = world.daemons()?;
        world.label("shop", true, &daemons.iter().collect::<Vec<_>>())?;
        let sandwich = Sandwich {
            port: INSIDE,
            client: world.pod("client-0").identity(),
            pod: server.at(PORT),
        };
        Ok(Self {
            _app: server.serve(&["echo"])?,
            envoy: Envoy::sandwich(Seat::in_pod(&world, &middle)?, &sandwich)?,
            daemons,
            world,
        })
    }
}

impl Scene {
    /// What everybody says, for errors.
    fn told(&self) -> String {
        let tails: Vec<_> = self.daemons.iter().map(Daemon::tail).collect();
        format!("{:?}\n{}", self.envoy.access(), tails.join("\n\n"))
    }
}

fn vip() -> SocketAddr {
    SocketAddr::from(([10, 96, 0, 10], PORT))
}

fn vip6() -> SocketAddr {
    SocketAddr::from(([0xfd96, 0, 0, 0, 0, 0, 0, 0x10], PORT))
}

/// A connection that is kept in use: an Envoy that reads a header off a connection whose client has ended its direction
/// already takes it for closed.
fn talk(pod: &Pod, to: SocketAddr) -> Result<App> {
    let podapp = place::binary("podapp")?;
    pod.spawn(&[&podapp.to_string_lossy(), "hold", "--to", &to.to_string()])
}

#[test]
fn an_envoy_behind_a_daemon_learns_the_true_client_from_the_header() -> Result<()> {
    let scene = Scene::set()?;
    let pod = |name: &str| scene.world.pod(name);
    let (client, other, middle) = (pod("client-0"), pod("other-0"), pod("middle-0"));
    // by either family
    for to in [vip(), vip6()] {
        let app = talk(client, to)?;
        app.wait_line(SOON, "three exchanges", |line| line == "tick 3")
            .with_context(|| scene.told())?;
        drop(app);
        let same = |entry: &Value| entry["local"] == to.to_string();
        let entry = scene
            .envoy
            .wait_access("sandwich", "the connection", same)?;
        assert_eq!(entry["source"], client.identity(), "{entry}");
        let remote: SocketAddr = entry["remote"].as_str().unwrap_or_default().parse()?;
        let own = [client.at(0).ip(), client.at6(0).ip()];
        assert!(
            own.contains(&remote.ip()) && remote.is_ipv4() == to.is_ipv4(),
            "{entry}"
        );
        let server = pod("server-0").at(PORT).to_string();
        assert_eq!(entry["upstream"], server, "{entry}");
    }
    // the second leg is the waypoint's own, and the server takes nobody else's
    let line = scene.daemons[1].wait_access("the second leg", |line| line.is("inbound"))?;
    assert_eq!(
        line.field("src.identity"),
        middle.identity(),
        "{}",
        line.text
    );
    assert_eq!(line.field("error"), "", "{}", line.text);
    let around = talk(client, pod("server-0").at(PORT))?;
    around.wait_line(SOON, "the refusal", |line| line.starts_with("cut"))?;
    assert!(around.lines().iter().all(|line| !line.starts_with("tick")));
    // another client is refused by the waypoint, which knows it by the same header
    let refused = talk(other, vip())?;
    refused.wait_line(SOON, "the refusal", |line| line.starts_with("cut"))?;
    assert!(refused.lines().iter().all(|line| !line.starts_with("tick")));
    let by_other = |entry: &Value| entry["source"] == other.identity();
    let entry = scene
        .envoy
        .wait_access("sandwich", "the refused one", by_other)?;
    let why = entry["ended"].as_str().unwrap_or_default();
    assert!(why.contains("rbac_access_denied"), "{entry}");
    Ok(())
}
