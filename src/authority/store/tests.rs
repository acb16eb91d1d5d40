mod accounts;
mod group;
mod kept;
mod mirror;
mod standing;

use std::path::PathBuf;

use super::*;
use crate::authority::embedded::{Change, Embedded, Notice};
use crate::domain::bucket::Bucket;
use crate::domain::id::BootId;
use crate::domain::ledger::EntryKind;
use crate::domain::time::{Nanos, Wall};
use crate::domain::wire::{Limits, PreviousEpoch, Push, RequestEntry, UNIT, Verdict};

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
        validity: None,
        proof: None,
    }
}

fn request(epoch: u8, number: u64, entries: Vec<RequestEntry>) -> Request {
    let (epoch, boot) = (Epoch([epoch; 16]), BootId([epoch; 16]));
    Request {
        protocol: PROTOCOL,
        node: name("node"),
        epoch,
        boot,
        request: number,
        previous: Vec::new(),
        entries,
        generation_seen: 0,
        history: None,
        gangs: Vec::new(),
        refunds: Vec::new(),
    }
}

fn opened(dir: &tempfile::TempDir) -> Store {
    let path: PathBuf = dir.path().join("authority.db");
    Store::open(&path, ClosePolicy::OnSuccessor, Mono(0)).unwrap()
}

fn top_up(store: &mut Store, account: &str, bucket: Bucket, amount: i128, payment: &str) -> Result<(AccountView, Done), Refusal> {
    store.pay(&name(account), &Payment::deposit(name(payment), bucket, credits(amount)), PaymentState::Completed, now())
}

fn with_account(dir: &tempfile::TempDir, amount: i128) -> Store {
    let mut store = opened(dir);
    store.create_account(name("acme"), AccountPolicy::default(), Terms::default(), now()).unwrap();
    top_up(&mut store, "acme", Bucket::Paid, amount, "p1").unwrap();
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
    after.epochs.change_each(|epoch| {
        assert_eq!(epoch.heard_at, Mono(0), "silence starts again with the process");
        epoch.heard_at = now().mono;
    });
    assert_eq!(after, before);
    assert_eq!(store.ledger(&name("acme"), 10).unwrap(), lines);
    assert_eq!(lines.len(), 2, "newest first: {lines:?}");
    assert!(matches!(lines[0].kind, EntryKind::Usage { .. }));
}

#[test]
fn an_admins_wish_is_granted_once_and_refused_with_a_stable_word() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = with_account(&dir, 5);
    assert_eq!(store.create_account(name("acme"), AccountPolicy::default(), Terms::default(), now()).unwrap().1, Done::Before);
    let other = AccountPolicy { grace: Nanos(1), ..AccountPolicy::default() };
    assert_eq!(store.create_account(name("acme"), other, Terms::default(), now()).unwrap_err().code(), "account_exists");
    assert_eq!(store.show(&name("nobody")).unwrap_err().code(), "unknown_account");
    let mut paid = |account, amount, payment| top_up(&mut store, account, Bucket::Paid, amount, payment);
    assert_eq!(paid("acme", 5, "p1").unwrap().1, Done::Before);
    assert_eq!(paid("acme", 6, "p1").unwrap_err().code(), "payment_differs");
    assert_eq!(paid("acme", 0, "p2").unwrap_err().code(), "amount_not_positive");
    assert_eq!(paid("acme", 10_i128.pow(17), "p2").unwrap_err().code(), "amount_too_large");
    assert_eq!(paid("nobody", 1, "p2").unwrap_err().code(), "unknown_account");
    store.create_account(name("other"), AccountPolicy::default(), Terms::default(), now()).unwrap();
    let of_other = top_up(&mut store, "other", Bucket::Paid, 5, "p1");
    assert_eq!(of_other.unwrap_err().code(), "payment_differs", "a payment has one account");
    assert_eq!(store.show(&name("acme")).unwrap().deposited, credits(5));
    assert_eq!(store.list().unwrap().len(), 2);
}

