//! The ladder: warnings, who is spared, how long jobs stand still, how many accounts at once, and thaws that do not flap.

use super::*;
use crate::domain::ladder::{Blast, Exempt, Then, Thresholds, Victims, WarnSignal};

const CREDIT: i128 = 1_000_000_000;

/// A job on a policy and settings of one's own, with this much credit, everything on disk.
fn running_with(nano: i128, policy: AccountPolicy, ladder: Ladder) -> Bench {
    let mut bench = Bench::new();
    let settings = Settings { ladder, ..bench.turn.settings().clone() };
    bench.turn.set_settings(settings);
    (bench.free, bench.policy) = (nano, policy);
    bench.start(1, "a");
    bench.durable();
    bench.answer();
    bench.durable();
    bench.out.clear();
    bench
}

/// Works so many seconds, a look a second; the authority and the disk answer at once.
fn work_s(bench: &mut Bench, seconds: u64) {
    for _ in 0..seconds {
        let before = signals(bench).len();
        bench.work(1_000);
        settle(bench);
        heed(bench, before);
    }
}

fn settle(bench: &mut Bench) {
    bench.durable();
    let outstanding = bench.turn.agent().outstanding.as_ref().map(|outstanding| outstanding.request.request);
    if bench.question().is_some_and(|question| Some(question.request) == outstanding) {
        bench.answer();
        bench.durable();
    }
}

/// Stands still for so many seconds, looked at each.
fn stand_s(bench: &mut Bench, seconds: u64) {
    for _ in 0..seconds {
        let before = signals(bench).len();
        bench.pass(1_000);
        let sample = bench.sample(Attempt(1));
        bench.step(Event::Ticked(vec![sample]));
        settle(bench);
        heed(bench, before);
    }
}

/// The hands have given the warning, if one was ordered.
fn heed(bench: &mut Bench, before: usize) {
    if before < signals(bench).len() {
        bench.acted_warn();
    }
}

fn signals(bench: &Bench) -> Vec<Option<WarnSignal>> {
    let warns = |effect: &Effect| if let Effect::Act(order) = effect { (order.act == Act::Warn).then_some(order.signal) } else { None };
    bench.out.iter().filter_map(warns).collect()
}

fn thresholds(seconds: &[u64]) -> Thresholds {
    Thresholds::try_from(seconds.iter().copied().map(Nanos::from_secs).collect::<Vec<_>>()).unwrap()
}

fn would(bench: &Bench) -> Vec<Act> {
    let step = |step: &crate::domain::job::Step| if let StepEvent::WouldAct(act) = &step.event { Some(*act) } else { None };
    bench.job().steps.iter().filter_map(step).collect()
}

#[test]
fn each_threshold_warns_once_and_by_the_jobs_own_signal() {
    let policy = AccountPolicy { warn_before: thresholds(&[30, 10]), ..AccountPolicy::default() };
    let mut bench = running_with(50 * CREDIT, policy, Ladder { warn_signal: Some(WarnSignal::Urg), ..Ladder::default() });
    let mut warned_at = Vec::new();
    for second in 1..=50 {
        work_s(&mut bench, 1);
        if warned_at.len() < signals(&bench).len() {
            warned_at.push(second);
        }
    }
    assert_eq!(warned_at, [21, 41]);
    assert_eq!(signals(&bench), [Some(WarnSignal::Urg), Some(WarnSignal::Urg)]);
}

#[test]
fn d6_each_crossing_is_told_once_with_the_cost_of_each_job_also_over_a_restart() {
    let policy = AccountPolicy { warn_before: thresholds(&[30, 10]), ..AccountPolicy::default() };
    let mut bench = running_with(50 * CREDIT, policy, Ladder::default());
    let crossings = |bench: &Bench| -> Vec<Credits> {
        let charge =
            |step: &crate::domain::job::Step| if let StepEvent::Warned(evidence) = &step.event { Some(evidence.charge) } else { None };
        bench.job().steps.iter().filter_map(charge).collect()
    };
    work_s(&mut bench, 19);
    assert_eq!(crossings(&bench), [], "what is left lasts more than 30 s");
    work_s(&mut bench, 2);
    let first = crossings(&bench);
    assert_eq!(first.len(), 1);
    assert!(first[0] <= bench.job().charge && bench.job().charge.nano() - 2 * CREDIT <= first[0].nano(), "what this job had cost then");
    // Another process goes on from the journal: what was told has been told.
    let agent = bench.turn.agent().clone();
    bench.wake(agent, &[]);
    work_s(&mut bench, 15);
    assert_eq!(crossings(&bench), first);
    work_s(&mut bench, 6);
    assert_eq!(crossings(&bench).len(), 2, "the second threshold, once");
    work_s(&mut bench, 5);
    assert_eq!(crossings(&bench).len(), 2);
}

