//! An account whose balance is kept by a billing engine. What it holds here follows what the engine says: more is booked like a deposit, less like a
//! revocation, so that what is free goes at once and nodes are told to give back the rest.

use super::account::{AMOUNT_MAX, Account, EntryKind, EntryStatus, LedgerEntry};
use super::keeping::Lines;
use super::lot::LotKey;
use super::payment::Direction;
use super::revoke::{Revocation, feed};
use crate::domain::bucket::Bucket;
use crate::domain::id::PaymentId;
use crate::domain::money::Credits;
use crate::domain::time::Now;

/// Names of what follows an engine begin so; no payment's and no other revocation's does.
pub const MIRROR_PREFIX: &str = "engine/";

impl Account {
    /// Charged, less what came back by outcome, in total.
    #[must_use]
    pub fn used(&self) -> Credits {
        self.settled.minus(self.keeping.outcome_refunds)
    }

    /// What it is to hold, granted or not, when all that is to be taken back has come.
    #[must_use]
    pub fn holds(&self) -> Credits {
        self.lots.total().minus(self.revoke_pending())
    }
}

/// Is this a revocation that follows an engine?
pub(super) fn is_mirrored(revocation: &Revocation) -> bool {
    revocation.id.as_str().starts_with(MIRROR_PREFIX)
}

/// Makes the account hold this much, by a movement of this name. `None` where it does already. Raises the version otherwise: push after the commit.
pub fn follow(account: &mut Account, target: Credits, name: &PaymentId, now: Now) -> Option<Lines> {
    let room = AMOUNT_MAX.minus(account.deposited).or_zero();
    let difference = target.minus(account.holds());
    let mut lines = Lines::default();
    if difference.is_positive() {
        let left = less_revoked(account, difference).min(room);
        if left.is_positive() {
            account.arrive(LotKey::plain(Bucket::Paid), left);
            let kind = EntryKind::Mirrored { movement: name.clone(), direction: Direction::Adds, part: left };
            lines.ledger.push(LedgerEntry::of(kind, now.wall, Bucket::Paid, left, EntryStatus::Completed));
        }
    } else if difference.is_zero() {
        return None;
    } else {
        let asked = Credits::ZERO.minus(difference);
        account.revocations.push(Revocation { id: name.clone(), asked, taken: Credits::ZERO });
        account.version = account.version.saturating_add(1);
        lines.ledger.extend(feed(account, now));
    }
    let Lines { ledger, notices } = account.review(now);
    lines.ledger.extend(ledger);
    lines.notices.extend(notices);
    Some(lines)
}

/// What was to be taken back for the engine's sake, and has not come yet, need not any more; the latest first. Gives what is still to be added.
fn less_revoked(account: &mut Account, amount: Credits) -> Credits {
    let mut left = amount;
    for revocation in account.revocations.iter_mut().rev().filter(|revocation| is_mirrored(revocation)) {
        let part = revocation.left().min(left);
        revocation.asked = revocation.asked.minus(part);
        left = left.minus(part);
    }
    if left != amount {
        account.version = account.version.saturating_add(1);
    }
    left
}

#[cfg(test)]
mod tests {
    use super::super::{ClosePolicy, Rules, answer, check};
    use super::*;
    use crate::domain::id::{BootId, Epoch};
    use crate::domain::time::Nanos;
    use crate::domain::wire::{AccountPolicy, PROTOCOL, Request, RequestEntry, UNIT, Verdict};
    use proptest::prelude::*;

    fn nano(nano: i128) -> Credits {
        Credits::from_nano(nano)
    }

    fn account() -> Account {
        Account::new("lab".parse().unwrap(), AccountPolicy::default())
    }

    fn follow_to(account: &mut Account, target: i128, number: u32) -> Vec<(Direction, i128)> {
        let name = format!("{MIRROR_PREFIX}{number}").parse().unwrap();
        let lines = follow(account, nano(target), &name, Now::default()).unwrap_or_default();
        check(account).unwrap();
        let moved = |line: &LedgerEntry| match &line.kind {
            EntryKind::Mirrored { direction, .. } => Some((*direction, line.amount.nano())),
            _ => None,
        };
        lines.ledger.iter().filter_map(moved).collect()
    }

