//! Credits: the one unit of account, an integer number of nano-credits.
//!
//! Never a float: a price times a quantity is computed in wide integers ([`crate::domain::rates`]) and rounded once.
//! On every wire and in every text file an amount is a decimal string; in the journal it is the integer itself.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Nano-credits in one credit.
pub const NANO: i128 = 1_000_000_000;

const NANO_NARROW: u64 = 1_000_000_000;

/// Digits behind the point of a credit.
const SCALE: usize = 9;

/// Most digits of an amount: every one that an `i128` of nano-credits holds must read back.
const AMOUNT_DIGITS_MAX: usize = 39;

/// An amount of credit, in nano-credits. May be negative (a difference); balances are checked where they are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Credits(i128);

/// Why a text is not an amount of credit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// Not of the form `[-]digits[.digits]`.
    #[error("not a decimal number: {0:?}")]
    Malformed(String),
    /// More than nine digits behind the point.
    #[error("finer than a nano-credit (nine digits behind the point): {0:?}")]
    TooFine(String),
    /// Does not fit an `i128` of nano-credits.
    #[error("too large: {0:?}")]
    TooLarge(String),
}

impl Credits {
    /// Nothing.
    pub const ZERO: Credits = Credits(0);

    /// An amount from its nano-credits.
    #[must_use]
    pub const fn from_nano(nano: i128) -> Credits {
        Credits(nano)
    }

    /// The amount in nano-credits.
    #[must_use]
    pub const fn nano(self) -> i128 {
        self.0
    }

    /// `self + other`, or `None` past the range of an `i128`.
    #[must_use]
    pub fn checked_add(self, other: Credits) -> Option<Credits> {
        self.0.checked_add(other.0).map(Credits)
    }

    /// `self + other`, held at the range's end. An account cannot come near it: deposits are bounded far below.
    #[must_use]
    pub fn plus(self, other: Credits) -> Credits {
        Credits(self.0.saturating_add(other.0))
    }

    /// `self - other`, held at the range's end.
    #[must_use]
    pub fn minus(self, other: Credits) -> Credits {
        Credits(self.0.saturating_sub(other.0))
    }

    /// The amount, or zero where it is negative.
    #[must_use]
    pub fn or_zero(self) -> Credits {
        Credits(self.0.max(0))
    }

    /// Is there anything to spend?
    #[must_use]
    pub fn is_positive(self) -> bool {
        0 < self.0
    }

    /// Exactly nothing?
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl std::iter::Sum for Credits {
    fn sum<I: Iterator<Item = Credits>>(amounts: I) -> Credits {
        amounts.fold(Credits::ZERO, Credits::plus)
    }
}

impl fmt::Display for Credits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.text().as_str())
    }
}

/// A sign, 30 digits, a point and nine more.
const TEXT_BYTES_MAX: usize = 41;

/// An amount as text, without the heap.
#[derive(Clone, Copy, Debug)]
pub struct CreditsText {
    text: [u8; TEXT_BYTES_MAX],
    begin: usize,
    end: usize,
}

impl CreditsText {
    /// As it is displayed.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text[self.begin..self.end]).unwrap_or_default()
    }
}

