//! Credit that was promised to be used: a bucket of the account, drawn first, lost at its end.

use super::accounts::{Spender, terms};
use super::*;
use crate::domain::receipt::rfc3339;
use crate::domain::wire::RefundTotal;

pub(super) fn monthly(amount: Credits) -> Commitment {
    Commitment { amount, period: CommitmentPeriod::Monthly, day: 1, starts: None, ends: None }
}

fn commit(bank: &mut Bank, commitment: Commitment, now: Now) {
    terms(bank, Terms { commitment: Some(commitment), ..Terms::default() }, now);
}

/// Committed, free, paid.
fn buckets(bank: &Bank) -> [Credits; 3] {
    Bucket::ALL.map(|bucket| bank.account.lots.of(bucket))
}

fn are(committed: i128, free: i128, paid: i128) -> [Credits; 3] {
    [committed, free, paid].map(credits)
}

fn wall(text: &str) -> Wall {
    let at: jiff::Timestamp = text.parse().unwrap();
    Wall(u64::try_from(at.as_millisecond()).unwrap())
}

/// Lines of what was given and of what lapsed, each with its end.
fn periods(bank: &Bank) -> Vec<String> {
    let told = bank.ledger.values().filter_map(|entry| match entry.kind {
        EntryKind::Commitment { until } => Some((entry.at, format!("{} until {}", entry.committed(), rfc3339(until)))),
        EntryKind::CommitmentLapsed { until, .. } => Some((entry.at, format!("{} lapsed of {}", entry.committed(), rfc3339(until)))),
        _ => None,
    });
    let mut told: Vec<_> = told.collect();
    told.sort();
    told.into_iter().map(|(_, text)| text).collect()
}

#[test]
fn s7_a_commitment_is_drawn_before_the_accounts_other_credit_and_what_runs_goes_over_to_that() {
    let nano = Credits::from_nano(1);
    for (cost, left) in [
        (credits(11), are(1, 3, 10)),
        (credits(12).minus(nano), [nano, credits(3), credits(10)]),
        (credits(12), are(0, 3, 10)),
        (credits(12).plus(nano), [Credits::ZERO, credits(3).minus(nano), credits(10)]),
        (credits(16), are(0, 0, 9)),
    ] {
        let mut bank = Bank::with(3, 10);
        commit(&mut bank, monthly(credits(12)), at(0));
        assert_eq!((buckets(&bank), bank.account.view().committed), (are(12, 3, 10), credits(12)));
        let mut spender = Spender::new(1);
        assert_eq!(spender.spend(&mut bank, cost, at(1)), (cost, Verdict::Granted), "one grant after the other, without a stop between");
        assert_eq!(buckets(&bank), left, "{cost}");
        let usage = bank.ledger.values().find(|entry| matches!(entry.kind, EntryKind::Usage { .. })).unwrap();
        assert_eq!((usage.amount, usage.committed()), (cost, cost.min(credits(12))));
    }
    let mut bank = Bank::with(0, 0);
    commit(&mut bank, monthly(credits(12)), at(0));
    assert_eq!(
        Spender::new(1).spend(&mut bank, credits(13), at(1)),
        (credits(12), Verdict::Exhausted),
        "and where there is no other, it is the end"
    );
}

#[test]
fn s7_a_quantity_is_committed_in_a_unit_of_its_own() {
    let unit = crate::domain::ledger::Unit { name: "GPUH".parse().unwrap(), credits_per_unit: "2.4".parse().unwrap() };
    let committed = crate::domain::ledger::in_credits("500".parse().unwrap(), &unit.name, Some(&unit)).unwrap();
    assert_eq!(committed, credits(1_200), "500 hours at 2.40 credits");
}

#[test]
fn s7_what_is_left_at_the_months_end_lapses_and_the_next_month_has_all_of_it_again() {
    let mut bank = Bank::with(0, 10);
    commit(&mut bank, monthly(credits(1_200)), at(0));
    let end = bank.account.view().committed_until.unwrap();
    assert_eq!(end, wall("2027-02-01T00:00:00Z"));
    let mut spender = Spender::new(1);
    spender.spend(&mut bank, credits(800), at(1));
    spender.spend(&mut bank, Credits::ZERO, Now { wall: Wall(end.0 - 1), ..at(2) });
    assert_eq!(buckets(&bank), are(400, 0, 10), "a millisecond before its end it is all there");
    spender.spend(&mut bank, Credits::ZERO, Now { wall: end, ..at(3) });
    assert_eq!((buckets(&bank), bank.account.withdrawn), (are(1_200, 0, 10), credits(400)));
    let [january, february] = ["2027-02-01T00:00:00.000Z", "2027-03-01T00:00:00.000Z"];
    let expected = [format!("1200 until {january}"), format!("1200 until {february}"), format!("400 lapsed of {january}")];
    assert_eq!(periods(&bank), expected);
    let span = crate::domain::report::Span { from: wall("2027-01-01T00:00:00Z"), to: end };
    let entries: Vec<LedgerEntry> = bank.ledger.values().cloned().collect();
    let made = crate::domain::statement::statement(&bank.account.view(), &entries, span, Wall(end.0 + 1_000));
    let [period] = made.commitments[..] else { panic!("{:?}", made.commitments) };
    assert_eq!((period.committed, period.used, period.lapsed, period.left), (credits(1_200), credits(800), credits(400), Credits::ZERO));
    assert_eq!(made.closing, credits(10), "what lapsed with the month is lost in that month");
}

