//! The second rating: receipts read as plain JSON, cards as plain TOML, prices as rationals of any size.
//! Written from the card's documentation (`packaging/ratecards/standard.toml`, `docs/api.md`); it knows nothing of the first one's code.

use num_bigint::{BigInt, Sign};
use num_rational::BigRational;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// Quantities are totals of at most so many bits.
const QUANTITY_BITS: u64 = 128;
/// Amounts of nano-credits have at most so many bits, besides the sign.
const AMOUNT_BITS: u64 = 127;

/// A rate line as the card's text says it.
#[derive(Clone, Debug)]
pub(crate) struct Tariff {
    pub(crate) id: String,
    pub(crate) meter: String,
    pub(crate) unit: String,
    pub(crate) price: BigRational,
    pub(crate) per: BigInt,
    pub(crate) round: String,
    pub(crate) gpu_model: Option<String>,
    /// Everything that the line says, rules included.
    pub(crate) says: toml::Table,
}

/// What one line charges.
#[derive(Clone, Debug)]
pub(crate) struct Charged {
    pub(crate) tariff: Tariff,
    pub(crate) quantity: BigInt,
    pub(crate) billed: BigRational,
    /// In nano-credits, before it is rounded; of a line that counts over the job, of the whole job.
    pub(crate) exact: BigRational,
    /// In nano-credits.
    pub(crate) cost: BigInt,
    /// In nano-credits.
    pub(crate) pending: BigInt,
    /// In nano-credits: what of the cost is given back.
    pub(crate) refund: BigInt,
    /// What was bid and what is asked, in nano-credits, where more is asked than was bid: so much of the price is due.
    pub(crate) held: Option<(BigInt, BigInt)>,
    /// How much more than the first step a later one may cost, in nano-credits, where the bid leaves less than the bands ask.
    pub(crate) later: Option<BigInt>,
}

/// Why a segment has no price: all that can be said against it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoPrice {
    Gpu(String),
    Meter(String),
    NotStated(String),
    TooLarge,
    Contradiction,
}

/// A decimal number as a rational: the digits over a power of ten.
pub(crate) fn decimal(text: &str) -> Option<BigRational> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = format!("{whole}{fraction}");
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let places = u32::try_from(fraction.len()).ok()?;
    plain.then(|| BigRational::new(digits.parse().unwrap(), BigInt::from(10).pow(places)))
}

/// The nano-credits of an amount.
pub(crate) fn nano(value: &Value) -> Option<BigInt> {
    let amount = decimal(value.as_str()?)? * BigInt::from(1_000_000_000);
    amount.is_integer().then(|| amount.to_integer())
}

fn whole(value: &Value) -> Option<BigInt> {
    match value {
        Value::String(text) => decimal(text).filter(BigRational::is_integer).map(|number| number.to_integer()),
        Value::Number(number) => number.as_u64().map(BigInt::from),
        _ => None,
    }
}

/// How many nanoseconds, byte-nanoseconds, bytes, millijoules or starts a unit's name stands for, if a month has so many days.
pub(crate) fn base_units(unit: &str, month_hours: u64) -> BigInt {
    let ns_in = |span: &str| -> u64 {
        match span {
            "second" => 1_000_000_000,
            "minute" => 60_000_000_000,
            "hour" => 3_600_000_000_000,
            "day" => 86_400_000_000_000,
            "month" => 3_600_000_000_000 * month_hours,
            other => panic!("{other} is no length of time"),
        }
    };
    let (thing, span) = match unit.split_once('-') {
        None if matches!(unit, "start" | "count" | "event") => return BigInt::from(1),
        None if unit == "J" => return BigInt::from(1_000),
        None if unit == "Wh" => return BigInt::from(3_600) * 1_000,
        None if unit == "kWh" => return BigInt::from(3_600) * 1_000_000,
        None if unit == "MWh" => return BigInt::from(3_600) * 1_000_000_000,
        None if unit.ends_with('B') => (unit, ""),
        None => ("", unit),
        Some(parts) => parts,
    };
    let (base, power) = match thing {
        "" | "core" | "gpu" => (1_u32, 0),
        "MB" => (10, 6),
        "GB" => (10, 9),
        "TB" => (10, 12),
        "MiB" => (2, 20),
        "GiB" => (2, 30),
        "TiB" => (2, 40),
        other => panic!("{other} is no thing that a unit measures"),
    };
    BigInt::from(base).pow(power) * if span.is_empty() { BigInt::from(1) } else { BigInt::from(ns_in(span)) }
}

