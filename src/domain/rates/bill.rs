//! The price of a line with rules: in integers of any size, one division and one rounding for all that it charges.

use num_bigint::BigUint;

use super::Unit;
use super::card::{Line, Rounding};
use super::rules::{Basis, Factor, Month, Rules, Timing};
use crate::domain::money::{Credits, Decimal, NANO};
use crate::domain::receipt::rfc3339;
use crate::domain::time::Wall;

/// A line's quantity by state, in the meter's base units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ByState {
    pub(super) running: u128,
    pub(super) frozen: u128,
    pub(super) paused: u128,
}

impl ByState {
    /// What counts of it, in billionths of base units.
    pub(super) fn weighted(self, rules: &Rules) -> BigUint {
        let states = &rules.state;
        let parts = [(self.running, states.running), (self.frozen, states.frozen), (self.paused, states.paused)];
        parts.into_iter().map(|(quantity, factor)| BigUint::from(quantity) * factor.0).sum()
    }

    /// Both together; `None` past 128 bits.
    pub(super) fn plus(self, other: ByState) -> Option<ByState> {
        let part = u128::checked_add;
        Some(ByState {
            running: part(self.running, other.running)?,
            frozen: part(self.frozen, other.frozen)?,
            paused: part(self.paused, other.paused)?,
        })
    }

    /// What the meter counts: running, and standing still by another's hand; `None` past 128 bits.
    pub(super) fn counted(self) -> Option<u128> {
        self.running.checked_add(self.paused)
    }

    /// What was used, or what was asked for: whichever counts for more. What was used while another's hand held the job is not known apart
    /// from the rest, so running and paused are held against each other together, not each by itself: that would bill such a time twice.
    pub(super) fn or_greater(self, asked: ByState, rules: &Rules) -> ByState {
        let moving = |side: ByState| ByState { frozen: 0, ..side }.weighted(rules);
        let greater = if moving(self) < moving(asked) { asked } else { self };
        ByState { frozen: self.frozen.max(asked.frozen), ..greater }
    }
}

/// The billed quantity, in billionths of base units: at least the minimum, and a multiple of the increment.
pub(super) fn billed(rules: &Rules, quantity: ByState) -> BigUint {
    let least = quantity.weighted(rules).max(BigUint::from(rules.minimum) * Factor::SCALE);
    if rules.increment == 0 {
        return least;
    }
    let increment = BigUint::from(rules.increment) * Factor::SCALE;
    let one = BigUint::from(1_u32);
    let count = (least + &increment - &one) / &increment;
    let at_least = if rules.timing == Timing::Advance { one } else { BigUint::ZERO };
    count.max(at_least) * increment
}

/// What a price is held to by a bid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// So much …
    pub(super) bid: Credits,
    /// … of what is asked for a start. All of it, unless that is more.
    pub(super) ask: Credits,
    /// How much dearer than at the start it may become; as the bands say, if nothing is said here.
    pub(super) later: Option<Later>,
}

/// How much dearer what comes after the start may be than the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Later {
    /// What is billed at the start, in billionths of base units: a step.
    pub(super) step: BigUint,
    /// A later step costs at most so much more than that.
    pub(super) more: Credits,
}

impl Held {
    /// At what is asked.
    pub(super) const NOT: Held = Held { bid: Credits::from_nano(1), ask: Credits::from_nano(1), later: None };
}

/// By what a value, a quantity at prices, is divided to give nano-credits of the price before the discount.
fn divisor((line, at): (&Line, Wall)) -> BigUint {
    BigUint::from(10_u32).pow(18) * line.base(at) * line.per * Factor::SCALE
}

/// What a part of a billed quantity is worth at its bands' prices, in 10^-27 credits each base unit: so the bands have one divisor.
fn value(line: &Line, rules: &Rules, from: &BigUint, to: &BigUint) -> BigUint {
    bands(line, rules, from, to).map(|(quantity, price)| quantity * fine(price)).sum::<BigUint>() * NANO.unsigned_abs()
}

/// What a billed quantity and the fee cost in a segment that begins then, of which this part remains; `None` past 127 bits.
pub(super) fn cost((line, at): (&Line, Wall), rules: &Rules, billed: &BigUint, factor: Factor, held: &Held) -> Option<Credits> {
    let (value, parts) = match &held.later {
        Some(later) if later.step < *billed => held_value((line, at), rules, billed, later),
        _ => (value(line, rules, &BigUint::ZERO, billed), BigUint::from(1_u32)),
    };
    let divisor = divisor((line, at)) * parts;
    let fee = BigUint::from(rules.connect_fee.nano().unsigned_abs()) * &divisor;
    let (dividend, divisor) = ((value + fee) * factor.0 * rules.further.share.0, divisor * Factor::SCALE * Factor::SCALE);
    let (dividend, divisor) = if held.bid < held.ask {
        (dividend * held.bid.nano().unsigned_abs(), divisor * held.ask.nano().unsigned_abs())
    } else {
        (dividend, divisor)
    };
    rounded(dividend, &divisor, line.round)
}

