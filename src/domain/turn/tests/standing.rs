//! What a node tells of its earlier questions, what it shows of what it was granted, and what it does when its epoch is void.

use super::*;
use crate::domain::wire::{UNANSWERED_MAX, Validity};

/// Nobody answers: the next question comes after ten seconds.
fn unanswered(bench: &mut Bench) -> Request {
    bench.pass(10_001);
    bench.step(Event::Looked(Vec::new()));
    bench.durable();
    bench.question().unwrap()
}

/// A push, and the question that comes of it.
fn pushed(bench: &mut Bench, version: u64) -> Request {
    bench.step(Event::Pushed(Push { account: "a".parse().unwrap(), version }));
    bench.pass(200);
    bench.step(Event::Looked(Vec::new()));
    bench.durable();
    bench.question().unwrap()
}

#[test]
fn a_question_names_those_before_it_and_with_sixteen_unanswered_the_last_one_is_only_repeated() {
    let mut bench = Bench::new();
    bench.start(1, "a");
    bench.durable();
    let first = bench.question().unwrap();
    let history = first.history.clone().unwrap();
    assert_eq!((history.acked, history.unanswered.len()), (None, 0));
    assert_eq!(first.entries[0].validity, Some(Validity::Lapsed), "nothing was granted yet");
    bench.free = 10_000_000_000;
    bench.answer();
    bench.durable();
    bench.work(100);
    let mut asked = pushed(&mut bench, 2);
    let history = asked.history.clone().unwrap();
    assert_eq!((history.acked, history.unanswered), (Some(first.said()), Vec::new()));
    assert_eq!(asked.entries[0].validity, Some(Validity::Live));
    let mut said = vec![asked.said()];
    while said.len() < UNANSWERED_MAX {
        asked = unanswered(&mut bench);
        assert_eq!(asked.history.as_ref().unwrap().unanswered, said);
        said.push(asked.said());
    }
    assert_eq!(unanswered(&mut bench), asked, "word for word");
    bench.out.clear();
    bench.step(Event::Pushed(Push { account: "a".parse().unwrap(), version: 3 }));
    bench.pass(30_000);
    bench.step(Event::Looked(Vec::new()));
    bench.durable();
    assert_eq!(bench.question().unwrap(), asked, "also after a push");
    bench.answer();
    bench.durable();
    bench.out.clear();
    let next = unanswered(&mut bench);
    let history = next.history.unwrap();
    assert_eq!((history.acked, history.unanswered.len()), (Some(asked.said()), 1), "what the push told of was asked about at once");
}

/// The questions that a node asks one after the other while each is answered at once; it stops counting at a hundred.
fn asked_at_once(bench: &mut Bench) -> usize {
    (0..100)
        .take_while(|_| {
            bench.durable();
            let asks = bench.turn.agent().outstanding.is_some();
            if asks {
                bench.answer();
            }
            asks
        })
        .count()
}

/// A copy of the store's file was put back and nobody said so: its versions are lower than what was heard of.
#[test]
fn a_store_that_was_put_back_is_not_asked_over_and_over_until_its_versions_catch_up() {
    let mut bench = Bench::running(10_000_000_000);
    pushed(&mut bench, 50);
    bench.version = 40;
    assert_eq!(asked_at_once(&mut bench), 1, "the answer was written after what the push told of");
    let heard = |bench: &Bench| bench.turn.agent().accounts[&"a".parse().unwrap()].grant.verdict.is_some();
    assert!(heard(&bench), "its word counts");
    let before = bench.turn.agent().asked;
    pushed(&mut bench, 41);
    assert_eq!(bench.turn.agent().asked, before + 1, "what it tells of since is news, though its number is lower");
    bench.version = 41;
    assert_eq!(asked_at_once(&mut bench), 1);
    // Also where the last question was kept, so that its answer may be from before the push.
    let mut bench = Bench::running(10_000_000_000);
    pushed(&mut bench, 2);
    (1..UNANSWERED_MAX).for_each(|_| drop(unanswered(&mut bench)));
    bench.step(Event::Pushed(Push { account: "a".parse().unwrap(), version: 50 }));
    bench.version = 40;
    bench.answer();
    assert!(!heard(&bench), "this one is of before");
    assert_eq!(asked_at_once(&mut bench), 1, "the next one is not");
    assert!(heard(&bench));
}

