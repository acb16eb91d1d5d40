//! Reads what jobs used: CPU time, memory, populated, frozen; from cgroups with kept descriptors and `pread`, from process trees through
//! procfs. A cgroup that was there and is gone is [`Missing::Vanished`], its last CPU time is told by its parent ([`JobSample::tail`]).

mod detail;
mod family;
mod files;
mod nest;
mod watched;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::family::{Family, Key};
use self::files::Files;
use self::watched::{TailOpen, Watched};
use super::cgroup_dir::{self, OpenDir};
use super::defence::{Defence, stands};
use super::freezer;
use super::layout::{Controller, Hierarchy, Layout, PlaceError};
use super::process_tree::ProcessTrees;
use super::{sibling, slurm};
use crate::domain::act::{CgroupDir, ProcessRoot, SlurmJob, Target};
use crate::domain::detail::{DETAIL_EVERY, Detail};
use crate::domain::id::Attempt;
use crate::domain::meter::{Frozen, JobSample, Missing, Populated, Reading, Tail, TailShare};
use crate::domain::time::{Mono, Nanos};

pub use super::cgroup_dir::{IdentifyError, identify};

/// Descriptors of files that are kept open at most, unless told otherwise: each pins 4 KiB of kernel memory, and saves two thirds of a
/// reading. Directories' descriptors, which pin nothing, come on top: one a directory.
pub const KEPT_FILES_MAX: usize = 16_384;

/// Where changes of `cgroup.events` are told, it is still read at every so many-th look at all jobs: nothing told is lost for long.
const EVENTS_EVERY: u64 = 32;

/// Into so many parts the ten seconds between two readings of details are divided.
const SPREAD: u64 = 10;

/// Which jobs to look at.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// All that are attached.
    All,
    /// These; an unknown one is passed over.
    Only(&'a [Attempt]),
}

/// Why a job cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// It is attached already.
    #[error("attempt {0} is attached already")]
    Already(Attempt),
    /// Another job has the same directory: it would be billed twice.
    #[error("{path} belongs to attempt {holder} already")]
    Taken {
        /// Which directory.
        path: String,
        /// Whose it is.
        holder: Attempt,
    },
    /// A path is no cgroup's that may be metered.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// It names no directory.
    #[error("no cgroup directory was named")]
    Empty,
    /// No cgroup file system here.
    #[error("no cgroup file system is mounted here")]
    NoCgroups,
    /// Some of its directories are inside another job's, or some of another one's inside its, and some are not.
    #[error("only a part of it and of attempt {0} are in one another")]
    PartlyInside(Attempt),
    /// The agent is one of its processes.
    #[error("the agent itself is in it")]
    HoldsAgent,
}

#[derive(Debug)]
enum Job {
    Cgroups { keys: Vec<Key> },
    Slurm { job: SlurmJob, keys: Vec<Key> },
    Processes { root: ProcessRoot },
}

impl Job {
    fn keys(&self) -> &[Key] {
        match self {
            Job::Cgroups { keys } | Job::Slurm { keys, .. } => keys,
            Job::Processes { .. } => &[],
        }
    }
}

/// The reader of all attached jobs.
#[derive(Debug)]
pub struct Sampler {
    layout: Option<Arc<Layout>>,
    trees: ProcessTrees,
    clock: fn() -> Mono,
    files: Files,
    jobs: BTreeMap<Attempt, Job>,
    dirs: BTreeMap<Key, Watched>,
    /// By the parent's path.
    families: BTreeMap<String, Family>,
    next_key: Key,
    /// Looks at all jobs.
    looks: u64,
    /// The jobs directly inside each.
    nests: BTreeMap<Attempt, BTreeSet<Attempt>>,
    /// Every named directory, by its path.
    paths: BTreeMap<String, Attempt>,
    anon: AnonRead,
    /// When each job's detail is to be read next.
    detail_due: BTreeMap<Attempt, Mono>,
}

/// When anonymous memory is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnonRead {
    /// At every look: a card prices it.
    EachLook,
    /// With the other details: `memory.stat` is dear.
    WithDetails,
}

/// Which looks read the details too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closeness {
    /// Those of jobs whose ten seconds are over, if all are looked at.
    WhenDue,
    /// This one.
    Now,
}