/// The rate lines of a card's text, in its order.
pub(crate) fn tariffs(card_text: &str) -> Vec<Tariff> {
    let card: toml::Table = card_text.parse().unwrap();
    let lines = card["line"].as_array().unwrap();
    let word = |line: &toml::Value, key: &str| line.get(key).map(|value| value.as_str().unwrap().to_owned());
    lines
        .iter()
        .map(|line| Tariff {
            id: word(line, "id").unwrap(),
            meter: word(line, "meter").unwrap(),
            unit: word(line, "unit").unwrap(),
            price: decimal(&word(line, "price").unwrap()).unwrap(),
            per: line.get("per").map_or(BigInt::from(1), |per| BigInt::from(per.as_integer().unwrap())),
            round: word(line, "round").unwrap_or_else(|| "down".to_owned()),
            gpu_model: word(line, "gpu_model"),
            says: line.as_table().unwrap().clone(),
        })
        .collect()
}

impl Tariff {
    fn text(&self, key: &str) -> Option<&str> {
        self.says.get(key).and_then(toml::Value::as_str)
    }

    fn number(&self, key: &str) -> BigRational {
        self.text(key).map_or_else(|| BigRational::from(BigInt::ZERO), |text| decimal(text).unwrap())
    }

    /// The base units of its unit, for a segment that begins then.
    fn base_units(&self, from: &str) -> BigInt {
        let hours = match self.text("month") {
            Some("hours_730") => 730,
            Some("calendar") => {
                let year_month = from.get(..7).unwrap();
                let days = (28..=31).rev().find(|day| format!("{year_month}-{day}").parse::<jiff::civil::Date>().is_ok()).unwrap();
                24 * days
            }
            _ => 720,
        };
        base_units(&self.unit, hours)
    }

    /// A quantity that is written in the line's unit, in base units. No line has one whose unit has no fixed length.
    fn base(&self, text: &str) -> BigRational {
        decimal(text).unwrap() * self.base_units("2026-04-01T00:00:00Z")
    }

    /// The counter or event that it prices.
    fn name(&self) -> Option<&str> {
        self.text("name")
    }

    fn quantity(&self, key: &str) -> BigRational {
        self.text(key).map_or_else(|| BigRational::from(BigInt::ZERO), |text| self.base(text))
    }

    /// Is it for one account alone?
    pub(crate) fn names_an_account(&self) -> bool {
        self.says.get("select").is_some_and(|select| select.get("account").is_some())
    }

    fn selects(&self) -> usize {
        self.says.get("select").map_or(0, |select| select.as_table().unwrap().len())
    }

    pub(crate) fn in_table(&self, table: &str, key: &str, otherwise: i64) -> BigRational {
        let said = self.says.get(table).and_then(|table| table.get(key)).and_then(toml::Value::as_str);
        said.map_or_else(|| BigRational::from(BigInt::from(otherwise)), |text| decimal(text).unwrap())
    }

    /// Is it for a segment of that job that begins then?
    fn fits(&self, from: &str, traits: &Value) -> bool {
        let instant = |text: &str| text.parse::<jiff::Timestamp>().unwrap();
        let begun = self.text("effective_from").is_none_or(|start| instant(start) <= instant(from));
        let over = self.text("effective_to").is_some_and(|end| instant(end) <= instant(from));
        let mut wanted = self.says.get("select").into_iter().flat_map(|select| select.as_table().unwrap());
        begun && !over && wanted.all(|(key, value)| traits[key.as_str()].as_str() == value.as_str())
    }

    fn basis(&self) -> &str {
        self.text("basis").unwrap_or(if self.meter == "wall_time" { "instance" } else { "used" })
    }

    /// What is billed of a weighted quantity.
    fn billed(&self, weighted: BigRational) -> BigRational {
        let least = weighted.max(self.quantity("minimum"));
        let step = self.quantity("increment");
        if step == BigRational::from(BigInt::ZERO) {
            return least;
        }
        let mut count = (least / &step).ceil();
        if self.text("timing") == Some("advance") && count < BigRational::from(BigInt::from(1)) {
            count = BigRational::from(BigInt::from(1));
        }
        count * step
    }

