//! Jobs on several machines: the authority's registers of them, as the real store keeps them, and what must hold of their parts.

use std::collections::BTreeMap;

use meterd::domain::agent::Agent;
use meterd::domain::agent::credit::measured_burn;
use meterd::domain::gang::{Gang, GangId, GangWant, GangWord, Part, Says, THAW_MIN, Want};
use meterd::domain::id::{Attempt, Epoch, NodeId};
use meterd::domain::ledger::sizing::{HORIZON_OF_GANGS, used_in};
use meterd::domain::ledger::{Account, EpochState, PartId, Register};
use meterd::domain::money::Credits;
use meterd::domain::time::{Mono, Now};
use meterd::domain::wire::Request;

use crate::story::BURN_MAX;
use crate::world::{Ev, S, World};

/// How long a part may go on beyond what it holds: its agent may be dead for forty seconds and its disk slow for eight, more than once.
const UNATTENDED: u64 = 100 * S;

/// What all gangs are to do.
#[derive(Clone, Default)]
pub(crate) struct Registers {
    of: BTreeMap<GangId, Register>,
    /// Since when each that stands still was to, and when each last turned.
    frozen_since: BTreeMap<GangId, u64>,
    turned_at: BTreeMap<GangId, u64>,
    /// The version under which each was last let go on.
    ran_under: BTreeMap<GangId, u64>,
    /// What is to be pushed, and to whom.
    news: Vec<(GangWant, Vec<NodeId>)>,
}

impl Registers {
    /// Takes what a request, whose number was news, says of the gangs of one account, and gives what they are to do.
    pub(crate) fn hear(&mut self, request: &Request, account: &Account, now: Mono) -> Vec<GangWant> {
        let is_open = |epoch: Epoch| account.epochs.get(&epoch).is_some_and(|of_epoch| of_epoch.state == EpochState::Open);
        self.forget_unsaid(request, account);
        let mut wants: Vec<GangWant> = Vec::new();
        for word in request.gangs.iter().filter(|word| word.gang.account == account.id) {
            let known = self.of.remove(&word.gang);
            if known.is_none() && word.says == Says::Left {
                wants.push(Register::new(word.gang.clone()).word()); // it has gone with its last part
                continue;
            }
            let before = known.unwrap_or_else(|| Register::new(word.gang.clone()));
            let mut register = before.clone();
            register.hear(&request.node, request.epoch, word, is_open);
            wants.retain(|want| want.gang != word.gang);
            wants.push(register.word());
            if register.is_over(is_open) {
                self.frozen_since.remove(&word.gang);
                self.ran_under.remove(&word.gang);
                continue;
            }
            if register.version != before.version {
                turned_rightly(&before, &register, word, is_open);
                let mut nodes: Vec<NodeId> =
                    register.parts.iter().filter(|(_, part)| part.says != Says::Left).map(|(id, _)| id.node.clone()).collect();
                nodes.retain(|node| *node != request.node);
                self.news.push((register.word(), nodes));
                self.turned_at.insert(word.gang.clone(), now.0);
                if register.want == Want::Freeze {
                    self.frozen_since.entry(word.gang.clone()).or_insert(now.0);
                } else {
                    self.frozen_since.remove(&word.gang);
                    self.ran_under.insert(word.gang.clone(), register.version);
                }
            }
            self.of.insert(word.gang.clone(), register);
        }
        wants
    }

    /// A copy of the store may hold parts that have left since. A node speaks of all its parts, so what it does not speak of has gone.
    fn forget_unsaid(&mut self, request: &Request, account: &Account) {
        for register in self.of.values_mut().filter(|register| register.gang.account == account.id) {
            let gang = register.gang.clone();
            let said = |id: &PartId| request.gangs.iter().any(|word| word.gang == gang && word.part == id.part);
            register.parts.retain(|id, part| id.node != request.node || part.epoch != request.epoch || said(id));
        }
    }

    /// It is a copy: what it says begins anew.
    pub(crate) fn put_back(&mut self, now: Mono) {
        let frozen = self.of.values().filter(|register| register.want == Want::Freeze);
        self.frozen_since = frozen.map(|register| (register.gang.clone(), now.0)).collect();
        self.turned_at = self.of.keys().map(|gang| (gang.clone(), now.0)).collect();
        self.ran_under.clear();
        self.news.clear();
    }

    pub(crate) fn news(&mut self) -> Vec<(GangWant, Vec<NodeId>)> {
        std::mem::take(&mut self.news)
    }
}

