//! What is told to nodes unasked, as server-sent events: `topup`, `revoke`, `policy`, `exhausted` with an account and its version, `card`
//! with nothing. An event carries neither money nor verdict: it says "ask again". One that is lost costs no more than the time to the
//! node's next question. `gang` is followed at once: it says whether all parts of a job on several nodes run or stand still, under a version.
//! node's next question. `news` alone says more: of an account's alert, refill or storage, for people. Nothing is decided by it.
//!
//! Nothing is queued for long: a listener that does not take its events is let go, connects again and hears of every account of its.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Bytes;
use futures_core::Stream;
use serde_json::json;
use tokio::sync::mpsc;

use crate::domain::id::{AccountId, NodeId};
use crate::domain::news::News;
use crate::domain::wire::{GangWant, Push};

/// Between two signs of life on a stream on which nothing happens.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// Events that wait for one listener.
const WAITING_MAX: usize = 256;
/// Streams of one node: its own, and one that is not known to be dead yet.
const EACH_MAX: usize = 4;

/// Something that a node should know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An account changed in this way.
    Account(&'static str, Push),
    /// There is another rate card.
    Card,
    /// What a gang is to do; for these nodes.
    Gang(GangWant, Vec<NodeId>),
    /// For people: an alert, a refill, storage.
    News(AccountId, News),
}

impl Event {
    /// As server-sent events stand in a stream.
    #[must_use]
    pub fn frame(&self) -> Bytes {
        match self {
            Event::Account(what, push) => {
                let data = json!({ "account": push.account, "version": push.version });
                Bytes::from(format!("event: {what}\ndata: {data}\n\n"))
            }
            Event::Card => Bytes::from_static(b"event: card\ndata: {}\n\n"),
            Event::Gang(want, _) => Bytes::from(format!("event: gang\ndata: {}\n\n", json!(want))),
            Event::News(account, news) => {
                let data = json!({ "account": account, "news": news });
                Bytes::from(format!("event: news\ndata: {data}\n\n"))
            }
        }
    }
}

/// Who listens, and who is concerned by which account.
#[derive(Default)]
pub struct Hub(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    last: u64,
    listeners: BTreeMap<u64, Listener>,
    /// Nodes that have asked about an account, or hold something of it.
    concerned: BTreeMap<AccountId, BTreeSet<NodeId>>,
    /// The version of which it was told that an account is exhausted.
    exhausted: BTreeMap<AccountId, u64>,
    told: u64,
    let_go: u64,
}

struct Listener {
    node: NodeId,
    frames: mpsc::Sender<Bytes>,
}

/// How the hub does, for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Open streams.
    pub streams: u64,
    /// Events told, one for each listener.
    pub told: u64,
    /// Listeners that did not take their events.
    pub let_go: u64,
}

/// One listener's place; dropping it gives it back.
pub struct Seat {
    hub: Arc<Hub>,
    number: u64,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.hub.inner().listeners.remove(&self.number);
    }
}

impl Hub {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more stream of this node; none if it has too many.
    pub fn listen(self: &Arc<Hub>, node: &NodeId) -> Option<(Seat, mpsc::Receiver<Bytes>)> {
        let mut inner = self.inner();
        if EACH_MAX <= inner.listeners.values().filter(|listener| listener.node == *node).count() {
            return None;
        }
        let (frames, waiting) = mpsc::channel(WAITING_MAX);
        inner.last += 1;
        let number = inner.last;
        inner.listeners.insert(number, Listener { node: node.clone(), frames });
        Some((Seat { hub: Arc::clone(self), number }, waiting))
    }

    /// This node is concerned by these accounts.
    pub fn concern<'a>(&self, node: &NodeId, accounts: impl Iterator<Item = &'a AccountId>) {
        let mut inner = self.inner();
        for account in accounts {
            match inner.concerned.get_mut(account) {
                Some(nodes) if nodes.contains(node) => {}
                Some(nodes) => drop(nodes.insert(node.clone())),
                None => drop(inner.concerned.insert(account.clone(), BTreeSet::from([node.clone()]))),
            }
        }
    }

    /// Tells the others that an account is exhausted: once for each of its versions, however many nodes hear it in answer to their questions.
    pub fn tell_exhausted(&self, push: Push, teller: &NodeId) {
        let before = self.inner().exhausted.insert(push.account.clone(), push.version);
        if before != Some(push.version) {
            self.tell(&Event::Account("exhausted", push), Some(teller));
        }
    }

    /// Tells whoever is concerned, but for `teller`, who knows already.
    pub fn tell(&self, event: &Event, teller: Option<&NodeId>) {
        let mut inner = self.inner();
        let Inner { listeners, concerned, told, let_go, .. } = &mut *inner;
        let parts: BTreeSet<NodeId>;
        let nodes = match event {
            Event::Card => None,
            Event::Gang(_, nodes) => {
                parts = nodes.iter().cloned().collect();
                Some(&parts)
            }
            Event::Account(_, Push { account, .. }) | Event::News(account, _) => match concerned.get(account) {
                Some(nodes) => Some(nodes),
                None => return,
            },
        };
        let frame = event.frame();
        listeners.retain(|_, listener| {
            if nodes.is_some_and(|nodes| !nodes.contains(&listener.node)) || teller == Some(&listener.node) {
                return true;
            }
            let taken = listener.frames.try_send(frame.clone()).is_ok();
            *(if taken { &mut *told } else { &mut *let_go }) += 1;
            taken
        });
    }

    /// How it does.
    pub fn count(&self) -> Count {
        let inner = self.inner();
        Count { streams: inner.listeners.len() as u64, told: inner.told, let_go: inner.let_go }
    }
}

