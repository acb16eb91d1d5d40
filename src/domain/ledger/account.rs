//! An account: what was paid in, what is held by nodes, what is charged.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::epochs::Epochs;
use super::keeping::{Alerted, Keeping, PendingRefill, Storage};
use super::lot::{Lot, Lots};
use super::payment::Direction;
use super::refund::EpochRefunds;
use super::revoke::Revocation;
use super::terms::Terms;
use crate::domain::bucket::{Bucket, Parts};
use crate::domain::id::{AccountId, BootId, Digest, Epoch, NodeId, PaymentId};
use crate::domain::money::Credits;
use crate::domain::time::{Mono, Wall};
use crate::domain::wire::{AccountPolicy, Balance};

/// Most that may be paid into one account, and most that any amount on the wire may be: 10^17 credits.
pub const AMOUNT_MAX: Credits = Credits::from_nano(100_000_000_000_000_000_000_000_000);

/// One balance. All of an account's epochs that are open are here; closed ones only where a message named them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Whose.
    pub id: AccountId,
    /// What its owner wants done.
    pub policy: AccountPolicy,
    /// Raised with each change that a push announces.
    pub version: u64,
    /// Credit that is not settled; what nodes hold of it is still in here.
    pub lots: Lots,
    /// Come in, in total, all buckets: paid, committed, given, given back, moved here.
    pub deposited: Credits,
    /// Gone otherwise than by use, in total, all buckets: lapsed, corrected, moved away.
    pub withdrawn: Credits,
    /// Charged, in total.
    pub settled: Credits,
    /// Used past zero and written off by the account's own rule, in total. Never drawn from a bucket.
    pub written_off: Credits,
    /// Reported after its epoch was closed, when nothing was left to charge it to, in total. Never drawn from a bucket.
    pub shortfall: Credits,
    /// What the authority does for it.
    pub terms: Terms,
    /// What is remembered of it beside its amounts.
    pub keeping: Keeping,
    /// Escrows.
    pub epochs: Epochs,
    /// Taken back by its owner, in total: a part of `withdrawn`.
    pub revoked: Credits,
    /// What is to be taken back and is not yet, the oldest first.
    pub revocations: Vec<Revocation>,
}

/// One epoch's escrow on one account. `escrow = granted - returned - settled`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochAccount {
    /// Who speaks for it.
    pub node: NodeId,
    /// In which boot; `None` where only a later epoch told of this one.
    pub boot: Option<BootId>,
    /// May it still be spent?
    pub state: EpochState,
    /// Are the totals the last word?
    pub totals: Totals,
    /// Moved in from the balance, in total.
    pub granted: Credits,
    /// Given back by the node, in total.
    pub returned: Credits,
    /// Charged, in total.
    pub settled: Credits,
    /// The highest `spent` that was ever heard.
    pub claimed: Credits,
    /// The highest `unfunded` that was ever heard.
    pub unfunded: Credits,
    /// Reported late and covered by nothing.
    pub shortfall: Credits,
    /// The highest request number that was accepted; 0 for none.
    pub last_request: u64,
    /// That request's digest.
    pub last_digest: Digest,
    /// What its jobs may be expected to use, nano-credits per second.
    pub burn_per_s: Credits,
    /// When a request was last accepted, on the clock of the process that watches. Not stored: silence starts again with the process.
    pub heard_at: Mono,
    /// What was booked in the hour that is accumulating.
    pub hour: HourTotals,
    /// The most that the node has shown to have been granted; what lies above `granted` the store has forgotten, and cannot back yet.
    pub proven: Credits,
    /// What came back of it.
    pub refunds: EpochRefunds,
}

/// May an epoch's escrow still be spent?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EpochState {
    /// Yes.
    Open,
    /// No, and never again.
    Closed,
}

/// Are an epoch's totals the last word on it?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Totals {
    /// The last that was reported.
    Reported,
    /// Its successor said how it ended.
    Final,
}

/// What one epoch booked in one hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HourTotals {
    /// Whole hours since 1970 UTC.
    pub hour: u64,
    /// Charged to the free bucket.
    pub free: Credits,
    /// Charged to the paid bucket.
    pub paid: Credits,
    /// Written off.
    pub written_off: Credits,
    /// Covered by nothing.
    pub shortfall: Credits,
    /// Given back by outcome to the free bucket.
    #[serde(default)]
    pub refunded_free: Credits,
    /// Given back by outcome to the paid bucket.
    #[serde(default)]
    pub refunded_paid: Credits,
    /// Charged to the committed bucket.
    #[serde(default)]
    pub committed: Credits,
    /// Given back by outcome to the committed bucket.
    #[serde(default)]
    pub refunded_committed: Credits,
}

