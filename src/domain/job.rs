//! One attempt of one job: what it used segment by segment, what that costs, and the steps that led to any stop.
//!
//! ```text
//!   opened --> RUNNING <--thaw/freeze--> FROZEN --> ended --owed = 0--> settled (receipt written)
//! ```
//!
//! `charge = drawn + unfunded + owed + waived`: `drawn` came out of a grant, `unfunded` is what ran past zero and was written off, and `owed`
//! is not decided yet. At the settlement `owed` is nothing. What its outcome gives back stands beside the charge, see [`super::refund`]; `waived`
//! is what of that was owed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::act::{Acted, Target};
use super::detail::Detailed;
use super::id::{AccountId, Attempt, BootId, Digest, JobName, LineId, NodeId, Uid};
use super::ladder::{JobPolicy, Victim};
use super::meter::Missing;
use super::money::Credits;
use super::outcome::{Basis, Outcome};
use super::rates::charge::{self, Charge};
use super::rates::{Card, Earlier, OverBid, Priced, RateError, Stated, Traits};
use super::refund::Refund;
use super::terms::{Further, Outbid, Report, Terms};
use super::time::{Mono, Nanos, Now, Wall};
use super::usage::{HeldGpu, Meter, Usage};
use super::wire::Verdict;

/// A counter that stood still for this long after the last task went is final. A slice of time is at most some milliseconds.
pub const COUNTER_SETTLES: Nanos = Nanos::from_millis(50);

/// Most gaps and most steps kept of one job; the others are counted, not listed.
pub const NOTES_MAX: usize = 64;

/// One attempt of one job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The agent's number for it.
    pub attempt: Attempt,
    /// What its scheduler or user calls it.
    pub name: JobName,
    /// Who pays.
    pub account: AccountId,
    /// Whose it is.
    pub owner: Uid,
    /// Where its tasks are.
    pub target: Target,
    /// The GPUs that it holds.
    pub gpus: Vec<HeldGpu>,
    /// How long it may run, as stated at its start.
    pub time_limit: Option<Nanos>,
    /// CPUs as stated at its start, for the prediction at admission.
    pub cpus: Option<u32>,
    /// Memory as stated at its start, in bytes.
    pub memory_bytes: Option<u64>,
    /// In which boot.
    pub boot: BootId,
    /// When it was opened.
    pub opened: Now,
    /// Running or frozen, as last seen.
    pub phase: Phase,
    /// Who froze it, if it is or is about to be.
    pub frozen_by: Option<FrozenBy>,
    /// Has it ever had a task?
    pub seen_populated: Seen,
    /// When its last task went, if it has none.
    pub emptied: Option<(Mono, Wall)>,
    /// What the caller of `stop` reported.
    pub reported: Option<Ending>,
    /// Up to where its times have been counted.
    pub counted_to: Mono,
    /// The CPU counter at the last reading; none before the first.
    pub cpu_counter_ns: Option<u64>,
    /// When that counter was last seen to have moved.
    pub counter_moved: Mono,
    /// Memory at the last reading.
    pub memory_level_bytes: Option<u64>,
    /// One for each rate card, and for each allocation, that it ran under, the last one open.
    pub segments: Vec<Segment>,
    /// The price of its usage: the sum over its segments.
    pub charge: Credits,
    /// What of it came out of grants.
    pub drawn: Credits,
    /// What of it was written off.
    pub unfunded: Credits,
    /// What nobody could read, and what was done about it.
    pub gaps: Vec<Gap>,
    /// Why it was warned, frozen, thawed or ended.
    pub steps: Vec<Step>,
    /// Steps and gaps that were not kept.
    pub notes_dropped: u64,
    /// How it ended.
    pub ending: Option<Ending>,
    /// When.
    pub ended: Option<Now>,
    /// SIGTERM was sent for lack of credit, then.
    pub terminated_at: Option<Mono>,
    /// Its own cgroup has been removed.
    pub removed: Removed,
    /// Anonymous memory at the last reading of it.
    pub memory_anon: Option<LevelMark>,
    /// What was last read of what is not read each second.
    pub detail: Option<Box<Detailed>>,
    /// Kills for memory in its cgroups before it began; none if nobody knows.
    pub oom_kills_before: Option<u64>,
    /// What its outcome rests on.
    pub basis: Option<Basis>,
    /// The nearest job whose directory this one's are in: what this one uses is not that one's.
    pub inside: Option<Attempt>,
    /// What jobs inside this one have used that its own counter has not been relieved of yet, in nanoseconds of CPU time.
    pub inner_ns: u64,
    /// What its starter wants done with it.
    pub policy: JobPolicy,
    /// When it was last warned.
    pub warned_at: Option<Mono>,
    /// It stands still for others' sake.
    pub victim: Option<Victim>,
    /// What would have been done last, if that had been enforced.
    pub would: Option<super::act::Act>,
    /// What was stated of it, for lines that select by that.
    pub traits: Traits,
    /// What few jobs have.
    #[serde(skip)]
    pub further: Option<Box<Further>>,
    /// What its outcome gives back, and out of which epochs it was paid.
    #[serde(skip)]
    pub refund: Option<Box<Refund>>,
}

