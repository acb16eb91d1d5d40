//! How a job ended by the evidence, and anonymous memory as a meter.

use super::*;
use crate::domain::detail::Detail;
use crate::domain::job::{Gap, GapRule};
use crate::domain::outcome::Basis;
use crate::domain::usage::Meter;

/// One credit for a GiB-second of anonymous memory.
fn anon_card(version: u64) -> Event {
    let line = "[[line]]\nid = \"anon\"\nmeter = \"memory_anon\"\nprice = \"1\"\nunit = \"GiB-second\"\n";
    let text = format!("card = \"c\"\nversion = {version}\neffective_from = \"2026-01-01T00:00:00Z\"\n{line}");
    Event::CardArrived(Box::new(Card::parse(&text, "card.toml").unwrap()), Vec::new())
}

fn killed(count: u64) -> Detail {
    Detail { oom_kills: Reading::Seen(count), ..Detail::missing(&Missing::NotSupported) }
}

/// A job whose cgroup had seen so many kills before it began.
fn running_after(kills: Option<u64>) -> Bench {
    let mut bench = Bench::new();
    bench.free = 100_000_000_000;
    bench.detail = kills.map(killed);
    bench.start(1, "a");
    bench.durable();
    bench.answer();
    bench.durable();
    bench.detail = None;
    bench
}

/// The job's end, as reported, with what the last look showed of kills.
fn end(bench: &mut Bench, outcome: Outcome, exit_code: Option<i32>, kills: Option<u64>) -> (Outcome, Basis) {
    let mut sample = bench.sample(Attempt(1));
    sample.populated = Reading::Seen(Populated::No);
    sample.detail = kills.map(killed).map(Box::new);
    let ending = Ending { outcome, exit_code };
    bench.step(Event::StopAsked { caller: 9, name: "job".parse().unwrap(), ending, sample: Some(sample) });
    bench.pass(200);
    let mut last = bench.sample(Attempt(1));
    last.populated = Reading::Seen(Populated::No);
    bench.step(Event::Looked(vec![last]));
    let job = bench.job();
    (job.ending.unwrap().outcome, job.basis.unwrap())
}

#[test]
fn a_kill_for_memory_is_the_outcome_whatever_the_job_said() {
    let mut bench = running_after(Some(3));
    bench.work(100);
    assert_eq!(end(&mut bench, Outcome::Completed, Some(0), Some(5)), (Outcome::OutOfMemory, Basis::OomKill { count: 2 }));
    assert_eq!(bench.job().reported.unwrap().outcome, Outcome::Completed, "what was said is kept");
}

#[test]
fn kills_before_the_job_and_kills_that_nobody_counted_are_no_evidence() {
    for (before, after) in [(Some(3), Some(3)), (None, Some(3)), (Some(3), None)] {
        let mut bench = running_after(before);
        bench.work(100);
        assert_eq!(end(&mut bench, Outcome::Completed, Some(0), after), (Outcome::Completed, Basis::ExitStatus), "{before:?} {after:?}");
    }
}

#[test]
fn a_kill_seen_earlier_stands_though_the_last_look_could_not_read_it() {
    let mut bench = running_after(Some(0));
    let mut seen = bench.sample(Attempt(1));
    seen.detail = Some(Box::new(killed(1)));
    bench.step(Event::Ticked(vec![seen]));
    let mut gone = bench.sample(Attempt(1));
    gone.detail = Some(Box::new(Detail::missing(&Missing::Vanished)));
    bench.step(Event::Ticked(vec![gone]));
    assert_eq!(end(&mut bench, Outcome::Failed, None, None), (Outcome::OutOfMemory, Basis::OomKill { count: 1 }));
}

#[test]
fn the_exit_status_stands_above_the_word_and_the_time_limit_above_both() {
    let cases = [
        (Outcome::Completed, Some(0), Outcome::Completed, Basis::ExitStatus),
        (Outcome::Completed, Some(1), Outcome::Failed, Basis::ExitStatus),
        (Outcome::Unknown, Some(137), Outcome::Failed, Basis::ExitStatus),
        (Outcome::Unknown, Some(0), Outcome::Completed, Basis::ExitStatus),
        (Outcome::Completed, None, Outcome::Completed, Basis::Reported),
        (Outcome::Cancelled, Some(0), Outcome::Cancelled, Basis::Reported),
        (Outcome::TimedOut, None, Outcome::TimedOut, Basis::Reported),
    ];
    for (said, code, outcome, basis) in cases {
        let mut bench = running_after(None);
        bench.work(100);
        assert_eq!(end(&mut bench, said, code, None), (outcome, basis), "{said} {code:?}");
    }
    let mut bench = Bench::new();
    bench.free = 100_000_000_000;
    bench.time_limit = Some(Nanos::from_secs(1));
    bench.start(1, "a");
    bench.durable();
    bench.answer();
    bench.durable();
    bench.work(1_500);
    assert_eq!(end(&mut bench, Outcome::Failed, Some(143), None), (Outcome::TimedOut, Basis::TimeLimit));
}

