use proptest::prelude::*;

use super::*;
use crate::domain::id::{GpuId, GpuModel};
use crate::domain::receipt::{ReceiptGpu, rfc3339};
use crate::node::sample;

const HOUR_MS: u64 = 3_600_000;
const HOUR_NS: u128 = 3_600_000_000_000;
/// 2026-03-01T00:00:00Z.
const MARCH: u64 = 1_772_323_200_000;
const MONTH: Span = Span { from: Wall(MARCH), to: Wall(MARCH + 31 * DAY_MS) };

fn credits(text: &str) -> Credits {
    text.parse().unwrap()
}

/// A job that cost so much between two instants.
fn job(name: &str, attempt: u64, (from, to): (u64, u64), cost: &str) -> Receipt {
    let mut receipt = sample::receipt();
    (receipt.job, receipt.attempt) = (name.parse().unwrap(), Attempt(attempt));
    (receipt.charge, receipt.unfunded) = (credits(cost), Credits::ZERO);
    receipt.segments.truncate(1);
    let segment = &mut receipt.segments[0];
    (segment.from, segment.to, segment.cost) = (rfc3339(Wall(from)), rfc3339(Wall(to)), credits(cost));
    let ran_ns = u128::from(to - from) * 1_000_000;
    (segment.running_ns, segment.cpu_ns, segment.paused_ns) = (ran_ns.to_string(), ran_ns.to_string(), "0".to_owned());
    segment.gpus.clear();
    receipt
}

fn with(mut receipt: Receipt, traits: &[(Trait, &str)]) -> Receipt {
    receipt.traits = traits.iter().map(|(which, value)| (*which, value.parse().unwrap())).collect();
    receipt
}

fn charges(receipts: &[Receipt], by: By, span: Span) -> Vec<(Option<String>, u64, String)> {
    rows(receipts, by, span).into_iter().map(|row| (row.key, row.jobs, row.charge.to_string())).collect()
}

#[test]
fn d7_month_spend_is_what_fell_into_the_month_on_both_sides_of_its_ends() {
    let receipts = [
        job("before", 1, (MARCH - 2 * HOUR_MS, MARCH), "1"),
        job("across", 2, (MARCH - HOUR_MS, MARCH + 3 * HOUR_MS), "4"),
        job("within", 3, (MARCH, MARCH + HOUR_MS), "10"),
        job("at-the-end", 4, (MONTH.to.0 - HOUR_MS, MONTH.to.0 + HOUR_MS), "2"),
        job("after", 5, (MONTH.to.0, MONTH.to.0 + HOUR_MS), "100"),
    ];
    assert_eq!(spent(&receipts, MONTH), credits("14"), "3 of 4, 10, and 1 of 2");
    let jobs: Vec<String> = dearest(&receipts, MONTH, 10).iter().map(|job| job.job.to_string()).collect();
    assert_eq!(jobs, ["within", "across", "at-the-end"]);
}

#[test]
fn d7_last_7_14_and_30_days_end_now_and_the_month_goes_on_at_the_pace_of_a_week() {
    let now = Wall(MARCH + 10 * DAY_MS);
    let ago = |days: u64| now.0 - days * DAY_MS;
    let receipts = [
        job("a", 1, (ago(7), ago(6)), "7"),
        job("b", 2, (ago(8), ago(7)), "100"),
        job("c", 3, (ago(14), ago(13)), "1000"),
        job("d", 4, (ago(31), ago(29)), "20000"),
    ];
    let found = spending(&receipts, MONTH, now);
    assert_eq!((found.days_7, found.days_14, found.days_30), (credits("7"), credits("1107"), credits("11107")));
    assert_eq!(found.month, credits("107"), "since the first of March");
    assert_eq!(found.projected, credits("128"), "107, and 21 days at a credit a day");
}

#[test]
fn d7_a_pace_of_less_than_a_week_is_that_of_the_time_there_was() {
    let now = Wall(MARCH + 2 * DAY_MS);
    let receipts = [job("a", 1, (MARCH + DAY_MS, now.0), "3")];
    let found = spending(&receipts, MONTH, now);
    assert_eq!((found.month, found.projected), (credits("3"), credits("90")), "29 more days like the last one");
    let hour = [job("a", 1, (now.0 - HOUR_MS, now.0), "3")];
    assert_eq!(spending(&hour, MONTH, now).projected, credits("90"), "an hour tells of a day, not of each hour to come");
    assert_eq!(spending(&[], MONTH, now).projected, Credits::ZERO, "nothing goes on as nothing");
    let over = spending(&receipts, MONTH, MONTH.to);
    assert_eq!(over.projected, over.month, "at its end nothing is to come");
}

