//! The real turn over the real journal and the real authority's store, with jobs whose every nanosecond is known.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

use meterd::authority::store::Store;
use meterd::domain::act::{Act, ActOutcome, Acted, CgroupDir, Order, Target};
use meterd::domain::agent::start::{PendingStart, Reply, Wanted};
use meterd::domain::agent::{Agent, Settings};
use meterd::domain::bucket::Bucket;
use meterd::domain::enforcement::Enforcement;
use meterd::domain::fact::Seq;
use meterd::domain::id::{AccountId, Attempt, BootId, Epoch, Uid};
use meterd::domain::job::Ending;
use meterd::domain::ladder::{JobPolicy, Ladder};
use meterd::domain::ledger::{ClosePolicy, Payment, PaymentState, Terms};
use meterd::domain::meter::{Frozen, Host, JobSample, Populated, Reading};
use meterd::domain::money::Credits;
use meterd::domain::outcome::Outcome;
use meterd::domain::rates::Card;
use meterd::domain::time::{Boot, Mono, Nanos, Now, Wall};
use meterd::domain::turn::{Effect, Event, Turn};
use meterd::domain::wire::{AccountPolicy, Push};
use meterd::node::daemon;
use meterd::node::journal::{Journal, Keep};

use crate::disk;

pub(crate) const S: u64 = 1_000_000_000;
pub(crate) const JOBS: usize = 50;
/// A core-second costs 1.0000007 credits, so that nano-credits do not divide evenly.
pub(crate) const CARD: &str = "card = \"c\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n\
    [[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"1.0000007\"\nunit = \"core-second\"\n\
    [[line]]\nid = \"memory\"\nmeter = \"memory_charged\"\nprice = \"0.0000013\"\nunit = \"MiB-second\"\n";

/// A job as the kernel knows it.
#[derive(Clone, Debug)]
pub(crate) struct KernelJob {
    pub(crate) name: String,
    pub(crate) account: String,
    /// CPU time for each second that it runs, in thousandths.
    permille: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) cpu_ns: u64,
    /// For how long it ran from its start on.
    pub(crate) ran_ns: u64,
    pub(crate) baseline_ns: u64,
    pub(crate) frozen: bool,
    pub(crate) populated: bool,
    started: bool,
}

/// What outsiders were told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    pub(crate) durable: u64,
    pub(crate) started: BTreeSet<String>,
    pub(crate) stopped: BTreeSet<String>,
    pub(crate) deposited: BTreeMap<String, i128>,
    pub(crate) settled: BTreeMap<String, i128>,
}

/// Clocks and jobs, as they are, and what was told.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) mono: u64,
    pub(crate) slept: u64,
    pub(crate) jobs: Vec<KernelJob>,
    pub(crate) told: Told,
    /// In the runtime folder.
    pub(crate) marks: BTreeSet<Attempt>,
}

impl World {
    pub(crate) fn new() -> World {
        let job = |nth: usize| KernelJob {
            name: format!("job-{nth}"),
            account: if nth < 30 { format!("rich-{}", nth % 3) } else { format!("short-{}", nth % 2) },
            permille: 150 + 17 * nth as u64,
            memory_bytes: (10 + nth as u64) << 20,
            cpu_ns: 7_919 * nth as u64,
            ran_ns: 0,
            baseline_ns: 0,
            frozen: false,
            populated: true,
            started: false,
        };
        World { mono: 100 * S, slept: 0, jobs: (0..JOBS).map(job).collect(), told: Told::default(), marks: BTreeSet::new() }
    }

    pub(crate) fn now(&self) -> Now {
        let boot = self.mono + self.slept;
        Now { mono: Mono(self.mono), boot: Boot(boot), wall: Wall(1_800_000_000_000 + boot / 1_000_000) }
    }

    pub(crate) fn pass(&mut self, ns: u64) {
        self.mono += ns;
        for job in self.jobs.iter_mut().filter(|job| job.started && job.populated && !job.frozen) {
            job.cpu_ns += ns / 1_000 * job.permille;
            job.ran_ns += ns;
        }
    }

