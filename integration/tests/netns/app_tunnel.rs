//! Application tunnels: on which port of which address an application gets what came through a tunnel, and what the PROXY
//! header before it says. The application demands that header, and reads it strictly.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Method, Request};
use integration::model::{AppTunnel, Gateway, TRUST_DOMAIN};
use integration::{App, Daemon, Layout, Model, Pod, PodPlan, Policy, Service};
use serde_json::{Value, json};

use crate::peer::{Root, client, play, tls};
use crate::support::{Mesh, SOON, connect, echo, world};

const HOUR: Duration = Duration::from_secs(3600);
/// Who the raw peer says it is.
const PEER: &str = "spiffe://cluster.local/ns/other/sa/outsider";
/// The port that some of the tunnels lead to, whatever was asked for.
const TUNNEL_PORT: u16 = 9100;

/// `client-0` on the first node; on the second one pod for each kind of tunnel, all in `shop`; `outsider-0` in `other`.
fn layout() -> Layout {
    let servers = ["plain-0", "none-0", "proxy-0", "ported-0"];
    let mut pods = vec![
        PodPlan::new("shop", "client-0", 0),
        PodPlan::new("other", "outsider-0", 0),
    ];
    pods.extend(servers.map(|name| PodPlan::new("shop", name, 1)));
    let service = |name: &str, vips: &[&str], pod: &str| Service {
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        vips: vips.iter().filter_map(|vip| vip.parse().ok()).collect(),
        ports: vec![(80, 9000), (90, 90)],
        pods: vec![pod.to_owned()],
        ..Service::default()
    };
    Layout {
        nodes: 2,
        pods,
        services: vec![
            service("proxied", &["fd96::10", "10.96.0.10"], "proxy-0"),
            service("bare", &[], "proxy-0"),
            service("fronted", &["10.96.0.20", "fd96::20"], "plain-0"),
        ],
    }
}

/// The tunnels of the pods, and `ported-0` as the waypoint of `fronted`.
fn tunnels(model: &mut Model) {
    let all = [
        ("none-0", false, Some(TUNNEL_PORT)),
        ("proxy-0", true, None),
        ("ported-0", true, Some(TUNNEL_PORT)),
    ];
    let mut waypoint = None;
    for (name, proxy, port) in all {
        if let Some(pod) = model.pod_mut(name) {
            pod.app_tunnel = Some(AppTunnel { proxy, port });
            waypoint = pod.ips.first().copied().map(Gateway::at);
        }
    }
    if let Some(service) = model.service_mut("fronted") {
        service.waypoint = waypoint;
    }
}

/// The mesh with its applications.
struct Scene {
    apps: Vec<App>,
    mesh: Mesh,
}

impl Scene {
    fn set(env: &[(&str, &str)]) -> Result<Self> {
        let world = world(&layout())?;
        tunnels(&mut world.model());
        world.publish_state()?;
        let daemons = world.nodes().iter().map(|node| Daemon::start(node, env));
        let daemons = daemons.collect::<Result<_>>()?;
        let mesh = Mesh { daemons, world };
        mesh.label("shop", true)?;
        let apps = vec![
            mesh.pod("plain-0").serve(&["echo"])?,
            mesh.pod("none-0")
                .serve(&["echo", "--listen", "[::]:9100"])?,
            mesh.pod("proxy-0").serve(&["proxied"])?,
            mesh.pod("ported-0")
                .serve(&["proxied", "--listen", "[::]:9100"])?,
        ];
        Ok(Self { apps, mesh })
    }

    /// What the peer from outside gets for an authority at a pod's HBONE port: status, and all the bytes after it.
    fn ask(&self, tunnel: SocketAddr, authority: &str, send: &'static str) -> Result<Answer> {
        let from = self.mesh.pod("outsider-0").netns.clone();
        let papers = Root::of_world(&self.mesh.world.node(0).ca)?.papers(PEER, HOUR, 2 * HOUR)?;
        let config = client(Some(papers), &["h2"])?;
        let request = Request::builder().method(Method::CONNECT);
        let request = request.uri(authority).body(())?;
        play(&from, async || {
            let stream = tls(tunnel, config).await?;
            let from = stream.get_ref().0.local_addr()?;
            let (sender, connection) = h2::client::handshake(stream).await?;
            let driver = tokio::spawn(connection);
            let (answer, mut body) = sender.ready().await?.send_request(request, false)?;
            let mut answer = answer.await?;
            let status = answer.status().as_u16();
            let mut bytes = Vec::new();
            if status == 200 {
                body.send_data(Bytes::from_static(send.as_bytes()), true)?;
                while let Some(data) = answer.body_mut().data().await {
                    let data = data?;
                    answer
                        .body_mut()
                        .flow_control()
                        .release_capacity(data.len())?;
                    bytes.extend_from_slice(&data);
                }
            }
            driver.abort();
            Ok(Answer {
                status,
                from,
                text: String::from_utf8(bytes)?,
            })
        })
    }
}