/// A level at its last reading, and for how long the job had run by then: the next reading gives the area between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LevelMark {
    /// The level.
    pub bytes: u64,
    /// Running time of all segments then, in nanoseconds.
    pub ran_ns: u128,
}

/// Running or frozen. The order is the journal's format: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Its cgroup is not there yet.
    Awaited,
    /// At least one task may run.
    Running,
    /// All tasks are frozen.
    Frozen,
    /// No more.
    Ended,
}

impl Phase {
    /// Its name in JSON and on the status page.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Awaited => "awaited",
            Phase::Running => "running",
            Phase::Frozen => "frozen",
            Phase::Ended => "ended",
        }
    }
}

/// Who froze a job. Only what the agent froze does it ever thaw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FrozenBy {
    /// The agent, for lack of credit.
    Agent,
    /// A scheduler or a person.
    Other,
}

/// Has it been seen?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seen {
    /// At least once.
    Yes,
    /// Never.
    No,
}

/// Has the cgroup that the agent made been removed?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Removed {
    /// It has, or there was none.
    Yes,
    /// Not yet.
    No,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// In one word.
    pub outcome: Outcome,
    /// Its exit status, where somebody reported one.
    pub exit_code: Option<i32>,
}

/// The time under one rate card and in one allocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// SHA-256 of the card's text.
    pub card: Digest,
    /// Its beginning, for people.
    pub from: Wall,
    /// Its end, for people: of the last row counted, while it is open.
    pub to: Wall,
    /// What was used in it.
    pub usage: Usage,
    /// The price of that, rounded once per rate line.
    pub cost: Credits,
    /// What lines that are settled at the end come to, if it completes now.
    pub pending: Credits,
    /// What the job was given in it, if that is not what it is given now.
    #[serde(skip)]
    pub terms: Option<Box<Terms>>,
}

/// The segments until now keep what the job was given in them.
pub(super) fn keep_terms(segments: &mut [Segment], before: &Terms) {
    for segment in segments.iter_mut().filter(|segment| segment.terms.is_none()) {
        segment.terms = Some(Box::new(before.clone()));
    }
}

/// The job goes on in a new segment from then on, under that card: without a hole and without an overlap.
pub(super) fn open_segment(segments: &mut Vec<Segment>, gpus: &[HeldGpu], card: Digest, at: Wall) {
    if let Some(last) = segments.last_mut() {
        last.to = at;
    }
    segments.push(Segment { card, from: at, to: at, usage: empty_usage(gpus), cost: Credits::ZERO, pending: Credits::ZERO, terms: None });
}

/// A segment's usage at its beginning: every held GPU is there, with nothing yet.
pub(super) fn empty_usage(gpus: &[HeldGpu]) -> Usage {
    Usage { gpu_held_ns: gpus.iter().map(|held| (held.gpu.clone(), 0)).collect(), ..Usage::default() }
}

/// A counter's greatest total holds, and each event counts once.
pub(super) fn take_report(segments: &mut [Segment], events: &mut BTreeSet<(LineId, LineId)>, report: &Report) {
    let Some((last, before)) = segments.split_last_mut() else { return };
    match report {
        Report::Counter { name, total } => {
            let earlier: u128 = before.iter().map(|segment| segment.usage.named(Meter::Counter, name)).sum();
            let counted = last.usage.more.get_or_insert_default().counters.entry(name.clone()).or_default();
            *counted = (*counted).max(u128::from(*total).saturating_sub(earlier));
        }
        Report::Event { name, id } => {
            if events.insert((name.clone(), id.clone())) {
                *last.usage.more.get_or_insert_default().events.entry(name.clone()).or_default() += 1;
            }
        }
    }
}

