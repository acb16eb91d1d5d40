//! What is remembered of an account over restarts, and stores of earlier versions.

use super::*;
use crate::domain::ledger::{Alerts, EntryStatus, PendingRefill, RefillTerms, Threshold};
use crate::domain::request::{Amount, Pay, parse_policy};

/// The tables of version 1, with an account, an open epoch, two lines and a payment, as a store of that version held them.
const VERSION_1: &str = r#"
    CREATE TABLE account (id TEXT PRIMARY KEY, policy TEXT NOT NULL, version INTEGER NOT NULL, free TEXT NOT NULL, paid TEXT NOT NULL,
        deposited TEXT NOT NULL, settled TEXT NOT NULL, written_off TEXT NOT NULL, shortfall TEXT NOT NULL) STRICT;
    CREATE TABLE epoch (account TEXT NOT NULL REFERENCES account (id), epoch TEXT NOT NULL, node TEXT NOT NULL, boot TEXT, state TEXT NOT NULL,
        totals TEXT NOT NULL, granted TEXT NOT NULL, returned TEXT NOT NULL, settled TEXT NOT NULL, claimed TEXT NOT NULL,
        unfunded TEXT NOT NULL, shortfall TEXT NOT NULL, last_request INTEGER NOT NULL, last_digest TEXT NOT NULL, burn_per_s TEXT NOT NULL,
        hour TEXT NOT NULL, PRIMARY KEY (account, epoch)) STRICT;
    CREATE INDEX epoch_open ON epoch (node, epoch) WHERE state = 'open';
    CREATE INDEX epoch_id ON epoch (epoch);
    CREATE TABLE ledger (seq INTEGER PRIMARY KEY AUTOINCREMENT, account TEXT NOT NULL REFERENCES account (id), key TEXT NOT NULL,
        at_ms INTEGER NOT NULL, kind TEXT NOT NULL, amount TEXT NOT NULL, free TEXT NOT NULL, paid TEXT NOT NULL, status TEXT NOT NULL,
        UNIQUE (account, key)) STRICT;
    CREATE TABLE payment (id TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES account (id), bucket TEXT NOT NULL, amount TEXT NOT NULL,
        at_ms INTEGER NOT NULL) STRICT;
    INSERT INTO account VALUES ('acme', '{"on_exhaustion":"terminate","grace_ns":7000000000,"warn_before_ns":[60000000000],"start_threshold":"5",
        "start_predicted":"check","enforcement":"enforce","freeze_ttl_ns":null,"then":"terminate","victims":"together","victims_before_ns":300000000000}',
        3, '0', '8.5', '12', '3.5', '0.25', '0');
    INSERT INTO account VALUES ('new', '{"on_exhaustion":"freeze","grace_ns":30000000000,"warn_before_ns":[60000000000],"start_threshold":"0",
        "start_predicted":"ignore","enforcement":"enforce","freeze_ttl_ns":null,"then":"terminate","victims":"together","victims_before_ns":300000000000}',
        1, '0', '0', '0', '0', '0', '0');
    INSERT INTO epoch VALUES ('acme', '01010101010101010101010101010101', 'node', '01010101010101010101010101010101', 'open', 'reported', '5', '0',
        '3.5', '3.5', '0.25', '0', 2, '0000000000000000000000000000000000000000000000000000000000000000', '1',
        '{"hour":500000,"free":"2","paid":"1.5","written_off":"0.25","shortfall":"0"}');
    INSERT INTO ledger (account, key, at_ms, kind, amount, free, paid, status) VALUES
        ('acme', 'deposit/p1', 1800000000000, '{"kind":"deposit","bucket":"paid","payment":"p1"}', '10', '0', '10', 'completed'),
        ('acme', 'deposit/p2', 1800000000000, '{"kind":"deposit","bucket":"free","payment":"p2"}', '2', '2', '0', 'completed'),
        ('acme', 'usage/01010101010101010101010101010101/500000', 1800000000000,
            '{"kind":"usage","epoch":"01010101010101010101010101010101","hour":500000}', '3.5', '2', '1.5', 'accumulating');
    INSERT INTO payment VALUES ('p1', 'acme', 'paid', '10', 1800000000000);
    PRAGMA application_id = 1836348001; PRAGMA user_version = 1;
