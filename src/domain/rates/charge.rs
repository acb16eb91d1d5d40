//! The price of usage, exactly: products in 256-bit integers, one division and one rounding per rate line.
//!
//! The quantity is always the cumulative one, so whoever posts `charge now - charge posted` can neither drift nor charge twice.

use std::collections::BTreeMap;

use ethnum::U256;
use num_bigint::BigUint;
use serde::{Deserialize, Serialize};

use super::bid::held_to;
use super::bill::{self, ByState};
use super::{Anchor, Basis, Card, Factor, Line, Rounding, Rules, Stated, Timing, Traits, Uncovered};
use crate::domain::id::{GpuId, LineId};
use crate::domain::money::{Credits, NANO};
use crate::domain::outcome::Outcome;
use crate::domain::time::{Nanos, Wall};
use crate::domain::usage::{HeldGpu, Meter, Usage};

/// Why usage has no price.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    /// The quantity or its price is past what 128 bits of nano-credits hold.
    #[error("the price under line {0} does not fit 128 bits")]
    Overflow(LineId),
    /// The sum over all lines is past what 128 bits of nano-credits hold.
    #[error("the sum of the card's lines does not fit 128 bits")]
    TotalOverflow,
    /// A GPU was used that is not among the job's devices, or that no line prices. Never charged as zero.
    #[error("no line prices the GPU {0}")]
    Unpriced(GpuId),
    /// Something else that such a job uses has no price. Never charged as zero.
    #[error("{0}")]
    Uncovered(Uncovered),
    /// It stood still for longer than it had its place, or a device.
    #[error("paused_ns is more than running_ns, or than a GPU was held")]
    Inconsistent,
}

/// What is priced: the usage of one segment, and what else a line's rules look at.
#[derive(Clone, Copy, Debug)]
pub struct Priced<'a> {
    /// The segment's usage.
    pub usage: &'a Usage,
    /// The devices that the job holds.
    pub gpus: &'a [HeldGpu],
    /// The segments before it; none in the first one, and none needed by a card without rules.
    pub before: &'a [Earlier<'a>],
    /// What decides which lines apply.
    pub stated: Stated<'a>,
    /// How the job ended; none while it goes on.
    pub ended: Option<Outcome>,
}

/// A segment, with what decides how much of it counts.
#[derive(Clone, Copy, Debug)]
pub struct Earlier<'a> {
    /// Its usage.
    pub usage: &'a Usage,
    /// The devices that the job held in it.
    pub gpus: &'a [HeldGpu],
    /// What was stated of the job then.
    pub stated: Stated<'a>,
}

static NO_TRAITS: Traits = BTreeMap::new();

impl<'a> Priced<'a> {
    /// The first segment, so far, of a job of which nothing is stated.
    #[must_use]
    pub fn so_far(usage: &'a Usage, gpus: &'a [HeldGpu]) -> Priced<'a> {
        Priced { usage, gpus, before: &[], stated: Stated::NOTHING, ended: None }
    }

    fn this(&self) -> Earlier<'a> {
        Earlier { usage: self.usage, gpus: self.gpus, stated: self.stated }
    }
}

impl Stated<'static> {
    /// Nothing, of a segment that begins in 1970.
    pub const NOTHING: Stated<'static> =
        Stated { at: Wall(0), traits: &NO_TRAITS, account: None, cpus: None, memory_bytes: None, storage_bytes: None, bid: None };
}

/// What is charged, and what will be at the job's end if it completes then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charge {
    /// Charged.
    pub cost: Credits,
    /// Kept back for its end.
    pub pending: Credits,
    /// What of `cost` is given back by its outcome; nothing while it goes on.
    pub refund: Credits,
}

