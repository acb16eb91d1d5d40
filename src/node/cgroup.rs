//! Reads what jobs used: CPU time, memory, populated, frozen; from cgroups with kept descriptors and `pread`, from process trees through
//! procfs. A cgroup that was there and is gone is [`Missing::Vanished`], its last CPU time is told by its parent ([`JobSample::tail`]).

mod detail;
mod dirs;
mod due;
mod family;
mod files;
mod nest;
mod reading;
mod walk;
mod walks;
mod watched;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::dirs::{Dirs, Key};
use self::due::Due;
use self::family::Family;
use self::files::{Files, Opened};
use self::reading::{Look, Origin, Sources};
use self::walks::Walks;
use self::watched::{TailOpen, Watched};
use super::cgroup_dir::{self, OpenDir};
use super::defence::{Defence, stands};
use super::descriptors::Room;
use super::layout::{Controller, Hierarchy, Layout, PlaceError};
use super::process_tree::ProcessTrees;
use super::{sibling, slurm};
use crate::domain::act::{CgroupDir, ProcessRoot, SlurmJob, Target};
use crate::domain::detail::Detail;
use crate::domain::id::Attempt;
use crate::domain::meter::{JobSample, Missing, Reading, Tail, TailShare};
use crate::domain::time::Mono;

pub use self::walk::{WalkError, Walker};
pub use super::cgroup_dir::{IdentifyError, identify};

/// Descriptors of files that are kept open at most, unless told otherwise: each pins 4 KiB of kernel memory, and saves two thirds of a
/// reading. Directories' descriptors, which pin nothing, come on top: one a directory, as long as there is room ([`Room`]).
pub const KEPT_FILES_MAX: usize = 16_384;

/// Where changes of `cgroup.events` are told, it is still read at every so many-th look at all jobs: nothing told is lost for long.
const EVENTS_EVERY: usize = 128;

/// Places that a new job finds free, if something that is worth less can be closed: for its counters and for whoever watches its end.
const PLACES_OF_A_JOB: usize = 8;

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
    Cgroups { sources: Sources },
    Slurm { job: SlurmJob, sources: Sources },
    Processes { root: ProcessRoot },
}

impl Job {
    fn sources(&self) -> Option<&Sources> {
        match self {
            Job::Cgroups { sources } | Job::Slurm { sources, .. } => Some(sources),
            Job::Processes { .. } => None,
        }
    }

    fn set_sources(&mut self, now: Sources) {
        if let Job::Cgroups { sources } | Job::Slurm { sources, .. } = self {
            *sources = now;
        }
    }

    fn keys(&self) -> &[Key] {
        self.sources().map_or(&[], Sources::keys)
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
    dirs: Dirs,
    /// Directories that were kept open, those that are worth least first.
    kept_dirs: [VecDeque<Key>; 2],
    /// By the parent's path.
    families: BTreeMap<String, Family>,
    /// Looks at all jobs.
    looks: usize,
    /// Jobs whose directories Slurm makes.
    slurm_jobs: BTreeSet<Attempt>,
    /// The jobs directly inside each.
    nests: BTreeMap<Attempt, BTreeSet<Attempt>>,
    /// Every named directory, by its path.
    paths: BTreeMap<String, Attempt>,
    anon: AnonRead,
    due: Due,
    walks: Walks,
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
        Sampler {
            layout,
            trees,
            clock,
            files: Files::keeping_at_most(KEPT_FILES_MAX, Room::within_limit()),
            jobs: BTreeMap::new(),
            dirs: Dirs::default(),
            kept_dirs: Default::default(),
            families: BTreeMap::new(),
            looks: 0,
            slurm_jobs: BTreeSet::new(),
            anon: AnonRead::WithDetails,
            due: Due::default(),
            walks: Walks::default(),
            nests: BTreeMap::new(),
            paths: BTreeMap::new(),
        }
    }

    /// The same reader, keeping at most that many files open. Call it before the first job is attached.
    #[must_use]
    pub fn keeping_at_most(mut self, files: usize) -> Sampler {
        self.files = Files::keeping_at_most(files, Arc::clone(&self.files.room));
        self
    }

    /// The same reader, keeping only descriptors for which there is room. Call it before the first job is attached.
    #[must_use]
    pub fn within(mut self, room: Arc<Room>) -> Sampler {
        self.files.room = room;
        self
    }

