//! What may be granted of a balance that is kept by an engine, which shows usage only some time after it has acknowledged it.
//!
//! Four running totals of one account bound what the engine's balance is once it shows everything: `shown <= told <= used` and whatever of it the
//! engine really shows at the instant of its answer lies between `shown` and `told`. With `balance` as the engine said it,
//! `balance - (used - shown)` is surely there, and more than `balance - (used - told)` is surely not.

use std::collections::VecDeque;

use super::money::Credits;
use super::time::{Mono, Nanos, Wall};

/// Do others draw on the balances of an engine too?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drawn {
    /// They may: only what is surely there is granted.
    ByOthersToo,
    /// Nobody but this authority does: what was surely there once, less what was used since, still is.
    HereAlone,
}

/// Usage of one account since an engine keeps its balance, each in total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Charged, less what came back by outcome.
    pub used: Credits,
    /// Put into events, sent or not.
    pub told: Credits,
    /// Acknowledged so long ago that the balance shows it.
    pub shown: Credits,
}

/// An engine's word on a balance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// How much; negative where more was used than paid.
    pub balance: Credits,
    /// When the question was sent, on this machine's clock.
    pub asked: Mono,
    /// Since when that is so at the latest, on the wall clock of this machine: when the question was sent.
    pub asked_wall: Wall,
    /// As of when, where the engine says so, on its clock.
    pub as_of: Option<Wall>,
}

impl Reading {
    /// As of when on this machine's clock: never later than the question, and as much earlier as the engine says.
    #[must_use]
    pub fn as_of_here(&self) -> Mono {
        let age_ms = self.as_of.map_or(0, |as_of| self.asked_wall.0.saturating_sub(as_of.0));
        Mono(self.asked.0.saturating_sub(Nanos::from_millis(age_ms).0))
    }
}

/// What an account should hold here, granted or not, when the engine says `balance` and it holds `holds`.
#[must_use]
pub fn fit(holds: Credits, balance: Credits, usage: &Usage, drawn: Drawn) -> Credits {
    let surely = balance.minus(usage.used.minus(usage.shown));
    let most = match drawn {
        Drawn::ByOthersToo => surely,
        Drawn::HereAlone => surely.max(balance.minus(usage.used.minus(usage.told))),
    };
    holds.max(surely).min(most).or_zero()
}

/// Usage that an engine has acknowledged, until its balance surely shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acknowledged {
    shown: Credits,
    recent: VecDeque<(Mono, Credits)>,
}

impl Acknowledged {
    /// As a store remembers it: when what is not surely shown was acknowledged is not known, so it counts from now.
    #[must_use]
    pub fn remembered(shown: Credits, acknowledged: Credits, now: Mono) -> Acknowledged {
        let rest = acknowledged.minus(shown);
        Acknowledged { shown, recent: if rest.is_zero() { VecDeque::new() } else { VecDeque::from([(now, rest)]) } }
    }

    /// The engine has acknowledged this much more.
    pub fn add(&mut self, amount: Credits, now: Mono) {
        self.recent.push_back((now, amount));
    }

