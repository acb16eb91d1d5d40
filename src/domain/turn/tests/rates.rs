//! Lines that charge at once, before or after: what the account must have in hand, and when a job that it cannot pay for is stopped.

use super::*;

const HOUR_MS: u64 = 3_600_000;

fn priced_by(line: &str, nano: i128) -> Bench {
    let mut bench = Bench::new();
    let text = format!("card = \"rules\"\nversion = 2\neffective_from = \"2026-01-01T00:00:00Z\"\n[[line]]\nid = \"l\"\n{line}\n");
    let card = Card::parse(&text, "card.toml").unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
    bench.step(Event::CardArrived(Box::new(card), Vec::new()));
    bench.durable();
    bench.free = nano;
    bench
}

fn started(mut bench: Bench) -> Bench {
    bench.start(1, "a");
    bench.durable();
    bench.answer();
    bench.durable();
    bench
}

const HOURLY: &str = "meter = \"wall_time\"\nprice = \"0.60\"\nunit = \"hour\"\nincrement = \"1\"\ntiming = \"advance\"";

/// Looks that are due come when they are due, ticks each second, and the authority answers what it is asked.
fn run_to(bench: &mut Bench, at: Mono) {
    while bench.now.mono < at {
        let look = bench.turn.next_look(bench.now).map_or(at, |(look, _)| look);
        let next = look.max(bench.now.mono.plus(Nanos(MS))).min(bench.now.mono.plus(Nanos::from_secs(1))).min(at);
        let step = next.since(bench.now.mono);
        (bench.now.mono, bench.now.boot) = (next, bench.now.boot.plus(step));
        let sample = bench.sample(Attempt(1));
        bench.step(Event::Looked(vec![sample]));
        bench.durable();
        if bench.turn.agent().outstanding.is_some() {
            bench.answer();
            bench.durable();
        }
        if bench.orders().contains(&Act::Freeze) {
            return;
        }
    }
}

#[test]
fn d1_the_first_hour_is_charged_with_the_start_and_who_cannot_pay_it_does_not_start() {
    let bench = started(priced_by(HOURLY, 600_000_000));
    assert_eq!(bench.job().charge, "0.6".parse().unwrap());
    assert_eq!(bench.job().drawn, "0.6".parse().unwrap());
    let poor = started(priced_by(HOURLY, 599_999_999));
    assert!(poor.turn.agent().jobs.is_empty());
    let refused = |reply: &&Reply| matches!(reply, Reply::Refused(refusal) if refusal.code == "no_credit");
    assert!(poor.replies().iter().any(refused), "{:?}", poor.replies());
}

#[test]
fn d3_who_cannot_pay_the_next_hour_is_stopped_before_it_begins_and_pays_it_when_credit_comes() {
    let mut bench = started(priced_by(HOURLY, 600_000_000));
    let boundary = bench.now.mono.plus(Nanos::from_millis(HOUR_MS));
    bench.out.clear();
    run_to(&mut bench, boundary);
    assert_eq!(bench.orders(), [Act::Freeze]);
    let left = boundary.since(bench.now.mono);
    assert!(Nanos(0) < left && left <= Nanos::from_millis(200), "stopped {left} before the hour was over");
    assert_eq!(bench.job().charge, "0.6".parse().unwrap(), "the second hour was not begun");
    assert_eq!((bench.job().unfunded, bench.job().owed()), (Credits::ZERO, Credits::ZERO));
    bench.acted(Act::Freeze);
    bench.durable();
    bench.out.clear();
    // Half of what is needed does not wake it, all of it does.
    for (more, act) in [(300_000_000, None), (300_000_000, Some(Act::Thaw))] {
        bench.pass(60_000);
        bench.free += more;
        let version = bench.turn.agent().accounts.values().next().unwrap().grant.pushed_version + 1;
        bench.step(Event::Pushed(crate::domain::wire::Push { account: "a".parse().unwrap(), version }));
        bench.durable();
        bench.answer();
        bench.durable();
        assert_eq!(bench.orders().last().copied(), act, "with {more} more");
    }
    bench.acted(Act::Thaw);
    bench.pass(1_000);
    let sample = bench.sample(Attempt(1));
    bench.step(Event::Looked(vec![sample]));
    assert_eq!(bench.job().charge, "1.2".parse().unwrap());
    assert_eq!(bench.job().drawn, "1.2".parse().unwrap());
}