    /// Nanoseconds of the stretches that count whole.
    fn stretch(&self) -> Option<BigInt> {
        self.text("started").map(|word| BigInt::from(if word == "day" { 86_400_000_000_000_u64 } else { 3_600_000_000_000 }))
    }

    fn waits(&self) -> bool {
        self.text("timing") == Some("settle_at_end")
    }

    /// What part of the price is charged, and what part of it is given back: by the outcome, which only some lines wait for.
    fn parts(&self, outcome: Option<&str>) -> (BigRational, BigRational) {
        let one = || BigRational::from(BigInt::from(1));
        let remains = outcome.map_or_else(one, |outcome| self.in_table("outcome", outcome, 1));
        if self.waits() { (self.in_table("outcome", outcome.unwrap_or("completed"), 1), one() - one()) } else { (one(), one() - remains) }
    }

    /// How many of the price's units so many base units are.
    fn units(&self, base: &BigRational, from: &str) -> BigRational {
        base / self.base_units(from) / &self.per
    }

    /// What is left of the price by the discount.
    fn left(&self) -> BigRational {
        BigRational::from(BigInt::from(1)) - self.number("discount")
    }

    /// Where each band begins, and its price.
    pub(crate) fn bands(&self) -> Vec<(BigRational, BigRational)> {
        let tiers = self.says.get("tiers").into_iter().flat_map(|tiers| tiers.as_array().unwrap());
        let told = tiers.map(|tier| (self.base(tier["above"].as_str().unwrap()), decimal(tier["price"].as_str().unwrap()).unwrap()));
        [(BigRational::from(BigInt::ZERO), self.price.clone())].into_iter().chain(told).collect()
    }

    /// What lies between two billed quantities costs before discount and fee, in credits; no unit of it more than so much.
    fn area(&self, low: &BigRational, high: &BigRational, from: &str, most: Option<&BigRational>) -> BigRational {
        let bands = self.bands();
        let ends = bands.iter().skip(1).map(|(start, _)| start.clone()).chain([high.clone()]);
        let parts = bands.iter().zip(ends).map(|((start, price), end)| {
            let (start, end) = (start.max(low).clone(), end.min(high.clone()));
            let price = most.map_or(price, |most| price.min(most));
            if start < end { self.units(&(end - start), from) * price } else { BigRational::from(BigInt::ZERO) }
        });
        parts.sum()
    }

    /// The exact price of a billed quantity and the fee, in nano-credits. What comes after a first step costs at most so much more for each
    /// further step, if that is said.
    fn exact(&self, billed: &BigRational, from: &str, later: Option<(&BigRational, &BigInt)>) -> BigRational {
        let nothing = BigRational::from(BigInt::ZERO);
        let nano = BigInt::from(1_000_000_000);
        let value = match later.filter(|(step, _)| *step < billed) {
            None => self.area(&nothing, billed, from, None),
            Some((step, more)) => {
                let first = self.area(&nothing, step, from, None);
                let most = (&first + BigRational::new(more.clone(), nano.clone()) / self.left()) / self.units(step, from);
                first + self.area(step, billed, from, Some(&most))
            }
        };
        (value + self.number("connect_fee")) * self.left() * nano
    }

    /// By how many whole nano-credits a step in the dearest band is dearer than the first one.
    fn rise(&self, step: &BigRational, from: &str) -> BigInt {
        let dearest = self.bands().into_iter().map(|(_, price)| price).max().unwrap() * self.units(step, from);
        let more = dearest - self.area(&BigRational::from(BigInt::ZERO), step, from, None);
        (more * self.left() * BigInt::from(1_000_000_000)).floor().to_integer().max(BigInt::ZERO)
    }

    /// Does it mind a bid, and has it bands?
    fn may_rise(&self) -> bool {
        self.says.contains_key("over_bid") && self.says.contains_key("tiers")
    }
}

/// The line that prices a model: its exact name, else the longest beginning, else the line for every model; of these the one that selects
/// the most.
fn line_for<'a>(tariffs: &'a [Tariff], meter: &str, model: &str) -> Option<&'a Tariff> {
    let rank = |tariff: &Tariff| match tariff.gpu_model.as_deref() {
        None => Some(0),
        Some(exact) if exact == model => Some(usize::MAX),
        Some(other) => other.strip_suffix('*').filter(|start| model.starts_with(start)).map(str::len),
    };
    let mut best: Option<(usize, usize, &Tariff)> = None;
    for tariff in tariffs.iter().filter(|tariff| tariff.meter == meter) {
        let Some(rank) = rank(tariff) else { continue };
        if best.is_none_or(|(most, selects, _)| (most, selects) < (rank, tariff.selects())) {
            best = Some((rank, tariff.selects(), tariff));
        }
    }
    best.map(|(_, _, tariff)| tariff)
}

