//! One cgroup directory: opened by its name once, told apart by its inode, and from then on reached through its descriptor alone.

use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::io::Errno;

use super::layout::{Hierarchy, Layout, LayoutError, PlaceError};
use crate::domain::act::CgroupDir;

/// Why a directory cannot be named as a job's.
#[derive(Debug, thiserror::Error)]
pub enum IdentifyError {
    /// The path is no cgroup's that may be metered.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The agent itself is in it, or below it.
    #[error("{0} holds the agent itself")]
    HoldsAgent(String),
    /// There is no such directory.
    #[error("{0} is not there")]
    NotThere(String),
    /// The kernel refused to open it.
    #[error("cannot open {path}: {errno}")]
    Refused {
        /// Which directory.
        path: String,
        /// What the kernel said.
        errno: Errno,
    },
    /// The agent's own cgroup cannot be told, so nothing can be proved not to be it.
    #[error(transparent)]
    Own(#[from] LayoutError),
}

/// An open cgroup directory whose inode was checked.
#[derive(Debug)]
pub struct OpenDir {
    /// Which one.
    pub dir: CgroupDir,
    /// In which hierarchy.
    pub hierarchy: Hierarchy,
    /// Its descriptor (`O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC`).
    pub fd: OwnedFd,
}

/// Names the directory at `path` for good: the path with its inode.
///
/// # Errors
/// When it is outside the cgroup mounts, their root, not plain (`..`), not there, or holds the agent.
pub fn identify(layout: &Layout, path: &Path) -> Result<CgroupDir, IdentifyError> {
    let _ = (layout, path);
    todo!()
}
