//! Where state and certificates come from.

use control::channel::{Roots, Token};

use super::*;

const KUBERNETES: (&str, &str) = ("KUBERNETES_SERVICE_HOST", "10.0.0.1");
const FILE: (&str, &str) = ("LOCAL_XDS_PATH", "/m");
const DISCOVERY: (&str, &str) = ("PROXY_CONFIG", "discoveryAddress: mesh.example:15012");
const EMBEDDED: (&str, &str) = ("EMBEDDED_CA_DIR", "/ca");

/// Only these variables and the enrolment file.
fn only(variables: &[(&str, &str)]) -> Result<Config, Invalid> {
    read(&world([("ENROLL_FILE", "/e")].iter().chain(variables)))
}

fn xds_address(variables: &[(&str, &str)]) -> Option<String> {
    let config = only(variables).unwrap_or_else(|e| panic!("{variables:?}: {e}"));
    config.xds.map(|xds| xds.server.address)
}

fn ca_address(variables: &[(&str, &str)]) -> Option<String> {
    let config = only(variables).unwrap_or_else(|e| panic!("{variables:?}: {e}"));
    match config.ca {
        Ca::Istio(server) => Some(server.address),
        Ca::Embedded(directory) => {
            assert_eq!(directory, PathBuf::from("/ca"));
            None
        }
    }
}

#[test]
fn state_comes_from_the_first_source_that_is_set() {
    let set = ("XDS_ADDRESS", "set.example:1");
    let none = ("XDS_ADDRESS", "");
    let (cluster, here) = (
        "https://istiod.istio-system.svc:15012",
        "https://localhost:15012",
    );
    for (variables, address) in [
        (
            &[set, DISCOVERY, KUBERNETES, FILE][..],
            Some("https://set.example:1"),
        ),
        (
            &[DISCOVERY, KUBERNETES, FILE],
            Some("https://mesh.example:15012"),
        ),
        (&[DISCOVERY, FILE], Some("https://mesh.example:15012")),
        (&[KUBERNETES, FILE], Some(cluster)),
        (&[KUBERNETES], Some(cluster)),
        (&[FILE], None),
        (&[("LOCAL_XDS", "{}")], None),
        (&[], Some(here)),
        (&[none, DISCOVERY, KUBERNETES, FILE], None),
        (&[("PROXY_CONFIG", "discoveryAddress: ''")], Some(here)),
    ] {
        assert_eq!(xds_address(variables).as_deref(), address, "{variables:?}");
    }
    let nothing = only(&[none]).unwrap_err().to_string();
    assert!(
        nothing.starts_with("XDS_ADDRESS=\"\" is not valid: expected https://"),
        "{nothing}"
    );
    let both = only(&[FILE, ("LOCAL_XDS", "{}")]).unwrap_err().to_string();
    assert_eq!(
        both,
        "LOCAL_XDS_PATH and LOCAL_XDS are both set, expected one of them"
    );
}

#[test]
fn certificates_come_from_the_first_source_that_is_set() {
    let set = ("CA_ADDRESS", "set.example:1");
    let none = ("CA_ADDRESS", "");
    for (variables, address) in [
        (
            &[set, KUBERNETES, DISCOVERY][..],
            Some("https://set.example:1"),
        ),
        (
            &[KUBERNETES, DISCOVERY],
            Some("https://istiod.istio-system.svc:15012"),
        ),
        (&[DISCOVERY], Some("https://localhost:15012")),
        (&[EMBEDDED], None),
        (&[EMBEDDED, KUBERNETES], None),
        (&[EMBEDDED, none], None),
        (&[], Some("https://localhost:15012")),
    ] {
        assert_eq!(ca_address(variables).as_deref(), address, "{variables:?}");
    }
    let refused = |variables: &[_]| only(variables).unwrap_err().to_string();
    assert_eq!(
        refused(&[set, EMBEDDED]),
        "CA_ADDRESS and EMBEDDED_CA_DIR are both set, expected one of them"
    );
    assert_eq!(
        refused(&[none]),
        "CA_ADDRESS=\"\" is not valid: expected https://<host>:<port>, or <host>:<port>; or EMBEDDED_CA_DIR"
    );
    assert!(refused(&[("FAKE_CA", "true")]).starts_with("FAKE_CA=\"true\" is not valid"));
    assert!(only(&[("FAKE_CA", "false")]).is_ok());
}