/// A register freezes all on the word of a part that ran dry under what it said last, and lets all go on once each has said that it can.
fn turned_rightly(before: &Register, after: &Register, word: &GangWord, is_open: impl Fn(Epoch) -> bool) {
    if before.version < word.version {
        return; // it was put back from a copy
    }
    let heard = if matches!(word.says, Says::Runs | Says::Dry) { Want::Run } else { Want::Freeze };
    if before.version == word.version && word.says != Says::Left && heard != before.want {
        // A copy or a forgotten register came to that number by another way: nobody takes the same number twice, so all stand still under the next.
        assert!(after.want == Want::Freeze && before.version < after.version, "{word:?} contradicts {before:?}, which becomes {after:?}");
        return;
    }
    match after.want {
        Want::Freeze => assert!(
            before.want == Want::Run && word.says == Says::Dry && word.version == before.version,
            "a word of version {} freezes a gang that is at {}: {word:?}",
            word.version,
            before.version
        ),
        Want::Run => {
            for (id, part) in after.parts.iter().filter(|(_, part)| part.says != Says::Left && is_open(part.epoch)) {
                let ready = part.says == Says::Ready && part.version == before.version;
                assert!(ready, "a gang goes on, and its part on {} says {:?} of version {}", id.node, part.says, part.version);
            }
        }
    }
}

/// Is anything of this account, asked for by this request, for a part of a gang?
pub(crate) fn asks_for_a_part(request: &Request, account: &Account) -> bool {
    request.gangs.iter().any(|word| word.gang.account == account.id && word.says != Says::Left)
}

/// A part that was just heard holds no more than its gang may wait for it: four minutes of what it is expected to use, which is never below a
/// hundredth of what its machine can use, also while it stands still and waits for its thaw.
fn holds_no_more_than_its_horizon(n: usize, agent: &Agent, part: &Part, now: Now) -> bool {
    let Some(account) = agent.accounts.get(&part.gang.account) else { return false };
    let grant = &account.grant;
    let young = agent.jobs_of(&part.gang.account).any(|job| now.mono.since(job.opened.mono).0 < 10 * S);
    if grant.verdict.is_none_or(|heard| heard.at != now.boot) || account.marks.len() < 2 || young {
        return false;
    }
    let floor = Credits::from_nano(BURN_MAX / 100);
    let expected = if part.is_held() { used_in(part.needs, HORIZON_OF_GANGS).nano() / i128::from(THAW_MIN.0 / S) } else { 0 };
    let expected = used_in(measured_burn(account).max(floor), HORIZON_OF_GANGS).nano().max(expected);
    let held = grant.in_hand(now.boot).nano();
    let owed = agent.owed(&part.gang.account).nano();
    assert!(
        held <= expected + owed + 2,
        "node {n} holds {held} for its part of {}, and four minutes take {expected}: {grant:?}, {part:?}",
        part.gang.name
    );
    true
}

impl World {
    /// Jobs of two to four parts on machines of their own, each job on an account of its own.
    pub(crate) fn plan_gangs(&mut self, length: u64) {
        let nodes = self.machines.len();
        for account in self.shared..self.accounts.len() {
            let size = usize::try_from(self.rng.range(2, 5)).unwrap().min(nodes);
            let first = usize::try_from(self.rng.below(nodes as u64)).unwrap();
            let members: Vec<usize> = (0..size).map(|nth| (first + nth) % nodes).collect();
            let name = format!("mpi-{account}").parse().unwrap();
            let gang = Gang { name, attempt: 0, size: u32::try_from(size).ok() };
            for n in &members {
                self.machines[*n].gangs += 1;
                let (at, rate) = (self.rng.below(20 * S), self.rng.range(200, 2_000));
                self.after(at, Ev::NewPart(*n, account, Box::new(gang.clone()), rate));
            }
            if 400 * S < length {
                // One runs dry out of reach and tells of it when the other is out of reach, with all that it may hold.
                let at = self.rng.range(30 * S, 90 * S);
                let gone = self.rng.range(250 * S, 300 * S);
                let (one, other) = (members[0], members[1]);
                self.after(at, Ev::Cut(one, gone));
                let before = self.rng.range(S, 20 * S);
                self.after(at + gone - before, Ev::Cut(other, 600 * S));
            }
        }
    }

    pub(crate) fn new_part(&mut self, n: usize, account: usize, gang: Gang, rate_milli: u64) {
        if self.machines[n].dead {
            return;
        }
        self.add_work(n, account, rate_milli);
        if let Some(work) = self.machines[n].works.last_mut() {
            work.gang = Some(gang);
        }
    }

    pub(crate) fn push_gangs(&mut self) {
        for (want, nodes) in self.bank.gangs.news() {
            for node in nodes {
                let Some(to) = self.of_node.get(&node).copied() else { continue };
                for delay in self.travel(to) {
                    self.after(delay, Ev::GangPush(to, Box::new(want.clone())));
                }
            }
        }
    }

    fn gang_of(&self, account: usize, gang: &Gang) -> GangId {
        GangId { account: self.accounts[account].clone(), name: gang.name.clone(), attempt: gang.attempt }
    }

