//! Jobs that are process trees, against the real kernel: daemons and chains that would leave the tree stay in it, are stopped and are charged;
//! and `meterctl run` above them is still as good as the command itself. The agent and its user are not root, as where no cgroup can be made.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/agent.rs"]
#[expect(dead_code, reason = "what other tests need of it")]
mod agent;
#[path = "support/pty.rs"]
#[expect(dead_code, reason = "what other tests need of it")]
mod pty;

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use agent::Agent;
use meterd::domain::meter::Reading;
use meterd::node::process_tree::ProcessTrees;
use procfs::process::{Process, Stat, all_processes};
use pty::Pty;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// Nobody on the machine has this number.
const USER: u32 = 64_003;

const CARD: &str = "card = \"test\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n\
    [[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"1\"\nunit = \"core-second\"\n";

/// It burns.
const BURN: &str = "sh -c 'while :; do :; done'";

/// An agent under a user who can make no cgroup.
struct Scene {
    agent: Agent,
    /// Everything that this scene starts carries it in its environment.
    mark: String,
}

impl Scene {
    /// With this much CPU time in seconds to spend.
    fn with(credit: &str) -> Scene {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mark = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut agent = Agent::new(CARD, "enforcement = \"enforce\"", "");
        for (name, program) in [("meterd", env!("CARGO_BIN_EXE_meterd")), ("meterctl", env!("CARGO_BIN_EXE_meterctl"))] {
            if std::fs::hard_link(program, agent.path(name)).is_err() {
                std::fs::copy(program, agent.path(name)).unwrap();
            }
        }
        agent.program = agent.path("meterd");
        agent.before = Scene::become_user();
        if rustix::process::geteuid().is_root() {
            chown(agent.folder.path(), Some(USER), Some(USER)).unwrap();
        }
        std::fs::set_permissions(agent.folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        agent.launch();
        agent.done("POST", "/v1/accounts", Some(&json!({ "account": "lab" })));
        let scene = Scene { agent, mark };
        scene.top_up(credit);
        scene
    }

    fn become_user() -> Vec<String> {
        if !rustix::process::geteuid().is_root() {
            return Vec::new();
        }
        let words = ["setpriv", &format!("--reuid={USER}"), &format!("--regid={USER}"), "--clear-groups"];
        words.map(str::to_owned).into()
    }

    fn top_up(&self, amount: &str) {
        let body = json!({ "amount": amount, "bucket": "paid", "payment": format!("p-{amount}") });
        self.agent.done("POST", "/v1/accounts/lab/topup", Some(&body));
    }

    /// `meterctl run` of a script, as the job `j`.
    fn run(&self, options: &[&str], script: &str) -> Command {
        let words: Vec<String> = Scene::become_user().into_iter().chain([self.agent.path("meterctl").display().to_string()]).collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("--socket").arg(self.agent.path("run/meterd.sock"));
        let uid = if rustix::process::geteuid().is_root() { USER } else { rustix::process::geteuid().as_raw() };
        command.args(["run", "--account", "lab", "--job", &format!("u{uid}-j")]).args(options).args(["--", "sh", "-c", script]);
        command.env("METERD_TEST_TREE", &self.mark).env("D", self.agent.folder.path());
        command.stdin(Stdio::null()).current_dir("/");
        command
    }

    fn start(&self, script: &str) -> Run<'_> {
        Run { child: self.run(&[], script).spawn().unwrap(), scene: self }
    }

    fn receipt(&self) -> Value {
        let uid = if rustix::process::geteuid().is_root() { USER } else { rustix::process::geteuid().as_raw() };
        self.agent.ask("GET", &format!("/v1/jobs/u{uid}-j/receipt"), None).1
    }

    /// Nanoseconds of CPU time on the receipt.
    fn charged_ns(&self) -> u64 {
        let receipt = self.receipt();
        receipt["segments"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|segment| segment["cpu_ns"].as_str().unwrap().parse::<u64>().unwrap())
            .sum()
    }

