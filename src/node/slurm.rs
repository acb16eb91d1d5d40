//! What Slurm calls its cgroups (cgroup/v2), and which of them may be touched.
//!
//! ```text
//! <cgroup2>/system.slice/[<node>_]slurmstepd.scope/{job_<id> | <sluid>}/step_<n|batch|extern|interactive>/slurm          its slurmstepd
//!                                                                                                        /user/task_<n>  the job
//! ```
//!
//! - A job is metered at its own directory, which also holds about 1 MB of `slurmstepd` a step.
//! - It is frozen at the leaves `step_*/user/task_*`: the owner's `scancel -s CONT` thaws anything higher. New steps start unfrozen,
//!   so the leaves are listed again each time.
//! - It is killed at `step_*/user`. Never at the job's directory nor in `slurm/`: without its slurmstepd the job hangs, without an epilog.

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use super::cgroup_dir::{Child, OpenDir};
use super::layout::{Hierarchy, Layout};
use crate::domain::act::{CgroupDir, SlurmJob};

/// Where Slurm's scopes are, below the cgroup2 mount (`CgroupSlice` of cgroup.conf, by default).
pub const SLICE: &str = "system.slice";

/// How the name of such a scope ends; several `slurmd` on one host put their node's name in front.
pub const SCOPE_SUFFIX: &str = "slurmstepd.scope";

/// All scopes of this host's `slurmd`s; none if Slurm is not here.
///
/// # Errors
/// What the kernel said, save that there is no such slice.
pub fn scopes(layout: &Layout) -> Result<Vec<OpenDir>, Errno> {
    let Some(mount) = &layout.v2 else { return Ok(Vec::new()) };
    let path = mount.join(SLICE);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match openat(rustix::fs::CWD, &path, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(Vec::new()),
        other => other?,
    };
    let slice = OpenDir { dir: CgroupDir { path: path.to_string_lossy().into_owned(), inode: 0 }, hierarchy: Hierarchy::V2, fd };
    open_matching(&slice, |name| name.ends_with(SCOPE_SUFFIX))
}

/// A job's directories: usually one. Both names are tried in every scope.
///
/// # Errors
/// What the kernel said; a directory that is not there is no error.
pub fn job_dirs(scopes: &[OpenDir], job: &SlurmJob) -> Result<Vec<OpenDir>, Errno> {
    let names = job_names(job);
    let mut found = Vec::new();
    for scope in scopes {
        for name in &names {
            match scope.child(name) {
                Ok(dir) => found.push(dir),
                Err(Errno::NOENT | Errno::NODEV) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(found)
}

/// The names its directory can have. A SLUID that is no plain name (it comes from a hook's environment) is left out.
#[must_use]
pub fn job_names(job: &SlurmJob) -> Vec<String> {
    let plain = |name: &&String| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let sluid = job.sluid.iter().filter(plain).cloned();
    std::iter::once(format!("job_{}", job.job_id)).chain(sluid).collect()
}

/// The directories to freeze: `step_*/user/task_*`.
///
/// # Errors
/// What the kernel said; a step that ends meanwhile is no error.
pub fn freeze_leaves(job: &OpenDir) -> Result<Vec<OpenDir>, Errno> {
    let mut leaves = Vec::new();
    for user in kill_dirs(job)? {
        leaves.extend(open_matching(&user, |name| name.starts_with("task_"))?);
    }
    Ok(leaves)
}

/// The directories to kill: `step_*/user`.
///
/// # Errors
/// What the kernel said; a step that ends meanwhile is no error.
pub fn kill_dirs(job: &OpenDir) -> Result<Vec<OpenDir>, Errno> {
    let mut users = Vec::new();
    for step in open_matching(job, |name| name.starts_with("step_"))? {
        users.extend(open_matching(&step, |name| name == "user")?);
    }
    Ok(users)
}

fn open_matching(dir: &OpenDir, wanted: impl Fn(&str) -> bool) -> Result<Vec<OpenDir>, Errno> {
    let children = match dir.children() {
        Err(Errno::NOENT | Errno::NODEV) => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for Child { name, .. } in children.iter().filter(|child| wanted(&child.name)) {
        match dir.child(name) {
            Ok(child) => found.push(child),
            Err(Errno::NOENT | Errno::NODEV) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::create_dir_all;

    fn world() -> (tempfile::TempDir, Layout) {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout { v2: Some(root.path().to_owned()), ..Layout::default() };
        (root, layout)
    }

    fn names(dirs: &[OpenDir], root: &tempfile::TempDir) -> Vec<String> {
        let mut names: Vec<String> =
            dirs.iter().map(|open| open.dir.path.strip_prefix(root.path().to_str().unwrap()).unwrap().to_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_job_is_found_under_either_name_in_any_scope() {
        let (root, layout) = world();
        let job = SlurmJob { job_id: 7, sluid: Some("s5K1KKYAYG5D00".into()) };
        assert!(scopes(&layout).unwrap().is_empty(), "no Slurm here");
        for dir in ["slurmstepd.scope/job_7", "node2_slurmstepd.scope/s5K1KKYAYG5D00", "other.scope/job_7", "slurmstepd.scope/job_77"] {
            create_dir_all(root.path().join(SLICE).join(dir)).unwrap();
        }
        let found = job_dirs(&scopes(&layout).unwrap(), &job).unwrap();
        let expected = ["/system.slice/node2_slurmstepd.scope/s5K1KKYAYG5D00", "/system.slice/slurmstepd.scope/job_7"];
        assert_eq!(names(&found, &root), expected);
    }

    #[test]
    fn the_step_daemon_is_never_among_what_is_frozen_or_killed() {
        let (root, layout) = world();
        let scope = root.path().join(SLICE).join("n1_slurmstepd.scope");
        for dir in ["step_batch/slurm", "step_batch/user/task_0", "step_0/user/task_0", "step_0/user/task_1", "step_0/slurm", "slurm"] {
            create_dir_all(scope.join("job_3").join(dir)).unwrap();
        }
        let job = &job_dirs(&scopes(&layout).unwrap(), &SlurmJob { job_id: 3, sluid: None }).unwrap()[0];
        let base = "/system.slice/n1_slurmstepd.scope/job_3";
        let leaves = ["step_0/user/task_0", "step_0/user/task_1", "step_batch/user/task_0"].map(|leaf| format!("{base}/{leaf}"));
        assert_eq!(names(&freeze_leaves(job).unwrap(), &root), leaves);
        let users = ["step_0/user", "step_batch/user"].map(|user| format!("{base}/{user}"));
        assert_eq!(names(&kill_dirs(job).unwrap(), &root), users);
    }

    #[test]
    fn an_id_that_is_a_path_is_not_followed() {
        for bad in ["../x", "a/b", "", "."] {
            assert_eq!(job_names(&SlurmJob { job_id: 1, sluid: Some(bad.into()) }), ["job_1"], "{bad:?}");
        }
    }
}
