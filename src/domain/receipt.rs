//! The receipt: what a job used, what that cost line by line, who paid, and why it was stopped, in one self-contained document.
//!
//! [`verify`] computes it again from the raw quantities and the rate cards' text alone: no journal, no agent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::act::Target;
use super::agent::{Agent, Settings};
use super::detail::Readings;
use super::gang::{Gang, Part};
use super::id::{AccountId, Attempt, BootId, Digest, GpuId, GpuModel, JobName, LineId, NodeId, Uid};
use super::job::{Gap, Job, Phase, Step};
use super::money::Credits;
use super::outcome::{Basis, Outcome};
use super::rates::charge::{self, LineCharge};
use super::rates::{Card, Earlier, Priced, Stated, Traits};
use super::refund::Refund;
use super::terms::{Offer, Terms};
use super::time::Wall;
use super::usage::{HeldGpu, More, Usage};

/// The version of the document.
pub const VERSION: u16 = 1;

/// What one attempt of one job cost, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// [`VERSION`].
    pub receipt: u16,
    /// Final once the job is closed; before that it is how things stand.
    pub state: ReceiptState,
    /// On which machine.
    pub node: NodeId,
    /// In which boot of it.
    pub boot: BootId,
    /// The agent's number for the attempt.
    pub attempt: Attempt,
    /// The job.
    pub job: JobName,
    /// Who pays.
    pub account: AccountId,
    /// Whose it was.
    pub owner_uid: Uid,
    /// Running, frozen or ended.
    pub phase: Phase,
    /// RFC 3339.
    pub opened: String,
    /// RFC 3339.
    pub ended: Option<String>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// With which exit code, if somebody reported one.
    pub exit_code: Option<i32>,
    /// One for each rate card, and for each allocation, that it ran under.
    pub segments: Vec<ReceiptSegment>,
    /// The price of it all: the sum of the segments.
    pub charge: Credits,
    /// What of it was paid.
    pub drawn: Credits,
    /// What ran past zero and was written off.
    pub unfunded: Credits,
    /// Not decided yet; nothing in a final receipt.
    pub owed: Credits,
    /// What nobody could read, and what was done about it.
    pub gaps: Vec<Gap>,
    /// The way to each warning, freeze, thaw and end.
    pub steps: Vec<Step>,
    /// Gaps and steps that found no room.
    pub notes_dropped: u64,
    /// What the outcome rests on.
    pub basis: Option<Basis>,
    /// How it ended, as whoever stopped it said.
    pub reported: Option<Outcome>,
    /// Peak memory, I/O, tasks, pressure, kills for memory: as last read.
    pub readings: Option<Readings>,
    /// What its usage was read from; none on a receipt of an agent that did not say so.
    pub measure: Option<Measure>,
    /// CPUs as stated at its start.
    pub cpus: Option<u32>,
    /// Memory as stated at its start, in bytes.
    pub memory_bytes: Option<u64>,
    /// What was stated of it, for lines that select by that.
    pub traits: Traits,
    /// What its lines keep back for its end, if it completes; nothing once it has ended.
    pub pending: Credits,
    /// Storage as stated, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_bytes: Option<u64>,
    /// Whose machine it ran on, where the configuration says so: who earns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<LineId>,
    /// What the provider earns by it: what was paid, if it completed; nothing otherwise, and nothing yet while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earned: Option<Credits>,
    /// The bid that its starter made, and the price at which it was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offer: Option<Offer>,
    /// The job on several nodes that it was a part of: its parts make one bill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gang: Option<Gang>,
    /// What its outcome gives back of the charge, where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refund: Option<ReceiptRefund>,
}

/// What a job's outcome makes of its charge. `charge = drawn + unfunded + owed + waived`, and `net = charge - reduced`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptRefund {
    /// What its lines give back, together: by so much the charge is reduced.
    pub reduced: Credits,
    /// What of that was owed, and need not be paid.
    pub waived: Credits,
    /// What of that was paid, and is given back to the account.
    pub refunded: Credits,
    /// What remains of the charge.
    pub net: Credits,
}

