//! Receipts computed again by a second rating that shares no code with the first: `verifier/second_rating.rs`.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/agent.rs"]
#[expect(dead_code, reason = "what other tests need of it")]
mod agent;
#[path = "verifier/explained.rs"]
mod explained;
#[path = "verifier/random.rs"]
mod random;
#[path = "verifier/second_rating.rs"]
mod second_rating;
#[path = "stub_nvml/mod.rs"]
#[expect(dead_code, reason = "what other tests need of it")]
mod stub_nvml;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use agent::Agent;
use meterd::domain::act::{ProcessRoot, Target};
use meterd::domain::agent::{Agent as State, Settings};
use meterd::domain::enforcement::Enforcement;
use meterd::domain::fact::{Fact, Opened};
use meterd::domain::id::{Attempt, BootId, Digest, Epoch, GpuModel, Uid};
use meterd::domain::job::Ending;
use meterd::domain::ladder::{JobPolicy, Ladder};
use meterd::domain::meter::Host;
use meterd::domain::money::Credits;
use meterd::domain::outcome::Outcome;
use meterd::domain::rates::charge::RateError;
use meterd::domain::rates::{Card, Trait, Traits, Uncovered};
use meterd::domain::receipt::{Receipt, verify};
use meterd::domain::refund::{Outcomes, Refund, outcomes};
use meterd::domain::terms::{Offer, Terms};
use meterd::domain::time::{Boot, Nanos, Now, Wall};
use meterd::domain::usage::{HeldGpu, More, Usage};
use num_bigint::BigInt;
use proptest::test_runner::{Config, TestError, TestRunner};
use random::{Case, METERS, NAMES, ROUNDINGS, Said, Used};
use second_rating::{Charged, NoPrice, nano, rate};
use serde_json::{Value, json};

const CASES: u32 = 4_000;
/// Of everything that the two ratings are compared on, so many at least.
const EACH_AT_LEAST: u64 = 100;
/// And of each pair of rules so many, in the short run.
const PAIR_AT_LEAST: u64 = 20;

type Counts = BTreeMap<String, u64>;

/// Numbers that no price depends on, so that no card can say whether they are true: they begin so …
const WITHOUT_PRICE: [&str; 8] = ["/attempt", "/owner_uid", "/exit_code", "/notes_dropped", "/gaps/", "/steps/", "/readings/", "/basis/"];
/// … or end so: time spent frozen costs nothing.
const FREE: [&str; 2] = ["/frozen_ns", "/paused_ns"];

fn devices(models: &[&str]) -> Vec<HeldGpu> {
    let device = |(nth, model): (usize, &&str)| HeldGpu { gpu: format!("GPU-{nth}").parse().unwrap(), model: GpuModel::new(model) };
    models.iter().enumerate().map(device).collect()
}

/// The devices of a segment, with their numbers.
fn held(used: &Used, gpus: &[HeldGpu]) -> Vec<(usize, HeldGpu)> {
    let all = gpus.iter().cloned().enumerate();
    all.filter(|(nth, _)| used.held_ns[*nth].is_some()).collect()
}

fn more(used: &Used, gpus: &[HeldGpu]) -> More {
    let each = |which: usize| held(used, gpus).into_iter().map(|(nth, gpu)| (gpu.gpu, used.devices[nth][which])).collect();
    let named = |counts: &[u128]| NAMES.iter().zip(counts).map(|(name, count)| (name.parse().unwrap(), *count)).collect();
    More {
        gpu_busy_ns: each(0),
        gpu_memory_byte_ns: each(1),
        energy_mj: each(2),
        io_bytes: used.io_bytes,
        counters: named(&used.named[..2]),
        events: named(&used.named[2..]),
    }
}

/// The usage as the product keeps it …
fn usage(used: &Used, gpus: &[HeldGpu]) -> Usage {
    Usage {
        cpu_ns: used.cpu_ns,
        memory_byte_ns: used.memory_byte_ns,
        gpu_held_ns: held(used, gpus).into_iter().map(|(nth, gpu)| (gpu.gpu, used.held_ns[nth].unwrap())).collect(),
        wall_ns: used.running_ns,
        job_starts: used.job_starts,
        frozen_ns: used.frozen_ns,
        memory_anon_byte_ns: used.memory_anon_byte_ns,
        paused_ns: used.paused_ns,
        more: None,
    }
}

