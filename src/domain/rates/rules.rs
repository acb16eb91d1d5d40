//! What a rate line says beside its price: which jobs it is for, how a quantity becomes a billed one, when it is charged.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Stated, Unit};
use crate::domain::form::{Fault, Table};
use crate::domain::id::LineId;
use crate::domain::money::{Credits, Decimal};
use crate::domain::outcome::Outcome;
use crate::domain::time::Wall;
use crate::domain::usage::Meter;

/// Most bands of a line priced by volume, the first one included.
const TIERS_MAX: usize = 16;
/// The greatest fee, in credits.
const FEE_MAX: i128 = 1_000_000_000;
/// The greatest factor.
const FACTOR_MAX: u64 = 1_000;
/// Digits behind the point that a factor may have.
const FACTOR_SCALE: u8 = 9;
/// Base units that an increment or a minimum may have: more bits than any unit's.
const QUANTITY_BITS_MAX: u32 = 120;

/// An exact factor, in billionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Factor(pub u64);

impl Factor {
    /// Nothing is charged.
    pub const FREE: Factor = Factor(0);
    /// All of it is charged.
    pub const WHOLE: Factor = Factor(Factor::SCALE);
    /// Billionths in one.
    pub const SCALE: u64 = 1_000_000_000;
}

impl std::fmt::Display for Factor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Credits::from_nano(i128::from(self.0)).fmt(f)
    }
}

/// The rules of a line that is more than a price for a unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// The billed quantity is a multiple of this, in base units; 0: any quantity.
    pub increment: u128,
    /// At least so much is billed, in base units.
    pub minimum: u128,
    /// Charged once beside the quantity.
    pub connect_fee: Credits,
    /// When it is charged.
    pub timing: Timing,
    /// From where increment, minimum, fee and bands count.
    pub anchor: Anchor,
    /// What of the quantity counts.
    pub basis: Basis,
    /// How much the time in each state counts.
    pub state: StateRates,
    /// What of the charge remains by outcome; the whole where nothing is said.
    pub outcome: BTreeMap<Outcome, Factor>,
    /// For segments that begin then or later.
    pub from: Option<Wall>,
    /// For segments that begin before then.
    pub to: Option<Wall>,
    /// For jobs of which all of this was stated at their start.
    pub select: Traits,
    /// Further prices by volume, each from so many base units on, in rising order.
    pub tiers: Vec<Tier>,
    /// What younger cards say; in the journal beside the rest, see [`super::stored`].
    #[serde(skip)]
    pub further: Further,
}

/// What a line says that the first form of the journal does not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Further {
    /// Which counter or event of a hook's it prices.
    pub name: Option<LineId>,
    /// How long a month is, where its unit has one.
    pub month: Option<Month>,
    /// What remains of its price after the discount of a contract.
    pub share: Factor,
    /// What the youngest cards say; in the journal beside the rest, see [`super::stored`].
    #[serde(skip)]
    pub latest: Latest,
}

impl Default for Further {
    fn default() -> Further {
        Further { name: None, month: None, share: Factor::WHOLE, latest: Latest::default() }
    }
}

/// What a line says that the second form of the journal does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latest {
    /// Each of these counts whole once it has begun.
    pub started: Option<Started>,
    /// What happens to a job whose bid is below what the card asks by now.
    pub over_bid: Option<OverBid>,
}

/// A stretch of time that counts whole once it has begun. The order is the journal's format: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Started {
    /// 3,600 seconds.
    Hour,
    /// 24 hours, counted from the job's beginning.
    Day,
}

impl Started {
    /// How long it is, in nanoseconds.
    #[must_use]
    pub const fn ns(self) -> u64 {
        match self {
            Started::Hour => 3_600_000_000_000,
            Started::Day => 86_400_000_000_000,
        }
    }
}

