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

/// Attempts with another source port when the chosen one turns out to be in use towards the same destination.
const SOURCE_PORT_TRIES_MAX: usize = 8;

/// Connects as `dial` says.
///
/// Errors: the kernel's; `TimedOut` after 10 s.
pub(crate) async fn connect(net: &dyn Net, dial: &Dial) -> io::Result<TcpStream> {
    let attempts = async {
        let mut tried = 1;
        loop {
            match net.socket(dial)?.connect(dial.to()).await {
                // a source address that is kept shares its ports with earlier connections
                Err(error)
                    if error.kind() == io::ErrorKind::AddrNotAvailable
                        && tried < SOURCE_PORT_TRIES_MAX =>
                {
                    tried += 1
                }
                ended => return ended,
            }
        }
    };
    timeout(CONNECT_TIMEOUT, attempts)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
