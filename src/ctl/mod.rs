//! meterctl
pub mod run;
