use std::path::Path;

use super::*;
use crate::domain::bucket::Bucket;
use crate::domain::gang::{GangWord, Want};
use crate::domain::id::BootId;
use crate::domain::ledger::{ClosePolicy, Payment, PaymentState, Terms, Trust};
use crate::domain::money::Credits;
use crate::domain::time::{Boot, Mono, Nanos, Now, Wall};
use crate::domain::wire::{AccountPolicy, PROTOCOL, RequestEntry, UNIT};

const CLOSE_AFTER: u64 = 667;

fn at(secs: u64) -> Now {
    Now { mono: Mono(secs * 1_000_000_000), boot: Boot(secs * 1_000_000_000), wall: Wall(1_800_000_000_000 + secs * 1_000) }
}

fn gang() -> GangId {
    GangId { account: "lab".parse().unwrap(), name: "mpi-17".parse().unwrap(), attempt: 1 }
}

fn opened(dir: &Path, secs: u64) -> Store {
    Store::open(&dir.join("authority.db"), ClosePolicy::AfterSilence(Nanos::from_secs(CLOSE_AFTER)), at(secs).mono).unwrap()
}

fn with_account(dir: &Path) -> Store {
    let mut store = opened(dir, 0);
    let lab = "lab".parse().unwrap();
    store.create_account("lab".parse().unwrap(), AccountPolicy::default(), Terms::default(), at(0)).unwrap();
    let payment = Payment::deposit("p".parse().unwrap(), Bucket::Paid, "1000".parse().unwrap());
    store.pay(&lab, &payment, PaymentState::Completed, at(0)).unwrap();
    store
}

fn request(nth: u8, number: u64, words: &[(u64, Says, u64)]) -> Request {
    let entry = RequestEntry {
        account: "lab".parse().unwrap(),
        unit: UNIT.to_owned(),
        granted_seen: Credits::ZERO,
        returned: Credits::ZERO,
        spent: Credits::ZERO,
        unfunded: Credits::ZERO,
        owed: Credits::ZERO,
        burn_per_s: Credits::from_nano(1),
        at_least: Credits::ZERO,
        validity: None,
        proof: None,
    };
    let word = |(part, says, version): &(u64, Says, u64)| GangWord { gang: gang(), part: Attempt(*part), says: *says, version: *version };
    Request {
        protocol: PROTOCOL,
        node: node(nth),
        epoch: Epoch([nth; 16]),
        boot: BootId([nth; 16]),
        request: number,
        previous: Vec::new(),
        entries: vec![entry],
        generation_seen: 0,
        history: None,
        gangs: words.iter().map(word).collect(),
        refunds: Vec::new(),
    }
}

fn node(nth: u8) -> NodeId {
    format!("n{nth}").parse().unwrap()
}

/// What the answer says of the gang.
fn said(store: &mut Store, request: &Request, secs: u64) -> (Want, u64) {
    let answer = store.answer(request, at(secs)).unwrap();
    let [want] = answer.gangs.as_slice() else { panic!("{:?}", answer.gangs) };
    assert_eq!(want.gang, gang());
    (want.want, want.version)
}

#[test]
fn a_register_lives_through_restarts_and_tells_the_other_nodes_what_has_changed() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = with_account(dir.path());
    assert_eq!(said(&mut store, &request(1, 1, &[(4, Says::Runs, 0)]), 1), (Want::Run, 1));
    assert_eq!(said(&mut store, &request(2, 1, &[(9, Says::Runs, 0)]), 1), (Want::Run, 1));
    assert!(store.gang_news().is_empty());
    assert_eq!(said(&mut store, &request(1, 2, &[(4, Says::Dry, 1)]), 2), (Want::Freeze, 2));
    let news = store.gang_news();
    assert_eq!(news.iter().map(|push| (push.want.version, push.nodes.clone())).collect::<Vec<_>>(), [(2, vec![node(2)])]);
    assert_eq!(news[0].want.dry, Some(node(1)));
    drop(store);
    let mut store = opened(dir.path(), 3);
    assert_eq!(store.gangs_of(&node(2)).unwrap(), [news[0].want.clone()], "told at the beginning of a stream");
    assert_eq!(said(&mut store, &request(1, 3, &[(4, Says::Ready, 2)]), 3), (Want::Freeze, 2));
    drop(store);
    let mut store = opened(dir.path(), 4);
    assert_eq!(said(&mut store, &request(2, 2, &[(9, Says::Ready, 2)]), 4), (Want::Run, 3));
    assert_eq!(store.gang_news()[0].nodes, [node(1)]);
    assert!(store.gangs_of(&node(3)).unwrap().is_empty());
}

