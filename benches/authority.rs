//! How much one authority carries.
//!
//! Of the store: questions that settle and renew, a second, from 64 clients at once, beside the same SQL statements made bare by the same number
//! of clients with the same isolation and durability, in the same run; and what one question costs where many nodes share its account. Over the network: the real `meter-authority` over mutual TLS, asked by 256 nodes,
//! each with a certificate and a connection of its own.
//!
//! `cargo bench --bench authority` (`METERD_BENCH_SECONDS=10`).

#[cfg(target_arch = "x86_64")]
#[path = "../src/allocator.rs"]
mod allocator;
#[path = "authority/bare.rs"]
mod bare;
#[path = "../tests/fleet/certs.rs"]
#[expect(dead_code, clippy::unwrap_used, reason = "what the fleet's tests use: a bench takes what it needs of it")]
mod certs;
#[path = "../tests/fleet/https.rs"]
#[expect(dead_code, clippy::unwrap_used, reason = "what the fleet's tests use: a bench takes what it needs of it")]
mod https;
#[path = "authority/network.rs"]
mod network;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bare::{Ask, Together};
use crossbeam_channel::{bounded, unbounded};
use meterd::authority::embedded::Embedded;
use meterd::authority::store::Store;
use meterd::domain::bucket::Bucket;
use meterd::domain::chain::Head;
use meterd::domain::id::{BootId, Epoch};
use meterd::domain::ledger::{ClosePolicy, Payment, PaymentState, Terms};
use meterd::domain::money::Credits;
use meterd::domain::time::Nanos;
use meterd::domain::wire::{AccountPolicy, Digested, Limits, PROTOCOL, Request, RequestEntry, Settlement, UNIT};
use meterd::node::{clock, priority};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Nodes that ask, each on an account of its own.
const CLIENTS: usize = 64;
/// How often the two are measured by turns.
const ROUNDS: u32 = 5;
/// Asked before anything is measured: the second one settles, and so begins the line of this hour.
const FIRST_NUMBERS: u64 = 2;
/// As the authority answers with one commit.
const GROUP: usize = 64;

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("authority bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn length() -> Result<Duration, Failure> {
    Ok(Duration::from_secs(std::env::var("METERD_BENCH_SECONDS").map_or(Ok(10), |text| text.parse())?))
}

fn bench() -> Result<(), Failure> {
    let length = length()?;
    println!("questions a second, each a settlement and a renewal, from {CLIENTS} clients:");
    for (what, together) in [("a commit for each", Together(1)), ("answered together", Together(GROUP))] {
        let (mut bare, mut store) = (Vec::new(), Vec::new());
        // By turns: the disk and the neighbours are not the same from one second to the next.
        for _ in 0..ROUNDS {
            bare.push(bare_rate(together, length / ROUNDS)?);
            store.push(if together.0 == 1 { alone_rate(length / ROUNDS)? } else { store_rate(length / ROUNDS)? });
        }
        let ratio = part(store.iter().sum(), bare.iter().sum());
        println!("{what}: bare statements {bare:?}, the store {store:?} = {ratio} of bare (asked: 0.70)");
    }
    for nodes in [64, 1_000, 10_000] {
        println!("one account that {nodes} nodes share: {} us a question", shared_us(nodes)?);
    }
    network::bench(length)
}

/// Asked at once, as nodes do near the end of their balance: what one question costs where very many hold a part of its account.
fn shared_us(nodes: usize) -> Result<u128, Failure> {
    const ASKED: usize = 640;
    let dir = tempfile::tempdir()?;
    let mut store = Store::open(&dir.path().join("authority.db"), ClosePolicy::AfterSilence(Nanos::from_secs(3_600)), clock::mono())?;
    store.create_account("shared".parse()?, AccountPolicy::default(), Terms::default(), clock::now())?;
    let payment = Payment::deposit("p".parse()?, Bucket::Paid, "1000000".parse()?);
    store.pay(&"shared".parse()?, &payment, PaymentState::Completed, clock::now())?;
    let mut ask = |asked: std::ops::Range<usize>, number: u64| {
        let requests = asked.map(|nth| question(nth % nodes, "shared", number)).collect::<Result<Vec<_>, _>>()?;
        for group in requests.chunks(GROUP) {
            store.together(|store| group.iter().try_for_each(|request| store.answer(request, clock::now()).map(drop)))?;
        }
        Ok::<(), Failure>(())
    };
    ask(0..nodes, 1)?;
    ask(0..nodes, 2)?;
    let began = Instant::now();
    ask(0..ASKED.min(nodes), 3)?;
    Ok(began.elapsed().as_micros() / ASKED.min(nodes) as u128)
}

/// `a / b` with two digits.
fn part(a: u64, b: u64) -> String {
    let percent = a * 100 / b.max(1);
    format!("{}.{:02}", percent / 100, percent % 100)
}

fn a_second(count: u64, length: Duration) -> u64 {
    u64::try_from(u128::from(count) * 1_000_000_000 / length.as_nanos().max(1)).unwrap_or(u64::MAX)
}

/// Each client asks, waits, and asks again; answers a second.
fn drive<C: Send>(clients: Vec<C>, length: Duration, ask: impl Fn(&mut C, u64) -> Result<(), Failure> + Sync) -> Result<u64, Failure> {
    let answered = AtomicU64::new(0);
    let began = Instant::now();
    let drive = |mut client: C| {
        let mut number = FIRST_NUMBERS;
        while began.elapsed() < length {
            number += 1;
            ask(&mut client, number)?;
            answered.fetch_add(1, Ordering::Relaxed);
        }
        Ok::<(), Failure>(())
    };
    let drive = &drive;
    std::thread::scope(|scope| {
        let asking: Vec<_> = clients.into_iter().map(|client| scope.spawn(move || drive(client))).collect();
        asking.into_iter().try_for_each(|client| client.join().map_err(|_| "a client panicked")?)
    })?;
    Ok(a_second(answered.into_inner(), began.elapsed()))
}

