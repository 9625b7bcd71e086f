//! Any text as a name that a pod asks the mesh for; the answer is judged by a plain matcher.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| mesh::laws::any_name_is_answered(text));
