//! Both ends of a connection for the tests, and a peer that reads and writes single frames.

use std::future::Future;
use std::rc::Rc;

use bytes::Bytes;
use hbone::{
    Baggage, Connect, ConnectionError, Driver, Forwarded, Request, Sender, Server, Settings,
    Tunnel, handshake,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

/// Bytes an in-memory pipe holds: like a socket buffer.
pub const PIPE: usize = 64 << 10;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// Runs a test on one thread that may spawn local tasks.
pub fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test)
}

/// The same with a clock that only moves when nothing else can.
pub fn run_paused<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test)
}

/// A CONNECT with fixed contents.
pub fn connect() -> Connect<'static> {
    Connect {
        authority: "10.0.0.2:80",
        baggage: source().header(),
        forwarded: Forwarded {
            client: "10.0.0.1:40000".parse().unwrap(),
            host: Some("web.shop.svc"),
        },
        traceparent: "00-0123456789abcdef0123456789abcdef-0123456789abcdef-00"
            .parse()
            .unwrap(),
        forwarded_network: None,
    }
}

pub fn source() -> Baggage {
    Baggage {
        cluster: Some("c1".into()),
        namespace: Some("shop".into()),
        ..Baggage::default()
    }
}

pub type Driving = JoinHandle<Result<(), ConnectionError>>;

/// A client on `io` with its driver running.
pub async fn client(io: DuplexStream) -> (Sender, Driving) {
    let (sender, driver) = handshake(io, &Settings::default()).await.unwrap();
    (sender, spawn_local(driver))
}

/// Runs a server on `io`, each request in a task of its own. The handle gives how the connection ended.
pub fn serve<F>(
    io: DuplexStream,
    settings: Settings,
    handler: impl Fn(Request) -> F + 'static,
) -> Driving
where
    F: Future<Output = ()> + 'static,
{
    spawn_local(async move {
        let mut server = Server::handshake(io, &settings).await.unwrap();
        while let Some(request) = server.accept().await {
            spawn_local(handler(request?));
        }
        Ok(())
    })
}

/// A dial for pools: a new connection to a server that handles requests with `handler`.
pub async fn dial<F>(
    settings: &Settings,
    handler: Rc<dyn Fn(Request) -> F>,
) -> Result<(Sender, Driver<DuplexStream>), hbone::HandshakeError>
where
    F: Future<Output = ()> + 'static,
{
    let (near, far) = tokio::io::duplex(PIPE);
    serve(far, settings.clone(), move |request| handler(request));
    handshake(near, settings).await
}

/// Answers 200 and sends everything back, then ends.
pub async fn echo(request: Request) {
    let (mut send, mut recv) = request.reply.accept(None).unwrap().split();
    while let Some(Ok(data)) = recv.data().await {
        if write_all(&mut send, data).await.is_err() {
            return;
        }
    }
    let _ = send.finish();
}

/// Sends all of `data` as flow control allows.
pub async fn write_all(
    send: &mut hbone::SendHalf,
    mut data: Bytes,
) -> Result<(), hbone::TunnelError> {
    while !data.is_empty() {
        let len = send.ready(data.len()).await?;
        send.write(data.split_to(len))?;
    }
    Ok(())
}

/// Reads to the end.
pub async fn read_all(recv: &mut hbone::RecvHalf) -> Result<Vec<u8>, hbone::TunnelError> {
    let mut all = Vec::new();
    while let Some(data) = recv.data().await {
        all.extend_from_slice(&data?);
    }
    Ok(all)
}

/// A tunnel between a client and a server end in one process.
pub struct Pair {
    pub near: Tunnel,
    pub far: Tunnel,
    pub sender: Sender,
    pub driving: Driving,
    /// Server ends of further tunnels.
    pub more: tokio::sync::mpsc::UnboundedReceiver<Tunnel>,
}

pub async fn pair() -> Pair {
    let (near, far) = tokio::io::duplex(PIPE);
    let (give, mut more) = tokio::sync::mpsc::unbounded_channel();
    serve(far, Settings::default(), move |request| {
        let give = give.clone();
        async move {
            let _ = give.send(request.reply.accept(None).unwrap());
        }
    });
    let (sender, driving) = client(near).await;
    let near = sender.connect(&connect()).await.unwrap();
    Pair {
        near,
        far: more.recv().await.unwrap(),
        sender,
        driving,
        more,
    }
}

/// One HTTP/2 frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Frame {
    Frame {
        kind,
        flags,
        stream,
        payload: payload.to_vec(),
    }
}

/// A peer that does nothing by itself.
pub struct Raw(pub DuplexStream);

impl Raw {
    /// A raw server and a real client, the client's preface and first frames already read.
    pub async fn server() -> (Raw, Sender, Driving) {
        let (near, far) = tokio::io::duplex(PIPE);
        let (sender, driving) = client(near).await;
        let mut raw = Raw(far);
        raw.read_preface().await;
        assert_eq!(raw.read().await.kind, SETTINGS);
        raw.write(&frame(SETTINGS, 0, 0, &[])).await;
        raw.write(&frame(SETTINGS, ACK, 0, &[])).await;
        (raw, sender, driving)
    }

    /// A raw client on `io`, its handshake sent.
    pub async fn client(io: DuplexStream) -> Raw {
        let mut raw = Raw(io);
        raw.0.write_all(PREFACE).await.unwrap();
        raw.write(&frame(SETTINGS, 0, 0, &[])).await;
        raw.write(&frame(SETTINGS, ACK, 0, &[])).await;
        raw
    }

    pub async fn read_preface(&mut self) {
        let mut preface = [0; 24];
        self.0.read_exact(&mut preface).await.unwrap();
        assert_eq!(preface, PREFACE);
    }

    pub async fn write(&mut self, frame: &Frame) {
        let len = u32::try_from(frame.payload.len()).unwrap().to_be_bytes();
        let mut bytes = vec![len[1], len[2], len[3], frame.kind, frame.flags];
        bytes.extend_from_slice(&frame.stream.to_be_bytes());
        bytes.extend_from_slice(&frame.payload);
        self.0.write_all(&bytes).await.unwrap();
    }

    /// The next frame; panics at the end.
    pub async fn read(&mut self) -> Frame {
        self.next().await.expect("connection ended")
    }

    /// The next frame, or `None` at the end.
    pub async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; len as usize];
        self.0.read_exact(&mut payload).await.unwrap();
        Some(Frame {
            kind: head[3],
            flags: head[4],
            stream,
            payload,
        })
    }

    /// The next frame that is about a stream or the connection's end.
    pub async fn read_event(&mut self) -> Frame {
        loop {
            let frame = self.read().await;
            if ![SETTINGS, WINDOW_UPDATE, PING].contains(&frame.kind) {
                return frame;
            }
        }
    }

    /// Waits for the client's CONNECT and answers 200.
    pub async fn accept(&mut self) -> u32 {
        let head = self.read_event().await;
        assert_eq!((head.kind, head.flags), (HEADERS, END_HEADERS));
        self.write(&frame(HEADERS, END_HEADERS, head.stream, &[STATUS_200]))
            .await;
        head.stream
    }
}

/// `:status: 200` from HPACK's static table.
pub const STATUS_200: u8 = 0x88;

/// A header as an HPACK literal without indexing; `name` is an index of the static table.
pub fn literal(name: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![name, u8::try_from(value.len()).unwrap()];
    bytes.extend_from_slice(value);
    bytes
}

/// `:method` and `:authority` of a CONNECT, in HPACK.
pub fn connect_block(authority: &[u8]) -> Vec<u8> {
    [literal(2, b"CONNECT"), literal(1, authority)].concat()
}