/// What one line charges, with everything that is needed to compute it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineCharge {
    /// Which line of the card.
    pub line: LineId,
    /// What it prices.
    pub meter: Meter,
    /// How much of it, in the meter's base unit. A string in JSON, since it does not fit 53 bits.
    #[serde(with = "wide")]
    pub quantity: u128,
    /// The unit of the price, such as `gpu-hour`.
    pub unit: String,
    /// The price as a decimal.
    pub price: String,
    /// For how many units it holds.
    pub per: u64,
    /// How the fraction of a nano-credit was rounded.
    pub round: Rounding,
    /// The charge.
    pub cost: Credits,
    /// What is billed of the quantity by the line's rules, in the meter's base unit: a decimal.
    pub billed: String,
    /// What will be charged at the job's end, if it completes now.
    pub pending: Credits,
    /// The line's rules, for people.
    pub rules: Vec<String>,
    /// What of the charge is given back by the job's outcome.
    #[serde(default)]
    pub refund: Credits,
}

/// The most that a job can use at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape<'a> {
    /// Thousandths of CPUs.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// The devices that it holds.
    pub gpus: &'a [HeldGpu],
}

/// What the usage of a job's first segment costs so far, if nothing was stated of it: the sum of all lines.
///
/// # Errors
/// An amount past 128 bits, or a GPU without a price.
pub fn total(card: &Card, usage: &Usage, gpus: &[HeldGpu]) -> Result<Credits, RateError> {
    charge(card, &Priced::so_far(usage, gpus)).map(|charge| charge.cost)
}

/// What is priced costs: the sum of all lines.
///
/// # Errors
/// An amount past 128 bits, or something that has no price.
pub fn charge(card: &Card, priced: &Priced<'_>) -> Result<Charge, RateError> {
    all_priced(card, priced)?;
    let alike = !card.has_rules();
    card.lines.iter().filter(|line| alike || line_is_for(card, line, priced)).try_fold(Charge::default(), |sum, line| {
        let Charge { cost, pending, refund } = match &line.rules {
            None => Charge { cost: line_cost(line, line_quantity(card, line, priced)?)?, ..Charge::default() },
            Some(rules) => ruled(card, line, rules, priced)?.charge,
        };
        let plus = |sum: Credits, more| sum.checked_add(more).ok_or(RateError::TotalOverflow);
        Ok(Charge { cost: plus(sum.cost, cost)?, pending: plus(sum.pending, pending)?, refund: plus(sum.refund, refund)? })
    })
}

/// What the usage of a job's first segment costs so far, line by line, if nothing was stated of it.
///
/// # Errors
/// An amount past 128 bits, or a GPU without a price.
pub fn lines(card: &Card, usage: &Usage, gpus: &[HeldGpu]) -> Result<Vec<LineCharge>, RateError> {
    line_charges(card, &Priced::so_far(usage, gpus))
}

/// What is priced costs, line by line in the order of the card. Lines that are not for the job are left out.
///
/// # Errors
/// An amount past 128 bits, or something that has no price.
pub fn line_charges(card: &Card, priced: &Priced<'_>) -> Result<Vec<LineCharge>, RateError> {
    all_priced(card, priced)?;
    let applying =
        card.lines.iter().filter(|line| if line.meter.is_of_gpus() { holds(card, line, priced) } else { line_is_for(card, line, priced) });
    applying
        .map(|line| {
            let (quantity, Ruled { billed, charge: Charge { cost, pending, refund } }) = match &line.rules {
                None => {
                    let quantity = line_quantity(card, line, priced)?;
                    let billed = BigUint::from(quantity) * Factor::SCALE;
                    (quantity, Ruled { billed, charge: Charge { cost: line_cost(line, quantity)?, ..Charge::default() } })
                }
                Some(rules) => {
                    let quantity = by_state(card, line, rules, priced, [priced.this()])?
                        .priced
                        .counted()
                        .ok_or_else(|| RateError::Overflow(line.id.clone()))?;
                    (quantity, ruled(card, line, rules, priced)?)
                }
            };
            Ok(LineCharge {
                line: line.id.clone(),
                meter: line.meter,
                quantity,
                unit: line.unit.to_string(),
                price: line.price.to_string(),
                per: line.per,
                round: line.round,
                cost,
                billed: bill::decimal(&billed),
                pending,
                refund,
                rules: line.rules.as_deref().map(|rules| told(card, line, rules, priced)).unwrap_or_default(),
            })
        })
        .collect()
}

