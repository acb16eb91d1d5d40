//! Who hears what.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::domain::enforcement::Enforcement;
use crate::domain::job::{Ending, Phase};
use crate::domain::money::Credits;
use crate::domain::outcome::Outcome;
use crate::domain::time::Mono;

const ALICE: Uid = Uid(1_001);

fn listener(uid: Uid) -> Listener {
    let lab = BTreeSet::from(["lab".parse().unwrap()]);
    let access =
        Access { agent: Uid(0), operators_gid: None, hooks: BTreeSet::from([Uid(64_030)]), accounts: BTreeMap::from([(ALICE, lab)]) };
    Listener { access, who: Who::Local { uid, groups: Vec::new() }, job: None, account: None }
}

/// Attempts 1 and 3 are alice's on lab, 2 is another user's on secret.
fn known(attempt: Attempt) -> Option<Known> {
    let job = |name: &str, account: &str, owner| Known { name: name.parse().unwrap(), account: account.parse().unwrap(), owner };
    match attempt.0 {
        1 => Some(job("u1001-fit", "lab", ALICE)),
        2 => Some(job("slurm:7", "secret", Uid(1_002))),
        3 => Some(job("u1001-plot", "lab", ALICE)),
        _ => None,
    }
}

fn row(attempt: u64) -> Row {
    Row {
        attempt: Attempt(attempt),
        at: Mono(5),
        phase: Phase::Running,
        populated: None,
        cpu_counter_ns: Some(7),
        memory_level_bytes: Some(4_096),
        cpu_ns: 7,
        memory_byte_ns: u128::MAX,
        running_ns: 9,
        frozen_ns: 0,
        cost: Credits::from_nano(3),
        drawn: Credits::from_nano(2),
        memory_anon_byte_ns: 0,
        memory_anon: None,
        inner_ns: 0,
        paused_ns: 0,
        pending: Credits::ZERO,
    }
}

fn facts() -> Vec<Fact> {
    let account = |name: &str| name.parse::<AccountId>().unwrap();
    let ending = Ending { outcome: Outcome::Completed, exit_code: Some(0) };
    vec![
        Fact::EnforcementSet { mode: Enforcement::Enforce, by: Uid(0) },
        Fact::Counted { wall: Wall(0), rows: vec![row(1), row(2), row(3)] },
        Fact::Counted { wall: Wall(0), rows: vec![row(2)] },
        Fact::EmptySet { account: account("lab"), since: Some(Mono(4)), at: Mono(4) },
        Fact::EmptySet { account: account("secret"), since: None, at: Mono(5) },
        Fact::StopReported { attempt: Attempt(1), ending },
        Fact::JobClosed { attempt: Attempt(2) },
        Fact::JobClosed { attempt: Attempt(99) },
        Fact::Answered { request: 4, acknowledged: Vec::new(), entries: Vec::new(), at: crate::domain::time::Now::default() },
    ]
}

fn heard(listener: &Listener) -> Vec<Event> {
    let numbered = facts();
    let told = numbered.iter().zip(1..).filter_map(|(fact, seq)| tell(fact, seq, Wall(0), listener, &mut known));
    told.collect()
}

fn seqs(listener: &Listener) -> Vec<u64> {
    heard(listener).iter().map(|event| event.seq).collect()
}

#[test]
fn an_operator_hears_everything_a_user_what_concerns_it_and_a_stranger_nothing() {
    assert_eq!(seqs(&listener(Uid(0))), (1..=9).collect::<Vec<_>>());
    assert_eq!(seqs(&listener(ALICE)), [2, 4, 6]);
    assert_eq!(seqs(&listener(Uid(64_030))), [2, 3, 6, 7], "a hook hears of every job, and of no account that is not mapped to it");
    assert_eq!(seqs(&listener(Uid(1_003))), Vec::<u64>::new());
    assert_eq!(seqs(&Listener { who: Who::Stranger, ..listener(ALICE) }), Vec::<u64>::new());
}

#[test]
fn a_fact_about_many_jobs_holds_only_the_listeners_own_rows() {
    let events = heard(&listener(ALICE));
    let text = serde_json::to_string(&events).unwrap();
    for word in ["slurm:7", "secret", "1002", "#2"] {
        assert!(!text.contains(word), "{word} is in {text}");
    }
    assert_eq!(events[0].detail["rows"].as_array().unwrap().len(), 2);
    assert_eq!(events[0].detail["rows"][0]["memory_byte_ns"], u128::MAX.to_string(), "wide numbers are text");
}

#[test]
fn a_filter_leaves_only_what_was_asked_for() {
    let of_job = Listener { job: Some("u1001-fit".parse().unwrap()), ..listener(Uid(0)) };
    assert_eq!(seqs(&of_job), [2, 6]);
    let of_account = Listener { account: Some("secret".parse().unwrap()), ..listener(Uid(0)) };
    assert_eq!(seqs(&of_account), [2, 3, 5, 7]);
    let others = Listener { job: Some("slurm:7".parse().unwrap()), ..listener(ALICE) };
    assert_eq!(seqs(&others), Vec::<u64>::new(), "a filter shows nothing that would not be shown without it");
}

#[test]
fn a_sentence_names_a_few_rows_and_counts_the_rest() {
    let many = Fact::Counted { wall: Wall(0), rows: (0..50).map(|_| row(1)).collect() };
    let event = tell(&many, 1, Wall(0), &listener(Uid(0)), &mut known).unwrap();
    assert!(event.text.ends_with("; and 47 more"), "{}", event.text);
    assert!(event.text.len() < 300 && !event.text.contains('\n'));
    assert_eq!(event.detail["rows"].as_array().unwrap().len(), 50);
}

#[test]
fn a_record_of_a_later_version_is_named_to_operators() {
    assert_eq!(tell_unreadable("version 9", 4, Wall(0), &listener(Uid(0))).unwrap().kind, "unreadable");
    assert_eq!(tell_unreadable("version 9", 4, Wall(0), &listener(ALICE)), None);
}
