//! Whose details are to be read next. They cost many times what a look costs, so a look reads those of a few jobs, the longest due first.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::detail::DETAIL_EVERY;
use crate::domain::id::Attempt;
use crate::domain::time::{Mono, Nanos};

/// Into so many parts the ten seconds between two readings of details are divided.
const SPREAD: u64 = 10;

/// A look reads the details of so many jobs at least …
const JOBS_MIN: usize = 24;
/// … and of one in so many …
const JOBS_PART: usize = 60;
/// … and never of more: what a look costs beside its readings does not grow without end.
const JOBS_MAX: usize = 48;

/// When each job's details are due.
#[derive(Debug, Default)]
pub(super) struct Due {
    at: BTreeMap<Attempt, Mono>,
    queue: BTreeSet<(Mono, Attempt)>,
}

impl Due {
    /// A new job. The first readings are spread over the ten seconds, so that they do not all fall due at once.
    pub(super) fn begin(&mut self, attempt: Attempt, now: Mono) {
        self.put(attempt, now.plus(Nanos(attempt.0 % SPREAD * (DETAIL_EVERY.0 / SPREAD))));
    }

    /// They were read.
    pub(super) fn done(&mut self, attempt: Attempt, at: Mono) {
        self.put(attempt, at.plus(DETAIL_EVERY));
    }

    pub(super) fn forget(&mut self, attempt: Attempt) {
        if let Some(at) = self.at.remove(&attempt) {
            self.queue.remove(&(at, attempt));
        }
    }

    /// Those to be read now: every one in ten seconds while there are up to 240 jobs; with more of them less often, from 1,440 to 2,880 once in
    /// 60, and of still more 48 a second.
    pub(super) fn now(&self, now: Mono) -> Vec<Attempt> {
        let most = self.at.len().div_ceil(JOBS_PART).clamp(JOBS_MIN, JOBS_MAX);
        self.queue.iter().take_while(|(at, _)| *at <= now).take(most).map(|(_, attempt)| *attempt).collect()
    }

    fn put(&mut self, attempt: Attempt, at: Mono) {
        self.forget(attempt);
        self.at.insert(attempt, at);
        self.queue.insert((at, attempt));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long each of so many jobs waits for its details at most, in seconds, at one look a second.
    fn longest_wait_s(jobs: u64) -> u64 {
        let mut due = Due::default();
        (0..jobs).for_each(|nth| due.begin(Attempt(nth), Mono(0)));
        let mut last: BTreeMap<Attempt, u64> = BTreeMap::new();
        let mut longest = 0;
        for second in 0..400 {
            let now = Mono(second * 1_000_000_000);
            for attempt in due.now(now) {
                due.done(attempt, now);
                longest = longest.max(second - last.insert(attempt, second).unwrap_or(0));
            }
        }
        assert_eq!(last.len() as u64, jobs, "nobody is forgotten");
        longest
    }

    #[test]
    fn details_come_every_ten_seconds_and_of_very_many_jobs_less_often() {
        assert_eq!(longest_wait_s(1), 10);
        assert_eq!(longest_wait_s(240), 10);
        let (many, very_many, most) = (longest_wait_s(1_000), longest_wait_s(2_880), longest_wait_s(5_000));
        assert!(many <= 43 && very_many <= 61 && most <= 105, "{many} {very_many} {most}");
    }

    #[test]
    fn no_look_reads_those_of_many() {
        let mut due = Due::default();
        (0..5_000).for_each(|nth| due.begin(Attempt(nth), Mono(0)));
        assert_eq!(due.now(Mono(u64::MAX)).len(), JOBS_MAX);
        due.forget(Attempt(0));
        assert!(!due.now(Mono(u64::MAX)).contains(&Attempt(0)));
    }
}
