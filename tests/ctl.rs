//! `meterctl` against the real agent.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/agent.rs"]
#[expect(dead_code, reason = "what other tests need of it")]
mod agent;
#[path = "support/mod.rs"]
mod support;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use agent::Agent;

const CARD: &str = r#"
card = "test"
version = 1
effective_from = "2026-01-01T00:00:00Z"
[[line]]
id = "cpu"
meter = "cpu_time"
price = "417.0417"
unit = "core-hour"
[[line]]
id = "start"
meter = "job_starts"
price = "0.0001"
unit = "start"
"#;

fn meterctl(socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meterctl"));
    command.arg("--socket").arg(socket).stdin(Stdio::null());
    command
}

fn ctl(agent: &Agent, arguments: &[&str]) -> Output {
    meterctl(&agent.path("run/meterd.sock")).args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Must succeed.
fn done(agent: &Agent, arguments: &[&str]) -> String {
    let output = ctl(agent, arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}; the log:\n{}", text(&output), agent.log());
    String::from_utf8(output.stdout).unwrap()
}

fn kernel() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("needs root, to make cgroups".to_owned());
    }
    let mounted = |path: &str| Path::new(path).join("cgroup.controllers").exists();
    if mounted("/sys/fs/cgroup") || mounted("/sys/fs/cgroup/unified") { Ok(()) } else { Err("no cgroup2 is mounted".to_owned()) }
}

fn agent_with_account() -> Agent {
    let agent = Agent::start(CARD, "", "[cgroup]\nparent = \"meterd-test-ctl\"");
    done(&agent, &["account", "create", "lab"]);
    done(&agent, &["account", "topup", "lab", "100", "--payment", "p-1"]);
    agent
}

fn outcome_of(agent: &Agent, job: &str) -> (String, i64) {
    let job = job.to_owned();
    let receipt = |agent: &Agent| -> serde_json::Value {
        serde_json::from_slice(&ctl(agent, &["receipt", &job, "--output", "json"]).stdout).unwrap_or_default()
    };
    agent.wait_for("the receipt is final", |agent| receipt(agent)["state"] == "final");
    let receipt = receipt(agent);
    (receipt["outcome"].as_str().unwrap_or_default().to_owned(), receipt["exit_code"].as_i64().unwrap_or(-1))
}

#[test]
fn a_command_runs_as_a_job_and_its_receipt_is_verified_without_the_agent() {
    let Some(()) = support::need("kernel", kernel()) else { return };
    let mut agent = agent_with_account();
    let output = ctl(&agent, &["run", "--account", "lab", "--job", "one", "--", "sh", "-c", "cat /proc/self/cgroup; exit 42"]);
    assert_eq!(output.status.code(), Some(42), "{}", text(&output));
    assert!(text(&output).contains("meterd-test-ctl"), "it did not run in a cgroup of the agent: {}", text(&output));
    assert_eq!(outcome_of(&agent, "one"), ("failed".to_owned(), 42));
    let receipt = done(&agent, &["receipt", "one", "--output", "json"]);
    std::fs::write(agent.path("receipt.json"), &receipt).unwrap();
    assert!(done(&agent, &["why", "one"]).contains("what happened"));
    agent.wait_for("the picture shows it", |agent| done(agent, &["jobs", "--all"]).contains("one"));
    assert!(done(&agent, &["status"]).contains("meterd is ready"));
    assert!(done(&agent, &["account", "ledger", "lab"]).contains("p-1"));
    agent.kill();
    let (file, card, state) = (agent.path("receipt.json"), agent.path("card.toml"), agent.path("state"));
    let [file, card, state] = [&file, &card, &state].map(|path| path.to_str().unwrap());
    assert!(done(&agent, &["verify", "--receipt", file, "--card", card]).starts_with("OK: one, attempt 1"));
    std::fs::write(agent.path("receipt.json"), receipt.replace("\"cpu_ns\": \"", "\"cpu_ns\": \"1")).unwrap();
    assert_eq!(ctl(&agent, &["verify", "--receipt", file, "--card", card]).status.code(), Some(1));
    assert!(done(&agent, &["journal", "verify", "--state-dir", state]).starts_with("OK: "));
    let exported = done(&agent, &["journal", "export", "--state-dir", state]);
    assert!(exported.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    assert!(exported.contains("\"JobOpened\""));
    assert_eq!(ctl(&agent, &["status"]).status.code(), Some(3), "the agent is gone");
}

#[test]
fn a_command_that_is_not_there_ends_as_a_shell_would_say() {
    let Some(()) = support::need("kernel", kernel()) else { return };
    let agent = agent_with_account();
    let output = ctl(&agent, &["run", "--account", "lab", "--job", "none", "--", "/nonexistent/program"]);
    assert_eq!(output.status.code(), Some(127), "{}", text(&output));
    assert_eq!(outcome_of(&agent, "none"), ("failed".to_owned(), 127));
}

#[test]
fn a_refused_command_does_not_run() {
    // Where nothing is enforced, a start of which the authority says nothing in time is let through.
    let agent = Agent::start(CARD, "enforcement = \"enforce\"", "[cgroup]\nparent = \"meterd-test-ctl\"");
    let file = agent.path("ran");
    let output = ctl(&agent, &["run", "--account", "nobody", "--", "touch", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("hint: "), "{}", text(&output));
    assert!(!file.exists());
}

#[test]
fn signals_and_the_time_limit_reach_the_command() {
    let Some(()) = support::need("kernel", kernel()) else { return };
    let agent = agent_with_account();
    let socket = agent.path("run/meterd.sock");
    let ready = agent.path("ready");
    let script = format!("trap 'exit 9' TERM; : > {}; while :; do sleep 0.05; done", ready.display());
    let mut run = meterctl(&socket).args(["run", "--account", "lab", "--job", "sig", "--", "sh", "-c", &script]).spawn().unwrap();
    agent.wait_for("the command runs", |_| ready.exists());
    let pid = rustix::process::Pid::from_child(&run);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(9));
    assert_eq!(outcome_of(&agent, "sig"), ("cancelled".to_owned(), 9));
    let output = ctl(&agent, &["run", "--account", "lab", "--job", "late", "--time-limit", "1s", "--", "sleep", "600"]);
    assert_eq!(output.status.code(), Some(143), "{}", text(&output));
    assert_eq!(outcome_of(&agent, "late"), ("timed_out".to_owned(), 143));
}

#[test]
fn a_hook_never_fails_and_writes_down_what_the_agent_did_not_hear() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool");
    let began = Instant::now();
    let call = |arguments: &[&str], spool: &Path| {
        let mut command = meterctl(&folder.path().join("nobody.sock"));
        command.args(["job"]).args(arguments).args(["--hook", "--spool"]).arg(spool).output().unwrap()
    };
    let start = ["start", "--job", "slurm:1", "--account", "lab", "--uid", "1000", "--slurm-job", "1", "--gpus", "0,1"];
    assert_eq!(call(&start, &spool).status.code(), Some(0));
    assert_eq!(call(&["stop", "slurm:1", "--exit-code", "137"], &spool).status.code(), Some(0));
    println!("two hooks without an agent took {:?}", began.elapsed());
    let read = meterd::node::spool::Spool::open(&spool).unwrap().read().unwrap();
    let calls: Vec<String> = read.into_iter().map(|spooled| format!("{:?}", spooled.unwrap().call)).collect();
    assert!(calls.len() == 2 && calls[0].contains("Start") && calls[1].contains("exit_code: Some(137)"), "{calls:?}");
    assert_eq!(call(&start, Path::new("/proc/nowhere")).status.code(), Some(75), "neither said nor written down");
}