/// A non-negative number of nano-credits, made whole as the word says.
fn rounded(exact: &BigRational, word: &str) -> BigInt {
    let (numer, denom) = (exact.numer(), exact.denom());
    let below: BigInt = numer / denom;
    let rest: BigInt = numer % denom;
    let above = || &below + 1;
    match word {
        "down" => below,
        "up" if rest.sign() == Sign::NoSign => below,
        "up" => above(),
        "half_even" => {
            let twice = rest * 2;
            let nearer_above = &twice > denom || (&twice == denom && below.bit(0));
            if nearer_above { above() } else { below }
        }
        other => panic!("{other} is no rounding"),
    }
}

const OF_DEVICES: [(&str, &str); 3] = [("gpu_busy", "gpu_busy_ns"), ("gpu_memory", "gpu_memory_byte_ns"), ("energy", "energy_mj")];

fn is_of_devices(meter: &str) -> bool {
    meter == "gpu_held" || OF_DEVICES.iter().any(|(known, _)| *known == meter)
}

/// What was stated of the job in that segment.
fn stated<'a>(receipt: &'a Value, segment: &'a Value, key: &str) -> &'a Value {
    if segment["terms"].is_null() { &receipt[key] } else { &segment["terms"][key] }
}

/// By which statement a line's allocation is known.
fn statement(tariff: &Tariff) -> &'static str {
    match tariff.meter.as_str() {
        "cpu_time" => "cpus",
        "storage" => "storage_bytes",
        _ => "memory_bytes",
    }
}

/// An amount beside those that every segment has; nothing where it is not there.
fn further(value: &Value) -> BigInt {
    if value.is_null() { BigInt::ZERO } else { whole(value).unwrap() }
}

/// What a quantity counts for while running, frozen for want of credit, and paused.
fn weights(tariff: &Tariff) -> [BigRational; 3] {
    let weight = |state: &str, usual| tariff.in_table("state", state, usual);
    let is_said = |state: &str| tariff.says.get("state").is_some_and(|states| states.get(state).is_some());
    let running = weight("running", 1);
    let paused = if is_said("paused") { weight("paused", 0) } else { running.clone() };
    [running, weight("frozen", 0), paused]
}

/// Whichever of the two counts for more. What was used while the job was paused is part of what it used while running.
fn greater(tariff: &Tariff, used: [BigInt; 3], asked: [BigInt; 3]) -> [BigInt; 3] {
    let [running, _, paused] = weights(tariff);
    let worth = |side: &[BigInt; 3]| &running * &side[0] + &paused * &side[2];
    let frozen = asked[1].clone();
    let [run, _, paused] = if worth(&asked) <= worth(&used) { used } else { asked };
    [run, frozen, paused]
}

/// A line's quantities while running, frozen for want of credit, and paused, over some segments: what was used, or was asked for, or both
/// where the greater is billed.
fn by_state(tariff: &Tariff, tariffs: &[Tariff], receipt: &Value, segments: &[&Value]) -> Vec<[BigInt; 3]> {
    let mut used = [BigInt::ZERO, BigInt::ZERO, BigInt::ZERO];
    let mut asked = used.clone();
    for segment in segments {
        let number = |key: &str| whole(&segment[key]).unwrap();
        let more = &segment["more"];
        // A part of the time that a job has its place is spent standing still by another's hand.
        let apart = |time: BigInt| {
            let paused = time.clone().min(number("paused_ns"));
            [time - &paused, number("frozen_ns"), paused]
        };
        let devices = segment["gpus"].as_array().unwrap().iter();
        let mine =
            devices.filter(|gpu| line_for(tariffs, &tariff.meter, gpu["model"].as_str().unwrap()).is_some_and(|line| line.id == tariff.id));
        let mut add = |parts: [BigInt; 3]| used.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part);
        let plainly = |running| [running, BigInt::ZERO, BigInt::ZERO];
        match tariff.meter.as_str() {
            "cpu_time" => add(plainly(number("cpu_ns"))),
            "memory_charged" => add(plainly(number("memory_charged_byte_ns"))),
            "memory_anon" => add(plainly(number("memory_anon_byte_ns"))),
            "job_starts" => add(plainly(number("job_starts"))),
            "io_bytes" => add(plainly(further(&more["io_bytes"]))),
            "counter" => add(plainly(further(&more["counters"][tariff.name().unwrap()]))),
            "events" => add(plainly(further(&more["events"][tariff.name().unwrap()]))),
            "wall_time" => add(apart(number("running_ns"))),
            "gpu_held" => mine.for_each(|gpu| add(apart(whole(&gpu["held_ns"]).unwrap()))),
            "storage" => {}
            other => {
                let (_, key) = OF_DEVICES.iter().find(|(meter, _)| *meter == other).unwrap();
                mine.for_each(|gpu| add(plainly(further(&more[key][gpu["gpu"].as_str().unwrap()]))));
            }
        }
        if by_statement(tariff) {
            let count = whole(stated(receipt, segment, statement(tariff))).unwrap_or_default();
            asked.iter_mut().zip(apart(number("running_ns"))).for_each(|(sum, part)| *sum += part * &count);
        }
    }
    match (tariff.meter.as_str(), tariff.basis()) {
        ("storage", _) | (_, "allocated") => vec![asked],
        (_, "max_of") => vec![used, asked],
        _ => vec![used],
    }
}

