//! The authority's ledger: what it answers a node, and what it books.
//!
//! Credit leaves the balance when it is granted, so that what nodes hold and what is charged is never more than what was paid in.
//! Every total on the wire is of one epoch and only rises; the maximum counts, so a message that is lost, doubled or late does no harm.

mod account;
mod booking;
mod epochs;
mod gang;
mod keeping;
mod lot;
mod mirror;
mod payment;
mod recall;
mod refund;
mod revoke;
mod rules;
pub mod sizing;
mod terms;
mod unit;
mod writer;

pub use account::{
    AMOUNT_MAX, Account, AccountView, Broken, Effect, EntryKind, EntryStatus, EpochAccount, EpochState, HourTotals, LedgerEntry, Totals,
    check, check_step,
};
pub use booking::{Answered, ClosePolicy, VALID_FOR, answer, answer_unknown, book_previous, end_recovery, set_policy, set_terms, sweep};
pub use epochs::{Changing, Epochs};
pub use gang::{PartId, Register, Standing};
pub use keeping::{AccountNotice, Alerted, Armed, Keeping, Lines, PendingRefill, REFILL_PREFIX, Refill, Storage};
pub use lot::{Expiry, Lot, LotKey, Lots, Priority};
pub use mirror::{MIRROR_PREFIX, follow};
pub use payment::{Booked, Direction, Payment, PaymentRefusal, PaymentState, Purpose, book, transfer, verify};
pub use recall::recall;
pub use refund::EpochRefunds;
pub use revoke::{Revocation, RevokeRefusal, revocable, revoke};
pub use rules::{Recovery, Rules, Trust, Writers, has_forgotten};
pub use terms::{
    ALERTS_MAX, Alerts, Allowance, Commitment, CommitmentPeriod, DetachedStorage, RefillTerms, StorageAtZero, Terms, Threshold,
    Verification,
};
pub use unit::{Ratio, Unit, UnitName, UnitRefusal, in_credits};
pub use writer::{NUMBERS_MAX, Writer};

#[cfg(test)]
mod tests;
