//! What the kernel itself says of a job, read by the demo beside the agent: `cgroup.events`, `cpu.stat`, `/proc/<pid>/task/*/stat`.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use procfs::process::Process;

use crate::domain::meter::Frozen;
use crate::node::layout::{Layout, Mode};

/// How long an emptied cgroup may stay busy.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

/// The cgroup directories below which the demo's jobs get theirs; the demo makes them and removes them.
#[derive(Debug)]
pub(super) struct CgroupTree {
    layout: Layout,
    /// The cgroup2 directory.
    v2: PathBuf,
    /// The same in the v1 memory hierarchy, where that is a hierarchy of its own.
    v1_memory: Option<PathBuf>,
}

impl CgroupTree {
    /// Makes the directories called `parent`, and sees that they are what they should be.
    ///
    /// # Errors
    /// Why no cgroup can be used here, for people. Nothing is left then.
    pub(super) fn make(parent: &str) -> Result<CgroupTree, String> {
        let layout = Layout::detect().map_err(|error| error.to_string())?;
        let Some(v2) = layout.v2.as_ref().map(|mount| mount.join(parent)) else {
            return Err("no cgroup2 file system is mounted here".to_owned());
        };
        let v1_memory = layout.v1_memory.as_ref().map(|mount| mount.join(parent));
        let tree = CgroupTree { layout, v2, v1_memory };
        let made = make_dir(&tree.v2, "cgroup.freeze").and_then(|()| match &tree.v1_memory {
            Some(dir) => make_dir(dir, "memory.usage_in_bytes"),
            None => Ok(()),
        });
        match made {
            Ok(()) => Ok(tree),
            Err(why) => {
                // The error that matters is the first one.
                let _ = tree.remove();
                Err(why)
            }
        }
    }

    /// The directories of that name in every hierarchy: the agent makes one wherever it can read something of a job.
    fn dirs(&self) -> impl Iterator<Item = PathBuf> {
        let name = self.v2.file_name().unwrap_or_default().to_owned();
        self.layout.mounts().into_iter().map(move |(_, mount)| mount.join(&name))
    }

    /// Removes the directories and those of jobs that the agent could not remove. What still runs in them is killed, frozen or not: a job
    /// that was frozen before it told its pid is known to nobody.
    ///
    /// # Errors
    /// What is still there, for people.
    pub(super) fn remove(&self) -> Result<(), String> {
        let _ = std::fs::write(self.v2.join("cgroup.kill"), "1"); // a process that this leaves is named below
        let deadline = Instant::now() + EMPTY_WITHIN;
        loop {
            let left: Vec<String> = self.dirs().filter_map(|dir| remove_dirs(&dir).err()).collect();
            if left.is_empty() {
                return Ok(());
            }
            if deadline < Instant::now() {
                return Err(left.join("; "));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl fmt::Display for CgroupTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layout.mode() {
            Some(Mode::Hybrid) => write!(f, "hybrid cgroups: {}", self.v2.display())?,
            _ => write!(f, "unified cgroups: {}", self.v2.display())?,
        }
        self.v1_memory.as_ref().map_or(Ok(()), |dir| write!(f, ", memory by {}", dir.display()))
    }
}

/// `file` is one that the kernel puts into each cgroup of that kind: a directory without it is no cgroup.
fn make_dir(dir: &Path, file: &str) -> Result<(), String> {
    std::fs::create_dir(dir).map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
    if dir.join(file).exists() { Ok(()) } else { Err(format!("{} is in no cgroup file system", dir.display())) }
}

/// Removes a cgroup with all below it.
fn remove_dirs(dir: &Path) -> Result<(), String> {
    let left = |error: &io::Error| format!("{}: {error}", dir.display());
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|error| left(&error))?,
    };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_dirs(&entry.path())?;
    }
    match std::fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(left(&error)),
        _ => Ok(()),
    }
}