/// The value of a quantity of which what comes after the first step costs at most so much more than that: a dividend, and what the divisor is
/// to be multiplied by.
fn held_value((line, at): (&Line, Wall), rules: &Rules, billed: &BigUint, later: &Later) -> (BigUint, BigUint) {
    let share = BigUint::from(rules.further.share.0);
    let first = value(line, rules, &BigUint::ZERO, &later.step);
    let parts = &later.step * &share;
    // What a later step may be worth, as many times as its share of the price.
    let most = &first * &share + BigUint::from(later.more.nano().unsigned_abs()) * divisor((line, at)) * Factor::SCALE;
    let rest = bands(line, rules, &later.step, billed).map(|(quantity, price)| {
        let each = (fine(price) * NANO.unsigned_abs() * &parts).min(most.clone());
        quantity * each
    });
    let rest: BigUint = rest.sum();
    (first * &parts + rest, parts)
}

/// What a start with so much billed costs if its quantity lies there in the bands; `None` past 127 bits.
pub(super) fn window((line, at): (&Line, Wall), rules: &Rules, (from, to): (&BigUint, &BigUint), factor: Factor) -> Option<Credits> {
    let divisor = divisor((line, at));
    let fee = BigUint::from(rules.connect_fee.nano().unsigned_abs()) * &divisor;
    let dividend = (value(line, rules, from, to) + fee) * factor.0 * rules.further.share.0;
    rounded(dividend, &(divisor * Factor::SCALE * Factor::SCALE), line.round)
}

/// How much more a step of that size costs in the dearest band than at the start, rounded down; held at the range's end.
pub(super) fn rise((line, at): (&Line, Wall), rules: &Rules, step: &BigUint) -> Credits {
    let dearest = rules.tiers.iter().map(|tier| fine(tier.price)).fold(fine(line.price), Ord::max) * step * NANO.unsigned_abs();
    let first = value(line, rules, &BigUint::ZERO, step);
    let more = if first < dearest { dearest - first } else { BigUint::ZERO };
    let nano = more * rules.further.share.0 / (divisor((line, at)) * Factor::SCALE);
    i128::try_from(nano).map_or(Credits::from_nano(i128::MAX), Credits::from_nano)
}

fn rounded(dividend: BigUint, divisor: &BigUint, round: Rounding) -> Option<Credits> {
    let (whole, rest) = (&dividend / divisor, dividend % divisor);
    let up = match round {
        Rounding::Down => false,
        Rounding::Up => rest != BigUint::ZERO,
        Rounding::HalfEven => {
            let twice: BigUint = rest * 2_u32;
            *divisor < twice || (*divisor == twice && whole.bit(0))
        }
    };
    i128::try_from(whole + u32::from(up)).ok().map(Credits::from_nano)
}

/// How much of a billed quantity between two points falls into each band, and its price.
pub(super) fn bands<'a>(
    line: &'a Line,
    rules: &'a Rules,
    from: &'a BigUint,
    to: &'a BigUint,
) -> impl Iterator<Item = (BigUint, Decimal)> + 'a {
    let starts = std::iter::once((BigUint::ZERO, line.price));
    let starts: Vec<(BigUint, Decimal)> =
        starts.chain(rules.tiers.iter().map(|tier| (BigUint::from(tier.above) * Factor::SCALE, tier.price))).collect();
    let ends: Vec<BigUint> = starts.iter().skip(1).map(|(start, _)| start.clone()).chain([to.clone()]).collect();
    starts.into_iter().zip(ends).filter_map(move |((start, price), end)| {
        let (start, end) = (start.max(from.clone()), end.min(to.clone()));
        (start < end).then(|| (end - start, price))
    })
}

fn fine(price: Decimal) -> BigUint {
    BigUint::from(price.mantissa.unsigned_abs()) * BigUint::from(10_u32).pow(u32::from(Decimal::SCALE_MAX - price.scale))
}

/// How far the billed quantity reaches beyond what counts, in billionths of base units, and what the next increment costs; none of a
/// line without increments.
pub(super) fn next_increment(
    (line, at): (&Line, Wall),
    rules: &Rules,
    quantity: ByState,
    (factor, held): (Factor, &Held),
) -> Option<(BigUint, Credits)> {
    let increment = Some(rules.increment).filter(|increment| *increment != 0)?;
    let now = billed(rules, quantity);
    let next = &now + BigUint::from(increment) * Factor::SCALE;
    let far = Credits::from_nano(i128::MAX);
    let cost_of = |billed| cost((line, at), rules, billed, factor, held).unwrap_or(far);
    let price = cost_of(&next).minus(cost_of(&now));
    Some((now - quantity.weighted(rules), price))
}

/// The most that so many billionths of base units can cost, rounded up, at the dearest band and outcome; `None` past 127 bits.
pub(super) fn burn((line, at): (&Line, Wall), rules: &Rules, billionths: BigUint) -> Option<Credits> {
    let price = rules.tiers.iter().map(|tier| fine(tier.price)).fold(fine(line.price), Ord::max);
    let factor = rules.outcome.values().copied().fold(Factor::WHOLE, Ord::max);
    let dividend = billionths * price * NANO.unsigned_abs() * factor.0 * rules.further.share.0;
    let scale = BigUint::from(Factor::SCALE).pow(3);
    let divisor = BigUint::from(10_u32).pow(18) * line.base(at) * line.per * scale;
    i128::try_from((dividend + &divisor - 1_u32) / divisor).ok().map(Credits::from_nano)
}

