use std::collections::BTreeMap;

use num_bigint::BigInt;
use num_rational::BigRational;
use proptest::prelude::*;

use super::*;
use crate::domain::id::{Digest, GpuModel};
use crate::domain::money::Decimal;
use crate::domain::rates::explain::explain;
use crate::domain::rates::{GpuSelector, Unit};
use crate::domain::time::Wall;
use crate::domain::usage::More;

const S: u128 = 1_000_000_000;
const HOUR: u128 = 3_600 * S;

fn line(id: &str, meter: Meter, price: &str, unit: &str, round: Rounding) -> Line {
    let (id, price, unit) = (id.parse().unwrap(), price.parse().unwrap(), unit.parse().unwrap());
    Line { id, meter, price, unit, per: 1, round, gpu_model: GpuSelector::Any, rules: None }
}

fn card(lines: Vec<Line>) -> Card {
    Card { name: "c".parse().unwrap(), version: 1, effective_from: Wall(0), lines, digest: Digest([0; 32]), predecessor: None }
}

fn one(meter: Meter, price: &str, unit: &str, round: Rounding) -> Card {
    card(vec![line("l", meter, price, unit, round)])
}

fn gpus(models: &[&str]) -> Vec<HeldGpu> {
    let held = |(index, model): (usize, &&str)| HeldGpu { gpu: format!("GPU-{index}").parse().unwrap(), model: GpuModel::new(model) };
    models.iter().enumerate().map(held).collect()
}

fn holding(gpus: &[HeldGpu], ns: u128) -> Usage {
    Usage { gpu_held_ns: gpus.iter().map(|held| (held.gpu.clone(), ns)).collect(), ..Usage::default() }
}

fn cpu(ns: u128) -> Usage {
    Usage { cpu_ns: ns, ..Usage::default() }
}

#[test]
fn s2_eight_gpus_for_two_hours_at_4_00_are_exactly_64_whatever_the_tick() {
    let card = one(Meter::GpuHeld, "4.00", "gpu-hour", Rounding::Down);
    let gpus = gpus(&["NVIDIA H100"; 8]);
    assert_eq!(total(&card, &holding(&gpus, 2 * HOUR), &gpus), Ok("64".parse().unwrap()));
    let mut usage = Usage::default();
    let mut posted = Credits::ZERO;
    for _ in 0..7_200 {
        usage = usage.plus(&holding(&gpus, S));
        let due = total(&card, &usage, &gpus).unwrap();
        posted = posted.plus(due.minus(posted));
    }
    assert_eq!(posted, "64".parse().unwrap());
}

#[test]
fn a_third_of_a_credit_is_rounded_once_and_never_drifts() {
    for (round, nano) in [(Rounding::Down, 333_333_333), (Rounding::Up, 333_333_334), (Rounding::HalfEven, 333_333_333)] {
        let card = one(Meter::WallTime, "1", "hour", round);
        let cost = |ns: u128| total(&card, &Usage { wall_ns: ns, ..Usage::default() }, &[]).unwrap().nano();
        assert_eq!(cost(HOUR / 3), nano, "{round:?}");
        assert_eq!(cost(HOUR), 1_000_000_000, "three thirds are one: {round:?}");
    }
}

#[test]
fn half_a_nano_credit_goes_to_the_even_one() {
    let card = one(Meter::JobStarts, "0.0000000005", "start", Rounding::HalfEven);
    let cost = |job_starts| total(&card, &Usage { job_starts, ..Usage::default() }, &[]).unwrap().nano();
    assert_eq!([1, 2, 3, 4, 5].map(cost), [0, 1, 2, 2, 2]);
}

#[test]
fn a_price_holds_for_per_units() {
    let mut card = one(Meter::CpuTime, "1", "core-second", Rounding::Down);
    card.lines[0].per = 1_000;
    assert_eq!(total(&card, &cpu(500 * S), &[]), Ok("0.5".parse().unwrap()));
}

