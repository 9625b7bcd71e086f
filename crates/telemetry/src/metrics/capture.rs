//! What is known of capture: how many pods are in which state, and how often the kernel's state was not as it should be.
//!
//! Leaves finding and repairing drift, and counting pods, to their owners.

use super::{Counters, Family, Gauge, RegisterError, Registry};

/// What a pod of this node is, as far as capture goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodState {
    /// Captured, as read back from the kernel.
    Enrolled,
    /// In the mesh and not captured (yet), or captured and serving no more as it should.
    Pending,
    /// Not captured yet, and its connections wait or are refused.
    Held,
    /// Left the mesh with connections open.
    Leaving,
    /// Seen, and not in the mesh.
    Out,
}

impl PodState {
    /// All states.
    pub const ALL: [Self; 5] = [
        Self::Enrolled,
        Self::Pending,
        Self::Held,
        Self::Leaving,
        Self::Out,
    ];

    /// The name, as in the label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::Pending => "pending",
            Self::Held => "held",
            Self::Leaving => "leaving",
            Self::Out => "out",
        }
    }
}

/// The metrics of capture. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CaptureMetrics {
    /// Drift found, by kind: `ztunnel_capture_drift_total{kind}`.
    pub drift: Counters,
    pods: [Gauge; PodState::ALL.len()],
}

impl CaptureMetrics {
    /// Says how many pods are in a state now: `ztunnel_capture_pods{state}`.
    pub fn set_pods(&self, state: PodState, count: usize) {
        // far fewer pods than an i64 holds
        self.pods[state as usize].set(count as i64);
    }
}

impl Registry {
    /// Registers `ztunnel_capture_drift` and `ztunnel_capture_pods`.
    ///
    /// - `kinds`: kinds of drift, each shown as 0 until it is seen
    ///
    /// Errors: [`RegisterError`].
    pub fn capture(
        &self,
        kinds: impl IntoIterator<Item = &'static str>,
    ) -> Result<CaptureMetrics, RegisterError> {
        let drift = self.counters(
            "ztunnel_capture_drift",
            "Things found in the kernel that were not as capture needs them, by kind",
            "kind",
        )?;
        kinds.into_iter().for_each(|kind| drift.add(kind, 0));
        let pods: [Gauge; PodState::ALL.len()] = Default::default();
        let read = pods.clone();
        self.register(
            Family::gauge(
                "ztunnel_capture_pods",
                "Pods of this node, by state of capture",
            ),
            move |samples| {
                for (state, count) in PodState::ALL.iter().zip(&read) {
                    samples.push(&[("state", state.label())], count.value());
                }
            },
        )?;
        Ok(CaptureMetrics { drift, pods })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_and_kinds_show_from_the_start() {
        let registry = Registry::new();
        let metrics = registry.capture(["rule", "map"]).unwrap();
        metrics.set_pods(PodState::Held, 3);
        metrics.drift.inc("rule");
        let (_, text) = registry.encode(None);
        for line in [
            "ztunnel_capture_pods{state=\"held\"} 3",
            "ztunnel_capture_pods{state=\"enrolled\"} 0",
            "ztunnel_capture_drift_total{kind=\"rule\"} 1",
            "ztunnel_capture_drift_total{kind=\"map\"} 0",
        ] {
            assert!(text.lines().any(|have| have == line), "{line}\n{text}");
        }
        for (at, state) in PodState::ALL.iter().enumerate() {
            assert_eq!(*state as usize, at);
        }
    }
}
