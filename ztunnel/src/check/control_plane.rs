//! The control plane: resolved, connected, trusted; the token; the clock that certificates are judged by; local sources.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use capture::probe::Finding;
use control::channel::{
    Config as Server, ConfigError, DialError, ReachError, Reached, Timing, reach,
};

use super::report::{chain, span};
use super::token;
use crate::config::{Ca, Config, Local};
use crate::mesh_file;

/// Bounds of each step towards a server; the daemon itself waits longer.
const TIMING: Timing = Timing {
    resolve: Duration::from_secs(3),
    connect: Duration::from_secs(3),
    handshake: Duration::from_secs(3),
    ping_interval: Duration::from_secs(30),
    ping_timeout: Duration::from_secs(10),
};
/// Most time for all steps: a name may have several addresses.
const REACH_MAX: Duration = Duration::from_secs(9);

/// All of it.
pub async fn findings(config: &Config) -> Vec<Finding> {
    let mut found: Vec<Finding> = config.local.iter().map(local).collect();
    let xds = config.xds.as_ref().map(|xds| &xds.server);
    let ca = match &config.ca {
        Ca::Istio(server) => Some(&**server),
        Ca::Embedded(directory) => {
            found.push(embedded(directory));
            None
        }
    };
    let (xds_found, ca_found) = tokio::join!(server("mesh state", xds), server("certificates", ca));
    found.extend(xds_found);
    found.extend(ca_found);
    if let Some(server) = xds.or(ca) {
        found.push(token::finding(server.token.as_ref()));
    }
    found.push(clock(sys::clock::is_synchronised()));
    found
}

async fn server(name: &'static str, server: Option<&Server>) -> Option<Finding> {
    let server = server?;
    let address = server.address.clone();
    let config = Server {
        timing: TIMING,
        ..server.clone()
    };
    Some(match tokio::time::timeout(REACH_MAX, reach(config)).await {
        Ok(Ok(reached)) => is_reached(name, &address, &reached),
        Ok(Err(error)) => {
            Finding::failed(name, format!("{address}: {}", chain(&error)), hint(&error))
        }
        Err(_) => Finding::failed(
            name,
            format!("{address}: none of its addresses answered within {REACH_MAX:?}"),
            "is istiod running, and may this node reach it (NetworkPolicy, firewall)?",
        ),
    })
}

fn is_reached(name: &'static str, address: &str, reached: &Reached) -> Finding {
    let left = reached
        .validity
        .and_then(|validity| validity.not_after.duration_since(SystemTime::now()).ok())
        .map(|left| format!(", its certificate holds for {}", span(left)));
    Finding::ok(
        name,
        format!(
            "{address} at {} in {} ms{}",
            reached.address,
            reached.took.as_millis(),
            left.unwrap_or_default()
        ),
    )
}

/// What to do about a server that is not reached.
fn hint(error: &ReachError) -> &'static str {
    match error {
        ReachError::Config(ConfigError::Roots(_)) => {
            "mount istiod's root (ConfigMap istio-ca-root-cert, key root-cert.pem) at ./var/run/secrets/istio, or set XDS_ROOT_CA and CA_ROOT_CA"
        }
        ReachError::Config(_) => "correct XDS_ADDRESS or CA_ADDRESS, see `ztunnel help`",
        ReachError::Dial(DialError::Resolve { .. }) => {
            "does the Service exist, and does the cluster's DNS answer here (dnsPolicy, /etc/resolv.conf)?"
        }
        ReachError::Dial(DialError::Connect { .. }) => {
            "is istiod running, and may this node reach it (NetworkPolicy, firewall)?"
        }
        ReachError::Dial(DialError::Handshake { cause, .. }) => handshake_hint(cause),
    }
}

