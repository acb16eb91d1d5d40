//! What outsiders see of the state: one immutable picture a tick, built by the loop, read by the status endpoint.

use serde::{Deserialize, Serialize};

use super::agent::credit::measured_burn;
use super::agent::{Account, Agent, Settings};
use super::enforcement::Enforcement;
use super::grant;
use super::id::{AccountId, Attempt, Digest, JobName, LineId, NodeId, Uid};
use super::job::{FrozenBy, Job, Phase};
use super::meter::Missing;
use super::money::Credits;
use super::receipt::rfc3339;
use super::time::{Nanos, Now};
use super::usage::HeldGpu;
use super::wire::{AccountPolicy, Verdict};

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
    /// RFC 3339.
    pub opened: String,
    /// RFC 3339.
    pub ended: Option<String>,
    /// CPU time in nanoseconds, as a decimal string.
    pub cpu_ns: String,
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
}

impl View {
    /// The picture of a state.
    #[must_use]
    pub fn of(agent: &Agent, settings: &Settings, durable_seq: u64, card_refused: Option<&str>, now: Now) -> View {
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
            jobs: agent.jobs.values().chain(agent.closed.iter().rev()).map(job_view).collect(),
        }
    }
}

fn account_view(agent: &Agent, id: &AccountId, account: &Account, now: Now) -> AccountView {
    let grant = &account.grant;
    let burning = agent.jobs_of(id).any(|job| job.phase == Phase::Running);
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
        owed: agent.owed(id),
        burn_per_hour: Credits::from_nano(burn.nano().saturating_mul(3_600)),
        lasts_s: grant::lasts(in_hand.plus(grant.free), burn).map(|Nanos(ns)| ns / 1_000_000_000),
        verdict: grant.verdict.map(|heard| heard.verdict),
        policy: grant.policy,
        armed: account.armed.is_some(),
    }
}

fn job_view(job: &Job) -> JobView {
    let (cpu_ns, running_ns, frozen_ns) = job.segments.iter().fold((0_u128, 0_u128, 0_u128), |(cpu, running, frozen), segment| {
        (cpu + segment.usage.cpu_ns, running + segment.usage.wall_ns, frozen + segment.usage.frozen_ns)
    });
    let millis = |ns: u128| u64::try_from(ns / 1_000_000).unwrap_or(u64::MAX);
    JobView {
        attempt: job.attempt,
        job: job.name.clone(),
        account: job.account.clone(),
        owner_uid: job.owner,
        phase: job.phase,
        frozen_by: job.frozen_by,
        opened: rfc3339(job.opened.wall),
        ended: job.ended.map(|ended| rfc3339(ended.wall)),
        cpu_ns: cpu_ns.to_string(),
        memory_bytes: job.memory_level_bytes,
        gpus: job.gpus.clone(),
        running_ms: millis(running_ns),
        frozen_ms: millis(frozen_ns),
        charge: job.charge,
        drawn: job.drawn,
        unfunded: job.unfunded,
        missing: job.gaps.iter().filter(|gap| gap.to == job.counted_to && job.is_live()).map(|gap| gap.why.clone()).collect(),
    }
}
