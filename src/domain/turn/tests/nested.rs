//! Jobs inside other jobs' directories: every nanosecond of CPU time is billed once.

use super::*;
use proptest::prelude::*;

fn start(bench: &mut Bench, caller: u64, path: &str, cpu_ns: u64) {
    let wanted = Wanted {
        traits: BTreeMap::new(),
        name: format!("job-{caller}").parse().unwrap(),
        account: "a".parse().unwrap(),
        owner: Uid::ROOT,
        target: Target::Cgroups(vec![CgroupDir { path: path.to_owned(), inode: caller }]),
        time_limit: None,
        cpus: None,
        memory_bytes: None,
        policy: JobPolicy::default(),
        bid: None,
        storage_bytes: None,
        gang: None,
    };
    let sample = reading(bench, u64::MAX, cpu_ns);
    bench.step(Event::StartAsked(Box::new(PendingStart { caller, wanted, gpus: Vec::new(), sample, at: bench.now, asked: None })));
    bench.durable();
    bench.answer();
    bench.durable();
}

fn reading(bench: &Bench, attempt: u64, cpu_ns: u64) -> JobSample {
    JobSample { cpu_ns: Reading::Seen(cpu_ns), ..bench.sample(Attempt(attempt)) }
}

/// Jobs at these paths, one attempt each from 1 on, with counters at zero.
fn nest(paths: &[&str]) -> Bench {
    let mut bench = Bench::new();
    (bench.free, bench.rest) = (300_000_000_000, 1); // while something is free nothing goes back
    for (path, caller) in paths.iter().zip(1..) {
        start(&mut bench, caller, path, 0);
    }
    bench
}

fn billed(bench: &Bench, attempt: u64) -> u128 {
    bench.turn.agent().jobs.get(&Attempt(attempt)).unwrap().usage().cpu_ns
}

fn look(bench: &mut Bench, counters: &[(u64, u64)]) {
    bench.pass(1_000);
    let samples = counters.iter().map(|(attempt, cpu_ns)| reading(bench, *attempt, *cpu_ns)).collect();
    bench.step(Event::Ticked(samples));
}

#[test]
fn what_an_inner_job_uses_is_its_own_and_not_the_outer_ones() {
    let mut bench = nest(&["/cg/a", "/cg/a/b", "/cg/ab"]);
    look(&mut bench, &[(1, 700), (2, 500), (3, 90)]);
    assert_eq!([1, 2, 3].map(|attempt| billed(&bench, attempt)), [200, 500, 90]);
    look(&mut bench, &[(1, 1_700), (2, 500), (3, 90)]);
    assert_eq!([1, 2].map(|attempt| billed(&bench, attempt)), [1_200, 500]);
}

#[test]
fn an_inner_counter_that_was_read_a_moment_later_is_taken_off_the_next_time() {
    let mut bench = nest(&["/cg/a", "/cg/a/b"]);
    look(&mut bench, &[(1, 500), (2, 520)]);
    assert_eq!([1, 2].map(|attempt| billed(&bench, attempt)), [0, 520]);
    look(&mut bench, &[(1, 600), (2, 540)]);
    assert_eq!([1, 2].map(|attempt| billed(&bench, attempt)), [60, 540], "600 in all");
}

#[test]
fn what_comes_to_lie_around_a_job_later_is_relieved_of_it_from_then_on() {
    let mut bench = nest(&["/cg/a/b/c", "/cg/a"]);
    look(&mut bench, &[(1, 100), (2, 100)]);
    start(&mut bench, 3, "/cg/a/b", 100);
    look(&mut bench, &[(1, 200), (2, 350), (3, 230)]);
    assert_eq!([1, 2, 3].map(|attempt| billed(&bench, attempt)), [200, 120, 30], "each what is its own of 350");
}

proptest! {
    /// Three jobs inside each other, looked at together or with what is inside them, at slightly different instants, over a crash.
    #[test]
    fn all_that_the_outermost_counter_shows_is_billed_once(steps in proptest::collection::vec((0_u64..1_000, 0_u64..1_000, 0_u64..1_000, 0_u64..50, 1_usize..=3), 1..40)) {
        let mut bench = nest(&["/cg/a", "/cg/a/b", "/cg/a/b/c"]);
        let (mut own_a, mut own_b, mut c) = (0_u64, 0_u64, 0_u64);
        for (more_a, more_b, more_c, later, looked) in steps {
            own_a += more_a;
            own_b += more_b;
            c += more_c;
            // The outer ones are read first: what runs meanwhile shows in the inner ones alone.
            let counters = [(1, own_a + own_b + c), (2, own_b + c + later), (3, c + later)];
            (own_a, own_b, c) = (own_a, own_b, c + later);
            look(&mut bench, &counters[3 - looked..]);
            prop_assert!(billed(&bench, 3) <= u128::from(c));
        }
        look(&mut bench, &[(1, own_a + own_b + c), (2, own_b + c), (3, c)]);
        look(&mut bench, &[(1, own_a + own_b + c), (2, own_b + c), (3, c)]);
        prop_assert_eq!([1, 2, 3].map(|attempt| billed(&bench, attempt)), [own_a, own_b, c].map(u128::from));
        let seq = bench.turn.agent().seq;
        let expected = bench.turn.agent().jobs.clone();
        prop_assert_eq!(bench.crashed_at(seq).jobs, expected, "the facts alone give the same");
    }
}
