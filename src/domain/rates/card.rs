//! A rate card: what each meter costs, from when on.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::rules::{self, Month, Rules, Timing, Trait, Traits};
use super::{Basis, Unit};
use crate::domain::form::{Fault, Mistake, Presence, Table, quoted, read_toml};
use crate::domain::id::{AccountId, Digest, GpuId, GpuModel, LineId};
use crate::domain::money::{Credits, Decimal};
use crate::domain::time::Wall;
use crate::domain::usage::{HeldGpu, Meter};

/// Most lines of a card.
pub const LINES_MAX: usize = 256;
/// Largest text of a card, in bytes.
pub const TEXT_BYTES_MAX: usize = 256 << 10;
const UNIT_BYTES_MAX: usize = 32;
/// The longest model name that [`GpuModel`] keeps, and a `*`.
const MODEL_BYTES_MAX: usize = 97;

/// A rate card. It has none of the flaws of [`CardFlaw`], also when it was read back from a receipt or the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "CardParts")]
pub struct Card {
    /// What the card is called.
    pub name: LineId,
    /// Raised with every change; a lower one is refused.
    pub version: u64,
    /// For starts from this instant on.
    pub effective_from: Wall,
    /// In the order of the file.
    pub lines: Vec<Line>,
    /// SHA-256 of the card's text.
    pub digest: Digest,
    /// SHA-256 of the card in whose place it comes, where it says so: it comes into force behind no other. Not part of the journal's form.
    #[serde(skip)]
    pub predecessor: Option<Digest>,
}

/// What a meter costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Its name, unique in the card.
    pub id: LineId,
    /// What it prices.
    pub meter: Meter,
    /// Credits for `per` units; never negative.
    pub price: Decimal,
    /// In which unit the quantity is stated.
    pub unit: Unit,
    /// For how many of them the price holds; at least 1.
    pub per: u64,
    /// What becomes of a fraction of a nano-credit, once per segment, on the cumulative quantity.
    pub round: Rounding,
    /// Which GPUs; [`GpuSelector::Any`] on lines of meters that have none.
    pub gpu_model: GpuSelector,
    /// What else it says; nothing of a line that is only a price for a unit.
    #[serde(with = "super::stored")]
    pub rules: Option<Box<Rules>>,
}

/// Of a job, what decides which lines are for it.
#[derive(Clone, Copy, Debug)]
pub struct Stated<'a> {
    /// When its segment begins.
    pub at: Wall,
    /// What was stated of it.
    pub traits: &'a Traits,
    /// Who pays: known, and never stated.
    pub account: Option<&'a AccountId>,
    /// CPUs as stated.
    pub cpus: Option<u32>,
    /// Memory as stated, in bytes.
    pub memory_bytes: Option<u64>,
    /// Storage as stated, in bytes.
    pub storage_bytes: Option<u64>,
    /// The most that its starter would pay for the start, where that was said.
    pub bid: Option<Credits>,
}

/// Why a job has no price under a card.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Uncovered {
    /// No line prices that GPU.
    #[error("no line prices the GPU {0}")]
    Gpu(GpuId),
    /// The card prices the meter, but for other jobs.
    #[error("of the lines for {0} none is for such a job")]
    Meter(Meter),
    /// The line prices what was asked for, and that was not stated.
    #[error("line {line} prices by {what} as asked for, and the start did not say how much")]
    NotStated {
        /// The line.
        line: LineId,
        /// `cpus`, `memory_bytes` or `storage_bytes`.
        what: &'static str,
    },
}

/// What becomes of a fraction of a nano-credit. The order is the journal's format: append only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// Dropped, in the payer's favour.
    #[default]
    Down,
    /// Made a whole one.
    Up,
    /// To the nearest; from the middle to the even one.
    HalfEven,
}

