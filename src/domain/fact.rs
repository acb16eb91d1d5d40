//! Facts: what was seen and decided, immutable, in the order in which it happened. The state is what applying them gives.
//!
//! A fact carries results (the charge posted), so that applying it never rates again. A record is one version byte and the fact in
//! postcard's stable wire format; variants and fields are only ever appended under a new version, and old decoders are kept for ever.

use serde::{Deserialize, Serialize};

use super::act::{Acted, Target};
use super::correction::Correction;
use super::detail::Detailed;
use super::enforcement::Enforcement;
use super::gang::{Gang, GangWord, Want};
use super::id::{AccountId, Attempt, BootId, Digest, Epoch, JobName, NodeId, Uid};
use super::job::{Ending, Evidence, FrozenBy, Gap, LevelMark, Phase, StepEvent};
use super::ladder::{JobPolicy, Rung, Victim, Warned};
use super::meter::Populated;
use super::money::Credits;
use super::news::News;
use super::outcome::Basis;
use super::proof::Proof;
use super::rates::{Card, Traits};
use super::terms::{Marks, Offer, Report, Terms};
use super::time::{Boot, Mono, Nanos, Now, Wall};
use super::usage::{HeldGpu, More};
use super::wire::{AnswerEntry, Request, RequestRest};

/// A fact's place in the journal: 1, 2, 3 … without a hole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Seq(pub u64);

/// The version byte of the records written today.
const VERSION: u8 = 1;