    /// What a balance as of then surely shows, where the engine shows everything `within` of acknowledging it.
    pub fn shown_by(&mut self, as_of: Mono, within: Nanos) -> Credits {
        while let Some((at, amount)) = self.recent.front().copied() {
            if as_of < at.plus(within) {
                break;
            }
            self.shown = self.shown.plus(amount);
            self.recent.pop_front();
        }
        self.shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nano(nano: i128) -> Credits {
        Credits::from_nano(nano)
    }

    fn usage(used: i128, told: i128, shown: i128) -> Usage {
        Usage { used: nano(used), told: nano(told), shown: nano(shown) }
    }

    fn fitted(holds: i128, balance: i128, usage: &Usage) -> (i128, i128) {
        let fit = |drawn| fit(nano(holds), nano(balance), usage, drawn).nano();
        (fit(Drawn::ByOthersToo), fit(Drawn::HereAlone))
    }

    #[test]
    fn without_usage_under_way_the_account_holds_what_the_engine_says() {
        assert_eq!(fitted(0, 100, &usage(0, 0, 0)), (100, 100));
        assert_eq!(fitted(100, 100, &usage(30, 30, 30)), (100, 100));
        assert_eq!(fitted(100, 7, &usage(30, 30, 30)), (7, 7), "somebody took it there");
        assert_eq!(fitted(7, 100, &usage(30, 30, 30)), (100, 100), "somebody paid there");
    }

    #[test]
    fn usage_that_the_engine_may_not_show_yet_is_subtracted() {
        // 40 used, of which 30 are told and 10 surely shown. The engine says 100: between 70 and 90 are there.
        let under_way = usage(40, 30, 10);
        assert_eq!(fitted(0, 100, &under_way), (70, 70));
        assert_eq!(fitted(80, 100, &under_way), (70, 80), "alone, what was there before still is");
        assert_eq!(fitted(95, 100, &under_way), (70, 90), "but not more than can be");
        assert_eq!(fitted(5, 20, &under_way), (0, 5), "surely there is nothing");
    }

    #[test]
    fn a_balance_below_zero_leaves_nothing_and_refunds_that_the_engine_does_not_know_are_there() {
        assert_eq!(fitted(10, -5, &usage(0, 0, 0)), (0, 0));
        assert_eq!(fitted(10, i128::MIN, &usage(i128::MAX, 0, 0)), (0, 0), "held at the range's end");
        assert_eq!(fitted(0, 100, &usage(20, 30, 30)), (110, 110), "ten of what was told came back, and go before what is used next");
    }

    #[test]
    fn what_was_acknowledged_is_shown_once_the_engine_has_had_its_time() {
        let within = Nanos::from_secs(60);
        let at = |secs: u64| Mono(Nanos::from_secs(secs).0);
        let mut acknowledged = Acknowledged::remembered(nano(5), nano(7), at(100));
        acknowledged.add(nano(10), at(110));
        assert_eq!(acknowledged.shown_by(Mono(at(160).0 - 1), within), nano(5));
        assert_eq!(acknowledged.shown_by(at(160), within), nano(7));
        assert_eq!(acknowledged.shown_by(at(169), within), nano(7));
        assert_eq!(acknowledged.shown_by(at(170), within), nano(17));
        assert_eq!(acknowledged.shown_by(at(0), within), nano(17), "what was shown once stays so");
    }

    #[test]
    fn a_balance_is_as_old_as_the_engine_says_and_never_younger_than_the_question() {
        let reading = |as_of| Reading { balance: nano(0), asked: Mono(90_000_000_000), asked_wall: Wall(500_000), as_of };
        assert_eq!(reading(None).as_of_here(), Mono(90_000_000_000));
        assert_eq!(reading(Some(Wall(470_000))).as_of_here(), Mono(60_000_000_000));
        assert_eq!(reading(Some(Wall(600_000))).as_of_here(), Mono(90_000_000_000), "a clock that is ahead makes nothing younger");
        assert_eq!(reading(Some(Wall(0))).as_of_here(), Mono(0));
    }

    proptest! {
        /// Whatever the engine shows of what it was told, less is granted than it has once it shows all; and by readings alone, without others who draw,
        /// what is held never has to be taken back.
        #[test]
        fn what_is_held_is_never_more_than_what_is_there(
            paid in 0..1_000_i128, used in 0..1_000_i128, told in 0..1_000_i128, shown in 0..1_000_i128, really in 0..1_000_i128, holds in 0..1_000_i128,
        ) {
            let told = told.min(used);
            let shown = shown.min(told);
            let really = really.clamp(shown, told);
            let (balance, there) = (paid - really, paid - used);
            let usage = usage(used, told, shown);
            let (shared, alone) = fitted(holds, balance, &usage);
            prop_assert!(shared <= there.max(0));
            prop_assert!(alone <= there.max(holds).max(0));
            if holds <= there {
                prop_assert!(holds <= alone && alone <= there.max(0), "what is there is not taken back");
            }
            if shown == used {
                prop_assert_eq!((shared, alone), (there.max(0), there.max(0)), "all is shown: no doubt is left");
            }
        }

        #[test]
        fn nothing_is_shown_twice_or_lost(steps in prop::collection::vec((0..100_u64, 1..50_i128), 0..20), within in 0..100_u64) {
            let mut acknowledged = Acknowledged::default();
            let (mut now, mut all) = (0, 0);
            for (pause, amount) in steps {
                now += pause;
                all += amount;
                acknowledged.add(nano(amount), Mono(now));
                prop_assert!(acknowledged.shown_by(Mono(now), Nanos(within)) <= nano(all));
            }
            prop_assert_eq!(acknowledged.shown_by(Mono(now + within), Nanos(within)), nano(all));
        }
    }
}
