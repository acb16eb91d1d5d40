//! The demo, run as people run it: the real binary, real processes; and that it fails when a step cannot happen.
//!
//! Each run takes about twenty seconds. They take turns, so that none slows another down.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::fs::Permissions;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getuid, kill_process};
use tempfile::TempDir;

/// Somebody without rights: "nobody" nearly everywhere, and nobody at all elsewhere.
const OTHER_UID: u32 = 65_534;

/// The steps, in the order in which they are printed.
const STEPS: [&str; 13] = [
    "The agent starts",
    "Two prepaid accounts",
    "Three jobs start",
    "All run, until bob has nothing left",
    "The kernel says so too",
    "The charge for CPU time is the price of the kernel's counter",
    "Bob pays 5 more",
    "The jobs are asked to end",
    "Receipts",
    "Why was bob-train frozen?",
    "Every receipt is computed again",
    "The authority's ledger",
    "The agent ends; its journal is checked",
];

fn in_turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A directory that the demo makes its folder in; another user may use it too.
fn base() -> TempDir {
    let base = tempfile::tempdir().unwrap();
    std::fs::set_permissions(base.path(), Permissions::from_mode(0o755)).unwrap();
    base
}

fn demo(base: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meterd"));
    command.args(["demo", "--folder"]).arg(base).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// How a run ended.
struct Ended {
    pid: u32,
    status: ExitStatus,
    output: String,
    errors: String,
}

impl Ended {
    fn of(command: &mut Command) -> Ended {
        let child = command.spawn().unwrap();
        let pid = child.id();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ended { pid, status: output.status, output: text(&output.stdout), errors: text(&output.stderr) }
    }

    fn has_failed_with(&self, text: &str) {
        assert_eq!(self.status.code(), Some(1), "{}\n{}", self.output, self.errors);
        assert!(self.errors.contains(text), "{text:?} is not in:\n{}", self.errors);
    }
}

/// A run that is watched line by line.
struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    printed: String,
}

impl Running {
    fn start(command: &mut Command) -> Running {
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Running { child, lines, printed: String::new() }
    }

    /// Reads on until a line holds the text; gives that line.
    fn line_with(&mut self, text: &str) -> String {
        loop {
            let Some(Ok(line)) = self.lines.next() else { panic!("no line with {text:?} in:\n{}", self.printed) };
            self.printed.push_str(&line);
            self.printed.push('\n');
            if line.contains(text) {
                return line;
            }
        }
    }

    fn end(mut self) -> Ended {
        for line in self.lines.by_ref() {
            self.printed.push_str(&line.unwrap());
            self.printed.push('\n');
        }
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        Ended { pid: self.child.id(), status: self.child.wait().unwrap(), output: self.printed, errors }
    }
}

/// The pid that stands behind "process " in a line.
fn pid_in(line: &str) -> i32 {
    let (_, rest) = line.split_once("process ").unwrap();
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

fn send(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// The processes of the demo with this pid that are still there: each names it as its parent, or its folder.
fn processes_of(demo: u32) -> Vec<String> {
    let marks = [format!("\0--parent\0{demo}\0"), format!("meterd-demo-{demo}-")];
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let arguments = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    arguments
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .filter(|line| marks.iter().any(|mark| line.contains(mark)))
        .collect()
}

/// The cgroups of the demo with this pid that are still there.
fn cgroups_of(demo: u32) -> Vec<PathBuf> {
    let prefix = format!("meterd-demo-{demo}-");
    let below = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect::<Vec<_>>();
    let root = Path::new("/sys/fs/cgroup");
    let mut found: Vec<PathBuf> = below(root);
    found.extend(below(root).iter().flat_map(|dir| below(dir)));
    found.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)));
    found
}

