//! Opens a TCP connection from a pod's namespace, within a bound of time.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::failure::Failure;
use crate::needs::{Dial, Net};
use crate::pod::Pod;
use crate::refusals::Refusals;

/// Longest wait for any TCP connection (spec: routing §13).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Source ports tried for one connection to the application under the client's address. A port chosen may be taken for
/// this very target, by another flow or by one just ended, which only `connect()` finds out. Each try costs the thread some
/// ten microseconds; with half of the ports taken all of them fail once in 256 times.
const SOURCE_PORTS_MAX: usize = 8;

/// Connects as `dial` says.
///
/// Errors: the kernel's; `TimedOut` after 10 s.
pub(crate) async fn connect(net: &dyn Net, dial: &Dial) -> io::Result<TcpStream> {
    in_time(once(net, dial)).await
}

/// Connects to the application of `pod`, under the address `from` if that can be: when no port is free under it, under the
/// pod's own, which is counted (spec: routing §8.4).
///
/// Errors: [`Failure::Application`].
pub(crate) async fn application(
    pod: &Pod,
    to: SocketAddr,
    from: Option<IpAddr>,
    refusals: &Refusals,
) -> Result<TcpStream, Failure> {
    let done = in_time(async {
        if let Some(client) = from {
            match under(&*pod.net, to, client).await {
                Err(error) if is_port_taken(&error) => refusals.fell_back(pod, client),
                done => return done,
            }
        }
        once(&*pod.net, &Dial::App { to, from: None }).await
    });
    done.await
        .map_err(|cause| Failure::Application { to, cause })
}

async fn in_time(done: impl Future<Output = io::Result<TcpStream>>) -> io::Result<TcpStream> {
    timeout(CONNECT_TIMEOUT, done)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn once(net: &dyn Net, dial: &Dial) -> io::Result<TcpStream> {
    net.socket(dial)?.connect(dial.to()).await
}

/// Connects under a client's address, from one of a few ports.
async fn under(net: &dyn Net, to: SocketAddr, client: IpAddr) -> io::Result<TcpStream> {
    let dial = Dial::App {
        to,
        from: Some(client),
    };
    let mut left = SOURCE_PORTS_MAX;
    loop {
        left -= 1;
        match once(net, &dial).await {
            // a bind that failed has tried its ports already
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable && left > 0 => {}
            done => return done,
        }
    }
}

/// Whether binding or connecting failed for want of a free port. Anything else (no such device, not permitted) is a fault
/// that must show.
fn is_port_taken(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable
    )
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::net::{TcpListener, TcpSocket};

    use super::*;
    use crate::pod::{PodName, PodOptions};

    /// Binds under the client's address, always to the same port; or fails as it is told.
    struct OnePort {
        port: u16,
        fails: Option<io::ErrorKind>,
        asked: Arc<AtomicUsize>,
    }

    impl Net for OnePort {
        fn socket(&self, dial: &Dial) -> io::Result<TcpSocket> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let socket = TcpSocket::new_v4()?;
            if let Dial::App {
                from: Some(from), ..
            } = *dial
            {
                if let Some(kind) = self.fails {
                    return Err(kind.into());
                }
                socket.set_reuseaddr(true)?;
                socket.bind(SocketAddr::new(from, self.port))?;
            }
            Ok(socket)
        }

        fn resolver(&self, _: SocketAddr) -> io::Result<UdpSocket> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    /// A pod whose client has the address 127.0.0.2.
    fn pod_with(port: u16, fails: Option<io::ErrorKind>) -> (Arc<Pod>, Arc<AtomicUsize>) {
        let asked = Arc::<AtomicUsize>::default();
        let net = OnePort {
            port,
            fails,
            asked: Arc::clone(&asked),
        };
        let [uid, name, namespace, service_account] = ["u", "n", "ns", "sa"].map(Into::into);
        let who = PodName {
            uid,
            name,
            namespace,
            service_account,
        };
        (Pod::new(who, PodOptions::default(), Arc::new(net)), asked)
    }

    fn client() -> IpAddr {
        [127, 0, 0, 2].into()
    }

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        (listener, to)
    }

    #[tokio::test]
    async fn a_taken_port_gives_the_pods_own_address_and_is_counted() {
        let (listener, to) = listener().await;
        let refusals = Refusals::default();
        // the kernel chooses a port, and the next one wants the same
        let (pod, _) = pod_with(0, None);
        let first = application(&pod, to, Some(client()), &refusals).await;
        let first = first.unwrap();
        let (_first_there, seen) = listener.accept().await.unwrap();
        assert_eq!(seen.ip(), client());
        assert!(refusals.fell_back_by_pod().is_empty());

        let (pod, asked) = pod_with(first.local_addr().unwrap().port(), None);
        for count in 1..=2 {
            let _second = application(&pod, to, Some(client()), &refusals)
                .await
                .unwrap();
            let (_, seen) = listener.accept().await.unwrap();
            assert_eq!(seen.ip(), to.ip(), "the pod's own");
            assert_eq!(refusals.fell_back_by_pod(), [("ns/n".to_owned(), count)]);
        }
        assert_eq!(asked.load(Ordering::Relaxed), 2 * (SOURCE_PORTS_MAX + 1));
    }

    #[tokio::test]
    async fn a_failed_bind_falls_back_and_a_fault_does_not() {
        let (_listener, to) = listener().await;
        let refusals = Refusals::default();
        for kind in [io::ErrorKind::AddrInUse, io::ErrorKind::AddrNotAvailable] {
            let (pod, _) = pod_with(0, Some(kind));
            let done = application(&pod, to, Some(client()), &refusals).await;
            assert_eq!(done.unwrap().local_addr().unwrap().ip(), to.ip(), "{kind}");
        }
        for kind in [
            io::ErrorKind::PermissionDenied,
            io::ErrorKind::InvalidInput,
            io::ErrorKind::ConnectionRefused,
        ] {
            let (pod, asked) = pod_with(0, Some(kind));
            let done = application(&pod, to, Some(client()), &refusals).await;
            assert!(
                matches!(done, Err(Failure::Application { cause, .. }) if cause.kind() == kind)
            );
            assert_eq!(asked.load(Ordering::Relaxed), 1, "{kind}");
        }
        assert_eq!(refusals.fell_back_by_pod()[0].1, 2);
    }
}
