//! The simulated fleet: it does what the agents' effects say, carries their messages, and lets things go wrong.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use meterd::domain::act::{Act, ActOutcome, Acted, Order};
use meterd::domain::agent::start::{PendingStart, Reply, Wanted};
use meterd::domain::fact::Seq;
use meterd::domain::gang::{Gang, GangWant};
use meterd::domain::id::{AccountId, Attempt, BootId, Epoch, NodeId, Uid};
use meterd::domain::job::Ending;
use meterd::domain::ladder::JobPolicy;
use meterd::domain::meter::JobSample;
use meterd::domain::outcome::Outcome;
use meterd::domain::rates::Card;
use meterd::domain::time::{Boot, Mono, Now};
use meterd::domain::turn::{Effect, Event, Turn};
use meterd::domain::wire::{Answer, Push, Request};

use crate::audit::Audit;
use crate::bank::Bank;
use crate::liar;
use crate::machine::{self, Machine};
use crate::restore::PutBack;
use crate::rng::Rng;

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const S: u64 = 1_000_000_000;

/// A thousandth of a nano-credit for each nanosecond of CPU time.
pub(crate) const CARD: &str = "card = \"fleet\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n\
    [[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"3.6\"\nunit = \"core-hour\"\n";

#[derive(Clone, Debug)]
pub(crate) enum Ev {
    Tick(usize, u64),
    Wake(usize, u64),
    Disk(usize, u64),
    ToBank(usize, Box<Request>),
    ToNode(usize, Box<Answer>),
    PushTo(usize, Push),
    Hand(usize, u64, Box<Order>),
    Start(usize, usize),
    Exit(usize, usize),
    NewWork(usize),
    /// A part of a job on several machines, on this account and at this rate.
    NewPart(usize, usize, Box<Gang>, u64),
    GangPush(usize, Box<GangWant>),
    Rate(usize),
    Crash(usize),
    Restart(usize, u64),
    Reboot(usize, Medium),
    Die(usize),
    Cut(usize, u64),
    CutAll(u64),
    /// The next answer is slow, and from its arrival on the line is dead for as long as what it brought is good, and longer.
    Fade(usize),
    BankDown(u64),
    BankUp,
    /// The authority goes down and comes back, over and over.
    Flap(u8),
    /// A copy of the authority's store is made.
    BackUp,
    /// … and put back.
    PutBack(PutBack),
    /// Somebody sets a machine's date.
    ClockStep(usize, i64),
    BankClockStep(i64),
    TopUp(usize, i128),
    Sweep,
}

/// What becomes of a machine's disk at a reboot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    Kept,
    /// Re-imaged under the same name.
    Lost,
}

/// Chances in permille.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) loss: u64,
    pub(crate) doubled: u64,
    /// Comes up to half a minute late.
    pub(crate) slow: u64,
    /// Comes up to ten minutes late.
    pub(crate) late: u64,
    /// The disk takes seconds.
    pub(crate) stall: u64,
    /// The agent dies right after it has asked.
    pub(crate) dies_asking: u64,
    /// Longest way of a message, in milliseconds, that is neither slow nor late.
    pub(crate) way_ms: u64,
}

pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) now: u64,
    order: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Slot)>>,
    pub(crate) machines: Vec<Machine>,
    pub(crate) bank: Bank,
    pub(crate) accounts: Vec<AccountId>,
    /// So many of these are for any job; each of the others is of one job on several machines.
    pub(crate) shared: usize,
    /// What each account's owner paid in.
    pub(crate) paid: Vec<i128>,
    pub(crate) faults: Faults,
    pub(crate) calm: bool,
    pub(crate) calm_since: u64,
    pub(crate) audit: Audit,
    plenty_since: Vec<u64>,
    card: Card,
    of_epoch: BTreeMap<Epoch, usize>,
    pub(crate) of_node: BTreeMap<NodeId, usize>,
    /// When the last fault happens.
    pub(crate) noise_until: u64,
    /// How often the authority closes what is silent.
    pub(crate) sweep_every: u64,
    inodes: u64,
    callers: BTreeMap<(usize, u64), usize>,
    next_caller: u64,
    /// Answers that were given, for those who repeat old ones.
    pub(crate) old_answers: Vec<(usize, Answer)>,
}

