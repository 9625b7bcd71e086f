//! The test API server itself, with a plain HTTP client: what it lists, watches, changes and refuses.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use integration::apiserver::{ApiServer, Fault, Gone, How, Kind, Order, Rule, TOKEN};
use integration::serve::Place;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

const SOON: Duration = Duration::from_secs(10);
const MERGE: &str = "application/merge-patch+json";
const JSON: &str = "application/json";

/// An API server on loopback, without root rights, with two pods on two nodes.
fn api(dir: &Path) -> Result<ApiServer> {
    let place = Place {
        netns: None,
        address: (Ipv4Addr::LOCALHOST, 0).into(),
    };
    let api = ApiServer::start(dir, &["127.0.0.1"], place)?;
    api.namespace("shop", &BTreeMap::new());
    for (name, node) in [("a", "node1"), ("b", "node2"), ("c", "node1")] {
        put(&api, name, node);
    }
    Ok(api)
}

fn put(api: &ApiServer, name: &str, node: &str) {
    api.change(|content| {
        content.put(
            Kind::Pods,
            json!({
                "kind": "Pod", "apiVersion": "v1",
                "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}")},
                "spec": {"nodeName": node}, "status": {"phase": "Running"},
            }),
        )
    });
}

/// A client with one connection.
struct Client {
    send: SendRequest<Full<Bytes>>,
    token: String,
}

impl Client {
    async fn dial(api: &ApiServer) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(api.root_file())?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let tcp = TcpStream::connect(api.address()).await?;
        let name = ServerName::IpAddress(api.address().ip().into());
        let tls = TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await?;
        ensure!(
            tls.get_ref().1.alpn_protocol() == Some(b"http/1.1"),
            "HTTP/1.1"
        );
        let (send, connection) = handshake(TokioIo::new(tls)).await?;
        tokio::spawn(async move { drop(connection.await) });
        let token = std::fs::read_to_string(api.token_file())?;
        Ok(Self { send, token })
    }

    async fn begin(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<http::Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "kubernetes")
            .header("user-agent", "test/1")
            .header("authorization", format!("Bearer {}", self.token));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::from(Bytes::from(body.to_owned())))?;
        self.send.ready().await?;
        Ok(timeout(SOON, self.send.send_request(request)).await??)
    }

    async fn ask(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<(u16, Value)> {
        let answer = self.begin(method, path, headers, body).await?;
        let status = answer.status().as_u16();
        let bytes = timeout(SOON, answer.into_body().collect())
            .await??
            .to_bytes();
        Ok((status, serde_json::from_slice(&bytes).unwrap_or_default()))
    }

    async fn get(&mut self, path: &str) -> Result<(u16, Value)> {
        self.ask("GET", path, &[], "").await
    }

    async fn patch(&mut self, name: &str, body: Value) -> Result<(u16, Value)> {
        let path = format!("/api/v1/namespaces/shop/pods/{name}");
        let body = body.to_string();
        self.ask("PATCH", &path, &[("content-type", MERGE)], &body)
            .await
    }
}

/// A watch under way.
struct Watching {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Watching {
    async fn begin(api: &ApiServer, query: &str) -> Result<Self> {
        let mut client = Client::dial(api).await?;
        let answer = client.begin("GET", query, &[], "").await?;
        let status = answer.status();
        ensure!(status == 200, "{query}: {status}");
        Ok(Self {
            body: answer.into_body(),
            buffer: Vec::new(),
        })
    }

    /// The next line; none at a clean end.
    async fn line(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line = self.buffer.drain(..=end).collect();
                return Ok(Some(String::from_utf8(line)?));
            }
            match timeout(SOON, self.body.frame()).await.context("no event")? {
                Some(frame) => {
                    let data = frame?
                        .into_data()
                        .map_err(|_| anyhow::anyhow!("trailers"))?;
                    self.buffer.extend_from_slice(&data);
                }
                None => return Ok(None),
            }
        }
    }

    /// Type, name and version of the next event.
    async fn event(&mut self) -> Result<(String, Value)> {
        let line = self.line().await?.context("the stream ended")?;
        let event: Value = serde_json::from_str(&line)?;
        let kind = event["type"].as_str().context("no type")?.to_owned();
        Ok((kind, event["object"].clone()))
    }

    async fn expect(&mut self, kind: &str, name: &str) -> Result<Value> {
        let (found, object) = self.event().await?;
        let right = found == kind && object["metadata"]["name"] == name;
        ensure!(right, "wanted {kind} {name}, got {found} {object}");
        Ok(object)
    }
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().into_iter().flatten();
    items
        .filter_map(|item| item["metadata"]["name"].as_str())
        .collect()
}

