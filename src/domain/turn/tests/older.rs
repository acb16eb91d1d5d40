//! What an older version wrote is read for ever: its facts, its checkpoint, its receipt.

use super::*;
use crate::domain::receipt::{Receipt, verify};

/// `fact NUMBER HEX`, `checkpoint NUMBER HEX`, `receipt JSON`.
const WRITTEN: &str = include_str!("before_segments.txt");

fn lines(kind: &str) -> impl Iterator<Item = &'static str> {
    WRITTEN.lines().filter_map(move |line| line.strip_prefix(kind)?.strip_prefix(' '))
}

fn bytes(line: &str) -> (Seq, Vec<u8>) {
    let (number, hex) = line.split_once(' ').unwrap();
    let digits: Vec<u8> = hex.chars().map(|digit| u8::try_from(digit.to_digit(16).unwrap()).unwrap()).collect();
    (Seq(number.parse().unwrap()), digits.chunks(2).map(|pair| pair[0] * 16 + pair[1]).collect())
}

fn replayed(mut agent: Agent) -> Agent {
    for (seq, bytes) in lines("fact").map(bytes).filter(|(seq, _)| agent.seq < *seq).collect::<Vec<_>>() {
        let fact = Fact::decode(&bytes).unwrap();
        assert_eq!(Fact::decode(&fact.encode()).unwrap(), fact, "fact {}: it is written so that it is read as it was", seq.0);
        agent.apply(&fact);
        assert_eq!(agent.seq, seq);
    }
    agent
}

#[test]
fn a_journal_of_before_there_were_changes_replays_to_the_same_receipt() {
    let agent = replayed(Agent::default());
    assert_eq!(agent.seq, Seq(28));
    let job = agent.job_named("job").unwrap();
    assert_eq!((job.charge, job.drawn, job.segments.len()), ("6".parse().unwrap(), "6".parse().unwrap(), 2));
    let bench = Bench::new();
    let now = Receipt::of(job, &agent, bench.turn.settings());
    let json = lines("receipt").next().unwrap();
    let then: Receipt = serde_json::from_str(json).unwrap();
    let ended = |receipt: &Receipt| receipt.segments.iter().map(|segment| (segment.from.clone(), segment.cost)).collect::<Vec<_>>();
    assert_eq!(ended(&then), ended(&now));
    assert_eq!((then.charge, then.outcome, then.offer), (now.charge, now.outcome, None));
    let cards = agent.cards.clone();
    assert_eq!(verify(&then, &cards), Ok(now.charge), "the receipt of then is still recomputed");
    assert_eq!(verify(&now, &cards), Ok(now.charge));
}

#[test]
fn a_checkpoint_of_before_there_were_changes_goes_on_as_its_facts_do() {
    let (seq, bytes) = lines("checkpoint").map(bytes).next().unwrap();
    assert_eq!(bytes[0], 2);
    let agent = Agent::decode(&bytes).unwrap();
    assert_eq!(agent.seq, seq);
    let charge = |agent: &Agent| agent.job_named("job").unwrap().charge;
    assert!(charge(&agent) < charge(&replayed(Agent::default())));
    assert_eq!(charge(&replayed(agent)), charge(&replayed(Agent::default())));
}