/// A line's rules, for people, and what its price is held to.
fn told(card: &Card, line: &Line, rules: &Rules, priced: &Priced<'_>) -> Vec<String> {
    let mut told = bill::told((line, priced.stated.at), rules);
    let bill::Held { bid, ask, later } = held_to(card, line, priced.gpus, &priced.stated);
    if bid < ask {
        told.push(format!("held to the bid: {bid} of {ask}"));
    }
    told.extend(later.map(|later| format!("by the bid: a later step at most {} above the first", later.more)));
    told
}

/// What a line with rules bills and charges.
struct Ruled {
    /// In billionths of base units.
    billed: BigUint,
    charge: Charge,
}

fn ruled(card: &Card, line: &Line, rules: &Rules, priced: &Priced<'_>) -> Result<Ruled, RateError> {
    let overflow = || RateError::Overflow(line.id.clone());
    if line.meter.is_of_gpus() && !holds(card, line, priced) {
        return Ok(Ruled { billed: BigUint::ZERO, charge: Charge::default() });
    }
    let (charged, given_back) = (rules.charged(priced.ended.unwrap_or(Outcome::Completed)), rules.given_back(priced.ended));
    let held = held_to(card, line, priced.gpus, &priced.stated);
    let part_of = |billed: &BigUint, factor| bill::cost((line, priced.stated.at), rules, billed, factor, &held).ok_or_else(overflow);
    // The share that is given back is priced and rounded as the charge is: over several segments it never falls, and is never more than all.
    let cost_of = |billed: &BigUint| {
        let refund = if given_back == Factor::FREE { Credits::ZERO } else { part_of(billed, given_back)? };
        Ok::<_, RateError>((part_of(billed, charged)?, refund))
    };
    // What the receipt says of it must fit as well.
    by_state(card, line, rules, priced, [priced.this()])?.priced.counted().ok_or_else(overflow)?;
    let mut billed = billed(card, line, rules, priced, counted(rules, priced))?;
    let (mut cost, mut refund) = cost_of(&billed)?;
    // Before it held a device that the line prices, nothing was charged: neither a fee nor a minimum.
    let held = |earlier: &Earlier<'_>| earlier.gpus.iter().any(|held| prices_device(card, line, held, &priced.stated));
    let counts = !priced.before.is_empty() && (!line.meter.is_of_gpus() || priced.before.iter().any(held));
    if rules.anchor == Anchor::Job && counts {
        let earlier = self::billed(card, line, rules, priced, priced.before.iter().copied())?;
        let before = cost_of(&earlier)?;
        (cost, refund) = (cost.minus(before.0), refund.minus(before.1));
        billed = if earlier <= billed { billed - earlier } else { return Err(RateError::Inconsistent) };
    }
    Ok(match (rules.timing, priced.ended) {
        (Timing::SettleAtEnd, None) => Ruled { billed, charge: Charge { pending: cost, ..Charge::default() } },
        _ => Ruled { billed, charge: Charge { cost, refund, ..Charge::default() } },
    })
}

/// What a line bills of some segments, in billionths of base units.
pub(super) fn billed<'a>(
    card: &Card,
    line: &Line,
    rules: &Rules,
    priced: &Priced<'_>,
    segments: impl IntoIterator<Item = Earlier<'a>>,
) -> Result<BigUint, RateError> {
    match rules.further.latest.started {
        Some(started) => Ok(whole(line, rules, started, segments).billed),
        None => Ok(bill::billed(rules, by_state(card, line, rules, priced, segments)?.priced)),
    }
}

