//! A log recomputed: the chain row by row, and every price in it from its quantities and its card.
//!
//! The same rating as in the running agent, over what [`Replay`] follows: so live, replay and verifier cannot differ but by a change of
//! what was written.

use std::collections::BTreeSet;

use super::agent::Agent;
use super::anchor::{Anchor, Anchors, Compared, Unanchored};
use super::chain::{BadRow, Head, Verifier};
use super::fact::{DecodeError, Fact, Opened, Row};
use super::id::{Attempt, Digest, Epoch};
use super::job::Job;
use super::money::Credits;
use super::rates::charge::{self, Charge};
use super::rates::{Stated, Timing};
use super::refund::{Outcomes, outcomes};
use super::replay::{Followed, Replay};
use super::time::Wall;

/// A walk along a log.
#[derive(Clone, Debug)]
pub struct Audit {
    first: Head,
    verifier: Verifier,
    replay: Replay,
    epochs: BTreeSet<Epoch>,
    anchors: Option<Anchors>,
    /// Cards that a row names.
    cards: BTreeSet<Digest>,
    counts: Counts,
    /// A job that was just opened, in that row: what few starts say more is told by the next one.
    opened: Option<(u64, Box<Opened>)>,
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows of the chain.
    pub rows: u64,
    /// Samples of jobs whose price was computed again …
    pub samples: u64,
    /// … and of those whose beginning is not among the rows: only the chain vouches for them.
    pub of_earlier_jobs: u64,
    /// Jobs whose beginning was seen.
    pub jobs: u64,
}

/// What was found right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// How much was looked at.
    pub counts: Counts,
    /// The last row.
    pub head: Head,
    /// The anchors, if there were any to compare.
    pub anchored: Option<Compared>,
    /// The cards that the rows name.
    pub cards: BTreeSet<Digest>,
}

