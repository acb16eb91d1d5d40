//! What this kernel and its mounts offer: cgroups, priority, GPUs.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{StatVfsMountFlags, statvfs};

use super::Findings;
use super::agent::Agent;
use crate::domain::meter::{Missing, Reading};
use crate::domain::time::Nanos;
use crate::node::config::{Config, Nvml};
use crate::node::gpu::{GpuConfig, Gpus};
use crate::node::gpu_owner::Owners;
use crate::node::layout::{Layout, LayoutError, Mode, Need, Served};
use crate::node::{clock, priority};

/// Older ones are not supported; on those between, something is done in a poorer way.
const OLDEST: (u32, u32) = (4, 15);
const PIDFDS: (u32, u32) = (5, 3);
const CGROUP_KILL: (u32, u32) = (5, 14);
/// How long the driver of a GPU may take to open.
const DRIVER_WITHIN: Duration = Duration::from_secs(5);

pub(super) fn look(config: &Config, agent: &Agent, findings: &mut Findings) {
    version(findings);
    cgroups(findings);
    // An agent that runs has said itself what it got.
    if agent.status.is_none() && rustix::process::geteuid().is_root() {
        real_time(findings);
    }
    gpus(config, findings);
}

fn version(findings: &mut Findings) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let Some(version) = parsed(&release) else { return };
    if version < OLDEST {
        findings.error("kernel_too_old", format!("the kernel is {release}, at least 4.15 is needed"), "install a newer kernel");
    } else if version < PIDFDS {
        let finding =
            format!("the kernel is {release}: before 5.3 a process cannot be told from a later one with its pid while it is signalled");
        findings.warning("kernel_old", finding, "install a newer kernel");
    } else if version < CGROUP_KILL {
        let finding = format!("the kernel is {release}: before 5.14 there is no cgroup.kill, so jobs are killed process by process");
        findings.advice("no_cgroup_kill", finding, "install a newer kernel");
    }
}

/// `6.1.0-18-amd64` is 6.1.
fn parsed(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn cgroups(findings: &mut Findings) {
    let layout = match Layout::detect() {
        Ok(layout) => layout,
        Err(LayoutError::NoCgroups) => {
            let finding = "no cgroup file system is mounted: jobs can only be followed as process trees";
            return findings.error("no_cgroups", finding, "mount -t cgroup2 cgroup2 /sys/fs/cgroup; in a container, give it the host's");
        }
        Err(error) => return findings.error("mounts_unreadable", error.to_string(), "mount /proc"),
    };
    match layout.mode() {
        Some(Mode::Hybrid) => findings.advice(
            "cgroup_hybrid",
            "cgroups are mounted in both versions: two trees are read for each job",
            "boot with systemd.unified_cgroup_hierarchy=1, where no other software needs version 1",
        ),
        Some(Mode::Legacy) => findings.warning(
            "cgroup_v1_only",
            "only version 1 of cgroups is mounted: freezing is slower, and there is no pressure",
            "boot with systemd.unified_cgroup_hierarchy=1",
        ),
        Some(Mode::Unified) | None => {}
    }
    served(&layout, findings);
    for mount in layout.mount_roots.keys() {
        if statvfs(mount).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::RDONLY)) {
            let finding = format!("{} is read-only: no job can be frozen or killed there", mount.display());
            findings.error(
                "cgroup_read_only",
                finding,
                format!("mount -o remount,rw {}; in a container, run it privileged", mount.display()),
            );
        }
    }
}

