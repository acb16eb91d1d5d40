//! What the authority remembers of an account beside its amounts, and what follows when these change: alerts, a refill, storage detached.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::account::{AMOUNT_MAX, Account, EntryKind, EntryStatus, LedgerEntry};
use super::lot::{Expiry, LotKey};
use super::payment::{Payment, Purpose};
use super::terms::{DetachedStorage, StorageAtZero, Threshold, Verification};
use crate::domain::bucket::Bucket;
use crate::domain::id::{Digest, NodeId, PaymentId};
use crate::domain::money::Credits;
use crate::domain::time::{Now, Wall};

/// What outlives a restart beside the amounts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Keeping {
    /// Since when somebody vouches for it.
    #[serde(rename = "verified_ms")]
    pub verified: Option<Wall>,
    /// When its allowance is next given.
    #[serde(rename = "reset_ms")]
    pub reset: Option<Wall>,
    /// The balance after the last credit came.
    pub reference: Credits,
    /// Which alerts were given, and not taken back by more credit.
    pub alerted: Vec<Alerted>,
    /// Its automatic refill.
    pub refill: Refill,
    /// Since when there is nothing left.
    #[serde(rename = "empty_ms")]
    pub empty: Option<Wall>,
    /// Can its storage be reached?
    pub storage: Storage,
    /// How many lots have lapsed: the last number given to a line about one.
    pub lapses: u64,
    /// Until when the period of its commitment goes that was given last and is not over.
    #[serde(rename = "committed_until_ms")]
    pub committed: Option<Wall>,
    /// Given back of use by outcomes, in total.
    pub outcome_refunds: Credits,
}

/// An alert that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Alerted {
    /// At which threshold.
    #[serde(flatten)]
    pub threshold: Threshold,
    /// When.
    #[serde(rename = "at_ms")]
    pub at: Wall,
}

/// How an automatic refill stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Refill {
    /// Has the balance been at or above the threshold since the last one was asked for?
    pub armed: Armed,
    /// How many were asked for.
    pub count: u64,
    /// The one that is neither confirmed nor failed.
    pub pending: Option<PendingRefill>,
}

/// Does the next fall below the threshold ask for a refill?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Armed {
    /// It does.
    Yes,
    /// Not before the balance has reached the threshold.
    #[default]
    No,
}

/// A refill that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PendingRefill {
    /// By this name it is confirmed, or said to have failed.
    pub payment: PaymentId,
    /// How much.
    pub amount: Credits,
    /// When.
    #[serde(rename = "asked_ms")]
    pub asked: Wall,
}

/// Can an account's storage be reached?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// Yes.
    #[default]
    Attached,
    /// No: the site's command was told to detach it.
    Detached,
}

/// What somebody outside is to hear of an account, once that is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccountNotice {
    /// Its balance has reached a threshold.
    Alert {
        /// Which.
        threshold: Threshold,
        /// What is left.
        balance: Credits,
    },
    /// This much is to be paid in.
    Refill(PendingRefill),
    /// Its storage is to be attached or detached, and whether it costs while it is detached.
    Storage(Storage, DetachedStorage),
    /// A node says that it was granted more than the store knows, and cannot prove it: nothing of that was believed.
    Unproven {
        /// Which node.
        node: NodeId,
        /// What it says it was granted, in total.
        claimed: Credits,
        /// What is known.
        known: Credits,
    },
    /// A node has proved that it was granted more than the store knows.
    Proven {
        /// Which node.
        node: NodeId,
        /// Granted, in total.
        granted: Credits,
        /// What was known.
        known: Credits,
    },
}

/// What came of an act: for the ledger, and for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    /// Each replaces the line with the same key.
    pub ledger: Vec<LedgerEntry>,
    /// Told after the commit.
    pub notices: Vec<AccountNotice>,
}

/// Names of refills begin so; no other payment's does.
pub const REFILL_PREFIX: &str = "refill/";

impl Account {
    /// May it spend, as far as vouching goes?
    #[must_use]
    pub fn may_spend(&self) -> bool {
        self.terms.verification == Verification::NotNeeded || self.keeping.verified.is_some()
    }

    /// Is a refill pending for which an account at zero is waited for?
    #[must_use]
    pub fn waits_for_refill(&self, now: Wall) -> bool {
        let since = self.keeping.empty.unwrap_or(now);
        let within = |wait_ms: u64| now.0.saturating_sub(since.0) < wait_ms;
        self.keeping.refill.pending.is_some() && self.terms.refill.is_some_and(|refill| within(refill.wait.millis()))
    }

    /// The refill that is pending, as a payment.
    #[must_use]
    pub fn pending_refill(&self) -> Option<Payment> {
        let PendingRefill { payment, amount, .. } = self.keeping.refill.pending.clone()?;
        Some(Payment { purpose: Purpose::Refill, ..Payment::deposit(payment, Bucket::Paid, amount) })
    }

    /// What has expired lapses, but for what nodes hold of it.
    pub(super) fn lapse(&mut self, now: Wall, lines: &mut Vec<LedgerEntry>) {
        let held = self.held();
        for lot in self.lots.lapse(held, now) {
            self.withdrawn = self.withdrawn.plus(lot.left);
            self.keeping.lapses = self.keeping.lapses.saturating_add(1);
            let number = self.keeping.lapses;
            let kind = match (lot.key.bucket, lot.key.expires) {
                (Bucket::Committed, Expiry::At(until)) => EntryKind::CommitmentLapsed { until, number },
                (bucket, _) => EntryKind::Expired { bucket, number },
            };
            lines.push(LedgerEntry::of(kind, now, lot.key.bucket, lot.left, EntryStatus::Completed));
        }
    }

