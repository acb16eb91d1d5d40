//! The cgroups that the agent makes for `meterctl run`, and removes when the job has ended.
//!
//! They belong to root, mode 0755, and are not delegated. So a job that does not run as root can neither leave its cgroup, nor thaw or kill itself through it, nor
//! make sub-cgroups. What it can do: ask a daemon that runs elsewhere (cron, at, `systemd-run --user`, a container engine) to start
//! processes for it, which are then in that daemon's cgroup and not metered. A job that runs as root can leave.

use std::path::{Component, Path};

use cgroups_rs::fs::cgroup::{Cgroup, UNIFIED_MOUNTPOINT, verify_supported_controllers};
use cgroups_rs::fs::hierarchies::V2;
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;

use super::cgroup_dir::{self, OpenDir, OpenError};
use super::defence::{Defence, stands};
use super::layout::{Controller, Hierarchy, Layout};
use crate::domain::act::CgroupDir;

/// The controllers that a job's cgroup is to have in cgroup2, where the machine offers them there.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Why a cgroup could not be made, entered or removed.
#[derive(Debug, thiserror::Error)]
pub enum OwnCgroupError {
    /// A name with a slash, a leading dot, or none; a parent that is no plain relative path.
    #[error("{0:?} is not a name for a cgroup")]
    Name(String),
    /// Nothing here freezes: neither a cgroup2 tree nor the v1 freezer.
    #[error("neither cgroup2 nor the v1 freezer is mounted here")]
    NoFreezer,
    /// Nothing here counts CPU time: neither a cgroup2 tree nor v1 cpuacct.
    #[error("neither cgroup2 nor v1 cpuacct is mounted here")]
    NoCpuTime,
    /// It is there already: an earlier job's, whose counters are not this one's.
    #[error("{0} is there already")]
    Exists(String),
    /// It still holds a process.
    #[error("{0} still holds a process")]
    Busy(String),
    /// It is gone, or another one has taken its name.
    #[error("{path}: {error}")]
    Open {
        /// Which directory.
        path: String,
        /// Why it cannot be opened.
        error: OpenError,
    },
    /// The kernel refused.
    #[error("{what}: {error}")]
    Refused {
        /// What was asked of it.
        what: String,
        /// What it said.
        error: String,
    },
}

fn refused(what: String) -> impl FnOnce(Errno) -> OwnCgroupError {
    move |errno| OwnCgroupError::Refused { what, error: errno.to_string() }
}

/// The mounts in which a job gets a directory: cgroup2, and every v1 hierarchy that tells or does something that cgroup2 does not.
///
/// # Errors
/// When nothing here could freeze it or count its CPU time.
fn mounts(layout: &Layout) -> Result<Vec<&Path>, OwnCgroupError> {
    let freezes_by_v2 = layout.v2.is_some() && !layout.hides("cgroup.freeze");
    if !freezes_by_v2 && layout.v1_freezer.is_none() {
        return Err(OwnCgroupError::NoFreezer);
    }
    if layout.v2.is_none() && layout.v1_cpuacct.is_none() {
        return Err(OwnCgroupError::NoCpuTime);
    }
    let has_use = |hierarchy: Hierarchy| {
        let uses = [Controller::Memory, Controller::Pids, Controller::Blkio].into_iter();
        let uses = uses.chain((layout.v2.is_none()).then_some(Controller::Cpuacct)).chain((!freezes_by_v2).then_some(Controller::Freezer));
        hierarchy == Hierarchy::V2 || uses.into_iter().any(|controller| hierarchy.has(controller))
    };
    Ok(layout.mounts().into_iter().filter(|(hierarchy, _)| has_use(*hierarchy)).map(|(_, mount)| mount).collect())
}

