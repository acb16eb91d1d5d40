//! What the grammar of a rate line means, number by number: each rule on both sides of its boundary.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeMap;

use meterd::domain::id::GpuModel;
use meterd::domain::outcome::Outcome;
use meterd::domain::rates::charge::{self, Ahead, Outlook, RateError, Shape};
use meterd::domain::rates::check::check;
use meterd::domain::rates::{Card, Earlier, OverBid, Priced, Stated, Trait, Traits, Uncovered, bid};
use meterd::domain::terms::Terms;
use meterd::domain::time::{Nanos, Wall};
use meterd::domain::usage::{HeldGpu, Meter, More, Usage};

const S: u128 = 1_000_000_000;
const HOUR: u128 = 3_600 * S;

fn card(lines: &str) -> Card {
    let text = format!("card = \"c\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n{lines}");
    Card::parse(&text, "card.toml").unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
}

fn mistakes(lines: &str) -> Vec<&'static str> {
    let text = format!("card = \"c\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n{lines}");
    Card::parse(&text, "card.toml").unwrap_err().iter().map(|mistake| mistake.code).collect()
}

/// A line on wall time by the hour.
fn wall(price: &str, rules: &str) -> String {
    format!("[[line]]\nid = \"w\"\nmeter = \"wall_time\"\nprice = \"{price}\"\nunit = \"hour\"\n{rules}\n")
}

fn ran(wall_ns: u128) -> Usage {
    Usage { wall_ns, job_starts: 1, ..Usage::default() }
}

fn cost(card: &Card, usage: &Usage) -> String {
    charge::total(card, usage, &[]).unwrap().to_string()
}

fn settled(card: &Card, usage: &Usage, ended: Option<Outcome>) -> (String, String) {
    let charge = charge::charge(card, &Priced { ended, ..Priced::so_far(usage, &[]) }).unwrap();
    (charge.cost.to_string(), charge.pending.to_string())
}

fn with<'a>(usage: &'a Usage, traits: &'a Traits) -> Priced<'a> {
    Priced { stated: Stated { traits, ..Stated::NOTHING }, ..Priced::so_far(usage, &[]) }
}

fn traits(given: &[(Trait, &str)]) -> Traits {
    given.iter().map(|(which, value)| (*which, value.parse().unwrap())).collect()
}

#[test]
fn d1_an_hour_is_charged_at_the_start_and_each_next_one_when_it_begins() {
    let card = card(&wall("0.60", "increment = \"1\"\ntiming = \"advance\""));
    for (ns, expected) in [
        (0, "0.6"),
        (1, "0.6"),
        (HOUR - 1, "0.6"),
        (HOUR, "0.6"),
        (HOUR + 1, "1.2"),
        (2 * HOUR, "1.2"),
        (10 * HOUR, "6"),
        (10 * HOUR + 1, "6.6"),
        (10 * HOUR + S, "6.6"),
    ] {
        assert_eq!(cost(&card, &ran(ns)), expected, "after {ns} ns");
    }
}

#[test]
fn d1_charged_as_it_is_used_the_first_hour_begins_with_the_first_nanosecond() {
    let card = card(&wall("0.60", "increment = \"1\""));
    for (ns, expected) in [(0, "0"), (1, "0.6"), (HOUR, "0.6"), (HOUR + 1, "1.2")] {
        assert_eq!(cost(&card, &ran(ns)), expected, "after {ns} ns");
    }
    let quarter = self::card(&wall("0.60", "increment = \"0.25\""));
    for (ns, expected) in [(1, "0.15"), (HOUR / 4, "0.15"), (HOUR / 4 + 1, "0.3"), (HOUR, "0.6")] {
        assert_eq!(cost(&quarter, &ran(ns)), expected, "by the quarter, after {ns} ns");
    }
}

#[test]
fn d1_what_is_due_at_the_next_boundary_is_known_before_it() {
    let card = card(&wall("0.60", "increment = \"1\"\ntiming = \"advance\""));
    let shape = Shape { cpu_milli: 4_000, memory_bytes: 1 << 30, gpus: &[] };
    let ahead = |ns| charge::outlook(&card, &Priced::so_far(&ran(ns), &[]), &shape, Nanos(0));
    let step = |within| Outlook { burn: "0".parse().unwrap(), ahead: vec![Ahead { within: Nanos(within), cost: "0.6".parse().unwrap() }] };
    let hour = u64::try_from(HOUR).unwrap();
    assert_eq!(ahead(0), step(hour));
    assert_eq!(ahead(HOUR - 1), step(1));
    assert_eq!(ahead(HOUR), step(0));
    assert_eq!(ahead(HOUR + 1), step(hour - 1));
    let start = charge::start_price(&card, &[], Stated::NOTHING);
    assert_eq!((start.cost.to_string(), start.pending.to_string()), ("0.6".to_owned(), "0".to_owned()));
}

#[test]
fn d2_an_instance_class_has_its_own_price_and_an_unknown_one_has_none() {
    let class = |id: &str, price: &str, name: &str| {
        wall(price, &format!("select = {{ instance_class = \"{name}\" }}\nincrement = \"1\"\ntiming = \"advance\"")).replace("\"w\"", id)
    };
    let card = card(&(class("\"s\"", "0.60", "S") + &class("\"m\"", "1.80", "M") + &class("\"l\"", "3.50", "L")));
    let usage = ran(2 * HOUR);
    for (name, expected) in [("S", "1.2"), ("M", "3.6"), ("L", "7")] {
        let traits = traits(&[(Trait::InstanceClass, name)]);
        assert_eq!(charge::charge(&card, &with(&usage, &traits)).unwrap().cost.to_string(), expected, "{name}");
    }
    let unknown = Err(RateError::Uncovered(Uncovered::Meter(Meter::WallTime)));
    assert_eq!(charge::charge(&card, &with(&usage, &traits(&[(Trait::InstanceClass, "XL")]))), unknown);
    assert_eq!(charge::charge(&card, &with(&usage, &Traits::new())), unknown, "nor has one of which nothing is said");
}

#[test]
fn d3_an_hour_that_is_paid_is_not_charged_again_after_a_pause() {
    let card = card(&wall("0.60", "increment = \"1\"\ntiming = \"advance\""));
    let paused = Usage { frozen_ns: 5 * HOUR, ..ran(HOUR / 2) };
    assert_eq!(cost(&card, &paused), "0.6");
    assert_eq!(cost(&card, &Usage { wall_ns: HOUR, ..paused.clone() }), "0.6");
    assert_eq!(cost(&card, &Usage { wall_ns: HOUR + 1, ..paused }), "1.2");
}

