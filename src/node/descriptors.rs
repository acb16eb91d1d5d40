//! How many descriptors the agent may have, and how many of them may be kept for jobs: up to seven each (its directories, its counters, what
//! is watched). Where these are too few, what is worth least is closed and opened for each reading; what is not kept costs time, never a job.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// As many as `meterd.service` asks for: enough to keep all of 9,000 jobs.
pub const WANTED: u64 = 65_536;

/// At most so many are left for everything else: connections, the journal, what is opened for one reading.
const RESERVED_MAX: usize = 1_024;

/// The descriptors that may be kept for jobs. Whoever keeps one holds a [`Place`].
#[derive(Debug)]
pub struct Room {
    places: usize,
    taken: AtomicUsize,
}

/// The right to keep one descriptor; given back when dropped.
#[derive(Debug)]
pub struct Place(Arc<Room>);

impl Room {
    /// So many places.
    #[must_use]
    pub fn of(places: usize) -> Arc<Room> {
        Arc::new(Room { places, taken: AtomicUsize::new(0) })
    }

    /// What the limit on descriptors leaves once a quarter of it, but no more than 1,024, is set aside.
    #[must_use]
    pub fn within_limit() -> Arc<Room> {
        let limit = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        Room::of(limit - (limit / 4).min(RESERVED_MAX))
    }

    /// How many places are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.places.saturating_sub(self.taken.load(Ordering::Relaxed))
    }

    /// A place, if one is free.
    #[must_use]
    pub fn take(self: &Arc<Room>) -> Option<Place> {
        let one_more = |taken: usize| (taken < self.places).then_some(taken + 1);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Place(Arc::clone(self)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Raises the limit as far as it is allowed, at most to [`WANTED`]; returns what it now is, `None` if there is none.
#[must_use]
pub fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let (now, most) = (limit.current?, limit.maximum.unwrap_or(WANTED));
    // Beyond the hard limit only where the agent may raise that too (CAP_SYS_RESOURCE).
    for wanted in [WANTED, WANTED.min(most)] {
        let raised = Rlimit { current: Some(wanted), maximum: Some(wanted.max(most)) };
        if now < wanted && setrlimit(Resource::Nofile, raised).is_ok() {
            return Some(wanted);
        }
    }
    Some(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_held_by_one_at_a_time_and_comes_back() {
        let room = Room::of(2);
        let (first, second) = (room.take(), room.take());
        assert!(first.is_some() && second.is_some() && room.take().is_none());
        drop(second);
        assert_eq!(room.free(), 1);
        assert!(room.take().is_some());
    }

    #[test]
    fn some_of_the_limit_is_always_left_for_everything_else() {
        let limit = usize::try_from(getrlimit(Resource::Nofile).current.unwrap()).unwrap();
        let free = Room::within_limit().free();
        assert!(free < limit && limit / 2 < free, "{free} of {limit}");
    }

    #[test]
    fn the_limit_is_what_the_kernel_says_and_never_falls() {
        let before = getrlimit(Resource::Nofile).current;
        let told = raise_limit();
        assert_eq!(getrlimit(Resource::Nofile).current, told);
        assert!(before.is_none() || before <= told, "{before:?} {told:?}");
    }
}
