//! The units that a price may be stated in.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::domain::usage::Meter;

/// A stated unit, such as `core-hour` or `GiB-day`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Unit {
    /// One CPU for a while: `core-hour`.
    Core(Span),
    /// An amount of memory for a while: `GiB-hour`.
    Memory(Size, Span),
    /// One device for a while: `gpu-hour`.
    Gpu(Span),
    /// A while: `hour`.
    Time(Span),
    /// One start of a job: `start`.
    Start,
    /// An amount of storage for a month: `GB-month`. How long a month is says the line.
    Month(Size),
    /// An amount that was read or written: `GB`.
    Bytes(Size),
    /// An amount of energy: `kWh`.
    Energy(Energy),
    /// One of what a hook counts: `count`.
    Count,
    /// One event that a hook reports: `event`.
    Event,
}

/// An amount of energy in a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Energy {
    /// 1,000 millijoules.
    Joule,
    /// 3,600 joules.
    Wh,
    /// 1,000 Wh.
    Kwh,
    /// 1,000 kWh.
    Mwh,
}

/// A length of time in a unit. A day has 24 hours: a card knows no calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Span {
    /// 1 s.
    Second,
    /// 60 s.
    Minute,
    /// 3,600 s.
    Hour,
    /// 86,400 s.
    Day,
}

/// An amount of memory in a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Size {
    /// 10^6 bytes.
    Mb,
    /// 10^9 bytes.
    Gb,
    /// 10^12 bytes.
    Tb,
    /// 2^20 bytes.
    Mib,
    /// 2^30 bytes.
    Gib,
    /// 2^40 bytes.
    Tib,
}

impl Span {
    /// Every length, the shortest first.
    pub const ALL: [Span; 4] = [Span::Second, Span::Minute, Span::Hour, Span::Day];

    const fn name(self) -> &'static str {
        match self {
            Span::Second => "second",
            Span::Minute => "minute",
            Span::Hour => "hour",
            Span::Day => "day",
        }
    }

    const fn ns(self) -> u128 {
        let seconds = match self {
            Span::Second => 1,
            Span::Minute => 60,
            Span::Hour => 3_600,
            Span::Day => 86_400,
        };
        seconds * 1_000_000_000
    }
}

impl Size {
    /// Every size.
    pub const ALL: [Size; 6] = [Size::Mb, Size::Gb, Size::Tb, Size::Mib, Size::Gib, Size::Tib];

    const fn name(self) -> &'static str {
        match self {
            Size::Mb => "MB",
            Size::Gb => "GB",
            Size::Tb => "TB",
            Size::Mib => "MiB",
            Size::Gib => "GiB",
            Size::Tib => "TiB",
        }
    }

    const fn bytes(self) -> u128 {
        match self {
            Size::Mb => 1_000_000,
            Size::Gb => 1_000_000_000,
            Size::Tb => 1_000_000_000_000,
            Size::Mib => 1 << 20,
            Size::Gib => 1 << 30,
            Size::Tib => 1 << 40,
        }
    }
}

impl Energy {
    /// Every amount.
    pub const ALL: [Energy; 4] = [Energy::Joule, Energy::Wh, Energy::Kwh, Energy::Mwh];

    const fn name(self) -> &'static str {
        match self {
            Energy::Joule => "J",
            Energy::Wh => "Wh",
            Energy::Kwh => "kWh",
            Energy::Mwh => "MWh",
        }
    }

    const fn mj(self) -> u128 {
        match self {
            Energy::Joule => 1_000,
            Energy::Wh => 3_600_000,
            Energy::Kwh => 3_600_000_000,
            Energy::Mwh => 3_600_000_000_000,
        }
    }
}

impl Unit {
    /// Every unit that prices a meter, in the order in which a hint lists them.
    #[must_use]
    pub fn of(meter: Meter) -> Vec<Unit> {
        let memory = || Size::ALL.into_iter().flat_map(|size| Span::ALL.map(|span| Unit::Memory(size, span)));
        match meter {
            Meter::CpuTime => Span::ALL.map(Unit::Core).to_vec(),
            Meter::MemoryCharged | Meter::MemoryAnon | Meter::GpuMemory => memory().collect(),
            Meter::Storage => memory().chain(Size::ALL.map(Unit::Month)).collect(),
            Meter::IoBytes => Size::ALL.map(Unit::Bytes).to_vec(),
            Meter::Energy => Energy::ALL.map(Unit::Energy).to_vec(),
            Meter::Counter => vec![Unit::Count],
            Meter::Events => vec![Unit::Event],
            Meter::GpuHeld | Meter::GpuBusy => Span::ALL.map(Unit::Gpu).to_vec(),
            Meter::WallTime => Span::ALL.map(Unit::Time).to_vec(),
            Meter::JobStarts => vec![Unit::Start],
        }
    }

