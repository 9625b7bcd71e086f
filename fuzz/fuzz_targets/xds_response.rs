//! Any responses of the control plane, one after the other, through the subscriber into an index.
#![no_main]

use control::xds::subscriber::laws;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| laws::takes_any_responses(bytes));
