//! Any answer of the Istio CA, up to a credential for TLS.
#![no_main]

use control::ca::laws;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| laws::takes_any_answer(bytes));
