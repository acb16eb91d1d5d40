//! Credit that its owner takes back. What is free goes at once. What nodes hold is theirs until they give it back: they are told to, and what
//! comes serves the revocation before any grant. What was spent meanwhile stays spent, and the revocation ends with less.

use super::account::{Account, EntryKind, EntryStatus, LedgerEntry};
use super::mirror::is_mirrored;
use super::payment::Direction;
use crate::domain::bucket::Parts;
use crate::domain::id::PaymentId;
use crate::domain::money::Credits;
use crate::domain::time::Now;

/// One revocation that is not over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// Its name: of one name there is one.
    pub id: PaymentId,
    /// How much is to go.
    pub asked: Credits,
    /// How much has gone.
    pub taken: Credits,
}

impl Revocation {
    /// Still to go.
    #[must_use]
    pub fn left(&self) -> Credits {
        self.asked.minus(self.taken)
    }
}

/// Why nothing is revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevokeRefusal {
    /// Zero or below.
    #[error("an amount above zero is needed")]
    NotPositive,
    /// More than is free and held, less what is being revoked already.
    #[error("there is less than that")]
    NotEnough,
    /// A revocation of this name was made, of another amount or account.
    #[error("a revocation of this name was made, of another amount or account")]
    Differs,
}

/// Takes this much back, as fast as it comes. Raises the version: push after the commit.
///
/// # Errors
/// The account is unchanged.
pub fn revoke(account: &mut Account, id: PaymentId, amount: Credits, now: Now) -> Result<Vec<LedgerEntry>, RevokeRefusal> {
    if !amount.is_positive() {
        return Err(RevokeRefusal::NotPositive);
    }
    if revocable(account) < amount {
        return Err(RevokeRefusal::NotEnough);
    }
    account.revocations.push(Revocation { id, asked: amount, taken: Credits::ZERO });
    account.version = account.version.saturating_add(1);
    Ok(feed(account, now))
}

/// The most that can be revoked now.
#[must_use]
pub fn revocable(account: &Account) -> Credits {
    account.available().plus(account.held()).minus(account.revoke_pending()).or_zero()
}

