//! One look at the agent: its status, the accounts and the jobs that the caller may see; and what two looks say about speed.

use std::collections::{BTreeMap, VecDeque};

use serde::Deserialize;

use crate::ctl::client::{Client, Failure, typed};
use crate::ctl::quantity::show_seconds;
use crate::domain::id::{AccountId, Attempt};
use crate::domain::job::{FrozenBy, Phase};
use crate::domain::ledger;
use crate::domain::time::Nanos;
use crate::domain::view::{AccountState, AccountView, JobView};
use crate::node::status::{Status, state_name};

/// Over how long the CPU use is told.
const WINDOW_MS: u64 = 5_000;
/// More alarms than this are counted.
const ALARMS_MAX: usize = 8;

/// What was seen.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub(super) status: Status,
    pub(super) accounts: Vec<OneAccount>,
    pub(super) jobs: Vec<JobView>,
    /// Why there was no newer look, if it is old.
    pub(super) old: Option<String>,
}

/// One account, from both sides.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct OneAccount {
    pub(super) account: AccountId,
    pub(super) authority: Option<ledger::AccountView>,
    pub(super) node: Option<AccountView>,
}

#[derive(Deserialize)]
struct Accounts {
    accounts: Vec<OneAccount>,
}

#[derive(Deserialize)]
struct Jobs {
    jobs: Vec<JobView>,
}

impl Look {
    /// Asks the agent.
    pub(super) fn take(client: &Client) -> Result<Look, Failure> {
        let status = typed(client.read("/v1/status")?)?;
        let accounts: Accounts = typed(client.read("/v1/accounts")?)?;
        let jobs: Jobs = typed(client.read("/v1/jobs")?)?;
        Ok(Look { status, accounts: accounts.accounts, jobs: jobs.jobs, old: None })
    }

    /// How the node does, in one line.
    pub(super) fn head(&self) -> String {
        let status = &self.status;
        let unknown = || "unknown".to_owned();
        let node = status.node.as_ref().map_or_else(unknown, ToString::to_string);
        let mode = status.enforcement.map_or_else(unknown, |mode| mode.to_string());
        let count = |phase: Phase| self.jobs.iter().filter(|job| job.phase == phase).count();
        let card = status.card.as_ref().map_or("no card".to_owned(), |card| format!("{} {}", card.name, card.version));
        let at = status.at.as_ref().and_then(|at| at.get(11..19)).unwrap_or("--:--:--");
        let (running, frozen) = (count(Phase::Running), count(Phase::Frozen));
        format!("{at} {node}  {mode}  {running} running, {frozen} frozen  {card}")
    }

    /// What somebody should look at, the worst first.
    pub(super) fn alarms(&self) -> Vec<String> {
        let mut alarms: Vec<String> = self.old.iter().map(|why| format!("the agent does not answer: {why}")).collect();
        alarms.extend(self.status.not_ready.iter().map(|reason| format!("{} ({})", reason.message, reason.code)));
        alarms.extend(self.status.card_refused.iter().map(|why| format!("a newer rate card is refused: {why}")));
        alarms.extend(self.accounts.iter().filter_map(|account| self.account_alarm(account)));
        for job in self.jobs.iter().filter(|job| job.phase != Phase::Ended) {
            if let Some(why) = job.missing.first() {
                alarms.push(format!("{} cannot be read: {why}", job.job));
            }
        }
        let over = self.status.agent.over_budget.iter();
        alarms.extend(over.map(|what| format!("the agent costs more {what} than its budget, and looks at jobs less often")));
        let more = alarms.len().saturating_sub(ALARMS_MAX);
        if 0 < more {
            alarms.truncate(ALARMS_MAX);
            alarms.push(format!("and {more} more"));
        }
        alarms
    }

    fn account_alarm(&self, account: &OneAccount) -> Option<String> {
        let node = account.node.as_ref()?;
        let name = &account.account;
        let frozen = |job: &&JobView| job.account == *name && job.phase == Phase::Frozen && job.frozen_by == Some(FrozenBy::Agent);
        let frozen = self.jobs.iter().filter(frozen).count();
        match (node.state, node.lasts_s) {
            (AccountState::Funded, Some(lasts))
                if node.policy.warn_before.longest().is_some_and(|longest| Nanos::from_secs(lasts) <= longest) =>
            {
                Some(format!("{name} is empty in {}", show_seconds(lasts)))
            }
            (AccountState::Funded, _) => None,
            (state, _) => Some(format!("{name} is {}, {frozen} jobs frozen", state_name(state))),
        }
    }
}

/// How fast jobs use CPU time: their counters at the last looks.
#[derive(Debug, Default)]
pub(super) struct Speeds(BTreeMap<Attempt, VecDeque<Mark>>);

