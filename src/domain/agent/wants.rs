//! What should be done about the world, told from the state alone: after a crash the same wants come back.

use std::collections::BTreeSet;

use super::super::act::{Act, Order};
use super::super::enforcement::Enforcement;
use super::super::id::Attempt;
use super::super::job::{FrozenBy, Job, Phase, Removed};
use super::super::time::Now;
use super::restraint::Restraint;
use super::{Agent, Settings};

impl Agent {
    /// Everything that should be done now.
    #[must_use]
    pub fn wants(&self, settings: &Settings, now: Now) -> Vec<Order> {
        // Most jobs simply run, on accounts that are neither empty nor warned: nothing is wanted of them.
        let short = self.accounts.values().filter(|account| account.empty_since.is_some() || account.warned.is_some());
        let mut candidates: BTreeSet<Attempt> = short.flat_map(|account| &account.jobs).chain(&self.restless).copied().collect();
        candidates.extend(self.outbid_jobs().map(|job| job.attempt));
        candidates.extend(self.held_parts());
        let at_hand = || candidates.iter().filter_map(|attempt| self.jobs.get(attempt));
        let live = at_hand().filter(|job| job.is_live() && job.phase != Phase::Awaited && job.emptied.is_none());
        let both = |job| [self.want(job, settings, now), self.want_warned(job, settings)].into_iter().flatten();
        let mut wants: Vec<Order> = live.flat_map(both).collect();
        let ended = at_hand().chain(&self.closed).filter(|job| !job.is_live() && job.removed == Removed::No);
        wants.extend(ended.map(|job| order(job, Act::Remove)));
        wants
    }

    fn want(&self, job: &Job, settings: &Settings, now: Now) -> Option<Order> {
        let act = match self.fresh_restraint(job, settings, now) {
            Restraint::Free => {
                let ours = job.phase == Phase::Frozen && job.frozen_by == Some(FrozenBy::Agent);
                (ours && self.may_thaw(job, settings, now)).then_some(Act::Thaw)
            }
            Restraint::Frozen => (job.phase == Phase::Running).then_some(Act::Freeze),
            restraint @ (Restraint::Stopped | Restraint::Terminated) => match job.terminated_at {
                None => Some(Act::Terminate),
                Some(at) => {
                    let grace = self.accounts.get(&job.account).map(|account| account.grant.policy.grace)?;
                    let over = grace <= now.mono.since(at);
                    match restraint {
                        Restraint::Stopped => (over && job.phase == Phase::Running).then_some(Act::Freeze),
                        _ => over.then_some(Act::Kill),
                    }
                }
            },
            Restraint::Killed => Some(Act::Kill),
        };
        act.map(|act| order(job, act))
    }

    /// Not while its account runs empty again and again: then each thaw waits longer than the one before.
    fn may_thaw(&self, job: &Job, settings: &Settings, now: Now) -> bool {
        let account = self.accounts.get(&job.account);
        let from = account.map(|account| account.flaps.thaw_from()).unwrap_or_default();
        from <= now.mono || self.mode_for(job, settings) < Enforcement::Enforce
    }

    fn want_warned(&self, job: &Job, settings: &Settings) -> Option<Order> {
        let warned = self.accounts.get(&job.account)?.warned?;
        let knows = job.warned_at.is_some_and(|at| warned.at <= at);
        let told = Enforcement::Notify <= self.mode_for(job, settings);
        (told && !knows).then(|| Order { signal: job.policy.warn_signal.or(settings.ladder.warn_signal), ..order(job, Act::Warn) })
    }
}

fn order(job: &Job, act: Act) -> Order {
    Order { attempt: job.attempt, target: job.target.clone(), act, signal: None }
}
