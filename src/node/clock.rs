//! The only reader of a clock.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::time::{ClockId, clock_gettime};

use crate::domain::id::{BootId, Digest};
use crate::domain::time::{Boot, Mono, Nanos, Now, Wall};

/// What a test adds to the wall clock (milliseconds) and to the time asleep (nanoseconds), since nobody may set a machine's clock for it.
static PRETENDED: (AtomicI64, AtomicU64) = (AtomicI64::new(0), AtomicU64::new(0));

/// Lets the whole process believe that the wall clock was set and that the machine slept. For tests.
#[doc(hidden)]
pub fn pretend(wall_ms: i64, slept: Nanos) {
    PRETENDED.0.fetch_add(wall_ms, Ordering::Relaxed);
    PRETENDED.1.fetch_add(slept.0, Ordering::Relaxed);
}

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

/// All three clocks now, the wall clock as dates go by it: see [`Steady`].
#[must_use]
pub fn now() -> Now {
    static STEADY: Mutex<Steady> = Mutex::new(Steady { ahead_ms: None, other: None });
    let as_set = as_set();
    let wall = STEADY.lock().unwrap_or_else(PoisonError::into_inner).follow(as_set);
    Now { wall, ..as_set }
}

/// All three clocks as they are set now.
#[must_use]
pub fn as_set() -> Now {
    let (stepped_ms, slept_ns) = (PRETENDED.0.load(Ordering::Relaxed), PRETENDED.1.load(Ordering::Relaxed));
    let (mono, boot, wall) = (mono(), read_ns(ClockId::Boottime), read_ns(ClockId::Realtime) / 1_000_000);
    Now { mono, boot: Boot(boot.saturating_add(slept_ns)), wall: Wall(wall.saturating_add_signed(stepped_ms)) }
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

/// The machine's name for itself (machine-id(5)), hashed, since the name is not to leave it; none where it has none.
#[must_use]
pub fn machine() -> Option<Digest> {
    let text = std::fs::read_to_string("/etc/machine-id").ok()?;
    let name = text.trim();
    (name.len() == 32).then(|| crate::domain::chain::link(crate::domain::chain::GENESIS, 0, name.as_bytes()))
}

/// What a clock did between two looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jump {
    /// The wall clock was set, by so many milliseconds.
    Stepped(i64),
    /// The machine slept for so long.
    Slept(Nanos),
    /// Nobody looked for so long, though the machine was awake.
    Stood(Nanos),
}

/// A wall clock that strays by less than this between two looks is being slewed, or was read late.
const STEP_MIN_MS: u64 = 2_000;
/// Two clocks are not read at the same instant: less than this is no sleep.
const SLEEP_MIN: Nanos = Nanos::from_millis(1_000);

/// A step of the wall clock is followed once it has stood for so long.
const STEP_STANDS: Nanos = Nanos::from_secs(600);

/// The wall clock that dates go by: of cards, their lines, months, and credit that expires. What has lapsed by a clock that was set wrongly would
/// not come back with it, so a step is followed once it has stood for ten minutes. With a new process the clock is as it is set.
#[derive(Debug, Default)]
pub struct Steady {
    /// How far the wall clock that is followed is ahead of the boot clock.
    ahead_ms: Option<i64>,
    /// How far ahead it is since a step, and since when.
    other: Option<(i64, Boot)>,
}

impl Steady {
    /// The wall clock to go by, from the clocks as they are set.
    pub fn follow(&mut self, as_set: Now) -> Wall {
        let (wall, boot) = (as_set.wall.0.cast_signed(), as_set.boot.millis().cast_signed());
        let ahead = wall.saturating_sub(boot);
        let is_near = |other: i64| ahead.abs_diff(other) < STEP_MIN_MS;
        let followed = self.ahead_ms.unwrap_or(ahead);
        let stands = match self.other.filter(|(other, _)| is_near(*other)) {
            Some((_, since)) => STEP_STANDS <= as_set.boot.since(since),
            None => false,
        };
        if is_near(followed) || stands {
            (self.ahead_ms, self.other) = (Some(ahead), None);
            return as_set.wall;
        }
        let since = self.other.filter(|(other, _)| is_near(*other)).map_or(as_set.boot, |(_, since)| since);
        self.other = Some((ahead, since));
        Wall(boot.saturating_add(followed).max(0).cast_unsigned())
    }
}

