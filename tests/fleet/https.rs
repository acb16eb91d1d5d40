//! HTTPS by hand: one call over one connection, with a certificate, a token or neither.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, IpAddr, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use crate::certs::Files;

pub(crate) type Tls = StreamOwned<ClientConnection, TcpStream>;

/// What was answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    fn of(head: &str, body: &str) -> std::io::Result<Answer> {
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(|| std::io::Error::other("no status"))?;
        Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    /// The code of a refusal.
    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"].as_str().or(self.json()["errors"][0]["code"].as_str()).unwrap_or_default().to_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value))
    }
}

/// A TLS client.
#[derive(Clone)]
pub(crate) struct Client {
    config: Arc<ClientConfig>,
    pub(crate) port: u16,
    pub(crate) headers: String,
    /// The network namespace that it calls from; none is the test's own.
    space: Option<PathBuf>,
}

impl Client {
    pub(crate) fn new(port: u16, ca: &Path, own: Option<&Files>) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        let config = match own {
            None => builder.with_no_client_auth(),
            Some(files) => {
                let chain = vec![CertificateDer::from_pem_file(&files.cert).unwrap()];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&files.key).unwrap()).unwrap()
            }
        };
        Client { config: Arc::new(config), port, headers: String::new(), space: None }
    }

    pub(crate) fn with(&self, headers: &str) -> Client {
        Client { headers: headers.to_owned(), ..self.clone() }
    }

    /// The same, calling from that network namespace.
    pub(crate) fn within(self, space: Option<PathBuf>) -> Client {
        Client { space, ..self }
    }

    pub(crate) fn connect(&self) -> std::io::Result<Tls> {
        let stream = match &self.space {
            None => TcpStream::connect(("127.0.0.1", self.port))?,
            Some(space) => dial_in(space, self.port)?,
        };
        stream.set_read_timeout(Some(Duration::from_mins(1)))?;
        let name = ServerName::IpAddress(IpAddr::V4("127.0.0.1".try_into().unwrap()));
        let connection = ClientConnection::new(Arc::clone(&self.config), name).map_err(std::io::Error::other)?;
        Ok(StreamOwned::new(connection, stream))
    }

    /// One call; an error if there is no whole answer.
    pub(crate) fn try_call(&self, method: &str, path: &str, body: &str) -> std::io::Result<Answer> {
        let mut stream = self.connect()?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: authority\r\nconnection: close\r\ncontent-type: application/json\r\n{}content-length: {}\r\n\r\n{body}",
            self.headers,
            body.len()
        )?;
        let mut bytes = Vec::new();
        match stream.read_to_end(&mut bytes) {
            Err(error) if bytes.is_empty() || error.kind() != std::io::ErrorKind::UnexpectedEof => return Err(error),
            _ => {}
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| std::io::Error::other(format!("no answer: {text:?}")))?;
        Answer::of(head, body)
    }

    /// The same client, which keeps its connection open from call to call.
    pub(crate) fn kept(&self) -> Kept {
        Kept { client: self.clone(), stream: None }
    }

    pub(crate) fn call(&self, method: &str, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.try_call(method, path, &body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// What the server shows.
    pub(crate) fn server_certificate(&self) -> Vec<u8> {
        let mut stream = self.connect().unwrap();
        stream.conn.complete_io(&mut stream.sock).unwrap();
        stream.conn.peer_certificates().unwrap()[0].to_vec()
    }

    /// One call that must succeed.
    pub(crate) fn done(&self, method: &str, path: &str, body: &Value) -> Value {
        let answer = self.call(method, path, body);
        assert!((200..300).contains(&answer.status), "{method} {path}: {answer:?}");
        answer.json()
    }
}

/// A connection to a port of the loopback address in that namespace: a socket stays where it was made.
fn dial_in(space: &Path, port: u16) -> std::io::Result<TcpStream> {
    let file = std::fs::File::open(space)?;
    let dial = move || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        TcpStream::connect(("127.0.0.1", port))
    };
    std::thread::spawn(dial).join().unwrap_or_else(|_| Err(std::io::Error::other("it could not be dialled")))
}

/// A client and its connection. One that broke is made anew by the next call.
pub(crate) struct Kept {
    client: Client,
    stream: Option<Tls>,
}

impl Kept {
    /// One call; an error if there is no whole answer.
    pub(crate) fn try_call(&mut self, method: &str, path: &str, body: &str) -> std::io::Result<Answer> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.client.connect()?,
        };
        let headers = &self.client.headers;
        let length = body.len();
        let call = format!(
            "{method} {path} HTTP/1.1\r\nhost: authority\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(call.as_bytes())?;
        let mut bytes = Vec::new();
        let mut piece = [0; 16 << 10];
        loop {
            let count = stream.read(&mut piece)?;
            if count == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            bytes.extend_from_slice(&piece[..count]);
            let text = String::from_utf8_lossy(&bytes);
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let answer = Answer::of(head, body)?;
            let length: usize = answer.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
            if length <= answer.body.len() {
                self.stream = Some(stream);
                return Ok(answer);
            }
        }
    }
}

pub(crate) fn der(path: &Path) -> Vec<u8> {
    CertificateDer::from_pem_file(path).unwrap().to_vec()
}
