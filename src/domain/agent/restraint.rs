//! What a job is to be held to, from nothing to its end, and how far the agent may go in that.

use super::super::enforcement::Enforcement;
use super::super::id::{AccountId, Attempt, Uid};
use super::super::job::{Job, Phase};
use super::super::ladder::{Rung, Then};
use super::super::time::{Nanos, Now};
use super::super::wire::{OnExhaustion, Unreachable};
use super::{Account, Agent, Settings};

/// The authority's "exhausted" ends a job only while it is this young: an empty account asks again twice in that time.
const FRESH_FOR: Nanos = Nanos::from_secs(20);

/// What a job is to be held to, from nothing to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Restraint {
    /// It may run.
    Free,
    /// It stands still until credit arrives.
    Frozen,
    /// It is asked to end, and stands still after the grace.
    Stopped,
    /// It is asked to end, and ended after the grace.
    Terminated,
    /// It is ended.
    Killed,
}

impl Agent {
    /// How far the agent goes against an account's jobs: no further than the node, and no further than the account's policy.
    #[must_use]
    pub fn mode_for_account(&self, id: &AccountId, settings: &Settings) -> Enforcement {
        if settings.ladder.exempt.accounts.contains(id) {
            return Enforcement::Observe;
        }
        let own = self.accounts.get(id).map_or(Enforcement::Enforce, |account| account.grant.policy.enforcement);
        self.mode(settings).min(own)
    }

    /// How far it goes against a job: not at all if its owner is exempt.
    #[must_use]
    pub fn mode_for(&self, job: &Job, settings: &Settings) -> Enforcement {
        self.mode_for_owner(&job.account, job.owner, settings)
    }

    /// The same, of a job of this account and owner.
    pub(super) fn mode_for_owner(&self, account: &AccountId, owner: Uid, settings: &Settings) -> Enforcement {
        if settings.ladder.exempt.holds(account, owner) {
            return Enforcement::Observe;
        }
        self.mode_for_account(account, settings)
    }

    /// What the job is to be held to. Only the account's emptiness, which the node knows by itself, freezes, or that of another part of its
    /// gang, and a bid that its card minds; only the authority's word ends.
    #[must_use]
    pub fn restraint(&self, attempt: Attempt, settings: &Settings, now: Now) -> Restraint {
        self.restraint_by_itself(attempt, settings, now).max(self.by_gang(attempt, settings))
    }

    /// By its gang alone.
    fn by_gang(&self, attempt: Attempt, settings: &Settings) -> Restraint {
        let held = self.is_held_by_gang(attempt) && self.may_hold(attempt, settings);
        if held { Restraint::Frozen } else { Restraint::Free }
    }

    /// Is it enforced that a job stands still with its gang, and is its account one of those that may be stopped now?
    fn may_hold(&self, attempt: Attempt, settings: &Settings) -> bool {
        let Some(job) = self.jobs.get(&attempt).filter(|job| self.mode_for(job, settings) == Enforcement::Enforce) else { return false };
        let allowed = self.accounts.get(&job.account).and_then(|account| account.allowed);
        settings.ladder.blast.limit(Rung::Freeze).is_none() || allowed >= Some(Rung::Freeze)
    }

    /// The same without regard to its gang.
    pub(super) fn restraint_by_itself(&self, attempt: Attempt, settings: &Settings, now: Now) -> Restraint {
        self.by_account(attempt, settings, now).max(self.own_restraint(attempt, settings))
    }

    /// By its own bid alone.
    fn own_restraint(&self, attempt: Attempt, settings: &Settings) -> Restraint {
        let job = self.jobs.get(&attempt).filter(|job| job.bid().is_some() && self.mode_for(job, settings) == Enforcement::Enforce);
        job.map_or(Restraint::Free, |job| self.by_bid(job))
    }

    fn by_account(&self, attempt: Attempt, settings: &Settings, now: Now) -> Restraint {
        let job = self.jobs.get(&attempt).filter(|job| self.mode_for(job, settings) == Enforcement::Enforce);
        let Some((job, account)) = job.and_then(|job| Some((job, self.accounts.get(&job.account)?))) else { return Restraint::Free };
        let allowed = |rung| settings.ladder.blast.limit(rung).is_none() || account.allowed >= Some(rung);
        match deserved(job, account, now) {
            Restraint::Stopped | Restraint::Terminated | Restraint::Killed if !allowed(Rung::End) && allowed(Rung::Freeze) => {
                Restraint::Frozen
            }
            restraint if allowed(Rung::Freeze) => restraint,
            _ => spared(job),
        }
    }

