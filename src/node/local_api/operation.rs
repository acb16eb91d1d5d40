//! The closed set of operations, and how each is read from a request.

use axum::http::Method;
use serde_json::{Map, Value};

use super::answer::Problem;
use crate::domain::enforcement::Enforcement;
use crate::domain::id::{AccountId, Attempt, JobName, PaymentId};
use crate::domain::ledger::PaymentState;
use crate::domain::request::{
    ChangeRequest, CreateAccount, Pay, SetEnforcement, SettlePayment, StartRequest, StopRequest, Vouch, read_report,
};
use crate::domain::terms::Report;
use crate::domain::time::Wall;
use crate::domain::wire::AccountPolicy;

/// Ledger lines given unless told otherwise.
const LEDGER_LIMIT: u32 = 100;
/// Most ledger lines given.
const LEDGER_LIMIT_MAX: u32 = 10_000;

/// Everything that can be asked of the local API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `GET /`: the status page.
    Page,
    /// `GET /healthz`.
    Healthz,
    /// `GET /readyz`.
    Readyz,
    /// `GET /metrics`.
    Metrics,
    /// `GET /v1/status`.
    Status,
    /// `GET /v1/jobs`.
    Jobs,
    /// `GET /v1/jobs/{job}`.
    Job(JobName),
    /// `GET /v1/jobs/{job}/receipt`, and `…/why`, which is the same document for another reader.
    Receipt(JobName),
    /// `GET /v1/receipts?after=ATTEMPT&ended_since=MS`: closed jobs, page by page.
    Receipts(ReceiptsWanted),
    /// `GET /v1/events?since=SEQ&follow=yes&job=JOB&account=ACCOUNT`.
    Events(EventsWanted),
    /// `POST /v1/jobs`.
    Start(StartRequest),
    /// `POST /v1/jobs/{job}/stop`.
    Stop(JobName, StopRequest),
    /// `POST /v1/jobs/{job}/change`: it is given something else from now on.
    Change(JobName, ChangeRequest),
    /// `POST /v1/jobs/{job}/count`: a hook's counter or event.
    Report(JobName, Report),
    /// `GET /v1/accounts`.
    Accounts,
    /// `GET /v1/accounts/{account}`.
    Account(AccountId),
    /// `GET /v1/accounts/{account}/ledger?limit=100`, newest first.
    Ledger(AccountId, u32),
    /// `GET /v1/card`: the rate card in force.
    Card,
    /// `GET /v1/anchors`: how far the journal went, as the authority keeps it.
    Anchors,
    /// `POST /v1/accounts`.
    CreateAccount(Box<CreateAccount>),
    /// `POST /v1/accounts/{account}/policy`: the parts to change.
    SetPolicy(AccountId, Map<String, Value>),
    /// `POST /v1/accounts/{account}/topup`.
    TopUp(AccountId, Pay),
    /// `POST /v1/accounts/{account}/payments`: a refund, a correction, a transfer.
    Pay(AccountId, Pay),
    /// `POST /v1/accounts/{account}/payments/{payment}`: a pending one has come, or failed.
    SettlePayment(AccountId, PaymentId, PaymentState),
    /// `POST /v1/accounts/{account}/verification`.
    Verify(AccountId, Vouch),
    /// `POST /v1/enforcement`.
    SetEnforcement(Enforcement),
    /// `POST /v1/enforcement/confirm`: the next accounts may be stopped.
    ConfirmStops,
}

/// Which facts are told, and from where on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventsWanted {
    /// Only those behind this number.
    pub since: Option<u64>,
    /// Those to come, too.
    pub follow: Follow,
    /// Only of this job.
    pub job: Option<JobName>,
    /// Only of this account and its jobs.
    pub account: Option<AccountId>,
}

/// Which receipts: by attempt, in rising order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceiptsWanted {
    /// Behind this attempt.
    pub after: Attempt,
    /// Of jobs that ended then or later.
    pub ended_since: Wall,
}

/// Does a stream go on with what comes?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// Until the listener goes.
    Yes,
    /// It ends with what is there.
    No,
}

/// For whom a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Strangers too.
    Everybody,
    /// Callers with credentials.
    Local,
}

