//! The node's journal: facts in a hash chain, checkpoints and receipt records, in one `SQLite` file with one writer.
//!
//! A batch is durable as a whole or not at all. What is read back is checked against the chain: a damaged file gives an error, never wrong facts.

mod aside;
mod reader;
mod reserve;
#[cfg(test)]
mod tests;
mod thread;

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, TransactionBehavior, params};
use rustix::fs::{FlockOperation, flock};

use crate::domain::audit;
use crate::domain::batch::Batch;
use crate::domain::chain::{BadRow, Head, seal};
use crate::domain::id::Digest;
use crate::domain::time::{Nanos, Wall};
use crate::sqlite::{Failure, Kind, classify, copy_back, int, open_for_writing};

pub use aside::{Kept, good_prefix, list as list_aside, read as note_read, set_aside, unread as unread_aside};
pub(crate) use reader::look;
pub use reader::{
    audit, ends, for_each_behind, for_each_fact, for_each_linked, read_facts, read_page, read_receipt, read_receipt_of, read_receipts,
    read_receipts_page, verify,
};
use reserve::ReserveFile;
pub use thread::{JournalNotice, JournalThread, NotTaken};

const FILE: &str = "journal.db";
const LOCK_FILE: &str = "journal.lock";

const KIND: Kind = Kind {
    application_id: 0x6d74_726a,
    version: 1,
    schema: "
        CREATE TABLE fact (seq INTEGER PRIMARY KEY, wall_ms INTEGER NOT NULL, bytes BLOB NOT NULL, chain BLOB NOT NULL) STRICT;
        CREATE TABLE checkpoint (id INTEGER PRIMARY KEY CHECK (id = 1), seq INTEGER NOT NULL, bytes BLOB NOT NULL, chain BLOB NOT NULL) STRICT;
        CREATE TABLE receipt (attempt INTEGER PRIMARY KEY, job TEXT NOT NULL, ended_wall_ms INTEGER NOT NULL, json TEXT NOT NULL,
            seal BLOB NOT NULL) STRICT;
        CREATE INDEX receipt_job ON receipt (job, attempt);
        -- head: the last row. anchor: the row before the first that is kept. kept: bytes of facts that are kept, in seq.
        CREATE TABLE meta (key TEXT PRIMARY KEY, seq INTEGER NOT NULL, chain BLOB NOT NULL) STRICT;
        INSERT INTO meta VALUES ('head', 0, zeroblob(32)), ('anchor', 0, zeroblob(32)), ('kept', 0, zeroblob(32));",
    steps: &[],
};

/// Commits between two copies of the write-ahead log into the file.
const COPY_BACK_COMMITS: u32 = 64;

/// Most facts that one commit prunes, so that no commit takes long.
const PRUNE_MAX: u32 = 10_000;

/// The journal, open for writing. One process at a time.
pub struct Journal {
    connection: Connection,
    dir: PathBuf,
    /// Held, with its lock, for as long as the journal is open.
    _lock: File,
    reserve: ReserveFile,
    keep: Keep,
    head: Head,
    anchor: Head,
    kept_bytes: u64,
    commits: u32,
    /// Why nothing may be written any more.
    failed: Option<String>,
}

/// What a start finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The latest checkpoint, and the number of the last fact in it.
    pub checkpoint: Option<(u64, Vec<u8>)>,
    /// The facts after it, oldest first, the chain verified.
    pub facts: Vec<(u64, Vec<u8>)>,
    /// The last fact's number and link.
    pub head: Head,
}

/// How long facts are kept once a checkpoint holds them. What is over either bound is pruned when the next checkpoint is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Not longer than this.
    pub age: Nanos,
    /// Not more than this many bytes of facts.
    pub bytes: u64,
}

impl Default for Keep {
    /// A week, and 2 GiB.
    fn default() -> Keep {
        Keep { age: Nanos::from_secs(7 * 86_400), bytes: 2 * 1024 * 1024 * 1024 }
    }
}

