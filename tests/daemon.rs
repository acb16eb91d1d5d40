//! The real agent, the real kernel, and SIGKILL.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/agent.rs"]
mod agent;
#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use agent::Agent;
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

/// Directories of one job, in every hierarchy that this machine has; removed at the end, whatever happens.
struct Cgroup {
    v2: PathBuf,
    all: Vec<PathBuf>,
    tasks: Vec<Child>,
    /// The counter when the job was started: its shell had used a little by then.
    baseline_ns: u128,
}

impl Cgroup {
    fn make(name: &str) -> Result<Cgroup, String> {
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let v2 = PathBuf::from(if unified { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/unified" }).join(name);
        let mut all = vec![v2.clone()];
        if !unified {
            all.push(Path::new("/sys/fs/cgroup/memory").join(name));
        }
        for dir in &all {
            std::fs::create_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        }
        Ok(Cgroup { v2, all, tasks: Vec::new(), baseline_ns: 0 })
    }

    /// A task that burns all it gets.
    fn burn(&mut self) {
        let child = Command::new("/bin/sh").args(["-c", "read go; while :; do :; done"]).stdin(Stdio::piped()).spawn().unwrap();
        for dir in &self.all {
            std::fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        self.tasks.push(child);
    }

    fn go(&mut self) {
        self.tasks.iter_mut().for_each(|task| drop(task.stdin.take()));
    }

    /// The kernel's own counter, in nanoseconds.
    fn cpu_ns(&self) -> u128 {
        let text = std::fs::read_to_string(self.v2.join("cpu.stat")).unwrap();
        let usec: u128 = text.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap().parse().unwrap();
        usec * 1_000
    }

    /// What was used since the start, in nanoseconds.
    fn used_ns(&self) -> u128 {
        self.cpu_ns() - self.baseline_ns
    }

    /// Waits until the task waits for its word, and its counter stands still.
    fn note_baseline(&mut self) {
        let waits = |task: &Child| std::fs::read_to_string(format!("/proc/{}/stat", task.id())).unwrap().contains(") S ");
        loop {
            let before = self.cpu_ns();
            std::thread::sleep(Duration::from_millis(30));
            if self.tasks.iter().all(waits) && before == self.cpu_ns() {
                self.baseline_ns = before;
                return;
            }
        }
    }

    fn is_frozen(&self) -> bool {
        std::fs::read_to_string(self.v2.join("cgroup.events")).unwrap().contains("frozen 1")
    }

    fn end_tasks(&mut self) {
        for task in &mut self.tasks {
            task.kill().unwrap();
            task.wait().unwrap();
        }
        self.tasks.clear();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        drop(std::fs::write(self.v2.join("cgroup.freeze"), "0"));
        for task in &mut self.tasks {
            drop(task.kill());
            drop(task.wait());
        }
        for dir in &self.all {
            drop(std::fs::remove_dir(dir));
        }
    }
}

fn cgroups(prefix: &str, count: usize) -> Option<Vec<Cgroup>> {
    let name = |nth| format!("meterd-test-{prefix}-{}-{nth}", std::process::id());
    let made: Result<Vec<Cgroup>, String> = (0..count).map(|nth| Cgroup::make(&name(nth))).collect();
    support::need("kernel", made)
}

fn paths(cgroup: &Cgroup) -> Vec<String> {
    cgroup.all.iter().map(|dir| dir.display().to_string()).collect()
}

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

#[test]
fn g2_twenty_sigkills_under_ten_jobs_neither_lose_nor_double_a_nano_credit() {
    let Some(mut jobs) = cgroups("kill", 10) else { return };
    let mut agent = Agent::start(CARD, "enforcement = \"enforce\"", "");
    for (account, credit) in [("rich", "1000000"), ("short", "0.35")] {
        agent.done("POST", "/v1/accounts", Some(&json!({ "account": account })));
        agent.done("POST", &format!("/v1/accounts/{account}/topup"), Some(&json!({ "amount": credit, "bucket": "paid", "payment": format!("p-{account}") })));
    }
    for (nth, job) in jobs.iter_mut().enumerate() {
        job.burn();
        job.note_baseline();
        let account = if nth < 7 { "rich" } else { "short" };
        agent.done("POST", "/v1/jobs", Some(&json!({ "job": format!("job-{nth}"), "account": account, "cgroups": paths(job) })));
        job.go();
    }
    let mut seen_frozen: BTreeMap<usize, bool> = BTreeMap::new();
    let mut seed = u64::from(std::process::id()) | 1;
    for _ in 0..20 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_millis(50 + (seed >> 33) % 700));
        agent.kill();
        for (nth, job) in jobs.iter().enumerate() {
            let frozen = job.is_frozen();
            assert!(!frozen || 7 <= nth, "job-{nth} has credit and is frozen");
            assert!(frozen || !seen_frozen.get(&nth).copied().unwrap_or(false), "job-{nth} was frozen and runs");
            seen_frozen.insert(nth, frozen);
        }
        agent.launch();
    }
    agent.wait_for("the short account's jobs are frozen", |agent| (7..10).all(|nth| phase(agent, &format!("job-{nth}")) == "frozen"));
    assert!((0..7).all(|nth| !jobs[nth].is_frozen()), "a job with credit is frozen");
    for (nth, job) in jobs.iter_mut().enumerate() {
        job.end_tasks();
        agent.done("POST", &format!("/v1/jobs/job-{nth}/stop"), Some(&json!({ "outcome": "cancelled" })));
    }
    let mut drawn = BTreeMap::from([("rich", 0), ("short", 0)]);
    for (nth, job) in jobs.iter().enumerate() {
        let path = format!("/v1/jobs/job-{nth}/receipt");
        agent.wait_for("the receipt is final", |agent| agent.done("GET", &path, None)["state"] == "final");
        let receipt = agent.done("GET", &path, None);
        let counted: u128 = receipt["segments"].as_array().unwrap().iter().map(|segment| segment["cpu_ns"].as_str().unwrap().parse::<u128>().unwrap()).sum();
        assert_eq!(counted, job.used_ns(), "job-{nth}: the receipt's CPU time is the kernel's");
        assert_eq!(nano(&receipt["charge"]), price_nano(job.used_ns()), "job-{nth}: the charge is the price of the kernel's counter");
        assert_eq!(nano(&receipt["charge"]), nano(&receipt["drawn"]) + nano(&receipt["unfunded"]), "job-{nth}");
        if nth < 7 {
            assert_eq!(nano(&receipt["unfunded"]), 0, "job-{nth} had credit all the time");
        }
        *drawn.get_mut(if nth < 7 { "rich" } else { "short" }).unwrap() += nano(&receipt["drawn"]);
    }
    for (account, drawn) in drawn {
        let path = format!("/v1/accounts/{account}");
        agent.wait_for("all is settled", |agent| nano(&agent.done("GET", &path, None)["authority"]["settled"]) == drawn);
    }
    assert_eq!(nano(&agent.done("GET", "/v1/accounts/short", None)["authority"]["settled"]), 350_000_000, "the short account paid all that it had");
}
