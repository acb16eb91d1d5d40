//! What the five platforms ask of an account, by their numbers, and what must hold of it whatever happens.

use super::commitments::monthly;
use super::*;

const HOUR_MS: u64 = 3_600_000;

pub(super) fn terms(bank: &mut Bank, terms: Terms, now: Now) {
    let lines = set_terms(&mut bank.account, terms, now);
    bank.book(lines);
}

/// One epoch that asks for all that it uses, and reports it at once.
pub(super) struct Spender {
    epoch: u8,
    number: u64,
    pub(super) totals: RequestEntry,
}

impl Spender {
    pub(super) fn new(epoch: u8) -> Spender {
        Spender { epoch, number: 0, totals: RequestEntry { burn_per_s: Credits::ZERO, ..entry() } }
    }

    pub(super) fn ask(&mut self, bank: &mut Bank, owed: Credits, now: Now) -> AnswerEntry {
        self.number += 1;
        let totals = RequestEntry { owed, ..self.totals.clone() };
        let mut asked = request(&format!("n{}", self.epoch), self.epoch, self.number, totals);
        asked.entries[0].burn_per_s = Credits::ZERO;
        let answer = bank.ask(&asked, NEVER, now);
        self.totals.granted_seen = answer.granted;
        answer
    }

    /// Uses an amount as far as it is granted, and says so. How much it was, and the authority's last word.
    pub(super) fn spend(&mut self, bank: &mut Bank, amount: Credits, now: Now) -> (Credits, Verdict) {
        self.ask(bank, amount, now);
        let in_hand = self.totals.granted_seen.minus(self.totals.spent).minus(self.totals.returned);
        let used = amount.min(in_hand);
        self.totals.spent = self.totals.spent.plus(used);
        // What is not used goes back.
        self.totals.returned = self.totals.granted_seen.minus(self.totals.spent);
        (used, self.ask(bank, Credits::ZERO, now).verdict)
    }
}

fn buckets(bank: &Bank) -> (Credits, Credits) {
    (bank.account.lots.of(Bucket::Free), bank.account.lots.of(Bucket::Paid))
}

fn pay(bank: &mut Bank, payment: &Payment, wanted: PaymentState, before: Option<PaymentState>, now: Now) -> Result<Booked, PaymentRefusal> {
    let booked = book(&mut bank.account, payment, wanted, before.map(|state| (payment, state)), now)?;
    if let Booked::Now(lines) = &booked {
        bank.book(lines.clone());
    }
    Ok(booked)
}

fn paid(name: &str, amount: i128) -> Payment {
    Payment::deposit(name.parse().unwrap(), Bucket::Paid, credits(amount))
}

fn confirm_refill(bank: &mut Bank, came: PaymentState, now: Now) -> Payment {
    let payment = bank.account.pending_refill().unwrap();
    pay(bank, &payment, came, Some(PaymentState::Pending), now).unwrap();
    payment
}

fn refills(bank: &Bank) -> usize {
    bank.notices.iter().filter(|notice| matches!(notice, AccountNotice::Refill(_))).count()
}

/// As the store does it: what is remembered goes through its text.
fn restart(bank: &mut Bank) {
    let account = &mut bank.account;
    account.keeping = serde_json::from_str(&serde_json::to_string(&account.keeping).unwrap()).unwrap();
    account.terms = serde_json::from_str(&serde_json::to_string(&account.terms).unwrap()).unwrap();
    account.lots = serde_json::from_str(&serde_json::to_string(&account.lots).unwrap()).unwrap();
}

#[test]
fn v9_free_is_spent_before_paid() {
    for (cost, left) in [(5, (0, 8)), (3, (0, 10)), (2, (1, 10)), (13, (0, 0)), (4, (0, 9))] {
        let mut bank = Bank::with(3, 10);
        assert_eq!(Spender::new(1).spend(&mut bank, credits(cost), at(1)).0, credits(cost));
        assert_eq!(buckets(&bank), (credits(left.0), credits(left.1)), "cost {cost}");
    }
}

#[test]
fn v9_the_allowance_is_given_at_its_reset_and_what_is_left_of_it_lapses_then() {
    let mut bank = Bank::with(0, 10);
    // at(0) is 2027-01-15T08:00:00Z.
    terms(&mut bank, Terms { allowance: Some(Allowance { amount: credits(3), day: 1 }), ..Terms::default() }, at(0));
    assert_eq!(buckets(&bank), (credits(3), credits(10)), "the month that runs has one too");
    let reset = bank.account.keeping.reset.unwrap();
    assert_eq!(crate::domain::receipt::rfc3339(reset), "2027-02-01T00:00:00.000Z");
    let mut spender = Spender::new(1);
    spender.spend(&mut bank, credits(2), at(1));
    let just_before = Now { wall: Wall(reset.0 - 1), ..at(2) };
    spender.spend(&mut bank, Credits::ZERO, just_before);
    assert_eq!(buckets(&bank), (credits(1), credits(10)));
    spender.spend(&mut bank, Credits::ZERO, Now { wall: reset, ..at(3) });
    assert_eq!((buckets(&bank), bank.account.withdrawn), ((credits(3), credits(10)), credits(1)));
    assert_eq!(bank.account.view().reset.map(crate::domain::receipt::rfc3339).as_deref(), Some("2027-03-01T00:00:00.000Z"));
    // Nobody looked for three months: one allowance, not three.
    spender.spend(&mut bank, Credits::ZERO, Now { wall: Wall(reset.0 + 100 * 24 * HOUR_MS), ..at(4) });
    assert_eq!(buckets(&bank), (credits(3), credits(10)));
    spender.spend(&mut bank, Credits::ZERO, Now { wall: Wall(reset.0 + 100 * 24 * HOUR_MS), ..at(5) });
    assert_eq!(buckets(&bank), (credits(3), credits(10)), "once");
}

