//! The authority for one machine: a thread that owns the store, in the same process as the agent.

mod inbox;
mod teller;

use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::bounded;

use self::inbox::{Entrance, Inbox, NotTaken, Nothing, inbox};
use self::teller::{Teller, Told};
use super::engine;
use super::engine::http::Http;
use super::engine::run::Running;
use super::engine::status::EngineView;
use super::store::standing::StandingView;
use super::store::{Done, GangPush, Refusal, Store, StoreError};
use crate::domain::anchor::Anchor;
use crate::domain::bucket::Bucket;
use crate::domain::chain::Head;
use crate::domain::id::{AccountId, NodeId, PaymentId};
use crate::domain::ledger::{AccountNotice, AccountView, LedgerEntry, PaymentState, Purpose, Terms};
use crate::domain::meter::Reading;
use crate::domain::money::Credits;
use crate::domain::request::{Pay, Vouch};
use crate::domain::time::{Mono, Nanos, Now};
use crate::domain::wire::{AccountPolicy, Answer, Digested, GangWant, Limits, Push, Request, Settlement};
use crate::node::priority::raise_priority;

/// Most that waits for the store: a question of each node of a large fleet, should all of them ask at once.
const WAITING_MAX: usize = 4_096;
/// Questions that are answered with one commit, and accounts in them: none waits long for the others.
const GROUP_MAX: usize = 64;
const GROUP_ENTRIES_MAX: usize = 512;
/// Between two looks at what the calendar brings.
const CALENDAR_EVERY: Nanos = Nanos::from_secs(30);

/// A running authority.
pub struct Embedded {
    door: Door,
    thread: JoinHandle<Result<(), StoreError>>,
    /// Ends before the thread that it acts through.
    engine: Option<Running>,
}

/// A way to the store's thread. It ends when all of these are gone.
#[derive(Clone)]
pub struct Door(Entrance<Message>);

/// What the authority says unasked, from its own thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// An account changed, and that is durable: ask again.
    Push(Push, Change),
    /// Something is to be told of an account, or done for it; that is durable.
    Account(AccountId, AccountNotice),
    /// What a gang is to do has changed, and that is durable.
    Gang(GangPush),
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
    /// The engine that keeps its balance said another.
    Mirrored,
}

impl Change {
    /// Its name in events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Change::TopUp => "topup",
            Change::Revoke => "revoke",
            Change::Policy => "policy",
            Change::Mirrored => "mirrored",
        }
    }
}

/// Too much is waiting, or the authority has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the authority is busy or has stopped")]
pub struct Busy;

type Reply = Box<dyn FnOnce(Answer) + Send>;
type Act = Box<dyn FnOnce(&mut Store, Now) -> Result<Vec<(Push, Change)>, StoreError> + Send>;

enum Message {
    Ask(Box<Digested>, Reply),
    Admin(Act),
}

