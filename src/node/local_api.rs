//! The local API: HTTP/1.1 with JSON on a Unix socket, and its public part on loopback TCP.
//!
//! Every call is one [`Operation`]; who may make it is told by [`Access`]. Reads are answered from the newest picture, starts and stops
//! by the loop, balances by the authority, old receipts by the journal. Calls are bounded in size, time, number and rate.

pub mod answer;
pub mod events;
pub mod operation;
mod page;
mod peer;
mod rate;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::header::ACCEPT;
use axum::http::{HeaderMap, Method, Uri};
use axum::response::Response;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot};

use super::access::{Access, Ask, Standing, Who, unknown_account, unknown_job};
use super::clock;
use super::defence::{Defence, stands};
use super::handle::{Caller, Handle, Inbox, Picture};
use super::journal::JournalError;
use super::status::{NotReady, Status, alive, not_ready};
use super::upstream::Authority;
use super::{journal, metrics};
use crate::authority::store::Done;
use crate::domain::agent::start::{Novelty, Refusal, Reply};
use crate::domain::batch::ReceiptRow;
use crate::domain::enforcement::Enforcement;
use crate::domain::id::{AccountId, JobName, PaymentId, Uid};
use crate::domain::job::{Ending, Phase};
use crate::domain::ledger::{self, PaymentState};
use crate::domain::receipt::Receipt;
use crate::domain::request::{BODY_BYTES_MAX, ChangeRequest, CreateAccount, Pay, StartRequest, StopRequest, Vouch};
use crate::domain::terms::Report;
use crate::domain::time::{Mono, Nanos};
use crate::domain::view::{AccountView, JobView};
use crate::domain::wire::AccountPolicy;

use answer::{Answer, Problem};
use operation::{Operation, ReceiptsWanted};
use peer::{Doors, LocalPeer, Peer, TcpDoor, UnixDoor};
use rate::Rates;

/// How long the loop may take over an answer. The same call may be made again: it has the same effect once.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Jobs that one ordinary user may have on a node at once: each costs every tick a look.
const JOBS_EACH_MAX: usize = 256;

/// Receipts of one page.
const RECEIPTS_PAGE: u32 = 200;

/// The local API of one agent. Clones share it.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

struct Inner {
    handle: Handle,
    authority: Arc<Authority>,
    state_dir: PathBuf,
    access: Access,
    account_defaults: AccountPolicy,
    interval: Nanos,
    doors: Arc<Doors>,
    streams: Arc<events::Streams>,
    /// One page of old facts at a time for all users.
    reading: Arc<Semaphore>,
    rates: Mutex<Rates>,
    silence: Mutex<Silence>,
}

/// Since when the same question has been seen unanswered.
#[derive(Default)]
struct Silence(Option<(u64, Mono)>);

impl Silence {
    fn watch(&mut self, unanswered: Option<u64>, now: Mono) -> Nanos {
        self.0 = unanswered.map(|number| match self.0 {
            Some((before, since)) if before == number => (number, since),
            _ => (number, now),
        });
        self.0.map_or(Nanos(0), |(_, since)| now.since(since))
    }
}

impl Api {
    /// An API over a loop, with the journal in `state_dir`. `interval` is the loop's, to tell a picture that is too old.
    #[must_use]
    pub fn new(handle: Handle, authority: Arc<Authority>, state_dir: PathBuf, access: Access, interval: Nanos) -> Api {
        Api::with_policy(handle, authority, state_dir, access, interval, AccountPolicy::default())
    }

    /// The same; new accounts have this policy where their creator says nothing.
    #[must_use]
    pub fn with_policy(
        handle: Handle,
        authority: Arc<Authority>,
        state_dir: PathBuf,
        access: Access,
        interval: Nanos,
        account_defaults: AccountPolicy,
    ) -> Api {
        Api(Arc::new(Inner {
            handle,
            authority,
            state_dir,
            access,
            account_defaults,
            interval,
            doors: Arc::default(),
            streams: Arc::default(),
            reading: Arc::new(Semaphore::new(1)),
            rates: Mutex::default(),
            silence: Mutex::default(),
        }))
    }

