//! Tells people: on the terminals of a job's owner, as `wall` does for all, and by the site's own command. One thread, one bounded
//! queue: neither a slow terminal nor a slow command holds up anything else, and what does not fit is dropped and counted.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

use crate::domain::act::{Act, ActOutcome, Acted};
use crate::domain::agent::Agent;
use crate::domain::agent::credit::measured_burn;
use crate::domain::grant;
use crate::domain::id::{AccountId, Attempt, JobName, NodeId, Uid};
use crate::domain::job::{Job, Step, StepEvent};
use crate::domain::ledger::{AccountNotice, DetachedStorage, Storage, Threshold};
use crate::domain::money::Credits;
use crate::domain::rates::OverBid;
use crate::domain::terms::Outbid;
use crate::domain::time::{Nanos, Now};

/// Notices that may wait.
const QUEUE_MAX: usize = 1_024;
/// How long the site's command may take.
const COMMAND_WITHIN: Duration = Duration::from_secs(10);
/// Terminals of one owner that are written to.
const TERMINALS_MAX: usize = 32;
/// Where they are.
const TERMINALS: &str = "/dev/pts";

/// What is told of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Credit is short.
    Warned,
    /// The job stands still.
    Frozen,
    /// It goes on.
    Thawed,
    /// It was asked to end.
    Terminated,
    /// It was ended.
    Killed,
}

impl Event {
    /// What there is to tell of something done, after what was done to the job `before`; a warning is told when it is ordered. A kill is
    /// repeated until the last task is gone, and told once.
    #[must_use]
    pub fn of<'a>(acted: &Acted, before: impl IntoIterator<Item = &'a StepEvent>) -> Option<Event> {
        let killed = |event: &StepEvent| matches!(event, StepEvent::Acted(acted) if (acted.act, &acted.outcome) == (Act::Kill, &ActOutcome::Confirmed));
        match (acted.act, &acted.outcome) {
            (Act::Kill, _) if before.into_iter().any(killed) => None,
            (Act::Freeze, ActOutcome::Confirmed) => Some(Event::Frozen),
            (Act::Thaw, ActOutcome::Confirmed) => Some(Event::Thawed),
            (Act::Terminate, ActOutcome::Confirmed) => Some(Event::Terminated),
            (Act::Kill, ActOutcome::Confirmed) => Some(Event::Killed),
            _ => None,
        }
    }

    /// Its name for the command.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Event::Warned => "warned",
            Event::Frozen => "frozen",
            Event::Thawed => "thawed",
            Event::Terminated => "terminated",
            Event::Killed => "killed",
        }
    }
}

/// One thing to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Of a job.
    Job(JobNotice),
    /// Of an account: to the site's command only.
    Account {
        /// Where.
        node: NodeId,
        /// Of which.
        account: AccountId,
        /// What.
        what: AccountNotice,
    },
}

/// One thing to tell of one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobNotice {
    event: Event,
    node: NodeId,
    attempt: Attempt,
    job: JobName,
    account: AccountId,
    owner: Uid,
    left: Credits,
    lasts: Option<Nanos>,
    /// It is for its bid that it was stopped, and not for want of credit.
    outbid: Option<Outbid>,
    /// It goes on since no more is asked than this, which was bid.
    within_bid: Option<Credits>,
}

impl Notice {
    /// What there is to tell of a job; none if it is not known.
    #[must_use]
    pub fn of(event: Event, attempt: Attempt, agent: &Agent, node: &NodeId, now: Now) -> Option<Notice> {
        let job = agent.jobs.get(&attempt)?;
        let account = agent.accounts.get(&job.account)?;
        let left = account.grant.left(now.boot);
        Some(Notice::Job(JobNotice {
            event,
            node: node.clone(),
            attempt,
            job: job.name.clone(),
            account: job.account.clone(),
            owner: job.owner,
            left,
            outbid: agent.outbid(job).filter(|outbid| outbid.rule != OverBid::Cap && account.empty_since.is_none()),
            within_bid: within_bid(job),
            lasts: told_length(event, grant::lasts(left, measured_burn(account)), account.warned.map(|warned| warned.before)),
        }))
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        match self {
            Notice::Job(notice) => notice.environment(),
            Notice::Account { node, account, what } => {
                let mut words = vec![("METERD_NODE", node.to_string()), ("METERD_ACCOUNT", account.to_string())];
                words.extend(account_words(what));
                words
            }
        }
    }

