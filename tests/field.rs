//! What went wrong at others, in its own circumstances, against the real agent. The number is that of the failure in the field.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/agent.rs"]
#[expect(dead_code, reason = "each test takes what it needs")]
mod agent;
#[path = "support/cgroup.rs"]
mod cgroup;
#[path = "states/node.rs"]
#[expect(dead_code, reason = "each test takes what it needs")]
mod node;
#[path = "support/mod.rs"]
mod support;

use std::process::Command;
use std::time::Duration;

use agent::Agent;
use node::{Node, cpu_ns};
use serde_json::{Value, json};

/// nano-credits of an amount.
fn nano(value: &Value) -> u128 {
    let text = value.as_str().unwrap();
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    format!("{whole}{fraction:0<9}").parse().unwrap()
}

fn settled(node: &Node, account: &str) -> u128 {
    nano(&node.agent.done("GET", &format!("/v1/accounts/{account}"), None)["authority"]["settled"])
}

/// Credit ran out and running work was killed with it. Here the work stands still, and goes on where it stood.
#[test]
fn f1_exhaustion_freezes_work_in_flight_and_never_kills_it() {
    let Some(mut node) = Node::new("f1", 1) else { return };
    node.agent.launch();
    node.account("short", "0.05");
    node.start_job(0, "short");
    let pid = node.jobs[0].tasks[0].id();
    node.agent.wait_for("nothing is left, by the authority's word", |agent| {
        agent.done("GET", "/v1/accounts/short", None)["node"]["state"] == "exhausted" && node.jobs[0].is_frozen()
    });
    std::thread::sleep(Duration::from_millis(500));
    assert!(node.jobs[0].tasks[0].try_wait().unwrap().is_none(), "the task lives");
    node.top_up("short", "1000", "second");
    node.agent.wait_for("it goes on", |_| !node.jobs[0].is_frozen());
    node.wait_until_counted_on(0);
    assert_eq!(node.jobs[0].tasks[0].id(), pid);
    let receipt = node.end_job(0);
    assert_eq!(receipt["outcome"], json!("completed"));
}

/// The window was closed, the workload lived, and nothing reopened it. Here a stop of what still runs is noted, and metered on.
#[test]
fn f4_what_runs_on_after_its_stop_was_reported_is_metered_on_also_by_the_next_agent() {
    let Some(mut node) = Node::new("f4", 1) else { return };
    node.burning();
    node.agent.done("POST", "/v1/jobs/job-0/stop", Some(&json!({ "outcome": "completed" })));
    node.wait_until_counted_on(0);
    node.agent.kill();
    node.agent.launch();
    node.wait_until_counted_on(0);
    assert_eq!(node.phase(0), "running");
    node.end_job(0);
}

/// After a restart old counters were billed again. Here what a cgroup had used before its job, and before a restart, is not the job's twice.
#[test]
fn f8_a_restart_bills_no_old_counter() {
    let Some(mut node) = Node::new("f8", 1) else { return };
    node.agent.launch();
    node.account("rich", "1000000");
    // Somebody else's work in the same cgroup, before the job.
    node.jobs[0].burn();
    node.jobs[0].go();
    node.agent.wait_for("there is old use", |_| 300_000_000 < node.jobs[0].cpu_ns());
    node.jobs[0].end_tasks();
    node.start_job(0, "rich");
    for _ in 0..3 {
        node.wait_until_counted_on(0);
        node.agent.kill();
        node.agent.launch();
    }
    let receipt = node.end_job(0);
    node.agent.wait_for("all is settled", |_| settled(&node, "rich") == nano(&receipt["drawn"]));
}

/// Sessions were settled from memory, and every deployment dropped those that lived. Here they outlive deployments and crashes.
#[test]
fn f11_jobs_that_live_through_deployments_are_settled_in_full() {
    let Some(mut node) = Node::new("f11", 2) else { return };
    node.burning();
    for signal in ["TERM", "KILL", "TERM"] {
        node.wait_until_counted_on(0);
        node.wait_until_counted_on(1);
        node.agent.signal(signal);
        node.agent.exit_code();
        node.agent.launch();
    }
    let drawn = nano(&node.end_job(0)["drawn"]) + nano(&node.end_job(1)["drawn"]);
    node.agent.wait_for("both are settled in full", |_| settled(&node, "rich") == drawn);
}

