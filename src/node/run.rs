//! The loop: one plain thread where the world and the agent meet. It waits for the next tick, the next look at an account near its edge,
//! or something in its queue; gives it to the [`Turn`]; and carries out what comes back.
//!
//! It never waits for a disk, a network or a driver: those have their own threads, and report into the queue.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use tokio::sync::oneshot;

use super::alarm::Alarm;
use super::cgroup::{AnonRead, AttachError, Sampler, Which};
use super::clock::ClockWatch;
use super::defence::{Defence, stands};
use super::due_cards::{self, DueCards};
use super::gpu::Gpus;
use super::gpu_owner::{CgroupTree, OwnerTable, Owners};
use super::handle::{Caller, Handle, Inbox, Stats};
use super::hands::Hands;
use super::journal::{JournalThread, NotTaken};
use super::layout::Layout;
use super::marks::Marks;
use super::notice::{self, Notice, Notices};
use super::process_tree::ProcessTrees;
use super::publish::Publisher;
use super::random::{fresh_epoch, stray};
use super::upstream::Authority;
use super::watch::Watch;
use super::{clock, host, log, own_cgroup, own_cost, reconcile, self_check, sibling};
use crate::domain::act::{Act, CgroupDir, Target};
use crate::domain::agent::start::{PendingStart, Refusal, Reply, Wanted};
use crate::domain::batch::Batch;
use crate::domain::budget::{Budget, Change, Cost, Pace};
use crate::domain::id::{AccountId, Attempt};
use crate::domain::job::Removed;
use crate::domain::meter::{JobSample, Missing, Reading};
use crate::domain::request::{Place, StartRequest};
use crate::domain::time::{Mono, Nanos, Now};
use crate::domain::turn::{Effect, Event, Turn};
use crate::domain::usage::Meter;

mod acts;
mod changes;

/// Messages that may wait for the loop.
pub const QUEUE_MAX: usize = 8_192;

/// The agent's threads and descriptors are looked at once in so many ticks: that is work too.
const OWN_COST_TICKS: u64 = 10;
/// Between two comparisons of the kernel's cgroups with the jobs.
const SURVEY_EVERY: Nanos = Nanos::from_secs(30);

/// The edges that the loop works with.
pub struct Edges {
    /// How cgroups are mounted; none where no cgroup may be used.
    pub layout: Option<Arc<Layout>>,
    /// Directory below the cgroup root in which `run` makes its cgroups.
    pub cgroup_parent: PathBuf,
    /// What becomes of `run` where no cgroup can be made.
    pub without_cgroup: WithoutCgroup,
    /// To tell people.
    pub notices: Notices,
    /// Process trees.
    pub trees: ProcessTrees,
    /// The reader.
    pub sampler: Sampler,
    /// The actors.
    pub hands: Hands,
    /// Which jobs may stand still by our hand.
    pub marks: Marks,
    /// The watcher of last tasks.
    pub watch: Watch,
    /// The journal.
    pub journal: JournalThread,
    /// The balance.
    pub authority: Arc<Authority>,
    /// The GPUs, unless switched off.
    pub gpus: Option<Gpus>,
    /// Whose process is it?
    pub owners: Owners,
}

/// What becomes of `run` where no cgroup can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithoutCgroup {
    /// The job is metered as a process tree: for an agent without root.
    ProcessTree,
    /// It is refused.
    Refuse,
}

/// Why the loop ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to; everything known is on disk.
    Drained,
    /// It cannot go on.
    Fatal(String),
}

struct Waiting {
    reply: oneshot::Sender<Reply>,
    caller: Option<Caller>,
    made: Option<Target>,
}

