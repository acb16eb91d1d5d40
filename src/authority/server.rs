//! The way in: TLS, who calls, how much of it, and which call it is.
//!
//! Everything from outside is bounded: connections, the time for a handshake, for headers and for a body, a body's size, calls by each
//! caller. Certificates, tokens, revoked certificates and the rate card are read again when they change; connections that began before
//! then end with their next answer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Extension, State};
use axum::http::header::{AUTHORIZATION, IF_NONE_MATCH};
use axum::http::{HeaderMap, Method, Uri};
use axum::response::Response;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use super::admin::Asker;
use super::audit::Audit;
use super::config::{self, Config, Grants, Revoked, load_tokens};
use super::embedded::Embedded;
use super::events::{Event, Hub};
use super::identity::{Named, Tokens};
use super::measure;
use super::reply::Reply;
use super::routes::{self, For, Op};
use super::store::standing::Tally;
use crate::domain::id::{AccountId, Digest, NodeId};
use crate::domain::money::Credits;
use crate::domain::rates::Card;
use crate::domain::time::{Mono, Nanos};
use crate::domain::wire::Limits;
use crate::node::clock;
use crate::tls::{self, Presented};
use sha2::Digest as _;

/// A handshake, a request's headers (or the wait for the next request), and its body.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
const HEADERS_WITHIN: Duration = Duration::from_mins(1);
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// A connection that has not carried a call yet is left open for so long when it would end.
const FIRST_CALL_WITHIN: Duration = Duration::from_secs(2);
/// Most that a request's headers take.
const HEADERS_BYTES_MAX: usize = 32 << 10;
/// Between two looks at the files.
pub const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Between two looks for epochs of which nothing was heard for too long.
pub const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// Callers whose rate is remembered.
const CALLERS_MAX: usize = 65_536;

/// What can change while the server runs.
pub struct Live {
    server: Arc<ServerConfig>,
    tokens: Tokens,
    pub(super) revoked: Revoked,
    pub(super) card: Option<ServedCard>,
    limits: BTreeMap<NodeId, Limits>,
    stranger: Limits,
    stamp: Digest,
}

/// The rate card that nodes may follow.
pub(super) struct ServedCard {
    card: Card,
    pub(super) text: String,
    pub(super) tag: String,
}

impl Live {
    /// Reads every file.
    ///
    /// # Errors
    /// Every mistake in them, in words: then what was read before holds.
    pub fn load(config: &Config) -> Result<Live, Vec<String>> {
        let mut mistakes = Vec::new();
        let mut kept = |why: String| mistakes.push(why);
        let server = tls::server(&config.tls.ca, &config.tls.cert, &config.tls.key).map_err(|why| kept(why.to_string())).ok();
        let tokens = config.access.tokens.as_deref().map_or(Ok(Tokens::default()), load_tokens);
        let tokens = tokens.map_err(|why| kept(why.to_string())).ok();
        let revoked = config.access.revoked.as_deref().map_or(Ok(Revoked::default()), Revoked::load);
        let revoked = revoked.map_err(|why| kept(why.to_string())).ok();
        let card = config.rate_card.as_deref().map(load_card).transpose();
        let card = card.map_err(|why| why.into_iter().for_each(&mut kept)).ok();
        match (server, tokens, revoked, card) {
            (Some(server), Some(tokens), Some(revoked), Some(card)) => {
                let priced = card.as_ref().map(|served: &ServedCard| &served.card);
                let limits = config.nodes.iter().map(|node| (node.name.clone(), node.limits(priced))).collect();
                let nothing = Limits { admitted: Some(BTreeSet::new()), held_max: Some(Credits::ZERO) };
                let stranger = if config.grants == Grants::RegisteredNodes { nothing } else { Limits::default() };
                Ok(Live { server: Arc::new(server), tokens, revoked, card, limits, stranger, stamp: stamp(config) })
            }
            _ => Err(mistakes),
        }
    }

    /// What this node may be granted.
    pub(super) fn limits_of(&self, node: &NodeId) -> &Limits {
        self.limits.get(node).unwrap_or(&self.stranger)
    }
}

fn load_card(path: &Path) -> Result<ServedCard, Vec<String>> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| vec![format!("{shown}: {error}")])?;
    let card = Card::parse(&text, &shown).map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let tag = format!("\"{}\"", Digest(sha2::Sha256::digest(&text).into()));
    Ok(ServedCard { card, text, tag })
}

