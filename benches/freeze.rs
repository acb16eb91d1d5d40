//! From decision to the last task frozen, and what runs past zero: for 1, 100 and 1,000 busy tasks that fill every core, on a quiet disk
//! and beside a writer that saturates the journal's; with a burn that jumps a hundredfold in the last second; and for 200 jobs of one
//! account that stop at once. Then, for these, from a top-up to the last of them running again.
//!
//! Beside each row stands what the kernel alone needs for the same cgroups in the same run. What runs past zero is also told as a part of
//! what the whole machine can burn in a fifth of a second. Needs root and a cgroup v2 tree.
//! `cargo bench --bench freeze` (more rounds: `METERD_BENCH_ROUNDS=200`; the 200 jobs alone:
//! `METERD_BENCH_ROWS=crowd`).

mod support;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use meterd::domain::act::{Act, ActOutcome, CgroupDir};
use meterd::domain::agent::start::Reply;
use meterd::domain::bucket::Bucket;
use meterd::domain::id::{AccountId, JobName, PaymentId, Uid};
use meterd::domain::job::{Ending, Step, StepEvent};
use meterd::domain::ladder::{JobPolicy, Thresholds};
use meterd::domain::ledger::Terms;
use meterd::domain::meter::Reading;
use meterd::domain::money::Credits;
use meterd::domain::outcome::Outcome;
use meterd::domain::rates::Card;
use meterd::domain::receipt::Receipt;
use meterd::domain::request::{Place, StartRequest};
use meterd::domain::time::Mono;
use meterd::domain::wire::AccountPolicy;
use meterd::node::config::Config;
use meterd::node::daemon::Daemon;
use meterd::node::handle::{Caller, Inbox};
use meterd::node::{clock, priority};
use support::Cgroups;

