//! Where the mesh's state and the certificates come from: istiod, a local file, an embedded authority.
//!
//! The rule, in the order of a reader: what is set counts. `XDS_ADDRESS` unset means the proxy configuration's
//! `discoveryAddress`, else istiod in Kubernetes, else nothing if there is a local state, else istiod on this machine.
//! `CA_ADDRESS` unset means the embedded authority if `EMBEDDED_CA_DIR` is set, else istiod.

use std::path::PathBuf;
use std::time::Duration;

use control::channel::{Config as Server, Roots, Token};
use hyper::Uri;
use hyper::header::HeaderName;
use rustls::pki_types::ServerName;

use super::proxy_config::ProxyConfig;
use super::value::{Env, Invalid};

/// istiod in its cluster.
const ISTIOD: &str = "https://istiod.istio-system.svc:15012";
/// istiod beside the daemon.
const ISTIOD_HERE: &str = "https://localhost:15012";
/// What a reader is told to write for either address.
const ADDRESS: &str = "https://<host>:<port>, or <host>:<port>";
/// Files that Kubernetes mounts, from the working directory.
const ROOTS: &str = "./var/run/secrets/istio/root-cert.pem";
const TOKEN: &str = "./var/run/secrets/tokens/istio-token";

/// Headers of HTTP/2 and gRPC themselves; a request that sets them anew is malformed.
const HEADERS_RESERVED: [&str; 10] = [
    "connection",
    "content-length",
    "content-type",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// Most extra headers of one kind.
const HEADERS_MAX: usize = 64;

/// Longest lifetime that is asked for; the authority has a bound of its own.
const SECRET_TTL_MAX: Duration = Duration::from_secs(3650 * DAY);
/// What the embedded authority issues.
const SECRET_TTL_EMBEDDED: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(2)..=Duration::from_secs(90 * DAY);
const DAY: u64 = 24 * 3600;

/// The subscription to the mesh's state.
#[derive(Debug, Clone)]
pub struct Xds {
    /// whom to ask
    pub server: Server,
    /// ask for destinations one by one, when they are needed
    pub on_demand: bool,
}

/// Who signs certificates.
#[derive(Debug, Clone)]
pub enum Ca {
    /// Istio's authority, over the network
    Istio(Box<Server>),
    /// a root in this directory, shared by the daemons of one machine
    Embedded(PathBuf),
}

/// A part of the mesh's state given locally.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Local {
    /// a file, watched
    File(PathBuf),
    /// the same text
    Inline(String),
}

pub(super) fn local(env: &Env<'_>) -> Result<Option<Local>, Invalid> {
    let (path, text) = (env.optional("LOCAL_XDS_PATH"), env.optional("LOCAL_XDS"));
    Ok(match (path, text) {
        (Some(_), Some(_)) => {
            return Err(Invalid::Conflict(
                "LOCAL_XDS_PATH and LOCAL_XDS are both set, expected one of them".to_owned(),
            ));
        }
        (Some(path), None) => Some(Local::File(path.into())),
        (None, Some(text)) => Some(Local::Inline(text)),
        (None, None) => None,
    })
}

/// What both servers of the control plane have in common.
pub(super) struct Common {
    /// cluster id
    pub(super) cluster_id: String,
    /// versions and suites
    pub(super) tls: identity::Tls,
}

/// Where one server's settings stand.
struct Names {
    roots: &'static str,
    alternative: &'static str,
    headers: &'static str,
}

const XDS: Names = Names {
    roots: "XDS_ROOT_CA",
    alternative: "ALT_XDS_HOSTNAME",
    headers: "XDS_HEADER_",
};

const CA: Names = Names {
    roots: "CA_ROOT_CA",
    alternative: "ALT_CA_HOSTNAME",
    headers: "CA_HEADER_",
};