impl Sampler {
    /// A reader of jobs in this layout; with `None` only process trees can be attached.
    #[must_use]
    pub fn new(layout: Option<Arc<Layout>>, trees: ProcessTrees, clock: fn() -> Mono) -> Sampler {
        let files = Files::keeping_at_most(KEPT_FILES_MAX);
        let (jobs, dirs, families) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (anon, detail_due) = (AnonRead::WithDetails, BTreeMap::new());
        Sampler {
            layout,
            trees,
            clock,
            files,
            jobs,
            dirs,
            families,
            next_key: 0,
            looks: 0,
            anon,
            detail_due,
            nests: BTreeMap::new(),
            paths: BTreeMap::new(),
        }
    }

    /// The same reader, keeping at most that many files open. Call it before the first job is attached.
    #[must_use]
    pub fn keeping_at_most(mut self, files: usize) -> Sampler {
        self.files = Files::keeping_at_most(files);
        self
    }

    /// Says when anonymous memory is to be read.
    pub fn set_anon(&mut self, anon: AnonRead) {
        self.anon = anon;
    }

    /// How many files are kept open now.
    #[must_use]
    pub fn kept_files(&self) -> usize {
        self.files.kept()
    }

    /// The jobs that are looked after.
    pub fn attached(&self) -> impl Iterator<Item = Attempt> {
        self.jobs.keys().copied()
    }

    /// Begins to look after a job. A directory that is gone or replaced by now is no error: its samples say so.
    ///
    /// # Errors
    /// When it is attached already, or may not be metered.
    pub fn attach(&mut self, attempt: Attempt, target: &Target) -> Result<(), AttachError> {
        if self.jobs.contains_key(&attempt) {
            return Err(AttachError::Already(attempt));
        }
        let job = match target {
            Target::Cgroups(dirs) | Target::OwnCgroups(dirs) => Job::Cgroups { keys: self.attach_dirs(attempt, dirs)? },
            Target::SlurmJob(job) => {
                self.layout.as_ref().filter(|layout| layout.v2.is_some()).ok_or(AttachError::NoCgroups)?;
                Job::Slurm { job: job.clone(), keys: Vec::new() }
            }
            Target::Processes(root) => {
                if self.trees.holds_agent(*root) {
                    return Err(AttachError::HoldsAgent);
                }
                self.trees.follow(*root);
                Job::Processes { root: *root }
            }
        };
        self.jobs.insert(attempt, job);
        // Spread over the ten seconds, so that they do not all fall due at once.
        let first = Nanos(attempt.0 % SPREAD * (DETAIL_EVERY.0 / SPREAD));
        self.detail_due.insert(attempt, (self.clock)().plus(first));
        self.enter_paths(attempt);
        Ok(())
    }

    fn attach_dirs(&mut self, attempt: Attempt, dirs: &[CgroupDir]) -> Result<Vec<Key>, AttachError> {
        let layout = self.layout.clone().ok_or(AttachError::NoCgroups)?;
        let own = layout.own_dirs().unwrap_or_default();
        let mut named = BTreeMap::new();
        for dir in dirs {
            let place = layout.classify(Path::new(&dir.path))?;
            if own.iter().any(|own| own.starts_with(&dir.path)) && stands(Defence::HoldsAgent) {
                return Err(AttachError::HoldsAgent);
            }
            let name = layout.cgroup_name(&place);
            // The same name in another hierarchy is the same job's: its tasks would be billed twice.
            let is_taken = |other: &&Watched| {
                other.live().is_some() && (other.dir == *dir || (other.hierarchy != place.hierarchy && other.name == name))
            };
            if let Some(other) = self.dirs.values().find(is_taken).filter(|_| stands(Defence::OneHolder)) {
                return Err(AttachError::Taken { path: dir.path.clone(), holder: other.attempt });
            }
            // A map: a caller that names one directory twice is not billed twice.
            named.insert(dir.clone(), (place.hierarchy, name));
        }
        if named.is_empty() {
            return Err(AttachError::Empty);
        }
        // Nor is one that names a directory and one below it: the upper one holds both.
        let paths: Vec<String> = named.keys().map(|dir| dir.path.clone()).collect();
        named.retain(|dir, _| !paths.iter().any(|upper| sibling::is_below(&dir.path, upper)));
        let placed: Vec<(&str, Hierarchy)> = named.iter().map(|(dir, (hierarchy, _))| (dir.path.as_str(), *hierarchy)).collect();
        self.refuse_partly_inside(attempt, &placed)?;
        let open = |(dir, (hierarchy, name)): (CgroupDir, (Hierarchy, PathBuf))| {
            let opened = cgroup_dir::open(&layout, &dir).map_err(Missing::from);
            Watched::new(attempt, dir, name, hierarchy, opened)
        };
        let watched: Vec<Watched> = named.into_iter().map(open).collect();
        Ok(watched.into_iter().map(|dir| self.watch(dir)).collect())
    }