/// Which GPU models a line prices. The order is the journal's format: append only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpuSelector {
    /// Every model that no other line prices.
    Any,
    /// Every model whose name begins so, and that no line with a longer or exact name prices.
    Prefix(String),
    /// This model.
    Exact(GpuModel),
}

/// The unchecked parts of a card, as stored.
#[derive(Deserialize)]
struct CardParts {
    name: LineId,
    version: u64,
    effective_from: Wall,
    lines: Vec<Line>,
    digest: Digest,
}

/// What makes a set of lines no card. A stored card is checked for them when it is read back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CardFlaw {
    /// Nothing is priced.
    #[error("a card needs 1 to 256 lines")]
    LineCount,
    /// Two lines of one name.
    #[error("two lines are called {0}")]
    DuplicateLine(LineId),
    /// Two lines that price the same GPU equally well.
    #[error("line {0} selects the same GPUs as an earlier one")]
    DuplicateSelector(LineId),
    /// The unit does not measure the meter.
    #[error("the unit of line {0} does not measure its meter")]
    WrongUnit(LineId),
    /// Below zero.
    #[error("the price of line {0} is negative")]
    NegativePrice(LineId),
    /// For nothing.
    #[error("line {0} has per = 0")]
    ZeroPer(LineId),
    /// A GPU model on a line of another meter.
    #[error("line {0} names a GPU model and prices another meter")]
    SelectorWithoutGpu(LineId),
    /// Rules that no reader of a card lets pass.
    #[error("the rules of line {0}: {1}")]
    Rules(LineId, String),
}

impl Rounding {
    /// Every rounding.
    pub const ALL: [Rounding; 3] = [Rounding::Down, Rounding::Up, Rounding::HalfEven];

    /// Its name in cards, JSON and receipts.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Rounding::Down => "down",
            Rounding::Up => "up",
            Rounding::HalfEven => "half_even",
        }
    }
}

impl GpuSelector {
    /// How well it fits a model: the higher, the more specific. `None` where it does not fit.
    #[must_use]
    pub fn fit(&self, model: &GpuModel) -> Option<usize> {
        match self {
            GpuSelector::Any => Some(0),
            GpuSelector::Prefix(prefix) => model.as_str().starts_with(prefix.as_str()).then_some(prefix.len()),
            GpuSelector::Exact(exact) => (exact == model).then_some(usize::MAX),
        }
    }
}

/// What the lines above have taken.
#[derive(Default)]
struct Seen {
    ids: Vec<LineId>,
    gpu_selectors: Vec<(Meter, GpuSelector, Option<Box<Rules>>)>,
}

fn no_lines() -> Fault {
    Fault::new("no_lines", "a card without lines prices nothing").hint("what is free has a line with price = \"0\"")
}

