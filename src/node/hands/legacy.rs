//! Orders to a job that cgroup2 cannot freeze: through `freezer.state` of v1, or by signals to every process.
//!
//! A v1 freezer holds signals back: SIGKILL waits in a frozen task until `THAWED`. So a job is killed by freezing it (nothing forks then),
//! signalling every process, and thawing: each dies before it runs its own code again. This is repeated until nobody is left, for
//! whoever was moved into it meanwhile.

use rustix::process::Signal;

use super::work::{Begun, Work, said};
use crate::domain::act::{Act, ActOutcome};
use crate::domain::meter::{Frozen, Missing, Reading};
use crate::node::cgroup_dir::{OpenDir, missing_for, read_all};
use crate::node::freezer::{self, Stopper, signal_below, signal_some};
use crate::node::process_tree::{self, Life};

/// Looks that a freeze may stay `FREEZING` before the kill goes on all the same: a task in an uninterruptible wait forks nothing.
const FREEZING_LOOKS_MAX: u32 = 6;
/// Looks at a job that was killed and is not empty before it is frozen and killed again.
const DYING_LOOKS_MAX: u32 = 4;
/// Rounds of signals in one look: each one stops what the round before let fork.
const ROUNDS: u32 = 4;

/// An order that was begun.
#[derive(Debug)]
pub(super) struct Legacy {
    stopper: Stopper,
    dirs: Vec<OpenDir>,
    act: Act,
    kill: Kill,
    looks: u32,
    quiet_rounds: u32,
}

/// How far a kill has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kill {
    /// It is being frozen, so that nothing is forked.
    Stopping,
    /// Every process has its SIGKILL, and may take it.
    Dying,
}

/// Does the first half of an order.
pub(super) fn begin(stopper: Stopper, dirs: Vec<OpenDir>, act: Act) -> Begun {
    if let Some(dir) = dirs.iter().find(|dir| dir.processes_below().is_ok_and(|pids| pids.contains(&std::process::id()))) {
        return Begun::Done("none".to_owned(), ActOutcome::Refused(format!("{} holds the agent itself", dir.dir.path)));
    }
    let syscall = syscall(stopper, &dirs, act);
    let mut legacy = Legacy { stopper, dirs, act, kill: Kill::Stopping, looks: 0, quiet_rounds: 0 };
    let begun = match act {
        Act::Freeze | Act::Kill => legacy.stop(),
        Act::Thaw => legacy.go_on(),
        Act::Terminate => legacy.signal(Signal::TERM).and_then(|()| legacy.go_on()),
        Act::Remove | Act::Warn => Ok(()),
    };
    match begun {
        Ok(()) if legacy.dirs.is_empty() => Begun::Done(syscall, ActOutcome::Gone),
        Ok(()) => Begun::Waits(syscall, Work::Legacy(legacy)),
        Err(why) => Begun::Done(syscall, ActOutcome::Failed(why)),
    }
}

fn syscall(stopper: Stopper, dirs: &[OpenDir], act: Act) -> String {
    let paths = || dirs.iter().map(|dir| dir.dir.path.as_str());
    let state = |text: &str| said(&format!("write {text} to"), paths(), "/freezer.state");
    let signals = |names: &str| said(&format!("pidfd_send_signal {names} to each of"), paths(), "/cgroup.procs");
    match (stopper, act) {
        (Stopper::V1, Act::Freeze) => state("FROZEN"),
        (Stopper::V1, Act::Thaw) => state("THAWED"),
        (Stopper::V1, Act::Terminate) => format!("{}; {}", signals("SIGTERM"), state("THAWED")),
        (Stopper::V1, Act::Kill) => format!("{}; {}; {}", state("FROZEN"), signals("SIGKILL"), state("THAWED")),
        (_, Act::Freeze) => signals("SIGSTOP"),
        (_, Act::Thaw) => signals("SIGCONT"),
        (_, Act::Terminate) => signals("SIGTERM, SIGCONT"),
        (_, Act::Kill) => signals("SIGSTOP, SIGKILL"),
        (_, Act::Remove | Act::Warn) => "none".to_owned(),
    }
}

impl Legacy {
    /// One look: `None` while it has not shown.
    pub(super) fn look(&mut self) -> Option<ActOutcome> {
        self.looks += 1;
        self.dirs.retain(OpenDir::is_there);
        if self.dirs.is_empty() {
            return Some(if self.act == Act::Kill { ActOutcome::Confirmed } else { ActOutcome::Gone });
        }
        let shown = match self.act {
            Act::Freeze => self.look_stopped(),
            Act::Thaw | Act::Terminate => self.look_going(),
            Act::Kill => self.look_killed(),
            Act::Remove | Act::Warn => Ok(true),
        };
        match shown {
            Ok(true) => Some(ActOutcome::Confirmed),
            Ok(false) => None,
            Err(why) => Some(ActOutcome::Failed(why)),
        }
    }

