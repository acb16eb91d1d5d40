//! The two kinds of credit on an account.

use serde::{Deserialize, Serialize};

/// Which part of an account an amount belongs to. Free credit is drawn before paid credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bucket {
    /// Given away: a trial, a bonus, a compensation.
    Free,
    /// Paid for.
    Paid,
}