#[tokio::test]
async fn lists_select_and_come_in_pieces() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let api = api(dir.path())?;
    let mut client = Client::dial(&api).await?;
    let (status, list) = client
        .get("/api/v1/pods?fieldSelector=spec.nodeName%3Dnode1")
        .await?;
    assert_eq!((status, names(&list)), (200, vec!["a", "c"]), "{list}");
    assert_eq!(
        (&list["kind"], &list["apiVersion"]),
        (&json!("PodList"), &json!("v1"))
    );
    assert!(list["items"][0].get("kind").is_none(), "{list}");
    let version = list["metadata"]["resourceVersion"].clone();

    let (_, first) = client.get("/api/v1/pods?limit=2").await?;
    assert_eq!(
        (names(&first), &first["metadata"]["remainingItemCount"]),
        (vec!["a", "b"], &json!(1))
    );
    put(&api, "d", "node1");
    let token = first["metadata"]["continue"].as_str().context("no token")?;
    let next = format!("/api/v1/pods?limit=2&continue={token}");
    let (_, rest) = client.get(&next).await?;
    assert_eq!(
        (names(&rest), &rest["metadata"]["resourceVersion"]),
        (vec!["c"], &version)
    );
    let (status, gone) = client.get(&next).await?;
    assert_eq!(
        (status, &gone["reason"]),
        (410, &json!("Expired")),
        "{gone}"
    );

    let partial =
        "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1, application/json";
    let answer = client
        .ask("GET", "/api/v1/namespaces", &[("accept", partial)], "")
        .await?;
    assert_eq!(answer.1["kind"], "PartialObjectMetadataList");
    assert!(answer.1["items"][0].get("spec").is_none());
    let answer = client
        .ask("GET", "/api/v1/pods", &[("accept", "application/yaml")], "")
        .await?;
    assert_eq!(answer.0, 406);
    for (path, status) in [
        ("/api/v1/pods?fieldSelector=spec.image%3Dx", 400),
        ("/api/v1/pods?resourceVersion=x", 400),
        ("/api/v1/pods?resourceVersion=99999", 504),
        ("/api/v1/namespaces/shop/pods/a", 200),
        ("/api/v1/namespaces/shop/pods/none", 404),
        ("/api/v1/services", 403),
        ("/apis/apps/v1", 404),
        ("/version", 200),
    ] {
        assert_eq!(client.get(path).await?.0, status, "{path}");
    }
    client.token = "wrong".to_owned();
    let (status, refused) = client.get("/api/v1/pods").await?;
    assert_eq!((status, &refused["kind"]), (401, &json!("Status")));
    client.token = TOKEN.to_owned();

    let asked = api.record().since(0);
    assert_eq!((asked[0].agent.as_str(), asked[0].status), ("test/1", 200));
    assert!(asked[0].is("list", "pods"));
    Ok(())
}

