//! What was spent in a span of time, and on what: from receipts, those of running jobs included.
//!
//! A receipt says what a job cost between two instants, not when within. Here that is spread evenly over the time of each segment, in whole
//! nano-credits: the parts of adjacent spans add up to exactly the whole. (The authority's ledger has the hours themselves, by account.)

use std::collections::{BTreeMap, BTreeSet};

use ethnum::U256;
use serde::Serialize;

use super::id::{AccountId, Attempt, JobName, NodeId};
use super::money::Credits;
use super::rates::Trait;
use super::receipt::{Receipt, ReceiptSegment, ReceiptState, instant, rfc3339};
use super::time::Wall;
use super::usage::Meter;

/// What a length in days has.
pub const DAY_MS: u64 = 86_400_000;

/// Of what was asked for less than this part used, in permille, is under-used.
pub const UNDER_USED_PERMILLE: u64 = 500;
/// Jobs that ran for less are not judged.
const JUDGED_FROM_NS: u128 = 60_000_000_000;

/// From an instant up to, and not including, another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Span {
    /// Its beginning.
    #[serde(rename = "from_unix_ms")]
    pub from: Wall,
    /// Its end.
    #[serde(rename = "to_unix_ms")]
    pub to: Wall,
}

/// What rows are made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Who pays.
    Account,
    /// What its account spends it for (trait `project`).
    Project,
    /// Whose it is.
    User,
    /// Which model is trained or served (trait `model`).
    Model,
    /// The trait `label`.
    Label,
    /// Each attempt of each job; the parts of a job on several nodes together.
    Job,
}

/// One row of a report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The account, the project …; nothing where it was not stated.
    pub key: Option<String>,
    /// Jobs with a part in the span.
    pub jobs: u64,
    /// What they cost in it.
    pub charge: Credits,
    /// What was written off of what they cost in all their time, its even part.
    pub unfunded: Credits,
    /// CPU time in it, nanoseconds.
    #[serde(with = "super::rates::charge::wide")]
    pub cpu_ns: u128,
    /// Running time in it, nanoseconds.
    #[serde(with = "super::rates::charge::wide")]
    pub running_ns: u128,
    /// Device time in it, nanoseconds.
    #[serde(with = "super::rates::charge::wide")]
    pub gpu_held_ns: u128,
}

/// What one job cost in a span.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct JobCost {
    /// What it is called; of a job on several nodes, the whole.
    pub job: JobName,
    /// The agent's number for it; of a job on several nodes, which run it was.
    pub attempt: Attempt,
    /// Who pays.
    pub account: AccountId,
    /// Whose it is.
    pub owner_uid: u32,
    /// In the span.
    pub charge: Credits,
}

/// How much of what was asked for was used, in permille; none where it was not stated, or is not metered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnderUsed {
    /// What it is called.
    pub job: JobName,
    /// The agent's number for it.
    pub attempt: Attempt,
    /// Who pays.
    pub account: AccountId,
    /// All that it cost.
    pub charge: Credits,
    /// CPU time, of the CPUs stated for as long as it ran.
    pub cpu_permille: Option<u64>,
    /// Memory, of the memory stated.
    pub memory_permille: Option<u64>,
    /// Busy time of its GPUs, of the time for which it held them under cards that price busy time; none where none does, or where a part of it
    /// could not be read.
    pub gpu_permille: Option<u64>,
    /// For how long devices were held, nanoseconds.
    #[serde(with = "super::rates::charge::wide")]
    pub gpu_held_ns: u128,
}

/// Spending now and to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Spending {
    /// This calendar month, so far (UTC).
    pub month: Credits,
    /// By its end, if it goes on as in the last seven days.
    pub projected: Credits,
    /// In the last 7 days …
    pub days_7: Credits,
    /// … 14 …
    pub days_14: Credits,
    /// … and 30 days.
    pub days_30: Credits,
}

impl Span {
    /// The last so many days.
    #[must_use]
    pub fn days(days: u64, now: Wall) -> Span {
        Span { from: Wall(now.0.saturating_sub(days.saturating_mul(DAY_MS))), to: now }
    }

    /// How long it is, in milliseconds.
    #[must_use]
    pub const fn length_ms(self) -> u64 {
        self.to.0.saturating_sub(self.from.0)
    }