/// What happens to a job for which the card asks more by now than was bid for it: it never costs more than its bid, and beside that …
/// The order is the journal's format: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverBid {
    /// … it goes on.
    Cap,
    /// … it stands still until less is asked.
    Freeze,
    /// … it is asked to end, and what has not ended after the grace stands still.
    Stop,
}

/// How long a month is. The order is the journal's format: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Month {
    /// As long as the one in which it was (UTC): 28 to 31 days.
    Calendar,
    /// 30 days.
    Days30,
    /// 730 hours: a twelfth of 365 days.
    Hours730,
}

impl Month {
    /// Its nanoseconds; of a calendar month that of this instant.
    #[must_use]
    pub fn ns(self, at: Wall) -> u128 {
        const DAY_NS: u128 = 86_400_000_000_000;
        match self {
            Month::Calendar => {
                let (from, to) = month_around(at);
                u128::from(to.0.saturating_sub(from.0)) * 1_000_000
            }
            Month::Days30 => 30 * DAY_NS,
            Month::Hours730 => 730 * DAY_NS / 24,
        }
    }
}

/// The calendar month (UTC) around an instant: its beginning, and that of the next one. Called for each job at each look, so without a
/// calendar: days are counted in years that begin in March, of which the leap day is the last.
#[must_use]
pub fn month_around(at: Wall) -> (Wall, Wall) {
    const DAY_MS: u64 = 86_400_000;
    /// Days from 1 March of the year 0 to 1 January 1970, and in 400 years.
    const EPOCH: u64 = 719_468;
    const DAYS_400: u64 = 146_097;
    let days = at.0 / DAY_MS + EPOCH;
    let of_era = days % DAYS_400;
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    // March is month 0; five months have 153 days.
    let month = (5 * of_year + 2) / 153;
    let first = (153 * month + 2) / 5;
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let length = match month {
        // February is in the year that began last March.
        11 if leap(year + 1) => 29,
        11 => 28,
        _ => (153 * (month + 1) + 2) / 5 - first,
    };
    let start = days - (of_year - first) - EPOCH;
    (Wall(start * DAY_MS), Wall((start + length) * DAY_MS))
}

/// A price from a volume on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tier {
    /// In base units.
    pub above: u128,
    /// What is beyond costs this, until the next one.
    pub price: Decimal,
}

/// When a line is charged. The order is the journal's format: append only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Timing {
    /// Each increment before it is used.
    Advance,
    /// What was used, as it is used.
    #[default]
    Accrue,
    /// At the job's end, by its outcome; until then it is kept back.
    SettleAtEnd,
    /// All of it at the start, or the start is refused.
    AtomicAtStart,
}

/// From where a line's increments count. The order is the journal's format: append only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Anchor {
    /// From the beginning of each segment.
    #[default]
    Segment,
    /// From the job's beginning: each increment is charged under the card in force when it begins.
    Job,
}

/// What of a quantity is billed. The order is the journal's format: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// What was measured.
    Used,
    /// What was asked for at the start, for as long as the job lasts.
    Allocated,
    /// The greater of both.
    MaxOf,
    /// The machine as a whole, for as long as the job lasts.
    Instance,
    /// Each one.
    Event,
}

/// How much an hour in each state counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRates {
    /// While it runs.
    pub running: Factor,
    /// While it stands still for want of credit.
    pub frozen: Factor,
    /// While somebody else has it stand still; as while it runs, where nothing is said.
    pub paused: Factor,
}

/// What a line may select jobs by, beside the GPU's model. The order is the journal's format: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trait {
    /// Such as `spot`.
    Tier,
    /// Such as `large`.
    InstanceClass,
    /// What is being run.
    Cargo,
    /// Of the scheduler.
    Partition,
    /// Of the scheduler.
    Qos,
    /// The node's name.
    Node,
    /// Such as `epyc`.
    CpuClass,
    /// Anything.
    Label,
    /// What its account spends it for.
    Project,
    /// Which model is being trained or served.
    Model,
    /// Who pays. Nobody states it.
    Account,
}