/// … and the job as the second rating reads it.
fn plain(case: &Case) -> Value {
    let segment = |(((_, used), from), said): ((&(String, Used), &&str), &Said)| {
        let devices = || case.models.iter().enumerate().filter(|(nth, _)| used.held_ns[*nth].is_some());
        let device = |(nth, model): (usize, &&str)| json!({ "gpu": format!("GPU-{nth}"), "model": model, "held_ns": used.held_ns[nth].unwrap().to_string() });
        let each = |which: usize| {
            let amount = |(nth, _): (usize, _)| (format!("GPU-{nth}"), json!(used.devices[nth][which].to_string()));
            devices().map(amount).collect::<serde_json::Map<_, _>>()
        };
        let named = |nth: usize| {
            NAMES
                .iter()
                .zip(&used.named[nth..])
                .map(|(name, count)| ((*name).to_owned(), json!(count.to_string())))
                .collect::<serde_json::Map<_, _>>()
        };
        json!({
            "from": from,
            "cpu_ns": used.cpu_ns.to_string(),
            "memory_charged_byte_ns": used.memory_byte_ns.to_string(),
            "memory_anon_byte_ns": used.memory_anon_byte_ns.to_string(),
            "running_ns": used.running_ns.to_string(),
            "frozen_ns": used.frozen_ns.to_string(),
            "paused_ns": used.paused_ns.to_string(),
            "job_starts": used.job_starts,
            "gpus": devices().map(device).collect::<Vec<_>>(),
            "more": { "gpu_busy_ns": each(0), "gpu_memory_byte_ns": each(1), "energy_mj": each(2), "io_bytes": used.io_bytes.to_string(),
                "counters": named(0), "events": named(2) },
            "terms": { "cpus": said.cpus, "memory_bytes": said.memory_bytes, "storage_bytes": said.storage_bytes, "traits": said.traits },
        })
    };
    json!({
        "outcome": case.outcome,
        "account": "lab",
        "offer": { "bid": case.bid },
        "segments": case.segments.iter().zip(&case.from).zip(&case.said).map(segment).collect::<Vec<_>>(),
    })
}