#[test]
fn several_lines_are_each_charged_and_their_sum_is_the_total() {
    let mut lines = vec![
        line("cpu", Meter::CpuTime, "0.04", "core-hour", Rounding::Down),
        line("memory", Meter::MemoryCharged, "0.005", "GiB-hour", Rounding::Down),
        line("gpu", Meter::GpuHeld, "1.20", "gpu-hour", Rounding::Down),
        line("h100", Meter::GpuHeld, "4", "gpu-hour", Rounding::Down),
        line("a100", Meter::GpuHeld, "3", "gpu-hour", Rounding::Down),
        line("start", Meter::JobStarts, "0.01", "start", Rounding::Down),
    ];
    lines[3].gpu_model = GpuSelector::Prefix("NVIDIA H100".to_owned());
    lines[4].gpu_model = GpuSelector::Exact(GpuModel::new("NVIDIA A100"));
    let card = card(lines);
    let gpus = gpus(&["NVIDIA H100 80GB HBM3", "NVIDIA L4", "NVIDIA H100 PCIe"]);
    let usage = Usage { cpu_ns: 10 * HOUR, memory_byte_ns: (2 << 30) * HOUR, wall_ns: HOUR, job_starts: 1, ..holding(&gpus, HOUR) };
    let charges = lines_of(&card, &usage, &gpus);
    let costs: Vec<(&str, String)> = charges.iter().map(|charge| (charge.line.as_str(), charge.cost.to_string())).collect();
    let expected = [("cpu", "0.4"), ("memory", "0.01"), ("gpu", "1.2"), ("h100", "8"), ("start", "0.01")];
    assert_eq!(costs, expected.map(|(line, cost)| (line, cost.to_owned())), "and no line for an A100, which is not held");
    assert_eq!(total(&card, &usage, &gpus), Ok(charges.iter().map(|charge| charge.cost).sum()));
    insta::assert_snapshot!(explain(&card, &Priced::so_far(&usage, &gpus)).unwrap());
}

fn lines_of(card: &Card, usage: &Usage, gpus: &[HeldGpu]) -> Vec<LineCharge> {
    lines(card, usage, gpus).unwrap()
}

#[test]
fn a_line_charge_reads_back_and_its_wide_quantity_is_text_in_json() {
    let card = one(Meter::MemoryCharged, "0.005", "GiB-hour", Rounding::Up);
    let usage = Usage { memory_byte_ns: 1 << 100, ..Usage::default() };
    let charges = lines_of(&card, &usage, &[]);
    let json = serde_json::to_value(&charges).unwrap();
    assert_eq!(json[0]["quantity"], "1267650600228229401496703205376");
    assert_eq!(serde_json::from_value::<Vec<LineCharge>>(json).unwrap(), charges);
    assert_eq!(postcard::from_bytes::<Vec<LineCharge>>(&postcard::to_stdvec(&charges).unwrap()).unwrap(), charges);
}

#[test]
fn time_spent_frozen_costs_nothing() {
    let card = one(Meter::WallTime, "1", "second", Rounding::Up);
    let usage = Usage { frozen_ns: HOUR, ..Usage::default() };
    assert_eq!(total(&card, &usage, &[]), Ok(Credits::ZERO));
}

#[test]
fn f19_a_gpu_without_a_price_is_an_error_and_never_zero() {
    let mut card = one(Meter::GpuHeld, "4", "gpu-hour", Rounding::Down);
    card.lines[0].gpu_model = GpuSelector::Prefix("NVIDIA H100".to_owned());
    let gpus = gpus(&["NVIDIA A100"]);
    let usage = holding(&gpus, HOUR);
    let unpriced = RateError::Unpriced("GPU-0".parse().unwrap());
    assert_eq!(total(&card, &usage, &gpus), Err(unpriced.clone()));
    assert_eq!(lines(&card, &usage, &gpus), Err(unpriced.clone()));
    assert_eq!(total(&card, &usage, &[]), Err(unpriced), "nor one of unknown model");
    assert_eq!(explain(&card, &Priced::so_far(&usage, &gpus)).unwrap_err().to_string(), "no line prices the GPU GPU-0");
}

