//! `meterctl rate replay`: what stored jobs would have cost under a draft of a card.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::client::Failure;
use super::exit::Exit;
use super::stored::Stored;
use super::table::{Align, table};
use super::verify::card;
use super::{Format, Output, print};
use crate::domain::id::{AccountId, Digest, LineId};
use crate::domain::money::Credits;
use crate::domain::rates::Card;
use crate::domain::replay::{Comparison, Followed, NotReplayed, Repriced, Sums};
use crate::domain::time::Wall;

/// Jobs that are listed by name, of those that pay more and of those that pay less.
const LISTED: usize = 10;

/// Which jobs, under which card.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The draft.
    #[arg(long, value_name = "FILE")]
    card: PathBuf,
    /// Only this account's jobs.
    #[arg(long)]
    account: Option<AccountId>,
    #[command(flatten)]
    stored: Stored,
    #[command(flatten)]
    format: Format,
}

/// For programs.
#[derive(Serialize)]
struct Document<'a> {
    card: &'a LineId,
    version: u64,
    digest: Digest,
    #[serde(flatten)]
    comparison: &'a Comparison,
}

pub(super) fn main(socket: &Path, arguments: &Arguments) -> Result<Exit, Failure> {
    let draft = card(&arguments.card)?;
    let receipts = arguments.stored.receipts(socket, Wall(0))?;
    let wanted = receipts.iter().filter(|receipt| arguments.account.as_ref().is_none_or(|account| receipt.account == *account));
    let (mut jobs, mut unread) = (Vec::new(), Vec::new());
    for receipt in wanted {
        match Followed::of_receipt(receipt) {
            Ok(job) => jobs.push(job),
            Err(why) => unread.push(NotReplayed {
                job: receipt.job.clone(),
                attempt: receipt.attempt,
                account: receipt.account.clone(),
                was: receipt.charge,
                why: why.to_string(),
            }),
        }
    }
    let mut comparison = Comparison::of(jobs.iter(), &draft);
    comparison.not_replayed.extend(unread);
    match arguments.format.output {
        Output::Text => print(&text(&draft, &comparison)),
        Output::Json => {
            let document = Document { card: &draft.name, version: draft.version, digest: draft.digest, comparison: &comparison };
            print(&format!("{}\n", serde_json::to_string_pretty(&document).map_err(Failure::other)?));
        }
    }
    Ok(Exit::Done)
}

/// `+2` or `-2`.
fn signed(amount: Credits) -> String {
    if amount.is_positive() { format!("+{amount}") } else { amount.to_string() }
}

fn text(draft: &Card, comparison: &Comparison) -> String {
    let Comparison { total, accounts, jobs, not_replayed } = comparison;
    let mut text = format!(
        "under card {} version {}, in force all the time (its line prices by their own dates); amounts in credits\n\n",
        draft.name, draft.version
    );
    let headings =
        [("ACCOUNT", Align::Left), ("JOBS", Align::Right), ("CHARGED", Align::Right), ("WOULD BE", Align::Right), ("CHANGE", Align::Right)];
    let row = |name: &str, sums: &Sums| {
        vec![name.to_owned(), sums.jobs.to_string(), sums.was.to_string(), sums.would.to_string(), signed(sums.change())]
    };
    let mut by_change: Vec<(&AccountId, &Sums)> = accounts.iter().collect();
    by_change.sort_by_key(|(account, sums)| (sums.change(), *account));
    let mut rows: Vec<Vec<String>> = by_change.iter().map(|(account, sums)| row(account.as_str(), sums)).collect();
    rows.push(row("together", total));
    text.push_str(&table(&headings, &rows));
    let count = |wanted: fn(Credits) -> bool| accounts.values().filter(|sums| wanted(sums.change())).count();
    let (less, more) = (count(|change| change < Credits::ZERO), count(Credits::is_positive));
    let _ = writeln!(text, "\naccounts that pay more: {more}, less: {less}, the same: {}", accounts.len() - more - less);
    let mut by_job: Vec<&Repriced> = jobs.iter().filter(|job| job.was != job.would).collect();
    by_job.sort_by_key(|job| (job.would.minus(job.was), job.attempt));
    text.push_str(&listed("who pays less", by_job.iter().copied().filter(|job| job.would < job.was)));
    text.push_str(&listed("who pays more", by_job.iter().rev().copied().filter(|job| job.was < job.would)));
    let least: Vec<&Repriced> = jobs.iter().filter(|job| !job.at_least.is_empty()).collect();
    if !least.is_empty() {
        let names: Vec<String> = least.iter().take(LISTED).map(|job| job.job.to_string()).collect();
        let _ = writeln!(
            text,
            "\nat least ({}): jobs with gaps in a meter that the draft prices, such as {}: nobody knows what they used then",
            least.len(),
            names.join(", ")
        );
    }
    if !not_replayed.is_empty() {
        let was: Credits = not_replayed.iter().map(|job| job.was).sum();
        let _ = writeln!(text, "\nnot replayed ({}), charged {was}", not_replayed.len());
        let headings = [("  JOB", Align::Left), ("ATTEMPT", Align::Right), ("CHARGED", Align::Right), ("WHY NOT", Align::Left)];
        let row = |job: &NotReplayed| vec![format!("  {}", job.job), job.attempt.to_string(), job.was.to_string(), job.why.clone()];
        text.push_str(&table(&headings, &not_replayed.iter().map(row).collect::<Vec<_>>()));
    }
    text
}

