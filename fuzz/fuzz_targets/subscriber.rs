//! A subscriber against a model of the server, over changes, faults and cuts.
#![no_main]

use control::xds::subscriber::laws;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| laws::follows_the_server(bytes));
