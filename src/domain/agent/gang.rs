//! Parts of gangs on this node: what they say, and what follows for their jobs. See [`super::super::gang`].
//!
//! A part that cannot reach the authority runs on what it holds, and no longer; whatever it hears, it runs only on credit of its own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::enforcement::Enforcement;
use super::super::fact::Fact;
use super::super::gang::{GangWant, GangWord, Latch, Own, Part, Says, THAW_MIN, Want};
use super::super::id::{AccountId, Attempt, NodeId};
use super::super::job::{Job, StepEvent};
use super::super::ledger::sizing::used_in;
use super::super::money::{Credits, NANO};
use super::super::time::{Nanos, Now};
use super::super::wire::{OnExhaustion, Request, Verdict};
use super::credit::{ASK_AGAIN_SOON, POLL_EMPTY};
use super::draft::Draft;
use super::restraint::Restraint;
use super::{Agent, Settings};

/// Parts of gangs by their jobs: those that are at hand, and those whose end the authority has not heard of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts(BTreeMap<Attempt, Part>);

/// What the parts of one account that stand still with their gangs come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// What they are to hold before they go on.
    pub(super) needs: Credits,
    /// Is anything else alive on the account here?
    pub(super) others: Others,
}

/// Are there other live jobs?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others {
    /// Yes.
    Some,
    /// No.
    None,
}

impl Held {
    /// How long after an answer to ask again: soon for what was not granted at once, else now and then, in case a push was lost.
    pub(super) fn pace(self, in_hand: Credits, verdict: Verdict) -> Nanos {
        if in_hand < self.needs && verdict == Verdict::Granted { ASK_AGAIN_SOON } else { POLL_EMPTY }
    }

    /// What they may be expected to use once they go on, nano-credits per second.
    pub(super) fn burn_per_s(self) -> Credits {
        Credits::from_nano((self.needs.nano().saturating_mul(NANO) / i128::from(THAW_MIN.0)).max(1))
    }
}

impl Agent {
    /// The gang that a job is a part of.
    #[must_use]
    pub fn part(&self, attempt: Attempt) -> Option<&Part> {
        self.gangs.0.get(&attempt)
    }

    /// Jobs that are to stand still with their gangs, whatever credit they hold.
    pub(super) fn held_parts(&self) -> impl Iterator<Item = Attempt> + '_ {
        self.gangs.0.iter().filter(|(_, part)| part.is_held()).map(|(attempt, _)| *attempt)
    }

    pub(super) fn is_held_by_gang(&self, attempt: Attempt) -> bool {
        !self.gangs.0.is_empty() && self.part(attempt).is_some_and(Part::is_held)
    }

    /// The live parts of one account that stand still with their gangs; none if there are none.
    pub(super) fn held_of(&self, account: &AccountId) -> Option<Held> {
        if self.gangs.0.is_empty() {
            return None;
        }
        let (mut needs, mut others) = (None, Others::None);
        for job in self.jobs_of(account).filter(|job| job.is_live()) {
            match self.part(job.attempt).filter(|part| part.is_held()) {
                Some(part) => needs = needs.max(Some(part.needs)), // each measured what the whole account uses here
                None => others = Others::Some,
            }
        }
        needs.map(|needs| Held { needs, others })
    }

    /// Is one of the account's live jobs a part of a gang?
    pub(super) fn has_part(&self, account: &AccountId) -> bool {
        !self.gangs.0.is_empty() && self.jobs_of(account).any(|job| job.is_live() && self.part(job.attempt).is_some())
    }

    /// How a job stands by itself, its gang apart.
    fn own(&self, job: &Job, part: &Part, settings: &Settings, now: Now) -> Own {
        if Restraint::Free < self.restraint_by_itself(job.attempt, settings, now) {
            return Own::Dry;
        }
        let Some(account) = self.accounts.get(&job.account) else { return Own::Funded };
        let past_zero = matches!(account.grant.policy.on_exhaustion, OnExhaustion::AllowNegative | OnExhaustion::RefuseNew);
        if past_zero || self.mode_for(job, settings) < Enforcement::Enforce {
            return Own::Funded; // it is never stopped for want of credit
        }
        if now.mono < account.flaps.thaw_from() {
            return Own::Short; // it would not go on yet, and the others would wait for it
        }
        let in_hand = account.grant.in_hand(now.boot).minus(self.owed(&job.account)).minus(self.pending(&job.account));
        let heard = account.grant.verdict.map(|heard| heard.verdict);
        let all_there_is = in_hand.is_positive() && heard.is_some_and(|verdict| verdict != Verdict::Granted);
        if part.needs <= in_hand || all_there_is { Own::Funded } else { Own::Short }
    }

    fn word_of(&self, attempt: Attempt, part: &Part, settings: &Settings, now: Now) -> GangWord {
        let live = self.jobs.get(&attempt).filter(|job| job.is_live());
        let says = live.map_or(Says::Left, |job| part.says(self.own(job, part, settings, now)));
        GangWord { gang: part.gang.clone(), part: attempt, says, version: part.version }
    }

    /// What there is to say of the gangs of one account: how all its parts stand.
    pub(super) fn words_of(&self, account: &AccountId, settings: &Settings, now: Now) -> Vec<GangWord> {
        let parts = self.gangs.0.iter().filter(|(_, part)| part.gang.account == *account && !is_done(part));
        parts.map(|(attempt, part)| self.word_of(*attempt, part, settings, now)).collect()
    }

    /// Of one account: a word that the authority has not heard.
    pub(super) fn untold_of(&self, account: &AccountId, settings: &Settings, now: Now) -> Option<Says> {
        if self.gangs.0.is_empty() {
            return None;
        }
        let told = |word: &GangWord| self.part(word.part).and_then(|part| part.told) == Some((word.says, word.version));
        let untold = self.words_of(account, settings, now).into_iter().filter(|word| !told(word)).map(|word| word.says);
        untold.min_by_key(|says| *says != Says::Dry)
    }

    /// Has a part run dry, and has the authority not heard of it?
    pub(super) fn is_dry_untold(&self) -> bool {
        let dry = |part: &Part| part.latch == Latch::Dry && part.told != Some((Says::Dry, part.version));
        self.gangs.0.values().any(dry)
    }

    pub(super) fn join(&mut self, attempt: Attempt, gang: &super::super::gang::Gang) {
        if let Some(job) = self.jobs.get(&attempt) {
            self.gangs.0.insert(attempt, Part::new(job.account.clone(), gang));
        }
    }

    pub(super) fn set_dry(&mut self, attempt: Attempt, needs: Credits) {
        if let Some(part) = self.gangs.0.get_mut(&attempt) {
            (part.latch, part.needs) = (Latch::Dry, needs);
        }
        if !self.standing.is_full() {
            self.outstanding = None; // it does not say so
        }
    }

    pub(super) fn hear(&mut self, attempt: Attempt, (want, version): (Want, u64), dry: Option<&NodeId>, needs: Option<Credits>) {
        if let Some(part) = self.gangs.0.get_mut(&attempt) {
            part.hear(want, version, dry.cloned());
            part.needs = needs.unwrap_or(part.needs);
        }
    }

    pub(super) fn say(&mut self, request: u64, words: &[GangWord]) {
        let seq = self.seq;
        if let Some(outstanding) = self.outstanding.as_mut().filter(|outstanding| outstanding.request.request == request) {
            outstanding.request.gangs = words.to_vec();
            outstanding.seq = seq;
            self.standing.said_more(&outstanding.request);
        }
    }

    /// An answer was taken: what its question said of gangs is known.
    pub(super) fn note_told(&mut self, request: &Request) {
        for word in &request.gangs {
            if let Some(part) = self.gangs.0.get_mut(&word.part) {
                part.told = Some((word.says, word.version));
            }
        }
        self.forget_parts();
    }

    /// In a new epoch everything is said anew.
    pub(super) fn say_anew(&mut self) {
        self.gangs.0.values_mut().filter(|part| !is_done(part)).for_each(|part| part.told = None);
    }

    /// Of jobs that are not at hand any more only an end that is to be told is kept.
    pub(super) fn forget_parts(&mut self) {
        if self.gangs.0.is_empty() {
            return;
        }
        let (jobs, closed) = (&self.jobs, &self.closed);
        let at_hand = |attempt: &Attempt| jobs.contains_key(attempt) || closed.iter().any(|job| job.attempt == *attempt);
        self.gangs.0.retain(|attempt, part| !is_done(part) || at_hand(attempt));
    }
}

