use std::path::PathBuf;

use super::*;
use crate::authority::embedded::{Change, Embedded, Notice};
use crate::domain::id::BootId;
use crate::domain::ledger::EntryKind;
use crate::domain::time::{Nanos, Wall};
use crate::domain::wire::{PreviousEpoch, Push, RequestEntry, UNIT, Verdict};

fn now() -> Now {
    Now { mono: Mono(1), wall: Wall(1_800_000_000_000), ..Now::default() }
}

fn credits(whole: i128) -> Credits {
    Credits::from_nano(whole * 1_000_000_000)
}

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

fn entry(account: &str, spent: i128) -> RequestEntry {
    RequestEntry {
        account: name(account),
        unit: UNIT.to_owned(),
        granted_seen: Credits::ZERO,
        returned: Credits::ZERO,
        spent: credits(spent),
        unfunded: Credits::ZERO,
        owed: Credits::ZERO,
        burn_per_s: credits(1),
        at_least: Credits::ZERO,
    }
}

fn request(epoch: u8, number: u64, entries: Vec<RequestEntry>) -> Request {
    let (epoch, boot) = (Epoch([epoch; 16]), BootId([epoch; 16]));
    Request { protocol: PROTOCOL, node: name("node"), epoch, boot, request: number, previous: Vec::new(), entries }
}

fn opened(dir: &tempfile::TempDir) -> Store {
    let path: PathBuf = dir.path().join("authority.db");
    Store::open(&path, ClosePolicy::OnSuccessor, Mono(0)).unwrap()
}

fn with_account(dir: &tempfile::TempDir, amount: i128) -> Store {
    let mut store = opened(dir);
    store.create_account(name("acme"), AccountPolicy::default()).unwrap();
    store.top_up(&name("acme"), Bucket::Paid, credits(amount), name("p1"), now()).unwrap();
    store
}

#[test]
fn an_account_lives_through_a_restart_to_the_last_field() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = with_account(&dir, 10_000);
    store.answer(&request(1, 1, vec![entry("acme", 0)]), now()).unwrap();
    store.answer(&request(1, 2, vec![entry("acme", 7)]), now()).unwrap();
    let (before, lines) = (store.account(&name("acme")).unwrap(), store.ledger(&name("acme"), 10).unwrap());
    drop(store);
    let mut store = opened(&dir);
    let mut after = store.account(&name("acme")).unwrap();
    for epoch in after.epochs.values_mut() {
        assert_eq!(epoch.heard_at, Mono(0), "silence starts again with the process");
        epoch.heard_at = now().mono;
    }
    assert_eq!(after, before);
    assert_eq!(store.ledger(&name("acme"), 10).unwrap(), lines);
    assert_eq!(lines.len(), 2, "newest first: {lines:?}");
    assert!(matches!(lines[0].kind, EntryKind::Usage { .. }));
}

#[test]
fn an_admins_wish_is_granted_once_and_refused_with_a_stable_word() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = with_account(&dir, 5);
    assert_eq!(store.create_account(name("acme"), AccountPolicy::default()).unwrap().1, Done::Before);
    let other = AccountPolicy { grace: Nanos(1), ..AccountPolicy::default() };
    assert_eq!(store.create_account(name("acme"), other).unwrap_err().code(), "account_exists");
    assert_eq!(store.show(&name("nobody")).unwrap_err().code(), "unknown_account");
    let mut top_up = |account, amount, payment| store.top_up(&name(account), Bucket::Paid, credits(amount), name(payment), now());
    assert_eq!(top_up("acme", 5, "p1").unwrap().1, Done::Before);
    assert_eq!(top_up("acme", 6, "p1").unwrap_err().code(), "payment_differs");
    assert_eq!(top_up("acme", 0, "p2").unwrap_err().code(), "amount_not_positive");
    assert_eq!(top_up("acme", 10_i128.pow(17), "p2").unwrap_err().code(), "amount_too_large");
    assert_eq!(top_up("nobody", 1, "p2").unwrap_err().code(), "unknown_account");
    store.create_account(name("other"), AccountPolicy::default()).unwrap();
    let of_other = store.top_up(&name("other"), Bucket::Paid, credits(5), name("p1"), now());
    assert_eq!(of_other.unwrap_err().code(), "payment_differs", "a payment has one account");
    assert_eq!(store.show(&name("acme")).unwrap().deposited, credits(5));
    assert_eq!(store.list().unwrap().len(), 2);
}