/// A stretch of time for which a meter could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Which meter.
    pub meter: Meter,
    /// From the last good reading …
    #[serde(rename = "from_mono_ns")]
    pub from: Mono,
    /// … to the next one.
    #[serde(rename = "to_mono_ns")]
    pub to: Mono,
    /// Why.
    pub why: Missing,
    /// What was done about it.
    pub rule: GapRule,
}

/// What is done about a gap. The order is the journal's format: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapRule {
    /// A counter: the next reading holds all of it.
    CountedLater,
    /// A level: nobody knows, so nothing is charged.
    NotBilled,
    /// The counter is gone with its cgroup: what came after the last reading is lost.
    Lost,
    /// The vanished cgroup's rest, told from its parent's counter alone.
    FromParent,
    /// The same, shared equally among several that vanished at once.
    FromParentSplit,
}

/// One step on the way to a stop or a thaw, with its evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// When, for people.
    #[serde(rename = "unix_ms")]
    pub wall: Wall,
    /// When, to tell lengths.
    #[serde(rename = "mono_ns")]
    pub at: Mono,
    /// What.
    pub event: StepEvent,
}

/// What happened. The order is the journal's format: append only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepEvent {
    /// Credit is short: at the present burn it lasts less than the policy's `warn_before`.
    Warned(Evidence),
    /// The node armed its timer for the earliest possible instant of exhaustion.
    Armed(Evidence),
    /// Nothing in hand.
    Emptied(Evidence),
    /// The authority confirmed that there is nothing left.
    Exhausted(Evidence),
    /// There is something in hand again.
    Funded(Evidence),
    /// Not enforced: this is what would have been done.
    WouldAct(super::act::Act),
    /// The hands did this.
    Acted(Acted),
    /// Somebody else froze it.
    FrozenByOther,
    /// It was seen thawed while it was to be frozen.
    FoundThawed,
    /// It was not as the agent believed.
    Corrected(super::correction::Correction),
    /// Credit is short, and it stands still so that others of its account can go on for longer.
    StoodAside(Evidence),
    /// It need not any more.
    StepsBack(Evidence),
    /// It has stood still for as long as its account's policy lets it.
    FrozenTooLong(Evidence),
    /// Its gang stands still, by the register's word: a part of it ran dry, on that node if that is known.
    GangHeld {
        /// Under which version.
        version: u64,
        /// On which node.
        dry: Option<NodeId>,
    },
    /// Its gang may run, by the register's word.
    GangRuns {
        /// Under which version.
        version: u64,
    },
    /// The card asks more for it by now than was bid, and says what happens then.
    OverBid {
        /// What happens.
        rule: OverBid,
        /// What was bid.
        bid: Credits,
        /// What is asked.
        ask: Credits,
    },
    /// No more is asked than was bid.
    WithinBid {
        /// What was bid.
        bid: Credits,
    },
    /// Not enforced: its start would have been refused, with this code.
    WouldRefuse(String),
}

/// Counter, quantity, cost and balance at the moment of a decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The job's CPU counter, in nanoseconds.
    pub cpu_counter_ns: Option<u64>,
    /// The job's price so far.
    pub charge: Credits,
    /// The account's totals in this epoch.
    pub granted: Credits,
    /// Given back.
    pub returned: Credits,
    /// Charged.
    pub spent: Credits,
    /// What was in hand.
    pub in_hand: Credits,
    /// Greatest burn, nano-credits per second.
    pub burn_max_per_s: Credits,
    /// How long that lasts at the greatest burn.
    #[serde(rename = "lasts_ns")]
    pub lasts: Option<Nanos>,
    /// The authority's last word and the request it answered.
    pub verdict: Option<(Verdict, u64)>,
    /// What was free at the authority, as last heard.
    pub free: Credits,
}

impl Job {
    /// Used, and neither drawn nor written off.
    #[must_use]
    pub fn owed(&self) -> Credits {
        let waived = self.refund.as_ref().map_or(Credits::ZERO, |refund| refund.waived);
        self.charge.minus(self.drawn).minus(self.unfunded).minus(waived).or_zero()
    }

    /// What was bid and what is asked by now, as it was last noted; none where no more is asked than was bid.
    #[must_use]
    pub fn outbid_noted(&self) -> Option<Outbid> {
        self.bid()?;
        let of_bids = |step: &Step| match &step.event {
            StepEvent::OverBid { rule, bid, ask } => Some(Some(Outbid { rule: *rule, bid: *bid, ask: *ask })),
            StepEvent::WithinBid { .. } => Some(None),
            _ => None,
        };
        self.steps.iter().rev().find_map(of_bids)?
    }

