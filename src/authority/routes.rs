//! Every call of the authority, in one table: what is served and what the `OpenAPI` document says come from it.

use axum::http::Method;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;

use super::identity::Role;
use super::reply::Reply;
use super::store::standing::StandingView;
use crate::domain::anchor::Anchor;
use crate::domain::bucket::Bucket;
use crate::domain::enforcement::Enforcement;
use crate::domain::form::{Fault, Mistake, read_json};
use crate::domain::id::{AccountId, PaymentId};
use crate::domain::ladder::{Then, Victims};
use crate::domain::ledger::{AMOUNT_MAX, AccountView, DetachedStorage, LedgerEntry, PaymentState, StorageAtZero, Verification};
use crate::domain::money::Credits;
use crate::domain::request::BODY_BYTES_MAX;
use crate::domain::wire::{Answer, OnExhaustion, Question, StartPredicted, Unreachable};

/// Ledger and audit lines given unless told otherwise.
const LIMIT: u32 = 100;
/// Most lines given.
const LIMIT_MAX: u32 = 10_000;

/// One call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Healthz,
    Metrics,
    Grants,
    Events,
    Card,
    Accounts,
    Account,
    Ledger,
    Audit,
    CreateAccount,
    SetPolicy,
    TopUp,
    Revoke,
    Anchors,
    Standing,
}

/// Who may make a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    /// Whoever reaches the port.
    Everybody,
    /// A node, for itself.
    Nodes,
    /// Whoever is known.
    Known,
    /// People and programs with this role, or one above it.
    People(Role),
}

type Make = fn(&mut SchemaGenerator) -> Schema;

/// What a call takes or gives.
#[derive(Clone, Copy)]
pub(super) enum Content {
    None,
    Json(Make),
    /// Another media type, in words.
    Text(&'static str, &'static str),
}

/// A call, and what there is to say of it.
pub(super) struct Route {
    pub(super) op: Op,
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) open: For,
    pub(super) summary: &'static str,
    pub(super) takes: Content,
    pub(super) gives: Content,
    /// `limit` in the query.
    pub(super) limited: Limited,
}

/// Does a call take `limit`?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limited {
    Yes,
    No,
}

const EVENTS: &str = "Server-sent events. `now` (at the beginning: every account that the node holds something of), `topup`, `revoke`, \
`policy`, `exhausted`: `data: {\"account\": …, \"version\": …}`, to be asked about again if the version is news. `card`: the rate card \
may have changed. `gang`: what all parts of a job on several nodes are to do, a GangWant, followed if its version is news; at the beginning for \
each of the node's. `news`: `data: {\"account\": …, \"news\": …}`, of an alert, a refill or storage, for people. A comment line every five seconds shows \
that the stream lives.";

