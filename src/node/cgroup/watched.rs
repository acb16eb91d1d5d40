//! One directory of one job, and what was last read of it.

use std::path::PathBuf;

use super::files::{Files, Slot};
use crate::domain::act::CgroupDir;
use crate::domain::id::Attempt;
use crate::domain::meter::{Frozen, Populated};
use crate::domain::meter::{Missing, Reading, Tail};
use crate::node::cgroup_dir::{self, Events, OpenDir, field, missing_for, number, parse_events};
use crate::node::freezer;
use crate::node::layout::{Controller, Hierarchy, Layout};

/// A job's directory.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) attempt: Attempt,
    pub(super) dir: CgroupDir,
    /// What it is called in `/proc/<pid>/cgroup`.
    pub(super) name: PathBuf,
    pub(super) hierarchy: Hierarchy,
    state: State,
    cpu: Slot,
    events: Slot,
    freezer: Slot,
    procs: Slot,
    memory: Slot,
    /// What `cgroup.events` said, where somebody tells of its changes.
    told: Told,
    /// The v1 memory directory at the same relative path, where the job named only this cgroup2 one.
    twin: Option<OpenDir>,
    /// CPU time at the last reading, in nanoseconds. Kept when the directory is gone.
    pub(super) cpu_ns: Option<u64>,
    /// CPU time at the parent's last look.
    pub(super) cpu_at_look_ns: Option<u64>,
    /// Gone since the parent's last look: its tail is still to be told.
    pub(super) tail_open: TailOpen,
    /// Told at this look; taken by the sample.
    pub(super) tail: Option<Tail>,
}

#[derive(Debug)]
enum State {
    Live(OpenDir),
    Gone(Missing),
}

/// Does somebody tell of changes of `cgroup.events`?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Nobody: it is read at each look.
    No,
    /// Somebody; it has to be read.
    Unread,
    /// Somebody; since this was read nothing was told.
    Read(Events),
}

/// Is a vanished directory's tail still to be told?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TailOpen {
    Yes,
    No,
}

impl Watched {
    pub(super) fn new(attempt: Attempt, dir: CgroupDir, name: PathBuf, hierarchy: Hierarchy, opened: Result<OpenDir, Missing>) -> Watched {
        Watched {
            attempt,
            dir,
            name,
            hierarchy,
            state: opened.map_or_else(State::Gone, State::Live),
            cpu: Slot::default(),
            events: Slot::default(),
            freezer: Slot::default(),
            procs: Slot::default(),
            memory: Slot::default(),
            told: Told::No,
            twin: None,
            cpu_ns: None,
            cpu_at_look_ns: None,
            tail_open: TailOpen::No,
            tail: None,
        }
    }

    /// Its descriptor, while it is there.
    pub(super) const fn live(&self) -> Option<&OpenDir> {
        match &self.state {
            State::Live(open) => Some(open),
            State::Gone(_) => None,
        }
    }

    /// CPU time: `cpu.stat` `usage_usec` (cgroup2, microseconds) or `cpuacct.usage` (v1, nanoseconds).
    pub(super) fn read_cpu(&mut self, files: &mut Files) -> Reading<u64> {
        let dir = match &self.state {
            State::Live(dir) => dir,
            State::Gone(why) => return Reading::Missing(why.clone()),
        };
        match cpu_ns_of(dir, &mut self.cpu, files) {
            Ok(value) => {
                self.cpu_ns = Some(value);
                Reading::Seen(value)
            }
            Err(why) => Reading::Missing(self.note(why, files)),
        }
    }

    /// Memory charged now: `memory.current` (cgroup2) or `memory.usage_in_bytes` (v1; the same kernel counter).
    pub(super) fn read_memory(&mut self, layout: &Layout, files: &mut Files) -> Reading<u64> {
        let dir = match &self.state {
            State::Live(dir) => dir,
            State::Gone(why) => return Reading::Missing(why.clone()),
        };
        let read = match (self.hierarchy, &layout.v1_memory) {
            (Hierarchy::V2, None) => files.read(dir, "memory.current", &mut self.memory).map(number),
            (Hierarchy::V2, Some(_)) => {
                if self.twin.is_none() {
                    self.twin = open_twin(layout, &self.dir.path);
                }
                match &self.twin {
                    Some(twin) => files.read(twin, "memory.usage_in_bytes", &mut self.memory).map(number),
                    None => Err(Missing::NotSupported),
                }
            }
            (v1, _) if v1.has(Controller::Memory) => files.read(dir, "memory.usage_in_bytes", &mut self.memory).map(number),
            (Hierarchy::V1(_), _) => Err(Missing::NotSupported),
        };
        match read.and_then(|value| value.ok_or(Missing::Malformed)) {
            Ok(bytes) => Reading::Seen(bytes),
            // The twin may go before this directory does.
            Err(Missing::Vanished) if self.twin.is_some() => {
                files.release(&mut self.memory);
                self.twin = None;
                Reading::Missing(Missing::Vanished)
            }
            Err(why) => Reading::Missing(self.note(why, files)),
        }
    }

