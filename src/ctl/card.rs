//! `meterctl card check` and `meterctl rate explain`: rate cards, without the agent.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::client::Failure;
use super::exit::Exit;
use super::job::read_trait;
use super::quantity::{bytes, length, length_or_none, storage};
use super::table::{Align, table};
use super::verify::{card, read};
use super::{Format, Output, complain, print, replay};
use crate::domain::form::{Mistake, Place};
use crate::domain::id::{AccountId, Digest, GpuId, GpuModel, LineId};
use crate::domain::money::Credits;
use crate::domain::outcome::Outcome;
use crate::domain::rates::check::check;
use crate::domain::rates::explain::explain;
use crate::domain::rates::{
    Card, CardKey, Described, GpuSelector, Line, Priced, RateError, SecretCardKey, Stated, Trait, Traits, Uncovered,
};
use crate::domain::receipt::rfc3339;
use crate::domain::time::{Nanos, Wall};
use crate::domain::usage::{HeldGpu, Meter, More, Usage};
use crate::node::random::fresh_key;

/// What to do with a card.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// The same as `meterctl rate check`.
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
        #[command(flatten)]
        format: Format,
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
    /// Who pays, for lines that select that.
    #[arg(long)]
    account: Option<AccountId>,
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
    #[arg(long, value_parser = length_or_none, value_name = "LENGTH")]
    cpu: Option<Nanos>,
    /// Memory as stated at the start, and in use all the time, if nothing else is said of that; 0 for none.
    #[arg(long, value_parser = storage, value_name = "SIZE")]
    memory: Option<u64>,
    /// Memory in use all the time, where that is not what was stated.
    #[arg(long, value_parser = storage, value_name = "SIZE")]
    memory_used: Option<u64>,
    /// What of the memory in use is anonymous; all of it, if nothing is said.
    #[arg(long, value_parser = storage, value_name = "SIZE")]
    memory_anon: Option<u64>,
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
    #[arg(long, value_parser = length_or_none, value_name = "LENGTH")]
    frozen: Option<Nanos>,
    /// … and because somebody else has it stand still.
    #[arg(long, value_parser = length_or_none, value_name = "LENGTH")]
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
    #[arg(long, value_parser = length_or_none, value_name = "LENGTH")]
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
    /// When it begins, such as 2026-03-01T12:00:00Z; without it, when the card came into force, and for a quote now.
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
    let Command::Check { card } = command;
    checked(card, None, Output::Text)
}

pub(super) fn rate_main(socket: &Path, command: &RateCommand) -> Result<Exit, Failure> {
    let arguments = match command {
        RateCommand::Explain(arguments) => arguments,
        RateCommand::Check { card, key, format } => return checked(card, *key, format.output),
        RateCommand::Key { secret } => return make_key(secret),
        RateCommand::Sign { card, key } => return sign(card, key),
        RateCommand::Replay(arguments) => return replay::main(socket, arguments),
    };
    let card = card(&arguments.card)?;
    let (usage, gpus) = arguments.shape.usage()?;
    arguments.shape.named_are_priced(&card)?;
    let traits = arguments.shape.traits();
    let mut priced = arguments.shape.priced((&usage, &gpus), &traits, &card);
    priced.stated.account = arguments.account.as_ref();
    let text = explain(&card, &priced).map_err(|why| unpriced(&card, &why))?;
    print(&format!("{text}{}", arguments.shape.unpriced_text(&card)));
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

/// What a check found, for programs.
#[derive(Serialize)]
struct Checked<'a> {
    card: Option<&'a LineId>,
    version: Option<u64>,
    sha256: Option<Digest>,
    mistakes: &'a [Mistake],
}

