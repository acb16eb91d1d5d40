//! How the tasks of a cgroup are stopped: by `cgroup.freeze` (cgroup2), by `freezer.state` (v1), or by signals where there is neither.
//!
//! In each hierarchy the directories that a job has there are the whole job, so one way is chosen for all of it: cgroup2 if it has a
//! directory there that can be frozen, else the v1 freezer, else SIGSTOP to every process. The last is poorer: the job and its parent can see
//! it, and its owner can send SIGCONT (the next look finds that, and stops it again). To refuse would be worse: an empty account's
//! jobs would run on.

use std::collections::BTreeSet;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use super::cgroup_dir::{self, OpenDir};
use super::layout::{Controller, Hierarchy, Layout};
use super::process_tree::{self, Life};
use crate::domain::meter::{Frozen, Missing, Reading};

/// Pidfds that are open at once while many processes are signalled.
const PIDFDS_MAX: usize = 256;

/// The way in which a job is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopper {
    /// `cgroup.freeze` of its cgroup2 directories.
    V2,
    /// `freezer.state` of its v1 directories.
    V1,
    /// SIGSTOP, SIGCONT and SIGKILL to every process in its directories of this hierarchy.
    Signals(Hierarchy),
}

impl Stopper {
    /// Is a directory of that hierarchy acted on in this way?
    #[must_use]
    pub fn acts_on(self, hierarchy: Hierarchy) -> bool {
        match self {
            Stopper::V2 => hierarchy == Hierarchy::V2,
            Stopper::V1 => hierarchy.has(Controller::Freezer),
            Stopper::Signals(by) => hierarchy == by,
        }
    }
}

/// Can it be frozen through cgroup2? A kernel before 5.2 has no such file; one that is gone is told by whoever writes to it.
#[must_use]
pub fn offers_freeze(layout: &Layout, dir: &OpenDir) -> bool {
    dir.hierarchy == Hierarchy::V2 && !layout.hides("cgroup.freeze") && (dir.file_exists("cgroup.freeze") || !dir.is_there())
}

/// The way for a job that has directories in these hierarchies; the flag says which can be frozen through cgroup2. `None` if it has none.
#[must_use]
pub fn stopper(dirs: impl Iterator<Item = (Hierarchy, bool)>) -> Option<Stopper> {
    let dirs: Vec<(Hierarchy, bool)> = dirs.collect();
    let mut v2 = dirs.iter().filter(|(hierarchy, _)| *hierarchy == Hierarchy::V2).peekable();
    if v2.peek().is_some() && v2.all(|(_, offers)| *offers) {
        return Some(Stopper::V2);
    }
    if dirs.iter().any(|(hierarchy, _)| hierarchy.has(Controller::Freezer)) {
        return Some(Stopper::V1);
    }
    // cgroup2 before the others: it tells by itself when it is empty.
    dirs.iter().map(|(hierarchy, _)| *hierarchy).min().map(Stopper::Signals)
}

/// The text of `freezer.state` (freezer-subsystem.rst). `FREEZING` is not frozen: a task still runs.
#[must_use]
pub fn parse_state(text: &[u8]) -> Option<Frozen> {
    match text.strip_suffix(b"\n").unwrap_or(text) {
        b"FROZEN" => Some(Frozen::Yes),
        b"FREEZING" | b"THAWED" => Some(Frozen::No),
        _ => None,
    }
}

/// `freezer.state` of an open directory, read anew.
///
/// # Errors
/// Why it is not known.
pub fn state(dir: &OpenDir) -> Result<Frozen, Missing> {
    let text = dir.file("freezer.state").and_then(cgroup_dir::read_all).map_err(cgroup_dir::missing_for)?;
    parse_state(&text).ok_or(Missing::Malformed)
}

/// Is every process in it and below it stopped by a signal? One without processes is not.
#[must_use]
pub fn is_stopped(dir: &OpenDir) -> Reading<Frozen> {
    let pids = match dir.processes_below() {
        Ok(pids) => pids,
        Err(errno) => return Reading::Missing(cgroup_dir::missing_for(errno)),
    };
    let mut stopped = Frozen::No;
    for pid in pids {
        match process_tree::life_of(pid) {
            Ok(Life::Stopped) => stopped = Frozen::Yes,
            Ok(Life::Running) => return Reading::Seen(Frozen::No),
            Ok(Life::Zombie) | Err(Missing::Vanished) => {}
            Err(why) => return Reading::Missing(why),
        }
    }
    Reading::Seen(stopped)
}

