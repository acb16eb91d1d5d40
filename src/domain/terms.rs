//! What a job was given and what is said of it: what its price depends on beside what it uses. It may change while the job runs.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::id::{AccountId, GpuId, LineId};
use super::money::Credits;
use super::rates::{OverBid, Stated, Traits};
use super::time::{Mono, Wall};
use super::usage::HeldGpu;

/// The terms of a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The GPUs that it holds.
    pub gpus: Vec<HeldGpu>,
    /// CPUs as stated.
    pub cpus: Option<u32>,
    /// Memory as stated, in bytes.
    pub memory_bytes: Option<u64>,
    /// Storage as stated, in bytes.
    pub storage_bytes: Option<u64>,
    /// What was stated of it, for lines that select by that.
    pub traits: Traits,
}

/// What is to change; the rest stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The GPUs that it holds from now on.
    pub gpus: Option<Vec<HeldGpu>>,
    /// CPUs.
    pub cpus: Option<u32>,
    /// Memory, in bytes.
    pub memory_bytes: Option<u64>,
    /// Storage, in bytes.
    pub storage_bytes: Option<u64>,
    /// These take the place of those of the same kind.
    pub traits: Traits,
}

impl Terms {
    /// For choosing the lines of a segment that begins then, of a job for which that account pays.
    #[must_use]
    pub fn stated<'a>(&'a self, at: Wall, account: &'a AccountId, bid: Option<Credits>) -> Stated<'a> {
        let Terms { cpus, memory_bytes, storage_bytes, ref traits, .. } = *self;
        Stated { at, traits, account: Some(account), cpus, memory_bytes, storage_bytes, bid }
    }

    /// The terms after a change.
    #[must_use]
    pub fn changed(mut self, change: &Change) -> Terms {
        if let Some(gpus) = &change.gpus {
            self.gpus.clone_from(gpus);
        }
        self.cpus = change.cpus.or(self.cpus);
        self.memory_bytes = change.memory_bytes.or(self.memory_bytes);
        self.storage_bytes = change.storage_bytes.or(self.storage_bytes);
        self.traits.extend(change.traits.clone());
        self
    }
}

/// What few jobs have. In a checkpoint it stands behind the rest, since its form is newer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Further {
    /// Storage as stated, in bytes.
    pub storage_bytes: Option<u64>,
    /// What was agreed on its price, if it was started with a bid.
    pub offer: Option<Offer>,
    /// Where its counters stood when they were last read.
    pub marks: Marks,
    /// The events that were reported for it: their names and ids.
    pub events: BTreeSet<(LineId, LineId)>,
}

/// A bid and the price at which it was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The most that its starter would pay for the start.
    pub bid: Credits,
    /// What this node asked for it, and charged.
    pub ask: Credits,
}

/// More is asked for a job by now than was bid, and its card minds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outbid {
    /// What happens.
    pub rule: OverBid,
    /// What was bid.
    pub bid: Credits,
    /// What is asked.
    pub ask: Credits,
}

/// The counters of a job at their last reading.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// Bytes read and written, and when that was read.
    pub io: Option<(u64, Mono)>,
    /// By device.
    pub gpus: BTreeMap<GpuId, DeviceMark>,
}

/// The totals of a device at their last reading; none where there was none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceMark {
    /// When they were read.
    pub at: Mono,
    /// Since when the agent counts busy time and memory.
    pub since: Mono,
    /// Nanoseconds of busy time.
    pub busy_ns: Option<u64>,
    /// Byte-nanoseconds in use.
    pub memory_byte_ns: Option<u128>,
    /// Millijoules.
    pub energy_mj: Option<u64>,
}

/// What a hook reports of a job beside its start and its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// A counter's total since the job's start. The greatest one holds.
    Counter {
        /// Which.
        name: LineId,
        /// How much.
        total: u64,
    },
    /// An event. Reported again it changes nothing.
    Event {
        /// Which kind.
        name: LineId,
        /// Which one.
        id: LineId,
    },
}
