//! `meterctl doctor` on set-ups that are really broken: each fault is made, and its finding must be there; before it, it must not.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/agent.rs"]
#[expect(dead_code, reason = "what other tests need of it")]
mod agent;
#[path = "stub_nvml/mod.rs"]
#[expect(dead_code, reason = "what other tests need of it")]
mod stub_nvml;
#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agent::{Agent, PATIENCE};
use meterd::domain::batch::{Batch, Row};
use meterd::domain::enforcement::Enforcement;
use meterd::domain::fact::Fact;
use meterd::domain::id::Uid;
use meterd::domain::time::Wall;
use meterd::node::clock;
use meterd::node::journal::{Journal, Keep};
use serde_json::{Value, json};

const CARD: &str = "card = \"test\"\nversion = 2\neffective_from = \"2026-01-01T00:00:00Z\"\n\
    [[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"417\"\nunit = \"core-hour\"\n";
/// What may be said of the machine that the tests run on.
const OF_THE_MACHINE: &[&str] = &[
    "cgroup_hybrid",
    "cgroup_v1_only",
    "no_real_time",
    "no_systemd",
    "unit_absent",
    "unit_not_enabled",
    "socket_not_enabled",
    "unit_masked",
    "program_absent",
    "no_operators_group",
    "no_pressure",
    "no_cgroup_kill",
    "kernel_old",
    "no_freezer",
    "no_memory_controller",
    "not_root",
    "no_cgroups",
    "no_cpu_time",
    "cgroup_read_only",
    "disk_low",
    "disk_full",
    "state_not_durable",
    "ticks_missed",
    "only_observing",
    "nvml_absent",
    "nvml_fails",
    "gpus_not_metered",
];

fn root() -> Result<(), String> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err("needs root".to_owned()) }
}

/// Codes with their severities, and the exit code.
struct Said {
    codes: BTreeMap<String, String>,
    exit: Option<i32>,
}

impl Said {
    fn has(&self, code: &str, severity: &str) {
        assert_eq!(self.codes.get(code).map(String::as_str), Some(severity), "{code}: {:?}", self.codes);
        let expected = if self.codes.values().any(|severity| severity != "advice") { 4 } else { 0 };
        assert_eq!(self.exit, Some(expected), "{:?}", self.codes);
    }

    fn has_not(&self, code: &str) {
        assert!(!self.codes.contains_key(code), "{code}: {:?}", self.codes);
    }
}

/// What is said of this configuration, by a doctor that `wrap` starts.
fn said_by(wrap: &[&str], config: &Path) -> Said {
    let program = env!("CARGO_BIN_EXE_meterctl");
    let words: Vec<&str> = wrap.iter().copied().chain([program, "doctor", "-o", "json", "--config"]).collect();
    let output = Command::new(words[0]).args(&words[1..]).arg(config).env_remove("METERD_SOCKET").stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let document: Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    let findings = document["findings"].as_array().unwrap();
    let word = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    for finding in findings {
        assert!(!word(finding, "finding").is_empty() && !word(finding, "remedy").is_empty(), "{finding}");
    }
    let codes = findings.iter().map(|finding| (word(finding, "code"), word(finding, "severity"))).collect();
    Said { codes, exit: output.status.code() }
}

fn said(config: &Path) -> Said {
    said_by(&[], config)
}

/// The same after `commands`, in mounts of its own.
fn said_after(commands: &str, config: &Path) -> Said {
    let script = format!("{commands}; exec \"$@\"");
    said_by(&["unshare", "--mount", "--propagation", "private", "sh", "-ec", &script, "sh"], config)
}

fn of_agent(agent: &Agent) -> Said {
    said(&agent.path("meterd.toml"))
}

/// A site without an agent: configuration, card and state folder.
struct Site(tempfile::TempDir);