#[tokio::test]
async fn watches_show_what_the_selector_sees() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let api = api(dir.path())?;
    let from = api.content().version();
    let query =
        "/api/v1/pods?watch=true&allowWatchBookmarks=true&fieldSelector=spec.nodeName%3Dnode1";
    put(&api, "d", "node1");
    let mut watch = Watching::begin(&api, &format!("{query}&resourceVersion={from}")).await?;
    watch.expect("ADDED", "d").await?;
    put(&api, "e", "node2");
    api.edit(Kind::Pods, "shop", "d", |pod| {
        pod["metadata"]["labels"] = json!({"x": "y"})
    });
    let seen = watch.expect("MODIFIED", "d").await?;
    assert_eq!(
        (&seen["kind"], &seen["metadata"]["labels"]["x"]),
        (&json!("Pod"), &json!("y"))
    );
    api.change(|content| content.remove(Kind::Pods, "shop", "d"));
    let last = watch.expect("DELETED", "d").await?;
    assert_eq!(
        last["metadata"]["resourceVersion"],
        api.content().version().to_string()
    );
    api.order(Order::Bookmark);
    let (kind, object) = watch.event().await?;
    assert_eq!(kind, "BOOKMARK");
    assert_eq!(
        object["metadata"]["resourceVersion"],
        api.content().version().to_string()
    );

    api.withhold(Kind::Pods, true);
    put(&api, "f", "node1");
    let early = timeout(Duration::from_millis(100), watch.event()).await;
    assert!(early.is_err(), "withheld: {early:?}");
    api.withhold(Kind::Pods, false);
    watch.expect("ADDED", "f").await?;

    let streaming = format!("{query}&sendInitialEvents=true&resourceVersionMatch=NotOlderThan");
    let mut watch = Watching::begin(&api, &streaming).await?;
    for name in ["a", "c", "f"] {
        watch.expect("ADDED", name).await?;
    }
    let (kind, object) = watch.event().await?;
    assert_eq!(kind, "BOOKMARK");
    assert_eq!(
        object["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    let mut client = Client::dial(&api).await?;
    assert_eq!(
        client
            .get(&format!("{query}&sendInitialEvents=true"))
            .await?
            .0,
        422
    );
    Ok(())
}

#[tokio::test]
async fn watches_end_in_every_way() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let api = api(dir.path())?;
    let from = api.content().version();
    let query = format!("/api/v1/pods?watch=1&resourceVersion={from}");
    let mut watch = Watching::begin(&api, &format!("{query}&timeoutSeconds=0")).await?;
    assert_eq!(watch.line().await?, None, "a clean end");
    let mut watch = Watching::begin(&api, &query).await?;
    api.order(Order::End);
    assert_eq!(watch.line().await?, None, "a clean end");
    for order in [Order::Break, Order::BreakInLine] {
        let mut watch = Watching::begin(&api, &query).await?;
        api.order(order);
        assert!(watch.line().await.is_err(), "{order:?}");
    }
    let mut watch = Watching::begin(&api, &query).await?;
    api.order(Order::Expire);
    let (kind, status) = watch.event().await?;
    assert_eq!((kind.as_str(), &status["code"]), ("ERROR", &json!(410)));
    assert_eq!(watch.line().await?, None);

    api.forget();
    let mut watch = Watching::begin(&api, &query).await?;
    assert_eq!(watch.event().await?.1["reason"], "Expired");
    api.settings().gone = Gone::Status;
    let mut client = Client::dial(&api).await?;
    assert_eq!(client.get(&query).await?.0, 410);
    Ok(())
}

#[tokio::test]
async fn patches_are_checked() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let api = api(dir.path())?;
    let mut client = Client::dial(&api).await?;
    let set = |value: Value| json!({"metadata": {"annotations": {"x": value}}});
    let (status, pod) = client.patch("a", set(json!("1"))).await?;
    assert_eq!(
        (status, &pod["metadata"]["annotations"]["x"]),
        (200, &json!("1"))
    );
    let version = api.content().version();
    let (status, pod) = client.patch("a", set(json!("1"))).await?;
    assert_eq!(
        (status, api.content().version()),
        (200, version),
        "nothing changed: {pod}"
    );
    client.patch("a", set(Value::Null)).await?;
    assert_eq!(api.annotation("shop", "a", "x"), None);
    assert_eq!(client.patch("none", set(json!("1"))).await?.0, 404);
    let stale = json!({"metadata": {"uid": "another", "annotations": {"x": "1"}}});
    assert_eq!(client.patch("a", stale).await?.0, 409);
    let path = "/api/v1/namespaces/shop/pods/a";
    let (status, refused) = client
        .ask("PATCH", path, &[("content-type", JSON)], "{}")
        .await?;
    assert_eq!(
        (status, &refused["reason"]),
        (415, &json!("UnsupportedMediaType"))
    );
    assert_eq!(client.ask("DELETE", path, &[], "").await?.0, 403);
    let last = api.record().wait(0, SOON, "the removal", |one| {
        one.annotation("x")
            .filter(|value| value.is_null())
            .map(|_| one.clone())
    })?;
    assert!(last.is("patch", "pods") && last.name() == "a" && last.content_type == MERGE);
    Ok(())
}

