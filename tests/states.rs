//! What a node can do to its agent, made for real: each is a state with a name in `status`, in the metrics and in the log, and in none of
//! them is a counter lost or anything charged twice.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/agent.rs"]
#[expect(dead_code, reason = "each test takes what it needs")]
mod agent;
#[path = "support/cgroup.rs"]
mod cgroup;
#[path = "states/disk.rs"]
mod disk;
#[path = "states/jobs.rs"]
mod jobs;
#[path = "states/node.rs"]
mod node;
#[path = "support/mod.rs"]
mod support;

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use node::{Mounts, Node, alarm, cpu_ns, faults};
use serde_json::json;

#[test]
fn a_failed_flush_ends_the_agent_and_the_next_one_has_lost_nothing_and_says_why() {
    let Some(mut node) = Node::new("eio", 1) else { return };
    node.agent.environment = faults(node.agent.folder.path(), &node.agent.path("state"));
    node.burning();
    node.wait_until_counted_on(0);
    std::fs::write(node.agent.path("eio"), "").unwrap();
    assert_eq!(node.agent.exit_code(), Some(74), "nobody knows now what is on the disk");
    std::thread::sleep(Duration::from_millis(300));
    node.agent.spawn();
    assert_eq!(node.agent.exit_code(), Some(74), "while the disk is broken no agent goes on");
    std::fs::remove_file(node.agent.path("eio")).unwrap();
    node.agent.launch();
    let message = node.wait_for_alarm("journal_failed");
    assert!(message.contains("disk I/O error"), "{message}");
    node.end_job(0);
}

#[test]
fn a_full_disk_starts_nothing_meters_on_and_is_over_when_there_is_room() {
    let Some(mut node) = Node::new("full", 2) else { return };
    let Some(mounts) = support::need("mount", Mounts::small_disk(&node.agent.path("state"), 48)) else { return };
    node.agent.before = mounts.inside();
    node.agent.launch();
    node.account("rich", "1000000");
    node.account("short", "0.05");
    node.start_job(0, "rich");
    let filler = node.agent.path("state/filler").display().to_string();
    assert!(mounts.run(&format!("head -c 100M /dev/zero > {filler} 2>/dev/null; test -s {filler}")), "somebody else fills the disk");
    // What is left in the reserve and in the last pages is used up by and by.
    node.wait_for_alarm("journal_full");
    let ready = node.agent.ask("GET", "/readyz", None);
    assert_eq!(ready.0, 503, "{ready:?}");
    let (status, refusal) =
        node.agent.ask("POST", "/v1/jobs", Some(&json!({ "job": "new", "account": "rich", "cgroups": cgroup::paths(&node.jobs[1]) })));
    assert_eq!((status, &refusal["error"]["code"]), (503, &json!("journal_full")), "{refusal}");
    assert!(mounts.run(&format!("rm {filler}")));
    node.wait_until_over("journal_full");
    node.start_job(1, "rich");
    node.agent.kill();
    node.agent.launch();
    node.end_job(0);
    node.end_job(1);
}

#[test]
fn a_disk_that_turns_read_only_is_named_and_enforced_from_memory() {
    let Some(mut node) = Node::new("erofs", 2) else { return };
    node.agent.environment = faults(node.agent.folder.path(), &node.agent.path("state"));
    node.agent.launch();
    node.account("rich", "1000000");
    node.account("short", "0.05");
    node.start_job(0, "rich");
    node.start_job(1, "short");
    std::fs::write(node.agent.path("erofs"), "").unwrap();
    node.wait_for_alarm("journal_read_only");
    node.agent.wait_for("the short account's job is frozen from memory", |_| node.jobs[1].is_frozen());
    assert!(!node.jobs[0].is_frozen());
    std::fs::remove_file(node.agent.path("erofs")).unwrap();
    node.wait_until_over("journal_read_only");
    node.end_job(0);
    let receipt = node.end_job(1);
    assert_eq!(receipt["drawn"], json!("0.05"), "{receipt}");
}

