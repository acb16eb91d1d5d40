//! `meterctl events`: the journal's facts, one line each, as they become durable; over restarts of the agent, without gap or repetition.

use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::client::{Client, Failure, Reason};
use super::exit::Exit;
use super::{Format, Output, complain};
use crate::domain::id::{AccountId, JobName};
use crate::node::event::Event;
use crate::node::local_api::operation::percent_encoded;

/// How long to wait before an agent that has gone is asked again.
const RETRY: Duration = Duration::from_millis(500);

/// Which facts.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Go on with what comes, also when the agent is restarted.
    #[arg(long, short)]
    follow: bool,
    /// Only of this job.
    #[arg(long, value_name = "JOB")]
    job: Option<JobName>,
    /// Only of this account and its jobs.
    #[arg(long, value_name = "ACCOUNT")]
    account: Option<AccountId>,
    /// Only those behind this number; 0 is all that is kept. Left out: all that is kept, or with --follow what comes from now on.
    #[arg(long, value_name = "SEQ")]
    since: Option<u64>,
    #[command(flatten)]
    format: Format,
}

pub(super) fn main(socket: &Path, arguments: &Arguments) -> Result<Exit, Failure> {
    let client = Client::new(socket)?;
    let mut listening =
        Listening { output: arguments.format.output, after: arguments.since, end: None, reached: None, read: Reader::There };
    let mut heard = Heard::No;
    loop {
        let path = path(arguments, listening.after);
        let done = client.lines(&path, |line| listening.take(line));
        if listening.read == Reader::Gone {
            return Ok(Exit::Done);
        }
        match (done, listening.end.take()) {
            (Ok(()), None) if !arguments.follow && listening.reached.is_some() => return Ok(Exit::Done),
            (Ok(()), Some(end)) if arguments.follow && may_go_on(&end.code) => complain(&format!("{}; going on", shown(&end))),
            (Ok(()), Some(end)) => return Err(Failure::Refused(vec![end])),
            // An agent that was never there is told at once; one that goes away is waited for.
            (Err(failure), _) if !arguments.follow || heard == Heard::No && listening.reached.is_none() => return Err(failure),
            (Err(failure), _) if !is_passing(&failure) => return Err(failure),
            (done, _) => {
                if heard != Heard::Waiting {
                    let why = done.err().map_or("the stream was cut off".to_owned(), |failure| failure.to_string());
                    complain(&format!("{}; waiting for the agent", why.lines().next().unwrap_or_default()));
                }
                heard = Heard::Waiting;
                std::thread::sleep(RETRY);
                continue;
            }
        }
        heard = Heard::Yes;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    No,
    Yes,
    Waiting,
}

/// Is there still somebody who reads what is printed?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    There,
    Gone,
}

fn path(arguments: &Arguments, after: Option<u64>) -> String {
    let mut path = format!("/v1/events?follow={}", if arguments.follow { "yes" } else { "no" });
    if let Some(after) = after {
        let _ = write!(path, "&since={after}");
    }
    if let Some(job) = &arguments.job {
        let _ = write!(path, "&job={}", percent_encoded(job.as_str()));
    }
    if let Some(account) = &arguments.account {
        let _ = write!(path, "&account={}", percent_encoded(account.as_str()));
    }
    path
}

fn may_go_on(code: &str) -> bool {
    ["too_slow", "busy"].contains(&code)
}

fn is_passing(failure: &Failure) -> bool {
    match failure {
        Failure::Refused(reasons) => failure.is_passing() || reasons.iter().any(|reason| reason.code == "too_many_calls"),
        _ => failure.is_passing(),
    }
}

fn shown(reason: &Reason) -> String {
    format!("{} ({})", reason.message, reason.code)
}

/// What has been heard, and printed.
struct Listening {
    output: Output,
    /// The last fact that need not be told again.
    after: Option<u64>,
    /// Why the agent ended the stream.
    end: Option<Reason>,
    /// A position was told: the stream is really one.
    reached: Option<u64>,
    read: Reader,
}

impl Listening {
    fn take(&mut self, line: &str) -> ControlFlow<()> {
        let document: Value = match serde_json::from_str(line) {
            Ok(document) => document,
            Err(_) if line.is_empty() => return ControlFlow::Continue(()),
            Err(error) => {
                complain(&format!("a line of the agent is not understood: {error}"));
                return ControlFlow::Continue(());
            }
        };
        if let Some(position) = document["position"].as_u64() {
            self.after = Some(position);
            self.reached = Some(position);
            return ControlFlow::Continue(());
        }
        let end = &document["end"];
        if end.is_object() {
            let text = |key: &str| end[key].as_str().unwrap_or_default().to_owned();
            self.end = Some(Reason { code: text("code"), place: String::new(), message: text("message"), hint: text("hint") });
            return ControlFlow::Break(());
        }
        let Some(seq) = document["seq"].as_u64().filter(|seq| self.after.is_none_or(|after| after < *seq)) else {
            return ControlFlow::Continue(()); // told before
        };
        let printed = match self.output {
            Output::Json => format!("{line}\n"),
            Output::Text => serde_json::from_value(document).map_or_else(|_| format!("{line}\n"), |event| text(&event)),
        };
        let mut out = std::io::stdout().lock();
        if out.write_all(printed.as_bytes()).and_then(|()| out.flush()).is_err() {
            self.read = Reader::Gone; // a reader that went away has seen enough
            return ControlFlow::Break(());
        }
        self.after = Some(seq);
        ControlFlow::Continue(())
    }
}

/// One fact for people.
fn text(event: &Event) -> String {
    format!("{:>8}  {}  {:<15}  {}\n", event.seq, event.at, event.kind, event.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening() -> Listening {
        Listening { output: Output::Json, after: None, end: None, reached: None, read: Reader::There }
    }

    #[test]
    fn a_fact_is_one_line() {
        let line = r#"{"seq":12,"at":"2026-03-01T12:00:00.000Z","kind":"job_closed","job":"a","attempt":3,"account":"lab","text":"a #3: closed: its receipt is final","detail":{}}"#;
        let event: Event = serde_json::from_str(line).unwrap();
        assert_eq!(text(&event), "      12  2026-03-01T12:00:00.000Z  job_closed       a #3: closed: its receipt is final\n");
    }

    #[test]
    fn the_place_moves_with_what_was_told_and_with_what_was_passed_over() {
        let mut listening = listening();
        for (line, after) in [(r#"{"position":4}"#, 4), (r#"{"seq":7}"#, 7), (r#"{"seq":6}"#, 7), (r#"{"position":90}"#, 90), ("", 90)] {
            assert!(listening.take(line).is_continue());
            assert_eq!(listening.after, Some(after), "{line}");
        }
        assert!(listening.take(r#"{"end":{"code":"too_slow","message":"m","hint":"h"}}"#).is_break());
        assert_eq!(listening.end.unwrap().code, "too_slow");
    }

    #[test]
    fn the_question_holds_what_was_asked_and_the_place() {
        let arguments = Arguments {
            follow: true,
            job: Some("a/b".parse().unwrap()),
            account: None,
            since: None,
            format: Format { output: Output::Text },
        };
        assert_eq!(path(&arguments, Some(9)), "/v1/events?follow=yes&since=9&job=a%2Fb");
    }
}
