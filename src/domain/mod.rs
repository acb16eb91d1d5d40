//! The pure core: what a job used, what it costs, who may go on. No clock, no I/O, no float, no log.

pub mod act;
pub mod agent;
pub mod batch;
pub mod bucket;
pub mod budget;
pub mod chain;
pub mod correction;
pub mod detail;
pub mod enforcement;
pub mod fact;
pub mod form;
pub mod grant;
pub mod id;
pub mod job;
pub mod ledger;
pub mod meter;
pub mod money;
pub mod outcome;
pub mod rates;
pub mod receipt;
pub mod request;
pub mod time;
pub mod turn;
pub mod usage;
pub mod view;
pub mod wire;
