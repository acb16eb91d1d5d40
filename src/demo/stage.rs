//! What the demo stands on: its folder, its agent, its jobs' processes; and how all of it is taken down again, whatever happened.

use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::Stop;
use super::burn::{GO, STARTED, THIS_PROGRAM};
use super::kernel::{CgroupTree, Place};
use super::screen::Screen;
use crate::ctl::client::{Client, Failure, typed};
use crate::domain::ledger;
use crate::domain::view::{AccountView, JobView};

/// Between two looks at whatever is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Between two tables.
const TABLE_EVERY: Duration = Duration::from_secs(1);
/// For whatever should take moments: a slow machine makes the demo slower, not fail.
pub(super) const SOON: Duration = Duration::from_mins(1);
/// How long a process may take to end when it is asked to, at the end.
const ENDS_WITHIN: Duration = Duration::from_secs(20);
/// Longest path of a Unix socket (`sun_path` with its final zero).
const SOCKET_BYTES_MAX: usize = 107;

/// Prices at which a few seconds show.
pub(super) const CARD: &str = r#"card = "demo"
version = 1
effective_from = "2026-01-01T00:00:00Z"

[[line]]
id = "cpu"
meter = "cpu_time"
price = "0.10"
unit = "core-second"

[[line]]
id = "memory"
meter = "memory_charged"
price = "0.05"
unit = "GiB-second"
"#;

/// What [`CARD`] says of CPU time, for the demo's own arithmetic: so many nanoseconds cost a nano-credit.
pub(super) const CPU_NS_PER_NANO_CREDIT: u64 = 10;

/// Is the folder to be kept?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    Yes,
    No,
}

impl Kept {
    /// The end of "no process, cgroup …".
    pub(super) const fn or_folder(self) -> &'static str {
        match self {
            Kept::Yes => "",
            Kept::No => " or file",
        }
    }
}

/// What the table shows.
#[derive(Clone, Debug, Default)]
pub(super) struct Shown {
    pub(super) jobs: Vec<JobView>,
    pub(super) accounts: Vec<AccountView>,
}

/// What one look at something awaited gave.
pub(super) enum Look<T> {
    Done(T),
    /// Not yet: this is how it stands.
    NotYet(String),
}

/// A job as the demo wants it.
#[derive(Clone, Copy, Debug)]
pub(super) struct JobPlan {
    pub(super) name: &'static str,
    pub(super) account: &'static str,
    pub(super) cpu_percent: u32,
    pub(super) memory_mib: usize,
}

/// A job of the demo.
pub(super) struct DemoJob {
    pub(super) plan: JobPlan,
    /// The process that started it and waits for it, as `meterctl run` does.
    runner: Child,
    /// The job's own process, once it has told its pid.
    pub(super) process: Option<JobProcess>,
    /// Has the demo asked it to end?
    ending: bool,
}

/// A job's own process.
pub(super) struct JobProcess {
    pub(super) pid: u32,
    pidfd: OwnedFd,
    /// CPU time that the process used before it became the job's command.
    pub(super) used_before_ns: u64,
    /// Where the kernel keeps its figures.
    pub(super) place: Place,
}

/// The stage.
pub(super) struct Stage {
    folder: PathBuf,
    cgroups: Option<CgroupTree>,
    /// What jobs are metered by here, and why.
    pub(super) mode: String,
    pub(super) screen: Screen,
    agent: Option<Child>,
    client: Client,
    pub(super) jobs: Vec<DemoJob>,
    interrupted: Arc<AtomicBool>,
    began: Instant,
    last_table: Option<Instant>,
}

#[derive(Deserialize)]
struct Jobs {
    jobs: Vec<JobView>,
}

#[derive(Deserialize)]
struct Accounts {
    accounts: Vec<AccountDocument>,
}

/// One account, as the local API shows it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct AccountDocument {
    /// What the authority says.
    pub(super) authority: ledger::AccountView,
    /// What the node says, if it knows the account.
    pub(super) node: Option<AccountView>,
}

