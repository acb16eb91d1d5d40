//! Whose process is it? From a pid to the job whose cgroup, or process tree, holds it: for the processes that NVML lists.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use procfs::ProcessCGroups;
use procfs::process::Process;

use crate::domain::act::ProcessRoot;
use crate::domain::id::Attempt;
use crate::node::gpu::Owner;
use crate::node::slot::Slot;

/// Which line of `/proc/<pid>/cgroup` a path belongs to. On a hybrid machine the same path may be another job's in the other tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CgroupTree {
    /// cgroup v2: hierarchy 0.
    V2,
    /// The v1 hierarchy with the memory controller.
    V1Memory,
}

/// Which cgroups and which processes are whose. A whole table at a time; see [`Owners`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerTable {
    cgroups: BTreeMap<(CgroupTree, String), Attempt>,
    processes: BTreeMap<u32, (u64, Attempt)>,
}

/// A path that cannot be a job's: the root, which would own every process, or one that `/proc` never shows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the path of a job's cgroup: absolute in its tree, not the root, without '..'")]
pub struct PathRefusal(String);

impl PathRefusal {
    /// Its stable code, for machines.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        "cgroup_path_invalid"
    }
}

impl OwnerTable {
    /// Everything in and below the cgroup is the job's, unless a deeper cgroup is another job's. `path` as `/proc/<pid>/cgroup` shows it:
    /// from the root of its tree, such as `/meterd/job-1`.
    ///
    /// # Errors
    /// [`PathRefusal`]; the table is unchanged then.
    pub fn cgroup(&mut self, tree: CgroupTree, path: &str, attempt: Attempt) -> Result<(), PathRefusal> {
        let trimmed = path.trim_end_matches('/');
        let ordinary = |part: &str| !part.is_empty() && part != "." && part != "..";
        if !trimmed.starts_with('/') || !trimmed[1..].split('/').all(ordinary) {
            return Err(PathRefusal(path.to_owned()));
        }
        self.cgroups.insert((tree, trimmed.to_owned()), attempt);
        Ok(())
    }

    /// The processes of a job that is a process tree, each told apart from a later one of the same pid by its start time.
    pub fn processes(&mut self, processes: impl IntoIterator<Item = ProcessRoot>, attempt: Attempt) {
        self.processes.extend(processes.into_iter().map(|process| (process.pid, (process.start_ticks, attempt))));
    }

    /// The job that a cgroup path is in: the deepest one that holds it.
    #[must_use]
    pub fn owner_of_path(&self, tree: CgroupTree, path: &str) -> Option<Attempt> {
        // A cgroup that was removed under a zombie still names its job.
        let mut path = path.strip_suffix(" (deleted)").unwrap_or(path).trim_end_matches('/');
        while !path.is_empty() {
            if let Some(attempt) = self.cgroups.get(&(tree, path.to_owned())) {
                return Some(*attempt);
            }
            path = path.rfind('/').map_or("", |end| &path[..end]);
        }
        None
    }

    /// Every job in the table.
    #[must_use]
    pub fn attempts(&self) -> BTreeSet<Attempt> {
        self.cgroups.values().copied().chain(self.processes.values().map(|(_, attempt)| *attempt)).collect()
    }

    fn owner_of_groups(&self, groups: &ProcessCGroups) -> Option<Attempt> {
        let of = |tree: CgroupTree| {
            let group = groups.0.iter().find(|group| match tree {
                CgroupTree::V2 => group.hierarchy == 0,
                CgroupTree::V1Memory => group.controllers.iter().any(|controller| controller == "memory"),
            })?;
            self.owner_of_path(tree, &group.pathname)
        };
        of(CgroupTree::V2).or_else(|| of(CgroupTree::V1Memory))
    }
}

/// The table, shared: the loop replaces it, the GPU thread asks it. Neither waits for the other.
#[derive(Clone, Debug)]
pub struct Owners {
    table: Arc<Slot<OwnerTable>>,
}

impl Default for Owners {
    fn default() -> Owners {
        Owners { table: Arc::new(Slot::new(OwnerTable::default())) }
    }
}

impl Owners {
    /// From now on this table holds.
    pub fn replace(&self, table: OwnerTable) {
        self.table.put(table);
    }

    /// The job that holds the process. `None` for nobody's, and for a process that has ended or cannot be read (`/proc/<pid>/cgroup`, `stat`).
    #[must_use]
    pub fn owner(&self, pid: u32) -> Option<Attempt> {
        let table = self.table.newest();
        let process = Process::new(i32::try_from(pid).ok()?).ok()?;
        if let Some((start_ticks, attempt)) = table.processes.get(&pid)
            && process.stat().ok()?.starttime == *start_ticks
        {
            return Some(*attempt);
        }
        table.owner_of_groups(&process.cgroups().ok()?)
    }

