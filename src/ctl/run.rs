//! run
use std::process::ExitCode;
/// Arguments.
#[derive(clap::Args)]
pub struct ChildArguments {}
/// Runs.
#[must_use]
pub fn become_command(_: ChildArguments) -> ExitCode { ExitCode::FAILURE }