    /// Everything that runs with this scene's mark.
    fn marked(&self) -> Vec<Stat> {
        let all: Vec<_> = all_processes().unwrap().flatten().collect();
        let name = std::ffi::OsStr::new("METERD_TEST_TREE");
        let has_mark = |process: &Process| process.environ().is_ok_and(|environ| environ.get(name).is_some_and(|mark| *mark == *self.mark));
        // Only root can look into the reaper.
        let folder = self.agent.folder.path().display().to_string();
        let is_reaper =
            |words: &[String]| words.iter().any(|word| word == "run-child") && words.iter().any(|word| word.starts_with(&folder));
        let is_marked = |process: &Process| has_mark(process) || process.cmdline().is_ok_and(|words| is_reaper(&words));
        all.iter().filter(|process| is_marked(process)).filter_map(|process| process.stat().ok()).collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.agent.kill();
        for _ in 0..400 {
            let left = self.marked();
            if left.is_empty() {
                return;
            }
            for stat in left {
                kill(stat.pid);
            }
            std::thread::sleep(Duration::from_millis(25));
        }
    }
}

fn kill(pid: i32) {
    let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL); // it may have ended by itself
}

/// A `meterctl run` that goes on.
struct Run<'a> {
    scene: &'a Scene,
    child: Child,
}

impl Run<'_> {
    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// The root of the tree: it stands above the command.
    fn reaper(&self) -> Option<Stat> {
        self.scene.marked().into_iter().find(|stat| stat.ppid == self.pid())
    }

    /// The job's processes, zombies left out.
    fn job(&self) -> Vec<Stat> {
        self.scene.marked().into_iter().filter(|stat| stat.pid != self.pid()).collect()
    }

    /// Waits until there is somebody, all of them are stopped, and nobody new is there a while later; gives them. One look alone, as a
    /// chain that forks faster than any look shows, can miss the only one that runs.
    fn stopped(&self) -> Vec<Stat> {
        let pids = |stats: &[Stat]| stats.iter().map(|stat| stat.pid).collect::<BTreeSet<i32>>();
        let all_stopped = |job: &[Stat]| 1 < job.len() && job.iter().all(|stat| stat.state == 'T');
        self.scene.agent.wait_for("everything of the job is stopped, and stays so", |_| {
            let first = self.job();
            if !all_stopped(&first) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(300));
            let second = self.job();
            all_stopped(&second) && pids(&first) == pids(&second)
        });
        self.job()
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        kill(self.pid());
        drop(self.child.wait());
    }
}

/// Clock ticks as nanoseconds.
fn ns(ticks: u64) -> u64 {
    ticks * 1_000_000_000 / procfs::ticks_per_second()
}

/// A script that runs on until the credit is gone: all of it is stopped, all of it is charged, it goes on with new credit and ends when killed.
fn is_stopped_and_charged(script: &str) {
    let scene = Scene::with("0.4");
    let run = scene.start(script);
    let job = run.stopped();
    let reaper = run.reaper().unwrap_or_else(|| panic!("no reaper: {job:?}"));
    let own = |stat: &Stat| stat.utime + stat.stime;
    let waited_for = |stat: &Stat| u64::try_from(stat.cutime + stat.cstime).unwrap();
    let all: u64 = job.iter().map(|stat| own(stat) + waited_for(stat)).sum();
    let used = ns(all - own(&reaper));
    assert!(ns(10) < used, "the test burnt nothing: {job:?}");
    scene.agent.wait_for("all of it is charged", |_| used <= scene.charged_ns());
    let charged = scene.charged_ns();
    println!("{} processes are stopped; they used {used} ns, {charged} ns are charged", job.len());
    assert_eq!(scene.receipt()["measure"], "process_tree");
    scene.top_up("0.3");
    scene.agent.wait_for("it goes on", |_| ns(10) + charged < scene.charged_ns());
    scene.agent.wait_for("nothing of it is left", |_| {
        run.job().iter().for_each(|stat| kill(stat.pid));
        run.job().is_empty()
    });
    scene.agent.wait_for("the job has ended", |_| scene.receipt()["state"] == "final");
    assert!(charged < scene.charged_ns());
}

#[test]
fn a_child_of_a_child_whose_parent_has_ended_is_stopped_and_charged() {
    is_stopped_and_charged(&format!("( ( {BURN} & ) & ); exec sleep 1000"));
}

#[test]
fn a_child_with_a_session_of_its_own_is_stopped_and_charged() {
    is_stopped_and_charged(&format!("setsid {BURN} & exec sleep 1000"));
}

#[test]
fn a_daemon_that_forks_twice_and_leaves_the_session_is_stopped_and_charged() {
    is_stopped_and_charged(&format!("( setsid sh -c \"( {} & ) \" & ) ; exec sleep 1000", BURN.replace('\'', "\\\"")));
}

