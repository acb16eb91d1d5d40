//! What a lying, copied or restored side of the grant protocol can bring about, and what it cannot.

use super::*;
use crate::domain::proof::{Holder, Proof, ProofKey};
use crate::domain::wire::{History, Limits, Said, Validity};

const CLOSE: ClosePolicy = ClosePolicy::AfterSilence(Nanos::from_secs(3_600));

fn key() -> ProofKey {
    ProofKey::new([3; 32])
}

fn sound(key: &ProofKey) -> Rules<'_> {
    Rules { key: Some(key), generation: 1, ..Rules::of(CLOSE) }
}

fn recovering(key: &ProofKey) -> Rules<'_> {
    Rules { generation: 2, recovery: Recovery::Goes(Trust::Proofs), ..sound(key) }
}

/// As a node says it that knows of all this.
fn told(granted: i128, spent: i128) -> RequestEntry {
    let validity = Some(Validity::Live);
    RequestEntry { granted_seen: credits(granted), spent: credits(spent), burn_per_s: Credits::ZERO, validity, ..entry() }
}

fn proof_of(node: &str, epoch: u8, request: u64, granted: i128) -> Proof {
    let (node, account) = (node.parse().unwrap(), id());
    key().prove(Holder { node: &node, account: &account, epoch: Epoch([epoch; 16]) }, 1, request, credits(granted))
}

fn owing(owed: i128) -> RequestEntry {
    RequestEntry { owed: credits(owed), ..told(0, 0) }
}

#[test]
fn a_node_that_claims_more_than_it_was_granted_gains_nothing_by_it() {
    let key = key();
    let mut bank = Bank::with(0, 100);
    assert_eq!(bank.ask_by(&request("a", 1, 1, owing(10)), &sound(&key), at(1)).granted, credits(10));
    let bent = Proof { granted: credits(90), ..proof_of("a", 1, 1, 10) };
    let lies = [
        told(90, 0),
        RequestEntry { proof: Some(bent), ..told(90, 50) },
        RequestEntry { proof: Some(proof_of("b", 1, 1, 90)), ..told(90, 50) },
        RequestEntry { proof: Some(proof_of("a", 2, 1, 90)), ..told(90, 50) },
        RequestEntry { owed: credits(80), ..told(1_000, 50) },
    ];
    for (number, lie) in (2..).zip(lies) {
        let answer = bank.ask_by(&request("a", 1, number, lie), &sound(&key), at(2));
        assert_eq!((answer.verdict, answer.granted), (Verdict::Unproven, credits(10)));
        assert_eq!((bank.account.available(), bank.epoch(1).heard_at), (credits(90), at(1).mono), "and its silence goes on");
    }
    assert_eq!(bank.epoch(1).settled, credits(10), "what it was granted it may say it spent");
    assert!(matches!(bank.notices[..], [AccountNotice::Unproven { .. }, ..]), "{:?}", bank.notices);
}

/// A settlement above its grant took whatever was free once the epoch was closed.
#[test]
fn what_is_said_to_be_spent_beyond_the_grant_is_charged_to_nobody() {
    let key = key();
    let mut bank = Bank::with(0, 100);
    bank.ask_by(&request("a", 1, 1, owing(10)), &sound(&key), at(1));
    bank.ask_by(&request("a", 1, 2, told(10, 95)), &sound(&key), at(2));
    assert_eq!((bank.epoch(1).settled, bank.epoch(1).claimed), (credits(10), credits(10)));
    let lines = sweep(&mut bank.account, CLOSE, at(3_700));
    bank.book(lines);
    assert_eq!((bank.epoch(1).state, bank.account.available(), bank.account.shortfall), (EpochState::Closed, credits(90), Credits::ZERO));
    // Nor by an epoch that nobody knows, nor by a closed one.
    let mut next = request("a", 2, 1, told(0, 0));
    next.previous = [7, 1].map(|epoch| PreviousEpoch { epoch: Epoch([epoch; 16]), entries: vec![told(95, 95)] }).to_vec();
    bank.ask_by(&next, &sound(&key), at(3_701));
    assert_eq!((bank.account.settled, bank.account.available(), bank.account.shortfall), (credits(10), credits(90), Credits::ZERO));
}

