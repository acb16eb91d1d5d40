//! Rate cards as the simulation makes them, and their prices by its own big integers: nothing here is taken from the code under test but
//! the card that it parses from the same text.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::Timestamp;
use meterd::domain::rates::Card;
use num_bigint::{BigInt, BigUint};
use num_rational::BigRational;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::rng::Rng;
use crate::world::WALL;

/// The GPU models of the simulated machines.
pub(crate) const MODELS: [&str; 3] = ["NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-40GB", "NVIDIA L4"];

/// What kind of cards a story has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cards {
    /// Prices alone, by the simulation's own arithmetic.
    Plain,
    /// With rules, by the second rating of the verifier.
    Ruled,
}

/// Which base quantity a line prices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    Cpu,
    Memory,
    Gpu,
    Wall,
    Start,
}

/// One line, in the simulation's own terms.
#[derive(Clone, Debug)]
pub(crate) struct Priced {
    pub(crate) what: What,
    pub(crate) mantissa: u128,
    pub(crate) scale: u32,
    pub(crate) unit_base: u128,
    pub(crate) per: u64,
    pub(crate) round: &'static str,
    pub(crate) model: &'static str,
}

/// A card with its text and its own prices.
#[derive(Clone, Debug)]
pub(crate) struct Tariff {
    pub(crate) card: Card,
    pub(crate) lines: Vec<Priced>,
    /// The card's text, where it has rules.
    pub(crate) ruled: Option<String>,
    /// Where it has rules: what each line's base unit costs at its dearest while a job runs, and while it stands still for want of credit, in
    /// nano-credits as a fraction. Reckoned once, since the auditor asks at every step.
    dearest: Vec<[(BigUint, BigUint); 2]>,
}

/// The raw quantities of one segment; GPUs by model.
#[derive(Clone, Debug, Default)]
pub(crate) struct Quantities {
    pub(crate) cpu_ns: u128,
    pub(crate) memory_byte_ns: u128,
    pub(crate) running_ns: u128,
    pub(crate) starts: u128,
    pub(crate) gpus: Vec<(String, u128)>,
}

const UNITS: [(What, &str, &str, u128); 11] = [
    (What::Cpu, "cpu_time", "core-hour", 3_600_000_000_000),
    (What::Cpu, "cpu_time", "core-second", 1_000_000_000),
    (What::Memory, "memory_charged", "GiB-hour", 1_073_741_824 * 3_600_000_000_000),
    (What::Memory, "memory_charged", "MB-second", 1_000_000 * 1_000_000_000),
    (What::Memory, "memory_charged", "TiB-day", 1_099_511_627_776 * 86_400_000_000_000),
    (What::Gpu, "gpu_held", "gpu-hour", 3_600_000_000_000),
    (What::Gpu, "gpu_held", "gpu-minute", 60_000_000_000),
    (What::Wall, "wall_time", "hour", 3_600_000_000_000),
    (What::Wall, "wall_time", "day", 86_400_000_000_000),
    (What::Wall, "wall_time", "second", 1_000_000_000),
    (What::Start, "job_starts", "start", 1),
];

impl Tariff {
    /// A random card. Prices are about one credit an hour for everything together, whatever the unit.
    pub(crate) fn random(rng: &mut Rng, version: u64, cards: Cards) -> Tariff {
        let mut text = format!("card = \"sim\"\nversion = {version}\neffective_from = \"2026-01-01T00:00:00Z\"\n");
        let mut lines = Vec::new();
        let mut whats = vec![What::Cpu];
        for what in [What::Memory, What::Wall, What::Start] {
            if rng.chance(500) {
                whats.push(what);
            }
        }
        for what in whats {
            let dates = if cards == Cards::Ruled && rng.chance(400) { &["effective_to", "effective_from"][..] } else { &[] };
            let date = if dates.is_empty() { WALL } else { WALL + rng.below(200_000) };
            let date = Timestamp::from_millisecond(i64::try_from(date).unwrap()).unwrap();
            for nth in 0..dates.len().max(1) {
                lines.push(push_line(&mut text, rng, what, "", lines.len()));
                push_rules(&mut text, rng, what, cards);
                let _ = dates.get(nth).map_or(Ok(()), |key| writeln!(text, "{key} = \"{date}\""));
            }
        }
        lines.push(push_line(&mut text, rng, What::Gpu, "", lines.len()));
        push_rules(&mut text, rng, What::Gpu, cards);
        for model in ["NVIDIA H100*", "NVIDIA A100-SXM4-40GB"] {
            if rng.chance(400) {
                lines.push(push_line(&mut text, rng, What::Gpu, model, lines.len()));
                push_rules(&mut text, rng, What::Gpu, cards);
            }
        }
        let card = Card::parse(&text, "sim.toml").unwrap_or_else(|mistakes| panic!("the simulation's card: {mistakes:?}\n{text}"));
        let ruled = (cards == Cards::Ruled).then_some(text);
        let dearest =
            ruled.as_deref().map_or(Vec::new(), |text| lines.iter().zip(crate::second_rating::tariffs(text)).map(dearest).collect());
        Tariff { card, lines, ruled, dearest }
    }

