//! Where an attempt is played: an agent, a victim with a job and an account, and a user who is neither.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::agent::Agent;

/// Who tries. Nobody on the machine has this number.
pub(crate) const ATTACKER: u32 = 64_001;
/// Whose job it is.
pub(crate) const VICTIM: u32 = 64_002;
/// The victim's job, and its account.
pub(crate) const SECRET: &str = "u64002-secret";

/// One credit for a core-second, for a GiB-second and for a GPU-second: charges are large, and balances end soon.
pub(crate) const CARD: &str = "card = \"test\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n\
    [[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"1\"\nunit = \"core-second\"\n\
    [[line]]\nid = \"memory\"\nmeter = \"memory_charged\"\nprice = \"0.001\"\nunit = \"GiB-second\"\n\
    [[line]]\nid = \"gpu\"\nmeter = \"gpu_held\"\nprice = \"0.001\"\nunit = \"gpu-second\"\n";

/// The words of every script.
const PRELUDE: &str = "call() { perl \"$D/call.pl\" \"$S\" \"$@\"; }\nhas() { grep -q -e \"$1\"; }\n";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Root, with cgroup2: or why not.
pub(crate) fn possible() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("attempts by another user need root to become one".to_owned());
    }
    let (name, dirs) = make_dirs()?;
    for dir in dirs {
        std::fs::remove_dir(&dir).map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(())
}

fn mounts() -> Vec<PathBuf> {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return vec!["/sys/fs/cgroup".into()];
    }
    vec!["/sys/fs/cgroup/unified".into(), "/sys/fs/cgroup/memory".into()]
}

