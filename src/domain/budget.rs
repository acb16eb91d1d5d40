//! What the agent itself may cost, and what it does when it costs more: it looks less often, says so, and comes back in small steps.
//!
//! Counters lose nothing by that; levels are known more coarsely, which is why it ends at [`INTERVAL_MAX`]. The edge of an account that
//! may soon be empty has a timer of its own, which no budget widens.

use super::time::Nanos;

/// The interval is never widened beyond this.
pub const INTERVAL_MAX: Nanos = Nanos::from_secs(10);
/// So many ticks in a row over the budget widen the interval. A burst of starts is over sooner.
const OVER_TICKS: u32 = 5;
/// So many in a row that leave room for twice the looks narrow it again.
const ROOMY_TICKS: u32 = 30;
/// Narrowed only if twice the looks would still cost less than this part of the budget, in percent.
const ROOMY_PERCENT: u64 = 80;

/// What the agent may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// CPU time, in hundredths of one CPU.
    pub cpu_percent: u32,
    /// Resident memory, in bytes.
    pub memory_bytes: u64,
}

/// What it cost from one tick to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// CPU time of all its threads.
    pub cpu: Nanos,
    /// Within this time.
    pub within: Nanos,
    /// Resident memory at its end, in bytes.
    pub resident_bytes: u64,
}

/// What it costs too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// CPU time.
    Cpu,
    /// Memory.
    Memory,
}

impl Over {
    /// Its name in the log, the metrics and `status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Over::Cpu => "cpu",
            Over::Memory => "memory",
        }
    }
}

/// What a tick changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The interval is wider from now on, and why.
    Widened(Over),
    /// It is narrower.
    Narrowed,
}

impl Budget {
    /// Is this cost over the budget?
    #[must_use]
    pub fn exceeded_by(&self, cost: &Cost) -> Option<Over> {
        if self.memory_bytes < cost.resident_bytes {
            return Some(Over::Memory);
        }
        self.is_over(u128::from(cost.cpu.0), cost, 100).then_some(Over::Cpu)
    }

    /// Is `cpu_ns` within the cost's time above so many percent of the budget?
    fn is_over(&self, cpu_ns: u128, cost: &Cost, percent: u64) -> bool {
        u128::from(cost.within.0) * u128::from(self.cpu_percent) * u128::from(percent) < cpu_ns * 100 * 100
    }
}

/// How far the interval is widened, and what speaks for another change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// The interval is doubled so many times.
    doublings: u32,
    over_ticks: u32,
    roomy_ticks: u32,
    /// What it costs too much of, or why it was last widened; none while it is neither.
    over: Option<Over>,
}

impl Pace {
    /// The interval now, if this one is configured.
    #[must_use]
    pub fn interval(&self, configured: Nanos) -> Nanos {
        let widened = Nanos(configured.0.saturating_mul(1 << self.doublings.min(32)));
        widened.min(INTERVAL_MAX).max(configured)
    }

    /// What the agent costs too much of, or did when the interval was last widened; none once it is as configured again.
    #[must_use]
    pub fn over(&self) -> Option<Over> {
        self.over
    }

    /// Takes in what the last tick cost.
    pub fn ticked(&mut self, budget: &Budget, cost: &Cost, configured: Nanos) -> Option<Change> {
        let Some(over) = budget.exceeded_by(cost) else { return self.within(budget, cost) };
        self.roomy_ticks = 0;
        self.over_ticks += 1;
        if self.over_ticks < OVER_TICKS {
            return None;
        }
        self.over = Some(over);
        // Once at the widest there is nothing left to do.
        if INTERVAL_MAX <= self.interval(configured) {
            return None;
        }
        self.over_ticks = 0;
        self.doublings += 1;
        Some(Change::Widened(over))
    }

