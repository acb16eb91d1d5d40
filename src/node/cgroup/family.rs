//! The parent of watched directories: read first, so that its children's readings are cheap, and asked what vanished ones used.
//!
//! A removed cgroup's CPU time stays in its parent's counter. So between two looks, what the parent grew by more than its children did is
//! the vanished ones' tail: from the parent's reading at the *end* of the first look to the one at the *beginning* of the second, so that
//! a sibling's work during a look is never taken for the tail. The tail lacks at most what was used within those two looks
//! (milliseconds); it never holds what another one used, unless a cgroup was both made and removed beside them between the looks.

use std::collections::BTreeSet;

use rustix::fs::{Mode, OFlags, openat};

use super::dirs::{Dirs, Key};
use super::files::{Files, Opened, Slot};
use super::watched::{TailOpen, Watched, cpu_ns_of};
use crate::domain::act::CgroupDir;
use crate::domain::meter::vanished_tails;
use crate::node::cgroup_dir::OpenDir;
use crate::node::descriptors::Place;
use crate::node::layout::Hierarchy;

/// A directory that holds watched ones.
#[derive(Debug)]
pub(super) struct Family {
    parent: Option<(OpenDir, Place)>,
    stat: Slot,
    procs: Slot,
    pub(super) keys: BTreeSet<Key>,
    /// The parent's CPU time at the end of the last look, in nanoseconds, if every child was watched and read then, and the parent had no processes
    /// of its own.
    settled_ns: Option<u64>,
}

/// A directory that holds watched ones. Below a mount that is trusted, from a path that was classified. It may be the mount itself.
pub(super) fn open(path: &str, hierarchy: Hierarchy) -> Option<OpenDir> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat(rustix::fs::CWD, path, flags, Mode::empty()).ok()?;
    Some(OpenDir { dir: CgroupDir { path: path.to_owned(), inode: 0 }, hierarchy, fd })
}

impl Family {
    /// Without room for the parent's descriptor no tail is told.
    pub(super) fn new(parent: &str, hierarchy: Hierarchy, files: &Files) -> Family {
        let parent = files.room.take().zip(open(parent, hierarchy)).map(|(place, open)| (open, place));
        Family { parent, stat: Slot::default(), procs: Slot::default(), keys: BTreeSet::new(), settled_ns: None }
    }

    /// The parent's CPU time, in nanoseconds. Reading it makes the kernel add up the whole subtree in one pass (`css_rstat_flush`); else each
    /// dirty child's reading walks the list of its dirty siblings.
    pub(super) fn read(&mut self, files: &mut Files) -> Option<u64> {
        let (parent, _) = self.parent.as_ref()?;
        cpu_ns_of(parent.hierarchy, &mut self.stat, files, || Ok(Opened::Kept(parent))).ok()
    }

    /// Ends a look at which every child was read: tells the tails of those that vanished since the last one, and takes the new baseline.
    /// `begun_ns` is the parent's CPU time at the beginning of this look.
    pub(super) fn settle(&mut self, begun_ns: Option<u64>, dirs: &mut Dirs, files: &mut Files) {
        let (mut read_count, mut vanished) = (0, Vec::new());
        for key in &self.keys {
            let Some(dir) = dirs.get(*key) else { continue };
            read_count += usize::from(dir.is_live() && dir.cpu_ns.is_some());
            if dir.tail_open == TailOpen::Yes {
                vanished.push(*key);
            }
        }
        let whole = self.are_all_children(read_count, files);
        if let (true, Some(before_ns), Some(begun_ns), false) = (whole, self.settled_ns, begun_ns, vanished.is_empty()) {
            let read_delta_ns: u64 = self.keys.iter().filter_map(|key| dirs.get(*key)).map(delta_ns).sum();
            let tails = vanished_tails(begun_ns.saturating_sub(before_ns), read_delta_ns, vanished.len());
            for (key, tail) in vanished.iter().zip(tails) {
                if let Some(dir) = dirs.get_mut(*key) {
                    dir.tail = Some(tail);
                }
            }
        }
        for key in &self.keys {
            if let Some(dir) = dirs.get_mut(*key) {
                dir.tail_open = TailOpen::No;
                dir.cpu_at_look_ns = dir.cpu_ns;
            }
        }
        let end_ns = self.read(files);
        self.settled_ns = end_ns.filter(|_| whole);
    }

    /// Are these all the parent's children, and has it no processes of its own? Each of those that were read is a child; so where there are
    /// as many children, they are all.
    fn are_all_children(&mut self, read_count: usize, files: &mut Files) -> bool {
        let Some((parent, _)) = &self.parent else { return false };
        let no_processes = files.read(&mut self.procs, "cgroup.procs", || Ok(Opened::Kept(parent))).is_ok_and(<[u8]>::is_empty);
        no_processes && parent.child_count().is_ok_and(|children| children == read_count)
    }

    /// A child is watched no more. If it was not known to be gone, what it goes on to use is nobody's tail.
    pub(super) fn leave(&mut self, key: Key, dir: &Watched) {
        self.keys.remove(&key);
        if dir.is_live() || dir.tail_open == TailOpen::Yes {
            self.settled_ns = None;
        }
    }

    /// Closes everything.
    pub(super) fn release(&mut self, files: &mut Files) {
        files.release(&mut self.stat);
        files.release(&mut self.procs);
    }
}

/// What a child used since the last look, as far as it was read. One that was not there at the last look began at zero.
fn delta_ns(dir: &Watched) -> u64 {
    dir.cpu_ns.unwrap_or(0).saturating_sub(dir.cpu_at_look_ns.unwrap_or(0))
}
