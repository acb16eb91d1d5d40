//! An account's policy on the node: at a start, at zero, and while the authority is silent.

use super::*;
use crate::domain::agent::start::Refusal;
use crate::domain::ladder::Then;
use crate::domain::wire::{Push, StartPredicted, Unreachable};

const CREDIT: i128 = 1_000_000_000;

/// What a start is answered on this much credit, under this policy, with a time limit, where the authority says this.
fn start_on(nano: i128, policy: AccountPolicy, limit_s: Option<u64>, word: Option<Verdict>) -> Result<(), Refusal> {
    let mut bench = Bench::new();
    (bench.free, bench.policy, bench.word) = (nano, policy, word);
    bench.time_limit = limit_s.map(Nanos::from_secs);
    bench.start(1, "a");
    bench.durable();
    bench.answer();
    bench.durable();
    match bench.replies()[..] {
        [Reply::Started { .. }] => Ok(()),
        [Reply::Refused(refusal)] => Err(refusal.clone()),
        ref other => panic!("{other:?}"),
    }
}

fn code(result: Result<(), Refusal>) -> &'static str {
    let known = ["no_credit", "below_threshold", "predicted_to_exceed", "not_funded", "not_verified", "refill_pending", "unit_mismatch"];
    match result {
        Ok(()) => "started",
        Err(refusal) => known.into_iter().find(|code| *code == refusal.code).unwrap_or_else(|| panic!("{refusal:?}")),
    }
}

/// A job that runs on this much credit under this policy.
fn running_under(nano: i128, policy: AccountPolicy) -> Bench {
    let mut bench = Bench::new();
    (bench.free, bench.policy) = (nano, policy);
    bench.start(1, "a");
    bench.durable();
    bench.answer();
    bench.durable();
    bench.out.clear();
    bench
}

fn answer_if_asked(bench: &mut Bench) {
    bench.durable();
    let outstanding = bench.turn.agent().outstanding.as_ref().map(|outstanding| outstanding.request.request);
    if bench.question().is_some_and(|question| Some(question.request) == outstanding) {
        bench.answer();
        bench.durable();
    }
}

/// A second in which the job works, if it may; whatever is ordered is done at once.
fn live_a_second(bench: &mut Bench) {
    let before = bench.orders().len();
    if bench.frozen == Frozen::No {
        bench.work(1_000);
    } else {
        bench.pass(1_000);
        let sample = bench.sample(Attempt(1));
        bench.step(Event::Ticked(vec![sample]));
    }
    answer_if_asked(bench);
    for act in bench.orders().split_off(before) {
        if act != Act::Kill {
            bench.acted(act);
            answer_if_asked(bench);
        }
    }
}

fn live(bench: &mut Bench, seconds: u64) {
    for _ in 0..seconds {
        live_a_second(bench);
    }
}

fn without_repeats(orders: Vec<Act>) -> Vec<Act> {
    let mut orders = orders;
    orders.dedup();
    orders
}

#[test]
fn s8_a_start_is_refused_below_the_threshold_and_admitted_at_it() {
    let policy = AccountPolicy { start_threshold: Credits::from_nano(10 * CREDIT), ..AccountPolicy::default() };
    assert_eq!(code(start_on(10 * CREDIT - 1, policy, None, None)), "below_threshold");
    assert_eq!(code(start_on(10 * CREDIT, policy, None, None)), "started");
    assert_eq!(code(start_on(CREDIT, AccountPolicy::default(), None, None)), "started", "no threshold, no refusal");
}

#[test]
fn s9_a_start_that_is_predicted_to_exceed_is_refused_where_the_policy_checks_that() {
    let checked = AccountPolicy { start_predicted: StartPredicted::Check, ..AccountPolicy::default() };
    assert_eq!(code(start_on(60 * CREDIT - 1, checked, Some(60), None)), "predicted_to_exceed");
    assert_eq!(code(start_on(60 * CREDIT, checked, Some(60), None)), "started");
    assert_eq!(code(start_on(CREDIT, checked, None, None)), "started", "without a time limit nothing is predicted");
    assert_eq!(code(start_on(CREDIT, AccountPolicy::default(), Some(60), None)), "started");
}

#[test]
fn a_start_that_would_leave_too_few_funded_minutes_is_refused() {
    let policy = AccountPolicy { start_funded: Some(Nanos::from_secs(600)), ..AccountPolicy::default() };
    assert_eq!(code(start_on(600 * CREDIT - 1, policy, None, None)), "not_funded");
    assert_eq!(code(start_on(600 * CREDIT, policy, None, None)), "started");
}