fn checked(path: &Path, key: Option<CardKey>, output: Output) -> Result<Exit, Failure> {
    let file = path.display().to_string();
    let bytes = if path.as_os_str() == "-" {
        read(path)?.into_bytes()
    } else {
        std::fs::read(path).map_err(|error| Failure::Other(format!("{file}: {error}")))?
    };
    let (text, card, mut found) = match String::from_utf8(bytes) {
        Ok(text) => match check(&text, &file) {
            Ok((card, found)) => (text, Some(card), found),
            Err(found) => (text, None, found),
        },
        Err(error) => {
            let upto = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = upto.split(|byte| *byte == b'\n').count();
            let hint = Some("save it as UTF-8".to_owned());
            let place = Place::File { file: file.clone(), line, column: 1 };
            (String::new(), None, vec![Mistake { code: "not_text", place, message: "it is no UTF-8 text".to_owned(), hint }])
        }
    };
    if let Some(Err(why)) = key.map(|key| key.check(&text)) {
        let place = Place::File { file, line: text.lines().count().max(1), column: 1 };
        let hint = Some("sign it: meterctl rate sign CARD --key SECRET".to_owned());
        found.push(Mistake { code: "not_vouched_for", place, message: why.to_string(), hint });
    }
    match (output, &card) {
        (Output::Json, card) => {
            let (name, version, sha256) =
                (card.as_ref().map(|card| &card.name), card.as_ref().map(|card| card.version), card.as_ref().map(|card| card.digest));
            let document = Checked { card: name, version, sha256, mistakes: &found };
            print(&format!("{}\n", serde_json::to_string_pretty(&document).map_err(Failure::other)?));
        }
        (Output::Text, Some(card)) if found.is_empty() => print(&card_text(card)),
        (Output::Text, _) => {
            let lines: Vec<String> = found.iter().map(|mistake| format!("[{}] {mistake}\n", mistake.code)).collect();
            complain(&lines.concat());
        }
    }
    Ok(if found.is_empty() { Exit::Done } else { Exit::Failed })
}

impl Shape {
    /// For how long it runs.
    pub(super) fn length(&self) -> Nanos {
        self.run
    }

    /// From its beginning to its end, standing still included, in nanoseconds.
    pub(super) fn span_ns(&self) -> u128 {
        [Some(self.run), self.paused, self.frozen].into_iter().flatten().map(|length| u128::from(length.0)).sum()
    }

    /// It begins at that instant, or when the card comes into force, if it does not say when.
    pub(super) fn begun(mut self, now: Wall, card: &Card) -> Shape {
        self.at.get_or_insert(now.max(card.effective_from));
        self
    }

    fn memory_in_use(&self) -> u64 {
        self.memory_used.or(self.memory).unwrap_or(0)
    }

    /// What is stated of it.
    pub(super) fn traits(&self) -> Traits {
        self.traits.iter().cloned().collect()
    }

    /// A counter or an event that no line prices is refused when a hook reports it, and not free.
    pub(super) fn named_are_priced(&self, card: &Card) -> Result<(), Failure> {
        let counters = self.counters.iter().map(|(name, _)| (Meter::Counter, "counter", name));
        let events = self.events.iter().map(|(name, _)| (Meter::Events, "event", name));
        let Some((meter, what, name)) = counters.chain(events).find(|(meter, _, name)| !card.prices_named(*meter, name)) else {
            return Ok(());
        };
        let known: Vec<String> =
            card.lines.iter().filter(|line| line.meter == meter).filter_map(|line| line.name().map(ToString::to_string)).collect();
        let known = if known.is_empty() { "none at all".to_owned() } else { known.join(", ") };
        Err(Failure::Other(format!(
            "card {} version {}: no line prices the {what} {name}, so it is refused where a hook reports it (hint: of these there are {known})",
            card.name, card.version
        )))
    }

