use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::domain::batch::{ReceiptRow, Row};
use crate::domain::id::Attempt;

fn batch(first_seq: u64, rows: u64) -> Batch {
    let row = |seq: u64| Row { wall: Wall(seq * 1_000), bytes: format!("fact {seq}").into_bytes() };
    Batch { first_seq, rows: (first_seq..first_seq + rows).map(row).collect(), ..Batch::default() }
}

fn with_checkpoint(first_seq: u64, rows: u64) -> Batch {
    let batch = batch(first_seq, rows);
    let checkpoint = Some(format!("state {}", batch.last_seq()).into_bytes());
    Batch { checkpoint, ..batch }
}

fn receipt(attempt: u64, job: &str) -> ReceiptRow {
    ReceiptRow { attempt: Attempt(attempt), job: job.parse().unwrap(), ended: Wall(attempt), json: format!("{{\"attempt\":{attempt}}}") }
}

fn open(dir: &Path) -> (Journal, Recovered) {
    Journal::open(dir, Keep::default()).unwrap()
}

/// Ten facts, a checkpoint at the sixth, a receipt record; closed.
fn written(dir: &Path) {
    let (mut journal, _) = open(dir);
    journal.commit(&with_checkpoint(1, 6)).unwrap();
    journal.commit(&Batch { receipts: vec![receipt(1, "a"), receipt(2, "a")], ..batch(7, 4) }).unwrap();
}

#[test]
fn what_was_committed_is_there_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, recovered) = open(dir.path());
    assert_eq!(recovered, Recovered { checkpoint: None, facts: vec![], head: Head::START });
    journal.commit(&with_checkpoint(1, 6)).unwrap();
    journal.commit(&batch(7, 2)).unwrap();
    let head = journal.head();
    // The files as a crash leaves them: copied while the journal is open.
    let copy = tempfile::tempdir().unwrap();
    for name in ["journal.db", "journal.db-wal"] {
        std::fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
    }
    let (_, recovered) = open(copy.path());
    assert_eq!(recovered.checkpoint, Some((6, b"state 6".to_vec())));
    assert_eq!(recovered.facts, [(7, b"fact 7".to_vec()), (8, b"fact 8".to_vec())]);
    assert_eq!(recovered.head, head);
}

#[test]
fn a_second_writer_is_refused_and_readers_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    journal.commit(&Batch { receipts: vec![receipt(1, "a"), receipt(2, "a"), receipt(3, "b")], ..batch(1, 3) }).unwrap();
    assert!(matches!(Journal::open(dir.path(), Keep::default()), Err(JournalError::Locked(_))));
    assert_eq!(read_facts(dir.path(), 2).unwrap().len(), 2);
    assert_eq!(read_receipt(dir.path(), "a").unwrap(), Some(receipt(2, "a")));
    assert_eq!(read_receipts(dir.path(), "a").unwrap().len(), 2);
    assert_eq!(read_receipt(dir.path(), "c").unwrap(), None);
    assert_eq!(verify(dir.path()).unwrap(), Verified { rows: 3, head: journal.head() });
    drop(journal);
    assert_eq!(verify(dir.path()).unwrap().rows, 3, "with nobody there");
    assert!(matches!(verify(&dir.path().join("no")), Err(JournalError::Absent(_))));
}

#[test]
fn rows_that_do_not_follow_are_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    journal.commit(&batch(1, 3)).unwrap();
    let refused = journal.commit_all(&[batch(4, 1), batch(6, 1)]);
    assert!(matches!(refused, Err(JournalError::OutOfSequence { expected: 5, found: 6 })));
    assert_eq!(journal.head().seq, 3);
    journal.commit(&batch(4, 1)).unwrap();
}

#[test]
fn pruned_facts_are_gone_and_the_rest_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let keep = Keep { age: Nanos::from_secs(5), bytes: u64::MAX };
    let (mut journal, _) = Journal::open(dir.path(), keep).unwrap();
    journal.commit(&batch(1, 20)).unwrap();
    assert_eq!(read_facts(dir.path(), 1).unwrap().len(), 20, "no checkpoint holds them");
    journal.commit(&with_checkpoint(21, 10)).unwrap();
    journal.commit(&batch(31, 1)).unwrap();
    assert_eq!(read_facts(dir.path(), 1).unwrap()[0].seq, 25);
    assert_eq!(verify(dir.path()).unwrap(), Verified { rows: 7, head: journal.head() });
    drop(journal);
    let few = Keep { age: Nanos::from_secs(1_000), bytes: 20 };
    let (mut journal, recovered) = Journal::open(dir.path(), few).unwrap();
    assert_eq!(recovered.facts.len(), 1);
    journal.commit(&with_checkpoint(32, 1)).unwrap();
    assert_eq!(read_facts(dir.path(), 1).unwrap().len(), 2);
    journal.keep.bytes = 0;
    journal.commit(&with_checkpoint(33, 1)).unwrap();
    assert_eq!(verify(dir.path()).unwrap().rows, 0);
    drop(journal);
    let (journal, recovered) = open(dir.path());
    assert_eq!((recovered.checkpoint.unwrap().0, journal.head().seq), (33, 33));
}

