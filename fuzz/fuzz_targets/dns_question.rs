//! Any bytes as a message on a pod's port 53: what comes back is a well-formed answer to it, or nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy::dns::laws;

fuzz_target!(|bytes: &[u8]| laws::answers_any_question(bytes));
