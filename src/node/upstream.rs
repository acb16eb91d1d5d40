//! The authority, wherever it is: embedded in the agent, or behind HTTPS.
//!
//! Over the network one thread speaks for all accounts. The question that waits is asked, and asked again word for word until it is answered
//! or another takes its place; between two tries it waits, longer each time. A stream of events tells at once what changed; while it is cut,
//! changes are found by asking. Whatever comes that is no answer to the question is a [`Fault`]: counted, shown, and never a verdict.

mod door;
mod sse;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE, IF_NONE_MATCH};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};

pub(crate) use self::door::token;
use self::door::{Door, Failed, body, fault_of, refused};
use super::alarm::Alarm;
use super::config::{CardSource, NetworkConfig};
use super::handle::{Handle, Inbox};
use super::link::{Backoff, Fault, Link, Part, Stream};
use super::{clock, priority, random};
use crate::authority::embedded::{Busy, Embedded};
use crate::authority::store::{Done, Refusal};
use crate::domain::anchor::Anchor;
use crate::domain::bucket::Bucket;
use crate::domain::chain::Head;
use crate::domain::hearing::hear;
use crate::domain::id::{AccountId, Epoch, PaymentId};
use crate::domain::ledger::{AccountView, LedgerEntry, PaymentState, Terms};
use crate::domain::meter::Reading;
use crate::domain::money::Credits;
use crate::domain::news::News;
use crate::domain::rates::Card;
use crate::domain::request::{Pay, Vouch};
use crate::domain::wire::{AccountPolicy, Answer, Push, Question, Request};

/// An answer must be there by then: shorter than the agent waits before it asks anew.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);
/// Largest answer, and largest card.
const ANSWER_BYTES_MAX: usize = 8 << 20;
const CARD_BYTES_MAX: usize = 1 << 20;
/// A stream that gives no sign of life for so long is dead.
const SILENT_MAX: Duration = Duration::from_secs(15);
/// Between two looks at the files of certificates.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Between two questions for the card, should its event be lost.
const CARD_EVERY: Duration = Duration::from_mins(1);
/// So many faults in a row raise an alarm.
const ALARM_FAULTS: u64 = 3;

/// Who keeps the balances.
pub enum Authority {
    /// The agent itself.
    Embedded(Embedded),
    /// An authority for a fleet.
    Network(Upstream),
}

impl Authority {
    /// Passes a question on; never waits. `reply` is called later, or never: no answer is never a verdict.
    ///
    /// # Errors
    /// When too much is waiting, or the authority's thread has ended.
    pub fn ask(&self, request: Request, journal: Head, reply: impl FnOnce(Answer) + Send + 'static) -> Result<(), Busy> {
        match self {
            Authority::Embedded(embedded) => embedded.ask(request, journal, reply),
            Authority::Network(upstream) => {
                upstream.ask(request, journal, Box::new(reply));
                Ok(())
            }
        }
    }

    /// The link, where there is one.
    #[must_use]
    pub fn link(&self) -> Option<Arc<Link>> {
        match self {
            Authority::Embedded(_) => None,
            Authority::Network(upstream) => Some(Arc::clone(&upstream.link)),
        }
    }

    fn embedded(&self) -> Result<&Embedded, Refusal> {
        match self {
            Authority::Embedded(embedded) => Ok(embedded),
            Authority::Network(upstream) => Err(Refusal::Elsewhere(upstream.link.url().to_owned())),
        }
    }

    /// See [`Embedded::create_account`].
    ///
    /// # Errors
    /// [`Refusal::Elsewhere`], or as there.
    pub fn create_account(&self, id: AccountId, policy: AccountPolicy, terms: Terms) -> Result<(AccountView, Done), Refusal> {
        self.embedded()?.create_account(id, policy, terms)
    }

    /// See [`Embedded::top_up`].
    ///
    /// # Errors
    /// [`Refusal::Elsewhere`], or as there.
    pub fn top_up(&self, account: AccountId, bucket: Bucket, amount: Credits, payment: PaymentId) -> Result<(AccountView, Done), Refusal> {
        self.embedded()?.top_up(account, bucket, amount, payment)
    }

    /// See [`Embedded::pay`].
    ///
    /// # Errors
    /// [`Refusal::Elsewhere`], or as there.
    pub fn pay(&self, account: AccountId, pay: Pay, name: PaymentId) -> Result<(AccountView, Done), Refusal> {
        self.embedded()?.pay(account, pay, name)
    }

