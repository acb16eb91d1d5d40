//! What a job has used: cumulative totals in base units, and the meters that a rate line may price.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::id::{GpuId, GpuModel, LineId};

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
    /// Time for which a held GPU computed, in device-nanoseconds (`nvmlDeviceGetSamples`).
    GpuBusy,
    /// Memory in use on a held GPU, in byte-nanoseconds (`nvmlDeviceGetMemoryInfo`). A level, integrated.
    GpuMemory,
    /// Energy of a held GPU, in millijoules. A counter (`nvmlDeviceGetTotalEnergyConsumption`).
    Energy,
    /// Bytes read from and written to block devices. A counter (`io.stat`, v1 `blkio.throttle.io_service_bytes`).
    IoBytes,
    /// Storage that was provisioned for it, in byte-nanoseconds: as stated, for as long as it lasts.
    Storage,
    /// A total of its own that a hook reports, such as `tokens`.
    Counter,
    /// Events of its own that a hook reports, each once, such as `request`.
    Events,
}

impl Meter {
    /// Every meter.
    pub const ALL: [Meter; 13] = [
        Meter::CpuTime,
        Meter::MemoryCharged,
        Meter::GpuHeld,
        Meter::WallTime,
        Meter::JobStarts,
        Meter::MemoryAnon,
        Meter::GpuBusy,
        Meter::GpuMemory,
        Meter::Energy,
        Meter::IoBytes,
        Meter::Storage,
        Meter::Counter,
        Meter::Events,
    ];

    /// Those that are measured device by device, so that their lines may name a model.
    pub const OF_GPUS: [Meter; 4] = [Meter::GpuHeld, Meter::GpuBusy, Meter::GpuMemory, Meter::Energy];

    /// Is it measured device by device?
    #[must_use]
    pub const fn is_of_gpus(self) -> bool {
        matches!(self, Meter::GpuHeld | Meter::GpuBusy | Meter::GpuMemory | Meter::Energy)
    }

    /// Are there several of it, each with a name that its hook gives?
    #[must_use]
    pub const fn is_named(self) -> bool {
        matches!(self, Meter::Counter | Meter::Events)
    }

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
            Meter::GpuBusy => "gpu_busy",
            Meter::GpuMemory => "gpu_memory",
            Meter::Energy => "energy",
            Meter::IoBytes => "io_bytes",
            Meter::Storage => "storage",
            Meter::Counter => "counter",
            Meter::Events => "events",
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
    /// What is measured only where a card prices it; none of most jobs. Beside the rest in a checkpoint, since its form is newer.
    #[serde(skip)]
    pub more: Option<Box<More>>,
}

/// What is measured only of jobs whose card prices it. Totals, as the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct More {
    /// Nanoseconds for which each held GPU computed.
    pub gpu_busy_ns: BTreeMap<GpuId, u128>,
    /// Byte-nanoseconds in use on each held GPU.
    pub gpu_memory_byte_ns: BTreeMap<GpuId, u128>,
    /// Millijoules of each held GPU.
    pub energy_mj: BTreeMap<GpuId, u128>,
    /// Bytes read and written.
    pub io_bytes: u128,
    /// Counters that a hook reports, by name.
    pub counters: BTreeMap<LineId, u128>,
    /// Events that a hook reports, by name.
    pub events: BTreeMap<LineId, u128>,
}

static NO_DEVICES: BTreeMap<GpuId, u128> = BTreeMap::new();

impl Usage {
    /// The quantity of one meter in its base unit; `gpus` are the devices that the asking rate line prices.
    #[must_use]
    pub fn quantity(&self, meter: Meter, gpu_wanted: impl Fn(&GpuId) -> bool) -> u128 {
        match meter {
            Meter::CpuTime => self.cpu_ns,
            Meter::MemoryCharged => self.memory_byte_ns,
            Meter::GpuHeld | Meter::GpuBusy | Meter::GpuMemory | Meter::Energy => {
                self.by_gpu(meter).iter().filter(|(gpu, _)| gpu_wanted(gpu)).map(|(_, amount)| *amount).sum()
            }
            Meter::IoBytes => self.more.as_ref().map_or(0, |more| more.io_bytes),
            // What was stated, or what has a name: a line with rules knows how much.
            Meter::Storage | Meter::Counter | Meter::Events => 0,
            Meter::WallTime => self.wall_ns,
            Meter::JobStarts => u128::from(self.job_starts),
            Meter::MemoryAnon => self.memory_anon_byte_ns,
        }
    }

    /// What of a meter that is measured device by device each one has.
    #[must_use]
    pub fn by_gpu(&self, meter: Meter) -> &BTreeMap<GpuId, u128> {
        match (meter, &self.more) {
            (Meter::GpuHeld, _) => &self.gpu_held_ns,
            (Meter::GpuBusy, Some(more)) => &more.gpu_busy_ns,
            (Meter::GpuMemory, Some(more)) => &more.gpu_memory_byte_ns,
            (Meter::Energy, Some(more)) => &more.energy_mj,
            _ => &NO_DEVICES,
        }
    }

    /// How much a hook has reported under that name.
    #[must_use]
    pub fn named(&self, meter: Meter, name: &LineId) -> u128 {
        let more = self.more.as_ref();
        let all = more.and_then(|more| match meter {
            Meter::Counter => Some(&more.counters),
            Meter::Events => Some(&more.events),
            _ => None,
        });
        all.and_then(|all| all.get(name)).copied().unwrap_or(0)
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
        if let Some(other) = &other.more {
            self.more.get_or_insert_default().add(other);
        }
        self
    }
}

impl More {
    fn add(&mut self, other: &More) {
        fn add_each<K: Ord + Clone>(sums: &mut BTreeMap<K, u128>, others: &BTreeMap<K, u128>) {
            for (key, amount) in others {
                *sums.entry(key.clone()).or_default() += amount;
            }
        }
        add_each(&mut self.gpu_busy_ns, &other.gpu_busy_ns);
        add_each(&mut self.gpu_memory_byte_ns, &other.gpu_memory_byte_ns);
        add_each(&mut self.energy_mj, &other.energy_mj);
        self.io_bytes += other.io_bytes;
        add_each(&mut self.counters, &other.counters);
        add_each(&mut self.events, &other.events);
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