#[test]
fn d3_anchored_at_the_job_an_hour_that_began_under_another_card_is_not_charged_twice() {
    let segments = |anchor: &str| {
        let card = card(&wall("0.60", &format!("increment = \"1\"\ntiming = \"advance\"\nconnect_fee = \"0.05\"\nanchor = \"{anchor}\"")));
        let (first, second) = (ran(HOUR / 2), Usage { wall_ns: HOUR / 2, ..Usage::default() });
        let third = Usage { wall_ns: 1, ..Usage::default() };
        let earlier = [&first, &second].map(|usage| Earlier { usage, gpus: &[], stated: Stated::NOTHING });
        let charge = |usage, before| charge::charge(&card, &Priced { before, ..Priced::so_far(usage, &[]) }).unwrap().cost.to_string();
        [charge(&first, &[]), charge(&second, &earlier[..1]), charge(&third, &earlier)]
    };
    assert_eq!(segments("job"), ["0.65", "0", "0.6"]);
    assert_eq!(segments("segment"), ["0.65", "0.65", "0.65"]);
}

#[test]
fn d8_time_paused_by_its_owner_and_time_frozen_for_credit_are_two_rates() {
    let card = card(&wall("1", "state = { frozen = \"0.25\", paused = \"0.5\" }"));
    let usage = Usage { frozen_ns: 4 * HOUR, paused_ns: 2 * HOUR, ..ran(5 * HOUR) };
    assert_eq!(cost(&card, &usage), "5", "3 running, 4 frozen at a quarter, 2 paused at a half");
    let plain = self::card(&wall("1", ""));
    assert_eq!(cost(&plain, &usage), "5", "who stops his own job pays for its place");
    let free = self::card(&wall("1", "state = { running = \"0\", frozen = \"1\" }"));
    assert_eq!(cost(&free, &usage), "4");
    let pause_is_free = self::card(&wall("1", "state = { paused = \"0\" }"));
    assert_eq!(cost(&pause_is_free, &usage), "3", "or not, where the card says so");
}

#[test]
fn v2_what_is_settled_at_the_end_shows_what_it_comes_to_and_posts_nothing_before() {
    let card = card(&wall("1", "timing = \"settle_at_end\""));
    let usage = ran(HOUR / 2);
    assert_eq!(settled(&card, &usage, None), ("0".to_owned(), "0.5".to_owned()));
    assert_eq!(settled(&card, &usage, Some(Outcome::Completed)), ("0.5".to_owned(), "0".to_owned()));
}

#[test]
fn v3_what_was_asked_for_does_not_change_the_price_of_what_was_used() {
    let line = "[[line]]\nid = \"c\"\nmeter = \"cpu_time\"\nprice = \"1\"\nunit = \"core-hour\"\n";
    let of = |basis: &str, cpus| {
        let card = card(&format!("{line}{basis}"));
        let usage = Usage { cpu_ns: 3 * HOUR, ..ran(HOUR) };
        let stated = Stated { cpus, ..Stated::NOTHING };
        charge::charge(&card, &Priced { stated, ..Priced::so_far(&usage, &[]) }).map(|charge| charge.cost.to_string())
    };
    assert_eq!([of("", Some(1)), of("", Some(64)), of("", None)], [Ok("3".to_owned()), Ok("3".to_owned()), Ok("3".to_owned())]);
    assert_eq!(of("basis = \"allocated\"", Some(8)), Ok("8".to_owned()));
    assert_eq!(of("basis = \"max_of\"", Some(8)), Ok("8".to_owned()));
    assert_eq!(of("basis = \"max_of\"", Some(2)), Ok("3".to_owned()));
    let not_stated = RateError::Uncovered(Uncovered::NotStated { line: "c".parse().unwrap(), what: "cpus" });
    assert_eq!(of("basis = \"allocated\"", None), Err(not_stated), "what was not said is not 0");
}

#[test]
fn v7_v8_the_outcome_decides_what_of_the_charge_remains() {
    let rules = "timing = \"settle_at_end\"\nconnect_fee = \"0.10\"\noutcome = { validation = \"0\", infrastructure = \"0\", preempted = \"0.5\", out_of_credit = \"1.5\" }";
    let card = card(&wall("1", rules));
    let charged = |outcome| settled(&card, &ran(HOUR), Some(outcome)).0;
    for outcome in [Outcome::Completed, Outcome::OutOfMemory, Outcome::TimedOut, Outcome::Failed, Outcome::Cancelled] {
        assert_eq!(charged(outcome), "1.1", "{outcome}: billed for the time run");
    }
    assert_eq!(charged(Outcome::Validation), "0");
    assert_eq!(charged(Outcome::Infrastructure), "0");
    assert_eq!(charged(Outcome::Preempted), "0.55");
    assert_eq!(charged(Outcome::OutOfCredit), "1.65");
    assert_eq!(settled(&card, &ran(0), Some(Outcome::Validation)).0, "0", "nothing ran, and not even the fee is due");
}

#[test]
fn v8_more_than_was_charged_can_be_asked_for_only_where_the_charge_waits_for_the_outcome() {
    let surcharge = "outcome = { failed = \"1.000000001\" }";
    assert_eq!(mistakes(&wall("1", surcharge)), ["outcome_too_late"]);
    assert_eq!(mistakes(&wall("1", &format!("timing = \"advance\"\nincrement = \"1\"\n{surcharge}"))), ["outcome_too_late"]);
    card(&wall("1", &format!("timing = \"settle_at_end\"\n{surcharge}")));
    card(&wall("1", "outcome = { failed = \"1\" }"));
}

/// Charged, kept back, and given back.
fn refunded(card: &Card, usage: &Usage, ended: Option<Outcome>) -> [String; 3] {
    let charge = charge::charge(card, &Priced { ended, ..Priced::so_far(usage, &[]) }).unwrap();
    [charge.cost.to_string(), charge.pending.to_string(), charge.refund.to_string()]
}

#[test]
fn v8_what_was_charged_as_it_ran_stays_charged_and_its_part_is_given_back_by_the_outcome() {
    let outcome = "outcome = { infrastructure = \"0\", preempted = \"0.25\" }";
    for rules in ["", "timing = \"advance\"\nincrement = \"1\"", "connect_fee = \"0\"", "anchor = \"job\"\nincrement = \"0.5\""] {
        let card = card(&wall("2", &format!("{rules}\n{outcome}")));
        assert_eq!(refunded(&card, &ran(HOUR), None), ["2", "0", "0"], "{rules}: nothing is given back while it goes on");
        assert_eq!(refunded(&card, &ran(HOUR), Some(Outcome::Completed)), ["2", "0", "0"], "{rules}");
        assert_eq!(refunded(&card, &ran(HOUR), Some(Outcome::Infrastructure)), ["2", "0", "2"], "{rules}");
        assert_eq!(refunded(&card, &ran(HOUR), Some(Outcome::Preempted)), ["2", "0", "1.5"], "{rules}");
    }
    let start = card(&format!(
        "[[line]]\nid = \"s\"\nmeter = \"job_starts\"\nprice = \"5\"\nunit = \"start\"\ntiming = \"atomic_at_start\"\n{outcome}\n"
    ));
    assert_eq!(refunded(&start, &ran(0), Some(Outcome::Infrastructure)), ["5", "0", "5"], "a7: what did not complete is not earned");
}

