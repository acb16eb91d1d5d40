//! The statements that the store makes for one question, and nothing else: no ledger, no parsing, no rule. Same rows, same isolation, same
//! durability, and answers after the commit.

use std::path::Path;

use crossbeam_channel::{Receiver, Sender};
use rusqlite::{Connection, params};

/// As the store does.
const COPY_BACK_COMMITS: u32 = 64;

/// What a client asks: which account and epoch, and how much was spent.
pub(crate) struct Ask {
    pub(crate) account: String,
    pub(crate) epoch: String,
    pub(crate) number: i64,
    pub(crate) spent: String,
    /// Of the line that grows in this hour.
    pub(crate) key: String,
    pub(crate) reply: Sender<()>,
}

/// Questions that share a commit at most.
#[derive(Clone, Copy)]
pub(crate) struct Together(pub(crate) usize);

/// Texts as the store wrote them for such an account, which stay as they are.
struct Texts {
    lots: String,
    hour: String,
    digest: String,
    numbers: Vec<u8>,
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

/// The keys of the lines that grow, by account.
pub(crate) fn keys(path: &Path) -> rusqlite::Result<Vec<String>> {
    let connection = open(path)?;
    let mut statement = connection.prepare("SELECT key FROM ledger WHERE status = 'accumulating' ORDER BY account")?;
    statement.query_map([], |row| row.get(0))?.collect()
}

fn texts(connection: &Connection) -> rusqlite::Result<Texts> {
    let numbers = connection.query_row("SELECT numbers FROM writer LIMIT 1", [], |row| row.get(0))?;
    let lots = connection.query_row("SELECT lots FROM account LIMIT 1", [], |row| row.get(0))?;
    connection.query_row("SELECT hour, last_digest FROM epoch LIMIT 1", [], |row| {
        Ok(Texts { lots, hour: row.get(0)?, digest: row.get(1)?, numbers })
    })
}

/// The store knows what it stored: it reads nothing.
fn one(connection: &Connection, ask: &Ask, texts: &Texts) -> rusqlite::Result<()> {
    let prepared = |sql: &'static str| connection.prepare_cached(sql);
    let (account, epoch, spent, number) = (ask.account.as_str(), ask.epoch.as_str(), ask.spent.as_str(), ask.number);
    let sql = "UPDATE writer SET last_request = ?2, numbers = ?3, forked_ms = ?4 WHERE epoch = ?1";
    written(prepared(sql)?.execute(params![epoch, number, texts.numbers, None::<i64>])?)?;
    let sql =
        "UPDATE account SET version = ?2, free = ?3, paid = ?4, deposited = ?5, settled = ?6, written_off = ?7, shortfall = ?8, lots = ?9,
        withdrawn = ?10 WHERE id = ?1";
    written(prepared(sql)?.execute(params![account, 2, "0", spent, "1000000", spent, "0", "0", texts.lots, "0"])?)?;
    let sql = "UPDATE epoch SET totals = ?3, granted = ?4, returned = ?5, settled = ?6, claimed = ?7, unfunded = ?8, shortfall = ?9,
        last_request = ?10, last_digest = ?11, burn_per_s = ?12, hour = ?13 WHERE account = ?1 AND epoch = ?2";
    let (digest, hour) = (&texts.digest, &texts.hour);
    written(
        prepared(sql)?.execute(params![account, epoch, "reported", spent, "0", spent, spent, "0", "0", number, digest, "0.001", hour])?,
    )?;
    let sql = "UPDATE ledger SET at_ms = ?3, amount = ?4, free = ?5, paid = ?6, status = ?7 WHERE account = ?1 AND key = ?2";
    let key = &ask.key;
    written(prepared(sql)?.execute(params![account, key, number, spent, "0", spent, "accumulating"])?)
}

/// A statement that finds nothing to change would be too cheap.
fn written(rows: usize) -> rusqlite::Result<()> {
    if rows == 1 { Ok(()) } else { Err(rusqlite::Error::StatementChangedRows(rows)) }
}