#[test]
fn a_hook_that_is_killed_while_it_waits_for_the_agent_has_left_its_call() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, spool) = (folder.path().join("silent.sock"), folder.path().join("spool"));
    let silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let mut command = meterctl(&socket);
    let mut hook = command.args(["job", "stop", "slurm:1", "--exit-code", "3", "--hook", "--spool"]).arg(&spool).spawn().unwrap();
    let heard = silent.accept().unwrap();
    hook.kill().unwrap();
    hook.wait().unwrap();
    drop(heard);
    let files: Vec<_> = std::fs::read_dir(&spool).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let file = std::fs::File::options().write(true).open(&files[0]).unwrap();
    file.set_modified(std::time::SystemTime::now() - Duration::from_secs(20)).unwrap();
    let read = meterd::node::spool::Spool::open(&spool).unwrap().read().unwrap();
    assert!(read.len() == 1 && format!("{read:?}").contains("exit_code: Some(3)"), "{read:?}");
}

#[test]
fn what_the_agent_froze_is_thawed_without_it() {
    let Some(()) = support::need("kernel", kernel()) else { return };
    let mut agent = Agent::start(CARD, "enforcement = \"enforce\"", "[cgroup]\nparent = \"meterd-test-ctl\"");
    done(&agent, &["account", "create", "lab"]);
    done(&agent, &["account", "topup", "lab", "0.05"]);
    let socket = agent.path("run/meterd.sock");
    let mut run =
        meterctl(&socket).args(["run", "--account", "lab", "--job", "hungry", "--", "sh", "-c", "while :; do :; done"]).spawn().unwrap();
    agent.wait_for("the job is frozen", |agent| done(agent, &["jobs"]).contains("frozen: no credit"));
    agent.kill();
    let state = agent.path("state");
    let thawed = done(&agent, &["thaw", "--all", "--state-dir", state.to_str().unwrap()]);
    assert!(thawed.contains("hungry, attempt 1: wrote 0 to "), "{thawed}");
    let dir = thawed.split("wrote 0 to ").nth(1).unwrap().split("/cgroup.freeze").next().unwrap().to_owned();
    let frozen = || std::fs::read_to_string(format!("{dir}/cgroup.events")).unwrap().contains("frozen 1");
    let deadline = Instant::now() + agent::PATIENCE;
    while frozen() {
        assert!(Instant::now() < deadline, "it stays frozen");
        std::thread::sleep(Duration::from_millis(20));
    }
    // It runs again; end it, and take the cgroup away that the dead agent cannot remove.
    std::fs::write(format!("{dir}/cgroup.kill"), "1").unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(137));
    let memory = dir.replace("/unified/", "/memory/");
    for dir in [dir.as_str(), memory.as_str()] {
        let _ = std::fs::remove_dir(dir);
    }
}