/// One credit for a core-second: unfunded credits are core-seconds past zero.
const CARD: &str = "card = \"bench\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n[[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"1\"\nunit = \"core-second\"\n";

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--spin") {
        let spin = |nth: usize| arguments.get(at + nth).and_then(|text| text.parse().ok()).unwrap_or(1);
        spin_threads(spin(1), spin(2));
    }
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("freeze bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The child: waits for a byte, then burns. With `duty_percent` below 100 it sleeps for the rest, until a second byte comes.
fn spin_threads(threads: u64, duty_percent: u64) -> ! {
    let mut byte = [0_u8; 1];
    let mut read = move || std::io::stdin().read(&mut byte).unwrap_or(0);
    read();
    let full = Arc::new(AtomicBool::new(100 <= duty_percent));
    for _ in 0..threads {
        let full = Arc::clone(&full);
        std::thread::spawn(move || burn(&full, duty_percent));
    }
    read();
    full.store(true, Ordering::Relaxed);
    loop {
        std::thread::park();
    }
}

fn burn(full: &AtomicBool, duty_percent: u64) {
    loop {
        let began = Instant::now();
        while full.load(Ordering::Relaxed) || began.elapsed() < Duration::from_micros(100 * duty_percent) {
            std::hint::spin_loop();
        }
        std::thread::sleep(Duration::from_micros(100 * (100 - duty_percent.min(100))));
    }
}

struct Bench {
    daemon: Daemon,
    cgroups: Cgroups,
    /// For names of jobs, accounts and payments.
    numbers: AtomicU64,
}

impl Bench {
    fn account(&self) -> Result<AccountId, Failure> {
        let account: AccountId = format!("account-{}", self.numbers.fetch_add(1, Ordering::Relaxed)).parse()?;
        let policy = AccountPolicy { warn_before: Thresholds::default(), ..AccountPolicy::default() };
        self.daemon.authority().create_account(account.clone(), policy, Terms::default())?;
        Ok(account)
    }

    fn top_up(&self, account: &AccountId, amount: &str) -> Result<(), Failure> {
        let payment: PaymentId = format!("p{}", self.numbers.fetch_add(1, Ordering::Relaxed)).parse()?;
        self.daemon.authority().top_up(account.clone(), Bucket::Paid, amount.parse()?, payment)?;
        Ok(())
    }
}

fn bench() -> Result<(), Failure> {
    let rounds: usize = std::env::var("METERD_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(30);
    let state = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("freeze-bench-{}", std::process::id()));
    std::fs::create_dir_all(&state)?;
    let text = format!(
        "node = \"bench\"\nstate_dir = \"{0}/state\"\nruntime_dir = \"{0}/run\"\nenforcement = \"enforce\"\n[status]\nlisten = \"off\"\n[gpu]\nnvml = \"off\"\n",
        state.display()
    );
    let config =
        Config::parse(&text, "bench.toml").map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    let card = Card::parse(CARD, "card.toml").map_err(|mistakes| format!("{mistakes:?}"))?;
    let bench = Bench { daemon: Daemon::start(&config, Some(card))?, cgroups: Cgroups::below("bench")?, numbers: AtomicU64::new(0) };
    let cpus = std::thread::available_parallelism()?.get();
    println!("{cpus} CPUs; all times in milliseconds; {rounds} rounds a row (a tenth of that for 1,000 tasks, at least 10)");
    println!("{:<34} {:>24}   {:>24}   {:>24}", "", "decision -> frozen", "the kernel alone", "past zero (core-ms)");
    println!(
        "{:<34} {:>7} {:>8} {:>7}   {:>7} {:>8} {:>7}   {:>7} {:>8} {:>7} max of 0.2 s of all CPUs",
        "", "p50", "p99", "max", "p50", "p99", "max", "p50", "p99", "max"
    );
    let result = rows(&bench, rounds, &state);
    bench.daemon.handle().report(Inbox::Drain);
    let ended = bench.daemon.wait();
    drop(std::fs::remove_dir_all(&state));
    println!("agent: {ended:?}");
    result
}

fn rows(bench: &Bench, rounds: usize, state: &Path) -> Result<(), Failure> {
    let crowd_alone = std::env::var("METERD_BENCH_ROWS").is_ok_and(|rows| rows == "crowd");
    for saturated in [false, true].into_iter().filter(|_| !crowd_alone) {
        let writer = saturated.then(|| Saturate::start(state));
        for tasks in [1, 100, 1_000] {
            let rounds = if tasks == 1_000 { (rounds / 10).max(10) } else { rounds };
            let title = format!("{tasks} busy tasks{}", if saturated { ", disk saturated" } else { "" });
            row(bench, &title, tasks, 100, rounds)?;
        }
        if let Some(writer) = writer {
            println!("{:<34} (the writer wrote {} MiB with an fsync each)", "", writer.stop());
        }
    }
    let cpus = u64::try_from(std::thread::available_parallelism()?.get())?;
    if !crowd_alone {
        row(bench, "burn jumps 100x in the last second", cpus, 1, rounds.min(20))?;
    }
    crowd(bench, 200, if crowd_alone { rounds } else { rounds.min(10) })
}

/// What all CPUs burn in a fifth of a second, in core-microseconds.
fn fifth_of_a_second() -> u64 {
    std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64) * 200_000
}