    /// See [`Embedded::settle_payment`].
    ///
    /// # Errors
    /// [`Refusal::Elsewhere`], or as there.
    pub fn settle_payment(&self, account: AccountId, payment: PaymentId, came: PaymentState) -> Result<(AccountView, Done), Refusal> {
        self.embedded()?.settle_payment(account, payment, came)
    }

    /// See [`Embedded::set_policy`].
    ///
    /// # Errors
    /// [`Refusal::Elsewhere`], or as there.
    pub fn set_policy(&self, account: AccountId, policy: AccountPolicy, terms: Terms) -> Result<(AccountView, Done), Refusal> {
        self.embedded()?.set_policy(account, policy, terms)
    }

    /// See [`Embedded::verify`].
    ///
    /// # Errors
    /// [`Refusal::Elsewhere`], or as there.
    pub fn verify(&self, account: AccountId, vouched: Vouch) -> Result<(AccountView, Done), Refusal> {
        self.embedded()?.verify(account, vouched)
    }

    /// See [`Embedded::anchors`].
    ///
    /// # Errors
    /// [`Refusal::Elsewhere`], or as there.
    pub fn anchors(&self) -> Result<Vec<Anchor>, Refusal> {
        self.embedded()?.anchors()
    }

    /// See [`Embedded::show`].
    ///
    /// # Errors
    /// [`Refusal::Elsewhere`], or as there.
    pub fn show(&self, account: AccountId) -> Result<AccountView, Refusal> {
        self.embedded()?.show(account)
    }

    /// See [`Embedded::list`].
    ///
    /// # Errors
    /// [`Refusal::Elsewhere`], or as there.
    pub fn list(&self) -> Result<Vec<AccountView>, Refusal> {
        self.embedded()?.list()
    }

    /// See [`Embedded::ledger`].
    ///
    /// # Errors
    /// [`Refusal::Elsewhere`], or as there.
    pub fn ledger(&self, account: AccountId, limit: u32) -> Result<Vec<LedgerEntry>, Refusal> {
        self.embedded()?.ledger(account, limit)
    }
}

type Answered = Box<dyn FnOnce(Answer) + Send>;

/// An authority over the network.
pub struct Upstream {
    slot: Arc<Slot>,
    link: Arc<Link>,
}

/// One question that waits, and one that is being asked.
#[derive(Default)]
struct Slot {
    state: Mutex<Questions>,
    news: Notify,
}

#[derive(Default)]
struct Questions {
    waiting: Option<Waiting>,
    asked: Option<(Epoch, u64)>,
}

struct Waiting {
    question: Question,
    reply: Answered,
}

impl Waiting {
    fn id(&self) -> (Epoch, u64) {
        (self.question.request.epoch, self.question.request.request)
    }
}

impl Slot {
    fn state(&self) -> std::sync::MutexGuard<'_, Questions> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest question takes the place of the one before; the same one once more is asked already.
    fn put(&self, waiting: Waiting) {
        let mut state = self.state();
        if state.asked == Some(waiting.id()) {
            return;
        }
        state.waiting = Some(waiting);
        drop(state);
        self.news.notify_one();
    }

    fn take(&self) -> Option<Waiting> {
        let mut state = self.state();
        let waiting = state.waiting.take()?;
        state.asked = Some(waiting.id());
        Some(waiting)
    }

    fn done(&self) {
        self.state().asked = None;
    }
}

impl Upstream {
    /// Starts the thread. It goes on whatever happens out there; what comes in goes into the loop's queue.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(config: NetworkConfig, handle: Handle) -> std::io::Result<Upstream> {
        let link = Arc::new(Link::new(&config.url));
        let slot = Arc::new(Slot::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let worker = Worker {
            handle,
            link: Arc::clone(&link),
            slot: Arc::clone(&slot),
            card: config.card,
            door: Door::new(config),
            fetch: Notify::new(),
        };
        std::thread::Builder::new().name("meterd-upstream".to_owned()).spawn(move || {
            // Its answers decide who runs on: they must not wait for a CPU that jobs keep busy.
            if let Reading::Missing(why) = priority::raise_priority() {
                tracing::debug!(event = "upstream_priority", %why);
            }
            runtime.block_on(worker.run());
        })?;
        Ok(Upstream { slot, link })
    }

    fn ask(&self, request: Request, journal: Head, reply: Answered) {
        self.slot.put(Waiting { question: Question { request, journal: Some(journal) }, reply });
    }
}

