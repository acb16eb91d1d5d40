//! Jobs for which more is asked by now than was bid: what their card says happens, and when that is noted.

use super::super::job::{Job, StepEvent};
use super::super::rates::{Card, OverBid, Priced, bid};
use super::super::terms::Outbid;
use super::Agent;
use super::draft::Draft;
use super::restraint::Restraint;

impl Agent {
    /// Is more asked for it than was bid, and does its card mind? By the card and the terms of its open segment, and by the volume that it has
    /// reached.
    #[must_use]
    pub fn outbid(&self, job: &Job) -> Option<Outbid> {
        let bid = job.bid()?;
        let (segment, earlier) = job.segments.split_last()?;
        let card = self.cards.get(&segment.card).filter(|card| card.minds_bids())?;
        let before = job.before(earlier.len(), card);
        let stated = job.stated(segment.from);
        let (rule, ask) = bid::over_bid(card, &Priced { usage: &segment.usage, gpus: &job.gpus, before: &before, stated, ended: None })?;
        Some(Outbid { rule, bid, ask })
    }

    /// Is there a card that minds bids?
    pub(super) fn minds_bids(&self) -> bool {
        self.cards.values().any(Card::minds_bids)
    }

    /// What a job is to be held to by its own bid: a matter between its starter and the card, in which the account's credit plays no part.
    pub(super) fn by_bid(&self, job: &Job) -> Restraint {
        match self.outbid(job).map(|outbid| outbid.rule) {
            None | Some(OverBid::Cap) => Restraint::Free,
            Some(OverBid::Freeze) => Restraint::Frozen,
            Some(OverBid::Stop) => Restraint::Stopped,
        }
    }

    /// Running jobs that are not to run on at what is asked.
    pub(super) fn outbid_jobs(&self) -> impl Iterator<Item = &Job> {
        let minded = self.minds_bids();
        self.jobs.values().filter(move |job| minded && job.is_live() && self.by_bid(job) != Restraint::Free)
    }
}

impl Draft<'_> {
    /// Notes of each job with a bid whether more is asked by now, or no more again.
    pub(super) fn note_bids(&mut self) {
        let news = |job: &Job| {
            let is_of_bids = |event: &&StepEvent| matches!(event, StepEvent::OverBid { .. } | StepEvent::WithinBid { .. });
            let last = job.steps.iter().rev().map(|step| &step.event).find(is_of_bids);
            match (self.agent.outbid(job), last) {
                (Some(Outbid { rule, bid, ask }), last) => {
                    let event = StepEvent::OverBid { rule, bid, ask };
                    (last != Some(&event)).then_some(event)
                }
                (None, Some(StepEvent::OverBid { bid, .. })) => Some(StepEvent::WithinBid { bid: *bid }),
                (None, _) => None,
            }
        };
        let with_bids = self.agent.jobs.values().filter(|job| job.is_live() && job.bid().is_some());
        let noted: Vec<_> = with_bids.filter_map(|job| Some((job.attempt, news(job)?))).collect();
        for (attempt, event) in noted {
            self.step(attempt, event);
        }
    }
}