#[test]
fn a_late_or_repeated_question_changes_no_register() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = with_account(dir.path());
    let dry = request(1, 2, &[(4, Says::Dry, 1)]);
    store.answer(&request(1, 1, &[(4, Says::Runs, 0)]), at(1)).unwrap();
    assert_eq!(said(&mut store, &dry, 1), (Want::Freeze, 2));
    assert_eq!(said(&mut store, &request(1, 3, &[(4, Says::Ready, 2)]), 2), (Want::Run, 3));
    for old in [&dry, &request(1, 1, &[(4, Says::Runs, 0)])] {
        assert!(store.answer(old, at(3)).unwrap().gangs.is_empty(), "no news of it");
    }
    assert_eq!(said(&mut store, &request(1, 4, &[(4, Says::Runs, 3)]), 4), (Want::Run, 3));
    let foreign = Request { entries: Vec::new(), ..request(1, 5, &[(4, Says::Dry, 3)]) };
    assert!(store.answer(&foreign, at(5)).unwrap().gangs.is_empty(), "of an account that has no entry");
}

#[test]
fn the_last_part_takes_the_register_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = with_account(dir.path());
    let rows = |store: &Store| -> i64 {
        let sql = "SELECT (SELECT count(*) FROM gang) + (SELECT count(*) FROM gang_part)";
        store.connection.query_row(sql, [], |row| row.get(0)).unwrap()
    };
    store.answer(&request(1, 1, &[(4, Says::Runs, 0), (5, Says::Runs, 0)]), at(1)).unwrap();
    store.answer(&request(2, 1, &[(9, Says::Runs, 0)]), at(1)).unwrap();
    assert_eq!(rows(&store), 4);
    store.answer(&request(1, 2, &[(4, Says::Left, 1), (5, Says::Left, 1)]), at(2)).unwrap();
    assert_eq!(said(&mut store, &request(2, 2, &[(9, Says::Dry, 1)]), 2), (Want::Freeze, 2), "two parts have gone, one is there");
    assert_eq!(said(&mut store, &request(2, 3, &[(9, Says::Ready, 2)]), 2), (Want::Run, 3));
    assert_eq!(rows(&store), 4);
    store.answer(&request(2, 4, &[(9, Says::Left, 3)]), at(3)).unwrap();
    assert_eq!(rows(&store), 0);
    assert!(store.gang_news().iter().all(|push| !push.nodes.contains(&node(1))), "who has left hears nothing");
    store.answer(&request(2, 5, &[(9, Says::Left, 3)]), at(3)).unwrap();
    assert_eq!(rows(&store), 0, "said again, of a register that has gone");
}

#[test]
fn a_node_that_died_holds_the_others_up_until_its_epoch_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = with_account(dir.path());
    store.answer(&request(1, 1, &[(4, Says::Runs, 0)]), at(1)).unwrap();
    store.answer(&request(2, 1, &[(9, Says::Runs, 0)]), at(1)).unwrap();
    assert_eq!(said(&mut store, &request(1, 2, &[(4, Says::Dry, 1)]), 2), (Want::Freeze, 2));
    assert_eq!(said(&mut store, &request(1, 3, &[(4, Says::Ready, 2)]), CLOSE_AFTER), (Want::Freeze, 2));
    assert_eq!(said(&mut store, &request(1, 4, &[(4, Says::Ready, 2)]), CLOSE_AFTER + 1), (Want::Run, 3));
}

#[test]
fn a_store_put_back_from_a_copy_does_not_wait_for_parts_that_have_left_since() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = with_account(dir.path());
    store.answer(&request(1, 1, &[(4, Says::Runs, 0)]), at(1)).unwrap();
    store.answer(&request(2, 1, &[(9, Says::Runs, 0)]), at(1)).unwrap();
    // Since the copy the first node's part has left, and two versions have passed.
    store.transact(|books| books.recover(Trust::Proofs, 0, at(1))).unwrap();
    assert!(store.answer(&request(1, 7, &[]), at(2)).unwrap().gangs.is_empty());
    assert_eq!(said(&mut store, &request(2, 5, &[(9, Says::Dry, 3)]), 3), (Want::Freeze, 4), "above whatever was heard");
    assert_eq!(said(&mut store, &request(2, 6, &[(9, Says::Ready, 4)]), 4), (Want::Run, 5));
}

/// A store that was put back without anybody's knowing of it waited for a part that had left, and the others stood still for good (fleet 10020482).
#[test]
fn a_part_of_which_its_node_does_not_speak_any_more_is_waited_for_no_longer() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = with_account(dir.path());
    store.answer(&request(1, 1, &[(4, Says::Runs, 0)]), at(1)).unwrap();
    store.answer(&request(2, 1, &[(9, Says::Runs, 0)]), at(1)).unwrap();
    assert_eq!(said(&mut store, &request(2, 2, &[(9, Says::Dry, 1)]), 2), (Want::Freeze, 2));
    assert_eq!(said(&mut store, &request(2, 3, &[(9, Says::Ready, 2)]), 3), (Want::Freeze, 2), "the first node has not been heard");
    assert!(store.answer(&request(1, 7, &[]), at(4)).unwrap().gangs.is_empty());
    assert_eq!(said(&mut store, &request(2, 4, &[(9, Says::Ready, 2)]), 5), (Want::Run, 3));
}
