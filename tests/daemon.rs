//! The real agent, the real kernel, and SIGKILL.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/agent.rs"]
mod agent;
#[path = "support/cgroup.rs"]
mod cgroup;
#[path = "stub_nvml/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the stub")]
mod stub_nvml;
#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use agent::Agent;
use cgroup::{Cgroup, cgroups, paths};
use serde_json::{Value, json};

/// Priced so that nano-credits do not divide evenly: 0.0417 credits a core-hour, and a start that is not round either.
const CARD: &str = r#"
card = "test"
version = 1
effective_from = "2026-01-01T00:00:00Z"
[[line]]
id = "cpu"
meter = "cpu_time"
price = "417.0417"
unit = "core-hour"
"#;

fn phase(agent: &Agent, job: &str) -> String {
    agent.done("GET", &format!("/v1/jobs/{job}"), None)["phase"].as_str().unwrap_or("").to_owned()
}

/// nano-credits of CPU nanoseconds at 417.0417 credits a core-hour, rounded down, in plain integers.
fn price_nano(cpu_ns: u128) -> u128 {
    cpu_ns * 4_170_417 * 1_000_000_000 / (10_000 * 3_600 * 1_000_000_000)
}

/// A decimal amount in nano-credits.
fn nano(value: &Value) -> u128 {
    let text = value.as_str().unwrap();
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    format!("{whole}{fraction:0<9}").parse().unwrap()
}

fn number(name: &str, otherwise: usize) -> usize {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// `METERD_KILLS=200 METERD_KILL_JOBS=50` for the long form.
#[test]
fn g2_twenty_sigkills_under_ten_jobs_neither_lose_nor_double_a_nano_credit() {
    let (kills, count) = (number("METERD_KILLS", 20), number("METERD_KILL_JOBS", 10));
    let rich = count * 7 / 10;
    let Some(mut jobs) = cgroups("kill", count) else { return };
    let mut agent = Agent::start(CARD, "enforcement = \"enforce\"", "");
    for (account, credit) in [("rich", "1000000"), ("short", "0.35")] {
        agent.done("POST", "/v1/accounts", Some(&json!({ "account": account })));
        agent.done(
            "POST",
            &format!("/v1/accounts/{account}/topup"),
            Some(&json!({ "amount": credit, "bucket": "paid", "payment": format!("p-{account}") })),
        );
    }
    for (nth, job) in jobs.iter_mut().enumerate() {
        job.burn();
        job.note_baseline();
        let account = if nth < rich { "rich" } else { "short" };
        agent.done("POST", "/v1/jobs", Some(&json!({ "job": format!("job-{nth}"), "account": account, "cgroups": paths(job) })));
        job.go();
    }
    let mut seen_frozen: BTreeMap<usize, bool> = BTreeMap::new();
    let mut seed = u64::from(std::process::id()) | 1;
    println!("{kills} SIGKILLs under {count} jobs, seed {seed}");
    let mut ready = Vec::with_capacity(kills);
    for _ in 0..kills {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_millis(50 + (seed >> 33) % 700));
        agent.kill();
        for (nth, job) in jobs.iter().enumerate() {
            let frozen = job.is_frozen();
            assert!(!frozen || rich <= nth, "job-{nth} has credit and is frozen");
            assert!(frozen || !seen_frozen.get(&nth).copied().unwrap_or(false), "job-{nth} was frozen and runs");
            seen_frozen.insert(nth, frozen);
        }
        let began = Instant::now();
        agent.launch();
        ready.push(began.elapsed());
    }
    ready.sort();
    println!("from the start of the process to ready: median {:?}, longest {:?}", ready[kills / 2], ready[kills - 1]);
    agent.wait_for("the short account's jobs are frozen", |agent| (rich..count).all(|nth| phase(agent, &format!("job-{nth}")) == "frozen"));
    assert!((0..rich).all(|nth| !jobs[nth].is_frozen()), "a job with credit is frozen");
    for (nth, job) in jobs.iter_mut().enumerate() {
        job.end_tasks();
        agent.done("POST", &format!("/v1/jobs/job-{nth}/stop"), Some(&json!({ "outcome": "cancelled" })));
    }
    let mut drawn = BTreeMap::from([("rich", 0), ("short", 0)]);
    for (nth, job) in jobs.iter().enumerate() {
        let path = format!("/v1/jobs/job-{nth}/receipt");
        agent.wait_for("the receipt is final", |agent| agent.done("GET", &path, None)["state"] == "final");
        let receipt = agent.done("GET", &path, None);
        let counted: u128 = receipt["segments"]
            .as_array()
            .unwrap()
            .iter()
            .map(|segment| segment["cpu_ns"].as_str().unwrap().parse::<u128>().unwrap())
            .sum();
        assert_eq!(counted, job.used_ns(), "job-{nth}: the receipt's CPU time is the kernel's");
        assert_eq!(nano(&receipt["charge"]), price_nano(job.used_ns()), "job-{nth}: the charge is the price of the kernel's counter");
        assert_eq!(nano(&receipt["charge"]), nano(&receipt["drawn"]) + nano(&receipt["unfunded"]), "job-{nth}");
        if nth < rich {
            assert_eq!(nano(&receipt["unfunded"]), 0, "job-{nth} had credit all the time");
        }
        *drawn.get_mut(if nth < rich { "rich" } else { "short" }).unwrap() += nano(&receipt["drawn"]);
    }
    for (account, drawn) in drawn {
        let path = format!("/v1/accounts/{account}");
        agent.wait_for("all is settled", |agent| nano(&agent.done("GET", &path, None)["authority"]["settled"]) == drawn);
    }
    assert_eq!(
        nano(&agent.done("GET", "/v1/accounts/short", None)["authority"]["settled"]),
        350_000_000,
        "the short account paid all that it had"
    );
    println!("{count} receipts: each CPU time is the kernel's counter, each charge its price, each account settled what was drawn");
}