    fn of_whom(&self) -> String {
        match self {
            Notice::Job(notice) => format!("job {}", notice.job),
            Notice::Account { account, .. } => format!("account {account}"),
        }
    }
}

/// What the command is told of an account.
fn account_words(what: &AccountNotice) -> Vec<(&'static str, String)> {
    match what {
        AccountNotice::Alert { threshold, balance } => {
            let threshold = match threshold {
                Threshold::Percent(percent) => ("METERD_PERCENT", percent.to_string()),
                Threshold::Below(below) => ("METERD_BELOW", below.to_string()),
            };
            vec![("METERD_EVENT", "alert".to_owned()), threshold, ("METERD_CREDITS_LEFT", balance.to_string())]
        }
        AccountNotice::Refill(pending) => vec![
            ("METERD_EVENT", "refill".to_owned()),
            ("METERD_PAYMENT", pending.payment.to_string()),
            ("METERD_AMOUNT", pending.amount.to_string()),
        ],
        AccountNotice::Storage(Storage::Detached, costs) => {
            let costs = match costs {
                DetachedStorage::Costs => "yes",
                DetachedStorage::Free => "no",
            };
            vec![("METERD_EVENT", "detach_storage".to_owned()), ("METERD_STORAGE_COSTS", costs.to_owned())]
        }
        AccountNotice::Storage(Storage::Attached, _) => vec![("METERD_EVENT", "attach_storage".to_owned())],
        AccountNotice::Unproven { claimed, known, .. } => claim_words("grant_unproven", *claimed, *known),
        AccountNotice::Proven { granted, known, .. } => claim_words("grant_proven", *granted, *known),
    }
}

/// What a node says it was granted, and what the store knew of.
fn claim_words(event: &str, claimed: Credits, known: Credits) -> Vec<(&'static str, String)> {
    vec![("METERD_EVENT", event.to_owned()), ("METERD_CLAIMED", claimed.to_string()), ("METERD_KNOWN", known.to_string())]
}

impl JobNotice {
    /// The sentence for a terminal. Names are of a narrow alphabet, so nothing in it can steer the terminal.
    fn sentence(&self) -> String {
        let JobNotice { job, account, left, .. } = self;
        if let Some(Outbid { bid, ask, .. }) = self.outbid {
            match self.event {
                Event::Frozen => return format!("job {job} stands still: {ask} credits are asked for it by now, and {bid} were bid."),
                Event::Terminated => {
                    return format!("job {job} was asked to end (SIGTERM): {ask} credits are asked for it by now, and {bid} were bid.");
                }
                Event::Warned | Event::Thawed | Event::Killed => {}
            }
        }
        if let (Event::Thawed, Some(bid)) = (self.event, self.within_bid) {
            return format!("job {job} goes on: no more is asked for it than the {bid} credits that were bid.");
        }
        match self.event {
            Event::Warned => {
                let lasts = self.lasts.map_or(String::new(), |lasts| format!(", which lasts about {} s", lasts.0 / 1_000_000_000));
                format!("job {job}: account {account} has {left} credits left{lasts}. Without more the job is stopped.")
            }
            Event::Frozen => format!("job {job} stands still: account {account} has no credit for it. It goes on when there is some."),
            Event::Thawed => format!("job {job} goes on: account {account} has credit again."),
            Event::Terminated => format!("job {job} was asked to end (SIGTERM): account {account} has no credit."),
            Event::Killed => format!("job {job} was ended: account {account} has no credit."),
        }
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let mut words = vec![
            ("METERD_EVENT", self.event.name().to_owned()),
            ("METERD_NODE", self.node.to_string()),
            ("METERD_JOB", self.job.to_string()),
            ("METERD_ATTEMPT", self.attempt.to_string()),
            ("METERD_ACCOUNT", self.account.to_string()),
            ("METERD_UID", self.owner.0.to_string()),
            ("METERD_CREDITS_LEFT", self.left.to_string()),
            ("METERD_LASTS_S", self.lasts.map_or(String::new(), |lasts| (lasts.0 / 1_000_000_000).to_string())),
        ];
        if let Some(Outbid { bid, ask, .. }) = self.outbid {
            words.extend([("METERD_BID", bid.to_string()), ("METERD_ASK", ask.to_string())]);
        }
        words
    }
}

