//! Draining the driver's sample rings: which samples are new, and their exact mean.
//!
//! Stamps are the driver's own (microseconds, `nvmlSample_t.timeStamp`) and are compared with each other only, never with a clock of ours.

use crate::domain::meter::{Missing, Reading};

/// After so many looks without a new sample the whole ring is asked for: the driver's clock may have been set back.
const DRY_LOOKS_MAX: u32 = 5;

/// One sample of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamped<T> {
    /// The driver's stamp, in microseconds.
    pub(super) at_us: u64,
    /// What was sampled.
    pub(super) value: T,
}

/// How far one ring has been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Drain {
    last_us: Option<u64>,
    dry_looks: u32,
}

impl Drain {
    /// The "last seen" stamp to ask the driver with, in microseconds; 0 asks for the whole ring.
    pub(super) fn since_us(&self) -> u64 {
        if self.dry_looks >= DRY_LOOKS_MAX { 0 } else { self.last_us.unwrap_or(0) }
    }

    /// Of what the driver answered, the samples that are new. Where nobody looked before, those of the last `window_us`.
    pub(super) fn fresh<T>(&mut self, mut samples: Vec<Stamped<T>>, window_us: u64) -> Vec<Stamped<T>> {
        let Some(newest_us) = samples.iter().map(|sample| sample.at_us).max() else {
            self.dry_looks = self.dry_looks.saturating_add(1);
            return samples;
        };
        // The newest sample is within every window.
        let window_floor_us = newest_us.saturating_sub(window_us.max(1));
        let floor_us = match self.last_us {
            Some(last_us) if newest_us >= last_us => last_us,
            // The stamps went back while nothing came.
            Some(_) if self.dry_looks >= DRY_LOOKS_MAX => window_floor_us,
            Some(_) => newest_us,
            None => window_floor_us,
        };
        samples.retain(|sample| sample.at_us > floor_us);
        match samples.is_empty() {
            // The whole ring was old: ask from the last stamp again for a while.
            true if self.dry_looks >= DRY_LOOKS_MAX => self.dry_looks = 0,
            true => self.dry_looks += 1,
            false => *self = Drain { last_us: Some(newest_us), dry_looks: 0 },
        }
        samples
    }
}

/// A percentage as the driver gave it: whole, 0 to 100, or rejected.
pub(super) const fn plausible(percent: u64) -> bool {
    percent <= 100
}

/// The mean of percentages in permyriad, rounded down. One that is above 100 makes the whole reading implausible; none is no news.
pub(super) fn mean_permyriad(percents: &[u64]) -> Reading<u32> {
    if !percents.iter().all(|percent| plausible(*percent)) {
        return Reading::Missing(Missing::Implausible);
    }
    let sum: u64 = percents.iter().sum();
    match u64::try_from(percents.len()) {
        Ok(0) | Err(_) => Reading::Missing(Missing::NotYet),
        Ok(count) => u32::try_from(sum * 100 / count).map_or(Reading::Missing(Missing::Implausible), Reading::Seen),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ring(stamps: impl IntoIterator<Item = u64>) -> Vec<Stamped<u64>> {
        stamps.into_iter().map(|at_us| Stamped { at_us, value: at_us }).collect()
    }

    fn stamps(samples: &[Stamped<u64>]) -> Vec<u64> {
        samples.iter().map(|sample| sample.at_us).collect()
    }

    #[test]
    fn the_first_look_takes_only_the_last_interval_of_the_ring() {
        let mut drain = Drain::default();
        assert_eq!(drain.since_us(), 0);
        assert_eq!(stamps(&drain.fresh(ring([100, 200, 900, 1_000]), 500)), [900, 1_000]);
        assert_eq!(drain.since_us(), 1_000);
    }

    #[test]
    fn each_sample_is_taken_once_even_from_a_driver_that_repeats_them() {
        let mut drain = Drain::default();
        drain.fresh(ring([100]), 500);
        assert_eq!(stamps(&drain.fresh(ring([50, 100, 150, 300]), 500)), [150, 300]);
        assert!(drain.fresh(ring([150, 300]), 500).is_empty());
    }

    #[test]
    fn a_clock_that_was_set_back_stops_the_ring_for_a_few_looks_only() {
        let mut drain = Drain::default();
        drain.fresh(ring([10_000]), 500);
        for _ in 0..DRY_LOOKS_MAX {
            assert_eq!(drain.since_us(), 10_000);
            assert!(drain.fresh(ring([]), 500).is_empty(), "the driver has nothing after 10,000");
        }
        assert_eq!(drain.since_us(), 0, "so the whole ring is asked for");
        assert_eq!(stamps(&drain.fresh(ring([1_000, 2_000, 2_400]), 500)), [2_000, 2_400]);
        assert_eq!(drain.since_us(), 2_400);
    }

    #[test]
    fn a_ring_that_stands_still_yields_nothing_however_often_it_is_read_whole() {
        let mut drain = Drain::default();
        drain.fresh(ring([10_000]), 500);
        for _ in 0..4 * DRY_LOOKS_MAX {
            let whole = if drain.since_us() == 0 { ring([9_000, 10_000]) } else { ring([]) };
            assert!(drain.fresh(whole, 500).is_empty());
        }
    }

    #[test]
    fn the_mean_is_exact_and_never_made_of_impossible_values() {
        assert_eq!(mean_permyriad(&[10, 20, 30, 41]), Reading::Seen(2_525));
        assert_eq!(mean_permyriad(&[0, 0, 100]), Reading::Seen(3_333));
        assert_eq!(mean_permyriad(&[]), Reading::Missing(Missing::NotYet), "no sample is not idle");
        assert_eq!(mean_permyriad(&[50, 2_287_971_552]), Reading::Missing(Missing::Implausible));
        assert_eq!(mean_permyriad(&[u64::MAX, u64::MAX]), Reading::Missing(Missing::Implausible));
    }

    proptest! {
        #[test]
        fn however_the_looks_fall_every_sample_after_the_first_look_is_taken_exactly_once(
            steps in prop::collection::vec((1_u64..400, prop::bool::ANY), 1..200)
        ) {
            let mut drain = Drain::default();
            let mut held = Vec::new();
            let mut at_us = 1_000;
            drain.fresh(ring([at_us]), 0);
            let (mut made, mut taken) = (Vec::new(), Vec::new());
            for (step_us, look) in steps {
                at_us += step_us;
                made.push(at_us);
                held.push(at_us);
                if look {
                    let since_us = drain.since_us();
                    taken.extend(stamps(&drain.fresh(ring(held.iter().copied().filter(|stamp| *stamp > since_us)), 0)));
                }
            }
            let since_us = drain.since_us();
            taken.extend(stamps(&drain.fresh(ring(held.into_iter().filter(|stamp| *stamp > since_us)), 0)));
            prop_assert_eq!(taken, made);
        }

        #[test]
        fn a_mean_lies_within_its_samples(percents in prop::collection::vec(0_u64..=100, 1..80)) {
            let mean = mean_permyriad(&percents);
            let (low, high) = (percents.iter().min().unwrap() * 100, percents.iter().max().unwrap() * 100);
            prop_assert!(matches!(mean, Reading::Seen(mean) if (low..=high).contains(&u64::from(mean))));
        }
    }
}