/// What a job's usage is read from: how exact it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// The counters of its cgroups: they miss nothing.
    Cgroups,
    /// `/proc`, process by process: CPU time in clock ticks and as a lower bound, memory with shared pages once for each process.
    ProcessTree,
}

impl Measure {
    fn of(target: &Target) -> Measure {
        match target {
            Target::Cgroups(_) | Target::OwnCgroups(_) | Target::SlurmJob(_) => Measure::Cgroups,
            Target::Processes(_) => Measure::ProcessTree,
        }
    }
}

/// Final or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReceiptState {
    /// Nothing changes any more.
    Final,
    /// The job goes on, or its last charge is not decided.
    Provisional,
}

/// The time under one rate card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptSegment {
    /// The card.
    pub card: LineId,
    /// Its version.
    pub card_version: u64,
    /// SHA-256 of its text.
    pub card_digest: Digest,
    /// RFC 3339.
    pub from: String,
    /// RFC 3339.
    pub to: String,
    /// Raw quantities, as decimal strings: CPU nanoseconds …
    pub cpu_ns: String,
    /// … byte-nanoseconds of memory charged (page cache and tmpfs included) …
    pub memory_charged_byte_ns: String,
    /// … nanoseconds of running, those included in which somebody other than the agent had it frozen …
    pub running_ns: String,
    /// … nanoseconds stopped by the agent, priced 0 unless a line says otherwise …
    pub frozen_ns: String,
    /// … nanoseconds of `running_ns` in which somebody other than the agent had it frozen …
    pub paused_ns: String,
    /// … starts …
    pub job_starts: u64,
    /// … and for how long each GPU was held.
    pub gpus: Vec<ReceiptGpu>,
    /// The rate lines applied.
    pub lines: Vec<LineCharge>,
    /// Their sum.
    pub cost: Credits,
    /// Byte-nanoseconds of anonymous memory, as a decimal string: beside `memory_charged_byte_ns`. The lines name which one is billed.
    pub memory_anon_byte_ns: String,
    /// What was measured only since the card prices it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub more: Option<ReceiptMore>,
    /// What was stated of the job in it, if that is not what the receipt says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<ReceiptTerms>,
}

/// Further quantities of a segment, as decimal strings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptMore {
    /// Device-nanoseconds of busy time, by device …
    pub gpu_busy_ns: BTreeMap<GpuId, String>,
    /// … byte-nanoseconds of device memory …
    pub gpu_memory_byte_ns: BTreeMap<GpuId, String>,
    /// … millijoules …
    pub energy_mj: BTreeMap<GpuId, String>,
    /// … bytes read and written …
    pub io_bytes: String,
    /// … counters that a hook reported …
    pub counters: BTreeMap<LineId, String>,
    /// … and events.
    pub events: BTreeMap<LineId, String>,
}

/// What was stated of a job in one segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptTerms {
    /// CPUs.
    pub cpus: Option<u32>,
    /// Memory, in bytes.
    pub memory_bytes: Option<u64>,
    /// Storage, in bytes.
    pub storage_bytes: Option<u64>,
    /// What lines select by.
    pub traits: Traits,
}

impl ReceiptMore {
    /// The same as text.
    #[must_use]
    pub fn of(more: &More) -> ReceiptMore {
        fn texts<K: Ord + Clone>(amounts: &BTreeMap<K, u128>) -> BTreeMap<K, String> {
            amounts.iter().map(|(key, amount)| (key.clone(), amount.to_string())).collect()
        }
        ReceiptMore {
            gpu_busy_ns: texts(&more.gpu_busy_ns),
            gpu_memory_byte_ns: texts(&more.gpu_memory_byte_ns),
            energy_mj: texts(&more.energy_mj),
            io_bytes: more.io_bytes.to_string(),
            counters: texts(&more.counters),
            events: texts(&more.events),
        }
    }

