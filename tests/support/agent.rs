//! The real agent in a folder of its own, spoken to over its socket by a client that shares no code with it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// However busy the machine, a step that takes longer than this does not come.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) struct Agent {
    pub(crate) folder: tempfile::TempDir,
    child: Option<Child>,
    /// The program: what is installed.
    pub(crate) program: PathBuf,
    /// Words before it, such as those of `nsenter`.
    pub(crate) before: Vec<String>,
    /// Further environment.
    pub(crate) environment: Vec<(String, String)>,
}

impl Agent {
    /// An agent with this card and these further lines of configuration, started and ready.
    pub(crate) fn start(card: &str, top: &str, tables: &str) -> Agent {
        Agent::start_lacking("", card, top, tables, |_| ())
    }

    /// The same without some defences, for attempts that must be seen to succeed without them; `prepare` is given the folder before the agent
    /// sees it.
    pub(crate) fn start_lacking(lacks: &str, card: &str, top: &str, tables: &str, prepare: impl FnOnce(&Path)) -> Agent {
        let mut agent = Agent::new(card, top, tables);
        agent.environment.push(("METERD_LACKS".to_owned(), lacks.to_owned()));
        prepare(agent.folder.path());
        agent.launch();
        agent
    }

    /// An agent that is not started yet.
    pub(crate) fn new(card: &str, top: &str, tables: &str) -> Agent {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        std::fs::write(folder.path().join("card.toml"), card).unwrap();
        let config = format!(
            "node = \"test\"\nstate_dir = \"{at}/state\"\nruntime_dir = \"{at}/run\"\nrate_card = \"{at}/card.toml\"\n{top}\n\
             {}{}{}{tables}\n",
            if tables.contains("[status]") { "" } else { "[status]\nlisten = \"off\"\n" },
            if tables.contains("[warn]") { "" } else { "[warn]\nterminals = \"off\"\n" },
            if tables.contains("[gpu]") { "" } else { "[gpu]\nnvml = \"off\"\n" }
        );
        std::fs::write(folder.path().join("meterd.toml"), config).unwrap();
        let program = PathBuf::from(env!("CARGO_BIN_EXE_meterd"));
        Agent { folder, child: None, program, before: Vec::new(), environment: Vec::new() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts the process (again), whatever becomes of it.
    pub(crate) fn spawn(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let program = self.program.display().to_string();
        let words: Vec<&String> = self.before.iter().chain([&program]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg("--config").arg(self.path("meterd.toml"));
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.child = Some(child);
    }

    /// Starts the process (again) and waits until it is ready.
    pub(crate) fn launch(&mut self) {
        self.spawn();
        self.wait_for("the agent is ready", |agent| agent.try_ask("GET", "/readyz", None).is_some_and(|(status, _)| status == 200));
    }

    /// SIGKILL, and the end of the process.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Sends a signal by its name, such as `HUP`.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Waits for the process to end by itself.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        self.end().code()
    }

    /// The same, with the signal that ended it, if one did.
    pub(crate) fn end(&mut self) -> std::process::ExitStatus {
        let mut child = self.child.take().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the agent does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// One call; `None` if the agent does not answer.
    pub(crate) fn try_ask(&self, method: &str, path: &str, body: Option<&Value>) -> Option<(u16, Value)> {
        ask(&self.path("run/meterd.sock"), method, path, body)
    }

    /// One call that must be answered.
    pub(crate) fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        self.try_ask(method, path, body).unwrap_or_else(|| panic!("no answer to {method} {path}; the log:\n{}", self.log()))
    }

    /// One call that must succeed. Where the authority was too slow on a busy machine it is made again, as the hint says.
    pub(crate) fn done(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let (status, value) = loop {
            let (status, value) = self.ask(method, path, body);
            let late = status == 503 && value["error"]["code"] == "authority_unreachable" && Instant::now() < deadline;
            if !late {
                break (status, value);
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        assert!((200..300).contains(&status), "{method} {path}: {status} {value}");
        value
    }

    pub(crate) fn wait_for(&self, what: &str, holds: impl Fn(&Agent) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "not within a minute: {what}; the log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(25));
        }
    }

    /// The last lines of its log.
    pub(crate) fn log(&self) -> String {
        let text = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One HTTP/1.1 call over a Unix socket.
pub(crate) fn ask(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> Option<(u16, Value)> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let body = body.map(Value::to_string).unwrap_or_default();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: meterd\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, serde_json::from_str(body).unwrap_or(Value::String(body.to_owned()))))
}
