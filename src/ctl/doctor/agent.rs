//! The agent itself: does it answer, what does it say of itself, and has it what it needs?

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::Findings;
use crate::ctl::client::{Client, Failure, typed};
use crate::domain::enforcement::Enforcement;
use crate::domain::job::Phase;
use crate::domain::rates::Card;
use crate::domain::view::JobView;
use crate::node::clock;
use crate::node::config::{AuthorityConfig, CardSource, Config};
use crate::node::status::Status;

/// How long the agent may take over an answer here.
const WITHIN: Duration = Duration::from_secs(5);
/// Facts that may wait for the disk.
const LAG_MAX: u64 = 10_000;
/// One tick in so many may be left out.
const MISSED_ONE_IN: u64 = 100;
/// Jobs that are named one by one.
const NAMED_MAX: usize = 5;
/// Descriptors for each job, and for everything else.
const DESCRIPTORS_EACH: u64 = 6;
const DESCRIPTORS_REST: u64 = 128;

/// What is known of the agent.
#[derive(Debug)]
pub(super) struct Agent {
    /// The process that holds the journal's lock, if one does.
    pub(super) writer: Option<Writer>,
    /// What it says of itself, if it answers.
    pub(super) status: Option<Status>,
}

/// The process that writes the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writer {
    /// This one.
    Pid(i32),
    /// One that is not seen from here (another pid namespace).
    Unseen,
}

#[derive(Deserialize)]
struct Jobs {
    jobs: Vec<JobView>,
}

pub(super) fn look(socket: &Path, config: &Config, findings: &mut Findings) -> Result<Agent, Failure> {
    socket_file(socket, findings);
    let client = Client::within(socket, WITHIN)?;
    let writer = writer(config);
    let status: Option<Status> = match client.read("/v1/status").and_then(typed) {
        Ok(status) => Some(status),
        Err(failure) => {
            let why = failure.to_string().lines().next().unwrap_or_default().to_owned();
            match writer {
                Some(writer) => {
                    let who = if let Writer::Pid(pid) = writer { format!("process {pid}") } else { "a process".to_owned() };
                    findings.error(
                        "agent_silent",
                        format!("{who} holds the journal, and {why}"),
                        "journalctl -u meterd; systemctl restart meterd",
                    );
                }
                None => findings.error("agent_down", why, "systemctl start meterd; journalctl -u meterd tells why it ended"),
            }
            None
        }
    };
    if let Some(status) = &status {
        says(status, config, findings);
        let jobs: Vec<JobView> = client.read("/v1/jobs").and_then(typed).map_or_else(|_| Vec::new(), |jobs: Jobs| jobs.jobs);
        blind(&jobs, findings);
        authority(client.read("/v1/accounts"), findings);
        if let Some(Writer::Pid(pid)) = writer {
            descriptors(pid, jobs.iter().filter(|job| job.phase != Phase::Ended).count(), findings);
        }
    }
    Ok(Agent { writer, status })
}

/// Everybody must be able to connect: who may do what is told by the kernel.
fn socket_file(socket: &Path, findings: &mut Findings) {
    let shown = socket.display();
    if let Some(folder) = socket.parent()
        && let Ok(found) = std::fs::metadata(folder)
    {
        let mode = found.mode() & 0o7777;
        if mode & 0o002 != 0 && mode & 0o1000 == 0 {
            let finding = format!("everybody may replace the socket in {} (mode {mode:o})", folder.display());
            findings.error("runtime_dir_exposed", finding, format!("chmod 755 {}", folder.display()));
        }
        if mode & 0o001 == 0 {
            let finding = format!("users and hooks cannot reach the socket in {} (mode {mode:o})", folder.display());
            findings.warning("runtime_dir_closed", finding, format!("chmod 755 {}", folder.display()));
        }
    }
    let Ok(found) = std::fs::symlink_metadata(socket) else { return };
    if !found.file_type().is_socket() {
        return findings.error(
            "socket_replaced",
            format!("{shown} is not a socket"),
            format!("rm {shown}; systemctl restart meterd.socket meterd"),
        );
    }
    let mode = found.mode() & 0o777;
    if mode & 0o666 != 0o666 {
        let finding = format!("not everybody may connect to {shown} (mode {mode:o})");
        findings.error("socket_closed", finding, format!("chmod 666 {shown}; SocketMode=0666 in meterd.socket"));
    }
}

/// Who holds the lock, as the kernel tells: to try it could keep an agent from starting.
fn writer(config: &Config) -> Option<Writer> {
    let lock = std::fs::metadata(config.state_dir.join("journal.lock")).ok()?;
    let held = procfs::locks().ok()?.into_iter().find(|held| held.inode == lock.ino() && held.lock_type == procfs::LockType::FLock)?;
    Some(held.pid.filter(|pid| 0 < *pid).map_or(Writer::Unseen, Writer::Pid))
}