    fn usage(&self, number: usize) -> Result<More, Discrepancy> {
        fn amounts<K: Ord + Clone>(
            number: usize,
            field: &'static str,
            texts: &BTreeMap<K, String>,
        ) -> Result<BTreeMap<K, u128>, Discrepancy> {
            texts.iter().map(|(key, text)| Ok((key.clone(), whole(number, field, text)?))).collect()
        }
        Ok(More {
            gpu_busy_ns: amounts(number, "gpu_busy_ns", &self.gpu_busy_ns)?,
            gpu_memory_byte_ns: amounts(number, "gpu_memory_byte_ns", &self.gpu_memory_byte_ns)?,
            energy_mj: amounts(number, "energy_mj", &self.energy_mj)?,
            io_bytes: whole(number, "io_bytes", &self.io_bytes)?,
            counters: amounts(number, "counters", &self.counters)?,
            events: amounts(number, "events", &self.events)?,
        })
    }
}

impl ReceiptTerms {
    fn of(terms: &Terms) -> ReceiptTerms {
        let Terms { cpus, memory_bytes, storage_bytes, ref traits, .. } = *terms;
        ReceiptTerms { cpus, memory_bytes, storage_bytes, traits: traits.clone() }
    }
}

fn whole(number: usize, field: &'static str, text: &str) -> Result<u128, Discrepancy> {
    text.parse::<u128>().map_err(|_| quantity_fault(number, field, text))
}

/// A GPU on the receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptGpu {
    /// Which device.
    pub gpu: GpuId,
    /// Its model.
    pub model: GpuModel,
    /// Device-nanoseconds, as a decimal string.
    pub held_ns: String,
}

/// Where a receipt and its cards do not agree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Discrepancy {
    /// The document is of another version.
    #[error("a receipt of version {0}, which this program does not know")]
    Version(u16),
    /// A card is not at hand.
    #[error("segment {segment}: rate card {card} version {version} (SHA-256 {digest}) was not given")]
    CardMissing {
        /// Counted from 1.
        segment: usize,
        /// The card's name.
        card: LineId,
        /// Its version.
        version: u64,
        /// Its hash.
        digest: Digest,
    },
    /// The card that the hash names is another one.
    #[error("segment {segment}: the receipt says {said}, the hash is that of {computed}")]
    Card {
        /// Counted from 1.
        segment: usize,
        /// Name and version on the receipt.
        said: String,
        /// Name and version in the card's text.
        computed: String,
    },
    /// A device is listed twice.
    #[error("segment {segment}: the GPU {gpu} is listed twice")]
    GpuTwice {
        /// Counted from 1.
        segment: usize,
        /// Which one.
        gpu: GpuId,
    },
    /// A quantity is not a number.
    #[error("segment {segment}: {field} is not a whole number: {text:?}")]
    Quantity {
        /// Counted from 1.
        segment: usize,
        /// Which one.
        field: &'static str,
        /// What stands there.
        text: String,
    },
    /// The usage has no price under the card.
    #[error("segment {segment}: {why}")]
    Unrated {
        /// Counted from 1.
        segment: usize,
        /// Why.
        why: String,
    },
    /// Something that a line says, its cost apart, is not what the quantities and the card give.
    #[error("segment {segment}, line {line}: {field} is {said} on the receipt, {computed} by quantities and card")]
    Stated {
        /// Counted from 1.
        segment: usize,
        /// Which line.
        line: LineId,
        /// What it says.
        field: &'static str,
        /// On the receipt.
        said: String,
        /// By the card.
        computed: String,
    },
    /// A line's cost is not what the card gives.
    #[error("segment {segment}, line {line}: the receipt says {said}, the card gives {computed}")]
    Line {
        /// Counted from 1.
        segment: usize,
        /// Which line.
        line: LineId,
        /// On the receipt.
        said: Credits,
        /// By the card.
        computed: Credits,
    },
    /// The list of lines differs.
    #[error("segment {segment}: the receipt's lines are not those that the card applies")]
    Lines {
        /// Counted from 1.
        segment: usize,
    },
    /// A sum is wrong.
    #[error("{what}: the receipt says {said}, the sum is {computed}")]
    Sum {
        /// Of what.
        what: String,
        /// On the receipt.
        said: Credits,
        /// Added up.
        computed: Credits,
    },
}