fn account(nth: usize) -> String {
    format!("project-{nth:04}")
}

/// One for each node and account, so that no part of the bench writes under another's.
fn epoch(nth: usize, account: &str) -> Epoch {
    let mut bytes = [0x5a; 16];
    for (byte, of_name) in bytes.iter_mut().zip(account.bytes().take(8)) {
        *byte = of_name;
    }
    bytes[8..].copy_from_slice(&(nth as u64).to_be_bytes());
    Epoch(bytes)
}

/// What a node tells and asks: it has spent 0.003 more with each question, and what it holds is made whole again.
fn question(nth: usize, account: &str, number: u64) -> Result<Request, Failure> {
    let spent = Credits::from_nano(3_000_000 * i128::from(number));
    let entry = RequestEntry {
        account: account.parse()?,
        unit: UNIT.to_owned(),
        granted_seen: Credits::ZERO,
        returned: Credits::ZERO,
        spent,
        unfunded: Credits::ZERO,
        owed: Credits::ZERO,
        burn_per_s: Credits::from_nano(1_000_000),
        at_least: Credits::ZERO,
        validity: None,
        proof: None,
    };
    let (node, boot) = (format!("node-{nth:04}").parse()?, BootId([7; 16]));
    Ok(Request {
        protocol: PROTOCOL,
        node,
        epoch: epoch(nth, account),
        boot,
        request: number,
        previous: Vec::new(),
        entries: vec![entry],
        generation_seen: 0,
        history: None,
        gangs: Vec::new(),
        refunds: Vec::new(),
    })
}

/// A store with an account and an open epoch for each client.
fn filled(path: &Path) -> Result<Store, Failure> {
    let mut store = Store::open(path, ClosePolicy::AfterSilence(Nanos::from_secs(3_600)), clock::mono())?;
    for nth in 0..CLIENTS {
        let id = account(nth);
        store.create_account(id.parse()?, AccountPolicy::default(), Terms::default(), clock::now())?;
        let payment = Payment::deposit(format!("p-{nth}").parse()?, Bucket::Paid, "1000000".parse()?);
        store.pay(&id.parse()?, &payment, PaymentState::Completed, clock::now())?;
        for number in 1..=FIRST_NUMBERS {
            store.answer(&question(nth, &id, number)?, clock::now())?;
        }
    }
    Ok(store)
}

fn bare_rate(together: Together, length: Duration) -> Result<u64, Failure> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("authority.db");
    drop(filled(&path)?);
    let keys = bare::keys(&path)?;
    let (asks, asked) = bounded(CLIENTS);
    let server = std::thread::spawn(move || {
        let _ = priority::raise_priority(); // as the store's own thread
        bare::serve(&path, &asked, together)
    });
    let clients: Vec<usize> = (0..CLIENTS).collect();
    let rate = drive(clients, length, |nth, number| {
        let (reply, answered) = bounded(1);
        let spent = Credits::from_nano(3_000_000 * i128::from(number)).to_string();
        let (account, number) = (account(*nth), i64::try_from(number)?);
        let ask = Ask { epoch: epoch(*nth, &account).to_string(), account, number, spent, key: keys[*nth].clone(), reply };
        asks.send(ask).map_err(|_| "the bare server has ended")?;
        Ok(answered.recv()?)
    })?;
    drop(asks);
    server.join().map_err(|_| "the bare server panicked")??;
    Ok(rate)
}

/// The store behind its thread, as `meter-authority` has it.
fn store_rate(length: Duration) -> Result<u64, Failure> {
    let dir = tempfile::tempdir()?;
    let embedded = Embedded::start(filled(&dir.path().join("authority.db"))?, clock::now, |_| ())?;
    let rate = drive((0..CLIENTS).collect(), length, |nth, number| {
        let (reply, answered) = bounded(1);
        embedded.ask(question(*nth, &account(*nth), number)?, Head::START, move |answer| drop(reply.send(answer)))?;
        let answer = answered.recv()?;
        if answer.entries.is_empty() { Err("an empty answer".into()) } else { Ok(()) }
    })?;
    embedded.finish()?;
    Ok(rate)
}

/// The store asked by one thread for all clients, a question a transaction.
fn alone_rate(length: Duration) -> Result<u64, Failure> {
    let dir = tempfile::tempdir()?;
    let mut store = filled(&dir.path().join("authority.db"))?;
    let (asks, asked) = unbounded::<(Digested, crossbeam_channel::Sender<()>)>();
    let server = std::thread::spawn(move || {
        let _ = priority::raise_priority(); // as the store's own thread
        while let Ok((question, reply)) = asked.recv() {
            let answer = store.settle(&question, clock::now())?;
            store.recall(&answer, clock::now())?;
            let _ = reply.send(()); // a client that has gone away has no use for it
        }
        Ok::<(), meterd::authority::store::StoreError>(())
    });
    let asks = Arc::new(asks);
    let rate = drive((0..CLIENTS).collect(), length, |nth: &mut usize, number| {
        let (reply, answered) = bounded(1);
        let settlement = Settlement { request: question(*nth, &account(*nth), number)?, journal: Head::START, limits: Limits::default() };
        asks.send((Digested::new(settlement), reply)).map_err(|_| "the store has ended")?;
        Ok(answered.recv()?)
    })?;
    drop(asks);
    server.join().map_err(|_| "the store's thread panicked")??;
    Ok(rate)
}
