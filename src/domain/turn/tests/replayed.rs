//! What was charged as it ran, what its facts give once more, what its receipt says and what the verifier computes are one amount.

use proptest::prelude::*;

use super::*;
use crate::domain::audit::Audit;
use crate::domain::chain::Head;
use crate::domain::receipt::{Receipt, verify};
use crate::domain::replay::Replay;

/// What happens to a job next.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Its CPU works for so many milliseconds.
    Work(u64),
    /// It stands still by another's hand for so long.
    Paused(u64),
    /// Other prices come into force.
    Card(usize),
    /// The agent is killed, and another one goes on from the facts.
    Crash,
    /// Credit arrives.
    TopUp(i128),
}

const LINES: [&str; 6] = [
    "meter = \"cpu_time\"\nprice = \"0.7\"\nunit = \"core-second\"\nround = \"up\"",
    "meter = \"wall_time\"\nprice = \"0.06\"\nunit = \"minute\"\nincrement = \"1\"\ntiming = \"advance\"\nanchor = \"job\"",
    "meter = \"wall_time\"\nprice = \"0.0003\"\nunit = \"second\"\ntiming = \"settle_at_end\"\noutcome = { failed = \"0.25\" }",
    "meter = \"wall_time\"\nprice = \"0.001\"\nunit = \"second\"\nround = \"half_even\"\nstate = { paused = \"0.333\" }",
    "meter = \"wall_time\"\nprice = \"0.07\"\nunit = \"minute\"\nincrement = \"1\"\ntiming = \"advance\"\noutcome = { failed = \"0\" }",
    "meter = \"cpu_time\"\nprice = \"0.3\"\nunit = \"core-second\"\nanchor = \"job\"\nround = \"up\"\noutcome = { failed = \"0.333\", completed = \"0.9\" }",
];

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1_u64..90_000).prop_map(Step::Work),
        2 => (1_u64..90_000).prop_map(Step::Paused),
        2 => (0..LINES.len()).prop_map(Step::Card),
        1 => Just(Step::Crash),
        1 => (0_i128..100_000_000_000).prop_map(Step::TopUp),
    ]
}

fn card(version: usize, line: usize) -> Card {
    let text =
        format!("card = \"c\"\nversion = {version}\neffective_from = \"2026-01-01T00:00:00Z\"\n[[line]]\nid = \"l\"\n{}\n", LINES[line]);
    Card::parse(&text, "card.toml").unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
}

fn settle(bench: &mut Bench) {
    bench.durable();
    if bench.turn.agent().outstanding.is_some() {
        bench.answer();
        bench.durable();
    }
}

fn look(bench: &mut Bench, ms: u64, frozen: Frozen) {
    bench.pass(ms);
    bench.frozen = frozen;
    let sample = bench.sample(Attempt(1));
    bench.step(Event::Looked(vec![sample]));
    settle(bench);
}

/// Every row and receipt that went to the disk, in order.
fn stored(effects: &[Effect], rows: &mut Vec<Vec<u8>>, receipts: &mut Vec<String>) {
    for batch in effects.iter().filter_map(|effect| if let Effect::Commit(batch) = effect { Some(batch) } else { None }) {
        assert_eq!(batch.first_seq, rows.len() as u64 + 1);
        rows.extend(batch.rows.iter().map(|row| row.bytes.clone()));
        receipts.extend(batch.receipts.iter().map(|receipt| receipt.json.clone()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn live_equals_replay_equals_verifier(
        steps in prop::collection::vec(step(), 1..25),
        first in 0..LINES.len(),
        outcome in prop::sample::select(vec![Outcome::Completed, Outcome::Failed]),
    ) {
        let (mut rows, mut receipts) = (Vec::new(), Vec::new());
        let mut bench = Bench::new();
        let mut cards = vec![card(2, first)];
        bench.step(Event::CardArrived(Box::new(cards[0].clone()), Vec::new()));
        bench.durable();
        bench.free = 50_000_000_000;
        bench.start(1, "a");
        bench.durable();
        bench.answer();
        bench.durable();
        for step in steps {
            match step {
                Step::Work(ms) => {
                    bench.cpu_ns += ms * MS;
                    look(&mut bench, ms, Frozen::No);
                }
                Step::Paused(ms) => {
                    look(&mut bench, 0, Frozen::Yes);
                    look(&mut bench, ms, Frozen::Yes);
                }
                Step::Card(line) => {
                    let next = card(cards.len() + 2, line);
                    let sample = bench.sample(Attempt(1));
                    bench.step(Event::CardArrived(Box::new(next.clone()), vec![sample]));
                    cards.push(next);
                    settle(&mut bench);
                }
                Step::Crash => {
                    let agent = bench.turn.agent().clone();
                    stored(&std::mem::take(&mut bench.out), &mut rows, &mut receipts);
                    bench.wake(agent, &[]);
                    settle(&mut bench);
                }
                Step::TopUp(nano) => bench.free += nano,
            }
        }
        let ending = Ending { outcome, exit_code: None };
        let gone = JobSample { populated: Reading::Seen(Populated::No), frozen: Reading::Seen(Frozen::No), ..bench.sample(Attempt(1)) };
        bench.step(Event::StopAsked { caller: 9, name: "job".parse().unwrap(), ending, sample: Some(gone) });
        settle(&mut bench);
        for _ in 0..4 {
            bench.free += 100_000_000_000;
            bench.pass(11_000);
            let gone = JobSample { populated: Reading::Seen(Populated::No), frozen: Reading::Seen(Frozen::No), ..bench.sample(Attempt(1)) };
            bench.step(Event::Ticked(vec![gone]));
            settle(&mut bench);
        }
        stored(&std::mem::take(&mut bench.out), &mut rows, &mut receipts);

        let live = bench.job().clone();
        prop_assert!(live.ended.is_some());
        let (mut audit, mut replay, mut head) = (Audit::behind(Head::START, None), Replay::default(), Head::START);
        let mut closed = None;
        for bytes in &rows {
            head = head.after(bytes);
            audit.row(head.seq, bytes, head.link).unwrap_or_else(|fault| panic!("the verifier: {fault}"));
            closed = replay.take(&Fact::decode(bytes).unwrap()).or(closed);
        }
        prop_assert!(0 < audit.finish().unwrap().counts.rows);
        prop_assert!(closed.is_some(), "it was closed: {:?}", replay.job(Attempt(1)));
        let Some(replayed) = closed else { unreachable!() };
        prop_assert_eq!(replayed.charge(), live.charge);
        prop_assert_eq!(&replayed.segments, &live.segments);
        prop_assert_eq!((replayed.drawn, replayed.unfunded, &replayed.refund), (live.drawn, live.unfunded, &live.refund));
        let cards: BTreeMap<_, _> = cards.into_iter().map(|card| (card.digest, card)).collect();
        prop_assert_eq!(receipts.len(), 1);
        let receipt: Receipt = serde_json::from_str(&receipts[0]).unwrap();
        prop_assert_eq!(verify(&receipt, &cards), Ok(live.charge));
        prop_assert_eq!((receipt.net(), receipt.refunded()), (live.charge.minus(live.reduced()), live.refunded()));
        prop_assert_eq!(bench.turn.agent().refunds.values().map(|back| back.total).sum::<Credits>(), live.refunded());
    }
}
