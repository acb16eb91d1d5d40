//! What outsiders see of the state: one immutable picture a tick, built by the loop, read by the status endpoint.
//!
//! The loop only copies numbers, into the picture before the last one where nobody holds that any more; text is made by whoever reads.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::agent::credit::measured_burn;
use super::agent::{Account, Agent, Settings};
use super::correction::Corrections;
use super::enforcement::Enforcement;
use super::gang::{GangId, Part, Want};
use super::grant;
use super::id::{AccountId, Attempt, Digest, JobName, LineId, NodeId, Uid};
use super::job::{FrozenBy, Job, Phase};
use super::meter::Missing;
use super::money::Credits;
use super::rates::charge::wide;
use super::receipt::rfc3339;
use super::terms::Outbid;
use super::time::{Nanos, Now, Wall};
use super::usage::HeldGpu;
use super::wire::{AccountPolicy, Balance, Verdict};

/// The agent as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Which machine.
    pub node: NodeId,
    /// RFC 3339.
    pub at: String,
    /// Observe, notify or enforce.
    pub enforcement: Enforcement,
    /// The card in force.
    pub card: Option<CardView>,
    /// Why the newest card is not in force, if it was refused.
    pub card_refused: Option<String>,
    /// Facts made.
    pub seq: u64,
    /// Facts on disk.
    pub durable_seq: u64,
    /// A question waits for the authority's answer.
    pub authority_asked: u64,
    /// Its number, if it is unanswered.
    pub authority_unanswered: Option<u64>,
    /// Accounts with jobs here, now or earlier in this epoch.
    pub accounts: Vec<AccountView>,
    /// What was not as the agent believed, counted since the journal began.
    pub corrections: Corrections,
    /// Cgroups with tasks in which no job is metered.
    pub unmetered: Vec<String>,
    /// Jobs that are not closed, then the last ones that are.
    pub jobs: Vec<JobView>,
}

/// The rate card in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardView {
    /// Its name.
    pub name: LineId,
    /// Its version.
    pub version: u64,
    /// RFC 3339.
    pub effective_from: String,
    /// SHA-256 of its text.
    pub digest: Digest,
}

/// One account on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountView {
    /// Which.
    pub account: AccountId,
    /// In one word: `funded`, `empty` or `exhausted`.
    pub state: AccountState,
    /// Of this epoch's grants, what may still be spent.
    pub in_hand: Credits,
    /// Free at the authority, as last heard.
    pub free: Credits,
    /// Charged in this epoch.
    pub spent: Credits,
    /// Used past zero in this epoch and written off.
    pub unfunded: Credits,
    /// Used, not decided yet.
    pub owed: Credits,
    /// Measured over the last seconds, credits per hour.
    pub burn_per_hour: Credits,
    /// How long `in_hand + free` lasts at that burn, in seconds; none if nothing burns ("no end").
    pub lasts_s: Option<u64>,
    /// The authority's last word.
    pub verdict: Option<Verdict>,
    /// The account's policy.
    pub policy: AccountPolicy,
    /// The timer is armed for the earliest instant of exhaustion.
    pub armed: bool,
    /// What its balance is made of, at the authority's last answer to this process.
    #[serde(default)]
    pub balance: Option<Balance>,
}

/// How an account stands on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccountState {
    /// There is something in hand, or nothing is needed.
    Funded,
    /// Nothing in hand, and the authority has not said why.
    Empty,
    /// Nothing in hand, and the authority says that there is nothing left.
    Exhausted,
}