    /// The same as what the GPU thread takes.
    #[must_use]
    pub fn as_owner(&self) -> Arc<Owner> {
        let owners = self.clone();
        Arc::new(move |pid| owners.owner(pid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const V2: CgroupTree = CgroupTree::V2;

    fn table(paths: &[(&str, u64)]) -> OwnerTable {
        let mut table = OwnerTable::default();
        for (path, attempt) in paths {
            table.cgroup(V2, path, Attempt(*attempt)).unwrap();
        }
        table
    }

    fn groups(text: &str) -> ProcessCGroups {
        procfs::FromBufRead::from_buf_read(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_process_belongs_to_the_deepest_cgroup_that_holds_it() {
        let table = table(&[("/slurm/job_1", 1), ("/slurm/job_1/nested", 2)]);
        assert_eq!(table.owner_of_path(V2, "/slurm/job_1/step_0/user/task_0"), Some(Attempt(1)));
        assert_eq!(table.owner_of_path(V2, "/slurm/job_1/nested/x"), Some(Attempt(2)));
        assert_eq!(table.owner_of_path(V2, "/slurm/job_1 (deleted)"), Some(Attempt(1)));
        assert_eq!(table.owner_of_path(V2, "/slurm/job_10"), None, "a prefix of the text is not a parent");
        assert_eq!(table.owner_of_path(V2, "/slurm"), None);
        assert_eq!(table.owner_of_path(V2, "/"), None);
        assert_eq!(table.owner_of_path(CgroupTree::V1Memory, "/slurm/job_1"), None, "that is another tree");
    }

    #[test]
    fn on_a_hybrid_machine_the_memory_hierarchy_tells_what_v2_does_not() {
        let mut table = table(&[("/unified-job", 1)]);
        table.cgroup(CgroupTree::V1Memory, "/slurm/uid_0/job_5", Attempt(5)).unwrap();
        let of = |text| table.owner_of_groups(&groups(text));
        assert_eq!(of("5:cpu,memory:/slurm/uid_0/job_5/step_0\n2:freezer:/other\n0::/\n"), Some(Attempt(5)));
        assert_eq!(of("4:memory:/\n0::/unified-job/a:b\n"), Some(Attempt(1)));
        assert_eq!(of("4:freezer:/slurm/uid_0/job_5\n0::/\n"), None);
    }

    #[test]
    fn nobody_can_claim_the_root_or_a_path_that_proc_never_shows() {
        for bad in ["", "/", "//", "job", "/a/../b", "/a//b", "/./a"] {
            let mut table = OwnerTable::default();
            assert_eq!(table.cgroup(V2, bad, Attempt(1)).unwrap_err().code(), "cgroup_path_invalid", "{bad}");
            assert_eq!(table, OwnerTable::default());
        }
    }

    #[test]
    fn a_process_tree_owns_its_pids_and_not_a_later_process_of_the_same_pid() {
        let pid = std::process::id();
        let start_ticks = Process::myself().unwrap().stat().unwrap().starttime;
        let owner_with = |start_ticks| {
            let owners = Owners::default();
            let mut table = OwnerTable::default();
            table.processes([ProcessRoot { pid, start_ticks }], Attempt(9));
            owners.replace(table);
            owners.owner(pid)
        };
        assert_eq!(owner_with(start_ticks), Some(Attempt(9)));
        assert_eq!(owner_with(start_ticks + 1), None);
    }

    #[test]
    fn a_pid_that_is_not_there_is_nobodys() {
        assert_eq!(Owners::default().owner(u32::MAX), None);
        assert_eq!(Owners::default().owner(i32::MAX.cast_unsigned()), None);
    }

    proptest! {
        #[test]
        fn a_path_is_owned_exactly_if_a_claimed_path_holds_it(
            claimed in prop::collection::vec("(/[ab]{1,2}){1,3}", 1..4), path in "(/[ab]{1,2}){1,4}"
        ) {
            let numbered: Vec<(&str, u64)> = claimed.iter().map(String::as_str).zip(0..).collect();
            let held = claimed.iter().any(|claim| format!("{path}/").starts_with(&format!("{claim}/")));
            prop_assert_eq!(table(&numbered).owner_of_path(V2, &path).is_some(), held);
        }
    }
}
