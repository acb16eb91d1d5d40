//! The simulated authority: the real ledger behind a store that answers only after its commit, and can die at any moment.

use std::collections::{BTreeMap, VecDeque};

use meterd::domain::bucket::Bucket;
use meterd::domain::id::{AccountId, Epoch, PaymentId};
use meterd::domain::ledger::{
    self, Account, ClosePolicy, Commitment, EntryKind, EpochState, LedgerEntry, Payment, PaymentState, Terms, Writer,
};
use meterd::domain::money::Credits;
use meterd::domain::proof::ProofKey;
use meterd::domain::time::{Nanos, Now};
use meterd::domain::wire::{AccountPolicy, Answer, PROTOCOL, Push, Request};

/// Everything that the store holds.
#[derive(Clone, Default)]
pub(crate) struct Books {
    pub(crate) accounts: BTreeMap<AccountId, Account>,
    payments: BTreeMap<PaymentId, Payment>,
    writers: BTreeMap<Epoch, Writer>,
    /// By the simulation's own count.
    pub(crate) paid_in: BTreeMap<AccountId, i128>,
    /// What was promised and came, and what lapsed: by account and line, since a later line of the same key stands for the earlier one.
    promised: BTreeMap<(AccountId, String), i128>,
    lapsed: BTreeMap<(AccountId, String), i128>,
}

impl Books {
    fn write(&mut self, id: &AccountId, lines: &[LedgerEntry]) {
        for line in lines {
            let (key, nano) = ((id.clone(), line.key()), line.amount.nano());
            match line.kind {
                EntryKind::Commitment { .. } => {
                    let promise = self.accounts[id].terms.commitment.unwrap();
                    assert_eq!(promise.amount.nano(), nano, "G3: {id} is given another amount than it was promised");
                    assert_eq!(self.promised.insert(key, nano), None, "G3: {id} is given twice what it was promised once");
                }
                EntryKind::CommitmentLapsed { .. } => drop(self.lapsed.insert(key, nano)),
                _ => {}
            }
        }
    }

    fn of(amounts: &BTreeMap<(AccountId, String), i128>, id: &AccountId) -> i128 {
        amounts.iter().filter(|((of, _), _)| of == id).map(|(_, nano)| nano).sum()
    }

    /// What an account has been given by its contract, less what of it has lapsed.
    pub(crate) fn promised(&self, id: &AccountId) -> i128 {
        Books::of(&self.promised, id) - Books::of(&self.lapsed, id)
    }
}

/// What is asked of the authority.
#[derive(Clone, Debug)]
pub(crate) enum Deed {
    Answer(Request),
    Create(AccountId, AccountPolicy, Option<Commitment>),
    TopUp(AccountId, i128, String),
    Policy(AccountId, AccountPolicy),
    Sweep,
}

/// What it says once that is durable.
#[derive(Clone, Debug)]
pub(crate) enum Said {
    Answer(Answer),
    Push(Push),
}

/// The authority's process and its store.
pub(crate) struct Bank {
    pub(crate) books: Books,
    work: VecDeque<Deed>,
    underway: Option<(Books, Vec<Said>)>,
    pub(crate) up: bool,
    pub(crate) life: u64,
    pub(crate) close: ClosePolicy,
    pub(crate) valid_for: Nanos,
}

impl Bank {
    pub(crate) fn new(close: ClosePolicy, valid_for: Nanos) -> Bank {
        Bank { books: Books::default(), work: VecDeque::new(), underway: None, up: true, life: 0, close, valid_for }
    }

    /// Takes a deed into the queue. False while the process is down.
    pub(crate) fn ask(&mut self, deed: Deed) -> bool {
        if self.up {
            self.work.push_back(deed);
        }
        self.up
    }

    /// Begins the next deed, if none is being committed.
    pub(crate) fn begin(&mut self, now: Now) -> bool {
        if !self.up || self.underway.is_some() {
            return false;
        }
        let Some(deed) = self.work.pop_front() else { return false };
        let mut books = self.books.clone();
        let said = self.perform(&mut books, deed, now);
        self.underway = Some((books, said));
        true
    }

    /// The commit is durable: what may be said now.
    pub(crate) fn finish(&mut self) -> Vec<Said> {
        let Some((books, said)) = self.underway.take() else { return Vec::new() };
        self.books = books;
        said
    }

    pub(crate) fn crash(&mut self) {
        self.up = false;
        self.life += 1;
        self.work.clear();
        self.underway = None;
    }

    /// The watch over silence begins anew with the process.
    pub(crate) fn restart(&mut self, now: Now) {
        self.up = true;
        for account in self.books.accounts.values_mut() {
            account.epochs.change_each(|epoch| epoch.heard_at = now.mono);
        }
    }