"#;

fn of_version_1() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let connection = Connection::open(dir.path().join("authority.db")).unwrap();
    connection.execute_batch(VERSION_1).unwrap();
    dir
}

#[test]
fn a_store_of_version_1_opens_with_every_amount_policy_and_line_and_goes_on() {
    let dir = of_version_1();
    let mut store = opened(&dir);
    let view = store.show(&name("acme")).unwrap();
    let amounts = [view.free, view.paid, view.available, view.held, view.deposited, view.settled, view.withdrawn, view.written_off];
    assert_eq!(amounts.map(|amount| amount.to_string()), ["0", "8.5", "7", "1.5", "12", "3.5", "0", "0.25"]);
    assert_eq!((view.policy.on_exhaustion, view.policy.grace), (crate::domain::wire::OnExhaustion::Terminate, Nanos::from_secs(7)));
    assert_eq!((view.terms, view.policy.start_funded), (Terms::default(), None));
    assert_eq!(store.ledger(&name("acme"), 10).unwrap().len(), 3);
    assert_eq!(top_up(&mut store, "acme", Bucket::Paid, 10, "p1").unwrap().1, Done::Before, "its payment is known");
    assert_eq!(top_up(&mut store, "new", Bucket::Free, 4, "p3").unwrap().0.free, credits(4));
    let mut spent = request(1, 3, vec![entry("acme", 4)]);
    spent.entries[0].granted_seen = credits(5);
    assert_eq!(store.answer(&spent, now()).unwrap().entries[0].settled, credits(4));
    drop(store);
    assert_eq!(opened(&dir).show(&name("acme")).unwrap().paid, credits(8), "and opens again");
}

#[test]
fn a_store_of_version_1_can_be_looked_at_before_it_is_brought_up() {
    let dir = of_version_1();
    let path = dir.path().join("authority.db");
    assert_eq!(look(&path, crate::sqlite::Writing::Rests), Ok(()));
    drop(opened(&dir));
    assert_eq!(look(&path, crate::sqlite::Writing::Rests), Ok(()));
}

fn refilled(wait_s: u64) -> Terms {
    let refill = RefillTerms { below: credits(5), amount: credits(20), wait: Nanos::from_secs(wait_s) };
    let alerts = Alerts { percents: vec![50], below: vec![credits(5)], reference: None };
    Terms { refill: Some(refill), alerts, ..Terms::default() }
}

/// An account of 10 that is refilled below 5, of which 6 are spent.
fn crossed(dir: &tempfile::TempDir) -> Store {
    let mut store = opened(dir);
    store.create_account(name("acme"), AccountPolicy::default(), refilled(600), now()).unwrap();
    top_up(&mut store, "acme", Bucket::Paid, 10, "p1").unwrap();
    store.answer(&request(1, 1, vec![RequestEntry { owed: credits(6), ..entry("acme", 0) }]), now()).unwrap();
    let spent = RequestEntry { granted_seen: credits(6), burn_per_s: Credits::ZERO, ..entry("acme", 6) };
    store.answer(&request(1, 2, vec![spent]), now()).unwrap();
    store
}

