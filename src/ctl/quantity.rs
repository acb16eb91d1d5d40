//! Lengths of time and amounts of memory, as people write and read them.

use crate::domain::time::Nanos;

/// Reads a length: `90` (seconds), `90s`, `15m`, `2h`, `1d`, or several in a row as in `1h30m`.
///
/// # Errors
/// What it is not, and how one is written.
pub fn length(text: &str) -> Result<Nanos, String> {
    let wrong = || format!("{text:?} is not a length of time: write 90s, 15m, 2h, 1d or 1h30m");
    let mut seconds: u64 = 0;
    let mut rest = text;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit_end = digits + rest[digits..].chars().next().map_or(0, char::len_utf8);
        let unit = match &rest[digits..unit_end] {
            "" | "s" => 1,
            "m" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => return Err(wrong()),
        };
        seconds = number.checked_mul(unit).and_then(|more| seconds.checked_add(more)).ok_or_else(wrong)?;
        rest = &rest[unit_end..];
    }
    if seconds == 0 { Err(wrong()) } else { Ok(Nanos::from_secs(seconds)) }
}

/// Reads a length, or none: `0` or `0s`.
///
/// # Errors
/// What it is not, and how one is written.
pub fn length_or_none(text: &str) -> Result<Nanos, String> {
    if matches!(text, "0" | "0s") { Ok(Nanos::from_secs(0)) } else { length(text) }
}

/// Reads an amount of memory: bytes, or with a unit: `kB`, `MB`, `GB`, `TB` (powers of 1,000) or `KiB`, `MiB`, `GiB`, `TiB` (of 1,024).
///
/// # Errors
/// What it is not, and how one is written.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not an amount of memory: write 4GiB, 512MiB or 4GB");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let unit: u64 = match text[digits..].trim_start() {
        "" | "B" => 1,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).filter(|bytes| 0 < *bytes).ok_or_else(wrong)
}

/// The same of storage, of which there may be none: `0`.
pub(super) fn storage(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { bytes(text) }
}

/// A length for people, its two greatest parts: `2d 3h`, `1h 05m`, `12m 07s`, `3.250 s`.
pub(super) fn show_length(length: Nanos) -> String {
    let seconds = length.0 / 1_000_000_000;
    match seconds {
        86_400.. => format!("{}d {:02}h", seconds / 86_400, seconds / 3_600 % 24),
        3_600.. => format!("{}h {:02}m", seconds / 3_600, seconds / 60 % 60),
        60.. => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => length.to_string(),
    }
}

/// A length that is known in whole seconds.
pub(super) fn show_seconds(seconds: u64) -> String {
    if seconds < 60 { format!("{seconds} s") } else { show_length(Nanos::from_secs(seconds)) }
}

/// A length of 128 bits, as receipts have them.
pub(super) fn show_wide_length(ns: u128) -> String {
    show_length(Nanos(u64::try_from(ns).unwrap_or(u64::MAX)))
}

/// An amount of memory for people: `512 B`, `4.0 GiB`.
pub(super) fn show_bytes(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = UNITS.into_iter().find(|(_, shift)| 1 << shift <= bytes);
    unit.map_or_else(
        || format!("{bytes} B"),
        |(name, shift)| {
            let tenths = (u128::from(bytes) * 10) >> shift;
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lengths_are_read_as_people_write_them() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("15m", 900), ("2h", 7_200), ("1d", 86_400), ("1h30m", 5_400)] {
            assert_eq!(length(text), Ok(Nanos::from_secs(seconds)), "{text}");
        }
        for bad in ["", "0", "h", "2 h", "-1", "1.5h", "1y", "99999999999999999999", "2hé"] {
            assert!(length(bad).is_err(), "{bad}");
            assert_eq!(length_or_none(bad), if bad == "0" { Ok(Nanos(0)) } else { length(bad) }, "{bad}");
        }
    }

    #[test]
    fn a_gigabyte_is_not_a_gibibyte() {
        assert_eq!(bytes("4GiB"), Ok(4 << 30));
        assert_eq!(bytes("4 GB"), Ok(4_000_000_000));
        assert_eq!(bytes("17"), Ok(17));
        for bad in ["", "G", "4G", "4gib", "0", "-1", "99999999999TiB"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_shown_has_two_parts() {
        let shown: Vec<String> = [3_250, 727_000, 3_900_000, 183_600_000].map(|ms| show_length(Nanos::from_millis(ms))).into();
        assert_eq!(shown, ["3.250 s", "12m 07s", "1h 05m", "2d 03h"]);
        assert_eq!([show_bytes(512), show_bytes(4 << 30), show_bytes(1_500)], ["512 B", "4.0 GiB", "1.4 KiB"]);
    }

    proptest! {
        #[test]
        fn whatever_is_typed_is_read_or_refused(text in "\\PC{0,20}") {
            let _ = (length(&text), bytes(&text));
        }
    }
}
