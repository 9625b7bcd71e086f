//! The subscription: what is sent on each stream, what a stream's end leads to, and what stays.

use std::sync::Arc;
use std::time::Duration;

use control::Publisher;
use control::channel::{Config, Roots, Timing, Token};
use control::node::Node;
use control::xds::{self, Client, Counts, Worker};
use mesh::Index;
use prost::Message;
use proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use proto::wellknown::Any;
use proto::workload::{Address, Workload, address};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tonic::{Code, Status};

use crate::pki::Pki;
use crate::server::{Ads, Istiod};
use crate::soon;

const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";

/// A server and a client of it.
struct World {
    istiod: Istiod,
    pki: Pki,
    client: Client,
    index: watch::Receiver<Arc<Index>>,
    worker: JoinHandle<std::convert::Infallible>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

fn spawn(
    config: xds::Config,
) -> (
    Client,
    watch::Receiver<Arc<Index>>,
    JoinHandle<std::convert::Infallible>,
) {
    let publisher = Publisher::new(Index::default());
    let index = publisher.subscribe();
    let (client, worker) = Client::new(config, publisher).unwrap();
    (client, index, tokio::spawn(Worker::run(worker)))
}

fn node() -> Node {
    Node {
        pod: "zt".into(),
        namespace: "istio-system".into(),
        node_name: "n1".into(),
        ..Node::default()
    }
}

async fn world_with(on_demand: bool, change: impl FnOnce(&mut Config)) -> World {
    let pki = Pki::new();
    let istiod = Istiod::start(pki.server(&["localhost"])).await;
    let mut channel = Config::new(istiod.url("localhost"), Roots::Inline(pki.pem()));
    change(&mut channel);
    let (client, index, worker) = spawn(xds::Config {
        channel,
        node: node(),
        on_demand,
    });
    World {
        istiod,
        pki,
        client,
        index,
        worker,
    }
}

async fn world() -> World {
    world_with(false, |_| ()).await
}

impl World {
    /// The next stream with its two first requests.
    async fn stream(&mut self) -> (Ads, [DeltaDiscoveryRequest; 2]) {
        let mut ads = self.istiod.stream().await;
        let first = [ads.request().await, ads.request().await];
        assert_eq!(
            [&*first[0].type_url, &*first[1].type_url],
            [ADDRESS, AUTHORIZATION]
        );
        (ads, first)
    }

    /// How often streams ended for `reason`.
    fn ended(&self, reason: &str) -> u64 {
        ended(&self.client.counts(), reason)
    }

    /// Waits until the state holds `uid`, or does not.
    async fn holds(&mut self, uid: &str, held: bool) {
        soon(
            self.index
                .wait_for(|index| index.workload(uid).is_some() == held),
        )
        .await
        .unwrap();
    }
}

fn ended(counts: &Counts, reason: &str) -> u64 {
    counts
        .terminations
        .iter()
        .find(|(name, _)| *name == reason)
        .unwrap()
        .1
}

fn workload(uid: &str, version: &str) -> Resource {
    let workload = Workload {
        uid: uid.into(),
        name: uid.into(),
        namespace: "ns".into(),
        addresses: vec![vec![10, 0, 0, 1].into()],
        ..Workload::default()
    };
    resource(
        uid,
        version,
        Address {
            r#type: Some(address::Type::Workload(workload)),
        }
        .encode_to_vec(),
    )
}

fn resource(name: &str, version: &str, value: Vec<u8>) -> Resource {
    Resource {
        name: name.into(),
        version: version.into(),
        resource: Some(Any {
            type_url: ADDRESS.into(),
            value: value.into(),
        }),
        ..Resource::default()
    }
}

fn response(url: &str, nonce: &str, resources: &[Resource]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: url.into(),
        nonce: nonce.into(),
        resources: resources.iter().map(|r| r.encode_to_vec().into()).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

fn removal(nonce: &str, name: &str) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        removed_resources: vec![name.into()],
        ..response(ADDRESS, nonce, &[])
    }
}