/// What was stated of a job at its start, or is selected by a line.
pub type Traits = BTreeMap<Trait, LineId>;

macro_rules! words {
    ($type:ident, $count:literal, $($variant:ident $name:literal),+ $(,)?) => {
        impl $type {
            /// Every one with its name in cards and JSON.
            pub const ALL: [(&'static str, $type); $count] = [$(($name, $type::$variant)),+];

            /// Its name in cards, JSON and receipts.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $($type::$variant => $name),+
                }
            }
        }
    };
}

words!(Month, 3, Calendar "calendar", Days30 "days_30", Hours730 "hours_730");
words!(Timing, 4, Advance "advance", Accrue "accrue", SettleAtEnd "settle_at_end", AtomicAtStart "atomic_at_start");
words!(Anchor, 2, Segment "segment", Job "job");
words!(Started, 2, Hour "hour", Day "day");
words!(OverBid, 3, Cap "cap", Freeze "freeze", Stop "stop");
words!(Basis, 5, Used "used", Allocated "allocated", MaxOf "max_of", Instance "instance", Event "event");
words!(
    Trait, 11, Tier "tier", InstanceClass "instance_class", Cargo "cargo", Partition "partition", Qos "qos", Node "node",
    CpuClass "cpu_class", Label "label", Project "project", Model "model", Account "account",
);

impl Default for StateRates {
    fn default() -> StateRates {
        StateRates { running: Factor::WHOLE, frozen: Factor::FREE, paused: Factor::WHOLE }
    }
}

impl StateRates {
    /// Does time in which the agent has a job stand still cost anything?
    #[must_use]
    pub fn price_stillness(self) -> bool {
        self.frozen != Factor::FREE
    }

    /// Is standing still another rate than running, or than nothing?
    fn tell_stillness(self) -> bool {
        self.price_stillness() || self.paused != self.running
    }
}

impl Basis {
    /// What a meter's quantity is where nothing is said.
    #[must_use]
    pub const fn of(meter: Meter) -> Basis {
        match meter {
            Meter::CpuTime
            | Meter::MemoryCharged
            | Meter::MemoryAnon
            | Meter::GpuBusy
            | Meter::GpuMemory
            | Meter::Energy
            | Meter::IoBytes
            | Meter::Counter => Basis::Used,
            Meter::GpuHeld | Meter::Storage => Basis::Allocated,
            Meter::WallTime => Basis::Instance,
            Meter::JobStarts | Meter::Events => Basis::Event,
        }
    }

    /// Those that a meter may be billed by.
    #[must_use]
    pub const fn allowed(meter: Meter) -> &'static [Basis] {
        match meter {
            Meter::CpuTime | Meter::MemoryCharged | Meter::MemoryAnon => &[Basis::Used, Basis::Allocated, Basis::MaxOf],
            Meter::GpuBusy | Meter::GpuMemory | Meter::Energy | Meter::IoBytes | Meter::Counter => &[Basis::Used],
            Meter::GpuHeld | Meter::Storage => &[Basis::Allocated],
            Meter::WallTime => &[Basis::Instance, Basis::Used],
            Meter::JobStarts | Meter::Events => &[Basis::Event],
        }
    }
}

impl Rules {
    /// Rules that change nothing.
    #[must_use]
    pub fn none(meter: Meter) -> Rules {
        Rules {
            increment: 0,
            minimum: 0,
            connect_fee: Credits::ZERO,
            timing: Timing::Accrue,
            anchor: Anchor::Segment,
            basis: Basis::of(meter),
            state: StateRates::default(),
            outcome: BTreeMap::new(),
            from: None,
            to: None,
            select: Traits::new(),
            tiers: Vec::new(),
            further: Further::default(),
        }
    }