#[test]
fn d1_an_hour_that_was_paid_in_advance_is_given_back_whole_with_its_fee() {
    let rules = "timing = \"advance\"\nincrement = \"1\"\nconnect_fee = \"0.1\"\noutcome = { infrastructure = \"0\" }";
    let card = card(&wall("0.60", rules));
    for (ns, charged) in [(0, "0.7"), (HOUR, "0.7"), (HOUR + 1, "1.3")] {
        assert_eq!(refunded(&card, &ran(ns), Some(Outcome::Infrastructure)), [charged, "0", charged]);
        assert_eq!(refunded(&card, &ran(ns), Some(Outcome::Failed)), [charged, "0", "0"]);
    }
}

#[test]
fn v8_what_is_given_back_is_rounded_once_as_the_charge_is() {
    let of = |round: &str| {
        let card = card(&wall("0.000000003", &format!("round = \"{round}\"\noutcome = {{ failed = \"0.5\" }}")));
        refunded(&card, &ran(HOUR / 2), Some(Outcome::Failed))
    };
    // 1.5 nano-credits charged, 0.75 given back.
    assert_eq!(of("down"), ["0.000000001", "0", "0"]);
    assert_eq!(of("up"), ["0.000000002", "0", "0.000000001"]);
    assert_eq!(of("half_even"), ["0.000000002", "0", "0.000000001"]);
}

#[test]
fn s2_eight_gpus_for_two_hours_at_four_are_exactly_sixty_four_with_rules_as_without() {
    let line = "[[line]]\nid = \"g\"\nmeter = \"gpu_held\"\nprice = \"4.00\"\nunit = \"gpu-hour\"\n";
    let gpus: Vec<HeldGpu> =
        (0..8).map(|nth| HeldGpu { gpu: format!("GPU-{nth}").parse().unwrap(), model: GpuModel::new("NVIDIA H100") }).collect();
    let held = |ns| Usage { gpu_held_ns: gpus.iter().map(|held| (held.gpu.clone(), ns)).collect(), wall_ns: ns, ..Usage::default() };
    for rules in
        ["", "increment = \"0.001\"", "minimum = \"2\"", "state = { frozen = \"0.5\" }", "timing = \"advance\"\nincrement = \"16\""]
    {
        let total = charge::total(&card(&format!("{line}{rules}")), &held(2 * HOUR), &gpus).unwrap();
        assert_eq!(total.to_string(), "64", "{rules}");
    }
    let one_more = charge::total(&card(&format!("{line}increment = \"16\"")), &held(2 * HOUR + 1), &gpus).unwrap();
    assert_eq!(one_more.to_string(), "128");
}

#[test]
fn s3_tier_and_model_select_together_and_the_most_specific_line_wins() {
    let line = |id: &str, price: &str, rules: &str| {
        format!("[[line]]\nid = \"{id}\"\nmeter = \"gpu_held\"\nprice = \"{price}\"\nunit = \"gpu-hour\"\n{rules}\n")
    };
    let h100 = "gpu_model = \"NVIDIA H100*\"";
    let card = card(
        &(line("any", "1", "")
            + &line("h100", "4", h100)
            + &line("spot", "2", &format!("{h100}\nselect = {{ tier = \"spot\" }}"))
            + &line("night", "1.5", &format!("{h100}\nselect = {{ tier = \"spot\", qos = \"night\" }}"))),
    );
    let gpus = [HeldGpu { gpu: "GPU-0".parse().unwrap(), model: GpuModel::new("NVIDIA H100 PCIe") }];
    let usage = Usage { gpu_held_ns: BTreeMap::from([(gpus[0].gpu.clone(), HOUR)]), wall_ns: HOUR, ..Usage::default() };
    let of = |given: &[(Trait, &str)]| {
        let traits = traits(given);
        charge::charge(&card, &Priced { gpus: &gpus, ..with(&usage, &traits) }).unwrap().cost.to_string()
    };
    assert_eq!(of(&[]), "4");
    assert_eq!(of(&[(Trait::Tier, "reserved")]), "4");
    assert_eq!(of(&[(Trait::Tier, "spot")]), "2");
    assert_eq!(of(&[(Trait::Tier, "spot"), (Trait::Qos, "night")]), "1.5");
}

#[test]
fn s7_a_line_holds_from_one_instant_to_another_for_segments_that_begin_in_between() {
    let old = wall("1", "effective_to = \"2026-03-01T00:00:00Z\"");
    let new = wall("2", "effective_from = \"2026-03-01T00:00:00Z\"\neffective_to = \"2026-04-01T00:00:00Z\"").replace("\"w\"", "\"x\"");
    let card = card(&(old + &new));
    let at = |text: &str| {
        let at = Wall(u64::try_from(text.parse::<jiff::Timestamp>().unwrap().as_millisecond()).unwrap());
        let usage = ran(HOUR);
        let stated = Stated { at, ..Stated::NOTHING };
        charge::charge(&card, &Priced { stated, ..Priced::so_far(&usage, &[]) }).map(|charge| charge.cost.to_string())
    };
    assert_eq!(at("2026-02-28T23:59:59.999Z"), Ok("1".to_owned()));
    assert_eq!(at("2026-03-01T00:00:00Z"), Ok("2".to_owned()));
    assert_eq!(at("2026-03-31T23:59:59.999Z"), Ok("2".to_owned()));
    assert_eq!(at("2026-04-01T00:00:00Z"), Err(RateError::Uncovered(Uncovered::Meter(Meter::WallTime))), "and then it has no price");
}

#[test]
fn s5_volume_has_its_bands_and_each_part_costs_its_own_band() {
    let card = card(&wall("1", "tiers = [{ above = \"10\", price = \"0.5\" }, { above = \"100\", price = \"0.1\" }]"));
    for (hours, expected) in [(10, "10"), (11, "10.5"), (100, "55"), (101, "55.1"), (200, "65")] {
        assert_eq!(cost(&card, &ran(hours * HOUR)), expected, "{hours} hours");
    }
    assert_eq!(cost(&card, &ran(10 * HOUR + HOUR / 2)), "10.25");
}

