//! `meterctl receipt`: what a job used and costs.

use std::fmt::Write as _;
use std::path::Path;

use super::client::{Client, Failure, job_path, typed};
use super::exit::Exit;
use super::quantity::{show_bytes, show_length, show_wide_length};
use super::table::{Align, pairs, table};
use super::{Format, html, print, show};
use crate::domain::detail::Readings;
use crate::domain::id::JobName;
use crate::domain::job::{Gap, GapRule};
use crate::domain::outcome::{Basis, Outcome};
use crate::domain::rates::charge::LineCharge;
use crate::domain::rates::{Trait, Unit};
use crate::domain::receipt::{Measure, Receipt, ReceiptSegment, ReceiptState, ReceiptTerms};
use crate::domain::time::Nanos;
use crate::domain::usage::Meter;

/// Of which job.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The job.
    job: JobName,
    /// As one page to be printed or sent, on standard output.
    #[arg(long, conflicts_with = "output")]
    html: bool,
    #[command(flatten)]
    format: Format,
}

pub(super) fn main(socket: &Path, arguments: &Arguments) -> Result<Exit, Failure> {
    let path = job_path(arguments.job.as_str(), "/receipt");
    if arguments.html {
        let receipt: Receipt = typed(Client::new(socket)?.read(&path)?)?;
        print(&html::page(&receipt));
        return Ok(Exit::Done);
    }
    show(socket, &path, arguments.format, text)
}

/// The receipt for people.
pub(super) fn text(receipt: &Receipt) -> String {
    let mut text = head(receipt);
    for segment in &receipt.segments {
        text.push('\n');
        text.push_str(&segment_text(segment));
    }
    text.push('\n');
    text.push_str(&money_text(receipt));
    if let Some(readings) = &receipt.readings {
        text.push_str(&readings_text(readings));
    }
    text.push_str(&gaps_text(&receipt.gaps));
    text
}

/// What job it is, and how it stands.
pub(super) fn head(receipt: &Receipt) -> String {
    let state = match receipt.state {
        ReceiptState::Final => "final",
        ReceiptState::Provisional => "provisional: the job goes on, or its last charge is not decided",
    };
    let mut lines = vec![
        ("job", format!("{}, attempt {}", receipt.job, receipt.attempt)),
        ("account", receipt.account.to_string()),
        ("owner", format!("uid {}", receipt.owner_uid.0)),
        ("node", receipt.node.to_string()),
        ("receipt", state.to_owned()),
        ("phase", receipt.phase.name().to_owned()),
        ("opened", receipt.opened.clone()),
    ];
    lines.extend(gang_text(receipt).map(|gang| ("gang", gang)));
    lines.extend(stated_text(receipt).map(|stated| ("stated", stated)));
    if let Some(ended) = &receipt.ended {
        lines.push(("ended", ended.clone()));
    }
    lines.extend(outcome_text(receipt).map(|outcome| ("outcome", outcome)));
    if receipt.measure == Some(Measure::ProcessTree) {
        let text = "as a process tree: CPU time is a lower bound, memory counts shared pages for each process";
        lines.push(("measured", text.to_owned()));
    }
    lines.extend(market(receipt));
    pairs(&lines)
}

/// What was bid for it, and who earns by it.
pub(super) fn market(receipt: &Receipt) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    if let Some(offer) = receipt.offer {
        facts.push(("bid", format!("{} credits; asked and charged at the start: {}", offer.bid, offer.ask)));
    }
    if let (Some(provider), Some(earned)) = (&receipt.provider, receipt.earned) {
        facts.push(("provider", format!("{provider}, earned {earned} credits")));
    }
    facts
}

/// What was stated of the job as it is now; none where nothing was.
pub(super) fn stated_text(receipt: &Receipt) -> Option<String> {
    let Receipt { cpus, memory_bytes, storage_bytes, ref traits, ref node, .. } = *receipt;
    let mut traits = traits.clone();
    // That the node has its own name goes without saying.
    traits.retain(|which, value| *which != Trait::Node || value.as_str() != node.as_str());
    stated(&ReceiptTerms { cpus, memory_bytes, storage_bytes, traits })
}

/// The job on several nodes that it was a part of.
pub(super) fn gang_text(receipt: &Receipt) -> Option<String> {
    let gang = receipt.gang.as_ref()?;
    let size = gang.size.map_or(String::new(), |size| format!(", of {size} parts"));
    Some(format!("{}, run {}{size}: this is the bill of one part", gang.name, gang.attempt))
}

