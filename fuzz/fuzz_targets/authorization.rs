//! Any bytes as the payload of a policy: decoded, converted, applied, asked.
#![no_main]

use control::xds::subscriber::laws;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| laws::takes_any_authorization(bytes));