/// The loop and all that it holds.
pub struct Loop {
    turn: Turn,
    edges: Edges,
    inbox: Receiver<Inbox>,
    /// Received already, and to be taken before all that waits there.
    next: Option<Inbox>,
    handle: Handle,
    callers: BTreeMap<u64, Waiting>,
    last_caller: u64,
    backlog: VecDeque<Batch>,
    cards: DueCards,
    unwatched: Vec<Attempt>,
    publisher: Publisher,
    stats: Stats,
    budget: Budget,
    pace: Pace,
    /// The interval as configured.
    configured: Nanos,
    /// When the last tick ended, and the CPU time of the process then.
    paid_to: Option<(Mono, u64)>,
    clocks: ClockWatch,
    next_survey: Mono,
    draining: bool,
    on_tick: Box<dyn FnMut() + Send>,
}

impl Loop {
    /// A loop around a recovered turn; `effects` are what its waking asked for, `on_tick` is called after each tick (the watchdog).
    #[must_use]
    pub fn new(
        turn: Turn,
        edges: Edges,
        inbox: Receiver<Inbox>,
        handle: Handle,
        (stats, budget): (Stats, Budget),
        on_tick: Box<dyn FnMut() + Send>,
    ) -> Loop {
        let configured = turn.settings().interval;
        let publisher = Publisher::new(handle.board());
        Loop {
            turn,
            edges,
            inbox,
            next: None,
            handle,
            callers: BTreeMap::new(),
            last_caller: 0,
            backlog: VecDeque::new(),
            cards: DueCards::default(),
            unwatched: Vec::new(),
            publisher,
            stats,
            budget,
            pace: Pace::default(),
            configured,
            paid_to: None,
            clocks: ClockWatch::default(),
            next_survey: Mono(0),
            draining: false,
            on_tick,
        }
    }

    /// Runs until asked to end, or until it cannot go on.
    pub fn run(mut self, woken: Vec<Effect>) -> Ended {
        let live: Vec<Attempt> = self.turn.agent().jobs.values().filter(|job| job.is_live()).map(|job| job.attempt).collect();
        for attempt in live {
            self.look_after(attempt);
        }
        self.carry_out(woken);
        let mut schedule = clock::mono();
        let mut next_tick = schedule;
        loop {
            let now = clock::mono();
            if next_tick <= now {
                self.stats.tick_late_ns = now.since(next_tick).0;
                self.stats.tick_late_max_ns = self.stats.tick_late_max_ns.max(self.stats.tick_late_ns);
                let slot = self.turn.settings().interval;
                self.tick();
                let interval = self.turn.settings().interval;
                let periods = (clock::mono().since(schedule).0 / slot.0).max(1);
                self.stats.tick_missed_count += periods - 1;
                // A missed tick is left out, not made up: counters lose nothing by it.
                schedule = if interval == slot { schedule.plus(Nanos(interval.0.saturating_mul(periods))) } else { clock::mono() };
                next_tick = schedule.plus(stray(interval));
                continue;
            }
            let look = self.turn.next_look(clock::now());
            if let Some((at, jobs)) = &look
                && *at <= now
            {
                let samples = self.edges.sampler.sample(Which::Only(jobs));
                self.step(Event::Looked(samples));
                continue;
            }
            let picture_due = self.publisher.due();
            if picture_due.is_some_and(|at| at <= now) {
                self.publish();
                continue;
            }
            let card_due = self.cards.next(Now { mono: now, ..clock::now() });
            if card_due.is_some_and(|at| at <= now) {
                self.adopt_due_cards();
                continue;
            }
            let due = self.turn.next_due();
            if due.is_some_and(|due| due <= now) {
                self.step(Event::Looked(Vec::new()));
            }
            let until = [Some(next_tick), look.map(|(at, _)| at), picture_due, card_due, due.filter(|due| now < *due)]
                .into_iter()
                .flatten()
                .min()
                .unwrap_or(next_tick);
            let received = self.next.take().map_or_else(|| self.inbox.recv_timeout(Duration::from_nanos(until.since(now).0)), Ok);
            match received {
                Ok(Inbox::Fatal(why)) => return Ended::Fatal(why),
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ended::Drained,
            }
            if self.draining && self.turn.is_settled() && self.backlog.is_empty() {
                return Ended::Drained;
            }
        }
    }

