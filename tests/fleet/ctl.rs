//! The authority as an operator uses it: `meterctl account … --authority`, backup and restore, and what is refused in words.

use std::process::Command;

use serde_json::json;

use crate::node::{Epoch, Told};
use crate::process::Authority;

pub(crate) struct Operator {
    words: Vec<String>,
}

impl Operator {
    pub(crate) fn of(authority: &Authority, role: &str) -> Operator {
        let files = authority.ca.person(role, &format!("ctl-{role}"));
        let words = ["--authority", &authority.url(), "--ca", &authority.ca.pem().display().to_string()].map(str::to_owned).to_vec();
        let own = ["--cert", &files.cert.display().to_string(), "--key", &files.key.display().to_string()].map(str::to_owned).to_vec();
        Operator { words: [words, own].concat() }
    }

    /// `meterctl account WORDS`: its exit code and what it printed.
    pub(crate) fn account(&self, words: &[&str]) -> (i32, String) {
        self.meterctl(&[&["account"], words].concat())
    }

    fn meterctl(&self, words: &[&str]) -> (i32, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_meterctl")).args(words).args(&self.words).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap(), text)
    }
}

#[test]
fn accounts_are_kept_by_meterctl_over_the_network_and_refusals_say_what_to_do() {
    let authority = Authority::start("", "");
    let (admin, reader) = (Operator::of(&authority, "admin"), Operator::of(&authority, "reader"));
    let (code, text) = admin.account(&["create", "lab", "--grace", "5s"]);
    assert_eq!(code, 0, "{text}");
    let (code, text) = admin.account(&["topup", "lab", "12.5", "--payment", "inv-1"]);
    assert!(code == 0 && text.contains("12.5 credits are booked as payment inv-1"), "{text}");
    let (code, text) = reader.account(&["show", "lab"]);
    assert!(code == 0 && text.contains("12.5"), "{text}");
    let (code, text) = reader.account(&["topup", "lab", "1"]);
    assert!(code == 1 && text.contains("not_permitted") && text.contains("hint:"), "{text}");
    let (code, text) = admin.account(&["revoke", "lab", "2.5", "--revocation", "r-1"]);
    assert!(code == 0 && text.contains("2.5 revoked of account lab in all, 0 to come from nodes"), "{text}");
    let (code, text) = admin.account(&["ledger", "lab"]);
    assert!(code == 0 && text.contains("revoked, 2.5 of 2.5, by r-1") && text.contains("payment inv-1"), "{text}");
    for form in ["--csv", "--output=text"] {
        let (code, text) = reader.meterctl(&["report", "statement", "lab", "--period", "month", form]);
        assert!(code == 0 && text.contains("deposit (paid), payment inv-1") && text.contains("revoked, by r-1"), "{text}");
        assert!(text.lines().any(|line| line.contains("closing balance") && line.trim_end().ends_with("10")), "{text}");
    }
    let (code, text) = reader.account(&["list", "--output", "json"]);
    assert!(code == 0 && text.contains("\"available\": \"10\""), "{text}");
    let dead = Operator { words: admin.words.iter().map(|word| word.replace(&authority.url(), "https://127.0.0.1:1")).collect() };
    let (code, text) = dead.account(&["list"]);
    assert!(code == 3 && text.contains("the authority does not answer at https://127.0.0.1:1"), "{text}");
}

#[test]
fn a_backup_is_made_beside_the_running_authority_and_a_restored_one_takes_reports_and_grants_nothing() {
    let mut authority = Authority::start("", "");
    authority.account("lab", "100");
    let files = authority.ca.node("n1", "n1");
    let client = crate::https::Client::new(authority.port, &authority.ca.pem(), Some(&files));
    let epoch = Epoch::new(&client, "n1", 1, "lab");
    assert_eq!(epoch.ask(1, Told { owed: "10", ..Told::default() })["granted"], "10");
    let copy = authority.path("copy.db").display().to_string();
    let said =
        |output: &std::process::Output| String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let output = authority.command(&["backup", &copy]);
    assert!(output.status.success() && said(&output).contains("1 accounts"), "{}", said(&output));
    assert!(!authority.command(&["backup", &copy]).status.success(), "a copy is never replaced");
    // Granted and reported after the copy was made: the restored store has forgotten both.
    let last = epoch.ask(2, Told { granted: "10", spent: "4", owed: "20", ..Told::default() });
    assert_eq!((&last["granted"], &last["proof"]["granted"]), (&json!("24"), &json!("24")));
    let output = authority.command(&["restore", &copy]);
    assert!(output.status.code() == Some(1) && said(&output).contains("is running"), "{}", said(&output));
    assert_eq!(authority.end(), Some(0));
    let output = authority.command(&["restore", &copy]);
    assert!(output.status.success() && said(&output).contains("grants nothing for 667 seconds"), "{}", said(&output));
    authority.launch();
    assert_eq!((&authority.kept("lab")["held"], &authority.kept("lab")["settled"]), (&json!("10"), &json!("0")), "as it was");
    let told = Told { granted: "24", spent: "11", owed: "50", ..Told::default() };
    let answer = epoch.ask(3, told);
    assert_eq!(
        (&answer["verdict"], &answer["settled"], &answer["granted"]),
        (&json!("closed"), &json!("10"), &json!("10")),
        "a bare claim"
    );
    let answer = epoch.ask_showing(4, told, &json!({ "proof": last["proof"], "validity": "live" }));
    assert_eq!(
        (&answer["verdict"], &answer["settled"], &answer["granted"]),
        (&json!("recovering"), &json!("11"), &json!("24")),
        "{answer}"
    );
    let kept = authority.kept("lab");
    assert_eq!((&kept["held"], &kept["settled"], &kept["available"]), (&json!("13"), &json!("11"), &json!("76")), "{kept}");
    let other = Epoch::new(&client, "n1", 2, "lab").ask(1, Told { owed: "5", at_least: "5", ..Told::default() });
    assert_eq!((&other["verdict"], &other["granted"]), (&json!("hold"), &json!("0")), "nobody is granted anything: {other}");
    authority.kill();
    authority.launch();
    let again = Epoch::new(&client, "n1", 3, "lab").ask(1, Told { owed: "5", ..Told::default() });
    assert_eq!(again["verdict"], "hold", "a restart does not end it");
}

#[test]
fn two_authorities_are_never_over_the_same_balances_and_mistakes_are_all_named_at_once() {
    let authority = Authority::start("", "");
    let output = authority.command(&["serve"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && text.contains("is running"), "{text}");
    let output = authority.command(&["check"]);
    assert!(output.status.success(), "{output:?}");
    let config = authority.path("authority.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("[tls]", "close_after_s = 1\nlisten_on = 1\n[tls]")).unwrap();
    let output = authority.command(&["check"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(78)
            && text.contains("close_after_s")
            && text.contains("unknown key \"listen_on\" (hint: known: listen,"),
        "{text}"
    );
}
