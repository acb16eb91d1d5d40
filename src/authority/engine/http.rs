//! Carries messages to an engine over HTTP, bounded in time and size. The key of its API is in no log and no error.

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::{Client, RequestBuilder};

use super::Failure;
use super::config::EngineConfig;
use super::kinds::{Call, Said};
use crate::authority::store::mirror::{Outcome, UsageEvent};
use crate::domain::id::AccountId;
use crate::domain::time::Nanos;
use crate::tls::{self, Unusable};

/// A connection must stand by then, and an answer be there.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
const IDLE_FOR: Duration = Duration::from_secs(50);
/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 1 << 20;
const KEY_BYTES_MAX: usize = 4_096;

/// A way to the engine.
pub struct Http {
    config: EngineConfig,
    client: Client,
    key: HeaderValue,
}

impl Http {
    /// Reads the key and the certificates.
    ///
    /// # Errors
    /// One of the files cannot be used.
    pub fn open(config: EngineConfig) -> Result<Http, Unusable> {
        let key = key(&config)?;
        let tls = if config.url.starts_with("https:") {
            tls::client(&config.ca, None)?
        } else {
            tls::without_peers().map_err(|error| Unusable::new(&config.ca, error))?
        };
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .http1_only()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_WITHIN)
            .timeout(ANSWER_WITHIN)
            .pool_idle_timeout(IDLE_FOR)
            .pool_max_idle_per_host(2)
            .build()
            .map_err(|error| Unusable::new(&config.ca, error.to_string()))?;
        Ok(Http { config, client, key })
    }

    /// How to get on with it.
    #[must_use]
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// Tells it of events: what became of each.
    ///
    /// # Errors
    /// It said nothing of each.
    pub async fn tell(&self, events: &[UsageEvent]) -> Result<Vec<Outcome>, Failure> {
        let kind = self.config.kind;
        let (status, body, wait) = self.call(kind.batch(&self.config, events)).await?;
        kind.told(status, &body, events.len()).map_err(|failure| Failure { wait, ..failure })
    }

    /// Asks it for a balance.
    ///
    /// # Errors
    /// It said none that can be believed.
    pub async fn ask(&self, account: &AccountId) -> Result<Said, Failure> {
        let kind = self.config.kind;
        let question = kind.question(&self.config, &self.config.customer(account));
        let question = question.ok_or_else(|| Failure::new("malformed_url", "the address of the engine cannot be used"))?;
        let (status, body, wait) = self.call(question).await?;
        kind.balance(&self.config, status, &body).map_err(|failure| Failure { wait, ..failure })
    }

    async fn call(&self, call: Call) -> Result<(u16, Vec<u8>, Nanos), Failure> {
        let request = match call.body {
            Some((media_type, body)) => self.client.post(call.url).header(CONTENT_TYPE, media_type).body(body),
            None => self.client.get(call.url),
        };
        let (header, _) = self.config.kind.key_header();
        answer(request.header(header, self.key.clone())).await
    }
}

/// The status, the body, and for how long the engine wants to be left alone.
async fn answer(request: RequestBuilder) -> Result<(u16, Vec<u8>, Nanos), Failure> {
    let mut response = request.send().await.map_err(|error| failure_of(&error))?;
    let wait = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok()).map_or(Nanos(0), Nanos::from_secs);
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| failure_of(&error))? {
        if ANSWER_BYTES_MAX < body.len() + piece.len() {
            return Err(Failure::new("too_long", format!("the answer is longer than {ANSWER_BYTES_MAX} bytes")));
        }
        body.extend_from_slice(&piece);
    }
    Ok((response.status().as_u16(), body, wait))
}

/// What a failure to speak with the engine is called. Not in the library's words: they hold the address, and with it the customer.
fn failure_of(error: &reqwest::Error) -> Failure {
    let mut why = String::new();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        why = error.to_string();
        source = error.source();
    }
    if error.is_timeout() {
        Failure::new("timed_out", "the engine did not answer in time")
    } else if error.is_connect() {
        Failure::new("unreachable", format!("the engine cannot be reached: {why}"))
    } else {
        Failure::new("cut_off", format!("the answer was cut off: {why}"))
    }
}

/// The key in its file, as a header.
fn key(config: &EngineConfig) -> Result<HeaderValue, Unusable> {
    let path = &config.token;
    let text = String::from_utf8(tls::secret(path)?).map_err(|_| Unusable::new(path, "there is no key in it"))?;
    let text = text.trim();
    if text.is_empty() || KEY_BYTES_MAX < text.len() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Unusable::new(path, "there is no key in it: printable characters on one line"));
    }
    let (_, before) = config.kind.key_header();
    let mut header = HeaderValue::from_str(&format!("{before}{text}")).map_err(|error| Unusable::new(path, error.to_string()))?;
    header.set_sensitive(true);
    Ok(header)
}