#[test]
fn an_amount_past_128_bits_is_an_error_at_every_stage() {
    let highest = "999999999999999999999999999";
    let card_of = |count| card((0..count).map(|n| line(&format!("l{n}"), Meter::CpuTime, highest, "core-second", Rounding::Up)).collect());
    let overflow = |id: &str| Err(RateError::Overflow(id.parse().unwrap()));
    assert_eq!(total(&card_of(1), &cpu(u128::MAX), &[]), overflow("l0"));
    // One core-second at 10^27 - 1 credits is 10^36 nano-credits; 170 of them just fit i128 (1.7 x 10^38).
    let just_fits = cpu(170 * S);
    assert_eq!(total(&card_of(1), &just_fits, &[]).map(Credits::nano), Ok(170 * (10_i128.pow(27) - 1) * NANO));
    assert_eq!(total(&card_of(2), &just_fits, &[]), Err(RateError::TotalOverflow));
    assert_eq!(total(&card_of(1), &cpu(171 * S), &[]), overflow("l0"));
    let gpus = gpus(&["m", "m"]);
    let gpu_card = one(Meter::GpuHeld, "0", "gpu-day", Rounding::Down);
    assert_eq!(total(&gpu_card, &holding(&gpus, u128::MAX), &gpus), overflow("l"));
}

#[test]
fn the_finest_price_on_the_largest_unit_is_still_exact() {
    let mut card = one(Meter::MemoryCharged, "0.000000000000000001", "TiB-day", Rounding::Up);
    card.lines[0].per = u64::MAX;
    let cost = |memory_byte_ns| total(&card, &Usage { memory_byte_ns, ..Usage::default() }, &[]).unwrap().nano();
    assert_eq!([cost(0), cost(1), cost(u128::MAX)], [0, 1, 1]);
}

#[test]
fn burn_is_the_cost_of_one_second_at_full_use_and_a_start_is_no_part_of_it() {
    let lines = vec![
        line("cpu", Meter::CpuTime, "0.04", "core-hour", Rounding::Down),
        line("memory", Meter::MemoryCharged, "3.6", "GiB-hour", Rounding::Down),
        line("gpu", Meter::GpuHeld, "4", "gpu-hour", Rounding::Down),
        line("wall", Meter::WallTime, "36", "hour", Rounding::Down),
        line("start", Meter::JobStarts, "0.5", "start", Rounding::Down),
        line("again", Meter::JobStarts, "0.25", "start", Rounding::Down),
    ];
    let card = card(lines);
    let gpus = gpus(&["m"; 8]);
    let shape = Shape { cpu_milli: 1_500, memory_bytes: 1 << 30, gpus: &gpus };
    // 1.5 x 0.04 / 3600 = 16,666.67 nano; 1,000,000; 8 x 4 / 3600 = 8,888,888.89; 10,000,000.
    assert_eq!(burn(&card, &shape).nano(), 16_667 + 1_000_000 + 8_888_889 + 10_000_000);
    assert_eq!(start_price(&card, &gpus, Stated::NOTHING).cost, "0.75".parse().unwrap());
    let nothing = Shape { cpu_milli: 0, memory_bytes: 0, gpus: &[] };
    assert_eq!(burn(&card, &nothing).nano(), 10_000_000);
}

#[test]
fn an_endless_burn_is_held_at_the_end_of_the_range() {
    let card = one(Meter::MemoryCharged, "999999999999999999999999999", "MB-second", Rounding::Down);
    let shape = Shape { cpu_milli: u64::MAX, memory_bytes: u64::MAX, gpus: &[] };
    assert_eq!(burn(&card, &shape).nano(), i128::MAX);
}

