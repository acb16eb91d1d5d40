//! How the agent gets on with an authority over the network: counted, and the last fault kept with its reason, for status and metrics.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::domain::receipt::rfc3339;
use crate::domain::time::{Mono, Nanos, Now, Wall};

/// Something that was not an answer. Never a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// A stable word: `unreachable`, `timed_out`, `refused_401`, `not_json`, `other_unit` …
    pub code: &'static str,
    /// In a sentence.
    pub message: String,
}

impl Fault {
    /// A fault.
    pub fn new(code: &'static str, message: impl Into<String>) -> Fault {
        Fault { code, message: message.into() }
    }
}

/// What can go wrong by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Questions and their answers.
    Answers,
    /// The stream of events.
    Stream,
    /// Certificates, keys and tokens here.
    Files,
    /// The authority's rate card.
    Card,
}

/// Is the stream of events open?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Changes are told at once.
    Open,
    /// They are found by asking.
    #[default]
    Closed,
}

/// The link, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// Where the authority is.
    pub url: String,
    /// The stream of events.
    pub stream: Stream,
    /// Answers taken.
    pub answers: u64,
    /// Events that told of something.
    pub pushes: u64,
    /// How long ago the last answer was taken, in milliseconds; none before the first.
    pub answered_ms_ago: Option<u64>,
    /// What is wrong with the answers; none if the last question was answered.
    pub fault: Option<FaultStatus>,
    /// Why the stream of events is not open.
    pub stream_fault: Option<FaultStatus>,
    /// Why files that changed are not used: what was read of them before is.
    pub files_fault: Option<FaultStatus>,
    /// Why the authority's rate card is not followed, where it is to be.
    pub card_fault: Option<FaultStatus>,
    /// Faults since the process began, by code.
    pub faults: BTreeMap<String, u64>,
}

/// The last fault, while it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultStatus {
    /// A stable word.
    pub code: String,
    /// In a sentence. Not told to strangers.
    pub message: String,
    /// RFC 3339: since when.
    pub since: String,
    /// Faults in a row.
    pub count: u64,
}

/// Keeps count.
#[derive(Debug)]
pub struct Link {
    url: String,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    stream: Stream,
    answers: u64,
    pushes: u64,
    answered_at: Option<Mono>,
    holding: BTreeMap<Part, (Fault, Wall, u64)>,
    faults: BTreeMap<&'static str, u64>,
}

impl Link {
    /// A link to this authority, on which nothing happened yet.
    #[must_use]
    pub fn new(url: &str) -> Link {
        Link { url: url.to_owned(), inner: Mutex::default() }
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the authority is.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A question was answered.
    pub fn answered(&self, now: Now) {
        let mut inner = self.inner();
        inner.answers += 1;
        inner.answered_at = Some(now.mono);
    }

    /// This part did what it should. Gives how often in a row it did not before.
    pub fn passed(&self, part: Part) -> u64 {
        self.inner().holding.remove(&part).map_or(0, |(.., count)| count)
    }

    /// It did not. Gives how often in a row.
    pub fn failed(&self, part: Part, fault: Fault, now: Now) -> u64 {
        let mut inner = self.inner();
        *inner.faults.entry(fault.code).or_default() += 1;
        let (since, count) = inner.holding.get(&part).map_or((now.wall, 0), |(_, since, count)| (*since, *count));
        inner.holding.insert(part, (fault, since, count + 1));
        count + 1
    }

    /// The stream was opened or has ended.
    pub fn stream(&self, stream: Stream) {
        self.inner().stream = stream;
    }

    /// An event told of something.
    pub fn pushed(&self) {
        self.inner().pushes += 1;
    }

    /// As it is shown.
    #[must_use]
    pub fn status(&self, now: Mono) -> LinkStatus {
        let inner = self.inner();
        LinkStatus {
            url: self.url.clone(),
            stream: inner.stream,
            answers: inner.answers,
            pushes: inner.pushes,
            answered_ms_ago: inner.answered_at.map(|at| now.since(at).millis()),
            fault: inner.shown(Part::Answers),
            stream_fault: inner.shown(Part::Stream),
            files_fault: inner.shown(Part::Files),
            card_fault: inner.shown(Part::Card),
            faults: inner.faults.iter().map(|(code, count)| ((*code).to_owned(), *count)).collect(),
        }
    }
}

impl Inner {
    fn shown(&self, part: Part) -> Option<FaultStatus> {
        let (fault, since, count) = self.holding.get(&part)?;
        Some(FaultStatus { code: fault.code.to_owned(), message: fault.message.clone(), since: rfc3339(*since), count: *count })
    }
}

/// Doubling waits between tries, each drawn at random between half and the whole, so that a fleet does not come at once.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    next: Nanos,
}

impl Backoff {
    const FIRST: Nanos = Nanos::from_millis(250);
    const MOST: Nanos = Nanos::from_secs(15);

    /// Nothing has failed yet.
    #[must_use]
    pub const fn new() -> Backoff {
        Backoff { next: Backoff::FIRST }
    }

    /// How long to wait now; `draw` gives something below its argument.
    pub fn wait(&mut self, draw: impl FnOnce(Nanos) -> Nanos) -> std::time::Duration {
        let whole = self.next;
        self.next = Nanos(whole.0.saturating_mul(2)).min(Backoff::MOST);
        std::time::Duration::from_nanos(whole.0 / 2 + draw(Nanos(whole.0 / 2)).0.min(whole.0 / 2))
    }

    /// It worked.
    pub fn reset(&mut self) {
        *self = Backoff::new();
    }
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_quarter_of_a_minute_and_are_spread() {
        let mut backoff = Backoff::new();
        let waits: Vec<u128> = (0..9).map(|_| backoff.wait(|most| most).as_millis()).collect();
        assert_eq!(waits, [250, 500, 1_000, 2_000, 4_000, 8_000, 15_000, 15_000, 15_000]);
        backoff.reset();
        assert_eq!(backoff.wait(|_| Nanos(0)).as_millis(), 125);
    }

    #[test]
    fn a_fault_holds_since_the_first_of_its_row_and_is_counted_by_its_code() {
        let link = Link::new("https://a");
        let at = |ms: u64| Now { wall: Wall(ms), mono: Mono(ms * 1_000_000), ..Now::default() };
        assert_eq!(link.failed(Part::Answers, Fault::new("timed_out", "slow"), at(1_000)), 1);
        assert_eq!(link.failed(Part::Answers, Fault::new("not_json", "garbage"), at(2_000)), 2);
        let shown = link.status(Mono(0));
        let fault = shown.fault.unwrap();
        assert_eq!((fault.code.as_str(), fault.since.as_str(), fault.count), ("not_json", "1970-01-01T00:00:01.000Z", 2));
        assert_eq!(shown.faults, BTreeMap::from([("timed_out".to_owned(), 1), ("not_json".to_owned(), 1)]));
        link.answered(at(3_000));
        assert_eq!((link.passed(Part::Answers), link.passed(Part::Answers)), (2, 0));
        let shown = link.status(Mono(3_500_000_000));
        assert_eq!((shown.fault, shown.answered_ms_ago, shown.faults.len()), (None, Some(500), 2));
    }
}
