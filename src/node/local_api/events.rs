//! `GET /v1/events`: the journal's facts, as they become durable, as JSON lines.
//!
//! Nothing is queued for anybody: each listener has a place in the journal, and is read the next page from there once it has taken the
//! one before. So a slow one costs no memory and misses nothing; one that takes nothing for ten seconds is told so, and let go.
//!
//! Lines are events, and between them `{"position": SEQ}` (everything up to there has been looked at; at the beginning, at the end, and
//! every five seconds of silence) and `{"end": {"code", "message", "hint"}}` (why the agent ends the stream).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Bytes;
use futures_core::Stream;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::answer::Problem;
use super::operation::{EventsWanted, Follow};
use super::peer::{Handling, Peer};
use super::{Api, blocking};
use crate::domain::fact::Fact;
use crate::domain::id::{Attempt, Uid};
use crate::domain::receipt::Receipt;
use crate::node::access::{Ask, Standing, Who};
use crate::node::event::{Known, Listener, tell, tell_unreadable};
use crate::node::handle::Handle;
use crate::node::journal::{self, JournalError, StoredFact};

/// Between two lines of a stream on which nothing happens.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A listener that takes nothing for so long is let go.
const SLOW_AFTER: Duration = Duration::from_secs(10);
/// Facts that are read at once, and bytes of them; bytes of text that are told at once.
const PAGE_FACTS: u32 = 256;
const PAGE_BYTES: usize = 256 << 10;
const TEXT_BYTES: usize = 1 << 20;
/// Facts that come together are read together.
const GATHER: Duration = Duration::from_millis(50);
/// Streams of operators and hooks together.
const TRUSTED_MAX: usize = 16;
/// Streams of one user, and of all users together.
const EACH_MAX: usize = 4;
const USERS_MAX: usize = 32;
/// Attempts whose owner a stream remembers.
const NAMES_MAX: usize = 8_192;

/// Open streams: of each user, and (under none) of those that may see everything.
#[derive(Debug, Default)]
pub(super) struct Streams(Mutex<BTreeMap<Option<Uid>, usize>>);

/// One open stream; dropping it gives its place back.
#[derive(Debug)]
struct Seat {
    streams: Arc<Streams>,
    key: Option<Uid>,
}

impl Streams {
    fn enter(self: &Arc<Streams>, key: Option<Uid>) -> Option<Seat> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_users: usize = open.iter().filter(|(key, _)| key.is_some()).map(|(_, count)| count).sum();
        let count = open.entry(key).or_default();
        let free = match key {
            None => *count < TRUSTED_MAX,
            Some(_) => *count < EACH_MAX && of_users < USERS_MAX,
        };
        if free {
            *count += 1;
        }
        open.retain(|_, count| *count != 0);
        free.then(|| Seat { streams: Arc::clone(self), key })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.streams.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.key) {
            *count -= 1;
        }
        open.retain(|_, count| *count != 0);
    }
}

/// The body of a stream.
pub struct Lines {
    pages: mpsc::Receiver<Bytes>,
    /// Said behind the last page, even if the listener was too slow for a page in between.
    last_word: Option<oneshot::Receiver<Problem>>,
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").finish_non_exhaustive()
    }
}

impl Stream for Lines {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(page) = ready!(self.pages.poll_recv(context)) {
            return Poll::Ready(Some(Ok(page)));
        }
        let Some(last_word) = &mut self.last_word else { return Poll::Ready(None) };
        let word = ready!(Pin::new(last_word).poll(context));
        self.last_word = None;
        Poll::Ready(word.ok().map(|problem| Ok(line(&json!({ "end": problem.error() })))))
    }
}

fn line(document: &serde_json::Value) -> Bytes {
    Bytes::from(format!("{document}\n"))
}

