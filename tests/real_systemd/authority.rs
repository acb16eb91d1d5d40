//! The authority's unit, likewise.

use crate::certs::Ca;
use crate::machine::{Machine, text};

/// As the operator's guide has it, with certificates that are made here.
fn installed() -> Option<Machine> {
    let machine = Machine::boot()?;
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::new(folder.path(), "test CA");
    let (server, admin) = (ca.server("authority"), ca.person("admin", "alice"));
    for (name, path) in [
        ("ca.pem", ca.pem()),
        ("authority.pem", server.cert),
        ("authority.key", server.key),
        ("alice.pem", admin.cert),
        ("alice.key", admin.key),
    ] {
        machine.write(&format!("/usr/src/meterd/{name}"), &std::fs::read_to_string(path).unwrap());
    }
    machine.done("chmod 600 *.key && install -m 755 target/release/meterctl /usr/bin/");
    Some(machine)
}

/// The guide's steps from the line that installs the program on.
fn steps() -> Vec<String> {
    let guide = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operator.md")).unwrap();
    let lines = guide.split("\nStart the authority:\n\n").nth(1).unwrap().lines();
    let steps: Vec<String> = lines.map_while(|line| line.strip_prefix("    ")).map(str::to_owned).collect();
    assert!(5 <= steps.len(), "{steps:?}");
    steps
}

#[test]
fn the_authority_is_installed_as_the_guide_says_starts_reloads_refuses_a_mistake_and_stops() {
    let Some(machine) = installed() else { return };
    for step in steps() {
        machine.done(&step);
    }
    let unit = "meter-authority.service";
    let property = |name: &str| machine.property(unit, name);
    assert_eq!((property("ActiveState").as_str(), property("User").as_str()), ("active", "meter-authority"));
    let account =
        |words: &str| format!("meterctl account {words} --authority https://127.0.0.1:8443 --ca ca.pem --cert alice.pem --key alice.key");
    machine.done(&account("create physics"));
    machine.done(&account("topup physics 250 --payment inv-2041"));
    let pid = property("MainPID");
    machine.done(&format!("systemctl reload {unit}"));
    machine.done("cp /etc/meter-authority/authority.toml good && sed -i '1i close_afer_s = 3600' /etc/meter-authority/authority.toml");
    assert!(!machine.tries(&format!("systemctl reload {unit}")).status.success(), "a file with a mistake fails the reload");
    assert_eq!((property("ActiveState"), property("MainPID")), ("active".to_owned(), pid));
    machine.done(&account("show physics"));
    let refused = machine.tries(&format!("systemctl restart {unit}"));
    assert!(!refused.status.success() && property("ActiveState") == "failed", "{}", text(&refused.stderr));
    let told = machine.tries_text(&format!("systemctl status --no-pager --full {unit}"));
    assert!(told.contains("status=78/CONFIG") && told.contains("did you mean close_after_s?"), "{told}");
    machine.done(&format!("cp good /etc/meter-authority/authority.toml && systemctl start {unit}"));
    let shown = machine.document(&account("show physics --output json"));
    assert_eq!(shown["authority"]["deposited"], "250", "{shown}");
    machine.done(&format!("systemctl stop {unit}"));
    assert_eq!((property("ActiveState").as_str(), property("Result").as_str()), ("inactive", "success"));
}
