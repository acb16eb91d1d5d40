//! What was seen, and how two sightings become usage.
//!
//! *Counters* (CPU time) are differenced: the kernel went on counting while nobody looked, so nothing is lost over a restart.
//! *Levels* (memory, "is running") are integrated over monotonic time; where too long nobody looked, that is a gap, never a guess.
//! What could not be read is [`Reading::Missing`] with its reason. It is never zero.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::detail::Detail;
use super::id::{Attempt, GpuId, GpuModel};
use super::time::{Mono, Nanos};

/// One reading of the outside world.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reading<T> {
    /// The kernel or the driver said so.
    Seen(T),
    /// Nobody knows, and why.
    Missing(Missing),
}

impl<T> Reading<T> {
    /// The value, if there is one.
    pub const fn seen(&self) -> Option<&T> {
        match self {
            Reading::Seen(value) => Some(value),
            Reading::Missing(_) => None,
        }
    }

    /// The same reading of something derived from the value.
    pub fn map<U>(self, derive: impl FnOnce(T) -> U) -> Reading<U> {
        match self {
            Reading::Seen(value) => Reading::Seen(derive(value)),
            Reading::Missing(why) => Reading::Missing(why),
        }
    }
}

/// Why a reading is missing. The order is the journal's format: append only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// This kernel, driver or layout does not offer it.
    NotSupported,
    /// The cgroup or process is gone.
    Vanished,
    /// Another cgroup has taken its name (other inode).
    Replaced,
    /// It is not there yet (a scheduler makes the job's cgroup after its prolog).
    NotYet,
    /// No answer within the deadline.
    TimedOut,
    /// The text is not what the kernel's documents promise.
    Malformed,
    /// Possible values were exceeded: rejected, counted, never billed.
    Implausible,
    /// Not permitted.
    Denied,
    /// The library (such as `libnvidia-ml.so.1`) is not installed.
    NoLibrary,
    /// The library found no device.
    NoDevice,
    /// The driver or the kernel returned this error.
    Failed(String),
    /// The agent was not running.
    AgentDown,
    /// The job had no task then.
    NoTask,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Missing::NotSupported => "not supported here",
            Missing::Vanished => "vanished",
            Missing::Replaced => "replaced by another of the same name",
            Missing::NotYet => "not there yet",
            Missing::TimedOut => "no answer in time",
            Missing::Malformed => "malformed",
            Missing::Implausible => "implausible",
            Missing::Denied => "permission denied",
            Missing::NoLibrary => "no NVML library",
            Missing::NoDevice => "no device",
            Missing::Failed(error) => return write!(f, "failed: {error}"),
            Missing::AgentDown => "the agent was not running",
            Missing::NoTask => "the job had no task",
        })
    }
}

/// Does the job have tasks? (`populated` of `cgroup.events`.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Populated {
    /// At least one live task.
    Yes,
    /// None.
    No,
}

/// Are all of the job's tasks frozen? (`frozen` of `cgroup.events`: the fact, not the request.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Frozen {
    /// All of them, in every directory that is to be frozen.
    Yes,
    /// At least one is not.
    No,
}

/// One look at one job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSample {
    /// Which job.
    pub attempt: Attempt,
    /// When its counters were read.
    pub at: Mono,
    /// CPU time since its cgroups were made, in nanoseconds.
    pub cpu_ns: Reading<u64>,
    /// Memory charged now, in bytes.
    pub memory_bytes: Reading<u64>,
    /// Has it tasks?
    pub populated: Reading<Populated>,
    /// Are they frozen?
    pub frozen: Reading<Frozen>,
    /// CPU time that its vanished cgroups used after they were last read, told from the parent's counter.
    pub tail: Option<Tail>,
    /// Anonymous memory now, in bytes; `None` if this look did not ask: it is read each time only where a card prices it.
    pub memory_anon_bytes: Option<Reading<u64>>,
    /// What is read every ten seconds, at the end and on request; `None` in between.
    pub detail: Option<Box<Detail>>,
    /// The totals of the GPUs that it holds; `None` if this look did not ask: they are told only where a card prices them.
    pub gpus: Option<Box<Reading<BTreeMap<GpuId, DeviceTotals>>>>,
}

/// What a GPU has done so far. Busy time and memory are counted by the agent, energy by the driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceTotals {
    /// When that was read.
    pub at: Mono,
    /// Since when busy time and memory are counted without a hole.
    pub since: Mono,
    /// Nanoseconds for which it computed: the driver's mean utilisation times the time.
    pub busy_ns: Reading<u64>,
    /// Byte-nanoseconds of its memory in use.
    pub memory_byte_ns: Reading<u128>,
    /// Millijoules since the driver was loaded.
    pub energy_mj: Reading<u64>,
}

