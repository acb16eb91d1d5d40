//! The agent's edges, one outside thing a file.

pub mod cgroup;
pub mod cgroup_dir;
pub mod clock;
pub mod handle;
pub mod hands;
pub mod journal;
pub mod layout;
pub mod own_cgroup;
pub mod priority;
pub mod process_tree;
pub mod slurm;
pub mod watch;
