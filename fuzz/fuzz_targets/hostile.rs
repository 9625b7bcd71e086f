//! Messages that decode, with hostile parts; the first byte picks the law.
#![no_main]

use control::xds::subscriber::laws;
use libfuzzer_sys::fuzz_target;

const LAWS: [fn(&[u8]); 3] = [
    laws::takes_hostile_responses,
    laws::takes_hostile_address,
    laws::takes_hostile_authorization,
];

fuzz_target!(|bytes: &[u8]| {
    if let Some((first, rest)) = bytes.split_first() {
        LAWS[usize::from(*first) % LAWS.len()](rest);
    }
});