    /// What of `amount`, spread evenly over `from` to `to`, falls into it. What took no time is where it was.
    #[must_use]
    pub fn part(self, amount: u128, from: Wall, to: Wall) -> u128 {
        let length = to.0.saturating_sub(from.0);
        if length == 0 {
            return if self.from <= from && from < self.to { amount } else { 0 };
        }
        let up_to = |at: Wall| {
            let gone = at.0.clamp(from.0, to.0) - from.0;
            // 128 bits of an amount and 64 of a length.
            (U256::from(amount) * U256::from(gone) / U256::from(length)).as_u128()
        };
        if self.to <= self.from { 0 } else { up_to(self.to) - up_to(self.from) }
    }
}

fn part_of(amount: Credits, span: Span, from: Wall, to: Wall) -> Credits {
    let nano = span.part(amount.or_zero().nano().unsigned_abs(), from, to);
    Credits::from_nano(i128::try_from(nano).unwrap_or(i128::MAX))
}

/// When a segment began and ended; nothing of one that says neither.
fn times(segment: &ReceiptSegment) -> Option<(Wall, Wall)> {
    Some((instant(&segment.from)?, instant(&segment.to)?))
}

/// What a job cost in a span, less what its outcome gives back of that.
#[must_use]
pub fn charge_in(receipt: &Receipt, span: Span) -> Credits {
    let net = |segment: &ReceiptSegment| segment.cost.minus(segment.lines.iter().map(|line| line.refund).sum()).or_zero();
    let parts = receipt.segments.iter().filter_map(|segment| times(segment).map(|(from, to)| part_of(net(segment), span, from, to)));
    parts.sum()
}

/// What all of them cost in a span.
#[must_use]
pub fn spent(receipts: &[Receipt], span: Span) -> Credits {
    receipts.iter().map(|receipt| charge_in(receipt, span)).sum()
}

/// Was the job there in that span?
#[must_use]
pub fn is_in(receipt: &Receipt, span: Span) -> bool {
    let touches = |(from, to): (Wall, Wall)| from < span.to && span.from < Wall(to.0.max(from.0 + 1));
    receipt.segments.iter().filter_map(times).any(touches)
}

/// What a row stands for.
#[must_use]
pub fn key(receipt: &Receipt, by: By) -> Option<String> {
    let stated = |which: Trait| receipt.traits.get(&which).map(ToString::to_string);
    match by {
        By::Account => Some(receipt.account.to_string()),
        By::Project => stated(Trait::Project),
        By::User => Some(receipt.owner_uid.0.to_string()),
        By::Model => stated(Trait::Model),
        By::Label => stated(Trait::Label),
        By::Job => Some(whole(receipt)),
    }
}

/// What a receipt is a bill of: the attempt of a job, or the run of a job on several nodes of which this is one part.
fn whole(receipt: &Receipt) -> String {
    match &receipt.gang {
        Some(gang) => format!("{} run {}", gang.name, gang.attempt),
        None => format!("{}#{}", receipt.job, receipt.attempt),
    }
}

/// Tells receipts of one whole from those of another.
type Whole = (AccountId, JobName, u64, Option<(NodeId, Attempt)>);

fn whole_key(receipt: &Receipt) -> Whole {
    match &receipt.gang {
        Some(gang) => (receipt.account.clone(), gang.name.clone(), u64::from(gang.attempt), None),
        None => (receipt.account.clone(), receipt.job.clone(), 0, Some((receipt.node.clone(), receipt.attempt))),
    }
}

/// What was spent in a span, the dearest first.
#[must_use]
pub fn rows(receipts: &[Receipt], by: By, span: Span) -> Vec<Row> {
    keyed(receipts, span, |receipt| key(receipt, by))
}

/// What was spent in a span, day by day (UTC): those in which there were jobs, oldest first.
#[must_use]
pub fn days(receipts: &[Receipt], span: Span) -> Vec<Row> {
    let segments = || receipts.iter().flat_map(|receipt| &receipt.segments).filter_map(times);
    let first = segments().map(|(from, _)| from.0).min().unwrap_or(span.to.0).max(span.from.0);
    let last = segments().map(|(from, to)| to.0.max(from.0)).max().map_or(span.from.0, |last| last.saturating_add(1)).min(span.to.0);
    let begins = std::iter::successors(Some(first / DAY_MS * DAY_MS), |day| day.checked_add(DAY_MS)).take_while(|day| *day < last);
    begins
        .flat_map(|day| {
            let part = Span { from: Wall(day.max(span.from.0)), to: Wall((day + DAY_MS).min(span.to.0)) };
            let date = rfc3339(Wall(day)).chars().take_while(|c| *c != 'T').collect::<String>();
            keyed(receipts, part, |_| Some(date.clone()))
        })
        .collect()
}

