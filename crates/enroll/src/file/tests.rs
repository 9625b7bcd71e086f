//! The file as operators write it, right and wrong.

use super::*;
use crate::rules::Why;

const GOOD: &str = "\
# a machine with two pods
namespaces:
- name: shop
  labels: {istio.io/dataplane-mode: ambient}
pods:
- uid: 7c0e
  name: web-0
  namespace: shop
  serviceAccount: web
  netns: /run/netns/web
  cgroup: /sys/fs/cgroup/kubepods//pod-web/
- uid: 8d1f
  name: old
  namespace: shop
  phase: Succeeded
- uid: \"42\"
  name: node-agent
  namespace: shop
  hostNetwork: true
  labels: {app: agent}
  annotations: {note: \"true\"}
";

#[test]
fn a_good_file() {
    let enrolment = parse(GOOD).unwrap();
    let web = &enrolment.pods[0];
    assert_eq!(
        (
            &*web.uid,
            &*web.name,
            &*web.namespace,
            &*web.service_account
        ),
        ("7c0e", "web-0", "shop", "web")
    );
    assert_eq!(
        web.cgroup.as_deref().unwrap().to_str(),
        Some("/sys/fs/cgroup/kubepods/pod-web")
    );
    assert_eq!(
        (&*enrolment.pods[1].service_account, enrolment.pods[1].phase),
        ("default", Phase::Succeeded)
    );
    assert_eq!(&*enrolment.pods[2].uid, "42");
    let sightings = enrolment.sightings(&Rules::default());
    assert!(matches!(&sightings[0].0, Sighting::In(spec) if &*spec.uid == "7c0e"));
    assert!(matches!(&sightings[1].0, Sighting::Out(pod) if pod.why == Why::Terminated));
    assert!(matches!(&sightings[2].0, Sighting::Out(pod) if pod.why == Why::HostNetwork));
}

#[test]
fn files_without_pods() {
    for text in [
        "",
        "\n# nothing\n",
        "---\n",
        "pods: []",
        "namespaces:\n- name: a\n",
    ] {
        assert_eq!(parse(text).unwrap().pods, [], "{text:?}");
    }
}

/// A good pod, on lines 2 to 6 when it stands first.
fn pod(uid: &str, name: &str, rest: &str) -> String {
    format!(
        "- uid: {uid}\n  name: {name}\n  namespace: shop\n  netns: /run/{uid}\n  cgroup: /cg/{uid}\n{rest}"
    )
}

#[test]
fn errors_name_line_field_value_and_what_was_expected() {
    let file = |pods: &[String]| format!("pods:\n{}", pods.concat());
    let long = "x".repeat(64);
    let cases = [
        (
            file(&[pod("a", "Web", "")]),
            "line 3: pods[0].name: \"Web\": expected a DNS name: a-z, 0-9, - and ., at most 253",
        ),
        (
            file(&[pod("a", "a", ""), pod("a", "b", "")]),
            "line 7: pods[1].uid: \"a\": expected a uid of its own, line 2 has it already",
        ),
        (
            file(&[pod("a", "web", ""), pod("b", "web", "")]),
            "line 8: pods[1].name: \"web\": expected a name in its namespace of its own, line 3 has it already",
        ),
        (
            file(&[
                pod("a", "a", ""),
                pod("b", "b", "").replace("/run/b", "/run//a/"),
            ]),
            "line 10: pods[1].netns: \"/run//a/\": expected a netns of its own, line 5 has it already",
        ),
        (
            file(&[pod("a", "a", "").replace("/cg/a", "cg/a")]),
            "line 6: pods[0].cgroup: \"cg/a\": expected an absolute path without ..",
        ),
        (
            file(&[pod("a", "a", "").replace("/cg/a", "/cg/../a")]),
            "line 6: pods[0].cgroup: \"/cg/../a\": expected an absolute path without ..",
        ),
        (
            file(&[pod("a", "a", "").replace("  cgroup: /cg/a\n", "")]),
            "line 2: pods[0].cgroup: missing for pod \"a\": needed unless hostNetwork is true or the phase is Succeeded or Failed",
        ),
        (
            format!("namespaces:\n- name: {long}\n"),
            &format!(
                "line 2: namespaces[0].name: \"{long}\": expected a DNS label: a-z, 0-9 and -, at most 63"
            ),
        ),
        (
            file(&[pod("a", "a", "  serviceAccount: -x\n")]),
            "line 7: pods[0].serviceAccount: \"-x\": expected a DNS name: a-z, 0-9, - and ., at most 253",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(parse(&text).unwrap_err().to_string(), expected, "{text}");
    }
}

#[test]
fn errors_of_form_name_line_and_field() {
    let file = |pods: &[String]| format!("pods:\n{}", pods.concat());
    for (text, line, field, part) in [
        (
            file(&[pod("a", "a", "  hostnetwork: true\n")]),
            7,
            "pods[0].hostnetwork",
            "hostNetwork",
        ),
        (
            file(&[pod("a", "a", "  hostNetwork: maybe\n")]),
            7,
            "pods[0].hostNetwork",
            "invalid boolean, found \"maybe\"",
        ),
        (
            file(&[pod("a", "a", "  phase: Gone\n")]),
            7,
            "pods[0].phase",
            "Succeeded",
        ),
        (
            file(&[pod("a", "a", "  labels: [x]\n")]),
            7,
            "pods[0].labels",
            "map",
        ),
        (file(&["- name: x\n".to_owned()]), 2, "pods[0]", "uid"),
        ("pod: []\n".to_owned(), 1, "pod", "pods"),
        (
            file(&[pod("a", "a", "  name: twice\n")]),
            7,
            "pods[0]",
            "name",
        ),
        ("pods: [\n".to_owned(), 1, "pods", ""),
        ("just text".to_owned(), 1, "file", "found \"just text\""),
    ] {
        match parse(&text) {
            Err(FileError::Form {
                line: found,
                field: path,
                message,
            }) => {
                assert_eq!(
                    (found, path.starts_with(field), message.contains(part)),
                    (line, true, true),
                    "{text}: {path}: {message}"
                );
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn sizes_are_bounded() {
    assert!(matches!(
        parse(&"#".repeat(BYTES_MAX as usize + 1)),
        Err(FileError::TooLarge)
    ));
    let many: String = (0..=ENTRIES_MAX)
        .map(|n| format!("- {{name: n{n}}}\n"))
        .collect();
    let error = parse(&format!("namespaces:\n{many}"))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "line 1: namespaces: \"4097 entries\": expected at most 4096"
    );
}

#[test]
fn hostile_text_is_an_error_and_no_more() {
    let bomb = "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\npods: *c\n";
    let deep = format!("pods: {}", "[".repeat(100_000));
    for text in [
        bomb,
        &deep,
        "\u{0}",
        "pods: !!binary x",
        "%YAML 9\n---\npods: 1",
        "? [x]\n: y",
    ] {
        assert!(parse(text).is_err(), "{}", &text[..text.len().min(40)]);
    }
}
