//! The simulated world: clocks, jobs, hands, disks, messages and people, all from one seed. It does what the effects say, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use meterd::domain::act::{Act, ActOutcome, Acted, Order, Target};
use meterd::domain::agent::start::{PendingStart, Reply, Wanted};
use meterd::domain::agent::{Agent, Settings};
use meterd::domain::enforcement::Enforcement;
use meterd::domain::fact::{Fact, Seq};
use meterd::domain::id::{AccountId, Attempt, BootId, Epoch, GpuModel, Uid};
use meterd::domain::job::{Ending, FrozenBy, Job};
use meterd::domain::ladder::{Blast, JobPolicy, Ladder, Then, Thresholds, Victims};
use meterd::domain::ledger::{ClosePolicy, Commitment, CommitmentPeriod};
use meterd::domain::meter::{Frozen, Host, JobSample, Missing, Populated, Reading, Tail, TailShare};
use meterd::domain::outcome::Outcome;
use meterd::domain::terms::Change;
use meterd::domain::time::{Boot, Mono, Nanos, Now, Wall};
use meterd::domain::turn::{Effect, Event, JournalState, Turn};
use meterd::domain::usage::HeldGpu;
use meterd::domain::wire::{AccountPolicy, Answer, OnExhaustion, Push, Request, StartPredicted};

use crate::audit::Audit;
use crate::bank::{Bank, Deed, Said};
use crate::disk::Disk;
use crate::kernel::{KernelJob, Look, Place};
use crate::rng::Rng;
use crate::tariff::{Cards, MODELS, Tariff};
use crate::trace::Trace;

mod hands;
mod people;

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const S: u64 = 1_000_000_000;
pub(crate) const CREDIT: i128 = 1_000_000_000;
pub(crate) const CPUS: u64 = 8;
pub(crate) const MEMORY: u64 = 64 << 30;
pub(crate) const INTERVAL: u64 = S;
/// What the wall clocks show when the story's own is at 0, in milliseconds.
pub(crate) const WALL: u64 = 1_800_000_000_000;

/// Something that will happen.
#[derive(Clone, Debug)]
pub(crate) enum Ev {
    Tick(usize, u64),
    Wake(usize, u64),
    Disk(usize, u64),
    DiskFails(usize, u64),
    DiskFull(usize, bool),
    ToBank(Deed),
    BankDone(u64),
    BankCrash,
    BankRestart,
    ToNode(usize, Box<Answer>),
    PushTo(usize, Push),
    Hand(usize, u64, Order),
    HandDone(usize, u64, Box<Acted>),
    Crash(usize),
    Reboot(usize),
    Restart(usize, u64),
    Suspend(usize),
    WallStep(usize),
    Partition(u64),
    Start(usize),
    Stop(usize, Ending),
    Change(usize),
    Work(usize),
    Populate(usize),
    Blink(usize),
    Exit(usize),
    Rmdir(usize),
    Respawn(usize),
    OtherFreeze(usize),
    OtherThaw(usize),
    TopUp(usize, i128),
    Policy(usize),
    Card,
    Mode(usize, Enforcement),
    Confirm(usize),
    Sweep,
}

/// Which faults exist in this run, each in permille where it is a chance.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) loss: u64,
    pub(crate) doubled: u64,
    pub(crate) slow: u64,
    pub(crate) stall: u64,
    pub(crate) unread: u64,
    pub(crate) no_tail: u64,
    pub(crate) hands: u64,
}

/// One account, as its owner means it.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub(crate) id: AccountId,
    pub(crate) policy: AccountPolicy,
    pub(crate) rich: bool,
    /// Created while nodes already ask for it. A question that overtakes its creation and comes again later is granted for nobody.
    pub(crate) late: bool,
    /// Nothing was paid in yet when a job was started on it.
    pub(crate) unpaid: bool,
}

