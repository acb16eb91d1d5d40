//! What each order writes where, and how it is seen to have worked.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::Signal;

use crate::domain::act::{Act, ActOutcome, CgroupDir, NO_SYSCALL, Order, ProcessRoot, SlurmJob, Target};
use crate::domain::ladder::WarnSignal;
use crate::domain::meter::{Frozen, Missing, Populated};
use crate::domain::time::{Mono, Nanos};
use crate::node::cgroup_dir::{self, OpenDir, OpenError, read_events};
use crate::node::clock;
use crate::node::freezer::{self, Stopper, signal_below};
use crate::node::layout::{Controller, Hierarchy, Layout, LayoutError};
use crate::node::own_cgroup::{self, OwnCgroupError};
use crate::node::process_tree::ProcessTrees;
use crate::node::slurm;

use super::legacy::{self, Legacy};

/// Directories that `syscall` names one by one; of more it gives the number.
const NAMED_MAX: usize = 8;

/// How beginning an order ended.
#[derive(Debug)]
pub(super) enum Begun {
    /// At once: what was written, and the result.
    Done(String, ActOutcome),
    /// What was written; whether it worked will show.
    Waits(String, Work),
}

/// An order that was begun.
#[derive(Debug)]
pub(super) enum Work {
    /// Until `cgroup.events` of every spot says so.
    Events { spots: Vec<Spot>, goal: Goal, again: Option<(SlurmJob, Act)> },
    /// `cgroup.kill` is not there (before Linux 5.14): frozen, and SIGKILL at every look.
    KillEach { spots: Vec<Spot> },
    /// Through the v1 freezer, or by signals alone.
    Legacy(Legacy),
    /// Rounds of signals, until two in a row find nothing to do.
    Tree { root: ProcessRoot, act: Act, quiet_rounds: u32 },
    /// `rmdir`, until the last task has left.
    Remove { dirs: Vec<CgroupDir> },
}

/// The cgroups that the agent itself is in, read once for all orders of a moment.
#[derive(Debug, Default)]
pub(super) struct OwnDirs {
    dirs: Vec<PathBuf>,
    read_at: Option<Mono>,
}

/// So long they are believed to be as they were.
const OWN_DIRS_FOR: Nanos = Nanos::from_millis(20);

impl OwnDirs {
    fn read(&mut self, layout: &Layout) -> Result<&[PathBuf], LayoutError> {
        let now = clock::mono();
        if self.read_at.is_none_or(|at| OWN_DIRS_FOR <= now.since(at)) {
            self.read_at = None;
            self.dirs = layout.own_dirs()?;
            self.read_at = Some(now);
        }
        Ok(&self.dirs)
    }
}

/// A directory that was written to, and its `cgroup.events`.
#[derive(Debug)]
pub(super) struct Spot {
    dir: OpenDir,
    events: OwnedFd,
}

/// What `cgroup.events` is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    Frozen,
    Thawed,
    Empty,
}

/// Does the first half of an order: all its writes or signals.
pub(super) fn begin(layout: Option<&Layout>, trees: &ProcessTrees, own: &mut OwnDirs, order: &Order) -> Begun {
    let Order { target, act, signal, .. } = order;
    if *act == Act::Warn {
        return warn(layout, trees, own, target, *signal);
    }
    if let Target::Processes(root) = target {
        return begin_tree(trees, *root, *act);
    }
    let nothing = |outcome| Begun::Done(NO_SYSCALL.to_owned(), outcome);
    let Some(layout) = layout else { return nothing(ActOutcome::Failed("no cgroup file system is mounted here".to_owned())) };
    let dirs = match dirs_for(layout, own, target, *act) {
        Ok(dirs) => dirs,
        Err(outcome) => return nothing(outcome),
    };
    let dirs = match dirs {
        Dirs::V2 { dirs, v1 } => {
            if matches!(act, Act::Kill | Act::Terminate) {
                // Held by somebody's v1 freezer, a signal would wait there for ever.
                for dir in &v1 {
                    let _ = freezer::thaw_v1(dir); // if it stays frozen, the job does not get empty, and that is told
                }
            }
            dirs
        }
        Dirs::Legacy(stopper, dirs) => return legacy::begin(stopper, dirs, *act),
    };
    match (act, target) {
        (Act::Remove, Target::OwnCgroups(own)) => {
            let syscall = said("rmdir", own.iter().map(|dir| dir.path.as_str()), "");
            Begun::Waits(syscall, Work::Remove { dirs: own.clone() })
        }
        (Act::Remove, _) => nothing(ActOutcome::Refused("the agent did not make it".to_owned())),
        (Act::Freeze | Act::Thaw, _) => begin_freezer(dirs, *act, target),
        (Act::Terminate, _) => begin_terminate(layout, dirs, target),
        (Act::Kill, _) => begin_kill(layout, dirs),
        (Act::Warn, _) => nothing(ActOutcome::Confirmed), // above
    }
}

