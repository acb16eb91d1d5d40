//! The authority for one machine: a thread that owns the store, in the same process as the agent.

use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::store::{Done, Refusal, Store, StoreError};
use crate::domain::bucket::Bucket;
use crate::domain::id::{AccountId, NodeId, PaymentId};
use crate::domain::ledger::{AccountView, LedgerEntry};
use crate::domain::meter::Reading;
use crate::domain::money::Credits;
use crate::domain::time::Now;
use crate::domain::wire::{AccountPolicy, Answer, Push, Request};
use crate::node::priority::raise_priority;

/// Most that waits for the store.
const WAITING_MAX: usize = 256;

/// A running authority.
pub struct Embedded {
    inbox: Sender<Message>,
    thread: JoinHandle<Result<(), StoreError>>,
}

/// What the authority says unasked, from its own thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// An account changed, and that is durable: ask again.
    Push(Push, Change),
    /// The store cannot grow or is held; requests stay unanswered until that has passed. Said once.
    Full(StoreError),
    /// It can again.
    Recovered,
    /// The store failed and the thread has ended: the process must end.
    Fatal(StoreError),
}

/// What changed about an account: for people and for counting. What to do is told by the answer to the next question alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Credit came.
    TopUp,
    /// Credit is to go back.
    Revoke,
    /// Its policy.
    Policy,
}

impl Change {
    /// Its name in events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Change::TopUp => "topup",
            Change::Revoke => "revoke",
            Change::Policy => "policy",
        }
    }
}

/// Too much is waiting, or the authority has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the authority is busy or has stopped")]
pub struct Busy;

type Reply = Box<dyn FnOnce(Answer) + Send>;
type Act = Box<dyn FnOnce(&mut Store, Now) -> Result<Option<(Push, Change)>, StoreError> + Send>;

enum Message {
    Ask(Box<Request>, Reply),
    Admin(Act),
}

