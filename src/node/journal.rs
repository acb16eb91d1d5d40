//! The node's journal: facts in a hash chain, checkpoints and receipts, in one SQLite file with one writer.

use std::path::Path;

use crate::domain::batch::{Batch, ReceiptRow};
use crate::domain::chain::{BadRow, Head};
use crate::domain::time::{Nanos, Wall};

/// The journal, open for writing. One process at a time.
pub struct Journal {}

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

/// How long facts are kept once a checkpoint holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Not longer than this.
    pub age: Nanos,
    /// Not more than this many bytes of facts.
    pub bytes: u64,
}

/// What became of a commit, an open or a read that failed. Nothing of it is stored.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process writes this journal.
    #[error("another process writes the journal in {0}")]
    Locked(String),
    /// No space, or a read-only disk: may pass.
    #[error("the journal cannot grow: {0}")]
    Full(String),
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
    /// The checkpoint.
    #[error("the checkpoint after row {0} was changed")]
    Checkpoint(u64),
    /// A receipt record, by its attempt.
    #[error("the receipt record of attempt {0} was changed")]
    Receipt(u64),
    /// The rest of the file.
    #[error("{0}")]
    File(String),
}

/// The file that keeps room for the last readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserve {
    /// It is there.
    Kept,
    /// It was given up, as the disk is full: write only what closes jobs.
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

impl Journal {
    /// Opens the journal in `dir`, or makes one.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub fn open(dir: &Path, keep: Keep) -> Result<(Journal, Recovered), JournalError> {
        let _ = (dir, keep);
        todo!()
    }

    /// Makes a batch durable, or leaves everything as it was.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub fn commit(&mut self, batch: &Batch) -> Result<(), JournalError> {
        let _ = batch;
        todo!()
    }

    /// The last fact's number and link.
    #[must_use]
    pub fn head(&self) -> Head {
        todo!()
    }

    /// Is the reserve still there?
    #[must_use]
    pub fn reserve(&self) -> Reserve {
        todo!()
    }
}

/// The journal on a thread of its own, so that a slow disk keeps nobody waiting.
pub struct JournalThread {}

/// What the thread says.
#[derive(Debug)]
pub enum JournalNotice {
    /// Every row up to this one is durable.
    Durable {
        /// Its number.
        seq: u64,
        /// Is the reserve still there?
        reserve: Reserve,
    },
    /// The disk is full or blocked; said once, until a `Durable` follows. What was submitted is kept and tried again.
    Full(JournalError),
    /// The thread has ended: the process must end.
    Fatal(JournalError),
}

/// A batch that was not taken.
#[derive(Debug)]
pub enum NotTaken {
    /// Too many are waiting.
    Busy(Batch),
    /// The thread has ended.
    Ended(Batch),
}

impl JournalThread {
    /// Starts the thread. `notice` is called from it.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(journal: Journal, notice: impl FnMut(JournalNotice) + Send + 'static) -> std::io::Result<JournalThread> {
        let _ = (journal, notice);
        todo!()
    }

    /// Hands a batch over; never waits. Batches that wait are committed together.
    ///
    /// # Errors
    /// The batch, if it was not taken.
    pub fn submit(&self, batch: Batch) -> Result<(), NotTaken> {
        Err(NotTaken::Busy(batch))
    }

    /// Commits what waits, and ends the thread.
    ///
    /// # Errors
    /// When it could not be committed.
    pub fn finish(self) -> Result<Journal, JournalError> {
        todo!()
    }
}

/// The facts from number `from` on, unverified ([`verify`] does that).
///
/// # Errors
/// See [`JournalError`].
pub fn read_facts(dir: &Path, from: u64) -> Result<Vec<StoredFact>, JournalError> {
    let _ = (dir, from);
    todo!()
}

/// The receipt records of a job's attempts, newest first.
///
/// # Errors
/// See [`JournalError`].
pub fn read_receipts(dir: &Path, job: &str) -> Result<Vec<ReceiptRow>, JournalError> {
    let _ = (dir, job);
    todo!()
}

/// Walks the whole journal.
///
/// # Errors
/// [`JournalError::Damaged`] with the first bad row; else see [`JournalError`].
pub fn verify(dir: &Path) -> Result<Verified, JournalError> {
    let _ = dir;
    todo!()
}
