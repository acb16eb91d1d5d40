//! A job that burns one CPU in a cgroup that nobody but this test removes, so that the kernel's own counter can be compared with its receipt.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::machine::Machine;

/// CPU time alone is priced: what is charged can be computed from the kernel's counter.
pub(crate) const CARD: &str = "card = \"test\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n\
    [[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"417.0417\"\nunit = \"core-hour\"\n";

/// Nano-credits of CPU nanoseconds by that card, rounded down.
pub(crate) fn price_nano(cpu_ns: u128) -> u128 {
    cpu_ns * 4_170_417 * 1_000_000_000 / (10_000 * 3_600 * 1_000_000_000)
}

/// A decimal amount in nano-credits.
pub(crate) fn nano(value: &Value) -> u128 {
    let text = value.as_str().unwrap();
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    format!("{whole}{fraction:0<9}").parse().unwrap()
}

pub(crate) struct Job<'m> {
    machine: &'m Machine,
    pub(crate) name: String,
    dir: PathBuf,
    task: Child,
    baseline_ns: u128,
}

impl<'m> Job<'m> {
    /// Started and metered on that account, as a scheduler's hook does it: its tasks wait until the agent has answered.
    pub(crate) fn start(machine: &'m Machine, name: &str, account: &str) -> Job<'m> {
        let dir = machine.cgroup.join(name);
        std::fs::create_dir(&dir).unwrap();
        let script = format!("echo 0 >/sys/fs/cgroup/{name}/cgroup.procs; read go; while :; do :; done");
        let task = machine.command(&script).stdin(Stdio::piped()).spawn().unwrap();
        let mut job = Job { machine, name: name.to_owned(), dir, task, baseline_ns: 0 };
        machine.wait_for("the task waits for its word", |_| job.waits());
        job.baseline_ns = job.cpu_ns();
        machine.done(&format!("meterctl job start --job {name} --account {account} --cgroup /sys/fs/cgroup/{name}"));
        drop(job.task.stdin.take());
        job
    }

    /// Is its one task asleep, and its counter at rest?
    fn waits(&self) -> bool {
        let before = self.cpu_ns();
        std::thread::sleep(Duration::from_millis(30));
        let tasks = std::fs::read_to_string(self.dir.join("cgroup.procs")).unwrap();
        let asleep = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") S "));
        tasks.lines().count() == 1 && tasks.lines().all(asleep) && before == self.cpu_ns()
    }

    /// The kernel's own counter, in nanoseconds.
    fn cpu_ns(&self) -> u128 {
        let text = std::fs::read_to_string(self.dir.join("cpu.stat")).unwrap();
        text.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap().parse::<u128>().unwrap() * 1_000
    }

    /// What it used since it was started, by the kernel.
    pub(crate) fn used_ns(&self) -> u128 {
        self.cpu_ns() - self.baseline_ns
    }

    /// What the agent has counted of it.
    pub(crate) fn counted_ns(&self) -> u128 {
        let shown = self.machine.document(&format!("meterctl receipt {} --output json", self.name));
        cpu_ns(&shown)
    }

    pub(crate) fn is_frozen(&self) -> bool {
        std::fs::read_to_string(self.dir.join("cgroup.events")).unwrap().contains("frozen 1")
    }

    /// Waits until the kernel has seen it use some CPU time from now on.
    pub(crate) fn runs_on(&self) {
        let before = self.cpu_ns();
        self.machine.wait_for("the job runs on", |_| before + 100_000_000 < self.cpu_ns());
    }

    /// Waits until the agent has counted what it has used by now.
    pub(crate) fn is_counted_on(&self) {
        let used = self.used_ns();
        self.machine.wait_for("the job is metered on", |_| used <= self.counted_ns());
    }

    /// Ends it, and checks that its receipt has the kernel's CPU time to the nanosecond and the price of that, paid once.
    pub(crate) fn end(mut self) -> Value {
        std::fs::write(self.dir.join("cgroup.kill"), "1").unwrap();
        self.task.wait().unwrap();
        self.machine
            .wait_for("its cgroup is empty", |_| std::fs::read_to_string(self.dir.join("cgroup.events")).unwrap().contains("populated 0"));
        self.machine.done(&format!("meterctl job stop {} --outcome completed", self.name));
        let ask = format!("meterctl receipt {} --output json", self.name);
        self.machine.wait_for("the receipt is final", |machine| machine.document(&ask)["state"] == "final");
        let receipt = self.machine.document(&ask);
        assert_eq!(cpu_ns(&receipt), self.used_ns(), "the receipt's CPU time is the kernel's: {receipt}");
        assert_eq!(nano(&receipt["charge"]), price_nano(self.used_ns()), "{receipt}");
        receipt
    }
}

/// The CPU time on a receipt.
fn cpu_ns(receipt: &Value) -> u128 {
    receipt["segments"].as_array().unwrap().iter().map(|segment| segment["cpu_ns"].as_str().unwrap().parse::<u128>().unwrap()).sum()
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        drop(std::fs::write(self.dir.join("cgroup.kill"), "1"));
        drop(self.task.wait());
    }
}
