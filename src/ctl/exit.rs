//! How `meterctl` ends.

use std::process::ExitCode;

/// The exit codes. 2 (usage) is clap's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// Refused or failed.
    Failed,
    /// `doctor` found something.
    Unwell,
    /// The agent does not answer.
    Unreachable,
    /// A hook's call could neither be made nor written down (`EX_TEMPFAIL`).
    NotSpooled,
}

impl Exit {
    /// As a number.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Unreachable => 3,
            Exit::Unwell => 4,
            Exit::NotSpooled => 75,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}
