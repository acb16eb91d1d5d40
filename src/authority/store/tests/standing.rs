//! Recovery, forks and proofs, over the real store.

use super::*;
use crate::authority::store::backup::{backup, restore};
use crate::authority::store::standing::RECOVERY;
use crate::domain::ledger::{Recovery, Trust};
use crate::domain::proof::ProofKey;
use crate::domain::wire::{Answer, History, Said, Validity};

fn at(secs: u64) -> Now {
    Now { mono: Mono(secs * 1_000_000_000), wall: Wall(1_800_000_000_000 + secs * 1_000), ..Now::default() }
}

fn fleet(dir: &tempfile::TempDir, now: Now) -> Store {
    let close = ClosePolicy::AfterSilence(Nanos::from_secs(3_600));
    let mut store = Store::open(&dir.path().join("authority.db"), close, now.mono).unwrap();
    store.prove_with(ProofKey::new([1; 32]));
    store
}

fn funded(dir: &tempfile::TempDir, amount: i128) -> Store {
    let mut store = fleet(dir, at(0));
    store.create_account(name("acme"), AccountPolicy::default(), Terms::default(), at(0)).unwrap();
    store.pay(&name("acme"), &Payment::deposit(name("p1"), Bucket::Paid, credits(amount)), PaymentState::Completed, at(0)).unwrap();
    store
}

/// A node as it keeps its state; it can be copied.
#[derive(Clone)]
struct Node {
    name: &'static str,
    epoch: u8,
    number: u64,
    granted: Credits,
    spent: Credits,
    proof: Option<crate::domain::proof::Proof>,
    acked: Option<Said>,
    unanswered: Vec<Said>,
    validity: Validity,
    previous: Vec<PreviousEpoch>,
}

impl Node {
    fn new(name: &'static str, epoch: u8) -> Node {
        Node {
            name,
            epoch,
            number: 0,
            granted: Credits::ZERO,
            spent: Credits::ZERO,
            proof: None,
            acked: None,
            unanswered: Vec::new(),
            validity: Validity::Lapsed,
            previous: Vec::new(),
        }
    }

    fn totals(&self) -> RequestEntry {
        RequestEntry {
            granted_seen: self.granted,
            burn_per_s: Credits::ZERO,
            validity: Some(self.validity),
            proof: self.proof,
            spent: self.spent,
            ..entry("acme", 0)
        }
    }

    fn question(&mut self, owed: i128) -> Request {
        self.number += 1;
        let mut asked = request(self.epoch, self.number, vec![RequestEntry { owed: credits(owed), ..self.totals() }]);
        asked.node = name(self.name);
        asked.previous.clone_from(&self.previous);
        asked.history = Some(History { acked: self.acked, unanswered: self.unanswered.clone() });
        self.unanswered.push(asked.said());
        asked
    }

    fn take(&mut self, asked: &Request, answer: &Answer) -> Verdict {
        let entry = &answer.entries[0];
        (self.acked, self.unanswered) = (Some(asked.said()), Vec::new());
        if self.granted < entry.granted {
            (self.granted, self.validity) = (entry.granted, Validity::Live);
        }
        self.proof = entry.proof.filter(|proof| proof.granted == self.granted).or(self.proof);
        entry.verdict
    }

    fn ask(&mut self, store: &mut Store, owed: i128, now: Now) -> Verdict {
        let asked = self.question(owed);
        let answer = store.answer(&asked, now).unwrap();
        self.take(&asked, &answer)
    }

    /// A new epoch, which tells how this one ended.
    fn next(&self, epoch: u8) -> Node {
        let last = PreviousEpoch { epoch: Epoch([self.epoch; 16]), entries: vec![RequestEntry { validity: None, ..self.totals() }] };
        Node { previous: vec![last], ..Node::new(self.name, epoch) }
    }
}

/// Copies the balances away, and puts them back later, as an operator does.
fn copied(dir: &tempfile::TempDir) -> std::path::PathBuf {
    let copy = dir.path().join("copy.db");
    backup(&dir.path().join("authority.db"), &copy).unwrap();
    copy
}

