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
/// … and not tried again for so many looks.
const REST_LOOKS: u32 = 60;

/// The directories above watched ones.
#[derive(Debug, Default)]
pub(super) struct Walks {
    walker: Option<Walker>,
    /// Why it was given up.
    failed: Option<String>,
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

    /// Why walks were given up.
    pub(super) fn why_not(&self) -> Option<&str> {
        self.failed.as_deref()
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
        let begin = || Root { open: open(), hierarchy, children: HashMap::new(), met: Vec::new(), rests: 0 };
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
        let Walks { walker, roots, told, look, at, failed: given_up } = self;
        let Some(by) = walker else { return };
        let mut failed = None;
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
                    failed = Some(error);
                    break;
                }
            };
            let mut count = 0;
            for found in found {
                let known = root.met.get(count).filter(|(inode, _)| *inode == found.inode);
                let key = known.map_or_else(|| root.children.get(&found.inode).copied(), |(_, key)| *key);
                if known.is_none() {
                    root.met.truncate(count);
                    root.met.push((found.inode, key));
                }
                count += 1;
                let Some(key) = key else { continue };
                if told.len() <= key {
                    told.resize(key + 1, Told::default());
                }
                let cpu_ns = tells_cpu.then_some(found.cpu_ns);
                told[key] = Told { look: *look, cpu_ns, memory_bytes: found.memory_bytes.filter(|_| tells_memory) };
            }
            if STRANGERS_MAX * root.children.len() < count {
                root.rests = REST_LOOKS;
            }
        }
        *at = clock();
        if let Some(error) = failed {
            tracing::warn!(event = "cgroup_walk_failed", %error, "cgroups are read by their files from now on");
            *walker = None;
            *given_up = Some(error.to_string());
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