    /// What comes by the calendar alone: lots lapse, the month's allowance and the period's part of a commitment are given. Months that nobody
    /// looked at are not made up for.
    pub(super) fn pass_time(&mut self, now: Wall, lines: &mut Vec<LedgerEntry>) {
        self.lapse(now, lines);
        self.give_commitment(now, lines);
        self.give_allowance(now, lines);
    }

    /// What is given for a period stays given: other terms hold from the next one on.
    fn give_commitment(&mut self, now: Wall, lines: &mut Vec<LedgerEntry>) {
        if self.keeping.committed.is_some_and(|until| now < until) {
            return;
        }
        self.keeping.committed = None;
        let Some((amount, until)) = self.terms.commitment.and_then(|terms| Some((terms.amount, terms.until(now)?))) else { return };
        if AMOUNT_MAX < self.deposited.plus(amount) || !amount.is_positive() {
            return;
        }
        self.keeping.committed = Some(until);
        self.arrive(LotKey { expires: Expiry::At(until), ..LotKey::plain(Bucket::Committed) }, amount);
        lines.push(LedgerEntry::of(EntryKind::Commitment { until }, now, Bucket::Committed, amount, EntryStatus::Completed));
    }

    fn give_allowance(&mut self, now: Wall, lines: &mut Vec<LedgerEntry>) {
        if self.keeping.reset.is_some_and(|reset| now < reset) {
            return; // given for this month, whatever the terms are now
        }
        let Some(allowance) = self.terms.allowance else {
            self.keeping.reset = None;
            return;
        };
        let Some(until) = allowance.next_reset(now) else { return };
        self.keeping.reset = Some(until);
        if AMOUNT_MAX < self.deposited.plus(allowance.amount) || !allowance.amount.is_positive() {
            return;
        }
        self.arrive(LotKey { expires: Expiry::At(until), ..LotKey::plain(Bucket::Free) }, allowance.amount);
        let kind = EntryKind::Allowance { until };
        lines.push(LedgerEntry::of(kind, now, Bucket::Free, allowance.amount, EntryStatus::Completed));
    }

    /// Credit comes in.
    pub(super) fn arrive(&mut self, key: LotKey, amount: Credits) {
        self.lots.add(key, amount);
        self.deposited = self.deposited.plus(amount);
        self.keeping.reference = self.lots.total();
        self.version = self.version.saturating_add(1);
    }

    /// What follows from how it now stands. At the end of each act.
    pub(super) fn review(&mut self, now: Now) -> Lines {
        let mut lines = Lines::default();
        let balance = self.lots.total();
        if self.available().is_positive() {
            self.keeping.empty = None;
        }
        // One that never held anything has not run short.
        if self.deposited.is_positive() {
            self.review_alerts(balance, now.wall, &mut lines.notices);
            self.review_refill(balance, now.wall, &mut lines);
            self.review_storage(balance, now.wall, &mut lines.notices);
        }
        lines
    }

    fn review_alerts(&mut self, balance: Credits, now: Wall, notices: &mut Vec<AccountNotice>) {
        let reached: Vec<Threshold> = self.terms.alerts.reached(balance, self.keeping.reference).collect();
        let alerted = &mut self.keeping.alerted;
        alerted.retain(|given| reached.contains(&given.threshold));
        for threshold in reached {
            if !alerted.iter().any(|given| given.threshold == threshold) {
                alerted.push(Alerted { threshold, at: now });
                notices.push(AccountNotice::Alert { threshold, balance });
            }
        }
    }

    fn review_refill(&mut self, balance: Credits, now: Wall, lines: &mut Lines) {
        let Some(terms) = self.terms.refill else {
            self.keeping.refill.armed = Armed::No;
            return;
        };
        if terms.below <= balance {
            self.keeping.refill.armed = Armed::Yes;
            return;
        }
        let refill = &mut self.keeping.refill;
        if refill.armed == Armed::No || refill.pending.is_some() {
            return;
        }
        let count = refill.count.saturating_add(1);
        let Some(payment) = refill_name(self.id.as_str(), count) else { return };
        let pending = PendingRefill { payment: payment.clone(), amount: terms.amount, asked: now };
        *refill = Refill { armed: Armed::No, count, pending: Some(pending.clone()) };
        let kind = EntryKind::Refill { payment };
        lines.ledger.push(LedgerEntry::of(kind, now, Bucket::Paid, terms.amount, EntryStatus::Pending));
        lines.notices.push(AccountNotice::Refill(pending));
    }

    fn review_storage(&mut self, balance: Credits, now: Wall, notices: &mut Vec<AccountNotice>) {
        let detach = self.terms.storage == StorageAtZero::Detach;
        let wanted = match self.keeping.storage {
            Storage::Attached if detach && balance.is_zero() && !self.waits_for_refill(now) => Storage::Detached,
            Storage::Detached if !detach || balance.is_positive() => Storage::Attached,
            as_it_is => as_it_is,
        };
        if self.keeping.storage != wanted {
            self.keeping.storage = wanted;
            notices.push(AccountNotice::Storage(wanted, self.terms.detached_storage));
        }
    }
}

/// `refill/ACCOUNT/NUMBER`; the account's digest stands for a name that is too long.
fn refill_name(account: &str, count: u64) -> Option<PaymentId> {
    use sha2::{Digest as _, Sha256};
    let plain = format!("{REFILL_PREFIX}{account}/{count}").parse();
    let short = || {
        let digest = Digest(Sha256::digest(account).into());
        format!("{REFILL_PREFIX}{digest}/{count}").parse()
    };
    plain.or_else(|_| short()).ok()
}