    fn sample(&self, index: usize, attempt: Attempt) -> JobSample {
        let job = &self.jobs[index];
        JobSample {
            attempt,
            at: Mono(self.mono),
            cpu_ns: Reading::Seen(job.cpu_ns),
            memory_bytes: Reading::Seen(if job.populated { job.memory_bytes } else { 0 }),
            populated: Reading::Seen(if job.populated { Populated::Yes } else { Populated::No }),
            frozen: Reading::Seen(if job.frozen { Frozen::Yes } else { Frozen::No }),
            tail: None,
            memory_anon_bytes: None,
            detail: None,
            gpus: None,
        }
    }
}

/// The world at each moment at which something was done to the disk or told to anybody.
pub(crate) type History = Vec<(usize, World)>;

pub(crate) struct Node {
    pub(crate) turn: Turn,
    journal: Journal,
    pub(crate) store: Store,
    pub(crate) world: World,
    pub(crate) history: History,
}

pub(crate) fn settings(boot: u8) -> Settings {
    Settings {
        node: "n".parse().unwrap(),
        boot: BootId([boot; 16]),
        enforcement: Enforcement::Enforce,
        interval: Nanos(S),
        host: Host { cpu_count: 64, memory_bytes: 64 << 30 },
        ladder: Ladder::default(),
        woke_at: Boot::default(),
        provider: None,
    }
}

fn target(index: usize) -> Target {
    Target::Cgroups(vec![CgroupDir { path: format!("/sys/fs/cgroup/job-{index}"), inode: 1_000 + index as u64 }])
}

impl Node {
    /// Opens what lies in the folder, and goes on from it.
    pub(crate) fn open(dir: &Path, world: World, boot: u8, epoch: u8) -> Node {
        let (journal, recovered) = Journal::open(dir, Keep::default()).expect("the journal can be opened");
        let agent: Agent = daemon::recover(&recovered).expect("every fact can be read");
        let store = Store::open(&dir.join("authority.db"), ClosePolicy::OnSuccessor, Mono(0)).expect("the store can be opened");
        let (turn, woken) = Turn::wake(agent, settings(boot), world.now(), Epoch([epoch; 16]), &world.marks);
        let mut node = Node { turn, journal, store, world, history: Vec::new() };
        node.carry_out(woken);
        node.step(Event::CardArrived(Box::new(Card::parse(CARD, "card.toml").unwrap()), Vec::new()));
        node
    }

    fn note(&mut self) {
        let done = disk::done();
        self.history.push((done, self.world.clone()));
    }

    pub(crate) fn pass(&mut self, ns: u64) {
        self.world.pass(ns);
        self.note();
    }

    pub(crate) fn step(&mut self, event: Event) {
        let effects = self.turn.step(self.world.now(), event);
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        let mut queue = VecDeque::from(effects);
        while let Some(effect) = queue.pop_front() {
            let event = match effect {
                Effect::Commit(batch) => {
                    self.journal.commit(&batch).expect("the disk takes it");
                    self.world.told.durable = batch.last_seq();
                    Some(Event::Durable(Seq(batch.last_seq())))
                }
                Effect::Send(request) => {
                    let answer = self.store.answer(&request, self.world.now()).expect("the authority answers");
                    for entry in &answer.entries {
                        self.world.told.settled.insert(entry.account.to_string(), entry.settled.nano());
                    }
                    Some(Event::Answered(Box::new(answer), Epoch([99; 16])))
                }
                Effect::Act(order) => Some(self.act(&order)),
                Effect::Unmark(attempt) => {
                    self.world.marks.remove(&attempt);
                    None
                }
                Effect::Reply(caller, reply) => {
                    self.hear(caller, &reply);
                    None
                }
                Effect::Log(_) | Effect::Watch(_) | Effect::Forget(_) => None,
            };
            self.note();
            if let Some(event) = event {
                queue.extend(self.turn.step(self.world.now(), event));
            }
        }
    }

    fn act(&mut self, order: &Order) -> Event {
        let index = (0..JOBS).find(|index| target(*index) == order.target).unwrap();
        if order.act == Act::Freeze {
            self.world.marks.insert(order.attempt);
        }
        let job = &mut self.world.jobs[index];
        match order.act {
            Act::Freeze => job.frozen = true,
            Act::Thaw => job.frozen = false,
            Act::Warn => {}
            other => panic!("{other} was never called for"),
        }
        let now = Mono(self.world.mono);
        let acted = Acted {
            attempt: order.attempt,
            act: order.act,
            asked_at: now,
            done_at: now,
            syscall: String::new(),
            outcome: ActOutcome::Confirmed,
        };
        Event::Acted(vec![(acted, Some(self.world.sample(index, order.attempt)))])
    }