    fn tick(&mut self) {
        let began = clock::mono();
        self_check::look(&mut self.stats.alarms, &mut self.clocks, self.turn.settings().interval);
        self.edges.sampler.changed(&self.edges.watch.take_changed());
        let anon_has_a_price = self.turn.agent().cards.values().any(|card| card.prices(Meter::MemoryAnon));
        self.edges.sampler.set_anon(if anon_has_a_price { AnonRead::EachLook } else { AnonRead::WithDetails });
        self.set_energy();
        let samples = self.edges.sampler.sample(Which::All);
        for why in samples.iter().filter_map(|sample| missing(&sample.cpu_ns)) {
            *self.stats.missing.entry(why).or_default() += 1;
        }
        self.step(Event::Ticked(samples));
        for attempt in std::mem::take(&mut self.unwatched) {
            self.watch(attempt);
        }
        self.adopt_due_cards();
        if self.next_survey <= began {
            self.next_survey = began.plus(SURVEY_EVERY);
            self.survey();
        }
        self.name_held_back();
        self.stats.tick_count += 1;
        self.keep_to_budget();
        self.publish();
        self.stats.tick_ns = clock::mono().since(began).0;
        (self.on_tick)();
    }

    /// Looks what the agent itself costs, and looks less often at the jobs while that is too much.
    fn keep_to_budget(&mut self) {
        let (now, cpu_ns) = (clock::mono(), clock::process_cpu_ns());
        self.stats.cpu_ns = cpu_ns;
        self.stats.resident_bytes = host::resident_bytes().unwrap_or(0);
        if self.stats.tick_count % OWN_COST_TICKS == 1 {
            self.stats.threads_cpu_ns = own_cost::threads_cpu_ns().unwrap_or_default();
            self.stats.descriptors = own_cost::descriptors().unwrap_or(0);
            self.edges.sampler.tell_reads(&mut self.stats.cgroup_reads);
        }
        let last = self.paid_to.replace((now, cpu_ns));
        let change = last.and_then(|(since, before_ns)| {
            let cpu = Nanos(cpu_ns.saturating_sub(before_ns));
            let cost = Cost { cpu, within: now.since(since), resident_bytes: self.stats.resident_bytes };
            self.pace.ticked(&self.budget, &cost, self.configured)
        });
        let interval = self.pace.interval(self.configured);
        self.stats.interval_ns = interval.0;
        self.stats.over_budget = self.pace.over();
        own_cost::tell_over(&mut self.stats, clock::now());
        match change {
            Some(Change::Widened(over)) => {
                self.stats.widened_count += 1;
                tracing::warn!(event = "over_budget", of = over.name(), %interval, "the agent costs more than [budget] allows: it looks less often");
            }
            Some(Change::Narrowed) => tracing::info!(event = "within_budget", %interval, "the agent looks more often again"),
            None => return,
        }
        let mut settings = self.turn.settings().clone();
        settings.interval = interval; // the core tells a silence from a wider interval by it
        self.turn.set_settings(settings);
    }

    fn name_held_back(&mut self) {
        let now = clock::now();
        let held = self.turn.agent().held_back(self.turn.settings(), now);
        if held.is_empty() {
            return self.stats.alarms.clear(Alarm::HeldBack);
        }
        let some: Vec<&str> = held.iter().map(AccountId::as_str).take(8).collect();
        let message =
            format!("{} accounts have no credit and their jobs are not stopped (further), such as {}", held.len(), some.join(", "));
        self.stats.alarms.raise(Alarm::HeldBack, now, message);
    }

    /// Are there tasks in cgroups of jobs that nobody started?
    fn survey(&mut self) {
        let Some(layout) = &self.edges.layout else { return };
        let agent = self.turn.agent();
        let jobs = agent.jobs.values().chain(&agent.closed).filter(|job| job.is_live() || job.removed == Removed::No);
        let making = self.callers.values().filter_map(|waiting| waiting.made.as_ref());
        let found = reconcile::survey(layout, &self.edges.cgroup_parent, jobs.map(|job| &job.target).chain(making));
        reconcile::remove_left_over(&found.left_over);
        if found.unmetered.is_empty() {
            self.stats.alarms.clear(Alarm::Unmetered);
        } else {
            let places: Vec<&str> = found.unmetered.iter().map(String::as_str).take(8).collect();
            let message = format!("{} cgroups with tasks and no job, such as {}", found.unmetered.len(), places.join(", "));
            self.stats.alarms.raise(Alarm::Unmetered, clock::now(), message);
        }
        self.step(Event::Surveyed(found.unmetered));
    }

