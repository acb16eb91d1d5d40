//! One call to the agent over its Unix socket, or to an authority over the network.

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::exit::Exit;
use crate::node::local_api::operation::percent_encoded;

/// Longer than the agent may take over any answer.
const WITHIN: Duration = Duration::from_secs(12);

/// Longer than the agent is ever silent on a stream.
const SILENT_MAX: Duration = Duration::from_secs(15);

/// A way to the agent.
pub(crate) struct Client {
    place: Place,
    base: String,
    http: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

/// Who is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The agent behind this socket.
    Agent(PathBuf),
    /// The authority at this address.
    Authority(String),
}

/// What there is a way to.
pub(crate) trait Reach {
    /// That way.
    fn client(&self) -> Result<Client, Failure>;
}

impl Reach for Path {
    fn client(&self) -> Result<Client, Failure> {
        Client::within(self, WITHIN)
    }
}

impl Reach for PathBuf {
    fn client(&self) -> Result<Client, Failure> {
        self.as_path().client()
    }
}

/// Why a call did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nobody answers.
    Unreachable {
        /// Where.
        place: Place,
        /// What the system says.
        why: String,
    },
    /// The agent says no, and why.
    Refused(Vec<Reason>),
    /// Something else.
    Other(String),
}

/// One reason of a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reason {
    pub(crate) code: String,
    /// Where in the request, if it is a mistake in one place.
    pub(crate) place: String,
    pub(crate) message: String,
    pub(crate) hint: String,
}

impl Failure {
    /// How the program ends for it.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Failure::Unreachable { .. } => Exit::Unreachable,
            Failure::Refused(_) | Failure::Other(_) => Exit::Failed,
        }
    }

    /// Something that went wrong on this side.
    pub(crate) fn other(error: impl fmt::Display) -> Failure {
        Failure::Other(error.to_string())
    }

    /// May the same call succeed a little later, unchanged?
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Failure::Unreachable { .. } => true,
            Failure::Refused(reasons) => reasons.iter().any(|reason| {
                ["busy", "stopped", "no_answer", "store_blocked", "store_full", "journal_full"].contains(&reason.code.as_str())
            }),
            Failure::Other(_) => false,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Unreachable { place: Place::Agent(socket), why } => {
                writeln!(f, "the agent does not answer on {}: {why}", socket.display())?;
                write!(f, "hint: is meterd running? --socket or METERD_SOCKET names another socket")
            }
            Failure::Unreachable { place: Place::Authority(url), why } => {
                writeln!(f, "the authority does not answer at {url}: {why}")?;
                write!(f, "hint: is meter-authority running there, and are --ca and your certificate the right ones?")
            }
            Failure::Refused(reasons) => {
                for (index, reason) in reasons.iter().enumerate() {
                    let place = if reason.place.is_empty() { String::new() } else { format!("{}: ", reason.place) };
                    let end = if index + 1 < reasons.len() { "\n" } else { "" };
                    write!(f, "{place}{} ({})", reason.message, reason.code)?;
                    if !reason.hint.is_empty() {
                        write!(f, "\nhint: {}", reason.hint)?;
                    }
                    f.write_str(end)?;
                }
                Ok(())
            }
            Failure::Other(message) => f.write_str(message),
        }
    }
}

impl Client {
    /// A way to the agent behind this socket, or to an authority.
    pub(crate) fn new(to: &(impl Reach + ?Sized)) -> Result<Client, Failure> {
        to.client()
    }

    /// A way to the authority at this address.
    pub(crate) fn over(url: &str, http: reqwest::Client) -> Result<Client, Failure> {
        Client::made(Place::Authority(url.to_owned()), url, http)
    }

