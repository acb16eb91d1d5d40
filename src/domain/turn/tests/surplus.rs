//! What is held and not needed goes back, so that the account's other nodes can use it.

use super::*;

/// What the node holds.
fn in_hand(bench: &Bench) -> i128 {
    bench.turn.agent().accounts.values().map(|account| account.grant.in_hand(bench.now.boot).nano()).sum()
}

/// Works at a hundredth of the machine for so many seconds; the authority and the disk answer at once.
fn idle_s(bench: &mut Bench, seconds: u64) {
    for _ in 0..seconds {
        bench.pass(1_000);
        bench.cpu_ns += 10 * MS;
        let sample = bench.sample(Attempt(1));
        bench.step(Event::Ticked(vec![sample]));
        bench.durable();
        let asked = bench.turn.agent().outstanding.is_some();
        if asked {
            bench.answer();
            bench.durable();
        }
    }
}

#[test]
fn a_job_that_uses_little_keeps_five_minutes_of_it_once_it_is_known() {
    // The greatest burn of this machine is a credit a second: five minutes of that were granted.
    let mut bench = Bench::running(300_000_000_000);
    bench.rest = 1_000_000_000_000;
    idle_s(&mut bench, 9);
    assert!(290_000_000_000 < in_hand(&bench), "so young a job may burn all: {}", in_hand(&bench));
    idle_s(&mut bench, 60);
    let kept = in_hand(&bench);
    assert!((2_500_000_000..4_000_000_000).contains(&kept), "300 s of a hundredth of a credit a second: {kept}");
}

#[test]
fn a_part_of_a_gang_keeps_no_more_than_the_four_minutes_that_the_others_may_wait_for_it() {
    let mut bench = Bench::new();
    bench.gang = Some(Gang { name: "mpi-17".parse().unwrap(), attempt: 3, size: Some(2) });
    (bench.free, bench.rest) = (240_000_000_000, 1_000_000_000_000);
    bench.start(1, "a");
    bench.durable();
    bench.answer();
    bench.durable();
    idle_s(&mut bench, 9);
    assert!(235_000_000_000 < in_hand(&bench), "so young a part may burn all: {}", in_hand(&bench));
    idle_s(&mut bench, 60);
    let kept = in_hand(&bench);
    assert!((1_000_000_000..=2_400_000_000).contains(&kept), "240 s of a hundredth of a credit a second at most: {kept}");
}

#[test]
fn while_nothing_is_free_a_node_keeps_only_seconds_and_the_rest_is_still_the_accounts() {
    let mut bench = Bench::running(300_000_000_000);
    bench.rest = 1;
    idle_s(&mut bench, 15);
    bench.rest = 0;
    let before = bench.turn.agent().accounts.values().next().unwrap().grant.clone();
    let boot = bench.now.boot;
    bench.pass(30_000);
    bench.step(Event::Looked(Vec::new()));
    bench.durable();
    bench.answer();
    let grant = &bench.turn.agent().accounts.values().next().unwrap().grant;
    assert!(before.returned < grant.returned, "it gave back");
    assert!(grant.in_hand(bench.now.boot) < "0.1".parse().unwrap(), "{}", grant.in_hand(bench.now.boot));
    let lost = before.left(boot).minus(grant.left(bench.now.boot)).nano();
    assert!((0..=1).contains(&lost), "nobody is warned for what is on its way back: {lost}"); // a nano-credit was free before
}

#[test]
fn after_a_thaw_the_stated_burn_is_not_thinned_by_the_time_in_which_nothing_ran() {
    let mut bench = Bench::running(12_000_000_000);
    for _ in 0..13 {
        bench.work(1_000);
        bench.durable();
    }
    bench.acted(Act::Freeze);
    bench.durable();
    // Ten minutes later there is credit again.
    for _ in 0..600 {
        bench.pass(1_000);
        let sample = bench.sample(Attempt(1));
        bench.step(Event::Ticked(vec![sample]));
        bench.durable();
    }
    bench.free = 4_000_000_000;
    bench.answer();
    bench.durable();
    bench.acted(Act::Thaw);
    for _ in 0..3 {
        bench.work(1_000);
        bench.durable();
    }
    let burn = bench.question().unwrap().entries[0].burn_per_s;
    assert!("0.9".parse::<Credits>().unwrap() <= burn, "a credit a second is burnt: {burn}");
}

