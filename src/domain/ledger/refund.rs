//! What the outcomes of jobs give back of what an epoch was charged: booked once, by the maximum, and never more than was charged to it.
//!
//! It goes where it came from, and what was drawn last comes back first: paid credit as far as the epoch was charged any, then free credit, which
//! lapses with the month's allowance where there is one, then committed credit, which lapses with the period of the commitment that runs. Where none
//! runs any more it was paid for all the same, and comes back as paid credit.

use serde::{Deserialize, Serialize};

use super::account::{AMOUNT_MAX, Account, HourTotals};
use super::lot::{Expiry, LotKey};
use crate::domain::bucket::{Bucket, Parts};
use crate::domain::id::{Epoch, NodeId};
use crate::domain::money::Credits;
use crate::domain::time::Wall;
use crate::domain::wire::{RefundTotal, Request};

/// What one epoch was charged by bucket as far as refunds need it, and what of it came back. Stored with the hour's totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EpochRefunds {
    /// Charged to the paid bucket, in total.
    pub charged_paid: Credits,
    /// Given back, in total.
    pub refunded: Credits,
    /// To the paid bucket, in total.
    #[serde(rename = "refunded_to_paid")]
    pub refunded_paid: Credits,
    /// Charged to the committed bucket, in total.
    pub charged_committed: Credits,
    /// What of that was given back, in total.
    #[serde(rename = "refunded_of_committed")]
    pub refunded_committed: Credits,
}

impl EpochRefunds {
    /// So much is given back: which parts of it come back of what was charged to each bucket. `settled`: charged in total.
    fn parts(&self, amount: Credits, settled: Credits) -> Parts {
        let paid = amount.min(self.charged_paid.minus(self.refunded_paid).or_zero());
        let charged_free = settled.minus(self.charged_paid).minus(self.charged_committed);
        let refunded_free = self.refunded.minus(self.refunded_paid).minus(self.refunded_committed);
        let rest = amount.minus(paid);
        let committed = rest.minus(charged_free.minus(refunded_free).or_zero()).or_zero();
        Parts { paid, committed, free: rest.minus(committed) }
    }
}

/// What the request says was given back of an epoch on an account.
fn said(request: &Request, account: &Account, epoch: Epoch) -> Option<Credits> {
    let mine = request.refunds.iter().filter(|total| total.epoch == epoch && total.account == account.id);
    mine.map(|RefundTotal { refunded, .. }| *refunded).filter(|refunded| (Credits::ZERO..=AMOUNT_MAX).contains(refunded)).max()
}

/// The epochs of the account of which the request says that something was given back.
pub(super) fn epochs_named(request: &Request, account: &Account) -> Vec<Epoch> {
    let mut epochs: Vec<Epoch> = request.refunds.iter().filter(|total| total.account == account.id).map(|total| total.epoch).collect();
    epochs.dedup();
    epochs
}

/// Books what is news of it. `false` if there is none, or it is another node's epoch.
pub(super) fn refund(account: &mut Account, request: &Request, id: Epoch, node: &NodeId) -> bool {
    let Some(said) = said(request, account, id) else { return false };
    let (reset, until) = (account.keeping.reset, account.keeping.committed);
    let Some(mut epoch) = account.epochs.get_mut(&id).filter(|epoch| epoch.node == *node) else { return false };
    let amount = said.min(epoch.settled).minus(epoch.refunds.refunded);
    if !amount.is_positive() {
        return false;
    }
    let Parts { free, paid, committed } = epoch.refunds.parts(amount, epoch.settled);
    epoch.refunds.refunded = epoch.refunds.refunded.plus(amount);
    epoch.refunds.refunded_paid = epoch.refunds.refunded_paid.plus(paid);
    epoch.refunds.refunded_committed = epoch.refunds.refunded_committed.plus(committed);
    let (paid, committed) = if until.is_some() { (paid, committed) } else { (paid.plus(committed), Credits::ZERO) };
    let HourTotals { refunded_free, refunded_paid, refunded_committed, .. } = &mut epoch.hour;
    (*refunded_free, *refunded_paid) = (refunded_free.plus(free), refunded_paid.plus(paid));
    *refunded_committed = refunded_committed.plus(committed);
    let expires = |at: Option<Wall>| at.map_or(Expiry::Never, Expiry::At);
    account.lots.add(LotKey::plain(Bucket::Paid), paid);
    account.lots.add(LotKey { expires: expires(reset), ..LotKey::plain(Bucket::Free) }, free);
    account.lots.add(LotKey { expires: expires(until), ..LotKey::plain(Bucket::Committed) }, committed);
    account.deposited = account.deposited.plus(amount);
    account.keeping.outcome_refunds = account.keeping.outcome_refunds.plus(amount);
    account.version = account.version.saturating_add(1);
    true
}

