//! The machine itself: how many CPUs, how much memory, its name and kernel. Read through sysinfo: `/proc/stat`, `/proc/meminfo`, `uname`.

use std::os::fd::AsRawFd as _;

use serde::Serialize;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, System};

use crate::domain::meter::{Host, Missing, Reading};
use crate::domain::time::{Mono, Nanos};

/// The machine, with what only people want to know of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostReport {
    /// Its totals.
    pub totals: Host,
    /// `gethostname`; empty if it has none.
    pub hostname: String,
    /// The kernel's release (`uname -r`).
    pub kernel: String,
}

/// Reads the totals at most once each interval: they change only when CPUs or memory are plugged.
#[derive(Debug)]
pub struct HostReader {
    interval: Nanos,
    last: Option<(Mono, Reading<Host>)>,
}

impl HostReader {
    /// A reader that reads anew after `interval`.
    #[must_use]
    pub fn new(interval: Nanos) -> HostReader {
        HostReader { interval, last: None }
    }

    /// The totals, no older than the interval.
    pub fn totals(&mut self, now: Mono) -> Reading<Host> {
        match &self.last {
            Some((at, totals)) if now.since(*at) < self.interval => totals.clone(),
            _ => {
                let totals = totals();
                self.last = Some((now, totals.clone()));
                totals
            }
        }
    }
}

/// The totals, its name and its kernel.
///
/// # Errors
/// [`Missing`], where the totals cannot be read.
pub fn read() -> Result<HostReport, Missing> {
    match totals() {
        Reading::Seen(totals) => Ok(HostReport {
            totals,
            hostname: System::host_name().unwrap_or_default(),
            kernel: System::kernel_version().unwrap_or_default(),
        }),
        Reading::Missing(why) => Err(why),
    }
}

/// Resident memory of this process, in bytes; `None` if `/proc` does not say.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    let pages = procfs::process::Process::myself().ok()?.statm().ok()?.resident;
    Some(pages.saturating_mul(procfs::page_size()))
}

fn totals() -> Reading<Host> {
    let mut system = match System::new() {
        Ok(system) => system,
        Err(error) => return Reading::Missing(Missing::Failed(error.to_string())),
    };
    system.refresh_cpu_list(CpuRefreshKind::nothing());
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    // sysinfo answers 0 for what it could not read.
    match (u32::try_from(system.cpus().len()), system.total_memory()) {
        (Ok(cpu_count @ 1..), memory_bytes @ 1..) => Reading::Seen(Host { cpu_count, memory_bytes }),
        _ => Reading::Missing(Missing::Malformed),
    }
}

/// How many more descriptors this process may have.
///
/// # Errors
/// When it gets none: the process or the machine has too many, or the kernel has no memory for one.
pub fn descriptors_left() -> std::io::Result<u64> {
    let next = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    // Since Linux 6.2 the folder's size is their count. Before, the lowest free number stands for it: there are at least so many.
    let counted = rustix::fs::stat("/proc/self/fd").map_or(0, |folder| u64::try_from(folder.st_size).unwrap_or(0));
    let open = if counted == 0 { u64::try_from(next.as_raw_fd()).unwrap_or(0) } else { counted };
    Ok(limit.saturating_sub(open))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proc_value(file: &str, of: impl Fn(&str) -> u64) -> u64 {
        of(&std::fs::read_to_string(file).unwrap())
    }

    #[test]
    fn the_totals_are_what_the_kernel_says() {
        let cpu_count = proc_value("/proc/stat", |text| {
            let is_cpu = |line: &&str| line.starts_with("cpu") && !line.starts_with("cpu ");
            text.lines().filter(is_cpu).count().try_into().unwrap()
        });
        let memory_kib = proc_value("/proc/meminfo", |text| {
            let line = text.lines().find(|line| line.starts_with("MemTotal:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        });
        let report = read().unwrap();
        assert_eq!((u64::from(report.totals.cpu_count), report.totals.memory_bytes), (cpu_count, memory_kib * 1_024));
        assert_eq!(report.kernel, std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim());
        assert_eq!(report.hostname, std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim());
    }

    #[test]
    fn the_totals_are_read_again_only_after_the_interval() {
        let mut reader = HostReader::new(Nanos::from_secs(10));
        let invented = Reading::Seen(Host { cpu_count: 7, memory_bytes: 7 });
        reader.last = Some((Mono(0), invented.clone()));
        assert_eq!(reader.totals(Mono(9_999_999_999)), invented);
        assert_ne!(reader.totals(Mono(10_000_000_000)), invented);
    }
}
