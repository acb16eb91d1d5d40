//! `meterctl`: for people and for schedulers' hooks. One file a command; what is printed is made by pure functions.

mod account;
mod anchor;
mod authority;
mod card;
pub(crate) mod client;
mod doctor;
mod enforcement;
mod events;
mod exit;
mod generate;
mod html;
mod job;
mod jobs;
mod journal;
mod period;
pub mod quantity;
mod quote;
mod receipt;
mod reconcile;
mod replay;
mod report;
pub mod run;
mod status;
mod stored;
mod table;
mod thaw;
mod top;
mod verify;
pub(crate) mod why;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use serde_json::Value;

use client::{Client, Failure};
pub use exit::Exit;

/// Where the agent listens unless told otherwise.
pub const SOCKET: &str = "/run/meterd/meterd.sock";
/// The environment variable that names another socket.
pub const SOCKET_VARIABLE: &str = "METERD_SOCKET";
/// Where the agent keeps its journal unless told otherwise.
pub const STATE_DIR: &str = "/var/lib/meterd";

/// Starts, stops and explains metered jobs, and keeps their accounts.
///
/// Exit codes: 0 done, 1 refused or failed, 2 usage, 3 the agent does not answer, 4 doctor found something, 75 a hook's call could neither be made nor written
/// down. `run` ends with its command's exit code, or 128 plus the number of the signal that ended it.
#[derive(Debug, Parser)]
#[command(name = "meterctl", version, about, max_term_width = 120)]
pub struct Arguments {
    /// The agent's socket; else that of `METERD_SOCKET`, else /run/meterd/meterd.sock.
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs: the agent's own document.
    Json,
}

/// The choice of output, for commands that print an answer.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Format {
    /// How the answer is printed.
    #[arg(long, short, value_enum, default_value = "text")]
    output: Output,
}

/// Every command.
#[derive(Debug, Subcommand)]
enum Command {
    /// Start or stop the metering of a job.
    #[command(subcommand)]
    Job(job::Command),
    /// Run a command as a metered job.
    Run(run::Arguments),
    /// (internal) The process that becomes a job's command.
    #[command(hide = true)]
    RunChild(run::ChildArguments),
    /// How the agent does.
    Status(Format),
    /// What is wrong on this node, and what to do about it; works without the agent.
    Doctor(doctor::Arguments),
    /// Accounts and jobs as they stand, again and again.
    Top(top::Arguments),
    /// The jobs that you may see.
    Jobs(jobs::Arguments),
    /// What happened, one line each, as it becomes durable.
    Events(events::Arguments),
    /// Why a job stands where it does: from the counter to the system call.
    Why(why::Arguments),
    /// What a job used and costs.
    Receipt(receipt::Arguments),
    /// Compute a receipt or a log again from its quantities and the rate cards, without the agent.
    Verify(verify::Arguments),
    /// What was spent: by account, project, user, model, label, job or day; statements, and whether receipts and ledger agree.
    Report(report::Arguments),
    /// What a job would cost.
    Quote(Box<quote::Arguments>),
    /// The accounts that you may see.
    Accounts(Format),
    /// Open, credit and look at accounts.
    Account(authority::AccountArguments),
    /// Check and export the agent's journal, without the agent.
    #[command(subcommand)]
    Journal(journal::Command),
    /// Check rate cards.
    #[command(subcommand)]
    Card(card::Command),
    /// Try prices.
    #[command(subcommand)]
    Rate(card::RateCommand),
    /// How far the agent goes against jobs without credit.
    Enforcement(enforcement::Arguments),
    /// Print a shell's completion script.
    Completions(generate::Completions),
    /// (internal) Write the manual pages and completion scripts, for packages.
    #[command(hide = true)]
    Generate(generate::Arguments),
    /// Let every job go on that the agent froze; works without the agent.
    Thaw(thaw::Arguments),
}

