//! The check list of exchanges: bytes on the wire, sockets in the pod, metrics, readiness, for each row.

use std::time::Duration;

use anyhow::Result;
use integration::cni::Request;

use super::{ACTIVE, PENDING, STARTED, STOPPED, Table, add};
use crate::support::SOON;

#[test]
fn a_pod_comes_again_and_elsewhere_and_leaves() -> Result<()> {
    let (table, session) = Table::set(&[])?;
    let (a, b) = (table.pod("a-0"), table.pod("b-0"));
    table.wait_blocked()?;
    table.wait_served(&a.netns, false)?;

    add(&session, a, &a.netns)?;
    // the ack says that the listeners are there: no waiting here
    let open = super::open_ports(&a.netns)?;
    assert_eq!(
        open.keys().map(String::as_str).collect::<Vec<_>>(),
        super::SERVED,
        "{}",
        table.daemon.tail()
    );
    table.daemon.wait_log(0, &[&a.uid, "a-0", "shop"])?;

    add(&session, a, &a.netns)?;
    table.wait_value(ACTIVE, 1.0)?;
    table.wait_value(STARTED, 1.0)?;
    table.wait_served(&a.netns, true)?;

    add(&session, a, &b.netns)?;
    table.wait_served(&b.netns, true)?;
    table.wait_served(&a.netns, false)?;
    for (name, wanted) in [
        (STARTED, 2.0),
        (STOPPED, 1.0),
        (ACTIVE, 1.0),
        (PENDING, 0.0),
    ] {
        table.wait_value(name, wanted)?;
    }

    table.wait_blocked()?;
    session.ack(&Request::snapshot_sent(), &[])?;
    table.wait_ready()?;
    session.silent(Duration::from_millis(300))?;

    session.ack(&Request::del("nobody"), &[])?;
    session.ack(&Request::del(&a.uid), &[])?;
    table.wait_served(&b.netns, false)?;
    table.wait_value(ACTIVE, 0.0)?;
    table.wait_value(STOPPED, 2.0)?;
    table.wait_ready()?;
    let open = std::fs::read_dir(format!("/proc/{}/fd", table.daemon.pid()))?
        .flatten()
        .filter(|entry| {
            std::fs::read_link(entry.path())
                .is_ok_and(|to| to.to_string_lossy().starts_with("net:["))
        });
    let held: Vec<_> = open
        .filter_map(|e| std::fs::metadata(e.path()).ok())
        .collect();
    for pod in [a, b] {
        use std::os::unix::fs::MetadataExt;
        let inode = std::fs::metadata(&pod.netns)?.ino();
        assert!(
            held.iter().all(|meta| meta.ino() != inode),
            "the namespace of {} is still held",
            pod.name
        );
    }
    Ok(())
}

#[test]
fn a_pod_that_goes_before_the_snapshot_ends_stays_until_then() -> Result<()> {
    let (table, session) = Table::set(&[])?;
    let (a, b) = (table.pod("a-0"), table.pod("b-0"));
    add(&session, a, &a.netns)?;
    add(&session, b, &b.netns)?;
    session.ack(&Request::del(&a.uid), &[])?;
    table.wait_served(&a.netns, true)?;
    session.ack(&Request::snapshot_sent(), &[])?;
    table.wait_served(&a.netns, false)?;
    table.wait_served(&b.netns, true)?;
    table.wait_value(STOPPED, 1.0)?;
    table.wait_ready()
}

#[test]
fn a_new_connection_tells_what_is_still_there() -> Result<()> {
    let (table, session) = Table::set(&[])?;
    let (a, b) = (table.pod("a-0"), table.pod("b-0"));
    table.snapshot(&session, &[a, b])?;
    table.wait_ready()?;

    drop(session);
    let closed = std::time::Instant::now();
    let session = table.again(SOON)?;
    let pause = session.since().duration_since(closed);
    assert!(pause < Duration::from_millis(500), "after {pause:?}");
    table.wait_blocked()?;
    table.wait_served(&a.netns, true)?;
    // kept, without a descriptor
    session.ack(&Request::keep(&a.uid), &[])?;
    session.ack(&Request::keep("never-seen"), &[])?;
    add(&session, b, &b.netns)?;
    session.ack(&Request::snapshot_sent(), &[])?;
    table.wait_ready()?;
    table.wait_value(STARTED, 2.0)?;
    table.wait_value(STOPPED, 0.0)?;

    drop(session);
    let session = table.again(SOON)?;
    session.ack(&Request::keep(&b.uid), &[])?;
    session.ack(&Request::snapshot_sent(), &[])?;
    table.wait_served(&a.netns, false)?;
    table.wait_served(&b.netns, true)?;

    drop(session);
    let session = table.again(SOON)?;
    session.ack(&Request::snapshot_sent(), &[])?;
    table.wait_served(&b.netns, false)?;
    table.wait_value(ACTIVE, 0.0)?;
    table.wait_ready()
}

#[test]
fn sources_and_capture_are_these_when_nothing_else_is_said() -> Result<()> {
    let (table, session) = Table::set(&[("ENROLL", ""), ("CAPTURE", "")])?;
    let a = table.pod("a-0");
    table.snapshot(&session, &[a])?;
    table.wait_served(&a.netns, true)?;
    table.wait_ready()
}

#[test]
fn a_pod_may_leave_and_come_at_once_into_the_same_namespace() -> Result<()> {
    for reuse in ["true", "false"] {
        let (table, session) = Table::set(&[("INPOD_PORT_REUSE", reuse)])?;
        let a = table.pod("a-0");
        table.snapshot(&session, &[a])?;
        for round in 0..10 {
            session.ack(&Request::del(&a.uid), &[])?;
            let since = std::time::Instant::now();
            // the agent tries again after 5 ms, 10 ms and so on
            while let Err(error) = add(&session, a, &a.netns) {
                let took = since.elapsed();
                assert!(
                    reuse == "false" && took < Duration::from_millis(300),
                    "round {round} with INPOD_PORT_REUSE={reuse}, {took:?}: {error:#}"
                );
                std::thread::sleep(Duration::from_millis(5));
            }
            assert!(since.elapsed() < Duration::from_secs(1));
        }
        table.wait_served(&a.netns, true)?;
        table.wait_value(ACTIVE, 1.0)?;
        table.wait_value(PENDING, 0.0)?;
        table.wait_ready()?;
    }
    Ok(())
}
