//! What reconciliation finds to differ from what was believed: typed, written down, never silent. A correction charges nothing: counters
//! and their baselines alone do that.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::job::StepEvent;

/// One difference. The order is the journal's format: append only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Correction {
    /// Tasks run in a cgroup of jobs, and nobody started a job there. Nobody is charged for it.
    MissedStart {
        /// The cgroup's directory.
        place: String,
    },
    /// That is over: a job is metered there, or no task is left.
    MissedStartOver {
        /// The cgroup's directory.
        place: String,
    },
    /// A job's last task is gone, and nobody reported its end: it ended by what was seen.
    MissedStop,
    /// A job's cgroup was replaced by another of its name: what runs there now is not this job.
    CgroupReplaced,
}

/// How often each kind of correction was made, since the journal began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Corrections {
    /// Tasks without a start.
    pub missed_start: u64,
    /// Ends without a stop.
    pub missed_stop: u64,
    /// Jobs that were not as believed: frozen, thawed or replaced by somebody else.
    pub drift: u64,
}

impl Corrections {
    /// One more.
    pub fn count(&mut self, correction: &Correction) {
        match correction {
            Correction::MissedStart { .. } => self.missed_start += 1,
            Correction::MissedStop => self.missed_stop += 1,
            Correction::CgroupReplaced => self.drift += 1,
            Correction::MissedStartOver { .. } => {}
        }
    }

    /// One more, if this step is one.
    pub fn count_step(&mut self, event: &StepEvent) {
        match event {
            StepEvent::Corrected(correction) => self.count(correction),
            StepEvent::FrozenByOther | StepEvent::FoundThawed => self.drift += 1,
            _ => {}
        }
    }
}

impl fmt::Display for Correction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Correction::MissedStart { place } => write!(f, "missed start: tasks run in {place}, and no job was started there"),
            Correction::MissedStartOver { place } => write!(f, "{place} is metered, or empty"),
            Correction::MissedStop => f.write_str("missed stop: the last task is gone, and nobody had reported the end"),
            Correction::CgroupReplaced => f.write_str("drift: another cgroup has taken the name of this job's"),
        }
    }
}