#[test]
fn what_was_given_back_is_not_charged_as_spent_once_the_epoch_is_closed() {
    let key = key();
    for returned_with_it in [0, 10] {
        let mut bank = Bank::with(0, 100);
        bank.ask_by(&request("a", 1, 1, owing(10)), &sound(&key), at(1));
        bank.ask_by(&request("a", 1, 2, RequestEntry { returned: credits(10), ..told(10, 0) }), &sound(&key), at(2));
        bank.ask_by(&request("a", 1, 3, RequestEntry { returned: credits(returned_with_it), ..told(10, 10) }), &sound(&key), at(3));
        let lines = sweep(&mut bank.account, CLOSE, at(3_700));
        bank.book(lines);
        bank.ask_by(&request("a", 1, 4, told(10, 10)), &sound(&key), at(3_701));
        assert_eq!((bank.account.settled, bank.account.available(), bank.account.shortfall), (Credits::ZERO, credits(100), Credits::ZERO));
    }
}

/// How long a word is good is counted from the first hearing of its question: a copy of a running node may ask in its words, and much later.
#[test]
fn what_is_asked_once_more_is_good_no_longer_than_what_was_asked_first() {
    let key = key();
    let mut bank = Bank::with(0, 100);
    let (first, second) = (request("a", 1, 1, owing(10)), request("a", 1, 2, told(10, 0)));
    assert_eq!(bank.ask_by(&first, &sound(&key), at(1)).valid_for, VALID_FOR);
    assert_eq!(bank.ask_by(&first, &sound(&key), at(101)).valid_for, Nanos::from_secs(500));
    assert_eq!(bank.ask_by(&first, &sound(&key), at(701)).valid_for, Nanos(0));
    assert_eq!(bank.ask_by(&second, &sound(&key), at(701)).valid_for, VALID_FOR);
    assert_eq!(bank.ask_by(&first, &sound(&key), at(702)).valid_for, Nanos(0), "nor is what was asked before");
}

#[test]
fn a_proof_is_believed_as_far_as_credit_goes_and_what_comes_later_backs_it_first() {
    let key = key();
    let mut bank = Bank::with(0, 100);
    let shown = RequestEntry { proof: Some(proof_of("a", 1, 6, 250)), ..told(250, 120) };
    let answer = bank.ask_by(&request("a", 1, 7, shown.clone()), &recovering(&key), at(1));
    assert_eq!((answer.granted, answer.settled, answer.verdict), (credits(100), credits(100), Verdict::Recovering));
    assert_eq!(bank.epoch(1).unbacked(), credits(150));
    bank.deposit(Bucket::Paid, credits(50), at(2));
    assert_eq!(bank.ask_by(&request("b", 2, 1, owing(5)), &sound(&key), at(2)).granted, Credits::ZERO, "before anybody is granted any");
    assert_eq!(bank.epoch(1).granted, credits(150));
    assert_eq!(bank.ask_by(&request("a", 1, 8, shown.clone()), &recovering(&key), at(2)).settled, credits(120));
    let ended = end_recovery(&mut bank.account, at(0).mono, at(668));
    bank.book(ended);
    assert_eq!(
        bank.ask_by(&request("a", 1, 9, shown.clone()), &sound(&key), at(668)).verdict,
        Verdict::Closed,
        "100 are backed by nothing"
    );
    bank.deposit(Bucket::Paid, credits(500), at(669));
    assert_eq!(bank.ask_by(&request("a", 1, 10, shown), &sound(&key), at(669)).verdict, Verdict::Granted);
    assert_eq!((bank.epoch(1).granted, bank.account.available()), (credits(250), credits(400)));
}

/// It was charged on top of what it had given back, once the epoch was closed.
#[test]
fn of_a_forgotten_grant_what_was_said_to_be_spent_is_not_given_back_as_well() {
    let key = key();
    let mut bank = Bank::with(0, 100);
    let shown = RequestEntry { proof: Some(proof_of("a", 1, 6, 250)), ..told(250, 250) };
    bank.ask_by(&request("a", 1, 7, shown.clone()), &recovering(&key), at(1));
    assert_eq!((bank.epoch(1).settled, bank.epoch(1).claimed), (credits(100), credits(250)));
    bank.deposit(Bucket::Paid, credits(50), at(2));
    let takes_back = RequestEntry { returned: credits(50), ..shown };
    bank.ask_by(&request("a", 1, 8, takes_back), &recovering(&key), at(3));
    assert_eq!((bank.epoch(1).settled, bank.epoch(1).returned), (credits(150), Credits::ZERO));
    bank.deposit(Bucket::Paid, credits(500), at(4));
    let ended = end_recovery(&mut bank.account, at(3).mono, at(668));
    bank.book(ended);
    assert_eq!((bank.epoch(1).state, bank.account.settled, bank.account.available()), (EpochState::Closed, credits(250), credits(400)));
}

