//! Carries out orders: freezes before all else, and says what came of each.
//!
//! One thread, two bounded queues. An order is begun by its writes, to *all* of the job's directories, each through a descriptor whose inode was
//! checked; then it is confirmed from `cgroup.events`: read once right after the write, then on `poll(POLLPRI)` and at pauses of 1 ms,
//! doubling (the kernel holds notifications back for 10 ms, so poll alone is late). Confirmations that wait are looked at in turn, so
//! none holds up another order; where many wait, at pauses alone.
//!
//! Where a job has no cgroup2 directory that can be frozen, the v1 freezer serves, and where there is none, signals ([`super::freezer`]).

mod legacy;
mod work;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;

use self::work::{Begun, OwnDirs, Work};
use super::clock;
use super::layout::Layout;
use super::priority::{Scheduling, raise_priority};
use super::process_tree::ProcessTrees;
use crate::domain::act::{Act, ActOutcome, Acted, Order};
use crate::domain::id::Attempt;
use crate::domain::meter::{Missing, Reading};
use crate::domain::time::{Mono, Nanos};

/// Orders that may wait in each of the two queues.
pub const QUEUE_MAX: usize = 8_192;

/// How long an act may take to show before it is [`ActOutcome::Unconfirmed`].
pub const CONFIRM_WITHIN: Nanos = Nanos::from_secs(2);

/// The first pause between two looks at one confirmation; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Nanos = Nanos::from_millis(1);

/// The longest pause.
const PAUSE_MAX: Nanos = Nanos::from_millis(64);

/// Of more that wait at once none is watched by `poll`, which goes over all of them whenever one changes; they are looked at more often instead.
const WATCHED_MAX: usize = 16;

/// The longest pause then; but it is this long for each that waits, since looks at thousands must leave the tasks time to come to a stop.
const PAUSE_MAX_UNWATCHED: Nanos = Nanos::from_millis(4);
const PAUSE_EACH: Nanos = Nanos(20_000);

/// The queue is full, or the hands have ended: try again at the next turn.
#[derive(Debug, thiserror::Error)]
#[error("the hands are busy: {} of attempt {} was not taken", .0.act, .0.attempt)]
pub struct Busy(pub Order);

/// The thread that acts. Dropping it ends the thread after the orders already taken, and waits for it.
#[derive(Debug)]
pub struct Hands {
    freezes: Option<Sender<Numbered>>,
    rest: Option<Sender<Numbered>>,
    wake: Arc<OwnedFd>,
    next: std::sync::atomic::AtomicU64,
    scheduling: Reading<Scheduling>,
    thread: Option<JoinHandle<()>>,
}

/// An order with its place among all.
#[derive(Debug)]
struct Numbered {
    number: u64,
    order: Order,
}

impl Hands {
    /// Starts the thread. `report` is called on it, once for each order; it must not block.
    ///
    /// # Errors
    /// When the kernel gives no thread or descriptor.
    pub fn start(layout: Option<Arc<Layout>>, trees: ProcessTrees, report: impl FnMut(Acted) + Send + 'static) -> io::Result<Hands> {
        let (freezes, freezes_in) = bounded(QUEUE_MAX);
        let (rest, rest_in) = bounded(QUEUE_MAX);
        let (got, got_in) = bounded(1);
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let woken = Arc::clone(&wake);
        let run = move || {
            // The receiver waits for exactly this.
            let _ = got.send(raise_priority());
            Worker { layout, trees, report, waiting: Vec::new(), last_freeze: BTreeMap::new(), own: OwnDirs::default() }.run(
                &freezes_in,
                &rest_in,
                &woken,
            );
        };
        let thread = std::thread::Builder::new().name("hands".to_owned()).spawn(run)?;
        let scheduling = got_in.recv().unwrap_or(Reading::Missing(Missing::Failed("the thread ended".to_owned())));
        let next = std::sync::atomic::AtomicU64::new(1);
        Ok(Hands { freezes: Some(freezes), rest: Some(rest), wake, next, scheduling, thread: Some(thread) })
    }

    /// Hands over an order; freezes overtake all others. What a later freeze of the same job overtakes (a thaw) is not done any more.
    ///
    /// # Errors
    /// Gives the order back when its queue is full.
    pub fn submit(&self, order: Order) -> Result<(), Busy> {
        let queue = if order.act == Act::Freeze { &self.freezes } else { &self.rest };
        let Some(queue) = queue else { return Err(Busy(order)) };
        let number = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        queue.try_send(Numbered { number, order }).map_err(|error| Busy(error.into_inner().order))?;
        wake(&self.wake);
        Ok(())
    }

    /// What scheduling the thread got.
    #[must_use]
    pub fn scheduling(&self) -> Reading<Scheduling> {
        self.scheduling.clone()
    }
}