/// One line of an account's ledger. A line that is [`EntryStatus::Accumulating`] is replaced, by its key, until its hour or its epoch ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LedgerEntry {
    /// When it was last changed.
    pub at: Wall,
    /// What for.
    #[serde(flatten)]
    pub kind: EntryKind,
    /// How much; never negative. What it does to the balance is told by [`LedgerEntry::effect`]. What of that is neither free nor paid went to or
    /// came from the committed bucket.
    pub amount: Credits,
    /// The part that went to or came from the free bucket.
    pub free: Credits,
    /// The part that went to or came from the paid bucket.
    pub paid: Credits,
    /// Will it change?
    pub status: EntryStatus,
}

/// What a ledger line is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum EntryKind {
    /// Credit was paid in or given.
    Deposit {
        /// To which bucket.
        bucket: Bucket,
        /// By which payment.
        payment: PaymentId,
    },
    /// Use that was charged.
    Usage {
        /// By which epoch.
        epoch: Epoch,
        /// In which hour, whole hours since 1970 UTC.
        hour: u64,
    },
    /// Use past zero that the account's own rule allowed; drawn from nothing.
    WriteOff {
        /// By which epoch.
        epoch: Epoch,
        /// In which hour, whole hours since 1970 UTC.
        hour: u64,
    },
    /// Use that was reported after its epoch was closed, and found no credit; drawn from nothing.
    Shortfall {
        /// By which epoch.
        epoch: Epoch,
        /// In which hour, whole hours since 1970 UTC.
        hour: u64,
    },
    /// An automatic refill.
    Refill {
        /// By which payment.
        payment: PaymentId,
    },
    /// Credit was given back for use that was charged.
    Refund {
        /// To which bucket.
        bucket: Bucket,
        /// By which act.
        payment: PaymentId,
    },
    /// An operator put something right.
    Correction {
        /// In which bucket.
        bucket: Bucket,
        /// By which act.
        payment: PaymentId,
        /// Which way.
        direction: Direction,
    },
    /// The month's allowance.
    Allowance {
        /// When it lapses.
        #[serde(rename = "until_ms")]
        until: Wall,
    },
    /// A lot lapsed.
    Expired {
        /// Of which bucket.
        bucket: Bucket,
        /// The how-manyth of the account.
        number: u64,
    },
    /// Credit moved to another account.
    TransferOut {
        /// Which.
        to: AccountId,
        /// By which act.
        payment: PaymentId,
    },
    /// Credit came from another account.
    TransferIn {
        /// Which.
        from: AccountId,
        /// By which act.
        payment: PaymentId,
    },
    /// Credit that its owner took back.
    Revoked {
        /// By which revocation.
        revocation: PaymentId,
        /// Of how much.
        asked: Credits,
        /// How much had gone in all with this line.
        part: Credits,
    },
    /// Given back of use that was charged, by the outcome of jobs and their rate card.
    OutcomeRefund {
        /// Of which epoch.
        epoch: Epoch,
        /// In which hour it came back, whole hours since 1970 UTC.
        hour: u64,
    },
    /// A period's part of a commitment.
    Commitment {
        /// Until when it may be used.
        #[serde(rename = "until_ms")]
        until: Wall,
    },
    /// What was left of a period's part of a commitment at its end, but for what nodes held, which lapses as it comes back.
    CommitmentLapsed {
        /// When that was.
        #[serde(rename = "until_ms")]
        until: Wall,
        /// The how-manyth lot of the account that lapsed.
        number: u64,
    },
    /// The balance is kept by an engine, and this follows it.
    Mirrored {
        /// By which movement.
        movement: PaymentId,
        /// Which way.
        direction: Direction,
        /// How much had been moved by it with this line.
        part: Credits,
    },
}

/// What a ledger line does to the balance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Its amount is in it.
    Adds,
    /// Its amount is out of it.
    Takes,
    /// Nothing: not yet, or never.
    Nothing,
}

/// Will a ledger line change?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EntryStatus {
    /// It grows while its hour runs.
    Accumulating,
    /// It stands. Only a late report on a closed epoch, in the same hour, can still raise it.
    Completed,
    /// Announced: it will be completed or fail.
    Pending,
    /// It did not come about, and will not.
    Failed,
}