#[test]
fn a_top_up_lifts_the_warning_and_the_next_shortage_warns_again() {
    let policy = AccountPolicy { warn_before: thresholds(&[10]), ..AccountPolicy::default() };
    let mut bench = running_with(20 * CREDIT, policy, Ladder::default());
    bench.rest = 1; // while something is free nothing goes back
    work_s(&mut bench, 15);
    assert_eq!(signals(&bench).len(), 1);
    let warned = |bench: &Bench| bench.turn.agent().accounts.values().next().unwrap().warned.is_some();
    assert!(warned(&bench));
    bench.free = 40 * CREDIT; // the next answer brings it
    work_s(&mut bench, 2);
    assert!(!warned(&bench));
    work_s(&mut bench, 36);
    assert!(warned(&bench));
    assert_eq!(signals(&bench).len(), 2);
}

#[test]
fn a_warning_that_the_crash_swallowed_comes_again() {
    let policy = AccountPolicy { warn_before: thresholds(&[10]), ..AccountPolicy::default() };
    let mut bench = running_with(20 * CREDIT, policy, Ladder::default());
    for _ in 0..15 {
        bench.work(1_000);
        settle(&mut bench);
    }
    bench.wake(bench.turn.agent().clone(), &[]);
    assert!(bench.out.iter().any(|effect| matches!(effect, Effect::Act(order) if order.act == Act::Warn)));
}

#[test]
fn notifying_warns_and_stops_nothing_and_says_what_it_would_have_done() {
    let policy = AccountPolicy { warn_before: thresholds(&[10]), enforcement: Enforcement::Notify, ..AccountPolicy::default() };
    let mut bench = running_with(12 * CREDIT, policy, Ladder::default());
    work_s(&mut bench, 19);
    assert_eq!((bench.orders(), would(&bench), signals(&bench)), (vec![], vec![Act::Freeze], vec![None]));
}

#[test]
fn observing_warns_nobody_and_says_what_it_would_have_done_once() {
    let policy = AccountPolicy { on_exhaustion: OnExhaustion::Kill, enforcement: Enforcement::Observe, ..AccountPolicy::default() };
    let mut bench = running_with(5 * CREDIT, policy, Ladder::default());
    work_s(&mut bench, 20);
    assert_eq!((bench.orders(), would(&bench), signals(&bench)), (vec![], vec![Act::Freeze, Act::Kill], vec![]));
}

#[test]
fn the_exempt_are_charged_and_left_alone() {
    for exempt in [
        Exempt { accounts: ["a".parse().unwrap()].into(), uids: BTreeSet::new() },
        Exempt { accounts: BTreeSet::new(), uids: [Uid::ROOT].into() },
    ] {
        let mut bench = running_with(5 * CREDIT, AccountPolicy::default(), Ladder { exempt, ..Ladder::default() });
        work_s(&mut bench, 10);
        assert_eq!((bench.orders(), bench.job().charge), (vec![], Credits::from_nano(10 * CREDIT)));
    }
}

#[test]
fn who_is_exempt_starts_on_an_empty_account_too() {
    for (exempt, starts) in [
        (Exempt { accounts: ["a".parse().unwrap()].into(), uids: BTreeSet::new() }, true),
        (Exempt { accounts: BTreeSet::new(), uids: [Uid::ROOT].into() }, true),
        (Exempt { accounts: BTreeSet::new(), uids: [Uid(1)].into() }, false),
    ] {
        let said = format!("{exempt:?}");
        let bench = running_with(0, AccountPolicy::default(), Ladder { exempt, ..Ladder::default() });
        assert_eq!(bench.turn.agent().jobs.len() == 1, starts, "{said}");
    }
}

