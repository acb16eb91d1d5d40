//! The authority's store: one `SQLite` file, one transaction a request: load, let the pure ledger act, save, commit, and only then answer.
//! Amounts are decimal text and ids hexadecimal, so that `sqlite3` shows what people read.

mod anchors;
pub mod backup;
mod gang;
mod group;
mod kept;
pub mod mirror;
mod nodes;
mod recall;
mod revoke;
mod rows;
mod sides;
pub mod standing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use crate::domain::anchor::Anchor;
use crate::domain::chain::Head;
use crate::domain::id::{AccountId, Epoch, PaymentId};
use crate::domain::ledger::{
    Account, AccountNotice, AccountView, Answered, Booked, ClosePolicy, EpochAccount, EpochState, Epochs, LedgerEntry, Lines,
    MIRROR_PREFIX, Payment, PaymentRefusal, PaymentState, Purpose, REFILL_PREFIX, RevokeRefusal, Rules, Storage, Terms, UnitRefusal,
    answer, answer_unknown, book, book_previous, check, check_step, set_policy, set_terms, sweep, transfer, verify,
};
use crate::domain::money::Credits;
use crate::domain::request::{Amount, Vouch};
use crate::domain::time::{Mono, Now};
use crate::domain::wire::{AccountPolicy, Answer, Digested, Limits, PROTOCOL, Push, Request, Said, Settlement};
use crate::sqlite::{Failure, Kind, classify, copy_back, open_for_reading, open_for_writing};

pub use gang::GangPush;
pub use sides::read_sides;

const KIND: Kind = Kind {
    application_id: 0x6d74_7261,
    version: 2,
    schema: "
        CREATE TABLE account (id TEXT PRIMARY KEY, policy TEXT NOT NULL, version INTEGER NOT NULL, free TEXT NOT NULL, paid TEXT NOT NULL,
            deposited TEXT NOT NULL, settled TEXT NOT NULL, written_off TEXT NOT NULL, shortfall TEXT NOT NULL,
            lots TEXT NOT NULL DEFAULT '[]', withdrawn TEXT NOT NULL DEFAULT '0', terms TEXT NOT NULL DEFAULT '{}',
            keeping TEXT NOT NULL DEFAULT '{}') STRICT;
        CREATE TABLE epoch (account TEXT NOT NULL REFERENCES account (id), epoch TEXT NOT NULL, node TEXT NOT NULL, boot TEXT, state TEXT NOT NULL,
            totals TEXT NOT NULL, granted TEXT NOT NULL, returned TEXT NOT NULL, settled TEXT NOT NULL, claimed TEXT NOT NULL,
            unfunded TEXT NOT NULL, shortfall TEXT NOT NULL, last_request INTEGER NOT NULL, last_digest TEXT NOT NULL, burn_per_s TEXT NOT NULL,
            hour TEXT NOT NULL, PRIMARY KEY (account, epoch)) STRICT;
        CREATE INDEX epoch_open ON epoch (node, epoch) WHERE state = 'open';
        CREATE INDEX epoch_id ON epoch (epoch);
        CREATE TABLE ledger (seq INTEGER PRIMARY KEY AUTOINCREMENT, account TEXT NOT NULL REFERENCES account (id), key TEXT NOT NULL,
            at_ms INTEGER NOT NULL, kind TEXT NOT NULL, amount TEXT NOT NULL, free TEXT NOT NULL, paid TEXT NOT NULL, status TEXT NOT NULL,
            UNIQUE (account, key)) STRICT;
        CREATE TABLE payment (id TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES account (id), bucket TEXT NOT NULL, amount TEXT NOT NULL,
            at_ms INTEGER NOT NULL, purpose TEXT NOT NULL DEFAULT '\"deposit\"', state TEXT NOT NULL DEFAULT 'completed',
            priority INTEGER NOT NULL DEFAULT 10, expires_ms INTEGER) STRICT;",
    // From version 1: each bucket becomes a lot that never expires, and each payment is a deposit that came.
    steps: &["
        ALTER TABLE account ADD COLUMN lots TEXT NOT NULL DEFAULT '[]';
        ALTER TABLE account ADD COLUMN withdrawn TEXT NOT NULL DEFAULT '0';
        ALTER TABLE account ADD COLUMN terms TEXT NOT NULL DEFAULT '{}';
        ALTER TABLE account ADD COLUMN keeping TEXT NOT NULL DEFAULT '{}';
        ALTER TABLE payment ADD COLUMN purpose TEXT NOT NULL DEFAULT '\"deposit\"';
        ALTER TABLE payment ADD COLUMN state TEXT NOT NULL DEFAULT 'completed';
        ALTER TABLE payment ADD COLUMN priority INTEGER NOT NULL DEFAULT 10;
        ALTER TABLE payment ADD COLUMN expires_ms INTEGER;
        UPDATE account SET lots = json_array(json_object('bucket', 'free', 'left', free), json_object('bucket', 'paid', 'left', paid));"],
};

/// Commits between two copies of the write-ahead log into the file.
const COPY_BACK_COMMITS: u32 = 64;
/// More than there are: each is made once.
const STATEMENTS_KEPT: usize = 64;

/// Accounts, epochs, ledger and payments, durable.
pub struct Store {
    connection: Connection,
    close: ClosePolicy,
    heard: Heard,
    commits: u32,
    /// What people outside are to hear of what is durable; taken by [`Store::notices`].
    notices: Vec<(AccountId, AccountNotice)>,
    standing: standing::Standing,
    /// When holders of an account were last asked to give back what they do not need.
    recalled: BTreeMap<AccountId, Mono>,
    /// What is to be told of gangs; taken by [`Store::gang_news`].
    gang_news: Vec<GangPush>,
    group: group::Group,
    kept: kept::Kept,
    mirrors: mirror::Mirrors,
}

/// When each open epoch was last heard of, on this process's clock. Not stored: with a new process silence starts again, which can only err late.
struct Heard {
    opened_at: Mono,
    at: BTreeMap<(AccountId, Epoch), Mono>,
}

/// Why the store did not do it. Nothing of the act is stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No space, or a read-only disk: may pass.
    #[error("the store cannot grow: {0}")]
    Full(String),
    /// Another process holds the file for now: may pass.
    #[error("the store is held by another process: {0}")]
    Blocked(String),
    /// The disk failed, the file is damaged or a rule of the ledger is broken: the process must end.
    #[error("the store failed: {0}")]
    Fatal(String),
}

