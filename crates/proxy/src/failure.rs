//! Why a flow ended early: one variant per step of its path, with its text, its metric flag and its HTTP status.

use std::io;
use std::net::SocketAddr;

use telemetry::metrics::Flag;

/// Why a flow ended early. The texts are those of the access log's `error` key.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The pod's own workload did not appear in the mesh state in time.
    #[error("failed to fetch information about local workload: {0}")]
    LocalWorkload(String),
    /// The mesh has no way to the destination.
    #[error("{0}")]
    Route(mesh::Refusal),
    /// The mesh state lacks something that only a lookup could tell.
    #[error("{0}")]
    Lacks(mesh::Lookup),
    /// Nobody told whether the mesh knows the destination.
    #[error("failed to look up {what}: {why}")]
    NotFound {
        /// address or host name
        what: String,
        /// what went wrong
        why: String,
    },
    /// The pod has as many questions open as it may.
    #[error("too many lookups of this pod are open")]
    LookupBudget,
    /// The endpoint's host name could not be resolved.
    #[error("no ip addresses were resolved for {host}: {why}")]
    NotResolved {
        /// the name
        host: String,
        /// what went wrong
        why: String,
    },
    /// IPv6 is switched off, and what capture takes must not pass by.
    #[error("IPv6 is switched off by IPV6_ENABLED")]
    Ipv6Off,
    /// The connection was made to the daemon's own listener: whatever it is meant for would lead here again.
    #[error("attempted recursive call to ourselves")]
    SelfCall,
    /// A SOCKS5 client broke the protocol, or wants what is not offered.
    #[error("SOCKS5 handshake failed: {0}")]
    Socks(crate::socks::handshake::Violation),
    /// A SOCKS5 client did not say in time where it wants to go.
    #[error("SOCKS5 handshake failed: not done in time")]
    SocksTimeout,
    /// The CONNECT request or plaintext destination is not for this pod.
    #[error("{0}")]
    Rejected(mesh::Rejection),
    /// The CONNECT request is malformed.
    #[error("{0}")]
    Request(hbone::BadRequest),
    /// Authorization policy, before the connection was made.
    #[error("connection closed due to policy rejection: {0}")]
    Denied(mesh::Denial),
    /// Authorization policy, after it was made.
    #[error("connection closed due to policy change")]
    PolicyChange,
    /// The pod left or the process ended.
    #[error("connection closed due to connection drain")]
    Drain,
    /// The next hop of an outbound connection could not be reached.
    #[error("io error: connect to {to}: {cause}")]
    Connect {
        /// next hop
        to: SocketAddr,
        /// what the kernel said
        #[source]
        cause: io::Error,
    },
    /// The next hop of a tunnel did not answer at all.
    #[error(
        "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: connect to {to}"
    )]
    ConnectTimeout {
        /// next hop
        to: SocketAddr,
    },
    /// The application in the pod could not be reached.
    #[error("connection failed: connect to {to}: {cause}")]
    Application {
        /// the application's address
        to: SocketAddr,
        /// what the kernel said
        #[source]
        cause: io::Error,
    },
    /// No certificate for the pod.
    #[error("identity error: {0}")]
    Identity(#[from] identity::IdentityError),
    /// The peer's certificate was taken back while the tunnel was open.
    #[error("connection closed: peer certificate revoked by CRL")]
    CertRevoked,
    /// TLS could not be configured.
    #[error("tls error: {0}")]
    TlsConfig(String),
    /// The TLS handshake failed.
    #[error("io error: {0}")]
    Tls(io::Error),
    /// The HTTP/2 handshake with a peer failed.
    #[error("{0}")]
    Handshake(hbone::HandshakeError),
    /// No tunnel came about because the pool was at a bound.
    #[error("io error: {0}")]
    Pool(String),
    /// The PROXY protocol header could not be given to the application.
    #[error("application tunnel: PROXY header: {0}")]
    ApplicationTunnel(io::Error),
    /// The peer refused the CONNECT.
    #[error("{0}")]
    Refused(hbone::ConnectError),
    /// The tunnel broke while bytes were moving.
    #[error("{0}")]
    Data(hbone::TunnelError),
}