/// Does what the arguments say.
#[must_use]
pub fn main(arguments: Arguments) -> ExitCode {
    let named = named_socket(arguments.socket);
    let socket = named.clone().unwrap_or_else(|| PathBuf::from(SOCKET));
    let done = match arguments.command {
        Command::Job(command) => job::main(&socket, command),
        Command::Run(run) => return run::main(&socket, &run),
        Command::RunChild(child) => return run::become_command(child),
        Command::Status(format) => show(&socket, "/v1/status", format, status::text),
        Command::Doctor(doctor) => doctor::main(named.as_deref(), &doctor),
        Command::Top(top) => top::main(&socket, &top),
        Command::Jobs(jobs) => jobs::main(&socket, &jobs),
        Command::Events(events) => events::main(&socket, &events),
        Command::Why(why) => why::main(&socket, &why),
        Command::Receipt(receipt) => receipt::main(&socket, &receipt),
        Command::Verify(verify) => verify::main(&verify),
        Command::Report(report) => report::main(&socket, &report),
        Command::Quote(quote) => quote::main(&socket, *quote),
        Command::Accounts(format) => show(&socket, "/v1/accounts", format, account::list_text),
        Command::Account(arguments) => account::main(&arguments.remote.door(socket), arguments.command),
        Command::Journal(command) => journal::main(&command),
        Command::Card(command) => card::main(&command),
        Command::Rate(command) => card::rate_main(&socket, &command),
        Command::Enforcement(mode) => enforcement::main(&socket, &mode),
        Command::Completions(completions) => Ok(generate::completions(&completions)),
        Command::Generate(generate) => generate::main(&generate),
        Command::Thaw(thaw) => thaw::main(&socket, &thaw),
    };
    let exit = done.unwrap_or_else(|failure| {
        complain(&failure.to_string());
        failure.exit()
    });
    exit.into()
}

/// The socket that the caller names, if it names one.
fn named_socket(given: Option<PathBuf>) -> Option<PathBuf> {
    let named = || std::env::var_os(SOCKET_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    given.or_else(named)
}

/// Prints a document of the agent, as it is or as text.
fn show<T: serde::de::DeserializeOwned>(
    to: &(impl client::Reach + ?Sized),
    path: &str,
    format: Format,
    text: impl Fn(&T) -> String,
) -> Result<Exit, Failure> {
    let document = Client::new(to)?.read(path)?;
    print_as(&document, format, text)
}

fn print_as<T: serde::de::DeserializeOwned>(document: &Value, format: Format, text: impl Fn(&T) -> String) -> Result<Exit, Failure> {
    match format.output {
        Output::Json => print(&format!("{document:#}\n")),
        Output::Text => print(&text(&client::typed(document.clone())?)),
    }
    Ok(Exit::Done)
}

/// To standard output. A reader that went away has seen enough.
fn print(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// To standard error, with this program's name before each line.
fn complain(text: &str) {
    let mut err = std::io::stderr().lock();
    for line in text.lines() {
        let _ = writeln!(err, "meterctl: {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_slurm_hooks_calls_are_understood() {
        let prolog = "meterctl job start --hook --job slurm:1 --account lab --uid 1000 --slurm-job 1 --slurm-sluid s5 --gpus 0,1";
        let epilog = "meterctl job stop --hook slurm:1 --exit-code 137";
        for line in [prolog, epilog] {
            assert!(Arguments::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
    }

    #[test]
    fn a_job_is_in_one_place() {
        let both = "meterctl job start --job a --account lab --pid 1 --slurm-job 1";
        let none = "meterctl job start --job a --account lab";
        for line in [both, none] {
            assert!(Arguments::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn what_follows_the_dashes_is_the_command_s() {
        let line = "meterctl run --account lab -- sh -c exit --time-limit 1";
        let Command::Run(run) = Arguments::try_parse_from(line.split(' ')).unwrap().command else { panic!("run") };
        assert_eq!(run.command(), ["sh", "-c", "exit", "--time-limit", "1"]);
    }

    #[test]
    fn the_help_reads_well() {
        insta::assert_snapshot!(Arguments::command().term_width(120).render_long_help());
    }
}
