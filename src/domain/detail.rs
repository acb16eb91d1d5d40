//! What is read of a job every ten seconds, at its end, and when somebody asks: too dear to be read each second, and the evidence for how it
//! ended. All are totals of the kernel's or of this moment, so one that is missed costs nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::meter::{Missing, Reading};
use super::time::{Mono, Nanos};

/// Between two such readings of one job.
pub const DETAIL_EVERY: Nanos = Nanos::from_secs(10);
/// The same on a node with so many jobs that they cannot all be read so often.
pub const DETAIL_AT_LEAST_EVERY: Nanos = Nanos::from_secs(120);

/// One look at all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detail {
    /// The most memory that was charged at once, in bytes, since the cgroup was made (`memory.peak`, v1 `memory.max_usage_in_bytes`).
    pub memory_peak_bytes: Reading<u64>,
    /// Anonymous memory now, in bytes (`anon` of `memory.stat`, v1 `total_rss`): without page cache and tmpfs.
    pub memory_anon_bytes: Reading<u64>,
    /// Block I/O since the cgroup was made (`io.stat`, v1 `blkio.throttle.*`).
    pub io: Reading<Io>,
    /// Tasks now (`pids.current`).
    pub pids: Reading<u64>,
    /// How long tasks waited, since the cgroup was made (`cpu.pressure`, `memory.pressure`, `io.pressure`; v1 has none).
    pub pressure: Reading<Pressure>,
    /// Processes that the kernel killed for memory, since the cgroup was made (`oom_kill` of `memory.events`, v1 of `memory.oom_control`).
    pub oom_kills: Reading<u64>,
}

/// Bytes and operations of all block devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Io {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Read operations.
    pub read_ops: u64,
    /// Write operations.
    pub write_ops: u64,
}

/// Pressure stall totals, in microseconds: `some` task waited, or all did (`full`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressure {
    /// For a CPU.
    pub cpu_some_us: u64,
    /// For memory.
    pub memory_some_us: u64,
    /// All of them, for memory.
    pub memory_full_us: u64,
    /// For I/O.
    pub io_some_us: u64,
    /// All of them, for I/O.
    pub io_full_us: u64,
}

/// One job's, with the instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detailed {
    /// When it was read.
    pub at: Mono,
    /// What was read.
    pub detail: Detail,
}

impl Detail {
    /// Nothing, for one reason.
    #[must_use]
    pub fn missing(why: &Missing) -> Detail {
        Detail {
            memory_peak_bytes: Reading::Missing(why.clone()),
            memory_anon_bytes: Reading::Missing(why.clone()),
            io: Reading::Missing(why.clone()),
            pids: Reading::Missing(why.clone()),
            pressure: Reading::Missing(why.clone()),
            oom_kills: Reading::Missing(why.clone()),
        }
    }

    /// This, and where it is missing what was known before.
    #[must_use]
    pub fn or_before(self, before: &Detail) -> Detail {
        fn pick<T: Clone>(now: Reading<T>, before: &Reading<T>) -> Reading<T> {
            if now.seen().is_some() || before.seen().is_none() { now } else { before.clone() }
        }
        Detail {
            memory_peak_bytes: pick(self.memory_peak_bytes, &before.memory_peak_bytes),
            memory_anon_bytes: pick(self.memory_anon_bytes, &before.memory_anon_bytes),
            io: pick(self.io, &before.io),
            pids: pick(self.pids, &before.pids),
            pressure: pick(self.pressure, &before.pressure),
            // A counter: in v1 a part of it goes with a sub-cgroup that is removed.
            oom_kills: match (self.oom_kills.seen(), before.oom_kills.seen()) {
                (Some(now), Some(before)) => Reading::Seen(*now.max(before)),
                _ => pick(self.oom_kills, &before.oom_kills),
            },
        }
    }

    /// As it stands in documents.
    #[must_use]
    pub fn shown(&self) -> Readings {
        let mut unread = BTreeMap::new();
        let mut number = |name: &str, reading: &Reading<u64>| match reading {
            Reading::Seen(value) => Some(value.to_string()),
            Reading::Missing(why) => {
                unread.insert(name.to_owned(), why.to_string());
                None
            }
        };
        let memory_peak_bytes = number("memory_peak_bytes", &self.memory_peak_bytes);
        let memory_anon_bytes = number("memory_anon_bytes", &self.memory_anon_bytes);
        let pids = number("pids", &self.pids);
        let oom_kills = number("oom_kills", &self.oom_kills);
        if let Reading::Missing(why) = &self.io {
            unread.insert("io".to_owned(), why.to_string());
        }
        if let Reading::Missing(why) = &self.pressure {
            unread.insert("pressure".to_owned(), why.to_string());
        }
        let (io, pressure) = (self.io.seen().copied(), self.pressure.seen().copied());
        Readings { memory_peak_bytes, memory_anon_bytes, pids, oom_kills, io: io.map(Into::into), pressure, unread }
    }
}

/// The same in documents: what is not known is null, and `unread` says why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readings {
    /// A decimal string.
    pub memory_peak_bytes: Option<String>,
    /// A decimal string.
    pub memory_anon_bytes: Option<String>,
    /// A decimal string.
    pub pids: Option<String>,
    /// A decimal string.
    pub oom_kills: Option<String>,
    /// Block I/O.
    pub io: Option<ShownIo>,
    /// Pressure.
    pub pressure: Option<Pressure>,
    /// Reasons, by name.
    pub unread: BTreeMap<String, String>,
}

/// Block I/O in documents, as decimal strings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownIo {
    /// Bytes read.
    pub read_bytes: String,
    /// Bytes written.
    pub write_bytes: String,
    /// Read operations.
    pub read_ops: String,
    /// Write operations.
    pub write_ops: String,
}

impl From<Io> for ShownIo {
    fn from(io: Io) -> ShownIo {
        let Io { read_bytes, write_bytes, read_ops, write_ops } = io;
        ShownIo {
            read_bytes: read_bytes.to_string(),
            write_bytes: write_bytes.to_string(),
            read_ops: read_ops.to_string(),
            write_ops: write_ops.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_known_before_stands_where_the_last_look_found_nothing() {
        let seen = Detail { oom_kills: Reading::Seen(2), pids: Reading::Seen(5), ..Detail::missing(&Missing::NotSupported) };
        let gone = Detail { pids: Reading::Seen(0), ..Detail::missing(&Missing::Vanished) };
        let both = gone.or_before(&seen);
        assert_eq!((both.oom_kills.clone(), both.pids.clone()), (Reading::Seen(2), Reading::Seen(0)));
        assert_eq!(both.io, Reading::Missing(Missing::Vanished), "never known: the newer reason");
        let shown = both.shown();
        assert_eq!((shown.oom_kills.as_deref(), shown.io), (Some("2"), None));
        assert_eq!(shown.unread["io"], "vanished");
        assert!(!shown.unread.contains_key("pids"));
    }
}
