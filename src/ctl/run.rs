//! `meterctl run`: a command as a metered job, with its terminal, signals and exit code as if it had been called itself.
//!
//! The parent starts a child of itself; the child asks the agent, which puts the child into the job's cgroup before it answers, and then
//! becomes the command. So not one instruction of the command runs unmetered, and a refused job never runs. The child tells the parent
//! how far it came through a socket that closes when the command begins. Without a cgroup the child stays above the command ([`reaper`]).

mod reaper;

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal, set_parent_process_death_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use super::client::{Client, Failure, job_path};
use super::complain;
use super::exit::Exit;
use super::job::{Resources, read_trait};
use crate::domain::act::Target;
use crate::domain::id::{AccountId, Epoch, JobName, LineId, Uid};
use crate::domain::money::Credits;
use crate::domain::outcome::Outcome;
use crate::domain::rates::Trait;
use crate::domain::request::{Place, StartRequest, StopRequest};
use crate::domain::time::Nanos;
use crate::node::access::prefix;
use crate::node::process_tree::adopt_orphans;

/// Between SIGTERM at the time limit and SIGKILL.
const GRACE: Duration = Duration::from_secs(10);
/// Two interrupts within this time end the command.
const TWICE_WITHIN: Duration = Duration::from_secs(2);
/// For how long the end is reported again while the agent does not answer. The agent sees for itself that the job is empty.
const REPORT_WITHIN: Duration = Duration::from_secs(3);
/// What a shell says of a command that is not there, …
const NOT_FOUND: u8 = 127;
/// … and of one that cannot be run.
const NOT_EXECUTABLE: u8 = 126;

/// What to run, and on whose account.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Who pays.
    #[arg(long)]
    account: AccountId,
    /// What the job is called; for an ordinary user it begins with u<uid>-. Without it, a name is made.
    #[arg(long)]
    job: Option<JobName>,
    #[command(flatten)]
    resources: Resources,
    /// What rate lines may select by: `tier=spot`, `label=night` …; may be given several times.
    #[arg(long = "trait", value_parser = read_trait, value_name = "NAME=VALUE")]
    traits: Vec<(Trait, LineId)>,
    /// The most that is paid for the start: where this node asks for more, it is refused.
    #[arg(long, value_name = "CREDITS")]
    bid: Option<Credits>,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// How the parent calls its child.
#[derive(Debug, clap::Args)]
pub struct ChildArguments {
    /// The agent's socket.
    #[arg(long)]
    agent: PathBuf,
    /// The name, in the abstract namespace, of the parent's socket.
    #[arg(long)]
    tell: String,
    /// The start request, in JSON.
    #[arg(long)]
    request: String,
    /// End when the parent is killed.
    #[arg(long)]
    ends_with_parent: bool,
    /// What to become.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

#[cfg(test)]
impl Arguments {
    pub(super) fn command(&self) -> &[OsString] {
        &self.command
    }
}

pub(super) fn main(socket: &Path, arguments: &Arguments) -> ExitCode {
    let uid = Uid(rustix::process::geteuid().as_raw());
    let job = arguments.job.clone().or_else(|| made_name(uid, &arguments.command));
    let Some(job) = job else {
        complain("no name can be made for the job: give one with --job");
        return Exit::Failed.into();
    };
    let resources = &arguments.resources;
    let request = StartRequest {
        job,
        account: arguments.account.clone(),
        owner: None,
        place: Place::Own,
        gpus: resources.gpus.clone(),
        time_limit: resources.time_limit,
        cpus: resources.cpus,
        memory_bytes: resources.memory,
        policy: resources.policy(),
        traits: arguments.traits.iter().cloned().collect(),
        storage_bytes: resources.storage,
        bid: arguments.bid,
        gang: None,
    };
    run(socket, &request, &arguments.command, IfKilled::GoesOn)
}

/// What becomes of the command if this program is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfKilled {
    /// It goes on, and is metered.
    GoesOn,
    /// It ends, as far as it is the kernel that ends children with their parent (`PR_SET_PDEATHSIG`).
    Ends,
}

/// Runs a command as a job, and ends as it ends. The calling program must have [`become_command`] behind its subcommand `run-child`.
#[must_use]
pub fn run(socket: &Path, request: &StartRequest, command: &[OsString], if_killed: IfKilled) -> ExitCode {
    let ended = Parent::start(socket, request, command, if_killed).and_then(|parent| parent.watch(request.time_limit));
    match ended {
        Ok(ended) => {
            if let Some(stop) = ended.stop {
                report(socket, &request.job, stop);
            }
            ExitCode::from(ended.code)
        }
        Err(failure) => {
            complain(&failure.to_string());
            failure.exit().into()
        }
    }
}