fn handshake_hint(cause: &io::Error) -> &'static str {
    use rustls::{CertificateError as Bad, Error};
    let inner = cause.get_ref().and_then(|e| e.downcast_ref::<Error>());
    match inner {
        Some(Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. })) => {
            "the server's certificate has expired, or this machine's clock is fast: compare `date -u` with another machine"
        }
        Some(Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. })) => {
            "this machine's clock is slow, or the server's certificate is for later: compare `date -u` with another machine"
        }
        Some(Error::InvalidCertificate(
            Bad::NotValidForName | Bad::NotValidForNameContext { .. },
        )) => {
            "the server has a certificate for another name: correct the address, or set ALT_XDS_HOSTNAME or ALT_CA_HOSTNAME to that name"
        }
        Some(Error::InvalidCertificate(_)) => {
            "the roots do not vouch for this server: mount those of this istiod, or correct XDS_ROOT_CA and CA_ROOT_CA"
        }
        _ => "is that istiod's port for TLS (15012), and nothing between that ends TLS?",
    }
}

fn local(local: &Local) -> Finding {
    const NAME: &str = "local mesh state";
    let parsed = match local {
        Local::File(path) => mesh_file::read(path),
        Local::Inline(text) => mesh::local::parse(text).map_err(anyhow::Error::from),
    };
    match parsed {
        Ok(resources) => Finding::ok(NAME, format!("{} resources", resources.len())),
        Err(error) => Finding::failed(
            NAME,
            format!("{error:#}"),
            "correct the file at the place that is named; until then the daemon does not start",
        ),
    }
}

fn embedded(directory: &Path) -> Finding {
    const NAME: &str = "embedded authority";
    let shown = directory.display();
    match std::fs::metadata(directory) {
        Ok(meta) if meta.is_dir() => Finding::ok(NAME, format!("{shown}")),
        Ok(_) => Finding::failed(
            NAME,
            format!("{shown} is not a directory"),
            "set EMBEDDED_CA_DIR to a directory",
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Finding::ok(
            NAME,
            format!("{shown} is not there yet, the daemon makes it"),
        ),
        Err(error) => Finding::failed(
            NAME,
            format!("{shown}: {error}"),
            "give the daemon access to it",
        ),
    }
}

fn clock(synchronised: io::Result<bool>) -> Finding {
    const NAME: &str = "clock";
    match synchronised {
        Ok(true) => Finding::ok(NAME, "kept right, says the kernel"),
        Ok(false) => Finding::warning(
            NAME,
            "nothing keeps it right, says the kernel",
            "certificates and tokens are judged by it: run a time service such as chronyd on the host",
        ),
        Err(error) => Finding::warning(NAME, error.to_string(), "the kernel could not be asked"),
    }
}

#[cfg(test)]
mod tests {
    use capture::probe::Status;
    use rustls::CertificateError;

    use super::*;

    #[test]
    fn each_failure_has_its_advice() {
        let tls = |error: CertificateError| {
            ReachError::Dial(DialError::Handshake {
                host: "istiod".into(),
                address: ([127, 0, 0, 1], 1).into(),
                cause: io::Error::new(
                    io::ErrorKind::InvalidData,
                    rustls::Error::InvalidCertificate(error),
                ),
            })
        };
        let cases = [
            (tls(CertificateError::Expired), "clock is fast"),
            (tls(CertificateError::NotValidYet), "clock is slow"),
            (tls(CertificateError::NotValidForName), "ALT_XDS_HOSTNAME"),
            (tls(CertificateError::UnknownIssuer), "roots do not vouch"),
            (
                ReachError::Dial(DialError::Resolve {
                    host: "istiod".into(),
                    cause: io::ErrorKind::NotFound.into(),
                }),
                "DNS",
            ),
            (
                ReachError::Config(ConfigError::AlternativeName(String::new())),
                "XDS_ADDRESS",
            ),
        ];
        for (error, expected) in cases {
            assert!(hint(&error).contains(expected), "{error:?}");
        }
    }

    #[test]
    fn clocks_and_directories() {
        assert_eq!(clock(Ok(true)).status, Status::Ok);
        assert_eq!(clock(Ok(false)).status, Status::Warning);
        assert_eq!(
            embedded(Path::new("/proc/self/status")).status,
            Status::Failed
        );
        assert_eq!(embedded(Path::new("/proc")).status, Status::Ok);
        assert_eq!(embedded(Path::new("/nonexistent")).status, Status::Ok);
    }
}