impl Site {
    fn new() -> Site {
        let site = Site(tempfile::tempdir().unwrap());
        site.configure("", "");
        fs::write(site.path("card.toml"), CARD).unwrap();
        fs::create_dir(site.path("state")).unwrap();
        fs::create_dir(site.path("run")).unwrap();
        mode(&site.path("state"), 0o750);
        mode(&site.path("run"), 0o755);
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn configure(&self, top: &str, tables: &str) {
        let at = self.0.path().display();
        let gpu = if tables.contains("[gpu]") { "" } else { "[gpu]\nnvml = \"off\"\n" };
        let text =
            format!("state_dir = \"{at}/state\"\nruntime_dir = \"{at}/run\"\nrate_card = \"{at}/card.toml\"\n{top}\n{gpu}{tables}\n");
        fs::write(self.path("meterd.toml"), text).unwrap();
        mode(&self.path("meterd.toml"), 0o644);
    }

    fn said(&self) -> Said {
        said(&self.path("meterd.toml"))
    }

    fn said_after(&self, commands: &str) -> Said {
        said_after(&commands.replace("STATE", &self.path("state").display().to_string()), &self.path("meterd.toml"))
    }
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Every file below a folder: name, size, times of change, bytes.
fn seen(folder: &Path) -> BTreeMap<PathBuf, (u64, i64, i64, Vec<u8>)> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let found = fs::symlink_metadata(&path).unwrap();
            if found.is_dir() {
                folders.push(path.clone());
            }
            let bytes = if found.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            files.insert(path, (found.len(), found.mtime(), found.mtime_nsec(), bytes));
        }
    }
    files
}

fn add_fact(state: &Path, wall: Wall, bytes: Vec<u8>) {
    let (mut journal, _) = Journal::open(state, Keep::default()).unwrap();
    let first_seq = journal.head().seq + 1;
    journal.commit(&Batch { first_seq, rows: vec![Row { wall, bytes }], ..Batch::default() }).unwrap();
}

fn some_fact() -> Vec<u8> {
    Fact::EnforcementSet { mode: Enforcement::Observe, by: Uid(0) }.encode()
}

#[test]
fn of_a_healthy_agent_nothing_is_said_and_of_a_killed_one_nothing_is_changed() {
    let mut agent = Agent::start(CARD, "", "");
    let healthy = of_agent(&agent);
    let strange: Vec<&String> = healthy.codes.keys().filter(|code| !OF_THE_MACHINE.contains(&code.as_str())).collect();
    assert!(strange.is_empty(), "{:?}", healthy.codes);
    println!("of this machine: {:?}", healthy.codes);
    healthy.has("only_observing", "advice");
    agent.kill();
    assert!(agent.path("state/journal.db-wal").exists(), "a killed agent leaves its log");
    let before = seen(agent.folder.path());
    of_agent(&agent).has("agent_down", "error");
    assert!(seen(agent.folder.path()) == before, "a file was changed");
}

#[test]
fn what_is_wrong_with_the_configuration_is_found() {
    let site = Site::new();
    let well = site.said();
    for code in ["config_mistake", "config_unreadable", "file_exposed", "rate_card_mistake", "rate_card_ahead", "user_unknown"] {
        well.has_not(code);
    }
    site.configure("intervall_ms = 1000", "");
    site.said().has("config_mistake", "error");
    site.configure("", "[access]\noperators_group = \"no-such-group\"\n[access.accounts]\nno-such-user = [\"lab\"]");
    site.said().has("user_unknown", "warning");
    site.said().has("no_operators_group", "advice");
    site.configure("", "");
    mode(&site.path("meterd.toml"), 0o666);
    site.said().has("file_exposed", "error");
    site.configure("", "");
    fs::write(site.path("card.toml"), CARD.replace("2026-01", "2999-01")).unwrap();
    site.said().has("rate_card_ahead", "warning");
    fs::write(site.path("card.toml"), CARD.replace("core-hour", "gpu-hour")).unwrap();
    site.said().has("rate_card_mistake", "error");
    fs::remove_file(site.path("card.toml")).unwrap();
    site.said().has("rate_card_unreadable", "error");
    fs::remove_file(site.path("meterd.toml")).unwrap();
    site.said().has("config_unreadable", "error");
}

#[test]
fn what_is_wrong_with_the_folders_is_found() {
    let site = Site::new();
    let well = site.said();
    for code in ["state_dir_exposed", "state_dir_open", "state_dir_absent", "runtime_dir_exposed", "runtime_dir_closed"] {
        well.has_not(code);
    }
    well.has("journal_absent", "advice");
    for (folder, bits, code, severity) in [
        ("state", 0o777, "state_dir_exposed", "error"),
        ("state", 0o755, "state_dir_open", "warning"),
        ("run", 0o777, "runtime_dir_exposed", "error"),
        ("run", 0o750, "runtime_dir_closed", "warning"),
    ] {
        mode(&site.path(folder), bits);
        site.said().has(code, severity);
        mode(&site.path(folder), 0o755);
    }
    fs::write(site.path("run/meterd.sock"), "").unwrap();
    site.said().has("socket_replaced", "error");
    fs::remove_dir(site.path("state")).unwrap();
    site.said().has("state_dir_absent", "warning");
    std::os::unix::fs::symlink("/tmp", site.path("state")).unwrap();
    site.said().has("state_dir_replaced", "error");
}

