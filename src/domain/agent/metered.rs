//! What is measured of a job only where its card prices it: block I/O, and what its GPUs do. And what a hook reports of it.
//!
//! Counters are differenced. What could not be read is a gap on the receipt; what is more than any machine can do is rejected.

use std::collections::BTreeSet;

use super::super::fact::{Fact, MeteredRow, Row};
use super::super::id::{Attempt, GpuId, JobName};
use super::super::job::{Gap, GapRule, Job};
use super::super::meter::{DeviceTotals, JobSample, Missing, Reading};
use super::super::money::Credits;
use super::super::rates::Card;
use super::super::rates::charge::{Charge, GPU_MEMORY_BYTES_MAX, GPU_POWER_MW_MAX};
use super::super::terms::{DeviceMark, Marks, Report};
use super::super::time::{Mono, Nanos};
use super::super::usage::{Meter, More};
use super::draft::{Draft, InHand, is_gone};
use super::start::{Novelty, Refusal, Reply};

/// No machine reads and writes more, in bytes a second.
const IO_BYTES_PER_S_MAX: u128 = 1 << 40;
/// Readings are not exactly as far apart as their times say.
const SLACK: Nanos = Nanos::from_secs(1);
/// Most events of one job that are told apart: each is in every checkpoint while the job goes on.
const EVENTS_MAX: usize = 10_000;
/// Most names of counters and events of one job.
const NAMES_MAX: usize = 64;

const GPU_METERS: [Meter; 3] = [Meter::GpuBusy, Meter::GpuMemory, Meter::Energy];

/// One job's new totals in the making.
struct Metering<'j> {
    job: &'j Job,
    card: &'j Card,
    paid_for: bool,
    more: More,
    marks: Marks,
    gaps: Vec<Gap>,
}

impl Draft<'_> {
    /// What is priced and was read, as facts; the jobs whose totals have grown.
    pub(super) fn note_metered(&mut self, samples: &[JobSample]) -> BTreeSet<Attempt> {
        let metered = |card: &Card| card.prices(Meter::IoBytes) || card.prices_any(&GPU_METERS);
        if !self.agent.cards.values().any(metered) {
            return BTreeSet::new();
        }
        let (mut rows, mut gaps) = (Vec::new(), Vec::new());
        for sample in samples {
            let Some(job) = self.agent.jobs.get(&sample.attempt).filter(|job| job.is_live()) else { continue };
            let Some(card) = job.segments.last().and_then(|segment| self.agent.cards.get(&segment.card)).filter(|card| metered(card))
            else {
                continue;
            };
            let more = job.segments.last().and_then(|segment| segment.usage.more.as_deref()).cloned().unwrap_or_default();
            let marks = job.further.as_ref().map(|further| further.marks.clone()).unwrap_or_default();
            let mut metering = Metering { job, card, paid_for: self.is_paid_for(job), more, marks, gaps: Vec::new() };
            metering.io(sample);
            metering.gpus(sample);
            gaps.extend(metering.gaps.drain(..).map(|gap| (sample.attempt, gap)));
            let known = job.further.as_ref().is_some_and(|further| further.marks == metering.marks);
            if !known && metering.marks != Marks::default() {
                let Metering { more, marks, .. } = metering;
                rows.push(MeteredRow { attempt: sample.attempt, more: Box::new(more), marks: Box::new(marks) });
            }
        }
        for (attempt, gap) in gaps {
            self.record(Fact::GapSeen { attempt, gap });
        }
        let grown = rows.iter().map(|row| row.attempt).collect();
        if !rows.is_empty() {
            self.record(Fact::Metered { rows });
        }
        grown
    }

    /// A hook reports a counter or an event.
    pub fn report(&mut self, name: &JobName, report: Report) -> Reply {
        let refuse = |code, message: String, hint| Reply::Refused(Refusal::new(code, message, hint));
        let Some(job) = self.agent.job_named(name.as_str()) else {
            return refuse("unknown_job", format!("no job {name} is known here"), "meterctl jobs lists those that are");
        };
        if !job.is_live() {
            return refuse("job_ended", format!("job {name} has ended, and its receipt is written"), "report before the stop");
        }
        let (meter, what) = match &report {
            Report::Counter { name, .. } => (Meter::Counter, name),
            Report::Event { name, .. } => (Meter::Events, name),
        };
        let card = job.segments.last().and_then(|segment| self.agent.cards.get(&segment.card));
        if !card.is_some_and(|card| card.prices_named(meter, what)) {
            let message = format!("no line of the rate card prices the {meter} {what}");
            return refuse("no_price", message, "add a line with that name; a free one has price \"0\"");
        }
        let events = job.further.as_ref().map(|further| &further.events);
        let names = |more: &More| more.counters.keys().chain(more.events.keys()).collect::<BTreeSet<_>>().len();
        let crowded = job.usage().more.is_some_and(|more| NAMES_MAX <= names(&more) && job.usage().named(meter, what) == 0);
        if crowded || EVENTS_MAX <= events.map_or(0, BTreeSet::len) {
            return refuse("too_many_events", format!("too much was reported of job {name}"), "count them, and report a counter");
        }
        let (attempt, usage) = (job.attempt, job.usage());
        let known = match &report {
            Report::Counter { name, total } => u128::from(*total) <= usage.named(Meter::Counter, name),
            Report::Event { name, id } => events.is_some_and(|events| events.contains(&(name.clone(), id.clone()))),
        };
        if known {
            return Reply::Changed { attempt, novelty: Novelty::Repeated };
        }
        self.record(Fact::Reported { attempt, report, wall: self.now.wall });
        self.reprice([attempt]);
        Reply::Changed { attempt, novelty: Novelty::New }
    }

    /// The price of some jobs' usage as it stands.
    pub(super) fn reprice(&mut self, attempts: impl IntoIterator<Item = Attempt>) {
        let mut in_hand = InHand::default();
        let mut rows = Vec::new();
        for attempt in attempts {
            let Some(job) = self.agent.jobs.get(&attempt).filter(|job| job.is_live()) else { continue };
            let left = in_hand.of(&job.account, || self.in_hand(&job.account));
            rows.extend(self.repriced(job, left));
        }
        if !rows.is_empty() {
            self.record(Fact::Counted { wall: self.now.wall, rows });
        }
        in_hand.accounts().for_each(|account| self.review(&account));
    }

    fn repriced(&self, job: &Job, in_hand: &mut Credits) -> Option<Row> {
        let segment = job.segments.last()?;
        let usage = &segment.usage;
        let now = self.price(job, usage).unwrap_or(Charge { cost: segment.cost, pending: segment.pending, ..Charge::default() });
        let cost = now.cost.max(segment.cost);
        if (cost, now.pending) == (segment.cost, segment.pending) {
            return None;
        }
        let charge = job.charge.plus(cost.minus(segment.cost));
        let draw = charge.minus(job.drawn).minus(job.unfunded).or_zero().min(in_hand.or_zero());
        *in_hand = in_hand.minus(draw);
        Some(Row {
            attempt: job.attempt,
            at: job.counted_to,
            phase: job.phase,
            populated: None,
            cpu_counter_ns: job.cpu_counter_ns,
            memory_level_bytes: job.memory_level_bytes,
            cpu_ns: usage.cpu_ns,
            memory_byte_ns: usage.memory_byte_ns,
            running_ns: usage.wall_ns,
            frozen_ns: usage.frozen_ns,
            cost,
            drawn: job.drawn.plus(draw),
            memory_anon_byte_ns: usage.memory_anon_byte_ns,
            memory_anon: job.memory_anon,
            inner_ns: job.inner_ns,
            paused_ns: usage.paused_ns,
            pending: now.pending,
        })
    }
}

