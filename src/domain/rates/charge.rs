//! The price of usage, exactly: products in 256-bit integers, one division and one rounding per rate line.
//!
//! The quantity is always the cumulative one, so whoever posts `charge now - charge posted` can neither drift nor charge twice.

use std::fmt::Write as _;

use ethnum::U256;
use serde::{Deserialize, Serialize};

use super::{Card, Line, Rounding};
use crate::domain::id::{GpuId, LineId};
use crate::domain::money::{Credits, NANO};
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

/// What the usage costs: the sum of all lines.
///
/// # Errors
/// An amount past 128 bits, or a GPU without a price.
pub fn total(card: &Card, usage: &Usage, gpus: &[HeldGpu]) -> Result<Credits, RateError> {
    all_priced(card, usage, gpus)?;
    card.lines.iter().try_fold(Credits::ZERO, |sum, line| {
        let cost = line_cost(line, line_quantity(card, line, usage, gpus)?)?;
        sum.checked_add(cost).ok_or(RateError::TotalOverflow)
    })
}

/// What the usage costs, line by line in the order of the card. Lines for GPUs that the job does not hold are left out.
///
/// # Errors
/// An amount past 128 bits, or a GPU without a price.
pub fn lines(card: &Card, usage: &Usage, gpus: &[HeldGpu]) -> Result<Vec<LineCharge>, RateError> {
    all_priced(card, usage, gpus)?;
    let holds = |line: &Line| gpus.iter().any(|held| prices_device(card, line, held));
    let applying = card.lines.iter().filter(|line| line.meter != Meter::GpuHeld || holds(line));
    applying
        .map(|line| {
            let quantity = line_quantity(card, line, usage, gpus)?;
            Ok(LineCharge {
                line: line.id.clone(),
                meter: line.meter,
                quantity,
                unit: line.unit.to_string(),
                price: line.price.to_string(),
                per: line.per,
                round: line.round,
                cost: line_cost(line, quantity)?,
            })
        })
        .collect()
}

/// The greatest cost of one second of running, each line rounded up; held at the range's end.
/// A GPU that no line prices adds nothing here: [`Card::unpriced`] keeps such a job from starting.
#[must_use]
pub fn burn(card: &Card, shape: &Shape<'_>) -> Credits {
    card.lines.iter().map(|line| line_burn(card, line, shape)).sum()
}

/// What one start costs, whatever comes after it; held at the range's end.
#[must_use]
pub fn start_price(card: &Card) -> Credits {
    let starts = card.lines.iter().filter(|line| line.meter == Meter::JobStarts);
    starts.map(|line| priced(line, U256::ONE, line.round).unwrap_or(Credits::from_nano(i128::MAX))).sum()
}

fn line_burn(card: &Card, line: &Line, shape: &Shape<'_>) -> Credits {
    const NS_PER_S: u64 = 1_000_000_000;
    let level = match line.meter {
        Meter::CpuTime => U256::from(shape.cpu_milli) * U256::from(NS_PER_S / 1_000),
        Meter::MemoryCharged | Meter::MemoryAnon => U256::from(shape.memory_bytes) * U256::from(NS_PER_S),
        Meter::GpuHeld => {
            let devices = shape.gpus.iter().filter(|held| prices_device(card, line, held)).count();
            U256::from(u64::try_from(devices).unwrap_or(u64::MAX)) * U256::from(NS_PER_S)
        }
        Meter::WallTime => U256::from(NS_PER_S),
        Meter::JobStarts => U256::ZERO,
    };
    let narrow = u128::try_from(level).ok().and_then(|level| priced_narrow(line, level, Rounding::Up));
    narrow.or_else(|| priced(line, level, Rounding::Up)).unwrap_or(Credits::from_nano(i128::MAX))
}

fn prices_device(card: &Card, line: &Line, held: &HeldGpu) -> bool {
    line.meter == Meter::GpuHeld && card.gpu_line(&held.model).is_some_and(|best| best.id == line.id)
}

fn all_priced(card: &Card, usage: &Usage, gpus: &[HeldGpu]) -> Result<(), RateError> {
    let priced = |gpu: &GpuId| gpus.iter().any(|held| held.gpu == *gpu && card.gpu_line(&held.model).is_some());
    match usage.gpu_held_ns.keys().find(|gpu| !priced(gpu)) {
        Some(gpu) => Err(RateError::Unpriced(gpu.clone())),
        None => Ok(()),
    }
}

/// The cumulative quantity that a line prices, in its meter's base unit.
fn line_quantity(card: &Card, line: &Line, usage: &Usage, gpus: &[HeldGpu]) -> Result<u128, RateError> {
    if line.meter != Meter::GpuHeld {
        return Ok(usage.quantity(line.meter, |_| false));
    }
    let wanted = |gpu: &GpuId| gpus.iter().find(|held| held.gpu == *gpu).is_some_and(|held| prices_device(card, line, held));
    let mut held = usage.gpu_held_ns.iter().filter(|(gpu, _)| wanted(gpu)).map(|(_, ns)| *ns);
    held.try_fold(0_u128, u128::checked_add).ok_or_else(|| RateError::Overflow(line.id.clone()))
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
pub fn explain(card: &Card, usage: &Usage, gpus: &[HeldGpu]) -> String {
    let charges = match lines(card, usage, gpus) {
        Ok(charges) => charges,
        Err(error) => return format!("card {} version {}: {error}\n", card.name, card.version),
    };
    let mut text = format!("card {} version {}\n", card.name, card.version);
    for charge in &charges {
        explain_line(&mut text, card, charge);
    }
    let sum: Credits = charges.iter().map(|charge| charge.cost).sum();
    let _ = writeln!(text, "total {sum} credits");
    text
}

/// Such as `gpu: gpu_held 57600000000000 device-ns x 4 credits / (1 gpu-hour of 3600000000000 device-ns) = 64 credits (round down)`.
fn explain_line(text: &mut String, card: &Card, charge: &LineCharge) {
    let LineCharge { line, meter, quantity, unit, price, per, round, cost } = charge;
    let base = card.lines.iter().find(|other| other.id == *line).map_or(1, |line| line.unit.base());
    let base_name = base_unit(*meter);
    let round = round.name();
    let _ = writeln!(
        text,
        "  {line}: {meter} {quantity} {base_name} x {price} credits / ({per} {unit} of {base} {base_name}) = {cost} credits (round {round})"
    );
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