    /// The deadline is over: a kill leaves nothing frozen behind.
    pub(super) fn give_up(&mut self) {
        if self.act == Act::Kill {
            let _ = self.signal(Signal::KILL);
            let _ = self.go_on();
        }
    }

    /// Writes `FROZEN`, or sends SIGSTOP. Written again it is asserted again: the kernel looks anew at each task that still runs.
    fn stop(&mut self) -> Result<(), String> {
        match self.stopper {
            Stopper::V1 => self.write_state("FROZEN"),
            Stopper::V2 | Stopper::Signals(_) => self.stop_running(),
        }
    }

    fn go_on(&mut self) -> Result<(), String> {
        match self.stopper {
            Stopper::V1 => self.write_state("THAWED"),
            Stopper::V2 | Stopper::Signals(_) => self.signal(Signal::CONT),
        }
    }

    fn write_state(&mut self, text: &str) -> Result<(), String> {
        let mut failed = None;
        self.dirs.retain(|dir| match dir.write("freezer.state", text) {
            Ok(()) => true,
            Err(_) if !dir.is_there() => false,
            // The others are still written: a job that is stopped in part is better than one that runs on.
            Err(errno) => {
                failed.get_or_insert(format!("{}/freezer.state: {errno}", dir.dir.path));
                true
            }
        });
        failed.map_or(Ok(()), Err)
    }

    fn signal(&self, signal: Signal) -> Result<(), String> {
        let send = |dir: &OpenDir| signal_below(dir, signal).map_err(|errno| format!("{}: {errno}", dir.dir.path));
        self.dirs.iter().try_for_each(send)
    }

    fn stop_running(&mut self) -> Result<(), String> {
        let runs = |pid| (process_tree::life_of(pid) == Ok(Life::Running)).then_some(Signal::STOP);
        let send = |dir: &OpenDir| signal_some(dir, runs).map_err(|errno| format!("{}: {errno}", dir.dir.path));
        self.dirs.iter().try_for_each(send)
    }

    /// Does every directory stand still, or hold no task?
    fn look_stopped(&mut self) -> Result<bool, String> {
        if self.stopper == Stopper::V1 {
            let still = self.all(|dir| match freezer::state(dir)? {
                Frozen::Yes => Ok(true),
                // One without tasks cannot burn, whatever its flag says.
                Frozen::No => Ok(!dir.holds_process().map_err(missing_for)?),
            })?;
            if !still {
                self.write_state("FROZEN")?;
            }
            return Ok(still);
        }
        for _ in 0..ROUNDS {
            let still = self.all(|dir| match freezer::is_stopped(dir) {
                Reading::Seen(Frozen::Yes) => Ok(true),
                Reading::Seen(Frozen::No) => Ok(!dir.holds_process().map_err(missing_for)?),
                Reading::Missing(why) => Err(why),
            })?;
            // Twice, since a process can be forked behind a reader's back.
            self.quiet_rounds = if still { self.quiet_rounds + 1 } else { 0 };
            if self.quiet_rounds >= 2 {
                return Ok(true);
            }
            self.stop_running()?;
        }
        Ok(false)
    }

    fn look_going(&self) -> Result<bool, String> {
        match self.stopper {
            Stopper::V1 => self.all(|dir| {
                let text = dir.file("freezer.state").and_then(read_all).map_err(missing_for)?;
                Ok(text.starts_with(b"THAWED"))
            }),
            Stopper::V2 | Stopper::Signals(_) => Ok(true),
        }
    }

    fn look_killed(&mut self) -> Result<bool, String> {
        if self.all(|dir| Ok(!dir.holds_process().map_err(missing_for)?))? {
            self.go_on()?;
            return Ok(true);
        }
        match self.kill {
            Kill::Stopping => {
                if self.look_stopped()? || FREEZING_LOOKS_MAX <= self.looks {
                    self.signal(Signal::KILL)?;
                    if self.stopper == Stopper::V1 {
                        self.go_on()?;
                    }
                    (self.kill, self.looks, self.quiet_rounds) = (Kill::Dying, 0, 0);
                }
            }
            Kill::Dying if DYING_LOOKS_MAX <= self.looks => {
                self.stop()?;
                (self.kill, self.looks) = (Kill::Stopping, 0);
            }
            Kill::Dying => {}
        }
        Ok(false)
    }

    /// Is it so in every directory? One that goes meanwhile has no say.
    fn all(&self, is_so: impl Fn(&OpenDir) -> Result<bool, Missing>) -> Result<bool, String> {
        for dir in &self.dirs {
            match is_so(dir) {
                Ok(true) | Err(Missing::Vanished) => {}
                Ok(false) => return Ok(false),
                Err(why) => return Err(format!("{}: {why}", dir.dir.path)),
            }
        }
        Ok(true)
    }
}
