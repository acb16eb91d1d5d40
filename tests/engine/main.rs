//! Balances that a billing engine keeps, under one seed: the real store, the real pace and the real arithmetic against an engine that lags, forgets
//! to answer, answers twice and fails, while people pay there and others draw there, nodes use and give back, and the authority dies at any step.
//!
//! `cargo test --test engine` runs seeds 1 to 10. `METERD_ENGINE_SEED=N` runs one, `METERD_ENGINE_SEEDS=2000` so many.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod bill;
#[path = "../support/billing.rs"]
mod billing;
#[path = "../sim/rng.rs"]
#[expect(dead_code, reason = "each test takes what it needs")]
mod rng;
mod wire;
mod world;

use world::{Outcome, World};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn run(seed: u64) -> Outcome {
    match std::panic::catch_unwind(|| World::new(seed).live()) {
        Ok(outcome) => outcome,
        Err(cause) => {
            eprintln!("seed={seed} failed; run it again with: METERD_ENGINE_SEED={seed} cargo test --test engine");
            std::panic::resume_unwind(cause);
        }
    }
}

#[test]
fn the_same_seed_tells_the_same_story() {
    assert_eq!(run(1), run(1));
}

#[test]
fn use_is_told_once_and_no_more_is_granted_than_the_engine_has() {
    let (first, count) = match (number("METERD_ENGINE_SEED"), number("METERD_ENGINE_SEEDS")) {
        (Some(seed), _) => (seed, 1),
        (None, count) => (1, count.unwrap_or(10)),
    };
    let mut total = Outcome::default();
    for seed in first..first + count {
        total.add(&run(seed));
    }
    println!("{count} stories: {total:?}");
    if 1 < count {
        let Outcome { events, repeated, crashes, moved, older, stale, .. } = total;
        assert!([events, repeated, crashes, moved, older, stale].iter().all(|seen| 0 < *seen), "too little happened: {total:?}");
    }
}
