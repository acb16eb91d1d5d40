//! An account's own unit of money: for display and for amounts that name it. The ledger counts credits, whatever the unit.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::money::{Credits, Decimal, NANO};

/// Longest name of a unit, in bytes.
const NAME_BYTES_MAX: usize = 16;
/// Largest part of a ratio.
const PART_MAX: u64 = 1_000_000_000_000_000;
/// Digits behind the point that are shown.
const SHOWN: u32 = 9;

/// The name of a unit of money, such as `USD`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UnitName(String);

/// A text that is not a unit's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a unit: 1 to 16 letters and digits, such as USD")]
pub struct UnitNameError(String);

impl FromStr for UnitName {
    type Err = UnitNameError;

    fn from_str(text: &str) -> Result<UnitName, UnitNameError> {
        let plain = !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if plain { Ok(UnitName(text.to_owned())) } else { Err(UnitNameError(text.chars().take(NAME_BYTES_MAX).collect())) }
    }
}

impl TryFrom<String> for UnitName {
    type Error = UnitNameError;

    fn try_from(text: String) -> Result<UnitName, UnitNameError> {
        text.parse()
    }
}

impl From<UnitName> for String {
    fn from(name: UnitName) -> String {
        name.0
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A positive rational number in lowest terms, exact. As text `100`, `0.01` or `1/3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ratio {
    over: u64,
    under: u64,
}

/// A text that is not such a number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a positive number: such as 100, 0.01 or 1/3")]
pub struct RatioError(String);

impl Ratio {
    /// Exactly one?
    #[must_use]
    pub fn is_one(self) -> bool {
        self.over == self.under
    }
}

fn greatest_common_divisor(one: u64, other: u64) -> u64 {
    if other == 0 { one } else { greatest_common_divisor(other, one % other) }
}

impl FromStr for Ratio {
    type Err = RatioError;

    fn from_str(text: &str) -> Result<Ratio, RatioError> {
        let wrong = || RatioError(text.chars().take(64).collect());
        let digits = |part: &str| {
            let plain = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| part.parse::<u64>().ok()).flatten().filter(|part| *part <= PART_MAX)
        };
        let (over, under) = if let Some((over, under)) = text.split_once('/') {
            digits(over).zip(digits(under)).ok_or_else(wrong)?
        } else {
            let Decimal { mantissa, scale } = text.parse().map_err(|_| wrong())?;
            let under = 10_u64.checked_pow(u32::from(scale)).filter(|under| *under <= PART_MAX).ok_or_else(wrong)?;
            (u64::try_from(mantissa).ok().filter(|over| *over <= PART_MAX).ok_or_else(wrong)?, under)
        };
        if over == 0 || under == 0 {
            return Err(wrong());
        }
        let common = greatest_common_divisor(over, under);
        Ok(Ratio { over: over / common, under: under / common })
    }
}

impl TryFrom<String> for Ratio {
    type Error = RatioError;

    fn try_from(text: String) -> Result<Ratio, RatioError> {
        text.parse()
    }
}

impl From<Ratio> for String {
    fn from(ratio: Ratio) -> String {
        ratio.to_string()
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.under == 1 { write!(f, "{}", self.over) } else { write!(f, "{}/{}", self.over, self.under) }
    }
}

/// What one account's credits are worth. Nothing is ever rated or charged by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unit {
    /// What it is called.
    pub name: UnitName,
    /// So many credits are one of it.
    pub credits_per_unit: Ratio,
}

/// Why an amount in a unit is not one in credits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitRefusal {
    /// The account counts in another unit, or in none: nothing is converted.
    #[error("the amount is in {named}, and the account counts in {own}")]
    OtherUnit {
        /// As the caller said.
        named: UnitName,
        /// As the account has it.
        own: String,
    },
    /// It would have to be rounded.
    #[error("{0} is no whole number of nano-credits")]
    NotExact(String),
}

impl Unit {
    /// An amount in this unit as credits; none if that is not exact, or too large.
    #[must_use]
    pub fn credits(&self, amount: Decimal) -> Option<Credits> {
        let Ratio { over, under } = self.credits_per_unit;
        let product = amount.mantissa.checked_mul(i128::from(over))?.checked_mul(NANO)?;
        let divisor = i128::from(under).checked_mul(10_i128.checked_pow(u32::from(amount.scale))?)?;
        (product % divisor == 0).then(|| Credits::from_nano(product / divisor))
    }

    /// Credits in this unit, for people: nine digits behind the point, rounded down, and `about` in front where that is not all.
    #[must_use]
    pub fn show(&self, credits: Credits) -> String {
        let Ratio { over, under } = self.credits_per_unit;
        let divisor = i128::from(over).saturating_mul(NANO);
        let magnitude = i128::try_from(credits.nano().unsigned_abs()).unwrap_or(i128::MAX);
        let sign = if credits < Credits::ZERO { "-" } else { "" };
        let Some(product) = magnitude.checked_mul(i128::from(under)) else { return format!("more than can be shown in {}", self.name) };
        let (whole, rest) = (product / divisor, product % divisor);
        let (mut digits, mut left) = (String::new(), rest);
        for _ in 0..SHOWN {
            left = left.saturating_mul(10);
            digits.push(char::from(b'0' + u8::try_from(left / divisor).unwrap_or(0)));
            left %= divisor;
        }
        let about = if left == 0 { "" } else { "about " };
        let text = format!("{about}{sign}{whole}.{digits}");
        format!("{} {}", text.trim_end_matches('0').trim_end_matches('.'), self.name)
    }
}

/// An amount that names its unit, as credits of an account that counts in `own`.
///
/// # Errors
/// Another unit is refused, and so is an amount that is not exact: nothing is converted by guess.
pub fn in_credits(amount: Decimal, named: &UnitName, own: Option<&Unit>) -> Result<Credits, UnitRefusal> {
    let unit = own.filter(|unit| unit.name == *named).ok_or_else(|| UnitRefusal::OtherUnit {
        named: named.clone(),
        own: own.map_or_else(|| "credits".to_owned(), |unit| unit.name.to_string()),
    })?;
    unit.credits(amount).ok_or_else(|| UnitRefusal::NotExact(format!("{amount} {named} at {} credits each", unit.credits_per_unit)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn unit(name: &str, credits_per_unit: &str) -> Unit {
        Unit { name: name.parse().unwrap(), credits_per_unit: credits_per_unit.parse().unwrap() }
    }

    fn credits(text: &str) -> Credits {
        text.parse().unwrap()
    }

    #[test]
    fn a1_a_hundred_credits_are_exactly_one_dollar_and_a_credit_is_one_cent() {
        let usd = unit("USD", "100");
        assert_eq!(usd.show(credits("100")), "1 USD");
        assert_eq!(usd.show(credits("1")), "0.01 USD");
        assert_eq!(usd.show(credits("99")), "0.99 USD");
        assert_eq!(usd.show(credits("-250")), "-2.5 USD");
        assert_eq!(usd.credits("5".parse().unwrap()), Some(credits("500")));
        assert_eq!(usd.credits("0.01".parse().unwrap()), Some(credits("1")));
        assert_eq!(usd.credits("0.00000000001".parse().unwrap()), Some(Credits::from_nano(1)));
        assert_eq!(usd.credits("0.000000000001".parse().unwrap()), None, "finer than a nano-credit");
    }

    #[test]
    fn s1_r1_where_a_credit_is_a_dollar_the_two_numbers_are_the_same() {
        let usd = unit("USD", "1");
        assert_eq!(usd.show(credits("12.34")), "12.34 USD");
        assert_eq!(usd.credits("12.34".parse().unwrap()), Some(credits("12.34")));
    }

    #[test]
    fn what_is_not_exact_is_shown_as_about_and_refused_as_an_amount() {
        let third = unit("EUR", "3");
        assert_eq!(third.show(credits("1")), "about 0.333333333 EUR");
        assert_eq!(third.show(credits("6")), "2 EUR");
        assert_eq!(unit("EUR", "1/3").credits("1".parse().unwrap()), None);
        assert_eq!(unit("EUR", "1/3").credits("6".parse().unwrap()), Some(credits("2")));
    }

    #[test]
    fn an_amount_in_another_unit_is_refused_and_never_converted() {
        let usd = unit("USD", "100");
        let amount: Decimal = "5".parse().unwrap();
        assert_eq!(in_credits(amount, &usd.name, Some(&usd)), Ok(credits("500")));
        let euro: UnitName = "EUR".parse().unwrap();
        assert!(matches!(in_credits(amount, &euro, Some(&usd)), Err(UnitRefusal::OtherUnit { .. })));
        assert!(matches!(in_credits(amount, &euro, None), Err(UnitRefusal::OtherUnit { .. })));
    }

    #[test]
    fn a_ratio_is_a_positive_number_in_lowest_terms() {
        for (text, shown) in [("100", "100"), ("0.01", "1/100"), ("2/6", "1/3"), ("1.50", "3/2")] {
            assert_eq!(text.parse::<Ratio>().unwrap().to_string(), shown);
        }
        for wrong in ["0", "-1", "1/0", "0/1", "", "a", "1/2/3", "1 /2", "9999999999999999", "0.0000000000000001"] {
            assert!(wrong.parse::<Ratio>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn an_exact_amount_comes_back_from_credits(over in 1..1_000_u64, under in 1..1_000_u64, cents in 0..1_000_000_i64) {
            let unit = unit("USD", &format!("{over}/{under}"));
            let amount: Decimal = format!("{}.{:02}", cents / 100, cents % 100).parse().unwrap();
            if let Some(credits) = unit.credits(amount) {
                prop_assert_eq!(unit.show(credits), format!("{amount} USD"));
            }
        }

        #[test]
        fn nothing_panics(text in ".{0,24}", nano in any::<i128>(), amount in "[0-9]{1,20}(\\.[0-9]{1,12})?") {
            if let (Ok(credits_per_unit), Ok(amount)) = (text.parse::<Ratio>(), amount.parse::<Decimal>()) {
                let unit = Unit { name: "X".parse().unwrap(), credits_per_unit };
                let _ = unit.show(Credits::from_nano(nano));
                let _ = unit.credits(amount);
            }
            let _ = text.parse::<UnitName>();
            let _ = unit("X", "7/3").show(Credits::from_nano(nano));
        }
    }
}
