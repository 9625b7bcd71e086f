//! Tests of the real daemon in real namespaces. They need root; without it each fails and says so.
#![forbid(unsafe_code)]

mod ground;
mod support;