    /// The same reader, which walks where many jobs stand side by side. Call it before the first job is attached.
    #[must_use]
    pub fn walking(mut self, walker: Walker) -> Sampler {
        self.walks.by(walker);
        self
    }

    /// Corrects how it is said to read, should a walk have failed.
    pub fn tell_reads(&self, reads: &mut String) {
        if let Some(now) = self.walks.reads() {
            *reads = now;
        }
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
            Target::Cgroups(dirs) | Target::OwnCgroups(dirs) => Job::Cgroups { sources: self.attach_dirs(attempt, dirs)? },
            Target::SlurmJob(job) => {
                let layout = self.layout.as_ref().filter(|layout| layout.v2.is_some()).ok_or(AttachError::NoCgroups)?;
                let sources = Sources::of(Origin::Slurm, Vec::new(), &self.dirs, layout);
                self.slurm_jobs.insert(attempt);
                Job::Slurm { job: job.clone(), sources }
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
        self.due.begin(attempt, (self.clock)());
        self.enter_paths(attempt);
        Ok(())
    }

    fn attach_dirs(&mut self, attempt: Attempt, dirs: &[CgroupDir]) -> Result<Sources, AttachError> {
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
            let is_taken =
                |other: &&Watched| other.is_live() && (other.dir == *dir || (other.hierarchy != place.hierarchy && other.name == name));
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
        let mut keys = Vec::new();
        for (dir, (hierarchy, name)) in named {
            let opened = cgroup_dir::open(&layout, &dir).map_err(Missing::from);
            keys.push(self.watch(attempt, dir, name, hierarchy, opened));
        }
        Ok(Sources::of(Origin::Named, keys, &self.dirs, &layout))
    }

    fn watch(&mut self, attempt: Attempt, dir: CgroupDir, name: PathBuf, hierarchy: Hierarchy, opened: Result<OpenDir, Missing>) -> Key {
        self.make_room();
        let (path, inode) = (dir.path.clone(), dir.inode);
        let dir = Watched::new(attempt, dir, name, hierarchy, opened, &self.files);
        let is_live = dir.is_live();
        let key = self.dirs.insert(dir);
        // Those that tell nothing but details are worth least.
        let worth = usize::from(counts_cpu(hierarchy) || hierarchy.has(Controller::Memory));
        self.kept_dirs[worth].push_back(key);
        if counts_cpu(hierarchy) && is_live {
            let parent = parent_of(&path);
            let begin = || Family::new(parent, hierarchy, &self.files);
            self.families.entry(parent.to_owned()).or_insert_with(begin).keys.insert(key);
        }
        if is_live {
            let parent = parent_of(&path);
            let open = || Some((family::open(parent, hierarchy)?, walks::places(&self.files)?));
            self.walks.enter(parent, hierarchy, inode, key, open);
        }
        key
    }

    /// Closes directories until a job finds places for its counters.
    fn make_room(&mut self) {
        while self.files.room.free() < PLACES_OF_A_JOB && self.close_a_directory() {}
    }

    /// A counter is read at each look, and its directory only where the counter is not kept: as many directories make room as there were
    /// counters without a place.
    fn make_room_for_counters(&mut self) {
        for _ in 0..self.files.take_turned_away() {
            if !self.close_a_directory() {
                return;
            }
        }
    }

    /// Closes the one that is worth least; false if none is open.
    fn close_a_directory(&mut self) -> bool {
        let [details, counters] = &mut self.kept_dirs;
        while let Some(key) = details.pop_front().or_else(|| counters.pop_front()) {
            if self.dirs.get_mut(key).is_some_and(Watched::close_directory) {
                return true;
            }
        }
        false
    }

    /// Looks after a job no more. Its tail goes unnoticed from then on.
    pub fn detach(&mut self, attempt: Attempt) {
        let Some(job) = self.jobs.remove(&attempt) else { return };
        self.due.forget(attempt);
        self.slurm_jobs.remove(&attempt);
        if let Job::Processes { root } = job {
            self.trees.forget(root);
        }
        for key in job.keys() {
            let Some(mut dir) = self.dirs.remove(*key) else { continue };
            dir.release(&mut self.files);
            self.kept_dirs.iter_mut().for_each(|kept| kept.retain(|kept| kept != key));
            let parent = parent_of(&dir.dir.path);
            self.walks.leave(parent, dir.dir.inode);
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
        if let Some(Job::Cgroups { sources }) = self.jobs.get(&attempt) {
            for key in sources.keys() {
                if let Some(dir) = self.dirs.get_mut(*key) {
                    dir.events_are_told();
                }
            }
        }
    }

    /// The `cgroup.events` of these jobs have changed since they were last read.
    pub fn changed(&mut self, attempts: &[Attempt]) {
        for attempt in attempts {
            for key in self.jobs.get(attempt).map_or(&[][..], Job::keys) {
                if let Some(dir) = self.dirs.get_mut(*key) {
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
                self.dirs.part_mut(self.looks, EVENTS_EVERY).for_each(Watched::forget_events);
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
        if matches!(which, Which::All) {
            self.dirs.fetch();
        }
        let begun = match which {
            Which::All => self.families.iter_mut().map(|(path, family)| (path.clone(), family.read(&mut self.files))).collect(),
            // Few jobs: their own readings cost less than to add up the whole subtree.
            Which::Only(_) => BTreeMap::new(),
        };
        match (which, &self.layout) {
            (Which::All, Some(layout)) => self.walks.walk(layout, &begun, self.clock),
            _ => self.walks.forget(),
        }
        self.check_walks();
        let mut samples = self.sample_cgroups(which, &wanted);
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
        self.add_details(&mut samples, which, closeness);
        self.take_off_inner_memory(&mut samples);
        self.make_room_for_counters();
        samples
    }

    /// Holds what walks told of one cgroup against its files, now and then.
    fn check_walks(&mut self) {
        let Sampler { layout: Some(layout), dirs, files, walks, .. } = self else { return };
        for (path, key) in walks.take_to_check() {
            let Some(dir) = dirs.get_mut(key).filter(|dir| dir.is_live()) else { continue };
            let cpu_ns = walks.cpu_ns(key).and_then(|_| dir.read_cpu(layout, files).seen().copied());
            let memory_bytes = walks.memory_bytes(key).and_then(|_| dir.read_memory(layout, files).seen().copied());
            walks.check(&path, key, cpu_ns, memory_bytes);
        }
    }

    fn sample_cgroups(&mut self, which: Which<'_>, wanted: &[Attempt]) -> Vec<JobSample> {
        let Sampler { layout: Some(layout), dirs, files, jobs, clock, walks, .. } = self else { return Vec::new() };
        let mut look = Look { dirs, files, layout, walks };
        let wanted: Vec<(Attempt, &Sources)> = match which {
            Which::All => jobs.iter().filter_map(|(attempt, job)| Some((*attempt, job.sources()?))).collect(),
            Which::Only(_) => wanted.iter().filter_map(|attempt| Some((*attempt, jobs.get(attempt)?.sources()?))).collect(),
        };
        let mut samples: Vec<JobSample> = wanted.iter().map(|(attempt, sources)| look.begin(*attempt, sources, *clock)).collect();
        for (sample, (_, sources)) in samples.iter_mut().zip(&wanted) {
            look.add_memory(sample, sources);
        }
        samples
    }

    /// What is not read at each look, of those whose turn it is.
    fn add_details(&mut self, samples: &mut [JobSample], which: Which<'_>, closeness: Closeness) {
        if closeness == Closeness::Now {
            for sample in samples {
                self.add_detail(sample);
            }
            return;
        }
        let due = if matches!(which, Which::All) { self.due.now((self.clock)()) } else { Vec::new() };
        for attempt in due {
            if let Ok(at) = samples.binary_search_by_key(&attempt, |sample| sample.attempt) {
                self.add_detail(&mut samples[at]);
            }
        }
        if self.anon == AnonRead::EachLook {
            for sample in samples.iter_mut().filter(|sample| sample.memory_anon_bytes.is_none()) {
                self.add_anon(sample);
            }
        }
    }

    fn add_anon(&mut self, sample: &mut JobSample) {
        let Sampler { layout, dirs, files, jobs, trees, walks, .. } = self;
        sample.memory_anon_bytes = match (jobs.get(&sample.attempt), layout) {
            (Some(Job::Processes { root }), _) => Some(trees.detail(*root).1),
            (Some(Job::Cgroups { sources } | Job::Slurm { sources, .. }), Some(layout)) => {
                Some(Look { dirs, files, layout, walks }.anon(sources))
            }
            _ => None,
        };
    }

    fn add_detail(&mut self, sample: &mut JobSample) {
        self.due.done(sample.attempt, sample.at);
        match self.jobs.get(&sample.attempt) {
            Some(Job::Processes { root }) => {
                let (pids, anon) = self.trees.detail(*root);
                sample.memory_anon_bytes = Some(anon.clone());
                let none = Detail::missing(&Missing::NotSupported);
                sample.detail = Some(Box::new(Detail { pids, memory_anon_bytes: anon, ..none }));
            }
            Some(job) => {
                let Some(layout) = &self.layout else { return };
                let dirs = job.keys().iter().filter_map(|key| self.dirs.get(*key));
                let opened: Vec<Opened<'_>> = dirs.filter_map(|dir| dir.open_below(self.walks.above(&dir.dir.path), layout).ok()).collect();
                let open: Vec<&OpenDir> = opened.iter().map(|opened| &**opened).collect();
                if open.is_empty() {
                    sample.memory_anon_bytes = Some(Reading::Missing(Missing::Vanished)); // the last level holds to the end
                } else {
                    let detail = detail::read(&open);
                    sample.memory_anon_bytes = Some(detail.memory_anon_bytes.clone());
                    sample.detail = Some(Box::new(detail));
                }
            }
            None => {}
        }
    }

    /// Slurm's directories come late and can come anew: they are looked for at each look.
    fn find_slurm_dirs(&mut self, wanted: &[Attempt]) {
        if self.slurm_jobs.is_empty() {
            return;
        }
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
                let keys = self.jobs.get(&attempt).map_or(&[][..], Job::keys);
                if keys.iter().filter_map(|key| self.dirs.get(*key)).any(|dir| dir.dir.inode == open.dir.inode) {
                    continue;
                }
                let mut keys = keys.to_vec();
                let dir = open.dir.clone();
                keys.push(self.watch(attempt, dir.clone(), PathBuf::from(dir.path), Hierarchy::V2, Ok(open)));
                let sources = Sources::of(Origin::Slurm, keys, &self.dirs, &layout);
                if let Some(job) = self.jobs.get_mut(&attempt) {
                    job.set_sources(sources);
                }
            }
        }
    }

    /// Tells tails and takes new baselines: of the families that were begun with, and of those in which a directory was found gone.
    fn settle(&mut self, mut begun: BTreeMap<String, Option<u64>>, gone: &[Attempt]) {
        let gone: BTreeSet<String> = gone
            .iter()
            .flat_map(|attempt| self.jobs.get(attempt).map_or(&[][..], Job::keys))
            .filter_map(|key| self.dirs.get(*key))
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
                if let (Some(dir), Some(layout)) = (self.dirs.get_mut(*key), &self.layout) {
                    dir.read_cpu(layout, &mut self.files);
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
            keys.iter().filter_map(|key| self.dirs.get(*key)).any(|dir| dir.tail_open == TailOpen::Yes)
        };
        samples.iter().map(|sample| sample.attempt).filter(is_open).collect()
    }

    fn take_tail(&mut self, attempt: Attempt) -> Option<Tail> {
        let mut whole: Option<Tail> = None;
        for key in self.jobs.get(&attempt)?.keys() {
            let Some(tail) = self.dirs.get_mut(*key).and_then(|dir| dir.tail.take()) else { continue };
            let before = whole.unwrap_or(Tail { cpu_ns: 0, share: TailShare::Exact });
            let share = if before.share == TailShare::Exact { tail.share } else { before.share };
            whole = Some(Tail { cpu_ns: before.cpu_ns.saturating_add(tail.cpu_ns), share });
        }
        whole
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
                gpus: None,
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

    fn whole(self, if_none: impl FnOnce() -> Missing) -> Reading<u64> {
        match (self.failed, self.live, self.vanished) {
            (Some(why), ..) | (None, 0, Some(why)) => Reading::Missing(why),
            (None, 0, None) => Reading::Missing(if_none()),
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