/// The product's receipt of a job that ran under these cards one after the other; `Err` where a segment has no price.
fn receipt(case: &Case, cards: &[Card]) -> Result<Receipt, (usize, RateError)> {
    let gpus = devices(&case.models);
    let (attempt, boot) = (Attempt(1), BootId([0xab; 16]));
    let mut state = State::default();
    let at = Now::default();
    state.apply(&Fact::CardAdopted { card: cards[0].clone().into(), at });
    state.apply(&Fact::JobOpened(
        Opened {
            attempt,
            name: "job".parse().unwrap(),
            account: "lab".parse().unwrap(),
            owner: Uid(1_000),
            target: Target::Processes(ProcessRoot { pid: 2, start_ticks: 3 }),
            gpus: gpus.clone(),
            time_limit: None,
            cpus: None,
            memory_bytes: None,
            at,
            cpu_counter_ns: None,
            memory_level_bytes: None,
            card: cards[0].digest,
            charge: Credits::ZERO,
            drawn: Credits::ZERO,
            policy: JobPolicy::default(),
            traits: Traits::new(),
            pending: Credits::ZERO,
            oom_kills: None,
        }
        .into(),
    ));
    for card in &cards[1..] {
        state.apply(&Fact::CardAdopted { card: card.clone().into(), at });
    }
    let mut job = state.jobs.get(&attempt).unwrap().clone();
    job.boot = boot;
    assert_eq!(job.segments.len(), cards.len());
    let outcome = |name: &str| Outcome::ALL.into_iter().find(|outcome| outcome.name() == name).unwrap();
    let ended = case.outcome.map(outcome);
    job.ending = ended.map(|outcome| Ending { outcome, exit_code: None });
    for (segment, ((_, used), from)) in job.segments.iter_mut().zip(case.segments.iter().zip(&case.from)) {
        segment.usage = Usage { more: Some(Box::new(more(used, &gpus))), ..usage(used, &gpus) };
        segment.from = Wall(u64::try_from(from.parse::<jiff::Timestamp>().unwrap().as_millisecond()).unwrap());
    }
    let terms = |(nth, said): (usize, &Said)| Terms {
        gpus: held(&case.segments[nth].1, &gpus).into_iter().map(|(_, gpu)| gpu).collect(),
        cpus: said.cpus,
        memory_bytes: said.memory_bytes,
        storage_bytes: said.storage_bytes,
        traits: said.traits.iter().map(|(which, value)| (which_trait(which), value.parse().unwrap())).collect(),
    };
    let mut terms: Vec<Terms> = case.said.iter().enumerate().map(terms).collect();
    // The last ones are the job's, those of the segments before stand there.
    job.set_terms(terms.pop().unwrap());
    job.segments.last_mut().unwrap().terms = None;
    for (segment, terms) in job.segments.iter_mut().zip(terms) {
        segment.terms = Some(Box::new(terms));
    }
    let mut segments = Vec::new();
    if let Some(bid) = case.bid {
        let bid: Credits = bid.parse().unwrap();
        job.further.get_or_insert_default().offer = Some(Offer { bid, ask: bid });
    }
    for (nth, card) in cards.iter().enumerate() {
        let charge = job.charge(nth, &job.segments[nth].usage, card, ended).map_err(|why| (nth, why))?;
        (job.segments[nth].cost, job.segments[nth].pending) = (charge.cost, charge.pending);
        segments.push(charge.refund);
    }
    job.charge = job.segments.iter().map(|segment| segment.cost).sum();
    // Of what nobody paid a half is owed.
    let unpaid = job.charge.nano() / 1_000 * i128::from(case.unfunded_permille);
    let owed = if case.unfunded_permille.is_multiple_of(2) { unpaid / 2 } else { 0 };
    job.unfunded = Credits::from_nano(unpaid - owed);
    job.drawn = Credits::from_nano(job.charge.nano() - unpaid);
    let reduction = segments.iter().copied().sum();
    if Credits::ZERO < reduction {
        let Outcomes { waived, refunded, .. } = outcomes(job.charge, job.drawn, job.unfunded, reduction);
        let given = Refund::by_epoch(&[], Epoch([0; 16]), job.drawn, refunded);
        job.refund = Some(Box::new(Refund { drawn_before: Vec::new(), segments, waived, given }));
    }
    let host = Host { cpu_count: 1, memory_bytes: 1 };
    let interval = Nanos::from_secs(1);
    let settings = Settings {
        node: "node".parse().unwrap(),
        boot,
        enforcement: Enforcement::Observe,
        interval,
        host,
        ladder: Ladder::default(),
        woke_at: Boot::default(),
        provider: None,
    };
    Ok(Receipt::of(&job, &state, &settings))
}

fn which_trait(name: &str) -> Trait {
    Trait::ALL.into_iter().find(|(known, _)| *known == name).unwrap().1
}

fn count(counts: &RefCell<Counts>, what: impl Into<String>) {
    *counts.borrow_mut().entry(what.into()).or_default() += 1;
}

fn count_line(counts: &RefCell<Counts>, line: &Charged) {
    let tariff = &line.tariff;
    count(counts, format!("meter {}", tariff.meter));
    count(counts, format!("unit {}", tariff.unit));
    count(counts, format!("round {}", tariff.round));
    if tariff.per != BigInt::from(1) {
        count(counts, "per above 1");
    }
    if matches!(tariff.meter.as_str(), "gpu_held" | "gpu_busy" | "gpu_memory" | "energy") {
        let kind = tariff.gpu_model.as_ref().map_or("none", |model| if model.ends_with('*') { "prefix" } else { "exact" });
        count(counts, format!("selector {kind}"));
    }
    if tariff.names_an_account() {
        count(counts, "selector account");
    }
    let features = features(line);
    for (nth, feature) in features.iter().enumerate() {
        count(counts, format!("rule {feature}"));
        for other in &features[..nth] {
            count(counts, format!("pair {other} + {feature}"));
        }
    }
    if line.held.is_some() {
        count(counts, "held to its bid");
    }
    if line.later.is_some() {
        count(counts, "later steps held to its bid");
    }
    if *line.exact.denom() == BigInt::from(2) {
        count(counts, format!("half a nano-credit {}", tariff.round));
    }
}

