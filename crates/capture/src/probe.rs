//! Whether this machine can do what capture needs, found by trying it in places of its own that are gone afterwards.
//!
//! Each probe is a plain function and touches nothing that is in use. Leaves to others which answers keep a daemon from
//! starting, and printing them.

mod cgroup;
mod external;
mod ground;
mod instruction;
mod pins;
mod programs;

pub use cgroup::{others_at_cgroup, others_at_sockets, own_cgroup};
pub use external::{in_namespace as external_sockets, original_destination};
pub use ground::{Scratch, routing, sockets, sysctls};
pub use pins::{host_proc, pins};
pub use programs::{
    built, cgroup_link, dedicated, loads, netns_link, own_programs, packets_know_namespace,
    socket_map,
};

use std::borrow::Cow;

/// What a probe came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// As it should be.
    Ok,
    /// Something to know; the daemon works without it, or may.
    Warning,
    /// The daemon cannot work like this.
    Failed,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at: few words, always the same.
    pub name: Cow<'static, str>,
    /// How it is.
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// What to do about it; `None` when there is nothing to do.
    pub hint: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(name: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            status: Status::Ok,
            detail: detail.into(),
            hint: None,
        }
    }

    /// Something to know.
    pub fn warning(
        name: impl Into<Cow<'static, str>>,
        detail: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            status: Status::Warning,
            hint: Some(hint.into()),
            ..Self::ok(name, detail)
        }
    }

    /// It cannot work like this.
    pub fn failed(
        name: impl Into<Cow<'static, str>>,
        detail: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            status: Status::Failed,
            hint: Some(hint.into()),
            ..Self::ok(name, detail)
        }
    }

    /// `result` with what to say when it is good, and what to do when it is not.
    fn of<T, E: std::fmt::Display>(
        name: &'static str,
        result: Result<T, E>,
        good: impl FnOnce(T) -> String,
        hint: &str,
    ) -> Self {
        match result {
            Ok(value) => Self::ok(name, good(value)),
            Err(error) => Self::failed(name, error.to_string(), hint),
        }
    }
}