/// An instant for people: RFC 3339 in UTC, to the millisecond.
#[must_use]
pub fn rfc3339(wall: Wall) -> String {
    let millis = i64::try_from(wall.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis).map_or_else(|_| format!("{}ms", wall.0), |time| format!("{time:.3}"))
}

impl Receipt {
    /// The receipt of a job: final if it is closed, else how things stand.
    #[must_use]
    pub fn of(job: &Job, agent: &Agent, settings: &Settings) -> Receipt {
        let closed = !agent.jobs.contains_key(&job.attempt);
        Receipt {
            receipt: VERSION,
            state: if closed { ReceiptState::Final } else { ReceiptState::Provisional },
            node: settings.node.clone(),
            boot: job.boot,
            attempt: job.attempt,
            job: job.name.clone(),
            account: job.account.clone(),
            owner_uid: job.owner,
            phase: job.phase,
            opened: rfc3339(job.opened.wall),
            ended: job.ended.map(|ended| rfc3339(ended.wall)),
            outcome: job.ending.map(|ending| ending.outcome),
            exit_code: job.ending.and_then(|ending| ending.exit_code),
            segments: (0..job.segments.len()).filter_map(|nth| receipt_segment(job, nth, agent)).collect(),
            charge: job.charge,
            drawn: job.drawn,
            unfunded: job.unfunded,
            owed: job.owed(),
            gaps: job.gaps.clone(),
            steps: job.steps.clone(),
            notes_dropped: job.notes_dropped,
            basis: job.basis,
            reported: job.reported.map(|ending| ending.outcome),
            readings: job.detail.as_ref().map(|detailed| detailed.detail.shown()),
            measure: Some(Measure::of(&job.target)),
            cpus: job.cpus,
            memory_bytes: job.memory_bytes,
            traits: job.traits.clone(),
            pending: job.pending(),
            storage_bytes: job.storage_bytes(),
            provider: settings.provider.clone(),
            earned: settings.provider.as_ref().map(|_| earned(job, closed)),
            offer: job.further.as_ref().and_then(|further| further.offer),
            gang: agent.part(job.attempt).map(Part::declared),
            refund: job.refund.as_deref().filter(|refund| refund.segments.iter().any(|amount| !amount.is_zero())).map(|refund| {
                ReceiptRefund {
                    reduced: job.reduced(),
                    waived: refund.waived,
                    refunded: job.refunded(),
                    net: job.charge.minus(job.reduced()),
                }
            }),
        }
    }

    /// What remains of its charge after what its outcome gives back.
    #[must_use]
    pub fn net(&self) -> Credits {
        self.refund.as_ref().map_or(self.charge, |refund| refund.net)
    }

    /// What was paid and is given back.
    #[must_use]
    pub fn refunded(&self) -> Credits {
        self.refund.as_ref().map_or(Credits::ZERO, |refund| refund.refunded)
    }

