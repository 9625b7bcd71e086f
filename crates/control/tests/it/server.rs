//! A small istiod: real TLS, real gRPC, driven step by step by the test.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use http::HeaderMap;
use proto::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::codegen::BoxStream;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, Server};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::pki::Pki;
use crate::soon;

type Outcome = Result<DeltaDiscoveryResponse, Status>;

/// What a TLS client said first.
#[derive(Debug, PartialEq, Eq)]
pub struct Hello {
    pub sni: Option<String>,
    pub alpn: Option<Vec<u8>>,
}

/// One call for a certificate.
pub struct Signing {
    pub headers: HeaderMap,
    pub message: IstioCertificateRequest,
}

/// What the CA does.
pub enum Answer {
    /// Signs; these are the elements after the leaf.
    Sign(Box<Pki>, Vec<String>),
    /// Sends these elements.
    Chain(Vec<String>),
    Refuse(Code, &'static str),
    Hang,
}

/// One stream of discovery, in the hands of the test.
pub struct Ads {
    pub headers: HeaderMap,
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Outcome>,
}

impl Ads {
    pub async fn request(&mut self) -> DeltaDiscoveryRequest {
        soon(self.requests.message()).await.unwrap().unwrap()
    }

    pub async fn send(&self, response: DeltaDiscoveryResponse) {
        soon(self.responses.send(Ok(response))).await.unwrap();
    }

    /// Ends the stream.
    pub async fn fail(self, status: Status) {
        soon(self.responses.send(Err(status))).await.unwrap();
    }
}

pub struct Istiod {
    pub address: SocketAddr,
    hellos: UnboundedReceiver<Hello>,
    signings: UnboundedReceiver<Signing>,
    streams: UnboundedReceiver<Ads>,
    shared: Arc<Shared>,
    accept: JoinHandle<()>,
}

struct Shared {
    tls: Mutex<Arc<ServerConfig>>,
    answer: Mutex<Answer>,
    refusal: Mutex<Option<Status>>,
    /// Clones of all connections.
    sockets: Mutex<Vec<std::net::TcpStream>>,
    stalled: Arc<AtomicBool>,
    hellos: UnboundedSender<Hello>,
    signings: UnboundedSender<Signing>,
    streams: UnboundedSender<Ads>,
}

impl Istiod {
    pub async fn start(tls: Arc<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (hellos_in, hellos) = mpsc::unbounded_channel();
        let (signings_in, signings) = mpsc::unbounded_channel();
        let (streams_in, streams) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            tls: Mutex::new(tls),
            answer: Mutex::new(Answer::Refuse(Code::Unimplemented, "no CA")),
            refusal: Mutex::default(),
            sockets: Mutex::default(),
            stalled: Arc::default(),
            hellos: hellos_in,
            signings: signings_in,
            streams: streams_in,
        });
        Self {
            address: listener.local_addr().unwrap(),
            hellos,
            signings,
            streams,
            accept: serve(&shared, listener),
            shared,
        }
    }

    /// The address by a name of the client's choice.
    pub fn url(&self, host: &str) -> String {
        format!("https://{host}:{}", self.address.port())
    }

    /// Shows another certificate on new connections.
    pub fn show(&self, tls: Arc<ServerConfig>) {
        *self.shared.tls.lock().unwrap() = tls;
    }

    pub fn answer(&self, answer: Answer) {
        *self.shared.answer.lock().unwrap() = answer;
    }

    /// Refuses the next stream.
    pub fn refuse(&self, status: Status) {
        *self.shared.refusal.lock().unwrap() = Some(status);
    }

    /// From now on all connections are silent, without being closed.
    pub fn stall(&self) {
        self.shared.stalled.store(true, Ordering::SeqCst);
    }

    /// Cuts all connections.
    pub fn cut(&self) {
        for socket in self.shared.sockets.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both); // the client may have closed it
        }
    }

    /// Cuts all connections and takes no new ones.
    pub async fn down(&mut self) {
        self.accept.abort();
        let _ = (&mut self.accept).await;
        self.cut();
    }

    /// Takes connections again, at the same address.
    pub async fn up(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.accept = serve(&self.shared, listener);
    }

    pub async fn hello(&mut self) -> Hello {
        soon(self.hellos.recv()).await.unwrap()
    }

    pub async fn signing(&mut self) -> Signing {
        soon(self.signings.recv()).await.unwrap()
    }

    pub async fn stream(&mut self) -> Ads {
        soon(self.streams.recv()).await.unwrap()
    }

    /// Handshakes and calls that nobody looked at.
    pub fn unseen(&mut self) -> (usize, usize, usize) {
        (self.hellos.len(), self.signings.len(), self.streams.len())
    }
}

