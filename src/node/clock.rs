//! The only reader of a clock.

use rustix::time::{ClockId, clock_gettime};

use crate::domain::id::BootId;
use crate::domain::time::{Boot, Mono, Now, Wall};

fn read_ns(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let secs = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    secs.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// `CLOCK_MONOTONIC` now.
#[must_use]
pub fn mono() -> Mono {
    Mono(read_ns(ClockId::Monotonic))
}

/// All three clocks now.
#[must_use]
pub fn now() -> Now {
    Now { mono: mono(), boot: Boot(read_ns(ClockId::Boottime)), wall: Wall(read_ns(ClockId::Realtime) / 1_000_000) }
}

/// CPU time of this whole process, in nanoseconds.
#[must_use]
pub fn process_cpu_ns() -> u64 {
    read_ns(ClockId::ProcessCPUTime)
}

/// The kernel's id of this boot (`/proc/sys/kernel/random/boot_id`).
///
/// # Errors
/// When `/proc` cannot be read, or does not hold an id.
pub fn boot_id() -> std::io::Result<BootId> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    text.trim().parse().map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))
}