    fn made(place: Place, base: &str, http: reqwest::Client) -> Result<Client, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::other)?;
        Ok(Client { place, base: base.to_owned(), http, runtime })
    }

    /// The same, with less time for each call.
    pub(crate) fn within(socket: &Path, within: Duration) -> Result<Client, Failure> {
        let http = reqwest::Client::builder().unix_socket(socket).no_proxy().timeout(within);
        let tls = crate::tls::without_peers().map_err(Failure::other)?;
        let http = http.tls_backend_preconfigured(tls).build().map_err(Failure::other)?;
        Client::made(Place::Agent(socket.to_owned()), "http://localhost", http)
    }

    /// `GET`.
    pub(crate) fn read(&self, path: &str) -> Result<Value, Failure> {
        self.call(self.http.get(format!("{}{path}", self.base)))
    }

    /// `GET` of lines that go on and on: each is handed to `each`, until it breaks off or the agent ends the stream.
    /// A stream that says nothing for [`SILENT_MAX`] has ended.
    pub(crate) fn lines(&self, path: &str, mut each: impl FnMut(&str) -> ControlFlow<()>) -> Result<(), Failure> {
        let request = self.http.get(format!("{}{path}", self.base)).timeout(Duration::MAX);
        let mut response = self.wait(SILENT_MAX, async { request.send().await })?;
        if !response.status().is_success() {
            let status = response.status().as_u16();
            let body = self.wait(SILENT_MAX, response.bytes())?;
            return Err(refused(status, &serde_json::from_slice(&body).unwrap_or_default()));
        }
        let mut rest: Vec<u8> = Vec::new();
        while let Some(chunk) = self.wait(SILENT_MAX, response.chunk())? {
            rest.extend_from_slice(&chunk);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                if each(String::from_utf8_lossy(&line).trim_end()).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn wait<T>(&self, within: Duration, work: impl Future<Output = Result<T, reqwest::Error>>) -> Result<T, Failure> {
        let silent = |_| Failure::Unreachable { place: self.place.clone(), why: "no answer in time".to_owned() };
        let done = self.runtime.block_on(async { tokio::time::timeout(within, work).await }).map_err(silent)?;
        done.map_err(|error| self.unreachable(&error))
    }

    /// `POST`.
    pub(crate) fn write(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.call(self.http.post(format!("{}{path}", self.base)).json(body))
    }

    fn call(&self, request: reqwest::RequestBuilder) -> Result<Value, Failure> {
        let answered = self.runtime.block_on(async {
            let response = request.send().await?;
            Ok::<_, reqwest::Error>((response.status(), response.bytes().await?))
        });
        let (status, body) = answered.map_err(|error| self.unreachable(&error))?;
        let document: Result<Value, _> = serde_json::from_slice(&body);
        match document {
            Ok(document) if status.is_success() => Ok(document),
            Ok(document) => Err(refused(status.as_u16(), &document)),
            Err(error) => Err(Failure::Other(format!("the answer ({status}) is not JSON: {error}"))),
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        // The outer errors only say that sending failed; the innermost is what the system said.
        let mut why: &dyn std::error::Error = error;
        while let Some(source) = why.source() {
            why = source;
        }
        let why = if error.is_timeout() { "no answer in time".to_owned() } else { why.to_string() };
        Failure::Unreachable { place: self.place.clone(), why }
    }
}

/// The path of a job, or of something of it.
pub(crate) fn job_path(job: &str, rest: &str) -> String {
    format!("/v1/jobs/{}{rest}", percent_encoded(job))
}

/// The path of an account, or of something of it.
pub(crate) fn account_path(account: &str, rest: &str) -> String {
    format!("/v1/accounts/{}{rest}", percent_encoded(account))
}

/// A document as its type.
pub(crate) fn typed<T: DeserializeOwned>(document: Value) -> Result<T, Failure> {
    serde_json::from_value(document)
        .map_err(|error| Failure::Other(format!("this meterctl does not understand the agent's answer: {error}")))
}

fn refused(status: u16, document: &Value) -> Failure {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let reason = |value: &Value| Reason {
        code: text(&value["code"]),
        place: text(&value["place"]),
        message: text(&value["message"]),
        hint: text(&value["hint"]),
    };
    let one = document["error"].is_object().then(|| vec![reason(&document["error"])]);
    let many = document["errors"].as_array().map(|errors| errors.iter().map(reason).collect());
    match one.or(many) {
        Some(reasons) => Failure::Refused(reasons),
        None => Failure::Other(format!("the agent answered {status}: {document}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_refusal_says_what_is_wrong_and_what_to_do() {
        let document =
            json!({ "error": { "code": "no_credit", "message": "account lab has 0 credits left", "hint": "top up the account" } });
        let failure = refused(402, &document);
        assert_eq!(failure.to_string(), "account lab has 0 credits left (no_credit)\nhint: top up the account");
        assert_eq!(failure.exit(), Exit::Failed);
        assert!(!failure.is_passing());
    }

    #[test]
    fn every_mistake_is_shown_in_its_place() {
        let document = json!({ "errors": [
            { "code": "missing_key", "place": "/job", "message": "job is missing", "hint": null },
            { "code": "unknown_key", "place": "/jobb", "message": "unknown key \"jobb\"", "hint": "job" },
        ] });
        insta::assert_snapshot!(refused(422, &document));
    }

    #[test]
    fn a_missing_socket_is_told_by_its_path() {
        let failure = Client::new(Path::new("/nonexistent/meterd.sock")).unwrap().read("/v1/status").unwrap_err();
        let Failure::Unreachable { place, why } = &failure else { panic!("{failure}") };
        assert_eq!(*place, Place::Agent(PathBuf::from("/nonexistent/meterd.sock")));
        assert!(why.contains("No such file"), "{why}");
        assert_eq!(failure.exit(), Exit::Unreachable);
    }
}
