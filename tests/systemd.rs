//! The agent as systemd starts it: a socket handed over (`LISTEN_FDS`), and messages back (`NOTIFY_SOCKET`), by the real program.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// No test waits longer, on any machine.
const PATIENCE: Duration = Duration::from_mins(2);

/// Starts the agent in a shell that becomes it, as `LISTEN_PID` must be its own.
fn start(dir: &Path, listener: &UnixListener) -> Child {
    let card = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/ratecards/standard.toml");
    let config = format!(
        "state_dir = \"{}\"\nruntime_dir = \"{}\"\nrate_card = \"{}\"\ninterval_ms = 100\n[status]\nlisten = \"off\"\n[gpu]\nnvml = \"off\"\n",
        dir.join("state").display(),
        dir.join("run").display(),
        card.display()
    );
    std::fs::write(dir.join("meterd.toml"), config).unwrap();
    fcntl_setfd(listener, FdFlags::empty()).unwrap();
    // bash, since other shells know no descriptor above 9.
    let script = format!("exec 3<&{}; LISTEN_PID=$$ exec \"$METERD\" --config \"$CONFIG\"", listener.as_raw_fd());
    let mut command = Command::new("bash");
    command.args(["-c", &script]).env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "api");
    command.env("METERD", env!("CARGO_BIN_EXE_meterd")).env("CONFIG", dir.join("meterd.toml"));
    command.env("NOTIFY_SOCKET", dir.join("notify")).stderr(Stdio::null()).spawn().unwrap()
}

/// The answer to a call, from its first line on.
fn call(socket: &Path, path: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Waits for a message that holds `wanted`.
fn hear(systemd: &UnixDatagram, wanted: &str) {
    let mut bytes = [0_u8; 1_024];
    loop {
        let length = systemd.recv(&mut bytes).unwrap_or_else(|error| panic!("{wanted} was never said: {error}"));
        if std::str::from_utf8(&bytes[..length]).unwrap().lines().any(|line| line.starts_with(wanted)) {
            return;
        }
    }
}

fn signal(agent: &Child, signal: Signal) {
    kill_process(Pid::from_child(agent), signal).unwrap();
}

#[test]
fn a_socket_that_systemd_holds_is_served_and_outlives_the_agent() {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("run")).unwrap();
    let socket = dir.path().join("run/meterd.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let systemd = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    systemd.set_read_timeout(Some(PATIENCE)).unwrap();

    for life in ["first", "second"] {
        let mut agent = start(dir.path(), &listener);
        hear(&systemd, "READY=1");
        assert!(call(&socket, "/healthz").starts_with("HTTP/1.1 200"), "{life}: ready means that the first tick is done");
        hear(&systemd, "WATCHDOG=1");
        signal(&agent, Signal::HUP);
        hear(&systemd, "RELOADING=1");
        hear(&systemd, "READY=1");
        signal(&agent, Signal::TERM);
        hear(&systemd, "STOPPING=1");
        assert!(agent.wait().unwrap().success(), "{life}: ended as asked");
        assert!(socket.exists(), "{life}: the socket stays for the next agent");
    }
}

#[test]
fn a_mistake_in_the_configuration_ends_with_78_which_is_not_restarted() {
    let dir = TempDir::new().unwrap();
    let config = dir.path().join("meterd.toml");
    std::fs::write(&config, "interval_ms = 0\nenforcment = \"enforce\"\n").unwrap();
    for arguments in [&["--check-config"][..], &[]] {
        let output = Command::new(env!("CARGO_BIN_EXE_meterd")).args(arguments).arg("--config").arg(&config).output().unwrap();
        assert_eq!(output.status.code(), Some(78), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("meterd.toml:1:") && said.contains("did you mean enforcement?"), "{said}");
    }
}

/// What waits at a socket that systemd holds would have it start the agent again and again.
#[test]
fn an_agent_that_does_not_start_leaves_nobody_waiting_at_either_socket() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("meterd.toml"), "interval_ms = 0\n").unwrap();
    let (api, status) = (UnixListener::bind(dir.path().join("api")).unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    fcntl_setfd(&api, FdFlags::empty()).unwrap();
    fcntl_setfd(&status, FdFlags::empty()).unwrap();
    let callers: Vec<UnixStream> = (0..3).map(|_| UnixStream::connect(dir.path().join("api")).unwrap()).collect();
    let visitor = TcpStream::connect(status.local_addr().unwrap()).unwrap();
    // By way of two that nobody has: these may be 3 and 4 themselves.
    let script = format!(
        "exec 60<&{} 61<&{} 3<&60 4<&61 60<&- 61<&-; LISTEN_PID=$$ exec \"$METERD\" --config \"$CONFIG\"",
        status.as_raw_fd(),
        api.as_raw_fd()
    );
    let mut command = Command::new("bash");
    command.args(["-c", &script]).env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", "status:api");
    command.env("METERD", env!("CARGO_BIN_EXE_meterd")).env("CONFIG", dir.path().join("meterd.toml"));
    assert_eq!(command.stderr(Stdio::null()).status().unwrap().code(), Some(78));
    api.set_nonblocking(true).unwrap();
    status.set_nonblocking(true).unwrap();
    assert!(api.accept().is_err() && status.accept().is_err(), "nobody waits there any more");
    drop((callers, visitor));
}

#[test]
fn the_unit_leaves_systemd_no_reason_to_take_away_the_right_to_run_the_sites_command_as_another() {
    let unit = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/meterd.service")).unwrap();
    let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let bounding = value("CapabilityBoundingSet").unwrap();
    assert!(["CAP_SETUID", "CAP_SETGID"].iter().all(|right| bounding.split(' ').any(|word| word == *right)), "{bounding}");
    // With both, systemd drops CAP_SETUID after it has set the filter, root or not.
    assert!(value("SystemCallFilter").is_some() && value("User").is_none());
}
