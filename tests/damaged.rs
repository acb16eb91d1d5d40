//! A damaged journal does not keep the agent from its work: it is set aside, whole, and the agent goes on in a new epoch with what verifies
//! of it. Nothing that the lost epoch may have charged is charged again, and nobody who was stopped stays stopped for it.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/agent.rs"]
#[expect(dead_code, reason = "what other tests need of it")]
mod agent;
#[path = "support/cgroup.rs"]
mod cgroup;
#[path = "states/node.rs"]
#[expect(dead_code, reason = "what other tests need of it")]
mod node;
#[path = "support/mod.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};

use node::{Mounts, Node, alarm, cpu_ns};
use serde_json::{Value, json};

/// One nano-credit is one nanosecond of CPU time.
const CARD: &str = "card = \"test\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n\
    [[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"1\"\nunit = \"core-second\"\n";

/// What is left of the jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Jobs {
    Known,
    Unknown,
}

/// Credits as nano-credits.
fn nano(amount: &Value) -> u128 {
    let text = amount.as_str().unwrap();
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    format!("{whole}{fraction:0<9}").parse().unwrap()
}

/// A node with two jobs that burn: one runs, the other is frozen for lack of credit. Its agent has ended.
fn ended(name: &str) -> Option<Node> {
    let mut node = Node::with_card(name, 2, CARD)?;
    node.agent.launch();
    node.account("rich", "1000");
    node.account("short", "0.3");
    node.start_job(0, "rich");
    node.start_job(1, "short");
    node.agent.wait_for("the short account's job is frozen", |_| node.phase(1) == "frozen");
    node.agent.kill();
    node.agent.launch(); // a new process writes a checkpoint, in which both jobs are, and then some facts
    for _ in 0..3 {
        node.wait_until_counted_on(0);
    }
    node.agent.signal("TERM");
    assert_eq!(node.agent.exit_code(), Some(0));
    assert!(node.jobs[1].is_frozen());
    Some(node)
}

fn state(node: &Node) -> PathBuf {
    node.agent.path("state")
}

fn aside(node: &Node) -> Vec<PathBuf> {
    meterd::node::journal::list_aside(&state(node))
}

/// It ends both jobs; their receipts say less than the kernel, and the authority has been told no more than the kernel knows.
fn nothing_was_charged_twice(node: &mut Node) {
    for nth in 0..2 {
        node.jobs[nth].end_tasks();
        node.agent.done("POST", &format!("/v1/jobs/job-{nth}/stop"), Some(&json!({ "outcome": "completed" })));
        let receipt = |node: &Node| node.agent.done("GET", &format!("/v1/jobs/job-{nth}/receipt"), None);
        node.agent.wait_for("the receipt is final", |_| receipt(node)["state"] == "final");
        let used = node.jobs[nth].used_ns();
        assert!(cpu_ns(&receipt(node)) <= used, "{}", receipt(node));
        let account = ["rich", "short"][nth];
        let view = || node.agent.done("GET", &format!("/v1/accounts/{account}"), None)["authority"].clone();
        let all = || nano(&view()["free"]) + nano(&view()["paid"]) + nano(&view()["settled"]);
        node.agent.wait_for("no credit is held by any epoch", |_| all() == nano(&view()["deposited"]));
        let settled = nano(&view()["settled"]);
        println!("job-{nth} used {used} ns, {settled} ns are settled, {} ns stand on its last receipt", cpu_ns(&receipt(node)));
        assert!(0 < settled && settled <= used, "{settled} of {used}");
    }
}