#[test]
fn v11_a_top_up_counts_once_it_is_confirmed_and_never_before() {
    let mut bank = Bank::with(0, 5);
    let mut spender = Spender::new(1);
    assert_eq!(spender.spend(&mut bank, credits(5), at(1)), (credits(5), Verdict::Exhausted));
    let version = bank.account.version;
    pay(&mut bank, &paid("t", 20), PaymentState::Pending, None, at(2)).unwrap();
    assert_eq!((bank.account.version, spender.spend(&mut bank, credits(1), at(3))), (version, (Credits::ZERO, Verdict::Exhausted)));
    assert_eq!(bank.ledger["deposit/t"].status, EntryStatus::Pending);
    pay(&mut bank, &paid("t", 20), PaymentState::Completed, Some(PaymentState::Pending), at(4)).unwrap();
    assert!(version < bank.account.version, "nodes are told, and thaw");
    assert_eq!(spender.spend(&mut bank, credits(1), at(5)), (credits(1), Verdict::Granted));
    assert_eq!((bank.ledger["deposit/t"].status, bank.ledger.len()), (EntryStatus::Completed, 3), "one line, replaced");
}

#[test]
fn v11_a_payment_that_failed_is_never_credit_and_what_became_of_one_stands() {
    let mut bank = Bank::with(0, 5);
    let book = |bank: &mut Bank, wanted, before| pay(bank, &paid("t", 20), wanted, before, at(1));
    book(&mut bank, PaymentState::Pending, None).unwrap();
    assert_eq!(book(&mut bank, PaymentState::Pending, Some(PaymentState::Pending)), Ok(Booked::Before));
    book(&mut bank, PaymentState::Failed, Some(PaymentState::Pending)).unwrap();
    assert_eq!((bank.account.lots.total(), bank.ledger["deposit/t"].status), (credits(5), EntryStatus::Failed));
    assert_eq!(book(&mut bank, PaymentState::Failed, Some(PaymentState::Failed)), Ok(Booked::Before));
    let late = book(&mut bank, PaymentState::Completed, Some(PaymentState::Failed));
    assert_eq!(late, Err(PaymentRefusal::Settled(PaymentState::Failed)));
    let undone = book(&mut bank, PaymentState::Failed, Some(PaymentState::Completed));
    assert_eq!(undone, Err(PaymentRefusal::Settled(PaymentState::Completed)));
    assert_eq!(bank.account.lots.total(), credits(5));
}

#[test]
fn a_payment_is_booked_once() {
    let mut account = Account::new(id(), AccountPolicy::default());
    let first = paid("p", 5);
    let again = |payment: &Payment, account: &mut Account| {
        book(account, payment, PaymentState::Completed, Some((&first, PaymentState::Completed)), at(1))
    };
    assert!(matches!(book(&mut account, &first, PaymentState::Completed, None, at(0)), Ok(Booked::Now(_))));
    let once = account.clone();
    assert_eq!(again(&first, &mut account), Ok(Booked::Before));
    let later = Expiry::At(Wall(u64::MAX));
    let others = [paid("p", 6), Payment { bucket: Bucket::Free, ..first.clone() }, Payment { expires: later, ..first.clone() }];
    for other in others {
        assert_eq!(again(&other, &mut account), Err(PaymentRefusal::PaymentDiffers), "{other:?}");
    }
    let mut new = |payment: &Payment| book(&mut account, payment, PaymentState::Completed, None, at(1));
    assert_eq!(new(&paid("q", 0)), Err(PaymentRefusal::NotPositive));
    assert_eq!(new(&Payment { amount: AMOUNT_MAX, ..paid("q", 1) }), Err(PaymentRefusal::TooLarge));
    assert_eq!(new(&Payment { expires: Expiry::At(at(1).wall), ..paid("q", 1) }), Err(PaymentRefusal::Expired));
    assert_eq!(account, once);
}

fn refilled(below: i128, amount: i128, wait_s: u64) -> Terms {
    let refill = RefillTerms { below: credits(below), amount: credits(amount), wait: Nanos::from_secs(wait_s) };
    Terms { refill: Some(refill), ..Terms::default() }
}

#[test]
fn d4_a_refill_is_asked_for_once_each_time_the_balance_falls_below_its_threshold() {
    let mut bank = Bank::with(0, 10);
    terms(&mut bank, refilled(5, 20, 0), at(0));
    let mut spender = Spender::new(1);
    spender.spend(&mut bank, credits(5), at(1));
    assert_eq!((bank.account.lots.total(), refills(&bank)), (credits(5), 0), "at the threshold is not below it");
    spender.spend(&mut bank, Credits::from_nano(1), at(2));
    assert_eq!((refills(&bank), bank.account.pending_refill().unwrap().amount), (1, credits(20)));
    for second in 3..9 {
        restart(&mut bank);
        spender.spend(&mut bank, Credits::from_nano(1), at(second));
    }
    assert_eq!(refills(&bank), 1, "while one is pending there is no other, over restarts too");
    let first = confirm_refill(&mut bank, PaymentState::Completed, at(9));
    assert_eq!(bank.ledger[&format!("refill/{}", first.id)].status, EntryStatus::Completed);
    assert_eq!(first.id.as_str(), "refill/acme/1");
    spender.spend(&mut bank, credits(15), at(10));
    assert_eq!((bank.account.lots.total().nano(), refills(&bank)), (10 * NANO - 7, 1), "above the threshold");
    spender.spend(&mut bank, credits(6), at(11));
    assert_eq!(refills(&bank), 2, "a second crossing");
    assert_ne!(bank.account.pending_refill().unwrap().id, first.id);
}