#[test]
fn a_start_that_would_have_been_refused_says_so_where_nothing_is_enforced_and_only_then() {
    let refused = |bench: &Bench| {
        let step = |step: &crate::domain::job::Step| if let StepEvent::WouldRefuse(code) = &step.event { Some(code.clone()) } else { None };
        bench.job().steps.iter().filter_map(step).collect::<Vec<_>>()
    };
    for enforcement in [Enforcement::Observe, Enforcement::Notify] {
        let policy = AccountPolicy { enforcement, ..AccountPolicy::default() };
        assert_eq!(refused(&running_with(0, policy, Ladder::default())), ["no_credit"], "{enforcement:?}");
        assert_eq!(refused(&running_with(5 * CREDIT, policy, Ladder::default())), [""; 0], "{enforcement:?}");
    }
    assert_eq!(refused(&running_with(5 * CREDIT, AccountPolicy::default(), Ladder::default())), [""; 0]);
}

#[test]
fn a_job_can_be_stricter_than_its_account_and_never_milder() {
    for (account, job, ends) in [
        (OnExhaustion::Freeze, Some(OnExhaustion::Kill), true),
        (OnExhaustion::Freeze, None, false),
        (OnExhaustion::Kill, Some(OnExhaustion::Terminate), true),
    ] {
        let policy = AccountPolicy { on_exhaustion: account, warn_before: Thresholds::default(), ..AccountPolicy::default() };
        let mut bench = Bench::new();
        (bench.free, bench.policy) = (5 * CREDIT, policy);
        bench.job_policy = JobPolicy { on_exhaustion: job, warn_signal: None };
        bench.start(1, "a");
        settle(&mut bench);
        work_s(&mut bench, 6);
        bench.acted(Act::Freeze);
        settle(&mut bench);
        stand_s(&mut bench, 2);
        assert_eq!(bench.orders().contains(&Act::Kill), ends, "{account:?} {job:?}: {:?}", bench.orders());
    }
}

#[test]
fn who_stands_still_for_longer_than_the_ttl_is_ended() {
    let policy = AccountPolicy { freeze_ttl: Some(Nanos::from_secs(60)), then: Then::Kill, ..AccountPolicy::default() };
    let mut bench = running_with(5 * CREDIT, policy, Ladder::default());
    work_s(&mut bench, 6);
    bench.acted(Act::Freeze);
    stand_s(&mut bench, 55);
    assert!(!bench.orders().contains(&Act::Kill));
    stand_s(&mut bench, 10);
    assert!(bench.orders().contains(&Act::Kill));
    let reasons = bench.job().steps.iter().filter(|step| matches!(step.event, StepEvent::FrozenTooLong(_)));
    assert_eq!(reasons.count(), 1, "and why is said once");
}

#[test]
fn no_more_accounts_are_ended_in_a_window_than_allowed_until_somebody_confirms() {
    let policy = AccountPolicy { on_exhaustion: OnExhaustion::Kill, ..AccountPolicy::default() };
    let blast = Blast { end_accounts: Some(0), ..Blast::default() };
    let mut bench = running_with(5 * CREDIT, policy, Ladder { blast, ..Ladder::default() });
    work_s(&mut bench, 6);
    bench.acted(Act::Freeze);
    stand_s(&mut bench, 30);
    assert!(!bench.orders().contains(&Act::Kill), "frozen, which can be undone");
    assert_eq!(bench.turn.agent().held_back(bench.turn.settings(), bench.now), ["a".parse().unwrap()]);
    let ladder = Ladder { blast: Blast { end_accounts: Some(1), ..blast }, ..Ladder::default() };
    let settings = Settings { ladder, ..bench.turn.settings().clone() };
    bench.turn.set_settings(settings);
    bench.step(Event::ConfirmAsked { caller: 9, by: Uid::ROOT });
    settle(&mut bench);
    stand_s(&mut bench, 1);
    assert!(bench.orders().contains(&Act::Kill));
    assert!(bench.turn.agent().held_back(bench.turn.settings(), bench.now).is_empty());
}