fn is_gone(demo: u32) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !processes_of(demo).is_empty() {
        assert!(Instant::now() < deadline, "left: {:?}", processes_of(demo));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn nothing_is_left(ended: &Ended, base: &Path) {
    is_gone(ended.pid);
    assert_eq!(cgroups_of(ended.pid), Vec::<PathBuf>::new());
    assert_eq!(std::fs::read_dir(base).unwrap().count(), 0, "files are left");
}

/// After a failure the folder is kept for whoever looks, and nothing else.
fn only_the_folder_is_left(ended: &Ended, base: &Path) {
    is_gone(ended.pid);
    assert_eq!(cgroups_of(ended.pid), Vec::<PathBuf>::new());
    let kept: Vec<_> = std::fs::read_dir(base).unwrap().flatten().collect();
    assert_eq!(kept.len(), 1);
    assert!(ended.errors.contains(&format!("kept: {}", kept[0].path().canonicalize().unwrap().display())), "{}", ended.errors);
    assert!(kept[0].path().join("agent.log").exists());
}

/// Every step in order, no escapes, no line past 100 columns.
fn reads_well(ended: &Ended) {
    assert!(ended.status.success(), "{}\n{}", ended.output, ended.errors);
    let mut rest = ended.output.as_str();
    for (index, step) in STEPS.iter().enumerate() {
        let heading = format!("\n{:2}  {step}", index + 1);
        let at = rest.find(&heading).unwrap_or_else(|| panic!("no step {heading:?} in its place in:\n{}", ended.output));
        rest = &rest[at + heading.len()..];
    }
    assert!(!ended.output.contains('\x1b'), "colours in a pipe");
    let long: Vec<&str> = ended.output.lines().filter(|line| 100 < line.chars().count()).collect();
    // A path has no place to break it.
    assert!(long.iter().all(|line| line.trim().split(' ').count() == 1), "{long:?}");
    assert!(ended.errors.is_empty(), "{}", ended.errors);
}

fn root() -> Result<(), String> {
    if getuid().is_root() { Ok(()) } else { Err("this part needs root".to_owned()) }
}

/// A cgroup2 tree in which this process can make a cgroup.
fn cgroups() -> Result<(), String> {
    root()?;
    let name = format!("meterd-demo-probe-{}", std::process::id());
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    let usable = roots.iter().map(|root| root.join(&name)).any(|dir| {
        let made = std::fs::create_dir(&dir).is_ok();
        let cgroup = made && dir.join("cgroup.freeze").exists();
        if made {
            std::fs::remove_dir(&dir).unwrap();
        }
        cgroup
    });
    if usable { Ok(()) } else { Err("no cgroup2 tree in which a cgroup can be made".to_owned()) }
}

/// Can this process have mounts of its own?
fn namespaces() -> Result<(), String> {
    root()?;
    let tried = Command::new("unshare").args(["--mount", "true"]).output().map_err(|error| format!("unshare: {error}"))?;
    if tried.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&tried.stderr).into_owned()) }
}

/// The demo in mounts of its own, after `prepare` (a line for sh).
fn demo_after(prepare: &str, base: &Path) -> Command {
    let mut command = Command::new("unshare");
    let script = format!("{prepare} && exec \"$0\" demo --folder \"$1\"");
    command.args(["--mount", "sh", "-c", &script, env!("CARGO_BIN_EXE_meterd")]).arg(base);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn the_demo_plays_every_step_and_leaves_nothing() {
    let _turn = in_turn();
    let base = base();
    let ended = Ended::of(&mut demo(base.path()));
    reads_well(&ended);
    nothing_is_left(&ended, base.path());
    println!("{}", ended.output);
    if support::need("kernel", cgroups()).is_some() {
        assert!(ended.output.contains("cgroups: "), "{}", ended.output);
        assert!(ended.output.contains("frozen 1 in cgroup.events; cpu.stat grew by 0.000 ms"), "{}", ended.output);
    }
}

#[test]
fn another_user_sees_the_same_on_process_trees() {
    if support::need("other user", root()).is_none() {
        return;
    }
    let _turn = in_turn();
    let base = base();
    let binary = base.path().join("meterd");
    std::fs::copy(env!("CARGO_BIN_EXE_meterd"), &binary).unwrap();
    std::fs::set_permissions(&binary, Permissions::from_mode(0o755)).unwrap();
    let own = base.path().join("own");
    std::fs::create_dir(&own).unwrap();
    chown(&own, Some(OTHER_UID), Some(OTHER_UID)).unwrap();
    let mut command = Command::new(&binary);
    command.args(["demo", "--folder"]).arg(&own).uid(OTHER_UID).gid(OTHER_UID).current_dir("/");
    let ended = Ended::of(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()));
    reads_well(&ended);
    assert!(ended.output.contains("process trees by /proc, SIGSTOP, SIGCONT and SIGKILL"), "{}", ended.output);
    assert!(ended.output.contains("SIGSTOP to"), "{}", ended.output);
    nothing_is_left(&ended, &own);
}

#[test]
fn a_job_that_is_killed_from_outside_fails_the_demo() {
    let _turn = in_turn();
    let base = base();
    let mut running = Running::start(&mut demo(base.path()));
    let job = pid_in(&running.line_with("bob-train for bob"));
    running.line_with("alice      in hand"); // it runs
    send(job, Signal::KILL);
    let ended = running.end();
    ended.has_failed_with("job bob-train runs");
    assert!(ended.errors.contains("137"), "128 + SIGKILL: {}", ended.errors);
    only_the_folder_is_left(&ended, base.path());
}

