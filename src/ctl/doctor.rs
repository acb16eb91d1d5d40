//! `meterctl doctor`: what is wrong on this node, and what to do about each. With the agent running or dead; it changes nothing.

mod agent;
mod config;
mod kernel;
mod state;
mod unit;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;

use super::client::Failure;
use super::exit::Exit;
use super::{Format, Output, print};
use crate::node::config::DEFAULT_PATH;

/// Of which installation.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The agent's configuration.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
    #[command(flatten)]
    format: Format,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Severity {
    /// The node is not metered, or money is lost.
    Error,
    /// It will be, or something is metered less well than it could be.
    Warning,
    /// Good to know. Does not count.
    Advice,
}

/// One thing that is wrong. The codes are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    severity: Severity,
    /// In one word.
    code: String,
    /// In a sentence.
    #[serde(rename = "finding")]
    what: String,
    /// What to do, in a sentence.
    remedy: String,
}

/// What was found so far.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn error(&mut self, code: &str, finding: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Error, code, finding, remedy);
    }

    fn warning(&mut self, code: &str, finding: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Warning, code, finding, remedy);
    }

    fn advice(&mut self, code: &str, finding: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Advice, code, finding, remedy);
    }

    fn add(&mut self, severity: Severity, code: &str, finding: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Finding { severity, code: code.to_owned(), what: finding.into(), remedy: remedy.into() });
    }

    fn count(&self, severity: Severity) -> usize {
        self.0.iter().filter(|finding| finding.severity == severity).count()
    }

    fn exit(&self) -> Exit {
        if self.0.iter().any(|finding| finding.severity != Severity::Advice) { Exit::Unwell } else { Exit::Done }
    }
}

/// `socket` is what the caller named; none asks where the configuration says.
pub(super) fn main(socket: Option<&Path>, arguments: &Arguments) -> Result<Exit, Failure> {
    let mut findings = Findings::default();
    if !rustix::process::geteuid().is_root() {
        findings.advice("not_root", "another user than root does not see everything", "run it as root");
    }
    let config = config::look(&arguments.config, &mut findings);
    let socket = socket.map_or_else(|| config.runtime_dir.join("meterd.sock"), Path::to_owned);
    let agent = agent::look(&socket, &config, &mut findings)?;
    state::look(&config, &agent, &mut findings);
    kernel::look(&config, &agent, &mut findings);
    unit::look(&mut findings);
    findings.0.sort_by_key(|finding| finding.severity);
    match arguments.format.output {
        Output::Text => print(&text(&findings)),
        Output::Json => print(&format!("{:#}\n", document(&findings))),
    }
    Ok(findings.exit())
}

fn document(findings: &Findings) -> serde_json::Value {
    json!({
        "findings": findings.0,
        "errors": findings.count(Severity::Error),
        "warnings": findings.count(Severity::Warning),
        "advice": findings.count(Severity::Advice),
    })
}

fn text(findings: &Findings) -> String {
    let mut text = String::new();
    for finding in &findings.0 {
        let severity = match finding.severity {
            Severity::Error => "ERROR",
            Severity::Warning => "WARNING",
            Severity::Advice => "advice",
        };
        text.push_str(&format_finding(severity, finding));
    }
    let (errors, warnings) = (findings.count(Severity::Error), findings.count(Severity::Warning));
    let verdict = if errors + warnings == 0 { "nothing is wrong".to_owned() } else { format!("{errors} errors, {warnings} warnings") };
    text.push_str(&verdict);
    text.push('\n');
    text
}

fn format_finding(severity: &str, finding: &Finding) -> String {
    format!("{severity:<8} {}\n         {}\n         do: {}\n", finding.code, finding.what, finding.remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_read_as_what_is_wrong_and_what_to_do() {
        let mut findings = Findings::default();
        findings.advice("no_systemd", "systemd does not run here", "let something else start the agent");
        assert_eq!(findings.exit(), Exit::Done, "advice does not count");
        assert!(text(&findings).ends_with("nothing is wrong\n"));
        findings.error("journal_damaged", "row 7 was changed", "keep a copy");
        findings.warning("disk_low", "400 MiB are free", "make room");
        assert_eq!(findings.exit(), Exit::Unwell);
        insta::assert_snapshot!(text(&findings));
        assert_eq!((document(&findings)["errors"].as_u64(), document(&findings)["advice"].as_u64()), (Some(1), Some(1)));
    }
}