/// Stretches of time that count whole once they have begun.
#[derive(Default)]
struct Whole {
    /// In billionths of base units: each by what was asked for when it began.
    billed: BigUint,
    /// How far the last one reaches beyond what has passed, in billionths of nanoseconds.
    rest: BigUint,
    /// What the next one adds, if as much is asked for then.
    next: BigUint,
}

/// The time runs on over the segments, and the first stretch begins with the first of them.
fn whole<'a>(line: &Line, rules: &Rules, started: super::Started, segments: impl IntoIterator<Item = Earlier<'a>>) -> Whole {
    let step = BigUint::from(started.ns()) * Factor::SCALE;
    let (mut passed, mut begun, mut whole) = (BigUint::ZERO, BigUint::ZERO, Whole::default());
    for segment in segments {
        passed += time_of(segment.usage).weighted(rules);
        let now = ((&passed + &step - 1_u32) / &step).max(BigUint::from(1_u32));
        let count = count_of(line, &segment.stated).unwrap_or(0);
        whole.next = &step * count;
        whole.billed += (&now - &begun) * &whole.next;
        begun = now;
    }
    whole.rest = begun * step - passed;
    whole
}

/// The segments that a line's increments count: this one, or all of the job's so far.
pub(super) fn counted<'a>(rules: &Rules, priced: &Priced<'a>) -> impl Iterator<Item = Earlier<'a>> + use<'a> {
    let before = if rules.anchor == Anchor::Job { priced.before } else { &[] };
    before.iter().copied().chain([priced.this()])
}

/// What a line with rules counts, by the state in which the job was.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counted {
    /// What was used, as far as the line's basis wants it.
    pub(super) used: ByState,
    /// What was asked for, as far as the line's basis wants it.
    pub(super) asked: ByState,
    /// What it prices: one of them, or the greater.
    pub(super) priced: ByState,
}

/// What a line with rules counts of some segments.
fn by_state<'a>(
    card: &Card,
    line: &Line,
    rules: &Rules,
    priced: &Priced<'_>,
    segments: impl IntoIterator<Item = Earlier<'a>>,
) -> Result<Counted, RateError> {
    let overflow = || RateError::Overflow(line.id.clone());
    let by_statement = !line.meter.is_of_gpus();
    let (mut used, mut asked) = (ByState::default(), ByState::default());
    for segment in segments {
        if rules.basis != Basis::Allocated || !by_statement {
            used = used_in(card, line, priced, &segment).and_then(|more| used.plus(more)).ok_or_else(overflow)?;
        }
        if matches!(rules.basis, Basis::Allocated | Basis::MaxOf) && by_statement {
            asked = asked_in(line, &segment).and_then(|more| asked.plus(more)).ok_or_else(overflow)?;
        }
    }
    let priced = match rules.basis {
        Basis::Allocated if by_statement => asked,
        Basis::MaxOf => used.or_greater(asked, rules),
        Basis::Allocated | Basis::Used | Basis::Instance | Basis::Event => used,
    };
    Ok(Counted { used, asked, priced })
}

/// What it counts of this segment alone; none past 128 bits.
pub(super) fn counted_here(card: &Card, line: &Line, rules: &Rules, priced: &Priced<'_>) -> Option<Counted> {
    by_state(card, line, rules, priced, [priced.this()]).ok()
}

/// Of so long a time, what it stood still by another's hand counts as paused.
fn apart(ns: u128, usage: &Usage) -> (u128, u128) {
    (ns - ns.min(usage.paused_ns), ns.min(usage.paused_ns))
}

fn time_of(usage: &Usage) -> ByState {
    let (running, paused) = apart(usage.wall_ns, usage);
    ByState { running, frozen: usage.frozen_ns, paused }
}

