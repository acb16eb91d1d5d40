//! meterd

pub mod authority;
pub mod ctl;
pub mod domain;
pub mod node;
mod sqlite;