/// The same card, dearer.
fn second_card() -> String {
    CARD.replace("version = 1", "version = 2").replace("417.0417", "834.0834")
}

#[test]
fn a_running_job_is_split_at_a_change_of_card_without_a_hole_or_an_overlap() {
    let Some(mut jobs) = cgroups("card", 1) else { return };
    let agent = Agent::start(CARD, "enforcement = \"observe\"", "");
    agent.done("POST", "/v1/accounts", Some(&json!({ "account": "a" })));
    agent.done("POST", "/v1/accounts/a/topup", Some(&json!({ "amount": "1000", "bucket": "free", "payment": "p" })));
    let job = &mut jobs[0];
    job.burn();
    job.note_baseline();
    agent.done("POST", "/v1/jobs", Some(&json!({ "job": "split", "account": "a", "cgroups": paths(job) })));
    job.go();
    std::thread::sleep(Duration::from_millis(1_500));
    std::fs::write(agent.path("card.toml"), second_card()).unwrap();
    agent.signal("HUP");
    agent.wait_for("the second card is in force", |agent| agent.done("GET", "/v1/status", None)["card"]["version"] == 2);
    std::thread::sleep(Duration::from_millis(1_500));
    job.end_tasks();
    agent.done("POST", "/v1/jobs/split/stop", Some(&json!({ "outcome": "completed", "exit_code": 0 })));
    agent.wait_for("the receipt is final", |agent| agent.done("GET", "/v1/jobs/split/receipt", None)["state"] == "final");
    let receipt = agent.done("GET", "/v1/jobs/split/receipt", None);
    let used: Vec<u128> =
        receipt["segments"].as_array().unwrap().iter().map(|segment| segment["cpu_ns"].as_str().unwrap().parse().unwrap()).collect();
    assert_eq!(used.len(), 2, "one segment a card: {receipt}");
    assert!(0 < used[0] && 0 < used[1]);
    assert_eq!(used[0] + used[1], jobs[0].used_ns(), "no hole and no overlap");
    let dearer = used[1] * 8_340_834 * 1_000_000_000 / (10_000 * 3_600 * 1_000_000_000);
    assert_eq!(nano(&receipt["charge"]), price_nano(used[0]) + dearer);
}

