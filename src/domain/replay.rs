//! The facts once more: what each job used, segment by segment, and what the card makes of it.
//!
//! [`Replay`] follows the facts as [`super::agent::Agent`] does, but keeps of each job only what its price depends on. Prices are
//! computed by the same code as in the running agent ([`super::rates::charge`]): there is no second arithmetic.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use super::fact::{Fact, Opened, Row};
use super::id::{AccountId, Attempt, Digest, Epoch, JobName, LineId};
use super::job::{self, Gap, GapRule, Job, Segment};
use super::money::Credits;
use super::outcome::Outcome;
use super::rates::charge::{self, Charge, RateError};
use super::rates::{Card, Earlier, Priced};
use super::receipt::{self, Discrepancy, Receipt, ReceiptSegment};
use super::refund::{self, Refund};
use super::terms::Terms;
use super::time::{Now, Wall};
use super::usage::{Meter, Usage};

/// Of one attempt, what its price depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    /// The agent's number for it.
    pub attempt: Attempt,
    /// What it is called.
    pub name: JobName,
    /// Who pays.
    pub account: AccountId,
    /// What it is given now.
    pub terms: Terms,
    /// One for each rate card that it ran under and each time that its terms changed, with its price as written down.
    pub segments: Vec<Segment>,
    /// The events that were reported for it: their names and ids.
    pub events: BTreeSet<(LineId, LineId)>,
    /// The most that its starter would pay for the start, where that was said.
    pub bid: Option<Credits>,
    /// How it ended; none while it goes on.
    pub outcome: Option<Outcome>,
    /// Out of grants, as written down.
    pub drawn: Credits,
    /// Written off, as written down.
    pub unfunded: Credits,
    /// Given back by its outcome, as written down.
    pub refund: Option<Box<Refund>>,
    /// Meters of which nobody knows a part: what it used of them is at least what stands here.
    pub unknown: BTreeSet<Meter>,
}

/// Cards and jobs, as far as the facts have been followed.
#[derive(Clone, Debug, Default)]
pub struct Replay {
    cards: BTreeMap<Digest, Arc<Card>>,
    in_force: Option<Digest>,
    jobs: BTreeMap<Attempt, Followed>,
    epoch: Option<Epoch>,
}

impl Followed {
    fn opened(opened: &Opened) -> Followed {
        let usage = Usage { job_starts: 1, ..job::empty_usage(&opened.gpus) };
        let terms = Terms {
            gpus: opened.gpus.clone(),
            cpus: opened.cpus,
            memory_bytes: opened.memory_bytes,
            storage_bytes: None,
            traits: opened.traits.clone(),
        };
        Followed {
            attempt: opened.attempt,
            name: opened.name.clone(),
            account: opened.account.clone(),
            terms,
            events: BTreeSet::new(),
            bid: None,
            segments: vec![segment(
                opened.card,
                opened.at,
                usage,
                Charge { cost: opened.charge, pending: opened.pending, ..Charge::default() },
            )],
            outcome: None,
            drawn: opened.drawn,
            unfunded: Credits::ZERO,
            refund: None,
            unknown: BTreeSet::new(),
        }
    }

    /// The same of a job whose beginning is not among the facts.
    #[must_use]
    pub fn of(job: &Job) -> Followed {
        Followed {
            attempt: job.attempt,
            name: job.name.clone(),
            account: job.account.clone(),
            terms: job.terms(),
            events: job.further.as_ref().map(|further| further.events.clone()).unwrap_or_default(),
            bid: job.bid(),
            segments: job.segments.clone(),
            outcome: job.ending.map(|ending| ending.outcome),
            drawn: job.drawn,
            unfunded: job.unfunded,
            refund: job.refund.clone(),
            unknown: unknown(&job.gaps),
        }
    }

    /// The same from a receipt.
    ///
    /// # Errors
    /// What in it cannot be read.
    pub fn of_receipt(receipt: &Receipt) -> Result<Followed, Discrepancy> {
        if receipt.receipt != receipt::VERSION {
            return Err(Discrepancy::Version(receipt.receipt));
        }
        let read = |(nth, of): (usize, &ReceiptSegment)| {
            let usage = receipt::segment_usage(nth + 1, of)?;
            let wall = |field, text: &str| {
                receipt::instant(text).ok_or_else(|| Discrepancy::Quantity { segment: nth + 1, field, text: text.to_owned() })
            };
            let pending = of.lines.iter().map(|line| line.pending).sum();
            let terms = Some(Box::new(receipt::segment_terms(receipt, of)));
            Ok(Segment {
                card: of.card_digest,
                from: wall("from", &of.from)?,
                to: wall("to", &of.to)?,
                usage,
                cost: of.cost,
                pending,
                terms,
            })
        };
        Ok(Followed {
            attempt: receipt.attempt,
            name: receipt.job.clone(),
            account: receipt.account.clone(),
            terms: receipt.segments.last().map(|of| receipt::segment_terms(receipt, of)).unwrap_or_default(),
            events: BTreeSet::new(),
            bid: receipt.offer.map(|offer| offer.bid),
            segments: receipt.segments.iter().enumerate().map(read).collect::<Result<_, _>>()?,
            outcome: receipt.outcome,
            drawn: receipt.drawn,
            unfunded: receipt.unfunded,
            refund: receipt::refund_of(receipt),
            unknown: unknown(&receipt.gaps),
        })
    }

