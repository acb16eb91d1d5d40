//! The ladder against real jobs: warnings by signal, command and terminal, who is left alone, how long jobs stand still, how many
//! accounts at once.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/agent.rs"]
#[expect(dead_code, reason = "each test takes what it needs")]
mod agent;
#[path = "support/cgroup.rs"]
#[expect(dead_code, reason = "each test takes what it needs")]
mod cgroup;
#[path = "support/mod.rs"]
mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use agent::Agent;
use cgroup::{Cgroup, cgroups, paths};

const CARD: &str = "card = \"test\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n\
    [[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"417.0417\"\nunit = \"core-hour\"\n";

/// `nobody`, on Debian and nearly everywhere else.
const OWNER: u32 = 65_534;

/// A folder that everybody may write to; removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("meterd-test-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o1777)).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// A terminal of the job's owner that lets messages through; what is written to it is in a file.
struct Terminal(Child);

impl Terminal {
    fn open(transcript: &Path) -> Terminal {
        let owner = OWNER.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &owner, "--regid", &owner, "--clear-groups", "script", "--quiet", "--flush", "--command"]);
        command.arg("chmod g+w $(tty); echo ready; exec sleep 1000").arg(transcript);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Terminal(child)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn said(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// An account with so much credit, and these parts of its policy.
fn account(agent: &Agent, name: &str, credit: &str, policy: Value) {
    let mut body = policy;
    body["account"] = json!(name);
    agent.done("POST", "/v1/accounts", Some(&body));
    let top_up = json!({ "amount": credit, "bucket": "paid", "payment": format!("first-{name}") });
    agent.done("POST", &format!("/v1/accounts/{name}/topup"), Some(&top_up));
}

fn start(agent: &Agent, job: &mut Cgroup, name: &str, more: Value) {
    let mut body = more;
    (body["job"], body["account"], body["cgroups"]) = (json!(name), json!(name), json!(paths(job)));
    agent.done("POST", "/v1/jobs", Some(&body));
    job.go();
}

fn held_back(agent: &Agent) -> Option<String> {
    let status = agent.done("GET", "/v1/status", None);
    let found = status["alarms"].as_array().unwrap().iter().find(|alarm| alarm["code"] == "held_back")?;
    Some(found["message"].as_str().unwrap().to_owned())
}

fn job(agent: &Agent, name: &str) -> Value {
    agent.done("GET", &format!("/v1/jobs/{name}"), None)
}

#[test]
fn notifying_warns_by_signal_command_and_terminal_and_stops_nothing() {
    let Some(mut jobs) = cgroups("notify", 1) else { return };
    let folder = Folder::new("notify");
    let (signalled, told, transcript) = (folder.file("signalled"), folder.file("told"), folder.file("transcript"));
    let _terminal = Terminal::open(&transcript);
    let script = format!("env >> {0}.part; mv {0}.part {0}", told.display());
    let warn = format!("[warn]\nterminals = \"owner\"\ncommand = [\"/bin/sh\", \"-c\", '{script}']\n");
    let agent = Agent::start(CARD, "enforcement = \"notify\"\ninterval_ms = 100", &warn);
    account(&agent, "lab", "1", json!({ "warn_before_s": [6, 3] }));
    agent.wait_for("the terminal is there", |_| said(&transcript).contains("ready"));
    jobs[0].task(&format!("trap 'echo warned >> {}' USR1; read go; while :; do :; done", signalled.display()));
    start(&agent, &mut jobs[0], "lab", json!({ "warn_signal": "USR1", "uid": OWNER }));
    agent.wait_for("it is warned twice", |_| said(&signalled).lines().count() == 2);
    agent.wait_for("the command was told", |_| {
        let told = said(&told);
        ["METERD_EVENT=warned", "METERD_JOB=lab", "METERD_ACCOUNT=lab", "METERD_CREDITS_LEFT=0."].iter().all(|word| told.contains(word))
    });
    agent.wait_for("the terminal says it", |_| said(&transcript).contains("job lab: account lab has 0."));
    agent.wait_for("its credit is gone", |agent| {
        let receipt = agent.done("GET", "/v1/jobs/lab/receipt", None);
        receipt["steps"].as_array().unwrap().iter().any(|step| step["event"]["would_act"] == "freeze")
    });
    assert_eq!(job(&agent, "lab")["phase"], "running");
    assert!(!jobs[0].is_frozen());
}

#[test]
fn who_stands_still_too_long_is_ended_and_the_exempt_run_on() {
    let Some(mut jobs) = cgroups("ttl", 2) else { return };
    let exempt = "[exempt]\naccounts = [\"ops\"]\n";
    let agent = Agent::start(CARD, "enforcement = \"enforce\"\ninterval_ms = 100", exempt);
    account(&agent, "lab", "0.1", json!({ "freeze_ttl_s": 1, "then": "kill" }));
    account(&agent, "ops", "0.1", json!({}));
    for (job, name) in jobs.iter_mut().zip(["lab", "ops"]) {
        job.burn();
        start(&agent, job, name, json!({}));
    }
    agent.wait_for("the one is frozen, then killed", |agent| job(agent, "lab")["phase"] == "ended");
    let receipt = agent.done("GET", "/v1/jobs/lab/receipt", None);
    let acts: Vec<&Value> = receipt["steps"].as_array().unwrap().iter().map(|step| &step["event"]["acted"]["act"]).collect();
    let at = |act: &str| acts.iter().position(|done| *done == act).unwrap_or_else(|| panic!("no {act}: {receipt}"));
    assert!(at("freeze") < at("kill"));
    assert_eq!(receipt["outcome"], "out_of_credit", "{receipt}");
    agent.wait_for("the other has used more than it had", |agent| {
        job(agent, "ops")["charge"].as_str().unwrap().parse::<f64>().unwrap() > 0.2
    });
    assert_eq!(job(&agent, "ops")["phase"], "running");
}

#[test]
fn no_more_accounts_are_stopped_than_allowed_until_an_operator_confirms() {
    let Some(mut jobs) = cgroups("blast", 2) else { return };
    let agent = Agent::start(CARD, "enforcement = \"enforce\"\ninterval_ms = 100", "[blast_radius]\nfreeze_accounts = 1\n");
    for (job, name) in jobs.iter_mut().zip(["first", "second"]) {
        account(&agent, name, "0.1", json!({}));
        job.burn();
        start(&agent, job, name, json!({}));
        if name == "first" {
            agent.wait_for("the first account is stopped", |agent| self::job(agent, "first")["phase"] == "frozen");
        }
    }
    agent.wait_for("it says that it holds back", |agent| held_back(agent).is_some_and(|message| message.contains("second")));
    assert_eq!(job(&agent, "second")["phase"], "running");
    let mut command = Command::new(env!("CARGO_BIN_EXE_meterctl"));
    let confirm = command.arg("--socket").arg(agent.path("run/meterd.sock")).args(["enforcement", "confirm"]).output().unwrap();
    assert!(confirm.status.success(), "{confirm:?}");
    agent.wait_for("the second is stopped too", |agent| job(agent, "second")["phase"] == "frozen");
    agent.wait_for("and nobody is held back", |agent| held_back(agent).is_none());
}