/// An event in the queue; only its place counts for the order.
struct Slot(Ev);

impl PartialEq for Slot {
    fn eq(&self, _: &Slot) -> bool {
        true
    }
}
impl Eq for Slot {}
impl PartialOrd for Slot {
    fn partial_cmp(&self, other: &Slot) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Slot {
    fn cmp(&self, _: &Slot) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

impl World {
    pub(crate) fn new(rng: Rng, bank: Bank, accounts: Vec<AccountId>, nodes: usize) -> World {
        let mut world = World {
            rng,
            now: 10 * S,
            order: 0,
            queue: BinaryHeap::new(),
            machines: Vec::new(),
            bank,
            paid: vec![0; accounts.len()],
            plenty_since: vec![0; accounts.len()],
            shared: accounts.len(),
            accounts,
            faults: Faults::default(),
            calm: true,
            calm_since: 0,
            audit: Audit::new(nodes),
            card: Card::parse(CARD, "fleet.toml").unwrap(),
            of_epoch: BTreeMap::new(),
            of_node: BTreeMap::new(),
            noise_until: 0,
            sweep_every: 10 * S,
            inodes: 100,
            callers: BTreeMap::new(),
            next_caller: 0,
            old_answers: Vec::new(),
        };
        for index in 0..nodes {
            let machine = Machine::new(index, &mut world.rng, world.now);
            world.of_node.insert(machine.settings.node.clone(), index);
            world.machines.push(machine);
            world.wake(index);
        }
        world
    }

    pub(crate) fn at(&mut self, at: u64, what: Ev) {
        self.order += 1;
        self.queue.push(Reverse((at.max(self.now), self.order, Slot(what))));
    }

    pub(crate) fn after(&mut self, length: u64, what: Ev) {
        self.at(self.now + length, what);
    }

    pub(crate) fn run_until(&mut self, end: u64) {
        while self.queue.peek().is_some_and(|Reverse((at, ..))| *at <= end) {
            let Some(Reverse((at, _, Slot(what)))) = self.queue.pop() else { return };
            self.now = self.now.max(at);
            self.happen(what);
        }
        self.now = self.now.max(end);
    }

    fn happen(&mut self, what: Ev) {
        match what {
            Ev::Tick(n, life) if self.lives(n, life) => self.tick(n),
            Ev::Wake(n, life) if self.lives(n, life) => self.woken(n),
            Ev::Disk(n, life) if self.lives(n, life) => {
                let last = self.machines[n].disk.finish();
                self.step(n, Event::Durable(Seq(last)));
            }
            Ev::ToBank(n, request) => self.ask_bank(n, &request),
            Ev::ToNode(n, answer) => {
                let epoch = Epoch(self.rng.bytes16());
                self.step(n, Event::Answered(answer, epoch));
            }
            Ev::PushTo(n, push) => {
                self.audit.pressed(n, self.now);
                self.step(n, Event::Pushed(push));
            }
            Ev::Hand(n, life, order) if self.lives(n, life) => self.hand(n, &order),
            Ev::Start(n, index) => self.start(n, index),
            Ev::Exit(n, index) => self.exit(n, index),
            Ev::NewWork(n) if !self.machines[n].dead => self.new_work(n),
            Ev::NewPart(n, account, gang, rate) => self.new_part(n, account, *gang, rate),
            Ev::GangPush(n, want) => {
                self.audit.pressed(n, self.now);
                self.step(n, Event::GangPushed(*want));
            }
            Ev::Fade(n) if !self.calm => self.machines[n].fades_until = self.now + 20 * S,
            Ev::Rate(n) => {
                let rate = self.rng.range(20, 2_000);
                let mono = self.machines[n].now(self.now).mono.0;
                for work in &mut self.machines[n].works {
                    work.advance(mono);
                    work.rate_milli = rate;
                }
            }
            Ev::Crash(n) if !self.calm => self.crash(n),
            Ev::Restart(n, life) if life == self.machines[n].life && self.machines[n].turn.is_none() && !self.machines[n].dead => {
                self.wake(n);
            }
            Ev::Reboot(n, medium) if !self.calm && !self.machines[n].dead => self.reboot(n, medium),
            Ev::Die(n) if !self.calm => self.die(n),
            Ev::Cut(n, length) if !self.calm => self.machines[n].cut_until = self.machines[n].cut_until.max(self.now + length),
            Ev::CutAll(length) if !self.calm => {
                let until = self.now + length;
                self.machines.iter_mut().for_each(|machine| machine.cut_until = machine.cut_until.max(until));
            }
            Ev::BankDown(down) if !self.calm && self.bank.up => {
                self.bank.up = false;
                self.after(down, Ev::BankUp);
            }
            Ev::Flap(times) if !self.calm && 0 < times => {
                let down = self.rng.range(20 * MS, S);
                self.after(MS, Ev::BankDown(down));
                let next = self.rng.range(down, 3 * S);
                self.after(next, Ev::Flap(times - 1));
            }
            Ev::BackUp if !self.calm => self.bank.back_up(),
            Ev::PutBack(how) if !self.calm => {
                let now = self.bank_now();
                self.bank.put_back(how, now);
                self.audit.put_back(how);
                self.audit.booked(&self.bank);
            }
            Ev::ClockStep(n, by_ms) => self.machines[n].wall_off_ms += by_ms,
            Ev::BankClockStep(by_ms) if !self.calm => self.bank.wall_off_ms += by_ms,
            Ev::BankUp if !self.bank.up => self.bank.restart(self.bank_now(), self.now),
            Ev::TopUp(account, nano) => self.top_up(account, nano),
            Ev::Sweep => {
                if self.bank.up {
                    self.bank.sweep(self.bank_now());
                    self.audit.booked(&self.bank);
                }
                self.after(self.sweep_every, Ev::Sweep);
            }
            _ => {}
        }
    }

    fn lives(&self, n: usize, life: u64) -> bool {
        self.machines[n].life == life && self.machines[n].turn.is_some()
    }

    // ---- the agent's process ----

    pub(crate) fn wake(&mut self, n: usize) {
        let fresh = Epoch(self.rng.bytes16());
        let machine = &mut self.machines[n];
        machine.life += 1;
        machine.wake_at = None;
        machine.works.iter_mut().for_each(|work| work.asked = false);
        let waiting: Vec<usize> = (0..machine.works.len()).filter(|index| machine.works[*index].attempt.is_none()).collect();
        let stopping: Vec<usize> = (0..machine.works.len()).filter(|index| machine.works[*index].stopping.is_some()).collect();
        let agent = machine.disk.recover();
        let now = machine.now(self.now);
        let (turn, effects) = Turn::wake(agent, machine.settings.clone(), now, fresh, &machine.marks);
        machine.turn = Some(turn);
        let life = machine.life;
        self.carry_out(n, effects);
        let stray = self.rng.below(S);
        self.after(stray, Ev::Tick(n, life));
        // The hooks' spool.
        for index in waiting {
            self.after(S, Ev::Start(n, index));
        }
        for index in stopping {
            self.after(S, Ev::Exit(n, index));
        }
        let samples = self.look(n);
        self.step(n, Event::CardArrived(Box::new(self.card.clone()), samples));
    }

    fn look(&mut self, n: usize) -> Vec<JobSample> {
        let live = self.machines[n].live();
        self.machines[n].look(&live, self.now)
    }

    fn crash(&mut self, n: usize) {
        if self.machines[n].turn.take().is_none() {
            return;
        }
        let machine = &mut self.machines[n];
        machine.disk.crash(&mut self.rng);
        // A freeze goes before the disk knows why; who dies between the two does not know it either.
        machine.works.iter_mut().for_each(|work| work.dry_under = None);
        self.callers.retain(|(node, _), _| *node != n);
        let life = self.machines[n].life;
        let down = if self.rng.chance(800) { self.rng.range(50 * MS, 3 * S) } else { self.rng.range(S, 40 * S) };
        self.after(down, Ev::Restart(n, life));
    }

    fn reboot(&mut self, n: usize, medium: Medium) {
        self.crash(n);
        let boot = BootId(self.rng.bytes16());
        self.machines[n].reboot(boot, self.now);
        self.audit.rebooted(n);
        if medium == Medium::Lost {
            self.machines[n].disk = machine::Disk::default();
            self.machines[n].wiped = true;
            self.machines[n].works.clear();
            self.audit.wiped(n);
        }
        self.after(5 * S, Ev::NewWork(n));
    }

    fn die(&mut self, n: usize) {
        self.machines[n].turn = None;
        self.machines[n].dead = true;
        self.audit.rebooted(n);
        self.audit.wiped(n);
    }

    pub(crate) fn step(&mut self, n: usize, event: Event) {
        let machine = &mut self.machines[n];
        let now = machine.now(self.now);
        let Some(turn) = &mut machine.turn else { return };
        let effects = turn.step(now, event);
        self.carry_out(n, effects);
    }

    fn carry_out(&mut self, n: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Commit(batch) => {
                    self.audit.receipts(n, &batch.receipts);
                    self.machines[n].disk.submit(batch);
                }
                Effect::Unmark(attempt) => drop(self.machines[n].marks.remove(&attempt)),
                Effect::Act(order) => {
                    if order.act == Act::Freeze {
                        self.machines[n].marks.insert(order.attempt);
                        self.audit_stop(n, order.attempt);
                        self.audit_part_stops(n, order.attempt);
                    }
                    if order.act == Act::Thaw {
                        self.audit_part_goes_on(n, order.attempt);
                    }
                    let life = self.machines[n].life;
                    let delay = self.rng.below(20 * MS);
                    self.after(delay, Ev::Hand(n, life, Box::new(order)));
                }
                Effect::Send(request) => self.send(n, request),
                Effect::Reply(caller, reply) => self.replied(n, caller, &reply),
                Effect::Watch(_) | Effect::Forget(_) | Effect::Log(_) => {}
            }
        }
        if self.machines[n].disk.begin() {
            let life = self.machines[n].life;
            let stalls = !self.calm && self.rng.chance(self.faults.stall);
            let length = if stalls { self.rng.range(100 * MS, 8 * S) } else { self.rng.range(MS / 10, 5 * MS) };
            self.after(length, Ev::Disk(n, life));
        }
        self.plan_wake(n);
        let machine = &self.machines[n];
        if let (Some(turn), false) = (&machine.turn, machine.liar) {
            self.audit.stepped(n, turn.agent(), &self.bank);
        }
        self.audit_parts(n);
    }

