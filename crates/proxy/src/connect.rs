//! Opens a TCP connection from a pod's namespace, within a bound of time.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::needs::{Dial, Net};

/// Longest wait for any TCP connection (spec: routing §13).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Source ports tried for one connection to the application under the client's address. A port chosen may be taken for
/// this very target, by another flow or by one just ended, which only `connect()` finds out. With nine of ten ports taken
/// all tries fail once in 800 times.
const SOURCE_PORTS_MAX: usize = 64;

/// Connects as `dial` says.
///
/// Errors: the kernel's; `TimedOut` after 10 s.
pub(crate) async fn connect(net: &dyn Net, dial: &Dial) -> io::Result<TcpStream> {
    timeout(CONNECT_TIMEOUT, attempts(net, dial))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn attempts(net: &dyn Net, dial: &Dial) -> io::Result<TcpStream> {
    let chooses_port = matches!(dial, Dial::App { from: Some(_), .. });
    let mut left = if chooses_port { SOURCE_PORTS_MAX } else { 1 };
    loop {
        left -= 1;
        match net.socket(dial)?.connect(dial.to()).await {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable && left > 0 => {}
            done => return done,
        }
    }
}