/// For whom a path is; the rest is told by what is asked.
#[must_use]
pub fn audience(method: &Method, path: &str) -> Audience {
    let private = ["/v1/jobs", "/v1/receipts", "/v1/card", "/v1/accounts", "/v1/anchors", "/v1/events", "/v1/enforcement"];
    let reads = method == Method::GET || method == Method::HEAD;
    if reads && !private.iter().any(|prefix| path.starts_with(prefix)) { Audience::Everybody } else { Audience::Local }
}

impl Operation {
    /// Reads a request. `path` and `query` are as sent, percent signs and all; `defaults` are for a new account's policy.
    ///
    /// # Errors
    /// `unknown_path`, `wrong_method`, or every mistake in the names and the body.
    pub fn read(method: &Method, path: &str, query: Option<&str>, body: &[u8], defaults: &AccountPolicy) -> Result<Operation, Problem> {
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let get = method == Method::GET || method == Method::HEAD;
        let post = method == Method::POST;
        match segments.as_slice() {
            [""] if get => Ok(Operation::Page),
            ["healthz"] if get => Ok(Operation::Healthz),
            ["readyz"] if get => Ok(Operation::Readyz),
            ["metrics"] if get => Ok(Operation::Metrics),
            ["v1", "status"] if get => Ok(Operation::Status),
            ["v1", "jobs"] if get => Ok(Operation::Jobs),
            ["v1", "events"] if get => events(query).map(Operation::Events),
            ["v1", "jobs"] if post => parsed(body, StartRequest::parse).map(Operation::Start),
            ["v1", "jobs", job] if get => Ok(Operation::Job(name(job)?)),
            ["v1", "jobs", job, "receipt" | "why"] if get => Ok(Operation::Receipt(name(job)?)),
            ["v1", "jobs", job, "stop"] if post => Ok(Operation::Stop(name(job)?, parsed(body, StopRequest::parse)?)),
            ["v1", "receipts"] if get => receipts(query).map(Operation::Receipts),
            ["v1", "card"] if get => Ok(Operation::Card),
            ["v1", "anchors"] if get => Ok(Operation::Anchors),
            ["v1", "jobs", job, "change"] if post => Ok(Operation::Change(name(job)?, parsed(body, ChangeRequest::parse)?)),
            ["v1", "jobs", job, "count"] if post => Ok(Operation::Report(name(job)?, parsed(body, read_report)?)),
            ["v1", "accounts"] if get => Ok(Operation::Accounts),
            ["v1", "accounts"] if post => {
                parsed(body, |text| CreateAccount::parse_with(text, defaults)).map(Box::new).map(Operation::CreateAccount)
            }
            ["v1", "accounts", account] if get => Ok(Operation::Account(name(account)?)),
            ["v1", "accounts", account, "ledger"] if get => Ok(Operation::Ledger(name(account)?, limit(query)?)),
            ["v1", "accounts", account, "policy"] if post => Ok(Operation::SetPolicy(name(account)?, object(body)?)),
            ["v1", "accounts", account, "topup"] if post => Ok(Operation::TopUp(name(account)?, parsed(body, Pay::parse_deposit)?)),
            ["v1", "accounts", account, "payments"] if post => Ok(Operation::Pay(name(account)?, parsed(body, Pay::parse)?)),
            ["v1", "accounts", account, "payments", payment] if post => {
                Ok(Operation::SettlePayment(name(account)?, name(payment)?, parsed(body, SettlePayment::parse)?.state))
            }
            ["v1", "accounts", account, "verification"] if post => Ok(Operation::Verify(name(account)?, parsed(body, Vouch::parse)?)),
            ["v1", "enforcement"] if post => parsed(body, SetEnforcement::parse).map(|set| Operation::SetEnforcement(set.mode)),
            ["v1", "enforcement", "confirm"] if post => Ok(Operation::ConfirmStops),
            known if is_path(known) => {
                Err(Problem::new("wrong_method", format!("{method} is not done to {path}"), "GET reads; POST starts, stops and changes"))
            }
            _ => Err(Problem::new(
                "unknown_path",
                format!("there is nothing at {path}"),
                "the paths are listed in the documentation of the API",
            )),
        }
    }
}

fn is_path(segments: &[&str]) -> bool {
    matches!(
        segments,
        ["" | "healthz" | "readyz" | "metrics"]
            | ["v1", "status" | "jobs" | "accounts" | "anchors" | "card" | "receipts" | "events" | "enforcement"]
            | ["v1", "jobs" | "accounts", _]
            | ["v1", "jobs", _, "receipt" | "why" | "stop" | "change" | "count"]
            | ["v1", "enforcement", "confirm"]
            | ["v1", "accounts", _, "ledger" | "policy" | "topup" | "payments" | "verification"]
            | ["v1", "accounts", _, "payments", _]
    )
}

