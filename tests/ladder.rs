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
use std::os::unix::process::ExitStatusExt as _;
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

/// A number, as it stands or as text.
fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| value.as_str().unwrap_or_else(|| panic!("{value} is no number")).parse().unwrap())
}

/// What the hands did to a job, in order: each act, when they began and when it was confirmed, in nanoseconds of the monotonic clock.
fn acts(agent: &Agent, name: &str) -> Vec<(String, u64, u64)> {
    let receipt = agent.done("GET", &format!("/v1/jobs/{name}/receipt"), None);
    let acted = |step: &Value| {
        let acted = &step["event"]["acted"];
        let act = acted["act"].as_str().filter(|act| *act != "warn" && acted["outcome"] == "confirmed")?;
        Some((act.to_owned(), number(&acted["asked_mono_ns"]), number(&acted["done_mono_ns"])))
    };
    receipt["steps"].as_array().unwrap().iter().filter_map(acted).collect()
}

fn names(acts: &[(String, u64, u64)]) -> Vec<&str> {
    acts.iter().map(|(name, ..)| name.as_str()).filter(|name| *name != "remove").collect()
}

/// From when it was asked to end: where the authority's word is there at once, nobody freezes it first.
fn since_asked(acts: &[(String, u64, u64)]) -> Vec<&(String, u64, u64)> {
    let since: Vec<_> = acts.iter().filter(|(name, ..)| name != "remove").skip_while(|(name, ..)| name == "freeze").collect();
    assert!(since.first().is_none_or(|(name, ..)| name == "terminate"), "{acts:?}");
    since
}

/// Does it say so among what happened to the job? For events that are but a word, and for those with evidence.
fn happened(agent: &Agent, job: &str, event: &str) -> bool {
    let receipt = agent.done("GET", &format!("/v1/jobs/{job}/receipt"), None);
    receipt["steps"].as_array().unwrap().iter().any(|step| step["event"] == event || step["event"].get(event).is_some())
}

/// How its only task ended, without a hand of the test's.
fn ended_by_itself(agent: &Agent, job: &mut Cgroup) -> std::process::ExitStatus {
    let pid = job.tasks[0].id();
    let state = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    agent.wait_for("its task has ended", |_| state(pid).contains(") Z "));
    job.tasks[0].wait().unwrap()
}

const SECOND_NS: u64 = 1_000_000_000;

/// Notes each SIGTERM in a file, and works on.
fn deaf(noted: &Path) -> String {
    format!("trap 'echo term >> {}' TERM; read go; while :; do :; done", noted.display())
}

#[test]
fn who_ignores_sigterm_is_killed_when_the_grace_is_over_and_who_obeys_ends_by_itself() {
    let Some(mut jobs) = cgroups("terminate", 2) else { return };
    let folder = Folder::new("terminate");
    let agent = Agent::start(CARD, "enforcement = \"enforce\"\ninterval_ms = 100", "");
    let obeys = format!("trap 'echo term >> {}; exit 7' TERM; read go; while :; do :; done", folder.file("obeys").display());
    for (nth, (name, script)) in [("ignores", deaf(&folder.file("ignores"))), ("obeys", obeys)].into_iter().enumerate() {
        account(&agent, name, "0.02", json!({ "on_exhaustion": "terminate", "grace_s": 3 }));
        jobs[nth].task(&script);
        start(&agent, &mut jobs[nth], name, json!({}));
    }
    let mut ended = Vec::new();
    for (job, name) in jobs.iter_mut().zip(["ignores", "obeys"]) {
        ended.push(ended_by_itself(&agent, job));
        agent.done("POST", &format!("/v1/jobs/{name}/stop"), Some(&json!({ "outcome": "unknown" })));
        agent.wait_for("it has ended", |agent| self::job(agent, name)["phase"] == "ended");
        assert_eq!(said(&folder.file(name)), "term\n", "{name} was asked once, and ran to hear it");
        assert!(happened(&agent, name, "exhausted"), "{name} was ended by the authority's word");
        assert_eq!(agent.done("GET", &format!("/v1/jobs/{name}/receipt"), None)["outcome"], "out_of_credit", "{name}");
    }
    let done = acts(&agent, "ignores");
    let ignores = since_asked(&done);
    assert_eq!(ignores.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(), ["terminate", "kill"]);
    let waited_ns = ignores[1].1 - ignores[0].1;
    assert!(3 * SECOND_NS <= waited_ns, "killed {waited_ns} ns after it was asked: before the grace was over");
    assert_eq!(since_asked(&acts(&agent, "obeys")).len(), 1, "nobody killed it");
    assert_eq!((ended[0].signal(), ended[1].code()), (Some(9), Some(7)), "the other by its own exit");
}

