//! Random cards and random usage, as text and plain numbers.

use std::collections::{BTreeMap, BTreeSet};
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
const STORAGE_UNITS: [&str; 8] = ["MB-month", "GB-month", "TB-month", "MiB-month", "GiB-month", "TiB-month", "GB-hour", "TiB-day"];
const BYTES: [&str; 6] = ["MB", "GB", "TB", "MiB", "GiB", "TiB"];

pub(crate) const METERS: [(&str, &[&str]); 13] = [
    ("cpu_time", &["core-second", "core-minute", "core-hour", "core-day"]),
    ("memory_charged", &MEMORY_UNITS),
    ("gpu_held", &["gpu-second", "gpu-minute", "gpu-hour", "gpu-day"]),
    ("wall_time", &["second", "minute", "hour", "day"]),
    ("job_starts", &["start"]),
    ("memory_anon", &MEMORY_UNITS),
    ("gpu_busy", &["gpu-second", "gpu-minute", "gpu-hour", "gpu-day"]),
    ("gpu_memory", &["GiB-second", "GB-hour", "TiB-day", "MB-minute"]),
    ("energy", &["J", "Wh", "kWh", "MWh"]),
    ("io_bytes", &BYTES),
    ("storage", &STORAGE_UNITS),
    ("counter", &["count"]),
    ("events", &["event"]),
];

/// Is the meter measured device by device?
fn of_devices(meter: &str) -> bool {
    matches!(meter, "gpu_held" | "gpu_busy" | "gpu_memory" | "energy")
}

/// Are there single ones of it?
fn single(meter: &str) -> bool {
    matches!(meter, "job_starts" | "counter" | "events")
}

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
    /// Further keys with their values.
    rules: Vec<(&'static str, String)>,
}

/// Raw quantities of one segment; `held_ns` has one for each device.
#[derive(Clone, Debug)]
pub(crate) struct Used {
    pub(crate) cpu_ns: u128,
    pub(crate) memory_byte_ns: u128,
    pub(crate) memory_anon_byte_ns: u128,
    pub(crate) running_ns: u128,
    pub(crate) paused_ns: u128,
    pub(crate) frozen_ns: u128,
    pub(crate) job_starts: u64,
    /// One for each device; none where it was not held in this segment.
    pub(crate) held_ns: Vec<Option<u128>>,
    /// By device: busy time, memory in use, energy.
    pub(crate) devices: Vec<[u128; 3]>,
    pub(crate) io_bytes: u128,
    /// Two counters and two events.
    pub(crate) named: [u128; 4],
}

/// The names of the counters and the events.
pub(crate) const NAMES: [&str; 2] = ["tokens", "pages"];

/// What was stated of a job in one segment.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) traits: BTreeMap<&'static str, &'static str>,
    pub(crate) cpus: Option<u32>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) storage_bytes: Option<u64>,
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
    /// What was stated of it, by segment.
    pub(crate) said: Vec<Said>,
    pub(crate) outcome: Option<&'static str>,
    /// What was bid for its start.
    pub(crate) bid: Option<&'static str>,
    /// When each segment begins.
    pub(crate) from: Vec<&'static str>,
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
    let (step, scale) = if single(meter) { (5, 10) } else { (1, 9) };
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

impl LineText {
    fn rule(&self, key: &str) -> Option<&String> {
        self.rules.iter().find(|(known, _)| *known == key).map(|(_, value)| value)
    }

    fn says(&self, key: &str) -> bool {
        self.rule(key).is_some()
    }
}

/// When segments begin, and lines come into force and go out of it.
pub(crate) const DATES: [&str; 4] =
    ["2026-02-01T00:00:00.000Z", "2026-02-01T00:00:00.001Z", "2026-03-01T00:00:00.000Z", "2026-04-01T00:00:00.000Z"];

