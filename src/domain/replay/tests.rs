use proptest::prelude::*;

use super::*;
use crate::domain::id::{GpuId, GpuModel};
use crate::domain::job::Segment;
use crate::domain::rates::Trait;
use crate::domain::usage::HeldGpu;

const HOUR_NS: u128 = 3_600_000_000_000;

fn card(lines: &str) -> Card {
    let text = format!("card = \"c\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n{lines}");
    Card::parse(&text, "card.toml").unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
}

fn line(id: &str, meter: &str, price: &str, unit: &str, more: &str) -> String {
    format!("[[line]]\nid = \"{id}\"\nmeter = \"{meter}\"\nprice = \"{price}\"\nunit = \"{unit}\"\n{more}")
}

fn hourly() -> Card {
    card(&line("wall", "wall_time", "0.60", "hour", ""))
}

fn credits(text: &str) -> Credits {
    text.parse().unwrap()
}

/// One that ran for so long, in one segment, at what `card` makes of it.
fn job(account: &str, ran_ns: u128, card: &Card) -> Followed {
    let usage = Usage { wall_ns: ran_ns, cpu_ns: ran_ns / 2, job_starts: 1, ..Usage::default() };
    let mut job = Followed {
        attempt: Attempt(1),
        name: "job".parse().unwrap(),
        account: account.parse().unwrap(),
        terms: Terms::default(),
        events: BTreeSet::new(),
        bid: None,
        segments: vec![Segment {
            card: card.digest,
            from: Wall(0),
            to: Wall(0),
            usage,
            cost: Credits::ZERO,
            pending: Credits::ZERO,
            terms: None,
        }],
        outcome: Some(Outcome::Completed),
        drawn: Credits::ZERO,
        unfunded: Credits::ZERO,
        refund: None,
        unknown: BTreeSet::new(),
    };
    job.segments[0].cost = job.price(0, card, job.outcome).unwrap().cost;
    job
}

#[test]
fn who_pays_more_and_who_less_is_told_by_account() {
    let now = hourly();
    // Half the price of time, and CPU time costs.
    let draft = card(&[line("wall", "wall_time", "0.30", "hour", ""), line("cpu", "cpu_time", "1", "core-hour", "")].concat());
    let mut idle = job("idle", 10 * HOUR_NS, &now);
    idle.segments[0].usage.cpu_ns = 0;
    let jobs = [job("busy", 10 * HOUR_NS, &now), idle];
    let comparison = Comparison::of(jobs.iter(), &draft);
    let sums = |account: &str| comparison.accounts[&account.parse::<AccountId>().unwrap()];
    assert_eq!((sums("busy").was, sums("busy").would, sums("busy").change()), (credits("6"), credits("8"), credits("2")));
    assert_eq!((sums("idle").was, sums("idle").would, sums("idle").change()), (credits("6"), credits("3"), credits("-3")));
    assert_eq!((comparison.total.jobs, comparison.total.change()), (2, credits("-1")));
}

#[test]
fn what_has_no_price_under_the_draft_is_named_and_never_taken_for_nothing() {
    let gpu: GpuId = "GPU-1".parse().unwrap();
    let mut with_gpu = job("lab", HOUR_NS, &hourly());
    with_gpu.terms.gpus = vec![HeldGpu { gpu: gpu.clone(), model: GpuModel::new("NVIDIA L4") }];
    with_gpu.segments[0].usage.gpu_held_ns.insert(gpu, HOUR_NS);
    let comparison = Comparison::of([&with_gpu].into_iter(), &card(&line("wall", "wall_time", "1", "hour", "")));
    assert_eq!(comparison.total, Sums::default());
    assert_eq!(comparison.not_replayed[0].why, "no line prices the GPU GPU-1");
    assert_eq!(comparison.not_replayed[0].was, credits("0.6"));
    let by_asked = card(&line("cpu", "cpu_time", "1", "core-hour", "basis = \"allocated\""));
    let why = reprice(&job("lab", HOUR_NS, &hourly()), &by_asked).unwrap_err().why;
    assert!(why.contains("the start did not say how much"), "{why}");
    let spot_only = card(&line("wall", "wall_time", "1", "hour", "select = { tier = \"spot\" }"));
    assert!(reprice(&job("lab", HOUR_NS, &hourly()), &spot_only).is_err());
    let mut spot = job("lab", HOUR_NS, &hourly());
    spot.terms.traits.insert(Trait::Tier, "spot".parse().unwrap());
    assert_eq!(reprice(&spot, &spot_only).unwrap().would, credits("1"));
}

