//! The meters that a card must price before anybody reads them, on a real agent: what GPUs do, by a stub of NVML; what a hook counts; what
//! is given to a job and taken from it while it runs.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/agent.rs"]
#[expect(dead_code, reason = "what other tests need of it")]
mod agent;
#[path = "stub_nvml/mod.rs"]
#[expect(dead_code, reason = "what other tests need of it")]
mod stub_nvml;

use std::process::{Child, Command, Output, Stdio};

use agent::Agent;
use serde_json::{Value, json};
use stub_nvml::Stub;

const CARD: &str = r#"card = "all"
version = 1
effective_from = "2026-01-01T00:00:00Z"
[[line]]
id = "held"
meter = "gpu_held"
price = "2"
unit = "gpu-hour"
[[line]]
id = "held-spot"
meter = "gpu_held"
price = "1"
unit = "gpu-hour"
select = { tier = "spot" }
[[line]]
id = "busy"
meter = "gpu_busy"
price = "1"
unit = "gpu-hour"
[[line]]
id = "vram"
meter = "gpu_memory"
price = "0.01"
unit = "GiB-hour"
[[line]]
id = "energy"
meter = "energy"
price = "0.30"
unit = "kWh"
[[line]]
id = "storage"
meter = "storage"
price = "0.10"
unit = "GB-month"
month = "calendar"
[[line]]
id = "tokens"
meter = "counter"
name = "tokens"
price = "1"
unit = "count"
per = 1000
[[line]]
id = "requests"
meter = "events"
name = "request"
price = "0.25"
unit = "event"
"#;

const TWO_GPUS: &str = "gpu 0 GPU-0a 85899345920 1073741824 NVIDIA H100\ngpu 1 GPU-1b 85899345920 2147483648 NVIDIA H100\n\
                        cycle 0 50\ncycle 1 100\nenergy 0 1000000\nenergy 1 5000000";

struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sleeper() -> Sleeper {
    Sleeper(Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap())
}

fn meterctl(agent: &Agent, arguments: &[&str]) -> Output {
    let socket = agent.path("run/meterd.sock");
    Command::new(env!("CARGO_BIN_EXE_meterctl")).arg("--socket").arg(socket).args(arguments).output().unwrap()
}

