//! What the authority keeps of a node's journal: how far its hash chain had come when the node settled.
//!
//! Who writes a journal anew gets another link for every row from the changed one on. The authority has seen the old ones.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::chain::Head;
use super::id::{Digest, Epoch, NodeId};
use super::time::Wall;

/// A place in a node's chain, as the authority heard of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Anchor {
    /// Whose journal.
    pub node: NodeId,
    /// In which spending life: a new journal begins with a new one.
    pub epoch: Epoch,
    /// The row, and its link.
    pub head: Head,
    /// When it was heard.
    #[serde(rename = "unix_ms")]
    pub at: Wall,
}

/// What came of comparing anchors with a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// How many were found in the chain, with the same link.
    pub same: u64,
    /// The last of these.
    pub last: Option<Head>,
    /// How many lie before the first row that is kept.
    pub before_first: u64,
    /// Spending lives of other journals of the node, each with its furthest row.
    pub elsewhere: BTreeMap<Epoch, u64>,
}

/// Why a chain is not the one that the authority heard of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanchored {
    /// The row has another link.
    #[error("row {seq} is not the one that the authority keeps: it or a row before it was written anew")]
    Rewritten {
        /// Its number.
        seq: u64,
    },
    /// Rows are missing at the end.
    #[error("the rows end at {end}, and the authority keeps the link of row {seq}")]
    CutOff {
        /// The last row that is there.
        end: u64,
        /// The one that was heard of.
        seq: u64,
    },
    /// Nothing could be compared.
    #[error("none of the {0} anchors is of these rows")]
    NoneFits(usize),
}

/// Collects links on a walk along a chain, where anchors are to be compared.
#[derive(Clone, Debug)]
pub struct Anchors {
    wanted: BTreeMap<u64, Option<Digest>>,
    anchors: Vec<Anchor>,
}

impl Anchors {
    /// To be compared on a walk.
    #[must_use]
    pub fn new(anchors: Vec<Anchor>) -> Anchors {
        Anchors { wanted: anchors.iter().map(|anchor| (anchor.head.seq, None)).collect(), anchors }
    }

    /// The walk has come here.
    pub fn pass(&mut self, head: Head) {
        if let Some(found) = self.wanted.get_mut(&head.seq) {
            *found = Some(head.link);
        }
    }

    /// Compares. The walk led from `first` to `last` (the rows before and at its ends), in these spending lives.
    ///
    /// # Errors
    /// When the chain is not the one that was heard of, or nothing could be compared.
    pub fn compare(&self, first: Head, last: Head, epochs: &BTreeSet<Epoch>) -> Result<Compared, Unanchored> {
        let mut compared = Compared::default();
        for Anchor { epoch, head, .. } in &self.anchors {
            if !epochs.contains(epoch) {
                let furthest = compared.elsewhere.entry(*epoch).or_default();
                *furthest = head.seq.max(*furthest);
                continue;
            }
            match self.wanted.get(&head.seq).copied().flatten() {
                Some(link) if link == head.link => {
                    compared.same += 1;
                    compared.last = compared.last.filter(|last| head.seq < last.seq).or(Some(*head));
                }
                None if last.seq < head.seq => return Err(Unanchored::CutOff { end: last.seq, seq: head.seq }),
                None if head.seq < first.seq => compared.before_first += 1,
                Some(_) | None => return Err(Unanchored::Rewritten { seq: head.seq }),
            }
        }
        if compared.same == 0 { Err(Unanchored::NoneFits(self.anchors.len())) } else { Ok(compared) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch([1; 16]);

    fn head(seq: u64, link: u8) -> Head {
        Head { seq, link: Digest([link; 32]) }
    }

    fn anchor(epoch: Epoch, head: Head) -> Anchor {
        Anchor { node: "node".parse().unwrap(), epoch, head, at: Wall(0) }
    }

    fn compared(anchors: &[Anchor], first: u64, rows: &[Head]) -> Result<Compared, Unanchored> {
        let mut wanted = Anchors::new(anchors.to_vec());
        let start = head(first, 0);
        wanted.pass(start);
        for row in rows {
            wanted.pass(*row);
        }
        wanted.compare(start, rows.last().copied().unwrap_or(start), &BTreeSet::from([EPOCH]))
    }

    #[test]
    fn the_same_link_is_the_same_past_and_another_one_is_not() {
        let rows = [head(1, 1), head(2, 2), head(3, 3)];
        let same = compared(&[anchor(EPOCH, rows[1]), anchor(EPOCH, rows[0])], 0, &rows).unwrap();
        assert_eq!((same.same, same.last), (2, Some(rows[1])));
        assert_eq!(compared(&[anchor(EPOCH, head(2, 9))], 0, &rows), Err(Unanchored::Rewritten { seq: 2 }));
    }

    #[test]
    fn rows_that_are_missing_at_the_end_are_missed_and_those_pruned_at_the_beginning_are_not() {
        let rows = [head(5, 5), head(6, 6)];
        assert_eq!(compared(&[anchor(EPOCH, head(7, 7))], 4, &rows), Err(Unanchored::CutOff { end: 6, seq: 7 }));
        let pruned = compared(&[anchor(EPOCH, head(3, 3)), anchor(EPOCH, rows[1])], 4, &rows).unwrap();
        assert_eq!((pruned.before_first, pruned.same), (1, 1));
        assert_eq!(compared(&[anchor(EPOCH, head(3, 3))], 4, &rows), Err(Unanchored::NoneFits(1)));
    }

    #[test]
    fn another_journal_of_the_node_is_named_and_proves_nothing() {
        let other = Epoch([2; 16]);
        let rows = [head(1, 1)];
        assert_eq!(compared(&[anchor(other, rows[0])], 0, &rows), Err(Unanchored::NoneFits(1)));
        let both = compared(&[anchor(other, head(90, 9)), anchor(other, head(80, 8)), anchor(EPOCH, rows[0])], 0, &rows).unwrap();
        assert_eq!((both.same, both.elsewhere), (1, BTreeMap::from([(other, 90)])));
    }
}
