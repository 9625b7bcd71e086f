//! One HTTP/2 stream that is in use for as long as the test wants, and the server that echoes it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Args;
use h2::{RecvStream, SendStream};
use http::{Request, Response};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{sleep, timeout};

use crate::{line, serve};

/// One thread, with sockets and timers.
pub fn runtime() -> Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .context("a runtime")
}

/// Sends back the body of each request as it comes.
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
    socket.set_nodelay(true)?;
    let mut requests = h2::server::handshake(socket).await?;
    while let Some(request) = requests.accept().await {
        let (request, mut answer) = request?;
        let send = answer.send_response(Response::new(()), false)?;
        tokio::spawn(echo(request.into_body(), send));
    }
    Ok(())
}

async fn echo(mut body: RecvStream, mut send: SendStream<Bytes>) -> Result<()> {
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        send.send_data(data, false)?;
    }
    send.send_data(Bytes::new(), true)?;
    Ok(())
}

/// A request that goes on.
#[derive(Args)]
pub struct Stream {
    /// Where to.
    #[arg(long)]
    to: SocketAddr,
    /// Pause between two exchanges, in milliseconds.
    #[arg(long, default_value_t = 50)]
    every_ms: u64,
    /// No answer for this long counts as cut, in milliseconds.
    #[arg(long, default_value_t = 10_000)]
    timeout_ms: u64,
    /// Goes on until this file exists.
    #[arg(long)]
    stop_file: PathBuf,
}

impl Stream {
    /// Prints `open 1` after the first exchange; at the end `exchanges`, `ms_max` and `cut` (a list, empty or with why).
    pub fn run(&self) -> Result<Value> {
        let mut seen = (0u64, 0u128);
        let ended = runtime()?.block_on(self.exchanges(&mut seen));
        let cut: Vec<_> = ended.err().map(|e| format!("{e:#}")).into_iter().collect();
        Ok(json!({"exchanges": seen.0, "ms_max": seen.1, "cut": cut}))
    }

    async fn exchanges(&self, seen: &mut (u64, u128)) -> Result<()> {
        let limit = Duration::from_millis(self.timeout_ms);
        let socket = timeout(limit, TcpStream::connect(self.to))
            .await
            .context("time is up")?
            .context("connect")?;
        socket.set_nodelay(true)?;
        let (mut client, connection) = h2::client::handshake(socket).await?;
        tokio::spawn(connection);
        let request = Request::post(format!("http://{}/echo", self.to)).body(())?;
        let (answer, mut send) = client.send_request(request, false)?;
        let answer = timeout(limit, answer).await.context("no head in time")??;
        let mut body = answer.into_body();
        loop {
            let asked = Instant::now();
            let data = Bytes::copy_from_slice(&seen.0.to_be_bytes());
            send.send_data(data.clone(), false).context("send")?;
            let mut back = Vec::new();
            while back.len() < data.len() {
                let part = timeout(limit, body.data()).await.context("no answer")?;
                let part = part.context("the stream ended")?.context("receive")?;
                body.flow_control().release_capacity(part.len())?;
                back.extend_from_slice(&part);
            }
            ensure!(back == data, "wrong bytes");
            if seen.0 == 0 {
                line("open 1");
            }
            *seen = (seen.0 + 1, seen.1.max(asked.elapsed().as_millis()));
            if self.stop_file.exists() {
                break;
            }
            sleep(Duration::from_millis(self.every_ms)).await;
        }
        send.send_data(Bytes::new(), true).context("end")?;
        let end = timeout(limit, body.data()).await.context("no end")?;
        ensure!(
            end.is_none_or(|part| part.is_ok_and(|p| p.is_empty())),
            "no clean end"
        );
        Ok(())
    }
}