/// Makes a cgroup for one job: `<mount>/<parent>/<name>` in cgroup2 and in each v1 hierarchy that is of use to it. The parent is made if it is
/// not there, the job's directory must be new. If one fails, those before it are removed again.
///
/// # Errors
/// When it is there already, or the kernel refuses.
pub fn make(layout: &Layout, parent: &Path, name: &str) -> Result<Vec<CgroupDir>, OwnCgroupError> {
    let plain = |text: &str| {
        let charset = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:@+".contains(&byte));
        charset && !text.is_empty() && !text.starts_with('.')
    };
    let parent_is_plain = parent.components().all(|part| matches!(part, Component::Normal(part) if part.to_str().is_some_and(plain)));
    if !plain(name) && stands(Defence::CgroupName) {
        return Err(OwnCgroupError::Name(name.to_owned()));
    }
    if !parent_is_plain || parent.as_os_str().is_empty() {
        return Err(OwnCgroupError::Name(parent.display().to_string()));
    }
    let mut made = Vec::new();
    for mount in mounts(layout)? {
        match make_in(layout, mount, parent, name) {
            Ok(dir) => made.push(dir),
            Err(error) => {
                // The error that matters is the first one.
                let _ = remove(layout, &made);
                return Err(error);
            }
        }
    }
    Ok(made)
}

fn make_in(layout: &Layout, mount: &Path, parent: &Path, name: &str) -> Result<CgroupDir, OwnCgroupError> {
    make_parent(mount, parent)?;
    let path = mount.join(parent).join(name);
    match mkdirat(CWD, &path, Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) => return Err(OwnCgroupError::Exists(path.display().to_string())),
        other => other.map_err(refused(format!("mkdir {}", path.display())))?,
    }
    cgroup_dir::identify(layout, &path)
        .map_err(|error| OwnCgroupError::Refused { what: format!("open {}", path.display()), error: error.to_string() })
}