/// A job's CPU time at an instant of its own life (running and frozen time together): both are counted up to the same look of the agent.
#[derive(Clone, Copy, Debug)]
struct Mark {
    lived_ms: u64,
    cpu_ns: u128,
}

impl Speeds {
    /// Notes the counters of a look. Jobs that are gone are forgotten.
    pub(super) fn note(&mut self, look: &Look) {
        let mut marks = std::mem::take(&mut self.0);
        for job in look.jobs.iter().filter(|job| job.phase != Phase::Ended) {
            let mark = Mark { lived_ms: job.running_ms.saturating_add(job.frozen_ms), cpu_ns: job.cpu_ns };
            let mut of_job = marks.remove(&job.attempt).unwrap_or_default();
            if of_job.back().is_none_or(|last| last.lived_ms < mark.lived_ms) {
                of_job.push_back(mark);
            }
            while 2 < of_job.len() && of_job.get(1).is_some_and(|second| WINDOW_MS <= mark.lived_ms - second.lived_ms) {
                of_job.pop_front();
            }
            self.0.insert(job.attempt, of_job);
        }
    }

    /// Hundredths of cores over the last seconds; none before two looks have seen the job.
    pub(super) fn centicores(&self, attempt: Attempt) -> Option<u64> {
        let marks = self.0.get(&attempt)?;
        let (first, last) = (marks.front()?, marks.back()?);
        let lived_ns = u128::from(last.lived_ms.checked_sub(first.lived_ms)?) * 1_000_000;
        let used_ns = last.cpu_ns.checked_sub(first.cpu_ns)?;
        let centi = (used_ns * 100 + lived_ns / 2).checked_div(lived_ns)?;
        u64::try_from(centi).ok()
    }
}

/// A constructed look, for tests.
#[cfg(test)]
pub(super) fn sample() -> Look {
    use crate::domain::time::Mono;
    use crate::node::sample;
    let picture = sample::picture();
    let view = sample::view();
    let now = Mono(picture.taken_at_ns + 120_000_000);
    let mut lab = view.accounts[0].clone();
    lab.lasts_s = Some(41);
    Look {
        status: Status::of(&picture, now, Vec::new()),
        accounts: vec![
            OneAccount { account: lab.account.clone(), authority: None, node: Some(lab) },
            OneAccount { account: "idle".parse().unwrap(), authority: None, node: None },
        ],
        jobs: view.jobs,
        old: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_told_over_the_last_seconds() {
        let mut speeds = Speeds::default();
        let mut look = sample();
        let attempt = look.jobs[1].attempt;
        let mut at = |ms: u64, cpu_ms: u64, speeds: &mut Speeds| {
            look.jobs[1].running_ms = ms;
            look.jobs[1].frozen_ms = 0;
            look.jobs[1].cpu_ns = u128::from(cpu_ms) * 1_000_000;
            speeds.note(&look);
            speeds.centicores(attempt)
        };
        assert_eq!(at(1_000, 500, &mut speeds), None, "one look says nothing about speed");
        assert_eq!(at(1_000, 500, &mut speeds), None, "nor does the same picture seen twice");
        assert_eq!(at(2_000, 2_500, &mut speeds), Some(200));
        assert_eq!(at(3_000, 2_500, &mut speeds), Some(100));
        for second in 4..=20 {
            at(second * 1_000, 2_500, &mut speeds);
        }
        assert_eq!(at(21_000, 2_500, &mut speeds), Some(0), "what was long ago does not count");
    }

    #[test]
    fn a_job_that_is_gone_is_forgotten() {
        let mut speeds = Speeds::default();
        let mut look = sample();
        speeds.note(&look);
        assert_eq!(speeds.0.len(), 2, "the ended one has no speed");
        look.jobs.clear();
        speeds.note(&look);
        assert!(speeds.0.is_empty());
    }

    #[test]
    fn alarms_name_what_is_wrong_and_are_bounded() {
        let mut look = sample();
        let over = "the agent costs more cpu than its budget, and looks at jobs less often";
        assert_eq!(look.alarms(), ["lab is empty in 41 s", "slurm:4711 cannot be read: permission denied", over]);
        look.accounts[0].node.as_mut().unwrap().state = AccountState::Exhausted;
        look.old = Some("gone".to_owned());
        assert_eq!(look.alarms()[..2], ["the agent does not answer: gone", "lab is exhausted, 1 jobs frozen"]);
        look.jobs = vec![look.jobs[1].clone(); 30];
        assert_eq!(look.alarms().len(), ALARMS_MAX + 1);
        assert_eq!(look.alarms().last().unwrap(), "and 25 more");
    }
}
