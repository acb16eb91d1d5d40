//! The processes of the demo besides itself: its agent, and the jobs that burn CPU and hold memory.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use rustix::time::{ClockId, clock_gettime};

use crate::ctl::run;
use crate::domain::id::{AccountId, JobName};
use crate::domain::ladder::JobPolicy;
use crate::domain::rates::Traits;
use crate::domain::request::{Place, StartRequest};

/// This program, whatever has become of its file meanwhile.
pub(super) const THIS_PROGRAM: &str = "/proc/self/exe";

/// A job's first line begins so; its pid and the nanoseconds of CPU time that the process used before follow.
pub(super) const STARTED: &str = "job process ";

/// Has a job begin. Before it, a job uses next to nothing: however slow the machine is, no credit is gone before all jobs stand ready.
pub(super) const GO: Signal = Signal::USR1;

/// Between two looks whether [`GO`] has come.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A job spreads its burning over periods of this length.
const PERIOD: Duration = Duration::from_millis(50);

/// One process of the demo.
#[derive(Debug, clap::Subcommand)]
pub enum Part {
    /// Becomes the agent.
    Agent {
        /// The demo's pid: the process ends with it.
        #[arg(long)]
        parent: i32,
        /// The agent's configuration.
        #[arg(long)]
        config: PathBuf,
    },
    /// Does what `meterctl run` does, with the demo's own job as the command.
    Run {
        /// The demo's pid: the process ends with it.
        #[arg(long)]
        parent: i32,
        /// The agent's socket.
        #[arg(long)]
        socket: PathBuf,
        /// The job's name.
        #[arg(long)]
        job: JobName,
        /// Who pays.
        #[arg(long)]
        account: AccountId,
        /// Percent of one CPU.
        #[arg(long)]
        cpu_percent: u32,
        /// MiB of memory.
        #[arg(long)]
        memory_mib: usize,
    },
    /// Waits for [`GO`], then burns and holds until SIGTERM, then exits 0.
    Job {
        /// The pid of the process that runs the job: this one ends with it.
        #[arg(long)]
        parent: i32,
        /// Percent of one CPU.
        #[arg(long)]
        cpu_percent: u32,
        /// MiB of memory, every page of it written.
        #[arg(long)]
        memory_mib: usize,
    },
}

/// Plays one part.
#[must_use]
pub fn play(part: &Part) -> ExitCode {
    let played = match part {
        Part::Run { parent, socket, job, account, cpu_percent, memory_mib } => match end_with(*parent, Signal::KILL) {
            Ok(()) => return run_job(socket, job, account, *cpu_percent, *memory_mib),
            Err(error) => Err(error),
        },
        Part::Agent { parent, config } => end_with(*parent, Signal::TERM).and_then(|()| become_agent(config)),
        Part::Job { parent, cpu_percent, memory_mib } => end_with(*parent, Signal::KILL).and_then(|()| burn(*cpu_percent, *memory_mib)),
    };
    match played {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Asks the kernel to end this process when the demo ends in whatever way (`PR_SET_PDEATHSIG`; it outlives exec).
fn end_with(parent: i32, signal: Signal) -> std::io::Result<()> {
    set_parent_process_death_signal(Some(signal))?;
    // Where the job is a process tree, its reaper stands between, which ends with the parent as well.
    let above = |pid: i32| procfs::process::Process::new(pid).and_then(|process| process.stat()).map(|stat| stat.ppid).ok();
    let own = getppid().map(|pid| pid.as_raw_nonzero().get());
    if own == Some(parent) || own.and_then(above) == Some(parent) { Ok(()) } else { Err(std::io::Error::other("the demo has ended")) }
}

fn become_agent(config: &Path) -> std::io::Result<()> {
    Err(Command::new(THIS_PROGRAM).arg0("meterd").arg("--config").arg(config).exec())
}

fn run_job(socket: &Path, job: &JobName, account: &AccountId, cpu_percent: u32, memory_mib: usize) -> ExitCode {
    let request = StartRequest {
        policy: JobPolicy::default(),
        traits: Traits::new(),
        job: job.clone(),
        account: account.clone(),
        owner: None,
        place: Place::Own,
        gpus: Vec::new(),
        time_limit: None,
        cpus: None,
        memory_bytes: None,
        storage_bytes: None,
        bid: None,
        gang: None,
    };
    let parent = std::process::id().to_string();
    let (cpu, memory) = (cpu_percent.to_string(), memory_mib.to_string());
    let command = [THIS_PROGRAM, "demo-part", "job", "--parent", &parent, "--cpu-percent", &cpu, "--memory-mib", &memory];
    run::run(socket, &request, &command.map(OsString::from), run::IfKilled::Ends)
}

/// Says on its output who it is and how much CPU time it used before it became itself ([`STARTED`]), waits for [`GO`], then burns.
fn burn(cpu_percent: u32, memory_mib: usize) -> std::io::Result<()> {
    let ending = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&ending))?;
    let go = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(GO.as_raw(), Arc::clone(&go))?;
    let mut output = std::io::stdout();
    writeln!(output, "{STARTED}{} {}", std::process::id(), cpu_time(ClockId::ProcessCPUTime).as_nanos())?;
    output.flush()?;
    while !go.load(Ordering::Relaxed) && !ending.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK_EVERY);
    }
    let held = vec![1_u8; memory_mib << 20];
    let share = PERIOD * cpu_percent / 100;
    while !ending.load(Ordering::Relaxed) {
        let until = cpu_time(ClockId::ThreadCPUTime) + share;
        let mut spent = Duration::ZERO;
        while spent < until {
            (0..10_000_u32).for_each(|number| {
                std::hint::black_box(number);
            });
            spent = cpu_time(ClockId::ThreadCPUTime);
        }
        std::thread::sleep(PERIOD.saturating_sub(share));
    }
    std::hint::black_box(&held);
    Ok(())
}

fn cpu_time(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    Duration::from_secs(part(time.tv_sec)) + Duration::from_nanos(part(time.tv_nsec))
}