/// A name that is free: the user's prefix, the command, this process and some random bits.
fn made_name(uid: Uid, command: &[OsString]) -> Option<JobName> {
    let program = Path::new(command.first()?).file_name()?.to_string_lossy().into_owned();
    let plain: String = program.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' }).take(40).collect();
    format!("{}{plain}-{}-{}", prefix(uid), std::process::id(), &random()?[..6]).parse().ok()
}

/// 128 random bits in hexadecimal.
fn random() -> Option<String> {
    let mut bytes = [0_u8; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    (filled == Ok(bytes.len())).then(|| Epoch(bytes).to_string())
}

/// What the parent hears while it waits.
enum Event {
    /// The command runs, or how the child ended before that.
    Told(Told),
    /// The command runs below the child: this is the one to signal.
    Below(OwnedFd),
    /// The child has ended.
    Ended(ExitStatus),
    /// A signal came.
    Signal(i32),
}

/// How far the child came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// The job is metered, and the command runs.
    Running,
    /// The job is metered, and the command could not be run.
    NotRun,
    /// There is no job.
    NoJob,
}

impl Told {
    /// From all that the child wrote.
    fn read(text: &str) -> Told {
        match text {
            "started\n" => Told::Running,
            "started\nnot run\n" => Told::NotRun,
            _ => Told::NoJob,
        }
    }
}

struct Parent {
    pidfd: OwnedFd,
    events: Receiver<Event>,
}

/// How the command ended.
#[derive(Debug, PartialEq, Eq)]
struct Ended {
    /// For this program's caller.
    code: u8,
    /// For the agent; none if there was no job.
    stop: Option<StopRequest>,
}

impl Parent {
    fn start(socket: &Path, request: &StartRequest, command: &[OsString], if_killed: IfKilled) -> Result<Parent, Failure> {
        // Before the child: from now on no signal ends this process, which has to report the end.
        let signals = Signals::new([SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGINT, SIGQUIT]).map_err(Failure::other)?;
        let tell = format!("meterctl-run-{}", random().ok_or_else(|| Failure::other("the kernel gave no random number"))?);
        let address = SocketAddr::from_abstract_name(&tell).map_err(Failure::other)?;
        let listener = UnixListener::bind_addr(&address).map_err(Failure::other)?;
        let child = Command::new("/proc/self/exe")
            .arg("run-child")
            .arg("--agent")
            .arg(socket)
            .args((if_killed == IfKilled::Ends).then_some("--ends-with-parent"))
            .args(["--tell", &tell, "--request", &request.to_json().to_string(), "--"])
            .args(command)
            .spawn()
            .map_err(|error| Failure::other(format!("cannot start a child of this program: {error}")))?;
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).map_err(Failure::other)?;
        let watched = pidfd.try_clone().map_err(Failure::other)?;
        let (sender, events) = channel();
        let from_signals = sender.clone();
        std::thread::spawn(move || hear_signals(signals, &from_signals));
        std::thread::spawn(move || hear_child(child, &listener, &watched, &sender));
        Ok(Parent { pidfd, events })
    }

    /// Waits for the end, passing signals on and keeping the time limit.
    fn watch(mut self, time_limit: Option<Nanos>) -> Result<Ended, Failure> {
        let mut told = Told::NoJob;
        let mut passed_on = Vec::new();
        let mut limit = Limit::None;
        let mut asked_to_end = false;
        let mut interrupted: Option<Instant> = None;
        loop {
            match self.next(limit.at())? {
                Some(Event::Told(how)) => {
                    told = how;
                    if let (Told::Running, Some(length)) = (told, time_limit) {
                        limit = Limit::Term(Instant::now() + Duration::from_nanos(length.0));
                    }
                }
                Some(Event::Below(command)) => {
                    // What was sent before went to the child, which passes nothing on.
                    self.pidfd = command;
                    passed_on.drain(..).for_each(|signal| self.signal(signal));
                }
                Some(Event::Signal(SIGINT)) => {
                    asked_to_end = true;
                    if interrupted.is_some_and(|at| at.elapsed() < TWICE_WITHIN) {
                        self.signal(Signal::KILL);
                    }
                    interrupted = Some(Instant::now());
                }
                Some(Event::Signal(SIGQUIT)) => asked_to_end = true,
                Some(Event::Signal(number)) => {
                    asked_to_end |= number == SIGTERM || number == SIGHUP;
                    if let Some(signal) = Signal::from_named_raw(number) {
                        self.signal(signal);
                        passed_on.push(signal);
                    }
                }
                Some(Event::Ended(status)) => return Ok(ended(told, status, limit, asked_to_end)),
                None => limit = self.enforce(limit),
            }
        }
    }

    /// What comes next; none if `until` comes first.
    fn next(&self, until: Option<Instant>) -> Result<Option<Event>, Failure> {
        let lost = || Failure::other("the command is out of sight");
        let Some(until) = until else { return self.events.recv().map(Some).map_err(|_| lost()) };
        match self.events.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(lost()),
        }
    }

    fn enforce(&self, limit: Limit) -> Limit {
        match limit {
            Limit::Term(_) => {
                complain("the time limit is reached");
                self.signal(Signal::TERM);
                Limit::Kill(Instant::now() + GRACE)
            }
            Limit::Kill(_) | Limit::Reached | Limit::None => {
                self.signal(Signal::KILL);
                Limit::Reached
            }
        }
    }

    /// One that has ended already is no error.
    fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }
}