/// Why an open, a commit or a read failed. Of a commit that failed nothing is stored.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process writes this journal.
    #[error("another process writes the journal in {0}")]
    Locked(String),
    /// No space: may pass.
    #[error("the journal cannot grow: {0}")]
    Full(String),
    /// A read-only disk: may pass.
    #[error("the journal's disk is read-only: {0}")]
    ReadOnly(String),
    /// Another process holds the file for now: may pass.
    #[error("the journal is held by another process: {0}")]
    Blocked(String),
    /// The caller's rows do not follow the last one.
    #[error("rows begin at {found}, the journal goes on at {expected}")]
    OutOfSequence {
        /// The number that had to come.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// Another program's file, or another version's: it is left as it is.
    #[error("the journal is not of this program: {0}")]
    Foreign(String),
    /// The file is not what was written.
    #[error("the journal is damaged: {0}")]
    Damaged(#[from] Damage),
    /// The disk failed: what is on it is not known any more, so the process must end.
    #[error("the journal failed: {0}")]
    Fatal(String),
    /// There is no journal there.
    #[error("there is no journal in {0}")]
    Absent(String),
}

/// What is wrong with a journal's content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// A fact.
    #[error(transparent)]
    Fact(#[from] BadRow),
    /// A price in a fact, or the anchors.
    #[error(transparent)]
    Audit(audit::Fault),
    /// The checkpoint.
    #[error("the checkpoint after row {0} was changed")]
    Checkpoint(u64),
    /// A receipt record, by its attempt.
    #[error("the receipt record of attempt {0} was changed")]
    Receipt(u64),
    /// The rest of the file.
    #[error("{0}")]
    File(String),
    /// Nothing, but it is not of here.
    #[error("it was written on another machine")]
    OtherMachine,
}

/// The room that is kept for the last readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserve {
    /// It is there.
    Kept,
    /// It was given up, as the disk is full: write only what closes jobs. It comes back by itself once there is room.
    InUse,
}

/// A fact as it is read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredFact {
    /// Its number.
    pub seq: u64,
    /// When it was written, for people.
    pub wall: Wall,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// What was found right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// How many facts were walked.
    pub rows: u64,
    /// The last one's number and link: what an anchor is compared with.
    pub head: Head,
}

impl From<Failure> for JournalError {
    fn from(failure: Failure) -> JournalError {
        match failure {
            Failure::Full(text) => JournalError::Full(text),
            Failure::ReadOnly(text) => JournalError::ReadOnly(text),
            Failure::Blocked(text) => JournalError::Blocked(text),
            Failure::Foreign(text) => JournalError::Foreign(text),
            Failure::Damaged(text) => damaged(text),
            Failure::Fatal(text) => JournalError::Fatal(text),
        }
    }
}

impl JournalError {
    /// Is it a state of the world that may pass, so that the same commit is worth trying again?
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, JournalError::Full(_) | JournalError::ReadOnly(_) | JournalError::Blocked(_))
    }
}

impl From<audit::Fault> for Damage {
    fn from(fault: audit::Fault) -> Damage {
        match fault {
            audit::Fault::Chain(bad) => Damage::Fact(bad),
            other => Damage::Audit(other),
        }
    }
}

fn damaged(text: impl Into<String>) -> JournalError {
    JournalError::Damaged(Damage::File(text.into()))
}

fn failed(connection: &Connection, error: &rusqlite::Error) -> JournalError {
    classify(connection, error).into()
}

fn number(stored: i64) -> Result<u64, JournalError> {
    u64::try_from(stored).map_err(|_| damaged(format!("{stored} is stored as a number of rows, milliseconds or bytes")))
}

fn digest(stored: &[u8]) -> Result<Digest, JournalError> {
    stored.try_into().map(Digest).map_err(|_| damaged(format!("a link of {} bytes", stored.len())))
}

fn meta(connection: &Connection, key: &str) -> Result<Head, JournalError> {
    let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?));
    let found = connection.query_row("SELECT seq, chain FROM meta WHERE key = ?1", [key], read);
    let (seq, link) = found.map_err(|error| failed(connection, &error))?;
    Ok(Head { seq: number(seq)?, link: digest(&link)? })
}

fn locked(dir: &Path) -> Result<File, JournalError> {
    let fatal = |error: std::io::Error| JournalError::Fatal(format!("{}: {error}", dir.display()));
    std::fs::create_dir_all(dir).map_err(fatal)?;
    let read_only = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::ReadOnlyFilesystem => JournalError::ReadOnly(dir.display().to_string()),
        _ => fatal(error),
    };
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(dir.join(LOCK_FILE)).map_err(read_only)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(JournalError::Locked(dir.display().to_string())),
        Err(errno) => Err(fatal(errno.into())),
    }
}