    /// What the quantities cost, in nano-credits.
    pub(crate) fn price(&self, used: &Quantities) -> BigUint {
        self.lines.iter().map(|line| self.line_price(line, used)).sum()
    }

    fn line_price(&self, line: &Priced, used: &Quantities) -> BigUint {
        let quantity = self.quantity(line, used);
        let dividend = BigUint::from(quantity) * line.mantissa * 1_000_000_000_u64;
        let divisor = BigUint::from(10_u32).pow(line.scale) * line.unit_base * line.per;
        let (whole, rest) = (&dividend / &divisor, &dividend % &divisor);
        let twice = &rest * 2_u32;
        let up = match line.round {
            "up" => rest != BigUint::ZERO,
            "half_even" => twice > divisor || (twice == divisor && whole.bit(0)),
            _ => false,
        };
        if up { whole + 1_u32 } else { whole }
    }

    fn quantity(&self, line: &Priced, used: &Quantities) -> u128 {
        match line.what {
            What::Cpu => used.cpu_ns,
            What::Memory => used.memory_byte_ns,
            What::Wall => used.running_ns,
            What::Start => used.starts,
            What::Gpu => used.gpus.iter().filter(|(model, _)| self.best(model) == line.model).map(|(_, held)| *held).sum(),
        }
    }

    fn best(&self, model: &str) -> &'static str {
        let fits = |line: &&Priced| {
            line.what == What::Gpu
                && match line.model.strip_suffix('*') {
                    Some(prefix) => model.starts_with(prefix),
                    None => line.model.is_empty() || line.model == model,
                }
        };
        self.lines.iter().filter(fits).map(|line| line.model).max_by_key(|model| model.len()).unwrap_or("")
    }

    /// The price of a second of everything, in nano-credits, each line up. Under rules at the dearest band, state and outcome of each line, as if
    /// it had no increment: what comes in steps must be there before it comes.
    pub(crate) fn burn(&self, cpus: u64, memory_bytes: u64, models: &[String]) -> BigUint {
        let used = second(cpus, memory_bytes, models);
        if self.ruled.is_none() { self.price(&used) + self.lines.len() } else { self.at_dearest(&used, 0) }
    }

    /// The same of jobs that stand still for want of credit.
    pub(crate) fn burn_still(&self, models: &[String], jobs: usize) -> BigUint {
        if self.ruled.is_none() { BigUint::ZERO } else { self.at_dearest(&second(0, 0, models), 1) * jobs }
    }

    fn at_dearest(&self, used: &Quantities, state: usize) -> BigUint {
        let mut by_what: BTreeMap<What, BigUint> = BTreeMap::new();
        for (line, dearest) in self.lines.iter().zip(&self.dearest) {
            let (dividend, divisor) = &dearest[state];
            let nano = dividend * self.quantity(line, used) / divisor + 2_u32;
            let sum = by_what.entry(line.what).or_default();
            // Devices have a line each; of the others one holds at a time.
            *sum = if line.what == What::Gpu { nano + &*sum } else { nano.max(sum.clone()) };
        }
        by_what.into_values().sum()
    }
}

/// See [`Tariff::dearest`].
fn dearest((line, told): (&Priced, crate::second_rating::Tariff)) -> [(BigUint, BigUint); 2] {
    let one = || BigRational::from(BigInt::from(1));
    let outcomes = told.says.get("outcome").and_then(|outcomes| outcomes.as_table()).into_iter().flatten();
    let outcome = outcomes.map(|(outcome, _)| told.in_table("outcome", outcome, 1)).fold(one(), Ord::max);
    let price = told.bands().into_iter().map(|(_, price)| price).max().unwrap();
    let each = price * outcome * BigInt::from(1_000_000_000) / BigInt::from(line.unit_base) / BigInt::from(line.per);
    let running = told.in_table("state", "running", 1);
    let says_paused = told.says.get("state").is_some_and(|state| state.get("paused").is_some());
    let paused = if says_paused { told.in_table("state", "paused", 1) } else { running.clone() };
    [running.max(paused), told.in_table("state", "frozen", 0)].map(|counts| {
        let nano = &each * counts;
        (nano.numer().to_biguint().unwrap(), nano.denom().to_biguint().unwrap())
    })
}

