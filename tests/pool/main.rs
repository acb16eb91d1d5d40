//! A fleet under one seed: many real agents and the real ledger share balances over a network that loses, repeats, delays and cuts, with
//! nodes that crash, reboot, are re-imaged or die, an authority that dies and comes back, clocks that differ, a node that lies, and jobs on
//! several nodes. An auditor that knows what was really used checks the ledger after every booking and every agent after every turn.
//!
//! `cargo test --test pool` runs seeds 1 to 120 of two to six nodes and one fleet of 100. `METERD_POOL_SEED=N` runs one seed,
//! `METERD_POOL_SEEDS=100000` fresh ones. `METERD_POOL_NODES=1000` sets the size of the fleet, `METERD_POOL_RUNS=100` how many there are.
//! For those build it with `--profile bench`.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]
#![expect(clippy::similar_names, reason = "the simulated world is plain data, read side by side with its story")]

mod audit;
mod bank;
mod gang;
mod liar;
mod machine;
mod restore;
#[path = "../sim/rng.rs"]
mod rng;
mod story;
mod world;

use std::time::{SystemTime, UNIX_EPOCH};

use story::{Outcome, Size};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn run(seed: u64, size: Size) -> Outcome {
    match std::panic::catch_unwind(|| story::tell(seed, size)) {
        Ok(outcome) => outcome,
        Err(cause) => {
            eprintln!("seed={seed} failed; run it again with: METERD_POOL_SEED={seed} cargo test --test pool -- small --nocapture");
            std::panic::resume_unwind(cause);
        }
    }
}

#[test]
fn the_same_seed_tells_the_same_story() {
    for seed in 1..4 {
        assert_eq!(run(seed, Size::Small), run(seed, Size::Small), "seed={seed}");
    }
}

#[test]
fn small_fleets_never_overdraw_never_charge_twice_and_heal() {
    if let Some(seed) = number("METERD_POOL_SEED") {
        println!("{:?}", run(seed, Size::Small));
        return;
    }
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs() * 1_000_000);
    let campaign = number("METERD_POOL_SEEDS");
    let first = number("METERD_POOL_FIRST").unwrap_or(if campaign.is_some() { clock } else { 1 });
    let count = campaign.unwrap_or(120);
    let failures_max = usize::try_from(number("METERD_POOL_FAILURES").unwrap_or(20)).unwrap();
    let mut total = Outcome::default();
    let mut failed = Vec::new();
    for seed in first..first + count {
        match std::panic::catch_unwind(|| run(seed, Size::Small)) {
            Ok(outcome) => total.add(&outcome),
            Err(_) if failed.len() < failures_max => failed.push(seed),
            Err(cause) => std::panic::resume_unwind(cause),
        }
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
    println!("{count} fleets from seed {first}: {total:?}");
}

/// One pool, all nodes on it, until it is empty: how much is stranded, how far apart they stop, how much is said. `METERD_POOL_MINUTES` of burn
/// are paid in; of less than twenty more is stranded, since then even the shortest grant is a good part of it.
#[test]
fn a_pool_that_a_whole_fleet_drains_strands_less_than_a_thousandth() {
    let nodes = usize::try_from(number("METERD_POOL_NODES").unwrap_or(100)).unwrap();
    let (first, runs) = (number("METERD_POOL_FIRST").unwrap_or(1), number("METERD_POOL_RUNS").unwrap_or(1));
    let minutes = number("METERD_POOL_MINUTES").unwrap_or(20);
    let most_ppm = if minutes < 20 { 3_000 } else { 1_000 };
    for seed in first..first + runs {
        let drained = story::drain(seed, nodes, minutes);
        println!("{nodes} nodes, {minutes} minutes, seed {seed}: {drained}");
        assert!(drained.stranded_ppm < most_ppm, "{drained}");
    }
}