/// A job was suspended and resumed without end, by a tick that reported too little and by credit in drops. Here each thaw of an account that
/// runs empty right after it was funded comes later than the one before.
#[test]
fn f14_credit_in_drops_thaws_a_job_later_each_time() {
    let wall = "card = \"c\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n[[line]]\nid = \"wall\"\nmeter = \"wall_time\"\nprice = \"1\"\nunit = \"second\"\n";
    let Some(mut node) = Node::with_card("f14", 1, wall) else { return };
    node.agent.launch();
    node.account("drops", "0.3");
    node.start_job(0, "drops");
    for drop in 0..5 {
        node.agent.wait_for("it stands still, nothing is left", |_| node.jobs[0].is_frozen() && node.phase(0) == "frozen");
        node.top_up("drops", "0.3", &format!("drop-{drop}"));
        // It runs for 0.3 s, which may pass between two looks on a busy machine.
        node.agent.wait_for("it went on", |agent| waits_ns(agent).len() == drop + 1);
    }
    let waits = waits_ns(&node.agent);
    for (wait, least_s) in waits.iter().zip([0, 0, 1, 2, 4]) {
        assert!(least_s * 1_000_000_000 <= *wait, "{waits:?}");
    }
    node.end_job(0);
}

/// From each time that a job was funded to its thaw.
fn waits_ns(agent: &Agent) -> Vec<u64> {
    let at = |step: &Value| step["mono_ns"].as_u64().unwrap();
    let (mut funded, mut waits) = (None, Vec::new());
    for step in agent.done("GET", "/v1/jobs/job-0/why", None)["steps"].as_array().unwrap() {
        let event = &step["event"];
        if event.get("funded").is_some() {
            funded = Some(at(step));
        } else if event["acted"]["act"] == "thaw" {
            waits.extend(funded.take().map(|funded| at(step) - funded));
        }
    }
    waits
}

/// The gate stood at the front door only. Here it stands on every way in: start, restart of the agent, requeue, a hook's spool, a thaw by hand.
#[test]
fn f15_no_way_in_goes_past_the_gate() {
    let Some(mut node) = Node::new("f15", 2) else { return };
    node.agent.launch();
    node.account("short", "0.05");
    node.start_job(0, "short");
    node.agent.wait_for("nothing is left", |agent| agent.done("GET", "/v1/accounts/short", None)["node"]["state"] == "exhausted");
    node.jobs[1].burn();
    let start = |node: &Node, name: &str| {
        let body = json!({ "job": name, "account": "short", "cgroups": cgroup::paths(&node.jobs[1]) });
        node.agent.ask("POST", "/v1/jobs", Some(&body)).1["error"]["code"].clone()
    };
    assert_eq!(start(&node, "first"), json!("no_credit"));
    assert_eq!(start(&node, "job-0.r1"), json!("no_credit"), "a requeue");
    node.agent.kill();
    let spool = node.agent.path("state/spool").display().to_string();
    let place = node.jobs[1].v2.display().to_string();
    node.meterctl(&["job", "start", "--job", "spooled", "--account", "short", "--cgroup", &place, "--hook", "--spool", &spool]);
    assert_eq!(std::fs::read_dir(&spool).unwrap().count(), 1, "the hook wrote it down");
    node.agent.launch();
    assert_eq!(start(&node, "after"), json!("no_credit"), "a new agent");
    node.agent.wait_for("the spooled call is decided", |_| std::fs::read_dir(&spool).unwrap().count() == 0);
    assert_eq!(node.agent.ask("GET", "/v1/jobs/spooled", None).0, 404);
    assert!(node.agent.log().contains("no_credit"), "and that is said: {}", node.agent.log());
    // Woken by hand: frozen again, and what it used meanwhile is known.
    std::fs::write(node.jobs[0].v2.join("cgroup.freeze"), "0").unwrap();
    node.agent.wait_for("it is seen and frozen again", |_| {
        let why = node.agent.done("GET", "/v1/jobs/job-0/why", None);
        node.jobs[0].is_frozen() && why["steps"].as_array().unwrap().iter().any(|step| step["event"] == "found_thawed")
    });
    node.top_up("short", "1000", "second");
    node.agent.wait_for("with credit the gate is open", |_| node.phase(0) == "running");
    node.end_job(0);
}

