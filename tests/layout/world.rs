//! A part of the real kernel's cgroup trees that is the whole world to the code under test, with programs to run in it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use meterd::domain::act::{Act, Acted, CgroupDir, Order, Target};
use meterd::domain::id::Attempt;
use meterd::domain::meter::JobSample;
use meterd::node::cgroup::{Sampler, Which};
use meterd::node::hands::Hands;
use meterd::node::layout::{Controller, Layout};
use meterd::node::process_tree::ProcessTrees;
use meterd::node::{clock, own_cgroup};

use crate::support;

pub(crate) const JOB: Attempt = Attempt(1);
pub(crate) const OTHER: Attempt = Attempt(2);

/// How long a test waits for what must come; not a latency that is asserted.
pub(crate) const LONG: Duration = Duration::from_mins(1);

pub(crate) const BUSY: &str = "while :; do :; done";
pub(crate) const FORKS: &str = "while :; do sleep 1000 & (:) & sleep 0.001; done";

/// One directory of this test's own in each mount that the world is to have. All is removed at the end, also on panic.
pub(crate) struct World {
    pub(crate) layout: Arc<Layout>,
    roots: Vec<PathBuf>,
}

impl World {
    /// A world with these v1 controllers, and with cgroup2 but for the files named, or without it.
    pub(crate) fn make(v1: &[Controller], v2_without: Option<&[&'static str]>) -> Option<World> {
        // A machine with the unified layout alone has a kernel, and no v1 controllers.
        support::need(if v1.is_empty() { "kernel" } else { "v1" }, World::try_make(v1, v2_without))
    }

    fn try_make(v1: &[Controller], v2_without: Option<&[&'static str]>) -> Result<World, String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let machine = Layout::detect().map_err(|error| error.to_string())?;
        let name = format!("meterd-layout-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut world = World { layout: Arc::default(), roots: Vec::new() };
        let mut make_in = |mount: Option<&Path>, what: &str| {
            let path = mount.ok_or(format!("{what} is not mounted"))?.join(&name);
            if !world.roots.contains(&path) {
                fs::create_dir(&path).map_err(|error| format!("mkdir {}: {error}", path.display()))?;
                world.roots.push(path.clone());
            }
            Ok::<_, String>(Some(path))
        };
        let mut layout = Layout::default();
        for controller in v1 {
            let made = make_in(machine.v1(*controller), controller.name())?;
            match controller {
                Controller::Memory => layout.v1_memory = made,
                Controller::Cpuacct => layout.v1_cpuacct = made,
                Controller::Freezer => layout.v1_freezer = made,
                Controller::Pids => layout.v1_pids = made,
                Controller::Blkio => layout.v1_blkio = made,
            }
        }
        if let Some(hidden) = v2_without {
            layout.v2 = make_in(machine.v2.as_deref(), "cgroup2")?;
            layout.hidden_files = hidden.iter().copied().collect::<BTreeSet<_>>();
        }
        world.layout = Arc::new(layout);
        Ok(world)
    }

    /// Directories for a job in every mount of this world that is of use, made as the agent makes its own.
    pub(crate) fn own(&self, name: &str) -> Vec<CgroupDir> {
        own_cgroup::make(&self.layout, Path::new("jobs"), name).unwrap()
    }

    /// The directory of that name in one mount.
    pub(crate) fn path(mount: Option<&Path>, relative: &str) -> PathBuf {
        let path = mount.unwrap().join(relative);
        fs::create_dir_all(&path).unwrap();
        path
    }

    pub(crate) fn sampler(&self) -> Sampler {
        Sampler::new(Some(Arc::clone(&self.layout)), ProcessTrees::default(), clock::mono)
    }

    pub(crate) fn hands(&self) -> Orders {
        Orders::to(Some(Arc::clone(&self.layout)), ProcessTrees::default())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let end = Instant::now() + Duration::from_secs(10);
        while self.roots.iter().any(|root| root.exists()) && Instant::now() < end {
            for root in &self.roots {
                end_tree(root);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Kills what is in a directory and below it, frozen or not, and removes it if that went well.
fn end_tree(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        end_tree(&entry.path());
    }
    for pid in procs(dir) {
        let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).stderr(Stdio::null()).status();
    }
    for (file, text) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
        if dir.join(file).exists() {
            let _ = fs::write(dir.join(file), text);
        }
    }
    let _ = fs::remove_dir(dir);
}

pub(crate) fn procs(dir: &Path) -> Vec<u32> {
    fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines().filter_map(|line| line.parse().ok()).collect()
}

/// A child that is killed and waited for at the end.
pub(crate) struct Task(Child, Vec<PathBuf>);

impl Task {
    /// Runs a shell script in these cgroups from its first instruction on.
    pub(crate) fn run_in<P: AsRef<Path>>(dirs: &[P], script: &str) -> Task {
        let mut child = Command::new("sh").args(["-c", &format!("read go; {script}")]).stdin(Stdio::piped()).spawn().unwrap();
        for dir in dirs {
            fs::write(dir.as_ref().join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        Task(child, dirs.iter().map(|dir| dir.as_ref().to_owned()).collect())
    }

    pub(crate) fn in_job(dirs: &[CgroupDir], script: &str) -> Task {
        Task::run_in(&dirs.iter().map(|dir| dir.path.as_str()).collect::<Vec<_>>(), script)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let _ = self.0.kill();
        // In a v1 freezer the signal waits for the thaw, and this would wait for the signal.
        for dir in self.1.iter().filter(|dir| dir.join("freezer.state").exists()) {
            let _ = fs::write(dir.join("freezer.state"), "THAWED");
        }
        let _ = self.0.wait();
    }
}

/// The hands, and what they report.
pub(crate) struct Orders {
    hands: Hands,
    reports: Receiver<Acted>,
}

impl Orders {
    pub(crate) fn to(layout: Option<Arc<Layout>>, trees: ProcessTrees) -> Orders {
        let (sender, reports) = channel();
        let hands = Hands::start(layout, trees, move |acted| sender.send(acted).unwrap()).unwrap();
        Orders { hands, reports }
    }

    pub(crate) fn act(&self, target: &Target, act: Act) -> Acted {
        self.hands.submit(Order { attempt: JOB, target: target.clone(), act, signal: None }).unwrap();
        let acted = self.reports.recv_timeout(LONG).unwrap();
        println!("{act}: {:?} in {} ns: {}", acted.outcome, acted.done_at.since(acted.asked_at).0, acted.syscall);
        acted
    }
}

pub(crate) fn one(sampler: &mut Sampler, attempt: Attempt) -> JobSample {
    let mut seen = sampler.sample(Which::Only(&[attempt]));
    assert_eq!(seen.len(), 1);
    seen.remove(0)
}

pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn cpu_ns(sampler: &mut Sampler, attempt: Attempt) -> u64 {
    *one(sampler, attempt).cpu_ns.seen().unwrap()
}

/// The path of the job's directory in that mount.
pub(crate) fn in_mount<'d>(dirs: &'d [CgroupDir], mount: Option<&Path>) -> &'d Path {
    let mount = mount.unwrap();
    dirs.iter().map(|dir| Path::new(&dir.path)).find(|path| path.starts_with(mount)).unwrap()
}

pub(crate) fn state(freezer_dir: &Path) -> String {
    fs::read_to_string(freezer_dir.join("freezer.state")).unwrap().trim().to_owned()
}
