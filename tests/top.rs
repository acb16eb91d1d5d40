//! `meterctl top` against the real agent: on a terminal, and where there is none.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/agent.rs"]
#[expect(dead_code, reason = "what other tests need of it")]
mod agent;
#[path = "support/pty.rs"]
mod pty;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agent::{Agent, PATIENCE};
use pty::Pty;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

const CARD: &str = "card = \"test\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n\
    [[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"1\"\nunit = \"core-hour\"\n";

/// A process of ours, ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An agent with an account and a job that burns a core, followed as a process.
fn agent() -> (Agent, Running) {
    let agent = Agent::start(CARD, "", "");
    agent.done("POST", "/v1/accounts", Some(&json!({ "account": "lab" })));
    agent.done("POST", "/v1/accounts/lab/topup", Some(&json!({ "amount": "5", "bucket": "paid" })));
    let burning = Running(Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap());
    let body = json!({ "job": "burner", "account": "lab", "uid": 1001, "process": { "pid": burning.0.id() } });
    agent.done("POST", "/v1/jobs", Some(&body));
    (agent, burning)
}

fn top(agent: &Agent, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meterctl"));
    command.arg("--socket").arg(agent.path("run/meterd.sock")).arg("top").args(arguments).env("TERM", "xterm").stdin(Stdio::null());
    command
}

/// What ends a screen.
type End = dyn Fn(&mut Pty, &Child);

fn wait_for(what: &str, pty: &Pty, holds: impl Fn(&str) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds(&pty.text()) {
        assert!(Instant::now() < deadline, "not within a minute: {what}: {:?}", pty.text());
        std::thread::sleep(Duration::from_millis(25));
    }
}

#[test]
fn a_table_is_printed_where_there_is_no_terminal() {
    let (agent, _burning) = agent();
    let output = top(&agent, &["--once"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && !text.contains('\x1b'), "{text:?}");
    for word in ["NAME", "lab", "burner", "running", "funded", "CPU", "MEMORY", "CHARGE", "OWED", "ZERO IN"] {
        assert!(text.contains(word), "{word} is not in {text}");
    }
    let mut many = top(&agent, &["--interval", "1s"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(many.stdout.take().unwrap()));
    let heads = lines.by_ref().map_while(Result::ok).filter(|line| line.starts_with("NAME")).take(2).count();
    assert_eq!(heads, 2, "one table an interval");
    drop(lines);
    assert!(many.wait().unwrap().success(), "a reader that goes away has seen enough");
}

#[test]
fn a_dumb_terminal_gets_plain_text() {
    let (agent, _burning) = agent();
    let pty = Pty::open(80, 24);
    let mut child = pty.spawn(top(&agent, &["--once"]).env("TERM", "dumb"));
    let text = pty.read_to_end(&mut child);
    assert!(text.contains("burner") && !text.contains('\x1b'), "{text:?}");
}

#[test]
fn without_an_agent_the_screen_is_not_touched() {
    let (mut agent, _burning) = agent();
    agent.kill();
    let pty = Pty::open(80, 24);
    let mut child = pty.spawn(&mut top(&agent, &[]));
    let text = pty.read_to_end(&mut child);
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert!(text.contains("the agent does not answer") && !text.contains('\x1b'), "{text:?}");
}

#[test]
fn the_screen_is_shown_and_the_terminal_given_back_whatever_ends_it() {
    let (agent, _burning) = agent();
    let quit = |pty: &mut Pty, _: &Child| pty.type_in("q");
    let interrupt = |pty: &mut Pty, _: &Child| pty.type_in("\x03");
    let terminate = |_: &mut Pty, child: &Child| kill_process(Pid::from_child(child), Signal::TERM).unwrap();
    let hang_up = |_: &mut Pty, child: &Child| kill_process(Pid::from_child(child), Signal::HUP).unwrap();
    let ends: [(&str, &End); 4] = [("q", &quit), ("^C", &interrupt), ("SIGTERM", &terminate), ("SIGHUP", &hang_up)];
    for (name, end) in ends {
        let mut pty = Pty::open(100, 24);
        let before = pty.modes();
        let mut child = pty.spawn(&mut top(&agent, &[]));
        wait_for("the job is shown", &pty, |text| text.contains("burner"));
        assert_ne!(pty.modes(), before, "the screen is raw");
        end(&mut pty, &child);
        let text = pty.read_to_end(&mut child);
        assert!(child.wait().unwrap().success(), "{name}: {text:?}");
        assert!(text.contains("\x1b[?1049h") && text.trim_end().ends_with("\x1b[?25h"), "{name}: the cursor is back at the end: {text:?}");
        assert!(text.rfind("\x1b[?1049l") > text.rfind("\x1b[?1049h"), "{name}: {text:?}");
        assert_eq!(pty.modes(), before, "{name}");
    }
}

#[test]
fn the_screen_follows_its_size_and_an_agent_that_goes_and_comes_back() {
    let (mut agent, _burning) = agent();
    let mut pty = Pty::open(100, 24);
    let mut child = pty.spawn(&mut top(&agent, &["--interval", "1s"]));
    wait_for("the job is shown", &pty, |text| text.contains("burner"));
    assert!(!pty.text().contains("BALANCE  IN HAND  BURN/H  ZERO IN    CPU   MEMORY  GPUS"), "no room for all at 100: {:?}", pty.text());
    pty.resize(200, 50);
    kill_process(Pid::from_child(&child), Signal::WINCH).unwrap();
    wait_for("the wide table", &pty, |text| text.contains("OWED"));
    agent.kill();
    wait_for("the alarm", &pty, |text| text.contains("does not answer"));
    agent.launch();
    let before = pty.text().len();
    wait_for("a new look", &pty, |text| before + 20 < text.len());
    pty.type_in("q");
    pty.read_to_end(&mut child);
    assert!(child.wait().unwrap().success());
}