/// The bid of a job that is let go since no more is asked than that; none of one that is let go for its account's new credit.
fn within_bid(job: &Job) -> Option<Credits> {
    let reason = |step: &Step| match step.event {
        StepEvent::WithinBid { bid } => Some(Some(bid)),
        StepEvent::Funded(_) => Some(None),
        _ => None,
    };
    job.steps.iter().rev().find_map(reason)?
}

/// How long what is left lasts: a warning comes since that fell below a threshold, and never tells of more than that one, though the burn
/// may have fallen again by the time it is told.
fn told_length(event: Event, lasts: Option<Nanos>, threshold: Option<Nanos>) -> Option<Nanos> {
    match threshold.filter(|_| event == Event::Warned) {
        Some(threshold) => Some(lasts.map_or(threshold, |lasts| lasts.min(threshold))),
        None => lasts,
    }
}

/// Whether terminals are written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terminals {
    /// Those of the job's owner that let messages through (`mesg y`).
    Owner,
    /// None.
    Off,
}

/// The site's own command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteCommand {
    /// The program and its arguments; no shell sees them.
    pub words: Vec<String>,
    /// As whom it runs, where the agent is root: user and group.
    pub user: Option<(u32, u32)>,
}

/// How people are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telling {
    /// On terminals.
    pub terminals: Terminals,
    /// By a command.
    pub command: Option<SiteCommand>,
}

/// The way to the thread. It ends when this is dropped, after what is in the queue.
#[derive(Clone, Debug)]
pub struct Notices(Option<Sender<Notice>>);

impl Notices {
    /// Nobody is told.
    #[must_use]
    pub const fn none() -> Notices {
        Notices(None)
    }

    /// Starts the thread, if anybody is to be told.
    ///
    /// # Errors
    /// When the kernel gives no thread.
    pub fn start(telling: Telling) -> std::io::Result<Notices> {
        if telling.terminals == Terminals::Off && telling.command.is_none() {
            return Ok(Notices(None));
        }
        let (sender, receiver) = bounded::<Notice>(QUEUE_MAX);
        let run = move || receiver.iter().for_each(|notice| tell(&telling, &notice));
        std::thread::Builder::new().name("notices".to_owned()).spawn(run)?;
        Ok(Notices(Some(sender)))
    }

    /// Has it told, if there is room.
    pub fn tell(&self, notice: Option<Notice>) {
        if let (Some(sender), Some(notice)) = (&self.0, notice)
            && sender.try_send(notice).is_err()
        {
            tracing::warn!(event = "notice_dropped", "too many wait: a command or a terminal is slow");
        }
    }
}

fn tell(telling: &Telling, notice: &Notice) {
    if let (Terminals::Owner, Notice::Job(notice)) = (telling.terminals, notice) {
        let line = format!("\r\nmeterd on {}: {}\r\n", notice.node, notice.sentence());
        let written = write_to_terminals(Path::new(TERMINALS), notice.owner, line.as_bytes());
        tracing::debug!(event = "terminals", job = %notice.job, written);
    }
    if let Some(command) = &telling.command
        && let Err(why) = run(command, notice)
    {
        tracing::warn!(event = "command_failed", command = %command.words[0], of = notice.of_whom(), %why);
    }
}

/// Writes to each terminal of that owner that lets messages through, and never waits for one. How many took it.
fn write_to_terminals(dir: &Path, owner: Uid, line: &[u8]) -> usize {
    let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let open = |path: PathBuf| {
        let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NOCTTY;
        let file = OpenOptions::new().write(true).custom_flags(i32::try_from(flags.bits()).unwrap_or(0)).open(path).ok()?;
        let found = file.metadata().ok()?;
        // As `write(1)`: the owner says with `mesg` whether others may write.
        let may = found.file_type().is_char_device() && found.uid() == owner.0 && found.mode() & 0o020 != 0;
        may.then_some(file)
    };
    let numbered = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    let terminals = entries.filter(|entry| numbered(&entry.file_name())).filter_map(|entry| open(entry.path()));
    terminals.take(TERMINALS_MAX).filter_map(|mut terminal| terminal.write_all(line).ok()).count()
}

