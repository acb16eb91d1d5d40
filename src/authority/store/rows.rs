//! One row of each table, to and from the ledger's types.

use std::collections::BTreeSet;
use std::str::FromStr;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row, ToSql, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Stop;
use crate::domain::bucket::Bucket;
use crate::domain::id::{AccountId, Epoch, PaymentId};
use crate::domain::ledger::{
    Account, EntryStatus, EpochAccount, EpochRefunds, EpochState, HourTotals, LedgerEntry, Payment, PaymentState, Priority, Totals,
};
use crate::domain::money::{Credits, CreditsText};
use crate::domain::time::{Mono, Wall};
use crate::sqlite::int;

/// A value that is kept as its own text.
pub(super) fn parsed<T: FromStr>(text: &str) -> Result<T, Stop> {
    text.parse().map_err(|_| Stop::Broken(format!("the store holds {text:?}, which cannot be read")))
}

/// A value that is kept as JSON.
fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, Stop> {
    serde_json::from_str(text).map_err(|error| Stop::Broken(format!("the store holds {text:?}, which cannot be read: {error}")))
}

fn to_json<T: Serialize>(value: &T) -> Result<String, Stop> {
    serde_json::to_string(value).map_err(|error| Stop::Broken(error.to_string()))
}

/// A value that is kept as one word.
pub(super) fn from_word<T: DeserializeOwned>(word: &str) -> Result<T, Stop> {
    from_json(&format!("{word:?}"))
}

pub(super) fn word<T: Serialize>(value: &T) -> Result<String, Stop> {
    Ok(to_json(value)?.trim_matches('"').to_owned())
}

// The words of what is written with each question.

const fn state_word(state: EpochState) -> &'static str {
    match state {
        EpochState::Open => "open",
        EpochState::Closed => "closed",
    }
}

const fn totals_word(totals: Totals) -> &'static str {
    match totals {
        Totals::Reported => "reported",
        Totals::Final => "final",
    }
}

const fn status_word(status: EntryStatus) -> &'static str {
    match status {
        EntryStatus::Completed => "completed",
        EntryStatus::Pending => "pending",
        EntryStatus::Failed => "failed",
        EntryStatus::Accumulating => "accumulating",
    }
}

impl ToSql for CreditsText {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(self.as_str().as_bytes())))
    }
}

fn text<T: FromStr>(row: &Row<'_>, column: &str) -> Result<T, Stop> {
    parsed(&row.get::<_, String>(column)?)
}

fn number(row: &Row<'_>, column: &str) -> Result<u64, Stop> {
    let stored: i64 = row.get(column)?;
    u64::try_from(stored).map_err(|_| Stop::Broken(format!("the store holds {stored} as {column}")))
}