/// Many jobs of one account, one busy task each: how long until the last one stands still, and until the last one runs again.
fn crowd(bench: &Bench, count: usize, rounds: usize) -> Result<(), Failure> {
    let account = bench.account()?;
    let mut jobs = (0..count).map(|_| Job::make(bench, &account, 1, 100)).collect::<Result<Vec<Job>, Failure>>()?;
    let (mut kernel_freezes, mut kernel_thaws) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (freeze, thaw) = kernel_alone(jobs.iter().map(Job::freezer).collect::<Result<_, _>>()?)?;
        kernel_freezes.push(freeze);
        kernel_thaws.push(thaw);
    }
    bench.top_up(&account, "40")?;
    for job in &jobs {
        job.meter(bench)?;
    }
    let (mut frozen, mut thawed, mut past_zero) = (Vec::new(), Vec::new(), Vec::new());
    let (mut first, mut asked, mut seen) = (Vec::new(), Vec::new(), Vec::new());
    let long_enough = (std::thread::available_parallelism()?.get() * 12).to_string();
    for round in 0..=rounds {
        if 0 < round {
            let topped_up = clock::mono();
            // For more than ten seconds of all its jobs, so that it does not count as one that flaps.
            bench.top_up(&account, &long_enough)?;
            thawed.push(all_acted(bench, &mut jobs, Act::Thaw)?.last.since(topped_up).0 / 1_000);
        }
        let stop = all_acted(bench, &mut jobs, Act::Freeze)?;
        if 0 < round {
            let since = |at: Mono| at.since(stop.decided).0 / 1_000;
            frozen.push(since(stop.last));
            first.push(since(stop.first_asked));
            asked.push(since(stop.last_asked));
            seen.push(since(stop.last_seen));
            past_zero.push(stop.past_zero);
        }
    }
    for job in jobs {
        job.end(bench)?;
    }
    print_row(&format!("{count} jobs of one account at once"), &mut frozen, &mut kernel_freezes, &mut past_zero);
    println!("{:<34} {}", "  the first of them asked for", spread(&mut first));
    println!("{:<34} {}", "  the last of them asked for", spread(&mut asked));
    println!("{:<34} {}", "  the last of them seen", spread(&mut seen));
    println!("{:<34} {}   {}", format!("{count} jobs: top-up -> running"), spread(&mut thawed), spread(&mut kernel_thaws));
    Ok(())
}

/// What an act on every job came to.
struct AllActed {
    /// When the first of them was decided on.
    decided: Mono,
    /// When the first of them was asked of the kernel.
    first_asked: Mono,
    /// When the last of them was.
    last_asked: Mono,
    /// When the kernel was seen to have done the last of them.
    last_seen: Mono,
    /// When the last of them was booked.
    last: Mono,
    /// What all jobs together used past zero since the last stop, in core-microseconds.
    past_zero: u64,
}