#[test]
fn accounts_of_a_window_are_counted_and_a_confirmation_begins_anew() {
    let blast = Blast { freeze_accounts: Some(1), ..Blast::default() };
    let mut bench = Bench::new();
    let settings = Settings { ladder: Ladder { blast, ..Ladder::default() }, ..bench.turn.settings().clone() };
    bench.turn.set_settings(settings);
    for (caller, name) in [(1, "one"), (2, "two")] {
        (bench.free, bench.granted) = (CREDIT, 0);
        bench.start_named(name, caller, name);
        bench.durable();
        bench.answer();
        bench.durable();
    }
    let frozen = |bench: &Bench| -> Vec<Attempt> {
        let freeze =
            |effect: &Effect| if let Effect::Act(order) = effect { (order.act == Act::Freeze).then_some(order.attempt) } else { None };
        bench.out.iter().filter_map(freeze).collect()
    };
    bench.pass(2_000);
    bench.cpu_ns += 2_000 * MS;
    bench.step(Event::Looked(vec![bench.sample(Attempt(1)), bench.sample(Attempt(2))]));
    bench.durable();
    assert_eq!(frozen(&bench), [Attempt(1)], "one account a window");
    assert_eq!(bench.turn.agent().held_back(bench.turn.settings(), bench.now), ["two".parse().unwrap()]);
    bench.step(Event::ConfirmAsked { caller: 9, by: Uid::ROOT });
    bench.durable();
    assert!(frozen(&bench).contains(&Attempt(2)));
}

/// Suspend and resume flapped on a single tick that reported too little.
#[test]
fn f14_a_tick_that_reports_too_little_thaws_nothing() {
    let mut bench = Bench::running(2 * CREDIT);
    bench.work(2_010);
    bench.acted(Act::Freeze);
    settle(&mut bench);
    bench.out.clear();
    for cpu_ns in [Reading::Seen(0), Reading::Missing(Missing::NotSupported), Reading::Seen(bench.cpu_ns - 1)] {
        bench.pass(1_000);
        bench.step(Event::Ticked(vec![JobSample { cpu_ns, ..bench.sample(Attempt(1)) }]));
        settle(&mut bench);
    }
    assert_eq!(bench.orders(), []);
}

/// A fifth of a second passes, and what the agent orders is done.
fn pass_a_fifth(bench: &mut Bench) {
    bench.pass(200);
    if bench.frozen == Frozen::No {
        bench.cpu_ns += 200 * MS;
    }
    let sample = bench.sample(Attempt(1));
    bench.step(Event::Ticked(vec![sample]));
    settle(bench);
    for act in bench.orders() {
        bench.thaws += usize::from(act == Act::Thaw);
        bench.out.retain(|effect| !matches!(effect, Effect::Act(_)));
        bench.acted(act);
        settle(bench);
    }
}

/// So much is paid in, and the authority tells of it.
fn pay_in(bench: &mut Bench, nano: i128) {
    bench.free += nano;
    bench.version += 1;
    bench.step(Event::Pushed(Push { account: "a".parse().unwrap(), version: bench.version }));
    settle(bench);
}

/// Credit comes in drops for a minute: whenever the job stands still a little more is paid in.
fn drip(bench: &mut Bench) {
    for _ in 0..300 {
        pass_a_fifth(bench);
        if bench.frozen == Frozen::Yes {
            pay_in(bench, CREDIT / 10);
        }
    }
}

/// The same with credit that comes in drops: the first thaws come at once, then each later than the one before.
#[test]
fn f14_credit_in_drops_does_not_make_a_job_flap() {
    let mut bench = Bench::running(CREDIT);
    drip(&mut bench);
    // At one a 300 ms it would have flapped two hundred times in this minute.
    assert!((3..=9).contains(&bench.thaws), "{} thaws in a minute", bench.thaws);
}

/// It had slept until its credit was gone in a blink, so it asked for a hundredth of what it may use, was given two seconds of that, and was empty
/// again as soon as it ran, while the account was full (fleet 10017206).
#[test]
fn f14_a_job_that_slept_before_it_stood_still_is_funded_for_what_it_may_use_once_it_runs() {
    let mut bench = Bench::running(CREDIT / 20);
    stand_s(&mut bench, 15);
    bench.work(51);
    settle(&mut bench);
    bench.acted(Act::Freeze);
    settle(&mut bench);
    stand_s(&mut bench, 120);
    let burn = bench.question().unwrap().entries[0].burn_per_s;
    assert_eq!(burn.nano(), CREDIT, "what one core costs");
}