    /// Can this unit price that meter?
    #[must_use]
    pub const fn prices(self, meter: Meter) -> bool {
        matches!(
            (self, meter),
            (Unit::Core(_), Meter::CpuTime)
                | (Unit::Memory(..), Meter::MemoryCharged | Meter::MemoryAnon | Meter::GpuMemory | Meter::Storage)
                | (Unit::Month(_), Meter::Storage)
                | (Unit::Bytes(_), Meter::IoBytes)
                | (Unit::Energy(_), Meter::Energy)
                | (Unit::Count, Meter::Counter)
                | (Unit::Event, Meter::Events)
                | (Unit::Gpu(_), Meter::GpuHeld | Meter::GpuBusy)
                | (Unit::Time(_), Meter::WallTime)
                | (Unit::Start, Meter::JobStarts)
        )
    }

    /// How many of the meter's base units (nanoseconds, byte-nanoseconds, millijoules, starts) make one of these, a month being so many
    /// nanoseconds. At most 2^92.
    #[must_use]
    pub const fn base(self, month_ns: u128) -> u128 {
        match self {
            Unit::Core(span) | Unit::Gpu(span) | Unit::Time(span) => span.ns(),
            Unit::Memory(size, span) => size.bytes() * span.ns(),
            Unit::Month(size) => size.bytes() * month_ns,
            Unit::Bytes(size) => size.bytes(),
            Unit::Energy(energy) => energy.mj(),
            Unit::Start | Unit::Count | Unit::Event => 1,
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unit::Core(span) => write!(f, "core-{}", span.name()),
            Unit::Memory(size, span) => write!(f, "{}-{}", size.name(), span.name()),
            Unit::Gpu(span) => write!(f, "gpu-{}", span.name()),
            Unit::Time(span) => f.write_str(span.name()),
            Unit::Start => f.write_str("start"),
            Unit::Month(size) => write!(f, "{}-month", size.name()),
            Unit::Bytes(size) => f.write_str(size.name()),
            Unit::Energy(energy) => f.write_str(energy.name()),
            Unit::Count => f.write_str("count"),
            Unit::Event => f.write_str("event"),
        }
    }
}

/// A text that names no unit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a unit")]
pub struct UnitError(String);

impl FromStr for Unit {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Unit, UnitError> {
        Meter::ALL
            .into_iter()
            .flat_map(Unit::of)
            .find(|unit| unit.to_string() == text)
            .ok_or_else(|| UnitError(text.chars().take(32).collect()))
    }
}

impl TryFrom<String> for Unit {
    type Error = UnitError;

    fn try_from(text: String) -> Result<Unit, UnitError> {
        text.parse()
    }
}

impl From<Unit> for String {
    fn from(unit: Unit) -> String {
        unit.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_reads_back_and_prices_the_meters_that_list_it() {
        for meter in Meter::ALL {
            for unit in Unit::of(meter) {
                assert_eq!(unit.to_string().parse(), Ok(unit));
                for other in Meter::ALL {
                    assert_eq!(unit.prices(other), Unit::of(other).contains(&unit), "{unit} {other}");
                }
            }
        }
        assert!("core-hours".parse::<Unit>().is_err());
    }

    #[test]
    fn a_unit_holds_as_many_base_units_as_its_name_says() {
        let base = |text: &str| text.parse::<Unit>().unwrap().base(30 * 86_400_000_000_000);
        assert_eq!(base("core-hour"), 3_600_000_000_000);
        assert_eq!(base("GiB-hour"), 1_073_741_824 * 3_600_000_000_000);
        assert_eq!(base("GB-second"), 1_000_000_000 * 1_000_000_000);
        assert_eq!(base("gpu-day"), 86_400_000_000_000);
        assert_eq!(base("minute"), 60_000_000_000);
        assert_eq!(base("start"), 1);
        assert_eq!(base("GB-month"), 1_000_000_000 * 2_592_000_000_000_000);
        assert_eq!(base("MiB"), 1 << 20);
        assert_eq!((base("J"), base("kWh")), (1_000, 3_600_000_000));
        assert!(base("TiB-day") < 1 << 87);
    }
}
