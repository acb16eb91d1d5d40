//! One directory of one job, and what was last read of it.

use std::path::PathBuf;

use super::files::{Files, Opened, Slot};
use crate::domain::act::CgroupDir;
use crate::domain::id::Attempt;
use crate::domain::meter::{Frozen, Populated};
use crate::domain::meter::{Missing, Reading, Tail};
use crate::node::cgroup_dir::{self, Events, OpenDir, OpenError, field, missing_for, number, parse_events};
use crate::node::descriptors::Place;
use crate::node::freezer;
use crate::node::layout::{Controller, Hierarchy, Layout};

/// A job's directory. What each look needs stands first, in a few lines of cache.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Watched {
    cpu: Slot,
    memory: Slot,
    /// CPU time at the last reading, in nanoseconds. Kept when the directory is gone.
    pub(super) cpu_ns: Option<u64>,
    /// CPU time at the parent's last look.
    pub(super) cpu_at_look_ns: Option<u64>,
    pub(super) hierarchy: Hierarchy,
    /// What `cgroup.events` said, where somebody tells of its changes.
    told: Told,
    /// Gone since the parent's last look: its tail is still to be told.
    pub(super) tail_open: TailOpen,
    state: State,
    pub(super) attempt: Attempt,
    pub(super) dir: CgroupDir,
    /// What it is called in `/proc/<pid>/cgroup`.
    pub(super) name: PathBuf,
    events: Slot,
    freezer: Slot,
    stat: Slot,
    /// The v1 memory directory at the same relative path, where the job named only this cgroup2 one.
    twin: Option<CgroupDir>,
    /// Told at this look; taken by the sample.
    pub(super) tail: Option<Tail>,
}

#[derive(Debug)]
enum State {
    /// It is there, and kept open.
    Kept {
        open: OpenDir,
        _place: Place,
    },
    /// It is there; for want of room it is opened anew, by its path and inode, where one of its files is not kept open.
    Named,
    Gone(Missing),
}