fn run(site: &SiteCommand, notice: &Notice) -> Result<(), String> {
    let mut command = Command::new(&site.words[0]);
    command.args(&site.words[1..]).env_clear().envs(notice.environment()).env("PATH", "/usr/bin:/bin").current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    if let Some((uid, gid)) = site.user.filter(|_| rustix::process::geteuid().is_root()) {
        command.uid(uid).gid(gid); // std drops the supplementary groups with it
    }
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    be_killed_like_others(child.id());
    let deadline = Instant::now() + COMMAND_WITHIN;
    loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(status.to_string()),
            None if deadline <= Instant::now() => {
                end(&mut child);
                return Err(format!("ended after {} s", COMMAND_WITHIN.as_secs()));
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The agent is spared where memory is short; what it runs for the site is not. From here, since the site's user may not write it.
fn be_killed_like_others(pid: u32) {
    let spared = std::fs::read_to_string("/proc/self/oom_score_adj").is_ok_and(|adjust| adjust.starts_with('-'));
    if spared && let Err(error) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), "0") {
        tracing::debug!(event = "warn_command_spared", %error);
    }
}

/// It and what it started.
fn end(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL); // already gone
    }
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ledger::PendingRefill;
    use crate::domain::time::{Mono, Wall};

    #[test]
    fn a_warning_never_tells_of_more_than_its_threshold() {
        let secs = |secs| Some(Nanos::from_secs(secs));
        assert_eq!(told_length(Event::Warned, secs(600), secs(60)), secs(60));
        assert_eq!(told_length(Event::Warned, secs(40), secs(60)), secs(40));
        assert_eq!(told_length(Event::Warned, None, secs(60)), secs(60), "it stands still for a moment");
        assert_eq!(told_length(Event::Frozen, secs(600), secs(60)), secs(600));
    }

    #[test]
    fn what_runs_for_the_site_is_not_spared_where_memory_is_short() {
        const OWN: &str = "/proc/self/oom_score_adj";
        let before = std::fs::read_to_string(OWN).unwrap();
        if std::fs::write(OWN, "-100").is_err() {
            return println!("NOT RUN kernel: only root may spare itself");
        }
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let adjust = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        assert_eq!(adjust(child.id()).trim(), "-100");
        be_killed_like_others(child.id());
        let told = adjust(child.id());
        end(&mut child);
        std::fs::write(OWN, before.trim()).unwrap();
        assert_eq!(told.trim(), "0");
    }

    fn notice() -> Notice {
        Notice::Job(JobNotice {
            event: Event::Warned,
            node: "node-1".parse().unwrap(),
            attempt: Attempt(7),
            job: "job-7".parse().unwrap(),
            account: "physics".parse().unwrap(),
            owner: Uid(rustix::process::getuid().as_raw()),
            left: "1.5".parse().unwrap(),
            lasts: Some(Nanos::from_secs(55)),
            outbid: None,
            within_bid: None,
        })
    }

    #[test]
    fn a6_who_is_stopped_for_a_bid_is_not_told_of_a_want_of_credit() {
        let Notice::Job(plain) = notice() else { unreachable!() };
        let credits = |text: &str| text.parse::<Credits>().unwrap();
        let outbid = Outbid { rule: OverBid::Freeze, bid: credits("0.6"), ask: credits("0.9") };
        let of = |event| JobNotice { event, outbid: Some(outbid), ..plain.clone() };
        assert_eq!(of(Event::Frozen).sentence(), "job job-7 stands still: 0.9 credits are asked for it by now, and 0.6 were bid.");
        assert!(of(Event::Terminated).sentence().ends_with("0.9 credits are asked for it by now, and 0.6 were bid."));
        assert!(of(Event::Killed).sentence().contains("no credit"));
        let again = JobNotice { event: Event::Thawed, within_bid: Some(credits("0.6")), ..plain.clone() };
        assert_eq!(again.sentence(), "job job-7 goes on: no more is asked for it than the 0.6 credits that were bid.");
        let words = of(Event::Frozen).environment();
        assert!(words.contains(&("METERD_BID", "0.6".to_owned())) && words.contains(&("METERD_ASK", "0.9".to_owned())));
    }

    #[test]
    fn the_command_is_told_of_an_account_in_a_few_words() {
        let words = |what| {
            let notice = Notice::Account { node: "node-1".parse().unwrap(), account: "lab".parse().unwrap(), what };
            notice.environment().into_iter().skip(2).map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
        };
        let left = "7".parse().unwrap();
        let percent = words(AccountNotice::Alert { threshold: Threshold::Percent(40), balance: left });
        assert_eq!(percent, "METERD_EVENT=alert METERD_PERCENT=40 METERD_CREDITS_LEFT=7");
        let below = words(AccountNotice::Alert { threshold: Threshold::Below("10".parse().unwrap()), balance: left });
        assert_eq!(below, "METERD_EVENT=alert METERD_BELOW=10 METERD_CREDITS_LEFT=7");
        let pending = PendingRefill { payment: "refill/lab/1".parse().unwrap(), amount: "20".parse().unwrap(), asked: Wall(5) };
        assert_eq!(words(AccountNotice::Refill(pending)), "METERD_EVENT=refill METERD_PAYMENT=refill/lab/1 METERD_AMOUNT=20");
        let storage = |state, costs| words(AccountNotice::Storage(state, costs));
        let detached = storage(Storage::Detached, DetachedStorage::Costs);
        assert_eq!(detached, "METERD_EVENT=detach_storage METERD_STORAGE_COSTS=yes");
        assert_eq!(storage(Storage::Detached, DetachedStorage::Free), "METERD_EVENT=detach_storage METERD_STORAGE_COSTS=no");
        assert_eq!(storage(Storage::Attached, DetachedStorage::Free), "METERD_EVENT=attach_storage");
    }

    #[test]
    fn the_command_gets_its_words_and_an_environment_of_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let script = format!("env | sort > {0}.part; echo \"$1\" >> {0}.part; mv {0}.part {0}", out.display());
        let words = ["/bin/sh", "-c", &script, "name", "a b; $HOME"].map(str::to_owned).to_vec();
        run(&SiteCommand { words, user: None }, &notice()).unwrap();
        let said = std::fs::read_to_string(out).unwrap();
        let lines: Vec<&str> = said.lines().filter(|line| !["PWD=", "SHLVL=", "_="].iter().any(|own| line.starts_with(own))).collect();
        assert_eq!(
            lines,
            [
                "METERD_ACCOUNT=physics",
                "METERD_ATTEMPT=7",
                "METERD_CREDITS_LEFT=1.5",
                "METERD_EVENT=warned",
                "METERD_JOB=job-7",
                "METERD_LASTS_S=55",
                "METERD_NODE=node-1",
                &format!("METERD_UID={}", rustix::process::getuid().as_raw()),
                "PATH=/usr/bin:/bin",
                "a b; $HOME"
            ]
        );
    }

    #[test]
    fn a_kill_that_is_repeated_is_told_once() {
        let acted = |act, outcome| Acted { attempt: Attempt(7), act, asked_at: Mono(1), done_at: Mono(2), syscall: String::new(), outcome };
        let kill = acted(Act::Kill, ActOutcome::Confirmed);
        let (failed, frozen) = (acted(Act::Kill, ActOutcome::Unconfirmed), acted(Act::Freeze, ActOutcome::Confirmed));
        let before = [failed, frozen.clone()].map(StepEvent::Acted);
        assert_eq!(Event::of(&kill, &before), Some(Event::Killed));
        let again = [kill.clone(), frozen.clone()].map(StepEvent::Acted);
        assert_eq!(Event::of(&kill, &again), None);
        assert_eq!(Event::of(&frozen, &again), Some(Event::Frozen), "each freeze is news");
    }

    #[test]
    fn a_command_that_fails_or_is_not_there_is_said() {
        let of = |words: &[&str]| run(&SiteCommand { words: words.iter().map(|word| (*word).to_owned()).collect(), user: None }, &notice());
        assert!(of(&["/bin/sh", "-c", "exit 3"]).unwrap_err().contains('3'));
        assert!(of(&["/nowhere/at-all"]).is_err());
    }

    #[test]
    fn what_is_no_terminal_is_not_written_to() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("0"), "").unwrap();
        std::os::unix::fs::symlink("/dev/null", dir.path().join("1")).unwrap();
        let owner = Uid(rustix::process::getuid().as_raw());
        assert_eq!(write_to_terminals(dir.path(), owner, b"hello"), 0);
        assert_eq!(std::fs::read(dir.path().join("0")).unwrap(), b"");
    }
}