#[test]
fn d4_a_refill_that_failed_is_not_asked_for_again_before_the_balance_has_been_up() {
    let mut bank = Bank::with(0, 10);
    terms(&mut bank, refilled(5, 20, 0), at(0));
    let mut spender = Spender::new(1);
    spender.spend(&mut bank, credits(6), at(1));
    confirm_refill(&mut bank, PaymentState::Failed, at(2));
    spender.spend(&mut bank, credits(1), at(3));
    assert_eq!((refills(&bank), bank.account.keeping.refill.pending.is_none()), (1, true));
    bank.deposit(Bucket::Paid, credits(1), at(4));
    assert_eq!(refills(&bank), 1, "4 is below 5 as before");
    bank.deposit(Bucket::Paid, credits(1), at(5));
    spender.spend(&mut bank, credits(1), at(6));
    assert_eq!(refills(&bank), 2, "5 was reached, and left again");
}

#[test]
fn d4_an_account_that_never_held_as_much_asks_for_nothing() {
    let mut bank = Bank::with(0, 0);
    terms(&mut bank, refilled(5, 20, 0), at(0));
    bank.deposit(Bucket::Paid, credits(4), at(1));
    Spender::new(1).spend(&mut bank, credits(4), at(2));
    assert_eq!(refills(&bank), 0);
}

#[test]
fn r7_an_account_at_zero_is_not_called_exhausted_while_its_refill_is_pending_up_to_the_stated_wait() {
    let mut bank = Bank::with(0, 10);
    terms(&mut bank, refilled(5, 20, 600), at(0));
    let mut spender = Spender::new(1);
    assert_eq!(spender.spend(&mut bank, credits(6), at(1)).1, Verdict::Granted);
    // The wait begins at zero, not when the refill was asked for.
    assert_eq!(spender.spend(&mut bank, credits(4), at(1_000)).1, Verdict::RefillPending);
    restart(&mut bank);
    assert_eq!(spender.spend(&mut bank, credits(1), at(1_599)), (Credits::ZERO, Verdict::RefillPending));
    assert_eq!(spender.spend(&mut bank, credits(1), at(1_600)), (Credits::ZERO, Verdict::Exhausted));
    confirm_refill(&mut bank, PaymentState::Completed, at(1_700));
    assert_eq!(spender.spend(&mut bank, credits(1), at(1_701)), (credits(1), Verdict::Granted));
}

#[test]
fn r7_a_refill_that_failed_ends_the_wait_at_once() {
    let mut bank = Bank::with(0, 10);
    terms(&mut bank, refilled(5, 20, 600), at(0));
    let mut spender = Spender::new(1);
    assert_eq!(spender.spend(&mut bank, credits(10), at(1)).1, Verdict::RefillPending);
    let version = bank.account.version;
    confirm_refill(&mut bank, PaymentState::Failed, at(2));
    assert!(version < bank.account.version, "who waits is told");
    assert_eq!(spender.spend(&mut bank, credits(1), at(3)).1, Verdict::Exhausted);
}

#[test]
fn v9_an_allowance_that_is_taken_away_and_given_again_is_not_given_twice_in_one_month() {
    let mut bank = Bank::with(0, 10);
    let allowance = |amount| Terms { allowance: Some(Allowance { amount: credits(amount), day: 1 }), ..Terms::default() };
    terms(&mut bank, allowance(3), at(0));
    terms(&mut bank, Terms::default(), at(1));
    assert_eq!((buckets(&bank), bank.account.view().reset), ((credits(3), credits(10)), None), "what was given stays");
    terms(&mut bank, allowance(4), at(2));
    assert_eq!(buckets(&bank), (credits(3), credits(10)));
    let reset = bank.account.view().reset.unwrap();
    Spender::new(1).spend(&mut bank, Credits::ZERO, Now { wall: reset, ..at(3) });
    assert_eq!(buckets(&bank), (credits(4), credits(10)), "the next month has what is now said");
}

#[test]
fn d5_credit_does_not_expire_unless_that_is_said() {
    let mut bank = Bank::with(2, 10);
    let century = at(100 * 365 * 24 * 3_600);
    Spender::new(1).spend(&mut bank, Credits::ZERO, century);
    assert_eq!(buckets(&bank), (credits(2), credits(10)));
}

