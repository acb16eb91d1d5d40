//! What a job can do and what can be done to it by the kernel, before a real agent: v1 alone, kills for memory, I/O that costs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::cgroup::Cgroup;
use crate::node::{CARD, Mounts, Node, cpu_ns};
use crate::support;

/// One job's directories in v1 hierarchies alone, with a task that waits for its word.
struct V1Job {
    dirs: Vec<PathBuf>,
    task: Child,
}

impl V1Job {
    fn make(name: &str) -> Result<V1Job, String> {
        let name = format!("meterd-test-{name}-{}", std::process::id());
        let dirs: Vec<PathBuf> = ["cpuacct", "memory", "freezer"].map(|at| Path::new("/sys/fs/cgroup").join(at).join(&name)).into();
        let task = Command::new("/bin/sh").args(["-c", "read go; while :; do :; done"]).stdin(Stdio::piped()).spawn().unwrap();
        let mut job = V1Job { dirs: Vec::new(), task };
        for dir in dirs {
            std::fs::create_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
            job.dirs.push(dir.clone());
            std::fs::write(dir.join("cgroup.procs"), job.task.id().to_string()).unwrap();
        }
        Ok(job)
    }

    fn read(&self, controller: &str, file: &str) -> String {
        let dir = self.dirs.iter().find(|dir| dir.starts_with(Path::new("/sys/fs/cgroup").join(controller))).unwrap();
        std::fs::read_to_string(dir.join(file)).unwrap().trim().to_owned()
    }

    fn cpu_ns(&self) -> u128 {
        self.read("cpuacct", "cpuacct.usage").parse().unwrap()
    }

    /// The counter once the task waits for its word.
    fn at_rest_ns(&self) -> u128 {
        loop {
            let before = self.cpu_ns();
            std::thread::sleep(Duration::from_millis(30));
            let waits = std::fs::read_to_string(format!("/proc/{}/stat", self.task.id())).unwrap().contains(") S ");
            if waits && before == self.cpu_ns() {
                return before;
            }
        }
    }

    fn is_frozen(&self) -> bool {
        self.read("freezer", "freezer.state") == "FROZEN"
    }

    fn end_task(&mut self) {
        self.task.kill().unwrap();
        self.task.wait().unwrap();
    }
}

impl Drop for V1Job {
    fn drop(&mut self) {
        for dir in &self.dirs {
            drop(std::fs::write(dir.join("freezer.state"), "THAWED"));
        }
        drop(self.task.kill());
        drop(self.task.wait());
        for dir in &self.dirs {
            drop(std::fs::remove_dir(dir));
        }
    }
}

#[test]
fn without_cgroup2_a_job_is_frozen_thawed_and_billed_by_v1_alone_to_the_nanosecond() {
    let Some(mut node) = Node::new("v1", 0) else { return };
    let Some(mounts) = support::need("v1", Mounts::without_cgroup2()) else { return };
    let Some(mut job) = support::need("v1", V1Job::make("v1")) else { return };
    node.agent.before = mounts.inside();
    node.agent.launch();
    node.account("short", "0.05");
    let began_ns = job.at_rest_ns();
    node.agent.done("POST", "/v1/jobs", Some(&json!({ "job": "job-0", "account": "short", "cgroups": job.dirs })));
    drop(job.task.stdin.take());
    node.agent.wait_for("the job is frozen", |_| job.is_frozen() && node.phase(0) == "frozen");
    let frozen_ns = job.cpu_ns();
    node.agent.kill();
    assert!(job.is_frozen(), "without an agent it stays so");
    node.agent.launch();
    assert_eq!(node.phase(0), "frozen");
    std::thread::sleep(Duration::from_millis(300));
    assert!(job.is_frozen() && job.cpu_ns() == frozen_ns, "nothing runs in between");
    node.agent.wait_for("all of it is counted", |_| node.counted_ns(0) == frozen_ns - began_ns);
    node.top_up("short", "1000", "second");
    node.agent.wait_for("it runs again", |_| !job.is_frozen() && node.phase(0) == "running");
    node.wait_until_counted_on(0);
    job.end_task();
    node.agent.done("POST", "/v1/jobs/job-0/stop", Some(&json!({ "outcome": "completed" })));
    node.agent.wait_for("the receipt is final", |agent| agent.done("GET", "/v1/jobs/job-0/receipt", None)["state"] == "final");
    let receipt = node.agent.done("GET", "/v1/jobs/job-0/receipt", None);
    assert_eq!(cpu_ns(&receipt), job.cpu_ns() - began_ns, "the receipt's CPU time is the kernel's: {receipt}");
    assert!(frozen_ns < job.cpu_ns());
    assert_eq!(receipt["gaps"].as_array().unwrap().iter().filter(|gap| gap["meter"] == "cpu_time").count(), 0, "{receipt}");
}

/// Limits the job's memory where its memory is counted.
fn limit_memory(job: &Cgroup, bytes: u64) -> Result<(), String> {
    for (file, swap) in [("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"), ("memory.max", "memory.swap.max")] {
        if let Some(dir) = job.all.iter().find(|dir| dir.join(file).exists()) {
            std::fs::write(dir.join(file), bytes.to_string()).map_err(|error| format!("{file}: {error}"))?;
            // Where there is swap, it must not help.
            drop(std::fs::write(dir.join(swap), if file == "memory.max" { "0".to_owned() } else { bytes.to_string() }));
            return Ok(());
        }
    }
    Err("no memory controller has a directory of the job".to_owned())
}