    fn hear(&mut self, caller: u64, reply: &Reply) {
        let name = format!("job-{}", caller % 1_000);
        match reply {
            Reply::Started { .. } => drop(self.world.told.started.insert(name)),
            Reply::StopNoted { .. } => drop(self.world.told.stopped.insert(name)),
            other => panic!("{name}: {other:?}"),
        }
    }

    pub(crate) fn open_account(&mut self, account: &str, nano: i128) {
        let now = self.world.now();
        self.store.create_account(account.parse().unwrap(), AccountPolicy::default(), Terms::default(), now).unwrap();
        self.note();
        self.top_up(account, nano, &format!("first-{account}"));
    }

    pub(crate) fn top_up(&mut self, account: &str, nano: i128, payment: &str) {
        let id: AccountId = account.parse().unwrap();
        let now = self.world.now();
        let payment = Payment::deposit(payment.parse().unwrap(), Bucket::Paid, Credits::from_nano(nano));
        let (view, _) = self.store.pay(&id, &payment, PaymentState::Completed, now).unwrap();
        *self.world.told.deposited.entry(account.to_owned()).or_default() += nano;
        self.note();
        self.step(Event::Pushed(Push { account: id, version: view.version }));
    }

    pub(crate) fn start(&mut self, index: usize) {
        let sample = self.world.sample(index, Attempt(u64::MAX));
        let job = &mut self.world.jobs[index];
        job.baseline_ns = job.cpu_ns;
        job.started = true;
        let wanted = Wanted {
            traits: BTreeMap::new(),
            name: job.name.parse().unwrap(),
            account: job.account.parse().unwrap(),
            owner: Uid::ROOT,
            target: target(index),
            time_limit: None,
            cpus: None,
            memory_bytes: None,
            policy: JobPolicy::default(),
            bid: None,
            storage_bytes: None,
            gang: None,
        };
        let at = self.world.now();
        self.note();
        let start = PendingStart { caller: index as u64, wanted, gpus: Vec::new(), sample, at, asked: None };
        self.step(Event::StartAsked(Box::new(start)));
    }

    /// Its tasks end, and its scheduler says so.
    pub(crate) fn stop(&mut self, index: usize) {
        self.world.jobs[index].populated = false;
        self.note();
        let name = self.world.jobs[index].name.parse().unwrap();
        let attempt = self.turn.agent().job_named(self.world.jobs[index].name.as_str()).filter(|job| job.is_live()).map(|job| job.attempt);
        let sample = attempt.map(|attempt| self.world.sample(index, attempt));
        let ending = Ending { outcome: Outcome::Completed, exit_code: Some(0) };
        self.step(Event::StopAsked { caller: 1_000 + index as u64, name, ending, sample });
    }

    fn samples(&self, only: Option<&[Attempt]>) -> Vec<JobSample> {
        let live = self.turn.agent().jobs.values().filter(|job| job.is_live() && only.is_none_or(|only| only.contains(&job.attempt)));
        live.map(|job| {
            let index = self.world.jobs.iter().position(|known| known.name == job.name.as_str()).unwrap();
            self.world.sample(index, job.attempt)
        })
        .collect()
    }

    /// One second, with the looks that fall into it.
    pub(crate) fn tick(&mut self) {
        let end = self.world.mono + S;
        for _ in 0..6 {
            let Some((at, jobs)) = self.turn.next_look(self.world.now()).filter(|(at, _)| at.0 < end) else { break };
            self.pass(at.0.saturating_sub(self.world.mono));
            let samples = self.samples(Some(&jobs));
            self.step(Event::Looked(samples));
        }
        self.pass(end - self.world.mono);
        self.look();
    }

    /// All jobs are looked at, as at each tick, and at once when an agent begins.
    pub(crate) fn look(&mut self) {
        let samples = self.samples(None);
        self.step(Event::Ticked(samples));
    }

    /// All that is known here is on disk, paid for and told.
    pub(crate) fn is_over(&self) -> bool {
        self.turn.agent().jobs.is_empty() && self.turn.is_settled()
    }
}
