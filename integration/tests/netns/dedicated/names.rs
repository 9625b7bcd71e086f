//! Names of the mesh on the machine, by the resolver library of its applications.

use anyhow::Result;

use super::{Scene, Told, launch, mesh, resolver, resolving};
use crate::support::echo;

#[test]
fn the_mesh_has_names_on_the_machine() -> Result<()> {
    let mesh = mesh(Told::ByFiles)?;
    let (upstream, server) = (mesh.pod("resolver-0").clone(), mesh.pod("server-0"));
    let _apps = [upstream.serve(&["dns"])?, server.serve(&["echo"])?];
    let text = "search shop.svc.cluster.local svc.cluster.local\noptions ndots:2";
    resolver(
        &mesh.world,
        &format!("nameserver {}\n{text}\n", upstream.v4),
    )?;
    let daemon = launch(&mesh.world, mesh.pod("vm-0"), &[], &[])?;
    let scene = Scene::of(mesh, daemon)?;
    let vm = &scene.vm;
    for name in ["server", "server.shop", "server.shop.svc.cluster.local"] {
        let said = resolving(&scene, &["getent", "ahostsv4", name])?;
        assert!(said.starts_with("10.96.0.10"), "{name}: {said}");
        let said = resolving(&scene, &["getent", "ahostsv6", name])?;
        assert!(said.starts_with("fd96::10"), "{name}: {said}");
    }
    // what is not the mesh's comes from the machine's resolver
    let said = resolving(&scene, &["getent", "ahostsv4", "www.example.com"])?;
    assert!(said.starts_with("192.0.2.1"), "{said}");
    echo(vm, "10.96.0.10:9000".parse()?, &[])?;
    Ok(())
}
