//! The balance authority for a fleet of nodes.

#[cfg(target_arch = "x86_64")]
#[path = "../allocator.rs"]
mod allocator;

use std::process::ExitCode;

use clap::Parser as _;
use meterd::authority::run::{Arguments, main as run};

fn main() -> ExitCode {
    run(&Arguments::parse())
}
