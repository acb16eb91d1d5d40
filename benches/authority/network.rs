//! The real authority over mutual TLS, asked by many nodes at once.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::certs::Ca;
use crate::https::{Client, Kept};
use crate::{FIRST_NUMBERS, Failure, drive, question};

const NODES: usize = 256;
/// A node with jobs asks once in so many seconds while credit is plenty: it tells what was spent.
const ASKS_EVERY_S: u64 = 30;
/// `sysconf(_SC_CLK_TCK)` on Linux, wherever it runs.
const TICK_NS: u64 = 10_000_000;

struct Authority {
    child: Child,
    folder: tempfile::TempDir,
    port: u16,
    ca: Ca,
}

impl Drop for Authority {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Authority {
    fn start() -> Result<Authority, Failure> {
        let folder = tempfile::tempdir()?;
        let ca = Ca::new(&folder.path().join("pki"), "bench CA");
        let server = ca.server("server");
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let (at, pki) = (folder.path().display(), ca.folder.display());
        let (cert, key) = (server.cert.display(), server.key.display());
        let config = format!(
            "listen = \"127.0.0.1:{port}\"\nstate_dir = \"{at}/state\"\n[tls]\nca = \"{pki}/ca.pem\"\ncert = \"{cert}\"\nkey = \"{key}\"\n\
             [limits]\ncalls_per_s = 100000\n[log]\nlevel = \"warn\"\n"
        );
        let file = folder.path().join("authority.toml");
        std::fs::write(&file, config)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_meter-authority"));
        let child = command.arg("serve").arg("--config").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        Ok(Authority { child, folder, port, ca })
    }

    /// CPU time of the process so far.
    fn cpu(&self) -> Result<Duration, Failure> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_nanos(ticks * TICK_NS))
    }
}

struct Node {
    nth: usize,
    account: String,
    kept: Kept,
    took: Vec<Duration>,
}

pub(crate) fn bench(length: Duration) -> Result<(), Failure> {
    let authority = Authority::start()?;
    let mut admin = client(&authority, "admin-alice", &["urn:meterd:role:admin:alice"]).kept();
    let deadline = Instant::now() + Duration::from_secs(10);
    while admin.try_call("GET", "/healthz", "").is_err() {
        if deadline < Instant::now() {
            return Err("meter-authority does not answer".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("over mutual TLS, {NODES} nodes with a certificate and a connection each, all asking all the time:");
    let own: Vec<String> = (0..NODES).map(crate::account).collect();
    asked(&authority, &mut admin, "an account each", &own, length)?;
    let shared = vec!["shared".to_owned(); NODES];
    asked(&authority, &mut admin, "one account for all", &shared, length)?;
    let file = std::fs::metadata(authority.folder.path().join("state/authority.db"))?.len();
    println!("the balances' file: {} KiB", file >> 10);
    Ok(())
}

fn client(authority: &Authority, file: &str, uris: &[&str]) -> Client {
    Client::new(authority.port, &authority.ca.pem(), Some(&authority.ca.uris(file, 5, uris)))
}

fn done(kept: &mut Kept, path: &str, body: &Value) -> Result<(), Failure> {
    let answer = kept.try_call("POST", path, &body.to_string())?;
    if (200..300).contains(&answer.status) { Ok(()) } else { Err(format!("{path}: {answer:?}").into()) }
}

fn asked(authority: &Authority, admin: &mut Kept, what: &str, accounts: &[String], length: Duration) -> Result<(), Failure> {
    let names: std::collections::BTreeSet<&String> = accounts.iter().collect();
    for name in names {
        done(admin, "/v1/accounts", &json!({ "account": name }))?;
        let pay = json!({ "amount": "1000000", "bucket": "paid", "payment": format!("p-{name}") });
        done(admin, &format!("/v1/accounts/{name}/topup"), &pay)?;
    }
    let connected = Instant::now();
    let mut nodes = Vec::new();
    for (nth, account) in accounts.iter().enumerate() {
        let name = format!("node-{nth:04}");
        let kept = client(authority, &name, &[&format!("urn:meterd:node:{name}")]).kept();
        let mut node = Node { nth, account: account.clone(), kept, took: Vec::new() };
        for number in 1..=FIRST_NUMBERS {
            ask(&mut node, number)?;
        }
        nodes.push(node);
    }
    println!("{what}: {NODES} certificates made, handshakes and first questions in {} ms", connected.elapsed().as_millis());
    let took = Mutex::new(Vec::new());
    let (before, began) = (authority.cpu()?, Instant::now());
    let asking: Vec<Option<Node>> = nodes.into_iter().map(Some).collect();
    let rate = drive(asking, length, |node, number| {
        let Some(mine) = node else { return Err("no node".into()) };
        ask(mine, number)?;
        if length <= began.elapsed() {
            took.lock().map_err(|_| "a client panicked")?.append(&mut mine.took);
        }
        Ok(())
    })?;
    let (cpu, elapsed) = (authority.cpu()?.saturating_sub(before), began.elapsed());
    let mut took = took.into_inner()?;
    took.sort_unstable();
    let at = |percent: usize| took.get(took.len() * percent / 100).copied().unwrap_or_default().as_micros();
    let each = cpu.as_nanos() / u128::from(rate.max(1)) * 1_000_000_000 / elapsed.as_nanos().max(1);
    println!(
        "{what}: {rate} questions a second, p50 {} us, p99 {} us; {} us of the authority's CPU time each, {} % of a core",
        at(50),
        at(99),
        each / 1_000,
        cpu.as_nanos() * 100 / elapsed.as_nanos().max(1)
    );
    println!(
        "{what}: nodes that tell every {ASKS_EVERY_S} s: {}; that ask every second, at the end of their credit: {rate}",
        rate * ASKS_EVERY_S
    );
    Ok(())
}

fn ask(node: &mut Node, number: u64) -> Result<(), Failure> {
    let body = serde_json::to_string(&question(node.nth, &node.account, number)?)?;
    let began = Instant::now();
    let answer = node.kept.try_call("POST", "/v1/grants", &body)?;
    node.took.push(began.elapsed());
    if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}").into()) }
}
