//! Looks, at start and every half minute, for tasks in the cgroups of jobs that nobody told the agent of: below its own parent, and Slurm's jobs.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::layout::Layout;
use super::slurm;
use crate::domain::act::Target;

/// An empty directory this old is left over.
const LEFT_OVER_AFTER: Duration = Duration::from_mins(1);

/// A directory of one job, and whether it has tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tasks {
    Some,
    None,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Directories with tasks, in which no job is metered.
    pub unmetered: BTreeSet<String>,
    /// Empty directories below the agent's own parent that belong to no job: left over from one whose start was never written down.
    pub left_over: Vec<PathBuf>,
}

/// Compares the kernel's cgroups with the places of jobs: those that are live, and those that are just being made.
#[must_use]
pub fn survey<'a>(layout: &Layout, parent: &Path, targets: impl Iterator<Item = &'a Target>) -> Survey {
    let (mut dirs, mut slurm_names) = (Vec::new(), BTreeSet::new());
    for target in targets {
        match target {
            Target::Cgroups(places) | Target::OwnCgroups(places) => dirs.extend(places.iter().map(|place| Path::new(&place.path))),
            Target::SlurmJob(job) => slurm_names.extend(slurm::job_names(job)),
            Target::Processes(_) => {}
        }
    }
    // Nearly all are found at once, by their text; only a stranger is compared with every one.
    let texts: HashSet<&OsStr> = dirs.iter().map(|dir| dir.as_os_str()).collect();
    let is_metered =
        |place: &Path| texts.contains(place.as_os_str()) || dirs.iter().any(|dir| place.starts_with(dir) || dir.starts_with(place));
    let mut found = Survey::default();
    for (_, mount) in layout.mounts() {
        for place in children(&mount.join(parent)).into_iter().filter(|place| !is_metered(place)) {
            match tasks(&place) {
                Tasks::Some => drop(found.unmetered.insert(place.display().to_string())),
                Tasks::None if is_old(&place) => found.left_over.push(place),
                Tasks::None => {}
            }
        }
    }
    // In an hour in which it cannot be read nobody is accused.
    for scope in slurm::scopes(layout).unwrap_or_default() {
        for place in children(Path::new(&scope.dir.path)) {
            let name = place.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let is_job = name.starts_with("job_");
            if is_job && !slurm_names.contains(&name) && !is_metered(&place) && tasks(&place) == Tasks::Some {
                found.unmetered.insert(place.display().to_string());
            }
        }
    }
    found
}

/// Whoever made it had time enough to put a task into it.
fn is_old(dir: &Path) -> bool {
    std::fs::metadata(dir).and_then(|data| data.modified()).is_ok_and(|made| made.elapsed().is_ok_and(|age| LEFT_OVER_AFTER <= age))
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let is_dir = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries.flatten().filter(is_dir).map(|entry| entry.path()).collect()
}

/// Are there tasks in it or below? What cannot be read has none: nobody is accused by a reading that failed.
fn tasks(dir: &Path) -> Tasks {
    if let Ok(events) = std::fs::read_to_string(dir.join("cgroup.events")) {
        return if events.contains("populated 1") { Tasks::Some } else { Tasks::None };
    }
    let here = std::fs::read_to_string(dir.join("cgroup.procs")).is_ok_and(|list| !list.trim().is_empty());
    if here || children(dir).iter().any(|child| tasks(child) == Tasks::Some) { Tasks::Some } else { Tasks::None }
}

/// Removes what is left over. The kernel keeps what has a task or a child.
pub fn remove_left_over(dirs: &[PathBuf]) {
    for dir in dirs {
        match std::fs::remove_dir(dir) {
            Ok(()) => tracing::info!(event = "left_over_removed", dir = %dir.display()),
            Err(error) => tracing::debug!(event = "left_over_kept", dir = %dir.display(), %error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::act::{CgroupDir, SlurmJob};

    fn dir(root: &Path, path: &str, populated: u8) -> String {
        let dir = root.join(path);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("cgroup.events"), format!("populated {populated}\nfrozen 0\n")).unwrap();
        dir.display().to_string()
    }

    #[test]
    fn what_nobody_started_is_named_and_what_is_metered_is_not() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout { v2: Some(root.path().to_owned()), ..Layout::default() };
        let known = dir(root.path(), "meterd/known", 1);
        let stray = dir(root.path(), "meterd/stray", 1);
        let empty = dir(root.path(), "meterd/empty", 0);
        let made = std::time::SystemTime::now() - 2 * LEFT_OVER_AFTER;
        std::fs::File::open(&empty).unwrap().set_modified(made).unwrap();
        dir(root.path(), "meterd/just-made", 0);
        dir(root.path(), "system.slice/slurmstepd.scope/job_7", 1);
        let missed = dir(root.path(), "system.slice/slurmstepd.scope/job_8", 1);
        dir(root.path(), "system.slice/slurmstepd.scope/job_9", 0);
        dir(root.path(), "system.slice/slurmstepd.scope/system", 1);
        dir(root.path(), "elsewhere/job_10", 1);
        let targets =
            [Target::OwnCgroups(vec![CgroupDir { path: known, inode: 1 }]), Target::SlurmJob(SlurmJob { job_id: 7, sluid: None })];
        let found = survey(&layout, Path::new("meterd"), targets.iter());
        assert_eq!(found.unmetered, BTreeSet::from([stray, missed]));
        assert_eq!(found.left_over, [PathBuf::from(empty)]);
    }
}
