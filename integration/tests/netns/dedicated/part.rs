//! A capture cgroup that does not hold all of the machine: its applications would go past the daemon, so that is refused or told.

use anyhow::{Result, ensure};
use integration::cgroup;

use super::{Told, launch, member_state};
use crate::support::SOON;

#[test]
fn a_part_of_the_hierarchy_is_not_taken_for_all_of_it() -> Result<()> {
    let mesh = super::mesh(Told::ByFiles)?;
    let vm = mesh.pod("vm-0").clone();
    // what a container runtime does: a cgroup namespace of the container's own, and its view mounted in the usual place
    let script = "umount --lazy \"$0\" && mount -t cgroup2 none \"$0\" && exec \"$1\"";
    let root = integration::place::cgroup_root()?;
    let launcher = ["unshare", "--cgroup", "--mount", "--", "sh", "-c", script];
    let mut launcher: Vec<_> = launcher.iter().map(std::path::PathBuf::from).collect();
    launcher.push(root);
    let mut daemon = launch(&mesh.world, &vm, &[("CAPTURE_CGROUP", "")], &launcher)?;
    let exit = daemon.wait_exit(SOON)?;
    ensure!(!exit.status.success(), "{}", exit.status);
    let said = daemon.tail();
    ensure!(
        said.contains("is a part of it") && said.contains("CAPTURE_CGROUP"),
        "{said}"
    );
    Ok(())
}

#[test]
fn applications_outside_of_the_capture_cgroup_are_told() -> Result<()> {
    let mesh = super::mesh(Told::ByFiles)?;
    let vm = mesh.pod("vm-0").clone();
    let _outside = vm.serve(&["echo"])?;
    let narrow = vm.cgroup.join("narrow");
    cgroup::make(&narrow)?;
    let narrow = narrow.to_string_lossy().into_owned();
    let env = [
        ("CAPTURE_CGROUP", narrow.as_str()),
        ("CAPTURE_RECONCILE_INTERVAL", "300ms"),
    ];
    let daemon = launch(&mesh.world, &vm, &env, &[])?;
    daemon.wait_log(0, &["not below", "CAPTURE_CGROUP must hold all of them"])?;
    daemon.wait_dump(SOON, "a member that is not said to be captured", |_| {
        member_state(&daemon).is_ok_and(|state| state != "Up")
    })?;
    let drifts = daemon
        .metrics()?
        .sum("ztunnel_capture_drift_total", &[("kind", "cgroup")]);
    ensure!(drifts >= 1.0, "{drifts}");
    Ok(())
}