fn any_line() -> impl Strategy<Value = Line> {
    let meter_unit = (prop::sample::select(Meter::ALL.to_vec()), any::<prop::sample::Index>());
    let price = (0..10_i128.pow(18), 0..=18_u8).prop_map(|(mantissa, scale)| Decimal { mantissa, scale });
    let round = prop::sample::select(Rounding::ALL.to_vec());
    (meter_unit, price, prop_oneof![Just(1), 1..=1_000_000_u64], round).prop_map(|((meter, unit), price, per, round)| {
        let units = Unit::of(meter);
        let (id, unit) = ("l".parse().unwrap(), units[unit.index(units.len())]);
        Line { id, meter, price, unit, per, round, gpu_model: GpuSelector::Any, rules: None }
    })
}

fn any_usage() -> impl Strategy<Value = Usage> {
    let ns = || 0..1_u128 << 60;
    let gpus = prop::collection::btree_map(prop::sample::select(vec!["GPU-0", "GPU-1", "GPU-2"]), ns(), 0..4);
    (ns(), 0..1_u128 << 90, gpus, ns(), 0..3_u64).prop_map(|(cpu_ns, memory_byte_ns, gpus, wall_ns, job_starts)| {
        let gpu_held_ns: BTreeMap<GpuId, u128> = gpus.into_iter().map(|(gpu, ns)| (gpu.parse().unwrap(), ns)).collect();
        Usage { cpu_ns, memory_byte_ns, gpu_held_ns, wall_ns, job_starts, ..Usage::default() }
    })
}

/// The same charge in rationals of any size.
fn by_rationals(line: &Line, quantity: u128) -> BigInt {
    let (numer, denom) = (BigInt::from(line.price.mantissa), BigInt::from(10).pow(u32::from(line.price.scale)));
    let base = BigInt::from(line.base(Wall(0))) * BigInt::from(line.per);
    let exact = BigRational::new(numer * BigInt::from(quantity) * BigInt::from(NANO), denom * base);
    match line.round {
        Rounding::Down => exact.floor().to_integer(),
        Rounding::Up => exact.ceil().to_integer(),
        Rounding::HalfEven => {
            let floor = exact.floor().to_integer();
            let twice_rest = (exact - BigRational::from(floor.clone())) * BigInt::from(2);
            let one = BigRational::from(BigInt::from(1));
            let odd = &floor % BigInt::from(2) == BigInt::from(1);
            if one < twice_rest || one == twice_rest && odd { floor + 1 } else { floor }
        }
    }
}

/// A card with this line, on which GPUs are free if the line does not price them.
fn card_with(line: Line) -> Card {
    let free = self::line("free", Meter::GpuHeld, "0", "gpu-hour", Rounding::Down);
    card(if line.meter == Meter::GpuHeld { vec![line] } else { vec![line, free] })
}

/// All that devices can do in a second.
fn full_second(gpus: &[HeldGpu]) -> More {
    let each = |amount: u128| gpus.iter().map(|held| (held.gpu.clone(), amount)).collect();
    More {
        gpu_busy_ns: each(S),
        gpu_memory_byte_ns: each(u128::from(GPU_MEMORY_BYTES_MAX) * S),
        energy_mj: each(u128::from(GPU_POWER_MW_MAX)),
        ..More::default()
    }
}

