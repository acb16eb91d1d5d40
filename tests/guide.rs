//! The guide to rate cards does what it says: its files are written, its commands run, and what they print is what stands there.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::path::Path;
use std::process::Command;

use meterd::domain::request::parse_policy;

fn guide() -> String {
    std::fs::read_to_string(root().join("docs/ratecards.md")).unwrap()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The fenced parts of that kind, each with the text before it.
fn fenced<'g>(guide: &'g str, kind: &str) -> Vec<(&'g str, &'g str)> {
    let mut found = Vec::new();
    let mut from = 0;
    let fence = format!("```{kind}\n");
    while let Some(at) = guide[from..].find(&fence) {
        let begin = from + at + fence.len();
        let end = begin + guide[begin..].find("```\n").unwrap();
        found.push((&guide[..begin - fence.len()], &guide[begin..end]));
        from = end;
    }
    found
}

/// The file's name that stands last before its content.
fn name(before: &str) -> &str {
    let end = before.rfind(".toml`").unwrap() + ".toml".len();
    &before[before[..end].rfind('`').unwrap() + 1..end]
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

#[test]
fn every_command_of_the_guide_to_rate_cards_prints_what_stands_below_it() {
    let (guide, folder) = (guide(), tempfile::tempdir().unwrap());
    for (before, content) in fenced(&guide, "toml") {
        std::fs::write(folder.path().join(name(before)), content).unwrap();
    }
    copy(&root().join("packaging/ratecards"), &folder.path().join("ratecards"));
    let programs = Path::new(env!("CARGO_BIN_EXE_meterctl")).parent().unwrap();
    let mut commands = 0;
    for (_, console) in fenced(&guide, "console") {
        for part in format!("\n{console}").split("\n$ ").skip(1) {
            let (command, expected) = part.split_once('\n').unwrap_or((part, ""));
            let output = Command::new("sh")
                .args(["-c", &format!("{command} 2>&1")])
                .env("PATH", format!("{}:/usr/bin:/bin", programs.display()))
                .current_dir(folder.path())
                .output()
                .unwrap();
            let said = String::from_utf8(output.stdout).unwrap();
            assert_eq!(said.trim_end(), expected.trim_end(), "{command}");
            commands += 1;
        }
    }
    assert!(20 <= commands, "{commands} commands");
}

#[test]
fn the_guide_s_policy_is_one() {
    let guide = guide();
    let (_, policy) = fenced(&guide, "toml").into_iter().find(|(before, _)| name(before) == "physics.toml").unwrap();
    let (policy, terms) = parse_policy(policy, "physics.toml").unwrap_or_else(|mistakes| panic!("{mistakes:#?}"));
    assert_eq!((policy.freeze_ttl.unwrap().0, terms.refill.unwrap().amount.to_string().as_str()), (604_800_000_000_000, "2000"));
}
