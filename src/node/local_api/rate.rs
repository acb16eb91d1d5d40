//! How many calls a user may make: a bucket of tokens each.

use std::collections::BTreeMap;

use crate::domain::id::Uid;
use crate::domain::time::Mono;
use crate::node::access::Who;

/// Calls a second, in the long run.
const PER_S: u64 = 50;
/// Calls at once.
const BURST: u64 = 100;
/// Buckets kept; a full one need not be.
const KEPT_MAX: usize = 1_024;

/// In nanoseconds of refilling: one call costs this much.
const COST_NS: u64 = 1_000_000_000 / PER_S;

/// Who may still call how often. All strangers together are one caller.
#[derive(Debug, Default)]
pub(super) struct Rates {
    buckets: BTreeMap<Option<Uid>, Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    filled_ns: u64,
    at: Mono,
}

impl Bucket {
    fn filled_at(self, now: Mono) -> u64 {
        self.filled_ns.saturating_add(now.since(self.at).0).min(BURST * COST_NS)
    }
}

impl Rates {
    /// Takes a token, if there is one.
    pub(super) fn take(&mut self, who: &Who, now: Mono) -> Result<(), ()> {
        let key = match who {
            Who::Stranger => None,
            Who::Local { uid, .. } => Some(*uid),
        };
        if KEPT_MAX <= self.buckets.len() {
            self.buckets.retain(|_, bucket| bucket.filled_at(now) < BURST * COST_NS);
        }
        let full = Bucket { filled_ns: BURST * COST_NS, at: now };
        let bucket = self.buckets.entry(key).or_insert(full);
        let filled_ns = bucket.filled_at(now);
        let left = filled_ns.checked_sub(COST_NS);
        *bucket = Bucket { filled_ns: left.unwrap_or(filled_ns), at: now };
        left.map(drop).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(rates: &mut Rates, who: &Who, at: Mono, count: u64) -> usize {
        (0..count).filter(|_| rates.take(who, at).is_ok()).count()
    }

    #[test]
    fn a_user_has_a_burst_and_then_a_rate_of_its_own() {
        let mut rates = Rates::default();
        let one = Who::Local { uid: Uid(1), groups: Vec::new() };
        let two = Who::Local { uid: Uid(2), groups: Vec::new() };
        assert_eq!(calls(&mut rates, &one, Mono(0), 200), 100);
        assert_eq!(calls(&mut rates, &two, Mono(0), 1), 1, "another user is not slowed down");
        assert_eq!(calls(&mut rates, &one, Mono(1_000_000_000), 200), 50);
        assert_eq!(calls(&mut rates, &one, Mono(u64::MAX), 200), 100, "a long rest fills no more than the burst");
    }
}