/// Why an admin's wish is not granted; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is one of this name with another policy.
    #[error("the account exists, with another policy")]
    AccountExists,
    /// There is none of this name.
    #[error("there is no such account")]
    UnknownAccount,
    /// The payment is not booked.
    #[error(transparent)]
    Payment(#[from] PaymentRefusal),
    /// There is none of this name.
    #[error("there is no such payment on this account")]
    UnknownPayment,
    /// Names that begin with `refill/` or `engine/` are given by the authority.
    #[error("names that begin with {REFILL_PREFIX} or {MIRROR_PREFIX} are given by the authority itself")]
    ReservedName,
    /// A billing engine keeps the balance.
    #[error("a billing engine keeps this account's balance: credit comes and goes there")]
    Mirrored,
    /// An amount in a unit that is not the account's, or not exact in it.
    #[error(transparent)]
    Unit(#[from] UnitRefusal),
    /// Too much is waiting: try again.
    #[error("the authority is busy")]
    Busy,
    /// The authority has ended.
    #[error("the authority has stopped")]
    Stopped,
    /// Nothing is revoked.
    #[error(transparent)]
    Revoke(#[from] RevokeRefusal),
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The balances are kept elsewhere.
    #[error("the balances are kept at {0}")]
    Elsewhere(String),
}

/// Was it done now, or before?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Now.
    Now,
    /// Before: the same wish was granted earlier, and nothing changed.
    Before,
}

impl Refusal {
    /// A stable word for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Refusal::AccountExists => "account_exists",
            Refusal::UnknownAccount => "unknown_account",
            Refusal::UnknownPayment => "unknown_payment",
            Refusal::ReservedName => "reserved_name",
            Refusal::Mirrored => "account_mirrored",
            Refusal::Unit(UnitRefusal::OtherUnit { .. }) => "unit_mismatch",
            Refusal::Unit(UnitRefusal::NotExact(_)) => "amount_not_exact",
            Refusal::Payment(payment) => match payment {
                PaymentRefusal::NotPositive => "amount_not_positive",
                PaymentRefusal::TooLarge => "amount_too_large",
                PaymentRefusal::PaymentDiffers => "payment_differs",
                PaymentRefusal::Settled(_) => "payment_settled",
                PaymentRefusal::BelowMinimum(_) => "below_minimum",
                PaymentRefusal::NotEnough(_) => "not_enough",
                PaymentRefusal::Expired => "expired",
                PaymentRefusal::TooManyLots => "too_many_lots",
                PaymentRefusal::SameAccount => "same_account",
                PaymentRefusal::NotPending => "not_pending",
            },
            Refusal::Revoke(RevokeRefusal::NotPositive) => "amount_not_positive",
            Refusal::Busy => "busy",
            Refusal::Stopped => "stopped",
            Refusal::Revoke(RevokeRefusal::NotEnough) => "not_enough",
            Refusal::Revoke(RevokeRefusal::Differs) => "revocation_differs",
            Refusal::Elsewhere(_) => "authority_elsewhere",
            Refusal::Store(StoreError::Full(_)) => "store_full",
            Refusal::Store(StoreError::Blocked(_)) => "store_blocked",
            Refusal::Store(StoreError::Fatal(_)) => "store_failed",
        }
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> StoreError {
        match failure {
            Failure::Full(text) | Failure::ReadOnly(text) => StoreError::Full(text),
            Failure::Blocked(text) => StoreError::Blocked(text),
            Failure::Foreign(text) | Failure::Damaged(text) | Failure::Fatal(text) => StoreError::Fatal(text),
        }
    }
}