    /// A job is about to be stopped: was that right, as the whole fleet knows it?
    fn audit_stop(&mut self, n: usize, attempt: Attempt) {
        let Some(index) = self.account_of(n, attempt) else { return };
        let connected = self.calm_since + 30 * S < self.now && self.calm && self.bank.up && self.bank.up_since + 30 * S < self.now;
        if !connected || self.machines[n].liar || self.bank.standing.recovers() || self.is_held_by_its_gang(n, attempt) {
            return; // who lies about what he needs gets what he asks for; and a part stands still with the others, whatever it holds
        }
        let free = self.bank.accounts[&self.accounts[index]].available().nano();
        let burn = self.burn(index);
        let plenty_since = self.plenty_since[index];
        assert!(
            free <= 2 * burn || self.now < plenty_since + 3 * S,
            "{}: node {n} stops a job of {} while {free} are free, since {plenty_since}; all burn {burn} a second",
            self.now,
            self.accounts[index]
        );
    }

    fn account_of(&mut self, n: usize, attempt: Attempt) -> Option<usize> {
        self.machines[n].work_of(attempt).map(|work| work.account)
    }

    /// Since when more than two seconds of an account's burn have been free.
    fn note_plenty(&mut self) {
        for index in 0..self.accounts.len() {
            if self.bank.accounts[&self.accounts[index]].available().nano() <= 2 * self.burn(index) {
                self.plenty_since[index] = self.now;
            }
        }
    }

