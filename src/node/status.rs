//! The agent in a few lines: counts, modes, how the loop does. Nothing in it is anybody's in particular, so a stranger may see it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::alarm::{Alarm, AlarmView};
use super::handle::{Picture, Stats};
use super::link::LinkStatus;
use crate::domain::correction::Corrections;
use crate::domain::enforcement::Enforcement;
use crate::domain::id::NodeId;
use crate::domain::job::Phase;
use crate::domain::meter::{Host, Reading};
use crate::domain::time::{Mono, Nanos};
use crate::domain::view::{AccountState, CardView, View};

/// A picture that is older than this many intervals means that the loop stands still.
const STALE_AFTER_INTERVALS: u64 = 5;
/// A question that nobody answered for so long means that the authority is stuck.
pub const STUCK_AFTER: Nanos = Nanos::from_secs(30);

/// The agent, in aggregate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// This program.
    pub version: String,
    /// Why it is not ready; empty if it is.
    pub not_ready: Vec<NotReady>,
    /// States that somebody should know of, each with what to do.
    pub alarms: Vec<AlarmView>,
    /// Which machine; none before the first tick, like all that comes from the picture.
    pub node: Option<NodeId>,
    /// RFC 3339: when the picture was taken.
    pub at: Option<String>,
    /// How old it is, in milliseconds.
    pub age_ms: Option<u64>,
    /// Observe, notify or enforce.
    pub enforcement: Option<Enforcement>,
    /// The card in force.
    pub card: Option<CardView>,
    /// Why the newest card is not in force. Not told to strangers.
    pub card_refused: Option<String>,
    /// Jobs by phase; every phase is there.
    pub jobs: BTreeMap<String, u64>,
    /// Accounts by state; every state is there.
    pub accounts: BTreeMap<String, u64>,
    /// What was not as the agent believed, counted since the journal began.
    pub corrections: Option<Corrections>,
    /// Cgroups with tasks in which no job is metered. Not told to strangers.
    pub unmetered: Vec<String>,
    /// The journal.
    pub journal: JournalStatus,
    /// The authority.
    pub authority: AuthorityStatus,
    /// The GPUs.
    pub gpus: GpuStatus,
    /// The machine; none before it was looked at.
    pub host: Option<Host>,
    /// The agent's own loop and process.
    pub agent: AgentStatus,
}

/// The journal's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalStatus {
    /// Facts made.
    pub seq: Option<u64>,
    /// Facts on disk.
    pub durable_seq: Option<u64>,
    /// Does the disk take facts?
    pub disk: Disk,
}

/// Does the journal's disk take facts?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Disk {
    /// It does.
    Writable,
    /// Full or read-only.
    Full,
}

/// The authority, seen from here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityStatus {
    /// Questions asked in this epoch.
    pub asked: Option<u64>,
    /// The number of the one that waits for its answer.
    pub unanswered: Option<u64>,
    /// How it is reached; none where it is embedded.
    pub link: Option<LinkStatus>,
}

/// How many GPUs there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpuStatus {
    /// So many.
    Count(u64),
    /// Nobody knows, and why.
    Missing(String),
}

/// How the loop and the process do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Ticks since the process began.
    pub tick_count: u64,
    /// Ticks left out.
    pub tick_missed_count: u64,
    /// The last tick, in nanoseconds.
    pub tick_ns: u64,
    /// How late the last tick began, in nanoseconds.
    pub tick_late_ns: u64,
    /// Between two ticks now, in nanoseconds.
    pub interval_ns: u64,
    /// Why that is wider than configured: the agent costs more `cpu` or `memory` than its budget.
    pub over_budget: Option<String>,
    /// Open descriptors.
    pub descriptors: u64,
    /// CPU time of the process, in nanoseconds.
    pub cpu_ns: u64,
    /// Resident memory of the process, in bytes.
    pub resident_bytes: u64,
    /// What the loop's thread got from the scheduler.
    pub loop_scheduling: String,
    /// The same for the hands.
    pub hands_scheduling: String,
    /// How cgroups are mounted.
    pub cgroup_layout: String,
    /// Which hierarchy serves which need: `cgroup2`, `v1 memory`, `signals`, `nothing`.
    pub cgroup_needs: BTreeMap<String, String>,
    /// How their CPU time and memory are read: `walk` (by a program in the kernel, where many stand side by side), or `files` and why.
    #[serde(default)]
    pub cgroup_reads: String,
}