#[test]
fn a_broken_config_or_card_or_request_is_named_whole_and_changes_nothing() {
    let agent = Agent::start(CARD, "enforcement = \"enforce\"", "");
    agent.done("POST", "/v1/accounts", Some(&json!({ "account": "a" })));
    let card = agent.done("GET", "/v1/status", None)["card"].clone();
    let broken_card = "card = \"te st\"\nversion = 0\neffective_from = \"soon\"\nversoin = 2\n[[line]]\nid = \"x\"\nmeter = \"cpu\"\nprice = 1.5\nunit = \"hour\"\n\
                       [[line]]\nid = \"y\"\nmeter = \"cpu_time\"\nprice = \"-1\"\nunit = \"core-year\"\nper = 0\nround = \"sideways\"\n";
    let good = std::fs::read_to_string(agent.path("meterd.toml")).unwrap();
    for (file, text, places) in [
        (
            "card.toml",
            broken_card.to_owned(),
            vec![
                "card.toml:1:",
                "card.toml:2:",
                "card.toml:3:",
                "card.toml:4:",
                "card.toml:7:",
                "card.toml:8:",
                "card.toml:13:",
                "card.toml:14:",
                "card.toml:15:",
                "card.toml:16:",
            ],
        ),
        (
            "meterd.toml",
            good.replace("enforcement = \"enforce\"", "enforcement = \"hard\"\ninterval_ms = 1\nnod = \"x\""),
            vec!["meterd.toml:5:", "meterd.toml:6:", "meterd.toml:7:"],
        ),
    ] {
        let before = std::fs::read_to_string(agent.path(file)).unwrap();
        std::fs::write(agent.path(file), text).unwrap();
        agent.signal("HUP");
        agent.wait_for("every mistake is in the log", |agent| places.iter().all(|place| agent.log().contains(place)));
        std::fs::write(agent.path(file), before).unwrap();
        let status = agent.done("GET", "/v1/status", None);
        assert_eq!((&status["card"], &status["enforcement"]), (&card, &json!("enforce")), "the last good ones go on");
    }
    let (status, answer) = agent.ask(
        "POST",
        "/v1/jobs",
        Some(&json!({
            "job": "a b", "account": 7, "uid": -1, "cgroups": ["relative", "/a/../b"], "slurm": { "job_id": 0 }, "gpus": [-1, "x"],
            "time_limit_s": 0, "cpus": "many", "memory_bytes": 1.5, "color": "red"
        })),
    );
    assert_eq!(status, 422, "{answer}");
    assert!(10 <= answer["errors"].as_array().unwrap().len(), "every mistake at once: {answer}");
    assert_eq!(agent.done("GET", "/v1/jobs", None)["jobs"].as_array().map(Vec::len), Some(0), "nothing was started");
    assert_eq!(nano(&agent.done("GET", "/v1/accounts/a", None)["authority"]["settled"]), 0, "nothing was charged");
}

#[test]
fn f17_f18_a_gpu_is_held_by_one_job_at_a_time_and_seen_and_charged_though_nobody_uses_it() {
    let Some(mut jobs) = cgroups("gpu", 2) else { return };
    let stub = stub_nvml::Stub::new("gpu 0 GPU-00000000-0000-0000-0000-000000000001 85899345920 1048576 NVIDIA H100 80GB HBM3\ncycle 0 50");
    let card = CARD.to_owned()
        + "[[line]]\nid = \"h100\"\nmeter = \"gpu_held\"\nprice = \"3.5\"\nunit = \"gpu-hour\"\ngpu_model = \"NVIDIA H100*\"\n";
    let mut agent = Agent::start(&card, "enforcement = \"enforce\"", &format!("[gpu]\nlibrary = \"{}\"", stub.library().display()));
    agent.done("POST", "/v1/accounts", Some(&json!({ "account": "a" })));
    agent.done("POST", "/v1/accounts/a/topup", Some(&json!({ "amount": "1000", "bucket": "paid", "payment": "p" })));
    agent.wait_for("the GPU is seen", |agent| agent.done("GET", "/v1/status", None)["gpus"].to_string().contains('1'));
    jobs[0].burn();
    let start = |job: &str, cgroup: &Cgroup| json!({ "job": job, "account": "a", "cgroups": paths(cgroup), "gpus": [0] });
    agent.wait_for("the GPU is known by its index", |agent| agent.ask("POST", "/v1/jobs", Some(&start("one", &jobs[0]))).0 < 300);
    let (status, answer) = agent.ask("POST", "/v1/jobs", Some(&start("two", &jobs[1])));
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("gpu_held")), "{answer}");
    // No process of the job is on the device: it is held all the same, and anybody who looks at the job sees it.
    let shown = agent.done("GET", "/v1/jobs/one", None);
    assert_eq!(shown["gpus"][0]["gpu"], "GPU-00000000-0000-0000-0000-000000000001", "{shown}");
    std::thread::sleep(Duration::from_millis(1_200));
    agent.kill();
    std::thread::sleep(Duration::from_millis(700));
    agent.launch();
    std::thread::sleep(Duration::from_millis(1_200));
    jobs[0].end_tasks();
    agent.done("POST", "/v1/jobs/one/stop", Some(&json!({ "outcome": "completed" })));
    agent.wait_for("the receipt is final", |agent| agent.done("GET", "/v1/jobs/one/receipt", None)["state"] == "final");
    let receipt = agent.done("GET", "/v1/jobs/one/receipt", None);
    let segment = &receipt["segments"][0];
    let held: u128 = segment["gpus"][0]["held_ns"].as_str().unwrap().parse().unwrap();
    assert_eq!(segment["gpus"][0]["held_ns"], segment["running_ns"], "held for as long as it ran, the agent's absence included");
    assert!(3_000_000_000 < held, "held over the agent's absence: {held} ns");
    let line = segment["lines"].as_array().unwrap().iter().find(|line| line["line"] == "h100").unwrap();
    assert_eq!(nano(&line["cost"]), held * 35 * 1_000_000_000 / (10 * 3_600 * 1_000_000_000));
    agent.wait_for("the GPU can be held again", |agent| agent.ask("POST", "/v1/jobs", Some(&start("two", &jobs[1]))).0 < 300);
}

