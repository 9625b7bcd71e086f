//! One enrolled pod as the data threads see it: who it is, its sockets, how long it may still serve, what it uses.
//!
//! Shared by all data threads; the only thing they write here is the number of flows, at accept and at the end.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use mesh::Str;
use tokio::sync::{Notify, watch};

use crate::needs::{DnsPort, Net};

/// Most flows (and tunnels accepted) that one pod may have open at a time, so that one pod cannot take the node's
/// descriptors: half of a usual hard limit of 1,048,576 with two descriptors a flow, spread over 16 busy pods.
pub const FLOWS_PER_POD_MAX: usize = 16_384;

/// How far a pod's time in the mesh has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Accepts and serves.
    Serve,
    /// Accepts nothing new; what is open goes on (un-enrolled, or the process is ending).
    Drain,
    /// Everything open is cut.
    Cut,
}

/// The listening sockets inside a pod's namespace.
pub struct Listeners {
    /// captured outbound connections; the local address of an accepted socket is the original destination
    pub outbound: TcpListener,
    /// HBONE, port 15008
    pub hbone: TcpListener,
    /// captured plaintext inbound connections
    pub plaintext: TcpListener,
    /// DNS questions, where the pod's DNS is steered
    pub dns: Option<Box<dyn DnsPort>>,
}

/// Identity and state of one pod.
pub struct Pod {
    /// pod UID
    pub uid: Str,
    /// pod name
    pub name: Str,
    /// pod namespace
    pub namespace: Str,
    /// service account
    pub service_account: Str,
    /// sockets in its namespace
    pub net: Arc<dyn Net>,
    phase: watch::Sender<Phase>,
    /// tells this stay in the mesh from others of the same pod
    serial: u64,
    flows: AtomicUsize,
    /// listeners that may still bring connections
    doors: AtomicUsize,
    idle: Notify,
}

/// Who a pod is, as the enrolment source named it.
#[derive(Debug, Clone)]
pub struct PodName {
    /// pod UID
    pub uid: Str,
    /// pod name
    pub name: Str,
    /// pod namespace
    pub namespace: Str,
    /// service account
    pub service_account: Str,
}

impl Pod {
    /// A pod that serves from now on.
    pub fn new(who: PodName, net: Arc<dyn Net>) -> Arc<Self> {
        let PodName {
            uid,
            name,
            namespace,
            service_account,
        } = who;
        let phase = watch::Sender::new(Phase::Serve);
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            uid,
            name,
            namespace,
            service_account,
            net,
            phase,
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            flows: AtomicUsize::new(0),
            doors: AtomicUsize::new(0),
            idle: Notify::new(),
        })
    }

    /// Moves to a later phase; a phase never goes back.
    pub fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|now| {
            let later = to > *now;
            if later {
                *now = to;
            }
            later
        });
    }

    /// The phase, to wait on.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Open flows and accepted tunnels.
    pub fn flows(&self) -> usize {
        self.flows.load(Ordering::Relaxed)
    }

    /// Number of this stay in the mesh: the same pod enrolled again has another one.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// Whether no flow is open and no listener can bring one any more.
    pub fn is_idle(&self) -> bool {
        // in this order: whoever comes through a door is counted before the door closes
        self.doors.load(Ordering::Acquire) == 0 && self.flows.load(Ordering::Acquire) == 0
    }

    /// A listener's claim that it may still bring connections.
    pub(crate) fn door(self: &Arc<Self>) -> Door {
        self.doors.fetch_add(1, Ordering::AcqRel);
        Door(Arc::clone(self))
    }

    /// Returns once [`Pod::is_idle`].
    pub async fn idle(&self) {
        loop {
            let ended = self.idle.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if self.is_idle() {
                return;
            }
            ended.await;
        }
    }

    /// Counts one more flow in, unless the pod's budget of [`FLOWS_PER_POD_MAX`] is used up.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Stay> {
        if self.flows.fetch_add(1, Ordering::AcqRel) >= FLOWS_PER_POD_MAX {
            self.leave();
            return None;
        }
        Some(Stay(Arc::clone(self)))
    }

    fn leave(&self) {
        if self.flows.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.idle.notify_waiters();
        }
    }
}

/// One flow's place in its pod's budget, given back on drop.
pub(crate) struct Stay(Arc<Pod>);

impl Drop for Stay {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// One listener of a pod, for as long as it may bring connections.
pub(crate) struct Door(Arc<Pod>);

impl Drop for Door {
    fn drop(&mut self) {
        if self.0.doors.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

/// Waits until `phase` is at least `wanted`; also returns when the pod is gone.
pub(crate) async fn reached(phase: &mut watch::Receiver<Phase>, wanted: Phase) {
    // an error means that the pod itself was dropped, which is later than any phase
    let _ = phase.wait_for(|now| *now >= wanted).await;
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::{SocketAddr, UdpSocket};

    use super::*;
    use crate::needs::Dial;

    struct NoNet;

    impl Net for NoNet {
        fn socket(&self, _: &Dial) -> io::Result<tokio::net::TcpSocket> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn resolver(&self, _: SocketAddr) -> io::Result<UdpSocket> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    fn pod() -> Arc<Pod> {
        let text = |t: &str| Str::from(t);
        let who = PodName {
            uid: text("u"),
            name: text("n"),
            namespace: text("ns"),
            service_account: text("sa"),
        };
        Pod::new(who, Arc::new(NoNet))
    }

    #[test]
    fn a_pod_cannot_have_more_flows_than_its_budget() {
        let pod = pod();
        let stays: Vec<_> = (0..FLOWS_PER_POD_MAX)
            .map(|_| pod.enter().expect("within the budget"))
            .collect();
        assert!(pod.enter().is_none());
        drop(stays);
        assert_eq!(pod.flows(), 0);
        assert!(pod.enter().is_some());
    }

    #[test]
    fn phases_only_advance() {
        let pod = pod();
        pod.advance(Phase::Cut);
        pod.advance(Phase::Drain);
        assert_eq!(*pod.phase().borrow(), Phase::Cut);
    }

    #[tokio::test]
    async fn idle_comes_with_the_last_flow() {
        let pod = pod();
        pod.idle().await;
        let stay = pod.enter().expect("within the budget");
        let waiting = pod.idle();
        tokio::pin!(waiting);
        tokio::select! {
            biased;
            () = &mut waiting => panic!("a flow is open"),
            () = std::future::ready(()) => {}
        }
        drop(stay);
        waiting.await;
    }

    #[tokio::test]
    async fn an_open_door_is_not_idle() {
        let pod = pod();
        let door = pod.door();
        assert!(!pod.is_idle());
        let stay = pod.enter().expect("within the budget");
        drop(door);
        assert!(!pod.is_idle());
        drop(stay);
        pod.idle().await;
    }
}
