//! What went wrong at others, where network and store can show that it does not here. The number is that of the failure in the field.

use meterd::authority::store::Store;
use meterd::domain::bucket::Bucket;
use meterd::domain::ledger::{ClosePolicy, EntryStatus, Payment, PaymentState, Terms};
use meterd::domain::time::{Mono, Nanos, Now, Wall};
use meterd::domain::wire::{AccountPolicy, Request};
use serde_json::{Value, json};

use crate::cgroup::cgroups;
use crate::jobs;
use crate::node::{Epoch, Told};
use crate::process::{Authority, link, meterctl};

/// 1,597 rows were never closed, the oldest for 18 days. Here a dead node's escrow is closed after a stated silence, at what it last reported, and no
/// line of it stays open.
#[test]
fn f3_what_a_dead_node_left_open_is_closed_after_a_stated_silence() {
    let dir = tempfile::tempdir().unwrap();
    let close_after = Nanos::from_secs(667);
    let at = |secs: u64| Now { mono: Mono(secs * 1_000_000_000), wall: Wall(1_790_000_000_000 + secs * 1_000), ..Now::default() };
    let mut store = Store::open(&dir.path().join("a.db"), ClosePolicy::AfterSilence(close_after), Mono(0)).unwrap();
    let (lab, payment) = ("lab".parse().unwrap(), "p".parse().unwrap());
    store.create_account("lab".parse().unwrap(), AccountPolicy::default(), Terms::default(), at(0)).unwrap();
    store.pay(&lab, &Payment::deposit(payment, Bucket::Paid, "100".parse().unwrap()), PaymentState::Completed, at(0)).unwrap();
    let nobody = crate::https::Client::new(1, &crate::certs::Ca::new(dir.path(), "unused").pem(), None);
    let epoch = Epoch::new(&nobody, "n1", 1, "lab");
    let ask = |store: &mut Store, number, told, secs| {
        let request: Request = serde_json::from_value(epoch.body(number, told)).unwrap();
        store.answer(&request, at(secs)).unwrap()
    };
    ask(&mut store, 1, Told { owed: "30", ..Told::default() }, 0);
    ask(&mut store, 2, Told { granted: "30", spent: "12", ..Told::default() }, 10);
    store.sweep(at(10 + 666)).unwrap();
    assert_eq!(store.show(&lab).unwrap().held, "18".parse().unwrap(), "not a second too early");
    store.sweep(at(10 + 667)).unwrap();
    let view = store.show(&lab).unwrap();
    assert_eq!((view.held, view.settled, view.available), ("0".parse().unwrap(), "12".parse().unwrap(), "88".parse().unwrap()));
    assert!(store.ledger(&lab, 100).unwrap().iter().all(|entry| entry.status == EntryStatus::Completed), "no line stays open");
    let late = ask(&mut store, 3, Told { granted: "30", spent: "15", ..Told::default() }, 700);
    assert_eq!(late.entries[0].verdict, meterd::domain::wire::Verdict::Closed);
    assert_eq!(store.show(&lab).unwrap().settled, "15".parse().unwrap(), "it comes back and pays the news, once");
}

/// 165,695 holds were never released. Here the grant goes back in the moment in which a job ends, over the network as on one machine.
#[test]
fn f5_what_a_job_did_not_use_is_free_again_as_soon_as_it_ends() {
    let Some(mut cgroups) = cgroups("f5", 1) else { return };
    let authority = Authority::start("", "");
    authority.account("lab", "1000");
    let mut agent = authority.agent("n1");
    agent.launch();
    jobs::start(&agent, &mut cgroups[0], "job", "lab");
    authority.wait_for("credit is held", |authority| authority.kept("lab")["held"] != "0");
    let receipt = jobs::end(&agent, &mut cgroups[0], "job");
    authority.wait_for("nothing is held", |authority| authority.kept("lab")["held"] == "0");
    let kept = authority.kept("lab");
    assert_eq!(kept["settled"], receipt["drawn"], "{kept}");
}

/// Exhaustion looked like three unrelated errors, none of which could be resumed from. Here it has one name everywhere, says what to do, and a top-up
/// lets the same job go on.
#[test]
fn f23_exhaustion_has_one_name_says_what_to_do_and_is_resumed_by_a_top_up() {
    let Some(mut cgroups) = cgroups("f23", 2) else { return };
    let authority = Authority::start("", "");
    authority.account("lab", "0.2");
    let mut agent = authority.agent("n1");
    agent.launch();
    jobs::start(&agent, &mut cgroups[0], "job", "lab");
    let node_state = |agent: &crate::agent::Agent| agent.done("GET", "/v1/accounts/lab", None)["node"]["state"].clone();
    agent.wait_for("nothing is left, by the authority's word", |agent| node_state(agent) == "exhausted" && cgroups[0].is_frozen());
    let why = meterctl(&agent, &["why", "job"]);
    assert!(why.contains("exhausted"), "{why}");
    cgroups[1].burn();
    let second = json!({ "job": "second", "account": "lab", "cgroups": crate::cgroup::paths(&cgroups[1]) });
    let (status, refusal) = agent.ask("POST", "/v1/jobs", Some(&second));
    assert_eq!((status, &refusal["error"]["code"]), (402, &json!("no_credit")), "{refusal}");
    assert!(refusal["error"]["hint"].as_str().unwrap().contains("top up"), "{refusal}");
    let pid = cgroups[0].tasks[0].id();
    authority.top_up("lab", "1000", "more");
    agent.wait_for("it goes on", |agent| !cgroups[0].is_frozen() && node_state(agent) == "funded");
    assert_eq!(cgroups[0].tasks[0].id(), pid, "the same process");
    assert_eq!(agent.ask("POST", "/v1/jobs", Some(&second)).0, 201, "and others may start");
}

#[test]
fn a_node_follows_the_authoritys_card_as_soon_as_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("card.toml");
    let card = |version: u32| crate::process::CARD.replace("version = 1", &format!("version = {version}"));
    std::fs::write(&path, card(2)).unwrap();
    let authority = Authority::start(&format!("rate_card = \"{}\"", path.display()), "");
    let files = authority.ca.node("n1", "n1");
    let mut agent = authority.agent_with("n1", &format!("{}\ncard = \"authority\"", crate::process::certificate(&files)));
    agent.launch();
    let version = |agent: &crate::agent::Agent| agent.done("GET", "/v1/status", None)["card"]["version"].clone();
    agent.wait_for("the authority's card is in force", |agent| version(agent) == json!(2));
    agent.wait_for("the stream is open", |agent| link(agent)["stream"] == "open");
    std::fs::write(&path, card(3)).unwrap();
    authority.signal("HUP");
    agent.wait_for("the next one is in force", |agent| version(agent) == json!(3));
    assert_eq!(link(&agent)["card_fault"], Value::Null);
}
