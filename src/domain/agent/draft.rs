//! One turn's facts: each is applied as it is made, so that the next is made from what is then true.
//!
//! Here: what samples say of a job ([`Draft::sampled`]), what the hands did, and how a job ends. Credit is in [`super::credit`],
//! beginnings are in [`super::start`].

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::super::act::{Act, ActOutcome, Acted, Target};
use super::super::batch::ReceiptRow;
use super::super::correction::Correction;
use super::super::detail::Detailed;
use super::super::enforcement::Enforcement;
use super::super::fact::{Fact, Row, Seq};
use super::super::id::{AccountId, Attempt, BootId, Epoch, Uid};
use super::super::job::{Ending, FrozenBy, Gap, GapRule, Job, Phase, Segment, StepEvent};
use super::super::meter::{Frozen, JobSample, Missing, Populated, Reading, TailShare, area};
use super::super::money::Credits;
use super::super::news::News;
use super::super::outcome::{Basis, Outcome};
use super::super::rates::charge::Charge;
use super::super::rates::{Card, Line, Timing};
use super::super::receipt::Receipt;
use super::super::time::{Mono, Nanos, Now};
use super::super::usage::{Meter, Usage};
use super::ending::judge;
use super::{Agent, Settings};

/// Samples further apart than this many intervals leave a gap in the levels.
const LEVEL_GAP_INTERVALS: u64 = 3;

/// How long a job may stand empty before it is taken to have ended, if nobody reports it.
const EMPTY_FOR: Nanos = Nanos::from_secs(10);

/// How long a cgroup that the agent made may wait for its first task.
const FIRST_TASK_WITHIN: Nanos = Nanos::from_secs(30);

/// What this process cannot know for certain of its jobs. Not durable: a new process has its own.
#[derive(Debug, Default)]
pub struct Doubts {
    /// Jobs whose freeze was ordered and may still take hold, and when it was ordered.
    pub freezing: BTreeMap<Attempt, Mono>,
    /// Jobs that were there when this process began, and that it has not looked at yet.
    pub unseen: BTreeSet<Attempt>,
}

/// The facts of one turn in the making.
pub struct Draft<'a> {
    pub(super) agent: &'a mut Agent,
    pub(super) settings: &'a Settings,
    pub(super) now: Now,
    doubts: &'a Doubts,
    facts: Vec<(Seq, Fact)>,
    receipts: Vec<ReceiptRow>,
    /// What jobs inside others have used in the rows being made, by the job around them.
    inner_ns: BTreeMap<Attempt, u64>,
    /// Jobs that have a row though nothing else has changed: their segment ends, or something else that has a price was read.
    pub(super) counted_anyway: BTreeSet<Attempt>,
}

