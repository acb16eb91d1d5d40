//! One agent with one job of known burn on an account with credit, and what the tests of its states do to it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::agent::Agent;
use crate::cgroup::{Cgroup, cgroups, paths};

pub(crate) const CARD: &str = "card = \"test\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n\
    [[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"417.0417\"\nunit = \"core-hour\"\n\
    [[line]]\nid = \"memory\"\nmeter = \"memory_charged\"\nprice = \"1\"\nunit = \"GiB-hour\"\n";

pub(crate) struct Node {
    pub(crate) agent: Agent,
    pub(crate) jobs: Vec<Cgroup>,
}

impl Node {
    /// An agent that is not started yet, and its jobs' cgroups; none where there is no cgroup tree to work in.
    pub(crate) fn new(name: &str, jobs: usize) -> Option<Node> {
        Node::with_card(name, jobs, CARD)
    }

    pub(crate) fn with_card(name: &str, jobs: usize, card: &str) -> Option<Node> {
        let jobs = cgroups(name, jobs)?;
        Some(Node { agent: Agent::new(card, "enforcement = \"enforce\"\ninterval_ms = 100", ""), jobs })
    }

    /// The agent runs, and its jobs burn: all on an account with credit.
    pub(crate) fn burning(&mut self) {
        self.agent.launch();
        self.account("rich", "1000000");
        for nth in 0..self.jobs.len() {
            self.start_job(nth, "rich");
        }
    }

    pub(crate) fn account(&self, account: &str, credit: &str) {
        self.agent.done("POST", "/v1/accounts", Some(&json!({ "account": account })));
        self.top_up(account, credit, "first");
    }

    pub(crate) fn top_up(&self, account: &str, credit: &str, payment: &str) {
        let body = json!({ "amount": credit, "bucket": "paid", "payment": format!("{payment}-{account}") });
        self.agent.done("POST", &format!("/v1/accounts/{account}/topup"), Some(&body));
    }

    pub(crate) fn start_job(&mut self, nth: usize, account: &str) {
        self.jobs[nth].burn();
        self.meter_job(nth, account);
        self.jobs[nth].go();
    }

    /// Starts the job whose tasks wait for their word.
    pub(crate) fn meter_job(&mut self, nth: usize, account: &str) {
        let job = &mut self.jobs[nth];
        job.note_baseline();
        self.agent.done("POST", "/v1/jobs", Some(&json!({ "job": format!("job-{nth}"), "account": account, "cgroups": paths(job) })));
    }

    /// Ends a job, and checks that its receipt has the kernel's CPU time to the nanosecond, and the authority what was drawn.
    pub(crate) fn end_job(&mut self, nth: usize) -> Value {
        self.end_job_as(nth, &json!({ "outcome": "completed" }))
    }

    /// The same with this word on how it ended.
    pub(crate) fn end_job_as(&mut self, nth: usize, ending: &Value) -> Value {
        self.jobs[nth].end_tasks();
        self.agent.done("POST", &format!("/v1/jobs/job-{nth}/stop"), Some(ending));
        self.exact_receipt(nth)
    }

    /// Waits for the final receipt of a job without tasks, and checks it as [`Node::end_job`] does.
    pub(crate) fn exact_receipt(&self, nth: usize) -> Value {
        let path = format!("/v1/jobs/job-{nth}/receipt");
        self.agent.wait_for("the receipt is final", |agent| agent.done("GET", &path, None)["state"] == "final");
        let receipt = self.agent.done("GET", &path, None);
        assert_eq!(cpu_ns(&receipt), self.jobs[nth].used_ns(), "job-{nth}: the receipt's CPU time is the kernel's");
        receipt
    }

    /// Waits until the state is raised, in `status`, in the metrics and in the log; returns its message.
    pub(crate) fn wait_for_alarm(&self, name: &str) -> String {
        self.agent.wait_for(&format!("{name} is in the status"), |agent| alarm(agent, name).is_some());
        let metrics = self.agent.done("GET", "/metrics", None).as_str().unwrap().to_owned();
        assert!(metrics.contains(&format!("meterd_alarm{{alarm=\"{name}\"}} 1")), "{metrics}");
        let log = std::fs::read_to_string(self.agent.path("log")).unwrap();
        assert!(log.lines().any(|line| line.contains("alarm=\"") && line.contains(name)), "{name} is not in the log:\n{log}");
        let text = self.meterctl(&["status"]);
        assert!(text.contains(name), "{name} is not in meterctl status:\n{text}");
        alarm(&self.agent, name).unwrap()
    }

