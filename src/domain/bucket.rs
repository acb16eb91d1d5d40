//! The parts of a balance.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A part of an account's balance. Spent in this order: what is free goes first.
/// The order is also the journal's format: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bucket {
    /// An allowance that nobody paid for.
    Free,
    /// Paid for: never touched while something free is left.
    Paid,
}

impl Bucket {
    /// Every bucket, in the order of spending.
    pub const ALL: [Bucket; 2] = [Bucket::Free, Bucket::Paid];

    /// Its name in JSON, reports and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Bucket::Free => "free",
            Bucket::Paid => "paid",
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
    fn the_free_bucket_is_spent_first() {
        assert!(Bucket::ALL.is_sorted());
        assert_eq!(Bucket::ALL[0], Bucket::Free);
        for bucket in Bucket::ALL {
            assert_eq!(serde_json::to_value(bucket).unwrap(), bucket.name());
        }
    }
}
