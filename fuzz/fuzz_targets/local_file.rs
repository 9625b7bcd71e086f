//! Reads arbitrary text as a local configuration file.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| mesh::laws::local_file(text));
