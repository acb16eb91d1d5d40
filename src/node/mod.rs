//! The agent's edges, one outside thing a file.

pub mod clock;
pub mod config;
