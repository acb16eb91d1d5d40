//! A job as a process and its descendants, read through procfs: where no cgroup may be used.
//!
//! Who belongs to it: the root; every child of a member; if the root leads a session, every process of that session. Once seen, a process
//! stays a member (pid and start time), even when it is reparented. Who is orphaned before it was ever seen is found only if the root adopts
//! its orphans ([`adopt_orphans`]): that of `meterctl run` does. Of a tree that somebody else named (`--pid`) a process that forks twice
//! *and* changes session between two looks is missed.
//!
//! **CPU time** is the sum of utime, stime, cutime and cstime over all members, zombies included, plus what members took with them that
//! nobody in the tree waited for. It never decreases. It is a lower bound, in clock ticks (10 ms): it lacks what a process used after the last
//! look if it ended and no member waited for it, and the whole life of one that was born, orphaned and ended between two looks.
//!
//! **Memory** is the sum of resident set sizes: pages that several processes share are counted in each. It stands in for `memory_charged` here.
//!
//! **Stopping** is SIGSTOP to every process, which the job and its parent can see, repeated until two scans in a row show all of them stopped. A task in an
//! uninterruptible wait (`D`: a disk, or a `vfork` whose child is stopped) counts as stopped once the signal is there: it stops before it
//! runs its own code again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use procfs::process::{Process, Stat, all_processes_with_root};
use procfs::{FromRead as _, ProcError, ProcResult};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use crate::domain::act::{Act, ProcessRoot};
use crate::domain::meter::{Frozen, Missing, Populated, Reading};

/// One process as `/proc/<pid>/stat` shows it (proc(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    id: ProcessRoot,
    parent: u32,
    session: u32,
    life: Life,
    /// utime + stime, in clock ticks.
    own_ticks: u64,
    /// cutime + cstime: what children used that it has waited for.
    reaped_ticks: u64,
    resident_pages: u64,
}

/// What a process is doing, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// At least one task can run.
    Running,
    /// Every task is stopped by a signal (`T`).
    Stopped,
    /// Ended, not yet waited for.
    Zombie,
}

/// What one look at one tree gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeReading {
    /// CPU time since the root began, in nanoseconds; a lower bound (see the module).
    pub cpu_ns: u64,
    /// Resident memory, in bytes; shared pages once for each process.
    pub memory_bytes: u64,
    /// Is a member alive?
    pub populated: Populated,
    /// Is every task of every live member stopped?
    pub frozen: Frozen,
}

/// How far one round of signals got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// Members alive when the round began.
    pub live: usize,
    /// Of these, how many were not yet as the act wants them.
    pub to_do: usize,
    /// How many members were not known in the round before.
    pub new: usize,
    /// The first error of a signal, if there was one.
    pub error: Option<Errno>,
}

/// The members of all process trees that are followed; a clone shares them (the sampler finds, the hands act).
#[derive(Clone, Debug)]
pub struct ProcessTrees {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    proc_root: PathBuf,
    trees: Mutex<BTreeMap<ProcessRoot, Tree>>,
    scans: AtomicU64,
}

impl Default for ProcessTrees {
    fn default() -> Self {
        ProcessTrees::in_proc(Path::new("/proc"))
    }
}

impl ProcessTrees {
    /// Trees read from this mount of procfs.
    #[must_use]
    pub fn in_proc(proc_root: &Path) -> ProcessTrees {
        let shared = Shared { proc_root: proc_root.to_owned(), trees: Mutex::default(), scans: AtomicU64::new(0) };
        ProcessTrees { shared: Arc::new(shared) }
    }

    /// The process `pid` as it is now.
    ///
    /// # Errors
    /// [`Missing::Vanished`] if there is none, or why it cannot be read.
    pub fn identify(&self, pid: u32) -> Result<ProcessRoot, Missing> {
        self.see(pid).map(|seen| seen.id).map_err(|error| missing_for(&error))
    }