#[test]
fn each_reason_for_which_a_start_is_refused_has_its_own_code() {
    let policy = AccountPolicy {
        start_threshold: Credits::from_nano(10 * CREDIT),
        start_predicted: StartPredicted::Check,
        start_funded: Some(Nanos::from_secs(30)),
        ..AccountPolicy::default()
    };
    let with = |nano, limit_s, word| code(start_on(nano, policy, limit_s, word));
    let all = [
        with(0, None, None),
        with(5 * CREDIT, None, None),
        with(20 * CREDIT, None, None),
        with(40 * CREDIT, Some(60), None),
        with(0, None, Some(Verdict::NotVerified)),
        with(0, None, Some(Verdict::RefillPending)),
        with(0, None, Some(Verdict::UnitMismatch)),
        with(60 * CREDIT, Some(60), None),
    ];
    let codes =
        ["no_credit", "below_threshold", "not_funded", "predicted_to_exceed", "not_verified", "refill_pending", "unit_mismatch", "started"];
    assert_eq!(all, codes);
}

#[test]
fn a9_not_verified_is_not_exhausted_a_running_job_stands_still_and_is_never_ended() {
    let mut bench = running_under(3 * CREDIT, AccountPolicy { on_exhaustion: OnExhaustion::Kill, ..AccountPolicy::default() });
    bench.word = Some(Verdict::NotVerified);
    live(&mut bench, 60);
    assert_eq!(bench.orders(), [Act::Freeze]);
    assert!(!bench.job().steps.iter().any(|step| matches!(step.event, StepEvent::Exhausted(_))));
    bench.word = None;
    live(&mut bench, 15);
    assert_eq!(bench.orders()[..2], [Act::Freeze, Act::Kill], "exhausted is another word");
}

#[test]
fn a9_what_ran_before_an_account_was_found_not_to_be_verified_is_written_off_and_its_job_can_close() {
    let mut bench = running_under(3 * CREDIT, AccountPolicy { enforcement: Enforcement::Observe, ..AccountPolicy::default() });
    bench.word = Some(Verdict::NotVerified);
    live(&mut bench, 10);
    assert_eq!((bench.orders(), bench.job().owed()), (vec![], Credits::ZERO));
    assert!(bench.job().unfunded.is_positive());
    let ending = crate::domain::job::Ending { outcome: Outcome::Completed, exit_code: Some(0) };
    bench.step(Event::StopAsked { caller: 9, name: "job".parse().unwrap(), ending, sample: None });
    bench.durable();
    bench.pass(1_000);
    let gone =
        JobSample { cpu_ns: Reading::Missing(Missing::Vanished), populated: Reading::Seen(Populated::No), ..bench.sample(Attempt(1)) };
    bench.step(Event::Ticked(vec![gone]));
    answer_if_asked(&mut bench);
    assert!(bench.turn.agent().jobs.is_empty(), "{:?}", bench.job());
}

#[test]
fn s9_what_runs_goes_on_until_nothing_is_left_and_then_each_policy_has_its_own_end() {
    let policy = |on_exhaustion| AccountPolicy { on_exhaustion, grace: Nanos::from_secs(5), ..AccountPolicy::default() };
    let orders = |on_exhaustion| {
        let mut bench = running_under(10 * CREDIT, policy(on_exhaustion));
        live(&mut bench, 9);
        assert_eq!(bench.orders(), [], "{on_exhaustion:?}: there is a second left");
        live(&mut bench, 30);
        without_repeats(bench.orders())
    };
    assert_eq!(orders(OnExhaustion::Freeze), [Act::Freeze]);
    assert_eq!(orders(OnExhaustion::Stop), [Act::Freeze, Act::Terminate, Act::Freeze], "what has not ended after the grace stands still");
    assert_eq!(orders(OnExhaustion::Terminate), [Act::Freeze, Act::Terminate, Act::Kill]);
    assert_eq!(orders(OnExhaustion::Kill), [Act::Freeze, Act::Kill]);
    assert_eq!(orders(OnExhaustion::RefuseNew), []);
    assert_eq!(orders(OnExhaustion::AllowNegative), []);
}

