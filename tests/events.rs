//! The journal's facts as they are told: by the real agent, over its socket, to whoever may hear them.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/agent.rs"]
#[expect(dead_code, reason = "what other tests need of it")]
mod agent;
#[path = "support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use agent::{Agent, PATIENCE};
use meterd::domain::batch::{Batch, Row};
use meterd::domain::enforcement::Enforcement;
use meterd::domain::fact::Fact;
use meterd::domain::id::Uid;
use meterd::domain::time::Wall;
use meterd::node::journal::{Journal, Keep};
use serde_json::{Value, json};

const CARD: &str = "card = \"test\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n\
    [[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"1\"\nunit = \"core-hour\"\n";
/// `nobody`.
const OTHER_UID: u32 = 65_534;

fn root() -> Result<(), String> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err("needs root, to be another user".to_owned()) }
}

fn meterctl(agent: &Agent) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meterctl"));
    command.arg("--socket").arg(agent.path("run/meterd.sock")).stdin(Stdio::null());
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The events as JSON lines.
fn events(agent: &Agent, arguments: &[&str]) -> Vec<Value> {
    let output = meterctl(agent).args(["events", "--output", "json"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    lines(&output.stdout)
}

fn lines(bytes: &[u8]) -> Vec<Value> {
    String::from_utf8_lossy(bytes)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

fn seqs(events: &[Value]) -> Vec<u64> {
    events.iter().map(|event| event["seq"].as_u64().unwrap()).collect()
}

/// A process of ours, ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Facts without a job: the mode is set, there and back.
fn make_facts(agent: &Agent, count: usize) {
    for number in 0..count {
        let mode = if number % 2 == 0 { "notify" } else { "observe" };
        agent.done("POST", "/v1/enforcement", Some(&json!({ "mode": mode })));
    }
}

/// A sleeping process as a job of this user.
fn start_job(agent: &Agent, job: &str, account: &str, uid: u32) -> Running {
    let child = Command::new("sleep").arg("600").spawn().unwrap();
    let body = json!({ "job": job, "account": account, "uid": uid, "process": { "pid": child.id() } });
    let running = Running(child);
    agent.done("POST", "/v1/jobs", Some(&body));
    running
}

#[test]
fn facts_come_without_gap_or_repetition_while_the_agent_is_killed_and_started_again() {
    let mut agent = Agent::start(CARD, "", "");
    let (out, err) = (agent.path("followed"), agent.path("complaints"));
    let follow = meterctl(&agent)
        .args(["events", "--follow", "--since", "0", "--output", "json"])
        .stdout(std::fs::File::create(&out).unwrap())
        .stderr(std::fs::File::create(&err).unwrap())
        .spawn()
        .unwrap();
    let _follow = Running(follow);
    let told = || lines(&std::fs::read(&out).unwrap());
    // An agent that was never there is not waited for.
    agent.wait_for("the follower is there", |_| !told().is_empty());
    for _ in 0..3 {
        make_facts(&agent, 8);
        agent.kill();
        agent.launch();
    }
    make_facts(&agent, 6);
    let all = events(&agent, &[]);
    agent.wait_for("the follower has heard it all", |_| all.len() <= told().len());
    let told = seqs(&told());
    assert_eq!(told, (1..=told.len() as u64).collect::<Vec<_>>(), "{}", std::fs::read_to_string(&err).unwrap());
    let set = all.iter().filter(|event| event["kind"] == "enforcement_set").count();
    assert_eq!(set, 3 * 8 + 6);
    assert!(std::fs::read_to_string(&err).unwrap().contains("waiting for the agent"));
}

#[test]
fn the_events_are_the_journals_facts_one_line_each() {
    let agent = Agent::start(CARD, "", "");
    make_facts(&agent, 300);
    let told = events(&agent, &[]);
    let state = agent.path("state");
    let exported = meterctl(&agent).args(["journal", "export", "--state-dir"]).arg(&state).output().unwrap();
    let facts: Vec<u64> = seqs(&lines(&exported.stdout));
    assert!(300 < told.len() && told.len() <= facts.len());
    assert_eq!(seqs(&told), facts[..told.len()]);
    let behind = events(&agent, &["--since", "290"]);
    assert_eq!(seqs(&behind)[0], 291);
    let output = meterctl(&agent).args(["events", "--since", "290"]).output().unwrap();
    assert!(text(&output).lines().all(|line| 3 < line.split_whitespace().count()), "{}", text(&output));
    let ahead = meterctl(&agent).args(["events", "--since", "999999"]).output().unwrap();
    assert_eq!(ahead.status.code(), Some(1));
    assert!(text(&ahead).contains("events_ahead"), "{}", text(&ahead));
}

#[test]
fn a_follower_without_a_place_hears_what_comes_from_now_on() {
    let agent = Agent::start(CARD, "", "");
    make_facts(&agent, 4);
    let before = events(&agent, &[]).len();
    let out = agent.path("followed");
    let follow = meterctl(&agent).args(["events", "-f", "-o", "json"]).stdout(std::fs::File::create(&out).unwrap()).spawn().unwrap();
    let _follow = Running(follow);
    let told = || lines(&std::fs::read(&out).unwrap());
    let deadline = Instant::now() + PATIENCE;
    while told().is_empty() {
        assert!(Instant::now() < deadline, "nothing is told");
        make_facts(&agent, 2);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(before < usize::try_from(seqs(&told())[0]).unwrap());
}

#[test]
fn a_user_hears_of_its_own_jobs_and_accounts_and_a_stranger_of_nothing() {
    let Some(()) = support::need("kernel", root()) else { return };
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let tables = format!("[status]\nlisten = \"{address}\"\n[access.accounts]\n\"{OTHER_UID}\" = [\"lab\"]\n");
    let agent = Agent::start(CARD, "", &tables);
    for folder in [agent.folder.path().to_owned(), agent.path("run")] {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    for account in ["lab", "secret"] {
        agent.done("POST", "/v1/accounts", Some(&json!({ "account": account })));
        agent.done("POST", &format!("/v1/accounts/{account}/topup"), Some(&json!({ "amount": "5", "bucket": "paid" })));
    }
    let _mine = start_job(&agent, "u65534-mine", "lab", OTHER_UID);
    let _other = start_job(&agent, "slurm:1", "secret", 1_001);
    agent.wait_for("both are counted", |agent| {
        let all = events(agent, &[]);
        ["u65534-mine", "slurm:1"].iter().all(|job| all.iter().any(|event| event["kind"] == "counted" && event.to_string().contains(job)))
    });
    let as_other = |arguments: &[&str]| {
        // Not every folder above the program is open to everybody.
        let program = agent.path("meterctl");
        if !program.exists() {
            std::fs::copy(env!("CARGO_BIN_EXE_meterctl"), &program).unwrap();
        }
        let mut command = Command::new(&program);
        command.arg("--socket").arg(agent.path("run/meterd.sock")).args(["events", "-o", "json"]).args(arguments);
        command.uid(OTHER_UID).gid(OTHER_UID).current_dir("/").output().unwrap()
    };
    let seen = as_other(&[]);
    let told = lines(&seen.stdout);
    assert!(told.iter().any(|event| event["kind"] == "job_opened" && event["job"] == "u65534-mine"), "{}", text(&seen));
    assert!(told.iter().any(|event| event["kind"] == "counted"), "{}", text(&seen));
    for word in ["slurm:1", "secret", "uid 1001", "\"owner_uid\":1001", "card_adopted", "epoch_opened"] {
        assert!(!text(&seen).contains(word), "{word} is told to another user: {}", text(&seen));
    }
    for asked in [&["--job", "slurm:1"][..], &["--account", "secret"]] {
        assert_eq!(lines(&as_other(asked).stdout), Vec::<Value>::new(), "{asked:?}");
    }
    let mut tcp = std::net::TcpStream::connect(address).unwrap();
    write!(tcp, "GET /v1/events HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("socket_only"), "{answer}");
}

/// Writes facts into the journal of an agent that does not run; gives the last one's number.
fn add_facts(state: &Path, count: usize) -> u64 {
    let (mut journal, _) = Journal::open(state, Keep::default()).unwrap();
    let fact = Fact::EnforcementSet { mode: Enforcement::Observe, by: Uid(0) };
    let rows = vec![Row { wall: Wall(1_700_000_000_000), bytes: fact.encode() }; count];
    journal.commit(&Batch { first_seq: journal.head().seq + 1, rows, ..Batch::default() }).unwrap();
    journal.head().seq
}

/// Asks for everything and reads nothing.
fn silent_listener(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET /v1/events?since=0&follow=yes HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    stream
}

#[test]
fn a_listener_that_takes_nothing_is_let_go_and_told_why_and_others_go_on() {
    let mut agent = Agent::start(CARD, "", "");
    agent.kill();
    let added = add_facts(&agent.path("state"), 10_000); // more than the socket and the server hold between them
    agent.launch();
    let socket = agent.path("run/meterd.sock");
    let mut slow = silent_listener(&socket);
    agent.wait_for("it is let go", |agent| agent.log().contains("too_slow"));
    assert_eq!(
        events(&agent, &["--since", &(added - 1).to_string()]).first().map(|event| event["seq"].as_u64()),
        Some(Some(added)),
        "others are answered"
    );
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    let end =
        answer.lines().rev().find(|line| line.starts_with("{\"end\"")).unwrap_or_else(|| panic!("no last word in {} bytes", answer.len()));
    assert!(end.contains("too_slow") && end.contains("--since"), "{end}");
    // What was told up to there goes on where the reason says.
    let told: Vec<u64> = answer.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()?["seq"].as_u64()).collect();
    assert_eq!(told, (1..=told.len() as u64).collect::<Vec<_>>());
    assert!(end.contains(&format!("--since {}", told.len())), "{} were told: {end}", told.len());
}

#[test]
fn one_user_has_a_bounded_number_of_streams() {
    let agent = Agent::start(CARD, "", "");
    let socket = agent.path("run/meterd.sock");
    let begun: Vec<String> = (0..17)
        .map(|_| {
            let mut stream = silent_listener(&socket);
            let mut head = [0; 12];
            stream.read_exact(&mut head).unwrap();
            std::mem::forget(stream.try_clone().unwrap()); // stays open until the test ends
            String::from_utf8_lossy(&head).into_owned()
        })
        .collect();
    assert_eq!(begun.iter().filter(|head| head.ends_with("200")).count(), 16);
    assert!(begun[16].ends_with("429"), "{begun:?}");
    assert_eq!(agent.ask("GET", "/v1/status", None).0, 200, "and everybody else is answered");
}
