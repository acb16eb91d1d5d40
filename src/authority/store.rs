//! The authority's store: one `SQLite` file, one transaction a request: load, let the pure ledger act, save, commit, and only then answer.
//! Amounts are decimal text and ids hexadecimal, so that `sqlite3` shows what people read.

pub mod backup;
mod nodes;
mod revoke;
mod rows;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use crate::domain::bucket::Bucket;
use crate::domain::id::{AccountId, Epoch, PaymentId};
use crate::domain::ledger::{
    Account, AccountView, ClosePolicy, DepositRefusal, Deposited, EpochState, LedgerEntry, Payment, RevokeRefusal, answer, answer_unknown,
    book_previous, check, deposit, set_policy, sweep,
};
use crate::domain::money::Credits;
use crate::domain::time::{Mono, Now};
use crate::domain::wire::{AccountPolicy, Answer, PROTOCOL, Request};
use crate::sqlite::{Failure, Kind, classify, copy_back, int, open_for_writing};

const KIND: Kind = Kind {
    application_id: 0x6d74_7261,
    version: 1,
    schema: "
        CREATE TABLE account (id TEXT PRIMARY KEY, policy TEXT NOT NULL, version INTEGER NOT NULL, free TEXT NOT NULL, paid TEXT NOT NULL,
            deposited TEXT NOT NULL, settled TEXT NOT NULL, written_off TEXT NOT NULL, shortfall TEXT NOT NULL) STRICT;
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
            at_ms INTEGER NOT NULL) STRICT;",
};

/// Commits between two copies of the write-ahead log into the file.
const COPY_BACK_COMMITS: u32 = 64;

