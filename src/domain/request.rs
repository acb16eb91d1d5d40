//! The bodies of the local API's requests, read from JSON with every mistake named at once.

use serde::Serialize;
use serde_json::{Value, json};

mod account;
mod payment;

pub(crate) use account::read_policy;
pub use account::{CreateAccount, parse_policy};
pub use payment::{Amount, Pay, SettlePayment, Vouch};

use super::act::SlurmJob;
use super::enforcement::Enforcement;
use super::form::{Fault, Field, Mistake, Presence, Table, quoted, read_json};
use super::gang::Gang;
use super::id::{AccountId, GpuId, JobName, Uid};
use super::ladder::{JobPolicy, WarnSignal};
use super::money::{Credits, NANO};
use super::outcome::Outcome;
use super::rates::Traits;
use super::rates::rules::read_stated;
use super::terms::Report;
use super::time::Nanos;
use super::wire::OnExhaustion;

/// Largest body, in bytes.
pub const BODY_BYTES_MAX: usize = 64 << 10;
/// Most cgroups of one job.
pub const CGROUPS_MAX: usize = 64;
/// Most GPUs of one job.
pub const GPUS_MAX: usize = 256;
/// Largest top-up: 10^15 credits.
pub const TOP_UP_MAX: Credits = Credits::from_nano(1_000_000_000_000_000 * NANO);

/// The highest uid that is one: 2^32 - 1 means "none" to the kernel.
const UID_MAX: u32 = u32::MAX - 1;
/// The kernel's `PID_MAX_LIMIT`.
const PID_MAX: u32 = 4_194_304;
const DAY_S: u64 = 86_400;
/// Ten years.
const TIME_LIMIT_S_MAX: u64 = 3_650 * DAY_S;
const CPUS_MAX: u32 = 1 << 16;
/// 1 EiB.
const MEMORY_BYTES_MAX: u64 = 1 << 60;
const GPU_INDEX_MAX: u32 = 255;
/// Totals above this are a slip: no hook counts so far.
const COUNTER_MAX: u64 = 1 << 62;
/// More nodes than any machine has.
const GANG_SIZE_MAX: u32 = 1 << 20;
const SLUID_BYTES_MAX: usize = 32;

/// Where a job's tasks are, as a caller says it; the edge looks it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In these cgroup directories (absolute paths). `{"cgroups": ["/…"]}`
    Cgroups(Vec<String>),
    /// Wherever Slurm has put its job. `{"slurm": {"job_id": 1, "sluid": "…"}}`
    Slurm(SlurmJob),
    /// In the process with this pid, and its descendants. `{"process": {"pid": 1}}`
    Process(u32),
    /// In a cgroup that the agent is to make. `{"own": true}`
    Own,
}

/// A GPU as a caller names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GpuWanted {
    /// By its NVML UUID.
    Id(GpuId),
    /// By its index at this moment.
    Index(u32),
}

/// Start metering a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartRequest {
    /// What it is called.
    pub job: JobName,
    /// Who pays.
    pub account: AccountId,
    /// For whom it runs (`uid`); else for the caller.
    pub owner: Option<Uid>,
    /// Where its tasks are.
    pub place: Place,
    /// What it holds; each once.
    pub gpus: Vec<GpuWanted>,
    /// How long it may run (`time_limit_s`).
    pub time_limit: Option<Nanos>,
    /// How many CPUs it may use at once.
    pub cpus: Option<u32>,
    /// How much memory it may use.
    pub memory_bytes: Option<u64>,
    /// What is to be done with it without credit (`on_exhaustion`: `terminate` or `kill`), and by which signal it is warned (`warn_signal`).
    pub policy: JobPolicy,
    /// What is stated of it, for rate lines that select by that: `{"tier": "spot"}`.
    pub traits: Traits,
    /// Storage that is provisioned for it.
    pub storage_bytes: Option<u64>,
    /// The most that is paid for the start: it is refused if this node asks for more.
    pub bid: Option<Credits>,
    /// The gang that it is a part of: `{"name": "mpi-17", "attempt": 0, "size": 4}`.
    pub gang: Option<Gang>,
}