#[test]
fn d7_by_model_project_label_account_and_user() {
    let hour = (MARCH, MARCH + HOUR_MS);
    let mut receipts = vec![
        with(job("a", 1, hour, "1"), &[(Trait::Model, "llama-7b"), (Trait::Project, "chat")]),
        with(job("b", 2, hour, "2"), &[(Trait::Model, "llama-7b"), (Trait::Label, "nightly")]),
        with(job("c", 3, hour, "5"), &[(Trait::Model, "whisper")]),
        with(job("d", 4, hour, "4"), &[]),
    ];
    receipts[3].account = "other".parse().unwrap();
    receipts[3].owner_uid = crate::domain::id::Uid(1001);
    let key = |text: &str| Some(text.to_owned());
    let row = |key: Option<String>, jobs: u64, charge: &str| (key, jobs, charge.to_owned());
    assert_eq!(
        charges(&receipts, By::Model, MONTH),
        [row(key("whisper"), 1, "5"), row(None, 1, "4"), row(key("llama-7b"), 2, "3")],
        "what was not stated is a row of its own"
    );
    assert_eq!(charges(&receipts, By::Project, MONTH), [row(None, 3, "11"), row(key("chat"), 1, "1")]);
    assert_eq!(charges(&receipts, By::Label, MONTH), [row(None, 3, "10"), row(key("nightly"), 1, "2")]);
    assert_eq!(charges(&receipts, By::Account, MONTH), [row(key("lab"), 3, "8"), row(key("other"), 1, "4")]);
    assert_eq!(charges(&receipts, By::User, MONTH), [row(key("1000"), 3, "8"), row(key("1001"), 1, "4")]);
    assert_eq!(charges(&receipts, By::Job, MONTH)[0], row(key("c#3"), 1, "5"));
}

#[test]
fn d7_under_used_is_what_was_stated_against_what_was_used() {
    let hour = (MARCH, MARCH + HOUR_MS);
    let used = |name: &str, attempt: u64, cpus: Option<u32>, cpu_ns: u128, memory: Option<u64>, byte_ns: u128| {
        let mut receipt = job(name, attempt, hour, "1");
        (receipt.cpus, receipt.memory_bytes) = (cpus, memory);
        let segment = &mut receipt.segments[0];
        (segment.cpu_ns, segment.memory_charged_byte_ns) = (cpu_ns.to_string(), byte_ns.to_string());
        receipt
    };
    let gib = 1_u128 << 30;
    let full = used("full", 1, Some(4), 4 * HOUR_NS, Some(1 << 30), gib * HOUR_NS);
    let half = used("half", 2, Some(4), 2 * HOUR_NS, None, 0);
    let below = used("below", 3, Some(4), 2 * HOUR_NS - 4_000_000_000_000 / 1_000, None, 0);
    let idle_memory = used("memory", 4, None, HOUR_NS, Some(8 << 30), gib * HOUR_NS);
    let unstated = used("unstated", 5, None, 1, None, 1);
    let mut short = used("short", 6, Some(64), 1, None, 0);
    short.segments[0].running_ns = "59999999999".to_owned();
    let receipts = [full, half, below, idle_memory, unstated, short];
    let found = under_used(&receipts, MONTH, 10);
    let told: Vec<(&str, Option<u64>, Option<u64>)> =
        found.iter().map(|job| (job.job.as_str(), job.cpu_permille, job.memory_permille)).collect();
    assert_eq!(told, [("below", Some(499), None), ("memory", None, Some(125))], "what was not stated is judged by nobody");
    let mut long_enough = receipts[5].clone();
    long_enough.segments[0].running_ns = "60000000000".to_owned();
    assert_eq!(under_used(&[long_enough], MONTH, 10).len(), 1);
}

#[test]
fn a_held_device_counts_for_as_long_as_it_was_held_in_the_span() {
    let mut receipt = job("a", 1, (MARCH - HOUR_MS, MARCH + HOUR_MS), "2");
    let gpu: GpuId = "GPU-1".parse().unwrap();
    receipt.segments[0].gpus = vec![ReceiptGpu { gpu, model: GpuModel::new("NVIDIA L4"), held_ns: (2 * HOUR_NS).to_string() }];
    let row = &rows(&[receipt], By::Account, MONTH)[0];
    assert_eq!((row.gpu_held_ns, row.running_ns), (HOUR_NS, HOUR_NS));
}