/// Where the time limit stands.
#[derive(Clone, Copy, Debug)]
enum Limit {
    /// There is none.
    None,
    /// SIGTERM at this instant.
    Term(Instant),
    /// SIGTERM was sent; SIGKILL at this instant.
    Kill(Instant),
    /// SIGKILL was sent.
    Reached,
}

impl Limit {
    fn at(self) -> Option<Instant> {
        match self {
            Limit::Term(at) | Limit::Kill(at) => Some(at),
            Limit::None | Limit::Reached => None,
        }
    }

    fn is_reached(self) -> bool {
        matches!(self, Limit::Kill(_) | Limit::Reached)
    }
}

fn ended(told: Told, status: ExitStatus, limit: Limit, asked_to_end: bool) -> Ended {
    let number = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    let code = u8::try_from(number).unwrap_or(Exit::Failed.code());
    let outcome = if limit.is_reached() {
        Outcome::TimedOut
    } else if status.success() {
        Outcome::Completed
    } else if asked_to_end {
        Outcome::Cancelled
    } else {
        Outcome::Failed
    };
    let stop = (told != Told::NoJob).then_some(StopRequest { outcome, exit_code: Some(number) });
    Ended { code, stop }
}

fn hear_signals(mut signals: Signals, sender: &Sender<Event>) {
    for signal in signals.forever() {
        if sender.send(Event::Signal(signal)).is_err() {
            return;
        }
    }
}

fn hear_child(mut child: Child, listener: &UnixListener, pidfd: &OwnedFd, sender: &Sender<Event>) {
    let mut heard = reaper::Heard::default();
    let mut below = false;
    if let Some(stream) = accept_child(listener, pidfd, child.id()) {
        // It ends when the child does, or when the child becomes the command, or when the command below the child has ended.
        while heard.more(&stream) {
            if let Some(command) = heard.command.take() {
                below = true;
                // Should the child be killed, what is below it comes here and not to the machine's first process.
                let _ = adopt_orphans();
                let _ = sender.send(Event::Below(command));
                let _ = sender.send(Event::Told(Told::Running));
            }
        }
    }
    if let Some(status) = heard.ended() {
        let _ = sender.send(Event::Ended(status));
        return;
    }
    if !below {
        let _ = sender.send(Event::Told(Told::read(&heard.text)));
    }
    if let Ok(status) = child.wait() {
        if below {
            reaper::end_orphans();
        }
        let _ = sender.send(Event::Ended(status));
    }
}

/// The child's connection; none if it ends without one. Everybody on the machine can see the socket's name, so others are turned away.
fn accept_child(listener: &UnixListener, pidfd: &OwnedFd, child: u32) -> Option<UnixStream> {
    loop {
        let mut wanted = [PollFd::new(listener, PollFlags::IN), PollFd::new(pidfd, PollFlags::IN)];
        match poll(&mut wanted, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return None,
            Ok(_) => {}
        }
        if wanted[0].revents().contains(PollFlags::IN) {
            let (stream, _) = listener.accept().ok()?;
            let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
            if u32::try_from(peer.pid.as_raw_nonzero().get()) == Ok(child) {
                return Some(stream);
            }
        } else {
            return None;
        }
    }
}

