//! What a disk can do to the agent beyond a failed flush: it fills while jobs run out of credit and end, under the journal or under the
//! authority's file, and it fails in a write or a read. And what a full table of descriptors does to a start.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::node::{Mounts, Node, faults};
use crate::{agent, cgroup, support};

/// A job whose credit runs out while the disk takes nothing is frozen, and one that ends meanwhile has its exact receipt once there is room.
fn frozen_and_ended_while_full(mut node: Node, fill: impl Fn(&Node), make_room: impl Fn(&Node)) {
    node.agent.launch();
    node.account("rich", "1000000");
    node.account("short", "0.05");
    node.start_job(0, "rich");
    node.jobs[1].burn();
    node.meter_job(1, "short");
    fill(&node);
    node.wait_for_alarm("journal_full");
    node.jobs[1].go();
    node.agent.wait_for("the short account's job is frozen from memory", |_| node.jobs[1].is_frozen());
    assert!(!node.jobs[0].is_frozen());
    // It ends now. Whoever says so is perhaps answered only when that is on disk.
    node.jobs[0].end_tasks();
    let socket = node.agent.path("run/meterd.sock");
    let stop = json!({ "outcome": "completed" });
    let stopped = std::thread::spawn(move || agent::ask(&socket, "POST", "/v1/jobs/job-0/stop", Some(&stop)));
    std::thread::sleep(Duration::from_millis(500));
    make_room(&node);
    node.wait_until_over("journal_full");
    println!("the stop while it was full: {:?}", stopped.join().unwrap().map(|(status, body)| (status, body["error"]["code"].clone())));
    node.exact_receipt(0);
    assert!(node.jobs[1].is_frozen());
    let receipt = node.end_job(1);
    assert_eq!(receipt["drawn"], json!("0.05"), "{receipt}");
    node.agent.kill();
    node.agent.launch();
    node.exact_receipt(0);
}

#[test]
fn while_the_disk_is_full_jobs_are_frozen_from_memory_and_one_that_ends_has_its_receipt_once_there_is_room() {
    let Some(mut node) = Node::new("fullend", 2) else { return };
    let Some(mounts) = support::need("mount", Mounts::small_disk(&node.agent.path("state"), 48)) else { return };
    node.agent.before = mounts.inside();
    let filler = node.agent.path("state/filler").display().to_string();
    let fill = |_: &Node| assert!(mounts.run(&format!("head -c 100M /dev/zero > {filler} 2>/dev/null; test -s {filler}")));
    frozen_and_ended_while_full(node, fill, |_| assert!(mounts.run(&format!("rm {filler}"))));
}

#[test]
fn while_the_journal_takes_no_byte_jobs_are_frozen_and_a_receipt_is_exact_once_it_takes_them_again() {
    let Some(mut node) = Node::new("fullall", 2) else { return };
    node.agent.environment = faults(node.agent.folder.path(), &node.agent.path("state"));
    let fault = node.agent.path("enospc");
    frozen_and_ended_while_full(node, |_| std::fs::write(&fault, "/journal.db").unwrap(), |_| std::fs::remove_file(&fault).unwrap());
}

#[test]
fn a_full_disk_under_the_authority_is_named_jobs_run_on_their_grants_and_nothing_is_paid_twice_afterwards() {
    let Some(mut node) = Node::new("authfull", 2) else { return };
    node.agent.environment = faults(node.agent.folder.path(), &node.agent.path("state"));
    node.agent.launch();
    node.account("rich", "1000000");
    node.account("short", "0.05");
    node.start_job(0, "rich");
    node.jobs[1].burn();
    node.meter_job(1, "short");
    std::fs::write(node.agent.path("enospc"), "/authority.db").unwrap();
    let payment = json!({ "amount": "7", "bucket": "paid", "payment": "late" });
    let (status, refusal) = node.agent.ask("POST", "/v1/accounts/rich/topup", Some(&payment));
    assert_eq!((status, &refusal["error"]["code"]), (503, &json!("store_full")), "{refusal}");
    let message = node.wait_for_alarm("authority_full");
    assert!(message.contains("full"), "{message}");
    node.wait_until_counted_on(0);
    node.jobs[1].go();
    node.agent.wait_for("whose grant is used up is frozen", |_| node.jobs[1].is_frozen());
    node.wait_until_counted_on(0);
    assert_eq!((node.phase(0).as_str(), node.jobs[0].is_frozen()), ("running", false), "it has a grant");
    std::fs::remove_file(node.agent.path("enospc")).unwrap();
    node.agent.done("POST", "/v1/accounts/rich/topup", Some(&payment));
    node.agent.done("POST", "/v1/accounts/rich/topup", Some(&payment));
    node.wait_until_over("authority_full");
    let of = |node: &Node, name: &str| node.agent.done("GET", "/v1/accounts/rich", None)["authority"][name].clone();
    assert_eq!(of(&node, "deposited"), json!("1000007"), "paid once, however often it was said");
    let receipts = [node.end_job(0), node.end_job(1)];
    assert_eq!(receipts[1]["drawn"], json!("0.05"), "{}", receipts[1]);
    node.agent.wait_for("what was drawn is settled", |_| of(&node, "settled") == receipts[0]["drawn"]);
}

