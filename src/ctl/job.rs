//! `meterctl job`: start and stop, by hand or from a scheduler's hook.
//!
//! A hook has two seconds and must never fail for the agent's sake: a prolog that ends with anything but 0 drains the node. What the
//! agent does not take in time is written down for it. Only if that fails too does a hook's call end with 75.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use serde_json::Value;

use super::client::{Client, Failure, job_path};
use super::exit::Exit;
use super::quantity;
use super::{complain, print};
use crate::domain::act::SlurmJob;
use crate::domain::gang::Gang;
use crate::domain::id::{AccountId, GpuId, JobName, LineId, Uid};
use crate::domain::ladder::{JobPolicy, WarnSignal};
use crate::domain::money::Credits;
use crate::domain::outcome::Outcome;
use crate::domain::rates::Trait;
use crate::domain::request::{ChangeRequest, GpuWanted, Place, StartRequest, StopRequest, report_to_json};
use crate::domain::terms::Report;
use crate::domain::time::Nanos;
use crate::domain::wire::OnExhaustion;
use crate::node::clock;
use crate::node::spool::{Call, Spool};

/// What a hook's call to the agent may take; what is left of its two seconds is for writing it down.
const HOOK_WITHIN: Duration = Duration::from_millis(1_300);

/// Start and stop.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start metering a job.
    Start(Box<StartArguments>),
    /// Report that a job has ended. It is metered until its last task is gone.
    Stop(StopArguments),
    /// Report that a running job is given something else from now on: it is priced anew from there.
    Change(Box<ChangeArguments>),
    /// Report a job's own counter: its total since the start. The greatest total holds, so the same may be said twice.
    Count(CountArguments),
    /// Report an event of a job, with an id: said twice it counts once.
    Event(EventArguments),
}

/// How a hook calls.
#[derive(Debug, Args)]
struct Hook {
    /// Called by a scheduler's hook: two seconds in all, exit code 0 whatever the agent says, and the call is written to the spool
    /// if the agent does not answer.
    #[arg(long)]
    hook: bool,
    /// Where a hook's calls are written down.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/meterd/spool")]
    spool: PathBuf,
}

