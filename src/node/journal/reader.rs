//! Reading the journal from another process, the daemon running or dead.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _};

use super::{Damage, FILE, JournalError, KIND, Recovered, StoredFact, Verified, damaged, digest, failed, meta, number};
use crate::domain::agent::Agent;
use crate::domain::anchor::Anchor;
use crate::domain::audit::{Audit, Fault, Found};
use crate::domain::batch::ReceiptRow;
use crate::domain::chain::{Head, Verifier, receipt_seal, seal};
use crate::domain::id::{Attempt, Digest};
use crate::domain::time::Wall;
use crate::sqlite::{Writing, int, open_for_reading, open_untouched};

fn open(dir: &Path) -> Result<Connection, JournalError> {
    let path = dir.join(FILE);
    if !path.try_exists().is_ok_and(|exists| exists) {
        return Err(JournalError::Absent(dir.display().to_string()));
    }
    let connection = open_for_reading(&path, &KIND).map_err(JournalError::from)?;
    // One view of everything that follows, whatever the writer does meanwhile.
    connection.execute_batch("BEGIN").map_err(|error| failed(&connection, &error))?;
    Ok(connection)
}

/// Hands each fact from number `from` on to `each`, oldest first, unverified ([`verify`] does that).
///
/// # Errors
/// See [`JournalError`]; or what `each` returns, which ends the walk.
pub fn for_each_fact<E: From<JournalError>>(dir: &Path, from: u64, mut each: impl FnMut(StoredFact) -> Result<(), E>) -> Result<(), E> {
    let connection = open(dir)?;
    walk(&connection, from, |fact, _| each(fact))
}

/// The same, each with its link in the hash chain.
///
/// # Errors
/// As [`for_each_fact`].
pub fn for_each_linked<E: From<JournalError>>(
    dir: &Path,
    from: u64,
    each: impl FnMut(StoredFact, Digest) -> Result<(), E>,
) -> Result<(), E> {
    let connection = open(dir)?;
    walk(&connection, from, each)
}

/// All facts that are kept, with their links; `begin` is told what the first one follows.
///
/// # Errors
/// As [`for_each_fact`].
pub fn for_each_behind<T, E: From<JournalError>>(
    dir: &Path,
    begin: impl FnOnce(Head) -> T,
    mut each: impl FnMut(&mut T, StoredFact, Digest) -> Result<(), E>,
) -> Result<T, E> {
    let connection = open(dir)?;
    let first = meta(&connection, "anchor")?;
    let mut state = begin(first);
    walk(&connection, first.seq.saturating_add(1), |fact, link| each(&mut state, fact, link))?;
    Ok(state)
}

/// The facts from number `from` on, unverified ([`verify`] does that).
///
/// # Errors
/// See [`JournalError`].
pub fn read_facts(dir: &Path, from: u64) -> Result<Vec<StoredFact>, JournalError> {
    let mut facts = Vec::new();
    for_each_fact(dir, from, |fact| {
        facts.push(fact);
        Ok::<(), JournalError>(())
    })?;
    Ok(facts)
}

/// What a start would find, checked, and when the newest fact was written; nothing in the folder is changed by looking.
///
/// # Errors
/// See [`JournalError`].
pub(crate) fn look(dir: &Path, writing: Writing) -> Result<(Recovered, Option<Wall>), JournalError> {
    let path = dir.join(FILE);
    if !path.try_exists().is_ok_and(|exists| exists) {
        return Err(JournalError::Absent(dir.display().to_string()));
    }
    let connection = open_untouched(&path, &KIND, writing).map_err(JournalError::from)?;
    connection.execute_batch("BEGIN").map_err(|error| failed(&connection, &error))?;
    let recovered = super::recover(&connection)?;
    let newest: Option<i64> = connection
        .query_row("SELECT wall_ms FROM fact ORDER BY seq DESC LIMIT 1", [], |row| row.get(0))
        .optional()
        .map_err(|error| failed(&connection, &error))?;
    Ok((recovered, newest.map(number).transpose()?.map(Wall)))
}