/// A disk that fails so ends the agent, and each one after it while that lasts; the first after that has lost nothing.
fn ends_the_agent_and_loses_nothing(name: &str, fault: &str, file: &str) {
    let Some(mut node) = Node::new(name, 1) else { return };
    node.agent.environment = faults(node.agent.folder.path(), &node.agent.path("state"));
    node.burning();
    node.wait_until_counted_on(0);
    std::fs::write(node.agent.path(fault), file).unwrap();
    if fault == "eio_read" {
        // What it has read it need not read again: it may go on, but no other one begins.
        node.agent.kill();
    } else {
        assert_eq!(node.agent.exit_code(), Some(74), "{}", node.agent.log());
    }
    assert!(!node.jobs[0].is_frozen(), "a broken disk stops no job");
    node.agent.spawn();
    assert_eq!(node.agent.exit_code(), Some(74), "while the disk is broken no agent goes on: {}", node.agent.log());
    std::fs::remove_file(node.agent.path(fault)).unwrap();
    node.agent.launch();
    node.wait_until_counted_on(0);
    let receipt = node.end_job(0);
    let settled = |node: &Node| node.agent.done("GET", "/v1/accounts/rich", None)["authority"]["settled"].clone();
    node.agent.wait_for("what was drawn is settled", |_| settled(&node) == receipt["drawn"]);
}

#[test]
fn a_failed_write_under_the_journal_ends_the_agent_and_the_next_one_has_lost_nothing() {
    ends_the_agent_and_loses_nothing("eiojw", "eio_write", "/journal.db");
}

#[test]
fn a_failed_write_under_the_authority_ends_the_agent_and_the_next_one_has_lost_nothing() {
    ends_the_agent_and_loses_nothing("eioaw", "eio_write", "/authority.db");
}

#[test]
fn a_failed_read_of_the_journal_lets_no_agent_begin_and_nothing_is_lost() {
    ends_the_agent_and_loses_nothing("eiojr", "eio_read", "/journal.db");
}

#[test]
fn a_failed_read_of_the_authority_lets_no_agent_begin_and_nothing_is_lost() {
    ends_the_agent_and_loses_nothing("eioar", "eio_read", "/authority.db");
}

/// One more call over a connection that is open already.
fn ask_over(stream: &mut UnixStream, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let head = format!("{method} {path} HTTP/1.1\r\nhost: meterd\r\ncontent-type: application/json\r\ncontent-length: {}", body.len());
    write!(stream, "{head}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    loop {
        let mut bytes = [0; 16_384];
        let count = stream.read(&mut bytes).unwrap();
        assert!(0 < count, "the connection was closed after {answer}");
        answer += std::str::from_utf8(&bytes[..count]).unwrap();
        let Some((head, body)) = answer.split_once("\r\n\r\n") else { continue };
        let length = head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        if length.unwrap() <= body.len() {
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            return (status, serde_json::from_str(body).unwrap_or(Value::Null));
        }
    }
}

#[test]
fn with_no_descriptor_left_a_start_is_refused_by_a_stable_code_and_works_again_afterwards() {
    let Some(mut node) = Node::new("nofile", 2) else { return };
    node.agent.launch();
    node.account("rich", "1000000");
    node.start_job(0, "rich");
    node.jobs[1].burn();
    node.jobs[1].note_baseline();
    let mut stream = UnixStream::connect(node.agent.path("run/meterd.sock")).unwrap();
    stream.set_read_timeout(Some(agent::PATIENCE)).unwrap();
    assert_eq!(ask_over(&mut stream, "GET", "/healthz", &Value::Null).0, 200);
    let pid = node.agent.pid();
    let limit = |count: u64| {
        let words = ["--pid".to_owned(), pid.to_string(), format!("--nofile={count}:")];
        assert!(Command::new("prlimit").args(words).status().unwrap().success());
    };
    // Not one more: all below the limit are taken, or are soon by what is opened and kept.
    let lowest_free = || {
        let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let taken: std::collections::BTreeSet<u64> =
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        (0..u64::from(u32::MAX)).find(|number| !taken.contains(number)).unwrap()
    };
    limit(lowest_free());
    let wanted = json!({ "job": "job-1", "account": "rich", "cgroups": cgroup::paths(&node.jobs[1]) });
    let (status, refusal) = ask_over(&mut stream, "POST", "/v1/jobs", &wanted);
    assert_eq!((status, &refusal["error"]["code"]), (503, &json!("busy")), "{refusal}");
    assert!(refusal["error"]["message"].as_str().unwrap().contains("descriptor"), "{refusal}");
    // Some looks without a descriptor to spare.
    std::thread::sleep(Duration::from_millis(500));
    limit(4_096);
    node.wait_until_counted_on(0);
    node.meter_job(1, "rich");
    node.jobs[1].go();
    node.wait_until_counted_on(1);
    node.agent.kill();
    node.agent.launch();
    node.end_job(0);
    node.end_job(1);
}