    /// Is the line for segments that begin at that instant, of such jobs?
    #[must_use]
    pub fn fit(&self, stated: &Stated<'_>) -> bool {
        let dated = self.from.is_none_or(|from| from <= stated.at) && self.to.is_none_or(|to| stated.at < to);
        dated && self.select.iter().all(|(which, value)| stated.has(*which, value))
    }

    /// The first instant after this one at which it comes into force or goes out of it, or its month ends.
    pub(super) fn next_date(&self, after: Wall) -> Option<Wall> {
        let month = (self.further.month == Some(Month::Calendar)).then(|| month_around(after).1);
        [self.from, self.to, month].into_iter().flatten().filter(|date| after < *date).min()
    }

    /// What of the charge remains after that outcome.
    #[must_use]
    pub fn factor(&self, outcome: Outcome) -> Factor {
        self.outcome.get(&outcome).copied().unwrap_or(Factor::WHOLE)
    }

    /// What is charged: by the outcome where the charge waits for it, else the whole.
    pub(super) fn charged(&self, outcome: Outcome) -> Factor {
        if self.timing == Timing::SettleAtEnd { self.factor(outcome) } else { Factor::WHOLE }
    }

    /// What of a charge that did not wait for the outcome is given back by it.
    pub(super) fn given_back(&self, ended: Option<Outcome>) -> Factor {
        let remains = ended.filter(|_| self.timing != Timing::SettleAtEnd).map_or(Factor::WHOLE, |outcome| self.factor(outcome));
        Factor(Factor::SCALE.saturating_sub(remains.0))
    }

    /// What makes these no rules, and what to do about it: a code, what is wrong, a hint.
    pub(super) fn flaw(&self, meter: Meter, unit: Unit) -> Option<(&'static str, &'static str, &'static str)> {
        let quantities = [self.increment, self.minimum].into_iter().chain(self.tiers.iter().map(|tier| tier.above));
        let too_large = quantities.into_iter().any(|quantity| 1_u128 << QUANTITY_BITS_MAX <= quantity);
        let still_allowed = matches!(meter, Meter::WallTime | Meter::GpuHeld) || matches!(self.basis, Basis::Allocated | Basis::MaxOf);
        let timed = matches!(meter, Meter::WallTime | Meter::GpuHeld) || self.basis == Basis::Allocated;
        let by_month = matches!(unit, Unit::Month(_));
        if meter.is_named() != self.further.name.is_some() {
            Some(if meter.is_named() {
                ("no_name", "the hook's word for what is counted is missing", "such as name = \"tokens\"")
            } else {
                ("name_of_nothing", "only counter and events have names", "leave name out; the line itself is called by its id")
            })
        } else if by_month != self.further.month.is_some() {
            Some(if by_month {
                ("month_length", "months are not of one length", "month = \"calendar\", \"days_30\" or \"hours_730\"")
            } else {
                ("month_of_nothing", "its unit has no month", "leave month out, or price a GB-month")
            })
        } else if Factor::WHOLE < self.further.share {
            Some(("out_of_range", "a discount is a part of the price", "\"0.15\" takes 15 % off"))
        } else if self.timing == Timing::Advance && self.increment == 0 {
            Some((
                "advance_without_increment",
                "what is charged in advance needs an increment",
                "such as increment = \"1\", in the line's unit",
            ))
        } else if self.timing == Timing::Advance && !timed {
            Some((
                "advance_of_usage",
                "only what time alone decides can be charged in advance",
                "wall_time, gpu_held, or basis = \"allocated\"",
            ))
        } else if self.timing == Timing::AtomicAtStart && meter != Meter::JobStarts {
            Some(("atomic_quantity", "nobody knows at the start how much it will be", "atomic_at_start is for job_starts"))
        } else if self.timing != Timing::SettleAtEnd && self.outcome.values().any(|factor| Factor::WHOLE < *factor) {
            Some((
                "outcome_too_late",
                "the outcome is known when this has been charged: a part can be given back then, and no more be asked for",
                "a factor of at most \"1\", or timing = \"settle_at_end\"",
            ))
        } else if self.state.tell_stillness() && !still_allowed {
            Some(("still_usage", "a job that stands still uses none of this", "leave frozen and paused out, or basis = \"allocated\""))
        } else if self.further.latest.started.is_some() && (self.basis != Basis::Allocated || meter.is_of_gpus()) {
            Some((
                "started_usage",
                "only what was asked for, for as long as the job lasts, has days that begin",
                "storage, or basis = \"allocated\"; of wall_time an increment does the same",
            ))
        } else if self.further.latest.started.is_some() && (self.increment != 0 || self.minimum != 0) {
            Some(("started_and_steps", "days that count whole are its steps", "leave increment and minimum out"))
        } else if self.from.is_some_and(|from| self.to.is_some_and(|to| to <= from)) {
            Some(("never_in_force", "effective_to is not after effective_from", "give it a later end"))
        } else if !self.tiers.is_sorted_by(|a, b| a.above < b.above) || self.tiers.first().is_some_and(|tier| tier.above == 0) {
            Some(("tier_order", "the bands do not rise", "each above greater than the one before, the first above 0"))
        } else if self.tiers.iter().any(|tier| tier.price.mantissa < 0) || self.connect_fee < Credits::ZERO {
            Some(("negative_price", "a price is negative", "what is free costs \"0\""))
        } else if !Basis::allowed(meter).contains(&self.basis) {
            Some(("wrong_basis", "that is no basis of this meter", "leave basis out"))
        } else if too_large {
            Some(("out_of_range", "a quantity is too large", "write it in the line's unit"))
        } else {
            None
        }
    }
}

