//! `meterctl verify`: the receipt again, from its raw quantities and the cards' text alone.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;

use super::client::Failure;
use super::exit::Exit;
use super::{complain, print};
use crate::domain::id::Digest;
use crate::domain::rates::Card;
use crate::domain::receipt::{Receipt, verify};

/// A receipt and its cards.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The receipt in JSON (`meterctl receipt JOB --output json`); - for standard input.
    #[arg(long, value_name = "FILE")]
    receipt: PathBuf,
    /// A rate card that it was priced by; may be given several times.
    #[arg(long, required = true, value_name = "FILE")]
    card: Vec<PathBuf>,
}

pub(super) fn main(arguments: &Arguments) -> Result<Exit, Failure> {
    let text = read(&arguments.receipt)?;
    let receipt: Receipt =
        serde_json::from_str(&text).map_err(|error| Failure::Other(format!("{}: not a receipt: {error}", arguments.receipt.display())))?;
    let mut cards = BTreeMap::new();
    for path in &arguments.card {
        let card = card(path)?;
        cards.insert(card.digest, card);
    }
    let (exit, text) = verified(&receipt, &cards);
    match exit {
        Exit::Done => print(&text),
        _ => complain(&text),
    }
    Ok(exit)
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
pub(super) fn read(path: &PathBuf) -> Result<String, Failure> {
    let failed = |error: std::io::Error| Failure::Other(format!("{}: {error}", path.display()));
    if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().lock().read_to_string(&mut text).map_err(failed)?;
        return Ok(text);
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// A card from its file, or every mistake in it.
pub(super) fn card(path: &PathBuf) -> Result<Card, Failure> {
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