#[test]
fn a_job_that_was_stopped_goes_on_when_credit_comes() {
    let mut bench = running_under(
        2 * CREDIT,
        AccountPolicy { on_exhaustion: OnExhaustion::Stop, grace: Nanos::from_secs(5), ..AccountPolicy::default() },
    );
    live(&mut bench, 20);
    assert_eq!(bench.orders(), [Act::Freeze, Act::Terminate, Act::Freeze]);
    bench.free = 1_000 * CREDIT;
    live(&mut bench, 15);
    assert_eq!(bench.orders().last(), Some(&Act::Thaw));
    assert!(bench.job().terminated_at.is_none(), "what was begun against it is over");
}

/// Its tasks are gone, and its stop is reported as a success.
fn ended_well(bench: &mut Bench) -> Outcome {
    let ending = crate::domain::job::Ending { outcome: Outcome::Completed, exit_code: Some(0) };
    let gone =
        JobSample { cpu_ns: Reading::Missing(Missing::Vanished), populated: Reading::Seen(Populated::No), ..bench.sample(Attempt(1)) };
    bench.step(Event::StopAsked { caller: 9, name: "job".parse().unwrap(), ending, sample: Some(gone) });
    bench.durable();
    bench.job().ending.unwrap().outcome
}

#[test]
fn a_job_that_was_asked_to_end_and_went_on_with_new_credit_did_not_end_for_want_of_it() {
    for on_exhaustion in [OnExhaustion::Stop, OnExhaustion::Terminate] {
        let policy = AccountPolicy { on_exhaustion, grace: Nanos::from_secs(5), ..AccountPolicy::default() };
        let mut bench = running_under(2 * CREDIT, policy);
        live(&mut bench, 5);
        assert_eq!(bench.orders().last(), Some(&Act::Terminate));
        bench.free = 1_000 * CREDIT;
        live(&mut bench, 30);
        assert_eq!(ended_well(&mut bench), Outcome::Completed, "{on_exhaustion:?}");
        let mut poor = running_under(2 * CREDIT, policy);
        live(&mut poor, 5);
        assert_eq!(ended_well(&mut poor), Outcome::OutOfCredit, "{on_exhaustion:?}: it did as it was asked");
    }
}

#[test]
fn a_job_that_was_stopped_is_ended_after_the_freeze_ttl_if_the_policy_says_so() {
    let policy = AccountPolicy {
        on_exhaustion: OnExhaustion::Stop,
        grace: Nanos::from_secs(2),
        freeze_ttl: Some(Nanos::from_secs(20)),
        then: Then::Kill,
        ..AccountPolicy::default()
    };
    let mut bench = running_under(2 * CREDIT, policy);
    live(&mut bench, 15);
    assert_eq!(bench.orders(), [Act::Freeze, Act::Terminate, Act::Freeze]);
    live(&mut bench, 15);
    assert_eq!(bench.orders()[..4], [Act::Freeze, Act::Terminate, Act::Freeze, Act::Kill]);
}

#[test]
fn where_new_jobs_are_refused_at_zero_the_running_one_goes_on_and_where_debt_is_allowed_both_do() {
    for (on_exhaustion, second) in [(OnExhaustion::RefuseNew, "no_credit"), (OnExhaustion::AllowNegative, "started")] {
        let mut bench = running_under(2 * CREDIT, AccountPolicy { on_exhaustion, ..AccountPolicy::default() });
        live(&mut bench, 5);
        bench.out.clear();
        bench.start_named("second", 2, "a");
        answer_if_asked(&mut bench);
        let told = match bench.replies()[..] {
            [Reply::Started { .. }] => "started",
            [Reply::Refused(refusal)] => &refusal.code,
            ref other => panic!("{other:?}"),
        };
        assert_eq!((told, bench.orders()), (second, vec![]), "{on_exhaustion:?}");
        assert_eq!(bench.job().charge, bench.job().drawn.plus(bench.job().unfunded).plus(bench.job().owed()));
        assert!(bench.job().unfunded.is_positive(), "what it used past zero stands on its receipt");
    }
}

