use std::collections::BTreeMap;

use super::*;
use crate::domain::act::{ProcessRoot, Target};
use crate::domain::id::Uid;
use crate::domain::job::{Ending, Phase};
use crate::domain::ladder::JobPolicy;
use crate::domain::outcome::{Basis, Outcome};
use crate::domain::rates::Card;
use crate::domain::time::{Mono, Now};
use crate::domain::usage::HeldGpu;

const CARD: &str = "card = \"c\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n\
    [[line]]\nid = \"wall\"\nmeter = \"wall_time\"\nprice = \"3.6\"\nunit = \"hour\"\n\
    [[line]]\nid = \"end\"\nmeter = \"job_starts\"\nprice = \"5\"\nunit = \"start\"\ntiming = \"settle_at_end\"\noutcome = { failed = \"0\" }\n";

fn nano(nano: i128) -> Credits {
    Credits::from_nano(nano)
}

fn opened(card: &Card) -> Opened {
    Opened {
        attempt: Attempt(1),
        name: "job".parse().unwrap(),
        account: "lab".parse().unwrap(),
        owner: Uid(1_000),
        target: Target::Processes(ProcessRoot { pid: 2, start_ticks: 3 }),
        gpus: Vec::<HeldGpu>::new(),
        time_limit: None,
        cpus: None,
        memory_bytes: None,
        at: Now::default(),
        cpu_counter_ns: None,
        memory_level_bytes: None,
        card: card.digest,
        charge: Credits::ZERO,
        drawn: Credits::ZERO,
        oom_kills: None,
        policy: JobPolicy::default(),
        traits: BTreeMap::new(),
        pending: nano(5_000_000_000),
    }
}

/// One that ran for so many seconds.
fn ran(seconds: u64, cost: i128, drawn: i128) -> Row {
    Row {
        attempt: Attempt(1),
        at: Mono(seconds * 1_000_000_000),
        phase: Phase::Running,
        populated: None,
        cpu_counter_ns: None,
        memory_level_bytes: None,
        cpu_ns: 0,
        memory_byte_ns: 0,
        running_ns: u128::from(seconds) * 1_000_000_000,
        frozen_ns: 0,
        cost: nano(cost),
        drawn: nano(drawn),
        memory_anon_byte_ns: 0,
        memory_anon: None,
        inner_ns: 0,
        paused_ns: 0,
        pending: nano(5_000_000_000),
    }
}

fn walk(facts: &[Fact]) -> Result<Found, Fault> {
    let mut audit = Audit::behind(Head::START, None);
    let mut head = Head::START;
    for fact in facts {
        let bytes = fact.encode();
        head = head.after(&bytes);
        audit.row(head.seq, &bytes, head.link)?;
    }
    audit.finish()
}

fn begun() -> Vec<Fact> {
    let card = Card::parse(CARD, "card.toml").unwrap();
    vec![Fact::CardAdopted { card: Box::new(card.clone()), at: Now::default() }, Fact::JobOpened(Box::new(opened(&card)))]
}

fn counted(row: Row) -> Fact {
    Fact::Counted { wall: Wall(0), rows: vec![row] }
}

fn ended(outcome: Outcome) -> Fact {
    Fact::JobEnded { attempt: Attempt(1), at: Now::default(), ending: Ending { outcome, exit_code: None }, basis: Basis::Reported }
}

fn charged(cost: i128) -> Fact {
    Fact::ChargedAtEnd { attempt: Attempt(1), costs: vec![nano(cost)], drawn: nano(0) }
}

#[test]
fn a_charge_is_right_to_the_nano_credit() {
    let with = |cost: i128| walk(&[begun(), vec![counted(ran(7, cost, 0))]].concat());
    let found = with(7_000_000).unwrap();
    assert_eq!((found.counts.samples, found.counts.jobs), (1, 1));
    for said in [6_999_999, 7_000_001] {
        let fault = Fault::Price { seq: 3, attempt: Attempt(1), what: "the cost", said: nano(said), computed: nano(7_000_000) };
        assert_eq!(with(said), Err(fault));
    }
}