impl<'a> Draft<'a> {
    /// Begins a turn.
    pub fn new(agent: &'a mut Agent, settings: &'a Settings, now: Now, doubts: &'a Doubts) -> Draft<'a> {
        Draft {
            agent,
            settings,
            now,
            doubts,
            facts: Vec::new(),
            receipts: Vec::new(),
            inner_ns: BTreeMap::new(),
            counted_anyway: BTreeSet::new(),
        }
    }

    /// The state as it now is.
    #[must_use]
    pub fn agent(&self) -> &Agent {
        self.agent
    }

    /// The turn's facts so far, in order.
    #[must_use]
    pub fn facts(&self) -> &[(Seq, Fact)] {
        &self.facts
    }

    /// The turn's facts, in order, and the receipts of the jobs that were closed.
    #[must_use]
    pub fn finish(self) -> (Vec<(Seq, Fact)>, Vec<ReceiptRow>) {
        (self.facts, self.receipts)
    }

    pub(super) fn record(&mut self, fact: Fact) {
        self.agent.apply(&fact);
        self.facts.push((self.agent.seq, fact));
    }

    pub(super) fn step(&mut self, attempt: Attempt, event: StepEvent) {
        self.record(Fact::Stepped { attempt, at: self.now.mono, wall: self.now.wall, event });
    }

    /// A new spending life, if the last one was not in this boot. Jobs of another boot ended with it.
    pub fn woke(&mut self, fresh_epoch: Epoch, marked: &BTreeSet<Attempt>) {
        let boot = self.settings.boot;
        if self.agent.epoch.is_some_and(|(_, last)| last == boot) {
            self.own_marked(marked);
            return;
        }
        self.record(Fact::EpochOpened { epoch: fresh_epoch, boot, at: self.now });
        let gone: Vec<(Attempt, BootId)> =
            self.agent.jobs.values().filter(|job| job.is_live()).map(|job| (job.attempt, job.boot)).collect();
        for (attempt, _) in gone.into_iter().filter(|(_, last)| *last != boot) {
            self.note_reboot(attempt);
            self.end(attempt, (Ending { outcome: Outcome::NodeRebooted, exit_code: None }, Basis::Seen), self.now);
        }
    }

    /// The process before this one may have frozen a job and not lived to write that down: then its mark says that the freeze is ours.
    /// Else nobody would ever thaw it.
    fn own_marked(&mut self, marked: &BTreeSet<Attempt>) {
        let ours = |job: &&Job| job.is_live() && job.frozen_by.is_none() && marked.contains(&job.attempt);
        let unwritten: Vec<Attempt> = self.agent.jobs.values().filter(ours).map(|job| job.attempt).collect();
        for attempt in unwritten {
            self.record(Fact::FrozenBySet { attempt, by: Some(FrozenBy::Agent) });
        }
    }

    /// What a job used between its last look and the end of its boot is gone with the kernel that knew.
    fn note_reboot(&mut self, attempt: Attempt) {
        let Some(job) = self.agent.jobs.get(&attempt) else { return };
        let at = job.counted_to;
        for (meter, rule) in
            [(Meter::CpuTime, GapRule::Lost), (Meter::WallTime, GapRule::NotBilled), (Meter::MemoryCharged, GapRule::NotBilled)]
        {
            self.record(Fact::GapSeen { attempt, gap: Gap { meter, from: at, to: at, why: Missing::AgentDown, rule } });
        }
    }

    /// The authority has closed the epoch: a new one, and nothing in hand until it answers.
    pub(super) fn epoch_void(&mut self, fresh_epoch: Epoch) {
        self.record(Fact::EpochOpened { epoch: fresh_epoch, boot: self.settings.boot, at: self.now });
        let accounts: Vec<AccountId> = self.agent.accounts.keys().cloned().collect();
        for account in accounts {
            self.review(&account);
        }
    }

    /// A card has come into force. Refused if it leaves a GPU in use without a price: the last one then goes on.
    ///
    /// # Errors
    /// The job and GPU without a price.
    pub fn card(&mut self, card: &Card, samples: &[JobSample]) -> Result<(), String> {
        if self.agent.card == Some(card.digest) {
            return Ok(());
        }
        if let Some(last) = self.agent.card_in_force().filter(|last| last.name == card.name && card.version <= last.version) {
            return Err(format!("version {} of card {} is not above version {}, which is in force", card.version, card.name, last.version));
        }
        if let (Some(pinned), Some(last)) = (card.predecessor, self.agent.card_in_force())
            && pinned != last.digest
        {
            let Card { name, version, digest, .. } = last;
            return Err(format!(
                "card {} version {} comes in the place of the card with SHA-256 {pinned}, and in force is card {name} version {version} (SHA-256 {digest}): it is stale, or one before it is missing",
                card.name, card.version
            ));
        }
        let live = self.agent.jobs.values().filter(|job| job.is_live());
        let uncovered = |job: &Job| Some((job.name.clone(), card.cover(&job.gpus, &job.stated(self.now.wall)).err()?));
        if let Some((name, why)) = live.into_iter().find_map(uncovered) {
            return Err(format!("job {name} has no price under the card: {why}"));
        }
        self.counted_anyway = self.agent.jobs.keys().copied().collect();
        self.sampled(samples);
        self.record(Fact::CardAdopted { card: Box::new(Card { predecessor: None, ..card.clone() }), at: self.now });
        if card.has_rules() {
            let live: Vec<Attempt> = self.agent.jobs.keys().copied().collect();
            self.reprice(live); // a new segment may cost something from its beginning
        }
        self.note_bids();
        Ok(())
    }

    /// An operator has looked at who is held back.
    pub fn confirm(&mut self, by: Uid) {
        self.record(Fact::RungsConfirmed { by });
        let empty: Vec<AccountId> =
            self.agent.accounts.iter().filter(|(_, account)| account.empty_since.is_some()).map(|(id, _)| id.clone()).collect();
        for id in &empty {
            self.review(id);
        }
    }

    /// The mode of enforcement is set.
    pub fn enforcement(&mut self, mode: Enforcement, by: Uid) {
        if self.agent.enforcement != Some(mode) {
            self.record(Fact::EnforcementSet { mode, by });
        }
    }

    /// Looks at some jobs: what they used since the last look, what that costs, and what follows for their accounts.
    pub fn sampled(&mut self, samples: &[JobSample]) {
        let dated = self.agent.dated(samples, self.now.wall);
        self.counted_anyway.extend(dated.iter().copied());
        let mut rows = Vec::with_capacity(samples.len());
        let mut waived = Vec::new();
        let mut after: Vec<(&JobSample, Phase)> = Vec::new();
        let mut in_hand = InHand::default();
        let samples = self.agent.inner_first(self.known_to_be_gone(samples));
        self.inner_ns.clear();
        let metered = self.note_metered(&samples);
        let mut repriced = metered.clone();
        self.counted_anyway.extend(metered);
        for sample in samples.iter() {
            let Some(job) = self.agent.jobs.get(&sample.attempt).filter(|job| job.is_live()) else { continue };
            after.push((sample, job.phase));
            let hand = in_hand.of(&job.account, || self.in_hand(&job.account));
            if let Some((row, gap)) = self.row(job, sample, sample.at, hand) {
                repriced.remove(&row.attempt);
                self.note_inner(&row);
                rows.push(row);
                waived.extend(gap.map(|gap| (sample.attempt, gap)));
            }
        }
        self.note_gaps(&after);
        for (attempt, gap) in waived {
            self.record(Fact::GapSeen { attempt, gap });
        }
        if !rows.is_empty() {
            self.record(Fact::Counted { wall: self.now.wall, rows });
        }
        self.counted_anyway.clear();
        self.open_dated(dated);
        self.reprice(repriced);
        if self.agent.minds_bids() {
            self.note_bids(); // of a dearer band that a job has reached
        }
        self.note_details(samples.iter());
        for (sample, before) in after {
            self.look_at(sample, before);
        }
        for account in in_hand.accounts() {
            self.review(&account);
        }
    }

    /// What a row counts is not used by the jobs around it: their rows come after it.
    fn note_inner(&mut self, row: &Row) {
        let Some(job) = self.agent.jobs.get(&row.attempt).filter(|job| job.inside.is_some()) else { return };
        let before = job.segments.last().map_or(0, |segment| segment.usage.cpu_ns);
        let used_ns = u64::try_from(row.cpu_ns.saturating_sub(before)).unwrap_or(u64::MAX);
        for outer in self.agent.around(row.attempt) {
            let pending = self.inner_ns.entry(outer).or_default();
            *pending = pending.saturating_add(used_ns);
        }
    }

    /// What is not read each second, where it was read.
    fn note_details<'s>(&mut self, samples: impl Iterator<Item = &'s JobSample>) {
        let live = |(attempt, _): &(Attempt, Detailed)| self.agent.jobs.get(attempt).is_some_and(Job::is_live);
        let detailed = |sample: &JobSample| Some((sample.attempt, Detailed { at: sample.at, detail: (**sample.detail.as_ref()?).clone() }));
        let rows: Vec<(Attempt, Detailed)> = samples.filter_map(detailed).filter(live).collect();
        if !rows.is_empty() {
            self.record(Fact::Detailed { rows });
        }
    }

