//! The cgroup and process edges against the real kernel. Each test makes cgroups under one uniquely named directory and removes them, even on panic.

#![expect(clippy::unwrap_used, clippy::similar_names, reason = "a test ends at the first surprise, and reads sample beside samples")]

mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use meterd::domain::act::{Act, ActOutcome, Acted, CgroupDir, Order, ProcessRoot, SlurmJob, Target};
use meterd::domain::id::Attempt;
use meterd::domain::meter::{Frozen, JobSample, Missing, Populated, Reading, TailShare};
use meterd::node::cgroup::{AttachError, Sampler, Which, identify};
use meterd::node::cgroup_dir::IdentifyError;
use meterd::node::hands::Hands;
use meterd::node::layout::Layout;
use meterd::node::process_tree::ProcessTrees;
use meterd::node::watch::Watch;
use meterd::node::{clock, own_cgroup};

const JOB: Attempt = Attempt(1);
const OTHER: Attempt = Attempt(2);

/// How long a test waits for what must come; not a latency that is asserted.
const LONG: Duration = Duration::from_mins(1);

/// A cgroup directory of this test's own, which is the whole world to the code under test.
struct World {
    layout: Arc<Layout>,
    roots: Vec<PathBuf>,
}

impl World {
    fn make() -> Option<World> {
        support::need("kernel", World::try_make())
    }

    fn try_make() -> Result<World, String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let machine = Layout::detect().map_err(|error| error.to_string())?;
        let name = format!("meterd-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let v2 = machine.v2.clone().ok_or("no cgroup2 file system is mounted")?.join(&name);
        let mut world = World { layout: Arc::default(), roots: Vec::new() };
        let mut make = |path: PathBuf| {
            fs::create_dir(&path).map_err(|error| format!("mkdir {}: {error}", path.display()))?;
            world.roots.push(path.clone());
            Ok::<PathBuf, String>(path)
        };
        let mut layout = Layout { v2: Some(make(v2)?), ..Layout::default() };
        if let Some(memory) = &machine.v1_memory {
            layout.v1_memory = Some(make(memory.join(&name))?);
        } else if let Some(v2) = &layout.v2 {
            for controller in ["+cpu", "+memory", "+pids"] {
                let _ = fs::write(machine.v2.as_ref().unwrap().join("cgroup.subtree_control"), controller);
                let _ = fs::write(v2.join("cgroup.subtree_control"), controller);
            }
        }
        world.layout = Arc::new(layout);
        Ok(world)
    }

    fn v2(&self) -> &Path {
        self.layout.v2.as_deref().unwrap()
    }

    fn dir(&self, relative: &str) -> CgroupDir {
        let path = self.v2().join(relative);
        fs::create_dir_all(&path).unwrap();
        identify(&self.layout, &path).unwrap()
    }

    fn sampler(&self) -> Sampler {
        Sampler::new(Some(Arc::clone(&self.layout)), ProcessTrees::default(), clock::mono)
    }

