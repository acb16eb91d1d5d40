//! What must hold, checked against what really happened.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use meterd::domain::agent::Agent;
use meterd::domain::batch::ReceiptRow;
use meterd::domain::id::{AccountId, Attempt, BootId, Digest, Epoch};
use meterd::domain::ledger::sizing::{HORIZON_MAX, HORIZON_OF_GANGS, used_in};
use meterd::domain::ledger::{self, Account, EpochState};
use meterd::domain::money::Credits;
use meterd::domain::wire::{Answer, AnswerEntry, Request, RequestEntry, Validity, Verdict};

use crate::bank::Bank;
use crate::restore::PutBack;
use crate::world::S;

/// Fleets up to this size have every total of every epoch compared before and after each booking.
const SMALL: usize = 16;

/// What an agent last said of a job, and where that began.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    account: Option<AccountId>,
    pub(crate) charge: i128,
    pub(crate) drawn: i128,
    pub(crate) unfunded: i128,
}

/// What is known of one node.
#[derive(Clone, Debug, Default)]
struct Known {
    jobs: BTreeMap<Attempt, Told>,
    /// Of lives whose disk was lost: what their jobs had drawn.
    lost: i128,
    /// CPU time that a job of this name had used when its start was asked for.
    begun: BTreeMap<String, u64>,
    /// What it last said in each of its epochs.
    said: BTreeMap<Epoch, Said>,
    /// The highest `spent` of each epoch and account.
    spent: BTreeMap<(Epoch, AccountId), Credits>,
    /// When it asked something new in the last second, and when something came that it may ask about without delay.
    asked_at: VecDeque<u64>,
    pressed_at: VecDeque<u64>,
}

/// The highest question of one epoch.
#[derive(Clone, Debug)]
struct Said {
    request: u64,
    digest: Digest,
    boot: BootId,
    /// Spent, given back, granted.
    totals: BTreeMap<AccountId, [Credits; 3]>,
}

pub(crate) struct Audit {
    nodes: Vec<Known>,
    /// Every epoch of which the rest was taken back, in whatever store.
    closed: BTreeSet<(Epoch, AccountId)>,
    bookings: u64,
    pub(crate) receipts: u64,
}

impl Audit {
    pub(crate) fn new(nodes: usize) -> Audit {
        Audit { nodes: vec![Known::default(); nodes], closed: BTreeSet::new(), bookings: 0, receipts: 0 }
    }

    pub(crate) fn started(&mut self, n: usize, name: &str, cpu_ns: u64) {
        self.nodes[n].begun.entry(name.to_owned()).or_insert(cpu_ns);
    }

    pub(crate) fn begun(&self, n: usize, name: &str) -> u64 {
        self.nodes[n].begun.get(name).copied().unwrap_or(0)
    }

    pub(crate) fn rebooted(&mut self, n: usize) {
        self.nodes[n].begun.clear();
    }

    /// Its journal is gone: it does not know any more what its jobs drew.
    pub(crate) fn wiped(&mut self, n: usize) {
        let known = &mut self.nodes[n];
        known.lost += known.jobs.values().map(|told| told.drawn).sum::<i128>();
        known.jobs.clear();
    }

    /// What the node's jobs have drawn by its own word: (of lives that it remembers, of all).
    pub(crate) fn drawn(&self, n: usize) -> (i128, i128) {
        let kept: i128 = self.nodes[n].jobs.values().map(|told| told.drawn).sum();
        (kept, kept + self.nodes[n].lost)
    }

    /// The same of one account, in lives that it remembers.
    pub(crate) fn drawn_of(&self, n: usize, account: &AccountId) -> i128 {
        self.nodes[n].jobs.values().filter(|told| told.account.as_ref() == Some(account)).map(|told| told.drawn).sum()
    }

    pub(crate) fn unfunded(&self, n: usize) -> i128 {
        self.nodes[n].jobs.values().map(|told| told.unfunded).sum()
    }

    pub(crate) fn told(&self, n: usize, attempt: Attempt) -> Option<&Told> {
        self.nodes[n].jobs.get(&attempt)
    }

    pub(crate) fn receipts(&mut self, _: usize, receipts: &[ReceiptRow]) {
        self.receipts += receipts.len() as u64;
    }

    /// Something has come to a node that it may ask about without delay: a push, or a start.
    pub(crate) fn pressed(&mut self, n: usize, now: u64) {
        if self.nodes.len() <= SMALL {
            self.nodes[n].pressed_at.push_back(now);
        }
    }

    /// Nobody storms the authority: in any second a node asks ten times, and once more for each thing that came to it.
    fn asked(&mut self, n: usize, now: u64) {
        let Known { asked_at, pressed_at, .. } = &mut self.nodes[n];
        asked_at.push_back(now);
        asked_at.retain(|at| now < at + S);
        pressed_at.retain(|at| now < at + 2 * S); // what came waits for the disk before it is asked about
        assert!(asked_at.len() <= 12 + pressed_at.len(), "{now}: node {n} asks {} times in a second", asked_at.len());
    }