/// One attempt of one job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobView {
    /// The agent's number for it.
    pub attempt: Attempt,
    /// Its name.
    pub job: JobName,
    /// Who pays.
    pub account: AccountId,
    /// Whose it is.
    pub owner_uid: Uid,
    /// Awaited, running, frozen or ended.
    pub phase: Phase,
    /// Who froze it.
    pub frozen_by: Option<FrozenBy>,
    /// When it began.
    pub opened: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// CPU time in nanoseconds; in JSON a decimal string.
    #[serde(with = "wide")]
    pub cpu_ns: u128,
    /// Memory charged at the last reading; none if it could not be read.
    pub memory_bytes: Option<u64>,
    /// The devices that it holds.
    pub gpus: Vec<HeldGpu>,
    /// Milliseconds of running.
    pub running_ms: u64,
    /// Milliseconds spent frozen.
    pub frozen_ms: u64,
    /// What it costs so far.
    pub charge: Credits,
    /// What of it is paid.
    pub drawn: Credits,
    /// What ran past zero and was written off.
    pub unfunded: Credits,
    /// Why its readings are missing, where they are.
    pub missing: Vec<Missing>,
    /// What was bid, what is asked by now and what happens, where more is asked and its card minds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbid: Option<Outbid>,
    /// What of its charge was owed and need not be paid, by its outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waived: Option<Credits>,
    /// What of its charge was paid and is given back, by its outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refunded: Option<Credits>,
    /// The gang that it is a part of, and what that is to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gang: Option<GangView>,
}

/// A job's gang, as its node has heard of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GangView {
    /// What the whole job is called.
    pub name: JobName,
    /// Which run of it.
    pub attempt: u32,
    /// Of how many parts, where that was said.
    pub size: Option<u32>,
    /// What all of it is to do.
    pub want: Want,
    /// By which version of the authority's word; 0 for none yet.
    pub version: u64,
    /// Where it ran dry, while it is to stand still.
    pub dry: Option<NodeId>,
}

/// An instant for people: RFC 3339 in every text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub Wall);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&rfc3339(self.0))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time: jiff::Timestamp = text.parse().map_err(serde::de::Error::custom)?;
        u64::try_from(time.as_millisecond()).map(|millis| Timestamp(Wall(millis))).map_err(serde::de::Error::custom)
    }
}

impl View {
    /// The picture of a state.
    #[must_use]
    pub fn of(agent: &Agent, settings: &Settings, durable_seq: u64, card_refused: Option<&str>, now: Now) -> View {
        View::over(Vec::new(), agent, settings, durable_seq, card_refused, now)
    }

    /// The picture of a state, made over an earlier one's jobs: those that are still there only get their new numbers.
    #[must_use]
    pub fn over(
        mut jobs: Vec<JobView>,
        agent: &Agent,
        settings: &Settings,
        durable_seq: u64,
        card_refused: Option<&str>,
        now: Now,
    ) -> View {
        let mut count = 0;
        for job in agent.jobs.values().chain(agent.closed.iter().rev()) {
            match jobs.get_mut(count) {
                Some(view) if view.attempt == job.attempt => view.update(job),
                Some(view) => *view = job_view(job),
                None => jobs.push(job_view(job)),
            }
            count += 1;
        }
        jobs.truncate(count);
        for view in &mut jobs {
            view.gang = agent.part(view.attempt).map(gang_view);
        }
        View {
            node: settings.node.clone(),
            at: rfc3339(now.wall),
            enforcement: agent.mode(settings),
            card: agent.card_in_force().map(|card| CardView {
                name: card.name.clone(),
                version: card.version,
                effective_from: rfc3339(card.effective_from),
                digest: card.digest,
            }),
            card_refused: card_refused.map(str::to_owned),
            seq: agent.seq.0,
            durable_seq,
            authority_asked: agent.asked,
            authority_unanswered: agent.outstanding.as_ref().map(|outstanding| outstanding.request.request),
            accounts: agent.accounts.iter().map(|(id, account)| account_view(agent, id, account, now)).collect(),
            corrections: agent.corrections,
            unmetered: agent.unmetered.keys().cloned().collect(),
            jobs,
        }
    }
}

