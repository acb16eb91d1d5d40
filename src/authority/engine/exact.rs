//! An engine's numbers, exactly: read from their text and written as text, with the point moved by whole places. No float ever holds one.

use crate::domain::money::Credits;

/// More digits than any balance has.
const DIGITS_MAX: usize = 48;
/// Nano-credits in a credit, as a power of ten.
const NANO_PLACES: i32 = 9;

/// So many credits are one unit of the engine, as a power of ten: 2 where a credit is a cent and the engine counts dollars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places(pub i8);

impl Places {
    /// The power of ten that is written here, from 0.000001 to 1000000.
    #[must_use]
    pub fn of(text: &str) -> Option<Places> {
        let plain = |places: &i8| {
            let zeros = |count: i8| "0".repeat(usize::from(count.unsigned_abs()));
            let shown = if *places < 0 { format!("0.{}1", zeros(*places + 1)) } else { format!("1{}", zeros(*places)) };
            shown == text
        };
        (-6..=6).find(plain).map(Places)
    }
}

/// A number of an engine's units, in credits. What is finer than a nano-credit is rounded down. `None` if it is no number, or too large.
///
/// Takes what JSON takes, exponents included.
#[must_use]
pub fn credits(text: &str, places: Places) -> Option<Credits> {
    let (number, exponent) = match text.split_once(['e', 'E']) {
        Some((number, exponent)) => (number, exponent.parse::<i32>().ok().filter(|exponent| exponent.abs() <= 64)?),
        None => (text, 0),
    };
    let (negative, digits) = number.strip_prefix('-').map_or((false, number), |rest| (true, rest));
    let (whole, fraction) = digits.split_once('.').map_or((digits, None), |(whole, fraction)| (whole, Some(fraction)));
    let all_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !all_digits(whole) || !fraction.is_none_or(all_digits) {
        return None;
    }
    let fraction = fraction.unwrap_or_default();
    let joined = format!("{whole}{fraction}");
    let significant = joined.trim_start_matches('0');
    if DIGITS_MAX < significant.len() {
        return None;
    }
    let shift = NANO_PLACES + i32::from(places.0) + exponent - i32::try_from(fraction.len()).ok()?;
    shifted(significant, shift, negative)
}

/// Digits with so many zeros behind them, or so many cut off: down, also below zero.
fn shifted(digits: &str, shift: i32, negative: bool) -> Option<Credits> {
    let places = usize::try_from(shift.unsigned_abs()).ok()?;
    let number = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<i128>().ok() };
    let (magnitude, rest) = if 0 <= shift {
        (if digits.is_empty() { 0 } else { number(&format!("{digits}{}", "0".repeat(places)))? }, false)
    } else {
        let (kept, cut) = digits.split_at(digits.len().saturating_sub(places));
        (number(kept)?, cut.bytes().any(|byte| byte != b'0'))
    };
    let nano = if negative { (-magnitude).checked_sub(i128::from(rest))? } else { magnitude };
    Some(Credits::from_nano(nano))
}

/// Credits as a number of the engine's units: plain decimal text, exact.
#[must_use]
pub fn units(credits: Credits, places: Places) -> String {
    let behind = usize::try_from(NANO_PLACES + i32::from(places.0)).unwrap_or(0);
    let digits = format!("{:0>width$}", credits.nano().unsigned_abs(), width = behind + 1);
    let (whole, fraction) = digits.split_at(digits.len() - behind);
    let fraction = fraction.trim_end_matches('0');
    let sign = if credits.nano() < 0 { "-" } else { "" };
    if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nano(text: &str, places: i8) -> Option<i128> {
        credits(text, Places(places)).map(Credits::nano)
    }

    #[test]
    fn a_balance_is_read_digit_by_digit() {
        assert_eq!(nano("1.25", 0), Some(1_250_000_000));
        assert_eq!(nano("0.1", 0), Some(100_000_000), "which no binary float is");
        assert_eq!(nano("9007199254740993", 0), Some(9_007_199_254_740_993_000_000_000), "which no double holds");
        assert_eq!(nano("1.25", 2), Some(125_000_000_000), "dollars, where a credit is a cent");
        assert_eq!(nano("125", -2), Some(1_250_000_000), "cents, where a credit is a dollar");
        assert_eq!(nano("1.5e3", 0), Some(1_500_000_000_000));
        assert_eq!(nano("15E-1", 0), Some(1_500_000_000));
        assert_eq!(nano("0", 0), Some(0));
        assert_eq!(nano("000.000", 0), Some(0));
        assert_eq!(nano("-3", 0), Some(-3_000_000_000));
    }

    #[test]
    fn what_is_finer_than_a_nano_credit_is_rounded_down_also_below_zero() {
        assert_eq!(nano("0.0000000019", 0), Some(1));
        assert_eq!(nano("-0.0000000011", 0), Some(-2));
        assert_eq!(nano("-0.0000000010", 0), Some(-1));
        assert_eq!(nano("1e-40", 0), Some(0));
    }

    #[test]
    fn what_is_no_number_or_too_large_is_none() {
        for wrong in ["", "-", ".5", "5.", "1,5", "0x10", "NaN", "Infinity", "1e", "1e999", "--1", "+1", " 1", "1 USD", "١"] {
            assert_eq!(nano(wrong, 0), None, "{wrong}");
        }
        assert_eq!(nano(&"9".repeat(49), 0), None);
        assert_eq!(nano("1e60", 0), None);
    }

    #[test]
    fn a_ratio_is_a_power_of_ten() {
        assert_eq!(["0.000001", "0.01", "1", "100", "1000000"].map(Places::of), [-6, -2, 0, 2, 6].map(|places| Some(Places(places))));
        assert_eq!(["3", "10.0", "0", "10000000", "1e2", "00.1", ""].map(Places::of), [None; 7]);
    }

    proptest! {
        #[test]
        fn an_amount_survives_being_written_in_units_and_read_back(nano in -10_i128.pow(30)..10_i128.pow(30), places in -6..=6_i8) {
            let amount = Credits::from_nano(nano);
            prop_assert_eq!(credits(&units(amount, Places(places)), Places(places)), Some(amount));
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "[-0-9.eE+ a]{0,60}", places in -6..=6_i8) {
            let _read = credits(&text, Places(places));
        }
    }
}
