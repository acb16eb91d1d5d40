//! What comes into an account or leaves it otherwise than by use, each once, by its name.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::account::{AMOUNT_MAX, Account, EntryKind, EntryStatus, LedgerEntry};
use super::keeping::Lines;
use super::lot::{Expiry, LotKey, Priority};
use crate::domain::bucket::Bucket;
use crate::domain::id::{AccountId, PaymentId};
use crate::domain::money::Credits;
use crate::domain::time::{Nanos, Now, Wall};

/// Most lots of one account.
const LOTS_MAX: usize = 512;
const DAY_MS: u64 = 86_400_000;

/// Something to be booked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payment {
    /// Its name.
    pub id: PaymentId,
    /// What it is.
    pub purpose: Purpose,
    /// To or from which bucket.
    pub bucket: Bucket,
    /// How much; positive.
    pub amount: Credits,
    /// When it is spent.
    pub priority: Priority,
    /// Until when.
    pub expires: Expiry,
}

/// What a payment is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Credit is paid in or given.
    Deposit,
    /// An automatic refill.
    Refill,
    /// Credit is given back for use that was charged.
    Refund,
    /// An operator puts something right.
    Correction(Direction),
    /// Credit moves to another account.
    Transfer(AccountId),
}

/// Which way a correction goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Into the account.
    Adds,
    /// Out of it.
    Takes,
}

/// How far a payment has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PaymentState {
    /// Announced, and not there yet: nothing of it can be spent.
    Pending,
    /// It is there.
    Completed,
    /// It did not come, and will not.
    Failed,
}

/// What became of a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Booked {
    /// Booked now.
    Now(Lines),
    /// The same was booked before: nothing changed.
    Before,
}

/// Why a payment is not booked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PaymentRefusal {
    /// Zero or below.
    #[error("an amount above zero is needed")]
    NotPositive,
    /// The account would hold more than [`AMOUNT_MAX`].
    #[error("too large for one account")]
    TooLarge,
    /// A payment of this name was booked otherwise.
    #[error("a payment of this name was booked with another amount, bucket or purpose")]
    PaymentDiffers,
    /// It was completed or failed before, and that stands.
    #[error("the payment is {0:?} already, and that stands")]
    Settled(PaymentState),
    /// Below the account's smallest deposit.
    #[error("a deposit is at least {0} credits here")]
    BelowMinimum(Credits),
    /// The bucket does not hold as much that no node holds.
    #[error("only {0} credits of that bucket can be taken out: the rest is not there, or held by nodes")]
    NotEnough(Credits),
    /// What expires has expired already.
    #[error("it would have expired already")]
    Expired,
    /// Too many lots with dates or priorities of their own.
    #[error("the account has {LOTS_MAX} lots already")]
    TooManyLots,
    /// From an account to itself.
    #[error("credit moves to another account")]
    SameAccount,
    /// Only what comes in can be pending.
    #[error("what leaves an account cannot be pending")]
    NotPending,
}

impl Payment {
    /// A deposit that never expires, spent in its turn.
    #[must_use]
    pub fn deposit(id: PaymentId, bucket: Bucket, amount: Credits) -> Payment {
        Payment { id, purpose: Purpose::Deposit, bucket, amount, priority: Priority::default(), expires: Expiry::Never }
    }

    /// The lot that it goes into. What is paid in without a date has that of the account's plan, to the end of its day (UTC), so that payments
    /// of one day are one lot.
    fn key(&self, account: &Account, now: Wall) -> LotKey {
        let planned = matches!(self.purpose, Purpose::Deposit | Purpose::Refill) && self.expires == Expiry::Never;
        let at_the_end = |lasts: Nanos| Expiry::At(Wall(now.0.saturating_add(lasts.millis()).div_ceil(DAY_MS).saturating_mul(DAY_MS)));
        let plan = account.terms.credit_lasts.filter(|_| planned).map(at_the_end);
        LotKey { bucket: self.bucket, priority: self.priority, expires: plan.unwrap_or(self.expires) }
    }

    fn takes(&self) -> bool {
        matches!(self.purpose, Purpose::Correction(Direction::Takes) | Purpose::Transfer(_))
    }

    fn line(&self, state: PaymentState, now: Wall) -> LedgerEntry {
        let (bucket, payment) = (self.bucket, self.id.clone());
        let kind = match &self.purpose {
            Purpose::Deposit => EntryKind::Deposit { bucket, payment },
            Purpose::Refill => EntryKind::Refill { payment },
            Purpose::Refund => EntryKind::Refund { bucket, payment },
            Purpose::Correction(direction) => EntryKind::Correction { bucket, payment, direction: *direction },
            Purpose::Transfer(to) => EntryKind::TransferOut { to: to.clone(), payment },
        };
        let status = match state {
            PaymentState::Pending => EntryStatus::Pending,
            PaymentState::Completed => EntryStatus::Completed,
            PaymentState::Failed => EntryStatus::Failed,
        };
        LedgerEntry::of(kind, now, bucket, self.amount, status)
    }
}