/// One reason why the agent is not ready. The codes are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotReady {
    /// In one word: `no_picture`, `stale_picture`, `no_rate_card`, `journal_full`, `journal_read_only` or `authority_silent`.
    pub code: String,
    /// In a sentence.
    pub message: String,
}

impl NotReady {
    fn new(code: &str, message: impl Into<String>) -> NotReady {
        NotReady { code: code.to_owned(), message: message.into() }
    }
}

/// Is the picture young enough to show that the loop goes round?
///
/// # Errors
/// Why not.
pub fn alive(picture: &Picture, now: Mono, interval: Nanos) -> Result<(), NotReady> {
    if picture.view.is_none() {
        return Err(NotReady::new("no_picture", "the first tick is not done yet"));
    }
    let age = now.since(Mono(picture.taken_at_ns));
    let interval = interval.max(Nanos(picture.stats.interval_ns)); // it may be widened
    if Nanos(interval.0.saturating_mul(STALE_AFTER_INTERVALS)) < age {
        return Err(NotReady::new("stale_picture", format!("the last tick was done {age} ago")));
    }
    Ok(())
}

/// Why the agent is not ready; empty if it is. `silent_for` is how long the open question has been seen unanswered.
#[must_use]
pub fn not_ready(picture: &Picture, now: Mono, interval: Nanos, silent_for: Nanos) -> Vec<NotReady> {
    let mut reasons: Vec<NotReady> = alive(picture, now, interval).err().into_iter().collect();
    if let Some(view) = &picture.view {
        if view.card.is_none() {
            let why = view.card_refused.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            reasons.push(NotReady::new("no_rate_card", format!("no rate card is in force{why}")));
        }
        if let Some(number) = view.authority_unanswered
            && STUCK_AFTER <= silent_for
        {
            reasons.push(NotReady::new("authority_silent", format!("question {number} has had no answer for {silent_for}")));
        }
    }
    if picture.stats.alarms.holds(Alarm::JournalReadOnly) {
        reasons.push(NotReady::new("journal_read_only", "the journal's disk is read-only"));
    } else if picture.stats.journal_full {
        reasons.push(NotReady::new("journal_full", "the journal's disk takes nothing"));
    }
    reasons
}

impl Status {
    /// The status that a picture shows.
    #[must_use]
    pub fn of(picture: &Picture, now: Mono, not_ready: Vec<NotReady>) -> Status {
        let view = picture.view.as_ref();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            not_ready,
            alarms: picture.stats.alarms.views(),
            node: view.map(|view| view.node.clone()),
            at: view.map(|view| view.at.clone()),
            age_ms: view.map(|_| now.since(Mono(picture.taken_at_ns)).millis()),
            enforcement: view.map(|view| view.enforcement),
            card: view.and_then(|view| view.card.clone()),
            card_refused: view.and_then(|view| view.card_refused.clone()),
            jobs: view.map_or_else(BTreeMap::new, jobs_by_phase),
            accounts: view.map_or_else(BTreeMap::new, accounts_by_state),
            corrections: view.map(|view| view.corrections),
            unmetered: view.map_or_else(Vec::new, |view| view.unmetered.clone()),
            journal: JournalStatus {
                seq: view.map(|view| view.seq),
                durable_seq: view.map(|view| view.durable_seq),
                disk: if picture.stats.journal_full { Disk::Full } else { Disk::Writable },
            },
            authority: AuthorityStatus {
                asked: view.map(|view| view.authority_asked),
                unanswered: view.and_then(|view| view.authority_unanswered),
                link: picture.stats.link.as_ref().map(|link| link.status(now)),
            },
            gpus: match &picture.gpus {
                Some(Reading::Seen(gpus)) => GpuStatus::Count(count(gpus.len())),
                Some(Reading::Missing(why)) => GpuStatus::Missing(why.to_string()),
                None => GpuStatus::Missing("not looked at yet".to_owned()),
            },
            host: Some(picture.host).filter(|host| *host != Host::default()),
            agent: AgentStatus::of(&picture.stats),
        }
    }

    /// The same, without what a stranger need not know.
    #[must_use]
    pub fn for_strangers(mut self) -> Status {
        self.card_refused = None;
        self.unmetered.clear();
        if let Some(link) = &mut self.authority.link {
            link.url.clear();
            let faults = [&mut link.fault, &mut link.stream_fault, &mut link.files_fault, &mut link.card_fault];
            faults.into_iter().flatten().for_each(|fault| fault.message.clear());
        }
        for alarm in &mut self.alarms {
            alarm.message.clear(); // it may name paths and devices
        }
        for reason in &mut self.not_ready {
            if reason.code == "no_rate_card" {
                "no rate card is in force".clone_into(&mut reason.message);
            }
        }
        self
    }
}

