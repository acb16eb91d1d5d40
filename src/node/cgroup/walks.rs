//! Which directories are walked at a look at all jobs, and what the last walk told of each watched one.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::path::Path;

use super::dirs::Key;
use super::files::Files;
use super::walk::Walker;
use crate::domain::time::Mono;
use crate::node::cgroup_dir::OpenDir;
use crate::node::descriptors::Place;
use crate::node::layout::{Controller, Hierarchy, Layout};

/// Fewer are as quickly read by their files.
const CHILDREN_MIN: usize = 16;
/// A walk that meets more than so many cgroups for each that is watched is not worth it …
const STRANGERS_MAX: usize = 4;
/// … and not tried again for so many looks; nor is one that failed.
const REST_LOOKS: u32 = 60;
/// A walk is held against one cgroup's files at first, and each so many looks.
const CHECK_LOOKS: u32 = 600;
/// What the files may tell more by: what the job used since, on a thread that had to wait.
const LATER_CPU_NS: u64 = 1_000_000_000;
/// Its memory may have changed by so much since, and by a quarter.
const LATER_MEMORY_BYTES: u64 = 64 << 20;
/// So often in a row they may differ: then this kernel is not understood, and walks are given up.
const WRONG_MAX: u8 = 3;

/// The directories above watched ones.
#[derive(Debug, Default)]
pub(super) struct Walks {
    walker: Option<Walker>,
    /// Why files are read for now, or for good.
    failed: Option<String>,
    /// Walked directories of which one is to be held against its files, and that one.
    to_check: Vec<(String, Key)>,
    roots: BTreeMap<String, Root>,
    /// By key: what was told last, and at which look.
    told: Vec<Told>,
    look: u32,
    /// When the walks of this look were over.
    pub(super) at: Mono,
}

#[derive(Debug)]
struct Root {
    open: Option<(OpenDir, [Place; 2])>,
    hierarchy: Hierarchy,
    children: HashMap<u64, Key>,
    /// What the last walk met, in order, and which of it is watched: nearly always it is the same again.
    met: Vec<(u64, Option<Key>)>,
    rests: u32,
    /// Looks until the next check, and how often the last ones found a difference.
    check_in: u32,
    wrong: u8,
}

#[derive(Clone, Copy, Debug, Default)]
struct Told {
    look: u32,
    cpu_ns: Option<u64>,
    memory_bytes: Option<u64>,
}

impl Walks {
    /// From now on by walks.
    pub(super) fn by(&mut self, walker: Walker) {
        self.walker = Some(walker);
    }

    /// How it reads, for people; none where it was never to walk.
    pub(super) fn reads(&self) -> Option<String> {
        match (&self.failed, &self.walker) {
            (Some(why), _) => Some(format!("files ({why})")),
            (None, Some(_)) => Some("walk".to_owned()),
            (None, None) => None,
        }
    }

    /// A directory is watched.
    pub(super) fn enter(
        &mut self,
        parent: &str,
        hierarchy: Hierarchy,
        inode: u64,
        key: Key,
        open: impl FnOnce() -> Option<(OpenDir, [Place; 2])>,
    ) {
        if self.walker.is_none() || !(hierarchy == Hierarchy::V2 || hierarchy.has(Controller::Memory)) {
            return;
        }
        let begin = || Root { open: open(), hierarchy, children: HashMap::new(), met: Vec::new(), rests: 0, check_in: 0, wrong: 0 };
        let root = self.roots.entry(parent.to_owned()).or_insert_with(begin);
        root.children.insert(inode, key);
        root.met.clear();
    }

    /// It is watched no more.
    pub(super) fn leave(&mut self, parent: &str, inode: u64) {
        let Some(root) = self.roots.get_mut(parent) else { return };
        root.children.remove(&inode);
        root.met.clear();
        if root.children.is_empty() {
            self.roots.remove(parent);
            if let Some(walker) = &mut self.walker {
                walker.forget(parent);
            }
        }
    }

