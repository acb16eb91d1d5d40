//! The receipts against the truth: what a closed job is charged is the price of what it truly used, as far as the gaps do not say otherwise.

use std::collections::BTreeMap;

use meterd::domain::agent::Agent;
use meterd::domain::audit::Audit;
use meterd::domain::chain::Head;
use meterd::domain::fact::Fact;
use meterd::domain::replay::Replay;
use num_bigint::BigUint;
use serde_json::Value;

use crate::audit::{Baseline, Closed, UNNOTICED};
use crate::disk::Disk;
use crate::kernel::KernelJob;
use crate::tariff::{Quantities, Tariff};

/// Most gaps that a receipt lists.
const GAPS_LISTED: usize = 64;

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} is not a text in {value}"))
}

fn whole(value: &Value, key: &str) -> u128 {
    text(value, key).parse().unwrap_or_else(|_| panic!("{key} is not a whole number in {value}"))
}

/// Nano-credits of an amount in decimal text.
pub(crate) fn nano(value: &Value, key: &str) -> i128 {
    let text = text(value, key);
    let (credits, fraction) = text.split_once('.').unwrap_or((text, ""));
    format!("{credits}{fraction:0<9}").parse().unwrap_or_else(|_| panic!("{key} is not an amount: {text}"))
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("{key} is not a number in {value}"))
}

struct Billed {
    cpu_ns: u128,
    memory_byte_ns: u128,
    running_ns: u128,
}

/// G1 and G6 for one closed job.
pub(crate) fn check(closed: &Closed, baseline: &Baseline, job: &KernelJob, tariffs: &[Tariff], crashed: bool) {
    let receipt: Value = serde_json::from_str(&closed.json).unwrap_or_else(|error| panic!("a receipt that is not JSON: {error}"));
    let billed = price(&receipt, tariffs);
    let gaps: Vec<&Value> = receipt["gaps"].as_array().map(|gaps| gaps.iter().collect()).unwrap_or_default();
    if gaps.len() < GAPS_LISTED {
        cpu(&receipt, &billed, &gaps, baseline, job);
    }
    levels(&receipt, &billed, &gaps, baseline, job, crashed);
}

/// What the agent charged as it ran, what a replay of its facts gives, and what the verifier computes are one amount, job by job.
pub(crate) fn replayed(node: usize, disk: &Disk, receipts: &[Closed]) -> usize {
    let mut audit = Audit::behind(Head::START, None);
    let mut replay = Replay::default();
    let mut closed = BTreeMap::new();
    for (seq, bytes, link) in disk.rows() {
        audit.row(*seq, bytes, *link).unwrap_or_else(|fault| panic!("G9: the verifier on what node {node} wrote: {fault}"));
        if let Some((_, state)) = disk.checkpoint().filter(|(at, _)| at == seq) {
            audit.meet(&Agent::decode(state).unwrap()).unwrap_or_else(|fault| panic!("G9: the checkpoint of node {node}: {fault}"));
        }
        let fact = Fact::decode(bytes).unwrap();
        closed.extend(replay.take(&fact).map(|job| (job.attempt, job)));
    }
    let found = audit.finish().unwrap();
    assert_eq!(found.counts.of_earlier_jobs, 0, "every beginning is among the rows");
    for receipt in receipts.iter().filter(|receipt| receipt.node == node) {
        let document: Value = serde_json::from_str(&receipt.json).unwrap();
        let job = &closed[&receipt.attempt];
        assert_eq!(job.charge().nano(), nano(&document, "charge"), "G9: the replay of attempt {}: {document:#}", receipt.attempt);
        assert_eq!(job.drawn.nano(), nano(&document, "drawn"), "G9: what the replay of attempt {} has drawn", receipt.attempt);
    }
    assert_eq!(closed.len(), receipts.iter().filter(|receipt| receipt.node == node).count());
    usize::try_from(found.counts.jobs).unwrap()
}

/// Every segment's price by the simulation's own arithmetic; their sum; and who paid.
fn price(receipt: &Value, tariffs: &[Tariff]) -> Billed {
    let mut billed = Billed { cpu_ns: 0, memory_byte_ns: 0, running_ns: 0 };
    let mut sum = BigUint::ZERO;
    let segments = receipt["segments"].as_array().unwrap_or_else(|| panic!("no segments in {receipt}"));
    assert!(!segments.is_empty(), "G1: a receipt without segments: {receipt:#}");
    for (index, segment) in segments.iter().enumerate() {
        let version = usize::try_from(number(segment, "card_version")).unwrap();
        let tariff = &tariffs[version - 1];
        let gpus = segment["gpus"].as_array().map(Vec::as_slice).unwrap_or_default();
        let used = Quantities {
            cpu_ns: whole(segment, "cpu_ns"),
            memory_byte_ns: whole(segment, "memory_charged_byte_ns"),
            running_ns: whole(segment, "running_ns"),
            starts: u128::from(number(segment, "job_starts")),
            gpus: gpus.iter().map(|gpu| (text(gpu, "model").to_owned(), whole(gpu, "held_ns"))).collect(),
        };
        assert_eq!(used.starts, u128::from(index == 0), "G1: a start in segment {index}");
        for (_, held) in &used.gpus {
            assert_eq!(*held, used.running_ns, "G1: a GPU was held for another time than the job ran");
        }
        if tariff.ruled.is_none() {
            let cost = tariff.price(&used);
            assert_eq!(cost.to_string(), nano(segment, "cost").to_string(), "G1: segment {index} of {receipt:#}");
            sum += cost;
        }
        billed.cpu_ns += used.cpu_ns;
        billed.memory_byte_ns += used.memory_byte_ns;
        billed.running_ns += used.running_ns;
    }
    let charge = nano(receipt, "charge");
    let texts: Vec<String> = tariffs.iter().filter_map(|tariff| tariff.ruled.clone()).collect();
    if texts.is_empty() {
        assert_eq!(sum.to_string(), charge.to_string(), "G1: the sum of {receipt:#}");
    } else {
        let second = crate::second_rating::check(receipt, &texts).unwrap_or_else(|wrong| panic!("G1: {wrong:#?} in {receipt:#}"));
        assert_eq!(second.to_string(), charge.to_string(), "G1: the second rating of {receipt:#}");
    }
    let waived = if receipt["refund"].is_null() { 0 } else { nano(&receipt["refund"], "waived") };
    assert_eq!(
        charge,
        nano(receipt, "drawn") + nano(receipt, "unfunded") + waived,
        "G3: charge = drawn + unfunded + waived in {receipt:#}"
    );
    assert_eq!(nano(receipt, "owed"), 0, "G3: a closed job owes");
    assert_eq!(text(receipt, "state"), "final");
    billed
}

