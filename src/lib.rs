//! meterd

pub mod authority;
pub mod domain;
pub mod node;
mod sqlite;
