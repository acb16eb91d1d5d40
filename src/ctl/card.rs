//! `meterctl card check` and `meterctl rate explain`: rate cards, without the agent.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::client::Failure;
use super::exit::Exit;
use super::job::read_trait;
use super::quantity::{bytes, length, storage};
use super::table::{Align, table};
use super::verify::{card, read};
use super::{complain, print, replay};
use crate::domain::form::Mistake;
use crate::domain::id::{GpuId, GpuModel, LineId};
use crate::domain::money::Credits;
use crate::domain::outcome::Outcome;
use crate::domain::rates::charge::explain;
use crate::domain::rates::check::check;
use crate::domain::rates::{Card, CardKey, GpuSelector, Priced, SecretCardKey, Stated, Trait, Traits};
use crate::domain::receipt::rfc3339;
use crate::domain::time::{Nanos, Wall};
use crate::domain::usage::{HeldGpu, More, Usage};
use crate::node::random::fresh_key;

/// What to do with a card.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Name every mistake in a card, or show what it says.
    Check {
        /// The card.
        #[arg(value_name = "FILE")]
        card: PathBuf,
    },
}

/// What to do with prices.
#[derive(Debug, Subcommand)]
pub(super) enum RateCommand {
    /// Name every mistake in a card, and what is probably wrong with one that can be read: holes, overlaps, lines that never matter,
    /// wrong units, selectors that nothing matches.
    Check {
        /// The card.
        #[arg(value_name = "FILE")]
        card: PathBuf,
        /// It must be signed by this public key (`rate_card_key` in meterd.toml).
        #[arg(long)]
        key: Option<CardKey>,
    },
    /// Make a key to sign cards with: the secret goes into a new file that only you can read, the public one is printed.
    Key {
        /// The new file.
        #[arg(value_name = "FILE")]
        secret: PathBuf,
    },
    /// Sign a card in its own file, as its last line. A card with mistakes is not signed.
    Sign {
        /// The card.
        #[arg(value_name = "FILE")]
        card: PathBuf,
        /// The file of the secret key.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Show what some usage would cost, line by line.
    Explain(Box<Explain>),
    /// What the stored jobs would have cost under a draft of a card: who pays more, who pays less.
    Replay(replay::Arguments),
}

/// Some usage under a card.
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// The card.
    #[arg(long, value_name = "FILE")]
    card: PathBuf,
    #[command(flatten)]
    shape: Shape,
}

/// A job's shape and length.
#[derive(Debug, Args)]
pub(super) struct Shape {
    /// For how long the job runs.
    #[arg(long, value_parser = length, value_name = "LENGTH", default_value = "1h")]
    run: Nanos,
    /// CPU time in all; for a quote, without it, that of all its CPUs (1, if not stated) for all the time.
    #[arg(long, value_parser = length, value_name = "LENGTH")]
    cpu: Option<Nanos>,
    /// Memory held all the time.
    #[arg(long, value_parser = bytes, value_name = "SIZE")]
    memory: Option<u64>,
    /// How many GPUs are held all the time.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=256))]
    gpus: u32,
    /// Of which model, as NVML names it.
    #[arg(long, value_name = "MODEL", default_value = "GPU")]
    gpu_model: String,
    /// CPUs as stated at the start, for lines that price by that.
    #[arg(long)]
    cpus: Option<u32>,
    /// For how long it stands still for want of credit …
    #[arg(long, value_parser = length, value_name = "LENGTH")]
    frozen: Option<Nanos>,
    /// … and because somebody else has it stand still.
    #[arg(long, value_parser = length, value_name = "LENGTH")]
    paused: Option<Nanos>,
    /// What lines may select by: `tier=spot` …; may be given several times.
    #[arg(long = "trait", value_parser = read_trait, value_name = "NAME=VALUE")]
    traits: Vec<(Trait, LineId)>,
    /// What was bid for the start, for lines that mind it.
    #[arg(long, value_name = "CREDITS")]
    bid: Option<Credits>,
    /// How it ended; without it, it goes on.
    #[arg(long, value_parser = outcome)]
    outcome: Option<Outcome>,
    /// Storage that is provisioned all the time; 0 for none.
    #[arg(long, value_parser = storage, value_name = "SIZE")]
    storage: Option<u64>,
    /// How long each GPU computes.
    #[arg(long, value_parser = length, value_name = "LENGTH")]
    gpu_busy: Option<Nanos>,
    /// Memory in use on each GPU all the time.
    #[arg(long, value_parser = bytes, value_name = "SIZE")]
    gpu_memory: Option<u64>,
    /// Energy of each GPU, in watt-hours.
    #[arg(long, value_name = "WH")]
    energy_wh: Option<u64>,
    /// Bytes read and written.
    #[arg(long, value_parser = bytes, value_name = "SIZE")]
    io: Option<u64>,
    /// A counter of a hook's: `tokens=1500000`; may be given several times.
    #[arg(long = "counter", value_parser = named_count, value_name = "NAME=COUNT")]
    counters: Vec<(LineId, u64)>,
    /// Events of a hook's: `request=3`; may be given several times.
    #[arg(long = "event", value_parser = named_count, value_name = "NAME=COUNT")]
    events: Vec<(LineId, u64)>,
    /// When it began (RFC 3339); without it, when the card came into force.
    #[arg(long, value_parser = instant, value_name = "TIME")]
    at: Option<Wall>,
}