/// A job is given something else from now on. What is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeRequest {
    /// The GPUs that it holds from now on: all of them.
    pub gpus: Option<Vec<GpuWanted>>,
    /// CPUs.
    pub cpus: Option<u32>,
    /// Memory.
    pub memory_bytes: Option<u64>,
    /// Storage.
    pub storage_bytes: Option<u64>,
    /// These take the place of those of the same kind: `{"tier": "spot"}`.
    pub traits: Traits,
}

/// A job has ended, or is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopRequest {
    /// How; one of [`Outcome::STATED`].
    pub outcome: Outcome,
    /// With which exit code.
    pub exit_code: Option<i32>,
}

/// Change how far the agent goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetEnforcement {
    /// From now on.
    pub mode: Enforcement,
}

impl StartRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn parse(text: &str) -> Result<StartRequest, Vec<Mistake>> {
        read_json(text, BODY_BYTES_MAX, |table| {
            let job = table.field("job").name().required();
            let account = table.field("account").name().required();
            let owner = table.field("uid").integer(0..=UID_MAX).check(|uid| Ok(Uid(uid))).optional();
            let place = read_place(table);
            let gpus = table.field("gpus").set(GPUS_MAX, read_gpu).or(Vec::new());
            let time_limit = table.field("time_limit_s").seconds(1..=TIME_LIMIT_S_MAX).optional();
            let cpus = table.field("cpus").integer(0..=CPUS_MAX).optional();
            let memory_bytes = table.field("memory_bytes").integer(0..=MEMORY_BYTES_MAX).optional();
            let stop = [("terminate", OnExhaustion::Terminate), ("kill", OnExhaustion::Kill)];
            let on_exhaustion = table.field("on_exhaustion").word(&stop).optional();
            let warn_signal = table.field("warn_signal").word(&WarnSignal::ALL).optional();
            let traits = table.field("traits").table(read_stated).or(Traits::new());
            let storage_bytes = table.field("storage_bytes").integer(0..=MEMORY_BYTES_MAX).optional();
            let bid = table.field("bid").amount(TOP_UP_MAX).optional();
            let gang = table.field("gang").table(read_gang).optional();
            Some(StartRequest {
                job: job?,
                account: account?,
                owner: owner?,
                place: place?,
                gpus: gpus?,
                time_limit: time_limit?,
                cpus: cpus?,
                memory_bytes: memory_bytes?,
                policy: JobPolicy { on_exhaustion: on_exhaustion?, warn_signal: warn_signal? },
                traits: traits?,
                storage_bytes: storage_bytes?,
                bid: bid?,
                gang: gang?,
            })
        })
    }

    /// The body as JSON, for whoever sends it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut body = json!({ "job": self.job, "account": self.account });
        let (key, place) = self.place.to_json();
        body[key] = place;
        if !self.gpus.is_empty() {
            body["gpus"] = self.gpus.iter().map(GpuWanted::to_json).collect();
        }
        put(&mut body, "uid", self.owner.map(|uid| uid.0));
        put(&mut body, "time_limit_s", self.time_limit.map(whole_seconds));
        put(&mut body, "cpus", self.cpus);
        put(&mut body, "memory_bytes", self.memory_bytes);
        put(&mut body, "on_exhaustion", self.policy.on_exhaustion);
        put(&mut body, "warn_signal", self.policy.warn_signal);
        put(&mut body, "traits", Some(&self.traits).filter(|traits| !traits.is_empty()));
        put(&mut body, "storage_bytes", self.storage_bytes);
        put(&mut body, "bid", self.bid);
        if let Some(Gang { name, attempt, size }) = &self.gang {
            body["gang"] = json!({ "name": name, "attempt": attempt });
            put(&mut body["gang"], "size", *size);
        }
        body
    }
}

/// Sets a key where there is a value.
fn put<T: Serialize>(body: &mut Value, key: &str, value: Option<T>) {
    if let Some(value) = value {
        body[key] = json!(value);
    }
}

/// Whole seconds, rounded up: every length in a body is one.
fn whole_seconds(length: Nanos) -> u64 {
    length.0.div_ceil(1_000_000_000)
}