#[tokio::test]
async fn events_are_checked() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let api = api(dir.path())?;
    let mut client = Client::dial(&api).await?;
    let event = json!({
        "kind": "Event", "apiVersion": "events.k8s.io/v1",
        "metadata": {"generateName": "a-", "namespace": "shop"}, "eventTime": "2026-01-02T03:04:05.123456Z",
        "regarding": {"kind": "Pod", "namespace": "shop", "name": "a"}, "note": "why", "type": "Warning",
        "reason": "EnrollmentFailed", "action": "Enroll", "reportingController": "z", "reportingInstance": "z",
    });
    let path = "/apis/events.k8s.io/v1/namespaces/shop/events";
    let body = event.to_string();
    let (status, made) = client
        .ask("POST", path, &[("content-type", JSON)], &body)
        .await?;
    assert_eq!((status, &made["note"]), (201, &json!("why")), "{made}");
    assert_eq!(api.events("a")[0]["message"], "why");
    let name = made["metadata"]["name"].as_str().context("no name")?;
    let series = json!({"series": {"count": 2, "lastObservedTime": "2026-01-02T03:04:06.123456Z"}});
    let one = format!("{path}/{name}");
    let (status, _) = client
        .ask(
            "PATCH",
            &one,
            &[("content-type", MERGE)],
            &series.to_string(),
        )
        .await?;
    assert_eq!(
        (status, &api.events("a")[0]["series"]["count"]),
        (200, &json!(2))
    );
    let core = json!({
        "metadata": {"name": "a.1", "namespace": "shop"}, "reason": "R", "message": "m", "type": "Normal",
        "involvedObject": {"kind": "Pod", "namespace": "shop", "name": "a"},
    });
    let path = "/api/v1/namespaces/shop/events";
    for status in [201, 409] {
        let answer = client
            .ask("POST", path, &[("content-type", JSON)], &core.to_string())
            .await?;
        assert_eq!(answer.0, status);
    }
    for (path, status) in [
        ("/api/v1/namespaces/none/events", 404),
        ("/api/v1/namespaces/shop/pods", 403),
    ] {
        let answer = client
            .ask("POST", path, &[("content-type", JSON)], &core.to_string())
            .await?;
        assert_eq!(answer.0, status, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn rules_faults_and_absence() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut api = api(dir.path())?;
    let mut client = Client::dial(&api).await?;
    api.settings().rules = Rule::without("patch", "pods");
    let (status, refused) = client.patch("a", json!({})).await?;
    assert_eq!(status, 403);
    let message = refused["message"].as_str().unwrap_or_default();
    assert!(
        message
            .contains("cannot patch resource \"pods\" in API group \"\" in the namespace \"shop\""),
        "{message}"
    );
    let review = json!({"spec": {"resourceAttributes": {"verb": "patch", "resource": "pods"}}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let (_, answer) = client
        .ask("POST", path, &[("content-type", JSON)], &review.to_string())
        .await?;
    assert_eq!(answer["status"]["allowed"], false);

    api.fault(Fault::new("list", "pods", How::Status(429, Some(1))).times(1));
    let answer = client.begin("GET", "/api/v1/pods", &[], "").await?;
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["retry-after"]),
        (429, &http::HeaderValue::from(1))
    );
    drop(answer.into_body().collect().await?);
    assert_eq!(client.get("/api/v1/pods").await?.0, 200);
    api.fault(Fault::new("", "", How::Drop));
    assert!(client.get("/api/v1/pods").await.is_err());
    api.heal();

    api.stop();
    assert!(TcpStream::connect(api.address()).await.is_err());
    put(&api, "z", "node1");
    api.restart()?;
    let (_, list) = Client::dial(&api).await?.get("/api/v1/pods").await?;
    assert!(names(&list).contains(&"z"));
    Ok(())
}

#[test]
fn rules_are_read_from_a_cluster_role() -> Result<()> {
    let yaml = "kind: ClusterRole\nrules:\n- apiGroups: ['']\n  resources: [pods]\n  verbs: [get, list, watch, patch]\n";
    assert_eq!(Rule::of_cluster_role(yaml)?[0], Rule::minimal()[0]);
    assert!(!Rule::of_chart()?.is_empty());
    Ok(())
}
