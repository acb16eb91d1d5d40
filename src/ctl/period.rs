//! Spans of time as people name them. Days and months are those of UTC, as on receipts and in the ledger.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};

use crate::domain::report::{DAY_MS, Span};
use crate::domain::time::Wall;

const HOUR_MS: u64 = 3_600_000;

/// A span, not yet placed in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Period {
    /// The month that it is.
    Month,
    /// The one before.
    LastMonth,
    /// The day that it is.
    Today,
    /// So many days, up to now.
    Days(u64),
    /// That month: its first day.
    Named(Date),
    /// From the beginning of a day up to the end of another.
    Dates(Date, Date),
    /// That hour of that day.
    Hour(Date, u64),
}

/// Reads `month`, `last-month`, `today`, `7d`, `2026-03`, `2026-03-01..2026-03-14` or `2026-03-01T10`.
pub(super) fn period(text: &str) -> Result<Period, String> {
    let wrong = || {
        format!(
            "{text:?} is no period: write month, last-month, today, 14d, 2026-03, 2026-03-01..2026-03-14 (both days included) or an hour as 2026-03-01T10"
        )
    };
    let date = |text: &str| text.parse::<Date>().map_err(|_| wrong());
    if let Some((from, to)) = text.split_once("..") {
        let (from, to) = (date(from)?, date(to)?);
        return if from <= to { Ok(Period::Dates(from, to)) } else { Err(wrong()) };
    }
    if let Some((day, hour)) = text.split_once('T') {
        let hour = hour.parse::<u64>().ok().filter(|hour| *hour < 24 && text.len() == "2026-03-01T10".len()).ok_or_else(wrong)?;
        return Ok(Period::Hour(date(day)?, hour));
    }
    let days = text.strip_suffix('d').and_then(|days| days.parse::<u64>().ok()).filter(|days| (1..=3_660).contains(days));
    match text {
        "month" => Ok(Period::Month),
        "last-month" => Ok(Period::LastMonth),
        "today" => Ok(Period::Today),
        _ => match days {
            Some(days) => Ok(Period::Days(days)),
            None => date(&format!("{text}-01")).map(Period::Named),
        },
    }
}

impl Period {
    /// Where it lies, seen from now.
    pub(super) fn span(&self, now: Wall) -> Span {
        match self {
            Period::Month => month_of(now),
            Period::LastMonth => month_of(Wall(month_of(now).from.0.saturating_sub(1))),
            Period::Today => {
                let from = Wall(now.0 / DAY_MS * DAY_MS);
                Span { from, to: Wall(from.0 + DAY_MS) }
            }
            Period::Days(days) => Span::days(*days, now),
            Period::Named(first) => month(*first),
            Period::Hour(day, hour) => {
                let from = Wall(midnight(*day).0 + hour * HOUR_MS);
                Span { from, to: Wall(from.0 + HOUR_MS) }
            }
            Period::Dates(from, to) => Span { from: midnight(*from), to: Wall(midnight(*to).0.saturating_add(DAY_MS)) },
        }
    }
}

/// The calendar month that an instant is in.
pub(super) fn month_of(at: Wall) -> Span {
    let millis = i64::try_from(at.0).unwrap_or(i64::MAX);
    let date = Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX).to_zoned(TimeZone::UTC).date();
    month(date.first_of_month())
}

fn month(first: Date) -> Span {
    let next = first.checked_add(1.month()).unwrap_or(Date::MAX);
    Span { from: midnight(first), to: midnight(next) }
}

fn midnight(date: Date) -> Wall {
    let millis = date.to_zoned(TimeZone::UTC).map_or(0, |zoned| zoned.timestamp().as_millisecond());
    Wall(u64::try_from(millis).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::receipt::{instant, rfc3339};

    #[test]
    fn a_period_is_placed_in_utc() {
        let now = instant("2026-03-10T12:00:00Z").unwrap();
        let told = |text: &str| {
            let Span { from, to } = period(text).unwrap().span(now);
            (rfc3339(from), rfc3339(to))
        };
        let at = |from: &str, to: &str| (format!("{from}.000Z"), format!("{to}.000Z"));
        assert_eq!(told("month"), at("2026-03-01T00:00:00", "2026-04-01T00:00:00"));
        assert_eq!(told("last-month"), at("2026-02-01T00:00:00", "2026-03-01T00:00:00"));
        assert_eq!(told("2024-02"), at("2024-02-01T00:00:00", "2024-03-01T00:00:00"));
        assert_eq!(told("2026-12"), at("2026-12-01T00:00:00", "2027-01-01T00:00:00"));
        assert_eq!(told("today"), at("2026-03-10T00:00:00", "2026-03-11T00:00:00"));
        assert_eq!(told("7d"), at("2026-03-03T12:00:00", "2026-03-10T12:00:00"));
        assert_eq!(told("2026-03-01..2026-03-01"), at("2026-03-01T00:00:00", "2026-03-02T00:00:00"));
        assert_eq!(told("2026-03-01T00"), at("2026-03-01T00:00:00", "2026-03-01T01:00:00"));
        assert_eq!(told("2026-03-01T23"), at("2026-03-01T23:00:00", "2026-03-02T00:00:00"));
        for bad in [
            "2026-03-01T24",
            "2026-03-01T1",
            "2026-03-01T",
            "T10",
            "",
            "d",
            "0d",
            "-1d",
            "2026",
            "2026-13",
            "2026-03-02..2026-03-01",
            "yesterday",
            "7 d",
        ] {
            assert!(period(bad).is_err(), "{bad}");
        }
    }
}