#[test]
fn a_read_only_disk_at_the_start_is_named_and_nothing_is_lost_by_it() {
    let Some(mut node) = Node::new("ro", 1) else { return };
    let Some(mounts) = support::need("mount", Mounts::small_disk(&node.agent.path("state"), 24)) else { return };
    node.agent.before = mounts.inside();
    node.burning();
    node.agent.signal("TERM");
    assert_eq!(node.agent.exit_code(), Some(0));
    let state = node.agent.path("state").display().to_string();
    assert!(mounts.run(&format!("mount -o remount,ro {state}")));
    node.agent.spawn();
    assert_eq!(node.agent.exit_code(), Some(74));
    assert!(node.agent.log().contains("read-only"), "{}", node.agent.log());
    assert!(mounts.run(&format!("mount -o remount,rw {state}")));
    node.agent.launch();
    node.end_job(0);
}

#[test]
fn out_of_descriptors_is_named_before_it_hurts_and_what_is_metered_is_metered_on() {
    let Some(mut node) = Node::new("emfile", 3) else { return };
    node.agent.launch();
    node.account("rich", "1000000");
    node.start_job(0, "rich");
    let pid = node.agent.pid();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let limit = |count: usize| {
        let words = ["--pid".to_owned(), pid.to_string(), format!("--nofile={count}:")];
        assert!(Command::new("prlimit").args(words).status().unwrap().success());
    };
    limit(open + 24);
    let message = node.wait_for_alarm("few_descriptors");
    assert!(message.contains("left"), "{message}");
    // Now none: whoever calls holds connections open, as many as there are descriptors.
    let socket = node.agent.path("run/meterd.sock");
    let mut held: Vec<_> = (0..60).filter_map(|_| std::os::unix::net::UnixStream::connect(&socket).ok()).collect();
    std::thread::sleep(Duration::from_millis(500));
    held.clear();
    node.agent.wait_for("it answers again", |agent| agent.try_ask("GET", "/healthz", None).is_some_and(|(status, _)| status == 200));
    limit(4_096);
    node.wait_until_counted_on(0);
    node.wait_until_over("few_descriptors");
    node.start_job(1, "rich");
    node.end_job(0);
    node.end_job(1);
}

