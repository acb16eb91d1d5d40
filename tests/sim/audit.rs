//! The independent auditor: it knows what truly happened, and checks after every step that nobody was wronged.
//!
//! Of the code under test it reads the facts, the totals in the state and the messages; every rule that it checks is its own.

use std::collections::{BTreeMap, BTreeSet};

use meterd::domain::act::{Act, Acted, Order, Target};
use meterd::domain::agent::Agent;
use meterd::domain::agent::start::Reply;
use meterd::domain::batch::Batch;
use meterd::domain::enforcement::Enforcement;
use meterd::domain::fact::Fact;
use meterd::domain::id::{AccountId, Attempt, Epoch};
use meterd::domain::ledger::EpochState;
use meterd::domain::turn::{Effect, Event, Turn};
use meterd::domain::wire::{OnExhaustion, Request, Verdict};

use crate::bank::Bank;
use crate::kernel::KernelJob;
use crate::tariff::{Cards, Tariff};
use crate::world::{CPUS, Faults, MEMORY, MS, Node, Owner, S};

/// An order to end a job needs a word of the authority that is not older than this.
const FRESH: u64 = 30 * S;

/// What a job is measured from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Baseline {
    pub(crate) job: usize,
    pub(crate) cpu_ns: u64,
    pub(crate) run_least: u128,
    pub(crate) run_most: u128,
    pub(crate) changes: u64,
    pub(crate) late_ns: u128,
    pub(crate) crashes: u64,
}

/// A receipt that became durable.
pub(crate) struct Closed {
    pub(crate) node: usize,
    pub(crate) attempt: Attempt,
    pub(crate) json: String,
}

#[derive(Default)]
struct NodeAudit {
    /// Whose each attempt is, and what it gave back.
    accounts: BTreeMap<Attempt, AccountId>,
    refunded: BTreeMap<(AccountId, Attempt), i128>,
    replica: Agent,
    expected: BTreeMap<u64, Agent>,
    asked: BTreeMap<(Epoch, u64), Request>,
    first_sent: BTreeMap<(Epoch, u64), u64>,
    opened: BTreeMap<Attempt, Target>,
    baselines: BTreeMap<(u64, String), Baseline>,
    deadline: BTreeMap<AccountId, u64>,
    exhausted_at: BTreeMap<AccountId, u64>,
    pushed: BTreeMap<AccountId, u64>,
    accepted_exhausted: BTreeSet<AccountId>,
    last: BTreeMap<AccountId, (i128, i128)>,
    last_epoch: Option<Epoch>,
    allowed: BTreeMap<AccountId, i128>,
    owes_since: BTreeMap<AccountId, u64>,
    /// How many segments each job had, and whether it was over.
    segments: BTreeMap<Attempt, (usize, bool)>,
    /// Attempts that were counted at least once since the last crash.
    met: BTreeSet<Attempt>,
    armed_at: BTreeMap<AccountId, u64>,
    /// When each job was last counted, and its memory in this segment.
    counted: BTreeMap<Attempt, (u64, u128)>,
    rough_until: u64,
    full: bool,
    confirmed: bool,
    crashes: u64,
}

/// All that the auditor knows.
pub(crate) struct Audit {
    cards: Cards,
    nodes: Vec<NodeAudit>,
    owners_of_epochs: BTreeMap<Epoch, usize>,
    spent: BTreeMap<(Epoch, AccountId), i128>,
    durably_spent: BTreeMap<(Epoch, AccountId), i128>,
    pub(crate) metered: BTreeMap<(usize, Attempt), Baseline>,
    pub(crate) receipts: Vec<Closed>,
}

impl Audit {
    pub(crate) fn new(nodes: usize, cards: Cards) -> Audit {
        Audit {
            cards,
            nodes: (0..nodes).map(|_| NodeAudit::default()).collect(),
            owners_of_epochs: BTreeMap::new(),
            spent: BTreeMap::new(),
            durably_spent: BTreeMap::new(),
            metered: BTreeMap::new(),
            receipts: Vec::new(),
        }
    }

    pub(crate) fn epoch_owner(&self, epoch: Epoch) -> Option<usize> {
        self.owners_of_epochs.get(&epoch).copied()
    }

