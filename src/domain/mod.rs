//! The pure core: what a job used, what it costs, who may go on. No clock, no I/O, no float, no log.

pub mod act;
pub mod bucket;
pub mod enforcement;
pub mod form;
pub mod id;
pub mod meter;
pub mod money;
pub mod outcome;
pub mod rates;
pub mod request;
pub mod time;
pub mod usage;
pub mod wire;
