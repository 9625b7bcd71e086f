//! A daemon of one workload (`PROXY_MODE=dedicated`): the only member is the network namespace that the daemon itself is in.
//!
//! Emits one snapshot and then nothing more: the workload is there as long as the daemon is. Leaves to others who the
//! workload is said to be, and whether the control plane knows it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use sys::Netns;
use tokio::sync::mpsc::Sender;

use crate::pod::{CaptureOptions, NetnsHandle, PodEvent, PodSpec, Sighting};

/// Where any process finds its own namespace. A successor of the daemon in the same namespace finds the same one.
const OWN: &str = "/proc/self/ns/net";
/// First part of the UID that stands for the member.
const PREFIX: &str = "own:";
/// Longest UID, in bytes: what capture remembers of one.
const UID_MAX: usize = 64;

/// Who the only member is, as the operator says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name of the workload.
    pub name: Arc<str>,
    /// Service account.
    pub service_account: Arc<str>,
}

/// Emits the snapshot of this one member, and ends when the receiver is gone.
///
/// Errors: the own network namespace cannot be opened.
pub fn source(
    member: &Member,
    events: Sender<PodEvent>,
) -> io::Result<impl Future<Output = ()> + use<>> {
    let sighting = Sighting::In(Arc::new(spec(member)?));
    Ok(async move {
        // nobody listens when the process is about to end
        if events
            .send(PodEvent::Snapshot(vec![sighting]))
            .await
            .is_ok()
        {
            events.closed().await;
        }
    })
}

fn spec(member: &Member) -> io::Result<PodSpec> {
    let netns = Netns::current()?;
    Ok(PodSpec {
        uid: uid(member).into(),
        name: Arc::clone(&member.name),
        namespace: Arc::clone(&member.namespace),
        service_account: Arc::clone(&member.service_account),
        netns: Path::new(OWN).to_owned(),
        netns_inode: Some(netns.inode()),
        netns_handle: Some(NetnsHandle(Arc::new(netns))),
        cgroup: None,
        cgroup_inode: None,
        capture: CaptureOptions::default(),
    })
}

/// A key that is the same for each daemon of this workload. Of a name that is too long, the begin and a checksum.
fn uid(member: &Member) -> String {
    let full = format!("{PREFIX}{}/{}", member.namespace, member.name);
    if full.len() <= UID_MAX {
        return full;
    }
    let sum = format!("-{:016x}", checksum(full.as_bytes()));
    let begin = full.floor_char_boundary(UID_MAX - sum.len());
    format!("{}{sum}", &full[..begin])
}

/// FNV-1a, 64 bits.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str) -> Member {
        Member {
            namespace: "shop".into(),
            name: name.into(),
            service_account: "web".into(),
        }
    }

    #[test]
    fn uids_are_short_and_tell_names_apart() {
        assert_eq!(uid(&member("vm-1")), "own:shop/vm-1");
        let long = |last: &str| uid(&member(&("x".repeat(200) + last)));
        assert_eq!(long("a").len(), UID_MAX);
        assert_eq!(long("a"), long("a"));
        assert_ne!(long("a"), long("b"));
    }

    #[tokio::test]
    async fn one_snapshot_of_the_own_namespace_and_no_more() {
        let (events, mut seen) = tokio::sync::mpsc::channel(1);
        let told = tokio::spawn(source(&member("vm-1"), events).unwrap());
        let Some(PodEvent::Snapshot(sightings)) = seen.recv().await else {
            panic!("a snapshot")
        };
        let [Sighting::In(spec)] = &sightings[..] else {
            panic!("one member: {sightings:?}")
        };
        let handle = spec.netns_handle.as_ref().unwrap();
        assert_eq!(handle.0.id(), Netns::current().unwrap().id());
        assert_eq!((&*spec.name, &spec.cgroup), ("vm-1", &None));
        assert!(!told.is_finished());
        drop(seen);
        told.await.unwrap();
    }
}
