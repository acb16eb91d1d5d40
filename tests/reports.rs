//! What was stored is looked at as its users would: reports, statement, reconciliation, quote, replay, page, and the anchored journal.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/agent.rs"]
#[expect(dead_code, reason = "what other tests need of it")]
mod agent;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use agent::Agent;
use meterd::domain::chain::Head;
use meterd::domain::fact::Fact;
use meterd::domain::money::Credits;
use serde_json::Value;

const CARD: &str = "card = \"test\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n\
    [[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"36\"\nunit = \"core-hour\"\n\
    [[line]]\nid = \"start\"\nmeter = \"job_starts\"\nprice = \"0.5\"\nunit = \"start\"\n";
const DRAFT: &str = "card = \"draft\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n\
    [[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"36\"\nunit = \"core-hour\"\n\
    [[line]]\nid = \"start\"\nmeter = \"job_starts\"\nprice = \"0.75\"\nunit = \"start\"\n";

fn ctl(agent: &Agent, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meterctl"));
    command.arg("--socket").arg(agent.path("run/meterd.sock")).stdin(Stdio::null()).args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn done(agent: &Agent, arguments: &[&str]) -> String {
    let output = ctl(agent, arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}; the log:\n{}", text(&output), agent.log());
    String::from_utf8(output.stdout).unwrap()
}

fn json(agent: &Agent, arguments: &[&str]) -> Value {
    serde_json::from_str(&done(agent, arguments)).unwrap()
}

fn amount(value: &Value) -> Credits {
    value.as_str().unwrap().parse().unwrap()
}

/// A process that uses CPU time until it is ended.
struct Burner(Child);

impl Burner {
    fn start() -> Burner {
        Burner(Command::new("sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Burner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A job of one burning process that is metered as its tree, with what was stated of it, until it has cost something.
fn burn(agent: &Agent, job: &str, traits: &[&str]) {
    burn_until(agent, job, traits, "completed");
}

fn burn_until(agent: &Agent, job: &str, traits: &[&str], outcome: &str) {
    let burner = Burner::start();
    let pid = burner.0.id().to_string();
    let stated = traits.iter().flat_map(|stated| ["--trait", stated]);
    let words: Vec<&str> =
        ["job", "start", "--job", job, "--account", "lab", "--pid", &pid, "--cpus", "4"].into_iter().chain(stated).collect();
    done(agent, &words);
    let charge = |agent: &Agent| amount(&json(agent, &["receipt", job, "--output", "json"])["charge"]);
    agent.wait_for("it has used a tenth of a second", |agent| "0.501".parse::<Credits>().unwrap() < charge(agent));
    drop(burner);
    done(agent, &["job", "stop", job, "--outcome", outcome]);
    agent.wait_for("its receipt is final", |agent| json(agent, &["receipt", job, "--output", "json"])["state"] == "final");
}

fn agent_with_two_jobs() -> Agent {
    let agent = Agent::start(CARD, "", "");
    done(&agent, &["account", "create", "lab"]);
    done(&agent, &["account", "topup", "lab", "100", "--payment", "p-1"]);
    burn(&agent, "one", &["project=chat", "model=llama-7b"]);
    burn(&agent, "two", &["project=search", "label=nightly"]);
    agent
}

fn settled(agent: &Agent) {
    let charged = |agent: &Agent| {
        let account = json(agent, &["account", "show", "lab", "--output", "json"]);
        amount(&account["authority"]["settled"])
    };
    let receipts = |agent: &Agent| -> Credits {
        ["one", "two"].map(|job| amount(&json(agent, &["receipt", job, "--output", "json"])["drawn"])).into_iter().sum()
    };
    agent.wait_for("all of it is settled", |agent| charged(agent) == receipts(agent));
}

#[test]
fn s12_what_was_used_is_told_by_job_user_project_and_model_over_the_local_socket() {
    let agent = agent_with_two_jobs();
    let charges = ["one", "two"].map(|job| amount(&json(&agent, &["receipt", job, "--output", "json"])["charge"]));
    let total: Credits = charges.into_iter().sum();
    let rows = |by: &str| {
        let report = json(&agent, &["report", "--by", by, "--period", "today", "--json"]);
        assert_eq!(amount(&report["total"]), total, "{by}");
        let row = |row: &Value| (row["key"].as_str().map(str::to_owned), amount(&row["charge"]));
        let mut rows: Vec<(Option<String>, Credits)> = report["rows"].as_array().unwrap().iter().map(row).collect();
        rows.sort();
        rows
    };
    let key = |text: &str| Some(text.to_owned());
    assert_eq!(rows("account"), [(key("lab"), total)]);
    assert_eq!(rows("project"), [(key("chat"), charges[0]), (key("search"), charges[1])]);
    assert_eq!(rows("model"), [(None, charges[1]), (key("llama-7b"), charges[0])]);
    assert_eq!(rows("label"), [(None, charges[0]), (key("nightly"), charges[1])]);
    assert_eq!(rows("job"), [(key("one#1"), charges[0]), (key("two#2"), charges[1])]);
    let users = rows("user");
    let uid = rustix::process::geteuid().as_raw().to_string();
    assert!(users.len() == 1 && users[0].0.as_ref().unwrap().contains(&uid), "{users:?}");
    let csv = done(&agent, &["report", "--by", "project", "--period", "today", "--csv"]);
    assert_eq!(csv.lines().count(), 3, "{csv}");
    let state = agent.path("state");
    let from_files = done(&agent, &["report", "--by", "project", "--period", "today", "--csv", "--state-dir", state.to_str().unwrap()]);
    assert_eq!(csv, from_files, "the agent and its files say the same");
    let told = done(&agent, &["report", "--period", "7d"]);
    assert!(told.contains("this month so far") && told.contains("most expensive"), "{told}");
}

#[test]
fn v10_a_row_of_the_ledger_opens_to_jobs_and_their_metering_numbers() {
    let agent = agent_with_two_jobs();
    settled(&agent);
    let ledger = json(&agent, &["account", "ledger", "lab", "--output", "json"]);
    let usage: Vec<&Value> = ledger["entries"].as_array().unwrap().iter().filter(|entry| entry["kind"] == "usage").collect();
    assert!(!usage.is_empty());
    let mut jobs = std::collections::BTreeSet::new();
    for entry in &usage {
        let hour = entry["hour"].as_u64().unwrap();
        let begins = jiff::Timestamp::from_second(i64::try_from(hour * 3_600).unwrap()).unwrap().to_string();
        let report = json(&agent, &["report", "--by", "job", "--account", "lab", "--period", &begins[..13], "--json"]);
        jobs.extend(report["rows"].as_array().unwrap().iter().map(|row| row["key"].as_str().unwrap().to_owned()));
    }
    assert!(["one#1", "two#2"].iter().all(|job| jobs.contains(*job)), "{jobs:?}");
    // And each of these to what was measured, and to the lines that priced it.
    let receipt = json(&agent, &["receipt", "one", "--output", "json"]);
    let segment = &receipt["segments"][0];
    assert!(0 < segment["cpu_ns"].as_str().unwrap().parse::<u128>().unwrap());
    let lines: Vec<&str> = segment["lines"].as_array().unwrap().iter().map(|line| line["line"].as_str().unwrap()).collect();
    assert_eq!(lines, ["cpu", "start"]);
    let page = done(&agent, &["receipt", "one", "--html"]);
    assert!(page.contains(segment["cpu_ns"].as_str().unwrap()) && !page.contains("<script"), "{page}");
}

#[test]
fn a_draft_is_tried_on_what_was_stored_and_a_quote_on_the_card_in_force() {
    let agent = agent_with_two_jobs();
    std::fs::write(agent.path("draft.toml"), DRAFT).unwrap();
    let draft = agent.path("draft.toml");
    let replayed = json(&agent, &["rate", "replay", "--card", draft.to_str().unwrap(), "--output", "json"]);
    let (was, would) = (amount(&replayed["total"]["was"]), amount(&replayed["total"]["would"]));
    assert_eq!(would.minus(was), "0.5".parse().unwrap(), "a quarter of a credit more for each of two starts");
    assert_eq!((&replayed["total"]["jobs"], &replayed["not_replayed"]), (&Value::from(2), &Value::Array(Vec::new())));
    let own = agent.path("card.toml");
    let same = json(&agent, &["rate", "replay", "--card", own.to_str().unwrap(), "--output", "json"]);
    assert_eq!(amount(&same["total"]["was"]), amount(&same["total"]["would"]), "under its own card everything costs what it did");
    settled(&agent);
    let quote = json(&agent, &["quote", "--run", "1h", "--cpus", "2", "--account", "lab", "--output", "json"]);
    assert_eq!(amount(&quote["cost"]), "72.5".parse().unwrap(), "two core-hours and a start");
    assert_eq!(quote["card"], "test");
    assert!(amount(&quote["balance"]["available"]) < "100".parse().unwrap());
    assert!(done(&agent, &["quote", "--run", "1h", "--account", "lab"]).contains("lasts"));
}

#[test]
fn receipts_and_ledger_agree_and_a_difference_is_named_and_fails() {
    let mut agent = agent_with_two_jobs();
    settled(&agent);
    let state = agent.path("state").display().to_string();
    let told = done(&agent, &["report", "reconcile", "--state-dir", &state]);
    assert!(told.contains("OK: receipts and ledger agree"), "{told}");
    let statement = json(&agent, &["report", "statement", "lab", "--period", "month", "--output", "json"]);
    assert_eq!((amount(&statement["opening"]), &statement["open"]), (Credits::ZERO, &Value::Bool(true)));
    let lines = statement["lines"].as_array().unwrap();
    let kinds: Vec<&str> = lines.iter().map(|line| line["what"]["kind"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"deposit") && kinds.contains(&"usage"), "{kinds:?}");
    let moved: Credits = lines.iter().map(|line| amount(&line["change"])).sum();
    assert_eq!(amount(&statement["closing"]), moved);
    assert!(done(&agent, &["report", "statement", "lab", "--period", "month"]).contains("closing balance"));
    agent.kill();
    let store = rusqlite::Connection::open(agent.path("state/authority.db")).unwrap();
    store.execute("UPDATE ledger SET amount = '1.5' WHERE kind LIKE '%usage%'", []).unwrap();
    drop(store);
    let output = ctl(&agent, &["report", "reconcile", "--state-dir", &state]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("(ledger_usage)"), "{}", text(&output));
}

#[test]
fn v8_what_the_machine_failed_is_given_back_on_receipt_ledger_report_and_statement() {
    let card = CARD.replace("unit = \"core-hour\"", "unit = \"core-hour\"\noutcome = { infrastructure = \"0\" }");
    let mut agent = Agent::start(&card, "", "");
    done(&agent, &["account", "create", "lab"]);
    done(&agent, &["account", "topup", "lab", "100", "--payment", "p-1"]);
    burn_until(&agent, "one", &[], "infrastructure");
    let receipt = json(&agent, &["receipt", "one", "--output", "json"]);
    let (charge, refund) = (amount(&receipt["charge"]), &receipt["refund"]);
    assert_eq!((amount(&refund["net"]), amount(&refund["waived"])), ("0.5".parse().unwrap(), Credits::ZERO), "the start is not given back");
    let refunded = amount(&refund["refunded"]);
    assert_eq!(refunded, charge.minus("0.5".parse().unwrap()));
    let paid = |agent: &Agent| amount(&json(agent, &["account", "show", "lab", "--output", "json"])["authority"]["paid"]);
    agent.wait_for("it is booked", |agent| paid(agent) == "99.5".parse().unwrap());
    let shown = done(&agent, &["receipt", "one"]);
    assert!(
        shown.contains(&format!("{refunded} credits, by its outcome")) && shown.contains("net ") && shown.contains("0.5 credits"),
        "{shown}"
    );
    let page = done(&agent, &["receipt", "one", "--html"]);
    assert!(page.contains("given back, by its outcome") && page.contains("0.5 credits"), "{page}");
    assert!(done(&agent, &["account", "ledger", "lab"]).contains("given back by outcome in the hour from"));
    assert_eq!(amount(&json(&agent, &["report", "--period", "today", "--json"])["total"]), "0.5".parse().unwrap());
    let statement = json(&agent, &["report", "statement", "lab", "--period", "month", "--output", "json"]);
    let back = statement["lines"].as_array().unwrap().iter().find(|line| line["what"]["kind"] == "outcome_refund").unwrap();
    assert_eq!((amount(&back["change"]), amount(&statement["closing"])), (refunded, "99.5".parse().unwrap()));
    let state = agent.path("state").display().to_string();
    let told = done(&agent, &["report", "reconcile", "--state-dir", &state]);
    assert!(
        told.contains("OK: ") && told.contains(&format!("given back by the outcomes of jobs, on the nodes' receipts: {refunded}")),
        "{told}"
    );
    agent.kill();
    assert!(done(&agent, &["journal", "verify", "--state-dir", &state]).starts_with("OK: "));
}

#[test]
fn the_sides_of_several_nodes_are_compared_with_one_ledger_where_the_authority_is() {
    let mut agent = agent_with_two_jobs();
    settled(&agent);
    agent.kill();
    let state = agent.path("state").display().to_string();
    let (side, ledger) = (agent.path("n1.json").display().to_string(), format!("{state}/authority.db"));
    let exported = done(&agent, &["report", "reconcile", "--export", "--state-dir", &state]);
    std::fs::write(&side, &exported).unwrap();
    let compare = |files: &[&str]| {
        let words = ["report", "reconcile", "--ledger", &ledger].into_iter().chain(files.iter().flat_map(|file| ["--node", file]));
        let output = ctl(&agent, &words.collect::<Vec<_>>());
        (output.status.code(), text(&output))
    };
    let (code, told) = compare(&[&side]);
    assert!(code == Some(0) && told.contains("OK: receipts and ledger agree"), "{told}");
    let (code, told) = compare(&[&side, &side]);
    assert!(code == Some(1) && told.contains("each node once"), "{told}");
    let mut less: Value = serde_json::from_str(&exported).unwrap();
    let drawn = amount(&less["accounts"]["lab"]["drawn"]).minus(Credits::from_nano(1)).to_string();
    (less["accounts"]["lab"]["drawn"], less["accounts"]["lab"]["told_drawn"]) = (drawn.clone().into(), drawn.into());
    std::fs::write(&side, less.to_string()).unwrap();
    let (code, told) = compare(&[&side]);
    assert!(code == Some(1) && told.contains("(receipts_drawn)"), "{told}");
    less["reconcile"] = 2.into();
    std::fs::write(&side, less.to_string()).unwrap();
    let (code, told) = compare(&[&side]);
    assert!(code == Some(1) && told.contains("version 2"), "{told}");
}

/// Leaves one count out, and makes the chain anew over the rest, as root on the node could.
fn write_anew(dir: &Path) {
    let journal = rusqlite::Connection::open(dir.join("journal.db")).unwrap();
    let mut statement = journal.prepare("SELECT wall_ms, bytes FROM fact ORDER BY seq").unwrap();
    let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?));
    let mut rows: Vec<(i64, Vec<u8>)> = statement.query_map([], read).unwrap().collect::<Result<_, _>>().unwrap();
    drop(statement);
    let counted = rows.iter().position(|(_, bytes)| matches!(Fact::decode(bytes), Ok(Fact::Counted { .. }))).unwrap();
    rows.remove(counted);
    journal.execute_batch("DELETE FROM fact; DELETE FROM checkpoint").unwrap();
    let mut head = Head::START;
    for (wall, bytes) in &rows {
        head = head.after(bytes);
        let seq = i64::try_from(head.seq).unwrap();
        journal.execute("INSERT INTO fact VALUES (?1, ?2, ?3, ?4)", (seq, wall, bytes, head.link.0)).unwrap();
    }
    let seq = i64::try_from(head.seq).unwrap();
    journal.execute("UPDATE meta SET seq = ?1, chain = ?2 WHERE key = 'head'", (seq, head.link.0)).unwrap();
}

#[test]
fn g9_a_journal_that_is_written_anew_is_right_in_itself_and_not_by_what_the_authority_keeps() {
    let mut agent = agent_with_two_jobs();
    settled(&agent);
    let state = agent.path("state").display().to_string();
    let anchors = agent.path("anchors.json").display().to_string();
    std::fs::write(&anchors, done(&agent, &["account", "anchors", "--output", "json"])).unwrap();
    assert!(done(&agent, &["account", "anchors"]).contains("test"), "whose they are");
    let verify = |agent: &Agent, anchor: Option<&str>| {
        let words = ["journal", "verify", "--state-dir", &state];
        let anchor = anchor.map(|file| ["--anchor", file]);
        let output = ctl(agent, &words.into_iter().chain(anchor.into_iter().flatten()).collect::<Vec<_>>());
        (output.status.code(), text(&output))
    };
    let (code, told) = verify(&agent, Some(&anchors));
    assert!(code == Some(0) && told.contains("are of this chain") && told.contains("recomputed: "), "{told}");
    agent.kill();
    let log = agent.path("log.jsonl").display().to_string();
    let card = agent.path("card.toml").display().to_string();
    std::fs::write(&log, done(&agent, &["journal", "export", "--sealed", "--state-dir", &state])).unwrap();
    let told = done(&agent, &["verify", "--log", &log, "--anchor", &anchors, "--card", &card]);
    assert!(told.starts_with("OK: ") && told.contains("are of this chain"), "{told}");
    let store = format!("{state}/authority.db");
    assert_eq!(verify(&agent, Some(&store)).0, Some(0), "the store itself serves as well");
    write_anew(Path::new(&state));
    let (code, told) = verify(&agent, None);
    assert_eq!(code, Some(0), "in itself it is right: {told}");
    let (code, told) = verify(&agent, Some(&anchors));
    assert!(code == Some(1) && told.contains("the authority keeps"), "{told}");
    assert_eq!(verify(&agent, Some(&store)).0, Some(1));
    std::fs::write(&log, done(&agent, &["journal", "export", "--sealed", "--state-dir", &state])).unwrap();
    assert_eq!(ctl(&agent, &["verify", "--log", &log]).status.code(), Some(0));
    assert_eq!(ctl(&agent, &["verify", "--log", &log, "--anchor", &anchors]).status.code(), Some(1));
    std::fs::write(&card, DRAFT).unwrap();
    let other = ctl(&agent, &["verify", "--log", &log, "--card", &card]);
    assert!(other.status.code() == Some(1) && text(&other).contains("none of the log's"), "{}", text(&other));
}
