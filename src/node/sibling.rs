//! A job that was named by its directories in one hierarchy, looked up in the others.
//!
//! The rules; nothing is guessed:
//!
//! 1. What a caller named in a hierarchy is the whole job there. Of a directory and one below it the upper one is taken: it holds both.
//! 2. A hierarchy in which nothing was named is looked up by name: the directories called the same there (as `/proc/<pid>/cgroup` calls
//!    them) are the job's, if every one of them is there, and
//! 3. no process speaks against it: what is in a named directory is in its sibling, and the other way round.
//!
//! Else the job has nothing in that hierarchy, and what only that one tells is missing.

use std::collections::BTreeSet;
use std::path::Path;

use rustix::io::Errno;

use super::cgroup_dir::{self, IdentifyError, OpenDir};
use super::layout::{Hierarchy, Layout};
use crate::domain::act::CgroupDir;

/// Is the directory below the other one, and not the same?
#[must_use]
pub fn is_below(path: &str, upper: &str) -> bool {
    path.strip_prefix(upper).is_some_and(|rest| rest.starts_with('/'))
}

/// Why a hierarchy has nothing of the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoSibling {
    /// There is no directory of that name.
    NotThere(String),
    /// There is one, and other processes are in it.
    OtherTasks(String),
}

/// The job's directories in every hierarchy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// Those that were named, then their siblings.
    pub dirs: Vec<CgroupDir>,
    /// Hierarchies in which it has none, and why.
    pub without: Vec<(Hierarchy, NoSibling)>,
}