#[cfg(test)]
mod tests {
    use super::super::Rules;
    use super::super::{
        Allowance, ClosePolicy, EntryKind, LedgerEntry, Payment, PaymentState, answer, book, book_previous, check, check_step,
    };
    use super::*;
    use crate::domain::id::BootId;
    use crate::domain::time::{Nanos, Now};
    use crate::domain::wire::{AccountPolicy, PROTOCOL, PreviousEpoch, RequestEntry, UNIT, Verdict};
    use proptest::prelude::*;

    const CLOSE: ClosePolicy = ClosePolicy::AfterSilence(Nanos::from_secs(667));

    fn nano(nano: i128) -> Credits {
        Credits::from_nano(nano)
    }

    fn account(free: i128, paid: i128) -> Account {
        let mut account = Account::new("lab".parse().unwrap(), AccountPolicy::default());
        for (bucket, amount) in [(Bucket::Free, free), (Bucket::Paid, paid)] {
            if amount != 0 {
                let payment = Payment::deposit(format!("{bucket}").parse().unwrap(), bucket, nano(amount));
                book(&mut account, &payment, PaymentState::Completed, None, Now::default()).unwrap();
            }
        }
        account
    }

    fn request(node: &str, epoch: u8, number: u64, spent: i128, refunds: &[(u8, i128)]) -> Request {
        let entry = RequestEntry {
            account: "lab".parse().unwrap(),
            unit: UNIT.to_owned(),
            granted_seen: Credits::ZERO,
            returned: Credits::ZERO,
            spent: nano(spent),
            unfunded: Credits::ZERO,
            owed: nano(1_000),
            burn_per_s: Credits::ZERO,
            at_least: nano(1),
            validity: None,
            proof: None,
        };
        let total = |(epoch, refunded): &(u8, i128)| RefundTotal {
            epoch: Epoch([*epoch; 16]),
            account: "lab".parse().unwrap(),
            refunded: nano(*refunded),
        };
        Request {
            protocol: PROTOCOL,
            node: node.parse().unwrap(),
            epoch: Epoch([epoch; 16]),
            boot: BootId([1; 16]),
            request: number,
            previous: Vec::new(),
            entries: vec![entry],
            generation_seen: 0,
            history: None,
            gangs: Vec::new(),
            refunds: refunds.iter().map(total).collect(),
        }
    }

    fn ask(account: &mut Account, request: &Request) -> (Verdict, Vec<LedgerEntry>) {
        let before = account.clone();
        let answered = answer(account, request, &request.entries[0], &Rules::of(CLOSE), Now::default());
        check(account).unwrap();
        check_step(&before, account).unwrap();
        (answered.entry.verdict, answered.ledger)
    }

    fn refunds(lines: &[LedgerEntry]) -> Vec<(i128, i128, i128)> {
        let is = |line: &&LedgerEntry| matches!(line.kind, EntryKind::OutcomeRefund { .. });
        lines.iter().filter(is).map(|line| (line.amount.nano(), line.free.nano(), line.paid.nano())).collect()
    }

    #[test]
    fn v8_a_refund_is_booked_once_however_often_it_is_told_as_a_line_of_its_own() {
        let mut lab = account(0, 100);
        ask(&mut lab, &request("n", 1, 1, 0, &[]));
        let (_, lines) = ask(&mut lab, &request("n", 1, 2, 60, &[(1, 25)]));
        assert_eq!((refunds(&lines), lab.lots.of(Bucket::Paid)), (vec![(25, 0, 25)], nano(65)));
        for (number, told) in [(2, 25), (3, 20), (4, 25)] {
            let (_, lines) = ask(&mut lab, &request("n", 1, number, 60, &[(1, told)]));
            assert_eq!((refunds(&lines), lab.lots.of(Bucket::Paid)), (vec![], nano(65)), "told once more");
        }
        let (_, lines) = ask(&mut lab, &request("n", 1, 5, 60, &[(1, 26)]));
        assert_eq!(refunds(&lines), [(26, 0, 26)], "the hour's line grows");
        assert_eq!((lab.settled, lab.deposited), (nano(60), nano(126)), "what was charged stays charged");
    }

    #[test]
    fn v8_no_more_is_given_back_than_was_charged_and_the_rest_once_it_is() {
        let mut lab = account(0, 100);
        ask(&mut lab, &request("n", 1, 1, 0, &[]));
        let (_, lines) = ask(&mut lab, &request("n", 1, 2, 10, &[(1, 25)]));
        assert_eq!(refunds(&lines), [(10, 0, 10)], "a lie is bounded by what the epoch paid");
        let (_, lines) = ask(&mut lab, &request("n", 1, 3, 40, &[(1, 25)]));
        assert_eq!((refunds(&lines), lab.lots.total()), (vec![(25, 0, 25)], nano(85)));
        let (_, lines) = ask(&mut lab, &request("n", 1, 4, 40, &[(1, -1)]));
        assert_eq!(refunds(&lines), [], "no amount that a node can mean");
    }