/// What was used of a line's meter in a segment; `None` past 128 bits.
fn used_in(card: &Card, line: &Line, priced: &Priced<'_>, segment: &Earlier<'_>) -> Option<ByState> {
    let usage = segment.usage;
    let used = |running: u128| Some(ByState { running, ..ByState::default() });
    let mine = || segment.gpus.iter().filter(|held| prices_device(card, line, held, &priced.stated));
    let amount = |held: &HeldGpu| usage.by_gpu(line.meter).get(&held.gpu).copied().unwrap_or(0);
    match (line.meter, line.name()) {
        (Meter::WallTime, _) => Some(time_of(usage)),
        (Meter::GpuHeld, _) => mine().try_fold(ByState::default(), |sum, held| {
            let (running, paused) = apart(amount(held), usage);
            sum.plus(ByState { running, frozen: usage.frozen_ns, paused })
        }),
        (meter, _) if meter.is_of_gpus() => mine().try_fold(0_u128, |sum, held| sum.checked_add(amount(held))).and_then(used),
        (meter, Some(name)) => used(usage.named(meter, name)),
        (meter, None) => used(usage.quantity(meter, |_| false)),
    }
}

/// What was asked for in a segment, for as long as it lasted; `None` past 128 bits. Of this segment it is stated, or nothing is priced:
/// see [`Card::cover`]. From an earlier one in which it was not, no increment reaches into this one.
fn asked_in(line: &Line, segment: &Earlier<'_>) -> Option<ByState> {
    let Some(count) = count_of(line, &segment.stated) else { return Some(ByState::default()) };
    let time = time_of(segment.usage);
    let part = |ns: u128| ns.checked_mul(count);
    Some(ByState { running: part(time.running)?, frozen: part(time.frozen)?, paused: part(time.paused)? })
}

/// How much of it was asked for at a time.
fn count_of(line: &Line, stated: &Stated<'_>) -> Option<u128> {
    match line.meter {
        Meter::CpuTime => stated.cpus.map(u128::from),
        Meter::Storage => stated.storage_bytes.map(u128::from),
        _ => stated.memory_bytes.map(u128::from),
    }
}

/// The greatest cost of one second of running, each line rounded up; held at the range's end. Of a job of which nothing is stated.
/// A GPU that no line prices adds nothing here: [`Card::cover`] keeps such a job from starting.
#[must_use]
pub fn burn(card: &Card, shape: &Shape<'_>) -> Credits {
    burn_of(card, shape, &Stated::NOTHING)
}

/// The same of a job of which something is stated. Increments are spread over their time.
#[must_use]
pub fn burn_of(card: &Card, shape: &Shape<'_>, stated: &Stated<'_>) -> Credits {
    let alike = !card.has_rules();
    card.lines.iter().filter(|line| alike || is_for(card, line, stated)).map(|line| line_burn(card, line, shape, stated)).sum()
}

/// What a job has used at its start.
pub(super) fn start_usage(gpus: &[HeldGpu]) -> Usage {
    let gpu_held_ns = gpus.iter().map(|held| (held.gpu.clone(), 0)).collect();
    Usage { job_starts: 1, gpu_held_ns, ..Usage::default() }
}

/// What one start costs at once, whatever comes after it, and what of it is kept back for the end; held at the range's end.
#[must_use]
pub fn start_price(card: &Card, gpus: &[HeldGpu], stated: Stated<'_>) -> Charge {
    let usage = start_usage(gpus);
    let priced = Priced { usage: &usage, gpus, before: &[], stated, ended: None };
    let far = Charge { cost: Credits::from_nano(i128::MAX), ..Charge::default() };
    match charge(card, &priced) {
        Ok(charge) => charge,
        Err(RateError::Overflow(_) | RateError::TotalOverflow) => far,
        Err(RateError::Unpriced(_) | RateError::Uncovered(_) | RateError::Inconsistent) => Charge::default(), // such a job does not start
    }
}

/// A charge that comes at once: what it is, and when at the earliest if the job uses all that it can from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// From what was counted on.
    pub within: Nanos,
    /// How much.
    pub cost: Credits,
}

/// What a job's further running can cost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// At most so much a second, all the time.
    pub burn: Credits,
    /// And these all at once; the next one of each line.
    pub ahead: Vec<Ahead>,
}