#[test]
fn s13_a_lot_expires_at_its_instant_and_what_nodes_hold_of_it_may_still_be_spent() {
    let mut bank = Bank::with(0, 10);
    let coupon = Payment { expires: Expiry::At(at(100).wall), ..Payment::deposit("c".parse().unwrap(), Bucket::Free, credits(6)) };
    pay(&mut bank, &coupon, PaymentState::Completed, None, at(0)).unwrap();
    let mut spender = Spender::new(1);
    spender.ask(&mut bank, credits(4), at(99));
    assert_eq!(buckets(&bank), (credits(6), credits(10)));
    spender.ask(&mut bank, credits(4), at(100));
    assert_eq!((buckets(&bank), bank.account.withdrawn), ((credits(4), credits(10)), credits(2)), "four are held");
    spender.totals.spent = credits(3);
    spender.totals.returned = credits(1);
    spender.ask(&mut bank, Credits::ZERO, at(101));
    assert_eq!((buckets(&bank), bank.account.withdrawn), ((Credits::ZERO, credits(10)), credits(3)), "what came back lapsed too");
    assert_eq!(bank.account.settled, credits(3));
}

#[test]
fn s13_what_is_paid_in_lasts_as_long_as_the_plan_says_to_the_end_of_its_day_and_what_is_given_back_for_ever() {
    let mut bank = Bank::with(0, 0);
    terms(&mut bank, Terms { credit_lasts: Some(Nanos::from_secs(30 * 86_400)), ..Terms::default() }, at(0));
    // at(0) is 08:00 UTC, so its day has sixteen hours left.
    for (name, second) in [("morning", 0), ("evening", 10 * 3_600)] {
        pay(&mut bank, &paid(name, 2), PaymentState::Completed, None, at(second)).unwrap();
    }
    let refund = Payment { purpose: Purpose::Refund, ..paid("back", 1) };
    pay(&mut bank, &refund, PaymentState::Completed, None, at(11 * 3_600)).unwrap();
    let own = Payment { expires: Expiry::At(at(12 * 3_600).wall), ..paid("own", 1) };
    pay(&mut bank, &own, PaymentState::Completed, None, at(11 * 3_600)).unwrap();
    assert_eq!(bank.account.lots.count(), 3, "payments of one day are one lot");
    let mut spender = Spender::new(1);
    let end = 30 * 86_400 + 16 * 3_600;
    spender.spend(&mut bank, Credits::ZERO, at(end - 1));
    assert_eq!(bank.account.lots.total(), credits(5), "only what had a date of its own has lapsed");
    spender.spend(&mut bank, Credits::ZERO, at(end));
    assert_eq!(bank.account.lots.total(), credits(1));
}

#[test]
fn s13_credit_moves_to_another_account_with_its_date_and_never_what_nodes_hold() {
    let mut bank = Bank::with(0, 0);
    let dated = Payment { expires: Expiry::At(at(1_000).wall), ..paid("d", 4) };
    pay(&mut bank, &dated, PaymentState::Completed, None, at(0)).unwrap();
    bank.deposit(Bucket::Paid, credits(6), at(0));
    Spender::new(1).ask(&mut bank, credits(3), at(1));
    let mut other = Bank::with(0, 1);
    other.account.id = "other".parse().unwrap();
    let mut to = |bank: &mut Bank, amount, before| {
        let payment = Payment { purpose: Purpose::Transfer(other.account.id.clone()), ..paid("m", amount) };
        let moved = transfer(&mut bank.account, &mut other.account, &payment, before, at(2));
        if let Ok(Some((out, arrived))) = &moved {
            bank.book(out.clone());
            other.book(arrived.clone());
        }
        moved.map(|moved| (moved.is_some(), other.account.lots.clone()))
    };
    assert_eq!(to(&mut bank, 8, None), Err(PaymentRefusal::NotEnough(credits(7))));
    let (_, lots) = to(&mut bank, 5, None).unwrap();
    let expires: Vec<(Expiry, Credits)> = lots.iter().map(|lot| (lot.key.expires, lot.left)).collect();
    assert_eq!(expires, [(Expiry::At(at(1_000).wall), credits(4)), (Expiry::Never, credits(2))]);
    assert_eq!((bank.account.lots.total(), bank.account.available()), (credits(5), credits(2)));
    let same = Payment { purpose: Purpose::Transfer("other".parse().unwrap()), ..paid("m", 5) };
    assert!(!to(&mut bank, 5, Some((&same, PaymentState::Completed))).unwrap().0, "once");
    let mut twin = bank.account.clone();
    let itself = transfer(&mut bank.account, &mut twin, &same, None, at(3));
    assert_eq!(itself, Err(PaymentRefusal::SameAccount));
}

#[test]
fn s1_two_users_on_two_hosts_spend_one_balance() {
    let mut bank = Bank::with(0, 10);
    let (mut one, mut other) = (Spender::new(1), Spender::new(2));
    let mut used = Credits::ZERO;
    for second in 1..20 {
        used = used.plus(one.spend(&mut bank, credits(1), at(second)).0).plus(other.spend(&mut bank, credits(2), at(second)).0);
    }
    assert_eq!((used, bank.account.settled, bank.account.lots.total()), (credits(10), credits(10), Credits::ZERO));
    assert_eq!(one.spend(&mut bank, credits(1), at(30)).1, Verdict::Exhausted);
    assert_eq!(other.spend(&mut bank, credits(1), at(30)).1, Verdict::Exhausted);
}