/// All of them.
pub(super) const ROUTES: [Route; 15] = [
    Route {
        op: Op::Healthz,
        method: "GET",
        path: "/healthz",
        open: For::Everybody,
        summary: "200 if the store answers, else 503",
        takes: Content::None,
        gives: Content::Json(SchemaGenerator::subschema_for::<Health>),
        limited: Limited::No,
    },
    Route {
        op: Op::Metrics,
        method: "GET",
        path: "/metrics",
        open: For::People(Role::Reader),
        summary: "Metrics for Prometheus",
        takes: Content::None,
        gives: Content::Text("text/plain", "The classic exposition format."),
        limited: Limited::No,
    },
    Route {
        op: Op::Grants,
        method: "POST",
        path: "/v1/grants",
        open: For::Nodes,
        summary: "How things stand on a node and what it needs. Repeated byte for byte it has effect once",
        takes: Content::Json(SchemaGenerator::subschema_for::<Question>),
        gives: Content::Json(SchemaGenerator::subschema_for::<Answer>),
        limited: Limited::No,
    },
    Route {
        op: Op::Events,
        method: "GET",
        path: "/v1/events",
        open: For::Nodes,
        summary: "What changes, as it does",
        takes: Content::None,
        gives: Content::Text("text/event-stream", EVENTS),
        limited: Limited::No,
    },
    Route {
        op: Op::Card,
        method: "GET",
        path: "/v1/card",
        open: For::Known,
        summary: "The rate card. If-None-Match with its ETag gives 304 while it is the same",
        takes: Content::None,
        gives: Content::Text("application/toml", "The rate card's text."),
        limited: Limited::No,
    },
    Route {
        op: Op::Accounts,
        method: "GET",
        path: "/v1/accounts",
        open: For::People(Role::Reader),
        summary: "All accounts, by name",
        takes: Content::None,
        gives: Content::Json(SchemaGenerator::subschema_for::<Accounts>),
        limited: Limited::No,
    },
    Route {
        op: Op::CreateAccount,
        method: "POST",
        path: "/v1/accounts",
        open: For::People(Role::Admin),
        summary: "Opens an account without credit: 201; 200 if it is there with the same policy",
        takes: Content::Json(SchemaGenerator::subschema_for::<CreateBody>),
        gives: Content::Json(SchemaGenerator::subschema_for::<OneAccount>),
        limited: Limited::No,
    },
    Route {
        op: Op::Account,
        method: "GET",
        path: "/v1/accounts/{account}",
        open: For::People(Role::Reader),
        summary: "One account",
        takes: Content::None,
        gives: Content::Json(SchemaGenerator::subschema_for::<OneAccount>),
        limited: Limited::No,
    },
    Route {
        op: Op::Ledger,
        method: "GET",
        path: "/v1/accounts/{account}/ledger",
        open: For::People(Role::Reader),
        summary: "An account's ledger, newest first",
        takes: Content::None,
        gives: Content::Json(SchemaGenerator::subschema_for::<Ledger>),
        limited: Limited::Yes,
    },
    Route {
        op: Op::SetPolicy,
        method: "POST",
        path: "/v1/accounts/{account}/policy",
        open: For::People(Role::Admin),
        summary: "Changes those parts of an account's policy that the body names",
        takes: Content::Json(SchemaGenerator::subschema_for::<PolicyBody>),
        gives: Content::Json(SchemaGenerator::subschema_for::<OneAccount>),
        limited: Limited::No,
    },
    Route {
        op: Op::TopUp,
        method: "POST",
        path: "/v1/accounts/{account}/topup",
        open: For::People(Role::Operator),
        summary: "Books a payment, once: 201; 200 if a payment of that name is booked already",
        takes: Content::Json(SchemaGenerator::subschema_for::<TopUpBody>),
        gives: Content::Json(SchemaGenerator::subschema_for::<OneAccount>),
        limited: Limited::No,
    },
    Route {
        op: Op::Revoke,
        method: "POST",
        path: "/v1/accounts/{account}/revoke",
        open: For::People(Role::Operator),
        summary: "Takes credit back, once: what is free goes at once, what nodes hold as they give it back, at the latest when they are given up",
        takes: Content::Json(SchemaGenerator::subschema_for::<RevokeBody>),
        gives: Content::Json(SchemaGenerator::subschema_for::<OneAccount>),
        limited: Limited::No,
    },
    Route {
        op: Op::Anchors,
        method: "GET",
        path: "/v1/anchors",
        open: For::People(Role::Reader),
        summary: "How far the nodes' journals went, as they said when they settled, the oldest first",
        takes: Content::None,
        gives: Content::Json(SchemaGenerator::subschema_for::<Anchors>),
        limited: Limited::No,
    },
    Route {
        op: Op::Standing,
        method: "GET",
        path: "/v1/standing",
        open: For::People(Role::Reader),
        summary: "How the balances themselves stand: recovery after a restore, epochs under which several write, claims that nothing backs",
        takes: Content::None,
        gives: Content::Json(SchemaGenerator::subschema_for::<StandingView>),
        limited: Limited::No,
    },
    Route {
        op: Op::Audit,
        method: "GET",
        path: "/v1/audit",
        open: For::People(Role::Admin),
        summary: "The audit log's last lines, newest first",
        takes: Content::None,
        gives: Content::Json(SchemaGenerator::subschema_for::<AuditLines>),
        limited: Limited::Yes,
    },
];

/// Does the store answer?
#[derive(JsonSchema, Serialize)]
pub(super) struct Health {
    /// `yes` or `no`.
    pub(super) alive: &'static str,
}

