//! What is known of who comes to a pod: asked by `sk_lookup`, and by the guard of what came past it.

use aya_ebpf::maps::lpm_trie::Key;
use redirect_common::{Address, Arrival, Door, Local, OpenPort, Pod, ProbeKey, is_fresh};

use crate::lineage::now;
use crate::{EXEMPT, LOCALS, OPEN_PORTS, PROBES, pod};

const ADDRESS_BITS: u32 = 128;

/// The pod with this namespace cookie.
pub struct Home {
    /// The cookie.
    pub cookie: u64,
}

impl Door for Home {
    #[inline(always)]
    fn pod(&self) -> Option<Pod> {
        pod(self.cookie)
    }

    #[inline(always)]
    fn is_local(&self, address: &Address) -> bool {
        // SAFETY: only presence is asked for.
        unsafe {
            LOCALS.get(Local {
                cookie: self.cookie,
                address: *address,
            })
        }
        .is_some()
    }

    #[inline(always)]
    fn is_exempt(&self, source: &Address) -> bool {
        EXEMPT.get(&Key::new(ADDRESS_BITS, *source)).is_some()
    }

    #[inline(always)]
    fn is_open(&self, port: u16) -> bool {
        // SAFETY: only presence is asked for.
        unsafe { OPEN_PORTS.get(OpenPort::new(self.cookie, port)) }.is_some()
    }

    #[inline(always)]
    fn is_probe(&self, arrival: &Arrival) -> bool {
        let key = ProbeKey {
            source: arrival.source,
            destination: arrival.destination,
            source_port: arrival.source_port,
            destination_port: arrival.port,
        };
        // SAFETY: a word, copied at once.
        let began = unsafe { PROBES.get(key) }.copied();
        began.is_some_and(|began| is_fresh(began, now()))
    }
}