    pub(crate) fn replica(&self, n: usize) -> &Agent {
        &self.nodes[n].replica
    }

    pub(crate) fn was_full(&self, n: usize) -> bool {
        self.nodes[n].full
    }

    /// Everything that was ever charged against an account's grants, over all nodes and epochs.
    pub(crate) fn spent_on(&self, account: &AccountId) -> i128 {
        self.durably_spent.iter().filter(|((_, id), _)| id == account).map(|(_, spent)| spent).sum()
    }

    // ---- what befalls a node ----

    pub(crate) fn rough(&mut self, n: usize, until: u64) {
        let node = &mut self.nodes[n];
        node.rough_until = node.rough_until.max(until);
    }

    pub(crate) fn disk_was_full(&mut self, n: usize) {
        self.nodes[n].full = true;
    }

    pub(crate) fn crashed(&mut self, n: usize, now: u64) {
        let node = &mut self.nodes[n];
        node.expected.clear();
        node.armed_at.clear();
        node.met.clear();
        node.crashes += 1;
        node.rough_until = node.rough_until.max(now + 60 * S);
    }

    pub(crate) fn rebooted(&mut self, n: usize) {
        self.nodes[n].baselines.clear();
    }

    pub(crate) fn recovered(&mut self, n: usize, agent: &Agent) {
        let node = &mut self.nodes[n];
        assert!(*agent == node.replica, "G2: what a start reads back is not what was durable\nread {agent:#?}\nwas {:#?}", node.replica);
        let heard = |id: &AccountId| agent.accounts.get(id).is_some_and(|account| account.grant.exhausted().is_some());
        node.exhausted_at.retain(|id, _| heard(id));
        node.pushed.clear();
        node.last.clear();
        node.last_epoch = None;
    }

    pub(crate) fn woke(&mut self, n: usize, now: u64) {
        let node = &mut self.nodes[n];
        node.rough_until = now + 5 * S;
    }

    /// A batch is on disk: the replica takes its facts, and must then be what the live agent was.
    pub(crate) fn durable(&mut self, n: usize, batch: &Batch) {
        for row in &batch.rows {
            let fact = Fact::decode(&row.bytes).unwrap_or_else(|error| panic!("G2: a fact that cannot be read back: {error}"));
            self.levels_were_looked_at(n, &fact);
            let node = &mut self.nodes[n];
            match &fact {
                Fact::Asked { request, .. } => {
                    node.asked.insert((request.epoch, request.request), (**request).clone());
                }
                Fact::JobOpened(opened) => {
                    node.opened.insert(opened.attempt, opened.target.clone());
                    node.accounts.insert(opened.attempt, opened.account.clone());
                    // Whose stop came before its start was decided is over before anybody watches it.
                    let key = (opened.at.mono.0, opened.name.as_str().to_owned());
                    if let Some(baseline) = node.baselines.get(&key) {
                        self.metered.entry((n, opened.attempt)).or_insert(*baseline);
                    }
                }
                Fact::Refunded { attempt, given, .. } => {
                    let nano = given.iter().map(|(_, amount)| amount.nano()).sum();
                    node.refunded.insert((node.accounts[attempt].clone(), *attempt), nano);
                }
                _ => {}
            }
            node.replica.apply(&fact);
            if let (Fact::AskedRest { .. }, Some(outstanding)) = (&fact, &node.replica.outstanding) {
                let request = outstanding.request.clone();
                node.asked.insert((request.epoch, request.request), request);
            }
            if let Some((epoch, _)) = node.replica.epoch {
                for (id, account) in &node.replica.accounts {
                    let spent = self.durably_spent.entry((epoch, id.clone())).or_default();
                    *spent = account.grant.spent.nano().max(*spent);
                }
            }
        }
        let node = &mut self.nodes[n];
        if let Some(expected) = node.expected.remove(&node.replica.seq.0) {
            assert!(expected == node.replica, "G2: replaying the facts gives another state at {}", node.replica.seq.0);
        }
        let seq = node.replica.seq.0;
        node.expected.retain(|at, _| seq < *at);
        if let Some(checkpoint) = &batch.checkpoint {
            let read = Agent::decode(checkpoint);
            assert!(read.as_ref() == Some(&node.replica), "G2: a checkpoint that is not the state at {seq}");
        }
        for receipt in &batch.receipts {
            self.receipts.push(Closed { node: n, attempt: receipt.attempt, json: receipt.json.clone() });
        }
    }

