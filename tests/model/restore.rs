//! A store that is put back from a copy while its nodes live: what it has forgotten, how it recovers, and what must hold all the while.

use std::convert::Infallible;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use meterd::domain::id::{AccountId, Epoch};
use meterd::domain::ledger::{self, Account, EpochAccount, EpochState, Recovery, Rules, Trust};
use meterd::domain::money::Credits;
use meterd::domain::proof::ProofKey;
use meterd::domain::time::Mono;
use meterd::domain::wire::Request;

use crate::bugs::Bug;
use crate::rules::{Action, Begins, World};
use crate::state::{Body, Power, State, TICK, hash_bank};

/// It is kept beside the store, and in no copy of it.
static KEY: ProofKey = ProofKey::new([7; 32]);
/// The generation of a store that was put back comes from the date: it is above every version of an account.
const DATE: u64 = 1_000;

/// Does who puts a copy back say so?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PutBack {
    Told,
    /// The store finds out by what its nodes prove.
    Silently,
}

/// What a store knows of what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Memory {
    /// All that it ever booked.
    Whole,
    /// It was put back, and nobody has told it.
    Unaware,
    /// It was put back, and knows.
    Aware,
}

/// A copy of the store.
#[derive(Clone)]
struct Copy {
    bank: Arc<Account>,
    /// Payments that were still to come: those since then are booked again.
    top_ups_left: u8,
}

/// How the store stands beside its account.
#[derive(Clone)]
pub(crate) struct Standing {
    generation: u64,
    recovery: Recovery,
    memory: Memory,
    /// The tick at which the recovery began.
    pub(crate) began: u64,
    copy: Option<Arc<Copy>>,
    /// Since the copy was made: of which epochs the rest was taken back, and how much of their use nobody had reported then.
    closed: Vec<(Epoch, i128)>,
    /// Granted since the copy was made, by the store that is gone and by one that did not know it: what may be used and charged to nobody.
    forgotten: i128,
}

impl Default for Standing {
    fn default() -> Standing {
        Standing { generation: 1, recovery: Recovery::Over, memory: Memory::Whole, began: 0, copy: None, closed: Vec::new(), forgotten: 0 }
    }
}

impl Standing {
    fn recovers(&self) -> bool {
        self.recovery != Recovery::Over
    }

    pub(crate) fn was_put_back(&self) -> bool {
        self.memory != Memory::Whole
    }

    pub(crate) fn forgotten(&self) -> i128 {
        self.forgotten
    }

    /// An epoch is closed, and nobody has reported so much of what it used: how much of that is new. One that was closed before, in the part that
    /// is lost, is closed once more.
    pub(crate) fn note_closed(&mut self, epoch: Epoch, unreported: i128) -> i128 {
        if self.copy.is_none() && !self.was_put_back() {
            return unreported;
        }
        if let Some((_, known)) = self.closed.iter_mut().find(|(of, _)| *of == epoch) {
            let news = (unreported - *known).max(0);
            *known += news;
            return news;
        }
        self.closed.push((epoch, unreported));
        self.closed.sort_unstable_by_key(|(of, _)| *of);
        unreported
    }

    pub(crate) fn hash_at(&self, now: u64, long_ago: u64, hasher: &mut impl Hasher) {
        let recovers_for = if self.recovers() { 1 + (now - self.began).min(long_ago) } else { 0 };
        (self.generation, self.memory, recovers_for, self.forgotten).hash(hasher);
        self.closed.hash(hasher);
        if let Some(copy) = &self.copy {
            hash_bank(&copy.bank, |_| 0, hasher);
            copy.top_ups_left.hash(hasher);
        }
    }
}

impl fmt::Debug for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let copy = if self.copy.is_some() { ", a copy" } else { "" };
        write!(f, "generation {}, {:?}, {:?}{copy}, forgotten {}", self.generation, self.recovery, self.memory, self.forgotten)
    }
}

impl State {
    pub(crate) fn back_up(&mut self) {
        self.left.back_ups -= 1;
        let copy = Copy { bank: Arc::clone(&self.bank), top_ups_left: self.left.top_ups };
        self.standing.copy = Some(Arc::new(copy));
        self.standing.closed.clear();
    }

    /// Is this epoch's rest its node's? One that the store has forgotten may be spent until that has recovered; one of which the rest was taken back
    /// in the part that is lost may not, before a store that has recovered backs it anew.
    pub(crate) fn may_spend(&self, epoch: Epoch) -> bool {
        let standing = &self.standing;
        let forgets = match standing.memory {
            Memory::Whole => false,
            Memory::Unaware => true,
            Memory::Aware => self.now - standing.began < self.long_ago,
        };
        let open = self.bank.epochs.get(&epoch).map_or(forgets, |known| known.state == EpochState::Open);
        let taken_back = standing.recovers() && standing.closed.iter().any(|(closed, _)| *closed == epoch);
        open && !taken_back
    }

    /// Silence is counted from now on.
    pub(crate) fn watch_anew(&mut self) {
        let now = self.bank_now().mono;
        let bank = Arc::make_mut(&mut self.bank);
        bank.epochs.change_each(|epoch| epoch.heard_at = now);
    }
}

impl World {
    pub(crate) fn store_may_forget(&self) -> bool {
        0 < self.left.put_backs
    }

    pub(crate) fn beginnings(&self, state: State) -> Vec<State> {
        if !self.store_may_forget() {
            return vec![state];
        }
        let mut last = state.clone();
        match self.begins {
            Begins::WithNothing => {
                last.back_up();
                vec![state, last]
            }
            Begins::WithAGrantAndACopy => {
                self.ask(&mut last, 0, 1);
                let asked = last.net[0].clone();
                self.happens(&mut last, Action::BackUp(Box::new(Action::ToBank(asked))));
                vec![last]
            }
        }
    }