fn served(layout: &Layout, findings: &mut Findings) {
    for need in Need::ALL {
        match (need, layout.served(need)) {
            (Need::CpuTime, Served::Nothing) => {
                findings.error("no_cpu_time", "no mounted hierarchy counts CPU time", "mount cgroup2, or the v1 controller cpuacct");
            }
            (Need::Memory, Served::Nothing) => {
                let remedy = "cgroup_enable=memory on the kernel's command line; or mount the v1 controller memory";
                findings.warning("no_memory_controller", "memory is not metered: no hierarchy has the memory controller", remedy);
            }
            (Need::Freezing, Served::Signals | Served::Nothing) => {
                let finding = "jobs are stopped by SIGSTOP: they can see it, and their owner can undo it";
                findings.warning("no_freezer", finding, "mount cgroup2 (Linux 5.2 or later), or the v1 controller freezer");
            }
            (Need::Pressure, Served::Nothing) => {
                findings.advice("no_pressure", "the kernel tells no pressure (PSI)", "psi=1 on the kernel's command line, and cgroup2");
            }
            _ => {}
        }
    }
}

/// Tried in a thread of its own, which ends.
fn real_time(findings: &mut Findings) {
    let tried = std::thread::spawn(priority::raise_priority).join();
    if let Ok(Reading::Missing(why)) = tried {
        let finding = format!("real-time priority is not to be had here ({why}): on a busy node jobs are stopped late");
        findings.warning(
            "no_real_time",
            finding,
            "with cgroup v1, a real-time budget (cpu.rt_runtime_us) for the agent's cgroup; LimitRTPRIO=1 in the unit",
        );
    }
}

fn gpus(config: &Config, findings: &mut Findings) {
    let devices = Path::new("/dev/nvidiactl").exists() || Path::new("/proc/driver/nvidia/version").exists();
    if config.gpu.nvml == Nvml::Off {
        if devices {
            let remedy = "set nvml = \"auto\" under [gpu], and restart the agent";
            findings.warning("gpus_not_metered", "this node has NVIDIA's driver, and GPUs are not read", remedy);
        }
        return;
    }
    let library = &config.gpu.library;
    match opened(config) {
        Ok(Reading::Missing(Missing::NoLibrary)) if devices => {
            let finding = format!("this node has NVIDIA's driver, and {library} is not installed");
            findings.warning("nvml_absent", finding, "install the driver's library (libnvidia-ml1); until then GPUs are not metered");
        }
        // No GPUs, no library: as it should be.
        Ok(Reading::Seen(_) | Reading::Missing(Missing::NoLibrary)) => {}
        Ok(Reading::Missing(Missing::NoDevice)) if !devices => {}
        Ok(Reading::Missing(Missing::NotYet | Missing::TimedOut)) => {
            let finding = format!("{library} does not answer within {} seconds", DRIVER_WITHIN.as_secs());
            findings.error(
                "nvml_hangs",
                finding,
                "nvidia-smi; dmesg (Xid); the node may have to be rebooted. Jobs without GPUs are metered on",
            );
        }
        Ok(Reading::Missing(why)) => {
            let remedy = "nvidia-smi tells more; after an upgrade of the driver, load its module anew or reboot";
            findings.error("nvml_fails", format!("{library} gives no GPUs: {why}"), remedy);
        }
        Err(error) => findings.error("nvml_fails", format!("no thread for the driver: {error}"), "end something"),
    }
}

fn opened(config: &Config) -> std::io::Result<Reading<usize>> {
    let wanted = GpuConfig { library: config.gpu.library.clone().into(), ..GpuConfig::every(Nanos::from_secs(60)) };
    let gpus = Gpus::start(wanted, Owners::default().as_owner())?;
    let began = Instant::now();
    loop {
        let seen = gpus.latest(clock::mono()).map(|gpus| gpus.len());
        if seen != Reading::Missing(Missing::NotYet) || DRIVER_WITHIN < began.elapsed() {
            return Ok(seen);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_begins_with_its_version() {
        for (release, version) in
            [("6.1.0-18-amd64", Some((6, 1))), ("5.14.0-427.el9.x86_64", Some((5, 14))), ("4.4", Some((4, 4))), ("x", None)]
        {
            assert_eq!(parsed(release), version, "{release}");
        }
    }
}
