//! Credit on the node: when to ask, what an answer changes, when an account is empty, near its edge or warned.
//!
//! The rules N1 to N8 of the grant protocol: totals are durable before they are sent; one question is outstanding; only its answer
//! counts; a push voids it; what is not needed goes back at once.

use std::collections::{BTreeMap, BTreeSet};

use super::super::act::Act;
use super::super::enforcement::Enforcement;
use super::super::fact::{Fact, SettledRow};
use super::super::gang::Says;
use super::super::grant::{self, Asked, Told};
use super::super::id::{AccountId, Attempt, Epoch};
use super::super::job::{COUNTER_SETTLES, Evidence, Job, Phase, StepEvent};
use super::super::ladder::{Rung, Warned};
use super::super::ledger::sizing::used_in;
use super::super::money::Credits;
use super::super::proof::Proof;
use super::super::time::{Boot, Mono, Nanos, Now};
use super::super::wire::{Answer, OnExhaustion, PROTOCOL, Push, Request, RequestEntry, UNIT, Verdict};
use super::draft::Draft;
use super::gang::{Held, Others};
use super::outlook::{Burn, Burns, Kind, STEP_GUARD, Step, due};
use super::restraint::{Restraint, deserved, is_fresh};
use super::start::PendingStart;
use super::{Account, Agent, Settings};

/// The timer is armed this long before the earliest instant of exhaustion, so that a stalled disk has time to take the fact.
/// A disk that stalls for ten seconds is no rare thing.
const ARM_BEFORE: Nanos = Nanos::from_secs(12);
/// It is disarmed only when the edge is this far, so that it does not flap.
const DISARM_BEYOND: Nanos = Nanos::from_secs(20);
/// An answer that has not come by then is asked for with a new number.
const ANSWER_WITHIN: Nanos = Nanos::from_secs(10);
/// Renew when less than this is left of the validity.
const RENEW_BEFORE: Nanos = Nanos::from_secs(300);
/// The authority hears of what was spent at least this often while something is spent.
const TELL_EVERY: Nanos = Nanos::from_secs(30);
/// Ask in vain at most this often.
pub(super) const ASK_AGAIN_SOON: Nanos = Nanos::from_secs(1);
/// An account that is known to be exhausted asks this often, in case a push was lost.
pub(super) const POLL_EMPTY: Nanos = Nanos::from_secs(10);
/// No two questions closer than this, but for a start or a push.
pub(in crate::domain) const ASK_SPACING: Nanos = Nanos::from_millis(100);
/// The last look before a grant lapses comes this long before it does.
const LOOK_BEFORE_LAPSE: Nanos = Nanos::from_millis(10);
/// Jobs that stand still near their account's edge are looked at no more often than this.
const LOOK_AT_STILL: Nanos = Nanos::from_millis(100);
/// The next increments are asked for this long before they may be due.
pub(super) const STEP_AHEAD: Nanos = Nanos::from_secs(10);
/// The expected burn of jobs is at least this part of their greatest one, so that an idle job that wakes is funded.
const BURN_FLOOR_PART: i128 = 100;

/// Why a question is asked now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    None,
    /// Worth telling, some time.
    Lazy,
    /// As soon as the spacing allows.
    Soon,
    /// At once.
    Now,
}

impl Agent {
    /// The greatest burn of an account's jobs that the agent has not stopped, nano-credits per second: the whole host's CPUs and memory once, and the GPUs that are held.
    #[must_use]
    pub fn burn_max(&self, account: &AccountId, settings: &Settings) -> Credits {
        Burns::new(self, settings, Kind::Spread, Mono(0)).sum(self.jobs_of(account).filter(|job| job.may_cost()))
    }

    /// The burn that a question states: measured over the last seconds, and never below a part of the greatest one.
    pub(super) fn burn_expected(&self, id: &AccountId, account: &Account, settings: &Settings, now: Mono) -> Credits {
        let jobs = || self.jobs_of(id).filter(|job| job.is_live());
        let most = Burns::new(self, settings, Kind::Spread, now).sum(jobs());
        // Of jobs that stand still for want of credit nothing is measured: they are to be funded for what they may use once they run.
        if account.empty_since.is_some() || self.is_unmeasured(id, account, now) {
            return most;
        }
        let floor = Credits::from_nano((most.nano() / BURN_FLOOR_PART).max(i128::from(most.is_positive())));
        measured_burn(account).max(floor).min(most)
    }