fn read_line(table: &Table<'_>, seen: &mut Seen) -> Option<Line> {
    let id = table.field("id").name().check(|id: LineId| {
        if seen.ids.contains(&id) {
            return Err(Fault::new("duplicate_line", format!("two lines are called {id}")).hint("an id names one line"));
        }
        seen.ids.push(id.clone());
        Ok(id)
    });
    let id = id.required_as("id = \"cpu\"");
    for (name, which) in Trait::ALL.into_iter().filter(|(name, _)| table.holds(name) == Presence::Given) {
        let device = if which == Trait::Model { "; the model of a GPU is its gpu_model" } else { "" };
        let fault = Fault::new("unknown_key", "a job has one, and a line selects by it");
        table.field(name).note(fault.hint(format!("select = {{ {name} = \"…\" }}{device}")));
    }
    let meter = table.field("meter").word(&Meter::ALL.map(|meter| (meter.name(), meter))).required_as("meter = \"cpu_time\"");
    let price = table.field("price").decimal().check(not_negative).required_as("price = \"0.04\"; what is free costs \"0\"");
    let unit = table.field("unit").text(UNIT_BYTES_MAX).check(|text| unit_of(&text, meter)).required_as(&sample_unit(meter));
    let per = table.field("per").integer(1..=u64::MAX).or(1);
    let round = table.field("round").word(&Rounding::ALL.map(|round| (round.name(), round))).or(Rounding::Down);
    let selector = table.field("gpu_model").text(MODEL_BYTES_MAX).check(|text| selector(&text, meter)).or(GpuSelector::Any);
    // A line without rules is priced the short way; but how much storage there was is known only by what was stated.
    let plain = |rules: &Rules| meter.is_some_and(|meter| meter != Meter::Storage && *rules == Rules::none(meter));
    let read = rules::read(table, meter, unit);
    let rules = read.is_some().then(|| read.filter(|rules| !plain(rules)).map(Box::new));
    if let (Some(meter), Some(selector), Some(rules)) = (meter.filter(|meter| meter.is_of_gpus()), &selector, &rules) {
        if seen
            .gpu_selectors
            .iter()
            .any(|(theirs, other, others)| (*theirs, other) == (meter, selector) && overlap(others.as_deref(), rules.as_deref()))
        {
            let message = "this line prices the same GPUs as an earlier one";
            table.note(Fault::new("duplicate_selector", message).hint("give each line of that meter its own gpu_model, select or dates"));
        }
        seen.gpu_selectors.push((meter, selector.clone(), rules.clone()));
    }
    Some(Line { id: id?, meter: meter?, price: price?, unit: unit?, per: per?, round: round?, gpu_model: selector?, rules: rules? })
}

/// The SHA-256 of a card, as `meterctl rate check` prints it.
fn a_digest(text: &str) -> Result<Digest, Fault> {
    let hint = "the 64 hexadecimal digits that meterctl rate check prints of the card before";
    text.parse().map_err(|_| Fault::new("malformed", format!("{} is no SHA-256", quoted(text))).hint(hint))
}

pub(super) fn not_negative(price: Decimal) -> Result<Decimal, Fault> {
    if price.mantissa < 0 {
        return Err(Fault::new("negative_price", format!("{price} is negative")).hint("what is free costs \"0\""));
    }
    Ok(price)
}

/// A unit of the meter, as it is written.
fn sample_unit(meter: Option<Meter>) -> String {
    // Of a time the hour is what most prices are for.
    let all = meter.map(Unit::of).unwrap_or_default();
    let unit = all.iter().find(|unit| unit.to_string().ends_with("hour")).or(all.first());
    unit.map_or_else(|| "unit = \"hour\"".to_owned(), |unit| format!("unit = \"{unit}\""))
}

/// The unit, which must measure the meter where that is known.
fn unit_of(text: &str, meter: Option<Meter>) -> Result<Unit, Fault> {
    let unit = text.parse::<Unit>().ok().filter(|unit| meter.is_none_or(|meter| unit.prices(meter)));
    unit.ok_or_else(|| match meter {
        Some(meter) => {
            let units: Vec<String> = Unit::of(meter).iter().map(Unit::to_string).collect();
            Fault::new("unknown_unit", format!("{} is not a unit of {meter}", quoted(text))).hint(format!("allowed: {}", units.join(", ")))
        }
        None => Fault::new("unknown_unit", format!("{} is not a unit", quoted(text)))
            .hint("such as core-hour, GiB-hour, gpu-hour, hour, start, GB-month, kWh"),
    })
}

/// A model's name, or the beginning of one with a `*` behind it.
fn selector(text: &str, meter: Option<Meter>) -> Result<GpuSelector, Fault> {
    if meter.is_some_and(|meter| !meter.is_of_gpus()) {
        return Err(Fault::new("selector_without_gpu", "only lines of gpu_held, gpu_busy, gpu_memory and energy have a gpu_model")
            .hint("leave it out"));
    }
    let (stem, star) = text.strip_suffix('*').map_or((text, false), |stem| (stem, true));
    if stem.is_empty() {
        return Err(Fault::new("malformed", "\"*\" alone selects every model").hint("leave gpu_model out, which does the same"));
    }
    if stem.contains('*') {
        return Err(Fault::new("malformed", format!("{} has a * that is not its end", quoted(text)))
            .hint("one * is allowed, as the last character"));
    }
    if !stem.chars().all(|c| c == ' ' || c.is_ascii_graphic()) {
        return Err(Fault::new("malformed", format!("{} is not printable ASCII", quoted(text))).hint("write what nvidia-smi -L shows"));
    }
    Ok(if star { GpuSelector::Prefix(stem.to_owned()) } else { GpuSelector::Exact(GpuModel::new(stem)) })
}