impl Embedded {
    /// Starts the thread. `clock` reads the clocks; `notice` is called from the thread, after the commit, and must not block.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(store: Store, clock: fn() -> Now, notice: impl FnMut(Notice) + Send + 'static) -> std::io::Result<Embedded> {
        let (entrance, inbox) = inbox(WAITING_MAX);
        let thread = std::thread::Builder::new().name("authority".to_owned()).spawn(move || {
            // Its answers decide who runs on: they must not wait for a CPU that jobs keep busy.
            if let Reading::Missing(why) = raise_priority() {
                tracing::debug!(event = "authority_priority", %why);
            }
            run(store, &inbox, clock, notice)
        })?;
        Ok(Embedded { door: Door(entrance), thread, engine: None })
    }

    /// The same, following this engine.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn with_engine(self, http: Http, clock: fn() -> Now) -> std::io::Result<Embedded> {
        let engine = engine::run::start(http, self.door.clone(), clock)?;
        Ok(Embedded { engine: Some(engine), ..self })
    }

    /// How it gets on with its engine, where it has one.
    #[must_use]
    pub fn engine(&self) -> Option<EngineView> {
        self.engine.as_ref().map(|engine| engine.status().view())
    }

    /// Puts a node's request in the queue, with how far its journal is on disk; never waits. `reply` is called after the commit, from a thread of the authority's, or never: no answer is never a verdict.
    ///
    /// # Errors
    /// When the queue is full or the thread has ended.
    pub fn ask(&self, request: Request, journal: Head, reply: impl FnOnce(Answer) + Send + 'static) -> Result<(), Busy> {
        self.settle(Settlement { request, journal, limits: Limits::default() }, reply)
    }

    /// The same, for a node that may not have everything.
    ///
    /// # Errors
    /// As [`Embedded::ask`].
    pub fn settle(&self, settlement: Settlement, reply: impl FnOnce(Answer) + Send + 'static) -> Result<(), Busy> {
        self.door.0.put(Message::Ask(Box::new(Digested::new(settlement)), Box::new(reply))).map_err(|_| Busy)
    }

    /// How the store itself stands.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn standing(&self) -> Result<StandingView, Refusal> {
        let standing = self.admin(|store, now| Ok((store.standing(now.mono)?, Vec::new())))?;
        Ok(StandingView { engine: self.engine(), ..standing })
    }

    /// Makes an account without credit. The same once more is [`Done::Before`].
    ///
    /// # Errors
    /// [`Refusal::AccountExists`] with another policy; else see [`Refusal`].
    pub fn create_account(&self, id: AccountId, policy: AccountPolicy, terms: Terms) -> Result<(AccountView, Done), Refusal> {
        self.admin(move |store, now| Ok((store.create_account(id, policy, terms, now)?, Vec::new())))
    }

    /// Books a deposit, once; the same once more is [`Done::Before`].
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn top_up(&self, account: AccountId, bucket: Bucket, amount: Credits, payment: PaymentId) -> Result<(AccountView, Done), Refusal> {
        self.pay(account, Pay::deposit(amount, bucket, None), payment)
    }

    /// Books a payment, once; the same once more is [`Done::Before`].
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn pay(&self, account: AccountId, pay: Pay, name: PaymentId) -> Result<(AccountView, Done), Refusal> {
        self.admin(move |store, now| {
            let payment = pay.payment(name, store.in_credits(&account, &pay.amount)?);
            let (view, done) = store.pay(&account, &payment, pay.state, now)?;
            let mut pushes = push_of(&view, done, Change::TopUp);
            if let (Purpose::Transfer(to), Done::Now) = (&payment.purpose, done) {
                pushes.extend(push_of(&store.show(to)?, done, Change::TopUp));
            }
            Ok(((view, done), pushes))
        })
    }

    /// Takes credit back, once: all that there is where no amount is said. What nodes hold comes as they give it back.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn revoke(&self, account: AccountId, amount: Option<Credits>, id: PaymentId) -> Result<(AccountView, Done), Refusal> {
        self.admin(move |store, now| {
            let (view, done) = store.revoke(&account, amount, &id, now)?;
            let pushes = push_of(&view, done, Change::Revoke);
            Ok(((view, done), pushes))
        })
    }

    /// Says what became of a payment that is pending.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn settle_payment(&self, account: AccountId, payment: PaymentId, came: PaymentState) -> Result<(AccountView, Done), Refusal> {
        self.change(move |store, now| store.settle_payment(&account, &payment, came, now))
    }

    /// Gives an account another policy, and other terms.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn set_policy(&self, account: AccountId, policy: AccountPolicy, terms: Terms) -> Result<(AccountView, Done), Refusal> {
        self.change(move |store, now| store.set_policy(&account, policy, terms, now))
    }

    /// Says that somebody vouches for an account, or not any more.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn verify(&self, account: AccountId, vouched: Vouch) -> Result<(AccountView, Done), Refusal> {
        self.change(move |store, now| store.verify(&account, vouched, now))
    }

    fn change(
        &self,
        change: impl FnOnce(&mut Store, Now) -> Result<(AccountView, Done), Refusal> + Send + 'static,
    ) -> Result<(AccountView, Done), Refusal> {
        self.admin(move |store, now| {
            let (view, done) = change(store, now)?;
            let pushes = push_of(&view, done, Change::Policy);
            Ok(((view, done), pushes))
        })
    }

    /// One account.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn show(&self, account: AccountId) -> Result<AccountView, Refusal> {
        self.admin(move |store, _| Ok((store.show(&account)?, Vec::new())))
    }

    /// All accounts, by name.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn list(&self) -> Result<Vec<AccountView>, Refusal> {
        self.admin(|store, _| Ok((store.list()?, Vec::new())))
    }

    /// The account's latest ledger lines, newest first, at most `limit`.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn ledger(&self, account: AccountId, limit: u32) -> Result<Vec<LedgerEntry>, Refusal> {
        self.admin(move |store, _| Ok((store.ledger(&account, limit)?, Vec::new())))
    }

    /// How far the nodes' journals went, as they said when they settled, the oldest first.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn anchors(&self) -> Result<Vec<Anchor>, Refusal> {
        self.admin(|store, _| Ok((store.anchors()?, Vec::new())))
    }

    /// Does the store answer?
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn ping(&self) -> Result<(), Refusal> {
        self.admin(|_, _| Ok(((), Vec::new())))
    }

    /// Closes every epoch of which nothing was heard for too long. For a timer.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn sweep(&self) -> Result<(), Refusal> {
        self.admin(|store, now| Ok((store.sweep(now)?, Vec::new())))
    }

    /// The accounts on which this node holds or may hold something, each with its version.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn accounts_of(&self, node: NodeId) -> Result<Vec<Push>, Refusal> {
        self.admin(move |store, _| Ok((store.accounts_of(&node)?, Vec::new())))
    }

    /// What the gangs are to do that have parts on this node.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn gangs_of(&self, node: NodeId) -> Result<Vec<GangWant>, Refusal> {
        self.admin(move |store, _| Ok((store.gangs_of(&node)?, Vec::new())))
    }

    /// Does what waits, and ends the thread.
    ///
    /// # Errors
    /// The failure that ended it before.
    pub fn finish(self) -> Result<(), StoreError> {
        drop(self.engine);
        drop(self.door);
        self.thread.join().unwrap_or_else(|_| Err(StoreError::Fatal("the authority's thread panicked".to_owned())))
    }

    /// Has `act` done by the thread, and waits for what comes of it.
    fn admin<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Store, Now) -> Result<(T, Vec<(Push, Change)>), Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        self.door.act(act)
    }
}