    /// Nano-credits per second of all jobs that now run on an account.
    pub(crate) fn burn(&self, account: usize) -> i128 {
        let works = self.machines.iter().filter(|machine| !machine.dead).flat_map(|machine| &machine.works);
        works.filter(|work| work.account == account && work.runs()).map(|work| i128::from(work.rate_milli) * 1_000).sum()
    }

    fn plan_wake(&mut self, n: usize) {
        let machine = &mut self.machines[n];
        let Some(turn) = &machine.turn else { return };
        let now = machine.now(self.now);
        let look = turn.next_look(now).map(|(at, _)| at.0);
        let due = turn.next_due().map(|at| at.0).filter(|due| now.mono.0 < *due);
        let Some(at) = look.into_iter().chain(due).min() else { return };
        let at = if at <= now.mono.0 { self.now } else { machine.at(at) };
        if machine.wake_at.is_none_or(|planned| at < planned || planned <= self.now) {
            machine.wake_at = Some(at);
            let life = machine.life;
            self.at(at, Ev::Wake(n, life));
        }
    }

    fn woken(&mut self, n: usize) {
        if self.machines[n].wake_at.is_none_or(|at| at > self.now) {
            return;
        }
        self.machines[n].wake_at = None;
        let now = self.machines[n].now(self.now);
        let Some(turn) = &self.machines[n].turn else { return };
        match turn.next_look(now) {
            Some((at, attempts)) if at <= now.mono => {
                let samples = self.machines[n].look(&attempts, self.now);
                self.step(n, Event::Looked(samples));
            }
            _ if turn.next_due().is_some_and(|due| due <= now.mono) => self.step(n, Event::Looked(Vec::new())),
            _ => self.plan_wake(n),
        }
    }