/// What is to be told once a transaction is durable.
type News = (Vec<(AccountId, AccountNotice)>, Vec<GangPush>);

/// What ends a transaction without a commit.
enum Stop {
    Sqlite(rusqlite::Error),
    Refused(Refusal),
    /// What is stored cannot be read, or a rule of the ledger would be broken.
    Broken(String),
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Stop {
        Stop::Sqlite(error)
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Stop {
        Stop::Refused(refusal)
    }
}

impl Stop {
    /// What it means to the caller. Call it before anything else is done with the connection.
    fn into_refusal(self, connection: &Connection) -> Refusal {
        match self {
            Stop::Refused(refusal) => refusal,
            Stop::Broken(text) => StoreError::Fatal(text).into(),
            Stop::Sqlite(error) => StoreError::from(classify(connection, &error)).into(),
        }
    }
}

/// Can the file's balances be read, as far as `SQLite` can tell? Nothing in its folder is changed by looking.
///
/// # Errors
/// Why not.
pub(crate) fn look(path: &Path, writing: crate::sqlite::Writing) -> Result<(), StoreError> {
    let connection = crate::sqlite::open_untouched(path, &KIND, writing)?;
    let found: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(|error| classify(&connection, &error))?;
    if found == "ok" { Ok(()) } else { Err(Failure::Damaged(found).into()) }
}

/// The anchors that the file holds, the oldest first; it may be written meanwhile.
///
/// # Errors
/// See [`StoreError`].
pub fn read_anchors(path: &Path) -> Result<Vec<Anchor>, StoreError> {
    let connection = open_for_reading(path, &KIND)?;
    anchors::all(&connection).map_err(|stop| unrefused(stop.into_refusal(&connection)))
}

impl Store {
    /// Opens the file, or makes one. `now` is the start of this process's watch over silent epochs.
    ///
    /// # Errors
    /// When the file cannot be opened, or is not a store of this version.
    pub fn open(path: &Path, close: ClosePolicy, now: Mono) -> Result<Store, StoreError> {
        let connection = open_for_writing(path, &KIND)?;
        anchors::prepare(&connection).map_err(|error| StoreError::from(classify(&connection, &error)))?;
        revoke::make_tables(&connection)?;
        standing::make_tables(&connection)?;
        mirror::make_tables(&connection)?;
        gang::prepare(&connection)?;
        let mut store = Store::over(connection, close, now);
        store.standing.read(&store.connection).map_err(|stop| unrefused(stop.into_refusal(&store.connection)))?;
        store.say_again().map_err(unrefused)?;
        Ok(store)
    }