/// A job's resources, as stated.
#[derive(Clone, Debug, Args)]
pub(super) struct Resources {
    /// The GPUs that it holds: indices or UUIDs, with commas between.
    #[arg(long, value_delimiter = ',', value_parser = gpu, value_name = "GPU,…")]
    pub(super) gpus: Vec<GpuWanted>,
    /// How long it may run: 90s, 15m, 2h, 1d.
    #[arg(long, value_parser = quantity::length, value_name = "LENGTH")]
    pub(super) time_limit: Option<Nanos>,
    /// How many CPUs it may use at once, 0 for none; for the price expected at its start, and for lines that price what was stated.
    #[arg(long)]
    pub(super) cpus: Option<u32>,
    /// How much memory it may use: 4GiB, 512MiB, 0 for none; for the price expected at its start, and for lines that price what was stated.
    #[arg(long, value_parser = quantity::storage, value_name = "SIZE")]
    pub(super) memory: Option<u64>,
    /// How much storage is provisioned for it: 100GB, 1TiB, 0 for none.
    #[arg(long, value_parser = quantity::storage, value_name = "SIZE")]
    pub(super) storage: Option<u64>,
    /// What happens to it without credit, where that is stricter than its account's policy.
    #[arg(long, value_enum)]
    on_exhaustion: Option<Stop>,
    /// The signal that warns it when credit is short.
    #[arg(long, value_parser = warn_signal, value_name = "SIGNAL")]
    warn_signal: Option<WarnSignal>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Stop {
    /// Frozen; then SIGTERM, and SIGKILL after the account's grace.
    Terminate,
    /// Frozen; then killed.
    Kill,
}

impl Resources {
    pub(super) fn policy(&self) -> JobPolicy {
        let on_exhaustion = self.on_exhaustion.map(|stop| match stop {
            Stop::Terminate => OnExhaustion::Terminate,
            Stop::Kill => OnExhaustion::Kill,
        });
        JobPolicy { on_exhaustion, warn_signal: self.warn_signal }
    }
}

fn warn_signal(text: &str) -> Result<WarnSignal, String> {
    let plain = text.strip_prefix("SIG").unwrap_or(text);
    let found = WarnSignal::ALL.into_iter().find(|(name, _)| *name == plain);
    found.map(|(_, signal)| signal).ok_or_else(|| format!("one of {}", WarnSignal::ALL.map(|(name, _)| name).join(", ")))
}

/// What to start.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("place").required(true).args(["cgroup", "slurm_job", "pid"]))]
pub(super) struct StartArguments {
    /// What the job is called.
    #[arg(long)]
    job: JobName,
    /// Who pays.
    #[arg(long)]
    account: AccountId,
    /// A cgroup directory with its tasks; may be given several times.
    #[arg(long, value_name = "DIR")]
    cgroup: Vec<String>,
    /// Its number in Slurm.
    #[arg(long, value_name = "ID")]
    slurm_job: Option<u64>,
    /// Its unique id in Slurm (`SLURM_JOB_SLUID`).
    #[arg(long, value_name = "SLUID", requires = "slurm_job")]
    slurm_sluid: Option<String>,
    /// A process: it and its descendants.
    #[arg(long)]
    pid: Option<u32>,
    /// For which user it runs; else for the caller.
    #[arg(long)]
    uid: Option<u32>,
    /// What rate lines may select by: `tier=spot`, `partition=gpu` …; may be given several times.
    #[arg(long = "trait", value_parser = read_trait, value_name = "NAME=VALUE")]
    traits: Vec<(Trait, LineId)>,
    /// The most that is paid for the start: where this node asks for more, it is refused.
    #[arg(long, value_name = "CREDITS")]
    bid: Option<Credits>,
    /// It is a part of this job on several nodes: all its parts freeze and thaw together, and have one line on a report.
    #[arg(long, value_name = "NAME")]
    gang: Option<JobName>,
    /// Which run of that job it is; all parts of one run say the same.
    #[arg(long, value_name = "NUMBER", default_value_t = 0, requires = "gang")]
    gang_attempt: u32,
    /// Of how many parts that job is.
    #[arg(long, value_name = "NUMBER", requires = "gang")]
    gang_size: Option<u32>,
    #[command(flatten)]
    resources: Resources,
    #[command(flatten)]
    hook: Hook,
}

/// What a job is given from now on. What is left out stays.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("changed").required(true).multiple(true).args(["gpus", "cpus", "memory", "storage", "traits"]))]
pub(super) struct ChangeArguments {
    /// The job.
    job: JobName,
    /// All GPUs that it holds from now on: indices or UUIDs, with commas between; "" for none.
    #[arg(long, value_parser = gpu_list, value_name = "GPU,…")]
    gpus: Option<GpuList>,
    /// CPUs.
    #[arg(long)]
    cpus: Option<u32>,
    /// Memory.
    #[arg(long, value_parser = quantity::storage, value_name = "SIZE")]
    memory: Option<u64>,
    /// Storage.
    #[arg(long, value_parser = quantity::storage, value_name = "SIZE")]
    storage: Option<u64>,
    /// What rate lines may select by, in the place of what was said before: `tier=spot` …; may be given several times.
    #[arg(long = "trait", value_parser = read_trait, value_name = "NAME=VALUE")]
    traits: Vec<(Trait, LineId)>,
    #[command(flatten)]
    hook: Hook,
}

/// A counter.
#[derive(Debug, Args)]
pub(super) struct CountArguments {
    /// The job.
    job: JobName,
    /// The counter, as the rate card names it.
    name: LineId,
    /// Its total since the job's start.
    total: u64,
    #[command(flatten)]
    hook: Hook,
}

/// An event.
#[derive(Debug, Args)]
pub(super) struct EventArguments {
    /// The job.
    job: JobName,
    /// What happened, as the rate card names it.
    name: LineId,
    /// Which one it was.
    id: LineId,
    #[command(flatten)]
    hook: Hook,
}

/// What has ended, and how.
#[derive(Debug, Args)]
pub(super) struct StopArguments {
    /// The job.
    job: JobName,
    /// How it ended; without it, told from the exit code.
    #[arg(long)]
    outcome: Option<Stated>,
    /// With which exit code.
    #[arg(long, allow_negative_numbers = true)]
    exit_code: Option<i32>,
    #[command(flatten)]
    hook: Hook,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Stated {
    Completed,
    Failed,
    Cancelled,
    TimedOut,
    OutOfMemory,
    Unknown,
    Preempted,
    Infrastructure,
    Validation,
}

impl From<Stated> for Outcome {
    fn from(stated: Stated) -> Outcome {
        match stated {
            Stated::Completed => Outcome::Completed,
            Stated::Failed => Outcome::Failed,
            Stated::Cancelled => Outcome::Cancelled,
            Stated::TimedOut => Outcome::TimedOut,
            Stated::OutOfMemory => Outcome::OutOfMemory,
            Stated::Unknown => Outcome::Unknown,
            Stated::Preempted => Outcome::Preempted,
            Stated::Infrastructure => Outcome::Infrastructure,
            Stated::Validation => Outcome::Validation,
        }
    }
}

/// Reads `tier=spot`.
pub(super) fn read_trait(text: &str) -> Result<(Trait, LineId), String> {
    let known = || Trait::ALL.map(|(name, _)| name).join(", ");
    let wrong = || format!("{text:?} is no trait: write NAME=VALUE, with one of {}", known());
    let (name, value) = text.split_once('=').ok_or_else(wrong)?;
    let which = Trait::ALL.iter().find(|(known, _)| *known == name).ok_or_else(wrong)?.1;
    Ok((which, value.parse().map_err(|error| format!("{value:?}: {error}"))?))
}

fn gpu(text: &str) -> Result<GpuWanted, String> {
    if let Ok(index) = text.parse() {
        return Ok(GpuWanted::Index(index));
    }
    text.parse::<GpuId>().map(GpuWanted::Id).map_err(|_| format!("{text:?} is no GPU: write an index or a UUID (GPU-…)"))
}

#[derive(Clone, Debug)]
struct GpuList(Vec<GpuWanted>);

fn gpu_list(text: &str) -> Result<GpuList, String> {
    text.split(',').filter(|word| !word.is_empty()).map(gpu).collect::<Result<_, _>>().map(GpuList)
}

impl ChangeArguments {
    fn request(&self) -> ChangeRequest {
        ChangeRequest {
            gpus: self.gpus.as_ref().map(|list| list.0.clone()),
            cpus: self.cpus,
            memory_bytes: self.memory,
            storage_bytes: self.storage,
            traits: self.traits.iter().cloned().collect(),
        }
    }
}

impl StartArguments {
    fn request(&self) -> StartRequest {
        let place = match (self.slurm_job, self.pid) {
            (Some(job_id), _) => Place::Slurm(SlurmJob { job_id, sluid: self.slurm_sluid.clone() }),
            (None, Some(pid)) => Place::Process(pid),
            (None, None) => Place::Cgroups(self.cgroup.clone()),
        };
        StartRequest {
            job: self.job.clone(),
            account: self.account.clone(),
            owner: self.uid.map(Uid),
            place,
            gpus: self.resources.gpus.clone(),
            time_limit: self.resources.time_limit,
            cpus: self.resources.cpus,
            memory_bytes: self.resources.memory,
            policy: self.resources.policy(),
            traits: self.traits.iter().cloned().collect(),
            storage_bytes: self.resources.storage,
            bid: self.bid,
            gang: self.gang.clone().map(|name| Gang { name, attempt: self.gang_attempt, size: self.gang_size }),
        }
    }
}

impl StopArguments {
    fn request(&self) -> StopRequest {
        let told = match self.exit_code {
            Some(0) => Outcome::Completed,
            Some(_) => Outcome::Failed,
            None => Outcome::Unknown,
        };
        StopRequest { outcome: self.outcome.map_or(told, Outcome::from), exit_code: self.exit_code }
    }
}

pub(super) fn main(socket: &Path, command: Command) -> Result<Exit, Failure> {
    let (hook, call) = match command {
        Command::Start(start) => {
            let request = start.request();
            (start.hook, Call::Start(request))
        }
        Command::Stop(stop) => {
            let request = stop.request();
            (stop.hook, Call::Stop(stop.job, request))
        }
        Command::Change(change) => {
            let request = change.request();
            (change.hook, Call::Change(change.job, request))
        }
        Command::Count(CountArguments { job, name, total, hook }) => (hook, Call::Report(job, Report::Counter { name, total })),
        Command::Event(EventArguments { job, name, id, hook }) => (hook, Call::Report(job, Report::Event { name, id })),
    };
    if hook.hook {
        return Ok(from_hook(socket, &hook.spool, &call));
    }
    let answer = make(&Client::new(socket)?, &call)?;
    print(&answer_text(&call, &answer));
    Ok(Exit::Done)
}

/// Makes the call.
fn make(client: &Client, call: &Call) -> Result<Value, Failure> {
    match call {
        Call::Start(request) => client.write("/v1/jobs", &request.to_json()),
        Call::Stop(job, request) => client.write(&job_path(job.as_str(), "/stop"), &request.to_json()),
        Call::Change(job, request) => client.write(&job_path(job.as_str(), "/change"), &request.to_json()),
        Call::Report(job, report) => client.write(&job_path(job.as_str(), "/count"), &report_to_json(report)),
    }
}

fn answer_text(call: &Call, answer: &Value) -> String {
    match call {
        Call::Start(request) => {
            let known = if answer["novelty"] == "repeated" { ", as before" } else { "" };
            format!("job {} is metered as attempt {}{known}\n", request.job, answer["attempt"])
        }
        Call::Change(job, _) if answer["novelty"] == "repeated" => format!("job {job} is given that already\n"),
        Call::Change(job, _) => format!("job {job} goes on in a new segment\n"),
        Call::Report(job, _) => format!("job {job}: {}\n", if answer["novelty"] == "repeated" { "known already" } else { "counted" }),
        Call::Stop(job, _) => {
            let phase = answer["phase"].as_str().unwrap_or("ended");
            let goes_on = if phase == "ended" { "" } else { "; it is metered until its last task is gone" };
            format!("the end of job {job} is noted ({phase}{goes_on})\n")
        }
    }
}

/// Makes a hook's call, or leaves it to the agent. It is written down before: whoever kills this program does not end the call with it.
fn from_hook(socket: &Path, spool: &Path, call: &Call) -> Exit {
    let at = clock::now().wall;
    let written = Spool::open_or_make(spool).and_then(|open| open.begin(at, call).map(|file| (open, file)));
    let made = Client::within(socket, HOOK_WITHIN).and_then(|client| make(&client, call));
    let decided = made.map_or_else(
        |failure| {
            complain(&failure.to_string());
            !failure.is_passing() // the agent said no: it would say so again
        },
        |_| true,
    );
    let left = match (decided, written) {
        (true, Ok((open, file))) => {
            let _ = open.withdraw(&file); // read once it is old, it has no effect
            return Exit::Done;
        }
        (true, Err(_)) => return Exit::Done,
        (false, written) => written.and_then(|(open, file)| open.leave(&file)),
    };
    match left {
        Ok(file) => {
            complain(&format!("written down for the agent as {}", spool.join(file).display()));
            Exit::Done
        }
        Err(error) => {
            complain(&format!("and it cannot be written down in {}: {error}", spool.display()));
            Exit::NotSpooled
        }
    }
}