#[test]
fn a3_a4_of_two_that_ask_at_once_for_five_of_nine_exactly_one_gets_it_and_none_gets_a_part() {
    for (balance, first, second) in [(9, 5, 0), (10, 5, 5), (4, 0, 0), (5, 5, 0)] {
        let mut bank = Bank::with(0, balance);
        let ask = |bank: &mut Bank, node: &str, epoch| {
            let entry = RequestEntry { at_least: credits(5), burn_per_s: Credits::ZERO, ..entry() };
            bank.ask(&request(node, epoch, 1, entry), NEVER, at(1)).granted
        };
        assert_eq!((ask(&mut bank, "a", 1), ask(&mut bank, "b", 2)), (credits(first), credits(second)), "balance {balance}");
        assert_eq!(ask(&mut bank, "a", 1), credits(first), "the same message once more is granted nothing more");
    }
}

#[test]
fn a1_credit_that_was_paid_never_expires_and_shows_as_a_hundredth_of_a_dollar() {
    let text = include_str!("../../../../packaging/policies/per-request.toml");
    let (_, terms) = crate::domain::request::parse_policy(text, "per-request.toml").unwrap();
    let unit = terms.unit.unwrap();
    let mut bank = Bank::with(0, 0);
    let amount = in_credits("5".parse().unwrap(), &"USD".parse().unwrap(), Some(&unit)).unwrap();
    bank.deposit(Bucket::Paid, amount, at(0));
    Spender::new(1).spend(&mut bank, credits(1), at(50 * 365 * 24 * 3_600));
    assert_eq!((bank.account.lots.total(), unit.show(bank.account.lots.total())), (credits(499), "4.99 USD".to_owned()));
}

#[test]
fn s10_alerts_at_70_40_and_10_percent_come_once_each_over_restarts_and_again_after_a_top_up() {
    let mut bank = Bank::with(0, 200);
    terms(&mut bank, Terms { alerts: Alerts { percents: vec![70, 40, 10], ..Alerts::default() }, ..Terms::default() }, at(0));
    let mut spender = Spender::new(1);
    let mut given = |bank: &mut Bank, spent: i128, second| {
        bank.notices.clear();
        spender.spend(bank, Credits::from_nano(spent), at(second));
        restart(bank);
        let percent = |notice: &AccountNotice| match notice {
            AccountNotice::Alert { threshold: Threshold::Percent(percent), .. } => Some(*percent),
            _ => None,
        };
        bank.notices.iter().filter_map(percent).collect::<Vec<_>>()
    };
    assert!(given(&mut bank, 60 * NANO - 1, 1).is_empty());
    assert_eq!(given(&mut bank, 1, 2), [70], "at 140 of 200");
    assert!(given(&mut bank, NANO, 3).is_empty(), "once");
    assert_eq!(given(&mut bank, 119 * NANO, 4), [40, 10], "both that lie between");
    assert_eq!(bank.account.view().alerted.len(), 3);
    bank.deposit(Bucket::Paid, credits(80), at(5)); // 100 of 100
    assert_eq!(bank.account.view().alerted, []);
    assert_eq!(given(&mut bank, 30 * NANO, 6), [70], "of the balance after the last top-up");
}

#[test]
fn s10_a_reference_of_its_own_stands_above_the_last_top_up() {
    let mut bank = Bank::with(0, 200);
    let alerts = Alerts { percents: vec![50], below: Vec::new(), reference: Some(credits(1_000)) };
    terms(&mut bank, Terms { alerts, ..Terms::default() }, at(0));
    assert_eq!(bank.account.view().alerted.len(), 1, "200 are a fifth of 1,000");
}

#[test]
fn a8_amber_comes_below_ten_and_not_at_ten() {
    let mut bank = Bank::with(0, 12);
    terms(&mut bank, Terms { alerts: Alerts { below: vec![credits(10)], ..Alerts::default() }, ..Terms::default() }, at(0));
    let mut spender = Spender::new(1);
    spender.spend(&mut bank, credits(2), at(1));
    assert_eq!(bank.account.view().alerted, []);
    spender.spend(&mut bank, Credits::from_nano(1), at(2));
    let alerts: Vec<Threshold> = bank.account.view().alerted.iter().map(|given| given.threshold).collect();
    assert_eq!(alerts, [Threshold::Below(credits(10))]);
    let mut fresh = Bank::with(0, 0);
    terms(&mut fresh, Terms { alerts: Alerts { below: vec![credits(10)], ..Alerts::default() }, ..Terms::default() }, at(0));
    assert_eq!(fresh.account.view().alerted, [], "an account that never held anything has not run short");
}

#[test]
fn a9_an_account_that_nobody_vouches_for_is_granted_nothing_and_is_not_exhausted() {
    let mut bank = Bank::with(0, 10);
    terms(&mut bank, Terms { verification: Verification::Required, ..Terms::default() }, at(0));
    let mut spender = Spender::new(1);
    assert_eq!(spender.spend(&mut bank, credits(1), at(1)), (Credits::ZERO, Verdict::NotVerified));
    let version = bank.account.version;
    verify(&mut bank.account, Some(at(2).wall));
    assert!(version < bank.account.version);
    assert_eq!(spender.spend(&mut bank, credits(1), at(3)), (credits(1), Verdict::Granted));
    restart(&mut bank);
    verify(&mut bank.account, None);
    assert_eq!(spender.spend(&mut bank, credits(1), at(4)), (Credits::ZERO, Verdict::NotVerified));
    let mut empty = Bank::with(0, 0);
    terms(&mut empty, Terms { verification: Verification::Required, ..Terms::default() }, at(0));
    verify(&mut empty.account, Some(at(0).wall));
    assert_eq!(Spender::new(1).spend(&mut empty, credits(1), at(1)).1, Verdict::Exhausted, "vouched for, and empty");
}

