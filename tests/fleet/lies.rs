//! Whatever the authority answers, no job is stopped before its grant runs out; each fault is named in `status` and counted.

use std::time::{Duration, Instant};

use meterd::domain::money::Credits;
use serde_json::Value;

use crate::agent::Agent;
use crate::cgroup::cgroups;
use crate::jobs;
use crate::liar::{Liar, Lie};
use crate::process::{agent, certificate, link, meterctl};

fn agent_of(liar: &Liar) -> Agent {
    let files = liar.ca.node("n1", "n1");
    agent("n1", &format!("url = \"https://127.0.0.1:{}\"\nca = \"{}\"\n{}", liar.port, liar.ca.pem().display(), certificate(&files)))
}

fn count(link: &Value, code: &str) -> u64 {
    link["faults"][code].as_u64().unwrap_or(0)
}

const LIES: [(Lie, &str); 30] = [
    (Lie::Garbage, "not_json"),
    (Lie::Empty, "not_json"),
    (Lie::UnknownVerdict, "not_json"),
    (Lie::BareNumbers, "not_json"),
    (Lie::Zero, "grant_fell"),
    (Lie::Exhausted, "contradiction"),
    (Lie::NoEntries, "missing_account"),
    (Lie::Replayed, "other_question"),
    (Lie::OtherWords, "other_words"),
    (Lie::OtherEpoch, "other_epoch"),
    (Lie::OtherProtocol, "other_protocol"),
    (Lie::OtherUnit, "other_unit"),
    (Lie::OtherAccount, "other_account"),
    (Lie::Doubled, "doubled_account"),
    (Lie::Negative, "impossible_number"),
    (Lie::Eternal, "impossible_number"),
    (Lie::Status(401), "refused_401"),
    (Lie::Status(403), "refused_403"),
    (Lie::Status(404), "refused_404"),
    (Lie::Status(409), "refused_409"),
    (Lie::Status(418), "refused_4xx"),
    (Lie::Status(429), "refused_429"),
    (Lie::Status(500), "failed_5xx"),
    (Lie::Status(503), "failed_5xx"),
    (Lie::Status(302), "redirected"),
    (Lie::TooLong, "too_long"),
    (Lie::HalfClosed, "cut_off"),
    (Lie::ShutDoor, "cut_off"),
    (Lie::OtherCa, "certificate_refused"),
    (Lie::SlowBody, "timed_out"),
];

#[test]
fn no_answer_stops_a_job_before_its_grant_runs_out_and_each_fault_is_named_and_counted() {
    let Some(mut cgroups) = cgroups("lies", 1) else { return };
    let liar = Liar::start("1000");
    let mut agent = agent_of(&liar);
    agent.launch();
    jobs::start(&agent, &mut cgroups[0], "job", "lab");
    agent.wait_for("the stream of events is open", |agent| link(agent)["stream"] == "open" && liar.listeners() != 0);
    for (lie, code) in LIES {
        agent.wait_for("the link is sound", |agent| link(agent)["fault"].is_null());
        let before = count(&link(&agent), code);
        liar.tell(lie);
        liar.push("lab");
        agent.wait_for(&format!("{lie:?} is counted as {code}"), |agent| before < count(&link(agent), code));
        let shown = link(&agent)["fault"].clone();
        if shown["code"] == code {
            let text = meterctl(&agent, &["status"]);
            assert!(text.contains(code), "{code} is not in meterctl status:\n{text}");
        }
        let metrics = agent.done("GET", "/metrics", None).as_str().unwrap().to_owned();
        assert!(metrics.contains(&format!("meterd_authority_faults_total{{code=\"{code}\"}}")), "{metrics}");
        assert!(!cgroups[0].is_frozen(), "{lie:?} froze a job that has credit");
        assert_eq!(jobs::phase(&agent, "job"), "running", "{lie:?}");
        liar.tell(Lie::None);
    }
    agent.wait_for("the link is sound", |agent| link(agent)["fault"].is_null());
    assert!(cgroups[0].tasks[0].try_wait().unwrap().is_none(), "the task lives");
    let answers = link(&agent)["answers"].as_u64().unwrap();
    assert!(answers < 500, "{answers} answers: it asks again and again");
}

#[test]
fn a_job_whose_authority_only_lies_runs_until_its_grant_is_used_and_then_stands_still() {
    let Some(mut cgroups) = cgroups("lying", 1) else { return };
    let liar = Liar::start("0.4");
    let mut agent = agent_of(&liar);
    agent.launch();
    jobs::start(&agent, &mut cgroups[0], "job", "lab");
    let began = Instant::now();
    liar.tell(Lie::Zero);
    agent.wait_for("the grant is used up", |_| cgroups[0].is_frozen());
    println!("frozen {:?} after the start", began.elapsed());
    // 0.4 credits are 3.45 s of one core at 417.0417 an hour: the kernel's counter says how much of that there was.
    let used = jobs::price_nano(cgroups[0].used_ns());
    // What it gave back while answers were still true, because it needed less on a busy machine, is not there to be used.
    let account = agent.done("GET", "/v1/accounts/lab", None);
    let spent = account["node"]["spent"].as_str().unwrap().parse::<Credits>().unwrap().nano();
    assert_eq!(account["node"]["in_hand"], "0", "{account}");
    assert!((spent - 1_000_000..spent + 100_000_000).contains(&used) && used < 500_000_000, "frozen at {used}, spent {spent} of 400000000");
    std::thread::sleep(Duration::from_secs(3));
    assert!(
        cgroups[0].tasks[0].try_wait().unwrap().is_none(),
        "the account's rule is to kill, and nobody true has said that it is exhausted"
    );
    let why = crate::process::meterctl(&agent, &["why", "job"]);
    assert!(why.contains("has given no sound answer since") && why.contains("grant_fell"), "{why}");
    let accounts = agent.done("GET", "/v1/accounts/lab", None);
    assert_eq!(accounts["node"]["state"], "empty", "{accounts}");
    agent.wait_for("the state is raised", |agent| {
        let status = agent.done("GET", "/v1/status", None);
        status["alarms"].as_array().unwrap().iter().any(|alarm| alarm["code"] == "authority_fault")
    });
    liar.tell(Lie::None);
    let before = liar.listeners();
    assert_ne!(before, 0);
}
