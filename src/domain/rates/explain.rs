//! The arithmetic of a charge, step by step, for people: from the measured quantity to the one rounding.

use std::fmt::Write as _;

use num_bigint::BigUint;

use super::bid::held_to;
use super::bill::{self, ByState, Held};
use super::charge::{LineCharge, Priced, RateError, counted_here, line_charges};
use super::{Basis, Card, Factor, Line, Rounding, Rules};
use crate::domain::money::{Credits, Decimal, NANO};
use crate::domain::outcome::Outcome;
use crate::domain::receipt::rfc3339;
use crate::domain::usage::Meter;

/// Digits behind the point that an intermediate number is shown with; what is cut off is a `…`.
const DIGITS: u32 = 12;

/// An exact amount that need not be a whole number of anything.
#[derive(Clone, Debug)]
struct Ratio {
    dividend: BigUint,
    divisor: BigUint,
}

impl Ratio {
    fn times(self, dividend: impl Into<BigUint>, divisor: impl Into<BigUint>) -> Ratio {
        Ratio { dividend: self.dividend * dividend.into(), divisor: self.divisor * divisor.into() }
    }

    fn plus(self, other: &Ratio) -> Ratio {
        Ratio { dividend: self.dividend * &other.divisor + &other.dividend * &self.divisor, divisor: self.divisor * &other.divisor }
    }

    fn zero() -> Ratio {
        Ratio { dividend: BigUint::ZERO, divisor: 1_u32.into() }
    }

    fn of_credits(amount: Credits) -> Ratio {
        Ratio { dividend: amount.nano().unsigned_abs().into(), divisor: NANO.unsigned_abs().into() }
    }

    fn is_less(&self, other: &Ratio) -> bool {
        &self.dividend * &other.divisor < &other.dividend * &self.divisor
    }

    /// Is it a whole number of nano-credits?
    fn is_whole(&self) -> bool {
        &self.dividend * NANO.unsigned_abs() % &self.divisor == BigUint::ZERO
    }
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ten = BigUint::from(10_u32).pow(DIGITS);
        let scaled = &self.dividend * &ten;
        let (cut, rest) = (&scaled / &self.divisor, scaled % &self.divisor);
        let text = format!("{}.{:0>12}", &cut / &ten, (cut % ten).to_string());
        if rest == BigUint::ZERO { f.write_str(text.trim_end_matches('0').trim_end_matches('.')) } else { write!(f, "{text}…") }
    }
}

/// The arithmetic of a charge: for each rate line its quantity, what is billed of it, its price, and what the line's rules make of that;
/// then the sum. Of a job's first segment.
///
/// # Errors
/// An amount past 128 bits, or something that has no price.
pub fn explain(card: &Card, priced: &Priced<'_>) -> Result<String, RateError> {
    let charges = line_charges(card, priced)?;
    let mut text = format!("card {} version {}, prices of {}\n", card.name, card.version, rfc3339(priced.stated.at));
    for charge in &charges {
        if let Some(line) = card.lines.iter().find(|line| line.id == charge.line) {
            text.push_str(&line_text(card, line, charge, priced));
        }
    }
    let sum: Credits = charges.iter().map(|charge| charge.cost).sum();
    let pending: Credits = charges.iter().map(|charge| charge.pending).sum();
    let refund: Credits = charges.iter().map(|charge| charge.refund).sum();
    let _ = writeln!(text, "total {sum} credits");
    if !pending.is_zero() {
        let _ = writeln!(text, "and {pending} credits at its end, if it completes");
    }
    if !refund.is_zero() {
        let _ = writeln!(text, "of which {} are given back by its outcome: {} net", refund.min(sum), sum.minus(refund).or_zero());
    }
    Ok(text)
}

/// A line's unit, and how many base units of its meter that has.
struct InUnits<'a> {
    unit: &'a str,
    base: BigUint,
}

impl InUnits<'_> {
    /// So many billionths of base units.
    fn of(&self, billionths: &BigUint) -> String {
        let ratio = Ratio { dividend: billionths.clone(), divisor: &self.base * Factor::SCALE };
        format!("{ratio} {}", self.unit)
    }
}

