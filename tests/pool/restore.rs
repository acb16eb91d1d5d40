//! A store that is put back from a copy while its nodes live: what it knows of that, and how it recovers. As the real store does it.

use std::collections::BTreeMap;

use meterd::domain::id::{AccountId, Epoch};
use meterd::domain::ledger::{self, Account, ClosePolicy, Recovery, Rules, Trust, Writer, Writers};
use meterd::domain::money::Credits;
use meterd::domain::proof::ProofKey;
use meterd::domain::time::{Mono, Now};
use meterd::domain::wire::Request;

use crate::bank::Bank;
use crate::gang::Registers;

/// Does whoever puts a copy back tell the store so?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PutBack {
    Told,
    /// It finds out by what its nodes prove.
    Silently,
}

/// A copy of the store.
pub(crate) struct Copy {
    accounts: BTreeMap<AccountId, Account>,
    gangs: Registers,
    generation: u64,
    payments: usize,
}

/// How the store stands beside its accounts.
pub(crate) struct Standing {
    key: ProofKey,
    generation: u64,
    recovery: Recovery,
    began: Mono,
    over_since: Mono,
    writers: BTreeMap<Epoch, Writer>,
    copy: Option<Copy>,
    /// What was paid in, which the payments' own system knows whatever happens here.
    pub(crate) payments: Vec<(AccountId, i128)>,
    pub(crate) restores: usize,
    /// Granted since the copy was made, until the store began to recover: what it may have forgotten.
    at_risk: i128,
}

impl Standing {
    pub(crate) fn new() -> Standing {
        Standing {
            key: ProofKey::new([7; 32]),
            generation: 1,
            recovery: Recovery::Over,
            began: Mono(0),
            over_since: Mono(0),
            writers: BTreeMap::new(),
            copy: None,
            payments: Vec::new(),
            restores: 0,
            at_risk: 0,
        }
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn rules(&self, close: ClosePolicy, writers: Writers) -> Rules<'_> {
        Rules { key: Some(&self.key), generation: self.generation, recovery: self.recovery, writers, ..Rules::of(close) }
    }

    /// Does it grant nothing, since it may have forgotten grants that are still good?
    pub(crate) fn recovers(&self) -> bool {
        self.recovery != Recovery::Over
    }

    /// When the last recovery ended.
    pub(crate) fn over_since(&self) -> Mono {
        self.over_since
    }

    pub(crate) fn may_forget(&self) -> bool {
        self.copy.is_some() || 0 < self.restores
    }

    /// So much was granted.
    pub(crate) fn note_granted(&mut self, nano: i128) {
        if self.recovery == Recovery::Over {
            self.at_risk += nano;
        }
    }

    /// The most that may have been used and is charged to nobody.
    pub(crate) fn lost_at_most(&self) -> i128 {
        if self.restores == 0 { 0 } else { self.at_risk }
    }

    pub(crate) fn forget_writers(&mut self) {
        self.writers.clear();
    }
}

impl Bank {
    pub(crate) fn back_up(&mut self) {
        let standing = &mut self.standing;
        standing.copy = Some(Copy {
            accounts: self.accounts.clone(),
            gangs: self.gangs.clone(),
            generation: standing.generation,
            payments: standing.payments.len(),
        });
    }

    /// The payments since then are booked again from where they came.
    pub(crate) fn put_back(&mut self, how: PutBack, now: Now) {
        let Some(copy) = self.standing.copy.take() else { return };
        self.standing.restores += 1;
        self.accounts = copy.accounts;
        self.gangs = copy.gangs;
        self.gangs.put_back(now.mono);
        self.standing.generation = copy.generation;
        self.standing.forget_writers();
        let again = self.standing.payments.split_off(copy.payments);
        for (account, nano) in again {
            let _push = self.top_up(&account, nano, now);
        }
        self.watch_anew(now);
        if how == PutBack::Told {
            self.recover(0, now);
        }
    }

    /// Looks for what the store has forgotten, and for a second writer; before anything of the request is booked.
    pub(crate) fn meet(&mut self, request: &Request, now: Now) -> Writers {
        let ClosePolicy::AfterSilence(length) = self.close else { return Writers::One };
        if self.standing.recovery != Recovery::Over && length <= now.mono.since(self.standing.began) {
            for account in self.accounts.values_mut() {
                let _lines = ledger::end_recovery(account, self.standing.began, now);
            }
            (self.standing.recovery, self.standing.over_since) = (Recovery::Over, now.mono);
            self.up_since = now.mono.0; // its nodes have yet to ask
        }
        let accounts = &self.accounts;
        let known = |account: &AccountId, epoch: Epoch| {
            let known = accounts.get(account).and_then(|account| account.epochs.get(&epoch));
            Ok::<_, ()>(known.map_or((Credits::ZERO, 0), |epoch| (epoch.granted.max(epoch.proven), epoch.last_request)))
        };
        let forgot = ledger::has_forgotten(request, &self.standing.key, self.standing.generation, known);
        if forgot == Ok(true) {
            let proofs = request.entries.iter().chain(request.previous.iter().flat_map(|earlier| &earlier.entries));
            let seen = proofs.filter_map(|entry| entry.proof).map(|proof| proof.generation).max().unwrap_or(0);
            self.recover(seen, now);
        }
        let new = || Writer::new(request.node.clone());
        self.standing.writers.entry(request.epoch).or_insert_with(new).hear(request, request.said(), now.wall)
    }

    fn recover(&mut self, seen: u64, now: Now) {
        let standing = &mut self.standing;
        standing.generation = standing.generation.max(seen).saturating_add(1).max(now.wall.0);
        (standing.recovery, standing.began) = (Recovery::Goes(Trust::Proofs), now.mono);
        standing.forget_writers();
        let generation = standing.generation;
        for account in self.accounts.values_mut() {
            account.version = account.version.max(generation) + 1;
        }
        self.watch_anew(now);
    }
}
