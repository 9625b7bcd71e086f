//! Any packets of istio-cni's agent, with any descriptors, one after the other.
#![no_main]

use enroll::zds::laws;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| laws::takes_any_packets(bytes));