#[test]
fn a_frozen_job_that_is_killed_from_outside_fails_the_demo() {
    let _turn = in_turn();
    let base = base();
    let mut running = Running::start(&mut demo(base.path()));
    let job = pid_in(&running.line_with("bob-train for bob"));
    running.line_with("The kernel says so too");
    send(job, Signal::KILL);
    let ended = running.end();
    assert_eq!(ended.status.code(), Some(1), "{}\n{}", ended.output, ended.errors);
    only_the_folder_is_left(&ended, base.path());
}

#[test]
fn an_agent_that_is_killed_from_outside_fails_the_demo_and_leaves_no_process() {
    let _turn = in_turn();
    let base = base();
    let mut running = Running::start(&mut demo(base.path()));
    let agent = pid_in(&running.line_with("is ready after"));
    running.line_with("The kernel says so too"); // two jobs are frozen, and nobody is left to thaw them
    send(agent, Signal::KILL);
    let ended = running.end();
    assert_eq!(ended.status.code(), Some(1), "{}\n{}", ended.output, ended.errors);
    only_the_folder_is_left(&ended, base.path());
}

#[test]
fn an_interrupted_demo_takes_everything_down() {
    let _turn = in_turn();
    let base = base();
    let mut running = Running::start(&mut demo(base.path()));
    running.line_with("alice      in hand");
    send(i32::try_from(running.child.id()).unwrap(), Signal::INT);
    let ended = running.end();
    ended.has_failed_with("INTERRUPTED");
    nothing_is_left(&ended, base.path());
}

#[test]
fn a_demo_that_is_killed_leaves_no_process() {
    let _turn = in_turn();
    let base = base();
    let mut running = Running::start(&mut demo(base.path()));
    running.line_with("alice      in hand");
    let pid = running.child.id();
    assert!(!processes_of(pid).is_empty());
    send(i32::try_from(pid).unwrap(), Signal::KILL);
    running.child.wait().unwrap();
    is_gone(pid);
    // Nobody was there to remove them; the agent may be at it, and the kernel may need a moment to see that a task has gone.
    let deadline = Instant::now() + Duration::from_mins(1);
    while !cgroups_of(pid).is_empty() {
        assert!(Instant::now() < deadline, "left: {:?}", cgroups_of(pid));
        for dir in cgroups_of(pid) {
            let jobs = std::fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
            jobs.chain([dir.clone()]).for_each(|dir| drop(std::fs::remove_dir(dir)));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_demo() {
    let _turn = in_turn();
    let base = base();
    let mut command = demo(base.path());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(1));
    is_gone(child.id());
    assert_eq!(cgroups_of(child.id()), Vec::<PathBuf>::new());
}

#[test]
fn a_folder_that_cannot_be_written_fails_the_demo() {
    let ended = Ended::of(&mut demo(Path::new("/proc/self")));
    ended.has_failed_with("a folder can be made in /proc/");
    let ended = Ended::of(&mut demo(Path::new("/nonexistent/folder")));
    ended.has_failed_with("No such file or directory");
}

#[test]
fn a_read_only_file_system_fails_the_demo() {
    if support::need("mounts", namespaces()).is_none() {
        return;
    }
    let base = base();
    let prepare = format!("mount -t tmpfs -o ro none '{}'", base.path().display());
    let ended = Ended::of(&mut demo_after(&prepare, base.path()));
    ended.has_failed_with("Read-only file system");
    nothing_is_left(&ended, base.path());
}

#[test]
fn root_without_a_cgroup_tree_is_told_so() {
    if support::need("mounts", namespaces()).is_none() {
        return;
    }
    let base = base();
    let prepare = "mount -t tmpfs none /sys/fs/cgroup";
    let ended = Ended::of(&mut demo_after(prepare, base.path()));
    ended.has_failed_with("FAILED: cgroup tree");
    nothing_is_left(&ended, base.path());
}

#[test]
fn root_with_a_read_only_cgroup_tree_is_told_so() {
    if support::need("mounts", namespaces().and_then(|()| cgroups())).is_none() {
        return;
    }
    let base = base();
    let prepare = "for dir in /sys/fs/cgroup /sys/fs/cgroup/*; do ! mountpoint -q $dir || mount -o remount,bind,ro $dir; done";
    let ended = Ended::of(&mut demo_after(prepare, base.path()));
    ended.has_failed_with("FAILED: cgroup tree");
    nothing_is_left(&ended, base.path());
}