fn listed<'a>(title: &str, jobs: impl Iterator<Item = &'a Repriced>) -> String {
    let headings = [
        ("  JOB", Align::Left),
        ("ATTEMPT", Align::Right),
        ("ACCOUNT", Align::Left),
        ("CHARGED", Align::Right),
        ("WOULD BE", Align::Right),
        ("CHANGE", Align::Right),
    ];
    let row = |job: &Repriced| {
        let change = signed(job.would.minus(job.was));
        let (was, would) = (job.was.to_string(), job.would.to_string());
        vec![format!("  {}", job.job), job.attempt.to_string(), job.account.to_string(), was, would, change]
    };
    let rows: Vec<Vec<String>> = jobs.take(LISTED).map(row).collect();
    if rows.is_empty() {
        String::new()
    } else {
        format!("\n{title}{}\n{}", if rows.len() < LISTED { "" } else { " (the first ten)" }, table(&headings, &rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::sample;

    fn draft(line: &str) -> Card {
        let text = format!("card = \"draft\"\nversion = 4\neffective_from = \"2027-01-01T00:00:00Z\"\n{line}");
        Card::parse(&text, "draft.toml").unwrap()
    }

    #[test]
    fn who_pays_more_and_who_less_and_what_cannot_be_told_stand_in_tables() {
        let lines = "[[line]]\nid = \"gpu\"\nmeter = \"gpu_held\"\nprice = \"3.00\"\nunit = \"gpu-hour\"\ngpu_model = \"NVIDIA H100*\"\n\
            [[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"0.05\"\nunit = \"core-hour\"\n";
        let train = Followed::of_receipt(&sample::receipt()).unwrap();
        let mut cpu_only = Followed { account: "other".parse().unwrap(), name: "fit".parse().unwrap(), ..train.clone() };
        cpu_only.segments.iter_mut().for_each(|segment| segment.terms.iter_mut().for_each(|terms| terms.gpus.clear()));
        cpu_only.segments[0].usage.gpu_held_ns.clear();
        cpu_only.segments[0].cost = "0.2".parse().unwrap();
        let mut unpriced = Followed { name: "old".parse().unwrap(), ..train.clone() };
        let held = unpriced.segments.iter_mut().flat_map(|segment| segment.terms.iter_mut()).flat_map(|terms| terms.gpus.iter_mut());
        held.for_each(|held| held.model = crate::domain::id::GpuModel::new("Tesla T4"));
        let draft = draft(lines);
        insta::assert_snapshot!(text(&draft, &Comparison::of([&train, &cpu_only, &unpriced].into_iter(), &draft)));
    }

    #[test]
    fn under_the_card_that_was_in_force_nobody_pays_another_amount() {
        let train = Followed::of_receipt(&sample::receipt()).unwrap();
        let comparison = Comparison::of([&train].into_iter(), &sample::card());
        assert_eq!(comparison.total.change(), Credits::ZERO);
        assert!(text(&sample::card(), &comparison).contains("accounts that pay more: 0, less: 0, the same: 1"));
    }
}