impl Card {
    /// Has it a line for that meter?
    #[must_use]
    pub fn prices(&self, meter: Meter) -> bool {
        self.lines.iter().any(|line| line.meter == meter)
    }

    /// Reads a card's text (TOML); `file_name` is for the mistakes.
    ///
    /// # Errors
    /// Every mistake that it holds, in the order of the file.
    pub fn parse(text: &str, file_name: &str) -> Result<Card, Vec<Mistake>> {
        read_toml(text, file_name, TEXT_BYTES_MAX, |table| {
            let name = table.field("card").name().required_as("card = \"campus\"");
            let version = table.field("version").integer(1..=u64::MAX).required_as("version = 1");
            let effective_from = table.field("effective_from").instant().required_as("effective_from = \"2026-11-01T00:00:00Z\"");
            let predecessor = table.field("predecessor").text(64).check(|text| a_digest(&text)).optional();
            let mut seen = Seen::default();
            let lines = table.field("line").list(LINES_MAX, |line| line.table(|table| read_line(table, &mut seen)).required());
            let lines = lines.check(|lines| if lines.is_empty() { Err(no_lines()) } else { Ok(lines) });
            let lines = lines.required_as("[[line]], and below it its id, meter, price and unit");
            let digest = Digest(Sha256::digest(text).into());
            Some(Card { name: name?, version: version?, effective_from: effective_from?, lines: lines?, digest, predecessor: predecessor? })
        })
    }

    /// Has any line rules?
    #[must_use]
    pub fn has_rules(&self) -> bool {
        self.lines.iter().any(|line| line.rules.is_some())
    }

    /// Does it give something back by outcome of what it charged as a job ran?
    #[must_use]
    pub fn gives_back(&self) -> bool {
        self.lines
            .iter()
            .filter_map(|line| line.rules.as_deref())
            .any(|rules| rules.timing != Timing::SettleAtEnd && !rules.outcome.is_empty())
    }

    /// Has any line a rule for what happens when more is asked than was bid?
    #[must_use]
    pub fn minds_bids(&self) -> bool {
        self.lines.iter().filter_map(|line| line.rules.as_deref()).any(|rules| rules.further.latest.over_bid.is_some())
    }

    /// Does time in which a job stands still cost anything under it?
    #[must_use]
    pub fn prices_stillness(&self) -> bool {
        self.lines.iter().filter_map(|line| line.rules.as_deref()).any(|rules| rules.state.price_stillness())
    }

    /// Has it a line with such a price, and is it one of them?
    #[must_use]
    pub fn prices_any(&self, meters: &[Meter]) -> bool {
        self.lines.iter().any(|line| meters.contains(&line.meter))
    }

    /// Has it a line for what a hook reports under that name?
    #[must_use]
    pub fn prices_named(&self, meter: Meter, name: &LineId) -> bool {
        self.lines.iter().any(|line| line.meter == meter && line.name() == Some(name))
    }

    /// Has any line a date, or a month that ends?
    #[must_use]
    pub fn has_dates(&self) -> bool {
        self.lines.iter().filter_map(|line| line.rules.as_deref()).any(|rules| rules.next_date(Wall(0)).is_some())
    }

    /// The first instant after this one at which other lines apply, or the same ones by another month.
    #[must_use]
    pub fn next_date(&self, after: Wall) -> Option<Wall> {
        self.lines.iter().filter_map(|line| line.rules.as_deref()?.next_date(after)).min()
    }