/// Tells the agent how the job ended.
fn report(socket: &Path, job: &JobName, stop: StopRequest) {
    let until = Instant::now() + REPORT_WITHIN;
    loop {
        let told = Client::within(socket, REPORT_WITHIN).and_then(|client| client.write(&job_path(job.as_str(), "/stop"), &stop.to_json()));
        match told {
            Ok(_) => return,
            Err(failure) if failure.is_passing() && Instant::now() < until => std::thread::sleep(Duration::from_millis(200)),
            Err(failure) => {
                complain(&format!("the end of job {job} could not be reported: {failure}"));
                return;
            }
        }
    }
}

/// The child's part: asks the agent, then becomes the command, or what stands above it. It comes back only if that fails, or at the end.
#[must_use]
pub fn become_command(arguments: ChildArguments) -> ExitCode {
    let ChildArguments { agent, tell, request, ends_with_parent, command } = arguments;
    if ends_with_parent && let Err(errno) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return parent_is_gone(&errno.into());
    }
    let address = SocketAddr::from_abstract_name(tell);
    let mut parent = match address.and_then(|address| UnixStream::connect_addr(&address)) {
        Ok(parent) => parent,
        Err(error) => return parent_is_gone(&error),
    };
    let target = match ask(&agent, &request) {
        Ok(target) => target,
        Err(failure) => {
            complain(&failure.to_string());
            return failure.exit().into();
        }
    };
    if let Err(error) = parent.write_all(b"started\n") {
        return parent_is_gone(&error);
    }
    if matches!(target, Target::Processes(_)) {
        return reaper::keep(parent, &command);
    }
    let Some((program, rest)) = command.split_first() else { return Exit::Failed.into() };
    let error = Command::new(program).args(rest).exec();
    not_run(&mut parent, program, &error)
}

/// As a shell would say it.
fn not_run(parent: &mut UnixStream, program: &OsStr, error: &std::io::Error) -> ExitCode {
    complain(&format!("cannot run {}: {error}", program.display()));
    let _ = parent.write_all(b"not run\n");
    ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE })
}

fn parent_is_gone(error: &std::io::Error) -> ExitCode {
    complain(&format!("the parent is gone: {error}"));
    Exit::Failed.into()
}

/// Where the job's tasks are to be.
fn ask(agent: &Path, request: &str) -> Result<Target, Failure> {
    let request = serde_json::from_str(request).map_err(Failure::other)?;
    let answer = Client::new(agent)?.write("/v1/jobs", &request)?;
    serde_json::from_value(answer["target"].clone()).map_err(Failure::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(code: i32) -> ExitStatus {
        ExitStatus::from_raw(code << 8)
    }

    #[test]
    fn a_made_name_is_one_that_its_user_may_give() {
        let name = made_name(Uid(1000), &[OsString::from("/usr/bin/my prog$")]).unwrap();
        assert!(name.as_str().starts_with("u1000-my_prog_-"), "{name}");
        assert_ne!(Some(name), made_name(Uid(1000), &[OsString::from("/usr/bin/my prog$")]));
    }

    #[test]
    fn the_exit_code_is_the_command_s() {
        let end = ended(Told::Running, exited(42), Limit::None, false);
        assert_eq!(end, Ended { code: 42, stop: Some(StopRequest { outcome: Outcome::Failed, exit_code: Some(42) }) });
        let killed = ended(Told::Running, ExitStatus::from_raw(9), Limit::None, false);
        assert_eq!(killed.code, 137);
    }

    #[test]
    fn a_job_that_never_was_is_not_reported() {
        assert_eq!(ended(Told::NoJob, exited(1), Limit::None, false), Ended { code: 1, stop: None });
        assert_eq!(Told::read(""), Told::NoJob);
    }

    #[test]
    fn the_outcome_tells_who_ended_it() {
        let outcome = |status, limit, asked| ended(Told::Running, status, limit, asked).stop.unwrap().outcome;
        assert_eq!(outcome(exited(0), Limit::None, false), Outcome::Completed);
        assert_eq!(outcome(exited(0), Limit::None, true), Outcome::Completed, "it ended well before the signal came");
        assert_eq!(outcome(ExitStatus::from_raw(15), Limit::None, true), Outcome::Cancelled);
        assert_eq!(outcome(ExitStatus::from_raw(15), Limit::Kill(Instant::now()), false), Outcome::TimedOut);
        assert_eq!(outcome(exited(0), Limit::Reached, false), Outcome::TimedOut);
    }
}