#[test]
fn d1_who_can_pay_the_next_hour_goes_on_without_a_stop() {
    let mut bench = started(priced_by(HOURLY, 1_200_000_000));
    let later = bench.now.mono.plus(Nanos::from_millis(2 * HOUR_MS));
    bench.out.clear();
    run_to(&mut bench, later);
    assert_eq!(bench.orders(), [Act::Freeze]);
    let left = later.since(bench.now.mono);
    assert!(Nanos(0) < left && left <= Nanos::from_millis(200), "two hours were paid: stopped {left} before they were over");
    assert_eq!(bench.job().charge, "1.2".parse().unwrap());
    assert_eq!(bench.job().owed(), Credits::ZERO);
}

#[test]
fn v2_what_is_settled_at_the_end_is_kept_back_and_posted_once_by_the_outcome() {
    let line = "meter = \"cpu_time\"\nprice = \"1\"\nunit = \"core-second\"\ntiming = \"settle_at_end\"\noutcome = { failed = \"0.5\" }";
    for (outcome, charge) in [(Outcome::Completed, "2"), (Outcome::Failed, "1")] {
        let mut bench = started(priced_by(line, 30_000_000_000));
        bench.work(2_000);
        bench.durable();
        assert_eq!((bench.job().charge, bench.job().pending()), (Credits::ZERO, "2".parse().unwrap()));
        let name = "job".parse().unwrap();
        let empty = JobSample { populated: Reading::Seen(Populated::No), ..bench.sample(Attempt(1)) };
        let ending = Ending { outcome, exit_code: None };
        bench.step(Event::StopAsked { caller: 2, name, ending, sample: Some(empty) });
        bench.pass(100);
        let empty = JobSample { populated: Reading::Seen(Populated::No), ..bench.sample(Attempt(1)) };
        bench.step(Event::Looked(vec![empty]));
        bench.durable();
        let job = bench.job();
        assert!(job.ended.is_some());
        assert_eq!((job.charge, job.drawn, job.pending()), (charge.parse().unwrap(), charge.parse().unwrap(), Credits::ZERO), "{outcome}");
        let account = bench.turn.agent().accounts.values().next().unwrap();
        assert_eq!((account.grant.spent, account.charged), (job.drawn, job.charge));
    }
}

#[test]
fn v2_a_job_is_stopped_when_what_it_will_cost_at_its_end_is_all_that_is_in_hand() {
    let line = "meter = \"cpu_time\"\nprice = \"1\"\nunit = \"core-second\"\ntiming = \"settle_at_end\"";
    let mut bench = started(priced_by(line, 2_000_000_000));
    bench.out.clear();
    bench.work(1_900);
    bench.durable();
    assert_eq!(bench.orders(), []);
    bench.work(100);
    bench.durable();
    assert_eq!(bench.orders(), [Act::Freeze]);
    assert_eq!((bench.job().charge, bench.job().pending()), (Credits::ZERO, "2".parse().unwrap()));
}

#[test]
fn a3_of_two_starts_at_once_that_the_balance_pays_once_exactly_one_runs() {
    let line = "meter = \"job_starts\"\nprice = \"5\"\nunit = \"start\"\ntiming = \"atomic_at_start\"";
    for (balance, runs) in [(4, 0), (5, 1), (9, 1), (10, 2)] {
        let mut bench = priced_by(line, balance * 1_000_000_000);
        bench.start_named("one", 1, "a");
        bench.start_named("two", 2, "a");
        bench.start_named("one", 3, "a");
        for _ in 0..3 {
            bench.durable();
            if bench.turn.agent().outstanding.is_some() {
                bench.answer();
            }
            bench.pass(200);
            bench.step(Event::Looked(Vec::new()));
        }
        bench.durable();
        let agent = bench.turn.agent();
        assert_eq!(agent.jobs.len(), runs, "a balance of {balance}");
        let spent: Credits = agent.accounts.values().map(|account| account.grant.spent).sum();
        assert_eq!(spent, Credits::from_nano(5_000_000_000 * i128::try_from(runs).unwrap()), "a balance of {balance}");
        assert!(agent.jobs.values().all(|job| job.owed().is_zero()), "a4: never more than the balance");
    }
}

