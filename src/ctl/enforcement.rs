//! `meterctl enforcement`: how far the agent goes.

use std::path::Path;

use clap::ValueEnum;
use serde_json::json;

use super::client::{Client, Failure};
use super::exit::Exit;
use super::print;
use crate::domain::enforcement::Enforcement;
use crate::domain::request::SetEnforcement;

/// The new mode.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// From now on, until it is set again; or confirm.
    mode: Word,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Word {
    /// The kill switch: the same as observe. What the agent froze goes on.
    Off,
    /// Meter, rate, and record what would have been done.
    Observe,
    /// Warn as well.
    Notify,
    /// Freeze, terminate and kill as well.
    Enforce,
    /// Leave the mode, and let the accounts be stopped that are held back (`blast_radius` in meterd.toml).
    Confirm,
}

pub(super) fn main(socket: &Path, arguments: &Arguments) -> Result<Exit, Failure> {
    let client = Client::new(socket)?;
    match arguments.mode {
        Word::Off | Word::Observe => set(&client, Enforcement::Observe)?,
        Word::Notify => set(&client, Enforcement::Notify)?,
        Word::Enforce => set(&client, Enforcement::Enforce)?,
        Word::Confirm => {
            client.write("/v1/enforcement/confirm", &json!({}))?;
            print("the accounts that were held back may be stopped\n");
        }
    }
    Ok(Exit::Done)
}

/// Sets the mode and says so.
pub(super) fn set(client: &Client, mode: Enforcement) -> Result<(), Failure> {
    client.write("/v1/enforcement", &SetEnforcement { mode }.to_json())?;
    print(&format!("enforcement is now {mode}\n"));
    Ok(())
}
