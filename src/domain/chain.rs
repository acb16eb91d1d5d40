//! The journal's hash chain: each row's link covers the row and, through the link before it, all earlier rows.
//!
//! Who holds one link can tell later whether anything up to it was changed, left out or put in.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::id::Digest;

/// What the first row's link is built on.
pub const GENESIS: Digest = Digest([0; 32]);

const LINK_TAG: &[u8] = b"meterd fact v1\0";
const SEAL_TAG: &[u8] = b"meterd checkpoint v1\0";
const RECEIPT_TAG: &[u8] = b"meterd receipt v1\0";

fn hashed(tag: &[u8], previous: Digest, number: u64, bytes: &[u8]) -> Digest {
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    let mut hash = Sha256::new();
    hash.update(tag);
    hash.update(previous.0);
    hash.update(number.to_be_bytes());
    hash.update(length.to_be_bytes());
    hash.update(bytes);
    Digest(hash.finalize().into())
}

/// A row's link: SHA-256 of a tag, the link before, the row's number and length (8 bytes each, big endian), and its bytes.
#[must_use]
pub fn link(previous: Digest, seq: u64, bytes: &[u8]) -> Digest {
    hashed(LINK_TAG, previous, seq, bytes)
}

/// A checkpoint's seal, over the link of the last row that it holds. Not a link: rows are never built on it.
#[must_use]
pub fn seal(head: Head, bytes: &[u8]) -> Digest {
    hashed(SEAL_TAG, head.link, head.seq, bytes)
}

/// A receipt record's seal, which finds a damaged one. `number` is its attempt.
#[must_use]
pub fn receipt_seal(number: u64, text: &str) -> Digest {
    hashed(RECEIPT_TAG, GENESIS, number, text.as_bytes())
}

/// A place in the chain: the last row before it, and that row's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Head {
    /// The row's number; 0 before the first one.
    pub seq: u64,
    /// Its link; [`GENESIS`] before the first one.
    pub link: Digest,
}

impl Head {
    /// Before the first row.
    pub const START: Head = Head { seq: 0, link: GENESIS };

    /// The place after one more row with these bytes.
    #[must_use]
    pub fn after(self, bytes: &[u8]) -> Head {
        let seq = self.seq.saturating_add(1);
        Head { seq, link: link(self.link, seq, bytes) }
    }
}

/// The first row that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRow {
    /// A number was left out, or came twice.
    #[error("row {expected} is missing: row {found} stands in its place")]
    OutOfSequence {
        /// The number that had to come.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// The row's bytes, or its link, are not those that were written.
    #[error("row {seq} was changed: its link does not fit")]
    WrongLink {
        /// Its number.
        seq: u64,
    },
}

/// Walks along the rows, oldest first.
#[derive(Clone, Copy, Debug)]
pub struct Verifier {
    head: Head,
}

impl Verifier {
    /// A walk that starts behind `head`.
    #[must_use]
    pub fn behind(head: Head) -> Verifier {
        Verifier { head }
    }

    /// How far everything was right.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// One more row, with the link that was kept for it.
    ///
    /// # Errors
    /// When it is not the next one, or was changed. The walk then stays where it was.
    pub fn row(&mut self, seq: u64, bytes: &[u8], kept: Digest) -> Result<(), BadRow> {
        let next = self.head.after(bytes);
        if seq != next.seq {
            return Err(BadRow::OutOfSequence { expected: next.seq, found: seq });
        }
        if kept != next.link {
            return Err(BadRow::WrongLink { seq });
        }
        self.head = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chained(rows: &[Vec<u8>]) -> Vec<(u64, Vec<u8>, Digest)> {
        let mut head = Head::START;
        rows.iter()
            .map(|bytes| {
                head = head.after(bytes);
                (head.seq, bytes.clone(), head.link)
            })
            .collect()
    }

    fn walk(rows: &[(u64, Vec<u8>, Digest)]) -> Result<Head, BadRow> {
        let mut verifier = Verifier::behind(Head::START);
        for (seq, bytes, kept) in rows {
            verifier.row(*seq, bytes, *kept)?;
        }
        Ok(verifier.head())
    }

    #[test]
    fn a_link_is_the_hash_of_the_documented_bytes() {
        // The same bytes through another program: the tag with its zero byte, 32 zero bytes, 1 and 2 as 8 bytes each, and "hi", into sha256sum.
        let expected = "51356fd53468f52be7af1731882cc85562cbb11c6e897fb0358b52b878b1c95d";
        assert_eq!(link(GENESIS, 1, b"hi").to_string(), expected);
    }

    #[test]
    fn a_checkpoint_never_passes_for_a_row() {
        assert_ne!(seal(Head { seq: 1, link: GENESIS }, b"x"), link(GENESIS, 1, b"x"));
    }

    proptest! {
        #[test]
        fn an_untouched_chain_is_right(rows in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20)) {
            let chain = chained(&rows);
            let head = walk(&chain).unwrap();
            prop_assert_eq!(head.seq, rows.len() as u64);
        }

        #[test]
        fn any_change_is_found_at_the_row_where_it_was_made(
            rows in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 2..20),
            at in any::<prop::sample::Index>(),
            bit in any::<prop::sample::Index>(),
        ) {
            let mut chain = chained(&rows);
            let at = at.index(chain.len());
            let bytes = &mut chain[at].1;
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(walk(&chain), Err(BadRow::WrongLink { seq: at as u64 + 1 }));
        }

        #[test]
        fn a_row_left_out_doubled_or_swapped_is_found(
            rows in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..8), 3..12),
            at in any::<prop::sample::Index>(),
        ) {
            let chain = chained(&rows);
            let at = at.index(chain.len() - 1);
            let mut left_out = chain.clone();
            left_out.remove(at);
            let found = chain[at + 1].0;
            prop_assert_eq!(walk(&left_out), Err(BadRow::OutOfSequence { expected: found - 1, found }));
            let mut doubled = chain.clone();
            doubled.insert(at, chain[at].clone());
            prop_assert!(walk(&doubled).is_err());
            let mut swapped = chain.clone();
            swapped.swap(at, at + 1);
            prop_assert!(walk(&swapped).is_err());
            let mut renumbered = chain;
            renumbered.remove(at);
            for row in &mut renumbered[at..] {
                row.0 -= 1;
            }
            prop_assert_eq!(walk(&renumbered), Err(BadRow::WrongLink { seq: at as u64 + 1 }));
        }
    }
}