impl Door {
    /// Has `act` done by the thread, and waits for what comes of it.
    ///
    /// # Errors
    /// That of the act, or the thread takes none now.
    pub fn act<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Store, Now) -> Result<(T, Vec<(Push, Change)>), Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let (reply, result) = bounded(1);
        let act: Act = Box::new(move |store, now| {
            let (result, after) = match act(store, now) {
                Ok((result, pushes)) => (Ok(result), Ok(pushes)),
                Err(Refusal::Store(error)) => (Err(Refusal::Store(error.clone())), Err(error)),
                Err(refusal) => (Err(refusal), Ok(Vec::new())),
            };
            // A caller that has gone away has no use for it.
            let _ = reply.send(result);
            after
        });
        self.0.put(Message::Admin(act)).map_err(|why| match why {
            NotTaken::Full => Refusal::Busy,
            NotTaken::Ended => Refusal::Stopped,
        })?;
        result.recv().unwrap_or(Err(Refusal::Stopped))
    }
}

fn push_of(view: &AccountView, done: Done, change: Change) -> Vec<(Push, Change)> {
    if done == Done::Now { vec![(Push { account: view.account.clone(), version: view.version }, change)] } else { Vec::new() }
}

fn run(mut store: Store, inbox: &Inbox<Message>, clock: fn() -> Now, mut notice: impl FnMut(Notice)) -> Result<(), StoreError> {
    let (mut said_full, mut teller) = (false, Teller::default());
    let mut calendar: Option<Mono> = None;
    loop {
        let now = clock();
        let results = if calendar.is_none_or(|kept| CALENDAR_EVERY <= now.mono.since(kept)) {
            calendar = Some(now.mono);
            let kept = store.keep_calendar(now).map(|pushes| pushes.into_iter().map(|push| (push, Change::TopUp)).collect());
            vec![(Writes::Perhaps, kept)]
        } else {
            let message = match inbox.take(Duration::from_nanos(CALENDAR_EVERY.0)) {
                Ok(message) => message,
                Err(Nothing::Yet) => continue,
                Err(Nothing::Ever) => return Ok(()),
            };
            match message {
                Message::Ask(question, reply) => {
                    let group = with_others((question, reply), inbox);
                    answer_all(&mut store, group, clock, &mut teller).into_iter().map(|answered| (Writes::Always, answered)).collect()
                }
                Message::Admin(act) => vec![(Writes::Perhaps, act(&mut store, clock()))],
            }
        };
        for (writes, result) in results {
            match result {
                Ok(pushes) => {
                    // A read succeeds on a full disk too.
                    if (writes == Writes::Always || !pushes.is_empty()) && std::mem::take(&mut said_full) {
                        notice(Notice::Recovered);
                    }
                    for (push, change) in pushes {
                        notice(Notice::Push(push, change));
                    }
                    tell_people(&mut store, &mut notice);
                    store.gang_news().into_iter().for_each(|push| notice(Notice::Gang(push)));
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
    }
}

/// Does an act write?
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writes {
    Always,
    Perhaps,
}

type Waiting = (Box<Digested>, Reply);
type Pushes = Vec<(Push, Change)>;

/// A question and those that wait behind it, up to the first act of another kind.
fn with_others(first: Waiting, inbox: &Inbox<Message>) -> Vec<Waiting> {
    let (mut questions, mut entries) = (1, first.0.settlement().request.entries.len());
    let others = inbox.take_while(|next| match next {
        Message::Ask(question, _) if questions < GROUP_MAX && entries < GROUP_ENTRIES_MAX => {
            questions += 1;
            entries += question.settlement().request.entries.len();
            true
        }
        Message::Ask(..) | Message::Admin(_) => false,
    });
    let asked = |message| match message {
        Message::Ask(question, reply) => Some((question, reply)),
        Message::Admin(_) => None, // not taken above
    };
    std::iter::once(first).chain(others.into_iter().filter_map(asked)).collect()
}

/// Answers them with one commit, and only after it. Where that fails each is asked by itself, so that one that cannot be answered takes no other with it.
fn answer_all(store: &mut Store, group: Vec<Waiting>, clock: fn() -> Now, teller: &mut Teller) -> Vec<Result<Pushes, StoreError>> {
    let ask = |store: &mut Store, question: &Digested| {
        let now = clock();
        let answer = store.settle(question, now)?;
        let pushes = store.recall(&answer, now)?;
        Ok((answer, pushes.into_iter().map(|push| (push, Change::Revoke)).collect::<Pushes>()))
    };
    let all = store.together(|store| group.iter().map(|(question, _)| ask(store, question)).collect::<Result<Vec<_>, _>>());
    match all {
        Ok(answers) => {
            let (answers, results): (Vec<Answer>, _) = answers.into_iter().map(|(answer, pushes)| (answer, Ok(pushes))).unzip();
            teller.tell(group.into_iter().zip(answers).map(|((question, reply), answer)| Told { question, reply, answer }).collect());
            results
        }
        Err(error) if group.len() == 1 || matches!(error, StoreError::Fatal(_)) => vec![Err(error)],
        Err(_) => {
            let mut results = Vec::new();
            for (question, reply) in group {
                let answered = store.together(|store| ask(store, &question));
                let fatal = matches!(answered, Err(StoreError::Fatal(_)));
                results.push(answered.map(|(answer, pushes)| {
                    teller.tell(vec![Told { question, reply, answer }]);
                    pushes
                }));
                if fatal {
                    break;
                }
            }
            results
        }
    }
}

fn tell_people(store: &mut Store, notice: &mut impl FnMut(Notice)) {
    for (account, what) in store.notices() {
        notice(Notice::Account(account, what));
    }
}
