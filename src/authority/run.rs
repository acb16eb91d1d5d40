//! `meter-authority`: what its command line says, and the life of the server.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use rustix::fs::FlockOperation;
use sha2::{Digest as _, Sha256};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::sync::{mpsc, watch};

use super::audit::Audit;
use super::config::{self, Config};
use super::embedded::{Embedded, Notice};
use super::engine::config::enrol;
use super::engine::http::Http;
use super::events::{Event, Hub};
use super::identity::Role;
use super::openapi;
use super::proof_key;
use super::server::{LOOK_EVERY, Live, SWEEP_EVERY, Shared, serve};
use super::store::backup::{MARKER, backup, restore};
use super::store::standing::{RECOVERY, Tally};
use super::store::{GangPush, Store, StoreError};
use crate::domain::id::{Digest, NodeId};
use crate::domain::ledger::{AccountNotice, ClosePolicy, Recovery, Trust};
use crate::domain::news::News;
use crate::node::config::ConfigFailure;
use crate::node::own_folder::{self, Privacy};
use crate::node::{clock, log, systemd};

/// How long open connections have to end.
const END_WITHIN: Duration = Duration::from_secs(5);

/// The balance authority for a fleet of nodes: keeps accounts and grants credit to them, over mutual TLS.
///
/// Exit codes: 0 done, 1 failed, 2 usage, 74 the disk or the balances failed, 78 mistakes in the configuration.
#[derive(Debug, Parser)]
#[command(name = "meter-authority", version, about, max_term_width = 120)]
pub struct Arguments {
    /// The configuration.
    #[arg(long, global = true, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve nodes and people until SIGTERM; SIGHUP reads certificates, tokens, revocations and the card again.
    Serve,
    /// Read the configuration and every file that it names, and say what is wrong.
    Check,
    /// Print the default configuration.
    PrintDefaultConfig,
    /// Copy the balances as they are at this instant to a new file; the authority may go on meanwhile.
    Backup {
        /// The new file.
        file: PathBuf,
    },
    /// Put a copy in the place of the balances; the authority must not be running. Afterwards it grants nothing for eleven minutes.
    Restore {
        /// The copy.
        file: PathBuf,
        /// The key of the proofs (proof.key beside the balances) is lost: believe nodes what they say they were granted since the copy was made.
        #[arg(long)]
        key_lost: bool,
    },
    /// Make a token: it is written to a new file, and its entry for the file of tokens is printed.
    NewToken(NewToken),
    /// Print the `OpenAPI` document.
    Openapi,
}

/// Whose a token is.
#[derive(Debug, clap::Args)]
#[group(required = true)]
struct NewToken {
    /// A node's.
    #[arg(long, conflicts_with_all = ["role", "name"])]
    node: Option<NodeId>,
    /// A person's or program's, in this role.
    #[arg(long, requires = "name", value_parser = role)]
    role: Option<Role>,
    /// Its name, for the audit log.
    #[arg(long, requires = "role")]
    name: Option<NodeId>,
    /// Where the token goes.
    file: PathBuf,
}

fn role(text: &str) -> Result<Role, String> {
    Role::ALL.into_iter().find(|role| role.name() == text).ok_or_else(|| "reader, operator or admin".to_owned())
}

#[derive(Clone, Copy)]
enum Exit {
    Done = 0,
    Failed = 1,
    Io = 74,
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        let code: u8 = match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Io => 74,
            Exit::Config => 78,
        };
        ExitCode::from(code)
    }
}

/// Does what the arguments say.
#[must_use]
pub fn main(arguments: &Arguments) -> ExitCode {
    let done = match &arguments.command {
        Command::PrintDefaultConfig => {
            print!("{}", Config::default_text());
            Ok(())
        }
        Command::Openapi => {
            println!("{:#}", openapi::document());
            Ok(())
        }
        Command::NewToken(wanted) => new_token(wanted),
        Command::Serve => load(&arguments.config).and_then(start),
        Command::Check => load(&arguments.config).and_then(|config| check(&arguments.config, &config)),
        Command::Backup { file } => load(&arguments.config).and_then(|config| {
            let accounts = backup(&config.store(), file).map_err(|error| stored(&error))?;
            println!("{}: {accounts} accounts, whole and in balance", file.display());
            Ok(())
        }),
        Command::Restore { file, key_lost } => {
            let trust = if *key_lost { Trust::Words } else { Trust::Proofs };
            load(&arguments.config).and_then(|config| put_back(&config, file, trust))
        }
    };
    done.map_or_else(ExitCode::from, |()| Exit::Done.into())
}

fn stored(error: &StoreError) -> Exit {
    eprintln!("{error}");
    Exit::Io
}