#[test]
fn who_has_not_stopped_when_the_grace_is_over_stands_still_and_goes_on_with_credit() {
    let Some(mut jobs) = cgroups("stop", 1) else { return };
    let folder = Folder::new("stop");
    let agent = Agent::start(CARD, "enforcement = \"enforce\"\ninterval_ms = 100", "");
    account(&agent, "lab", "0.02", json!({ "on_exhaustion": "stop", "grace_s": 2 }));
    jobs[0].task(&deaf(&folder.file("lab")));
    start(&agent, &mut jobs[0], "lab", json!({}));
    let asked = |agent: &Agent| since_asked(&acts(agent, "lab")).iter().map(|(name, ..)| name.clone()).collect::<Vec<_>>();
    agent.wait_for("it is asked, and frozen again", |agent| asked(agent) == ["terminate", "freeze"]);
    let done = acts(&agent, "lab");
    let done = since_asked(&done);
    assert_eq!(said(&folder.file("lab")), "term\n", "it ran to hear that");
    let waited_ns = done[1].1 - done[0].1;
    assert!(2 * SECOND_NS <= waited_ns, "frozen {waited_ns} ns after it was asked: before the grace was over");
    // For as long again nothing else comes.
    std::thread::sleep(std::time::Duration::from_millis(2_500));
    assert_eq!(asked(&agent), ["terminate", "freeze"]);
    assert!(jobs[0].is_frozen() && jobs[0].tasks[0].try_wait().unwrap().is_none(), "it stands still and lives");
    let before = jobs[0].cpu_ns();
    let top_up = json!({ "amount": "1000", "bucket": "paid", "payment": "second" });
    agent.done("POST", "/v1/accounts/lab/topup", Some(&top_up));
    agent.wait_for("it goes on", |_| !jobs[0].is_frozen() && before < jobs[0].cpu_ns());
    agent.wait_for("the agent says so", |agent| job(agent, "lab")["phase"] == "running");
    assert_eq!(asked(&agent), ["terminate", "freeze", "thaw"]);
}

/// Starts a job of this name on the account `lab`; its task waits for its word.
fn start_of_lab(agent: &Agent, job: &mut Cgroup, name: &str) {
    job.burn();
    agent.done("POST", "/v1/jobs", Some(&json!({ "job": name, "account": "lab", "cgroups": paths(job) })));
}