    /// By what its outcome reduces the charge.
    #[must_use]
    pub fn reduced(&self) -> Credits {
        self.refund.as_ref().map_or(Credits::ZERO, |refund| refund.reduced(self.charge))
    }

    /// What was paid and is given back.
    #[must_use]
    pub fn refunded(&self) -> Credits {
        self.refund.as_ref().map_or(Credits::ZERO, |refund| refund.refunded())
    }

    /// What its lines keep back for its end: neither charged nor to be spent on anything else.
    #[must_use]
    pub fn pending(&self) -> Credits {
        self.segments.iter().map(|segment| segment.pending).sum()
    }

    /// What decides which lines are for a segment of it that begins then.
    #[must_use]
    pub fn stated(&self, at: Wall) -> Stated<'_> {
        let Job { ref traits, ref account, cpus, memory_bytes, .. } = *self;
        Stated { at, traits, account: Some(account), cpus, memory_bytes, storage_bytes: self.storage_bytes(), bid: self.bid() }
    }

    /// The most that its starter would pay for the start, where that was said.
    #[must_use]
    pub fn bid(&self) -> Option<Credits> {
        self.further.as_ref().and_then(|further| further.offer).map(|offer| offer.bid)
    }

    /// Storage as stated, in bytes.
    #[must_use]
    pub fn storage_bytes(&self) -> Option<u64> {
        self.further.as_ref().and_then(|further| further.storage_bytes)
    }

    /// What it is given now.
    #[must_use]
    pub fn terms(&self) -> Terms {
        Terms {
            gpus: self.gpus.clone(),
            cpus: self.cpus,
            memory_bytes: self.memory_bytes,
            storage_bytes: self.storage_bytes(),
            traits: self.traits.clone(),
        }
    }

    /// A segment as it counts.
    #[must_use]
    pub fn counts(&self, nth: usize) -> Option<Earlier<'_>> {
        let segment = self.segments.get(nth)?;
        let (usage, from) = (&segment.usage, segment.from);
        Some(match segment.terms.as_deref() {
            Some(terms) => Earlier { usage, gpus: &terms.gpus, stated: terms.stated(from, &self.account, self.bid()) },
            None => Earlier { usage, gpus: &self.gpus, stated: self.stated(from) },
        })
    }

    /// The segments before that one, as far as a card needs them.
    #[must_use]
    pub fn before(&self, nth: usize, card: &Card) -> Vec<Earlier<'_>> {
        if card.has_rules() { (0..nth).filter_map(|nth| self.counts(nth)).collect() } else { Vec::new() }
    }

    /// From now on it is given this: the segments until now keep what they were given.
    pub fn set_terms(&mut self, terms: Terms) {
        let before = self.terms();
        keep_terms(&mut self.segments, &before);
        let Terms { gpus, cpus, memory_bytes, storage_bytes, traits } = terms;
        (self.gpus, self.cpus, self.memory_bytes, self.traits) = (gpus, cpus, memory_bytes, traits);
        if storage_bytes != self.storage_bytes() {
            self.further.get_or_insert_default().storage_bytes = storage_bytes;
        }
        if let Some(further) = &mut self.further {
            further.marks.gpus.retain(|gpu, _| self.gpus.iter().any(|held| held.gpu == *gpu));
        }
    }

    /// It goes on in a new segment from then on, under that card: without a hole and without an overlap.
    pub fn open_segment(&mut self, card: Digest, at: Wall) {
        open_segment(&mut self.segments, &self.gpus, card, at);
    }

    /// What the segment's usage costs under a card without rules or with: as charged, and kept back for its end.
    ///
    /// # Errors
    /// An amount past 128 bits, or something that has no price.
    pub fn charge(&self, segment: usize, usage: &Usage, card: &Card, ended: Option<Outcome>) -> Result<Charge, RateError> {
        let Some(Earlier { gpus, stated, .. }) = self.counts(segment) else { return Ok(Charge::default()) };
        charge::charge(card, &Priced { usage, gpus, before: &self.before(segment, card), stated, ended })
    }

    /// Has it tasks that may still run?
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.ended.is_none()
    }

    /// May its tasks use anything now?
    #[must_use]
    pub fn may_burn(&self) -> bool {
        self.is_live() && self.phase == Phase::Running && self.emptied.is_none()
    }

    /// May it cost anything now? One that somebody else froze holds what it holds, and may go on at any instant.
    #[must_use]
    pub fn may_cost(&self) -> bool {
        let still = self.phase == Phase::Frozen && self.frozen_by == Some(FrozenBy::Other);
        self.is_live() && self.emptied.is_none() && (self.phase == Phase::Running || still)
    }

    /// From when on its counter may be taken as final: its last task has gone, and the kernel has had time to add that task's last
    /// slice of time (it does so only once the task has left its CPU).
    #[must_use]
    pub fn counter_final_at(&self) -> Option<Mono> {
        self.emptied.map(|(at, _)| at.max(self.counter_moved).plus(COUNTER_SETTLES))
    }

    /// All that it used, over its segments.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.segments.iter().fold(Usage::default(), |sum, segment| sum.plus(&segment.usage))
    }

    /// A little of each line of cache that a turn needs.
    fn a_word_of_each_line(&self) -> u64 {
        let low = |amount: Credits| u64::try_from(amount.nano() & 1).unwrap_or(0);
        let segment = self.segments.last().map_or(0, |segment| low(segment.cost) ^ u64::from(segment.usage.cpu_ns != 0) ^ segment.to.0);
        let own = [self.counted_to.0, self.counter_moved.0, self.inner_ns, self.opened.mono.0, self.cpu_counter_ns.unwrap_or(0)];
        let marks = [
            low(self.charge),
            low(self.unfunded),
            self.memory_anon.map_or(0, |mark| mark.bytes),
            self.memory_level_bytes.unwrap_or(0),
            self.inside.map_or(0, |outer| outer.0),
            self.emptied.map_or(0, |(at, _)| at.0),
            u64::from(self.phase == Phase::Running),
            self.gaps.last().map_or(0, |gap| gap.to.0),
            self.account.as_str().len() as u64 ^ u64::from(self.account.as_str().starts_with('a')),
        ];
        own.into_iter().chain(marks).fold(segment, u64::wrapping_add)
    }

    /// How long it has run, over its segments.
    #[must_use]
    pub fn ran_ns(&self) -> u128 {
        self.segments.iter().map(|segment| segment.usage.wall_ns).sum()
    }

    /// Notes a step. The oldest makes room: the last ones tell why the job stands where it does.
    pub fn note_step(&mut self, step: Step) {
        if NOTES_MAX <= self.steps.len() {
            self.steps.remove(0);
            self.notes_dropped += 1;
        }
        self.steps.push(step);
    }

    /// Notes a gap; one that goes on from the last of its kind lengthens it.
    pub fn note_gap(&mut self, gap: Gap) {
        let last = self.gaps.iter_mut().rev().find(|last| last.meter == gap.meter);
        if let Some(last) = last
            && (last.to, &last.why, last.rule) == (gap.from, &gap.why, gap.rule)
        {
            last.to = gap.to;
        } else if self.gaps.len() < NOTES_MAX {
            self.gaps.push(gap);
        } else {
            self.notes_dropped += 1;
        }
    }
}