    fn watch(&mut self, dir: Watched) -> Key {
        let key = self.next_key;
        self.next_key += 1;
        if counts_cpu(dir.hierarchy) && dir.live().is_some() {
            let parent = parent_of(&dir.dir.path);
            self.families.entry(parent.to_owned()).or_insert_with(|| Family::new(parent, dir.hierarchy)).keys.insert(key);
        }
        self.dirs.insert(key, dir);
        key
    }

    /// Looks after a job no more. Its tail goes unnoticed from then on.
    pub fn detach(&mut self, attempt: Attempt) {
        let Some(job) = self.jobs.remove(&attempt) else { return };
        self.detail_due.remove(&attempt);
        if let Job::Processes { root } = job {
            self.trees.forget(root);
        }
        for key in job.keys() {
            if let Some(dir) = self.dirs.get_mut(key) {
                dir.release(&mut self.files);
            }
            let Some(dir) = self.dirs.remove(key) else { continue };
            let parent = parent_of(&dir.dir.path);
            if let Some(family) = self.families.get_mut(parent) {
                family.leave(*key, &dir);
                if family.keys.is_empty() {
                    family.release(&mut self.files);
                    self.families.remove(parent);
                }
            }
        }
        self.paths.retain(|_, holder| *holder != attempt);
        if !self.nests.is_empty() {
            self.find_nests();
        }
    }

    /// From now on somebody tells whenever the job's `cgroup.events` change ([`Sampler::changed`]): looks at all jobs then read them only
    /// after that. A look at single jobs reads them always.
    pub fn told_of(&mut self, attempt: Attempt) {
        // Of a Slurm job the leaves are read, and nobody watches those.
        if let Some(Job::Cgroups { keys }) = self.jobs.get(&attempt) {
            for key in keys {
                if let Some(dir) = self.dirs.get_mut(key) {
                    dir.events_are_told();
                }
            }
        }
    }

    /// The `cgroup.events` of these jobs have changed since they were last read.
    pub fn changed(&mut self, attempts: &[Attempt]) {
        for attempt in attempts {
            for key in self.jobs.get(attempt).map_or(&[][..], Job::keys) {
                if let Some(dir) = self.dirs.get_mut(key) {
                    dir.forget_events();
                }
            }
        }
    }

    /// Lets go of what was told often enough, so that a lost word is made good.
    fn doubt_events(&mut self, which: Which<'_>) {
        match which {
            Which::Only(attempts) => self.changed(attempts),
            Which::All => {
                self.looks += 1;
                let turn = self.looks % EVENTS_EVERY;
                self.dirs.iter_mut().filter(|(key, _)| **key % EVENTS_EVERY == turn).for_each(|(_, dir)| dir.forget_events());
            }
        }
    }

    /// One look: a sample for each job, in the order of attempts. With [`Which::All`] the details of those whose ten seconds are over.
    pub fn sample(&mut self, which: Which<'_>) -> Vec<JobSample> {
        self.look(which, Closeness::WhenDue)
    }

    /// One look at these with all details: at a job's beginning and end, and when somebody asks.
    pub fn sample_closely(&mut self, attempts: &[Attempt]) -> Vec<JobSample> {
        self.look(Which::Only(attempts), Closeness::Now)
    }