/// What running on can cost a job: increments all at once, the rest by the second. A second's use after a minimum counts as one step.
#[must_use]
pub fn outlook(card: &Card, priced: &Priced<'_>, shape: &Shape<'_>, guard: Nanos) -> Outlook {
    let mut outlook = Outlook::default();
    let alike = !card.has_rules();
    for line in card.lines.iter().filter(|line| alike || line_is_for(card, line, priced)) {
        let burn = || line_burn(card, line, shape, &priced.stated);
        let Some(rules) = &line.rules else {
            outlook.burn = outlook.burn.plus(burn());
            continue;
        };
        let level = weighted_level(card, line, rules, shape, &priced.stated);
        let Ok(Counted { priced: quantity, .. }) = by_state(card, line, rules, priced, counted(rules, priced)) else { continue };
        if level == BigUint::ZERO {
            continue;
        }
        let within = |distance: BigUint| Nanos(u64::try_from(distance * NS_PER_S / &level).unwrap_or(u64::MAX));
        let factor = rules.charged(Outcome::Completed);
        let rest = bill::rest_of_minimum(rules, quantity);
        let held = held_to(card, line, priced.gpus, &priced.stated);
        if let Some(started) = rules.further.latest.started {
            let Whole { billed, rest, next } = whole(line, rules, started, counted(rules, priced));
            let far = Credits::from_nano(i128::MAX);
            let cost_of = |billed: &BigUint| bill::cost((line, priced.stated.at), rules, billed, factor, &held).unwrap_or(far);
            let fastest = rules.state.running.0.max(rules.state.paused.0).max(1);
            let within = Nanos(u64::try_from(rest / fastest).unwrap_or(u64::MAX));
            outlook.ahead.push(Ahead { within, cost: cost_of(&(&billed + next)).minus(cost_of(&billed)) });
        } else if let Some((distance, cost)) = bill::next_increment((line, priced.stated.at), rules, quantity, (factor, &held)) {
            outlook.ahead.push(Ahead { within: within(distance), cost });
        } else if guard < within(rest.clone()) {
            outlook.ahead.push(Ahead { within: within(rest), cost: burn() });
        } else {
            outlook.burn = outlook.burn.plus(burn());
        }
    }
    outlook
}

const NS_PER_S: u64 = 1_000_000_000;
/// No device has more memory.
pub const GPU_MEMORY_BYTES_MAX: u64 = 512 << 30;
/// No device takes more power, in millijoules a second.
pub const GPU_POWER_MW_MAX: u64 = 4_000_000;

/// The most base units that a line prices in a second.
fn level(card: &Card, line: &Line, shape: &Shape<'_>, stated: &Stated<'_>) -> U256 {
    let basis = line.rules.as_deref().map_or(Basis::Used, |rules| rules.basis);
    let by_basis = |used: U256, allocated: U256| match basis {
        Basis::Allocated => allocated,
        Basis::MaxOf => used.max(allocated),
        Basis::Used | Basis::Instance | Basis::Event => used,
    };
    let second = U256::from(NS_PER_S);
    match line.meter {
        Meter::CpuTime => {
            let used = U256::from(shape.cpu_milli) * U256::from(NS_PER_S / 1_000);
            by_basis(used, U256::from(stated.cpus.unwrap_or(0)) * second)
        }
        Meter::MemoryCharged | Meter::MemoryAnon => {
            by_basis(U256::from(shape.memory_bytes) * second, U256::from(stated.memory_bytes.unwrap_or(0)) * second)
        }
        Meter::GpuHeld | Meter::GpuBusy | Meter::GpuMemory | Meter::Energy => {
            let devices = shape.gpus.iter().filter(|held| prices_device(card, line, held, stated)).count();
            let each = match line.meter {
                Meter::GpuMemory => U256::from(GPU_MEMORY_BYTES_MAX) * second,
                Meter::Energy => U256::from(GPU_POWER_MW_MAX),
                _ => second,
            };
            U256::from(u64::try_from(devices).unwrap_or(u64::MAX)) * each
        }
        Meter::Storage => U256::from(stated.storage_bytes.unwrap_or(0)) * second,
        Meter::WallTime => second,
        // What is reported, or seldom read, nobody can foresee.
        Meter::JobStarts | Meter::IoBytes | Meter::Counter | Meter::Events => U256::ZERO,
    }
}