/// Jobs by attempt. Each lies in a place of its own, so that a search goes through a few lines of cache.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Jobs(BTreeMap<Attempt, Box<Job>>);

impl Jobs {
    /// That job.
    #[must_use]
    pub fn get(&self, attempt: &Attempt) -> Option<&Job> {
        self.0.get(attempt).map(AsRef::as_ref)
    }

    /// That job, to be changed.
    pub fn get_mut(&mut self, attempt: &Attempt) -> Option<&mut Job> {
        self.0.get_mut(attempt).map(AsMut::as_mut)
    }

    /// Is it one of these?
    #[must_use]
    pub fn contains_key(&self, attempt: &Attempt) -> bool {
        self.0.contains_key(attempt)
    }

    /// All of them, the oldest attempt first.
    #[must_use]
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &Job> + Clone {
        self.0.values().map(AsRef::as_ref)
    }

    /// Brings what every turn needs of each into the cache. Far apart in memory they come side by side here, but one by one in the turn itself.
    pub fn fetch(&self) {
        let words = self.values().fold(0, |sum: u64, job| sum.wrapping_add(job.a_word_of_each_line()));
        std::hint::black_box(words);
    }

    /// All of them, to be changed.
    pub fn values_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut Job> {
        self.0.values_mut().map(AsMut::as_mut)
    }

    /// Their attempts, in order.
    #[must_use]
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &Attempt> + Clone {
        self.0.keys()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// None at all?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a job.
    pub fn insert(&mut self, attempt: Attempt, job: Job) {
        self.0.insert(attempt, Box::new(job));
    }

    /// Takes a job out.
    pub fn remove(&mut self, attempt: &Attempt) -> Option<Job> {
        self.0.remove(attempt).map(|job| *job)
    }
}
