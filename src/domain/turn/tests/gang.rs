//! A part of a job on several nodes: what it says, and that it stands still and goes on with the others.

use super::*;
use crate::domain::gang::{GangId, Latch, Says, Want};
use crate::domain::receipt::Receipt;

const SECOND: i128 = 1_000_000_000;

fn declared() -> Gang {
    Gang { name: "mpi-17".parse().unwrap(), attempt: 3, size: Some(2) }
}

fn want(want: Want, version: u64) -> GangWant {
    let gang = GangId { account: "a".parse().unwrap(), name: declared().name, attempt: 3 };
    let dry = (want == Want::Freeze).then(|| "n2".parse().unwrap());
    GangWant { gang, want, version, dry }
}

impl Bench {
    /// A part that runs on so much credit, and has heard that all may run under version 1.
    fn part(nano: i128) -> Bench {
        let mut bench = Bench::new();
        (bench.gang, bench.free) = (Some(declared()), nano);
        bench.start(1, "a");
        bench.durable();
        bench.answer();
        bench.durable();
        bench.hears(Want::Run, 1);
        bench.out.clear();
        bench
    }

    /// The next question is answered with this.
    fn hears(&mut self, wanted: Want, version: u64) {
        self.gang_want = Some(want(wanted, version));
        self.ask_and_answer();
    }

    fn ask_and_answer(&mut self) {
        self.pass(150);
        self.step(Event::Looked(Vec::new()));
        self.durable();
        if self.turn.agent().outstanding.is_some() {
            self.answer();
            self.durable();
        }
    }

    /// The part's word in the question that waits.
    fn word(&self) -> (Says, u64) {
        let request = self.question().expect("a question was sent");
        assert_eq!(request.gangs.len(), 1, "{request:?}");
        assert_eq!((&request.gangs[0].gang, request.gangs[0].part), (&want(Want::Run, 0).gang, Attempt(1)));
        (request.gangs[0].says, request.gangs[0].version)
    }

    fn pushed(&mut self, wanted: Want, version: u64) {
        self.step(Event::GangPushed(want(wanted, version)));
        self.durable();
    }
}

#[test]
fn a_start_tells_its_gang_and_the_first_question_after_it_speaks_of_it() {
    let bench = Bench::part(600 * SECOND);
    let part = bench.turn.agent().part(Attempt(1)).unwrap();
    assert_eq!((part.declared(), part.version, part.told), (declared(), 1, Some((Says::Runs, 0))));
    let mut other = Bench::part(600 * SECOND);
    other.start(2, "a");
    other.durable();
    assert!(matches!(other.replies()[..], [Reply::Started { novelty: Novelty::Repeated, .. }]));
    other.out.clear();
    other.gang = Some(Gang { attempt: 4, ..declared() });
    other.start(3, "a");
    other.durable();
    assert!(matches!(other.replies()[..], [Reply::Refused(refusal)] if refusal.code == "changed_repeat"), "of another run");
}

#[test]
fn where_another_part_ran_dry_a_funded_one_stands_still_once_that_is_on_disk_and_pays_nothing_meanwhile() {
    let mut bench = Bench::part(600 * SECOND);
    bench.work(1_000);
    bench.step(Event::GangPushed(want(Want::Freeze, 2)));
    assert!(bench.orders().is_empty(), "a crash now would forget why");
    bench.durable();
    assert_eq!(bench.orders(), [Act::Freeze]);
    bench.acted(Act::Freeze);
    bench.durable();
    let charge = bench.job().charge;
    assert!(bench.turn.agent().accounts.values().all(|account| account.empty_since.is_none()), "its account is not empty");
    bench.pass(5_000);
    let sample = bench.sample(Attempt(1));
    bench.step(Event::Ticked(vec![sample]));
    bench.durable();
    assert_eq!((bench.job().charge, bench.job().phase), (charge, Phase::Frozen));
    let told = bench.job().steps.iter().find_map(|step| match &step.event {
        StepEvent::GangHeld { version, dry } => Some((*version, dry.clone())),
        _ => None,
    });
    assert_eq!(told, Some((2, Some("n2".parse().unwrap()))), "why, and where");
    bench.ask_and_answer(); // what was asked before
    bench.pass(150);
    bench.step(Event::Looked(Vec::new()));
    bench.durable();
    assert_eq!(bench.word(), (Says::Ready, 2));
    bench.out.clear();
    bench.pushed(Want::Run, 3);
    assert_eq!(bench.orders(), [Act::Thaw]);
}