#[test]
fn a_chain_that_forks_faster_than_any_look_is_stopped_and_charged() {
    // Each link burns a little in a session of its own, forks the next one and ends. None lives until a second look.
    let link = "use POSIX; while (1) { setsid; for (1 .. 20000) { $x++ } exit if fork }";
    is_stopped_and_charged(&format!("perl -e '{link}' & exec sleep 1000"));
}

#[test]
fn a_child_that_outlives_the_command_is_stopped_and_charged_after_the_exit_code_was_told() {
    let scene = Scene::with("0.4");
    let mut run = scene.start(&format!("setsid {BURN} & exit 7"));
    assert_eq!(run.child.wait().unwrap().code(), Some(7));
    let job = run.stopped();
    assert_eq!(job.len(), 2, "the child and the reaper: {job:?}");
    let burner = job.iter().find(|stat| stat.comm == "sh").unwrap();
    scene.agent.wait_for("it is charged", |_| ns(burner.utime + burner.stime) <= scene.charged_ns());
    kill(burner.pid);
    scene.top_up("1"); // the reaper goes on, waits for its last child and ends
    scene.agent.wait_for("the job has ended", |_| scene.receipt()["state"] == "final");
    assert_eq!((&scene.receipt()["exit_code"], &scene.receipt()["outcome"]), (&json!(7), &json!("failed")));
}

#[test]
fn whoever_kills_the_reaper_ends_the_job() {
    let scene = Scene::with("1000");
    let mut run = scene.start("( setsid sleep 1000 & ); setsid sleep 1000 & sleep 1000");
    scene.agent.wait_for("the job runs", |_| run.job().iter().filter(|stat| stat.comm == "sleep").count() == 3);
    kill(run.reaper().unwrap().pid);
    assert_eq!(run.child.wait().unwrap().code(), Some(137));
    assert!(scene.marked().is_empty(), "{:?}", scene.marked());
    scene.agent.wait_for("the job has ended", |_| scene.receipt()["state"] == "final");
    assert_eq!(scene.receipt()["exit_code"], 137);
}

#[test]
fn nobody_traces_the_reaper_or_reads_its_memory() {
    let scene = Scene::with("1000");
    let run = scene.start("exec sleep 1000");
    scene.agent.wait_for("the job runs", |_| run.job().len() == 2 && run.reaper().is_some());
    let peek = |pid: i32| {
        let words = [Scene::become_user(), ["head", "-c", "1", &format!("/proc/{pid}/environ")].map(str::to_owned).into()].concat();
        Command::new(&words[0]).args(&words[1..]).output().unwrap().status.success()
    };
    let reaper = run.reaper().unwrap();
    let command = run.job().into_iter().find(|stat| stat.pid != reaper.pid).unwrap();
    assert!(peek(command.pid), "one's own processes can be looked into");
    if rustix::process::geteuid().is_root() {
        assert!(!peek(reaper.pid), "not this one");
    }
}

#[test]
fn a_second_command_under_the_name_of_a_running_job_does_not_run() {
    let scene = Scene::with("1000");
    let run = scene.start("exec sleep 1000");
    scene.agent.wait_for("the job runs", |_| run.job().len() == 2);
    let second = scene.run(&[], "echo ran").output().unwrap();
    assert_eq!((second.status.code(), second.stdout.as_slice()), (Some(1), &b""[..]), "{}", String::from_utf8_lossy(&second.stderr));
}

#[test]
fn the_end_of_a_job_that_no_look_met_is_the_one_that_was_reported() {
    let scene = Scene::with("1000");
    assert_eq!(scene.run(&[], "exit 42").status().unwrap().code(), Some(42));
    scene.agent.wait_for("the job has ended", |_| scene.receipt()["state"] == "final");
    assert_eq!((&scene.receipt()["exit_code"], &scene.receipt()["outcome"]), (&json!(42), &json!("failed")));
}

#[test]
fn the_command_ends_as_it_would_alone() {
    let scene = Scene::with("1000");
    let code = |options: &[&str], script: &str| {
        let output = scene.run(options, script).output().unwrap();
        // The name is free again once the job is over.
        let is_over = |_: &Agent| script.contains('&') || scene.receipt()["state"] == "final";
        scene.agent.wait_for("the job is over", is_over);
        output.status.code()
    };
    assert_eq!(code(&[], "exit 42"), Some(42));
    assert_eq!(code(&[], "kill -9 $$"), Some(137));
    assert_eq!(code(&["--time-limit", "1s"], "exec sleep 1000"), Some(143));
    assert_eq!(scene.receipt()["outcome"], "timed_out");
    // A daemon that holds nothing of the caller's does not keep the caller waiting.
    assert_eq!(code(&[], "sleep 1000 </dev/null >/dev/null 2>&1 & exit 3"), Some(3));
    scene.marked().iter().for_each(|stat| kill(stat.pid));
}

