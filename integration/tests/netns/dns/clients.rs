//! Clients as applications have them: glibc, musl, Python, curl, with a pod's resolver file (search list, `ndots:5`).

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Resolving, SEARCH, Scene};
use crate::support::SOON;

/// Prints the numeric addresses of a name, or why there are none; linked with musl.
const LOOKUP: &str = r#"
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
int main(int argc, char **argv) {
    struct addrinfo hints, *all;
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    int code = getaddrinfo(argv[1], "80", &hints, &all);
    if (code) { printf("error %s\n", gai_strerror(code)); return 1; }
    for (; all; all = all->ai_next) {
        char host[64];
        getnameinfo(all->ai_addr, all->ai_addrlen, host, sizeof host, 0, 0, NI_NUMERICHOST);
        printf("%s\n", host);
    }
    return 0;
}
"#;

const PYTHON: &str = "import socket, sys
try:
    found = socket.getaddrinfo(sys.argv[1], 80, type=socket.SOCK_STREAM)
except socket.gaierror as error:
    sys.exit(str(error))
print('\\n'.join(sorted({entry[4][0] for entry in found})))";

fn musl(scene: &Scene) -> Result<PathBuf> {
    let dir = scene.mesh.world.dir();
    let (source, program) = (dir.join("lookup.c"), dir.join("lookup"));
    fs::write(&source, LOOKUP)?;
    let mut compiler = Command::new("musl-gcc");
    compiler.arg("-static").arg("-o").arg(&program).arg(&source);
    let out = compiler
        .output()
        .context("musl-gcc is missing (Debian: apt-get install musl-tools)")?;
    ensure!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(program)
}

/// The different first words of the lines, sorted.
fn addresses(text: &str) -> Vec<String> {
    let words = text
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    let mut all: Vec<_> = words.map(str::to_owned).collect();
    all.sort();
    all.dedup();
    all
}

#[test]
fn libraries_find_services_by_short_and_long_names() -> Result<()> {
    let scene = Scene::set()?;
    let client = scene.pod("client-0");
    let program = musl(&scene)?;
    let program = program.to_string_lossy();
    let web: &[&str] = &["10.96.0.4", "fd96::4"];
    let db: &[&str] = &[
        "10.244.1.13",
        "10.244.1.14",
        "fd44:0:0:1::d",
        "fd44:0:0:1::e",
    ];
    let cases: &[(&str, &[&str])] = &[
        ("web", web),
        ("web.shop", web),
        ("web.shop.svc", web),
        ("web.shop.svc.cluster.local", web),
        ("web.shop.svc.cluster.local.", web),
        ("db", db),
        ("pay.example.com", &["10.96.0.10"]),
        ("host.corp.example", &["10.96.0.9"]),
        ("only4", &["10.96.0.6"]),
        // the resolver's
        ("example.net.", &["192.0.2.1", "2001:db8::1"]),
    ];
    let servers = [scene.resolver(), IpAddr::V6(scene.pod("resolver-0").v6)];
    let mut wrong = Vec::new();
    for server in servers {
        let at = Resolving::new(&scene, client, server, SEARCH)?;
        for (name, expected) in cases {
            for library in [
                &["getent", "ahosts", name][..],
                &["/usr/bin/python3", "-c", PYTHON, name],
                &[&program, name],
            ] {
                let (_, text) = at.run(library)?;
                let found = addresses(&text);
                if found != *expected {
                    wrong.push(format!("{} {name} @{server}: {found:?}", library[0]));
                }
            }
        }
        for (database, expected) in [("ahostsv4", &web[..1]), ("ahostsv6", &web[1..])] {
            let (_, text) = at.run(&["getent", database, "web"])?;
            if addresses(&text) != *expected {
                wrong.push(format!("getent {database} web @{server}: {text}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{}\nlog:\n{}",
        wrong.join("\n"),
        scene.daemon().tail()
    );
    // short names were answered by their first form, so the resolver heard of none
    for name in [
        "web",
        "web.shop.svc.cluster.local",
        "web.shop.shop.svc.cluster.local",
        "pay.example.com",
    ] {
        assert_eq!(scene.asked(name)?, 0, "{name}");
    }
    Ok(())
}

#[test]
fn names_that_nobody_has_are_nobodys_in_every_form() -> Result<()> {
    let scene = Scene::set()?;
    let client = scene.pod("client-0");
    let at = Resolving::new(&scene, client, scene.resolver(), SEARCH)?;
    let (is_found, text) = at.run(&["getent", "ahosts", "nx.example.com"])?;
    assert!(!is_found && text.is_empty(), "{text}");
    // each form of the search list, and the name itself, was asked for once in each family
    for tail in [
        "",
        ".shop.svc.cluster.local",
        ".svc.cluster.local",
        ".cluster.local",
    ] {
        assert_eq!(scene.asked(&format!("nx.example.com{tail}"))?, 2, "{tail}");
    }
    Ok(())
}

#[test]
fn a_connection_by_name_goes_through_the_mesh() -> Result<()> {
    let scene = Scene::set()?;
    let (client, server) = (scene.pod("client-0"), scene.pod("db-0"));
    let _http = server.serve(&["http", "--name", "db"])?;
    let at = Resolving::new(&scene, client, scene.resolver(), SEARCH)?;
    for host in ["web", "web.shop"] {
        let url = format!("http://{host}/");
        let (is_good, body) = at.run(&["curl", "-sS", "--max-time", "20", &url])?;
        assert!(is_good, "{body}\n{}", scene.daemon().tail());
    }
    let line = scene.daemon().wait_access("the connection", |line| {
        line.is("outbound") && line.field("dst.service") == "web.shop.svc.cluster.local"
    })?;
    assert_eq!(
        line.field("dst.identity"),
        server.identity(),
        "{}",
        line.text
    );
    Ok(())
}

#[test]
fn a_pod_may_keep_its_dns_to_itself() -> Result<()> {
    let scene = Scene::set()?;
    let private = scene.pod("private-0");
    let reply = super::dig(private, scene.resolver(), &["web.shop"])?;
    assert_eq!(
        reply.answers,
        ["web.shop. 30 A 192.0.2.1"],
        "{}",
        reply.text
    );
    let seen = private.podapp(&["dig", "--server", &format!("{}:53", scene.resolver())])?;
    let asked = format!("udp from {}:{}", private.v4, seen["port"]);
    // from the application's own socket
    scene
        .upstream
        .wait_line(SOON, "its question", |line| line == asked)?;
    Ok(())
}
