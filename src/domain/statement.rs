//! A month's statement of one account: from the balance at its beginning, by every movement of the ledger, to the balance at its end.

use std::collections::BTreeMap;

use serde::Serialize;

use super::bucket::Bucket;
use super::ledger::{AccountView, Effect, EntryKind, EntryStatus, Expiry, LedgerEntry, Lot};
use super::money::Credits;
use super::report::{DAY_MS, Span};
use super::time::Wall;

const HOUR_MS: u64 = 3_600_000;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// When: of use, the end of its day; else the instant.
    #[serde(rename = "unix_ms")]
    pub at: Wall,
    /// What.
    pub what: What,
    /// By what the balance rose; negative where it fell, nothing where it was not touched.
    pub change: Credits,
    /// How much was moved or written off; never negative.
    pub amount: Credits,
}

/// What a line is about. Use is never anything but `usage`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum What {
    /// Paid in or given.
    Deposit {
        /// By which payment.
        payment: String,
        /// `free` or `paid`.
        bucket: String,
    },
    /// Charged, over a day.
    Usage,
    /// Used past zero by the account's own rule, over a day: it touches no balance.
    WriteOff,
    /// Used, reported too late and covered by nothing, over a day: it touches no balance.
    Shortfall,
    /// An automatic refill.
    Refill {
        /// By which payment.
        payment: String,
    },
    /// Given back for use that was charged.
    Refund {
        /// By which act.
        payment: String,
    },
    /// Put right by an operator.
    Correction {
        /// By which act.
        payment: String,
    },
    /// Taken back by its owner.
    Revoked {
        /// By which act.
        revocation: String,
    },
    /// The month's allowance.
    Allowance,
    /// It lapsed.
    Expired,
    /// Moved to another account.
    TransferOut {
        /// Which.
        to: String,
    },
    /// Came from another account.
    TransferIn {
        /// Which.
        from: String,
    },
    /// Given back by the outcomes of jobs, over a day.
    OutcomeRefund,
    /// A period's part of a commitment.
    Commitment,
    /// What was left of it at the period's end.
    CommitmentLapsed,
    /// The engine that keeps the balance said another.
    Mirrored,
}

/// What became of one period's part of a commitment. `committed + given_back = used + revoked + lapsed + left`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Committed {
    /// When it was given.
    #[serde(rename = "from_ms")]
    pub from: Wall,
    /// Until when it may be used.
    #[serde(rename = "until_ms")]
    pub until: Wall,
    /// How much.
    pub committed: Credits,
    /// Given back to it by the outcomes of jobs.
    pub given_back: Credits,
    /// Used of it.
    pub used: Credits,
    /// Taken back by the account's owner.
    pub revoked: Credits,
    /// Lapsed.
    pub lapsed: Credits,
    /// Left: to be used yet, or after its end still held by nodes.
    pub left: Credits,
}

/// A statement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Statement {
    /// Of which time.
    pub span: Span,
    /// The balance at its beginning.
    pub opening: Credits,
    /// What moved it, oldest first.
    pub lines: Vec<Line>,
    /// The balance at its end: `opening` and all changes.
    pub closing: Credits,
    /// Will it still change: its time is not over, or an hour of it grows?
    pub open: bool,
    /// The periods of a commitment that ran in it, oldest first.
    pub commitments: Vec<Committed>,
}

/// When a movement was: of use the beginning of its hour.
fn when(entry: &LedgerEntry) -> Wall {
    match &entry.kind {
        EntryKind::Usage { hour, .. }
        | EntryKind::WriteOff { hour, .. }
        | EntryKind::Shortfall { hour, .. }
        | EntryKind::OutcomeRefund { hour, .. } => Wall(hour.saturating_mul(HOUR_MS)),
        // It was lost at the end of its period, whenever somebody looked: in the last instant of that.
        EntryKind::CommitmentLapsed { until, .. } => entry.at.min(Wall(until.0.saturating_sub(1))),
        _ => entry.at,
    }
}

/// The periods of a commitment that ran in a span.
fn commitments(account: &AccountView, entries: &[LedgerEntry], span: Span) -> Vec<Committed> {
    let given = entries.iter().filter_map(|entry| match entry.kind {
        EntryKind::Commitment { until } if entry.at < span.to && span.from < until => Some((entry.at, until, entry.amount)),
        _ => None,
    });
    let sum = |of: &dyn Fn(&LedgerEntry) -> Credits| -> Credits { entries.iter().map(of).sum() };
    let found = given.map(|(from, until, committed)| {
        let lapsed = sum(&|entry| match entry.kind {
            EntryKind::CommitmentLapsed { until: of, .. } if of == until => entry.amount,
            _ => Credits::ZERO,
        });
        let given_back = sum(&|entry| match entry.kind {
            EntryKind::OutcomeRefund { .. } if from <= entry.at && entry.at < until => entry.committed(),
            _ => Credits::ZERO,
        });
        let revoked = sum(&|entry| match entry.kind {
            EntryKind::Revoked { .. } if from <= entry.at && entry.at < until => entry.committed(),
            _ => Credits::ZERO,
        });
        let of_it = |lot: &&Lot| lot.key.bucket == Bucket::Committed && lot.key.expires == Expiry::At(until);
        let left: Credits = account.lots.iter().filter(of_it).map(|lot| lot.left).sum();
        let used = committed.plus(given_back).minus(revoked).minus(lapsed).minus(left);
        Committed { from, until, committed, given_back, used, revoked, lapsed, left }
    });
    let mut found: Vec<Committed> = found.collect();
    found.sort_by_key(|period| period.from);
    found
}