pub(super) fn account(connection: &Connection, id: &AccountId) -> Result<Option<Account>, Stop> {
    let mut statement = connection.prepare_cached("SELECT * FROM account WHERE id = ?1")?;
    let mut rows = statement.query([id.as_str()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let mut account = Account::new(id.clone(), from_json(&row.get::<_, String>("policy")?)?);
    account.version = number(row, "version")?;
    account.lots = from_json(&row.get::<_, String>("lots")?)?;
    account.deposited = text(row, "deposited")?;
    account.withdrawn = text(row, "withdrawn")?;
    account.terms = from_json(&row.get::<_, String>("terms")?)?;
    account.keeping = from_json(&row.get::<_, String>("keeping")?)?;
    account.settled = text(row, "settled")?;
    account.written_off = text(row, "written_off")?;
    account.shortfall = text(row, "shortfall")?;
    for (bucket, column) in [(Bucket::Free, "free"), (Bucket::Paid, "paid")] {
        let stored: Credits = text(row, column)?;
        if stored != account.lots.of(bucket) {
            return Err(Stop::Broken(format!("account {id}: the {bucket} lots make {}, stored is {stored}", account.lots.of(bucket))));
        }
    }
    Ok(Some(account))
}

/// Writes an account. `before`: as it is stored, where that is known: then only what moves with each question is written, if nothing else changed.
pub(super) fn save_account(connection: &Connection, account: &Account, before: Option<&Account>) -> Result<(), Stop> {
    let constant =
        |before: &Account| (&before.policy, &before.terms, &before.keeping) == (&account.policy, &account.terms, &account.keeping);
    if !before.is_some_and(constant) {
        let sql =
            "INSERT INTO account (id, policy, terms, keeping, version, free, paid, deposited, settled, written_off, shortfall, lots, withdrawn)
            VALUES (?1, ?2, ?3, ?4, 0, '0', '0', '0', '0', '0', '0', '', '0')
            ON CONFLICT (id) DO UPDATE SET policy = ?2, terms = ?3, keeping = ?4";
        connection.prepare_cached(sql)?.execute(params![
            account.id.as_str(),
            to_json(&account.policy)?,
            to_json(&account.terms)?,
            to_json(&account.keeping)?,
        ])?;
    }
    save_amounts(connection, account)
}

fn save_amounts(connection: &Connection, account: &Account) -> Result<(), Stop> {
    let sql =
        "UPDATE account SET version = ?2, free = ?3, paid = ?4, deposited = ?5, settled = ?6, written_off = ?7, shortfall = ?8, lots = ?9,
        withdrawn = ?10 WHERE id = ?1";
    connection.prepare_cached(sql)?.execute(params![
        account.id.as_str(),
        int(account.version),
        account.lots.of(Bucket::Free).text(),
        account.lots.of(Bucket::Paid).text(),
        account.deposited.text(),
        account.settled.text(),
        account.written_off.text(),
        account.shortfall.text(),
        to_json(&account.lots)?,
        account.withdrawn.text(),
    ])?;
    Ok(())
}

/// The payment of that name, its account and how far it has come.
pub(super) fn payment(connection: &Connection, id: &PaymentId) -> Result<Option<(AccountId, Payment, PaymentState)>, Stop> {
    let mut statement = connection.prepare_cached("SELECT * FROM payment WHERE id = ?1")?;
    let mut rows = statement.query([id.as_str()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let expires = row.get::<_, Option<i64>>("expires_ms")?.map(|_| number(row, "expires_ms").map(Wall)).transpose()?;
    let payment = Payment {
        id: id.clone(),
        purpose: from_json(&row.get::<_, String>("purpose")?)?,
        bucket: from_word(&row.get::<_, String>("bucket")?)?,
        amount: text(row, "amount")?,
        priority: Priority(u8::try_from(number(row, "priority")?).unwrap_or(u8::MAX)),
        expires: expires.into(),
    };
    Ok(Some((text(row, "account")?, payment, from_word(&row.get::<_, String>("state")?)?)))
}

/// A payment keeps its place; what changes is how far it has come.
pub(super) fn save_payment(
    connection: &Connection,
    account: &AccountId,
    payment: &Payment,
    state: PaymentState,
    at: Wall,
) -> Result<(), Stop> {
    let sql = "INSERT INTO payment (id, account, bucket, amount, at_ms, purpose, state, priority, expires_ms)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (id) DO UPDATE SET at_ms = ?5, state = ?7";
    let expires: Option<Wall> = payment.expires.into();
    connection.prepare_cached(sql)?.execute(params![
        payment.id.as_str(),
        account.as_str(),
        word(&payment.bucket)?,
        payment.amount.to_string(),
        int(at.0),
        to_json(&payment.purpose)?,
        word(&state)?,
        payment.priority.0,
        expires.map(|at| int(at.0)),
    ])?;
    Ok(())
}

/// The account's open epochs.
pub(super) fn open_epochs(connection: &Connection, id: &AccountId) -> Result<Vec<(Epoch, EpochAccount)>, Stop> {
    let mut statement = connection.prepare_cached("SELECT * FROM epoch WHERE account = ?1 AND state = 'open'")?;
    let mut rows = statement.query([id.as_str()])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push((text(row, "epoch")?, epoch(row)?));
    }
    Ok(found)
}

/// Those of the account's epochs that are named.
pub(super) fn epochs(connection: &Connection, id: &AccountId, named: &BTreeSet<Epoch>) -> Result<Vec<(Epoch, EpochAccount)>, Stop> {
    let sql = "SELECT * FROM epoch WHERE account = ?1 AND epoch IN (SELECT value FROM json_each(?2))";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![id.as_str(), to_json(named)?])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push((text(row, "epoch")?, epoch(row)?));
    }
    Ok(found)
}

/// All of the account's epochs.
pub(super) fn all_epochs(connection: &Connection, id: &AccountId) -> Result<Vec<(Epoch, EpochAccount)>, Stop> {
    let mut statement = connection.prepare_cached("SELECT * FROM epoch WHERE account = ?1")?;
    let mut rows = statement.query([id.as_str()])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push((text(row, "epoch")?, epoch(row)?));
    }
    Ok(found)
}

/// What one column holds of an epoch: the running hour, and since there are refunds what they need.
#[derive(Serialize)]
struct Booked {
    #[serde(flatten)]
    hour: HourTotals,
    #[serde(flatten)]
    refunds: EpochRefunds,
}

fn epoch(row: &Row<'_>) -> Result<EpochAccount, Stop> {
    Ok(EpochAccount {
        node: text(row, "node")?,
        boot: row.get::<_, Option<String>>("boot")?.map(|boot| parsed(&boot)).transpose()?,
        state: from_word(&row.get::<_, String>("state")?)?,
        totals: from_word(&row.get::<_, String>("totals")?)?,
        granted: text(row, "granted")?,
        returned: text(row, "returned")?,
        settled: text(row, "settled")?,
        claimed: text(row, "claimed")?,
        unfunded: text(row, "unfunded")?,
        shortfall: text(row, "shortfall")?,
        last_request: number(row, "last_request")?,
        last_digest: text(row, "last_digest")?,
        burn_per_s: text(row, "burn_per_s")?,
        heard_at: Mono(0),
        hour: from_json(&row.get::<_, String>("hour")?)?,
        proven: Credits::ZERO,
        refunds: from_json(&row.get::<_, String>("hour")?)?,
    })
}

