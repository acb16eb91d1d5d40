//! A billing engine on the loopback address, in the words of each that is known. It shares no code with the product.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};

pub(crate) const KEY: &str = "sk-test-0123456789abcdef0123456789abcdef";

/// What the engine does to the next call, instead of what it should.
#[derive(Clone, Debug)]
pub(crate) enum Whim {
    /// Answers this, and does nothing.
    Answers(u16, &'static str, &'static str),
    /// Does it, and cuts the connection.
    DoesAndSaysNothing,
    /// Answers, and never ends.
    NeverEnds,
}

#[derive(Default)]
pub(crate) struct State {
    /// In nano-units.
    pub(crate) paid: BTreeMap<String, i128>,
    /// By name: the customer, the amount, and the event word for word.
    pub(crate) events: BTreeMap<String, (String, i128, String)>,
    pub(crate) doubled: u64,
    pub(crate) calls: Vec<(String, String, String)>,
    pub(crate) whims: VecDeque<Whim>,
}

/// A running engine.
pub(crate) struct Billing {
    pub(crate) port: u16,
    state: Arc<Mutex<State>>,
}

/// Nano-units of a decimal text.
pub(crate) fn nano_of(text: &str) -> i128 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    format!("{whole}{fraction:0<9}").parse().unwrap()
}

pub(crate) fn shown(nano: i128) -> String {
    let sign = if nano < 0 { "-" } else { "" };
    format!("{sign}{}.{:09}", nano.abs() / 1_000_000_000, nano.abs() % 1_000_000_000)
}

impl Billing {
    pub(crate) fn start(kind: &'static str) -> Billing {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let served = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let served = Arc::clone(&served);
                std::thread::spawn(move || drop(serve(kind, stream.unwrap(), &served)));
            }
        });
        Billing { port, state }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn pay(&self, customer: &str, amount: &str) {
        *self.state().paid.entry(customer.to_owned()).or_default() += nano_of(amount);
    }

    /// Nano-units that it was told of.
    pub(crate) fn used(&self, customer: &str) -> i128 {
        self.state().events.values().filter(|(of, ..)| of == customer).map(|(_, amount, _)| amount).sum()
    }

    /// The lines of `[engine]` that lead here; the key is put into that folder.
    pub(crate) fn lines(&self, kind: &str, folder: &std::path::Path) -> String {
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = folder.join("engine.key");
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).unwrap();
        writeln!(file, "{KEY}").unwrap();
        format!("[engine]\nkind = \"{kind}\"\nurl = \"http://127.0.0.1:{}\"\ntoken_file = \"{}\"\n", self.port, path.display())
    }
}

/// One connection, call after call.
fn serve(kind: &'static str, stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split(' ').map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (mut length, mut key) = (0, false);
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let header = header.trim_end().to_owned();
            if header.is_empty() {
                break;
            }
            let (name, value) = header.split_once(": ").unwrap_or_default();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().unwrap(),
                "authorization" => key |= kind != "flexprice" && value == format!("Bearer {KEY}"),
                "x-api-key" => key |= kind == "flexprice" && value == KEY,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body = String::from_utf8(body).unwrap();
        let whim = {
            let mut state = state.lock().unwrap();
            state.calls.push((method.clone(), path.clone(), body.clone()));
            state.whims.pop_front()
        };
        let (status, headers, answer) = match whim {
            Some(Whim::Answers(status, headers, answer)) => (status, headers, answer.to_owned()),
            Some(Whim::DoesAndSaysNothing) => {
                answered(kind, &path, &body, &mut state.lock().unwrap());
                return Ok(());
            }
            Some(Whim::NeverEnds) => {
                write!(writer, "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")?;
                std::thread::sleep(Duration::from_mins(5));
                return Ok(());
            }
            None if !key => (401, "", "{}".to_owned()),
            None => {
                let (status, answer) = answered(kind, &path, &body, &mut state.lock().unwrap());
                (status, "", answer)
            }
        };
        write!(writer, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n{headers}\r\n{answer}", answer.len())?;
    }
}