/// It was held for nobody: the node had told all, and what came in later backed what it had given back.
#[test]
fn of_a_forgotten_grant_what_was_given_back_is_backed_by_nothing() {
    let key = key();
    for (deposited, spent, returned) in [(100, 0, 250), (100, 30, 220), (100, 120, 130), (0, 250, 0), (0, 0, 250), (100, 30, 200)] {
        let mut bank = Bank::with(0, deposited);
        let shown = RequestEntry { returned: credits(returned), proof: Some(proof_of("a", 1, 6, 250)), ..told(250, spent) };
        bank.ask_by(&request("a", 1, 7, shown.clone()), &recovering(&key), at(1));
        assert_eq!(bank.epoch(1).returned, credits(returned));
        bank.deposit(Bucket::Paid, credits(500), at(2));
        let lines = sweep(&mut bank.account, CLOSE, at(3));
        bank.book(lines);
        let epoch = bank.epoch(1);
        let in_hand = epoch.escrow().minus(epoch.claimed.minus(epoch.settled));
        assert_eq!((in_hand, epoch.claimed), (credits(250 - spent - returned), credits(spent)), "{deposited} {spent} {returned}");
    }
}

#[test]
fn where_the_key_was_lost_words_are_believed_while_the_store_recovers_and_no_longer() {
    let words = Rules { generation: 2, recovery: Recovery::Goes(Trust::Words), ..Rules::of(CLOSE) };
    let mut bank = Bank::with(0, 100);
    let answer = bank.ask_by(&request("a", 1, 7, told(40, 10)), &words, at(1));
    assert_eq!((answer.granted, answer.verdict, bank.account.available()), (credits(40), Verdict::Recovering, credits(60)));
    assert_eq!(bank.ask_by(&request("b", 2, 7, told(40, 10)), &Rules::of(CLOSE), at(800)).verdict, Verdict::Unproven);
    assert_eq!(bank.account.available(), credits(60));
    // No more than a node of its size can hold.
    let limits = Limits { held_max: Some(credits(20)), ..Limits::default() };
    let answer = bank.ask_by(&request("c", 3, 7, told(40, 10)), &Rules { limits: Some(&limits), ..words }, at(2));
    assert_eq!((answer.verdict, answer.granted), (Verdict::Unproven, credits(30)));
}

/// What an epoch may have been closed for, and its credit given to others, in the part that is lost.
#[test]
fn a_recovering_store_grants_nothing_prolongs_what_lives_and_voids_what_has_lapsed() {
    let key = key();
    let mut bank = Bank::with(0, 100);
    for node in 1..=3 {
        bank.ask_by(&request(&format!("n{node}"), node, 1, owing(10)), &sound(&key), at(1));
    }
    let lapsed = RequestEntry { validity: Some(Validity::Lapsed), ..told(10, 2) };
    let mute = RequestEntry { validity: None, ..told(10, 3) };
    let rules = recovering(&key);
    let began = at(100);
    bank.account.epochs.change_each(|epoch| epoch.heard_at = began.mono);
    let live = bank.ask_by(&request("n1", 1, 2, RequestEntry { owed: credits(50), ..told(10, 1) }), &rules, at(101));
    assert_eq!((live.verdict, live.granted), (Verdict::Recovering, credits(10)));
    assert_eq!(bank.ask_by(&request("n2", 2, 2, lapsed.clone()), &rules, at(101)).verdict, Verdict::Closed);
    assert_eq!(bank.ask_by(&request("n3", 3, 2, mute), &rules, at(101)).verdict, Verdict::Hold, "it does not know the word");
    let fresh = bank.ask_by(&request("n4", 4, 1, RequestEntry { validity: Some(Validity::Lapsed), ..owing(5) }), &rules, at(101));
    assert_eq!((fresh.verdict, fresh.granted), (Verdict::Recovering, Credits::ZERO), "it holds nothing that could have lapsed");
    assert_eq!(bank.account.settled, credits(6), "what was used is taken");
    let heard = |epoch: u8, bank: &Bank| bank.epoch(epoch).heard_at != began.mono;
    assert_eq!([1, 2, 3].map(|epoch| heard(epoch, &bank)), [true, false, false]);
    let ended = end_recovery(&mut bank.account, began.mono, at(767));
    bank.book(ended);
    assert_eq!([1, 2, 3].map(|epoch| bank.epoch(epoch).state), [EpochState::Open, EpochState::Closed, EpochState::Closed]);
    let after = bank.ask_by(&request("n1", 1, 3, RequestEntry { owed: credits(50), ..told(10, 1) }), &sound(&key), at(768));
    assert_eq!((after.verdict, after.granted), (Verdict::Granted, credits(51)));
}