impl Api {
    /// Opens a stream. What is wrong with the place asked for is told before it begins.
    pub(super) async fn events(&self, peer: &Peer, wanted: EventsWanted) -> Result<Lines, Problem> {
        self.check(peer, Ask::Jobs)?;
        let key = match &peer.who {
            Who::Local { uid, .. } if self.0.access.standing(&peer.who) < Standing::Hook => Some(*uid),
            _ => None,
        };
        let Some(seat) = self.0.streams.enter(key) else {
            let hint = "end another one of your meterctl events first";
            return Err(Problem::new("too_many_streams", "this user follows the events as often as it may", hint));
        };
        let dir = self.0.state_dir.clone();
        let ends = blocking(move || journal::ends(&dir)).await?.map_err(|error| unreadable(&error))?;
        let begin = begin(&wanted, ends)?;
        let (sender, pages) = mpsc::channel(1);
        let (say_last, last_word) = oneshot::channel();
        let listener = Listener { access: self.0.access.clone(), who: peer.who.clone(), job: wanted.job, account: wanted.account };
        let producer = Producer {
            reader: Some(Reader { dir: self.0.state_dir.clone(), handle: self.0.handle.clone(), listener, names: BTreeMap::new() }),
            api: self.clone(),
            pace: if key.is_some() { Pace::Shared } else { Pace::Own },
            follow: wanted.follow,
            cursor: begin,
            sender,
            last_sent: Instant::now(),
            _seat: seat,
            _handling: peer.activity.handling(),
        };
        tokio::spawn(producer.run(say_last));
        Ok(Lines { pages, last_word: Some(last_word) })
    }
}

/// After which fact a stream begins. What was asked for and is not there any more is never passed over in silence.
fn begin(wanted: &EventsWanted, (anchor, head): (u64, u64)) -> Result<u64, Problem> {
    match (wanted.since, wanted.follow) {
        (None, Follow::Yes) => Ok(head),
        (None | Some(0), _) => Ok(anchor),
        (Some(since), _) if since < anchor => Err(pruned(anchor)),
        (Some(since), _) if head < since => {
            let message = format!("the journal ends at {head}, before {since}: it is not the one that you read before");
            Err(Problem::new("events_ahead", message, "begin again without --since"))
        }
        (Some(since), _) => Ok(since),
    }
}

fn pruned(anchor: u64) -> Problem {
    Problem::new("events_pruned", format!("the facts up to {anchor} are not kept any more"), &format!("begin again with --since {anchor}"))
}

fn unreadable(error: &JournalError) -> Problem {
    tracing::warn!(event = "journal_unreadable", %error, "events were asked for");
    Problem::new("journal_unreadable", "the journal cannot be read", "meterctl doctor tells what is wrong with it")
}

/// Users' streams are read one after the other, and no faster than half of the time: old facts are not worth the node's CPUs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    Shared,
    Own,
}

struct Producer {
    /// Away while it reads.
    reader: Option<Reader>,
    api: Api,
    pace: Pace,
    follow: Follow,
    /// The last fact that was looked at.
    cursor: u64,
    sender: mpsc::Sender<Bytes>,
    /// When the listener last heard something.
    last_sent: Instant,
    _seat: Seat,
    /// While this is held the connection may be silent.
    _handling: Handling,
}

/// Why a stream ends.
enum Stop {
    /// The listener has gone, or has all that it asked for.
    Done,
    /// For this reason.
    Because(Problem),
}

impl Producer {
    async fn run(mut self, say_last: oneshot::Sender<Problem>) {
        if let Stop::Because(problem) = self.produce().await {
            tracing::info!(event = "events_ended", code = problem.code(), after = self.cursor);
            drop(say_last.send(problem)); // a listener that has gone needs no reason
        }
    }