#[test]
fn what_is_wrong_with_the_spool_is_found() {
    let site = Site::new();
    site.said().has_not("spool_backlog");
    let hook = Command::new(env!("CARGO_BIN_EXE_meterctl"))
        .arg("--socket")
        .arg(site.path("run/meterd.sock"))
        .args(["job", "stop", "slurm:1", "--hook", "--spool"])
        .arg(site.path("state/spool"))
        .output()
        .unwrap();
    assert!(hook.status.success());
    site.said().has("spool_backlog", "warning");
    fs::write(site.path("state/spool/0000000000000001-1-start.json"), "{").unwrap();
    site.said().has("spool_rejected", "warning");
    mode(&site.path("state/spool"), 0o777);
    site.said().has("spool_unusable", "error");
}

#[test]
fn what_is_wrong_with_the_journal_and_the_balances_is_found() {
    let mut agent = Agent::start(CARD, "", "");
    agent.done("POST", "/v1/accounts", Some(&json!({ "account": "lab" })));
    agent.kill();
    let state = agent.path("state");
    let well = of_agent(&agent);
    for code in ["journal_damaged", "authority_damaged", "clock_stepped_back", "journal_newer"] {
        well.has_not(code);
    }
    let held = rusqlite::Connection::open(state.join("authority.db")).unwrap();
    held.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE").unwrap();
    of_agent(&agent).has_not("authority_damaged");
    drop(held);
    add_fact(&state, Wall(clock::now().wall.0 + 86_400_000), some_fact());
    of_agent(&agent).has("clock_stepped_back", "warning");
    add_fact(&state, clock::now().wall, vec![200, 1, 2]);
    of_agent(&agent).has("journal_newer", "error");
    let connection = rusqlite::Connection::open(state.join("journal.db")).unwrap();
    connection.execute("UPDATE fact SET bytes = x'0102' WHERE seq = (SELECT max(seq) FROM fact)", []).unwrap();
    drop(connection);
    of_agent(&agent).has("journal_damaged", "error");
    fs::write(state.join("authority.db"), "not a database, however long it is read").unwrap();
    let _ = fs::remove_file(state.join("authority.db-wal"));
    of_agent(&agent).has("authority_damaged", "error");
}

#[test]
fn what_is_wrong_with_a_running_agent_is_found() {
    let Some(()) = support::need("kernel", root()) else { return };
    let mut agent = Agent::start(CARD, "", "");
    let socket = agent.path("run/meterd.sock");
    mode(&socket, 0o600);
    of_agent(&agent).has("socket_closed", "error");
    mode(&socket, 0o666);
    fs::write(agent.path("card.toml"), CARD.replace("version = 2", "version = 3")).unwrap();
    of_agent(&agent).has("rate_card_not_loaded", "warning");
    fs::write(agent.path("card.toml"), CARD.replace("version = 2", "version = 1")).unwrap();
    agent.signal("HUP");
    agent.wait_for("the card is refused", |agent| agent.done("GET", "/v1/status", None)["card_refused"].is_string());
    of_agent(&agent).has("rate_card_refused", "warning");
    let lock = fs::metadata(agent.path("state/journal.lock")).unwrap().ino().to_string();
    let locks = fs::read_to_string("/proc/locks").unwrap();
    let pid =
        locks.lines().find(|line| line.contains(&format!(":{lock} "))).and_then(|line| line.split_whitespace().nth(4)).unwrap().to_owned();
    of_agent(&agent).has_not("over_budget");
    of_agent(&agent).has_not("few_descriptors");
    assert!(Command::new("prlimit").args(["--pid", &pid, "--nofile=100:100"]).status().unwrap().success());
    of_agent(&agent).has("few_descriptors", "warning");
    agent.signal("STOP");
    of_agent(&agent).has("agent_silent", "error");
    agent.signal("CONT");
    agent.kill();
    of_agent(&agent).has("agent_down", "error");
}

