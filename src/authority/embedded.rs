//! The authority for one machine: a thread that owns the store, in the same process as the agent.

use crate::domain::bucket::Bucket;
use crate::domain::id::{AccountId, PaymentId};
use crate::domain::ledger::{AccountView, LedgerEntry, Payment};
use crate::domain::time::Now;
use crate::domain::wire::{AccountPolicy, Answer, Push, Request};

use super::store::{Done, Refusal, Store, StoreError};

/// A running authority. Dropping it stops the thread once all that waits is done.
pub struct Embedded {}

/// What the authority says unasked, from its own thread.
#[derive(Debug)]
pub enum Notice {
    /// An account changed, and that is durable: ask again.
    Push(Push),
    /// The store cannot grow; requests stay unanswered until it can.
    Full(StoreError),
    /// The store failed and the thread has ended: the process must end.
    Fatal(StoreError),
}

/// Too much is waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the authority is busy or has stopped")]
pub struct Busy;

impl Embedded {
    /// Starts the thread. `clock` reads the clocks; `notice` is called from the thread, and must not block.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(store: Store, clock: fn() -> Now, notice: impl FnMut(Notice) + Send + 'static) -> std::io::Result<Embedded> {
        let _ = (store, clock, notice);
        todo!()
    }

    /// Puts a node's request in the queue. `reply` is called from the thread after the commit, or never: no answer is never a verdict.
    ///
    /// # Errors
    /// When the queue is full or the thread has ended.
    pub fn ask(&self, request: Request, reply: impl FnOnce(Answer) + Send + 'static) -> Result<(), Busy> {
        let _ = (request, reply);
        todo!()
    }

    /// Makes an account without credit. The same once more is the same answer.
    ///
    /// # Errors
    /// [`Refusal::AccountExists`] with another policy, and what the store says.
    pub fn create_account(&self, id: AccountId, policy: AccountPolicy) -> Result<(AccountView, Done), Refusal> {
        let _ = (id, policy);
        todo!()
    }

    /// Books a payment, once.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn top_up(
        &self,
        account: AccountId,
        bucket: Bucket,
        amount: crate::domain::money::Credits,
        payment: PaymentId,
    ) -> Result<(AccountView, Done), Refusal> {
        let _ = (account, Payment { id: payment, bucket, amount });
        todo!()
    }

    /// One account.
    ///
    /// # Errors
    /// [`Refusal::UnknownAccount`], and what the store says.
    pub fn show(&self, account: AccountId) -> Result<AccountView, Refusal> {
        let _ = account;
        todo!()
    }

    /// All accounts, by name.
    ///
    /// # Errors
    /// What the store says.
    pub fn list(&self) -> Result<Vec<AccountView>, Refusal> {
        todo!()
    }

    /// The account's latest ledger lines, newest first, at most `limit`.
    ///
    /// # Errors
    /// [`Refusal::UnknownAccount`], and what the store says.
    pub fn ledger(&self, account: AccountId, limit: u32) -> Result<Vec<LedgerEntry>, Refusal> {
        let _ = (account, limit);
        todo!()
    }

    /// Gives an account another policy.
    ///
    /// # Errors
    /// [`Refusal::UnknownAccount`], and what the store says.
    pub fn set_policy(&self, account: AccountId, policy: AccountPolicy) -> Result<(AccountView, Done), Refusal> {
        let _ = (account, policy);
        todo!()
    }
}
