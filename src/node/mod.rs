//! The agent's edges, one outside thing a file.

pub mod clock;
pub mod gpu;
pub mod gpu_owner;
pub mod host;
pub mod slot;
