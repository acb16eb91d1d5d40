//! What was stored of jobs: the receipts of those that ended and those of the running ones as they stand, from the agent or from its files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::client::{Client, Failure, job_path, typed};
use super::complain;
use crate::domain::agent::{Agent, Settings};
use crate::domain::enforcement::Enforcement;
use crate::domain::id::{Attempt, BootId};
use crate::domain::ladder::Ladder;
use crate::domain::meter::Host;
use crate::domain::receipt::Receipt;
use crate::domain::time::{Boot, Nanos, Wall};
use crate::domain::view::JobView;
use crate::node::{daemon, journal};
use crate::sqlite::Writing;

/// Where to read.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Stored {
    /// Read the files in the agent's `state_dir`, running or not; without it, the agent is asked, which shows what you may see. Given several
    /// times, the folders of several nodes are one report.
    #[arg(long, value_name = "DIR")]
    pub(super) state_dir: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Page {
    receipts: Vec<Receipt>,
    next: Option<Attempt>,
}

#[derive(Deserialize)]
struct Jobs {
    jobs: Vec<JobView>,
}

impl Stored {
    /// The receipts of all jobs that ended then or later, or go on.
    pub(super) fn receipts(&self, socket: &Path, ended_since: Wall) -> Result<Vec<Receipt>, Failure> {
        if self.state_dir.is_empty() {
            return from_agent(&Client::new(socket)?, ended_since);
        }
        let mut found = Vec::new();
        for dir in &self.state_dir {
            found.extend(from_files(dir, ended_since)?);
        }
        Ok(found)
    }
}

fn from_agent(client: &Client, ended_since: Wall) -> Result<Vec<Receipt>, Failure> {
    let mut found: Vec<Receipt> = Vec::new();
    let mut after = Some(Attempt(0));
    while let Some(from) = after {
        let path = format!("/v1/receipts?after={from}&ended_since={}", ended_since.0);
        let page: Page = typed(patiently(|| client.read(&path))?)?;
        found.extend(page.receipts);
        after = page.next;
    }
    // Those that go on, that have ended and owe something still, and that ended since the last page.
    let Jobs { jobs } = typed(client.read("/v1/jobs")?)?;
    let closed: BTreeSet<Attempt> = found.iter().map(|receipt| receipt.attempt).collect();
    let wanted = |job: &&JobView| !closed.contains(&job.attempt) && job.ended.is_none_or(|ended| ended_since <= ended.0);
    for job in jobs.iter().filter(wanted) {
        let receipt: Receipt = typed(patiently(|| client.read(&job_path(job.job.as_str(), "/receipt")))?)?;
        found.extend(Some(receipt).filter(|receipt| receipt.attempt == job.attempt));
    }
    Ok(found)
}

/// Users may make so many calls a second; who reads much waits.
fn patiently<T>(mut call: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    const TRIES: usize = 30;
    for _ in 0..TRIES {
        match call() {
            Err(Failure::Refused(reasons)) if reasons.iter().any(|reason| reason.code == "too_many_calls") => {
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
            done => return done,
        }
    }
    call()
}

/// The agent's state, as the journal has it.
pub(super) fn recovered(dir: &Path) -> Result<Agent, Failure> {
    let (recovered, _) = journal::look(dir, Writing::Goes).map_err(Failure::other)?;
    daemon::recover(&recovered).map_err(Failure::other)
}

fn from_files(dir: &Path, ended_since: Wall) -> Result<Vec<Receipt>, Failure> {
    let mut found = closed(dir, ended_since)?;
    for folder in journal::list_aside(dir) {
        match closed(&folder, ended_since) {
            Ok(receipts) => found.extend(receipts),
            Err(failure) => complain(&format!("{}: set aside, and not read: {failure}", folder.display())),
        }
    }
    let agent = recovered(dir)?;
    let node = agent.outstanding.as_ref().map(|asked| asked.request.node.clone());
    let settings = Settings {
        node: node.map_or_else(|| "node".parse(), Ok).map_err(Failure::other)?,
        boot: BootId([0; 16]),
        enforcement: Enforcement::Observe,
        interval: Nanos::from_secs(1),
        host: Host::default(),
        ladder: Ladder::default(),
        woke_at: Boot::default(),
        provider: None,
    };
    found.extend(agent.jobs.values().map(|job| Receipt::of(job, &agent, &settings)));
    Ok(found)
}

/// The receipts of a journal's closed jobs.
fn closed(dir: &Path, ended_since: Wall) -> Result<Vec<Receipt>, Failure> {
    let mut found = Vec::new();
    let mut after = Attempt(0);
    loop {
        let page = journal::read_receipts_page(dir, after, ended_since, 1_000).map_err(Failure::other)?;
        let Some(last) = page.last() else { return Ok(found) };
        after = last.attempt;
        for row in &page {
            let unread = |error: serde_json::Error| Failure::Other(format!("the receipt of attempt {}: {error}", row.attempt));
            found.push(serde_json::from_str(&row.json).map_err(unread)?);
        }
    }
}
