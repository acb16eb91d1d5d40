//! A billing engine keeps the balance: a real job stops when it is used up there, goes on when somebody pays there, and what it used is told there.

use serde_json::{Value, json};

use crate::agent::Agent;
use crate::billing::Billing;
use crate::cgroup::cgroups;
use crate::jobs;
use crate::process::{Authority, CARD, nano};

const SOON: &str = "poll_s = 1\nsettles_within_s = 1\nevent_every_s = 1\nstale_after_s = 60\n";

fn available(agent: &Agent) -> i128 {
    nano(&agent.done("GET", "/v1/accounts/lab", None)["authority"]["available"])
}

#[test]
fn a_fleet_spends_what_an_engine_has_and_tells_it_each_nano_credit_once() {
    let Some(mut cgroups) = cgroups("engine", 1) else { return };
    let folder = tempfile::tempdir().unwrap();
    let billing = Billing::start("openmeter");
    billing.pay("lab", "0.3");
    let mut authority = Authority::start("", &format!("{}{SOON}", billing.lines("openmeter", folder.path())));
    authority.admin.done("POST", "/v1/accounts", &json!({ "account": "lab" }));
    authority.wait_for("the account follows the engine", |authority| nano(&authority.kept("lab")["available"]) == 300_000_000);
    let refused = authority.admin.call("POST", "/v1/accounts/lab/topup", &json!({ "amount": "1", "bucket": "paid" }));
    assert_eq!((refused.status, refused.code()), (409, "account_mirrored".to_owned()), "one pays at the engine");
    let mut agent = authority.agent("n1");
    agent.launch();
    jobs::start(&agent, &mut cgroups[0], "job", "lab");
    authority.wait_for("some of it is told", |_| 50_000_000 < billing.used("lab"));
    authority.kill();
    authority.launch();
    authority.wait_for("all of it is used, and told", |_| billing.used("lab") == 300_000_000 && cgroups[0].is_frozen());
    assert_eq!(jobs::phase(&agent, "job"), "frozen");
    billing.pay("lab", "1000");
    authority.wait_for("somebody paid at the engine", |_| !cgroups[0].is_frozen());
    let receipt = jobs::end(&agent, &mut cgroups[0], "job");
    let drawn = nano(&receipt["drawn"]);
    authority.wait_for("the rest is told", |_| billing.used("lab") == drawn);
    let left = 1_000_300_000_000 - drawn;
    authority.wait_for("both sides say the same", |authority| {
        let kept = authority.kept("lab");
        (nano(&kept["available"]), nano(&kept["held"])) == (left, 0)
    });
    let standing = authority.admin.done("GET", "/v1/standing", &Value::Null);
    assert_eq!((&standing["engine"]["kind"], &standing["engine"]["mirror"]["accounts"]), (&json!("openmeter"), &json!(1)), "{standing}");
    let metrics = authority.admin.call("GET", "/metrics", &Value::Null).body;
    assert!(
        metrics.contains("meter_authority_engine_accounts 1\n") && metrics.contains("meter_authority_engine_events_waiting 0\n"),
        "{metrics}"
    );
    assert!(!authority.log().contains(crate::billing::KEY), "the key is in no log");
}

#[test]
fn one_node_alone_follows_an_engine_too() {
    let Some(mut cgroups) = cgroups("alone", 1) else { return };
    let folder = tempfile::tempdir().unwrap();
    let billing = Billing::start("lago");
    billing.pay("customer-7", "0.2");
    let named = "drawn_by_others = false\n[[engine.account]]\nname = \"lab\"\ncustomer = \"customer-7\"\n";
    let lines = format!("{}{SOON}{named}", billing.lines("lago", folder.path()));
    let agent = Agent::start(CARD, "enforcement = \"enforce\"\ninterval_ms = 100", &lines);
    for account in ["lab", "other"] {
        agent.done("POST", "/v1/accounts", Some(&json!({ "account": account })));
    }
    agent.wait_for("the account follows the engine", |agent| available(agent) == 200_000_000);
    let pay = json!({ "amount": "1", "bucket": "paid" });
    let (status, refused) = agent.ask("POST", "/v1/accounts/lab/topup", Some(&pay));
    assert_eq!((status, &refused["error"]["code"]), (409, &json!("account_mirrored")));
    agent.done("POST", "/v1/accounts/other/topup", Some(&pay));
    jobs::start(&agent, &mut cgroups[0], "job", "lab");
    agent.wait_for("all of it is used, and told", |_| billing.used("customer-7") == 200_000_000 && cgroups[0].is_frozen());
    billing.pay("customer-7", "1000");
    agent.wait_for("somebody paid at the engine", |_| !cgroups[0].is_frozen());
    let receipt = jobs::end(&agent, &mut cgroups[0], "job");
    let drawn = nano(&receipt["drawn"]);
    agent.wait_for("the rest is told", |_| billing.used("customer-7") == drawn);
    agent.wait_for("both sides say the same", |agent| available(agent) == 1_000_200_000_000 - drawn);
}