fn account_view(agent: &Agent, id: &AccountId, account: &Account, now: Now) -> AccountView {
    let grant = &account.grant;
    let (mut burning, mut owed) = (false, Credits::ZERO);
    for job in agent.jobs_of(id) {
        burning |= job.phase == Phase::Running;
        owed = owed.plus(job.owed());
    }
    let burn = if burning { measured_burn(account) } else { Credits::ZERO };
    let in_hand = grant.in_hand(now.boot);
    AccountView {
        account: id.clone(),
        state: match (account.empty_since, grant.exhausted()) {
            (None, _) => AccountState::Funded,
            (Some(_), None) => AccountState::Empty,
            (Some(_), Some(_)) => AccountState::Exhausted,
        },
        in_hand,
        free: grant.free,
        spent: grant.spent,
        unfunded: grant.unfunded,
        owed,
        burn_per_hour: Credits::from_nano(burn.nano().saturating_mul(3_600)),
        lasts_s: grant::lasts(grant.left(now.boot), burn).map(|Nanos(ns)| ns / 1_000_000_000),
        verdict: grant.verdict.map(|heard| heard.verdict),
        policy: grant.policy,
        armed: account.armed.is_some(),
        balance: None,
    }
}

fn job_view(job: &Job) -> JobView {
    let mut view = JobView {
        attempt: job.attempt,
        job: job.name.clone(),
        account: job.account.clone(),
        owner_uid: job.owner,
        phase: job.phase,
        frozen_by: None,
        opened: Timestamp(job.opened.wall),
        ended: None,
        cpu_ns: 0,
        memory_bytes: None,
        gpus: job.gpus.clone(),
        running_ms: 0,
        frozen_ms: 0,
        charge: Credits::ZERO,
        drawn: Credits::ZERO,
        unfunded: Credits::ZERO,
        missing: Vec::new(),
        gang: None,
        outbid: None,
        waived: None,
        refunded: None,
    };
    view.update(job);
    view
}

fn gang_view(part: &Part) -> GangView {
    let GangId { name, attempt, .. } = part.gang.clone();
    GangView { name, attempt, size: part.size, want: part.want, version: part.version, dry: part.dry.clone() }
}

impl JobView {
    /// Is it a part of a gang that stands still?
    #[must_use]
    pub fn is_held_by_gang(&self) -> bool {
        self.gang.as_ref().is_some_and(|gang| gang.want == Want::Freeze)
    }

    /// Takes over all that changes in a job's life.
    fn update(&mut self, job: &Job) {
        let (cpu_ns, running_ns, frozen_ns) = job.segments.iter().fold((0_u128, 0_u128, 0_u128), |(cpu, running, frozen), segment| {
            (cpu + segment.usage.cpu_ns, running + segment.usage.wall_ns, frozen + segment.usage.frozen_ns)
        });
        self.phase = job.phase;
        self.frozen_by = job.frozen_by;
        self.ended = job.ended.map(|ended| Timestamp(ended.wall));
        self.cpu_ns = cpu_ns;
        self.memory_bytes = job.memory_level_bytes;
        self.running_ms = millis(running_ns);
        self.frozen_ms = millis(frozen_ns);
        self.charge = job.charge;
        self.drawn = job.drawn;
        self.unfunded = job.unfunded;
        self.outbid = job.outbid_noted();
        let gives_back = job.refund.as_deref().filter(|_| job.reduced().is_positive());
        (self.waived, self.refunded) = gives_back.map(|refund| (refund.waived, refund.refunded())).unzip();
        self.missing.clear();
        self.missing.extend(job.gaps.iter().filter(|gap| gap.to == job.counted_to && job.is_live()).map(|gap| gap.why.clone()));
    }
}

/// Whole milliseconds. A length beyond 64 bits of nanoseconds is five centuries: it is held there.
fn millis(ns: u128) -> u64 {
    u64::try_from(ns).unwrap_or(u64::MAX) / 1_000_000
}