impl Stage {
    /// Makes the folder and everything in it, and finds out what jobs can be metered by. Nothing runs yet, and after an error nothing is left.
    pub(super) fn set_up(base: &Path) -> Result<Stage, Stop> {
        const STEP: &str = "set-up";
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let registered = signal_hook::flag::register(signal, Arc::clone(&interrupted));
            registered.map_err(|error| Stop::failed(STEP, "signals can be caught", error))?;
        }
        let name = unique_name();
        let folder = make_folder(base, &name)?;
        let client = Client::new(&folder.join("run/meterd.sock")).map_err(|error| Stop::failed(STEP, "calls can be made", error));
        let (client, cgroups, mode) = match client.and_then(|client| choose_mode(&name).map(|(cgroups, mode)| (client, cgroups, mode))) {
            Ok(chosen) => chosen,
            Err(stop) => {
                let _ = std::fs::remove_dir(&folder); // it is empty; the error that matters is the first one
                return Err(stop);
            }
        };
        let stage = Stage {
            client,
            folder,
            cgroups,
            mode,
            screen: Screen::new(),
            agent: None,
            jobs: Vec::new(),
            interrupted,
            began: Instant::now(),
            last_table: None,
        };
        match stage.write_files(&name) {
            Ok(()) => Ok(stage),
            Err(error) => {
                let stop = Stop::failed(STEP, format!("files can be written to {}", stage.folder.display()), error);
                let mut stage = stage;
                let _ = stage.take_down(Kept::No); // the error that matters is the first one
                Err(stop)
            }
        }
    }

    fn write_files(&self, name: &str) -> io::Result<()> {
        let folder = self.folder.display();
        let config = format!(
            "state_dir = \"{folder}/state\"\nruntime_dir = \"{folder}/run\"\nrate_card = \"{folder}/ratecard.toml\"\n\
             enforcement = \"enforce\"\n\n[cgroup]\nparent = \"{name}\"\n\n[status]\nlisten = \"off\"\n\n[warn]\nterminals = \"off\"\n\n[gpu]\nnvml = \"off\"\n"
        );
        std::fs::write(self.config_path(), config)?;
        std::fs::write(self.card_path(), CARD)?;
        std::fs::create_dir(self.folder.join("receipts"))
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    fn config_path(&self) -> PathBuf {
        self.folder.join("meterd.toml")
    }

    /// The rate card's file.
    pub(super) fn card_path(&self) -> PathBuf {
        self.folder.join("ratecard.toml")
    }

    /// The agent's state.
    pub(super) fn state_dir(&self) -> PathBuf {
        self.folder.join("state")
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("run/meterd.sock")
    }

    pub(super) fn elapsed_s(&self) -> u64 {
        self.began.elapsed().as_secs()
    }

    /// This program in one of the demo's parts, in a process group of its own so that a Ctrl-C reaches the demo alone, which then ends it.
    fn part(&self, name: &str, log: &str) -> io::Result<Command> {
        let log = File::create(self.folder.join(log))?;
        let mut command = Command::new(THIS_PROGRAM);
        command.arg0("meterd").args(["demo-part", name, "--parent", &std::process::id().to_string()]);
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // A service manager's messages to this process are not for its children.
        for variable in
            ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "RUNTIME_DIRECTORY"]
        {
            command.env_remove(variable);
        }
        Ok(command)
    }

    /// Starts the agent; gives its pid.
    pub(super) fn start_agent(&mut self) -> io::Result<u32> {
        let agent = self.part("agent", "agent.log")?.arg("--config").arg(self.config_path()).spawn()?;
        let pid = agent.id();
        self.agent = Some(agent);
        Ok(pid)
    }

    /// Starts a job.
    pub(super) fn start_job(&mut self, plan: JobPlan) -> io::Result<()> {
        let runner = self
            .part("run", &format!("{}.log", plan.name))?
            .arg("--socket")
            .arg(self.socket())
            .args(["--job", plan.name, "--account", plan.account])
            .args(["--cpu-percent", &plan.cpu_percent.to_string(), "--memory-mib", &plan.memory_mib.to_string()])
            .spawn()?;
        self.jobs.push(DemoJob { plan, runner, process: None, ending: false });
        Ok(())
    }

    /// Finds a job's own process by what it has written; none before it has.
    pub(super) fn find_process(&mut self, index: usize) -> Result<Look<()>, Stop> {
        const STEP: &str = "jobs start";
        let job = &self.jobs[index];
        let text = std::fs::read_to_string(self.folder.join(format!("{}.log", job.plan.name))).unwrap_or_default();
        let told = text.lines().find_map(|line| line.strip_prefix(STARTED)).filter(|_| text.ends_with('\n'));
        let Some((pid, used)) = told.and_then(|told| told.split_once(' ')) else {
            return Ok(Look::NotYet(format!("job {}: {:?}", job.plan.name, text.trim_end())));
        };
        let (Ok(pid), Ok(used_before_ns)) = (pid.parse::<u32>(), used.trim().parse()) else {
            return Err(Stop::failed(STEP, "a job tells its pid", text));
        };
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pidfd = raw.ok_or(rustix::io::Errno::SRCH).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let pidfd = pidfd.map_err(|errno| Stop::failed(STEP, format!("job {} lives as process {pid}", job.plan.name), errno))?;
        let place = Place::of(pid, self.cgroups.as_ref());
        let place = place.map_err(|seen| Stop::failed(STEP, format!("job {} is in a cgroup of its own", job.plan.name), seen))?;
        self.jobs[index].process = Some(JobProcess { pid, pidfd, used_before_ns, place });
        Ok(Look::Done(()))
    }

    /// Has anything happened that ends the demo? Its agent and its jobs live until it ends them itself.
    pub(super) fn check(&mut self) -> Result<(), Stop> {
        const STEP: &str = "agent and jobs live until the demo ends them";
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(Stop::Interrupted);
        }
        if let Some(why) = self.screen.closed() {
            return Err(Stop::failed("output", "standard output takes what is printed", why));
        }
        let died = |status: ExitStatus| format!("it has ended: {status}");
        if let Some(agent) = &mut self.agent
            && let Some(status) = agent.try_wait().map_err(|error| Stop::failed(STEP, "the agent can be waited for", error))?
        {
            return Err(Stop::failed(STEP, "the agent runs", format!("{}{}", died(status), last_line(&self.folder.join("agent.log")))));
        }
        for job in self.jobs.iter_mut().filter(|job| !job.ending) {
            let status = job.runner.try_wait().map_err(|error| Stop::failed(STEP, "jobs can be waited for", error))?;
            if let Some(status) = status {
                let log = last_line(&self.folder.join(format!("{}.log", job.plan.name)));
                let seen = format!("{}, which this demo did not ask for{log}", died(status));
                return Err(Stop::failed(STEP, format!("job {} runs", job.plan.name), seen));
            }
        }
        Ok(())
    }

    /// Looks until it is done, checking all the while that the rest stands. With `tables`, prints one each second.
    pub(super) fn until<T>(
        &mut self,
        step: &'static str,
        expected: &str,
        tables: Tables,
        mut look: impl FnMut(&mut Stage) -> Result<Look<T>, Stop>,
    ) -> Result<T, Stop> {
        let deadline = Instant::now() + SOON * if tables == Tables::Shown { 3 } else { 1 };
        loop {
            self.check()?;
            let seen = match look(self)? {
                Look::Done(value) => return Ok(value),
                Look::NotYet(seen) => seen,
            };
            if deadline < Instant::now() {
                return Err(Stop::failed(step, expected, format!("{seen}, when the time for it was over")));
            }
            if tables == Tables::Shown {
                self.table_if_due()?;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Lets a time pass, checking all the while that all stands.
    pub(super) fn pause(&mut self, length: Duration, tables: Tables) -> Result<(), Stop> {
        let until = Instant::now() + length;
        while Instant::now() < until {
            self.check()?;
            if tables == Tables::Shown {
                self.table_if_due()?;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    fn table_if_due(&mut self) -> Result<(), Stop> {
        if self.last_table.is_none_or(|last| TABLE_EVERY <= last.elapsed()) {
            self.last_table = Some(Instant::now());
            self.table()?;
        }
        Ok(())
    }

    /// Prints how all stands.
    pub(super) fn table(&mut self) -> Result<(), Stop> {
        let shown = self.shown().map_err(|error| Stop::failed("live table", "the agent answers", error))?;
        let elapsed_s = self.elapsed_s();
        if shown.jobs.is_empty() {
            return Ok(()); // the first picture with jobs in it is still to come
        }
        self.screen.table(&shown, elapsed_s);
        Ok(())
    }

    /// Asks the agent.
    pub(super) fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.client.read(path).and_then(typed)
    }

    /// Has the agent do something.
    pub(super) fn post(&self, path: &str, body: &Value) -> Result<(), Failure> {
        self.client.write(path, body).map(drop)
    }

    /// How all stands: jobs and accounts in the order of their names.
    pub(super) fn shown(&self) -> Result<Shown, Failure> {
        let mut jobs = self.read::<Jobs>("/v1/jobs")?.jobs;
        jobs.sort_by(|a, b| a.job.cmp(&b.job));
        let accounts = self.read::<Accounts>("/v1/accounts")?.accounts;
        Ok(Shown { jobs, accounts: accounts.into_iter().filter_map(|account| account.node).collect() })
    }

    /// The job of that name.
    pub(super) fn job(&self, name: &str) -> Option<&DemoJob> {
        self.jobs.iter().find(|job| job.plan.name == name)
    }

    /// Has all jobs begin.
    pub(super) fn let_jobs_go(&self) -> Result<(), Stop> {
        for job in &self.jobs {
            let Some(process) = &job.process else { continue };
            let sent = pidfd_send_signal(&process.pidfd, GO);
            sent.map_err(|errno| Stop::failed("jobs start", format!("job {} can be told to begin", job.plan.name), errno))?;
        }
        Ok(())
    }

    /// Asks every job to end (SIGTERM to its runner, which passes it on).
    pub(super) fn ask_jobs_to_end(&mut self) {
        for job in &mut self.jobs {
            job.ending = true;
            signal(&mut job.runner, Signal::TERM);
        }
    }

    /// How a job's runner ended, if it has.
    pub(super) fn ended(&mut self, index: usize) -> io::Result<Option<ExitStatus>> {
        self.jobs[index].runner.try_wait()
    }

    /// Asks the agent to end, and waits.
    pub(super) fn end_agent(&mut self) -> Result<ExitStatus, String> {
        let Some(mut agent) = self.agent.take() else { return Err("there is no agent".to_owned()) };
        signal(&mut agent, Signal::TERM);
        let ended = wait_within(&mut agent, ENDS_WITHIN);
        if ended.is_none() {
            kill(&mut agent);
        }
        ended.ok_or_else(|| format!("it did not end within {} s", ENDS_WITHIN.as_secs()))
    }

    /// Ends every process that the demo started, removes the cgroups, and the folder unless it is to be kept.
    pub(super) fn take_down(&mut self, folder: Kept) -> Result<(), Stop> {
        for job in &mut self.jobs {
            if let Some(process) = &job.process {
                // One that has ended already is no error; another process can never be hit.
                let _ = pidfd_send_signal(&process.pidfd, Signal::KILL);
            }
        }
        for job in &mut self.jobs {
            // It sees its job end, and reaps it. One whose agent is gone would try to report for long.
            if wait_within(&mut job.runner, Duration::from_millis(500)).is_none() {
                kill(&mut job.runner);
            }
        }
        let mut left = Vec::new();
        if self.agent.is_some()
            && let Err(why) = self.end_agent()
        {
            left.push(format!("the agent: {why}"));
        }
        if let Some(Err(why)) = self.cgroups.take().map(|tree| tree.remove()) {
            left.push(why);
        }
        if folder == Kept::No
            && let Err(error) = std::fs::remove_dir_all(&self.folder)
        {
            left.push(format!("{}: {error}", self.folder.display()));
        }
        if left.is_empty() { Ok(()) } else { Err(Stop::failed("clean-up", "nothing is left behind", left.join("; "))) }
    }
}

/// Are tables printed meanwhile?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tables {
    Shown,
    Quiet,
}

/// A name that no other demo has: this process, and when.
fn unique_name() -> String {
    format!("meterd-demo-{}-{:x}", std::process::id(), crate::node::clock::now().wall.0)
}

fn make_folder(base: &Path, name: &str) -> Result<PathBuf, Stop> {
    const STEP: &str = "state folder";
    let writable = || format!("a folder can be made in {}", base.display());
    let base = base.canonicalize().map_err(|error| Stop::failed(STEP, writable(), error))?;
    let folder = base.join(name);
    let text = folder.to_str().filter(|text| !text.contains(['"', '\\']) && !text.chars().any(char::is_control));
    if text.is_none() {
        return Err(Stop::failed(STEP, "a path in plain text", folder.display()));
    }
    let socket = folder.join("run/meterd.sock");
    if SOCKET_BYTES_MAX < socket.as_os_str().len() {
        return Err(Stop::failed(STEP, format!("a path of at most {SOCKET_BYTES_MAX} bytes for the socket"), socket.display()));
    }
    std::fs::DirBuilder::new().mode(0o700).create(&folder).map_err(|error| Stop::failed(STEP, writable(), error))?;
    Ok(folder)
}

/// Cgroups where they can be used. Where they cannot: process trees for an ordinary user, and the end for root, who could use them.
fn choose_mode(parent: &str) -> Result<(Option<CgroupTree>, String), Stop> {
    let uid = rustix::process::geteuid();
    match CgroupTree::make(parent) {
        Ok(tree) => {
            let mode = tree.to_string();
            Ok((Some(tree), mode))
        }
        Err(why) if uid.is_root() => {
            let expected = "root can make cgroups here (process trees are for other users)";
            Err(Stop::failed("cgroup tree", expected, why))
        }
        Err(why) => {
            let mode = format!("process trees by /proc, SIGSTOP, SIGCONT and SIGKILL: user {} has no cgroups here ({why})", uid.as_raw());
            Ok((None, mode))
        }
    }
}

/// What a log says last, as the end of a sentence.
fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().rfind(|line| !line.trim().is_empty()).map_or_else(String::new, |line| format!("; its log ends: {line}"))
}

/// One that has ended is left alone; one that has not is not reaped yet, so the pid is its own.
fn signal(child: &mut Child, signal: Signal) {
    if matches!(child.try_wait(), Ok(None)) {
        let _ = kill_process(Pid::from_child(child), signal);
    }
}

fn kill(child: &mut Child) {
    let _ = child.kill(); // one that has ended already is no error
    let _ = child.wait();
}

fn wait_within(child: &mut Child, within: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + within;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            Ok(None) | Err(_) => return None,
        }
    }
}
