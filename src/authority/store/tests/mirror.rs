//! Accounts that follow an engine: refused by hand, told once, and remembered over restarts.

use super::*;
use crate::authority::store::mirror::{Draft, Followed, Mirroring, Outcome};
use crate::domain::ledger::Allowance;
use crate::domain::mirror::{Drawn, Reading};

const RULES: Mirroring = Mirroring {
    settles_within: Nanos::from_secs(60),
    stale_after: Nanos::from_secs(600),
    drawn: Drawn::ByOthersToo,
    event_every: Nanos::from_secs(10),
    event_age_max: Nanos::from_secs(86_400),
};

fn at(secs: u64) -> Now {
    Now { mono: Mono(Nanos::from_secs(1_000 + secs).0), wall: Wall(1_800_000_000_000 + secs * 1_000), ..Now::default() }
}

fn following(dir: &tempfile::TempDir, secs: u64) -> Store {
    let mut store = opened(dir);
    store.create_account(name("acme"), AccountPolicy::default(), Terms::default(), at(secs)).unwrap();
    store.enrol(Some(RULES), |_| true, at(secs)).unwrap();
    store
}

fn says(store: &mut Store, balance: i128, secs: u64) -> Followed {
    let Now { mono, wall, .. } = at(secs);
    store.follow(&name("acme"), &Reading { balance: credits(balance), asked: mono, asked_wall: wall, as_of: None }, at(secs)).unwrap()
}

fn body(draft: &Draft) -> String {
    format!("{draft:?}")
}

fn holds(store: &mut Store) -> Credits {
    store.account(&name("acme")).unwrap().holds()
}

fn uses(store: &mut Store, number: u64, spent: i128, secs: u64) -> Verdict {
    let mut asked = entry("acme", spent);
    asked.owed = credits(5);
    // One that knows of generations knows all words.
    let request = Request { generation_seen: 1, ..request(1, number, vec![asked]) };
    store.answer(&request, at(secs)).unwrap().entries[0].verdict
}

#[test]
fn use_becomes_one_event_that_is_acknowledged_once_and_shown_when_the_engine_has_had_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = following(&dir, 0);
    assert!(matches!(says(&mut store, 100, 0), Followed::Moved(_)));
    uses(&mut store, 1, 0, 1);
    uses(&mut store, 2, 3, 2);
    assert_eq!(store.put_into_events(body, at(3)).unwrap(), 1);
    uses(&mut store, 3, 5, 20);
    assert_eq!(store.put_into_events(body, at(20)).unwrap(), 0, "one event is under way");
    let sent = store.events_to_send(10, at(20)).unwrap();
    assert_eq!((sent.len(), sent[0].draft.amount, sent[0].draft.at), (1, credits(3), at(3).wall));
    let taken = [(sent[0].draft.id.clone(), Outcome::Taken)];
    assert_eq!((store.events_told(&taken, at(21)).unwrap(), store.events_told(&taken, at(22)).unwrap()), ((1, 0), (0, 0)));
    // The engine shows the three at once; nobody can know that before a minute has passed.
    says(&mut store, 97, 30);
    assert_eq!(holds(&mut store), credits(92), "97, less 3 that it may not show yet, less 2 that it was not told of");
    says(&mut store, 97, 81);
    assert_eq!(holds(&mut store), credits(95));
    assert_eq!(store.put_into_events(body, at(82)).unwrap(), 1);
    assert_eq!(store.events_to_send(10, at(82)).unwrap()[0].draft.amount, credits(2));
}

#[test]
fn a_restart_forgets_no_event_and_no_balance_and_repeats_an_event_word_for_word() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = following(&dir, 0);
    says(&mut store, 100, 0);
    uses(&mut store, 1, 0, 1);
    uses(&mut store, 2, 3, 2);
    store.put_into_events(body, at(3)).unwrap();
    let before = store.events_to_send(10, at(3)).unwrap();
    drop(store);
    let mut store = following(&dir, 500);
    assert_eq!(store.events_to_send(10, at(500)).unwrap(), before);
    assert_eq!(uses(&mut store, 3, 3, 600), Verdict::Granted, "the last word is ten minutes old");
    assert_eq!(uses(&mut store, 4, 3, 601), Verdict::Stale);
    assert!(Verdict::Stale.prolongs(), "what is held stays good");
    says(&mut store, 100, 602);
    assert_eq!(uses(&mut store, 5, 3, 602), Verdict::Granted);
}

