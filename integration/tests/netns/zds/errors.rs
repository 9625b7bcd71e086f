//! Packets that are not of the contract: refused with a reason, and no pod notices.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use integration::cni::{AddWorkload, Payload, Request, Rules};
use prost::Message;

use super::{ACTIVE, STARTED, STOPPED, Table, add, add_of};
use crate::support::{SOON, echo};

/// A text that no packet can hold.
const LONG: usize = 2000;

#[test]
fn what_cannot_be_read_is_refused_and_the_next_connection_works() -> Result<()> {
    let (table, mut session) = Table::set(&[])?;
    let (a, b) = (table.pod("a-0"), table.pod("b-0"));
    let netns = File::open(&b.netns)?;
    let fd = netns.as_fd();
    let fds = table.daemon.fds();
    let mut long = add_of(b);
    if let Some(Payload::Add(add)) = &mut long.payload {
        add.uid = "x".repeat(LONG);
    }
    let packets = [
        ("garbage", vec![0xff; 7], vec![]),
        (
            "garbage of a text",
            b"hello, are you there?".to_vec(),
            vec![],
        ),
        ("an arm that is not used", vec![0x22, 0], vec![]),
        ("an arm that is not known", vec![0x7a, 2, 8, 1], vec![]),
        (
            "add without a descriptor",
            add_of(b).encode_to_vec(),
            vec![],
        ),
        ("add with two", add_of(b).encode_to_vec(), vec![fd; 2]),
        ("add with many", add_of(b).encode_to_vec(), vec![fd; 40]),
        (
            "del with one",
            Request::del(&a.uid).encode_to_vec(),
            vec![fd],
        ),
        (
            "keep with one",
            Request::keep(&a.uid).encode_to_vec(),
            vec![fd],
        ),
        (
            "end of the snapshot with one",
            Request::snapshot_sent().encode_to_vec(),
            vec![fd],
        ),
        ("a packet that is cut", long.encode_to_vec(), vec![fd]),
        ("a long one of nothing", vec![0; LONG], vec![]),
    ];
    for (what, bytes, with) in packets {
        table.snapshot(&session, &[a])?;
        table.wait_ready()?;
        let error = session
            .nack(&bytes, &with)
            .with_context(|| what.to_owned())?;
        assert!(
            error.starts_with("failure to read message"),
            "{what}: {error}"
        );
        assert!(error.len() < 1000, "{what}: {error}");
        session.closed(SOON).with_context(|| what.to_owned())?;
        let closed = Instant::now();
        session = table.again(SOON)?;
        let pause = session.since().saturating_duration_since(closed);
        assert!(
            pause < Duration::from_millis(500),
            "{what}: after {pause:?}"
        );
        table.wait_served(&a.netns, true)?;
        table.wait_served(&b.netns, false)?;
    }
    table.snapshot(&session, &[a])?;
    table.wait_value(STARTED, 1.0)?;
    table.wait_value(STOPPED, 0.0)?;
    // the pod's own, and not one for each packet
    let now = table.daemon.fds();
    assert!(now < fds + 40, "{fds} descriptors at first, now {now}");
    Ok(())
}

/// Packets against the protocol, each after the end of the snapshot.
fn against_the_protocol(uid: &str) -> [(&'static str, Vec<u8>, bool); 3] {
    let nobody = Request::from(Payload::Add(AddWorkload {
        uid: "nobody".to_owned(),
        workload_info: None,
    }));
    [
        ("add of nobody", nobody.encode_to_vec(), true),
        (
            "keep after the snapshot",
            Request::keep(uid).encode_to_vec(),
            false,
        ),
        (
            "a second end of the snapshot",
            Request::snapshot_sent().encode_to_vec(),
            false,
        ),
    ]
}

#[test]
fn against_the_protocol_a_strict_daemon_ends() -> Result<()> {
    for number in 0..3 {
        let (mut table, session) = Table::set(&[("ZDS_STRICT_EXIT", "true")])?;
        let a = table.pod("a-0").clone();
        table.snapshot(&session, &[&a])?;
        let (what, bytes, with) = against_the_protocol(&a.uid)[number].clone();
        let netns = File::open(&table.pod("b-0").netns)?;
        let fds: &[_] = if with { &[netns.as_fd()] } else { &[] };
        let error = session.nack(&bytes, fds).with_context(|| what.to_owned())?;
        assert!(
            error.starts_with("failure to process message"),
            "{what}: {error}"
        );
        let exit = table.daemon.wait_exit(SOON)?;
        assert_eq!(exit.status.code(), Some(1), "{what}");
    }
    Ok(())
}

#[test]
fn against_the_protocol_a_daemon_connects_again_and_serves_on() -> Result<()> {
    let (table, mut session) = Table::set(&[])?;
    let (a, b) = (table.pod("a-0"), table.pod("b-0"));
    let netns = File::open(&b.netns)?;
    let _echo = a.serve(&["echo"])?;
    Rules::default().install(a)?;
    for (what, bytes, with) in against_the_protocol(&a.uid) {
        table.snapshot(&session, &[a])?;
        table.wait_ready()?;
        let fds: &[_] = if with { &[netns.as_fd()] } else { &[] };
        let error = session.nack(&bytes, fds).with_context(|| what.to_owned())?;
        assert!(
            error.starts_with("failure to process message"),
            "{what}: {error}"
        );
        session.closed(SOON).with_context(|| what.to_owned())?;
        table.wait_blocked()?;
        table.wait_served(&a.netns, true)?;
        table.wait_served(&b.netns, false)?;
        // through the daemon, which is not ready and serves all the same
        echo(b, a.at(9000), &[])?;
        session = table.again(Duration::from_secs(20))?;
    }
    add(&session, a, &a.netns)?;
    session.ack(&Request::snapshot_sent(), &[])?;
    table.wait_ready()?;
    table.wait_value(STARTED, 1.0)?;
    table.wait_value(ACTIVE, 1.0)?;
    Ok(())
}

#[test]
fn the_daemons_own_namespace_is_not_taken_for_a_pods() -> Result<()> {
    let (table, session) = Table::set(&[])?;
    let a = table.pod("a-0");
    let own = File::open(table.daemon.netns())?;
    let error = session.nack(&add_of(a).encode_to_vec(), &[own.as_fd()])?;
    assert!(error.starts_with("failure to start proxy"), "{error}");
    let open = super::open_ports(table.daemon.netns())?;
    assert!(!open.contains_key("tcp *:15001"), "{open:?}");
    // the connection goes on
    add(&session, a, &a.netns)
}
