//! One enrolled pod as the data threads see it: who it is, its sockets, how long it may still serve, what it uses.
//!
//! Shared by all data threads; the only thing they write here is the number of flows, at accept and at the end.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use mesh::Str;
use tokio::sync::{Notify, watch};

use crate::budget::{Budget, LOOKUPS_PER_POD_MAX, Share};
use crate::dns::Memory;
use crate::needs::{DnsPort, Net};

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

/// The listening sockets inside a pod's namespace. What is not there is not served.
#[derive(Default)]
pub struct Listeners {
    /// captured outbound connections; [`Net::original_destination`] tells where they were meant to go
    pub outbound: Option<TcpListener>,
    /// HBONE, port 15008
    pub hbone: Option<TcpListener>,
    /// captured plaintext inbound connections
    pub plaintext: Option<TcpListener>,
    /// SOCKS5 clients of the pod, on its loopback
    pub socks: Option<TcpListener>,
    /// DNS questions, where the pod's DNS is steered
    pub dns: Vec<Box<dyn DnsPort>>,
    /// connections to resolvers, where capture has listeners of their own for them
    pub dns_tcp: Vec<TcpListener>,
}

impl Listeners {
    /// How many there are.
    pub(crate) fn doors(&self) -> usize {
        let single = [&self.outbound, &self.hbone, &self.plaintext, &self.socks];
        single.into_iter().flatten().count() + self.dns_tcp.len() + self.dns.len()
    }
}

/// What is particular to one pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PodOptions {
    /// its application sees its clients' addresses
    pub keep_source: bool,
    /// the daemon answers its DNS questions
    pub dns: bool,
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
    /// what is particular to it
    pub options: PodOptions,
    /// sockets in its namespace
    pub net: Arc<dyn Net>,
    phase: watch::Sender<Phase>,
    /// tells this stay in the mesh from others of the same pod
    serial: u64,
    /// all that is open, of whatever kind
    flows: AtomicUsize,
    /// the same by [`Share`], each with its bound
    shares: [Budget; Share::ALL.len()],
    /// open questions for outbound connections
    pub(crate) lookups_out: Budget,
    /// open questions for what peers ask
    pub(crate) lookups_in: Budget,
    /// what it asked of resolvers
    pub(crate) dns: Memory,
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
    pub fn new(who: PodName, options: PodOptions, net: Arc<dyn Net>) -> Arc<Self> {
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
            options,
            net,
            phase,
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            flows: AtomicUsize::new(0),
            shares: Share::ALL.map(|share| Budget::new(share.most())),
            lookups_out: Budget::new(LOOKUPS_PER_POD_MAX),
            lookups_in: Budget::new(LOOKUPS_PER_POD_MAX),
            dns: Memory::default(),
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

    /// Counts one more flow in, unless the pod's budget for its kind is used up.
    pub(crate) fn enter(self: &Arc<Self>, share: Share) -> Option<Stay> {
        if !self.budget(share).enter() {
            return None;
        }
        self.flows.fetch_add(1, Ordering::AcqRel);
        let pod = Arc::clone(self);
        Some(Stay { pod, share })
    }

    fn budget(&self, share: Share) -> &Budget {
        &self.shares[share as usize]
    }
}

/// One flow's place in its pod's budget, given back on drop.
pub(crate) struct Stay {
    pod: Arc<Pod>,
    share: Share,
}

impl Stay {
    /// Counts the flow as another kind from now on; false, and all as before, when there is no room.
    pub(crate) fn become_a(&mut self, share: Share) -> bool {
        let fits = self.pod.budget(share).enter();
        if fits {
            self.pod.budget(self.share).leave();
            self.share = share;
        }
        fits
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.pod.budget(self.share).leave();
        if self.pod.flows.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.pod.idle.notify_waiters();
        }
    }
}

/// One listener of a pod, for as long as it may bring connections or answers.
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
        Pod::new(who, PodOptions::default(), Arc::new(NoNet))
    }

    fn fill(pod: &Arc<Pod>, share: Share) -> Vec<Stay> {
        let stays: Vec<_> = std::iter::from_fn(|| pod.enter(share)).collect();
        assert_eq!(stays.len(), share.most(), "{share:?}");
        stays
    }

    #[test]
    fn a_flood_of_one_kind_leaves_the_others_free() {
        let pod = pod();
        for share in Share::ALL {
            let stays = fill(&pod, share);
            for other in Share::ALL {
                assert_eq!(
                    pod.enter(other).is_some(),
                    other != share,
                    "{other:?} beside {share:?}"
                );
            }
            drop(stays);
            assert_eq!(pod.flows(), 0);
        }
        // whatever comes from outside, all together, does not touch what the application opens
        let inbound = [Share::Plaintext, Share::Handshake, Share::Hbone];
        let _floods = inbound.map(|share| fill(&pod, share));
        fill(&pod, Share::Outbound);
    }

    #[test]
    fn a_peer_that_proved_itself_makes_room_for_the_next() {
        let pod = pod();
        let mut strangers = fill(&pod, Share::Handshake);
        let proven = &mut strangers[0];
        assert!(proven.become_a(Share::Hbone));
        let next = pod.enter(Share::Handshake).expect("a place is free");
        let mut proven: Vec<_> = std::iter::from_fn(|| pod.enter(Share::Hbone)).collect();
        assert_eq!(proven.len(), Share::Hbone.most() - 1);
        // no room: it stays what it was, and is counted once
        assert!(!strangers[1].become_a(Share::Hbone));
        proven.pop();
        assert!(strangers[1].become_a(Share::Hbone));
        drop((strangers, proven, next));
        assert_eq!(pod.flows(), 0);
        fill(&pod, Share::Handshake);
        fill(&pod, Share::Hbone);
    }

    #[test]
    fn phases_only_advance() {
        let pod = pod();
        pod.advance(Phase::Cut);
        pod.advance(Phase::Drain);
        assert_eq!(*pod.phase().borrow(), Phase::Cut);
    }

    #[test]
    fn every_listener_that_is_there_is_a_door_and_no_other() {
        let one = || Some(TcpListener::bind("127.0.0.1:0").expect("a port"));
        assert_eq!(Listeners::default().doors(), 0);
        let hbone = Listeners {
            hbone: one(),
            ..Listeners::default()
        };
        assert_eq!(hbone.doors(), 1);
        let all = Listeners {
            outbound: one(),
            hbone: one(),
            plaintext: one(),
            socks: one(),
            dns: Vec::new(),
            dns_tcp: one().into_iter().chain(one()).collect(),
        };
        assert_eq!(all.doors(), 6);
    }

    #[tokio::test]
    async fn idle_comes_with_the_last_flow() {
        let pod = pod();
        pod.idle().await;
        let stay = pod.enter(Share::Outbound).expect("within the budget");
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
        let stay = pod.enter(Share::Outbound).expect("within the budget");
        drop(door);
        assert!(!pod.is_idle());
        drop(stay);
        pod.idle().await;
    }
}