/// What the peer got.
struct Answer {
    status: u16,
    /// the peer's end of the tunnel
    from: SocketAddr,
    text: String,
}

impl Answer {
    /// What the application read from the header; `sent` has to have come back behind it.
    fn header(&self, sent: &str) -> Result<Value> {
        ensure!(self.status == 200, "status {}", self.status);
        header(&self.text, sent)
    }
}

/// The header as the application tells it, then the echo.
fn header(text: &str, sent: &str) -> Result<Value> {
    let (said, echoed) = text
        .split_once('\n')
        .with_context(|| format!("no header: {text:?}"))?;
    ensure!(echoed == sent, "{echoed:?} came back for {sent:?}");
    Ok(serde_json::from_str(said)?)
}

/// The header that the application got for a connection of the mesh client.
fn header_for(client: &Pod, to: SocketAddr, sent: &str) -> Result<Value> {
    let seen = connect(client, to, &["--send", sent])?;
    ensure!(seen["ok"] == true, "{} to {to}: {seen}", client.name);
    ensure!(seen["peer"] == to.to_string(), "{seen}");
    header(seen["received"].as_str().unwrap_or_default(), sent)
}

/// The address in a field, without its port.
fn ip(said: &Value, key: &str) -> Result<String> {
    let text = said[key]
        .as_str()
        .with_context(|| format!("no {key}: {said}"))?;
    let addr: SocketAddr = text.parse()?;
    Ok(addr.ip().to_string())
}

fn identity(of: &str) -> Value {
    json!({"d0": of})
}

#[test]
fn a_tunnel_says_where_and_with_which_header_an_application_is_reached() -> Result<()> {
    let scene = Scene::set(&[])?;
    let (mesh, client) = (&scene.mesh, scene.mesh.pod("client-0"));
    // without a header, on another port, and from the client's own address
    let none = mesh.pod("none-0");
    for to in [none.at(9000), none.at6(9000)] {
        let seen = echo(client, to, &["--send", "as is"])?;
        assert_eq!(seen["peer"], to.to_string());
    }
    // with a header, on loopback
    for (name, port) in [("proxy-0", 9000), ("ported-0", TUNNEL_PORT)] {
        let server = mesh.pod(name);
        for (to, own, loopback, family) in [
            (server.at(9000), client.v4.to_string(), "127.0.0.1", "INET"),
            (server.at6(9000), client.v6.to_string(), "::1", "INET6"),
        ] {
            let said = header_for(client, to, "more than the header")?;
            let context = || format!("{name} at {to}: {said}");
            assert_eq!(said["family"], family, "{}", context());
            assert_eq!(ip(&said, "source")?, own, "{}", context());
            assert_eq!(said["destination"], to.to_string(), "{}", context());
            assert_eq!(said["tlvs"], identity(&client.identity()), "{}", context());
            let local = SocketAddr::new(loopback.parse()?, port);
            assert_eq!(said["local"], local.to_string(), "{}", context());
            assert_eq!(ip(&said, "peer")?, loopback, "{}", context());
        }
    }
    // through a service: the header states what the tunnel was asked for, the endpoint
    let said = header_for(client, "10.96.0.10:80".parse()?, "by name")?;
    let endpoint = mesh.pod("proxy-0").at(9000).to_string();
    assert_eq!(said["destination"], endpoint, "{said}");
    // the application may speak first, and a client that only listens gets its words
    header_for(client, mesh.pod("proxy-0").at(9000), "")?;
    Ok(())
}

#[test]
fn without_loopback_delivery_the_application_is_reached_at_the_pods_address() -> Result<()> {
    let scene = Scene::set(&[("LOCALHOST_APP_TUNNEL", "false")])?;
    let client = scene.mesh.pod("client-0");
    for (name, port) in [("proxy-0", 9000), ("ported-0", TUNNEL_PORT)] {
        let server = scene.mesh.pod(name);
        for (to, own, at) in [
            (server.at(9000), client.v4.to_string(), server.at(port)),
            (server.at6(9000), client.v6.to_string(), server.at6(port)),
        ] {
            let said = header_for(client, to, "hello")?;
            assert_eq!(said["local"], at.to_string(), "{said}");
            assert_eq!(
                ip(&said, "peer")?,
                own,
                "the client's address is kept: {said}"
            );
            assert_eq!(ip(&said, "source")?, own, "{said}");
            assert_eq!(said["tlvs"], identity(&client.identity()), "{said}");
        }
    }
    Ok(())
}

