//! What a job has used: cumulative totals in base units, and the meters that a rate line may price.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::id::{GpuId, GpuModel};

/// What can be measured and priced. Closed; the order is the journal's format: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Meter {
    /// CPU time of all tasks, in nanoseconds of one CPU. A counter (`cpu.stat`, `usage_usec`).
    CpuTime,
    /// Memory charged to the job's cgroup, page cache and tmpfs included, in byte-nanoseconds. A level, integrated.
    MemoryCharged,
    /// Time for which a GPU was held, used or not, in device-nanoseconds.
    GpuHeld,
    /// Time for which the job ran, or somebody other than the agent had it stopped, in nanoseconds.
    WallTime,
    /// One for each attempt.
    JobStarts,
    /// Anonymous memory of the job's cgroup, without page cache and tmpfs, in byte-nanoseconds. A level, integrated.
    MemoryAnon,
}

impl Meter {
    /// Every meter.
    pub const ALL: [Meter; 6] =
        [Meter::CpuTime, Meter::MemoryCharged, Meter::GpuHeld, Meter::WallTime, Meter::JobStarts, Meter::MemoryAnon];

    /// Its name in cards, JSON, metrics and receipts.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Meter::CpuTime => "cpu_time",
            Meter::MemoryCharged => "memory_charged",
            Meter::GpuHeld => "gpu_held",
            Meter::WallTime => "wall_time",
            Meter::JobStarts => "job_starts",
            Meter::MemoryAnon => "memory_anon",
        }
    }
}

impl fmt::Display for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Totals since a job's segment began. Never decreases. `u128`, since 2 TiB held are 2.2e21 byte-ns each second.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Nanoseconds of CPU time.
    pub cpu_ns: u128,
    /// Byte-nanoseconds of memory charged, while running.
    pub memory_byte_ns: u128,
    /// Nanoseconds for which each GPU was held, while running.
    pub gpu_held_ns: BTreeMap<GpuId, u128>,
    /// Nanoseconds of running, or of standing still by another's hand.
    pub wall_ns: u128,
    /// 1 in an attempt's first segment, 0 in the others.
    pub job_starts: u64,
    /// Nanoseconds that the agent had it stopped: priced 0 unless a line says otherwise.
    pub frozen_ns: u128,
    /// Byte-nanoseconds of anonymous memory, while running.
    pub memory_anon_byte_ns: u128,
    /// Nanoseconds of `wall_ns` for which somebody other than the agent had it stand still.
    pub paused_ns: u128,
}

impl Usage {
    /// The quantity of one meter in its base unit; `gpus` are the devices that the asking rate line prices.
    #[must_use]
    pub fn quantity(&self, meter: Meter, gpu_wanted: impl Fn(&GpuId) -> bool) -> u128 {
        match meter {
            Meter::CpuTime => self.cpu_ns,
            Meter::MemoryCharged => self.memory_byte_ns,
            Meter::GpuHeld => self.gpu_held_ns.iter().filter(|(gpu, _)| gpu_wanted(gpu)).map(|(_, ns)| *ns).sum(),
            Meter::WallTime => self.wall_ns,
            Meter::JobStarts => u128::from(self.job_starts),
            Meter::MemoryAnon => self.memory_anon_byte_ns,
        }
    }

    /// All of this and of `other`, meter by meter; held at the range's end, which only a forged receipt or log comes near.
    #[must_use]
    pub fn plus(mut self, other: &Usage) -> Usage {
        self.cpu_ns = self.cpu_ns.saturating_add(other.cpu_ns);
        self.memory_byte_ns = self.memory_byte_ns.saturating_add(other.memory_byte_ns);
        for (gpu, ns) in &other.gpu_held_ns {
            let held = self.gpu_held_ns.entry(gpu.clone()).or_default();
            *held = held.saturating_add(*ns);
        }
        self.wall_ns = self.wall_ns.saturating_add(other.wall_ns);
        self.job_starts = self.job_starts.saturating_add(other.job_starts);
        self.frozen_ns = self.frozen_ns.saturating_add(other.frozen_ns);
        self.memory_anon_byte_ns = self.memory_anon_byte_ns.saturating_add(other.memory_anon_byte_ns);
        self.paused_ns = self.paused_ns.saturating_add(other.paused_ns);
        self
    }
}

/// A GPU that a job holds: its identity, and the model that rate lines select by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldGpu {
    /// Which device.
    pub gpu: GpuId,
    /// Of which model.
    pub model: GpuModel,
}