/// Books a payment, confirms one that is pending, or notes that it failed. `booked` is the payment of that name as it was booked before.
/// Raises the version where that changes what may be spent: push after the commit. Transfers are booked by [`transfer`].
///
/// # Errors
/// The account is unchanged.
pub fn book(
    account: &mut Account,
    payment: &Payment,
    wanted: PaymentState,
    booked: Option<(&Payment, PaymentState)>,
    now: Now,
) -> Result<Booked, PaymentRefusal> {
    match before(payment, wanted, booked)? {
        Novelty::Known => return Ok(Booked::Before),
        Novelty::New => check_new(account, payment, wanted, now.wall)?,
        Novelty::Pending => check_room(account, payment)?,
    }
    let (mut after, mut lines) = (account.clone(), Lines::default());
    after.pass_time(now.wall, &mut lines.ledger);
    if wanted == PaymentState::Completed {
        if payment.takes() {
            take_out(&mut after, payment)?;
        } else {
            after.arrive(payment.key(account, now.wall), payment.amount);
        }
    }
    let pending = &mut after.keeping.refill.pending;
    if wanted != PaymentState::Pending && pending.as_ref().is_some_and(|pending| pending.payment == payment.id) {
        *pending = None;
        after.version = after.version.saturating_add(1); // who waited for it need not wait any more
    }
    lines.ledger.push(payment.line(wanted, now.wall));
    let lines = finished(&mut after, lines, now);
    *account = after;
    Ok(Booked::Now(lines))
}

/// Moves credit from one account to another, with its dates and priorities.
///
/// # Errors
/// Both accounts are unchanged.
pub fn transfer(
    from: &mut Account,
    to: &mut Account,
    payment: &Payment,
    booked: Option<(&Payment, PaymentState)>,
    now: Now,
) -> Result<Option<(Lines, Lines)>, PaymentRefusal> {
    if from.id == to.id {
        return Err(PaymentRefusal::SameAccount);
    }
    match before(payment, PaymentState::Completed, booked)? {
        Novelty::Known => return Ok(None),
        Novelty::New | Novelty::Pending => {}
    }
    check_new(from, payment, PaymentState::Completed, now.wall)?;
    check_room(to, payment)?;
    let (mut out, mut arrived, mut after) = (Lines::default(), Lines::default(), from.clone());
    after.pass_time(now.wall, &mut out.ledger);
    let pieces = take_out(&mut after, payment)?;
    *from = after;
    to.pass_time(now.wall, &mut arrived.ledger);
    for piece in pieces {
        to.arrive(piece.key, piece.left);
    }
    out.ledger.push(payment.line(PaymentState::Completed, now.wall));
    let kind = EntryKind::TransferIn { from: from.id.clone(), payment: payment.id.clone() };
    arrived.ledger.push(LedgerEntry::of(kind, now.wall, payment.bucket, payment.amount, EntryStatus::Completed));
    Ok(Some((finished(from, out, now), finished(to, arrived, now))))
}

/// Says that somebody vouches for the account, or not any more. Raises the version if that changes anything.
pub fn verify(account: &mut Account, verified: Option<Wall>) {
    if account.keeping.verified.is_some() != verified.is_some() {
        account.keeping.verified = verified;
        account.version = account.version.saturating_add(1);
    }
}

fn finished(account: &mut Account, mut lines: Lines, now: Now) -> Lines {
    let Lines { ledger, notices } = account.review(now);
    lines.ledger.extend(ledger);
    lines.notices.extend(notices);
    lines
}

enum Novelty {
    New,
    /// Announced before, and to be settled now.
    Pending,
    Known,
}

fn before(payment: &Payment, wanted: PaymentState, booked: Option<(&Payment, PaymentState)>) -> Result<Novelty, PaymentRefusal> {
    let Some((known, state)) = booked else { return Ok(Novelty::New) };
    if known != payment {
        return Err(PaymentRefusal::PaymentDiffers);
    }
    match (state, wanted) {
        (PaymentState::Pending, PaymentState::Completed | PaymentState::Failed) => Ok(Novelty::Pending),
        (_, PaymentState::Pending) => Ok(Novelty::Known), // the announcement once more, whatever became of it
        (state, wanted) if state == wanted => Ok(Novelty::Known),
        (state, _) => Err(PaymentRefusal::Settled(state)),
    }
}

fn check_new(account: &Account, payment: &Payment, wanted: PaymentState, now: Wall) -> Result<(), PaymentRefusal> {
    let minimum = account.terms.topup_min;
    let key = payment.key(account, now);
    if !payment.amount.is_positive() {
        return Err(PaymentRefusal::NotPositive);
    }
    if payment.takes() {
        return if wanted == PaymentState::Pending { Err(PaymentRefusal::NotPending) } else { Ok(()) };
    }
    if payment.purpose == Purpose::Deposit && payment.amount < minimum {
        return Err(PaymentRefusal::BelowMinimum(minimum));
    }
    check_room(account, payment)?;
    if matches!(payment.expires, Expiry::At(at) if at <= now) {
        return Err(PaymentRefusal::Expired);
    }
    if LOTS_MAX <= account.lots.count() && !account.lots.knows(key) {
        return Err(PaymentRefusal::TooManyLots);
    }
    Ok(())
}

fn check_room(account: &Account, payment: &Payment) -> Result<(), PaymentRefusal> {
    if AMOUNT_MAX < account.deposited.plus(payment.amount) { Err(PaymentRefusal::TooLarge) } else { Ok(()) }
}

/// Takes credit out that no node holds.
fn take_out(account: &mut Account, payment: &Payment) -> Result<Vec<super::lot::Lot>, PaymentRefusal> {
    let most = account.lots.of(payment.bucket).min(account.available());
    if most < payment.amount {
        return Err(PaymentRefusal::NotEnough(most.or_zero()));
    }
    let pieces = account.lots.take(payment.bucket, payment.amount).ok_or(PaymentRefusal::NotEnough(most.or_zero()))?;
    account.withdrawn = account.withdrawn.plus(payment.amount);
    account.version = account.version.saturating_add(1);
    Ok(pieces)
}