/// Waits, by the kernel's own word, until every job is frozen or thawed, and reads from their receipts what happened.
fn all_acted(bench: &Bench, jobs: &mut [Job], act: Act) -> Result<AllActed, Failure> {
    let wanted = if act == Act::Freeze { "frozen 1" } else { "frozen 0" };
    let deadline = Instant::now() + Duration::from_mins(2);
    for job in &*jobs {
        while !std::fs::read_to_string(job.freezer()?.join("cgroup.events"))?.contains(wanted) {
            std::thread::sleep(Duration::from_millis(20));
            if deadline < Instant::now() {
                return Err(format!("{} is not there after two minutes: {}", job.name, job.receipt(bench)?.to_json()).into());
            }
        }
    }
    let mut all = AllActed {
        decided: Mono(u64::MAX),
        first_asked: Mono(u64::MAX),
        last_asked: Mono(0),
        last_seen: Mono(0),
        last: Mono(0),
        past_zero: 0,
    };
    for job in jobs {
        let (receipt, (at, acted)) = loop {
            let receipt = job.receipt(bench)?;
            let step = receipt.steps.iter().rev().find(|step| is_done(step, act) && job.seen < step.at.0);
            let acted = step.and_then(|step| if let StepEvent::Acted(acted) = &step.event { Some((step.at, acted.clone())) } else { None });
            match acted {
                Some(acted) if act == Act::Thaw || receipt.owed.is_zero() => break (receipt, acted),
                _ if deadline < Instant::now() => return Err(format!("nothing of {}: {}", job.name, receipt.to_json()).into()),
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let decided = receipt.steps.iter().rev().find(|step| matches!(step.event, StepEvent::Emptied(_)) && step.at <= at);
        all.decided = all.decided.min(decided.map_or(all.decided, |step| step.at));
        all.first_asked = all.first_asked.min(acted.asked_at);
        all.last_asked = all.last_asked.max(acted.asked_at);
        all.last_seen = all.last_seen.max(acted.done_at);
        all.last = all.last.max(at);
        all.past_zero += u64::try_from(receipt.unfunded.minus(job.unfunded).nano() / 1_000)?;
        (job.unfunded, job.seen) = (receipt.unfunded, at.0);
    }
    Ok(all)
}

fn print_row(title: &str, decided: &mut [u64], kernel: &mut [u64], past_zero: &mut [u64]) {
    let (decided, kernel, past) = (spread(decided), spread(kernel), spread(past_zero));
    let most = past_zero.last().copied().unwrap_or(0) * 100 / fifth_of_a_second();
    println!("{title:<34} {decided}   {kernel}   {past} {most:>4} %");
}

fn row(bench: &Bench, title: &str, tasks: u64, duty_percent: u64, rounds: usize) -> Result<(), Failure> {
    let mut job = Job::start(bench, tasks, duty_percent)?;
    let mut decided = Vec::new();
    let mut past_zero = Vec::new();
    let mut kernel = std::mem::take(&mut job.kernel);
    for _ in 0..rounds {
        // On an account of its own, since one that runs empty again and again waits for its thaw ever longer.
        if !decided.is_empty() {
            job.end(bench)?;
            job = Job::start(bench, tasks, duty_percent)?;
            kernel.append(&mut job.kernel);
        }
        let since = job.seen;
        let (length, unfunded) = job.run_dry(bench, duty_percent)?;
        decided.push(length);
        past_zero.push(unfunded);
        if fifth_of_a_second() / 4 < unfunded {
            println!("    {unfunded} core-us past zero in round {}: {}", decided.len(), job.story(bench, since)?);
        }
    }
    job.end(bench)?;
    print_row(title, &mut decided, &mut kernel, &mut past_zero);
    Ok(())
}

/// p50, p99 and max of microseconds, in milliseconds.
fn spread(micros: &mut [u64]) -> String {
    micros.sort_unstable();
    let at = |percent: usize| micros.get((micros.len() * percent / 100).min(micros.len().saturating_sub(1))).copied().unwrap_or(0);
    let shown = |micros: u64| format!("{}.{:02}", micros / 1_000, micros % 1_000 / 10);
    format!("{:>7} {:>8} {:>7}", shown(at(50)), shown(at(99)), shown(micros.last().copied().unwrap_or(0)))
}

struct Job {
    name: JobName,
    account: AccountId,
    dirs: Vec<CgroupDir>,
    children: Vec<Child>,
    unfunded: Credits,
    seen: u64,
    /// What the kernel alone needed for these tasks, before the agent knew of them: microseconds.
    kernel: Vec<u64>,
}

impl Job {
    fn start(bench: &Bench, tasks: u64, duty_percent: u64) -> Result<Job, Failure> {
        let mut job = Job::make(bench, &bench.account()?, tasks, duty_percent)?;
        let (took, _) = kernel_alone(vec![job.freezer()?])?;
        job.kernel.push(took);
        // Full burn: for a second or two. A hundredth of it: what comes to that is paid in later.
        bench.top_up(&job.account, if duty_percent < 100 { "0.2" } else { "2.4" })?;
        job.meter(bench)?;
        Ok(job)
    }

    /// A cgroup with busy tasks, of which the agent knows nothing yet.
    fn make(bench: &Bench, account: &AccountId, tasks: u64, duty_percent: u64) -> Result<Job, Failure> {
        let nth = bench.numbers.fetch_add(1, Ordering::Relaxed);
        let dirs = bench.cgroups.make(&format!("job-{nth}"))?;
        let name: JobName = format!("bench-{nth}").parse()?;
        let mut job =
            Job { name, account: account.clone(), dirs, children: Vec::new(), unfunded: Credits::ZERO, seen: 0, kernel: Vec::new() };
        let processes = tasks.div_ceil(100).max(1);
        for _ in 0..processes {
            let child = Command::new(std::env::current_exe()?)
                .args(["--spin", &(tasks / processes).to_string(), &duty_percent.to_string()])
                .stdin(Stdio::piped())
                .spawn()?;
            bench.cgroups.enter(&job.dirs, child.id())?;
            job.children.push(child);
        }
        job.tell_children(b"1")?;
        Ok(job)
    }

    /// Has the agent meter it.
    fn meter(&self, bench: &Bench) -> Result<(), Failure> {
        let request = StartRequest {
            traits: std::collections::BTreeMap::new(),
            policy: JobPolicy::default(),
            job: self.name.clone(),
            account: self.account.clone(),
            owner: None,
            place: Place::Cgroups(self.dirs.iter().map(|dir| dir.path.clone()).collect()),
            gpus: Vec::new(),
            time_limit: None,
            cpus: None,
            memory_bytes: None,
            bid: None,
            storage_bytes: None,
            gang: None,
        };
        let (reply, answer) = tokio::sync::oneshot::channel();
        let caller = Caller { uid: Uid::ROOT, pid: std::process::id(), pidfd: None };
        bench.daemon.handle().report(Inbox::Start { request, caller, reply });
        match answer.blocking_recv()? {
            Reply::Started { .. } => Ok(()),
            other => Err(format!("{}: not started: {other:?}", self.name).into()),
        }
    }

    /// Its directory with `cgroup.freeze`.
    fn freezer(&self) -> Result<PathBuf, Failure> {
        let mut dirs = self.dirs.iter().map(|dir| PathBuf::from(&dir.path));
        dirs.find(|dir| dir.join("cgroup.freeze").exists()).ok_or_else(|| "no cgroup.freeze".into())
    }

    fn tell_children(&mut self, byte: &[u8]) -> Result<(), Failure> {
        for child in &mut self.children {
            let stdin = child.stdin.as_mut().ok_or("a child without stdin")?;
            stdin.write_all(byte)?;
            stdin.flush()?;
        }
        Ok(())
    }

    fn receipt(&self, bench: &Bench) -> Result<Receipt, Failure> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        bench.daemon.handle().report(Inbox::Receipt { name: self.name.clone(), reply });
        answer.blocking_recv()?.ok_or_else(|| "the job is not known".into())
    }

    /// What happened since that instant, each step in milliseconds since then; of a first round since the job was opened.
    fn story(&self, bench: &Bench, since: u64) -> Result<String, Failure> {
        let receipt = self.receipt(bench)?;
        let steps: Vec<&Step> = receipt.steps.iter().filter(|step| since <= step.at.0).collect();
        let from = if since == 0 { steps.first().map_or(0, |step| step.at.0) } else { since };
        let told = |step: &&Step| {
            let what = match &step.event {
                StepEvent::Acted(acted) => {
                    format!("{} asked for at {}, done", acted.act, acted.asked_at.0.saturating_sub(from) / 1_000_000)
                }
                StepEvent::Armed(_) => "armed".to_owned(),
                StepEvent::Emptied(_) => "empty".to_owned(),
                StepEvent::Exhausted(_) => "exhausted".to_owned(),
                StepEvent::Funded(_) => "funded".to_owned(),
                other => format!("{other:?}"),
            };
            format!("{what} at {}", step.at.0.saturating_sub(from) / 1_000_000)
        };
        Ok(format!("opened {}; {}", receipt.opened, steps.iter().map(told).collect::<Vec<_>>().join(", ")))
    }

    /// Lets the job run until it is frozen: microseconds from decision to frozen, and core-microseconds past zero.
    fn run_dry(&mut self, bench: &Bench, duty_percent: u64) -> Result<(u64, u64), Failure> {
        if duty_percent < 100 {
            // A hundredth of the burn, and then all of it with about a second to go.
            bench.top_up(&self.account, "1.8")?;
            std::thread::sleep(Duration::from_millis(1_500));
            self.tell_children(b"2")?;
        }
        let deadline = Instant::now() + Duration::from_mins(2);
        loop {
            std::thread::sleep(Duration::from_millis(25));
            let receipt = self.receipt(bench)?;
            let frozen = receipt.steps.iter().rev().find(|step| is_done(step, Act::Freeze) && self.seen < step.at.0);
            let settled = receipt.owed.is_zero();
            if let (Some(frozen), true) = (frozen, settled) {
                let emptied = receipt.steps.iter().rev().find(|step| matches!(step.event, StepEvent::Emptied(_)) && step.at <= frozen.at);
                let decided = emptied.ok_or("frozen without a decision")?.at;
                self.seen = frozen.at.0;
                let past = receipt.unfunded.minus(self.unfunded).nano();
                self.unfunded = receipt.unfunded;
                return Ok((frozen.at.since(decided).0 / 1_000, u64::try_from(past / 1_000)?));
            }
            if deadline < Instant::now() {
                return Err(format!("not frozen within two minutes: {}", receipt.to_json()).into());
            }
        }
    }

    fn end(mut self, bench: &Bench) -> Result<(), Failure> {
        for child in &mut self.children {
            child.kill()?;
            child.wait()?;
        }
        let (reply, answer) = tokio::sync::oneshot::channel();
        let ending = Ending { outcome: Outcome::Cancelled, exit_code: None };
        bench.daemon.handle().report(Inbox::Stop { name: self.name.clone(), ending, reply });
        answer.blocking_recv()?;
        bench.cgroups.remove(&self.dirs)?;
        Ok(())
    }
}

fn is_done(step: &Step, act: Act) -> bool {
    matches!(&step.event, StepEvent::Acted(acted) if acted.act == act && acted.outcome == ActOutcome::Confirmed)
}

/// The same cgroups, frozen and thawed by nothing but the kernel's files, at the same priority as the agent's hands: all are written, then
/// all are waited for. Microseconds for the freeze and for the thaw.
fn kernel_alone(dirs: Vec<PathBuf>) -> Result<(u64, u64), Failure> {
    let timed = std::thread::spawn(move || -> std::io::Result<(u64, u64)> {
        if let Reading::Missing(why) = priority::raise_priority() {
            eprintln!("the timing thread has no real-time priority: {why}");
        }
        let all = |text: &str, shown: &str| -> std::io::Result<u64> {
            let began = clock::mono();
            for dir in &dirs {
                std::fs::write(dir.join("cgroup.freeze"), text)?;
            }
            for dir in &dirs {
                while !std::fs::read_to_string(dir.join("cgroup.events"))?.contains(shown) {
                    std::thread::sleep(Duration::from_micros(100));
                }
            }
            Ok(clock::mono().since(began).0 / 1_000)
        };
        all("0", "frozen 0")?;
        std::thread::sleep(Duration::from_millis(40));
        Ok((all("1", "frozen 1")?, all("0", "frozen 0")?))
    });
    Ok(timed.join().map_err(|_| "the timing thread panicked")??)
}

/// A writer that keeps the disk of the journal as busy as it can: 1 MiB, fsync, again.
struct Saturate {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u64>,
}

impl Saturate {
    fn start(dir: &Path) -> Saturate {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, path) = (Arc::clone(&stop), dir.join("noise"));
        let thread = std::thread::spawn(move || {
            let block = vec![0xa5_u8; 1 << 20];
            let mut written = 0_u64;
            while !stopped.load(Ordering::Relaxed) {
                let Ok(mut file) = std::fs::File::create(&path) else { break };
                for _ in 0..64 {
                    if stopped.load(Ordering::Relaxed) || file.write_all(&block).and_then(|()| file.sync_data()).is_err() {
                        break;
                    }
                    written += 1;
                }
            }
            written
        });
        Saturate { stop, thread }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or(0)
    }
}