    /// A Slurm job's cgroup that was there and is not is gone, though the reader, if it is new, only knows that it is not there.
    fn known_to_be_gone<'s>(&self, samples: &'s [JobSample]) -> Cow<'s, [JobSample]> {
        let not_there = |sample: &JobSample| sample.cpu_ns == Reading::Missing(Missing::NotYet);
        if !samples.iter().any(not_there) {
            return Cow::Borrowed(samples);
        }
        let mut samples = samples.to_vec();
        for sample in samples.iter_mut().filter(|sample| not_there(sample)) {
            let awaited = self.agent.jobs.get(&sample.attempt).is_none_or(|job| job.phase == Phase::Awaited);
            if !awaited {
                sample.cpu_ns = Reading::Missing(Missing::Vanished);
            }
        }
        Cow::Owned(samples)
    }

    pub(super) fn in_hand(&self, account: &AccountId) -> Credits {
        self.agent.accounts.get(account).map_or(Credits::ZERO, |account| account.grant.in_hand(self.now.boot))
    }

    /// One job's new totals, and what of its time was waived. `None` if nothing has changed that is worth writing down.
    fn row(&self, job: &Job, sample: &JobSample, at: Mono, in_hand: &mut Credits) -> Option<(Row, Option<Gap>)> {
        let segment = job.segments.last()?;
        let populated =
            if is_gone(sample) { Some(Populated::No) } else { sample.populated.seen().copied().filter(|_| !is_unread(job, sample)) };
        let counter = counter(job, sample);
        if job.phase == Phase::Awaited && counter.is_none() {
            return None;
        }
        let phase = match sample.frozen.seen() {
            Some(Frozen::Yes) => Phase::Frozen,
            Some(Frozen::No) => Phase::Running,
            None => running_if_awaited(job.phase),
        };
        // A sum that fell (a part of the job went while the agent was down) is a new baseline; its old part is not billed twice.
        let counter_delta = counter.map_or(0, |now| now.saturating_sub(job.cpu_counter_ns.unwrap_or(0)));
        let still_empty = job.emptied.is_some() && populated != Some(Populated::Yes);
        let empties = match populated {
            Some(Populated::No) => job.emptied.is_none(),
            Some(Populated::Yes) => job.emptied.is_some(),
            None => false,
        };
        let still_frozen = job.phase == Phase::Frozen && phase == Phase::Frozen && !empties && !self.is_paid_for(job);
        let stands_free = || still_frozen && !self.agent.cards.get(&segment.card).is_some_and(Card::prices_stillness);
        let anyway = self.counted_anyway.contains(&job.attempt);
        if counter_delta == 0 && !anyway && ((still_empty && phase == job.phase) || stands_free()) {
            return None;
        }
        let mut usage = segment.usage.clone();
        let inner_ns = job.inner_ns.saturating_add(self.inner_ns.get(&job.attempt).copied().unwrap_or(0));
        usage.cpu_ns += u128::from(counter_delta.saturating_sub(inner_ns));
        let level = sample.memory_bytes.seen().copied();
        let untimed = usage.clone();
        if !still_empty && !self.is_unknown(job, sample) {
            self.add_time(&mut usage, job, sample, at);
        }
        let before = Charge { cost: segment.cost, pending: segment.pending, ..Charge::default() };
        let charge_of = |usage: &Usage| self.price(job, usage).unwrap_or(before);
        let mut anon = self.anon(job, sample, usage.wall_ns.saturating_sub(segment.usage.wall_ns));
        usage.memory_anon_byte_ns += anon.byte_ns;
        let mut now = charge_of(&usage);
        // A job that had no task and goes on is charged for the time between, unless nobody can pay for that any more: it was not looked
        // at as one that runs, so it must not run up a debt.
        let goes_on = job.emptied.is_some() && populated == Some(Populated::Yes);
        let mut waived = None;
        if goes_on && in_hand.or_zero() < job.owed().plus(now.cost.minus(segment.cost)) {
            anon = self.anon(job, sample, 0);
            usage = untimed;
            usage.memory_anon_byte_ns += anon.byte_ns;
            now = charge_of(&usage);
            let (meter, why, rule) = (Meter::WallTime, Missing::NoTask, GapRule::NotBilled);
            waived = Some(Gap { meter, from: job.counted_to, to: at.max(job.counted_to), why, rule });
        }
        let cost = now.cost.max(segment.cost);
        let charge = job.charge.plus(cost.minus(segment.cost));
        let draw = charge.minus(job.drawn).minus(job.unfunded).or_zero().min(in_hand.or_zero());
        *in_hand = in_hand.minus(draw);
        let row = Row {
            attempt: job.attempt,
            at: at.max(job.counted_to),
            phase,
            populated,
            cpu_counter_ns: counter.or(job.cpu_counter_ns),
            memory_level_bytes: level,
            cpu_ns: usage.cpu_ns,
            memory_byte_ns: usage.memory_byte_ns,
            running_ns: usage.wall_ns,
            frozen_ns: usage.frozen_ns,
            cost,
            drawn: job.drawn.plus(draw),
            memory_anon_byte_ns: usage.memory_anon_byte_ns,
            memory_anon: anon.mark,
            inner_ns: inner_ns.saturating_sub(counter_delta),
            paused_ns: usage.paused_ns,
            pending: now.pending,
        };
        Some((row, waived))
    }

    /// Is its time charged? What it holds is, until the agent itself stops it: not for as long as the agent wants it to stand still. A job
    /// that another froze, its own user maybe, has its memory, its GPUs and its place all the same.
    pub(super) fn is_paid_for(&self, job: &Job) -> bool {
        let free = || self.agent.restraint(job.attempt, self.settings, self.now) == super::restraint::Restraint::Free;
        job.may_cost() && (job.phase == Phase::Running || free())
    }

    /// The time since the last look goes to running or to frozen, by what the job then was; memory only while it is paid for.
    fn add_time(&self, usage: &mut Usage, job: &Job, sample: &JobSample, at: Mono) {
        let length = at.since(job.counted_to);
        match job.phase {
            _ if job.phase == Phase::Running || self.is_paid_for(job) => {
                usage.wall_ns += u128::from(length.0);
                usage.paused_ns += if job.phase == Phase::Frozen { u128::from(length.0) } else { 0 };
                usage.gpu_held_ns.values_mut().for_each(|held| *held += u128::from(length.0));
                usage.memory_byte_ns += self.memory(job, sample, length).unwrap_or(0);
            }
            Phase::Frozen => usage.frozen_ns += u128::from(length.0),
            Phase::Running | Phase::Awaited | Phase::Ended => {}
        }
    }

    /// The job's state changed at an unknown instant of a long time in which nobody looked: then nobody knows for how long it ran.
    fn is_unknown(&self, job: &Job, sample: &JobSample) -> bool {
        let empty = is_gone(sample) || sample.populated.seen() == Some(&Populated::No);
        let frozen = sample.frozen.seen() == Some(&Frozen::Yes);
        let unseen = self.doubts.unseen.contains(&job.attempt);
        // While a job stands still nothing is written, however often it is looked at: that is no silence.
        let thawed = (empty || sample.frozen.seen() == Some(&Frozen::No)) && unseen;
        let silent = self.level_gap() < sample.at.since(job.counted_to);
        match job.phase {
            // Since the last process ended even a short time is unknown: it may have stood still for all of it.
            Phase::Running => (empty || frozen) && job.emptied.is_none() && (silent || unseen),
            Phase::Frozen => thawed && job.emptied.is_none() && silent,
            Phase::Awaited | Phase::Ended => false,
        }
    }

    /// The memory of a running job over the time since its last look, in byte-nanoseconds; or why nobody knows it.
    fn memory(&self, job: &Job, sample: &JobSample, length: Nanos) -> Result<u128, Missing> {
        let ended = is_gone(sample) || sample.populated.seen() == Some(&Populated::No);
        if self.level_gap() < length {
            return Err(Missing::AgentDown);
        }
        match (job.memory_level_bytes, &sample.memory_bytes) {
            (Some(before), Reading::Seen(now)) => Ok(area(before, Some(*now), length)),
            (Some(before), Reading::Missing(_)) if ended => Ok(area(before, None, length)),
            (_, Reading::Missing(why)) => Err(why.clone()),
            (None, Reading::Seen(_)) => {
                let last = job.gaps.iter().rev().find(|gap| gap.meter == Meter::MemoryCharged);
                Err(last.map_or(Missing::NotYet, |gap| gap.why.clone()))
            }
        }
    }

    pub(super) fn level_gap(&self) -> Nanos {
        Nanos(self.settings.interval.0.saturating_mul(LEVEL_GAP_INTERVALS))
    }

    pub(super) fn price(&self, job: &Job, usage: &Usage) -> Option<Charge> {
        let card = self.agent.cards.get(&job.segments.last()?.card)?;
        job.charge(job.segments.len() - 1, usage, card, None).ok()
    }

    /// What its lines kept back for its end is due, by its outcome.
    fn charge_at_end(&mut self, attempt: Attempt) {
        let Some(job) = self.agent.jobs.get(&attempt) else { return };
        let settles = |line: &Line| line.rules.as_ref().is_some_and(|rules| rules.timing == Timing::SettleAtEnd);
        let ended = job.ending.map(|ending| ending.outcome);
        let cost = |(nth, segment): (usize, &Segment)| {
            let card = self.agent.cards.get(&segment.card)?;
            let charge = card.lines.iter().any(settles).then(|| job.charge(nth, &segment.usage, card, ended).ok());
            Some(charge.map_or(segment.cost, |charge| charge.map_or(segment.cost, |charge| charge.cost.max(segment.cost))))
        };
        let costs: Vec<Credits> = job.segments.iter().enumerate().map(|each| cost(each).unwrap_or(each.1.cost)).collect();
        let charge: Credits = costs.iter().copied().sum();
        if charge == job.charge && job.pending().is_zero() {
            return;
        }
        let owed = charge.minus(job.drawn).minus(job.unfunded).or_zero();
        let drawn = job.drawn.plus(owed.min(self.in_hand(&job.account).or_zero()));
        self.record(Fact::ChargedAtEnd { attempt, costs, drawn });
    }

    /// What could not be read, before the new totals are applied (they move `counted_to`).
    fn note_gaps(&mut self, samples: &[(&JobSample, Phase)]) {
        let mut gaps = Vec::new();
        for (sample, _) in samples {
            let Some(job) = self.agent.jobs.get(&sample.attempt) else { continue };
            let stretch = |meter, why, rule| Gap { meter, from: job.counted_to, to: sample.at, why, rule };
            if job.phase == Phase::Awaited {
                // Nobody knows when its cgroup came. Within a few looks that is nothing to speak of.
                let came = sample.cpu_ns.seen().is_some() || is_gone(sample);
                if came && self.level_gap() < sample.at.since(job.counted_to) {
                    gaps.push((job.attempt, stretch(Meter::WallTime, Missing::NotYet, GapRule::NotBilled)));
                }
                if !is_gone(sample) {
                    continue;
                }
            }
            // One that was empty may have run once more before it vanished.
            let told =
                job.gaps.iter().any(|gap| gap.meter == Meter::CpuTime && gap.from == job.counted_to && gap.rule != GapRule::CountedLater);
            let unseen = job.emptied.is_none() || (!told && sample.tail.is_none_or(|tail| 0 < tail.cpu_ns));
            if let (Reading::Missing(why), true, true) = (&sample.cpu_ns, unseen, is_gone(sample)) {
                gaps.push((job.attempt, stretch(Meter::CpuTime, why.clone(), tail_rule(sample))));
            }
            if let (Reading::Seen(now), Some(before)) = (&sample.cpu_ns, job.cpu_counter_ns)
                && *now < before
            {
                gaps.push((job.attempt, stretch(Meter::CpuTime, Missing::Vanished, GapRule::Lost)));
            }
            if let (Reading::Missing(why), true) = (&sample.cpu_ns, is_unread(job, sample)) {
                gaps.push((job.attempt, stretch(Meter::CpuTime, why.clone(), GapRule::CountedLater)));
            }
            if self.is_unknown(job, sample) {
                gaps.push((job.attempt, stretch(Meter::WallTime, Missing::AgentDown, GapRule::NotBilled)));
            }
            if self.is_paid_for(job)
                && let Err(why) = self.memory(job, sample, sample.at.since(job.counted_to))
            {
                gaps.push((job.attempt, stretch(Meter::MemoryCharged, why, GapRule::NotBilled)));
            }
            if let Some(why) = self.anon_missing(job, sample) {
                gaps.push((job.attempt, stretch(Meter::MemoryAnon, why, GapRule::NotBilled)));
            }
        }
        for (attempt, gap) in gaps {
            self.record(Fact::GapSeen { attempt, gap });
        }
    }

    /// What a look says beside the numbers: frozen by somebody else, thawed by somebody else, empty, vanished.
    fn look_at(&mut self, sample: &JobSample, before: Phase) {
        let Some(job) = self.agent.jobs.get(&sample.attempt) else { return };
        let attempt = job.attempt;
        match (sample.frozen.seen(), job.frozen_by) {
            // Ours, if a freeze was ordered: its report is to come.
            (Some(Frozen::Yes), None) if !self.doubts.freezing.contains_key(&attempt) => {
                self.record(Fact::FrozenBySet { attempt, by: Some(FrozenBy::Other) });
                self.step(attempt, StepEvent::FrozenByOther);
            }
            (Some(Frozen::No), Some(FrozenBy::Other)) => self.record(Fact::FrozenBySet { attempt, by: None }),
            (Some(Frozen::No), Some(FrozenBy::Agent)) => {
                let wanted = self.agent.restraint(attempt, self.settings, self.now) == super::restraint::Restraint::Frozen;
                // One that has not taken hold yet is still ours once it does.
                if !self.doubts.freezing.contains_key(&attempt) {
                    self.record(Fact::FrozenBySet { attempt, by: None });
                }
                if before == Phase::Frozen && wanted {
                    self.step(attempt, StepEvent::FoundThawed);
                }
            }
            _ => {}
        }
        self.end_if_over(sample);
    }

    fn end_if_over(&mut self, sample: &JobSample) {
        let gone = is_gone(sample);
        if !gone && sample.populated.seen() != Some(&Populated::No) {
            let reported = self.agent.jobs.get(&sample.attempt).and_then(|job| job.reported);
            if let Some(stated) = reported.filter(|_| sample.cpu_ns == Reading::Missing(Missing::NotYet)) {
                self.end_if_never_seen(sample.attempt, stated);
            }
            return;
        }
        let Some(job) = self.agent.jobs.get(&sample.attempt).filter(|job| job.is_live()) else { return };
        if is_unread(job, sample) {
            return;
        }
        // Whoever started the job reports its end, and how, a moment after its last task. One that never had a task is over when its
        // place has gone; but a cgroup that a hook named before it put tasks into it is not over because it is empty.
        let over = job.reported.is_some()
            || match (&job.target, job.emptied) {
                (_, Some((since, _))) => EMPTY_FOR <= self.now.mono.since(since),
                (Target::OwnCgroups(_), None) => gone || FIRST_TASK_WITHIN < self.now.mono.since(job.opened.mono),
                (Target::Processes(_), None) => true,
                (Target::Cgroups(_) | Target::SlurmJob(_), None) => gone,
            };
        let settled = gone || job.counter_final_at().is_none_or(|at| at <= sample.at);
        if over && settled {
            let at = job.emptied.map_or(self.now, |(mono, wall)| Now { mono, boot: self.now.boot, wall });
            let judged = judge(job, if gone { Outcome::Vanished } else { Outcome::Unknown }, at.mono);
            if job.reported.is_none() && judged.0.outcome != Outcome::OutOfCredit {
                let replaced = sample.cpu_ns == Reading::Missing(Missing::Replaced);
                let correction = if replaced { Correction::CgroupReplaced } else { Correction::MissedStop };
                self.step(sample.attempt, StepEvent::Corrected(correction));
            }
            self.end(sample.attempt, judged, at);
        }
    }

    /// The authority tells people of an account.
    pub fn told(&mut self, account: AccountId, news: News) {
        self.record(Fact::AccountTold { account, news, wall: self.now.wall });
    }

    /// The cgroups of jobs were compared with what is metered: `unmetered` have tasks and no job.
    pub fn surveyed(&mut self, unmetered: &BTreeSet<String>) {
        let wall = self.now.wall;
        let over: Vec<String> = self.agent.unmetered.keys().filter(|place| !unmetered.contains(*place)).cloned().collect();
        let new: Vec<String> = unmetered.iter().filter(|place| !self.agent.unmetered.contains_key(*place)).cloned().collect();
        for place in over {
            self.record(Fact::Corrected { correction: Correction::MissedStartOver { place }, wall });
        }
        for place in new {
            self.record(Fact::Corrected { correction: Correction::MissedStart { place }, wall });
        }
    }

    /// A job is over. What it holds goes back as soon as it owes nothing.
    pub(super) fn end(&mut self, attempt: Attempt, (ending, basis): (Ending, Basis), at: Now) {
        self.record(Fact::JobEnded { attempt, at, ending, basis });
        self.charge_at_end(attempt);
        self.refund_at_end(attempt);
        self.close_if_settled(attempt);
    }

    pub(super) fn close_if_settled(&mut self, attempt: Attempt) {
        let done = |job: &Job| job.ended.is_some() && job.owed().is_zero();
        let Some(job) = self.agent.jobs.get(&attempt).filter(|job| done(job)) else { return };
        let account = job.account.clone();
        self.record(Fact::JobClosed { attempt });
        self.write_receipt(attempt);
        self.give_back(&account);
    }

    /// Written at once: a later close may push this job out of those at hand.
    fn write_receipt(&mut self, attempt: Attempt) {
        let Some(job) = self.agent.closed.iter().rev().find(|job| job.attempt == attempt) else { return };
        self.receipts.push(ReceiptRow {
            attempt,
            job: job.name.clone(),
            ended: job.ended.unwrap_or(self.now).wall,
            json: Receipt::of(job, self.agent, self.settings).to_json(),
        });
    }

    /// The hands have done something, to each job one thing; each sample is the job, looked at afterwards.
    pub fn acted(&mut self, all: &[(Acted, Option<JobSample>)]) {
        let mut samples = Vec::with_capacity(all.len());
        for (acted, sample) in all {
            let known = self.agent.jobs.get(&acted.attempt).is_some_and(Job::is_live);
            samples.extend(sample.iter().filter(|_| known).map(|sample| after(acted, sample)));
            self.record(Fact::HandsActed { acted: acted.clone(), wall: self.now.wall });
        }
        if !samples.is_empty() {
            self.sampled(&samples);
        }
    }
}

