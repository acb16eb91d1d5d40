//! What should be done about the world, told from the state alone: after a crash the same wants come back.

use std::collections::BTreeSet;

use super::super::act::{Act, Order};
use super::super::enforcement::Enforcement;
use super::super::id::Attempt;
use super::super::job::{FrozenBy, Job, Phase, Removed};
use super::super::time::{Nanos, Now};
use super::super::wire::OnExhaustion;
use super::{Agent, Settings};

/// The authority's "exhausted" ends a job only while it is this young: an empty account asks again twice in that time.
const FRESH_FOR: Nanos = Nanos::from_secs(20);

/// What a job is to be held to, from nothing to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Restraint {
    /// It may run.
    Free,
    /// It stands still until credit arrives.
    Frozen,
    /// It is asked to end, and ended after the grace.
    Terminated,
    /// It is ended.
    Killed,
}

impl Agent {
    /// What the job is to be held to. Only the account's emptiness, which the node knows by itself, freezes; only the authority's fresh
    /// word ends.
    #[must_use]
    pub fn restraint(&self, attempt: Attempt, settings: &Settings) -> Restraint {
        let account = self.jobs.get(&attempt).and_then(|job| self.accounts.get(&job.account));
        let enforced = self.mode(settings) == Enforcement::Enforce;
        let Some(account) = account.filter(|account| enforced && account.empty_since.is_some()) else { return Restraint::Free };
        match (account.grant.policy.on_exhaustion, account.grant.exhausted()) {
            (OnExhaustion::AllowNegative, _) => Restraint::Free,
            (OnExhaustion::Freeze, _) | (_, None) => Restraint::Frozen,
            (OnExhaustion::Terminate, Some(_)) => Restraint::Terminated,
            (OnExhaustion::Kill, Some(_)) => Restraint::Killed,
        }
    }

    /// Everything that should be done now.
    #[must_use]
    pub fn wants(&self, settings: &Settings, now: Now) -> Vec<Order> {
        let order = |job: &Job, act| Order { attempt: job.attempt, target: job.target.clone(), act };
        // Most jobs simply run, on accounts that are not empty: nothing is wanted of them.
        let empty = self.accounts.values().filter(|account| account.empty_since.is_some());
        let candidates: BTreeSet<Attempt> = empty.flat_map(|account| &account.jobs).chain(&self.restless).copied().collect();
        let at_hand = || candidates.iter().filter_map(|attempt| self.jobs.get(attempt));
        let live = at_hand().filter(|job| job.is_live());
        let mut wants: Vec<Order> = live.filter_map(|job| self.want(job, settings, now).map(|act| order(job, act))).collect();
        let ended = at_hand().chain(&self.closed).filter(|job| !job.is_live() && job.removed == Removed::No);
        wants.extend(ended.map(|job| order(job, Act::Remove)));
        wants
    }

    /// A word that is not fresh ends nothing: then the job only stands still, until the authority says it again.
    fn fresh_restraint(&self, job: &Job, settings: &Settings, now: Now) -> Restraint {
        let heard = self.accounts.get(&job.account).and_then(|account| account.grant.exhausted());
        let fresh = heard.is_some_and(|heard| now.boot.since(heard.at) <= FRESH_FOR);
        let restraint = self.restraint(job.attempt, settings);
        if fresh { restraint } else { restraint.min(Restraint::Frozen) }
    }

    fn want(&self, job: &Job, settings: &Settings, now: Now) -> Option<Act> {
        let running = job.phase == Phase::Running;
        if job.phase == Phase::Awaited || job.emptied.is_some() {
            return None;
        }
        match self.fresh_restraint(job, settings, now) {
            Restraint::Free => (job.phase == Phase::Frozen && job.frozen_by == Some(FrozenBy::Agent)).then_some(Act::Thaw),
            Restraint::Frozen => running.then_some(Act::Freeze),
            Restraint::Terminated => match job.terminated_at {
                None => Some(Act::Terminate),
                Some(at) => {
                    let grace = self.accounts.get(&job.account).map(|account| account.grant.policy.grace)?;
                    (grace <= now.mono.since(at)).then_some(Act::Kill)
                }
            },
            Restraint::Killed => Some(Act::Kill),
        }
    }
}
