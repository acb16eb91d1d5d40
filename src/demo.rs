//! The demo (in the making).
use std::process::ExitCode;
/// Arguments.
#[derive(clap::Args)]
pub struct Arguments {}
/// Runs.
#[must_use]
pub fn run(_: &Arguments) -> ExitCode { ExitCode::FAILURE }