    /// The document as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

/// What whoever provides the machine earns: what was paid for a job that completed.
fn earned(job: &Job, closed: bool) -> Credits {
    let completed = job.ending.is_some_and(|ending| ending.outcome == Outcome::Completed);
    if closed && completed { job.drawn.minus(job.refunded()) } else { Credits::ZERO }
}

fn receipt_segment(job: &Job, nth: usize, agent: &Agent) -> Option<ReceiptSegment> {
    let segment = &job.segments[nth];
    let Earlier { gpus, stated, .. } = job.counts(nth)?;
    let ended = job.ending.map(|ending| ending.outcome);
    let card = agent.cards.get(&segment.card)?;
    let before = job.before(nth, card);
    let usage = &segment.usage;
    let held = |gpu: &HeldGpu| ReceiptGpu {
        gpu: gpu.gpu.clone(),
        model: gpu.model.clone(),
        held_ns: usage.gpu_held_ns.get(&gpu.gpu).copied().unwrap_or(0).to_string(),
    };
    Some(ReceiptSegment {
        card: card.name.clone(),
        card_version: card.version,
        card_digest: card.digest,
        from: rfc3339(segment.from),
        to: rfc3339(segment.to),
        cpu_ns: usage.cpu_ns.to_string(),
        memory_charged_byte_ns: usage.memory_byte_ns.to_string(),
        running_ns: usage.wall_ns.to_string(),
        frozen_ns: usage.frozen_ns.to_string(),
        paused_ns: usage.paused_ns.to_string(),
        job_starts: usage.job_starts,
        gpus: gpus.iter().map(held).collect(),
        lines: charge::line_charges(card, &Priced { usage, gpus, before: &before, stated, ended }).unwrap_or_default(),
        cost: segment.cost,
        memory_anon_byte_ns: usage.memory_anon_byte_ns.to_string(),
        more: usage.more.as_deref().map(ReceiptMore::of),
        terms: segment.terms.as_deref().map(ReceiptTerms::of),
    })
}

/// Computes the receipt again from its raw quantities and the cards.
///
/// # Errors
/// Every place where they do not agree.
pub fn verify(receipt: &Receipt, cards: &BTreeMap<Digest, Card>) -> Result<Credits, Vec<Discrepancy>> {
    let mut found = Vec::new();
    if receipt.receipt != VERSION {
        return Err(vec![Discrepancy::Version(receipt.receipt)]);
    }
    let (mut pending, mut reduction) = (Credits::ZERO, Credits::ZERO);
    let mut read: Vec<ReadSegment> = Vec::new();
    for (index, segment) in receipt.segments.iter().enumerate() {
        let before: Vec<Earlier<'_>> = read.iter().map(|segment| segment.counts(receipt)).collect();
        match verify_segment(index + 1, (receipt, segment), &before, cards) {
            Ok(segment) => {
                pending = pending.plus(segment.pending);
                reduction = reduction.plus(segment.refund);
                read.push(segment);
            }
            Err(discrepancies) => found.extend(discrepancies),
        }
    }
    if found.is_empty() && pending != receipt.pending {
        found.push(Discrepancy::Sum { what: "pending".to_owned(), said: receipt.pending, computed: pending });
    }
    let segments: Credits = receipt.segments.iter().map(|segment| segment.cost).sum();
    let waived = receipt.refund.as_ref().map_or(Credits::ZERO, |refund| refund.waived);
    let paid = receipt.drawn.plus(receipt.unfunded).plus(receipt.owed).plus(waived);
    for (what, said, computed) in [("charge", receipt.charge, segments), ("drawn + unfunded + owed", receipt.charge, paid)] {
        if said != computed {
            found.push(Discrepancy::Sum { what: what.to_owned(), said, computed });
        }
    }
    if found.is_empty() {
        found.extend(verify_refund(receipt, reduction));
    }
    if found.is_empty() { Ok(receipt.charge) } else { Err(found) }
}

/// What its lines give back together, and who gets what of it.
fn verify_refund(receipt: &Receipt, reduction: Credits) -> Vec<Discrepancy> {
    let none = ReceiptRefund { reduced: Credits::ZERO, waived: Credits::ZERO, refunded: Credits::ZERO, net: receipt.charge };
    let said = receipt.refund.as_ref().unwrap_or(&none);
    let reduced = reduction.min(receipt.charge);
    let net = receipt.charge.minus(reduced);
    let refunded = receipt.drawn.minus(net).or_zero();
    let sums = [("reduced", said.reduced, reduced), ("net", said.net, net), ("refunded", said.refunded, refunded)];
    let wrong = sums.into_iter().filter(|(_, said, computed)| said != computed);
    let mut found: Vec<Discrepancy> =
        wrong.map(|(what, said, computed)| Discrepancy::Sum { what: what.to_owned(), said, computed }).collect();
    if said.waived < Credits::ZERO || reduced < said.waived {
        found.push(Discrepancy::Sum { what: "waived".to_owned(), said: said.waived, computed: reduced });
    }
    found
}

/// The refund of a job, as its receipt says.
pub(super) fn refund_of(receipt: &Receipt) -> Option<Box<Refund>> {
    let refund = receipt.refund.as_ref()?;
    let segments = receipt.segments.iter().map(|segment| segment.lines.iter().map(|line| line.refund).sum()).collect();
    // In which epochs it was drawn does not stand there.
    Some(Box::new(Refund { drawn_before: Vec::new(), segments, waived: refund.waived, given: Vec::new() }))
}

/// A segment as the receipt says it, and what its lines keep back for the end.
struct ReadSegment {
    usage: Usage,
    terms: Terms,
    at: Wall,
    pending: Credits,
    refund: Credits,
}

impl ReadSegment {
    fn counts<'a>(&'a self, receipt: &'a Receipt) -> Earlier<'a> {
        Earlier { usage: &self.usage, gpus: &self.terms.gpus, stated: segment_stated(receipt, &self.terms, self.at) }
    }
}

/// What decides which lines are for a segment that begins then, as the receipt says.
fn segment_stated<'a>(receipt: &'a Receipt, terms: &'a Terms, at: Wall) -> Stated<'a> {
    terms.stated(at, &receipt.account, receipt.offer.map(|offer| offer.bid))
}

/// What the job was given in a segment, as the receipt says.
pub(super) fn segment_terms(receipt: &Receipt, segment: &ReceiptSegment) -> Terms {
    let gpus = segment.gpus.iter().map(|held| HeldGpu { gpu: held.gpu.clone(), model: held.model.clone() }).collect();
    if let Some(ReceiptTerms { cpus, memory_bytes, storage_bytes, traits }) = &segment.terms {
        Terms { gpus, cpus: *cpus, memory_bytes: *memory_bytes, storage_bytes: *storage_bytes, traits: traits.clone() }
    } else {
        let Receipt { cpus, memory_bytes, storage_bytes, ref traits, .. } = *receipt;
        Terms { gpus, cpus, memory_bytes, storage_bytes, traits: traits.clone() }
    }
}

/// The segment, computed again.
fn verify_segment(
    number: usize,
    (receipt, segment): (&Receipt, &ReceiptSegment),
    before: &[Earlier<'_>],
    cards: &BTreeMap<Digest, Card>,
) -> Result<ReadSegment, Vec<Discrepancy>> {
    let Some(card) = cards.get(&segment.card_digest) else {
        return Err(vec![Discrepancy::CardMissing {
            segment: number,
            card: segment.card.clone(),
            version: segment.card_version,
            digest: segment.card_digest,
        }]);
    };
    let usage = segment_usage(number, segment).map_err(|discrepancy| vec![discrepancy])?;
    let at = instant(&segment.from).ok_or_else(|| vec![quantity_fault(number, "from", &segment.from)])?;
    let terms = segment_terms(receipt, segment);
    let stated = segment_stated(receipt, &terms, at);
    let priced = Priced { usage: &usage, gpus: &terms.gpus, before, stated, ended: receipt.outcome };
    let unrated = |why: charge::RateError| vec![Discrepancy::Unrated { segment: number, why: why.to_string() }];
    let lines = charge::line_charges(card, &priced).map_err(unrated)?;
    let mut found = Vec::new();
    if (&segment.card, segment.card_version) != (&card.name, card.version) {
        let named = |name: &LineId, version: u64| format!("card {name} version {version}");
        let (said, computed) = (named(&segment.card, segment.card_version), named(&card.name, card.version));
        found.push(Discrepancy::Card { segment: number, said, computed });
    }
    if segment.lines.iter().map(|line| &line.line).eq(lines.iter().map(|line| &line.line)) {
        found.extend(segment.lines.iter().zip(&lines).flat_map(|(said, computed)| verify_line(number, said, computed)));
    } else {
        found.push(Discrepancy::Lines { segment: number });
    }
    let sum: Credits = lines.iter().map(|line| line.cost).sum();
    if sum != segment.cost {
        found.push(Discrepancy::Sum { what: format!("segment {number}"), said: segment.cost, computed: sum });
    }
    let pending = lines.iter().map(|line| line.pending).sum();
    let refund = lines.iter().map(|line| line.refund).sum();
    if found.is_empty() { Ok(ReadSegment { usage, terms, at, pending, refund }) } else { Err(found) }
}

/// The instant that [`rfc3339`] writes.
#[must_use]
pub fn instant(text: &str) -> Option<Wall> {
    let time: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(time.as_millisecond()).ok().map(Wall)
}

fn quantity_fault(segment: usize, field: &'static str, text: &str) -> Discrepancy {
    Discrepancy::Quantity { segment, field, text: text.chars().take(64).collect() }
}

fn verify_line(segment: usize, said: &LineCharge, computed: &LineCharge) -> Vec<Discrepancy> {
    let fields = |charge: &LineCharge| {
        [
            ("meter", charge.meter.to_string()),
            ("quantity", charge.quantity.to_string()),
            ("unit", charge.unit.clone()),
            ("price", charge.price.clone()),
            ("per", charge.per.to_string()),
            ("round", charge.round.name().to_owned()),
            ("billed", charge.billed.clone()),
            ("pending", charge.pending.to_string()),
            ("refund", charge.refund.to_string()),
            ("rules", charge.rules.join(", ")),
        ]
    };
    let line = || said.line.clone();
    let mut found: Vec<Discrepancy> = fields(said)
        .into_iter()
        .zip(fields(computed))
        .filter(|(said, computed)| said != computed)
        .map(|((field, said), (_, computed))| Discrepancy::Stated { segment, line: line(), field, said, computed })
        .collect();
    if said.cost != computed.cost {
        found.push(Discrepancy::Line { segment, line: line(), said: said.cost, computed: computed.cost });
    }
    found
}

/// What a segment used, as it says.
pub(super) fn segment_usage(number: usize, segment: &ReceiptSegment) -> Result<Usage, Discrepancy> {
    let whole = |field, text: &str| whole(number, field, text);
    let mut gpu_held_ns = BTreeMap::new();
    for held in &segment.gpus {
        if gpu_held_ns.insert(held.gpu.clone(), whole("held_ns", &held.held_ns)?).is_some() {
            return Err(Discrepancy::GpuTwice { segment: number, gpu: held.gpu.clone() });
        }
    }
    Ok(Usage {
        cpu_ns: whole("cpu_ns", &segment.cpu_ns)?,
        memory_byte_ns: whole("memory_charged_byte_ns", &segment.memory_charged_byte_ns)?,
        gpu_held_ns,
        wall_ns: whole("running_ns", &segment.running_ns)?,
        job_starts: segment.job_starts,
        frozen_ns: whole("frozen_ns", &segment.frozen_ns)?,
        memory_anon_byte_ns: whole("memory_anon_byte_ns", &segment.memory_anon_byte_ns)?,
        paused_ns: whole("paused_ns", &segment.paused_ns)?,
        more: segment.more.as_ref().map(|more| more.usage(number).map(Box::new)).transpose()?,
    })
}