    fn look(&mut self, which: Which<'_>, closeness: Closeness) -> Vec<JobSample> {
        self.doubt_events(which);
        let mut wanted: Vec<Attempt> = match which {
            Which::All => self.jobs.keys().copied().collect(),
            // With those inside them: what these use is no part of what those around them do.
            Which::Only(some) => {
                let inner = some.iter().filter_map(|attempt| self.nests.get(attempt)).flatten().copied();
                some.iter().copied().filter(|attempt| self.jobs.contains_key(attempt)).chain(inner).collect()
            }
        };
        wanted.sort_unstable();
        wanted.dedup();
        self.find_slurm_dirs(&wanted);
        let begun = match which {
            Which::All => self.families.iter_mut().map(|(path, family)| (path.clone(), family.read(&mut self.files))).collect(),
            // Few jobs: their own readings cost less than to add up the whole subtree.
            Which::Only(_) => BTreeMap::new(),
        };
        let mut samples: Vec<JobSample> = wanted.iter().filter_map(|attempt| self.sample_cgroups(*attempt)).collect();
        // Nearly always nothing has vanished.
        let vanished = self.files.vanished();
        if matches!(which, Which::All) {
            self.files.forget_vanished(); // every job's tail is told below
        }
        let gone: Vec<Attempt> = if vanished { self.with_open_tail(&samples) } else { Vec::new() };
        self.settle(begun, &gone);
        if vanished {
            for sample in &mut samples {
                sample.tail = self.take_tail(sample.attempt);
            }
        }
        samples.extend(self.sample_trees(&wanted));
        samples.sort_by_key(|sample| sample.attempt);
        for sample in &mut samples {
            let due = matches!(which, Which::All) && self.detail_due.get(&sample.attempt).is_some_and(|due| *due <= sample.at);
            self.add_detail(sample, if due { Closeness::Now } else { closeness });
        }
        self.take_off_inner_memory(&mut samples);
        samples
    }

    fn add_detail(&mut self, sample: &mut JobSample, closeness: Closeness) {
        if closeness == Closeness::WhenDue && self.anon == AnonRead::WithDetails {
            return;
        }
        let whole = closeness == Closeness::Now;
        match self.jobs.get(&sample.attempt) {
            Some(Job::Processes { root }) => {
                let (pids, anon) = self.trees.detail(*root);
                sample.memory_anon_bytes = Some(anon.clone());
                if whole {
                    let none = Detail::missing(&Missing::NotSupported);
                    sample.detail = Some(Box::new(Detail { pids, memory_anon_bytes: anon, ..none }));
                }
            }
            Some(job) => {
                let open: Vec<&OpenDir> = job.keys().iter().filter_map(|key| self.dirs.get(key)?.live()).collect();
                if open.is_empty() {
                    sample.memory_anon_bytes = Some(Reading::Missing(Missing::Vanished)); // the last level holds to the end
                } else if whole {
                    let detail = detail::read(&open);
                    sample.memory_anon_bytes = Some(detail.memory_anon_bytes.clone());
                    sample.detail = Some(Box::new(detail));
                } else {
                    sample.memory_anon_bytes = Some(detail::read_anon(&open));
                }
            }
            None => return,
        }
        if whole {
            self.detail_due.insert(sample.attempt, sample.at.plus(DETAIL_EVERY));
        }
    }

    /// Slurm's directories come late and can come anew: they are looked for at each look.
    fn find_slurm_dirs(&mut self, wanted: &[Attempt]) {
        let Some(layout) = self.layout.clone() else { return };
        let slurm_jobs: Vec<(Attempt, SlurmJob)> = wanted
            .iter()
            .filter_map(|attempt| match self.jobs.get(attempt) {
                Some(Job::Slurm { job, .. }) => Some((*attempt, job.clone())),
                _ => None,
            })
            .collect();
        if slurm_jobs.is_empty() {
            return;
        }
        let Ok(scopes) = slurm::scopes(&layout) else { return };
        for (attempt, job) in slurm_jobs {
            let Ok(found) = slurm::job_dirs(&scopes, &job) else { continue };
            for open in found {
                let known = self
                    .jobs
                    .get(&attempt)
                    .is_some_and(|job| job.keys().iter().filter_map(|key| self.dirs.get(key)).any(|dir| dir.dir.inode == open.dir.inode));
                if !known {
                    let key = self.watch(Watched::new(attempt, open.dir.clone(), PathBuf::from(&open.dir.path), Hierarchy::V2, Ok(open)));
                    if let Some(Job::Slurm { keys, .. }) = self.jobs.get_mut(&attempt) {
                        keys.push(key);
                    }
                }
            }
        }
    }

