//! The newest value of something, left by one thread and taken by others, who never wait for it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, TryLockError};

/// A place for the newest value. Two copies: a writer changes only the one that nobody is sent to, so that a reader
/// never waits for a writer that lost its CPU while it held a lock.
#[derive(Debug)]
pub struct Slot<T> {
    copies: [RwLock<Arc<T>>; 2],
    current: AtomicUsize,
    writer: Mutex<()>,
}

impl<T> Slot<T> {
    /// A slot that holds `first`.
    pub fn new(first: T) -> Slot<T> {
        let first = Arc::new(first);
        Slot { copies: [RwLock::new(Arc::clone(&first)), RwLock::new(first)], current: AtomicUsize::new(0), writer: Mutex::new(()) }
    }

    /// Leaves a newer value. Writers wait for each other.
    pub fn put(&self, value: T) {
        let _writing = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let value = Arc::new(value);
        let next = 1 - self.current.load(Ordering::Acquire);
        let mut copy = self.copies[next].write().unwrap_or_else(PoisonError::into_inner);
        *copy = value;
        // Still under the lock: nobody may see this value and after it the one before.
        self.current.store(next, Ordering::Release);
    }

    /// The newest value. Never waits: where one copy is being overwritten, the other one is whole, and newer than any that was seen.
    pub fn newest(&self) -> Arc<T> {
        loop {
            let current = self.current.load(Ordering::Acquire);
            for copy in [&self.copies[current], &self.copies[1 - current]] {
                match copy.try_read() {
                    Ok(value) => return Arc::clone(&value),
                    Err(TryLockError::Poisoned(value)) => return Arc::clone(&value.into_inner()),
                    Err(TryLockError::WouldBlock) => {}
                }
            }
            // Both were written meanwhile; the writer goes on, so this ends.
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_values_in_the_order_they_were_left() {
        const LAST: u64 = 20_000;
        let slot = Slot::new(0_u64);
        std::thread::scope(|scope| {
            scope.spawn(|| (1..=LAST).for_each(|value| slot.put(value)));
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut before = 0;
                    while before < LAST {
                        let value = *slot.newest();
                        assert!(value >= before, "{value} after {before}");
                        before = value;
                    }
                });
            }
        });
        assert_eq!(*slot.newest(), LAST);
    }

    #[test]
    fn a_writer_that_is_stuck_does_not_block_a_reader() {
        let slot = Slot::new("old");
        for copy in &slot.copies {
            let stuck = copy.write().unwrap();
            assert_eq!(*slot.newest(), "old");
            drop(stuck);
        }
    }
}