fn server(
    env: &Env<'_>,
    common: &Common,
    address: String,
    names: &Names,
) -> Result<Server, Invalid> {
    Ok(Server {
        alternative_name: alternative_name(env, names.alternative)?,
        token: token(env),
        cluster_id: common.cluster_id.clone(),
        headers: headers(env, names.headers)?,
        tls: common.tls.clone(),
        ..Server::new(address, roots(env, names.roots))
    })
}

pub(super) fn xds(
    env: &Env<'_>,
    common: &Common,
    proxy: &ProxyConfig,
    local: Option<&Local>,
    dns: bool,
) -> Result<Option<Xds>, Invalid> {
    let on_demand = env.bool("XDS_ON_DEMAND", false)?;
    if on_demand && dns {
        return Err(Invalid::new(
            "XDS_ON_DEMAND",
            "true",
            "false or unset while DNS is captured; ISTIO_META_DNS_CAPTURE=false switches that off",
        ));
    }
    let discovery = proxy.discovery_address.as_deref().filter(|a| !a.is_empty());
    let (name, wanted) = match (env.raw("XDS_ADDRESS"), discovery) {
        (Some(set), _) => ("XDS_ADDRESS", set),
        (None, Some(discovery)) => ("discoveryAddress", discovery),
        (None, None) if local.is_some() && !in_kubernetes(env) => ("XDS_ADDRESS", ""),
        (None, None) => ("XDS_ADDRESS", istiod(env)),
    };
    if wanted.is_empty() {
        return match local {
            Some(_) => Ok(None),
            None => Err(Invalid::new(
                "XDS_ADDRESS",
                "",
                format!("{ADDRESS}; or LOCAL_XDS_PATH or LOCAL_XDS, else there is no mesh state"),
            )),
        };
    }
    let server = server(env, common, address(name, wanted)?, &XDS)?;
    Ok(Some(Xds { server, on_demand }))
}

pub(super) fn ca(env: &Env<'_>, common: &Common) -> Result<Ca, Invalid> {
    if env.bool("FAKE_CA", false)? {
        return Err(Invalid::new(
            "FAKE_CA",
            "true",
            "false or unset (EMBEDDED_CA_DIR gives an authority without a network)",
        ));
    }
    let embedded = env.optional("EMBEDDED_CA_DIR");
    let wanted = match (env.raw("CA_ADDRESS"), embedded) {
        (None | Some(""), Some(directory)) => return Ok(Ca::Embedded(directory.into())),
        (Some(_), Some(_)) => {
            return Err(Invalid::Conflict(
                "CA_ADDRESS and EMBEDDED_CA_DIR are both set, expected one of them".to_owned(),
            ));
        }
        (Some(set), None) => set,
        (None, None) => istiod(env),
    };
    if wanted.is_empty() {
        let expected = format!("{ADDRESS}; or EMBEDDED_CA_DIR");
        return Err(Invalid::new("CA_ADDRESS", "", expected));
    }
    let address = address("CA_ADDRESS", wanted)?;
    let server = server(env, common, address, &CA)?;
    Ok(Ca::Istio(Box::new(server)))
}

/// Lifetime of certificates, within what the issuer can do.
pub(super) fn secret_ttl(env: &Env<'_>, ca: &Ca) -> Result<Duration, Invalid> {
    let ttl = env.duration("SECRET_TTL", Duration::from_secs(DAY))?;
    let (range, expected) = match ca {
        Ca::Embedded(_) => (SECRET_TTL_EMBEDDED, "a duration from 2s to 90d"),
        // whole seconds go over the wire, and 0 would mean the authority's own default
        Ca::Istio(_) => (
            Duration::from_secs(1)..=SECRET_TTL_MAX,
            "a duration from 1s to 3650d",
        ),
    };
    if range.contains(&ttl) {
        return Ok(ttl);
    }
    let text = env.text("SECRET_TTL", "");
    Err(Invalid::new("SECRET_TTL", text, expected))
}