#[test]
fn addresses() {
    for (text, address) in [
        ("istiod:15012", Some("https://istiod:15012")),
        ("https://istiod:15012", Some("https://istiod:15012")),
        (
            "https://istiod:15012/some/path?x",
            Some("https://istiod:15012"),
        ),
        ("https://istiod", Some("https://istiod:443")),
        ("10.0.0.1:15012", Some("https://10.0.0.1:15012")),
        ("[fd00::1]:15012", Some("https://[fd00::1]:15012")),
        ("http://istiod:15010", None),
        ("unix:///run/istiod", None),
        ("https://", None),
        ("https://a@istiod:1", None),
        ("istiod:0", None),
        ("istiod:70000", None),
        ("istiod:x", None),
        ("two words", None),
        (":15012", None),
    ] {
        for name in ["XDS_ADDRESS", "CA_ADDRESS"] {
            let got = only(&[(name, text)]);
            match address {
                Some(address) => {
                    let config = got.unwrap_or_else(|e| panic!("{text}: {e}"));
                    let server = match (name, config.xds, config.ca) {
                        ("XDS_ADDRESS", Some(xds), _) => xds.server,
                        (_, _, Ca::Istio(server)) => *server,
                        _ => panic!("{text}: no server"),
                    };
                    assert_eq!(server.address, address);
                }
                None => {
                    let error = got.map(|_| ()).unwrap_err().to_string();
                    let wanted = format!(
                        "{name}={text:?} is not valid: expected https://<host>:<port>, or <host>:<port>"
                    );
                    assert_eq!(error, wanted);
                }
            }
        }
    }
    let error = only(&[("PROXY_CONFIG", "discoveryAddress: http://x")])
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("discoveryAddress=\"http://x\""),
        "{error}"
    );
}

#[test]
fn certificate_lifetimes_follow_the_issuer() {
    for (ca, ttl, fits) in [
        (EMBEDDED, "2s", true),
        (EMBEDDED, "90d", true),
        (EMBEDDED, "1s", false),
        (EMBEDDED, "91d", false),
        (("CA_ADDRESS", "a:1"), "1s", true),
        (("CA_ADDRESS", "a:1"), "365d", true),
        (("CA_ADDRESS", "a:1"), "0", false),
        (("CA_ADDRESS", "a:1"), "999ms", false),
        (("CA_ADDRESS", "a:1"), "4000d", false),
    ] {
        assert_eq!(
            only(&[ca, ("SECRET_TTL", ttl)]).is_ok(),
            fits,
            "{ca:?} {ttl}"
        );
    }
}

#[test]
fn roots_are_a_file_the_system_or_text() {
    const PEM: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("roots.pem"), PEM).unwrap();
    let roots = |value: Option<&str>| {
        let value = value.map(|v| [("XDS_ROOT_CA", v), ("CA_ROOT_CA", v)]);
        let variables = value.iter().flatten().chain(&[("ENROLL_FILE", "/e")]);
        let mut world = world(variables);
        world.directory = directory.path().to_owned();
        let config = read(&world).expect("valid");
        let Ca::Istio(ca) = config.ca else {
            panic!("an authority is set")
        };
        let xds = config.xds.expect("a control plane is set").server;
        assert_eq!(ca.roots, xds.roots);
        xds.roots
    };
    let file = |name: &str| Roots::File(directory.path().join(name));
    assert_eq!(roots(Some("roots.pem")), file("roots.pem"));
    assert_eq!(roots(Some("SYSTEM")), Roots::System);
    assert_eq!(roots(Some(PEM)), Roots::Inline(PEM.to_owned()));
    // may come later, and is named until then
    assert_eq!(roots(Some("later.pem")), file("later.pem"));
    assert_eq!(roots(None), file("./var/run/secrets/istio/root-cert.pem"));
}

