//! What an account's jobs can still cost: by the second, all at once at the next increment, and at their ends.
//!
//! An increment that is charged at once must be there before it is due: a job that comes near its boundary, and whose account cannot pay
//! for the next step, is stopped before the boundary and not after it.

use super::super::id::{AccountId, Digest};
use super::super::job::Job;
use super::super::money::Credits;
use super::super::rates::charge::{self, Ahead, Outlook, Shape};
use super::super::rates::{Card, Priced};
use super::super::time::{Mono, Nanos};
use super::super::usage::HeldGpu;
use super::{Agent, Settings};

/// A step must be paid for this long before it can come: a freeze takes hold within that.
pub(super) const STEP_GUARD: Nanos = Nanos::from_millis(200);

/// A greatest burn in the making. Jobs of one account share the host; those under an older card are priced by their own, the dearest
/// counts for the host.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Burn {
    host: Credits,
    each: Credits,
}

impl Burn {
    pub(super) fn add(&mut self, job: Burn) {
        self.host = self.host.max(job.host);
        self.each = self.each.plus(job.each);
    }

    pub(super) fn total(self) -> Credits {
        self.host.plus(self.each)
    }
}

/// A charge that may come all at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// At the earliest.
    pub(super) at: Mono,
    pub(super) cost: Credits,
}

/// Which burn is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// What is charged from second to second; increments come beside it, as steps.
    Smooth,
    /// Increments spread over their time.
    Spread,
}

/// Reckons the burn of jobs. Nearly all are alike: they hold no GPU and have the same card, so theirs is reckoned once.
pub(super) struct Burns<'a> {
    agent: &'a Agent,
    settings: &'a Settings,
    kind: Kind,
    now: Mono,
    alike: Option<(Digest, Burn)>,
    /// The next step of each line of the jobs so far; none of the kind that spreads them.
    pub(super) steps: Vec<Step>,
}

impl<'a> Burns<'a> {
    pub(super) fn new(agent: &'a Agent, settings: &'a Settings, kind: Kind, now: Mono) -> Burns<'a> {
        Burns { agent, settings, kind, now, alike: None, steps: Vec::new() }
    }

    pub(super) fn of(&mut self, job: &Job) -> Burn {
        let Some(digest) = job.segments.last().map(|segment| segment.card) else { return Burn::default() };
        if let Some((_, burn)) = self.alike.filter(|(known, _)| *known == digest && job.gpus.is_empty()) {
            return burn;
        }
        let Some(card) = self.agent.cards.get(&digest) else { return Burn::default() };
        if card.has_rules() {
            return self.of_ruled(job, card);
        }
        let each = charge::burn(card, &Shape { cpu_milli: 0, memory_bytes: 0, gpus: &job.gpus });
        let burn = Burn { host: charge::burn(card, &host_shape(self.settings, &job.gpus)).minus(each), each };
        if job.gpus.is_empty() {
            self.alike = Some((digest, burn));
        }
        burn
    }

    /// Of all these together.
    pub(super) fn sum<'j>(&mut self, jobs: impl Iterator<Item = &'j Job>) -> Credits {
        let mut sum = Burn::default();
        jobs.for_each(|job| sum.add(self.of(job)));
        sum.total()
    }

    fn of_ruled(&mut self, job: &Job, card: &Card) -> Burn {
        let (own, host) = (Shape { cpu_milli: 0, memory_bytes: 0, gpus: &job.gpus }, host_shape(self.settings, &job.gpus));
        let last = job.segments.len() - 1;
        let segment = &job.segments[last];
        let stated = job.stated(segment.from); // the open segment has the present terms
        if self.kind == Kind::Spread {
            let each = charge::burn_of(card, &own, &stated);
            return Burn { host: charge::burn_of(card, &host, &stated).minus(each), each };
        }
        let before = job.before(last, card);
        let priced = Priced { usage: &segment.usage, gpus: &job.gpus, before: &before, stated, ended: None };
        let each = charge::outlook(card, &priced, &own, STEP_GUARD).burn;
        let Outlook { burn, ahead } = charge::outlook(card, &priced, &host, STEP_GUARD);
        let from = if job.may_cost() { job.counted_to } else { self.now.max(job.counted_to) };
        self.steps.extend(ahead.into_iter().map(|Ahead { within, cost }| Step { at: from.plus(within), cost }));
        Burn { host: burn.minus(each), each }
    }
}

pub(super) fn host_shape<'a>(settings: &Settings, gpus: &'a [HeldGpu]) -> Shape<'a> {
    Shape { cpu_milli: u64::from(settings.host.cpu_count) * 1_000, memory_bytes: settings.host.memory_bytes, gpus }
}

/// The sum of the steps that may come by then.
pub(super) fn due(steps: &[Step], by: Mono) -> Credits {
    steps.iter().filter(|step| step.at <= by).map(|step| step.cost).sum()
}

impl Agent {
    /// What the account's jobs keep back for their ends.
    #[must_use]
    pub fn pending(&self, account: &AccountId) -> Credits {
        if self.has_rules() { self.jobs_of(account).map(Job::pending).sum() } else { Credits::ZERO }
    }

    /// What the account must have in hand beside what its jobs owe: what is kept back for their ends, and the steps that may come within
    /// that time.
    pub(super) fn kept(&self, account: &AccountId, settings: &Settings, now: Mono, within: Nanos) -> Credits {
        if !self.has_rules() {
            return Credits::ZERO;
        }
        let mut burns = Burns::new(self, settings, Kind::Smooth, now);
        for job in self.jobs_of(account).filter(|job| job.is_live()) {
            burns.of(job);
        }
        self.pending(account).plus(due(&burns.steps, now.plus(within)))
    }

    fn has_rules(&self) -> bool {
        self.cards.values().any(Card::has_rules)
    }
}