/// The agent in a memory cgroup of this many bytes, and the words that put a process there.
fn memory_cgroup(name: &str, bytes: u64) -> Result<(std::path::PathBuf, String), String> {
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let root = Path::new(if v2 { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/memory" });
    let dir = root.join(format!("meterd-test-{name}-{}", std::process::id()));
    std::fs::create_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let limit = dir.join(if v2 { "memory.max" } else { "memory.limit_in_bytes" });
    if let Err(error) = std::fs::write(&limit, bytes.to_string()) {
        drop(std::fs::remove_dir(&dir));
        return Err(format!("{}: {error}", limit.display()));
    }
    let enter = format!("echo $$ > {}/cgroup.procs", dir.display());
    Ok((dir, enter))
}

#[test]
fn an_agent_that_is_killed_for_lack_of_memory_comes_back_with_everything() {
    let Some(mut node) = Node::new("oom", 1) else { return };
    let Some((dir, enter)) = support::need("memory", memory_cgroup("oom", 68 << 20)) else { return };
    node.agent.before = ["sh", "-c", &format!("{enter}; exec \"$0\" \"$@\"")].map(str::to_owned).to_vec();
    node.burning();
    node.wait_until_counted_on(0);
    // Somebody in its cgroup takes all of the memory, and the agent is the one to be killed for it.
    std::fs::write(format!("/proc/{}/oom_score_adj", node.agent.pid()), "1000").unwrap();
    let hog = format!("{enter}; exec dd if=/dev/zero of=/dev/null bs=100M count=2");
    let mut hog = Command::new("sh").args(["-c", &hog]).stderr(Stdio::null()).spawn().unwrap();
    let code = node.agent.exit_code();
    hog.wait().unwrap();
    assert_eq!(code, None, "killed by a signal");
    node.agent.launch();
    node.wait_for_alarm("crashed");
    node.end_job(0);
    node.agent.kill();
    std::fs::remove_dir(dir).unwrap();
}

#[test]
fn a_stopped_agent_feeds_no_watchdog_and_what_it_missed_is_a_gap() {
    let Some(mut node) = Node::new("stop", 1) else { return };
    let systemd = UnixDatagram::bind(node.agent.path("notify")).unwrap();
    node.agent.environment = vec![("NOTIFY_SOCKET".to_owned(), node.agent.path("notify").display().to_string())];
    node.burning();
    let fed = |within: Duration| {
        let (mut bytes, began) = ([0; 1_024], Instant::now());
        systemd.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        while began.elapsed() < within {
            if systemd.recv(&mut bytes).is_ok_and(|length| bytes[..length].starts_with(b"WATCHDOG=1")) {
                return true;
            }
        }
        false
    };
    assert!(fed(agent::PATIENCE), "each tick feeds the watchdog");
    node.agent.signal("STOP");
    std::thread::sleep(Duration::from_millis(200));
    systemd.set_nonblocking(true).unwrap();
    while systemd.recv(&mut [0; 1_024]).is_ok() {}
    systemd.set_nonblocking(false).unwrap();
    assert!(!fed(Duration::from_secs(2)), "a stopped agent says nothing: systemd ends it after WatchdogSec");
    node.agent.signal("CONT");
    assert!(fed(agent::PATIENCE));
    node.wait_for_alarm("stalled");
    let receipt = node.end_job(0);
    let gaps = receipt["gaps"].as_array().unwrap();
    let gap =
        gaps.iter().find(|gap| gap["meter"] == "memory_charged" && gap["rule"] == "not_billed").unwrap_or_else(|| panic!("{receipt}"));
    let length = gap["to_mono_ns"].as_u64().unwrap() - gap["from_mono_ns"].as_u64().unwrap();
    assert!(2_000_000_000 < length, "a gap of {length} ns: {receipt}");
}

#[test]
fn after_a_reboot_the_jobs_of_the_last_boot_are_over_and_nothing_more_is_charged() {
    let Some(mut node) = Node::new("boot", 1) else { return };
    node.burning();
    node.wait_until_counted_on(0);
    node.agent.kill();
    let counted_at_most = node.jobs[0].used_ns();
    node.jobs[0].end_tasks();
    let boot_id = node.agent.path("boot_id");
    std::fs::write(&boot_id, "11111111-2222-4333-8444-555555555555\n").unwrap();
    let up: u64 = std::fs::read_to_string("/proc/uptime").unwrap().split('.').next().unwrap().parse().unwrap();
    let back = format!("-{}", up.saturating_sub(5));
    let script = format!("mount --bind {} /proc/sys/kernel/random/boot_id && exec \"$0\" \"$@\"", boot_id.display());
    let words =
        ["unshare", "--time", "--monotonic", &back, "--boottime", &back, "--mount", "--propagation", "private", "sh", "-c", &script];
    let able = Command::new(words[0]).args(&words[1..]).arg("true").status().is_ok_and(|status| status.success());
    let able = if able { Ok(()) } else { Err("no time namespace can be made here".to_owned()) };
    if support::need("mount", able).is_none() {
        return;
    }
    node.agent.before = words.map(str::to_owned).to_vec();
    node.agent.launch();
    node.wait_for_alarm("rebooted");
    node.agent.wait_for("the receipt is final", |agent| agent.done("GET", "/v1/jobs/job-0/receipt", None)["state"] == "final");
    let receipt = node.agent.done("GET", "/v1/jobs/job-0/receipt", None);
    assert_eq!(receipt["outcome"], json!("node_rebooted"));
    assert!(0 < cpu_ns(&receipt) && cpu_ns(&receipt) <= counted_at_most, "{receipt}");
    let settled = |node: &Node| node.agent.done("GET", "/v1/accounts/rich", None)["authority"]["settled"].clone();
    node.agent.wait_for("what was drawn is settled", |_| settled(&node) == receipt["drawn"]);
    node.agent.kill();
    node.agent.launch();
    assert_eq!(settled(&node), receipt["drawn"], "and never again");
}

#[test]
fn an_upgrade_under_load_loses_and_doubles_nothing_and_leaves_everybody_as_he_was() {
    let Some(mut node) = Node::new("upgrade", 2) else { return };
    // The next version: the same program under another number.
    let (old, mut new) = (std::fs::read(&node.agent.program).unwrap(), std::fs::read(&node.agent.program).unwrap());
    let (version, next) = (env!("CARGO_PKG_VERSION").as_bytes(), b"9.8.7");
    assert_eq!(version.len(), next.len());
    for at in 0..new.len() - next.len() {
        if &new[at..at + next.len()] == version {
            new[at..at + next.len()].copy_from_slice(next);
        }
    }
    let install = |node: &Node, program: &[u8]| {
        let fresh = node.agent.path("meterd.new");
        std::fs::write(&fresh, program).unwrap();
        std::fs::set_permissions(&fresh, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::rename(fresh, node.agent.path("meterd")).unwrap();
    };
    install(&node, &old);
    node.agent.program = node.agent.path("meterd");
    node.agent.launch();
    node.account("rich", "1000000");
    node.account("short", "0.05");
    node.start_job(0, "rich");
    node.start_job(1, "short");
    node.agent.wait_for("the short account's job is frozen", |_| node.phase(1) == "frozen");
    install(&node, &new);
    node.wait_until_counted_on(0); // the old process does not mind
    node.agent.signal("TERM");
    assert_eq!(node.agent.exit_code(), Some(0));
    assert!(node.jobs[1].is_frozen() && !node.jobs[0].is_frozen(), "between the two everybody stays as he was");
    node.agent.launch();
    let message = node.wait_for_alarm("upgraded");
    assert!(message.contains("9.8.7") && message.contains(env!("CARGO_PKG_VERSION")), "{message}");
    assert_eq!(alarm(&node.agent, "crashed"), None, "it ended as asked");
    assert_eq!((node.phase(0).as_str(), node.phase(1).as_str()), ("running", "frozen"));
    node.top_up("short", "1000", "second");
    node.agent.wait_for("what the old version froze, the new one thaws", |_| !node.jobs[1].is_frozen());
    node.end_job(0);
    node.end_job(1);
}

#[test]
fn in_a_crash_loop_the_frozen_stay_frozen_until_somebody_thaws_them_without_the_agent() {
    let Some(mut node) = Node::new("loop", 2) else { return };
    node.agent.launch();
    node.account("rich", "1000000");
    node.account("short", "0.05");
    node.start_job(0, "rich");
    node.start_job(1, "short");
    node.agent.wait_for("the short account's job is frozen", |_| node.phase(1) == "frozen");
    for _ in 0..6 {
        node.agent.kill();
        assert!(node.jobs[1].is_frozen() && !node.jobs[0].is_frozen());
        node.agent.launch();
    }
    node.wait_for_alarm("crash_loop");
    assert_eq!((node.phase(0).as_str(), node.phase(1).as_str()), ("running", "frozen"));
    // As at a removal: no agent is there any more.
    node.agent.kill();
    let said = node.meterctl(&["thaw", "--all", "--state-dir", &node.agent.path("state").display().to_string()]);
    assert!(!node.jobs[1].is_frozen(), "{said}");
}

#[test]
fn a_journal_of_a_later_version_is_left_as_it_is() {
    let Some(mut node) = Node::new("version", 1) else { return };
    node.burning();
    node.agent.signal("TERM");
    assert_eq!(node.agent.exit_code(), Some(0));
    let file = node.agent.path("state/journal.db");
    let set = |version: i32| {
        let connection = rusqlite::Connection::open(&file).unwrap();
        connection.execute_batch(&format!("PRAGMA user_version = {version}; PRAGMA wal_checkpoint(TRUNCATE);")).unwrap();
    };
    set(99);
    let before = std::fs::read(&file).unwrap();
    node.agent.spawn();
    assert_eq!(node.agent.exit_code(), Some(74));
    let log = node.agent.log();
    assert!(log.contains("99") && log.contains("install the version"), "what to do is said: {log}");
    assert_eq!(std::fs::read(&file).unwrap(), before, "nothing was changed");
    set(1);
    node.agent.launch();
    node.end_job(0);
}

/// A cgroup below a parent, with a task that waits; both are removed at the end.
fn below(parent: &str, name: &str) -> cgroup::Cgroup {
    let mut outer = cgroup::Cgroup::make(parent).unwrap();
    let mut inner = cgroup::Cgroup::make(&format!("{parent}/{name}")).unwrap();
    inner.burn();
    inner.all.append(&mut outer.all);
    inner
}

#[test]
fn a_missed_start_a_missed_stop_and_drift_are_corrected_in_the_open_and_billed_once() {
    let Some(mut node) = Node::new("fix", 3) else { return };
    let parent = format!("meterd-test-parent-{}", std::process::id());
    let config = std::fs::read_to_string(node.agent.path("meterd.toml")).unwrap();
    std::fs::write(node.agent.path("meterd.toml"), format!("{config}[cgroup]\nparent = \"{parent}\"\n")).unwrap();
    // Tasks below the agent's own parent, of a job that nobody started here.
    let stray = below(&parent, "stray");
    node.burning();
    let message = node.wait_for_alarm("unmetered");
    assert!(message.contains(&stray.v2.display().to_string()), "{message}");
    let corrections = |node: &Node, kind: &str| node.agent.done("GET", "/v1/status", None)["corrections"][kind].as_u64().unwrap();
    // One directory is the stray's own, one its parent's: with v1 memory two of each.
    assert_eq!(corrections(&node, "missed_start"), stray.all.len() as u64 / 2);
    // Somebody freezes a job that is believed to run: not ours to thaw.
    std::fs::write(node.jobs[1].v2.join("cgroup.freeze"), "1").unwrap();
    node.agent.wait_for("the drift is seen", |agent| agent.done("GET", "/v1/jobs/job-1", None)["frozen_by"] == "other");
    node.agent.wait_for("the drift is counted", |_| corrections(&node, "drift") == 1);
    // The last task goes while the agent is away, and nobody ever reports it.
    node.agent.kill();
    node.jobs[0].end_tasks();
    drop(stray);
    node.agent.launch();
    node.agent.wait_for("the job has ended by what is seen", |agent| agent.done("GET", "/v1/jobs/job-0/receipt", None)["state"] == "final");
    node.agent.wait_for("the missed stop is counted", |_| corrections(&node, "missed_stop") == 1);
    node.wait_until_over("unmetered");
    let why = node.meterctl(&["why", "job-0"]);
    assert!(why.contains("missed stop"), "{why}");
    let log = std::fs::read_to_string(node.agent.path("log")).unwrap();
    assert_eq!(log.matches("missed stop").count(), 1, "said once: {log}");
    let receipt = node.agent.done("GET", "/v1/jobs/job-0/receipt", None);
    assert_eq!(cpu_ns(&receipt), node.jobs[0].used_ns(), "billed once and in full");
    for kind in ["missed_start", "missed_start_over", "missed_stop"] {
        node.agent.wait_for("each is in the journal", |_| node.facts().contains(kind)); // what is said may be a moment ahead of the disk
    }
    std::fs::write(node.jobs[1].v2.join("cgroup.freeze"), "0").unwrap();
    node.end_job(1);
    node.end_job(2);
    // The same once more changes nothing: a late stop is an answer, not a bill.
    let (status, late) = node.agent.ask("POST", "/v1/jobs/job-0/stop", Some(&json!({ "outcome": "completed" })));
    assert!(status < 500, "{late}");
    assert_eq!(node.agent.done("GET", "/v1/jobs/job-0/receipt", None)["charge"], receipt["charge"]);
}

#[test]
fn a_start_that_was_missed_while_the_agent_runs_is_found_by_its_next_survey() {
    let Some(mut node) = Node::new("survey", 1) else { return };
    let parent = format!("meterd-test-survey-{}", std::process::id());
    let config = std::fs::read_to_string(node.agent.path("meterd.toml")).unwrap();
    std::fs::write(node.agent.path("meterd.toml"), format!("{config}[cgroup]\nparent = \"{parent}\"\n")).unwrap();
    node.burning();
    // Two whole ticks: the survey of the start is over, and found nothing.
    node.wait_until_counted_on(0);
    node.wait_until_counted_on(0);
    let missed = |node: &Node| node.agent.done("GET", "/v1/status", None)["corrections"]["missed_start"].as_u64().unwrap();
    assert_eq!((missed(&node), alarm(&node.agent, "unmetered")), (0, None));
    let stray = below(&parent, "stray");
    let began = Instant::now();
    let message = node.wait_for_alarm("unmetered");
    assert!(message.contains(&stray.v2.display().to_string()), "{message}");
    println!("found after {:?}", began.elapsed());
    assert_eq!(missed(&node), stray.all.len() as u64 / 2, "each of its own directories; its parent is nobody's");
    let metered = node.agent.done("GET", "/v1/jobs", None);
    assert_eq!(metered["jobs"].as_array().unwrap().len(), 1, "a stray is nobody's job: {metered}");
    let written = |facts: &str| facts.contains("missed_start") && facts.contains(&stray.v2.display().to_string());
    node.agent.wait_for("it is in the journal", |_| written(&node.facts()));
    node.end_job(0);
}

#[test]
fn a_cgroup_that_was_replaced_by_another_of_its_name_ends_its_job_as_drift_and_the_other_is_not_charged() {
    let Some(mut node) = Node::new("replaced", 1) else { return };
    node.burning();
    node.wait_until_counted_on(0);
    // While the agent stands still, so that it sees neither the end of the one nor the time between the two.
    node.agent.signal("STOP");
    node.jobs[0].end_tasks();
    let used_ns = node.jobs[0].used_ns();
    for dir in &node.jobs[0].all {
        std::fs::remove_dir(dir).unwrap();
        std::fs::create_dir(dir).unwrap();
    }
    node.jobs[0].burn();
    node.jobs[0].go();
    node.agent.signal("CONT");
    node.agent.wait_for("the job has ended", |agent| agent.done("GET", "/v1/jobs/job-0/receipt", None)["state"] == "final");
    let why = node.meterctl(&["why", "job-0"]);
    assert!(why.contains("drift: another cgroup has taken the name"), "{why}");
    let corrections = |agent: &agent::Agent| agent.done("GET", "/v1/status", None)["corrections"].clone();
    node.agent.wait_for("the drift is counted", |agent| corrections(agent)["drift"] == 1);
    assert_eq!(corrections(&node.agent)["missed_stop"], 0);
    node.agent.wait_for("it is in the journal", |_| node.facts().contains("cgroup_replaced"));
    let receipt = node.agent.done("GET", "/v1/jobs/job-0/receipt", None);
    assert!(0 < cpu_ns(&receipt) && cpu_ns(&receipt) <= used_ns, "the other one's work is not the job's: {receipt}");
    assert!(!node.jobs[0].is_frozen() && node.jobs[0].tasks[0].try_wait().unwrap().is_none(), "and nobody touches it");
}