    /// An honest node has written down what it says before it says it: no number has two questions, no total falls, and an epoch is of one boot.
    pub(crate) fn said(&mut self, n: usize, boot: BootId, request: &Request, now: u64) {
        if SMALL < self.nodes.len() {
            return;
        }
        let digest = request.digest();
        let known = &mut self.nodes[n].said;
        let fresh = || Said { request: 0, digest, boot, totals: BTreeMap::new() };
        let last = known.entry(request.epoch).or_insert_with(fresh);
        assert_eq!((last.boot, request.boot), (boot, boot), "node {n} speaks in epoch {} of another boot", request.epoch);
        assert!(last.request <= request.request, "node {n} asks question {} after {}", request.request, last.request);
        if last.request == request.request {
            assert_eq!(last.digest, digest, "node {n} asks two questions under number {}", request.request);
            return;
        }
        (last.request, last.digest) = (request.request, digest);
        for entry in &request.entries {
            let totals = [entry.spent, entry.returned, entry.granted_seen];
            let before = last.totals.insert(entry.account.clone(), totals).unwrap_or_default();
            assert!(
                before.iter().zip(&totals).all(|(old, new)| old <= new),
                "node {n}: {before:?} fell to {totals:?} in {}",
                request.epoch
            );
        }
        self.asked(n, now);
    }

    /// After each turn: no grant is spent beyond its end, nor after the authority has taken its rest back, and every job's charge is explained.
    pub(crate) fn stepped(&mut self, n: usize, agent: &Agent, bank: &Bank) {
        let epoch = agent.epoch.map_or(Epoch([0; 16]), |(epoch, _)| epoch);
        for (id, account) in &agent.accounts {
            let grant = &account.grant;
            assert!(grant.spent.plus(grant.returned) <= grant.granted, "node {n} spends beyond its grant of {id}: {grant:?}");
            if SMALL < self.nodes.len() || grant.spent.is_zero() {
                continue;
            }
            let known = self.nodes[n].spent.entry((epoch, id.clone())).or_default();
            if *known < grant.spent {
                *known = grant.spent;
                let state = bank.accounts.get(id).and_then(|account| account.epochs.get(&epoch)).map(|epoch| epoch.state);
                let open = state == Some(EpochState::Open) || state.is_none() && 0 < bank.standing.restores; // forgotten
                // Once it has recovered it can back again what such an epoch claims, or closes it.
                let was_closed = bank.standing.recovers() && self.closed.contains(&(epoch, id.clone()));
                assert!(open && !was_closed, "node {n} spends of {id} in epoch {epoch}, of which the rest was taken back");
            }
        }
        for job in agent.jobs.values().chain(agent.closed.iter().rev().take(8)) {
            let told = Told {
                account: Some(job.account.clone()),
                charge: job.charge.nano(),
                drawn: job.drawn.nano(),
                unfunded: job.unfunded.nano(),
            };
            assert!(told.drawn + told.unfunded <= told.charge, "node {n}: {} pays more than it costs: {told:?}", job.name);
            assert!(0 <= told.drawn && 0 <= told.unfunded);
            self.nodes[n].jobs.insert(job.attempt, told);
        }
    }

    /// The accounts as they are before a request is booked.
    pub(crate) fn before(&self, bank: &Bank, request: &Request) -> Vec<Account> {
        if SMALL < self.nodes.len() {
            return Vec::new();
        }
        let entries = request.entries.iter().chain(request.previous.iter().flat_map(|earlier| &earlier.entries));
        entries.filter_map(|entry| bank.accounts.get(&entry.account)).cloned().collect()
    }

    /// Nothing went back, and the answer is what the books say once the request's totals are in them.
    pub(crate) fn answered(&mut self, bank: &Bank, before: &[Account], request: &Request, answer: &Answer) {
        for account in before {
            let after = &bank.accounts[&account.id];
            if let Err(broken) = ledger::check_step(account, after) {
                panic!("{}: {broken}", account.id);
            }
            if bank.standing.recovers() {
                grants_nothing(account, after);
            }
            let asked = request.entries.iter().find(|entry| entry.account == account.id);
            let said = answer.entries.iter().find(|entry| entry.account == account.id);
            if let (Some(asked), Some(said), 0) = (asked, said, bank.standing.restores) {
                let last = account.epochs.get(&request.epoch).map_or(0, |epoch| epoch.last_request);
                let asking = if last < request.request { Asking::Anew } else { Asking::Again };
                granted_what_was_asked(account, after, request, asked, asking);
                verdict_is_true(after, request, asked, said, asking);
            }
        }
        self.booked(bank);
    }

    /// A store that nobody told of it takes an epoch that it had closed for what its copy says, until somebody proves that it has forgotten something.
    pub(crate) fn put_back(&mut self, how: PutBack) {
        if how == PutBack::Silently {
            self.closed.clear();
        }
    }

