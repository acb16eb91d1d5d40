//! meterd

pub mod authority;
pub mod ctl;
pub mod demo;
pub mod domain;
pub mod node;
mod sqlite;