/// Something that happened. The order is the journal's format: append only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact {
    /// A new spending life began: first start, reboot, lost journal, or the authority closed the last one.
    EpochOpened {
        /// Its random name.
        epoch: Epoch,
        /// The boot in which it lives.
        boot: BootId,
        /// When.
        at: Now,
    },
    /// This card prices from now on; every live job goes on in a new segment.
    CardAdopted {
        /// The card.
        card: Box<Card>,
        /// When.
        at: Now,
    },
    /// The mode of enforcement was set.
    EnforcementSet {
        /// To this.
        mode: Enforcement,
        /// By whom.
        by: Uid,
    },
    /// A job began.
    JobOpened(Box<Opened>),
    /// Usage and charges of some jobs, as totals.
    Counted {
        /// When, for people.
        wall: Wall,
        /// One a job.
        rows: Vec<Row>,
    },
    /// A meter could not be read.
    GapSeen {
        /// Of which job.
        attempt: Attempt,
        /// What was missing.
        gap: Gap,
    },
    /// What came out of grants for jobs that owed, and what was written off, as totals.
    Settled {
        /// One a job.
        rows: Vec<SettledRow>,
    },
    /// A step towards a stop or a thaw.
    Stepped {
        /// Of which job.
        attempt: Attempt,
        /// When.
        at: Mono,
        /// When, for people.
        wall: Wall,
        /// What.
        event: StepEvent,
    },
    /// The timer of an account near its edge is armed: its jobs may be frozen from this instant on, before that is written down.
    Armed {
        /// Whose.
        account: AccountId,
        /// The earliest instant of exhaustion.
        earliest: Mono,
        /// Why.
        evidence: Box<Evidence>,
    },
    /// It is not near its edge any more.
    Disarmed {
        /// Whose.
        account: AccountId,
    },
    /// The account has nothing in hand (`Some` instant), or has again (`None`).
    EmptySet {
        /// Whose.
        account: AccountId,
        /// Since when.
        since: Option<Mono>,
        /// When that was seen.
        at: Mono,
    },
    /// The account was warned; `None` once it has more again.
    WarnedSet {
        /// Whose.
        account: AccountId,
        /// When, and at which threshold.
        warned: Option<Warned>,
    },
    /// A question to the authority; sent once this is durable.
    Asked {
        /// The question, word for word.
        request: Box<Request>,
        /// When it is first sent.
        first_sent: Boot,
    },
    /// The answer to the outstanding question was taken.
    Answered {
        /// To which question.
        request: u64,
        /// Earlier epochs whose last word is booked.
        acknowledged: Vec<Epoch>,
        /// Its entries.
        entries: Vec<AnswerEntry>,
        /// When.
        at: Now,
    },
    /// The authority says that the account has changed.
    Pushed {
        /// Whose.
        account: AccountId,
        /// Its version.
        version: u64,
    },
    /// What is not needed goes back: the new total.
    Returned {
        /// Whose.
        account: AccountId,
        /// In total.
        returned: Credits,
    },
    /// The hands did something.
    HandsActed {
        /// What, and what came of it.
        acted: Acted,
        /// When, for people.
        wall: Wall,
    },
    /// Who froze a job, where that was found out by looking.
    FrozenBySet {
        /// Which job.
        attempt: Attempt,
        /// Who; none when it runs.
        by: Option<FrozenBy>,
    },
    /// `stop` was reported for a job that still has tasks.
    StopReported {
        /// Which job.
        attempt: Attempt,
        /// What was said.
        ending: Ending,
    },
    /// A job ended.
    JobEnded {
        /// Which.
        attempt: Attempt,
        /// When.
        at: Now,
        /// How.
        ending: Ending,
        /// On what evidence.
        basis: Basis,
    },
    /// All that it cost is drawn or written off; its receipt is written with this.
    JobClosed {
        /// Which.
        attempt: Attempt,
    },
    /// What is not read each second was read of some jobs.
    Detailed {
        /// One a job.
        rows: Vec<(Attempt, Detailed)>,
    },
    /// A cgroup was not as the agent believed. What concerns one job is a step of that job.
    Corrected {
        /// What.
        correction: Correction,
        /// When, for people.
        wall: Wall,
    },
    /// The account's jobs may be frozen, or ended, from now on until it is funded again: one of so many in a window of time.
    RungAllowed {
        /// Whose.
        account: AccountId,
        /// What.
        rung: Rung,
        /// When.
        at: Mono,
    },
    /// An operator looked at who is held back, and lets the next ones be stopped.
    RungsConfirmed {
        /// Who.
        by: Uid,
    },
    /// A job stands still so that others of its account can go on; `None` when it need not any more.
    VictimSet {
        /// Which job.
        attempt: Attempt,
        /// Since when.
        victim: Option<Victim>,
        /// When that was decided.
        at: Mono,
    },
    /// A job that ended is charged by its outcome: what lines kept back for its end is due now.
    ChargedAtEnd {
        /// Which job.
        attempt: Attempt,
        /// The price of each of its segments.
        costs: Vec<Credits>,
        /// Drawn for it in total.
        drawn: Credits,
    },
    /// What few starts say more, of a job that was just opened.
    JobStated {
        /// Which job.
        attempt: Attempt,
        /// Storage as stated, in bytes.
        storage_bytes: Option<u64>,
        /// Its bid, and the price at which it was accepted.
        offer: Option<Offer>,
    },
    /// A job is given something else from now on, and goes on in a new segment.
    JobChanged {
        /// Which job.
        attempt: Attempt,
        /// What it is given now.
        terms: Box<Terms>,
        /// When.
        at: Now,
        /// Who said so.
        by: Uid,
    },
    /// A date on their card has come: these jobs go on in a new segment.
    SegmentsOpened {
        /// Which jobs.
        attempts: Vec<Attempt>,
        /// When.
        at: Now,
    },
    /// What is measured only where a card prices it, as totals.
    Metered {
        /// One a job.
        rows: Vec<MeteredRow>,
    },
    /// A hook reported a counter or an event.
    Reported {
        /// Of which job.
        attempt: Attempt,
        /// What.
        report: Report,
        /// When, for people.
        wall: Wall,
    },
    /// What the question just asked says beside its core.
    AskedRest {
        /// That.
        rest: Box<RequestRest>,
    },
    /// What the answer just taken said beside its entries' core.
    AnsweredRest {
        /// The store's generation.
        generation: u64,
        /// The proofs of what it has granted.
        proofs: Vec<(AccountId, Proof)>,
    },
    /// A job that was just opened is a part of a gang.
    GangJoined {
        /// Which job.
        attempt: Attempt,
        /// Of which gang.
        gang: Gang,
    },
    /// It ran dry under the version that it has heard. What was asked is void: this is to be said at once.
    GangDry {
        /// Which job.
        attempt: Attempt,
        /// What it is to hold before it goes on.
        needs: Credits,
    },
    /// The register's word has come.
    GangHeard {
        /// For which job.
        attempt: Attempt,
        /// What its gang is to do.
        want: Want,
        /// Under which version.
        version: u64,
        /// Who ran dry.
        dry: Option<NodeId>,
        /// What it is to hold before it goes on; none where that is known already.
        needs: Option<Credits>,
    },
    /// What the question just asked says of gangs.
    GangsSaid {
        /// Which question.
        request: u64,
        /// Its words.
        words: Vec<GangWord>,
    },
    /// A job ended, and its outcome gives back a part of what was charged as it ran.
    Refunded {
        /// Which job.
        attempt: Attempt,
        /// By segment: by what its price is reduced.
        segments: Vec<Credits>,
        /// What of it all was owed, and need not be paid.
        waived: Credits,
        /// What was paid and is given back, by the epoch that it was drawn in.
        given: Vec<(Epoch, Credits)>,
    },
    /// The authority told of an account unasked. For people: nothing is decided by it.
    AccountTold {
        /// Of which.
        account: AccountId,
        /// What.
        news: News,
        /// When, for people.
        wall: Wall,
    },
}