impl Place {
    const KEYS: [&str; 4] = ["cgroups", "slurm", "process", "own"];

    fn to_json(&self) -> (&'static str, Value) {
        match self {
            Place::Cgroups(paths) => ("cgroups", json!(paths)),
            Place::Slurm(SlurmJob { job_id, sluid: None }) => ("slurm", json!({ "job_id": job_id })),
            Place::Slurm(SlurmJob { job_id, sluid }) => ("slurm", json!({ "job_id": job_id, "sluid": sluid })),
            Place::Process(pid) => ("process", json!({ "pid": pid })),
            Place::Own => ("own", json!(true)),
        }
    }
}

/// Exactly one of the four keys. Each that stands there is read, so that its own mistakes are named too.
fn read_place(table: &Table<'_>) -> Option<Place> {
    let given: Vec<&str> = Place::KEYS.into_iter().filter(|key| table.holds(key) == Presence::Given).collect();
    let cgroups = table.field("cgroups").set(CGROUPS_MAX, |path| path.absolute_path().required());
    let cgroups = cgroups.check(|paths| if paths.is_empty() { Err(no_cgroup()) } else { Ok(Place::Cgroups(paths)) }).optional();
    let slurm = table.field("slurm").table(read_slurm).optional();
    let process = table.field("process").table(|process| process.field("pid").integer(1..=PID_MAX).required()).optional();
    let own = table.field("own").boolean().check(|own| if own { Ok(Place::Own) } else { Err(not_own()) }).optional();
    if given.len() != 1 {
        let found = if given.is_empty() { "none".to_owned() } else { given.join(" and ") };
        let message = format!("where the job's tasks are is said once, found {found}");
        table.note(Fault::new("one_place", message).hint(format!("give exactly one of {}", Place::KEYS.join(", "))));
    }
    let (cgroups, slurm, process, own) = (cgroups?, slurm?, process?, own?);
    cgroups.or(slurm.map(Place::Slurm)).or(process.map(Place::Process)).or(own)
}

fn no_cgroup() -> Fault {
    Fault::new("out_of_range", "an empty list names no cgroup").hint("at least one; {\"own\": true} has one made")
}

fn not_own() -> Fault {
    Fault::new("out_of_range", "false says nothing").hint("true, or leave it out")
}

fn read_slurm(table: &Table<'_>) -> Option<SlurmJob> {
    let job_id = table.field("job_id").integer(1..=u64::from(u32::MAX)).required();
    let sluid = table.field("sluid").text(SLUID_BYTES_MAX).check(|text| {
        // It becomes part of a directory's name.
        let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if plain { Ok(text) } else { Err(Fault::new("malformed", format!("{} is not a SLUID", quoted(&text))).hint("letters and digits")) }
    });
    let sluid = sluid.optional();
    Some(SlurmJob { job_id: job_id?, sluid: sluid? })
}

fn read_gang(table: &Table<'_>) -> Option<Gang> {
    let name = table.field("name").name().required();
    let attempt = table.field("attempt").integer(0..=u32::MAX).or(0);
    let size = table.field("size").integer(1..=GANG_SIZE_MAX).optional();
    Some(Gang { name: name?, attempt: attempt?, size: size? })
}

fn read_gpu(field: Field<'_>) -> Option<GpuWanted> {
    if field.is_integer() {
        return field.integer(0..=GPU_INDEX_MAX).check(|index| Ok(GpuWanted::Index(index))).required();
    }
    let id = field.name().check(|id: GpuId| {
        let uuid = ["GPU-", "MIG-"].iter().any(|prefix| id.as_str().starts_with(prefix));
        let fault = || {
            Fault::new("not_a_gpu", format!("{} is no GPU", quoted(id.as_str()))).hint("a UUID as \"GPU-…\" or \"MIG-…\", or an index as 0")
        };
        if uuid { Ok(GpuWanted::Id(id)) } else { Err(fault()) }
    });
    id.required()
}

impl GpuWanted {
    fn to_json(&self) -> Value {
        match self {
            GpuWanted::Id(id) => json!(id),
            GpuWanted::Index(index) => json!(index),
        }
    }
}

