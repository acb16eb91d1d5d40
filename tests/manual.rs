//! The manual pages and completion scripts as a package would install them, read by the programs that people read them with.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn generated() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_meterctl")).arg("generate").arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    folder
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn pages(folder: &Path) -> Vec<PathBuf> {
    let pages: Vec<PathBuf> = ["man/man1", "man/man8"]
        .iter()
        .flat_map(|section| std::fs::read_dir(folder.join(section)).unwrap().map(|entry| entry.unwrap().path()))
        .collect();
    assert!(20 < pages.len(), "{pages:?}");
    pages
}

fn program(name: &str) -> Result<(), String> {
    let found = Command::new("sh").args(["-c", &format!("command -v {name}")]).output().unwrap();
    if found.status.success() { Ok(()) } else { Err(format!("{name} is not installed")) }
}

#[test]
fn groff_formats_every_page_without_a_warning() {
    let Some(()) = support::need("groff", program("groff")) else { return };
    let folder = generated();
    for page in pages(folder.path()) {
        let output = Command::new("groff").args(["-ww", "-man", "-Tutf8", "-z"]).arg(&page).output().unwrap();
        assert!(output.status.success() && text(&output).is_empty(), "{}: {}", page.display(), text(&output));
    }
}

#[test]
fn mandoc_finds_no_mistake_in_any_page() {
    let Some(()) = support::need("mandoc", program("mandoc")) else { return };
    let folder = generated();
    for page in pages(folder.path()) {
        let output = Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).arg(&page).output().unwrap();
        let said = text(&output);
        // The pages have no date of their own, they are of the version that they name; and some of their empty lines are one too many.
        let harmless = ["missing date", "skipping paragraph macro"];
        let mistakes: Vec<&str> = said.lines().filter(|line| !harmless.iter().any(|known| line.contains(known))).collect();
        assert_eq!(mistakes, Vec::<&str>::new(), "{}", page.display());
    }
}

/// What bash offers behind these words.
fn offered(script: &Path, words: &[&str]) -> Vec<String> {
    let last = words.len() - 1;
    let code = format!(
        "source '{}'; COMP_WORDS=({}); COMP_CWORD={last}; _meterctl meterctl '{}' '{}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script.display(),
        words.join(" "),
        words[last],
        words[last - 1]
    );
    let output = Command::new("bash").args(["--norc", "-c", &code]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_and_options() {
    let Some(()) = support::need("bash", program("bash")) else { return };
    let folder = generated();
    let script = folder.path().join("bash-completion/completions/meterctl");
    assert_eq!(offered(&script, &["meterctl", "eve"]), ["events"]);
    assert!(offered(&script, &["meterctl", "events", "--fol"]).contains(&"--follow".to_owned()));
    assert!(offered(&script, &["meterctl", "enforcement", "no"]).contains(&"notify".to_owned()));
    let printed = Command::new(env!("CARGO_BIN_EXE_meterctl")).args(["completions", "bash"]).output().unwrap();
    assert_eq!(printed.stdout, std::fs::read(&script).unwrap(), "what is printed is what is installed");
}

#[test]
fn zsh_and_fish_read_their_scripts() {
    let folder = generated();
    for (shell, script) in [("zsh", "zsh/vendor-completions/_meterctl"), ("fish", "fish/vendor_completions.d/meterctl.fish")] {
        let Some(()) = support::need(shell, program(shell)) else { continue };
        let output = Command::new(shell).arg("-n").arg(folder.path().join(script)).output().unwrap();
        assert!(output.status.success() && text(&output).is_empty(), "{shell}: {}", text(&output));
    }
}