impl Drop for Hands {
    fn drop(&mut self) {
        self.freezes = None;
        self.rest = None;
        wake(&self.wake);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn wake(fd: &OwnedFd) {
    // Full means that the thread is being woken already.
    let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
}

/// An order that was begun and has not shown yet.
#[derive(Debug)]
struct Waiting {
    order: Order,
    asked_at: Mono,
    next_look: Mono,
    pause: Nanos,
    syscall: String,
    work: Work,
}

struct Worker<R> {
    layout: Option<Arc<Layout>>,
    trees: ProcessTrees,
    report: R,
    waiting: Vec<Waiting>,
    /// The number of each job's last freeze, while older orders can still be in the other queue.
    last_freeze: BTreeMap<Attempt, u64>,
    own: OwnDirs,
}

impl<R: FnMut(Acted)> Worker<R> {
    fn run(&mut self, freezes: &Receiver<Numbered>, rest: &Receiver<Numbered>, woken: &OwnedFd) {
        loop {
            let mut count = [0_u8; 8];
            // Emptied before the queues are: an order that comes in between wakes again.
            let _ = rustix::io::read(woken, &mut count);
            while let Ok(freeze) = freezes.try_recv() {
                self.last_freeze.insert(freeze.order.attempt, freeze.number);
                self.begin(freeze.order);
            }
            let ended = match rest.try_recv() {
                Ok(other) => {
                    self.begin_unless_overtaken(other);
                    self.confirm();
                    continue;
                }
                Err(TryRecvError::Empty) => false,
                Err(TryRecvError::Disconnected) => freezes.is_empty(),
            };
            self.last_freeze.clear();
            self.confirm();
            if ended && self.waiting.is_empty() {
                return;
            }
            self.wait(woken);
        }
    }

    fn begin_unless_overtaken(&mut self, Numbered { number, order }: Numbered) {
        let overtaken =
            matches!(order.act, Act::Thaw | Act::Terminate) && self.last_freeze.get(&order.attempt).is_some_and(|freeze| *freeze > number);
        if overtaken {
            let now = clock::mono();
            let syscall = "none: overtaken by a later freeze".to_owned();
            self.tell(&order, now, syscall, ActOutcome::Unconfirmed);
        } else {
            self.begin(order);
        }
    }

    fn begin(&mut self, order: Order) {
        let asked_at = clock::mono();
        self.give_up_contrary(&order);
        match work::begin(self.layout.as_deref(), &self.trees, &mut self.own, &order) {
            Begun::Done(syscall, outcome) => self.tell(&order, asked_at, syscall, outcome),
            Begun::Waits(syscall, mut work) => {
                if let Some(outcome) = work.look(self.layout.as_deref(), &self.trees) {
                    self.tell(&order, asked_at, syscall, outcome);
                } else {
                    let next_look = clock::mono().plus(PAUSE_MIN);
                    self.waiting.push(Waiting { order, asked_at, next_look, pause: PAUSE_MIN, syscall, work });
                }
            }
        }
    }

    /// What the new order undoes will not show any more.
    fn give_up_contrary(&mut self, order: &Order) {
        let contrary = |waiting: &Waiting| {
            let pair = (waiting.order.act, order.act);
            waiting.order.attempt == order.attempt
                && matches!(pair, (Act::Freeze, Act::Thaw | Act::Terminate) | (Act::Thaw | Act::Terminate, Act::Freeze))
        };
        let given_up: Vec<Waiting> = self.waiting.extract_if(.., |waiting| contrary(waiting)).collect();
        for waiting in given_up {
            self.tell(&waiting.order, waiting.asked_at, waiting.syscall, ActOutcome::Unconfirmed);
        }
    }

    /// One look at every confirmation that is due.
    fn confirm(&mut self) {
        let now = clock::mono();
        let least = Nanos(PAUSE_EACH.0.saturating_mul(self.waiting.len() as u64)).min(PAUSE_MAX);
        let most = if self.waiting.len() <= WATCHED_MAX { PAUSE_MAX } else { PAUSE_MAX_UNWATCHED.max(least) };
        let mut still = Vec::with_capacity(self.waiting.len());
        for mut waiting in std::mem::take(&mut self.waiting) {
            if waiting.next_look > now {
                still.push(waiting);
                continue;
            }
            let outcome = match waiting.work.look(self.layout.as_deref(), &self.trees) {
                None if now.since(waiting.asked_at) >= CONFIRM_WITHIN => {
                    waiting.work.give_up();
                    Some(ActOutcome::Unconfirmed)
                }
                outcome => outcome,
            };
            if let Some(outcome) = outcome {
                self.tell(&waiting.order, waiting.asked_at, waiting.syscall, outcome);
            } else {
                waiting.pause = Nanos(waiting.pause.0 * 2).clamp(least, most);
                waiting.next_look = now.plus(waiting.pause);
                still.push(waiting);
            }
        }
        self.waiting = still;
    }

    /// Sleeps until an order comes, a watched file changes, or the next look is due.
    fn wait(&mut self, woken: &OwnedFd) {
        let now = clock::mono();
        let until_next = self.waiting.iter().map(|waiting| waiting.next_look.since(now)).min();
        let timeout = until_next.map(|length| Timespec {
            tv_sec: i64::try_from(length.0 / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(length.0 % 1_000_000_000).unwrap_or(0),
        });
        let mut fds = vec![PollFd::new(woken, PollFlags::IN)];
        let mut whose = vec![None];
        let watched = if self.waiting.len() <= WATCHED_MAX { self.waiting.as_slice() } else { &[] };
        for (nth, waiting) in watched.iter().enumerate() {
            for file in waiting.work.files() {
                fds.push(PollFd::new(file, PollFlags::PRI));
                whose.push(Some(nth));
            }
        }
        // Interrupted, or short of memory: the loop goes round and looks at what is due.
        if poll(&mut fds, timeout.as_ref()).is_err() {
            return;
        }
        let changed: Vec<usize> = fds.iter().zip(whose).filter(|(fd, _)| !fd.revents().is_empty()).filter_map(|(_, nth)| nth).collect();
        for nth in changed {
            self.waiting[nth].next_look = now;
        }
    }

    fn tell(&mut self, order: &Order, asked_at: Mono, syscall: String, outcome: ActOutcome) {
        (self.report)(Acted { attempt: order.attempt, act: order.act, asked_at, done_at: clock::mono(), syscall, outcome });
    }
}

#[cfg(test)]
mod tests;