    /// What its lines keep back for its end, as written down.
    #[must_use]
    pub fn pending(&self) -> Credits {
        self.segments.iter().map(|segment| segment.pending).sum()
    }

    /// Its price, as written down.
    #[must_use]
    pub fn charge(&self) -> Credits {
        self.segments.iter().map(|segment| segment.cost).sum()
    }

    /// By what its outcome reduces that.
    #[must_use]
    pub fn reduced(&self) -> Credits {
        self.refund.as_ref().map_or(Credits::ZERO, |refund| refund.reduced(self.charge()))
    }

    /// What of its charge was owed and need not be paid.
    #[must_use]
    pub fn waived(&self) -> Credits {
        self.refund.as_ref().map_or(Credits::ZERO, |refund| refund.waived)
    }

    /// All that it used, over its segments.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.segments.iter().fold(Usage::default(), |sum, segment| sum.plus(&segment.usage))
    }

    /// What it was given in a segment.
    fn terms_of<'a>(&'a self, segment: &'a Segment) -> &'a Terms {
        segment.terms.as_deref().unwrap_or(&self.terms)
    }

    fn counts<'a>(&'a self, segment: &'a Segment) -> Earlier<'a> {
        let terms = self.terms_of(segment);
        Earlier { usage: &segment.usage, gpus: &terms.gpus, stated: terms.stated(segment.from, &self.account, self.bid) }
    }

    /// What one segment's usage costs under its card.
    ///
    /// # Errors
    /// An amount past 128 bits, or something that has no price.
    pub fn price(&self, nth: usize, card: &Card, ended: Option<Outcome>) -> Result<Charge, RateError> {
        let Some(segment) = self.segments.get(nth) else { return Ok(Charge::default()) };
        let earlier = if card.has_rules() { &self.segments[..nth] } else { &[] };
        let before: Vec<Earlier<'_>> = earlier.iter().map(|segment| self.counts(segment)).collect();
        let Earlier { usage, gpus, stated } = self.counts(segment);
        charge::charge(card, &Priced { usage, gpus, before: &before, stated, ended })
    }

    /// From now on it is given this, in a new segment.
    fn change(&mut self, terms: &Terms, at: Wall) {
        job::keep_terms(&mut self.segments, &self.terms);
        self.terms = terms.clone();
        self.split(at);
    }

    fn split(&mut self, at: Wall) {
        if let Some(card) = self.segments.last().map(|segment| segment.card) {
            job::open_segment(&mut self.segments, &self.terms.gpus, card, at);
        }
    }

    fn count(&mut self, row: &Row, wall: Wall) {
        self.drawn = row.drawn;
        let Some(segment) = self.segments.last_mut() else { return };
        (segment.to, segment.cost, segment.pending) = (wall, row.cost, row.pending);
        let usage = &mut segment.usage;
        usage.cpu_ns = row.cpu_ns;
        usage.memory_byte_ns = row.memory_byte_ns;
        usage.wall_ns = row.running_ns;
        usage.frozen_ns = row.frozen_ns;
        usage.paused_ns = row.paused_ns;
        usage.memory_anon_byte_ns = row.memory_anon_byte_ns;
        usage.gpu_held_ns.values_mut().for_each(|held| *held = row.running_ns);
    }
}

/// Of which meters is a part lost for good?
fn unknown(gaps: &[Gap]) -> BTreeSet<Meter> {
    gaps.iter().filter(|gap| matches!(gap.rule, GapRule::NotBilled | GapRule::Lost)).map(|gap| gap.meter).collect()
}

fn segment(card: Digest, at: Now, usage: Usage, charge: Charge) -> Segment {
    Segment { card, from: at.wall, to: at.wall, usage, cost: charge.cost, pending: charge.pending, terms: None }
}

impl Replay {
    /// The card of that text, if it came by.
    #[must_use]
    pub fn card(&self, digest: &Digest) -> Option<&Card> {
        self.cards.get(digest).map(AsRef::as_ref)
    }

    /// The jobs that are not closed.
    pub fn jobs(&self) -> impl Iterator<Item = &Followed> {
        self.jobs.values()
    }

    /// That job, if it is not closed and its beginning is known.
    #[must_use]
    pub fn job(&self, attempt: Attempt) -> Option<&Followed> {
        self.jobs.get(&attempt)
    }