fn done(agent: &Agent, arguments: &[&str]) -> String {
    let output = meterctl(agent, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn refused(agent: &Agent, arguments: &[&str], code: &str) {
    let output = meterctl(agent, arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains(code), "{arguments:?}: {output:?}");
}

fn receipt(agent: &Agent) -> Value {
    agent.done("GET", "/v1/jobs/job/receipt", None)
}

fn funded(agent: &Agent) {
    agent.done("POST", "/v1/accounts", Some(&json!({ "account": "lab" })));
    agent.done("POST", "/v1/accounts/lab/topup", Some(&json!({ "amount": "1000", "bucket": "paid", "payment": "p-1" })));
}

/// A number that stands as text.
fn number(value: &Value) -> u128 {
    value.as_str().unwrap_or_else(|| panic!("{value} is no number")).parse().unwrap()
}

fn ended(agent: &Agent, job: Sleeper) -> Value {
    drop(job);
    agent.done("POST", "/v1/jobs/job/stop", Some(&json!({ "outcome": "completed", "exit_code": 0 })));
    agent.wait_for("the receipt is final", |agent| receipt(agent)["state"] == "final");
    let receipt = receipt(agent);
    let (file, card) = (agent.path("receipt.json"), agent.path("card.toml"));
    std::fs::write(&file, receipt.to_string()).unwrap();
    let verified =
        Command::new(env!("CARGO_BIN_EXE_meterctl")).arg("verify").arg("--receipt").arg(file).arg("--card").arg(card).output().unwrap();
    assert!(verified.status.success(), "{verified:?}\n{receipt:#}");
    receipt
}

#[test]
fn s14_gpus_are_given_up_in_mid_run_and_each_segment_has_what_its_own_did() {
    let stub = Stub::new(TWO_GPUS);
    let agent = Agent::start(
        CARD,
        "enforcement = \"enforce\"\nprovider = \"island\"",
        &format!("[gpu]\nlibrary = \"{}\"", stub.library().display()),
    );
    funded(&agent);
    let job = sleeper();
    let body =
        json!({ "job": "job", "account": "lab", "process": { "pid": job.0.id() }, "gpus": [0, 1], "storage_bytes": 1_000_000_000_000_u64 });
    agent.wait_for("the job is taken", |agent| agent.ask("POST", "/v1/jobs", Some(&body)).0 < 300);
    let first = |agent: &Agent, key: &str, gpu: &str| {
        receipt(agent)["segments"][0]["more"][key][gpu].as_str().map_or(0, |text| text.parse::<u128>().unwrap())
    };
    agent.wait_for("both were seen busy", |agent| 0 < first(agent, "gpu_busy_ns", "GPU-0a") && 0 < first(agent, "gpu_busy_ns", "GPU-1b"));
    assert_eq!(first(&agent, "energy_mj", "GPU-0a"), 0, "what it used before the job is not the job's");
    stub.says(&TWO_GPUS.replace("energy 0 1000000", "energy 0 1000900").replace("energy 1 5000000", "energy 1 5000300"));
    agent.wait_for("the energy was read", |agent| first(agent, "energy_mj", "GPU-0a") == 900 && first(agent, "energy_mj", "GPU-1b") == 300);
    assert_eq!(done(&agent, &["job", "change", "job", "--gpus", "1", "--trait", "tier=spot"]), "job job goes on in a new segment\n");
    assert_eq!(done(&agent, &["job", "change", "job", "--gpus", "1"]), "job job is given that already\n");
    let other = sleeper();
    let taken = json!({ "job": "other", "account": "lab", "process": { "pid": other.0.id() }, "gpus": [0], "storage_bytes": 0 });
    agent.done("POST", "/v1/jobs", Some(&taken));
    refused(&agent, &["job", "change", "job", "--gpus", "0,1"], "gpu_held");
    let busy = |agent: &Agent| receipt(agent)["segments"][1]["more"]["gpu_busy_ns"]["GPU-1b"].as_str().is_some_and(|ns| ns != "0");
    agent.wait_for("it is busy in the second segment", busy);
    let receipt = ended(&agent, job);
    let segments = receipt["segments"].as_array().unwrap();
    assert_eq!(segments.len(), 2);
    assert_eq!(segments[0]["to"], segments[1]["from"], "no hole and no overlap");
    assert_eq!(segments.iter().map(|segment| segment["gpus"].as_array().unwrap().len()).collect::<Vec<_>>(), [2, 1]);
    let lines = |nth: usize| {
        segments[nth]["lines"].as_array().unwrap().iter().map(|line| line["line"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(lines(0), ["held", "busy", "vram", "energy", "storage", "tokens", "requests"]);
    assert_eq!(lines(1)[0], "held-spot");
    assert!(segments[1]["more"]["gpu_busy_ns"].get("GPU-0a").is_none(), "a device that it gave up");
    // One is busy for half of the time, the other for all of it; and neither for longer than it was held.
    let (half, whole) = (number(&segments[0]["more"]["gpu_busy_ns"]["GPU-0a"]), number(&segments[0]["more"]["gpu_busy_ns"]["GPU-1b"]));
    assert!(half * 19 <= whole * 10 && whole * 10 <= half * 21 && whole <= number(&segments[0]["running_ns"]), "{half} {whole}");
    let text = done(&agent, &["receipt", "job"]);
    assert!(text.contains("provider  island, earned ") && text.contains("given then: storage 931.3 GiB, node test\n"), "{text}");
    assert_eq!(receipt["provider"], "island");
    assert_eq!(receipt["earned"], receipt["charge"]);
}

#[test]
fn a_hook_counts_and_reports_and_each_word_counts_once() {
    let agent = Agent::start(CARD, "enforcement = \"enforce\"", "[gpu]\nnvml = \"off\"");
    funded(&agent);
    let job = sleeper();
    let body = json!({ "job": "job", "account": "lab", "process": { "pid": job.0.id() }, "storage_bytes": 0 });
    agent.wait_for("the job is taken", |agent| agent.ask("POST", "/v1/jobs", Some(&body)).0 < 300);
    assert_eq!(done(&agent, &["job", "count", "job", "tokens", "1500"]), "job job: counted\n");
    assert_eq!(done(&agent, &["job", "count", "job", "tokens", "1500"]), "job job: known already\n");
    assert_eq!(done(&agent, &["job", "event", "job", "request", "r-1"]), "job job: counted\n");
    assert_eq!(done(&agent, &["job", "event", "job", "request", "r-1"]), "job job: known already\n");
    refused(&agent, &["job", "count", "job", "words", "1"], "no_price");
    assert_eq!(done(&agent, &["job", "change", "job", "--storage", "0"]), "job job is given that already\n");
    refused(&agent, &["job", "event", "other", "request", "r-1"], "unknown_job");
    let wrong = agent.ask("POST", "/v1/jobs/job/count", Some(&json!({ "counter": "tokens" })));
    assert_eq!(wrong.0, 422, "{wrong:?}");
    let nothing = agent.ask("POST", "/v1/jobs/job/change", Some(&json!({})));
    assert_eq!(nothing.0, 422, "{nothing:?}");
    let receipt = ended(&agent, job);
    let cost = |line: &str| {
        let lines = receipt["segments"][0]["lines"].as_array().unwrap();
        lines.iter().find(|other| other["line"] == line).unwrap()["cost"].as_str().unwrap().to_owned()
    };
    assert_eq!((cost("tokens"), cost("requests"), cost("storage")), ("1.5".to_owned(), "0.25".to_owned(), "0".to_owned()));
    refused(&agent, &["job", "count", "job", "tokens", "1600"], "job_ended");
}

#[test]
fn s4_a_host_without_gpus_charges_several_lines_on_one_job_without_nvml() {
    let card = "card = \"cpu\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n\
                [[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"1\"\nunit = \"core-hour\"\n\
                [[line]]\nid = \"ram\"\nmeter = \"memory_charged\"\nprice = \"0.5\"\nunit = \"GiB-hour\"\n\
                [[line]]\nid = \"gpu\"\nmeter = \"gpu_held\"\nprice = \"4\"\nunit = \"gpu-hour\"\n\
                [[line]]\nid = \"busy\"\nmeter = \"gpu_busy\"\nprice = \"4\"\nunit = \"gpu-hour\"\n\
                [[line]]\nid = \"place\"\nmeter = \"wall_time\"\nprice = \"0.1\"\nunit = \"hour\"\n";
    let agent = Agent::start(card, "enforcement = \"enforce\"", "[gpu]\nlibrary = \"/nowhere/libnvidia-ml.so.1\"");
    funded(&agent);
    let job = Sleeper(Command::new("/bin/sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn().unwrap());
    let body = json!({ "job": "job", "account": "lab", "process": { "pid": job.0.id() } });
    agent.wait_for("the job is taken", |agent| agent.ask("POST", "/v1/jobs", Some(&body)).0 < 300);
    agent.wait_for("it was charged", |agent| number(&receipt(agent)["segments"][0]["cpu_ns"]) > 1_000_000_000);
    let receipt = ended(&agent, job);
    let lines: Vec<&str> = receipt["segments"][0]["lines"].as_array().unwrap().iter().map(|line| line["line"].as_str().unwrap()).collect();
    assert_eq!(lines, ["cpu", "ram", "place"], "the lines of devices that it does not hold are not on its receipt");
    let all: Vec<&Value> = receipt["segments"][0]["lines"].as_array().unwrap().iter().map(|line| &line["cost"]).collect();
    assert!(all.iter().all(|cost| **cost != "0"), "{all:?}");
}