/// A second passes on a node without jobs; the authority and the disk answer at once. Was something asked?
fn quiet_s(bench: &mut Bench) -> bool {
    bench.pass(1_000);
    bench.step(Event::Ticked(Vec::new()));
    bench.durable();
    let asked = bench.turn.agent().outstanding.is_some();
    if asked {
        bench.answer();
        bench.durable();
    }
    asked
}

#[test]
fn an_account_that_nobody_uses_is_heard_of_every_five_minutes_since_its_silence_would_end_the_epoch_of_all() {
    let mut bench = Bench::new();
    bench.start(1, "a"); // refused, since there is no credit; the account is known from then on
    bench.durable();
    bench.answer();
    bench.durable();
    let told = (0..60).filter(|_| quiet_s(&mut bench)).count();
    assert!(told <= 1 && bench.turn.agent().jobs.values().next().is_none(), "{told}");
    let silent: Vec<usize> = (0..1_300).filter(|_| quiet_s(&mut bench)).collect();
    assert_eq!(silent.len(), 4, "each five minutes: {silent:?}");
    assert!(silent.windows(2).all(|two| two[1] - two[0] <= 330), "{silent:?}");
}

#[test]
fn an_account_that_nobody_uses_is_heard_of_also_after_a_push_about_it() {
    let mut bench = Bench::new();
    bench.start(1, "a"); // refused
    bench.durable();
    bench.answer();
    bench.durable();
    let settles = (0..60).filter(|_| quiet_s(&mut bench)).count();
    assert!(settles <= 1, "{settles}");
    bench.step(Event::Pushed(Push { account: "a".parse().unwrap(), version: 2 }));
    bench.durable();
    bench.version = 2;
    let asked: Vec<usize> = (0..700).filter(|_| quiet_s(&mut bench)).collect();
    assert!(asked.len() == 3 && asked[0] <= 30, "soon after the push, and then each five minutes: {asked:?}");
}

#[test]
fn an_account_that_nobody_uses_is_heard_of_twice_while_a_word_is_good() {
    // A word that comes after its time is as one that is good for no time at all.
    for (valid_for_s, every_s) in [(600, 300), (599, 300), (200, 100), (100, 50), (10, 30), (0, 30)] {
        let mut bench = Bench::new();
        bench.valid_for = Nanos::from_secs(valid_for_s);
        bench.start(1, "a"); // refused
        bench.durable();
        bench.answer();
        bench.durable();
        let asked: Vec<usize> = (0..1_000).filter(|_| quiet_s(&mut bench)).collect();
        let apart: Vec<usize> = asked.windows(2).skip(1).map(|two| two[1] - two[0]).collect();
        assert!(!apart.is_empty() && apart.iter().all(|seconds| *seconds == every_s), "{valid_for_s}: {apart:?}");
    }
}

#[test]
fn a_grant_of_two_seconds_is_asked_for_more_before_a_second_without_a_look_uses_it_up() {
    // One core works, at a credit a second; half of either grant is unused when it is looked at.
    let asked_after_ms = |grant_s: i128, ms: u64| {
        let mut bench = Bench::new();
        (bench.free, bench.rest) = (grant_s * 1_000_000_000, 1_000_000_000_000);
        bench.start(1, "a");
        bench.durable();
        bench.answer();
        bench.durable();
        // What it uses is known, and each answer fills its grant up again.
        let mut heard = false;
        for _ in 0..100 {
            heard = bench.turn.agent().outstanding.is_some();
            if heard {
                bench.free = grant_s * 1_000_000_000 - in_hand(&bench);
                bench.answer();
                bench.durable();
            }
            if heard && 4_000 * MS < bench.now.mono.0 {
                break;
            }
            bench.work(500);
            bench.durable();
        }
        assert!(heard);
        bench.work(ms);
        bench.turn.agent().outstanding.is_some()
    };
    assert!(!asked_after_ms(2, 400), "half a second is left at the next look");
    assert!(asked_after_ms(2, 900), "at the next look next to nothing would be left");
    assert!(!asked_after_ms(10, 900));
}