/// What a line selects jobs by; nothing without rules.
pub(super) fn selected(rules: Option<&Rules>) -> Traits {
    rules.map(|rules| rules.select.clone()).unwrap_or_default()
}

/// From when on and until when a line is in force; always without rules.
pub(super) fn span(rules: Option<&Rules>) -> (Wall, Wall) {
    let (from, to) = rules.map_or((None, None), |rules| (rules.from, rules.to));
    (from.unwrap_or(Wall(0)), to.unwrap_or(Wall(u64::MAX)))
}

/// Have two spans an instant in common?
pub(super) fn meet(a: (Wall, Wall), b: (Wall, Wall)) -> bool {
    a.0 < b.1 && b.0 < a.1
}

/// The rules of a line, with none of them given it is [`Rules::none`]. `unit` is the line's, in which quantities are written.
pub(super) fn read(table: &Table<'_>, meter: Option<Meter>, unit: Option<Unit>) -> Option<Rules> {
    let none = Rules::none(meter.unwrap_or(Meter::WallTime));
    let name = table.field("name").name().optional();
    let month = table.field("month").word(&Month::ALL).optional();
    let started = table.field("started").word(&Started::ALL).optional();
    let over_bid = table.field("over_bid").word(&OverBid::ALL).optional();
    let share = table.field("discount").decimal().check(remaining).or(Factor::WHOLE);
    let scale = unit.map(|unit| Scale::of(unit, month.flatten()));
    let increment = table.field("increment").decimal().check(|decimal| quantity(decimal, scale)).check(above_nothing).or(0);
    let minimum = table.field("minimum").decimal().check(|decimal| quantity(decimal, scale)).or(0);
    let connect_fee = table.field("connect_fee").amount(Credits::from_nano(FEE_MAX * 1_000_000_000)).or(Credits::ZERO);
    let timing = table.field("timing").word(&Timing::ALL).or(none.timing);
    let anchor = table.field("anchor").word(&Anchor::ALL).or(none.anchor);
    let allowed: Vec<(&str, Basis)> =
        meter.map_or(Basis::ALL.to_vec(), |meter| Basis::allowed(meter).iter().map(|basis| (basis.name(), *basis)).collect());
    let basis = table.field("basis").word(&allowed).or(none.basis);
    let state = table.field("state").table(read_states).or(none.state);
    let outcome = table.field("outcome").table(read_outcomes).or(BTreeMap::new());
    let from = table.field("effective_from").instant().optional();
    let to = table.field("effective_to").instant().optional();
    let select = table.field("select").table(read_traits).check(some_trait).or(Traits::new());
    let tiers = table.field("tiers").list(TIERS_MAX - 1, |tier| tier.table(|tier| read_tier(tier, scale)).required()).or(Vec::new());
    let rules = Rules {
        increment: increment?,
        minimum: minimum?,
        connect_fee: connect_fee?,
        timing: timing?,
        anchor: anchor?,
        basis: basis?,
        state: state?,
        outcome: outcome?,
        from: from?,
        to: to?,
        select: select?,
        tiers: tiers?,
        further: Further { name: name?, month: month?, share: share?, latest: Latest { started: started?, over_bid: over_bid? } },
    };
    if let Some((code, message, hint)) = meter.zip(unit).and_then(|(meter, unit)| rules.flaw(meter, unit)) {
        table.note(Fault::new(code, message).hint(hint));
        return None;
    }
    Some(rules)
}

