//! Any bytes as the payload of a workload or service: decoded, converted, applied, shown, routed to.
#![no_main]

use control::xds::subscriber::laws;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| laws::takes_any_address(bytes));
