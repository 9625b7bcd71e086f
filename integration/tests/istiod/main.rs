//! The test control plane itself, with a plain gRPC client: what it refuses, what it pushes, what it signs.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyper_util::rt::{TokioExecutor, TokioIo};
use integration::istiod::{CLUSTER_ID, Ca, Istiod, Kind, Place, TOKEN, Xds};
use integration::model::PodRecord;
use integration::{Model, Policy, Service};
use proto::ca::IstioCertificateRequest;
use proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use proto::wellknown::value::Kind as Value;
use proto::wellknown::{Struct, Value as Field};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tonic::body::Body;
use tonic::codegen::tokio_stream::Stream;
use tonic::{Code, Request, Status, Streaming};

const SOON: Duration = Duration::from_secs(10);
const WHO: &str = "spiffe://cluster.local/ns/shop/sa/client";

/// A control plane on loopback, without root rights.
fn istiod(dir: &Path) -> Result<Istiod> {
    let place = || Place {
        netns: None,
        address: (Ipv4Addr::LOCALHOST, 0).into(),
    };
    Istiod::start(dir, &["127.0.0.1"], place(), place())
}

type Sender = hyper::client::conn::http2::SendRequest<Body>;

/// A connection as a daemon makes it.
async fn dial(istiod: &Istiod, to: SocketAddr) -> Result<Sender> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(istiod.root_file())?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(to).await?;
    let name = ServerName::IpAddress(to.ip().into());
    let tls = TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await?;
    let io = TokioIo::new(tls);
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// A service of one connection that shows a token.
macro_rules! client {
    ($client:ident, $sender:expr, $token:expr) => {{
        let (sender, token): (Sender, String) = ($sender, format!("Bearer {}", $token));
        let origin = http::Uri::from_static("https://istiod");
        let service = tower::service_fn(move |mut request: http::Request<Body>| {
            let headers = request.headers_mut();
            headers.insert("authorization", token.parse().expect("a header"));
            headers.insert("clusterid", http::HeaderValue::from_static(CLUSTER_ID));
            sender.clone().send_request(request)
        });
        $client::with_origin(service, origin)
    }};
}

struct Requests(mpsc::Receiver<DeltaDiscoveryRequest>);

impl Stream for Requests {
    type Item = DeltaDiscoveryRequest;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(context)
    }
}

/// A stream from the client's side.
struct Talk {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Talk {
    async fn open(istiod: &Istiod, token: &str) -> Result<Self, Status> {
        let sender = dial(istiod, istiod.xds.address())
            .await
            .expect("a connection");
        let (requests, queue) = mpsc::channel(8);
        let mut client = client!(AggregatedDiscoveryServiceClient, sender, token);
        let answer = client
            .delta_aggregated_resources(Request::new(Requests(queue)))
            .await?;
        Ok(Self {
            requests,
            responses: answer.into_inner(),
        })
    }

    async fn say(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.expect("an open stream");
    }

    async fn hear(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let message = tokio::time::timeout(SOON, self.responses.message());
        message
            .await
            .map_err(|_| Status::deadline_exceeded("silence"))??
            .ok_or_else(|| Status::ok("the end"))
    }

    async fn ack(&self, response: &DeltaDiscoveryResponse) {
        self.say(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        })
        .await;
    }
}

fn first(kind: Kind, held: &[(&str, &str)]) -> DeltaDiscoveryRequest {
    let fields = [
        ("NAME", "zt"),
        ("NAMESPACE", "istio-system"),
        ("INSTANCE_IPS", "1.1.1.1"),
        ("NODE_NAME", "node1"),
    ];
    let held = held.iter();
    DeltaDiscoveryRequest {
        node: Some(Node {
            id: "ztunnel~1.1.1.1~zt.istio-system~istio-system.svc.cluster.local".to_owned(),
            metadata: Some(metadata(&fields)),
            ..Default::default()
        }),
        type_url: kind.url().to_owned(),
        initial_resource_versions: held
            .map(|(name, version)| ((*name).to_owned(), (*version).to_owned()))
            .collect(),
        ..Default::default()
    }
}

fn metadata(fields: &[(&str, &str)]) -> Struct {
    let field = |text: &str| Field {
        kind: Some(Value::StringValue(text.to_owned())),
    };
    let fields = fields.iter();
    Struct {
        fields: fields
            .map(|(key, text)| ((*key).to_owned(), field(text)))
            .collect(),
    }
}

fn model() -> Model {
    let mut model = Model::default();
    model.services.push(Service {
        name: "server".to_owned(),
        namespace: "shop".to_owned(),
        vips: vec![Ipv4Addr::new(10, 96, 0, 10).into()],
        ports: vec![(80, 8080)],
        ..Service::default()
    });
    model.policies.push(Policy::new("Deny", "shop", "no", &[]));
    model
}

fn pod(name: &str, node: &str) -> PodRecord {
    PodRecord {
        uid: name.to_owned(),
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        service_account: name.to_owned(),
        node: node.to_owned(),
        phase: "Running".to_owned(),
        ..PodRecord::default()
    }
}

fn run<T>(what: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(what)
}

