//! A job as a process and its descendants: where no cgroup may be used.

/// The members of all process trees that are followed; a clone shares them (the sampler finds, the hands act).
#[derive(Clone, Debug, Default)]
pub struct ProcessTrees {}
