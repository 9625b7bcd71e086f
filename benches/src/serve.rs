//! What the loads talk to: a sink that counts, an echo, a small HTTP/1.1 server, and a plain TCP relay.
//!
//! One blocking thread per connection: the simplest program whose own cost is the kernel's. The relay is the floor
//! of any proxy in user space: two of them, without TLS or HTTP/2, stand beside the daemons in every table.

use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

/// Port of the sink: reads to the end, answers with the number of bytes (8, big endian).
pub const SINK: u16 = 7001;
/// Port of the echo.
pub const ECHO: u16 = 7002;
/// Port of the HTTP server.
pub const HTTP: u16 = 7003;
/// Port of the server that answers one byte and closes: new connections, without the client's ports running out.
pub const ONCE: u16 = 7004;
/// A relay for port `p` listens on `p + RELAY`.
pub const RELAY: u16 = 100;

/// Read size of sink and relay, in bytes; below 256 KiB big segments are cut up.
const BUFFER: usize = 256 * 1024;
/// The HTTP answer's body, in bytes.
const BODY: usize = 256;

/// Serves the four ports until killed; says `ready` on stdout once all listen.
pub fn targets() -> Result<()> {
    let listeners = [
        (SINK, sink as Serve),
        (ECHO, echo),
        (HTTP, http),
        (ONCE, once),
    ];
    let handles = listeners.map(|(port, serve)| Ok(accept(listen(port)?, serve)));
    await_all(handles)
}

/// Relays every port to the same port (plus `offset`) at `to`; says `ready` on stdout once all listen.
pub fn relay(to: std::net::IpAddr, offset: u16) -> Result<()> {
    let handles = [SINK, ECHO, HTTP, ONCE].map(|port| {
        let upstream = SocketAddr::new(to, port + offset);
        Ok(accept(listen(port + RELAY)?, move |stream| {
            forward(stream, upstream)
        }))
    });
    await_all(handles)
}

type Serve = fn(TcpStream) -> std::io::Result<()>;

fn await_all(handles: [Result<thread::JoinHandle<()>>; 4]) -> Result<()> {
    let handles = handles.into_iter().collect::<Result<Vec<_>>>()?;
    println!("ready");
    for handle in handles {
        handle.join().ok().context("a listener's thread panicked")?;
    }
    Ok(())
}

fn listen(port: u16) -> Result<TcpListener> {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .with_context(|| format!("cannot listen on port {port}"))
}

fn accept<F>(listener: TcpListener, serve: F) -> thread::JoinHandle<()>
where
    F: Fn(TcpStream) -> std::io::Result<()> + Clone + Send + 'static,
{
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            // A peer that goes away is the end of its thread, nothing more.
            thread::spawn(move || stream.set_nodelay(true).and_then(|()| serve(stream)).ok());
        }
    })
}

fn sink(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut total = 0u64;
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&total.to_be_bytes()),
            read => total += read as u64,
        }
    }
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            read => stream.write_all(&buffer[..read])?,
        }
    }
}

fn once(mut stream: TcpStream) -> std::io::Result<()> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)
}

fn http(stream: TcpStream) -> std::io::Result<()> {
    let mut answer =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {BODY}\r\n\r\n")
            .into_bytes();
    answer.resize(answer.len() + BODY, b'x');
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line == "\r\n" {
            reader.get_mut().write_all(&answer)?;
        }
    }
}

fn forward(client: TcpStream, to: SocketAddr) -> std::io::Result<()> {
    let server = TcpStream::connect(to)?;
    server.set_nodelay(true)?;
    let (from, into) = (client.try_clone()?, server.try_clone()?);
    let up = thread::spawn(move || copy(from, into));
    copy(server, client)?;
    up.join()
        .map_err(|_| std::io::Error::other("relay thread panicked"))?
}

fn copy(mut from: TcpStream, mut into: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer)? {
            0 => return into.shutdown(Shutdown::Write),
            read => into.write_all(&buffer[..read])?,
        }
    }
}
