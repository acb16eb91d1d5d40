//! What a caller hears, and in which HTTP status.

use axum::body::Body;
use axum::extract::rejection::BytesRejection;
use axum::http::header::{ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, RETRY_AFTER, VARY, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::events::Lines;
use crate::authority;
use crate::domain::agent::start::Refusal;
use crate::domain::form::Mistake;
use crate::node::metrics::Format;

/// An answer.
#[derive(Debug)]
pub enum Answer {
    /// 200.
    Document(Value),
    /// 201.
    Created(Value),
    /// 503, with reasons.
    Unavailable(Value),
    /// The status page.
    Page(String),
    /// The metrics, in this format.
    Metrics(Format, String),
    /// The events, line by line.
    Events(Lines),
    /// Not done.
    Problem(Problem),
}

/// Why something is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// One reason: `{"error": {"code", "message", "hint"}}`.
    One(Refusal),
    /// Every mistake of a body: `{"errors": [{"code", "place", "message", "hint"}, …]}`.
    Mistakes(Vec<Mistake>),
}

impl Problem {
    /// One reason.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>, hint: &str) -> Problem {
        Problem::One(Refusal::new(code, message, hint))
    }

    /// The stable word of the only or first reason.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Problem::One(refusal) => &refusal.code,
            Problem::Mistakes(mistakes) => mistakes.first().map_or("malformed_body", |mistake| mistake.code),
        }
    }

    /// In which HTTP status it is told.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Problem::One(refusal) => status_of(&refusal.code),
            Problem::Mistakes(mistakes) if mistakes.iter().any(|mistake| mistake.code == "syntax") => StatusCode::BAD_REQUEST,
            Problem::Mistakes(_) => StatusCode::UNPROCESSABLE_ENTITY,
        }
    }

    /// The only reason as a document, or all mistakes in one.
    pub(super) fn error(&self) -> Value {
        match self {
            Problem::One(Refusal { code, message, hint }) => json!({ "code": code, "message": message, "hint": hint }),
            Problem::Mistakes(mistakes) => json!(mistakes),
        }
    }

    fn document(&self) -> Value {
        match self {
            Problem::One(_) => json!({ "error": self.error() }),
            Problem::Mistakes(mistakes) => json!({ "errors": mistakes }),
        }
    }
}

/// One table from stable codes to HTTP. What stands not here is a conflict with the state of things.
fn status_of(code: &str) -> StatusCode {
    match code {
        "malformed_body" | "malformed_name" | "malformed_query" => StatusCode::BAD_REQUEST,
        "no_credit" | "below_threshold" | "predicted_to_exceed" | "not_funded" | "refill_pending" => StatusCode::PAYMENT_REQUIRED,
        "socket_only" | "not_permitted" | "account_not_mapped" | "not_verified" => StatusCode::FORBIDDEN,
        "unknown_path" | "unknown_job" | "unknown_account" | "unknown_payment" => StatusCode::NOT_FOUND,
        "wrong_method" => StatusCode::METHOD_NOT_ALLOWED,
        "events_pruned" => StatusCode::GONE,
        "body_too_large" => StatusCode::PAYLOAD_TOO_LARGE,
        "amount_not_positive"
        | "amount_too_large"
        | "amount_not_exact"
        | "below_minimum"
        | "expired"
        | "same_account"
        | "reserved_name" => StatusCode::UNPROCESSABLE_ENTITY,
        "too_many_calls" | "too_many_jobs" | "too_many_streams" => StatusCode::TOO_MANY_REQUESTS,
        "authority_elsewhere" => StatusCode::NOT_IMPLEMENTED,
        "no_answer" => StatusCode::GATEWAY_TIMEOUT,
        "journal_unreadable" | "no_payment_name" | "store_failed" => StatusCode::INTERNAL_SERVER_ERROR,
        "busy" | "authority_unreachable" | "stopped" | "store_full" | "store_blocked" | "journal_full" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::CONFLICT,
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        Problem::One(refusal)
    }
}

impl From<Vec<Mistake>> for Problem {
    fn from(mistakes: Vec<Mistake>) -> Problem {
        Problem::Mistakes(mistakes)
    }
}

impl From<authority::store::Refusal> for Problem {
    fn from(refusal: authority::store::Refusal) -> Problem {
        let hint = match refusal.code() {
            "account_mirrored" => "pay in or out at the billing engine of [engine] in meterd.toml",
            "account_exists" => "meterctl account policy changes it",
            "unknown_account" => "meterctl account create makes it",
            "payment_differs" | "payment_settled" => "give another payment another name",
            "amount_not_positive" | "amount_too_large" | "amount_not_exact" | "below_minimum" | "not_enough" => "another amount",
            "unit_mismatch" => "name the account's own unit, or give credits without a unit: nothing is converted",
            "unknown_payment" => "meterctl account ledger lists the account's payments",
            "reserved_name" => "another name",
            "expired" => "a later date",
            "too_many_lots" => "give no dates and priorities of their own",
            "busy" => "try again in a second",
            "authority_elsewhere" => "meterctl account with --authority speaks to it",
            _ => "the log of meterd says more",
        };
        Problem::new(refusal.code(), refusal.to_string(), hint)
    }
}

impl From<Problem> for Answer {
    fn from(problem: Problem) -> Answer {
        Answer::Problem(problem)
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Answer {
        Answer::Problem(Problem::One(refusal))
    }
}

/// A body that could not be taken.
pub(super) fn body_problem(rejection: &BytesRejection) -> Problem {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        Problem::new("body_too_large", "the body is longer than 64 KiB", "no call needs so much")
    } else {
        Problem::new("malformed_body", "the body could not be read to its end", "send it whole, within ten seconds")
    }
}

const JSON: &str = "application/json";
/// The page is self-contained: nothing is loaded from anywhere, and nothing in it runs.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

impl Answer {
    /// The HTTP response.
    #[must_use]
    pub fn into_response(self, method: &Method) -> Response {
        let is_page = matches!(self, Answer::Page(_));
        let varies = matches!(self, Answer::Metrics(..));
        let (status, media_type, body) = match self {
            Answer::Document(document) => (StatusCode::OK, JSON, line(&document)),
            Answer::Created(document) => (StatusCode::CREATED, JSON, line(&document)),
            Answer::Unavailable(document) => (StatusCode::SERVICE_UNAVAILABLE, JSON, line(&document)),
            Answer::Page(page) => (StatusCode::OK, "text/html; charset=utf-8", Body::from(page)),
            Answer::Metrics(format, text) => (StatusCode::OK, format.media_type(), Body::from(text)),
            Answer::Events(lines) => (StatusCode::OK, "application/x-ndjson", Body::from_stream(lines)),
            Answer::Problem(problem) => (problem.status(), JSON, line(&problem.document())),
        };
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if is_page {
            headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
        }
        if varies {
            headers.insert(VARY, HeaderValue::from_static("accept"));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE || status == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if status == StatusCode::METHOD_NOT_ALLOWED {
            let allowed = if method == Method::POST { "GET, HEAD" } else { "GET, HEAD, POST" };
            headers.insert(ALLOW, HeaderValue::from_static(allowed));
        }
        response
    }
}

fn line(document: &Value) -> Body {
    Body::from(format!("{document}\n"))
}