/// The authority knows that its job is over.
fn is_done(part: &Part) -> bool {
    part.told.is_some_and(|(says, _)| says == Says::Left)
}

impl Draft<'_> {
    /// The register's words, in an answer or pushed.
    pub fn heard_gangs(&mut self, wants: &[GangWant]) {
        for want in wants {
            let live = |attempt: &Attempt| self.agent.jobs.get(attempt).is_some_and(Job::is_live);
            let news = self.agent.gangs.0.iter().filter(|(attempt, part)| part.is_news(want) && live(attempt));
            let parts: Vec<(Attempt, Want, Latch)> = news.map(|(attempt, part)| (*attempt, part.want, part.latch)).collect();
            for (attempt, before, latch) in &parts {
                let GangWant { want, version, dry, .. } = want.clone();
                // One that ran dry measured it then: by now it stands still.
                let stops = want == Want::Freeze && *before == Want::Run && *latch == Latch::Open;
                let needs = stops.then(|| self.thaw_price(*attempt));
                self.record(Fact::GangHeard { attempt: *attempt, want, version, dry: dry.clone(), needs });
                match (*before, want) {
                    (_, Want::Freeze) => self.step(*attempt, StepEvent::GangHeld { version, dry }),
                    (Want::Freeze, Want::Run) => self.step(*attempt, StepEvent::GangRuns { version }),
                    (Want::Run, Want::Run) => {}
                }
            }
            if !parts.is_empty() {
                self.review(&want.gang.account);
            }
        }
    }

    /// What its account's jobs here may be expected to use in [`THAW_MIN`].
    fn thaw_price(&self, attempt: Attempt) -> Credits {
        let Some(job) = self.agent.jobs.get(&attempt) else { return Credits::ZERO };
        let Some(account) = self.agent.accounts.get(&job.account) else { return Credits::ZERO };
        used_in(self.agent.burn_expected(&job.account, account, self.settings, self.now.mono), THAW_MIN)
    }

    /// Parts of the account's gangs that run dry now.
    pub(super) fn review_gangs(&mut self, id: &AccountId) {
        if self.agent.gangs.0.is_empty() {
            return;
        }
        let runs_dry = |(attempt, part): (&Attempt, &Part)| {
            let job = self.agent.jobs.get(attempt).filter(|job| job.is_live() && job.account == *id)?;
            part.runs_dry(self.agent.own(job, part, self.settings, self.now)).then_some(*attempt)
        };
        let dry: Vec<Attempt> = self.agent.gangs.0.iter().filter_map(runs_dry).collect();
        for attempt in dry {
            let needs = self.thaw_price(attempt);
            self.record(Fact::GangDry { attempt, needs });
        }
    }

    /// What a question about these accounts says of gangs.
    pub(super) fn words(&self, request: &Request) -> Vec<GangWord> {
        let accounts = request.entries.iter().map(|entry| &entry.account);
        accounts.flat_map(|account| self.agent.words_of(account, self.settings, self.now)).collect()
    }
}