/// Rules that do not contradict each other or the meter: each with its value as TOML.
pub(crate) fn rules(meter: &'static str) -> impl Strategy<Value = Vec<(&'static str, String)>> {
    let some =
        |weight: f64, words: &'static [&'static str]| prop::option::weighted(weight, select(words).prop_map(|word| format!("\"{word}\"")));
    let factor = || select(&["0", "0.25", "0.333333333", "1", "1.5", "17"][..]);
    let steps: &[&str] = if single(meter) {
        &["1", "2", "3"]
    } else if meter == "io_bytes" {
        &["1", "0.25", "0.5", "24", "1000"]
    } else {
        &["1", "0.25", "0.5", "24", "1000", "0.001"]
    };
    let choice: &[&str] = if matches!(meter, "cpu_time" | "memory_charged" | "memory_anon") { &["allocated", "max_of"] } else { &[] };
    let basis = if choice.is_empty() { Just(None).boxed() } else { some(0.5, choice).boxed() };
    let timings: &[&str] = match meter {
        "job_starts" => &["settle_at_end", "atomic_at_start", "accrue"],
        _ => &["settle_at_end", "advance", "accrue"],
    };
    let state = prop::option::weighted(0.4, (factor(), factor(), factor()));
    let outcome = prop::option::weighted(0.7, (factor(), factor()));
    let quantities = (some(0.4, steps), some(0.3, steps), some(0.3, &["0.000000001", "0.5", "3"]));
    let time = (some(0.6, timings), some(0.4, &["job", "segment"]), basis, state, outcome);
    let dates = (prop::option::weighted(0.25, 0..2_usize), prop::option::weighted(0.25, 2..4_usize));
    let discount = some(0.3, &["0.15", "0.5", "0.999999999"]);
    let tiers = prop::option::weighted(0.3, (select(&["0", "0.5", "7.123456789"][..]), select(&["0", "2", "0.000000000000000001"][..])));
    let selects = some_select();
    let latest = (some(0.75, &["day", "hour"]), some(0.25, &["cap", "freeze", "stop"]));
    let plain = prop::bool::weighted(0.45);
    (plain, quantities, time, dates, tiers, (selects, discount, latest)).prop_map(
        move |(plain, (increment, minimum, fee), time, (from, to), tiers, (selects, discount, (started, over_bid)))| {
            let (mut timing, anchor, basis, state, outcome) = time;
            let mut increment = increment;
            if plain {
                return Vec::new();
            }
            let timed = matches!(meter, "wall_time" | "gpu_held" | "storage") || basis.as_deref() == Some("\"allocated\"");
            if timing.as_deref() == Some("\"advance\"") {
                timing = timing.filter(|_| timed);
                increment = increment.or_else(|| timing.as_ref().map(|_| "\"1\"".to_owned()));
            }
            let by_statement = meter == "storage" || basis.as_deref() == Some("\"allocated\"");
            let started = started.filter(|_| by_statement && increment.is_none() && minimum.is_none());
            let still = timed || basis.is_some();
            let state = state.map(|(running, frozen, paused)| {
                let stands = if still { format!(", frozen = \"{frozen}\", paused = \"{paused}\"") } else { String::new() };
                format!("{{ running = \"{running}\"{stands} }}")
            });
            let settles = timing.as_deref() == Some("\"settle_at_end\"");
            // Only a charge that waits for the outcome may become more by it.
            let most = |factor: &'static str| if settles || !matches!(factor, "1.5" | "17") { factor } else { "0.75" };
            let outcome = outcome.map(|(failed, done)| format!("{{ failed = \"{}\", completed = \"{}\" }}", most(failed), most(done)));
            let date = |nth: usize| format!("\"{}\"", DATES[nth]);
            let tiers = tiers
                .map(|(first, second)| format!("[{{ above = \"1\", price = \"{first}\" }}, {{ above = \"3\", price = \"{second}\" }}]"));
            let keys = [
                ("increment", increment),
                ("minimum", minimum),
                ("connect_fee", fee),
                ("timing", timing),
                ("anchor", anchor),
                ("basis", basis),
                ("state", state),
                ("outcome", outcome),
                ("effective_from", from.map(date)),
                ("effective_to", to.map(date)),
                ("tiers", tiers),
                ("select", selects),
                ("discount", discount),
                ("started", started),
                ("over_bid", over_bid),
            ];
            keys.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
        },
    )
}

