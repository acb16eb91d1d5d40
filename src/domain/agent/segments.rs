//! Where a job's segments begin and end: a change of what it is given, and the dates of its card.

use std::collections::BTreeMap;

use super::super::fact::Fact;
use super::super::id::{Attempt, JobName, Uid};
use super::super::job::Job;
use super::super::meter::JobSample;
use super::super::rates::Card;
use super::super::terms::Change;
use super::super::time::{Mono, Nanos, Now, Wall};
use super::Agent;
use super::draft::Draft;
use super::start::{Novelty, Refusal, Reply, unpriced};

impl Agent {
    /// When the card of a job's open segment next applies other lines to it.
    fn next_date(&self, job: &Job) -> Option<Wall> {
        let segment = job.segments.last().filter(|_| job.is_live())?;
        self.cards.get(&segment.card)?.next_date(segment.from)
    }

    fn has_dates(&self) -> bool {
        self.cards.values().any(Card::has_dates)
    }

    /// The looks that dates ahead ask for, each with its jobs.
    #[must_use]
    pub fn dates(&self, now: Now) -> Vec<(Mono, Vec<Attempt>)> {
        if !self.has_dates() {
            return Vec::new();
        }
        let mut ahead: BTreeMap<Wall, Vec<Attempt>> = BTreeMap::new();
        for job in self.jobs.values() {
            if let Some(date) = self.next_date(job).filter(|date| now.wall < *date) {
                ahead.entry(date).or_default().push(job.attempt);
            }
        }
        // A millisecond later: the wall clock is read in those.
        let at = |date: Wall| now.mono.plus(Nanos::from_millis((date.0 - now.wall.0).saturating_add(1)));
        ahead.into_iter().map(|(date, attempts)| (at(date), attempts)).collect()
    }

    /// Those of the jobs looked at whose date has come.
    pub(super) fn dated(&self, samples: &[JobSample], wall: Wall) -> Vec<Attempt> {
        if !self.has_dates() {
            return Vec::new();
        }
        let job_of = |sample: &JobSample| self.jobs.get(&sample.attempt);
        let has_come = |job: &&Job| self.next_date(job).is_some_and(|date| date <= wall);
        samples.iter().filter_map(job_of).filter(has_come).map(|job| job.attempt).collect()
    }
}

impl Draft<'_> {
    /// They were counted up to now by the lines that applied; from here on others do.
    pub(super) fn open_dated(&mut self, attempts: Vec<Attempt>) {
        if !attempts.is_empty() {
            self.record(Fact::SegmentsOpened { attempts: attempts.clone(), at: self.now });
            self.reprice(attempts);
            self.note_bids();
        }
    }

    /// A job is given something else from now on.
    pub fn change(&mut self, name: &JobName, change: &Change, by: Uid, sample: Option<&JobSample>) -> Reply {
        let refuse = |code, message: String, hint| Reply::Refused(Refusal::new(code, message, hint));
        let Some(job) = self.agent.job_named(name.as_str()) else {
            return refuse("unknown_job", format!("no job {name} is known here"), "meterctl jobs lists those that are");
        };
        if !job.is_live() {
            return refuse("job_ended", format!("job {name} has ended"), "start it again: that is another attempt");
        }
        let (attempt, before) = (job.attempt, job.terms());
        let terms = before.clone().changed(change);
        if terms == before {
            return Reply::Changed { attempt, novelty: Novelty::Repeated };
        }
        let card = job.segments.last().and_then(|segment| self.agent.cards.get(&segment.card));
        if let Some(card) = card
            && let Err(why) = card.cover(&terms.gpus, &terms.stated(self.now.wall, &job.account, None))
        {
            return Reply::Refused(unpriced(card, &terms.gpus, &why));
        }
        self.counted_anyway.insert(attempt);
        self.sampled(sample.map_or(&[], std::slice::from_ref));
        if !self.agent.jobs.get(&attempt).is_some_and(Job::is_live) {
            return refuse("job_ended", format!("job {name} has ended"), "start it again: that is another attempt");
        }
        self.record(Fact::JobChanged { attempt, terms: Box::new(terms), at: self.now, by });
        self.reprice([attempt]);
        self.note_bids();
        Reply::Changed { attempt, novelty: Novelty::New }
    }
}