fn failed(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Exit {
    move |error| {
        eprintln!("{what}: {error}");
        Exit::Failed
    }
}

fn load(path: &Path) -> Result<Config, Exit> {
    Config::load(path).map_err(|failure: ConfigFailure| {
        eprintln!("{failure}");
        Exit::Config
    })
}

fn check(path: &Path, config: &Config) -> Result<(), Exit> {
    let read = (live(config), engine(config)); // both say what is wrong
    read.0.and(read.1)?;
    println!("{}: no mistakes", path.display());
    Ok(())
}

fn live(config: &Config) -> Result<Live, Exit> {
    Live::load(config).map_err(|mistakes| {
        for mistake in mistakes {
            eprintln!("{mistake}");
        }
        Exit::Config
    })
}

/// The way to the billing engine, where there is one.
fn engine(config: &Config) -> Result<Option<Http>, Exit> {
    config.engine.clone().map(Http::open).transpose().map_err(|why| {
        eprintln!("[engine]: {why}");
        Exit::Config
    })
}

/// Two processes over the same balances would each believe to be alone.
fn lock(config: &Config) -> Result<std::fs::File, Exit> {
    own_folder::make(&config.state_dir, Privacy::Secret).map_err(failed(config.state_dir.display()))?;
    let path = config.state_dir.join("lock");
    let file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed(path.display()))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
        eprintln!("{}: an authority is running over these balances ({error})", path.display());
        Exit::Failed
    })?;
    Ok(file)
}

fn put_back(config: &Config, file: &Path, trust: Trust) -> Result<(), Exit> {
    let _lock = lock(config)?;
    let key = proof_key::path(&config.state_dir);
    if trust == Trust::Proofs && !key.exists() {
        eprintln!("{}: not there: what nodes were granted since the copy was made could not be proved", key.display());
        eprintln!("hint: put the key back; if it is lost, --key-lost believes nodes what they say");
        return Err(Exit::Failed);
    }
    let (accounts, kept) = restore(&config.state_dir, file, trust, clock::now()).map_err(|error| stored(&error))?;
    println!("{}: {accounts} accounts are in place", config.store().display());
    if let Some(kept) = kept {
        println!("{}: what was there before", kept.display());
    }
    println!(
        "the authority, once started, takes reports and grants nothing for {} seconds: it may have forgotten grants",
        RECOVERY.0 / 1_000_000_000
    );
    Ok(())
}

fn new_token(wanted: &NewToken) -> Result<(), Exit> {
    let mut bytes = [0_u8; 32];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    if filled != Ok(bytes.len()) {
        eprintln!("the kernel gave no random number");
        return Err(Exit::Failed);
    }
    let token = Digest(bytes).to_string();
    let new = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&wanted.file);
    let written = new.and_then(|mut file| {
        std::io::Write::write_all(&mut file, format!("{token}\n").as_bytes())?;
        file.sync_all()
    });
    written.map_err(failed(wanted.file.display()))?;
    println!("[[token]]\nsha256 = \"{}\"", Digest(Sha256::digest(&token).into()));
    match (&wanted.node, wanted.role, &wanted.name) {
        (Some(node), ..) => println!("node = \"{node}\""),
        (None, Some(role), Some(name)) => println!("role = \"{}\"\nname = \"{name}\"", role.name()),
        _ => {}
    }
    Ok(())
}

/// What ends the server, or has it read its files again.
enum Order {
    Reload,
    End,
    Fatal(String),
}

fn start(config: Config) -> Result<(), Exit> {
    if let Err(error) = log::start(config.log.format, config.log.level.name()) {
        eprintln!("logging: {error}");
        return Err(Exit::Config);
    }
    let (live, engine) = (live(&config)?, engine(&config)?);
    let _lock = lock(&config)?;
    let (orders, obeyed) = mpsc::unbounded_channel();
    let hub = Arc::new(Hub::default());
    let (authority, tally) = authority(&config, &hub, orders.clone())?;
    let authority = match engine {
        Some(http) => authority.with_engine(http, clock::now).map_err(failed("the engine's thread"))?,
        None => authority,
    };
    let audit = config.state_dir.join("audit.jsonl");
    let audit = Audit::open(&audit).map_err(failed(audit.display()))?;
    obey_signals(orders).map_err(failed("signals"))?;
    let listen = config.listen;
    let shared = Shared::new(config, (authority, tally), hub, audit, live);
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("authority-net").enable_all().build();
    let runtime = runtime.map_err(failed("network threads"))?;
    let ended = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(listen).await.map_err(failed(listen))?;
        let address = listener.local_addr().map_err(failed(listen))?;
        tracing::info!(event = "started", %address, version = env!("CARGO_PKG_VERSION"));
        systemd::ready();
        Ok(attend(&shared, listener, obeyed).await)
    });
    runtime.shutdown_timeout(END_WITHIN);
    match ended? {
        None => {
            tracing::info!(event = "ended", "everything answered is on disk");
            Ok(())
        }
        Some(why) => {
            tracing::error!(event = "fatal", %why, "a new start reads what is on disk");
            Err(Exit::Io)
        }
    }
}