    fn tick(&mut self, n: usize) {
        let samples = self.look(n);
        self.step(n, Event::Ticked(samples));
        self.audit_running_parts(n);
        let life = self.machines[n].life;
        let next = S - 150 * MS + self.rng.below(300 * MS);
        self.after(next, Ev::Tick(n, life));
    }

    fn hand(&mut self, n: usize, order: &Order) {
        let mono = self.machines[n].now(self.now).mono.0;
        let found = self.machines[n].work_of(order.attempt);
        let outcome = match found {
            None => ActOutcome::Gone,
            Some(work) => {
                work.advance(mono);
                match order.act {
                    Act::Freeze => work.frozen = true,
                    Act::Thaw => work.frozen = false,
                    Act::Terminate | Act::Kill => (work.frozen, work.over) = (false, true),
                    Act::Warn | Act::Remove => {}
                }
                ActOutcome::Confirmed
            }
        };
        let acted = Acted {
            attempt: order.attempt,
            act: order.act,
            asked_at: Mono(mono),
            done_at: Mono(mono),
            syscall: format!("simulated {}", order.act),
            outcome,
        };
        let sample = self.machines[n].live().contains(&order.attempt).then(|| self.machines[n].look(&[order.attempt], self.now).remove(0));
        self.step(n, Event::Acted(vec![(acted, sample)]));
    }

    // ---- messages ----

    pub(crate) fn travel(&mut self, n: usize) -> Vec<u64> {
        let cut = !self.calm && self.now < self.machines[n].cut_until;
        if cut || (!self.calm && self.rng.chance(self.faults.loss)) {
            return Vec::new();
        }
        let copies = if !self.calm && self.rng.chance(self.faults.doubled) { 2 } else { 1 };
        (0..copies).map(|_| self.way()).collect()
    }

