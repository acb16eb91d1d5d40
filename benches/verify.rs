//! How fast what was stored is recomputed: 10 million samples in a journal on disk, walked along the chain with every price computed again
//! (`meterctl journal verify`), beside only reading and hashing the same rows; and a replay of the same facts under another card, in
//! job-seconds a second.
//!
//! A sample is one job's second. `cargo bench --bench verify` (`METERD_BENCH_SAMPLES=1000000`). Needs a disk with 80 bytes a sample.

#[cfg(target_arch = "x86_64")]
#[path = "../src/allocator.rs"]
mod allocator;
#[path = "../tests/support/made_log.rs"]
mod made_log;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use made_log::{CARD, facts};
use meterd::domain::batch::{Batch, Row};
use meterd::domain::chain::{Head, Verifier};
use meterd::domain::fact::Fact;
use meterd::domain::money::Credits;
use meterd::domain::rates::Card;
use meterd::domain::replay::{Replay, Repriced, reprice};
use meterd::domain::time::Wall;
use meterd::node::journal::{self, Journal, JournalError, Keep};

/// Jobs that run at once.
const JOBS: u64 = 1_000;
/// Facts of one commit.
const COMMIT: usize = 64;

const DRAFT: &str = "card = \"draft\"\nversion = 2\neffective_from = \"2026-01-01T00:00:00Z\"\n\
    [[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"0.03\"\nunit = \"core-hour\"\n\
    [[line]]\nid = \"wall\"\nmeter = \"wall_time\"\nprice = \"0.02\"\nunit = \"hour\"\n";

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("verify bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn card(text: &str) -> Result<Card, Failure> {
    Card::parse(text, "card.toml").map_err(|mistakes| format!("{mistakes:?}").into())
}

fn bench() -> Result<(), Failure> {
    let wanted: u64 = std::env::var("METERD_BENCH_SAMPLES").map_or(Ok(10_000_000), |text| text.parse())?;
    let dir = tempfile::tempdir()?;
    let began = Instant::now();
    let bytes = write(dir.path(), wanted.div_ceil(JOBS))?;
    println!("{wanted} samples of {JOBS} jobs: {} MB of facts, written in {} ms", bytes / 1_000_000, began.elapsed().as_millis());

    let before = bare(dir.path())?;
    let began = Instant::now();
    let found = journal::audit(dir.path(), None)?;
    let took = began.elapsed();
    let after = bare(dir.path())?;
    let limit = (before + after) / 2;
    if found.counts.samples != wanted.div_ceil(JOBS) * JOBS {
        return Err(format!("{} samples were recomputed", found.counts.samples).into());
    }
    let each = took.as_nanos() / u128::from(found.counts.samples);
    println!("read and hashed alone: {} ms before, {} ms after", before.as_millis(), after.as_millis());
    println!("verified: {} ms, {each} ns a sample = {} x reading and hashing", took.as_millis(), times(took, limit));
    println!(
        "10 million samples: {} ms (the aim: under 10000)",
        u128::from(10_000_000_u32) * took.as_nanos() / u128::from(found.counts.samples) / 1_000_000
    );

    let (took, repriced) = replayed(dir.path())?;
    let a_second = u128::from(found.counts.samples) * 1_000_000_000 / took.as_nanos();
    let (was, would): (Vec<Credits>, Vec<Credits>) = repriced.iter().map(|job| (job.was, job.would)).unzip();
    let sum = |amounts: Vec<Credits>| amounts.into_iter().sum::<Credits>();
    println!("replayed: {} jobs were charged {}, under the draft {}", repriced.len(), sum(was), sum(would));
    println!(
        "replay: {} ms, {a_second} job-seconds a second = {} x reading and hashing (the aim: 1000000 a second)",
        took.as_millis(),
        times(took, limit)
    );
    Ok(())
}

fn times(took: Duration, limit: Duration) -> String {
    let percent = took.as_nanos() * 100 / limit.as_nanos().max(1);
    format!("{}.{:02}", percent / 100, percent % 100)
}

/// Writes the journal; how many bytes of facts it holds.
fn write(dir: &Path, seconds: u64) -> Result<u64, Failure> {
    let (mut journal, _) = Journal::open(dir, Keep::default())?;
    let card = card(CARD)?;
    let (mut first_seq, mut bytes, mut rows) = (1, 0, Vec::new());
    let mut failed: Option<JournalError> = None;
    let mut commit = |rows: &mut Vec<Row>| {
        let batch = Batch { first_seq, rows: std::mem::take(rows), ..Batch::default() };
        first_seq = batch.last_seq() + 1;
        if let Err(error) = journal.commit(&batch) {
            failed.get_or_insert(error);
        }
    };
    facts(&card, JOBS, seconds, &mut |fact: Fact| {
        let encoded = fact.encode();
        bytes += encoded.len() as u64;
        rows.push(Row { wall: Wall(0), bytes: encoded });
        if rows.len() == COMMIT {
            commit(&mut rows);
        }
    });
    commit(&mut rows);
    failed.map_or(Ok(bytes), |error| Err(error.into()))
}

/// Reads the rows and walks the chain: what verifying cannot do without.
fn bare(dir: &Path) -> Result<Duration, JournalError> {
    let began = Instant::now();
    let mut walk = Verifier::behind(Head::START);
    journal::for_each_linked(dir, 1, |fact, link| walk.row(fact.seq, &fact.bytes, link).map_err(|bad| JournalError::Damaged(bad.into())))?;
    Ok(began.elapsed())
}

/// Every job of the journal, priced by the draft.
fn replayed(dir: &Path) -> Result<(Duration, Vec<Repriced>), Failure> {
    let draft = card(DRAFT)?;
    let began = Instant::now();
    let mut replay = Replay::default();
    let mut repriced = Vec::new();
    journal::for_each_fact(dir, 1, |fact| {
        let fact = Fact::decode(&fact.bytes).map_err(|error| JournalError::Fatal(error.to_string()))?;
        repriced.extend(replay.take(&fact).and_then(|job| reprice(&job, &draft).ok()));
        Ok::<(), JournalError>(())
    })?;
    Ok((began.elapsed(), repriced))
}
