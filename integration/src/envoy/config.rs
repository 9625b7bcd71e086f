//! What an Envoy is told at its start: the templates in `integration/envoy`, filled.
//!
//! | placeholder | in | meaning |
//! |---|---|---|
//! | `NAME`, `ADMIN_PORT`, `TRUST_DOMAIN` | both | its name, also in headers; port on loopback; without `spiffe://` |
//! | `CERT_CHAIN_FILE`, `KEY_FILE`, `CA_FILE` | both | PEM: leaf first; key; trusted roots |
//! | `AUTHORITIES` | waypoint | the tunnels it takes, each to HTTP or to opaque TCP |
//! | `V1`, `V2`, `OPAQUE` | waypoint | `ip:port` of the pods behind it |
//! | `IDLE` | waypoint | how long it keeps a tunnel without requests |
//! | `CLIENT_PRINCIPAL`, `SERVER_PRINCIPAL`, `BAGGAGE` | waypoint | who may use `/api/`; what pods must present; its own |
//! | `HOSTS`, `CLUSTERS` | east-west | the names it knows, and the address of each |

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};

use super::{ADMIN_PORT, Seat};
use crate::model::TRUST_DOMAIN;

const WAYPOINT: &str = include_str!("../../envoy/waypoint.yaml.tmpl");
const GATEWAY: &str = include_str!("../../envoy/eastwest.yaml.tmpl");

/// What a waypoint stands before. `GET /public/...` is for every identity of the trust domain, `/api/...` for one;
/// everything else is answered 403. Of the requests 90 % go to `v1`.
#[derive(Debug, Clone)]
pub struct Waypoint {
    /// authorities whose tunnels carry HTTP, `ip:port` or `host:port`; any other one is answered 503
    pub http: Vec<String>,
    /// authorities whose tunnels carry bytes
    pub tcp: Vec<String>,
    /// the first version of the application
    pub v1: SocketAddr,
    /// the second
    pub v2: SocketAddr,
    /// where bytes go
    pub opaque: SocketAddr,
    /// SPIFFE id that may use `/api/`
    pub client: String,
    /// SPIFFE id that the pods must present
    pub server: String,
    /// how long it keeps a tunnel to a pod that carries no request, in whole seconds; [`Waypoint::IDLE`]
    pub idle: Duration,
}

/// What an east-west gateway knows: a name and a port, and the address (port 15008) of the pod or waypoint that the
/// tunnel inside is for. Any other authority is answered 404.
#[derive(Debug, Clone, Default)]
pub struct Gateway {
    /// `host:port`, and where
    pub routes: Vec<(String, SocketAddr)>,
}

impl Waypoint {
    /// So short that tunnels come and go within a test.
    pub const IDLE: Duration = Duration::from_secs(2);

    /// The configuration.
    ///
    /// Errors: a placeholder without a value.
    pub(super) fn render(&self, seat: &Seat) -> Result<String> {
        let mut values = common(seat);
        values.extend([
            ("AUTHORITIES", self.authorities()),
            ("V1", self.v1.to_string()),
            ("V2", self.v2.to_string()),
            ("OPAQUE", self.opaque.to_string()),
            ("IDLE", format!("{}s", self.idle.as_secs())),
            ("CLIENT_PRINCIPAL", self.client.clone()),
            ("SERVER_PRINCIPAL", self.server.clone()),
            ("BAGGAGE", seat.baggage.clone()),
        ]);
        fill(WAYPOINT, &values)
    }

    fn authorities(&self) -> String {
        let kinds = [("http", &self.http), ("tcp", &self.tcp)];
        let mut lines = String::new();
        for (kind, authorities) in kinds {
            for authority in authorities {
                let _ = writeln!(
                    lines,
                    "            \"{authority}\": {{action: {{name: {kind}, typed_config: {{\"@type\": \
                     type.googleapis.com/google.protobuf.StringValue, value: {kind}}}}}}}"
                );
            }
        }
        lines
    }
}

impl Gateway {
    /// The configuration.
    ///
    /// Errors: a placeholder without a value.
    pub(super) fn render(&self, seat: &Seat) -> Result<String> {
        let (mut hosts, mut clusters) = (String::new(), String::new());
        for (number, (authority, to)) in self.routes.iter().enumerate() {
            let _ = writeln!(
                hosts,
                "            - name: host{number}\n              domains: [\"{authority}\"]\n              \
                 routes:\n              - match: {{connect_matcher: {{}}}}\n                route:\n                  \
                 cluster: to{number}\n                  timeout: 0s\n                  \
                 upgrade_configs: [{{upgrade_type: CONNECT, connect_config: {{}}}}]"
            );
            let (ip, port) = (to.ip(), to.port());
            let _ = writeln!(
                clusters,
                "  - name: to{number}\n    type: STATIC\n    connect_timeout: 2s\n    load_assignment:\n      \
                 cluster_name: to{number}\n      endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
                 {{socket_address: {{address: \"{ip}\", port_value: {port}}}}}}}}}]}}]"
            );
        }
        let mut values = common(seat);
        values.extend([("HOSTS", hosts), ("CLUSTERS", clusters)]);
        fill(GATEWAY, &values)
    }
}

pub(super) fn common(seat: &Seat) -> BTreeMap<&'static str, String> {
    let path = |path: &std::path::Path| path.to_string_lossy().into_owned();
    [
        ("NAME", seat.name.clone()),
        ("ADMIN_PORT", ADMIN_PORT.to_string()),
        ("TRUST_DOMAIN", TRUST_DOMAIN.to_owned()),
        ("CERT_CHAIN_FILE", path(&seat.papers.chain)),
        ("KEY_FILE", path(&seat.papers.key)),
        ("CA_FILE", path(&seat.papers.roots)),
    ]
    .into()
}

/// Replaces every `@NAME@`; an at-sign that begins no placeholder (`"@type"`) stays.
pub(super) fn fill(template: &str, values: &BTreeMap<&'static str, String>) -> Result<String> {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('@') {
        out.push_str(before);
        let end = after.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
        match end {
            Some(end) if end > 0 && after[end..].starts_with('@') => {
                let Some(value) = values.get(&after[..end]) else {
                    bail!(
                        "the template asks for {}, which has no value",
                        &after[..end]
                    )
                };
                out.push_str(value);
                rest = &after[end + 1..];
            }
            _ => {
                out.push('@');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::fill;

    #[test]
    fn placeholders_are_filled_and_types_are_not() {
        let values = [("A_1", "x".to_owned()), ("B", "y\nz".to_owned())].into();
        let filled = fill("\"@type\": @A_1@\n@B@ a@b @", &values).unwrap();
        assert_eq!(filled, "\"@type\": x\ny\nz a@b @");
        let error = fill("@C@", &values).unwrap_err().to_string();
        assert!(error.contains("asks for C"), "{error}");
    }
}
