//! Opens a TCP connection from a pod's namespace, within a bound of time.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::needs::{Dial, Net};

/// Longest wait for any TCP connection (spec: routing §13).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects as `dial` says.
///
/// Errors: the kernel's; `TimedOut` after 10 s.
pub(crate) async fn connect(net: &dyn Net, dial: &Dial) -> io::Result<TcpStream> {
    let socket = net.socket(dial)?;
    timeout(CONNECT_TIMEOUT, socket.connect(dial.to())).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
