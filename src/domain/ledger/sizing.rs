//! How much to grant: the nearer the account is to its end, the less at a time, so that all its nodes end together.

use crate::domain::gang::THAW_MIN;
use crate::domain::money::{Credits, NANO};
use crate::domain::time::Nanos;

/// The share of the time to zero that is handed out at a time: one part in this many.
pub const HORIZON_PARTS: u64 = 8;

/// Shortest horizon: with less, a lost message has no time to be repeated.
pub const HORIZON_MIN: Nanos = Nanos::from_secs(2);

/// Longest horizon: half of a grant's validity at most.
pub const HORIZON_MAX: Nanos = Nanos::from_secs(300);

/// What a node keeps once nothing is free lasts so long: others may be dry. Who holds much more is recalled.
pub const HORIZON_OF_THE_LAST: Nanos = Nanos(2 * HORIZON_MIN.0);

/// What one open epoch holds and uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Held when last heard of.
    pub escrow: Credits,
    /// Nano-credits per second.
    pub burn_per_s: Credits,
    /// For how long nothing was heard.
    pub age: Nanos,
}

impl Holding {
    /// What is still in hand, by estimate.
    #[must_use]
    pub fn left(self) -> Credits {
        self.estimate().0
    }

    /// What is still in hand and what is still being used, by estimate: an epoch that must have run dry holds and uses nothing.
    fn estimate(self) -> (Credits, Credits) {
        let left = self.escrow.minus(used_in(self.burn_per_s, self.age));
        if left.is_positive() || self.age == Nanos(0) { (left.or_zero(), self.burn_per_s) } else { (Credits::ZERO, Credits::ZERO) }
    }
}

/// `burn_per_s` for that long, rounded up.
#[must_use]
pub fn used_in(burn_per_s: Credits, length: Nanos) -> Credits {
    let product = burn_per_s.nano().saturating_mul(i128::from(length.0));
    let whole = product.div_euclid(NANO);
    Credits::from_nano(if product.rem_euclid(NANO) == 0 { whole } else { whole.saturating_add(1) })
}

/// What all open epochs of an account still have in hand and use, by estimate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Together {
    /// In hand.
    pub left: Credits,
    /// Nano-credits per second.
    pub burn_per_s: Credits,
}

impl FromIterator<Holding> for Together {
    fn from_iter<I: IntoIterator<Item = Holding>>(holdings: I) -> Together {
        holdings.into_iter().map(Holding::estimate).fold(Together::default(), |together, (left, burn_per_s)| Together {
            left: together.left.plus(left),
            burn_per_s: together.burn_per_s.plus(burn_per_s),
        })
    }
}

/// The time to zero if all go on as they do, rounded up; `None` if nobody uses anything.
fn time_to_zero(available: Credits, together: Together) -> Option<Nanos> {
    let left = available.plus(together.left).nano();
    let burn = together.burn_per_s.nano();
    if burn <= 0 {
        return None;
    }
    let nanos = left.saturating_mul(NANO).saturating_add(burn - 1) / burn;
    Some(Nanos(u64::try_from(nanos.max(0)).unwrap_or(u64::MAX)))
}

/// What a grant is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantFor {
    /// Jobs that stop and go on each by itself.
    Single,
    /// A part of a gang that runs: its grants are shorter, since what others wait for in each other lasts for minutes.
    Gang,
    /// A part of a gang that stands still: it goes on only with a minute of credit, if there is so much.
    HeldGang,
}

/// Longest horizon of a part of a gang: half of the shortest time after which what waits for another part gives up.
pub const HORIZON_OF_GANGS: Nanos = Nanos::from_secs(240);