    #[test]
    fn v8_another_node_gives_nothing_back_of_this_one_s_epoch() {
        let mut lab = account(0, 100);
        ask(&mut lab, &request("n", 1, 1, 0, &[]));
        ask(&mut lab, &request("n", 1, 2, 60, &[]));
        let (_, lines) = ask(&mut lab, &request("liar", 2, 1, 0, &[(1, 60), (2, 60), (3, 60)]));
        assert_eq!((refunds(&lines), lab.lots.total()), (vec![], nano(40)));
    }

    #[test]
    fn v9_what_was_drawn_last_comes_back_first_and_free_credit_lapses_as_the_month_s_does() {
        let mut lab = account(30, 100);
        ask(&mut lab, &request("n", 1, 1, 0, &[]));
        ask(&mut lab, &request("n", 1, 2, 70, &[]));
        assert_eq!((lab.lots.of(Bucket::Free), lab.lots.of(Bucket::Paid)), (nano(0), nano(60)));
        lab.terms.allowance = Some(Allowance { amount: nano(30), day: 1 });
        lab.keeping.reset = Some(Wall(5_000));
        let (_, lines) = ask(&mut lab, &request("n", 1, 3, 70, &[(1, 50)]));
        assert_eq!(refunds(&lines), [(50, 10, 40)]);
        let free: Vec<_> = lab.lots.iter().filter(|lot| lot.key.bucket == Bucket::Free).collect();
        assert_eq!((free.len(), free[0].left, free[0].key.expires), (1, nano(10), Expiry::At(Wall(5_000))));
    }

    #[test]
    fn v8_what_a_job_of_an_earlier_epoch_gives_back_is_booked_to_that_one() {
        let mut lab = account(0, 100);
        ask(&mut lab, &request("n", 1, 1, 0, &[]));
        ask(&mut lab, &request("n", 1, 2, 60, &[]));
        let mut successor = request("n", 2, 1, 0, &[(1, 61)]);
        let entries = request("n", 1, 3, 60, &[]).entries;
        successor.previous = vec![PreviousEpoch { epoch: Epoch([1; 16]), entries }];
        let (_, lines) = ask(&mut lab, &successor);
        assert_eq!(refunds(&lines), [(60, 0, 60)], "node_rebooted = 0: all of it, and not more");
        let mut again = request("n", 2, 2, 0, &[(1, 61)]);
        again.entries.clear();
        let lines = book_previous(&mut lab, &again, &Rules::of(CLOSE), Now::default()).ledger;
        assert_eq!((refunds(&lines), lab.lots.total()), (vec![], nano(100)));
    }

    #[test]
    fn v8_an_exhausted_account_goes_on_with_what_comes_back() {
        let mut lab = account(0, 50);
        ask(&mut lab, &request("n", 1, 1, 0, &[]));
        let (verdict, _) = ask(&mut lab, &request("n", 1, 2, 50, &[]));
        assert_eq!(verdict, Verdict::Exhausted);
        let (verdict, _) = ask(&mut lab, &request("n", 1, 3, 50, &[(1, 20)]));
        assert_eq!((verdict, lab.held()), (Verdict::Final, nano(20)), "granted in the same answer");
    }

    proptest! {
        #[test]
        fn whatever_comes_late_twice_or_never_the_account_is_charged_net_of_the_greatest_refund(
            steps in prop::collection::vec((0..80_i128, 0..80_i128), 1..20), free in 0..60_i128, paid in 1..60_i128,
        ) {
            let mut lab = account(free, paid);
            ask(&mut lab, &request("n", 1, 1, 0, &[]));
            let granted = lab.epochs[&Epoch([1; 16])].granted.nano();
            for ((spent, back), number) in steps.iter().zip(2..) {
                ask(&mut lab, &request("n", 1, number, (*spent).min(granted), &[(1, *back)]));
            }
            let spent = steps.iter().map(|(spent, _)| (*spent).min(granted)).max().unwrap();
            let back = steps.iter().map(|(_, back)| *back).max().unwrap();
            // Told once more when all is charged, as a node does until an answer comes.
            ask(&mut lab, &request("n", 1, 99, spent, &[(1, back)]));
            prop_assert_eq!(lab.lots.total().nano(), free + paid - lab.settled.nano() + back.min(lab.settled.nano()));
            prop_assert!(lab.lots.of(Bucket::Paid) <= nano(paid), "no free credit becomes paid");
        }
    }
}