    fn within(&mut self, budget: &Budget, cost: &Cost) -> Option<Change> {
        self.over_ticks = 0;
        if self.doublings == 0 {
            self.over = None;
        }
        let roomy = self.doublings != 0 && !budget.is_over(2 * u128::from(cost.cpu.0), cost, ROOMY_PERCENT);
        self.roomy_ticks = if roomy { self.roomy_ticks + 1 } else { 0 };
        if self.roomy_ticks < ROOMY_TICKS {
            return None;
        }
        self.roomy_ticks = 0;
        self.doublings -= 1;
        if self.doublings == 0 {
            self.over = None;
        }
        Some(Change::Narrowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Nanos = Nanos::from_secs(1);
    const BUDGET: Budget = Budget { cpu_percent: 5, memory_bytes: 1 << 20 };

    fn cost(cpu_ms: u64) -> Cost {
        Cost { cpu: Nanos::from_millis(cpu_ms), within: SECOND, resident_bytes: 0 }
    }

    fn pace_after(ticks: u32, each: Cost) -> Pace {
        let mut pace = Pace::default();
        for _ in 0..ticks {
            let _ = pace.ticked(&BUDGET, &each, SECOND);
        }
        pace
    }

    #[test]
    fn a_cost_at_the_budget_is_within_it_and_a_nanosecond_more_is_not() {
        assert_eq!(BUDGET.exceeded_by(&cost(50)), None);
        assert_eq!(BUDGET.exceeded_by(&Cost { cpu: Nanos(50_000_001), ..cost(0) }), Some(Over::Cpu));
        assert_eq!(BUDGET.exceeded_by(&Cost { resident_bytes: (1 << 20) + 1, ..cost(0) }), Some(Over::Memory));
    }

    #[test]
    fn an_interval_that_cannot_be_widened_does_not_hide_what_costs_too_much() {
        let mut pace = Pace::default();
        for _ in 0..OVER_TICKS {
            assert_eq!(pace.ticked(&BUDGET, &cost(90), INTERVAL_MAX), None);
        }
        assert_eq!((pace.over(), pace.interval(INTERVAL_MAX)), (Some(Over::Cpu), INTERVAL_MAX));
        assert_eq!((pace.ticked(&BUDGET, &cost(10), INTERVAL_MAX), pace.over()), (None, None));
    }

    #[test]
    fn only_several_ticks_in_a_row_widen_the_interval_and_never_beyond_ten_seconds() {
        assert_eq!(pace_after(OVER_TICKS - 1, cost(60)).interval(SECOND), SECOND);
        assert_eq!(pace_after(OVER_TICKS, cost(60)).interval(SECOND), Nanos::from_secs(2));
        assert_eq!(pace_after(10_000, cost(60)).interval(SECOND), INTERVAL_MAX);
        let mut pace = pace_after(OVER_TICKS - 1, cost(60));
        assert_eq!(pace.ticked(&BUDGET, &cost(40), SECOND), None);
        assert_eq!(pace.ticked(&BUDGET, &cost(60), SECOND), None, "the row was broken");
    }

    #[test]
    fn it_narrows_again_only_where_twice_the_looks_leave_room() {
        let mut pace = pace_after(OVER_TICKS, cost(60));
        assert_eq!(pace.over(), Some(Over::Cpu));
        for _ in 0..1_000 {
            assert_eq!(pace.ticked(&BUDGET, &cost(21), SECOND), None, "42 of 50 would be too near");
        }
        let changes: Vec<Change> = (0..ROOMY_TICKS).filter_map(|_| pace.ticked(&BUDGET, &cost(20), SECOND)).collect();
        assert_eq!(changes, [Change::Narrowed]);
        assert_eq!((pace.interval(SECOND), pace.over()), (SECOND, None));
    }

    #[test]
    fn a_configured_interval_of_ten_seconds_is_left_alone() {
        let mut pace = Pace::default();
        let wide = Nanos::from_secs(10);
        assert!((0..100).all(|_| pace.ticked(&BUDGET, &cost(900), wide).is_none()));
        assert_eq!(pace.interval(wide), wide);
    }

    proptest! {
        #[test]
        fn the_interval_stays_between_the_configured_one_and_the_widest(
            configured_ms in 100_u64..=10_000,
            costs in prop::collection::vec((0_u64..200, 1_u64..12_000, 0_u64..2 << 20), 0..400),
        ) {
            let configured = Nanos::from_millis(configured_ms);
            let mut pace = Pace::default();
            for (cpu, within, resident_bytes) in costs {
                let before = pace.interval(configured);
                let each = Cost { cpu: Nanos::from_millis(cpu), within: Nanos::from_millis(within), resident_bytes };
                let change = pace.ticked(&BUDGET, &each, configured);
                let after = pace.interval(configured);
                prop_assert!(configured <= after && after <= INTERVAL_MAX.max(configured));
                match change {
                    None => prop_assert_eq!(before, after),
                    Some(Change::Widened(over)) => prop_assert!(before < after && BUDGET.exceeded_by(&each) == Some(over)),
                    Some(Change::Narrowed) => prop_assert!(after < before && BUDGET.exceeded_by(&each).is_none()),
                }
                // One that is configured at the widest cannot be widened, and what costs too much is told all the same.
                prop_assert!(pace.over().is_some() == (configured < after) || INTERVAL_MAX <= configured);
            }
        }

        /// A load that costs the same for each look, whatever the interval, ends at one interval and stays there.
        #[test]
        fn a_steady_load_does_not_make_it_go_to_and_fro(look_ms in 1_u64..2_000) {
            let mut pace = Pace::default();
            let mut last = Vec::new();
            for tick in 0..2_000 {
                let within = pace.interval(SECOND);
                let _ = pace.ticked(&BUDGET, &Cost { cpu: Nanos::from_millis(look_ms), within, resident_bytes: 0 }, SECOND);
                if 1_000 <= tick {
                    last.push(pace.interval(SECOND));
                }
            }
            last.dedup();
            prop_assert_eq!(last.len(), 1);
        }
    }
}
