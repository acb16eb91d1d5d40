//! Cards and policies that come along, walked as a site's people would: a real agent with card and policy, real jobs in real cgroups, the end of
//! the credit, a top-up, and then everything that can be asked for afterwards.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/agent.rs"]
#[expect(dead_code, reason = "what other tests need of it")]
mod agent;
#[path = "support/cgroup.rs"]
#[expect(dead_code, reason = "what other tests need of it")]
mod cgroup;
#[path = "stub_nvml/mod.rs"]
#[expect(dead_code, reason = "what other tests need of it")]
mod stub_nvml;
#[path = "support/mod.rs"]
mod support;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use agent::Agent;
use cgroup::{cgroups, paths};
use meterd::domain::money::Credits;
use serde_json::Value;
use stub_nvml::Stub;

fn packaged(folder: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("packaging/{folder}/{name}.toml"))
}

/// An agent with a card that comes along, which tells what it would tell a site's command to a file.
fn site(card: &str, gpu: &str, parent: &str) -> Agent {
    let card = std::fs::read_to_string(packaged("ratecards", card)).unwrap();
    let events = "[warn]\nterminals = \"off\"\ncommand = [\"/bin/sh\", \"-c\", 'echo \"$METERD_EVENT $METERD_ACCOUNT $METERD_PERCENT$METERD_BELOW$METERD_PAYMENT$METERD_STORAGE_COSTS\" >> FILE']\n";
    let mut agent =
        Agent::new(&card, "enforcement = \"enforce\"\ninterval_ms = 100", &format!("[cgroup]\nparent = \"{parent}\"\n{gpu}\n{events}"));
    let told = agent.path("told");
    std::fs::write(&told, "").unwrap();
    // The command runs as nobody.
    for (path, mode) in [(agent.folder.path(), 0o755), (&told, 0o666)] {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    let config = std::fs::read_to_string(agent.path("meterd.toml")).unwrap().replace("FILE", told.to_str().unwrap());
    std::fs::write(agent.path("meterd.toml"), config).unwrap();
    agent.launch();
    agent
}

fn told(agent: &Agent) -> String {
    std::fs::read_to_string(agent.path("told")).unwrap()
}

fn meterctl(agent: &Agent) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meterctl"));
    command.arg("--socket").arg(agent.path("run/meterd.sock")).stdin(Stdio::null());
    command
}

fn ctl(agent: &Agent, words: &str) -> Output {
    meterctl(agent).args(words.split_whitespace()).output().unwrap()
}

/// What a command prints that must succeed.
fn said(agent: &Agent, words: &str) -> String {
    let output = ctl(agent, words);
    assert!(output.status.success(), "{words}: {}; the log:\n{}", String::from_utf8_lossy(&output.stderr), agent.log());
    String::from_utf8(output.stdout).unwrap()
}