/// The content of every file that can change, in one hash.
fn stamp(config: &Config) -> Digest {
    let mut hash = sha2::Sha256::new();
    let files = [Some(&config.tls.ca), Some(&config.tls.cert), Some(&config.tls.key)];
    let files = files.into_iter().chain([&config.access.tokens, &config.access.revoked, &config.rate_card].map(Option::as_ref));
    for path in files.flatten() {
        let content = std::fs::read(path).unwrap_or_default();
        hash.update((content.len() as u64).to_be_bytes());
        hash.update(content);
    }
    Digest(hash.finalize().into())
}

/// Everything that the calls share.
pub struct Shared {
    pub(super) config: Config,
    pub(super) authority: Embedded,
    pub(super) hub: Arc<Hub>,
    pub(super) audit: Audit,
    live: RwLock<Arc<Live>>,
    generation: watch::Sender<u64>,
    rates: Mutex<BTreeMap<Key, Bucket>>,
    pub(super) counts: Counts,
    pub(super) tally: Arc<Tally>,
}

/// Counted since the process began.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) calls: Mutex<BTreeMap<(&'static str, u16), u64>>,
    pub(super) connections: AtomicU64,
    pub(super) handshakes_failed: AtomicU64,
    pub(super) reloads_refused: AtomicU64,
    pub(super) reload_refused: AtomicU64,
}

/// The other end of a connection.
#[derive(Clone, Debug)]
struct Caller {
    address: IpAddr,
    certificate: Option<Presented>,
    /// Calls that came over this connection.
    calls: Arc<AtomicU64>,
}

/// To whom calls are counted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Known(Named),
    Stranger(IpAddr),
}

/// Calls that are left, in nanoseconds of refilling.
#[derive(Clone, Copy)]
struct Bucket {
    filled_ns: u64,
    at: Mono,
}

impl Bucket {
    fn take(&mut self, limits: config::Limits, now: Mono) -> Result<(), Reply> {
        let cost_ns = 1_000_000_000 / u64::from(limits.calls_per_s.max(1));
        let most_ns = 4 * cost_ns * u64::from(limits.calls_per_s.max(1));
        let filled_ns = self.filled_ns.saturating_add(now.since(self.at).0).min(most_ns);
        let left = filled_ns.checked_sub(cost_ns);
        *self = Bucket { filled_ns: left.unwrap_or(filled_ns), at: now };
        left.map(drop).ok_or_else(|| Reply::refuse("too_many_calls", "too many calls come from here", "wait a second between calls"))
    }
}

impl Shared {
    /// Over a running authority, with what was read of the files.
    #[must_use]
    pub fn new(config: Config, (authority, tally): (Embedded, Arc<Tally>), hub: Arc<Hub>, audit: Audit, live: Live) -> Arc<Shared> {
        let (generation, _) = watch::channel(0);
        Arc::new(Shared {
            config,
            authority,
            hub,
            audit,
            live: RwLock::new(Arc::new(live)),
            generation,
            rates: Mutex::default(),
            counts: Counts::default(),
            tally,
        })
    }

    pub(super) fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn generation(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Reads the files again if they changed. With a mistake in one the last good ones hold.
    pub fn reload(&self) {
        let before = self.live();
        if before.stamp == stamp(&self.config) {
            return;
        }
        match Live::load(&self.config) {
            Ok(live) => {
                let tag = |live: &Live| live.card.as_ref().map(|card| card.tag.clone());
                let card_changed = tag(&live) != tag(&before);
                tracing::info!(event = "reloaded", tokens = live.tokens.len(), revoked = live.revoked.len(), card_changed);
                *self.live.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(live);
                self.counts.reload_refused.store(0, Ordering::Relaxed);
                if card_changed {
                    self.hub.tell(&Event::Card, None);
                }
                self.generation.send_modify(|generation| *generation += 1);
            }
            Err(mistakes) => {
                self.counts.reloads_refused.fetch_add(1, Ordering::Relaxed);
                self.counts.reload_refused.store(1, Ordering::Relaxed);
                for mistake in mistakes {
                    tracing::error!(event = "reload_refused", %mistake, "what was read before holds");
                }
            }
        }
    }

    /// Gives up the nodes of which nothing was heard for too long.
    ///
    /// # Errors
    /// The store did not do it.
    pub fn sweep(&self) -> Result<(), super::store::Refusal> {
        self.authority.sweep()
    }

    /// Who is it? A certificate stands above a token.
    fn who(&self, caller: &Caller, headers: &HeaderMap) -> Result<Named, Reply> {
        let live = self.live();
        if let Some(certificate) = &caller.certificate {
            if live.revoked.holds(certificate) {
                let message = format!("the certificate with serial number {} is revoked", certificate.serial);
                return Err(Reply::refuse("certificate_revoked", message, "have another one made"));
            }
            let nobody = || {
                let message = "the certificate names no node and no role, or several";
                Reply::refuse("certificate_names_nobody", message, "one URI: urn:meterd:node:NAME or urn:meterd:role:ROLE:NAME")
            };
            return Named::of(certificate).ok_or_else(nobody);
        }
        let shown = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| value.strip_prefix("Bearer "));
        let shown = shown.ok_or_else(|| {
            Reply::refuse("no_identity", "neither a certificate nor a token was shown", "Authorization: Bearer, or a client certificate")
        })?;
        live.tokens
            .owner(shown)
            .ok_or_else(|| Reply::refuse("unknown_token", "this token is nobody's", "tokens in authority.toml lists hashes"))
    }

