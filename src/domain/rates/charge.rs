//! The price of usage, exactly: products in 256-bit integers, one division and one rounding per rate line.
//!
//! The quantity is always the cumulative one, so whoever posts `charge now - charge posted` can neither drift nor charge twice.

use std::fmt::Write as _;

use std::collections::BTreeMap;

use ethnum::U256;
use num_bigint::BigUint;
use serde::{Deserialize, Serialize};

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
    /// The usage of the segments before it; none in the first one.
    pub before: Option<&'a Usage>,
    /// What decides which lines apply.
    pub stated: Stated<'a>,
    /// How the job ended; none while it goes on.
    pub ended: Option<Outcome>,
}

static NO_TRAITS: Traits = BTreeMap::new();

impl<'a> Priced<'a> {
    /// The first segment, so far, of a job of which nothing is stated.
    #[must_use]
    pub fn so_far(usage: &'a Usage, gpus: &'a [HeldGpu]) -> Priced<'a> {
        Priced { usage, gpus, before: None, stated: Stated::NOTHING, ended: None }
    }
}

impl Stated<'static> {
    /// Nothing, of a segment that begins in 1970.
    pub const NOTHING: Stated<'static> = Stated { at: Wall(0), traits: &NO_TRAITS, cpus: None, memory_bytes: None };
}

/// What is charged, and what will be at the job's end if it completes then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charge {
    /// Charged.
    pub cost: Credits,
    /// Kept back for its end.
    pub pending: Credits,
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
        let (cost, pending) = match &line.rules {
            None => (line_cost(line, line_quantity(card, line, priced)?)?, Credits::ZERO),
            Some(rules) => ruled(card, line, rules, priced).map(|ruled| (ruled.cost, ruled.pending))?,
        };
        let plus = |sum: Credits, more| sum.checked_add(more).ok_or(RateError::TotalOverflow);
        Ok(Charge { cost: plus(sum.cost, cost)?, pending: plus(sum.pending, pending)? })
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
    let holds = |line: &Line| priced.gpus.iter().any(|held| prices_device(card, line, held, &priced.stated));
    let applying =
        card.lines.iter().filter(|line| if line.meter == Meter::GpuHeld { holds(line) } else { line_is_for(card, line, priced) });
    applying
        .map(|line| {
            let (quantity, Ruled { billed, cost, pending }) = match &line.rules {
                None => {
                    let quantity = line_quantity(card, line, priced)?;
                    let billed = BigUint::from(quantity) * Factor::SCALE;
                    (quantity, Ruled { billed, cost: line_cost(line, quantity)?, pending: Credits::ZERO })
                }
                Some(rules) => {
                    let quantity =
                        by_state(card, line, rules, priced, priced.usage)?.counted().ok_or_else(|| RateError::Overflow(line.id.clone()))?;
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
                rules: line.rules.as_deref().map(|rules| bill::told(line, rules)).unwrap_or_default(),
            })
        })
        .collect()
}

/// What a line with rules bills and charges.
struct Ruled {
    /// In billionths of base units.
    billed: BigUint,
    cost: Credits,
    pending: Credits,
}

fn ruled(card: &Card, line: &Line, rules: &Rules, priced: &Priced<'_>) -> Result<Ruled, RateError> {
    let overflow = || RateError::Overflow(line.id.clone());
    if line.meter == Meter::GpuHeld && !priced.gpus.iter().any(|held| prices_device(card, line, held, &priced.stated)) {
        return Ok(Ruled { billed: BigUint::ZERO, cost: Credits::ZERO, pending: Credits::ZERO });
    }
    let factor = rules.factor(priced.ended.unwrap_or(Outcome::Completed));
    let cost_of = |billed: &BigUint| bill::cost(line, rules, billed, factor).ok_or_else(overflow);
    let counted = by_state(card, line, rules, priced, &counted(rules, priced))?;
    // What the receipt says of it must fit as well.
    by_state(card, line, rules, priced, priced.usage)?.counted().ok_or_else(overflow)?;
    let mut billed = bill::billed(rules, counted);
    let mut cost = cost_of(&billed)?;
    if let (Anchor::Job, Some(before)) = (rules.anchor, priced.before) {
        let earlier = bill::billed(rules, by_state(card, line, rules, priced, before)?);
        cost = cost.minus(cost_of(&earlier)?);
        billed = if earlier <= billed { billed - earlier } else { return Err(RateError::Inconsistent) };
    }
    Ok(match (rules.timing, priced.ended) {
        (Timing::SettleAtEnd, None) => Ruled { billed, cost: Credits::ZERO, pending: cost },
        _ => Ruled { billed, cost, pending: Credits::ZERO },
    })
}