#[test]
fn d7_the_days_of_a_month_are_its_trend_and_together_the_whole() {
    let receipts = [
        job("before", 1, (MARCH - 2 * HOUR_MS, MARCH), "1"),
        job("across", 2, (MARCH - HOUR_MS, MARCH + 3 * HOUR_MS), "4"),
        job("midnight", 3, (MARCH + DAY_MS - HOUR_MS, MARCH + DAY_MS + HOUR_MS), "10"),
        job("later", 4, (MARCH + 4 * DAY_MS, MARCH + 4 * DAY_MS + HOUR_MS), "2"),
    ];
    let told = |span| days(&receipts, span).into_iter().map(|row| (row.key.unwrap(), row.jobs, row.charge.to_string())).collect::<Vec<_>>();
    let day = |date: &str, jobs, charge: &str| (date.to_owned(), jobs, charge.to_owned());
    let wanted = [day("2026-03-01", 2, "8"), day("2026-03-02", 1, "5"), day("2026-03-05", 1, "2")];
    assert_eq!(told(MONTH), wanted, "and no line of a day without jobs");
    assert_eq!(days(&receipts, MONTH).iter().map(|row| row.charge).sum::<Credits>(), spent(&receipts, MONTH));
    let half = Span { from: Wall(MARCH + DAY_MS - HOUR_MS / 2), to: Wall(MARCH + DAY_MS + HOUR_MS / 2) };
    assert_eq!(told(half), [day("2026-03-01", 1, "2.5"), day("2026-03-02", 1, "2.5")]);
    assert_eq!(told(Span { from: MONTH.to, to: Wall(MONTH.to.0 + DAY_MS) }), []);
    assert!(days(&[], MONTH).is_empty());
}

#[test]
fn what_took_no_time_is_where_it_was() {
    let receipts = [job("a", 1, (MARCH, MARCH), "3")];
    assert_eq!(spent(&receipts, MONTH), credits("3"), "the beginning is in the month");
    let before = Span { from: Wall(MARCH - DAY_MS), to: Wall(MARCH) };
    assert_eq!(spent(&receipts, before), Credits::ZERO, "and not in the one before");
    assert_eq!((is_in(&receipts[0], MONTH), is_in(&receipts[0], before)), (true, false));
}

proptest! {
    #[test]
    fn the_parts_of_adjacent_spans_are_the_whole(
        amount in 0_u128..=i128::MAX.unsigned_abs(),
        from in 0_u64..1_000_000,
        length in 0_u64..1_000_000,
        mut cuts in prop::collection::vec(0_u64..3_000_000, 0..12),
    ) {
        cuts.extend([0, u64::MAX]);
        cuts.sort_unstable();
        let (from, to) = (Wall(from), Wall(from + length));
        let sum: u128 = cuts.windows(2).map(|ends| Span { from: Wall(ends[0]), to: Wall(ends[1]) }.part(amount, from, to)).sum();
        prop_assert_eq!(sum, amount);
    }

    #[test]
    fn every_way_to_make_rows_gives_the_same_sum(
        jobs in prop::collection::vec((0_u64..90, 1_u64..200, 0_u32..1_000_000, 0_usize..3), 0..20),
        days in (0_u64..80, 1_u64..60),
    ) {
        let receipts: Vec<Receipt> = jobs.iter().zip(1..).map(|((day, hours, cost, model), attempt)| {
            let from = MARCH + day * DAY_MS;
            let receipt = job("j", attempt, (from, from + hours * HOUR_MS), &format!("{}.{:03}", cost / 1_000, cost % 1_000));
            with(receipt, &[(Trait::Model, "m"), (Trait::Project, "p"), (Trait::Label, "l")][..*model])
        }).collect();
        let span = Span { from: Wall(MARCH + days.0 * DAY_MS), to: Wall(MARCH + (days.0 + days.1) * DAY_MS) };
        let all = spent(&receipts, span);
        for by in [By::Account, By::Project, By::User, By::Model, By::Label, By::Job] {
            prop_assert_eq!(rows(&receipts, by, span).iter().map(|row| row.charge).sum::<Credits>(), all);
        }
        let whole = Span { from: Wall(0), to: Wall(u64::MAX) };
        prop_assert_eq!(spent(&receipts, whole), receipts.iter().map(|receipt| receipt.charge).sum::<Credits>());
    }
}