#[test]
fn what_is_refused_is_shown_and_tried_again_and_what_is_too_old_is_not_sent_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = following(&dir, 0);
    says(&mut store, 100, 0);
    uses(&mut store, 1, 0, 1);
    uses(&mut store, 2, 3, 2);
    store.put_into_events(body, at(3)).unwrap();
    let id = store.events_to_send(10, at(3)).unwrap()[0].draft.id.clone();
    let refused = Outcome::Refused { code: "refused_422", why: "no such\u{7} code".to_owned() };
    assert_eq!(store.events_told(&[(id, refused)], at(4)).unwrap(), (0, 1));
    assert_eq!(store.events_to_send(10, at(4)).unwrap(), []);
    let view = store.mirrored(at(5)).unwrap();
    assert_eq!((view.refused, view.waiting, view.troubled[0].why.as_str()), (1, 0, "refused_422: no such code"));
    assert_eq!(store.try_refused_again().unwrap(), 1);
    assert_eq!(store.events_to_send(10, at(86_403)).unwrap().len(), 1);
    assert_eq!(store.events_to_send(10, at(86_404)).unwrap(), []);
    assert_eq!(store.mirrored(at(86_404)).unwrap().too_old, 1);
    says(&mut store, 100, 86_404);
    assert_eq!(holds(&mut store), credits(97), "it stays subtracted");
    uses(&mut store, 3, 4, 86_405);
    assert_eq!(store.put_into_events(body, at(86_405)).unwrap(), 1, "and holds up nothing");
}

#[test]
fn nobody_pays_by_hand_or_gives_credit_that_the_engine_does_not_know() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = following(&dir, 0);
    store.create_account(name("free"), AccountPolicy::default(), Terms::default(), at(0)).unwrap();
    let allowance = Terms { allowance: Some(Allowance { amount: credits(1), day: 1 }), ..Terms::default() };
    store.create_account(name("monthly"), AccountPolicy::default(), allowance.clone(), at(0)).unwrap();
    assert_eq!(top_up(&mut store, "acme", Bucket::Paid, 1, "p").unwrap_err().code(), "account_mirrored");
    assert_eq!(store.revoke(&name("acme"), None, &name("r"), at(0)).unwrap_err().code(), "account_mirrored");
    assert_eq!(store.revoke(&name("free"), None, &name("engine/1"), at(0)).unwrap_err().code(), "reserved_name");
    let moved = Payment { purpose: Purpose::Transfer(name("acme")), ..Payment::deposit(name("t"), Bucket::Paid, credits(1)) };
    assert_eq!(store.pay(&name("free"), &moved, PaymentState::Completed, at(0)).unwrap_err().code(), "account_mirrored");
    let terms = store.set_policy(&name("acme"), AccountPolicy::default(), allowance, at(0));
    assert_eq!(terms.unwrap_err().code(), "account_mirrored");
    let (on, cannot) = store.enrol(Some(RULES), |id| id.as_str() != "free", at(0)).unwrap();
    assert_eq!((on, cannot), (vec![name("acme")], vec![name("monthly")]));
    // Let go, it is the authority's own again; taken up again, it tells nothing of what was used between.
    store.enrol(None, |_| false, at(1)).unwrap();
    top_up(&mut store, "acme", Bucket::Paid, 9, "p").unwrap();
    uses(&mut store, 1, 0, 2);
    uses(&mut store, 2, 4, 3);
    store.enrol(Some(RULES), |_| true, at(4)).unwrap();
    assert_eq!(store.put_into_events(body, at(4)).unwrap(), 0);
}

#[test]
fn an_older_balance_and_one_beyond_all_bounds_are_no_balances() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = following(&dir, 0);
    says(&mut store, 100, 50);
    assert_eq!(says(&mut store, 200, 49), Followed::Older);
    assert_eq!(says(&mut store, 100, 51), Followed::Same);
    assert_eq!(says(&mut store, 10_i128.pow(18), 52), Followed::TooLarge);
    let Now { mono, wall, .. } = at(60);
    let mut with_time = |balance: i128, as_of: u64| {
        let reading = Reading { balance: credits(balance), asked: mono, asked_wall: wall, as_of: Some(at(as_of).wall) };
        store.follow(&name("acme"), &reading, at(60)).unwrap()
    };
    assert!(matches!(with_time(70, 55), Followed::Moved(_)));
    assert_eq!(with_time(100, 54), Followed::Older);
    assert_eq!(holds(&mut store), credits(70));
    assert!(matches!(says(&mut store, -3, 61), Followed::Moved(_)), "below zero is nothing left");
    assert_eq!(holds(&mut store), Credits::ZERO);
    assert_eq!(
        store.follow(&name("nobody"), &Reading { balance: credits(1), asked: mono, asked_wall: wall, as_of: None }, at(62)).unwrap(),
        Followed::NotMirrored
    );
}
