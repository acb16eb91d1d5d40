//! All that can be read of this machine's GPUs, as one value to print: for a look at a real host.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::{GpuConfig, GpuLook, GpuReader};
use crate::domain::time::Nanos;
use crate::node::clock;
use crate::node::host::{self, HostReport};

/// What a host says of its GPUs.
#[derive(Clone, Debug, Serialize)]
pub struct GpuReport {
    /// The host.
    pub host: Option<HostReport>,
    /// The library that was asked for.
    pub library: String,
    /// Entries of `/proc/driver/nvidia/gpus`; none if it is not there.
    pub driver_gpus: Option<usize>,
    /// The looks, one each interval. No process is anybody's here: there are no jobs.
    pub looks: Vec<TimedLook>,
}

/// A look, and what it cost.
#[derive(Clone, Debug, Serialize)]
pub struct TimedLook {
    /// How long it took.
    pub took: Nanos,
    /// What it saw.
    pub look: GpuLook,
}

/// Looks `looks` times, on the calling thread: it hangs where the driver does.
#[must_use]
pub fn gpu_report(config: &GpuConfig, looks: u32) -> GpuReport {
    let mut reader = GpuReader::new(config.clone(), Arc::new(|_| None));
    let timed = |nth: u32| {
        if nth > 0 {
            std::thread::sleep(std::time::Duration::from_nanos(config.interval.0));
        }
        let begun = Instant::now();
        let look = reader.look(clock::mono());
        TimedLook { took: Nanos(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX)), look }
    };
    let looks = (0..looks).map(timed).collect();
    let host = host::read().ok();
    GpuReport { host, library: config.library.display().to_string(), driver_gpus: entries_count(&config.driver_gpus), looks }
}

fn entries_count(folder: &Path) -> Option<usize> {
    std::fs::read_dir(folder).ok().map(Iterator::count)
}