/// What a line selects jobs by.
pub(crate) fn read_traits(table: &Table<'_>) -> Option<Traits> {
    let read = Trait::ALL.map(|(name, which)| table.field(name).name::<LineId>().optional().map(|value| Some((which, value?))));
    read.into_iter().collect::<Option<Vec<_>>>().map(|found| found.into_iter().flatten().collect())
}

/// What a job's starter states of it: all but who pays, which is known.
pub(crate) fn read_stated(table: &Table<'_>) -> Option<Traits> {
    let traits = read_traits(table)?;
    if traits.contains_key(&Trait::Account) {
        table.note(Fault::new("not_stated", "the account that pays for a job is known, and not stated of it").hint("leave account out"));
        return None;
    }
    Some(traits)
}

fn some_trait(traits: Traits) -> Result<Traits, Fault> {
    if traits.is_empty() {
        return Err(Fault::new("out_of_range", "an empty table selects nothing").hint("leave it out"));
    }
    Ok(traits)
}

fn read_states(table: &Table<'_>) -> Option<StateRates> {
    let none = StateRates::default();
    let running = table.field("running").decimal().check(factor).or(none.running);
    let frozen = table.field("frozen").decimal().check(factor).or(none.frozen);
    let paused = table.field("paused").decimal().check(factor).or(running.unwrap_or(none.paused));
    Some(StateRates { running: running?, frozen: frozen?, paused: paused? })
}

fn read_outcomes(table: &Table<'_>) -> Option<BTreeMap<Outcome, Factor>> {
    let read = Outcome::ALL.map(|outcome| {
        let factor = table.field(outcome.name()).decimal().check(factor).optional();
        factor.map(|factor| Some((outcome, factor?)))
    });
    read.into_iter().collect::<Option<Vec<_>>>().map(|found| found.into_iter().flatten().collect())
}

fn read_tier(table: &Table<'_>, scale: Option<Scale>) -> Option<Tier> {
    let above = table
        .field("above")
        .decimal()
        .check(|decimal| quantity(decimal, scale))
        .check(above_nothing)
        .required_as("above = \"100\", in the line's unit");
    let price = table.field("price").decimal().check(super::card::not_negative).required_as("price = \"0.03\"");
    Some(Tier { above: above?, price: price? })
}

fn above_nothing(quantity: u128) -> Result<u128, Fault> {
    if quantity == 0 { Err(Fault::new("out_of_range", "0 is no quantity").hint("a positive one, or leave it out")) } else { Ok(quantity) }
}

/// In what a line's quantities are written.
#[derive(Clone, Copy)]
struct Scale {
    unit: Unit,
    /// How many base units it has; none of a month that has no length of its own.
    base: Option<u128>,
}