fn line_text(card: &Card, line: &Line, charge: &LineCharge, priced: &Priced<'_>) -> String {
    let none = Rules::none(line.meter);
    let rules = line.rules.as_deref().unwrap_or(&none);
    let units = InUnits { unit: &charge.unit, base: line.base(priced.stated.at).into() };
    let per = if line.per == 1 { charge.unit.clone() } else { format!("{} {}", line.per, charge.unit) };
    let mut text = format!("  {}: {}, {} credits per {per}\n", line.id, line.meter, line.price);
    let mut step = |name: &str, what: &str| {
        let _ = writeln!(text, "    {name:<8}  {what}");
    };
    if !charge.rules.is_empty() {
        step("rules", &charge.rules.join(", "));
    }
    let here = counted_here(card, line, rules, priced).unwrap_or_default();
    if rules.basis == Basis::MaxOf {
        step("used", &parts(here.used, rules, &units));
        step("asked", &parts(here.asked, rules, &units));
    }
    let counts = here.priced;
    step("quantity", &quantity(charge, &units, rules));
    let weighted = counts.weighted(rules);
    if counts.counted().map(|counted| BigUint::from(counted) * Factor::SCALE) != Some(weighted.clone()) {
        step("counts", &by_state(counts, rules, &units));
    }
    let billed = billionths(&charge.billed);
    if billed != weighted {
        step("billed", &units.of(&billed));
    }
    for (name, what) in priced_steps(card, line, rules, &billed, charge, priced) {
        step(name, &what);
    }
    text
}

/// Such as `36000000000000 ns / 3600000000000 = 10 core-hour, as asked for`.
fn quantity(charge: &LineCharge, units: &InUnits<'_>, rules: &Rules) -> String {
    let how = match rules.basis {
        Basis::Allocated if !charge.meter.is_of_gpus() => ", as asked for",
        Basis::MaxOf => ", the greater of used and asked for",
        _ => "",
    };
    let in_units = units.of(&(BigUint::from(charge.quantity) * Factor::SCALE));
    if units.base == BigUint::from(1_u32) {
        return format!("{in_units}{how}");
    }
    format!("{} {} / {} = {in_units}{how}", charge.quantity, base_unit(charge.meter), units.base)
}

/// Such as `running 3 core-hour, paused 1 core-hour`; what a line does not count in a state is left out.
fn parts(by_state: ByState, rules: &Rules, units: &InUnits<'_>) -> String {
    let ByState { running, frozen, paused } = by_state;
    let shown = |quantity: u128| units.of(&(BigUint::from(quantity) * Factor::SCALE));
    let frozen = if rules.state.price_stillness() { frozen } else { 0 };
    if frozen == 0 && paused == 0 {
        return shown(running);
    }
    let states = [("running", running), ("frozen", frozen), ("paused", paused)];
    let parts = states.into_iter().filter(|(_, quantity)| *quantity != 0).map(|(name, quantity)| format!("{name} {}", shown(quantity)));
    parts.collect::<Vec<_>>().join(", ")
}

fn by_state(counts: ByState, rules: &Rules, units: &InUnits<'_>) -> String {
    let ByState { running, frozen, paused } = counts;
    let states =
        [("running", running, rules.state.running), ("frozen", frozen, rules.state.frozen), ("paused", paused, rules.state.paused)];
    let part = |(name, quantity, factor): (&str, u128, Factor)| {
        (quantity != 0).then(|| format!("{name} {} x {factor}", units.of(&(BigUint::from(quantity) * Factor::SCALE))))
    };
    let parts: Vec<String> = states.into_iter().filter_map(part).collect();
    format!("{} = {}", parts.join(" + "), units.of(&counts.weighted(rules)))
}

/// What each band costs, what a bid holds a later step to, and the sum of all that.
fn band_steps((line, rules): (&Line, &Rules), billed: &BigUint, held: &Held, priced: &Priced<'_>) -> (Vec<(&'static str, String)>, Ratio) {
    let (mut steps, mut sum) = (Vec::new(), Ratio::zero());
    let each = BigUint::from(line.base(priced.stated.at)) * Factor::SCALE;
    let per = if line.per == 1 { String::new() } else { format!(" / {}", line.per) };
    let in_units = |billionths: &BigUint| Ratio { dividend: billionths.clone(), divisor: each.clone() };
    let later = held.later.as_ref().filter(|later| later.step < *billed);
    let first_end = later.map_or(billed, |later| &later.step);
    let price_of = |quantity: &BigUint, price: Decimal| {
        let scale = BigUint::from(10_u32).pow(price.scale.into()) * line.per;
        in_units(quantity).times(price.mantissa.unsigned_abs(), scale)
    };
    let told = |quantity: &BigUint, price, value: &Ratio| format!("{} {} x {price} credits{per} = {value}", in_units(quantity), line.unit);
    for (quantity, price) in bill::bands(line, rules, &BigUint::ZERO, first_end) {
        let value = price_of(&quantity, price);
        steps.push(("price", told(&quantity, price, &value)));
        sum = sum.plus(&value);
    }
    let Some(later) = later else { return (steps, sum) };
    let most = sum.clone().plus(&Ratio::of_credits(later.more).times(Factor::SCALE, rules.further.share.0));
    for (quantity, price) in bill::bands(line, rules, &later.step, billed) {
        let (value, at_most) = (price_of(&quantity, price), most.clone().times(quantity.clone(), later.step.clone()));
        if at_most.is_less(&value) {
            let (quantity, step) = (in_units(&quantity), in_units(&later.step));
            steps.push(("held", format!("{quantity} {} x {most} credits / {step} = {at_most}, by the bid", line.unit)));
            sum = sum.plus(&at_most);
        } else {
            steps.push(("price", told(&quantity, price, &value)));
            sum = sum.plus(&value);
        }
    }
    (steps, sum)
}