    /// The line that prices a GPU by that meter: of those that fit, the most specific: by model (exact, then the longest prefix, then any), then by
    /// how much it selects.
    #[must_use]
    pub fn gpu_line(&self, meter: Meter, model: &GpuModel, stated: &Stated<'_>) -> Option<&Line> {
        let gpu_lines = self.lines.iter().filter(|line| line.meter == meter && line.fits(stated));
        let ranked = gpu_lines.filter_map(|line| Some(((line.gpu_model.fit(model)?, line.selects()), line)));
        // Of two that fit equally well the first one.
        ranked.rev().max_by_key(|(fit, _)| *fit).map(|(_, line)| line)
    }

    /// The lines of a meter that are for a job: those that select the most of what was stated of it.
    pub fn lines_for(&self, meter: Meter, stated: &Stated<'_>) -> impl Iterator<Item = &Line> {
        let fitting = move |line: &&Line| line.meter == meter && line.fits(stated);
        let most = move |name| self.lines.iter().filter(fitting).filter(|line| line.name() == name).map(Line::selects).max();
        // Each counter and each event is a meter of its own.
        let alike = (!meter.is_named()).then(|| most(None));
        self.lines.iter().filter(move |line| fitting(line) && alike.unwrap_or_else(|| most(line.name())) == Some(line.selects()))
    }

    /// Has all that such a job can use a price? What is free has a line with price "0".
    ///
    /// # Errors
    /// The first thing that has none.
    pub fn cover(&self, gpus: &[HeldGpu], stated: &Stated<'_>) -> Result<(), Uncovered> {
        for meter in Meter::OF_GPUS.into_iter().filter(|meter| *meter == Meter::GpuHeld || self.prices(*meter)) {
            if let Some(held) = gpus.iter().find(|held| self.gpu_line(meter, &held.model, stated).is_none()) {
                return Err(Uncovered::Gpu(held.gpu.clone()));
            }
        }
        if !self.has_rules() {
            return Ok(());
        }
        for meter in Meter::ALL.into_iter().filter(|meter| !meter.is_of_gpus() && self.prices(*meter)) {
            let mut lines = self.lines_for(meter, stated).peekable();
            let named = |name: Option<&LineId>| self.lines_for(meter, stated).any(|line| line.name() == name);
            let whole = lines.peek().is_some()
                && (!meter.is_named() || self.lines.iter().filter(|line| line.meter == meter).all(|line| named(line.name())));
            if !whole {
                return Err(Uncovered::Meter(meter));
            }
            let allocated =
                |line: &&Line| line.rules.as_deref().is_some_and(|rules| matches!(rules.basis, Basis::Allocated | Basis::MaxOf));
            if let (Some(line), Some(what)) = (lines.find(allocated), stated.missing_for(meter)) {
                return Err(Uncovered::NotStated { line: line.id.clone(), what });
            }
        }
        Ok(())
    }

    fn checked(self) -> Result<Card, CardFlaw> {
        if self.lines.is_empty() || LINES_MAX < self.lines.len() {
            return Err(CardFlaw::LineCount);
        }
        for (index, line) in self.lines.iter().enumerate() {
            line.checked()?;
            for earlier in &self.lines[..index] {
                if earlier.id == line.id {
                    return Err(CardFlaw::DuplicateLine(line.id.clone()));
                }
                if line.selects_the_same_gpus_as(earlier) {
                    return Err(CardFlaw::DuplicateSelector(line.id.clone()));
                }
            }
        }
        Ok(self)
    }
}