/// The time until the last task stood still was run, the rest was not.
fn after(acted: &Acted, sample: &JobSample) -> JobSample {
    let frozen = match acted.act {
        Act::Freeze => Frozen::Yes,
        Act::Thaw => Frozen::No,
        _ => return sample.clone(),
    };
    match acted.outcome {
        ActOutcome::Confirmed => JobSample { at: acted.done_at, frozen: Reading::Seen(frozen), ..sample.clone() },
        _ => sample.clone(),
    }
}

/// What is left in hand of each account while rows are made. Rows of one account mostly follow one another: then nothing is searched.
#[derive(Default)]
pub(super) struct InHand {
    places: BTreeMap<AccountId, usize>,
    left: Vec<(AccountId, Credits)>,
    last: usize,
}

impl InHand {
    pub(super) fn accounts(self) -> impl Iterator<Item = AccountId> {
        self.places.into_keys()
    }

    pub(super) fn of(&mut self, account: &AccountId, at_first: impl FnOnce() -> Credits) -> &mut Credits {
        if self.left.get(self.last).is_none_or(|(last, _)| last != account) {
            self.last = self.places.get(account).copied().unwrap_or(self.left.len());
            if self.last == self.left.len() {
                self.places.insert(account.clone(), self.last);
                self.left.push((account.clone(), at_first()));
            }
        }
        &mut self.left[self.last].1
    }
}

