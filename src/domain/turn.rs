//! One turn: an event comes in, facts are made and applied, and effects go out, each held back until the facts behind it are durable.
//!
//! ```text
//!   event -> facts -> commit (asynchronous) -> wants -> [durable?] -> hands, answers, questions
//! ```
//!
//! The state runs ahead of the disk; nothing outside hears of it before the disk has it. A crash therefore only ever loses what nobody
//! was told. The one exception: a freeze whose account is durably *armed* does not wait, since a slow disk must not keep a job running.
//! A thaw, an end, an answer and a question always wait.

use std::collections::{BTreeMap, BTreeSet};

use super::act::{Act, ActOutcome, Acted, Order};
use super::agent::credit::ASK_SPACING;
use super::agent::draft::{self, Doubts, Draft};
use super::agent::start::{AskedInVain, PendingStart, Reply, overdue};
use super::agent::{Agent, Settings};
use super::batch::{Batch, ReceiptRow, Row};
use super::enforcement::Enforcement;
use super::fact::{Fact, Seq};
use super::id::{AccountId, Attempt, Epoch, JobName, Uid};
use super::job::{Ending, FrozenBy, Job, StepEvent};
use super::meter::{JobSample, Missing, Reading};
use super::news::News;
use super::rates::Card;
use super::receipt::{Receipt, ReceiptState};
use super::terms::{Change, Report};
use super::time::{Mono, Nanos, Now};
use super::wire::{Answer, Balance, GangWant, Push, Request};

/// A floor between two looks at an account near its edge.
const LOOK_AGAIN: Nanos = Nanos::from_millis(10);
/// An order that has had no report is given again after this.
const ORDER_AGAIN: Nanos = Nanos::from_millis(2_500);
/// A kill that is done and has not ended the job is done again after this, doubled each time up to [`KILL_AGAIN_MAX`]: its tasks may be slow
/// to go, or others have come.
const KILL_AGAIN: Nanos = Nanos::from_millis(50);
/// The longest wait between two.
const KILL_AGAIN_MAX: Nanos = Nanos::from_secs(1);
/// A freeze that was ordered may take hold as late as this; a job found frozen later was frozen by another.
const TAKES_HOLD_WITHIN: Nanos = Nanos::from_secs(10);
/// The first retransmission of a question; doubled each time up to [`SEND_AGAIN_MAX`].
const SEND_AGAIN: Nanos = Nanos::from_millis(500);
/// The longest wait between two.
const SEND_AGAIN_MAX: Nanos = Nanos::from_secs(30);
/// Turns of all jobs between two checkpoints.
const CHECKPOINT_TICKS: u32 = 60;
/// Facts between two checkpoints: a start replays at most so many, and those of one turn. One is due at once in a new process, so that
/// no row of short lives makes the replay longer.
pub const REPLAY_MAX: u64 = 4_096;
/// With this many facts on their way to the disk, looks at jobs that are not near their edge are left out: counters lose nothing by it.
const BEHIND_MAX: u64 = 512;
/// What to ask the authority is considered anew after this, though nothing has happened.
const CONSIDER_AGAIN: Nanos = Nanos::from_millis(50);
/// Most starts that wait for the authority at once.
const STARTS_MAX: usize = 1_024;

