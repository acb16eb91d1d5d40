//! `meterctl thaw --all`: lets every job go on that the agent froze. It works with the agent dead, from its journal alone.

use std::path::Path;

use rustix::process::Signal;

use super::client::{Client, Failure};
use super::enforcement;
use super::exit::Exit;
use super::journal::Place;
use super::{complain, print};
use crate::domain::act::{Act, CgroupDir, ProcessRoot, SlurmJob, Target};
use crate::domain::agent::Agent;
use crate::domain::enforcement::Enforcement;
use crate::domain::fact::Fact;
use crate::domain::job::{FrozenBy, Job, StepEvent};
use crate::domain::time::Nanos;
use crate::node::cgroup_dir::{self, OpenDir};
use crate::node::freezer::{self, Stopper};
use crate::node::journal::{self, Journal, JournalError, Keep};
use crate::node::layout::{Controller, Hierarchy, Layout};
use crate::node::process_tree::ProcessTrees;
use crate::node::{clock, slurm};

/// Rounds through a process tree until nobody in it is stopped.
const ROUNDS_MAX: u32 = 64;

/// Which jobs.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// All that the agent froze. What others froze stays frozen.
    #[arg(long, required = true)]
    all: bool,
    #[command(flatten)]
    place: Place,
}

pub(super) fn main(socket: &Path, arguments: &Arguments) -> Result<Exit, Failure> {
    match enforcement::set(&Client::new(socket)?, Enforcement::Observe) {
        Ok(()) => {
            print("the agent now lets all its frozen jobs go on; meterctl jobs shows them\n");
            return Ok(Exit::Done);
        }
        Err(Failure::Unreachable { why, .. }) => print(&format!("the agent does not answer ({why}): going by its journal\n")),
        Err(failure) => return Err(failure),
    }
    let agent = state(&arguments.place.state_dir)?;
    let layout = Layout::detect().ok();
    let mut exit = Exit::Done;
    let mut found = 0;
    for job in agent.jobs.values().filter(|job| may_be_frozen(job)) {
        found += 1;
        let what = thaw(layout.as_ref(), job);
        print(&format!("{}, attempt {}: {}\n", job.name, job.attempt, what.text));
        if what.worked == Worked::No {
            exit = Exit::Failed;
        }
    }
    if found == 0 {
        print("the journal names no job that the agent froze\n");
    }
    Ok(exit)
}

/// The state as the journal has it: the checkpoint, and the facts after it.
fn state(dir: &Path) -> Result<Agent, Failure> {
    journal::read_facts(dir, u64::MAX).map_err(Failure::other)?; // is there a journal? Opening would make one.
    let nothing_is_pruned = Keep { age: Nanos(u64::MAX), bytes: u64::MAX };
    let (mut agent, facts) = match Journal::open(dir, nothing_is_pruned) {
        Ok((_, recovered)) => {
            let agent = recovered.checkpoint.as_ref().and_then(|(_, bytes)| Agent::decode(bytes));
            (agent.unwrap_or_default(), recovered.facts.into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>())
        }
        Err(JournalError::Locked(_)) => {
            complain("an agent holds the journal and does not answer: what it freezes again is its own business; end it first");
            let facts = journal::read_facts(dir, 1).map_err(Failure::other)?;
            (Agent::default(), facts.into_iter().map(|fact| fact.bytes).collect())
        }
        Err(error) => return Err(Failure::other(error)),
    };
    for bytes in facts {
        // A fact of a later version cannot be applied; the others still tell most of what is frozen.
        match Fact::decode(&bytes) {
            Ok(fact) => agent.apply(&fact),
            Err(error) => complain(&error.to_string()),
        }
    }
    Ok(agent)
}

