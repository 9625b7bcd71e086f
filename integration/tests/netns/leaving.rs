//! Leaving the mesh undoes everything: rules, routes, sysctls, sockets, pins.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use integration::{Layout, Model, Pod, netns, place, until, world};

use crate::support::{Mesh, SOON, echo, hold, still_held};

/// What can be seen of the mesh in a pod's namespace.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    network: BTreeMap<String, Vec<String>>,
    sysctls: BTreeMap<String, String>,
    sockets: BTreeSet<String>,
}

impl Traces {
    fn of(pod: &Pod) -> Result<Self> {
        let commands: [&[&str]; 5] = [
            &["rule", "show"],
            &["-6", "rule", "show"],
            &["route", "show", "table", "all"],
            &["-6", "route", "show", "table", "all"],
            &["-d", "link", "show", "lo"],
        ];
        let mut network = BTreeMap::new();
        for command in commands {
            let shown = netns::show(&pod.netns_name, command)?;
            // link-local addresses come and go by themselves, a second after the link is up
            let lines = shown.lines().filter(|line| !line.contains("local fe80:"));
            let mut lines: Vec<_> = lines.map(|line| line.trim().to_owned()).collect();
            lines.sort();
            network.insert(command.join(" "), lines);
        }
        let (sysctls, sockets) = netns::inside(&pod.netns, || {
            let mut sysctls = BTreeMap::new();
            for root in [
                "/proc/sys/net/ipv4",
                "/proc/sys/net/ipv6",
                "/proc/sys/net/core",
            ] {
                read_all(Path::new(root), &mut sysctls);
            }
            (sysctls, sockets())
        })?;
        Ok(Self {
            network,
            sysctls,
            sockets,
        })
    }

    fn assert_same(&self, other: &Self, when: &str) {
        for (command, lines) in &self.network {
            assert_eq!(
                Some(lines),
                other.network.get(command),
                "ip {command} {when}"
            );
        }
        for (key, value) in &self.sysctls {
            assert_eq!(Some(value), other.sysctls.get(key), "{key} {when}");
        }
        assert_eq!(self.sockets, other.sockets, "sockets {when}");
    }
}

fn read_all(dir: &Path, into: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_all(&path, into);
        } else if let Ok(value) = fs::read_to_string(&path) {
            into.insert(path.display().to_string(), value.trim().to_owned());
        }
    }
}

/// Local addresses of everything that listens or is a datagram or raw socket.
fn sockets() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for table in ["tcp", "tcp6", "udp", "udp6", "raw", "raw6"] {
        let text = fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            // state 0A = listening
            if !table.starts_with("tcp") || fields.get(3) == Some(&"0A") {
                found.insert(format!("{table} {}", fields.get(1).unwrap_or(&"?")));
            }
        }
    }
    found
}

fn pins(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        found.insert(path.display().to_string());
        if path.is_dir() {
            found.extend(pins(&path));
        }
    }
    found
}

fn wait_released(
    mesh: &Mesh,
    pod: &Pod,
    before: &Traces,
    pinned: &BTreeSet<String>,
    when: &str,
) -> Result<()> {
    // sockets close once the last flow of the pod has ended, a moment after the dump stops showing it
    let settled = until(SOON, "sockets closed", || {
        Ok((Traces::of(pod)?.sockets == before.sockets).then_some(()))
    });
    before.assert_same(&Traces::of(pod)?, when);
    settled?;
    assert_eq!(
        &pins(&mesh.world.node(pod.node).pins),
        pinned,
        "pins {when}"
    );
    Ok(())
}

#[test]
fn leaving_restores_the_pod() -> Result<()> {
    let mesh = Mesh::plain(&Layout::standard())?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let (before, before_server) = (Traces::of(client)?, Traces::of(server)?);
    let nodes = [mesh.world.node(0), mesh.world.node(1)];
    let pinned = nodes.map(|node| pins(&node.pins));
    for round in 0..3 {
        mesh.label("shop", true)?;
        echo(client, server.at(9000), &[])?;
        echo(client, server.at6(9000), &[])?;
        assert_ne!(
            Traces::of(client)?,
            before,
            "enrolled pods look different, or this test sees nothing"
        );
        assert_ne!(
            pins(&nodes[0].pins),
            pinned[0],
            "enrolled pods have pins, or this test sees nothing"
        );
        mesh.label("shop", false)?;
        let when = format!("after round {round}");
        wait_released(&mesh, client, &before, &pinned[0], &when)?;
        wait_released(&mesh, server, &before_server, &pinned[1], &when)?;
        echo(client, server.at(9000), &[])?;
    }
    Ok(())
}