    /// Jobs and cards of a checkpoint at this place, where their beginnings are not among the facts.
    pub fn adopt<'a>(
        &mut self,
        jobs: impl Iterator<Item = &'a Job>,
        cards: impl Iterator<Item = &'a Card>,
        in_force: Option<Digest>,
        epoch: Option<Epoch>,
    ) {
        self.epoch = self.epoch.or(epoch);
        for card in cards {
            self.cards.entry(card.digest).or_insert_with(|| Arc::new(card.clone()));
        }
        self.in_force = self.in_force.or(in_force);
        for job in jobs {
            self.jobs.entry(job.attempt).or_insert_with(|| Followed::of(job));
        }
    }

    /// Takes one fact; the job that it closes comes back, all told.
    pub fn take(&mut self, fact: &Fact) -> Option<Followed> {
        match fact {
            Fact::CardAdopted { card, at } => self.adopt_card(card, *at),
            Fact::JobOpened(opened) => drop(self.jobs.insert(opened.attempt, Followed::opened(opened))),
            Fact::Counted { wall, rows } => {
                for row in rows {
                    self.count(row, *wall);
                }
            }
            Fact::Settled { rows } => {
                for row in rows {
                    if let Some(job) = self.jobs.get_mut(&row.attempt) {
                        (job.drawn, job.unfunded) = (row.drawn, row.unfunded);
                    }
                }
            }
            Fact::JobEnded { attempt, ending, .. } => {
                if let Some(job) = self.jobs.get_mut(attempt) {
                    job.outcome = Some(ending.outcome);
                }
            }
            Fact::ChargedAtEnd { attempt, costs, drawn } => {
                if let Some(job) = self.jobs.get_mut(attempt) {
                    job.drawn = *drawn;
                    job.segments.iter_mut().zip(costs).for_each(|(segment, cost)| (segment.cost, segment.pending) = (*cost, Credits::ZERO));
                }
            }
            Fact::GapSeen { attempt, gap } => {
                if let Some(job) = self.jobs.get_mut(attempt) {
                    job.unknown.append(&mut unknown(std::slice::from_ref(gap)));
                }
            }
            Fact::JobStated { attempt, storage_bytes, offer } => {
                if let Some(job) = self.jobs.get_mut(attempt) {
                    job.bid = offer.map(|offer| offer.bid);
                    job.terms.storage_bytes = *storage_bytes;
                }
            }
            Fact::JobChanged { attempt, terms, at, by: _ } => {
                if let Some(job) = self.jobs.get_mut(attempt) {
                    job.change(terms, at.wall);
                }
            }
            Fact::SegmentsOpened { attempts, at } => {
                for attempt in attempts {
                    if let Some(job) = self.jobs.get_mut(attempt) {
                        job.split(at.wall);
                    }
                }
            }
            Fact::Metered { rows } => {
                for row in rows {
                    if let Some(segment) = self.jobs.get_mut(&row.attempt).and_then(|job| job.segments.last_mut()) {
                        segment.usage.more = Some(row.more.clone());
                    }
                }
            }
            Fact::Reported { attempt, report, wall: _ } => {
                if let Some(job) = self.jobs.get_mut(attempt) {
                    job::take_report(&mut job.segments, &mut job.events, report);
                }
            }
            Fact::EpochOpened { epoch, .. } => self.open_epoch(*epoch),
            Fact::Refunded { attempt, segments, waived, given } => {
                if let Some(job) = self.jobs.get_mut(attempt) {
                    let refund = job.refund.get_or_insert_default();
                    (refund.segments, refund.waived, refund.given) = (segments.clone(), *waived, given.clone());
                }
            }
            Fact::JobClosed { attempt } => return self.jobs.remove(attempt),
            _ => {}
        }
        None
    }

    /// Takes one job's new totals; the job and its card, if they are known.
    pub fn count(&mut self, row: &Row, wall: Wall) -> Option<(&Followed, Option<&Card>)> {
        let job = self.jobs.get_mut(&row.attempt)?;
        job.count(row, wall);
        let card = job.segments.last().and_then(|segment| self.cards.get(&segment.card));
        Some((job, card.map(AsRef::as_ref)))
    }

    fn open_epoch(&mut self, epoch: Epoch) {
        if let Some(last) = self.epoch.replace(epoch) {
            self.jobs.values_mut().for_each(|job| refund::note_drawn(&mut job.refund, job.drawn, last));
        }
    }

    /// Every job that has not ended goes on in a new segment.
    fn adopt_card(&mut self, card: &Card, at: Now) {
        self.cards.entry(card.digest).or_insert_with(|| Arc::new(card.clone()));
        if self.in_force.replace(card.digest) == Some(card.digest) {
            return;
        }
        for job in self.jobs.values_mut().filter(|job| job.outcome.is_none()) {
            job::open_segment(&mut job.segments, &job.terms.gpus, card.digest, at.wall);
        }
    }
}

