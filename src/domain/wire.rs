//! What a node and the authority say to each other.
//!
//! Everything is a running total of one epoch and the receiver takes the maximum, so loss, repetition and order do not matter:
//! `granted` is raised by the authority alone, `returned` and `spent` by the node alone. `in hand = granted - returned - spent`.
//! An account that an answer does not mention has no news; that is never zero.
//!
//! What came later stands in fields that are spoken and have no place in the journal's form of these structs (the module `spoken` below): the journal keeps
//! it in facts of its own, and a message of an agent or an authority that does not know of them reads as if it said nothing.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::chain::Head;
pub use super::gang::{GangWant, GangWord};
use super::id::{AccountId, BootId, Digest, Epoch, NodeId};
use super::money::Credits;
pub use super::policy::{AccountPolicy, OnExhaustion, StartPredicted, Unreachable};
use super::proof::Proof;
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
    /// The highest generation of a store that was ever heard of.
    #[serde(default, skip_serializing_if = "spoken::is_default", with = "spoken")]
    #[schemars(with = "u64")]
    pub generation_seen: u64,
    /// What became of this epoch's earlier questions; none from a node that does not know.
    #[serde(default, skip_serializing_if = "spoken::is_default", with = "spoken")]
    #[schemars(with = "Option<History>")]
    pub history: Option<History>,
    /// How parts of gangs stand on this node, of accounts that have an entry.
    #[serde(default, skip_serializing_if = "spoken::is_default", with = "spoken")]
    #[schemars(with = "Vec<GangWord>")]
    pub gangs: Vec<GangWord>,
    /// What was given back by the outcomes of jobs, of this epoch and earlier ones, until an answer has come. Not part of what the digest is of,
    /// nor of the journal's form: a repeated request says the same or more.
    #[serde(default, skip_serializing_if = "spoken::is_default", with = "spoken")]
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

/// A question that was sent, by its number and its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Said {
    /// Its number.
    pub request: u64,
    /// Its [`Request::digest`].
    pub digest: Digest,
}

/// What became of an epoch's questions: who writes under the same epoch tells another story.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct History {
    /// The last one whose answer was taken.
    pub acked: Option<Said>,
    /// All that were sent since, the oldest first; at most [`UNANSWERED_MAX`].
    pub unanswered: Vec<Said>,
}

/// With so many questions unanswered the last one is only repeated.
pub const UNANSWERED_MAX: usize = 16;

/// A request as it is sent, with how far the node's journal is on disk: the authority keeps that place in the journal's hash chain, so that who
/// writes the journal anew is found out. Not part of the request: a repeated one may be sent with a later place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settlement {
    /// The request.
    pub request: Request,
    /// Its totals come from facts up to here, or from earlier ones.
    pub journal: Head,
    /// What the node may be granted at most.
    pub limits: Limits,
}

/// A settlement and what its request says, which is worked out before the one who answers is kept from others.
#[derive(Clone, Debug)]
pub struct Digested {
    settlement: Settlement,
    said: Said,
}

impl Digested {
    /// By what the request says.
    #[must_use]
    pub fn new(settlement: Settlement) -> Digested {
        Digested { said: settlement.request.said(), settlement }
    }

    /// What is settled.
    #[must_use]
    pub const fn settlement(&self) -> &Settlement {
        &self.settlement
    }

    /// [`Request::said`].
    #[must_use]
    pub const fn said(&self) -> Said {
        self.said
    }
}

/// What a node may be granted at most, by what the authority's configuration says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Accounts that may be used on it; none: every one.
    pub admitted: Option<BTreeSet<AccountId>>,
    /// The most that it can use of one account while a grant is valid; none: nobody knows.
    pub held_max: Option<Credits>,
}

/// A request as it goes over the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Question {
    /// The request.
    #[serde(flatten)]
    pub request: Request,
    /// As [`Settlement::journal`]; none from a node that does not say.
    #[serde(default)]
    pub journal: Option<Head>,
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
    /// Could what is in hand be spent when this was first sent? None from a node that does not say.
    #[serde(default, skip_serializing_if = "spoken::is_default", with = "spoken")]
    #[schemars(with = "Option<Validity>")]
    pub validity: Option<Validity>,
    /// The authority's own proof of `granted_seen`, from the answer that raised it.
    #[serde(default, skip_serializing_if = "spoken::is_default", with = "spoken")]
    #[schemars(with = "Option<Proof>")]
    pub proof: Option<Proof>,
}

/// May what is in hand be spent?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Validity {
    /// Its deadline has not passed.
    Live,
    /// It has, or there never was one.
    Lapsed,
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
    /// The store's generation: raised when it is put back from a copy.
    #[serde(default, skip_serializing_if = "spoken::is_default", with = "spoken")]
    #[schemars(with = "u64")]
    pub generation: u64,
    /// What the gangs that were spoken of are to do.
    #[serde(default, skip_serializing_if = "spoken::is_default", with = "spoken")]
    #[schemars(with = "Vec<GangWant>")]
    pub gangs: Vec<GangWant>,
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
    /// Committed credit that is not charged yet, held or not.
    #[serde(default, skip_serializing_if = "spoken::is_default")]
    pub committed: Credits,
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
    /// Proves `granted`, should the store forget it: to be kept, and shown with the next questions.
    #[serde(default, skip_serializing_if = "spoken::is_default", with = "spoken")]
    #[schemars(with = "Option<Proof>")]
    pub proof: Option<Proof>,
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
    /// The store was put back from a copy and does not know all that it granted: no new credit until every grant that it may have forgotten has
    /// run out. What is held stays good.
    Recovering,
    /// Somebody else speaks under this epoch too: it is void for all of them. Open a new epoch.
    Forked,
    /// More is held than this authority knows to have granted, and nothing proves it: the epoch is void here. Open a new epoch.
    Unproven,
    /// The account may not be used on this node. That is not "exhausted": it ends no job.
    NotAdmitted,
    /// The balance is kept by an engine that has not said it for too long: no new credit until it does. What is held stays good.
    Stale,
}