/// One machine with its agent.
pub(crate) struct Node {
    pub(crate) settings: Settings,
    pub(crate) boot_at: u64,
    pub(crate) boots: u64,
    pub(crate) slept: u64,
    pub(crate) wall_offset: u64,
    pub(crate) life: u64,
    pub(crate) turn: Option<Turn>,
    pub(crate) disk: Disk,
    /// In memory of the machine, not of the process.
    pub(crate) marks: BTreeSet<Attempt>,
    reads: BTreeMap<Attempt, (usize, u64)>,
    /// Looks that are about to be given to the agent: at which job, when.
    shown: Vec<(usize, Look)>,
    /// Looks that led to facts up to this one, which is not durable yet.
    unwritten: Vec<(u64, usize, Look)>,
    wake_at: Option<u64>,
    callers: BTreeMap<u64, (usize, Call)>,
    next_caller: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Start,
    Stop,
    Change,
    Mode,
}

/// Everything.
pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) now: u64,
    order: u64,
    queue: BTreeMap<(u64, u64), Ev>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) jobs: Vec<KernelJob>,
    pub(crate) bank: Bank,
    pub(crate) tariffs: Vec<Tariff>,
    pub(crate) cards: Cards,
    pub(crate) owners: Vec<Owner>,
    pub(crate) faults: Faults,
    pub(crate) audit: Audit,
    pub(crate) trace: Trace,
    pub(crate) calm: bool,
    pub(crate) had_unread: u64,
    partition_until: u64,
    inodes: u64,
    payments: u64,
}

impl Node {
    pub(crate) fn now(&self, at: u64) -> Now {
        let boot = at - self.boot_at + S;
        Now { mono: Mono(boot - self.slept), boot: Boot(boot), wall: Wall(WALL + self.wall_offset + at / MS) }
    }

    pub(crate) fn mono(&self, at: u64) -> u64 {
        self.now(at).mono.0
    }
}

impl World {
    pub(crate) fn new(seed: u64, trace: Trace, cards: Cards) -> World {
        let mut rng = Rng::new(seed);
        let close = if rng.chance(700) { ClosePolicy::OnSuccessor } else { ClosePolicy::AfterSilence(Nanos::from_secs(700)) };
        let valid_for = if rng.chance(300) { Nanos::from_secs(rng.range(8, 60)) } else { Nanos::from_secs(600) };
        let tariffs = vec![Tariff::random(&mut rng, 1, cards)];
        let node_count = if rng.chance(250) { 2 } else { 1 };
        let mut world = World {
            faults: random_faults(&mut rng),
            now: 10 * S,
            order: 0,
            queue: BTreeMap::new(),
            nodes: Vec::new(),
            jobs: Vec::new(),
            bank: Bank::new(close, valid_for),
            tariffs,
            owners: Vec::new(),
            audit: Audit::new(node_count, cards),
            cards,
            trace,
            calm: false,
            had_unread: 0,
            partition_until: 0,
            inodes: 100,
            payments: 0,
            rng,
        };
        world.open_accounts();
        for index in 0..node_count {
            let node = world.new_node(index);
            world.nodes.push(node);
            world.wake(index);
        }
        world
    }

    fn new_node(&mut self, index: usize) -> Node {
        let enforcement = if self.rng.chance(850) { Enforcement::Enforce } else { Enforcement::Observe };
        let mut blast = Blast::default();
        if self.rng.chance(100) {
            let window = Nanos::from_secs(self.rng.range(30, 600));
            blast = Blast { freeze_accounts: Some(1), end_accounts: Some(1), window };
        }
        let settings = Settings {
            node: format!("node-{index}").parse().unwrap(),
            boot: BootId(self.rng.bytes16()),
            enforcement,
            interval: Nanos(INTERVAL),
            host: Host { cpu_count: u32::try_from(CPUS).unwrap(), memory_bytes: MEMORY },
            ladder: Ladder { blast, ..Ladder::default() },
            woke_at: Boot::default(),
            provider: None,
        };
        Node {
            settings,
            boot_at: self.rng.below(9 * S),
            boots: 0,
            slept: 0,
            wall_offset: 0,
            life: 0,
            turn: None,
            disk: Disk::default(),
            marks: BTreeSet::new(),
            reads: BTreeMap::new(),
            shown: Vec::new(),
            unwritten: Vec::new(),
            wake_at: None,
            callers: BTreeMap::new(),
            next_caller: 0,
        }
    }