    async fn produce(&mut self) -> Stop {
        let mut durable = self.api.0.handle.board().durable();
        if let Err(stop) = self.send_position().await {
            return stop;
        }
        loop {
            durable.borrow_and_update();
            let more = match self.page().await {
                Ok(more) => more,
                Err(stop) => return stop,
            };
            if more == More::Yes {
                continue;
            }
            if self.follow == Follow::No {
                return self.send_position().await.err().unwrap_or(Stop::Done);
            }
            tokio::select! {
                () = self.sender.closed() => return Stop::Done,
                changed = durable.changed() => match changed {
                    Ok(()) => tokio::time::sleep(GATHER).await,
                    Err(_) => return Stop::Because(Problem::new("busy", "the agent is ending", "ask again when it is back")),
                },
                () = tokio::time::sleep_until(self.last_sent + HEARTBEAT) => {}
            }
        }
    }

    /// Reads a page and hands it over.
    async fn page(&mut self) -> Result<More, Stop> {
        let began = Instant::now();
        let turn = match self.pace {
            Pace::Shared => Some(self.api.0.reading.clone().acquire_owned().await),
            Pace::Own => None,
        };
        let Some(mut reader) = self.reader.take() else { return Err(Stop::Done) };
        let cursor = self.cursor;
        let read = blocking(move || {
            let page = reader.page(cursor);
            (reader, page)
        });
        let (reader, page) = read.await.map_err(Stop::Because)?;
        self.reader = Some(reader);
        let page = page.map_err(Stop::Because)?;
        if self.pace == Pace::Shared && page.more == More::Yes {
            tokio::time::sleep(began.elapsed()).await;
        }
        drop(turn);
        if !page.text.is_empty() {
            self.send(Bytes::from(page.text)).await?;
        }
        self.cursor = page.cursor;
        // Also where there were facts, and none of them concerned this listener.
        if HEARTBEAT <= self.last_sent.elapsed() {
            self.send_position().await?;
        }
        Ok(page.more)
    }

    async fn send_position(&mut self) -> Result<(), Stop> {
        self.send(line(&json!({ "position": self.cursor }))).await
    }

    async fn send(&mut self, page: Bytes) -> Result<(), Stop> {
        match self.sender.send_timeout(page, SLOW_AFTER).await {
            Ok(()) => {
                self.last_sent = Instant::now();
                Ok(())
            }
            Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(Stop::Done),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                let message = format!("nothing was taken for {} seconds", SLOW_AFTER.as_secs());
                let hint = format!("read faster; nothing is lost: go on with --since {}", self.cursor);
                Err(Stop::Because(Problem::new("too_slow", message, &hint)))
            }
        }
    }
}

/// Does another page wait?
#[derive(Clone, Copy, PartialEq, Eq)]
enum More {
    Yes,
    No,
}

struct Page {
    text: String,
    cursor: u64,
    more: More,
}

/// Reads the journal for one listener.
struct Reader {
    dir: PathBuf,
    handle: Handle,
    listener: Listener,
    names: BTreeMap<Attempt, Option<Known>>,
}

impl Reader {
    fn page(&mut self, cursor: u64) -> Result<Page, Problem> {
        let facts = journal::read_page(&self.dir, cursor + 1, PAGE_FACTS, PAGE_BYTES).map_err(|error| unreadable(&error))?;
        if facts.first().is_some_and(|first| first.seq != cursor + 1) {
            return Err(pruned(facts[0].seq - 1));
        }
        let more = if facts.is_empty() { More::No } else { More::Yes };
        let mut page = Page { text: String::new(), cursor, more };
        for stored in &facts {
            page.cursor = stored.seq;
            if let Some(event) = self.told(stored) {
                page.text.push_str(&json!(event).to_string());
                page.text.push('\n');
            }
            if TEXT_BYTES <= page.text.len() {
                break;
            }
        }
        Ok(page)
    }