/// What is used while another's hand holds the job is part of what it used: the pause is billed once, by the greater of the two.
#[test]
fn d8_the_greater_of_used_and_asked_for_bills_a_pause_once() {
    let line = "[[line]]\nid = \"c\"\nmeter = \"cpu_time\"\nprice = \"1\"\nunit = \"core-hour\"\nbasis = \"max_of\"\n";
    for (rules, used, expected) in [
        ("", 2 * HOUR, "2"),
        ("", HOUR / 2, "2"),
        ("", 5 * HOUR / 2, "2.5"),
        ("state = { paused = \"0.5\" }", 7 * HOUR / 5, "1.5"),
        ("state = { paused = \"0.5\" }", 8 * HOUR / 5, "1.6"),
        ("state = { paused = \"0\" }", HOUR / 2, "1"),
        ("state = { frozen = \"0.25\" }", 2 * HOUR, "3"),
        ("state = { frozen = \"0.25\" }", 3 * HOUR, "4"),
    ] {
        let usage = Usage { cpu_ns: used, frozen_ns: 4 * HOUR, paused_ns: HOUR, wall_ns: 2 * HOUR, ..Usage::default() };
        let stated = Stated { cpus: Some(1), ..Stated::NOTHING };
        let text = format!("card = \"c\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n{line}{rules}");
        let card = Card::parse(&text, "card.toml").unwrap();
        let charge = charge(&card, &Priced { stated, ..Priced::so_far(&usage, &[]) });
        assert_eq!(charge.unwrap().cost.to_string(), expected, "one core for two hours, one of them paused; {used} ns used; {rules}");
    }
}

proptest! {
    #[test]
    fn a_charge_is_what_rationals_of_any_size_say(line in any_line(), usage in any_usage()) {
        let gpus = gpus(&["a", "b", "c"]);
        let card = card_with(line);
        let expected = by_rationals(&card.lines[0], usage.quantity(card.lines[0].meter, |_| true));
        match total(&card, &usage, &gpus) {
            Ok(cost) => prop_assert_eq!(BigInt::from(cost.nano()), expected),
            Err(error) => {
                prop_assert_eq!(error, RateError::Overflow("l".parse().unwrap()));
                prop_assert!(BigInt::from(i128::MAX) < expected);
            }
        }
    }

    #[test]
    fn the_short_way_to_a_price_ends_where_the_long_one_does(line in any_line(), quantity in prop_oneof![any::<u128>(), (0..1_u128 << 90)]) {
        if let Some(cost) = priced_narrow(&line, quantity, line.round) {
            prop_assert_eq!(Some(cost), priced(&line, U256::from(quantity), line.round));
        }
    }

    #[test]
    fn any_split_of_usage_over_ticks_costs_the_same(line in any_line(), ticks in prop::collection::vec(any_usage(), 1..20)) {
        let gpus = gpus(&["a", "b", "c"]);
        let card = card_with(line);
        let mut usage = Usage::default();
        let mut posted = Credits::ZERO;
        for tick in &ticks {
            usage = usage.plus(tick);
            let due = total(&card, &usage, &gpus);
            prop_assume!(!matches!(due, Err(RateError::Overflow(_))));
            let due = due.unwrap();
            prop_assert!(posted <= due, "more usage never costs less");
            posted = posted.plus(due.minus(posted));
        }
        let whole = ticks.iter().fold(Usage::default(), Usage::plus);
        prop_assert_eq!(total(&card, &whole, &gpus), Ok(posted));
    }

    #[test]
    fn burn_is_never_below_the_cost_of_a_second_of_full_use(line in any_line(), cpu_milli in 0..1_000_000_u64, memory_bytes in 0..1_u64 << 45) {
        let gpus = gpus(&["a", "b", "c"]);
        let card = card_with(Line { round: Rounding::Down, ..line });
        let memory_byte_ns = u128::from(memory_bytes) * S;
        let second = Usage { cpu_ns: u128::from(cpu_milli) * S / 1_000, memory_byte_ns, memory_anon_byte_ns: memory_byte_ns, wall_ns: S, more: Some(Box::new(full_second(&gpus))), ..holding(&gpus, S) };
        let burn = burn(&card, &Shape { cpu_milli, memory_bytes, gpus: &gpus });
        if let Ok(cost) = total(&card, &second, &gpus) {
            prop_assert!(cost <= burn && burn.nano() <= cost.nano() + 1, "{} {}", cost, burn);
        }
    }
}
