//! The arguments of `meterd`. They stand here, and not with the program, so that its manual page can be made from them.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Node-side metering agent: measures jobs, rates them exactly, and stops what has no credit left.
///
/// Exit codes: 0 ended as asked, 1 could not go on, 2 usage, 74 journal or disk, 77 not permitted, 78 configuration.
#[derive(Debug, Parser)]
#[command(name = "meterd", version, about, max_term_width = 120)]
pub struct Arguments {
    /// The configuration.
    #[arg(long, default_value = "/etc/meterd/meterd.toml")]
    pub config: PathBuf,
    /// Check the configuration and the rate card, name every mistake, and end.
    #[arg(long)]
    pub check_config: bool,
    /// Print the configuration that holds where a file says nothing, and end.
    #[arg(long)]
    pub print_default_config: bool,
    #[command(subcommand)]
    /// Something else than serving.
    pub command: Option<Command>,
}

/// What `meterd` does besides serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show on this machine, in a temporary folder and in under a minute, what the agent does.
    Demo(crate::demo::Arguments),
    /// (internal) A process of the demo.
    #[command(hide = true, subcommand)]
    DemoPart(crate::demo::Part),
    /// (internal) The process that becomes a job's command.
    #[command(hide = true)]
    RunChild(crate::ctl::run::ChildArguments),
}