    /// A word that is not fresh ends nothing: then the job only stands still, until the authority says it again.
    pub(super) fn fresh_restraint(&self, job: &Job, settings: &Settings, now: Now) -> Restraint {
        let restraint = self.by_account(job.attempt, settings, now);
        let account = self.accounts.get(&job.account);
        let fresh = account.is_some_and(|account| is_fresh(account, settings, now));
        let restraint = if fresh { restraint } else { restraint.min(Restraint::Frozen) };
        restraint.max(self.own_restraint(job.attempt, settings)).max(self.by_gang(job.attempt, settings))
    }

    /// The furthest rung that the account's jobs have come to, whether or not that is allowed.
    fn rung_of_its_own(&self, id: &AccountId, settings: &Settings, now: Now) -> Option<Rung> {
        let account = self.accounts.get(id).filter(|account| account.empty_since.is_some())?;
        let enforced = |job: &&Job| job.is_live() && job.phase != Phase::Awaited && self.mode_for(job, settings) == Enforcement::Enforce;
        let most = self.jobs_of(id).filter(enforced).map(|job| deserved(job, account, now)).max()?;
        match most {
            Restraint::Free => None,
            Restraint::Frozen => Some(Rung::Freeze),
            Restraint::Stopped | Restraint::Terminated | Restraint::Killed if !is_fresh(account, settings, now) => Some(Rung::Freeze),
            Restraint::Stopped | Restraint::Terminated | Restraint::Killed => Some(Rung::End),
        }
    }

    /// The same with those jobs that stand still with their gangs.
    pub(super) fn rung_of(&self, id: &AccountId, settings: &Settings, now: Now) -> Option<Rung> {
        let enforced = || self.mode_for_account(id, settings) == Enforcement::Enforce;
        let held = self.held_of(id).filter(|_| enforced()).map(|_| Rung::Freeze);
        self.rung_of_its_own(id, settings, now).max(held)
    }

    /// Accounts against whose jobs more would be done if not so many others had been stopped in the same window of time.
    #[must_use]
    pub fn held_back(&self, settings: &Settings, now: Now) -> Vec<AccountId> {
        let blast = &settings.ladder.blast;
        let held = |id: &&AccountId| {
            let allowed = self.accounts.get(*id).and_then(|account| account.allowed);
            let rung = self.rung_of(id, settings, now);
            [Rung::Freeze, Rung::End].into_iter().any(|step| Some(step) <= rung && allowed < Some(step) && blast.limit(step).is_some())
        };
        let empty = self.accounts.iter().filter(|(_, account)| account.empty_since.is_some()).map(|(id, _)| id);
        empty.filter(held).cloned().collect()
    }
}

/// What a job is to be held to where that is enforced, as far as its account has come.
pub(super) fn deserved(job: &Job, account: &Account, now: Now) -> Restraint {
    let Some(since) = account.empty_since else { return spared(job) };
    let policy = &account.grant.policy;
    let stricter = |own: &OnExhaustion| severity(policy.on_exhaustion) < severity(*own);
    let rule = job.policy.on_exhaustion.filter(stricter).unwrap_or(policy.on_exhaustion);
    match (rule, account.grant.exhausted()) {
        (OnExhaustion::AllowNegative | OnExhaustion::RefuseNew, _) => spared(job),
        (_, None) if policy.unreachable == Unreachable::RunOn => spared(job),
        (_, None) => Restraint::Frozen,
        (OnExhaustion::Freeze | OnExhaustion::Stop, Some(_)) => match policy.freeze_ttl {
            Some(ttl) if ttl <= now.mono.since(since) => match policy.then {
                Then::Terminate => Restraint::Terminated,
                Then::Kill => Restraint::Killed,
            },
            _ if rule == OnExhaustion::Stop => Restraint::Stopped,
            _ => Restraint::Frozen,
        },
        (OnExhaustion::Terminate, Some(_)) => Restraint::Terminated,
        (OnExhaustion::Kill, Some(_)) => Restraint::Killed,
    }
}

/// Not for its own account's want of credit: only for the sake of the account's other jobs.
fn spared(job: &Job) -> Restraint {
    if job.victim.is_some() { Restraint::Frozen } else { Restraint::Free }
}

fn severity(rule: OnExhaustion) -> u8 {
    match rule {
        OnExhaustion::AllowNegative | OnExhaustion::RefuseNew => 0,
        OnExhaustion::Freeze => 1,
        OnExhaustion::Stop => 2,
        OnExhaustion::Terminate => 3,
        OnExhaustion::Kill => 4,
    }
}

/// A word that an earlier process heard is not fresh: nobody knows what was pushed since.
pub(super) fn is_fresh(account: &Account, settings: &Settings, now: Now) -> bool {
    account.grant.exhausted().is_some_and(|heard| settings.woke_at <= heard.at && now.boot.since(heard.at) <= FRESH_FOR)
}