/// One job under another card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Repriced {
    /// What it is called.
    pub job: JobName,
    /// The agent's number for it.
    pub attempt: Attempt,
    /// Who pays.
    pub account: AccountId,
    /// What it was charged; of one that goes on with what is kept back for its end.
    pub was: Credits,
    /// What it would have been charged.
    pub would: Credits,
    /// Meters that the draft prices and of which nobody knows a part: it would have been at least this.
    pub at_least: BTreeSet<Meter>,
}

/// One job that has no price under another card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotReplayed {
    /// What it is called.
    pub job: JobName,
    /// The agent's number for it.
    pub attempt: Attempt,
    /// Who pays.
    pub account: AccountId,
    /// What it was charged.
    pub was: Credits,
    /// Why not.
    pub why: String,
}

/// What remains of a charge after what the outcome gives back.
fn net(charge: Credits, refund: Credits) -> Credits {
    charge.minus(refund.min(charge))
}

/// What the job would have cost if this card had been in force all the time: a segment for each of its terms, from its beginning. The card's
/// own `effective_from` is passed over, the dates of its lines are not.
///
/// # Errors
/// When something that it used has no price there.
pub fn reprice(job: &Followed, draft: &Card) -> Result<Repriced, NotReplayed> {
    let was = net(job.charge(), job.reduced()).plus(job.pending());
    let (name, account) = (job.name.clone(), job.account.clone());
    match reprice_segments(job, draft) {
        Ok(would) => {
            let at_least = job.unknown.iter().copied().filter(|meter| draft.prices(*meter)).collect();
            Ok(Repriced { job: name, attempt: job.attempt, account, was, would, at_least })
        }
        Err(why) => Err(NotReplayed { job: name, attempt: job.attempt, account, was, why }),
    }
}

fn reprice_segments(job: &Followed, draft: &Card) -> Result<Credits, String> {
    let mut pieces: Vec<(Usage, Terms, Wall)> = Vec::new();
    for segment in &job.segments {
        let terms = job.terms_of(segment).clone();
        match pieces.last_mut().filter(|(_, before, _)| *before == terms) {
            Some((usage, ..)) => *usage = std::mem::take(usage).plus(&segment.usage),
            None => pieces.push((segment.usage.clone(), terms, segment.from)),
        }
    }
    let mut before: Vec<Earlier<'_>> = Vec::new();
    let (mut would, mut refund, mut pending) = (Credits::ZERO, Credits::ZERO, Credits::ZERO);
    for (usage, terms, from) in &pieces {
        let stated = terms.stated(*from, &job.account, job.bid);
        // A card without rules prices what it has lines for; of the devices each must have one.
        draft.cover(&terms.gpus, &stated).map_err(|why| why.to_string())?;
        let priced = Priced { usage, gpus: &terms.gpus, before: &before, stated, ended: job.outcome };
        let charge = charge::charge(draft, &priced).map_err(|why| why.to_string())?;
        (would, refund, pending) = (would.plus(charge.cost), refund.plus(charge.refund), pending.plus(charge.pending));
        before.push(Earlier { usage, gpus: &terms.gpus, stated });
    }
    Ok(net(would, refund).plus(pending))
}

/// Some jobs of one account under another card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sums {
    /// How many.
    pub jobs: u64,
    /// What they were charged.
    pub was: Credits,
    /// What they would have been charged.
    pub would: Credits,
}

impl Sums {
    fn add(&mut self, job: &Repriced) {
        self.jobs += 1;
        (self.was, self.would) = (self.was.plus(job.was), self.would.plus(job.would));
    }

    /// More, or less, under the draft.
    #[must_use]
    pub fn change(&self) -> Credits {
        self.would.minus(self.was)
    }
}

/// What stored jobs would have cost under another card.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// All that could be replayed.
    pub total: Sums,
    /// The same by account.
    pub accounts: BTreeMap<AccountId, Sums>,
    /// Each job that could be replayed.
    pub jobs: Vec<Repriced>,
    /// Each that could not, and why.
    pub not_replayed: Vec<NotReplayed>,
}

impl Comparison {
    /// Prices every job by the draft.
    pub fn of<'a>(jobs: impl Iterator<Item = &'a Followed>, draft: &Card) -> Comparison {
        let mut comparison = Comparison::default();
        for job in jobs {
            match reprice(job, draft) {
                Ok(repriced) => {
                    comparison.total.add(&repriced);
                    comparison.accounts.entry(repriced.account.clone()).or_default().add(&repriced);
                    comparison.jobs.push(repriced);
                }
                Err(not) => comparison.not_replayed.push(not),
            }
        }
        comparison
    }
}

#[cfg(test)]
mod tests;