#[test]
fn an_answer_proves_what_it_granted_and_only_a_store_that_forgot_it_is_surprised() {
    let key = key();
    let mut bank = Bank::with(0, 100);
    let backup = bank.account.clone();
    let asked = request("a", 1, 1, owing(10));
    let proof = bank.ask_by(&asked, &sound(&key), at(1)).proof.unwrap();
    assert_eq!(proof, proof_of("a", 1, 1, 10));
    let known = |account: &Account| {
        let epochs = account.epochs.clone();
        move |_: &AccountId, epoch: Epoch| -> Result<(Credits, u64), ()> {
            Ok(epochs.get(&epoch).map_or((Credits::ZERO, 0), |epoch| (epoch.granted.max(epoch.proven), epoch.last_request)))
        }
    };
    let shown = request("a", 1, 2, RequestEntry { proof: Some(proof), ..told(10, 0) });
    assert_eq!(has_forgotten(&shown, &key, 1, known(&bank.account)), Ok(false));
    assert_eq!(has_forgotten(&shown, &key, 1, known(&backup)), Ok(true));
    assert_eq!(has_forgotten(&shown, &key, 2, known(&backup)), Ok(false), "of that it recovers, or has recovered");
    assert_eq!(has_forgotten(&shown, &ProofKey::new([4; 32]), 1, known(&backup)), Ok(false), "another key's");
    // A store that has forgotten no credit, but a question.
    let again = bank.ask_by(&request("a", 1, 3, told(10, 0)), &sound(&key), at(2)).proof.unwrap();
    let mut older = bank.account.clone();
    older.epochs.get_mut(&Epoch([1; 16])).unwrap().last_request = 2;
    let shown = request("a", 1, 4, RequestEntry { proof: Some(again), ..told(10, 0) });
    assert_eq!(has_forgotten(&shown, &key, 1, known(&older)), Ok(true));
    // What an epoch before said.
    let mut next = request("a", 2, 1, told(0, 0));
    next.previous = vec![PreviousEpoch { epoch: Epoch([1; 16]), entries: vec![RequestEntry { proof: Some(proof), ..told(10, 4) }] }];
    assert_eq!(has_forgotten(&next, &key, 1, known(&backup)), Ok(true));
}

#[test]
fn a_grant_is_no_larger_than_the_node_can_use_and_not_made_where_the_account_is_not_admitted() {
    let key = key();
    let mut bank = Bank::with(0, 1_000);
    let limits = Limits { held_max: Some(credits(30)), ..Limits::default() };
    let rules = Rules { limits: Some(&limits), ..sound(&key) };
    let greedy = || RequestEntry { burn_per_s: credits(1_000_000), ..owing(1_000_000) };
    assert_eq!(bank.ask_by(&request("a", 1, 1, greedy()), &rules, at(1)).granted, credits(30));
    assert_eq!(
        bank.ask_by(&request("a", 1, 2, RequestEntry { granted_seen: credits(30), ..greedy() }), &rules, at(2)).granted,
        credits(30)
    );
    let used = RequestEntry { granted_seen: credits(30), spent: credits(12), ..greedy() };
    assert_eq!(bank.ask_by(&request("a", 1, 3, used), &rules, at(3)).granted, credits(42));
    let other = |epoch: u8, bank: &mut Bank| bank.ask_by(&request("a", epoch, 1, greedy()), &rules, at(4)).granted;
    assert_eq!([2, 3, 4, 5].map(|epoch| other(epoch, &mut bank)), [30, 30, 30, 0].map(credits), "nor by one epoch after another");
    assert_eq!(bank.ask_by(&request("b", 6, 1, greedy()), &rules, at(4)).granted, credits(30), "another node's are its own");
    let elsewhere = Limits { admitted: Some([("other").parse().unwrap()].into()), ..Limits::default() };
    let rules = Rules { limits: Some(&elsewhere), ..sound(&key) };
    let refused = bank.ask_by(&request("c", 7, 1, greedy()), &rules, at(5));
    assert_eq!((refused.verdict, refused.granted), (Verdict::NotAdmitted, Credits::ZERO));
    assert!(!bank.account.epochs.contains_key(&Epoch([7; 16])), "nothing is kept of it");
    let withdrawn = bank.ask_by(&request("b", 6, 2, told(30, 9)), &rules, at(6));
    assert_eq!((withdrawn.verdict, bank.epoch(6).settled), (Verdict::NotAdmitted, credits(9)), "what was used before is charged");
}