/// One account, as the authority keeps it.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct OneAccount {
    /// Whose.
    account: AccountId,
    /// As it is kept.
    authority: AccountView,
    /// Always null here: what a node sees of it is told by that node.
    node: Option<()>,
    /// Behind a top-up: the payment's name.
    payment: Option<PaymentId>,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct Accounts {
    accounts: Vec<OneAccount>,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct Ledger {
    account: AccountId,
    /// Newest first.
    entries: Vec<LedgerEntry>,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct Anchors {
    /// The oldest first.
    anchors: Vec<Anchor>,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct AuditLines {
    /// Wishes (`wish`, `at`, `by`, `from`, `what`, `body`) and outcomes (`wish`, `at`, `outcome`), newest first.
    lines: Vec<serde_json::Value>,
}

/// A payment.
#[derive(JsonSchema, Serialize)]
pub(super) struct TopUpBody {
    /// Above zero.
    pub(super) amount: Credits,
    /// Into which part of the balance.
    pub(super) bucket: Bucket,
    /// Its name. Without one a name is made, and a repeated call is booked again.
    pub(super) payment: Option<PaymentId>,
    /// When it is spent: 0 first, 255 last.
    pub(super) priority: Option<u8>,
    /// `pending` if it is announced and not there yet.
    pub(super) state: Option<PaymentState>,
}

/// Credit to be taken back.
#[derive(Debug, JsonSchema, Serialize)]
pub(super) struct RevokeBody {
    /// How much; left out: all that there is.
    pub(super) amount: Option<Credits>,
    /// The revocation's name. Without one a name is made, and a repeated call revokes again.
    pub(super) revocation: Option<PaymentId>,
}

/// An account, and those parts of its policy that differ from the defaults.
#[derive(JsonSchema, Serialize)]
pub(super) struct CreateBody {
    /// Its name.
    pub(super) account: AccountId,
    /// The parts.
    #[serde(flatten)]
    pub(super) policy: PolicyBody,
}

/// Parts of a policy.
#[derive(JsonSchema, Serialize)]
pub(super) struct PolicyBody {
    /// When nothing is left.
    pub(super) on_exhaustion: Option<OnExhaustion>,
    /// Between SIGTERM and SIGKILL, in seconds.
    pub(super) grace_s: Option<u64>,
    /// How long before the expected end warnings come, in seconds: up to four.
    pub(super) warn_before_s: Option<Vec<u64>>,
    /// A start is refused below this much.
    pub(super) start_threshold: Option<Credits>,
    /// Is a start measured against its time limit?
    pub(super) start_predicted: Option<StartPredicted>,
    /// No further than this.
    pub(super) enforcement: Option<Enforcement>,
    /// How long its jobs stand still at most, in seconds; 0: for as long as it takes.
    pub(super) freeze_ttl_s: Option<u64>,
    /// What comes then.
    pub(super) then: Option<Then>,
    /// Which jobs stop first.
    pub(super) victims: Option<Victims>,
    /// From when on, in seconds before the end.
    pub(super) victims_before_s: Option<u64>,
    /// A start is refused if the credit would not last this long with it, in seconds.
    pub(super) start_funded_s: Option<u64>,
    /// What becomes of jobs when nothing is in hand and the authority has not said why.
    pub(super) unreachable: Option<Unreachable>,
    /// The smallest deposit.
    pub(super) topup_min: Option<Credits>,
    /// How long deposits may be spent that have no date of their own, in days; 0: for ever.
    pub(super) credit_lasts_days: Option<u32>,
    /// Must somebody vouch for it before it may spend?
    pub(super) verification: Option<Verification>,
    /// Is its storage to be made inaccessible at zero?
    pub(super) storage_at_zero: Option<StorageAtZero>,
    /// Does detached storage cost?
    pub(super) detached_storage: Option<DetachedStorage>,
}

impl RevokeBody {
    /// Reads a body.
    pub(super) fn parse(text: &str) -> Result<RevokeBody, Vec<Mistake>> {
        read_json(text, BODY_BYTES_MAX, |table| {
            let amount = table.field("amount").amount(AMOUNT_MAX).check(|amount| {
                let nothing = || Fault::new("out_of_range", "nothing is no revocation").hint("a positive amount, or none for all");
                if amount.is_positive() { Ok(amount) } else { Err(nothing()) }
            });
            let amount = amount.optional();
            let revocation = table.field("revocation").name().optional();
            Some(RevokeBody { amount: amount?, revocation: revocation? })
        })
    }
}

/// The call that a request makes, and the account in its path.
pub(super) fn find(method: &Method, path: &str) -> Result<(&'static Route, Option<AccountId>), Reply> {
    let mut there = false;
    for route in &ROUTES {
        let account = match fits(route.path, path) {
            Fit::No => continue,
            Fit::Plain => None,
            Fit::With(segment) => Some(segment),
        };
        there = true;
        let reads = method == Method::HEAD && route.method == "GET";
        if method.as_str() != route.method && !reads {
            continue;
        }
        let account = account.map(|segment| read_name(&segment)).transpose()?;
        return Ok((route, account));
    }
    if there {
        return Err(Reply::refuse("wrong_method", format!("{method} is not done to {path}"), "GET reads, POST changes"));
    }
    Err(Reply::refuse("unknown_path", format!("there is nothing at {path}"), "docs/authority-openapi.json lists the paths"))
}

/// Does a path fit a pattern?
enum Fit {
    No,
    Plain,
    /// With this in its variable segment.
    With(String),
}

fn fits(pattern: &str, path: &str) -> Fit {
    let (mut pattern, mut path) = (pattern.split('/'), path.split('/'));
    let mut variable = None;
    loop {
        match (pattern.next(), path.next()) {
            (None, None) => return variable.map_or(Fit::Plain, Fit::With),
            (Some("{account}"), Some(segment)) if !segment.is_empty() => variable = Some(segment.to_owned()),
            (Some(fixed), Some(segment)) if fixed == segment => {}
            _ => return Fit::No,
        }
    }
}

fn read_name(segment: &str) -> Result<AccountId, Reply> {
    let malformed = |why: String| Reply::refuse("malformed_name", why, "a name, with / as %2F");
    let text = crate::node::local_api::operation::percent_decoded(segment);
    let text = text.ok_or_else(|| malformed(format!("{segment:?} is not a name")))?;
    text.parse().map_err(|error: crate::domain::id::NameError| malformed(error.to_string()))
}

/// `limit=N` in the query.
pub(super) fn limit(query: Option<&str>) -> Result<u32, Reply> {
    let Some(query) = query.filter(|query| !query.is_empty()) else { return Ok(LIMIT) };
    let limit = query.strip_prefix("limit=").and_then(|text| text.parse().ok()).filter(|limit| (1..=LIMIT_MAX).contains(limit));
    limit.ok_or_else(|| Reply::refuse("malformed_query", format!("{query:?} is not a limit"), "limit=1 to limit=10000"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::request::{CreateAccount, Pay};

    fn code(found: Result<(&'static Route, Option<AccountId>), Reply>) -> String {
        match found {
            Err(Reply::Refused(refusal)) => refusal.code,
            Err(_) => "mistakes".to_owned(),
            Ok((route, account)) => format!("{:?} {}", route.op, account.map_or(String::new(), |account| account.to_string())),
        }
    }

    #[test]
    fn a_call_is_found_by_method_and_path() {
        assert_eq!(code(find(&Method::GET, "/v1/accounts/proj%2Fa")), "Account proj/a");
        assert_eq!(code(find(&Method::HEAD, "/v1/accounts")), "Accounts ");
        assert_eq!(code(find(&Method::POST, "/v1/accounts/lab/topup")), "TopUp lab");
        assert_eq!(code(find(&Method::DELETE, "/v1/accounts/lab")), "wrong_method");
        for nowhere in ["/v2/grants", "/v1/accounts/", "/v1/accounts/a/b", "", "/v1/grants/"] {
            assert_eq!(code(find(&Method::GET, nowhere)), "unknown_path", "{nowhere}");
        }
        assert_eq!(code(find(&Method::GET, "/v1/accounts/%20")), "malformed_name");
    }

    #[test]
    fn every_documented_key_of_a_body_is_one_that_is_read() {
        let policy = PolicyBody {
            on_exhaustion: Some(OnExhaustion::Kill),
            grace_s: Some(3),
            warn_before_s: Some(vec![60, 10]),
            start_threshold: Some(Credits::from_nano(5)),
            start_predicted: Some(StartPredicted::Check),
            enforcement: Some(Enforcement::Notify),
            freeze_ttl_s: Some(60),
            then: Some(Then::Kill),
            victims: Some(Victims::NewestFirst),
            victims_before_s: Some(30),
            start_funded_s: Some(60),
            unreachable: Some(Unreachable::RunOn),
            topup_min: Some(Credits::from_nano(5)),
            credit_lasts_days: Some(30),
            verification: Some(Verification::Required),
            storage_at_zero: Some(StorageAtZero::Detach),
            detached_storage: Some(DetachedStorage::Free),
        };
        let create = serde_json::to_string(&CreateBody { account: "a".parse().unwrap(), policy }).unwrap();
        let read = CreateAccount::parse(&create).unwrap();
        assert_eq!(read.to_json(), serde_json::from_str::<serde_json::Value>(&create).unwrap(), "every key is read, and there is no other");
        let body = TopUpBody {
            amount: Credits::from_nano(7),
            bucket: Bucket::Free,
            payment: Some("p".parse().unwrap()),
            priority: Some(3),
            state: Some(PaymentState::Pending),
        };
        let body = serde_json::to_string(&body).unwrap();
        let revoke = RevokeBody { amount: Some(Credits::from_nano(7)), revocation: Some("r".parse().unwrap()) };
        let revoke = serde_json::to_string(&revoke).unwrap();
        assert_eq!(RevokeBody::parse(&revoke).unwrap().amount, Some(Credits::from_nano(7)));
        assert!(RevokeBody::parse("{}").unwrap().amount.is_none());
        assert_eq!(RevokeBody::parse("{\"amount\":\"0\",\"name\":1}").unwrap_err().len(), 2);
        assert_eq!(Pay::parse_deposit(&body).unwrap().to_json(), serde_json::from_str::<serde_json::Value>(&body).unwrap());
    }
}
