//! What the authority itself does for an account, beside what its nodes do: in which unit it is shown, when it is refilled, when somebody is
//! told, what it is given each month, and what becomes of its storage at zero.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::unit::Unit;
use crate::domain::money::Credits;
use crate::domain::time::{Nanos, Wall};

/// Most thresholds of alerts, of each kind.
pub const ALERTS_MAX: usize = 8;

/// The terms of one account. Kept by the authority; nodes do not know them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Terms {
    /// In which unit its amounts are shown and may be named; credits only, if none.
    pub unit: Option<Unit>,
    /// The smallest deposit.
    pub topup_min: Credits,
    /// For how long credit that is paid in may be spent, where its payment says nothing; for ever, if none.
    #[serde(rename = "credit_lasts_ns")]
    pub credit_lasts: Option<Nanos>,
    /// Must somebody vouch for it before it may spend?
    pub verification: Verification,
    /// When somebody is told that its credit runs short.
    pub alerts: Alerts,
    /// When more is paid in by itself.
    pub refill: Option<RefillTerms>,
    /// What it is given each month.
    pub allowance: Option<Allowance>,
    /// What becomes of its storage at zero.
    pub storage: StorageAtZero,
    /// Does storage that is detached still cost? For whoever bills storage.
    pub detached_storage: DetachedStorage,
    /// What its owner has promised to use.
    pub commitment: Option<Commitment>,
}

/// Must somebody vouch for the account before it may spend?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verification {
    /// No.
    #[default]
    NotNeeded,
    /// Yes: until then nothing is granted.
    Required,
}

/// The balance's thresholds at which somebody is told, each once until the balance has been above it again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Alerts {
    /// At or below so many hundredths of the reference, 1 to 99.
    pub percents: Vec<u8>,
    /// Below so many credits.
    pub below: Vec<Credits>,
    /// What the hundredths are of; the balance after the last credit came, if none.
    pub reference: Option<Credits>,
}

/// One threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Threshold {
    /// Hundredths of the reference.
    Percent(u8),
    /// Credits.
    Below(Credits),
}

/// An automatic refill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RefillTerms {
    /// Asked for once each time the balance falls below this …
    pub below: Credits,
    /// … for so much.
    pub amount: Credits,
    /// For how long an account at zero is not called exhausted while a refill is pending.
    #[serde(rename = "wait_ns")]
    pub wait: Nanos,
}

/// Credit that is given each month, and lapses when the next is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Allowance {
    /// How much.
    pub amount: Credits,
    /// On which day of the month, 1 to 28, at midnight UTC.
    pub day: u8,
}

/// Credit that an account's owner has promised to use: given at the beginning of each period, drawn before all other credit, and lost at the
/// period's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Commitment {
    /// How much in each period.
    pub amount: Credits,
    /// How long one is.
    pub period: CommitmentPeriod,
    /// On which day of the month a monthly one begins, 1 to 28, at midnight UTC.
    pub day: u8,
    /// From when on; at once, if none.
    #[serde(rename = "starts_ms")]
    pub starts: Option<Wall>,
    /// Until when; for ever, if none.
    #[serde(rename = "ends_ms")]
    pub ends: Option<Wall>,
}

/// How long the period of a commitment is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CommitmentPeriod {
    /// To the next day of that number: the first one, and the last, may be shorter, and are given whole.
    #[default]
    Monthly,
    /// From its start to its end.
    Once,
}

impl Commitment {
    /// Until when what is given at that instant may be used; none where nothing is to be given then.
    #[must_use]
    pub fn until(&self, now: Wall) -> Option<Wall> {
        let runs = self.starts.is_none_or(|starts| starts <= now) && self.ends.is_none_or(|ends| now < ends);
        let end = match self.period {
            CommitmentPeriod::Once => self.ends,
            CommitmentPeriod::Monthly => next_day(self.day, now).map(|reset| self.ends.map_or(reset, |ends| ends.min(reset))),
        };
        end.filter(|_| runs)
    }
}

/// What becomes of an account's storage when it has nothing left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StorageAtZero {
    /// Nothing.
    #[default]
    Keep,
    /// It is made inaccessible, by the site's command.
    Detach,
}