/// The signal that a warning is, to every task; people are told elsewhere.
fn warn(layout: Option<&Layout>, trees: &ProcessTrees, own: &mut OwnDirs, target: &Target, signal: Option<WarnSignal>) -> Begun {
    let Some(signal) = signal else { return Begun::Done(NO_SYSCALL.to_owned(), ActOutcome::Confirmed) };
    let syscall = |place: &str| format!("pidfd_send_signal SIG{} to each of {place}", signal.name());
    if let Target::Processes(root) = target {
        let said = syscall(&format!("process {} and all its descendants", root.pid));
        return match trees.signal_all(*root, number(signal)) {
            Ok(()) => Begun::Done(said, ActOutcome::Confirmed),
            Err(Missing::Vanished) => Begun::Done(said, ActOutcome::Gone),
            Err(why) => Begun::Done(said, ActOutcome::Failed(why.to_string())),
        };
    }
    let none = |outcome| Begun::Done(NO_SYSCALL.to_owned(), outcome);
    let Some(layout) = layout else { return none(ActOutcome::Failed("no cgroup file system is mounted here".to_owned())) };
    let dirs = match dirs_for(layout, own, target, Act::Warn) {
        Ok(Dirs::V2 { dirs, .. } | Dirs::Legacy(_, dirs)) => dirs,
        Err(outcome) => return none(outcome),
    };
    let said = said(&syscall("").replace(" to each of ", " to each of"), dirs.iter().map(|dir| dir.dir.path.as_str()), "/cgroup.procs");
    let failed = dirs.iter().find_map(|dir| signal_below(dir, number(signal)).err().map(|errno| (dir, errno)));
    match failed {
        None => Begun::Done(said, ActOutcome::Confirmed),
        Some((dir, errno)) => Begun::Done(said, ActOutcome::Failed(format!("{}: {errno}", dir.dir.path))),
    }
}

fn number(signal: WarnSignal) -> Signal {
    match signal {
        WarnSignal::Usr1 => Signal::USR1,
        WarnSignal::Usr2 => Signal::USR2,
        WarnSignal::Term => Signal::TERM,
        WarnSignal::Int => Signal::INT,
        WarnSignal::Hup => Signal::HUP,
        WarnSignal::Urg => Signal::URG,
    }
}

/// A job's directories that are acted on, and how.
enum Dirs {
    /// Through cgroup2; besides, those that the job has in the v1 freezer.
    V2 { dirs: Vec<OpenDir>, v1: Vec<OpenDir> },
    /// In another way.
    Legacy(Stopper, Vec<OpenDir>),
}

fn begin_tree(trees: &ProcessTrees, root: ProcessRoot, act: Act) -> Begun {
    if trees.holds_agent(root) {
        return Begun::Done("none".to_owned(), ActOutcome::Refused("the agent itself is in it".to_owned()));
    }
    let signal = match act {
        Act::Freeze => "SIGSTOP",
        Act::Thaw => "SIGCONT",
        Act::Terminate => "SIGTERM, SIGCONT",
        Act::Kill => "SIGKILL",
        Act::Remove | Act::Warn => return Begun::Done("none".to_owned(), ActOutcome::Refused("a process tree has no cgroup".to_owned())),
    };
    let syscall = format!("pidfd_send_signal {signal} to process {} and all its descendants", root.pid);
    Begun::Waits(syscall, Work::Tree { root, act, quiet_rounds: 0 })
}

