//! Rate cards that somebody vouches for: what is unsigned, wrongly signed, stale or no card at all leaves the last good one in force.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/agent.rs"]
#[expect(dead_code, reason = "what other tests need of it")]
mod agent;

use std::path::Path;
use std::process::{Command, Output};

use agent::Agent;
use serde_json::Value;

fn card(version: u64, unit: &str) -> String {
    format!(
        "card = \"site\"\nversion = {version}\neffective_from = \"2026-01-01T00:00:00Z\"\n[[line]]\nid = \"c\"\nmeter = \"cpu_time\"\n\
         price = \"1\"\nunit = \"{unit}\"\n"
    )
}

fn rate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_meterctl")).arg("rate").args(arguments).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Makes a key in that file; the line for `meterd.toml`.
fn key(file: &Path) -> String {
    let made = rate(&["key", text(file)]);
    assert!(made.status.success(), "{made:?}");
    String::from_utf8(made.stdout).unwrap()
}

fn public(line: &str) -> &str {
    line.split('"').nth(1).unwrap()
}

fn status(agent: &Agent) -> Value {
    agent.done("GET", "/v1/status", None)
}

fn reloaded(agent: &Agent, card: &str) {
    std::fs::write(agent.path("card.toml"), card).unwrap();
    agent.signal("HUP");
}

fn is_refused(status: &Value, why: &str) -> bool {
    let alarms = status["alarms"].as_array().unwrap();
    status["card_refused"].as_str().is_some_and(|refused| refused.contains(why))
        && alarms.iter().any(|alarm| alarm["code"] == "card_refused")
}

#[test]
fn f19_an_unfit_card_leaves_the_last_good_one_in_force_with_an_alarm() {
    let folder = tempfile::tempdir().unwrap();
    let (mine, other) = (folder.path().join("mine"), folder.path().join("other"));
    let (pinned, _) = (key(&mine), key(&other));
    let file = folder.path().join("card.toml");
    let signed_by = |secret: &Path, card: &str| {
        std::fs::write(&file, card).unwrap();
        let signed = rate(&["sign", text(&file), "--key", text(secret)]);
        assert!(signed.status.success(), "{signed:?}");
        std::fs::read_to_string(&file).unwrap()
    };
    let first = signed_by(&mine, &card(5, "core-hour"));
    let mut agent = Agent::start(&first, &pinned, "");
    assert_eq!((&status(&agent)["card"]["version"], &status(&agent)["card_refused"]), (&Value::from(5), &Value::Null));
    let unknown_unit = {
        // Nothing is signed that has mistakes, but a key's holder could have another program.
        let secret: meterd::domain::rates::SecretCardKey = std::fs::read_to_string(&mine).unwrap().parse().unwrap();
        secret.sign(&card(6, "core-fortnight"))
    };
    let changed = signed_by(&mine, &card(6, "core-hour")).replace("price = \"1\"", "price = \"0\"");
    for (what, unfit, why) in [
        ("unsigned", card(6, "core-hour"), "the card is not signed"),
        ("signed by another", signed_by(&other, &card(6, "core-hour")), "not by the pinned key"),
        ("changed", changed, "not by the pinned key"),
        ("stale", signed_by(&mine, &card(4, "core-hour")), "version 4 of card site is not above version 5"),
        ("of an unknown unit", unknown_unit, "core-fortnight"),
    ] {
        reloaded(&agent, &unfit);
        agent.wait_for(what, |agent| is_refused(&status(agent), why));
        assert_eq!(status(&agent)["card"]["version"], 5, "{what}");
        reloaded(&agent, &first);
        agent.wait_for("the good one again", |agent| status(agent)["card_refused"].is_null());
        assert!(status(&agent)["alarms"].as_array().unwrap().iter().all(|alarm| alarm["code"] != "card_refused"), "{what}");
    }
    // Nor does a spoilt file keep the agent from coming back.
    std::fs::write(agent.path("card.toml"), card(6, "core-hour")).unwrap();
    agent.signal("TERM");
    agent.end();
    agent.launch();
    agent.wait_for("a start with a spoilt card", |agent| is_refused(&status(agent), "the card is not signed"));
    assert_eq!(status(&agent)["card"]["version"], 5);
    reloaded(&agent, &signed_by(&mine, &card(6, "core-hour")));
    agent.wait_for("the next good one", |agent| status(agent)["card"]["version"] == 6);
    assert!(status(&agent)["card_refused"].is_null());
}

#[test]
fn s7_a_card_comes_into_force_at_its_instant_and_a_running_job_is_split_there() {
    // Looks are ten seconds apart: only the card's own date can be the cause.
    let at = |instant: jiff::Timestamp, version| card(version, "core-hour").replace("2026-01-01T00:00:00Z", &instant.to_string());
    let agent = Agent::start(&card(1, "core-hour"), "interval_ms = 10000", "");
    agent.done("POST", "/v1/accounts", Some(&serde_json::json!({ "account": "lab" })));
    let mut job = Command::new("sleep").arg("1000").spawn().unwrap();
    let body = serde_json::json!({ "job": "job", "account": "lab", "process": { "pid": job.id() } });
    agent.wait_for("the job is taken", |agent| agent.ask("POST", "/v1/jobs", Some(&body)).0 < 300);
    let date = jiff::Timestamp::now() + std::time::Duration::from_secs(2);
    reloaded(&agent, &at(date, 2));
    let receipt = |agent: &Agent| agent.done("GET", "/v1/jobs/job/receipt", None);
    agent.wait_for("two segments", |agent| receipt(agent)["segments"].as_array().unwrap().len() == 2);
    let receipt = receipt(&agent);
    job.kill().unwrap();
    job.wait().unwrap();
    let instant = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let (end, begin) = (instant(&receipt["segments"][0]["to"]), instant(&receipt["segments"][1]["from"]));
    assert_eq!(end, begin, "no hole and no overlap");
    assert!(date.as_millisecond() <= begin.as_millisecond(), "not before its date: {begin} {date}");
    println!("the card came into force {} after its date", begin - date);
}

#[test]
fn a_key_is_made_once_and_a_card_with_mistakes_is_not_signed() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let (secret, file) = (folder.path().join("key"), folder.path().join("card.toml"));
    let line = key(&secret);
    assert_eq!(std::fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!rate(&["key", text(&secret)]).status.success(), "a key is not written over");
    std::fs::write(&file, card(1, "core-fortnight")).unwrap();
    assert!(!rate(&["sign", text(&file), "--key", text(&secret)]).status.success());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), card(1, "core-fortnight"));
    std::fs::write(&file, card(1, "core-hour")).unwrap();
    let unsigned = rate(&["check", text(&file), "--key", public(&line)]);
    assert!(!unsigned.status.success() && String::from_utf8_lossy(&unsigned.stderr).contains("[not_vouched_for]"), "{unsigned:?}");
    assert!(rate(&["sign", text(&file), "--key", text(&secret)]).status.success());
    let good = rate(&["check", text(&file), "--key", public(&line)]);
    assert!(good.status.success(), "{good:?}");
    let other = key(&folder.path().join("other"));
    assert!(!rate(&["check", text(&file), "--key", public(&other)]).status.success());
}