    /// Is too little known of what the account's jobs use: one has just begun, or they were just funded again?
    pub(super) fn is_unmeasured(&self, id: &AccountId, account: &Account, now: Mono) -> bool {
        let young = |job: &Job| job.is_live() && now.since(job.opened.mono) < Nanos::from_secs(10);
        account.marks.len() < 2 || self.jobs_of(id).any(young)
    }

    /// What the account's jobs have used and nobody has paid for or written off yet.
    #[must_use]
    pub fn owed(&self, account: &AccountId) -> Credits {
        self.jobs_of(account).map(Job::owed).sum()
    }

    /// When to look at jobs whose last task has gone, to see their counters' last word.
    pub fn last_words(&self, now: Mono) -> impl Iterator<Item = (Mono, Vec<Attempt>)> {
        let due = move |job: &Job| job.counter_final_at().filter(|_| job.is_live()).map(|at| (at, vec![job.attempt]));
        // One that stood still for longer only waits for its stop to be reported: the ticks look after it.
        let restless = self.restless.iter().filter_map(|attempt| self.jobs.get(attempt)); // one without tasks is one of these
        restless.filter_map(due).filter(move |(at, _)| now.since(*at) < COUNTER_SETTLES)
    }

    /// The earliest instant at which each armed account can be empty, with the jobs to look at then; `looked` is when this process last
    /// looked at each. Jobs that stand still or have no task count as well: another may thaw them, or put a task in, between two ticks.
    #[must_use]
    pub fn edges(&self, settings: &Settings, now: Now, looked: &BTreeMap<Attempt, Mono>) -> Vec<(Mono, Vec<Attempt>)> {
        let seen_at = |job: &Job| looked.get(&job.attempt).map_or(job.counted_to, |at| job.counted_to.max(*at));
        let edge = |(id, account): (&AccountId, &Account)| {
            account.armed.filter(|_| account.empty_since.is_none())?;
            let alive: Vec<&Job> = self.jobs_of(id).filter(|job| job.is_live()).collect();
            let burns = alive.iter().any(|job| job.may_cost());
            // The oldest look decides: what was used since is not known yet.
            let seen = alive.iter().map(|job| seen_at(job)).min()?;
            let mut reckoned = Burns::new(self, settings, Kind::Smooth, now.mono);
            let burn = reckoned.sum(alive.iter().copied());
            let kept = self.pending(id).plus(due(&reckoned.steps, now.mono.plus(STEP_GUARD)));
            let lasts = grant::lasts(account.grant.in_hand(now.boot).minus(kept), burn);
            // Before each step there is a look, to see whether it can be paid for.
            let steps = reckoned.steps.iter().map(|step| Nanos(step.at.since(seen).0.saturating_sub(STEP_GUARD.0)));
            let lasts = steps.filter(|within| Nanos(0) < *within).chain(lasts).min()?;
            let lasts = if burns { lasts } else { lasts.max(LOOK_AT_STILL) };
            // What was used up to the lapse may still be drawn, if it is seen before.
            let lapse = now.mono.plus(account.grant.deadline.since(now.boot));
            let before = Mono(lapse.0.saturating_sub(LOOK_BEFORE_LAPSE.0));
            let lapse = if seen < before { before } else { lapse };
            Some((seen.plus(lasts).min(lapse), alive.iter().map(|job| job.attempt).collect()))
        };
        self.accounts.iter().filter_map(edge).collect()
    }
}

/// What an account's jobs come to.
struct Standing {
    live: Vec<Attempt>,
    owed: Credits,
    /// The greatest burn of those that are not over.
    burn_live: Credits,
    /// Kept back for their ends.
    pending: Credits,
    /// What may come all at once.
    steps: Vec<Step>,
}