impl Credits {
    /// The amount as text, written from its last digit on: every row and message has a dozen of them.
    #[must_use]
    pub fn text(self) -> CreditsText {
        let mut text = [0; TEXT_BYTES_MAX];
        let (unit, nano) = (NANO.unsigned_abs(), self.0.unsigned_abs());
        let (mut whole, mut part) = match u64::try_from(nano) {
            Ok(nano) => (u128::from(nano / NANO_NARROW), nano % NANO_NARROW),
            Err(_) => (nano / unit, u64::try_from(nano % unit).unwrap_or(0)),
        };
        let (mut begin, mut end) = (TEXT_BYTES_MAX, TEXT_BYTES_MAX);
        let mut put = |digit: u8| {
            begin -= 1;
            text[begin] = digit;
            begin
        };
        if part == 0 {
            end -= SCALE + 1;
        }
        for _ in 0..SCALE {
            let at = put(digit(part % 10));
            // What ends in zeros ends before them.
            if part.is_multiple_of(10) && at + 1 == end {
                end = at;
            }
            part /= 10;
        }
        put(b'.');
        // Division of 128 bits is many times as slow, and hardly ever needed.
        while u128::from(u64::MAX) < whole {
            put(digit(u64::try_from(whole % 10).unwrap_or(0)));
            whole /= 10;
        }
        let mut whole = u64::try_from(whole).unwrap_or(0);
        loop {
            put(digit(whole % 10));
            whole /= 10;
            if whole == 0 {
                break;
            }
        }
        if self.0 < 0 {
            put(b'-');
        }
        CreditsText { text, begin, end }
    }
}

fn digit(number: u64) -> u8 {
    b'0' + u8::try_from(number % 10).unwrap_or(0)
}

impl FromStr for Credits {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Credits, AmountError> {
        let Decimal { mantissa, scale } = decimal(text, AMOUNT_DIGITS_MAX)?;
        let missing = SCALE.checked_sub(usize::from(scale)).ok_or_else(|| AmountError::TooFine(text.to_owned()))?;
        let factor = 10_i128.pow(u32::try_from(missing).unwrap_or(0));
        mantissa.checked_mul(factor).map(Credits).ok_or_else(|| AmountError::TooLarge(text.to_owned()))
    }
}

impl Serialize for Credits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.serialize_str(self.text().as_str()) } else { serializer.serialize_i128(self.0) }
    }
}

impl<'de> Deserialize<'de> for Credits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Credits, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            text.parse().map_err(serde::de::Error::custom)
        } else {
            i128::deserialize(deserializer).map(Credits)
        }
    }
}

/// An exact decimal number, `mantissa / 10^scale`: a price as the operator wrote it, never quantised.
/// Trailing zeros behind the point are dropped, so that equal numbers are equal values.
/// In text forms a decimal string, in the journal the two integers; both are checked when read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Decimal {
    /// All digits, as one integer.
    pub mantissa: i128,
    /// How many of them stand behind the point, at most 18.
    pub scale: u8,
}

impl Decimal {
    /// Most digits behind the point that a price may have.
    pub const SCALE_MAX: u8 = 18;
    /// Most digits in all, so that products with any quantity fit 256 bits.
    pub const DIGITS_MAX: usize = 27;
}

impl FromStr for Decimal {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Decimal, AmountError> {
        decimal(text, Decimal::DIGITS_MAX)
    }
}

/// Reads `[-]digits[.digits]` of at most so many digits, zeros at both ends not counted.
fn decimal(text: &str, digits_max: usize) -> Result<Decimal, AmountError> {
    let malformed = || AmountError::Malformed(text.chars().take(64).collect());
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match digits.split_once('.') {
        Some((_, "")) => return Err(malformed()),
        Some((whole, fraction)) => (whole, fraction.trim_end_matches('0')),
        None => (digits, ""),
    };
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !digits.split_once('.').is_none_or(|(_, f)| all_digits(f)) {
        return Err(malformed());
    }
    let scale = u8::try_from(fraction.len())
        .ok()
        .filter(|scale| *scale <= Decimal::SCALE_MAX)
        .ok_or_else(|| AmountError::TooFine(text.chars().take(64).collect()))?;
    let joined = format!("{}{fraction}", whole.trim_start_matches('0'));
    let too_large = || AmountError::TooLarge(text.chars().take(64).collect());
    if digits_max < joined.len() {
        return Err(too_large());
    }
    let magnitude: i128 = if joined.is_empty() { 0 } else { joined.parse().map_err(|_| too_large())? };
    Ok(Decimal { mantissa: if negative { -magnitude } else { magnitude }, scale })
}

impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { (self.mantissa, self.scale).serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Decimal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Decimal, D::Error> {
        if deserializer.is_human_readable() {
            return String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom);
        }
        let (mantissa, scale) = <(i128, u8)>::deserialize(deserializer)?;
        let most = 10_u128.pow(u32::try_from(Decimal::DIGITS_MAX).unwrap_or(0));
        if Decimal::SCALE_MAX < scale || most <= mantissa.unsigned_abs() {
            return Err(serde::de::Error::custom("not a decimal of at most 27 digits, 18 of them behind the point"));
        }
        Ok(Decimal { mantissa, scale })
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = 10_u128.pow(u32::from(self.scale));
        let magnitude = self.mantissa.unsigned_abs();
        let sign = if self.mantissa < 0 { "-" } else { "" };
        let text = match self.scale {
            0 => format!("{sign}{magnitude}"),
            scale => format!("{sign}{}.{:0width$}", magnitude / unit, magnitude % unit, width = usize::from(scale)),
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_amount_reads_and_prints_as_a_plain_decimal() {
        let check = |text: &str, nano: i128| {
            assert_eq!(text.parse::<Credits>().map(Credits::nano), Ok(nano), "{text}");
            assert_eq!(Credits::from_nano(nano).to_string(), text);
        };
        check("64", 64 * NANO);
        check("0", 0);
        check("0.000000001", 1);
        check("-1.5", -1_500_000_000);
        check("12.34", 12_340_000_000);
        check("100.000000001", 100 * NANO + 1);
        check("-0.1", -100_000_000);
        check("18446744073709551616", (1 << 64) * NANO);
        let least = Credits::from_nano(i128::MIN).to_string();
        assert_eq!(least, "-170141183460469231731687303715.884105728");
        assert_eq!(format!("{:>6}|{:<6}|", Credits::from_nano(-NANO), Credits::from_nano(1_500_000_000)), "    -1|1.5   |");
    }

    #[test]
    fn what_is_not_an_amount_is_refused_with_its_reason() {
        let check = |text: &str| text.parse::<Credits>().unwrap_err();
        for text in ["", "-", ".5", "5.", "1e9", "+1", "1,5", "0x10", "1.2.3", " 1", "١"] {
            assert!(matches!(check(text), AmountError::Malformed(_)), "{text}");
        }
        assert!(matches!(check("0.0000000001"), AmountError::TooFine(_)));
        assert!(matches!(check("99999999999999999999999999999999"), AmountError::TooLarge(_)));
    }

    #[test]
    fn a_price_is_text_in_json_and_is_checked_when_read_back() {
        let price: Decimal = "0.040".parse().unwrap();
        assert_eq!(serde_json::to_string(&price).unwrap(), "\"0.04\"");
        assert_eq!(serde_json::from_str::<Decimal>("\"0.04\"").unwrap(), price);
        assert_eq!(postcard::from_bytes::<Decimal>(&postcard::to_stdvec(&price).unwrap()).unwrap(), price);
        for broken in [(1_i128, 19_u8), (10_i128.pow(27), 0)] {
            let bytes = postcard::to_stdvec(&broken).unwrap();
            assert!(postcard::from_bytes::<Decimal>(&bytes).is_err(), "{broken:?}");
        }
    }

    proptest! {
        #[test]
        fn every_amount_survives_being_printed_and_read(nano in prop_oneof![-i128::MAX..=i128::MAX, any::<i64>().prop_map(i128::from)]) {
            let amount = Credits::from_nano(nano);
            prop_assert_eq!(amount.to_string().parse::<Credits>(), Ok(amount));
            let json = serde_json::to_string(&amount).unwrap();
            prop_assert!(json.starts_with('"'), "an amount is a string on every wire: {json}");
            prop_assert_eq!(serde_json::from_str::<Credits>(&json).unwrap(), amount);
            let bytes = postcard::to_stdvec(&amount).unwrap();
            prop_assert_eq!(postcard::from_bytes::<Credits>(&bytes).unwrap(), amount);
        }
    }
}
