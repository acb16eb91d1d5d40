//! The agent's edges, one outside thing a file.

pub mod access;
pub mod alarm;
pub mod arguments;
pub mod cgroup;
pub mod cgroup_dir;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod defence;
pub mod descriptors;
pub mod event;
pub mod freezer;
pub mod gpu;
pub mod gpu_owner;
pub mod handle;
pub mod hands;
pub mod host;
pub mod journal;
pub mod layout;
pub mod life;
pub mod local_api;
pub mod log;
pub mod marks;
pub mod metrics;
pub mod notice;
pub mod own_cgroup;
pub mod own_cost;
pub mod own_folder;
pub mod priority;
pub mod process_tree;
pub mod publish;
pub mod random;
pub mod reconcile;
pub mod run;
pub mod self_check;
pub mod sibling;
pub mod slot;
pub mod slurm;
pub mod spool;
pub mod spool_reader;
pub mod status;
pub mod systemd;
pub mod watch;

#[cfg(test)]
pub(crate) mod sample;