    fn open_accounts(&mut self) {
        for index in 0..self.rng.range(1, 4) {
            let id: AccountId = format!("account-{index}").parse().unwrap();
            let on_exhaustion = self.rng.pick(&[
                OnExhaustion::Freeze,
                OnExhaustion::Stop,
                OnExhaustion::Terminate,
                OnExhaustion::Kill,
                if index % 2 == 0 { OnExhaustion::AllowNegative } else { OnExhaustion::RefuseNew },
            ]);
            let policy = AccountPolicy {
                on_exhaustion,
                grace: Nanos::from_secs(self.rng.range(1, 20)),
                warn_before: Thresholds::try_from(vec![Nanos::from_secs(self.rng.below(30)), Nanos::from_secs(self.rng.below(90))])
                    .unwrap(),
                enforcement: if self.rng.chance(930) { Enforcement::Enforce } else { self.rng.pick(&Enforcement::ALL) },
                freeze_ttl: if self.rng.chance(200) { Some(Nanos::from_secs(self.rng.range(5, 60))) } else { None },
                then: self.rng.pick(&[Then::Terminate, Then::Kill]),
                victims: if self.rng.chance(850) {
                    Victims::Together
                } else {
                    self.rng.pick(&[Victims::NewestFirst, Victims::OldestFirst, Victims::DearestFirst])
                },
                victims_before: Nanos::from_secs(self.rng.range(3, 60)),
                start_threshold: meterd::domain::money::Credits::ZERO,
                start_predicted: StartPredicted::Ignore,
                ..AccountPolicy::default()
            };
            let rich = self.rng.chance(250);
            let created_at = if self.rng.chance(850) { self.now } else { self.now + self.rng.below(60 * S) };
            self.owners.push(Owner { id: id.clone(), policy, rich, late: self.now < created_at, unpaid: false });
            let commitment = self.commitment();
            self.at(created_at, Ev::ToBank(Deed::Create(id, policy, commitment)));
            // A few hundredths of a credit: seconds to minutes of a busy machine.
            let amount = if rich { 1_000 * CREDIT } else { i128::from(self.rng.below(100_000_000)) };
            self.at(created_at + MS, Ev::TopUp(usize::try_from(index).unwrap(), amount.max(1)));
        }
    }

    /// Under cards with rules some accounts have a contract: credit that comes, and lapses, in the midst of the story.
    fn commitment(&mut self) -> Option<Commitment> {
        if self.cards == Cards::Plain || !self.rng.chance(400) {
            return None;
        }
        let amount = meterd::domain::money::Credits::from_nano(i128::from(self.rng.below(100_000_000)) + 1);
        let begins = self.rng.range(0, 100_000);
        let starts = self.rng.chance(500).then_some(Wall(WALL + begins));
        let ends = self.rng.chance(700).then(|| Wall(WALL + begins + self.rng.range(1, 120_000)));
        Some(Commitment { amount, period: CommitmentPeriod::Once, day: 1, starts, ends })
    }

    pub(crate) fn at(&mut self, at: u64, what: Ev) {
        self.order += 1;
        self.queue.insert((at.max(self.now), self.order), what);
    }

    pub(crate) fn after(&mut self, length: u64, what: Ev) {
        self.at(self.now + length, what);
    }

