//! A process that is killed (SIGKILL) in mid-traffic loses nothing that it acknowledged.

#![expect(clippy::unwrap_used, reason = "a test says what went wrong by its panic")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use meterd::authority::store::Store;
use meterd::domain::batch::{Batch, Row};
use meterd::domain::bucket::Bucket;
use meterd::domain::id::{BootId, Epoch};
use meterd::domain::ledger::{ClosePolicy, Payment, PaymentState, Terms, check};
use meterd::domain::money::Credits;
use meterd::domain::time::{Mono, Now, Wall};
use meterd::domain::wire::{AccountPolicy, PROTOCOL, Request, RequestEntry, UNIT};
use meterd::node::journal::{Journal, Keep, verify};

/// Set in the child: where it works.
const DIR: &str = "METERD_TEST_KILLED_DIR";

fn child_dir() -> Option<PathBuf> {
    std::env::var_os(DIR).map(PathBuf::from)
}

/// Says that this much is durable.
fn acknowledge(number: u64) {
    let mut out = std::io::stdout();
    writeln!(out, "ACK {number}").and_then(|()| out.flush()).expect("the parent reads until it kills");
}

/// Runs `test` of this file in a child, kills it after so many acknowledgements, and returns the last one that was read.
fn killed_after(test: &str, acknowledgements: usize, dir: &Path) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let acks = lines.map_while(Result::ok).filter_map(|line| line.split_once("ACK ").and_then(|(_, number)| number.parse().ok()));
    let last = acks.take(acknowledgements).last();
    child.kill().unwrap();
    child.wait().unwrap();
    last.expect("the child acknowledged something")
}

fn request(number: u64) -> Request {
    let entry = RequestEntry {
        account: "acme".parse().unwrap(),
        unit: UNIT.to_owned(),
        granted_seen: Credits::ZERO,
        returned: Credits::ZERO,
        spent: Credits::from_nano(i128::from(number)),
        unfunded: Credits::ZERO,
        owed: Credits::ZERO,
        burn_per_s: Credits::from_nano(1_000_000),
        at_least: Credits::ZERO,
        validity: None,
        proof: None,
    };
    let (node, epoch, boot) = ("node".parse().unwrap(), Epoch([1; 16]), BootId([1; 16]));
    Request {
        protocol: PROTOCOL,
        node,
        epoch,
        boot,
        request: number,
        previous: Vec::new(),
        entries: vec![entry],
        generation_seen: 0,
        history: None,
        gangs: Vec::new(),
        refunds: Vec::new(),
    }
}

fn store(dir: &Path) -> Store {
    Store::open(&dir.join("authority.db"), ClosePolicy::OnSuccessor, Mono(0)).unwrap()
}

#[test]
fn a_killed_authority_has_booked_all_that_it_answered() {
    let now = Now { wall: Wall(1_800_000_000_000), ..Now::default() };
    if let Some(dir) = child_dir() {
        let mut store = store(&dir);
        store.create_account("acme".parse().unwrap(), AccountPolicy::default(), Terms::default(), now).unwrap();
        let payment = Payment::deposit("p".parse().unwrap(), Bucket::Paid, Credits::from_nano(1 << 60));
        store.pay(&"acme".parse().unwrap(), &payment, PaymentState::Completed, now).unwrap();
        store.answer(&request(1), now).unwrap();
        for number in 2.. {
            store.answer(&request(number), now).unwrap();
            acknowledge(number);
        }
    }
    for acknowledgements in [1, 30, 90] {
        let dir = tempfile::tempdir().unwrap();
        let last = killed_after("a_killed_authority_has_booked_all_that_it_answered", acknowledgements, dir.path());
        let account = store(dir.path()).account(&"acme".parse().unwrap()).unwrap();
        check(&account).unwrap();
        assert!(Credits::from_nano(i128::from(last)) <= account.settled, "{last} was answered, {} is booked", account.settled);
    }
}

#[test]
fn a_killed_journal_has_all_that_it_said_is_durable() {
    if let Some(dir) = child_dir() {
        let (mut journal, _) = Journal::open(&dir, Keep::default()).unwrap();
        for seq in 1_u64.. {
            let checkpoint = seq.is_multiple_of(7).then(|| seq.to_be_bytes().to_vec());
            let rows = vec![Row { wall: Wall(seq), bytes: seq.to_be_bytes().to_vec() }];
            journal.commit(&Batch { first_seq: seq, rows, checkpoint, ..Batch::default() }).unwrap();
            acknowledge(seq);
        }
    }
    for acknowledgements in [1, 30, 150] {
        let dir = tempfile::tempdir().unwrap();
        let last = killed_after("a_killed_journal_has_all_that_it_said_is_durable", acknowledgements, dir.path());
        let (_, recovered) = Journal::open(dir.path(), Keep::default()).unwrap();
        assert!(last <= recovered.head.seq, "{last} was said to be durable, {} are there", recovered.head.seq);
        assert!(recovered.facts.iter().all(|(seq, bytes)| *bytes == seq.to_be_bytes()));
        assert_eq!(verify(dir.path()).unwrap().head, recovered.head);
    }
}

#[test]
fn a_disk_that_is_really_full_leaves_room_for_the_last_readings() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "meterd-test"]).arg(dir.path()).output();
    if !mounted.as_ref().is_ok_and(|output| output.status.success()) {
        println!("NOT RUN mount: no tmpfs can be mounted here ({mounted:?})");
        let required = std::env::var("METERD_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|part| part == "mount"), "METERD_REQUIRE names mount");
        return;
    }
    println!("RAN mount");
    let outcome = std::panic::catch_unwind(|| fill_and_go_on(dir.path()));
    let unmounted = Command::new("umount").arg(dir.path()).status().unwrap();
    assert!(unmounted.success());
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn fill_and_go_on(dir: &Path) {
    use meterd::node::journal::{JournalError, Reserve};
    let commit = |journal: &mut Journal| {
        let rows = vec![Row { wall: Wall(1), bytes: vec![3; 50_000] }];
        journal.commit(&Batch { first_seq: journal.head().seq + 1, rows, ..Batch::default() })
    };
    let (mut journal, _) = Journal::open(dir, Keep::default()).unwrap();
    assert_eq!(journal.reserve(), Reserve::Kept);
    commit(&mut journal).unwrap();
    // Somebody else fills the disk.
    let mut filler = std::fs::File::create(dir.join("filler")).unwrap();
    while filler.write_all(&[0; 4096]).is_ok() {}
    let mut closing = 0;
    let refused = loop {
        match commit(&mut journal) {
            Ok(()) => closing += 1,
            Err(error) => break error,
        }
    };
    println!("{closing} commits of 50 kB found room in the reserve");
    assert!(0 < closing);
    assert!(matches!(refused, JournalError::Full(_)), "{refused}");
    assert_eq!(journal.reserve(), Reserve::InUse);
    std::fs::remove_file(dir.join("filler")).unwrap();
    drop(filler);
    commit(&mut journal).unwrap();
    let head = journal.head();
    drop(journal);
    assert_eq!(verify(dir).unwrap().head, head);
}
