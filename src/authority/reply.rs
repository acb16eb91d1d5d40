//! What a caller hears, and in which HTTP status. Refusals have the form of the agent's own API: `{"error": {"code", "message", "hint"}}`,
//! or `{"errors": […]}` with every mistake of a body.

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::events::Frames;
use super::store;
use crate::domain::agent::start::Refusal;
use crate::domain::form::Mistake;

/// An answer.
pub enum Reply {
    /// 200.
    Document(Value),
    /// 200, as JSON that is written already.
    Written(String),
    /// 201.
    Created(Value),
    /// 200, in another form than JSON.
    Text {
        /// `Content-Type`.
        media_type: &'static str,
        /// The whole.
        text: String,
        /// `ETag`, where there is one.
        tag: Option<String>,
    },
    /// 304: what the caller has is still so.
    NotModified(String),
    /// Server-sent events.
    Events(Frames),
    /// Not done, for one reason.
    Refused(Refusal),
    /// Not done, for every mistake of a body.
    Mistakes(Vec<Mistake>),
}

impl Reply {
    /// A refusal.
    #[must_use]
    pub fn refuse(code: &str, message: impl Into<String>, hint: &str) -> Reply {
        Reply::Refused(Refusal::new(code, message, hint))
    }

    /// In which HTTP status it is told.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Reply::Document(_) | Reply::Written(_) | Reply::Text { .. } | Reply::Events(_) => StatusCode::OK,
            Reply::Created(_) => StatusCode::CREATED,
            Reply::NotModified(_) => StatusCode::NOT_MODIFIED,
            Reply::Refused(refusal) => status_of(&refusal.code),
            Reply::Mistakes(mistakes) if mistakes.iter().any(|mistake| mistake.code == "syntax") => StatusCode::BAD_REQUEST,
            Reply::Mistakes(_) => StatusCode::UNPROCESSABLE_ENTITY,
        }
    }

    /// The HTTP response.
    #[must_use]
    pub fn into_response(self) -> Response {
        let status = self.status();
        let tag = match &self {
            Reply::Text { tag, .. } => tag.clone(),
            Reply::NotModified(tag) => Some(tag.clone()),
            _ => None,
        };
        let json = "application/json";
        let (media_type, body) = match self {
            Reply::Document(document) | Reply::Created(document) => (json, line(&document)),
            Reply::Written(text) => (json, Body::from(text)),
            Reply::Text { media_type, text, .. } => (media_type, Body::from(text)),
            Reply::NotModified(_) => ("text/plain", Body::empty()),
            Reply::Events(frames) => ("text/event-stream", Body::from_stream(frames)),
            Reply::Refused(Refusal { code, message, hint }) => {
                (json, line(&json!({ "error": { "code": code, "message": message, "hint": hint } })))
            }
            Reply::Mistakes(mistakes) => (json, line(&json!({ "errors": mistakes }))),
        };
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static(if tag.is_some() { "no-cache" } else { "no-store" }));
        if let Some(tag) = tag.and_then(|tag| HeaderValue::from_str(&tag).ok()) {
            headers.insert(ETAG, tag);
        }
        if [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS].contains(&status) {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

fn line(document: &Value) -> Body {
    Body::from(format!("{document}\n"))
}

/// One table from stable codes to HTTP. What stands not here is a conflict with the state of things.
fn status_of(code: &str) -> StatusCode {
    match code {
        "malformed_body" | "malformed_name" | "malformed_query" | "unknown_protocol" => StatusCode::BAD_REQUEST,
        "no_identity" | "unknown_token" => StatusCode::UNAUTHORIZED,
        "not_permitted" | "wrong_node" | "certificate_revoked" | "certificate_names_nobody" => StatusCode::FORBIDDEN,
        "unknown_path" | "unknown_account" | "no_card" => StatusCode::NOT_FOUND,
        "wrong_method" => StatusCode::METHOD_NOT_ALLOWED,
        "body_too_slow" => StatusCode::REQUEST_TIMEOUT,
        "body_too_large" | "too_many_entries" => StatusCode::PAYLOAD_TOO_LARGE,
        "amount_not_positive" | "amount_too_large" => StatusCode::UNPROCESSABLE_ENTITY,
        "too_many_calls" | "too_many_streams" => StatusCode::TOO_MANY_REQUESTS,
        "store_failed" => StatusCode::INTERNAL_SERVER_ERROR,
        "no_answer" => StatusCode::GATEWAY_TIMEOUT,
        "busy" | "stopped" | "store_full" | "store_blocked" | "no_audit" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::CONFLICT,
    }
}

impl From<store::Refusal> for Reply {
    fn from(refusal: store::Refusal) -> Reply {
        let hint = match refusal.code() {
            "account_mirrored" => "pay in or out where [engine] in authority.toml says that it is kept",
            "account_exists" => "POST /v1/accounts/{account}/policy changes it",
            "unknown_account" => "POST /v1/accounts makes it",
            "payment_differs" => "give another payment another name",
            "amount_not_positive" | "amount_too_large" => "another amount",
            "busy" | "store_blocked" => "try again in a second",
            _ => "the log of meter-authority says more",
        };
        Reply::refuse(refusal.code(), refusal.to_string(), hint)
    }
}

impl From<Vec<Mistake>> for Reply {
    fn from(mistakes: Vec<Mistake>) -> Reply {
        Reply::Mistakes(mistakes)
    }
}