    /// Is the agent in the tree of this root? (Then it is never touched.)
    #[must_use]
    pub fn holds_agent(&self, root: ProcessRoot) -> bool {
        let mut pid = std::process::id();
        // A chain of parents is no longer than this, unless pids are being used again under our eyes.
        for _ in 0..4_096 {
            if pid == root.pid {
                return true;
            }
            match self.see(pid) {
                Ok(seen) if seen.parent != 0 => pid = seen.parent,
                _ => return false,
            }
        }
        true
    }

    /// Follows a tree from now on.
    pub fn follow(&self, root: ProcessRoot) {
        self.lock().entry(root).or_insert_with(|| Tree::new(root));
    }

    /// Follows it no more.
    pub fn forget(&self, root: ProcessRoot) {
        self.lock().remove(&root);
    }

    /// One look at each of these trees, with one walk through `/proc` for all. A root that never was seen is [`Missing::Vanished`].
    #[must_use]
    pub fn read(&self, roots: &[ProcessRoot]) -> Vec<Result<TreeReading, Missing>> {
        if roots.is_empty() {
            return Vec::new();
        }
        let (number, scan) = match self.scan() {
            Ok(scan) => scan,
            Err(why) => return vec![Err(why); roots.len()],
        };
        let tick_ns = 1_000_000_000 / procfs::ticks_per_second().max(1);
        let mut trees = self.lock();
        let mut look = |root: &ProcessRoot| {
            let tree = trees.entry(*root).or_insert_with(|| Tree::new(*root));
            tree.absorb(number, &scan);
            tree.reading(tick_ns, procfs::page_size())
        };
        roots.iter().map(&mut look).collect()
    }

    /// How many processes of a tree are alive, and their anonymous memory in bytes (`statm`: resident without what is of files and shared
    /// memory; pages that processes share since a fork count for each). As of the last look.
    #[must_use]
    pub fn detail(&self, root: ProcessRoot) -> (Reading<u64>, Reading<u64>) {
        let live: Vec<ProcessRoot> = match self.lock().get(&root) {
            Some(tree) if tree.ever_seen => tree.members.iter().filter(|(_, seen)| seen.life != Life::Zombie).map(|(id, _)| *id).collect(),
            _ => return (Reading::Missing(Missing::Vanished), Reading::Missing(Missing::Vanished)),
        };
        let anon = |id: &ProcessRoot| {
            let process = Process::new_with_root(self.shared.proc_root.join(id.pid.to_string())).ok()?;
            let statm = process.statm().ok()?;
            Some(statm.resident.saturating_sub(statm.shared).saturating_mul(procfs::page_size()))
        };
        // One that ended meanwhile has none.
        (Reading::Seen(live.len() as u64), Reading::Seen(live.iter().filter_map(anon).sum()))
    }

    /// One round of an act on a tree: a walk through `/proc`, then a signal to every member that needs one. Call it again until
    /// nothing is to do and nobody new has shown up, twice in a row.
    ///
    /// # Errors
    /// [`Missing::Vanished`] if no such process was ever seen, or why `/proc` cannot be read.
    pub fn round(&self, root: ProcessRoot, act: Act) -> Result<Round, Missing> {
        let (number, scan) = self.scan()?;
        let (new, live) = {
            let mut trees = self.lock();
            let tree = trees.entry(root).or_insert_with(|| Tree::new(root));
            let new = tree.absorb(number, &scan);
            if !tree.ever_seen {
                trees.remove(&root);
                return Err(Missing::Vanished);
            }
            (new, tree.members.values().filter(|member| member.life != Life::Zombie).copied().collect::<Vec<Seen>>())
        };
        let mut round = Round { live: live.len(), to_do: 0, new, error: None };
        for member in live {
            for signal in signals_for(act, member.life) {
                round.to_do += 1;
                if let Err(errno) = self.signal(member.id, *signal) {
                    round.error.get_or_insert(errno);
                }
            }
        }
        Ok(round)
    }