impl Metering<'_> {
    fn gap(&mut self, meter: Meter, from: Mono, to: Mono, why: Missing, rule: GapRule) {
        // What is missing again goes on from there.
        let told = self.job.gaps.iter().rev().find(|gap| gap.meter == meter).map_or(Mono(0), |gap| gap.to);
        let from = from.max(told).max(self.job.opened.mono);
        if from < to {
            self.gaps.push(Gap { meter, from, to, why, rule });
        }
    }

    fn io(&mut self, sample: &JobSample) {
        if !self.card.prices(Meter::IoBytes) {
            return;
        }
        let mark = self.marks.io;
        let from = mark.map_or(self.job.opened.mono, |(_, at)| at);
        let Some(detail) = &sample.detail else {
            if is_gone(sample) {
                self.gap(Meter::IoBytes, from, sample.at, Missing::Vanished, GapRule::Lost);
            }
            return;
        };
        let counter = match &detail.io {
            Reading::Seen(io) => io.read_bytes.saturating_add(io.write_bytes),
            Reading::Missing(why) => {
                let rule = if is_gone(sample) { GapRule::Lost } else { GapRule::CountedLater };
                return self.gap(Meter::IoBytes, from, sample.at, why.clone(), rule);
            }
        };
        self.marks.io = Some((counter, sample.at));
        let Some((before, at)) = mark else { return };
        let most = IO_BYTES_PER_S_MAX * u128::from(sample.at.since(at).0.saturating_add(SLACK.0)) / 1_000_000_000;
        match counter.checked_sub(before).map(u128::from) {
            None => self.gap(Meter::IoBytes, at, sample.at, Missing::Vanished, GapRule::Lost),
            Some(bytes) if most < bytes => self.gap(Meter::IoBytes, at, sample.at, Missing::Implausible, GapRule::NotBilled),
            Some(bytes) => self.more.io_bytes += bytes,
        }
    }

    fn gpus(&mut self, sample: &JobSample) {
        let priced: Vec<Meter> = GPU_METERS.into_iter().filter(|meter| self.card.prices(*meter)).collect();
        let (Some(looked), false) = (&sample.gpus, priced.is_empty()) else { return };
        for held in &self.job.gpus {
            let totals = match &**looked {
                Reading::Seen(all) => all.get(&held.gpu).cloned().ok_or(Missing::NotYet),
                Reading::Missing(why) => Err(why.clone()),
            };
            match totals {
                Ok(totals) => priced.iter().for_each(|meter| self.device(*meter, &held.gpu, &totals)),
                Err(why) => {
                    let from = self.marks.gpus.get(&held.gpu).map_or(self.job.opened.mono, |mark| mark.at);
                    for meter in &priced {
                        let rule = if *meter == Meter::Energy { GapRule::CountedLater } else { GapRule::NotBilled };
                        self.gap(*meter, from, sample.at, why.clone(), rule);
                    }
                    continue;
                }
            }
            if let Reading::Seen(all) = &**looked
                && let Some(totals) = all.get(&held.gpu)
            {
                self.mark(&held.gpu, totals);
            }
        }
    }

    /// A look from before the job was there says nothing of it.
    fn begun(&self) -> Mono {
        self.job.opened.mono
    }

    fn mark(&mut self, gpu: &GpuId, totals: &DeviceTotals) {
        if totals.at < self.begun() {
            return;
        }
        let before = self.marks.gpus.get(gpu);
        let old = before.filter(|mark| mark.since == totals.since);
        let mark = DeviceMark {
            at: totals.at,
            since: totals.since,
            busy_ns: totals.busy_ns.seen().copied().or(old.and_then(|mark| mark.busy_ns)),
            memory_byte_ns: totals.memory_byte_ns.seen().copied().or(old.and_then(|mark| mark.memory_byte_ns)),
            energy_mj: totals.energy_mj.seen().copied().or(before.and_then(|mark| mark.energy_mj)),
        };
        self.marks.gpus.insert(gpu.clone(), mark);
    }

    fn device(&mut self, meter: Meter, gpu: &GpuId, totals: &DeviceTotals) {
        let Some(mark) = self.marks.gpus.get(gpu).cloned() else {
            let missing = match meter {
                Meter::GpuBusy => totals.busy_ns.clone().map(u128::from),
                Meter::GpuMemory => totals.memory_byte_ns.clone(),
                _ => totals.energy_mj.clone().map(u128::from),
            };
            if let Reading::Missing(why) = missing {
                self.gap(meter, self.begun(), totals.at, why, GapRule::NotBilled);
            }
            return;
        };
        if totals.at <= mark.at {
            return; // seen already
        }
        let length = Nanos(totals.at.since(mark.at).0.saturating_add(SLACK.0));
        let counts_on = mark.since == totals.since;
        let wide = |number: Option<u64>| number.map(u128::from);
        let (before, now, most) = match meter {
            Meter::GpuBusy => (wide(mark.busy_ns).filter(|_| counts_on), totals.busy_ns.clone().map(u128::from), u128::from(length.0)),
            Meter::GpuMemory => {
                let most = u128::from(GPU_MEMORY_BYTES_MAX) * u128::from(length.0);
                (mark.memory_byte_ns.filter(|_| counts_on), totals.memory_byte_ns.clone(), most)
            }
            _ => {
                let most = u128::from(GPU_POWER_MW_MAX) * u128::from(length.0) / 1_000_000_000;
                (wide(mark.energy_mj), totals.energy_mj.clone().map(u128::from), most)
            }
        };
        let now = match now {
            Reading::Seen(now) => now,
            Reading::Missing(why) => {
                let rule = if meter == Meter::Energy { GapRule::CountedLater } else { GapRule::NotBilled };
                return self.gap(meter, mark.at, totals.at, why, rule);
            }
        };
        match before.map(|before| now.checked_sub(before)) {
            None if counts_on => {} // the first reading of it
            None => self.gap(meter, mark.at, totals.at, Missing::AgentDown, GapRule::NotBilled),
            Some(None) => self.gap(meter, mark.at, totals.at, Missing::Replaced, GapRule::Lost),
            Some(Some(amount)) if most < amount => self.gap(meter, mark.at, totals.at, Missing::Implausible, GapRule::NotBilled),
            Some(Some(_)) if !self.paid_for => {}
            Some(Some(amount)) => {
                let by_gpu = match meter {
                    Meter::GpuBusy => &mut self.more.gpu_busy_ns,
                    Meter::GpuMemory => &mut self.more.gpu_memory_byte_ns,
                    _ => &mut self.more.energy_mj,
                };
                *by_gpu.entry(gpu.clone()).or_default() += amount;
            }
        }
    }
}