#[test]
fn r1_less_than_the_smallest_top_up_is_not_taken() {
    let mut bank = Bank::with(0, 0);
    terms(&mut bank, Terms { topup_min: credits(5), ..Terms::default() }, at(0));
    let less = Payment { amount: Credits::from_nano(5 * NANO - 1), ..paid("less", 5) };
    assert_eq!(pay(&mut bank, &less, PaymentState::Completed, None, at(1)), Err(PaymentRefusal::BelowMinimum(credits(5))));
    assert_eq!(pay(&mut bank, &less, PaymentState::Pending, None, at(1)), Err(PaymentRefusal::BelowMinimum(credits(5))));
    assert!(pay(&mut bank, &paid("enough", 5), PaymentState::Completed, None, at(1)).is_ok());
    let refund = Payment { purpose: Purpose::Refund, ..paid("back", 1) };
    assert!(pay(&mut bank, &refund, PaymentState::Completed, None, at(1)).is_ok(), "what is given back is no top-up");
    assert_eq!(bank.account.lots.total(), credits(6));
}

#[test]
fn r4_the_hour_that_runs_is_one_accumulating_line_that_is_replaced() {
    let mut bank = Bank::with(0, 100);
    let mut spender = Spender::new(1);
    let usage = |bank: &Bank| -> Vec<(EntryStatus, Credits)> {
        let lines = bank.ledger.values().filter(|line| matches!(line.kind, EntryKind::Usage { .. }));
        lines.map(|line| (line.status, line.amount)).collect()
    };
    for second in 1..=3 {
        spender.spend(&mut bank, credits(2), at(second));
    }
    assert_eq!(usage(&bank), [(EntryStatus::Accumulating, credits(6))]);
    spender.spend(&mut bank, credits(1), at(3_599));
    assert_eq!(usage(&bank), [(EntryStatus::Accumulating, credits(7))], "the last second of the hour");
    spender.spend(&mut bank, credits(4), at(3_600));
    assert_eq!(usage(&bank), [(EntryStatus::Completed, credits(7)), (EntryStatus::Accumulating, credits(4))]);
    assert_eq!(bank.account.lots.total(), credits(89));
}

#[test]
fn r5_what_is_accumulating_is_off_the_balance_before_its_hour_is_posted() {
    let mut bank = Bank::with(0, 10);
    let mut spender = Spender::new(1);
    assert_eq!(spender.spend(&mut bank, Credits::from_nano(10 * NANO - 1), at(1)).1, Verdict::Granted);
    assert_eq!(spender.spend(&mut bank, Credits::from_nano(1), at(2)).1, Verdict::Exhausted);
    let open: Credits = bank.ledger.values().filter(|line| line.status == EntryStatus::Accumulating).map(|line| line.amount).sum();
    assert_eq!(open, credits(10), "nothing of it is posted, and nothing of it can be spent again");
}

#[test]
fn r6_storage_is_detached_once_at_zero_and_attached_once_there_is_credit() {
    let mut bank = Bank::with(0, 10);
    terms(&mut bank, Terms { storage: StorageAtZero::Detach, detached_storage: DetachedStorage::Free, ..Terms::default() }, at(0));
    let mut spender = Spender::new(1);
    let told = |bank: &Bank| bank.notices.iter().filter(|notice| matches!(notice, AccountNotice::Storage(..))).cloned().collect::<Vec<_>>();
    spender.spend(&mut bank, Credits::from_nano(10 * NANO - 1), at(1));
    assert_eq!((told(&bank), bank.account.view().storage), (vec![], Storage::Attached));
    for second in 2..5 {
        spender.spend(&mut bank, Credits::from_nano(1), at(second));
        restart(&mut bank);
    }
    assert_eq!(told(&bank), [AccountNotice::Storage(Storage::Detached, DetachedStorage::Free)]);
    bank.deposit(Bucket::Paid, credits(1), at(6));
    assert_eq!(told(&bank).last(), Some(&AccountNotice::Storage(Storage::Attached, DetachedStorage::Free)));
    assert_eq!((told(&bank).len(), bank.account.view().storage), (2, Storage::Attached));
}

#[test]
fn r6_storage_stays_while_a_refill_is_waited_for() {
    let mut bank = Bank::with(0, 10);
    terms(&mut bank, Terms { storage: StorageAtZero::Detach, ..refilled(5, 20, 600) }, at(0));
    let mut spender = Spender::new(1);
    spender.spend(&mut bank, credits(10), at(1));
    spender.spend(&mut bank, credits(1), at(600));
    assert_eq!(bank.account.view().storage, Storage::Attached);
    spender.spend(&mut bank, credits(1), at(601));
    assert_eq!(bank.account.view().storage, Storage::Detached);
}

