//! Reads arbitrary text as a local configuration file. A good seed: `crates/mesh/src/laws/local.yaml`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| mesh::laws::local_file(text));
