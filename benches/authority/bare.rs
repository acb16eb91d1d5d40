//! The statements that the store makes for one question, and nothing else: no ledger, no parsing, no rule. Same rows, same isolation, same
//! durability, and answers after the commit.

use std::path::Path;

use crossbeam_channel::{Receiver, Sender};
use rusqlite::{Connection, Statement, params};

/// As the store does.
const COPY_BACK_COMMITS: u32 = 64;

/// What a client asks: which account and epoch, and how much was spent.
pub(crate) struct Ask {
    pub(crate) account: String,
    pub(crate) epoch: String,
    pub(crate) number: i64,
    pub(crate) spent: String,
    pub(crate) reply: Sender<()>,
}

/// Questions that share a commit at most.
#[derive(Clone, Copy)]
pub(crate) struct Together(pub(crate) usize);

/// Constant texts, as the store wrote them for such an account.
struct Texts {
    policy: String,
    lots: String,
    terms: String,
    keeping: String,
    hour: String,
    digest: String,
}

/// The store's settings: a write-ahead log, flushed with each commit, copied back by itself alone.
pub(crate) fn open(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    connection.execute_batch("PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0; PRAGMA journal_size_limit = 16777216;")?;
    Ok(connection)
}

/// Answers until nobody asks any more.
pub(crate) fn serve(path: &Path, asks: &Receiver<Ask>, together: Together) -> rusqlite::Result<()> {
    let connection = open(path)?;
    let texts = texts(&connection)?;
    let mut commits = 0;
    while let Ok(first) = asks.recv() {
        let group: Vec<Ask> = std::iter::once(first).chain(asks.try_iter()).take(together.0).collect();
        connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        for ask in &group {
            one(&connection, ask, &texts)?;
        }
        connection.prepare_cached("COMMIT")?.execute([])?;
        commits += 1;
        if commits == COPY_BACK_COMMITS {
            commits = 0;
            connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
        }
        for ask in group {
            let _ = ask.reply.send(()); // a client that has gone away has no use for it
        }
    }
    Ok(())
}

fn texts(connection: &Connection) -> rusqlite::Result<Texts> {
    let hour = connection.query_row("SELECT hour, last_digest FROM epoch LIMIT 1", [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    connection.query_row("SELECT policy, lots, terms, keeping FROM account LIMIT 1", [], |row| {
        Ok(Texts { policy: row.get(0)?, lots: row.get(1)?, terms: row.get(2)?, keeping: row.get(3)?, hour: hour.0, digest: hour.1 })
    })
}

/// Reads every column of every row.
fn read(statement: &mut Statement<'_>, params: impl rusqlite::Params) -> rusqlite::Result<u64> {
    let columns = statement.column_count();
    let mut rows = statement.query(params)?;
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        for column in 0..columns {
            bytes += match row.get_ref(column)? {
                rusqlite::types::ValueRef::Text(text) => text.len() as u64,
                _ => 8,
            };
        }
    }
    Ok(bytes)
}

fn one(connection: &Connection, ask: &Ask, texts: &Texts) -> rusqlite::Result<()> {
    let prepared = |sql: &'static str| connection.prepare_cached(sql);
    let (account, epoch) = (ask.account.as_str(), ask.epoch.as_str());
    let mut bytes = read(&mut *prepared("SELECT * FROM account WHERE id = ?1")?, [account])?;
    let sql = "SELECT * FROM epoch WHERE account = ?1 AND (state = 'open' OR epoch IN (SELECT value FROM json_each(?2)))";
    bytes += read(&mut *prepared(sql)?, [account, &format!("[\"{epoch}\"]")])?;
    bytes += read(&mut *prepared("SELECT amount FROM revoked WHERE account = ?1")?, [account])?;
    bytes += read(&mut *prepared("SELECT id, asked, taken FROM revocation WHERE account = ?1 AND open = 1 ORDER BY rowid")?, [account])?;
    std::hint::black_box(bytes);
    let spent = ask.spent.as_str();
    let sql =
        "INSERT INTO account (id, policy, version, free, paid, deposited, settled, written_off, shortfall, lots, withdrawn, terms, keeping)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
        ON CONFLICT (id) DO UPDATE SET policy = ?2, version = ?3, free = ?4, paid = ?5, deposited = ?6, settled = ?7, written_off = ?8,
            shortfall = ?9, lots = ?10, withdrawn = ?11, terms = ?12, keeping = ?13";
    let (policy, lots, terms, keeping) = (&texts.policy, &texts.lots, &texts.terms, &texts.keeping);
    prepared(sql)?.execute(params![account, policy, 2, "0", spent, "1000000", spent, "0", "0", lots, "0", terms, keeping])?;
    let sql =
        "INSERT OR REPLACE INTO epoch (account, epoch, node, boot, state, totals, granted, returned, settled, claimed, unfunded, shortfall,
            last_request, last_digest, burn_per_s, hour)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)";
    let (number, digest, hour) = (ask.number, &texts.digest, &texts.hour);
    prepared(sql)?.execute(params![
        account, epoch, "node", epoch, "open", "reported", spent, "0", spent, spent, "0", "0", number, digest, "0.001", hour
    ])?;
    let sql = "INSERT INTO ledger (account, key, at_ms, kind, amount, free, paid, status) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
        ON CONFLICT (account, key) DO UPDATE SET at_ms = ?3, kind = ?4, amount = ?5, free = ?6, paid = ?7, status = ?8";
    let key = format!("usage/{epoch}/500000");
    let kind = format!("{{\"kind\":\"usage\",\"epoch\":\"{epoch}\",\"hour\":500000}}");
    prepared(sql)?.execute(params![account, key, number, kind, spent, "0", spent, "accumulating"])?;
    Ok(())
}