/// Such a thaw may wait for longer than the authority's word is good. Credit that lapsed meanwhile would be one more flap, and the next thaw
/// would wait for longer still: a job on a full account stood still for ever.
#[test]
fn f14_credit_does_not_lapse_while_a_thaw_waits() {
    let mut bench = Bench::new();
    (bench.free, bench.valid_for) = (CREDIT, Nanos::from_secs(10));
    bench.start(1, "a");
    settle(&mut bench);
    bench.out.clear();
    drip(&mut bench);
    while bench.frozen == Frozen::No {
        pass_a_fifth(&mut bench);
    }
    bench.rest = 1; // while something is free nothing goes back
    pay_in(&mut bench, 1_000 * CREDIT);
    let account: AccountId = "a".parse().unwrap();
    let flaps = bench.turn.agent().accounts[&account].flaps;
    assert!(bench.valid_for < flaps.thaw_from().since(flaps.funded_at.unwrap()), "{flaps:?}");
    while bench.now.mono < flaps.thaw_from() {
        pass_a_fifth(&mut bench);
        assert_eq!(bench.turn.agent().accounts[&account].empty_since, None, "at {:?}", bench.now.mono);
    }
    pass_a_fifth(&mut bench);
    assert_eq!(bench.frozen, Frozen::No);
}

#[test]
fn the_newest_job_stands_still_so_that_the_oldest_can_go_on() {
    let policy = AccountPolicy {
        victims: Victims::NewestFirst,
        victims_before: Nanos::from_secs(60),
        warn_before: Thresholds::default(),
        ..AccountPolicy::default()
    };
    let mut bench = Bench::new();
    (bench.free, bench.policy, bench.rest) = (100 * CREDIT, policy, 1); // while something is free nothing goes back
    for (caller, name) in [(1, "old"), (2, "new")] {
        bench.start_named(name, caller, "a");
        settle(&mut bench);
    }
    bench.out.clear();
    let (mut cpu, mut frozen) = ([0_u64; 2], [Frozen::No; 2]);
    let mut stopped_at = None;
    for second in 0..80 {
        bench.pass(1_000);
        let mut samples = Vec::new();
        for nth in 0..2 {
            cpu[nth] += if frozen[nth] == Frozen::No { 500 * MS } else { 0 };
            let sample = bench.sample(Attempt(nth as u64 + 1));
            samples.push(JobSample { cpu_ns: Reading::Seen(cpu[nth]), frozen: Reading::Seen(frozen[nth]), ..sample });
        }
        bench.step(Event::Ticked(samples));
        settle(&mut bench);
        let froze = |effect: &Effect| matches!(effect, Effect::Act(order) if order.act == Act::Freeze && order.attempt == Attempt(2));
        if stopped_at.is_none() && bench.out.iter().any(froze) {
            stopped_at = Some(second);
            frozen[1] = Frozen::Yes;
            bench.confirm(Attempt(2), Act::Freeze, cpu[1], Frozen::Yes);
        }
    }
    let stopped_at: u64 = stopped_at.expect("the newest is stopped");
    assert!((35..60).contains(&stopped_at), "as soon as what is left lasts less than a minute: at {stopped_at} s");
    let job = |nth: u64| bench.turn.agent().jobs.get(&Attempt(nth)).unwrap();
    assert_eq!((job(1).phase, job(1).victim), (Phase::Running, None));
    assert!(job(2).victim.is_some());
    assert!(job(2).steps.iter().any(|step| matches!(step.event, StepEvent::StoodAside(_))));
    // There is plenty again: it goes on.
    bench.free = 1_000 * CREDIT;
    bench.out.clear();
    bench.step(Event::Pushed(Push { account: "a".parse().unwrap(), version: 9 }));
    settle(&mut bench);
    bench.pass(1_000);
    let sample = bench.sample(Attempt(1));
    bench.step(Event::Ticked(vec![JobSample { cpu_ns: Reading::Seen(cpu[0]), ..sample }]));
    bench.durable();
    assert!(bench.out.iter().any(|effect| matches!(effect, Effect::Act(order) if order.act == Act::Thaw && order.attempt == Attempt(2))));
}

/// The authority said "exhausted" before the grace; when the grace is over, it has been silent for too long.
#[test]
fn g5_a_word_that_has_grown_old_kills_nobody() {
    let policy = AccountPolicy { on_exhaustion: OnExhaustion::Terminate, grace: Nanos::from_secs(30), ..AccountPolicy::default() };
    let mut bench = running_with(5 * CREDIT, policy, Ladder::default());
    work_s(&mut bench, 6);
    bench.acted(Act::Freeze);
    stand_s(&mut bench, 1);
    assert!(bench.orders().contains(&Act::Terminate));
    bench.acted(Act::Terminate);
    for _ in 0..60 {
        bench.pass(1_000); // it ignores the request, works on, and nobody answers any more
        bench.cpu_ns += 1_000 * MS;
        let sample = bench.sample(Attempt(1));
        bench.step(Event::Ticked(vec![sample]));
        bench.durable();
    }
    assert!(!bench.orders().contains(&Act::Kill), "{:?}", bench.orders());
    assert_eq!(bench.orders().last(), Some(&Act::Freeze), "it stands still until the authority says it again");
}