impl ChangeRequest {
    /// Reads a body: `{"gpus": [0, 1], "traits": {"tier": "spot"}}`.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn parse(text: &str) -> Result<ChangeRequest, Vec<Mistake>> {
        read_json(text, BODY_BYTES_MAX, |table| {
            let gpus = table.field("gpus").set(GPUS_MAX, read_gpu).optional();
            let cpus = table.field("cpus").integer(0..=CPUS_MAX).optional();
            let memory_bytes = table.field("memory_bytes").integer(0..=MEMORY_BYTES_MAX).optional();
            let storage_bytes = table.field("storage_bytes").integer(0..=MEMORY_BYTES_MAX).optional();
            let traits = table.field("traits").table(read_stated).or(Traits::new());
            let request =
                ChangeRequest { gpus: gpus?, cpus: cpus?, memory_bytes: memory_bytes?, storage_bytes: storage_bytes?, traits: traits? };
            if request == ChangeRequest::default() {
                table.note(Fault::new("out_of_range", "nothing is to change").hint("gpus, cpus, memory_bytes, storage_bytes or traits"));
            }
            Some(request)
        })
    }

    /// The body as JSON, for whoever sends it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut body = json!({});
        put(&mut body, "gpus", self.gpus.as_ref().map(|gpus| gpus.iter().map(GpuWanted::to_json).collect::<Vec<Value>>()));
        put(&mut body, "cpus", self.cpus);
        put(&mut body, "memory_bytes", self.memory_bytes);
        put(&mut body, "storage_bytes", self.storage_bytes);
        put(&mut body, "traits", Some(&self.traits).filter(|traits| !traits.is_empty()));
        body
    }
}

/// Reads what a hook reports: `{"counter": "tokens", "total": 1500000}` or `{"event": "request", "id": "r-17"}`.
///
/// # Errors
/// Every mistake in it.
pub fn read_report(text: &str) -> Result<Report, Vec<Mistake>> {
    read_json(text, BODY_BYTES_MAX, |table| {
        let counter = table.field("counter").name().optional();
        let total = table.field("total").integer(0..=COUNTER_MAX).optional();
        let event = table.field("event").name().optional();
        let id = table.field("id").name().optional();
        match (counter?, total?, event?, id?) {
            (Some(name), Some(total), None, None) => Some(Report::Counter { name, total }),
            (None, None, Some(name), Some(id)) => Some(Report::Event { name, id }),
            _ => {
                table.note(
                    Fault::new("one_report", "a counter with its total, or an event with its id")
                        .hint("{\"counter\": \"tokens\", \"total\": 17}"),
                );
                None
            }
        }
    })
}

/// What a hook reports as JSON, for whoever sends it.
#[must_use]
pub fn report_to_json(report: &Report) -> Value {
    match report {
        Report::Counter { name, total } => json!({ "counter": name, "total": total }),
        Report::Event { name, id } => json!({ "event": name, "id": id }),
    }
}

impl StopRequest {
    /// Reads a body: `{"outcome": "completed", "exit_code": 0}`.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn parse(text: &str) -> Result<StopRequest, Vec<Mistake>> {
        read_json(text, BODY_BYTES_MAX, |table| {
            let outcome = table.field("outcome").word(&Outcome::STATED.map(|outcome| (outcome.name(), outcome))).required();
            let exit_code = table.field("exit_code").integer(i32::MIN..=i32::MAX).optional();
            Some(StopRequest { outcome: outcome?, exit_code: exit_code? })
        })
    }

    /// The body as JSON, for whoever sends it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut body = json!({ "outcome": self.outcome });
        put(&mut body, "exit_code", self.exit_code);
        body
    }
}

impl SetEnforcement {
    /// Reads a body: `{"mode": "observe"}`.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn parse(text: &str) -> Result<SetEnforcement, Vec<Mistake>> {
        read_json(text, BODY_BYTES_MAX, |table| {
            let mode = table.field("mode").word(&Enforcement::ALL.map(|mode| (mode.name(), mode))).required();
            Some(SetEnforcement { mode: mode? })
        })
    }

    /// The body as JSON, for whoever sends it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({ "mode": self.mode })
    }
}

#[cfg(test)]
mod tests;
