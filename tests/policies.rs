//! Policies as files, and what an operator does to accounts with `meterctl`: against the real agent.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/agent.rs"]
#[expect(dead_code, reason = "each test takes what it needs")]
mod agent;
#[path = "support/cgroup.rs"]
#[expect(dead_code, reason = "each test takes what it needs")]
mod cgroup;
#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use meterd::domain::ladder::Thresholds;
use meterd::domain::ledger::{
    Alerts, Allowance, Commitment, CommitmentPeriod, DetachedStorage, RefillTerms, StorageAtZero, Terms, Unit, Verification,
};
use meterd::domain::money::Credits;
use meterd::domain::rates::Card;
use meterd::domain::request::parse_policy;
use meterd::domain::time::Nanos;
use meterd::domain::wire::{AccountPolicy, OnExhaustion, StartPredicted};
use serde_json::{Value, json};

use agent::Agent;
use cgroup::{cgroups, paths};

/// A bit more than a tenth of a credit for a core-second.
const CARD: &str = "card = \"test\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n\
    [[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"417.0417\"\nunit = \"core-hour\"\n";

fn packaged(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(folder)
}

fn names(folder: &str) -> BTreeSet<String> {
    let files = std::fs::read_dir(packaged(folder)).unwrap();
    files.map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

fn policy(name: &str) -> (AccountPolicy, Terms) {
    let path = packaged("policies").join(format!("{name}.toml"));
    parse_policy(&std::fs::read_to_string(&path).unwrap(), name).unwrap_or_else(|mistakes| panic!("{mistakes:#?}"))
}

fn credits(text: &str) -> Credits {
    text.parse().unwrap()
}

fn secs(seconds: &[u64]) -> Vec<Nanos> {
    seconds.iter().copied().map(Nanos::from_secs).collect()
}

fn usd(credits_per_unit: &str) -> Unit {
    Unit { name: "USD".parse().unwrap(), credits_per_unit: credits_per_unit.parse().unwrap() }
}

#[test]
fn each_card_for_a_whole_way_of_charging_has_its_policy_and_no_policy_is_without_its_card() {
    let mut cards = names("ratecards");
    assert!(cards.remove("standard"), "the card to begin with goes with the defaults");
    assert_eq!(cards, names("policies"));
    for name in cards {
        policy(&name);
        let card = std::fs::read_to_string(packaged("ratecards").join(format!("{name}.toml"))).unwrap();
        assert_eq!(Card::parse(&card, &name).unwrap().name.as_str(), name);
    }
}

#[test]
fn each_policy_that_comes_along_says_what_its_platform_does() {
    let plain = AccountPolicy::default();
    let (runs, terms) = policy("settle-at-end");
    assert_eq!(runs, AccountPolicy { on_exhaustion: OnExhaustion::RefuseNew, start_threshold: credits("0.01"), ..plain });
    assert_eq!(terms, Terms { allowance: Some(Allowance { amount: credits("3"), day: 1 }), ..Terms::default() });

    let (deployments, terms) = policy("hourly-instance");
    let warn_before = Thresholds::try_from(secs(&[7_200, 1_800])).unwrap();
    assert_eq!(deployments, AccountPolicy { on_exhaustion: OnExhaustion::Freeze, warn_before, ..plain });
    let refill = RefillTerms { below: credits("500"), amount: credits("2000"), wait: Nanos::from_secs(900) };
    let alerts = Alerts { below: vec![credits("100")], ..Alerts::default() };
    assert_eq!(terms, Terms { unit: Some(usd("1")), topup_min: credits("1"), refill: Some(refill), alerts, ..Terms::default() });

    let (workspace, terms) = policy("per-second-gpu");
    let expected = AccountPolicy {
        on_exhaustion: OnExhaustion::Stop,
        grace: Nanos::from_secs(120),
        start_threshold: credits("10"),
        start_predicted: StartPredicted::Check,
        ..plain
    };
    assert_eq!(workspace, expected);
    let alerts = Alerts { percents: vec![70, 40, 10], ..Alerts::default() };
    assert_eq!(terms, Terms { unit: Some(usd("1")), alerts, ..Terms::default() });

    let (requests, terms) = policy("per-request");
    assert_eq!(requests, AccountPolicy { on_exhaustion: OnExhaustion::RefuseNew, ..plain });
    let alerts = Alerts { below: vec![credits("10")], ..Alerts::default() };
    assert_eq!(terms, Terms { unit: Some(usd("100")), verification: Verification::Required, alerts: alerts.clone(), ..Terms::default() });

    let (project, terms) = policy("hourly-posted");
    let warn_before = Thresholds::try_from(secs(&[3_600, 600])).unwrap();
    assert_eq!(project, AccountPolicy { on_exhaustion: OnExhaustion::Kill, warn_before, ..plain });
    let refill = RefillTerms { below: credits("10"), amount: credits("50"), wait: Nanos::from_secs(600) };
    let expected = Terms {
        unit: Some(usd("1")),
        topup_min: credits("5"),
        storage: StorageAtZero::Detach,
        detached_storage: DetachedStorage::Costs,
        refill: Some(refill),
        alerts,
        ..Terms::default()
    };
    assert_eq!(terms, expected);
}

/// Each line is wrong; after the sign stands the code of its mistake.
const WRONG: &str = r#"on_exhaustion = "pause" # unknown_word
grace_s = -1 # out_of_range
start_threshold = 5 # wrong_type
unreachable = "wait" # unknown_word
unit = "US dollars" # not_a_name
credits_per_unit = "0" # malformed
topup_min = "-5" # out_of_range
verification = true # wrong_type
storage_at_zero = "delete" # unknown_word
colour = "amber" # unknown_key
[alerts]
percents = [70, 100] # out_of_range
below = ["0"] # out_of_range
[refill]
below = "ten" # malformed
amount = "0" # out_of_range
[allowance]
amount = "3"
day = 31 # out_of_range
[commitment]
amount = "0" # out_of_range
period = "weekly" # unknown_word
starts = "tomorrow" # malformed
"#;

#[test]
fn every_mistake_of_a_policy_file_is_named_with_its_line_and_a_hint() {
    let mistakes = parse_policy(WRONG, "policy.toml").unwrap_err();
    let wanted: Vec<(usize, &str)> =
        WRONG.lines().enumerate().filter_map(|(nth, line)| Some((nth + 1, line.split_once(" # ")?.1))).collect();
    for (line, code) in &wanted {
        let place = format!("policy.toml:{line}:");
        let found = mistakes.iter().find(|mistake| mistake.place.to_string().starts_with(&place));
        let found = found.unwrap_or_else(|| panic!("nothing is found in line {line}: {mistakes:#?}"));
        assert_eq!(found.code, *code, "{found}");
        assert!(found.hint.is_some(), "{found}");
    }
    assert_eq!(mistakes.len(), wanted.len(), "{mistakes:#?}");
}

#[test]
fn half_a_unit_and_half_a_refill_are_mistakes() {
    let code = |text: &str| parse_policy(text, "p").unwrap_err().iter().map(|mistake| mistake.code).collect::<Vec<_>>();
    assert_eq!(code("unit = \"USD\""), ["missing"]);
    assert_eq!(code("credits_per_unit = \"100\""), ["missing"]);
    assert_eq!(code("[refill]\nbelow = \"5\""), ["missing_key"]);
    assert_eq!(code("[allowance]\nday = 1"), ["missing_key"]);
    assert_eq!(code("[commitment]\nperiod = \"monthly\""), ["missing_key"]);
    assert_eq!(code("[commitment]\namount = \"5\"\nperiod = \"once\""), ["missing"]);
    let ends = "[commitment]\namount = \"5\"\nstarts = \"2027-01-01T00:00:00Z\"\nends = \"2027-01-01T00:00:00Z\"";
    assert_eq!(code(ends), ["out_of_range"], "it ends as it begins");
}

#[test]
fn s7_a_commitment_of_a_policy_file_is_what_the_file_says() {
    let text = std::fs::read_to_string(path("per-second-gpu")).unwrap();
    let (before, after) = text.split_once("#[commitment]").unwrap();
    let (example, _) = after.split_once("\n\n").unwrap();
    assert_eq!(parse_policy(&text, "p").unwrap().1.commitment, None, "{before}");
    let (_, terms) = parse_policy(&format!("[commitment]{}", example.replace("\n#", "\n")), "p").unwrap();
    let instant = |text: &str| Some(meterd::domain::receipt::instant(text).unwrap());
    let expected = Commitment {
        amount: credits("1200"),
        period: CommitmentPeriod::Monthly,
        day: 1,
        starts: instant("2027-01-01T00:00:00.000Z"),
        ends: instant("2028-01-01T00:00:00.000Z"),
    };
    assert_eq!(terms.commitment, Some(expected));
}

fn meterctl(agent: &Agent, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meterctl"));
    command.arg("--socket").arg(agent.path("run/meterd.sock")).args(words).output().unwrap()
}

/// What a command prints that must succeed.
fn said(agent: &Agent, words: &[&str]) -> String {
    let output = meterctl(agent, words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What a command says that must fail.
fn refused(agent: &Agent, words: &[&str]) -> String {
    let output = meterctl(agent, words);
    assert!(!output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

fn shows(agent: &Agent, account: &str, key: &str) -> Option<String> {
    let text = said(agent, &["account", "show", account]);
    let line = text.lines().find(|line| line.trim_start().starts_with(key))?;
    Some(line.trim_start()[key.len()..].trim().to_owned())
}

fn path(name: &str) -> String {
    packaged("policies").join(format!("{name}.toml")).display().to_string()
}

#[test]
fn a_policy_file_is_applied_as_a_whole_and_what_is_given_beside_it_stands_above_it() {
    let agent = Agent::start(CARD, "", "");
    said(&agent, &["account", "create", "lab", "--file", &path("hourly-posted")]);
    assert_eq!(shows(&agent, "lab", "unit").as_deref(), Some("1 credit is 1 USD"));
    assert_eq!(shows(&agent, "lab", "refill").as_deref(), Some("50 as soon as less than 10 is left"));
    assert!(shows(&agent, "lab", "policy").unwrap().contains("then killed"));
    said(&agent, &["account", "policy", "lab", "--file", &path("settle-at-end"), "--on-exhaustion", "stop", "--start-funded", "10m"]);
    assert_eq!((shows(&agent, "lab", "unit"), shows(&agent, "lab", "refill"), shows(&agent, "lab", "storage")), (None, None, None));
    let policy = shows(&agent, "lab", "policy").unwrap();
    assert!(policy.contains("asked to end") && policy.contains("no start that leaves less than 10m"), "{policy}");
    assert!(shows(&agent, "lab", "allowance").unwrap().starts_with("3 each month, next at "));
    said(&agent, &["account", "policy", "lab", "--grace", "7s"]);
    assert!(shows(&agent, "lab", "allowance").is_some(), "what a change does not name stays");
    let wrong = agent.path("wrong.toml");
    std::fs::write(&wrong, WRONG).unwrap();
    let told = refused(&agent, &["account", "policy", "lab", "--file", wrong.to_str().unwrap()]);
    assert!(told.contains("wrong.toml:1:") && told.contains("wrong.toml:19:"), "all at once: {told}");
}

#[test]
fn a1_r1_s13_r8_an_operator_keeps_an_account_and_every_line_says_what_it_was() {
    let agent = Agent::start(CARD, "", "");
    said(&agent, &["account", "create", "lab", "--file", &path("per-request")]);
    said(&agent, &["account", "create", "other", "--file", &path("hourly-posted")]);
    let told = said(&agent, &["account", "topup", "lab", "5", "--unit", "USD", "--payment", "inv-1"]);
    assert!(told.starts_with("5 USD are booked as payment inv-1"), "{told}");
    assert_eq!(shows(&agent, "lab", "available").as_deref(), Some("500 (5 USD)"));
    assert!(
        refused(&agent, &["account", "topup", "lab", "5", "--unit", "EUR"]).contains("the amount is in EUR, and the account counts in USD")
    );
    assert!(refused(&agent, &["account", "topup", "other", "4.99"]).contains("a deposit is at least 5 credits here"));
    said(&agent, &["account", "topup", "other", "5", "--payment", "inv-2"]);
    said(
        &agent,
        &["account", "topup", "lab", "7", "--bucket", "free", "--expires", "2999-01-01T00:00:00Z", "--priority", "2", "--payment", "c-1"],
    );
    assert_eq!(shows(&agent, "lab", "spent first").as_deref(), Some("7 free, priority 2, until 2999-01-01T00:00:00.000Z"));
    said(&agent, &["account", "transfer", "lab", "other", "100", "--payment", "m-1"]);
    assert!(refused(&agent, &["account", "transfer", "lab", "other", "401"]).contains("only 400 credits"));
    said(&agent, &["account", "refund", "lab", "1", "--payment", "r-1"]);
    said(&agent, &["account", "correct", "lab", "take", "2", "--payment", "k-1"]);
    said(&agent, &["account", "topup", "lab", "50", "--pending", "--payment", "inv-3"]);
    assert_eq!(shows(&agent, "lab", "paid").as_deref(), Some("399 (3.99 USD)"), "what is announced is not there");
    said(&agent, &["account", "fail", "lab", "inv-3"]);
    assert!(refused(&agent, &["account", "confirm", "lab", "inv-3"]).contains("that stands"));
    assert_eq!(shows(&agent, "lab", "verified").as_deref(), Some("not yet: it may not spend"));
    said(&agent, &["account", "verify", "lab"]);
    assert!(shows(&agent, "lab", "verified").unwrap().starts_with("since "));
    let ledger = said(&agent, &["account", "ledger", "lab"]);
    let wanted = [
        "deposit (paid), payment inv-3",
        "correction (paid), taken, payment k-1",
        "refund (paid), payment r-1",
        "moved to other, payment m-1",
        "deposit (free), payment c-1",
        "deposit (paid), payment inv-1",
    ];
    for (line, wanted) in ledger.lines().skip(1).zip(wanted) {
        assert!(line.contains(wanted), "{wanted}: {ledger}");
    }
    assert!(ledger.lines().nth(1).unwrap().trim_end().ends_with("failed"), "{ledger}");
    assert!(said(&agent, &["account", "ledger", "other"]).contains("moved from lab, payment m-1"));
}

fn told(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn d4_r7_v11_a_refill_is_told_to_the_site_waits_over_a_kill_of_the_agent_and_lets_the_job_go_on_once_confirmed() {
    let Some(mut jobs) = cgroups("refill", 1) else { return };
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
    let out = folder.path().join("told");
    let script = format!("echo \"$METERD_EVENT $METERD_ACCOUNT $METERD_PAYMENT $METERD_AMOUNT$METERD_BELOW\" >> {}", out.display());
    let warn = format!("[warn]\nterminals = \"off\"\ncommand = [\"/bin/sh\", \"-c\", '{script}']\n");
    let mut agent = Agent::start(CARD, "enforcement = \"enforce\"\ninterval_ms = 100", &warn);
    let file = folder.path().join("policy.toml");
    let text = "on_exhaustion = \"kill\"\nwarn_before_s = []\n[refill]\nbelow = \"0.2\"\namount = \"1000\"\nwait_s = 86400\n[alerts]\nbelow = [\"0.1\"]\n";
    std::fs::write(&file, text).unwrap();
    said(&agent, &["account", "create", "lab", "--file", file.to_str().unwrap()]);
    said(&agent, &["account", "topup", "lab", "0.3", "--payment", "first"]);
    jobs[0].burn();
    let body = json!({ "job": "lab", "account": "lab", "cgroups": paths(&jobs[0]) });
    agent.done("POST", "/v1/jobs", Some(&body));
    jobs[0].go();
    let phase = |agent: &Agent| agent.done("GET", "/v1/jobs/lab", None)["phase"].clone();
    agent.wait_for("the job stands still", |agent| phase(agent) == "frozen");
    agent.wait_for("the refill is told", |_| told(&out).contains("refill lab refill/lab/1 1000"));
    agent.wait_for("and the alert", |_| told(&out).contains("alert lab  0.1"));
    agent
        .wait_for("the authority waits for it", |agent| agent.done("GET", "/v1/accounts/lab", None)["node"]["verdict"] == "refill_pending");
    agent.kill();
    agent.launch();
    agent.wait_for("it is told again, by the same name", |_| told(&out).matches("refill lab refill/lab/1 1000").count() == 2);
    assert!(!told(&out).contains("refill/lab/2"), "{}", told(&out));
    assert_eq!(told(&out).matches("alert").count(), 1, "an alert is not repeated");
    assert_eq!(phase(&agent), "frozen", "nothing is ended while a refill is waited for");
    assert!(jobs[0].is_frozen());
    assert_eq!(shows(&agent, "lab", "pending").map(|pending| pending.starts_with("1000 since ")), Some(true));
    let heard = said(&agent, &["events", "--account", "lab"]);
    assert_eq!(heard.matches("credits are left, less than 0.1").count(), 1, "{heard}");
    assert!(heard.contains("1000 credits are to be paid in, as refill/lab/1"), "{heard}");
    said(&agent, &["account", "confirm", "lab", "refill/lab/1"]);
    agent.wait_for("the job goes on", |agent| phase(agent) == "running");
    let ledger: Value = agent.done("GET", "/v1/accounts/lab/ledger?limit=100", None);
    let refills: Vec<&Value> = ledger["entries"].as_array().unwrap().iter().filter(|line| line["kind"] == "refill").collect();
    assert_eq!((refills.len(), &refills[0]["status"], &refills[0]["amount"]), (1, &json!("completed"), &json!("1000")));
}

#[test]
fn s7_a_job_uses_up_a_commitment_and_goes_on_with_the_account_s_other_credit_without_a_stop() {
    let agent = Agent::start(&CARD.replace("417.0417", "360000"), "enforcement = \"enforce\"", "");
    let file = agent.path("contract.toml");
    std::fs::write(&file, "[commitment]\namount = \"0.5\"\n").unwrap();
    let file = file.to_str().unwrap();
    said(&agent, &["account", "create", "lab", "--file", file]);
    assert!(shows(&agent, "lab", "commitment").unwrap().starts_with("0.5 each month; what is left lapses at "));
    assert_eq!(shows(&agent, "lab", "spent first").unwrap().split(',').next(), Some("0.5 committed"));
    said(&agent, &["account", "topup", "lab", "1000000", "--payment", "inv-1"]);
    said(&agent, &["account", "policy", "lab", "--file", file]);
    assert_eq!(shows(&agent, "lab", "committed").as_deref(), Some("0.5"), "the same terms once more give nothing");
    // A hundred credits a second.
    said(&agent, &["run", "--job", "long", "--account", "lab", "--", "sh", "-c", "head -c 300000000 /dev/zero | sha256sum"]);
    agent.wait_for("its receipt is final", |agent| agent.done("GET", "/v1/jobs/long/receipt", None)["state"] == "final");
    let receipt = said(&agent, &["receipt", "long", "--output", "json"]);
    let receipt: serde_json::Value = serde_json::from_str(&receipt).unwrap();
    assert_eq!((receipt["outcome"].as_str(), receipt["unfunded"].as_str()), (Some("completed"), Some("0")));
    let acts = receipt["steps"].as_array().unwrap().iter().filter_map(|step| step["event"]["acted"]["act"].as_str());
    assert!(acts.clone().all(|act| act == "remove"), "never stopped: {receipt}");
    assert_eq!(receipt["charge"], receipt["drawn"]);
    agent.wait_for("its charge at the authority", |agent| shows(agent, "lab", "charged").as_deref() == receipt["charge"].as_str());
    assert_eq!(shows(&agent, "lab", "committed").as_deref(), Some("0"));
    let ledger = said(&agent, &["account", "ledger", "lab"]);
    let usage = ledger.lines().find(|line| line.contains("usage in the hour")).unwrap();
    assert!(ledger.lines().next().unwrap().contains("COMMITTED") && usage.contains(" 0.5 "), "{ledger}");
    let statement = said(&agent, &["report", "statement", "lab", "--period", "month"]);
    assert!(statement.contains("committed 0.5, used 0.5, lapsed 0\n"), "{statement}");
}