    fn over(connection: Connection, close: ClosePolicy, now: Mono) -> Store {
        connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
        let heard = Heard { opened_at: now, at: BTreeMap::new() };
        let standing = standing::Standing::new(now);
        let (notices, gang_news, recalled, kept) = (Vec::new(), Vec::new(), BTreeMap::new(), kept::Kept::default());
        let (group, mirrors) = (group::Group::None, mirror::Mirrors::default());
        Store { connection, close, heard, commits: 0, notices, standing, recalled, gang_news, group, kept, mirrors }
    }

    /// What people outside are to hear, in order. Each is told once by this; what still waits for an answer is told again after a restart.
    pub fn notices(&mut self) -> Vec<(AccountId, AccountNotice)> {
        std::mem::take(&mut self.notices)
    }

    /// The process before this one may have died between a commit and its word: a refill that is pending and storage that is detached are
    /// told once more, under the same names.
    fn say_again(&mut self) -> Result<(), Refusal> {
        self.transact(|books| {
            for id in books.account_ids("SELECT id FROM account ORDER BY id", params![])? {
                let Account { keeping, terms, .. } = books.known(&id)?;
                books.notices.extend(keeping.refill.pending.map(|pending| (id.clone(), AccountNotice::Refill(pending))));
                if keeping.storage == Storage::Detached {
                    books.notices.push((id, AccountNotice::Storage(Storage::Detached, terms.detached_storage)));
                }
            }
            Ok(())
        })
    }

    /// Answers a node's request; the answer's content is durable when this returns. Of a message in another protocol nothing is taken, and there is no news.
    ///
    /// # Errors
    /// See [`StoreError`]; then there is no answer, which is never a verdict.
    pub fn answer(&mut self, request: &Request, now: Now) -> Result<Answer, StoreError> {
        self.answered(request, request.said(), Head::START, &Limits::default(), now)
    }

    /// The same, within what the node may have; and keeps how far its journal had come.
    ///
    /// # Errors
    /// As [`Store::answer`].
    pub fn settle(&mut self, digested: &Digested, now: Now) -> Result<Answer, StoreError> {
        let Settlement { request, journal, limits } = digested.settlement();
        self.answered(request, digested.said(), *journal, limits, now)
    }

    fn answered(&mut self, request: &Request, said: Said, journal: Head, limits: &Limits, now: Now) -> Result<Answer, StoreError> {
        let mut reply = Answer {
            protocol: PROTOCOL,
            epoch: request.epoch,
            request: request.request,
            digest: said.digest,
            acknowledged: Vec::new(),
            entries: Vec::new(),
            balances: Vec::new(),
            generation: self.standing.generation(),
            gangs: Vec::new(),
        };
        if request.protocol != PROTOCOL {
            return Ok(reply);
        }
        self.end_recovery_when_due(now)?;
        let (close, key, stale) = (self.close, self.standing.key.clone(), self.mirrors.stale_of(request, now.mono));
        let answered = self.transact(|books| {
            let writers = books.meet(request, said, close, now)?;
            let rules = Rules {
                limits: Some(limits),
                digest: Some(said.digest),
                stale: stale.as_ref(),
                ..books.standing.rules(close, key.as_ref(), writers)
            };
            books.close_superseded(request, &rules, now)?;
            let (mut entries, mut balances, mut gangs) = (Vec::new(), Vec::new(), Vec::new());
            for entry in &request.entries {
                let Some(mut account) = books.load(&entry.account, &named(request))? else {
                    entries.push(answer_unknown(entry.account.clone()));
                    continue;
                };
                let last = |account: &Account| account.epochs.get(&request.epoch).map_or(0, |epoch| epoch.last_request);
                let before = last(&account);
                let Answered { entry, ledger, notices } = answer(&mut account, request, entry, &rules, now);
                if before < last(&account) {
                    books.forget_unsaid(request, &account.id)?;
                    gangs.extend(books.hear_gangs(request, &account)?);
                }
                books.write(&account, Lines { ledger, notices }, now)?;
                entries.push(entry);
                balances.push(account.balance());
                books.kept.put(account);
            }
            anchors::keep(books.connection, request, journal, now)?;
            Ok((entries, balances, gangs))
        });
        (reply.entries, reply.balances, reply.gangs) = answered.map_err(unrefused)?;
        reply.acknowledged = request.previous.iter().map(|earlier| earlier.epoch).collect();
        reply.generation = self.standing.generation();
        Ok(reply)
    }