/// Questions of one epoch, with what became of those before them.
struct Story {
    acked: Option<Said>,
    unanswered: Vec<Said>,
    last: u64,
}

impl Story {
    fn ask(&mut self, spent: i128) -> Request {
        self.last += 1;
        let mut asked = request("a", 1, self.last, told(0, spent));
        asked.history = Some(History { acked: self.acked, unanswered: self.unanswered.clone() });
        self.unanswered.push(asked.said());
        asked
    }

    fn answered(&mut self, request: &Request) {
        self.acked = Some(request.said());
        self.unanswered.clear();
    }

    /// What a copy of its state goes on with.
    fn copy(&self) -> Story {
        Story { acked: self.acked, unanswered: self.unanswered.clone(), last: self.last }
    }

    fn new() -> Story {
        Story { acked: None, unanswered: Vec::new(), last: 0 }
    }
}

fn writer() -> Writer {
    Writer::new("a".parse().unwrap())
}

fn hear(writer: &mut Writer, request: &Request) -> Writers {
    writer.hear(request, request.said(), Wall(1))
}

#[test]
fn a_copy_that_asks_under_a_number_that_is_taken_or_knows_nothing_of_the_last_one_is_found_out() {
    // Under the same number.
    let (mut heard_by, mut own) = (writer(), Story::new());
    let first = own.ask(1);
    assert_eq!(hear(&mut heard_by, &first), Writers::One);
    own.answered(&first);
    let mut copy = own.copy();
    assert_eq!(hear(&mut heard_by, &own.ask(2)), Writers::One);
    let taken = copy.ask(3);
    assert_eq!(hear(&mut heard_by, &taken), Writers::Several);
    assert_eq!(hear(&mut heard_by, &own.ask(4)), Writers::Several, "for each of them, from then on");
    // Above the last, of which it knows nothing.
    let (mut heard_by, mut own) = (writer(), Story::new());
    let first = own.ask(1);
    hear(&mut heard_by, &first);
    own.answered(&first);
    let mut copy = own.copy();
    hear(&mut heard_by, &own.ask(2));
    copy.ask(8);
    copy.ask(9);
    let above = copy.ask(9); // number 4; its number 2 is named with other words
    assert_eq!(hear(&mut heard_by, &above), Writers::Several);
    let mut strange = Story { acked: None, unanswered: Vec::new(), last: 40 };
    let (mut heard_by, mut own) = (writer(), Story::new());
    hear(&mut heard_by, &own.ask(1));
    assert_eq!(hear(&mut heard_by, &strange.ask(1)), Writers::Several);
}

/// The first that a store hears after it forgot who wrote what may be a message that was long on its way.
#[test]
fn one_that_is_heard_late_by_a_store_that_has_forgotten_it_is_not_taken_for_two() {
    let mut own = Story::new();
    let old = own.ask(1);
    own.answered(&old);
    for spent in 2..6 {
        let asked = own.ask(spent);
        own.answered(&asked);
    }
    let mut heard_by = writer();
    assert_eq!(hear(&mut heard_by, &old), Writers::One);
    assert_eq!(hear(&mut heard_by, &own.ask(7)), Writers::One);
}

#[test]
fn one_that_repeats_skips_or_comes_late_is_not_taken_for_two() {
    let (mut heard_by, mut own) = (writer(), Story::new());
    let (first, second) = (own.ask(1), own.ask(1));
    assert_eq!(hear(&mut heard_by, &second), Writers::One, "the first one was lost");
    assert_eq!(hear(&mut heard_by, &second), Writers::One);
    assert_eq!(hear(&mut heard_by, &first), Writers::One, "or was long on its way");
    own.answered(&second);
    for _ in 0..200 {
        let asked = own.ask(2);
        assert_eq!(hear(&mut heard_by, &asked), Writers::One);
        own.answered(&asked);
    }
    assert_eq!(heard_by.numbers.len(), NUMBERS_MAX);
    assert_eq!(hear(&mut heard_by, &first), Writers::One, "however late");
    let mute = Request { history: None, ..request("a", 1, 999, told(0, 0)) };
    assert_eq!(hear(&mut heard_by, &mute), Writers::One, "one that tells nothing cannot contradict itself");
    let foreign = Request { node: "b".parse().unwrap(), ..own.ask(7) };
    let before = heard_by.clone();
    assert_eq!((hear(&mut heard_by, &foreign), &heard_by), (Writers::One, &before), "another node has no say here");
}