/// A charge's name was made of the wall clock: a cancelled job was charged twice, and an instant cancel cost 660 units.
#[test]
fn f20_an_instant_cancel_repeated_by_everybody_costs_what_was_used_once() {
    let Some(mut node) = Node::new("f20", 1) else { return };
    node.agent.launch();
    node.account("rich", "1000000");
    node.start_job(0, "rich");
    node.agent.wait_for("it has worked", |_| 20_000_000 < node.jobs[0].used_ns());
    node.jobs[0].end_tasks();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let agent = &node.agent;
            scope.spawn(move || agent.ask("POST", "/v1/jobs/job-0/stop", Some(&json!({ "outcome": "cancelled" }))));
        }
    });
    node.agent.kill();
    node.agent.launch();
    node.agent.ask("POST", "/v1/jobs/job-0/stop", Some(&json!({ "outcome": "cancelled" })));
    let path = "/v1/jobs/job-0/receipt";
    node.agent.wait_for("the receipt is final", |agent| agent.done("GET", path, None)["state"] == "final");
    let receipt = node.agent.done("GET", path, None);
    assert_eq!(cpu_ns(&receipt), node.jobs[0].used_ns());
    assert!(20_000_000 < cpu_ns(&receipt) && 0 < nano(&receipt["charge"]), "it costs something: {receipt}");
    node.agent.wait_for("it is settled once", |_| settled(&node, "rich") == nano(&receipt["charge"]));
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(settled(&node, "rich"), nano(&receipt["charge"]));
    let jobs = node.agent.done("GET", "/v1/jobs", None);
    assert_eq!(jobs["jobs"].as_array().unwrap().len(), 1, "one attempt: {jobs}");
}

/// An outage of the meter looked like no use at all. Here the counter is billed in full, what nobody can know is a gap, and the absence shows.
#[test]
fn f24_an_outage_of_the_meter_is_a_gap_and_never_zero_use() {
    let Some(mut node) = Node::new("f24", 1) else { return };
    node.burning();
    node.wait_until_counted_on(0);
    node.agent.kill();
    assert!(node.agent.try_ask("GET", "/metrics", None).is_none(), "no agent, no series: nothing reads as zero");
    let before = node.jobs[0].used_ns();
    std::thread::sleep(Duration::from_millis(1_500));
    let meanwhile = node.jobs[0].used_ns() - before;
    node.agent.launch();
    node.wait_for_alarm("crashed");
    let receipt = node.end_job(0);
    assert!(0 < meanwhile && meanwhile < cpu_ns(&receipt), "what was used meanwhile is billed");
    let gap = |gap: &&Value| gap["meter"] == "memory_charged" && gap["why"] == "agent_down" && gap["rule"] == "not_billed";
    assert!(receipt["gaps"].as_array().unwrap().iter().any(|found| gap(&found)), "{receipt}");
}

/// A spending cap knew the prices of many meters and looked at one. Here credit runs out by whatever is priced: an idle job by its time.
#[test]
fn f26_every_priced_meter_counts_towards_the_end_of_the_credit() {
    let card = |line: &str| {
        format!(
            "card = \"c\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n[[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"0.000001\"\nunit = \"core-hour\"\n{line}"
        )
    };
    let wall = "[[line]]\nid = \"wall\"\nmeter = \"wall_time\"\nprice = \"1\"\nunit = \"second\"\n";
    let memory = "[[line]]\nid = \"memory\"\nmeter = \"memory_charged\"\nprice = \"10\"\nunit = \"MiB-second\"\n";
    for (name, line) in [("f26-wall", wall), ("f26-memory", memory)] {
        let Some(mut node) = Node::with_card(name, 1, &card(line)) else { return };
        node.agent.launch();
        node.account("short", "1");
        // It sleeps: its CPU time is as good as nothing.
        let task = Command::new("sleep").arg("100000").spawn().unwrap();
        for dir in &node.jobs[0].all {
            std::fs::write(dir.join("cgroup.procs"), task.id().to_string()).unwrap();
        }
        node.jobs[0].tasks.push(task);
        node.agent.done("POST", "/v1/jobs", Some(&json!({ "job": "job-0", "account": "short", "cgroups": cgroup::paths(&node.jobs[0]) })));
        // Memory that is charged to it: what it touches once it is in.
        let touch = format!(
            "echo $$ > {}/cgroup.procs; head -c 3M /dev/zero | tail -c 3M > /dev/null; exec sleep 100000",
            node.jobs[0].all.last().unwrap().display()
        );
        node.jobs[0].tasks.push(Command::new("sh").args(["-c", &touch]).spawn().unwrap());
        node.agent.wait_for("an idle job is frozen when its account is empty", |_| node.jobs[0].is_frozen());
        node.jobs[0].end_tasks();
        node.agent.done("POST", "/v1/jobs/job-0/stop", Some(&json!({ "outcome": "completed" })));
        node.agent.wait_for("the receipt is final", |agent| agent.done("GET", "/v1/jobs/job-0/receipt", None)["state"] == "final");
        let receipt = node.agent.done("GET", "/v1/jobs/job-0/receipt", None);
        assert_eq!(nano(&receipt["drawn"]), 1_000_000_000, "{name}: {receipt}");
        let lines = receipt["segments"][0]["lines"].as_array().unwrap();
        let dearest = lines.iter().max_by_key(|line| nano(&line["cost"])).unwrap();
        assert_ne!(dearest["line"], json!("cpu"), "{name}: {receipt}");
    }
}