/// Runs SQL on a closed journal, as an intruder would.
fn tamper(dir: &Path, sql: &str) {
    Connection::open(dir.join(FILE)).unwrap().execute_batch(sql).unwrap();
}

#[test]
fn a_flipped_bit_in_any_fact_is_found_at_its_number() {
    for seq in 1..=10_u64 {
        for column in ["bytes", "chain"] {
            let dir = tempfile::tempdir().unwrap();
            written(dir.path());
            let flip = format!("UPDATE fact SET {column} = CAST(x'00' || substr({column}, 2) AS BLOB) WHERE seq = {seq}");
            tamper(dir.path(), &flip);
            match verify(dir.path()) {
                Err(JournalError::Damaged(Damage::Fact(BadRow::WrongLink { seq: found }))) => assert_eq!(found, seq),
                other => panic!("{seq} {column}: {other:?}"),
            }
            if 6 < seq {
                assert!(matches!(Journal::open(dir.path(), Keep::default()), Err(JournalError::Damaged(_))), "nor does a start take it");
            }
        }
    }
}

#[test]
fn whatever_else_is_changed_is_found() {
    for sql in [
        "UPDATE checkpoint SET bytes = x'00'",
        "UPDATE checkpoint SET seq = 5",
        "UPDATE receipt SET json = '{}' WHERE attempt = 1",
        "UPDATE receipt SET job = 'b' WHERE attempt = 1",
        "DELETE FROM fact WHERE seq = 10",
        "DELETE FROM fact WHERE seq = 4",
        "DELETE FROM fact WHERE seq = 1",
        "UPDATE meta SET seq = 9 WHERE key = 'head'",
        "INSERT INTO fact VALUES (11, 0, x'00', zeroblob(32))",
        "INSERT INTO fact VALUES (0, 0, x'00', zeroblob(32))",
    ] {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path());
        tamper(dir.path(), sql);
        assert!(matches!(verify(dir.path()), Err(JournalError::Damaged(_))), "{sql}");
    }
}

#[test]
fn a_full_file_is_a_state_that_passes_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    journal.commit(&batch(1, 1)).unwrap();
    assert_eq!(journal.reserve(), Reserve::Kept);
    let pages = |journal: &Journal, most: u32| {
        let limited: i64 = journal.connection.query_row(&format!("PRAGMA max_page_count = {most}"), [], |row| row.get(0)).unwrap();
        assert!(0 < limited);
    };
    pages(&journal, 1);
    let large = Batch { rows: vec![Row { wall: Wall(1), bytes: vec![7; 100_000] }], first_seq: 2, ..Batch::default() };
    assert!(matches!(journal.commit(&large), Err(JournalError::Full(_))));
    assert_eq!((journal.head().seq, journal.reserve()), (1, Reserve::InUse), "the room was given up");
    assert!(!dir.path().join("journal.reserve").exists());
    pages(&journal, 1_000_000);
    journal.commit(&large).unwrap();
    for seq in 3..3 + u64::from(COPY_BACK_COMMITS) {
        journal.commit(&batch(seq, 1)).unwrap();
    }
    assert_eq!(journal.reserve(), Reserve::Kept, "and is kept again once there is some");
    drop(journal);
    verify(dir.path()).unwrap();
}