/// The same for what it is granted for.
#[must_use]
pub fn horizon_for(granted_for: GrantFor, available: Credits, together: Together) -> Nanos {
    let longest = horizon(available, together);
    match granted_for {
        GrantFor::Single => longest,
        GrantFor::Gang => longest.min(HORIZON_OF_GANGS),
        GrantFor::HeldGang => {
            let zero = time_to_zero(available, together).unwrap_or(HORIZON_OF_GANGS);
            longest.max(THAW_MIN).min(zero).min(HORIZON_OF_GANGS)
        }
    }
}

/// For how long a grant should last: an eighth of the time to zero, within bounds; all of it at the very end.
#[must_use]
pub fn horizon(available: Credits, together: Together) -> Nanos {
    match time_to_zero(available, together) {
        None => HORIZON_MAX,
        Some(zero) => zero.min(Nanos(zero.0 / HORIZON_PARTS).clamp(HORIZON_MIN, HORIZON_MAX)),
    }
}

/// What one epoch asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Held, the totals being merged.
    pub in_hand: Credits,
    /// Nano-credits per second.
    pub burn_per_s: Credits,
    /// Used and not yet charged.
    pub owed: Credits,
    /// The smallest grant that is of use.
    pub at_least: Credits,
}

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Nothing is needed, or nothing is free.
    Nothing,
    /// This much, which is free.
    Grant(Credits),
    /// What is free is of no use.
    BelowAtLeast,
}

