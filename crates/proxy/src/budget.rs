//! What one pod may have open, each kind by itself: who fills one budget leaves the others free.
//!
//! What is dropped at a bound is told by `refusals`.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Connections of the pod's own application.
pub const OUTBOUND_PER_POD_MAX: usize = 16_384;
/// Plaintext connections to the application, from whoever reaches the pod.
pub const PLAINTEXT_PER_POD_MAX: usize = 8_192;
/// HBONE connections whose peer has not proven yet who it is: a handshake takes milliseconds, a silent peer has 10 s.
pub const HANDSHAKES_PER_POD_MAX: usize = 1_024;
/// Tunnels of proven peers and the streams in them.
pub const HBONE_PER_POD_MAX: usize = 16_384;
/// SOCKS5 connections that have not said yet where they lead; then they are outbound ones.
pub const SOCKS_PER_POD_MAX: usize = 1_024;
/// Connections to resolvers.
pub const DNS_TCP_PER_POD_MAX: usize = 1_024;
/// Questions of one pod, in one direction, that wait for the control plane or the resolver. Both take 4,096 of the node.
pub const LOOKUPS_PER_POD_MAX: usize = 256;

// Descriptors: two for each plain connection, one for each tunnel, stream and handshake, so 69,632 for a pod at all its
// bounds; 15 such pods fit into a usual hard limit of 1,048,576.

/// A kind of flow that has a budget of its own in each pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Share {
    /// connections of the pod's own application
    Outbound,
    /// plaintext connections to it
    Plaintext,
    /// HBONE connections before their peer has proven who it is
    Handshake,
    /// tunnels of proven peers and the streams in them
    Hbone,
    /// SOCKS5 connections of the pod's own application before they say where they lead
    Socks,
    /// its connections to resolvers, where the daemon answers in their place
    Dns,
}

impl Share {
    /// Every kind; each stands at the place of its number.
    pub const ALL: [Share; 6] = [
        Share::Outbound,
        Share::Plaintext,
        Share::Handshake,
        Share::Hbone,
        Share::Socks,
        Share::Dns,
    ];

    /// Most of them at a time in one pod.
    pub fn most(self) -> usize {
        match self {
            Share::Outbound => OUTBOUND_PER_POD_MAX,
            Share::Plaintext => PLAINTEXT_PER_POD_MAX,
            Share::Handshake => HANDSHAKES_PER_POD_MAX,
            Share::Hbone => HBONE_PER_POD_MAX,
            Share::Socks => SOCKS_PER_POD_MAX,
            Share::Dns => DNS_TCP_PER_POD_MAX,
        }
    }

    /// The fixed word under which dropped ones are counted.
    pub fn reason(self) -> &'static str {
        match self {
            Share::Outbound => "pod_budget_outbound",
            Share::Plaintext => "pod_budget_plaintext",
            Share::Handshake => "pod_budget_handshake",
            Share::Hbone => "pod_budget_hbone",
            Share::Socks => "pod_budget_socks",
            Share::Dns => "pod_budget_dns_tcp",
        }
    }

    /// What there is too much of, in a sentence.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Share::Outbound => "outbound connections",
            Share::Plaintext => "plaintext connections",
            Share::Handshake => "connections of unproven peers",
            Share::Hbone => "tunnels and streams",
            Share::Socks => "SOCKS5 handshakes",
            Share::Dns => "connections to resolvers",
        }
    }

    /// As the access log says it.
    pub(crate) fn direction(self) -> &'static str {
        match self {
            Share::Outbound | Share::Socks | Share::Dns => "outbound",
            Share::Plaintext | Share::Handshake | Share::Hbone => "inbound",
        }
    }
}

/// Something that is counted up to a bound.
#[derive(Debug)]
pub(crate) struct Budget {
    open: AtomicUsize,
    most: usize,
}

impl Budget {
    pub(crate) const fn new(most: usize) -> Self {
        let open = AtomicUsize::new(0);
        Self { open, most }
    }

    /// Counts one more in; false at the bound. To be given back by [`Budget::leave`].
    pub(crate) fn enter(&self) -> bool {
        let next = |open| (open < self.most).then_some(open + 1);
        self.open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
            .is_ok()
    }

    pub(crate) fn leave(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts one more in for as long as the place is kept.
    pub(crate) fn place(&self) -> Option<Place<'_>> {
        self.enter().then(|| Place(self))
    }
}

/// One place in a budget, given back on drop.
#[derive(Debug)]
pub(crate) struct Place<'a>(&'a Budget);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_what_it_says_and_places_come_back() {
        let budget = Budget::new(2);
        let (first, second) = (budget.place(), budget.place());
        assert!(first.is_some() && second.is_some());
        // asking in vain takes nothing and gives nothing
        assert!((0..3).all(|_| budget.place().is_none()));
        drop(first);
        let third = budget.place();
        assert!(third.is_some() && budget.place().is_none());
    }

    #[test]
    fn every_kind_stands_at_its_number() {
        for (number, share) in Share::ALL.into_iter().enumerate() {
            assert_eq!(share as usize, number);
        }
    }
}
