//! What NVML says, call by call. The only file that speaks to `libnvidia-ml.so.1`; each call may hang, so only the GPU thread comes here.
//!
//! `nvmlDeviceGetTotalEnergyConsumption` takes 3 to 16 ms a device: it is called only where a rate card prices it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nvml_wrapper::enums::device::{SampleValue, UsedGpuMemory};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper::{Device, Nvml};

use super::raw::{self, Processes};
use super::ring::{self, Drain, Stamped};
use super::totals::Totals;
use super::{GpuConfig, GpuLook, Owner};
use crate::domain::id::{GpuId, GpuModel};
use crate::domain::meter::{GpuProcess, GpuSample, Missing, Reading};
use crate::domain::time::{Mono, Nanos};
use crate::domain::usage::HeldGpu;

/// A list may grow between the call that counts and the call that fetches.
const LIST_TRIES_MAX: u32 = 3;
/// Between two tries to open NVML anew, at most.
const REOPEN_DELAY_MAX: Nanos = Nanos::from_secs(60);
/// No machine has more devices, and none more parts; a driver that says so is not in its right mind.
const DEVICES_MAX: u32 = 256;
const PARTS_MAX: u32 = 64;
/// `NVML_DEVICE_MIG_ENABLE`.
const MIG_ENABLED: u32 = 1;

/// Reads every GPU, look by look; opens NVML anew, with growing delays, where the driver says that it must be.
pub struct GpuReader {
    config: GpuConfig,
    owner: Arc<Owner>,
    nvml: Option<Nvml>,
    reopen: Reopen,
    memory: Memory,
    energy: bool,
}

/// When NVML is opened next, if it has to be.
#[derive(Debug)]
struct Reopen {
    /// Why it has to be; none while all is well.
    why: Option<Missing>,
    at: Mono,
    delay: Nanos,
}

/// What is remembered from look to look.
#[derive(Debug, Default)]
struct Memory {
    drains: BTreeMap<GpuId, Drains>,
    /// Who had which index when it last said so.
    indices: BTreeMap<u32, HeldGpu>,
    totals: BTreeMap<GpuId, Totals>,
    seen: BTreeSet<GpuId>,
    rejected_count: u64,
    init_count: u64,
}

#[derive(Debug, Default)]
struct Drains {
    device: Drain,
    processes: Drain,
}

/// One look in the making.
struct Looking<'a> {
    memory: &'a mut Memory,
    owner: &'a Owner,
    window_us: u64,
    energy: bool,
    /// By device, where it was asked for.
    energies: BTreeMap<GpuId, Reading<u64>>,
    look: GpuLook,
    samples: Vec<GpuSample>,
    /// The first error after which NVML has to be opened anew.
    sick: Option<Missing>,
}

impl GpuReader {
    /// A reader that has not opened NVML yet: the first look does.
    pub fn new(config: GpuConfig, owner: Arc<Owner>) -> GpuReader {
        let reopen = Reopen { why: Some(Missing::NotYet), at: Mono(0), delay: config.interval };
        GpuReader { config, owner, nvml: None, reopen, memory: Memory::default(), energy: false }
    }

    /// Is the energy of each device read too?
    pub fn set_energy(&mut self, asked: bool) {
        self.energy = asked;
    }

    /// Reads all GPUs. May take long, or for ever, where the driver does.
    pub fn look(&mut self, now: Mono) -> GpuLook {
        if self.reopen.why.is_some() && now >= self.reopen.at {
            // The old library is closed first: after an upgrade of the driver it is the wrong one.
            self.nvml = None;
            self.open();
        }
        let mut look = match self.nvml.take() {
            Some(nvml) => self.read(nvml, now),
            None => GpuLook::missing(now, self.reopen.why.clone().unwrap_or(Missing::NotYet)),
        };
        if self.reopen.why.is_none() {
            self.reopen.delay = self.config.interval;
        } else if now >= self.reopen.at {
            self.reopen.at = now.plus(self.reopen.delay);
            self.reopen.delay = Nanos(self.reopen.delay.0.saturating_mul(2).min(REOPEN_DELAY_MAX.0.max(self.config.interval.0)));
        }
        look.vanished = self.memory.seen.iter().filter(|gpu| !names(&look.gpus, gpu)).cloned().collect();
        look.rejected_count = self.memory.rejected_count;
        look.init_count = self.memory.init_count;
        look
    }