/// Everything that can happen. There is no other way in.
#[derive(Clone, Debug)]
pub enum Event {
    /// All jobs were looked at, on schedule.
    Ticked(Vec<JobSample>),
    /// Some jobs were looked at: near an edge, or since their last task went.
    Looked(Vec<JobSample>),
    /// A start was asked for.
    StartAsked(Box<PendingStart>),
    /// A stop was reported; with a look at the job, if it is known.
    StopAsked {
        /// Whom to answer.
        caller: u64,
        /// Which job.
        name: JobName,
        /// How it ended.
        ending: Ending,
        /// The job now.
        sample: Option<JobSample>,
    },
    /// The hands did something, to each job one thing; with a look at the job afterwards.
    Acted(Vec<(Acted, Option<JobSample>)>),
    /// The authority answered.
    Answered(Box<Answer>, Epoch),
    /// The authority says that an account has changed.
    Pushed(Push),
    /// The authority tells people of an account.
    Told(AccountId, News),
    /// A card has come into force; with a look at all jobs, so that each pays by the old one up to now.
    CardArrived(Box<Card>, Vec<JobSample>),
    /// A job is given something else; with a look at it, so that it pays by what it had up to now.
    ChangeAsked {
        /// Whom to answer.
        caller: u64,
        /// Which job.
        name: JobName,
        /// What.
        change: Change,
        /// By whom.
        by: Uid,
        /// The job now.
        sample: Option<JobSample>,
    },
    /// A hook reports something of a job.
    Reported {
        /// Whom to answer.
        caller: u64,
        /// Which job.
        name: JobName,
        /// What.
        report: Report,
    },
    /// The mode of enforcement is to be set.
    EnforcementAsked {
        /// Whom to answer.
        caller: u64,
        /// To what.
        mode: Enforcement,
        /// By whom.
        by: Uid,
    },
    /// An operator lets the next accounts be stopped.
    ConfirmAsked {
        /// Whom to answer.
        caller: u64,
        /// Who.
        by: Uid,
    },
    /// Everything up to here is on disk.
    Durable(Seq),
    /// The disk takes nothing now, or again.
    JournalIs(JournalState),
    /// The cgroups of jobs were compared with what is metered: these have tasks and no job.
    Surveyed(BTreeSet<String>),
    /// The authority says what a gang is to do.
    GangPushed(GangWant),
}

/// Does the disk take facts?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JournalState {
    /// It does.
    Writable,
    /// Full or read-only: no new starts; what is held is enforced from memory.
    Full,
}

/// What is to be done outside. In order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write this; an [`Event::Durable`] follows.
    Commit(Batch),
    /// Tell the hands. A freeze is marked before: see [`Turn::wake`].
    Act(Order),
    /// The job's mark is of no use any more: no freeze of ours holds it.
    Unmark(Attempt),
    /// Send this to the authority.
    Send(Request),
    /// Answer a caller.
    Reply(u64, Reply),
    /// Tell people that this has happened.
    Log(Fact),
    /// Look after this job from now on.
    Watch(Attempt),
    /// No more.
    Forget(Attempt),
}

#[derive(Clone, Copy, Debug)]
struct Wanted {
    since: Seq,
    ordered: Option<Mono>,
    /// When it may be ordered again, counted from then.
    again: Nanos,
    /// How long to wait after the next kill that is done.
    after_kill: Nanos,
}

impl Wanted {
    const fn since(since: Seq) -> Wanted {
        Wanted { since, ordered: None, again: ORDER_AGAIN, after_kill: KILL_AGAIN }
    }
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    request: u64,
    at: Mono,
    again: Nanos,
}

/// A stop that came while its start waits for the authority: until that is decided nobody knows whether there is such a job.
#[derive(Clone, Debug)]
struct EarlyStop {
    caller: u64,
    name: JobName,
    ending: Ending,
}

/// The agent's state, and what waits for the disk.
pub struct Turn {
    agent: Agent,
    settings: Settings,
    durable: Seq,
    journal: JournalState,
    wanted: BTreeMap<(Attempt, Act), Wanted>,
    replies: Vec<(Seq, u64, Reply)>,
    starts: Vec<PendingStart>,
    stops: Vec<EarlyStop>,
    doubts: Doubts,
    opened: BTreeMap<Attempt, Seq>,
    /// Closed, and not on disk yet.
    closed: BTreeMap<Attempt, Seq>,
    skipped: BTreeMap<Attempt, u64>,
    sent: Option<Sent>,
    looked_at: Mono,
    looked: BTreeMap<Attempt, Mono>,
    ticks: u32,
    checkpointed: Seq,
    refused_card: Option<String>,
    /// What the authority told of balances, for people. A new process waits for the next answer.
    balances: BTreeMap<AccountId, Balance>,
    /// When it was last considered what to ask the authority, and after which fact.
    considered: Option<(Seq, Mono)>,
}

