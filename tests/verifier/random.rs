//! Random cards and random usage, as text and plain numbers.

use std::fmt::Write as _;

use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Models whose names begin alike, so that several selectors fit one device.
pub(crate) const MODELS: [&str; 8] = [
    "NVIDIA H100 80GB HBM3",
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    "NVIDIA H100 PCIe",
    "NVIDIA A100-SXM4-40GB",
    "NVIDIA A100-SXM4-80GB",
    "NVIDIA L4",
    "NVIDIA L40S",
    "Tesla T4",
];

const MEMORY_UNITS: [&str; 24] = [
    "MB-second",
    "MB-minute",
    "MB-hour",
    "MB-day",
    "GB-second",
    "GB-minute",
    "GB-hour",
    "GB-day",
    "TB-second",
    "TB-minute",
    "TB-hour",
    "TB-day",
    "MiB-second",
    "MiB-minute",
    "MiB-hour",
    "MiB-day",
    "GiB-second",
    "GiB-minute",
    "GiB-hour",
    "GiB-day",
    "TiB-second",
    "TiB-minute",
    "TiB-hour",
    "TiB-day",
];

/// A meter and the units that its price may be stated in.
pub(crate) const METERS: [(&str, &[&str]); 6] = [
    ("cpu_time", &["core-second", "core-minute", "core-hour", "core-day"]),
    ("memory_charged", &MEMORY_UNITS),
    ("gpu_held", &["gpu-second", "gpu-minute", "gpu-hour", "gpu-day"]),
    ("wall_time", &["second", "minute", "hour", "day"]),
    ("job_starts", &["start"]),
    ("memory_anon", &MEMORY_UNITS),
];

pub(crate) const ROUNDINGS: [&str; 3] = ["down", "up", "half_even"];

/// A rate line, in the words of a card.
#[derive(Clone, Debug)]
pub(crate) struct LineText {
    meter: &'static str,
    unit: &'static str,
    price: String,
    per: Option<i64>,
    round: Option<&'static str>,
    gpu_model: Option<String>,
}

/// Raw quantities of one segment; `held_ns` has one for each device.
#[derive(Clone, Debug)]
pub(crate) struct Used {
    pub(crate) cpu_ns: u128,
    pub(crate) memory_byte_ns: u128,
    pub(crate) memory_anon_byte_ns: u128,
    pub(crate) running_ns: u128,
    pub(crate) frozen_ns: u128,
    pub(crate) job_starts: u64,
    pub(crate) held_ns: Vec<u128>,
}

/// A job that ran under one card after the other.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// The models of its devices.
    pub(crate) models: Vec<&'static str>,
    pub(crate) segments: Vec<(String, Used)>,
    /// Thousandths of its charge that nobody paid.
    pub(crate) unfunded_permille: u16,
    /// Which number of the receipt is to be changed.
    pub(crate) change: Index,
}

/// How large numbers get.
#[derive(Clone, Copy, Debug)]
enum Reach {
    Usual,
    /// Up to the ends of the types: some of these have no price.
    Extreme,
}

