//! The cgroups of a bench: below a parent of its own in every hierarchy, and gone with it.

use std::path::PathBuf;

use meterd::domain::act::CgroupDir;
use meterd::node::layout::Layout;
use meterd::node::own_cgroup::{self, OwnCgroupError};

/// The parent of a bench's cgroups. Removed in every hierarchy when dropped: by then they must be gone.
pub(crate) struct Cgroups {
    layout: Layout,
    parent: PathBuf,
}

impl Cgroups {
    /// A parent named for the bench and this process.
    pub(crate) fn below(bench: &str) -> Result<Cgroups, Box<dyn std::error::Error>> {
        Ok(Cgroups { layout: Layout::detect()?, parent: PathBuf::from(format!("meterd-{bench}-{}", std::process::id())) })
    }

    /// One job's directories.
    pub(crate) fn make(&self, name: &str) -> Result<Vec<CgroupDir>, OwnCgroupError> {
        own_cgroup::make(&self.layout, &self.parent, name)
    }

    /// Puts a process into them.
    pub(crate) fn enter(&self, dirs: &[CgroupDir], pid: u32) -> Result<(), OwnCgroupError> {
        own_cgroup::enter(&self.layout, dirs, pid)
    }

    /// Removes one job's directories.
    pub(crate) fn remove(&self, dirs: &[CgroupDir]) -> Result<(), OwnCgroupError> {
        own_cgroup::remove(&self.layout, dirs)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for (_, mount) in self.layout.mounts() {
            match std::fs::remove_dir(mount.join(&self.parent)) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {} // not every hierarchy is used
                Err(error) => eprintln!("left behind: {}: {error}", mount.join(&self.parent).display()),
            }
        }
    }
}
