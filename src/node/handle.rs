//! How everybody else speaks to the loop: calls go in through one bounded queue, answers come back one by one; pictures are read
//! from the board without asking.

use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError};
use tokio::sync::{oneshot, watch};

use super::alarm::{Alarm, Alarms};
use super::link::Link;
use crate::domain::act::Acted;
use crate::domain::agent::start::Reply;
use crate::domain::budget::Over;
use crate::domain::enforcement::Enforcement;
use crate::domain::fact::Seq;
use crate::domain::id::{AccountId, Attempt, JobName, Uid};
use crate::domain::job::Ending;
use crate::domain::meter::{GpuSample, Host, Reading};
use crate::domain::news::News;
use crate::domain::rates::Card;
use crate::domain::receipt::Receipt;
use crate::domain::request::{ChangeRequest, StartRequest};
use crate::domain::terms::Report;
use crate::domain::turn::JournalState;
use crate::domain::view::View;
use crate::domain::wire::{Answer, GangWant, Push};

/// Who called, as the kernel says (`SO_PEERCRED`).
#[derive(Debug)]
pub struct Caller {
    /// Its user.
    pub uid: Uid,
    /// Its process.
    pub pid: u32,
    /// That very process, so that a reused pid is told apart; none where the kernel has no pidfds.
    pub pidfd: Option<OwnedFd>,
}

/// Everything that can be put into the loop's queue.
pub enum Inbox {
    /// Start metering a job.
    Start {
        /// What is asked for; who may ask has been checked.
        request: StartRequest,
        /// Who asks: for [`crate::domain::request::Place::Own`] this process is put into the new cgroup.
        caller: Caller,
        /// Where the answer goes.
        reply: oneshot::Sender<Reply>,
    },
    /// A job has ended.
    Stop {
        /// Which.
        name: JobName,
        /// How.
        ending: Ending,
        /// Where the answer goes.
        reply: oneshot::Sender<Reply>,
    },
    /// A job is given something else from now on.
    Change {
        /// Which.
        name: JobName,
        /// What.
        request: ChangeRequest,
        /// Who says so.
        by: Uid,
        /// Where the answer goes.
        reply: oneshot::Sender<Reply>,
    },
    /// A hook reports a counter or an event of a job.
    Report {
        /// Which job.
        name: JobName,
        /// What.
        report: Report,
        /// Where the answer goes.
        reply: oneshot::Sender<Reply>,
    },
    /// Set the mode of enforcement.
    Enforcement {
        /// To this.
        mode: Enforcement,
        /// By whom.
        by: Uid,
        /// Where the answer goes.
        reply: oneshot::Sender<Reply>,
    },
    /// The receipt of a job that the loop has at hand, as it now stands.
    Receipt {
        /// Which.
        name: JobName,
        /// Where it goes; none if the job is not at hand (then the journal may have it).
        reply: oneshot::Sender<Option<Receipt>>,
    },
    /// The hands did something.
    Acted(Acted),
    /// A job's last task went.
    Emptied(Attempt),
    /// An operator lets the next accounts be stopped.
    ConfirmStops {
        /// Who.
        by: Uid,
        /// Where the answer goes.
        reply: oneshot::Sender<Reply>,
    },
    /// The authority answered.
    Answered(Box<Answer>),
    /// The authority says that an account has changed.
    Pushed(Push),
    /// The authority says what a gang is to do.
    GangPushed(GangWant),
    /// The authority tells people of an account.
    Told(AccountId, News),
    /// Facts are on disk up to here.
    Durable(Seq),
    /// The disk takes nothing now, or again.
    JournalIs(JournalState),
    /// An edge's state: it holds now, and why; or no longer.
    Alarm(Alarm, Option<String>),
    /// Another card is to come into force.
    Card(Box<Card>),
    /// The card that is there cannot come into force, and why.
    CardUnfit(String),
    /// The configured mode, after a reload.
    Configured(Enforcement),
    /// What cannot be survived: the process ends with this message and recovers when started again.
    Fatal(String),
    /// End the loop once all that is known is on disk.
    Drain,
}