/// How far the minimum reaches beyond what counts, in billionths of base units.
pub(super) fn rest_of_minimum(rules: &Rules, quantity: ByState) -> BigUint {
    let (least, used) = (BigUint::from(rules.minimum) * Factor::SCALE, quantity.weighted(rules));
    if used < least { least - used } else { BigUint::ZERO }
}

/// Billionths of base units as a decimal number of them.
pub(super) fn decimal(billionths: &BigUint) -> String {
    let (whole, rest) = (billionths / Factor::SCALE, billionths % Factor::SCALE);
    let text = format!("{whole}.{:0>9}", rest.to_string());
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A line as it is shown to whoever wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Described {
    /// For which jobs it is, beside the GPU's model, or what a hook calls what it counts: `tier=spot`, `tokens`.
    pub whom: Vec<String>,
    /// Its rules, in the order in which they take effect, and its dates.
    pub how: Vec<String>,
}

impl Line {
    /// For which jobs it is, and by which rules: what tells it from the other lines of its meter.
    #[must_use]
    pub fn described(&self) -> Described {
        let Some(rules) = self.rules.as_deref() else { return Described::default() };
        let mut whom: Vec<String> = rules.select.iter().map(|(which, value)| format!("{}={value}", which.name())).collect();
        whom.extend(rules.further.name.as_ref().map(ToString::to_string));
        let mut how: Vec<String> = told((self, rules.from.unwrap_or(Wall(0))), rules).split_off(whom.len());
        if rules.further.month == Some(Month::Calendar) {
            // How long it is stands on the receipt of the month.
            how.iter_mut().filter(|rule| rule.starts_with("a month of ")).for_each(|rule| "calendar months".clone_into(rule));
        }
        if rules.timing == Timing::SettleAtEnd {
            how.extend(outcomes(rules));
        }
        how.extend(rules.further.latest.over_bid.map(|over_bid| format!("over its bid: {}", over_bid.name())));
        how.extend(rules.from.map(|from| format!("from {}", rfc3339(from))));
        how.extend(rules.to.map(|to| format!("until {}", rfc3339(to))));
        Described { whom, how }
    }
}

fn outcomes(rules: &Rules) -> impl Iterator<Item = String> {
    let parts = rules.outcome.iter().filter(|(_, factor)| **factor != Factor::WHOLE);
    parts.map(|(outcome, factor)| format!("{factor} of it after {outcome}"))
}

/// What a line's rules are, for receipts and people, in the order in which they take effect.
pub(super) fn told((line, at): (&Line, Wall), rules: &Rules) -> Vec<String> {
    let base = line.base(at);
    let quantity = |base_units: u128| {
        let billionths = BigUint::from(base_units) * Factor::SCALE / base;
        let exact = (BigUint::from(base_units) * Factor::SCALE) % base == BigUint::ZERO;
        if exact { format!("{} {}", decimal(&billionths), line.unit) } else { format!("{base_units} base units") }
    };
    let mut told: Vec<String> = rules.select.iter().map(|(which, value)| format!("for {} {value}", which.name())).collect();
    told.extend(rules.further.name.as_ref().map(|name| format!("of {name}")));
    if let (Some(month), true) = (rules.further.month, matches!(line.unit, Unit::Month(_))) {
        const HOUR_NS: u128 = 3_600_000_000_000;
        told.push(format!("a month of {} hours ({})", month.ns(at) / HOUR_NS, month.name()));
    }
    if rules.basis != Basis::of(line.meter) {
        told.push(format!("basis {}", rules.basis.name()));
    }
    for (name, factor, usual) in [
        ("running", rules.state.running, Factor::WHOLE),
        ("frozen", rules.state.frozen, Factor::FREE),
        ("paused", rules.state.paused, rules.state.running),
    ] {
        if factor != usual {
            told.push(format!("{name} counts {factor}"));
        }
    }
    if rules.minimum != 0 {
        told.push(format!("at least {}", quantity(rules.minimum)));
    }
    if rules.increment != 0 {
        told.push(format!("in steps of {}", quantity(rules.increment)));
    }
    told.extend(rules.tiers.iter().map(|tier| format!("{} credits above {}", tier.price, quantity(tier.above))));
    if let Some(started) = rules.further.latest.started {
        told.push(format!("each started {} counts whole", started.name()));
    }
    if !rules.connect_fee.is_zero() {
        told.push(format!("fee {}", rules.connect_fee));
    }
    if rules.timing != Timing::Accrue {
        told.push(rules.timing.name().to_owned());
    }
    if rules.timing != Timing::SettleAtEnd {
        told.extend(outcomes(rules));
    }
    if rules.further.share != Factor::WHOLE {
        told.push(format!("{} of the price, by discount", rules.further.share));
    }
    if rules.anchor != super::Anchor::Segment {
        told.push(format!("counted over the {}", rules.anchor.name()));
    }
    told
}