    /// What was given and costs nothing, since the card has no line for it.
    pub(super) fn unpriced_text(&self, card: &Card) -> String {
        let memory = !card.prices(Meter::MemoryCharged) && !card.prices(Meter::MemoryAnon);
        let given = [
            ("CPU time", self.cpu.is_some() && !card.prices(Meter::CpuTime)),
            ("memory", [self.memory, self.memory_used].into_iter().flatten().any(|bytes| bytes != 0) && memory),
            ("anonymous memory", self.memory_anon.is_some() && !card.prices(Meter::MemoryAnon)),
            ("storage", self.storage.is_some_and(|bytes| bytes != 0) && !card.prices(Meter::Storage)),
            ("GPU busy time", self.gpu_busy.is_some() && !card.prices(Meter::GpuBusy)),
            ("GPU memory", self.gpu_memory.is_some() && !card.prices(Meter::GpuMemory)),
            ("energy", self.energy_wh.is_some() && !card.prices(Meter::Energy)),
            ("I/O", self.io.is_some() && !card.prices(Meter::IoBytes)),
        ];
        let free: Vec<&str> = given.into_iter().filter_map(|(what, free)| free.then_some(what)).collect();
        if free.is_empty() { String::new() } else { format!("the card has no line for {}: nothing is charged for it\n", free.join(", ")) }
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
        let (cpus, memory_bytes, storage_bytes) = (self.cpus, self.memory, self.storage);
        let stated = Stated { at, traits, account: None, cpus, memory_bytes, storage_bytes, bid: self.bid };
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
            memory_byte_ns: u128::from(self.memory_in_use()) * wall_ns,
            memory_anon_byte_ns: u128::from(self.memory_anon.unwrap_or(self.memory_in_use())) * wall_ns,
            gpu_held_ns: ids.iter().map(|id| (id.clone(), wall_ns)).collect::<BTreeMap<_, _>>(),
            wall_ns,
            job_starts: 1,
            frozen_ns: still_ns(self.frozen),
            paused_ns,
            more: more(self, &ids),
        };
        Ok((usage, ids.into_iter().map(|gpu| HeldGpu { gpu, model: model.clone() }).collect()))
    }

    /// The same with so much storage.
    #[cfg(test)]
    pub(super) fn storing(mut self, bytes: u64) -> Shape {
        self.storage = Some(bytes);
        self
    }

    /// One that holds so many devices for so many seconds, and uses no CPU time.
    #[cfg(test)]
    pub(super) fn of(seconds: u64, gpus: u32, gpu_model: &str) -> Shape {
        Shape {
            run: Nanos::from_secs(seconds),
            cpu: Some(Nanos(0)),
            memory: None,
            memory_used: None,
            memory_anon: None,
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
    let mut headings = vec![
        ("LINE", Align::Left),
        ("METER", Align::Left),
        ("GPU MODEL", Align::Left),
        ("FOR", Align::Left),
        ("CREDITS", Align::Right),
        ("PER", Align::Left),
        ("ROUND", Align::Left),
        ("RULES", Align::Left),
    ];
    let row = |line: &Line| {
        let Described { whom, how } = line.described();
        let model = model_text(&line.gpu_model);
        let per = if line.per == 1 { line.unit.to_string() } else { format!("{} {}", line.per, line.unit) };
        let (price, round) = (line.price.to_string(), line.round.name().to_owned());
        vec![line.id.to_string(), line.meter.to_string(), model, whom.join(" "), price, per, round, how.join(", ")]
    };
    let mut rows: Vec<Vec<String>> = card.lines.iter().map(row).collect();
    // A column in which nothing stands says nothing.
    for column in (0..headings.len()).rev() {
        if rows.iter().all(|row| row[column].is_empty()) {
            headings.remove(column);
            for row in &mut rows {
                row.remove(column);
            }
        }
    }
    let from = rfc3339(card.effective_from);
    format!("OK: card {} version {}, from {from}\nSHA-256 {}\n{}", card.name, card.version, card.digest, table(&headings, &rows))
}

fn model_text(selector: &GpuSelector) -> String {
    match selector {
        GpuSelector::Any => String::new(),
        GpuSelector::Prefix(prefix) => format!("{prefix}*"),
        GpuSelector::Exact(model) => model.to_string(),
    }
}

/// Why a card has no price for it, and what to say or to write so that it has one.
pub(super) fn unpriced(card: &Card, why: &RateError) -> Failure {
    let lines = |meter: Meter| card.lines.iter().filter(move |line| line.meter == meter);
    let listed = |mut words: Vec<String>| {
        words.dedup();
        words.join("; ")
    };
    let hint = match why {
        RateError::Unpriced(_) | RateError::Uncovered(Uncovered::Gpu(_)) => {
            let models: Vec<String> = Meter::OF_GPUS.into_iter().flat_map(lines).map(|line| model_text(&line.gpu_model)).collect();
            if models.is_empty() {
                "add a gpu_held line; a GPU that is free has price \"0\"".to_owned()
            } else {
                format!("name the model with --gpu-model; the card has lines for {}", listed(models))
            }
        }
        RateError::Uncovered(Uncovered::Meter(meter)) => {
            let whom = listed(lines(*meter).map(|line| line.described().whom.join(" ")).collect());
            format!("say what its lines select, by --trait NAME=VALUE: {whom}")
        }
        RateError::Uncovered(Uncovered::NotStated { what, .. }) => {
            let option = match *what {
                "cpus" => "--cpus",
                "storage_bytes" => "--storage (0 for none)",
                _ => "--memory",
            };
            format!("say it with {option}")
        }
        RateError::Overflow(_) | RateError::TotalOverflow => "a smaller quantity, or a smaller price".to_owned(),
        RateError::Inconsistent => "a shorter --paused".to_owned(),
    };
    Failure::Other(format!("card {} version {}: {why} (hint: {hint})", card.name, card.version))
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
    fn no_two_lines_of_a_card_are_shown_alike() {
        let cards = [
            include_str!("../../packaging/ratecards/hourly-instance.toml"),
            include_str!("../../packaging/ratecards/hourly-posted.toml"),
            include_str!("../../packaging/ratecards/per-request.toml"),
            include_str!("../../packaging/ratecards/per-second-gpu.toml"),
            include_str!("../../packaging/ratecards/settle-at-end.toml"),
            include_str!("../../packaging/ratecards/standard.toml"),
        ];
        for text in cards {
            let text = card_text(&Card::parse(text, "card.toml").unwrap());
            let without_prices = |line: &str| {
                let words = line.split_whitespace().skip(1).filter(|word| word.parse::<Credits>().is_err());
                words.map(str::to_owned).collect::<Vec<_>>()
            };
            let mut lines: Vec<Vec<String>> = text.lines().skip(2).map(without_prices).collect();
            let count = lines.len();
            lines.sort();
            lines.dedup();
            assert_eq!(lines.len(), count, "apart from names and prices: {text}");
        }
    }

    #[test]
    fn a_line_is_shown_with_whom_it_is_for_its_rules_and_its_dates() {
        let head = "card = \"c\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n";
        let lines = r#"
[[line]]
id = "plain"
meter = "wall_time"
price = "1"
unit = "hour"
[[line]]
id = "spot"
meter = "wall_time"
price = "0.4"
unit = "hour"
increment = "0.25"
timing = "settle_at_end"
outcome = { preempted = "0.5" }
over_bid = "freeze"
effective_from = "2026-03-01T00:00:00Z"
effective_to = "2026-04-01T00:00:00Z"
select = { tier = "spot", qos = "night" }
[[line]]
id = "disk"
meter = "storage"
price = "0.1"
unit = "GB-month"
month = "calendar"
[[line]]
id = "tokens"
meter = "counter"
name = "tokens"
price = "0.7"
per = 1000000
unit = "count"
"#;
        insta::assert_snapshot!(card_text(&Card::parse(&format!("{head}{lines}"), "card.toml").unwrap()));
    }

    #[test]
    fn eight_gpus_for_two_hours_at_four_are_sixty_four() {
        let (usage, gpus) = Shape::of(7_200, 8, "NVIDIA H100 80GB HBM3").usage().unwrap();
        let text = explain(&sample::card(), &Priced::so_far(&usage, &gpus)).unwrap();
        assert!(text.contains("total 64 credits"), "{text}");
    }
}