    fn told(&mut self, stored: &StoredFact) -> Option<crate::node::event::Event> {
        match Fact::decode(&stored.bytes) {
            Ok(fact) => {
                if NAMES_MAX < self.names.len() {
                    self.names.clear();
                }
                if let Fact::JobOpened(opened) = &fact {
                    self.names.insert(opened.attempt, Some(Known::of(opened)));
                }
                let Reader { dir, handle, names, listener } = self;
                let mut known = |attempt| names.entry(attempt).or_insert_with(|| look_up(dir, handle, attempt)).clone();
                tell(&fact, stored.seq, stored.wall, listener, &mut known)
            }
            Err(error) => tell_unreadable(&error.to_string(), stored.seq, stored.wall, &self.listener),
        }
    }
}

/// Whose job an attempt is whose opening was not read: it is in the picture, or it is closed and has a receipt.
fn look_up(dir: &std::path::Path, handle: &Handle, attempt: Attempt) -> Option<Known> {
    let picture = handle.picture();
    let shown = picture.view.iter().flat_map(|view| &view.jobs).find(|job| job.attempt == attempt);
    if let Some(job) = shown {
        return Some(Known { name: job.job.clone(), account: job.account.clone(), owner: job.owner_uid });
    }
    let receipt = journal::read_receipt_of(dir, attempt).ok().flatten()?;
    let receipt: Receipt = serde_json::from_str(&receipt.json).ok()?;
    Some(Known { name: receipt.job, account: receipt.account, owner: receipt.owner_uid })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(since: Option<u64>, follow: Follow) -> EventsWanted {
        EventsWanted { since, follow, job: None, account: None }
    }

    #[test]
    fn a_place_that_is_gone_or_not_there_yet_is_refused_and_never_passed_over() {
        let ends = (100, 500);
        let at = |since, follow| begin(&wanted(since, follow), ends).map_err(|problem| problem.code().to_owned());
        assert_eq!(at(None, Follow::No), Ok(100));
        assert_eq!(at(None, Follow::Yes), Ok(500));
        assert_eq!(at(Some(0), Follow::Yes), Ok(100));
        assert_eq!(at(Some(100), Follow::No), Ok(100));
        assert_eq!(at(Some(500), Follow::Yes), Ok(500));
        assert_eq!(at(Some(99), Follow::Yes), Err("events_pruned".to_owned()));
        assert_eq!(at(Some(501), Follow::Yes), Err("events_ahead".to_owned()));
    }

    #[test]
    fn streams_are_bounded_for_each_user_and_in_all() {
        let streams = Arc::new(Streams::default());
        let one: Vec<Seat> = std::iter::from_fn(|| streams.enter(Some(Uid(1)))).collect();
        assert_eq!(one.len(), EACH_MAX);
        let others: Vec<Seat> = (2..100).flat_map(|uid| (0..9).map(move |_| uid)).filter_map(|uid| streams.enter(Some(Uid(uid)))).collect();
        assert_eq!(one.len() + others.len(), USERS_MAX);
        let trusted: Vec<Seat> = std::iter::from_fn(|| streams.enter(None)).collect();
        assert_eq!(trusted.len(), TRUSTED_MAX, "users keep no operator out");
        drop((one, others, trusted));
        assert!(streams.0.lock().unwrap().is_empty());
    }

    #[test]
    fn the_last_word_comes_behind_the_last_page() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (sender, pages) = mpsc::channel(1);
        let (say_last, last_word) = oneshot::channel();
        let mut lines = Lines { pages, last_word: Some(last_word) };
        sender.try_send(Bytes::from_static(b"page\n")).unwrap();
        say_last.send(Problem::new("too_slow", "m", "h")).unwrap();
        drop(sender);
        let mut next = || runtime.block_on(std::future::poll_fn(|context| Pin::new(&mut lines).poll_next(context)));
        assert_eq!(next(), Some(Ok(Bytes::from_static(b"page\n"))));
        let last = String::from_utf8(next().unwrap().unwrap().to_vec()).unwrap();
        assert_eq!(last, "{\"end\":{\"code\":\"too_slow\",\"hint\":\"h\",\"message\":\"m\"}}\n");
        assert_eq!(next(), None);
    }
}