#[test]
fn a2_a3_a_cargo_has_one_fixed_price_that_is_due_at_the_start_and_never_again() {
    let line = |id: &str, price: &str, cargo: &str| {
        format!(
            "[[line]]\nid = \"{id}\"\nmeter = \"job_starts\"\nprice = \"{price}\"\nunit = \"start\"\ntiming = \"atomic_at_start\"\nselect = {{ cargo = \"{cargo}\" }}\n"
        )
    };
    let card = card(&(line("text", "5", "text") + &line("video", "50", "video")));
    let of = |cargo, ns| {
        let (traits, usage) = (traits(&[(Trait::Cargo, cargo)]), ran(ns));
        charge::charge(&card, &with(&usage, &traits)).map(|charge| charge.cost.to_string())
    };
    assert_eq!([of("text", 0), of("text", 99 * HOUR), of("video", 1)].map(Result::unwrap), ["5", "5", "50"]);
    assert!(of("music", 0).is_err());
    let text = traits(&[(Trait::Cargo, "text")]);
    let price = charge::start_price(&card, &[], Stated { traits: &text, ..Stated::NOTHING });
    assert_eq!(price.cost.to_string(), "5");
    let atomic_time = wall("1", "timing = \"atomic_at_start\"");
    assert_eq!(mistakes(&atomic_time), ["atomic_quantity"]);
}

#[test]
fn a_minimum_is_billed_from_the_start_and_swallows_what_is_used_until_it_is_reached() {
    let card = card(&wall("6", "minimum = \"0.5\""));
    for (ns, expected) in [(0, "3"), (HOUR / 2, "3"), (HOUR / 2 + HOUR / 6, "4")] {
        assert_eq!(cost(&card, &ran(ns)), expected, "after {ns} ns");
    }
}

#[test]
fn fee_increment_state_and_outcome_are_one_sum_that_is_rounded_once() {
    let rules = "timing = \"settle_at_end\"\nconnect_fee = \"0.000000001\"\nround = \"up\"\noutcome = { failed = \"0.5\" }";
    let card = card(&wall("0.000000001", rules));
    // A nano-credit an hour and one for the connection: 2 and a bit, of which half remains.
    assert_eq!(settled(&card, &ran(HOUR), Some(Outcome::Failed)).0, "0.000000001");
    assert_eq!(settled(&card, &ran(HOUR + 1), Some(Outcome::Failed)).0, "0.000000002");
    assert_eq!(settled(&card, &ran(HOUR + 1), Some(Outcome::Completed)).0, "0.000000003");
}

#[test]
fn rules_that_contradict_themselves_or_the_meter_are_no_card() {
    let cpu = |rules: &str| format!("[[line]]\nid = \"c\"\nmeter = \"cpu_time\"\nprice = \"1\"\nunit = \"core-hour\"\n{rules}\n");
    for (lines, code) in [
        (wall("1", "timing = \"advance\""), "advance_without_increment"),
        (cpu("timing = \"advance\"\nincrement = \"1\""), "advance_of_usage"),
        (cpu("state = { frozen = \"1\" }"), "still_usage"),
        (cpu("basis = \"instance\""), "unknown_word"),
        (wall("1", "basis = \"used\"\nincrement = \"0\""), "out_of_range"),
        (wall("1", "increment = \"0.0000000000000001\""), "not_whole"),
        (wall("1", "effective_from = \"2026-02-01T00:00:00Z\"\neffective_to = \"2026-02-01T00:00:00Z\""), "never_in_force"),
        (wall("1", "tiers = [{ above = \"2\", price = \"1\" }, { above = \"2\", price = \"2\" }]"), "tier_order"),
        (wall("1", "tiers = [{ above = \"2\", price = \"-1\" }]"), "negative_price"),
        (wall("1", "state = { paused = \"-1\" }"), "out_of_range"),
        (wall("1", "state = { paused = \"0.0000000001\" }"), "out_of_range"),
        (wall("1", "select = {}"), "out_of_range"),
        (wall("1", "select = { colour = \"red\" }"), "unknown_key"),
        (wall("1", "timing = \"later\""), "unknown_word"),
        (wall("1", "connect_fee = \"-1\""), "out_of_range"),
    ] {
        assert!(mistakes(&lines).contains(&code), "{lines}: {:?}", mistakes(&lines));
    }
}

/// The cards in a folder under the project's, each with its name and text.
fn cards_in(folder: &str) -> Vec<(String, String)> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let mut cards: Vec<(String, String)> =
        files.map(|path| (path.display().to_string(), std::fs::read_to_string(&path).unwrap())).collect();
    cards.sort();
    cards
}

fn rate_check(path: &str) -> std::process::Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_meterctl")).args(["rate", "check", path]).output().unwrap()
}

#[test]
fn the_checker_finds_the_fault_of_every_bad_card_with_its_line_and_a_hint() {
    let cards = cards_in("tests/ratecards");
    assert!(40 <= cards.len(), "{} bad cards", cards.len());
    for (path, text) in &cards {
        let (nth, line) = text.lines().enumerate().find(|(_, line)| line.contains("# here: ")).unwrap();
        let code = line.split("# here: ").nth(1).unwrap();
        let found = check(text, "card.toml").map_or_else(|mistakes| mistakes, |(_, found)| found);
        let place = format!("card.toml:{}:", nth + 1);
        let named = |mistake: &&meterd::domain::form::Mistake| mistake.code == code && mistake.place.to_string().starts_with(&place);
        let mistake = found.iter().find(named).unwrap_or_else(|| panic!("{path}: {code} at {place} is not among {found:#?}"));
        assert!(mistake.hint.is_some(), "{path}: {mistake}");
        let output = rate_check(path);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{path}: {said}");
        assert!(said.contains(&format!("[{code}]")) && said.contains(&format!(":{}:", nth + 1)), "{path}: {said}");
    }
}

#[test]
fn the_checker_finds_nothing_wrong_with_the_cards_that_come_along() {
    let cards = cards_in("packaging/ratecards");
    assert_eq!(cards.len(), 6);
    for (path, text) in &cards {
        let (_, found) = check(text, path).unwrap_or_else(|mistakes| panic!("{mistakes:#?}"));
        assert!(found.is_empty(), "{found:#?}");
        let output = rate_check(path);
        assert!(output.status.success() && output.stdout.starts_with(b"OK: "), "{path}");
    }
}

