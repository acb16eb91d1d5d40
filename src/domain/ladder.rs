//! The ladder against jobs without credit, as its owners set it: when to warn and by which signal, whom to stop first, how long to
//! stand still and what comes then, how many accounts at once, and whom never. What it comes to for a job is told by the state alone:
//! [`super::agent::Agent::restraint`].

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::id::{AccountId, Uid};
use super::money::Credits;
use super::time::{Mono, Nanos};
use super::wire::OnExhaustion;

/// Most thresholds of warnings.
pub const THRESHOLDS_MAX: usize = 4;

/// How long before the expected end the warnings come: the longest first, each once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Vec<Nanos>", into = "Vec<Nanos>")]
pub struct Thresholds([Nanos; THRESHOLDS_MAX]);

/// More thresholds than [`THRESHOLDS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at most {THRESHOLDS_MAX} thresholds")]
pub struct TooMany;

impl Thresholds {
    /// One, or none if it is 0.
    #[must_use]
    pub fn one(threshold: Nanos) -> Thresholds {
        let mut all = [Nanos(0); THRESHOLDS_MAX];
        all[0] = threshold;
        Thresholds(all)
    }

    /// They, the longest first.
    pub fn iter(&self) -> impl Iterator<Item = Nanos> + '_ {
        self.0.iter().copied().filter(|threshold| *threshold != Nanos(0))
    }

    /// The first to come.
    #[must_use]
    pub fn longest(&self) -> Option<Nanos> {
        self.iter().next()
    }

    /// The shortest one that is above what the credit lasts for.
    #[must_use]
    pub fn reached(&self, lasts: Nanos) -> Option<Nanos> {
        self.iter().filter(|threshold| lasts < *threshold).last()
    }
}

impl TryFrom<Vec<Nanos>> for Thresholds {
    type Error = TooMany;

    fn try_from(mut wanted: Vec<Nanos>) -> Result<Thresholds, TooMany> {
        wanted.retain(|threshold| *threshold != Nanos(0));
        wanted.sort_unstable_by(|one, other| other.cmp(one));
        wanted.dedup();
        if THRESHOLDS_MAX < wanted.len() {
            return Err(TooMany);
        }
        let mut all = [Nanos(0); THRESHOLDS_MAX];
        all[..wanted.len()].copy_from_slice(&wanted);
        Ok(Thresholds(all))
    }
}

impl From<Thresholds> for Vec<Nanos> {
    fn from(thresholds: Thresholds) -> Vec<Nanos> {
        thresholds.iter().collect()
    }
}

/// What comes when a job has stood still for the account's `freeze_ttl`. The order is the journal's format: append only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Then {
    /// It is asked to end, and ended after the grace.
    #[default]
    Terminate,
    /// It is ended.
    Kill,
}

/// In which order the jobs of an account stop while its credit runs short. The order is the journal's format: append only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Victims {
    /// All at zero.
    #[default]
    Together,
    /// The last one started first; the oldest runs to zero.
    NewestFirst,
    /// The first one started first.
    OldestFirst,
    /// The one that has cost the most per second of its life first.
    DearestFirst,
}

/// A signal that warns. By default most of them end a process that does not await them, so none is sent unless somebody asks for it.
/// The order is the journal's format: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum WarnSignal {
    /// SIGUSR1
    Usr1,
    /// SIGUSR2
    Usr2,
    /// SIGTERM
    Term,
    /// SIGINT
    Int,
    /// SIGHUP
    Hup,
    /// SIGURG: ignored by whoever does not await it.
    Urg,
}

impl WarnSignal {
    /// Their names in files, bodies and on the command line.
    pub const ALL: [(&'static str, WarnSignal); 6] = [
        ("USR1", WarnSignal::Usr1),
        ("USR2", WarnSignal::Usr2),
        ("TERM", WarnSignal::Term),
        ("INT", WarnSignal::Int),
        ("HUP", WarnSignal::Hup),
        ("URG", WarnSignal::Urg),
    ];

    /// Its name, without `SIG`.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, signal)| *signal == self).map_or("URG", |(name, _)| name)
    }
}

/// What a job's own starter wants done with it. It can only be stricter than its account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobPolicy {
    /// At zero; [`OnExhaustion::Terminate`] or [`OnExhaustion::Kill`].
    pub on_exhaustion: Option<OnExhaustion>,
    /// The signal that warns this job.
    pub warn_signal: Option<WarnSignal>,
}

/// At most so many accounts in a window of time: beyond them an operator is asked. A mistake upstream must not stop a whole node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blast {
    /// Whose jobs are frozen; no limit if none: a freeze can be undone.
    pub freeze_accounts: Option<u32>,
    /// Whose jobs are terminated or killed.
    pub end_accounts: Option<u32>,
    /// The window.
    pub window: Nanos,
}