/// What is free serves revocations, the oldest first. Where nothing is free and no node holds anything, they are over. Gives a line for each
/// that changed; those that are over stay in the account, with nothing left, until it is stored.
pub(super) fn feed(account: &mut Account, now: Now) -> Vec<LedgerEntry> {
    let mut lines = Vec::new();
    for at in 0..account.revocations.len() {
        let left = account.revocations[at].left();
        let amount = left.min(account.available().or_zero());
        if !amount.is_positive() {
            continue;
        }
        let Parts { free, paid, .. } = account.lots.draw(amount);
        account.withdrawn = account.withdrawn.plus(amount);
        let revocation = &mut account.revocations[at];
        revocation.taken = revocation.taken.plus(amount);
        let (name, part) = (revocation.id.clone(), revocation.taken);
        let kind = if is_mirrored(revocation) {
            EntryKind::Mirrored { movement: name, direction: Direction::Takes, part }
        } else {
            account.revoked = account.revoked.plus(amount);
            EntryKind::Revoked { revocation: name, asked: revocation.asked, part }
        };
        lines.push(LedgerEntry { at: now.wall, kind, amount, free, paid, status: EntryStatus::Completed });
    }
    if account.held().is_zero() && account.available().is_zero() {
        for revocation in &mut account.revocations {
            revocation.asked = revocation.taken;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::{ClosePolicy, Payment, PaymentState, Rules, answer, book, check};
    use super::*;
    use crate::domain::bucket::Bucket;
    use crate::domain::id::{BootId, Epoch};
    use crate::domain::time::Nanos;
    use crate::domain::wire::{AccountPolicy, PROTOCOL, Request, RequestEntry, UNIT, Verdict};

    const CLOSE: ClosePolicy = ClosePolicy::AfterSilence(Nanos::from_secs(667));

    fn credits(whole: i128) -> Credits {
        Credits::from_nano(whole * 1_000_000_000)
    }

    fn account(free: i128, paid: i128) -> Account {
        let mut account = Account::new("lab".parse().unwrap(), AccountPolicy::default());
        for (bucket, amount) in [(Bucket::Free, free), (Bucket::Paid, paid)] {
            if amount != 0 {
                let payment = Payment::deposit(format!("{bucket}").parse().unwrap(), bucket, credits(amount));
                book(&mut account, &payment, PaymentState::Completed, None, Now::default()).unwrap();
            }
        }
        account
    }

    /// The verdict, and what is granted, or in a recall may stay.
    fn ask(account: &mut Account, node: u8, number: u64, change: impl FnOnce(&mut RequestEntry)) -> (Verdict, Credits) {
        let mut entry = RequestEntry {
            account: account.id.clone(),
            unit: UNIT.to_owned(),
            granted_seen: Credits::ZERO,
            returned: Credits::ZERO,
            spent: Credits::ZERO,
            unfunded: Credits::ZERO,
            owed: Credits::ZERO,
            burn_per_s: Credits::ZERO,
            at_least: Credits::ZERO,
            validity: None,
            proof: None,
        };
        change(&mut entry);
        let request = Request {
            protocol: PROTOCOL,
            node: format!("n{node}").parse().unwrap(),
            epoch: Epoch([node; 16]),
            boot: BootId([node; 16]),
            request: number,
            previous: Vec::new(),
            refunds: Vec::new(),
            entries: vec![entry.clone()],
            generation_seen: 0,
            history: None,
            gangs: Vec::new(),
        };
        let answered = answer(account, &request, &entry, &Rules::of(CLOSE), Now::default());
        check(account).unwrap();
        if answered.entry.verdict == Verdict::Recall {
            return (Verdict::Recall, answered.entry.free);
        }
        (answered.entry.verdict, answered.entry.granted)
    }

    fn pay_back(id: &str, account: &mut Account, amount: i128) -> Result<Vec<LedgerEntry>, RevokeRefusal> {
        let done = revoke(account, id.parse().unwrap(), credits(amount), Now::default());
        check(account).unwrap();
        done
    }

    #[test]
    fn what_is_free_goes_at_once_free_before_paid() {
        let mut account = account(3, 10);
        let lines = pay_back("r", &mut account, 5).unwrap();
        assert_eq!((lines[0].free, lines[0].paid, lines.len()), (credits(3), credits(2), 1));
        assert_eq!((account.available(), account.revoked, account.revoke_pending()), (credits(8), credits(5), Credits::ZERO));
        assert_eq!(pay_back("s", &mut account, 9), Err(RevokeRefusal::NotEnough));
        assert_eq!(pay_back("s", &mut account, 0), Err(RevokeRefusal::NotPositive));
        assert_eq!(account.revoked, credits(5));
    }

    #[test]
    fn what_nodes_hold_is_recalled_and_serves_the_revocation_before_any_grant() {
        let mut account = account(0, 10);
        assert_eq!(ask(&mut account, 1, 1, |entry| entry.owed = credits(6)), (Verdict::Granted, credits(6)));
        let version = account.version;
        pay_back("r", &mut account, 9).unwrap();
        assert_eq!((account.available(), account.revoke_pending()), (Credits::ZERO, credits(5)));
        assert!(version < account.version, "nodes are told");
        assert_eq!(pay_back("s", &mut account, 2), Err(RevokeRefusal::NotEnough), "one is neither held for the first nor free");
        assert_eq!(
            ask(&mut account, 2, 1, |entry| entry.owed = credits(1)),
            (Verdict::Exhausted, Credits::ZERO),
            "nothing is free for others"
        );
        assert_eq!(ask(&mut account, 1, 2, |entry| entry.owed = credits(9)), (Verdict::Recall, credits(1)), "five of six are to go");
        // It gives back four of its six, having spent one.
        let back = |entry: &mut RequestEntry| {
            entry.spent = credits(1);
            entry.returned = credits(4);
        };
        assert_eq!(ask(&mut account, 1, 3, back), (Verdict::Recall, Credits::ZERO));
        assert_eq!((account.revoke_pending(), account.held()), (credits(1), credits(1)));
        let rest = |entry: &mut RequestEntry| {
            entry.spent = credits(1);
            entry.returned = credits(5);
        };
        assert_eq!(ask(&mut account, 1, 4, rest).0, Verdict::Exhausted);
        assert_eq!((account.revoked, account.settled, account.deposited), (credits(9), credits(1), credits(10)));
    }

    #[test]
    fn what_was_spent_meanwhile_stays_spent_and_a_later_top_up_is_not_swallowed() {
        let mut account = account(0, 10);
        ask(&mut account, 1, 1, |entry| entry.owed = credits(10));
        pay_back("r", &mut account, 10).unwrap();
        let spent = |entry: &mut RequestEntry| {
            entry.spent = credits(7);
            entry.returned = credits(3);
        };
        assert_eq!(ask(&mut account, 1, 2, spent).0, Verdict::Exhausted);
        assert_eq!((account.revoked, account.revoke_pending()), (credits(3), Credits::ZERO));
        let payment = Payment::deposit("later".parse().unwrap(), Bucket::Paid, credits(5));
        book(&mut account, &payment, PaymentState::Completed, None, Now::default()).unwrap();
        assert_eq!(feed(&mut account, Now::default()), Vec::new());
        assert_eq!(account.available(), credits(5));
    }

    #[test]
    fn a_node_that_says_nothing_holds_the_rest_until_it_is_given_up() {
        let mut account = account(0, 10);
        ask(&mut account, 1, 1, |entry| entry.owed = credits(4));
        pay_back("r", &mut account, 10).unwrap();
        assert_eq!((account.revoked, account.revoke_pending()), (credits(6), credits(4)));
        let late = Now { mono: crate::domain::time::Mono(667_000_000_000), ..Now::default() };
        let lines = super::super::sweep(&mut account, CLOSE, late);
        check(&account).unwrap();
        assert_eq!((account.revoked, account.revoke_pending()), (credits(10), Credits::ZERO));
        assert!(lines.ledger.iter().any(|line| matches!(line.kind, EntryKind::Revoked { .. })));
    }
}
