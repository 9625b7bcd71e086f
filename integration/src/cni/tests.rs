//! The agent against the smallest proxy there can be: it keeps to its own rules.

use std::fs;
use std::io::IoSliceMut;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use prost::Message;

use super::{Agent, Entry, Event, Link, Payload, Request};

const SOON: Duration = Duration::from_secs(10);
const ACK: [u8; 2] = [0x0a, 0];

/// A proxy that has said hello.
fn proxy(path: &Path) -> Result<Link> {
    let link = Link::dial(path)?;
    link.send(&[8, 1], &[], SOON)?;
    Ok(link)
}

/// The next request, and the inodes of the descriptors that came along; none at the end.
fn next(link: &Link) -> Result<Option<(Request, Vec<u64>)>> {
    link.socket().set_read_timeout(Some(SOON))?;
    let mut bytes = [0; 1024];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let mut room = nix::cmsg_space!([i32; 4]);
    let told = recvmsg::<()>(
        link.socket().as_raw_fd(),
        &mut parts,
        Some(&mut room),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut inodes = Vec::new();
    for part in told.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part {
            for fd in fds {
                use std::os::unix::fs::MetadataExt;
                inodes.push(fs::metadata(format!("/proc/self/fd/{fd}"))?.ino());
                nix::unistd::close(fd)?;
            }
        }
    }
    let len = told.bytes;
    if len == 0 {
        return Ok(None);
    }
    Ok(Some((Request::decode(&bytes[..len])?, inodes)))
}

/// Takes requests up to the end of the snapshot and acks them all.
fn snapshot(link: &Link) -> Result<Vec<String>> {
    let mut names = Vec::new();
    loop {
        let (request, fds) = next(link)?.context("closed during the snapshot")?;
        let is_add = matches!(request.payload, Some(Payload::Add(_)));
        ensure!(fds.len() == usize::from(is_add), "{request:?} with {fds:?}");
        names.push(request.name());
        link.send(&ACK, &[], SOON)?;
        if names.last().is_some_and(|name| name == "snapshot_sent") {
            return Ok(names);
        }
    }
}

fn entry(uid: &str, netns: Option<&Path>) -> Result<Entry> {
    let netns = netns.map(fs::File::open).transpose()?.map(Arc::new);
    Ok(Entry {
        uid: uid.to_owned(),
        name: "a-0".to_owned(),
        namespace: "shop".to_owned(),
        service_account: "a".to_owned(),
        netns,
    })
}

fn own_netns() -> &'static Path {
    Path::new("/proc/self/ns/net")
}

#[test]
fn replays_its_cache_and_then_tells_what_comes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let agent = Agent::start(&dir.path().join("s"))?;
    agent.cache("a", Some(entry("a", Some(own_netns()))?));
    agent.cache("b", Some(entry("b", None)?));
    let link = proxy(agent.path())?;
    assert_eq!(snapshot(&link)?, ["add a", "keep b", "snapshot_sent"]);
    let inode = {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(own_netns())?.ino()
    };
    let c = entry("c", Some(own_netns()))?;
    thread::scope(|scope| {
        let told = scope.spawn(|| agent.add(&c));
        let (request, fds) = next(&link)?.context("closed")?;
        assert_eq!((request.name().as_str(), fds), ("add c", vec![inode]));
        link.send(&[0x0a, 2, 0x0a, 0], &[], SOON)?;
        let answer = told.join().expect("the agent's thread")?;
        assert_eq!(answer.bytes, [0x0a, 2, 0x0a, 0]);
        assert!(answer.acked().is_err(), "the same meaning, but other bytes");
        anyhow::Ok(())
    })
}

#[test]
fn adds_go_to_the_newest_and_removals_to_all() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let agent = Agent::start(&dir.path().join("s"))?;
    let a = entry("a", Some(own_netns()))?;
    assert!(agent.add(&a).is_err(), "nobody is connected");
    let old = proxy(agent.path())?;
    snapshot(&old)?;
    let new = proxy(agent.path())?;
    snapshot(&new)?;
    thread::scope(|scope| {
        let told = scope.spawn(|| agent.add(&a));
        next(&new)?.context("closed")?;
        new.send(&ACK, &[], SOON)?;
        assert_eq!(told.join().expect("the agent's thread")?.acked()?.link, 2);
        let told = scope.spawn(|| agent.del("a"));
        for link in [&old, &new] {
            let (request, fds) = next(link)?.context("closed")?;
            assert_eq!((request.name().as_str(), fds.len()), ("del a", 0));
            link.send(&ACK, &[], SOON)?;
        }
        assert_eq!(told.join().expect("the agent's thread")?.len(), 2);
        // the newest goes: the one before it is asked
        new.close();
        let told = scope.spawn(|| agent.add(&a));
        next(&old)?.context("closed")?;
        old.send(&ACK, &[], SOON)?;
        assert_eq!(told.join().expect("the agent's thread")?.acked()?.link, 1);
        anyhow::Ok(())
    })
}

#[test]
fn takes_five_connections_a_second() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let agent = Agent::start(&dir.path().join("s"))?;
    let _links = [
        proxy(agent.path())?,
        proxy(agent.path())?,
        proxy(agent.path())?,
    ];
    let at = |wanted: u64| {
        agent
            .record()
            .wait(0, SOON, "connection", |event| match event {
                Event::Connected { link, at } if *link == wanted => Some(*at),
                _ => None,
            })
    };
    let first: Instant = at(1)?;
    assert!(at(3)?.duration_since(first) >= Duration::from_millis(400));
    Ok(())
}

#[test]
fn drops_who_speaks_unasked_and_who_says_no_hello() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let agent = Agent::start(&dir.path().join("s"))?;
    let why = |wanted: u64| {
        agent
            .record()
            .wait(0, SOON, "end of a connection", |event| match event {
                Event::Dropped { link, why } if *link == wanted => Some(why.clone()),
                _ => None,
            })
    };
    let wrong = Link::dial(agent.path())?;
    wrong.send(&[8, 2], &[], SOON)?;
    assert!(why(1)?.contains("hello"));
    let link = proxy(agent.path())?;
    snapshot(&link)?;
    link.send(&ACK, &[], SOON)?;
    let why = why(2)?;
    assert!(why.contains("unasked"), "{why}");
    assert_eq!(next(&link)?, None);
    Ok(())
}

#[test]
fn an_agent_that_stops_refuses_and_comes_back_with_its_cache() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut agent = Agent::start(&dir.path().join("s"))?;
    agent.cache("a", Some(entry("a", Some(own_netns()))?));
    let link = proxy(agent.path())?;
    snapshot(&link)?;
    agent.stop();
    assert_eq!(next(&link)?, None);
    assert!(Link::dial(agent.path()).is_err());
    agent.resume()?;
    let link = proxy(agent.path())?;
    assert_eq!(snapshot(&link)?, ["add a", "snapshot_sent"]);
    Ok(())
}