#[test]
fn a_command_that_is_not_there_ends_as_a_shell_would_say() {
    let scene = Scene::with("1000");
    let mut command = scene.run(&[], "");
    let mut words: Vec<_> = command.get_args().map(std::ffi::OsStr::to_owned).collect();
    words.truncate(words.iter().position(|word| word == "--").unwrap() + 1);
    command = Command::new(command.get_program());
    let output = command.args(words).arg("/nonexistent/program").current_dir("/").output().unwrap();
    assert_eq!(output.status.code(), Some(127), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn signals_and_the_terminal_reach_the_command() {
    let scene = Scene::with("1000");
    let ready = |_: &Agent| std::fs::read_dir(scene.agent.folder.path()).unwrap().flatten().any(|entry| entry.file_name() == "ready");
    let script = "trap 'exit 9' TERM; trap 'exit 5' INT; : >$D/ready; while :; do sleep 0.05; done";
    let mut run = scene.start(script);
    scene.agent.wait_for("the command runs", ready);
    kill_process(Pid::from_raw(run.pid()).unwrap(), Signal::TERM).unwrap();
    assert_eq!(run.child.wait().unwrap().code(), Some(9));
    drop(run);
    scene.agent.wait_for("the first has ended", |_| scene.receipt()["state"] == "final");
    std::fs::remove_file(scene.agent.path("ready")).unwrap();
    let mut terminal = Pty::open(80, 24);
    let plain = scene.run(&[], &format!("[ -t 0 ] && stty size; {script}"));
    let mut command = Command::new("setsid");
    command.args(["--ctty", "--wait"]).arg(plain.get_program()).args(plain.get_args()).current_dir("/");
    command.envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let mut child = terminal.spawn(&mut command);
    scene.agent.wait_for("the command runs on the terminal", ready);
    terminal.type_in("\u{3}");
    let status = child.wait().unwrap();
    assert_eq!((status.code(), status.signal()), (Some(5), None), "{}", terminal.text());
    assert!(terminal.text().contains("24 80"), "{}", terminal.text());
}

#[test]
fn who_left_unseen_a_tree_that_no_reaper_keeps_is_missed_and_a_reaper_would_have_kept_it() {
    for (keeper, found) in [("", 1), ("syscall(157, 36, 1, 0, 0, 0);", 2)] {
        // PR_SET_CHILD_SUBREAPER is 36; prctl(2) is 157 on x86-64, 167 on the generic table.
        let keeper = if cfg!(target_arch = "x86_64") { keeper.to_owned() } else { keeper.replace("157", "167") };
        let daemon = "use POSIX; if (!fork) { setsid; if (!fork) { print qq(there\\n); sleep 1000 } exit } wait;";
        let program = format!("{keeper} $| = 1; <STDIN>; {daemon} sleep 1000");
        let mut root = Command::new("perl").args(["-e", &program]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let trees = ProcessTrees::default();
        let id = trees.identify(root.id()).unwrap();
        assert!(trees.read(&[id])[0].is_ok());
        drop(root.stdin.take());
        std::io::Read::read_exact(root.stdout.as_mut().unwrap(), &mut [0_u8; 6]).unwrap();
        let orphaned = || {
            let children = all_processes().unwrap().flatten().filter_map(|process| process.stat().ok());
            let root = i32::try_from(root.id()).unwrap();
            // The middle one has ended and was waited for: what is below the root now stays there.
            children.filter(|stat| stat.ppid == root).all(|stat| stat.comm == "perl" && stat.state == 'S')
        };
        while !orphaned() {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(trees.read(&[id])[0].is_ok());
        let (processes, _) = trees.detail(id);
        root.kill().unwrap();
        root.wait().unwrap();
        for process in all_processes().unwrap().flatten() {
            if process.cmdline().is_ok_and(|words| words.last().is_some_and(|word| *word == program)) {
                kill(process.pid);
            }
        }
        assert_eq!(processes, Reading::Seen(found), "{keeper}");
    }
}