    // ---- jobs ----

    pub(crate) fn baseline(&mut self, n: usize, mono: u64, index: usize, job: &mut KernelJob) {
        if !job.populated && !self.metered.values().any(|baseline| baseline.job == index) {
            job.forget_emptiness();
        }
        let baseline = Baseline {
            job: index,
            cpu_ns: job.cpu_ns(),
            run_least: job.run_least,
            run_most: job.run_most,
            changes: job.changes,
            late_ns: job.late_ns,
            crashes: self.nodes[n].crashes,
        };
        self.nodes[n].baselines.insert((mono, job.name.clone()), baseline);
    }

    pub(crate) fn watched(&mut self, n: usize, attempt: Attempt, node: &Node) {
        let Some(job) = node.turn.as_ref().and_then(|turn| turn.agent().jobs.get(&attempt)) else { return };
        let key = (job.opened.mono.0, job.name.as_str().to_owned());
        let baseline = self.nodes[n].baselines.get(&key).unwrap_or_else(|| panic!("G7: job {} was opened and nobody asked", job.name));
        self.metered.insert((n, attempt), *baseline);
    }

    /// What a report of the hands shows: of which job, when.
    pub(crate) fn acted(&self, n: usize, acted: &Acted) -> Option<(usize, u64)> {
        let settled = matches!(acted.act, Act::Freeze | Act::Thaw) && acted.outcome == meterd::domain::act::ActOutcome::Confirmed;
        self.metered.get(&(n, acted.attempt)).filter(|_| settled).map(|baseline| (baseline.job, acted.done_at.0))
    }

    // ---- one step ----

