//! What always holds of an authority's answers: driven by `cargo test` with fixed seeds and by `fuzz/` with any. Not for use in the daemon.

use std::sync::LazyLock;

use identity::{Credential, Tls, csr};
use mesh::SpiffeId;
use prost::Message as _;
use proto::ca::IstioCertificateResponse;

static TLS: LazyLock<Tls> = LazyLock::new(|| Tls::new(false, false));

/// Any answer is refused, at the latest when it is to become a credential: none can be for a key made a moment ago.
pub fn takes_any_answer(bytes: &[u8]) {
    let Ok(response) = IstioCertificateResponse::decode(bytes) else {
        return;
    };
    let id = SpiffeId::new("cluster.local", "shop", "cart");
    let request = csr::Request::new(&id).expect("a name that a certificate can hold");
    if let Ok(issued) = request.finish(response.cert_chain) {
        let credential = Credential::new(&id, issued, true, &TLS);
        assert!(credential.is_err(), "its key was made a moment ago");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    const RUNS: u64 = 300;

    /// The chain of the fuzzer's seed, in parts that are damaged, repeated, swapped, left out.
    #[test]
    fn holds_for_damaged_chains() {
        let seed = include_bytes!("../../../../fuzz/seeds/certificate_response/chain");
        takes_any_answer(seed);
        let good = IstioCertificateResponse::decode(&seed[..]).unwrap();
        assert!(good.cert_chain.len() > 1, "a chain");
        for seed in 0..RUNS {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut chain = good.cert_chain.clone();
            for _ in 0..rng.random_range(1..4) {
                let (from, to) = (
                    rng.random_range(0..chain.len()),
                    rng.random_range(0..chain.len()),
                );
                match rng.random_range(0..5) {
                    0 => chain.swap(from, to),
                    1 => chain.insert(to, chain[from].clone()),
                    2 => chain[to] = format!("{}{}", chain[to], chain[from]),
                    3 => {
                        // PEM is ASCII
                        let at = rng.random_range(0..=chain[to].len());
                        chain[to].truncate(at);
                    }
                    _ => {
                        let mut text = chain[to].clone().into_bytes();
                        if !text.is_empty() {
                            let at = rng.random_range(0..text.len());
                            text[at] = rng.random_range(b'+'..b'z');
                        }
                        chain[to] = String::from_utf8(text).unwrap();
                    }
                }
            }
            let answer = IstioCertificateResponse { cert_chain: chain };
            takes_any_answer(&answer.encode_to_vec());
        }
    }
}