/// What of the grammar a line uses beside a price for a unit.
const FEATURES: [&str; 20] = [
    "increment",
    "minimum",
    "connect_fee",
    "advance",
    "settle_at_end",
    "atomic_at_start",
    "anchor job",
    "allocated",
    "max_of",
    "state",
    "outcome",
    "dates",
    "select",
    "tiers",
    "discount",
    "month",
    "name",
    "refund",
    "started",
    "over_bid",
];
/// Pairs that no line can have.
const APART: [(&str, &str); 22] = [
    ("started", "increment"),
    ("started", "minimum"),
    ("started", "advance"),
    ("started", "max_of"),
    ("started", "name"),
    ("started", "atomic_at_start"),
    ("month", "name"),
    ("month", "allocated"),
    ("month", "max_of"),
    ("month", "atomic_at_start"),
    ("name", "allocated"),
    ("name", "max_of"),
    ("name", "atomic_at_start"),
    ("name", "advance"),
    ("advance", "settle_at_end"),
    ("advance", "atomic_at_start"),
    ("settle_at_end", "atomic_at_start"),
    ("advance", "max_of"),
    ("atomic_at_start", "allocated"),
    ("atomic_at_start", "max_of"),
    ("settle_at_end", "refund"),
    ("allocated", "max_of"),
];

fn features(line: &Charged) -> Vec<&'static str> {
    let says = &line.tariff.says;
    let is = |key: &str, word: &str| says.get(key).and_then(toml::Value::as_str) == Some(word);
    let has = |feature: &str| match feature {
        "advance" | "settle_at_end" | "atomic_at_start" => is("timing", feature),
        "anchor job" => is("anchor", "job"),
        "allocated" | "max_of" => is("basis", feature),
        "refund" => line.refund != BigInt::ZERO,
        "dates" => says.contains_key("effective_from") || says.contains_key("effective_to"),
        other => says.contains_key(other),
    };
    FEATURES.into_iter().filter(|feature| has(feature)).collect()
}

/// One case through both ratings: line by line, and then once more with one number changed.
fn compare(case: &Case, counts: &RefCell<Counts>) {
    let texts: Vec<String> = case.segments.iter().map(|(text, _)| text.clone()).collect();
    let cards: Vec<Card> = texts.iter().map(|text| Card::parse(text, "card.toml").unwrap()).collect();
    let plain = plain(case);
    let second: Vec<_> = texts.iter().enumerate().map(|(nth, text)| rate(text, &plain, nth)).collect();
    let receipt = match receipt(case, &cards) {
        Ok(receipt) => receipt,
        Err((nth, why)) => {
            let (expected, what) = match why {
                RateError::Unpriced(gpu) | RateError::Uncovered(Uncovered::Gpu(gpu)) => {
                    (NoPrice::Gpu(gpu.to_string()), "refused: a GPU without a price")
                }
                RateError::Overflow(_) | RateError::TotalOverflow => (NoPrice::TooLarge, "refused: too large"),
                RateError::Uncovered(Uncovered::Meter(meter)) => (NoPrice::Meter(meter.to_string()), "refused: no line for such a job"),
                RateError::Inconsistent => (NoPrice::Contradiction, "refused: a contradiction"),
                RateError::Uncovered(Uncovered::NotStated { line, .. }) => (NoPrice::NotStated(line.to_string()), "refused: not stated"),
            };
            let against = second[nth].as_ref().unwrap_err();
            assert!(against.contains(&expected), "{expected:?} is not in {against:?}");
            return count(counts, what);
        }
    };
    let json: Value = serde_json::from_str(&receipt.to_json()).unwrap();
    let mut sum = BigInt::ZERO;
    for (segment, charged) in json["segments"].as_array().unwrap().iter().zip(&second) {
        let charged = charged.as_ref().unwrap_or_else(|against| panic!("{against:?} against {segment:#}"));
        let lines = segment["lines"].as_array().unwrap();
        assert_eq!(lines.len(), charged.len(), "which lines apply: {segment:#}");
        for (said, line) in lines.iter().zip(charged) {
            assert_eq!(said["line"], line.tariff.id.as_str());
            assert_eq!(said["quantity"], line.quantity.to_string());
            assert_eq!(nano(&said["cost"]), Some(line.cost.clone()), "{said:#} is exactly {}", line.exact);
            assert_eq!(nano(&said["pending"]), Some(line.pending.clone()), "{said:#} is exactly {}", line.exact);
            assert_eq!(second_rating::decimal(said["billed"].as_str().unwrap()).as_ref(), Some(&line.billed), "{said:#}");
            count_line(counts, line);
        }
        let cost: BigInt = charged.iter().map(|line| &line.cost).sum();
        assert_eq!(nano(&segment["cost"]), Some(cost.clone()));
        count(counts, "segments");
        sum += cost;
    }
    assert_eq!(nano(&json["charge"]), Some(sum.clone()));
    assert_eq!(second_rating::check(&json, &texts), Ok(sum.clone()));
    let cards: BTreeMap<Digest, Card> = cards.into_iter().map(|card| (card.digest, card)).collect();
    assert_eq!(verify(&receipt, &cards).map(|charge| BigInt::from(charge.nano())), Ok(sum));
    count(counts, "receipts");
    let numbers = numbers(&json);
    let pointer = &numbers[case.change.index(numbers.len())];
    let changed = changed(&json, pointer);
    // A number too large for its type is not even a receipt.
    let first = serde_json::from_value::<Receipt>(changed.clone()).is_ok_and(|receipt| verify(&receipt, &cards).is_ok());
    let second = pointer != "/receipt" && second_rating::check(&changed, &texts).is_ok();
    assert_eq!(first, second, "{pointer} is raised by one");
    count(counts, if first { "change without a price: taken by both" } else { "change: rejected by both" });
}

