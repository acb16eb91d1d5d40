//! What goes on from a state whose journal was damaged behind some fact: who the jobs are, and nothing of what they used since.
//!
//! The lost epoch may have charged any part of that. So the epoch is not gone on with and has no last words (the authority closes it with
//! what it last heard), and every live job is counted from *now* on, with a gap on its receipt: nothing can be charged twice.

use std::collections::BTreeMap;

use super::Agent;
use crate::domain::fact::Seq;
use crate::domain::id::{Attempt, BootId};
use crate::domain::job::{Gap, GapRule, Job, Phase};
use crate::domain::meter::Missing;
use crate::domain::time::Now;
use crate::domain::usage::Meter;

/// So many attempts may have been begun in what was lost: their numbers are not given again.
const LOST_ATTEMPTS_MAX: u64 = 1_000_000;

impl Agent {
    /// The state to begin a new journal with. `counters`: each live job's CPU time as it is read now, in nanoseconds.
    #[must_use]
    pub fn salvaged(mut self, boot: BootId, now: Now, counters: &BTreeMap<Attempt, u64>) -> Agent {
        self.seq = Seq(0);
        self.epoch = None;
        self.outstanding = None;
        self.standing.history = None;
        self.attempts = self.attempts.saturating_add(LOST_ATTEMPTS_MAX);
        for job in self.jobs.values_mut() {
            // It may have been drawn in what was lost.
            job.unfunded = job.unfunded.plus(job.owed());
            if job.is_live() && job.boot == boot {
                count_from(job, now, counters.get(&job.attempt).copied());
            }
        }
        // Their receipts were written, or are in what was lost.
        let ended: Vec<Attempt> = self.jobs.values().filter(|job| !job.is_live()).map(|job| job.attempt).collect();
        for attempt in ended {
            self.restless.remove(&attempt);
            if let Some(job) = self.jobs.remove(&attempt) {
                if let Some(account) = self.accounts.get_mut(&job.account) {
                    account.jobs.remove(&attempt);
                }
                self.closed.push_back(job);
            }
        }
        self
    }
}

fn count_from(job: &mut Job, now: Now, counter: Option<u64>) {
    for meter in [Meter::CpuTime, Meter::WallTime, Meter::MemoryCharged] {
        let why = Missing::Failed("the journal was damaged".to_owned());
        job.note_gap(Gap { meter, from: job.counted_to, to: now.mono, why, rule: GapRule::NotBilled });
    }
    job.counted_to = now.mono;
    job.counter_moved = now.mono;
    job.memory_level_bytes = None;
    job.memory_anon = None;
    job.inner_ns = 0;
    job.cpu_counter_ns = match counter {
        // It is not there yet: it begins at nought.
        None if job.phase == Phase::Awaited => None,
        // Whatever the next reading is, nothing is counted up to it.
        None => Some(u64::MAX),
        seen => seen,
    };
}
