//! How far the agent goes against a job without credit.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How far the agent goes; each step includes the ones before. Where node and account differ, the lesser holds.
/// The order is the journal's format: append only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Enforcement {
    /// Meter, rate and record what would have been done.
    #[default]
    Observe,
    /// Warn as well.
    Notify,
    /// Freeze, terminate and kill as well.
    Enforce,
}

impl Enforcement {
    /// Every step, the least first.
    pub const ALL: [Enforcement; 3] = [Enforcement::Observe, Enforcement::Notify, Enforcement::Enforce];

    /// Its name in files, JSON and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Enforcement::Observe => "observe",
            Enforcement::Notify => "notify",
            Enforcement::Enforce => "enforce",
        }
    }
}

impl fmt::Display for Enforcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observing_is_the_least_and_the_default() {
        assert_eq!(Enforcement::default(), Enforcement::Observe);
        assert!(Enforcement::ALL.is_sorted());
        for mode in Enforcement::ALL {
            assert_eq!(serde_json::to_value(mode).unwrap(), mode.name());
        }
    }
}