    /// Tells tails and takes new baselines: of the families that were begun with, and of those in which a directory was found gone.
    fn settle(&mut self, mut begun: BTreeMap<String, Option<u64>>, gone: &[Attempt]) {
        let gone: BTreeSet<String> = gone
            .iter()
            .flat_map(|attempt| self.jobs.get(attempt).map_or(&[][..], Job::keys))
            .filter_map(|key| self.dirs.get(key))
            .filter(|dir| dir.tail_open == TailOpen::Yes && counts_cpu(dir.hierarchy))
            .map(|dir| parent_of(&dir.dir.path).to_owned())
            .collect();
        for path in gone {
            if begun.contains_key(&path) {
                continue;
            }
            let Some(family) = self.families.get_mut(&path) else { continue };
            let begun_ns = family.read(&mut self.files);
            for key in &family.keys {
                if let Some(dir) = self.dirs.get_mut(key) {
                    dir.read_cpu(&mut self.files);
                }
            }
            begun.insert(path, begun_ns);
        }
        for (path, begun_ns) in begun {
            if let Some(family) = self.families.get_mut(&path) {
                family.settle(begun_ns, &mut self.dirs, &mut self.files);
            }
        }
    }

    fn with_open_tail(&self, samples: &[JobSample]) -> Vec<Attempt> {
        let is_open = |attempt: &Attempt| {
            let keys = self.jobs.get(attempt).map_or(&[][..], Job::keys);
            keys.iter().filter_map(|key| self.dirs.get(key)).any(|dir| dir.tail_open == TailOpen::Yes)
        };
        samples.iter().map(|sample| sample.attempt).filter(is_open).collect()
    }

    fn take_tail(&mut self, attempt: Attempt) -> Option<Tail> {
        let mut whole: Option<Tail> = None;
        for key in self.jobs.get(&attempt)?.keys() {
            let Some(tail) = self.dirs.get_mut(key).and_then(|dir| dir.tail.take()) else { continue };
            let before = whole.unwrap_or(Tail { cpu_ns: 0, share: TailShare::Exact });
            let share = if before.share == TailShare::Exact { tail.share } else { before.share };
            whole = Some(Tail { cpu_ns: before.cpu_ns.saturating_add(tail.cpu_ns), share });
        }
        whole
    }

    fn sample_cgroups(&mut self, attempt: Attempt) -> Option<JobSample> {
        let layout = self.layout.clone()?;
        let (keys, if_none) = match self.jobs.get(&attempt)? {
            Job::Cgroups { keys } => (keys.clone(), Missing::NotSupported),
            Job::Slurm { keys, .. } => (keys.clone(), Missing::NotYet),
            Job::Processes { .. } => return None,
        };
        let is_slurm = matches!(self.jobs.get(&attempt), Some(Job::Slurm { .. }));
        let cpu_from = self.first_of(&keys, &[|at| at == Hierarchy::V2, |at| at.has(Controller::Cpuacct)]);
        let memory_from = self.first_of(&keys, &[|at| at.has(Controller::Memory), |at| at == Hierarchy::V2]);
        let (mut cpu, mut memory) = (Sum::default(), Sum::default());
        for key in &keys {
            let Some(dir) = self.dirs.get_mut(key) else { continue };
            if Some(dir.hierarchy) == cpu_from {
                let reading = dir.read_cpu(&mut self.files);
                cpu.add(reading, dir.cpu_ns);
            }
        }
        let at = (self.clock)();
        for key in &keys {
            let Some(dir) = self.dirs.get_mut(key) else { continue };
            if Some(dir.hierarchy) == memory_from {
                memory.add(dir.read_memory(&layout, &mut self.files), None);
            }
        }
        let (populated, frozen) = self.read_state(&layout, &keys, is_slurm, &if_none);
        Some(JobSample {
            attempt,
            at,
            cpu_ns: cpu.whole(&if_none),
            memory_bytes: memory.whole(&if_none),
            populated,
            frozen,
            tail: None,
            memory_anon_bytes: None,
            detail: None,
        })
    }