/// The first thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The chain is broken.
    #[error(transparent)]
    Chain(#[from] BadRow),
    /// The row is in the chain and holds no fact.
    #[error("row {seq}: {why}")]
    Unread {
        /// Its number.
        seq: u64,
        /// Why.
        why: DecodeError,
    },
    /// A price is not what quantities and card give.
    #[error("row {seq}, attempt {attempt}: {what} is {said}, quantities and card give {computed}")]
    Price {
        /// The row's number.
        seq: u64,
        /// Of which job.
        attempt: Attempt,
        /// Cost, or what is kept back.
        what: &'static str,
        /// In the row.
        said: Credits,
        /// By the card.
        computed: Credits,
    },
    /// More was drawn and written off than was charged.
    #[error("row {seq}, attempt {attempt}: {paid} drawn and written off, and {charge} charged")]
    Overpaid {
        /// The row's number.
        seq: u64,
        /// Of which job.
        attempt: Attempt,
        /// Drawn and written off.
        paid: Credits,
        /// Charged.
        charge: Credits,
    },
    /// The checkpoint does not say what the facts before it give.
    #[error("the checkpoint after row {seq} holds attempt {attempt} otherwise than its facts")]
    Checkpoint {
        /// The row.
        seq: u64,
        /// Which job.
        attempt: Attempt,
    },
    /// The chain is not the one that the authority heard of.
    #[error(transparent)]
    Anchor(#[from] Unanchored),
}

impl Audit {
    /// A walk that starts behind `first`; with anchors, these are compared.
    #[must_use]
    pub fn behind(first: Head, anchors: Option<Vec<Anchor>>) -> Audit {
        let mut anchors = anchors.map(Anchors::new);
        if let Some(anchors) = anchors.as_mut().filter(|_| first != Head::START) {
            anchors.pass(first);
        }
        Audit {
            first,
            verifier: Verifier::behind(first),
            replay: Replay::default(),
            epochs: BTreeSet::new(),
            anchors,
            cards: BTreeSet::new(),
            counts: Counts::default(),
            opened: None,
        }
    }

    /// How far everything was right.
    #[must_use]
    pub fn head(&self) -> Head {
        self.verifier.head()
    }

    /// How many rows were walked.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.counts.rows
    }

    /// The checkpoint that stands here: what it holds of jobs whose beginning was seen must be what their facts give; the others are known
    /// from here on.
    ///
    /// # Errors
    /// The first job that is not as its facts say.
    pub fn meet(&mut self, agent: &Agent) -> Result<(), Fault> {
        // Of many gaps a job keeps the first ones, so these are not compared.
        let plain = |followed: Followed| Followed { unknown: BTreeSet::new(), ..followed };
        let differs = |job: &&Job| self.replay.job(job.attempt).is_some_and(|known| plain(known.clone()) != plain(Followed::of(job)));
        if let Some(job) = agent.jobs.values().find(differs) {
            return Err(Fault::Checkpoint { seq: self.head().seq, attempt: job.attempt });
        }
        self.replay.adopt(agent.jobs.values(), agent.cards.values(), agent.card, agent.epoch.map(|(epoch, _)| epoch));
        self.epochs.extend(agent.epoch.map(|(epoch, _)| epoch));
        Ok(())
    }

    /// One more row, with the link that was kept for it.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn row(&mut self, seq: u64, bytes: &[u8], kept: Digest) -> Result<(), Fault> {
        let fact = self.link(seq, bytes, kept)?;
        self.fact(&fact)
    }

    /// The chain alone: one more row, and what it holds; [`Audit::fact`] is to follow.
    pub(super) fn link(&mut self, seq: u64, bytes: &[u8], kept: Digest) -> Result<Fact, Fault> {
        self.verifier.row(seq, bytes, kept)?;
        if let Some(anchors) = &mut self.anchors {
            anchors.pass(self.verifier.head());
        }
        self.counts.rows += 1;
        Fact::decode(bytes).map_err(|why| Fault::Unread { seq, why })
    }

    /// The prices in the row that was linked last.
    pub(super) fn fact(&mut self, fact: &Fact) -> Result<(), Fault> {
        let seq = self.verifier.head().seq;
        let stated = match fact {
            Fact::JobStated { attempt, storage_bytes, .. } => Some((*attempt, *storage_bytes)),
            _ => None,
        };
        self.check_opened(stated)?;
        match fact {
            Fact::Counted { wall, rows } => return rows.iter().try_for_each(|row| self.count(seq, row, *wall)),
            Fact::JobOpened(opened) => self.open(seq, opened),
            Fact::CardAdopted { card, .. } => drop(self.cards.insert(card.digest)),
            Fact::EpochOpened { epoch, .. } => drop(self.epochs.insert(*epoch)),
            Fact::Asked { request, .. } => drop(self.epochs.insert(request.epoch)),
            Fact::ChargedAtEnd { attempt, costs, .. } => self.charge_at_end(seq, *attempt, costs)?,
            Fact::Refunded { attempt, segments, waived, given } => self.refund(seq, *attempt, (segments, *waived, given))?,
            _ => {}
        }
        self.replay.take(fact);
        if let Fact::Settled { rows } = fact {
            rows.iter().filter_map(|row| self.replay.job(row.attempt)).try_for_each(|job| within_charge(seq, job))?;
        }
        Ok(())
    }

    fn open(&mut self, seq: u64, opened: &Opened) {
        self.counts.jobs += 1;
        self.cards.insert(opened.card);
        self.opened = Some((seq, Box::new(opened.clone())));
    }

    /// The price of the start that came last.
    fn check_opened(&mut self, further: Option<(Attempt, Option<u64>)>) -> Result<(), Fault> {
        let Some((seq, opened)) = self.opened.take() else { return Ok(()) };
        let Some(card) = self.replay.card(&opened.card) else { return Ok(()) };
        let Opened { at, ref traits, ref account, cpus, memory_bytes, .. } = *opened;
        let storage_bytes = further.filter(|(attempt, _)| *attempt == opened.attempt).and_then(|(_, storage_bytes)| storage_bytes);
        // The start was accepted at what was asked.
        let stated = Stated { at: at.wall, traits, account: Some(account), cpus, memory_bytes, storage_bytes, bid: None };
        let computed = charge::start_price(card, &opened.gpus, stated);
        same(seq, opened.attempt, Charge { cost: opened.charge, pending: opened.pending, ..Charge::default() }, computed)
    }

    fn count(&mut self, seq: u64, row: &Row, wall: Wall) -> Result<(), Fault> {
        let before = self.replay.job(row.attempt).and_then(|job| job.segments.last());
        let before = before.map(|segment| Charge { cost: segment.cost, pending: segment.pending, ..Charge::default() });
        let (Some(before), Some((job, Some(card)))) = (before, self.replay.count(row, wall)) else {
            self.counts.of_earlier_jobs += 1;
            return Ok(());
        };
        // What has no price leaves the charge where it was, and no charge ever falls.
        let priced = job.price(job.segments.len() - 1, card, None).unwrap_or(before);
        let computed = Charge { cost: priced.cost.max(before.cost), pending: priced.pending, ..Charge::default() };
        same(seq, row.attempt, Charge { cost: row.cost, pending: row.pending, ..Charge::default() }, computed)?;
        within_charge(seq, job)?;
        self.counts.samples += 1;
        Ok(())
    }

    /// What lines kept back for the end, by the outcome.
    fn charge_at_end(&self, seq: u64, attempt: Attempt, costs: &[Credits]) -> Result<(), Fault> {
        let Some(job) = self.replay.job(attempt) else { return Ok(()) };
        for (nth, (segment, said)) in job.segments.iter().zip(costs).enumerate() {
            let Some(card) = self.replay.card(&segment.card) else { continue };
            let settles = card.lines.iter().any(|line| line.rules.as_ref().is_some_and(|rules| rules.timing == Timing::SettleAtEnd));
            let priced = settles.then(|| job.price(nth, card, job.outcome).ok()).flatten();
            let computed = priced.map_or(segment.cost, |charge| charge.cost.max(segment.cost));
            if *said != computed {
                return Err(Fault::Price { seq, attempt, what: "the cost at its end", said: *said, computed });
            }
        }
        Ok(())
    }

    /// What is given back by the outcome, segment by segment, and who gets what of it.
    fn refund(&self, seq: u64, attempt: Attempt, said: (&[Credits], Credits, &[(Epoch, Credits)])) -> Result<(), Fault> {
        let Some(job) = self.replay.job(attempt) else { return Ok(()) };
        let mut reduction = Credits::ZERO;
        for (nth, segment) in job.segments.iter().enumerate() {
            let said = said.0.get(nth).copied().unwrap_or_default();
            let Some(card) = self.replay.card(&segment.card) else { return Ok(()) };
            let computed = job.price(nth, card, job.outcome).map_or(Credits::ZERO, |charge| charge.refund);
            if said != computed {
                return Err(Fault::Price { seq, attempt, what: "what its outcome gives back", said, computed });
            }
            reduction = reduction.plus(computed);
        }
        let Outcomes { waived, refunded, .. } = outcomes(job.charge(), job.drawn, job.unfunded, reduction);
        let given: Credits = said.2.iter().map(|(_, amount)| *amount).sum();
        for (what, said, computed) in [("what need not be paid", said.1, waived), ("what was paid and is given back", given, refunded)] {
            if said != computed {
                return Err(Fault::Price { seq, attempt, what, said, computed });
            }
        }
        Ok(())
    }

    /// Everything has been walked.
    ///
    /// # Errors
    /// When the chain is not the one that the authority heard of.
    pub fn finish(mut self) -> Result<Found, Fault> {
        self.check_opened(None)?;
        let head = self.verifier.head();
        let anchored = self.anchors.map(|anchors| anchors.compare(self.first, head, &self.epochs)).transpose()?;
        Ok(Found { counts: self.counts, head, anchored, cards: self.cards })
    }
}

fn same(seq: u64, attempt: Attempt, said: Charge, computed: Charge) -> Result<(), Fault> {
    if said == computed {
        return Ok(());
    }
    let (what, said, computed) = if said.cost == computed.cost {
        ("what is kept back", said.pending, computed.pending)
    } else {
        ("the cost", said.cost, computed.cost)
    };
    Err(Fault::Price { seq, attempt, what, said, computed })
}

fn within_charge(seq: u64, job: &Followed) -> Result<(), Fault> {
    let (paid, charge) = (job.drawn.plus(job.unfunded), job.charge().minus(job.waived()));
    if paid <= charge { Ok(()) } else { Err(Fault::Overpaid { seq, attempt: job.attempt, paid, charge }) }
}

#[cfg(test)]
mod tests;