#[test]
fn d8_a_rate_for_standing_still_runs_on_while_somebody_else_has_it_stand_still() {
    let line = "meter = \"wall_time\"\nprice = \"1\"\nunit = \"second\"\nstate = { paused = \"0.5\" }";
    let mut bench = started(priced_by(line, 100_000_000_000));
    bench.work(1_000);
    bench.frozen = Frozen::Yes;
    let look = |bench: &mut Bench| {
        bench.pass(1_000);
        let sample = bench.sample(Attempt(1));
        bench.step(Event::Looked(vec![sample]));
        bench.durable();
    };
    look(&mut bench);
    assert_eq!(bench.job().charge, "2".parse().unwrap());
    for _ in 0..4 {
        look(&mut bench);
    }
    assert_eq!(bench.job().charge, "4".parse().unwrap(), "four seconds at a half");
    assert_eq!(bench.job().usage().paused_ns, 4_000_000_000);
}

#[test]
fn r2_the_hours_that_remain_are_told_from_all_that_burns_and_have_no_end_where_nothing_does() {
    use crate::domain::view::View;
    let lines = "meter = \"cpu_time\"\nprice = \"2.00\"\nunit = \"core-hour\"\n[[line]]\nid = \"w\"\nmeter = \"wall_time\"\nprice = \"0.50\"\nunit = \"hour\"";
    let mut bench = started(priced_by(lines, 25_000_000_000));
    let account = |bench: &Bench| View::of(bench.turn.agent(), bench.turn.settings(), 0, None, bench.now).accounts.remove(0);
    assert_eq!(account(&bench).lasts_s, None, "nothing has burnt yet: no end, and no division by zero");
    for _ in 0..20 {
        bench.pass(1_000);
        bench.cpu_ns += 1_000 * MS;
        let sample = bench.sample(Attempt(1));
        bench.step(Event::Ticked(vec![sample]));
        bench.durable();
        if bench.turn.agent().outstanding.is_some() {
            bench.answer();
            bench.durable();
        }
    }
    let seen = account(&bench);
    let hour = |text: &str| text.parse::<Credits>().unwrap();
    assert!((hour("2.499995")..=hour("2.5")).contains(&seen.burn_per_hour), "2.00 and 0.50: {}", seen.burn_per_hour);
    // 25 credits last ten hours; twenty seconds of them are gone.
    assert!((35_978..=35_982).contains(&seen.lasts_s.unwrap()), "{:?} s", seen.lasts_s);
    bench.frozen = Frozen::Yes;
    bench.pass(1_000);
    let sample = bench.sample(Attempt(1));
    bench.step(Event::Ticked(vec![sample]));
    assert_eq!(account(&bench).lasts_s, None, "what stands still burns nothing");
}

#[test]
fn a_card_that_pins_its_predecessor_is_stale_behind_any_other_whatever_it_is_called() {
    let line = "[[line]]\nid = \"w\"\nmeter = \"wall_time\"\nprice = \"1\"\nunit = \"hour\"\n";
    let card = |name: &str, version: usize, pin: Option<crate::domain::id::Digest>| {
        let pin = pin.map_or(String::new(), |digest| format!("predecessor = \"{digest}\"\n"));
        let text = format!("card = \"{name}\"\nversion = {version}\n{pin}effective_from = \"2026-01-01T00:00:00Z\"\n{line}");
        Card::parse(&text, "card.toml").unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
    };
    let mut bench = Bench::new();
    let first = bench.turn.agent().card.unwrap();
    let winter = card("winter", 1, Some(first));
    let summer = card("summer", 1, Some(winter.digest));
    let adopt = |bench: &mut Bench, card: &Card| {
        bench.step(Event::CardArrived(Box::new(card.clone()), Vec::new()));
        bench.durable();
        bench.turn.agent().card == Some(card.digest)
    };
    assert!(!adopt(&mut bench, &summer), "one before it is missing");
    assert!(adopt(&mut bench, &winter) && adopt(&mut bench, &winter), "the same once more is no news");
    assert!(adopt(&mut bench, &summer));
    assert!(!adopt(&mut bench, &winter), "an older one under another name is stale");
    assert!(adopt(&mut bench, &card("spring", 1, None)), "one that pins nothing is as before");
}