#[test]
fn parts_of_one_run_on_several_nodes_are_one_line_and_another_run_is_another() {
    let hour = (MARCH, MARCH + HOUR_MS);
    let part = |node: &str, attempt: u64, run: u32, cost: &str| {
        let mut receipt = job("slurm:7", attempt, hour, cost);
        receipt.node = node.parse().unwrap();
        receipt.gang = Some(crate::domain::gang::Gang { name: "slurm:ada/7".parse().unwrap(), attempt: run, size: Some(2) });
        receipt
    };
    let receipts = [part("n1", 3, 0, "1"), part("n2", 3, 0, "2"), part("n1", 4, 1, "10"), job("other", 5, hour, "4")];
    let row = |key: &str, jobs, charge: &str| (Some(key.to_owned()), jobs, charge.to_owned());
    assert_eq!(
        charges(&receipts, By::Job, MONTH),
        [row("slurm:ada/7 run 1", 1, "10"), row("other#5", 1, "4"), row("slurm:ada/7 run 0", 1, "3")]
    );
    assert_eq!(charges(&receipts, By::Account, MONTH), [row("lab", 3, "17")], "two runs and a job");
    let dearest: Vec<(String, u64, String)> =
        dearest(&receipts, MONTH, 10).into_iter().map(|job| (job.job.to_string(), job.attempt.0, job.charge.to_string())).collect();
    let cost = |name: &str, attempt, charge: &str| (name.to_owned(), attempt, charge.to_owned());
    assert_eq!(dearest, [cost("slurm:ada/7", 1, "10"), cost("other", 5, "4"), cost("slurm:ada/7", 0, "3")]);
}

#[test]
fn d7_held_gpus_that_stand_idle_are_told_by_their_busy_time_where_a_card_prices_it() {
    let now = MARCH + 10 * HOUR_MS;
    let device = |nth: u8| -> GpuId { format!("GPU-{nth}").parse().unwrap() };
    let gpu_job = |name: &str, busy_ns: [u128; 2], metered: bool| {
        let mut receipt = job(name, 1, (MARCH, now), "10");
        let segment = &mut receipt.segments[0];
        let held = |nth| ReceiptGpu { gpu: device(nth), model: GpuModel::new("NVIDIA H100"), held_ns: (10 * HOUR_NS).to_string() };
        segment.gpus = vec![held(0), held(1)];
        segment.lines.truncate(1);
        segment.lines[0].meter = if metered { Meter::GpuBusy } else { Meter::GpuHeld };
        let more =
            crate::domain::usage::More { gpu_busy_ns: [(device(0), busy_ns[0]), (device(1), busy_ns[1])].into(), ..Default::default() };
        segment.more = metered.then(|| crate::domain::receipt::ReceiptMore::of(&more));
        (receipt.cpus, receipt.memory_bytes) = (None, None);
        receipt.gaps.clear();
        receipt
    };
    let told = |receipt: &Receipt| under_used(std::slice::from_ref(receipt), MONTH, 10).first().map(|job| job.gpu_permille);
    let half = 10 * HOUR_NS;
    assert_eq!(told(&gpu_job("idle", [0, 0], true)), Some(Some(0)));
    assert_eq!(told(&gpu_job("one-of-two", [half - 1, 0], true)), Some(Some(499)), "just below a half of both");
    assert_eq!(told(&gpu_job("half", [half, 0], true)), None);
    assert_eq!(told(&gpu_job("unknown", [0, 0], false)), None, "unknown is not idle");
    let mut gap = gpu_job("gap", [0, 0], true);
    let (from, to) = (crate::domain::time::Mono(0), crate::domain::time::Mono(1));
    let why = crate::domain::meter::Missing::AgentDown;
    gap.gaps.push(crate::domain::job::Gap { meter: Meter::GpuBusy, from, to, why, rule: crate::domain::job::GapRule::NotBilled });
    assert_eq!(told(&gap), None, "nor is what could not be read");
}

#[test]
fn v8_a_report_says_what_remains_after_what_an_outcome_gives_back() {
    let mut receipt = job("a", 1, (MARCH, MARCH + 4 * HOUR_MS), "4");
    receipt.segments[0].lines.truncate(1);
    receipt.segments[0].lines[0].refund = credits("3");
    assert_eq!(spent(std::slice::from_ref(&receipt), MONTH), credits("1"));
    assert_eq!(charges(&[receipt], By::Job, Span { to: Wall(MARCH + HOUR_MS), ..MONTH })[0].2, "0.25");
}