    /// When the store may be copied and the copy put back, so that all else that can come between makes no difference: what happens to nodes does
    /// not touch the store, nor does what happens to the store touch them before they hear of it.
    pub(crate) fn copies(state: &State, actions: &mut Vec<Action>) {
        let of_the_store = |action: &&Action| match action {
            Action::ToBank(message) => matches!(message.body, Body::Request(_)),
            other => matches!(other, Action::Sweep | Action::TopUp | Action::Revoke | Action::BankRestart),
        };
        let mut copies = Vec::new();
        if 0 < state.left.back_ups {
            let firsts = actions.iter().filter(of_the_store).cloned();
            copies.extend(firsts.map(|first| Action::BackUp(Box::new(first))));
        }
        if 0 < state.left.put_backs && state.standing.copy.is_some() {
            // Nothing is silent yet.
            let is_next = |action: &&Action| match action {
                Action::Sweep => false,
                other => of_the_store(other) || matches!(other, Action::Tick | Action::TickMissed),
            };
            let nexts = actions.iter().filter(is_next).cloned();
            copies.extend(nexts.map(|next| Action::PutBack(Box::new(next))));
        }
        actions.extend(copies);
    }

    /// By what a question is answered now.
    pub(crate) fn rules(&self, standing: &Standing) -> Rules<'static> {
        let rules = Rules::of(self.close());
        if self.store_may_forget() {
            Rules { key: Some(&KEY), generation: standing.generation, recovery: standing.recovery, ..rules }
        } else {
            rules
        }
    }

    /// Payments since the copy are booked again from where they came.
    pub(crate) fn put_back(&self, state: &mut State) {
        let Some(copy) = state.standing.copy.take() else { return };
        state.left.put_backs -= 1;
        let lost = |(id, epoch): (&Epoch, &EpochAccount)| {
            let kept = copy.bank.epochs.get(id).map_or(Credits::ZERO, |epoch| epoch.granted);
            epoch.granted.minus(kept).or_zero().nano()
        };
        state.standing.forgotten = state.bank.epochs.iter().map(lost).sum();
        state.bank = Arc::clone(&copy.bank);
        let now = state.bank_now();
        for _ in state.left.top_ups..copy.top_ups_left {
            World::pay_in(Arc::make_mut(&mut state.bank), now);
        }
        state.watch_anew();
        state.standing.memory = Memory::Unaware;
        match self.put_back {
            PutBack::Told => self.recover(state),
            PutBack::Silently => state.standing.closed.clear(),
        }
    }

    fn recover(&self, state: &mut State) {
        let standing = &mut state.standing;
        standing.memory = Memory::Aware;
        standing.generation = (standing.generation + 1).max(DATE);
        standing.began = state.now;
        if !self.has(Bug::PutBackGrantsAtOnce) {
            standing.recovery = Recovery::Goes(Trust::Proofs);
        }
        let generation = standing.generation;
        let bank = Arc::make_mut(&mut state.bank);
        bank.version = bank.version.max(generation) + 1;
        state.watch_anew();
    }

    /// Looks for what the store has forgotten, before anything of the request is booked.
    pub(crate) fn meet(&self, state: &mut State, request: &Request) {
        self.end_recovery_when_due(state);
        if !self.store_may_forget() {
            return;
        }
        let known = |_: &AccountId, epoch: Epoch| {
            let known = state.bank.epochs.get(&epoch);
            Ok::<_, Infallible>(known.map_or((Credits::ZERO, 0), |epoch| (epoch.granted.max(epoch.proven), epoch.last_request)))
        };
        if ledger::has_forgotten(request, &KEY, state.standing.generation, known) == Ok(true) {
            self.recover(state);
        }
    }

    /// In one transaction with closing what was silent all the while.
    pub(crate) fn end_recovery_when_due(&self, state: &mut State) {
        let began = Mono(state.standing.began * TICK.0);
        let now = state.bank_now();
        if state.standing.recovers() && self.silence() <= now.mono.since(began) {
            let _lines = ledger::end_recovery(Arc::make_mut(&mut state.bank), began, now);
            state.standing.recovery = Recovery::Over;
        }
    }

    /// A store that recovers only remembers what it is shown; what one grants that does not know what it forgot may come on top.
    pub(crate) fn audit_grants(state: &mut State, before: &Account) {
        let bank = Arc::clone(&state.bank);
        for (id, epoch) in bank.epochs.iter() {
            let had = before.epochs.get(id).map_or(Credits::ZERO, |epoch| epoch.granted);
            if state.standing.memory == Memory::Unaware {
                state.standing.forgotten += epoch.granted.minus(had).or_zero().nano();
            } else if state.standing.recovers() && had.max(epoch.proven) < epoch.granted {
                state.breaks("something is granted by a store that recovers");
            }
        }
    }

    /// All that can be spent and all that is settled was paid in, but for what nobody had reported when its epoch was closed: whatever a store that
    /// was told so has forgotten.
    pub(crate) fn audit_what_can_be_spent(&self, state: &mut State) {
        if state.standing.was_put_back() && self.put_back == PutBack::Silently {
            return;
        }
        let on = state.nodes.iter().filter(|node| node.power == Power::On);
        let can_be_spent: i128 = on.map(|node| node.live.grant.in_hand(node.clock(state.now)).nano()).sum();
        let out = can_be_spent + state.bank.settled.nano() + state.bank.withdrawn.nano();
        if state.bank.deposited.nano() + state.unreported < out {
            state.breaks("more can be spent and is settled than was paid in");
        }
    }
}