/// The body of a stream.
pub struct Frames(pub mpsc::Receiver<Bytes>);

impl Stream for Frames {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|frame| frame.map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn account(name: &str) -> AccountId {
        name.parse().unwrap()
    }

    fn topup(name: &str, version: u64) -> Event {
        Event::Account("topup", Push { account: account(name), version })
    }

    #[test]
    fn only_concerned_nodes_are_told_and_never_the_teller() {
        let hub = Arc::new(Hub::default());
        let (_a, mut at_a) = hub.listen(&node("a")).unwrap();
        let (_b, mut at_b) = hub.listen(&node("b")).unwrap();
        hub.concern(&node("a"), [account("lab")].iter());
        hub.tell(&topup("lab", 2), None);
        hub.tell(&topup("other", 2), None);
        assert_eq!(at_a.try_recv().unwrap(), "event: topup\ndata: {\"account\":\"lab\",\"version\":2}\n\n");
        assert!(at_a.try_recv().is_err() && at_b.try_recv().is_err());
        hub.concern(&node("b"), [account("lab")].iter());
        hub.tell(&topup("lab", 3), Some(&node("a")));
        hub.tell(&Event::Card, None);
        assert_eq!(at_a.try_recv().unwrap(), "event: card\ndata: {}\n\n");
        assert!(at_b.try_recv().unwrap().starts_with(b"event: topup"));
    }

    #[test]
    fn d6_an_alert_is_told_with_its_particulars_to_the_nodes_that_the_account_concerns() {
        let hub = Arc::new(Hub::default());
        let (_a, mut at_a) = hub.listen(&node("a")).unwrap();
        let (_b, mut at_b) = hub.listen(&node("b")).unwrap();
        hub.concern(&node("a"), [account("lab")].iter());
        let news = News::Alert { threshold: crate::domain::ledger::Threshold::Percent(40), balance: "4".parse().unwrap() };
        hub.tell(&Event::News(account("lab"), news), None);
        let data = r#"{"account":"lab","news":{"alert":{"balance":"4","threshold":{"percent":40}}}}"#;
        assert_eq!(at_a.try_recv().unwrap(), format!("event: news\ndata: {data}\n\n"));
        assert!(at_b.try_recv().is_err());
    }

    #[test]
    fn that_an_account_is_exhausted_is_told_once_until_it_changes() {
        let hub = Arc::new(Hub::default());
        let (_b, mut at_b) = hub.listen(&node("b")).unwrap();
        hub.concern(&node("b"), [account("lab")].iter());
        let exhausted = |version| hub.tell_exhausted(Push { account: account("lab"), version }, &node("a"));
        for version in [2, 2, 3, 3] {
            exhausted(version);
        }
        let told: Vec<_> = std::iter::from_fn(|| at_b.try_recv().ok()).collect();
        assert_eq!(
            told,
            [
                "event: exhausted\ndata: {\"account\":\"lab\",\"version\":2}\n\n",
                "event: exhausted\ndata: {\"account\":\"lab\",\"version\":3}\n\n"
            ]
        );
    }

    #[test]
    fn who_does_not_take_its_events_is_let_go_and_a_node_has_a_few_streams() {
        let hub = Arc::new(Hub::default());
        let mut seats: Vec<_> = (0..EACH_MAX).map(|_| hub.listen(&node("a")).unwrap()).collect();
        assert!(hub.listen(&node("a")).is_none());
        assert!(hub.listen(&node("b")).is_some());
        drop(seats.pop());
        let (_seat, mut waiting) = hub.listen(&node("a")).unwrap();
        for _ in 0..=WAITING_MAX {
            hub.tell(&Event::Card, None);
        }
        assert_eq!(hub.count().let_go, EACH_MAX as u64);
        let mut taken = 0;
        while waiting.try_recv().is_ok() {
            taken += 1;
        }
        assert_eq!(taken, WAITING_MAX, "what was told before still comes");
    }
}