/// The authority grants what is left in pieces, and each is used up before the next comes: that is no new credit.
#[test]
fn an_account_that_lives_from_grant_to_grant_is_warned_once() {
    let policy = AccountPolicy { warn_before: thresholds(&[30]), ..AccountPolicy::default() };
    let mut bench = Bench::new();
    (bench.free, bench.rest, bench.policy) = (2 * CREDIT, 18 * CREDIT, policy);
    bench.start(1, "a");
    settle(&mut bench);
    bench.out.clear();
    for _ in 0..6 {
        work_s(&mut bench, 3); // runs dry
        let piece = bench.rest.min(3 * CREDIT);
        (bench.free, bench.rest) = (piece, bench.rest - piece);
        stand_s(&mut bench, 12);
    }
    assert_eq!(signals(&bench).len(), 1);
}

/// What was pushed meanwhile is lost with the process that heard it.
#[test]
fn g5_a_word_that_the_process_before_heard_ends_nothing() {
    let policy = AccountPolicy { on_exhaustion: OnExhaustion::Kill, ..AccountPolicy::default() };
    let mut bench = running_with(5 * CREDIT, policy, Ladder::default());
    work_s(&mut bench, 6);
    bench.acted(Act::Freeze);
    settle(&mut bench);
    bench.pass(1_000);
    bench.wake(bench.turn.agent().clone(), &[Attempt(1)]);
    for _ in 0..3 {
        bench.pass(1_000);
        let sample = bench.sample(Attempt(1));
        bench.step(Event::Ticked(vec![sample]));
        bench.durable();
    }
    assert_eq!(bench.orders(), [], "nobody has answered this process yet");
    stand_s(&mut bench, 12);
    assert!(bench.orders().contains(&Act::Kill), "{:?}", bench.orders());
}

/// A Slurm job is there for seconds after its tasks were killed.
#[test]
fn a_kill_that_has_not_ended_its_job_is_done_again_ever_more_rarely() {
    let policy = AccountPolicy { on_exhaustion: OnExhaustion::Kill, ..AccountPolicy::default() };
    let mut bench = running_with(5 * CREDIT, policy, Ladder::default());
    work_s(&mut bench, 6);
    bench.acted(Act::Freeze);
    let kills = |bench: &Bench| bench.orders().iter().filter(|act| **act == Act::Kill).count();
    while kills(&bench) == 0 {
        stand_s(&mut bench, 1);
    }
    let mut done = 0;
    let mut at_ms = Vec::new();
    for ms in (0..10_000).step_by(10) {
        if done < kills(&bench) {
            done += 1;
            at_ms.push(ms);
            bench.acted(Act::Kill);
        }
        bench.pass(10);
        let sample = bench.sample(Attempt(1));
        bench.step(Event::Looked(vec![sample]));
        settle(&mut bench);
    }
    let waits: Vec<u64> = at_ms.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(waits[2..7], [200, 400, 800, 1_000, 1_000], "{waits:?}");
    assert!(at_ms.len() < 16, "{at_ms:?}");
}

