//! A machine of its own whose first process is the real systemd: namespaces, a layer in memory above this machine's file system, and
//! cgroups beneath one that is made for it (`boot.sh`). All of it goes when this goes.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::support;

/// However busy the machine, a step that takes longer than this does not come.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);

/// Enters the cgroup $1 and the namespaces of process $2, and runs the script $3 there, by the words $4 if there are any.
const ENTER: &str = r#"echo 0 >"$1/cgroup.procs"; exec nsenter --target "$2" --mount --uts --ipc --net --pid --cgroup -- $4 sh -c "cd /usr/src/meterd; $3""#;

/// One machine at a time: each holds the programs in memory.
static TURN: Mutex<()> = Mutex::new(());

pub(crate) struct Machine {
    outer: Child,
    init: String,
    /// Its cgroups, in cgroup2: what it sees as the root.
    pub(crate) cgroup: PathBuf,
    folder: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Machine {
    /// Booted, with nothing of meterd in it; none where no such machine can be made.
    pub(crate) fn boot() -> Option<Machine> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let machine = support::need("systemd", Machine::try_boot(turn))?;
        machine.wait_for("systemd has booted", |machine| {
            let state = machine.tries("systemctl is-system-running");
            let state = text(&state.stdout);
            assert_ne!(state, "degraded", "{}", machine.tries_text("systemctl --failed --no-pager"));
            state == "running"
        });
        Some(machine)
    }

    fn try_boot(turn: MutexGuard<'static, ()>) -> Result<Machine, String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            return Err("a machine of its own needs root".to_owned());
        }
        if !Path::new("/lib/systemd/systemd").exists() {
            return Err("systemd is not installed".to_owned());
        }
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let name = format!("meterd-systemd-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let cgroup = make_cgroup(&name)?;
        let outer = start(folder.path(), &cgroup).map_err(|error| format!("setpriv: {error}"))?;
        let mut machine = Machine { outer, init: String::new(), cgroup, folder, _turn: turn };
        let deadline = Instant::now() + PATIENCE;
        while !machine.folder.path().join("booting").exists() {
            let ended = machine.outer.try_wait().map_err(|error| error.to_string())?;
            if ended.is_some() || deadline < Instant::now() {
                let said = std::fs::read_to_string(machine.folder.path().join("said")).unwrap_or_default();
                return Err(format!("no machine of its own can be made here: {}", said.trim_end()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        std::fs::read_to_string(machine.folder.path().join("pid")).unwrap().trim().clone_into(&mut machine.init);
        Ok(machine)
    }

    /// A shell script by root in the machine, where the sources are.
    pub(crate) fn command(&self, script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", ENTER, "sh"]).arg(self.cgroup.join("console")).args([&self.init, script]);
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8");
        command.stdin(Stdio::null());
        command
    }

    /// The same, awaited, and ended where it goes on for longer than anything here may take.
    pub(crate) fn tries(&self, script: &str) -> Output {
        self.command(script).arg("timeout 180").output().unwrap()
    }

    /// What a script says, whether it succeeds or not.
    pub(crate) fn tries_text(&self, script: &str) -> String {
        let output = self.tries(script);
        text(&output.stdout) + "\n" + &text(&output.stderr)
    }

    /// What a script prints, which must succeed.
    pub(crate) fn done(&self, script: &str) -> String {
        let output = self.tries(script);
        assert!(output.status.success(), "{script}: {}: {}\n{}", output.status, text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// The JSON document that a command prints.
    pub(crate) fn document(&self, script: &str) -> Value {
        let text = self.done(script);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{script}: {error}: {text}"))
    }

    /// A property of a unit.
    pub(crate) fn property(&self, unit: &str, name: &str) -> String {
        self.done(&format!("systemctl show --value --property={name} {unit}"))
    }

    pub(crate) fn journal(&self, unit: &str) -> String {
        self.done(&format!("journalctl --sync; journalctl --no-pager --output=cat --unit={unit}"))
    }

    pub(crate) fn wait_for(&self, what: &str, holds: impl Fn(&Machine) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "not within two minutes: {what}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A file of the machine's.
    pub(crate) fn write(&self, path: &str, text: &str) {
        std::fs::write(self.folder.path().join("text"), text).unwrap();
        let input = std::fs::File::open(self.folder.path().join("text")).unwrap();
        let mut command = self.command(&format!("mkdir -p $(dirname {path}) && cat >{path}"));
        assert!(command.stdin(input).status().unwrap().success(), "{path}");
    }
}

/// What a program printed.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

/// In cgroup2, with one below it for what is done by hand.
fn make_cgroup(name: &str) -> Result<PathBuf, String> {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let mount = Path::new(if unified { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/unified" });
    let cgroup = mount.join(name);
    std::fs::create_dir(&cgroup).map_err(|error| format!("{}: {error}", cgroup.display()))?;
    if unified {
        for controller in ["+cpu", "+memory", "+pids"] {
            drop(std::fs::write(mount.join("cgroup.subtree_control"), controller));
        }
    }
    std::fs::create_dir(cgroup.join("console")).map_err(|error| error.to_string())?;
    Ok(cgroup)
}

/// The process that waits for the machine's first one. It ends with this thread, and the machine with it.
fn start(folder: &Path, cgroup: &Path) -> std::io::Result<Child> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
    let programs = Path::new(env!("CARGO_BIN_EXE_meterd")).parent().unwrap();
    let said = std::fs::File::create(folder.join("said"))?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--fork", "--kill-child=KILL", "--pid", "--mount", "--uts", "--ipc", "--net", "sh"]);
    command.arg(sources.join("tests/real_systemd/boot.sh")).args([folder, cgroup, sources, programs]);
    command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said).spawn()
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.init.is_empty() {
            println!(
                "{}",
                self.tries_text("systemctl --no-pager --all list-units 'meter*'; journalctl --no-pager --output=short-precise --lines=120")
            );
        }
        drop(self.outer.kill());
        drop(self.outer.wait());
        let deadline = Instant::now() + Duration::from_secs(30);
        while !remove(&self.cgroup) && Instant::now() < deadline {
            drop(std::fs::write(self.cgroup.join("cgroup.kill"), "1"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A cgroup and all below it, if nothing is in them any more.
fn remove(dir: &Path) -> bool {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    std::fs::remove_dir(dir).is_ok() || !dir.exists()
}