impl Failure {
    /// The metric flag. Matches every variant, so that a new one must choose.
    pub fn flag(&self) -> Flag {
        match self {
            Failure::Denied(_) | Failure::PolicyChange => Flag::Deny,
            Failure::Drain => Flag::None,
            Failure::Identity(_) => Flag::IdentityError,
            Failure::CertRevoked => Flag::CertRevoked,
            Failure::TlsConfig(_) => Flag::TlsFailure,
            Failure::Handshake(_) => Flag::H2HandshakeFailure,
            Failure::Refused(hbone::ConnectError::Status(_) | hbone::ConnectError::Io(_)) => {
                Flag::Connect
            }
            Failure::Refused(_) | Failure::Data(_) => Flag::H2HandshakeFailure,
            Failure::ConnectTimeout { .. } => Flag::NetworkPolicy,
            Failure::LocalWorkload(_)
            | Failure::Route(_)
            | Failure::Lacks(_)
            | Failure::NotFound { .. }
            | Failure::LookupBudget
            | Failure::NotResolved { .. }
            | Failure::Ipv6Off
            | Failure::SelfCall
            | Failure::Socks(_)
            | Failure::SocksTimeout
            | Failure::Rejected(_)
            | Failure::Request(_)
            | Failure::Connect { .. }
            | Failure::Application { .. }
            | Failure::Pool(_)
            | Failure::ApplicationTunnel(_)
            | Failure::Tls(_) => Flag::Connect,
        }
    }

    /// The answer to a CONNECT that failed so (spec: HBONE §5).
    pub fn status(&self) -> u16 {
        match self {
            Failure::Request(_) => 400,
            Failure::Rejected(why) => why.status(),
            Failure::Denied(_) | Failure::PolicyChange => 401,
            Failure::LocalWorkload(_)
            | Failure::Route(_)
            | Failure::Lacks(_)
            | Failure::NotFound { .. }
            | Failure::LookupBudget
            | Failure::NotResolved { .. }
            | Failure::Ipv6Off
            | Failure::SelfCall
            | Failure::Socks(_)
            | Failure::SocksTimeout
            | Failure::Drain
            | Failure::Connect { .. }
            | Failure::ConnectTimeout { .. }
            | Failure::Application { .. }
            | Failure::Identity(_)
            | Failure::CertRevoked
            | Failure::TlsConfig(_)
            | Failure::Tls(_)
            | Failure::Handshake(_)
            | Failure::Pool(_)
            | Failure::ApplicationTunnel(_)
            | Failure::Refused(_)
            | Failure::Data(_) => 503,
        }
    }

    /// A short fixed word for counters and the dump: part of what others build on, so none changes its meaning.
    pub fn reason(&self) -> &'static str {
        match self {
            Failure::LocalWorkload(_) => "local_workload_unknown",
            Failure::Route(why) => no_route(why),
            Failure::Lacks(_) | Failure::NotFound { .. } => "lookup",
            Failure::LookupBudget => "lookup_budget",
            Failure::NotResolved { .. } => "resolve",
            Failure::Ipv6Off => "ipv6_off",
            Failure::SelfCall => "self_call",
            Failure::Socks(_) | Failure::SocksTimeout => "socks",
            Failure::Rejected(why) => rejected(why),
            Failure::Request(_) => "bad_request",
            Failure::Denied(_) => "policy",
            Failure::PolicyChange => "policy_change",
            Failure::Drain => "drain",
            Failure::Connect { .. } => "connect",
            Failure::ConnectTimeout { .. } => "connect_timeout",
            Failure::Application { .. } => "application",
            Failure::Identity(_) => "identity",
            Failure::CertRevoked => "cert_revoked",
            Failure::TlsConfig(_) => "tls_config",
            Failure::Tls(_) => "tls_handshake",
            Failure::Handshake(_) => "h2_handshake",
            Failure::Pool(_) => "pool",
            Failure::ApplicationTunnel(_) => "application_tunnel",
            Failure::Refused(_) => "refused_by_peer",
            Failure::Data(_) => "tunnel_broken",
        }
    }
}

fn no_route(why: &mesh::Refusal) -> &'static str {
    match why {
        mesh::Refusal::SelfCall => "self_call",
        mesh::Refusal::NoHealthyUpstream(_) => "no_healthy_upstream",
        mesh::Refusal::UnknownWaypoint(_) => "unknown_waypoint",
        mesh::Refusal::NoDestination(_) => "no_destination",
        mesh::Refusal::NotResolved(_) => "resolve",
        mesh::Refusal::UnknownGateway(_) => "unknown_gateway",
        mesh::Refusal::NoInnerIdentity(_) => "no_inner_identity",
    }
}