/// From the billed quantity to the cost, with the exact amount where rounding changes it.
fn priced_steps(
    card: &Card,
    line: &Line,
    rules: &Rules,
    billed: &BigUint,
    charge: &LineCharge,
    priced: &Priced<'_>,
) -> Vec<(&'static str, String)> {
    let held = held_to(card, line, priced.gpus, &priced.stated);
    let (mut steps, mut exact) = band_steps((line, rules), billed, &held, priced);
    if !rules.connect_fee.is_zero() {
        exact = exact.plus(&Ratio::of_credits(rules.connect_fee));
        steps.push(("fee", format!("+ {} = {exact}", rules.connect_fee)));
    } else if 1 < steps.len() {
        steps.push(("bands", format!("together {exact}")));
    }
    if rules.further.share != Factor::WHOLE {
        exact = exact.times(rules.further.share.0, Factor::SCALE);
        steps.push(("discount", format!("x {} = {exact}", rules.further.share)));
    }
    if held.bid < held.ask {
        exact = exact.times(held.bid.nano().unsigned_abs(), held.ask.nano().unsigned_abs());
        steps.push(("bid", format!("x {} / {} = {exact}", held.bid, held.ask)));
    }
    let outcome = priced.ended.unwrap_or(Outcome::Completed);
    let factor = rules.charged(outcome);
    if factor != Factor::WHOLE {
        exact = exact.times(factor.0, Factor::SCALE);
        steps.push(("outcome", format!("{outcome}: x {factor} = {exact}")));
    }
    steps.push(("cost", told_cost(charge, &exact, priced)));
    steps
}

/// Such as `0.333333333 credits, rounded down from 0.333333333333…`.
fn told_cost(charge: &LineCharge, exact: &Ratio, priced: &Priced<'_>) -> String {
    let LineCharge { cost, pending, refund, round, .. } = charge;
    let way = match round {
        Rounding::Down => "down",
        Rounding::Up => "up",
        Rounding::HalfEven => "to the nearest, from the middle to the even one,",
    };
    let rounded = if exact.is_whole() { String::new() } else { format!(", rounded {way} from {exact}") };
    let given_back = if refund.is_zero() {
        String::new()
    } else {
        format!("; {refund} of it are given back after {}", priced.ended.unwrap_or(Outcome::Completed))
    };
    if pending.is_zero() {
        format!("{cost} credits{rounded}{given_back}")
    } else {
        format!("{cost} credits now; {pending} at its end, if it completes{rounded}")
    }
}

/// The billionths of base units that a line charge states as a decimal.
fn billionths(text: &str) -> BigUint {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    format!("{whole}{fraction:0<9}").parse().unwrap_or(BigUint::ZERO)
}