impl Drop for Istiod {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

/// Shakes hands, and hands the streams to gRPC.
fn serve(shared: &Arc<Shared>, listener: TcpListener) -> JoinHandle<()> {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let (accepted, incoming) = mpsc::channel::<io::Result<Connection>>(16);
        let service = Service(Arc::clone(&shared));
        let grpc = Server::builder()
            .add_service(AggregatedDiscoveryServiceServer::new(service.clone()))
            .add_service(IstioCertificateServiceServer::new(service))
            .serve_with_incoming(ReceiverStream::new(incoming));
        let accept = async {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let clone = tcp.as_fd().try_clone_to_owned().unwrap();
                shared.sockets.lock().unwrap().push(clone.into());
                let acceptor = TlsAcceptor::from(Arc::clone(&*shared.tls.lock().unwrap()));
                // one handshake at a time is enough here; a failed one is the client's affair
                let Ok(tls) = acceptor.accept(tcp).await else {
                    continue;
                };
                let session = tls.get_ref().1;
                let hello = Hello {
                    sni: session.server_name().map(str::to_owned),
                    alpn: session.alpn_protocol().map(<[u8]>::to_vec),
                };
                let _ = shared.hellos.send(hello);
                let stalled = Arc::clone(&shared.stalled);
                let _ = accepted.send(Ok(Connection { tls, stalled })).await;
            }
        };
        tokio::select! {
            served = grpc => served.unwrap(),
            () = accept => {}
        }
    })
}

#[derive(Clone)]
struct Service(Arc<Shared>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = BoxStream<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Outcome>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        panic!("the state of the world is never asked for")
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        if let Some(status) = self.0.refusal.lock().unwrap().take() {
            return Err(status);
        }
        let (responses, outgoing) = mpsc::channel(16);
        let ads = Ads {
            headers: request.metadata().clone().into_headers(),
            requests: request.into_inner(),
            responses,
        };
        let _ = self.0.streams.send(ads);
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let headers = request.metadata().clone().into_headers();
        let message = request.into_inner();
        let csr = message.csr.clone();
        let _ = self.0.signings.send(Signing { headers, message });
        let chain = match &*self.0.answer.lock().unwrap() {
            Answer::Sign(pki, rest) => {
                let mut chain = vec![pki.sign(&csr)];
                chain.extend(rest.iter().cloned());
                Some(chain)
            }
            Answer::Chain(chain) => Some(chain.clone()),
            Answer::Refuse(code, text) => return Err(Status::new(*code, *text)),
            Answer::Hang => None,
        };
        match chain {
            Some(cert_chain) => Ok(Response::new(IstioCertificateResponse { cert_chain })),
            None => std::future::pending().await,
        }
    }
}

/// A connection that can fall silent.
struct Connection {
    tls: TlsStream<TcpStream>,
    stalled: Arc<AtomicBool>,
}

impl Connection {
    fn silent(&self) -> bool {
        self.stalled.load(Ordering::SeqCst)
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.tls).poll_read(cx, buf);
        if read.is_ready() && self.silent() {
            buf.set_filled(before);
            return Poll::Pending; // never woken again
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.silent() {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