    /// How long a message is under way.
    fn way(&mut self) -> u64 {
        if self.calm {
            return self.rng.range(MS / 2, 40 * MS);
        }
        if self.rng.chance(self.faults.late) {
            // Later than this nobody waits for what it brings about.
            self.rng.below(600 * S).min(self.noise_until + 30 * S - self.now)
        } else if self.rng.chance(self.faults.slow) {
            self.rng.below(30 * S)
        } else {
            self.rng.range(MS / 2, self.faults.way_ms.max(1) * MS)
        }
    }

    fn send(&mut self, n: usize, request: Request) {
        self.machines[n].sent += 1;
        if self.of_epoch.insert(request.epoch, n).is_none() {
            self.machines[n].epochs.push(request.epoch);
        }
        let request = if !self.machines[n].liar {
            self.audit.said(n, self.machines[n].settings.boot, &request, self.now);
            request
        } else if self.rng.chance(500) {
            // A name that the store does not know yet, or has forgotten, is whose who speaks first; in truth nobody can guess another's.
            let known = |epoch: &&Epoch| self.bank.accounts.values().all(|account| account.epochs.contains_key(epoch));
            let forgets = self.bank.standing.may_forget();
            let spoken: Vec<Epoch> = self.of_epoch.keys().filter(|epoch| !forgets && known(epoch)).copied().collect();
            liar::lie(&mut self.rng, request, &spoken)
        } else {
            request
        };
        for delay in self.travel(n) {
            self.after(delay, Ev::ToBank(n, Box::new(request.clone())));
        }
        // The worst moment to die: it is said, and nobody here has heard more of it.
        if !self.calm && self.rng.chance(self.faults.dies_asking) {
            let delay = self.rng.below(2 * MS);
            self.after(delay, Ev::Crash(n));
        }
    }

    fn ask_bank(&mut self, n: usize, request: &Request) {
        if !self.bank.up {
            return;
        }
        let before = self.audit.before(&self.bank, request);
        let answer = self.bank.answer(request, self.bank_now());
        if self.machines.len() <= 16 {
            self.note_plenty();
        }
        self.audit.answered(&self.bank, &before, request, &answer);
        if !self.machines[n].liar {
            Audit::heard_by_the_honest(n, &self.bank, request, &answer);
        }
        for (node, push) in self.bank.recall(&answer, self.bank_now()) {
            let Some(to) = self.of_node.get(&node).copied() else { continue };
            for delay in self.travel(to) {
                self.after(delay, Ev::PushTo(to, push.clone()));
            }
        }
        if !self.calm && self.old_answers.len() < 64 {
            self.old_answers.push((n, answer.clone()));
        }
        self.push_gangs();
        for delay in self.travel(n) {
            let fades = !self.calm && self.now < self.machines[n].fades_until;
            let delay = if fades { self.rng.range(S, 9 * S) } else { delay };
            // A line that is slow, and then dead: for as long as what it brought is good, and longer. The next question does not get out any more.
            if fades || (!self.calm && S < delay && self.rng.chance(200)) {
                let length = self.bank.valid_for.0 + 15 * S;
                self.machines[n].fades_until = 0;
                self.after(delay, Ev::Cut(n, length));
            }
            self.after(delay, Ev::ToNode(n, Box::new(answer.clone())));
        }
        // Somebody repeats, or turns to the wrong node, what was said once.
        if !self.calm && self.rng.chance(self.faults.doubled) && !self.old_answers.is_empty() {
            let (to, old) = self.rng.pick(&self.old_answers);
            let to = if self.rng.chance(300) { n } else { to };
            self.after(MS, Ev::ToNode(to, Box::new(old)));
        }
    }

    fn top_up(&mut self, account: usize, nano: i128) {
        if !self.bank.up {
            return self.after(S, Ev::TopUp(account, nano)); // people try again
        }
        self.paid[account] += nano;
        let push = self.bank.top_up(&self.accounts[account].clone(), nano, self.bank_now());
        self.audit.booked(&self.bank);
        for n in 0..self.machines.len() {
            for delay in self.travel(n) {
                self.after(delay, Ev::PushTo(n, push.clone()));
            }
        }
    }

