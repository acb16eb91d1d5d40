//! What a node and the authority say to each other.
//!
//! Everything is a running total of one epoch and the receiver takes the maximum, so loss, repetition and order do not matter:
//! `granted` is raised by the authority alone, `returned` and `spent` by the node alone. `in hand = granted - returned - spent`.
//! An account that an answer does not mention has no news; that is never zero.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::enforcement::Enforcement;
use super::id::{AccountId, BootId, Digest, Epoch, NodeId};
use super::ladder::{Then, Thresholds, Victims};
use super::money::Credits;
use super::time::Nanos;

/// The version of these messages. Another one is refused.
pub const PROTOCOL: u16 = 1;

/// The unit of every amount. A message that names another one is refused, not converted.
pub const UNIT: &str = "nano-credit";

/// Node to authority: how things stand, and what is needed. One is outstanding at a time; a retransmission repeats it byte for byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Request {
    /// [`PROTOCOL`].
    pub protocol: u16,
    /// Who speaks.
    pub node: NodeId,
    /// Which escrow.
    pub epoch: Epoch,
    /// In which boot of the machine.
    pub boot: BootId,
    /// 1, 2, 3 … within an epoch; journalled before sending.
    pub request: u64,
    /// How earlier epochs of this node ended, until acknowledged.
    pub previous: Vec<PreviousEpoch>,
    /// One for each account; each stands alone.
    pub entries: Vec<RequestEntry>,
}

/// The last word on an earlier epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PreviousEpoch {
    /// Which.
    pub epoch: Epoch,
    /// Its final totals.
    pub entries: Vec<RequestEntry>,
}

/// One account's totals in one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RequestEntry {
    /// Whose.
    pub account: AccountId,
    /// [`UNIT`].
    pub unit: String,
    /// Highest `granted` that the node has taken.
    pub granted_seen: Credits,
    /// Given back, in total.
    pub returned: Credits,
    /// Charged, in total.
    pub spent: Credits,
    /// Used past zero and written off, in total. Never part of `spent`.
    pub unfunded: Credits,
    /// Used and not yet charged, since nothing was in hand. A gauge.
    pub owed: Credits,
    /// Nano-credits per second that the account's jobs may be expected to use.
    pub burn_per_s: Credits,
    /// The smallest grant that is of use.
    pub at_least: Credits,
}

/// Authority to node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Answer {
    /// [`PROTOCOL`].
    pub protocol: u16,
    /// Echo. An answer that does not echo the outstanding request is dropped whole.
    pub epoch: Epoch,
    /// Echo.
    pub request: u64,
    /// Echo: SHA-256 of the request's bytes.
    pub digest: Digest,
    /// Earlier epochs whose last word is booked: the node need not repeat it.
    pub acknowledged: Vec<Epoch>,
    /// One for each account that there is news of.
    pub entries: Vec<AnswerEntry>,
}

/// The authority's word on one account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AnswerEntry {
    /// Whose.
    pub account: AccountId,
    /// [`UNIT`].
    pub unit: String,
    /// Moved from the balance into this epoch, in total.
    pub granted: Credits,
    /// For how long it may be spent, counted on the node's `CLOCK_BOOTTIME` from the first sending of the request.
    #[serde(rename = "valid_for_ns")]
    pub valid_for: Nanos,
    /// In one word.
    pub verdict: Verdict,
    /// What the authority has settled of this epoch.
    pub settled: Credits,
    /// Still free for new grants: for people and for admission, not to be spent. With [`Verdict::Recall`]: how much of what is in hand may stay.
    pub free: Credits,
    /// Raised with each change that a push announces.
    pub version: u64,
    /// What the account's owner wants done.
    pub policy: AccountPolicy,
}

/// The authority's word. The order is the journal's format: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// There is more where this came from.
    Granted,
    /// This was all there is. A hint, never evidence.
    Final,
    /// Nothing is free and this epoch holds nothing: the one verdict on which a job may be ended.
    Exhausted,
    /// No new credit now; what is held stays good.
    Hold,
    /// The entry named another unit: nothing was changed.
    UnitMismatch,
    /// There is no such account.
    UnknownAccount,
    /// Something is free, but less than would be of use.
    BelowAtLeast,
    /// This epoch's escrow is void: open a new epoch.
    Closed,
    /// The owner takes credit back: give back what is in hand beyond `free`. No new credit meanwhile.
    Recall,
}

/// "Ask again": the account changed. Carries neither money nor verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// Whose.
    pub account: AccountId,
    /// Acted on only if above the highest seen.
    pub version: u64,
}

/// What the account's owner wants done; kept by the authority, followed by the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AccountPolicy {
    /// When a fresh [`Verdict::Exhausted`] has come.
    pub on_exhaustion: OnExhaustion,
    /// Between SIGTERM and the kill.
    #[serde(rename = "grace_ns")]
    pub grace: Nanos,
    /// How long before the expected end the warnings come.
    #[serde(rename = "warn_before_ns")]
    pub warn_before: Thresholds,
    /// A start is refused below this much free credit.
    pub start_threshold: Credits,
    /// Is a start refused if its time limit would use more than there is?
    pub start_predicted: StartPredicted,
    /// How far the agent goes against its jobs, where the node goes further.
    pub enforcement: Enforcement,
    /// How long its jobs stand still at most, if they do not for ever …
    #[serde(rename = "freeze_ttl_ns")]
    pub freeze_ttl: Option<Nanos>,
    /// … and what comes then.
    pub then: Then,
    /// Which jobs stop first …
    pub victims: Victims,
    /// … as soon as the credit lasts no longer than this.
    #[serde(rename = "victims_before_ns")]
    pub victims_before: Nanos,
}

impl Default for AccountPolicy {
    fn default() -> AccountPolicy {
        AccountPolicy {
            on_exhaustion: OnExhaustion::Freeze,
            grace: Nanos::from_secs(30),
            warn_before: Thresholds::one(Nanos::from_secs(60)),
            start_threshold: Credits::ZERO,
            start_predicted: StartPredicted::Ignore,
            enforcement: Enforcement::Enforce,
            freeze_ttl: None,
            then: Then::Terminate,
            victims: Victims::Together,
            victims_before: Nanos::from_secs(300),
        }
    }
}

/// What happens to an account's jobs when it has nothing left. The order is the journal's format: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnExhaustion {
    /// Frozen in place until credit arrives.
    Freeze,
    /// Frozen at zero; then thawed with SIGTERM, and killed after the grace.
    Terminate,
    /// Frozen at zero; then killed.
    Kill,
    /// They run on; what they use is written off as unfunded.
    AllowNegative,
}

/// Whether a start is measured against its time limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StartPredicted {
    /// Refused if expected burn times time limit exceeds the credit.
    Check,
    /// Not looked at.
    Ignore,
}

impl Request {
    /// SHA-256 of the request's bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let bytes = postcard::to_stdvec(self).unwrap_or_default();
        Digest(Sha256::digest(bytes).into())
    }
}