fn keyed(receipts: &[Receipt], span: Span, key: impl Fn(&Receipt) -> Option<String>) -> Vec<Row> {
    let mut rows: BTreeMap<Option<String>, Row> = BTreeMap::new();
    let mut counted: BTreeSet<(Option<String>, Whole)> = BTreeSet::new();
    for receipt in receipts.iter().filter(|receipt| is_in(receipt, span)) {
        let key = key(receipt);
        let row = rows.entry(key.clone()).or_insert_with(|| Row { key: key.clone(), ..Row::default() });
        row.jobs += u64::from(receipt.gang.is_none() || counted.insert((key, whole_key(receipt)))); // parts are one job
        row.charge = row.charge.plus(charge_in(receipt, span));
        row.unfunded = row.unfunded.plus(unfunded_in(receipt, span));
        for (segment, (from, to)) in receipt.segments.iter().filter_map(|segment| Some((segment, times(segment)?))) {
            let part = |text: &str| text.parse::<u128>().map_or(0, |quantity| span.part(quantity, from, to));
            row.cpu_ns = row.cpu_ns.saturating_add(part(&segment.cpu_ns));
            row.running_ns = row.running_ns.saturating_add(part(&segment.running_ns));
            row.gpu_held_ns = segment.gpus.iter().fold(row.gpu_held_ns, |sum, held| sum.saturating_add(part(&held.held_ns)));
        }
    }
    let mut rows: Vec<Row> = rows.into_values().collect();
    rows.sort_by(|a, b| b.charge.cmp(&a.charge).then_with(|| a.key.cmp(&b.key)));
    rows
}

fn unfunded_in(receipt: &Receipt, span: Span) -> Credits {
    let spans: Vec<(Wall, Wall)> = receipt.segments.iter().filter_map(times).collect();
    let (from, to) = (spans.iter().map(|(from, _)| *from).min(), spans.iter().map(|(_, to)| *to).max());
    from.zip(to).map_or(Credits::ZERO, |(from, to)| part_of(receipt.unfunded, span, from, to))
}

/// Spending now and to come. `month` is the calendar month that `now` is in.
#[must_use]
pub fn spending(receipts: &[Receipt], month: Span, now: Wall) -> Spending {
    let days = |days: u64| spent(receipts, Span::days(days, now));
    let so_far = spent(receipts, Span { to: now, ..month });
    // Where the first job began less than a week ago, it is that time that tells the pace; but what an hour cost tells of no month.
    let first = receipts.iter().flat_map(|receipt| &receipt.segments).filter_map(|segment| times(segment).map(|(from, _)| from)).min();
    let week = Span::days(7, now);
    let day = Span::days(1, now);
    let seen = Span { from: week.from.max(first.unwrap_or(now)).min(day.from), to: now };
    let rest_ms = month.to.0.saturating_sub(now.0);
    let pace = U256::from(days(7).or_zero().nano().unsigned_abs()) * U256::from(rest_ms);
    let to_come = (pace / U256::from(seen.length_ms().max(1))).as_u128();
    let projected = so_far.plus(Credits::from_nano(i128::try_from(to_come).unwrap_or(i128::MAX)));
    Spending { month: so_far, projected, days_7: days(7), days_14: days(14), days_30: days(30) }
}

/// The jobs that cost the most in a span.
#[must_use]
pub fn dearest(receipts: &[Receipt], span: Span, count: usize) -> Vec<JobCost> {
    let cost = |receipt: &Receipt| JobCost {
        job: receipt.gang.as_ref().map_or(&receipt.job, |gang| &gang.name).clone(),
        attempt: receipt.gang.as_ref().map_or(receipt.attempt, |gang| Attempt(u64::from(gang.attempt))),
        account: receipt.account.clone(),
        owner_uid: receipt.owner_uid.0,
        charge: Credits::ZERO,
    };
    let mut wholes: BTreeMap<Whole, JobCost> = BTreeMap::new();
    for receipt in receipts {
        let of_whole = wholes.entry(whole_key(receipt)).or_insert_with(|| cost(receipt));
        of_whole.charge = of_whole.charge.plus(charge_in(receipt, span));
    }
    let mut costs: Vec<JobCost> = wholes.into_values().filter(|job| job.charge.is_positive()).collect();
    costs.sort_by(|a, b| b.charge.cmp(&a.charge).then(a.attempt.cmp(&b.attempt)));
    costs.truncate(count);
    costs
}