#[test]
fn r5_at_zero_all_running_jobs_of_the_account_are_ended() {
    let policy = AccountPolicy { on_exhaustion: OnExhaustion::Kill, ..AccountPolicy::default() };
    let mut bench = Bench::new();
    (bench.free, bench.policy) = (30 * CREDIT, policy);
    for (caller, name) in [(1, "job"), (2, "second"), (3, "third")] {
        bench.start_named(name, caller, "a");
        answer_if_asked(&mut bench);
    }
    assert_eq!(bench.turn.agent().jobs.len(), 3);
    bench.out.clear();
    let mut cpu_ns = [0_u64; 3];
    for _ in 0..20 {
        bench.pass(1_000);
        let samples: Vec<JobSample> = (1..=3_u64)
            .map(|attempt| {
                let used = &mut cpu_ns[usize::try_from(attempt).unwrap() - 1];
                *used += 1_000 * MS;
                JobSample { cpu_ns: Reading::Seen(*used), ..bench.sample(Attempt(attempt)) }
            })
            .collect();
        bench.step(Event::Looked(samples));
        answer_if_asked(&mut bench);
    }
    let killed: BTreeSet<Attempt> = bench
        .out
        .iter()
        .filter_map(|effect| if let Effect::Act(order) = effect { (order.act == Act::Kill).then_some(order.attempt) } else { None })
        .collect();
    assert_eq!(killed, [Attempt(1), Attempt(2), Attempt(3)].into());
}

#[test]
fn r7_while_a_refill_is_pending_jobs_stand_still_and_none_is_ended_and_when_it_lands_they_go_on() {
    let policy = AccountPolicy { on_exhaustion: OnExhaustion::Kill, ..AccountPolicy::default() };
    let mut bench = running_under(3 * CREDIT, policy);
    bench.word = Some(Verdict::RefillPending);
    live(&mut bench, 120);
    assert_eq!(bench.orders(), [Act::Freeze]);
    assert_eq!(bench.job().unfunded, Credits::ZERO, "nothing is written off while credit may come");
    (bench.word, bench.free) = (None, 50 * CREDIT);
    live(&mut bench, 5);
    assert_eq!(bench.orders(), [Act::Freeze, Act::Thaw]);
}

#[test]
fn r7_when_the_wait_is_over_the_policy_takes_its_course() {
    let mut bench = running_under(3 * CREDIT, AccountPolicy { on_exhaustion: OnExhaustion::Kill, ..AccountPolicy::default() });
    bench.word = Some(Verdict::RefillPending);
    live(&mut bench, 30);
    assert_eq!(bench.orders(), [Act::Freeze]);
    bench.word = None;
    live(&mut bench, 5);
    assert_eq!(bench.orders()[..2], [Act::Freeze, Act::Kill]);
}

#[test]
fn v11_a_push_after_the_confirmation_clears_a_freeze() {
    let mut bench = running_under(3 * CREDIT, AccountPolicy::default());
    live(&mut bench, 10);
    assert_eq!(bench.orders(), [Act::Freeze]);
    bench.free = 20 * CREDIT;
    bench.step(Event::Pushed(Push { account: "a".parse().unwrap(), version: 2 }));
    answer_if_asked(&mut bench);
    assert_eq!(bench.orders(), [Act::Freeze, Act::Thaw]);
}

#[test]
fn v9_the_node_shows_free_and_paid_and_the_next_reset_and_decides_nothing_by_them() {
    let mut bench = Bench::new();
    let balance = Balance {
        account: "a".parse().unwrap(),
        free: Credits::from_nano(3 * CREDIT),
        paid: Credits::from_nano(10 * CREDIT),
        reset: Some(Wall(1_800_000_600_000)),
        refill: Credits::ZERO,
        alerts: 0,
        committed: Credits::ZERO,
    };
    (bench.free, bench.balances) = (2 * CREDIT, vec![balance.clone()]);
    bench.start(1, "a");
    bench.durable();
    assert_eq!(bench.turn.balance(&balance.account), None);
    bench.answer();
    assert_eq!(bench.turn.balance(&balance.account), Some(&balance));
    live(&mut bench, 5);
    assert_eq!(bench.orders(), [Act::Freeze], "two were granted, whatever the balance is made of");
}

#[test]
fn while_the_authority_is_silent_jobs_stand_still_or_run_on_as_the_policy_says_and_none_is_ended() {
    for (unreachable, ordered) in [(Unreachable::Freeze, vec![Act::Freeze]), (Unreachable::RunOn, vec![])] {
        for on_exhaustion in [OnExhaustion::Freeze, OnExhaustion::Terminate, OnExhaustion::Kill] {
            let mut bench = running_under(3 * CREDIT, AccountPolicy { on_exhaustion, unreachable, ..AccountPolicy::default() });
            for _ in 0..60 {
                if bench.frozen == Frozen::No {
                    bench.work(1_000);
                } else {
                    bench.pass(1_000);
                }
                bench.durable();
                if bench.orders().last() == Some(&Act::Freeze) && bench.frozen == Frozen::No {
                    bench.acted(Act::Freeze);
                }
            }
            assert_eq!(without_repeats(bench.orders()), ordered, "{unreachable:?} {on_exhaustion:?}");
            let owed = bench.job().owed();
            assert_eq!(owed.is_positive(), unreachable == Unreachable::RunOn, "what it used meanwhile is owed: {owed}");
            assert_eq!(bench.job().unfunded, Credits::ZERO);
        }
    }
}

