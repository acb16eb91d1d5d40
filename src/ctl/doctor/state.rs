//! What the agent keeps: the state folder, its disk, the journal, the balances, the spool; and what a dead agent has left frozen.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{StatVfsMountFlags, statfs, statvfs};

use super::Findings;
use super::agent::Agent;
use crate::authority::store::{self, StoreError};
use crate::domain::act::Target;
use crate::domain::agent::Agent as State;
use crate::domain::job::{FrozenBy, Job};
use crate::domain::meter::Frozen;
use crate::domain::receipt::rfc3339;
use crate::domain::time::{Nanos, Wall};
use crate::node::alarm::Alarm;
use crate::node::config::Config;
use crate::node::journal::{self, JournalError};
use crate::node::layout::Layout;
use crate::node::spool::Spool;
use crate::node::{cgroup_dir, clock, daemon};

/// Less free space than this, in MiB, is an error; than that, a warning.
const FREE_MIB_MIN: u64 = 64;
const FREE_MIB_LOW: u64 = 512;
const FREE_INODES_MIN: u64 = 100;
/// Before this, a clock was never set: the software is younger.
const CLOCK_MIN: Wall = Wall(1_735_689_600_000);
/// How far the newest fact may lie ahead of the clock.
const AHEAD_MAX_MS: u64 = 60_000;
/// How long a spooled call may wait for an agent that runs.
const WAITS_MAX_MS: u64 = 60_000;
/// `TMPFS_MAGIC`, `RAMFS_MAGIC`.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

pub(super) fn look(config: &Config, agent: &Agent, findings: &mut Findings) {
    let now = clock::now().wall;
    if now < CLOCK_MIN {
        findings.error("clock_unset", format!("the clock says {}", rfc3339(now)), "set it: receipts and rate cards go by it");
    }
    let dir = &config.state_dir;
    let Some(shown) = folder(dir, findings) else { return };
    disk(dir, findings);
    spool(&shown, dir, agent, now, findings);
    balances(dir, agent, findings);
    the_journal(dir, agent, now, findings);
}

/// The folder and who may come in; none if there is nothing to look into.
fn folder(dir: &Path, findings: &mut Findings) -> Option<String> {
    let shown = dir.display().to_string();
    let found = match std::fs::symlink_metadata(dir) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            findings.warning("state_dir_absent", format!("{shown} is not there: the agent has never run"), "systemctl start meterd");
            return None;
        }
        Err(error) => {
            findings.warning("state_dir_unreadable", format!("{shown}: {error}"), "run it as root");
            return None;
        }
    };
    if !found.is_dir() {
        findings.error(
            "state_dir_replaced",
            format!("{shown} is not a folder of its own"),
            "find out who replaced it, and put the agent's folder back",
        );
        return None;
    }
    let mode = found.mode() & 0o7777;
    if mode & 0o022 != 0 {
        let finding = format!("others than its owner may write to {shown} (mode {mode:o})");
        findings.error("state_dir_exposed", finding, format!("chmod 750 {shown}, and meterctl journal verify"));
    } else if mode & 0o004 != 0 {
        findings.warning("state_dir_open", format!("everybody may look into {shown} (mode {mode:o})"), format!("chmod 750 {shown}"));
    }
    if std::fs::read_dir(dir).is_err() {
        findings.advice("state_dir_unreadable", format!("{shown} cannot be read by this user"), "run it as root");
        return None;
    }
    Some(shown)
}

fn disk(dir: &Path, findings: &mut Findings) {
    let shown = dir.display();
    if let Ok(found) = statfs(dir)
        && IN_MEMORY.contains(&found.f_type)
    {
        findings.warning("state_not_durable", format!("{shown} is in memory: a reboot loses the balances"), "put state_dir on a disk");
    }
    let Ok(found) = statvfs(dir) else { return };
    if found.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return findings.error(
            "disk_read_only",
            format!("the disk of {shown} is read-only"),
            "dmesg tells why; remount it: the agent goes on by itself",
        );
    }
    let mib = found.f_bavail.saturating_mul(found.f_frsize) >> 20;
    if mib < FREE_MIB_MIN {
        findings.error("disk_full", format!("{mib} MiB are free for {shown}"), "make room: below that no job is started soon");
    } else if mib < FREE_MIB_LOW {
        findings.warning("disk_low", format!("{mib} MiB are free for {shown}"), "make room, or lower keep_mib under [journal]");
    }
    if found.f_files != 0 && found.f_favail < FREE_INODES_MIN {
        findings.error("disk_no_inodes", format!("{} inodes are free for {shown}", found.f_favail), "remove files there");
    }
}