/// What it does and says to a call, as its makers document it.
fn answered(kind: &str, path: &str, body: &str, state: &mut State) -> (u16, String) {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let asked = |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(&format!("{key}="))).unwrap_or_default().to_owned();
    match (kind, path) {
        ("openmeter", "/api/v1/events") => take_all(state, body, |all| all, ("id", "subject", "/data/amount"), 204),
        ("flexprice", "/v1/events/bulk") => {
            take_all(state, body, |all| all["events"].clone(), ("event_id", "external_customer_id", "/properties/amount"), 202)
        }
        ("lago", "/api/v1/events/batch") => lago(state, body),
        ("openmeter", _) => {
            let customer = path.strip_prefix("/api/v3/openmeter/customers/").and_then(|rest| rest.strip_suffix("/credits/balance"));
            let balance = customer.and_then(|customer| balance(state, customer));
            balance.map_or((404, "{}".to_owned()), |live| {
                (200, json!({ "balances": [{ "currency": "USD", "settled": live, "pending": "0", "live": live }] }).to_string())
            })
        }
        ("lago", "/api/v1/wallets") => {
            let wallet = |balance| json!({ "status": "active", "currency": "USD", "credits_ongoing_balance": balance, "balance_cents": 0 });
            let wallets: Vec<Value> = balance(state, &asked("external_customer_id")).map(wallet).into_iter().collect();
            (200, json!({ "wallets": wallets, "meta": { "current_page": 1, "next_page": null } }).to_string())
        }
        ("flexprice", "/v1/customers/wallets") => {
            let wallet = |balance| json!([{ "wallet_status": "active", "currency": "usd", "real_time_credit_balance": balance, "is_cached_fallback": false }]);
            balance(state, &asked("lookup_key")).map_or((404, "{}".to_owned()), |balance| (200, wallet(balance).to_string()))
        }
        _ => (404, "{}".to_owned()),
    }
}

fn balance(state: &State, customer: &str) -> Option<String> {
    let used: i128 = state.events.values().filter(|(of, ..)| of == customer).map(|(_, amount, _)| amount).sum();
    state.paid.get(customer).map(|paid| shown(paid - used))
}

fn take(state: &mut State, event: &Value, (id, customer, amount): (&str, &str, &str)) {
    let (id, customer) = (event[id].as_str().unwrap().to_owned(), event[customer].as_str().unwrap().to_owned());
    let amount = nano_of(event.pointer(amount).unwrap().as_str().unwrap());
    if let Some((.., before)) = state.events.get(&id) {
        assert_eq!(*before, event.to_string(), "an event is repeated word for word");
        state.doubled += 1;
        return;
    }
    state.events.insert(id, (customer, amount, event.to_string()));
}

fn take_all(state: &mut State, body: &str, all: fn(Value) -> Value, names: (&str, &str, &str), status: u16) -> (u16, String) {
    let all = all(serde_json::from_str(body).unwrap());
    all.as_array().unwrap().iter().for_each(|event| take(state, event, names));
    (status, String::new())
}

/// Lago takes a batch only if each event of it is news.
fn lago(state: &mut State, body: &str) -> (u16, String) {
    let all: Value = serde_json::from_str(body).unwrap();
    let events = all["events"].as_array().unwrap();
    let known = |event: &Value| state.events.contains_key(event["transaction_id"].as_str().unwrap());
    let places = events.iter().enumerate().filter(|(_, event)| known(event));
    let wrong: serde_json::Map<String, Value> =
        places.map(|(place, _)| (place.to_string(), json!({ "transaction_id": ["value_already_exist"] }))).collect();
    if wrong.is_empty() {
        for event in events {
            take(state, event, ("transaction_id", "external_subscription_id", "/properties/amount"));
        }
        return (200, json!({ "events": [] }).to_string());
    }
    state.doubled += wrong.len() as u64;
    (422, json!({ "status": 422, "code": "validation_errors", "error_details": wrong }).to_string())
}