impl Embedded {
    /// Starts the thread. `clock` reads the clocks; `notice` is called from the thread, after the commit, and must not block.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(store: Store, clock: fn() -> Now, notice: impl FnMut(Notice) + Send + 'static) -> std::io::Result<Embedded> {
        let (inbox, messages) = bounded(WAITING_MAX);
        let thread = std::thread::Builder::new().name("authority".to_owned()).spawn(move || {
            // Its answers decide who runs on: they must not wait for a CPU that jobs keep busy.
            if let Reading::Missing(why) = raise_priority() {
                tracing::debug!(event = "authority_priority", %why);
            }
            run(store, &messages, clock, notice)
        })?;
        Ok(Embedded { inbox, thread })
    }

    /// Puts a node's request in the queue; never waits. `reply` is called from the thread after the commit, or never: no answer is never a verdict.
    ///
    /// # Errors
    /// When the queue is full or the thread has ended.
    pub fn ask(&self, request: Request, reply: impl FnOnce(Answer) + Send + 'static) -> Result<(), Busy> {
        self.inbox.try_send(Message::Ask(Box::new(request), Box::new(reply))).map_err(|_| Busy)
    }

    /// Makes an account without credit. The same once more is [`Done::Before`].
    ///
    /// # Errors
    /// [`Refusal::AccountExists`] with another policy; else see [`Refusal`].
    pub fn create_account(&self, id: AccountId, policy: AccountPolicy) -> Result<(AccountView, Done), Refusal> {
        self.admin(move |store, _| Ok((store.create_account(id, policy)?, None)))
    }

    /// Books a payment, once; the same once more is [`Done::Before`].
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn top_up(&self, account: AccountId, bucket: Bucket, amount: Credits, payment: PaymentId) -> Result<(AccountView, Done), Refusal> {
        self.admin(move |store, now| {
            let (view, done) = store.top_up(&account, bucket, amount, payment, now)?;
            let push = push_of(&view, done, Change::TopUp);
            Ok(((view, done), push))
        })
    }

    /// Takes credit back, once: all that there is where no amount is said. What nodes hold comes as they give it back.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn revoke(&self, account: AccountId, amount: Option<Credits>, id: PaymentId) -> Result<(AccountView, Done), Refusal> {
        self.admin(move |store, now| {
            let (view, done) = store.revoke(&account, amount, &id, now)?;
            let push = push_of(&view, done, Change::Revoke);
            Ok(((view, done), push))
        })
    }

    /// Gives an account another policy.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn set_policy(&self, account: AccountId, policy: AccountPolicy) -> Result<(AccountView, Done), Refusal> {
        self.admin(move |store, _| {
            let (view, done) = store.set_policy(&account, policy)?;
            let push = push_of(&view, done, Change::Policy);
            Ok(((view, done), push))
        })
    }

    /// One account.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn show(&self, account: AccountId) -> Result<AccountView, Refusal> {
        self.admin(move |store, _| Ok((store.show(&account)?, None)))
    }

    /// All accounts, by name.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn list(&self) -> Result<Vec<AccountView>, Refusal> {
        self.admin(|store, _| Ok((store.list()?, None)))
    }

    /// The account's latest ledger lines, newest first, at most `limit`.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn ledger(&self, account: AccountId, limit: u32) -> Result<Vec<LedgerEntry>, Refusal> {
        self.admin(move |store, _| Ok((store.ledger(&account, limit)?, None)))
    }

    /// Does the store answer?
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn ping(&self) -> Result<(), Refusal> {
        self.admin(|_, _| Ok(((), None)))
    }

    /// Closes every epoch of which nothing was heard for too long. For a timer.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn sweep(&self) -> Result<(), Refusal> {
        self.admin(|store, now| Ok((store.sweep(now)?, None)))
    }

    /// The accounts on which this node holds or may hold something, each with its version.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn accounts_of(&self, node: NodeId) -> Result<Vec<Push>, Refusal> {
        self.admin(move |store, _| Ok((store.accounts_of(&node)?, None)))
    }

    /// Does what waits, and ends the thread.
    ///
    /// # Errors
    /// The failure that ended it before.
    pub fn finish(self) -> Result<(), StoreError> {
        drop(self.inbox);
        self.thread.join().unwrap_or_else(|_| Err(StoreError::Fatal("the authority's thread panicked".to_owned())))
    }

    /// Has `act` done by the thread, and waits for what comes of it.
    fn admin<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Store, Now) -> Result<(T, Option<(Push, Change)>), Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let (reply, result) = bounded(1);
        let act: Act = Box::new(move |store, now| {
            let (result, after) = match act(store, now) {
                Ok((result, push)) => (Ok(result), Ok(push)),
                Err(Refusal::Store(error)) => (Err(Refusal::Store(error.clone())), Err(error)),
                Err(refusal) => (Err(refusal), Ok(None)),
            };
            // A caller that has gone away has no use for it.
            let _ = reply.send(result);
            after
        });
        self.inbox.try_send(Message::Admin(act)).map_err(|error| match error {
            TrySendError::Full(_) => Refusal::Busy,
            TrySendError::Disconnected(_) => Refusal::Stopped,
        })?;
        result.recv().unwrap_or(Err(Refusal::Stopped))
    }
}

fn push_of(view: &AccountView, done: Done, change: Change) -> Option<(Push, Change)> {
    (done == Done::Now).then(|| (Push { account: view.account.clone(), version: view.version }, change))
}

fn run(mut store: Store, messages: &Receiver<Message>, clock: fn() -> Now, mut notice: impl FnMut(Notice)) -> Result<(), StoreError> {
    let mut said_full = false;
    for message in messages {
        let writes = matches!(message, Message::Ask(..));
        let result = match message {
            Message::Ask(request, reply) => store.answer(&request, clock()).map(|answer| {
                reply(answer);
                None
            }),
            Message::Admin(act) => act(&mut store, clock()),
        };
        match result {
            Ok(push) => {
                // A read succeeds on a full disk too.
                if (writes || push.is_some()) && std::mem::take(&mut said_full) {
                    notice(Notice::Recovered);
                }
                if let Some((push, change)) = push {
                    notice(Notice::Push(push, change));
                }
            }
            Err(error @ StoreError::Fatal(_)) => {
                notice(Notice::Fatal(error.clone()));
                return Err(error);
            }
            Err(error) => {
                if !std::mem::replace(&mut said_full, true) {
                    notice(Notice::Full(error));
                }
            }
        }
    }
    Ok(())
}