/// Does detached storage still cost?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DetachedStorage {
    /// It does, as before.
    #[default]
    Costs,
    /// It does not.
    Free,
}

impl Allowance {
    /// The first reset after an instant; none beyond the calendar.
    #[must_use]
    pub fn next_reset(&self, after: Wall) -> Option<Wall> {
        next_day(self.day, after)
    }
}

/// The first midnight (UTC) of that day of a month after an instant; none beyond the calendar.
fn next_day(day: u8, after: Wall) -> Option<Wall> {
    let now = jiff::Timestamp::from_millisecond(i64::try_from(after.0).ok()?).ok()?;
    let date = now.to_zoned(jiff::tz::TimeZone::UTC).date();
    let day = i8::try_from(day).ok()?;
    let in_month = |year, month| {
        let midnight = jiff::civil::Date::new(year, month, day).ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
        u64::try_from(midnight.timestamp().as_millisecond()).ok().map(Wall)
    };
    let this = in_month(date.year(), date.month())?;
    match (after < this, date.month()) {
        (true, _) => Some(this),
        (false, 12) => in_month(date.year().checked_add(1)?, 1),
        (false, month) => in_month(date.year(), month + 1),
    }
}

impl Alerts {
    /// Every threshold that a balance has reached.
    pub fn reached(&self, balance: Credits, reference: Credits) -> impl Iterator<Item = Threshold> + '_ {
        let reference = self.reference.unwrap_or(reference);
        let hundredfold = balance.nano().saturating_mul(100);
        let percent = move |percent: &&u8| reference.is_positive() && hundredfold <= reference.nano().saturating_mul(i128::from(**percent));
        let percents = self.percents.iter().filter(percent).map(|percent| Threshold::Percent(*percent));
        percents.chain(self.below.iter().filter(move |below| balance < **below).map(|below| Threshold::Below(*below)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wall(text: &str) -> Wall {
        let at: jiff::Timestamp = text.parse().unwrap();
        Wall(u64::try_from(at.as_millisecond()).unwrap())
    }

    #[test]
    fn v9_the_reset_comes_at_midnight_utc_of_its_day_and_the_next_a_month_later() {
        let first = Allowance { amount: Credits::ZERO, day: 1 };
        let next = |after| first.next_reset(wall(after));
        assert_eq!(next("2026-11-26T09:00:00Z"), Some(wall("2026-12-01T00:00:00Z")));
        assert_eq!(next("2026-11-30T23:59:59.999Z"), Some(wall("2026-12-01T00:00:00Z")));
        assert_eq!(next("2026-12-01T00:00:00Z"), Some(wall("2027-01-01T00:00:00Z")), "at the reset itself the next one is meant");
        assert_eq!(next("2027-01-31T12:00:00Z"), Some(wall("2027-02-01T00:00:00Z")));
        let late = Allowance { day: 28, ..first };
        assert_eq!(late.next_reset(wall("2028-02-27T23:00:00Z")), Some(wall("2028-02-28T00:00:00Z")));
        assert_eq!(late.next_reset(wall("2028-02-28T00:00:00Z")), Some(wall("2028-03-28T00:00:00Z")));
        assert_eq!(first.next_reset(Wall(u64::MAX)), None);
    }

    #[test]
    fn percents_are_reached_at_their_value_and_absolute_ones_below_it() {
        let alerts = Alerts { percents: vec![70, 40, 10], below: vec![Credits::from_nano(10)], reference: None };
        let reached = |balance| alerts.reached(Credits::from_nano(balance), Credits::from_nano(200)).collect::<Vec<_>>();
        assert_eq!(reached(141), []);
        assert_eq!(reached(140), [Threshold::Percent(70)]);
        assert_eq!(reached(80), [Threshold::Percent(70), Threshold::Percent(40)]);
        assert_eq!(reached(10), [Threshold::Percent(70), Threshold::Percent(40), Threshold::Percent(10)]);
        assert_eq!(reached(9).last(), Some(&Threshold::Below(Credits::from_nano(10))));
        assert_eq!(alerts.reached(Credits::ZERO, Credits::ZERO).count(), 1, "nothing is a part of nothing");
    }
}