fn change(entry: &LedgerEntry) -> Credits {
    match entry.effect() {
        Effect::Adds => entry.amount,
        Effect::Takes => Credits::ZERO.minus(entry.amount),
        Effect::Nothing => Credits::ZERO,
    }
}

/// What a ledger line is on a statement, and its instant there.
fn what(entry: &LedgerEntry) -> (Wall, What) {
    let day = Wall((when(entry).0 / DAY_MS + 1) * DAY_MS - 1);
    match &entry.kind {
        EntryKind::Usage { .. } => (day, What::Usage),
        EntryKind::WriteOff { .. } => (day, What::WriteOff),
        EntryKind::Shortfall { .. } => (day, What::Shortfall),
        EntryKind::OutcomeRefund { .. } => (day, What::OutcomeRefund),
        EntryKind::Deposit { bucket, payment } => {
            (entry.at, What::Deposit { payment: payment.to_string(), bucket: bucket.name().to_owned() })
        }
        EntryKind::Refill { payment } => (entry.at, What::Refill { payment: payment.to_string() }),
        EntryKind::Refund { payment, .. } => (entry.at, What::Refund { payment: payment.to_string() }),
        EntryKind::Correction { payment, .. } => (entry.at, What::Correction { payment: payment.to_string() }),
        EntryKind::Mirrored { .. } => (entry.at, What::Mirrored),
        EntryKind::Revoked { revocation, .. } => (entry.at, What::Revoked { revocation: revocation.to_string() }),
        EntryKind::Allowance { .. } => (entry.at, What::Allowance),
        EntryKind::Expired { .. } => (entry.at, What::Expired),
        EntryKind::Commitment { .. } => (entry.at, What::Commitment),
        EntryKind::CommitmentLapsed { .. } => (day, What::CommitmentLapsed),
        EntryKind::TransferOut { to, .. } => (entry.at, What::TransferOut { to: to.to_string() }),
        EntryKind::TransferIn { from, .. } => (entry.at, What::TransferIn { from: from.to_string() }),
    }
}

