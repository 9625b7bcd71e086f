//! The head of a CONNECT: written by the client, read by the server. Bytes on the stream come after it.

use http::header::{FORWARDED, HeaderMap, HeaderName};
use http::{HeaderValue, Method, Request, Uri, Version};

use crate::baggage::VALUE_BYTES_MAX;
use crate::forwarded;
use crate::{Authority, AuthorityError, Baggage, ConnectError, Forwarded, Traceparent};

pub(crate) const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const FORWARDED_NETWORK: HeaderName = HeaderName::from_static("x-forwarded-network");

/// What the client asks of the next hop. Nothing else is sent.
#[derive(Clone, Debug)]
pub struct Connect<'a> {
    /// Target as `host:port`, IPv6 bracketed.
    pub authority: &'a str,
    /// The source workload, from [`Baggage::header`].
    pub baggage: HeaderValue,
    /// Whose connection it is, and the service it is for.
    pub forwarded: Forwarded<'a>,
    /// The connection's id.
    pub traceparent: Traceparent,
    /// Own network; only on the inner CONNECT across networks.
    pub forwarded_network: Option<&'a str>,
}

impl Connect<'_> {
    /// The request as HTTP/2 sends it: `:method` and `:authority`, then the headers in the order of the contract.
    pub(crate) fn request(&self) -> Result<Request<()>, ConnectError> {
        let authority = http::uri::Authority::try_from(self.authority)
            .map_err(|_| ConnectError::Unsendable("authority"))?;
        let uri = Uri::builder()
            .authority(authority)
            .build()
            .map_err(|_| ConnectError::Unsendable("authority"))?;
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        let headers = request.headers_mut();
        headers.insert(BAGGAGE, self.baggage.clone());
        headers.insert(FORWARDED, value("forwarded", self.forwarded.to_string())?);
        headers.insert(
            TRACEPARENT,
            value("traceparent", self.traceparent.to_string())?,
        );
        if let Some(network) = self.forwarded_network {
            headers.insert(
                FORWARDED_NETWORK,
                value("x-forwarded-network", network.to_owned())?,
            );
        }
        Ok(request)
    }
}

fn value(name: &'static str, text: String) -> Result<HeaderValue, ConnectError> {
    HeaderValue::try_from(text).map_err(|_| ConnectError::Unsendable(name))
}

/// What a client asked for. Only `authority` is required; everything else is a hint that may be absent or wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Target of the tunnel.
    pub authority: Authority,
    /// What the client says of the source; empty if absent or unreadable.
    pub baggage: Baggage,
    /// Service host name the client says it meant.
    pub forwarded_host: Option<String>,
    /// The connection's id, when the client sent a well-formed one.
    pub traceparent: Option<Traceparent>,
    /// The network the client says it is behind; empty for the default one. Cut where no network has so long a name.
    pub forwarded_network: Option<String>,
}

/// Why a request is no CONNECT that could be served; to be answered with status 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// The method is not CONNECT.
    #[error("not a CONNECT request")]
    Method,
    /// There is no `:authority`.
    #[error("request has no authority")]
    NoAuthority,
    /// The `:authority` is not a host with a port.
    #[error("{0}")]
    Authority(#[from] AuthorityError),
}

impl Head {
    /// Reads a received request.
    pub(crate) fn read(parts: &http::request::Parts) -> Result<Head, BadRequest> {
        if parts.method != Method::CONNECT {
            return Err(BadRequest::Method);
        }
        let authority = parts.uri.authority().ok_or(BadRequest::NoAuthority)?;
        let headers = &parts.headers;
        Ok(Head {
            authority: authority.as_str().parse()?,
            baggage: Baggage::parse(headers.get_all(BAGGAGE)),
            forwarded_host: headers.get(FORWARDED).and_then(forwarded::host_of),
            traceparent: text(headers, &TRACEPARENT).and_then(|text| text.parse().ok()),
            forwarded_network: headers.get(FORWARDED_NETWORK).map(network),
        })
    }
}