/// What the thread works with.
struct Worker {
    handle: Handle,
    link: Arc<Link>,
    slot: Arc<Slot>,
    door: Door,
    card: CardSource,
    fetch: Notify,
}

/// What a push event's data says.
#[derive(Deserialize)]
struct Told {
    account: AccountId,
    version: u64,
}

/// What is told of an account for people.
#[derive(Deserialize)]
struct TheNews {
    account: AccountId,
    news: News,
}

impl Worker {
    async fn run(&self) {
        tokio::join!(self.ask(), self.listen(), self.look_after_files(), self.follow_card());
    }

    /// Asks what is to be asked, for ever.
    async fn ask(&self) {
        let mut backoff = Backoff::new();
        let mut not_before = Instant::now();
        let mut current: Option<Waiting> = None;
        loop {
            let Some(Waiting { question, .. }) = &current else {
                self.slot.news.notified().await;
                current = self.slot.take();
                continue;
            };
            let outcome = tokio::select! {
                biased;
                () = self.slot.news.notified() => None,
                outcome = async { sleep_until(not_before).await; self.try_once(question).await } => Some(outcome),
            };
            let Some(outcome) = outcome else {
                current = self.slot.take().or(current);
                continue;
            };
            let (answer, faults, wait) = match outcome {
                Ok((answer, faults)) => (answer, faults, Duration::ZERO),
                Err(Failed { fault, wait }) => (None, vec![fault], wait),
            };
            if faults.is_empty() {
                backoff.reset();
                self.fault_has_passed();
            } else {
                not_before = Instant::now() + backoff.wait(random::stray).max(wait);
                for fault in faults {
                    self.note(fault);
                }
            }
            if let Some(answer) = answer
                && let Some(Waiting { reply, .. }) = current.take()
            {
                self.slot.done();
                self.link.answered(clock::now());
                reply(answer);
            }
        }
    }

    /// One try: what can be believed of the answer, if anything, and what cannot.
    async fn try_once(&self, question: &Question) -> Result<(Option<Answer>, Vec<Fault>), Failed> {
        let text = serde_json::to_vec(question).map_err(|error| Fault::new("unsaid", error.to_string()))?;
        let call = self.door.request(Method::POST, "/v1/grants")?.header(CONTENT_TYPE, "application/json").body(text);
        let (_, answer) = body(call.timeout(ANSWER_WITHIN), ANSWER_BYTES_MAX).await?;
        let answer =
            serde_json::from_slice(&answer).map_err(|error| Fault::new("not_json", format!("the answer cannot be read: {error}")))?;
        let (answer, doubts) = hear(&question.request, answer);
        Ok((answer, doubts.iter().map(|doubt| Fault::new(doubt.code(), doubt.to_string())).collect()))
    }

    fn note(&self, fault: Fault) {
        let Fault { code, message } = fault.clone();
        let in_a_row = self.link.failed(Part::Answers, fault, clock::now());
        tracing::debug!(event = "authority_fault", code, %message, in_a_row);
        if in_a_row == ALARM_FAULTS {
            tracing::warn!(event = "authority_fault", code, %message, in_a_row, "jobs run on the grants that they have");
            let shown = format!("{code}: {message}; jobs run on the grants that they have, and then freeze");
            self.handle.report(Inbox::Alarm(Alarm::AuthorityFault, Some(shown)));
        }
    }

    fn fault_has_passed(&self) {
        if ALARM_FAULTS <= self.link.passed(Part::Answers) {
            tracing::info!(event = "authority_answers", url = self.link.url());
            self.handle.report(Inbox::Alarm(Alarm::AuthorityFault, None));
        }
    }

    /// Hears what is told, for ever.
    async fn listen(&self) {
        let mut backoff = Backoff::new();
        loop {
            let began = Instant::now();
            let ended = self.hear_stream().await;
            self.link.stream(Stream::Closed);
            if SILENT_MAX < began.elapsed() {
                backoff.reset();
            }
            if let Err(fault) = ended {
                tracing::debug!(event = "stream_cut", code = fault.code, message = %fault.message, "changes are found by asking");
                self.link.failed(Part::Stream, fault, clock::now());
            }
            sleep(backoff.wait(random::stray)).await;
        }
    }