/// The directories to write to: opened, the right ones, and none with the agent in it. Those that are gone are left out while another one is there.
fn dirs_for(layout: &Layout, own: &mut OwnDirs, target: &Target, act: Act) -> Result<Dirs, ActOutcome> {
    let v2 = |dirs| Dirs::V2 { dirs, v1: Vec::new() };
    let named = match target {
        Target::Cgroups(dirs) | Target::OwnCgroups(dirs) => dirs,
        Target::SlurmJob(job) => return slurm_dirs(layout, job, act).map(v2),
        Target::Processes(_) => return Ok(v2(Vec::new())),
    };
    let own = own.read(layout).map_err(|error| ActOutcome::Failed(error.to_string()))?;
    if matches!(act, Act::Freeze | Act::Thaw)
        && let Some(open) = all_of_v2(layout, named, own)
    {
        return Ok(v2(open));
    }
    let (mut open, mut gone) = (Vec::new(), None);
    for dir in named {
        if own.iter().any(|own| own.starts_with(&dir.path)) {
            return Err(ActOutcome::Refused(format!("{} holds the agent itself", dir.path)));
        }
        match cgroup_dir::open(layout, dir) {
            Ok(found) => open.push(found),
            Err(OpenError::Vanished) => gone = gone.or(Some(ActOutcome::Gone)),
            Err(OpenError::Failed(errno)) => return Err(ActOutcome::Failed(format!("open {}: {errno}", dir.path))),
            Err(why) => gone = Some(ActOutcome::Refused(format!("{}: {why}", dir.path))),
        }
    }
    let Some(stopper) = freezer::stopper(open.iter().map(|dir| (dir.hierarchy, freezer::offers_freeze(layout, dir)))) else {
        return Err(gone.unwrap_or(ActOutcome::Gone));
    };
    if act == Act::Remove {
        return Ok(v2(open));
    }
    let (chosen, rest): (Vec<OpenDir>, Vec<OpenDir>) = open.into_iter().partition(|dir| stopper.acts_on(dir.hierarchy));
    let v1 = rest.into_iter().filter(|dir| dir.hierarchy.has(Controller::Freezer)).collect();
    Ok(if stopper == Stopper::V2 { Dirs::V2 { dirs: chosen, v1 } } else { Dirs::Legacy(stopper, chosen) })
}

/// The job's cgroup2 directories, all there and able to freeze: then a freeze or a thaw needs no others. The common case, and on a machine with
/// v1 controllers beside it many times as fast as opening every one. `None` where it takes a closer look.
fn all_of_v2(layout: &Layout, named: &[CgroupDir], own: &[PathBuf]) -> Option<Vec<OpenDir>> {
    if named.iter().any(|dir| own.iter().any(|own| own.starts_with(&dir.path))) {
        return None;
    }
    let is_v2 = |dir: &&CgroupDir| layout.classify(Path::new(&dir.path)).is_ok_and(|place| place.hierarchy == Hierarchy::V2);
    let of_v2 = named.iter().filter(is_v2);
    let open = of_v2.map(|dir| cgroup_dir::open(layout, dir).ok()).collect::<Option<Vec<OpenDir>>>()?;
    (!open.is_empty() && open.iter().all(|dir| freezer::offers_freeze(layout, dir))).then_some(open)
}