/// The directory of all jobs stays from job to job, so an existing one is welcome; its children get the controllers that there are.
fn make_parent(mount: &Path, parent: &Path) -> Result<(), OwnCgroupError> {
    let path = mount.join(parent);
    let what = || format!("mkdir {}", path.display());
    let is_unified = mount == Path::new(UNIFIED_MOUNTPOINT);
    if is_unified {
        let offered =
            CONTROLLERS.map(str::to_owned).into_iter().filter(|controller| verify_supported_controllers(std::slice::from_ref(controller)));
        // Makes each directory on the way and hands the controllers down to the last but one.
        Cgroup::new_with_specified_controllers(Box::new(V2::new()), parent, Some(offered.collect()))
            .map_err(|error| OwnCgroupError::Refused { what: what(), error: error.to_string() })?;
    } else {
        std::fs::create_dir_all(&path).map_err(|error| OwnCgroupError::Refused { what: what(), error: error.to_string() })?;
    }
    let controllers = std::fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_whitespace().filter(|controller| CONTROLLERS.contains(controller)) {
        // One at a time, since one that cannot be handed down must not keep back the others. A job is metered without it too: then its reading is missing.
        let _ = std::fs::write(path.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    Ok(())
}

/// Moves a process, with all its threads, into all of them (`cgroup.procs`).
///
/// # Errors
/// When one is gone or replaced, or the kernel refuses.
pub fn enter(layout: &Layout, dirs: &[CgroupDir], pid: u32) -> Result<(), OwnCgroupError> {
    for dir in dirs {
        let open = cgroup_dir::open(layout, dir).map_err(|error| OwnCgroupError::Open { path: dir.path.clone(), error })?;
        open.write("cgroup.procs", &pid.to_string()).map_err(refused(format!("write {pid} to {}/cgroup.procs", dir.path)))?;
    }
    Ok(())
}

/// Removes them, their sub-cgroups first. What is gone or replaced is passed over.
///
/// # Errors
/// [`OwnCgroupError::Busy`] when one still holds a process, or what the kernel refuses.
pub fn remove(layout: &Layout, dirs: &[CgroupDir]) -> Result<(), OwnCgroupError> {
    for dir in dirs {
        match cgroup_dir::open(layout, dir) {
            Ok(_) => {}
            Err(OpenError::Vanished | OpenError::Replaced) => continue,
            Err(error) => return Err(OwnCgroupError::Open { path: dir.path.clone(), error }),
        }
        let Some((parent, name)) = dir.path.rsplit_once('/') else { continue };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(CWD, parent, flags, Mode::empty()).map_err(refused(format!("open {parent}")))?;
        let parent = OpenDir { dir: CgroupDir { path: parent.to_owned(), inode: 0 }, hierarchy: Hierarchy::V2, fd };
        match parent.remove_child(name) {
            Ok(()) => {}
            Err(Errno::BUSY) => return Err(OwnCgroupError::Busy(dir.path.clone())),
            Err(errno) => return Err(refused(format!("rmdir {}", dir.path))(errno)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> (tempfile::TempDir, Layout) {
        let root = tempfile::tempdir().unwrap();
        for mount in ["v2", "memory"] {
            std::fs::create_dir(root.path().join(mount)).unwrap();
        }
        let layout = Layout { v2: Some(root.path().join("v2")), v1_memory: Some(root.path().join("memory")), ..Layout::default() };
        (root, layout)
    }

    #[test]
    fn a_job_gets_a_directory_in_each_hierarchy_and_loses_them_again() {
        let (root, layout) = layout();
        let dirs = make(&layout, Path::new("meterd"), "job-1").unwrap();
        assert_eq!(dirs.len(), 2);
        assert!(root.path().join("memory/meterd/job-1").is_dir());
        remove(&layout, &dirs).unwrap();
        assert!(!root.path().join("v2/meterd/job-1").exists() && !root.path().join("memory/meterd/job-1").exists());
        remove(&layout, &dirs).unwrap();
    }

    #[test]
    fn on_v1_a_job_gets_a_directory_in_each_hierarchy_that_is_of_use_and_two_controllers_can_share_one() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| {
            std::fs::create_dir_all(root.path().join(name)).unwrap();
            Some(root.path().join(name))
        };
        let layout = Layout {
            v1_memory: at("memory"),
            v1_cpuacct: at("shared"),
            v1_freezer: at("shared"),
            v1_pids: at("pids"),
            ..Layout::default()
        };
        assert_eq!(make(&layout, Path::new("meterd"), "job").unwrap().len(), 3);
        let hybrid = Layout { v2: at("v2"), v1_freezer: at("freezer"), v1_cpuacct: at("cpuacct"), ..Layout::default() };
        assert_eq!(make(&hybrid, Path::new("meterd"), "job").unwrap().len(), 1, "cgroup2 freezes and counts CPU time");
        let old = Layout { hidden_files: ["cgroup.freeze"].into(), ..hybrid };
        assert_eq!(make(&old, Path::new("meterd"), "old").unwrap().len(), 2, "before Linux 5.2 the v1 freezer is needed");
        let unable = Layout { v1_memory: at("memory"), v1_cpuacct: at("cpuacct"), ..Layout::default() };
        assert!(matches!(make(&unable, Path::new("meterd"), "x"), Err(OwnCgroupError::NoFreezer)));
        let uncounted = Layout { v1_freezer: at("freezer"), ..Layout::default() };
        assert!(matches!(make(&uncounted, Path::new("meterd"), "x"), Err(OwnCgroupError::NoCpuTime)));
    }

    #[test]
    fn a_leftover_of_an_earlier_job_is_not_taken_over() {
        let (root, layout) = layout();
        std::fs::create_dir_all(root.path().join("memory/meterd/job-1")).unwrap();
        assert!(matches!(make(&layout, Path::new("meterd"), "job-1"), Err(OwnCgroupError::Exists(_))));
        assert!(!root.path().join("v2/meterd/job-1").exists(), "the half that was made is removed");
    }

    #[test]
    fn a_name_cannot_lead_out_of_the_parent() {
        let (_root, layout) = layout();
        for bad in ["", ".", "..", "a/b", ".x", "a b", "a\n"] {
            assert!(matches!(make(&layout, Path::new("meterd"), bad), Err(OwnCgroupError::Name(_))), "{bad:?}");
        }
        for bad in ["", "/", "..", "a/../b", "/meterd"] {
            assert!(matches!(make(&layout, Path::new(bad), "job"), Err(OwnCgroupError::Name(_))), "{bad:?}");
        }
    }

    #[test]
    fn another_cgroup_of_the_same_name_is_left_alone() {
        let (root, layout) = layout();
        let mut dirs = make(&layout, Path::new("meterd"), "job-1").unwrap();
        for dir in &mut dirs {
            dir.inode += 1;
        }
        remove(&layout, &dirs).unwrap();
        assert!(root.path().join("v2/meterd/job-1").exists());
        assert!(matches!(enter(&layout, &dirs, 1), Err(OwnCgroupError::Open { error: OpenError::Replaced, .. })));
    }
}