#[tokio::test]
async fn subscribes_as_who_it_is_and_is_synced_by_both_types() {
    let mut world = world_with(false, |config| {
        config.token = Some(Token::Inline("t0ken".into()));
        config.cluster_id = "c1".into();
        config.headers = vec![("x-tenant".into(), "blue".into())];
    })
    .await;
    let mut synced = world.client.synced();
    let (mut ads, first) = world.stream().await;
    assert_eq!(ads.headers["authorization"], "Bearer t0ken");
    assert_eq!(ads.headers["clusterid"], "c1");
    assert_eq!(ads.headers["x-tenant"], "blue");
    for request in first {
        assert_eq!(request.node, Some(node().to_proto()));
        assert!(request.resource_names_subscribe.is_empty());
        assert!(request.initial_resource_versions.is_empty());
    }
    ads.send(response(ADDRESS, "1", &[workload("w1", "a")]))
        .await;
    let ack = ads.request().await;
    assert_eq!((&*ack.response_nonce, ack.error_detail), ("1", None));
    // applied before it is answered
    assert!(world.index.borrow().workload("w1").is_some());
    assert!(!*synced.borrow());
    ads.send(response(AUTHORIZATION, "2", &[])).await;
    assert_eq!(ads.request().await.response_nonce, "2");
    soon(synced.wait_for(|yes| *yes)).await.unwrap();

    let counts = world.client.counts();
    assert!(counts.connected);
    let value_bytes = workload("w1", "a").resource.unwrap().value.len() as u64;
    let told: Vec<_> = counts
        .types
        .iter()
        .map(|t| (t.url, t.messages, t.bytes))
        .collect();
    assert_eq!(
        told,
        [
            (ADDRESS, 1, value_bytes),
            (AUTHORIZATION, 1, 0),
            ("other", 0, 0)
        ]
    );
}

#[tokio::test]
async fn what_was_learnt_stays_and_is_named_on_the_next_stream() {
    let mut world = world().await;
    let (mut ads, _) = world.stream().await;
    ads.send(response(
        ADDRESS,
        "1",
        &[workload("w1", "a"), workload("w2", "b")],
    ))
    .await;
    ads.request().await;
    let synced = world.client.synced();
    world.istiod.down().await;
    let mut pauses = 0;
    while world.ended("ConnectionError") == 0 {
        pauses += 1;
        assert!(pauses < 2000, "no attempt: {:?}", world.client.counts());
        tokio::time::sleep(Duration::from_millis(5)).await; // nothing else tells of a failed attempt
    }
    assert!(!world.client.counts().connected);
    world.holds("w1", true).await;

    world.istiod.up().await;
    let (mut ads, first) = world.stream().await;
    let held: Vec<_> = first[0].initial_resource_versions.iter().collect();
    assert_eq!(
        held,
        [
            (&"w1".to_owned(), &"a".to_owned()),
            (&"w2".to_owned(), &"b".to_owned())
        ]
    );
    assert!(first[1].initial_resource_versions.is_empty());
    ads.send(removal("1", "w1")).await;
    assert_eq!(ads.request().await.response_nonce, "1");
    world.holds("w1", false).await;
    world.holds("w2", true).await;
    assert!(!*synced.borrow(), "policies were never answered");
}

#[tokio::test]
async fn each_end_of_a_stream_is_counted_and_followed_by_another() {
    let mut world = world().await;
    let cases = [
        (Some(Status::unknown("x")), "Reconnect"),
        (Some(Status::cancelled("x")), "Reconnect"),
        (Some(Status::deadline_exceeded("x")), "Reconnect"),
        (
            Some(Status::unavailable("transport is closing")),
            "Reconnect",
        ),
        (
            Some(Status::unavailable("received prior goaway: x")),
            "Reconnect",
        ),
        (Some(Status::unavailable("x")), "Error"),
        (Some(Status::permission_denied("x")), "Error"),
        (None, "Complete"),
    ];
    for (status, reason) in cases {
        let (ads, _) = world.stream().await;
        let before = world.ended(reason);
        let text = status
            .as_ref()
            .map(|s| format!("{:?}: {}", s.code(), s.message()));
        match status {
            Some(status) => ads.fail(status).await,
            None => drop(ads),
        }
        let (ads, _) = world.stream().await;
        assert_eq!(world.ended(reason), before + 1, "{reason}");
        if let Some(text) = text {
            assert_eq!(world.client.counts().last_error, Some(text));
        }
        ads.fail(Status::unknown("next case")).await;
    }
}

#[tokio::test]
async fn a_connection_that_is_cut_is_opened_anew() {
    let mut world = world().await;
    let (mut ads, _) = world.stream().await;
    ads.send(response(ADDRESS, "1", &[])).await;
    ads.request().await;
    world.istiod.cut();
    world.stream().await;
    assert_eq!(world.ended("Reconnect"), 1, "{:?}", world.client.counts());
}

