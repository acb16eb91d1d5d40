//! The simulated authority: the real ledger, each request in one transaction whose answer leaves only after it. It can die between any two.

use std::collections::BTreeMap;

use meterd::domain::bucket::Bucket;
use meterd::domain::id::{AccountId, Epoch, NodeId, PaymentId};
use meterd::domain::ledger::{self, Account, ClosePolicy, Payment, PaymentState, VALID_FOR};
use meterd::domain::money::Credits;
use meterd::domain::time::{Mono, Nanos, Now};
use meterd::domain::wire::{AccountPolicy, Answer, PROTOCOL, Push, Request, RequestEntry, Verdict};

use crate::gang::Registers;
use crate::restore::Standing;

/// The authority's process and its store.
pub(crate) struct Bank {
    pub(crate) accounts: BTreeMap<AccountId, Account>,
    pub(crate) up: bool,
    /// Since when, on the fleet's clock.
    pub(crate) up_since: u64,
    pub(crate) close: ClosePolicy,
    pub(crate) valid_for: Nanos,
    /// How much its date is wrong.
    pub(crate) wall_off_ms: i64,
    /// Requests that were booked.
    pub(crate) booked: u64,
    pub(crate) standing: Standing,
    pub(crate) gangs: Registers,
    payments: u64,
    /// When holders were last asked to give back what they do not need.
    recalled: BTreeMap<AccountId, Mono>,
    pub(crate) recalls: u64,
}

impl Bank {
    pub(crate) fn new(close_after: Nanos, valid_for: Nanos) -> Bank {
        Bank {
            accounts: BTreeMap::new(),
            up: true,
            up_since: 0,
            close: ClosePolicy::AfterSilence(close_after),
            valid_for,
            wall_off_ms: 0,
            booked: 0,
            standing: Standing::new(),
            gangs: Registers::default(),
            payments: 0,
            recalled: BTreeMap::new(),
            recalls: 0,
        }
    }

    pub(crate) fn open(&mut self, id: &AccountId, policy: AccountPolicy) {
        self.accounts.insert(id.clone(), Account::new(id.clone(), policy));
    }

    /// What was not booked is forgotten with the process, and the watch over silence begins anew.
    pub(crate) fn restart(&mut self, now: Now, at: u64) {
        (self.up, self.up_since) = (true, at);
        self.watch_anew(now);
    }

    /// Silence is counted from now on.
    pub(crate) fn watch_anew(&mut self, now: Now) {
        for account in self.accounts.values_mut() {
            account.epochs.change_each(|epoch| epoch.heard_at = now.mono);
        }
    }

    /// As the store does it: last words first, then each entry by itself.
    pub(crate) fn answer(&mut self, request: &Request, now: Now) -> Answer {
        self.booked += 1;
        let writers = self.meet(request, now);
        let rules = self.standing.rules(self.close, writers);
        let granted_before = granted(&self.accounts, request);
        for earlier in request.previous.iter().flat_map(|earlier| &earlier.entries) {
            if let Some(account) = self.accounts.get_mut(&earlier.account) {
                let _lines = ledger::book_previous(account, request, &rules, now);
            }
        }
        let (mut entries, mut gangs) = (Vec::new(), Vec::new());
        for entry in &request.entries {
            let mut answered = match self.accounts.get_mut(&entry.account) {
                Some(account) => {
                    let last = |account: &Account| account.epochs.get(&request.epoch).map_or(0, |epoch| epoch.last_request);
                    let before = last(account);
                    let answered = ledger::answer(account, request, entry, &rules, now).entry;
                    if before < last(account) {
                        gangs.extend(self.gangs.hear(request, account, now.mono));
                    }
                    answered
                }
                None => ledger::answer_unknown(entry.account.clone()),
            };
            answered.valid_for = Nanos(answered.valid_for.0.saturating_sub(VALID_FOR.0 - self.valid_for.0));
            entries.push(answered);
        }
        self.standing.note_granted(granted(&self.accounts, request) - granted_before);
        Answer {
            protocol: PROTOCOL,
            epoch: request.epoch,
            request: request.request,
            digest: request.digest(),
            acknowledged: request.previous.iter().map(|earlier| earlier.epoch).collect(),
            entries,
            balances: Vec::new(),
            generation: self.standing.generation(),
            gangs,
        }
    }

    /// After an answer that came out short, at most once a second: whom to push.
    pub(crate) fn recall(&mut self, answer: &Answer, now: Now) -> Vec<(NodeId, Push)> {
        let mut pushes = Vec::new();
        for entry in answer.entries.iter().filter(|entry| matches!(entry.verdict, Verdict::Final | Verdict::Exhausted)) {
            let lately = self.recalled.get(&entry.account).is_some_and(|at| now.mono.since(*at) < Nanos::from_secs(1));
            let Some(account) = self.accounts.get_mut(&entry.account).filter(|_| !lately) else { continue };
            let nodes = ledger::recall(account, now.mono);
            if !nodes.is_empty() {
                self.recalled.insert(entry.account.clone(), now.mono);
                self.recalls += nodes.len() as u64;
            }
            pushes.extend(nodes.into_iter().map(|node| (node, Push { account: entry.account.clone(), version: account.version })));
        }
        pushes
    }

    pub(crate) fn top_up(&mut self, id: &AccountId, nano: i128, now: Now) -> Push {
        self.payments += 1;
        self.standing.payments.push((id.clone(), nano));
        let name: PaymentId = format!("payment-{}", self.payments).parse().unwrap();
        let bucket = if nano % 2 == 0 { Bucket::Free } else { Bucket::Paid };
        let account = self.accounts.get_mut(id).unwrap();
        let payment = Payment::deposit(name, bucket, Credits::from_nano(nano));
        ledger::book(account, &payment, PaymentState::Completed, None, now).unwrap();
        Push { account: id.clone(), version: account.version }
    }

    pub(crate) fn sweep(&mut self, now: Now) {
        for account in self.accounts.values_mut() {
            let _lines = ledger::sweep(account, self.close, now);
        }
    }

    /// Settled of these epochs, over all accounts.
    pub(crate) fn settled_of(&self, epochs: &[Epoch]) -> i128 {
        let of = |account: &Account| -> i128 {
            epochs.iter().filter_map(|epoch| account.epochs.get(epoch)).map(|epoch| epoch.settled.nano()).sum()
        };
        self.accounts.values().map(of).sum()
    }
}

/// Granted in all to the epochs that a request speaks of.
fn granted(accounts: &BTreeMap<AccountId, Account>, request: &Request) -> i128 {
    let now = request.entries.iter().map(|entry| (request.epoch, entry));
    let earlier = request.previous.iter().flat_map(|earlier| earlier.entries.iter().map(|entry| (earlier.epoch, entry)));
    let of = |(epoch, entry): (Epoch, &RequestEntry)| accounts.get(&entry.account)?.epochs.get(&epoch).map(|epoch| epoch.granted.nano());
    now.chain(earlier).filter_map(of).sum()
}