/// The same as it counts, in billionths.
fn weighted_level(card: &Card, line: &Line, rules: &Rules, shape: &Shape<'_>, stated: &Stated<'_>) -> BigUint {
    // 64 bits of bytes or devices and 30 of nanoseconds.
    let level = u128::try_from(level(card, line, shape, stated)).unwrap_or(u128::MAX);
    BigUint::from(level) * rules.state.running.0.max(rules.state.paused.0)
}

fn line_burn(card: &Card, line: &Line, shape: &Shape<'_>, stated: &Stated<'_>) -> Credits {
    let far = Credits::from_nano(i128::MAX);
    if let Some(rules) = &line.rules {
        return bill::burn((line, stated.at), rules, weighted_level(card, line, rules, shape, stated)).unwrap_or(far);
    }
    let level = level(card, line, shape, stated);
    let narrow = u128::try_from(level).ok().and_then(|level| priced_narrow(line, level, Rounding::Up));
    narrow.or_else(|| self::priced(line, level, Rounding::Up)).unwrap_or(far)
}

/// Does the line apply to such a job?
fn line_is_for(card: &Card, line: &Line, priced: &Priced<'_>) -> bool {
    is_for(card, line, &priced.stated)
}

pub(super) fn is_for(card: &Card, line: &Line, stated: &Stated<'_>) -> bool {
    line.meter.is_of_gpus() || card.lines_for(line.meter, stated).any(|other| other.id == line.id)
}

/// Does the job hold a device that the line prices?
fn holds(card: &Card, line: &Line, priced: &Priced<'_>) -> bool {
    priced.gpus.iter().any(|held| prices_device(card, line, held, &priced.stated))
}

pub(super) fn prices_device(card: &Card, line: &Line, held: &HeldGpu, stated: &Stated<'_>) -> bool {
    line.meter.is_of_gpus() && card.gpu_line(line.meter, &held.model, stated).is_some_and(|best| best.id == line.id)
}

fn all_priced(card: &Card, priced: &Priced<'_>) -> Result<(), RateError> {
    for meter in Meter::OF_GPUS.into_iter().filter(|meter| *meter == Meter::GpuHeld || card.prices(*meter)) {
        let has_price =
            |gpu: &GpuId| priced.gpus.iter().any(|held| held.gpu == *gpu && card.gpu_line(meter, &held.model, &priced.stated).is_some());
        if let Some(gpu) = priced.usage.by_gpu(meter).keys().find(|gpu| !has_price(gpu)) {
            return Err(RateError::Unpriced(gpu.clone()));
        }
    }
    let paused = priced.usage.paused_ns;
    if paused != 0 && (priced.usage.wall_ns < paused || priced.usage.gpu_held_ns.values().any(|held| *held < paused)) {
        return Err(RateError::Inconsistent);
    }
    if !card.has_rules() {
        return Ok(());
    }
    card.cover(priced.gpus, &priced.stated).map_err(|why| match why {
        Uncovered::Gpu(gpu) => RateError::Unpriced(gpu),
        why => RateError::Uncovered(why),
    })
}

/// The cumulative quantity that a line without rules prices, in its meter's base unit.
fn line_quantity(card: &Card, line: &Line, priced: &Priced<'_>) -> Result<u128, RateError> {
    let Priced { usage, gpus, stated, .. } = priced;
    if !line.meter.is_of_gpus() {
        return Ok(usage.quantity(line.meter, |_| false));
    }
    let wanted = |gpu: &GpuId| gpus.iter().find(|held| held.gpu == *gpu).is_some_and(|held| prices_device(card, line, held, stated));
    let mut held = usage.by_gpu(line.meter).iter().filter(|(gpu, _)| wanted(gpu)).map(|(_, ns)| *ns);
    held.try_fold(0_u128, u128::checked_add).ok_or_else(|| RateError::Overflow(line.id.clone()))
}