/// What a command says that must fail.
fn refused(agent: &Agent, words: &str) -> String {
    let output = ctl(agent, words);
    assert!(!output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

/// A job that runs until it is ended.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn running(agent: &Agent, words: &str, script: &str) -> Running {
    Running(meterctl(agent).args(words.split_whitespace()).args(["--", "sh", "-c", script]).stdout(Stdio::null()).spawn().unwrap())
}

fn receipt(agent: &Agent, job: &str) -> Value {
    serde_json::from_slice(&ctl(agent, &format!("receipt {job} --output json")).stdout).unwrap_or_default()
}

fn finished(agent: &Agent, job: &str) -> Value {
    agent.wait_for("its receipt is final", |agent| receipt(agent, job)["state"] == "final");
    receipt(agent, job)
}

fn phase(agent: &Agent, job: &str) -> Value {
    agent.done("GET", &format!("/v1/jobs/{job}"), None)["phase"].clone()
}

fn amount(value: &Value) -> Credits {
    value.as_str().unwrap_or_else(|| panic!("{value} is no amount")).parse().unwrap()
}

fn number(value: &Value) -> u128 {
    value.as_str().unwrap_or_else(|| panic!("{value} is no number")).parse().unwrap()
}

fn shows(agent: &Agent, account: &str, key: &str) -> Option<String> {
    let text = said(agent, &format!("account show {account}"));
    let line = text.lines().find(|line| line.trim_start().starts_with(key))?;
    Some(line.trim_start()[key.len()..].trim().to_owned())
}

/// What anybody can be asked for afterwards agrees: text, page and JSON of the receipt, the offline check, statement, report and ledger.
fn all_agree(agent: &Agent, account: &str, jobs: &[&str]) {
    let mut charges = Credits::ZERO;
    for job in jobs {
        let receipt = receipt(agent, job);
        let charge = amount(&receipt["charge"]);
        charges = charges.plus(charge);
        let (text, page) = (said(agent, &format!("receipt {job}")), said(agent, &format!("receipt {job} --html")));
        assert!(text.contains(&charge.to_string()) && page.contains(&format!("{charge} credits")), "{text}");
        let file = agent.path("receipt.json");
        std::fs::write(&file, receipt.to_string()).unwrap();
        let verified = said(agent, &format!("verify --receipt {} --card {}", file.display(), agent.path("card.toml").display()));
        assert!(verified.starts_with(&format!("OK: {job}, attempt ")), "{verified}");
    }
    let drawn: Credits = jobs.iter().map(|job| amount(&receipt(agent, job)["drawn"])).sum();
    agent.wait_for("all of it is settled", |agent| {
        shows(agent, account, "charged").is_some_and(|charged| charged.split(' ').next() == Some(&drawn.to_string()))
    });
    let report: Value = serde_json::from_str(&said(agent, &format!("report --by job --account {account} --period today --json"))).unwrap();
    assert_eq!(amount(&report["total"]), charges, "{report:#}");
    let statement = said(agent, &format!("report statement {account} --period month"));
    assert!(statement.contains(&drawn.to_string()), "{drawn}: {statement}");
    let reconciled = said(agent, &format!("report reconcile --state-dir {}", agent.path("state").display()));
    assert!(reconciled.contains("OK: "), "{reconciled}");
}

#[test]
fn s1_s3_s8_s9_s10_s14_a_workspace_by_the_second_from_its_first_top_up_to_its_statement() {
    let Some(_) = cgroups("walked-second", 1) else { return };
    let stub =
        Stub::new("gpu 0 GPU-0a 85899345920 1073741824 NVIDIA H100 80GB HBM3\ngpu 1 GPU-1b 85899345920 1073741824 NVIDIA H100 80GB HBM3");
    let agent = site("per-second-gpu", &format!("[gpu]\nlibrary = \"{}\"", stub.library().display()), "meterd-test-walked-second");
    said(&agent, &format!("account create ws --file {}", packaged("policies", "per-second-gpu").display()));
    said(&agent, "account topup ws 9.99 --payment p-1");
    let run = "run --account ws --job train --gpus 0,1 --cpus 2 --memory 64MiB --storage 100GB --trait tier=spot";
    let why = refused(&agent, &format!("{run} -- true"));
    assert!(why.contains("10"), "s8: below the threshold: {why}");
    said(&agent, "account topup ws 2.01 --payment p-2 --unit USD");
    let why = refused(&agent, &format!("{run} --time-limit 10h -- true"));
    assert!(why.contains("32"), "s9: it would use more than there is: {why}");
    let why = refused(&agent, "run --account ws --job train --gpus 0 --cpus 2 --memory 64MiB -- true");
    assert!(why.contains("storage"), "what the card prices must be stated: {why}");
    let done = agent.path("done");
    let script = format!("trap 'echo asked >> {0}' TERM; while ! [ -e {0}.now ]; do sleep 0.05; done", done.display());
    let mut job = running(&agent, &format!("{run} --time-limit 1h"), &script);
    agent.wait_for("it runs", |agent| agent.ask("GET", "/v1/jobs/train", None).0 == 200 && phase(agent, "train") == "running");
    assert_eq!(said(&agent, "job change train --gpus 1"), "job train goes on in a new segment\n");
    said(&agent, "job count train cluster-io-bytes 5000000000");
    let events = |event: &str| told(&agent).lines().filter(|line| line.starts_with(event)).map(str::to_owned).collect::<Vec<_>>();
    said(&agent, "job count train object-egress-bytes 80000000000");
    agent.wait_for("4 of 12 credits are gone: 70 percent", |_| events("alert ws 70").len() == 1);
    said(&agent, "job count train object-egress-bytes 240000000000");
    agent.wait_for("the other alerts", |_| events("alert ws 40").len() == 1 && events("alert ws 10").len() == 1);
    agent.wait_for("it is asked to end", |_| done.exists());
    assert!(job.0.try_wait().unwrap().is_none(), "and not killed");
    said(&agent, "account topup ws 20 --payment p-3");
    agent.wait_for("there is credit again", |agent| {
        phase(agent, "train") == "running" && agent.done("GET", "/v1/accounts/ws", None)["node"]["verdict"] != "exhausted"
    });
    std::fs::write(format!("{}.now", done.display()), "").unwrap();
    assert_eq!(job.0.wait().unwrap().code(), Some(0));
    let receipt = finished(&agent, "train");
    let segments = receipt["segments"].as_array().unwrap();
    assert_eq!(segments.len(), 2);
    let line = |nth: usize, id: &str| segments[nth]["lines"].as_array().unwrap().iter().find(|line| line["line"] == id).unwrap().clone();
    for (nth, devices) in [(0, 2), (1, 1)] {
        let held: u128 = segments[nth]["gpus"].as_array().unwrap().iter().map(|gpu| number(&gpu["held_ns"])).sum();
        assert_eq!((number(&line(nth, "h100-spot")["quantity"]), held), (held, devices * number(&segments[nth]["running_ns"])));
        // 1.6 credits an hour, rounded down to the nano-credit.
        assert_eq!(amount(&line(nth, "h100-spot")["cost"]).nano().unsigned_abs(), held * 1_600_000_000 / 3_600_000_000_000);
    }
    assert_eq!(line(1, "object-egress")["cost"], "12");
    assert_eq!(line(1, "cluster-io")["cost"], "0.01");
    assert_eq!(amount(&receipt["unfunded"]).plus(amount(&receipt["drawn"])), amount(&receipt["charge"]));
    all_agree(&agent, "ws", &["train"]);
}

/// How many nanoseconds the month (UTC) has in which that instant lies.
fn month_ns(instant: &str) -> u128 {
    let date: jiff::civil::Date = instant[..10].parse().unwrap();
    u128::from(date.days_in_month().unsigned_abs()) * 86_400_000_000_000
}

#[test]
fn s5_a_volume_that_no_task_uses_costs_by_the_month_that_it_is_in_also_while_its_account_is_empty() {
    let Some(volume) = cgroups("walked-volume", 1) else { return };
    let agent = site("per-second-gpu", "", "meterd-test-walked-volume");
    said(&agent, &format!("account create ws --file {} --grace 0s", packaged("policies", "per-second-gpu").display()));
    said(&agent, "account topup ws 10 --payment p-1");
    // 50,000 TB cost five million credits a month. No task is in it, and none will be.
    let dirs: Vec<String> = paths(&volume[0]).iter().map(|dir| format!("--cgroup {dir}")).collect();
    said(&agent, &format!("job start --job volume --account ws {} --cpus 0 --memory 0 --storage 50000TB", dirs.join(" ")));
    let charge = |agent: &Agent| amount(&receipt(agent, "volume")["charge"]);
    let frozen_ns = |agent: &Agent| {
        receipt(agent, "volume")["segments"].as_array().unwrap().iter().map(|segment| number(&segment["frozen_ns"])).sum::<u128>()
    };
    agent.wait_for("it costs something", |agent| Credits::ZERO < charge(agent));
    agent.wait_for("it stands still", |agent| phase(agent, "volume") == "frozen");
    let then = charge(&agent);
    agent.wait_for("it has stood still for a second", |agent| 1_000_000_000 < frozen_ns(agent));
    assert!(then < charge(&agent), "it is there also while its account is empty, and its card says that this costs");
    said(&agent, "account topup ws 1000 --payment p-2");
    agent.wait_for("it goes on", |agent| phase(agent, "volume") == "running");
    assert_eq!(said(&agent, "job change volume --storage 10000TB"), "job volume goes on in a new segment\n");
    agent.wait_for("it costs something there", |agent| {
        receipt(agent, "volume")["segments"].as_array().unwrap().last().unwrap()["cost"] != "0"
    });
    said(&agent, "job stop volume --outcome completed");
    let receipt = finished(&agent, "volume");
    let segments = receipt["segments"].as_array().unwrap();
    assert!(2 <= segments.len() && 1_000_000_000 < frozen_ns(&agent));
    for (nth, segment) in segments.iter().enumerate() {
        let bytes: u128 = if nth + 1 == segments.len() { 10_000_000_000_000_000 } else { 50_000_000_000_000_000 };
        let held = bytes * (number(&segment["running_ns"]) + number(&segment["frozen_ns"]));
        // A tenth of a credit for a GB and a month, rounded down to the nano-credit.
        let cost = held / (10 * month_ns(segment["from"].as_str().unwrap()));
        assert_eq!(amount(&segment["cost"]).nano().unsigned_abs(), cost, "{segment:#}");
    }
    all_agree(&agent, "ws", &["volume"]);
}

#[test]
fn r1_r3_r4_r5_r6_r7_a_project_by_the_hour_whose_instances_end_and_whose_storage_is_detached() {
    let Some(_) = cgroups("walked-hour", 1) else { return };
    let agent = site("hourly-posted", "", "meterd-test-walked-hour");
    said(&agent, &format!("account create proj --file {}", packaged("policies", "hourly-posted").display()));
    assert!(refused(&agent, "account topup proj 4.99").contains("a deposit is at least 5 credits here"), "r1");
    said(&agent, "account topup proj 12 --payment p-1 --unit USD");
    let run = "run --account proj --trait instance_class=small";
    assert!(refused(&agent, &format!("{run} --job web -- true")).contains("storage"), "what the card prices must be stated");
    // 50,000 TB cost 5,000 credits an hour.
    let mut web = running(&agent, &format!("{run} --job web --storage 50000TB"), "sleep 1000");
    agent.wait_for("it runs", |agent| agent.ask("GET", "/v1/jobs/web", None).0 == 200);
    for id in ["c-1", "c-2", "c-1"] {
        said(&agent, &format!("job event web call {id}"));
    }
    let open = |agent: &Agent| {
        said(agent, "account ledger proj").lines().filter(|line| line.contains("usage in the hour")).map(str::to_owned).collect::<Vec<_>>()
    };
    agent.wait_for("r4: the hour that runs is one row", |agent| open(agent).len() == 1);
    assert!(open(&agent)[0].contains("accumulating"), "{:?}", open(&agent));
    agent.wait_for("r7: less than ten are left: the site is asked for fifty", |agent| told(agent).contains("refill proj refill/proj/1"));
    agent.wait_for("nothing ends while they may come", |agent| phase(agent, "web") == "frozen");
    said(&agent, "account fail proj refill/proj/1");
    assert!(!web.0.wait().unwrap().success(), "r5: it ends at zero");
    let first = finished(&agent, "web");
    assert_eq!(first["outcome"], "out_of_credit", "{first:#}");
    agent.wait_for("r6: its storage is detached", |agent| told(agent).contains("detach_storage proj yes"));
    assert!(refused(&agent, &format!("{run} --job again --storage 0 -- true")).contains("credit"));
    said(&agent, "account topup proj 20 --payment p-2");
    agent.wait_for("and attached", |agent| told(agent).contains("attach_storage proj"));
    assert!(said(&agent, &format!("{run} --job again --storage 0 -- true")).is_empty());
    finished(&agent, "again");
    assert_eq!(open(&agent).len(), 1, "still one row: {:?}", open(&agent));
    all_agree(&agent, "proj", &["web", "again"]);
}