#[test]
fn sigterm_ends_the_agent_with_everything_on_disk_and_leaves_the_frozen_frozen() {
    let Some(mut jobs) = cgroups("term", 1) else { return };
    let mut agent = Agent::start(CARD, "enforcement = \"enforce\"", "");
    agent.done("POST", "/v1/accounts", Some(&json!({ "account": "a" })));
    agent.done("POST", "/v1/accounts/a/topup", Some(&json!({ "amount": "0.05", "bucket": "paid", "payment": "p" })));
    let job = &mut jobs[0];
    job.burn();
    agent.done("POST", "/v1/jobs", Some(&json!({ "job": "j", "account": "a", "cgroups": paths(job) })));
    job.go();
    agent.wait_for("the job is frozen", |agent| phase(agent, "j") == "frozen");
    agent.signal("TERM");
    assert_eq!(agent.exit_code(), Some(0));
    assert!(jobs[0].is_frozen(), "an agent that ends thaws nothing");
    agent.launch();
    assert_eq!(phase(&agent, "j"), "frozen");
    agent.done("POST", "/v1/accounts/a/topup", Some(&json!({ "amount": "1000", "bucket": "paid", "payment": "p2" })));
    agent.wait_for("the job is thawed", |agent| phase(agent, "j") == "running");
    assert!(!jobs[0].is_frozen());
}

#[test]
fn what_a_hook_wrote_down_while_the_agent_was_away_is_done_when_it_is_back() {
    let Some(mut jobs) = cgroups("spool", 1) else { return };
    let mut agent = Agent::start(CARD, "enforcement = \"enforce\"", "");
    agent.done("POST", "/v1/accounts", Some(&json!({ "account": "a" })));
    agent.done("POST", "/v1/accounts/a/topup", Some(&json!({ "amount": "1000", "bucket": "paid", "payment": "p" })));
    agent.kill();
    let job = &mut jobs[0];
    job.burn();
    let hook = |agent: &Agent, words: &[&str]| {
        let (socket, spool) = (agent.path("run/meterd.sock"), agent.path("state/spool"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_meterctl"));
        command.arg("--socket").arg(socket).args(words).arg("--hook").arg("--spool").arg(spool);
        assert!(command.status().unwrap().success(), "a hook never fails the scheduler's job");
    };
    let v2 = job.v2.display().to_string();
    hook(&agent, &["job", "start", "--job", "late", "--account", "a", "--cgroup", &v2]);
    agent.launch();
    agent.wait_for("the spooled start is done", |agent| agent.ask("GET", "/v1/jobs/late", None).0 == 200);
    agent.kill();
    jobs[0].end_tasks();
    hook(&agent, &["job", "stop", "late", "--exit-code", "3", "--outcome", "failed"]);
    agent.launch();
    agent.wait_for("the spooled stop is done", |agent| agent.done("GET", "/v1/jobs/late/receipt", None)["state"] == "final");
    let receipt = agent.done("GET", "/v1/jobs/late/receipt", None);
    assert_eq!((&receipt["outcome"], &receipt["exit_code"]), (&json!("failed"), &json!(3)));
    assert_eq!(std::fs::read_dir(agent.path("state/spool")).unwrap().count(), 0, "what is done is gone");
}
