//! Validated names. Charset and length are checked once, where a name enters; everything behind can rely on it. A copy of a name shares its text.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest name of a job, an account, a card or a rate line, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a name: 1 to 128 letters, digits, '.', '_', '-', ':', '@', '/' or '+', the first a letter or digit")]
pub struct NameError(String);

fn checked(text: &str) -> Result<Arc<str>, NameError> {
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:@/+".contains(&byte));
    if first && rest && text.len() <= NAME_BYTES_MAX {
        Ok(text.into())
    } else {
        Err(NameError(text.chars().take(NAME_BYTES_MAX).collect()))
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                checked(text).map($name)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name! {
    /// What the scheduler or the user calls a job. Unique among the jobs that run; a later start with the same name is a new attempt.
    JobName
}
name! {
    /// Who pays.
    AccountId
}
name! {
    /// This machine, as the authority knows it.
    NodeId
}
name! {
    /// An NVML UUID (`GPU-…`, `MIG-…`). An index is never an identity: it changes over a reboot.
    GpuId
}
name! {
    /// A rate line or a rate card.
    LineId
}
name! {
    /// A payment, named by whoever makes it, so that a repeated deposit is booked once.
    PaymentId
}

/// What NVML calls the device (`nvmlDeviceGetName`), such as `NVIDIA H100 80GB HBM3`. Printable ASCII, at most 96 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GpuModel(String);

impl GpuModel {
    /// A model's name; whatever cannot be printed becomes `?`.
    #[must_use]
    pub fn new(text: &str) -> GpuModel {
        let printable = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
        GpuModel(text.chars().take(96).map(printable).collect())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The agent's own number for one attempt of one job; given at start, never used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attempt(pub u64);

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A user id of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Uid(pub u32);

impl Uid {
    /// The superuser.
    pub const ROOT: Uid = Uid(0);
}

macro_rules! bytes_id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(std::str::from_utf8(&self.hex()).unwrap_or_default())
            }
        }

        impl $name {
            fn hex(&self) -> [u8; 2 * $len] {
                const DIGITS: &[u8; 16] = b"0123456789abcdef";
                let mut text = [0; 2 * $len];
                for (two, byte) in text.chunks_exact_mut(2).zip(self.0) {
                    two[0] = DIGITS[usize::from(byte >> 4)];
                    two[1] = DIGITS[usize::from(byte & 15)];
                }
                text
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl FromStr for $name {
            type Err = HexError;

            /// Hexadecimal digits; dashes, as in a UUID, are passed over.
            fn from_str(text: &str) -> Result<Self, HexError> {
                let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
                let mut bytes = [0_u8; $len];
                if digits.len() != 2 * $len || !digits.iter().all(u8::is_ascii_hexdigit) {
                    return Err(HexError);
                }
                for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
                    let pair = std::str::from_utf8(pair).map_err(|_| HexError)?;
                    *byte = u8::from_str_radix(pair, 16).map_err(|_| HexError)?;
                }
                Ok($name(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.serialize_str(std::str::from_utf8(&self.hex()).unwrap_or_default())
                } else {
                    self.0.serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
                } else {
                    Deserialize::deserialize(deserializer).map($name)
                }
            }
        }
    };
}

/// A text that is not the hexadecimal form of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an id in hexadecimal")]
pub struct HexError;

bytes_id! {
    /// One unbroken spending life of one agent: 128 random bits, journalled before first use.
    Epoch, 16
}
bytes_id! {
    /// The kernel's `boot_id`: jobs and monotonic instants belong to one boot.
    BootId, 16
}
bytes_id! {
    /// SHA-256 of something: a rate card's text, a request's bytes, a link of the journal's chain.
    Digest, 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_checked_where_it_enters() {
        for good in ["job-1", "slurm:123_4.batch", "u1000-x", "a@b", "7", "proj/a"] {
            assert!(good.parse::<JobName>().is_ok(), "{good}");
        }
        for bad in ["", "-x", "a b", "a\n", "é", "../x", "a\"b", &"x".repeat(129)] {
            assert!(bad.parse::<JobName>().is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<AccountId>("\"a b\"").is_err());
    }

    #[test]
    fn an_id_reads_back_from_its_hexadecimal_form() {
        let id = BootId([0xab; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("bee9994b-5db9-4f9d-848e-f3cff5706851".parse::<BootId>().unwrap().0[0], 0xbe);
        assert_eq!("zz".parse::<BootId>(), Err(HexError));
        assert_eq!("+f".repeat(16).parse::<BootId>(), Err(HexError), "a sign is not a digit");
    }
}