    /// The node has spent and returned this much in all, and owes some more.
    fn ask(account: &mut Account, number: u64, spent: i128, returned: i128, owed: i128) -> Verdict {
        let entry = RequestEntry {
            account: account.id.clone(),
            unit: UNIT.to_owned(),
            granted_seen: Credits::ZERO,
            returned: nano(returned),
            spent: nano(spent),
            unfunded: Credits::ZERO,
            owed: nano(owed),
            burn_per_s: Credits::ZERO,
            at_least: nano(1),
            validity: None,
            proof: None,
        };
        let request = Request {
            protocol: PROTOCOL,
            node: "n".parse().unwrap(),
            epoch: Epoch([1; 16]),
            boot: BootId([1; 16]),
            request: number,
            previous: Vec::new(),
            refunds: Vec::new(),
            entries: vec![entry.clone()],
            generation_seen: 0,
            history: None,
            gangs: Vec::new(),
        };
        let close = ClosePolicy::AfterSilence(Nanos::from_secs(667));
        let answered = answer(account, &request, &entry, &Rules::of(close), Now::default());
        check(account).unwrap();
        answered.entry.verdict
    }

    #[test]
    fn more_at_the_engine_is_more_here_and_the_same_once_more_is_nothing() {
        let mut lab = account();
        assert_eq!(follow_to(&mut lab, 100, 1), [(Direction::Adds, 100)]);
        let version = lab.version;
        assert_eq!(follow_to(&mut lab, 100, 2), []);
        assert_eq!((lab.version, lab.available()), (version, nano(100)));
        assert_eq!(follow_to(&mut lab, 130, 3), [(Direction::Adds, 30)]);
        assert_eq!((lab.version, lab.deposited), (version + 1, nano(130)));
    }

    #[test]
    fn less_at_the_engine_goes_at_once_as_far_as_it_is_free_and_the_rest_is_recalled() {
        let mut lab = account();
        follow_to(&mut lab, 100, 1);
        ask(&mut lab, 1, 0, 0, 60);
        assert_eq!(follow_to(&mut lab, 10, 2), [(Direction::Takes, 40)]);
        assert_eq!((lab.available(), lab.revoke_pending(), lab.holds()), (nano(0), nano(50), nano(10)));
        assert_eq!(lab.revoked, Credits::ZERO, "its owner took nothing");
        assert_eq!(ask(&mut lab, 2, 5, 0, 60), Verdict::Recall);
        assert_eq!(follow_to(&mut lab, 5, 3), [], "five are used, and the engine shows that: nothing has changed");
        ask(&mut lab, 3, 5, 50, 0);
        assert_eq!((lab.revoke_pending(), lab.holds(), lab.withdrawn), (nano(0), nano(5), nano(90)));
    }

    #[test]
    fn what_comes_back_at_the_engine_ends_a_recall_before_anything_is_added() {
        let mut lab = account();
        follow_to(&mut lab, 100, 1);
        ask(&mut lab, 1, 0, 0, 60);
        follow_to(&mut lab, 10, 2);
        let version = lab.version;
        assert_eq!(follow_to(&mut lab, 40, 3), []);
        assert_eq!((lab.revoke_pending(), lab.holds(), lab.version), (nano(20), nano(40), version + 1));
        assert_eq!(follow_to(&mut lab, 70, 4), [(Direction::Adds, 10)]);
        assert_eq!((lab.revoke_pending(), lab.holds()), (nano(0), nano(70)));
        assert_eq!(ask(&mut lab, 2, 0, 0, 60), Verdict::Granted, "nothing is recalled any more");
    }

    proptest! {
        #[test]
        fn whatever_the_engine_says_the_account_holds_it_as_soon_as_nodes_let_go(
            steps in prop::collection::vec((0..200_i128, 0..30_i128), 1..15),
        ) {
            let mut lab = account();
            let mut spent = 0;
            for ((target, more), number) in steps.into_iter().zip(1..) {
                follow_to(&mut lab, target, number);
                prop_assert_eq!(lab.holds(), nano(target));
                ask(&mut lab, u64::from(number), spent, 0, 40);
                let held = lab.epochs[&Epoch([1; 16])].escrow().nano();
                spent += more.min(held);
                ask(&mut lab, u64::from(number) * 100, spent, 0, 0);
            }
            prop_assert_eq!(lab.used(), nano(spent));
        }
    }
}
