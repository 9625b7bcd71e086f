//! Values of the file that have a form of their own: read from text, refused with what was expected.

use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

use crate::name::{NamespacedHostname, NetworkAddress};
use crate::workload::{Destination, WorkloadType};

/// A value that is written as text.
pub(super) struct Text<T>(pub(super) T);

/// How a value is read, and what it is called.
pub(super) trait Form: Sized {
    const EXPECTED: &'static str;
    fn read(text: &str) -> Option<Self>;
}

impl<'de, T: Form> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);
        impl<T: Form> Visitor<'_> for Reader<T> {
            type Value = Text<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::EXPECTED)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text<T>, E> {
                T::read(text)
                    .map(Text)
                    .ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(Reader(PhantomData))
    }
}

impl<T: Form + Eq> PartialEq for Text<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<T: Form + Eq> Eq for Text<T> {}

impl<T: Form + Ord> PartialOrd for Text<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: Form + Ord> Ord for Text<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

impl Form for IpAddr {
    const EXPECTED: &'static str = "an IP address";
    fn read(text: &str) -> Option<Self> {
        IpAddr::from_str(text).ok().map(|ip| ip.to_canonical())
    }
}

impl Form for IpNet {
    const EXPECTED: &'static str = "a CIDR range such as 10.0.0.0/8";
    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Form for NetworkAddress {
    const EXPECTED: &'static str = "<network>/<ip>, such as /10.0.0.1 on the default network";
    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Form for NamespacedHostname {
    const EXPECTED: &'static str = "<namespace>/<hostname>";
    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Form for Destination {
    const EXPECTED: &'static str = "<network>/<ip> or <namespace>/<hostname>";
    fn read(text: &str) -> Option<Self> {
        match text.parse() {
            Ok(address) => Some(Self::Address(address)),
            Err(_) => text.parse().ok().map(Self::Hostname),
        }
    }
}

/// A whole number, plain or quoted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Number<T>(pub(super) T);

/// What range a number has.
pub(super) trait Range: TryFrom<u64> {
    const EXPECTED: &'static str;
}

impl Range for u16 {
    const EXPECTED: &'static str = "a port number from 0 to 65535";
}

impl Range for u32 {
    const EXPECTED: &'static str = "a whole number from 0 to 4294967295";
}

impl<'de, T: Range> Deserialize<'de> for Number<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);
        impl<T: Range> Visitor<'_> for Reader<T> {
            type Value = Number<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::EXPECTED)
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Number<T>, E> {
                let fitting = T::try_from(number).map(Number);
                fitting.map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Number<T>, E> {
                match u64::try_from(number) {
                    Ok(number) => self.visit_u64(number),
                    Err(_) => Err(E::invalid_value(Unexpected::Signed(number), &self)),
                }
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Number<T>, E> {
                match text.parse() {
                    Ok(number) => self.visit_u64(number),
                    Err(_) => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(Reader(PhantomData))
    }
}

/// A workload type as the file writes it: any case, or empty for none. It serves telemetry only, so a kind that is not known is no reason
/// to refuse the file: it counts as a deployment, as from the control plane.
pub(super) struct TypeName(pub(super) Option<WorkloadType>);

impl Form for TypeName {
    const EXPECTED: &'static str = "a text such as deployment, cronjob, job or pod";
    fn read(text: &str) -> Option<Self> {
        let all = [
            WorkloadType::Deployment,
            WorkloadType::CronJob,
            WorkloadType::Job,
            WorkloadType::Pod,
        ];
        let known = all
            .into_iter()
            .find(|t| t.as_str().eq_ignore_ascii_case(text));
        let otherwise = || (!text.is_empty()).then_some(WorkloadType::Deployment);
        Some(Self(known.or_else(otherwise)))
    }
}
