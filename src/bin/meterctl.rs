//! For people and for schedulers' hooks: see `meterctl --help`.

use std::process::ExitCode;

use clap::Parser as _;
use meterd::ctl::{Arguments, main as meterctl};

fn main() -> ExitCode {
    meterctl(Arguments::parse())
}
