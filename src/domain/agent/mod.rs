//! The agent's state: a pure function of its facts. [`Agent::apply`] is the only thing that changes it.
//!
//! What happens is turned into facts by [`draft`] (which applies each one as it is made, so that the next one is made from what is
//! then true); what should be done about it is told by [`wants`], from the state alone.

mod anon;
mod bids;
pub mod credit;
pub mod draft;
pub mod ending;
mod further;
pub mod gang;
mod metered;
mod nesting;
mod outlook;
mod refund;
pub mod restraint;
mod salvage;
mod segments;
pub mod standing;
pub mod start;
mod surplus;
mod victims;
pub mod wants;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use self::standing::Standing;
use super::act::{Act, ActOutcome, Acted, Target};
use super::correction::{Correction, Corrections};
use super::detail::Detailed;
use super::enforcement::Enforcement;
use super::fact::{Fact, Opened, Row, Seq, SettledRow};
use super::grant::{Asked, Grant, Told};
use super::id::{AccountId, Attempt, BootId, Digest, Epoch, LineId, NodeId};
use super::job::{self, FrozenBy, Job, Jobs, Phase, Removed, Seen, Segment, Step, StepEvent};
use super::ladder::{Flaps, Ladder, Rung, Victim, Warned};
use super::meter::{Host, Populated};
use super::money::Credits;
use super::rates::Card;
use super::time::{Boot, Mono, Nanos, Now, Wall};
use super::usage::Meter;
use super::wire::{AnswerEntry, PreviousEpoch, Request, RequestEntry, UNIT};
use refund::RefundPart;
pub use refund::Refunds;

/// Closed jobs that are kept at hand for `status` and `why`; older ones are in the journal's receipts.
const CLOSED_KEPT: usize = 128;

/// Most stops of accounts kept, to count those of a window of time.
const RUNGS_MAX: usize = 1_024;

/// Most charge marks kept for the measured burn: one a second, so ten seconds.
const MARKS_MAX: usize = 11;

/// What the node is told by its configuration, and does not change by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Who we are.
    pub node: NodeId,
    /// This boot.
    pub boot: BootId,
    /// The configured mode; one set at run time stands above it.
    pub enforcement: Enforcement,
    /// Between two samples of all jobs.
    pub interval: Nanos,
    /// The machine.
    pub host: Host,
    /// Whom never to stop, how many at once, how to warn.
    pub ladder: Ladder,
    /// Whose machine it is, for receipts.
    pub provider: Option<LineId>,
    /// When this process began: set by [`super::turn::Turn::wake`].
    pub woke_at: Boot,
}

/// One account on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// What it may spend here.
    pub grant: Grant,
    /// Near its edge since this fact: a freeze may come before it is written down.
    pub armed: Option<Seq>,
    /// Nothing in hand since.
    pub empty_since: Option<Mono>,
    /// Its last warning, while it holds.
    pub warned: Option<Warned>,
    /// How often it ran empty again right after it was funded.
    pub flaps: Flaps,
    /// The furthest that may be done to its jobs since it ran empty, where the number of accounts is limited.
    pub allowed: Option<Rung>,
    /// When a job of it was last stopped or let go for others' sake.
    pub victims_at: Option<Mono>,
    /// Charged on this node in all epochs.
    pub charged: Credits,
    /// `charged` at some instants of the last seconds, for the measured burn.
    pub marks: VecDeque<(Mono, Credits)>,
    /// Its jobs that are not closed.
    pub jobs: BTreeSet<Attempt>,
}

/// The question that waits for its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outstanding {
    /// Word for word.
    pub request: Request,
    /// From when its answer's validity counts.
    pub first_sent: Boot,
    /// Sent only once this is durable.
    pub seq: Seq,
}