fn some_select() -> impl Strategy<Value = Option<String>> {
    prop::option::weighted(
        0.4,
        select(
            &[
                "{ tier = \"spot\" }",
                "{ tier = \"reserved\" }",
                "{ qos = \"night\" }",
                "{ tier = \"spot\", qos = \"night\" }",
                "{ account = \"lab\" }",
                "{ account = \"other\" }",
                "{ account = \"lab\", qos = \"night\" }",
            ][..],
        )
        .prop_map(str::to_owned),
    )
}

fn line(reach: Reach) -> impl Strategy<Value = LineText> {
    let weighted = prop_oneof![
        2 => Just(0), 4 => Just(1), 4 => Just(2), 2 => Just(3), 3 => Just(4_usize), 2 => Just(5), 1 => Just(6), 1 => Just(7), 2 => Just(8),
        1 => Just(9), 3 => Just(10), 2 => Just(11), 1 => Just(12),
    ];
    weighted.prop_flat_map(move |meter| {
        let (meter, units) = METERS[meter];
        let per = match reach {
            Reach::Usual => prop_oneof![3 => Just(None), 1 => (1..=1_000_000_i64).prop_map(Some)].boxed(),
            Reach::Extreme => prop_oneof![Just(None), (1..=i64::MAX).prop_map(Some), Just(Some(i64::MAX))].boxed(),
        };
        let round = prop_oneof![1 => Just(None), 4 => select(&ROUNDINGS[..]).prop_map(Some)];
        let model = if of_devices(meter) { gpu_model().boxed() } else { Just(None).boxed() };
        let named = (select(&NAMES[..]), select(&["calendar", "days_30", "hours_730"][..]));
        (select(units), price(meter, reach), per, round, model, rules(meter), named).prop_map(
            move |(unit, price, per, round, gpu_model, mut rules, (name, month))| {
                if unit.ends_with("-month") {
                    // A calendar month has no length to count steps in.
                    let steps = ["increment", "minimum", "tiers", "timing"];
                    rules.retain(|(key, value)| month != "calendar" || !steps.contains(key) || value == "\"settle_at_end\"");
                    rules.push(("month", format!("\"{month}\"")));
                }
                if matches!(meter, "counter" | "events") {
                    rules.push(("name", format!("\"{name}\"")));
                }
                LineText { meter, unit, price, per, round, gpu_model, rules }
            },
        )
    })
}