/// The CPU counter that a look gives: its reading, or for a vanished job its last one and the tail that its parent tells.
fn counter(job: &Job, sample: &JobSample) -> Option<u64> {
    let before = job.cpu_counter_ns.unwrap_or(0);
    match &sample.cpu_ns {
        Reading::Seen(now) => Some(*now),
        Reading::Missing(Missing::Vanished) => sample.tail.map(|tail| before.saturating_add(tail.cpu_ns)),
        Reading::Missing(_) => None,
    }
}

/// Its CPU time cannot be read just now. It is over only once the last of that is known, or lost.
fn is_unread(job: &Job, sample: &JobSample) -> bool {
    !is_gone(sample) && sample.cpu_ns.seen().is_none() && job.cpu_counter_ns.is_some()
}

/// Does the look show another state than the last one: frozen, running, without a task, gone?
pub(in crate::domain) fn is_news(job: &Job, sample: &JobSample) -> bool {
    let frozen = sample.frozen.seen().is_some_and(|frozen| (*frozen == Frozen::Yes) != (job.phase == Phase::Frozen));
    let populated = sample.populated.seen().is_some_and(|populated| (*populated == Populated::No) != job.emptied.is_some());
    frozen || populated || is_gone(sample)
}

/// Its cgroup or process is not there any more.
pub(super) fn is_gone(sample: &JobSample) -> bool {
    matches!(sample.cpu_ns, Reading::Missing(Missing::Vanished | Missing::Replaced))
}

fn tail_rule(sample: &JobSample) -> GapRule {
    match sample.tail.map(|tail| tail.share) {
        Some(TailShare::Exact) => GapRule::FromParent,
        Some(TailShare::Split) => GapRule::FromParentSplit,
        None => GapRule::Lost,
    }
}

fn running_if_awaited(phase: Phase) -> Phase {
    if phase == Phase::Awaited { Phase::Running } else { phase }
}