    /// `nvmlInit_v2`.
    fn open(&mut self) {
        match Nvml::builder().lib_path(self.config.library.as_os_str()).init() {
            Ok(nvml) => {
                self.memory.init_count += 1;
                self.nvml = Some(nvml);
                self.reopen.why = None;
            }
            Err(error) => self.reopen.why = Some(missing_library(&error)),
        }
    }

    /// One look through an open NVML, which is kept unless it cannot even count its devices.
    fn read(&mut self, nvml: Nvml, now: Mono) -> GpuLook {
        let count = match nvml.device_count() {
            Ok(0) => {
                let why = if has_entries(&self.config.driver_gpus) { Missing::Denied } else { Missing::NoDevice };
                self.reopen.why = Some(why.clone());
                return GpuLook::missing(now, why);
            }
            Ok(count) => count,
            Err(error) => {
                let why = missing(&error);
                self.reopen.why = Some(why.clone());
                return GpuLook::missing(now, why);
            }
        };
        let mut looking = Looking {
            memory: &mut self.memory,
            owner: &*self.owner,
            window_us: self.config.interval.0 / 1_000,
            energy: self.energy,
            energies: BTreeMap::new(),
            look: GpuLook::missing(now, Missing::NotYet),
            samples: Vec::new(),
            sick: None,
        };
        for index in 0..count.min(DEVICES_MAX) {
            looking.device(&nvml, index);
        }
        looking.name_the_silent();
        looking.add_up(now);
        let sick = looking.sick;
        let look = GpuLook { gpus: Reading::Seen(looking.samples), ..looking.look };
        // While it waits to be opened anew, this one still reads the devices that are well.
        if self.reopen.why.is_none() || sick.is_none() {
            self.reopen.why = sick;
        }
        self.nvml = Some(nvml);
        look
    }
}

