//! What an account's owner wants its nodes to do: at zero, before zero, at a start, and while the authority is silent.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::enforcement::Enforcement;
use super::ladder::{Then, Thresholds, Victims};
use super::money::Credits;
use super::time::Nanos;

/// What the account's owner wants done; kept by the authority, followed by the node.
///
/// In the journal it stands in the middle of other records, so its first byte tells its version: see [`Stored`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct AccountPolicy {
    /// When a fresh [`super::wire::Verdict::Exhausted`] has come.
    pub on_exhaustion: OnExhaustion,
    /// Between SIGTERM and what follows it.
    #[serde(rename = "grace_ns")]
    pub grace: Nanos,
    /// How long before the expected end the warnings come.
    #[serde(rename = "warn_before_ns")]
    pub warn_before: Thresholds,
    /// A start is refused below this much free credit.
    pub start_threshold: Credits,
    /// Is a start refused if its time limit would use more than there is?
    pub start_predicted: StartPredicted,
    /// How far the agent goes against its jobs, where the node goes further.
    pub enforcement: Enforcement,
    /// How long its jobs stand still at most, if they do not for ever …
    #[serde(rename = "freeze_ttl_ns")]
    pub freeze_ttl: Option<Nanos>,
    /// … and what comes then.
    pub then: Then,
    /// Which jobs stop first …
    pub victims: Victims,
    /// … as soon as the credit lasts no longer than this.
    #[serde(rename = "victims_before_ns")]
    pub victims_before: Nanos,
    /// A start is refused if the credit would not last this long with it, all jobs at their greatest burn.
    #[serde(rename = "start_funded_ns", default)]
    pub start_funded: Option<Nanos>,
    /// When nothing is in hand and the authority has not said why.
    #[serde(default)]
    pub unreachable: Unreachable,
}

impl Default for AccountPolicy {
    fn default() -> AccountPolicy {
        AccountPolicy {
            on_exhaustion: OnExhaustion::Freeze,
            grace: Nanos::from_secs(30),
            warn_before: Thresholds::one(Nanos::from_secs(60)),
            start_threshold: Credits::ZERO,
            start_predicted: StartPredicted::Ignore,
            enforcement: Enforcement::Enforce,
            freeze_ttl: None,
            then: Then::Terminate,
            victims: Victims::Together,
            victims_before: Nanos::from_secs(300),
            start_funded: None,
            unreachable: Unreachable::Freeze,
        }
    }
}

/// What happens to an account's jobs when it has nothing left. The order is the journal's format: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnExhaustion {
    /// Frozen in place until credit arrives.
    Freeze,
    /// Frozen at zero; then thawed with SIGTERM, and killed after the grace.
    Terminate,
    /// Frozen at zero; then killed.
    Kill,
    /// They run on, and others may start; what they use is written off as unfunded.
    AllowNegative,
    /// Frozen at zero; then thawed with SIGTERM, and after the grace what has not ended stands still until credit arrives. Nothing is killed.
    Stop,
    /// They run on, and what they use is written off as unfunded; no other may start.
    RefuseNew,
}

/// Whether a start is measured against its time limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StartPredicted {
    /// Refused if expected burn times time limit exceeds the credit.
    Check,
    /// Not looked at.
    Ignore,
}

/// What happens when nothing is in hand and the authority has not said why. The order is the journal's format: append only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unreachable {
    /// Jobs stand still until it answers; none may start. None is ever ended for its silence.
    #[default]
    Freeze,
    /// Jobs run on and others may start; what they use is owed until it answers.
    RunOn,
}

impl OnExhaustion {
    /// Do jobs run on past zero?
    #[must_use]
    pub const fn runs_on(self) -> bool {
        matches!(self, OnExhaustion::AllowNegative | OnExhaustion::RefuseNew)
    }
}

/// A policy in the journal. The first four are the first version, whose first byte was [`OnExhaustion`]; the fifth is the second. Append only.
#[derive(Serialize, Deserialize)]
enum Stored {
    Freeze(First),
    Terminate(First),
    Kill(First),
    AllowNegative(First),
    Second(OnExhaustion, First, Second),
}

/// The rest of the first version.
#[derive(Serialize, Deserialize)]
struct First {
    grace: Nanos,
    warn_before: Thresholds,
    start_threshold: Credits,
    start_predicted: StartPredicted,
    enforcement: Enforcement,
    freeze_ttl: Option<Nanos>,
    then: Then,
    victims: Victims,
    victims_before: Nanos,
}

/// What the second version has beside it.
#[derive(Serialize, Deserialize)]
struct Second {
    start_funded: Option<Nanos>,
    unreachable: Unreachable,
}

impl From<AccountPolicy> for Stored {
    fn from(policy: AccountPolicy) -> Stored {
        let first = First {
            grace: policy.grace,
            warn_before: policy.warn_before,
            start_threshold: policy.start_threshold,
            start_predicted: policy.start_predicted,
            enforcement: policy.enforcement,
            freeze_ttl: policy.freeze_ttl,
            then: policy.then,
            victims: policy.victims,
            victims_before: policy.victims_before,
        };
        Stored::Second(policy.on_exhaustion, first, Second { start_funded: policy.start_funded, unreachable: policy.unreachable })
    }
}

impl From<Stored> for AccountPolicy {
    fn from(stored: Stored) -> AccountPolicy {
        let before = Second { start_funded: None, unreachable: Unreachable::Freeze };
        let (on_exhaustion, first, second) = match stored {
            Stored::Freeze(first) => (OnExhaustion::Freeze, first, before),
            Stored::Terminate(first) => (OnExhaustion::Terminate, first, before),
            Stored::Kill(first) => (OnExhaustion::Kill, first, before),
            Stored::AllowNegative(first) => (OnExhaustion::AllowNegative, first, before),
            Stored::Second(on_exhaustion, first, second) => (on_exhaustion, first, second),
        };
        AccountPolicy {
            on_exhaustion,
            grace: first.grace,
            warn_before: first.warn_before,
            start_threshold: first.start_threshold,
            start_predicted: first.start_predicted,
            enforcement: first.enforcement,
            freeze_ttl: first.freeze_ttl,
            then: first.then,
            victims: first.victims,
            victims_before: first.victims_before,
            start_funded: second.start_funded,
            unreachable: second.unreachable,
        }
    }
}

impl Serialize for AccountPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { AccountPolicy::serialize(self, serializer) } else { Stored::from(*self).serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for AccountPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<AccountPolicy, D::Error> {
        if deserializer.is_human_readable() {
            AccountPolicy::deserialize(deserializer)
        } else {
            Stored::deserialize(deserializer).map(AccountPolicy::from)
        }
    }
}

#[cfg(test)]
mod tests;