/// Is there something to ask the authority?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asking {
    /// That is to be considered.
    ToConsider,
    /// It was, a moment ago, and nothing has happened since.
    Considered,
}

impl Turn {
    /// Goes on from a recovered state; `fresh_epoch` is 128 random bits, used if this is a new boot. `marked` are the jobs for which a
    /// freeze was ordered since the boot and not undone: marks outlive the process, and need no disk. A job that stands still is ours
    /// if the journal or its mark says so, and somebody else's if neither does.
    #[must_use]
    pub fn wake(agent: Agent, settings: Settings, now: Now, fresh_epoch: Epoch, marked: &BTreeSet<Attempt>) -> (Turn, Vec<Effect>) {
        let durable = agent.seq;
        let settings = Settings { woke_at: now.boot, ..settings };
        let mut turn = Turn {
            agent,
            settings,
            durable,
            journal: JournalState::Writable,
            wanted: BTreeMap::new(),
            replies: Vec::new(),
            starts: Vec::new(),
            stops: Vec::new(),
            doubts: Doubts::default(),
            opened: BTreeMap::new(),
            closed: BTreeMap::new(),
            skipped: BTreeMap::new(),
            sent: None,
            looked_at: Mono(0),
            looked: BTreeMap::new(),
            ticks: CHECKPOINT_TICKS,
            checkpointed: Seq(0),
            refused_card: None,
            balances: BTreeMap::new(),
            considered: None,
        };
        let mut effects = turn.draft(now, |draft, _| draft.woke(fresh_epoch, marked));
        let of_nobody = |attempt: &&Attempt| turn.agent.jobs.get(attempt).is_none_or(|job| !job.is_live());
        effects.extend(marked.iter().filter(of_nobody).map(|attempt| Effect::Unmark(*attempt)));
        let ours = turn.agent.jobs.values().filter(|job| job.is_live() && job.frozen_by == Some(FrozenBy::Agent));
        turn.doubts.unseen = turn.agent.jobs.values().filter(|job| job.is_live()).map(|job| job.attempt).collect();
        turn.doubts.freezing = ours.map(|job| (job.attempt, now.mono)).collect();
        (turn, effects)
    }

    /// The state. It may be ahead of the disk.
    #[must_use]
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// The settings.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The settings, after a reload.
    pub fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// The receipt of the job of that name: final once its close is on disk.
    #[must_use]
    pub fn receipt(&self, name: &JobName) -> Option<Receipt> {
        let job = self.agent.job_named(name.as_str())?;
        let mut receipt = Receipt::of(job, &self.agent, &self.settings);
        if self.closed.contains_key(&job.attempt) {
            receipt.state = ReceiptState::Provisional;
        }
        Some(receipt)
    }

    /// The last fact on disk.
    #[must_use]
    pub fn durable(&self) -> Seq {
        self.durable
    }

    /// Does the disk take facts?
    #[must_use]
    pub fn journal(&self) -> JournalState {
        self.journal
    }

    /// What an account's balance is made of, as last heard.
    #[must_use]
    pub fn balance(&self, account: &AccountId) -> Option<&Balance> {
        self.balances.get(account)
    }

    /// Why the last card was refused, if it was.
    #[must_use]
    pub fn refused_card(&self) -> Option<&str> {
        self.refused_card.as_deref()
    }

    /// A card could not even be offered: it is no card, or nobody vouches for it.
    pub fn refuse_card(&mut self, why: String) {
        self.refused_card = Some(why);
    }