#[test]
fn a_store_that_is_put_back_recovers_over_restarts_and_then_grants_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = funded(&dir, 100);
    let (mut live, mut silent, mut late) = (Node::new("n1", 1), Node::new("n2", 2), Node::new("n3", 3));
    live.ask(&mut store, 10, at(1));
    silent.ask(&mut store, 10, at(1));
    let copy = copied(&dir);
    live.ask(&mut store, 25, at(2));
    late.ask(&mut store, 30, at(2)); // the copy has never heard of it
    live.spent = credits(12);
    late.spent = credits(7);
    let version = store.show(&name("acme")).unwrap().version;
    drop(store);
    restore(dir.path(), &copy, Trust::Proofs, at(10)).unwrap();
    let mut store = fleet(&dir, at(20));
    assert_eq!(store.recovery(), Recovery::Goes(Trust::Proofs));
    assert!(version < store.show(&name("acme")).unwrap().version, "what is told of it from now on is news to everybody");
    assert_eq!(live.ask(&mut store, 50, at(21)), Verdict::Recovering);
    assert_eq!(late.ask(&mut store, 50, at(21)), Verdict::Recovering);
    let view = store.show(&name("acme")).unwrap();
    assert_eq!((view.settled, view.held, view.available), (credits(19), credits(13 + 23 + 10), credits(35)), "as if nothing had been lost");
    drop(store);
    let mut store = fleet(&dir, at(600)); // a restart begins the time anew: it can only err late
    assert_eq!(live.ask(&mut store, 50, at(1_200)), Verdict::Recovering);
    assert_eq!(late.ask(&mut store, 50, at(1_200)), Verdict::Recovering);
    assert_eq!(store.standing(at(1_200).mono).unwrap().recovers_for_s, Some(67));
    store.sweep(at(600 + 666)).unwrap();
    assert_ne!(store.recovery(), Recovery::Over);
    store.sweep(at(600 + 667)).unwrap();
    assert_eq!((store.recovery(), store.standing(at(1_300).mono).unwrap().recovers_for_s), (Recovery::Over, None));
    let view = store.show(&name("acme")).unwrap();
    assert_eq!(
        (view.held, view.available),
        (credits(13 + 23), credits(45)),
        "what was silent all the while is closed with the recovery's end"
    );
    assert_eq!(live.ask(&mut store, 40, at(1_300)), Verdict::Granted);
    assert_eq!(live.granted, credits(12 + 40));
    assert_eq!(silent.ask(&mut store, 1, at(1_300)), Verdict::Closed);
}

#[test]
fn a_store_that_was_rolled_back_by_hand_finds_out_by_the_first_proof_and_only_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = funded(&dir, 100);
    let (mut node, mut other) = (Node::new("n1", 1), Node::new("n2", 2));
    node.ask(&mut store, 10, at(1));
    let copy = copied(&dir);
    node.ask(&mut store, 10, at(2)); // no credit: only a question
    other.ask(&mut store, 60, at(2));
    let mut late = Node::new("n4", 4);
    late.ask(&mut store, 7, at(2));
    drop(store);
    std::fs::remove_file(dir.path().join("authority.db")).unwrap();
    std::fs::copy(&copy, dir.path().join("authority.db")).unwrap();
    let mut store = fleet(&dir, at(5));
    assert_eq!(store.recovery(), Recovery::Over, "nobody has said so");
    assert_eq!(Node::new("n3", 3).ask(&mut store, 5, at(6)), Verdict::Granted);
    let generation = store.standing(at(6).mono).unwrap().generation;
    assert_eq!(node.ask(&mut store, 90, at(7)), Verdict::Recovering, "its last question is not known here");
    assert_eq!(other.ask(&mut store, 90, at(8)), Verdict::Recovering);
    assert!(generation < store.standing(at(8).mono).unwrap().generation);
    assert_eq!(store.show(&name("acme")).unwrap().held, credits(10 + 60 + 5));
    node.ask(&mut store, 0, at(500));
    store.sweep(at(7 + 667)).unwrap();
    assert_eq!(store.recovery(), Recovery::Over);
    // One that comes later with a proof of then is believed as far as credit goes, and nobody recovers again for it.
    late.spent = credits(4);
    assert_eq!(late.ask(&mut store, 0, at(800)), Verdict::Granted);
    assert_eq!(store.show(&name("acme")).unwrap().settled, credits(4));
    assert_eq!((store.recovery(), store.tally().forgotten.load(std::sync::atomic::Ordering::Relaxed)), (Recovery::Over, 1));
}