#[test]
fn a_stream_is_pushed_to_until_it_is_severed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let istiod = istiod(dir.path())?;
    istiod.publish(&model(), &[])?;
    run(async {
        let mut talk = Talk::open(&istiod, TOKEN).await?;
        talk.say(first(Kind::Address, &[])).await;
        talk.say(first(Kind::Authorization, &[])).await;
        let mut seen = Vec::new();
        for _ in 0..2 {
            let response = talk.hear().await?;
            seen.extend(integration::istiod::session::names(&response));
            talk.ack(&response).await;
        }
        assert_eq!(seen, ["shop/server.shop.svc.cluster.local", "shop/no"]);
        istiod.change(|content| content.remove(Kind::Authorization, "shop/no"));
        let response = talk.hear().await?;
        assert_eq!(response.removed_resources, ["shop/no"]);
        talk.ack(&response).await;
        istiod.sever(Some((Code::Unavailable, "closing")));
        let status = talk.hear().await.expect_err("an end");
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unavailable, "closing")
        );
        Ok(())
    })
}

#[test]
fn a_wrong_caller_is_refused_and_recorded() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let istiod = istiod(dir.path())?;
    run(async {
        let status = Talk::open(&istiod, "stolen").await.err();
        let status = status.context("a wrong token is taken")?;
        assert_eq!(status.code(), Code::Unauthenticated, "{status}");
        let mut talk = Talk::open(&istiod, TOKEN).await?;
        let mut request = first(Kind::Address, &[]);
        if let Some(node) = &mut request.node {
            node.id = "sidecar~1.1.1.1~zt.istio-system~x".to_owned();
        }
        talk.say(request).await;
        let status = talk.hear().await.expect_err("a wrong node");
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        istiod.behave(Xds::Refuse(Code::Internal, "not now".to_owned()));
        let status = Talk::open(&istiod, TOKEN).await.err();
        assert_eq!(status.map(|status| status.code()), Some(Code::Internal));
        Ok(())
    })
}

/// A request as the daemon makes it, or with something wrong.
fn csr(change: impl FnOnce(&mut CertificateParams)) -> Result<String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // 2.5.29.17, critical, which the library alone would not mark
    let uri = WHO.as_bytes();
    let length = u8::try_from(uri.len())?;
    let mut value = vec![0x30, length + 2, 0x86, length];
    value.extend_from_slice(uri);
    let mut names = CustomExtension::from_oid_content(&[2, 5, 29, 17], value);
    names.set_criticality(true);
    params.custom_extensions = vec![names];
    change(&mut params);
    Ok(params.serialize_request(&KeyPair::generate()?)?.pem()?)
}

#[test]
fn certificates_are_signed_for_right_requests_only() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let istiod = istiod(dir.path())?;
    istiod.authority().use_intermediates(true)?;
    let mut model = model();
    for (name, node) in [("client", "node1"), ("other", "node2")] {
        model.pods.push(pod(name, node));
    }
    istiod.place(&model);
    let asks = |csr: String, whom: &str| IstioCertificateRequest {
        csr,
        validity_duration: 60,
        metadata: Some(metadata(&[("ImpersonatedIdentity", whom)])),
    };
    run(async {
        let sender = dial(&istiod, istiod.ca.address()).await?;
        let mut client = client!(IstioCertificateServiceClient, sender, TOKEN);
        let good = asks(csr(|_| ())?, WHO);
        // from nobody's address, then from that of a node where no such pod is
        for node in [None, Some("node2")] {
            if let Some(node) = node {
                istiod.node_at(Ipv4Addr::LOCALHOST.into(), node);
            }
            let status = client.create_certificate(good.clone()).await.err();
            let status = status.context("signed for another node")?;
            assert_eq!(status.code(), Code::Unauthenticated, "{status}");
        }
        istiod.node_at(Ipv4Addr::LOCALHOST.into(), "node1");
        let chain = client.create_certificate(good.clone()).await?.into_inner();
        ensure!(
            chain.cert_chain.len() == 3,
            "{} elements",
            chain.cert_chain.len()
        );
        let wrong = [
            asks(csr(|_| ())?, "spiffe://cluster.local/ns/shop/sa/other"),
            asks(
                csr(|params| {
                    let name = "also.example".try_into().expect("a name");
                    params.custom_extensions.clear();
                    params.subject_alt_names.push(SanType::DnsName(name));
                })?,
                WHO,
            ),
            asks(
                csr(|params| {
                    params
                        .distinguished_name
                        .push(rcgen::DnType::CommonName, "me");
                })?,
                WHO,
            ),
            asks("nonsense".to_owned(), WHO),
        ];
        for request in wrong {
            let status = client.create_certificate(request).await.err();
            let status = status.context("a wrong request is signed")?;
            assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        }
        istiod.settings().ca = Ca::Refuse(Code::Unavailable, "full".to_owned());
        let status = client.create_certificate(good).await.err();
        assert_eq!(status.map(|status| status.code()), Some(Code::Unavailable));
        Ok(())
    })
}

#[test]
fn it_comes_back_at_the_same_address() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut istiod = istiod(dir.path())?;
    let before = istiod.xds.address();
    istiod.stop();
    let refused = std::net::TcpStream::connect(before);
    ensure!(refused.is_err(), "still there");
    istiod.restart()?;
    ensure!(istiod.xds.address() == before, "moved");
    run(async {
        Talk::open(&istiod, TOKEN).await?;
        Ok(())
    })
}
