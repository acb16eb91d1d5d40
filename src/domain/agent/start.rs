//! How a job begins, and what the caller of `stop` is told. Every mistake has a stable code; the same call twice has the same answer.

use serde::{Deserialize, Serialize};

use super::super::act::Target;
use super::super::enforcement::Enforcement;
use super::super::fact::{Fact, MeteredRow, Opened};
use super::super::gang::{Gang, Part};
use super::super::grant;
use super::super::id::{AccountId, Attempt, JobName, Uid};
use super::super::job::{Ending, Job, Phase, StepEvent};
use super::super::ladder::JobPolicy;
use super::super::meter::{JobSample, Missing, Reading};
use super::super::money::Credits;
use super::super::outcome::{Basis, Outcome};
use super::super::rates::charge::{self, Charge};
use super::super::rates::{Card, Priced, Stated, Trait, Traits, Uncovered};
use super::super::terms::{Marks, Offer};
use super::super::time::{Mono, Nanos, Now};
use super::super::usage::{HeldGpu, Meter, More, Usage};
use super::super::wire::{OnExhaustion, StartPredicted, Unreachable, Verdict};
use super::draft::Draft;
use super::outlook::host_shape;

/// A start that waits for the authority's word longer than this is decided without it.
pub const ADMIT_WITHIN: Nanos = Nanos::from_millis(1_500);

/// What a caller wants started: checked, and looked up in the world (its place exists, its GPUs are known).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What it is called.
    pub name: JobName,
    /// Who pays.
    pub account: AccountId,
    /// Whose it is.
    pub owner: Uid,
    /// Where its tasks are.
    pub target: Target,
    /// How long it may run.
    pub time_limit: Option<Nanos>,
    /// CPUs as stated.
    pub cpus: Option<u32>,
    /// Memory as stated, in bytes.
    pub memory_bytes: Option<u64>,
    /// What is to be done with it, where that is stricter than its account's policy.
    pub policy: JobPolicy,
    /// What is stated of it, for lines that select by that.
    pub traits: Traits,
    /// Storage as stated, in bytes.
    pub storage_bytes: Option<u64>,
    /// The most that its starter pays for the start; none: whatever it costs.
    pub bid: Option<Credits>,
    /// The gang that it is a part of.
    pub gang: Option<Gang>,
}

/// A start that waits for the authority's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingStart {
    /// Whom to answer.
    pub caller: u64,
    /// What is wanted.
    pub wanted: Wanted,
    /// The devices that it is to hold.
    pub gpus: Vec<HeldGpu>,
    /// The baseline: read when the call came.
    pub sample: JobSample,
    /// When it came.
    pub at: Now,
    /// The question whose answer decides; none while it is not asked.
    pub asked: Option<u64>,
}

/// Why a call is refused, and what to do about it. The codes are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// A stable word.
    pub code: String,
    /// What is wrong, in a sentence.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

impl Refusal {
    /// A refusal.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>, hint: &str) -> Refusal {
        Refusal { code: code.to_owned(), message: message.into(), hint: hint.to_owned() }
    }
}

/// What a caller hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The job is metered, under this number.
    Started {
        /// Its number.
        attempt: Attempt,
        /// Where its tasks are.
        target: Target,
        /// New, or already known.
        novelty: Novelty,
    },
    /// The job goes on with what it is given now.
    Changed {
        /// Its number.
        attempt: Attempt,
        /// New, or already so.
        novelty: Novelty,
    },
    /// The stop is noted; the job meters on until its last task is gone.
    StopNoted {
        /// Its number.
        attempt: Attempt,
        /// Where it now is.
        phase: Phase,
    },
    /// Done.
    Done,
    /// Not done.
    Refused(Refusal),
}

/// Is the answer news?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Novelty {
    /// The job is new.
    New,
    /// The same start was asked before: the same answer.
    Repeated,
}