#[tokio::test]
async fn a_server_that_goes_away_in_good_order_is_dialled_anew() {
    let pki = Pki::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!(
        "https://localhost:{}",
        listener.local_addr().unwrap().port()
    );
    let (client, _, worker) = spawn(xds::Config {
        channel: Config::new(address, Roots::Inline(pki.pem())),
        node: node(),
        on_demand: false,
    });
    let acceptor = TlsAcceptor::from(pki.server(&["localhost"]));
    soon(async {
        let tls = acceptor
            .accept(listener.accept().await.unwrap().0)
            .await
            .unwrap();
        let mut connection = h2::server::handshake(tls).await.unwrap();
        let (_call, mut answer) = connection.accept().await.unwrap().unwrap();
        let head = http::Response::builder().header("content-type", "application/grpc");
        let _body = answer.send_response(head.body(()).unwrap(), false).unwrap();
        // once the client has seen that the stream is open
        while !client.counts().connected {
            let nap = tokio::time::sleep(Duration::from_millis(1));
            tokio::select! {
                call = connection.accept() => assert!(call.is_none_or(|call| call.is_err())),
                () = nap => {}
            }
        }
        connection.abrupt_shutdown(h2::Reason::NO_ERROR);
        while connection.accept().await.is_some() {}
        drop(connection);
        listener.accept().await.unwrap(); // the next attempt
    })
    .await;
    assert_eq!(
        ended(&client.counts(), "Reconnect"),
        1,
        "{:?}",
        client.counts()
    );
    worker.abort();
}

#[tokio::test]
async fn a_refused_stream_counts_as_no_connection() {
    let pki = Pki::new();
    let mut istiod = Istiod::start(pki.server(&["localhost"])).await;
    istiod.refuse(Status::unauthenticated("who are you"));
    let (client, _, worker) = spawn(xds::Config {
        channel: Config::new(istiod.url("localhost"), Roots::Inline(pki.pem())),
        node: node(),
        on_demand: false,
    });
    istiod.stream().await;
    let counts = client.counts();
    assert_eq!(ended(&counts, "ConnectionError"), 1);
    assert_eq!(
        counts.last_error.as_deref(),
        Some("Unauthenticated: who are you")
    );
    worker.abort();
}

#[tokio::test]
async fn token_and_roots_are_read_for_every_attempt() {
    let (old, new) = (Pki::new(), Pki::new());
    let dir = tempfile::tempdir().unwrap();
    let (token, roots) = (dir.path().join("token"), dir.path().join("root.pem"));
    let mut istiod = Istiod::start(old.server(&["localhost"])).await;
    let (client, _, worker) = spawn(xds::Config {
        channel: Config {
            token: Some(Token::File(token.clone())),
            ..Config::new(istiod.url("localhost"), Roots::File(roots.clone()))
        },
        node: node(),
        on_demand: false,
    });
    let failed = async |text: &str| {
        soon(async {
            while !client
                .counts()
                .last_error
                .is_some_and(|error| error.contains(text))
            {
                tokio::time::sleep(Duration::from_millis(5)).await; // nothing else tells of a failed attempt
            }
        })
        .await;
    };
    failed("read root certificates from").await;
    assert!(ended(&client.counts(), "Error") > 0);
    old.write(&roots);
    failed("read token from").await;
    assert!(ended(&client.counts(), "ConnectionError") > 0);
    std::fs::write(&token, "one").unwrap();
    let ads = istiod.stream().await;
    assert_eq!(ads.headers["authorization"], "Bearer one");

    std::fs::write(&token, "two").unwrap();
    new.write(&roots);
    istiod.show(new.server(&["localhost"]));
    ads.fail(Status::unknown("again")).await;
    assert_eq!(istiod.stream().await.headers["authorization"], "Bearer two");
    worker.abort();
}

#[tokio::test]
async fn a_server_that_falls_silent_is_noticed_by_ping() {
    let mut world = world_with(false, |config| {
        config.timing = Timing {
            ping_interval: Duration::from_millis(50),
            ping_timeout: Duration::from_millis(50),
            handshake: Duration::from_millis(100),
            ..Timing::default()
        };
    })
    .await;
    let (mut ads, _) = world.stream().await;
    ads.send(response(ADDRESS, "1", &[workload("w1", "a")]))
        .await;
    ads.request().await;
    world.istiod.stall();
    let ended = soon(async {
        while world.ended("Reconnect") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await; // the server learns nothing of it
        }
    });
    ended.await;
    world.holds("w1", true).await;
}

#[tokio::test]
async fn a_refused_resource_is_told_and_does_not_stop_the_others() {
    let mut world = world().await;
    let (mut ads, _) = world.stream().await;
    let bad = resource("bad", "1", Vec::new());
    ads.send(response(ADDRESS, "1", &[bad, workload("w1", "a")]))
        .await;
    let nack = ads.request().await;
    let text = nack.error_detail.unwrap().message;
    assert!(text.contains("bad: unknown address type"), "{text}");
    assert!(world.index.borrow().workload("w1").is_some());
    let counts = world.client.counts();
    assert_eq!(counts.types[0].rejected, 1);
    assert_eq!(counts.last_nack, Some(text));
}

