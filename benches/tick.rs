//! What a second of metering costs: CPU time, memory and lateness of the whole agent at 1,000 and 5,000 active jobs, beside the bare loop that
//! reads what a tick must read, once each (CPU time and memory of the same cgroups, through kept descriptors, the parent's `cpu.stat` first;
//! whether they hold tasks is told and not read).
//!
//! Every job is a cgroup with a process that wakes once a second, so every counter moves between two ticks. The agent is a process of its own;
//! its CPU time is the sum over its threads as the kernel has it, so it holds everything: looking, rating, journal, flushes, publishing.
//! The loop is measured before and after the agent. Needs root and a cgroup v2 tree. `cargo bench --bench tick` (`METERD_BENCH_JOBS=1000`,
//! `METERD_BENCH_TICKS=60`).

#[cfg(target_arch = "x86_64")]
#[path = "../src/allocator.rs"]
mod allocator;
mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use meterd::domain::act::CgroupDir;
use meterd::domain::agent::start::Reply;
use meterd::domain::bucket::Bucket;
use meterd::domain::id::{AccountId, Uid};
use meterd::domain::ledger::Terms;
use meterd::domain::rates::Card;
use meterd::domain::request::{Place, StartRequest};
use meterd::domain::wire::AccountPolicy;
use meterd::node::config::Config;
use meterd::node::daemon::Daemon;
use meterd::node::handle::{Caller, Handle, Inbox};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::time::{ClockId, clock_gettime};
use support::Cgroups;

const CARD: &str = "card = \"bench\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n\
    [[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"0.02\"\nunit = \"core-hour\"\n\
    [[line]]\nid = \"memory\"\nmeter = \"memory_charged\"\nprice = \"0.005\"\nunit = \"GiB-hour\"\n\
    [[line]]\nid = \"wall\"\nmeter = \"wall_time\"\nprice = \"0.01\"\nunit = \"hour\"\n";

/// Jobs of one account.
const JOBS_OF_ONE: usize = 10;

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let after = |word: &str| arguments.iter().position(|argument| argument == word).and_then(|at| arguments.get(at + 1));
    if let Some(nth) = after("--light") {
        wake_once_a_second(nth.parse().unwrap_or(0));
    }
    if after("--spin").is_some() {
        die_with_the_bench();
        loop {
            std::hint::spin_loop();
        }
    }
    let done = match after("--agent") {
        Some(dir) => agent(Path::new(dir)),
        None => bench(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tick bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn die_with_the_bench() {
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)) {
        eprintln!("prctl: {error}");
    }
}

/// A job: a little work once a second, at an instant of its own.
fn wake_once_a_second(nth: u64) -> ! {
    die_with_the_bench();
    std::thread::sleep(Duration::from_micros(nth * 7_919 % 1_000_000));
    loop {
        let began = Instant::now();
        while began.elapsed() < Duration::from_micros(10) {
            std::hint::spin_loop();
        }
        std::thread::sleep(Duration::from_millis(990));
    }
}

// The agent's process: told what to do by lines on its input, answers each with one line.

fn agent(dir: &Path) -> Result<(), Failure> {
    die_with_the_bench();
    // Whatever it costs here, it is to look once a second: no budget that would have it look less often.
    let text = format!(
        "node = \"bench\"\nstate_dir = \"{0}/state\"\nruntime_dir = \"{0}/run\"\nenforcement = \"enforce\"\n[status]\nlisten = \"off\"\n[budget]\ncpu_percent = 100\nmemory_mib = 4096\n[gpu]\nnvml = \"off\"\n",
        dir.display()
    );
    let config =
        Config::parse(&text, "bench.toml").map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    let card = Card::parse(CARD, "card.toml").map_err(|mistakes| format!("{mistakes:?}"))?;
    let daemon = Daemon::start(&config, Some(card))?;
    let handle = daemon.handle();
    let mut jobs = 0;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let mut words = line.split(' ');
        let answer = match words.next() {
            Some("start") => {
                start(&daemon, jobs, words.map(str::to_owned).collect())?;
                jobs += 1;
                "started".to_owned()
            }
            Some("watch") => lateness(&handle, Duration::from_secs(words.next().and_then(|text| text.parse().ok()).unwrap_or(1))),
            Some("stats") => {
                let stats = &handle.picture().stats;
                format!("{} {}", stats.tick_count, stats.tick_missed_count)
            }
            _ => return Err(format!("not understood: {line}").into()),
        };
        println!("{answer}");
    }
    handle.report(Inbox::Drain);
    let _ = daemon.wait();
    Ok(())
}