fn rejected(why: &mesh::Rejection) -> &'static str {
    match why {
        mesh::Rejection::Mismatch { .. } => "ip_mismatch",
        mesh::Rejection::UnknownHost(_) => "unknown_host",
        mesh::Rejection::UnknownPort { .. } => "unknown_port",
        mesh::Rejection::SelfCall => "self_call",
        mesh::Rejection::NoAddress(_) => "no_service_address",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_flags_and_statuses_are_those_of_the_contract() {
        let to: SocketAddr = "10.0.0.1:15008".parse().unwrap();
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let denied = Failure::Denied(mesh::Denial::NotAllowed);
        let status = Failure::Refused(hbone::ConnectError::Status(hbone::StatusCode::UNAUTHORIZED));
        for (failure, text, flag, status) in [
            (
                denied,
                "connection closed due to policy rejection: allow policies exist, but none allowed",
                Flag::Deny,
                401,
            ),
            (
                Failure::PolicyChange,
                "connection closed due to policy change",
                Flag::Deny,
                401,
            ),
            (
                Failure::Drain,
                "connection closed due to connection drain",
                Flag::None,
                503,
            ),
            (
                Failure::CertRevoked,
                "connection closed: peer certificate revoked by CRL",
                Flag::CertRevoked,
                503,
            ),
            (
                Failure::Connect {
                    to,
                    cause: refused(),
                },
                "io error: connect to 10.0.0.1:15008: connection refused",
                Flag::Connect,
                503,
            ),
            (
                Failure::Application {
                    to,
                    cause: refused(),
                },
                "connection failed: connect to 10.0.0.1:15008: connection refused",
                Flag::Connect,
                503,
            ),
            (status, "http status: 401 Unauthorized", Flag::Connect, 503),
        ] {
            assert_eq!(failure.to_string(), text);
            assert_eq!((failure.flag(), failure.status()), (flag, status), "{text}");
        }
        let timeout = Failure::ConnectTimeout { to };
        assert!(timeout.to_string().starts_with(
            "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: "
        ));
        assert_eq!(timeout.flag(), Flag::NetworkPolicy);
    }

    fn refusals() -> Vec<(Failure, &'static str)> {
        let at = "10.0.0.1:80".parse().unwrap();
        let text = || "shop/x".to_owned();
        use mesh::Refusal::*;
        [
            (SelfCall, "self_call"),
            (NoHealthyUpstream(at), "no_healthy_upstream"),
            (UnknownWaypoint(text()), "unknown_waypoint"),
            (NoDestination("x".into()), "no_destination"),
            (NotResolved("x".into()), "resolve"),
            (UnknownGateway(text()), "unknown_gateway"),
            (NoInnerIdentity("x".into()), "no_inner_identity"),
        ]
        .map(|(why, word)| (Failure::Route(why), word))
        .into()
    }

    fn rejections() -> Vec<(Failure, &'static str, u16)> {
        use mesh::Rejection::*;
        let mismatch = Mismatch {
            accepted_on: [10, 0, 0, 1].into(),
            asked_for: [10, 0, 0, 2].into(),
        };
        let host = || mesh::Str::from("x");
        let port = UnknownPort {
            host: host(),
            port: 80,
        };
        [
            (mismatch, "ip_mismatch", 400),
            (UnknownHost(host()), "unknown_host", 503),
            (port, "unknown_port", 503),
            (SelfCall, "self_call", 503),
            (NoAddress(host()), "no_service_address", 503),
        ]
        .map(|(why, word, status)| (Failure::Rejected(why), word, status))
        .into()
    }

    #[test]
    fn every_word_of_the_mesh_is_told_apart() {
        let routes = refusals()
            .into_iter()
            .map(|(why, word)| (why, word, 503))
            .chain(rejections());
        let mut words = std::collections::BTreeSet::new();
        for (failure, word, status) in routes {
            assert_eq!(failure.reason(), word);
            assert_eq!(
                (failure.flag(), failure.status()),
                (Flag::Connect, status),
                "{word}"
            );
            assert!(
                words.insert(word) || word == "self_call",
                "{word} is used twice"
            );
        }
    }

    /// The rows of routing §14.
    #[test]
    fn the_table_of_errors_is_kept() {
        let to: SocketAddr = "10.0.0.1:15008".parse().unwrap();
        let io = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let h2 = hbone::ConnectError::Unsendable("baggage");
        let broken = || h2::Error::from(h2::Reason::PROTOCOL_ERROR);
        let forgotten = identity::IdentityError::Forgotten;
        let preface = hbone::HandshakeError::Preface;
        let refused = hbone::ConnectError::Status(hbone::StatusCode::FORBIDDEN);
        let workload = || Failure::LocalWorkload("workload is unknown: a.b (c)".into());
        for (failure, text, flag, reason) in [
            (
                Failure::ConnectTimeout { to },
                "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: ",
                Flag::NetworkPolicy,
                "connect_timeout",
            ),
            (
                Failure::Connect { to, cause: io() },
                "io error: ",
                Flag::Connect,
                "connect",
            ),
            (
                Failure::Application { to, cause: io() },
                "connection failed: ",
                Flag::Connect,
                "application",
            ),
            (
                Failure::Denied(mesh::Denial::NotAllowed),
                "connection closed due to policy rejection: ",
                Flag::Deny,
                "policy",
            ),
            (
                Failure::PolicyChange,
                "connection closed due to policy change",
                Flag::Deny,
                "policy_change",
            ),
            (
                Failure::Tls(io()),
                "io error: ",
                Flag::Connect,
                "tls_handshake",
            ),
            (
                Failure::TlsConfig("x".into()),
                "tls error: ",
                Flag::TlsFailure,
                "tls_config",
            ),
            (
                Failure::Identity(forgotten),
                "identity error: ",
                Flag::IdentityError,
                "identity",
            ),
            (
                Failure::Handshake(preface),
                "http2 handshake failed: ",
                Flag::H2HandshakeFailure,
                "h2_handshake",
            ),
            (
                Failure::Refused(h2),
                "h2 failed: ",
                Flag::H2HandshakeFailure,
                "refused_by_peer",
            ),
            (
                Failure::Refused(refused),
                "http status: 403 Forbidden",
                Flag::Connect,
                "refused_by_peer",
            ),
            (
                Failure::Refused(hbone::ConnectError::Io(broken())),
                "io error: ",
                Flag::Connect,
                "refused_by_peer",
            ),
            (
                Failure::Refused(hbone::ConnectError::H2(broken())),
                "h2 failed: ",
                Flag::H2HandshakeFailure,
                "refused_by_peer",
            ),
            (
                Failure::Data(hbone::TunnelError::Reset(h2::Reason::CONNECT_ERROR)),
                "h2 failed: stream reset: ",
                Flag::H2HandshakeFailure,
                "tunnel_broken",
            ),
            (
                Failure::Data(hbone::TunnelError::H2(broken())),
                "h2 failed: ",
                Flag::H2HandshakeFailure,
                "tunnel_broken",
            ),
            (
                Failure::Handshake(hbone::HandshakeError::Timeout(
                    std::time::Duration::from_secs(10),
                )),
                "http2 handshake failed: ",
                Flag::H2HandshakeFailure,
                "h2_handshake",
            ),
            (
                Failure::Pool("no connection to the next hop".into()),
                "io error: ",
                Flag::Connect,
                "pool",
            ),
            (
                Failure::Request(hbone::BadRequest::Method),
                "not a CONNECT request",
                Flag::Connect,
                "bad_request",
            ),
            (
                Failure::NotFound {
                    what: "/10.0.0.1".into(),
                    why: "no answer".into(),
                },
                "failed to look up /10.0.0.1: no answer",
                Flag::Connect,
                "lookup",
            ),
            (
                Failure::NotResolved {
                    host: "db".into(),
                    why: "no answer".into(),
                },
                "no ip addresses were resolved for db: no answer",
                Flag::Connect,
                "resolve",
            ),
            (
                Failure::SelfCall,
                "attempted recursive call to ourselves",
                Flag::Connect,
                "self_call",
            ),
            (
                Failure::CertRevoked,
                "connection closed: peer certificate revoked by CRL",
                Flag::CertRevoked,
                "cert_revoked",
            ),
            (
                Failure::Drain,
                "connection closed due to connection drain",
                Flag::None,
                "drain",
            ),
            (
                workload(),
                "failed to fetch information about local workload: ",
                Flag::Connect,
                "local_workload_unknown",
            ),
            (
                Failure::LookupBudget,
                "too many lookups of this pod are open",
                Flag::Connect,
                "lookup_budget",
            ),
            (
                Failure::Ipv6Off,
                "IPv6 is switched off",
                Flag::Connect,
                "ipv6_off",
            ),
            (
                Failure::ApplicationTunnel(io()),
                "application tunnel: PROXY header: connection refused",
                Flag::Connect,
                "application_tunnel",
            ),
        ] {
            assert!(failure.to_string().starts_with(text), "{failure}");
            assert_eq!((failure.flag(), failure.reason()), (flag, reason), "{text}");
        }
    }
}