    /// Walks below every directory where that is worth it. What a walk does not tell is read from files.
    ///
    /// `flushed`: of these the kernel has just added up everything below (`cpu.stat` of the hierarchy's root does not make it do so).
    pub(super) fn walk(&mut self, layout: &Layout, flushed: &BTreeMap<String, Option<u64>>, clock: fn() -> Mono) {
        self.look = self.look.wrapping_add(1).max(1);
        let Walks { walker, roots, told, look, at, failed, to_check } = self;
        let Some(by) = walker else { return };
        for (path, root) in roots.iter_mut().filter(|(_, root)| CHILDREN_MIN <= root.children.len()) {
            let Some((open, _)) = &root.open else { continue };
            if 0 < root.rests {
                root.rests -= 1;
                continue;
            }
            let v2 = root.hierarchy == Hierarchy::V2;
            let is_mount = layout.v2.as_deref() == Some(Path::new(path));
            let tells_cpu = v2 && !is_mount && flushed.get(path).is_some_and(Option::is_some);
            let tells_memory = if v2 { layout.v1_memory.is_none() } else { true };
            if !tells_cpu && !tells_memory {
                continue;
            }
            let found = match by.walk(path, open.fd.as_fd()) {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(event = "cgroup_walk_failed", path, %error, "what is below is read by its files for now");
                    (root.rests, *failed) = (REST_LOOKS, Some(error.to_string()));
                    continue;
                }
            };
            *failed = None;
            let (mut count, mut first) = (0, None);
            for found in found {
                let known = root.met.get(count).filter(|(inode, _)| *inode == found.inode);
                let key = known.map_or_else(|| root.children.get(&found.inode).copied(), |(_, key)| *key);
                if known.is_none() {
                    root.met.truncate(count);
                    root.met.push((found.inode, key));
                }
                count += 1;
                let Some(key) = key else { continue };
                first.get_or_insert(key);
                if told.len() <= key {
                    told.resize(key + 1, Told::default());
                }
                let cpu_ns = tells_cpu.then_some(found.cpu_ns);
                told[key] = Told { look: *look, cpu_ns, memory_bytes: found.memory_bytes.filter(|_| tells_memory) };
            }
            if STRANGERS_MAX * root.children.len() < count {
                root.rests = REST_LOOKS;
            }
            match root.check_in.checked_sub(1) {
                Some(left) => root.check_in = left,
                None => to_check.extend(first.map(|key| (path.clone(), key))),
            }
        }
        *at = clock();
    }

    /// The directory above, where it is kept open for walks, and the name below it.
    pub(super) fn above<'p>(&self, path: &'p str) -> Option<(&OpenDir, &'p str)> {
        let (parent, name) = path.rsplit_once('/')?;
        Some((&self.roots.get(parent)?.open.as_ref()?.0, name))
    }

    /// Those that are to be held against their files now.
    pub(super) fn take_to_check(&mut self) -> Vec<(String, Key)> {
        std::mem::take(&mut self.to_check)
    }

    /// What the files of one say, read after the walk; none of what could not be read. A kernel whose walks say something else is not understood.
    pub(super) fn check(&mut self, path: &str, key: Key, cpu_ns: Option<u64>, memory_bytes: Option<u64>) {
        let both = |told: Option<u64>, file: Option<u64>| told.zip(file);
        let cpu = both(self.cpu_ns(key), cpu_ns).is_none_or(|(told, file)| told <= file && file - told <= LATER_CPU_NS);
        let near = |told: u64, file: u64| told.abs_diff(file) <= LATER_MEMORY_BYTES + told.max(file) / 4;
        let memory = both(self.memory_bytes(key), memory_bytes).is_none_or(|(told, file)| near(told, file));
        let Some(root) = self.roots.get_mut(path) else { return };
        if cpu && memory {
            (root.check_in, root.wrong) = (CHECK_LOOKS, 0);
            return;
        }
        root.wrong += 1;
        let wrong = root.wrong;
        self.forget(); // at this look too the files are read
        if WRONG_MAX <= wrong {
            tracing::warn!(event = "cgroup_walk_differs", path, "a walk tells something else than the files: from now on these are read");
            self.walker = None;
            self.failed = Some("a walk told something else".to_owned());
        }
    }

    /// What single jobs are looked at by is their files.
    pub(super) fn forget(&mut self) {
        self.look = self.look.wrapping_add(1).max(1);
    }

    /// CPU time that this look's walk told, in nanoseconds.
    pub(super) fn cpu_ns(&self, key: Key) -> Option<u64> {
        self.told.get(key).filter(|told| told.look == self.look)?.cpu_ns
    }

    /// Memory that this look's walk told, in bytes.
    pub(super) fn memory_bytes(&self, key: Key) -> Option<u64> {
        self.told.get(key).filter(|told| told.look == self.look)?.memory_bytes
    }
}

/// The places for a directory that is walked: one for its own descriptor, one for what the kernel keeps of the walk.
pub(super) fn places(files: &Files) -> Option<[Place; 2]> {
    Some([files.room.take()?, files.room.take()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One directory whose one child a walk told so much of.
    fn told(cpu_ns: u64, memory_bytes: u64) -> Walks {
        let told = Told { look: 1, cpu_ns: Some(cpu_ns), memory_bytes: Some(memory_bytes) };
        let root =
            Root { open: None, hierarchy: Hierarchy::V2, children: HashMap::new(), met: Vec::new(), rests: 0, check_in: 0, wrong: 0 };
        Walks { roots: [("/jobs".to_owned(), root)].into(), told: vec![told], look: 1, ..Walks::default() }
    }

    #[test]
    fn what_a_job_used_between_the_walk_and_its_files_is_no_difference() {
        for (cpu_ns, memory_bytes) in
            [(Some(5_000), Some(1 << 30)), (Some(5_000 + LATER_CPU_NS), Some((1 << 30) + LATER_MEMORY_BYTES)), (None, None)]
        {
            let mut walks = told(5_000, 1 << 30);
            walks.check("/jobs", 0, cpu_ns, memory_bytes);
            assert_eq!((walks.cpu_ns(0), walks.memory_bytes(0)), (Some(5_000), Some(1 << 30)));
            assert_eq!(walks.roots["/jobs"].check_in, CHECK_LOOKS);
        }
    }

    #[test]
    fn a_walk_that_tells_something_else_is_not_believed_and_given_up_at_the_third_time() {
        let differ = [(4_999, 1 << 30), (5_001 + LATER_CPU_NS, 1 << 30), (5_000, 1 << 20), (5_000, 1 << 32)];
        for (cpu_ns, memory_bytes) in differ {
            let mut walks = told(5_000, 1 << 30);
            for nth in 1..=3 {
                (walks.told[0].look, walks.look) = (1, 1);
                walks.check("/jobs", 0, Some(cpu_ns), Some(memory_bytes));
                assert_eq!(walks.cpu_ns(0), None, "the files are read at this look");
                assert_eq!(walks.reads().is_some(), nth == 3, "{cpu_ns} {memory_bytes}");
            }
        }
    }
}