/// The jobs of a span that used less than half of the CPUs or the memory that were stated for them, or of the GPUs that they held, the dearest
/// first. With none stated, and of GPUs whose busy time was not metered, nobody can say.
#[must_use]
pub fn under_used(receipts: &[Receipt], span: Span, count: usize) -> Vec<UnderUsed> {
    let judged = receipts.iter().filter(|receipt| is_in(receipt, span)).filter_map(use_of);
    let low = |part: Option<u64>| part.is_some_and(|permille| permille < UNDER_USED_PERMILLE);
    let mut found: Vec<UnderUsed> =
        judged.filter(|job| [job.cpu_permille, job.memory_permille, job.gpu_permille].into_iter().any(low)).collect();
    found.sort_by(|a, b| b.charge.cmp(&a.charge).then(a.attempt.cmp(&b.attempt)));
    found.truncate(count);
    found
}

/// How much of what was stated the job used; nothing of one that ran too short a time.
fn use_of(receipt: &Receipt) -> Option<UnderUsed> {
    let sum = |of: fn(&ReceiptSegment) -> &String| -> Option<u128> {
        receipt.segments.iter().try_fold(0_u128, |sum, segment| sum.checked_add(of(segment).parse().ok()?))
    };
    let running = sum(|segment| &segment.running_ns)?.checked_sub(sum(|segment| &segment.paused_ns)?)?;
    if running < JUDGED_FROM_NS {
        return None;
    }
    let permille = |used: u128, stated: Option<u128>| {
        let allocated = U256::from(stated?) * U256::from(running);
        (allocated != U256::ZERO).then(|| (U256::from(used) * 1_000 / allocated).min(U256::from(u64::MAX)).as_u64())
    };
    let (held_metered, busy) = gpu_busy(receipt)?;
    let gpu_permille =
        held_metered.filter(|held| *held != 0).map(|held| (U256::from(busy) * 1_000 / U256::from(held)).min(U256::from(u64::MAX)).as_u64());
    let mut held = receipt.segments.iter().flat_map(|segment| &segment.gpus);
    let held = held.try_fold(0_u128, |sum, held| sum.checked_add(held.held_ns.parse().ok()?));
    Some(UnderUsed {
        job: receipt.job.clone(),
        attempt: receipt.attempt,
        account: receipt.account.clone(),
        charge: receipt.net(),
        cpu_permille: permille(sum(|segment| &segment.cpu_ns)?, receipt.cpus.map(u128::from)),
        memory_permille: permille(sum(|segment| &segment.memory_charged_byte_ns)?, receipt.memory_bytes.map(u128::from)),
        gpu_permille,
        gpu_held_ns: held?,
    })
}

/// For how long devices were held while their busy time was metered, and how busy they were; no time where a part of that could not be read.
fn gpu_busy(receipt: &Receipt) -> Option<(Option<u128>, u128)> {
    if receipt.gaps.iter().any(|gap| gap.meter == Meter::GpuBusy) {
        return Some((None, 0));
    }
    let metered = |segment: &&ReceiptSegment| segment.lines.iter().any(|line| line.meter == Meter::GpuBusy);
    let (mut held, mut busy) = (0_u128, 0_u128);
    for segment in receipt.segments.iter().filter(metered) {
        for gpu in &segment.gpus {
            held = held.checked_add(gpu.held_ns.parse().ok()?)?;
            let text = segment.more.as_ref().and_then(|more| more.gpu_busy_ns.get(&gpu.gpu));
            busy = busy.checked_add(text.map_or(Some(0), |text| text.parse().ok())?)?;
        }
    }
    Some((Some(held), busy))
}

/// What those that go on have used and are charged only at their ends, if they complete: it is in no row.
#[must_use]
pub fn pending(receipts: &[Receipt]) -> Credits {
    receipts.iter().map(|receipt| receipt.pending).sum()
}

/// How many of them go on.
#[must_use]
pub fn still_running(receipts: &[Receipt]) -> usize {
    receipts.iter().filter(|receipt| receipt.state == ReceiptState::Provisional).count()
}

#[cfg(test)]
mod tests;
