//! `meterctl why`: counter, quantity, rate line, cost, balance evidence, decision, system call, each with its time.

use std::fmt::Write as _;
use std::path::Path;

use super::client::{Failure, job_path};
use super::exit::Exit;
use super::quantity::show_length;
use super::receipt::{gaps_text, head, money_text, segment_text};
use super::{Format, show};
use crate::domain::act::{Act, ActOutcome, Acted, NO_SYSCALL};
use crate::domain::id::JobName;
use crate::domain::job::{Evidence, Step, StepEvent};
use crate::domain::money::Credits;
use crate::domain::receipt::{Receipt, rfc3339};
use crate::domain::time::Nanos;
use crate::domain::wire::Verdict;
use crate::node::event::outbid_text;

/// Of which job.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The job.
    job: JobName,
    #[command(flatten)]
    format: Format,
}

pub(super) fn main(socket: &Path, arguments: &Arguments) -> Result<Exit, Failure> {
    show(socket, &job_path(arguments.job.as_str(), "/why"), arguments.format, text)
}

/// The way from counter to system call, for people.
pub(crate) fn text(receipt: &Receipt) -> String {
    let mut text = head(receipt);
    text.push_str("\nused, and priced\n");
    for segment in &receipt.segments {
        text.push_str(&segment_text(segment));
    }
    text.push_str(&money_text(receipt));
    text.push_str("\nwhat happened\n");
    if receipt.steps.is_empty() {
        text.push_str("  nothing: it was never warned, frozen, thawed or ended by the agent\n");
    }
    if receipt.notes_dropped != 0 {
        let _ = writeln!(text, "  {} earlier notes found no room", receipt.notes_dropped);
    }
    for step in &receipt.steps {
        text.push_str(&step_text(step));
    }
    text.push_str(&gaps_text(&receipt.gaps));
    text
}

fn step_text(step: &Step) -> String {
    let when = rfc3339(step.wall);
    match &step.event {
        StepEvent::Warned(evidence) => with_evidence(&when, "warned: credit is short", evidence),
        StepEvent::Armed(evidence) => with_evidence(&when, "armed: the earliest instant at which nothing is left has come near", evidence),
        StepEvent::Emptied(evidence) => with_evidence(&when, "empty: nothing in hand", evidence),
        StepEvent::Exhausted(evidence) => with_evidence(&when, "exhausted: the authority says that nothing is left", evidence),
        StepEvent::Funded(evidence) => with_evidence(&when, "funded: there is something in hand again", evidence),
        StepEvent::StoodAside(evidence) => {
            with_evidence(&when, "stands aside: credit is short, and it stands still so that others of its account can go on", evidence)
        }
        StepEvent::StepsBack(evidence) => with_evidence(&when, "need not stand aside any more", evidence),
        StepEvent::OverBid { rule, bid, ask } => format!("  {when}  {}\n", outbid_text(*rule, *bid, *ask)),
        StepEvent::WithinBid { bid } => format!("  {when}  no more is asked than the {bid} credits that were bid\n"),
        StepEvent::FrozenTooLong(evidence) => with_evidence(&when, "has stood still for as long as its account's policy lets it", evidence),
        StepEvent::WouldAct(act) => format!("  {when}  not enforced: this would have been done now: {act}\n"),
        StepEvent::Acted(acted) => acted_text(&when, acted),
        StepEvent::FrozenByOther => {
            format!("  {when}  frozen by somebody else: the agent will not thaw it, and what it holds goes on being charged\n")
        }
        StepEvent::Corrected(correction) => format!("  {when}  not as believed; {correction}\n"),
        StepEvent::FoundThawed => format!("  {when}  found running while it was to be frozen\n"),
    }
}

fn with_evidence(when: &str, what: &str, evidence: &Evidence) -> String {
    let mut text = format!("  {when}  {what}\n");
    let counter = evidence.cpu_counter_ns.map_or("not readable".to_owned(), |ns| format!("{ns} ns"));
    let _ = writeln!(text, "      counter: CPU time {counter}; the job's charge so far is {} credits", evidence.charge);
    let Evidence { granted, returned, spent, in_hand, free, .. } = evidence;
    let _ = writeln!(
        text,
        "      balance: granted {granted} - returned {returned} - charged {spent} = {in_hand} in hand; {free} free elsewhere"
    );
    let per_hour = Credits::from_nano(evidence.burn_max_per_s.nano().saturating_mul(3_600));
    let lasts = evidence.lasts.map_or("no end".to_owned(), |lasts| format!("it lasts {}", show_length(lasts)));
    let _ = writeln!(text, "      at the greatest burn of {per_hour} credits an hour: {lasts}");
    if let Some((verdict, request)) = evidence.verdict {
        let _ = writeln!(text, "      authority's last word, on question {request}: {}", verdict_text(verdict));
    }
    text
}

fn verdict_text(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Granted => "granted, and there is more",
        Verdict::Final => "this was all there is",
        Verdict::Exhausted => "nothing is left",
        Verdict::Hold => "no new credit now",
        Verdict::UnitMismatch => "another unit was named",
        Verdict::UnknownAccount => "there is no such account",
        Verdict::BelowAtLeast => "less is free than would be of use",
        Verdict::Closed => "this escrow is closed",
        Verdict::NotVerified => "nobody vouches for the account yet",
        Verdict::RefillPending => "nothing is left, and a refill is under way",
        Verdict::Recall => "its owner takes it back",
    }
}

fn acted_text(when: &str, acted: &Acted) -> String {
    if acted.act == Act::Warn && acted.outcome == ActOutcome::Confirmed && acted.syscall == NO_SYSCALL {
        return format!("  {when}  the warning is out: to people, by no signal\n");
    }
    let took = acted.done_at.since(acted.asked_at);
    let what = match acted.act {
        Act::Freeze => "frozen",
        Act::Thaw => "thawed",
        Act::Terminate => "asked to end (SIGTERM)",
        Act::Kill => "killed",
        Act::Remove => "its cgroup removed",
        Act::Warn => "warned by a signal",
    };
    let outcome = match &acted.outcome {
        ActOutcome::Confirmed => format!("the kernel confirmed it {} later", millis(took)),
        ActOutcome::Unconfirmed => format!("not confirmed within {}", millis(took)),
        ActOutcome::Gone => "there was nothing left to act on".to_owned(),
        ActOutcome::Refused(why) => format!("not touched: {why}"),
        ActOutcome::Failed(why) => format!("failed: {why}"),
    };
    format!("  {when}  {what}: {outcome}\n      by: {}\n", acted.syscall)
}

fn millis(length: Nanos) -> String {
    format!("{}.{:03} ms", length.millis(), length.0 / 1_000 % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::sample;

    #[test]
    fn a_freeze_is_explained_from_the_counter_to_the_system_call() {
        insta::assert_snapshot!(text(&sample::receipt()));
    }

    #[test]
    fn a_job_that_nothing_happened_to_says_so() {
        let mut receipt = sample::receipt();
        receipt.steps.clear();
        assert!(text(&receipt).contains("never warned, frozen, thawed or ended"));
    }
}