/// Three jobs of one account, in the order of their starts: `eldest` has cost the most so far, `dearest` costs the most per second. Who has
/// to stand aside first, and who next, while the credit runs short?
fn stand_aside(victims: Victims) -> Vec<&'static str> {
    const JOBS: [(&str, u64, u64); 3] = [("eldest", 300, 40), ("dearest", 500, 5), ("newest", 200, 400)];
    let policy =
        AccountPolicy { victims, victims_before: Nanos::from_secs(60), warn_before: Thresholds::default(), ..AccountPolicy::default() };
    let mut bench = Bench::new();
    (bench.free, bench.policy, bench.rest) = (100 * CREDIT, policy, 1); // while something is free nothing goes back
    let (mut cpu_ns, mut frozen) = ([0_u64; 3], [Frozen::No; 3]);
    let mut aside = Vec::new();
    for (started, (name, _, alone_s)) in (1..).zip(JOBS) {
        bench.start_named(name, started as u64, "a");
        settle(&mut bench);
        for _ in 0..alone_s {
            bench.pass(1_000);
            let mut samples = Vec::new();
            for nth in 0..started {
                cpu_ns[nth] += if frozen[nth] == Frozen::No { JOBS[nth].1 * MS } else { 0 };
                let sample = bench.sample(Attempt(nth as u64 + 1));
                samples.push(JobSample { cpu_ns: Reading::Seen(cpu_ns[nth]), frozen: Reading::Seen(frozen[nth]), ..sample });
            }
            bench.out.clear();
            bench.step(Event::Ticked(samples));
            settle(&mut bench);
            let freezes = |attempt| move |effect: &Effect| matches!(effect, Effect::Act(order) if order.act == Act::Freeze && order.attempt == attempt);
            for nth in 0..started {
                let attempt = Attempt(nth as u64 + 1);
                if frozen[nth] == Frozen::No && bench.out.iter().any(freezes(attempt)) {
                    let stands = bench.turn.agent().jobs.get(&attempt).is_some_and(|job| job.victim.is_some());
                    assert!(stands, "{victims:?}: {} was frozen for want of credit", JOBS[nth].0);
                    frozen[nth] = Frozen::Yes;
                    bench.confirm(attempt, Act::Freeze, cpu_ns[nth], Frozen::Yes);
                    aside.push(JOBS[nth].0);
                }
            }
            if aside.len() == 2 {
                return aside;
            }
        }
    }
    panic!("{victims:?}: {aside:?}");
}

#[test]
fn whom_the_policy_names_stands_aside_first_and_who_is_next_of_those_left_next() {
    assert_eq!(stand_aside(Victims::OldestFirst), ["eldest", "dearest"]);
    assert_eq!(stand_aside(Victims::NewestFirst), ["newest", "dearest"]);
    assert_eq!(stand_aside(Victims::DearestFirst), ["dearest", "eldest"], "by what it costs per second, not by what it has cost");
}

/// Many accounts that end their jobs at zero, each with one job on the last of its credit.
fn many_at_zero(count: u64) -> Bench {
    let policy = AccountPolicy { on_exhaustion: OnExhaustion::Kill, ..AccountPolicy::default() };
    let mut bench = Bench::new();
    bench.policy = policy;
    for nth in 1..=count {
        (bench.free, bench.granted) = (CREDIT, 0);
        bench.start_named(&format!("job-{nth}"), nth, &format!("account-{nth}"));
        settle(&mut bench);
    }
    bench.out.clear();
    bench
}

/// A look at all of them; the authority says of each account that is asked of that it has nothing left.
fn look_at_many(bench: &mut Bench, count: u64, frozen: Frozen) {
    let sample = |bench: &Bench, nth| JobSample { frozen: Reading::Seen(frozen), ..bench.sample(Attempt(nth)) };
    let samples = (1..=count).map(|nth| sample(bench, nth)).collect();
    bench.step(Event::Ticked(samples));
    bench.durable();
    let outstanding = bench.turn.agent().outstanding.as_ref().map(|outstanding| outstanding.request.request);
    let Some(request) = bench.question().filter(|question| Some(question.request) == outstanding) else { return };
    let entry = |asked: &crate::domain::wire::RequestEntry| AnswerEntry {
        account: asked.account.clone(),
        unit: UNIT.to_owned(),
        granted: Credits::from_nano(CREDIT),
        valid_for: bench.valid_for,
        verdict: Verdict::Exhausted,
        settled: asked.spent,
        free: Credits::ZERO,
        version: 1,
        policy: bench.policy,
        proof: None,
    };
    let answer = Answer {
        protocol: PROTOCOL,
        epoch: request.epoch,
        request: request.request,
        digest: request.digest(),
        acknowledged: Vec::new(),
        entries: request.entries.iter().map(entry).collect(),
        balances: Vec::new(),
        generation: 0,
        gangs: Vec::new(),
    };
    bench.step(Event::Answered(Box::new(answer), Epoch([8; 16])));
    bench.durable();
}

fn killed(bench: &Bench) -> BTreeSet<Attempt> {
    let kill = |effect: &Effect| if let Effect::Act(order) = effect { (order.act == Act::Kill).then_some(order.attempt) } else { None };
    bench.out.iter().filter_map(kill).collect()
}