#[test]
fn an_older_word_and_one_of_another_gang_change_nothing() {
    let mut bench = Bench::part(600 * SECOND);
    bench.pushed(Want::Freeze, 4);
    assert_eq!(bench.orders(), [Act::Freeze]);
    bench.acted(Act::Freeze);
    bench.durable();
    bench.out.clear();
    let state = bench.turn.agent().gangs.clone();
    bench.pushed(Want::Run, 4);
    bench.pushed(Want::Run, 3);
    let mut foreign = want(Want::Run, 9);
    foreign.gang.attempt = 2;
    bench.step(Event::GangPushed(foreign));
    bench.durable();
    assert_eq!(bench.orders(), []);
    assert_eq!(bench.turn.agent().gangs, state);
}

#[test]
fn g1_who_runs_dry_says_so_at_once_stands_still_and_goes_on_only_with_the_others() {
    let mut bench = Bench::part(SECOND);
    bench.gang_want = None;
    bench.work(1_000);
    bench.durable();
    assert_eq!(bench.orders(), [Act::Freeze]);
    bench.acted(Act::Freeze);
    bench.durable();
    assert_eq!(bench.word(), (Says::Dry, 1), "the question before did not say so, and is void");
    // It is funded by the very answer that tells that all stand still.
    (bench.free, bench.rest, bench.gang_want) = (600 * SECOND, 1, Some(want(Want::Freeze, 2)));
    bench.out.clear();
    bench.step(Event::Looked(Vec::new()));
    let asked = bench.turn.agent().outstanding.clone().unwrap();
    bench.out.push(Effect::Send(asked.request));
    bench.answer();
    bench.durable();
    assert_eq!(bench.orders(), [], "the others do not stand still yet");
    bench.pass(150);
    bench.step(Event::Looked(Vec::new()));
    bench.durable();
    assert_eq!(bench.word(), (Says::Ready, 2));
    bench.hears(Want::Run, 3);
    assert_eq!(bench.orders(), [Act::Thaw]);
}

#[test]
fn while_there_is_more_a_part_waits_for_a_minute_of_credit_and_else_goes_on_with_all_there_is() {
    let mut bench = Bench::part(30 * SECOND);
    bench.pushed(Want::Freeze, 2);
    bench.acted(Act::Freeze);
    bench.durable();
    let needs = bench.turn.agent().part(Attempt(1)).unwrap().needs;
    assert_eq!(needs, Credits::from_nano(60 * SECOND), "so young a job may burn all that the machine has");
    let next_word = |bench: &mut Bench| {
        bench.ask_and_answer();
        bench.pass(150);
        bench.step(Event::Looked(Vec::new()));
        bench.durable();
        bench.word()
    };
    bench.gang_want = Some(want(Want::Freeze, 2));
    bench.rest = SECOND;
    assert_eq!(next_word(&mut bench), (Says::Waits, 2), "half of what it needs, and there is more");
    bench.free = 30 * SECOND;
    assert_eq!(next_word(&mut bench), (Says::Ready, 2), "a minute");
    let mut bench = Bench::part(30 * SECOND);
    bench.pushed(Want::Freeze, 2);
    bench.acted(Act::Freeze);
    bench.durable();
    bench.gang_want = Some(want(Want::Freeze, 2));
    bench.rest = SECOND;
    assert_eq!(next_word(&mut bench), (Says::Waits, 2));
    bench.rest = 0;
    assert_eq!(next_word(&mut bench), (Says::Ready, 2), "all there is");
}

#[test]
fn the_end_of_its_job_is_said_until_that_is_heard_and_then_no_more() {
    let mut bench = Bench::part(600 * SECOND);
    bench.ask_and_answer();
    bench.out.clear();
    let ending = Ending { outcome: Outcome::Completed, exit_code: Some(0) };
    let sample = JobSample { populated: Reading::Seen(Populated::No), ..bench.sample(Attempt(1)) };
    bench.step(Event::StopAsked { caller: 2, name: "job".parse().unwrap(), ending, sample: Some(sample.clone()) });
    bench.pass(200);
    let sample = JobSample { at: bench.now.mono, ..sample };
    bench.step(Event::Looked(vec![sample]));
    bench.durable();
    assert!(bench.turn.agent().jobs.is_empty(), "it is closed");
    bench.pass(11_000);
    bench.step(Event::Looked(Vec::new()));
    bench.durable();
    assert_eq!(bench.word(), (Says::Left, 1));
    bench.answer();
    bench.durable();
    bench.out.clear();
    for _ in 0..20 {
        bench.ask_and_answer();
    }
    assert!(bench.question().is_none_or(|request| request.gangs.is_empty()));
    let receipt = Receipt::of(bench.job(), bench.turn.agent(), bench.turn.settings());
    assert_eq!(receipt.gang, Some(declared()), "its receipt names the whole");
}

