//! What happened, as lines and as a hash.

use std::collections::VecDeque;
use std::hash::Hasher as _;
use std::sync::{Arc, Mutex};

use meterd::domain::act::Acted;
use meterd::domain::batch::Batch;
use meterd::domain::fact::Fact;
use meterd::domain::turn::{Effect, Event};

/// Lines kept for a failure's report.
const KEPT: usize = 40;

/// A trace that outlives the run that panics.
#[derive(Clone, Default)]
pub(crate) struct Trace(Arc<Mutex<Lines>>);

#[derive(Default)]
struct Lines {
    last: VecDeque<String>,
    kept: Option<usize>,
    hash: std::hash::DefaultHasher,
}

impl Trace {
    /// Keeps more lines, as `METERD_SIM_LINES` says.
    pub(crate) fn keeping(kept: Option<usize>) -> Trace {
        Trace(Arc::new(Mutex::new(Lines { kept, ..Lines::default() })))
    }

    pub(crate) fn line(&self, at: u64, text: &str) {
        let mut lines = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let line = format!("{:>10}.{:06} {text}", at / 1_000_000_000, at / 1_000 % 1_000_000);
        lines.hash.write(line.as_bytes());
        if lines.kept.unwrap_or(KEPT) <= lines.last.len() {
            lines.last.pop_front();
        }
        lines.last.push_back(line);
    }

    pub(crate) fn hash(&self) -> u64 {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).hash.finish()
    }

    pub(crate) fn tail(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        lines.last.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

pub(crate) fn event(event: &Event) -> String {
    match event {
        Event::Ticked(samples) if facts_wanted() => format!("tick of {samples:?}"),
        Event::Ticked(samples) => format!("tick of {}", samples.len()),
        Event::Looked(samples) => format!("look at {:?}", samples.iter().map(|sample| sample.attempt.0).collect::<Vec<_>>()),
        Event::StartAsked(start) => format!("start {} on {}", start.wanted.name, start.wanted.account),
        Event::StopAsked { name, ending, .. } => format!("stop {name} {}", ending.outcome),
        Event::Acted(all) => {
            let each = |acted: &Acted| format!("{} {} {:?}", acted.act, acted.attempt, acted.outcome);
            format!("acted {}", all.iter().map(|(acted, _)| each(acted)).collect::<Vec<_>>().join(", "))
        }
        Event::Answered(answer, _) => {
            let told: Vec<String> =
                answer.entries.iter().map(|entry| format!("{} {:?} {}", entry.account, entry.verdict, entry.granted)).collect();
            format!("answer {} {}", answer.request, told.join("; "))
        }
        Event::Pushed(push) => format!("push {} {}", push.account, push.version),
        Event::GangPushed(want) => format!("gang {} {:?} {}", want.gang.name, want.want, want.version),
        Event::Told(account, news) => format!("told of {account}: {}", news.name()),
        Event::CardArrived(card, _) => format!("card {}", card.version),
        Event::EnforcementAsked { mode, .. } => format!("enforcement {mode}"),
        Event::ChangeAsked { name, change, .. } => format!("change {name} {change:?}"),
        Event::Reported { name, report, .. } => format!("report {name} {report:?}"),
        Event::ConfirmAsked { .. } => "confirm".to_owned(),
        Event::Durable(seq) => format!("durable {}", seq.0),
        Event::JournalIs(state) => format!("journal {state:?}"),
        Event::Surveyed(unmetered) => format!("survey: {unmetered:?}"),
    }
}

pub(crate) fn effect(effect: &Effect) -> Option<String> {
    match effect {
        Effect::Commit(batch) => {
            let mut hash = std::hash::DefaultHasher::new();
            batch.rows.iter().for_each(|row| hash.write(&row.bytes));
            let facts = if facts_wanted() { facts(batch) } else { String::new() };
            Some(format!("commit to {} ({:08x}){facts}", batch.last_seq(), hash.finish() & 0xffff_ffff))
        }
        Effect::Act(order) => Some(format!("{} {}", order.act, order.attempt)),
        Effect::Send(request) => Some(format!("ask {}", request.request)),
        Effect::Reply(_, reply) => Some(format!("reply {reply:?}").chars().take(100).collect()),
        Effect::Unmark(attempt) => Some(format!("unmark {attempt}")),
        Effect::Watch(attempt) => Some(format!("watch {attempt}")),
        Effect::Forget(attempt) => Some(format!("forget {attempt}")),
        Effect::Log(_) => None,
    }
}

/// Are facts and samples asked for?
fn facts_wanted() -> bool {
    std::env::var_os("METERD_SIM_FACTS").is_some()
}

/// What is committed, a line each.
fn facts(batch: &Batch) -> String {
    let facts = batch.rows.iter().filter_map(|row| Fact::decode(&row.bytes).ok());
    facts.map(|fact| ["\n                  ".to_owned(), format!("{fact:?}")].concat()).collect::<Vec<_>>().concat()
}