    /// Sends a signal to every live process of a tree, once.
    ///
    /// # Errors
    /// As [`Self::round`], and what the kernel says of the first that cannot be reached.
    pub fn signal_all(&self, root: ProcessRoot, signal: Signal) -> Result<(), Missing> {
        self.round(root, Act::Warn)?; // brings the tree up to date, and signals nobody
        let live: Vec<ProcessRoot> = {
            let trees = self.lock();
            let members = trees.get(&root).map(|tree| tree.members.values());
            members.into_iter().flatten().filter(|member| member.life != Life::Zombie).map(|member| member.id).collect()
        };
        let failed = live.into_iter().find_map(|id| self.signal(id, signal).err());
        failed.map_or(Ok(()), |errno| Err(Missing::Failed(errno.to_string())))
    }

    /// Sends a signal to exactly this process: the descriptor holds the process, the start time proves that it is the one.
    fn signal(&self, id: ProcessRoot, signal: Signal) -> Result<(), Errno> {
        let Some(pid) = i32::try_from(id.pid).ok().and_then(Pid::from_raw) else { return Err(Errno::SRCH) };
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => Some(handle),
            Err(Errno::NOSYS) => None, // before Linux 5.3
            Err(Errno::SRCH) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        if !self.see(id.pid).is_ok_and(|seen| seen.id == id) {
            return Ok(());
        }
        let sent = handle.map_or_else(|| kill_process(pid, signal), |handle| pidfd_send_signal(handle, signal));
        match sent {
            Err(Errno::SRCH) => Ok(()),
            other => other,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ProcessRoot, Tree>> {
        self.shared.trees.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn see(&self, pid: u32) -> ProcResult<Seen> {
        see(&Process::new_with_root(self.shared.proc_root.join(pid.to_string()))?)
    }

    /// All processes of the machine, with the number of this scan (in the order in which scans began). One that ends meanwhile is left out.
    fn scan(&self) -> Result<(u64, Vec<Seen>), Missing> {
        let number = self.shared.scans.fetch_add(1, Ordering::Relaxed) + 1;
        let mut scan = Vec::new();
        for process in all_processes_with_root(&self.shared.proc_root).map_err(|error| missing_for(&error))? {
            // A process that ends while it is read is not found, or shows ESRCH or half a line; one that may not be read is nobody's here.
            scan.extend(process.and_then(|process| see(&process)).ok());
        }
        Ok((number, scan))
    }
}

/// Lets orphans of this process's descendants become its own children (`PR_SET_CHILD_SUBREAPER`), so that none can leave the tree.
/// For the process that starts a job; it must wait for them.
///
/// # Errors
/// What the kernel said.
pub fn adopt_orphans() -> Result<(), Errno> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
}

/// Which signals a live member needs, in this order.
fn signals_for(act: Act, life: Life) -> &'static [Signal] {
    match (act, life) {
        (_, Life::Zombie) | (Act::Freeze, Life::Stopped) | (Act::Thaw, Life::Running) | (Act::Remove | Act::Warn, _) => &[],
        (Act::Freeze, Life::Running) => &[Signal::STOP],
        (Act::Thaw, Life::Stopped) => &[Signal::CONT],
        // The request waits until the process runs again, so that it sees it first.
        (Act::Terminate, _) => &[Signal::TERM, Signal::CONT],
        (Act::Kill, _) => &[Signal::KILL],
    }
}

/// What the process of that pid is doing now.
///
/// # Errors
/// [`Missing::Vanished`] if there is none, or why it cannot be read.
pub(super) fn life_of(pid: u32) -> Result<Life, Missing> {
    let process = i32::try_from(pid).map_err(|_| Missing::Malformed)?;
    Process::new(process).and_then(|process| see(&process)).map(|seen| seen.life).map_err(|error| missing_for(&error))
}

fn see(process: &Process) -> ProcResult<Seen> {
    let stat = stat_in(process, "stat")?;
    let life = match stat.state {
        'Z' | 'X' | 'x' if stat.num_threads <= 1 => Life::Zombie,
        // `Z` with other tasks: the main thread has ended, they go on.
        'T' | 'Z' | 'D' => life_of_tasks(process)?,
        _ => Life::Running,
    };
    let whole = |value: i64| u64::try_from(value).unwrap_or(0);
    let pid_of = |value: i32| u32::try_from(value).unwrap_or(0);
    Ok(Seen {
        id: ProcessRoot { pid: pid_of(stat.pid), start_ticks: stat.starttime },
        parent: pid_of(stat.ppid),
        session: pid_of(stat.session),
        life,
        own_ticks: stat.utime.saturating_add(stat.stime),
        reaped_ticks: whole(stat.cutime).saturating_add(whole(stat.cstime)),
        resident_pages: stat.rss,
    })
}

/// `/proc/<pid>/stat` shows the main thread's state alone: each task is asked.
fn life_of_tasks(process: &Process) -> ProcResult<Life> {
    let (mut stopped, mut waits) = (0_usize, 0_usize);
    for task in process.tasks()? {
        match task.and_then(|task| stat_in(process, &format!("task/{}/stat", task.tid))).map(|stat| stat.state) {
            Ok('T') => stopped += 1,
            Ok('D') => waits += 1,
            Ok('Z' | 'X' | 'x') | Err(_) => {}
            Ok(_) => return Ok(Life::Running),
        }
    }
    // One stopped task means that all of the process are to stop.
    let is_told = waits == 0 || stopped > 0 || stop_is_pending(process)?;
    Ok(if is_told { Life::Stopped } else { Life::Running })
}

/// Has it a SIGSTOP that it has not taken yet? (`ShdPnd` of `/proc/<pid>/status`.)
fn stop_is_pending(process: &Process) -> ProcResult<bool> {
    let bit = u32::try_from(Signal::STOP.as_raw() - 1).unwrap_or(0);
    // Line by line and as text only where it must be: a process can choose a name that is no text, and would not be seen.
    let status = bytes_of(process, "status")?;
    let mask = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"ShdPnd:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(std::str::from_utf8(mask).ok()?.trim(), 16).ok());
    mask.map(|mask| mask & (1_u64 << bit) != 0).ok_or_else(|| ProcError::Other("no ShdPnd in its status".to_owned()))
}

/// A file `stat` of a process or task.
fn stat_in(process: &Process, path: &str) -> ProcResult<Stat> {
    let bytes = bytes_of(process, path)?;
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim();
    // The parser takes it for granted that the name stands in parentheses, behind a pid and before a state.
    let named = text.find('(').zip(text.rfind(')'));
    let sound = named.is_some_and(|(open, close)| {
        1 <= open && open < close && text.is_char_boundary(open - 1) && text.is_char_boundary(close + 2) && close + 2 <= text.len()
    });
    if !sound {
        return Err(ProcError::Other(format!("{path} is no line of a process")));
    }
    Stat::from_read(text.as_bytes())
}

fn bytes_of(process: &Process, path: &str) -> ProcResult<Vec<u8>> {
    let mut bytes = Vec::with_capacity(1_024);
    std::io::Read::read_to_end(&mut process.open_relative(path)?, &mut bytes)?;
    Ok(bytes)
}

fn missing_for(error: &ProcError) -> Missing {
    match error {
        ProcError::NotFound(_) => Missing::Vanished,
        ProcError::PermissionDenied(_) => Missing::Denied,
        ProcError::Incomplete(_) | ProcError::InternalError(_) => Missing::Malformed,
        ProcError::Io(..) | ProcError::Other(_) => Missing::Failed(error.to_string()),
    }
}

/// One tree: who is in it, and what its members have used.
#[derive(Debug)]
struct Tree {
    root: ProcessRoot,
    ever_seen: bool,
    leads_session: bool,
    last_scan: u64,
    members: BTreeMap<ProcessRoot, Seen>,
    /// What members took with them that no member's cutime shows.
    departed_ticks: u64,
    /// The greatest total so far.
    total_ticks: u64,
}

impl Tree {
    fn new(root: ProcessRoot) -> Tree {
        let members = BTreeMap::new();
        Tree { root, ever_seen: false, leads_session: false, last_scan: 0, members, departed_ticks: 0, total_ticks: 0 }
    }

