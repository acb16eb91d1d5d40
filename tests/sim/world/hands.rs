//! The simulated hands: what an order does to a job, how long that takes, and what is reported of it.

use super::*;

impl World {
    pub(super) fn hand(&mut self, n: usize, order: &Order) {
        let mono = self.nodes[n].mono(self.now);
        let (outcome, done_at) = self.act(n, order, mono);
        let acted = Acted {
            attempt: order.attempt,
            act: order.act,
            asked_at: Mono(mono),
            done_at: Mono(done_at),
            syscall: format!("simulated {}", order.act),
            outcome,
        };
        let life = self.nodes[n].life;
        self.after(done_at - mono, Ev::HandDone(n, life, Box::new(acted)));
    }

    /// A freeze that was undone before it had taken hold cannot be confirmed.
    pub(super) fn overtaken(&self, n: usize, acted: &mut Acted) {
        let job = self.audit.metered.get(&(n, acted.attempt)).map(|baseline| &self.jobs[baseline.job]);
        let undone = job.is_some_and(|job| job.exists() && !job.freeze_bit);
        if acted.act == Act::Freeze && acted.outcome == ActOutcome::Confirmed && undone {
            acted.outcome = ActOutcome::Unconfirmed;
        }
    }

    fn act(&mut self, n: usize, order: &Order, mono: u64) -> (ActOutcome, u64) {
        let Some(index) = self.job_at(n, &order.target) else { return (ActOutcome::Gone, mono) };
        if !self.jobs[index].is(&order.target) {
            return (ActOutcome::Refused("another inode".to_owned()), mono);
        }
        if !self.jobs[index].exists() {
            return (ActOutcome::Gone, mono);
        }
        if !self.calm && self.rng.chance(self.faults.hands) {
            return (ActOutcome::Failed("EIO".to_owned()), mono);
        }
        let slow = !self.calm && self.rng.chance(self.faults.hands);
        let still = if slow { self.rng.range(S, 5 * S) } else { self.rng.below(50 * MS) };
        let dies_after = self.rng.below(4 * S);
        let job = &mut self.jobs[index];
        match order.act {
            Act::Freeze => {
                job.freeze(mono, mono + still);
                job.frozen_by_us = true;
                let from = job.frozen_from.unwrap_or(mono).max(mono);
                if S < from - mono { (ActOutcome::Unconfirmed, mono + S) } else { (ActOutcome::Confirmed, from) }
            }
            Act::Thaw => {
                job.thaw(mono);
                (ActOutcome::Confirmed, mono)
            }
            Act::Terminate => {
                job.thaw(mono);
                if !job.ignores_term {
                    self.after(dies_after, Ev::Exit(index));
                }
                (ActOutcome::Confirmed, mono)
            }
            Act::Kill => {
                job.empty(mono);
                job.exit_for_good = true;
                (ActOutcome::Confirmed, mono)
            }
            Act::Warn => (ActOutcome::Confirmed, mono),
            Act::Remove if job.populated => (ActOutcome::Failed("EBUSY".to_owned()), mono),
            Act::Remove => {
                job.gone = true;
                (ActOutcome::Confirmed, mono)
            }
        }
    }
}