/// The agent starts on what is left, and works.
fn goes_on(name: &str, jobs: Jobs, damage: impl FnOnce(&Path)) {
    let Some(mut node) = ended(name) else { return };
    damage(&state(&node));
    let damaged = fs::read(state(&node).join("journal.db")).unwrap();
    node.agent.launch();
    let message = node.wait_for_alarm("journal_set_aside");
    let folders = aside(&node);
    assert_eq!(folders.len(), 1);
    assert!(message.contains(&folders[0].display().to_string()), "{message}");
    assert_eq!(fs::read(folders[0].join("journal.db")).unwrap(), damaged, "it is kept as it was");
    let verified = node.meterctl(&["journal", "verify", "--state-dir", &state(&node).display().to_string()]);
    assert!(verified.starts_with("OK"), "the new one: {verified}");
    if jobs == Jobs::Unknown {
        for (nth, account) in [(0, "rich"), (1, "short")] {
            assert_eq!(node.agent.ask("GET", &format!("/v1/jobs/job-{nth}"), None).0, 404);
            // Whoever knows the job says so again; a frozen one nobody thaws but a person.
            node.top_up(account, "100", "second");
            fs::write(node.jobs[nth].v2.join("cgroup.freeze"), "0").unwrap();
            let places = cgroup::paths(&node.jobs[nth]);
            node.agent.done("POST", "/v1/jobs", Some(&json!({ "job": format!("job-{nth}"), "account": account, "cgroups": places })));
        }
    }
    node.wait_until_counted_on(0);
    node.top_up("short", "1000", "third");
    node.agent.wait_for("with credit the frozen one goes on", |_| !node.jobs[1].is_frozen());
    node.wait_until_counted_on(1);
    nothing_was_charged_twice(&mut node);
    fs::rename(&folders[0], node.agent.path("fetched")).unwrap();
    node.wait_until_over("journal_set_aside");
    // And a start on the new journal is one like any other.
    node.agent.kill();
    node.agent.launch();
    assert_eq!((aside(&node).len(), alarm(&node.agent, "journal_set_aside")), (0, None));
}

/// Changes a byte in the middle of these bytes, wherever they stand in the file.
fn flip(state: &Path, wanted: &[u8]) {
    let path = state.join("journal.db");
    let mut bytes = fs::read(&path).unwrap();
    let wanted = &wanted[..wanted.len().min(100)];
    let at = bytes.windows(wanted.len()).rposition(|window| window == wanted).unwrap() + wanted.len() / 2;
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
}

fn stored(state: &Path, sql: &str) -> Vec<u8> {
    let connection = rusqlite::Connection::open(state.join("journal.db")).unwrap();
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn a_flipped_bit_in_the_last_fact() {
    goes_on("flip-last", Jobs::Known, |state| flip(state, &stored(state, "SELECT bytes FROM fact ORDER BY seq DESC LIMIT 1")));
}

#[test]
fn a_flipped_bit_in_the_link_of_a_fact_behind_the_checkpoint() {
    let sql = "SELECT chain FROM fact WHERE seq = (SELECT min(seq) + 1 FROM fact WHERE (SELECT seq FROM checkpoint) < seq)";
    goes_on("flip-link", Jobs::Known, |state| flip(state, &stored(state, sql)));
}

#[test]
fn a_flipped_bit_in_the_checkpoint() {
    goes_on("flip-checkpoint", Jobs::Known, |state| flip(state, &stored(state, "SELECT bytes FROM checkpoint")));
}

#[test]
fn a_zeroed_first_page() {
    goes_on("zero-first", Jobs::Unknown, |state| {
        let path = state.join("journal.db");
        stored(state, "SELECT bytes FROM checkpoint");
        let mut bytes = fs::read(&path).unwrap();
        bytes[..4_096].fill(0);
        fs::write(&path, bytes).unwrap();
    });
}

#[test]
fn a_file_cut_in_half() {
    goes_on("half", Jobs::Unknown, |state| {
        let path = state.join("journal.db");
        stored(state, "SELECT bytes FROM checkpoint");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..100]).unwrap();
    });
}

#[test]
fn an_empty_file() {
    goes_on("empty", Jobs::Unknown, |state| {
        stored(state, "SELECT bytes FROM checkpoint");
        fs::write(state.join("journal.db"), "").unwrap();
    });
}