#[test]
fn s7_what_nodes_hold_of_it_at_its_end_may_still_be_used_and_lapses_as_it_comes_back() {
    let mut bank = Bank::with(0, 10);
    commit(&mut bank, monthly(credits(12)), at(0));
    let end = bank.account.view().committed_until.unwrap();
    let after = |second: u64| Now { wall: Wall(end.0 + second * 1_000), ..at(10 + second) };
    let mut spender = Spender::new(1);
    spender.ask(&mut bank, credits(5), at(1));
    spender.ask(&mut bank, credits(5), after(0));
    assert_eq!((buckets(&bank), bank.account.withdrawn), (are(17, 0, 10), credits(7)), "five are held, and twelve are new");
    spender.totals.spent = credits(3);
    spender.totals.returned = credits(2);
    spender.ask(&mut bank, Credits::ZERO, after(1));
    assert_eq!((buckets(&bank), bank.account.withdrawn), (are(12, 0, 10), credits(9)), "three were used of the month that is over");
    assert_eq!(bank.account.settled, credits(3));
    let january = rfc3339(end);
    assert_eq!(periods(&bank)[2..], [format!("7 lapsed of {january}"), format!("2 lapsed of {january}")]);
}

#[test]
fn s7_a_commitment_begins_and_ends_at_its_instants_to_the_millisecond() {
    let (starts, ends) = (wall("2027-01-20T12:00:00Z"), wall("2027-02-10T12:00:00Z"));
    let mut bank = Bank::with(0, 1);
    commit(&mut bank, Commitment { starts: Some(starts), ends: Some(ends), ..monthly(credits(5)) }, at(0));
    let mut spender = Spender::new(1);
    let mut held_at = |wall: Wall| {
        spender.spend(&mut bank, Credits::ZERO, Now { wall, ..at(1) });
        bank.account.lots.of(Bucket::Committed)
    };
    let before = |at: Wall| Wall(at.0 - 1);
    assert_eq!([held_at(before(starts)), held_at(starts)], [Credits::ZERO, credits(5)]);
    assert_eq!(held_at(wall("2027-02-01T00:00:00Z")), credits(5), "the second period, whole");
    assert_eq!([held_at(before(ends)), held_at(ends)], [credits(5), Credits::ZERO]);
    assert_eq!(held_at(wall("2027-03-01T00:00:00Z")), Credits::ZERO, "it is over");
    let ends = |text: &str| format!("5 until {text}");
    let given: Vec<String> = periods(&bank).into_iter().filter(|line| !line.contains("lapsed")).collect();
    assert_eq!(given, [ends("2027-02-01T00:00:00.000Z"), ends("2027-02-10T12:00:00.000Z")]);
}

#[test]
fn s7_what_is_committed_once_is_given_once_and_other_terms_give_nothing_twice() {
    let mut bank = Bank::with(0, 1);
    let once = Commitment { period: CommitmentPeriod::Once, ends: Some(wall("2027-12-31T00:00:00Z")), ..monthly(credits(100)) };
    commit(&mut bank, once, at(0));
    let mut spender = Spender::new(1);
    spender.spend(&mut bank, credits(30), at(1));
    spender.spend(&mut bank, Credits::ZERO, Now { wall: wall("2027-06-01T00:00:00Z"), ..at(2) });
    assert_eq!(buckets(&bank), are(70, 0, 1));
    terms(&mut bank, Terms::default(), at(3));
    commit(&mut bank, Commitment { amount: credits(200), ..once }, at(4));
    assert_eq!(buckets(&bank), are(70, 0, 1), "what was given for a period stays, and nothing is added to it");
    spender.spend(&mut bank, Credits::ZERO, Now { wall: wall("2027-12-31T00:00:00Z"), ..at(5) });
    assert_eq!(buckets(&bank), are(0, 0, 1));
}

#[test]
fn s7_what_an_outcome_gives_back_goes_where_it_came_from_and_what_was_drawn_last_comes_first() {
    let mut bank = Bank::with(3, 10);
    commit(&mut bank, monthly(credits(12)), at(0));
    let mut spender = Spender::new(1);
    spender.spend(&mut bank, credits(17), at(1)); // 12 committed, 3 free, 2 paid
    assert_eq!(buckets(&bank), are(0, 0, 8));
    let mut number = 10;
    let mut give_back = |bank: &mut Bank, refunded, now| {
        number += 1;
        let refunds = vec![RefundTotal { epoch: Epoch([1; 16]), account: id(), refunded: credits(refunded) }];
        let asked = Request { refunds, ..request("n1", 1, number, RequestEntry { owed: Credits::ZERO, ..spender.totals.clone() }) };
        bank.ask(&asked, NEVER, now);
        buckets(bank)
    };
    assert_eq!(give_back(&mut bank, 1, at(2)), are(0, 0, 9));
    assert_eq!(give_back(&mut bank, 4, at(3)), are(0, 2, 10));
    assert_eq!(give_back(&mut bank, 6, at(4)), are(1, 3, 10));
    let end = bank.account.view().committed_until.unwrap();
    let next = Now { wall: end, ..at(5) };
    assert_eq!(give_back(&mut bank, 8, next), are(14, 3, 10), "the month that runs has it, and the one that is over has lapsed");
    terms(&mut bank, Terms::default(), next);
    let over = Now { wall: wall("2027-03-01T00:00:00Z"), ..at(6) };
    assert_eq!(give_back(&mut bank, 9, over), are(0, 3, 11), "where none runs any more it comes back as paid credit");
    assert_eq!(give_back(&mut bank, 17, over), are(0, 3, 19));
}
