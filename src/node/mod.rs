//! The agent's edges, one outside thing a file.

pub mod cgroup;
pub mod cgroup_dir;
pub mod clock;
pub mod config;
pub mod gpu;
pub mod gpu_owner;
pub mod handle;
pub mod hands;
pub mod host;
pub mod journal;
pub mod layout;
pub mod log;
pub mod own_cgroup;
pub mod priority;
pub mod process_tree;
pub mod run;
pub mod slot;
pub mod slurm;
pub mod watch;