/// Thaws a v1 directory, so that signals that wait in it are delivered. One that is gone needs none.
///
/// # Errors
/// What the kernel said.
pub fn thaw_v1(dir: &OpenDir) -> Result<(), Errno> {
    match dir.write("freezer.state", "THAWED") {
        Err(Errno::NOENT | Errno::NODEV) => Ok(()),
        other => other,
    }
}

/// A signal to every process in a directory and below it. A pid is signalled through a descriptor that was opened before the pid was seen *again* in the
/// directory, so that one used anew by a stranger is never hit.
///
/// # Errors
/// `EPERM` if this process is in it; else what the kernel said.
pub fn signal_below(dir: &OpenDir, signal: Signal) -> Result<(), Errno> {
    signal_some(dir, |_| Some(signal))
}

/// The same, with a signal of its own for each process, or none.
///
/// # Errors
/// As [`signal_below`].
pub fn signal_some(dir: &OpenDir, wanted: impl Fn(u32) -> Option<Signal>) -> Result<(), Errno> {
    let gone = |result: Result<Vec<u32>, Errno>| match result {
        Err(Errno::NOENT | Errno::NODEV) => Ok(Vec::new()),
        other => other,
    };
    let pids = gone(dir.processes_below())?;
    if pids.contains(&std::process::id()) {
        return Err(Errno::PERM);
    }
    for some in pids.chunks(PIDFDS_MAX) {
        let mut handles = Vec::new();
        for pid in some {
            let Some(raw) = i32::try_from(*pid).ok().and_then(Pid::from_raw) else { continue };
            match pidfd_open(raw, PidfdFlags::empty()) {
                Ok(handle) => handles.push((raw, Some(handle))),
                Err(Errno::NOSYS) => handles.push((raw, None)), // before Linux 5.3
                Err(Errno::SRCH) => {}
                Err(errno) => return Err(errno),
            }
        }
        let still: BTreeSet<u32> = gone(dir.processes_below())?.into_iter().collect();
        for (raw, handle) in handles {
            let pid = u32::try_from(raw.as_raw_nonzero().get()).unwrap_or(0);
            let Some(signal) = wanted(pid).filter(|_| still.contains(&pid)) else { continue };
            match handle.map_or_else(|| kill_process(raw, signal), |handle| pidfd_send_signal(handle, signal)) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1_FREEZER: Hierarchy = Hierarchy::v1(Controller::Freezer);
    const V1_MEMORY: Hierarchy = Hierarchy::v1(Controller::Memory);

    #[test]
    fn freezing_is_not_frozen() {
        assert_eq!(parse_state(b"FROZEN\n"), Some(Frozen::Yes));
        assert_eq!(parse_state(b"FREEZING\n"), Some(Frozen::No));
        assert_eq!(parse_state(b"THAWED\n"), Some(Frozen::No));
        for bad in ["", "frozen\n", "FROZEN FROZEN\n", "1\n"] {
            assert_eq!(parse_state(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn cgroup2_freezes_before_the_v1_freezer_and_that_before_signals() {
        let by = |dirs: &[(Hierarchy, bool)]| stopper(dirs.iter().copied());
        assert_eq!(by(&[(V1_FREEZER, false), (Hierarchy::V2, true), (V1_MEMORY, false)]), Some(Stopper::V2));
        assert_eq!(by(&[(V1_FREEZER, false), (Hierarchy::V2, false)]), Some(Stopper::V1), "before Linux 5.2");
        assert_eq!(by(&[(V1_MEMORY, false), (V1_FREEZER, false)]), Some(Stopper::V1));
        assert_eq!(by(&[(V1_MEMORY, false), (Hierarchy::V2, false)]), Some(Stopper::Signals(Hierarchy::V2)));
        assert_eq!(by(&[(V1_MEMORY, false)]), Some(Stopper::Signals(V1_MEMORY)));
        assert_eq!(by(&[]), None);
    }
}