/// The last fact that is not kept any more, and the last one that is.
///
/// # Errors
/// See [`JournalError`].
pub fn ends(dir: &Path) -> Result<(u64, u64), JournalError> {
    let connection = open(dir)?;
    Ok((meta(&connection, "anchor")?.seq, meta(&connection, "head")?.seq))
}

/// Some facts from number `from` on, unverified; none if there are none. Ends with the one that makes `bytes_max` full.
/// What another process can read is on disk.
///
/// # Errors
/// See [`JournalError`].
pub fn read_page(dir: &Path, from: u64, facts_max: u32, bytes_max: usize) -> Result<Vec<StoredFact>, JournalError> {
    let connection = open(dir)?;
    let sql = "SELECT seq, wall_ms, bytes FROM fact WHERE seq >= ?1 ORDER BY seq LIMIT ?2";
    let fail = |error: rusqlite::Error| failed(&connection, &error);
    let mut statement = connection.prepare(sql).map_err(fail)?;
    let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, Vec<u8>>(2)?));
    let rows = statement.query_map((int(from), facts_max), read).map_err(fail)?;
    let (mut facts, mut length) = (Vec::new(), 0);
    for row in rows {
        let (seq, wall, bytes) = row.map_err(fail)?;
        length += bytes.len();
        facts.push(StoredFact { seq: number(seq)?, wall: Wall(number(wall)?), bytes });
        if bytes_max <= length {
            break;
        }
    }
    Ok(facts)
}

/// The receipt record of one attempt, if it is closed.
///
/// # Errors
/// As [`read_receipts`].
pub fn read_receipt_of(dir: &Path, attempt: Attempt) -> Result<Option<ReceiptRow>, JournalError> {
    let connection = open(dir)?;
    let sql = "SELECT attempt, job, ended_wall_ms, json, seal FROM receipt WHERE attempt = ?1";
    Ok(receipts(&connection, sql, [int(attempt.0)])?.pop())
}

/// All facts from `from` on, with their links.
pub(super) fn walk<E: From<JournalError>>(
    connection: &Connection,
    from: u64,
    mut each: impl FnMut(StoredFact, Digest) -> Result<(), E>,
) -> Result<(), E> {
    let fail = |error: &rusqlite::Error| E::from(failed(connection, error));
    let mut statement =
        connection.prepare("SELECT seq, wall_ms, bytes, chain FROM fact WHERE seq >= ?1 ORDER BY seq").map_err(|error| fail(&error))?;
    let mut rows = statement.query([int(from)]).map_err(|error| fail(&error))?;
    while let Some(row) = rows.next().map_err(|error| fail(&error))? {
        let read = || -> rusqlite::Result<(i64, i64, Vec<u8>, Vec<u8>)> { Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)) };
        let (seq, wall, bytes, chain) = read().map_err(|error| fail(&error))?;
        each(StoredFact { seq: number(seq)?, wall: Wall(number(wall)?), bytes }, digest(&chain)?)?;
    }
    Ok(())
}

/// The receipt records of a job's attempts, newest first.
///
/// # Errors
/// See [`JournalError`]; a record that was changed is [`Damage::Receipt`].
pub fn read_receipts(dir: &Path, job: &str) -> Result<Vec<ReceiptRow>, JournalError> {
    let connection = open(dir)?;
    receipts(&connection, "SELECT attempt, job, ended_wall_ms, json, seal FROM receipt WHERE job = ?1 ORDER BY attempt DESC", [job])
}