fn parsed<T>(body: &[u8], parse: impl Fn(&str) -> Result<T, Vec<crate::domain::form::Mistake>>) -> Result<T, Problem> {
    parse(utf8(body)?).map_err(Problem::from)
}

fn utf8(body: &[u8]) -> Result<&str, Problem> {
    std::str::from_utf8(body).map_err(|_| Problem::new("malformed_body", "the body is not UTF-8", "send JSON"))
}

fn object(body: &[u8]) -> Result<Map<String, Value>, Problem> {
    let value: Result<Value, _> = serde_json::from_str(utf8(body)?);
    match value {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Problem::new("malformed_body", "the body is not an object", "send JSON such as {\"grace_s\": 30}")),
        Err(error) => Err(Problem::new("malformed_body", format!("the body is not JSON: {error}"), "send JSON")),
    }
}

/// A name from one segment of a path.
fn name<T: std::str::FromStr>(segment: &str) -> Result<T, Problem>
where
    T::Err: std::fmt::Display,
{
    let text = percent_decoded(segment);
    let text = text.ok_or_else(|| Problem::new("malformed_name", format!("{segment:?} is not a name"), "write % as %25 and / as %2F"))?;
    text.parse().map_err(|error: T::Err| Problem::new("malformed_name", error.to_string(), "meterctl jobs and accounts list the names"))
}

fn limit(query: Option<&str>) -> Result<u32, Problem> {
    let wrong =
        |found: &str| Problem::new("malformed_query", format!("{found:?} is not a limit"), &format!("limit=1 to limit={LEDGER_LIMIT_MAX}"));
    let Some(query) = query else { return Ok(LEDGER_LIMIT) };
    let text = query.strip_prefix("limit=").ok_or_else(|| wrong(query))?;
    let limit = text.parse().map_err(|_| wrong(query))?;
    if (1..=LEDGER_LIMIT_MAX).contains(&limit) { Ok(limit) } else { Err(wrong(query)) }
}

fn events(query: Option<&str>) -> Result<EventsWanted, Problem> {
    let mut wanted = EventsWanted { since: None, follow: Follow::No, job: None, account: None };
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let wrong =
            || Problem::new("malformed_query", format!("{pair:?} is not understood"), "since=SEQ, follow=yes, job=NAME, account=NAME");
        match pair.split_once('=').ok_or_else(wrong)? {
            ("since", value) => wanted.since = Some(value.parse().map_err(|_| wrong())?),
            ("follow", "yes") => wanted.follow = Follow::Yes,
            ("follow", "no") => wanted.follow = Follow::No,
            ("job", value) => wanted.job = Some(name(value)?),
            ("account", value) => wanted.account = Some(name(value)?),
            _ => return Err(wrong()),
        }
    }
    Ok(wanted)
}

fn receipts(query: Option<&str>) -> Result<ReceiptsWanted, Problem> {
    let mut wanted = ReceiptsWanted::default();
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let wrong = || Problem::new("malformed_query", format!("{pair:?} is not understood"), "after=ATTEMPT, ended_since=MILLISECONDS");
        let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
        let number: u64 = value.parse().map_err(|_| wrong())?;
        match key {
            "after" => wanted.after = Attempt(number),
            "ended_since" => wanted.ended_since = Wall(number),
            _ => return Err(wrong()),
        }
    }
    Ok(wanted)
}

