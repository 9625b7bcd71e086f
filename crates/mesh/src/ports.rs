//! Port mappings of Services and endpoints, and the ports that are our own in every pod.
//!
//! Leaves to others: which mapping counts (`balance`, `admit`).

use std::sync::Arc;

/// Port on which workloads take HBONE.
pub const HBONE_PORT: u16 = 15008;

/// Ports of our own listeners in every pod.
const INTERNAL_PORTS: [u16; 3] = [15001, 15006, HBONE_PORT];
/// Port of the SOCKS listener, ours only where it is open.
const SOCKS_PORT: u16 = 15080;

/// Whether a port is one of our own listeners'.
pub(crate) fn is_internal_port(port: u16, socks: bool) -> bool {
    INTERNAL_PORTS.contains(&port) || (socks && port == SOCKS_PORT)
}

/// Port mappings, sorted by service port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ports(pub(crate) Arc<[PortMapping]>);

/// One entry of [`Ports`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortMapping {
    /// Port that clients dial.
    pub service: u16,
    /// Port that the endpoint listens on; 0 = unset.
    pub target: u16,
}

impl Ports {
    /// The target of `service_port`; `Some(0)` when the port exists without a number of its own.
    pub fn target(&self, service_port: u16) -> Option<u16> {
        let at = self
            .0
            .binary_search_by_key(&service_port, |m| m.service)
            .ok()?;
        self.0.get(at).map(|m| m.target)
    }

    /// Whether some service port leads to `target_port`.
    pub fn leads_to(&self, target_port: u16) -> bool {
        self.0.iter().any(|m| m.target == target_port)
    }

    /// All mappings, by service port.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = PortMapping> + '_ {
        self.0.iter().copied()
    }

    /// Whether there is no mapping.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(u16, u16)> for Ports {
    /// Takes (service port, target port) pairs in any order; of a repeated service port the last one holds.
    fn from_iter<I: IntoIterator<Item = (u16, u16)>>(pairs: I) -> Self {
        let sorted: std::collections::BTreeMap<u16, u16> = pairs.into_iter().collect();
        Self(
            sorted
                .into_iter()
                .map(|(service, target)| PortMapping { service, target })
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_sorted_and_the_last_of_a_kind_holds() {
        let ports: Ports = [(443, 8443), (80, 8080), (80, 9090), (1, 0)]
            .into_iter()
            .collect();
        let all: Vec<_> = ports.iter().map(|m| (m.service, m.target)).collect();
        assert_eq!(all, [(1, 0), (80, 9090), (443, 8443)]);
        assert_eq!(
            (ports.target(80), ports.target(1), ports.target(2)),
            (Some(9090), Some(0), None)
        );
        assert!(ports.leads_to(8443) && !ports.leads_to(80));
    }

    #[test]
    fn own_ports() {
        let own: Vec<_> = (0..=u16::MAX)
            .filter(|p| is_internal_port(*p, false))
            .collect();
        assert_eq!(own, [15001, 15006, 15008]);
        assert!(is_internal_port(15080, true));
    }
}