/// Some receipt records of jobs that ended then or later, by attempt, behind this one.
///
/// # Errors
/// As [`read_receipts`].
pub fn read_receipts_page(dir: &Path, after: Attempt, ended_since: Wall, limit: u32) -> Result<Vec<ReceiptRow>, JournalError> {
    let connection = open(dir)?;
    let sql =
        "SELECT attempt, job, ended_wall_ms, json, seal FROM receipt WHERE attempt > ?1 AND ended_wall_ms >= ?2 ORDER BY attempt LIMIT ?3";
    receipts(&connection, sql, (int(after.0), int(ended_since.0), limit))
}

/// The receipt record of a job's latest attempt that ended.
///
/// # Errors
/// As [`read_receipts`].
pub fn read_receipt(dir: &Path, job: &str) -> Result<Option<ReceiptRow>, JournalError> {
    let connection = open(dir)?;
    let sql = "SELECT attempt, job, ended_wall_ms, json, seal FROM receipt WHERE job = ?1 ORDER BY attempt DESC LIMIT 1";
    Ok(receipts(&connection, sql, [job])?.pop())
}

fn receipts(connection: &Connection, sql: &str, params: impl rusqlite::Params) -> Result<Vec<ReceiptRow>, JournalError> {
    let fail = |error: rusqlite::Error| failed(connection, &error);
    let mut statement = connection.prepare(sql).map_err(fail)?;
    let mut rows = statement.query(params).map_err(fail)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(fail)? {
        let attempt = number(row.get(0).map_err(fail)?)?;
        let (job, ended): (String, i64) = (row.get(1).map_err(fail)?, row.get(2).map_err(fail)?);
        let (json, kept): (String, Vec<u8>) = (row.get(3).map_err(fail)?, row.get(4).map_err(fail)?);
        let job = job.parse().map_err(|_| Damage::Receipt(attempt))?;
        let record = ReceiptRow { attempt: Attempt(attempt), job, ended: Wall(number(ended)?), json };
        if sealed(&record) != digest(&kept)? {
            return Err(Damage::Receipt(attempt).into());
        }
        found.push(record);
    }
    Ok(found)
}

/// A record's seal: over all that is stored of it.
pub(super) fn sealed(record: &ReceiptRow) -> Digest {
    receipt_seal(record.attempt.0, &format!("{}\n{}\n{}", record.job, record.ended.0, record.json))
}

/// The latest checkpoint, with the place in the chain up to which it holds everything, its seal checked.
pub(super) fn checkpoint(connection: &Connection) -> Result<Option<(Head, Vec<u8>)>, JournalError> {
    let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?, row.get::<_, Vec<u8>>(2)?));
    let found = connection.query_row("SELECT seq, bytes, chain FROM checkpoint WHERE id = 1", [], read).optional();
    let Some((seq, bytes, kept)) = found.map_err(|error| failed(connection, &error))? else { return Ok(None) };
    let seq = number(seq)?;
    let head = Head { seq, link: link_at(connection, seq)?.ok_or(Damage::Checkpoint(seq))? };
    if digest(&kept)? != seal(head, &bytes) {
        return Err(Damage::Checkpoint(seq).into());
    }
    Ok(Some((head, bytes)))
}

/// The link of a row that is kept, or of the last one that was pruned.
fn link_at(connection: &Connection, seq: u64) -> Result<Option<Digest>, JournalError> {
    let anchor = meta(connection, "anchor")?;
    if anchor.seq == seq {
        return Ok(Some(anchor.link));
    }
    let kept: Option<Vec<u8>> = connection
        .query_row("SELECT chain FROM fact WHERE seq = ?1", [int(seq)], |row| row.get(0))
        .optional()
        .map_err(|error| failed(connection, &error))?;
    kept.map(|bytes| digest(&bytes)).transpose()
}

