//! `meterctl verify`: a receipt or a log again, from its raw quantities and the cards' text alone.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use clap::ArgGroup;

use super::anchor::{compared_text, from_file};
use super::client::Failure;
use super::exit::Exit;
use super::{complain, print};
use crate::domain::anchor::Anchor;
use crate::domain::audit::Found;
use crate::domain::id::Digest;
use crate::domain::log::LogReader;
use crate::domain::rates::Card;
use crate::domain::receipt::{Receipt, verify};

/// A receipt or a log, and its cards.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("what").required(true).args(["receipt", "log"]))]
pub(super) struct Arguments {
    /// The receipt in JSON (`meterctl receipt JOB --output json`); - for standard input.
    #[arg(long, value_name = "FILE", requires = "card")]
    receipt: Option<PathBuf>,
    /// A log (`meterctl journal export --sealed`): its chain, every price in it, and that no bit of it was changed; - for standard input.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// A rate card that it was priced by; may be given several times. A log has the content of its cards; with their files it is also checked that they are those.
    #[arg(long, value_name = "FILE")]
    card: Vec<PathBuf>,
    /// What the authority keeps of the log's chain (`meterctl account anchors --output json`, or its store): a log that was written anew is found out.
    #[arg(long, value_name = "FILE", conflicts_with = "receipt")]
    anchor: Option<PathBuf>,
}

pub(super) fn main(arguments: &Arguments) -> Result<Exit, Failure> {
    let mut cards = BTreeMap::new();
    for path in &arguments.card {
        let card = card(path)?;
        cards.insert(card.digest, card);
    }
    let (exit, text) = match (&arguments.receipt, &arguments.log) {
        (Some(path), _) => {
            let text = read(path)?;
            let receipt: Receipt = serde_json::from_str(&text).map_err(|error| {
                Failure::Other(format!("{}: not a receipt: {error} (hint: meterctl receipt JOB --output json writes one)", path.display()))
            })?;
            verified(&receipt, &cards)
        }
        (None, Some(path)) => {
            let anchors = arguments.anchor.as_deref().map(from_file).transpose()?;
            let given: BTreeSet<Digest> = cards.into_keys().collect();
            let found = if path.as_os_str() == "-" {
                log(std::io::stdin().lock(), anchors)
            } else {
                let failed = |error: std::io::Error| Failure::Other(format!("{}: {error}", path.display()));
                log(BufReader::new(std::fs::File::open(path).map_err(failed)?), anchors)
            };
            told(found.and_then(|found| cards_of(&found, &given).map(|()| found)))
        }
        (None, None) => return Err(Failure::other("nothing to verify")),
    };
    match exit {
        Exit::Done => print(&text),
        _ => complain(&text),
    }
    Ok(exit)
}

/// What a log's walk gives, or the first thing that is wrong.
fn log(mut text: impl BufRead, anchors: Option<Vec<Anchor>>) -> Result<Found, String> {
    let mut reader = LogReader::new(anchors);
    let mut line = String::new();
    loop {
        line.clear();
        match text.read_line(&mut line) {
            Ok(0) => return reader.finish().map_err(|fault| fault.to_string()),
            Ok(_) => reader.line(&line).map_err(|fault| fault.to_string())?,
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Are the cards that were given those that the log names, and all of them?
fn cards_of(found: &Found, given: &BTreeSet<Digest>) -> Result<(), String> {
    if let Some(stranger) = given.difference(&found.cards).next() {
        return Err(format!("the card of SHA-256 {stranger} is none of the log's"));
    }
    match found.cards.difference(given).next() {
        Some(missing) if !given.is_empty() => Err(format!("the card of SHA-256 {missing} was not given")),
        _ => Ok(()),
    }
}

fn told(found: Result<Found, String>) -> (Exit, String) {
    match found {
        Ok(found) => (Exit::Done, format!("OK: {}", found_text(&found))),
        Err(fault) => (Exit::Failed, format!("{fault}\n")),
    }
}

/// What was found right, in a few lines.
pub(super) fn found_text(found: &Found) -> String {
    let counts = &found.counts;
    let earlier = match counts.of_earlier_jobs {
        0 => String::new(),
        count => format!(", {count} more are of jobs that began before the first row"),
    };
    let anchored = found.anchored.as_ref().map(compared_text).unwrap_or_default();
    format!(
        "{} facts, head {} {}\nrecomputed: {} samples of {} jobs{earlier}\n{anchored}",
        counts.rows, found.head.seq, found.head.link, counts.samples, counts.jobs
    )
}

fn verified(receipt: &Receipt, cards: &BTreeMap<Digest, Card>) -> (Exit, String) {
    let job = format!("{}, attempt {}", receipt.job, receipt.attempt);
    match verify(receipt, cards) {
        Ok(charge) => (Exit::Done, format!("OK: {job}: {charge} credits = {} nano-credits\n", charge.nano())),
        Err(discrepancies) => {
            let lines = discrepancies.iter().map(|discrepancy| format!("{job}: {discrepancy}\n"));
            (Exit::Failed, lines.collect())
        }
    }
}

/// A file's text; - is standard input.
pub(super) fn read(path: &Path) -> Result<String, Failure> {
    let failed = |error: std::io::Error| Failure::Other(format!("{}: {error}", path.display()));
    if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().lock().read_to_string(&mut text).map_err(failed)?;
        return Ok(text);
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// A card from its file, or every mistake in it.
pub(super) fn card(path: &Path) -> Result<Card, Failure> {
    let text = read(path)?;
    Card::parse(&text, &path.display().to_string()).map_err(|mistakes| {
        let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        Failure::Other(lines.join("\n"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::sample;

    #[test]
    fn a_receipt_that_agrees_with_its_card_is_ok() {
        let cards = BTreeMap::from([(sample::card().digest, sample::card())]);
        assert_eq!(
            verified(&sample::receipt(), &cards),
            (Exit::Done, "OK: u1000-train, attempt 7: 64.2 credits = 64200000000 nano-credits\n".to_owned())
        );
    }

    #[test]
    fn every_discrepancy_is_named() {
        let mut receipt = sample::receipt();
        receipt.segments[0].cpu_ns = "1".to_owned();
        receipt.charge = crate::domain::money::Credits::from_nano(1);
        let cards = BTreeMap::from([(sample::card().digest, sample::card())]);
        let (exit, text) = verified(&receipt, &cards);
        assert_eq!(exit, Exit::Failed);
        insta::assert_snapshot!(text);
        let (_, without) = verified(&receipt, &BTreeMap::new());
        assert!(without.contains("was not given"), "{without}");
    }
}
