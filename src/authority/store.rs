//! The authority's store: one SQLite file, one transaction a request. Amounts are decimal text, so that `sqlite3` shows what people read.

use std::path::Path;

use crate::domain::id::{AccountId, PaymentId};
use crate::domain::ledger::{AccountView, ClosePolicy, DepositRefusal, LedgerEntry, Payment};
use crate::domain::time::Now;
use crate::domain::wire::{AccountPolicy, Answer, Request};

/// Accounts, epochs, ledger and payments, durable.
pub struct Store {}

/// Why the store did not do it. Nothing of the act is stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No space, or a read-only disk: may pass.
    #[error("the store cannot grow: {0}")]
    Full(String),
    /// Another process holds the file for now: may pass.
    #[error("the store is held by another process: {0}")]
    Blocked(String),
    /// The disk failed or the file is damaged: what is on disk is not known any more, so the process must end.
    #[error("the store failed: {0}")]
    Fatal(String),
}

/// Why an admin's wish is not granted; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is one of this name with another policy.
    #[error("the account exists, with another policy")]
    AccountExists,
    /// There is none of this name.
    #[error("there is no such account")]
    UnknownAccount,
    /// Zero or below.
    #[error("an amount above zero is needed")]
    AmountNotPositive,
    /// More than one account may hold.
    #[error("too large for one account")]
    AmountTooLarge,
    /// A payment of this name was booked with another amount, bucket or account.
    #[error("a payment of this name was booked with another amount, bucket or account")]
    PaymentDiffers,
    /// Too much is waiting: try again.
    #[error("the authority is busy")]
    Busy,
    /// The authority has ended.
    #[error("the authority has stopped")]
    Stopped,
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Was it done now, or before?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Now.
    Now,
    /// Before: the same wish was granted earlier, and nothing changed.
    Before,
}
