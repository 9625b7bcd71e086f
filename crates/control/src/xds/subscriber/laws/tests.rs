//! The laws with fixed seeds and with the seeds of `fuzz/`.

use std::path::Path;

use rand::Rng;

use super::*;

const RUNS: u64 = 500;
const BYTES_MAX: usize = 1500;

fn random(seed: u64) -> Vec<u8> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut bytes = vec![0; rng.random_range(0..BYTES_MAX)];
    rng.fill(&mut bytes[..]);
    bytes
}

#[test]
fn hold_for_fixed_seeds() {
    for law in ALL {
        for seed in 0..RUNS {
            law(&random(seed));
        }
    }
}

/// What the laws are fed with must not all be refused at the door, nor all be harmless.
#[test]
fn hostile_messages_are_taken_and_refused() {
    let good = |kind, build: fn(&mut Draw<'_>) -> Vec<u8>| {
        let payload = |seed| {
            Bytes::from(build(&mut Draw {
                bytes: &random(seed),
            }))
        };
        let taken = |seed: &u64| converted(kind, "a/p", &payload(*seed)).is_some();
        (0..RUNS).filter(taken).count()
    };
    let addresses = good(Kind::Address, hostile::address);
    let policies = good(Kind::Authorization, hostile::authorization);
    for count in [addresses, policies] {
        let share = 100 * count / RUNS as usize;
        assert!(
            (30..95).contains(&share),
            "{addresses} and {policies} of {RUNS}"
        );
    }
}

#[test]
fn responses_name_known_types_and_fill_the_index() {
    let mut filled = 0;
    for seed in 0..RUNS {
        let bytes = random(seed);
        let mut draw = Draw { bytes: &bytes };
        let mut subscriber = Subscriber::new(Node::default(), false);
        let mut index = Index::default();
        take(hostile::response(&mut draw), &mut subscriber, &mut index);
        filled += usize::from(!index.resources().is_empty());
    }
    assert!(filled > RUNS as usize / 4, "{filled} of {RUNS}");
}

/// The seeds of a fuzz target: its interesting inputs of earlier runs, and those written by hand.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/seeds")
        .join(target);
    let files = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let read = |file: std::io::Result<std::fs::DirEntry>| std::fs::read(file.unwrap().path());
    let seeds: Vec<_> = files.map(|file| read(file).unwrap()).collect();
    assert!(!seeds.is_empty(), "no seeds in {}", dir.display());
    seeds
}

#[test]
fn hold_for_the_seeds_of_fuzzing() {
    seeds("address").iter().for_each(|s| takes_any_address(s));
    seeds("authorization")
        .iter()
        .for_each(|s| takes_any_authorization(s));
    seeds("xds_response")
        .iter()
        .for_each(|s| takes_any_responses(s));
}

/// Seeds that no longer decode would teach the fuzzer nothing.
#[test]
fn seeds_of_payloads_are_good_ones() {
    for (target, kind) in [
        ("address", Kind::Address),
        ("authorization", Kind::Authorization),
    ] {
        for seed in seeds(target) {
            assert!(converted(kind, "a/p", &seed.into()).is_some(), "{target}");
        }
    }
}
