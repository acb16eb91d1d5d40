//! Real jobs on agents that share one authority.

use serde_json::{Value, json};

use crate::agent::Agent;
use crate::cgroup::{Cgroup, paths};
use crate::process::nano;

pub(crate) fn start(agent: &Agent, job: &mut Cgroup, name: &str, account: &str) {
    job.burn();
    job.note_baseline();
    agent.done("POST", "/v1/jobs", Some(&json!({ "job": name, "account": account, "cgroups": paths(job) })));
    job.go();
}

pub(crate) fn phase(agent: &Agent, name: &str) -> String {
    agent.done("GET", &format!("/v1/jobs/{name}"), None)["phase"].as_str().unwrap().to_owned()
}

/// Ends a job; its receipt, whose charge is the price of the kernel's counter.
pub(crate) fn end(agent: &Agent, job: &mut Cgroup, name: &str) -> Value {
    job.end_tasks();
    agent.done("POST", &format!("/v1/jobs/{name}/stop"), Some(&json!({ "outcome": "cancelled" })));
    let path = format!("/v1/jobs/{name}/receipt");
    agent.wait_for("the receipt is final", |agent| agent.done("GET", &path, None)["state"] == "final");
    let receipt = agent.done("GET", &path, None);
    assert_eq!(nano(&receipt["charge"]), price_nano(job.used_ns()), "{name}: the charge is the price of the kernel's counter");
    assert_eq!(nano(&receipt["charge"]), nano(&receipt["drawn"]) + nano(&receipt["unfunded"]), "{name}");
    receipt
}

/// nano-credits of CPU nanoseconds at 417.0417 credits a core-hour, rounded down, in plain integers.
pub(crate) fn price_nano(cpu_ns: u128) -> i128 {
    i128::try_from(cpu_ns * 4_170_417 * 1_000_000_000 / (10_000 * 3_600 * 1_000_000_000)).unwrap()
}