fn start(daemon: &Daemon, nth: usize, paths: Vec<String>) -> Result<(), Failure> {
    let account: AccountId = format!("account-{}", nth / JOBS_OF_ONE).parse()?;
    if nth.is_multiple_of(JOBS_OF_ONE) {
        daemon.authority().create_account(account.clone(), AccountPolicy::default(), Terms::default())?;
        daemon.authority().top_up(account.clone(), Bucket::Paid, "1000000".parse()?, format!("p{nth}").parse()?)?;
    }
    let request = StartRequest {
        traits: std::collections::BTreeMap::new(),
        policy: meterd::domain::ladder::JobPolicy::default(),
        job: format!("bench-{nth}").parse()?,
        account,
        owner: None,
        place: Place::Cgroups(paths),
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
    daemon.handle().report(Inbox::Start { request, caller, reply });
    match answer.blocking_recv()? {
        Reply::Started { .. } => Ok(()),
        other => Err(format!("job {nth} not started: {other:?}").into()),
    }
}

/// How late each tick began, in microseconds, as the published pictures tell.
fn lateness(handle: &Handle, length: Duration) -> String {
    let (mut late, mut last) = (Vec::new(), handle.picture().stats.tick_count);
    let end = Instant::now() + length;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(100));
        let stats = &handle.picture().stats;
        if stats.tick_count != last {
            last = stats.tick_count;
            late.push(stats.tick_late_ns / 1_000);
        }
    }
    late.sort_unstable();
    let at = |percent: usize| late.get((late.len() * percent / 100).min(late.len().saturating_sub(1))).copied().unwrap_or(0);
    format!("{} {} {} {}", late.len(), at(50), at(99), at(100))
}

// The bench's own process.

struct Agent {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Agent {
    fn start(dir: &Path) -> Result<Agent, Failure> {
        let mut child =
            Command::new(std::env::current_exe()?).arg("--agent").arg(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().ok_or("no stdin")?;
        let output = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        Ok(Agent { child, input, output })
    }

    fn ask(&mut self, line: &str) -> Result<String, Failure> {
        writeln!(self.input, "{line}")?;
        let mut answer = String::new();
        if self.output.read_line(&mut answer)? == 0 {
            return Err("the agent has ended".into());
        }
        Ok(answer.trim_end().to_owned())
    }

    fn ticks(&mut self) -> Result<u64, Failure> {
        Ok(self.ask("stats")?.split(' ').next().ok_or("no ticks")?.parse()?)
    }

    /// CPU time by thread, in nanoseconds: the first number of `schedstat` is exact, where `stat` counts hundredths of a second.
    fn threads(&self) -> Result<Vec<(String, u64)>, Failure> {
        let mut threads = Vec::new();
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let task = task?.path();
            let name = std::fs::read_to_string(task.join("comm"))?.trim_end().to_owned();
            let stat = std::fs::read_to_string(task.join("schedstat"))?;
            threads.push((name, stat.split(' ').next().ok_or("no schedstat")?.parse()?));
        }
        Ok(threads)
    }

    fn resident_kib(&self) -> Result<u64, Failure> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    fn end(mut self) -> Result<(), Failure> {
        drop(self.input);
        self.child.wait()?;
        Ok(())
    }
}

/// The cgroups and their processes; all gone once dropped.
struct Jobs {
    cgroups: Cgroups,
    dirs: Vec<Vec<CgroupDir>>,
    children: Vec<Child>,
}

impl Jobs {
    fn make(count: usize) -> Result<Jobs, Failure> {
        let mut jobs = Jobs { cgroups: Cgroups::below("tick")?, dirs: Vec::new(), children: Vec::new() };
        for nth in 0..count {
            let dirs = jobs.cgroups.make(&format!("job-{nth}"))?;
            jobs.dirs.push(dirs.clone());
            let child = Command::new(std::env::current_exe()?).args(["--light", &nth.to_string()]).stdin(Stdio::null()).spawn()?;
            let pid = child.id();
            jobs.children.push(child);
            jobs.cgroups.enter(&dirs, pid)?;
        }
        Ok(jobs)
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        self.children.iter_mut().for_each(|child| drop(child.kill()));
        self.children.iter_mut().for_each(|child| drop(child.wait()));
        for dirs in &self.dirs {
            if let Err(error) = self.cgroups.remove(dirs) {
                eprintln!("left behind: {error}");
            }
        }
    }
}

/// The bare loop: kept descriptors of CPU time and memory, and the parent's `cpu.stat`.
struct Limit {
    files: Vec<OwnedFd>,
    buffer: [u8; 4_096],
}

impl Limit {
    fn open(jobs: &Jobs) -> Result<Limit, Failure> {
        let open = |path: PathBuf| openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let first = jobs.dirs.first().and_then(|dirs| dirs.first()).ok_or("no jobs")?;
        let mut files = vec![open(Path::new(&first.path).parent().ok_or("no parent")?.join("cpu.stat"))?];
        for dir in jobs.dirs.iter().flatten().map(|dir| Path::new(&dir.path)) {
            for name in ["cpu.stat", "memory.current", "memory.usage_in_bytes"] {
                if dir.join(name).exists() && !(name == "cpu.stat" && dir.starts_with("/sys/fs/cgroup/memory")) {
                    files.push(open(dir.join(name))?);
                }
            }
        }
        Ok(Limit { files, buffer: [0; 4_096] })
    }

