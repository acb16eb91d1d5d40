//! A bid over the whole job: what happens when more is asked in mid-run than was bid, by a card, a date or other terms.

use super::*;
use crate::domain::rates::{OverBid, Trait};
use crate::domain::terms::Change;

fn card(version: usize, price: &str, rule: &str) -> Card {
    let line = |id: &str, price: &str, more: &str| {
        format!(
            "[[line]]\nid = \"{id}\"\nmeter = \"wall_time\"\nprice = \"{price}\"\nunit = \"hour\"\nincrement = \"1\"\ntiming = \"advance\"\n{rule}{more}\n"
        )
    };
    let text = format!(
        "card = \"bids\"\nversion = {version}\neffective_from = \"2026-01-01T00:00:00Z\"\n{}{}",
        line("w", price, ""),
        line("r", "3", "\nselect = { tier = \"reserved\" }")
    );
    Card::parse(&text, "card.toml").unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
}

fn credits(text: &str) -> Credits {
    text.parse().unwrap()
}

/// A job that was started with a bid of 0.60 where that is asked.
fn running(rule: &str) -> Bench {
    let mut bench = Bench::new();
    bench.step(Event::CardArrived(Box::new(card(2, "0.60", rule)), Vec::new()));
    bench.durable();
    (bench.free, bench.bid) = (30_000_000_000, Some(credits("0.60")));
    bench.start(1, "a");
    bench.durable();
    bench.answer();
    bench.durable();
    bench.out.clear();
    assert_eq!(bench.job().charge, credits("0.6"));
    bench
}

fn adopt(bench: &mut Bench, card: Card) {
    let sample = bench.sample(Attempt(1));
    bench.step(Event::CardArrived(Box::new(card), vec![sample]));
    bench.durable();
}

fn noted(bench: &Bench) -> Vec<String> {
    let steps = bench.job().steps.iter().filter_map(|step| match &step.event {
        StepEvent::OverBid { rule, bid, ask } => Some(format!("{} {bid} {ask}", rule.name())),
        StepEvent::WithinBid { bid } => Some(format!("within {bid}")),
        _ => None,
    });
    steps.collect()
}

#[test]
fn a6_a_start_below_the_ask_is_refused_whatever_the_card_says_of_later() {
    let mut bench = Bench::new();
    bench.step(Event::CardArrived(Box::new(card(2, "0.60", "over_bid = \"cap\"")), Vec::new()));
    bench.durable();
    (bench.free, bench.bid) = (30_000_000_000, Some(credits("0.599999999")));
    bench.start(1, "a");
    bench.durable();
    bench.answer();
    bench.durable();
    assert!(matches!(bench.replies()[..], [Reply::Refused(refusal)] if refusal.code == "bid_below_ask"), "{:?}", bench.replies());
}

#[test]
fn a6_where_the_card_caps_a_job_goes_on_at_its_bid() {
    let mut bench = running("over_bid = \"cap\"");
    bench.pass(60_000);
    adopt(&mut bench, card(3, "1.20", "over_bid = \"cap\""));
    assert_eq!((bench.orders(), noted(&bench)), (vec![], vec!["cap 0.6 1.2".to_owned()]));
    assert_eq!(bench.job().charge, credits("1.2"), "the new segment's hour at 0.6, and not at 1.2");
    adopt(&mut bench, card(4, "0.50", "over_bid = \"cap\""));
    assert_eq!(bench.job().charge, credits("1.7"), "and below the bid at what is asked");
    assert_eq!(noted(&bench), ["cap 0.6 1.2", "within 0.6"]);
}

#[test]
fn a6_where_the_card_freezes_a_job_stands_still_with_its_reason_until_less_is_asked() {
    let mut bench = running("over_bid = \"freeze\"");
    bench.pass(60_000);
    adopt(&mut bench, card(3, "0.61", "over_bid = \"freeze\""));
    assert_eq!((bench.orders(), noted(&bench)), (vec![Act::Freeze], vec!["freeze 0.6 0.61".to_owned()]));
    bench.acted(Act::Freeze);
    bench.durable();
    bench.out.clear();
    let before = bench.job().charge;
    assert_eq!(before, credits("1.2"), "not more than its bid for the hour that had begun");
    bench.pass(60_000); // its grant is good for ten minutes
    let sample = bench.sample(Attempt(1));
    bench.step(Event::Ticked(vec![sample]));
    bench.durable();
    assert_eq!((bench.job().charge, bench.orders()), (before, vec![]), "it stands still at no cost");
    adopt(&mut bench, card(4, "0.60", "over_bid = \"freeze\""));
    assert_eq!(bench.orders(), [Act::Thaw]);
    assert_eq!(noted(&bench), ["freeze 0.6 0.61", "within 0.6"]);
}

#[test]
fn a6_where_the_card_stops_a_job_is_asked_to_end_and_did_not_end_for_want_of_credit() {
    let mut bench = running("over_bid = \"stop\"");
    bench.policy.grace = Nanos::from_secs(5);
    bench.pass(60_000);
    adopt(&mut bench, card(3, "1.20", "over_bid = \"stop\""));
    assert_eq!(bench.orders(), [Act::Terminate]);
    bench.acted(Act::Terminate);
    bench.durable();
    bench.out.clear();
    let grace = bench.turn.agent().accounts.values().next().unwrap().grant.policy.grace;
    bench.pass(grace.0 / 1_000_000 + 1);
    let sample = bench.sample(Attempt(1));
    bench.step(Event::Ticked(vec![sample]));
    bench.durable();
    assert_eq!(bench.orders(), [Act::Freeze], "what has not ended stands still, and is not killed");
    bench.acted(Act::Freeze);
    let gone = |bench: &Bench| JobSample { populated: Reading::Seen(Populated::No), ..bench.sample(Attempt(1)) };
    let (sample, ending) = (gone(&bench), Ending { outcome: Outcome::Cancelled, exit_code: None });
    bench.step(Event::StopAsked { caller: 2, name: "job".parse().unwrap(), ending, sample: Some(sample) });
    bench.pass(100);
    let sample = gone(&bench);
    bench.step(Event::Looked(vec![sample]));
    assert_eq!(bench.job().ending.unwrap().outcome, Outcome::Cancelled);
}