#[test]
fn a_lie_about_a_grant_or_a_generation_makes_no_store_recover() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = funded(&dir, 100);
    let mut node = Node::new("n1", 1);
    node.ask(&mut store, 10, at(1));
    let mut lie = node.question(90);
    lie.generation_seen = u64::MAX;
    lie.entries[0].granted_seen = credits(80);
    lie.entries[0].proof = node.proof.map(|proof| crate::domain::proof::Proof { generation: 9, granted: credits(80), ..proof });
    let answer = store.answer(&lie, at(2)).unwrap();
    assert_eq!((answer.entries[0].verdict, store.recovery()), (Verdict::Unproven, Recovery::Over));
    let view = store.show(&name("acme")).unwrap();
    assert_eq!((view.held, view.available), (credits(10), credits(90)));
    assert_eq!(store.tally().unproven.load(std::sync::atomic::Ordering::Relaxed), 1);
    assert_eq!(node.next(2).ask(&mut store, 5, at(3)), Verdict::Granted, "it goes on in a new epoch");
    for _ in 0..100 {
        let mut lie = node.question(1);
        lie.entries[0].granted_seen = credits(80);
        store.answer(&lie, at(4)).unwrap();
    }
    let told = store.notices().len();
    assert_eq!(
        (told, store.tally().unproven.load(std::sync::atomic::Ordering::Relaxed)),
        (16, 101),
        "each is counted, and not each is told"
    );
}

#[test]
fn where_the_key_is_lost_words_are_believed_for_the_time_of_the_recovery() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = funded(&dir, 100);
    let mut node = Node::new("n1", 1);
    node.ask(&mut store, 10, at(1));
    let copy = copied(&dir);
    node.ask(&mut store, 30, at(2));
    drop(store);
    restore(dir.path(), &copy, Trust::Words, at(3)).unwrap();
    let mut store = fleet(&dir, at(4));
    store.prove_with(ProofKey::new([2; 32]));
    assert_eq!(node.ask(&mut store, 0, at(5)), Verdict::Recovering);
    assert_eq!(store.show(&name("acme")).unwrap().held, credits(30));
    store.sweep(at(4 + RECOVERY.0 / 1_000_000_000)).unwrap();
    let mut liar = Node { granted: credits(60), ..Node::new("n2", 2) };
    assert_eq!(liar.ask(&mut store, 0, at(700)), Verdict::Unproven);
}

/// Two agents with one identity and one journal.
#[test]
fn two_copies_of_one_running_node_are_told_apart_and_neither_gets_more() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = funded(&dir, 100);
    let mut node = Node::new("n1", 1);
    node.ask(&mut store, 10, at(1));
    let mut copy = node.clone();
    node.spent = credits(3);
    assert_eq!(node.ask(&mut store, 5, at(2)), Verdict::Granted);
    copy.spent = credits(8);
    assert_eq!(copy.ask(&mut store, 20, at(3)), Verdict::Forked);
    drop(store);
    let mut store = fleet(&dir, at(4)); // that is not forgotten
    assert_eq!(node.ask(&mut store, 20, at(5)), Verdict::Forked);
    let standing = store.standing(at(5).mono).unwrap();
    assert_eq!((standing.forked.len(), standing.forked[0].epoch), (1, Epoch([1; 16])));
    let view = store.show(&name("acme")).unwrap();
    assert_eq!((view.settled, view.available), (credits(8), credits(90)), "no more than was granted, however many use it");
    // Each goes on in an epoch of its own, and the old one waits for its silence.
    assert_eq!([node.next(2).ask(&mut store, 5, at(6)), copy.next(3).ask(&mut store, 5, at(6))], [Verdict::Granted; 2]);
    store.sweep(at(2 + 3_599)).unwrap();
    assert!(store.account(&name("acme")).unwrap().epochs.contains_key(&Epoch([1; 16])));
    store.sweep(at(4 + 3_600)).unwrap();
    assert!(!store.account(&name("acme")).unwrap().epochs.contains_key(&Epoch([1; 16])), "closed");
    assert_eq!(store.standing(at(9_000).mono).unwrap().forked, []);
}

#[test]
fn a_disk_image_that_speaks_under_the_same_name_is_served_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = funded(&dir, 100);
    let doubled = |store: &Store| store.tally().doubled.load(std::sync::atomic::Ordering::Relaxed);
    let (mut node, mut image) = (Node::new("n1", 1), Node::new("n1", 2));
    node.ask(&mut store, 5, at(1));
    assert_eq!(image.ask(&mut store, 5, at(2)), Verdict::Granted);
    assert_eq!(doubled(&store), 0, "it may have been a reboot");
    assert_eq!((node.ask(&mut store, 5, at(3)), doubled(&store)), (Verdict::Granted, 1));
}