/// Only ever `step_*/user/task_*` and `step_*/user`: slurmstepd is in neither, and the agent is in no step of a job.
fn slurm_dirs(layout: &Layout, job: &SlurmJob, act: Act) -> Result<Vec<OpenDir>, ActOutcome> {
    let failed = |errno: Errno| ActOutcome::Failed(format!("list the steps of {}: {errno}", job.job_id));
    let job_dirs = slurm::scopes(layout).and_then(|scopes| slurm::job_dirs(&scopes, job)).map_err(failed)?;
    if job_dirs.is_empty() {
        return Err(ActOutcome::Gone);
    }
    let own = layout.own_dirs().map_err(|error| ActOutcome::Failed(error.to_string()))?;
    let mut dirs = Vec::new();
    for job_dir in &job_dirs {
        if own.iter().any(|own| own.starts_with(&job_dir.dir.path)) {
            return Err(ActOutcome::Refused(format!("{} holds the agent itself", job_dir.dir.path)));
        }
        dirs.extend(
            match act {
                Act::Freeze | Act::Thaw => slurm::freeze_leaves(job_dir),
                Act::Terminate | Act::Kill | Act::Remove | Act::Warn => slurm::kill_dirs(job_dir),
            }
            .map_err(failed)?,
        );
    }
    if dirs.is_empty() { Err(ActOutcome::Gone) } else { Ok(dirs) }
}

/// Writes one file of every directory. Returns the spots to look at; those that went meanwhile are left out.
fn write_all(dirs: Vec<OpenDir>, file: &str, text: &str) -> Result<Vec<Spot>, (OpenDir, Errno)> {
    let mut written = Vec::new();
    let mut failed = None;
    for dir in dirs {
        match dir.write(file, text) {
            Ok(()) => written.push(dir),
            Err(Errno::NODEV) => {}
            Err(Errno::NOENT) if !dir.is_there() => {}
            // The others are still written: a job that is stopped in part is better than one that runs on.
            Err(errno) => failed = failed.or(Some((dir, errno))),
        }
    }
    match failed {
        Some(failed) => Err(failed),
        None => Ok(spots(written)),
    }
}

fn spots(dirs: Vec<OpenDir>) -> Vec<Spot> {
    dirs.into_iter().filter_map(|dir| Some(Spot { events: dir.file("cgroup.events").ok()?, dir })).collect()
}

fn begin_freezer(dirs: Vec<OpenDir>, act: Act, target: &Target) -> Begun {
    let (text, goal) = if act == Act::Freeze { ("1", Goal::Frozen) } else { ("0", Goal::Thawed) };
    let syscall = said(&format!("write {text} to"), dirs.iter().map(|dir| dir.dir.path.as_str()), "/cgroup.freeze");
    let again = match target {
        Target::SlurmJob(job) => Some((job.clone(), act)),
        _ => None,
    };
    match write_all(dirs, "cgroup.freeze", text) {
        Ok(spots) if spots.is_empty() => Begun::Done(syscall, ActOutcome::Gone),
        Ok(spots) => Begun::Waits(syscall, Work::Events { spots, goal, again }),
        Err((dir, errno)) => Begun::Done(syscall, ActOutcome::Failed(format!("{}/cgroup.freeze: {errno}", dir.dir.path))),
    }
}

/// The request first: it waits in a frozen task until that one runs again, so nothing can be forked in between.
fn begin_terminate(layout: &Layout, dirs: Vec<OpenDir>, target: &Target) -> Begun {
    let mut syscall = said("pidfd_send_signal SIGTERM to each of", dirs.iter().map(|dir| dir.dir.path.as_str()), "/cgroup.procs");
    for dir in &dirs {
        if let Err(errno) = signal_below(dir, Signal::TERM) {
            return Begun::Done(syscall, ActOutcome::Failed(format!("{}: {errno}", dir.dir.path)));
        }
    }
    let frozen = match target {
        Target::SlurmJob(job) => match slurm_dirs(layout, job, Act::Thaw) {
            Ok(leaves) => leaves,
            Err(outcome) => return Begun::Done(syscall, outcome),
        },
        _ => dirs,
    };
    match begin_freezer(frozen, Act::Thaw, target) {
        Begun::Done(thaw, outcome) => {
            syscall = format!("{syscall}; {thaw}");
            Begun::Done(syscall, outcome)
        }
        Begun::Waits(thaw, work) => Begun::Waits(format!("{syscall}; {thaw}"), work),
    }
}