/// The loop's queue is full or the loop has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the agent is busy or ending")]
pub struct Busy;

/// How long a reader waits for a picture that is not made yet.
const CURRENT_WITHIN: Duration = Duration::from_secs(1);

/// A way into the loop.
#[derive(Clone)]
pub struct Handle {
    inbox: Sender<Inbox>,
    board: Arc<Board>,
}

impl Handle {
    /// A handle on a queue and a board.
    #[must_use]
    pub fn new(inbox: Sender<Inbox>, board: Arc<Board>) -> Handle {
        Handle { inbox, board }
    }

    /// Puts something into the queue, without waiting.
    ///
    /// # Errors
    /// When the queue is full, or the loop has ended.
    pub fn put(&self, message: Inbox) -> Result<(), Busy> {
        self.inbox.try_send(message).map_err(|error| match error {
            TrySendError::Full(_) | TrySendError::Disconnected(_) => Busy,
        })
    }

    /// Puts a report of an edge into the queue, waiting for room: while the loop runs, no such report is lost.
    pub fn report(&self, message: Inbox) {
        if self.inbox.send(message).is_err() {
            tracing::debug!(event = "report_after_end", "the loop has ended");
        }
    }

    /// The newest picture.
    #[must_use]
    pub fn picture(&self) -> Arc<Picture> {
        self.board.picture()
    }

    /// The newest picture, once it shows everything that was answered before this call: who has started a job finds it. If the loop
    /// makes none within [`CURRENT_WITHIN`], the newest there is.
    pub async fn current_picture(&self) -> Arc<Picture> {
        let mut shown = self.board.shown.subscribe();
        // Neither outcome is an error: the board lives as long as this handle, and an old picture tells its age.
        drop(tokio::time::timeout(CURRENT_WITHIN, shown.wait_for(|shown| *shown == Shown::All)).await);
        self.picture()
    }

    /// The board itself.
    #[must_use]
    pub fn board(&self) -> Arc<Board> {
        Arc::clone(&self.board)
    }
}

/// Does the newest picture show everything that was answered?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Shown {
    #[default]
    All,
    NotYet,
}

/// The newest picture of the agent, and the number of the last fact on disk, for whoever looks.
#[derive(Default)]
pub struct Board {
    picture: RwLock<Arc<Picture>>,
    shown: watch::Sender<Shown>,
    durable: watch::Sender<u64>,
    card: RwLock<Option<Arc<Card>>>,
}