/// How much to move from `available` to an epoch, for a time of `horizon`.
#[must_use]
pub fn size(ask: Ask, available: Credits, horizon: Nanos) -> Size {
    let wanted = used_in(ask.burn_per_s, horizon).plus(ask.owed).max(ask.at_least);
    let need = wanted.minus(ask.in_hand);
    if !need.is_positive() || !available.is_positive() {
        return Size::Nothing;
    }
    let grant = need.max(ask.at_least).min(available);
    if grant < ask.at_least { Size::BelowAtLeast } else { Size::Grant(grant) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CREDIT: i128 = NANO;

    fn credits(whole: i128) -> Credits {
        Credits::from_nano(whole * CREDIT)
    }

    fn alone(escrow: i128, burn: i128) -> Together {
        together([Holding { escrow: credits(escrow), burn_per_s: credits(burn), age: Nanos(0) }])
    }

    fn together(holdings: impl IntoIterator<Item = Holding>) -> Together {
        holdings.into_iter().collect()
    }

    #[test]
    fn the_horizon_is_five_minutes_while_credit_is_plenty_and_shrinks_to_the_very_end() {
        assert_eq!(horizon(credits(10_000), alone(0, 1)), HORIZON_MAX);
        assert_eq!(horizon(credits(2_400), alone(0, 1)), HORIZON_MAX, "forty minutes");
        assert_eq!(horizon(credits(800), alone(0, 1)), Nanos::from_secs(100));
        assert_eq!(horizon(credits(8), alone(0, 1)), HORIZON_MIN);
        assert_eq!(horizon(credits(1), alone(0, 1)), Nanos::from_secs(1), "all of it");
        assert_eq!(horizon(credits(0), alone(0, 1)), Nanos(0));
        assert_eq!(horizon(credits(5), alone(0, 0)), HORIZON_MAX, "nobody uses anything");
    }

    #[test]
    fn a_part_of_a_gang_is_granted_four_minutes_at_most_and_a_minute_before_it_goes_on() {
        let of = |granted_for, whole| horizon_for(granted_for, credits(whole), alone(0, 1));
        let each =
            |whole| [GrantFor::Single, GrantFor::Gang, GrantFor::HeldGang].map(|granted_for| of(granted_for, whole).0 / 1_000_000_000);
        assert_eq!(each(2_400), [300, 240, 240]);
        assert_eq!(each(1_920), [240, 240, 240]);
        assert_eq!(each(1_912), [239, 239, 239]);
        assert_eq!(each(480), [60, 60, 60]);
        assert_eq!(each(472), [59, 59, 60]);
        assert_eq!(each(60), [7, 7, 60]);
        assert_eq!(each(59), [7, 7, 59], "all there is");
        assert_eq!(each(0), [0, 0, 0]);
        assert_eq!(horizon_for(GrantFor::HeldGang, credits(5), alone(0, 0)), HORIZON_OF_GANGS, "nobody uses anything");
    }

    #[test]
    fn what_others_hold_counts_and_one_that_must_be_dry_does_not() {
        let me = Holding { escrow: Credits::ZERO, burn_per_s: credits(1), age: Nanos(0) };
        let other = Holding { escrow: credits(80), burn_per_s: credits(1), age: Nanos::from_secs(40) };
        assert_eq!(horizon(credits(120), together([me, other])), Nanos::from_secs(10), "160 left for 2 a second: an eighth of 80 s");
        let dry = Holding { age: Nanos::from_secs(90), ..other };
        assert_eq!(horizon(credits(160), together([me, dry])), Nanos::from_secs(20), "160 left for 1 a second");
    }

    #[test]
    fn a_grant_fills_up_to_the_horizon_with_what_is_owed() {
        let ask = Ask { in_hand: credits(40), burn_per_s: credits(1), owed: credits(7), at_least: Credits::ZERO };
        assert_eq!(size(ask, credits(1_000), Nanos::from_secs(100)), Size::Grant(credits(67)));
        assert_eq!(size(ask, credits(5), Nanos::from_secs(100)), Size::Grant(credits(5)), "never more than is free");
        assert_eq!(size(ask, Credits::ZERO, Nanos::from_secs(100)), Size::Nothing);
        assert_eq!(size(Ask { in_hand: credits(200), ..ask }, credits(5), Nanos::from_secs(100)), Size::Nothing);
    }

    #[test]
    fn less_than_is_of_use_is_not_granted() {
        let ask = Ask { in_hand: Credits::ZERO, burn_per_s: Credits::ZERO, owed: Credits::ZERO, at_least: credits(10) };
        assert_eq!(size(ask, credits(100), HORIZON_MAX), Size::Grant(credits(10)));
        assert_eq!(size(ask, credits(9), HORIZON_MAX), Size::BelowAtLeast);
        let short = Ask { in_hand: credits(9), burn_per_s: credits(1), ..ask };
        assert_eq!(size(short, credits(100), Nanos::from_secs(2)), Size::Grant(credits(10)), "a need of one is raised to what is of use");
    }

    proptest! {
        #[test]
        fn the_last_grant_to_a_single_node_leaves_no_dust(available in 1_i128..10_i128.pow(26), burn in 1_i128..10_i128.pow(26)) {
            let available = Credits::from_nano(available);
            let burn_per_s = Credits::from_nano(burn);
            let horizon = horizon(available, together([Holding { escrow: Credits::ZERO, burn_per_s, age: Nanos(0) }]));
            let ask = Ask { in_hand: Credits::ZERO, burn_per_s, owed: Credits::ZERO, at_least: Credits::ZERO };
            match size(ask, available, horizon) {
                Size::Grant(grant) => {
                    prop_assert!(grant.is_positive() && grant <= available);
                    if horizon < HORIZON_MIN {
                        prop_assert_eq!(grant, available);
                    }
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }

        #[test]
        fn extremes_neither_panic_nor_grant_too_much(
            available in 0..=i128::MAX, escrow in 0..=i128::MAX, burn in 0..=i128::MAX, age in any::<u64>(), owed in 0..=i128::MAX,
        ) {
            let holding = Holding { escrow: Credits::from_nano(escrow), burn_per_s: Credits::from_nano(burn), age: Nanos(age) };
            let available = Credits::from_nano(available);
            let horizon = horizon(available, together([holding, holding]));
            let ask = Ask { in_hand: Credits::ZERO, burn_per_s: holding.burn_per_s, owed: Credits::from_nano(owed), at_least: Credits::ZERO };
            if let Size::Grant(grant) = size(ask, available, horizon) {
                prop_assert!(grant <= available);
            }
        }
    }
}