fn in_kubernetes(env: &Env<'_>) -> bool {
    env.raw("KUBERNETES_SERVICE_HOST").is_some()
}

fn istiod(env: &Env<'_>) -> &'static str {
    if in_kubernetes(env) {
        ISTIOD
    } else {
        ISTIOD_HERE
    }
}

/// `https://host:port`; the scheme may be left out, a path means nothing.
fn address(name: &'static str, text: &str) -> Result<String, Invalid> {
    let bad = || Invalid::new(name, text, ADDRESS);
    let whole = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    let uri: Uri = whole.parse().map_err(|_| bad())?;
    let authority = uri.authority().ok_or_else(bad)?;
    let https = uri.scheme_str() == Some("https");
    if !https || authority.host().is_empty() || authority.as_str().contains('@') {
        return Err(bad());
    }
    match authority.port_u16() {
        Some(0) => Err(bad()),
        Some(port) => Ok(format!("https://{}:{port}", authority.host())),
        None if authority.as_str().len() > authority.host().len() => Err(bad()),
        None => Ok(format!("https://{}:443", authority.host())),
    }
}

/// A path, `SYSTEM`, or the PEM text itself. A path where there is no file yet is still one: it may come, and until then
/// the error names it.
fn roots(env: &Env<'_>, name: &str) -> Roots {
    let text = env.text(name, ROOTS);
    let path = env.path(&text);
    if path.exists() {
        Roots::File(path)
    } else if text == "SYSTEM" {
        Roots::System
    } else if text.contains("-----BEGIN") {
        Roots::Inline(text)
    } else {
        Roots::File(path)
    }
}

fn token(env: &Env<'_>) -> Option<Token> {
    let set = env.optional("AUTH_TOKEN");
    let path = env.path(set.as_deref().unwrap_or(TOKEN));
    if path.exists() {
        return Some(Token::File(path));
    }
    set.map(Token::Inline)
}

/// A token that is sent as it stands although it looks like a path.
pub(super) fn token_warning(env: &Env<'_>) -> Option<String> {
    let set = env.optional("AUTH_TOKEN")?;
    let looks_like_path = set.starts_with(['/', '.']) && !env.path(&set).exists();
    looks_like_path.then(|| {
        "AUTH_TOKEN looks like a path, but there is no such file: it is sent as the token itself"
            .to_owned()
    })
}

fn alternative_name(env: &Env<'_>, name: &'static str) -> Result<Option<String>, Invalid> {
    let Some(text) = env.optional(name) else {
        return Ok(None);
    };
    match ServerName::try_from(text.as_str()) {
        Ok(_) => Ok(Some(text)),
        Err(_) => Err(Invalid::new(name, text, "a host name or an address")),
    }
}

fn headers(env: &Env<'_>, prefix: &str) -> Result<Vec<(String, String)>, Invalid> {
    let mut headers = Vec::new();
    for (name, value) in env.prefixed(prefix) {
        let variable = format!("{prefix}{name}");
        let lower = name.to_ascii_lowercase();
        let reserved = HEADERS_RESERVED.contains(&lower.as_str())
            || lower.starts_with("grpc-")
            || lower.ends_with("-bin");
        if reserved || HeaderName::from_bytes(lower.as_bytes()).is_err() {
            let problem = format!("expected the name of a request header, not {lower:?}");
            return Err(Invalid::text(variable, problem));
        }
        if !value.bytes().all(|b| matches!(b, b'\t' | b' '..=b'~')) {
            let problem = "expected a value that a header can carry: visible ASCII and blanks";
            return Err(Invalid::text(variable, problem));
        }
        headers.push((lower, value.to_owned()));
    }
    if headers.len() > HEADERS_MAX {
        let problem = format!("{} headers, expected at most {HEADERS_MAX}", headers.len());
        return Err(Invalid::text(format!("{prefix}*"), problem));
    }
    Ok(headers)
}