/// What so many base units cost under a line without rules.
pub(super) fn cost_of(line: &Line, quantity: u128) -> Option<Credits> {
    line_cost(line, quantity).ok()
}

fn line_cost(line: &Line, quantity: u128) -> Result<Credits, RateError> {
    let cost = priced_narrow(line, quantity, line.round).or_else(|| priced(line, U256::from(quantity), line.round));
    cost.ok_or_else(|| RateError::Overflow(line.id.clone()))
}

/// The same price where every product fits 128 bits, at a fraction of the time; `None` where one does not.
fn priced_narrow(line: &Line, quantity: u128, round: Rounding) -> Option<Credits> {
    let mantissa = u128::try_from(line.price.mantissa).ok()?;
    let dividend = quantity.checked_mul(mantissa)?.checked_mul(NANO.unsigned_abs())?;
    let divisor = 10_u128.checked_pow(u32::from(line.price.scale))?.checked_mul(line.base(Wall(0)))?.checked_mul(u128::from(line.per))?;
    let (whole, rest) = (dividend.checked_div(divisor)?, dividend % divisor);
    let up = match round {
        Rounding::Down => false,
        Rounding::Up => rest != 0,
        Rounding::HalfEven => match rest.cmp(&(divisor - rest)) {
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Equal => whole % 2 == 1,
            std::cmp::Ordering::Greater => true,
        },
    };
    i128::try_from(whole.checked_add(u128::from(up))?).ok().map(Credits::from_nano)
}

/// `round(quantity x mantissa x 10^9 / (10^scale x unit x per))` in nano-credits; `None` past 128 bits.
///
/// Room: a quantity of 128 bits x 27 digits (90 bits) x 10^9 (30 bits) is 248 bits; 10^18 (60) x a unit (87) x `per` (64) is 211.
fn priced(line: &Line, quantity: U256, round: Rounding) -> Option<Credits> {
    let mantissa = U256::from(u128::try_from(line.price.mantissa).ok()?);
    let dividend = quantity.checked_mul(mantissa)?.checked_mul(U256::from(NANO.unsigned_abs()))?;
    let ten_to_the_scale = 10_u128.checked_pow(u32::from(line.price.scale))?;
    let divisor = U256::from(ten_to_the_scale).checked_mul(U256::from(line.base(Wall(0))))?.checked_mul(U256::from(line.per))?;
    let (whole, rest) = dividend.checked_div_rem(divisor)?;
    let cost = match round {
        Rounding::Down => whole,
        Rounding::Up if rest == U256::ZERO => whole,
        Rounding::Up => whole.checked_add(U256::ONE)?,
        Rounding::HalfEven => half_even(whole, rest, divisor)?,
    };
    u128::try_from(cost).ok().and_then(|nano| i128::try_from(nano).ok()).map(Credits::from_nano)
}

fn half_even(whole: U256, rest: U256, divisor: U256) -> Option<U256> {
    let odd = whole & U256::ONE;
    match rest.cmp(&(divisor - rest)) {
        std::cmp::Ordering::Less => Some(whole),
        std::cmp::Ordering::Equal => whole.checked_add(odd),
        std::cmp::Ordering::Greater => whole.checked_add(U256::ONE),
    }
}

/// A wide integer: decimal text where people read, the integer itself in the journal.
pub(in crate::domain) mod wide {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::domain) fn serialize<S: Serializer>(value: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(value) } else { serializer.serialize_u128(*value) }
    }

    pub(in crate::domain) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            u128::deserialize(deserializer)
        }
    }
}

#[cfg(test)]
mod tests;