    fn take_call(&self, key: Key) -> Result<(), Reply> {
        let now = clock::mono();
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        if CALLERS_MAX <= rates.len() && !rates.contains_key(&key) {
            rates.retain(|_, bucket| now.since(bucket.at) < Nanos::from_secs(4));
        }
        if CALLERS_MAX <= rates.len() && !rates.contains_key(&key) {
            return Err(Reply::refuse("too_many_calls", "too many callers", "wait a few seconds"));
        }
        rates.entry(key).or_insert(Bucket { filled_ns: u64::MAX, at: now }).take(self.config.limits, now)
    }

    async fn handle(
        self: &Arc<Shared>,
        caller: &Caller,
        (method, uri, headers): (&Method, &Uri, &HeaderMap),
        body: Body,
    ) -> (&'static str, Reply) {
        let found = routes::find(method, uri.path());
        let label = found.as_ref().map_or("none", |(route, _)| route.path);
        let (route, account) = match found {
            Ok(found) => found,
            Err(reply) => return (label, self.take_call(Key::Stranger(caller.address)).err().unwrap_or(reply)),
        };
        let reply = self.serve_route(caller, (route, account), (uri, headers), body).await;
        (label, reply.unwrap_or_else(|reply| reply))
    }

    async fn serve_route(
        self: &Arc<Shared>,
        caller: &Caller,
        (route, account): (&routes::Route, Option<AccountId>),
        (uri, headers): (&Uri, &HeaderMap),
        body: Body,
    ) -> Result<Reply, Reply> {
        let who = self.who(caller, headers);
        self.take_call(who.as_ref().map_or(Key::Stranger(caller.address), |named| Key::Known(named.clone())))?;
        if route.open == For::Everybody {
            return Ok(self.healthz().await);
        }
        let asker = Asker { named: who?, from: caller.address.to_string() };
        match (route.open, &asker.named) {
            (For::Nodes, Named::Person { .. }) => {
                return Err(Reply::refuse("not_permitted", format!("{} is no node", asker.named), "a node's certificate or token"));
            }
            (For::People(least), _) => asker.needs(least)?,
            _ => {}
        }
        let body = self.read(body).await?;
        let text = || std::str::from_utf8(&body).map_err(|_| Reply::refuse("malformed_body", "the body is not UTF-8", "send JSON"));
        let named = account.ok_or_else(|| Reply::refuse("malformed_name", "no account is named", "name it in the path"));
        match (route.op, asker.named.clone()) {
            (Op::Grants, Named::Node(node)) => self.grants(&node, &body).await,
            (Op::Events, Named::Node(node)) => self.events(node, caller.certificate.clone()).await,
            (Op::Card, _) => self.card(headers.get(IF_NONE_MATCH).and_then(|tag| tag.to_str().ok())),
            (Op::Metrics, _) => Ok(Reply::Text { media_type: "text/plain; version=0.0.4", text: measure::text(self), tag: None }),
            (Op::Accounts, _) => self.accounts().await,
            (Op::Anchors, _) => self.anchors().await,
            (Op::Standing, _) => self.standing().await,
            (Op::Account, _) => self.account(named?).await,
            (Op::Ledger, _) => self.ledger(named?, routes::limit(uri.query())?).await,
            (Op::Audit, _) => self.audit_log(routes::limit(uri.query())?).await,
            (Op::CreateAccount, _) => self.create_account(&asker, text()?).await,
            (Op::SetPolicy, _) => self.set_policy(&asker, named?, text()?).await,
            (Op::TopUp, _) => self.top_up(&asker, named?, text()?).await,
            (Op::Revoke, _) => self.revoke(&asker, named?, text()?).await,
            (Op::Healthz | Op::Grants | Op::Events, _) => Ok(self.healthz().await),
        }
    }