impl State {
    fn open<'d>(&'d self, layout: &Layout, dir: &CgroupDir) -> Result<Opened<'d>, Missing> {
        match self {
            State::Kept { open, .. } => Ok(Opened::Kept(open)),
            State::Named => cgroup_dir::open(layout, dir).map(Opened::Once).map_err(Missing::from),
            State::Gone(why) => Err(why.clone()),
        }
    }
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
    /// `opened` is kept open, if there is room.
    pub(super) fn new(
        attempt: Attempt,
        dir: CgroupDir,
        name: PathBuf,
        hierarchy: Hierarchy,
        opened: Result<OpenDir, Missing>,
        files: &Files,
    ) -> Watched {
        let state = match opened {
            Ok(open) => files.room.take().map_or(State::Named, |place| State::Kept { open, _place: place }),
            Err(why) => State::Gone(why),
        };
        Watched {
            cpu: Slot::default(),
            memory: Slot::default(),
            cpu_ns: None,
            cpu_at_look_ns: None,
            hierarchy,
            told: Told::No,
            tail_open: TailOpen::No,
            state,
            attempt,
            dir,
            name,
            events: Slot::default(),
            freezer: Slot::default(),
            stat: Slot::default(),
            twin: None,
            tail: None,
        }
    }

    /// A little of each line of cache that a look needs.
    pub(super) fn a_word_of_each_line(&self) -> u64 {
        self.cpu_ns.unwrap_or(0).wrapping_add(u64::from(self.is_live()))
    }

    /// Is it there, as far as is known?
    pub(super) const fn is_live(&self) -> bool {
        matches!(self.state, State::Kept { .. } | State::Named)
    }

    /// The directory, open.
    ///
    /// # Errors
    /// Why it cannot be opened: it is gone, or another one has its name.
    pub(super) fn open(&self, layout: &Layout) -> Result<Opened<'_>, Missing> {
        self.state.open(layout, &self.dir)
    }

    /// The same, by one step where the directory above it is open.
    pub(super) fn open_below(&self, above: Option<(&OpenDir, &str)>, layout: &Layout) -> Result<Opened<'_>, Missing> {
        let above = above.filter(|_| matches!(self.state, State::Named));
        match above.map(|(above, name)| cgroup_dir::open_below(above, name, &self.dir)) {
            Some(Ok(found)) => Ok(Opened::Once(found)),
            Some(Err(_)) | None => self.open(layout),
        }
    }

    /// Gives the directory's own descriptor up, for something that is worth more; its files stay open. Did it have one?
    pub(super) fn close_directory(&mut self) -> bool {
        let kept = matches!(self.state, State::Kept { .. });
        if kept {
            self.state = State::Named;
        }
        kept
    }

    /// CPU time: `cpu.stat` `usage_usec` (cgroup2, microseconds) or `cpuacct.usage` (v1, nanoseconds).
    pub(super) fn read_cpu(&mut self, layout: &Layout, files: &mut Files) -> Reading<u64> {
        if let State::Gone(why) = &self.state {
            return Reading::Missing(why.clone());
        }
        match cpu_ns_of(self.hierarchy, &mut self.cpu, files, || self.state.open(layout, &self.dir)) {
            Ok(value) => {
                self.cpu_ns = Some(value);
                Reading::Seen(value)
            }
            Err(why) => Reading::Missing(self.note(why, layout, files)),
        }
    }

    /// Memory charged now: `memory.current` (cgroup2) or `memory.usage_in_bytes` (v1; the same kernel counter).
    pub(super) fn read_memory(&mut self, layout: &Layout, files: &mut Files) -> Reading<u64> {
        if let State::Gone(why) = &self.state {
            return Reading::Missing(why.clone());
        }
        let own = || self.state.open(layout, &self.dir);
        let read = match (self.hierarchy, &layout.v1_memory) {
            (Hierarchy::V2, None) => files.read(&mut self.memory, "memory.current", own).map(number),
            (Hierarchy::V2, Some(_)) => {
                if self.twin.is_none() {
                    self.twin = find_twin(layout, &self.dir.path);
                }
                match &self.twin {
                    Some(twin) => {
                        let open = || cgroup_dir::open(layout, twin).map(Opened::Once).map_err(Missing::from);
                        files.read(&mut self.memory, "memory.usage_in_bytes", open).map(number)
                    }
                    None => Err(Missing::NotSupported),
                }
            }
            (v1, _) if v1.has(Controller::Memory) => files.read(&mut self.memory, "memory.usage_in_bytes", own).map(number),
            (Hierarchy::V1(_), _) => Err(Missing::NotSupported),
        };
        match read.and_then(|value| value.ok_or(Missing::Malformed)) {
            Ok(bytes) => Reading::Seen(bytes),
            // The twin may go before this directory does.
            Err(Missing::Vanished | Missing::Replaced) if self.twin.is_some() => {
                files.release(&mut self.memory);
                self.twin = None;
                Reading::Missing(Missing::Vanished)
            }
            Err(why) => Reading::Missing(self.note(why, layout, files)),
        }
    }

    /// Anonymous memory now: for a job whose card prices it.
    pub(super) fn read_anon(&mut self, layout: &Layout, files: &mut Files) -> Reading<u64> {
        if let State::Gone(why) = &self.state {
            return Reading::Missing(why.clone());
        }
        let read = files.read(&mut self.stat, "memory.stat", || self.state.open(layout, &self.dir));
        match read.map(|text| anon_of(self.hierarchy, text)).and_then(|value| value.ok_or(Missing::Malformed)) {
            Ok(bytes) => Reading::Seen(bytes),
            Err(why) => Reading::Missing(self.note(why, layout, files)),
        }
    }

    /// `cgroup.events`; v1 has none.
    pub(super) fn read_events(&mut self, layout: &Layout, files: &mut Files) -> Reading<Events> {
        if let State::Gone(why) = &self.state {
            return Reading::Missing(why.clone());
        }
        if self.hierarchy != Hierarchy::V2 {
            return Reading::Missing(Missing::NotSupported);
        }
        if let Told::Read(events) = self.told {
            return Reading::Seen(events);
        }
        let open = || self.state.open(layout, &self.dir);
        // What is seldom read need not be kept.
        let read = match self.told {
            Told::No => files.read(&mut self.events, "cgroup.events", open).map(parse_events),
            _ => files.read_once("cgroup.events", open).map(parse_events),
        };
        match read.and_then(|events| events.ok_or(Missing::Malformed)) {
            Ok(events) => {
                if self.told != Told::No {
                    self.told = Told::Read(events);
                }
                Reading::Seen(events)
            }
            Err(why) => Reading::Missing(self.note(why, layout, files)),
        }
    }

    /// Is it frozen, as `freezer.state` says? For a directory of the v1 freezer.
    pub(super) fn read_freezer(&mut self, layout: &Layout, files: &mut Files) -> Reading<Frozen> {
        if let State::Gone(why) = &self.state {
            return Reading::Missing(why.clone());
        }
        let read = files.read(&mut self.freezer, "freezer.state", || self.state.open(layout, &self.dir)).map(freezer::parse_state);
        match read.and_then(|state| state.ok_or(Missing::Malformed)) {
            Ok(state) => Reading::Seen(state),
            Err(why) => Reading::Missing(self.note(why, layout, files)),
        }
    }

    /// Has it tasks, as `cgroup.procs` of it and of what is below it says? For v1, which has no `cgroup.events`. The file is opened for each
    /// look: a descriptor of it that is read again within a second tells what it told before (`cgroup_pidlist_start` in cgroup-v1.c).
    pub(super) fn read_procs(&mut self, layout: &Layout, files: &mut Files) -> Reading<Populated> {
        if let State::Gone(why) = &self.state {
            return Reading::Missing(why.clone());
        }
        let open = || self.state.open(layout, &self.dir);
        let here = files.read_once("cgroup.procs", open).map(|text| !text.is_empty());
        let below = match here {
            Ok(false) => open().and_then(|dir| dir.holds_process().map_err(missing_for)),
            here => here,
        };
        match below {
            Ok(true) => Reading::Seen(Populated::Yes),
            Ok(false) => Reading::Seen(Populated::No),
            Err(why) => Reading::Missing(self.note(why, layout, files)),
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
        for slot in [&mut self.cpu, &mut self.events, &mut self.freezer, &mut self.memory, &mut self.stat] {
            files.release(slot);
        }
        self.twin = None;
    }

    /// A directory that is gone stays so: whatever bears its name later is another one.
    fn note(&mut self, why: Missing, layout: &Layout, files: &mut Files) -> Missing {
        // A descriptor that is kept tells only that its directory is gone; who bears the name now is told by the name.
        let is_taken = || matches!(cgroup_dir::open(layout, &self.dir), Err(OpenError::Replaced));
        let why = if why == Missing::Vanished && is_taken() { Missing::Replaced } else { why };
        if matches!(why, Missing::Vanished | Missing::Replaced) {
            self.release(files);
            self.state = State::Gone(why.clone());
            self.tail_open = TailOpen::Yes;
            files.note_vanished();
        }
        why
    }
}