    /// Are there answers, orders or facts that have not gone out?
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.replies.is_empty() && self.starts.is_empty() && self.stops.is_empty() && self.durable == self.agent.seq
    }

    /// One event, start to finish.
    pub fn step(&mut self, now: Now, event: Event) -> Vec<Effect> {
        let mut effects = self.take(now, event);
        effects.extend(self.stop_decided(now));
        effects
    }

    fn take(&mut self, now: Now, event: Event) -> Vec<Effect> {
        match event {
            Event::Durable(seq) => {
                self.durable = self.durable.max(seq);
                self.opened.retain(|_, opened| seq < *opened);
                self.closed.retain(|_, closed| seq < *closed);
                // Nothing is asked for that was not a moment ago, unless it is time to.
                let asking = if self.considered.is_some_and(|(at, then)| at == self.agent.seq && now.mono.since(then) < CONSIDER_AGAIN) {
                    Asking::Considered
                } else {
                    Asking::ToConsider
                };
                self.draft_asking(now, asking, |_, _| ())
            }
            Event::JournalIs(state) => {
                self.journal = state;
                self.draft(now, |_, _| ())
            }
            Event::Surveyed(unmetered) => self.draft(now, |draft, _| draft.surveyed(&unmetered)),
            Event::Ticked(samples) => self.tick(now, samples),
            Event::Looked(samples) => self.looked(now, samples),
            Event::Acted(mut all) => {
                for (acted, sample) in &mut all {
                    self.catch_up(sample.as_mut_slice());
                    if acted.outcome == ActOutcome::Confirmed {
                        self.done_once(acted.attempt, acted.act); // what did not succeed is tried again, but not at once
                    }
                    if acted.outcome == ActOutcome::Confirmed && matches!(acted.act, Act::Freeze | Act::Thaw) {
                        self.doubts.freezing.remove(&acted.attempt);
                    }
                }
                self.draft(now, |draft, _| draft.acted(&all))
            }
            Event::Answered(answer, fresh_epoch) => self.answered(now, &answer, fresh_epoch),
            Event::Pushed(push) => self.draft(now, |draft, _| draft.pushed(&push)),
            Event::GangPushed(want) => self.draft(now, |draft, _| draft.heard_gangs(std::slice::from_ref(&want))),
            Event::Told(account, news) => self.draft(now, |draft, _| draft.told(account, news)),
            Event::CardArrived(card, mut samples) => {
                self.catch_up(&mut samples);
                let mut refused = None;
                let effects = self.draft(now, |draft, _| refused = draft.card(&card, &samples).err());
                self.refused_card = refused;
                effects
            }
            Event::StartAsked(start) => self.start(now, *start),
            Event::StopAsked { caller, name, ending, sample: None } if self.is_starting(&name) => {
                self.stops.push(EarlyStop { caller, name, ending });
                Vec::new()
            }
            Event::StopAsked { caller, name, ending, mut sample } => {
                self.catch_up(sample.as_mut_slice());
                self.draft(now, |draft, replies| replies.push((caller, draft.stop(&name, ending, sample.as_ref()))))
            }
            Event::ChangeAsked { caller, name, change, by, mut sample } => {
                self.catch_up(sample.as_mut_slice());
                self.draft(now, |draft, replies| replies.push((caller, draft.change(&name, &change, by, sample.as_ref()))))
            }
            Event::Reported { caller, name, report } => {
                self.draft(now, |draft, replies| replies.push((caller, draft.report(&name, report))))
            }
            Event::ConfirmAsked { caller, by } => self.draft(now, |draft, replies| {
                draft.confirm(by);
                replies.push((caller, Reply::Done));
            }),
            Event::EnforcementAsked { caller, mode, by } => self.draft(now, |draft, replies| {
                draft.enforcement(mode, by);
                replies.push((caller, Reply::Done));
            }),
        }
    }

    /// When to look again at which jobs, before the next tick: the earliest instant at which an account can be empty, or the last word of
    /// a counter whose last task has gone.
    #[must_use]
    pub fn next_look(&self, now: Now) -> Option<(Mono, Vec<Attempt>)> {
        let mut looks = self.agent.edges(&self.settings, now, &self.looked);
        looks.extend(self.agent.last_words(now.mono));
        looks.extend(self.agent.dates(now));
        let first = looks.iter().map(|(at, _)| *at).min()?;
        let at = first.max(self.looked_at.plus(LOOK_AGAIN));
        // All that are due by then: an account that is looked at again and again must not keep the others from their turn.
        let due: BTreeSet<Attempt> = looks.into_iter().filter(|(due, _)| *due <= at).flat_map(|(_, jobs)| jobs).collect();
        Some((at, due.into_iter().collect()))
    }

    /// When something else is due: a start that waits too long, a question to repeat.
    #[must_use]
    pub fn next_due(&self) -> Option<Mono> {
        let starts = self.starts.iter().map(|start| start.at.mono.plus(super::agent::start::ADMIT_WITHIN)).min();
        let outstanding = self.agent.outstanding.as_ref().map(|outstanding| outstanding.request.request);
        let resend = self.sent.filter(|sent| outstanding == Some(sent.request)).map(|sent| sent.at.plus(sent.again));
        starts.into_iter().chain(resend).min()
    }

    fn looked(&mut self, now: Now, mut samples: Vec<JobSample>) -> Vec<Effect> {
        self.looked_at = now.mono;
        self.doubts.freezing.retain(|_, since| now.mono.since(*since) < TAKES_HOLD_WITHIN);
        self.catch_up(&mut samples);
        let effects = self.draft(now, |draft, _| draft.sampled(&samples));
        for sample in samples.iter().filter(|sample| sample.frozen.seen().is_some()) {
            self.doubts.unseen.remove(&sample.attempt);
        }
        self.note_looks(&samples);
        effects
    }

    /// For the edges: a job that stands still is counted to where it stopped, however often it is looked at.
    fn note_looks(&mut self, samples: &[JobSample]) {
        if self.agent.accounts.values().all(|account| account.armed.is_none()) {
            self.looked.clear();
            return;
        }
        let read = samples.iter().filter(|sample| sample.cpu_ns.seen().is_some() || sample.cpu_ns == Reading::Missing(Missing::NotYet));
        self.looked.extend(read.map(|sample| (sample.attempt, sample.at)));
        self.looked.retain(|attempt, _| self.agent.jobs.get(attempt).is_some_and(Job::is_live));
    }

    /// A tail tells what came after the last look. If that one was left out, its part is missing too.
    fn catch_up(&mut self, samples: &mut [JobSample]) {
        if self.skipped.is_empty() {
            return;
        }
        for sample in samples {
            if sample.cpu_ns.seen().is_none() && sample.tail.is_none() {
                continue; // it told nothing: what was left out still is
            }
            let skipped = self.skipped.remove(&sample.attempt);
            let counted = self.agent.jobs.get(&sample.attempt).and_then(|job| job.cpu_counter_ns);
            if let (Some(tail), Some(skipped)) = (&mut sample.tail, skipped) {
                tail.cpu_ns = tail.cpu_ns.saturating_add(skipped.saturating_sub(counted.unwrap_or(0)));
            }
        }
    }

    fn tick(&mut self, now: Now, samples: Vec<JobSample>) -> Vec<Effect> {
        self.ticks += 1;
        self.agent.jobs.fetch();
        if BEHIND_MAX < self.agent.seq.0 - self.durable.0 || self.journal == JournalState::Full {
            // The disk is behind: only what is near its edge or has changed its state is counted now, the rest at the next tick that is.
            let counts = |sample: &JobSample| {
                let job = self.agent.jobs.get(&sample.attempt);
                let account = job.and_then(|job| self.agent.accounts.get(&job.account));
                account.is_some_and(|account| account.armed.is_some()) || job.is_some_and(|job| draft::is_news(job, sample))
            };
            let (near, far): (Vec<JobSample>, Vec<JobSample>) =
                samples.into_iter().partition(|sample| sample.tail.is_some() || counts(sample));
            self.skipped.extend(far.iter().filter_map(|sample| Some((sample.attempt, *sample.cpu_ns.seen()?))));
            return self.looked(now, near);
        }
        self.looked(now, samples)
    }

    fn start(&mut self, now: Now, start: PendingStart) -> Vec<Effect> {
        let refuse = |code: &str, message: &str, hint: &str| Reply::Refused(super::agent::start::Refusal::new(code, message, hint));
        if self.journal == JournalState::Full {
            let reply = refuse("journal_full", "the journal's disk takes nothing", "free space on the disk of state_dir");
            return self.draft(now, |_, replies| replies.push((start.caller, reply)));
        }
        if STARTS_MAX <= self.starts.len() {
            let reply = refuse("busy", "too many starts are waiting", "try again in a second");
            return self.draft(now, |_, replies| replies.push((start.caller, reply)));
        }
        let mut waiting = Some(start);
        let mut effects = self.draft(now, |draft, replies| {
            let Some(start) = &waiting else { return };
            if let Some(reply) = draft.start(start) {
                replies.push((start.caller, reply));
                waiting = None;
            }
        });
        if let Some(start) = waiting {
            self.starts.push(start);
            effects.extend(self.draft(now, |_, _| ()));
        }
        effects
    }

    fn answered(&mut self, now: Now, answer: &Answer, fresh_epoch: Epoch) -> Vec<Effect> {
        let epoch = self.agent.epoch;
        let mut accepted = false;
        let asked: Vec<u64> =
            self.starts.iter().filter(|start| start.asked.is_some_and(|asked| asked <= answer.request)).map(|start| start.caller).collect();
        let mut effects = self.draft(now, |draft, _| {
            draft.answered(answer, fresh_epoch);
            accepted = draft.facts().iter().any(|(_, fact)| matches!(fact, Fact::Answered { .. }));
        });
        if accepted {
            self.balances.extend(answer.balances.iter().map(|balance| (balance.account.clone(), balance.clone())));
        }
        // In a new epoch everything is asked anew.
        if accepted && self.agent.epoch == epoch {
            let (ready, waiting): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.starts).into_iter().partition(|start| asked.contains(&start.caller));
            self.starts = waiting;
            effects.extend(self.admit(now, &ready, AskedInVain::No));
        }
        effects
    }

    fn is_starting(&self, name: &JobName) -> bool {
        self.starts.iter().any(|start| start.wanted.name == *name)
    }

    /// Stops whose starts are decided now: in the order in which both were called.
    fn stop_decided(&mut self, now: Now) -> Vec<Effect> {
        if self.stops.is_empty() {
            return Vec::new();
        }
        let (waiting, due): (Vec<_>, Vec<_>) = std::mem::take(&mut self.stops).into_iter().partition(|stop| self.is_starting(&stop.name));
        self.stops = waiting;
        if due.is_empty() {
            return Vec::new();
        }
        self.draft(now, |draft, replies| {
            replies.extend(due.into_iter().map(|stop| (stop.caller, draft.stop(&stop.name, stop.ending, None))));
        })
    }

    fn admit(&mut self, now: Now, starts: &[PendingStart], asked_in_vain: AskedInVain) -> Vec<Effect> {
        if starts.is_empty() {
            return Vec::new();
        }
        self.draft(now, |draft, replies| {
            for start in starts {
                let reply = draft.admit(start, asked_in_vain);
                replies.push((start.caller, reply));
            }
        })
    }

    /// Makes facts, and lets out what the disk allows.
    fn draft(&mut self, now: Now, work: impl FnOnce(&mut Draft<'_>, &mut Vec<(u64, Reply)>)) -> Vec<Effect> {
        self.draft_asking(now, Asking::ToConsider, work)
    }

    fn draft_asking(&mut self, now: Now, asking: Asking, work: impl FnOnce(&mut Draft<'_>, &mut Vec<(u64, Reply)>)) -> Vec<Effect> {
        let first = Seq(self.agent.seq.0 + 1);
        let mut replies = Vec::new();
        let mut draft = Draft::new(&mut self.agent, &self.settings, now, &self.doubts);
        work(&mut draft, &mut replies);
        if draft.facts().iter().any(|(_, fact)| matches!(fact, Fact::Pushed { .. } | Fact::EpochOpened { .. } | Fact::GangDry { .. })) {
            self.starts.iter_mut().for_each(|start| start.asked = None); // their question is void
        }
        if asking == Asking::ToConsider || !self.starts.is_empty() {
            draft.ask(&self.starts);
        }
        let (facts, receipts) = draft.finish();
        if asking == Asking::ToConsider {
            let spaced = ASK_SPACING <= now.boot.since(self.agent.asked_at);
            self.considered = spaced.then_some((self.agent.seq, now.mono));
        }
        let opened = |(seq, fact): &(Seq, Fact)| match fact {
            Fact::JobOpened(opened) => Some((opened.attempt, *seq)),
            _ => None,
        };
        self.opened.extend(facts.iter().filter_map(opened));
        let closed = |(seq, fact): &(Seq, Fact)| if let Fact::JobClosed { attempt, .. } = fact { Some((*attempt, *seq)) } else { None };
        self.closed.extend(facts.iter().filter_map(closed));
        for start in self.starts.iter_mut().filter(|start| start.asked.is_none()) {
            let asked = |fact: &Fact| match fact {
                Fact::Asked { request, .. } if request.entries.iter().any(|entry| entry.account == start.wanted.account) => {
                    Some(request.request)
                }
                _ => None,
            };
            start.asked = facts.iter().find_map(|(_, fact)| asked(fact));
        }
        // A refusal tells of nothing that the disk must have first.
        let behind = |reply: &Reply| if matches!(reply, Reply::Refused(_)) { Seq(0) } else { self.agent.seq };
        self.replies.extend(replies.into_iter().map(|(caller, reply)| (behind(&reply), caller, reply)));
        let mut effects = self.orders(now);
        effects.extend(watched(&facts));
        effects.extend(self.released(&facts));
        effects.extend(facts.iter().filter(|(_, fact)| is_noteworthy(fact)).map(|(_, fact)| Effect::Log(fact.clone())));
        if !facts.is_empty() {
            effects.push(Effect::Commit(self.batch(first, &facts, receipts, now)));
        }
        effects.extend(self.sends(now));
        let (ready, held): (Vec<_>, Vec<_>) = std::mem::take(&mut self.replies).into_iter().partition(|(seq, _, _)| *seq <= self.durable);
        self.replies = held;
        effects.extend(ready.into_iter().map(|(_, caller, reply)| Effect::Reply(caller, reply)));
        let (late, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.starts).into_iter().partition(|start| overdue(start, now.mono));
        self.starts = waiting;
        effects.extend(self.admit(now, &late, AskedInVain::Yes));
        effects
    }

    /// What was done is wanted no more, or it is news: but for a kill, after which the job is there until its last task has gone.
    fn done_once(&mut self, attempt: Attempt, act: Act) {
        match self.wanted.get_mut(&(attempt, act)) {
            Some(wanted) if act == Act::Kill => {
                wanted.again = wanted.after_kill;
                wanted.after_kill = Nanos(wanted.after_kill.0.saturating_mul(2)).min(KILL_AGAIN_MAX);
            }
            _ => {
                self.wanted.remove(&(attempt, act));
            }
        }
    }

    /// The orders that may go out now: those whose facts are durable, and freezes of durably armed accounts at once.
    fn orders(&mut self, now: Now) -> Vec<Effect> {
        let wants = self.agent.wants(&self.settings, now);
        let seq = self.agent.seq;
        if !self.wanted.is_empty() {
            let still: BTreeSet<(Attempt, Act)> = wants.iter().map(|order| (order.attempt, order.act)).collect();
            self.wanted.retain(|pair, _| still.contains(pair));
        }
        let mut out = Vec::new();
        for order in wants {
            // A job that the disk does not know yet would stand still for ever if we died now.
            let known = !self.opened.contains_key(&order.attempt);
            let urgent = known && order.act == Act::Freeze && (self.is_armed_durably(order.attempt) || self.journal == JournalState::Full);
            let wanted = self.wanted.entry((order.attempt, order.act)).or_insert_with(|| Wanted::since(seq));
            let allowed = urgent || wanted.since <= self.durable;
            let again = wanted.ordered.is_none_or(|at| wanted.again <= now.mono.since(at));
            if allowed && again {
                (wanted.ordered, wanted.again) = (Some(now.mono), ORDER_AGAIN);
                if order.act == Act::Freeze {
                    self.doubts.freezing.insert(order.attempt, now.mono);
                }
                out.push(Effect::Act(order));
            }
        }
        out
    }

    /// Jobs that a fact has freed of our freeze, and no freeze of which is under way.
    fn released(&self, facts: &[(Seq, Fact)]) -> Vec<Effect> {
        let freed = |fact: &Fact| match fact {
            Fact::FrozenBySet { attempt, by: None } | Fact::JobEnded { attempt, .. } => Some(*attempt),
            Fact::HandsActed { acted, .. } => match (acted.act, &acted.outcome) {
                (Act::Thaw | Act::Terminate | Act::Kill, ActOutcome::Confirmed)
                | (Act::Freeze, ActOutcome::Gone | ActOutcome::Refused(_)) => Some(acted.attempt),
                _ => None,
            },
            _ => None,
        };
        let held = |attempt: &Attempt| self.wanted.get(&(*attempt, Act::Freeze)).is_some_and(|wanted| wanted.ordered.is_some());
        facts.iter().filter_map(|(_, fact)| freed(fact)).filter(|attempt| !held(attempt)).map(Effect::Unmark).collect()
    }

    fn is_armed_durably(&self, attempt: Attempt) -> bool {
        let account = self.agent.jobs.get(&attempt).and_then(|job| self.agent.accounts.get(&job.account));
        account.and_then(|account| account.armed).is_some_and(|seq| seq <= self.durable)
    }

    /// The outstanding question, once it is durable and whenever it is to be repeated.
    fn sends(&mut self, now: Now) -> Option<Effect> {
        let outstanding = self.agent.outstanding.as_ref().filter(|outstanding| outstanding.seq <= self.durable)?;
        let request = outstanding.request.request;
        let again = match self.sent.filter(|sent| sent.request == request) {
            None => SEND_AGAIN,
            Some(sent) if sent.again <= now.mono.since(sent.at) => Nanos(sent.again.0.saturating_mul(2)).min(SEND_AGAIN_MAX),
            Some(_) => return None,
        };
        self.sent = Some(Sent { request, at: now.mono, again });
        Some(Effect::Send(Request { refunds: self.agent.refunds_to_tell(), ..outstanding.request.clone() }))
    }

    fn batch(&mut self, first: Seq, facts: &[(Seq, Fact)], receipts: Vec<ReceiptRow>, now: Now) -> Batch {
        let rows = facts.iter().map(|(_, fact)| Row { wall: now.wall, bytes: fact.encode() }).collect();
        let due = CHECKPOINT_TICKS <= self.ticks || REPLAY_MAX <= self.agent.seq.0 - self.checkpointed.0;
        if due {
            (self.ticks, self.checkpointed) = (0, self.agent.seq);
        }
        Batch { first_seq: first.0, rows, receipts, checkpoint: due.then(|| self.agent.encode()) }
    }
}

/// Worth a line in the log: not the counting, and not the questions and answers of every few seconds.
fn is_noteworthy(fact: &Fact) -> bool {
    let is_correction = |event: &StepEvent| matches!(event, StepEvent::Corrected(_) | StepEvent::FrozenByOther | StepEvent::FoundThawed);
    if let Fact::Stepped { event, .. } = fact {
        return is_correction(event);
    }
    !matches!(
        fact,
        Fact::Counted { .. }
            | Fact::Asked { .. }
            | Fact::AskedRest { .. }
            | Fact::GangsSaid { .. }
            | Fact::Answered { .. }
            | Fact::AnsweredRest { .. }
            | Fact::Settled { .. }
            | Fact::Disarmed { .. }
    )
}

fn watched(facts: &[(Seq, Fact)]) -> impl Iterator<Item = Effect> + '_ {
    facts.iter().filter_map(|(_, fact)| match fact {
        Fact::JobOpened(opened) => Some(Effect::Watch(opened.attempt)),
        Fact::JobEnded { attempt, .. } => Some(Effect::Forget(*attempt)),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