/// What is no name stays something that equals no name: it still says that the client is elsewhere.
fn network(value: &HeaderValue) -> String {
    let bytes = value.as_bytes();
    let most = bytes.len().min(VALUE_BYTES_MAX + 1);
    String::from_utf8_lossy(&bytes[..most]).into_owned()
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-00";

    fn connect<'a>() -> Connect<'a> {
        let source = Baggage {
            namespace: Some("shop".into()),
            ..Baggage::default()
        };
        Connect {
            authority: "10.0.0.2:80",
            baggage: source.header(),
            forwarded: Forwarded {
                client: "10.0.0.1:40000".parse().unwrap(),
                host: Some("web.shop.svc"),
            },
            traceparent: TRACE.parse().unwrap(),
            forwarded_network: None,
        }
    }

    fn read(request: Request<()>) -> Result<Head, BadRequest> {
        Head::read(&request.into_parts().0)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let inner = Connect {
            forwarded_network: Some("east"),
            ..connect()
        };
        let head = read(inner.request().unwrap()).unwrap();
        assert_eq!(head.authority.to_string(), "10.0.0.2:80");
        assert_eq!(head.baggage.namespace.as_deref(), Some("shop"));
        assert_eq!(head.forwarded_host.as_deref(), Some("web.shop.svc"));
        assert_eq!(head.traceparent, Some(inner.traceparent));
        assert_eq!(head.forwarded_network.as_deref(), Some("east"));
    }

    #[test]
    fn headers_are_exactly_those_of_the_contract_in_order() {
        let names = |request: Request<()>| -> Vec<String> {
            request.headers().keys().map(ToString::to_string).collect()
        };
        let outer = connect().request().unwrap();
        assert_eq!((outer.uri().scheme(), outer.uri().path()), (None, ""));
        assert_eq!(names(outer), ["baggage", "forwarded", "traceparent"]);
        let inner = Connect {
            forwarded_network: Some("east"),
            ..connect()
        };
        assert_eq!(
            names(inner.request().unwrap()),
            ["baggage", "forwarded", "traceparent", "x-forwarded-network"]
        );
    }

    #[test]
    fn unsendable_parts_are_errors() {
        let bad_host = Forwarded {
            host: Some("a\nb"),
            ..connect().forwarded
        };
        for (request, part) in [
            (
                Connect {
                    authority: "a b:80",
                    ..connect()
                },
                "authority",
            ),
            (
                Connect {
                    authority: "",
                    ..connect()
                },
                "authority",
            ),
            (
                Connect {
                    forwarded: bad_host,
                    ..connect()
                },
                "forwarded",
            ),
            (
                Connect {
                    forwarded_network: Some("\0"),
                    ..connect()
                },
                "x-forwarded-network",
            ),
        ] {
            match request.request() {
                Err(ConnectError::Unsendable(found)) => assert_eq!(found, part),
                other => panic!("{part}: {other:?}"),
            }
        }
    }

    #[test]
    fn only_the_authority_is_required() {
        let request = |method: Method, uri: &str| {
            let mut request = Request::new(());
            *request.method_mut() = method;
            *request.uri_mut() = uri.parse().unwrap();
            request
        };
        let bare = read(request(Method::CONNECT, "10.0.0.2:80")).unwrap();
        assert!(bare.baggage.is_empty());
        assert_eq!(
            (
                bare.forwarded_host,
                bare.traceparent,
                bare.forwarded_network
            ),
            (None, None, None)
        );
        for (method, uri, why) in [
            (Method::GET, "http://10.0.0.2:80/", BadRequest::Method),
            (Method::CONNECT, "/path", BadRequest::NoAuthority),
            (Method::CONNECT, "web", AuthorityError::NoPort.into()),
            (Method::CONNECT, "user@web:80", AuthorityError::Host.into()),
        ] {
            assert_eq!(read(request(method, uri)), Err(why), "{uri}");
        }
    }

    #[test]
    fn malformed_hints_are_dropped_one_by_one() {
        let mut request = connect().request().unwrap();
        let headers = request.headers_mut();
        headers.insert(
            BAGGAGE,
            HeaderValue::from_bytes(b"service.name=\xff").unwrap(),
        );
        headers.insert(FORWARDED, HeaderValue::from_static("for=x"));
        headers.insert(TRACEPARENT, HeaderValue::from_bytes(&[0xe9; 55]).unwrap());
        let head = read(request).unwrap();
        assert!(head.baggage.is_empty());
        assert_eq!((head.forwarded_host, head.traceparent), (None, None));
    }

    #[test]
    fn a_client_behind_a_gateway_is_told_whatever_its_network_is_called() {
        let long = "n".repeat(VALUE_BYTES_MAX + 100);
        for (sent, network) in [
            (None, None),
            (Some(&b"east"[..]), Some("east")),
            // the default network
            (Some(b""), Some("")),
            (Some(b"\xff"), Some("\u{fffd}")),
            (Some(long.as_bytes()), Some(&long[..=VALUE_BYTES_MAX])),
        ] {
            let mut request = connect().request().unwrap();
            if let Some(sent) = sent {
                let value = HeaderValue::from_bytes(sent).unwrap();
                request.headers_mut().insert(FORWARDED_NETWORK, value);
            }
            let head = read(request).unwrap();
            assert_eq!(head.forwarded_network.as_deref(), network, "{sent:?}");
        }
    }
}