/// CPU time of a directory, in nanoseconds: `cpu.stat` `usage_usec` (cgroup2) or `cpuacct.usage` (v1).
pub(super) fn cpu_ns_of<'d>(
    hierarchy: Hierarchy,
    slot: &mut Slot,
    files: &mut Files,
    dir: impl FnOnce() -> Result<Opened<'d>, Missing>,
) -> Result<u64, Missing> {
    let read = match hierarchy {
        Hierarchy::V2 => files.read(slot, "cpu.stat", dir).map(cpu_stat_ns),
        v1 if v1.has(Controller::Cpuacct) => files.read(slot, "cpuacct.usage", dir).map(number),
        Hierarchy::V1(_) => Err(Missing::NotSupported),
    };
    read?.ok_or(Missing::Malformed)
}

/// `usage_usec` of a `cpu.stat` text, in nanoseconds.
fn cpu_stat_ns(text: &[u8]) -> Option<u64> {
    field(text, b"usage_usec")?.checked_mul(1_000)
}

/// `anon` of cgroup2's `memory.stat`; in v1 `total_rss`, which counts what is below too.
pub(super) fn anon_of(hierarchy: Hierarchy, text: &[u8]) -> Option<u64> {
    field(text, if hierarchy == Hierarchy::V2 { b"anon" } else { b"total_rss" })
}

fn find_twin(layout: &Layout, path: &str) -> Option<CgroupDir> {
    let place = layout.classify(path.as_ref()).ok()?;
    let twin = layout.v1_memory.as_ref()?.join(place.relative);
    // Not named by the caller, so it has no inode to hold it against: it is taken as it is now.
    cgroup_dir::inode_of(layout, &twin).ok()
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