/// Where the kernel keeps a job's figures.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// In this cgroup2 directory.
    Cgroup(PathBuf),
    /// In `/proc` under this pid: the job is one process.
    Process(u32),
}

impl Place {
    /// The place of the process: its cgroup if that is one of the tree's, as `/proc/<pid>/cgroup` says.
    ///
    /// # Errors
    /// When it is in none of them, or cannot be read.
    pub(super) fn of(pid: u32, tree: Option<&CgroupTree>) -> Result<Place, String> {
        let Some(tree) = tree else { return Ok(Place::Process(pid)) };
        let lines = process(pid).and_then(|process| process.cgroups()).map_err(|error| error.to_string())?;
        let path = lines.into_iter().find(|line| line.hierarchy == 0).map(|line| line.pathname).unwrap_or_default();
        let dir = tree.layout.v2.as_ref().and_then(|mount| tree.layout.dir_in(mount, &path));
        match dir {
            Some(dir) if dir.starts_with(&tree.v2) && dir != tree.v2 => Ok(Place::Cgroup(dir)),
            _ => Err(format!("process {pid} is in cgroup {path}")),
        }
    }

    /// All CPU time of the job, in nanoseconds.
    ///
    /// # Errors
    /// What the kernel or the file says.
    pub(super) fn cpu_ns(&self) -> io::Result<u64> {
        match self {
            Place::Cgroup(dir) => Ok(field(&dir.join("cpu.stat"), "usage_usec")?.saturating_mul(1_000)),
            Place::Process(pid) => {
                let stat = process(*pid).and_then(|process| process.stat()).map_err(io::Error::other)?;
                let ticks = stat.utime.saturating_add(stat.stime);
                Ok(ticks.saturating_mul(1_000_000_000) / procfs::ticks_per_second().max(1))
            }
        }
    }

    /// CPU time of the process that stands above a process tree's command and keeps its orphans, in nanoseconds; none of a cgroup.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn above_ns(&self) -> io::Result<u64> {
        match self {
            Place::Cgroup(_) => Ok(0),
            Place::Process(pid) => {
                let parent = process(*pid).and_then(|process| process.stat()).map_err(io::Error::other)?.ppid;
                Place::Process(u32::try_from(parent).unwrap_or(0)).cpu_ns()
            }
        }
    }

    /// Does it stand still?
    ///
    /// # Errors
    /// What the kernel or the file says.
    pub(super) fn frozen(&self) -> io::Result<Frozen> {
        let still = match self {
            Place::Cgroup(dir) => field(&dir.join("cgroup.events"), "frozen")? == 1,
            Place::Process(pid) => {
                let tasks = process(*pid).and_then(|process| process.tasks()).map_err(io::Error::other)?;
                let states = tasks.map(|task| task.and_then(|task| task.stat()).map(|stat| stat.state));
                states.collect::<Result<Vec<char>, _>>().map_err(io::Error::other)?.iter().all(|state| *state == 'T')
            }
        };
        Ok(if still { Frozen::Yes } else { Frozen::No })
    }

    /// Where the answer of [`Place::frozen`] stands, for people.
    pub(super) const fn frozen_source(&self) -> &'static str {
        match self {
            Place::Cgroup(_) => "cgroup.events",
            Place::Process(_) => "/proc/<pid>/task/*/stat",
        }
    }

    /// Where the answer of [`Place::cpu_ns`] stands, for people.
    pub(super) const fn cpu_source(&self) -> &'static str {
        match self {
            Place::Cgroup(_) => "cpu.stat",
            Place::Process(_) => "/proc/<pid>/stat",
        }
    }
}

fn process(pid: u32) -> procfs::ProcResult<Process> {
    Process::new(i32::try_from(pid).unwrap_or(0))
}

/// The number behind a key in a file of the form `key number`, one a line.
fn field(file: &Path, key: &str) -> io::Result<u64> {
    let text = std::fs::read_to_string(file)?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok());
    value.ok_or_else(|| io::Error::other(format!("{}: no {key}", file.display())))
}