    /// Has the job tasks, and are they all frozen? Told by cgroup2 where the job has a directory there; else by the v1 freezer and
    /// `cgroup.procs`; where nothing freezes, by the state of every process.
    fn read_state(&mut self, layout: &Layout, keys: &[Key], is_slurm: bool, if_none: &Missing) -> (Reading<Populated>, Reading<Frozen>) {
        if let Some(state) = self.read_told_state(layout, keys, is_slurm) {
            return state;
        }
        let (mut populated, mut v2, mut v1) = (Vec::new(), Vec::new(), Vec::new());
        let mut v2_offers = true;
        for key in keys {
            let Some(dir) = self.dirs.get_mut(key) else { continue };
            if dir.hierarchy.has(Controller::Freezer) {
                v1.push(dir.read_freezer(&mut self.files));
            }
            if dir.hierarchy != Hierarchy::V2 {
                continue;
            }
            let events = dir.read_events(&mut self.files);
            v2_offers &= events.seen().is_none_or(|events| events.frozen.is_some() && !layout.hides("cgroup.freeze"));
            v2.push(match (is_slurm, dir.live()) {
                (true, Some(job)) => slurm_frozen(job),
                _ => events.clone().map(|events| events.frozen.unwrap_or(Frozen::No)),
            });
            populated.push(events.map(|events| events.populated));
        }
        let first = self.first_of(keys, &[|at| at == Hierarchy::V2, |at| at.has(Controller::Freezer), |_| true]);
        if populated.is_empty() {
            populated = self.read_each(keys, first, Watched::read_procs);
        }
        let frozen = match (v2.is_empty() || !v2_offers, v1.is_empty()) {
            (false, true) => join(&v2, Frozen::No, if_none),
            // Either of them holds the tasks, whoever set it.
            (false, false) => match join(&v1, Frozen::No, if_none) {
                Reading::Seen(Frozen::Yes) => Reading::Seen(Frozen::Yes),
                _ => join(&v2, Frozen::No, if_none),
            },
            (true, false) => join(&v1, Frozen::No, if_none),
            (true, true) => {
                let each = self.read_each(keys, first, |dir, _| match dir.live() {
                    Some(open) => freezer::is_stopped(open),
                    None => Reading::Missing(Missing::Vanished),
                });
                join(&each, Frozen::No, if_none)
            }
        };
        (join(&populated, Populated::Yes, if_none), frozen)
    }

    /// The same for a job with one directory in cgroup2 and none in a v1 freezer, as nearly all are.
    fn read_told_state(&mut self, layout: &Layout, keys: &[Key], is_slurm: bool) -> Option<(Reading<Populated>, Reading<Frozen>)> {
        let mut found = None;
        for key in keys {
            let hierarchy = self.dirs.get(key)?.hierarchy;
            if hierarchy.has(Controller::Freezer) || (hierarchy == Hierarchy::V2 && found.replace(*key).is_some()) {
                return None;
            }
        }
        if is_slurm || layout.hides("cgroup.freeze") {
            return None;
        }
        let events = self.dirs.get_mut(&found?)?.read_events(&mut self.files);
        let Reading::Seen(events) = events else { return None };
        Some((Reading::Seen(events.populated), Reading::Seen(events.frozen?)))
    }

    /// A reading of each of the job's directories in that hierarchy.
    fn read_each<T>(
        &mut self,
        keys: &[Key],
        of: Option<Hierarchy>,
        read: impl Fn(&mut Watched, &mut Files) -> Reading<T>,
    ) -> Vec<Reading<T>> {
        let mut readings = Vec::new();
        for key in keys {
            if let Some(dir) = self.dirs.get_mut(key).filter(|dir| Some(dir.hierarchy) == of) {
                readings.push(read(dir, &mut self.files));
            }
        }
        readings
    }

    /// The hierarchy that the first of these rules finds among the job's directories.
    fn first_of(&self, keys: &[Key], rules: &[fn(Hierarchy) -> bool]) -> Option<Hierarchy> {
        let hierarchies = || keys.iter().filter_map(|key| self.dirs.get(key)).map(|dir| dir.hierarchy);
        rules.iter().find_map(|rule| hierarchies().find(|hierarchy| rule(*hierarchy)))
    }

