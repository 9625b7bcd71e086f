//! The applications that run in the pods of a test world: plain blocking sockets, nothing that knows of a mesh.
//!
//! Servers print `ready <address>` once they listen; clients print what they found out as one line of JSON and end
//! with 0, whether it worked or not (the JSON says so).
#![forbid(unsafe_code)]

mod connect;
mod dns;
mod h2;
mod hold;
mod load;
mod many;
mod proxied;
mod rpc;
mod serve;
mod talk;

use std::io::Write;
use std::net::SocketAddr;

use anyhow::Result;
use clap::{Parser, Subcommand};
use serde_json::Value;

/// Applications for the pods of a test world.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// HTTP server: answers every request with JSON that says who it is and which addresses it sees.
    Http {
        /// Address to listen on.
        #[arg(long, default_value = "[::]:8080")]
        listen: SocketAddr,
        /// What it calls itself.
        #[arg(long, default_value = "app")]
        name: String,
    },
    /// TCP echo server: sends back what it gets, and passes on the end of the input.
    Echo {
        /// Address to listen on.
        #[arg(long, default_value = "[::]:9000")]
        listen: SocketAddr,
    },
    /// TCP echo server that demands a PROXY header, and tells the client first what it says.
    Proxied {
        /// Address to listen on.
        #[arg(long, default_value = "[::]:9000")]
        listen: SocketAddr,
    },
    /// UDP echo server.
    UdpEcho {
        /// Address to listen on.
        #[arg(long, default_value = "[::]:7000")]
        listen: SocketAddr,
    },
    /// Sends one datagram and waits for the answer.
    Udp(serve::Udp),
    /// DNS server over UDP and TCP that answers every A question with one address.
    Dns(dns::Server),
    /// DNS questions.
    Dig(dns::Dig),
    /// One TCP connection, made in a particular way.
    Connect(connect::Connect),
    /// Many connections one after another, each with one exchange.
    Load(load::Load),
    /// One connection that is kept in use until it is cut.
    Hold(hold::Hold),
    /// Many connections that are kept in use.
    Many(many::Many),
    /// HTTP/2 server without TLS: sends back the body of each request as it comes.
    H2 {
        /// Address to listen on.
        #[arg(long, default_value = "[::]:8082")]
        listen: SocketAddr,
    },
    /// gRPC server without TLS: sends back each message, and ends with trailers.
    Grpc {
        /// Address to listen on.
        #[arg(long, default_value = "[::]:8083")]
        listen: SocketAddr,
    },
    /// gRPC calls to that server over one connection.
    Call(rpc::Call),
    /// TCP server that speaks first.
    Greeter(talk::Greeter),
    /// Listens to that server, then talks.
    Greet(talk::Greet),
    /// Many bytes through an echo server, both ways at once.
    Transfer(talk::Transfer),
    /// One HTTP/2 request whose body goes on and on, against that server.
    Stream(h2::Stream),
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Http { listen, name } => serve::http(listen, &name),
        Command::Echo { listen } => serve::echo(listen),
        Command::Proxied { listen } => proxied::serve(listen),
        Command::UdpEcho { listen } => serve::udp_echo(listen),
        Command::Udp(udp) => say(&udp.run()),
        Command::Dns(server) => server.run(),
        Command::Dig(dig) => say(&dig.run()),
        Command::Connect(connect) => say(&connect.run()),
        Command::Load(load) => say(&load.run()),
        Command::Hold(hold) => hold.run(),
        Command::Many(many) => say(&many.run()),
        Command::H2 { listen } => h2::serve(listen),
        Command::Grpc { listen } => rpc::serve(listen),
        Command::Call(call) => say(&call.run()),
        Command::Greeter(greeter) => greeter.run(),
        Command::Greet(greet) => say(&greet.run()),
        Command::Transfer(transfer) => say(&transfer.run()),
        Command::Stream(stream) => say(&stream.run()?),
    }
}

/// Prints one line of JSON.
pub(crate) fn say(value: &Value) -> Result<()> {
    line(&value.to_string());
    Ok(())
}

/// Prints one line now; nobody reading any more is fine.
pub(crate) fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// IPv4-mapped addresses as IPv4, for comparing.
pub(crate) fn plain(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