    fn step(&mut self, event: Event) {
        let event = self.with_gpus(event);
        let effects = self.turn.step(clock::now(), event);
        self.carry_out(effects);
    }

    fn take(&mut self, message: Inbox) {
        match message {
            Inbox::Start { request, caller, reply } => self.start(request, caller, reply),
            Inbox::Stop { name, ending, reply } => {
                let caller = self.wait(Waiting { reply, caller: None, made: None });
                let attempt = self.turn.agent().job_named(name.as_str()).filter(|job| job.is_live()).map(|job| job.attempt);
                let mut sample = attempt.and_then(|attempt| self.look_closely(attempt));
                if let Some(sample) = sample.as_mut().filter(|_| !stands(Defence::UntilEmpty)) {
                    sample.cpu_ns = Reading::Missing(Missing::Vanished);
                }
                self.step(Event::StopAsked { caller, name, ending, sample });
            }
            Inbox::Change { name, request, by, reply } => self.change(&name, &request, by, reply),
            Inbox::Report { name, report, reply } => self.report(name, report, reply),
            Inbox::Enforcement { mode, by, reply } => {
                let caller = self.wait(Waiting { reply, caller: None, made: None });
                self.step(Event::EnforcementAsked { caller, mode, by });
            }
            Inbox::ConfirmStops { by, reply } => {
                let caller = self.wait(Waiting { reply, caller: None, made: None });
                self.step(Event::ConfirmAsked { caller, by });
            }
            Inbox::Receipt { name, reply } => {
                let live = self.turn.agent().job_named(name.as_str()).filter(|job| job.is_live()).map(|job| job.attempt);
                if let Some(attempt) = live {
                    let samples = self.edges.sampler.sample_closely(&[attempt]);
                    self.step(Event::Looked(samples));
                }
                drop(reply.send(self.turn.receipt(&name))); // a caller that has gone away needs no answer
            }
            Inbox::Acted(acted) => self.acted(acted),
            Inbox::Emptied(attempt) => {
                let samples = self.edges.sampler.sample_closely(&[attempt]);
                self.step(Event::Looked(samples));
                self.publish_if_cheap();
            }
            Inbox::Answered(answer) => match fresh_epoch() {
                Ok(epoch) => self.step(Event::Answered(answer, epoch)),
                Err(error) => tracing::error!(event = "no_random", %error, "no random bits: an answer is dropped"),
            },
            Inbox::Pushed(push) => self.step(Event::Pushed(push)),
            Inbox::GangPushed(want) => self.step(Event::GangPushed(want)),
            Inbox::Told(account, news) => self.step(Event::Told(account, news)),
            Inbox::Durable(seq) => {
                self.step(Event::Durable(seq));
                self.send_backlog();
            }
            Inbox::Alarm(alarm, Some(message)) => self.stats.alarms.raise(alarm, clock::now(), message),
            Inbox::Alarm(alarm, None) => self.stats.alarms.clear(alarm),
            Inbox::JournalIs(state) => {
                self.stats.journal_full = state == crate::domain::turn::JournalState::Full;
                self.step(Event::JournalIs(state));
            }
            Inbox::Card(card) => {
                self.cards.put(*card);
                self.adopt_due_cards();
            }
            Inbox::CardUnfit(why) => {
                self.turn.refuse_card(why);
                due_cards::tell(&mut self.stats.alarms, &self.turn);
            }
            Inbox::Configured(mode) => {
                let mut settings = self.turn.settings().clone();
                settings.enforcement = mode;
                self.turn.set_settings(settings);
            }
            Inbox::Drain => {
                self.draining = true;
                self.tick();
            }
            Inbox::Fatal(_) => {}
        }
    }

