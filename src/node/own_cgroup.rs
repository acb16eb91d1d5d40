//! The cgroups that the agent makes for `meterctl run`.

use std::path::Path;

use super::layout::Layout;
use crate::domain::act::CgroupDir;

/// Why a cgroup could not be made, entered or removed.
#[derive(Debug, thiserror::Error)]
pub enum OwnCgroupError {
    /// A name with a slash, a leading dot, or none.
    #[error("{0:?} is not a name for a cgroup")]
    Name(String),
    /// There is no cgroup2 tree here: nothing to freeze by.
    #[error("no cgroup2 file system is mounted here")]
    NoV2,
    /// The kernel refused.
    #[error("{what}: {error}")]
    Refused {
        /// What was asked of it.
        what: String,
        /// What it said.
        error: String,
    },
}

/// Makes a cgroup for one job: `<mount>/<parent>/<name>` in cgroup2 and, in a hybrid layout, in the v1 memory hierarchy too.
///
/// # Errors
/// When it is there already, or the kernel refuses.
pub fn make(layout: &Layout, parent: &Path, name: &str) -> Result<Vec<CgroupDir>, OwnCgroupError> {
    let _ = (layout, parent, name);
    todo!()
}

/// Moves a process into all of them (`cgroup.procs`).
///
/// # Errors
/// When one is gone or replaced, or the kernel refuses.
pub fn enter(layout: &Layout, dirs: &[CgroupDir], pid: u32) -> Result<(), OwnCgroupError> {
    let _ = (layout, dirs, pid);
    todo!()
}

/// Removes them, their sub-cgroups first. What is gone or replaced is passed over.
///
/// # Errors
/// When one still holds a process (`EBUSY`), or the kernel refuses.
pub fn remove(layout: &Layout, dirs: &[CgroupDir]) -> Result<(), OwnCgroupError> {
    let _ = (layout, dirs);
    todo!()
}
