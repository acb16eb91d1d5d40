//! meterd

pub mod domain;
pub mod node;