impl Looking<'_> {
    fn device(&mut self, nvml: &Nvml, index: u32) {
        let device = match nvml.device_by_index(index) {
            Ok(device) => device,
            Err(error) => return self.unidentified(index, &error),
        };
        let held = match identity(nvml, &device) {
            Ok(held) => held,
            Err(error) => return self.unidentified(index, &error),
        };
        self.memory.indices.insert(index, held.clone());
        // A device that knows no MIG answers NotSupported, an old library has no such call.
        if device.mig_mode().is_ok_and(|mode| mode.current == MIG_ENABLED) {
            self.partitioned(nvml, &device, index, held);
        } else {
            let total = self.memory_bytes(&device);
            let busy = self.busy(nvml, &device, &held.gpu);
            if self.energy {
                let energy = device.total_energy_consumption().map_or_else(|error| Reading::Missing(self.why(&error)), Reading::Seen);
                self.energies.insert(held.gpu.clone(), energy);
            }
            let running = self.running(nvml, &device);
            let busy_by_pid = self.busy_by_pid(nvml, &device, &held.gpu);
            let processes = self.processes(running, &busy_by_pid, total.1.seen().copied());
            self.push(held, index, busy, total, processes);
        }
    }

    /// A device split by MIG: the driver measures no utilisation there, neither of the device nor of a process. Each part is a device of its own.
    fn partitioned(&mut self, nvml: &Nvml, device: &Device<'_>, index: u32, held: HeldGpu) {
        let parent = held.clone();
        self.unmeasured(nvml, device, index, held);
        let slots_count = match device.mig_device_count() {
            Ok(count) => count,
            Err(error) => return self.note(&error),
        };
        for slot in 0..slots_count.min(PARTS_MAX) {
            match device.mig_device_by_index(slot) {
                Ok(part) => self.part(nvml, &part, index, &parent),
                // An empty slot.
                Err(NvmlError::NotFound) => {}
                Err(error) => self.note(&error),
            }
        }
    }

    fn part(&mut self, nvml: &Nvml, part: &Device<'_>, index: u32, parent: &HeldGpu) {
        let gpu: GpuId = match raw::uuid(nvml, part).map(|uuid| uuid.parse()) {
            Ok(Ok(gpu)) => gpu,
            Ok(Err(_)) => return,
            Err(error) => return self.note(&error),
        };
        let model = raw::name(nvml, part).unwrap_or_default();
        let model = if model.contains("MIG") { GpuModel::new(&model) } else { profile(part, &parent.model) };
        self.look.mig_parents.insert(gpu.clone(), parent.gpu.clone());
        self.unmeasured(nvml, part, index, HeldGpu { gpu, model });
    }

    fn unmeasured(&mut self, nvml: &Nvml, device: &Device<'_>, index: u32, held: HeldGpu) {
        let memory = self.memory_bytes(device);
        let running = self.running(nvml, device);
        let processes = self.processes(running, &Reading::Missing(Missing::NotSupported), memory.1.seen().copied());
        self.push(held, index, Reading::Missing(Missing::NotSupported), memory, processes);
    }

    fn push(
        &mut self,
        held: HeldGpu,
        index: u32,
        busy_permyriad: Reading<u32>,
        (memory_used_bytes, memory_total_bytes): (Reading<u64>, Reading<u64>),
        processes: Reading<Vec<GpuProcess>>,
    ) {
        self.memory.seen.insert(held.gpu.clone());
        let HeldGpu { gpu, model } = held;
        self.samples.push(GpuSample { gpu, index, model, busy_permyriad, memory_used_bytes, memory_total_bytes, processes });
    }

    fn unidentified(&mut self, index: u32, error: &NvmlError) {
        let why = self.why(error);
        self.look.unidentified.insert(index, why);
    }

    /// A device that fell off the bus does not say who it is. If it said so before, and no other device is it now, all of it is missing.
    fn name_the_silent(&mut self) {
        for (index, why) in std::mem::take(&mut self.look.unidentified) {
            match self.memory.indices.get(&index).cloned() {
                Some(held) if self.samples.iter().all(|sample| sample.gpu != held.gpu) => {
                    let none = || Reading::Missing(why.clone());
                    let processes = Reading::Missing(why.clone());
                    self.push(held, index, Reading::Missing(why.clone()), (none(), none()), processes);
                }
                _ => {
                    self.look.unidentified.insert(index, why);
                }
            }
        }
        self.samples.sort_by_key(|sample| sample.index);
    }

    /// What each device has done so far.
    fn add_up(&mut self, now: Mono) {
        for sample in &self.samples {
            let totals = self.memory.totals.entry(sample.gpu.clone()).or_insert_with(|| Totals::from(now));
            let energy = self.energies.remove(&sample.gpu).unwrap_or(Reading::Missing(Missing::NotSupported));
            self.look.totals.insert(sample.gpu.clone(), totals.add(sample, energy, now));
        }
    }

    /// `nvmlDeviceGetMemoryInfo_v2`: used and total.
    fn memory_bytes(&mut self, device: &Device<'_>) -> (Reading<u64>, Reading<u64>) {
        match device.memory_info() {
            Ok(info) if info.used > info.total => {
                self.memory.rejected_count += 1;
                (Reading::Missing(Missing::Implausible), Reading::Seen(info.total))
            }
            Ok(info) => (Reading::Seen(info.used), Reading::Seen(info.total)),
            Err(error) => {
                let why = self.why(&error);
                (Reading::Missing(why.clone()), Reading::Missing(why))
            }
        }
    }

    /// Mean utilisation since the last look, from the sample ring (`nvmlDeviceGetSamples`); polled where the device has none.
    fn busy(&mut self, nvml: &Nvml, device: &Device<'_>, gpu: &GpuId) -> Reading<u32> {
        let since_us = self.memory.drains.entry(gpu.clone()).or_default().device.since_us();
        let samples = match listed(|| raw::samples(nvml, device, since_us)) {
            Ok(samples) => samples,
            Err(error) if missing(&error) == Missing::NotSupported => return self.busy_polled(device, gpu),
            Err(error) => return Reading::Missing(self.why(&error)),
        };
        let samples = samples.iter().map(|sample| Stamped { at_us: sample.timestamp, value: percent(&sample.value) }).collect();
        let fresh = self.memory.drains.entry(gpu.clone()).or_default().device.fresh(samples, self.window_us);
        let percents: Vec<u64> = fresh.iter().map(|sample| sample.value).collect();
        self.reject(percents.iter().filter(|percent| !ring::plausible(**percent)).count());
        ring::mean_permyriad(&percents)
    }

    /// `nvmlDeviceGetUtilizationRates`: the driver's last sampling period only.
    fn busy_polled(&mut self, device: &Device<'_>, gpu: &GpuId) -> Reading<u32> {
        self.look.polled.insert(gpu.clone());
        match device.utilization_rates() {
            Ok(rates) => {
                let percent = u64::from(rates.gpu);
                self.reject(usize::from(!ring::plausible(percent)));
                ring::mean_permyriad(&[percent])
            }
            Err(error) => Reading::Missing(self.why(&error)),
        }
    }

    /// Every process with a context on the device, once: one with a compute and a graphics context is listed twice, with the same memory.
    fn running(&mut self, nvml: &Nvml, device: &Device<'_>) -> Reading<BTreeMap<u32, Reading<u64>>> {
        let compute = match listed(|| raw::processes(nvml, device, Processes::Compute)) {
            // A driver before 510 has only the second version of this call.
            Err(NvmlError::FailedToLoadSymbol(_)) => listed(|| raw::processes(nvml, device, Processes::ComputeV2)),
            listed => listed,
        };
        let others =
            [listed(|| raw::processes(nvml, device, Processes::Graphics)), listed(|| raw::processes(nvml, device, Processes::Mps))];
        let mut by_pid = BTreeMap::new();
        let mut take = |list: Vec<ProcessInfo>| {
            for process in list.into_iter().filter(|process| process.pid != 0) {
                let bytes = match process.used_gpu_memory {
                    UsedGpuMemory::Used(bytes) => Reading::Seen(bytes),
                    UsedGpuMemory::Unavailable => Reading::Missing(Missing::NotSupported),
                };
                let known = by_pid.entry(process.pid).or_insert_with(|| bytes.clone());
                if bytes.seen() > known.seen() {
                    *known = bytes;
                }
            }
        };
        match compute {
            Ok(list) => take(list),
            Err(error) => return Reading::Missing(self.why(&error)),
        }
        for other in others {
            match other {
                Ok(list) => take(list),
                // A data centre device knows no graphics, an older driver no MPS list.
                Err(error) if missing(&error) == Missing::NotSupported => {}
                Err(error) => return Reading::Missing(self.why(&error)),
            }
        }
        Reading::Seen(by_pid)
    }

    /// Each process's mean utilisation since the last look (`nvmlDeviceGetProcessUtilization`). Values of dead pids can be anything; above 100 they are dropped.
    fn busy_by_pid(&mut self, nvml: &Nvml, device: &Device<'_>, gpu: &GpuId) -> Reading<BTreeMap<u32, Reading<u32>>> {
        let since_us = self.memory.drains.entry(gpu.clone()).or_default().processes.since_us();
        let samples = match listed(|| raw::utilization(nvml, device, since_us)) {
            Ok(samples) => samples,
            Err(error) => return Reading::Missing(self.why(&error)),
        };
        let samples =
            samples.iter().map(|sample| Stamped { at_us: sample.timestamp, value: (sample.pid, u64::from(sample.sm_util)) }).collect();
        let fresh = self.memory.drains.entry(gpu.clone()).or_default().processes.fresh(samples, self.window_us);
        let mut by_pid: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for Stamped { value: (pid, percent), .. } in fresh {
            let good = by_pid.entry(pid).or_default();
            if ring::plausible(percent) {
                good.push(percent);
            } else {
                self.reject(1);
            }
        }
        let mean = |percents: Vec<u64>| match ring::mean_permyriad(&percents) {
            Reading::Missing(_) => Reading::Missing(Missing::Implausible),
            seen @ Reading::Seen(_) => seen,
        };
        Reading::Seen(by_pid.into_iter().map(|(pid, percents)| (pid, mean(percents))).collect())
    }

    fn processes(
        &mut self,
        running: Reading<BTreeMap<u32, Reading<u64>>>,
        busy_by_pid: &Reading<BTreeMap<u32, Reading<u32>>>,
        total_bytes: Option<u64>,
    ) -> Reading<Vec<GpuProcess>> {
        let mut process = |(pid, bytes): (u32, Reading<u64>)| {
            let too_much = matches!((&bytes, total_bytes), (Reading::Seen(bytes), Some(total)) if *bytes > total);
            self.reject(usize::from(too_much));
            GpuProcess {
                pid,
                attempt: (self.owner)(pid),
                memory_bytes: if too_much { Reading::Missing(Missing::Implausible) } else { bytes },
                busy_permyriad: match busy_by_pid {
                    Reading::Seen(by_pid) => by_pid.get(&pid).cloned().unwrap_or(Reading::Missing(Missing::NotYet)),
                    Reading::Missing(why) => Reading::Missing(why.clone()),
                },
            }
        };
        running.map(|by_pid| by_pid.into_iter().map(&mut process).collect())
    }

    fn reject(&mut self, count: usize) {
        self.memory.rejected_count = self.memory.rejected_count.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// The reason for a missing reading; noted if NVML has to be opened anew for it.
    fn why(&mut self, error: &NvmlError) -> Missing {
        self.note(error);
        missing(error)
    }

    fn note(&mut self, error: &NvmlError) {
        if is_sick(error) {
            self.sick.get_or_insert_with(|| missing(error));
        }
    }
}

