//! The pure core: what a job used, what it costs, who may go on. No clock, no I/O, no float, no log.

pub mod act;
pub mod batch;
pub mod bucket;
pub mod chain;
pub mod id;
pub mod ledger;
pub mod meter;
pub mod money;
pub mod time;
pub mod usage;
pub mod wire;