impl Board {
    /// The newest picture.
    #[must_use]
    pub fn picture(&self) -> Arc<Picture> {
        Arc::clone(&self.picture.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Hangs up a new one; the one before it comes back.
    pub fn hang(&self, picture: Picture) -> Arc<Picture> {
        let picture = Arc::new(picture);
        let before = std::mem::replace(&mut *self.picture.write().unwrap_or_else(PoisonError::into_inner), picture);
        self.shown.send_replace(Shown::All);
        before
    }

    /// Something is about to be answered that the newest picture does not show; the next one will.
    pub fn fall_behind(&self) {
        self.shown.send_replace(Shown::NotYet);
    }

    /// Tells those who follow the journal how far it is on disk.
    pub fn tell_durable(&self, seq: u64) {
        self.durable.send_replace(seq);
    }

    /// Another card is in force.
    pub fn show_card(&self, card: Arc<Card>) {
        *self.card.write().unwrap_or_else(PoisonError::into_inner) = Some(card);
    }

    /// The card in force, if there is one.
    #[must_use]
    pub fn card(&self) -> Option<Arc<Card>> {
        self.card.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// To wait for more facts on disk.
    #[must_use]
    pub fn durable(&self) -> watch::Receiver<u64> {
        self.durable.subscribe()
    }
}

/// Everything that the status endpoint shows.
#[derive(Clone, Default)]
pub struct Picture {
    /// The state; none before the first tick.
    pub view: Option<View>,
    /// When it was taken (`CLOCK_MONOTONIC`, nanoseconds), to tell how old it is.
    pub taken_at_ns: u64,
    /// The GPUs.
    pub gpus: Option<Reading<Vec<GpuSample>>>,
    /// The machine.
    pub host: Host,
    /// How the loop does.
    pub stats: Stats,
}

/// How the loop does. Counts are totals since the process began.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Ticks.
    pub tick_count: u64,
    /// Ticks left out since the loop was late.
    pub tick_missed_count: u64,
    /// The last tick: from its beginning to its publication, in nanoseconds.
    pub tick_ns: u64,
    /// How late the last tick began, in nanoseconds.
    pub tick_late_ns: u64,
    /// How late the latest one began.
    pub tick_late_max_ns: u64,
    /// Between two ticks now, in nanoseconds; wider than configured while the agent costs more than its budget. 0 before the first.
    pub interval_ns: u64,
    /// Of what the agent costs too much, while the interval is wider for that.
    pub over_budget: Option<Over>,
    /// How often the interval was widened.
    pub widened_count: u64,
    /// CPU time by thread, in nanoseconds; read every few ticks.
    pub threads_cpu_ns: std::collections::BTreeMap<String, u64>,
    /// Open descriptors; read every few ticks.
    pub descriptors: u64,
    /// Batches handed to the journal.
    pub commit_count: u64,
    /// Bytes of facts in them.
    pub commit_bytes: u64,
    /// CPU time of the whole process, in nanoseconds.
    pub cpu_ns: u64,
    /// Resident memory of the process, in bytes.
    pub resident_bytes: u64,
    /// What was ordered of the hands, by act, and with which outcome it was reported.
    pub acted: std::collections::BTreeMap<(&'static str, &'static str), u64>,
    /// Questions sent to the authority, repeats included.
    pub asked_count: u64,
    /// The link to an authority over the network; none where it is embedded. Not a copy: it tells how things are when it is read.
    pub link: Option<Arc<Link>>,
    /// Readings that were missing, by reason.
    pub missing: std::collections::BTreeMap<String, u64>,
    /// The journal's disk.
    pub journal_full: bool,
    /// States that somebody should know of.
    pub alarms: Alarms,
    /// What the loop's thread got from the scheduler, for people.
    pub loop_scheduling: String,
    /// The same for the hands.
    pub hands_scheduling: String,
    /// How cgroups are mounted here, for people: `unified`, `hybrid`, or why there are none.
    pub cgroup_layout: String,
    /// Which hierarchy serves which need: `cpu_time`, `memory`, `freezing`, `io`, `pids`, `pressure`.
    pub cgroup_needs: std::collections::BTreeMap<String, String>,
    /// How their CPU time and memory are read, for people: `walk`, or `files` and why.
    pub cgroup_reads: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_looks_after_an_answer_waits_for_the_picture_that_shows_it() {
        let board = Arc::new(Board::default());
        let handle = Handle::new(crossbeam_channel::bounded(1).0, Arc::clone(&board));
        assert_eq!(handle.current_picture().await.taken_at_ns, 0, "nothing is owed");
        board.fall_behind();
        let looking = tokio::spawn(async move { handle.current_picture().await.taken_at_ns });
        tokio::time::sleep(CURRENT_WITHIN / 20).await;
        assert!(!looking.is_finished());
        drop(board.hang(Picture { taken_at_ns: 7, ..Picture::default() }));
        assert_eq!(looking.await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_loop_that_makes_no_picture_is_waited_for_no_longer_than_a_second() {
        let board = Arc::new(Board::default());
        let handle = Handle::new(crossbeam_channel::bounded(1).0, Arc::clone(&board));
        board.fall_behind();
        assert_eq!(handle.current_picture().await.taken_at_ns, 0);
    }
}