#[test]
fn what_is_kept_back_and_what_it_comes_to_is_right_by_the_outcome() {
    let with = |outcome: Outcome, cost: i128| walk(&[begun(), vec![counted(ran(7, 7_000_000, 0)), ended(outcome), charged(cost)]].concat());
    assert!(with(Outcome::Completed, 5_007_000_000).is_ok());
    assert!(with(Outcome::Failed, 7_000_000).is_ok());
    assert!(matches!(with(Outcome::Failed, 5_007_000_000), Err(Fault::Price { what: "the cost at its end", .. })));
    assert!(matches!(with(Outcome::Completed, 7_000_000), Err(Fault::Price { what: "the cost at its end", .. })));
    let kept = Row { pending: nano(4_999_999_999), ..ran(7, 7_000_000, 0) };
    assert!(matches!(walk(&[begun(), vec![counted(kept)]].concat()), Err(Fault::Price { what: "what is kept back", .. })));
}

#[test]
fn nobody_pays_more_than_was_charged() {
    let with = |drawn: i128| walk(&[begun(), vec![counted(ran(7, 7_000_000, drawn))]].concat());
    assert!(with(7_000_000).is_ok());
    assert!(matches!(with(7_000_001), Err(Fault::Overpaid { .. })));
    let off = |unfunded: i128| {
        let row = crate::domain::fact::SettledRow { attempt: Attempt(1), drawn: nano(3_000_000), unfunded: nano(unfunded) };
        walk(&[begun(), vec![counted(ran(7, 7_000_000, 3_000_000)), Fact::Settled { rows: vec![row] }]].concat())
    };
    assert!(off(4_000_000).is_ok());
    assert!(matches!(off(4_000_001), Err(Fault::Overpaid { .. })));
}

#[test]
fn of_a_job_that_began_earlier_only_the_chain_vouches_until_a_checkpoint_tells_of_it() {
    let facts = [begun(), vec![counted(ran(7, 7_000_000, 0))]].concat();
    let mut agent = Agent::default();
    for fact in &facts {
        agent.apply(fact);
    }
    let head = Head { seq: 3, link: Digest([4; 32]) };
    let later = counted(ran(9, 8_999_999, 0)).encode();
    let mut unaware = Audit::behind(head, None);
    unaware.row(4, &later, head.after(&later).link).unwrap();
    assert_eq!(unaware.finish().unwrap().counts.of_earlier_jobs, 1);
    let mut aware = Audit::behind(head, None);
    aware.meet(&agent).unwrap();
    assert!(matches!(aware.row(4, &later, head.after(&later).link), Err(Fault::Price { .. })));
}

#[test]
fn a_checkpoint_that_says_other_than_its_facts_is_found() {
    let facts = [begun(), vec![counted(ran(7, 7_000_000, 0))]].concat();
    let mut agent = Agent::default();
    let mut audit = Audit::behind(Head::START, None);
    let mut head = Head::START;
    for fact in &facts {
        agent.apply(fact);
        let bytes = fact.encode();
        head = head.after(&bytes);
        audit.row(head.seq, &bytes, head.link).unwrap();
    }
    audit.clone().meet(&agent).expect("the true one");
    agent.jobs.get_mut(&Attempt(1)).unwrap().segments[0].usage.wall_ns += 1;
    assert_eq!(audit.meet(&agent), Err(Fault::Checkpoint { seq: 3, attempt: Attempt(1) }));
}

#[test]
fn a_log_that_contradicts_itself_ends_no_verifier() {
    // More than 128 bits together, over two segments, of what the card does not price.
    let card = Card::parse(CARD, "card.toml").unwrap();
    let second = Card::parse(&CARD.replace("version = 1", "version = 2"), "card.toml").unwrap();
    let most = |row: Row| Row { memory_anon_byte_ns: u128::MAX, cpu_ns: u128::MAX, ..row };
    let facts = [
        Fact::CardAdopted { card: Box::new(card.clone()), at: Now::default() },
        Fact::JobOpened(Box::new(opened(&card))),
        counted(most(ran(7, 7_000_000, 0))),
        Fact::CardAdopted { card: Box::new(second), at: Now::default() },
        counted(Row { pending: nano(0), ..most(ran(7, 7_000_000, 0)) }),
    ];
    assert_eq!(walk(&facts).unwrap().counts.samples, 2);
}
