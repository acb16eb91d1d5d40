//! What the balances come to under many clients, repetitions, disorder and kills.

use std::sync::Barrier;

use serde_json::{Value, json};

use crate::https::{Client, Kept};
use crate::node::{Epoch, Told};
use crate::process::{Authority, nano};

const CLIENTS: usize = 64;

fn rounds() -> usize {
    std::env::var("METERD_ROUNDS").map_or(10, |text| text.parse().unwrap())
}

/// So many nodes, each with a certificate of its own.
fn nodes(authority: &Authority, count: usize) -> Vec<(String, crate::https::Client)> {
    let node = |nth| {
        let name = format!("node-{nth}");
        let files = authority.ca.node(&name, &name);
        (name, crate::https::Client::new(authority.port, &authority.ca.pem(), Some(&files)))
    };
    (0..count).map(node).collect()
}

/// A node, and its connection that stays open.
struct Asking {
    name: String,
    client: Client,
    kept: Kept,
}

/// All of them ask for so much at once, each twice in the same words; how many got it.
fn funded(nodes: &mut [Asking], round: usize, account: &str, price: &str) -> usize {
    let barrier = &Barrier::new(nodes.len());
    let ask = |nth: usize, node: &mut Asking| {
        let epoch = Epoch::new(&node.client, &node.name, round * 1_000 + nth + 1, account);
        let told = Told { owed: price, at_least: price, ..Told::default() };
        barrier.wait();
        let first = epoch.insist_over(&mut node.kept, 1, told);
        let again = epoch.insist_over(&mut node.kept, 1, told);
        assert_eq!(first["granted"], again["granted"], "the same question once more is granted nothing more");
        match nano(&first["granted"]) {
            0 => {
                assert!(["below_at_least", "exhausted"].contains(&first["verdict"].as_str().unwrap()), "{first}");
                0
            }
            granted => {
                assert_eq!(granted, nano(&json!(price)), "a part would be of no use");
                1
            }
        }
    };
    std::thread::scope(|scope| {
        let asking: Vec<_> = nodes.iter_mut().enumerate().map(|(nth, node)| scope.spawn(move || ask(nth, node))).collect();
        asking.into_iter().map(|client| client.join().unwrap()).sum()
    })
}

/// `METERD_ROUNDS=100` for the long form.
#[test]
fn twenty_starts_of_75_against_500_give_6_and_two_of_5_against_9_give_1_whoever_comes_first() {
    let authority = Authority::start("", "[limits]\ncalls_per_s = 1000");
    let asking = |(name, client): (String, Client)| Asking { name, kept: client.kept(), client };
    let mut nodes: Vec<Asking> = nodes(&authority, CLIENTS).into_iter().map(asking).collect();
    for round in 0..rounds() {
        let (twenty, two, all) = (format!("twenty-{round}"), format!("two-{round}"), format!("all-{round}"));
        authority.account(&twenty, "500");
        authority.account(&two, "9");
        authority.account(&all, "500");
        assert_eq!(funded(&mut nodes[..20], 3 * round, &twenty, "75"), 6);
        assert_eq!(funded(&mut nodes[..2], 3 * round + 1, &two, "5"), 1);
        assert_eq!(funded(&mut nodes, 3 * round + 2, &all, "75"), 6);
        for (account, available, held) in [(&twenty, "50", "450"), (&two, "4", "5"), (&all, "50", "450")] {
            let kept = authority.kept(account);
            assert_eq!((&kept["available"], &kept["held"]), (&json!(available), &json!(held)), "{kept}");
        }
    }
}

/// Four settlers at once, with no key to tell a repetition: a fifth of all charges were made twice. Here every report is a total.
#[test]
fn f2_the_same_use_reported_by_many_at_once_is_charged_once() {
    let authority = Authority::start("", "[limits]\ncalls_per_s = 1000");
    authority.account("lab", "100");
    let (name, client) = nodes(&authority, 1).remove(0);
    let epoch = Epoch::new(&client, &name, 1, "lab");
    epoch.ask(1, Told { owed: "50", ..Told::default() });
    let barrier = Barrier::new(16);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                barrier.wait();
                for spent in ["6.828", "1.484", "6.828"] {
                    epoch.insist(2, Told { granted: "50", spent, ..Told::default() });
                }
            });
        }
    });
    let kept = authority.kept("lab");
    assert_eq!((&kept["settled"], &kept["held"]), (&json!("6.828"), &json!("43.172")), "{kept}");
    assert_eq!(usage(&authority, "lab"), 6_828_000_000);
}