/// UUID and name.
fn identity(nvml: &Nvml, device: &Device<'_>) -> Result<HeldGpu, NvmlError> {
    // A UUID that is no name at all comes from a driver that is not in its right mind.
    let gpu = raw::uuid(nvml, device)?.parse().map_err(|_| NvmlError::Unknown)?;
    Ok(HeldGpu { gpu, model: GpuModel::new(&raw::name(nvml, device)?) })
}

/// A MIG device's model where the driver does not name it: its parent's, and the profile from its slices and memory.
fn profile(part: &Device<'_>, parent: &GpuModel) -> GpuModel {
    match part.attributes() {
        Ok(attributes) => {
            let gib = attributes.memory_size_mb.div_ceil(1_024);
            GpuModel::new(&format!("{parent} MIG {}g.{gib}gb", attributes.gpu_instance_slice_count))
        }
        Err(_) => GpuModel::new(&format!("{parent} MIG")),
    }
}

/// A list that may grow under our hands, tried a few times. `NotFound` is the driver's word for "nothing new".
fn listed<T>(mut call: impl FnMut() -> Result<Vec<T>, NvmlError>) -> Result<Vec<T>, NvmlError> {
    let mut tries = 1;
    loop {
        match call() {
            Err(NvmlError::InsufficientSize(_)) if tries < LIST_TRIES_MAX => tries += 1,
            Err(NvmlError::NotFound) => return Ok(Vec::new()),
            outcome => return outcome,
        }
    }
}

