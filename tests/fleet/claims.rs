//! Nodes that lie, that are two, or that may not have everything; and the places of their journals.

use serde_json::{Value, json};

use crate::cgroup::cgroups;
use crate::ctl::Operator;
use crate::jobs;
use crate::node::{Epoch, Told};
use crate::process::{Authority, nano};

fn client(authority: &Authority, node: &str) -> crate::https::Client {
    let files = authority.ca.node(node, node);
    crate::https::Client::new(authority.port, &authority.ca.pem(), Some(&files))
}

fn metric(authority: &Authority, name: &str) -> u64 {
    let text = authority.admin.call("GET", "/metrics", &Value::Null).body;
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("meter_authority_{name} ")).map(str::to_owned));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

/// A claim above what was granted was always believed: one question drew all that was free.
#[test]
fn a_node_that_lies_about_its_grant_or_its_use_gains_nothing_and_is_counted() {
    let authority = Authority::start("", "");
    authority.account("lab", "100");
    let liar = Epoch::new(&client(&authority, "liar"), "liar", 1, "lab");
    let honest = Epoch::new(&client(&authority, "honest"), "honest", 2, "lab");
    let first = liar.ask(1, Told { owed: "10", ..Told::default() });
    assert_eq!(first["granted"], "10");
    let told = Told { granted: "95", spent: "95", owed: "50", ..Told::default() };
    assert_eq!(liar.ask(2, told)["verdict"], "closed", "in words that an old agent knows");
    let mut bent = first["proof"].clone();
    bent["granted"] = json!("95");
    let answer = liar.ask_showing(3, told, &json!({ "proof": bent, "validity": "live" }));
    assert_eq!((&answer["verdict"], &answer["granted"], &answer["settled"]), (&json!("unproven"), &json!("10"), &json!("10")), "{answer}");
    let kept = authority.kept("lab");
    assert_eq!((&kept["available"], &kept["settled"], &kept["shortfall"]), (&json!("90"), &json!("10"), &json!("0")), "{kept}");
    assert_eq!(honest.ask(1, Told { owed: "90", at_least: "90", ..Told::default() })["granted"], "90", "others are served");
    assert_eq!((metric(&authority, "claims_refused_total"), metric(&authority, "recovering")), (2, 0));
    assert!(authority.log().contains("claim"), "{}", authority.log());
}

#[test]
fn a_registered_node_holds_no_more_than_its_machine_can_use_and_only_of_accounts_that_it_admits() {
    let dir = tempfile::tempdir().unwrap();
    let card = dir.path().join("card.toml");
    std::fs::write(&card, crate::process::CARD.replace("417.0417", "36")).unwrap();
    let nodes = "[[node]]\nname = \"n1\"\ncpus = 4\nmemory_gib = 8\naccounts = [\"lab\"]\n";
    let top = format!("registered_nodes_only = true\nrate_card = \"{}\"", card.display());
    let authority = Authority::start(&top, nodes);
    authority.account("lab", "1000");
    authority.account("other", "1000");
    let own = client(&authority, "n1");
    // Four CPUs at 36 credits an hour for ten minutes.
    let greedy = Told { owed: "900", ..Told::default() };
    assert_eq!(Epoch::new(&own, "n1", 1, "lab").ask(1, greedy)["granted"], "24");
    assert_eq!(Epoch::new(&own, "n1", 1, "lab").ask(2, Told { granted: "24", spent: "4", ..greedy })["granted"], "28");
    let other = Epoch::new(&own, "n1", 1, "other");
    assert_eq!(other.ask(3, greedy)["verdict"], "hold");
    let answer = other.ask_showing(4, greedy, &json!({ "validity": "lapsed" }));
    assert_eq!((&answer["verdict"], &answer["granted"]), (&json!("not_admitted"), &json!("0")));
    let stranger = Epoch::new(&client(&authority, "n2"), "n2", 2, "lab");
    assert_eq!(stranger.ask_showing(1, greedy, &json!({ "validity": "lapsed" }))["verdict"], "not_admitted");
    assert_eq!((&authority.kept("lab")["held"], &authority.kept("other")["held"]), (&json!("24"), &json!("0")));
}