fn by_statement(tariff: &Tariff) -> bool {
    tariff.meter == "storage" || (!is_of_devices(&tariff.meter) && matches!(tariff.basis(), "allocated" | "max_of"))
}

/// What stretches that count whole come to: each has the size that was asked for when it began, and the first one begins with the job.
fn in_stretches(tariff: &Tariff, receipt: &Value, segments: &[&Value], length: &BigInt, weights: &[BigRational; 3]) -> BigRational {
    let (mut gone, mut begun, mut sum) = (BigRational::from(BigInt::ZERO), BigInt::ZERO, BigInt::ZERO);
    for segment in segments {
        let number = |key: &str| whole(&segment[key]).unwrap();
        let paused = number("running_ns").min(number("paused_ns"));
        for (part, weight) in [number("running_ns") - &paused, number("frozen_ns"), paused].into_iter().zip(weights) {
            gone += weight * part;
        }
        let now = (&gone / length).ceil().to_integer().max(BigInt::from(1));
        sum += (&now - &begun) * whole(stated(receipt, segment, statement(tariff))).unwrap_or_default();
        begun = now;
    }
    BigRational::from(sum * length)
}

/// What the start of a job like this one's in that segment comes to: each line, and in nano-credits what is asked for it.
fn start(card_text: &str, receipt: &Value, segment: &Value) -> (Vec<Charged>, BigInt) {
    let none = "0";
    let devices = segment["gpus"].as_array().unwrap().iter();
    let devices: Vec<Value> = devices.map(|gpu| serde_json::json!({ "gpu": gpu["gpu"], "model": gpu["model"], "held_ns": none })).collect();
    let said = |key| stated(receipt, segment, key).clone();
    let start = serde_json::json!({
        "outcome": null,
        "account": receipt["account"],
        "segments": [{
            "from": segment["from"], "cpu_ns": none, "memory_charged_byte_ns": none, "memory_anon_byte_ns": none, "running_ns": none,
            "frozen_ns": none, "paused_ns": none, "job_starts": 1, "gpus": devices, "more": null,
            "terms": { "cpus": said("cpus"), "memory_bytes": said("memory_bytes"), "storage_bytes": said("storage_bytes"), "traits": said("traits") },
        }],
    });
    match rate_all(card_text, &start, 0) {
        Ok((charged, true)) => {
            let asked = charged.iter().map(|line| &line.cost + &line.pending).sum();
            (charged, asked)
        }
        Ok((charged, false)) => (charged, (BigInt::from(1) << AMOUNT_BITS) - 1),
        Err(_) => (Vec::new(), BigInt::ZERO),
    }
}

/// What a segment's raw quantities cost under a card; the receipt says what was stated of the job and how it ended.
pub(crate) fn rate(card_text: &str, receipt: &Value, nth: usize) -> Result<Vec<Charged>, Vec<NoPrice>> {
    rate_all(card_text, receipt, nth).and_then(|(charged, fits)| if fits { Ok(charged) } else { Err(vec![NoPrice::TooLarge]) })
}