fn named_count(text: &str) -> Result<(LineId, u64), String> {
    let wrong = || format!("{text:?}: write NAME=COUNT, such as tokens=1500000");
    let (name, count) = text.split_once('=').ok_or_else(wrong)?;
    Ok((name.parse().map_err(|_| wrong())?, count.parse().map_err(|_| wrong())?))
}

/// What most usage has nothing of.
fn more(arguments: &Shape, gpus: &[GpuId]) -> Option<Box<More>> {
    let each = |amount: Option<u128>| amount.into_iter().flat_map(|amount| gpus.iter().map(move |gpu| (gpu.clone(), amount))).collect();
    let named = |counts: &[(LineId, u64)]| counts.iter().map(|(name, count)| (name.clone(), u128::from(*count))).collect();
    let more = More {
        gpu_busy_ns: each(arguments.gpu_busy.map(|busy| u128::from(busy.0))),
        gpu_memory_byte_ns: each(arguments.gpu_memory.map(|bytes| u128::from(bytes) * u128::from(arguments.run.0))),
        energy_mj: each(arguments.energy_wh.map(|wh| u128::from(wh) * 3_600_000)),
        io_bytes: arguments.io.map_or(0, u128::from),
        counters: named(&arguments.counters),
        events: named(&arguments.events),
    };
    Some(Box::new(more)).filter(|more| **more != More::default())
}

fn outcome(text: &str) -> Result<Outcome, String> {
    let known = || Outcome::ALL.map(Outcome::name).join(", ");
    Outcome::ALL.into_iter().find(|outcome| outcome.name() == text).ok_or_else(|| format!("one of {}", known()))
}

fn instant(text: &str) -> Result<Wall, String> {
    let time: jiff::Timestamp = text.parse().map_err(|_| format!("{text:?} is no instant: write 2026-03-01T12:00:00Z"))?;
    u64::try_from(time.as_millisecond()).map(Wall).map_err(|_| "it is before 1970".to_owned())
}

pub(super) fn main(command: &Command) -> Result<Exit, Failure> {
    let Command::Check { card: path } = command;
    print(&card_text(&card(path)?));
    Ok(Exit::Done)
}