/// An account as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AccountView {
    /// Whose.
    pub account: AccountId,
    /// Free for new grants.
    pub available: Credits,
    /// Held by nodes.
    pub held: Credits,
    /// Free credit that is not charged yet, held or not.
    pub free: Credits,
    /// Paid credit that is not charged yet, held or not.
    pub paid: Credits,
    /// What all of it is made of, in the order of spending.
    pub lots: Vec<Lot>,
    /// Come in, in total.
    pub deposited: Credits,
    /// Gone otherwise than by use, in total.
    pub withdrawn: Credits,
    /// Charged, in total.
    pub settled: Credits,
    /// Written off, in total.
    pub written_off: Credits,
    /// Reported late and covered by nothing, in total.
    pub shortfall: Credits,
    /// Raised with each deposit and policy change.
    pub version: u64,
    /// What its owner wants done.
    pub policy: AccountPolicy,
    /// What the authority does for it.
    pub terms: Terms,
    /// When its allowance is next given.
    #[serde(rename = "reset_ms")]
    pub reset: Option<Wall>,
    /// Since when somebody vouches for it.
    #[serde(rename = "verified_ms")]
    pub verified: Option<Wall>,
    /// The refill that is neither confirmed nor failed.
    pub refill: Option<PendingRefill>,
    /// Which alerts were given, and hold.
    pub alerted: Vec<Alerted>,
    /// Can its storage be reached?
    pub storage: Storage,
    /// Taken back by its owner, in total.
    #[serde(default)]
    pub revoked: Credits,
    /// To be taken back as soon as nodes give it back.
    #[serde(default)]
    pub revoke_pending: Credits,
    /// Committed credit that is not charged yet, held or not.
    #[serde(default)]
    pub committed: Credits,
    /// Until when the period of its commitment goes that runs now.
    #[serde(rename = "committed_until_ms", default)]
    pub committed_until: Option<Wall>,
}

/// A rule of the ledger that does not hold: a bug, never a state of the world.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// More was granted than there was.
    #[error("available is {0}")]
    Overdrawn(Credits),
    /// A bucket is below zero.
    #[error("the {0:?} bucket holds {1}")]
    BucketBelowZero(Bucket, Credits),
    /// Credit came from nowhere, or went nowhere.
    #[error("buckets, settled and withdrawn make {found}, deposited is {deposited}")]
    NotConserved {
        /// Buckets plus settled plus withdrawn.
        found: Credits,
        /// What was paid in.
        deposited: Credits,
    },
    /// An open epoch is charged beyond what it was given.
    #[error("epoch {0} is charged beyond its grant")]
    ChargedBeyondGrant(Epoch),
    /// An epoch is charged beyond what it said it spent.
    #[error("epoch {0} is charged beyond its report")]
    ChargedBeyondReport(Epoch),
    /// More was given back than was charged.
    #[error("more is given back of epoch {0} than it was charged")]
    RefundedBeyondCharge(Epoch),
    /// A total fell, or a closed epoch opened.
    #[error("epoch {0} went back")]
    WentBack(Epoch),
}

impl EpochAccount {
    /// Moved out of the balance and not yet charged or given back. Zero once closed.
    #[must_use]
    pub fn escrow(&self) -> Credits {
        match self.state {
            EpochState::Open => self.granted.minus(self.returned).minus(self.settled),
            EpochState::Closed => Credits::ZERO,
        }
    }

    /// Granted once, forgotten since, and backed by nothing.
    #[must_use]
    pub fn unbacked(&self) -> Credits {
        match self.state {
            EpochState::Open => self.proven.minus(self.granted).or_zero(),
            EpochState::Closed => Credits::ZERO,
        }
    }

    /// The node has given back this much in total. What it said it had spent cannot come back as well; and what of it had been forgotten needs no
    /// backing any more: backed later, it would be held for nobody, since the node has told all.
    pub(super) fn take_back(&mut self, returned: Credits) {
        let most = self.granted.max(self.proven).minus(self.claimed);
        let news = returned.min(most).minus(self.returned).or_zero();
        self.granted = self.granted.plus(self.unbacked().min(news));
        self.returned = self.returned.plus(news);
    }
}

impl Account {
    /// A new account without credit.
    #[must_use]
    pub fn new(id: AccountId, policy: AccountPolicy) -> Account {
        Account {
            id,
            policy,
            version: 1,
            lots: Lots::default(),
            deposited: Credits::ZERO,
            withdrawn: Credits::ZERO,
            settled: Credits::ZERO,
            written_off: Credits::ZERO,
            shortfall: Credits::ZERO,
            terms: Terms::default(),
            keeping: Keeping::default(),
            epochs: Epochs::default(),
            revoked: Credits::ZERO,
            revocations: Vec::new(),
        }
    }

