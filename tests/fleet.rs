//! One authority and its nodes as processes of their own, over mutual TLS on the loopback address, with real jobs in real cgroups.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "fleet/access.rs"]
mod access;
#[path = "support/agent.rs"]
#[expect(dead_code, reason = "each test takes what it needs")]
mod agent;
#[path = "support/billing.rs"]
#[expect(dead_code, reason = "each test takes what it needs")]
mod billing;
#[path = "fleet/books.rs"]
mod books;
#[path = "fleet/certs.rs"]
mod certs;
#[path = "support/cgroup.rs"]
mod cgroup;
#[path = "fleet/claims.rs"]
mod claims;
#[path = "fleet/ctl.rs"]
mod ctl;
#[path = "fleet/engine.rs"]
mod engine;
#[path = "fleet/field.rs"]
mod field;
#[path = "fleet/gang.rs"]
mod gang;
#[path = "fleet/https.rs"]
mod https;
#[path = "fleet/jobs.rs"]
mod jobs;
#[path = "fleet/liar.rs"]
mod liar;
#[path = "fleet/lies.rs"]
mod lies;
#[path = "fleet/links.rs"]
mod links;
#[path = "fleet/node.rs"]
mod node;
#[path = "fleet/process.rs"]
mod process;
#[path = "fleet/push.rs"]
mod push;
#[path = "fleet/six.rs"]
mod six;
#[path = "support/mod.rs"]
mod support;

use cgroup::cgroups;
use process::{Authority, link, nano};

/// Two nodes spend from one balance until it is empty, the authority is killed and comes back meanwhile, a top-up lets all go on, and in
/// the end every nano-credit is where it belongs.
#[test]
fn two_nodes_spend_one_balance_to_the_last_nano_credit_over_kills_of_the_authority() {
    let Some(mut cgroups) = cgroups("fleet", 2) else { return };
    let mut authority = Authority::start("", "");
    authority.account("lab", "0.6");
    let nodes = ["n1", "n2"];
    let mut agents: Vec<_> = nodes.iter().map(|node| authority.agent(node)).collect();
    for (nth, agent) in agents.iter_mut().enumerate() {
        agent.launch();
        jobs::start(agent, &mut cgroups[nth], &format!("job-{nth}"), "lab");
    }
    authority.wait_for("both nodes have reported use", |authority| 50_000_000 < nano(&authority.kept("lab")["settled"]));
    authority.kill();
    std::thread::sleep(std::time::Duration::from_millis(1_500));
    authority.launch();
    for (nth, agent) in agents.iter().enumerate() {
        agent.wait_for("nothing is left, by the authority's word", |agent| {
            let account = agent.done("GET", "/v1/accounts", None);
            let state = account["accounts"]
                .as_array()
                .is_some_and(|accounts| accounts.iter().any(|account| account["node"]["state"] == "exhausted"));
            state && cgroups[nth].is_frozen()
        });
        assert_eq!(jobs::phase(agent, &format!("job-{nth}")), "frozen");
    }
    let kept = authority.kept("lab");
    assert_eq!((nano(&kept["settled"]), nano(&kept["available"]), nano(&kept["held"])), (600_000_000, 0, 0), "{kept}");
    authority.top_up("lab", "1000", "second");
    for (nth, agent) in agents.iter().enumerate() {
        agent.wait_for("it goes on", |_| !cgroups[nth].is_frozen());
        assert_ne!(link(agent)["pushes"], 0, "the top-up was told");
    }
    authority.kill();
    authority.launch();
    let mut drawn = 0;
    for (nth, agent) in agents.iter().enumerate() {
        let receipt = jobs::end(agent, &mut cgroups[nth], &format!("job-{nth}"));
        drawn += nano(&receipt["drawn"]);
    }
    authority.wait_for("all is settled and given back", |authority| {
        let kept = authority.kept("lab");
        nano(&kept["settled"]) == drawn && nano(&kept["held"]) == 0
    });
    let kept = authority.kept("lab");
    assert_eq!(nano(&kept["available"]) + drawn, nano(&kept["deposited"]), "{kept}");
    let entries = authority.admin.done("GET", "/v1/accounts/lab/ledger?limit=1000", &serde_json::Value::Null)["entries"].clone();
    let of = |kind: &str| {
        entries.as_array().unwrap().iter().filter(|entry| entry["kind"] == kind).map(|entry| nano(&entry["amount"])).sum::<i128>()
    };
    assert_eq!((of("deposit"), of("usage")), (nano(&kept["deposited"]), drawn), "the ledger's lines make the balance");
}