#[test]
fn r8_each_line_says_what_it_is_and_none_of_usage_looks_like_a_refund() {
    let mut bank = Bank::with(0, 10);
    terms(&mut bank, refilled(9, 20, 0), at(0));
    Spender::new(1).spend(&mut bank, credits(2), at(1));
    confirm_refill(&mut bank, PaymentState::Completed, at(2));
    let other = |purpose, name: &str| Payment { purpose, ..paid(name, 1) };
    for payment in [
        other(Purpose::Refund, "back"),
        other(Purpose::Correction(Direction::Adds), "up"),
        other(Purpose::Correction(Direction::Takes), "down"),
    ] {
        pay(&mut bank, &payment, PaymentState::Completed, None, at(3)).unwrap();
    }
    let mut told: Vec<(String, Effect)> = Vec::new();
    for line in bank.ledger.values() {
        let text = serde_json::to_value(line).unwrap();
        assert!(!text["amount"].as_str().unwrap().starts_with('-'), "{text}");
        told.push((text["kind"].as_str().unwrap().to_owned(), line.effect()));
    }
    told.sort_by(|one, other| one.0.cmp(&other.0));
    let told: Vec<(&str, Effect)> = told.iter().map(|(kind, effect)| (kind.as_str(), *effect)).collect();
    assert_eq!(
        told,
        [
            ("correction", Effect::Takes),
            ("correction", Effect::Adds),
            ("deposit", Effect::Adds),
            ("refill", Effect::Adds),
            ("refund", Effect::Adds),
            ("usage", Effect::Takes),
        ]
    );
    assert_eq!(bank.account.lots.total(), credits(10 - 2 + 20 + 1 + 1 - 1));
}

#[test]
fn what_is_taken_out_is_what_no_node_holds_and_cannot_be_pending() {
    let mut bank = Bank::with(3, 10);
    Spender::new(1).ask(&mut bank, credits(9), at(1));
    let take = |amount| Payment { purpose: Purpose::Correction(Direction::Takes), ..paid("t", amount) };
    assert_eq!(pay(&mut bank, &take(5), PaymentState::Completed, None, at(2)), Err(PaymentRefusal::NotEnough(credits(4))));
    assert_eq!(pay(&mut bank, &take(1), PaymentState::Pending, None, at(2)), Err(PaymentRefusal::NotPending));
    assert!(pay(&mut bank, &take(4), PaymentState::Completed, None, at(2)).is_ok());
    assert_eq!((bank.account.available(), bank.account.withdrawn), (Credits::ZERO, credits(4)));
}

#[test]
fn f22_debt_is_not_erased_by_what_comes_after_it() {
    let mut bank = Bank::with(0, 10);
    let mut spender = Spender::new(1);
    spender.spend(&mut bank, credits(10), at(1));
    spender.totals.unfunded = credits(2);
    spender.ask(&mut bank, Credits::ZERO, at(2));
    assert_eq!(bank.account.written_off, credits(2));
    bank.deposit(Bucket::Paid, credits(50), at(3));
    terms(&mut bank, refilled(5, 20, 0), at(4));
    set_policy(&mut bank.account, AccountPolicy { grace: Nanos(1), ..AccountPolicy::default() });
    spender.spend(&mut bank, credits(50), at(5));
    restart(&mut bank);
    assert_eq!((bank.account.written_off, bank.account.view().written_off), (credits(2), credits(2)));
    let lines: Vec<Credits> =
        bank.ledger.values().filter(|line| matches!(line.kind, EntryKind::WriteOff { .. })).map(|line| line.amount).collect();
    assert_eq!(lines, [credits(2)], "its line stands, whatever is paid in or set later");
}

/// What may happen to an account, in any order.
#[derive(Clone, Debug)]
enum Act {
    Spend { node: usize, nano: i128 },
    Hold { node: usize, nano: i128 },
    Deposit { free: bool, nano: i128, days: Option<u64>, priority: u8, pending: bool },
    Confirm { which: usize, came: bool },
    Refill { came: bool },
    Take { nano: i128 },
    Refund { nano: i128 },
    Wait { secs: u64 },
    Restart,
    Terms { below: i128, amount: i128, allowance: i128, committed: i128 },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let nano = || 1..20 * NANO;
    let act = prop_oneof![
        8 => (0..2_usize, nano()).prop_map(|(node, nano)| Act::Spend { node, nano }),
        2 => (0..2_usize, nano()).prop_map(|(node, nano)| Act::Hold { node, nano }),
        3 => (any::<bool>(), nano(), prop::option::of(0..40_u64), 0..3_u8, any::<bool>())
            .prop_map(|(free, nano, days, priority, pending)| Act::Deposit { free, nano, days, priority, pending }),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(which, came)| Act::Confirm { which, came }),
        3 => any::<bool>().prop_map(|came| Act::Refill { came }),
        1 => nano().prop_map(|nano| Act::Take { nano }),
        1 => nano().prop_map(|nano| Act::Refund { nano }),
        3 => (0..20 * 86_400_u64).prop_map(|secs| Act::Wait { secs }),
        2 => Just(Act::Restart),
        1 => (1..30 * NANO, 1..30 * NANO, -3 * NANO..5 * NANO, -9 * NANO..9 * NANO)
            .prop_map(|(below, amount, allowance, committed)| Act::Terms { below, amount, allowance, committed }),
    ];
    prop::collection::vec(act, 1..80)
}

struct Life {
    bank: Bank,
    nodes: [Spender; 2],
    second: u64,
    pending: Vec<(Payment, PaymentState)>,
    used: Credits,
    /// By the test's own count: falls below the threshold after the balance had reached it.
    crossings: usize,
    up: bool,
}