impl Verdict {
    /// Is the epoch's escrow void, so that a new epoch is to be opened?
    #[must_use]
    pub const fn voids_epoch(self) -> bool {
        matches!(self, Verdict::Closed | Verdict::Forked | Verdict::Unproven)
    }

    /// May a store say this that was put back from a copy and has forgotten that it closed the epoch?
    #[must_use]
    pub const fn may_be_of_a_copy(self) -> bool {
        matches!(self, Verdict::Recovering | Verdict::Recall)
    }

    /// Does the authority count the epoch as heard of, so that what it holds is good for longer? Of other words it must not be prolonged.
    #[must_use]
    pub const fn prolongs(self) -> bool {
        matches!(
            self,
            Verdict::Granted
                | Verdict::Final
                | Verdict::Exhausted
                | Verdict::BelowAtLeast
                | Verdict::Recall
                | Verdict::Recovering
                | Verdict::Stale
        )
    }

    /// The nearest word that every agent knows.
    #[must_use]
    pub const fn plain(self) -> Verdict {
        match self {
            Verdict::Recovering | Verdict::NotAdmitted | Verdict::Stale => Verdict::Hold,
            Verdict::Forked | Verdict::Unproven => Verdict::Closed,
            other => other,
        }
    }
}

/// "Ask again": the account changed. Carries neither money nor verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// Whose.
    pub account: AccountId,
    /// Acted on only if above the highest seen.
    pub version: u64,
}

/// What a request says beside its core: the journal keeps it in a fact of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRest {
    generation_seen: u64,
    history: Option<History>,
    /// By entry.
    entries: Vec<(Option<Validity>, Option<Proof>)>,
    /// By earlier epoch, by entry.
    previous: Vec<Vec<Option<Proof>>>,
}

/// Room for what a question of a few accounts has in it.
const DIGESTED_BYTES: usize = 512;

impl Request {
    /// SHA-256 of the request's bytes: those of its core and, where it says more, those of the rest and of what it says of gangs.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut bytes = postcard::to_extend(self, Vec::with_capacity(DIGESTED_BYTES)).unwrap_or_default();
        if !self.is_plain() {
            bytes = postcard::to_extend(&self.rest(), bytes).unwrap_or_default();
        }
        if !self.gangs.is_empty() {
            bytes = postcard::to_extend(&self.gangs, bytes).unwrap_or_default();
        }
        Digest(Sha256::digest(bytes).into())
    }

    /// What it says beside its core.
    #[must_use]
    pub fn rest(&self) -> RequestRest {
        let proofs = |earlier: &PreviousEpoch| earlier.entries.iter().map(|entry| entry.proof).collect();
        RequestRest {
            generation_seen: self.generation_seen,
            history: self.history.clone(),
            entries: self.entries.iter().map(|entry| (entry.validity, entry.proof)).collect(),
            previous: self.previous.iter().map(proofs).collect(),
        }
    }

    /// Puts that back to a core that came out of the journal.
    pub fn put_rest(&mut self, rest: RequestRest) {
        self.generation_seen = rest.generation_seen;
        self.history = rest.history;
        for (entry, (validity, proof)) in self.entries.iter_mut().zip(rest.entries) {
            (entry.validity, entry.proof) = (validity, proof);
        }
        for (earlier, proofs) in self.previous.iter_mut().zip(rest.previous) {
            earlier.entries.iter_mut().zip(proofs).for_each(|(entry, proof)| entry.proof = proof);
        }
    }

    /// Does it say nothing beside its core? So it is of a node that knows of none of that.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        let plain = |entry: &RequestEntry| entry.proof.is_none();
        self.generation_seen == 0
            && self.history.is_none()
            && self.entries.iter().all(|entry| entry.validity.is_none() && plain(entry))
            && self.previous.iter().flat_map(|earlier| &earlier.entries).all(plain)
    }

    /// This question, by its number and its words.
    #[must_use]
    pub fn said(&self) -> Said {
        Said { request: self.request, digest: self.digest() }
    }
}

/// Fields that are spoken (JSON) and take no byte in the journal's form of their struct (postcard), which was there before them.
mod spoken {
    use serde::de::{Deserialize, Deserializer};
    use serde::ser::{Serialize, Serializer};

    pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
        *value == T::default()
    }

    pub(super) fn serialize<T: Serialize, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { value.serialize(serializer) } else { serializer.serialize_unit() }
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        if deserializer.is_human_readable() {
            return T::deserialize(deserializer);
        }
        <()>::deserialize(deserializer)?;
        Ok(T::default())
    }
}

#[cfg(test)]
mod tests;