fn is_dead(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

/// Any page may be the one: whatever it held, the agent starts, and what it then knows is consistent.
#[test]
fn a_zeroed_page_anywhere() {
    let Some(mut node) = ended("zero-page") else { return };
    let path = state(&node).join("journal.db");
    stored(&state(&node), "SELECT bytes FROM checkpoint");
    let whole = fs::read(&path).unwrap();
    let pages = whole.len() / 4_096;
    for page in (1..pages).step_by(pages.div_ceil(5)) {
        for name in ["journal.db-wal", "journal.db-shm"] {
            drop(fs::remove_file(state(&node).join(name)));
        }
        let mut bytes = whole.clone();
        bytes[page * 4_096..][..4_096].fill(0);
        fs::write(&path, bytes).unwrap();
        // Where only a write meets it, the process ends, and the next one knows.
        node.agent.spawn();
        let (mut starts, mut first) = (1, None::<u64>);
        let deadline = std::time::Instant::now() + agent::PATIENCE;
        loop {
            assert!(std::time::Instant::now() < deadline, "page {page}: it does not go on; the log:\n{}", node.agent.log());
            std::thread::sleep(std::time::Duration::from_millis(25));
            let status = node.agent.try_ask("GET", "/v1/status", None).map(|(_, status)| status);
            let Some(durable) = status.and_then(|status| status["journal"]["durable_seq"].as_u64()) else {
                if is_dead(node.agent.pid()) {
                    (starts, first) = (starts + 1, None);
                    node.agent.kill();
                    node.agent.spawn();
                }
                continue;
            };
            // Who knows of no job has nothing to write.
            let knows = node.agent.try_ask("GET", "/v1/jobs", None).is_some_and(|(_, jobs)| jobs["jobs"] != json!([]));
            if *first.get_or_insert(durable) + 2 < durable || !knows {
                break;
            }
        }
        assert!(starts <= 2, "{starts} starts");
        println!("page {page} of {pages}: {starts} starts, {} set aside", aside(&node).len());
        node.agent.kill();
        for folder in aside(&node) {
            fs::remove_dir_all(folder).unwrap();
        }
    }
    let used: Vec<u128> = node.jobs.iter().map(cgroup::Cgroup::used_ns).collect();
    fs::remove_file(&path).unwrap();
    node.agent.launch();
    for (account, used) in ["rich", "short"].into_iter().zip(used) {
        let settled = nano(&node.agent.done("GET", &format!("/v1/accounts/{account}"), None)["authority"]["settled"]);
        assert!(settled <= used, "{account}: {settled} of {used}");
    }
}

#[test]
fn the_journal_of_another_machine() {
    let Some(mut node) = ended("other") else { return };
    let Ok(mounts) = Mounts::small_disk(&node.agent.path("small"), 1) else { return };
    let other = node.agent.path("small/machine-id");
    let script = format!("echo 0123456789abcdef0123456789abcdef >{0} && mount --bind {0} /etc/machine-id", other.display());
    assert!(mounts.run(&script));
    node.agent.before = mounts.inside();
    node.agent.launch();
    let message = node.wait_for_alarm("journal_set_aside");
    assert!(message.contains("set-aside"), "{message}");
    let log = fs::read_to_string(node.agent.path("log")).unwrap();
    assert!(log.contains("it was written on another machine"), "{log}");
    assert_eq!(node.agent.done("GET", "/v1/jobs", None), json!({ "jobs": [] }), "what it says of jobs is not of here");
    node.agent.kill();
}

#[test]
fn the_fourth_time_the_disk_is_at_fault_and_the_agent_says_so_and_ends() {
    let Some(mut node) = ended("fourth") else { return };
    for nth in 0..3 {
        fs::create_dir_all(state(&node).join(format!("set-aside/2026010{nth}"))).unwrap();
    }
    stored(&state(&node), "SELECT bytes FROM checkpoint"); // no log is left that would make the file whole again
    fs::write(
        state(&node).join("journal.db"),
        "no journal, however long it is read, and longer than a hundred bytes in all, so that it has a header",
    )
    .unwrap();
    node.agent.spawn();
    assert_eq!(node.agent.exit_code(), Some(74));
    assert!(node.agent.log().contains("look at the disk"), "{}", node.agent.log());
    assert_eq!(aside(&node).len(), 3);
}

#[test]
fn an_operator_sets_a_journal_aside_and_only_while_no_agent_runs() {
    let Some(mut node) = ended("operator") else { return };
    let place = state(&node).display().to_string();
    node.agent.launch();
    let refused = node.meterctl(&["journal", "set-aside", "--state-dir", &place]);
    assert!(refused.contains("another process writes the journal"), "{refused}");
    node.agent.signal("TERM");
    assert_eq!(node.agent.exit_code(), Some(0));
    let said = node.meterctl(&["journal", "set-aside", "--state-dir", &place]);
    assert!(said.contains("set aside in"), "{said}");
    node.agent.launch();
    node.wait_for_alarm("journal_set_aside");
    node.wait_until_counted_on(0);
    node.top_up("short", "1000", "third");
    node.agent.wait_for("with credit the frozen one goes on", |_| !node.jobs[1].is_frozen());
    nothing_was_charged_twice(&mut node);
    let doctor = node.meterctl(&["doctor", "--config", &node.agent.path("meterd.toml").display().to_string()]);
    assert!(doctor.contains("journal_set_aside"), "{doctor}");
}
