//! What is given back of a charge by a job's outcome.
//!
//! A line that is not settled at the end charges as the job runs. When it has ended, its outcome may say that only a part of that remains. The
//! charge stays what it was; beside it stands by what it is reduced. Of the reduction that comes first off which nobody has paid yet; what was
//! paid beyond the rest is given back. No total falls: a node tells, for each of its epochs, how much it has given back in all, and the
//! authority books that once, by the maximum, and never more than it has charged to that epoch.

use serde::{Deserialize, Serialize};

use super::id::Epoch;
use super::money::Credits;

/// Of one job: what is given back, and out of which epochs it was paid.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refund {
    /// Epochs of the node that ended while the job was there, the oldest first, and what had been drawn for it until then.
    pub drawn_before: Vec<(Epoch, Credits)>,
    /// By segment: what its lines give back.
    pub segments: Vec<Credits>,
    /// What of the charge was owed and need not be paid.
    pub waived: Credits,
    /// What was paid and is given back, by the epoch that it was drawn in.
    pub given: Vec<(Epoch, Credits)>,
}

/// What the outcome makes of a job's money.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// By what the charge is reduced.
    pub reduced: Credits,
    /// What of that was owed.
    pub waived: Credits,
    /// What of that was paid.
    pub refunded: Credits,
}

impl Refund {
    /// Paid and given back, in all.
    #[must_use]
    pub fn refunded(&self) -> Credits {
        self.given.iter().map(|(_, amount)| *amount).sum()
    }

    /// What had been drawn when the last of the epochs before this one ended.
    #[must_use]
    pub fn drawn_until(&self) -> Credits {
        self.drawn_before.last().map_or(Credits::ZERO, |(_, drawn)| *drawn)
    }

    /// Was anything drawn in that epoch, which is over?
    #[must_use]
    pub fn has_drawn_in(&self, epoch: Epoch) -> bool {
        self.drawn_before.iter().any(|(before, _)| *before == epoch)
    }

    /// By what the charge is reduced.
    #[must_use]
    pub fn reduced(&self, charge: Credits) -> Credits {
        self.segments.iter().copied().sum::<Credits>().min(charge)
    }

    /// The same amount out of the epochs that it was drawn in: what was drawn last is given back first.
    #[must_use]
    pub fn by_epoch(drawn_before: &[(Epoch, Credits)], now: Epoch, drawn: Credits, refunded: Credits) -> Vec<(Epoch, Credits)> {
        let mut left = refunded;
        let mut upper = drawn;
        let mut given = Vec::new();
        for (nth, epoch) in (0..=drawn_before.len()).rev().map(|nth| (nth, drawn_before.get(nth).map_or(now, |(epoch, _)| *epoch))) {
            let below = nth.checked_sub(1).map_or(Credits::ZERO, |nth| drawn_before[nth].1);
            let part = upper.minus(below).or_zero().min(left);
            if part.is_positive() {
                given.push((epoch, part));
            }
            left = left.minus(part);
            upper = upper.min(below);
        }
        given
    }
}

/// An epoch is over, in which or before which this much was drawn for a job.
pub(super) fn note_drawn(refund: &mut Option<Box<Refund>>, drawn: Credits, epoch: Epoch) {
    let known = refund.as_ref().map_or(Credits::ZERO, |refund| refund.drawn_until());
    if known < drawn {
        refund.get_or_insert_default().drawn_before.push((epoch, drawn));
    }
}

/// What remains of `charge` after a reduction is paid by what was drawn, as far as it goes; what was owed is waived first.
#[must_use]
pub fn outcomes(charge: Credits, drawn: Credits, unfunded: Credits, reduction: Credits) -> Outcomes {
    let reduced = reduction.min(charge).or_zero();
    let owed = charge.minus(drawn).minus(unfunded).or_zero();
    Outcomes { reduced, waived: owed.min(reduced), refunded: drawn.minus(charge.minus(reduced)).or_zero() }
}

/// How much of one epoch's charges on one account was given back. Totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refunded {
    /// In all.
    pub total: Credits,
    /// As the outstanding question says.
    pub asked: Credits,
    /// As an answered question said.
    pub told: Credits,
}

impl Refunded {
    /// Does the authority have to hear of it?
    #[must_use]
    pub fn is_untold(&self) -> bool {
        self.told < self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nano(nano: i128) -> Credits {
        Credits::from_nano(nano)
    }

    #[test]
    fn what_is_owed_is_waived_first_and_what_was_paid_beyond_the_rest_is_given_back() {
        let of = |charge, drawn, unfunded, reduction| outcomes(nano(charge), nano(drawn), nano(unfunded), nano(reduction));
        let is = |reduced, waived, refunded| Outcomes { reduced: nano(reduced), waived: nano(waived), refunded: nano(refunded) };
        assert_eq!(of(10, 10, 0, 10), is(10, 0, 10), "all of it");
        assert_eq!(of(10, 10, 0, 4), is(4, 0, 4));
        assert_eq!(of(10, 6, 0, 4), is(4, 4, 0), "it was owed");
        assert_eq!(of(10, 6, 0, 5), is(5, 4, 1));
        assert_eq!(of(10, 7, 3, 5), is(5, 0, 2), "what was written off is not given back");
        assert_eq!(of(10, 5, 5, 5), is(5, 0, 0));
        assert_eq!(of(10, 10, 0, 11), is(10, 0, 10), "never more than was charged");
    }

    #[test]
    fn what_was_drawn_last_is_given_back_first() {
        let (a, b, now) = (Epoch([1; 16]), Epoch([2; 16]), Epoch([3; 16]));
        let given = |refunded| Refund::by_epoch(&[(a, nano(4)), (b, nano(4))], now, nano(7), nano(refunded));
        assert_eq!(given(0), []);
        assert_eq!(given(3), [(now, nano(3))]);
        assert_eq!(given(4), [(now, nano(3)), (a, nano(1))], "nothing was drawn in the second one");
        assert_eq!(given(7), [(now, nano(3)), (a, nano(4))]);
    }

    proptest! {
        #[test]
        fn the_books_of_a_job_close_whatever_is_given_back(
            charge in 0..1_000_i128, paid in 0..=1_000_u32, off in 0..=1_000_u32, reduction in 0..2_000_i128, cuts in prop::collection::vec(0..=1_000_u32, 0..4),
        ) {
            let drawn = charge * i128::from(paid) / 1_000;
            let unfunded = (charge - drawn) * i128::from(off) / 1_000;
            let found = outcomes(nano(charge), nano(drawn), nano(unfunded), nano(reduction));
            let net = nano(charge).minus(found.reduced);
            let owed = nano(charge - drawn - unfunded).minus(found.waived);
            prop_assert!(Credits::ZERO <= owed && Credits::ZERO <= net && found.refunded <= nano(drawn));
            prop_assert!(nano(drawn).minus(found.refunded) <= net, "nobody has paid more than what remains");
            prop_assert!(owed.is_zero() || found.refunded.is_zero(), "nothing is given back while something is owed");
            let mut before: Vec<i128> = cuts.iter().map(|cut| drawn * i128::from(*cut) / 1_000).collect();
            before.sort_unstable();
            let before: Vec<(Epoch, Credits)> = before.iter().zip(1_u8..).map(|(drawn, nth)| (Epoch([nth; 16]), nano(*drawn))).collect();
            let given = Refund::by_epoch(&before, Epoch([0; 16]), nano(drawn), found.refunded);
            prop_assert_eq!(given.iter().map(|(_, amount)| *amount).sum::<Credits>(), found.refunded);
        }
    }
}
