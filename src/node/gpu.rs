//! The GPUs of this machine. An own thread reads them through NVML, since a driver call may hang for ever; everybody else
//! takes the newest look and never waits. What a hanging driver hides is [`Missing::TimedOut`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::domain::id::{Attempt, GpuId};
use crate::domain::meter::{DeviceTotals, GpuSample, Missing, Reading};
use crate::domain::time::{Mono, Nanos};
use crate::domain::usage::HeldGpu;
use crate::node::clock;
use crate::node::slot::Slot;

mod nvml;
mod raw;
mod report;
mod ring;
#[cfg(test)]
mod tests;
mod totals;

pub use nvml::GpuReader;
pub use report::{GpuReport, gpu_report};

/// Says whose process a pid is: the job that holds it, or `None` for nobody's. Called on the GPU thread, once per GPU process and look.
pub type Owner = dyn Fn(u32) -> Option<Attempt> + Send + Sync;

/// How GPUs are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuConfig {
    /// What to open: a path, or a name for the dynamic linker to find.
    pub library: PathBuf,
    /// From one look to the next.
    pub interval: Nanos,
    /// A look that began longer ago than this is no reading any more.
    pub deadline: Nanos,
    /// Where the driver lists its devices, one folder each. If NVML finds none of them, access to them is blocked.
    pub driver_gpus: PathBuf,
}

impl GpuConfig {
    /// A look each `interval`; one that is three intervals old is no reading any more. The library and the folder are the driver's usual ones.
    #[must_use]
    pub fn every(interval: Nanos) -> GpuConfig {
        GpuConfig {
            library: "libnvidia-ml.so.1".into(),
            interval,
            deadline: Nanos(interval.0.saturating_mul(3)),
            driver_gpus: "/proc/driver/nvidia/gpus".into(),
        }
    }
}

/// One look at all GPUs, and what is known about the looking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GpuLook {
    /// When it began.
    pub taken: Mono,
    /// Does the driver answer?
    pub driver: Driver,
    /// Each device, by index, and after a partitioned one its MIG devices.
    pub gpus: Reading<Vec<GpuSample>>,
    /// MIG device → the device that it is a part of. A parent is not to be held as a whole, nor counted as capacity of its own.
    pub mig_parents: BTreeMap<GpuId, GpuId>,
    /// Devices without a sample ring: busy is the polled `nvmlDeviceGetUtilizationRates`, which loses what happens between looks.
    pub polled: BTreeSet<GpuId>,
    /// Indices whose device would not say who it is, and why.
    pub unidentified: BTreeMap<u32, Missing>,
    /// Devices that earlier looks of this process saw, and this one did not.
    pub vanished: BTreeSet<GpuId>,
    /// Values rejected since the thread started, because they were impossible (above 100 %, more memory than there is).
    pub rejected_count: u64,
    /// How often NVML was opened since the thread started.
    pub init_count: u64,
    /// What each device has done so far.
    pub totals: BTreeMap<GpuId, DeviceTotals>,
}

impl GpuLook {
    pub(super) fn missing(taken: Mono, why: Missing) -> GpuLook {
        GpuLook {
            taken,
            driver: Driver::Answers,
            gpus: Reading::Missing(why),
            mig_parents: BTreeMap::new(),
            polled: BTreeSet::new(),
            unidentified: BTreeMap::new(),
            vanished: BTreeSet::new(),
            rejected_count: 0,
            init_count: 0,
            totals: BTreeMap::new(),
        }
    }