fn authority(config: &Config, hub: &Arc<Hub>, orders: mpsc::UnboundedSender<Order>) -> Result<(Embedded, Arc<Tally>), Exit> {
    let close = ClosePolicy::AfterSilence(config.close_after);
    let mut store = Store::open(&config.store(), close, clock::mono()).map_err(|error| stored(&error))?;
    store.prove_with(proof_key::load(&config.state_dir).map_err(failed(proof_key::path(&config.state_dir).display()))?);
    let marker = config.state_dir.join(MARKER);
    if marker.exists() {
        store.recover(Trust::Proofs, clock::now()).map_err(|error| stored(&error))?;
        std::fs::remove_file(&marker).map_err(failed(marker.display()))?;
    }
    if store.recovery() != Recovery::Over {
        tracing::warn!(event = "recovering", length = %RECOVERY, "the balances were put back from a copy: reports are taken, nothing is granted");
    }
    enrol(&mut store, config.engine.as_ref(), clock::now()).map_err(|error| stored(&error))?;
    let hub = Arc::clone(hub);
    let told = move |notice| match notice {
        Notice::Push(push, change) => hub.tell(&Event::Account(change.name(), push), None),
        Notice::Account(account, what @ (AccountNotice::Unproven { .. } | AccountNotice::Proven { .. })) => {
            tracing::warn!(event = "claim", %account, ?what, "a node says that it was granted more than the store knows");
        }
        Notice::Gang(GangPush { want, nodes }) => hub.tell(&Event::Gang(want, nodes), None),
        // Alerts, refills and storage: whoever runs the authority follows its log, and the nodes' events hold them too.
        Notice::Account(account, what) => {
            tracing::info!(event = "account", %account, ?what);
            if let Some(news) = News::of(&what) {
                hub.tell(&Event::News(account, news), None);
            }
        }
        Notice::Full(error) => tracing::error!(event = "store_full", %error, "questions are refused until there is space"),
        Notice::Recovered => tracing::info!(event = "store_recovered"),
        Notice::Fatal(error) => drop(orders.send(Order::Fatal(error.to_string()))), // if nobody obeys any more, it is ending
    };
    let tally = store.tally();
    let authority = Embedded::start(store, clock::now, told).map_err(failed("the authority's thread"))?;
    Ok((authority, tally))
}

/// SIGTERM and SIGINT end the server, a second one at once; SIGHUP has it read its files again.
fn obey_signals(orders: mpsc::UnboundedSender<Order>) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let obey = move || {
        let mut asked = false;
        for signal in signals.forever() {
            let order = match signal {
                SIGHUP => Order::Reload,
                _ if asked => std::process::exit(1),
                _ => {
                    asked = true;
                    systemd::stopping();
                    Order::End
                }
            };
            drop(orders.send(order)); // if nobody obeys any more, it is ending
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(obey).map(drop)
}

/// Serves, and looks after files and silent nodes, until an order ends it. Gives why, where it is a failure.
async fn attend(shared: &Arc<Shared>, listener: tokio::net::TcpListener, mut orders: mpsc::UnboundedReceiver<Order>) -> Option<String> {
    let (end, ending) = watch::channel(false);
    let serving = tokio::spawn(serve(Arc::clone(shared), listener, ending));
    let (mut look, mut sweep) = (tokio::time::interval(LOOK_EVERY), tokio::time::interval(SWEEP_EVERY));
    let why = loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(Order::Reload) => {
                    systemd::reloading();
                    reload(shared).await;
                    systemd::ready();
                }
                Some(Order::Fatal(why)) => break Some(why),
                Some(Order::End) | None => break None,
            },
            _ = look.tick() => reload(shared).await,
            _ = sweep.tick() => {
                let swept = Arc::clone(shared);
                if let Ok(Err(refusal)) = tokio::task::spawn_blocking(move || swept.sweep()).await {
                    tracing::warn!(event = "not_swept", %refusal);
                }
            }
        }
    };
    end.send_replace(true);
    if tokio::time::timeout(END_WITHIN, serving).await.is_err() {
        tracing::debug!(event = "connections_left");
    }
    why
}

async fn reload(shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    if let Err(error) = tokio::task::spawn_blocking(move || shared.reload()).await {
        tracing::error!(event = "reload_failed", %error);
    }
}