    /// Takes in a scan; returns how many members are new. A scan that began before the last one taken in is passed over: it would
    /// take the newest members for dead.
    fn absorb(&mut self, number: u64, scan: &[Seen]) -> usize {
        if number <= self.last_scan {
            return 0;
        }
        self.last_scan = number;
        let now = self.members_in(scan);
        let mut gone_ticks = 0_u64;
        let mut newly_reaped_ticks = 0_u64;
        for (id, before) in &self.members {
            match now.get(id) {
                None => gone_ticks = gone_ticks.saturating_add(before.own_ticks).saturating_add(before.reaped_ticks),
                Some(after) => newly_reaped_ticks += after.reaped_ticks.saturating_sub(before.reaped_ticks),
            }
        }
        // Whoever was waited for by a member shows in that one's cutime. The rest went unwaited (a parent outside, or SIGCHLD ignored).
        self.departed_ticks = self.departed_ticks.saturating_add(gone_ticks.saturating_sub(newly_reaped_ticks));
        let present: u64 = now.values().map(|seen| seen.own_ticks.saturating_add(seen.reaped_ticks)).sum();
        self.total_ticks = self.total_ticks.max(present.saturating_add(self.departed_ticks));
        let new = now.keys().filter(|id| !self.members.contains_key(id)).count();
        self.members = now;
        self.ever_seen |= !self.members.is_empty();
        new
    }