#[test]
fn connections_made_in_the_mesh_outlive_the_label() -> Result<()> {
    let mesh = Mesh::plain(&Layout::standard())?;
    let (client, server) = (mesh.pod("client-0"), mesh.pod("server-0"));
    let _echo = server.serve(&["echo"])?;
    let before = Traces::of(client)?;
    let pinned = pins(&mesh.world.node(client.node).pins);
    mesh.label("shop", true)?;
    let held = hold(client, server.at(9000))?;
    mesh.label("shop", false)?;
    let state = |daemon: usize, pod: &Pod| -> Result<_> {
        Ok(mesh.daemons[daemon].config_dump()?["workloadState"][&pod.uid]["state"].clone())
    };
    assert_eq!(state(0, client)?, "Leaving");
    still_held(&held)?;
    // a new connection is not captured any more
    let seen = echo(client, server.at(9000), &[])?;
    let wire = mesh.daemons[0].config_dump()?;
    let open = &wire["workloadState"][&client.uid]["connections"]["outbound"];
    assert_eq!(open.as_array().map(Vec::len), Some(1), "{open} {seen}");
    held.terminate()?;
    until(SOON, "the pod is out", || {
        Ok((state(0, client)? == "Out").then_some(()))
    })?;
    wait_released(&mesh, client, &before, &pinned, "after the last connection")
}

#[test]
fn each_way_out_of_the_file_is_a_way_out_of_the_mesh() -> Result<()> {
    let mesh = Mesh::plain(&Layout::standard())?;
    let client = mesh.pod("client-0");
    let before = Traces::of(client)?;
    let pinned = pins(&mesh.world.node(0).pins);
    type Way = (&'static str, fn(&mut Model));
    let ways: [Way; 3] = [
        ("opted out", |model| {
            if let Some(pod) = model.pod_mut("client-0") {
                pod.labels
                    .insert(integration::model::MODE_LABEL.to_owned(), "none".to_owned());
            }
        }),
        ("ended", |model| {
            if let Some(pod) = model.pod_mut("client-0") {
                pod.labels.clear();
                pod.phase = "Succeeded".to_owned();
            }
        }),
        ("not listed", |model| {
            model.pods.retain(|pod| pod.name != "client-0");
        }),
    ];
    for (what, change) in ways {
        if let Some(pod) = mesh.world.model().pod_mut("client-0") {
            pod.labels.clear();
            pod.phase = "Running".to_owned();
        }
        mesh.label("shop", true)?;
        assert_ne!(Traces::of(client)?, before);
        mesh.world.edit(change)?;
        mesh.daemons[0].wait_dump(SOON, what, |dump| world::is_out(dump, &client.uid))?;
        wait_released(&mesh, client, &before, &pinned, what)?;
    }
    Ok(())
}

#[test]
fn release_undoes_what_a_daemon_that_is_gone_left() -> Result<()> {
    let mut mesh = Mesh::plain(&Layout::standard())?;
    let server = mesh.pod("server-0").clone();
    let client = mesh.pod("client-0").clone();
    let _echo = server.serve(&["echo"])?;
    let before = [Traces::of(&client)?, Traces::of(&server)?];
    mesh.label("shop", true)?;
    mesh.daemons
        .iter_mut()
        .try_for_each(integration::Daemon::kill9)?;
    for node in mesh.world.nodes() {
        let out = Command::new(place::binary("ztunnel")?)
            .arg("release")
            .env("CAPTURE_PIN_PATH", &node.pins)
            .env("CAPTURE_CGROUP", &node.kubepods)
            .output()
            .context("run ztunnel release")?;
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        assert_eq!(pins(&node.pins), BTreeSet::new(), "pins");
    }
    before[0].assert_same(&Traces::of(&client)?, "after release");
    before[1].assert_same(&Traces::of(&server)?, "after release");
    echo(&client, server.at(9000), &[])?;
    echo(&client, server.at6(9000), &[])?;
    Ok(())
}
