//! What waits for the store's thread. Under a lock, and not in a channel without one: such a channel spins while somebody is about to put
//! something in, and whoever puts something in can be put off by this very thread, which runs before all others. On a lock it sleeps instead.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A place to wait for at most `most` at a time.
pub(super) fn inbox<T>(most: usize) -> (Entrance<T>, Inbox<T>) {
    let state = State { waiting: VecDeque::new(), ended: Ended::No };
    let shared = Arc::new(Shared { state: Mutex::new(state), came: Condvar::new(), most });
    (Entrance(Arc::new(Opened(Arc::clone(&shared)))), Inbox(shared))
}

struct Shared<T> {
    state: Mutex<State<T>>,
    came: Condvar,
    most: usize,
}

struct State<T> {
    waiting: VecDeque<T>,
    ended: Ended,
}

/// Has the other side gone?
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    No,
    Yes,
}

impl<T> Shared<T> {
    /// What is in it is whole even where somebody panicked: each change is one push or one pop.
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A way in. The inbox has ended once all of these are gone.
pub(super) struct Entrance<T>(Arc<Opened<T>>);

impl<T> Clone for Entrance<T> {
    fn clone(&self) -> Entrance<T> {
        Entrance(Arc::clone(&self.0))
    }
}

struct Opened<T>(Arc<Shared<T>>);

impl<T> Drop for Opened<T> {
    fn drop(&mut self) {
        self.0.state().ended = Ended::Yes;
        self.0.came.notify_all();
    }
}

/// Why it was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotTaken {
    /// Too much waits.
    Full,
    /// Nobody takes anything out any more.
    Ended,
}

impl<T> Entrance<T> {
    /// Puts it in; never waits for room.
    ///
    /// # Errors
    /// It was dropped.
    pub(super) fn put(&self, message: T) -> Result<(), NotTaken> {
        let shared = &self.0.0;
        let mut state = shared.state();
        if state.ended == Ended::Yes {
            return Err(NotTaken::Ended);
        }
        if shared.most <= state.waiting.len() {
            return Err(NotTaken::Full);
        }
        state.waiting.push_back(message);
        drop(state);
        shared.came.notify_one();
        Ok(())
    }
}

/// The store's thread's side. What still waits when it goes is dropped.
pub(super) struct Inbox<T>(Arc<Shared<T>>);

impl<T> Drop for Inbox<T> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.ended = Ended::Yes;
        let unheard = std::mem::take(&mut state.waiting);
        drop(state);
        drop(unheard); // not under the lock: what is dropped may wake whoever waits for it
    }
}

/// Why nothing came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nothing {
    /// Not in that time.
    Yet,
    /// And nothing ever will.
    Ever,
}

impl<T> Inbox<T> {
    /// What came first; waits this long for it.
    ///
    /// # Errors
    /// See [`Nothing`].
    pub(super) fn take(&self, within: Duration) -> Result<T, Nothing> {
        let deadline = Instant::now() + within;
        let mut state = self.0.state();
        loop {
            if let Some(first) = state.waiting.pop_front() {
                return Ok(first);
            }
            if state.ended == Ended::Yes {
                return Err(Nothing::Ever);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Nothing::Yet);
            }
            state = self.0.came.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Those that wait, in their order, for as long as `is_wanted` says so of the next one; never waits.
    pub(super) fn take_while(&self, mut is_wanted: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut state = self.0.state();
        let mut taken = Vec::new();
        while let Some(next) = state.waiting.pop_front_if(|next| is_wanted(next)) {
            taken.push(next);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_ONCE: Duration = Duration::ZERO;
    const LONG: Duration = Duration::from_mins(1);

    #[test]
    fn what_waits_is_taken_in_its_order_and_no_more_than_fits_is_let_in() {
        let (entrance, inbox) = inbox(3);
        assert_eq!([1, 2, 3, 4].map(|message| entrance.put(message)), [Ok(()), Ok(()), Ok(()), Err(NotTaken::Full)]);
        assert_eq!(inbox.take(AT_ONCE), Ok(1));
        assert_eq!(entrance.put(5), Ok(()));
        assert_eq!(inbox.take_while(|next| *next < 5), [2, 3], "up to the first that is not wanted, which stays");
        assert_eq!(inbox.take(AT_ONCE), Ok(5));
        assert_eq!(inbox.take(AT_ONCE), Err(Nothing::Yet));
    }

    #[test]
    fn what_waits_is_still_taken_once_every_way_in_is_gone_and_then_nothing_ever_comes() {
        let (entrance, inbox) = inbox(3);
        let other = entrance.clone();
        drop(entrance);
        other.put(1).unwrap();
        drop(other);
        assert_eq!(inbox.take(LONG), Ok(1));
        assert_eq!(inbox.take(LONG), Err(Nothing::Ever));
    }

    #[test]
    fn who_waits_is_woken_by_a_message_and_by_the_end() {
        let (entrance, inbox) = inbox(3);
        let waits = std::thread::spawn(move || [inbox.take(LONG), inbox.take(LONG)]);
        std::thread::sleep(Duration::from_millis(20));
        entrance.put(1).unwrap();
        drop(entrance);
        assert_eq!(waits.join().unwrap(), [Ok(1), Err(Nothing::Ever)]);
    }

    #[test]
    fn nothing_is_let_in_once_nobody_takes_it_and_what_waited_is_dropped() {
        let (entrance, inbox) = inbox(3);
        let message = Arc::new(());
        entrance.put(Arc::clone(&message)).unwrap();
        drop(inbox);
        assert_eq!(Arc::strong_count(&message), 1);
        assert_eq!(entrance.put(message), Err(NotTaken::Ended));
    }

    #[test]
    fn all_that_many_put_in_at_once_comes_out_once_and_each_ones_own_in_order() {
        let (entrance, inbox) = inbox(100_000);
        let putting: Vec<_> = (0..8_u64)
            .map(|who| {
                let entrance = entrance.clone();
                std::thread::spawn(move || (0..1_000_u64).for_each(|nth| entrance.put((who, nth)).unwrap()))
            })
            .collect();
        drop(entrance);
        let mut next = [0; 8];
        while let Ok(first) = inbox.take(LONG) {
            for (who, nth) in std::iter::once(first).chain(inbox.take_while(|_| true)) {
                let expected = &mut next[usize::try_from(who).unwrap()];
                assert_eq!(nth, *expected);
                *expected += 1;
            }
        }
        assert_eq!(next, [1_000; 8]);
        for thread in putting {
            thread.join().unwrap();
        }
    }
}