pub(super) fn rate_main(socket: &Path, command: &RateCommand) -> Result<Exit, Failure> {
    let arguments = match command {
        RateCommand::Explain(arguments) => arguments,
        RateCommand::Check { card, key } => return checked(card, *key),
        RateCommand::Key { secret } => return make_key(secret),
        RateCommand::Sign { card, key } => return sign(card, key),
        RateCommand::Replay(arguments) => return replay::main(socket, arguments),
    };
    let card = card(&arguments.card)?;
    let (usage, gpus) = arguments.shape.usage()?;
    print(&explain(&card, &arguments.shape.priced((&usage, &gpus), &arguments.shape.traits(), &card)));
    Ok(Exit::Done)
}

fn make_key(path: &Path) -> Result<Exit, Failure> {
    let failed = |error: std::io::Error| Failure::Other(format!("{}: {error}", path.display()));
    let secret = SecretCardKey::of(fresh_key().map_err(failed)?);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(secret.to_file().as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    print(&format!("rate_card_key = \"{}\"\n", secret.public()));
    Ok(Exit::Done)
}

fn sign(path: &Path, key: &Path) -> Result<Exit, Failure> {
    let secret: SecretCardKey = read(key)?.parse().map_err(|error| Failure::Other(format!("{}: {error}", key.display())))?;
    let card = card(path)?;
    let signed = secret.sign(&read(path)?);
    // Whole or not at all: an agent may read it at any instant.
    let new = path.with_extension("signed");
    let written = std::fs::write(&new, signed).and_then(|()| std::fs::rename(&new, path));
    written.map_err(|error| Failure::Other(format!("{}: {error}", path.display())))?;
    print(&format!("signed: card {} version {}, by {}\n", card.name, card.version, secret.public()));
    Ok(Exit::Done)
}

fn checked(path: &Path, key: Option<CardKey>) -> Result<Exit, Failure> {
    if let Some(Err(why)) = key.map(|key| Ok::<_, Failure>(key.check(&read(path)?))).transpose()? {
        complain(&format!("[not_vouched_for] {}: {why}; sign it: meterctl rate sign\n", path.display()));
        return Ok(Exit::Failed);
    }
    let listed = |mistakes: &[Mistake]| {
        let lines: Vec<String> = mistakes.iter().map(|mistake| format!("[{}] {mistake}\n", mistake.code)).collect();
        lines.concat()
    };
    match check(&read(path)?, &path.display().to_string()) {
        Ok((card, found)) if found.is_empty() => {
            print(&card_text(&card));
            Ok(Exit::Done)
        }
        Ok((_, found)) | Err(found) => {
            complain(&listed(&found));
            Ok(Exit::Failed)
        }
    }
}

impl Shape {
    /// For how long it runs.
    pub(super) fn length(&self) -> Nanos {
        self.run
    }

    /// What is stated of it.
    pub(super) fn traits(&self) -> Traits {
        self.traits.iter().cloned().collect()
    }

    /// With the CPU time that it can use at most, where none is given.
    pub(super) fn at_most(mut self) -> Shape {
        let cpus = u64::from(self.cpus.unwrap_or(1));
        self.cpu.get_or_insert(Nanos(self.run.0.saturating_mul(cpus)));
        self
    }

    /// What a card prices of it.
    pub(super) fn priced<'a>(&self, (usage, gpus): (&'a Usage, &'a [HeldGpu]), traits: &'a Traits, card: &Card) -> Priced<'a> {
        let at = self.at.unwrap_or(card.effective_from);
        let stated = Stated { at, traits, cpus: self.cpus, memory_bytes: self.memory, storage_bytes: self.storage, bid: self.bid };
        Priced { usage, gpus, before: &[], stated, ended: self.outcome }
    }

    /// What it uses, and the devices that it holds.
    pub(super) fn usage(&self) -> Result<(Usage, Vec<HeldGpu>), Failure> {
        let still_ns = |length: Option<Nanos>| length.map_or(0, |length| u128::from(length.0));
        let paused_ns = still_ns(self.paused);
        // Whom another has stand still keeps its place, its memory and its devices: that time is among the running.
        let wall_ns = u128::from(self.run.0) + paused_ns;
        let model = GpuModel::new(&self.gpu_model);
        let id = |number: u32| format!("GPU-{number}").parse::<GpuId>().map_err(Failure::other);
        let ids: Vec<GpuId> = (0..self.gpus).map(id).collect::<Result<_, _>>()?;
        let usage = Usage {
            cpu_ns: self.cpu.map_or(0, |cpu| u128::from(cpu.0)),
            memory_byte_ns: u128::from(self.memory.unwrap_or(0)) * wall_ns,
            memory_anon_byte_ns: u128::from(self.memory.unwrap_or(0)) * wall_ns,
            gpu_held_ns: ids.iter().map(|id| (id.clone(), wall_ns)).collect::<BTreeMap<_, _>>(),
            wall_ns,
            job_starts: 1,
            frozen_ns: still_ns(self.frozen),
            paused_ns,
            more: more(self, &ids),
        };
        Ok((usage, ids.into_iter().map(|gpu| HeldGpu { gpu, model: model.clone() }).collect()))
    }

    /// One that holds so many devices for so many seconds, and uses no CPU time.
    #[cfg(test)]
    pub(super) fn of(seconds: u64, gpus: u32, gpu_model: &str) -> Shape {
        Shape {
            run: Nanos::from_secs(seconds),
            cpu: Some(Nanos(0)),
            memory: None,
            gpus,
            gpu_model: gpu_model.to_owned(),
            cpus: None,
            frozen: None,
            paused: None,
            traits: Vec::new(),
            bid: None,
            outcome: None,
            storage: None,
            gpu_busy: None,
            gpu_memory: None,
            energy_wh: None,
            io: None,
            counters: Vec::new(),
            events: Vec::new(),
            at: None,
        }
    }
}

