//! The daemon's own endpoints on the machine that it captures, what it says of itself, and how it fails to start.

use anyhow::{Context, Result};
use integration::{Policy, place};
use serde_json::Value;

use super::{Scene, Told, launch};
use crate::support::SOON;

#[test]
fn metrics_and_readiness_are_reached_from_elsewhere() -> Result<()> {
    let scene = Scene::set(Told::ByFiles)?;
    let (vm, outsider) = (&scene.vm, scene.mesh.pod("outsider-0"));
    let url = |port: u16, path: &str| format!("http://{}:{port}/{path}", vm.v4);
    let metrics = url(15020, "metrics");
    // through the mesh as well
    let (code, body) = scene.mesh.pod("client-0").curl(&[&metrics])?;
    assert!(code == 0 && body.contains("istio_build"), "{code}: {body}");
    // whatever policy says of the machine's applications
    let nobody = "{principals: [!Exact \"cluster.local/ns/shop/sa/nobody\"]}";
    scene.edit(|model| {
        let policy = Policy::new("Allow", "shop", "nobody", &[nobody]);
        model.policies.push(policy);
    })?;
    for (url, says) in [
        (metrics, "istio_build"),
        (url(15021, "healthz/ready"), "ready"),
    ] {
        let (code, body) = outsider.curl(&[&url])?;
        assert!(code == 0 && body.contains(says), "{url}: {code}: {body}");
    }
    let (code, _) = outsider.curl(&["--max-time", "1", &url(15000, "config_dump")])?;
    assert_ne!(code, 0, "the admin endpoint is for the machine itself");
    Ok(())
}

#[test]
fn readiness_knows_no_source_of_pods() -> Result<()> {
    let scene = Scene::set(Told::ByIstiod)?;
    let answer = scene.daemon.get(15021, "/healthz/ready")?;
    assert_eq!((answer.status, answer.body.as_str()), (200, "ready\n"));
    assert!(!scene.daemon.log().contains("workload proxy manager"));
    let dump = scene.daemon.config_dump()?;
    assert_eq!(
        dump["config"]["proxyMode"], "Dedicated",
        "{}",
        dump["config"]
    );
    Ok(())
}

#[test]
fn a_machine_that_cannot_be_captured_ends_the_start() -> Result<()> {
    let mesh = super::mesh(Told::ByFiles)?;
    let vm = mesh.pod("vm-0").clone();
    for family in ["-4", "-6"] {
        vm.read(&[
            "ip", family, "addr", "flush", "dev", "eth0", "scope", "global",
        ])?;
    }
    let mut daemon = launch(&mesh.world, &vm, &[], &[])?;
    let exit = daemon.wait_exit(SOON)?;
    assert_eq!(exit.status.code(), Some(1), "{}", daemon.tail());
    assert!(
        daemon.log().contains("no global address"),
        "{}",
        daemon.tail()
    );
    Ok(())
}

#[test]
fn check_looks_at_what_a_machine_needs() -> Result<()> {
    let scene = Scene::set(Told::ByFiles)?;
    let vm = &scene.vm;
    let binary = place::binary("ztunnel")?.to_string_lossy().into_owned();
    let node = super::site(&scene.mesh.world);
    let env = [
        "PROXY_MODE=dedicated".to_owned(),
        "PROXY_WORKLOAD_INFO=shop/vm-0/vm".to_owned(),
        "XDS_ADDRESS=".to_owned(),
        format!("CAPTURE_CGROUP={}", vm.cgroup.display()),
        format!("CAPTURE_PIN_PATH={}", node.pins.display()),
        format!("LOCAL_XDS_PATH={}", node.state.display()),
        format!("EMBEDDED_CA_DIR={}", node.ca.display()),
    ];
    let mut words = vec!["env"];
    words.extend(env.iter().map(String::as_str));
    words.extend([&*binary, "check", "--output", "json"]);
    let out = vm.run(&words)?;
    let report: Value = serde_json::from_slice(&out.stdout).context("no report")?;
    assert!(out.status.success(), "{report:#}");
    let groups = report["groups"].as_array().context("no groups")?;
    let all = groups
        .iter()
        .flat_map(|group| group["findings"].as_array().into_iter().flatten());
    let named = |name: &str| all.clone().find(|finding| finding["name"] == name);
    for name in ["cgroup socket program", "namespace of packets"] {
        let finding = named(name).with_context(|| format!("no {name}: {report:#}"))?;
        assert_eq!(finding["status"], "ok", "{finding}");
    }
    assert!(named("kubelet's cgroup").is_none(), "{report:#}");
    Ok(())
}