/// `mantissa / 10^scale` as people write it; zeros at its ends are kept.
fn decimal_text(mantissa: u128, scale: usize) -> String {
    let digits = format!("{mantissa:0width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    if fraction.is_empty() { whole.to_owned() } else { format!("{whole}.{fraction}") }
}

fn price(meter: &'static str, reach: Reach) -> BoxedStrategy<String> {
    // Odd ones that make half nano-credits: of a start by themselves, of other units where the quantity is half a unit.
    let (step, scale) = if meter == "job_starts" { (5, 10) } else { (1, 9) };
    let halves = (0..500_u128).prop_map(move |nth| decimal_text((2 * nth + 1) * step, scale));
    let plain = (0..1_000_000_u128, 0..=6_usize).prop_map(|(mantissa, scale)| decimal_text(mantissa, scale));
    let fine = (0..10_u128.pow(18), 12..=18_usize).prop_map(|(mantissa, scale)| decimal_text(mantissa, scale));
    let any = (0..10_u128.pow(27), 0..=18_usize).prop_map(|(mantissa, scale)| decimal_text(mantissa, scale));
    match reach {
        Reach::Usual => prop_oneof![3 => halves, 4 => plain, 4 => fine, 1 => Just("0".to_owned())].boxed(),
        Reach::Extreme => prop_oneof![1 => plain, 2 => any].boxed(),
    }
}

/// A model's whole name, or its beginning with a `*`, or none.
fn gpu_model() -> impl Strategy<Value = Option<String>> {
    let beginning = (select(&MODELS[..]), any::<Index>()).prop_map(|(model, at)| Some(format!("{}*", &model[..=at.index(model.len())])));
    prop_oneof![
        2 => select(&MODELS[..]).prop_map(|model| Some(model.to_owned())),
        2 => beginning,
        1 => Just(None),
    ]
}

fn line(reach: Reach) -> impl Strategy<Value = LineText> {
    let weighted = prop_oneof![1 => Just(0), 2 => Just(1), 2 => Just(2), 1 => Just(3), 1 => Just(4_usize), 1 => Just(5)];
    weighted.prop_flat_map(move |meter| {
        let (meter, units) = METERS[meter];
        let per = match reach {
            Reach::Usual => prop_oneof![3 => Just(None), 1 => (1..=1_000_000_i64).prop_map(Some)].boxed(),
            Reach::Extreme => prop_oneof![Just(None), (1..=i64::MAX).prop_map(Some), Just(Some(i64::MAX))].boxed(),
        };
        let round = prop_oneof![1 => Just(None), 4 => select(&ROUNDINGS[..]).prop_map(Some)];
        let model = if meter == "gpu_held" { gpu_model().boxed() } else { Just(None).boxed() };
        (select(units), price(meter, reach), per, round, model).prop_map(move |(unit, price, per, round, gpu_model)| LineText {
            meter,
            unit,
            price,
            per,
            round,
            gpu_model,
        })
    })
}

/// A card's text. Of two lines for the same GPUs the first stays; mostly there is one for every model that no other line prices.
fn card_text(version: usize, lines: Vec<LineText>, catch_all: u8) -> String {
    let mut kept: Vec<LineText> = Vec::new();
    let every = LineText { meter: "gpu_held", unit: "gpu-hour", price: "1.10".to_owned(), per: None, round: None, gpu_model: None };
    for line in lines.into_iter().chain((catch_all != 0).then_some(every)) {
        let taken = |other: &LineText| other.meter == "gpu_held" && line.meter == "gpu_held" && other.gpu_model == line.gpu_model;
        if !kept.iter().any(taken) {
            kept.push(line);
        }
    }
    let mut text = format!("card = \"random\"\nversion = {version}\neffective_from = \"2026-01-01T00:00:00Z\"\n");
    for (nth, line) in kept.iter().enumerate() {
        let LineText { meter, unit, price, .. } = line;
        let _ = write!(text, "[[line]]\nid = \"l{nth}\"\nmeter = \"{meter}\"\nprice = \"{price}\"\nunit = \"{unit}\"\n");
        let _ = line.per.map_or(Ok(()), |per| writeln!(text, "per = {per}"));
        let _ = line.round.map_or(Ok(()), |round| writeln!(text, "round = \"{round}\""));
        let _ = line.gpu_model.as_ref().map_or(Ok(()), |model| writeln!(text, "gpu_model = \"{model}\""));
    }
    text
}

/// A total: any, or a whole number of halves of this many base units.
fn total(most: u128, half: u128, reach: Reach) -> BoxedStrategy<u128> {
    match reach {
        Reach::Usual => prop_oneof![2 => 0..most, 1 => (0..100_u128).prop_map(move |count| count * half)].boxed(),
        Reach::Extreme => prop_oneof![any::<u128>(), Just(u128::MAX), 0..most].boxed(),
    }
}

fn used(devices: usize, reach: Reach) -> impl Strategy<Value = Used> {
    let ns = move || total(1 << 60, 500_000_000, reach);
    let memory = move || total(1 << 90, 500_000_000_000_000, reach);
    let held = prop::collection::vec(ns(), devices);
    (ns(), memory(), memory(), ns(), 0..1_u128 << 50, 0..4_u64, held).prop_map(
        |(cpu_ns, memory_byte_ns, memory_anon_byte_ns, running_ns, frozen_ns, job_starts, held_ns)| Used {
            cpu_ns,
            memory_byte_ns,
            memory_anon_byte_ns,
            running_ns,
            frozen_ns,
            job_starts,
            held_ns,
        },
    )
}

pub(crate) fn case() -> impl Strategy<Value = Case> {
    let reach = prop_oneof![9 => Just(Reach::Usual), 1 => Just(Reach::Extreme)];
    let models = prop::collection::vec(select(&MODELS[..]), 0..7);
    (reach, models).prop_flat_map(|(reach, models)| {
        let lines = prop::collection::vec(line(reach), 1..14);
        let segment = (lines, 0..12_u8, used(models.len(), reach));
        let most = if matches!(reach, Reach::Usual) { 3 } else { 1 };
        (prop::collection::vec(segment, 1..=most), 0..=1_000_u16, any::<Index>()).prop_map(move |(segments, unfunded_permille, change)| {
            let text = |(nth, (lines, catch_all, used))| (card_text(nth + 1, lines, catch_all), used);
            Case { models: models.clone(), segments: segments.into_iter().enumerate().map(text).collect(), unfunded_permille, change }
        })
    })
}