fn card_text(card: &Card) -> String {
    let headings = [
        ("LINE", Align::Left),
        ("METER", Align::Left),
        ("GPU MODEL", Align::Left),
        ("CREDITS", Align::Right),
        ("PER", Align::Left),
        ("ROUND", Align::Left),
    ];
    let rows: Vec<Vec<String>> = card
        .lines
        .iter()
        .map(|line| {
            let model = match &line.gpu_model {
                GpuSelector::Any => String::new(),
                GpuSelector::Prefix(prefix) => format!("{prefix}*"),
                GpuSelector::Exact(model) => model.to_string(),
            };
            let per = if line.per == 1 { line.unit.to_string() } else { format!("{} {}", line.per, line.unit) };
            vec![line.id.to_string(), line.meter.to_string(), model, line.price.to_string(), per, line.round.name().to_owned()]
        })
        .collect();
    let from = rfc3339(card.effective_from);
    format!("OK: card {} version {}, from {from}\nSHA-256 {}\n{}", card.name, card.version, card.digest, table(&headings, &rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::sample;

    #[test]
    fn standing_still_comes_beside_the_running_and_by_whose_hand_it_was() {
        let half = Nanos::from_secs(1_800);
        let shape = Shape { frozen: Some(half), paused: Some(half), ..Shape::of(3_600, 1, "GPU") };
        let (usage, _) = shape.usage().unwrap();
        let (half, hour) = (u128::from(half.0), 3_600_000_000_000);
        assert_eq!((usage.wall_ns - usage.paused_ns, usage.paused_ns, usage.frozen_ns), (hour, half, half));
        assert_eq!(
            usage.gpu_held_ns.values().copied().collect::<Vec<_>>(),
            [hour + half],
            "its device is held while another has it stand still"
        );
    }

    #[test]
    fn a_card_is_shown_as_it_is_understood() {
        insta::assert_snapshot!(card_text(&sample::card()));
    }

    #[test]
    fn eight_gpus_for_two_hours_at_four_are_sixty_four() {
        let (usage, gpus) = Shape::of(7_200, 8, "NVIDIA H100 80GB HBM3").usage().unwrap();
        let text = explain(&sample::card(), &Priced::so_far(&usage, &gpus));
        assert!(text.contains("= 64 credits"), "{text}");
    }
}