#[test]
fn of_two_jobs_on_a_short_account_the_oldest_stands_aside_and_goes_on_when_it_is_alone() {
    let Some(mut jobs) = cgroups("victims", 2) else { return };
    let agent = Agent::start(CARD, "enforcement = \"enforce\"\ninterval_ms = 100", "");
    // What there is lasts for minutes; the policy minds when it lasts for less than a day.
    account(&agent, "lab", "20", json!({ "victims": "oldest_first", "victims_before_s": 86_400 }));
    for (job, name) in jobs.iter_mut().zip(["old", "new"]) {
        start_of_lab(&agent, job, name);
    }
    jobs.iter_mut().for_each(Cgroup::go);
    agent.wait_for("the oldest stands aside", |agent| job(agent, "old")["phase"] == "frozen");
    assert!(jobs[0].is_frozen() && happened(&agent, "old", "stood_aside"));
    let before = jobs[1].cpu_ns();
    agent.wait_for("the other works on", |_| before < jobs[1].cpu_ns());
    assert_eq!(job(&agent, "new")["phase"], "running");
    assert!(!happened(&agent, "new", "stood_aside") && !happened(&agent, "old", "steps_back"));
    assert_ne!(agent.done("GET", "/v1/accounts/lab", None)["node"]["state"], "exhausted", "there is credit");
    jobs[1].end_tasks();
    agent.done("POST", "/v1/jobs/new/stop", Some(&json!({ "outcome": "completed" })));
    agent.wait_for("alone, it goes on", |agent| job(agent, "old")["phase"] == "running" && !jobs[0].is_frozen());
    assert!(happened(&agent, "old", "steps_back"));
    let before = jobs[0].cpu_ns();
    agent.wait_for("and works", |_| before < jobs[0].cpu_ns());
}

#[test]
fn a_job_started_to_be_killed_at_zero_is_killed_at_the_authoritys_word_and_its_neighbour_only_frozen() {
    let Some(mut jobs) = cgroups("strict", 2) else { return };
    let parent = format!("meterd-test-strict-parent-{}", std::process::id());
    let agent = Agent::start(CARD, "enforcement = \"enforce\"\ninterval_ms = 100", &format!("[cgroup]\nparent = \"{parent}\"\n"));
    account(&agent, "lab", "0.05", json!({}));
    start_of_lab(&agent, &mut jobs[0], "mild");
    let meterctl = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meterctl"));
        command.arg("--socket").arg(agent.path("run/meterd.sock"));
        command
    };
    jobs[1].burn();
    let mut words = vec!["job", "start", "--job", "strict", "--account", "lab", "--on-exhaustion", "kill"];
    let places = paths(&jobs[1]);
    for place in &places {
        words.extend(["--cgroup", place]);
    }
    let started = meterctl().args(&words).output().unwrap();
    assert!(started.status.success(), "{started:?}");
    let run = ["run", "--account", "lab", "--job", "run", "--on-exhaustion", "kill", "--", "sh", "-c", "while :; do :; done"];
    let mut run = meterctl().args(run).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    agent.wait_for("it runs", |agent| agent.ask("GET", "/v1/jobs/run", None).0 == 200);
    jobs.iter_mut().for_each(Cgroup::go);
    assert_eq!(ended_by_itself(&agent, &mut jobs[1]).signal(), Some(9));
    agent.done("POST", "/v1/jobs/strict/stop", Some(&json!({ "outcome": "unknown" })));
    for name in ["strict", "run"] {
        agent.wait_for("it has ended", |agent| job(agent, name)["phase"] == "ended");
        let receipt = agent.done("GET", &format!("/v1/jobs/{name}/receipt"), None);
        let steps = receipt["steps"].as_array().unwrap();
        let at = |holds: &dyn Fn(&Value) -> bool| steps.iter().position(|step| holds(&step["event"]));
        let word = at(&|event| event.get("exhausted").is_some()).unwrap_or_else(|| panic!("{name}: no word of the authority: {receipt}"));
        let kill = at(&|event| event["acted"]["act"] == "kill").unwrap_or_else(|| panic!("{name} was not killed: {receipt}"));
        assert!(word < kill, "{name}: {receipt}");
        assert_eq!(receipt["outcome"], "out_of_credit", "{name}");
    }
    assert!(!run.wait().unwrap().success());
    agent.wait_for("the other stands still", |agent| job(agent, "mild")["phase"] == "frozen" && jobs[0].is_frozen());
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(names(&acts(&agent, "mild")), ["freeze"]);
    assert!(jobs[0].tasks[0].try_wait().unwrap().is_none(), "it lives");
}
