//! What nodes ask: credit, events, the rate card.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::embedded::Embedded;
use super::events::{Event, Frames, HEARTBEAT};
use super::reply::Reply;
use super::server::Shared;
use crate::domain::chain::Head;
use crate::domain::id::NodeId;
use crate::domain::wire::{Answer, PROTOCOL, Push, Request, Settlement, UNANSWERED_MAX, Verdict};

/// How long the store may take over an answer. The same question may be asked again: it has effect once.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);
/// Accounts in one question, and earlier epochs in it.
const ENTRIES_MAX: usize = 8_192;
const PREVIOUS_MAX: usize = 1_024;
/// No journal has more rows: a thousand a millisecond for a century.
const PLACE_MAX: u64 = 1 << 52;
/// Words on gangs in one question.
const GANGS_MAX: usize = 8_192;

impl Shared {
    /// `POST /v1/grants`: how things stand on a node, and what it needs.
    ///
    /// # Errors
    /// Nothing of the question was taken.
    pub(super) async fn grants(&self, node: &NodeId, body: &[u8]) -> Result<Reply, Reply> {
        let (request, journal) = read(node, body)?;
        let settlement = Settlement { request, journal, limits: self.live().limits_of(node).clone() };
        let answer = ask(&self.authority, settlement).await?;
        let known = answer.entries.iter().filter(|entry| entry.verdict != Verdict::UnknownAccount);
        self.hub.concern(node, known.map(|entry| &entry.account));
        for entry in answer.entries.iter().filter(|entry| entry.verdict == Verdict::Exhausted) {
            let push = Push { account: entry.account.clone(), version: entry.version };
            self.hub.tell_exhausted(push, node);
        }
        let unwritten = |error: serde_json::Error| Reply::refuse("store_failed", error.to_string(), "the log of meter-authority says more");
        Ok(Reply::Written(serde_json::to_string(&answer).map_err(unwritten)?))
    }

    /// `GET /v1/events`: first the version of each account that the node holds something of, what its gangs are to do and, where there is one, the card; then what changes.
    ///
    /// # Errors
    /// The node has too many streams, or the store does not answer.
    pub(super) async fn events(self: &Arc<Shared>, node: NodeId, fingerprint: Option<crate::tls::Presented>) -> Result<Reply, Reply> {
        let too_many = || Reply::refuse("too_many_streams", "this node has too many streams", "close one");
        let (seat, mut told) = self.hub.listen(&node).ok_or_else(too_many)?;
        let (shared, wanted) = (Arc::clone(self), node.clone());
        let held = super::server::blocking(move || shared.authority.accounts_of(wanted)).await??;
        let (shared, wanted) = (Arc::clone(self), node.clone());
        let gangs = super::server::blocking(move || shared.authority.gangs_of(wanted)).await??;
        self.hub.concern(&node, held.iter().map(|push| &push.account));
        let (frames, body) = mpsc::channel(4);
        let shared = Arc::clone(self);
        let mut generation = self.generation();
        tokio::spawn(async move {
            let _seat = seat;
            let card = shared.live().card.as_ref().map(|_| Event::Card);
            let held = held.into_iter().map(|push| Event::Account("now", push));
            for event in held.chain(gangs.into_iter().map(|want| Event::Gang(want, Vec::new()))).chain(card) {
                if frames.send(event.frame()).await.is_err() {
                    return;
                }
            }
            loop {
                let frame = tokio::select! {
                    biased; // what was told before the stream ends is told
                    frame = told.recv() => match frame {
                        Some(frame) => frame,
                        None => return, // it took nothing for too long
                    },
                    changed = generation.changed() => {
                        // Other certificates, tokens or revocations: who may still come comes again.
                        let refused = fingerprint.as_ref().is_some_and(|shown| shared.live().revoked.holds(shown));
                        tracing::debug!(event = "stream_ended", %node, refused, shown = changed.is_ok());
                        return;
                    }
                    () = tokio::time::sleep(HEARTBEAT) => Bytes::from_static(b": alive\n\n"),
                };
                if frames.send(frame).await.is_err() {
                    return;
                }
            }
        });
        Ok(Reply::Events(Frames(body)))
    }