#[test]
fn a_new_process_stands_still_as_the_one_before_and_repeats_its_question_word_for_word() {
    let mut bench = Bench::new();
    (bench.gang, bench.free) = (Some(declared()), 600 * SECOND);
    bench.start(1, "a");
    bench.durable();
    bench.answer();
    bench.durable();
    bench.hears(Want::Run, 1);
    bench.pushed(Want::Freeze, 2);
    bench.acted(Act::Freeze);
    bench.durable();
    bench.pass(150);
    bench.step(Event::Looked(Vec::new()));
    bench.durable();
    let (asked, state) = (bench.question().unwrap(), bench.turn.agent().clone());
    assert_eq!(bench.word(), (Says::Ready, 2));
    assert_eq!(bench.crashed_at(state.seq), state, "the facts give it");
    assert_eq!(Agent::decode(&state.encode()), Some(state.clone()), "a checkpoint holds it");
    let again = bench.crashed_at(state.seq);
    bench.wake(again, &[Attempt(1)]);
    bench.pass(600);
    let sample = bench.sample(Attempt(1));
    bench.step(Event::Ticked(vec![sample]));
    assert_eq!(bench.question(), Some(asked.clone()));
    assert_eq!(bench.question().unwrap().digest(), asked.digest());
    assert_eq!(bench.orders(), [], "nobody thaws it");
    let without = Request { gangs: Vec::new(), ..asked.clone() };
    assert_ne!(without.digest(), asked.digest(), "what it says of gangs is a part of it");
}

#[test]
fn where_nothing_is_enforced_a_part_runs_on_and_holds_nobody_up() {
    let mut bench = Bench::part(600 * SECOND);
    bench.step(Event::EnforcementAsked { caller: 9, mode: Enforcement::Observe, by: Uid::ROOT });
    bench.pushed(Want::Freeze, 2);
    assert_eq!(bench.orders(), []);
    bench.pass(150);
    bench.step(Event::Looked(Vec::new()));
    bench.durable();
    assert_eq!(bench.word(), (Says::Ready, 2));
}

#[test]
fn of_an_authority_that_knows_no_gangs_nobody_waits_for_a_word() {
    let mut bench = Bench::new();
    (bench.gang, bench.free) = (Some(declared()), SECOND);
    bench.start(1, "a");
    bench.durable();
    bench.answer();
    bench.durable();
    bench.work(1_000);
    bench.durable();
    bench.acted(Act::Freeze);
    bench.durable();
    bench.out.clear();
    bench.pass(11_000);
    bench.step(Event::Looked(Vec::new()));
    bench.durable();
    (bench.free, bench.rest) = (600 * SECOND, 1);
    bench.answer();
    bench.durable();
    assert_eq!(bench.orders(), [Act::Thaw]);
}

#[test]
fn a_question_s_text_holds_its_gangs_and_one_without_them_reads_as_before() {
    let mut bench = Bench::part(600 * SECOND);
    bench.pushed(Want::Freeze, 2);
    bench.pass(150);
    bench.step(Event::Looked(Vec::new()));
    bench.durable();
    let request = bench.question().unwrap();
    let text = serde_json::to_value(&request).unwrap();
    assert_eq!(text["gangs"][0]["says"], "ready");
    assert_eq!(text["gangs"][0]["gang"], serde_json::json!({ "account": "a", "name": "mpi-17", "attempt": 3 }));
    assert_eq!(serde_json::from_value::<Request>(text.clone()).unwrap(), request);
    let mut older = text;
    older.as_object_mut().unwrap().remove("gangs");
    assert_eq!(serde_json::from_value::<Request>(older).unwrap(), Request { gangs: Vec::new(), ..request });
}

#[test]
fn a_part_that_reaches_nobody_runs_on_what_it_holds_and_no_longer() {
    let mut bench = Bench::part(5 * SECOND);
    for _ in 0..4 {
        bench.work(1_000);
        bench.durable();
    }
    assert_eq!(bench.orders(), [], "others may stand still: nothing tells it so");
    bench.work(1_000);
    bench.durable();
    assert_eq!(bench.orders(), [Act::Freeze]);
    assert_eq!(bench.turn.agent().part(Attempt(1)).unwrap().latch, Latch::Dry);
}
