//! How fast a change at the authority reaches a job: by push, and with the stream cut. Printed, never asserted.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::agent::{Agent, PATIENCE};
use crate::cgroup::{Cgroup, cgroups};
use crate::process::{Authority, certificate, link};

fn number(name: &str, otherwise: usize) -> usize {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// From before the call to the authority until the kernel says so.
fn until(wanted: bool, job: &Cgroup, agent: &Agent, change: impl FnOnce()) -> Duration {
    let began = Instant::now();
    change();
    while job.is_frozen() != wanted {
        assert!(began.elapsed() < PATIENCE, "not within a minute: frozen = {wanted}; the log:\n{}", agent.log());
        std::thread::sleep(Duration::from_micros(500));
    }
    began.elapsed()
}

fn revoke(authority: &Authority, account: &str) {
    authority.admin.done("POST", &format!("/v1/accounts/{account}/revoke"), &json!({ "revocation": format!("back-{account}") }));
}

fn shown(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    println!("{what}: p50 {:?}, p99 {:?}, longest {:?} of {}", at(50), at(99), times[times.len() - 1], times.len());
}

/// `METERD_PUSHES=100` for the long form.
#[test]
fn a_revocation_freezes_and_a_top_up_thaws_by_push_and_by_asking_where_the_stream_is_cut() {
    // Each round has an account and a job of its own: one that runs empty again and again is let go later each time, by design.
    let rounds = number("METERD_PUSHES", 10);
    let Some(mut cgroups) = cgroups("push", rounds + 1) else { return };
    let revoked_dir = tempfile::tempdir().unwrap();
    let revoked = revoked_dir.path().join("revoked");
    std::fs::write(&revoked, "").unwrap();
    let authority = Authority::start("", &format!("[access]\nrevoked = \"{}\"", revoked.display()));
    let files = authority.ca.node("n1", "n1");
    let mut agent = authority.agent_with("n1", &certificate(&files));
    agent.launch();
    agent.wait_for("the stream is open", |agent| link(agent)["stream"] == "open");
    let (mut frozen, mut thawed) = (Vec::new(), Vec::new());
    for (nth, cgroup) in cgroups[..rounds].iter_mut().enumerate() {
        let (account, job) = (format!("lab-{nth}"), format!("job-{nth}"));
        authority.account(&account, "1000");
        crate::jobs::start(&agent, cgroup, &job, &account);
        authority.wait_for("it holds a grant", |authority| authority.kept(&account)["held"] != "0");
        frozen.push(until(true, cgroup, &agent, || revoke(&authority, &account)));
        authority.wait_for("all that was streams is back", |authority| authority.kept(&account)["held"] == "0");
        thawed.push(until(false, cgroup, &agent, || authority.top_up(&account, "1000", "more")));
        crate::jobs::end(&agent, cgroup, &job);
    }
    shown("revoke to freeze, by push", frozen);
    shown("top-up to thaw, by push", thawed);
    assert_ne!(link(&agent)["pushes"], 0);
    authority.account("lab", "1000");
    crate::jobs::start(&agent, &mut cgroups[rounds], "job", "lab");
    authority.wait_for("it holds a grant", |authority| authority.kept("lab")["held"] != "0");
    // Others sit on all the streams that the node may have: the agent's own is cut and not let in again.
    let client = crate::https::Client::new(authority.port, &authority.ca.pem(), Some(&files));
    let hold = || {
        let mut stream = client.connect().unwrap();
        write!(stream, "GET /v1/events HTTP/1.1\r\nhost: authority\r\n\r\n").unwrap();
        let mut head = [0; 15];
        stream.read_exact(&mut head).unwrap();
        (head == *b"HTTP/1.1 200 OK").then_some(stream)
    };
    let mut streams = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    for round in 0.. {
        // Whoever comes back first after a change of the files has the place.
        std::fs::write(&revoked, format!("# {round}\n")).unwrap();
        authority.signal("HUP");
        agent.wait_for("the stream is cut", |agent| link(agent)["stream"] == "closed");
        streams.clear();
        streams.extend((0..4).filter_map(|_| hold()));
        if streams.len() == 4 {
            break;
        }
        assert!(Instant::now() < deadline, "the agent is always the first");
    }
    agent.wait_for("the agent is not let in", |agent| link(agent)["stream_fault"]["code"] == "refused_429");
    let before = link(&agent)["pushes"].clone();
    let frozen = until(true, &cgroups[rounds], &agent, || revoke(&authority, "lab"));
    let thawed = until(false, &cgroups[rounds], &agent, || authority.top_up("lab", "1000", "cut"));
    println!("with the stream cut: revoke to freeze {frozen:?}, top-up to thaw {thawed:?} (it tells at least every 30 s)");
    assert_eq!(link(&agent)["pushes"], before, "nothing was told meanwhile");
}

#[test]
fn d6_an_alert_of_the_authority_is_among_the_events_of_the_node_that_the_account_concerns() {
    let Some(mut cgroups) = cgroups("news", 1) else { return };
    let authority = Authority::start("", "");
    let files = authority.ca.node("n1", "n1");
    let mut agent = authority.agent_with("n1", &certificate(&files));
    agent.launch();
    agent.wait_for("the stream is open", |agent| link(agent)["stream"] == "open");
    authority.admin.done("POST", "/v1/accounts", &json!({ "account": "lab", "alerts": { "below": ["900"] } }));
    authority.top_up("lab", "1000", "first");
    crate::jobs::start(&agent, &mut cgroups[0], "job", "lab");
    authority.wait_for("it holds a grant", |authority| authority.kept("lab")["held"] != "0");
    let heard = |agent: &Agent| {
        let mut meterctl = std::process::Command::new(env!("CARGO_BIN_EXE_meterctl"));
        let output = meterctl.arg("--socket").arg(agent.path("run/meterd.sock")).args(["events", "--account", "lab"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(!heard(&agent).contains("less than 900"));
    revoke(&authority, "lab");
    agent.wait_for("the alert is told", |agent| heard(agent).matches("credits are left, less than 900").count() == 1);
    crate::jobs::end(&agent, &mut cgroups[0], "job");
}