fn begin_kill(layout: &Layout, dirs: Vec<OpenDir>) -> Begun {
    let syscall = said("write 1 to", dirs.iter().map(|dir| dir.dir.path.as_str()), "/cgroup.kill");
    let names: Vec<CgroupDir> = dirs.iter().map(|dir| dir.dir.clone()).collect();
    // A threaded cgroup has the file and refuses it; an old kernel has none.
    let has_kill = |dir: &OpenDir| dir.file_exists("cgroup.kill") || !dir.is_there();
    if layout.hides("cgroup.kill") || !dirs.iter().all(has_kill) {
        return begin_kill_each(dirs);
    }
    match write_all(dirs, "cgroup.kill", "1") {
        Ok(spots) if spots.is_empty() => Begun::Done(syscall, ActOutcome::Gone),
        Ok(spots) => Begun::Waits(syscall, Work::Events { spots, goal: Goal::Empty, again: None }),
        Err((dir, errno)) => {
            let of = names.len();
            Begun::Done(syscall, ActOutcome::Failed(format!("{}/cgroup.kill (one of {of}): {errno}", dir.dir.path)))
        }
    }
}

/// The way before Linux 5.14: frozen tasks cannot fork, and SIGKILL reaches them.
pub(super) fn begin_kill_each(dirs: Vec<OpenDir>) -> Begun {
    let paths = || dirs.iter().map(|dir| dir.dir.path.as_str());
    let syscall = format!(
        "{}; {}",
        said("write 1 to", paths(), "/cgroup.freeze"),
        said("pidfd_send_signal SIGKILL to each of", paths(), "/cgroup.procs")
    );
    match write_all(dirs, "cgroup.freeze", "1") {
        Ok(spots) if spots.is_empty() => Begun::Done(syscall, ActOutcome::Gone),
        Ok(spots) => Begun::Waits(syscall, Work::KillEach { spots }),
        Err((dir, errno)) => Begun::Done(syscall, ActOutcome::Failed(format!("{}/cgroup.freeze: {errno}", dir.dir.path))),
    }
}

impl Work {
    /// One look: `None` while it has not shown.
    pub(super) fn look(&mut self, layout: Option<&Layout>, trees: &ProcessTrees) -> Option<ActOutcome> {
        match self {
            Work::Events { spots, goal, again } => {
                if !all_reached(spots, *goal)? {
                    return Some(if *goal == Goal::Empty { ActOutcome::Confirmed } else { ActOutcome::Gone });
                }
                let (Some((job, act)), Some(layout)) = (again, layout) else { return Some(ActOutcome::Confirmed) };
                look_for_new_leaves(layout, job, *act, spots)
            }
            Work::KillEach { spots } => {
                if all_reached(spots, Goal::Empty).is_some() {
                    thaw(spots);
                    return Some(ActOutcome::Confirmed);
                }
                for spot in &*spots {
                    // One that cannot be signalled shows as not empty at the deadline.
                    let _ = signal_below(&spot.dir, Signal::KILL);
                }
                None
            }
            Work::Legacy(legacy) => legacy.look(),
            Work::Tree { root, act, quiet_rounds } => look_at_tree(trees, *root, *act, quiet_rounds),
            Work::Remove { dirs } => match own_cgroup::remove(layout?, dirs) {
                Ok(()) => Some(ActOutcome::Confirmed),
                Err(OwnCgroupError::Busy(_)) => None,
                Err(error) => Some(ActOutcome::Failed(error.to_string())),
            },
        }
    }

    /// The files whose change is worth a look.
    pub(super) fn files(&self) -> impl Iterator<Item = &OwnedFd> {
        let spots: &[Spot] = match self {
            Work::Events { spots, .. } | Work::KillEach { spots } => spots,
            Work::Legacy(_) | Work::Tree { .. } | Work::Remove { .. } => &[],
        };
        spots.iter().map(|spot| &spot.events)
    }