impl Draft<'_> {
    /// Checks a start as far as that goes without the authority. `None`: it must be asked.
    pub fn start(&mut self, start: &PendingStart) -> Option<Reply> {
        if let Some(reply) = self.repeated(start) {
            return Some(reply);
        }
        if let Reading::Missing(why) = &start.sample.cpu_ns
            && *why != Missing::NotYet
        {
            let message = format!("the CPU time of job {} cannot be read: {why}", start.wanted.name);
            return Some(Reply::Refused(Refusal::new(
                "cgroup_unreadable",
                message,
                "name a cgroup v2 directory that exists and has cpu.stat",
            )));
        }
        let Some(card) = self.agent.card_in_force() else {
            return Some(Reply::Refused(Refusal::new(
                "no_rate_card",
                "no rate card is in force",
                "set rate_card in meterd.toml and reload",
            )));
        };
        let traits = self.traits(start);
        let Err(why) = card.cover(&start.gpus, &stated(start, &traits)) else { return None };
        Some(Reply::Refused(unpriced(card, &start.gpus, &why)))
    }

    /// What is stated of it; the node's name is known.
    fn traits(&self, start: &PendingStart) -> Traits {
        let mut traits = start.wanted.traits.clone();
        if let (false, Ok(node)) = (traits.contains_key(&Trait::Node), self.settings.node.as_str().parse()) {
            traits.insert(Trait::Node, node);
        }
        traits
    }

    fn repeated(&self, start: &PendingStart) -> Option<Reply> {
        let wanted = &start.wanted;
        // A job of an older journal has the account among them.
        let stated = |traits: &Traits| traits.clone().into_iter().filter(|(which, _)| *which != Trait::Account).collect::<Traits>();
        let traits = self.traits(start);
        let same_place = |job: &Job| match (&job.target, &wanted.target) {
            (Target::OwnCgroups(_), Target::OwnCgroups(_)) => true,
            (known, asked) => known == asked,
        };
        let is_same = |job: &Job| {
            job.account == wanted.account
                && job.owner == wanted.owner
                && same_place(job)
                && job.policy == wanted.policy
                && self.agent.part(job.attempt).map(Part::declared) == wanted.gang
                // It may have been given something else since.
                && job.counts(0).is_some_and(|first| first.gpus == start.gpus && stated(first.stated.traits) == traits)
        };
        let known_as = |job: &&Job| {
            Some(Reply::Started { attempt: job.attempt, target: job.target.clone(), novelty: Novelty::Repeated }).filter(|_| is_same(job))
        };
        let of_that_name = || self.agent.jobs.values().chain(&self.agent.closed).rev().filter(|job| job.name == wanted.name);
        let Some(live) = of_that_name().find(|job| job.is_live()) else {
            // A call that waited for the authority while the same job, asked for before, began and ended: that attempt was meant.
            let then = |job: &&Job| {
                job.boot == self.settings.boot
                    && job.opened.mono <= start.at.mono
                    && job.ended.is_some_and(|ended| start.at.mono <= ended.mono)
            };
            return of_that_name().filter(then).find_map(|job| known_as(&job));
        };
        let same = is_same(live);
        Some(if same {
            Reply::Started { attempt: live.attempt, target: live.target.clone(), novelty: Novelty::Repeated }
        } else {
            let message =
                format!("job {} is already metered with another account, owner, place, GPUs, policy, traits or gang", wanted.name);
            Reply::Refused(Refusal::new("changed_repeat", message, "stop the first, or give the second another name"))
        })
    }

    /// Decides a start by the authority's last word; `asked_in_vain` if none came in time.
    pub fn admit(&mut self, start: &PendingStart, asked_in_vain: AskedInVain) -> Reply {
        if let Some(reply) = self.start(start) {
            return reply;
        }
        let unheeded = match self.may_start(start, asked_in_vain) {
            Ok(unheeded) => unheeded,
            Err(refusal) => return Reply::Refused(refusal),
        };
        let attempt = Attempt(self.agent.attempts + 1);
        let wanted = &start.wanted;
        let (Some(card), Charge { cost: charge, pending, .. }) = (self.agent.card, self.start_price(start)) else {
            return Reply::Refused(Refusal::new("no_rate_card", "no rate card is in force", "set rate_card in meterd.toml and reload"));
        };
        let ask = charge.plus(pending);
        if let Some(bid) = wanted.bid.filter(|bid| *bid < ask) {
            let message = format!("this node asks {ask} credits for job {}, and the bid is {bid}", wanted.name);
            return Reply::Refused(Refusal::new("bid_below_ask", message, "bid at least as much, or start it on a cheaper node"));
        }
        let traits = self.traits(start);
        self.record(Fact::JobOpened(Box::new(Opened {
            attempt,
            name: wanted.name.clone(),
            account: wanted.account.clone(),
            owner: wanted.owner,
            target: wanted.target.clone(),
            gpus: start.gpus.clone(),
            time_limit: wanted.time_limit,
            cpus: wanted.cpus,
            memory_bytes: wanted.memory_bytes,
            at: start.at,
            cpu_counter_ns: start.sample.cpu_ns.seen().copied(),
            memory_level_bytes: start.sample.memory_bytes.seen().copied(),
            card,
            charge,
            drawn: charge.min(self.in_hand(&wanted.account)),
            policy: wanted.policy,
            traits,
            pending,
            oom_kills: start.sample.detail.as_ref().and_then(|detail| detail.oom_kills.seen().copied()),
        })));
        if wanted.storage_bytes.is_some() || wanted.bid.is_some() {
            let offer = wanted.bid.map(|bid| Offer { bid, ask });
            self.record(Fact::JobStated { attempt, storage_bytes: wanted.storage_bytes, offer });
        }
        if let Some(gang) = &wanted.gang {
            self.record(Fact::GangJoined { attempt, gang: gang.clone() });
        }
        self.begin_io(start, attempt);
        if let Some(refusal) = unheeded {
            self.step(attempt, StepEvent::WouldRefuse(refusal.code));
        }
        self.review(&start.wanted.account);
        Reply::Started { attempt, target: start.wanted.target.clone(), novelty: Novelty::New }
    }

    /// What its cgroups read and wrote before it began is not its own.
    fn begin_io(&mut self, start: &PendingStart, attempt: Attempt) {
        if !self.agent.card_in_force().is_some_and(|card| card.prices(Meter::IoBytes)) {
            return;
        }
        let read = match start.sample.detail.as_ref().map(|detail| &detail.io) {
            Some(Reading::Seen(io)) => Some(io.read_bytes.saturating_add(io.write_bytes)),
            // Made for it: what is counted there once it is there is its own.
            _ if matches!(start.wanted.target, Target::SlurmJob(_) | Target::OwnCgroups(_)) => Some(0),
            _ => None,
        };
        if let Some(bytes) = read {
            let marks = Marks { io: Some((bytes, start.at.mono)), ..Marks::default() };
            self.record(Fact::Metered { rows: vec![MeteredRow { attempt, more: Box::default(), marks: Box::new(marks) }] });
        }
    }

    /// What the start costs at once, and what it keeps back.
    pub(super) fn start_price(&self, start: &PendingStart) -> Charge {
        let traits = self.traits(start);
        self.agent.card_in_force().map_or_else(Charge::default, |card| charge::start_price(card, &start.gpus, stated(start, &traits)))
    }

    /// The greatest burn that the job to be started would add.
    pub(super) fn burn_of_start(&self, start: &PendingStart) -> Credits {
        let traits = self.traits(start);
        let shape = host_shape(self.settings, &start.gpus);
        self.agent.card_in_force().map_or(Credits::ZERO, |card| charge::burn_of(card, &shape, &stated(start, &traits)))
    }

    /// Nothing is refused for want of credit where nothing is enforced: what would have been said is returned then.
    fn may_start(&self, start: &PendingStart, asked_in_vain: AskedInVain) -> Result<Option<Refusal>, Refusal> {
        let id = &start.wanted.account;
        let heard = self.agent.accounts.get(id).and_then(|account| account.grant.verdict);
        if heard.is_some_and(|heard| heard.verdict == Verdict::UnknownAccount) {
            return Err(Refusal::new("unknown_account", format!("there is no account {id}"), "meterctl account create"));
        }
        match self.is_covered(start, asked_in_vain) {
            Err(refusal) if self.agent.mode_for_owner(id, start.wanted.owner, self.settings) == Enforcement::Enforce => Err(refusal),
            covered => Ok(covered.err()),
        }
    }

    /// Does its account let it start?
    fn is_covered(&self, start: &PendingStart, asked_in_vain: AskedInVain) -> Result<(), Refusal> {
        let id = &start.wanted.account;
        let heard = self.agent.accounts.get(id).and_then(|account| account.grant.verdict);
        let known = self.agent.accounts.get(id).filter(|account| 0 < account.grant.version);
        let policy = known.map(|account| account.grant.policy).unwrap_or_default();
        if asked_in_vain == AskedInVain::Yes && policy.unreachable == Unreachable::RunOn {
            return Ok(()); // as its jobs that run
        }
        if asked_in_vain == AskedInVain::Yes {
            let message = format!("the authority has not answered about account {id}");
            return Err(Refusal::new("authority_unreachable", message, "try again; meterctl status shows the authority's state"));
        }
        let Some(account) = self.agent.accounts.get(id) else {
            return Err(Refusal::new("unknown_account", format!("there is no account {id}"), "meterctl account create"));
        };
        may_spend(id, heard.map(|heard| heard.verdict))?;
        let grant = &account.grant;
        let available = self.in_hand(id).plus(grant.free).minus(self.agent.owed(id)).minus(self.agent.pending(id));
        let burn = self.burn_of_start(start);
        let price = self.start_price(start);
        let price = price.cost.plus(price.pending);
        let costs = (burn.is_positive() || price.is_positive()) && policy.on_exhaustion != OnExhaustion::AllowNegative;
        if costs && (!available.is_positive() || available < price || self.in_hand(id).minus(self.agent.pending(id)) < price) {
            return Err(short(id, available, heard.map(|heard| heard.verdict)));
        }
        if policy.start_threshold.is_positive() && available < policy.start_threshold {
            let message = format!("account {id} has {available} credits, below its start threshold of {}", policy.start_threshold);
            return Err(Refusal::new("below_threshold", message, "top up the account"));
        }
        let all = self.agent.burn_max(id, self.settings).plus(burn);
        if let (Some(wanted), Some(lasts)) = (policy.start_funded, grant::lasts(available, all))
            && lasts < wanted
        {
            let message =
                format!("with job {} the credit of account {id} can be gone in {lasts}; {wanted} are asked for", start.wanted.name);
            return Err(Refusal::new("not_funded", message, "top up the account, or start a job that can cost less"));
        }
        match self.predicted(start) {
            Some(predicted) if policy.start_predicted == StartPredicted::Check && available < predicted => {
                let message =
                    format!("job {} would cost {predicted} credits by its time limit; account {id} has {available}", start.wanted.name);
                Err(Refusal::new("predicted_to_exceed", message, "top up the account, or ask for a shorter time limit"))
            }
            _ => Ok(()),
        }
    }

    /// What the job would cost by its time limit, at the CPUs (1 if not stated), memory (0), storage and GPUs that it asked for, all of them
    /// busy. What GPUs hold in memory, energy, I/O and what hooks count are not foreseen.
    fn predicted(&self, start: &PendingStart) -> Option<Credits> {
        let limit = start.wanted.time_limit?;
        let card = self.agent.card_in_force()?;
        let ns = u128::from(limit.0);
        let memory_byte_ns = u128::from(start.wanted.memory_bytes.unwrap_or(0)) * ns;
        let usage = Usage {
            cpu_ns: u128::from(start.wanted.cpus.unwrap_or(1)) * ns,
            memory_byte_ns,
            memory_anon_byte_ns: memory_byte_ns,
            gpu_held_ns: start.gpus.iter().map(|held| (held.gpu.clone(), ns)).collect(),
            wall_ns: ns,
            job_starts: 1,
            more: (!start.gpus.is_empty()).then(|| Box::new(all_busy(&start.gpus, ns))),
            ..Usage::default()
        };
        let traits = self.traits(start);
        let priced = Priced { usage: &usage, gpus: &start.gpus, before: &[], stated: stated(start, &traits), ended: None };
        let far = Credits::from_nano(i128::MAX);
        Some(charge::charge(card, &priced).map_or(far, |charge| charge.cost.plus(charge.pending)))
    }

    /// `stop` was called; `sample` is the job, looked at when the call came.
    pub fn stop(&mut self, name: &JobName, stated: Ending, sample: Option<&JobSample>) -> Reply {
        let Some(job) = self.agent.job_named(name.as_str()) else {
            let message = format!("no job {name} is known here");
            return Reply::Refused(Refusal::new(
                "unknown_job",
                message,
                "meterctl jobs lists those that are; a stop before its start changes nothing",
            ));
        };
        let (attempt, live) = (job.attempt, job.is_live());
        let before = job.reported.or(job.ending);
        let changed = job.reported.is_some_and(|before| before != stated);
        if changed {
            if let Some(sample) = sample.filter(|_| live) {
                self.sampled(std::slice::from_ref(sample)); // what a look has shown is not looked at again
            }
            let said = before.map_or(Outcome::Unknown, |ending| ending.outcome);
            let message = format!("job {name} was already reported as {said}");
            return Reply::Refused(Refusal::new("changed_repeat", message, "the first report stands"));
        }
        if live && job.reported.is_none() {
            self.record(Fact::StopReported { attempt, ending: stated });
        }
        match sample {
            Some(sample) if live => self.sampled(std::slice::from_ref(sample)),
            _ => {}
        }
        // What cannot be read is there all the same: then the next look that can be made decides.
        let absent =
            |sample: &JobSample| matches!(sample.cpu_ns, Reading::Missing(Missing::NotYet | Missing::Vanished | Missing::Replaced));
        // Of one whose stop came while its start waited nobody has looked since: the next look decides that too.
        if sample.is_some_and(absent) {
            self.end_if_never_seen(attempt, stated);
        }
        let phase = self.agent.jobs.get(&attempt).map_or(Phase::Ended, |job| job.phase);
        Reply::StopNoted { attempt, phase }
    }

    /// A job whose cgroup never came is over when its stop is reported.
    pub(super) fn end_if_never_seen(&mut self, attempt: Attempt, stated: Ending) {
        let waiting = |job: &Job| job.is_live() && job.phase == Phase::Awaited;
        if self.agent.jobs.get(&attempt).is_some_and(waiting) {
            self.end(attempt, (stated, Basis::Reported), self.now);
        }
    }
}

