//! Tests of the real daemon in real namespaces. They need root; without it each fails and says so.
#![forbid(unsafe_code)]

mod peer;
mod support;

mod bad_input;
mod bad_peers;
mod capture;
mod endpoints;
mod fail_closed;
mod ground;
mod leaving;
mod main_path;
mod policy;
mod restart;
mod rotation;