    /// `cgroup.events`; v1 has none.
    pub(super) fn read_events(&mut self, files: &mut Files) -> Reading<Events> {
        let dir = match &self.state {
            State::Live(dir) => dir,
            State::Gone(why) => return Reading::Missing(why.clone()),
        };
        if self.hierarchy != Hierarchy::V2 {
            return Reading::Missing(Missing::NotSupported);
        }
        if let Told::Read(events) = self.told {
            return Reading::Seen(events);
        }
        // What is seldom read need not be kept.
        let read = match self.told {
            Told::No => files.read(dir, "cgroup.events", &mut self.events).map(parse_events),
            _ => files.read_once(dir, "cgroup.events").map(parse_events),
        };
        match read.and_then(|events| events.ok_or(Missing::Malformed)) {
            Ok(events) => {
                if self.told != Told::No {
                    self.told = Told::Read(events);
                }
                Reading::Seen(events)
            }
            Err(why) => Reading::Missing(self.note(why, files)),
        }
    }

    /// Is it frozen, as `freezer.state` says? For a directory of the v1 freezer.
    pub(super) fn read_freezer(&mut self, files: &mut Files) -> Reading<Frozen> {
        let dir = match &self.state {
            State::Live(dir) => dir,
            State::Gone(why) => return Reading::Missing(why.clone()),
        };
        let read = files.read(dir, "freezer.state", &mut self.freezer).map(freezer::parse_state);
        match read.and_then(|state| state.ok_or(Missing::Malformed)) {
            Ok(state) => Reading::Seen(state),
            Err(why) => Reading::Missing(self.note(why, files)),
        }
    }

    /// Has it tasks, as `cgroup.procs` of it and of what is below it says? For v1, which has no `cgroup.events`.
    pub(super) fn read_procs(&mut self, files: &mut Files) -> Reading<Populated> {
        let dir = match &self.state {
            State::Live(dir) => dir,
            State::Gone(why) => return Reading::Missing(why.clone()),
        };
        let here = files.read(dir, "cgroup.procs", &mut self.procs).map(|text| !text.is_empty());
        let below = match here {
            Ok(false) => dir.holds_process().map_err(missing_for),
            here => here,
        };
        match below {
            Ok(true) => Reading::Seen(Populated::Yes),
            Ok(false) => Reading::Seen(Populated::No),
            Err(why) => Reading::Missing(self.note(why, files)),
        }
    }

    /// Somebody tells of changes from now on.
    pub(super) fn events_are_told(&mut self) {
        self.told = Told::Unread;
    }

    /// They have changed.
    pub(super) fn forget_events(&mut self) {
        if self.told != Told::No {
            self.told = Told::Unread;
        }
    }

    /// Closes everything.
    pub(super) fn release(&mut self, files: &mut Files) {
        for slot in [&mut self.cpu, &mut self.events, &mut self.freezer, &mut self.procs, &mut self.memory] {
            files.release(slot);
        }
        self.twin = None;
    }

    /// A directory that is gone stays so: the kept descriptor never shows another one of its name.
    fn note(&mut self, why: Missing, files: &mut Files) -> Missing {
        if why == Missing::Vanished {
            self.release(files);
            self.state = State::Gone(Missing::Vanished);
            self.tail_open = TailOpen::Yes;
            files.note_vanished();
        }
        why
    }
}

/// CPU time of an open directory, in nanoseconds: `cpu.stat` `usage_usec` (cgroup2) or `cpuacct.usage` (v1).
pub(super) fn cpu_ns_of(dir: &OpenDir, slot: &mut Slot, files: &mut Files) -> Result<u64, Missing> {
    let read = match dir.hierarchy {
        Hierarchy::V2 => files.read(dir, "cpu.stat", slot).map(cpu_stat_ns),
        v1 if v1.has(Controller::Cpuacct) => files.read(dir, "cpuacct.usage", slot).map(number),
        Hierarchy::V1(_) => Err(Missing::NotSupported),
    };
    read?.ok_or(Missing::Malformed)
}

/// `usage_usec` of a `cpu.stat` text, in nanoseconds.
fn cpu_stat_ns(text: &[u8]) -> Option<u64> {
    field(text, b"usage_usec")?.checked_mul(1_000)
}

fn open_twin(layout: &Layout, path: &str) -> Option<OpenDir> {
    let place = layout.classify(path.as_ref()).ok()?;
    let twin = layout.v1_memory.as_ref()?.join(place.relative);
    // Not named by the caller, so it has no inode to hold it against: it is taken as it is now, and kept.
    let dir = cgroup_dir::inode_of(layout, &twin).ok()?;
    cgroup_dir::open(layout, &dir).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_in_microseconds_and_told_in_nanoseconds() {
        assert_eq!(cpu_stat_ns(b"usage_usec 7045\nuser_usec 1\nsystem_usec 2\n"), Some(7_045_000));
        assert_eq!(cpu_stat_ns(b"user_usec 1\n"), None);
        assert_eq!(cpu_stat_ns(format!("usage_usec {}\n", u64::MAX).as_bytes()), None, "too large is malformed, not wrapped");
    }
}
