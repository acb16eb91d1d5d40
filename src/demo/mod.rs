//! `meterd demo`: what the agent does, shown on this machine with real processes in under a minute.
//!
//! The agent with its embedded authority runs in a temporary folder as a process of its own; jobs are started the way `meterctl run`
//! starts them. Every number printed was measured, and each step is checked beside the agent's word: by the kernel's own files
//! ([`kernel`]), by the jobs' exit statuses, by computing the receipts again. Whatever does not happen ends the demo with exit code 1.

mod burn;
mod kernel;
mod screen;
mod script;
mod stage;

use std::path::PathBuf;
use std::process::ExitCode;

pub use burn::{Part, play};
use screen::Ink;
use stage::{Kept, Stage};

/// How the demo is run.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Keep the folder with configuration, journal, logs and receipts. It is kept too when a step fails.
    #[arg(long)]
    keep: bool,
    /// In which directory the demo's folder is made; else in that for temporary files.
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// The end of the demo before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// A step did not happen.
    Failed {
        /// Which.
        step: &'static str,
        /// What should have been.
        expected: String,
        /// What was.
        seen: String,
    },
    /// A signal asked for it.
    Interrupted,
}

impl Stop {
    #[expect(clippy::needless_pass_by_value, reason = "errors come by value out of map_err")]
    fn failed(step: &'static str, expected: impl Into<String>, seen: impl ToString) -> Stop {
        Stop::Failed { step, expected: expected.into(), seen: seen.to_string() }
    }
}

/// Runs the demo. Exit code 0: every step happened and nothing is left behind; 1: not so.
#[must_use]
pub fn run(arguments: &Arguments) -> ExitCode {
    let base = arguments.folder.clone().unwrap_or_else(std::env::temp_dir);
    let mut stage = match Stage::set_up(&base) {
        Ok(stage) => stage,
        Err(stop) => {
            tell(&stop);
            return ExitCode::FAILURE;
        }
    };
    let played = script::play(&mut stage);
    let wanted = if arguments.keep || matches!(played, Err(Stop::Failed { .. })) { Kept::Yes } else { Kept::No };
    let taken_down = stage.take_down(wanted);
    for stop in [played.as_ref().err(), taken_down.as_ref().err()].into_iter().flatten() {
        tell(stop);
    }
    if wanted == Kept::Yes {
        eprintln!("kept: {} (the agent's log is agent.log)", stage.folder().display());
    }
    if played.is_err() || taken_down.is_err() {
        return ExitCode::FAILURE;
    }
    let done = format!("every step happened and was checked, in {} s; no process, cgroup{} is left", stage.elapsed_s(), wanted.or_folder());
    let done = stage.screen.ink(Ink::Green, &done);
    stage.screen.line("");
    stage.screen.line(&done);
    // A reader that went away has not seen the end.
    if stage.screen.closed().is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn tell(stop: &Stop) {
    match stop {
        Stop::Failed { step, expected, seen } => eprintln!("\nFAILED: {step}\n  expected: {expected}\n  seen:     {seen}"),
        Stop::Interrupted => eprintln!("\nINTERRUPTED: everything was taken down"),
    }
}
