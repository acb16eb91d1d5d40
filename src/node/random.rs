//! The kernel's random numbers.

use super::defence::{Defence, stands};
use crate::domain::id::Epoch;
use crate::domain::time::Nanos;

/// At which instant of an interval the look comes: any, and nobody can tell. A job that knew it, or a part of the interval in which no
/// look ever comes, would have its memory then and pay for none; what it has on average is what looks at random instants see. The
/// kernel's random numbers, since a job could work out a generator of ours from the ticks that it sees in the metrics.
#[must_use]
pub fn stray(interval: Nanos) -> Nanos {
    let mut bytes = [0_u8; 8];
    let filled = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
    match filled {
        Ok(8) if stands(Defence::UnforeseenLooks) => Nanos(u64::from_ne_bytes(bytes) % interval.0.max(1)),
        _ => Nanos(0),
    }
}

/// 256 random bits, for a key.
///
/// # Errors
/// When the kernel gives none.
pub fn fresh_key() -> std::io::Result<[u8; 32]> {
    let mut bytes = [0_u8; 32];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes)
}

/// 128 random bits.
///
/// # Errors
/// When the kernel gives none.
pub fn fresh_epoch() -> std::io::Result<Epoch> {
    let mut bytes = [0_u8; 16];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())?;
    Ok(Epoch(bytes))
}
