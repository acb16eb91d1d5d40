//! One look at one job's cgroups.

use super::dirs::{Dirs, Key};
use super::files::Files;
use super::walks::Walks;
use super::watched::Watched;
use super::{Sum, join};
use crate::domain::id::Attempt;
use crate::domain::meter::{Frozen, JobSample, Missing, Populated, Reading};
use crate::domain::time::Mono;
use crate::node::cgroup_dir::{OpenDir, missing_for};
use crate::node::layout::{Controller, Hierarchy, Layout};
use crate::node::{freezer, slurm};

/// Who made the directories?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The caller named them.
    Named,
    /// Slurm; they come late and hold its step daemon too.
    Slurm,
}

/// A job's directories, and which of them tell what: found once from their hierarchies, not at each look.
#[derive(Debug)]
pub(super) struct Sources {
    origin: Origin,
    keys: Vec<Key>,
    cpu: Vec<Key>,
    memory: Vec<Key>,
    /// The one in cgroup2 whose events say everything: nearly every job has just one there, and none in a v1 freezer.
    state: Option<Key>,
    /// Where tasks are looked for if cgroup2 does not tell.
    tasks: Option<Hierarchy>,
}

impl Sources {
    pub(super) fn of(origin: Origin, keys: Vec<Key>, dirs: &Dirs, layout: &Layout) -> Sources {
        let placed: Vec<(Key, Hierarchy)> = keys.iter().filter_map(|key| Some((*key, dirs.get(*key)?.hierarchy))).collect();
        // The hierarchy that the first of these rules finds.
        let first = |rules: &[fn(Hierarchy) -> bool]| {
            rules.iter().find_map(|rule| placed.iter().map(|(_, hierarchy)| *hierarchy).find(|hierarchy| rule(*hierarchy)))
        };
        let in_one = |of: Option<Hierarchy>| -> Vec<Key> {
            placed.iter().filter(|(_, hierarchy)| Some(*hierarchy) == of).map(|(key, _)| *key).collect()
        };
        let cpu = in_one(first(&[|at| at == Hierarchy::V2, |at| at.has(Controller::Cpuacct)]));
        let memory = in_one(first(&[|at| at.has(Controller::Memory), |at| at == Hierarchy::V2]));
        let tasks = first(&[|at| at == Hierarchy::V2, |at| at.has(Controller::Freezer), |_| true]);
        let by_v1 = placed.iter().any(|(_, hierarchy)| hierarchy.has(Controller::Freezer)) || layout.hides("cgroup.freeze");
        let state = match in_one(Some(Hierarchy::V2))[..] {
            [only] if origin == Origin::Named && !by_v1 => Some(only),
            _ => None,
        };
        Sources { origin, keys, cpu, memory, state, tasks }
    }

    pub(super) fn keys(&self) -> &[Key] {
        &self.keys
    }

    fn if_none(&self) -> Missing {
        match self.origin {
            Origin::Named => Missing::NotSupported,
            Origin::Slurm => Missing::NotYet,
        }
    }
}

/// What a look reads with.
pub(super) struct Look<'s> {
    pub(super) dirs: &'s mut Dirs,
    pub(super) files: &'s mut Files,
    pub(super) layout: &'s Layout,
    /// What was told without reading files.
    pub(super) walks: &'s Walks,
}

