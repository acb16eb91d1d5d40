//! The agent: a service on every compute node. `meterd demo` shows what it does on this machine.

#[cfg(target_arch = "x86_64")]
#[path = "../allocator.rs"]
mod allocator;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser as _;
use meterd::domain::form::Mistake;
use meterd::domain::meter::Reading;
use meterd::domain::rates::Card;
use meterd::node::arguments::{Arguments, Command};
use meterd::node::config::{Config, ConfigFailure};
use meterd::node::daemon::{Daemon, StartError};
use meterd::node::handle::{Handle, Inbox};
use meterd::node::journal::JournalError;
use meterd::node::priority::raise_priority;
use meterd::node::run::Ended;
use meterd::node::{core_dump, log, systemd};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Exit codes; those above 2 are of sysexits(3).
#[derive(Clone, Copy)]
enum Exit {
    Done = 0,
    Failed = 1,
    Io = 74,
    NotPermitted = 77,
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        let code: u8 = match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Io => 74,
            Exit::NotPermitted => 77,
            Exit::Config => 78,
        };
        ExitCode::from(code)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::Demo(demo)) => return meterd::demo::run(&demo),
        Some(Command::DemoPart(part)) => return meterd::demo::play(&part),
        Some(Command::RunChild(child)) => return meterd::ctl::run::become_command(child),
        None => {}
    }
    if arguments.print_default_config {
        print!("{}", Config::default_text());
        return Exit::Done.into();
    }
    let refuse = |mistakes: Vec<String>| {
        for mistake in mistakes {
            eprintln!("{mistake}");
        }
        if !arguments.check_config {
            systemd::turn_away();
        }
        ExitCode::from(Exit::Config)
    };
    let (config, card) = match load(&arguments.config) {
        Ok(loaded) => loaded,
        Err(mistakes) => return refuse(mistakes),
    };
    // Where only signed cards count, whoever spoils the file must not keep the agent from enforcing by the last good one.
    let goes_without = !arguments.check_config && config.rate_card_key.is_some();
    let card = match card {
        Err(mistakes) if !goes_without => return refuse(mistakes),
        card => card,
    };
    if let (true, Ok(card)) = (arguments.check_config, &card) {
        println!("{}: no mistakes; rate card {} version {}", arguments.config.display(), card.name, card.version);
        return Exit::Done.into();
    }
    if let Err(error) = log::start(config.log.format, config.log.level.name()) {
        eprintln!("logging: {error}");
        return Exit::Config.into();
    }
    serve(&arguments.config, &config, card).into()
}

/// Every mistake, as it is told.
type Mistakes = Vec<String>;

/// The configuration and its rate card, or every mistake in them.
fn load(path: &Path) -> Result<(Config, Result<Card, Mistakes>), Mistakes> {
    let named = |mistakes: Vec<Mistake>| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>();
    let config = Config::load(path).map_err(|failure| match failure {
        ConfigFailure::Mistakes(mistakes) => named(mistakes),
        unreadable @ ConfigFailure::Unreadable { .. } => vec![unreadable.to_string()],
    })?;
    let card = read_card(&config);
    Ok((config, card))
}

/// The card, if it is one and whoever must vouch for it does.
fn read_card(config: &Config) -> Result<Card, Mistakes> {
    let shown = config.rate_card.display().to_string();
    let text = std::fs::read_to_string(&config.rate_card).map_err(|error| vec![format!("rate_card: {shown}: {error}")])?;
    if let Some(key) = config.rate_card_key {
        key.check(&text).map_err(|why| vec![format!("rate_card: {shown}: {why}: meterctl rate sign")])?;
    }
    Card::parse(&text, &shown).map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
}

fn serve(path: &Path, config: &Config, card: Result<Card, Mistakes>) -> Exit {
    if let Err(error) = core_dump::forbid() {
        tracing::warn!(event = "core_dumps", %error, "a crash may leave a core with what this agent knows of everybody");
    }
    // Recovery must not wait for a CPU that jobs keep busy. Threads that are started from here are ordinary ones; this one only waits later.
    if let Reading::Missing(why) = raise_priority() {
        tracing::debug!(event = "start_priority", %why);
    }
    let (card, unfit) = match card {
        Ok(card) => (Some(card), None),
        Err(mistakes) => (None, Some(mistakes)),
    };
    let daemon = match Daemon::start(config, card) {
        Ok(daemon) => daemon,
        Err(error) => {
            tracing::error!(event = "not_started", %error);
            systemd::turn_away();
            return match error {
                StartError::Journal(JournalError::Locked(_)) => Exit::Failed,
                StartError::Journal(_) | StartError::Unreadable(_) | StartError::Authority(_) => Exit::Io,
                StartError::Io { error, .. } if error.kind() == std::io::ErrorKind::PermissionDenied => Exit::NotPermitted,
                StartError::Io { .. } => Exit::Failed,
            };
        }
    };
    if let Some(mistakes) = unfit {
        daemon.handle().report(Inbox::CardUnfit(mistakes.join("; ")));
    }
    if let Err(error) = obey_signals(path.to_owned(), daemon.handle()) {
        tracing::error!(event = "no_signals", %error);
        return Exit::Failed;
    }
    tracing::info!(event = "started", node = %daemon.node(), enforcement = %config.enforcement, version = env!("CARGO_PKG_VERSION"));
    match daemon.wait() {
        Ended::Drained => {
            tracing::info!(event = "ended", "everything known is on disk; frozen jobs stay frozen");
            Exit::Done
        }
        Ended::Fatal(why) => {
            tracing::error!(event = "fatal", %why, "a new start recovers from the journal");
            Exit::Io
        }
    }
}

/// SIGTERM and SIGINT end the agent, a second one at once; SIGHUP reads configuration and card again.
fn obey_signals(path: PathBuf, handle: Handle) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let obey = move || {
        let mut asked = false;
        for signal in signals.forever() {
            match signal {
                SIGHUP => reload(&path, &handle),
                _ if asked => std::process::exit(i32::from(1_u8)),
                _ => {
                    asked = true;
                    systemd::stopping();
                    handle.report(Inbox::Drain);
                }
            }
        }
    };
    std::thread::Builder::new().name("meterd-signals".to_owned()).spawn(obey).map(drop)
}

/// All of it is taken, or nothing: with a mistake the last good configuration and card go on.
fn reload(path: &Path, handle: &Handle) {
    systemd::reloading();
    match load(path) {
        Ok((config, Ok(card))) => {
            handle.report(Inbox::Configured(config.enforcement));
            handle.report(Inbox::Card(Box::new(card)));
            tracing::info!(event = "reloaded", "mode of enforcement and rate card; other settings need a restart");
        }
        Ok((_, Err(mistakes))) => {
            say(&mistakes);
            handle.report(Inbox::CardUnfit(mistakes.join("; ")));
        }
        Err(mistakes) => say(&mistakes),
    }
    systemd::ready();
}

fn say(mistakes: &[String]) {
    for mistake in mistakes {
        tracing::error!(event = "reload_refused", %mistake);
    }
}
