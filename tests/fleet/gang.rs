//! A job on several nodes: one authority, two real agents with a part each, and a third part by hand.

use std::cell::Cell;

use serde_json::{Value, json};

use crate::agent::Agent;
use crate::cgroup::{Cgroup, cgroups, paths};
use crate::https::Client;
use crate::jobs;
use crate::node::{Epoch, Told};
use crate::process::{Authority, meterctl, nano};

fn start(agent: &Agent, job: &mut Cgroup, name: &str) {
    job.burn();
    job.note_baseline();
    let gang = json!({ "name": "mpi-17", "attempt": 1, "size": 2 });
    agent.done("POST", "/v1/jobs", Some(&json!({ "job": name, "account": "lab", "cgroups": paths(job), "gang": gang })));
    job.go();
}

/// What a node has heard of the gang of its job.
fn heard(agent: &Agent, name: &str) -> Value {
    agent.done("GET", &format!("/v1/jobs/{name}"), None)["gang"].clone()
}

fn account_state(agent: &Agent) -> String {
    let account = agent.done("GET", "/v1/accounts/lab", None);
    account["node"]["state"].as_str().unwrap_or_default().to_owned()
}

/// A part on a node of one's own: it holds nothing and says what it is told to.
struct ByHand {
    epoch: Epoch,
    number: Cell<u64>,
}

impl ByHand {
    fn new(authority: &Authority) -> ByHand {
        let files = authority.ca.node("n3", "n3");
        let client = Client::new(authority.port, &authority.ca.pem(), Some(&files));
        ByHand { epoch: Epoch::new(&client, "n3", 3, "lab"), number: Cell::new(0) }
    }

    /// The register's want and version after that word.
    fn says(&self, says: &str, version: u64) -> (String, u64) {
        self.number.set(self.number.get() + 1);
        let mut body = self.epoch.body(self.number.get(), Told::default());
        let gang = json!({ "account": "lab", "name": "mpi-17", "attempt": 1 });
        body["gangs"] = json!([{ "gang": gang, "part": 1, "says": says, "version": version }]);
        let answer = self.epoch.client.done("POST", "/v1/grants", &body);
        let want = &answer["gangs"][0];
        assert_eq!(want["gang"], gang, "{answer}");
        (want["want"].as_str().unwrap().to_owned(), want["version"].as_u64().unwrap())
    }

    fn runs_dry(&self) -> u64 {
        let (want, version) = self.says("runs", 0);
        assert_eq!(want, "run");
        let (want, version) = self.says("dry", version);
        assert_eq!(want, "freeze");
        version
    }
}

fn all_are(frozen: bool, agents: &[Agent], cgroups: &[Cgroup]) {
    for (nth, agent) in agents.iter().enumerate() {
        agent.wait_for(if frozen { "it stands still" } else { "it goes on" }, |_| cgroups[nth].is_frozen() == frozen);
    }
}

/// Credit ends, all parts stand still; the authority is killed and a node's agent too; a top-up lets all go on; a part that runs dry elsewhere stops
/// those that are funded; who leaves is waited for no more; and in the end there is one bill.
#[test]
fn parts_of_one_job_on_several_nodes_freeze_and_thaw_together_and_make_one_bill() {
    let Some(mut cgroups) = cgroups("gang", 2) else { return };
    let mut authority = Authority::start("", "");
    authority.account("lab", "0.6");
    let mut agents: Vec<Agent> = ["n1", "n2"].iter().map(|node| authority.agent(node)).collect();
    for (nth, agent) in agents.iter_mut().enumerate() {
        agent.launch();
        start(agent, &mut cgroups[nth], &format!("part-{nth}"));
    }
    all_are(true, &agents, &cgroups);
    for (nth, agent) in agents.iter().enumerate() {
        agent.wait_for("it has heard that all stand still", |agent| heard(agent, &format!("part-{nth}"))["want"] == "freeze");
        assert!(["n1", "n2"].contains(&heard(agent, &format!("part-{nth}"))["dry"].as_str().unwrap()));
    }
    let kept = authority.kept("lab");
    let used = nano(&kept["settled"]) + nano(&kept["available"]) + nano(&kept["held"]);
    assert_eq!(used, 600_000_000, "not a nano-credit more than there was: {kept}");

    authority.kill();
    agents[1].kill();
    authority.launch();
    agents[1].launch();
    assert!(cgroups.iter().all(Cgroup::is_frozen), "neither lets anything go on");
    assert_eq!(heard(&agents[1], "part-1")["want"], "freeze", "a new process knows why it stands still");
    authority.top_up("lab", "1000", "second");
    all_are(false, &agents, &cgroups);

    let third = ByHand::new(&authority);
    let version = third.runs_dry();
    all_are(true, &agents, &cgroups);
    for (nth, agent) in agents.iter().enumerate() {
        assert_eq!(account_state(agent), "funded", "its own credit is not the reason");
        agent.wait_for("it says why", |agent| meterctl(agent, &["why", &format!("part-{nth}")]).contains("the job ran dry on node n3"));
        agent.wait_for("the list says so", |agent| meterctl(agent, &["jobs"]).contains("frozen with its gang: n3 ran dry"));
        agent.wait_for("the events say so", |agent| {
            let events = meterctl(agent, &["events"]);
            events.contains("gang_heard") && events.contains("its gang stands still")
        });
    }
    third.says("left", version);
    all_are(false, &agents, &cgroups);

    let first = jobs::end(&agents[0], &mut cgroups[0], "part-0");
    let third = ByHand { epoch: Epoch { id: format!("{:032x}", 4), ..third.epoch }, number: Cell::new(0) };
    let version = third.runs_dry();
    agents[1].wait_for("it stands still", |_| cgroups[1].is_frozen());
    agents[1].wait_for("the first part has left, the others are ready", |_| third.says("ready", version).0 == "run");
    agents[1].wait_for("it goes on without the first", |_| !cgroups[1].is_frozen());
    let second = jobs::end(&agents[1], &mut cgroups[1], "part-1");

    let drawn = nano(&first["drawn"]) + nano(&second["drawn"]);
    authority.wait_for("all is settled and given back", |authority| {
        let kept = authority.kept("lab");
        nano(&kept["settled"]) == drawn && nano(&kept["held"]) == 0
    });
    for receipt in [&first, &second] {
        assert_eq!(receipt["gang"], json!({ "name": "mpi-17", "attempt": 1, "size": 2 }));
    }
    one_bill(&agents, drawn);
}

/// The folders of both nodes make one line.
fn one_bill(agents: &[Agent], drawn: i128) {
    let states: Vec<String> = agents.iter().map(|agent| agent.path("state").display().to_string()).collect();
    let report = |further: &str| {
        meterctl(&agents[0], &["report", "--by", "job", "--period", "14d", further, "--state-dir", &states[0], "--state-dir", &states[1]])
    };
    let document: Value = serde_json::from_str(&report("--json")).unwrap();
    let [row] = document["rows"].as_array().unwrap().as_slice() else { panic!("{document:#}") };
    assert_eq!((&row["key"], &row["jobs"]), (&json!("mpi-17 run 1"), &json!(1)));
    assert_eq!((nano(&row["charge"]) - nano(&row["unfunded"]), nano(&document["total"])), (drawn, nano(&row["charge"])), "{document:#}");
    assert_eq!(document["dearest"].as_array().unwrap().len(), 1, "{document:#}");
}