impl Journal {
    /// Opens the journal in `dir`, or makes one, and reads back what a start needs.
    ///
    /// # Errors
    /// [`JournalError::Locked`] beside another writer, [`JournalError::Damaged`] where the chain or the file is broken; else see [`JournalError`].
    pub fn open(dir: &Path, keep: Keep) -> Result<(Journal, Recovered), JournalError> {
        Journal::open_locked(locked(dir)?, dir, keep)
    }

    fn open_locked(lock: File, dir: &Path, keep: Keep) -> Result<(Journal, Recovered), JournalError> {
        let reserve = ReserveFile::open(dir);
        let connection = open_for_writing(&dir.join(FILE), &KIND)?;
        let recovered = recover(&connection)?;
        let anchor = meta(&connection, "anchor")?;
        let kept_bytes = meta(&connection, "kept")?.seq;
        let head = recovered.head;
        let journal =
            Journal { connection, dir: dir.to_owned(), _lock: lock, reserve, keep, head, anchor, kept_bytes, commits: 0, failed: None };
        Ok((journal, recovered))
    }

    /// Makes a batch durable, or leaves everything as it was.
    ///
    /// # Errors
    /// [`JournalError::Full`] and [`JournalError::Blocked`] may pass; [`JournalError::OutOfSequence`] is the caller's mistake; after any other nothing is written any more.
    pub fn commit(&mut self, batch: &Batch) -> Result<(), JournalError> {
        self.commit_all(std::slice::from_ref(batch))
    }

    /// Makes several batches durable at once. Errors as [`Journal::commit`].
    ///
    /// # Errors
    /// As [`Journal::commit`].
    pub fn commit_all(&mut self, batches: &[Batch]) -> Result<(), JournalError> {
        if let Some(failed) = &self.failed {
            return Err(JournalError::Fatal(failed.clone()));
        }
        let mut result = self.write(batches);
        if matches!(result, Err(JournalError::Full(_))) && self.reserve.release() {
            result = self.write(batches);
        }
        let result = result.and_then(|()| self.copy_back_when_due());
        if let Err(error @ (JournalError::Fatal(_) | JournalError::Damaged(_))) = &result {
            self.failed = Some(error.to_string());
        }
        if let Err(JournalError::Damaged(damage)) = &result {
            aside::note_damage(&self.dir, damage);
        }
        result
    }

    /// The last fact's number and link.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// Is the reserve still there?
    #[must_use]
    pub fn reserve(&self) -> Reserve {
        self.reserve.state()
    }

    /// Makes the reserve again, if it is gone and there is room.
    pub fn restore_reserve(&mut self) -> Reserve {
        self.reserve.restore();
        self.reserve.state()
    }

    fn write(&mut self, batches: &[Batch]) -> Result<(), JournalError> {
        let mut writing = Writing { head: self.head, anchor: self.anchor, kept_bytes: self.kept_bytes, newest: Wall(0) };
        let keep = self.keep;
        let mut attempt = || -> Result<(), WriteError> {
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            for batch in batches {
                writing.batch(&transaction, batch)?;
            }
            // Only where a checkpoint comes: then everything up to it is no longer needed for a start.
            if batches.iter().any(|batch| batch.checkpoint.is_some()) {
                writing.prune(&transaction, keep)?;
            }
            writing.meta(&transaction)?;
            Ok(transaction.commit()?)
        };
        match attempt() {
            Ok(()) => {}
            Err(WriteError::OutOfSequence { expected, found }) => return Err(JournalError::OutOfSequence { expected, found }),
            Err(WriteError::Sqlite(error)) => return Err(failed(&self.connection, &error)),
        }
        (self.head, self.anchor, self.kept_bytes) = (writing.head, writing.anchor, writing.kept_bytes);
        Ok(())
    }

    /// From time to time, copies the log back and looks whether the reserve can be kept again. Lack of space is no failure here: the rows are durable in the log.
    fn copy_back_when_due(&mut self) -> Result<(), JournalError> {
        self.commits += 1;
        if self.commits < COPY_BACK_COMMITS {
            return Ok(());
        }
        self.commits = 0;
        match copy_back(&self.connection) {
            Ok(()) => self.reserve.restore(),
            Err(Failure::Full(_)) => {
                self.reserve.release();
            }
            Err(Failure::Blocked(_) | Failure::ReadOnly(_)) => {}
            Err(failure) => return Err(failure.into()),
        }
        Ok(())
    }
}