/// Writes an epoch. `before`: as it is stored, where that is known.
pub(super) fn save_epoch(
    connection: &Connection,
    account: &AccountId,
    id: Epoch,
    epoch: &EpochAccount,
    before: Option<&EpochAccount>,
) -> Result<(), Stop> {
    let (granted, returned, settled, claimed) = (epoch.granted.text(), epoch.returned.text(), epoch.settled.text(), epoch.claimed.text());
    let (unfunded, shortfall, burn_per_s) = (epoch.unfunded.text(), epoch.shortfall.text(), epoch.burn_per_s.text());
    let (id, totals, last_request) = (id.to_string(), totals_word(epoch.totals), int(epoch.last_request));
    let (last_digest, booked) = (epoch.last_digest.to_string(), to_json(&Booked { hour: epoch.hour, refunds: epoch.refunds })?);
    // What an index holds is written only where it changes: most questions touch one table.
    if before.is_some_and(|before| (&before.node, before.boot, before.state) == (&epoch.node, epoch.boot, epoch.state)) {
        let sql = "UPDATE epoch SET totals = ?3, granted = ?4, returned = ?5, settled = ?6, claimed = ?7, unfunded = ?8, shortfall = ?9,
            last_request = ?10, last_digest = ?11, burn_per_s = ?12, hour = ?13 WHERE account = ?1 AND epoch = ?2";
        connection.prepare_cached(sql)?.execute(params![
            account.as_str(),
            id,
            totals,
            granted,
            returned,
            settled,
            claimed,
            unfunded,
            shortfall,
            last_request,
            last_digest,
            burn_per_s,
            booked,
        ])?;
        return Ok(());
    }
    let sql =
        "INSERT OR REPLACE INTO epoch (account, epoch, totals, granted, returned, settled, claimed, unfunded, shortfall, last_request,
            last_digest, burn_per_s, hour, node, boot, state)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)";
    connection.prepare_cached(sql)?.execute(params![
        account.as_str(),
        id,
        totals,
        granted,
        returned,
        settled,
        claimed,
        unfunded,
        shortfall,
        last_request,
        last_digest,
        burn_per_s,
        booked,
        epoch.node.as_str(),
        epoch.boot.map(|boot| boot.to_string()),
        state_word(epoch.state),
    ])?;
    Ok(())
}

pub(super) fn entry(row: &Row<'_>) -> Result<LedgerEntry, Stop> {
    Ok(LedgerEntry {
        at: Wall(number(row, "at_ms")?),
        kind: from_json(&row.get::<_, String>("kind")?)?,
        amount: text(row, "amount")?,
        free: text(row, "free")?,
        paid: text(row, "paid")?,
        status: from_word(&row.get::<_, String>("status")?)?,
    })
}

/// A line replaces the one with its key, and keeps that one's place. Its kind is as good as its key.
pub(super) fn save_entry(connection: &Connection, account: &AccountId, entry: &LedgerEntry) -> Result<(), Stop> {
    let (account, key, at, status) = (account.as_str(), entry.key(), int(entry.at.0), status_word(entry.status));
    let (amount, free, paid) = (entry.amount.text(), entry.free.text(), entry.paid.text());
    if entry.status == EntryStatus::Accumulating {
        let sql = "UPDATE ledger SET at_ms = ?3, amount = ?4, free = ?5, paid = ?6, status = ?7 WHERE account = ?1 AND key = ?2";
        if connection.prepare_cached(sql)?.execute(params![account, key, at, amount, free, paid, status])? == 1 {
            return Ok(());
        }
    }
    let sql = "INSERT INTO ledger (account, key, at_ms, amount, free, paid, status, kind) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
        ON CONFLICT (account, key) DO UPDATE SET at_ms = ?3, amount = ?4, free = ?5, paid = ?6, status = ?7, kind = ?8";
    connection.prepare_cached(sql)?.execute(params![account, key, at, amount, free, paid, status, to_json(&entry.kind)?])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_with_each_question_has_the_words_by_which_it_is_read() {
        for state in [EpochState::Open, EpochState::Closed] {
            assert_eq!(from_word::<EpochState>(state_word(state)).ok(), Some(state));
        }
        for totals in [Totals::Reported, Totals::Final] {
            assert_eq!(from_word::<Totals>(totals_word(totals)).ok(), Some(totals));
        }
        for status in [EntryStatus::Completed, EntryStatus::Pending, EntryStatus::Failed, EntryStatus::Accumulating] {
            assert_eq!(from_word::<EntryStatus>(status_word(status)).ok(), Some(status));
        }
    }
}