/// Everything that the agent knows and must not forget.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// The last fact applied.
    pub seq: Seq,
    /// This spending life and its boot; none before the first.
    pub epoch: Option<(Epoch, BootId)>,
    /// The last words of earlier epochs that the authority has not acknowledged.
    pub previous: Vec<PreviousEpoch>,
    /// The last number given to a question.
    pub asked: u64,
    /// When it was asked.
    pub asked_at: Boot,
    /// The question that waits.
    pub outstanding: Option<Outstanding>,
    /// Accounts with jobs here, now or in this epoch.
    pub accounts: BTreeMap<AccountId, Account>,
    /// Jobs that are not closed.
    pub jobs: Jobs,
    /// The last ones that are.
    pub closed: VecDeque<Job>,
    /// The last number given to an attempt.
    pub attempts: u64,
    /// The card in force.
    pub card: Option<Digest>,
    /// That card, and those that jobs at hand were priced by.
    pub cards: BTreeMap<Digest, Card>,
    /// The mode set at run time.
    pub enforcement: Option<Enforcement>,
    /// Jobs at hand that do not simply run with tasks: of all others nothing is wanted but for their account's sake.
    pub restless: BTreeSet<Attempt>,
    /// Cgroups with tasks in which no job is metered, and since when.
    pub unmetered: BTreeMap<String, Wall>,
    /// What was not as believed, counted.
    pub corrections: Corrections,
    /// Which accounts' jobs could be stopped lately, and how far.
    pub rungs: VecDeque<(Mono, Rung, AccountId)>,
    /// How it stands with the authority beside the amounts. In the checkpoint it stands behind what was there before it.
    #[serde(skip)]
    pub standing: Standing,
    /// Jobs that are parts of gangs.
    #[serde(skip)]
    pub gangs: gang::Parts,
    /// What was given back by outcome. In a checkpoint it stands behind the rest.
    #[serde(skip)]
    pub refunds: Refunds,
}

impl Agent {
    /// The mode in force.
    #[must_use]
    pub fn mode(&self, settings: &Settings) -> Enforcement {
        self.enforcement.unwrap_or(settings.enforcement)
    }

    /// The card in force.
    #[must_use]
    pub fn card_in_force(&self) -> Option<&Card> {
        self.card.as_ref().and_then(|digest| self.cards.get(digest))
    }

