//! HBONE over in-memory pipes: golden bytes against a peer written by hand, and both ends against each other.

mod cut;
mod ends;
mod ping;
mod pool;
mod server;
mod support;
mod tunnel;
mod wire;