pub(crate) fn percent_decoded(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || char::from(rest.next()?).to_digit(16);
            let value = digit()? * 16 + digit()?;
            bytes.push(u8::try_from(value).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// A name as one segment of a path.
#[must_use]
pub fn percent_encoded(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:@".contains(&byte);
    name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(method: &Method, path: &str) -> Result<Operation, Problem> {
        Operation::read(method, path, None, b"", &AccountPolicy::default())
    }

    #[test]
    fn a_job_s_name_may_hold_a_slash_if_it_is_encoded() {
        let name = "proj/a+b".parse().unwrap();
        assert_eq!(read(&Method::GET, "/v1/jobs/proj%2Fa%2Bb"), Ok(Operation::Job(name)));
        assert_eq!(read(&Method::GET, "/v1/jobs/proj/a").unwrap_err().code(), "unknown_path");
        assert_eq!(read(&Method::GET, "/v1/jobs/%2").unwrap_err().code(), "malformed_name");
        assert_eq!(read(&Method::GET, "/v1/jobs/%2e%2e%2f").unwrap_err().code(), "malformed_name");
    }

    #[test]
    fn a_wrong_method_is_told_from_a_wrong_path() {
        assert_eq!(read(&Method::DELETE, "/v1/jobs/a").unwrap_err().code(), "wrong_method");
        assert_eq!(read(&Method::POST, "/healthz").unwrap_err().code(), "wrong_method");
        assert_eq!(read(&Method::GET, "/v2/jobs").unwrap_err().code(), "unknown_path");
        assert_eq!(read(&Method::GET, "").unwrap_err().code(), "unknown_path");
    }

    #[test]
    fn a_ledger_has_a_bounded_length() {
        let ledger = |query| Operation::read(&Method::GET, "/v1/accounts/lab/ledger", query, b"", &AccountPolicy::default());
        assert_eq!(ledger(None), Ok(Operation::Ledger("lab".parse().unwrap(), 100)));
        assert_eq!(ledger(Some("limit=7")), Ok(Operation::Ledger("lab".parse().unwrap(), 7)));
        for bad in ["limit=0", "limit=10001", "limit=x", "limit=-1", "page=2", ""] {
            assert_eq!(ledger(Some(bad)).unwrap_err().code(), "malformed_query", "{bad}");
        }
    }

    #[test]
    fn receipts_are_asked_for_from_somewhere_on() {
        let receipts = |query| Operation::read(&Method::GET, "/v1/receipts", query, b"", &AccountPolicy::default());
        assert_eq!(receipts(None), Ok(Operation::Receipts(ReceiptsWanted::default())));
        let wanted = ReceiptsWanted { after: Attempt(7), ended_since: Wall(1_000) };
        assert_eq!(receipts(Some("after=7&ended_since=1000")), Ok(Operation::Receipts(wanted)));
        for bad in ["after=-1", "after", "since=1", "ended_since=x", "="] {
            assert_eq!(receipts(Some(bad)).unwrap_err().code(), "malformed_query", "{bad}");
        }
    }

    #[test]
    fn a_stream_says_from_where_and_of_whom() {
        let events = |query| Operation::read(&Method::GET, "/v1/events", query, b"", &AccountPolicy::default());
        let all = EventsWanted { since: None, follow: Follow::No, job: None, account: None };
        assert_eq!(events(None), Ok(Operation::Events(all.clone())));
        let job = Some("a/b".parse().unwrap());
        let wanted = EventsWanted { since: Some(7), follow: Follow::Yes, job, account: Some("lab".parse().unwrap()) };
        assert_eq!(events(Some("since=7&follow=yes&job=a%2Fb&account=lab")), Ok(Operation::Events(wanted)));
        for bad in ["since=-1", "since=", "follow", "follow=maybe", "user=1", "="] {
            assert_eq!(events(Some(bad)).unwrap_err().code(), "malformed_query", "{bad}");
        }
    }

    #[test]
    fn strangers_are_sent_away_from_whatever_is_private_or_changes_something() {
        for path in ["/v1/jobs", "/v1/jobs/a/receipt", "/v1/receipts", "/v1/accounts", "/v1/anchors", "/v1/events", "/v1/enforcement"] {
            assert_eq!(audience(&Method::GET, path), Audience::Local, "{path}");
        }
        for path in ["/", "/healthz", "/readyz", "/metrics", "/v1/status", "/nothing"] {
            assert_eq!(audience(&Method::GET, path), Audience::Everybody, "{path}");
            assert_eq!(audience(&Method::POST, path), Audience::Local, "{path}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_sent_is_read_or_refused(path in "/?[ -~]{0,40}", query in prop::option::of("[ -~]{0,20}"), body in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = Operation::read(&Method::GET, &path, query.as_deref(), &body, &AccountPolicy::default());
        }

        #[test]
        fn a_name_comes_back_from_a_path(name in "[a-zA-Z0-9][a-zA-Z0-9._:@/+-]{0,60}") {
            prop_assert_eq!(percent_decoded(&percent_encoded(&name)), Some(name.clone()));
            prop_assert!(!percent_encoded(&name).contains('/'));
        }
    }
}
