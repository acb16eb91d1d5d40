//! Instants as values. No clock is read here: the time is always an argument.
//!
//! Usage runs on [`Mono`] (a suspended machine runs nothing), the validity of a grant on [`Boot`] (time asleep counts),
//! and [`Wall`] is a label for people and for the effective dates of rate cards: it is never subtracted to bill.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A length of time in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Nanos(pub u64);

impl Nanos {
    /// A length given in whole seconds.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Nanos {
        Nanos(secs.saturating_mul(1_000_000_000))
    }

    /// A length given in milliseconds.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Nanos {
        Nanos(millis.saturating_mul(1_000_000))
    }

    /// Whole milliseconds, rounded down.
    #[must_use]
    pub const fn millis(self) -> u64 {
        self.0 / 1_000_000
    }
}

impl fmt::Display for Nanos {
    /// Seconds with a millisecond's precision, as in `12.345 s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{:03} s", self.0 / 1_000_000_000, self.0 / 1_000_000 % 1_000))
    }
}

/// Nanoseconds on `CLOCK_MONOTONIC`. Means nothing in another boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mono(pub u64);

/// Nanoseconds on `CLOCK_BOOTTIME`: like [`Mono`], and runs while the machine is suspended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Boot(pub u64);

/// Milliseconds since 1970 UTC on the wall clock. A label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Wall(pub u64);

impl Mono {
    /// The length from `earlier` to here; zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Mono) -> Nanos {
        Nanos(self.0.saturating_sub(earlier.0))
    }

    /// This instant, moved on.
    #[must_use]
    pub const fn plus(self, length: Nanos) -> Mono {
        Mono(self.0.saturating_add(length.0))
    }
}

impl Boot {
    /// Whole milliseconds, rounded down.
    #[must_use]
    pub const fn millis(self) -> u64 {
        Nanos(self.0).millis()
    }

    /// This instant, moved on.
    #[must_use]
    pub const fn plus(self, length: Nanos) -> Boot {
        Boot(self.0.saturating_add(length.0))
    }

    /// The length from `earlier` to here; zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Boot) -> Nanos {
        Nanos(self.0.saturating_sub(earlier.0))
    }
}

/// All three clocks, read together: the one time argument.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Now {
    /// For lengths of use.
    pub mono: Mono,
    /// For the validity of grants.
    pub boot: Boot,
    /// For people.
    pub wall: Wall,
}
