//! The simulated disk under a node's journal: commits take their time, and a crash leaves some of them, and perhaps a torn row.

use meterd::domain::batch::{Batch, ReceiptRow};
use meterd::domain::chain::{Head, Verifier};
use meterd::domain::id::Digest;

use crate::rng::Rng;

/// A journal as it lies on the disk.
#[derive(Default)]
pub(crate) struct Disk {
    rows: Vec<(u64, Vec<u8>, Digest)>,
    checkpoint: Option<(u64, Vec<u8>)>,
    pub(crate) receipts: Vec<ReceiptRow>,
    queue: Vec<Batch>,
    writing: Vec<Batch>,
    pub(crate) full: bool,
}

impl Disk {
    fn head(&self) -> Head {
        self.rows.last().map_or(Head::START, |(seq, _, link)| Head { seq: *seq, link: *link })
    }

    pub(crate) fn submit(&mut self, batch: Batch) {
        self.queue.push(batch);
    }

    pub(crate) fn is_writing(&self) -> bool {
        !self.writing.is_empty()
    }

    /// Begins to write all that waits; false if there is nothing to do.
    pub(crate) fn begin(&mut self) -> bool {
        if self.full || self.is_writing() || self.queue.is_empty() {
            return false;
        }
        self.writing = std::mem::take(&mut self.queue);
        true
    }

    /// What was being written is durable: the batches, in order.
    pub(crate) fn finish(&mut self) -> Vec<Batch> {
        let done = std::mem::take(&mut self.writing);
        for batch in &done {
            self.keep(batch);
        }
        done
    }

    fn keep(&mut self, batch: &Batch) {
        assert_eq!(batch.first_seq, self.head().seq + 1, "a batch that does not go on where the last one ended");
        for row in &batch.rows {
            let head = self.head().after(&row.bytes);
            self.rows.push((head.seq, row.bytes.clone(), head.link));
        }
        self.receipts.extend(batch.receipts.iter().cloned());
        if let Some(checkpoint) = &batch.checkpoint {
            self.checkpoint = Some((self.head().seq, checkpoint.clone()));
        }
    }

    /// The process or the machine dies. Whole batches may have become durable without anybody having been told; the next one may be torn.
    /// Returns those that did.
    pub(crate) fn crash(&mut self, rng: &mut Rng) -> Vec<Batch> {
        let mut waiting = std::mem::take(&mut self.writing);
        self.queue.clear();
        let kept = usize::try_from(rng.below(waiting.len() as u64 + 1)).unwrap_or(0);
        let torn = (kept < waiting.len()).then(|| waiting[kept].clone());
        waiting.truncate(kept);
        for batch in &waiting {
            self.keep(batch);
        }
        if let Some(row) = torn.and_then(|batch| batch.rows.into_iter().next())
            && rng.chance(500)
        {
            let head = self.head().after(&row.bytes);
            let mut bytes = row.bytes;
            let at = usize::try_from(rng.below(bytes.len() as u64)).unwrap_or(0);
            if rng.chance(500) {
                bytes.truncate(at);
            } else {
                bytes[at] ^= 1 << rng.below(8);
            }
            self.rows.push((head.seq, bytes, head.link));
        }
        waiting
    }

    /// The latest checkpoint, and the row that it stands behind.
    pub(crate) fn checkpoint(&self) -> Option<&(u64, Vec<u8>)> {
        self.checkpoint.as_ref()
    }

    /// Every row that is right, with its link.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &(u64, Vec<u8>, Digest)> {
        let mut walk = Verifier::behind(Head::START);
        self.rows.iter().take_while(move |(seq, bytes, link)| walk.row(*seq, bytes, *link).is_ok())
    }

    /// What a start reads: the checkpoint and the facts after it, up to the first row that does not fit.
    pub(crate) fn recover(&mut self) -> (Option<(u64, Vec<u8>)>, Vec<Vec<u8>>) {
        let mut walk = Verifier::behind(Head::START);
        let right = self.rows.iter().take_while(|(seq, bytes, link)| walk.row(*seq, bytes, *link).is_ok()).count();
        self.rows.truncate(right);
        let from = self.checkpoint.as_ref().map_or(0, |(seq, _)| *seq);
        let facts = self.rows.iter().filter(|(seq, ..)| from < *seq).map(|(_, bytes, _)| bytes.clone()).collect();
        (self.checkpoint.clone(), facts)
    }
}
