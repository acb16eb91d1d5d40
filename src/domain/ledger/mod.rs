//! The authority's ledger: what it answers a node, and what it books.
//!
//! Credit leaves the balance when it is granted, so that what nodes hold and what is charged is never more than what was paid in.
//! Every total on the wire is of one epoch and only rises; the maximum counts, so a message that is lost, doubled or late does no harm.

mod account;
mod booking;
mod revoke;
pub mod sizing;

pub use account::{
    AMOUNT_MAX, Account, AccountView, Broken, EntryKind, EntryStatus, EpochAccount, EpochState, HourTotals, LedgerEntry, Totals, check,
    check_step,
};
pub use booking::{
    Answered, ClosePolicy, DepositRefusal, Deposited, Payment, VALID_FOR, answer, answer_unknown, book_previous, deposit, set_policy, sweep,
};
pub use revoke::{Revocation, RevokeRefusal, revocable, revoke};

#[cfg(test)]
mod tests;
