//! The agent keeps to what it may cost: it looks less often, and says so.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/agent.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the agent")]
mod agent;

use agent::Agent;
use serde_json::Value;

const CARD: &str = r#"
card = "test"
version = 1
effective_from = "2026-01-01T00:00:00Z"
[[line]]
id = "cpu"
meter = "cpu_time"
price = "1"
unit = "core-hour"
"#;

fn interval_ms(agent: &Agent) -> u64 {
    agent.done("GET", "/v1/status", None)["agent"]["interval_ns"].as_u64().unwrap() / 1_000_000
}

#[test]
fn an_agent_over_its_budget_widens_its_interval_and_says_so() {
    // No process fits one mebibyte.
    let agent = Agent::start(CARD, "interval_ms = 100", "[budget]\nmemory_mib = 1\n");
    agent.wait_for("the interval is widened twice", |agent| 400 <= interval_ms(agent));
    let status = agent.done("GET", "/v1/status", None);
    assert_eq!(status["agent"]["over_budget"], Value::from("memory"));
    let alarm = status["alarms"].as_array().unwrap().iter().find(|alarm| alarm["code"] == "over_budget").unwrap().clone();
    assert!(alarm["message"].as_str().unwrap().contains("more memory than [budget] allows"), "{alarm}");
    let (_, metrics) = agent.ask("GET", "/metrics", None);
    let metrics = metrics.as_str().unwrap();
    assert!(metrics.contains("meterd_alarm{alarm=\"over_budget\"} 1\n"), "{metrics}");
    assert!(
        metrics.contains("meterd_over_budget{of=\"memory\"} 1\n") && metrics.contains("meterd_over_budget{of=\"cpu\"} 0\n"),
        "{metrics}"
    );
    assert!(agent.log().contains("over_budget"), "{}", agent.log());
    agent.wait_for("it stays ready at the wider interval", |agent| agent.ask("GET", "/readyz", None).0 == 200 && 800 <= interval_ms(agent));
}

#[test]
fn an_agent_within_its_budget_keeps_its_interval_and_tells_what_it_costs() {
    let agent = Agent::start(CARD, "interval_ms = 100", "[budget]\ncpu_percent = 1000\nmemory_mib = 4096\n");
    agent.wait_for("twenty ticks", |agent| 20 <= agent.done("GET", "/v1/status", None)["agent"]["tick_count"].as_u64().unwrap());
    let status = agent.done("GET", "/v1/status", None);
    assert_eq!((interval_ms(&agent), &status["agent"]["over_budget"]), (100, &Value::Null));
    assert!(!status["alarms"].to_string().contains("over_budget"), "{status}");
    let (_, metrics) = agent.ask("GET", "/metrics", None);
    let metrics = metrics.as_str().unwrap();
    for name in [
        "meterd_thread_cpu_seconds_total{thread=\"meterd-loop\"}",
        "meterd_process_open_fds ",
        "meterd_process_resident_memory_bytes ",
        "meterd_tick_lateness_seconds ",
        "meterd_journal_commits_total ",
        "meterd_journal_bytes_total ",
    ] {
        assert!(metrics.contains(name), "{name} is not in\n{metrics}");
    }
}