#[test]
fn a_job_that_the_kernel_killed_for_memory_says_so_whatever_was_reported() {
    let Some(mut node) = Node::new("killed", 2) else { return };
    let Some(()) = support::need("memory", node.jobs.iter().try_for_each(|job| limit_memory(job, 16 << 20))) else { return };
    node.agent.launch();
    node.account("rich", "1000000");
    // The first wants 32 MiB and is killed for it, the second stays within its limit and is killed by hand.
    let wants = |kib: u32| format!("read go; x=$(head -c {kib}K /dev/zero | tr '\\0' x); exec sleep 1000");
    for (nth, kib) in [(0, 32 << 10), (1, 512)] {
        node.jobs[nth].task(&wants(kib));
        node.meter_job(nth, "rich");
        node.jobs[nth].go();
    }
    node.jobs[0].tasks[0].wait().unwrap();
    let kills = |job: &Cgroup| -> u64 {
        let text = job.all.iter().find_map(|dir| {
            std::fs::read_to_string(dir.join("memory.oom_control")).or_else(|_| std::fs::read_to_string(dir.join("memory.events"))).ok()
        });
        text.unwrap().lines().find_map(|line| line.strip_prefix("oom_kill ")).unwrap().parse().unwrap()
    };
    let said = json!({ "outcome": "completed", "exit_code": 0 });
    node.jobs[0].tasks.clear(); // the kernel ended it
    let killed = node.end_job_as(0, &said);
    assert!(0 < kills(&node.jobs[0]));
    assert_eq!(
        (&killed["outcome"], &killed["basis"]),
        (&json!("out_of_memory"), &json!({ "oom_kill": { "count": kills(&node.jobs[0]) } }))
    );
    let well = node.end_job_as(1, &said);
    assert_eq!((&well["outcome"], &well["basis"]), (&json!("completed"), &json!("exit_status")), "{well}");
}

/// A folder on a block device, and the job's directory in which the kernel counts what is written to that device.
fn counted_io(name: &str) -> Result<(tempfile::TempDir, PathBuf), String> {
    use std::os::unix::fs::MetadataExt as _;
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let device = std::fs::metadata(folder.path()).unwrap().dev();
    let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    if !Path::new("/sys/dev/block").join(&device).exists() {
        return Err(format!("/var/tmp is on {device}, which is no block device"));
    }
    let dir = Path::new("/sys/fs/cgroup/blkio").join(name);
    std::fs::create_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    // Since Linux 6.10 v1 counts only on devices that somebody has set a limit for; this one limits nothing.
    let limited = std::fs::write(dir.join("blkio.throttle.write_bps_device"), format!("{device} 1000000000000"));
    limited.map(|()| (folder, dir.clone())).map_err(|error| {
        drop(std::fs::remove_dir(&dir));
        format!("a limit for {device}: {error}")
    })
}

#[test]
fn io_bytes_that_have_a_price_are_charged_as_the_kernel_counts_them() {
    let card = format!("{CARD}[[line]]\nid = \"io\"\nmeter = \"io_bytes\"\nprice = \"1\"\nunit = \"MiB\"\n");
    let Some(mut node) = Node::with_card("io", 1, &card) else { return };
    let Some((folder, blkio)) = support::need("blkio", counted_io(&format!("meterd-test-io-{}", std::process::id()))) else { return };
    node.jobs[0].all.push(blkio.clone());
    node.agent.launch();
    node.account("rich", "1000000");
    let file = folder.path().join("x").display().to_string();
    node.jobs[0].task(&format!("read go; dd if=/dev/zero of={file} bs=65536 count=48 oflag=direct 2>/dev/null; exec sleep 1000"));
    node.meter_job(0, "rich");
    node.jobs[0].go();
    let counted = || -> u64 {
        let text = std::fs::read_to_string(blkio.join("blkio.throttle.io_service_bytes_recursive")).unwrap();
        let of = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            if words.len() == 3 && ["Read", "Write"].contains(&words[1]) { words[2].parse().unwrap() } else { 0 }
        };
        text.lines().map(of).sum()
    };
    node.agent.wait_for("the kernel has counted 3 MiB", |_| 3 << 20 <= counted());
    let receipt = node.end_job(0);
    let line = receipt["segments"][0]["lines"].as_array().unwrap().iter().find(|line| line["line"] == "io");
    let line = line.unwrap_or_else(|| panic!("{receipt}"));
    println!("{} bytes: {line}", counted());
    assert_eq!(line["billed"], json!(counted().to_string()), "{receipt}");
    let (whole, part) = line["cost"].as_str().unwrap().split_once('.').unwrap_or((line["cost"].as_str().unwrap(), ""));
    assert_eq!(
        format!("{whole}{part:0<9}").parse::<u64>().unwrap(),
        (counted() * 1_000_000_000) >> 20,
        "1 credit a MiB, rounded down: {receipt}"
    );
}
