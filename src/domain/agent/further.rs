//! What few jobs have: how it stands in a checkpoint, and how facts change it.
//!
//! The checkpoint's older forms end where this begins, so each of them is still read.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::super::fact::MeteredRow;
use super::super::gang::GangWord;
use super::super::id::Attempt;
use super::super::job::{self, Job};
use super::super::rates::Card;
use super::super::terms::{Further, Report, Terms};
use super::super::time::Wall;
use super::super::usage::{Meter, More};
use super::Agent;
use super::gang::Parts;

/// One job's part behind the checkpoint's first one.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct JobPart {
    attempt: Attempt,
    further: Option<Box<Further>>,
    /// By segment.
    segments: Vec<SegmentPart>,
}

type SegmentPart = (Option<Box<Terms>>, Option<Box<More>>);

/// The parts of all jobs that have one.
pub(super) fn of(agent: &Agent) -> Vec<JobPart> {
    let has =
        |job: &&Job| job.further.is_some() || job.segments.iter().any(|segment| segment.terms.is_some() || segment.usage.more.is_some());
    let part = |job: &Job| JobPart {
        attempt: job.attempt,
        further: job.further.clone(),
        segments: job.segments.iter().map(|segment| (segment.terms.clone(), segment.usage.more.clone())).collect(),
    };
    agent.jobs.values().chain(&agent.closed).filter(has).map(part).collect()
}

/// Gives them back to their jobs.
pub(super) fn put_back(agent: &mut Agent, parts: Vec<JobPart>) {
    for part in parts {
        let closed = agent.closed.iter_mut().find(|job| job.attempt == part.attempt);
        let Some(job) = closed.or_else(|| agent.jobs.get_mut(&part.attempt)) else { continue };
        job.further = part.further;
        for (segment, (terms, more)) in job.segments.iter_mut().zip(part.segments) {
            (segment.terms, segment.usage.more) = (terms, more);
        }
    }
}

/// What of gangs stands in a checkpoint: the parts, and what the question that waits says of them.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct GangPart {
    parts: Parts,
    said: Vec<GangWord>,
}

/// What of gangs stands in a checkpoint.
pub(super) fn of_gangs(agent: &Agent) -> GangPart {
    let said = agent.outstanding.as_ref().map(|outstanding| outstanding.request.gangs.clone());
    GangPart { parts: agent.gangs.clone(), said: said.unwrap_or_default() }
}

/// Gives it back.
pub(super) fn put_back_gangs(agent: &mut Agent, GangPart { parts, said }: GangPart) {
    agent.gangs = parts;
    if let Some(outstanding) = &mut agent.outstanding {
        outstanding.request.gangs = said;
    }
}

impl Agent {
    pub(super) fn change_terms(&mut self, attempt: Attempt, terms: &Terms, at: Wall) {
        self.with_job(attempt, |job| {
            job.set_terms(terms.clone());
            job.split(at);
        });
    }

    pub(super) fn take_metered(&mut self, row: &MeteredRow) {
        self.with_job(row.attempt, |job| {
            job.further.get_or_insert_default().marks = (*row.marks).clone();
            if let Some(segment) = job.segments.last_mut() {
                segment.usage.more = Some(row.more.clone());
            }
        });
    }
}

impl Job {
    /// It goes on in a new segment under the same card.
    pub(super) fn split(&mut self, at: Wall) {
        if let Some(card) = self.segments.last().map(|segment| segment.card) {
            self.open_segment(card, at);
        }
    }

    /// What a card does not price is not counted under it: a later card counts on from then.
    pub(super) fn forget_marks(&mut self, card: &Card) {
        let Some(further) = &mut self.further else { return };
        if !card.prices(Meter::IoBytes) {
            further.marks.io = None;
        }
        if !card.prices_any(&[Meter::GpuBusy, Meter::GpuMemory, Meter::Energy]) {
            further.marks.gpus.clear();
        }
    }

    pub(super) fn take_report(&mut self, report: &Report) {
        let events = match report {
            Report::Counter { .. } => &mut BTreeSet::new(),
            Report::Event { .. } => &mut self.further.get_or_insert_default().events,
        };
        job::take_report(&mut self.segments, events, report);
    }
}