    /// Nobody takes an honest node for two, or for one that claims what it was not granted. A store that was put back leaves what is still good
    /// alone, and what has lapsed, and may have been taken back, it leaves lapsed.
    pub(crate) fn heard_by_the_honest(n: usize, bank: &Bank, request: &Request, answer: &Answer) {
        for entry in &answer.entries {
            assert!(!matches!(entry.verdict, Verdict::Forked | Verdict::Unproven), "node {n} is taken for a liar: {answer:?}");
            let asked = request.entries.iter().find(|asked| asked.account == entry.account);
            let Some(asked) = asked.filter(|asked| bank.standing.recovers() && asked.granted_seen.is_positive()) else { continue };
            let epoch = bank.accounts.get(&entry.account).and_then(|account| account.epochs.get(&request.epoch));
            if epoch.is_none_or(|epoch| epoch.state == EpochState::Closed) {
                continue; // the message was long on its way
            }
            match asked.validity {
                Some(Validity::Live) => assert_ne!(entry.verdict, Verdict::Closed, "node {n} loses what is still good: {request:?}"),
                Some(Validity::Lapsed) => assert!(!entry.verdict.prolongs(), "node {n} may spend again what has lapsed: {request:?}"),
                None => {}
            }
        }
    }

    /// After each booking. Of large fleets every hundredth is looked at: a look costs as much as the fleet is large.
    pub(crate) fn booked(&mut self, bank: &Bank) {
        self.bookings += 1;
        if SMALL < self.nodes.len() && !self.bookings.is_multiple_of(100) {
            return;
        }
        for (id, account) in &bank.accounts {
            if let Err(broken) = ledger::check(account) {
                panic!("{id}: {broken}");
            }
            let settled: i128 = account.epochs.values().map(|epoch| epoch.settled.nano()).sum();
            assert_eq!(account.settled.nano(), settled, "{id} is charged what its epochs are");
            for (name, epoch) in account.epochs.iter() {
                if epoch.state == EpochState::Closed {
                    self.closed.insert((*name, id.clone()));
                }
                // What it claims may yet be charged, when it is closed.
                let accounted = epoch.claimed.max(epoch.settled).plus(epoch.returned);
                assert!(
                    accounted <= epoch.granted.max(epoch.proven),
                    "{id}: epoch {name} of {} is or will be charged what it was never granted: {epoch:?}",
                    epoch.node
                );
            }
        }
    }
}

/// A store that recovers may have forgotten who holds what is free: it only remembers what it is shown.
fn grants_nothing(before: &Account, after: &Account) {
    for (id, epoch) in after.epochs.iter() {
        let had = before.epochs.get(id).map_or(Credits::ZERO, |epoch| epoch.granted);
        assert!(
            epoch.granted <= had.max(epoch.proven),
            "{}: {} is granted something by a store that recovers: {epoch:?}",
            after.id,
            epoch.node
        );
    }
}

/// Is a question's number above all before?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asking {
    Anew,
    Again,
}

/// A question brings no more than it asks for, whatever it says was granted before; and one that was answered before brings nothing.
fn granted_what_was_asked(before: &Account, after: &Account, request: &Request, asked: &RequestEntry, asking: Asking) {
    let of = |account: &Account| account.epochs.get(&request.epoch).map_or(Credits::ZERO, |epoch| epoch.granted);
    let rise = of(after).minus(of(before));
    let horizon = if crate::gang::asks_for_a_part(request, after) { HORIZON_OF_GANGS } else { HORIZON_MAX };
    let most = used_in(asked.burn_per_s, horizon).plus(asked.owed).max(asked.at_least);
    let most = if asking == Asking::Anew { most } else { Credits::ZERO };
    let epoch = before.epochs.get(&request.epoch);
    assert!(rise <= most, "{}: {} asks for {most:?} at most and is granted {rise:?}: {request:?}, {epoch:?}", after.id, request.node);
}

/// The word is about the account as it is after the request's own totals were booked.
fn verdict_is_true(after: &Account, request: &Request, asked: &RequestEntry, said: &AnswerEntry, asking: Asking) {
    let Some(epoch) = after.epochs.get(&request.epoch).filter(|epoch| epoch.node == request.node) else { return };
    let (free, escrow) = (after.available(), epoch.escrow());
    let what = || format!("{} hears {:?}; {free:?} are free, {escrow:?} held: {request:?}", request.node, said.verdict);
    match said.verdict {
        Verdict::Exhausted => assert!(!free.is_positive() && !escrow.is_positive(), "{}", what()),
        Verdict::Final => assert!(!free.is_positive() && escrow.is_positive(), "{}", what()),
        Verdict::Granted => {
            assert!(free.is_positive(), "{}", what());
            assert!(asking == Asking::Again || asked.owed <= escrow, "{}", what());
        }
        _ => {}
    }
}