/// Did the authority stay silent?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskedInVain {
    /// No answer came in time.
    Yes,
    /// Its word is there.
    No,
}

/// Too little is in hand: is that all, or is no more granted for now?
fn short(id: &AccountId, available: Credits, verdict: Option<Verdict>) -> Refusal {
    if verdict == Some(Verdict::Recovering) {
        let message = format!("the authority's store was put back from a copy and recovers: nothing is granted yet for account {id}");
        return Refusal::new("authority_recovers", message, "try again in a quarter of an hour");
    }
    if verdict == Some(Verdict::Stale) {
        let message = format!("the billing engine that keeps the balance of account {id} has not said it for too long: nothing is granted");
        return Refusal::new("balance_stale", message, "the authority's log says why; try again in a minute");
    }
    Refusal::new("no_credit", format!("account {id} has {available} credits left"), "top up the account")
}

/// Why the authority grants nothing, where that is not want of credit.
fn may_spend(id: &AccountId, verdict: Option<Verdict>) -> Result<(), Refusal> {
    match verdict {
        Some(Verdict::NotVerified) => {
            let message = format!("nobody vouches for account {id} yet: it may not spend");
            Err(Refusal::new("not_verified", message, "an operator does with: meterctl account verify"))
        }
        Some(Verdict::UnitMismatch) => {
            let message = format!("the authority counts account {id} in another unit");
            Err(Refusal::new("unit_mismatch", message, "this agent and its authority are of different versions"))
        }
        Some(Verdict::NotAdmitted) => {
            let message = format!("account {id} may not be used on this node");
            Err(Refusal::new("not_admitted", message, "an operator of the authority admits it: [[node]] in authority.toml"))
        }
        Some(Verdict::RefillPending) => {
            let message = format!("account {id} has nothing left, and a refill is under way");
            Err(Refusal::new("refill_pending", message, "try again in a minute"))
        }
        _ => Ok(()),
    }
}