/// Did the agent freeze it, or try to? A freeze is done before it is written down, so a job whose account was armed counts too, as long
/// as nobody else is known to have frozen it.
fn may_be_frozen(job: &Job) -> bool {
    let armed = || job.steps.iter().any(|step| matches!(step.event, StepEvent::Armed(_) | StepEvent::Emptied(_)));
    match job.frozen_by {
        Some(FrozenBy::Agent) => true,
        Some(FrozenBy::Other) => false,
        None => job.is_live() && armed(),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Worked {
    Yes,
    No,
}

#[derive(Debug, PartialEq, Eq)]
struct Thawed {
    worked: Worked,
    text: String,
}

impl Thawed {
    fn yes(text: impl Into<String>) -> Thawed {
        Thawed { worked: Worked::Yes, text: text.into() }
    }

    fn no(text: impl Into<String>) -> Thawed {
        Thawed { worked: Worked::No, text: text.into() }
    }

    fn all(parts: Vec<Thawed>) -> Thawed {
        let worked = if parts.iter().all(|part| part.worked == Worked::Yes) { Worked::Yes } else { Worked::No };
        Thawed { worked, text: parts.into_iter().map(|part| part.text).collect::<Vec<_>>().join("; ") }
    }
}

fn thaw(layout: Option<&Layout>, job: &Job) -> Thawed {
    if clock::boot_id().is_ok_and(|boot| boot != job.boot) {
        return Thawed::yes("belongs to an earlier boot: nothing of it is left");
    }
    match (&job.target, layout) {
        (Target::Processes(root), _) => thaw_processes(*root),
        (_, None) => Thawed::no("no cgroup file system is mounted here"),
        (Target::Cgroups(dirs) | Target::OwnCgroups(dirs), Some(layout)) => {
            let mut parts: Vec<Thawed> = dirs.iter().filter_map(|dir| thaw_dir(layout, dir)).collect();
            parts.extend(go_on(layout, dirs));
            Thawed::all(parts)
        }
        (Target::SlurmJob(slurm_job), Some(layout)) => thaw_slurm(layout, slurm_job),
    }
}

/// One directory, if it is still the one that was named; none for a hierarchy that freezes nothing.
fn thaw_dir(layout: &Layout, dir: &CgroupDir) -> Option<Thawed> {
    match cgroup_dir::open(layout, dir) {
        Ok(open) => thaw_open(&open),
        Err(cgroup_dir::OpenError::Vanished) => Some(Thawed::yes(format!("{} is gone", dir.path))),
        Err(error) => Some(Thawed::no(format!("{} not touched: {error}", dir.path))),
    }
}

fn thaw_open(open: &OpenDir) -> Option<Thawed> {
    let (file, text) = match open.hierarchy {
        Hierarchy::V2 if !open.file_exists("cgroup.freeze") => return None,
        Hierarchy::V2 => ("cgroup.freeze", "0"),
        v1 if v1.has(Controller::Freezer) => ("freezer.state", "THAWED"),
        Hierarchy::V1(_) => return None,
    };
    Some(match open.write(file, text) {
        Ok(()) => Thawed::yes(format!("wrote {text} to {}/{file}", open.dir.path)),
        Err(errno) => Thawed::no(format!("cannot write {text} to {}/{file}: {errno}", open.dir.path)),
    })
}

/// SIGCONT to every process, where nothing but signals stops a job.
fn go_on(layout: &Layout, dirs: &[CgroupDir]) -> Option<Thawed> {
    let open: Vec<OpenDir> = dirs.iter().filter_map(|dir| cgroup_dir::open(layout, dir).ok()).collect();
    let stopper = freezer::stopper(open.iter().map(|dir| (dir.hierarchy, freezer::offers_freeze(layout, dir))))?;
    if !matches!(stopper, Stopper::Signals(_)) {
        return None;
    }
    let parts = open.iter().filter(|dir| stopper.acts_on(dir.hierarchy)).map(|dir| match freezer::signal_below(dir, Signal::CONT) {
        Ok(()) => Thawed::yes(format!("sent SIGCONT to each of {}/cgroup.procs", dir.dir.path)),
        Err(errno) => Thawed::no(format!("SIGCONT to each of {}/cgroup.procs: {errno}", dir.dir.path)),
    });
    Some(Thawed::all(parts.collect()))
}

fn thaw_slurm(layout: &Layout, job: &SlurmJob) -> Thawed {
    let scopes = slurm::scopes(layout);
    let dirs = scopes.and_then(|scopes| slurm::job_dirs(&scopes, job));
    let leaves = dirs.and_then(|dirs| dirs.iter().map(slurm::freeze_leaves).collect::<Result<Vec<_>, _>>());
    match leaves {
        Ok(leaves) if leaves.iter().all(Vec::is_empty) => Thawed::yes("its steps are gone"),
        Ok(leaves) => Thawed::all(leaves.iter().flatten().filter_map(thaw_open).collect()),
        Err(errno) => Thawed::no(format!("its cgroups cannot be read: {errno}")),
    }
}

fn thaw_processes(root: ProcessRoot) -> Thawed {
    let trees = ProcessTrees::default();
    for _ in 0..ROUNDS_MAX {
        match trees.round(root, Act::Thaw) {
            Ok(round) if round.error.is_some() => {
                let errno = round.error.map_or(String::new(), |errno| errno.to_string());
                return Thawed::no(format!("SIGCONT to process {} and its descendants: {errno}", root.pid));
            }
            Ok(round) if round.to_do == 0 => return Thawed::yes(format!("sent SIGCONT to process {} and its descendants", root.pid)),
            Ok(_) => {}
            Err(crate::domain::meter::Missing::Vanished) => return Thawed::yes(format!("process {} is gone", root.pid)),
            Err(why) => return Thawed::no(format!("process {}: {why}", root.pid)),
        }
    }
    Thawed::no(format!("process {} and its descendants are stopped again and again", root.pid))
}