#[test]
fn under_a_forked_epoch_nobody_is_granted_anything_and_what_it_holds_waits_for_its_silence() {
    let key = key();
    let mut bank = Bank::with(0, 100);
    bank.ask_by(&request("a", 1, 1, owing(10)), &sound(&key), at(1));
    let forked = Rules { writers: Writers::Several, ..sound(&key) };
    let answer = bank.ask_by(&request("a", 1, 2, RequestEntry { owed: credits(50), ..told(10, 4) }), &forked, at(2));
    assert_eq!((answer.verdict, answer.granted, answer.settled), (Verdict::Forked, credits(10), credits(4)));
    assert_eq!((bank.account.available(), bank.epoch(1).heard_at), (credits(90), at(1).mono));
    let mut plain = request("a", 1, 3, RequestEntry { validity: None, ..told(10, 5) });
    plain.entries[0].proof = None;
    assert_eq!(bank.ask_by(&plain, &forked, at(3)).verdict, Verdict::Closed, "it does not know the word");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whatever is lost, doubled, late or unanswered: an honest node is never taken for two.
    #[test]
    fn an_honest_node_is_never_taken_for_two(steps in prop::collection::vec((0..4_u8, any::<prop::sample::Index>()), 1..200)) {
        let (mut writer, mut own) = (writer(), Story::new());
        let (mut under_way, mut heard): (Vec<Request>, Vec<Request>) = (Vec::new(), Vec::new());
        for (spent, (step, at)) in (0..).zip(steps) {
            match step {
                0 if own.unanswered.len() < 16 => under_way.push(own.ask(spent)),
                1 if !under_way.is_empty() => {
                    let asked = under_way[at.index(under_way.len())].clone();
                    prop_assert_eq!(hear(&mut writer, &asked), Writers::One);
                    heard.push(asked);
                }
                2 if !under_way.is_empty() => drop(under_way.swap_remove(at.index(under_way.len()))),
                // Only the answer to the last question counts.
                3 => {
                    if let Some(asked) = heard.iter().find(|asked| asked.request == own.last) {
                        own.answered(&asked.clone());
                    }
                }
                _ => {}
            }
        }
    }

    /// Two that go on from one state are told apart at the latest when the second one of them is answered.
    #[test]
    fn two_that_go_on_from_one_state_are_found_out_by_the_first_question_of_the_second(
        before in 0..20_usize, own_asks in 1..10_usize, copy_asks in 1..10_usize,
    ) {
        let (mut writer, mut own) = (writer(), Story::new());
        for _ in 0..before {
            let asked = own.ask(1);
            hear(&mut writer, &asked);
            own.answered(&asked);
        }
        let mut copy = own.copy();
        for _ in 0..own_asks {
            let asked = own.ask(2);
            prop_assert_eq!(hear(&mut writer, &asked), Writers::One);
            own.answered(&asked);
        }
        let mut last = copy.ask(3);
        for _ in 1..copy_asks {
            last = copy.ask(3);
        }
        prop_assert_eq!(hear(&mut writer, &last), Writers::Several);
    }
}

proptest! {
    /// The rules are checked after each act, in `Bank::book` and `Bank::ask_by`.
    #[test]
    fn whoever_proves_a_forgotten_grant_and_lies_about_the_rest_cannot_break_the_rules(
        acts in prop::collection::vec((0..3_u8, 0..4_u8, prop::array::uniform3(0..400_i128)), 1..40),
    ) {
        let key = key();
        let mut bank = Bank::with(10, 50);
        for (number, (epoch, act, [granted, returned, spent])) in (1..).zip(acts) {
            let lie = RequestEntry {
                returned: credits(returned), proof: Some(proof_of("a", epoch, number, granted)), owed: credits(spent % 7), ..told(granted, spent)
            };
            let asked = request("a", epoch, number, lie);
            match act {
                0 => drop(bank.ask_by(&asked, &recovering(&key), at(number))),
                1 => drop(bank.ask_by(&asked, &sound(&key), at(number))),
                2 => bank.deposit(Bucket::Paid, credits(spent + 1), at(number)),
                _ => {
                    let lines = end_recovery(&mut bank.account, at(u64::from(epoch) * 15).mono, at(number));
                    bank.book(lines);
                }
            }
        }
    }
}