    /// The device that is meant.
    ///
    /// # Errors
    /// [`GpuRefusal`], where it is unknown, partitioned, or there is no look to tell.
    pub fn resolve(&self, wanted: &GpuName) -> Result<HeldGpu, GpuRefusal> {
        let samples = match &self.gpus {
            Reading::Seen(samples) => samples,
            Reading::Missing(why) => return Err(GpuRefusal::NoReading { why: why.clone() }),
        };
        let named = |sample: &&GpuSample| match wanted {
            // A MIG device has its parent's index; an index means a whole device.
            GpuName::Index(index) => sample.index == *index && !self.mig_parents.contains_key(&sample.gpu),
            GpuName::Uuid(gpu) => sample.gpu == *gpu,
        };
        let Some(sample) = samples.iter().find(named) else {
            return Err(GpuRefusal::UnknownGpu { wanted: wanted.to_string() });
        };
        let parts: Vec<GpuId> =
            self.mig_parents.iter().filter(|(_, parent)| **parent == sample.gpu).map(|(part, _)| part.clone()).collect();
        if parts.is_empty() {
            Ok(HeldGpu { gpu: sample.gpu.clone(), model: sample.model.clone() })
        } else {
            Err(GpuRefusal::Partitioned { gpu: sample.gpu.clone(), parts })
        }
    }
}

/// Whether the driver answers the GPU thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// In time.
    Answers,
    /// Not within the deadline: the GPU thread hangs in a call. Only the driver can end that.
    Hangs,
}

/// How a hook or a person names a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuName {
    /// By NVML index, as `SLURM_JOB_GPUS` does.
    Index(u32),
    /// By NVML UUID.
    Uuid(GpuId),
}

impl FromStr for GpuName {
    type Err = GpuRefusal;

    /// `0`, `GPU-…` or `MIG-…`.
    fn from_str(text: &str) -> Result<GpuName, GpuRefusal> {
        let not_a_name = || GpuRefusal::NotAName { text: text.chars().take(128).collect() };
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().map(GpuName::Index).map_err(|_| not_a_name());
        }
        if text.starts_with("GPU-") || text.starts_with("MIG-") {
            return text.parse().map(GpuName::Uuid).map_err(|_| not_a_name());
        }
        Err(not_a_name())
    }
}

impl fmt::Display for GpuName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GpuName::Index(index) => write!(f, "{index}"),
            GpuName::Uuid(gpu) => write!(f, "{gpu}"),
        }
    }
}

/// Why a device that a caller named cannot be held.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpuRefusal {
    /// Neither an index nor a UUID.
    #[error("{text:?} names no GPU: an index such as 0, or a UUID that starts with GPU- or MIG-")]
    NotAName {
        /// What was given.
        text: String,
    },
    /// The look has no such device.
    #[error("there is no GPU {wanted} on this node")]
    UnknownGpu {
        /// What was asked for.
        wanted: String,
    },
    /// The device is split into MIG devices, and only those can be held.
    #[error("GPU {gpu} is partitioned (MIG): name one of its parts by UUID")]
    Partitioned {
        /// The device.
        gpu: GpuId,
        /// Its MIG devices.
        parts: Vec<GpuId>,
    },
    /// The GPUs could not be read, so nobody knows what is meant.
    #[error("no GPU reading: {why}")]
    NoReading {
        /// Why not.
        why: Missing,
    },
}

impl GpuRefusal {
    /// Its stable code, for machines.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            GpuRefusal::NotAName { .. } => "gpu_name_invalid",
            GpuRefusal::UnknownGpu { .. } => "gpu_unknown",
            GpuRefusal::Partitioned { .. } => "gpu_partitioned",
            GpuRefusal::NoReading { .. } => "gpu_reading_missing",
        }
    }
}

/// Devices that more than one job holds, with those jobs: held time is by allocation, so that each of them would be billed the whole device.
/// Whether that is meant is the caller's to say.
#[must_use]
pub fn sharers<'a>(held: impl IntoIterator<Item = (Attempt, &'a [HeldGpu])>) -> BTreeMap<GpuId, BTreeSet<Attempt>> {
    let mut holders: BTreeMap<GpuId, BTreeSet<Attempt>> = BTreeMap::new();
    for (attempt, gpus) in held {
        for held in gpus {
            holders.entry(held.gpu.clone()).or_default().insert(attempt);
        }
    }
    holders.retain(|_, attempts| attempts.len() > 1);
    holders
}