#[test]
fn what_was_proved_is_shown_again_and_survives_a_crash_and_a_checkpoint() {
    let mut bench = Bench::new();
    (bench.generation, bench.free) = (3, 10_000_000_000);
    bench.start(1, "a");
    bench.durable();
    bench.answer();
    bench.durable();
    bench.work(100);
    let asked = pushed(&mut bench, 2);
    assert_eq!((asked.generation_seen, asked.entries[0].proof), (3, Some(bench.proof(1))));
    let agent = bench.turn.agent();
    assert_eq!(&bench.crashed_at(agent.seq), agent);
    assert_eq!(Agent::decode(&agent.encode()).as_ref(), Some(agent));
    assert_eq!(agent.outstanding.as_ref().unwrap().request, asked);
}

#[test]
fn an_epoch_that_is_void_ends_and_the_next_one_shows_how_with_its_proof() {
    for word in [Verdict::Forked, Verdict::Unproven, Verdict::Closed] {
        let mut bench = Bench::new();
        (bench.generation, bench.free) = (3, 10_000_000_000);
        bench.start(1, "a");
        bench.durable();
        bench.answer();
        bench.durable();
        bench.work(100);
        bench.word = Some(word);
        let last = pushed(&mut bench, 2);
        bench.answer();
        bench.pass(200);
        bench.step(Event::Looked(Vec::new()));
        bench.durable();
        let next = bench.question().unwrap();
        assert_ne!(next.epoch, last.epoch, "{word:?}");
        assert_eq!((next.request, next.history.as_ref().unwrap().unanswered.len()), (1, 0), "{word:?}");
        let earlier = &next.previous[0];
        assert_eq!((earlier.epoch, earlier.entries[0].proof), (last.epoch, Some(bench.proof(last.request))), "{word:?}");
        assert_eq!(next.entries[0].proof, None);
        let agent = bench.turn.agent();
        assert_eq!(Agent::decode(&agent.encode()).as_ref(), Some(agent));
        assert!(agent.jobs.values().all(crate::domain::job::Job::is_live), "nobody is ended for it");
    }
}

#[test]
fn while_the_store_recovers_what_is_held_is_good_for_longer_and_no_start_is_called_broke() {
    let mut bench = Bench::running(10_000_000_000);
    bench.word = Some(Verdict::Recovering);
    bench.pass(300_000);
    pushed(&mut bench, 2);
    bench.answer();
    let account = &bench.turn.agent().accounts[&"a".parse().unwrap()];
    assert!(bench.now.boot.plus(Nanos::from_secs(599)) < account.grant.deadline);
    let mut bench = Bench::new();
    bench.word = Some(Verdict::Recovering);
    bench.start(1, "a");
    bench.durable();
    bench.answer();
    bench.durable();
    assert!(matches!(bench.replies()[..], [Reply::Refused(refusal)] if refusal.code == "authority_recovers"), "{:?}", bench.replies());
}

#[test]
fn a_start_on_a_node_that_its_account_may_not_use_is_refused_by_name() {
    let mut bench = Bench::new();
    bench.word = Some(Verdict::NotAdmitted);
    bench.start(1, "a");
    bench.durable();
    bench.answer();
    bench.durable();
    assert!(matches!(bench.replies()[..], [Reply::Refused(refusal)] if refusal.code == "not_admitted"), "{:?}", bench.replies());
}

/// An epoch that began before questions were counted goes on without a history, and the next one has it.
#[test]
fn a_state_of_before_tells_no_history_until_its_next_epoch() {
    let bench = Bench::running(10_000_000_000);
    let mut agent = bench.turn.agent().clone();
    (agent.standing, agent.outstanding) = (crate::domain::agent::standing::Standing::default(), None);
    let grant = &mut agent.accounts.values_mut().next().unwrap().grant;
    (grant.hear_again_at, grant.pushed_when_asked) = (Boot(0), 0);
    let bytes = agent.encode();
    let (bytes, word) = bytes.split_at(bytes.len() - 5);
    assert_eq!(word, [1, 1, b'a', 0, 0], "the one account's last word");
    let (core, behind) = bytes.split_at(bytes.len() - 10);
    assert_eq!(
        (core[0], behind),
        (5, &[0; 10][..]),
        "no further part of any job, no generation, history, proof, question, earlier epoch, no gang and no word of one, no refund"
    );
    for (version, end) in [(2, core.len()), (3, core.len() + 1), (4, bytes.len())] {
        let mut older = bytes[..end].to_vec();
        older[0] = version;
        assert_eq!(Agent::decode(&older).as_ref(), Some(&agent), "form {version}");
        assert_eq!(Agent::decode(&older[..end - 1]), None, "form {version}");
    }
    agent.apply(&Fact::EpochOpened { epoch: Epoch([5; 16]), boot: BootId([1; 16]), at: bench.now });
    assert_eq!(agent.standing.history, Some(crate::domain::wire::History::default()));
}
