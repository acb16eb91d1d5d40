//! The balance authority for a fleet. In this version the authority runs inside the agent, for one machine: see `meterd`.

use std::process::ExitCode;

use clap::Parser;

/// The balance authority for a fleet of nodes.
///
/// This version serves one machine, inside `meterd`; there is nothing to start here yet.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {}

fn main() -> ExitCode {
    Arguments::parse();
    eprintln!("meter-authority: this version runs inside meterd, for one machine; create accounts with `meterctl account create`");
    ExitCode::from(1)
}