    /// Lets everything happen up to an instant.
    pub(crate) fn run_until(&mut self, end: u64) {
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((at, _), what) = entry.remove_entry();
            self.now = self.now.max(at);
            self.happen(what);
        }
        self.now = self.now.max(end);
    }

    fn happen(&mut self, what: Ev) {
        match what {
            Ev::Tick(n, life) if self.lives(n, life) => self.tick(n),
            Ev::Wake(n, life) if self.lives(n, life) => self.woken(n),
            Ev::Disk(n, life) if self.lives(n, life) => self.disk_done(n),
            Ev::DiskFails(n, life) if self.lives(n, life) => self.crash(n),
            Ev::DiskFull(n, full) => self.disk_full(n, full && !self.calm),
            Ev::ToBank(deed) => self.to_bank(deed),
            Ev::BankDone(life) if life == self.bank.life => self.bank_done(),
            Ev::BankCrash if !self.calm && self.bank.up => {
                self.bank.crash();
                self.trace.line(self.now, "authority dies");
                let down = self.rng.range(100 * MS, 20 * S);
                self.after(down, Ev::BankRestart);
            }
            Ev::BankRestart if !self.bank.up => self.bank.restart(bank_now(self.now)),
            Ev::ToNode(n, answer) => self.answer_arrives(n, *answer),
            Ev::PushTo(n, push) => self.step(n, Event::Pushed(push)),
            Ev::Hand(n, life, order) if self.lives(n, life) => self.hand(n, &order),
            Ev::HandDone(n, life, mut acted) if self.lives(n, life) => {
                self.overtaken(n, &mut acted);
                let sample = self.look(n, acted.attempt);
                self.shown(n, sample.as_slice());
                let shown = self.audit.acted(n, &acted);
                self.nodes[n].shown.extend(shown.map(|(index, at)| (index, self.jobs[index].look(at))));
                self.step(n, Event::Acted(vec![(*acted, sample)]));
            }
            Ev::Crash(n) if !self.calm => self.crash(n),
            Ev::Reboot(n) if !self.calm => self.reboot(n),
            Ev::Restart(n, life) if life == self.nodes[n].life && self.nodes[n].turn.is_none() => self.wake(n),
            Ev::Suspend(n) if !self.calm => self.suspend(n),
            Ev::WallStep(n) => self.nodes[n].wall_offset = self.rng.below(100_000_000),
            Ev::Partition(length) if !self.calm => self.partition_until = self.now + length,
            Ev::Sweep => self.to_bank(Deed::Sweep),
            other => self.people(other),
        }
    }

    fn lives(&self, n: usize, life: u64) -> bool {
        self.nodes[n].life == life && self.nodes[n].turn.is_some()
    }

    // ---- the agent's process ----

    /// A process starts: state from the disk, then on.
    pub(crate) fn wake(&mut self, n: usize) {
        let epoch = Epoch(self.rng.bytes16());
        let node = &mut self.nodes[n];
        node.life += 1;
        node.reads.clear();
        node.callers.clear();
        node.wake_at = None;
        let (checkpoint, facts) = node.disk.recover();
        let mut agent = checkpoint.and_then(|(_, bytes)| Agent::decode(&bytes)).unwrap_or_default();
        for bytes in facts {
            let fact = Fact::decode(&bytes).unwrap_or_else(|error| panic!("a torn row was taken for a fact: {error}"));
            agent.apply(&fact);
        }
        self.audit.recovered(n, &agent);
        let now = node.now(self.now);
        let (turn, effects) = Turn::wake(agent, node.settings.clone(), now, epoch, &node.marks);
        node.turn = Some(turn);
        let life = node.life;
        self.trace.line(self.now, &format!("n{n} wakes, life {life}"));
        self.audit.woke(n, self.now);
        self.carry_out(n, effects);
        self.after(MS, Ev::Tick(n, life));
        self.adopt_card(n);
    }

    fn adopt_card(&mut self, n: usize) {
        let Some(card) = self.tariffs.last().map(|tariff| tariff.card.clone()) else { return };
        let known = self.nodes[n].turn.as_ref().is_some_and(|turn| turn.agent().card == Some(card.digest));
        let attempts = if known { Vec::new() } else { self.live(n) };
        let samples: Vec<JobSample> = attempts.iter().filter_map(|attempt| self.look(n, *attempt)).collect();
        self.shown(n, &samples);
        self.step(n, Event::CardArrived(Box::new(card), samples));
    }

    fn crash(&mut self, n: usize) {
        if self.nodes[n].turn.is_none() {
            return;
        }
        self.trace.line(self.now, &format!("n{n} is killed"));
        let durable = self.nodes[n].disk.crash(&mut self.rng);
        for batch in &durable {
            self.audit.durable(n, batch);
        }
        self.audit.crashed(n, self.now);
        let node = &mut self.nodes[n];
        node.shown.clear();
        node.unwritten.clear();
        node.turn = None;
        let life = node.life;
        let down = if self.rng.chance(800) { self.rng.range(50 * MS, 3 * S) } else { self.rng.range(S, 40 * S) };
        self.after(down, Ev::Restart(n, life));
    }

    fn reboot(&mut self, n: usize) {
        self.crash(n);
        let mono = self.nodes[n].mono(self.now);
        for job in self.jobs.iter_mut().filter(|job| job.node == n) {
            job.empty(mono);
            job.exit_for_good = true;
            job.gone = true;
        }
        self.trace.line(self.now, &format!("n{n} reboots"));
        let boot = BootId(self.rng.bytes16());
        let node = &mut self.nodes[n];
        node.boots += 1;
        node.boot_at = self.now;
        node.slept = 0;
        node.marks.clear();
        node.settings.boot = boot;
        self.audit.rebooted(n);
    }

    fn suspend(&mut self, n: usize) {
        let length = self.rng.range(S, 30 * S);
        for node in 0..self.nodes.len() {
            let mono = self.nodes[node].mono(self.now);
            for job in self.jobs.iter_mut().filter(|job| job.node == node) {
                job.advance(mono);
            }
        }
        // Only this machine sleeps; what the others do in that time is left out.
        for node in &mut self.nodes {
            node.slept += length;
        }
        self.now += length;
        for node in 0..self.nodes.len() {
            self.audit.rough(node, self.now + 5 * S);
        }
        self.trace.line(self.now, &format!("n{n} has slept {length}"));
    }

    pub(crate) fn step(&mut self, n: usize, event: Event) {
        let Some(turn) = &mut self.nodes[n].turn else { return };
        let line = format!("n{n} {}", crate::trace::event(&event));
        self.audit.before(n, self.now, turn, &event);
        let now = {
            let boot = self.now - self.nodes[n].boot_at + S;
            let wall = Wall(WALL + self.nodes[n].wall_offset + self.now / MS);
            Now { mono: Mono(boot - self.nodes[n].slept), boot: Boot(boot), wall }
        };
        let Some(turn) = &mut self.nodes[n].turn else { return };
        let effects = turn.step(now, event);
        let (seq, durable) = (turn.agent().seq.0, turn.durable().0);
        self.remember(n, seq, durable);
        let told: Vec<String> = effects.iter().filter_map(crate::trace::effect).collect();
        self.trace.line(self.now, &format!("{line} -> {}", told.join(", ")));
        self.carry_out(n, effects);
    }

    /// What was shown is known for good once the facts that it led to are durable; a crash before that forgets it.
    fn remember(&mut self, n: usize, seq: u64, durable: u64) {
        let shown = std::mem::take(&mut self.nodes[n].shown);
        self.nodes[n].unwritten.extend(shown.into_iter().map(|(index, look)| (seq, index, look)));
        for (_, index, look) in self.nodes[n].unwritten.extract_if(.., |(seq, ..)| *seq <= durable) {
            self.jobs[index].seen(look);
        }
    }

    fn carry_out(&mut self, n: usize, effects: Vec<Effect>) {
        self.audit.stepped(n, self.now, &self.nodes[n], &effects, &self.owners, &self.tariffs, &self.faults);
        for effect in effects {
            match effect {
                Effect::Commit(batch) => self.nodes[n].disk.submit(batch),
                Effect::Unmark(attempt) => drop(self.nodes[n].marks.remove(&attempt)),
                Effect::Act(order) => {
                    self.audit.ordered(n, self.now, &order, &self.nodes[n], &self.jobs);
                    if order.act == Act::Freeze {
                        self.nodes[n].marks.insert(order.attempt);
                    }
                    let delay = self.rng.below(20 * MS);
                    let life = self.nodes[n].life;
                    self.after(delay, Ev::Hand(n, life, order));
                }
                Effect::Send(request) => {
                    self.audit.sent(n, &self.nodes[n], self.now, &request);
                    self.send(request);
                }
                Effect::Reply(caller, reply) => self.replied(n, caller, &reply),
                Effect::Watch(attempt) => self.audit.watched(n, attempt, &self.nodes[n]),
                Effect::Forget(attempt) => drop(self.nodes[n].reads.remove(&attempt)),
                Effect::Log(_) => {}
            }
        }
        self.start_disk(n);
        self.plan_wake(n);
    }

    fn plan_wake(&mut self, n: usize) {
        let node = &self.nodes[n];
        let Some(turn) = &node.turn else { return };
        let now = node.now(self.now);
        let look = turn.next_look(now).map(|(at, _)| at.0);
        let due = turn.next_due().map(|at| at.0).filter(|due| now.mono.0 < *due);
        let Some(at) = look.into_iter().chain(due).min() else { return };
        let at = self.now + at.saturating_sub(now.mono.0);
        if node.wake_at.is_none_or(|planned| at < planned || planned <= self.now) {
            let life = node.life;
            self.nodes[n].wake_at = Some(at);
            self.at(at, Ev::Wake(n, life));
        }
    }

    fn woken(&mut self, n: usize) {
        if self.nodes[n].wake_at.is_none_or(|at| at > self.now) {
            return;
        }
        self.nodes[n].wake_at = None;
        let now = self.nodes[n].now(self.now);
        let Some(turn) = &self.nodes[n].turn else { return };
        match turn.next_look(now) {
            Some((at, attempts)) if at <= now.mono => {
                let samples: Vec<JobSample> = attempts.iter().filter_map(|attempt| self.look(n, *attempt)).collect();
                self.shown(n, &samples);
                self.step(n, Event::Looked(samples));
            }
            _ if turn.next_due().is_some_and(|due| due <= now.mono) => self.step(n, Event::Looked(Vec::new())),
            _ => self.plan_wake(n),
        }
    }

    fn tick(&mut self, n: usize) {
        let live: Vec<Attempt> = self.live(n);
        let samples: Vec<JobSample> = live.iter().filter_map(|attempt| self.look(n, *attempt)).collect();
        self.shown(n, &samples);
        self.step(n, Event::Ticked(samples));
        self.adopt_card(n);
        let life = self.nodes[n].life;
        let stray = self.rng.below(300 * MS);
        let next = (self.now / INTERVAL + 1) * INTERVAL + stray;
        self.at(next, Ev::Tick(n, life));
    }

    fn live(&self, n: usize) -> Vec<Attempt> {
        let agent = self.nodes[n].turn.as_ref().map(Turn::agent);
        agent.map_or(Vec::new(), |agent| agent.jobs.values().filter(|job| job.is_live()).map(|job| job.attempt).collect())
    }

    // ---- looking ----

    fn job_at(&self, n: usize, target: &Target) -> Option<usize> {
        match target {
            Target::SlurmJob(slurm) => self.jobs.iter().position(|job| job.node == n && job.inode == slurm.job_id),
            Target::Cgroups(dirs) | Target::OwnCgroups(dirs) => self.jobs.iter().rposition(|job| job.node == n && job.path == dirs[0].path),
            Target::Processes(_) => None,
        }
    }

    /// One look at one job, as the sampler does it.
    pub(crate) fn look(&mut self, n: usize, attempt: Attempt) -> Option<JobSample> {
        let job = self.nodes[n].turn.as_ref()?.agent().jobs.get(&attempt).filter(|job| job.is_live())?;
        let target = job.target.clone();
        Some(self.look_at(n, attempt, &target))
    }

    fn look_at(&mut self, n: usize, attempt: Attempt, target: &Target) -> JobSample {
        let mono = self.nodes[n].mono(self.now);
        let missing = |why: Missing| JobSample {
            attempt,
            at: Mono(mono),
            cpu_ns: Reading::Missing(why.clone()),
            memory_bytes: Reading::Missing(why.clone()),
            populated: Reading::Missing(why.clone()),
            frozen: Reading::Missing(why),
            tail: None,
            memory_anon_bytes: None,
            detail: None,
            gpus: None,
        };
        let Some(index) = self.job_at(n, target) else { return missing(Missing::Vanished) };
        if !self.jobs[index].is(target) {
            return missing(Missing::Replaced);
        }
        self.jobs[index].advance(mono);
        if !self.jobs[index].made {
            return missing(Missing::NotYet);
        }
        if self.jobs[index].gone {
            return JobSample { tail: self.tail(n, attempt), ..missing(Missing::Vanished) };
        }
        let (cpu_fails, memory_fails, events_fail) = (self.misread(), self.misread(), self.misread());
        let job = &self.jobs[index];
        let cpu = job.cpu_ns();
        let frozen = if job.is_frozen(mono) { Frozen::Yes } else { Frozen::No };
        let populated = if job.populated { Populated::Yes } else { Populated::No };
        let failed = || Missing::Failed("EIO".to_owned());
        let sample = JobSample {
            attempt,
            at: Mono(mono),
            cpu_ns: if cpu_fails { Reading::Missing(failed()) } else { Reading::Seen(cpu) },
            memory_bytes: if memory_fails { Reading::Missing(failed()) } else { Reading::Seen(job.memory) },
            populated: if events_fail { Reading::Missing(failed()) } else { Reading::Seen(populated) },
            frozen: if events_fail { Reading::Missing(failed()) } else { Reading::Seen(frozen) },
            tail: None,
            memory_anon_bytes: None,
            detail: None,
            gpus: None,
        };
        if !cpu_fails {
            self.nodes[n].reads.insert(attempt, (index, cpu));
        }
        sample
    }

    /// These looks are given to the agent: what they show is not unseen any more.
    fn shown(&mut self, n: usize, samples: &[JobSample]) {
        for sample in samples {
            let gone = matches!(sample.cpu_ns, Reading::Missing(Missing::Vanished | Missing::Replaced));
            let index = self.audit.metered.get(&(n, sample.attempt)).map(|baseline| baseline.job);
            let whole = sample.populated.seen().is_some() && sample.cpu_ns.seen().is_some();
            if let Some(index) = index.filter(|_| gone || whole) {
                let look = self.jobs[index].look(sample.at.0);
                self.nodes[n].shown.push((index, look));
            }
        }
    }

    fn misread(&mut self) -> bool {
        !self.calm && 0 < self.faults.unread && self.rng.chance(self.faults.unread)
    }

    /// What the parent tells of those that vanished since the last look at them, each told once.
    fn tail(&mut self, n: usize, attempt: Attempt) -> Option<Tail> {
        let gone: Vec<(Attempt, u64)> = self.nodes[n]
            .reads
            .iter()
            .filter(|(_, (index, _))| self.jobs[*index].gone)
            .map(|(attempt, (index, read))| (*attempt, self.jobs[*index].cpu_ns() - read))
            .collect();
        let own = gone.iter().find(|(other, _)| *other == attempt)?.1;
        self.nodes[n].reads.remove(&attempt);
        if gone.len() != 1 || self.rng.chance(self.faults.no_tail) {
            return None;
        }
        Some(Tail { cpu_ns: own, share: TailShare::Exact })
    }

    // ---- the disk ----

    fn start_disk(&mut self, n: usize) {
        if self.nodes[n].turn.is_none() || !self.nodes[n].disk.begin() {
            return;
        }
        let life = self.nodes[n].life;
        let stalls = !self.calm && self.rng.chance(self.faults.stall);
        let length = if stalls { self.rng.range(100 * MS, 10 * S) } else { self.rng.range(100_000, 5 * MS) };
        let fails = stalls && self.rng.chance(20);
        if stalls {
            self.trace.line(self.now, &format!("n{n} disk stalls {length}"));
        }
        self.after(length, if fails { Ev::DiskFails(n, life) } else { Ev::Disk(n, life) });
    }

    fn disk_done(&mut self, n: usize) {
        let done = self.nodes[n].disk.finish();
        let last = done.iter().map(meterd::domain::batch::Batch::last_seq).max().unwrap_or(0);
        for batch in &done {
            self.audit.durable(n, batch);
        }
        self.step(n, Event::Durable(Seq(last)));
    }

    fn disk_full(&mut self, n: usize, full: bool) {
        self.nodes[n].disk.full = full;
        self.trace.line(self.now, &format!("n{n} disk full: {full}"));
        if full {
            self.audit.disk_was_full(n);
            let length = self.rng.range(S, 20 * S);
            self.after(length, Ev::DiskFull(n, false));
        }
        self.step(n, Event::JournalIs(if full { JournalState::Full } else { JournalState::Writable }));
        self.start_disk(n);
    }

    // ---- messages ----

    fn cut(&self) -> bool {
        !self.calm && self.now < self.partition_until
    }

    fn travel(&mut self) -> Vec<u64> {
        if self.cut() || (!self.calm && self.rng.chance(self.faults.loss)) {
            return Vec::new();
        }
        let mut one =
            || if self.rng.chance(self.faults.slow) && !self.calm { self.rng.below(15 * S) } else { self.rng.range(MS / 5, 30 * MS) };
        let mut delays = vec![one()];
        let again = one();
        if !self.calm && self.rng.chance(self.faults.doubled) {
            delays.push(again);
        }
        delays
    }

    fn send(&mut self, request: Request) {
        for delay in self.travel() {
            self.after(delay, Ev::ToBank(Deed::Answer(request.clone())));
        }
    }

    fn to_bank(&mut self, deed: Deed) {
        let retry = !matches!(deed, Deed::Answer(_));
        if !self.bank.ask(deed.clone()) && retry {
            self.after(S, Ev::ToBank(deed)); // people try again
        }
        self.work_bank();
    }

    fn work_bank(&mut self) {
        if self.bank.begin(bank_now(self.now)) {
            let stalls = !self.calm && self.rng.chance(self.faults.stall);
            let length = if stalls { self.rng.below(8 * S) } else { self.rng.range(100_000, 4 * MS) };
            let life = self.bank.life;
            self.after(length, Ev::BankDone(life));
        }
    }

    fn bank_done(&mut self) {
        for said in self.bank.finish() {
            match said {
                Said::Answer(answer) => {
                    for delay in self.travel() {
                        let to = self.addressee(&answer);
                        if let Some(n) = to {
                            self.after(delay, Ev::ToNode(n, Box::new(answer.clone())));
                        }
                    }
                }
                Said::Push(push) => {
                    for n in 0..self.nodes.len() {
                        for delay in self.travel() {
                            self.after(delay, Ev::PushTo(n, push.clone()));
                        }
                    }
                }
            }
        }
        self.audit.booked(&self.bank);
        self.work_bank();
    }

    fn addressee(&self, answer: &Answer) -> Option<usize> {
        self.audit.epoch_owner(answer.epoch)
    }

    fn answer_arrives(&mut self, n: usize, answer: Answer) {
        let epoch = Epoch(self.rng.bytes16());
        self.step(n, Event::Answered(Box::new(answer), epoch));
    }

    // ---- people and jobs ----
}

pub(crate) fn bank_now(at: u64) -> Now {
    Now { mono: Mono(at), boot: Boot(at), wall: Wall(WALL + at / MS) }
}

fn random_faults(rng: &mut Rng) -> Faults {
    let mut some = |most: u64| if rng.chance(500) { rng.below(most) } else { 0 };
    Faults {
        loss: some(300),
        doubled: some(300),
        slow: some(200),
        stall: some(60),
        unread: some(100),
        no_tail: some(1_000),
        hands: some(150),
    }
}