    fn wait(&mut self, waiting: Waiting) -> u64 {
        self.last_caller += 1;
        self.callers.insert(self.last_caller, waiting);
        self.last_caller
    }

    fn look(&mut self, attempt: Attempt) -> Option<JobSample> {
        let samples = self.edges.sampler.sample(Which::Only(&[attempt]));
        self.pick(samples, attempt)
    }

    /// One job's sample; those of jobs inside it, which come along, are taken in before it.
    fn pick(&mut self, samples: Vec<JobSample>, attempt: Attempt) -> Option<JobSample> {
        let (wanted, inner): (Vec<JobSample>, Vec<JobSample>) = samples.into_iter().partition(|sample| sample.attempt == attempt);
        if !inner.is_empty() {
            self.step(Event::Looked(inner));
        }
        wanted.into_iter().next()
    }

    /// One look with all details.
    fn look_closely(&mut self, attempt: Attempt) -> Option<JobSample> {
        let samples = self.edges.sampler.sample_closely(&[attempt]);
        self.pick(samples, attempt)
    }

    /// Looks the caller's words up in the world, reads the baseline, and gives it to the turn.
    fn start(&mut self, request: StartRequest, caller: Caller, reply: oneshot::Sender<Reply>) {
        let refuse = |reply: oneshot::Sender<Reply>, refusal| drop(reply.send(Reply::Refused(refusal)));
        let gpus = match self.resolve_gpus(&request.gpus).and_then(|gpus| self.free_gpus(&gpus, &request.job).map(|()| gpus)) {
            Ok(gpus) => gpus,
            Err(refusal) => return refuse(reply, refusal),
        };
        let (target, made) = match self.find(&request, &caller) {
            Ok(found) => found,
            Err(refusal) => return refuse(reply, refusal),
        };
        let sample = match self.baseline(&request, &target) {
            Ok(sample) => sample,
            Err(refusal) => {
                self.unmake(made.as_ref());
                return refuse(reply, refusal);
            }
        };
        let wanted = Wanted {
            name: request.job,
            account: request.account,
            owner: request.owner.unwrap_or(caller.uid),
            target,
            time_limit: request.time_limit,
            cpus: request.cpus,
            memory_bytes: request.memory_bytes,
            policy: request.policy,
            traits: request.traits,
            storage_bytes: request.storage_bytes,
            bid: request.bid,
            gang: request.gang,
        };
        let at = clock::now();
        let caller = self.wait(Waiting { reply, caller: Some(caller), made });
        self.step(Event::StartAsked(Box::new(PendingStart { caller, wanted, gpus, sample, at, asked: None })));
    }

    /// The job's place; the second part is what was made for it, to be removed if the job is refused.
    fn find(&self, request: &StartRequest, caller: &Caller) -> Result<(Target, Option<Target>), Refusal> {
        let layout = self.edges.layout.as_deref();
        match &request.place {
            Place::Cgroups(paths) => {
                let Some(layout) = layout else {
                    return Err(Refusal::new(
                        "no_cgroups",
                        "no cgroup file system can be used here",
                        "use --pid: a process tree is metered then",
                    ));
                };
                if let Some(known) = self.repeated_dirs(request, layout, paths) {
                    return Ok((Target::Cgroups(known), None));
                }
                let resolved = sibling::resolve(layout, paths).map_err(|error| {
                    Refusal::new("cgroup_refused", error.to_string(), "name the job's own cgroup directories by absolute paths")
                })?;
                for (hierarchy, why) in &resolved.without {
                    tracing::debug!(event = "no_sibling", job = %request.job, ?hierarchy, ?why);
                }
                Ok((Target::Cgroups(resolved.dirs), None))
            }
            Place::Slurm(job) => Ok((Target::SlurmJob(job.clone()), None)),
            Place::Process(pid) => self.tree_of(*pid).map(|target| (target, None)),
            Place::Own => self.own(request, caller),
        }
    }