    pub(crate) fn before(&mut self, n: usize, now: u64, turn: &Turn, event: &Event) {
        let node = &mut self.nodes[n];
        node.accepted_exhausted.clear();
        let agent = turn.agent();
        node.last = agent.accounts.iter().map(|(id, account)| (id.clone(), (account.grant.spent.nano(), unfunded(agent, id)))).collect();
        node.last_epoch = agent.epoch.map(|(epoch, _)| epoch);
        match event {
            Event::Answered(answer, _) => {
                let ours = agent.outstanding.as_ref().is_some_and(|outstanding| {
                    (outstanding.request.epoch, outstanding.request.request, outstanding.request.digest())
                        == (answer.epoch, answer.request, answer.digest)
                });
                if !ours {
                    return;
                }
                for entry in &answer.entries {
                    if let Some(sent) = node.first_sent.get(&(answer.epoch, answer.request)) {
                        let until = sent + entry.valid_for.0;
                        let deadline = node.deadline.entry(entry.account.clone()).or_default();
                        *deadline = until.max(*deadline);
                    }
                    let fresh = node.pushed.get(&entry.account).is_none_or(|version| *version <= entry.version);
                    if entry.verdict == Verdict::Exhausted && fresh {
                        node.exhausted_at.insert(entry.account.clone(), now);
                        node.accepted_exhausted.insert(entry.account.clone());
                    } else {
                        node.exhausted_at.remove(&entry.account);
                    }
                    if entry.verdict == Verdict::UnknownAccount && fresh {
                        node.accepted_exhausted.insert(entry.account.clone()); // nobody will ever pay
                    }
                    if entry.verdict == Verdict::Closed {
                        node.rough_until = node.rough_until.max(now + 30 * S);
                    }
                }
            }
            Event::Pushed(push) => {
                let known = agent.accounts.get(&push.account).map_or(0, |account| account.grant.version);
                if known < push.version {
                    node.exhausted_at.remove(&push.account);
                    let seen = node.pushed.entry(push.account.clone()).or_default();
                    *seen = push.version.max(*seen);
                }
            }
            Event::Acted(all) if all.iter().any(|(acted, _)| acted.outcome != meterd::domain::act::ActOutcome::Confirmed) => {
                node.rough_until = node.rough_until.max(now + 10 * S);
            }
            Event::ConfirmAsked { .. } => node.confirmed = true,
            _ => {}
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one call site, and a bundle would only rename the arguments")]
    pub(crate) fn stepped(
        &mut self,
        n: usize,
        now: u64,
        world: &Node,
        effects: &[Effect],
        owners: &[Owner],
        tariffs: &[Tariff],
        faults: &Faults,
    ) {
        let Some(agent) = world.turn.as_ref().map(Turn::agent) else { return };
        let commits = effects.iter().filter_map(|effect| if let Effect::Commit(batch) = effect { Some(batch) } else { None });
        if let Some(batch) = commits.clone().next_back() {
            assert_eq!(batch.last_seq(), agent.seq.0, "G2: the state is ahead of what was handed to the disk");
            self.nodes[n].expected.insert(agent.seq.0, agent.clone());
        }
        for row in commits.flat_map(|batch| &batch.rows) {
            if let Ok(Fact::Armed { account, .. }) = Fact::decode(&row.bytes) {
                self.nodes[n].armed_at.insert(account, agent.seq.0);
            }
        }
        if let Some((epoch, _)) = agent.epoch {
            self.owners_of_epochs.insert(epoch, n);
            if self.nodes[n].last_epoch.is_some_and(|last| last != epoch) {
                self.nodes[n].deadline.clear();
                self.nodes[n].last.clear();
            }
            for (id, account) in &agent.accounts {
                let spent = self.spent.entry((epoch, id.clone())).or_default();
                *spent = account.grant.spent.nano().max(*spent);
            }
        }
        for job in agent.jobs.values().chain(&agent.closed) {
            let rest = job.charge.nano() - job.drawn.nano() - job.unfunded.nano();
            assert!(0 <= rest, "G3: job {} has paid more than its charge", job.name);
            assert!(0 <= job.unfunded.nano() && 0 <= job.drawn.nano(), "G3: job {} has a negative part", job.name);
        }
        for owner in owners {
            self.account_stands(n, now, world, agent, owner);
            self.stops_in_time(n, now, world, agent, owner, tariffs, faults);
        }
    }

    /// What was counted says that somebody looked: memory is never billed over a stretch in which nobody did.
    fn levels_were_looked_at(&mut self, n: usize, fact: &Fact) {
        let counted = &mut self.nodes[n].counted;
        match fact {
            Fact::JobOpened(opened) => drop(counted.insert(opened.attempt, (opened.at.mono.0, 0))),
            Fact::JobChanged { attempt, .. } => {
                if let Some((_, billed)) = counted.get_mut(attempt) {
                    *billed = 0;
                }
            }
            Fact::SegmentsOpened { attempts, .. } => {
                for attempt in attempts {
                    if let Some((_, billed)) = counted.get_mut(attempt) {
                        *billed = 0;
                    }
                }
            }
            Fact::CardAdopted { .. } => counted.values_mut().for_each(|(_, billed)| *billed = 0),
            Fact::Counted { rows, .. } => {
                for row in rows {
                    let (at, billed) = counted.insert(row.attempt, (row.at.0, row.memory_byte_ns)).unwrap_or_default();
                    let length = row.at.0 - at;
                    let more = billed < row.memory_byte_ns;
                    assert!(
                        !more || length <= 3 * S,
                        "G6: memory billed for {length} ns in which nobody looked at attempt {}",
                        row.attempt
                    );
                }
            }
            _ => {}
        }
    }

    fn account_stands(&mut self, n: usize, now: u64, world: &Node, agent: &Agent, owner: &Owner) {
        let node = &self.nodes[n];
        let Some(account) = agent.accounts.get(&owner.id) else { return };
        let grant = &account.grant;
        let (granted, returned, spent) = (grant.granted.nano(), grant.returned.nano(), grant.spent.nano());
        assert!(spent + returned <= granted, "G3: {} spent {spent} and returned {returned} of {granted}", owner.id);
        let boot = world.now(now).boot.0;
        let deadline = node.deadline.get(&owner.id).copied().unwrap_or(0);
        if node.crashes == 0 || node.deadline.contains_key(&owner.id) {
            assert!(grant.deadline.0 <= deadline, "G3: the grant of {} lasts to {} and was good to {deadline}", owner.id, grant.deadline.0);
        }
        if let Some((before, unfunded_before)) = node.last.get(&owner.id) {
            assert!(spent <= *before || boot <= deadline, "G3: {} was charged after its deadline", owner.id);
            let lost = unfunded(agent, &owner.id) > *unfunded_before;
            assert!(!lost || node.accepted_exhausted.contains(&owner.id), "G3: {} was written off without a fresh word", owner.id);
        }
        // What ran on an account before it was created or paid into is written off.
        if owner.rich && !owner.unpaid && self.cards == Cards::Plain {
            assert_eq!(unfunded(agent, &owner.id), 0, "G3: {} always had credit and something was written off", owner.id);
        }
    }

    /// What runs past zero stays within a quarter of a second of everything (0.2 s, and the simulated hands' own delay).
    #[expect(clippy::too_many_arguments, reason = "one call site")]
    fn stops_in_time(&mut self, n: usize, now: u64, world: &Node, agent: &Agent, owner: &Owner, tariffs: &[Tariff], faults: &Faults) {
        let most = agent.accounts.get(&owner.id).map_or(Enforcement::Enforce, |account| account.grant.policy.enforcement);
        let mode = agent.enforcement.unwrap_or(world.settings.enforcement).min(most);
        let held_back = world.settings.ladder.blast.freeze_accounts.is_some()
            && agent.accounts.get(&owner.id).is_none_or(|account| account.allowed.is_none());
        let jobs: Vec<_> = agent.jobs.values().filter(|job| job.account == owner.id).collect();
        let owed: i128 = jobs.iter().map(|job| job.charge.nano() - job.drawn.nano() - job.unfunded.nano()).sum();
        let node = &mut self.nodes[n];
        let first_counted = jobs.iter().filter(|job| job.opened.mono < job.counted_to && node.met.insert(job.attempt)).count();
        // A new segment may cost something from its beginning on, and an end more than was kept back: by a card or an outcome that nobody foresaw.
        let stands = |job: &&&meterd::domain::job::Job| (job.segments.len(), job.ended.is_some());
        let begun =
            jobs.iter().filter(|job| node.segments.insert(job.attempt, stands(job)).is_some_and(|before| before != stands(job))).count();
        let allowed = node.allowed.entry(owner.id.clone()).or_default();
        if owed == 0 {
            *allowed = 0;
            node.owes_since.remove(&owner.id);
            return;
        }
        let models: Vec<String> = jobs
            .iter()
            .filter(|job| job.ended.is_none())
            .flat_map(|job| job.gpus.iter().map(|held| held.model.as_str().to_owned()))
            .collect();
        let cards = || agent.cards.values().filter_map(|card| tariffs.get(usize::try_from(card.version).ok()? - 1));
        let burn = cards().map(|tariff| tariff.burn(CPUS, MEMORY, &models)).max().unwrap_or_default();
        let still = cards().map(|tariff| tariff.burn_still(&models, jobs.len())).max().unwrap_or_default();
        let bound = i128::try_from(burn / 4_u32).unwrap_or(i128::MAX) + 1_000;
        let since = *node.owes_since.entry(owner.id.clone()).or_insert(now);
        // What its card charges for standing still comes whether anybody can pay for it or not.
        let standing = i128::try_from(still * (now - since) / S).unwrap_or(i128::MAX);
        let arming = node.armed_at.get(&owner.id).is_some_and(|seq| node.replica.seq.0 < *seq);
        let policy = agent.accounts.get(&owner.id).map(|account| account.grant.policy.on_exhaustion);
        // Until its start is on disk a job is not frozen: after a crash nobody would know it and thaw it. Nobody was told that it started.
        let unknown = jobs.iter().any(|job| job.ended.is_none() && !node.replica.jobs.contains_key(&job.attempt));
        let exempt = mode != Enforcement::Enforce
            || policy.is_some_and(OnExhaustion::runs_on)
            || now < node.rough_until
            || arming
            || unknown
            || held_back;
        let other_fault = 0 < faults.unread || world.disk.full || 0 < faults.hands;
        if 0 < first_counted || (self.cards == Cards::Ruled && 0 < begun) {
            // What its tasks used while its start waited for an answer is charged; nobody could stop them then.
            *allowed = owed + bound;
        }
        if exempt || other_fault {
            // What is used until the next look, which may be a tick away, counts as used before the exemption ended.
            *allowed = owed + 6 * bound;
            return;
        }
        *allowed = bound.max(*allowed);
        let most = allowed.saturating_add(standing);
        assert!(owed <= most, "G4: {} owes {owed}, and a quarter of a second of everything is {bound}", owner.id);
    }

    // ---- what goes out ----

    pub(crate) fn ordered(&mut self, n: usize, now: u64, order: &Order, world: &Node, jobs: &[KernelJob]) {
        let node = &self.nodes[n];
        let Some(agent) = world.turn.as_ref().map(Turn::agent) else { return };
        let opened = node.opened.get(&order.attempt);
        assert!(opened == Some(&order.target), "G7: {} for a target that was not opened: {:?}", order.act, order.target);
        let replica = &node.replica;
        let job = agent.jobs.get(&order.attempt).or_else(|| agent.closed.iter().find(|job| job.attempt == order.attempt));
        let account = &job.unwrap_or_else(|| panic!("G7: {} for an unknown job", order.act)).account;
        let durable = replica.accounts.get(account).cloned().unwrap_or_default();
        let mode = |agent: &Agent| {
            let most = agent.accounts.get(account).map_or(Enforcement::Enforce, |account| account.grant.policy.enforcement);
            agent.enforcement.unwrap_or(world.settings.enforcement).min(most)
        };
        let spared = |agent: &Agent| agent.jobs.get(&order.attempt).is_some_and(|job| job.victim.is_some());
        let full = world.disk.full;
        if order.act == Act::Warn {
            assert!(Enforcement::Notify <= mode(agent), "G5: a warning while nobody is to be warned");
            assert!(durable.warned.is_some(), "gate: a warning of {account} that is not durable");
            return;
        }
        if order.act != Act::Thaw && order.act != Act::Remove {
            assert_eq!(mode(agent), Enforcement::Enforce, "G5: {} while nothing is enforced", order.act);
            let grant = agent.accounts.get(account).map(|account| account.grant.clone()).unwrap_or_default();
            let in_hand = grant.granted.nano() - grant.returned.nano() - grant.spent.nano();
            let good = world.now(now).boot.0 < grant.deadline.0;
            let owed: i128 = agent
                .jobs
                .values()
                .filter(|job| job.account == *account)
                .map(|job| job.charge.nano() - job.drawn.nano() - job.unfunded.nano())
                .sum();
            let for_others = spared(agent) && order.act == Act::Freeze;
            // What lines keep back, and the next step of one, need not be spent to be out of reach.
            let kept = self.cards == Cards::Ruled && agent.accounts.get(account).is_some_and(|account| account.empty_since.is_some());
            assert!(for_others || kept || !(0 < in_hand && good && owed == 0), "G5: {} of {account} with {in_hand} in hand", order.act);
        }
        match order.act {
            Act::Warn => {}
            Act::Freeze => {
                let told = durable.armed.is_some() || durable.empty_since.is_some() || full || spared(replica);
                assert!(told, "gate: a freeze of {account}, and nothing of it is durable");
            }
            Act::Thaw => {
                let policy = durable.grant.policy.on_exhaustion;
                let may = durable.empty_since.is_none() || mode(replica) != Enforcement::Enforce || policy.runs_on();
                assert!(may, "gate: a thaw of {account} before its reason is durable");
                if let Some(job) = jobs.iter().find(|job| job.node == n && job.is(&order.target)) {
                    let ours = job.frozen_by_us || !job.freeze_bit || job.in_doubt;
                    assert!(ours, "G7: a thaw of {}, which another froze", job.name);
                }
            }
            Act::Terminate | Act::Kill => {
                assert!(durable.grant.exhausted().is_some(), "gate: {} before the authority's word is durable", order.act);
                let heard = node.exhausted_at.get(account).unwrap_or_else(|| panic!("G5: {} without a fresh word", order.act));
                assert!(now - heard <= FRESH, "G5: {} on a word that is {} s old", order.act, (now - heard) / S);
                self.nodes[n].rough_until = now + 60 * S; // it runs on within its grace
            }
            Act::Remove => {
                let over = replica.jobs.get(&order.attempt).is_none_or(|job| job.ended.is_some());
                assert!(over && matches!(order.target, Target::OwnCgroups(_)), "gate: a removal of what is not over or not ours");
            }
        }
    }

    pub(crate) fn sent(&mut self, n: usize, world: &Node, now: u64, request: &Request) {
        let node = &mut self.nodes[n];
        let key = (request.epoch, request.request);
        let asked = node.asked.get(&key);
        // What was given back is told beside it: running totals, and only what is durable.
        let plain = Request { refunds: Vec::new(), ..request.clone() };
        assert!(asked == Some(&plain), "gate: question {} goes out, durable is {asked:#?}, sent {request:#?}", request.request);
        for total in &request.refunds {
            let durable = node.replica.refunds.get(&(total.epoch, total.account.clone())).map_or(0, |back| back.total.nano());
            assert!(total.refunded.nano() <= durable, "gate: {} given back on {}, durable is {durable}", total.refunded, total.account);
        }
        node.first_sent.entry(key).or_insert(world.now(now).boot.0);
    }

    pub(crate) fn replied(&self, n: usize, reply: &Reply) {
        let replica = &self.nodes[n].replica;
        let known = |attempt: &Attempt| replica.jobs.get(attempt).or_else(|| replica.closed.iter().find(|job| job.attempt == *attempt));
        match reply {
            Reply::Started { attempt, target, .. } => {
                let job = known(attempt);
                assert!(job.is_some_and(|job| job.target == *target), "gate: a start is confirmed and not durable");
            }
            Reply::StopNoted { attempt, .. } => {
                let noted = known(attempt).is_some_and(|job| job.reported.is_some() || job.ended.is_some());
                assert!(noted, "gate: a stop is confirmed and not durable");
            }
            Reply::Changed { attempt, .. } => assert!(known(attempt).is_some(), "gate: a change is confirmed and not durable"),
            Reply::Done => {
                let told = replica.enforcement.is_some() || self.nodes[n].confirmed;
                assert!(told, "gate: a mode is confirmed and not durable");
            }
            Reply::Refused(_) => {}
        }
    }

    // ---- the ledger ----

    pub(crate) fn booked(&self, bank: &Bank) {
        for (id, account) in &bank.books.accounts {
            let paid_in = bank.books.paid_in.get(id).copied().unwrap_or(0);
            let mut held = 0;
            for (epoch, escrow) in account.epochs.iter() {
                if escrow.state == EpochState::Open {
                    let rest = escrow.granted.nano() - escrow.returned.nano() - escrow.settled.nano();
                    assert!(0 <= rest, "G3: epoch {epoch} of {id} is charged beyond its grant");
                    held += rest;
                }
                let spent = self.spent.get(&(*epoch, id.clone())).copied().unwrap_or(0);
                assert!(escrow.settled.nano() <= spent, "G3: {id} was charged {}, its node spent {spent}", escrow.settled);
            }
            let settled = account.settled.nano();
            let refunded: i128 = account.epochs.values().map(|epoch| epoch.refunds.refunded.nano()).sum();
            let by_nodes: i128 =
                self.nodes.iter().flat_map(|node| &node.refunded).filter(|((of, _), _)| of == id).map(|(_, nano)| nano).sum();
            assert!(refunded <= by_nodes, "G3: {id}: {refunded} given back, and its nodes' jobs gave back {by_nodes}");
            assert_eq!(account.shortfall.nano(), 0, "G3: {id}: credit was taken back from an epoch that could still spend it");
            let come_in = paid_in + bank.books.promised(id) + refunded;
            assert!(held + settled <= come_in, "G3: {id}: {held} are out and {settled} settled of {come_in}");
            assert_eq!(account.lots.total().nano() + settled, come_in, "G3: {id} does not add up");
        }
    }
}

fn unfunded(agent: &Agent, account: &AccountId) -> i128 {
    agent.jobs.values().filter(|job| job.account == *account).map(|job| job.unfunded.nano()).sum()
}

/// Most that a change of a job's state may go unnoticed without being declared as a gap: three sample intervals.
pub(crate) const UNNOTICED: u128 = 3 * S as u128 + 2 * MS as u128;

impl Audit {
    /// How often a node's process has died.
    pub(crate) fn crashes(&self, n: usize) -> u64 {
        self.nodes[n].crashes
    }
}
