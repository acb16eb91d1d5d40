//! What must hold, checked against what really happened.

use std::collections::BTreeMap;

use meterd::domain::agent::Agent;
use meterd::domain::batch::ReceiptRow;
use meterd::domain::id::Attempt;
use meterd::domain::ledger::{self, Account};
use meterd::domain::wire::Request;

use crate::bank::Bank;

/// Fleets up to this size have every total of every epoch compared before and after each booking.
const SMALL: usize = 16;

/// What an agent last said of a job, and where that began.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
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
}

pub(crate) struct Audit {
    nodes: Vec<Known>,
    bookings: u64,
    pub(crate) receipts: u64,
}

impl Audit {
    pub(crate) fn new(nodes: usize) -> Audit {
        Audit { nodes: vec![Known::default(); nodes], bookings: 0, receipts: 0 }
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

    pub(crate) fn unfunded(&self, n: usize) -> i128 {
        self.nodes[n].jobs.values().map(|told| told.unfunded).sum()
    }

    pub(crate) fn told(&self, n: usize, attempt: Attempt) -> Option<&Told> {
        self.nodes[n].jobs.get(&attempt)
    }

    pub(crate) fn receipts(&mut self, _: usize, receipts: &[ReceiptRow]) {
        self.receipts += receipts.len() as u64;
    }

    /// After each turn: no grant is spent beyond its end, and every job's charge is explained.
    pub(crate) fn stepped(&mut self, n: usize, agent: &Agent) {
        for (id, account) in &agent.accounts {
            let grant = &account.grant;
            assert!(grant.spent.plus(grant.returned) <= grant.granted, "node {n} spends beyond its grant of {id}: {grant:?}");
        }
        for job in agent.jobs.values().chain(agent.closed.iter().rev().take(8)) {
            let told = Told { charge: job.charge.nano(), drawn: job.drawn.nano(), unfunded: job.unfunded.nano() };
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

    pub(crate) fn answered(&mut self, bank: &Bank, before: &[Account]) {
        for account in before {
            if let Err(broken) = ledger::check_step(account, &bank.accounts[&account.id]) {
                panic!("{}: {broken}", account.id);
            }
        }
        self.booked(bank);
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
        }
    }
}