    /// Closes every epoch of which nothing was heard for too long. For a timer; does nothing under [`ClosePolicy::OnSuccessor`].
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn sweep(&mut self, now: Now) -> Result<(), StoreError> {
        self.end_recovery_when_due(now)?;
        let close = self.close;
        let swept = self.transact(|books| {
            for id in books.account_ids("SELECT DISTINCT account FROM epoch WHERE state = 'open' ORDER BY account", params![])? {
                if let Some(mut account) = books.load(&id, &BTreeSet::new())? {
                    let lines = sweep(&mut account, close, now);
                    books.save(&account, lines, now)?;
                }
            }
            books.forget_writers()
        });
        swept.map_err(unrefused)
    }

    /// Does what the calendar brings, on accounts that nobody asks about too: allowances, commitments, what expires, waits that are over. Whose credit changed.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn keep_calendar(&mut self, now: Now) -> Result<Vec<Push>, StoreError> {
        // Only those that have anything to do with it.
        let sql = r#"SELECT id FROM account WHERE lots GLOB '*"expires_ms":[0-9]*' OR terms GLOB '*"allowance":{*' OR terms GLOB '*"commitment":{*' OR keeping GLOB '*"pending":{*' ORDER BY id"#;
        let close = self.close;
        let kept = self.transact(|books| {
            let mut pushes = Vec::new();
            for id in books.account_ids(sql, params![])? {
                let before = books.known(&id)?;
                let mut account = before.clone();
                let lines = sweep(&mut account, close, now);
                if account != before {
                    books.save(&account, lines, now)?;
                }
                if account.version != before.version {
                    pushes.push(Push { account: id, version: account.version });
                }
            }
            Ok(pushes)
        });
        kept.map_err(unrefused)
    }

    /// Makes an account without credit.
    ///
    /// # Errors
    /// [`Refusal::AccountExists`] if there is one with another policy or other terms.
    pub fn create_account(&mut self, id: AccountId, policy: AccountPolicy, terms: Terms, now: Now) -> Result<(AccountView, Done), Refusal> {
        self.transact(|books| match books.load(&id, &BTreeSet::new())? {
            Some(account) if account.policy == policy && account.terms == terms => Ok((account.view(), Done::Before)),
            Some(_) => Err(Refusal::AccountExists.into()),
            None => {
                let mut account = Account::new(id, policy);
                let lines = set_terms(&mut account, terms, now);
                books.save(&account, lines, now)?;
                Ok((account.view(), Done::Now))
            }
        })
    }

