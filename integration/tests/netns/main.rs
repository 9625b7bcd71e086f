//! Tests of the real daemon in real namespaces. They need root; without it each fails and says so.
#![forbid(unsafe_code)]

mod cluster;
mod support;

mod apiserver;
mod app_tunnel;
mod bad_input;
mod bad_peers;
mod capture;
mod check;
mod container;
mod control_plane;
mod dedicated;
mod dns;
mod endpoints;
mod fail_closed;
mod goodbye;
mod ground;
mod hold;
mod istio_ca;
mod kubernetes;
mod leaving;
mod main_path;
mod on_demand;
mod own_pod;
mod own_ports;
mod policy;
mod restart;
mod revocation;
mod rotation;
mod sabotage;
mod settings;
mod socks;
mod upgrade;
mod xds;
mod zds;

use integration::peer;