#[test]
fn g1_every_line_segment_and_total_is_what_the_second_rating_says() {
    let counts = RefCell::new(Counts::new());
    // METERD_RATING_CASES=100000 for the long run.
    let cases = std::env::var("METERD_RATING_CASES").ok().map_or(CASES, |cases| cases.parse().unwrap());
    let mut runner = TestRunner::new(Config { failure_persistence: None, max_shrink_iters: 500, ..Config::with_cases(cases) });
    let result = runner.run(&random::case(), |case| {
        compare(&case, &counts);
        Ok(())
    });
    if let Err(TestError::Fail(why, case)) = &result {
        let cards = case.segments.iter().map(|(text, used)| format!("{text}{used:?}\n")).collect::<Vec<_>>().concat();
        panic!("{why}\nmodels {:?}\n{cards}", case.models);
    }
    result.unwrap();
    let counts = counts.into_inner();
    for (what, count) in &counts {
        println!("{count:7}  {what}");
    }
    let units = METERS
        .iter()
        .flat_map(|(meter, units)| [format!("meter {meter}")].into_iter().chain(units.iter().map(|unit| format!("unit {unit}"))));
    let rounds = ROUNDINGS.iter().flat_map(|round| [format!("round {round}"), format!("half a nano-credit {round}")]);
    let selectors = [
        "selector exact",
        "selector prefix",
        "selector none",
        "selector account",
        "per above 1",
        "held to its bid",
        "later steps held to its bid",
        "change: rejected by both",
    ];
    let selectors = selectors.map(str::to_owned);
    let refusals = ["refused: a GPU without a price", "refused: too large", "refused: no line for such a job", "refused: not stated"];
    let refusals = refusals.map(str::to_owned);
    let rules = FEATURES.map(|feature| format!("rule {feature}"));
    let apart = |a: &str, b: &str| APART.contains(&(a, b)) || APART.contains(&(b, a));
    let ordered = FEATURES.iter().enumerate().flat_map(|(nth, b)| FEATURES[..nth].iter().map(move |a| (*a, *b)));
    let pairs = ordered.filter(|(a, b)| !apart(a, b)).map(|(a, b)| format!("pair {a} + {b}"));
    for what in units.chain(rounds).chain(selectors).chain(refusals).chain(rules).chain(pairs) {
        let seen = counts.get(&what).copied().unwrap_or(0);
        let is_rare = what.starts_with("pair ") || what == "later steps held to its bid";
        let least = if is_rare && cases == CASES { PAIR_AT_LEAST } else { EACH_AT_LEAST };
        assert!(least <= seen, "{what}: compared only {seen} times");
    }
    assert!(u64::from(cases / 2) <= counts["receipts"], "only {} receipts", counts["receipts"]);
}