#[tokio::test]
async fn a_response_may_be_large() {
    let mut world = world().await;
    let (mut ads, _) = world.stream().await;
    // above what gRPC libraries take by default
    let many: Vec<Resource> = (0..40_000)
        .map(|at| {
            workload(
                &format!("cluster1//Pod/namespace/workload-with-a-long-name-{at}"),
                "1",
            )
        })
        .collect();
    let large = response(ADDRESS, "1", &many);
    assert!(large.encoded_len() > 5 * 1024 * 1024);
    ads.send(large).await;
    assert_eq!(ads.request().await.error_detail, None);
    let last = "cluster1//Pod/namespace/workload-with-a-long-name-39999";
    assert!(world.index.borrow().workload(last).is_some());
}

#[tokio::test]
async fn another_certificate_is_not_accepted_after_a_cut() {
    let mut world = world().await;
    world.stream().await;
    let stranger = Pki::new();
    world.istiod.show(stranger.server(&["localhost"]));
    world.istiod.cut();
    soon(async {
        while world.ended("ConnectionError") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await; // nothing else tells of a failed attempt
        }
    })
    .await;
    let error = world.client.counts().last_error.unwrap();
    assert!(
        error.starts_with("TLS handshake") && error.contains("UnknownIssuer"),
        "{error}"
    );
    world.istiod.show(world.pki.server(&["localhost"]));
    world.stream().await;
}

#[tokio::test]
async fn one_question_for_all_who_ask() {
    let mut world = world_with(true, |_| ()).await;
    let finder = world.client.finder().unwrap();
    let (mut ads, first) = world.stream().await;
    assert_eq!(first[0].resource_names_subscribe, ["*"]);
    assert_eq!(first[0].resource_names_unsubscribe, ["*"]);
    let ip = "10.0.0.1".parse().unwrap();
    let server = async {
        assert_eq!(
            ads.request().await.resource_names_subscribe,
            ["net/10.0.0.1"]
        );
        let mut found = workload("w1", "a");
        found.aliases = vec!["net/10.0.0.1".into()];
        ads.send(response(ADDRESS, "1", &[found])).await;
        assert_eq!(ads.request().await.response_nonce, "1");
    };
    let (a, b, ()) =
        soon(async { tokio::join!(finder.address("net", ip), finder.address("net", ip), server) })
            .await;
    assert_eq!((a, b), (Ok(true), Ok(true)));
    assert!(world.index.borrow().workload("w1").is_some());

    // the next question is the next name: there was one question only
    let server = async {
        assert_eq!(
            ads.request().await.resource_names_subscribe,
            ["ns/gone.test"]
        );
        ads.send(removal("2", "ns/gone.test")).await;
        assert_eq!(ads.request().await.response_nonce, "2");
    };
    let (gone, ()) = soon(async { tokio::join!(finder.host("ns", "gone.test"), server) }).await;
    assert_eq!(gone, Ok(false));
}

#[tokio::test]
async fn a_question_survives_the_stream() {
    let mut world = world_with(true, |_| ()).await;
    let finder = world.client.finder().unwrap();
    let (mut ads, _) = world.stream().await;
    let server = async {
        assert_eq!(
            ads.request().await.resource_names_subscribe,
            ["ns/host.test"]
        );
        ads.fail(Status::new(Code::Unknown, "cut")).await;
        let (mut ads, first) = world.stream().await;
        assert_eq!(first[0].initial_resource_versions["ns/host.test"], "");
        // the first request has subscribed it: so that there is an answer, it goes and comes
        let goes = ads.request().await;
        assert_eq!(goes.resource_names_unsubscribe, ["ns/host.test"]);
        assert!(goes.resource_names_subscribe.is_empty());
        assert_eq!(
            ads.request().await.resource_names_subscribe,
            ["ns/host.test"]
        );
        ads.send(removal("1", "ns/host.test")).await;
        ads.request().await;
    };
    let (gone, ()) = soon(async { tokio::join!(finder.host("ns", "host.test"), server) }).await;
    assert_eq!(gone, Ok(false));
}

#[tokio::test]
async fn nobody_waits_for_a_subscription_that_has_ended() {
    let world = world_with(true, |_| ()).await;
    let finder = world.client.finder().unwrap();
    world.worker.abort();
    let error = soon(finder.host("ns", "host.test")).await.unwrap_err();
    assert_eq!(error, xds::FindError::Stopped);
}

#[tokio::test]
async fn there_is_nothing_to_look_up_when_all_is_known() {
    assert!(world().await.client.finder().is_none());
}