fn spool(shown: &str, dir: &Path, agent: &Agent, now: Wall, findings: &mut Findings) {
    let path = dir.join("spool");
    let read = match Spool::open(&path).and_then(|spool| spool.read()) {
        Ok(read) => read,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) => {
            let finding = format!("the spool in {shown} cannot be used: {error}");
            return findings.error("spool_unusable", finding, format!("chown root {0}; chmod 700 {0}", path.display()));
        }
    };
    let rejected = read.iter().filter(|spooled| spooled.is_err()).count();
    if 0 < rejected {
        let finding = format!("{rejected} spooled files hold no call");
        findings.warning("spool_rejected", finding, "the agent's log names them when it removes them; find out who wrote them");
    }
    let waits = read.iter().flatten().map(|spooled| now.0.saturating_sub(spooled.at.0)).max();
    let count = read.iter().flatten().count();
    match waits {
        Some(waits_ms) if agent.status.is_none() || WAITS_MAX_MS < waits_ms => {
            let finding = format!("{count} calls of scheduler hooks wait, the oldest for {}", Nanos::from_millis(waits_ms));
            findings.warning("spool_backlog", finding, "start the agent: it takes them by itself; journalctl -u meterd if it runs");
        }
        _ => {}
    }
}

fn balances(dir: &Path, agent: &Agent, findings: &mut Findings) {
    let path = dir.join("authority.db");
    // Held by another process: an agent that started meanwhile, such as by the doctor's own call on systemd's socket.
    if path.exists()
        && let Err(error) = store::look(&path, writing(agent))
        && !matches!(error, StoreError::Blocked(_))
    {
        let finding = format!("the balances cannot be read: {error}");
        findings.error("authority_damaged", finding, "end the agent, keep a copy of the file, and put the last backup in its place");
    }
}

fn writing(agent: &Agent) -> crate::sqlite::Writing {
    if agent.writer.is_some() { crate::sqlite::Writing::Goes } else { crate::sqlite::Writing::Rests }
}

/// The last checkpoint and what follows: all that a start reads.
fn the_journal(dir: &Path, agent: &Agent, now: Wall, findings: &mut Findings) {
    if let Some(folder) = journal::list_aside(dir).last() {
        let finding = format!("a damaged journal was set aside in {}", folder.display());
        findings.warning("journal_set_aside", finding, Alarm::JournalSetAside.hint());
    }
    let (recovered, newest) = match journal::look(dir, writing(agent)) {
        Ok(found) => found,
        Err(JournalError::Absent(_)) => {
            return findings.advice(
                "journal_absent",
                format!("there is no journal in {}", dir.display()),
                "the agent makes one when it first starts",
            );
        }
        Err(error @ JournalError::Damaged(_)) => {
            let remedy =
                "start the agent: it sets the journal aside, and begins a new one with what verifies of it; dmesg if the disk fails";
            return findings.error("journal_damaged", error.to_string(), remedy);
        }
        Err(error) => return findings.error("journal_unreadable", error.to_string(), "run it as root; dmesg if the disk fails"),
    };
    if let Some(newest) = newest.filter(|newest| now.0.saturating_add(AHEAD_MAX_MS) < newest.0) {
        let finding = format!("the newest fact is of {}, and the clock says {}: it was stepped back", rfc3339(newest), rfc3339(now));
        findings.warning(
            "clock_stepped_back",
            finding,
            "set the clock; charges go by a clock that is not stepped, dates on receipts do not",
        );
    }
    match daemon::recover(&recovered) {
        Ok(state) if agent.writer.is_none() && agent.status.is_none() => frozen(&state, findings),
        Ok(_) => {}
        Err(error) => {
            findings.error("journal_newer", error.to_string(), "install the version that wrote it: an older one does not start on it");
        }
    }
}

/// What an agent that is not there has left frozen.
fn frozen(state: &State, findings: &mut Findings) {
    let layout = Layout::detect().ok();
    let boot = clock::boot_id().ok();
    let left = state.jobs.values().filter(|job| job.is_live() && job.frozen_by == Some(FrozenBy::Agent));
    let left: Vec<&Job> = left.filter(|job| boot.is_none_or(|boot| boot == job.boot) && stands_still(layout.as_ref(), job)).collect();
    if let Some(first) = left.first() {
        let finding = format!("{} jobs are frozen, {} first, and no agent runs that would let them go on", left.len(), first.name);
        findings.warning("frozen_without_agent", finding, "start the agent, or meterctl thaw --all");
    }
}

/// As the kernel says, where it can be asked; else as the journal says.
fn stands_still(layout: Option<&Layout>, job: &Job) -> bool {
    let (Some(layout), Target::Cgroups(dirs) | Target::OwnCgroups(dirs)) = (layout, &job.target) else { return true };
    let open: Vec<_> = dirs.iter().filter_map(|dir| cgroup_dir::open(layout, dir).ok()).collect();
    !open.is_empty() && open.iter().all(|dir| dir.events().map_or(true, |events| events.frozen != Some(Frozen::No)))
}