    async fn read(&self, body: Body) -> Result<axum::body::Bytes, Reply> {
        let most = usize::try_from(self.config.limits.body_kib).unwrap_or(usize::MAX) << 10;
        match tokio::time::timeout(BODY_WITHIN, to_bytes(body, most)).await {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(_)) => {
                Err(Reply::refuse("body_too_large", format!("the body is longer than {most} bytes, or was cut off"), "ask in parts"))
            }
            Err(_) => Err(Reply::refuse("body_too_slow", "the body did not come within ten seconds", "send it at once")),
        }
    }

    async fn healthz(self: &Arc<Shared>) -> Reply {
        let shared = Arc::clone(self);
        let answered = tokio::time::timeout(Duration::from_secs(5), blocking(move || shared.authority.ping())).await;
        match answered {
            Ok(Ok(Ok(()))) => Reply::Document(json!(routes::Health { alive: "yes" })),
            _ => Reply::refuse("busy", "the store does not answer", "the log of meter-authority says why"),
        }
    }
}

/// Waits for something that waits for a disk.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Reply> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Reply::refuse("stopped", "the authority is ending", "try again when it is back"))
}

/// Serves until `end` says so; then no connection is taken any more, and those that are open end with their answer.
pub async fn serve(shared: Arc<Shared>, listener: TcpListener, mut end: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(usize::try_from(shared.config.limits.connections).unwrap_or(usize::MAX)));
    let router = Router::new().fallback(serve_one).with_state(Arc::clone(&shared));
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        let Ok(place) = place else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = end.wait_for(|end| *end) => break,
        };
        match accepted {
            Ok((stream, address)) => {
                let (shared, router, end) = (Arc::clone(&shared), router.clone(), end.clone());
                tokio::spawn(async move {
                    shared.counts.connections.fetch_add(1, Ordering::Relaxed);
                    connection(&shared, router, stream, address, end).await;
                    shared.counts.connections.fetch_sub(1, Ordering::Relaxed);
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(event = "not_accepted", %error);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(shared: &Arc<Shared>, router: Router, stream: TcpStream, address: SocketAddr, mut end: watch::Receiver<bool>) {
    let mut generation = shared.generation();
    generation.mark_unchanged();
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(event = "no_nodelay", %error);
    }
    let acceptor = TlsAcceptor::from(Arc::clone(&shared.live().server));
    let stream = match tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        failed => {
            shared.counts.handshakes_failed.fetch_add(1, Ordering::Relaxed);
            let why = failed.map_or("too slow".to_owned(), |failed| failed.err().map_or(String::new(), |error| error.to_string()));
            tracing::debug!(event = "no_handshake", %address, %why);
            return;
        }
    };
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let calls = Arc::new(AtomicU64::new(0));
    let caller = Caller { address: address.ip(), certificate: shown.and_then(Presented::read), calls: Arc::clone(&calls) };
    if shown.is_some() && caller.certificate.is_none() {
        return; // it was verified, so it can be read
    }
    let service = TowerToHyperService::new(router.layer(Extension(caller)));
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN).max_buf_size(HEADERS_BYTES_MAX);
    let serving = http.serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    let served = tokio::select! {
        served = serving.as_mut() => Some(served),
        _ = generation.changed() => None,
        _ = end.wait_for(|end| *end) => None,
    };
    let served = match served {
        // What has just come has a call on its way.
        None if calls.load(Ordering::Relaxed) == 0 => tokio::time::timeout(FIRST_CALL_WITHIN, serving.as_mut()).await.ok(),
        served => served,
    };
    let served = if let Some(served) = served {
        served
    } else {
        serving.as_mut().graceful_shutdown();
        serving.await
    };
    if let Err(error) = served {
        tracing::debug!(event = "connection_broke", %address, %error);
    }
}

async fn serve_one(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Response {
    caller.calls.fetch_add(1, Ordering::Relaxed);
    let (label, reply) = shared.handle(&caller, (&method, &uri, &headers), body).await;
    if let Reply::Refused(refusal) = &reply {
        tracing::debug!(event = "refused", from = %caller.address, %method, path = label, code = %refusal.code);
    }
    let response = reply.into_response();
    let mut calls = shared.counts.calls.lock().unwrap_or_else(PoisonError::into_inner);
    *calls.entry((label, response.status().as_u16())).or_default() += 1;
    drop(calls);
    response
}