/// What is measured of one job only since its card prices it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeteredRow {
    /// Which job.
    pub attempt: Attempt,
    /// Its open segment's totals.
    pub more: Box<More>,
    /// Its counters.
    pub marks: Box<Marks>,
}

/// A job's beginning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Its number.
    pub attempt: Attempt,
    /// Its name.
    pub name: JobName,
    /// Who pays.
    pub account: AccountId,
    /// Whose it is.
    pub owner: Uid,
    /// Where its tasks are.
    pub target: Target,
    /// The GPUs that it holds.
    pub gpus: Vec<HeldGpu>,
    /// How long it may run.
    pub time_limit: Option<Nanos>,
    /// CPUs as stated.
    pub cpus: Option<u32>,
    /// Memory as stated, in bytes.
    pub memory_bytes: Option<u64>,
    /// When its baseline was read.
    pub at: Now,
    /// The CPU counter then; none where its cgroup is not there yet (then it counts from 0).
    pub cpu_counter_ns: Option<u64>,
    /// Memory then.
    pub memory_level_bytes: Option<u64>,
    /// Which card prices it.
    pub card: Digest,
    /// The price of its start.
    pub charge: Credits,
    /// What of that came out of the grant at once.
    pub drawn: Credits,
    /// Kills for memory in its cgroups before it began; none if that could not be read.
    pub oom_kills: Option<u64>,
    /// What its starter wants done with it.
    pub policy: JobPolicy,
    /// What was stated of it, for lines that select by that.
    pub traits: Traits,
    /// What its card keeps back for its end, of its start.
    pub pending: Credits,
}

/// One job's usage in its open segment, and its charges, as totals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Which job.
    pub attempt: Attempt,
    /// Up to when.
    pub at: Mono,
    /// Running or frozen from here on.
    pub phase: Phase,
    /// Has it tasks, as far as that could be read?
    pub populated: Option<Populated>,
    /// The CPU counter.
    pub cpu_counter_ns: Option<u64>,
    /// Memory.
    pub memory_level_bytes: Option<u64>,
    /// The segment's CPU time.
    pub cpu_ns: u128,
    /// The segment's memory.
    pub memory_byte_ns: u128,
    /// The segment's running time; each held GPU was held for as long.
    pub running_ns: u128,
    /// The segment's frozen time.
    pub frozen_ns: u128,
    /// The segment's price.
    pub cost: Credits,
    /// Drawn for the job in total.
    pub drawn: Credits,
    /// The segment's anonymous memory.
    pub memory_anon_byte_ns: u128,
    /// Anonymous memory at its last reading.
    pub memory_anon: Option<LevelMark>,
    /// What jobs inside it have used and its counter does not show yet.
    pub inner_ns: u64,
    /// What of the segment's running time it stood still by another's hand.
    pub paused_ns: u128,
    /// What the segment keeps back for the job's end.
    pub pending: Credits,
}

/// One job's settlement, as totals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettledRow {
    /// Which job.
    pub attempt: Attempt,
    /// Drawn for it.
    pub drawn: Credits,
    /// Written off.
    pub unfunded: Credits,
}

/// Bytes that are not a fact.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by a later version of the agent.
    #[error("a record of version {0}, which this agent does not know")]
    UnknownVersion(u8),
    /// Not a fact at all.
    #[error("not a record of a fact: {0}")]
    Malformed(String),
}

impl Fact {
    /// The fact's bytes for the journal.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Writing into memory cannot fail, and every type here is one that postcard can write.
        postcard::to_extend(self, vec![VERSION]).unwrap_or_default()
    }

    /// The fact that these bytes hold.
    ///
    /// # Errors
    /// For an unknown version, and for bytes that are no fact or more than one.
    pub fn decode(bytes: &[u8]) -> Result<Fact, DecodeError> {
        match bytes.split_first() {
            Some((&VERSION, body)) => match postcard::take_from_bytes(body) {
                Ok((fact, [])) => Ok(fact),
                Ok((_, rest)) => Err(DecodeError::Malformed(format!("{} bytes too many", rest.len()))),
                Err(error) => Err(DecodeError::Malformed(error.to_string())),
            },
            Some((&version, _)) => Err(DecodeError::UnknownVersion(version)),
            None => Err(DecodeError::Malformed("empty".to_owned())),
        }
    }
}