/// Accounts, epochs, ledger and payments, durable.
pub struct Store {
    connection: Connection,
    close: ClosePolicy,
    heard: Heard,
    commits: u32,
    recovering: Option<Mono>,
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
    Deposit(#[from] DepositRefusal),
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
            Refusal::Deposit(DepositRefusal::NotPositive) | Refusal::Revoke(RevokeRefusal::NotPositive) => "amount_not_positive",
            Refusal::Deposit(DepositRefusal::TooLarge) => "amount_too_large",
            Refusal::Deposit(DepositRefusal::PaymentDiffers) => "payment_differs",
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

impl Store {
    /// Opens the file, or makes one. `now` is the start of this process's watch over silent epochs.
    ///
    /// # Errors
    /// When the file cannot be opened, or is not a store of this version.
    pub fn open(path: &Path, close: ClosePolicy, now: Mono) -> Result<Store, StoreError> {
        let connection = open_for_writing(path, &KIND)?;
        revoke::make_tables(&connection)?;
        Ok(Store::over(connection, close, now))
    }

    fn over(connection: Connection, close: ClosePolicy, now: Mono) -> Store {
        Store { connection, close, heard: Heard { opened_at: now, at: BTreeMap::new() }, commits: 0, recovering: None }
    }

    /// Answers a node's request; the answer's content is durable when this returns. Of a message in another protocol nothing is taken, and there is no news.
    ///
    /// # Errors
    /// See [`StoreError`]; then there is no answer, which is never a verdict.
    pub fn answer(&mut self, request: &Request, now: Now) -> Result<Answer, StoreError> {
        let mut reply = Answer {
            protocol: PROTOCOL,
            epoch: request.epoch,
            request: request.request,
            digest: request.digest(),
            acknowledged: Vec::new(),
            entries: Vec::new(),
        };
        if request.protocol != PROTOCOL {
            return Ok(reply);
        }
        let close = self.close;
        let recovers = self.recovers(now.mono) == backup::Recovery::Goes;
        let asked = if recovers { Store::totals_alone(request) } else { request.entries.clone() };
        let entries = self.transact(|books| {
            books.close_superseded(request, close, now)?;
            let mut entries = Vec::new();
            for entry in &asked {
                let Some(mut account) = books.load(&entry.account, &named(request))? else {
                    entries.push(answer_unknown(entry.account.clone()));
                    continue;
                };
                let answered = answer(&mut account, request, entry, close, now);
                books.save(&account, &answered.ledger)?;
                entries.push(answered.entry);
            }
            Ok(entries)
        });
        reply.entries = entries.map_err(unrefused)?;
        reply.acknowledged = request.previous.iter().map(|earlier| earlier.epoch).collect();
        Ok(if recovers { Store::held_back(reply) } else { reply })
    }

    /// Closes every epoch of which nothing was heard for too long. For a timer; does nothing under [`ClosePolicy::OnSuccessor`].
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn sweep(&mut self, now: Now) -> Result<(), StoreError> {
        let close = self.close;
        let swept = self.transact(|books| {
            for id in books.account_ids("SELECT DISTINCT account FROM epoch WHERE state = 'open' ORDER BY account", params![])? {
                if let Some(mut account) = books.load(&id, &BTreeSet::new())? {
                    let ledger = sweep(&mut account, close, now);
                    books.save(&account, &ledger)?;
                }
            }
            Ok(())
        });
        swept.map_err(unrefused)
    }

    /// Makes an account without credit.
    ///
    /// # Errors
    /// [`Refusal::AccountExists`] if there is one with another policy.
    pub fn create_account(&mut self, id: AccountId, policy: AccountPolicy) -> Result<(AccountView, Done), Refusal> {
        self.transact(|books| match books.load(&id, &BTreeSet::new())? {
            Some(account) if account.policy == policy => Ok((account.view(), Done::Before)),
            Some(_) => Err(Refusal::AccountExists.into()),
            None => {
                let account = Account::new(id, policy);
                books.save(&account, &[])?;
                Ok((account.view(), Done::Now))
            }
        })
    }

    /// Books a payment, once.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn top_up(
        &mut self,
        id: &AccountId,
        bucket: Bucket,
        amount: Credits,
        payment: PaymentId,
        now: Now,
    ) -> Result<(AccountView, Done), Refusal> {
        self.transact(|books| {
            let mut account = books.known(id)?;
            let booked = books.payment(&payment)?;
            if booked.as_ref().is_some_and(|(payer, _)| payer != id) {
                return Err(Refusal::from(DepositRefusal::PaymentDiffers).into());
            }
            let payment = Payment { id: payment, bucket, amount };
            match deposit(&mut account, payment.clone(), booked.as_ref().map(|(_, booked)| booked), now).map_err(Refusal::from)? {
                Deposited::Already => Ok((account.view(), Done::Before)),
                Deposited::Booked(entry) => {
                    books.save(&account, &[entry])?;
                    books.keep_payment(id, &payment, now)?;
                    Ok((account.view(), Done::Now))
                }
            }
        })
    }

    /// Gives an account another policy.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn set_policy(&mut self, id: &AccountId, policy: AccountPolicy) -> Result<(AccountView, Done), Refusal> {
        self.transact(|books| {
            let mut account = books.known(id)?;
            let before = account.version;
            set_policy(&mut account, policy);
            books.save(&account, &[])?;
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

    /// One transaction: all of `act` is durable when this returns `Ok`, nothing of it otherwise.
    fn transact<T>(&mut self, act: impl FnOnce(&mut Books<'_>) -> Result<T, Stop>) -> Result<T, Refusal> {
        let heard = &mut self.heard;
        let connection = &mut self.connection;
        let attempt = || -> Result<T, Stop> {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let result = act(&mut Books { connection: &transaction, heard })?;
            transaction.commit()?;
            Ok(result)
        };
        let result = attempt();
        let result = match result {
            Ok(result) => result,
            Err(Stop::Refused(refusal)) => return Err(refusal),
            Err(Stop::Broken(text)) => return Err(StoreError::Fatal(text).into()),
            Err(Stop::Sqlite(error)) => return Err(StoreError::from(classify(&self.connection, &error)).into()),
        };
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
    previous.chain([request.epoch]).collect()
}

/// The tables, within one transaction.
struct Books<'a> {
    connection: &'a Connection,
    heard: &'a mut Heard,
}

impl Books<'_> {
    /// Books last words on accounts that the request does not ask about, and where a new epoch supersedes others at once, closes those on all accounts.
    fn close_superseded(&mut self, request: &Request, close: ClosePolicy, now: Now) -> Result<(), Stop> {
        let mut touched: BTreeSet<AccountId> =
            request.previous.iter().flat_map(|earlier| &earlier.entries).map(|entry| entry.account.clone()).collect();
        if close == ClosePolicy::OnSuccessor && !self.is_known(request.epoch)? {
            let sql = "SELECT DISTINCT account FROM epoch WHERE state = 'open' AND node = ?1 AND epoch <> ?2 ORDER BY account";
            touched.extend(self.account_ids(sql, params![request.node.as_str(), request.epoch.to_string()])?);
        }
        for id in touched {
            if let Some(mut account) = self.load(&id, &named(request))? {
                let ledger = book_previous(&mut account, request, close, now);
                self.save(&account, &ledger)?;
            }
        }
        Ok(())
    }

    fn is_known(&self, epoch: Epoch) -> Result<bool, Stop> {
        let sql = "SELECT 1 FROM epoch WHERE epoch = ?1 LIMIT 1";
        Ok(self.connection.query_row(sql, [epoch.to_string()], |_| Ok(())).optional()?.is_some())
    }

    fn known(&mut self, id: &AccountId) -> Result<Account, Stop> {
        self.load(id, &BTreeSet::new())?.ok_or(Stop::Refused(Refusal::UnknownAccount))
    }

    /// The account with its open epochs and those that are named.
    fn load(&mut self, id: &AccountId, named: &BTreeSet<Epoch>) -> Result<Option<Account>, Stop> {
        let Some(mut account) = rows::account(self.connection, id)? else { return Ok(None) };
        for (epoch, mut of_epoch) in rows::epochs(self.connection, id, named)? {
            of_epoch.heard_at = self.heard.at.get(&(id.clone(), epoch)).copied().unwrap_or(self.heard.opened_at);
            account.epochs.insert(epoch, of_epoch);
        }
        revoke::load(self.connection, &mut account)?;
        Ok(Some(account))
    }

    fn save(&mut self, account: &Account, ledger: &[LedgerEntry]) -> Result<(), Stop> {
        check(account).map_err(|broken| Stop::Broken(format!("account {}: {broken}", account.id)))?;
        rows::save_account(self.connection, account)?;
        revoke::save(self.connection, account)?;
        for (id, epoch) in &account.epochs {
            rows::save_epoch(self.connection, &account.id, *id, epoch)?;
            match epoch.state {
                EpochState::Open => self.heard.at.insert((account.id.clone(), *id), epoch.heard_at),
                EpochState::Closed => self.heard.at.remove(&(account.id.clone(), *id)),
            };
        }
        ledger.iter().try_for_each(|entry| rows::save_entry(self.connection, &account.id, entry))
    }

    fn account_ids(&self, sql: &str, params: impl rusqlite::Params) -> Result<Vec<AccountId>, Stop> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let ids: Vec<String> = statement.query_map(params, |row| row.get(0))?.collect::<Result<_, _>>()?;
        ids.iter().map(|id| rows::parsed(id)).collect()
    }

    fn payment(&self, id: &PaymentId) -> Result<Option<(AccountId, Payment)>, Stop> {
        let sql = "SELECT account, bucket, amount FROM payment WHERE id = ?1";
        let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?));
        let Some((account, bucket, amount)) = self.connection.query_row(sql, [id.as_str()], read).optional()? else { return Ok(None) };
        let payment = Payment { id: id.clone(), bucket: rows::from_word(&bucket)?, amount: rows::parsed(&amount)? };
        Ok(Some((rows::parsed(&account)?, payment)))
    }

    fn keep_payment(&self, account: &AccountId, payment: &Payment, now: Now) -> Result<(), Stop> {
        let sql = "INSERT INTO payment (id, account, bucket, amount, at_ms) VALUES (?1, ?2, ?3, ?4, ?5)";
        let bucket = rows::word(&payment.bucket)?;
        self.connection
            .execute(sql, params![payment.id.as_str(), account.as_str(), bucket, payment.amount.to_string(), int(now.wall.0)])?;
        Ok(())
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