    pub(crate) fn wait_until_over(&self, name: &str) {
        self.agent.wait_for(&format!("{name} is over"), |agent| alarm(agent, name).is_none());
        let metrics = self.agent.done("GET", "/metrics", None).as_str().unwrap().to_owned();
        assert!(metrics.contains(&format!("meterd_alarm{{alarm=\"{name}\"}} 0")), "{metrics}");
    }

    pub(crate) fn meterctl(&self, words: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meterctl"));
        let output = command.arg("--socket").arg(self.agent.path("run/meterd.sock")).args(words).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    /// What is in its journal, as text.
    pub(crate) fn facts(&self) -> String {
        self.meterctl(&["journal", "export", "--state-dir", &self.agent.path("state").display().to_string()])
    }

    pub(crate) fn phase(&self, nth: usize) -> String {
        self.agent.done("GET", &format!("/v1/jobs/job-{nth}"), None)["phase"].as_str().unwrap().to_owned()
    }

    /// The CPU time that the agent has counted for a job.
    pub(crate) fn counted_ns(&self, nth: usize) -> u128 {
        self.agent.done("GET", &format!("/v1/jobs/job-{nth}"), None)["cpu_ns"].as_str().unwrap().parse().unwrap()
    }

    pub(crate) fn wait_until_counted_on(&self, nth: usize) {
        let before = self.counted_ns(nth);
        self.agent.wait_for("the job is metered on", |_| before < self.counted_ns(nth));
    }
}

/// The message of a state, if it is raised.
pub(crate) fn alarm(agent: &Agent, name: &str) -> Option<String> {
    let status = agent.done("GET", "/v1/status", None);
    let found = status["alarms"].as_array().unwrap().iter().find(|alarm| alarm["code"] == name)?;
    Some(found["message"].as_str().unwrap().to_owned())
}

pub(crate) fn cpu_ns(receipt: &Value) -> u128 {
    receipt["segments"].as_array().unwrap().iter().map(|segment| segment["cpu_ns"].as_str().unwrap().parse::<u128>().unwrap()).sum()
}

/// A mount namespace of its own, which lives as long as this: what is mounted in it nobody else sees, and it goes with it.
pub(crate) struct Mounts(Child);

impl Mounts {
    /// A namespace with a small file system in memory on `dir`.
    pub(crate) fn small_disk(dir: &Path, mib: u32) -> Result<Mounts, String> {
        std::fs::create_dir_all(dir).unwrap();
        Mounts::after(&format!("mount -t tmpfs -o size={mib}m,mode=755 meterd-test {}", dir.display()))
    }

    /// As on a machine without a cgroup2 tree.
    pub(crate) fn without_cgroup2() -> Result<Mounts, String> {
        if !Path::new("/sys/fs/cgroup/unified/cgroup.controllers").exists() {
            return Err("cgroups are not mounted as hybrid".to_owned());
        }
        Mounts::after("umount /sys/fs/cgroup/unified")
    }

    fn after(change: &str) -> Result<Mounts, String> {
        let script = format!("{change} && echo ready && exec sleep 100000");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        let mut child = command.stdout(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
        let mut said = [0; 5];
        let read = std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said);
        let mounts = Mounts(child);
        read.map(|()| mounts).map_err(|_| "what is mounted cannot be changed here".to_owned())
    }

    /// The words before a command that is to run in it.
    pub(crate) fn inside(&self) -> Vec<String> {
        let pid = self.0.id().to_string();
        ["nsenter", "--target", &pid, "--mount", "--"].map(str::to_owned).to_vec()
    }

    pub(crate) fn run(&self, script: &str) -> bool {
        let words = self.inside();
        Command::new(&words[0]).args(&words[1..]).args(["sh", "-c", script]).status().unwrap().success()
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The library that makes calls fail, compiled into `dir`, and the environment that loads it.
pub(crate) fn faults(dir: &Path, state_dir: &Path) -> Vec<(String, String)> {
    let library: PathBuf = dir.join("faults.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/states/faults.c");
    let compiler = std::env::var_os("CC").unwrap_or("cc".into());
    let mut command = Command::new(&compiler);
    command.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&library).arg(source).arg("-ldl");
    let output = command.output().unwrap_or_else(|error| panic!("a C compiler is needed ({}): {error}", compiler.display()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = |path: &Path| path.display().to_string();
    vec![
        ("LD_PRELOAD".to_owned(), text(&library)),
        ("METERD_FAULTS".to_owned(), text(dir)),
        ("METERD_FAULTS_DIR".to_owned(), text(state_dir)),
    ]
}