impl Stated<'_> {
    /// Is that known of the job, with this value? Journals from before the account was looked up here have it among the traits.
    #[must_use]
    pub fn has(&self, which: Trait, value: &LineId) -> bool {
        let paid_by = || self.account.is_some_and(|account| account.as_str() == value.as_str());
        self.traits.get(&which) == Some(value) || (which == Trait::Account && paid_by())
    }

    /// What the start should have said, for a meter that is billed as asked for.
    fn missing_for(&self, meter: Meter) -> Option<&'static str> {
        match meter {
            Meter::CpuTime if self.cpus.is_none() => Some("cpus"),
            Meter::MemoryCharged | Meter::MemoryAnon if self.memory_bytes.is_none() => Some("memory_bytes"),
            Meter::Storage if self.storage_bytes.is_none() => Some("storage_bytes"),
            _ => None,
        }
    }
}

/// Can two sets of rules be for the same segment, and select equally much of it? Then nobody knows which is meant.
fn overlap(a: Option<&Rules>, b: Option<&Rules>) -> bool {
    rules::selected(a) == rules::selected(b) && rules::meet(rules::span(a), rules::span(b))
}

impl Line {
    fn selects_the_same_gpus_as(&self, other: &Line) -> bool {
        let both_gpu = self.meter.is_of_gpus() && other.meter == self.meter;
        both_gpu && self.gpu_model == other.gpu_model && overlap(self.rules.as_deref(), other.rules.as_deref())
    }

    /// Is it for segments that begin then, of such jobs?
    #[must_use]
    pub fn fits(&self, stated: &Stated<'_>) -> bool {
        self.rules.as_deref().is_none_or(|rules| rules.fit(stated))
    }

    /// The hook's word for what it counts, if it counts that.
    #[must_use]
    pub fn name(&self) -> Option<&LineId> {
        self.rules.as_deref().and_then(|rules| rules.further.name.as_ref())
    }

    /// How many of the meter's base units one of its unit has, in a segment that begins then.
    #[must_use]
    pub fn base(&self, at: Wall) -> u128 {
        let month = self.rules.as_deref().and_then(|rules| rules.further.month).unwrap_or(Month::Days30);
        self.unit.base(if matches!(self.unit, Unit::Month(_)) { month.ns(at) } else { 0 })
    }

    /// What it selects jobs by.
    pub(super) fn selected(&self) -> Traits {
        rules::selected(self.rules.as_deref())
    }

    /// From when on and until when it is in force.
    pub(super) fn span(&self) -> (Wall, Wall) {
        rules::span(self.rules.as_deref())
    }

    /// By how much it selects jobs.
    #[must_use]
    pub fn selects(&self) -> usize {
        self.rules.as_deref().map_or(0, |rules| rules.select.len())
    }

    fn checked(&self) -> Result<(), CardFlaw> {
        if !self.unit.prices(self.meter) {
            return Err(CardFlaw::WrongUnit(self.id.clone()));
        }
        if self.price.mantissa < 0 {
            return Err(CardFlaw::NegativePrice(self.id.clone()));
        }
        if self.per == 0 {
            return Err(CardFlaw::ZeroPer(self.id.clone()));
        }
        if !self.meter.is_of_gpus() && self.gpu_model != GpuSelector::Any {
            return Err(CardFlaw::SelectorWithoutGpu(self.id.clone()));
        }
        if self.rules.is_none() && (self.meter.is_named() || self.meter == Meter::Storage) {
            return Err(CardFlaw::Rules(self.id.clone(), "a meter that needs rules has none".to_owned()));
        }
        if let Some((_, what, _)) = self.rules.as_deref().and_then(|rules| rules.flaw(self.meter, self.unit)) {
            return Err(CardFlaw::Rules(self.id.clone(), what.to_owned()));
        }
        Ok(())
    }
}

impl TryFrom<CardParts> for Card {
    type Error = CardFlaw;

    fn try_from(parts: CardParts) -> Result<Card, CardFlaw> {
        let CardParts { name, version, effective_from, lines, digest } = parts;
        Card { name, version, effective_from, lines, digest, predecessor: None }.checked()
    }
}

#[cfg(test)]
mod tests;