impl Life {
    fn happen(&mut self, number: usize, act: &Act) {
        let now = at(self.second);
        let bank = &mut self.bank;
        let name = |kind: &str| format!("{kind}{number}").parse().unwrap();
        match *act {
            Act::Spend { node, nano } => self.used = self.used.plus(self.nodes[node].spend(bank, Credits::from_nano(nano), now).0),
            Act::Hold { node, nano } => drop(self.nodes[node].ask(bank, Credits::from_nano(nano), now)),
            Act::Deposit { free, nano, days, priority, pending } => {
                let bucket = if free { Bucket::Free } else { Bucket::Paid };
                let expires = days.map(|days| Wall(now.wall.0 + days * 24 * HOUR_MS)).into();
                let payment =
                    Payment { expires, priority: Priority(priority), ..Payment::deposit(name("d"), bucket, Credits::from_nano(nano)) };
                let state = if pending { PaymentState::Pending } else { PaymentState::Completed };
                if pay(bank, &payment, state, None, now).is_ok() {
                    self.pending.push((payment, state));
                }
            }
            Act::Confirm { which, came } if !self.pending.is_empty() => {
                let which = which % self.pending.len();
                let (payment, state) = self.pending[which].clone();
                let came = if came { PaymentState::Completed } else { PaymentState::Failed };
                if pay(bank, &payment, came, Some(state), now).is_ok() {
                    self.pending[which].1 = came;
                }
            }
            Act::Confirm { .. } => {}
            Act::Refill { came } => {
                if bank.account.keeping.refill.pending.is_some() {
                    confirm_refill(bank, if came { PaymentState::Completed } else { PaymentState::Failed }, now);
                }
            }
            Act::Take { nano } => {
                let payment = Payment { purpose: Purpose::Correction(Direction::Takes), ..paid(&format!("t{number}"), 1) };
                let _ = pay(bank, &Payment { amount: Credits::from_nano(nano), ..payment }, PaymentState::Completed, None, now);
            }
            Act::Refund { nano } => {
                let payment = Payment { purpose: Purpose::Refund, ..paid(&format!("r{number}"), 1) };
                pay(bank, &Payment { amount: Credits::from_nano(nano), ..payment }, PaymentState::Completed, None, now).unwrap();
            }
            Act::Wait { secs } => self.second += secs,
            Act::Restart => restart(bank),
            Act::Terms { below, amount, allowance, committed } => {
                let refill = RefillTerms { below: Credits::from_nano(below), amount: Credits::from_nano(amount), wait: Nanos(0) };
                let allowance = (0 < allowance).then(|| Allowance { amount: Credits::from_nano(allowance), day: 1 });
                let committed = (0 < committed).then(|| monthly(Credits::from_nano(committed)));
                terms(bank, Terms { refill: Some(refill), allowance, commitment: committed, ..Terms::default() }, now);
            }
        }
    }

    /// Looks at the balance as it stands after the act, and counts what the ledger must have asked for.
    fn count_crossing(&mut self, was_pending: bool) {
        let Some(refill) = self.bank.account.terms.refill else { return };
        let balance = self.bank.account.lots.total();
        if refill.below <= balance {
            self.up = true;
        } else if self.up && !was_pending && self.bank.account.deposited.is_positive() {
            self.crossings += 1;
            self.up = false;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// The rules and the sums of the lines are checked after each act, in `Bank::book` and `Bank::ask`.
    #[test]
    fn whatever_comes_goes_lapses_and_is_spent_the_balance_is_the_sum_of_its_lines_and_never_overdrawn(acts in acts()) {
        let nodes = [Spender::new(1), Spender::new(2)];
        let mut life = Life { bank: Bank::with(2, 20), nodes, second: 1, pending: Vec::new(), used: Credits::ZERO, crossings: 0, up: false };
        for (number, act) in acts.iter().enumerate() {
            life.happen(number, act);
            life.bank.check().map_err(TestCaseError::fail)?;
            prop_assert!(Credits::ZERO <= life.bank.account.available());
        }
        prop_assert_eq!(life.bank.account.settled, life.used, "what was used is charged once");
        prop_assert!(life.used <= life.bank.account.deposited);
    }

    /// Each act is a step of its own here, so that the balance between two acts is what the ledger saw.
    #[test]
    fn a_refill_is_asked_for_once_a_crossing_under_any_order_of_events_and_restarts(
        steps in prop::collection::vec((0..4_u8, 1..8_i128), 1..120), below in 1..12_i128, amount in 1..12_i128,
    ) {
        let mut bank = Bank::with(0, 0);
        terms(&mut bank, refilled(below, amount, 0), at(0));
        let nodes = [Spender::new(1), Spender::new(2)];
        let mut life = Life { bank, nodes, second: 1, pending: Vec::new(), used: Credits::ZERO, crossings: 0, up: false };
        for (number, (kind, size)) in steps.into_iter().enumerate() {
            let was_pending = life.bank.account.keeping.refill.pending.is_some();
            match kind {
                0 => life.happen(number, &Act::Spend { node: 0, nano: size * NANO }),
                1 => life.happen(number, &Act::Deposit { free: false, nano: size * NANO, days: None, priority: 10, pending: false }),
                2 => life.happen(number, &Act::Refill { came: size % 2 == 0 }),
                _ => life.happen(number, &Act::Restart),
            }
            let settled = kind == 2 && was_pending;
            life.count_crossing(was_pending && !settled);
            prop_assert_eq!(refills(&life.bank), life.crossings, "step {}", number);
        }
    }
}