#[test]
fn r3_each_card_that_comes_along_prices_its_example() {
    let text = |name: &str| std::fs::read_to_string(format!("{}/packaging/ratecards/{name}.toml", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let card = |name: &str| Card::parse(&text(name), name).unwrap();
    let of = |name: &str, usage: &Usage, given: &[(Trait, &str)], ended| {
        let card = card(name);
        let traits = traits(given);
        let stated = Stated {
            at: card.effective_from,
            traits: &traits,
            cpus: Some(8),
            memory_bytes: Some(64 << 30),
            storage_bytes: Some(100_000_000_000),
            ..Stated::NOTHING
        };
        let charge = charge::charge(&card, &Priced { stated, ended, ..Priced::so_far(usage, &[]) })?;
        Ok::<_, RateError>((charge.cost.to_string(), charge.pending.to_string()))
    };
    let same = |cost: &str, pending: &str| Ok((cost.to_owned(), pending.to_owned()));
    let (ten, more) = (ran(10 * HOUR), ran(10 * HOUR + S));
    assert_eq!(of("hourly-instance", &ten, &[(Trait::InstanceClass, "S")], None), same("6", "0"));
    assert_eq!(of("hourly-instance", &more, &[(Trait::InstanceClass, "S")], None), same("6.6", "0"));
    assert!(of("hourly-instance", &more, &[], None).is_err());
    let work = Usage { cpu_ns: 10 * HOUR, memory_byte_ns: (4 << 30) * HOUR, ..ran(HOUR) };
    assert_eq!(of("settle-at-end", &work, &[], None), same("0", "0.54"));
    assert_eq!(of("settle-at-end", &work, &[], Some(Outcome::OutOfMemory)), same("0.54", "0"));
    assert_eq!(of("settle-at-end", &work, &[], Some(Outcome::Validation)), same("0", "0"));
    let month = ran(744 * HOUR);
    assert_eq!(of("per-second-gpu", &month, &[], None), same("486.16", "0"), "8 cores, 64 GiB and 100 GB for a January");
    assert_eq!(of("per-request", &ran(5 * HOUR), &[(Trait::Cargo, "image")], None), same("30", "0"));
    assert!(of("per-request", &ran(0), &[(Trait::Cargo, "music")], None).is_err());
    assert_eq!(of("hourly-posted", &ran(HOUR), &[], None), same("2.01", "0"), "an instance and 100 GB for an hour");
    assert_eq!(of("hourly-posted", &ran(HOUR), &[(Trait::InstanceClass, "small")], None), same("0.51", "0"));
    let calls = Usage { more: Some(Box::new(More { events: [("call".parse().unwrap(), 250)].into(), ..More::default() })), ..ran(HOUR) };
    assert_eq!(of("hourly-posted", &calls, &[], None), same("2.26", "0"), "r3: instances, calls and storage");
}

fn line(id: &str, more: &str) -> String {
    format!("[[line]]\nid = \"{id}\"\n{more}\n")
}

const CPU: &str = "meter = \"cpu_time\"\nunit = \"core-hour\"\n";
const MEMORY: &str = "meter = \"memory_charged\"\nunit = \"GiB-hour\"\n";

#[test]
fn v1_a_credit_is_calibrated_by_the_card_and_not_by_the_code() {
    let usage = Usage { cpu_ns: 3 * HOUR, memory_byte_ns: (4 << 30) * HOUR, ..ran(HOUR) };
    for (cpu, memory, expected) in [("1", "0.25", "4"), ("100", "25", "400"), ("0.01", "0.0025", "0.04"), ("0", "0", "0")] {
        let card = card(&(line("c", &format!("{CPU}price = \"{cpu}\"")) + &line("m", &format!("{MEMORY}price = \"{memory}\""))));
        assert_eq!(cost(&card, &usage), expected, "3 core-hours at {cpu} and 4 GiB-hours at {memory}");
    }
}

#[test]
fn v4_the_channel_by_which_a_job_came_is_no_selector() {
    let by_channel = wall("1", "select = { channel = \"website\" }");
    assert!(mistakes(&by_channel).contains(&"unknown_key"), "{:?}", mistakes(&by_channel));
    // What can be said of a channel all the same, a label, changes nothing where no line asks for it.
    let card = card(&wall("1", ""));
    let usage = ran(HOUR);
    for channel in ["website", "api"] {
        let traits = traits(&[(Trait::Label, channel)]);
        assert_eq!(charge::charge(&card, &with(&usage, &traits)).unwrap().cost.to_string(), "1", "{channel}");
    }
}

#[test]
fn v6_a_line_of_zero_is_a_price_and_no_line_is_none() {
    let read = Usage { more: Some(Box::new(More { events: [("read".parse().unwrap(), 7)].into(), ..More::default() })), ..ran(0) };
    let free = card(&line("reading", "meter = \"events\"\nname = \"read\"\nprice = \"0\"\nunit = \"event\""));
    let charges = charge::line_charges(&free, &Priced::so_far(&read, &[])).unwrap();
    let told: Vec<(u128, String)> = charges.iter().map(|line| (line.quantity, line.cost.to_string())).collect();
    assert_eq!(told, [(7, "0".to_owned())], "it is on the receipt, with its quantity, and costs nothing");
    assert!(free.prices_named(Meter::Events, &"read".parse().unwrap()));
    assert!(!free.prices_named(Meter::Events, &"write".parse().unwrap()), "what nobody priced is not free");
    let gpu = HeldGpu { gpu: "GPU-1".parse().unwrap(), model: GpuModel::new("NVIDIA L4") };
    let held = Usage { gpu_held_ns: [(gpu.gpu.clone(), HOUR)].into(), ..ran(HOUR) };
    let unpriced = charge::charge(&free, &Priced::so_far(&held, std::slice::from_ref(&gpu)));
    assert_eq!(unpriced, Err(RateError::Unpriced(gpu.gpu)));
}

#[test]
fn f19_what_a_device_does_needs_a_price_as_much_as_that_it_is_held() {
    let lines = line("g", "meter = \"gpu_held\"\nprice = \"1\"\nunit = \"gpu-hour\"")
        + &line("b", "meter = \"gpu_busy\"\nprice = \"1\"\nunit = \"gpu-hour\"\ngpu_model = \"NVIDIA H100*\"");
    let card = card(&lines);
    let gpu = |model: &str| HeldGpu { gpu: "GPU-1".parse().unwrap(), model: GpuModel::new(model) };
    assert_eq!(card.cover(&[gpu("NVIDIA H100 PCIe")], &Stated::NOTHING), Ok(()));
    assert_eq!(card.cover(&[gpu("NVIDIA L4")], &Stated::NOTHING), Err(Uncovered::Gpu("GPU-1".parse().unwrap())));
    assert_eq!(card.cover(&[], &Stated::NOTHING), Ok(()), "a job without a device needs neither");
}

#[test]
fn a5_each_node_asks_its_own_price_by_its_own_card() {
    let asks = |price: &str| {
        let rules = "meter = \"job_starts\"\nunit = \"start\"\ntiming = \"atomic_at_start\"\nselect = { cargo = \"text\" }";
        let card = card(&line("text", &format!("{rules}\nprice = \"{price}\"")));
        let traits = traits(&[(Trait::Cargo, "text")]);
        charge::start_price(&card, &[], Stated { traits: &traits, ..Stated::NOTHING }).cost.to_string()
    };
    assert_eq!([asks("1"), asks("5"), asks("4.999999999")], ["1", "5", "4.999999999"]);
}

#[test]
fn s7_a_contract_s_discount_takes_a_part_off_price_bands_and_fee() {
    let rules = "connect_fee = \"1\"\ntiers = [{ above = \"2\", price = \"1\" }]\n";
    for (discount, expected) in [("", "8"), ("discount = \"0.25\"", "6"), ("discount = \"0.999999999\"", "0.000000008")] {
        let card = card(&wall("2", &format!("{rules}{discount}")));
        assert_eq!(cost(&card, &ran(5 * HOUR)), expected, "1 + 2 x 2 + 3 x 1, {discount}");
    }
}

/// Provisioned storage in segments of so long and so many bytes, under one card: what each costs.
fn stored(card: &Card, pieces: &[(u128, u64)]) -> Vec<String> {
    let usages: Vec<Usage> = pieces.iter().map(|(ns, _)| Usage { wall_ns: *ns, ..Usage::default() }).collect();
    let stated: Vec<Stated<'_>> = pieces.iter().map(|(_, bytes)| Stated { storage_bytes: Some(*bytes), ..Stated::NOTHING }).collect();
    let all: Vec<Earlier<'_>> = usages.iter().zip(&stated).map(|(usage, stated)| Earlier { usage, gpus: &[], stated: *stated }).collect();
    let price = |nth: usize| Priced { stated: stated[nth], before: &all[..nth], ..Priced::so_far(&usages[nth], &[]) };
    (0..pieces.len()).map(|nth| charge::charge(card, &price(nth)).unwrap().cost.to_string()).collect()
}

const DAY: u128 = 24 * HOUR;
const GB: u64 = 1_000_000_000;

#[test]
fn s5_storage_by_started_days_counts_each_of_them_whole() {
    let card = card(&line("d", "meter = \"storage\"\nprice = \"0.30\"\nunit = \"GB-month\"\nmonth = \"days_30\"\nstarted = \"day\""));
    for (ns, expected) in [(0, "0.1"), (1, "0.1"), (DAY, "0.1"), (DAY + 1, "0.2"), (30 * DAY, "3"), (30 * DAY + 1, "3.1")] {
        assert_eq!(stored(&card, &[(ns, 10 * GB)]), [expected], "10 GB for {ns} ns");
    }
    let hourly = self::card(&line("h", "meter = \"storage\"\nprice = \"1\"\nunit = \"GB-hour\"\nstarted = \"hour\""));
    for (ns, expected) in [(0, "1"), (HOUR, "1"), (HOUR + 1, "2")] {
        assert_eq!(stored(&hourly, &[(ns, GB)]), [expected]);
    }
}

#[test]
fn s5_over_the_job_a_day_belongs_to_what_was_provisioned_when_it_began() {
    let text = "meter = \"storage\"\nprice = \"1\"\nunit = \"GB-day\"\nstarted = \"day\"\nanchor = \"job\"";
    let card = card(&line("d", text));
    // Grown in the middle of the second day: the third is the first one of the new size.
    assert_eq!(stored(&card, &[(DAY + DAY / 2, 2 * GB), (DAY / 2, 5 * GB)]), ["4", "0"]);
    assert_eq!(stored(&card, &[(DAY + DAY / 2, 2 * GB), (DAY / 2 + 1, 5 * GB)]), ["4", "5"]);
    // By the segment each begins a day of its own.
    let own = self::card(&line("d", &text.replace("\nanchor = \"job\"", "")));
    assert_eq!(stored(&own, &[(DAY + DAY / 2, 2 * GB), (DAY / 2, 5 * GB)]), ["4", "5"]);
}

#[test]
fn s5_a_day_that_begins_before_the_month_ends_belongs_to_that_month() {
    let text = "meter = \"storage\"\nprice = \"31\"\nunit = \"GB-month\"\nmonth = \"calendar\"\nstarted = \"day\"\nanchor = \"job\"";
    let card = card(&line("d", text));
    let at = |text: &str| Wall(u64::try_from(text.parse::<jiff::Timestamp>().unwrap().as_millisecond()).unwrap());
    let stated = |text: &str| Stated { at: at(text), storage_bytes: Some(GB), ..Stated::NOTHING };
    // From noon of 31 January to noon of 1 February is one day, of January; one nanosecond more begins a day of February.
    for (more, expected) in [(0, "0"), (1, "1.107142857")] {
        let (january, february) = (ran(DAY / 2), Usage { wall_ns: DAY / 2 + more, ..Usage::default() });
        let before = [Earlier { usage: &january, gpus: &[], stated: stated("2026-01-31T12:00:00Z") }];
        let first = Priced { stated: before[0].stated, ..Priced::so_far(&january, &[]) };
        assert_eq!(charge::charge(&card, &first).unwrap().cost.to_string(), "1", "a 31st of the month's price");
        let second = Priced { stated: stated("2026-02-01T00:00:00Z"), before: &before, ..Priced::so_far(&february, &[]) };
        assert_eq!(charge::charge(&card, &second).unwrap().cost.to_string(), expected, "a 28th, where one begins");
    }
}

#[test]
fn s5_only_what_is_asked_for_has_days_that_begin() {
    assert_eq!(mistakes(&wall("1", "started = \"day\"")), ["started_usage"]);
    let cpu = |rules: &str| line("c", &format!("meter = \"cpu_time\"\nprice = \"1\"\nunit = \"core-hour\"\n{rules}"));
    assert_eq!(mistakes(&cpu("started = \"hour\"")), ["started_usage"]);
    assert_eq!(mistakes(&cpu("started = \"hour\"\nbasis = \"allocated\"\nincrement = \"1\"")), ["started_and_steps"]);
    card(&cpu("started = \"hour\"\nbasis = \"allocated\""));
}

#[test]
fn a6_a_card_that_minds_bids_never_charges_more_than_was_bid_for_what_it_asks() {
    let text = "timing = \"advance\"\nincrement = \"1\"\nover_bid = \"cap\"";
    let asks = |price: &str, bid: &str| {
        let card = card(&wall(price, text));
        let stated = Stated { bid: Some(bid.parse().unwrap()), ..Stated::NOTHING };
        let charge = |hours| charge::charge(&card, &Priced { stated, ..Priced::so_far(&ran(hours * HOUR), &[]) }).unwrap().cost.to_string();
        (asked(&card, stated, 1).map(|(_, ask)| ask), charge(1), charge(3))
    };
    let is = |ask: Option<&str>, one: &str, three: &str| (ask.map(str::to_owned), one.to_owned(), three.to_owned());
    assert_eq!(asks("0.60", "0.60"), is(None, "0.6", "1.8"), "the bid is what is asked");
    assert_eq!(asks("0.60", "0.599999999"), is(Some("0.6"), "0.599999999", "1.799999997"));
    assert_eq!(asks("1.20", "0.60"), is(Some("1.2"), "0.6", "1.8"), "twice the price: held to the bid");
    assert_eq!(asks("0.30", "0.60"), is(None, "0.3", "0.9"), "and no more than is asked");
    let plain = card(&wall("1.20", "timing = \"advance\"\nincrement = \"1\""));
    let stated = Stated { bid: Some("0.60".parse().unwrap()), ..Stated::NOTHING };
    let charge = charge::charge(&plain, &Priced { stated, ..Priced::so_far(&ran(HOUR), &[]) }).unwrap();
    assert_eq!((charge.cost.to_string(), asked(&plain, stated, 1)), ("1.2".to_owned(), None), "a card that does not mind");
}

/// Is more asked of a job that ran so many hours than was bid, and how much?
fn asked(card: &Card, stated: Stated<'_>, hours: u128) -> Option<(OverBid, String)> {
    let asked = bid::over_bid(card, &Priced { stated, ..Priced::so_far(&ran(hours * HOUR), &[]) });
    asked.map(|(rule, ask)| (rule, ask.to_string()))
}

const STEPS: &str = "timing = \"advance\"\nincrement = \"1\"\nover_bid = \"freeze\"\n";

#[test]
fn a6_a_dearer_band_is_more_than_was_bid_from_the_first_step_in_it_on() {
    let card =
        card(&wall("0.60", &format!("{STEPS}tiers = [{{ above = \"10\", price = \"0.80\" }}, {{ above = \"20\", price = \"0.5\" }}]")));
    let with = |bid: &str| Stated { bid: Some(bid.parse().unwrap()), ..Stated::NOTHING };
    let after = |bid: &str, ns: u128| {
        let usage = ran(ns);
        let priced = Priced { stated: with(bid), ..Priced::so_far(&usage, &[]) };
        (bid::over_bid(&card, &priced).map(|(_, ask)| ask.to_string()), charge::charge(&card, &priced).unwrap().cost.to_string())
    };
    let is = |ask: Option<&str>, cost: &str| (ask.map(str::to_owned), cost.to_owned());
    assert_eq!(after("0.60", 0), is(None, "0.6"), "its first hour");
    assert_eq!(after("0.60", 10 * HOUR), is(None, "6"), "ten hours to the nanosecond");
    assert_eq!(after("0.60", 10 * HOUR + 1), is(Some("0.8"), "6.6"), "the eleventh is held to the bid");
    assert_eq!(after("0.70", 10 * HOUR + 1), is(Some("0.8"), "6.7"));
    assert_eq!(after("0.799999999", 10 * HOUR + 1), is(Some("0.8"), "6.799999999"));
    assert_eq!(after("0.80", 10 * HOUR + 1), is(None, "6.8"), "the bid is what is asked there");
    assert_eq!(after("0.60", 20 * HOUR), is(Some("0.8"), "12"));
    assert_eq!(after("0.60", 20 * HOUR + 1), is(None, "12.5"), "a cheaper band is below the bid again");
    assert_eq!(
        after("0.30", 12 * HOUR),
        is(Some("0.8"), "3.6"),
        "where more is asked from the first hour on, no hour costs more than the bid"
    );
}

#[test]
fn a6_a_step_that_reaches_into_a_dearer_band_asks_for_its_part_of_it() {
    let card = card(&wall("1", &format!("{STEPS}tiers = [{{ above = \"2.5\", price = \"3\" }}]")));
    let stated = Stated { bid: Some("1".parse().unwrap()), ..Stated::NOTHING };
    let ask = |hours| asked(&card, stated, hours).map(|(_, ask)| ask);
    assert_eq!([2, 3, 4].map(ask), [None, Some("2".to_owned()), Some("3".to_owned())]);
}

#[test]
fn a6_lines_that_rise_together_never_cost_more_than_the_bid() {
    let two = |tiers: &str| {
        let line = |id: &str, price: &str, tiers: &str| {
            line(id, &format!("meter = \"wall_time\"\nprice = \"{price}\"\nunit = \"hour\"\n{STEPS}{tiers}"))
        };
        let storage = line("s", "2", tiers).replace("wall_time", "storage").replace("\"hour\"", "\"GB-hour\"");
        card(&format!("{}{storage}", line("w", "1", "tiers = [{ above = \"1\", price = \"2\" }]")))
    };
    let cost = |card: &Card, bid: &str, hours: u128| {
        let stated = Stated { bid: Some(bid.parse().unwrap()), storage_bytes: Some(1_000_000_000), ..Stated::NOTHING };
        charge::charge(card, &Priced { stated, ..Priced::so_far(&ran(hours * HOUR), &[]) }).unwrap().cost.to_string()
    };
    let card = two("");
    assert_eq!(cost(&card, "3", 1), "3", "what is asked at the start");
    assert_eq!(cost(&card, "3", 2), "6", "the line that rises may not: the other one takes all of the rest");
    assert_eq!(cost(&card, "3.5", 2), "6.5");
    assert_eq!(cost(&card, "4", 2), "7", "all of the second band");
    assert_eq!(cost(&card, "9", 2), "7", "and no more than is asked");
    let both = two("tiers = [{ above = \"1\", price = \"4\" }]");
    assert_eq!(cost(&both, "3", 2), "6");
    assert_eq!(cost(&both, "3.3", 2), "6.3", "each takes its part of what the bid leaves: 0.1 and 0.2");
    assert_eq!(cost(&both, "3.30000001", 2), "6.300000009", "each part rounded down");
    assert_eq!(cost(&both, "5.999999999", 2), "8.999999998");
    assert_eq!(cost(&both, "6", 2), "9");
}

/// Rules that charge as it is used, and count over the whole job.
const STEADY: [&str; 7] = [
    "",
    "increment = \"0.3\"",
    "minimum = \"2.5\"\nround = \"up\"",
    "increment = \"1\"\ntiming = \"advance\"\nconnect_fee = \"0.07\"",
    "tiers = [{ above = \"1\", price = \"0.1\" }, { above = \"7\", price = \"3\" }]\nround = \"half_even\"",
    "state = { running = \"0.333333333\", frozen = \"0.1\", paused = \"2\" }",
    "increment = \"0.7\"\nminimum = \"1\"\nconnect_fee = \"0.000000001\"\nstate = { frozen = \"1\" }",
];

proptest::proptest! {
    #[test]
    fn any_split_into_ticks_and_segments_comes_to_the_same_and_nothing_is_ever_given_back(
        which in 0..STEADY.len(),
        ticks in proptest::collection::vec((0..5_000_000_000_000_u128, 0..3_u8, proptest::bool::weighted(0.2)), 1..40),
    ) {
        let card = card(&wall("0.417", &format!("{}\nanchor = \"job\"", STEADY[which])));
        let (mut before, mut open): (Vec<Usage>, Usage) = (Vec::new(), ran(0));
        let (mut closed, mut posted) = (0_i128, 0_i128);
        for (ns, state, new_segment) in ticks {
            let tick = match state {
                0 => Usage { wall_ns: ns, ..Usage::default() },
                1 => Usage { frozen_ns: ns, ..Usage::default() },
                _ => Usage { wall_ns: ns, paused_ns: ns, ..Usage::default() },
            };
            open = open.plus(&tick);
            let earlier: Vec<Earlier<'_>> = before.iter().map(|usage| Earlier { usage, gpus: &[], stated: Stated::NOTHING }).collect();
            let priced = Priced { before: &earlier, ..Priced::so_far(&open, &[]) };
            let segment = charge::charge(&card, &priced).unwrap().cost.nano();
            proptest::prop_assert!(posted <= closed + segment, "{} after {posted}", closed + segment);
            posted = closed + segment;
            if new_segment {
                closed = posted;
                before.push(std::mem::take(&mut open));
            }
        }
        let whole = before.iter().fold(open.clone(), Usage::plus);
        proptest::prop_assert_eq!(charge::total(&card, &whole, &[]).unwrap().nano(), posted);
    }
}

/// One price for all that a job is given, and the rules that count over the whole job.
const GIVEN: [&str; 4] = [
    "meter = \"gpu_held\"\nprice = \"0.417\"\nunit = \"gpu-hour\"",
    "meter = \"cpu_time\"\nprice = \"0.0613\"\nunit = \"core-hour\"\nbasis = \"allocated\"",
    "meter = \"storage\"\nprice = \"0.1\"\nunit = \"GB-month\"\nmonth = \"days_30\"",
    "meter = \"memory_charged\"\nprice = \"0.01\"\nunit = \"GiB-hour\"\nbasis = \"max_of\"",
];

proptest::proptest! {
    #[test]
    fn s14_any_row_of_allocations_costs_what_it_comes_to_in_all(
        which in 0..GIVEN.len(),
        rules in 0..3_usize,
        pieces in proptest::collection::vec((0..5_000_000_000_000_u128, 0..4_usize, 1..64_u32, 0..1_u64 << 40, proptest::bool::weighted(0.4)), 1..20),
    ) {
        let rules = ["", "round = \"up\"", "increment = \"0.5\"\nminimum = \"1\""][rules];
        let card = card(&line("l", &format!("{}\n{rules}\nanchor = \"job\"", GIVEN[which])));
        let gpus: Vec<HeldGpu> = (0..4).map(|nth| HeldGpu { gpu: format!("GPU-{nth}").parse().unwrap(), model: GpuModel::new("NVIDIA L4") }).collect();
        let (mut segments, mut posted): (Vec<(Usage, Terms)>, i128) = (Vec::new(), 0);
        let mut whole = num_rational::BigRational::from(num_bigint::BigInt::ZERO);
        let mut allocated = whole.clone();
        for (ns, held, cpus, bytes, goes_on) in pieces {
            let terms = match segments.last() {
                // The same allocation in a new segment, as under a new card.
                Some((_, terms)) if goes_on => terms.clone(),
                _ => Terms { gpus: gpus[..if which == 0 { held } else { 0 }].to_vec(), cpus: Some(cpus), memory_bytes: Some(bytes), storage_bytes: Some(bytes), ..Terms::default() },
            };
            let memory_byte_ns = ns * u128::from(bytes / 2);
            let usage = Usage { memory_byte_ns, gpu_held_ns: terms.gpus.iter().map(|gpu| (gpu.gpu.clone(), ns)).collect(), wall_ns: ns, ..Usage::default() };
            let amount = |count: u128| num_rational::BigRational::from(num_bigint::BigInt::from(ns * count));
            let count = match which {
                0 => terms.gpus.len() as u128,
                1 => u128::from(terms.cpus.unwrap()),
                _ => u128::from(terms.storage_bytes.unwrap()),
            };
            allocated += amount(count);
            whole += amount(u128::from(bytes / 2));
            segments.push((usage, terms));
            let account = "a".parse().unwrap();
            let stated = |terms| Terms::stated(terms, Wall(0), &account, None);
            let earlier: Vec<Earlier<'_>> =
                segments.iter().map(|(usage, terms)| Earlier { usage, gpus: &terms.gpus, stated: stated(terms) }).collect();
            let (this, before) = earlier.split_last().unwrap();
            let priced = Priced { usage: this.usage, gpus: this.gpus, before, stated: this.stated, ended: None };
            let cost = charge::charge(&card, &priced).unwrap().cost.nano();
            proptest::prop_assert!(0 <= cost, "nothing is given back");
            posted += cost;
        }
        // All of it in one piece, as a plain quantity of the line's unit.
        let total = if which == 3 { allocated.max(whole) } else { allocated };
        let base = num_bigint::BigInt::from(card.lines[0].base(Wall(0)));
        let step = num_rational::BigRational::new(base.clone(), 2.into());
        let billed = if rules.contains("increment") { (total.max(base.clone().into()) / &step).ceil() * step } else { total };
        let price: num_bigint::BigInt = card.lines[0].price.mantissa.into();
        let exact = billed * price * num_bigint::BigInt::from(1_000_000_000) / num_bigint::BigInt::from(10).pow(u32::from(card.lines[0].price.scale)) / base;
        let due = if rules.contains("up") { exact.ceil() } else { exact.floor() };
        // A line of devices costs nothing while none is held, its minimum included.
        let unheld = which == 0 && segments.iter().all(|(_, terms)| terms.gpus.is_empty());
        if unheld {
            proptest::prop_assert_eq!(posted, 0);
        } else {
            proptest::prop_assert_eq!(num_bigint::BigInt::from(posted), due.to_integer());
        }
    }
}