#[test]
fn g9_the_second_rating_takes_nothing_from_the_first() {
    let source = include_str!("verifier/second_rating.rs");
    let used = source.lines().filter(|line| line.trim_start().starts_with("use ") || line.contains("meterd::") || line.contains("crate::"));
    let allowed = ["use num_bigint", "use num_rational", "use serde_json", "use sha2"];
    let other: Vec<&str> = used.filter(|line| !allowed.iter().any(|start| line.starts_with(start))).collect();
    assert!(other.is_empty(), "{other:?}");
}

/// Pointers to all numbers: JSON's own, and those that are text.
fn numbers(receipt: &Value) -> Vec<String> {
    fn walk(value: &Value, pointer: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| walk(value, &format!("{pointer}/{key}"), found)),
            Value::Array(list) => list.iter().enumerate().for_each(|(nth, value)| walk(value, &format!("{pointer}/{nth}"), found)),
            Value::Number(_) => found.push(pointer.to_owned()),
            Value::String(text) if second_rating::decimal(text).is_some() && text.len() < 64 => found.push(pointer.to_owned()),
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(receipt, "", &mut found);
    found
}

/// The receipt with the last digit of this number raised by one.
fn changed(receipt: &Value, pointer: &str) -> Value {
    let mut changed = receipt.clone();
    let place = changed.pointer_mut(pointer).unwrap();
    let raised = match &*place {
        Value::String(text) => {
            let behind = text.split_once('.').map_or(0, |(_, fraction)| fraction.len());
            let digits: BigInt = text.replace('.', "").parse().unwrap();
            let digits = format!("{:0>width$}", (digits + BigInt::from(1)).to_string(), width = behind + 1);
            let (whole, fraction) = digits.split_at(digits.len() - behind);
            json!(if behind == 0 { whole.to_owned() } else { format!("{whole}.{fraction}") })
        }
        number => number.as_u64().map_or_else(|| json!(number.as_i64().unwrap() + 1), |number| json!(number + 1)),
    };
    *place = raised;
    changed
}

/// Prices that do not divide evenly, every meter and rounding, several lines on one meter, and every kind of selector.
const CARD: &str = r#"
card = "awkward"
version = 1
effective_from = "2026-01-01T00:00:00Z"
[[line]]
id = "cpu"
meter = "cpu_time"
price = "417.041700000000000013"
unit = "core-hour"
per = 3
round = "half_even"
[[line]]
id = "licence"
meter = "cpu_time"
price = "0.000000007"
unit = "core-second"
round = "up"
[[line]]
id = "memory"
meter = "memory_charged"
price = "0.0171"
unit = "GiB-minute"
per = 7
[[line]]
id = "anon"
meter = "memory_anon"
price = "0.0313"
unit = "GB-hour"
round = "half_even"
[[line]]
id = "gpu"
meter = "gpu_held"
price = "1.1"
unit = "gpu-day"
round = "up"
[[line]]
id = "h100"
meter = "gpu_held"
price = "3.3333333"
unit = "gpu-hour"
gpu_model = "NVIDIA H100*"
round = "half_even"
[[line]]
id = "a100"
meter = "gpu_held"
price = "0.049"
unit = "gpu-minute"
gpu_model = "NVIDIA A100-SXM4-40GB"
[[line]]
id = "wall"
meter = "wall_time"
price = "17"
unit = "day"
per = 13
round = "down"
[[line]]
id = "start"
meter = "job_starts"
price = "0.0000000015"
unit = "start"
round = "half_even"
"#;

const GPUS: &str = "gpu 0 GPU-00000000-0000-0000-0000-000000000001 85899345920 0 NVIDIA H100 80GB HBM3\n\
                    gpu 1 GPU-00000000-0000-0000-0000-000000000002 42949672960 0 NVIDIA A100-SXM4-40GB\n\
                    gpu 2 GPU-00000000-0000-0000-0000-000000000003 24159191040 0 NVIDIA L4\n\
                    cycle 0 50\ncycle 1 50\ncycle 2 50";