/// Compares the clocks with each other, look by look.
#[derive(Debug, Default)]
pub struct ClockWatch {
    last: Option<Now>,
}

impl ClockWatch {
    /// What happened since the last look; `late` is from when on a look is late.
    pub fn look(&mut self, now: Now, late: Nanos) -> Vec<Jump> {
        let Some(last) = self.last.replace(now) else { return Vec::new() };
        let (ran, passed) = (now.mono.since(last.mono), now.boot.since(last.boot));
        let slept = Nanos(passed.0.saturating_sub(ran.0));
        let expected = i128::from(last.wall.0) + i128::from(passed.millis());
        let step = i64::try_from(i128::from(now.wall.0) - expected).unwrap_or(i64::MAX);
        let mut jumps = Vec::new();
        if STEP_MIN_MS <= step.unsigned_abs() {
            jumps.push(Jump::Stepped(step));
        }
        if SLEEP_MIN <= slept {
            jumps.push(Jump::Slept(slept));
        }
        if late < ran {
            jumps.push(Jump::Stood(ran));
        }
        jumps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn at(mono_s: u64, boot_s: u64, wall_s: u64) -> Now {
        Now { mono: Mono(mono_s * S), boot: Boot(boot_s * S), wall: Wall(wall_s * 1_000) }
    }

    #[test]
    fn a_step_is_followed_once_it_has_stood_for_ten_minutes_and_slewing_at_once() {
        let mut steady = Steady::default();
        let mut wall = |boot_s: u64, wall_s: u64| steady.follow(at(boot_s, boot_s, wall_s)).0 / 1_000;
        assert_eq!(wall(1, 100_000), 100_000, "as it is set at the start");
        assert_eq!(wall(2, 100_002), 100_002, "a second of slewing");
        for (boot_s, day_ahead) in [(3, 86_400), (300, 86_400), (602, 86_401)] {
            assert_eq!(wall(boot_s, 100_000 + boot_s + day_ahead), 100_000 + boot_s, "a day forward, {boot_s}");
        }
        assert_eq!(wall(603, 186_000), 100_603, "another step begins to stand anew");
        assert_eq!(wall(1_202, 186_599), 101_202);
        assert_eq!(wall(1_203, 186_600), 186_600, "it has stood");
        assert_eq!(wall(1_204, 99_000), 186_601, "an hour back is not followed either");
        assert_eq!(wall(1_300, 186_697), 186_697, "set right again, as if nothing had been");
        assert_eq!(wall(1_304, 99_000), 186_701);
        assert_eq!(wall(2_304, 100_000), 100_000);
    }

    #[test]
    fn steps_sleep_and_silence_are_told_apart() {
        let mut watch = ClockWatch::default();
        let late = Nanos::from_secs(5);
        assert_eq!(watch.look(at(1, 1, 100_000), late), []);
        assert_eq!(watch.look(at(2, 2, 100_001), late), []);
        assert_eq!(watch.look(at(3, 3, 96_402), late), [Jump::Stepped(-3_600_000)], "an hour back");
        assert_eq!(watch.look(at(4, 4, 182_803), late), [Jump::Stepped(86_400_000)], "a day forward");
        assert_eq!(watch.look(at(5, 605, 183_404), late), [Jump::Slept(Nanos::from_secs(600))], "the wall clock went on meanwhile");
        assert_eq!(watch.look(at(65, 665, 183_464), late), [Jump::Stood(Nanos::from_secs(60))]);
    }
}