    fn hands(&self) -> (Hands, Receiver<Acted>) {
        hands(Some(Arc::clone(&self.layout)), ProcessTrees::default())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for root in &self.roots {
            let _ = fs::write(root.join("cgroup.kill"), "1");
        }
        for root in &self.roots {
            let end = Instant::now() + Duration::from_secs(10);
            while !remove_tree(root) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn remove_tree(dir: &Path) -> bool {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    fs::remove_dir(dir).is_ok() || !dir.exists()
}

/// A child that is killed and waited for at the end.
struct Task(Child);

impl Task {
    /// Runs a shell script in these cgroups from its first instruction on.
    fn run_in(dirs: &[&str], script: &str) -> Task {
        let mut child = Command::new("sh").args(["-c", &format!("read go; {script}")]).stdin(Stdio::piped()).spawn().unwrap();
        for dir in dirs {
            fs::write(format!("{dir}/cgroup.procs"), child.id().to_string()).unwrap();
        }
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        Task(child)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn hands(layout: Option<Arc<Layout>>, trees: ProcessTrees) -> (Hands, Receiver<Acted>) {
    let (sender, receiver) = channel();
    let hands = Hands::start(layout, trees, move |acted| sender.send(acted).unwrap()).unwrap();
    (hands, receiver)
}

fn act(hands: &(Hands, Receiver<Acted>), target: &Target, act: Act) -> Acted {
    hands.0.submit(Order { attempt: JOB, target: target.clone(), act, signal: None }).unwrap();
    let acted = hands.1.recv_timeout(LONG).unwrap();
    println!("{act}: {:?} in {} ns: {}", acted.outcome, acted.done_at.since(acted.asked_at).0, acted.syscall);
    acted
}

fn one(sampler: &mut Sampler, attempt: Attempt) -> JobSample {
    let mut samples = sampler.sample(Which::Only(&[attempt]));
    assert_eq!(samples.len(), 1);
    samples.remove(0)
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn usage_usec(dir: &str) -> u64 {
    let text = fs::read_to_string(format!("{dir}/cpu.stat")).unwrap();
    text.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap().parse().unwrap()
}

fn procs_below(dir: &Path) -> usize {
    fs::read_to_string(dir.join("cgroup.procs")).unwrap().lines().count()
}

const BUSY: &str = "while :; do :; done";

#[test]
fn the_counters_of_a_busy_job_grow_and_an_idle_ones_stay() {
    let Some(world) = World::make() else { return };
    let (busy, idle) = (world.dir("busy"), world.dir("idle"));
    let mut sampler = world.sampler();
    sampler.attach(JOB, &Target::Cgroups(vec![busy.clone()])).unwrap();
    sampler.attach(OTHER, &Target::Cgroups(vec![idle])).unwrap();
    let _task = Task::run_in(&[&busy.path], BUSY);
    wait_until("50 ms of CPU time", || *one(&mut sampler, JOB).cpu_ns.seen().unwrap() > 50_000_000);
    let samples = sampler.sample(Which::All);
    assert_eq!(samples.iter().map(|sample| sample.attempt).collect::<Vec<_>>(), [JOB, OTHER]);
    assert_eq!(samples[0].populated, Reading::Seen(Populated::Yes));
    assert_eq!(samples[0].frozen, Reading::Seen(Frozen::No));
    assert_eq!(samples[1].cpu_ns, Reading::Seen(0));
    assert_eq!(samples[1].populated, Reading::Seen(Populated::No));
    assert!(*samples[0].cpu_ns.seen().unwrap() <= usage_usec(&busy.path) * 1_000);
}

#[test]
fn memory_is_seen_through_the_v1_twin_of_the_directory_that_was_named() {
    let Some(world) = World::make() else { return };
    let dirs = own_cgroup::make(&world.layout, Path::new("jobs"), "m").unwrap();
    let paths: Vec<&str> = dirs.iter().map(|dir| dir.path.as_str()).collect();
    // 64 MiB of tmpfs-free memory, held by the shell's variable.
    let _task = Task::run_in(&paths, "x=$(head -c 33554432 /dev/zero | tr '\\0' x); echo ready > /dev/null; sleep 1000");
    let (mut sampler, mut named_v1) = (world.sampler(), world.sampler());
    sampler.attach(JOB, &Target::Cgroups(vec![dirs[0].clone()])).unwrap();
    named_v1
        .attach(OTHER, &Target::OwnCgroups(dirs[1..].to_vec()))
        .map_or_else(|error| assert!(matches!(error, AttachError::Empty) && dirs.len() == 1, "{error}"), |()| assert_eq!(dirs.len(), 2));
    wait_until("32 MiB of memory", || one(&mut sampler, JOB).memory_bytes.seen().is_some_and(|bytes| *bytes > 32 << 20));
    if dirs.len() == 2 {
        wait_until("the named v1 directory", || {
            let (twin, named) = (one(&mut sampler, JOB).memory_bytes, one(&mut named_v1, OTHER).memory_bytes);
            twin.seen().unwrap().abs_diff(*named.seen().unwrap()) < 1 << 20
        });
        assert_eq!(one(&mut named_v1, OTHER).cpu_ns, Reading::Missing(Missing::NotSupported), "v1 memory tells no CPU time");
    }
}

#[test]
fn a_cgroup_without_a_memory_controller_has_no_memory_reading_rather_than_zero() {
    let Some(world) = World::make() else { return };
    let mut sampler = world.sampler();
    let only_v2 = world.layout.v1_memory.is_some().then(|| world.dir("x"));
    let Some(dir) = only_v2 else { return println!("here memory is in cgroup2: nothing to see") };
    sampler.attach(JOB, &Target::Cgroups(vec![dir])).unwrap();
    assert_eq!(one(&mut sampler, JOB).memory_bytes, Reading::Missing(Missing::NotSupported));
}

#[test]
fn a_frozen_job_uses_no_cpu_even_while_it_forks_and_goes_on_when_thawed() {
    let Some(world) = World::make() else { return };
    let dir = world.dir("forks");
    let target = Target::Cgroups(vec![dir.clone()]);
    let _task = Task::run_in(&[&dir.path], "while :; do (:) & (:) & wait; done");
    let hands = world.hands();
    let mut sampler = world.sampler();
    sampler.attach(JOB, &target).unwrap();
    for _ in 0..5 {
        wait_until("forks", || usage_usec(&dir.path) > 5_000);
        let frozen = act(&hands, &target, Act::Freeze);
        assert_eq!(frozen.outcome, ActOutcome::Confirmed);
        assert_eq!(frozen.syscall, format!("write 1 to {}/cgroup.freeze", dir.path));
        assert_eq!(one(&mut sampler, JOB).frozen, Reading::Seen(Frozen::Yes));
        // The kernel adds a task's last slice once the task has left its CPU, a moment after it counts as frozen.
        std::thread::sleep(Duration::from_millis(200));
        let before = usage_usec(&dir.path);
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(usage_usec(&dir.path), before, "no task runs on");
        assert_eq!(act(&hands, &target, Act::Freeze).outcome, ActOutcome::Confirmed, "twice does no harm");
        assert_eq!(act(&hands, &target, Act::Thaw).outcome, ActOutcome::Confirmed);
        wait_until("it goes on", || usage_usec(&dir.path) > before);
    }
}

#[test]
fn all_directories_of_a_job_are_frozen_and_one_that_is_gone_holds_nobody_up() {
    let Some(world) = World::make() else { return };
    let (a, b, gone) = (world.dir("a"), world.dir("b"), world.dir("gone"));
    fs::remove_dir(&gone.path).unwrap();
    let target = Target::Cgroups(vec![gone.clone(), a.clone(), b.clone()]);
    let _tasks = [Task::run_in(&[&a.path], BUSY), Task::run_in(&[&b.path], BUSY)];
    let hands = world.hands();
    assert_eq!(act(&hands, &target, Act::Freeze).outcome, ActOutcome::Confirmed);
    for dir in [&a, &b] {
        assert!(fs::read_to_string(format!("{}/cgroup.events", dir.path)).unwrap().contains("frozen 1"));
    }
    let mut sampler = world.sampler();
    sampler.attach(JOB, &target).unwrap();
    let sample = one(&mut sampler, JOB);
    assert_eq!((sample.frozen, sample.populated), (Reading::Seen(Frozen::Yes), Reading::Seen(Populated::Yes)));
    assert_eq!(act(&hands, &Target::Cgroups(vec![gone]), Act::Freeze).outcome, ActOutcome::Gone);
}

#[test]
fn a_killed_job_is_empty_frozen_or_not() {
    let Some(world) = World::make() else { return };
    let hands = world.hands();
    for before in [None, Some(Act::Freeze)] {
        let dir = world.dir("victim");
        let target = Target::Cgroups(vec![dir.clone()]);
        let _task = Task::run_in(&[&dir.path], "while :; do sleep 1000 & (:) & sleep 0.001; done");
        wait_until("some processes", || procs_below(Path::new(&dir.path)) > 5);
        if let Some(before) = before {
            assert_eq!(act(&hands, &target, before).outcome, ActOutcome::Confirmed);
        }
        let killed = act(&hands, &target, Act::Kill);
        assert_eq!(killed.outcome, ActOutcome::Confirmed);
        assert!(killed.syscall.ends_with("/cgroup.kill"));
        assert_eq!(procs_below(Path::new(&dir.path)), 0);
        fs::write(format!("{}/cgroup.freeze", dir.path), "0").unwrap();
    }
}

#[test]
fn a_frozen_job_that_is_asked_to_end_can_do_so() {
    let Some(world) = World::make() else { return };
    let dir = world.dir("polite");
    let below = world.dir("polite/below");
    let target = Target::Cgroups(vec![dir.clone()]);
    let told = std::env::temp_dir().join(format!("meterd-test-told-{}", std::process::id()));
    let script = format!("trap 'echo told > {}; exit 0' TERM; while :; do sleep 0.01; done", told.display());
    let _task = Task::run_in(&[&dir.path], &script);
    let _below = Task::run_in(&[&below.path], "sleep 1000");
    let hands = world.hands();
    assert_eq!(act(&hands, &target, Act::Freeze).outcome, ActOutcome::Confirmed);
    assert_eq!(act(&hands, &target, Act::Terminate).outcome, ActOutcome::Confirmed);
    wait_until("the job to end", || fs::read_to_string(format!("{}/cgroup.events", dir.path)).unwrap().contains("populated 0"));
    assert_eq!(fs::read_to_string(&told).unwrap_or_default(), "told\n");
    fs::remove_file(told).unwrap();
}

#[test]
fn the_tail_of_one_vanished_job_is_exact_and_its_siblings_work_is_not_in_it() {
    let Some(world) = World::make() else { return };
    let (gone, idle) = (world.dir("jobs/gone"), world.dir("jobs/idle"));
    let mut sampler = world.sampler();
    sampler.attach(JOB, &Target::Cgroups(vec![gone.clone()])).unwrap();
    sampler.attach(OTHER, &Target::Cgroups(vec![idle.clone()])).unwrap();
    let task = Task::run_in(&[&gone.path], BUSY);
    let sibling = Task::run_in(&[&idle.path], BUSY);
    wait_until("both run", || usage_usec(&gone.path) > 20_000 && usage_usec(&idle.path) > 20_000);
    // Stopped, so that what the look saw is known to the microsecond.
    for dir in [&gone, &idle] {
        fs::write(format!("{}/cgroup.freeze", dir.path), "1").unwrap();
        wait_until("frozen", || fs::read_to_string(format!("{}/cgroup.events", dir.path)).unwrap().contains("frozen 1"));
    }
    let looked = sampler.sample(Which::All);
    assert!(looked.iter().all(|sample| sample.tail.is_none()));
    let seen = *looked[0].cpu_ns.seen().unwrap();
    for dir in [&gone, &idle] {
        fs::write(format!("{}/cgroup.freeze", dir.path), "0").unwrap();
    }
    wait_until("more of both", || usage_usec(&gone.path) * 1_000 > seen + 20_000_000);
    drop((task, sibling));
    wait_until("empty", || procs_below(Path::new(&gone.path)) + procs_below(Path::new(&idle.path)) == 0);
    wait_until("unpopulated", || fs::read_to_string(format!("{}/cgroup.events", gone.path)).unwrap().contains("populated 0"));
    let end = usage_usec(&gone.path) * 1_000;
    fs::remove_dir(&gone.path).unwrap();
    let samples = sampler.sample(Which::All);
    assert_eq!(samples[0].cpu_ns, Reading::Missing(Missing::Vanished));
    let tail = samples[0].tail.unwrap();
    println!("tail {} ns, counted to its end {} ns", tail.cpu_ns, end - seen);
    assert_eq!(tail.share, TailShare::Exact);
    // Both sides are whole microseconds, rounded down once for each of parent and child.
    assert!(tail.cpu_ns.abs_diff(end - seen) <= 4_000, "{} instead of {}", tail.cpu_ns, end - seen);
    assert!(sampler.sample(Which::All)[0].tail.is_none(), "told once");
}

#[test]
fn a_tail_is_told_on_a_look_at_that_job_alone_too() {
    let Some(world) = World::make() else { return };
    let (gone, other) = (world.dir("jobs/gone"), world.dir("jobs/other"));
    let mut sampler = world.sampler().keeping_at_most(0);
    sampler.attach(JOB, &Target::Cgroups(vec![gone.clone()])).unwrap();
    sampler.attach(OTHER, &Target::Cgroups(vec![other])).unwrap();
    sampler.sample(Which::All);
    let task = Task::run_in(&[&gone.path], BUSY);
    wait_until("it runs", || usage_usec(&gone.path) > 20_000);
    drop(task);
    wait_until("empty", || fs::read_to_string(format!("{}/cgroup.events", gone.path)).unwrap().contains("populated 0"));
    let end = usage_usec(&gone.path) * 1_000;
    fs::remove_dir(&gone.path).unwrap();
    let tail = one(&mut sampler, JOB).tail.unwrap();
    assert!(tail.cpu_ns.abs_diff(end) <= 4_000, "{} instead of {end}", tail.cpu_ns);
    assert_eq!(sampler.kept_files(), 0);
}

#[test]
fn two_that_vanish_together_share_the_tail_and_a_stranger_beside_them_leaves_none() {
    let Some(world) = World::make() else { return };
    for stranger in [false, true] {
        let (a, b) = (world.dir("jobs/a"), world.dir("jobs/b"));
        if stranger {
            world.dir("jobs/unwatched");
        }
        let mut sampler = world.sampler();
        sampler.attach(JOB, &Target::Cgroups(vec![a.clone()])).unwrap();
        sampler.attach(OTHER, &Target::Cgroups(vec![b.clone()])).unwrap();
        sampler.sample(Which::All);
        let task = Task::run_in(&[&a.path], BUSY);
        wait_until("it runs", || usage_usec(&a.path) > 20_000);
        drop(task);
        wait_until("empty", || fs::read_to_string(format!("{}/cgroup.events", a.path)).unwrap().contains("populated 0"));
        fs::remove_dir(&a.path).unwrap();
        fs::remove_dir(&b.path).unwrap();
        let tails: Vec<_> = sampler.sample(Which::All).iter().map(|sample| sample.tail).collect();
        if stranger {
            assert_eq!(tails, [None, None], "whose it was cannot be told");
        } else {
            assert!(tails.iter().all(|tail| tail.is_some_and(|tail| tail.share == TailShare::Split)), "{tails:?}");
            assert!(tails[0].unwrap().cpu_ns >= 9_000_000);
        }
    }
}

#[test]
fn the_last_task_leaving_is_told_at_once() {
    let Some(world) = World::make() else { return };
    let dir = world.dir("short");
    let (sender, receiver) = channel();
    let watch =
        Watch::start(Some(Arc::clone(&world.layout)), ProcessTrees::default(), move |attempt| sender.send(attempt).unwrap()).unwrap();
    let target = Target::Cgroups(vec![dir.clone()]);
    watch.add(JOB, &target).unwrap();
    let mut task = Task::run_in(&[&dir.path], "exit 0");
    let began = Instant::now();
    assert_eq!(receiver.recv_timeout(LONG), Ok(JOB));
    println!("told after {:?}", began.elapsed());
    task.0.wait().unwrap();
    watch.remove(JOB);
    drop(Task::run_in(&[&dir.path], "exit 0"));
    assert!(receiver.recv_timeout(Duration::from_millis(100)).is_err(), "no longer watched");
    fs::remove_dir(&dir.path).unwrap();
    assert_eq!(watch.add(JOB, &target), Err(Missing::Vanished));
}

#[test]
fn another_cgroup_of_the_same_name_is_neither_read_nor_touched() {
    let Some(world) = World::make() else { return };
    let old = world.dir("name");
    fs::remove_dir(&old.path).unwrap();
    let target = Target::Cgroups(vec![old.clone()]);
    let mut before = world.sampler();
    before.attach(JOB, &target).unwrap();
    assert_eq!(one(&mut before, JOB).cpu_ns, Reading::Missing(Missing::Vanished));
    let new = world.dir("name");
    assert_ne!(old.inode, new.inode);
    let _task = Task::run_in(&[&new.path], BUSY);
    let mut sampler = world.sampler();
    sampler.attach(JOB, &target).unwrap();
    assert_eq!(one(&mut sampler, JOB).cpu_ns, Reading::Missing(Missing::Replaced));
    assert_eq!(one(&mut sampler, JOB).frozen, Reading::Missing(Missing::Replaced));
    let hands = world.hands();
    for what in [Act::Freeze, Act::Thaw, Act::Terminate, Act::Kill] {
        assert!(matches!(act(&hands, &target, what).outcome, ActOutcome::Refused(_)));
    }
    assert_eq!(procs_below(Path::new(&new.path)), 1);
    assert!(fs::read_to_string(format!("{}/cgroup.events", new.path)).unwrap().contains("frozen 0"));
}

#[test]
fn a_kept_descriptor_never_shows_the_next_cgroup_of_that_name() {
    let Some(world) = World::make() else { return };
    let old = world.dir("name");
    let mut sampler = world.sampler();
    sampler.attach(JOB, &Target::Cgroups(vec![old.clone()])).unwrap();
    assert_eq!(one(&mut sampler, JOB).cpu_ns, Reading::Seen(0));
    fs::remove_dir(&old.path).unwrap();
    let new = world.dir("name");
    let _task = Task::run_in(&[&new.path], BUSY);
    wait_until("the new one runs", || usage_usec(&new.path) > 5_000);
    assert_eq!(one(&mut sampler, JOB).cpu_ns, Reading::Missing(Missing::Replaced));
}

#[test]
fn what_holds_the_agent_or_is_no_job_cannot_be_named_nor_touched() {
    let Some(world) = World::make() else { return };
    let machine = Layout::detect().unwrap();
    let v2 = machine.v2.clone().unwrap();
    assert!(matches!(identify(&machine, &v2), Err(IdentifyError::Place(_))), "the root");
    assert!(matches!(identify(&machine, &world.v2().join("../x")), Err(IdentifyError::Place(_))));
    assert!(matches!(identify(&machine, Path::new("/etc")), Err(IdentifyError::Place(_))));
    assert!(matches!(identify(&machine, &world.v2().join("none")), Err(IdentifyError::NotThere(_))));
    // The agent, for a moment, in a cgroup below the job's: run apart, since the whole test process moves.
    let exe = std::env::current_exe().unwrap();
    let name = world.v2().to_str().unwrap().to_owned();
    let status =
        Command::new(exe).args(["--exact", "agent_inside", "--ignored", "--nocapture"]).env("METERD_TEST_INSIDE", name).status().unwrap();
    assert!(status.success());
}

#[test]
#[ignore = "run by what_holds_the_agent_or_is_no_job_cannot_be_named_nor_touched"]
fn agent_inside() {
    let root = PathBuf::from(std::env::var("METERD_TEST_INSIDE").expect("set by the test that runs this one"));
    let mut machine = Layout::detect().unwrap();
    machine.v1_memory = None;
    let job = root.join("holds-agent");
    fs::create_dir_all(job.join("below")).unwrap();
    let dir = identify(&machine, &job).unwrap();
    fs::write(job.join("below/cgroup.procs"), std::process::id().to_string()).unwrap();
    assert!(matches!(identify(&machine, &job), Err(IdentifyError::HoldsAgent(_))));
    let target = Target::Cgroups(vec![dir]);
    let layout = Arc::new(machine);
    let mut sampler = Sampler::new(Some(Arc::clone(&layout)), ProcessTrees::default(), clock::mono);
    assert!(matches!(sampler.attach(JOB, &target), Err(AttachError::HoldsAgent)));
    let hands = hands(Some(layout), ProcessTrees::default());
    for what in [Act::Freeze, Act::Kill, Act::Terminate, Act::Thaw] {
        assert!(matches!(act(&hands, &target, what).outcome, ActOutcome::Refused(_)));
    }
    assert!(fs::read_to_string(job.join("cgroup.events")).unwrap().contains("frozen 0"));
}

#[test]
fn cgroups_rs_reads_the_same_memory_and_cpu_time() {
    use cgroups_rs::fs::Controller;
    use cgroups_rs::fs::cgroup::Cgroup;
    use cgroups_rs::fs::hierarchies::auto;
    use cgroups_rs::fs::memory::MemController;
    let Some(world) = World::make() else { return };
    let dirs = own_cgroup::make(&world.layout, Path::new("jobs"), "oracle").unwrap();
    let paths: Vec<&str> = dirs.iter().map(|dir| dir.path.as_str()).collect();
    let task = Task::run_in(&paths, "x=$(head -c 8388608 /dev/zero | tr '\\0' x); sleep 1000");
    let mut sampler = world.sampler();
    sampler.attach(JOB, &Target::OwnCgroups(dirs.clone())).unwrap();
    wait_until("8 MiB", || one(&mut sampler, JOB).memory_bytes.seen().is_some_and(|bytes| *bytes > 8 << 20));
    let name = world.v2().file_name().unwrap().to_str().unwrap();
    let oracle = Cgroup::load(auto(), format!("{name}/jobs/oracle"));
    let memory: &MemController = oracle.controller_of().unwrap();
    assert!(memory.exists());
    assert!(oracle.tasks().iter().any(|tid| u32::try_from(tid.pid).unwrap() == task.pid()), "both put it in the same cgroup");
    wait_until("both agree", || {
        let ours = *one(&mut sampler, JOB).memory_bytes.seen().unwrap();
        ours.abs_diff(memory.memory_stat().usage_in_bytes) < 64 << 10
    });
    let hands = world.hands();
    let target = Target::OwnCgroups(dirs.clone());
    assert_eq!(act(&hands, &Target::Cgroups(dirs), Act::Remove).outcome, ActOutcome::Refused("the agent did not make it".into()));
    assert_eq!(act(&hands, &target, Act::Remove).outcome, ActOutcome::Unconfirmed, "it still holds a process");
    assert_eq!(act(&hands, &target, Act::Kill).outcome, ActOutcome::Confirmed);
    assert_eq!(act(&hands, &target, Act::Remove).outcome, ActOutcome::Confirmed);
    assert!(!memory.exists());
    assert_eq!(act(&hands, &target, Act::Remove).outcome, ActOutcome::Gone);
}

/// A tree like Slurm's, constructed by hand inside a real cgroup2 directory (names from the Slurm 24.11 cgroup/v2 plug-in).
#[test]
fn a_slurm_job_is_frozen_at_its_leaves_killed_at_its_users_and_its_step_daemon_lives() {
    let Some(world) = World::make() else { return };
    let slurm = SlurmJob { job_id: 42, sluid: None };
    let target = Target::SlurmJob(slurm);
    let mut sampler = world.sampler();
    sampler.attach(JOB, &target).unwrap();
    assert_eq!(one(&mut sampler, JOB).cpu_ns, Reading::Missing(Missing::NotYet));
    let job = "system.slice/n1_slurmstepd.scope/job_42";
    let daemon_dir = world.dir(&format!("{job}/step_batch/slurm"));
    let batch = world.dir(&format!("{job}/step_batch/user/task_0"));
    let step = world.dir(&format!("{job}/step_0/user/task_0"));
    let daemon = Task::run_in(&[&daemon_dir.path], BUSY);
    let _tasks = [Task::run_in(&[&batch.path], BUSY), Task::run_in(&[&step.path], BUSY)];
    assert!(one(&mut sampler, JOB).cpu_ns.seen().is_some());
    assert_eq!(one(&mut sampler, JOB).frozen, Reading::Seen(Frozen::No));
    let hands = world.hands();
    assert_eq!(act(&hands, &target, Act::Freeze).outcome, ActOutcome::Confirmed);
    assert_eq!(one(&mut sampler, JOB).frozen, Reading::Seen(Frozen::Yes));
    let before = usage_usec(&daemon_dir.path);
    wait_until("the step daemon runs on", || usage_usec(&daemon_dir.path) > before);
    let new = world.dir(&format!("{job}/step_1/user/task_0"));
    let _new_task = Task::run_in(&[&new.path], BUSY);
    assert_eq!(one(&mut sampler, JOB).frozen, Reading::Seen(Frozen::No), "a new step starts unfrozen");
    assert_eq!(act(&hands, &target, Act::Freeze).outcome, ActOutcome::Confirmed);
    assert_eq!(one(&mut sampler, JOB).frozen, Reading::Seen(Frozen::Yes));
    let killed = act(&hands, &target, Act::Kill);
    assert_eq!(killed.outcome, ActOutcome::Confirmed);
    assert!(!killed.syscall.contains("/slurm/") && !killed.syscall.contains("job_42/cgroup"), "{}", killed.syscall);
    assert_eq!(procs_below(Path::new(&daemon_dir.path)), 1);
    drop(daemon);
    wait_until("all gone", || remove_tree(&world.v2().join(job)));
    assert_eq!(one(&mut sampler, JOB).cpu_ns, Reading::Missing(Missing::Vanished));
    assert_eq!(act(&hands, &target, Act::Freeze).outcome, ActOutcome::Gone);
}

fn tree_of(script: &str) -> (Task, ProcessTrees, ProcessRoot) {
    let task = Task(Command::new("setsid").args(["sh", "-c", script]).spawn().unwrap());
    let trees = ProcessTrees::default();
    let root = trees.identify(task.pid()).unwrap();
    wait_until("setsid", || fs::read_to_string(format!("/proc/{}/comm", task.pid())).unwrap().trim() == "sh");
    (task, trees, root)
}

fn sampler_of(trees: &ProcessTrees, target: &Target) -> Sampler {
    let mut sampler = Sampler::new(None, trees.clone(), clock::mono);
    sampler.attach(JOB, target).unwrap();
    sampler
}

#[test]
fn a_process_tree_is_stopped_with_all_that_it_forks_goes_on_and_ends() {
    // Each link forks the next one and ends: a chain that runs away from whoever signals one process after the other.
    let chain = "f() { (sleep 0.002; f) & }; f; while :; do :; done";
    let (mut task, trees, root) = tree_of(chain);
    let target = Target::Processes(root);
    let mut sampler = sampler_of(&trees, &target);
    wait_until("100 ms of CPU time", || one(&mut sampler, JOB).cpu_ns.seen().is_some_and(|ns| *ns >= 100_000_000));
    let hands = hands(None, trees.clone());
    let frozen = act(&hands, &target, Act::Freeze);
    assert_eq!(frozen.outcome, ActOutcome::Confirmed);
    let still = one(&mut sampler, JOB);
    assert_eq!((still.frozen, still.populated), (Reading::Seen(Frozen::Yes), Reading::Seen(Populated::Yes)));
    assert!(*still.memory_bytes.seen().unwrap() > 0);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(one(&mut sampler, JOB).cpu_ns, still.cpu_ns, "nobody runs on");
    assert_eq!(act(&hands, &target, Act::Thaw).outcome, ActOutcome::Confirmed);
    wait_until("it goes on", || one(&mut sampler, JOB).cpu_ns.seen() > still.cpu_ns.seen());
    assert_eq!(act(&hands, &target, Act::Kill).outcome, ActOutcome::Confirmed);
    assert_eq!(one(&mut sampler, JOB).populated, Reading::Seen(Populated::No));
    task.0.wait().unwrap();
    let end = one(&mut sampler, JOB);
    assert!(end.cpu_ns.seen() >= still.cpu_ns.seen(), "what it used is not forgotten");
    assert_eq!(act(&hands, &target, Act::Freeze).outcome, ActOutcome::Gone);
}

#[test]
fn a_stopped_process_tree_that_is_asked_to_end_does() {
    let (mut task, trees, root) = tree_of("sleep 1000 & sleep 1000 & wait");
    let target = Target::Processes(root);
    let hands = hands(None, trees.clone());
    assert_eq!(act(&hands, &target, Act::Freeze).outcome, ActOutcome::Confirmed);
    assert_eq!(act(&hands, &target, Act::Terminate).outcome, ActOutcome::Confirmed);
    task.0.wait().unwrap();
    let mut sampler = sampler_of(&trees, &target);
    wait_until("all ended", || one(&mut sampler, JOB).populated == Reading::Seen(Populated::No));
}

#[test]
fn a_process_tree_with_the_agent_in_it_is_left_alone() {
    let trees = ProcessTrees::default();
    let target = Target::Processes(trees.identify(std::os::unix::process::parent_id()).unwrap());
    assert!(matches!(Sampler::new(None, trees.clone(), clock::mono).attach(JOB, &target), Err(AttachError::HoldsAgent)));
    let hands = hands(None, trees);
    assert!(matches!(act(&hands, &target, Act::Freeze).outcome, ActOutcome::Refused(_)));
}

#[test]
fn a_process_that_took_the_roots_pid_is_not_the_job() {
    let task = Task(Command::new("sleep").arg("1000").spawn().unwrap());
    let trees = ProcessTrees::default();
    let mut root = trees.identify(task.pid()).unwrap();
    root.start_ticks -= 1;
    let target = Target::Processes(root);
    let mut sampler = sampler_of(&trees, &target);
    assert_eq!(one(&mut sampler, JOB).cpu_ns, Reading::Missing(Missing::Vanished));
    let hands = hands(None, trees.clone());
    assert_eq!(act(&hands, &target, Act::Kill).outcome, ActOutcome::Gone);
    root.start_ticks += 1;
    assert_eq!(trees.identify(task.pid()), Ok(root), "it lives");
}

#[test]
fn where_no_cgroup_file_system_is_mounted_the_daemon_is_told_so() {
    let text: &[u8] = b"22 1 0:21 / /proc rw - proc proc rw\n";
    assert!(Layout::from_mountinfo(text).is_err());
    let dir = CgroupDir { path: "/sys/fs/cgroup/x".into(), inode: 1 };
    let mut sampler = Sampler::new(None, ProcessTrees::default(), clock::mono);
    assert!(matches!(sampler.attach(JOB, &Target::Cgroups(vec![dir.clone()])), Err(AttachError::NoCgroups)));
    let hands = hands(None, ProcessTrees::default());
    assert!(matches!(act(&hands, &Target::Cgroups(vec![dir]), Act::Kill).outcome, ActOutcome::Failed(_)));
}
