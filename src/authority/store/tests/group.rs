//! Questions that wait share a commit, and nothing else.

use std::path::Path;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::*;
use crate::domain::id::NodeId;

/// The commits that stand in the write-ahead log: frames that name the file's size.
fn commits(db: &Path) -> usize {
    let log = std::fs::read(format!("{}-wal", db.display())).unwrap();
    let word = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().unwrap());
    let frame = usize::try_from(word(8)).unwrap() + 24;
    (32..log.len()).step_by(frame).filter(|at| word(at + 4) != 0).count()
}

/// An authority whose thread waits, in what it tells of a top-up, for the test's word.
fn waiting(store: Store) -> (Embedded, Sender<()>, Receiver<Notice>) {
    let (go, word) = bounded::<()>(1);
    let (told, notices) = unbounded();
    let (began, begins) = bounded(1);
    let notice = move |notice: Notice| {
        if matches!(notice, Notice::Push(..)) {
            began.send(()).unwrap();
            word.recv().unwrap();
        }
        told.send(notice).unwrap();
    };
    let embedded = Embedded::start(store, now, notice).unwrap();
    embedded.top_up(name("acme"), Bucket::Paid, credits(1), name("last")).unwrap();
    begins.recv().unwrap();
    (embedded, go, notices)
}

fn from(node: u8, number: u64, entries: Vec<RequestEntry>) -> Request {
    Request { node: name::<NodeId>(&format!("n{node}")), ..request(node, number, entries) }
}

fn fleet(dir: &tempfile::TempDir) -> Store {
    let close = ClosePolicy::AfterSilence(Nanos::from_secs(667));
    let mut store = Store::open(&dir.path().join("authority.db"), close, now().mono).unwrap();
    store.create_account(name("acme"), AccountPolicy::default(), Terms::default(), now()).unwrap();
    top_up(&mut store, "acme", Bucket::Paid, 1_000, "p1").unwrap();
    store
}

#[test]
fn questions_that_wait_are_answered_with_one_commit_and_only_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("authority.db");
    let (embedded, go, _notices) = waiting(fleet(&dir));
    let before = commits(&db);
    let (reply, answers) = unbounded();
    for node in 1..=10 {
        let (reply, db) = (reply.clone(), db.clone());
        let answered = move |answer: Answer| reply.send((commits(&db), answer.entries[0].granted)).unwrap();
        embedded.ask(from(node, 1, vec![RequestEntry { owed: credits(5), ..entry("acme", 0) }]), Head::START, answered).unwrap();
    }
    go.send(()).unwrap();
    let answers: Vec<(usize, Credits)> = answers.iter().take(10).collect();
    assert_eq!(answers.iter().map(|(commits, _)| commits - before).collect::<Vec<_>>(), [1; 10], "all in one, and it was there before");
    let granted: Credits = answers.iter().map(|(_, granted)| *granted).sum();
    assert_eq!(embedded.show(name("acme")).unwrap().held, granted);
    embedded.finish().unwrap();
}

#[test]
fn a_question_that_finds_no_room_takes_no_other_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = fleet(&dir);
    let many: Vec<String> = (0..200).map(|nth| format!("a{nth}")).collect();
    for account in &many {
        store.create_account(name(account), AccountPolicy::default(), Terms::default(), now()).unwrap();
    }
    for node in [1, 3] {
        store.answer(&from(node, 1, vec![entry("acme", 0)]), now()).unwrap();
    }
    let pages: i64 = store.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    store.connection.query_row(&format!("PRAGMA max_page_count = {}", pages + 4), [], |row| row.get::<_, i64>(0)).unwrap();
    let (embedded, go, notices) = waiting(store);
    let (reply, answers) = unbounded();
    let small = |node| from(node, 2, vec![entry("acme", 1)]);
    let large = from(2, 1, many.iter().map(|account| entry(account, 0)).collect());
    for question in [small(1), large, small(3)] {
        let reply = reply.clone();
        let answered = move |answer: Answer| reply.send((answer.entries[0].account.clone(), answer.entries[0].settled)).unwrap();
        embedded.ask(question, Head::START, answered).unwrap();
    }
    drop(reply);
    go.send(()).unwrap();
    let acme = (name("acme"), credits(1));
    assert_eq!(answers.iter().collect::<Vec<(AccountId, Credits)>>(), [acme.clone(), acme], "the large one is not answered");
    assert_eq!(embedded.show(name("acme")).unwrap().settled, credits(2));
    assert!(embedded.accounts_of(name("n2")).unwrap().is_empty(), "and nothing of it is stored");
    embedded.finish().unwrap();
    let full = notices.iter().filter(|notice| matches!(notice, Notice::Full(StoreError::Full(_)))).count();
    assert_eq!(full, 1);
}