const fn base_unit(meter: Meter) -> &'static str {
    match meter {
        Meter::CpuTime | Meter::WallTime => "ns",
        Meter::MemoryCharged | Meter::MemoryAnon | Meter::GpuMemory | Meter::Storage => "byte-ns",
        Meter::GpuHeld | Meter::GpuBusy => "device-ns",
        Meter::Energy => "mJ",
        Meter::IoBytes => "bytes",
        Meter::Counter => "counts",
        Meter::Events => "events",
        Meter::JobStarts => "starts",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::LineId;
    use crate::domain::rates::{Stated, Trait, Traits};
    use crate::domain::usage::{More, Usage};

    const HOUR: u128 = 3_600_000_000_000;

    fn card(lines: &str) -> Card {
        let text = format!("card = \"c\"\nversion = 1\neffective_from = \"2026-02-01T00:00:00Z\"\n{lines}");
        Card::parse(&text, "card.toml").unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
    }

    fn told(card: &Card, usage: &Usage, stated: Stated<'_>, ended: Option<Outcome>) -> String {
        let stated = Stated { at: card.effective_from, ..stated };
        explain(card, &Priced { stated, ended, ..Priced::so_far(usage, &[]) }).unwrap()
    }

    /// Every rule that changes an amount, one after the other.
    const EVERYTHING: &str = r#"
[[line]]
id = "spot"
meter = "wall_time"
price = "1.10"
unit = "hour"
increment = "0.5"
minimum = "1"
connect_fee = "0.30"
discount = "0.15"
tiers = [{ above = "2", price = "0.70" }]
state = { paused = "0.5" }
outcome = { preempted = "0.333" }
timing = "settle_at_end"
select = { tier = "spot" }
[[line]]
id = "stored"
meter = "storage"
price = "0.10"
unit = "GB-month"
month = "calendar"
state = { frozen = "1" }
[[line]]
id = "tokens"
meter = "counter"
name = "tokens"
price = "0.7"
per = 1000000
unit = "count"
round = "up"
"#;

    #[test]
    fn every_step_from_the_quantity_to_the_rounding_is_there() {
        let traits: Traits = [(Trait::Tier, "spot".parse().unwrap())].into();
        let stated = Stated { traits: &traits, storage_bytes: Some(100_000_000_000), ..Stated::NOTHING };
        let tokens: LineId = "tokens".parse().unwrap();
        let more = Some(Box::new(More { counters: [(tokens, 1_234_567)].into(), ..More::default() }));
        let usage = Usage { wall_ns: 4 * HOUR, paused_ns: HOUR, frozen_ns: HOUR / 3, more, ..Usage::default() };
        insta::assert_snapshot!(told(&card(EVERYTHING), &usage, stated, Some(Outcome::Preempted)));
        let going_on = told(&card(EVERYTHING), &usage, stated, None);
        assert!(going_on.contains("0 credits now; 3.0175 at its end"), "{going_on}");
    }

    #[test]
    fn what_is_given_back_is_said() {
        let card =
            card("[[line]]\nid = \"w\"\nmeter = \"wall_time\"\nprice = \"3\"\nunit = \"hour\"\noutcome = { infrastructure = \"0.25\" }\n");
        let usage = Usage { wall_ns: HOUR, ..Usage::default() };
        let text = told(&card, &usage, Stated::NOTHING, Some(Outcome::Infrastructure));
        assert!(text.contains("3 credits; 2.25 of it are given back after infrastructure"), "{text}");
        assert!(text.contains("of which 2.25 are given back by its outcome: 0.75 net"), "{text}");
    }

    /// A decimal in 10^-12, cut off.
    fn trillionths(text: &str) -> i128 {
        let text = text.trim_end_matches('…');
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        format!("{whole}{fraction:0<12}").parse().unwrap()
    }

    proptest::proptest! {
        /// The number before the rounding is the one that the charge rounds.
        #[test]
        fn the_steps_come_to_what_is_charged(
            wall_ns in 0..40 * HOUR, (price, tier) in (0..10_000_u32, 0..10_000_u32), per in 1..50_u32, fee in 0..500_u32,
            (discount, increment) in (1..99_u32, 1..200_u32), round in proptest::sample::select(vec!["down", "up", "half_even"]),
        ) {
            let line = format!(
                "[[line]]\nid = \"w\"\nmeter = \"wall_time\"\nprice = \"0.{price:04}\"\nper = {per}\nunit = \"hour\"\nround = \"{round}\"\n\
                 connect_fee = \"0.{fee:03}\"\ndiscount = \"0.{discount:02}\"\nincrement = \"0.{increment:04}\"\n\
                 tiers = [{{ above = \"3\", price = \"0.{tier:04}\" }}]\n"
            );
            let (card, usage) = (card(&line), Usage { wall_ns, ..Usage::default() });
            let priced = Priced { stated: Stated { at: card.effective_from, ..Stated::NOTHING }, ..Priced::so_far(&usage, &[]) };
            let charge = line_charges(&card, &priced).unwrap().remove(0);
            let line = &card.lines[0];
            let steps = priced_steps(&card, line, line.rules.as_deref().unwrap(), &billionths(&charge.billed), &charge, &priced);
            let last = &steps[steps.len() - 2].1;
            let exact = last.rsplit_once("= ").map_or(last.as_str(), |(_, exact)| exact).trim_start_matches("together ");
            let cost = charge.cost.to_string();
            proptest::prop_assert!((trillionths(exact) - trillionths(&cost)).abs() <= 1_000, "{steps:?}");
        }
    }
}