    /// One pass: nanoseconds of CPU time.
    fn pass(&mut self) -> Result<u64, Failure> {
        let began = thread_cpu_ns();
        for file in &self.files {
            rustix::io::pread(file, &mut self.buffer, 0)?;
        }
        Ok(thread_cpu_ns() - began)
    }

    /// Passes once a second; the mean, in nanoseconds.
    fn paced(&mut self, passes: u32) -> Result<u64, Failure> {
        self.pass()?;
        let mut sum = 0;
        let mut next = Instant::now();
        for _ in 0..passes {
            next += Duration::from_secs(1);
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            sum += self.pass()?;
        }
        Ok(sum / u64::from(passes))
    }
}

fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

fn bench() -> Result<(), Failure> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<usize>().ok());
    let ticks = u32::try_from(number("METERD_BENCH_TICKS").unwrap_or(20))?;
    let sizes = number("METERD_BENCH_JOBS").map_or_else(|| vec![1_000, 5_000], |jobs| vec![jobs]);
    println!("{} CPUs; CPU time per tick in microseconds; {ticks} ticks a window, one a second", std::thread::available_parallelism()?);
    for size in sizes {
        rows(size, ticks)?;
    }
    Ok(())
}

fn rows(size: usize, ticks: u32) -> Result<(), Failure> {
    let state = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("tick-bench-{}", std::process::id()));
    std::fs::create_dir_all(&state)?;
    let jobs = Jobs::make(size)?;
    let before = Limit::open(&jobs)?.paced(ticks)?;
    let mut agent = Agent::start(&state)?;
    for dirs in &jobs.dirs {
        let paths: Vec<&str> = dirs.iter().map(|dir| dir.path.as_str()).collect();
        agent.ask(&format!("start {}", paths.join(" ")))?;
    }
    println!("\n{size} active jobs, {} accounts; resident memory of the agent {} KiB", size.div_ceil(JOBS_OF_ONE), agent.resident_kib()?);
    // The burn of young jobs is asked for often: wait until they are not.
    std::thread::sleep(Duration::from_secs(15));
    let mut windows = Vec::new();
    for _ in 0..3 {
        windows.push(window(&mut agent, ticks)?);
    }
    println!("resident memory after {} ticks: {} KiB", 15 + 3 * ticks, agent.resident_kib()?);
    println!("lateness of a tick, us (count p50 p99 max), idle:         {}", agent.ask(&format!("watch {ticks}"))?);
    let saturated = saturate()?;
    println!("lateness of a tick, us (count p50 p99 max), all cores busy: {}", agent.ask(&format!("watch {}", 2 * ticks))?);
    drop(saturated);
    agent.end()?;
    let after = Limit::open(&jobs)?.paced(ticks)?;
    let limit = u64::midpoint(before, after);
    println!("the bare pread loop: {} before, {} after; {} ns a job", before / 1_000, after / 1_000, limit / size as u64);
    for (whole, threads) in &windows {
        let by_thread: Vec<String> = threads.iter().map(|(name, ns)| format!("{name} {}", ns / 1_000)).collect();
        let times = |ns: u64| format!("{}.{:02} x the bare loop", ns / limit, ns % limit * 100 / limit);
        let metering = threads.iter().filter(|(name, _)| ["meterd-loop", "journal"].contains(&name.as_str())).map(|(_, ns)| ns).sum();
        println!("loop and journal: {} = {}", metering / 1_000, times(metering));
        println!("  the whole agent: {} = {} ({})", whole / 1_000, times(*whole), by_thread.join(", "));
    }
    drop(jobs);
    std::fs::remove_dir_all(&state)?;
    Ok(())
}

/// The agent's CPU time per tick over a window, in nanoseconds: all of it, and by thread.
fn window(agent: &mut Agent, ticks: u32) -> Result<(u64, Vec<(String, u64)>), Failure> {
    let (first, began) = (agent.ticks()?, agent.threads()?);
    std::thread::sleep(Duration::from_secs(u64::from(ticks)));
    let (last, ended) = (agent.ticks()?, agent.threads()?);
    let ticks = last.saturating_sub(first).max(1);
    let used = |(at, (name, after)): (usize, &(String, u64))| {
        let before = began.get(at).filter(|(known, _)| known == name).map_or(0, |(_, ns)| *ns);
        (name.clone(), (after - before) / ticks)
    };
    let threads: Vec<(String, u64)> = ended.iter().enumerate().map(used).collect();
    Ok((threads.iter().map(|(_, ns)| ns).sum(), threads))
}

/// Twice as many busy processes as CPUs, for as long as this is held.
struct Saturated(Vec<Child>);

fn saturate() -> Result<Saturated, Failure> {
    let count = 2 * std::thread::available_parallelism()?.get();
    let spin = || Command::new(std::env::current_exe()?).args(["--spin", "1"]).spawn();
    Ok(Saturated((0..count).map(|_| spin()).collect::<Result<_, _>>()?))
}

impl Drop for Saturated {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(|child| drop(child.kill()));
        self.0.iter_mut().for_each(|child| drop(child.wait()));
    }
}