#[test]
fn a6_other_terms_can_be_more_than_was_bid_too() {
    let mut bench = running("over_bid = \"freeze\"");
    bench.pass(60_000);
    let change = Change { traits: [(Trait::Tier, "reserved".parse().unwrap())].into(), ..Change::default() };
    let sample = bench.sample(Attempt(1));
    let name = "job".parse().unwrap();
    bench.step(Event::ChangeAsked { caller: 3, name, change, by: Uid::ROOT, sample: Some(sample) });
    bench.durable();
    assert_eq!((bench.orders(), noted(&bench)), (vec![Act::Freeze], vec!["freeze 0.6 3".to_owned()]));
}

#[test]
fn a6_a_card_that_does_not_mind_asks_what_it_asks() {
    let mut bench = running("");
    bench.pass(60_000);
    adopt(&mut bench, card(3, "1.20", ""));
    assert_eq!((bench.orders(), noted(&bench), bench.job().charge), (vec![], vec![], credits("1.8")));
}

#[test]
fn a6_where_nothing_is_enforced_a_job_goes_on_at_its_bid() {
    let mut bench = running("over_bid = \"freeze\"");
    bench.step(Event::EnforcementAsked { caller: 4, mode: Enforcement::Observe, by: Uid::ROOT });
    bench.durable();
    adopt(&mut bench, card(3, "1.20", "over_bid = \"freeze\""));
    assert_eq!((bench.orders(), bench.job().charge), (vec![], credits("1.2")));
    assert_eq!(OverBid::ALL.map(|(name, _)| name), ["cap", "freeze", "stop"]);
}

/// A job that was started with a bid of 0.60 under a card whose third hour, counted over the job, costs 0.90; it ran to a nanosecond before it.
fn near_its_third_hour(rule: &str) -> Bench {
    let mut bench = Bench::new();
    let tiers = format!("{rule}\nanchor = \"job\"\ntiers = [{{ above = \"2\", price = \"0.90\" }}]");
    bench.step(Event::CardArrived(Box::new(card(2, "0.60", &tiers)), Vec::new()));
    bench.durable();
    (bench.free, bench.bid) = (30_000_000_000, Some(credits("0.60")));
    bench.start(1, "a");
    bench.durable();
    bench.answer();
    bench.durable();
    for _ in 0..2 {
        // A grant is good for ten minutes, and the next hour is asked for ten seconds before it begins.
        (0..15).for_each(|_| run_on(&mut bench, 239_000));
        (0..15).for_each(|_| run_on(&mut bench, 1_000));
    }
    assert_eq!((bench.job().charge, noted(&bench), bench.orders()), (credits("1.2"), vec![], vec![]), "two hours to the nanosecond");
    bench
}

fn run_on(bench: &mut Bench, ms: u64) {
    bench.pass(ms);
    let sample = bench.sample(Attempt(1));
    bench.step(Event::Ticked(vec![sample]));
    bench.durable();
    if bench.question().is_some() {
        bench.answer();
        bench.durable();
    }
}

#[test]
fn a6_a_band_that_a_job_reaches_by_its_own_volume_freezes_it_where_its_card_says_so() {
    let mut bench = near_its_third_hour("over_bid = \"freeze\"");
    bench.out.clear();
    run_on(&mut bench, 1);
    assert_eq!((bench.orders(), noted(&bench)), (vec![Act::Freeze], vec!["freeze 0.6 0.9".to_owned()]));
    assert_eq!(bench.job().charge, credits("1.8"), "the hour that had begun costs no more than the bid");
    bench.acted(Act::Freeze);
    bench.durable();
    bench.out.clear();
    run_on(&mut bench, 60_000);
    assert_eq!((bench.orders(), bench.job().charge), (vec![], credits("1.8")), "it stands still at no cost");
    adopt(&mut bench, card(3, "0.60", "over_bid = \"freeze\"\nanchor = \"job\""));
    assert_eq!((bench.orders(), noted(&bench)), (vec![Act::Thaw], vec!["freeze 0.6 0.9".to_owned(), "within 0.6".to_owned()]));
}

#[test]
fn a6_a_band_that_a_job_reaches_by_its_own_volume_stops_it_or_is_capped_as_its_card_says() {
    let mut bench = near_its_third_hour("over_bid = \"stop\"");
    bench.out.clear();
    run_on(&mut bench, 1);
    assert_eq!((bench.orders(), noted(&bench)), (vec![Act::Terminate], vec!["stop 0.6 0.9".to_owned()]));
    let mut bench = near_its_third_hour("over_bid = \"cap\"");
    bench.out.clear();
    run_on(&mut bench, 1);
    assert_eq!((bench.orders(), noted(&bench), bench.job().charge), (vec![], vec!["cap 0.6 0.9".to_owned()], credits("1.8")));
    let mut bench = near_its_third_hour("");
    bench.out.clear();
    run_on(&mut bench, 1);
    assert_eq!((bench.orders(), noted(&bench), bench.job().charge), (vec![], vec![], credits("2.1")), "a card that does not mind");
}
