//! What a node and the authority say to each other.
//!
//! Everything is a running total of one epoch and the receiver takes the maximum, so loss, repetition and order do not matter:
//! `granted` is raised by the authority alone, `returned` and `spent` by the node alone. `in hand = granted - returned - spent`.
//! An account that an answer does not mention has no news; that is never zero.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::chain::Head;
use super::id::{AccountId, BootId, Digest, Epoch, NodeId};
use super::money::Credits;
pub use super::policy::{AccountPolicy, OnExhaustion, StartPredicted, Unreachable};
use super::time::{Nanos, Wall};

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
    /// What was given back by the outcomes of jobs, of this epoch and earlier ones, until an answer has come. Not part of what the digest is of,
    /// nor of the journal's form: a repeated request says the same or more.
    #[serde(default, with = "in_text_only", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<RefundTotal>")]
    pub refunds: Vec<RefundTotal>,
}

/// How much of what an epoch was charged on an account is given back by outcome, in total. Booked once, by the maximum, and never more than was
/// charged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RefundTotal {
    /// Which escrow.
    pub epoch: Epoch,
    /// Whose.
    pub account: AccountId,
    /// In total.
    pub refunded: Credits,
}

/// A list that the journal's form, which is older, does not have.
mod in_text_only {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::RefundTotal;

    pub(super) fn serialize<S: Serializer>(list: &[RefundTotal], serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { list.serialize(serializer) } else { serializer.serialize_unit() }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<RefundTotal>, D::Error> {
        if deserializer.is_human_readable() { Vec::deserialize(deserializer) } else { <()>::deserialize(deserializer).map(|()| Vec::new()) }
    }
}

/// A request as it is sent, with how far the node's journal is on disk: the authority keeps that place in the journal's hash chain, so that who
/// writes the journal anew is found out. Not part of the request: a repeated one may be sent with a later place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settlement {
    /// The request.
    pub request: Request,
    /// Its totals come from facts up to here, or from earlier ones.
    pub journal: Head,
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
    /// What their balances are made of.
    #[serde(default)]
    pub balances: Vec<Balance>,
}

/// What an account's balance is made of. For people only: nothing is decided by it, and the journal does not hold it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Balance {
    /// Whose.
    pub account: AccountId,
    /// Free credit that is not charged yet, held or not.
    pub free: Credits,
    /// Paid credit that is not charged yet, held or not.
    pub paid: Credits,
    /// When its monthly allowance is next given.
    #[serde(rename = "reset_ms")]
    pub reset: Option<Wall>,
    /// A refill that was asked for and has neither come nor failed.
    pub refill: Credits,
    /// How many of its alerts were given, and hold.
    pub alerts: u32,
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
    /// Nothing is granted before somebody vouches for the account. That is not "exhausted": it ends no job.
    NotVerified,
    /// Nothing is free and this epoch holds nothing, and a refill is under way: no job is ended while that is waited for.
    RefillPending,
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

impl Request {
    /// SHA-256 of the request's bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let bytes = postcard::to_stdvec(self).unwrap_or_default();
        Digest(Sha256::digest(bytes).into())
    }
}
