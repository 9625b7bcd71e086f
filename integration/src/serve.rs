//! One address, served on a thread of its own, which can live in a network namespace. What is said on a connection is
//! left to its user.
//!
//! Stopping takes the thread, its runtime and with it every connection down at once, as a crash would.

use std::fs::File;
use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// Pause after an accept or a bind that failed.
const ACCEPT_AGAIN: Duration = Duration::from_millis(10);
/// Most time for a former listener to be gone.
const TAKEN_MAX: Duration = Duration::from_secs(3);

/// What happens on one connection, to its end.
pub type Connection = Pin<Box<dyn Future<Output = ()> + Send>>;
/// Makes that from a connection and its peer's address.
pub type Handler = Arc<dyn Fn(TcpStream, SocketAddr) -> Connection + Send + Sync>;

/// Where to listen.
#[derive(Debug, Clone)]
pub struct Place {
    /// network namespace; none = the caller's
    pub netns: Option<PathBuf>,
    /// address; with port 0 one is chosen, and kept from then on
    pub address: SocketAddr,
}

/// An address that is served or not.
pub struct Server {
    place: Place,
    name: &'static str,
    handler: Handler,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Server {
    /// Not running yet.
    ///
    /// - `name`: of its thread
    pub fn new(place: Place, name: &'static str, handler: Handler) -> Self {
        Self {
            place,
            name,
            handler,
            running: None,
        }
    }

    /// The address.
    pub fn address(&self) -> SocketAddr {
        self.place.address
    }

    /// Serves, if it does not already. It accepts when this returns.
    ///
    /// Errors: the namespace cannot be entered or the address not be bound.
    pub fn start(&mut self) -> Result<()> {
        if self.running.is_some() {
            return Ok(());
        }
        let (stop, stopped) = oneshot::channel();
        let (told, ready) = std::sync::mpsc::sync_channel(1);
        let (place, handler) = (self.place.clone(), Arc::clone(&self.handler));
        let thread = std::thread::Builder::new().name(self.name.to_owned());
        let thread = thread.spawn(move || match prepare(&place) {
            Ok((runtime, listener)) => {
                // the starter waits for this; an error would mean that it has gone
                let _ = told.send(listener.local_addr().map_err(anyhow::Error::from));
                runtime.block_on(async {
                    tokio::select! {
                        () = accept(listener, handler) => (),
                        // sent, or the value dropped: an end either way
                        _ = stopped => (),
                    }
                });
            }
            Err(why) => {
                let _ = told.send(Err(why));
            }
        })?;
        self.place.address = ready
            .recv()
            .map_err(|_| anyhow!("the server's thread ended"))?
            .with_context(|| format!("serve {}", self.place.address))?;
        self.running = Some((stop, thread));
        Ok(())
    }

    /// Ends at once, with all connections.
    pub fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            drop(stop);
            // a thread that panicked has said so on standard error
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn prepare(place: &Place) -> Result<(tokio::runtime::Runtime, TcpListener)> {
    if let Some(path) = &place.netns {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        setns(&file, CloneFlags::CLONE_NEWNET).context("enter the namespace")?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let listener = runtime.block_on(bind(place.address))?;
    Ok((runtime, listener))
}

/// Binds; for a while also an address that is still taken: a child that another test is just making has a copy of this server's
/// former listener until it runs its own program.
async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let deadline = Instant::now() + TAKEN_MAX;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
            done => return done,
        }
    }
}

async fn accept(listener: TcpListener, handler: Handler) {
    loop {
        match listener.accept().await {
            Ok((tcp, peer)) => drop(tokio::spawn(handler(tcp, peer))),
            Err(_) => tokio::time::sleep(ACCEPT_AGAIN).await,
        }
    }
}
