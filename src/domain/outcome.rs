//! How a job ended.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a job ended. Whoever stops a job may state the first six; a scheduler's hook may state the last three too; the others only the
/// agent finds out.
/// The order is the journal's format: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It did what it was for.
    Completed,
    /// It ended with an error of its own.
    Failed,
    /// Its owner or an operator ended it.
    Cancelled,
    /// It reached its time limit.
    TimedOut,
    /// The kernel killed it for memory.
    OutOfMemory,
    /// Nobody said.
    Unknown,
    /// The node was restarted under it.
    NodeRebooted,
    /// Its cgroup or process was gone, and nobody had said why.
    Vanished,
    /// It was ended because its account had nothing left.
    OutOfCredit,
    /// Its scheduler took its place away for another job.
    Preempted,
    /// The machine or its surroundings failed it.
    Infrastructure,
    /// It was found faulty before it ran.
    Validation,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Outcome; 12] = [
        Outcome::Completed,
        Outcome::Failed,
        Outcome::Cancelled,
        Outcome::TimedOut,
        Outcome::OutOfMemory,
        Outcome::Unknown,
        Outcome::NodeRebooted,
        Outcome::Vanished,
        Outcome::OutOfCredit,
        Outcome::Preempted,
        Outcome::Infrastructure,
        Outcome::Validation,
    ];

    /// What a caller may state.
    pub const STATED: [Outcome; 9] = [
        Outcome::Completed,
        Outcome::Failed,
        Outcome::Cancelled,
        Outcome::TimedOut,
        Outcome::OutOfMemory,
        Outcome::Unknown,
        Outcome::Preempted,
        Outcome::Infrastructure,
        Outcome::Validation,
    ];

    /// May only root and hooks state it? A card may make it free.
    #[must_use]
    pub const fn is_for_hooks(self) -> bool {
        matches!(self, Outcome::Preempted | Outcome::Infrastructure | Outcome::Validation)
    }

    /// Its name in JSON, logs and receipts.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Outcome::Completed => "completed",
            Outcome::Failed => "failed",
            Outcome::Cancelled => "cancelled",
            Outcome::TimedOut => "timed_out",
            Outcome::OutOfMemory => "out_of_memory",
            Outcome::Unknown => "unknown",
            Outcome::NodeRebooted => "node_rebooted",
            Outcome::Vanished => "vanished",
            Outcome::OutOfCredit => "out_of_credit",
            Outcome::Preempted => "preempted",
            Outcome::Infrastructure => "infrastructure",
            Outcome::Validation => "validation",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What an outcome rests on: the strongest evidence there was. The order is the journal's format: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// The agent ended it for lack of credit: the steps say when.
    Credit,
    /// The kernel killed so many of its processes for memory (`oom_kill`).
    OomKill {
        /// How many.
        count: u64,
    },
    /// It ran as long as it was to run.
    TimeLimit,
    /// Its exit status.
    ExitStatus,
    /// The word of whoever stopped it.
    Reported,
    /// What the agent saw: nobody had said anything.
    Seen,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_has_one_name_everywhere() {
        for outcome in Outcome::ALL {
            assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.name());
        }
    }
}
