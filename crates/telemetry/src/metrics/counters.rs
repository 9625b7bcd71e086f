//! Handles for metrics that are not per connection: shared, atomic.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::lock;

/// Most values of the label of one [`Counters`].
const VALUES_MAX: usize = 64;
/// The value under which all further ones are counted.
const OTHER: &str = "other";

/// A counter without labels. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// What was counted so far.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A gauge without labels. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Gauge(Arc<AtomicI64>);

impl Gauge {
    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Sets the value.
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value now.
    pub fn value(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A counter with one label of few values; for rare events, it takes a lock. Past 64 values all are counted as `other`.
#[derive(Debug, Clone, Default)]
pub struct Counters(Arc<Mutex<BTreeMap<Cow<'static, str>, u64>>>);

impl Counters {
    /// Adds `n` to the count of `value`.
    pub fn add(&self, value: impl Into<Cow<'static, str>>, n: u64) {
        let value = value.into();
        let mut counts = lock(&self.0);
        let fits = counts.len() < VALUES_MAX || counts.contains_key(&value);
        let value = if fits { value } else { Cow::Borrowed(OTHER) };
        *counts.entry(value).or_default() += n;
    }

    /// Adds one to the count of `value`.
    pub fn inc(&self, value: impl Into<Cow<'static, str>>) {
        self.add(value, 1);
    }

    /// Each value and its count.
    pub fn values(&self) -> Vec<(Cow<'static, str>, u64)> {
        lock(&self.0)
            .iter()
            .map(|(value, count)| (value.clone(), *count))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_bounded() {
        let counters = Counters::default();
        for n in 0..VALUES_MAX + 10 {
            counters.inc(format!("v{n:03}"));
        }
        counters.inc("v000");
        let values = counters.values();
        assert_eq!(values.len(), VALUES_MAX + 1);
        assert_eq!(
            values.iter().map(|(_, count)| count).sum::<u64>(),
            VALUES_MAX as u64 + 11
        );
        assert!(
            values.contains(&(Cow::Borrowed(OTHER), 10))
                && values.contains(&(Cow::Borrowed("v000"), 2))
        );
    }
}
