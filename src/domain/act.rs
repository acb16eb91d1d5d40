//! Where a job's tasks are, what can be done to them, and what came of it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::id::Attempt;
use super::ladder::WarnSignal;
use super::time::Mono;

/// Where a job's tasks are. Durable: after a restart the same place is looked for, and it must still be the same one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A set of cgroup directories that an authorised caller named.
    Cgroups(Vec<CgroupDir>),
    /// A cgroup that the agent made for `meterctl run`; it removes them when the job has ended.
    OwnCgroups(Vec<CgroupDir>),
    /// A Slurm job: its directories come after the prolog and go before the epilog, so they are looked for at each tick.
    SlurmJob(SlurmJob),
    /// A process and all its descendants: where no cgroup may be used.
    Processes(ProcessRoot),
}

impl Target {
    /// The longest path of `outer` that one of these directories is below; `None` if it is not inside at all.
    #[must_use]
    pub fn depth_inside(&self, outer: &Target) -> Option<usize> {
        let is_below =
            |inner: &CgroupDir, upper: &CgroupDir| inner.path.strip_prefix(&upper.path).is_some_and(|rest| rest.starts_with('/'));
        let holds = |upper: &&CgroupDir| self.dirs().iter().any(|inner| is_below(inner, upper));
        outer.dirs().iter().filter(holds).map(|upper| upper.path.len()).max()
    }

    /// Its directories, where it has named ones.
    #[must_use]
    pub fn dirs(&self) -> &[CgroupDir] {
        match self {
            Target::Cgroups(dirs) | Target::OwnCgroups(dirs) => dirs,
            Target::SlurmJob(_) | Target::Processes(_) => &[],
        }
    }
}

/// One cgroup directory, told apart from a later one of the same name by its inode.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CgroupDir {
    /// Absolute path in the cgroup file system, such as `/sys/fs/cgroup/meterd/job-1`.
    pub path: String,
    /// `st_ino` of the directory.
    pub inode: u64,
}

/// A Slurm job by its number and, from 25.11 on, its unique id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SlurmJob {
    /// `SLURM_JOB_ID`: the cgroup is called `job_<id>` …
    pub job_id: u64,
    /// … or by `SLURM_JOB_SLUID`, the default since 26.05.
    pub sluid: Option<String>,
}

/// A process, told apart from a later one with the same pid by its start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessRoot {
    /// Its pid.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks after boot.
    pub start_ticks: u64,
}

/// What can be done to a job. The order is the journal's format: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// Stop all its tasks where they are (`cgroup.freeze`).
    Freeze,
    /// Let them go on.
    Thaw,
    /// Ask its tasks to end (SIGTERM), thawing them first so that they can.
    Terminate,
    /// End them (`cgroup.kill`).
    Kill,
    /// Remove the cgroup that the agent made, once it is empty.
    Remove,
    /// Say that credit is short: to its tasks by a signal, if one is asked for, and to people.
    Warn,
}

impl Act {
    /// Its name in JSON, logs and receipts.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Act::Freeze => "freeze",
            Act::Thaw => "thaw",
            Act::Terminate => "terminate",
            Act::Kill => "kill",
            Act::Remove => "remove",
            Act::Warn => "warn",
        }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One thing for the hands to do. Idempotent: doing it twice does no harm.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Order {
    /// To which job.
    pub attempt: Attempt,
    /// Where its tasks are.
    pub target: Target,
    /// What.
    pub act: Act,
    /// The signal of a warning, if one is to be sent.
    pub signal: Option<WarnSignal>,
}

/// What [`Acted::syscall`] says where nothing was written and nobody signalled.
pub const NO_SYSCALL: &str = "none";

/// What came of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acted {
    /// To which job.
    pub attempt: Attempt,
    /// What was done.
    pub act: Act,
    /// When the hands began.
    #[serde(rename = "asked_mono_ns")]
    pub asked_at: Mono,
    /// When the last task was seen stopped, running or gone; when they gave up, for [`ActOutcome::Unconfirmed`] and [`ActOutcome::Failed`].
    #[serde(rename = "done_mono_ns")]
    pub done_at: Mono,
    /// What was written where, such as `write 1 to /sys/fs/cgroup/meterd/job-1/cgroup.freeze`.
    pub syscall: String,
    /// With which result.
    pub outcome: ActOutcome,
}

/// With which result. The order is the journal's format: append only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActOutcome {
    /// The kernel confirmed it (`cgroup.events`, or the state of every task).
    Confirmed,
    /// It was asked for, and had not shown before the hands' deadline. A later sample tells.
    Unconfirmed,
    /// The cgroup or process is gone: there is nothing to act on.
    Gone,
    /// The directory is not the one that was named (other inode), or it holds the agent itself: not touched.
    Refused(String),
    /// The kernel refused, with this error.
    Failed(String),
}