impl Default for Blast {
    fn default() -> Blast {
        Blast { freeze_accounts: None, end_accounts: Some(8), window: Nanos::from_secs(600) }
    }
}

/// What may be done to an account's jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// They may be frozen.
    Freeze,
    /// They may be terminated or killed.
    End,
}

impl Blast {
    /// How many accounts in a window.
    #[must_use]
    pub fn limit(&self, rung: Rung) -> Option<u32> {
        match rung {
            Rung::Freeze => self.freeze_accounts,
            Rung::End => self.end_accounts,
        }
    }
}

/// Who is metered and rated, and never warned, frozen or ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exempt {
    /// All jobs of these accounts.
    pub accounts: BTreeSet<AccountId>,
    /// All jobs of these users.
    pub uids: BTreeSet<Uid>,
}

impl Exempt {
    /// Is this job one of them?
    #[must_use]
    pub fn holds(&self, account: &AccountId, owner: Uid) -> bool {
        self.accounts.contains(account) || self.uids.contains(&owner)
    }
}

/// What the node's configuration says of the ladder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ladder {
    /// Whom never.
    pub exempt: Exempt,
    /// How many accounts at once.
    pub blast: Blast,
    /// By which signal to warn jobs that ask for none.
    pub warn_signal: Option<WarnSignal>,
}

/// An account's last warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warned {
    /// When.
    pub at: Mono,
    /// At which threshold.
    pub before: Nanos,
    /// What was left then, here and free at the authority: a warning is lifted when there is more.
    pub left: Credits,
}

/// A job that stands still so that others of its account can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Victim {
    /// Since.
    pub at: Mono,
    /// What it used per second, as far as known: it may go on when there is enough for that too.
    pub burn_per_s: Credits,
}

/// How often an account ran empty again right after it was funded. A thaw then waits, longer each time: credit that comes in drops, or
/// an authority that answers late, must not make jobs flap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flaps {
    /// In a row.
    pub count: u32,
    /// When it was last funded.
    pub funded_at: Option<Mono>,
}

/// An account that runs empty this soon after it was funded flaps.
const FLAPS_WITHIN: Nanos = Nanos::from_secs(10);
/// How long the thaw waits at the second flap; it doubles with each. The first may be chance.
const THAW_WAITS: Nanos = Nanos::from_secs(1);
/// The longest wait.
const THAW_WAITS_MAX: Nanos = Nanos::from_secs(30);

impl Flaps {
    /// The account ran empty.
    pub fn emptied(&mut self, at: Mono) {
        let soon = self.funded_at.is_some() && at.since(self.thaw_from()) < FLAPS_WITHIN;
        self.count = if soon { self.count.saturating_add(1) } else { 0 };
    }

    /// It is funded.
    pub fn funded(&mut self, at: Mono) {
        self.funded_at = Some(at);
    }

    /// From when on its jobs may be thawed.
    #[must_use]
    pub fn thaw_from(&self) -> Mono {
        let waits = match self.count {
            0 | 1 => Nanos(0),
            count => Nanos(THAW_WAITS.0.saturating_mul(1 << (count - 2).min(16))).min(THAW_WAITS_MAX),
        };
        self.funded_at.unwrap_or_default().plus(waits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Nanos = Nanos::from_secs;

    #[test]
    fn thresholds_are_sorted_without_zeros_and_repeats() {
        let thresholds = Thresholds::try_from(vec![S(60), S(600), S(0), S(60)]).unwrap();
        assert_eq!(Vec::from(thresholds), [S(600), S(60)]);
        assert_eq!(Thresholds::try_from((1..=5).map(S).collect::<Vec<_>>()), Err(TooMany));
    }

    #[test]
    fn the_shortest_threshold_reached_is_the_one_that_counts() {
        let thresholds = Thresholds::try_from(vec![S(600), S(60)]).unwrap();
        let reached = |lasts| thresholds.reached(S(lasts));
        assert_eq!((reached(600), reached(599), reached(60), reached(59)), (None, Some(S(600)), Some(S(600)), Some(S(60))));
    }

    #[test]
    fn the_first_thaws_come_at_once_and_those_of_one_that_flaps_later_each_time() {
        let (mut flaps, mut now, mut waits) = (Flaps::default(), Mono(0), Vec::new());
        for _ in 0..9 {
            flaps.emptied(now);
            now = now.plus(S(1));
            flaps.funded(now);
            waits.push(flaps.thaw_from().since(now).0 / 1_000_000_000);
            now = flaps.thaw_from().plus(S(1));
        }
        assert_eq!(waits, [0, 0, 1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn who_ran_on_for_a_while_does_not_flap() {
        let mut flaps = Flaps { count: 5, funded_at: Some(Mono(0)) };
        flaps.emptied(flaps.thaw_from().plus(FLAPS_WITHIN));
        assert_eq!(flaps.count, 0);
    }
}
