//! How long a start takes, and how much it reads. Printed, not asserted: no test depends on the machine's speed.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/agent.rs"]
#[expect(dead_code, reason = "each test takes what it needs")]
mod agent;
#[path = "support/cgroup.rs"]
#[expect(dead_code, reason = "each test takes what it needs")]
mod cgroup;
#[path = "support/mod.rs"]
mod support;

use std::time::Instant;

use agent::Agent;
use cgroup::{cgroups, paths};
use meterd::domain::turn::REPLAY_MAX;
use serde_json::json;

const CARD: &str = "card = \"test\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n[[line]]\nid = \"wall\"\nmeter = \"wall_time\"\nprice = \"1\"\nunit = \"hour\"\n";
const JOBS: usize = 256;

/// The number behind `name=` in the last line of the log that holds `event`.
fn logged(agent: &Agent, event: &str, name: &str) -> u64 {
    let log = std::fs::read_to_string(agent.path("log")).unwrap();
    let line = log.lines().rfind(|line| line.contains(event)).unwrap_or_else(|| panic!("no {event} in the log:\n{log}"));
    let value = line.split(&format!("{name}=")).nth(1).unwrap();
    value.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

#[test]
fn with_256_jobs_a_killed_agent_is_back_with_all_of_them() {
    let Some(jobs) = cgroups("recovery", JOBS) else { return };
    let mut agent = Agent::start(CARD, "enforcement = \"enforce\"\ninterval_ms = 100", "");
    agent.done("POST", "/v1/accounts", Some(&json!({ "account": "a" })));
    agent.done("POST", "/v1/accounts/a/topup", Some(&json!({ "amount": "1000000", "bucket": "paid", "payment": "p" })));
    for (nth, job) in jobs.iter().enumerate() {
        agent.done("POST", "/v1/jobs", Some(&json!({ "job": format!("job-{nth}"), "account": "a", "cgroups": paths(job) })));
    }
    for round in 0..3 {
        let facts = |agent: &Agent| agent.done("GET", "/v1/status", None)["journal"]["seq"].as_u64().unwrap();
        let before = facts(&agent);
        agent.wait_for("half of the ticks between two checkpoints", |agent| before + 30 < facts(agent));
        let known = agent.done("GET", "/v1/jobs", None);
        agent.kill();
        let began = Instant::now();
        agent.launch();
        let took = began.elapsed();
        let jobs = agent.done("GET", "/v1/jobs", None);
        let running = jobs["jobs"].as_array().unwrap().iter().filter(|job| job["phase"] == "running").count();
        assert_eq!(running, JOBS, "round {round}: all are metered again; before: {known}");
        let (replayed, read_ms) = (logged(&agent, "recovered", "replayed"), logged(&agent, "recovered", "took_ms"));
        assert!(replayed < REPLAY_MAX, "{replayed} facts were replayed");
        println!("{JOBS} jobs: ready {took:?} after the start of the process; {replayed} facts replayed, read and applied in {read_ms} ms");
    }
}