#[test]
fn whatever_was_asked_for_is_stated_as_far_as_the_header_can() -> Result<()> {
    let scene = Scene::set(&[])?;
    let server = scene.mesh.pod("proxy-0");
    let (host, bare) = (
        format!("proxied.shop.svc.{TRUST_DOMAIN}:80"),
        format!("bare.shop.svc.{TRUST_DOMAIN}:80"),
    );
    // a host name is stated as an address of its service, IPv4 first, with the port that was asked for
    let answer = scene.ask(server.at(15008), &host, "by name")?;
    let said = answer.header("by name")?;
    let wanted = json!(["INET", answer.from.to_string(), "10.96.0.10:80"]);
    let found = json!([said["family"], said["source"], said["destination"]]);
    assert_eq!(found, wanted, "{said}");
    assert_eq!(said["tlvs"], identity(PEER), "{said}");
    // the resolved port, on loopback
    assert_eq!(said["local"], "127.0.0.1:9000", "{said}");
    // two families in one header cannot be stated; who it is can
    for (tunnel, authority) in [
        (server.at6(15008), host.clone()),
        (server.at6(15008), server.at(9000).to_string()),
        (server.at(15008), server.at6(9000).to_string()),
    ] {
        let said = scene.ask(tunnel, &authority, "mixed")?.header("mixed")?;
        let local = if tunnel.is_ipv4() {
            "127.0.0.1:9000"
        } else {
            "[::1]:9000"
        };
        let wanted = json!({"family": "UNSPEC", "tlvs": identity(PEER), "local": local, "peer": said["peer"]});
        assert_eq!(said, wanted, "{authority} at {tunnel}");
    }
    // a service without an address cannot be stated at all, and an unknown one or port leads nowhere
    for (authority, why) in [
        (bare, "no address to state in a PROXY header"),
        (
            format!("nobody.shop.svc.{TRUST_DOMAIN}:80"),
            "no service or workload for hostname",
        ),
        (
            format!("proxied.shop.svc.{TRUST_DOMAIN}:81"),
            "cannot resolve port",
        ),
    ] {
        let from = scene.mesh.daemons[1].log_len();
        let answer = scene.ask(server.at(15008), &authority, "nothing")?;
        assert_eq!(answer.status, 503, "{authority}");
        scene.mesh.daemons[1].wait_log(from, &["connection failed", why])?;
    }
    Ok(())
}

#[test]
fn a_pod_with_an_application_tunnel_stands_for_others() -> Result<()> {
    let scene = Scene::set(&[])?;
    let (mesh, client) = (&scene.mesh, scene.mesh.pod("client-0"));
    // dialled as a service, handed to the application of its waypoint, with what was dialled
    for to in ["10.96.0.20:80", "10.96.0.20:90"] {
        let said = header_for(client, to.parse()?, "for another")?;
        assert_eq!(said["destination"], to, "{said}");
        assert_eq!(said["tlvs"], identity(&client.identity()), "{said}");
        assert_eq!(said["local"], format!("127.0.0.1:{TUNNEL_PORT}"), "{said}");
    }
    // its reference is an IPv4 address, so that is how it is reached for the service's other one
    let said = header_for(client, "[fd96::20]:80".parse()?, "for another")?;
    assert_eq!(said["family"], "UNSPEC", "{said}");
    assert_eq!(said["tlvs"], identity(&client.identity()), "{said}");
    // any address does, whoever asks; without such a tunnel none but the pod's own
    let far = "192.0.2.7:4000";
    let waypoint = mesh.pod("ported-0").at(15008);
    let said = scene.ask(waypoint, far, "far")?.header("far")?;
    assert_eq!(said["destination"], far, "{said}");
    let plain = mesh.pod("plain-0");
    let from = mesh.daemons[1].log_len();
    assert_eq!(scene.ask(plain.at(15008), far, "far")?.status, 400);
    let why = format!("ip mismatch: {} != 192.0.2.7", plain.v4);
    mesh.daemons[1].wait_log(from, &["connection failed", &why])?;
    // our own ports stay ours, also where the tunnel would lead elsewhere
    for port in [15001, 15006, 15008] {
        let asked = SocketAddr::new(mesh.pod("ported-0").v4.into(), port).to_string();
        assert_eq!(scene.ask(waypoint, &asked, "us")?.status, 503, "{asked}");
    }
    Ok(())
}

#[test]
fn nothing_reaches_the_application_of_a_tunnel_that_policy_refuses() -> Result<()> {
    let scene = Scene::set(&[])?;
    let mesh = &scene.mesh;
    let matches = format!(
        "{{principals: [!Exact \"{TRUST_DOMAIN}/ns/shop/sa/client\"], destinationPorts: [9100]}}"
    );
    mesh.edit(|model| {
        let policy = Policy::new("Allow", "shop", "client-only", &[&matches]);
        model.policies.push(policy);
    })?;
    let server = mesh.pod("ported-0");
    let app = scene.apps.last().context("the application of ported-0")?;
    let answer = scene.ask(server.at(15008), &server.at(9000).to_string(), "x")?;
    assert_eq!(answer.status, 401);
    // the port that policy is asked about is the one that is used
    header_for(mesh.pod("client-0"), server.at(9000), "allowed")?;
    app.wait_line(SOON, "the allowed one", |line| line.contains("source"))?;
    let told = app.lines();
    assert_eq!(
        told.len(),
        2,
        "one connection, and no broken header: {told:?}"
    );
    let refused = mesh.inbound(server, |line| line.field("src.identity") == PEER)?;
    assert!(
        refused.field("error").contains("policy rejection"),
        "{}",
        refused.text
    );
    Ok(())
}