fn stated<'t>(start: &'t PendingStart, traits: &'t Traits) -> Stated<'t> {
    Stated {
        at: start.at.wall,
        traits,
        account: Some(&start.wanted.account),
        cpus: start.wanted.cpus,
        memory_bytes: start.wanted.memory_bytes,
        storage_bytes: start.wanted.storage_bytes,
        // It is asked before anything is held to the bid.
        bid: None,
    }
}

/// Has this start waited long enough?
#[must_use]
pub fn overdue(start: &PendingStart, now: Mono) -> bool {
    ADMIT_WITHIN <= now.since(start.at.mono)
}

/// These devices compute all the time.
fn all_busy(gpus: &[HeldGpu], ns: u128) -> More {
    More { gpu_busy_ns: gpus.iter().map(|held| (held.gpu.clone(), ns)).collect(), ..More::default() }
}

/// Why a job has no price, as it is told.
pub(super) fn unpriced(card: &Card, gpus: &[HeldGpu], why: &Uncovered) -> Refusal {
    let named = format!("rate card {} version {}", card.name, card.version);
    match why {
        Uncovered::Gpu(gpu) => {
            let model = gpus.iter().find(|held| held.gpu == *gpu).map(|held| held.model.to_string()).unwrap_or_default();
            let message = format!("{named} has no price for {gpu} ({model})");
            Refusal::new(
                "no_price",
                message,
                "add a gpu_held line for that model, and one of each other GPU meter; a free one has price \"0\"",
            )
        }
        Uncovered::Meter(_) => Refusal::new(
            "no_price",
            format!("{named}: {why}"),
            "state at the start what the lines select, or add a line that selects nothing",
        ),
        Uncovered::NotStated { .. } => {
            Refusal::new("not_stated", format!("{named}: {why}"), "state cpus, memory_bytes and storage_bytes at the start")
        }
    }
}