#[test]
fn d4_a_pending_refill_survives_a_restart_is_told_again_under_its_name_and_lands_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = crossed(&dir);
    let asked = PendingRefill { payment: name("refill/acme/1"), amount: credits(20), asked: now().wall };
    let refill = |notices: Vec<(AccountId, AccountNotice)>| {
        notices.into_iter().filter(|(_, notice)| matches!(notice, AccountNotice::Refill(_))).collect::<Vec<_>>()
    };
    let told = [(name("acme"), AccountNotice::Refill(asked.clone()))];
    assert_eq!(refill(store.notices()), told);
    for _ in 0..3 {
        drop(store);
        store = opened(&dir);
        assert_eq!(refill(store.notices()), told, "the same, and not another");
        store.answer(&request(1, 3, vec![entry("acme", 6)]), now()).unwrap();
        assert_eq!(refill(store.notices()), []);
    }
    assert_eq!(store.show(&name("acme")).unwrap().refill, Some(asked.clone()));
    let settle = |store: &mut Store, came| store.settle_payment(&name("acme"), &asked.payment, came, now());
    let (view, done) = settle(&mut store, PaymentState::Completed).unwrap();
    assert_eq!((view.paid, view.refill, done), (credits(24), None, Done::Now));
    assert_eq!(settle(&mut store, PaymentState::Completed).unwrap().1, Done::Before);
    assert_eq!(settle(&mut store, PaymentState::Failed).unwrap_err().code(), "payment_settled");
    drop(store);
    let mut store = opened(&dir);
    assert_eq!((refill(store.notices()), store.show(&name("acme")).unwrap().paid), (vec![], credits(24)));
    let lines = store.ledger(&name("acme"), 10).unwrap();
    let of_refill: Vec<EntryStatus> =
        lines.iter().filter(|line| matches!(line.kind, EntryKind::Refill { .. })).map(|line| line.status).collect();
    assert_eq!(of_refill, [EntryStatus::Completed], "one line, replaced");
}

#[test]
fn s10_an_alert_is_remembered_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = crossed(&dir);
    let alerts = |notices: Vec<(AccountId, AccountNotice)>| {
        let threshold = |(_, notice)| if let AccountNotice::Alert { threshold, .. } = notice { Some(threshold) } else { None };
        notices.into_iter().filter_map(threshold).collect::<Vec<_>>()
    };
    assert_eq!(alerts(store.notices()), [Threshold::Percent(50), Threshold::Below(credits(5))]);
    drop(store);
    let mut store = opened(&dir);
    store.answer(&request(1, 3, vec![entry("acme", 6)]), now()).unwrap();
    assert!(alerts(store.notices()).is_empty());
    assert_eq!(store.show(&name("acme")).unwrap().alerted.len(), 2);
}

#[test]
fn v11_a_pending_top_up_is_confirmed_by_its_name_and_by_that_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = with_account(&dir, 5);
    let payment = Payment::deposit(name("inv-1"), Bucket::Paid, credits(7));
    let (view, _) = store.pay(&name("acme"), &payment, PaymentState::Pending, now()).unwrap();
    assert_eq!((view.paid, view.version), (credits(5), 2));
    drop(store);
    let mut store = opened(&dir);
    let settle = |store: &mut Store, account: &str, payment: &str| {
        store.settle_payment(&name(account), &name(payment), PaymentState::Completed, now())
    };
    assert_eq!(settle(&mut store, "acme", "inv-2").unwrap_err().code(), "unknown_payment");
    store.create_account(name("other"), AccountPolicy::default(), Terms::default(), now()).unwrap();
    assert_eq!(settle(&mut store, "other", "inv-1").unwrap_err().code(), "unknown_payment");
    assert_eq!(settle(&mut store, "acme", "inv-1").unwrap().0.paid, credits(12));
}

#[test]
fn a_name_of_a_refill_cannot_be_taken_by_anybody() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = with_account(&dir, 5);
    assert_eq!(top_up(&mut store, "acme", Bucket::Paid, 1, "refill/acme/1").unwrap_err().code(), "reserved_name");
}

#[test]
fn s13_credit_moves_between_accounts_in_one_piece() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = with_account(&dir, 9);
    let payment =
        |to: &str, amount| Payment { purpose: Purpose::Transfer(name(to)), ..Payment::deposit(name("m"), Bucket::Paid, credits(amount)) };
    let mut moved = |to: &str, amount| store.pay(&name("acme"), &payment(to, amount), PaymentState::Completed, now());
    assert_eq!(moved("other", 4).unwrap_err().code(), "unknown_account");
    assert_eq!(moved("acme", 4).unwrap_err().code(), "same_account");
    store.create_account(name("other"), AccountPolicy::default(), Terms::default(), now()).unwrap();
    let mut moved = |to: &str, amount| store.pay(&name("acme"), &payment(to, amount), PaymentState::Completed, now());
    assert_eq!(moved("other", 10).unwrap_err().code(), "not_enough");
    assert_eq!(moved("other", 4).unwrap().1, Done::Now);
    assert_eq!(moved("other", 4).unwrap().1, Done::Before);
    assert_eq!(moved("other", 3).unwrap_err().code(), "payment_differs");
    let paid = |store: &mut Store, account: &str| store.show(&name(account)).unwrap().paid;
    assert_eq!((paid(&mut store, "acme"), paid(&mut store, "other")), (credits(5), credits(4)));
    assert_eq!(store.ledger(&name("other"), 10).unwrap().len(), 1);
}

