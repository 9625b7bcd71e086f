//! Capture against the real kernel: real namespaces, cgroups, programs and sockets. Needs root; fails clearly without.
//!
//! The test process plays the daemon; applications are this same binary started again (see [`app`]), inside a pod's cgroup and namespace.

mod app;
mod daemons;
mod drift;
mod guard;
mod hold;
mod inbound;
mod kernel;
mod kubelet;
mod lifecycle;
mod outbound;
mod pins;
mod tamper;
mod world;
