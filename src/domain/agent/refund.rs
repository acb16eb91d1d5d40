//! What is given back by outcome: the facts of it, what they change, and what the authority is to hear.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::fact::Fact;
use super::super::id::{AccountId, Attempt, Epoch};
use super::super::job::Job;
use super::super::money::Credits;
use super::super::refund::{Outcomes, Refund, Refunded, note_drawn, outcomes};
use super::super::wire::RefundTotal;
use super::Agent;
use super::draft::Draft;

/// By epoch and account, what was given back.
pub type Refunds = BTreeMap<(Epoch, AccountId), Refunded>;

/// What stands of it behind the rest of a checkpoint.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct RefundPart {
    jobs: Vec<(Attempt, Box<Refund>)>,
    totals: Vec<(Epoch, AccountId, Refunded)>,
}

impl RefundPart {
    pub(super) fn of(agent: &Agent) -> RefundPart {
        let of_job = |job: &Job| Some((job.attempt, job.refund.clone()?));
        let total = |((epoch, account), given): (&(Epoch, AccountId), &Refunded)| (*epoch, account.clone(), *given);
        RefundPart {
            jobs: agent.jobs.values().chain(&agent.closed).filter_map(of_job).collect(),
            totals: agent.refunds.iter().map(total).collect(),
        }
    }

    pub(super) fn put_back(self, agent: &mut Agent) {
        for (attempt, refund) in self.jobs {
            let closed = agent.closed.iter_mut().find(|job| job.attempt == attempt);
            if let Some(job) = closed.or_else(|| agent.jobs.get_mut(&attempt)) {
                job.refund = Some(refund);
            }
        }
        agent.refunds = self.totals.into_iter().map(|(epoch, account, given)| ((epoch, account), given)).collect();
    }
}

impl Agent {
    /// The node's epoch is over: what was drawn for its jobs until now was drawn in it.
    pub(super) fn note_drawn_in(&mut self, epoch: Epoch) {
        for job in self.jobs.values_mut() {
            note_drawn(&mut job.refund, job.drawn, epoch);
        }
    }

    pub(super) fn take_refund(&mut self, attempt: Attempt, segments: &[Credits], waived: Credits, given: &[(Epoch, Credits)]) {
        let Some(job) = self.jobs.get_mut(&attempt) else { return };
        let refund = job.refund.get_or_insert_default();
        if !refund.segments.is_empty() {
            return; // taken before
        }
        (refund.segments, refund.waived, refund.given) = (segments.to_vec(), waived, given.to_vec());
        for (epoch, amount) in given {
            let back = self.refunds.entry((*epoch, job.account.clone())).or_default();
            back.total = back.total.plus(*amount);
        }
    }

    pub(super) fn refunds_asked(&mut self) {
        self.refunds.values_mut().for_each(|back| back.asked = back.total);
    }

    /// The question was answered. What is told of an epoch in which no job at hand has drawn anything is kept no longer.
    pub(super) fn refunds_told(&mut self) {
        if self.refunds.is_empty() {
            return;
        }
        self.refunds.values_mut().for_each(|back| back.told = back.told.max(back.asked));
        let current = self.epoch.map(|(epoch, _)| epoch);
        let drawn_in = |epoch: Epoch| self.jobs.values().any(|job| job.refund.as_ref().is_some_and(|refund| refund.has_drawn_in(epoch)));
        let over: Vec<(Epoch, AccountId)> =
            self.refunds.keys().filter(|(epoch, _)| Some(*epoch) != current && !drawn_in(*epoch)).cloned().collect();
        for key in over {
            if self.refunds.get(&key).is_some_and(|back| !back.is_untold()) {
                self.refunds.remove(&key);
            }
        }
    }

    /// What the outstanding question is to say of it: what is not told, and of the accounts that it asks about all, for an authority that was
    /// restored from a copy.
    #[must_use]
    pub fn refunds_to_tell(&self) -> Vec<RefundTotal> {
        let asks = |id: &AccountId| {
            self.outstanding.as_ref().is_some_and(|outstanding| outstanding.request.entries.iter().any(|entry| entry.account == *id))
        };
        let told = |id: &AccountId, back: &Refunded| back.told < back.asked || (back.asked.is_positive() && asks(id));
        let to_tell = self.refunds.iter().filter(|((_, account), back)| told(account, back));
        to_tell.map(|((epoch, account), back)| RefundTotal { epoch: *epoch, account: account.clone(), refunded: back.asked }).collect()
    }

    /// Does the authority have to hear of something that was given back to the account?
    pub(super) fn has_untold_refund(&self, id: &AccountId) -> bool {
        self.refunds.iter().any(|((_, account), back)| account == id && back.is_untold())
    }
}

impl Draft<'_> {
    /// What lines that did not wait for the outcome give back by it.
    pub(super) fn refund_at_end(&mut self, attempt: Attempt) {
        let (Some(job), Some((epoch, _))) = (self.agent.jobs.get(&attempt), self.agent.epoch) else { return };
        let segments = refunds_of(job, self.agent);
        let reduction: Credits = segments.iter().copied().sum();
        if !reduction.is_positive() {
            return;
        }
        let Outcomes { waived, refunded, .. } = outcomes(job.charge, job.drawn, job.unfunded, reduction);
        let before = job.refund.as_ref().map_or(&[][..], |refund| &refund.drawn_before);
        let given = Refund::by_epoch(before, epoch, job.drawn, refunded);
        self.record(Fact::Refunded { attempt, segments, waived, given });
    }
}

/// By segment, what is given back; nothing of one that has no price.
fn refunds_of(job: &Job, agent: &Agent) -> Vec<Credits> {
    let ended = job.ending.map(|ending| ending.outcome);
    let refund = |(nth, segment): (usize, &super::super::job::Segment)| {
        let card = agent.cards.get(&segment.card).filter(|card| card.gives_back())?;
        Some(job.charge(nth, &segment.usage, card, ended).ok()?.refund)
    };
    job.segments.iter().enumerate().map(|each| refund(each).unwrap_or_default()).collect()
}
