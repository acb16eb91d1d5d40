//! A stop that comes while its start still waits for the authority: the start came first, so the job is known when the stop is looked at.

use super::*;

const DONE: Ending = Ending { outcome: Outcome::Completed, exit_code: Some(0) };

impl Bench {
    fn stop(&mut self, caller: u64) {
        self.step(Event::StopAsked { caller, name: "job".parse().unwrap(), ending: DONE, sample: None });
    }

    fn callers(&self) -> Vec<u64> {
        self.out.iter().filter_map(|effect| if let Effect::Reply(caller, _) = effect { Some(*caller) } else { None }).collect()
    }

    fn empty(&mut self) {
        self.pass(1_000);
        let sample = JobSample { populated: Reading::Seen(Populated::No), ..self.sample(Attempt(1)) };
        self.step(Event::Looked(vec![sample]));
        self.durable();
    }
}

#[test]
fn a_stop_that_comes_while_its_start_waits_is_noted_once_that_is_admitted_and_the_job_holds_nothing() {
    let mut bench = Bench::new();
    bench.free = 1_000_000_000;
    bench.start(1, "a");
    bench.durable();
    bench.stop(2);
    bench.durable();
    assert!(bench.replies().is_empty(), "whether there is such a job is not decided");
    bench.answer();
    bench.durable();
    assert_eq!(bench.callers(), [1, 2]);
    assert!(matches!(bench.replies()[..], [Reply::Started { .. }, Reply::StopNoted { attempt: Attempt(1), .. }]));
    assert_eq!(bench.job().reported, Some(DONE));
    bench.empty();
    assert!(bench.turn.agent().jobs.is_empty(), "it never had a task, and is over");
    let grant = &bench.turn.agent().accounts[&"a".parse::<AccountId>().unwrap()].grant;
    assert_eq!((grant.granted.nano(), grant.returned.nano()), (1_000_000_000, 1_000_000_000));
}

#[test]
fn a_stop_of_a_start_that_is_refused_finds_no_job() {
    let mut bench = Bench::new();
    bench.start(1, "a");
    bench.durable();
    bench.stop(2);
    bench.answer();
    bench.durable();
    let codes: Vec<&str> = bench
        .replies()
        .iter()
        .filter_map(|reply| if let Reply::Refused(refusal) = reply { Some(refusal.code.as_str()) } else { None })
        .collect();
    assert_eq!((bench.callers(), codes), (vec![1, 2], vec!["no_credit", "unknown_job"]));
}

#[test]
fn a_stop_waits_no_longer_than_its_start() {
    let mut bench = Bench::new();
    bench.start(1, "a");
    bench.durable();
    bench.stop(2);
    bench.pass(1_499);
    bench.step(Event::Looked(Vec::new()));
    assert!(bench.callers().is_empty());
    bench.pass(1);
    bench.step(Event::Looked(Vec::new()));
    assert_eq!(bench.callers(), [1, 2], "the authority is silent");
}

#[test]
fn a_stop_of_another_job_does_not_wait_for_that_start() {
    let mut bench = Bench::new();
    bench.start(1, "a");
    bench.durable();
    bench.step(Event::StopAsked { caller: 2, name: "other".parse().unwrap(), ending: DONE, sample: None });
    assert_eq!(bench.callers(), [2]);
}
