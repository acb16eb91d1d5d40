//! How a job ended, by the evidence: what the kernel and the agent know stands above what anybody said.

use super::super::act::{Act, ActOutcome};
use super::super::job::{Ending, Job, StepEvent};
use super::super::outcome::{Basis, Outcome};
use super::super::rates::OverBid;
use super::super::time::Mono;

/// The word on a job that is over at `at`, and what it rests on. `otherwise` is what the last look showed, if nobody has said anything.
///
/// In this order: the agent ended it for lack of credit; the kernel killed a process of it for memory; it reached its time limit; its exit
/// status; the word of whoever stopped it; what was seen.
#[must_use]
pub fn judge(job: &Job, otherwise: Outcome, at: Mono) -> (Ending, Basis) {
    let reported = job.reported;
    let exit_code = reported.and_then(|ending| ending.exit_code);
    let ending = |outcome| Ending { outcome, exit_code };
    if was_ended_by_us(job) {
        return (ending(Outcome::OutOfCredit), Basis::Credit);
    }
    if let Some(count) = oom_kills(job) {
        return (ending(Outcome::OutOfMemory), Basis::OomKill { count });
    }
    let ran_out = job.time_limit.is_some_and(|limit| limit <= at.since(job.opened.mono));
    let Some(reported) = reported else { return (ending(otherwise), Basis::Seen) };
    match (reported.outcome, exit_code) {
        (Outcome::TimedOut, _) => (reported, if ran_out { Basis::TimeLimit } else { Basis::Reported }),
        (Outcome::Failed | Outcome::Unknown, Some(code)) if code != 0 && ran_out => (ending(Outcome::TimedOut), Basis::TimeLimit),
        (Outcome::Completed | Outcome::Unknown, Some(code)) if code != 0 => (ending(Outcome::Failed), Basis::ExitStatus),
        (Outcome::Unknown, Some(_)) => (ending(Outcome::Completed), Basis::ExitStatus),
        (Outcome::Completed | Outcome::Failed, Some(_)) => (reported, Basis::ExitStatus),
        _ => (reported, Basis::Reported),
    }
}

/// Killed, or asked to end and not funded again before it did.
fn was_ended_by_us(job: &Job) -> bool {
    let (mut asked, mut outbid) = (false, false);
    for step in &job.steps {
        match &step.event {
            StepEvent::Acted(acted) if acted.outcome == ActOutcome::Confirmed => match acted.act {
                Act::Kill => return true,
                // For its bid, and not for want of credit.
                Act::Terminate => asked = !outbid,
                _ => {}
            },
            StepEvent::Funded(_) => asked = false,
            StepEvent::OverBid { rule, .. } => outbid = *rule == OverBid::Stop,
            StepEvent::WithinBid { .. } => outbid = false,
            _ => {}
        }
    }
    asked
}

/// Processes of it that the kernel killed for memory since it began; none if that is nought or not known.
fn oom_kills(job: &Job) -> Option<u64> {
    let now = *job.detail.as_ref()?.detail.oom_kills.seen()?;
    Some(now.saturating_sub(job.oom_kills_before?)).filter(|count| 0 < *count)
}
