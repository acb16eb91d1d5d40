//! Reads what jobs used: CPU time, memory, populated, frozen; from cgroups with kept descriptors, from process trees through procfs.

use std::sync::Arc;

use super::layout::Layout;
use super::process_tree::ProcessTrees;
use crate::domain::act::Target;
use crate::domain::id::Attempt;
use crate::domain::meter::JobSample;
use crate::domain::time::Mono;

pub use super::cgroup_dir::{IdentifyError, identify};

/// Descriptors of files that are kept open at most, unless told otherwise: each pins 4 KiB of kernel memory.
pub const KEPT_FILES_MAX: usize = 2_000;

/// Which jobs to look at.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// All that are attached.
    All,
    /// These; an unknown one is passed over.
    Only(&'a [Attempt]),
}

/// Why a job cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// It is attached already.
    #[error("attempt {0} is attached already")]
    Already(Attempt),
    /// Another job has the same directory: it would be billed twice.
    #[error("{path} belongs to attempt {holder} already")]
    Taken {
        /// Which directory.
        path: String,
        /// Whose it is.
        holder: Attempt,
    },
    /// A path is no cgroup's that may be metered.
    #[error(transparent)]
    Place(#[from] super::layout::PlaceError),
    /// It names no directory.
    #[error("no cgroup directory was named")]
    Empty,
    /// No cgroup file system here.
    #[error("no cgroup file system is mounted here")]
    NoCgroups,
    /// The agent is one of its processes.
    #[error("the agent itself is in it")]
    HoldsAgent,
}

/// The reader of all attached jobs.
pub struct Sampler {
    _layout: Option<Arc<Layout>>,
    _trees: ProcessTrees,
}

impl Sampler {
    /// A reader of jobs in this layout; with `None` only process trees can be attached.
    #[must_use]
    pub fn new(layout: Option<Arc<Layout>>, trees: ProcessTrees, clock: fn() -> Mono) -> Sampler {
        let _ = clock;
        Sampler { _layout: layout, _trees: trees }
    }

    /// The same reader, keeping at most that many files open.
    #[must_use]
    pub fn keeping_at_most(self, files: usize) -> Sampler {
        let _ = files;
        self
    }

    /// Begins to look after a job. A directory that is gone or replaced by now is no error: its samples say so.
    ///
    /// # Errors
    /// When it is attached already, or may not be metered.
    pub fn attach(&mut self, attempt: Attempt, target: &Target) -> Result<(), AttachError> {
        let _ = (attempt, target);
        todo!()
    }

    /// Looks after a job no more. Its tail goes unnoticed from then on.
    pub fn detach(&mut self, attempt: Attempt) {
        let _ = attempt;
    }

    /// One look: a sample for each job, in the order of attempts.
    pub fn sample(&mut self, which: Which<'_>) -> Vec<JobSample> {
        let _ = which;
        Vec::new()
    }
}