#[test]
fn once_the_authority_has_spoken_running_on_is_over() {
    let policy = AccountPolicy { unreachable: Unreachable::RunOn, ..AccountPolicy::default() };
    let mut bench = running_under(3 * CREDIT, policy);
    for _ in 0..30 {
        bench.work(1_000);
        bench.durable();
    }
    assert_eq!(bench.orders(), []);
    live(&mut bench, 15);
    assert_eq!(bench.orders(), [Act::Freeze]);
    assert!(bench.job().unfunded.is_positive(), "and what was owed is written off");
}

#[test]
fn a_start_while_the_authority_is_silent_is_refused_unless_the_account_runs_on() {
    for (unreachable, told) in [(Unreachable::Freeze, "authority_unreachable"), (Unreachable::RunOn, "started")] {
        let mut bench = running_under(100 * CREDIT, AccountPolicy { unreachable, ..AccountPolicy::default() });
        bench.start_named("second", 2, "a");
        bench.durable();
        for _ in 0..4 {
            bench.pass(500);
            bench.step(Event::Looked(Vec::new()));
            bench.durable();
        }
        let reply = match bench.replies()[..] {
            [Reply::Started { .. }] => "started",
            [Reply::Refused(refusal)] => &refusal.code,
            ref other => panic!("{other:?}"),
        };
        assert_eq!(reply, told);
    }
    let mut unknown = Bench::new();
    unknown.start(1, "a");
    unknown.durable();
    for _ in 0..4 {
        unknown.pass(500);
        unknown.step(Event::Looked(Vec::new()));
    }
    assert!(
        matches!(unknown.replies()[..], [Reply::Refused(refusal)] if refusal.code == "authority_unreachable"),
        "nobody knows its policy"
    );
}

#[test]
fn f22_a_stop_is_never_held_up_by_the_accounts_own_want_of_credit() {
    for word in [None, Some(Verdict::NotVerified), Some(Verdict::RefillPending), Some(Verdict::Exhausted)] {
        let mut bench =
            running_under(3 * CREDIT, AccountPolicy { start_threshold: Credits::from_nano(CREDIT), ..AccountPolicy::default() });
        bench.word = word;
        live(&mut bench, 10);
        bench.out.clear();
        let ending = crate::domain::job::Ending { outcome: Outcome::Completed, exit_code: Some(0) };
        let sample = JobSample { populated: Reading::Seen(Populated::No), ..bench.sample(Attempt(1)) };
        bench.step(Event::StopAsked { caller: 9, name: "job".parse().unwrap(), ending, sample: Some(sample) });
        bench.durable();
        assert!(matches!(bench.replies()[..], [Reply::StopNoted { .. }]), "{word:?}: {:?}", bench.replies());
    }
}

#[test]
fn f22_nothing_is_ended_unless_the_account_is_empty_and_the_authority_says_exhausted_and_that_is_fresh() {
    // Each of the three alone, and any two, are not enough; no policy reads "and" as "or".
    for on_exhaustion in [OnExhaustion::Stop, OnExhaustion::Terminate, OnExhaustion::Kill] {
        for (empty, exhausted, fresh) in (0..8).map(|bits| (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0)) {
            let mut bench =
                running_under(if empty { 3 } else { 1_000 } * CREDIT, AccountPolicy { on_exhaustion, ..AccountPolicy::default() });
            bench.word = Some(if exhausted { Verdict::Exhausted } else { Verdict::Final });
            if fresh {
                live(&mut bench, 30);
            } else {
                // The word comes while there is something in hand, and then the authority is silent until it is old.
                live(&mut bench, 2);
                for _ in 0..40 {
                    bench.pass(1_000);
                    let sample = bench.sample(Attempt(1));
                    bench.step(Event::Ticked(vec![sample]));
                    bench.durable();
                }
                bench.work(5_000);
                bench.durable();
            }
            let ended = bench.orders().iter().any(|act| matches!(act, Act::Terminate | Act::Kill));
            assert_eq!(ended, empty && exhausted && fresh, "{on_exhaustion:?} empty {empty} exhausted {exhausted} fresh {fresh}");
        }
    }
}