/// The GPU thread, seen from outside. Dropped, it asks the thread to end and does not wait: it may hang in the driver.
#[derive(Debug)]
pub struct Gpus {
    shared: Arc<Shared>,
    deadline: Nanos,
    started: Mono,
}

#[derive(Debug)]
struct Shared {
    slot: Slot<Option<GpuLook>>,
    /// Is the driver asked for each device's energy?
    energy: AtomicBool,
    ending: Mutex<Ending>,
    wake: Condvar,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    No,
    Asked,
}

impl Gpus {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the kernel gives no thread.
    pub fn start(config: GpuConfig, owner: Arc<Owner>) -> std::io::Result<Gpus> {
        let shared = Arc::new(Shared {
            slot: Slot::new(None),
            energy: AtomicBool::new(false),
            ending: Mutex::new(Ending::No),
            wake: Condvar::new(),
        });
        let gpus = Gpus { shared: Arc::clone(&shared), deadline: config.deadline, started: clock::mono() };
        let interval = config.interval;
        std::thread::Builder::new().name("gpu".into()).spawn(move || {
            let mut reader = GpuReader::new(config, owner);
            let mut due = clock::mono();
            while shared.wait_until(due) == Ending::No {
                reader.set_energy(shared.energy.load(Ordering::Relaxed));
                let look = reader.look(clock::mono());
                shared.slot.put(Some(look));
                due = next_due(due, interval, clock::mono());
            }
        })?;
        Ok(gpus)
    }

    /// The newest look. Never waits. Too old a one says [`Missing::TimedOut`] and [`Driver::Hangs`]; before the first, [`Missing::NotYet`].
    #[must_use]
    pub fn look(&self, now: Mono) -> GpuLook {
        let newest = self.shared.slot.newest();
        let newest = newest.as_ref().clone().unwrap_or_else(|| GpuLook::missing(self.started, Missing::NotYet));
        if now.since(newest.taken) <= self.deadline {
            newest
        } else {
            GpuLook { driver: Driver::Hangs, gpus: Reading::Missing(Missing::TimedOut), ..newest }
        }
    }

    /// Is the driver to be asked for each device's energy, from the next look on? That takes it milliseconds.
    pub fn set_energy(&self, asked: bool) {
        self.shared.energy.store(asked, Ordering::Relaxed);
    }

    /// Each device as the newest look saw it. Never waits.
    #[must_use]
    pub fn latest(&self, now: Mono) -> Reading<Vec<GpuSample>> {
        self.look(now).gpus
    }

    /// The device that is meant, by the newest look. Never waits. A UUID is found in an old look too; an index may mean another device by now.
    ///
    /// # Errors
    /// [`GpuRefusal`].
    pub fn resolve(&self, wanted: &GpuName, now: Mono) -> Result<HeldGpu, GpuRefusal> {
        let newest = self.shared.slot.newest();
        match (wanted, newest.as_ref()) {
            (GpuName::Uuid(_), Some(look)) => look.resolve(wanted),
            _ => self.look(now).resolve(wanted),
        }
    }
}

impl Drop for Gpus {
    fn drop(&mut self) {
        *self.shared.ending.lock().unwrap_or_else(PoisonError::into_inner) = Ending::Asked;
        self.shared.wake.notify_all();
    }
}

impl Shared {
    /// Waits, until it is time or the end is asked for.
    fn wait_until(&self, due: Mono) -> Ending {
        let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = due.since(clock::mono());
            if *ending == Ending::Asked || left == Nanos(0) {
                return *ending;
            }
            let waited = self.wake.wait_timeout(ending, Duration::from_nanos(left.0));
            ending = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The next instant of the absolute schedule after `now`: looks that a slow driver cost are skipped, not made up for.
fn next_due(due: Mono, interval: Nanos, now: Mono) -> Mono {
    let interval = Nanos(interval.0.max(1_000_000));
    let behind = now.since(due).0 / interval.0;
    due.plus(Nanos(interval.0.saturating_mul(behind + 1)))
}