    /// `GET /v1/card`: the rate card's text, tagged with its hash.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn card(&self, known: Option<&str>) -> Result<Reply, Reply> {
        let live = self.live();
        let card = live.card.as_ref();
        let card =
            card.ok_or_else(|| Reply::refuse("no_card", "this authority has no rate card", "rate_card in authority.toml names one"))?;
        let fresh = known.is_some_and(|known| known.split(',').any(|tag| tag.trim() == card.tag || tag.trim() == "*"));
        if fresh {
            return Ok(Reply::NotModified(card.tag.clone()));
        }
        Ok(Reply::Text { media_type: "application/toml", text: card.text.clone(), tag: Some(card.tag.clone()) })
    }
}

/// A question of this node, in this protocol, of bearable size.
fn read(node: &NodeId, body: &[u8]) -> Result<(Request, Head), Reply> {
    #[derive(serde::Deserialize)]
    struct Spoken {
        protocol: u16,
        #[serde(default)]
        journal: Option<Head>,
    }
    let malformed =
        |error: serde_json::Error| Reply::refuse("malformed_body", format!("not a question: {error}"), "see the OpenAPI document");
    // Another protocol's question may look otherwise in everything else.
    let read = serde_json::from_slice::<Request>(body);
    let protocol = match &read {
        Ok(request) => request.protocol,
        Err(_) => serde_json::from_slice::<Spoken>(body).map_err(malformed)?.protocol,
    };
    if protocol != PROTOCOL {
        let message = format!("protocol {protocol} is not known here, {PROTOCOL} is");
        return Err(Reply::refuse("unknown_protocol", message, "agent and authority must be of versions that know each other"));
    }
    let request = read.map_err(malformed)?;
    if request.node != *node {
        let message = format!("node {node} asks as node {}", request.node);
        return Err(Reply::refuse("wrong_node", message, "node in meterd.toml must be what the certificate or token names"));
    }
    let entries = request.previous.iter().map(|earlier| earlier.entries.len()).sum::<usize>() + request.entries.len();
    if ENTRIES_MAX < entries || PREVIOUS_MAX < request.previous.len() || GANGS_MAX < request.gangs.len() {
        return Err(Reply::refuse("too_many_entries", "too many accounts, gangs or earlier epochs in one question", "ask in parts"));
    }
    if request.history.as_ref().is_some_and(|history| UNANSWERED_MAX < history.unanswered.len()) {
        let message = format!("more than {UNANSWERED_MAX} questions are unanswered");
        return Err(Reply::refuse("too_many_unanswered", message, "ask the last one again, in the same words"));
    }
    // A node that does not say how far its journal has come: this place is before every one.
    let journal = serde_json::from_slice::<Spoken>(body).map_err(malformed)?.journal.unwrap_or(Head::START);
    if PLACE_MAX < journal.seq {
        let message = format!("no journal has come to row {}", journal.seq);
        return Err(Reply::refuse("impossible_place", message, "see the OpenAPI document"));
    }
    Ok((request, journal))
}

async fn ask(authority: &Embedded, settlement: Settlement) -> Result<Answer, Reply> {
    let (reply, answer) = oneshot::channel();
    let answered = move |answer| drop(reply.send(answer)); // a node that has gone away asks again
    let busy = || Reply::refuse("busy", "too much is waiting for the store", "ask again, the same question");
    authority.settle(settlement, answered).map_err(|_| busy())?;
    match tokio::time::timeout(ANSWER_WITHIN, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        // The store did not take it; it says why in the log.
        Ok(Err(_)) => Err(Reply::refuse("store_full", "the store did not take the question", "ask again, the same question")),
        Err(_) => Err(Reply::refuse("no_answer", "the store has not answered in time", "ask again, the same question")),
    }
}
