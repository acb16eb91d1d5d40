//! What the hands have done: all that waits of it is booked at once, since each booking goes over all jobs of an account, and a whole account
//! stops or goes on at once.

use std::collections::BTreeSet;

use super::{Event, Loop};
use crate::domain::act::{ActOutcome, Acted};
use crate::domain::id::Attempt;
use crate::node::cgroup::Which;
use crate::node::handle::Inbox;
use crate::node::notice;

/// Booked at once at most, so that a tick does not wait.
const TOGETHER_MAX: usize = 256;

impl Loop {
    /// Books what the hands have done to one job, and to others meanwhile. The message that came after these is the next to be taken.
    pub(super) fn acted(&mut self, first: Acted) {
        let mut jobs = BTreeSet::from([first.attempt]);
        let mut all = vec![first];
        while all.len() < TOGETHER_MAX {
            match self.inbox.try_recv() {
                Ok(Inbox::Acted(acted)) if jobs.insert(acted.attempt) => all.push(acted),
                Ok(other) => {
                    self.next = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        for acted in &all {
            self.count_acted(acted);
            let before = self.turn.agent().jobs.get(&acted.attempt).into_iter().flat_map(|job| &job.steps);
            if let Some(event) = notice::Event::of(acted, before.map(|step| &step.event)) {
                self.tell(event, acted.attempt);
            }
        }
        let attempts: Vec<Attempt> = jobs.into_iter().collect();
        let mut samples = self.edges.sampler.sample(Which::Only(&attempts));
        // Those of jobs inside these come along, and are taken in before them.
        let inner: Vec<_> = samples.extract_if(.., |sample| attempts.binary_search(&sample.attempt).is_err()).collect();
        if !inner.is_empty() {
            self.step(Event::Looked(inner));
        }
        let mut sample_of = |attempt| samples.iter().position(|sample| sample.attempt == attempt).map(|at| samples.swap_remove(at));
        let looked_at = all.into_iter().map(|acted| (sample_of(acted.attempt), acted)).map(|(sample, acted)| (acted, sample)).collect();
        self.step(Event::Acted(looked_at));
        self.publish_if_cheap();
    }

    fn count_acted(&mut self, acted: &Acted) {
        let outcome = match acted.outcome {
            ActOutcome::Confirmed => "confirmed",
            ActOutcome::Unconfirmed => "unconfirmed",
            ActOutcome::Gone => "gone",
            ActOutcome::Refused(_) => "refused",
            ActOutcome::Failed(_) => "failed",
        };
        *self.stats.acted.entry((acted.act.name(), outcome)).or_default() += 1;
    }
}