    /// Held by open epochs.
    #[must_use]
    pub fn held(&self) -> Credits {
        self.epochs.held()
    }

    /// Held by all open epochs of the node that speaks for this one.
    pub(super) fn held_by_node_of(&self, id: Epoch) -> Credits {
        let Some(epoch) = self.epochs.get(&id) else { return Credits::ZERO };
        self.epochs.of_node(&epoch.node).map(|(_, epoch)| epoch.escrow()).sum()
    }

    /// To be taken back, and not gone yet.
    #[must_use]
    pub fn revoke_pending(&self) -> Credits {
        self.revocations.iter().map(Revocation::left).sum()
    }

    /// What is free backs what nodes hold and the store had forgotten, before anything else.
    pub(super) fn back_claims(&mut self) {
        if self.epochs.unbacked().is_zero() {
            return;
        }
        let mut free = self.available().or_zero();
        self.epochs.change_each(|epoch| {
            let part = epoch.unbacked().min(free);
            epoch.granted = epoch.granted.plus(part);
            free = free.minus(part);
        });
    }

    /// Free for new grants.
    #[must_use]
    pub fn available(&self) -> Credits {
        self.lots.total().minus(self.held())
    }

    /// When its allowance is next given.
    fn reset(&self) -> Option<Wall> {
        self.keeping.reset.filter(|_| self.terms.allowance.is_some())
    }

    /// As its nodes' people see it.
    #[must_use]
    pub fn balance(&self) -> Balance {
        Balance {
            account: self.id.clone(),
            free: self.lots.of(Bucket::Free),
            paid: self.lots.of(Bucket::Paid),
            reset: self.reset(),
            refill: self.keeping.refill.pending.as_ref().map_or(Credits::ZERO, |pending| pending.amount),
            alerts: u32::try_from(self.keeping.alerted.len()).unwrap_or(u32::MAX),
            committed: self.lots.of(Bucket::Committed),
        }
    }

    /// As people see it.
    #[must_use]
    pub fn view(&self) -> AccountView {
        AccountView {
            account: self.id.clone(),
            available: self.available(),
            held: self.held(),
            free: self.lots.of(Bucket::Free),
            paid: self.lots.of(Bucket::Paid),
            lots: self.lots.iter().collect(),
            deposited: self.deposited,
            withdrawn: self.withdrawn,
            settled: self.settled,
            written_off: self.written_off,
            shortfall: self.shortfall,
            version: self.version,
            policy: self.policy,
            reset: self.reset(),
            verified: self.keeping.verified,
            refill: self.keeping.refill.pending.clone(),
            alerted: self.keeping.alerted.clone(),
            storage: self.keeping.storage,
            terms: self.terms.clone(),
            revoked: self.revoked,
            revoke_pending: self.revoke_pending(),
            committed: self.lots.of(Bucket::Committed),
            committed_until: self.keeping.committed,
        }
    }
}

impl LedgerEntry {
    /// What makes it one line: a later entry with the same key replaces it.
    #[must_use]
    pub fn key(&self) -> String {
        match &self.kind {
            EntryKind::Deposit { payment, .. } => format!("deposit/{payment}"),
            EntryKind::Usage { epoch, hour } => format!("usage/{epoch}/{hour}"),
            EntryKind::WriteOff { epoch, hour } => format!("write_off/{epoch}/{hour}"),
            EntryKind::Shortfall { epoch, hour } => format!("shortfall/{epoch}/{hour}"),
            EntryKind::Refill { payment } => format!("refill/{payment}"),
            EntryKind::Refund { payment, .. } => format!("refund/{payment}"),
            EntryKind::Correction { payment, .. } => format!("correction/{payment}"),
            EntryKind::Allowance { until } => format!("allowance/{}", until.0),
            EntryKind::Expired { number, .. } => format!("expired/{number}"),
            EntryKind::TransferOut { payment, .. } => format!("transfer_out/{payment}"),
            EntryKind::TransferIn { payment, .. } => format!("transfer_in/{payment}"),
            EntryKind::Revoked { revocation, part, .. } => format!("revoked/{revocation}/{part}"),
            EntryKind::OutcomeRefund { epoch, hour } => format!("outcome_refund/{epoch}/{hour}"),
            EntryKind::Commitment { until } => format!("commitment/{}", until.0),
            EntryKind::CommitmentLapsed { number, .. } => format!("commitment_lapsed/{number}"),
            EntryKind::Mirrored { movement, part, .. } => format!("mirrored/{movement}/{part}"),
        }
    }