impl Look<'_> {
    /// A sample with everything but memory ([`Look::add_memory`]). Looks at many jobs read one kind of file of all of them and then the
    /// other: that is quicker than both of each in turn.
    pub(super) fn begin(&mut self, attempt: Attempt, sources: &Sources, clock: fn() -> Mono) -> JobSample {
        let mut cpu = Sum::default();
        let mut all_walked = !sources.cpu.is_empty();
        for key in &sources.cpu {
            let Some(dir) = self.dirs.get_mut(*key) else { continue };
            let walked = self.walks.cpu_ns(*key);
            all_walked &= walked.is_some();
            let reading = match walked.filter(|_| dir.is_live()) {
                Some(cpu_ns) => {
                    dir.cpu_ns = Some(cpu_ns);
                    Reading::Seen(cpu_ns)
                }
                None => dir.read_cpu(self.layout, self.files),
            };
            cpu.add(reading, dir.cpu_ns);
        }
        let at = if all_walked { self.walks.at } else { clock() };
        let (populated, frozen) = self.state(sources);
        JobSample {
            attempt,
            at,
            cpu_ns: cpu.whole(|| sources.if_none()),
            memory_bytes: Reading::Missing(Missing::NotYet),
            populated,
            frozen,
            tail: None,
            memory_anon_bytes: None,
            detail: None,
            gpus: None,
        }
    }

    pub(super) fn add_memory(&mut self, sample: &mut JobSample, sources: &Sources) {
        let mut memory = Sum::default();
        for key in &sources.memory {
            if let Some(bytes) = self.walks.memory_bytes(*key) {
                memory.add(Reading::Seen(bytes), None);
                continue;
            }
            let Some(dir) = self.dirs.get_mut(*key) else { continue };
            memory.add(dir.read_memory(self.layout, self.files), None);
        }
        sample.memory_bytes = memory.whole(|| sources.if_none());
    }

    /// Anonymous memory alone.
    pub(super) fn anon(&mut self, sources: &Sources) -> Reading<u64> {
        let mut anon = Sum::default();
        for key in &sources.memory {
            let Some(dir) = self.dirs.get_mut(*key) else { continue };
            anon.add(dir.read_anon(self.layout, self.files), None);
        }
        anon.whole(|| Missing::NotSupported)
    }

    /// Has the job tasks, and are they all frozen? Told by cgroup2 where the job has a directory there; else by the v1 freezer and
    /// `cgroup.procs`; where nothing freezes, by the state of every process.
    fn state(&mut self, sources: &Sources) -> (Reading<Populated>, Reading<Frozen>) {
        if let Some(state) = self.told_state(sources) {
            return state;
        }
        let if_none = sources.if_none();
        let (mut populated, mut v2, mut v1) = (Vec::new(), Vec::new(), Vec::new());
        let mut v2_offers = true;
        for key in &sources.keys {
            let Some(dir) = self.dirs.get_mut(*key) else { continue };
            if dir.hierarchy.has(Controller::Freezer) {
                v1.push(dir.read_freezer(self.layout, self.files));
            }
            if dir.hierarchy != Hierarchy::V2 {
                continue;
            }
            let events = dir.read_events(self.layout, self.files);
            v2_offers &= events.seen().is_none_or(|events| events.frozen.is_some() && !self.layout.hides("cgroup.freeze"));
            v2.push(match (sources.origin, dir.open(self.layout)) {
                (Origin::Slurm, Ok(job)) => slurm_frozen(&job),
                _ => events.clone().map(|events| events.frozen.unwrap_or(Frozen::No)),
            });
            populated.push(events.map(|events| events.populated));
        }
        if populated.is_empty() {
            populated = self.each(sources, Watched::read_procs);
        }
        let frozen = match (v2.is_empty() || !v2_offers, v1.is_empty()) {
            (false, true) => join(&v2, Frozen::No, &if_none),
            // Either of them holds the tasks, whoever set it.
            (false, false) => match join(&v1, Frozen::No, &if_none) {
                Reading::Seen(Frozen::Yes) => Reading::Seen(Frozen::Yes),
                _ => join(&v2, Frozen::No, &if_none),
            },
            (true, false) => join(&v1, Frozen::No, &if_none),
            (true, true) => {
                let each = self.each(sources, |dir, layout, _| match dir.open(layout) {
                    Ok(open) => freezer::is_stopped(&open),
                    Err(why) => Reading::Missing(why),
                });
                join(&each, Frozen::No, &if_none)
            }
        };
        (join(&populated, Populated::Yes, &if_none), frozen)
    }

    /// The same where one file says everything.
    fn told_state(&mut self, sources: &Sources) -> Option<(Reading<Populated>, Reading<Frozen>)> {
        let Reading::Seen(events) = self.dirs.get_mut(sources.state?)?.read_events(self.layout, self.files) else { return None };
        Some((Reading::Seen(events.populated), Reading::Seen(events.frozen?)))
    }

    /// A reading of each directory in which tasks are looked for.
    fn each<T>(&mut self, sources: &Sources, read: impl Fn(&mut Watched, &Layout, &mut Files) -> Reading<T>) -> Vec<Reading<T>> {
        let mut readings = Vec::new();
        for key in &sources.keys {
            if let Some(dir) = self.dirs.get_mut(*key).filter(|dir| Some(dir.hierarchy) == sources.tasks) {
                readings.push(read(dir, self.layout, self.files));
            }
        }
        readings
    }
}

/// Are all leaves that hold tasks frozen? The job's own `frozen` never says so: its slurmstepd runs on.
fn slurm_frozen(job: &OpenDir) -> Reading<Frozen> {
    let leaves = match slurm::freeze_leaves(job) {
        Ok(leaves) => leaves,
        Err(errno) => return Reading::Missing(missing_for(errno)),
    };
    let mut all = None;
    for leaf in leaves {
        match leaf.events() {
            Ok(events) if events.populated == Populated::No => {}
            Ok(events) => all = Some(if all == Some(Frozen::No) { Frozen::No } else { events.frozen.unwrap_or(Frozen::No) }),
            Err(Missing::Vanished) => {}
            Err(why) => return Reading::Missing(why),
        }
    }
    Reading::Seen(all.unwrap_or(Frozen::No))
}
