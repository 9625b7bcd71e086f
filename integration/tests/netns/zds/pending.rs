//! Pods that cannot be started: pending, told so, tried again.

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Result;
use integration::cni::{Request, Session};
use integration::{Pod, netns};
use prost::Message;

use super::{ACTIVE, PENDING, STARTED, STOPPED, Table, add, add_of};
use crate::support::SOON;

/// An addition that cannot work.
fn add_file(session: &Session, pod: &Pod) -> Result<()> {
    let file = File::open("/proc/self/exe")?;
    let error = session.nack(&add_of(pod).encode_to_vec(), &[file.as_fd()])?;
    assert!(error.starts_with("failure to start proxy"), "{error}");
    assert!(error.len() < 1000, "{error}");
    Ok(())
}

#[test]
fn a_file_is_no_namespace() -> Result<()> {
    let (table, session) = Table::set(&[])?;
    let (a, b) = (table.pod("a-0"), table.pod("b-0"));
    table.snapshot(&session, &[b])?;
    table.wait_ready()?;
    let from = table.daemon.log_len();
    add_file(&session, a)?;
    table.wait_value(PENDING, 1.0)?;
    table.wait_blocked()?;
    let dump = table.daemon.config_dump()?;
    assert_eq!(dump["workloadState"][&a.uid]["state"], "Pending", "{dump}");
    // tried again by itself after 5 s
    table.daemon.wait_log(from, &[&a.uid])?;
    let before = table.daemon.log_len();
    table.daemon.wait_log(before, &[&a.uid])?;
    // another namespace takes it out of the pending ones
    add(&session, a, &a.netns)?;
    table.wait_value(PENDING, 0.0)?;
    table.wait_ready()?;

    add_file(&session, a)?;
    // the old one is gone already
    table.wait_served(&a.netns, false)?;
    table.wait_value(PENDING, 1.0)?;
    table.wait_value(ACTIVE, 1.0)?;
    session.ack(&Request::del(&a.uid), &[])?;
    table.wait_value(PENDING, 0.0)?;
    table.wait_ready()?;
    table.wait_value(STARTED, 2.0)
}

#[test]
fn a_pod_whose_port_is_taken_starts_once_it_is_free() -> Result<()> {
    let (table, session) = Table::set(&[])?;
    let (a, b) = (table.pod("a-0"), table.pod("b-0"));
    let taken = netns::inside(&a.netns, || TcpListener::bind("[::]:15006"))??;
    let netns = File::open(&a.netns)?;
    let error = session.nack(&add_of(a).encode_to_vec(), &[netns.as_fd()])?;
    assert!(error.starts_with("failure to start proxy"), "{error}");
    let open = super::open_ports(&a.netns)?;
    assert_eq!(open.len(), 1, "nothing half open: {open:?}");
    table.wait_value(PENDING, 1.0)?;
    session.ack(&Request::snapshot_sent(), &[])?;
    table.wait_blocked()?;
    drop(taken);
    let freed = Instant::now();
    // while it waits, requests are answered as ever
    while freed.elapsed() < Duration::from_secs(7)
        && table.daemon.metrics()?.value(PENDING) != Some(0.0)
    {
        add(&session, b, &b.netns)?;
        session.ack(&Request::del(&b.uid), &[])?;
        std::thread::sleep(Duration::from_millis(50));
    }
    let took = freed.elapsed();
    assert!(
        took < Duration::from_millis(6500),
        "tried again only after {took:?}"
    );
    table.wait_served(&a.netns, true)?;
    table.wait_ready()
}

#[test]
fn a_new_connection_forgets_what_was_pending() -> Result<()> {
    let (table, session) = Table::set(&[])?;
    let (a, b) = (table.pod("a-0"), table.pod("b-0"));
    add(&session, b, &b.netns)?;
    add_file(&session, a)?;
    table.wait_value(PENDING, 1.0)?;
    drop(session);
    let session = table.again(SOON)?;
    table.wait_value(PENDING, 0.0)?;
    add(&session, b, &b.netns)?;
    session.ack(&Request::snapshot_sent(), &[])?;
    table.wait_ready()?;
    table.wait_value(STARTED, 1.0)?;
    table.wait_value(STOPPED, 0.0)
}

#[test]
fn a_pod_that_fails_within_the_snapshot_is_still_of_it() -> Result<()> {
    let (table, session) = Table::set(&[])?;
    let (a, b) = (table.pod("a-0"), table.pod("b-0"));
    table.snapshot(&session, &[a, b])?;
    drop(session);
    // its replacement fails: the old one is gone, and the pod stays pending over the end of the snapshot
    let session = table.again(SOON)?;
    add_file(&session, a)?;
    add(&session, b, &b.netns)?;
    session.ack(&Request::snapshot_sent(), &[])?;
    table.wait_value(PENDING, 1.0)?;
    table.wait_value(ACTIVE, 1.0)?;
    table.wait_blocked()?;
    add(&session, a, &a.netns)?;
    table.wait_ready()
}
