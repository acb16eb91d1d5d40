//! The bodies of the local API's requests, read from JSON with every mistake named at once.

use serde_json::{Value, json};

use super::act::SlurmJob;
use super::bucket::Bucket;
use super::enforcement::Enforcement;
use super::form::Mistake;
use super::id::{AccountId, GpuId, JobName, PaymentId, Uid};
use super::money::{Credits, NANO};
use super::outcome::Outcome;
use super::time::Nanos;
use super::wire::{AccountPolicy, OnExhaustion, StartPredicted};

/// Largest body, in bytes.
pub const BODY_BYTES_MAX: usize = 64 << 10;
/// Most cgroups of one job.
pub const CGROUPS_MAX: usize = 64;
/// Most GPUs of one job.
pub const GPUS_MAX: usize = 256;
/// Largest top-up: 10^15 credits.
pub const TOP_UP_MAX: Credits = Credits::from_nano(1_000_000_000_000_000 * NANO);

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
}

/// A job has ended, or is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopRequest {
    /// How; one of [`Outcome::STATED`].
    pub outcome: Outcome,
    /// With which exit code.
    pub exit_code: Option<i32>,
}

/// Open an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateAccount {
    /// Its name.
    pub account: AccountId,
    /// What its owner wants done.
    pub policy: AccountPolicy,
}

/// Put credit into an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopUp {
    /// How much: positive, at most [`TOP_UP_MAX`].
    pub amount: Credits,
    /// Into which part of the balance.
    pub bucket: Bucket,
    /// By which payment, so that a repeated one is booked once.
    pub payment: Option<PaymentId>,
}

/// Change how far the agent goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetEnforcement {
    /// From now on.
    pub mode: Enforcement,
}

macro_rules! stub { ($($t:ident),*) => { $(impl $t {
    /// Reads a body.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn parse(text: &str) -> Result<Self, Vec<Mistake>> { let _ = text; todo!() }
    /// The body as JSON.
    #[must_use]
    pub fn to_json(&self) -> Value { json!({}) }
})* } }
stub!(StartRequest, StopRequest, CreateAccount, TopUp, SetEnforcement);