#[test]
fn a_new_epoch_frees_what_the_old_one_held_on_every_account() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = with_account(&dir, 1_000);
    store.create_account(name("other"), AccountPolicy::default()).unwrap();
    store.top_up(&name("other"), Bucket::Free, credits(100), name("p2"), now()).unwrap();
    store.answer(&request(1, 1, vec![entry("acme", 0), entry("other", 0)]), now()).unwrap();
    assert!(store.show(&name("other")).unwrap().held.is_positive());
    let mut next = request(2, 1, vec![entry("acme", 0), entry("nobody", 0)]);
    next.previous = vec![PreviousEpoch { epoch: Epoch([1; 16]), entries: vec![entry("other", 3)] }];
    let answer = store.answer(&next, now()).unwrap();
    assert_eq!(answer.acknowledged, [Epoch([1; 16])]);
    assert_eq!(answer.entries[1].verdict, Verdict::UnknownAccount);
    let other = store.show(&name("other")).unwrap();
    assert_eq!((other.held, other.settled), (Credits::ZERO, credits(3)));
    let late = store.answer(&request(1, 2, vec![entry("acme", 0)]), now()).unwrap();
    assert_eq!(late.entries[0].verdict, Verdict::Closed);
}

#[test]
fn a_message_in_another_protocol_is_no_news() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = with_account(&dir, 10);
    let before = store.account(&name("acme")).unwrap();
    let foreign = Request { protocol: PROTOCOL + 1, ..request(1, 1, vec![entry("acme", 5)]) };
    assert!(store.answer(&foreign, now()).unwrap().entries.is_empty());
    assert_eq!(store.account(&name("acme")).unwrap(), before);
}

#[test]
fn a_full_disk_leaves_a_request_unanswered_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = with_account(&dir, 10);
    let before = store.account(&name("acme")).unwrap();
    store.connection.query_row("PRAGMA max_page_count = 1", [], |row| row.get::<_, i64>(0)).unwrap();
    let mut many = (0..200).map(|number| store.create_account(name(&format!("a{number}")), AccountPolicy::default()));
    let refused = many.find_map(Result::err).unwrap();
    assert_eq!(refused.code(), "store_full");
    assert_eq!(store.account(&name("acme")).unwrap(), before);
    store.connection.query_row("PRAGMA max_page_count = 100000", [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(store.answer(&request(1, 1, vec![entry("acme", 0)]), now()).unwrap().entries[0].verdict, Verdict::Granted);
}

#[test]
fn a_top_up_is_pushed_once_it_is_durable_and_a_repeated_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (told, notices) = crossbeam_channel::unbounded();
    let embedded = Embedded::start(opened(&dir), now, move |notice| drop(told.send(notice))).unwrap();
    embedded.create_account(name("acme"), AccountPolicy::default()).unwrap();
    for _ in 0..2 {
        embedded.top_up(name("acme"), Bucket::Paid, credits(10), name("p1")).unwrap();
    }
    let (reply, answers) = crossbeam_channel::bounded(1);
    embedded.ask(request(1, 1, vec![entry("acme", 0)]), move |answer| drop(reply.send(answer))).unwrap();
    assert_eq!(answers.recv().unwrap().entries[0].granted, credits(2), "two seconds, near the end");
    assert_eq!(embedded.show(name("acme")).unwrap().held, credits(2));
    embedded.finish().unwrap();
    let pushed: Vec<Notice> = notices.iter().collect();
    assert_eq!(pushed, [Notice::Push(Push { account: name("acme"), version: 2 }, Change::TopUp)]);
}