    /// What a node's parts hold is looked at when it was heard.
    pub(crate) fn audit_parts(&mut self, n: usize) {
        let now = self.machines[n].now(self.now);
        let machine = &self.machines[n];
        let Some(turn) = machine.turn.as_ref().filter(|_| 0 < machine.gangs) else { return };
        let agent = turn.agent();
        let live = agent.jobs.values().filter(|job| job.is_live());
        let parts = live.filter_map(|job| Some((job.attempt, agent.part(job.attempt)?)));
        let measured: Vec<Attempt> =
            parts.filter(|(_, part)| holds_no_more_than_its_horizon(n, agent, part, now)).map(|(attempt, _)| attempt).collect();
        for attempt in measured {
            let at = self.now;
            if let Some(work) = self.machines[n].work_of(attempt) {
                work.measured_at = at;
            }
        }
    }

    /// A part goes on for no longer than what it may hold lasts after its gang was to stand still; one that can be reached stops at once.
    pub(crate) fn audit_running_parts(&self, n: usize) {
        let machine = &self.machines[n];
        for work in machine.works.iter().filter(|work| work.runs()) {
            let Some(gang) = &work.gang else { continue };
            let id = self.gang_of(work.account, gang);
            let Some(since) = self.bank.gangs.frozen_since.get(&id).copied() else { continue };
            let from = since.max(work.begun_at);
            // Before it was measured it may hold what its machine could use at most, for as long as a grant is good.
            let measured = work.begun_at < work.measured_at;
            let lasts = if measured { HORIZON_OF_GANGS.0 } else { self.bank.valid_for.0 };
            let out_of_reach = from.max(work.measured_at) + lasts + lasts / 100 + UNATTENDED;
            let in_reach = if self.calm_since + 60 * S < from { from + 5 * S } else { self.calm_since + 160 * S };
            let latest = if self.calm { in_reach.min(out_of_reach) } else { out_of_reach };
            assert!(
                self.now <= latest,
                "{}: node {n}: {} goes on, and its gang was to stand still since {since}; begun at {}, measured at {}",
                self.now,
                work.name,
                work.begun_at,
                work.measured_at
            );
        }
    }

    /// A part that ran dry by itself …
    pub(crate) fn audit_part_stops(&mut self, n: usize, attempt: Attempt) {
        let Some(turn) = &self.machines[n].turn else { return };
        let agent = turn.agent();
        let Some(part) = agent.part(attempt).filter(|part| part.want == Want::Run && 0 < part.version) else { return };
        let empty = agent.accounts.get(&part.gang.account).is_some_and(|account| account.empty_since.is_some());
        let version = part.version;
        if let (Some(work), true) = (self.machines[n].work_of(attempt), empty) {
            work.dry_under = Some(version);
        }
    }

    /// … goes on with the others, also if it is funded again before.
    pub(crate) fn audit_part_goes_on(&mut self, n: usize, attempt: Attempt) {
        let Some(part) = self.machines[n].turn.as_ref().and_then(|turn| turn.agent().part(attempt)) else { return };
        let ran_under = self.bank.gangs.ran_under.get(&part.gang).copied();
        let known = self.bank.gangs.of.contains_key(&part.gang) && self.bank.standing.restores == 0;
        let Some(work) = self.machines[n].work_of(attempt) else { return };
        if let (Some(under), true) = (work.dry_under.take(), known) {
            let name = work.name.clone();
            assert!(
                Some(under) < ran_under,
                "node {n}: {name} ran dry under {under} and goes on by itself; its gang was last let go by {ran_under:?}"
            );
        }
    }

    pub(crate) fn is_held_by_its_gang(&self, n: usize, attempt: Attempt) -> bool {
        let part = self.machines[n].turn.as_ref().and_then(|turn| turn.agent().part(attempt));
        part.is_some_and(Part::is_held)
    }

    /// All parts of a gang run, or none.
    pub(crate) fn the_gangs_stand_together(&self) {
        for (id, register) in &self.bank.gangs.of {
            if self.now < self.bank.gangs.turned_at.get(id).copied().unwrap_or(0) + 60 * S {
                continue;
            }
            for (n, machine) in self.machines.iter().enumerate().filter(|(_, machine)| !machine.dead) {
                let parts = machine.works.iter().filter(|work| work.attempt.is_some() && !work.over);
                let parts = parts.filter(|work| work.gang.as_ref().is_some_and(|gang| self.gang_of(work.account, gang) == *id));
                for work in parts {
                    assert_eq!(work.runs(), register.want == Want::Run, "node {n}: {} beside its gang, {register:?}", work.name);
                }
            }
        }
    }

    /// The one bill of a job on several machines: what its parts drew, its account was charged.
    pub(crate) fn the_gangs_have_one_bill(&self) {
        for id in self.accounts.iter().skip(self.shared) {
            let drawn: i128 = (0..self.machines.len()).map(|n| self.audit.drawn_of(n, id)).sum();
            let knows_all = self.bank.standing.restores == 0 && self.machines.iter().all(|machine| !machine.wiped && !machine.dead);
            let of = &self.bank.accounts[id];
            let charged = of.settled.nano() + of.shortfall.nano();
            if knows_all {
                assert_eq!(charged, drawn, "{id}: its parts drew {drawn}, and it was charged {charged}");
            }
        }
    }
}
