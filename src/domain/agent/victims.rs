//! Whom to stop first while an account's credit runs short: one job stands still so that the others can go on for longer, and goes on
//! when there is enough for it too, or when nobody else is left.

use super::super::enforcement::Enforcement;
use super::super::fact::Fact;
use super::super::grant;
use super::super::id::{AccountId, Attempt};
use super::super::job::{Job, StepEvent};
use super::super::ladder::{Victim, Victims};
use super::super::money::Credits;
use super::super::time::Nanos;
use super::credit::measured_burn;
use super::draft::Draft;

/// From one decision to the next: what it brought must show in the measured burn first, which is of the last ten seconds.
const DECIDE_AGAIN: Nanos = Nanos::from_secs(11);

impl Draft<'_> {
    pub(super) fn review_victims(&mut self, id: &AccountId) {
        let Some(account) = self.agent.accounts.get(id) else { return };
        let policy = account.grant.policy;
        let wanted = policy.victims != Victims::Together && self.agent.mode_for_account(id, self.settings) == Enforcement::Enforce;
        let standing: Vec<(Attempt, Victim)> =
            self.agent.jobs_of(id).filter(|job| job.is_live()).filter_map(|job| Some((job.attempt, job.victim?))).collect();
        if !wanted {
            for (attempt, _) in standing {
                self.set_victim(id, attempt, None);
            }
            return;
        }
        let mut runners: Vec<&Job> = self.agent.jobs_of(id).filter(|job| job.may_burn() && job.victim.is_none()).collect();
        let settled = account.victims_at.is_none_or(|at| DECIDE_AGAIN <= self.now.mono.since(at));
        let left = account.grant.left(self.now.boot);
        let burn = measured_burn(account);
        let lasts = |burn| grant::lasts(left, burn);
        let short = account.empty_since.is_none() && lasts(burn).is_some_and(|lasts| lasts < policy.victims_before);
        runners.retain(|job| self.agent.mode_for(job, self.settings) == Enforcement::Enforce);
        if short && settled && 1 < runners.len() {
            let share = Credits::from_nano(burn.nano() / i128::try_from(runners.len()).unwrap_or(1));
            let victim = Victim { at: self.now.mono, burn_per_s: share };
            if let Some(attempt) = first(policy.victims, &runners) {
                self.set_victim(id, attempt, Some(victim));
            }
            return;
        }
        let alone = runners.is_empty() && account.empty_since.is_none();
        if alone || settled {
            let enough = Nanos(policy.victims_before.0.saturating_mul(2)); // so that it is not the next victim at once
            let mut needed = burn;
            // The last one stopped goes on first.
            let mut waiting = standing;
            waiting.sort_by_key(|(attempt, victim)| std::cmp::Reverse((victim.at, *attempt)));
            for (nth, (attempt, victim)) in waiting.into_iter().enumerate() {
                needed = needed.plus(victim.burn_per_s);
                let fits = lasts(needed).is_none_or(|lasts| enough <= lasts) && left.is_positive();
                if !(fits && settled || alone && nth == 0) {
                    break;
                }
                self.set_victim(id, attempt, None);
            }
        }
    }

    fn set_victim(&mut self, id: &AccountId, attempt: Attempt, victim: Option<Victim>) {
        self.record(Fact::VictimSet { attempt, victim, at: self.now.mono });
        self.step_all(id, &[attempt], if victim.is_some() { StepEvent::StoodAside } else { StepEvent::StepsBack });
    }
}

/// The first of them to stop.
fn first(order: Victims, runners: &[&Job]) -> Option<Attempt> {
    let per_s = |job: &Job| job.charge.nano().saturating_mul(1_000_000_000) / i128::try_from(job.ran_ns().max(1)).unwrap_or(i128::MAX);
    let chosen = match order {
        Victims::Together => None,
        Victims::NewestFirst => runners.iter().max_by_key(|job| job.attempt),
        Victims::OldestFirst => runners.iter().min_by_key(|job| job.attempt),
        Victims::DearestFirst => runners.iter().max_by_key(|job| (per_s(job), job.attempt)),
    };
    chosen.map(|job| job.attempt)
}