fn cpu(receipt: &Value, billed: &Billed, gaps: &[&Value], baseline: &Baseline, job: &KernelJob) {
    let of_cpu = || gaps.iter().filter(|gap| text(gap, "meter") == "cpu_time");
    let truth = u128::from(job.cpu_ns() - baseline.cpu_ns);
    assert!(billed.cpu_ns <= truth, "G1: billed {} of CPU time, used {truth}: {receipt:#}", billed.cpu_ns);
    let Some(lost) = of_cpu().find(|gap| text(gap, "rule") == "lost") else {
        assert_eq!(billed.cpu_ns, truth, "G1: CPU time of {} {receipt:#}", job.name);
        return;
    };
    // A reading that failed just before is part of what was lost.
    let mut from = number(lost, "from_mono_ns");
    let seen_at = |at| job.cpu_ns_at(at).unwrap_or_else(|| panic!("G1: nobody looked at {} at {at}: {receipt:#}", job.name));
    while billed.cpu_ns < u128::from(seen_at(from) - baseline.cpu_ns)
        && let Some(earlier) = of_cpu()
            .find(|gap| text(gap, "rule") == "counted_later" && number(gap, "to_mono_ns") == from && number(gap, "from_mono_ns") < from)
    {
        from = number(earlier, "from_mono_ns");
    }
    let seen = seen_at(from);
    assert_eq!(billed.cpu_ns, u128::from(seen - baseline.cpu_ns), "G1: CPU time up to the loss of {} {receipt:#}", job.name);
}

fn levels(receipt: &Value, billed: &Billed, gaps: &[&Value], baseline: &Baseline, job: &KernelJob, crashed: bool) {
    let length = |gap: &&&Value| u128::from(number(gap, "to_mono_ns") - number(gap, "from_mono_ns"));
    let missed = |meter: &str| -> u128 {
        gaps.iter().filter(|gap| text(gap, "meter") == meter && text(gap, "rule") == "not_billed").map(|gap| length(&gap)).sum()
    };
    // Each freeze, thaw and end is seen at the next look; one that fell into a longer silence must be a gap.
    let changes = u128::from(job.changes - baseline.changes);
    let late = (job.late_ns - baseline.late_ns) + changes;
    let late = if crashed || job.is_unseen() { late.max(changes * UNNOTICED) } else { late };
    let (least, most) = (job.run_least - baseline.run_least, job.run_most - baseline.run_most);
    let ran = billed.running_ns;
    // A job that came and went between two looks and used no CPU time is taken for one whose tasks are still to come: it holds what it holds.
    let unseen = job.cpu_ns() == baseline.cpu_ns;
    assert!(unseen || ran <= most + late, "G1: {} ran {most} (seen {late} late), billed {ran}: {receipt:#}", job.name);
    let lost = missed("wall_time");
    let whole = gaps.len() < GAPS_LISTED && text(receipt, "outcome") != "node_rebooted";
    assert!(!whole || least <= ran + late + lost, "G6: {} ran {least}, billed {ran}, gaps {lost}: {receipt:#}", job.name);
    if job.memory_max == 0 {
        return;
    }
    let memory = billed.memory_byte_ns;
    assert!(memory <= u128::from(job.memory_max) * ran, "G1: more memory billed than {} ever held: {receipt:#}", job.name);
    let dark = missed("memory_charged");
    let floor = u128::from(job.memory_min) * ran.saturating_sub(dark + late + blinks(job, baseline));
    let told = format!("billed {memory}, least {} for {ran} less {dark} dark and {late} late", job.memory_min);
    assert!(gaps.len() >= GAPS_LISTED || floor <= memory, "G6: memory of {} is below all that it held: {told}: {receipt:#}", job.name);
}

/// Stretches without tasks are billed as held time, and their memory is nobody's.
fn blinks(job: &KernelJob, baseline: &Baseline) -> u128 {
    (job.run_most - baseline.run_most) - (job.run_least - baseline.run_least)
}