/// What can be said against the price of a segment's devices and its times.
fn devices_against(segment: &Value, all: &[Tariff], fitting: &[Tariff]) -> Vec<NoPrice> {
    let held = segment["gpus"].as_array().unwrap();
    let mut against = Vec::new();
    let priced = OF_DEVICES.iter().map(|(meter, _)| *meter).filter(|meter| all.iter().any(|tariff| tariff.meter == *meter));
    for meter in ["gpu_held"].into_iter().chain(priced) {
        for gpu in held.iter().filter(|gpu| line_for(fitting, meter, gpu["model"].as_str().unwrap()).is_none()) {
            against.push(NoPrice::Gpu(gpu["gpu"].as_str().unwrap().to_owned()));
        }
    }
    let paused = whole(&segment["paused_ns"]).unwrap();
    let places = held.iter().map(|gpu| &gpu["held_ns"]).chain([&segment["running_ns"]]);
    if places.into_iter().any(|place| whole(place).unwrap() < paused) {
        against.push(NoPrice::Contradiction);
    }
    against
}

/// The same, and whether all of it fits.
fn rate_all(card_text: &str, receipt: &Value, nth: usize) -> Result<(Vec<Charged>, bool), Vec<NoPrice>> {
    let segments: Vec<&Value> = receipt["segments"].as_array().unwrap().iter().collect();
    let segment = segments[nth];
    let from = segment["from"].as_str().unwrap();
    let all = tariffs(card_text);
    let mut traits = stated(receipt, segment, "traits").clone();
    traits["account"] = receipt["account"].clone(); // a line may be for one account alone
    let fitting: Vec<Tariff> = all.iter().filter(|tariff| tariff.fits(from, &traits)).cloned().collect();
    let kin = |a: &Tariff, b: &Tariff| a.meter == b.meter && a.name() == b.name();
    let most = |like: &Tariff| fitting.iter().filter(|tariff| kin(tariff, like)).map(Tariff::selects).max();
    let held = segment["gpus"].as_array().unwrap();
    let mut against = devices_against(segment, &all, &fitting);
    let holds = |tariff: &Tariff| {
        held.iter().any(|gpu| line_for(&fitting, &tariff.meter, gpu["model"].as_str().unwrap()).is_some_and(|line| line.id == tariff.id))
    };
    for tariff in all.iter().filter(|tariff| !is_of_devices(&tariff.meter) && most(tariff).is_none()) {
        against.push(NoPrice::Meter(tariff.meter.clone()));
    }
    let applying: Vec<&Tariff> = fitting
        .iter()
        .filter(|tariff| if is_of_devices(&tariff.meter) { holds(tariff) } else { most(tariff) == Some(tariff.selects()) })
        .collect();
    for tariff in applying.iter().filter(|tariff| by_statement(tariff)) {
        if stated(receipt, segment, statement(tariff)).is_null() {
            against.push(NoPrice::NotStated(tariff.id.clone()));
        }
    }
    if !against.is_empty() {
        return Err(against);
    }
    let (mut charged, mut fits) = (Vec::new(), true);
    let bid = receipt.get("offer").and_then(|offer| nano(&offer["bid"]));
    let minded = applying.iter().any(|tariff| tariff.says.contains_key("over_bid"));
    let bid = bid.filter(|_| minded).map(|bid| (bid, start(card_text, receipt, segment)));
    let (bid, (at_start, ask)) = bid.unwrap_or_default();
    let left = (&bid - &ask).max(BigInt::ZERO);
    let step = |tariff: &Tariff| at_start.iter().find(|line| line.tariff.id == tariff.id).map(|line| &line.billed);
    let rise = |tariff: &Tariff| step(tariff).map_or(BigInt::ZERO, |step| tariff.rise(step, from));
    let all: BigInt = applying.iter().filter(|tariff| tariff.may_rise()).map(|tariff| rise(tariff)).sum();
    for tariff in applying.iter().copied() {
        let own = if tariff.may_rise() { rise(tariff) } else { BigInt::ZERO };
        let later = (own != BigInt::ZERO && left < all).then(|| &left * own / &all);
        let outcome = receipt["outcome"].as_str();
        let outbid = tariff.says.contains_key("over_bid") && bid < ask;
        let sides = |segments: &[&Value]| by_state(tariff, &fitting, receipt, segments);
        let of_sides = |sides: Vec<[BigInt; 3]>| sides.into_iter().reduce(|used, asked| greater(tariff, used, asked)).unwrap();
        let weights = weights(tariff);
        let mut price = |segments: &[&Value]| {
            let sides = sides(segments);
            fits &= sides.iter().flatten().all(|part| part.bits() <= QUANTITY_BITS);
            let parts = of_sides(sides);
            let billed = if let Some(length) = tariff.stretch() {
                in_stretches(tariff, receipt, segments, &length, &weights)
            } else {
                tariff.billed(parts.into_iter().zip(&weights).map(|(part, weight)| weight * part).sum())
            };
            let (charged, given_back) = tariff.parts(outcome);
            let whole = tariff.exact(&billed, from, step(tariff).zip(later.as_ref()));
            let whole = if outbid { whole * BigRational::new(bid.clone(), ask.clone()) } else { whole };
            let exact = &whole * charged;
            let (cost, refund) = (rounded(&exact, &tariff.round), rounded(&(whole * given_back), &tariff.round));
            fits &= cost.bits() <= AMOUNT_BITS;
            (billed, exact, cost, refund)
        };
        let priced =
            |gpu: &Value| line_for(&fitting, &tariff.meter, gpu["model"].as_str().unwrap()).is_some_and(|line| line.id == tariff.id);
        let held = || segments[..nth].iter().any(|segment| segment["gpus"].as_array().unwrap().iter().any(priced));
        let over_the_job = tariff.text("anchor") == Some("job") && 0 < nth && (!is_of_devices(&tariff.meter) || held());
        let (mut billed, exact, mut cost, mut refund) = price(if over_the_job { &segments[..=nth] } else { &segments[nth..=nth] });
        if over_the_job {
            let earlier = price(&segments[..nth]);
            billed -= earlier.0;
            cost -= earlier.2;
            refund -= earlier.3;
        }
        let [running, _, paused] = of_sides(sides(&segments[nth..=nth]));
        let quantity = running + paused;
        fits &= quantity.bits() <= QUANTITY_BITS;
        let waits = tariff.waits() && outcome.is_none();
        let (cost, pending) = if waits { (BigInt::ZERO, cost) } else { (cost, BigInt::ZERO) };
        charged.push(Charged {
            tariff: tariff.clone(),
            quantity,
            billed,
            exact,
            cost,
            pending,
            refund,
            held: outbid.then(|| (bid.clone(), ask.clone())),
            later,
        });
    }
    let sum: BigInt = charged.iter().map(|line| &line.cost).sum();
    let waiting: BigInt = charged.iter().map(|line| &line.pending).sum();
    Ok((charged, fits && sum.bits() <= AMOUNT_BITS && waiting.bits() <= AMOUNT_BITS))
}