/// A second of everything.
fn second(cpus: u64, memory_bytes: u64, models: &[String]) -> Quantities {
    const S: u128 = 1_000_000_000;
    Quantities {
        cpu_ns: u128::from(cpus) * S,
        memory_byte_ns: u128::from(memory_bytes) * S,
        running_ns: S,
        starts: 0,
        gpus: models.iter().map(|model| (model.clone(), S)).collect(),
    }
}

/// Rules as the verifier makes them, without those that need something stated or a date, and without amounts beyond what anybody here has.
fn push_rules(text: &mut String, rng: &mut Rng, what: What, cards: Cards) {
    if cards == Cards::Plain {
        return;
    }
    let meter = UNITS.iter().find(|(of, ..)| *of == what).map_or("wall_time", |(_, meter, ..)| meter);
    let mut seed = [0; 32];
    seed[..16].copy_from_slice(&rng.bytes16());
    seed[16..].copy_from_slice(&rng.bytes16());
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let rules = crate::random::rules(meter).new_tree(&mut runner).unwrap().current();
    let needs = ["effective_from", "effective_to", "select", "started", "over_bid"];
    let hourly = text.lines().rev().find(|line| line.starts_with("unit = ")).is_some_and(|unit| unit.ends_with("hour\""));
    let by_statement = rules.iter().any(|(key, _)| *key == "basis");
    for (key, value) in rules.iter().filter(|(key, _)| !needs.contains(key) && *key != "basis") {
        // Of what a job uses nothing counts while it stands still, and it is not charged in advance.
        if by_statement && (value.contains("frozen") || value == "\"advance\"") {
            continue;
        }
        // No story is as long as an hour: its steps are parts of a minute, and each of them is more than a moment of everything.
        let steps = [
            ("\"0.25\"", "\"0.01\""),
            ("\"0.5\"", "\"0.005\""),
            ("\"1\"", "\"0.002\""),
            ("\"24\"", "\"0.02\""),
            ("\"0.001\"", "\"0.015\""),
        ];
        let shorter = steps.iter().find(|(long, _)| hourly && *key == "increment" && value == long).map(|(_, short)| (*short).to_owned());
        let value = shorter.unwrap_or_else(|| value.clone());
        let value = value.replace("\"1000\"", "\"1\"").replace("\"24\"", "\"1\"").replace("\"17\"", "\"1.5\"");
        // The outcomes that these stories have.
        let value = value.replace("failed", "unknown").replace("completed", "node_rebooted");
        let _ = writeln!(text, "{key} = {value}");
    }
}

fn push_line(text: &mut String, rng: &mut Rng, what: What, model: &'static str, number: usize) -> Priced {
    let fitting: Vec<_> = UNITS.iter().filter(|unit| unit.0 == what).copied().collect();
    let (_, meter, unit, base) = rng.pick(&fitting);
    // About one credit for an hour of one CPU, 4 GiB, one GPU: a price that fits the unit, with an odd end.
    let hour: u128 = match what {
        What::Memory => 4 * 1_073_741_824 * 3_600_000_000_000,
        What::Start => 20,
        _ => 3_600_000_000_000,
    };
    let scale = 18_u32;
    let mantissa = (base * 1_000_000 / hour).max(1) * u128::from(rng.range(100_000_000_000, 2_000_000_000_000)) / 1_000_000 * 1_000_000;
    let mantissa = (mantissa + u128::from(rng.below(1_000_000))).max(1);
    let per = if rng.chance(300) { rng.range(2, 12) } else { 1 };
    let round = rng.pick(&["down", "up", "half_even"]);
    let unit_scale = 10_u128.pow(scale);
    let (whole, fraction) = (mantissa / unit_scale, mantissa % unit_scale);
    let _ =
        write!(text, "\n[[line]]\nid = \"line-{number}\"\nmeter = \"{meter}\"\nprice = \"{whole}.{fraction:018}\"\nunit = \"{unit}\"\n");
    let _ = write!(text, "per = {per}\nround = \"{round}\"\n");
    if !model.is_empty() {
        let _ = writeln!(text, "gpu_model = \"{model}\"");
    }
    Priced { what, mantissa, scale, unit_base: base, per, round, model }
}