#[test]
fn an_amount_in_another_unit_is_refused_and_nothing_is_booked() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = opened(&dir);
    let (policy, terms) = parse_policy("unit = \"USD\"\ncredits_per_unit = \"100\"", "p.toml").unwrap();
    store.create_account(name("acme"), policy, terms, now()).unwrap();
    let mut in_unit = |unit: &str, amount: &str| {
        let amount = Amount::InUnit { amount: name(amount), unit: name(unit) };
        store.in_credits(&name("acme"), &Pay { amount, ..Pay::deposit(Credits::ZERO, Bucket::Paid, None) }.amount)
    };
    assert_eq!(in_unit("USD", "5").unwrap(), credits(500));
    assert_eq!(in_unit("EUR", "5").unwrap_err().code(), "unit_mismatch");
    assert_eq!(in_unit("USD", "0.0000000000001").unwrap_err().code(), "amount_not_exact");
}

#[test]
fn v9_the_calendar_is_kept_for_accounts_that_nobody_asks_about() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = with_account(&dir, 5);
    let (policy, terms) = parse_policy("[allowance]\namount = \"3\"", "p.toml").unwrap();
    store.create_account(name("given"), policy, terms, now()).unwrap();
    let coupon = Payment { expires: Some(Wall(now().wall.0 + 1_000)).into(), ..Payment::deposit(name("c"), Bucket::Free, credits(2)) };
    store.pay(&name("acme"), &coupon, PaymentState::Completed, now()).unwrap();
    let later = |ms: u64| Now { wall: Wall(now().wall.0 + ms), ..now() };
    assert_eq!(store.keep_calendar(later(999)).unwrap(), []);
    let free = |store: &mut Store, account: &str| store.show(&name(account)).unwrap().free;
    assert_eq!((free(&mut store, "acme"), free(&mut store, "given")), (credits(2), credits(3)));
    assert_eq!(store.keep_calendar(later(1_000)).unwrap(), [], "what lapses is no news for a node");
    assert_eq!(free(&mut store, "acme"), Credits::ZERO);
    let month = 31 * 86_400_000;
    let version = store.show(&name("given")).unwrap().version;
    assert_eq!(store.keep_calendar(later(month)).unwrap(), [Push { account: name("given"), version: version + 1 }]);
    assert_eq!(store.keep_calendar(later(month)).unwrap(), [], "once");
    assert_eq!(free(&mut store, "given"), credits(3));
}

#[test]
fn a9_vouching_is_remembered_and_is_pushed() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = opened(&dir);
    let terms = Terms { verification: crate::domain::ledger::Verification::Required, ..Terms::default() };
    store.create_account(name("acme"), AccountPolicy::default(), terms, now()).unwrap();
    top_up(&mut store, "acme", Bucket::Paid, 5, "p").unwrap();
    let verdict = |store: &mut Store, number| store.answer(&request(1, number, vec![entry("acme", 0)]), now()).unwrap().entries[0].verdict;
    assert_eq!(verdict(&mut store, 1), Verdict::NotVerified);
    assert_eq!(store.verify(&name("acme"), Vouch::Yes, now()).unwrap().1, Done::Now);
    assert_eq!(store.verify(&name("acme"), Vouch::Yes, now()).unwrap().1, Done::Before);
    drop(store);
    assert_eq!(verdict(&mut opened(&dir), 2), Verdict::Granted);
}