#[test]
fn a_disk_that_stands_still_does_not_keep_the_caller_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let (told, notices) = crossbeam_channel::unbounded();
    let thread = JournalThread::start(journal, move |notice| drop(told.send(notice))).unwrap();
    // Another connection holds the write lock: the thread's commit waits, as for a slow disk.
    let stall = Connection::open(dir.path().join(FILE)).unwrap();
    stall.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut taken = 0;
    let began = Instant::now();
    let busy = loop {
        match thread.submit(batch(taken + 1, 1)) {
            Ok(()) => taken += 1,
            Err(refused) => break refused,
        }
    };
    println!("{taken} batches submitted against a stalled disk in {:?}", began.elapsed());
    assert!(matches!(busy, NotTaken::Busy(_)));
    assert!(notices.try_iter().all(|notice| !matches!(notice, JournalNotice::Durable { .. })), "nothing is durable yet");
    stall.execute_batch("ROLLBACK").unwrap();
    let journal = thread.finish().unwrap();
    assert_eq!(journal.head().seq, taken);
    let durable = notices.try_iter().filter_map(|notice| match notice {
        JournalNotice::Durable { seq, .. } => Some(seq),
        _ => None,
    });
    assert_eq!(durable.last(), Some(taken));
}

#[test]
fn the_thread_says_full_once_keeps_what_it_has_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    journal.connection.query_row("PRAGMA max_page_count = 1", [], |row| row.get::<_, i64>(0)).unwrap();
    let (told, notices) = crossbeam_channel::unbounded();
    let thread = JournalThread::start(journal, move |notice| drop(told.send(notice))).unwrap();
    let large = Batch { rows: vec![Row { wall: Wall(1), bytes: vec![7; 100_000] }], first_seq: 1, ..Batch::default() };
    thread.submit(large).unwrap();
    assert!(matches!(notices.recv_timeout(Duration::from_mins(1)), Ok(JournalNotice::Full(JournalError::Full(_)))));
    assert!(matches!(thread.finish(), Err(JournalError::Full(_))), "and says at the end that it could not");
}

#[test]
fn a_caller_whose_rows_do_not_follow_is_told_and_the_thread_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let (told, notices) = crossbeam_channel::unbounded();
    let thread = JournalThread::start(journal, move |notice| drop(told.send(notice))).unwrap();
    thread.submit(batch(5, 1)).unwrap();
    assert!(matches!(notices.recv_timeout(Duration::from_mins(1)), Ok(JournalNotice::Fatal(JournalError::OutOfSequence { .. }))));
    assert!(matches!(thread.finish(), Err(JournalError::Fatal(_))));
}

/// What may be read back: the first so many of the facts that were written, unchanged, and a checkpoint that was.
fn is_a_prefix(recovered: &Recovered) -> bool {
    let from = recovered.checkpoint.as_ref().map_or(0, |(seq, _)| *seq);
    let right = |(at, (seq, bytes)): (usize, &(u64, Vec<u8>))| *seq == from + 1 + at as u64 && *bytes == format!("fact {seq}").into_bytes();
    let checkpoint = recovered.checkpoint.as_ref().is_none_or(|(seq, bytes)| *bytes == format!("state {seq}").into_bytes());
    checkpoint && recovered.facts.iter().enumerate().all(right) && recovered.head.seq == from + recovered.facts.len() as u64
}

#[test]
fn a_header_of_an_unknown_format_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    journal.commit(&batch(1, 6)).unwrap();
    copy_back(&journal.connection).unwrap();
    drop(journal);
    let path = dir.path().join("journal.db");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[47] = 14; // the schema format number, SQLite's file format section 1.3.8
    std::fs::write(&path, bytes).unwrap();
    assert!(matches!(Journal::open(dir.path(), Keep::default()), Err(JournalError::Damaged(_))));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_torn_or_spoilt_file_gives_what_was_written_or_an_error(
        in_log in any::<bool>(), cut in any::<bool>(), at in any::<prop::sample::Index>(), spoil in prop::collection::vec(any::<u8>(), 1..600),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path());
        for first in (1..60).step_by(6) {
            journal.commit(&if first % 4 == 1 { with_checkpoint(first, 6) } else { batch(first, 6) }).unwrap();
            if first == 31 {
                copy_back(&journal.connection).unwrap();
            }
        }
        let copy = tempfile::tempdir().unwrap();
        for name in ["journal.db", "journal.db-wal"] {
            std::fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
        }
        let path = copy.path().join(if in_log { "journal.db-wal" } else { "journal.db" });
        let mut bytes = std::fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        if cut {
            bytes.truncate(at);
        } else {
            for (byte, spoil) in bytes[at..].iter_mut().zip(&spoil) {
                *byte ^= spoil;
            }
        }
        std::fs::write(&path, bytes).unwrap();
        match Journal::open(copy.path(), Keep::default()) {
            Ok((_, recovered)) => prop_assert!(is_a_prefix(&recovered), "{:?}", recovered),
            // A header that was spoilt in the right place is another program's.
            Err(JournalError::Damaged(_) | JournalError::Foreign(_)) => {}
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}
