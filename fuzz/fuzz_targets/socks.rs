//! Any bytes of a SOCKS5 client, in pieces of any size.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy::socks::laws;

fuzz_target!(|bytes: &[u8]| laws::takes_any_handshake(bytes));