    /// The jobs of one account that are not closed.
    pub fn jobs_of<'a>(&'a self, account: &AccountId) -> impl Iterator<Item = &'a Job> + use<'a> {
        let attempts = self.accounts.get(account).map(|account| account.jobs.iter());
        attempts.into_iter().flatten().filter_map(|attempt| self.jobs.get(attempt))
    }

    /// The last attempt of that name, closed ones at hand included.
    #[must_use]
    pub fn job_named(&self, name: &str) -> Option<&Job> {
        let open = self.jobs.values().rev().find(|job| job.name.as_str() == name);
        open.or_else(|| self.closed.iter().rev().find(|job| job.name.as_str() == name))
    }

    /// The state as bytes, for a checkpoint.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let core = postcard::to_extend(self, vec![5]);
        let further = core.and_then(|bytes| postcard::to_extend(&further::of(self), bytes));
        let standing = further.and_then(|bytes| postcard::to_extend(&standing::of(self), bytes));
        let gangs = standing.and_then(|bytes| postcard::to_extend(&further::of_gangs(self), bytes));
        let refunds = gangs.and_then(|bytes| postcard::to_extend(&RefundPart::of(self), bytes));
        refunds.and_then(|bytes| postcard::to_extend(&standing::words_of(self), bytes)).unwrap_or_default()
    }

    /// The state that a checkpoint holds; `None` if it is of another version or broken (then every fact is replayed).
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Agent> {
        match bytes.split_first() {
            // Before, nothing stood behind it.
            Some((2, body)) => postcard::from_bytes(body).ok(),
            Some((version @ 3..=5, body)) => {
                let (mut agent, rest) = postcard::take_from_bytes::<Agent>(body).ok()?;
                let (parts, rest) = postcard::take_from_bytes(rest).ok()?;
                further::put_back(&mut agent, parts);
                if *version == 3 {
                    return rest.is_empty().then_some(agent);
                }
                // Since nodes prove what they were granted, jobs are parts of gangs, and outcomes give back.
                let (standing, rest) = postcard::take_from_bytes(rest).ok()?;
                standing::put_back(&mut agent, standing);
                let (gangs, rest) = postcard::take_from_bytes(rest).ok()?;
                further::put_back_gangs(&mut agent, gangs);
                let (refunds, rest) = postcard::take_from_bytes::<RefundPart>(rest).ok()?;
                refunds.put_back(&mut agent);
                if *version == 5 {
                    standing::put_back_words(&mut agent, postcard::from_bytes(rest).ok()?);
                }
                Some(agent)
            }
            _ => None,
        }
    }

    /// Takes one fact. Applying a fact that was applied before changes nothing but the place counted.
    pub fn apply(&mut self, fact: &Fact) {
        self.seq = Seq(self.seq.0 + 1);
        match fact {
            Fact::EpochOpened { epoch, boot, at: _ } => self.open_epoch(*epoch, *boot),
            Fact::CardAdopted { card, at } => self.adopt(card, *at),
            Fact::EnforcementSet { mode, by: _ } => self.enforcement = Some(*mode),
            Fact::JobOpened(opened) => self.open(opened),
            Fact::Counted { wall, rows } => self.count_all(rows, *wall),
            Fact::GapSeen { attempt, gap } => self.with_job(*attempt, |job| job.note_gap(gap.clone())),
            Fact::Settled { rows } => rows.iter().for_each(|row| self.settle(row)),
            Fact::Stepped { attempt, at, wall, event } => {
                self.corrections.count_step(event);
                let step = Step { wall: *wall, at: *at, event: event.clone() };
                self.with_job(*attempt, |job| {
                    if let StepEvent::WouldAct(act) = &step.event {
                        job.would = Some(*act);
                    }
                    job.note_step(step);
                });
            }
            Fact::Armed { account, .. } => self.account(account).armed = Some(self.seq),
            Fact::Disarmed { account } => self.account(account).armed = None,
            Fact::EmptySet { account, since, at } => self.set_empty(account, *since, *at),
            Fact::WarnedSet { account, warned } => self.account(account).warned = *warned,
            Fact::Asked { request, first_sent } => {
                self.asked = request.request;
                self.asked_at = *first_sent;
                request.entries.iter().for_each(|entry| self.account(&entry.account).grant.asked());
                self.standing.asked(request);
                self.refunds_asked();
                self.outstanding = Some(Outstanding { request: (**request).clone(), first_sent: *first_sent, seq: self.seq });
            }
            Fact::Answered { request, acknowledged, entries, at } => self.take_answer(*request, acknowledged, entries, *at),
            Fact::Pushed { account, version } => {
                self.account(account).grant.pushed(*version);
                if !self.standing.is_full() {
                    self.outstanding = None; // written before the change: worthless now
                }
            }
            Fact::Returned { account, returned } => {
                let grant = &mut self.account(account).grant;
                grant.returned = grant.returned.max(*returned);
            }
            Fact::HandsActed { acted, wall } => self.take_acted(acted, *wall),
            Fact::FrozenBySet { attempt, by } => self.with_job(*attempt, |job| job.frozen_by = *by),
            Fact::StopReported { attempt, ending } => self.with_job(*attempt, |job| job.reported = Some(*ending)),
            Fact::JobEnded { attempt, at, ending, basis } => {
                self.leave_nest(*attempt);
                self.with_job(*attempt, |job| {
                    job.ended = Some(*at);
                    job.ending = Some(*ending);
                    job.basis = Some(*basis);
                    job.phase = Phase::Ended;
                });
            }

            Fact::JobClosed { attempt } => self.close(*attempt),
            Fact::Detailed { rows } => rows.iter().for_each(|(attempt, detailed)| self.take_detail(*attempt, detailed)),
            Fact::Corrected { correction, wall } => self.correct(correction, *wall),
            Fact::RungAllowed { account, rung, at } => self.allow(account, *rung, *at),
            Fact::RungsConfirmed { by: _ } => self.rungs.clear(),
            Fact::VictimSet { attempt, victim, at } => self.set_victim(*attempt, *victim, *at),
            Fact::ChargedAtEnd { attempt, costs, drawn } => self.charge_at_end(*attempt, costs, *drawn),
            Fact::JobStated { attempt, storage_bytes, offer } => self.with_job(*attempt, |job| {
                let further = job.further.get_or_insert_default();
                (further.storage_bytes, further.offer) = (*storage_bytes, *offer);
            }),
            Fact::JobChanged { attempt, terms, at, by: _ } => self.change_terms(*attempt, terms, at.wall),
            Fact::SegmentsOpened { attempts, at } => attempts.iter().for_each(|attempt| self.with_job(*attempt, |job| job.split(at.wall))),
            Fact::Metered { rows } => rows.iter().for_each(|row| self.take_metered(row)),
            Fact::Reported { attempt, report, wall: _ } => self.with_job(*attempt, |job| job.take_report(report)),
            Fact::AskedRest { rest } => self.take_rest(rest),
            Fact::AnsweredRest { generation, proofs } => self.take_proofs(*generation, proofs),
            Fact::GangJoined { attempt, gang } => self.join(*attempt, gang),
            Fact::GangDry { attempt, needs } => self.set_dry(*attempt, *needs),
            Fact::GangHeard { attempt, want, version, dry, needs } => self.hear(*attempt, (*want, *version), dry.as_ref(), *needs),
            Fact::GangsSaid { request, words } => self.say(*request, words),
            Fact::AccountTold { .. } => {}
            Fact::Refunded { attempt, segments, waived, given } => self.take_refund(*attempt, segments, *waived, given),
        }
    }

    fn correct(&mut self, correction: &Correction, wall: Wall) {
        self.corrections.count(correction);
        match correction {
            Correction::MissedStart { place } => drop(self.unmetered.insert(place.clone(), wall)),
            Correction::MissedStartOver { place } => drop(self.unmetered.remove(place)),
            Correction::MissedStop | Correction::CgroupReplaced => {}
        }
    }

    fn account(&mut self, id: &AccountId) -> &mut Account {
        self.accounts.entry(id.clone()).or_default()
    }

    fn with_job(&mut self, attempt: Attempt, change: impl FnOnce(&mut Job)) {
        if let Some(job) = self.jobs.get_mut(&attempt) {
            change(job);
            note_unrest(&mut self.restless, job);
        } else if let Some(job) = self.closed.iter_mut().find(|job| job.attempt == attempt) {
            change(job);
        }
    }

    fn take_detail(&mut self, attempt: Attempt, detailed: &Detailed) {
        self.with_job(attempt, |job| {
            let detail = match &job.detail {
                Some(before) => detailed.detail.clone().or_before(&before.detail),
                None => detailed.detail.clone(),
            };
            job.detail = Some(Box::new(Detailed { at: detailed.at, detail }));
        });
    }

    fn open_epoch(&mut self, epoch: Epoch, boot: BootId) {
        if let Some((last, _)) = self.epoch {
            self.note_drawn_in(last);
            let entries: Vec<RequestEntry> = self
                .accounts
                .iter()
                .filter(|(_, account)| account.grant.has_a_last_word())
                .map(|(id, account)| final_entry(id, &account.grant))
                .collect();
            if !entries.is_empty() {
                self.previous.push(PreviousEpoch { epoch: last, entries });
            }
        }
        for account in self.accounts.values_mut() {
            let policy = account.grant.policy;
            account.grant = Grant { policy, ..Grant::default() };
            account.armed = None;
            account.empty_since = None;
            account.warned = None;
            account.marks.clear();
            (account.flaps, account.allowed, account.victims_at) = (Flaps::default(), None, None);
        }
        if self.epoch.is_none_or(|(_, last)| last != boot) {
            self.rungs.clear(); // their instants mean nothing in this boot
        }
        self.epoch = Some((epoch, boot));
        self.asked = 0;
        self.asked_at = Boot(0); // the last one may be of another boot, whose instants mean nothing in this one
        self.outstanding = None;
        self.standing.begin();
        self.say_anew();
    }

    /// Once there is credit again, what was begun against the account's jobs is over.
    fn set_empty(&mut self, id: &AccountId, since: Option<Mono>, at: Mono) {
        let account = self.account(id);
        account.empty_since = since;
        if since.is_some() {
            account.flaps.emptied(at);
            return;
        }
        account.flaps.funded(at);
        account.allowed = None;
        account.marks.clear(); // time in which its jobs stood still says nothing of what they use
        let attempts: Vec<Attempt> = self.jobs_of(id).map(|job| job.attempt).collect();
        for attempt in attempts {
            self.with_job(attempt, |job| (job.terminated_at, job.would) = (None, None));
        }
    }

    fn allow(&mut self, id: &AccountId, rung: Rung, at: Mono) {
        let account = self.account(id);
        account.allowed = account.allowed.max(Some(rung));
        self.rungs.push_back((at, rung, id.clone()));
        while RUNGS_MAX < self.rungs.len() {
            self.rungs.pop_front();
        }
    }

    fn set_victim(&mut self, attempt: Attempt, victim: Option<Victim>, at: Mono) {
        self.with_job(attempt, |job| job.victim = victim);
        if let Some(account) = self.jobs.get(&attempt).and_then(|job| self.accounts.get_mut(&job.account)) {
            account.victims_at = Some(at);
        }
    }

    fn adopt(&mut self, card: &Card, at: Now) {
        self.cards.insert(card.digest, card.clone());
        let changed = self.card.replace(card.digest) != Some(card.digest);
        if changed {
            for job in self.jobs.values_mut().filter(|job| job.is_live()) {
                let priced = job.segments.last().and_then(|segment| self.cards.get(&segment.card)).is_some_and(prices_anon);
                if let (Some(mark), false, true) = (&mut job.memory_anon, priced, prices_anon(card)) {
                    mark.ran_ns = job.segments.iter().map(|segment| segment.usage.wall_ns).sum(); // what was before had no price
                }
                job.forget_marks(card);
                job.open_segment(card.digest, at.wall);
            }
        }
        self.forget_cards();
    }

    fn open(&mut self, opened: &Opened) {
        self.attempts = self.attempts.max(opened.attempt.0);
        let mut usage = job::empty_usage(&opened.gpus);
        usage.job_starts = 1;
        let segment = Segment {
            card: opened.card,
            from: opened.at.wall,
            to: opened.at.wall,
            usage,
            cost: opened.charge,
            pending: opened.pending,
            terms: None,
        };
        let awaited = matches!(opened.target, Target::SlurmJob(_)) && opened.cpu_counter_ns.is_none();
        let job = Job {
            attempt: opened.attempt,
            name: opened.name.clone(),
            account: opened.account.clone(),
            owner: opened.owner,
            target: opened.target.clone(),
            gpus: opened.gpus.clone(),
            time_limit: opened.time_limit,
            cpus: opened.cpus,
            memory_bytes: opened.memory_bytes,
            boot: self.epoch.map_or(BootId([0; 16]), |(_, boot)| boot),
            opened: opened.at,
            phase: if awaited { Phase::Awaited } else { Phase::Running },
            frozen_by: None,
            // The process was there when it was named.
            seen_populated: if matches!(opened.target, Target::Processes(_)) { Seen::Yes } else { Seen::No },
            emptied: None,
            reported: None,
            counted_to: opened.at.mono,
            cpu_counter_ns: opened.cpu_counter_ns,
            counter_moved: opened.at.mono,
            memory_level_bytes: opened.memory_level_bytes,
            segments: vec![segment],
            charge: opened.charge,
            drawn: opened.drawn,
            unfunded: Credits::ZERO,
            gaps: Vec::new(),
            steps: Vec::new(),
            notes_dropped: 0,
            ending: None,
            ended: None,
            terminated_at: None,
            removed: if matches!(opened.target, Target::OwnCgroups(_)) { Removed::No } else { Removed::Yes },
            memory_anon: None,
            detail: None,
            oom_kills_before: match opened.target {
                // Made for it, or by its scheduler after this: what is counted there is its own.
                Target::OwnCgroups(_) | Target::SlurmJob(_) => Some(opened.oom_kills.unwrap_or(0)),
                Target::Cgroups(_) | Target::Processes(_) => opened.oom_kills,
            },
            basis: None,
            inside: None,
            inner_ns: 0,
            policy: opened.policy,
            warned_at: None,
            victim: None,
            would: None,
            traits: opened.traits.clone(),
            further: None,
            refund: None,
        };
        let account = self.account(&opened.account);
        account.grant.spent = account.grant.spent.plus(opened.drawn);
        account.charged = account.charged.plus(opened.charge);
        account.jobs.insert(opened.attempt);
        note_unrest(&mut self.restless, &job);
        self.jobs.insert(opened.attempt, job);
        self.nest(opened.attempt);
    }

    fn count_all(&mut self, rows: &[Row], wall: Wall) {
        let mut run = Run::default();
        for row in rows {
            self.count(row, wall, &mut run);
        }
        run.post(&mut self.accounts);
    }

    fn count(&mut self, row: &Row, wall: Wall, run: &mut Run) {
        let Some(job) = self.jobs.get_mut(&row.attempt) else { return };
        let before = job.charge;
        let grew = job.segments.last().map_or(0, |segment| row.cpu_ns.saturating_sub(segment.usage.cpu_ns));
        let closed: Credits = job.segments.iter().rev().skip(1).map(|segment| segment.cost).sum();
        if let Some(segment) = job.segments.last_mut() {
            segment.to = wall;
            segment.cost = row.cost;
            segment.pending = row.pending;
            segment.usage.cpu_ns = row.cpu_ns;
            segment.usage.memory_byte_ns = row.memory_byte_ns;
            segment.usage.wall_ns = row.running_ns;
            segment.usage.frozen_ns = row.frozen_ns;
            segment.usage.paused_ns = row.paused_ns;
            segment.usage.memory_anon_byte_ns = row.memory_anon_byte_ns;
            segment.usage.gpu_held_ns.values_mut().for_each(|held| *held = row.running_ns);
        }
        job.charge = closed.plus(row.cost);
        job.counted_to = job.counted_to.max(row.at);
        job.phase = row.phase;
        if job.cpu_counter_ns != row.cpu_counter_ns {
            job.counter_moved = row.at;
        }
        job.cpu_counter_ns = row.cpu_counter_ns;
        job.memory_level_bytes = row.memory_level_bytes;
        job.memory_anon = row.memory_anon;
        job.inner_ns = row.inner_ns;
        if 0 < row.cpu_ns {
            job.seen_populated = Seen::Yes; // it had tasks, though no look met one
        }
        match row.populated {
            Some(Populated::Yes) => {
                job.seen_populated = Seen::Yes;
                job.emptied = None;
            }
            Some(Populated::No) if job.emptied.is_none() && job.seen_populated == Seen::Yes => job.emptied = Some((row.at, wall)),
            _ => {}
        }
        note_unrest(&mut self.restless, job);
        let drawn = row.drawn.minus(job.drawn);
        job.drawn = row.drawn;
        let charged = job.charge.minus(before);
        if run.account.as_ref() != Some(&job.account) {
            run.post(&mut self.accounts);
            run.account = Some(job.account.clone());
        }
        run.drawn = run.drawn.plus(drawn);
        run.charged = run.charged.plus(charged);
        run.at = row.at;
        self.relieve_outer(row.attempt, u64::try_from(grew).unwrap_or(u64::MAX));
    }

    fn settle(&mut self, row: &SettledRow) {
        let Some(job) = self.jobs.get_mut(&row.attempt) else { return };
        let drawn = row.drawn.minus(job.drawn);
        let unfunded = row.unfunded.minus(job.unfunded);
        job.drawn = row.drawn;
        job.unfunded = row.unfunded;
        let Some(account) = self.accounts.get_mut(&job.account) else { return };
        let grant = &mut account.grant;
        grant.spent = grant.spent.plus(drawn);
        grant.unfunded = grant.unfunded.plus(unfunded);
    }

    fn charge_at_end(&mut self, attempt: Attempt, costs: &[Credits], drawn: Credits) {
        let Some(job) = self.jobs.get_mut(&attempt) else { return };
        for (segment, cost) in job.segments.iter_mut().zip(costs) {
            (segment.cost, segment.pending) = (*cost, Credits::ZERO);
        }
        let before = (job.charge, job.drawn);
        job.charge = job.segments.iter().map(|segment| segment.cost).sum();
        job.drawn = drawn;
        let Some(account) = self.accounts.get_mut(&job.account) else { return };
        account.charged = account.charged.plus(job.charge.minus(before.0));
        account.grant.spent = account.grant.spent.plus(drawn.minus(before.1));
    }

    fn take_answer(&mut self, request: u64, acknowledged: &[Epoch], entries: &[AnswerEntry], at: Now) {
        let Some(outstanding) = self.outstanding.take() else { return };
        self.standing.answered(&outstanding.request);
        outstanding.request.entries.iter().for_each(|entry| self.account(&entry.account).grant.asked = Asked::No);
        self.previous.retain(|previous| !acknowledged.contains(&previous.epoch));
        self.note_told(&outstanding.request);
        self.refunds_told();
        for entry in entries {
            let asked = outstanding.request.entries.iter().find(|asked| asked.account == entry.account);
            let told =
                asked.map_or(Told::default(), |asked| Told { spent: asked.spent, returned: asked.returned, unfunded: asked.unfunded });
            self.account(&entry.account).grant.take(entry, told, request, outstanding.first_sent, at);
        }
    }

    fn take_acted(&mut self, acted: &Acted, wall: Wall) {
        self.with_job(acted.attempt, |job| {
            job.note_step(Step { wall, at: acted.done_at, event: StepEvent::Acted(acted.clone()) });
            match (acted.act, &acted.outcome) {
                // One that failed may have taken hold of some of the job's directories.
                (Act::Freeze, ActOutcome::Confirmed | ActOutcome::Unconfirmed | ActOutcome::Failed(_)) => {
                    job.frozen_by = Some(FrozenBy::Agent);
                }
                (Act::Thaw | Act::Terminate, ActOutcome::Confirmed) => job.frozen_by = None,
                (Act::Remove, ActOutcome::Confirmed | ActOutcome::Gone | ActOutcome::Refused(_)) => job.removed = Removed::Yes,
                _ => {}
            }
            if acted.act == Act::Warn {
                job.warned_at = Some(acted.asked_at); // whatever came of it: it is not repeated
            }
            if acted.act == Act::Terminate && acted.outcome == ActOutcome::Confirmed && job.terminated_at.is_none() {
                job.terminated_at = Some(acted.asked_at);
            }
        });
    }

    fn close(&mut self, attempt: Attempt) {
        if let Some(job) = self.jobs.remove(&attempt) {
            self.restless.remove(&attempt);
            if let Some(account) = self.accounts.get_mut(&job.account) {
                account.jobs.remove(&attempt);
            }
            self.closed.push_back(job);
        }
        while CLOSED_KEPT < self.closed.len() {
            self.closed.pop_front();
        }
        self.forget_parts();
        self.forget_cards();
    }

    /// Cards that no job at hand was priced by are in the receipts and the journal; they need not be carried on.
    fn forget_cards(&mut self) {
        let used = |digest: &Digest| {
            let in_job = |job: &Job| job.segments.iter().any(|segment| segment.card == *digest);
            self.card == Some(*digest) || self.jobs.values().any(in_job) || self.closed.iter().any(in_job)
        };
        let kept: Vec<Digest> = self.cards.keys().filter(|digest| used(digest)).copied().collect();
        self.cards.retain(|digest, _| kept.contains(digest));
    }
}