    fn perform(&self, books: &mut Books, deed: Deed, now: Now) -> Vec<Said> {
        match deed {
            Deed::Answer(request) => vec![Said::Answer(self.answer(books, &request, now))],
            Deed::Create(id, policy, commitment) => {
                let account = books.accounts.entry(id.clone()).or_insert_with(|| Account::new(id.clone(), policy));
                let lines = ledger::set_terms(account, Terms { commitment, ..account.terms.clone() }, now);
                books.write(&id, &lines.ledger);
                Vec::new()
            }
            Deed::TopUp(id, nano, payment) => top_up(books, &id, nano, &payment, now),
            Deed::Policy(id, policy) => {
                let Some(account) = books.accounts.get_mut(&id) else { return Vec::new() };
                let before = account.version;
                ledger::set_policy(account, policy);
                let news = before < account.version;
                if news { vec![Said::Push(Push { account: id, version: account.version })] } else { Vec::new() }
            }
            Deed::Sweep => {
                let swept = |(id, account): (&AccountId, &mut Account)| (id.clone(), ledger::sweep(account, self.close, now));
                for (id, lines) in books.accounts.iter_mut().map(swept).collect::<Vec<_>>() {
                    books.write(&id, &lines.ledger);
                }
                Vec::new()
            }
        }
    }

    /// As the store does it: last words first, then each entry by itself.
    fn answer(&self, books: &mut Books, request: &Request, now: Now) -> Answer {
        let known = books.accounts.values().any(|account| account.epochs.contains_key(&request.epoch));
        let named = |id: &AccountId| {
            let refunded = request.refunds.iter().any(|total| total.account == *id);
            refunded || request.previous.iter().flat_map(|earlier| &earlier.entries).any(|entry| entry.account == *id)
        };
        let superseded = |epochs: &ledger::Epochs| {
            epochs.iter().any(|(id, epoch)| epoch.state == EpochState::Open && epoch.node == request.node && *id != request.epoch)
        };
        // Nothing is forgotten here and nobody is copied, so neither may ever be found.
        let key = ProofKey::new([7; 32]);
        let granted = |id: &AccountId, epoch: Epoch| -> Result<(Credits, u64), ()> {
            let epoch = books.accounts.get(id).and_then(|account| account.epochs.get(&epoch));
            Ok(epoch.map_or((Credits::ZERO, 0), |epoch| (epoch.granted, epoch.last_request)))
        };
        assert_eq!(ledger::has_forgotten(request, &key, 1, granted), Ok(false), "a proof goes beyond a sound store: {request:?}");
        let writers =
            books.writers.entry(request.epoch).or_insert_with(|| Writer::new(request.node.clone())).hear(request, request.said(), now.wall);
        assert_eq!(writers, ledger::Writers::One, "an honest node is taken for two: {request:?}");
        let rules = ledger::Rules { key: Some(&key), generation: 1, ..ledger::Rules::of(self.close) };
        let mut written = Vec::new();
        for (id, account) in &mut books.accounts {
            if named(id) || (self.close == ClosePolicy::OnSuccessor && !known && superseded(&account.epochs)) {
                written.push((id.clone(), ledger::book_previous(account, request, &rules, now).ledger));
            }
        }
        let mut entries = Vec::new();
        for entry in &request.entries {
            let mut answered = match books.accounts.get_mut(&entry.account) {
                Some(account) => {
                    let answered = ledger::answer(account, request, entry, &rules, now);
                    written.push((entry.account.clone(), answered.ledger));
                    answered.entry
                }
                None => ledger::answer_unknown(entry.account.clone()),
            };
            answered.valid_for = answered.valid_for.min(self.valid_for);
            entries.push(answered);
        }
        for (id, lines) in &written {
            books.write(id, lines);
        }
        Answer {
            protocol: PROTOCOL,
            epoch: request.epoch,
            request: request.request,
            digest: request.digest(),
            acknowledged: request.previous.iter().map(|earlier| earlier.epoch).collect(),
            entries,
            balances: Vec::new(),
            generation: 1,
            gangs: Vec::new(),
        }
    }
}

fn top_up(books: &mut Books, id: &AccountId, nano: i128, payment: &str, now: Now) -> Vec<Said> {
    let Some(account) = books.accounts.get_mut(id) else { return Vec::new() };
    let name: PaymentId = payment.parse().unwrap();
    let bucket = if nano % 2 == 0 { Bucket::Free } else { Bucket::Paid };
    let payment = Payment::deposit(name.clone(), bucket, Credits::from_nano(nano));
    let before = books.payments.get(&name).map(|payment| (payment, PaymentState::Completed));
    match ledger::book(account, &payment, PaymentState::Completed, before, now) {
        Ok(ledger::Booked::Now(lines)) => {
            let version = account.version;
            books.payments.insert(name, payment);
            *books.paid_in.entry(id.clone()).or_default() += nano;
            books.write(id, &lines.ledger);
            vec![Said::Push(Push { account: id.clone(), version })]
        }
        Ok(ledger::Booked::Before) | Err(_) => Vec::new(),
    }
}
