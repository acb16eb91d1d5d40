//! A stop that comes while its start still waits for the authority: the start came first, so the job is known when the stop is looked at.

use super::*;
use crate::domain::act::SlurmJob;

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

/// A Slurm job whose stop came while its start waited: it is known now, and nobody has looked at it since.
fn stopped_before_it_was_seen() -> Bench {
    let mut bench = Bench::new();
    bench.free = 1_000_000_000;
    let target = Target::SlurmJob(SlurmJob { job_id: 7, sluid: None });
    let sample = JobSample {
        cpu_ns: Reading::Missing(Missing::NotYet),
        populated: Reading::Missing(Missing::NotYet),
        ..bench.sample(Attempt(u64::MAX))
    };
    let wanted = Wanted {
        traits: BTreeMap::new(),
        name: "job".parse().unwrap(),
        account: "a".parse().unwrap(),
        owner: Uid::ROOT,
        target,
        time_limit: None,
        cpus: None,
        memory_bytes: None,
        policy: bench.job_policy,
        bid: None,
        storage_bytes: None,
        gang: None,
    };
    bench.step(Event::StartAsked(Box::new(PendingStart { caller: 1, wanted, gpus: Vec::new(), sample, at: bench.now, asked: None })));
    bench.durable();
    bench.stop(2);
    bench.answer();
    bench.durable();
    assert_eq!(bench.callers(), [1, 2]);
    assert_eq!((bench.job().reported, bench.job().phase), (Some(DONE), Phase::Awaited), "whether its cgroup came nobody knows");
    bench
}

#[test]
fn what_runs_though_its_stop_came_before_the_answer_to_its_start_is_metered_to_its_end() {
    let mut bench = stopped_before_it_was_seen();
    bench.pass(1_000);
    bench.cpu_ns = 700 * MS;
    bench.step(Event::Looked(vec![bench.sample(Attempt(1))]));
    bench.durable();
    assert!(bench.job().is_live(), "it runs");
    assert_eq!(bench.job().usage().cpu_ns, u128::from(700 * MS));
    bench.empty();
    bench.empty();
    assert!(bench.turn.agent().jobs.is_empty(), "and is over with its last task");
}

#[test]
fn a_job_whose_cgroup_never_came_is_over_at_the_first_look_after_such_a_stop() {
    let mut bench = stopped_before_it_was_seen();
    bench.pass(1_000);
    let sample =
        JobSample { cpu_ns: Reading::Missing(Missing::NotYet), populated: Reading::Missing(Missing::NotYet), ..bench.sample(Attempt(1)) };
    bench.step(Event::Looked(vec![sample]));
    bench.durable();
    assert!(bench.turn.agent().jobs.is_empty());
}