fn recover(connection: &Connection) -> Result<Recovered, JournalError> {
    let checkpoint = reader::checkpoint(connection)?;
    let from = match &checkpoint {
        Some((head, _)) => *head,
        None => meta(connection, "anchor")?,
    };
    if checkpoint.is_none() && from != Head::START {
        return Err(damaged(format!("rows up to {} were pruned, and there is no checkpoint", from.seq)));
    }
    let mut facts = Vec::new();
    let verified = reader::verified(connection, from, |fact| facts.push((fact.seq, fact.bytes)))?;
    Ok(Recovered { checkpoint: checkpoint.map(|(head, bytes)| (head.seq, bytes)), facts, head: verified.head })
}

enum WriteError {
    OutOfSequence { expected: u64, found: u64 },
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for WriteError {
    fn from(error: rusqlite::Error) -> WriteError {
        WriteError::Sqlite(error)
    }
}

/// What a transaction makes of the journal's state; taken over once it is committed.
struct Writing {
    head: Head,
    anchor: Head,
    kept_bytes: u64,
    newest: Wall,
}

impl Writing {
    fn batch(&mut self, connection: &Connection, batch: &Batch) -> Result<(), WriteError> {
        let expected = self.head.seq.saturating_add(1);
        if batch.first_seq != expected {
            return Err(WriteError::OutOfSequence { expected, found: batch.first_seq });
        }
        let mut insert = connection.prepare_cached("INSERT INTO fact (seq, wall_ms, bytes, chain) VALUES (?1, ?2, ?3, ?4)")?;
        for row in &batch.rows {
            self.head = self.head.after(&row.bytes);
            self.kept_bytes = self.kept_bytes.saturating_add(row.bytes.len() as u64);
            self.newest = self.newest.max(row.wall);
            insert.execute(params![int(self.head.seq), int(row.wall.0), row.bytes, self.head.link.0])?;
        }
        let mut insert = connection
            .prepare_cached("INSERT OR REPLACE INTO receipt (attempt, job, ended_wall_ms, json, seal) VALUES (?1, ?2, ?3, ?4, ?5)")?;
        for record in &batch.receipts {
            let seal = reader::sealed(record).0;
            insert.execute(params![int(record.attempt.0), record.job.as_str(), int(record.ended.0), record.json, seal])?;
        }
        if let Some(bytes) = &batch.checkpoint {
            let sql = "INSERT OR REPLACE INTO checkpoint (id, seq, bytes, chain) VALUES (1, ?1, ?2, ?3)";
            connection.prepare_cached(sql)?.execute(params![int(self.head.seq), bytes, seal(self.head, bytes).0])?;
        }
        Ok(())
    }

    /// Forgets the oldest facts that the checkpoint holds, as far as they are too old or too many, in their order.
    fn prune(&mut self, connection: &Connection, keep: Keep) -> Result<(), WriteError> {
        let oldest_kept = self.newest.0.saturating_sub(keep.age.millis());
        let sql = "SELECT seq, wall_ms, length(bytes), chain FROM fact
            WHERE seq <= (SELECT seq FROM checkpoint WHERE id = 1) ORDER BY seq LIMIT ?1";
        let mut statement = connection.prepare_cached(sql)?;
        let mut rows = statement.query([PRUNE_MAX])?;
        let before = self.anchor;
        while let Some(row) = rows.next()? {
            let (seq, wall, length): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            if int(oldest_kept) <= wall && self.kept_bytes <= keep.bytes {
                break;
            }
            self.anchor = Head { seq: seq.unsigned_abs(), link: Digest(row.get(3)?) };
            self.kept_bytes = self.kept_bytes.saturating_sub(length.unsigned_abs());
        }
        if before != self.anchor {
            connection.prepare_cached("DELETE FROM fact WHERE seq <= ?1")?.execute([int(self.anchor.seq)])?;
        }
        Ok(())
    }

    fn meta(&self, connection: &Connection) -> Result<(), WriteError> {
        let kept = Head { seq: self.kept_bytes, link: crate::domain::chain::GENESIS };
        let mut update = connection.prepare_cached("UPDATE meta SET seq = ?2, chain = ?3 WHERE key = ?1")?;
        for (key, value) in [("head", self.head), ("anchor", self.anchor), ("kept", kept)] {
            update.execute(params![key, int(value.seq), value.link.0])?;
        }
        Ok(())
    }
}
