//! `meterctl why`: counter, quantity, rate line, cost, balance evidence, decision, system call, each with its time.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use super::client::{Client, Failure, job_path, typed};
use super::exit::Exit;
use super::quantity::show_length;
use super::receipt::{gaps_text, head, money_text, segment_text};
use super::{Format, print_as};
use crate::domain::act::{Act, ActOutcome, Acted, NO_SYSCALL};
use crate::domain::id::{JobName, NodeId};
use crate::domain::job::{Evidence, Step, StepEvent};
use crate::domain::money::Credits;
use crate::domain::receipt::{Receipt, ReceiptState, rfc3339};
use crate::domain::time::Nanos;
use crate::domain::wire::Verdict;
use crate::node::event::outbid_text;
use crate::node::link::FaultStatus;
use crate::node::status::Status;

/// Of which job.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The job.
    job: JobName,
    #[command(flatten)]
    format: Format,
}

pub(super) fn main(socket: &Path, arguments: &Arguments) -> Result<Exit, Failure> {
    let mut document = Client::new(socket)?.read(&job_path(arguments.job.as_str(), "/why"))?;
    let receipt: Receipt = typed(document.clone())?;
    // Without its status the agent has still said why.
    let status = Client::new(socket)?.read("/v1/status").ok().and_then(|status| typed::<Status>(status).ok());
    let fault = status.and_then(|status| status.authority.link?.fault).filter(|_| receipt.state != ReceiptState::Final);
    document["authority_fault"] = json!(fault);
    let text = |_: &Value| text(&receipt) + &fault.as_ref().map_or(String::new(), fault_text);
    print_as(&document, arguments.format, text)
}

/// Why the authority does not say whether there is more.
fn fault_text(fault: &FaultStatus) -> String {
    let FaultStatus { code, message, since, count } = fault;
    let detail = if message.is_empty() { String::new() } else { format!(": {message}") };
    format!(
        "\nthe authority\n  has given no sound answer since {since}: {code}, {count} times in a row{detail}\n  The job runs on what was granted. Where that is used up or \
        has lapsed it stands still until there is one; it is not ended for this.\n"
    )
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
        StepEvent::WouldRefuse(code) => format!("  {when}  not enforced: its start would have been refused: {code}\n"),
        StepEvent::Acted(acted) => acted_text(&when, acted),
        StepEvent::FrozenByOther => {
            format!("  {when}  frozen by somebody else: the agent will not thaw it, and what it holds goes on being charged\n")
        }
        StepEvent::Corrected(correction) => format!("  {when}  not as believed; {correction}\n"),
        StepEvent::FoundThawed => format!("  {when}  found running while it was to be frozen\n"),
        StepEvent::GangHeld { version, dry } => format!("  {when}  {}\n", gang_held_text(*version, dry.as_ref())),
        StepEvent::GangRuns { version } => format!("  {when}  its gang may run again, by the authority's word {version}\n"),
    }
}

/// Why a part of a gang stands still.
fn gang_held_text(version: u64, dry: Option<&NodeId>) -> String {
    let why = dry.map_or_else(|| "another part of the job ran dry".to_owned(), |node| format!("the job ran dry on node {node}"));
    format!("its gang stands still: {why}, by the authority's word {version}")
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
        Verdict::Recovering => "no new credit while the authority's store recovers; what is held stays good",
        Verdict::Forked => "somebody else speaks under the same epoch: it is void",
        Verdict::Unproven => "more is held than the authority knows of, without proof: the epoch is void",
        Verdict::Stale => "no new credit before the billing engine says the balance again; what is held stays good",
        Verdict::NotAdmitted => "the account may not be used on this node",
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
    fn a_freeze_for_the_sake_of_another_node_names_it() {
        let mut receipt = sample::receipt();
        let step = |event| Step { wall: crate::domain::time::Wall(0), at: crate::domain::time::Mono(0), event };
        let held = |dry: Option<&str>| StepEvent::GangHeld { version: 2, dry: dry.map(|node| node.parse().unwrap()) };
        receipt.steps = vec![step(held(Some("n2"))), step(held(None)), step(StepEvent::GangRuns { version: 3 })];
        let text = text(&receipt);
        for line in [
            "its gang stands still: the job ran dry on node n2, by the authority's word 2",
            "its gang stands still: another part of the job ran dry, by the authority's word 2",
            "its gang may run again, by the authority's word 3",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn a_fault_of_the_link_is_named_with_what_comes_of_it() {
        let fault = |message: &str| FaultStatus {
            code: "unreachable".to_owned(),
            message: message.to_owned(),
            since: "2026-11-26T12:00:00.000Z".to_owned(),
            count: 7,
        };
        insta::assert_snapshot!(fault_text(&fault("no route to 192.0.2.10:8443")), @r"
        the authority
          has given no sound answer since 2026-11-26T12:00:00.000Z: unreachable, 7 times in a row: no route to 192.0.2.10:8443
          The job runs on what was granted. Where that is used up or has lapsed it stands still until there is one; it is not ended for this.
        ");
        assert!(fault_text(&fault("")).contains("7 times in a row\n"), "what strangers are not told");
    }

    #[test]
    fn a_job_that_nothing_happened_to_says_so() {
        let mut receipt = sample::receipt();
        receipt.steps.clear();
        assert!(text(&receipt).contains("never warned, frozen, thawed or ended"));
    }
}