/// The sum of the ledger's lines of use.
fn usage(authority: &Authority, account: &str) -> i128 {
    let entries = authority.admin.done("GET", &format!("/v1/accounts/{account}/ledger?limit=10000"), &Value::Null)["entries"].clone();
    entries.as_array().unwrap().iter().filter(|entry| entry["kind"] == "usage").map(|entry| nano(&entry["amount"])).sum()
}

/// A retry was taken for a repetition before anything was written, and metered zero times with success; a replay after the write and before
/// the acknowledgement doubled a counter. Here the authority is killed under questions, and each is asked until it is answered.
#[test]
fn f9_f25_a_question_repeated_over_kills_of_the_authority_is_charged_neither_never_nor_twice() {
    let mut authority = Authority::start("", "[limits]\ncalls_per_s = 1000");
    authority.account("lab", "1000");
    let (name, client) = nodes(&authority, 1).remove(0);
    let epoch = Epoch::new(&client, &name, 1, "lab");
    epoch.ask(1, Told { owed: "500", ..Told::default() });
    let kills = 8;
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut number = 1_u64;
            let (mut last, began) = (Value::Null, std::time::Instant::now());
            while began.elapsed() < std::time::Duration::from_secs(6) || number < 200 {
                number += 1;
                let spent = format!("{}.{:03}", number / 1_000, number % 1_000);
                last = epoch.insist(number, Told { granted: "500", spent: &spent, ..Told::default() });
                assert_eq!(nano(&last["settled"]), i128::from(number) * 1_000_000, "{last}");
            }
            (number, last)
        });
        for _ in 0..kills {
            std::thread::sleep(std::time::Duration::from_millis(400));
            authority.kill();
            authority.launch();
        }
        let (number, _) = asking.join().unwrap();
        println!("{number} questions over {kills} kills");
        let kept = authority.kept("lab");
        let charged = i128::from(number) * 1_000_000;
        assert_eq!((nano(&kept["settled"]), nano(&kept["held"])), (charged, 500_000_000_000 - charged), "{kept}");
        assert_eq!(usage(&authority, "lab"), charged, "the ledger's lines make the balance");
    });
}

/// "Accepted" was processed before "sent", and a healthy agreement was broken. Here order does not matter.
#[test]
fn f21_questions_that_arrive_in_disorder_neither_lower_nor_double_anything() {
    let authority = Authority::start("", "");
    authority.account("lab", "100");
    let (name, client) = nodes(&authority, 1).remove(0);
    let epoch = Epoch::new(&client, &name, 1, "lab");
    let third = epoch.ask(3, Told { owed: "10", ..Told::default() });
    assert_eq!(third["granted"], "10");
    let first = epoch.ask(1, Told { owed: "25", ..Told::default() });
    assert_eq!(
        (&first["granted"], &first["verdict"]),
        (&json!("10"), &json!("granted")),
        "an old question is granted nothing, whatever it asks for"
    );
    epoch.ask(6, Told { granted: "10", spent: "7", returned: "2", ..Told::default() });
    let fifth = epoch.ask(5, Told { granted: "10", spent: "3", returned: "1", ..Told::default() });
    assert_eq!((&fifth["granted"], &fifth["settled"]), (&json!("10"), &json!("7")), "an old report lowers nothing");
    let second = epoch.ask(2, Told { granted: "10", spent: "7.5", ..Told::default() });
    assert_eq!(second["settled"], "7.5", "what it says beyond what is known is news, in whatever order it comes");
    let kept = authority.kept("lab");
    assert_eq!((&kept["settled"], &kept["held"], &kept["available"]), (&json!("7.5"), &json!("0.5"), &json!("92")), "{kept}");
}

#[test]
fn what_is_given_back_is_free_at_once_and_what_is_held_is_shown() {
    let authority = Authority::start("", "");
    authority.account("lab", "1");
    let (name, client) = nodes(&authority, 1).remove(0);
    for number in 1..=100 {
        let epoch = Epoch::new(&client, &name, number, "lab");
        assert_eq!(epoch.ask(1, Told { owed: "0.01", ..Told::default() })["granted"], "0.01");
        epoch.ask(2, Told { granted: "0.01", returned: "0.01", ..Told::default() });
    }
    let kept = authority.kept("lab");
    assert_eq!((&kept["available"], &kept["held"]), (&json!("1"), &json!("0")), "{kept}");
    Epoch::new(&client, &name, 101, "lab").ask(1, Told { owed: "0.01", ..Told::default() });
    assert_eq!(authority.kept("lab")["held"], "0.01");
}