    /// Books a payment, once.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn pay(&mut self, id: &AccountId, payment: &Payment, wanted: PaymentState, now: Now) -> Result<(AccountView, Done), Refusal> {
        if payment.id.as_str().starts_with(REFILL_PREFIX) {
            return Err(Refusal::ReservedName);
        }
        let to = if let Purpose::Transfer(to) = &payment.purpose { Some(to) } else { None };
        self.mirrors.check_pay([id].into_iter().chain(to))?;
        self.transact(|books| match &payment.purpose {
            Purpose::Transfer(to) => books.transfer(id, to, payment, now),
            _ => books.pay(id, payment, wanted, now),
        })
    }

    /// An amount in credits, as this account counts.
    ///
    /// # Errors
    /// An amount in another unit is refused, never converted.
    pub fn in_credits(&mut self, id: &AccountId, amount: &Amount) -> Result<Credits, Refusal> {
        let unit = self.show(id)?.terms.unit;
        Ok(amount.in_credits(unit.as_ref())?)
    }

    /// Says what became of a payment that is pending: it came, or it did not.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn settle_payment(
        &mut self,
        id: &AccountId,
        payment: &PaymentId,
        came: PaymentState,
        now: Now,
    ) -> Result<(AccountView, Done), Refusal> {
        self.mirrors.check_pay([id])?;
        self.transact(|books| {
            let known = rows::payment(books.connection, payment)?.filter(|(payer, ..)| payer == id);
            let (_, payment, _) = known.ok_or(Stop::Refused(Refusal::UnknownPayment))?;
            books.pay(id, &payment, came, now)
        })
    }

    /// Says that somebody vouches for the account, or not any more.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn verify(&mut self, id: &AccountId, vouched: Vouch, now: Now) -> Result<(AccountView, Done), Refusal> {
        self.change(id, now, |account| {
            verify(account, (vouched == Vouch::Yes).then_some(now.wall));
            Lines::default()
        })
    }

    /// Gives an account another policy, and other terms.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn set_policy(&mut self, id: &AccountId, policy: AccountPolicy, terms: Terms, now: Now) -> Result<(AccountView, Done), Refusal> {
        self.mirrors.check_terms(id, &terms)?;
        self.change(id, now, |account| {
            set_policy(account, policy);
            set_terms(account, terms, now)
        })
    }

    fn change(&mut self, id: &AccountId, now: Now, change: impl FnOnce(&mut Account) -> Lines) -> Result<(AccountView, Done), Refusal> {
        self.transact(|books| {
            let mut account = books.known(id)?;
            let before = account.version;
            let lines = change(&mut account);
            books.save(&account, lines, now)?;
            Ok((account.view(), if account.version == before { Done::Before } else { Done::Now }))
        })
    }

    /// One account.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn show(&mut self, id: &AccountId) -> Result<AccountView, Refusal> {
        self.transact(|books| Ok(books.known(id)?.view()))
    }

    /// One account, with those of its epochs that are open.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn account(&mut self, id: &AccountId) -> Result<Account, Refusal> {
        self.transact(|books| books.known(id))
    }

    /// All accounts, by name.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn list(&mut self) -> Result<Vec<AccountView>, Refusal> {
        self.transact(|books| {
            let ids = books.account_ids("SELECT id FROM account ORDER BY id", params![])?;
            ids.iter().map(|id| Ok(books.known(id)?.view())).collect()
        })
    }

    /// The account's latest ledger lines, newest first, at most `limit`.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn ledger(&mut self, id: &AccountId, limit: u32) -> Result<Vec<LedgerEntry>, Refusal> {
        self.transact(|books| {
            books.known(id)?;
            books.ledger(id, limit)
        })
    }

    /// How far the nodes' journals went, as they said when they settled, the oldest first.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn anchors(&mut self) -> Result<Vec<Anchor>, Refusal> {
        self.transact(|books| anchors::all(books.connection))
    }

    /// One transaction: all of `act` is durable when this returns `Ok`, nothing of it otherwise.
    fn transact<T>(&mut self, act: impl FnOnce(&mut Books<'_>) -> Result<T, Stop>) -> Result<T, Refusal> {
        if self.group != group::Group::None {
            return self.join(act);
        }
        let (heard, kept) = (&mut self.heard, &mut self.kept);
        let connection = &mut self.connection;
        let standing = &mut self.standing;
        let attempt = || -> Result<(T, News), Stop> {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut books = Books::over(&transaction, heard, kept, standing);
            let result = act(&mut books)?;
            let Books { notices, gang_news, .. } = books;
            transaction.commit()?;
            Ok((result, (notices, gang_news)))
        };
        let result = attempt();
        let (result, (notices, gang_news)) = result.map_err(|stop| {
            let refusal = stop.into_refusal(&self.connection);
            self.undone();
            refusal
        })?;
        self.notices.extend(notices);
        self.gang_news.extend(gang_news);
        self.copy_back_when_due()?;
        Ok(result)
    }

    /// Lack of space is no failure here: what was committed is durable in the log.
    fn copy_back_when_due(&mut self) -> Result<(), StoreError> {
        self.commits += 1;
        if self.commits < COPY_BACK_COMMITS {
            return Ok(());
        }
        self.commits = 0;
        match copy_back(&self.connection) {
            Ok(()) | Err(Failure::Full(_) | Failure::ReadOnly(_) | Failure::Blocked(_)) => Ok(()),
            Err(failure) => Err(failure.into()),
        }
    }
}

/// The failure of an act that is never refused.
fn unrefused(refusal: Refusal) -> StoreError {
    match refusal {
        Refusal::Store(error) => error,
        other => StoreError::Fatal(other.to_string()),
    }
}

/// All epochs that a request speaks of.
fn named(request: &Request) -> BTreeSet<Epoch> {
    let previous = request.previous.iter().map(|earlier| earlier.epoch);
    previous.chain([request.epoch]).chain(request.refunds.iter().map(|total| total.epoch)).collect()
}