#[test]
fn a_new_epoch_frees_what_the_old_one_held_on_every_account() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = with_account(&dir, 1_000);
    store.create_account(name("other"), AccountPolicy::default(), Terms::default(), now()).unwrap();
    top_up(&mut store, "other", Bucket::Free, 100, "p2").unwrap();
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
    let mut many =
        (0..200).map(|number| store.create_account(name(&format!("a{number}")), AccountPolicy::default(), Terms::default(), now()));
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
    embedded.create_account(name("acme"), AccountPolicy::default(), Terms::default()).unwrap();
    for _ in 0..2 {
        embedded.top_up(name("acme"), Bucket::Paid, credits(10), name("p1")).unwrap();
    }
    let (reply, answers) = crossbeam_channel::bounded(1);
    embedded.ask(request(1, 1, vec![entry("acme", 0)]), Head::START, move |answer| drop(reply.send(answer))).unwrap();
    assert_eq!(answers.recv().unwrap().entries[0].granted, credits(2), "two seconds, near the end");
    assert_eq!(embedded.show(name("acme")).unwrap().held, credits(2));
    embedded.finish().unwrap();
    let pushed: Vec<Notice> = notices.iter().collect();
    assert_eq!(pushed, [Notice::Push(Push { account: name("acme"), version: 2 }, Change::TopUp)]);
}

#[test]
fn the_place_that_a_journal_had_reached_is_kept_by_the_hour_and_never_goes_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = with_account(&dir, 100);
    let place = |seq: u64, link: u8| Head { seq, link: crate::domain::id::Digest([link; 32]) };
    let mut settle = |number: u64, head: Head, hours: u64| {
        let now = Now { wall: Wall(now().wall.0 + hours * 3_600_000), ..now() };
        let request = request(1, number, vec![entry("acme", 0)]);
        store.settle(&Digested::new(Settlement { request, journal: head, limits: Limits::default() }), now).unwrap();
    };
    settle(1, Head::START, 0);
    settle(2, place(5, 5), 0);
    settle(3, place(9, 9), 0);
    settle(3, place(7, 70), 0);
    settle(4, place(9, 90), 0);
    settle(5, place(12, 12), 1);
    let heads = |anchors: Vec<Anchor>| anchors.iter().map(|anchor| anchor.head).collect::<Vec<_>>();
    let kept = vec![place(9, 9), place(12, 12)];
    assert_eq!(heads(store.anchors().unwrap()), kept, "a late or another word on a known place changes nothing");
    drop(store);
    assert_eq!(heads(read_anchors(&dir.path().join("authority.db")).unwrap()), kept);
}

#[test]
fn a_store_from_before_there_were_anchors_is_read_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    drop(with_account(&dir, 100));
    let path = dir.path().join("authority.db");
    rusqlite::Connection::open(&path).unwrap().execute_batch("DROP TABLE anchor").unwrap();
    assert_eq!(read_anchors(&path).unwrap(), []);
    let mut store = opened(&dir);
    let head = Head { seq: 1, link: crate::domain::id::Digest([1; 32]) };
    let request = request(1, 1, vec![entry("acme", 0)]);
    store.settle(&Digested::new(Settlement { request, journal: head, limits: Limits::default() }), now()).unwrap();
    assert_eq!(store.anchors().unwrap().len(), 1);
}

#[test]
fn who_holds_more_than_it_needs_is_told_once_a_second_while_another_node_asks_in_vain() {
    let dir = tempfile::tempdir().unwrap();
    let close = ClosePolicy::AfterSilence(Nanos::from_secs(667));
    let mut store = Store::open(&dir.path().join("authority.db"), close, now().mono).unwrap();
    store.create_account(name("acme"), AccountPolicy::default(), Terms::default(), now()).unwrap();
    let payment = Payment::deposit("p".parse().unwrap(), Bucket::Paid, credits(100));
    store.pay(&name("acme"), &payment, PaymentState::Completed, now()).unwrap();
    let at = |ms: u64| Now { mono: now().mono.plus(Nanos::from_millis(ms)), ..now() };
    let mut ask = |node: u8, number: u64, owed: i128, ms: u64| {
        let mut asked = request(node, number, vec![RequestEntry { owed: credits(owed), ..entry("acme", 0) }]);
        asked.node = format!("n{node}").parse().unwrap();
        let answer = store.answer(&asked, at(ms)).unwrap();
        (answer.entries[0].verdict, store.recall(&answer, at(ms)).unwrap().len())
    };
    assert_eq!(ask(1, 1, 60, 0), (Verdict::Granted, 0), "something is free");
    assert_eq!(ask(2, 1, 40, 10), (Verdict::Final, 1), "both hold what they do not use");
    assert_eq!(ask(3, 1, 5, 20), (Verdict::Exhausted, 0), "they were told a moment ago");
    assert_eq!(ask(3, 2, 5, 1_020), (Verdict::Exhausted, 1));
}