    /// A line that concerns one bucket.
    pub(super) fn of(kind: EntryKind, at: Wall, bucket: Bucket, amount: Credits, status: EntryStatus) -> LedgerEntry {
        let Parts { free, paid, .. } = Parts::of(bucket, amount);
        LedgerEntry { at, kind, amount, free, paid, status }
    }

    /// The part that went to or came from the committed bucket.
    #[must_use]
    pub fn committed(&self) -> Credits {
        match self.kind {
            EntryKind::WriteOff { .. } | EntryKind::Shortfall { .. } => Credits::ZERO, // drawn from nothing
            _ => self.amount.minus(self.free).minus(self.paid),
        }
    }

    /// What it does to the balance. The balance is the sum of its lines, each with its effect.
    #[must_use]
    pub fn effect(&self) -> Effect {
        match (&self.kind, self.status) {
            (_, EntryStatus::Pending | EntryStatus::Failed) | (EntryKind::WriteOff { .. } | EntryKind::Shortfall { .. }, _) => {
                Effect::Nothing
            }
            (
                EntryKind::Usage { .. }
                | EntryKind::Expired { .. }
                | EntryKind::CommitmentLapsed { .. }
                | EntryKind::TransferOut { .. }
                | EntryKind::Revoked { .. }
                | EntryKind::Correction { direction: Direction::Takes, .. }
                | EntryKind::Mirrored { direction: Direction::Takes, .. },
                _,
            ) => Effect::Takes,
            (
                EntryKind::Deposit { .. }
                | EntryKind::Refill { .. }
                | EntryKind::Refund { .. }
                | EntryKind::OutcomeRefund { .. }
                | EntryKind::Correction { direction: Direction::Adds, .. }
                | EntryKind::Mirrored { direction: Direction::Adds, .. }
                | EntryKind::Allowance { .. }
                | EntryKind::Commitment { .. }
                | EntryKind::TransferIn { .. },
                _,
            ) => Effect::Adds,
        }
    }
}

/// Do the ledger's rules hold?
///
/// # Errors
/// The first rule that does not.
pub fn check(account: &Account) -> Result<(), Broken> {
    check_sums(account)?;
    account.epochs.iter().try_for_each(|(id, epoch)| check_epoch(*id, epoch))
}

/// The same of what a step has changed, where all held before it; and did nothing go back in it?
///
/// # Errors
/// The first rule that does not hold, or the first epoch of which a total fell, or that opened again.
pub fn check_step(before: &Account, after: &Account) -> Result<(), Broken> {
    check_sums(after)?;
    after.epochs.changed_since(&before.epochs).try_for_each(|(id, new, old)| {
        check_epoch(*id, new)?;
        if old.is_some_and(|old| went_back(old, new)) { Err(Broken::WentBack(*id)) } else { Ok(()) }
    })
}

fn check_sums(account: &Account) -> Result<(), Broken> {
    let available = account.available();
    if available < Credits::ZERO {
        return Err(Broken::Overdrawn(available));
    }
    if let Some(lot) = account.lots.iter().find(|lot| lot.left < Credits::ZERO) {
        return Err(Broken::BucketBelowZero(lot.key.bucket, lot.left));
    }
    // With the two above this also says: what nodes hold and what is settled is never more than what was paid in.
    let found = account.lots.total().plus(account.settled).plus(account.withdrawn);
    if found == account.deposited { Ok(()) } else { Err(Broken::NotConserved { found, deposited: account.deposited }) }
}

fn check_epoch(id: Epoch, epoch: &EpochAccount) -> Result<(), Broken> {
    if epoch.escrow() < Credits::ZERO {
        return Err(Broken::ChargedBeyondGrant(id));
    }
    if epoch.claimed < epoch.settled {
        return Err(Broken::ChargedBeyondReport(id));
    }
    if epoch.settled < epoch.refunds.refunded {
        return Err(Broken::RefundedBeyondCharge(id));
    }
    Ok(())
}

fn went_back(old: &EpochAccount, new: &EpochAccount) -> bool {
    let fell = new.settled < old.settled || new.granted < old.granted || new.returned < old.returned || new.claimed < old.claimed;
    let opened = old.state == EpochState::Closed && new.state == EpochState::Open;
    fell || new.refunds.refunded < old.refunds.refunded || opened
}