/// A process of ours, ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_agent_without_a_card_in_force_is_found() {
    let site = Site::new();
    fs::write(site.path("card.toml"), CARD.replace("2026-01", "2999-01")).unwrap();
    site.configure("", "[status]\nlisten = \"off\"");
    let mut command = Command::new(env!("CARGO_BIN_EXE_meterd"));
    let child = command.arg("--config").arg(site.path("meterd.toml")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let _running = Running(child);
    let deadline = Instant::now() + PATIENCE;
    // While it starts it is down, then silent, then without a picture of the node.
    let said = loop {
        let said = site.said();
        if said.codes.contains_key("no_rate_card") || deadline < Instant::now() {
            break said;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    said.has("no_rate_card", "error");
}

#[test]
fn jobs_that_a_dead_agent_left_frozen_are_found() {
    let Some(()) = support::need("kernel", root()) else { return };
    let mut agent = Agent::start(CARD, "enforcement = \"enforce\"", "[cgroup]\nparent = \"meterd-test-doctor\"");
    agent.done("POST", "/v1/accounts", Some(&json!({ "account": "lab" })));
    agent.done("POST", "/v1/accounts/lab/topup", Some(&json!({ "amount": "0.05", "bucket": "paid" })));
    let mut run = Command::new(env!("CARGO_BIN_EXE_meterctl"));
    run.arg("--socket").arg(agent.path("run/meterd.sock")).args([
        "run",
        "--account",
        "lab",
        "--job",
        "hungry",
        "--",
        "sh",
        "-c",
        "while :; do :; done",
    ]);
    let mut run = run.stdin(Stdio::null()).spawn().unwrap();
    let frozen = |agent: &Agent| agent.done("GET", "/v1/jobs", None)["jobs"][0]["phase"] == "frozen";
    agent.wait_for("it is frozen", frozen);
    agent.wait_for("that is on disk", |agent| {
        let status = agent.done("GET", "/v1/status", None);
        status["journal"]["seq"] == status["journal"]["durable_seq"]
    });
    of_agent(&agent).has_not("frozen_without_agent");
    agent.kill();
    of_agent(&agent).has("frozen_without_agent", "warning");
    agent.launch();
    agent.done("POST", "/v1/jobs/hungry/stop", Some(&json!({ "outcome": "cancelled" })));
    agent.done("POST", "/v1/enforcement", Some(&json!({ "mode": "observe" })));
    let below = |root: &str| -> Vec<PathBuf> {
        let entries = fs::read_dir(format!("{root}/meterd-test-doctor")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
    };
    let dirs = || [below("/sys/fs/cgroup"), below("/sys/fs/cgroup/unified")].concat();
    for dir in dirs() {
        fs::write(dir.join("cgroup.kill"), "1").unwrap();
    }
    assert_eq!(run.wait().unwrap().code(), Some(137));
    agent.wait_for("its cgroup is removed", |_| dirs().is_empty());
}

#[test]
fn a_bad_disk_is_found() {
    let Some(()) = support::need("kernel", root()) else { return };
    let site = Site::new();
    let table = [
        ("size=8m", "disk_full", "error"),
        ("size=256m", "disk_low", "warning"),
        ("size=1g", "state_not_durable", "warning"),
        ("size=1g,nr_inodes=20", "disk_no_inodes", "error"),
    ];
    for (options, code, severity) in table {
        site.said_after(&format!("mount -t tmpfs -o {options},mode=750 none STATE")).has(code, severity);
    }
    site.said_after("mount -t tmpfs -o mode=750 none STATE; mount -o remount,ro STATE").has("disk_read_only", "error");
    site.said().has_not("disk_read_only");
}

fn hybrid() -> Result<(), String> {
    root()?;
    if Path::new("/sys/fs/cgroup/unified/cgroup.controllers").exists() {
        Ok(())
    } else {
        Err("cgroups are not mounted as hybrid".to_owned())
    }
}

#[test]
fn missing_cgroups_are_found() {
    let Some(()) = support::need("hybrid", hybrid()) else { return };
    let site = Site::new();
    let well = site.said();
    well.has("cgroup_hybrid", "advice");
    for code in ["no_cgroups", "cgroup_v1_only", "no_memory_controller", "cgroup_read_only", "no_freezer"] {
        well.has_not(code);
    }
    site.said_after("umount -R /sys/fs/cgroup").has("no_cgroups", "error");
    site.said_after("umount /sys/fs/cgroup/unified").has("cgroup_v1_only", "warning");
    site.said_after("umount /sys/fs/cgroup/memory").has("no_memory_controller", "warning");
    site.said_after("umount /sys/fs/cgroup/unified; umount /sys/fs/cgroup/freezer").has("no_freezer", "warning");
    site.said_after("mount -o remount,bind,ro /sys/fs/cgroup/unified").has("cgroup_read_only", "error");
}

#[test]
fn an_old_kernel_missing_rights_and_missing_priority_are_found() {
    let Some(()) = support::need("kernel", root()) else { return };
    let site = Site::new();
    let config = site.path("meterd.toml");
    site.said().has_not("kernel_too_old");
    said_by(&["setarch", "--uname-2.6"], &config).has("kernel_too_old", "error");
    let without = ["setpriv", "--bounding-set=-sys_nice", "--inh-caps=-all"];
    said_by(&without, &config).has("no_real_time", "warning");
    mode(site.0.path(), 0o755);
    let program = site.path("meterctl");
    fs::copy(env!("CARGO_BIN_EXE_meterctl"), &program).unwrap();
    let mut other = Command::new("setpriv");
    other.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program).args(["doctor", "--config"]).arg(&config);
    let text = String::from_utf8(other.output().unwrap().stdout).unwrap();
    assert!(text.contains("not_root") && text.contains("state_dir_unreadable"), "{text}");
}

#[test]
fn what_is_wrong_with_the_units_is_found() {
    let Some(()) = support::need("kernel", root()) else { return };
    let site = Site::new();
    // As on a machine with systemd, and nothing of ours on it.
    let bare = "mkdir -p /run/systemd; mount -t tmpfs none /run/systemd; mkdir /run/systemd/system; mount -t tmpfs none /etc/systemd; \
        mkdir -p /etc/systemd/system/multi-user.target.wants /etc/systemd/system/sockets.target.wants";
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd");
    let installed = format!("{bare}; cp {0}/meterd.service {0}/meterd.socket /etc/systemd/system/", units.display());
    let enabled = format!(
        "{installed}; ln -s ../meterd.service /etc/systemd/system/multi-user.target.wants/; ln -s ../meterd.socket /etc/systemd/system/sockets.target.wants/"
    );
    site.said_after(bare).has("unit_absent", "warning");
    site.said_after(&installed).has("unit_not_enabled", "warning");
    site.said_after(&installed).has("socket_not_enabled", "warning");
    site.said_after(&format!("{bare}; ln -s /dev/null /etc/systemd/system/meterd.service")).has("unit_masked", "error");
    let broken = format!("{enabled}; sed -i 's|ExecStart=/usr/bin/meterd|ExecStart=/nowhere/meterd|' /etc/systemd/system/meterd.service");
    site.said_after(&broken).has("program_absent", "error");
    let well =
        site.said_after(&format!("{enabled}; sed -i 's|ExecStart=/usr/bin/meterd|ExecStart=/bin/sh|' /etc/systemd/system/meterd.service"));
    for code in ["unit_absent", "unit_not_enabled", "socket_not_enabled", "unit_masked", "program_absent", "no_systemd"] {
        well.has_not(code);
    }
}

#[test]
fn a_driver_that_fails_hangs_or_is_not_asked_is_found() {
    let Some(()) = support::need("kernel", root()) else { return };
    let site = Site::new();
    let stub = stub_nvml::Stub::new("gpu 0 GPU-5f1c3a52-0000-0000-0000-000000000000 85899345920 0 NVIDIA H100\n");
    site.configure("", &format!("[gpu]\nlibrary = \"{}\"", stub.library().display()));
    for code in ["nvml_fails", "nvml_hangs", "nvml_absent"] {
        site.said().has_not(code);
    }
    stub.says("error nvmlInit_v2 18\n"); // the library is of another version than the driver
    site.said().has("nvml_fails", "error");
    stub.says("hang nvmlInit_v2\n");
    site.said().has("nvml_hangs", "error");
    let driver = "mount -t tmpfs none /proc/driver; mkdir /proc/driver/nvidia; echo 'NVRM version' > /proc/driver/nvidia/version";
    site.configure("", "[gpu]\nlibrary = \"libno-such-nvml.so.1\"");
    site.said().has_not("nvml_absent");
    site.said_after(driver).has("nvml_absent", "warning");
    site.configure("", "[gpu]\nnvml = \"off\"");
    site.said_after(driver).has("gpus_not_metered", "warning");
}