impl AgentStatus {
    fn of(stats: &Stats) -> AgentStatus {
        AgentStatus {
            tick_count: stats.tick_count,
            tick_missed_count: stats.tick_missed_count,
            tick_ns: stats.tick_ns,
            tick_late_ns: stats.tick_late_ns,
            interval_ns: stats.interval_ns,
            over_budget: stats.over_budget.map(|over| over.name().to_owned()),
            descriptors: stats.descriptors,
            cpu_ns: stats.cpu_ns,
            resident_bytes: stats.resident_bytes,
            loop_scheduling: stats.loop_scheduling.clone(),
            hands_scheduling: stats.hands_scheduling.clone(),
            cgroup_layout: stats.cgroup_layout.clone(),
            cgroup_needs: stats.cgroup_needs.clone(),
            cgroup_reads: stats.cgroup_reads.clone(),
        }
    }
}

/// Jobs by phase; a phase without a job is there with 0. Ended ones are those still at hand.
#[must_use]
pub fn jobs_by_phase(view: &View) -> BTreeMap<String, u64> {
    [Phase::Awaited, Phase::Running, Phase::Frozen, Phase::Ended]
        .into_iter()
        .map(|phase| (phase.name().to_owned(), count(view.jobs.iter().filter(|job| job.phase == phase).count())))
        .collect()
}

/// Accounts by state; a state without an account is there with 0.
#[must_use]
pub fn accounts_by_state(view: &View) -> BTreeMap<String, u64> {
    [AccountState::Funded, AccountState::Empty, AccountState::Exhausted]
        .into_iter()
        .map(|state| (state_name(state).to_owned(), count(view.accounts.iter().filter(|account| account.state == state).count())))
        .collect()
}

/// Its name in JSON, metrics and tables.
#[must_use]
pub const fn state_name(state: AccountState) -> &'static str {
    match state {
        AccountState::Funded => "funded",
        AccountState::Empty => "empty",
        AccountState::Exhausted => "exhausted",
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Nanos = Nanos::from_secs(1);

    #[test]
    fn before_the_first_tick_the_agent_is_not_alive() {
        assert_eq!(alive(&Picture::default(), Mono(0), INTERVAL).unwrap_err().code, "no_picture");
    }

    #[test]
    fn an_agent_without_a_card_and_with_a_full_disk_says_both() {
        let mut picture = crate::node::sample::picture();
        picture.stats.journal_full = true;
        let view = picture.view.as_mut().unwrap();
        view.card = None;
        view.card_refused = Some("lab.toml:3:1: no price".to_owned());
        let now = Mono(picture.taken_at_ns);
        let reasons = not_ready(&picture, now, INTERVAL, Nanos(0));
        let codes: Vec<&str> = reasons.iter().map(|reason| reason.code.as_str()).collect();
        assert_eq!(codes, ["no_rate_card", "journal_full"]);
        let shown = serde_json::to_string(&Status::of(&picture, now, reasons).for_strangers()).unwrap();
        assert!(!shown.contains("lab.toml"), "a stranger is not told what is in the site's files: {shown}");
    }

    #[test]
    fn a_picture_is_stale_after_five_intervals() {
        let mut picture = crate::node::sample::picture();
        let two_seconds = Mono(picture.taken_at_ns + 10 * INTERVAL.0);
        assert_eq!(alive(&picture, two_seconds, INTERVAL), Ok(()), "the interval is widened to two seconds");
        picture.stats.interval_ns = INTERVAL.0;
        let at = |intervals: u64| Mono(picture.taken_at_ns + intervals * INTERVAL.0);
        assert_eq!(alive(&picture, at(5), INTERVAL), Ok(()));
        assert_eq!(alive(&picture, at(6), INTERVAL).unwrap_err().code, "stale_picture");
    }

    #[test]
    fn one_unanswered_question_is_no_alarm_until_it_has_waited() {
        let mut picture = crate::node::sample::picture();
        picture.view.as_mut().unwrap().authority_unanswered = Some(4);
        let now = Mono(picture.taken_at_ns);
        assert!(not_ready(&picture, now, INTERVAL, Nanos::from_secs(29)).is_empty());
        assert_eq!(not_ready(&picture, now, INTERVAL, STUCK_AFTER)[0].code, "authority_silent");
    }
}