/// Two agents with one identity, one boot and one journal: a machine that was copied while it ran.
#[test]
fn two_agents_that_go_on_from_one_journal_are_told_apart_and_the_balance_holds() {
    let Some(mut cgroups) = cgroups("twins", 2) else { return };
    let authority = Authority::start("", "");
    authority.account("lab", "1000");
    let mut first = authority.agent("n1");
    first.launch();
    jobs::start(&first, &mut cgroups[0], "job", "lab");
    authority.wait_for("credit is held", |authority| authority.kept("lab")["held"] != "0");
    first.kill();
    let mut second = authority.agent_with("n1", &crate::process::certificate(&authority.ca.node("n1-copy", "n1")));
    let copied = std::process::Command::new("cp").arg("-a").arg(first.path("state")).arg(second.path("state")).status().unwrap();
    assert!(copied.success());
    first.launch();
    second.launch();
    let standing = |authority: &Authority| authority.admin.done("GET", "/v1/standing", &Value::Null);
    for agent in [&first, &second] {
        agent.wait_for("its stream is open", |agent| crate::process::link(agent)["stream"] == "open");
    }
    // Each asks at once; the second of them contradicts the first.
    authority.top_up("lab", "1", "second");
    // The one that has used less hears of it too, and admits a start meanwhile.
    jobs::start(&second, &mut cgroups[1], "other", "lab");
    authority
        .wait_for("they are found to be two", |authority| standing(authority)["forked"].as_array().is_some_and(|forked| forked.len() == 1));
    assert_eq!((standing(&authority)["forked"][0]["node"].clone(), metric(&authority, "forked_epochs_total")), (json!("n1"), 1));
    let (code, text) = Operator::of(&authority, "reader").account(&["standing"]);
    assert!(code == 0 && text.contains("several speak as node n1"), "{text}");
    // Both go on, each in a spending life of its own.
    for agent in [&first, &second] {
        let funded = |agent: &crate::agent::Agent| {
            let account = agent.done("GET", "/v1/accounts/lab", None);
            account["node"]["state"] == "funded"
        };
        agent.wait_for("it is funded again", funded);
    }
    let kept = authority.kept("lab");
    assert_eq!(nano(&kept["available"]) + nano(&kept["held"]) + nano(&kept["settled"]), nano(&kept["deposited"]), "{kept}");
    assert_eq!(kept["shortfall"], "0");
}

#[test]
fn the_place_of_a_nodes_journal_is_told_over_the_network_and_finds_out_one_that_is_another() {
    let Some(mut cgroups) = cgroups("anchors", 1) else { return };
    let authority = Authority::start("", "");
    authority.account("lab", "1000");
    let mut agent = authority.agent("n1");
    agent.launch();
    jobs::start(&agent, &mut cgroups[0], "job", "lab");
    authority.wait_for("something is settled", |authority| authority.kept("lab")["settled"] != "0");
    jobs::end(&agent, &mut cgroups[0], "job");
    authority.wait_for("nothing is held", |authority| authority.kept("lab")["held"] == "0");
    let (code, anchors) = Operator::of(&authority, "reader").account(&["anchors", "--output", "json"]);
    assert_eq!(code, 0, "{anchors}");
    let file = agent.path("anchors.json");
    std::fs::write(&file, &anchors).unwrap();
    agent.kill();
    let verify = |file: &std::path::Path| {
        let (state, file) = (agent.path("state").display().to_string(), file.display().to_string());
        crate::process::meterctl(&agent, &["journal", "verify", "--state-dir", &state, "--anchor", &file])
    };
    let text = verify(&file);
    assert!(text.starts_with("OK") && text.contains("are of this chain"), "{text}");
    let mut other: Value = serde_json::from_str(&anchors).unwrap();
    assert!(0 < other["anchors"][0]["head"]["seq"].as_u64().unwrap(), "{other}");
    other["anchors"][0]["head"]["link"] = json!("ab".repeat(32));
    std::fs::write(&file, other.to_string()).unwrap();
    let text = verify(&file);
    assert!(!text.starts_with("OK"), "{text}");
}