    /// The deadline is over: what was only a means is undone.
    pub(super) fn give_up(&mut self) {
        match self {
            Work::KillEach { spots } => thaw(spots),
            Work::Legacy(legacy) => legacy.give_up(),
            Work::Events { .. } | Work::Tree { .. } | Work::Remove { .. } => {}
        }
    }
}

fn thaw(spots: &[Spot]) {
    for spot in spots {
        // A removed one needs no thaw.
        let _ = spot.dir.write("cgroup.freeze", "0");
    }
}

/// `None` while a spot has not got there; else whether any is left (the others have gone).
fn all_reached(spots: &[Spot], goal: Goal) -> Option<bool> {
    let mut left = false;
    for spot in spots {
        let events = match read_events(&spot.events) {
            Ok(events) => events,
            Err(Missing::Vanished) => continue,
            Err(_) => return None,
        };
        left = true;
        let reached = match goal {
            // One without tasks cannot burn, whatever its flag says.
            Goal::Frozen => events.frozen == Some(Frozen::Yes) || events.populated == Populated::No,
            Goal::Thawed => events.frozen == Some(Frozen::No),
            Goal::Empty => events.populated == Populated::No,
        };
        if !reached {
            return None;
        }
    }
    Some(left)
}

/// A step that began meanwhile is not frozen yet: it is written to, and looked at the next time.
fn look_for_new_leaves(layout: &Layout, job: &SlurmJob, act: Act, spots: &mut Vec<Spot>) -> Option<ActOutcome> {
    let known: BTreeSet<u64> = spots.iter().map(|spot| spot.dir.dir.inode).collect();
    // Those that were frozen and have gone since leave nothing to do.
    let Ok(mut leaves) = slurm_dirs(layout, job, act) else { return Some(ActOutcome::Confirmed) };
    leaves.retain(|leaf| !known.contains(&leaf.dir.inode));
    if leaves.is_empty() {
        return Some(ActOutcome::Confirmed);
    }
    match write_all(leaves, "cgroup.freeze", if act == Act::Freeze { "1" } else { "0" }) {
        Ok(more) => spots.extend(more),
        Err((dir, errno)) => return Some(ActOutcome::Failed(format!("{}/cgroup.freeze: {errno}", dir.dir.path))),
    }
    None
}

fn look_at_tree(trees: &ProcessTrees, root: ProcessRoot, act: Act, quiet_rounds: &mut u32) -> Option<ActOutcome> {
    // A few rounds at once: each one stops what the round before let fork.
    for _ in 0..4 {
        let round = match trees.round(root, act) {
            Ok(round) => round,
            Err(Missing::Vanished) => return Some(ActOutcome::Gone),
            Err(why) => return Some(ActOutcome::Failed(why.to_string())),
        };
        if let Some(errno) = round.error {
            return Some(ActOutcome::Failed(errno.to_string()));
        }
        if act == Act::Terminate {
            return Some(if round.live == 0 { ActOutcome::Gone } else { ActOutcome::Confirmed });
        }
        if round.live == 0 && act != Act::Kill {
            return Some(ActOutcome::Gone);
        }
        // Twice, since a scan can miss a process that is forked behind its back.
        *quiet_rounds = if round.to_do == 0 && (round.new == 0 || *quiet_rounds == 0) { *quiet_rounds + 1 } else { 0 };
        if *quiet_rounds >= 2 {
            return Some(ActOutcome::Confirmed);
        }
    }
    None
}

/// `verb path1suffix, path2suffix and 5 more`.
pub(super) fn said<'a>(verb: &str, paths: impl Iterator<Item = &'a str>, suffix: &str) -> String {
    let paths: Vec<String> = paths.map(|path| format!("{path}{suffix}")).collect();
    let named = paths.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    match paths.len().saturating_sub(NAMED_MAX) {
        0 => format!("{verb} {named}"),
        more => format!("{verb} {named} and {more} more"),
    }
}
