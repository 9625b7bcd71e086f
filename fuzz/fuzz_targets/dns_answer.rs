//! Any bytes as a resolver's answer to a question: length of the question (two bytes), the question, the answer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy::dns::laws;

fuzz_target!(|bytes: &[u8]| laws::passes_any_answer_on(bytes));