#[test]
fn unless_configured_eight_accounts_are_ended_in_ten_minutes_and_the_next_when_the_window_has_passed() {
    for (count, blast) in [(9, Blast::default()), (4, Blast { end_accounts: Some(3), window: Nanos::from_secs(120), ..Blast::default() })] {
        let limit = count - 1;
        let mut bench = many_at_zero(count);
        bench.turn.set_settings(Settings { ladder: Ladder { blast, ..Ladder::default() }, ..bench.turn.settings().clone() });
        bench.pass(1_001);
        bench.cpu_ns += 1_001 * MS;
        look_at_many(&mut bench, count, Frozen::No);
        for nth in 1..=count {
            bench.confirm(Attempt(nth), Act::Freeze, bench.cpu_ns, Frozen::Yes);
        }
        bench.durable();
        let mut ended_at = None;
        for _ in 0..20 {
            look_at_many(&mut bench, count, Frozen::Yes);
            if ended_at.is_none() && killed(&bench).len() as u64 == limit {
                ended_at = Some(bench.now);
            }
            bench.pass(1_000);
        }
        let ended_at = ended_at.expect("as many as the limit are ended");
        assert_eq!(killed(&bench).len() as u64, limit, "and no more");
        assert_eq!(bench.turn.agent().held_back(bench.turn.settings(), bench.now).len(), 1);
        let left = || bench.turn.agent().rungs.iter().map(|(at, ..)| *at).min();
        let first = left().expect("they are counted");
        assert!(first <= ended_at.mono);
        while bench.now.mono.since(first) < Nanos(blast.window.0 - 1_000 * MS) {
            bench.pass(1_000);
            look_at_many(&mut bench, count, Frozen::Yes);
        }
        assert_eq!(killed(&bench).len() as u64, limit, "within the window");
        for _ in 0..30 {
            bench.pass(1_000);
            look_at_many(&mut bench, count, Frozen::Yes);
        }
        assert_eq!(killed(&bench).len() as u64, count, "after it");
        assert!(bench.turn.agent().held_back(bench.turn.settings(), bench.now).is_empty());
    }
}

#[test]
fn what_the_hands_did_to_all_jobs_of_an_account_is_booked_at_once_as_it_is_one_by_one() {
    let stopped = |together: bool| {
        let mut bench = Bench::running(4 * CREDIT);
        bench.start_named("other", 2, "a");
        settle(&mut bench);
        for _ in 0..3 {
            bench.pass(1_000);
            bench.cpu_ns += 1_000 * MS;
            bench.step(Event::Looked(vec![bench.sample(Attempt(1)), bench.sample(Attempt(2))]));
            settle(&mut bench);
        }
        assert_eq!(bench.orders(), [Act::Freeze, Act::Freeze]);
        let (asked_at, done_at) = (bench.now.mono, bench.now.mono);
        bench.pass(30);
        bench.cpu_ns += 7 * MS;
        let acted = [1, 2].map(|attempt| {
            let (attempt, act, syscall) = (Attempt(attempt), Act::Freeze, String::new());
            let acted = Acted { attempt, act, asked_at, done_at, syscall, outcome: ActOutcome::Confirmed };
            (acted, Some(bench.sample(attempt)))
        });
        bench.frozen = Frozen::Yes;
        bench.out.clear();
        if together {
            bench.step(Event::Acted(acted.to_vec()));
        } else {
            for one in acted {
                bench.step(Event::Acted(vec![one]));
            }
        }
        settle(&mut bench);
        bench.pass(1_000);
        bench.step(Event::Ticked(vec![bench.sample(Attempt(1)), bench.sample(Attempt(2))]));
        settle(&mut bench);
        assert_eq!(bench.orders(), []);
        let jobs: Vec<Job> = bench.turn.agent().jobs.values().cloned().collect();
        assert!(jobs.iter().all(|job| job.phase == Phase::Frozen && job.frozen_by == Some(FrozenBy::Agent)), "{jobs:#?}");
        jobs
    };
    let (together, apart) = (stopped(true), stopped(false));
    let told = |jobs: &[Job]| -> Vec<_> {
        jobs.iter().map(|job| (job.charge, job.drawn, job.unfunded, job.segments.clone(), job.steps.len())).collect()
    };
    assert_eq!(told(&together), told(&apart));
}