/// A job of 1 GiB of anonymous memory under a card that prices it.
fn anon_bench() -> Bench {
    let mut bench = Bench::new();
    bench.step(anon_card(2));
    bench.durable();
    bench.free = 100_000_000_000;
    bench.start(1, "a");
    bench.durable();
    bench.answer();
    bench.durable();
    bench
}

fn look(bench: &mut Bench, ms: u64, reading: Option<Reading<u64>>) {
    bench.pass(ms);
    let mut sample = bench.sample(Attempt(1));
    sample.memory_anon_bytes = reading;
    bench.step(Event::Ticked(vec![sample]));
}

fn anon_gaps(bench: &Bench) -> Vec<&Gap> {
    bench.job().gaps.iter().filter(|gap| gap.meter == Meter::MemoryAnon).collect()
}

#[test]
fn anonymous_memory_is_billed_where_the_card_prices_it() {
    let mut bench = anon_bench();
    look(&mut bench, 0, Some(Reading::Seen(1 << 30)));
    look(&mut bench, 1_000, Some(Reading::Seen(1 << 30)));
    look(&mut bench, 1_000, Some(Reading::Seen(3 << 30)));
    assert_eq!(bench.job().charge, "3".parse().unwrap(), "a GiB for a second, then two on average");
    assert!(anon_gaps(&bench).is_empty());
}

#[test]
fn anonymous_memory_that_cannot_be_read_is_a_gap_with_its_reason_and_never_zero() {
    let mut bench = anon_bench();
    for _ in 0..3 {
        look(&mut bench, 1_000, Some(Reading::Missing(Missing::NotSupported)));
    }
    assert!(bench.job().charge.is_zero());
    let gaps = anon_gaps(&bench);
    assert_eq!(gaps.len(), 1, "one that goes on is one: {gaps:?}");
    assert_eq!(
        (&gaps[0].why, gaps[0].rule, gaps[0].to.since(gaps[0].from)),
        (&Missing::NotSupported, GapRule::NotBilled, Nanos::from_secs(3))
    );
    look(&mut bench, 1_000, Some(Reading::Seen(1 << 30)));
    look(&mut bench, 1_000, Some(Reading::Seen(1 << 30)));
    assert_eq!(bench.job().charge, "1".parse().unwrap());
    assert_eq!(anon_gaps(&bench)[0].to.since(anon_gaps(&bench)[0].from), Nanos::from_secs(4), "up to the next reading");
}

#[test]
fn where_no_card_prices_it_anonymous_memory_is_told_every_ten_seconds_and_a_new_price_holds_from_its_instant() {
    let mut bench = running_after(None);
    look(&mut bench, 0, Some(Reading::Seen(1 << 30)));
    for _ in 0..9 {
        look(&mut bench, 1_000, None);
    }
    assert_eq!(bench.job().usage().memory_anon_byte_ns, 0, "nobody has looked since");
    look(&mut bench, 1_000, Some(Reading::Seen(1 << 30)));
    assert_eq!(bench.job().usage().memory_anon_byte_ns, 10_000_000_000 << 30);
    look(&mut bench, 5_000, None);
    bench.step(anon_card(2));
    bench.durable();
    look(&mut bench, 1_000, Some(Reading::Seen(1 << 30)));
    let job = bench.job();
    assert_eq!(job.segments[1].usage.memory_anon_byte_ns, 1_000_000_000 << 30, "the five seconds before had no price");
    assert!(anon_gaps(&bench).is_empty());
}

#[test]
fn a_level_that_nobody_looked_at_for_long_is_not_billed() {
    let mut bench = anon_bench();
    look(&mut bench, 0, Some(Reading::Seen(1 << 30)));
    look(&mut bench, 60_000, Some(Reading::Seen(1 << 30)));
    assert!(bench.job().charge.is_zero());
    assert_eq!(anon_gaps(&bench)[0].why, Missing::AgentDown);
}

#[test]
fn a_receipt_is_final_once_the_close_of_its_job_is_on_disk_and_not_before() {
    let mut bench = Bench::running(5_000_000_000);
    let name: JobName = "job".parse().unwrap();
    let state = |bench: &Bench| bench.turn.receipt(&name).unwrap().state;
    end(&mut bench, Outcome::Completed, Some(0), None);
    assert!(bench.turn.agent().jobs.is_empty(), "closed");
    assert_eq!(state(&bench), ReceiptState::Provisional, "not on disk yet");
    bench.durable();
    assert_eq!(state(&bench), ReceiptState::Final);
}