    /// The directories of a job that is metered already, if this start names the same ones: a sibling may have come since.
    fn repeated_dirs(&self, request: &StartRequest, layout: &Layout, paths: &[String]) -> Option<Vec<CgroupDir>> {
        let job = self.turn.agent().job_named(request.job.as_str()).filter(|job| job.is_live())?;
        let Target::Cgroups(known) = &job.target else { return None };
        sibling::is_repeat(layout, known, paths).then(|| known.clone())
    }

    fn own(&self, request: &StartRequest, caller: &Caller) -> Result<(Target, Option<Target>), Refusal> {
        let known = self.turn.agent().job_named(request.job.as_str()).filter(|job| job.is_live());
        match known.map(|job| &job.target) {
            // The caller is put into a cgroup; into another's process tree it cannot be put.
            Some(Target::Processes(_)) => return self.tree_of(caller.pid).map(|target| (target, None)),
            Some(target) => return Ok((target.clone(), None)),
            None => {}
        }
        let made = self.edges.layout.as_deref().map(|layout| {
            let name: String =
                request.job.as_str().chars().map(|c| if c == '/' && stands(Defence::CgroupName) { '_' } else { c }).collect();
            own_cgroup::make(layout, &self.edges.cgroup_parent, &format!("{name}.{:x}", clock::mono().0))
        });
        match made {
            Some(Ok(dirs)) => Ok((Target::OwnCgroups(dirs.clone()), Some(Target::OwnCgroups(dirs)))),
            Some(Err(error)) if self.edges.without_cgroup == WithoutCgroup::ProcessTree => {
                tracing::info!(event = "process_tree", %error, job = %request.job, "no cgroup can be made: the job is metered as a process tree");
                self.tree_of(caller.pid).map(|target| (target, None))
            }
            None => self.tree_of(caller.pid).map(|target| (target, None)),
            Some(Err(error)) => {
                Err(Refusal::new("cgroup_not_made", error.to_string(), "see the agent's log; it needs write access to the cgroup tree"))
            }
        }
    }

    fn tree_of(&self, pid: u32) -> Result<Target, Refusal> {
        let root = self.edges.trees.identify(pid);
        root.map(Target::Processes)
            .map_err(|why| Refusal::new("process_unreadable", format!("process {pid}: {why}"), "name a process that lives"))
    }

    /// A look at the job before it has a number.
    fn baseline(&mut self, request: &StartRequest, target: &Target) -> Result<JobSample, Refusal> {
        let unnumbered = Attempt(u64::MAX);
        match self.edges.sampler.attach(unnumbered, target) {
            Ok(()) => {
                let sample = self.look_closely(unnumbered);
                self.edges.sampler.detach(unnumbered);
                sample.ok_or_else(|| Refusal::new("cgroup_unreadable", "the job cannot be read", "name a cgroup that exists"))
            }
            Err(AttachError::Taken { holder, path }) => {
                let same = self.turn.agent().jobs.get(&holder).is_some_and(|job| job.name == request.job);
                match self.look(holder) {
                    Some(sample) if same => Ok(sample),
                    _ => {
                        let message = format!("{path} belongs to another job");
                        Err(Refusal::new("cgroup_taken", message, "a cgroup is metered for one job at a time"))
                    }
                }
            }
            Err(AttachError::PartlyInside(other)) => {
                let name = self.turn.agent().jobs.get(&other).map_or_else(|| other.to_string(), |job| job.name.to_string());
                let message = format!("only a part of this job's directories and of job {name}'s are in one another");
                Err(Refusal::new("cgroup_partly_inside", message, "a job is inside another one with all of its directories, or with none"))
            }
            Err(error) => Err(Refusal::new("cgroup_refused", error.to_string(), "name the job's own cgroup directories")),
        }
    }