#[test]
fn a_token_is_a_file_or_itself_and_never_shown() {
    const DEFAULT: &str = "var/run/secrets/tokens/istio-token";
    let directory = tempfile::tempdir().unwrap();
    let read_with = |variables: &[(&str, &str)]| {
        let mut world = world([("ENROLL_FILE", "/e")].iter().chain(variables));
        world.directory = directory.path().to_owned();
        read(&world).expect("valid")
    };
    let token = |config: Config| config.xds.expect("a control plane is set").server.token;
    assert_eq!(token(read_with(&[])), None);
    std::fs::create_dir_all(directory.path().join("var/run/secrets/tokens")).unwrap();
    std::fs::write(directory.path().join(DEFAULT), "t").unwrap();
    let file = |name: &str| Some(Token::File(directory.path().join(name)));
    assert_eq!(
        token(read_with(&[])),
        file("./var/run/secrets/tokens/istio-token")
    );
    std::fs::write(directory.path().join("other"), "t").unwrap();
    assert_eq!(token(read_with(&[("AUTH_TOKEN", "other")])), file("other"));

    let config = read_with(&[
        ("AUTH_TOKEN", "s3cret"),
        ("XDS_HEADER_X_KEY", "s3cret"),
        ("CA_HEADER_X_KEY", "s3cret"),
    ]);
    let shown = format!("{config:?} {}", view::settings(&config));
    assert!(!shown.contains("s3cret"), "{shown}");
    assert!(
        shown.contains("x_key") && shown.contains("[redacted]"),
        "{shown}"
    );
    assert_eq!(config.warnings, Vec::<String>::new());
    let config = read_with(&[("AUTH_TOKEN", "/no/such/file")]);
    assert!(config.warnings[0].starts_with("AUTH_TOKEN looks like a path"));
}

#[test]
fn headers_are_lower_case_and_checked_without_showing_values() {
    let config = only(&[
        ("XDS_HEADER_X_Tenant-Id", "a b"),
        ("XDS_HEADER_", "x"),
        ("CA_HEADER_A", ""),
    ]);
    let config = config.expect("valid");
    let xds = config.xds.expect("a control plane is set").server.headers;
    assert_eq!(xds, [("x_tenant-id".to_owned(), "a b".to_owned())]);
    let Ca::Istio(ca) = config.ca else {
        panic!("an authority is set")
    };
    assert_eq!(ca.headers, [("a".to_owned(), String::new())]);
    for (name, value) in [
        ("XDS_HEADER_A", "s3cret\n"),
        ("CA_HEADER_A", "s3cret\u{e9}"),
        ("XDS_HEADER_A B", "s3cret"),
        ("XDS_HEADER_CONNECTION", "s3cret"),
        ("XDS_HEADER_GRPC-TIMEOUT", "s3cret"),
        ("CA_HEADER_X-BIN", "s3cret"),
    ] {
        let error = only(&[(name, value)]).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("{name} is not valid: expected")),
            "{error}"
        );
        assert!(!error.contains("s3cret"), "{error}");
    }
}

#[test]
fn alternative_names_are_host_names() {
    for name in ["ALT_XDS_HOSTNAME", "ALT_CA_HOSTNAME"] {
        assert!(only(&[(name, "istiod.example")]).is_ok());
        assert!(only(&[(name, "")]).is_ok());
        let error = only(&[(name, "not a name")]).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("{name}=\"not a name\" is not valid")),
            "{error}"
        );
    }
}

#[test]
fn on_demand_needs_dns_capture_off() {
    let demand = ("XDS_ON_DEMAND", "true");
    let error = only(&[demand]).unwrap_err().to_string();
    assert!(
        error.starts_with("XDS_ON_DEMAND=\"true\" is not valid"),
        "{error}"
    );
    let config = only(&[demand, ("ISTIO_META_DNS_CAPTURE", "false")]).expect("valid");
    assert!(config.xds.expect("a control plane is set").on_demand);
    assert!(
        !only(&[])
            .expect("valid")
            .xds
            .expect("a control plane is set")
            .on_demand
    );
}
