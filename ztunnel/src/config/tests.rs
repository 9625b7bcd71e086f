//! Tables of accepted and refused settings.

use super::value::parse_duration;
use super::*;

fn with(vars: &'static [(&'static str, &'static str)]) -> Result<Config, Invalid> {
    read(
        move |name| {
            let needed = [
                ("ENROLL_FILE", "/e"),
                ("LOCAL_XDS_PATH", "/m"),
                ("EMBEDDED_CA_DIR", "/ca"),
            ];
            vars.iter()
                .chain(&needed)
                .find(|(n, _)| *n == name)
                .map(|(_, v)| (*v).to_owned())
        },
        4,
    )
}

#[test]
fn defaults_are_the_documented_ones() {
    let config = with(&[]).expect("defaults are valid");
    assert_eq!(
        (config.admin_port, config.stats_port, config.readiness_port),
        (15000, 15020, 15021)
    );
    assert_eq!(config.drain_deadline, Duration::from_secs(5));
    assert_eq!(config.pool_max_streams, 100);
    assert_eq!(config.threads, 2);
    assert_eq!(config.excluded_namespaces, ["kube-system"]);
}

#[test]
fn errors_name_variable_value_and_what_was_expected() {
    for (vars, text) in [
        (
            &[("KEEPALIVE_ENABLED", "yes")][..],
            "KEEPALIVE_ENABLED=\"yes\" is not valid: expected true or false",
        ),
        (
            &[("SECRET_TTL", "1 fortnight")],
            "SECRET_TTL=\"1 fortnight\" is not valid: expected a duration such as 10s, 500ms, 5m, 1h30m",
        ),
        (
            &[("ENROLL", "magic")],
            "ENROLL=\"magic\" is not valid: expected file (zds and kubernetes are not supported yet)",
        ),
        (
            &[("ENROLL_FILE", "")],
            "ENROLL_FILE=\"\" is not valid: expected a path to the enrolment file",
        ),
        (
            &[("CAPTURE_EXEMPT_SOURCES", "10.0.0.0/8,ten")],
            "CAPTURE_EXEMPT_SOURCES=\"ten\" is not valid: expected a comma-separated list of addresses or CIDRs",
        ),
        (
            &[("ZTUNNEL_WORKER_THREADS", "120%")],
            "ZTUNNEL_WORKER_THREADS=\"120%\" is not valid: expected a number, 0 for all cores, or a share such as 50%",
        ),
    ] {
        assert_eq!(with(vars).expect_err("must be refused").to_string(), text);
    }
}

#[test]
fn a_control_plane_that_would_not_be_used_is_refused() {
    let error = with(&[("XDS_ADDRESS", "https://istiod:15012")]).expect_err("must be refused");
    assert!(error.to_string().starts_with("XDS_ADDRESS="), "{error}");
    assert!(with(&[("XDS_ADDRESS", "")]).is_ok());
}

#[test]
fn durations() {
    for (text, millis) in [
        ("10s", 10_000),
        ("500ms", 500),
        ("5m", 300_000),
        ("1h30m", 5_400_000),
        ("7", 7_000),
        ("1s+500ms", 1_500),
        ("2*3s", 6_000),
        ("24*60*1m", 86_400_000),
    ] {
        assert_eq!(
            parse_duration(text),
            Some(Duration::from_millis(millis)),
            "{text}"
        );
    }
    for text in [
        "",
        "s",
        "1x",
        "1s1",
        "3s*3s",
        "-1s",
        "99999999999999999999h",
    ] {
        assert_eq!(parse_duration(text), None, "{text}");
    }
}

#[test]
fn threads_follow_limit_request_and_cores() {
    for (vars, wanted) in [
        (&[("ZTUNNEL_WORKER_THREADS", "3")][..], 3),
        (&[("ZTUNNEL_WORKER_THREADS", "0")], 4),
        (&[("ZTUNNEL_WORKER_THREADS", "30%")], 2),
        (&[("ZTUNNEL_RESOURCE_CPU_LIMIT", "1500m")], 2),
        (
            &[
                ("ZTUNNEL_RESOURCE_CPU_LIMIT", "1"),
                ("ZTUNNEL_RESOURCE_CPU_REQUEST", "3"),
            ],
            3,
        ),
        (&[("ZTUNNEL_CPU_LIMIT", "16")], 4),
        (&[("ZTUNNEL_RESOURCE_CPU_REQUEST", "3")], 3),
    ] {
        assert_eq!(with(vars).expect("valid").threads, wanted, "{vars:?}");
    }
}

#[test]
fn drain_deadline_from_the_grace_period() {
    for (grace, secs) in [("30", 25), ("10", 9), ("1", 1), ("0", 1)] {
        let config = read(
            move |name| match name {
                "TERMINATION_GRACE_PERIOD_SECONDS" => Some(grace.to_owned()),
                "ENROLL_FILE" | "LOCAL_XDS_PATH" | "EMBEDDED_CA_DIR" => Some("/x".to_owned()),
                _ => None,
            },
            2,
        );
        assert_eq!(
            config.expect("valid").drain_deadline,
            Duration::from_secs(secs),
            "{grace}"
        );
    }
}

#[test]
fn every_variable_read_is_documented() {
    let seen = std::cell::RefCell::new(Vec::new());
    let _ = read(
        |name| {
            seen.borrow_mut().push(name.to_owned());
            matches!(name, "ENROLL_FILE" | "LOCAL_XDS_PATH" | "EMBEDDED_CA_DIR")
                .then(|| "/x".to_owned())
        },
        2,
    );
    for name in seen.into_inner() {
        assert!(
            variables::ALL.iter().any(|v| v.name == name),
            "{name} is read but has no entry in the help"
        );
    }
}