    /// Serves on a Unix socket, until the future is dropped.
    ///
    /// # Errors
    /// None while it is polled; a failed accept is tried again.
    pub async fn serve_unix(self, listener: tokio::net::UnixListener) -> std::io::Result<()> {
        let door = UnixDoor::new(listener, Arc::clone(&self.0.doors), self.0.access.clone());
        axum::serve(door, self.router().into_make_service_with_connect_info::<Peer>()).await
    }

    /// Serves the public part on TCP, until the future is dropped. The caller binds it to loopback.
    ///
    /// # Errors
    /// None while it is polled; a failed accept is tried again.
    pub async fn serve_tcp(self, listener: tokio::net::TcpListener) -> std::io::Result<()> {
        let door = TcpDoor::new(listener, Arc::clone(&self.0.doors));
        axum::serve(door, self.router().into_make_service_with_connect_info::<Peer>()).await
    }

    fn router(self) -> Router {
        let bound = if stands(Defence::BodySize) { DefaultBodyLimit::max(BODY_BYTES_MAX) } else { DefaultBodyLimit::disable() };
        Router::new().fallback(serve_one).layer(bound).with_state(self)
    }
}

/// Makes the socket at `path` (mode 0666: who may do what is told by the caller's credentials). A socket that nobody answers is replaced.
///
/// # Errors
/// `AddrInUse` if another agent answers there; else what the kernel says.
pub fn bind(path: &Path) -> std::io::Result<std::os::unix::net::UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::{UnixListener, UnixStream};
    if UnixStream::connect(path).is_ok() {
        return Err(std::io::Error::new(std::io::ErrorKind::AddrInUse, format!("another agent answers on {}", path.display())));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn serve_one(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let _handling = peer.activity.handling();
    let answer = match api.admit(&peer) {
        Ok(()) => api.dispatch(&peer, (&method, &uri, &headers), body).await,
        Err(answer) => answer,
    };
    answer.into_response(&method)
}

impl Api {
    /// Has the caller calls left?
    fn admit(&self, peer: &Peer) -> Result<(), Answer> {
        if self.0.access.standing(&peer.who) == Standing::Operator || !stands(Defence::CallRate) {
            return Ok(());
        }
        let mut rates = self.0.rates.lock().unwrap_or_else(PoisonError::into_inner);
        rates
            .take(peer.guest, clock::mono())
            .map_err(|()| Answer::from(Problem::new("too_many_calls", "too many calls come from here", "wait a second between calls")))
    }

    async fn dispatch(
        &self,
        peer: &Peer,
        (method, uri, headers): (&Method, &Uri, &HeaderMap),
        body: Result<Bytes, BytesRejection>,
    ) -> Answer {
        // A stranger is told nothing but where to go, whatever it sent.
        if let Err(refusal) = self.may_reach(peer, method, uri) {
            return Answer::from(refusal);
        }
        let body = match body {
            Ok(body) => body,
            Err(rejection) => return Answer::from(answer::body_problem(&rejection)),
        };
        match Operation::read(method, uri.path(), uri.query(), &body, &self.0.account_defaults) {
            Ok(operation) => self.perform(peer, operation, headers).await.unwrap_or_else(Answer::from),
            Err(unread) => Answer::from(unread),
        }
    }

    fn may_reach(&self, peer: &Peer, method: &Method, uri: &Uri) -> Result<(), Refusal> {
        match operation::audience(method, uri.path()) {
            operation::Audience::Everybody => Ok(()),
            operation::Audience::Local => self.0.access.check(&peer.who, Ask::Jobs),
        }
    }

    async fn perform(&self, peer: &Peer, operation: Operation, headers: &HeaderMap) -> Result<Answer, Problem> {
        match operation {
            Operation::Page => Ok(self.page(peer, &*self.current_picture().await)),
            Operation::Healthz => Ok(self.healthz()),
            Operation::Readyz => Ok(self.readyz(peer)),
            Operation::Metrics => Ok(self.metrics(peer, headers)),
            Operation::Status => Ok(self.status(peer, &*self.current_picture().await)),
            Operation::Jobs => self.jobs(peer, &*self.current_picture().await),
            Operation::Job(name) => self.job(peer, &name, &*self.current_picture().await),
            Operation::Receipt(name) => self.receipt(peer, name).await,
            Operation::Receipts(wanted) => self.receipts(peer, wanted).await,
            Operation::Events(wanted) => self.events(peer, wanted).await.map(Answer::Events),
            Operation::Start(request) => self.start(peer, request).await,
            Operation::Stop(name, request) => self.stop(peer, name, request).await,
            Operation::Change(name, request) => self.change(peer, name, request).await,
            Operation::Report(name, report) => self.report(peer, name, report).await,
            Operation::SetEnforcement(mode) => self.set_enforcement(peer, mode).await,
            Operation::ConfirmStops => self.confirm_stops(peer).await,
            Operation::Accounts => self.accounts(peer).await,
            Operation::Account(account) => self.account(peer, account).await,
            Operation::Ledger(account, limit) => self.ledger(peer, account, limit).await,
            Operation::Card => self.card(peer),
            Operation::Anchors => self.anchors(peer).await,
            Operation::CreateAccount(create) => self.create_account(peer, *create).await,
            Operation::SetPolicy(account, changes) => self.set_policy(peer, account, changes).await,
            Operation::TopUp(account, pay) | Operation::Pay(account, pay) => self.pay(peer, account, pay).await,
            Operation::SettlePayment(account, payment, came) => self.settle_payment(peer, account, payment, came).await,
            Operation::Verify(account, vouched) => self.verify(peer, account, vouched).await,
        }
    }

    fn check(&self, peer: &Peer, ask: Ask<'_>) -> Result<(), Problem> {
        self.0.access.check(&peer.who, ask).map_err(Problem::from)
    }

    fn picture(&self) -> Arc<Picture> {
        self.0.handle.picture()
    }

    async fn current_picture(&self) -> Arc<Picture> {
        self.0.handle.current_picture().await
    }

    fn healthz(&self) -> Answer {
        match alive(&self.picture(), clock::mono(), self.0.interval) {
            Ok(()) => Answer::Document(json!({ "alive": "yes" })),
            Err(why) => Answer::Unavailable(json!({ "alive": "no", "reasons": [why] })),
        }
    }

    fn reasons(&self, picture: &Picture) -> Vec<NotReady> {
        let now = clock::mono();
        let unanswered = picture.view.as_ref().and_then(|view| view.authority_unanswered);
        let silent_for = self.0.silence.lock().unwrap_or_else(PoisonError::into_inner).watch(unanswered, now);
        not_ready(picture, now, self.0.interval, silent_for)
    }

    fn seen_status(&self, peer: &Peer, picture: &Picture) -> Status {
        let status = Status::of(picture, clock::mono(), self.reasons(picture));
        if peer.who == Who::Stranger { status.for_strangers() } else { status }
    }

    fn readyz(&self, peer: &Peer) -> Answer {
        let reasons = self.seen_status(peer, &self.picture()).not_ready;
        if reasons.is_empty() {
            Answer::Document(json!({ "ready": "yes", "reasons": [] }))
        } else {
            Answer::Unavailable(json!({ "ready": "no", "reasons": reasons }))
        }
    }

    fn status(&self, peer: &Peer, picture: &Picture) -> Answer {
        Answer::Document(json!(self.seen_status(peer, picture)))
    }

    fn page(&self, peer: &Peer, picture: &Picture) -> Answer {
        Answer::Page(page::html(&self.seen_status(peer, picture), picture.view.as_ref()))
    }

    fn metrics(&self, peer: &Peer, headers: &HeaderMap) -> Answer {
        let detail = match self.0.access.check(&peer.who, Ask::AccountMetrics) {
            Ok(()) => metrics::Detail::PerAccount,
            Err(_) => metrics::Detail::Aggregate,
        };
        let accept: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
        let format = metrics::Format::accepted(&accept.join(","));
        Answer::Metrics(format, metrics::text(self.picture(), clock::mono(), detail, format))
    }

    fn jobs(&self, peer: &Peer, picture: &Picture) -> Result<Answer, Problem> {
        self.check(peer, Ask::Jobs)?;
        let jobs = picture.view.iter().flat_map(|view| &view.jobs);
        let shown: Vec<&JobView> = jobs.filter(|job| self.0.access.sees_job(&peer.who, job.owner_uid)).collect();
        Ok(Answer::Document(json!({ "jobs": shown })))
    }

    fn job(&self, peer: &Peer, name: &JobName, picture: &Picture) -> Result<Answer, Problem> {
        self.check(peer, Ask::Jobs)?;
        let job = known_job(picture, name).filter(|job| self.0.access.sees_job(&peer.who, job.owner_uid));
        job.map(|job| Answer::Document(json!(job))).ok_or_else(|| Problem::from(unknown_job(name)))
    }

    /// The receipt as the loop has it, else the newest one in the journal that the caller may see.
    async fn receipt(&self, peer: &Peer, name: JobName) -> Result<Answer, Problem> {
        self.check(peer, Ask::Jobs)?;
        let (reply, answer) = oneshot::channel();
        self.put(Inbox::Receipt { name: name.clone(), reply })?;
        if let Some(receipt) = told(answer).await? {
            let seen = self.0.access.sees_job(&peer.who, receipt.owner_uid);
            return if seen { Ok(Answer::Document(json!(receipt))) } else { Err(Problem::from(unknown_job(&name))) };
        }
        let (dir, job) = (self.0.state_dir.clone(), name.to_string());
        let rows = from_journal(blocking(move || journal::read_receipts(&dir, &job)).await?)?;
        let receipts = rows.iter().filter_map(|row| serde_json::from_str::<Receipt>(&row.json).ok());
        let seen = receipts.into_iter().find(|receipt| self.0.access.sees_job(&peer.who, receipt.owner_uid));
        seen.map(|receipt| Answer::Document(json!(receipt))).ok_or_else(|| Problem::from(unknown_job(&name)))
    }

    /// A page of closed jobs' receipts: those that the caller may see, and from where the next page goes on.
    async fn receipts(&self, peer: &Peer, wanted: ReceiptsWanted) -> Result<Answer, Problem> {
        self.check(peer, Ask::Jobs)?;
        let dir = self.0.state_dir.clone();
        let page = move || journal::read_receipts_page(&dir, wanted.after, wanted.ended_since, RECEIPTS_PAGE);
        let rows = from_journal(blocking(page).await?)?;
        let next = rows.last().filter(|_| rows.len() == RECEIPTS_PAGE as usize).map(|row| row.attempt);
        let receipts = rows.iter().filter_map(|row| serde_json::from_str::<Receipt>(&row.json).ok());
        let seen: Vec<Receipt> = receipts.filter(|receipt| self.0.access.sees_job(&peer.who, receipt.owner_uid)).collect();
        Ok(Answer::Document(json!({ "receipts": seen, "next": next })))
    }

    async fn start(&self, peer: &Peer, mut request: StartRequest) -> Result<Answer, Problem> {
        self.check(peer, Ask::Start(&request))?;
        let local = local(peer)?;
        self.check_room(peer, local.uid, &*self.current_picture().await)?;
        request.owner.get_or_insert(local.uid);
        let job = request.job.clone();
        let (reply, answer) = oneshot::channel();
        self.put(Inbox::Start { request, caller: caller(local)?, reply })?;
        match told(answer).await? {
            Reply::Started { attempt, target, novelty } => {
                let document = json!({ "job": job, "attempt": attempt, "target": target, "novelty": novelty_name(novelty) });
                Ok(match novelty {
                    Novelty::New => Answer::Created(document),
                    Novelty::Repeated => Answer::Document(document),
                })
            }
            other => plain_reply(other),
        }
    }

    /// Has this user room for one more job?
    fn check_room(&self, peer: &Peer, uid: Uid, picture: &Picture) -> Result<(), Problem> {
        let live = picture.view.iter().flat_map(|view| &view.jobs).filter(|job| job.owner_uid == uid && job.phase != Phase::Ended);
        let is_bounded = self.0.access.standing(&peer.who) == Standing::User && stands(Defence::JobsEach);
        if !is_bounded || live.count() < JOBS_EACH_MAX {
            return Ok(());
        }
        let message = format!("user {} has {JOBS_EACH_MAX} jobs here already", uid.0);
        Err(Problem::new("too_many_jobs", message, "wait until some have ended"))
    }

    async fn stop(&self, peer: &Peer, name: JobName, request: StopRequest) -> Result<Answer, Problem> {
        let owner = known_job(&*self.current_picture().await, &name).map(|job| job.owner_uid);
        self.check(peer, Ask::Stop(&name, owner))?;
        self.check(peer, Ask::State(request.outcome))?;
        let ending = Ending { outcome: request.outcome, exit_code: request.exit_code };
        let (reply, answer) = oneshot::channel();
        self.put(Inbox::Stop { name, ending, reply })?;
        plain_reply(told(answer).await?)
    }

    async fn change(&self, peer: &Peer, name: JobName, request: ChangeRequest) -> Result<Answer, Problem> {
        self.check(peer, Ask::Change)?;
        let (reply, answer) = oneshot::channel();
        self.put(Inbox::Change { name, request, by: local(peer)?.uid, reply })?;
        plain_reply(told(answer).await?)
    }

    async fn report(&self, peer: &Peer, name: JobName, report: Report) -> Result<Answer, Problem> {
        self.check(peer, Ask::Change)?;
        let (reply, answer) = oneshot::channel();
        self.put(Inbox::Report { name, report, reply })?;
        plain_reply(told(answer).await?)
    }

    async fn set_enforcement(&self, peer: &Peer, mode: Enforcement) -> Result<Answer, Problem> {
        self.check(peer, Ask::Administer)?;
        let (reply, answer) = oneshot::channel();
        self.put(Inbox::Enforcement { mode, by: local(peer)?.uid, reply })?;
        plain_reply(told(answer).await?)?;
        Ok(Answer::Document(json!({ "mode": mode })))
    }

    async fn confirm_stops(&self, peer: &Peer) -> Result<Answer, Problem> {
        self.check(peer, Ask::Administer)?;
        let (reply, answer) = oneshot::channel();
        self.put(Inbox::ConfirmStops { by: local(peer)?.uid, reply })?;
        plain_reply(told(answer).await?)
    }

    fn put(&self, message: Inbox) -> Result<(), Problem> {
        self.0.handle.put(message).map_err(|_| Problem::new("busy", "the agent has too much to do, or is ending", "try again in a second"))
    }
}

/// What the embedded authority is asked. Its calls wait for a disk, so each has a thread of its own.
impl Api {
    async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Authority) -> Result<T, crate::authority::store::Refusal> + Send + 'static,
    ) -> Result<T, Problem> {
        let authority = Arc::clone(&self.0.authority);
        blocking(move || ask(&authority)).await?.map_err(Problem::from)
    }

    async fn account_document(&self, account: &AccountId, authority: &ledger::AccountView) -> Value {
        account_document(&*self.current_picture().await, account, authority)
    }

    async fn accounts(&self, peer: &Peer) -> Result<Answer, Problem> {
        self.check(peer, Ask::Accounts)?;
        if self.0.authority.link().is_some() {
            let picture = self.current_picture().await;
            let known = picture.view.iter().flat_map(|view| &view.accounts);
            let seen = known.filter(|view| self.0.access.sees_account(&peer.who, &view.account));
            return Ok(Answer::Document(json!({ "accounts": seen.map(node_document).collect::<Vec<Value>>() })));
        }
        let all = self.ask(Authority::list).await?;
        let picture = self.current_picture().await;
        let seen = all.iter().filter(|view| self.0.access.sees_account(&peer.who, &view.account));
        let documents: Vec<Value> = seen.map(|view| account_document(&picture, &view.account, view)).collect();
        Ok(Answer::Document(json!({ "accounts": documents })))
    }

    fn check_account(&self, peer: &Peer, account: &AccountId) -> Result<(), Problem> {
        self.check(peer, Ask::Accounts)?;
        let seen = self.0.access.sees_account(&peer.who, account);
        if seen { Ok(()) } else { Err(Problem::from(unknown_account(account))) }
    }

    async fn account(&self, peer: &Peer, account: AccountId) -> Result<Answer, Problem> {
        self.check_account(peer, &account)?;
        if self.0.authority.link().is_some() {
            let picture = self.current_picture().await;
            let known = picture.view.iter().flat_map(|view| &view.accounts).find(|view| view.account == account);
            return known.map(|view| Answer::Document(node_document(view))).ok_or_else(|| Problem::from(unknown_account(&account)));
        }
        let wanted = account.clone();
        let view = self.ask(move |authority| authority.show(wanted)).await?;
        Ok(Answer::Document(self.account_document(&account, &view).await))
    }

    async fn ledger(&self, peer: &Peer, account: AccountId, limit: u32) -> Result<Answer, Problem> {
        self.check_account(peer, &account)?;
        let wanted = account.clone();
        let entries = self.ask(move |authority| authority.ledger(wanted, limit)).await?;
        Ok(Answer::Document(json!({ "account": account, "entries": entries })))
    }

    /// As JSON text within the document: its numbers may be wider than those of JSON values here.
    fn card(&self, peer: &Peer) -> Result<Answer, Problem> {
        self.check(peer, Ask::Jobs)?;
        let none = || Problem::new("no_rate_card", "no rate card is in force", "set rate_card in meterd.toml and reload");
        let card = self.0.handle.board().card().ok_or_else(none)?;
        let text = serde_json::to_string(&*card).map_err(|error| Problem::new("no_rate_card", error.to_string(), "report this"))?;
        Ok(Answer::Document(json!({ "card": text })))
    }

    async fn anchors(&self, peer: &Peer) -> Result<Answer, Problem> {
        self.check(peer, Ask::Administer)?;
        let anchors = self.ask(Authority::anchors).await?;
        Ok(Answer::Document(json!({ "anchors": anchors })))
    }

    async fn create_account(&self, peer: &Peer, create: CreateAccount) -> Result<Answer, Problem> {
        self.check(peer, Ask::Administer)?;
        let account = create.account.clone();
        let (view, done) = self.ask(move |authority| authority.create_account(create.account, create.policy, create.terms)).await?;
        let document = self.account_document(&account, &view).await;
        Ok(match done {
            Done::Now => Answer::Created(document),
            Done::Before => Answer::Document(document),
        })
    }

    /// Changes those parts of the policy that the body names.
    async fn set_policy(&self, peer: &Peer, account: AccountId, changes: serde_json::Map<String, Value>) -> Result<Answer, Problem> {
        self.check(peer, Ask::Administer)?;
        let wanted = account.clone();
        let before = self.ask(move |authority| authority.show(wanted)).await?;
        let mut body = CreateAccount { account: account.clone(), policy: before.policy, terms: before.terms }.to_json();
        changes.into_iter().for_each(|(key, value)| body[key] = value);
        body["account"] = json!(account);
        let CreateAccount { policy, terms, .. } = CreateAccount::parse(&body.to_string()).map_err(Problem::from)?;
        let wanted = account.clone();
        let (view, _) = self.ask(move |authority| authority.set_policy(wanted, policy, terms)).await?;
        Ok(Answer::Document(self.account_document(&account, &view).await))
    }

    async fn settle_payment(&self, peer: &Peer, account: AccountId, payment: PaymentId, came: PaymentState) -> Result<Answer, Problem> {
        self.check(peer, Ask::Administer)?;
        let wanted = account.clone();
        let (view, _) = self.ask(move |authority| authority.settle_payment(wanted, payment, came)).await?;
        Ok(Answer::Document(self.account_document(&account, &view).await))
    }

    async fn verify(&self, peer: &Peer, account: AccountId, vouched: Vouch) -> Result<Answer, Problem> {
        self.check(peer, Ask::Administer)?;
        let wanted = account.clone();
        let (view, _) = self.ask(move |authority| authority.verify(wanted, vouched)).await?;
        Ok(Answer::Document(self.account_document(&account, &view).await))
    }

    async fn pay(&self, peer: &Peer, account: AccountId, pay: Pay) -> Result<Answer, Problem> {
        self.check(peer, Ask::Administer)?;
        let payment = match pay.payment.clone() {
            Some(payment) => payment,
            None => fresh_payment()?,
        };
        let (wanted, named) = (account.clone(), payment.clone());
        let (view, done) = self.ask(move |authority| authority.pay(wanted, pay, named)).await?;
        let mut document = self.account_document(&account, &view).await;
        document["payment"] = json!(payment);
        Ok(match done {
            Done::Now => Answer::Created(document),
            Done::Before => Answer::Document(document),
        })
    }
}

