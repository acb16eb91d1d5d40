//! Jobs inside other jobs' directories: each nanosecond of CPU time is counted once.
//!
//! A cgroup's counter holds what is below it too. What the inner job's rows count is taken off the next rows of every job around it. The
//! counters of the two are read at slightly different instants: what is not covered yet stays pending ([`Job::inner_ns`]), and nothing is lost.

use std::borrow::Cow;
use std::cmp::Reverse;

use super::super::id::Attempt;
use super::super::job::Job;
use super::super::meter::JobSample;
use super::Agent;

impl Agent {
    /// A new job finds its place: what it is inside, and what is inside it.
    pub(super) fn nest(&mut self, attempt: Attempt) {
        let Some(new) = self.jobs.get(&attempt) else { return };
        let target = new.target.clone();
        let others = || self.jobs.values().filter(|job| job.attempt != attempt && job.is_live());
        let outer = others().filter_map(|job| Some((target.depth_inside(&job.target)?, job.attempt))).max();
        let depth_of = |inner: &Job| {
            let around = inner.inside.and_then(|outer| self.jobs.get(&outer));
            around.and_then(|outer| inner.target.depth_inside(&outer.target)).unwrap_or(0)
        };
        let is_nearest = |inner: &&Job| inner.target.depth_inside(&target).is_some_and(|depth| depth_of(inner) < depth);
        let inner: Vec<Attempt> = others().filter(is_nearest).map(|job| job.attempt).collect();
        for inner in inner {
            self.with_job(inner, |job| job.inside = Some(attempt));
        }
        self.with_job(attempt, |job| job.inside = outer.map(|(_, outer)| outer));
    }

    /// An ended job is around nobody any more: what was inside it is inside what it was inside.
    pub(super) fn leave_nest(&mut self, attempt: Attempt) {
        let around = self.jobs.get(&attempt).and_then(|job| job.inside);
        self.jobs.values_mut().filter(|job| job.inside == Some(attempt)).for_each(|job| job.inside = around);
    }

    /// The jobs around this one, the nearest first.
    pub(super) fn around(&self, attempt: Attempt) -> Vec<Attempt> {
        let mut around: Vec<Attempt> = Vec::new();
        let mut next = self.jobs.get(&attempt).and_then(|job| job.inside);
        while let Some(outer) = next.filter(|outer| !around.contains(outer)) {
            around.push(outer);
            next = self.jobs.get(&outer).and_then(|job| job.inside);
        }
        around
    }

    /// So much of the counters around it was this job's.
    pub(super) fn relieve_outer(&mut self, attempt: Attempt, used_ns: u64) {
        if used_ns == 0 || self.jobs.get(&attempt).is_none_or(|job| job.inside.is_none()) {
            return;
        }
        for outer in self.around(attempt) {
            self.with_job(outer, |job| job.inner_ns = job.inner_ns.saturating_add(used_ns));
        }
    }

    /// Puts what is inside before what is around it.
    pub(super) fn inner_first<'s>(&self, samples: Cow<'s, [JobSample]>) -> Cow<'s, [JobSample]> {
        if samples.iter().all(|sample| self.jobs.get(&sample.attempt).is_none_or(|job| job.inside.is_none())) {
            return samples;
        }
        let mut samples = samples.into_owned();
        samples.sort_by_key(|sample| Reverse(self.around(sample.attempt).len()));
        Cow::Owned(samples)
    }
}
