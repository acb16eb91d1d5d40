//! The parts of a balance.

use std::cmp::Ordering;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::money::Credits;

/// A part of an account's balance. It is ordered as it is spent, which is not the order of these: that one is a format, append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bucket {
    /// An allowance that nobody paid for.
    Free,
    /// Paid for: never touched while something free is left.
    Paid,
    /// Promised to be used within a time, and lost after it. It goes first: what is left of it is lost, and was promised to be paid.
    Committed,
}

impl Bucket {
    /// Every bucket, in the order of spending.
    pub const ALL: [Bucket; 3] = [Bucket::Committed, Bucket::Free, Bucket::Paid];
    /// Those that a payment may go to. What is committed comes by the account's terms alone.
    pub const PAYABLE: [Bucket; 2] = [Bucket::Free, Bucket::Paid];

    /// Its place in the order of spending.
    const fn turn(self) -> u8 {
        match self {
            Bucket::Committed => 0,
            Bucket::Free => 1,
            Bucket::Paid => 2,
        }
    }

    /// Its name in JSON, reports and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Bucket::Free => "free",
            Bucket::Paid => "paid",
            Bucket::Committed => "committed",
        }
    }
}

impl Ord for Bucket {
    fn cmp(&self, other: &Bucket) -> Ordering {
        self.turn().cmp(&other.turn())
    }
}

impl PartialOrd for Bucket {
    fn partial_cmp(&self, other: &Bucket) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// An amount by the buckets that it came from or went to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Of the free one.
    pub free: Credits,
    /// Of the paid one.
    pub paid: Credits,
    /// Of the committed one.
    pub committed: Credits,
}

impl Parts {
    /// All of it in one bucket.
    #[must_use]
    pub fn of(bucket: Bucket, amount: Credits) -> Parts {
        let mut parts = Parts::default();
        *parts.part(bucket) = amount;
        parts
    }

    /// All of it.
    #[must_use]
    pub fn total(self) -> Credits {
        self.free.plus(self.paid).plus(self.committed)
    }

    pub(super) fn part(&mut self, bucket: Bucket) -> &mut Credits {
        match bucket {
            Bucket::Free => &mut self.free,
            Bucket::Paid => &mut self.paid,
            Bucket::Committed => &mut self.committed,
        }
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_committed_is_spent_first_and_free_before_paid() {
        assert!(Bucket::ALL.is_sorted_by(|a, b| a < b));
        assert_eq!(Bucket::ALL, [Bucket::Committed, Bucket::Free, Bucket::Paid]);
        assert_eq!(postcard::to_allocvec(&Bucket::ALL).unwrap(), [2, 0, 1], "as it has always been written");
        for bucket in Bucket::ALL {
            assert_eq!(serde_json::to_value(bucket).unwrap(), bucket.name());
        }
    }
}