/// What was read from the journal; nothing where there is none yet.
fn from_journal(read: Result<Vec<ReceiptRow>, JournalError>) -> Result<Vec<ReceiptRow>, Problem> {
    match read {
        Err(JournalError::Absent(_)) => Ok(Vec::new()),
        Ok(rows) => Ok(rows),
        Err(error) => {
            tracing::warn!(event = "journal_unreadable", %error, "a receipt was asked for");
            let hint = "meterctl journal verify tells what is wrong with it";
            Err(Problem::new("journal_unreadable", "the journal cannot be read", hint))
        }
    }
}

/// A payment that its maker has not named: booked once, but not told apart if it is repeated.
fn fresh_payment() -> Result<PaymentId, Problem> {
    let mut bytes = [0_u8; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    let text = format!("local-{}", crate::domain::id::Epoch(bytes));
    let failed = || Problem::new("no_payment_name", "the kernel gave no random number", "name the payment");
    if filled != Ok(bytes.len()) {
        return Err(failed());
    }
    text.parse().map_err(|_| failed())
}

/// What the authority and the node know of an account.
fn account_document(picture: &Picture, account: &AccountId, authority: &ledger::AccountView) -> Value {
    let node: Option<&AccountView> = picture.view.iter().flat_map(|view| &view.accounts).find(|view| view.account == *account);
    json!({ "account": account, "authority": authority, "node": node })
}

/// What the node alone knows of an account, where the balances are kept elsewhere.
fn node_document(view: &AccountView) -> Value {
    json!({ "account": view.account, "authority": null, "node": view })
}

/// The last attempt of that name in the picture; open ones stand before closed ones there.
fn known_job<'a>(picture: &'a Picture, name: &JobName) -> Option<&'a JobView> {
    let jobs = picture.view.iter().flat_map(|view| &view.jobs);
    jobs.filter(|job| job.job == *name).max_by_key(|job| job.attempt)
}

