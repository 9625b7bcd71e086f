//! gRPC as far as a proxy in between sees it: HTTP/2 without TLS, messages with a length before them, trailers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::{BufMut, Bytes, BytesMut};
use clap::Args;
use h2::RecvStream;
use http::{HeaderMap, Request, Response};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::h2::runtime;
use crate::serve;

/// Request headers that the server repeats as trailers, after `seen-`.
const REPEATED: [&str; 3] = ["x-waypoint", "x-forwarded-client-cert", "x-forwarded-for"];

/// Serves for ever.
pub fn serve(addr: SocketAddr) -> Result<()> {
    let listener = serve::listen(addr)?;
    listener.set_nonblocking(true).context("options")?;
    runtime()?.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (socket, _) = listener.accept().await?;
            // what goes wrong on one connection is that connection's matter
            tokio::spawn(async move {
                let _ = connection(socket).await;
            });
        }
    })
}

async fn connection(socket: TcpStream) -> Result<()> {
    let mut requests = h2::server::handshake(socket).await?;
    while let Some(request) = requests.accept().await {
        let (request, mut answer) = request?;
        tokio::spawn(async move {
            let (head, body) = request.into_parts();
            let messages = whole(body).await?;
            let response = Response::builder().header("content-type", "application/grpc");
            let mut send = answer.send_response(response.body(())?, false)?;
            send.send_data(messages, false)?;
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse()?);
            for name in REPEATED {
                if let Some(value) = head.headers.get(name) {
                    let key = http::HeaderName::from_bytes(format!("seen-{name}").as_bytes())?;
                    trailers.insert(key, value.clone());
                }
            }
            send.send_trailers(trailers)?;
            anyhow::Ok(())
        });
    }
    Ok(())
}

async fn whole(mut body: RecvStream) -> Result<Bytes> {
    let mut all = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        all.extend_from_slice(&data);
    }
    Ok(all.freeze())
}

/// Calls, one after another.
#[derive(Args)]
pub struct Call {
    /// Where to.
    #[arg(long)]
    to: SocketAddr,
    /// Service and method.
    #[arg(long, default_value = "/api/Echo")]
    path: String,
    /// How many.
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// Bytes of a message.
    #[arg(long, default_value_t = 100)]
    bytes: usize,
    /// Give up after this many milliseconds.
    #[arg(long, default_value_t = 10_000)]
    timeout_ms: u64,
}

impl Call {
    /// `ok` (all messages came back), `calls`, and of the last one `status`, `headers`, `trailers`.
    pub fn run(&self) -> Value {
        let limit = Duration::from_millis(self.timeout_ms);
        let calls = async { timeout(limit, self.calls()).await.context("time is up")? };
        let seen = runtime().and_then(|runtime| runtime.block_on(calls));
        seen.unwrap_or_else(|error| json!({"ok": false, "error": format!("{error:#}")}))
    }

    async fn calls(&self) -> Result<Value> {
        let socket = TcpStream::connect(self.to).await.context("connect")?;
        let (mut client, connection) = h2::client::handshake(socket).await?;
        tokio::spawn(connection);
        let mut seen = json!({"ok": true});
        for number in 0..self.count {
            let mut message = BytesMut::new();
            message.put_u8(0);
            message.put_u32(u32::try_from(self.bytes)?);
            message.put_bytes(u8::try_from(number % 256)?, self.bytes);
            let message = message.freeze();
            let request = Request::post(format!("http://{}{}", self.to, self.path))
                .header("content-type", "application/grpc")
                .header("te", "trailers");
            client = client.ready().await?;
            let (answer, mut send) = client.send_request(request.body(())?, false)?;
            send.send_data(message.clone(), true)?;
            let (head, mut body) = answer.await?.into_parts();
            let mut back = BytesMut::new();
            while let Some(data) = body.data().await {
                let data = data?;
                body.flow_control().release_capacity(data.len())?;
                back.extend_from_slice(&data);
            }
            let trailers = body.trailers().await?.unwrap_or_default();
            let ok = seen["ok"] == true && back == message;
            seen = json!({"ok": ok, "calls": number + 1, "status": head.status.as_u16(),
                "headers": texts(&head.headers), "trailers": texts(&trailers)});
        }
        Ok(seen)
    }
}

fn texts(headers: &HeaderMap) -> BTreeMap<String, String> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers
        .iter()
        .map(|(key, value)| (key.to_string(), text(value)))
        .collect()
}