impl Standing {
    /// In one pass.
    fn of(agent: &Agent, settings: &Settings, account: &AccountId, now: Mono) -> Standing {
        let mut burns = Burns::new(agent, settings, Kind::Smooth, now);
        let (mut live, mut owed, mut most) = (Vec::new(), Credits::ZERO, Burn::default());
        for job in agent.jobs_of(account) {
            owed = owed.plus(job.owed());
            if job.is_live() {
                live.push(job.attempt);
                most.add(burns.of(job));
            }
        }
        let steps = burns.steps;
        Standing { live, owed, burn_live: most.total(), pending: agent.pending(account), steps }
    }
}

/// What the account was charged per second over the marks kept.
#[must_use]
pub fn measured_burn(account: &Account) -> Credits {
    match (account.marks.front(), account.marks.back()) {
        (Some((from, before)), Some((to, after))) if from < to => {
            let length = i128::from(to.since(*from).0);
            let nano = after.minus(*before).or_zero().nano();
            Credits::from_nano(nano.checked_mul(1_000_000_000).map_or(i128::MAX, |product| product / length))
        }
        _ => Credits::ZERO,
    }
}

impl Draft<'_> {
    /// Where the account now stands, and the facts that follow from it.
    pub(super) fn review(&mut self, id: &AccountId) {
        let Some(account) = self.agent.accounts.get(id) else { return };
        let in_hand = account.grant.in_hand(self.now.boot);
        let standing = Standing::of(self.agent, self.settings, id, self.now.mono);
        let kept = standing.pending.plus(due(&standing.steps, self.now.mono.plus(STEP_GUARD)));
        let to_spend = in_hand.minus(kept);
        let short = kept.is_positive() && to_spend < Credits::ZERO;
        let Standing { live, owed, burn_live, steps, .. } = standing;
        let empty = owed.is_positive() || short || (!to_spend.is_positive() && burn_live.is_positive());
        match (empty && !live.is_empty(), account.empty_since) {
            (true, None) => {
                self.record(Fact::EmptySet { account: id.clone(), since: Some(self.now.mono), at: self.now.mono });
                self.step_all(id, &live, StepEvent::Emptied);
            }
            (false, Some(_)) => {
                let more = account.warned.is_some_and(|warned| warned.left < account.grant.left(self.now.boot));
                self.record(Fact::EmptySet { account: id.clone(), since: None, at: self.now.mono });
                // Its own next grant is no more credit: who was warned has been.
                if more {
                    self.record(Fact::WarnedSet { account: id.clone(), warned: None });
                }
                self.step_all(id, &live, StepEvent::Funded);
            }
            _ => {}
        }
        self.review_edge(id, to_spend, burn_live, &steps, &live);
        self.review_warning(id, &live);
        self.note_frozen_too_long(id, &live);
        self.review_rungs(id);
        self.review_victims(id);
        self.review_gangs(id);
        self.note_what_would_be_done(id, &live);
    }

    /// Why a job that was only to be frozen is ended.
    fn note_frozen_too_long(&mut self, id: &AccountId, live: &[Attempt]) {
        let Some(account) = self.agent.accounts.get(id).filter(|account| account.empty_since.is_some()) else { return };
        let policy = &account.grant.policy;
        let jobs = live.iter().filter_map(|attempt| self.agent.jobs.get(attempt));
        let over = |job: &&Job| {
            policy.on_exhaustion == OnExhaustion::Freeze
                && job.policy.on_exhaustion.is_none()
                && job.phase == Phase::Frozen
                && Restraint::Frozen < deserved(job, account, self.now)
        };
        let unaware: Vec<Attempt> = jobs
            .filter(over)
            .filter(|job| !noted_since_emptied(job, |event| matches!(event, StepEvent::FrozenTooLong(_))))
            .map(|job| job.attempt)
            .collect();
        self.step_all(id, &unaware, StepEvent::FrozenTooLong);
    }

    /// One more account whose jobs are to be stopped: only so many in a window of time, until an operator has looked.
    fn review_rungs(&mut self, id: &AccountId) {
        let Some(reached) = self.agent.rung_of(id, self.settings, self.now) else { return };
        let blast = self.settings.ladder.blast;
        for rung in [Rung::Freeze, Rung::End].into_iter().filter(|rung| *rung <= reached) {
            let Some(limit) = blast.limit(rung) else { continue };
            let allowed = self.agent.accounts.get(id).and_then(|account| account.allowed);
            if allowed >= Some(rung) {
                continue;
            }
            let since = Mono(self.now.mono.0.saturating_sub(blast.window.0));
            let lately = self.agent.rungs.iter().filter(|(at, stopped, _)| since <= *at && *stopped == rung);
            let accounts: BTreeSet<&AccountId> = lately.map(|(_, _, account)| account).collect();
            let fits = accounts.contains(id) || u32::try_from(accounts.len()).is_ok_and(|count| count < limit);
            if !fits {
                return;
            }
            self.record(Fact::RungAllowed { account: id.clone(), rung, at: self.now.mono });
        }
    }

    /// Where nothing is enforced, the job's steps tell what would have been done.
    fn note_what_would_be_done(&mut self, id: &AccountId, live: &[Attempt]) {
        let Some(account) = self.agent.accounts.get(id).filter(|account| account.empty_since.is_some()) else { return };
        let jobs = live.iter().filter_map(|attempt| self.agent.jobs.get(attempt));
        let watched = jobs.filter(|job| job.phase != Phase::Awaited && self.agent.mode_for(job, self.settings) < Enforcement::Enforce);
        let would = |job: &Job| match deserved(job, account, self.now) {
            Restraint::Free => None,
            Restraint::Frozen => Some(Act::Freeze),
            _ if !is_fresh(account, self.settings, self.now) => Some(Act::Freeze),
            Restraint::Stopped | Restraint::Terminated => Some(Act::Terminate),
            Restraint::Killed => Some(Act::Kill),
        };
        let news: Vec<(Attempt, Act)> =
            watched.filter_map(|job| Some((job.attempt, would(job).filter(|act| job.would < Some(*act))?))).collect();
        for (attempt, act) in news {
            self.step(attempt, StepEvent::WouldAct(act));
        }
    }

    pub(super) fn step_all(&mut self, id: &AccountId, attempts: &[Attempt], event: impl Fn(Evidence) -> StepEvent) {
        // All but the job's own counter and cost is the account's.
        let of_account = self.evidence(id);
        for attempt in attempts {
            let Some(job) = self.agent.jobs.get(attempt) else { continue };
            let evidence = Evidence { cpu_counter_ns: job.cpu_counter_ns, charge: job.charge, ..of_account.clone() };
            self.step(*attempt, event(evidence));
        }
    }

    /// The account's balance as it now stands.
    fn evidence(&self, id: &AccountId) -> Evidence {
        let grant = self.agent.accounts.get(id).map(|account| account.grant.clone()).unwrap_or_default();
        let burn_max_per_s = self.agent.burn_max(id, self.settings);
        let in_hand = grant.in_hand(self.now.boot);
        Evidence {
            cpu_counter_ns: None,
            charge: Credits::ZERO,
            granted: grant.granted,
            returned: grant.returned,
            spent: grant.spent,
            in_hand,
            burn_max_per_s,
            lasts: grant::lasts(in_hand, burn_max_per_s),
            verdict: grant.verdict.map(|heard| (heard.verdict, heard.request)),
            free: grant.free,
        }
    }

    fn review_edge(&mut self, id: &AccountId, to_spend: Credits, burn_live: Credits, steps: &[Step], live: &[Attempt]) {
        let armed = self.agent.accounts.get(id).is_some_and(|account| account.armed.is_some());
        let enforced = self.agent.mode_for_account(id, self.settings) == Enforcement::Enforce;
        let lasts = self.lasts_at_most(id, to_spend, burn_live);
        // A step comes all at once, and what is burnt until then is gone by then.
        let stepped = |within: Nanos| {
            let coming = |step: &&Step| self.now.mono.plus(STEP_GUARD) < step.at && step.at <= self.now.mono.plus(within);
            let cost: Credits = steps.iter().filter(coming).map(|step| step.cost).sum();
            cost.is_positive() && to_spend < cost.plus(used_in(burn_live, within))
        };
        let lasts = if stepped(DISARM_BEYOND) { Some(lasts.unwrap_or(ARM_BEFORE).min(DISARM_BEYOND)) } else { lasts };
        let lasts = if stepped(ARM_BEFORE) { lasts.map(|lasts| lasts.min(Nanos(ARM_BEFORE.0 - 1))) } else { lasts };
        let near = enforced && lasts.is_some_and(|lasts| lasts < ARM_BEFORE);
        let far = !enforced || lasts.is_none_or(|lasts| DISARM_BEYOND < lasts);
        if near && !armed {
            let evidence = self.evidence(id);
            let earliest = self.now.mono.plus(lasts.unwrap_or_default());
            self.record(Fact::Armed { account: id.clone(), earliest, evidence: Box::new(evidence) });
            self.step_all(id, live, StepEvent::Armed);
        } else if far && armed {
            self.record(Fact::Disarmed { account: id.clone() });
        }
    }

    /// How long what is in hand lasts if every job burns its most, those that stand still or have no task included: a job must not run
    /// again before its edge is armed. Never beyond the deadline.
    fn lasts_at_most(&self, id: &AccountId, in_hand: Credits, burn_live: Credits) -> Option<Nanos> {
        let lasts = grant::lasts(in_hand, burn_live)?;
        let deadline = self.agent.accounts.get(id).map_or(Boot(0), |account| account.grant.deadline);
        Some(lasts.min(deadline.since(self.now.boot)))
    }

    fn review_warning(&mut self, id: &AccountId, live: &[Attempt]) {
        let Some(account) = self.agent.accounts.get(id) else { return };
        let left = account.grant.left(self.now.boot);
        let lasts = grant::lasts(left, measured_burn(account));
        let heard = account.grant.verdict.is_some();
        let (warned, reached) = (account.warned, lasts.and_then(|lasts| account.grant.policy.warn_before.reached(lasts)));
        // A burn that falls for a moment lifts no warning: only credit does.
        let more = warned.is_some_and(|warned| warned.left < left && lasts.is_none_or(|lasts| warned.before <= lasts));
        if more {
            self.record(Fact::WarnedSet { account: id.clone(), warned: None });
        }
        let Some(before) = reached.filter(|_| heard && !live.is_empty()) else { return };
        if warned.filter(|_| !more).is_none_or(|warned| before < warned.before) {
            let warned = Warned { at: self.now.mono, before, left };
            self.record(Fact::WarnedSet { account: id.clone(), warned: Some(warned) });
            self.step_all(id, live, StepEvent::Warned);
        }
    }

    /// Nothing runs on the account here any more: what is in hand goes back (N7).
    pub(super) fn give_back(&mut self, id: &AccountId) {
        let idle = self.agent.jobs_of(id).next().is_none();
        let held = self.agent.accounts.get(id).map_or(Credits::ZERO, |account| account.grant.held());
        if idle && held.is_positive() {
            let returned = self.agent.accounts.get(id).map_or(held, |account| account.grant.returned.plus(held));
            self.record(Fact::Returned { account: id.clone(), returned });
        }
        if idle {
            self.review(id);
        }
    }

    /// The owner takes credit back: what is held beyond this goes.
    fn give_back_beyond(&mut self, id: &AccountId, may_stay: Credits) {
        let Some(grant) = self.agent.accounts.get(id).map(|account| &account.grant) else { return };
        let part = grant.held().minus(may_stay);
        if part.is_positive() {
            let returned = grant.returned.plus(part);
            self.record(Fact::Returned { account: id.clone(), returned });
        }
    }

    /// The authority says that the account has changed.
    pub fn pushed(&mut self, push: &Push) {
        let news = self
            .agent
            .accounts
            .get(&push.account)
            .is_some_and(|account| account.grant.version < push.version && account.grant.pushed_version < push.version);
        if news {
            self.record(Fact::Pushed { account: push.account.clone(), version: push.version });
        }
    }

    /// An answer. Dropped whole if it is not to the outstanding question.
    pub fn answered(&mut self, answer: &Answer, fresh_epoch: Epoch) {
        let Some(outstanding) = &self.agent.outstanding else { return };
        let ours = answer.protocol == PROTOCOL
            && answer.epoch == outstanding.request.epoch
            && answer.request == outstanding.request.request
            && answer.digest == outstanding.request.digest();
        if !ours {
            return;
        }
        let asked = |id: &AccountId| outstanding.request.entries.iter().any(|entry| entry.account == *id);
        let taken: Vec<_> = answer.entries.iter().filter(|entry| entry.unit == UNIT && asked(&entry.account)).cloned().collect();
        let accounts: Vec<AccountId> = taken.iter().map(|entry| entry.account.clone()).collect();
        let void = taken.iter().any(|entry| entry.verdict.voids_epoch());
        let proofs: Vec<(AccountId, Proof)> = taken.iter().filter_map(|entry| Some((entry.account.clone(), entry.proof?))).collect();
        let recalled: BTreeMap<AccountId, Credits> =
            taken.iter().filter(|entry| entry.verdict == Verdict::Recall).map(|entry| (entry.account.clone(), entry.free)).collect();
        self.record(Fact::Answered { request: answer.request, acknowledged: answer.acknowledged.clone(), entries: taken, at: self.now });
        if !proofs.is_empty() || self.agent.standing.generation_seen < answer.generation {
            self.record(Fact::AnsweredRest { generation: answer.generation, proofs });
        }
        self.heard_gangs(&answer.gangs);
        if void {
            self.epoch_void(fresh_epoch);
        }
        for id in accounts {
            self.settle(&id);
            if let Some(may_stay) = recalled.get(&id) {
                self.give_back_beyond(&id, *may_stay);
            }
            self.review(&id);
        }
    }

    /// Pays what is owed from what is in hand; what a fresh "exhausted" leaves is written off.
    fn settle(&mut self, id: &AccountId) {
        let mut in_hand = self.in_hand(id);
        // An account that does not exist will never pay either, nor may one that nobody vouches for or that is not admitted here: what ran on it all the same is written off.
        let heard = self.agent.accounts.get(id).and_then(|account| account.grant.verdict);
        let dry = !in_hand.is_positive();
        let newly = dry && heard.is_some_and(|heard| heard.verdict == Verdict::Exhausted);
        let never = dry
            && heard.is_some_and(|heard| matches!(heard.verdict, Verdict::UnknownAccount | Verdict::NotVerified | Verdict::NotAdmitted));
        let mut rows = Vec::new();
        for job in self.agent.jobs_of(id) {
            let owed = job.owed();
            let draw = owed.min(in_hand.or_zero());
            in_hand = in_hand.minus(draw);
            let lost = if newly || never { owed.minus(draw) } else { Credits::ZERO };
            if draw.is_positive() || lost.is_positive() {
                rows.push(SettledRow { attempt: job.attempt, drawn: job.drawn.plus(draw), unfunded: job.unfunded.plus(lost) });
            }
        }
        if !rows.is_empty() {
            self.record(Fact::Settled { rows });
        }
        if newly {
            let unaware = |job: &&Job| job.is_live() && !noted_since_emptied(job, |event| matches!(event, StepEvent::Exhausted(_)));
            let fresh: Vec<Attempt> = self.agent.jobs_of(id).filter(unaware).map(|job| job.attempt).collect();
            self.step_all(id, &fresh, StepEvent::Exhausted);
        }
        let ended: Vec<Attempt> = self.agent.jobs_of(id).filter(|job| job.ended.is_some()).map(|job| job.attempt).collect();
        for attempt in ended {
            self.close_if_settled(attempt);
        }
    }

    /// Asks, if anything is needed and the last question is answered or too old.
    pub fn ask(&mut self, starts: &[PendingStart]) {
        self.give_back_idle(starts);
        self.give_back_surplus(starts);
        let Some((epoch, boot)) = self.agent.epoch else { return };
        let since_last = self.now.boot.since(self.agent.asked_at);
        if self.agent.outstanding.is_some() && since_last < ANSWER_WITHIN {
            return;
        }
        if self.agent.outstanding.is_some() && self.agent.standing.is_full() {
            return; // only repeated, until it is answered
        }
        if since_last < ASK_SPACING && !self.is_pressing(starts) {
            return; // whatever is needed, it has to wait
        }
        let needs: Vec<(AccountId, Need)> =
            self.accounts_known(starts).into_iter().map(|id| (id.clone(), self.need(&id, starts))).collect();
        let most = needs.iter().map(|(_, need)| *need).max().unwrap_or(Need::None);
        let most = if self.agent.previous.is_empty() { most } else { most.max(Need::Soon) };
        let due = match most {
            Need::None => false,
            Need::Lazy => TELL_EVERY <= since_last,
            Need::Soon => ASK_SPACING <= since_last,
            Need::Now => true,
        };
        if !due {
            return;
        }
        let entries = needs.iter().filter(|(_, need)| Need::None < *need).map(|(id, _)| self.entry(id, starts)).collect();
        let mut request = Request {
            protocol: PROTOCOL,
            node: self.settings.node.clone(),
            epoch,
            boot,
            request: self.agent.asked + 1,
            previous: self.agent.previous.clone(),
            entries,
            generation_seen: self.agent.standing.generation_seen,
            history: self.agent.standing.history.clone(),
            gangs: Vec::new(),
            refunds: Vec::new(),
        };
        request.gangs = self.words(&request);
        let rest = if request.is_plain() { None } else { Some(Box::new(request.rest())) };
        let (number, words) = (request.request, request.gangs.clone());
        self.record(Fact::Asked { request: Box::new(request), first_sent: self.now.boot });
        if let Some(rest) = rest {
            self.record(Fact::AskedRest { rest });
        }
        if !words.is_empty() {
            self.record(Fact::GangsSaid { request: number, words });
        }
    }

    /// Is there a need that does not wait for the spacing?
    fn is_pressing(&self, starts: &[PendingStart]) -> bool {
        let pushed = || self.agent.accounts.values().any(|account| account.grant.push_unanswered());
        starts.iter().any(|start| start.asked.is_none()) || pushed() || self.agent.is_dry_untold()
    }

    /// Credit that came for nobody: its job ended while the question was under way, or its start was refused.
    fn give_back_idle(&mut self, starts: &[PendingStart]) {
        let held = self.agent.accounts.iter().filter(|(_, account)| account.grant.held().is_positive()).map(|(id, _)| id);
        let waits = |id: &AccountId| starts.iter().any(|start| start.wanted.account == *id);
        let idle: Vec<AccountId> = held.filter(|id| !waits(id) && self.agent.jobs_of(id).next().is_none()).cloned().collect();
        for id in idle {
            self.give_back(&id);
        }
    }

    fn accounts_known(&self, starts: &[PendingStart]) -> Vec<AccountId> {
        let mut known: Vec<AccountId> = self.agent.accounts.keys().cloned().collect();
        for start in starts {
            if !known.contains(&start.wanted.account) {
                known.push(start.wanted.account.clone());
            }
        }
        known
    }

    fn need(&self, id: &AccountId, starts: &[PendingStart]) -> Need {
        if starts.iter().any(|start| start.wanted.account == *id && start.asked.is_none()) {
            return Need::Now;
        }
        let Some(account) = self.agent.accounts.get(id) else { return Need::None };
        if let Some(says) = self.agent.untold_of(id, self.settings, self.now) {
            return if says == Says::Dry { Need::Now } else { Need::Soon };
        }
        let grant = &account.grant;
        let told = Told { spent: grant.spent, returned: grant.returned, unfunded: grant.unfunded };
        let live = self.agent.jobs_of(id).next().is_some();
        let untold = if grant.told == told { Need::None } else { Need::Lazy };
        if self.agent.has_untold_refund(id) {
            return Need::Soon;
        }
        // Of a question without an answer nobody knows what it brought: ask until that is heard, or it would be held for nobody.
        if grant.asked == Asked::Yes || grant.told.returned != told.returned || (!live && untold == Need::Lazy) {
            return Need::Soon;
        }
        // An account that nobody uses here is heard of too: silent for longer than its last word was good for, it would be given up.
        let is_known = grant.verdict.is_some() || 0 < grant.version;
        let is_unheard = is_known && (grant.push_unanswered() || grant.hear_again_at <= self.now.boot);
        let untold = if is_unheard { Need::Lazy } else { untold };
        if !live {
            return untold;
        }
        if grant.push_unanswered() {
            return Need::Now;
        }
        let Some(heard) = grant.verdict else { return Need::Soon };
        let heard_ago = self.now.boot.since(heard.at);
        let in_hand = grant.in_hand(self.now.boot);
        let owed = self.agent.owed(id).is_positive();
        let half_used = in_hand.plus(in_hand) < grant.horizon || in_hand.is_zero();
        let lapsing = self.now.boot.plus(RENEW_BEFORE) > grant.deadline;
        let pace = match heard.verdict {
            Verdict::Granted => Nanos(0),
            Verdict::Final if owed => Nanos(0), // ran dry: only the authority can say whether that was all
            Verdict::Exhausted | Verdict::NotVerified | Verdict::NotAdmitted if !owed => POLL_EMPTY,
            _ => ASK_AGAIN_SOON,
        };
        // What stands still goes on with what is in hand, and its thaw may wait for longer than that is good.
        let still = || self.agent.jobs_of(id).any(|job| job.is_live() && job.emptied.is_none() && job.phase == Phase::Frozen);
        let burning = || self.agent.burn_max(id, self.settings).is_positive() || account.empty_since.is_some() || still();
        let kept = self.agent.kept(id, self.settings, self.now.mono, STEP_AHEAD);
        let short = kept.is_positive() && in_hand < kept;
        // Of a short grant half is seen to be used only when hardly anything is left: it is asked for more while a quarter is sure to be left.
        let by_next_look = in_hand.minus(used_in(measured_burn(account), self.settings.interval));
        let soon_used = in_hand < grant.horizon && [by_next_look; 4].into_iter().sum::<Credits>() < grant.horizon;
        let half_used = half_used || soon_used || in_hand.plus(in_hand) < grant.horizon.plus(kept);
        let held = self.agent.held_of(id).is_some_and(|held| held.pace(in_hand, heard.verdict) <= heard_ago);
        if held || pace <= heard_ago && (owed || short || ((half_used || lapsing) && burning())) { Need::Soon } else { untold }
    }

    fn entry(&self, id: &AccountId, starts: &[PendingStart]) -> RequestEntry {
        let account = self.agent.accounts.get(id);
        let grant = account.map(|account| account.grant.clone()).unwrap_or_default();
        let waiting = || starts.iter().filter(|start| start.wanted.account == *id);
        let burn_new: Credits = waiting().map(|start| self.burn_of_start(start)).sum();
        let held = self.agent.held_of(id).filter(|held| held.others == Others::None);
        let expected = |account| held.map_or_else(|| self.agent.burn_expected(id, account, self.settings, self.now.mono), Held::burn_per_s);
        let burn = account.map_or(Credits::ZERO, expected);
        let start_price = |start| {
            let price = self.start_price(start);
            price.cost.plus(price.pending)
        };
        let kept = self.agent.kept(id, self.settings, self.now.mono, STEP_AHEAD);
        let useful = starts.iter().any(|start| start.wanted.account == *id) || self.agent.jobs_of(id).next().is_some();
        let wanted_now: Credits = waiting().map(start_price).sum();
        RequestEntry {
            account: id.clone(),
            unit: UNIT.to_owned(),
            granted_seen: grant.granted,
            returned: grant.returned,
            spent: grant.spent,
            unfunded: grant.unfunded,
            owed: self.agent.owed(id).plus(wanted_now).plus(kept),
            burn_per_s: burn.plus(burn_new),
            // Only for somebody who would use it: else it came and went for ever.
            at_least: Credits::from_nano(i128::from(useful)),
            validity: Some(grant.validity(self.now.boot)),
            proof: grant.proof,
        }
    }
}

/// Has such a step been noted since the job's account last ran empty?
fn noted_since_emptied(job: &Job, is_such: impl Fn(&StepEvent) -> bool) -> bool {
    let mut since = job.steps.iter().rev().take_while(|step| !matches!(step.event, StepEvent::Emptied(_)));
    since.any(|step| is_such(&step.event))
}
