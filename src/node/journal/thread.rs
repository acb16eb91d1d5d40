//! The journal on a thread of its own, so that a slow disk keeps nobody waiting.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};

use super::{Journal, JournalError, Reserve};
use crate::domain::batch::Batch;
use crate::domain::chain::Head;
use crate::domain::meter::Reading;
use crate::node::priority::raise_priority;

/// Most batches that wait. At one a second: a minute of a disk that stands still.
const WAITING_MAX: usize = 64;

/// How long to wait before a full or blocked disk is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A journal that is written by its own thread.
pub struct JournalThread {
    inbox: Sender<Batch>,
    ending: Ending,
    durable: Durable,
    thread: JoinHandle<Result<Journal, JournalError>>,
}

/// What the thread says.
#[derive(Debug)]
pub enum JournalNotice {
    /// Every row up to this one is durable.
    Durable {
        /// Its number.
        seq: u64,
        /// Is the reserve still there?
        reserve: Reserve,
    },
    /// The disk is full or blocked; said once, until a `Durable` follows. What was submitted is kept and tried again.
    Full(JournalError),
    /// The thread has ended: the process must end.
    Fatal(JournalError),
}

/// A batch that was not taken.
#[derive(Debug)]
pub enum NotTaken {
    /// Too many are waiting.
    Busy(Batch),
    /// The thread has ended.
    Ended(Batch),
}

/// The last fact on disk, and its link, for whoever tells others of it.
#[derive(Clone)]
struct Durable(Arc<Mutex<Head>>);

impl Durable {
    fn is_now(&self, head: Head) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = head;
    }

    fn head(&self) -> Head {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says, once dropped, that what does not fit the disk may be given up.
struct Ending(Arc<AtomicBool>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl JournalThread {
    /// Starts the thread. `notice` is called from it.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(journal: Journal, notice: impl FnMut(JournalNotice) + Send + 'static) -> std::io::Result<JournalThread> {
        let (inbox, batches) = bounded(WAITING_MAX);
        let ending = Ending(Arc::new(AtomicBool::new(false)));
        let seen = Arc::clone(&ending.0);
        let durable = Durable(Arc::new(Mutex::new(journal.head())));
        let reached = durable.clone();
        let thread = std::thread::Builder::new().name("journal".to_owned()).spawn(move || {
            // What waits for the disk must not wait for a CPU as well, on a machine whose every core is busy.
            if let Reading::Missing(why) = raise_priority() {
                tracing::debug!(event = "journal_priority", %why);
            }
            run(journal, &batches, &seen, &reached, notice)
        })?;
        Ok(JournalThread { inbox, ending, durable, thread })
    }

    /// The last fact on disk, and its link.
    #[must_use]
    pub fn head(&self) -> Head {
        self.durable.head()
    }

    /// Hands a batch over; never waits. Batches that wait are committed together.
    ///
    /// # Errors
    /// The batch, if it was not taken.
    pub fn submit(&self, batch: Batch) -> Result<(), NotTaken> {
        self.inbox.try_send(batch).map_err(|error| match error {
            TrySendError::Full(batch) => NotTaken::Busy(batch),
            TrySendError::Disconnected(batch) => NotTaken::Ended(batch),
        })
    }

    /// Commits what waits, and ends the thread.
    ///
    /// # Errors
    /// When it could not be committed.
    pub fn finish(self) -> Result<Journal, JournalError> {
        drop(self.ending);
        drop(self.inbox);
        self.thread.join().unwrap_or_else(|_| Err(JournalError::Fatal("the journal's thread panicked".to_owned())))
    }
}

/// Commits batches until the sender is gone and nothing waits.
fn run(
    mut journal: Journal,
    batches: &Receiver<Batch>,
    ending: &AtomicBool,
    durable: &Durable,
    mut notice: impl FnMut(JournalNotice),
) -> Result<Journal, JournalError> {
    loop {
        let first = match batches.recv_timeout(RETRY) {
            Ok(first) => first,
            // While the reserve is gone few facts are made, perhaps none: it must not wait for one to come back.
            Err(RecvTimeoutError::Timeout) => {
                if journal.reserve() == Reserve::InUse && journal.restore_reserve() == Reserve::Kept {
                    notice(JournalNotice::Durable { seq: journal.head().seq, reserve: Reserve::Kept });
                }
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(journal),
        };
        let mut waiting = vec![first];
        waiting.extend(batches.try_iter().take(WAITING_MAX));
        match commit(&mut journal, waiting, (ending, durable), &mut notice) {
            Ok(()) => {}
            Err(error) if error.may_pass() => return Err(error),
            Err(error) => {
                let text = error.to_string();
                notice(JournalNotice::Fatal(error));
                return Err(JournalError::Fatal(text));
            }
        }
    }
}

/// Commits all that waits; where that does not fit the disk, batch by batch, oldest first, for as long as it takes.
fn commit(
    journal: &mut Journal,
    mut waiting: Vec<Batch>,
    (ending, durable): (&AtomicBool, &Durable),
    notice: &mut impl FnMut(JournalNotice),
) -> Result<(), JournalError> {
    let mut together = waiting.len();
    let mut said_full = false;
    while !waiting.is_empty() {
        match journal.commit_all(&waiting[..together]) {
            Ok(()) => {
                durable.is_now(journal.head());
                waiting.drain(..together);
                together = 1;
                said_full = false;
                notice(JournalNotice::Durable { seq: journal.head().seq, reserve: journal.reserve() });
            }
            Err(error) if !error.may_pass() => return Err(error),
            Err(_) if 1 < together => together = 1,
            Err(error) if ending.load(Ordering::Acquire) => return Err(error),
            Err(error) => {
                if !std::mem::replace(&mut said_full, true) {
                    notice(JournalNotice::Full(error));
                }
                std::thread::sleep(RETRY);
            }
        }
    }
    Ok(())
}