/// A card's text. Of two lines for the same GPUs the first stays; mostly there is one for every model that no other line prices.
fn card_text(version: usize, lines: Vec<LineText>, catch_all: u8) -> String {
    let mut kept: Vec<LineText> = Vec::new();
    let every = |meter: &'static str| LineText {
        meter,
        unit: METERS.iter().find(|(known, _)| *known == meter).unwrap().1[2],
        price: "1.10".to_owned(),
        per: None,
        round: None,
        gpu_model: None,
        rules: Vec::new(),
    };
    // Who selects leaves others without a price: mostly there is a line for these too.
    let choosy = |line: &LineText| line.says("select") || line.says("effective_from") || line.says("effective_to");
    let plain = |line: &LineText| {
        let rules = line.rules.iter().filter(|(key, _)| matches!(*key, "name" | "month")).cloned().collect();
        LineText { price: "0.77".to_owned(), rules, gpu_model: None, ..line.clone() }
    };
    let others: Vec<LineText> = lines.iter().filter(|line| choosy(line) && !of_devices(line.meter) && catch_all != 1).map(plain).collect();
    let meters = METERS.map(|(meter, _)| meter).into_iter().filter(|meter| of_devices(meter));
    let priced = meters.filter(|meter| *meter == "gpu_held" || lines.iter().any(|line| line.meter == *meter));
    let every: Vec<LineText> = priced.filter(|_| catch_all != 0).map(every).collect();
    for line in lines.into_iter().chain(others).chain(every) {
        let taken = |other: &LineText| {
            let both = of_devices(other.meter) && line.meter == other.meter;
            both && other.gpu_model == line.gpu_model && other.rule("select") == line.rule("select")
        };
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
        for (key, value) in &line.rules {
            let _ = writeln!(text, "{key} = {value}");
        }
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
    let held = prop::collection::vec(prop::option::weighted(0.85, ns()), devices);
    let each = prop::collection::vec([ns().boxed(), memory().boxed(), total(1 << 50, 500_000, reach)], devices);
    let more = (each, total(1 << 50, 500_000, reach), [0..1_000_000_u128, 0..2_000, 0..90, 0..5]);
    let frozen = (0..1_u128 << 50, 0..=4_u128);
    (ns(), memory(), memory(), ns(), frozen, 0..4_u64, held, more).prop_map(
        |(
            cpu_ns,
            memory_byte_ns,
            memory_anon_byte_ns,
            running_ns,
            (frozen_ns, quarters),
            job_starts,
            held_ns,
            (devices, io_bytes, named),
        )| Used {
            paused_ns: held_ns.iter().flatten().copied().fold(running_ns, u128::min) / 4 * quarters,
            cpu_ns,
            memory_byte_ns,
            memory_anon_byte_ns,
            running_ns,
            frozen_ns,
            job_starts,
            held_ns,
            devices,
            io_bytes,
            named,
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
        let said = (
            prop::collection::btree_set(select(&["tier", "qos"][..]), 0..3),
            prop::bool::weighted(0.7),
            prop::option::weighted(0.9, 1..512_u32),
            prop::option::weighted(0.9, prop_oneof![1..1_u64 << 42, any::<u64>()]),
            prop::option::weighted(0.95, prop_oneof![0..1_u64 << 42, any::<u64>()]),
        );
        let bid = prop::option::weighted(0.6, select(&["0.000000001", "0.5", "3", "1000"][..]));
        let said = (prop::collection::vec(said, most), prop::bool::weighted(0.4));
        let stated = (said, prop::option::weighted(0.7, select(&["completed", "failed", "timed_out"][..])), bid);
        let segments = prop::collection::vec((segment, 0..4_usize), 1..=most);
        (segments, 0..=1_000_u16, any::<Index>(), stated).prop_map(move |(mut segments, unfunded_permille, change, stated)| {
            let ((said, alike), outcome, bid) = stated;
            segments.sort_by_key(|(_, date)| *date);
            let from = segments.iter().map(|(_, date)| DATES[*date]).collect();
            let text = |(nth, ((lines, catch_all, used), _))| (card_text(nth + 1, lines, catch_all), used);
            let value = |key, spot| match (key, spot) {
                ("qos", _) => "night",
                (_, true) => "spot",
                _ => "reserved",
            };
            let say = |(known, spot, cpus, memory_bytes, storage_bytes): (BTreeSet<&'static str>, bool, _, _, _)| Said {
                traits: known.into_iter().map(|key| (key, value(key, spot))).collect(),
                cpus,
                memory_bytes,
                storage_bytes,
            };
            let said: Vec<Said> = said.into_iter().map(say).collect();
            let said = (0..segments.len()).map(|nth| said[if alike { 0 } else { nth }].clone()).collect();
            Case {
                models: models.clone(),
                segments: segments.into_iter().enumerate().map(text).collect(),
                unfunded_permille,
                change,
                said,
                outcome,
                bid,
                from,
            }
        })
    })
}
