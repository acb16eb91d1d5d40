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
}

/// What one line charges.
#[derive(Clone, Debug)]
pub(crate) struct Charged {
    pub(crate) tariff: Tariff,
    pub(crate) quantity: BigInt,
    /// In nano-credits, before it is rounded.
    pub(crate) exact: BigRational,
    /// In nano-credits.
    pub(crate) cost: BigInt,
}

/// Why a segment has no price.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoPrice {
    Gpu(String),
    TooLarge,
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

/// How many nanoseconds, byte-nanoseconds or starts a unit's name stands for.
pub(crate) fn base_units(unit: &str) -> BigInt {
    let ns_in = |span: &str| -> u64 {
        match span {
            "second" => 1_000_000_000,
            "minute" => 60_000_000_000,
            "hour" => 3_600_000_000_000,
            "day" => 86_400_000_000_000,
            other => panic!("{other} is no length of time"),
        }
    };
    let (thing, span) = match unit.split_once('-') {
        None if unit == "start" => return BigInt::from(1),
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
    BigInt::from(base).pow(power) * BigInt::from(ns_in(span))
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
        })
        .collect()
}

/// The line that prices a model: its exact name, else the longest beginning, else the line for every model.
fn line_for<'a>(tariffs: &'a [Tariff], model: &str) -> Option<&'a Tariff> {
    let gpu_lines = || tariffs.iter().filter(|tariff| tariff.meter == "gpu_held");
    if let Some(exact) = gpu_lines().find(|tariff| tariff.gpu_model.as_deref() == Some(model)) {
        return Some(exact);
    }
    let shorter = (1..=model.len()).rev().map(|length| format!("{}*", &model[..length]));
    let mut by_beginning = shorter.filter_map(|wanted| gpu_lines().find(|tariff| tariff.gpu_model.as_ref() == Some(&wanted)));
    by_beginning.next().or_else(|| gpu_lines().find(|tariff| tariff.gpu_model.is_none()))
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

/// What a segment's raw quantities cost under a card.
pub(crate) fn rate(card_text: &str, segment: &Value) -> Result<Vec<Charged>, NoPrice> {
    let tariffs = tariffs(card_text);
    let mut by_line: Vec<(String, BigInt)> = Vec::new();
    for gpu in segment["gpus"].as_array().unwrap() {
        let line = line_for(&tariffs, gpu["model"].as_str().unwrap());
        let line = line.ok_or_else(|| NoPrice::Gpu(gpu["gpu"].as_str().unwrap().to_owned()))?;
        by_line.push((line.id.clone(), whole(&gpu["held_ns"]).unwrap()));
    }
    let total = |key: &str| whole(&segment[key]).unwrap();
    let mut charged = Vec::new();
    for tariff in tariffs {
        let quantity = match tariff.meter.as_str() {
            "cpu_time" => total("cpu_ns"),
            "memory_charged" => total("memory_charged_byte_ns"),
            "memory_anon" => total("memory_anon_byte_ns"),
            "wall_time" => total("running_ns"),
            "job_starts" => total("job_starts"),
            "gpu_held" if by_line.iter().all(|(id, _)| *id != tariff.id) => continue,
            "gpu_held" => by_line.iter().filter(|(id, _)| *id == tariff.id).map(|(_, held)| held).sum(),
            other => panic!("{other} is no meter"),
        };
        let units = BigRational::new(quantity.clone(), base_units(&tariff.unit) * &tariff.per);
        let exact = &tariff.price * units * BigInt::from(1_000_000_000);
        let cost = rounded(&exact, &tariff.round);
        charged.push(Charged { tariff, quantity, exact, cost });
    }
    let sum: BigInt = charged.iter().map(|line| &line.cost).sum();
    let fits = sum.bits() <= AMOUNT_BITS && charged.iter().all(|line| line.quantity.bits() <= QUANTITY_BITS);
    if fits { Ok(charged) } else { Err(NoPrice::TooLarge) }
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
    let mut sum = BigInt::ZERO;
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
        for key in ["cpu_ns", "memory_charged_byte_ns", "memory_anon_byte_ns", "running_ns", "frozen_ns", "job_starts"] {
            if whole(&segment[key]).is_none_or(|total| QUANTITY_BITS < total.bits()) {
                wrong.push(format!("{place}: {key} is no total"));
            }
        }
        match rate(text, segment) {
            Err(why) => wrong.push(format!("{place}: {why:?}")),
            Ok(charged) => {
                let cost: BigInt = charged.iter().map(|line| &line.cost).sum();
                if nano(&segment["cost"]) != Some(cost.clone()) {
                    wrong.push(format!("{place}: cost {cost}"));
                }
                sum += cost;
                wrong.extend(lines_differ(segment, &charged).map(|what| format!("{place}: {what}")));
            }
        }
    }
    let amount = |key: &str| nano(&receipt[key]);
    if amount("charge").as_ref() != Some(&sum) {
        wrong.push(format!("charge {sum}"));
    }
    let paid = ["drawn", "unfunded", "owed"].iter().try_fold(BigInt::ZERO, |paid, key| Some(paid + amount(key)?));
    if paid != amount("charge") {
        wrong.push("drawn + unfunded + owed".to_owned());
    }
    if wrong.is_empty() { Ok(sum) } else { Err(wrong) }
}

/// The first thing in which a segment's lines are not these.
fn lines_differ(segment: &Value, charged: &[Charged]) -> Option<String> {
    let said = segment["lines"].as_array().unwrap();
    if said.len() != charged.len() {
        return Some(format!("{} lines, and {} apply", said.len(), charged.len()));
    }
    said.iter().zip(charged).find_map(|(said, charged)| {
        let Charged { tariff, quantity, cost, .. } = charged;
        let same = said["line"] == tariff.id.as_str()
            && said["meter"] == tariff.meter.as_str()
            && said["unit"] == tariff.unit.as_str()
            && said["round"] == tariff.round.as_str()
            && whole(&said["per"]).as_ref() == Some(&tariff.per)
            && said["price"].as_str().and_then(decimal).as_ref() == Some(&tariff.price)
            && whole(&said["quantity"]).as_ref() == Some(quantity)
            && nano(&said["cost"]).as_ref() == Some(cost);
        (!same).then(|| format!("{said} is not {charged:?}"))
    })
}