/// The tables, within one transaction.
struct Books<'a> {
    connection: &'a Connection,
    heard: &'a mut Heard,
    standing: &'a mut standing::Standing,
    /// Told once this is durable.
    notices: Vec<(AccountId, AccountNotice)>,
    /// The same.
    gang_news: Vec<GangPush>,
    kept: &'a mut kept::Kept,
}

impl<'a> Books<'a> {
    fn over(connection: &'a Connection, heard: &'a mut Heard, kept: &'a mut kept::Kept, standing: &'a mut standing::Standing) -> Books<'a> {
        Books { connection, heard, standing, notices: Vec::new(), gang_news: Vec::new(), kept }
    }

    /// Books last words on accounts that the request does not ask about, and where a new epoch supersedes others at once, closes those on all accounts.
    fn close_superseded(&mut self, request: &Request, rules: &Rules<'_>, now: Now) -> Result<(), Stop> {
        let mut touched: BTreeSet<AccountId> =
            request.previous.iter().flat_map(|earlier| &earlier.entries).map(|entry| entry.account.clone()).collect();
        touched.extend(request.refunds.iter().map(|total| total.account.clone()));
        if rules.close == ClosePolicy::OnSuccessor && !self.is_known(request.epoch)? {
            let sql = "SELECT DISTINCT account FROM epoch WHERE state = 'open' AND node = ?1 AND epoch <> ?2 ORDER BY account";
            touched.extend(self.account_ids(sql, params![request.node.as_str(), request.epoch.to_string()])?);
        }
        for id in touched {
            if let Some(mut account) = self.load(&id, &named(request))? {
                let lines = book_previous(&mut account, request, rules, now);
                self.save(&account, lines, now)?;
            }
        }
        Ok(())
    }

    fn is_known(&self, epoch: Epoch) -> Result<bool, Stop> {
        let mut statement = self.connection.prepare_cached("SELECT 1 FROM epoch WHERE epoch = ?1 LIMIT 1")?;
        Ok(statement.query_row([epoch.to_string()], |_| Ok(())).optional()?.is_some())
    }

    fn known(&mut self, id: &AccountId) -> Result<Account, Stop> {
        self.load(id, &BTreeSet::new())?.ok_or(Stop::Refused(Refusal::UnknownAccount))
    }

    /// The account with its open epochs and those that are named.
    fn load(&mut self, id: &AccountId, named: &BTreeSet<Epoch>) -> Result<Option<Account>, Stop> {
        let mut account = if let Some(account) = self.kept.get(id) {
            account.clone()
        } else {
            let Some(account) = self.read(id)? else { return Ok(None) };
            self.kept.put(account.clone());
            account
        };
        let closed: BTreeSet<Epoch> = named.iter().filter(|epoch| !account.epochs.contains_key(epoch)).copied().collect();
        if !closed.is_empty() {
            let found = rows::epochs(self.connection, id, &closed)?;
            account.epochs.extend(found.into_iter().map(|(epoch, of_epoch)| self.as_heard(id, epoch, of_epoch)));
            standing::load_claims(self.connection, &mut account)?;
        }
        Ok(Some(account))
    }

    /// The account with its open epochs, as the file holds it.
    fn read(&self, id: &AccountId) -> Result<Option<Account>, Stop> {
        let Some(mut account) = rows::account(self.connection, id)? else { return Ok(None) };
        let open = rows::open_epochs(self.connection, id)?;
        account.epochs.extend(open.into_iter().map(|(epoch, of_epoch)| self.as_heard(id, epoch, of_epoch)));
        revoke::load(self.connection, &mut account)?;
        standing::load_claims(self.connection, &mut account)?;
        Ok(Some(account))
    }

    fn as_heard(&self, id: &AccountId, epoch: Epoch, mut of_epoch: EpochAccount) -> (Epoch, EpochAccount) {
        of_epoch.heard_at = self.heard.at.get(&(id.clone(), epoch)).copied().unwrap_or(self.heard.opened_at);
        (epoch, of_epoch)
    }

    fn pay(&mut self, id: &AccountId, payment: &Payment, wanted: PaymentState, now: Now) -> Result<(AccountView, Done), Stop> {
        let mut account = self.known(id)?;
        let booked = self.booked(id, &payment.id)?;
        let booked = booked.as_ref().map(|(payment, state)| (payment, *state));
        match book(&mut account, payment, wanted, booked, now).map_err(Refusal::from)? {
            Booked::Before => Ok((account.view(), Done::Before)),
            Booked::Now(lines) => {
                rows::save_payment(self.connection, id, payment, wanted, now.wall)?;
                self.save(&account, lines, now)?;
                Ok((account.view(), Done::Now))
            }
        }
    }

    fn transfer(&mut self, id: &AccountId, to: &AccountId, payment: &Payment, now: Now) -> Result<(AccountView, Done), Stop> {
        let (mut from, mut to) = (self.known(id)?, self.known(to)?);
        let booked = self.booked(id, &payment.id)?;
        let booked = booked.as_ref().map(|(payment, state)| (payment, *state));
        let Some((out, arrived)) = transfer(&mut from, &mut to, payment, booked, now).map_err(Refusal::from)? else {
            return Ok((from.view(), Done::Before));
        };
        rows::save_payment(self.connection, id, payment, PaymentState::Completed, now.wall)?;
        self.save(&from, out, now)?;
        self.save(&to, arrived, now)?;
        Ok((from.view(), Done::Now))
    }

    /// The payment of that name, as it was booked before. A payment has one account.
    fn booked(&self, id: &AccountId, payment: &PaymentId) -> Result<Option<(Payment, PaymentState)>, Stop> {
        match rows::payment(self.connection, payment)? {
            Some((payer, ..)) if payer != *id => Err(Refusal::from(PaymentRefusal::PaymentDiffers).into()),
            Some((_, payment, state)) => Ok(Some((payment, state))),
            None => Ok(None),
        }
    }

    fn save(&mut self, account: &Account, lines: Lines, now: Now) -> Result<(), Stop> {
        self.write(account, lines, now)?;
        self.kept.put(account.clone());
        Ok(())
    }

    /// Writes what differs from what is kept. Keep it then as it is now.
    fn write(&mut self, account: &Account, lines: Lines, now: Now) -> Result<(), Stop> {
        let before = self.kept.get(&account.id);
        let sound = before.map_or_else(|| check(account), |before| check_step(before, account));
        sound.map_err(|broken| Stop::Broken(format!("account {}: {broken}", account.id)))?;
        rows::save_account(self.connection, account, before)?;
        revoke::save(self.connection, account)?;
        let none = Epochs::default();
        for (id, epoch, before) in account.epochs.changed_since(before.map_or(&none, |before| &before.epochs)) {
            rows::save_epoch(self.connection, &account.id, *id, epoch, before)?;
            standing::save_claim(self.connection, &account.id, *id, epoch)?;
            match epoch.state {
                EpochState::Open => self.heard.at.insert((account.id.clone(), *id), epoch.heard_at),
                EpochState::Closed => self.heard.at.remove(&(account.id.clone(), *id)),
            };
        }
        lines.ledger.iter().try_for_each(|entry| rows::save_entry(self.connection, &account.id, entry))?;
        // Asked for in this very act: from now on it can be confirmed, or said to have failed.
        if lines.notices.iter().any(|notice| matches!(notice, AccountNotice::Refill(_)))
            && let Some(payment) = account.pending_refill()
        {
            rows::save_payment(self.connection, &account.id, &payment, PaymentState::Pending, now.wall)?;
        }
        let told: Vec<AccountNotice> = lines.notices.into_iter().filter(|notice| self.standing.is_to_be_told(notice, now.mono)).collect();
        self.notices.extend(told.into_iter().map(|notice| (account.id.clone(), notice)));
        Ok(())
    }

    fn account_ids(&self, sql: &str, params: impl rusqlite::Params) -> Result<Vec<AccountId>, Stop> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let ids: Vec<String> = statement.query_map(params, |row| row.get(0))?.collect::<Result<_, _>>()?;
        ids.iter().map(|id| rows::parsed(id)).collect()
    }

    fn ledger(&self, account: &AccountId, limit: u32) -> Result<Vec<LedgerEntry>, Stop> {
        let sql = "SELECT at_ms, kind, amount, free, paid, status FROM ledger WHERE account = ?1 ORDER BY seq DESC LIMIT ?2";
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut found = statement.query(params![account.as_str(), limit])?;
        let mut entries = Vec::new();
        while let Some(row) = found.next()? {
            entries.push(rows::entry(row)?);
        }
        Ok(entries)
    }
}