    async fn hear_stream(&self) -> Result<(), Fault> {
        let mut changed = self.door.changed();
        changed.mark_unchanged();
        let call = self.door.request(Method::GET, "/v1/events")?.header(ACCEPT, "text/event-stream");
        let silent = || Fault::new("timed_out", "the stream of events gave no sign of life");
        let mut response = timeout(SILENT_MAX, call.send()).await.map_err(|_| silent())?.map_err(|error| fault_of(&error))?;
        if response.status() != StatusCode::OK {
            return Err(timeout(SILENT_MAX, refused(response)).await.map_err(|_| silent())?.fault);
        }
        self.link.stream(Stream::Open);
        self.link.passed(Part::Stream);
        let mut reader = sse::Reader::default();
        loop {
            let piece = tokio::select! {
                piece = timeout(SILENT_MAX, response.chunk()) => piece.map_err(|_| silent())?.map_err(|error| fault_of(&error))?,
                _ = changed.changed() => return Ok(()), // with the new certificate
            };
            let Some(piece) = piece else { return Ok(()) };
            let events = reader.take(&piece).map_err(|sse::TooLong| Fault::new("garbled_event", "an event does not end"))?;
            for event in &events {
                self.told(event);
            }
        }
    }

    /// An event says only that there is something to ask about.
    fn told(&self, event: &sse::Event) {
        if event.name == "card" {
            self.fetch.notify_one();
            return;
        }
        if event.name == "gang" {
            return self.told_of_gang(event);
        }
        if event.name == "news" {
            return match serde_json::from_str::<TheNews>(&event.data) {
                Ok(TheNews { account, news }) => self.handle.report(Inbox::Told(account, news)),
                // Of a younger authority: what this version does not know it cannot tell.
                Err(error) => tracing::debug!(event = "news_unknown", %error),
            };
        }
        match serde_json::from_str::<Told>(&event.data) {
            Ok(Told { account, version }) => {
                if event.name != "now" {
                    self.link.pushed(); // at the beginning of a stream it only says how things stand
                }
                self.handle.report(Inbox::Pushed(Push { account, version }));
            }
            Err(error) => {
                self.link.failed(Part::Stream, Fault::new("garbled_event", format!("an event cannot be read: {error}")), clock::now());
            }
        }
    }

    /// What a gang is to do is followed at once: who runs dry freezes by itself, and the others with it.
    fn told_of_gang(&self, event: &sse::Event) {
        match serde_json::from_str(&event.data) {
            Ok(want) => {
                self.link.pushed();
                self.handle.report(Inbox::GangPushed(want));
            }
            Err(error) => {
                let fault = Fault::new("garbled_event", format!("an event about a gang cannot be read: {error}"));
                self.link.failed(Part::Stream, fault, clock::now());
            }
        }
    }

    async fn look_after_files(&self) {
        loop {
            sleep(LOOK_EVERY).await;
            match self.door.refresh() {
                Ok(()) => self.link.passed(Part::Files),
                Err(fault) => self.link.failed(Part::Files, fault, clock::now()),
            };
        }
    }

    /// Fetches the authority's card, and whenever it is another one again.
    async fn follow_card(&self) {
        if self.card == CardSource::Local {
            return;
        }
        let mut tag = None;
        loop {
            match self.fetch_card(tag.clone()).await {
                Ok(Some((card, new))) => {
                    tracing::info!(event = "card_fetched", card = %card.name, version = card.version);
                    tag = new;
                    self.handle.report(Inbox::Card(Box::new(card)));
                    self.link.passed(Part::Card);
                }
                Ok(None) => {
                    self.link.passed(Part::Card);
                }
                Err(Failed { fault, .. }) => {
                    self.link.failed(Part::Card, fault, clock::now());
                }
            }
            tokio::select! {
                () = sleep(CARD_EVERY) => {}
                () = self.fetch.notified() => {}
            }
        }
    }

    async fn fetch_card(&self, tag: Option<String>) -> Result<Option<(Card, Option<String>)>, Failed> {
        let mut call = self.door.request(Method::GET, "/v1/card")?.timeout(ANSWER_WITHIN);
        if let Some(tag) = tag {
            call = call.header(IF_NONE_MATCH, tag);
        }
        let (head, text) = body(call, CARD_BYTES_MAX).await?;
        if head.status == StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        let unusable = |why: String| Fault::new("unusable_card", format!("the authority's card cannot be used: {why}"));
        let text = String::from_utf8(text).map_err(|error| unusable(error.to_string()))?;
        let card =
            Card::parse(&text, "card").map_err(|mistakes| unusable(mistakes.first().map_or_else(String::new, ToString::to_string)))?;
        Ok(Some((card, head.tag)))
    }
}