fn local(peer: &Peer) -> Result<&LocalPeer, Problem> {
    peer.local.as_deref().ok_or_else(|| Problem::new("socket_only", "this is not done over TCP", "use the Unix socket"))
}

fn caller(local: &LocalPeer) -> Result<Caller, Problem> {
    let copy = local.pidfd.as_ref().map(|pidfd| pidfd.as_fd().try_clone_to_owned()).transpose();
    let pidfd = copy.map_err(|error| Problem::new("busy", format!("no descriptor is left: {error}"), "try again in a second"))?;
    Ok(Caller { uid: Uid(local.uid.0), pid: local.pid, pidfd })
}

const fn novelty_name(novelty: Novelty) -> &'static str {
    match novelty {
        Novelty::New => "new",
        Novelty::Repeated => "repeated",
    }
}

fn plain_reply(reply: Reply) -> Result<Answer, Problem> {
    match reply {
        Reply::Started { attempt, .. } => Ok(Answer::Document(json!({ "attempt": attempt }))),
        Reply::StopNoted { attempt, phase } => Ok(Answer::Document(json!({ "attempt": attempt, "phase": phase }))),
        Reply::Changed { attempt, novelty } => Ok(Answer::Document(json!({ "attempt": attempt, "novelty": novelty_name(novelty) }))),
        Reply::Done => Ok(Answer::Document(json!({}))),
        Reply::Refused(refusal) => Err(Problem::from(refusal)),
    }
}

/// Waits for an answer of the loop.
async fn told<T>(answer: oneshot::Receiver<T>) -> Result<T, Problem> {
    match tokio::time::timeout(ANSWER_WITHIN, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(Problem::new("busy", "the agent is ending", "try again when it is back")),
        Err(_) => Err(Problem::new("no_answer", "the agent has not answered in time", "make the same call again: it has effect once")),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Problem::new("busy", "the agent is ending", "try again when it is back"))
}
