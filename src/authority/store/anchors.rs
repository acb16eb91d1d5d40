//! How far the nodes' journals went: for each node, spending life and hour the last place in the hash chain that was heard of.
//!
//! A table of its own, made where it is not there yet: a store that was written before it is read and written on, by old programs too.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::{Stop, rows};
use crate::domain::anchor::Anchor;
use crate::domain::chain::Head;
use crate::domain::time::{Now, Wall};
use crate::domain::wire::Request;
use crate::sqlite::int;

const HOUR_MS: u64 = 3_600_000;

const TABLE: &str =
    "CREATE TABLE IF NOT EXISTS anchor (node TEXT NOT NULL, epoch TEXT NOT NULL, hour INTEGER NOT NULL, seq INTEGER NOT NULL,
    link TEXT NOT NULL, at_ms INTEGER NOT NULL, PRIMARY KEY (node, epoch, hour)) STRICT";

pub(super) fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(TABLE)
}

/// Keeps a place, unless a later one of the same life is known: then this one was late on its way.
pub(super) fn keep(connection: &Connection, request: &Request, head: Head, now: Now) -> Result<(), Stop> {
    if head.seq == 0 {
        return Ok(()); // it says nothing
    }
    let (node, epoch) = (request.node.as_str(), request.epoch.to_string());
    let sql = "SELECT max(seq) FROM anchor WHERE node = ?1 AND epoch = ?2";
    let furthest: Option<i64> = connection.prepare_cached(sql)?.query_row(params![node, epoch], |row| row.get(0)).optional()?.flatten();
    if furthest.is_some_and(|furthest| int(head.seq) <= furthest) {
        return Ok(());
    }
    let sql = "INSERT OR REPLACE INTO anchor (node, epoch, hour, seq, link, at_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let (hour, at) = (int(now.wall.0 / HOUR_MS), int(now.wall.0));
    connection.prepare_cached(sql)?.execute(params![node, epoch, hour, int(head.seq), head.link.to_string(), at])?;
    Ok(())
}

/// All that are kept, the oldest first; none of a store that was written before there were any.
pub(super) fn all(connection: &Connection) -> Result<Vec<Anchor>, Stop> {
    let there = connection.query_row("SELECT 1 FROM sqlite_schema WHERE name = 'anchor'", [], |_| Ok(())).optional()?;
    if there.is_none() {
        return Ok(Vec::new());
    }
    let mut statement = connection.prepare("SELECT node, epoch, seq, link, at_ms FROM anchor ORDER BY at_ms, node, seq")?;
    let mut found = statement.query([])?;
    let mut anchors = Vec::new();
    while let Some(row) = found.next()? {
        let text = |column: usize| row.get::<_, String>(column);
        let head = Head { seq: number(row.get(2)?)?, link: rows::parsed(&text(3)?)? };
        anchors.push(Anchor { node: rows::parsed(&text(0)?)?, epoch: rows::parsed(&text(1)?)?, head, at: Wall(number(row.get(4)?)?) });
    }
    Ok(anchors)
}

fn number(stored: i64) -> Result<u64, Stop> {
    u64::try_from(stored).map_err(|_| Stop::Broken(format!("the store holds {stored} in an anchor")))
}