/// The usage that a line's increments count: the segment's, or the whole job's.
fn counted(rules: &Rules, priced: &Priced<'_>) -> Usage {
    match (rules.anchor, priced.before) {
        (Anchor::Job, Some(before)) => before.clone().plus(priced.usage),
        _ => priced.usage.clone(),
    }
}

/// The quantity that a line with rules prices, by the state in which the job was.
fn by_state(card: &Card, line: &Line, rules: &Rules, priced: &Priced<'_>, usage: &Usage) -> Result<ByState, RateError> {
    let overflow = || RateError::Overflow(line.id.clone());
    // Of running time, what it stood still by another's hand counts as paused.
    let apart = |ns: u128| (ns - ns.min(usage.paused_ns), ns.min(usage.paused_ns));
    let (running, paused) = apart(usage.wall_ns);
    let time = ByState { running, frozen: usage.frozen_ns, paused };
    let times = |count: u128| {
        let part = |ns: u128| ns.checked_mul(count).ok_or_else(overflow);
        Ok::<_, RateError>(ByState { running: part(time.running)?, frozen: part(time.frozen)?, paused: part(time.paused)? })
    };
    let stated = &priced.stated;
    let allocated =
        |count: Option<u128>, what| times(count.ok_or_else(|| RateError::Uncovered(Uncovered::NotStated { line: line.id.clone(), what }))?);
    let used = |running: u128| ByState { running, ..ByState::default() };
    let by_basis = |used_now: u128, count: Option<u128>, what| {
        Ok(match rules.basis {
            Basis::Allocated => allocated(count, what)?,
            Basis::MaxOf => used(used_now).or_greater(allocated(count, what)?),
            Basis::Used | Basis::Instance | Basis::Event => used(used_now),
        })
    };
    match line.meter {
        Meter::CpuTime => by_basis(usage.cpu_ns, stated.cpus.map(u128::from), "cpus"),
        Meter::MemoryCharged => by_basis(usage.memory_byte_ns, stated.memory_bytes.map(u128::from), "memory_bytes"),
        Meter::MemoryAnon => by_basis(usage.memory_anon_byte_ns, stated.memory_bytes.map(u128::from), "memory_bytes"),
        Meter::WallTime => Ok(time),
        Meter::JobStarts => Ok(used(u128::from(usage.job_starts))),
        Meter::GpuHeld => {
            let wanted = |held: &&HeldGpu| prices_device(card, line, held, stated);
            let devices = priced.gpus.iter().filter(wanted);
            let each = devices.map(|held| usage.gpu_held_ns.get(&held.gpu).copied().unwrap_or(0));
            let mut by_device = each.map(apart).map(|(running, paused)| ByState { running, frozen: time.frozen, paused });
            by_device.try_fold(ByState::default(), ByState::plus).ok_or_else(overflow)
        }
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

/// What one start costs at once, whatever comes after it, and what of it is kept back for the end; held at the range's end.
#[must_use]
pub fn start_price(card: &Card, gpus: &[HeldGpu], stated: Stated<'_>) -> Charge {
    let gpu_held_ns = gpus.iter().map(|held| (held.gpu.clone(), 0)).collect();
    let usage = Usage { job_starts: 1, gpu_held_ns, ..Usage::default() };
    let priced = Priced { usage: &usage, gpus, before: None, stated, ended: None };
    let far = Charge { cost: Credits::from_nano(i128::MAX), pending: Credits::ZERO };
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
        let Ok(quantity) = by_state(card, line, rules, priced, &counted(rules, priced)) else { continue };
        if level == BigUint::ZERO {
            continue;
        }
        let within = |distance: BigUint| Nanos(u64::try_from(distance * NS_PER_S / &level).unwrap_or(u64::MAX));
        let factor = rules.factor(Outcome::Completed);
        let rest = bill::rest_of_minimum(rules, quantity);
        if let Some((distance, cost)) = bill::next_increment(line, rules, quantity, factor) {
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
        Meter::GpuHeld => {
            let devices = shape.gpus.iter().filter(|held| prices_device(card, line, held, stated)).count();
            U256::from(u64::try_from(devices).unwrap_or(u64::MAX)) * second
        }
        Meter::WallTime => second,
        Meter::JobStarts => U256::ZERO,
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
        return bill::burn(line, rules, weighted_level(card, line, rules, shape, stated)).unwrap_or(far);
    }
    let level = level(card, line, shape, stated);
    let narrow = u128::try_from(level).ok().and_then(|level| priced_narrow(line, level, Rounding::Up));
    narrow.or_else(|| self::priced(line, level, Rounding::Up)).unwrap_or(far)
}

/// Does the line apply to such a job?
fn line_is_for(card: &Card, line: &Line, priced: &Priced<'_>) -> bool {
    is_for(card, line, &priced.stated)
}

fn is_for(card: &Card, line: &Line, stated: &Stated<'_>) -> bool {
    line.meter == Meter::GpuHeld || card.lines_for(line.meter, stated).any(|other| other.id == line.id)
}

fn prices_device(card: &Card, line: &Line, held: &HeldGpu, stated: &Stated<'_>) -> bool {
    line.meter == Meter::GpuHeld && card.gpu_line(&held.model, stated).is_some_and(|best| best.id == line.id)
}

fn all_priced(card: &Card, priced: &Priced<'_>) -> Result<(), RateError> {
    let has_price = |gpu: &GpuId| priced.gpus.iter().any(|held| held.gpu == *gpu && card.gpu_line(&held.model, &priced.stated).is_some());
    if let Some(gpu) = priced.usage.gpu_held_ns.keys().find(|gpu| !has_price(gpu)) {
        return Err(RateError::Unpriced(gpu.clone()));
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
    if line.meter != Meter::GpuHeld {
        return Ok(usage.quantity(line.meter, |_| false));
    }
    let wanted = |gpu: &GpuId| gpus.iter().find(|held| held.gpu == *gpu).is_some_and(|held| prices_device(card, line, held, stated));
    let mut held = usage.gpu_held_ns.iter().filter(|(gpu, _)| wanted(gpu)).map(|(_, ns)| *ns);
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
    let divisor = 10_u128.checked_pow(u32::from(line.price.scale))?.checked_mul(line.unit.base())?.checked_mul(u128::from(line.per))?;
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
    let divisor = U256::from(ten_to_the_scale).checked_mul(U256::from(line.unit.base()))?.checked_mul(U256::from(line.per))?;
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

/// The arithmetic of a charge, step by step, for people: one line of text per rate line, then the sum.
#[must_use]
pub fn explain(card: &Card, priced: &Priced<'_>) -> String {
    let charges = match line_charges(card, priced) {
        Ok(charges) => charges,
        Err(error) => return format!("card {} version {}: {error}\n", card.name, card.version),
    };
    let mut text = format!("card {} version {}\n", card.name, card.version);
    for charge in &charges {
        explain_line(&mut text, card, charge);
    }
    let sum: Credits = charges.iter().map(|charge| charge.cost).sum();
    let pending: Credits = charges.iter().map(|charge| charge.pending).sum();
    let _ = writeln!(text, "total {sum} credits");
    if !pending.is_zero() {
        let _ = writeln!(text, "and {pending} credits at its end, if it completes");
    }
    text
}

/// Such as `gpu: gpu_held 57600000000000 device-ns x 4 credits / (1 gpu-hour of 3600000000000 device-ns) = 64 credits (round down)`.
fn explain_line(text: &mut String, card: &Card, charge: &LineCharge) {
    let LineCharge { line, meter, quantity, unit, price, per, round, cost, billed, pending, rules } = charge;
    let base = card.lines.iter().find(|other| other.id == *line).map_or(1, |line| line.unit.base());
    let base_name = base_unit(*meter);
    let round = round.name();
    let of = format!("{price} credits / ({per} {unit} of {base} {base_name})");
    if rules.is_empty() {
        let _ = writeln!(text, "  {line}: {meter} {quantity} {base_name} x {of} = {cost} credits (round {round})");
        return;
    }
    let rules = rules.join(", ");
    let due = if pending.is_zero() { String::new() } else { format!(" now, {pending} at its end") };
    let _ =
        writeln!(text, "  {line}: {meter} {quantity} {base_name}, {rules}: billed {billed} x {of} = {cost} credits{due} (round {round})");
}

const fn base_unit(meter: Meter) -> &'static str {
    match meter {
        Meter::CpuTime | Meter::WallTime => "ns",
        Meter::MemoryCharged | Meter::MemoryAnon => "byte-ns",
        Meter::GpuHeld => "device-ns",
        Meter::JobStarts => "starts",
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