    /// Who of the scan belongs to the tree.
    fn members_in(&mut self, scan: &[Seen]) -> BTreeMap<ProcessRoot, Seen> {
        let me = std::process::id();
        let mut children: BTreeMap<u32, Vec<&Seen>> = BTreeMap::new();
        for seen in scan {
            children.entry(seen.parent).or_default().push(seen);
        }
        let known = |seen: &&Seen| seen.id == self.root || self.members.contains_key(&seen.id);
        let mut waiting: Vec<&Seen> = scan.iter().filter(known).collect();
        self.leads_session |= waiting.iter().any(|seen| seen.id == self.root && seen.session == self.root.pid);
        // While a member is in the session its number cannot be given to another one.
        if self.leads_session && waiting.iter().any(|seen| seen.session == self.root.pid) {
            waiting.extend(scan.iter().filter(|seen| seen.session == self.root.pid));
        }
        let mut members = BTreeMap::new();
        let mut walked = BTreeSet::new();
        while let Some(seen) = waiting.pop() {
            if seen.id.pid == me || !walked.insert(seen.id) {
                continue;
            }
            members.insert(seen.id, *seen);
            // A "child" that is older than its parent belongs to an earlier process of that pid.
            let below = children.get(&seen.id.pid).into_iter().flatten();
            waiting.extend(below.filter(|child| child.id.start_ticks >= seen.id.start_ticks));
        }
        members
    }

    fn reading(&self, tick_ns: u64, page_bytes: u64) -> Result<TreeReading, Missing> {
        if !self.ever_seen {
            return Err(Missing::Vanished);
        }
        let live: Vec<&Seen> = self.members.values().filter(|member| member.life != Life::Zombie).collect();
        let pages: u64 = live.iter().map(|member| member.resident_pages).sum();
        let all_stopped = !live.is_empty() && live.iter().all(|member| member.life == Life::Stopped);
        Ok(TreeReading {
            cpu_ns: self.total_ticks.saturating_mul(tick_ns),
            memory_bytes: pages.saturating_mul(page_bytes),
            populated: if live.is_empty() { Populated::No } else { Populated::Yes },
            frozen: if all_stopped { Frozen::Yes } else { Frozen::No },
        })
    }
}

#[cfg(test)]
mod tests;
