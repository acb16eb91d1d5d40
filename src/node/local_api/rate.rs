//! How many calls somebody may make: a bucket of tokens each.

use std::collections::BTreeMap;

use super::peer::Guest;
use crate::domain::time::Mono;

/// Calls a second, in the long run.
const PER_S: u64 = 50;
/// Calls at once.
const BURST: u64 = 100;
/// All strangers together make as many calls as so many of them: an address is had for nothing.
const STRANGERS: u64 = 4;
/// Buckets kept; a full one need not be. Where there is no room for another address, strangers share what all of them have.
const KEPT_MAX: usize = 1_024;

/// In nanoseconds of refilling: one call costs this much.
const COST_NS: u64 = 1_000_000_000 / PER_S;

/// Who may still call how often.
#[derive(Debug, Default)]
pub(super) struct Rates {
    buckets: BTreeMap<Guest, Bucket>,
    strangers: Option<Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    filled_ns: u64,
    at: Mono,
}

impl Bucket {
    const fn full(now: Mono) -> Bucket {
        Bucket { filled_ns: BURST * COST_NS, at: now }
    }

    fn filled_at(self, now: Mono) -> u64 {
        self.filled_ns.saturating_add(now.since(self.at).0).min(BURST * COST_NS)
    }

    fn take(&mut self, cost_ns: u64, now: Mono) -> Result<(), ()> {
        let filled_ns = self.filled_at(now);
        let left = filled_ns.checked_sub(cost_ns);
        *self = Bucket { filled_ns: left.unwrap_or(filled_ns), at: now };
        left.map(drop).ok_or(())
    }
}

impl Rates {
    /// Takes a token, if there is one.
    pub(super) fn take(&mut self, guest: Guest, now: Mono) -> Result<(), ()> {
        if KEPT_MAX <= self.buckets.len() {
            self.buckets.retain(|_, bucket| bucket.filled_at(now) < BURST * COST_NS);
        }
        let is_stranger = matches!(guest, Guest::Address(_));
        let room = !is_stranger || self.buckets.len() < KEPT_MAX || self.buckets.contains_key(&guest);
        if room {
            self.buckets.entry(guest).or_insert(Bucket::full(now)).take(COST_NS, now)?;
        }
        if is_stranger { self.strangers.get_or_insert(Bucket::full(now)).take(COST_NS / STRANGERS, now) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::domain::id::Uid;

    fn calls(rates: &mut Rates, guest: Guest, at: Mono, count: u64) -> usize {
        (0..count).filter(|_| rates.take(guest, at).is_ok()).count()
    }

    fn address(number: u32) -> Guest {
        Guest::Address(IpAddr::V4(Ipv4Addr::from(0x7f00_0000 + number)))
    }

    #[test]
    fn a_user_has_a_burst_and_then_a_rate_of_its_own() {
        let mut rates = Rates::default();
        let (one, two) = (Guest::User(Uid(1)), Guest::User(Uid(2)));
        assert_eq!(calls(&mut rates, one, Mono(0), 200), 100);
        assert_eq!(calls(&mut rates, two, Mono(0), 1), 1, "another user is not slowed down");
        assert_eq!(calls(&mut rates, one, Mono(1_000_000_000), 200), 50);
        assert_eq!(calls(&mut rates, one, Mono(u64::MAX), 200), 100, "a long rest fills no more than the burst");
    }

    #[test]
    fn one_address_does_not_slow_another_down_and_all_together_are_bounded() {
        let mut rates = Rates::default();
        assert_eq!(calls(&mut rates, address(1), Mono(0), 200), 100);
        assert_eq!(calls(&mut rates, address(2), Mono(0), 10), 10);
        let others: usize = (3..100).map(|number| calls(&mut rates, address(number), Mono(0), 200)).sum();
        assert_eq!(100 + 10 + others, 400);
        assert_eq!(calls(&mut rates, Guest::User(Uid(1)), Mono(0), 200), 100, "whoever asks at the socket is known");
    }

    #[test]
    fn a_host_of_addresses_takes_no_more_room_than_there_is() {
        let mut rates = Rates::default();
        let second = |number: u32| Mono(u64::from(number) * 6_000_000);
        let served: usize = (0..5_000).map(|number| calls(&mut rates, address(number), second(number), 1)).sum();
        assert!(rates.buckets.len() <= KEPT_MAX && 4_900 < served, "{} kept, {served} served", rates.buckets.len());
        for number in 0..2_000 {
            let _ = rates.take(address(number), second(5_000));
        }
        assert!(rates.buckets.len() <= KEPT_MAX);
    }
}
