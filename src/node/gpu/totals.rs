//! What a device has done so far: its busy time and the area of its memory in use, added up from look to look.

use crate::domain::meter::{DeviceTotals, GpuSample, Reading, area};
use crate::domain::time::{Mono, Nanos};

/// The driver's ring of utilisation is about 14 s deep. What came before that, and memory in so long a time, nobody knows.
const LOOKS_WITHIN: Nanos = Nanos::from_secs(10);

/// One device's totals.
#[derive(Clone, Debug)]
pub(super) struct Totals {
    since: Mono,
    busy_ns: u64,
    busy_to: Mono,
    memory_byte_ns: u128,
    /// When it was last read, and what was in use then.
    memory: Option<(Mono, u64)>,
}

impl Totals {
    /// Nothing yet.
    pub(super) fn from(now: Mono) -> Totals {
        Totals { since: now, busy_ns: 0, busy_to: now, memory_byte_ns: 0, memory: None }
    }

    /// With what the device did since the last look. A look that could not be made is made up for by the next one, within ten seconds.
    pub(super) fn add(&mut self, sample: &GpuSample, energy_mj: Reading<u64>, now: Mono) -> DeviceTotals {
        let late = |last: Mono| LOOKS_WITHIN < now.since(last);
        let seen = (sample.busy_permyriad.seen().copied(), sample.memory_used_bytes.seen().copied());
        if (seen.0.is_some() && late(self.busy_to)) || (seen.1.is_some() && self.memory.is_some_and(|(last, _)| late(last))) {
            *self = Totals::from(now);
        }
        if let Some(permyriad) = seen.0 {
            let busy = u128::from(now.since(self.busy_to).0) * u128::from(permyriad) / 10_000;
            self.busy_ns = self.busy_ns.saturating_add(u64::try_from(busy).unwrap_or(u64::MAX));
            self.busy_to = now;
        }
        if let Some(bytes) = seen.1 {
            if let Some((last, before)) = self.memory {
                self.memory_byte_ns += area(before, Some(bytes), now.since(last));
            }
            self.memory = Some((now, bytes));
        }
        DeviceTotals {
            at: now,
            since: self.since,
            busy_ns: sample.busy_permyriad.clone().map(|_| self.busy_ns),
            memory_byte_ns: sample.memory_used_bytes.clone().map(|_| self.memory_byte_ns),
            energy_mj,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::GpuModel;
    use crate::domain::meter::Missing;

    const S: u64 = 1_000_000_000;

    fn sample(busy: Reading<u32>, memory: Reading<u64>) -> GpuSample {
        GpuSample {
            gpu: "GPU-1".parse().unwrap(),
            index: 0,
            model: GpuModel::new("NVIDIA L4"),
            busy_permyriad: busy,
            memory_used_bytes: memory,
            memory_total_bytes: Reading::Seen(1 << 34),
            processes: Reading::Seen(Vec::new()),
        }
    }

    fn looked(totals: &mut Totals, at_s: u64, busy: Reading<u32>, memory: Reading<u64>) -> DeviceTotals {
        totals.add(&sample(busy, memory), Reading::Missing(Missing::NotSupported), Mono(at_s * S))
    }

    #[test]
    fn busy_time_and_memory_are_added_up() {
        let mut totals = Totals::from(Mono(0));
        looked(&mut totals, 1, Reading::Seen(5_000), Reading::Seen(100));
        let second = looked(&mut totals, 2, Reading::Seen(10_000), Reading::Seen(300));
        assert_eq!(second.busy_ns, Reading::Seen(S / 2 + S));
        assert_eq!(second.memory_byte_ns, Reading::Seen(200 * u128::from(S)), "the mean of both ends");
        assert_eq!((second.at, second.since), (Mono(2 * S), Mono(0)));
    }

    #[test]
    fn a_look_that_failed_is_made_up_for_and_a_long_silence_begins_anew() {
        let missing = || Reading::Missing(Missing::TimedOut);
        let mut totals = Totals::from(Mono(0));
        looked(&mut totals, 1, Reading::Seen(0), Reading::Seen(100));
        assert_eq!(looked(&mut totals, 2, missing(), Reading::Missing(Missing::Denied)).busy_ns, Reading::Missing(Missing::TimedOut));
        let after = looked(&mut totals, 11, Reading::Seen(10_000), Reading::Seen(100));
        assert_eq!((after.busy_ns, after.memory_byte_ns), (Reading::Seen(10 * S), Reading::Seen(1_000 * u128::from(S))));
        let late = looked(&mut totals, 22, Reading::Seen(10_000), Reading::Seen(100));
        assert_eq!((late.since, late.busy_ns, late.memory_byte_ns), (Mono(22 * S), Reading::Seen(0), Reading::Seen(0)));
    }
}