/// Names the job's directories for good, and looks for their siblings.
///
/// # Errors
/// When one that was named cannot be a job's.
pub fn resolve(layout: &Layout, paths: &[impl AsRef<Path>]) -> Result<Resolved, IdentifyError> {
    let mut dirs: Vec<CgroupDir> = Vec::new();
    for path in paths {
        let dir = cgroup_dir::identify(layout, path.as_ref())?;
        if !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    let all: Vec<String> = dirs.iter().map(|dir| dir.path.clone()).collect();
    dirs.retain(|dir| !all.iter().any(|upper| is_below(&dir.path, upper)));
    let mut named: Vec<(Hierarchy, OpenDir)> = Vec::new();
    for dir in &dirs {
        if let Ok(open) = cgroup_dir::open(layout, dir) {
            named.push((open.hierarchy, open));
        }
    }
    let mut resolved = Resolved { dirs, without: Vec::new() };
    // The rule starts from one hierarchy: the first that has any of them.
    let Some(from) = named.iter().map(|(hierarchy, _)| *hierarchy).min() else { return Ok(resolved) };
    let known: Vec<&OpenDir> = named.iter().filter(|(hierarchy, _)| *hierarchy == from).map(|(_, open)| open).collect();
    for (hierarchy, mount) in layout.mounts() {
        if named.iter().any(|(named, _)| *named == hierarchy) {
            continue;
        }
        match known.iter().map(|open| sibling_of(layout, open, mount)).collect::<Result<Vec<_>, NoSibling>>() {
            Ok(found) => resolved.dirs.extend(found),
            Err(why) => resolved.without.push((hierarchy, why)),
        }
    }
    Ok(resolved)
}

/// The same start, asked again: are the directories that are named now, together with their siblings, those that are metered?
#[must_use]
pub fn is_repeat(layout: &Layout, known: &[CgroupDir], paths: &[impl AsRef<Path>]) -> bool {
    let named: Option<Vec<CgroupDir>> = paths.iter().map(|path| cgroup_dir::identify(layout, path.as_ref()).ok()).collect();
    let Some(named) = named.filter(|named| !named.is_empty()) else { return false };
    let covers = |dir: &CgroupDir| known.iter().any(|known| known == dir || is_below(&dir.path, &known.path));
    let name = |dir: &CgroupDir| layout.classify(Path::new(&dir.path)).ok().map(|place| layout.cgroup_name(&place));
    let asked: BTreeSet<_> = named.iter().filter_map(name).collect();
    named.iter().all(covers) && known.iter().all(|dir| name(dir).is_some_and(|name| asked.contains(&name)))
}

fn sibling_of(layout: &Layout, open: &OpenDir, mount: &Path) -> Result<CgroupDir, NoSibling> {
    let not_there = || NoSibling::NotThere(open.dir.path.clone());
    let place = layout.classify(Path::new(&open.dir.path)).map_err(|_| not_there())?;
    let name = layout.cgroup_name(&place);
    let path = layout.dir_in(mount, &name.to_string_lossy()).ok_or_else(not_there)?;
    let dir = cgroup_dir::identify(layout, &path).map_err(|_| not_there())?;
    let sibling = cgroup_dir::open(layout, &dir).map_err(|_| not_there())?;
    if same_tasks(open, &sibling).unwrap_or(false) { Ok(dir) } else { Err(NoSibling::OtherTasks(dir.path)) }
}

/// Does every process that stays in the one stay in the other? Those that come or go meanwhile do not count.
fn same_tasks(one: &OpenDir, other: &OpenDir) -> Result<bool, Errno> {
    let pids = |dir: &OpenDir| dir.processes_below().map(|pids| pids.into_iter().collect::<BTreeSet<u32>>());
    let (one_before, other_before) = (pids(one)?, pids(other)?);
    let (one_after, other_after) = (pids(one)?, pids(other)?);
    let stays = |before: &BTreeSet<u32>, after: &BTreeSet<u32>| before.intersection(after).copied().collect::<BTreeSet<u32>>();
    let seen = |before: &BTreeSet<u32>, after: &BTreeSet<u32>| before.union(after).copied().collect::<BTreeSet<u32>>();
    let in_other = stays(&one_before, &one_after).is_subset(&seen(&other_before, &other_after));
    let in_one = stays(&other_before, &other_after).is_subset(&seen(&one_before, &one_after));
    Ok(in_other && in_one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::layout::Controller;
    use std::fs;

    struct World {
        root: tempfile::TempDir,
        layout: Layout,
    }

    /// Constructed: three hierarchies, with directories of these names and processes.
    fn world(dirs: &[(&str, &str)]) -> World {
        let root = tempfile::tempdir().unwrap();
        for mount in ["v2", "memory", "freezer"] {
            fs::create_dir(root.path().join(mount)).unwrap();
        }
        for (path, procs) in dirs {
            let path = root.path().join(path);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("cgroup.procs"), procs).unwrap();
        }
        let at = |name: &str| Some(root.path().join(name));
        let layout = Layout { v2: at("v2"), v1_memory: at("memory"), v1_freezer: at("freezer"), ..Layout::default() };
        World { root, layout }
    }

    impl World {
        fn resolve(&self, paths: &[&str]) -> (Vec<String>, Vec<Hierarchy>) {
            let paths: Vec<_> = paths.iter().map(|path| self.root.path().join(path)).collect();
            let resolved = resolve(&self.layout, &paths).unwrap();
            let shown = |dir: &CgroupDir| Path::new(&dir.path).strip_prefix(self.root.path()).unwrap().display().to_string();
            (resolved.dirs.iter().map(shown).collect(), resolved.without.iter().map(|(hierarchy, _)| *hierarchy).collect())
        }
    }

    const FREEZER: Hierarchy = Hierarchy::v1(Controller::Freezer);
    const MEMORY: Hierarchy = Hierarchy::v1(Controller::Memory);

    #[test]
    fn a_directory_is_found_by_its_name_in_the_other_hierarchies() {
        let world = world(&[("v2/jobs/a", "7\n"), ("memory/jobs/a", "7\n"), ("freezer/jobs/a/below", "7\n"), ("freezer/jobs/a", "")]);
        assert_eq!(world.resolve(&["freezer/jobs/a"]), (vec!["freezer/jobs/a".into(), "v2/jobs/a".into(), "memory/jobs/a".into()], vec![]));
    }

    #[test]
    fn one_of_the_same_name_with_other_tasks_is_not_the_jobs() {
        let world = world(&[("v2/a", "7\n"), ("memory/a", "7\n8\n"), ("freezer/a", "")]);
        assert_eq!(world.resolve(&["v2/a"]), (vec!["v2/a".into()], vec![MEMORY, FREEZER]));
    }

    #[test]
    fn in_a_hierarchy_where_something_was_named_nothing_is_looked_up() {
        let world = world(&[("v2/a", ""), ("v2/b", ""), ("memory/other", ""), ("memory/a", ""), ("freezer/a", "")]);
        let found = world.resolve(&["v2/a", "v2/b", "memory/other"]);
        assert_eq!(
            found,
            (vec!["v2/a".into(), "v2/b".into(), "memory/other".into()], vec![FREEZER]),
            "freezer/b is not there: none is taken"
        );
    }

    #[test]
    fn of_a_directory_and_one_below_it_the_upper_one_is_taken() {
        let world = world(&[("v2/a/b", ""), ("v2/a", ""), ("v2/ab", "")]);
        assert_eq!(world.resolve(&["v2/a/b", "v2/ab", "v2/a", "v2/a"]).0, ["v2/ab", "v2/a"]);
    }

    #[test]
    fn the_same_start_again_is_known_though_a_sibling_has_come_since() {
        let world = world(&[("v2/a", ""), ("v2/b", ""), ("memory/a", "")]);
        let path = |name: &str| world.root.path().join(name);
        let known = resolve(&world.layout, &[path("v2/a")]).unwrap().dirs;
        fs::create_dir(path("freezer/a")).unwrap();
        assert!(is_repeat(&world.layout, &known, &[path("v2/a")]));
        assert!(is_repeat(&world.layout, &known, &[path("memory/a")]), "by its other name");
        assert!(!is_repeat(&world.layout, &known, &[path("v2/a"), path("v2/b")]));
        assert!(!is_repeat(&world.layout, &known, &[path("v2/b")]));
    }
}
