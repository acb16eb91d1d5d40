//! Who vouches for a card: an ed25519 signature (RFC 8032) in the last line of its file, a comment to everybody else.
//!
//! ```text
//! # signature ed25519 <128 hexadecimal digits>
//! ```
//!
//! It covers every byte before that line, so a card is one file and is replaced as one.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};

/// How the line begins.
const MARK: &str = "# signature ed25519 ";
/// Stands before what is signed, so that nothing else that the key signs is a card.
const CONTEXT: &[u8] = b"meterd rate card 1\n";

/// A public key, as `meterd.toml` pins it: 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CardKey(VerifyingKey);

/// A secret key, as its file holds it: 64 hexadecimal digits. It is never shown.
pub struct SecretCardKey(SigningKey);

/// A text that is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an ed25519 key: 64 hexadecimal digits")]
pub struct KeyError;

/// Why nobody vouches for a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unvouched {
    /// Its last line is no signature.
    #[error("the card is not signed")]
    Unsigned,
    /// The line is there, and what it holds is no signature.
    #[error("the card's last line is no signature: \"# signature ed25519 \" and 128 hexadecimal digits")]
    Malformed,
    /// It was signed by another key, or changed since.
    #[error("the card's signature is not by the pinned key, or the card was changed after it was signed")]
    Wrong,
}

impl CardKey {
    /// Does the key's holder vouch for this text?
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, text: &str) -> Result<(), Unvouched> {
        let (body, line) = split(text);
        let digits = line.ok_or(Unvouched::Unsigned)?.strip_prefix(MARK).ok_or(Unvouched::Malformed)?;
        let signature = Signature::from_bytes(&from_hex(digits.trim_end()).ok_or(Unvouched::Malformed)?);
        self.0.verify_strict(&signed(body), &signature).map_err(|_| Unvouched::Wrong)
    }
}

impl FromStr for CardKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<CardKey, KeyError> {
        let key = VerifyingKey::from_bytes(&from_hex(text).ok_or(KeyError)?).map_err(|_| KeyError)?;
        if key.is_weak() { Err(KeyError) } else { Ok(CardKey(key)) }
    }
}

impl fmt::Display for CardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(self.0.as_bytes()))
    }
}

impl fmt::Debug for CardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CardKey({self})")
    }
}

impl SecretCardKey {
    /// The key of 256 random bits.
    #[must_use]
    pub fn of(random: [u8; 32]) -> SecretCardKey {
        SecretCardKey(SigningKey::from_bytes(&random))
    }

    /// What its file holds.
    #[must_use]
    pub fn to_file(&self) -> String {
        format!("{}\n", hex(self.0.as_bytes()))
    }

    /// The public key that belongs to it.
    #[must_use]
    pub fn public(&self) -> CardKey {
        CardKey(self.0.verifying_key())
    }

    /// The text with its signature as the last line, in the place of an earlier one.
    #[must_use]
    pub fn sign(&self, text: &str) -> String {
        let body = split(text).0.trim_end_matches('\n');
        let body = format!("{body}\n");
        let signature = self.0.sign(&signed(&body));
        format!("{body}{MARK}{}\n", hex(&signature.to_bytes()))
    }
}

impl FromStr for SecretCardKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<SecretCardKey, KeyError> {
        from_hex(text.trim()).map(SecretCardKey::of).ok_or(KeyError)
    }
}

impl fmt::Debug for SecretCardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretCardKey of {}", self.public())
    }
}

/// All before the line of the signature, and that line. Only the last line of a text can be one.
fn split(text: &str) -> (&str, Option<&str>) {
    let body = text.strip_suffix('\n').unwrap_or(text);
    let at = body.rfind('\n').map_or(0, |end| end + 1);
    if body[at..].starts_with(MARK.trim_end()) { (&text[..at], Some(&body[at..])) } else { (text, None) }
}

fn signed(body: &str) -> Vec<u8> {
    [CONTEXT, body.as_bytes()].concat()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = [0; N];
    let pairs = text.as_bytes().chunks_exact(2);
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(pairs) {
        *byte = digit(pair[0])? * 16 + digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "card = \"c\"\nversion = 1\n";

    fn secret(byte: u8) -> SecretCardKey {
        SecretCardKey::of([byte; 32])
    }

    #[test]
    fn a_key_is_the_one_of_rfc_8032() {
        // Section 7.1, test 1.
        let secret: SecretCardKey = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60".parse().unwrap();
        assert_eq!(secret.public().to_string(), "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
    }

    #[test]
    fn a_signed_card_is_vouched_for_by_its_key_alone() {
        let signed = secret(7).sign(TEXT);
        assert!(signed.starts_with(TEXT) && signed.lines().count() == 3, "{signed}");
        assert_eq!(secret(7).public().check(&signed), Ok(()));
        assert_eq!(secret(8).public().check(&signed), Err(Unvouched::Wrong));
        assert_eq!(secret(7).public().check(TEXT), Err(Unvouched::Unsigned));
        assert_eq!(secret(7).public().check(&format!("{signed}# more\n")), Err(Unvouched::Unsigned), "only the last line is one");
        assert_eq!(secret(7).public().check(&format!("{TEXT}# signature ed25519 abc\n")), Err(Unvouched::Malformed));
        assert_eq!(secret(7).public().check(&format!("{TEXT}# signature ed25519\n")), Err(Unvouched::Malformed));
    }

    #[test]
    fn a_card_that_is_signed_anew_has_one_signature() {
        let twice = secret(8).sign(&secret(7).sign(TEXT));
        assert_eq!(twice, secret(8).sign(TEXT));
        assert_eq!(secret(7).sign("card = 1"), secret(7).sign("card = 1\n\n"), "its end is one line's end");
    }

    #[test]
    fn a_key_is_64_digits_and_no_weak_point() {
        let key = secret(1).public();
        assert_eq!(key.to_string().parse(), Ok(key));
        for bad in ["", "00", &"0".repeat(64), &format!("01{}", "0".repeat(62)), &"g".repeat(64), &"+f".repeat(32)] {
            assert_eq!(bad.parse::<CardKey>(), Err(KeyError), "{bad}");
        }
        assert_eq!(secret(3).to_file().parse::<SecretCardKey>().unwrap().public(), secret(3).public());
        assert!(!format!("{:?}", secret(3)).contains("0303"), "a secret is not shown");
    }

    proptest! {
        #[test]
        fn any_changed_byte_is_found(at in 0_usize..400, bit in 0_u8..7) {
            let text = secret(7).sign(TEXT);
            let mut bytes = text.clone().into_bytes();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let changed = String::from_utf8(bytes).unwrap();
            // The line's end may be left out, and a digit's case says nothing.
            let alike = changed.trim_end() == text.trim_end() || changed.to_lowercase() == text;
            let digit_case = text[..at].contains("ed25519 ") && alike;
            prop_assert!(digit_case || alike && at + 1 == text.len() || secret(7).public().check(&changed).is_err());
        }

        #[test]
        fn whatever_a_text_is_it_is_signed_and_read(text in "[ -~\n]{0,80}") {
            prop_assert_eq!(secret(7).public().check(&secret(7).sign(&text)), Ok(()));
        }
    }
}