#[test]
fn of_what_nobody_could_read_the_draft_gives_the_least() {
    let mut gapped = job("lab", HOUR_NS, &hourly());
    gapped.unknown.insert(Meter::MemoryCharged);
    assert!(reprice(&gapped, &hourly()).unwrap().at_least.is_empty(), "the draft does not price it");
    let draft = card(&line("memory", "memory_charged", "1", "GiB-hour", ""));
    assert_eq!(reprice(&gapped, &draft).unwrap().at_least, BTreeSet::from([Meter::MemoryCharged]));
}

#[test]
fn a_job_that_goes_on_is_compared_with_what_it_keeps_back_for_its_end() {
    let at_end = card(&line("wall", "wall_time", "1", "hour", "timing = \"settle_at_end\"\noutcome = { failed = \"0\" }"));
    let mut running = job("lab", HOUR_NS, &hourly());
    running.outcome = None;
    (running.segments[0].cost, running.segments[0].pending) = (credits("0.5"), credits("0.1"));
    let repriced = reprice(&running, &at_end).unwrap();
    assert_eq!((repriced.was, repriced.would), (credits("0.6"), credits("1")));
    running.outcome = Some(Outcome::Failed);
    assert_eq!(reprice(&running, &at_end).unwrap().would, Credits::ZERO);
}

#[test]
fn under_the_draft_a_job_has_one_segment() {
    // Two half hours under two cards are two hours begun; under the draft they are one.
    let by_the_hour = card(&line("wall", "wall_time", "1", "hour", "increment = \"1\"\ntiming = \"advance\""));
    let mut job = job("lab", HOUR_NS / 2, &by_the_hour);
    let second = Segment { usage: Usage { job_starts: 0, ..job.segments[0].usage.clone() }, ..job.segments[0].clone() };
    job.segments.push(second);
    assert_eq!(job.charge(), credits("2"));
    assert_eq!(reprice(&job, &by_the_hour).unwrap().would, credits("1"));
}

proptest! {
    #[test]
    fn under_its_own_card_a_job_of_one_segment_costs_what_it_did(ran_ns in 0_u128..1 << 60, price in 0_u32..1_000_000) {
        let card = card(&line("wall", "wall_time", &format!("{}.{:06}", price / 1_000, price % 1_000), "hour", "round = \"half_even\""));
        let repriced = reprice(&job("lab", ran_ns, &card), &card).unwrap();
        prop_assert_eq!(repriced.was, repriced.would);
    }

    #[test]
    fn the_sums_are_those_of_the_jobs(lengths in prop::collection::vec((0_u128..1 << 50, 0_u8..3), 0..20)) {
        let jobs: Vec<Followed> = lengths.iter().map(|(ran, account)| job(&format!("a{account}"), *ran, &hourly())).collect();
        let comparison = Comparison::of(jobs.iter(), &card(&line("wall", "wall_time", "0.7", "hour", "")));
        let total: Credits = comparison.accounts.values().map(|sums| sums.would).sum();
        prop_assert_eq!(total, comparison.jobs.iter().map(|job| job.would).sum::<Credits>());
        prop_assert_eq!(total, comparison.total.would);
        prop_assert_eq!(comparison.total.was, jobs.iter().map(Followed::charge).sum::<Credits>());
    }
}