    // ---- people and jobs ----

    pub(crate) fn new_work(&mut self, n: usize) {
        let account = usize::try_from(self.rng.below(self.shared as u64)).unwrap();
        let rate = self.rng.range(20, 2_000);
        self.add_work(n, account, rate);
    }

    pub(crate) fn add_work(&mut self, n: usize, account: usize, rate_milli: u64) {
        self.inodes += 1;
        let mono = self.machines[n].now(self.now).mono.0;
        let name = format!("job-{}", self.inodes);
        self.machines[n].works.push(machine::work(name, account, self.inodes, rate_milli, mono));
        let index = self.machines[n].works.len() - 1;
        self.after(MS, Ev::Start(n, index));
    }

    /// The scheduler's hook: a job runs only once its start is admitted.
    fn start(&mut self, n: usize, index: usize) {
        let now = self.machines[n].now(self.now);
        if self.machines[n].turn.is_none() && !self.machines[n].dead {
            return self.after(2 * S, Ev::Start(n, index));
        }
        let Some(work) = self.machines[n].works.get_mut(index).filter(|work| work.attempt.is_none() && !work.over && !work.asked) else {
            return;
        };
        work.asked = true;
        let sample = machine::sample(work, Attempt(u64::MAX), now.mono.0);
        let wanted = Wanted {
            name: work.name.parse().unwrap(),
            account: self.accounts[work.account].clone(),
            owner: Uid(1_000),
            target: work.target(),
            time_limit: None,
            cpus: None,
            memory_bytes: None,
            policy: JobPolicy::default(),
            traits: BTreeMap::new(),
            bid: None,
            storage_bytes: None,
            gang: work.gang.clone(),
        };
        let begun = work.cpu_ns();
        self.audit.started(n, &work.name, begun);
        self.next_caller += 1;
        let caller = self.next_caller;
        self.callers.insert((n, caller), index);
        self.audit.pressed(n, self.now);
        self.step(n, Event::StartAsked(Box::new(PendingStart { caller, wanted, gpus: Vec::new(), sample, at: now, asked: None })));
    }

    fn replied(&mut self, n: usize, caller: u64, reply: &Reply) {
        self.machines[n].works.iter_mut().filter(|work| work.stopping == Some(caller)).for_each(|work| work.stopping = None);
        let Some(index) = self.callers.remove(&(n, caller)) else { return };
        let mono = self.machines[n].now(self.now).mono.0;
        let Some(work) = self.machines[n].works.get_mut(index) else { return };
        work.asked = false;
        match reply {
            Reply::Started { attempt, .. } => {
                work.advance(mono);
                work.attempt = Some(*attempt);
                work.begun_at = self.now;
            }
            Reply::Refused(_) => {
                let again = self.rng.range(2 * S, 8 * S);
                self.after(again, Ev::Start(n, index));
            }
            _ => {}
        }
    }

    fn exit(&mut self, n: usize, index: usize) {
        let now = self.machines[n].now(self.now);
        let Some(work) = self.machines[n].works.get_mut(index) else { return };
        work.advance(now.mono.0);
        (work.over, work.frozen) = (true, false);
        let (name, attempt) = (work.name.parse().unwrap(), work.attempt);
        let live = self.machines[n].live();
        let sample = attempt.filter(|attempt| live.contains(attempt)).map(|attempt| self.machines[n].look(&[attempt], self.now).remove(0));
        self.next_caller += 1;
        self.machines[n].works[index].stopping = Some(self.next_caller);
        let ending = Ending { outcome: Outcome::Completed, exit_code: Some(0) };
        self.step(n, Event::StopAsked { caller: self.next_caller, name, ending, sample });
    }

    pub(crate) fn bank_now(&self) -> Now {
        Now { mono: Mono(self.now), boot: Boot(self.now), wall: machine::wall(self.now, self.bank.wall_off_ms) }
    }
}