/// How it ended, and by what evidence.
pub(super) fn outcome_text(receipt: &Receipt) -> Option<String> {
    let outcome = receipt.outcome?;
    let code = receipt.exit_code.map(|code| format!(", exit code {code}")).unwrap_or_default();
    let basis = receipt.basis.map(|basis| format!(", {}", by(basis, receipt.reported))).unwrap_or_default();
    Some(format!("{outcome}{code}{basis}"))
}

/// Such as `16 CPUs, memory 64.0 GiB, tier spot`; none where nothing was stated.
pub(super) fn stated(terms: &ReceiptTerms) -> Option<String> {
    let traits = terms.traits.iter().map(|(which, value)| format!("{} {value}", which.name()));
    let stated = [
        terms.cpus.map(|cpus| format!("{cpus} CPUs")),
        terms.memory_bytes.map(|bytes| format!("memory {}", show_bytes(bytes))),
        terms.storage_bytes.map(|bytes| format!("storage {}", show_bytes(bytes))),
    ];
    let all: Vec<String> = stated.into_iter().flatten().chain(traits).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// What was stated of the job in a segment, where that has changed since.
pub(super) fn terms_text(terms: &ReceiptTerms) -> String {
    stated(terms).unwrap_or_else(|| "nothing stated".to_owned())
}

/// What the outcome rests on, in words.
fn by(basis: Basis, reported: Option<Outcome>) -> String {
    let against = |word: &str| reported.map_or_else(|| word.to_owned(), |said| format!("{word} (reported as {said})"));
    match basis {
        Basis::Credit => against("ended for lack of credit"),
        Basis::OomKill { count } => against(&format!("{count} of its processes killed by the kernel for memory")),
        Basis::TimeLimit => against("at its time limit"),
        Basis::ExitStatus => "by its exit status".to_owned(),
        Basis::Reported => "as reported".to_owned(),
        Basis::Seen => "as seen: nobody reported it".to_owned(),
    }
}

/// Quantities and prices under one card.
pub(super) fn segment_text(segment: &ReceiptSegment) -> String {
    let length = |text: &str| text.parse().map_or_else(|_| text.to_owned(), show_wide_length);
    let mut text = format!("rate card {} version {}, {} to {}\n", segment.card, segment.card_version, segment.from, segment.to);
    let _ = writeln!(text, "  ran {}, CPU time {}{}", length(&segment.running_ns), length(&segment.cpu_ns), stillness_text(segment));
    let _ = writeln!(
        text,
        "  memory on average: charged {}{}, anonymous {}{}",
        mean_memory(&segment.memory_charged_byte_ns, segment),
        billed(segment, Meter::MemoryCharged),
        mean_memory(&segment.memory_anon_byte_ns, segment),
        billed(segment, Meter::MemoryAnon)
    );
    if let Some(terms) = &segment.terms {
        let _ = writeln!(text, "  given then: {}", terms_text(terms));
    }
    for gpu in &segment.gpus {
        let _ = writeln!(text, "  held {} ({}) for {}", gpu.gpu, gpu.model, length(&gpu.held_ns));
    }
    let headings =
        [("  LINE", Align::Left), ("QUANTITY", Align::Right), ("UNIT", Align::Left), ("PRICE", Align::Right), ("COST", Align::Right)];
    text.push_str(&table(&headings, &segment.lines.iter().map(line_row).collect::<Vec<_>>()));
    let _ = writeln!(text, "  together {} credits", segment.cost);
    for line in segment.lines.iter().filter(|line| !line.rules.is_empty()) {
        let _ = writeln!(text, "  {}: {}; billed {} {}", line.line, line.rules.join(", "), billed_quantity(line), line.unit);
    }
    for line in segment.lines.iter().filter(|line| !line.pending.is_zero()) {
        let _ = writeln!(text, "  of {} {} more are charged at its end, if it completes", line.line, line.pending);
    }
    for line in segment.lines.iter().filter(|line| !line.refund.is_zero()) {
        let _ = writeln!(text, "  of {} its outcome gives back {}", line.line, line.refund);
    }
    text
}

/// For how long it stood still, by whose hand, and whether that costs anything.
fn stillness_text(segment: &ReceiptSegment) -> String {
    let still = |text: &str| text.parse::<u128>().ok().filter(|ns| *ns != 0).map(show_wide_length);
    let priced = segment.lines.iter().flat_map(|line| &line.rules).any(|rule| rule.starts_with("frozen counts "));
    let costs = if priced { "charged as its lines say" } else { "not charged" };
    let by_agent = still(&segment.frozen_ns).map_or(String::new(), |length| format!(", stopped by the agent {length} ({costs})"));
    let by_others =
        still(&segment.paused_ns).map_or(String::new(), |length| format!(", stopped by others for {length} of the time it ran"));
    format!("{by_agent}{by_others}")
}

pub(super) fn line_row(line: &LineCharge) -> Vec<String> {
    let per = if line.per == 1 { line.unit.clone() } else { format!("{} {}", line.per, line.unit) };
    vec![format!("  {}", line.line), quantity(line), line.unit.clone(), format!("{} per {per}", line.price), line.cost.to_string()]
}

/// A quantity in the unit of its price, to six digits behind the point, cut off. The exact one is in the JSON document.
pub(super) fn quantity(line: &LineCharge) -> String {
    in_units(line, line.quantity)
}

/// What is billed of it, in the same way.
pub(super) fn billed_quantity(line: &LineCharge) -> String {
    let whole = line.billed.split('.').next().and_then(|whole| whole.parse().ok());
    whole.map_or_else(|| line.billed.clone(), |base_units| in_units(line, base_units))
}

fn in_units(line: &LineCharge, base_units: u128) -> String {
    let Ok(unit) = line.unit.parse::<Unit>() else { return base_units.to_string() };
    // The rules say how long its month was.
    let hours = line.rules.iter().find_map(|rule| rule.strip_prefix("a month of ")?.split(' ').next()?.parse::<u128>().ok());
    let base = unit.base(hours.unwrap_or(720) * 3_600_000_000_000);
    let millionths = (base_units % base).saturating_mul(1_000_000) / base;
    if base_units != 0 && base_units / base == 0 && millionths == 0 {
        return "<0.000001".to_owned(); // there is some: it may cost something
    }
    let text = format!("{}.{millionths:06}", base_units / base);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// ` (billed)` where a line of the card prices it.
fn billed(segment: &ReceiptSegment, meter: Meter) -> &'static str {
    if segment.lines.iter().any(|line| line.meter == meter) { " (billed)" } else { "" }
}

/// Peak memory, I/O and the like, as last read; nothing where nothing was read.
fn readings_text(readings: &Readings) -> String {
    let bytes = |text: &String| text.parse().map_or_else(|_| text.clone(), show_bytes);
    let mut parts = Vec::new();
    parts.extend(readings.memory_peak_bytes.as_ref().map(|peak| format!("peak memory {}", bytes(peak))));
    parts.extend(readings.pids.as_ref().map(|pids| format!("{pids} tasks")));
    parts.extend(readings.io.as_ref().map(|io| {
        format!("read {} in {} operations, wrote {} in {}", bytes(&io.read_bytes), io.read_ops, bytes(&io.write_bytes), io.write_ops)
    }));
    parts.extend(readings.pressure.map(|pressure| {
        let waited = |us: u64| show_length(Nanos(us.saturating_mul(1_000)));
        format!(
            "waited {} for CPUs, {} for memory, {} for I/O",
            waited(pressure.cpu_some_us),
            waited(pressure.memory_some_us),
            waited(pressure.io_some_us)
        )
    }));
    parts.extend(readings.oom_kills.as_ref().filter(|count| *count != "0").map(|count| format!("{count} killed for memory")));
    let unread: Vec<String> = readings.unread.iter().map(|(name, why)| format!("{name} ({why})")).collect();
    if !unread.is_empty() {
        parts.push(format!("not read: {}", unread.join(", ")));
    }
    if parts.is_empty() { String::new() } else { format!("last readings: {}\n", parts.join("; ")) }
}

fn mean_memory(area: &str, segment: &ReceiptSegment) -> String {
    let numbers = area.parse::<u128>().ok().zip(segment.running_ns.parse::<u128>().ok());
    let mean = numbers.and_then(|(area, running)| area.checked_div(running)).and_then(|bytes| u64::try_from(bytes).ok());
    mean.map_or("unknown".to_owned(), show_bytes)
}

/// Who pays what of it.
pub(super) fn money_text(receipt: &Receipt) -> String {
    let mut lines = vec![("charge", format!("{} credits", receipt.charge)), ("  drawn", receipt.drawn.to_string())];
    lines.push(("  unfunded", format!("{} (used past zero, written off)", receipt.unfunded)));
    if !receipt.owed.is_zero() {
        lines.push(("  owed", format!("{} (not decided yet)", receipt.owed)));
    }
    if !receipt.pending.is_zero() {
        lines.push(("pending", format!("{} credits, charged at its end if it completes", receipt.pending)));
    }
    if let Some(refund) = &receipt.refund {
        if !refund.waived.is_zero() {
            lines.push(("  waived", format!("{} (owed, and need not be paid)", refund.waived)));
        }
        lines.push(("refunded", format!("{} credits, by its outcome", refund.refunded)));
        lines.push(("net", format!("{} credits", refund.net)));
    }
    pairs(&lines)
}

/// What nobody could read.
pub(super) fn gaps_text(gaps: &[Gap]) -> String {
    let line = |gap: &Gap| {
        let rule = match gap.rule {
            GapRule::CountedLater => "the next reading held all of it",
            GapRule::NotBilled => "not billed",
            GapRule::Lost => "lost, not billed",
            GapRule::FromParent => "told from its parent's counter",
            GapRule::FromParentSplit => "told from its parent's counter, shared equally",
        };
        let length: Nanos = gap.to.since(gap.from);
        format!("  {} for {length}: {}; {rule}\n", gap.meter, gap.why)
    };
    if gaps.is_empty() { String::new() } else { format!("gaps\n{}", gaps.iter().map(line).collect::<String>()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::sample;

    #[test]
    fn a_part_s_receipt_names_the_whole() {
        let mut receipt = sample::receipt();
        assert!(!text(&receipt).contains("gang"));
        let mut of = |size| {
            receipt.gang = Some(crate::domain::gang::Gang { name: "slurm:4711".parse().unwrap(), attempt: 1, size });
            text(&receipt)
        };
        let (two, unsaid) = (of(Some(2)), of(None));
        assert!(two.contains("slurm:4711, run 1, of 2 parts: this is the bill of one part"), "{two}");
        assert!(unsaid.contains("slurm:4711, run 1: this is the bill of one part"), "{unsaid}");
    }

    #[test]
    fn a_quantity_that_is_too_small_to_be_shown_is_not_shown_as_nothing() {
        let line = |quantity| LineCharge { quantity, ..sample::receipt().segments[0].lines[0].clone() };
        let unit = line(0).unit.parse::<Unit>().unwrap().base(0);
        let shown = |quantity: u128| super::quantity(&line(quantity));
        assert_eq!([0, 1, unit / 1_000_000 - 1, unit / 1_000_000].map(shown), ["0", "<0.000001", "<0.000001", "0.000001"]);
    }

    #[test]
    fn standing_still_is_said_to_cost_nothing_only_where_it_does() {
        let mut receipt = sample::receipt();
        let stopped = |receipt: &Receipt| text(receipt).lines().find(|line| line.contains("stopped by the agent")).unwrap().to_owned();
        assert!(stopped(&receipt).contains("1m 01s (not charged)"), "{}", stopped(&receipt));
        receipt.segments[0].lines[0].rules = vec!["frozen counts 0.25".to_owned()];
        assert!(stopped(&receipt).contains("1m 01s (charged as its lines say)"), "{}", stopped(&receipt));
        receipt.segments[0].frozen_ns = "0".to_owned();
        assert!(!text(&receipt).contains("stopped by the agent"));
    }

    #[test]
    fn v2_what_is_kept_back_for_the_end_is_said_while_the_job_runs() {
        let mut receipt = sample::receipt();
        let pending = "0.54".parse().unwrap();
        (receipt.pending, receipt.segments[0].lines[1].pending) = (pending, pending);
        receipt.segments[0].lines[1].rules = vec!["settle_at_end".to_owned()];
        let text = text(&receipt);
        assert!(text.contains("pending     0.54 credits, charged at its end if it completes"), "{text}");
        assert!(text.contains("of cpu 0.54 more are charged at its end"), "{text}");
        assert!(text.contains("  cpu: settle_at_end; billed"), "{text}");
    }

    #[test]
    fn a_receipt_reads_from_quantity_to_credits() {
        insta::assert_snapshot!(text(&sample::receipt()));
    }
}