/// The statement of a span of whole hours. `entries` are all of the account's since its beginning, `account` is how it stood when they were read.
#[must_use]
pub fn statement(account: &AccountView, entries: &[LedgerEntry], span: Span, now: Wall) -> Statement {
    let balance = account.free.plus(account.paid).plus(account.committed);
    let since = |at: Wall| -> Credits { entries.iter().filter(|entry| at <= when(entry)).map(change).sum() };
    let within: Vec<&LedgerEntry> = entries.iter().filter(|entry| span.from <= when(entry) && when(entry) < span.to).collect();
    // A day's use stands behind what was paid in on that day.
    let mut lines: BTreeMap<(Wall, What), (Credits, Credits)> = BTreeMap::new();
    // What was announced and has not come, or never will, is no movement.
    for entry in within.iter().filter(|entry| !matches!(entry.status, EntryStatus::Pending | EntryStatus::Failed)) {
        let line = lines.entry(what(entry)).or_default();
        *line = (line.0.plus(change(entry)), line.1.plus(entry.amount));
    }
    let grows = within.iter().any(|entry| entry.status == EntryStatus::Accumulating);
    Statement {
        span,
        opening: balance.minus(since(span.from)),
        lines: lines.into_iter().map(|((at, what), (change, amount))| Line { at, what, change, amount }).collect(),
        closing: balance.minus(since(span.to)),
        open: grows || now < span.to,
        commitments: commitments(account, entries, span),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::id::Epoch;
    use crate::domain::ledger::Account;
    use crate::domain::wire::AccountPolicy;

    fn nano(nano: i128) -> Credits {
        Credits::from_nano(nano)
    }

    fn entry(at: u64, kind: EntryKind, amount: i128) -> LedgerEntry {
        let (free, paid) = (nano(0), nano(amount));
        LedgerEntry { at: Wall(at), kind, amount: nano(amount), free, paid, status: EntryStatus::Completed }
    }

    fn deposit(at: u64, amount: i128) -> LedgerEntry {
        let payment = format!("p{at}").parse().unwrap();
        entry(at, EntryKind::Deposit { bucket: Bucket::Paid, payment }, amount)
    }

    fn usage(hour: u64, amount: i128) -> LedgerEntry {
        entry(hour * HOUR_MS + 1_000, EntryKind::Usage { epoch: Epoch([1; 16]), hour }, amount)
    }

    /// The account that these entries leave.
    fn account(entries: &[LedgerEntry]) -> AccountView {
        let view = Account::new("lab".parse().unwrap(), AccountPolicy::default()).view();
        AccountView { paid: entries.iter().map(change).sum(), ..view }
    }

    #[test]
    fn a_month_goes_from_its_opening_by_every_movement_to_its_closing() {
        let month = Span { from: Wall(30 * DAY_MS), to: Wall(60 * DAY_MS) };
        let entries = [
            deposit(29 * DAY_MS, 100),
            usage(30 * 24 - 1, 7),
            usage(30 * 24, 1),
            usage(30 * 24 + 1, 2),
            deposit(40 * DAY_MS, 50),
            usage(60 * 24 - 1, 4),
            usage(60 * 24, 8),
        ];
        let made = statement(&account(&entries), &entries, month, Wall(61 * DAY_MS));
        assert_eq!((made.opening, made.closing, made.open), (nano(93), nano(136), false));
        let lines: Vec<(&What, Credits)> = made.lines.iter().map(|line| (&line.what, line.change)).collect();
        assert_eq!(lines[0], (&What::Usage, nano(-3)), "two hours of one day");
        assert!(matches!(lines[1], (What::Deposit { .. }, change) if change == nano(50)));
        assert_eq!(lines[2], (&What::Usage, nano(-4)));
        assert_eq!(lines.len(), 3);
        assert!(statement(&account(&entries), &entries, month, Wall(59 * DAY_MS)).open, "its time is not over");
    }

    #[test]
    fn r8_usage_is_usage_whatever_is_refunded_or_paid_in_beside_it() {
        let day = Span { from: Wall(0), to: Wall(DAY_MS) };
        // A payment of the same amount at the same time is a line of its own: it does not make the use look like nothing.
        let entries = [deposit(HOUR_MS, 5), usage(1, 5)];
        let made = statement(&account(&entries), &entries, day, Wall(2 * DAY_MS));
        assert_eq!(made.lines.len(), 2);
        for line in &made.lines {
            assert!(nano(0) <= line.amount, "no amount is negative: its kind says which way it goes");
            assert_eq!(line.change < nano(0), line.what == What::Usage);
            assert_eq!(line.change.is_positive(), matches!(line.what, What::Deposit { .. }));
        }
        let json = serde_json::to_value(&made).unwrap();
        let kinds: Vec<&str> = json["lines"].as_array().unwrap().iter().map(|line| line["what"]["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["deposit", "usage"], "within a day what was paid in stands first");
    }

    #[test]
    fn what_is_written_off_stands_there_and_moves_no_balance() {
        let kind = EntryKind::WriteOff { epoch: Epoch([1; 16]), hour: 3 };
        let entries = [deposit(0, 5), usage(1, 5), entry(3 * HOUR_MS, kind, 9)];
        let made = statement(&account(&entries), &entries, Span { from: Wall(0), to: Wall(DAY_MS) }, Wall(DAY_MS));
        assert_eq!(made.closing, nano(0));
        let written: Vec<&Line> = made.lines.iter().filter(|line| line.what == What::WriteOff).collect();
        assert_eq!((written.len(), written[0].change, written[0].amount), (1, nano(0), nano(9)));
    }

    proptest! {
        #[test]
        fn each_months_closing_is_the_next_ones_opening(
            movements in prop::collection::vec((0_u64..90 * 24, 1_i128..1_000, any::<bool>()), 0..60),
        ) {
            let made = |(hour, amount, paid): &(u64, i128, bool)| if *paid { deposit(hour * HOUR_MS, *amount) } else { usage(*hour, *amount) };
            let entries: Vec<LedgerEntry> = movements.iter().map(made).collect();
            let account = account(&entries);
            let month = |nth: u64| Span { from: Wall(nth * 30 * DAY_MS), to: Wall((nth + 1) * 30 * DAY_MS) };
            let months: Vec<Statement> = (0..3).map(|nth| statement(&account, &entries, month(nth), Wall(90 * DAY_MS))).collect();
            prop_assert_eq!(months[0].opening, nano(0));
            for made in &months {
                prop_assert_eq!(made.opening.plus(made.lines.iter().map(|line| line.change).sum()), made.closing);
            }
            prop_assert_eq!(months[0].closing, months[1].opening);
            prop_assert_eq!(months[1].closing, months[2].opening);
            prop_assert_eq!(months[2].closing, account.paid);
        }
    }
}
