//! The agent's look at itself, once a tick: the clocks, and whether the kernel still gives descriptors.

use super::alarm::{Alarm, Alarms};
use super::clock::{ClockWatch, Jump};
use super::{clock, host};
use crate::domain::time::Nanos;

/// A look that is later than this many intervals is one that was missed by a stopped process or a machine without a CPU to spare.
const LATE_INTERVALS: u64 = 5;

/// With fewer descriptors left than these somebody should know: a job takes two or three.
const DESCRIPTORS_MIN: u64 = 64;

/// Raises and clears what this look shows.
pub fn look(alarms: &mut Alarms, clocks: &mut ClockWatch, interval: Nanos) {
    let now = clock::now();
    for jump in clocks.look(clock::as_set(), Nanos(interval.0.saturating_mul(LATE_INTERVALS))) {
        let (alarm, message) = match jump {
            Jump::Stepped(ms) => (Alarm::ClockStepped, format!("the wall clock was set by {ms} ms")),
            Jump::Slept(length) => (Alarm::Suspended, format!("the machine slept for {length}")),
            Jump::Stood(length) => (Alarm::Stalled, format!("no look at the jobs for {length}: the process was stopped or got no CPU")),
        };
        alarms.raise(alarm, now, message);
    }
    match host::descriptors_left() {
        Ok(left) if DESCRIPTORS_MIN <= left => alarms.clear(Alarm::FewDescriptors),
        Ok(left) => alarms.raise(Alarm::FewDescriptors, now, format!("{left} descriptors are left")),
        Err(error) => alarms.raise(Alarm::FewDescriptors, now, format!("the kernel gives no descriptor: {error}")),
    }
    alarms.forget_old(now.mono);
}