/// The hexadecimal SHA-256 by which a receipt names a card.
fn digest(card_text: &str) -> String {
    Sha256::digest(card_text).iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

/// The receipt's charge in nano-credits, computed again.
///
/// # Errors
/// Every place where it says something else.
pub(crate) fn check(receipt: &Value, card_texts: &[String]) -> Result<BigInt, Vec<String>> {
    let mut wrong = Vec::new();
    let (mut sum, mut waiting, mut given_back) = (BigInt::ZERO, BigInt::ZERO, BigInt::ZERO);
    for (index, segment) in receipt["segments"].as_array().unwrap().iter().enumerate() {
        let place = format!("segment {}", index + 1);
        let Some(text) = card_texts.iter().find(|text| Some(digest(text).as_str()) == segment["card_digest"].as_str()) else {
            wrong.push(format!("{place}: no such card"));
            continue;
        };
        let card: toml::Table = text.parse().unwrap();
        let named = (card["card"].as_str(), card["version"].as_integer());
        if named != (segment["card"].as_str(), segment["card_version"].as_i64()) {
            wrong.push(format!("{place}: card"));
        }
        for key in ["cpu_ns", "memory_charged_byte_ns", "memory_anon_byte_ns", "running_ns", "frozen_ns", "paused_ns", "job_starts"] {
            if whole(&segment[key]).is_none_or(|total| QUANTITY_BITS < total.bits()) {
                wrong.push(format!("{place}: {key} is no total"));
            }
        }
        let further = segment["more"].as_object().into_iter().flat_map(|more| more.values());
        let amounts = further.flat_map(|value| value.as_object().map_or_else(|| vec![value], |by_name| by_name.values().collect()));
        if amounts.into_iter().any(|amount| whole(amount).is_none_or(|total| QUANTITY_BITS < total.bits())) {
            wrong.push(format!("{place}: what is measured beside the rest is no total"));
        }
        match rate(text, receipt, index) {
            Err(why) => wrong.push(format!("{place}: {why:?}")),
            Ok(charged) => {
                let cost: BigInt = charged.iter().map(|line| &line.cost).sum();
                if nano(&segment["cost"]) != Some(cost.clone()) {
                    wrong.push(format!("{place}: cost {cost}"));
                }
                sum += cost;
                given_back += charged.iter().map(|line| &line.refund).sum::<BigInt>();
                waiting += charged.iter().map(|line| &line.pending).sum::<BigInt>();
                wrong.extend(lines_differ(segment, &charged).map(|what| format!("{place}: {what}")));
            }
        }
    }
    let amount = |key: &str| nano(&receipt[key]);
    if amount("charge").as_ref() != Some(&sum) {
        wrong.push(format!("charge {sum}"));
    }
    if amount("pending").as_ref() != Some(&waiting) {
        wrong.push(format!("pending {waiting}"));
    }
    let waived = receipt.get("refund").map_or(Some(BigInt::ZERO), |refund| nano(&refund["waived"]));
    let paid = ["drawn", "unfunded", "owed"].iter().try_fold(waived.clone().unwrap_or_default(), |paid, key| Some(paid + amount(key)?));
    if waived.is_none() || paid != amount("charge") {
        wrong.push("drawn + unfunded + owed".to_owned());
    }
    if wrong.is_empty() {
        wrong.extend(refund_differs(receipt, &sum, given_back));
    }
    if wrong.is_empty() { Ok(sum) } else { Err(wrong) }
}

/// What the outcome gives back: what remains, and what of that was paid. Nobody pays more than what remains, and nothing is waived beyond.
fn refund_differs(receipt: &Value, charge: &BigInt, given_back: BigInt) -> Option<String> {
    let reduced = given_back.min(charge.clone());
    let net = charge - &reduced;
    let Some(refund) = receipt.get("refund") else {
        return (reduced != BigInt::ZERO || net < nano(&receipt["drawn"])?).then(|| "a refund is missing".to_owned());
    };
    let refunded = (nano(&receipt["drawn"])? - &net).max(BigInt::ZERO);
    let said = |key: &str| nano(&refund[key]);
    let same = said("reduced").as_ref() == Some(&reduced)
        && said("net") == Some(net)
        && said("refunded") == Some(refunded)
        && said("waived").is_some_and(|waived| waived <= reduced);
    (!same).then(|| format!("refund {refund}"))
}

/// The first thing in which a segment's lines are not these.
fn lines_differ(segment: &Value, charged: &[Charged]) -> Option<String> {
    let said = segment["lines"].as_array().unwrap();
    if said.len() != charged.len() {
        return Some(format!("{} lines, and {} apply", said.len(), charged.len()));
    }
    said.iter().zip(charged).find_map(|(said, charged)| {
        let Charged { tariff, quantity, billed, cost, pending, refund, held, later, .. } = charged;
        let rules = || said["rules"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let more = rules().find_map(|rule| rule.strip_prefix("by the bid: a later step at most ")?.strip_suffix(" above the first"));
        let told = rules().find_map(|rule| rule.strip_prefix("held to the bid: "));
        let told = told.and_then(|parts| parts.split_once(" of ")).map(|(bid, ask)| (nano(&bid.into()), nano(&ask.into())));
        let same = said["line"] == tariff.id.as_str()
            && said["meter"] == tariff.meter.as_str()
            && said["unit"] == tariff.unit.as_str()
            && said["round"] == tariff.round.as_str()
            && whole(&said["per"]).as_ref() == Some(&tariff.per)
            && said["price"].as_str().and_then(decimal).as_ref() == Some(&tariff.price)
            && whole(&said["quantity"]).as_ref() == Some(quantity)
            && said["billed"].as_str().and_then(decimal).as_ref() == Some(billed)
            && nano(&said["pending"]).as_ref() == Some(pending)
            && nano(&said["refund"]).as_ref() == Some(refund)
            && more.map(|more| nano(&more.into())) == later.clone().map(Some)
            && told == held.clone().map(|(bid, ask)| (Some(bid), Some(ask)))
            && nano(&said["cost"]).as_ref() == Some(cost);
        (!same).then(|| format!("{said} is not {charged:?}"))
    })
}