/// A sample's value as a whole percentage; what cannot be one becomes an impossible one.
fn percent(value: &SampleValue) -> u64 {
    match value {
        SampleValue::U32(value) => u64::from(*value),
        SampleValue::U64(value) => *value,
        SampleValue::I64(value) => u64::try_from(*value).unwrap_or(u64::MAX),
        SampleValue::F64(_) => u64::MAX,
    }
}

fn names(gpus: &Reading<Vec<GpuSample>>, gpu: &GpuId) -> bool {
    gpus.seen().is_some_and(|samples| samples.iter().any(|sample| sample.gpu == *gpu))
}

fn has_entries(folder: &std::path::Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
}

/// Errors after which NVML must be opened anew: the driver was reloaded or upgraded under it, or a device is gone.
fn is_sick(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::Uninitialized
            | NvmlError::InvalidArg
            | NvmlError::DriverNotLoaded
            | NvmlError::GpuLost
            | NvmlError::ResetRequired
            | NvmlError::LibRmVersionMismatch
            | NvmlError::IrqIssue
            | NvmlError::Unknown
    )
}

/// NVML's errors in our terms.
fn missing(error: &NvmlError) -> Missing {
    match error {
        NvmlError::NotSupported | NvmlError::FunctionNotFound | NvmlError::FailedToLoadSymbol(_) => Missing::NotSupported,
        NvmlError::NoPermission | NvmlError::OperatingSystem => Missing::Denied,
        NvmlError::NotFound | NvmlError::NoData => Missing::NotYet,
        NvmlError::UnexpectedVariant(_) | NvmlError::Utf8Error(_) => Missing::Malformed,
        other => Missing::Failed(other.to_string()),
    }
}

/// The same for opening the library: the dynamic linker's errors come as text.
fn missing_library(error: &NvmlError) -> Missing {
    match error {
        NvmlError::LibloadingError(error) => {
            let text = error.to_string();
            match text.contains("cannot open shared object file") {
                true if text.contains("Permission denied") => Missing::Denied,
                true => Missing::NoLibrary,
                false => Missing::Failed(text),
            }
        }
        NvmlError::LibraryNotFound => Missing::NoLibrary,
        // It is some library, but not NVML.
        NvmlError::FailedToLoadSymbol(text) => Missing::Failed(text.clone()),
        other => missing(other),
    }
}