    fn sample_trees(&mut self, wanted: &[Attempt]) -> Vec<JobSample> {
        let (attempts, roots): (Vec<Attempt>, Vec<ProcessRoot>) = wanted
            .iter()
            .filter_map(|attempt| match self.jobs.get(attempt) {
                Some(Job::Processes { root }) => Some((*attempt, *root)),
                _ => None,
            })
            .unzip();
        let readings = self.trees.read(&roots);
        let at = (self.clock)();
        let sample = |(attempt, reading): (Attempt, Result<_, Missing>)| {
            let reading = reading.map_or_else(Reading::Missing, Reading::Seen);
            JobSample {
                attempt,
                at,
                cpu_ns: reading.clone().map(|tree: super::process_tree::TreeReading| tree.cpu_ns),
                memory_bytes: reading.clone().map(|tree| tree.memory_bytes),
                populated: reading.clone().map(|tree| tree.populated),
                frozen: reading.map(|tree| tree.frozen),
                tail: None,
                memory_anon_bytes: None,
                detail: None,
            }
        };
        attempts.into_iter().zip(readings).map(sample).collect()
    }
}

/// Has a directory of that hierarchy a counter of CPU time?
fn counts_cpu(hierarchy: Hierarchy) -> bool {
    hierarchy == Hierarchy::V2 || hierarchy.has(Controller::Cpuacct)
}

fn parent_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("/", |(parent, _)| if parent.is_empty() { "/" } else { parent })
}

/// Are all leaves that hold tasks frozen? The job's own `frozen` never says so: its slurmstepd runs on.
fn slurm_frozen(job: &OpenDir) -> Reading<Frozen> {
    let leaves = match slurm::freeze_leaves(job) {
        Ok(leaves) => leaves,
        Err(errno) => return Reading::Missing(cgroup_dir::missing_for(errno)),
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

/// A sum over a job's directories.
#[derive(Default)]
struct Sum {
    total: u64,
    live: usize,
    vanished: Option<Missing>,
    failed: Option<Missing>,
}

impl Sum {
    /// A directory that has gone adds what it had when it was last read, so that a counter does not fall when one of several goes.
    fn add(&mut self, reading: Reading<u64>, last: Option<u64>) {
        match reading {
            Reading::Seen(value) => {
                self.live += 1;
                self.total = self.total.saturating_add(value);
            }
            Reading::Missing(why @ (Missing::Vanished | Missing::Replaced)) => {
                self.total = self.total.saturating_add(last.unwrap_or(0));
                self.vanished.get_or_insert(why);
            }
            Reading::Missing(why) => {
                self.failed.get_or_insert(why);
            }
        }
    }

    fn whole(self, if_none: &Missing) -> Reading<u64> {
        match (self.failed, self.live, self.vanished) {
            (Some(why), ..) | (None, 0, Some(why)) => Reading::Missing(why),
            (None, 0, None) => Reading::Missing(if_none.clone()),
            (None, ..) => Reading::Seen(self.total),
        }
    }
}

/// What several directories say together: `strong` if any of them says so. Those that have gone do not vote while another one is there.
fn join<T: Copy + PartialEq>(readings: &[Reading<T>], strong: T, if_none: &Missing) -> Reading<T> {
    let is_gone = |reading: &&Reading<T>| matches!(reading, Reading::Missing(Missing::Vanished | Missing::Replaced));
    let failed = readings.iter().find(|reading| matches!(reading, Reading::Missing(_)) && !is_gone(reading));
    let seen: Vec<T> = readings.iter().filter_map(|reading| reading.seen().copied()).collect();
    match (seen.iter().find(|value| **value == strong).or(seen.first()), failed) {
        (Some(value), _) if *value == strong => Reading::Seen(*value),
        (_, Some(Reading::Missing(why))) => Reading::Missing(why.clone()),
        (Some(value), _) => Reading::Seen(*value),
        (None, _) => Reading::Missing(match readings.iter().find(is_gone) {
            Some(Reading::Missing(why)) => why.clone(),
            _ => if_none.clone(),
        }),
    }
}

#[cfg(test)]
mod tests;