fn new_name() -> String {
    format!("meterd-attempt-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn make_dirs() -> Result<(String, Vec<PathBuf>), String> {
    let name = new_name();
    let dirs: Vec<PathBuf> = mounts().into_iter().map(|mount| mount.join(&name)).collect();
    for dir in &dirs {
        std::fs::create_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    }
    if mounts().len() == 1 {
        for at in [Path::new("/sys/fs/cgroup"), &dirs[0]] {
            drop(std::fs::write(at.join("cgroup.subtree_control"), "+memory"));
        }
    }
    Ok((name, dirs))
}

/// A cgroup of the test's own in every hierarchy, which is killed and removed with all below it at the end.
pub(crate) struct Cgroup {
    /// The cgroup2 directory first.
    pub(crate) dirs: Vec<PathBuf>,
}

impl Cgroup {
    pub(crate) fn make() -> Cgroup {
        Cgroup { dirs: make_dirs().unwrap().1 }
    }

    /// One below it, in every hierarchy.
    pub(crate) fn child(&self, name: &str) -> Vec<PathBuf> {
        let dirs: Vec<PathBuf> = self.dirs.iter().map(|dir| dir.join(name)).collect();
        for dir in &dirs {
            std::fs::create_dir(dir).unwrap();
        }
        dirs
    }

    /// All CPU time in and below it, in nanoseconds.
    pub(crate) fn cpu_ns(&self) -> u128 {
        let text = std::fs::read_to_string(self.dirs[0].join("cpu.stat")).unwrap();
        text.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap().parse::<u128>().unwrap() * 1_000
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        clear(&self.dirs);
    }
}

/// Kills and removes, until there is nothing left.
fn clear(dirs: &[PathBuf]) {
    for _ in 0..400 {
        drop(std::fs::write(dirs[0].join("cgroup.kill"), "1"));
        if dirs.iter().all(|dir| remove_tree(dir)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(25));
    }
}

fn remove_tree(dir: &Path) -> bool {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    std::fs::remove_dir(dir).is_ok() || !dir.exists()
}

/// Gives a file or folder to a user.
pub(crate) fn give(path: &Path, uid: u32) {
    std::os::unix::fs::chown(path, Some(uid), Some(uid)).unwrap();
}

pub(crate) fn open_to_all(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A running agent, and those around it.
pub(crate) struct Scene {
    pub(crate) agent: Agent,
    pub(crate) tcp: u16,
    /// Below it the agent makes its cgroups.
    parent: Vec<PathBuf>,
    runners: Vec<Child>,
}

impl Scene {
    /// An agent that lacks these checks.
    pub(crate) fn start(lacks: &str) -> Scene {
        Scene::prepared(lacks, "", |_| ())
    }

    /// The same with more configuration, and a folder that was prepared.
    pub(crate) fn prepared(lacks: &str, tables: &str, prepare: impl FnOnce(&Path)) -> Scene {
        let scene = Scene::without_credit(lacks, tables, prepare);
        scene.top_up("own", "1000");
        scene
    }

    /// The attacker's account holds half a second of one CPU.
    pub(crate) fn poor(lacks: &str) -> Scene {
        let scene = Scene::without_credit(lacks, "", |_| ());
        scene.top_up("own", "0.5");
        scene
    }

    fn without_credit(lacks: &str, tables: &str, prepare: impl FnOnce(&Path)) -> Scene {
        let parent = new_name();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let tables = format!(
            "[status]\nlisten = \"127.0.0.1:{tcp}\"\n[cgroup]\nparent = \"{parent}\"\n\
             [access.accounts]\n{ATTACKER} = [\"own\"]\n{VICTIM} = [\"secret-lab\"]\n{tables}"
        );
        let agent = Agent::start_lacking(lacks, CARD, "enforcement = \"enforce\"", &tables, |folder| {
            furnish(folder);
            prepare(folder);
        });
        for account in ["own", "secret-lab"] {
            agent.done("POST", "/v1/accounts", Some(&json!({ "account": account })));
        }
        let scene = Scene { agent, tcp, parent: mounts().into_iter().map(|mount| mount.join(&parent)).collect(), runners: Vec::new() };
        scene.top_up("secret-lab", "777");
        scene
    }

    pub(crate) fn top_up(&self, account: &str, amount: &str) {
        let path = format!("/v1/accounts/{account}/topup");
        self.agent.done("POST", &path, Some(&json!({ "amount": amount, "bucket": "paid", "payment": format!("{account}-{amount}") })));
    }

    /// The agent, and the victim's job, which sleeps.
    pub(crate) fn with_victim(lacks: &str) -> Scene {
        Scene::start(lacks).and_victim()
    }

    pub(crate) fn and_victim(mut self) -> Scene {
        self.run_as(VICTIM, "secret-lab", SECRET, "exec sleep 1000");
        self
    }

    /// `meterctl run` by a user; returns when the agent knows the job.
    pub(crate) fn run_as(&mut self, uid: u32, account: &str, job: &str, script: &str) {
        let mut command = self.program(uid, &self.agent.path("meterctl"));
        command.args(["run", "--account", account, "--job", job, "--", "/bin/sh", "-c", script]);
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.agent.path("runners")).unwrap();
        let runner = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.runners.push(runner);
        self.agent.wait_for("the job is known", |agent| Scene::job_of(agent, job).is_some());
        let dir = self.made_for(job);
        self.agent.wait_for("the job has begun", |_| !Scene::pids(&dir).is_empty());
    }

    fn job_of(agent: &Agent, job: &str) -> Option<Value> {
        let (status, job) = agent.ask("GET", &format!("/v1/jobs/{job}"), None);
        (status == 200).then_some(job)
    }

    /// The job as the agent shows it to root.
    pub(crate) fn job(&self, job: &str) -> Value {
        Scene::job_of(&self.agent, job).unwrap_or(Value::Null)
    }

    /// The cgroup2 directory that the agent made for a job.
    pub(crate) fn made_for(&self, job: &str) -> PathBuf {
        let found =
            std::fs::read_dir(&self.parent[0]).unwrap().flatten().find(|entry| entry.file_name().to_string_lossy().starts_with(job));
        found.unwrap().path()
    }

    /// The pids of the processes in a cgroup.
    pub(crate) fn pids(dir: &Path) -> Vec<u32> {
        std::fs::read_to_string(dir.join("cgroup.procs")).unwrap().lines().map(|line| line.parse().unwrap()).collect()
    }

    /// A program under a uid, with no more in its environment than a script needs.
    pub(crate) fn program(&self, uid: u32, program: &Path) -> Command {
        let mut command = Command::new(program);
        let state = self.agent.path("state");
        command.uid(uid).gid(uid).current_dir("/").env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
        command.env("S", self.agent.path("run/meterd.sock")).env("METERD_SOCKET", self.agent.path("run/meterd.sock"));
        command.env("D", self.agent.folder.path()).env("STATE", state).env("PID", self.agent.pid().to_string());
        command.env("TCP", format!("127.0.0.1:{}", self.tcp)).env("HOME", self.agent.path("home"));
        command
    }

    /// A shell script by the attacker.
    pub(crate) fn script(&self, script: &str) -> Output {
        self.program(ATTACKER, Path::new("/bin/sh")).args(["-c", &format!("{PRELUDE}{script}")]).stdin(Stdio::null()).output().unwrap()
    }

    /// Did the attacker's script succeed?
    pub(crate) fn tries(&self, script: &str) -> bool {
        self.script(script).status.success()
    }

    /// An agent that runs as the attacker, in its home.
    pub(crate) fn as_own_agent(&self) -> Running {
        place(Path::new(env!("CARGO_BIN_EXE_meterd")), &self.agent.path("meterd"));
        let config = self.agent.path("own.toml");
        let home = self.agent.path("home");
        let at = home.display();
        let card = self.agent.path("card.toml");
        let text = format!(
            "state_dir = \"{at}/state\"\nruntime_dir = \"{at}/run\"\nrate_card = \"{}\"\n[status]\nlisten = \"off\"\n[gpu]\nnvml = \"off\"\n",
            card.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut command = self.program(ATTACKER, &self.agent.path("meterd"));
        command.arg("--config").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let running = Running(command.spawn().unwrap());
        let socket = home.join("run/meterd.sock");
        self.agent.wait_for("the user's own agent answers", |_| crate::agent::ask(&socket, "GET", "/healthz", None).is_some());
        running
    }

    /// A script by the attacker that goes on beside the test.
    pub(crate) fn beside(&self, script: &str) -> Running {
        let mut command = self.program(ATTACKER, Path::new("/bin/sh"));
        command.args(["-c", &format!("{PRELUDE}{script}")]).stdin(Stdio::piped()).stdout(Stdio::piped());
        Running(command.spawn().unwrap())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.agent.kill();
        let name = self.parent[0].file_name().unwrap().to_owned();
        let everywhere = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|mount| mount.path().join(&name));
        let made: Vec<PathBuf> = self.parent.iter().cloned().chain(everywhere).filter(|dir| dir.exists()).collect();
        if !made.is_empty() {
            clear(&made);
        }
        for runner in &mut self.runners {
            drop(runner.kill());
            drop(runner.wait());
        }
    }
}

/// A process that is killed at the end.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    /// Its next line.
    pub(crate) fn line(&mut self) -> String {
        use std::io::Read as _;
        let mut line = String::new();
        let mut byte = [0_u8];
        let stdout = self.0.stdout.as_mut().unwrap();
        while stdout.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(char::from(byte[0]));
        }
        line
    }

    pub(crate) fn go(&mut self) {
        drop(self.0.stdin.take());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The tools where every user finds them, and a folder for what the attacker writes.
fn furnish(folder: &Path) {
    open_to_all(folder, 0o755);
    for (name, text) in [
        ("bomb.pl", include_str!("bomb.pl")),
        ("call.pl", include_str!("call.pl")),
        ("crowd.pl", include_str!("crowd.pl")),
        ("impostor.pl", include_str!("impostor.pl")),
        ("jobs.pl", include_str!("jobs.pl")),
        ("memory.pl", include_str!("memory.pl")),
    ] {
        std::fs::write(folder.join(name), text).unwrap();
        open_to_all(&folder.join(name), 0o644);
    }
    place(Path::new(env!("CARGO_BIN_EXE_meterctl")), &folder.join("meterctl"));
    let home = folder.join("home");
    std::fs::create_dir(&home).unwrap();
    give(&home, ATTACKER);
}

/// Another name for a program, where every user can run it.
pub(crate) fn place(program: &Path, at: &Path) {
    if std::fs::hard_link(program, at).is_err() {
        std::fs::copy(program, at).unwrap();
    }
    open_to_all(at, 0o755);
}
