//! An authority that lies, breaks off, is slow or is somebody else, as it is told. Underneath it grants as told and settles what is reported.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meterd::domain::wire::{PROTOCOL, Request, UNIT};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::certs::{Ca, Files};

/// What it does with a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    None,
    Garbage,
    Empty,
    Zero,
    NoEntries,
    Replayed,
    OtherWords,
    OtherEpoch,
    OtherProtocol,
    OtherUnit,
    OtherAccount,
    Doubled,
    Exhausted,
    Negative,
    UnknownVerdict,
    BareNumbers,
    Eternal,
    Status(u16),
    SlowBody,
    HalfClosed,
    ShutDoor,
    OtherCa,
    TooLong,
}

pub(crate) struct Liar {
    _folder: tempfile::TempDir,
    pub(crate) ca: Ca,
    pub(crate) port: u16,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    lie: Lie,
    granted: &'static str,
    version: u64,
    last_honest: String,
    streams: Vec<StreamOwned<ServerConnection, TcpStream>>,
}

impl Liar {
    /// Honest at first: it grants every account so much.
    pub(crate) fn start(granted: &'static str) -> Liar {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::new(&folder.path().join("pki"), "test CA");
        let other = Ca::new(&folder.path().join("other"), "other CA");
        let (own, strange) = (config(&ca.server("server")), config(&other.server("server")));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let inner = Inner { lie: Lie::None, granted, version: 1, last_honest: String::new(), streams: Vec::new() };
        let inner = Arc::new(Mutex::new(inner));
        let shared = Arc::clone(&inner);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (shared, own, strange) = (Arc::clone(&shared), Arc::clone(&own), Arc::clone(&strange));
                std::thread::spawn(move || drop(serve(&shared, stream, &own, &strange)));
            }
        });
        Liar { _folder: folder, ca, port, inner }
    }

    pub(crate) fn tell(&self, lie: Lie) {
        self.inner.lock().unwrap().lie = lie;
    }

    /// Tells everybody that the account changed: they ask at once.
    pub(crate) fn push(&self, account: &str) {
        let mut inner = self.inner.lock().unwrap();
        inner.version += 1;
        let frame = format!("event: topup\ndata: {}\n\n", json!({ "account": account, "version": inner.version }));
        inner.streams.retain_mut(|stream| stream.write_all(frame.as_bytes()).and_then(|()| stream.flush()).is_ok());
    }

    pub(crate) fn listeners(&self) -> usize {
        self.inner.lock().unwrap().streams.len()
    }
}

fn config(files: &Files) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let chain = vec![CertificateDer::from_pem_file(&files.cert).unwrap()];
    Arc::new(builder.with_single_cert(chain, PrivateKeyDer::from_pem_file(&files.key).unwrap()).unwrap())
}

fn serve(shared: &Arc<Mutex<Inner>>, stream: TcpStream, own: &Arc<ServerConfig>, strange: &Arc<ServerConfig>) -> std::io::Result<()> {
    let config = if shared.lock().unwrap().lie == Lie::OtherCa { strange } else { own };
    let connection = ServerConnection::new(Arc::clone(config)).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    let (path, body) = request(&mut stream)?;
    if path == "/v1/events" {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n: hello\n\n")?;
        stream.flush()?;
        shared.lock().unwrap().streams.push(stream);
        return Ok(());
    }
    let (lie, honest, last) = {
        let mut inner = shared.lock().unwrap();
        let request: Request = serde_json::from_slice(&body).map_err(std::io::Error::other)?;
        let honest = answer(&request, inner.granted, inner.version);
        let last = inner.last_honest.clone();
        if inner.lie == Lie::None {
            inner.last_honest = honest.to_string();
        }
        (inner.lie, honest, last)
    };
    let (status, body) = match lie {
        Lie::ShutDoor => return Ok(()),
        Lie::Status(status) => (status, json!({ "error": { "code": "no", "message": "because", "hint": "" } }).to_string()),
        Lie::TooLong => (200, " ".repeat(9 << 20)),
        Lie::Replayed => (200, last),
        Lie::Garbage => (200, "{\"protocol\": <html>".to_owned()),
        Lie::Empty => (200, String::new()),
        other => (200, bent(other, honest).to_string()),
    };
    let location = if status == 302 { "location: https://127.0.0.1:1/\r\n" } else { "" };
    write!(
        stream,
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\n{location}content-length: {}\r\n\r\n",
        body.len()
    )?;
    match lie {
        Lie::SlowBody => {
            for byte in body.bytes() {
                stream.write_all(&[byte])?;
                stream.flush()?;
                std::thread::sleep(Duration::from_millis(200));
            }
        }
        Lie::HalfClosed => stream.write_all(&body.as_bytes()[..body.len() / 2])?,
        _ => stream.write_all(body.as_bytes())?,
    }
    stream.conn.send_close_notify();
    stream.flush()
}

/// The path and the body of one request.
fn request(stream: &mut impl Read) -> std::io::Result<(String, Vec<u8>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok((path, body))
}

fn answer(request: &Request, granted: &str, version: u64) -> Value {
    let entry = |entry: &meterd::domain::wire::RequestEntry| {
        json!({
            "account": entry.account, "unit": UNIT, "granted": granted, "valid_for_ns": 600_000_000_000_u64, "verdict": "granted",
            "settled": entry.spent, "free": "1", "version": version, "policy": policy(),
        })
    };
    json!({
        "protocol": PROTOCOL, "epoch": request.epoch, "request": request.request, "digest": request.digest(), "acknowledged": [],
        "entries": request.entries.iter().map(entry).collect::<Vec<Value>>(),
    })
}

/// Whoever is exhausted is killed: so nothing less than the authority's true word may be taken for it.
fn policy() -> Value {
    let kill = meterd::domain::wire::OnExhaustion::Kill;
    json!(meterd::domain::wire::AccountPolicy { on_exhaustion: kill, ..meterd::domain::wire::AccountPolicy::default() })
}

fn bent(lie: Lie, mut answer: Value) -> Value {
    let entry = &mut answer["entries"][0];
    match lie {
        Lie::Zero => {
            entry["granted"] = json!("0");
            entry["settled"] = json!("0");
            entry["free"] = json!("0");
            entry["verdict"] = json!("exhausted");
        }
        Lie::Exhausted => {
            entry["free"] = json!("0");
            entry["verdict"] = json!("exhausted");
        }
        Lie::OtherUnit => entry["unit"] = json!("cent"),
        Lie::OtherAccount => entry["account"] = json!("somebody"),
        Lie::Negative => entry["granted"] = json!("-5"),
        Lie::UnknownVerdict => entry["verdict"] = json!("kill_them_all"),
        Lie::BareNumbers => entry["granted"] = json!(0.5),
        Lie::Eternal => entry["valid_for_ns"] = json!(u64::MAX),
        Lie::Doubled => {
            let again = entry.clone();
            answer["entries"].as_array_mut().unwrap().push(again);
        }
        Lie::NoEntries => answer["entries"] = json!([]),
        Lie::OtherWords => answer["digest"] = json!("00".repeat(32)),
        Lie::OtherEpoch => answer["epoch"] = json!("00".repeat(16)),
        Lie::OtherProtocol => answer["protocol"] = json!(99),
        _ => {}
    }
    answer
}
