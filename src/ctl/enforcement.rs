//! `meterctl enforcement`: how far the agent goes.

use std::path::Path;

use clap::ValueEnum;

use super::client::{Client, Failure};
use super::exit::Exit;
use super::print;
use crate::domain::enforcement::Enforcement;
use crate::domain::request::SetEnforcement;

/// The new mode.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// From now on, until it is set again.
    mode: Mode,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    /// The kill switch: the same as observe. What the agent froze goes on.
    Off,
    /// Meter, rate, and record what would have been done.
    Observe,
    /// Warn as well.
    Notify,
    /// Freeze, terminate and kill as well.
    Enforce,
}

impl From<Mode> for Enforcement {
    fn from(mode: Mode) -> Enforcement {
        match mode {
            Mode::Off | Mode::Observe => Enforcement::Observe,
            Mode::Notify => Enforcement::Notify,
            Mode::Enforce => Enforcement::Enforce,
        }
    }
}

pub(super) fn main(socket: &Path, arguments: &Arguments) -> Result<Exit, Failure> {
    set(&Client::new(socket)?, arguments.mode.into())?;
    Ok(Exit::Done)
}

/// Sets the mode and says so.
pub(super) fn set(client: &Client, mode: Enforcement) -> Result<(), Failure> {
    client.write("/v1/enforcement", &SetEnforcement { mode }.to_json())?;
    print(&format!("enforcement is now {mode}\n"));
    Ok(())
}
