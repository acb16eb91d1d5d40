//! What is handed to the journal: one or more rows that become durable together.

use super::id::{Attempt, JobName};
use super::time::Wall;

/// One commit's worth: all of it is durable, or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The number of the first row; rows are numbered 1, 2, 3 … without a gap. Without rows: the number that the next one will have.
    pub first_seq: u64,
    /// Facts, oldest first.
    pub rows: Vec<Row>,
    /// Receipts of attempts that ended.
    pub receipts: Vec<ReceiptRow>,
    /// The state after the last row of this batch.
    pub checkpoint: Option<Vec<u8>>,
}

/// One fact, encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// When, for people and for the age at which it may be pruned. Not part of the chain: what matters must be in `bytes`.
    pub wall: Wall,
    /// The fact's immutable, versioned bytes.
    pub bytes: Vec<u8>,
}

/// A receipt record, self-contained: it outlives the facts that it was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiptRow {
    /// Which attempt.
    pub attempt: Attempt,
    /// Of which job.
    pub job: JobName,
    /// When it ended.
    pub ended: Wall,
    /// The record, in JSON.
    pub json: String,
}

impl Batch {
    /// The number of the last row, or of the row before this batch if it has none.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        let rows = u64::try_from(self.rows.len()).unwrap_or(u64::MAX);
        self.first_seq.saturating_add(rows).saturating_sub(1)
    }
}