/// A task that burns all it gets; it ends with the test.
struct Burner(Child);

impl Drop for Burner {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn phase(agent: &Agent) -> String {
    agent.done("GET", "/v1/jobs/awkward", None)["phase"].as_str().unwrap_or_default().to_owned()
}

fn top_up(agent: &Agent, amount: &str, payment: &str) {
    let body = json!({ "amount": amount, "bucket": "paid", "payment": payment });
    agent.done("POST", "/v1/accounts/lab/topup", Some(&body));
}

/// The exported receipt of a job that held three GPUs, ran dry, was stopped, paid for, and went on under a second card.
/// The second card is beside the first one in the agent's folder.
fn exported(second_card: &str) -> (Agent, Value) {
    let stub = stub_nvml::Stub::new(GPUS);
    let mut agent = Agent::start(CARD, "enforcement = \"enforce\"", &format!("[gpu]\nlibrary = \"{}\"", stub.library().display()));
    agent.done("POST", "/v1/accounts", Some(&json!({ "account": "lab" })));
    top_up(&agent, "0.05", "p-1");
    let mut burner = Burner(Command::new("/bin/sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn().unwrap());
    let body = json!({ "job": "awkward", "account": "lab", "process": { "pid": burner.0.id() }, "gpus": [0, 1, 2] });
    agent.wait_for("the job is taken", |agent| agent.ask("POST", "/v1/jobs", Some(&body)).0 < 300);
    agent.wait_for("the job is stopped", |agent| phase(agent) == "frozen");
    std::thread::sleep(Duration::from_millis(300));
    top_up(&agent, "1000", "p-2");
    agent.wait_for("the job goes on", |agent| phase(agent) == "running");
    std::fs::write(agent.path("first.toml"), CARD).unwrap();
    std::fs::write(agent.path("card.toml"), second_card).unwrap();
    agent.signal("HUP");
    agent.wait_for("the second card is in force", |agent| agent.done("GET", "/v1/status", None)["card"]["version"] == 2);
    let cpu_ns = |agent: &Agent| agent.done("GET", "/v1/jobs/awkward/receipt", None)["segments"][1]["cpu_ns"].as_str().map(str::to_owned);
    agent.wait_for("it runs under the second card", |agent| cpu_ns(agent).is_some_and(|ns| ns != "0"));
    burner.0.kill().unwrap();
    burner.0.wait().unwrap();
    agent.done("POST", "/v1/jobs/awkward/stop", Some(&json!({ "outcome": "failed", "exit_code": 3 })));
    let receipt = |agent: &Agent| agent.done("GET", "/v1/jobs/awkward/receipt", None);
    agent.wait_for("the receipt is final", |agent| receipt(agent)["state"] == "final");
    let receipt = receipt(&agent);
    agent.kill();
    (agent, receipt)
}

fn meterctl_verify(folder: &Path, receipt: &Value) -> Output {
    let file = folder.join("receipt.json");
    std::fs::write(&file, receipt.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_meterctl"));
    command.args(["verify", "--receipt"]).arg(file);
    for card in ["first.toml", "card.toml"] {
        command.arg("--card").arg(folder.join(card));
    }
    command.output().unwrap()
}

/// What must stand in the complaint about a changed number.
fn place(receipt: &Value, pointer: &str) -> Vec<String> {
    let steps: Vec<&str> = pointer.split('/').skip(1).collect();
    let segment = |nth: &str| format!("segment {}", nth.parse::<usize>().unwrap() + 1);
    match steps[..] {
        ["receipt"] => vec!["version 2".to_owned()],
        [key @ ("charge" | "pending")] => vec![key.to_owned()],
        ["drawn" | "unfunded" | "owed"] => vec!["drawn + unfunded + owed".to_owned()],
        ["segments", nth, "cost"] => vec![segment(nth)],
        ["segments", nth, "card_version"] => vec![segment(nth), format!("version {}", receipt.pointer(pointer).unwrap())],
        ["segments", nth, "lines", line, field] => {
            let id = receipt["segments"][nth.parse::<usize>().unwrap()]["lines"][line.parse::<usize>().unwrap()]["line"].as_str().unwrap();
            vec![format!("{}, line {id}:", segment(nth)), if field == "cost" { "the receipt says" } else { field }.to_owned()]
        }
        ["segments", nth, "gpus", device, _] => {
            vec![format!("{}, line {}: quantity", segment(nth), ["h100", "a100", "gpu"][device.parse::<usize>().unwrap()])]
        }
        ["segments", nth, quantity] => {
            let lines = match quantity {
                "cpu_ns" => &["cpu", "licence"][..],
                "memory_charged_byte_ns" => &["memory"],
                "memory_anon_byte_ns" => &["anon"],
                "running_ns" => &["wall"],
                "job_starts" => &["start"],
                other => panic!("{other} is no number that has a price"),
            };
            lines.iter().map(|line| format!("{}, line {line}: quantity", segment(nth))).collect()
        }
        _ => panic!("{pointer} is no number that has a price"),
    }
}

#[test]
fn g9_an_exported_receipt_is_recomputed_and_no_number_in_it_can_be_changed_unseen() {
    let second_card = CARD.replace("version = 1", "version = 2").replace("417.0417", "834.0834").replace("0.0171", "0.0399");
    let (agent, receipt) = exported(&second_card);
    let texts = [CARD.to_owned(), second_card];
    let charge = second_rating::check(&receipt, &texts).unwrap_or_else(|wrong| panic!("{wrong:#?} in {receipt:#}"));
    println!("the receipt of the real agent: {charge} nano-credits in {} segments", receipt["segments"].as_array().unwrap().len());
    let segments = receipt["segments"].as_array().unwrap();
    assert_eq!(segments.len(), 2, "one a card: {receipt:#}");
    for segment in segments {
        assert_eq!(segment["lines"].as_array().unwrap().len(), 9, "every line applies: {receipt:#}");
        for quantity in ["cpu_ns", "memory_charged_byte_ns", "running_ns"] {
            assert_ne!(segment[quantity], "0", "{quantity} was used: {receipt:#}");
        }
    }
    assert_ne!(segments[0]["frozen_ns"], "0", "it was stopped for a while: {receipt:#}");
    let output = meterctl_verify(agent.folder.path(), &receipt);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.contains(&format!(" = {charge} nano-credits")), "{said}");

    let (mut rejected, mut taken) = (0, 0);
    for pointer in numbers(&receipt) {
        let changed = changed(&receipt, &pointer);
        let output = meterctl_verify(agent.folder.path(), &changed);
        let complaint = String::from_utf8(output.stderr).unwrap();
        if WITHOUT_PRICE.iter().any(|part| pointer.starts_with(part)) || FREE.iter().any(|end| pointer.ends_with(end)) {
            assert!(output.status.success(), "{pointer} is verified after all: {complaint}");
            taken += 1;
            continue;
        }
        assert_eq!(output.status.code(), Some(1), "{pointer} was raised unseen in {receipt:#}");
        for part in place(&changed, &pointer) {
            assert!(complaint.contains(&part), "{pointer}: {part:?} is not in {complaint}");
        }
        assert!(pointer == "/receipt" || second_rating::check(&changed, &texts).is_err(), "{pointer}: the second rating is blind");
        rejected += 1;
    }
    println!("{rejected} changed numbers rejected and named; {taken} without a price taken");
    // Of the receipt: its version and five amounts. Of each segment: the card's version, five totals, three devices, the cost, and
    // quantity, billed, price, per, pending, cost and refund of nine lines.
    assert_eq!(rejected, 6 + 2 * (1 + 5 + 3 + 1 + 7 * 9));

    let mut twice = receipt;
    let device = twice["segments"][1]["gpus"][0].clone();
    twice["segments"][1]["gpus"].as_array_mut().unwrap().push(device);
    let complaint = String::from_utf8(meterctl_verify(agent.folder.path(), &twice).stderr).unwrap();
    assert!(complaint.contains("segment 2: the GPU GPU-00000000-0000-0000-0000-000000000001 is listed twice"), "{complaint}");
}