/// Walks the rows behind `from` to the end that the journal has written down; hands over each.
pub(super) fn verified(connection: &Connection, from: Head, mut each: impl FnMut(StoredFact)) -> Result<Verified, JournalError> {
    let mut verifier = Verifier::behind(from);
    walk(connection, from.seq.saturating_add(1), |fact, kept| {
        verifier.row(fact.seq, &fact.bytes, kept).map_err(Damage::Fact)?;
        each(fact);
        Ok::<(), JournalError>(())
    })?;
    let (found, written) = (verifier.head(), meta(connection, "head")?);
    if found != written {
        return Err(damaged(format!("the rows end at {}, and {} were written", found.seq, written.seq)));
    }
    Ok(Verified { rows: found.seq - from.seq, head: found })
}

/// Walks the whole journal: file structure, facts, checkpoint, receipt records.
///
/// # Errors
/// [`JournalError::Damaged`] with the first thing that is wrong; else see [`JournalError`].
pub fn verify(dir: &Path) -> Result<Verified, JournalError> {
    whole(dir, |connection, first| verified(connection, first, |_| ()))
}

/// The same, and computes every price in it again. With anchors, its chain must be the one that the authority heard of.
///
/// # Errors
/// As [`verify`].
pub fn audit(dir: &Path, anchors: Option<Vec<Anchor>>) -> Result<Found, JournalError> {
    whole(dir, |connection, first| audited(connection, first, anchors))
}

fn audited(connection: &Connection, first: Head, anchors: Option<Vec<Anchor>>) -> Result<Found, JournalError> {
    let mut checkpoint = checkpoint(connection)?;
    let mut audit = Audit::behind(first, anchors);
    let mut adopt = |audit: &mut Audit, at: u64| {
        if checkpoint.as_ref().is_some_and(|(head, _)| head.seq == at)
            && let Some((_, bytes)) = checkpoint.take()
            && let Some(agent) = Agent::decode(&bytes)
        {
            audit.meet(&agent)?;
        }
        Ok::<(), Fault>(())
    };
    adopt(&mut audit, first.seq).map_err(Damage::from)?;
    let mut statement =
        connection.prepare("SELECT seq, bytes, chain FROM fact WHERE seq > ?1 ORDER BY seq").map_err(|error| failed(connection, &error))?;
    let fail = |error: rusqlite::Error| failed(connection, &error);
    let mut rows = statement.query([int(first.seq)]).map_err(fail)?;
    while let Some(row) = rows.next().map_err(fail)? {
        let seq = number(row.get(0).map_err(fail)?)?;
        // Read where they lie: a day of facts is not copied.
        let blob = |column: usize| row.get_ref(column)?.as_blob().map_err(|_| rusqlite::Error::InvalidQuery);
        audit.row(seq, blob(1).map_err(fail)?, digest(blob(2).map_err(fail)?)?).map_err(Damage::from)?;
        adopt(&mut audit, seq).map_err(Damage::from)?;
    }
    let written = meta(connection, "head")?;
    if audit.head() != written {
        return Err(damaged(format!("the rows end at {}, and {} were written", audit.head().seq, written.seq)));
    }
    audit.finish().map_err(|fault| Damage::from(fault).into())
}

/// The facts first, as they are walked by `facts`: a changed one is named by its number, where the check of the file would only say that
/// something is wrong.
fn whole<T>(dir: &Path, facts: impl FnOnce(&Connection, Head) -> Result<T, JournalError>) -> Result<T, JournalError> {
    let connection = open(dir)?;
    let anchor = meta(&connection, "anchor")?;
    let found = facts(&connection, anchor)?;
    let below: i64 = connection
        .query_row("SELECT count(*) FROM fact WHERE seq <= ?1", [int(anchor.seq)], |row| row.get(0))
        .map_err(|error| failed(&connection, &error))?;
    if below != 0 {
        return Err(damaged(format!("{below} rows stand before the first one")));
    }
    checkpoint(&connection)?;
    receipts(&connection, "SELECT attempt, job, ended_wall_ms, json, seal FROM receipt ORDER BY attempt", [])?;
    let structure: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(|error| failed(&connection, &error))?;
    if structure == "ok" { Ok(found) } else { Err(damaged(structure)) }
}