fn says(status: &Status, config: &Config, findings: &mut Findings) {
    for reason in &status.not_ready {
        findings.error(&reason.code, reason.message.clone(), remedy(&reason.code));
    }
    if let Some(why) = &status.card_refused {
        findings.warning(
            "rate_card_refused",
            format!("the newest rate card is refused: {why}"),
            "correct it, raise its version, systemctl reload meterd",
        );
    }
    card_in_force(status, config, findings);
    let lag = status.journal.seq.zip(status.journal.durable_seq).map_or(0, |(seq, durable)| seq.saturating_sub(durable));
    if LAG_MAX < lag {
        findings.warning("journal_slow", format!("{lag} facts wait for the disk"), "find out who saturates the disk of state_dir");
    }
    let agent = &status.agent;
    if agent.tick_count / MISSED_ONE_IN < agent.tick_missed_count && MISSED_ONE_IN < agent.tick_count {
        let finding = format!("{} of {} ticks were left out", agent.tick_missed_count, agent.tick_count + agent.tick_missed_count);
        findings.warning("ticks_missed", finding, "the node is overloaded, or interval_ms is too short for its jobs");
    }
    if let Some(what) = &agent.over_budget {
        let finding = format!("the agent costs more {what} than its budget, and looks at jobs less often");
        findings.warning("over_budget", finding, "find out why (meterctl top: how many jobs?), or raise [budget]");
    }
    for (thread, scheduling) in [("loop", &agent.loop_scheduling), ("hands", &agent.hands_scheduling)] {
        if let Some(why) = scheduling.strip_prefix("as any other thread: ") {
            let finding = format!("the {thread} runs without real-time priority ({why}): on a busy node jobs are stopped late");
            findings.warning(
                "no_real_time",
                finding,
                "LimitRTPRIO=1 in the unit; with cgroup v1, a real-time budget (cpu.rt_runtime_us) for its cgroup",
            );
        }
    }
    if status.version != env!("CARGO_PKG_VERSION") {
        let finding = format!("the agent that runs is version {}, what is installed is {}", status.version, env!("CARGO_PKG_VERSION"));
        findings.warning("version_differs", finding, "systemctl restart meterd: jobs run on meanwhile");
    }
    if status.enforcement == Some(Enforcement::Observe) {
        findings.advice(
            "only_observing",
            "no job is stopped, whatever its account has left",
            "meterctl enforcement enforce, once you trust what it would do",
        );
    }
}

fn remedy(code: &str) -> &'static str {
    match code {
        "no_picture" | "stale_picture" => "journalctl -u meterd; a loop that stands still is restarted by systemd's watchdog",
        "no_rate_card" => "meterd --check-config; effective_from of the card may lie ahead",
        "journal_full" => "make room on the disk of state_dir: the agent goes on by itself",
        "authority_silent" => "journalctl -u meterd says why; jobs run on their grants, and then freeze",
        _ => "journalctl -u meterd says more",
    }
}

/// A card that was installed and not taken.
fn card_in_force(status: &Status, config: &Config, findings: &mut Findings) {
    if matches!(&config.authority, AuthorityConfig::Network(network) if network.card == CardSource::Authority) {
        return; // the authority's card may well be the newer one
    }
    let Some(text) = std::fs::read_to_string(&config.rate_card).ok() else { return };
    let (Ok(card), Some(in_force)) = (Card::parse(&text, ""), &status.card) else { return };
    if card.effective_from <= clock::now().wall && card.digest != in_force.digest && status.card_refused.is_none() {
        let finding =
            format!("{} version {} is in force, and the file has {} version {}", in_force.name, in_force.version, card.name, card.version);
        findings.warning("rate_card_not_loaded", finding, "systemctl reload meterd");
    }
}

fn blind(jobs: &[JobView], findings: &mut Findings) {
    let blind: Vec<&JobView> = jobs.iter().filter(|job| job.phase != Phase::Ended && !job.missing.is_empty()).collect();
    for job in blind.iter().take(NAMED_MAX) {
        let why = job.missing.first().map_or(String::new(), ToString::to_string);
        let remedy = format!("meterctl why {}; what cannot be read is not charged", job.job);
        findings.warning("job_unreadable", format!("{} cannot be read: {why}", job.job), remedy);
    }
    if NAMED_MAX < blind.len() {
        let finding = format!("{} more jobs cannot be read", blind.len() - NAMED_MAX);
        findings.warning("job_unreadable", finding, "meterctl jobs marks them as blind");
    }
}

fn authority(accounts: Result<Value, Failure>, findings: &mut Findings) {
    if let Err(failure) = accounts {
        let why = failure.to_string().lines().next().unwrap_or_default().to_owned();
        findings.error("authority_unreachable", format!("the authority does not answer: {why}"), "journalctl -u meterd says why");
    }
}

fn descriptors(pid: i32, jobs: usize, findings: &mut Findings) {
    let Ok(process) = procfs::process::Process::new(pid) else { return };
    let (Ok(limits), Ok(used)) = (process.limits(), process.fd_count()) else { return };
    let procfs::process::LimitValue::Value(limit) = limits.max_open_files.soft_limit else { return };
    let (jobs, used) = (u64::try_from(jobs).unwrap_or(u64::MAX), u64::try_from(used).unwrap_or(u64::MAX));
    if limit < used.saturating_add(DESCRIPTORS_REST).max(jobs.saturating_mul(DESCRIPTORS_EACH).saturating_add(DESCRIPTORS_REST)) {
        let finding = format!("the agent has {used} of at most {limit} files open, with {jobs} jobs");
        findings.warning("few_descriptors", finding, "LimitNOFILE=65536 in the unit; then restart it");
    }
}
