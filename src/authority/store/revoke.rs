//! Revocations, in tables of their own.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::{Done, Refusal, Stop, Store, StoreError, rows};
use crate::domain::id::{AccountId, PaymentId};
use crate::domain::ledger::{Account, AccountView, Lines, MIRROR_PREFIX, Revocation, RevokeRefusal, revocable, revoke};
use crate::domain::money::Credits;
use crate::domain::time::Now;
use crate::sqlite::{classify, int};

/// Makes the tables where they are not there: in a file of before there were revocations.
pub(super) fn make_tables(connection: &Connection) -> Result<(), StoreError> {
    let sql = "
        CREATE TABLE IF NOT EXISTS revocation (id TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES account (id), wanted TEXT NOT NULL,
            asked TEXT NOT NULL, taken TEXT NOT NULL, open INTEGER NOT NULL, at_ms INTEGER NOT NULL) STRICT;
        CREATE INDEX IF NOT EXISTS revocation_open ON revocation (account) WHERE open = 1;
        CREATE TABLE IF NOT EXISTS revoked (account TEXT PRIMARY KEY REFERENCES account (id), amount TEXT NOT NULL) STRICT;";
    connection.execute_batch(sql).map_err(|error| StoreError::from(classify(connection, &error)))
}

/// What was taken back of an account, and what is still to be.
pub(super) fn load(connection: &Connection, account: &mut Account) -> Result<(), Stop> {
    let id = account.id.as_str();
    let total = connection.prepare_cached("SELECT amount FROM revoked WHERE account = ?1")?.query_row([id], |row| row.get::<_, String>(0));
    account.revoked = total.optional()?.map(|text| rows::parsed(&text)).transpose()?.unwrap_or(Credits::ZERO);
    let sql = "SELECT id, asked, taken FROM revocation WHERE account = ?1 AND open = 1 ORDER BY rowid";
    let mut statement = connection.prepare_cached(sql)?;
    let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?));
    let found: Vec<(String, String, String)> = statement.query_map([id], read)?.collect::<Result<_, _>>()?;
    for (id, asked, taken) in found {
        account.revocations.push(Revocation { id: rows::parsed(&id)?, asked: rows::parsed(&asked)?, taken: rows::parsed(&taken)? });
    }
    Ok(())
}

/// Those that are over are not loaded again.
pub(super) fn save(connection: &Connection, account: &Account) -> Result<(), Stop> {
    if account.revocations.is_empty() {
        return Ok(());
    }
    let sql = "INSERT OR REPLACE INTO revoked (account, amount) VALUES (?1, ?2)";
    connection.prepare_cached(sql)?.execute(params![account.id.as_str(), account.revoked.to_string()])?;
    for revocation in &account.revocations {
        let open = i64::from(revocation.left().is_positive());
        let sql = "UPDATE revocation SET asked = ?2, taken = ?3, open = ?4 WHERE id = ?1";
        connection.prepare_cached(sql)?.execute(params![
            revocation.id.as_str(),
            revocation.asked.to_string(),
            revocation.taken.to_string(),
            open
        ])?;
    }
    Ok(())
}

impl Store {
    /// Takes credit back, once; all that there is where no amount is said.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn revoke(&mut self, id: &AccountId, amount: Option<Credits>, name: &PaymentId, now: Now) -> Result<(AccountView, Done), Refusal> {
        if name.as_str().starts_with(MIRROR_PREFIX) {
            return Err(Refusal::ReservedName);
        }
        self.mirrors.check_pay([id])?;
        self.transact(|books| {
            let mut account = books.known(id)?;
            let wanted = amount.map_or_else(|| "all".to_owned(), |amount| amount.to_string());
            let sql = "SELECT account, wanted FROM revocation WHERE id = ?1";
            let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?));
            if let Some((of, before)) = books.connection.query_row(sql, [name.as_str()], read).optional()? {
                let same = of == id.as_str() && before == wanted;
                return if same { Ok((account.view(), Done::Before)) } else { Err(Refusal::from(RevokeRefusal::Differs).into()) };
            }
            let amount = amount.unwrap_or_else(|| revocable(&account));
            let lines = revoke(&mut account, name.clone(), amount, now).map_err(Refusal::from)?;
            let sql = "INSERT INTO revocation (id, account, wanted, asked, taken, open, at_ms) VALUES (?1, ?2, ?3, '0', '0', 1, ?4)";
            books.connection.execute(sql, params![name.as_str(), id.as_str(), wanted, int(now.wall.0)])?;
            books.save(&account, Lines { ledger: lines, notices: Vec::new() }, now)?;
            Ok((account.view(), Done::Now))
        })
    }
}