/// Rows of one account that follow one another: it is looked up once for all of them.
#[derive(Default)]
struct Run {
    account: Option<AccountId>,
    drawn: Credits,
    charged: Credits,
    at: Mono,
}

impl Run {
    /// Adds it to its account, and begins anew.
    fn post(&mut self, accounts: &mut BTreeMap<AccountId, Account>) {
        let run = std::mem::take(self);
        let Some(account) = run.account.and_then(|id| accounts.get_mut(&id)) else { return };
        account.grant.spent = account.grant.spent.plus(run.drawn);
        account.charged = account.charged.plus(run.charged);
        mark(account, run.at);
    }
}

fn prices_anon(card: &Card) -> bool {
    card.prices(Meter::MemoryAnon)
}

/// Keeps the set of jobs that do not simply run.
fn note_unrest(restless: &mut BTreeSet<Attempt>, job: &Job) {
    let simply_runs = job.is_live() && job.phase == Phase::Running && job.emptied.is_none() && job.victim.is_none();
    if !simply_runs {
        restless.insert(job.attempt);
    } else if !restless.is_empty() {
        restless.remove(&job.attempt);
    }
}

/// Notes the account's charge for the measured burn, at most once a second.
fn mark(account: &mut Account, at: Mono) {
    let due = account.marks.back().is_none_or(|(last, _)| Nanos::from_millis(900) <= at.since(*last));
    if due {
        account.marks.push_back((at, account.charged));
        while MARKS_MAX < account.marks.len() {
            account.marks.pop_front();
        }
    }
}

/// An account's totals as its epoch's last word.
fn final_entry(id: &AccountId, grant: &Grant) -> RequestEntry {
    RequestEntry {
        account: id.clone(),
        unit: UNIT.to_owned(),
        granted_seen: grant.granted,
        returned: grant.returned,
        spent: grant.spent,
        unfunded: grant.unfunded,
        owed: Credits::ZERO,
        burn_per_s: Credits::ZERO,
        at_least: Credits::ZERO,
        validity: None,
        proof: grant.proof,
    }
}