    fn unmake(&self, made: Option<&Target>) {
        if let (Some(Target::OwnCgroups(dirs)), Some(layout)) = (made, self.edges.layout.as_deref())
            && let Err(error) = own_cgroup::remove(layout, dirs)
        {
            tracing::warn!(event = "cgroup_left", %error, "a cgroup made for a refused job could not be removed");
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        // Who hears that a job has started finds it when looking for it.
        if effects.iter().any(|effect| matches!(effect, Effect::Reply(..))) {
            self.publisher.owe(&self.turn, self.edges.gpus.as_ref(), &self.stats);
        }
        for effect in effects {
            match effect {
                Effect::Commit(batch) => {
                    self.stats.commit_count += 1;
                    self.stats.commit_bytes += batch.rows.iter().map(|row| row.bytes.len() as u64).sum::<u64>();
                    self.backlog.push_back(batch);
                    self.send_backlog();
                }
                Effect::Act(order) => {
                    if order.act == Act::Warn {
                        self.tell(notice::Event::Warned, order.attempt);
                    }
                    if order.act != Act::Remove {
                        tracing::info!(event = "order", act = %order.act, attempt = %order.attempt);
                    }
                    if order.act == Act::Freeze
                        && let Err(error) = self.edges.marks.set(order.attempt)
                    {
                        tracing::warn!(event = "not_marked", attempt = %order.attempt, %error, "frozen all the same");
                    }
                    if let Err(busy) = self.edges.hands.submit(order) {
                        tracing::warn!(event = "hands_busy", error = %busy);
                    }
                }
                Effect::Unmark(attempt) => {
                    if let Err(error) = self.edges.marks.clear(attempt) {
                        tracing::warn!(event = "mark_left", %attempt, %error);
                    }
                }
                Effect::Send(request) => {
                    self.stats.asked_count += 1;
                    let handle = self.handle.clone();
                    let answered = move |answer| handle.report(Inbox::Answered(Box::new(answer)));
                    if self.edges.authority.ask(request, self.edges.journal.head(), answered).is_err() {
                        tracing::warn!(event = "authority_busy", "the question will be repeated");
                    }
                }
                Effect::Reply(caller, reply) => self.reply(caller, reply),
                Effect::Log(fact) => log::fact(&fact),
                Effect::Watch(attempt) => self.look_after(attempt),
                Effect::Forget(attempt) => {
                    self.edges.sampler.detach(attempt);
                    self.edges.watch.remove(attempt);
                    self.tell_owners();
                }
            }
        }
    }

    fn send_backlog(&mut self) {
        while let Some(batch) = self.backlog.pop_front() {
            match self.edges.journal.submit(batch) {
                Ok(()) => {}
                Err(NotTaken::Busy(batch)) => {
                    self.backlog.push_front(batch);
                    return;
                }
                Err(NotTaken::Ended(_)) => {
                    // The journal's own last word is in the queue, or this is: either ends the loop.
                    if self.handle.put(Inbox::Fatal("the journal has ended".to_owned())).is_err() {
                        tracing::error!(event = "journal_ended");
                    }
                    return;
                }
            }
        }
    }

    /// Answers a caller. For a job in a cgroup of its own, the caller's process goes into it before the caller hears of it.
    fn reply(&mut self, caller: u64, reply: Reply) {
        let Some(waiting) = self.callers.remove(&caller) else { return };
        let mut reply = reply;
        match &reply {
            Reply::Started { target: Target::OwnCgroups(dirs), .. } => {
                if let (Some(layout), Some(process)) = (self.edges.layout.as_deref(), &waiting.caller)
                    && let Err(error) = enter(layout, dirs, process)
                {
                    let hint = "the job is closed by itself; try again";
                    reply = Reply::Refused(Refusal::new("cgroup_not_entered", error, hint));
                }
            }
            Reply::Refused(_) => self.unmake(waiting.made.as_ref()),
            _ => {}
        }
        drop(waiting.reply.send(reply)); // a caller that has gone away needs no answer
    }

    fn look_after(&mut self, attempt: Attempt) {
        let Some(job) = self.turn.agent().jobs.get(&attempt) else { return };
        let target = job.target.clone();
        if let Err(error) = self.edges.sampler.attach(attempt, &target) {
            tracing::warn!(event = "not_attached", %attempt, %error);
        }
        self.watch(attempt);
        self.tell_owners();
    }

    /// Watches for the job's last task. A Slurm job's cgroup comes later than its start: it is tried again at each tick.
    fn watch(&mut self, attempt: Attempt) {
        let Some(job) = self.turn.agent().jobs.get(&attempt).filter(|job| job.is_live()) else { return };
        match self.edges.watch.add(attempt, &job.target) {
            Ok(()) => self.edges.sampler.told_of(attempt),
            Err(Missing::NotYet) => self.unwatched.push(attempt),
            Err(why) => tracing::debug!(event = "not_watched", %attempt, %why, "its end is seen at the next tick"),
        }
    }

    /// Tells the GPU thread whose process is whose.
    fn tell_owners(&self) {
        if self.edges.gpus.is_none() {
            return;
        }
        let mut table = OwnerTable::default();
        for job in self.turn.agent().jobs.values().filter(|job| job.is_live()) {
            match &job.target {
                Target::Cgroups(dirs) | Target::OwnCgroups(dirs) => {
                    for dir in dirs {
                        let Some((tree, path)) = self.tree_path(&dir.path) else { continue };
                        if let Err(error) = table.cgroup(tree, &path, job.attempt) {
                            tracing::debug!(event = "no_owner", %error);
                        }
                    }
                }
                Target::Processes(root) => table.processes([*root], job.attempt),
                Target::SlurmJob(_) => {}
            }
        }
        self.edges.owners.replace(table);
    }

    fn tree_path(&self, path: &str) -> Option<(CgroupTree, String)> {
        use super::layout::{Controller, Hierarchy};
        let layout = self.edges.layout.as_deref()?;
        let place = layout.classify(std::path::Path::new(path)).ok()?;
        let tree = match place.hierarchy {
            Hierarchy::V2 => CgroupTree::V2,
            v1 if v1.has(Controller::Memory) => CgroupTree::V1Memory,
            Hierarchy::V1(_) => return None,
        };
        let root = layout.mount_roots.get(&place.mount).map_or("", |root| root.trim_end_matches('/'));
        Some((tree, format!("{root}/{}", place.relative.display())))
    }

    /// Cards whose effective date has come are adopted, the oldest first; a refused one is not tried again.
    fn adopt_due_cards(&mut self) {
        for card in self.cards.due(clock::now().wall) {
            let samples = self.edges.sampler.sample(Which::All);
            self.step(Event::CardArrived(Box::new(card), samples));
            due_cards::tell(&mut self.stats.alarms, &self.turn);
        }
    }

    fn tell(&self, event: notice::Event, attempt: Attempt) {
        let notice = Notice::of(event, attempt, self.turn.agent(), &self.turn.settings().node, clock::now());
        self.edges.notices.tell(notice);
    }

    fn publish(&mut self) {
        self.publisher.publish(&self.turn, self.edges.gpus.as_ref(), &self.stats);
    }

    fn publish_if_cheap(&mut self) {
        self.publisher.publish_if_cheap(&self.turn, self.edges.gpus.as_ref(), &self.stats);
    }
}

/// Puts the caller's process into the job's cgroup. It must still be the one that called: a reused pid is not touched.
fn enter(layout: &Layout, dirs: &[CgroupDir], process: &Caller) -> Result<(), String> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    if let Some(pidfd) = &process.pidfd {
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        let gone = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).map_err(|error| error.to_string())?;
        if 0 < gone {
            return Err("the calling process has ended".to_owned());
        }
    }
    own_cgroup::enter(layout, dirs, process.pid).map_err(|error| error.to_string())
}

fn missing<T>(reading: &Reading<T>) -> Option<String> {
    match reading {
        Reading::Missing(Missing::NotYet) | Reading::Seen(_) => None,
        Reading::Missing(why) => Some(why.to_string()),
    }
}
