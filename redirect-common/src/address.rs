//! IP addresses as the kernel hands them out: four words in network byte order, IPv4 as v4-mapped.

use core::net::{IpAddr, Ipv6Addr};

/// An IPv4 or IPv6 address. IPv4 always has its v4-mapped form, so both ways of writing it are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Address {
    words_be: [u32; 4],
}

/// The third word of a v4-mapped address.
const MAPPED: u32 = 0xffff;

impl Address {
    /// From an IPv4 address word in network byte order.
    #[inline(always)]
    pub const fn v4(word_be: u32) -> Self {
        Self {
            words_be: [0, 0, MAPPED.to_be(), word_be],
        }
    }

    /// From the words of an IPv6 address in network byte order.
    #[inline(always)]
    pub const fn v6(words_be: [u32; 4]) -> Self {
        Self { words_be }
    }

    /// The words in network byte order.
    #[inline(always)]
    pub const fn words_be(&self) -> [u32; 4] {
        self.words_be
    }

    #[inline(always)]
    const fn word(&self, index: usize) -> u32 {
        u32::from_be(self.words_be[index])
    }

    #[inline(always)]
    const fn is_v4(&self) -> bool {
        self.words_be[0] == 0 && self.words_be[1] == 0 && self.word(2) == MAPPED
    }

    /// 127.0.0.0/8 or ::1.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            return self.word(3) >> 24 == 127;
        }
        self.words_be[0] == 0 && self.words_be[1] == 0 && self.words_be[2] == 0 && self.word(3) == 1
    }

    /// 0.0.0.0 or ::.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.words_be[0] == 0
            && self.words_be[1] == 0
            && (self.words_be[2] == 0 || self.word(2) == MAPPED)
            && self.words_be[3] == 0
    }

    /// 169.254.0.0/16 or fe80::/10.
    #[inline(always)]
    pub const fn is_link_local(&self) -> bool {
        if self.is_v4() {
            return self.word(3) >> 16 == 0xa9fe;
        }
        self.word(0) >> 22 == 0xfe80 >> 6
    }

    /// 224.0.0.0/4 or ff00::/8.
    #[inline(always)]
    pub const fn is_multicast(&self) -> bool {
        if self.is_v4() {
            return self.word(3) >> 28 == 0xe;
        }
        self.word(0) >> 24 == 0xff
    }

    /// Traffic that never leaves the host or link, or names nobody: never redirected.
    #[inline(always)]
    pub const fn is_never_captured(&self) -> bool {
        self.is_loopback() || self.is_unspecified() || self.is_link_local() || self.is_multicast()
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        let v6 = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let o = v6.octets();
        let word = |at: usize| u32::from_ne_bytes([o[at], o[at + 1], o[at + 2], o[at + 3]]);
        Self {
            words_be: [word(0), word(4), word(8), word(12)],
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        let mut octets = [0; 16];
        for (place, word) in octets.chunks_exact_mut(4).zip(address.words_be) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        Ipv6Addr::from(octets).to_canonical()
    }
}
