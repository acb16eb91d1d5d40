//! Rates that an account has reserved: lines for it alone.

use super::*;
use crate::domain::rates::{Priced, Trait, charge};
use crate::domain::receipt::{Receipt, verify};
use crate::domain::usage::Usage;

const LIST: &str = "[[line]]\nid = \"list\"\nmeter = \"wall_time\"\nprice = \"4.00\"\nunit = \"hour\"\n";

fn reserved(more: &str) -> String {
    format!(
        "{LIST}[[line]]\nid = \"reserved\"\nmeter = \"wall_time\"\nprice = \"2.40\"\nunit = \"hour\"\nselect = {{ account = \"a\" }}\n{more}"
    )
}

fn card(version: u64, lines: &str) -> Card {
    let text = format!("card = \"contracts\"\nversion = {version}\neffective_from = \"2026-01-01T00:00:00Z\"\n{lines}");
    Card::parse(&text, "card.toml").unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
}

fn started(card: Card, account: &str) -> Bench {
    let mut bench = Bench::new();
    bench.step(Event::CardArrived(Box::new(card), Vec::new()));
    bench.durable();
    bench.free = 100_000_000_000;
    bench.start(1, account);
    bench.durable();
    bench.answer();
    bench.durable();
    bench
}

fn ran(bench: &mut Bench, secs: u64) -> String {
    bench.pass(secs * 1_000);
    let sample = bench.sample(Attempt(1));
    bench.step(Event::Ticked(vec![sample]));
    bench.durable();
    bench.job().charge.to_string()
}

#[test]
fn s7_a_reserved_rate_is_a_line_for_its_account_alone() {
    for (account, hour) in [("a", "2.4"), ("b", "4"), ("a2", "4")] {
        assert_eq!(ran(&mut started(card(2, &reserved("")), account), 3_600), hour, "{account}");
    }
}

#[test]
fn s7_a_running_job_has_the_reserved_rate_from_the_card_s_coming_to_the_contract_s_end() {
    let mut bench = started(card(2, LIST), "a");
    assert_eq!(ran(&mut bench, 1_800), "2");
    let ends = crate::domain::receipt::rfc3339(Wall(bench.now.wall.0 + 3_600_000));
    let sample = bench.sample(Attempt(1));
    bench.step(Event::CardArrived(Box::new(card(3, &reserved(&format!("effective_to = \"{ends}\"")))), vec![sample]));
    bench.durable();
    assert_eq!(ran(&mut bench, 3_600), "4.4", "an hour at 2.40");
    assert_eq!(ran(&mut bench, 3_600), "8.4", "and then at the list's price again");
    let (agent, settings) = (bench.turn.agent(), bench.turn.settings());
    let receipt = Receipt::of(bench.job(), agent, settings);
    assert_eq!(verify(&receipt, &agent.cards).unwrap(), "8.4".parse().unwrap());
    assert!(!receipt.traits.contains_key(&Trait::Account), "nobody stated it");
}

#[test]
fn s7_a_job_of_a_journal_that_kept_the_account_among_the_traits_costs_the_same() {
    let price = |account: &str, kept: &[&str]| {
        let traits = kept.iter().map(|kept| (Trait::Account, kept.parse().unwrap())).collect();
        let (terms, account) = (crate::domain::terms::Terms { traits, ..Default::default() }, account.parse().unwrap());
        let usage = Usage { wall_ns: 3_600_000_000_000, ..Usage::default() };
        let stated = terms.stated(Wall(1_800_000_000_000), &account, None);
        let card = card(2, &reserved(""));
        charge::charge(&card, &Priced { stated, ..Priced::so_far(&usage, &[]) }).unwrap().cost.to_string()
    };
    assert_eq!([price("a", &[]), price("a", &["a"]), price("b", &[]), price("b", &["b"])], ["2.4", "2.4", "4", "4"]);
}

#[test]
fn s7_nobody_states_the_account_that_pays() {
    let stated = r#"{"job":"j","account":"b","cgroup":"/sys/fs/cgroup/x","traits":{"account":"a"}}"#;
    let mistakes = crate::domain::request::StartRequest::parse(stated).unwrap_err();
    assert!(mistakes.iter().any(|mistake| mistake.code == "not_stated"), "{mistakes:?}");
    let changed = crate::domain::request::ChangeRequest::parse(r#"{"traits":{"account":"a"}}"#).unwrap_err();
    assert_eq!(changed[0].code, "not_stated");
}
