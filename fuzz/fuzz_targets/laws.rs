//! Drives the laws of `mesh` with arbitrary bytes; the first byte picks the law.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some((first, rest)) = bytes.split_first() {
        mesh::laws::ALL[usize::from(*first) % mesh::laws::ALL.len()](rest);
    }
});
