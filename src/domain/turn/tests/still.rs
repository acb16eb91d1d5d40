//! Jobs that stand still by somebody else's hand: what they hold is paid for, until there is nothing left to pay with.

use super::*;
use crate::domain::enforcement::Enforcement;

/// A job of 1 GiB under a card of one credit for a GiB-second and nothing else, so that the host's greatest burn is a credit a second.
fn holding(nano: i128) -> Bench {
    let line = "[[line]]\nid = \"memory\"\nmeter = \"memory_charged\"\nprice = \"1\"\nunit = \"GiB-second\"\n";
    let text = format!("card = \"c\"\nversion = 2\neffective_from = \"2026-01-01T00:00:00Z\"\n{line}");
    let mut bench = Bench::new();
    bench.step(Event::CardArrived(Box::new(Card::parse(&text, "card.toml").unwrap()), Vec::new()));
    bench.durable();
    (bench.free, bench.rest) = (nano, 1); // while something is free nothing goes back
    bench.start(1, "a");
    bench.durable();
    bench.answer();
    bench.durable();
    hold(&mut bench, 0);
    bench
}

/// A look at its gibibyte, so much later.
fn hold(bench: &mut Bench, ms: u64) {
    bench.pass(ms);
    let sample = JobSample { memory_bytes: Reading::Seen(1 << 30), ..bench.sample(Attempt(1)) };
    bench.step(Event::Ticked(vec![sample]));
    bench.durable();
}

fn stopped_by_another(nano: i128) -> Bench {
    let mut bench = holding(nano);
    bench.frozen = Frozen::Yes;
    hold(&mut bench, 0);
    assert_eq!(bench.job().frozen_by, Some(FrozenBy::Other));
    bench
}

#[test]
fn a_job_that_stops_itself_pays_for_what_it_holds() {
    let mut bench = stopped_by_another(100_000_000_000);
    let gaps = bench.job().gaps.clone();
    (0..5).for_each(|_| hold(&mut bench, 1_000));
    let usage = bench.job().usage();
    assert_eq!((usage.memory_byte_ns, usage.wall_ns, usage.frozen_ns), (5_000_000_000 << 30, 5_000_000_000, 0));
    assert_eq!(bench.job().charge, "5".parse().unwrap());
    assert_eq!(bench.job().gaps, gaps);
}

#[test]
fn a_job_that_the_agent_stopped_pays_for_nothing_meanwhile() {
    let mut bench = holding(1_000_000_000);
    hold(&mut bench, 1_000);
    bench.acted(Act::Freeze);
    let before = bench.job().charge;
    (0..5).for_each(|_| hold(&mut bench, 1_000));
    assert_eq!((bench.job().frozen_by, bench.job().charge), (Some(FrozenBy::Agent), before));
    bench.frozen = Frozen::No;
    hold(&mut bench, 0);
    assert_eq!(bench.job().usage().frozen_ns, 5_000_000_000);
}

#[test]
fn a_stopped_job_runs_up_no_debt_once_its_account_is_empty() {
    let mut bench = stopped_by_another(2_000_000_000);
    (0..9).for_each(|_| hold(&mut bench, 500));
    let at_zero = bench.job().charge;
    assert!(at_zero >= "2".parse().unwrap() && at_zero <= "2.5".parse().unwrap(), "a look past zero at most: {at_zero}");
    (0..9).for_each(|_| hold(&mut bench, 500));
    assert_eq!(bench.job().charge, at_zero);
    assert!(bench.turn.agent().accounts.values().all(|account| account.empty_since.is_some()));
    // Whoever stopped it lets it go on, and it is the agent that stops it then.
    bench.out.clear();
    bench.frozen = Frozen::No;
    hold(&mut bench, 0);
    assert!(bench.out.iter().any(|effect| matches!(effect, Effect::Act(order) if order.act == Act::Freeze)), "{:?}", bench.out);
}

#[test]
fn where_nothing_is_enforced_a_stopped_job_pays_on_past_zero_as_a_running_one() {
    let mut bench = stopped_by_another(1_000_000_000);
    let settings = Settings { enforcement: Enforcement::Observe, ..bench.turn.settings().clone() };
    bench.turn.set_settings(settings);
    (0..5).for_each(|_| hold(&mut bench, 1_000));
    assert_eq!(bench.job().charge, "5".parse().unwrap());
}

#[test]
fn an_account_whose_one_job_is_stopped_by_another_is_asked_for_and_armed_in_time() {
    let bench = stopped_by_another(1_500_000_000);
    let (at, jobs) = bench.turn.next_look(bench.now).expect("it can be empty soon");
    assert_eq!((at <= bench.now.mono.plus(Nanos::from_millis(1_500)), jobs), (true, vec![Attempt(1)]));
}
