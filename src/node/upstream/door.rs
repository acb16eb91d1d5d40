//! The way out: an HTTP client with the node's certificate or token, made anew whenever a file of them changes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderValue, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::domain::id::Digest;
use crate::node::config::{NetworkConfig, OwnIdentity};
use crate::node::link::Fault;
use crate::tls::{self, Unusable};

/// A connection must stand by then.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Shorter than the server keeps an idle connection.
const IDLE_FOR: Duration = Duration::from_secs(50);
/// Most of a refusal's body that is read.
const REFUSAL_BYTES_MAX: usize = 4 << 10;

/// A way to the authority.
pub(super) struct Door {
    config: NetworkConfig,
    open: RwLock<Result<Arc<Open>, Fault>>,
    changed: watch::Sender<u64>,
}

struct Open {
    http: Client,
    token: Option<HeaderValue>,
    stamp: Digest,
}

/// Something that is no answer, and for how long the other side wants to be left alone.
pub(super) struct Failed {
    pub(super) fault: Fault,
    pub(super) wait: Duration,
}

impl From<Fault> for Failed {
    fn from(fault: Fault) -> Failed {
        Failed { fault, wait: Duration::ZERO }
    }
}

impl Door {
    pub(super) fn new(config: NetworkConfig) -> Door {
        let open = opened(&config);
        let (changed, _) = watch::channel(0);
        Door { config, open: RwLock::new(open), changed }
    }

    /// Tells whoever waits that the files have changed.
    pub(super) fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Reads the files again if they changed. One that cannot be used leaves what was before; the fault says why.
    pub(super) fn refresh(&self) -> Result<(), Fault> {
        let current = self.open.read().unwrap_or_else(PoisonError::into_inner).as_ref().ok().map(|open| open.stamp);
        if current == Some(stamp(&self.config)) {
            return Ok(());
        }
        let open = opened(&self.config);
        let open = open?;
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = Ok(open);
        self.changed.send_modify(|count| *count += 1);
        tracing::info!(event = "authority_files_read", url = %self.config.url);
        Ok(())
    }

    /// A request to this path.
    pub(super) fn request(&self, method: reqwest::Method, path: &str) -> Result<RequestBuilder, Fault> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        let request = open.http.request(method, format!("{}{path}", self.config.url));
        Ok(match &open.token {
            Some(token) => request.header(AUTHORIZATION, token.clone()),
            None => request,
        })
    }
}

fn files(config: &NetworkConfig) -> Vec<&PathBuf> {
    match &config.identity {
        OwnIdentity::Certificate { cert, key } => vec![&config.ca, cert, key],
        OwnIdentity::Token(token) => vec![&config.ca, token],
    }
}

fn stamp(config: &NetworkConfig) -> Digest {
    let mut hash = Sha256::new();
    for path in files(config) {
        let content = std::fs::read(path).unwrap_or_default();
        hash.update((content.len() as u64).to_be_bytes());
        hash.update(content);
    }
    Digest(hash.finalize().into())
}

fn opened(config: &NetworkConfig) -> Result<Arc<Open>, Fault> {
    let unusable = |why: Unusable| Fault::new("unusable_files", why.to_string());
    let stamp = stamp(config);
    let (tls, token) = match &config.identity {
        OwnIdentity::Certificate { cert, key } => (tls::client(&config.ca, Some((cert, key))), None),
        OwnIdentity::Token(path) => (tls::client(&config.ca, None), Some(token(path).map_err(unusable)?)),
    };
    let http = Client::builder()
        .tls_backend_preconfigured(tls.map_err(unusable)?)
        .https_only(true)
        .http1_only()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_WITHIN)
        .pool_idle_timeout(IDLE_FOR)
        .pool_max_idle_per_host(2)
        .tcp_nodelay(true)
        .build()
        .map_err(|error| Fault::new("unusable_files", error.to_string()))?;
    Ok(Arc::new(Open { http, token, stamp }))
}

/// The token in a file, as a header. It is never shown.
pub(crate) fn token(path: &Path) -> Result<HeaderValue, Unusable> {
    let text = tls::secret(path)?;
    let text = String::from_utf8(text).map_err(|_| Unusable::new(path, "there is no token in it"))?;
    let token = text.trim();
    let fits = (crate::authority::identity::TOKEN_BYTES_MIN..=crate::authority::identity::TOKEN_BYTES_MAX).contains(&token.len());
    if !fits || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Unusable::new(path, "there is no token in it: 32 to 512 printable characters"));
    }
    let mut header = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|error| Unusable::new(path, error.to_string()))?;
    header.set_sensitive(true);
    Ok(header)
}

/// The answer's body if it is one.
pub(super) async fn body(request: RequestBuilder, bytes_max: usize) -> Result<(Head, Vec<u8>), Failed> {
    let mut response = request.send().await.map_err(|error| fault_of(&error))?;
    let head = Head { status: response.status(), tag: header(&response, "etag") };
    if head.status != StatusCode::OK && head.status != StatusCode::NOT_MODIFIED {
        return Err(refused(response).await);
    }
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| fault_of(&error))? {
        if bytes_max < body.len() + piece.len() {
            return Err(Fault::new("too_long", format!("the answer is longer than {bytes_max} bytes")).into());
        }
        body.extend_from_slice(&piece);
    }
    Ok((head, body))
}

/// What matters of an answer's head.
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) tag: Option<String>,
}

fn header(response: &Response, name: &str) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_owned)
}

/// A status that is no answer, with the authority's own word for it where there is one.
pub(super) async fn refused(mut response: Response) -> Failed {
    let status = response.status();
    let asked_to_wait = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let wait = Duration::from_secs(asked_to_wait.unwrap_or(0).min(30));
    let mut body = Vec::new();
    while let Ok(Some(piece)) = response.chunk().await {
        body.extend_from_slice(&piece);
        if REFUSAL_BYTES_MAX < body.len() {
            break;
        }
    }
    let said: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let why = said["error"]["message"].as_str().unwrap_or_default();
    let why: String = why.chars().filter(|c| !c.is_control()).take(200).collect();
    let code = match status.as_u16() {
        401 => "refused_401",
        403 => "refused_403",
        404 => "refused_404",
        409 => "refused_409",
        429 => "refused_429",
        300..=399 => "redirected",
        400..=499 => "refused_4xx",
        500..=599 => "failed_5xx",
        _ => "other_status",
    };
    let message =
        if why.is_empty() { format!("the authority answered {status}") } else { format!("the authority answered {status}: {why}") };
    Failed { fault: Fault::new(code, message), wait }
}

/// Is it TLS that failed? An I/O error hides what it was made of from its chain of sources.
fn is_of_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    error.is::<rustls::Error>() || inner.is_some_and(|inner| is_of_tls(inner))
}

/// What a failure to speak with the authority is called.
pub(super) fn fault_of(error: &reqwest::Error) -> Fault {
    let mut why = String::new();
    let mut tls = false;
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        tls |= is_of_tls(error);
        why = error.to_string();
        source = error.source();
    }
    // Not the outer errors: they hold the address, and say only that sending failed.
    if error.is_timeout() {
        Fault::new("timed_out", "the authority did not answer in time")
    } else if tls {
        Fault::new("certificate_refused", format!("no trust between here and the authority: {why}"))
    } else if error.is_connect() {
        Fault::new("unreachable", format!("the authority cannot be reached: {why}"))
    } else {
        Fault::new("cut_off", format!("the answer was cut off: {why}"))
    }
}