/// The CPU time of a vanished cgroup after its last reading: the parent's counter minus its other children's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// Nanoseconds of CPU time.
    pub cpu_ns: u64,
    /// How sure that is.
    pub share: TailShare,
}

/// How the tail was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TailShare {
    /// One child vanished in that interval and every other one was read: exact.
    Exact,
    /// Several vanished: an equal part each, the remainder to the first.
    Split,
}

/// One look at one GPU, in NVML's terms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuSample {
    /// Which device (`nvmlDeviceGetUUID`).
    pub gpu: GpuId,
    /// Its index now: for people, and for hooks that name devices by index. Not an identity.
    pub index: u32,
    /// Its model (`nvmlDeviceGetName`).
    pub model: GpuModel,
    /// Mean utilisation since the last look, in permyriad (1/100 %), from the driver's sample ring (`nvmlDeviceGetSamples`).
    pub busy_permyriad: Reading<u32>,
    /// Device memory in use, in bytes (`nvmlDeviceGetMemoryInfo`).
    pub memory_used_bytes: Reading<u64>,
    /// All of its memory, in bytes.
    pub memory_total_bytes: Reading<u64>,
    /// The processes on it.
    pub processes: Reading<Vec<GpuProcess>>,
}

/// One process on one GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuProcess {
    /// In the agent's pid namespace.
    pub pid: u32,
    /// The job whose cgroup (or process tree) holds it; none if it is nobody's.
    pub attempt: Option<Attempt>,
    /// Device memory, in bytes.
    pub memory_bytes: Reading<u64>,
    /// Its part of the device's time since the last look, in permyriad (`nvmlDeviceGetProcessUtilization`).
    pub busy_permyriad: Reading<u32>,
}

/// The whole machine, for the status page and for the greatest burn that a job can have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Logical CPUs.
    pub cpu_count: u32,
    /// Memory in all, in bytes.
    pub memory_bytes: u64,
}

/// The area under a level between two looks, in level-nanoseconds: the mean of both ends times the length, rounded down.
/// With no new value the old one holds to the end.
#[must_use]
pub fn area(before: u64, after: Option<u64>, length: Nanos) -> u128 {
    let after = after.unwrap_or(before);
    (u128::from(before) + u128::from(after)) * u128::from(length.0) / 2
}

/// What vanished children of one parent used after their last reading, in nanoseconds of CPU time: the parent keeps what its removed
/// children used, so the rest of its growth is theirs. `None` if a child was not watched (then nobody can tell whose it was).
///
/// `parent_delta_ns` and `read_delta_ns` span the same two looks; the parent is read first, so its figure may lag a little.
#[must_use]
pub fn vanished_tails(parent_delta_ns: u64, read_delta_ns: u64, vanished_count: usize) -> Vec<Tail> {
    let rest = parent_delta_ns.saturating_sub(read_delta_ns);
    match u64::try_from(vanished_count) {
        Ok(0) | Err(_) => Vec::new(),
        Ok(1) => vec![Tail { cpu_ns: rest, share: TailShare::Exact }],
        Ok(count) => {
            (0..count).map(|nth| Tail { cpu_ns: rest / count + if nth == 0 { rest % count } else { 0 }, share: TailShare::Split }).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_level_that_moves_evenly_is_billed_its_mean() {
        assert_eq!(area(0, Some(100), Nanos(10)), 500);
        assert_eq!(area(100, None, Nanos(10)), 1_000, "with no new value the old one holds");
        assert_eq!(area(2 << 40, Some(2 << 40), Nanos::from_secs(1)), u128::from(2_u64 << 40) * 1_000_000_000);
    }

    #[test]
    fn the_tail_of_one_vanished_child_is_the_rest_of_its_parent() {
        assert_eq!(vanished_tails(1_000, 700, 1), [Tail { cpu_ns: 300, share: TailShare::Exact }]);
        assert_eq!(vanished_tails(700, 1_000, 1)[0].cpu_ns, 0, "a parent read a moment earlier lags; that is not negative use");
        assert!(vanished_tails(1_000, 0, 0).is_empty());
    }

    proptest! {
        #[test]
        fn several_vanished_children_share_all_of_the_rest(parent in 0_u64..1 << 50, read in 0_u64..1 << 50, count in 1_usize..50) {
            let tails = vanished_tails(parent, read, count);
            prop_assert_eq!(tails.len(), count);
            prop_assert_eq!(tails.iter().map(|tail| tail.cpu_ns).sum::<u64>(), parent.saturating_sub(read));
        }
    }
}