impl Scale {
    fn of(unit: Unit, month: Option<Month>) -> Scale {
        let base = match (unit, month) {
            (Unit::Month(_), None | Some(Month::Calendar)) => None,
            (_, month) => Some(unit.base(month.map_or(0, |month| month.ns(Wall(0))))),
        };
        Scale { unit, base }
    }
}

/// A quantity in base units, from a decimal in the line's unit.
fn quantity(decimal: Decimal, scale: Option<Scale>) -> Result<u128, Fault> {
    let Some(Scale { unit, base }) = scale else { return Ok(1) }; // the unit's own mistake is noted
    let Some(base) = base else {
        let hint = "month = \"days_30\", or leave this out";
        return Err(Fault::new("month_length", "a calendar month has no one length to count in").hint(hint));
    };
    let fault = || {
        Fault::new("not_whole", format!("{decimal} {unit} is no whole number of the meter's base units, or too large"))
            .hint("such as \"1\", \"0.25\" or \"24\"")
    };
    let divisor = 10_u128.pow(u32::from(decimal.scale));
    let product = u128::try_from(decimal.mantissa).ok().and_then(|mantissa| mantissa.checked_mul(base)).ok_or_else(fault)?;
    if product % divisor == 0 { Ok(product / divisor) } else { Err(fault()) }
}

/// What a discount leaves.
fn remaining(discount: Decimal) -> Result<Factor, Fault> {
    let off = factor(discount)?;
    let left = Factor::SCALE.checked_sub(off.0).filter(|left| *left != 0 && off != Factor::FREE);
    left.map(Factor).ok_or_else(|| {
        Fault::new("out_of_range", format!("{discount} is no discount")).hint("\"0.15\" takes 15 % off; what is free costs \"0\"")
    })
}

fn factor(decimal: Decimal) -> Result<Factor, Fault> {
    let fault = || {
        Fault::new("out_of_range", format!("{decimal} is no factor"))
            .hint(format!("\"0\" is free, \"1\" all of it; at most {FACTOR_MAX}, {FACTOR_SCALE} digits behind the point"))
    };
    let missing = FACTOR_SCALE.checked_sub(decimal.scale).ok_or_else(fault)?;
    let billionths = u64::try_from(decimal.mantissa).ok().and_then(|mantissa| mantissa.checked_mul(10_u64.pow(u32::from(missing))));
    billionths.filter(|factor| *factor <= FACTOR_MAX * Factor::SCALE).map(Factor).ok_or_else(fault)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_month_is_the_calendar_s(ms in 0..16_725_225_600_000_u64) {
            let date = jiff::Timestamp::from_millisecond(i64::try_from(ms).unwrap()).unwrap().to_zoned(jiff::tz::TimeZone::UTC).date();
            let instant = |date: jiff::civil::Date| {
                let zoned = date.to_zoned(jiff::tz::TimeZone::UTC).unwrap();
                Wall(u64::try_from(zoned.timestamp().as_millisecond()).unwrap())
            };
            let next = date.last_of_month().tomorrow().unwrap();
            prop_assert_eq!(month_around(Wall(ms)), (instant(date.first_of_month()), instant(next)));
        }
    }

    #[test]
    fn a_leap_year_s_february_has_a_day_more() {
        let days = |text: &str| {
            let at: jiff::Timestamp = text.parse().unwrap();
            Month::Calendar.ns(Wall(u64::try_from(at.as_millisecond()).unwrap())) / 86_400_000_000_000
        };
        let months =
            ["2028-02-29T23:59:59.999Z", "2027-02-01T00:00:00Z", "2100-02-10T00:00:00Z", "2000-02-10T00:00:00Z", "2026-12-31T23:59:59Z"];
        assert_eq!(months.map(days), [29, 28, 28, 29, 31]);
        assert_eq!((Month::Days30.ns(Wall(0)), Month::Hours730.ns(Wall(0))), (2_592_000_000_000_000, 2_628_000_000_000_000));
    }
}
