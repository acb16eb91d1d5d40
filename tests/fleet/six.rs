//! One authority and six agents, each a process of its own behind a link of its own, with twelve real jobs on one shared account and one
//! account for each node. The authority is killed twice, two links are cut for a minute, one node loses its disk, one agent is killed; then
//! all credit is taken back, some comes, and it runs out everywhere. In the end every nano-credit is where it belongs.
//!
//! What happened when, and what it came to: `cargo test --test fleet six_agents -- --nocapture`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::cgroup::{Cgroup, cgroups, paths};
use crate::jobs;
use crate::links::Links;
use crate::process::{Authority, certificate, link, nano};

const NODES: usize = 6;
const SHARED: &str = "pool";
/// For so long two links are cut.
const CUT: Duration = Duration::from_mins(1);
/// Their nodes: what the first holds lasts, the second's own account is nearly empty.
const RICH: usize = 0;
const POOR: usize = 1;
/// Its disk is wiped.
const WIPED: usize = 2;
/// Its agent is killed.
const KILLED: usize = 3;
/// Far more than a thaw takes, the wait for fewer freezes and thaws included.
const WRONG_AFTER: Duration = Duration::from_secs(30);
/// A part of a core: it works, and rests. Never more than that of a core, so that what a grant lasts for is known beforehand.
const TASK: &str = "exec nice -n 5 /bin/sh -c 'read go; while :; do i=0; while [ $i -lt 8000 ]; do i=$((i+1)); done; sleep 0.05; done'";

struct Running {
    name: String,
    account: String,
    cgroup: Cgroup,
    /// What it had used when its node's disk was lost, in nanoseconds.
    lost_ns: u128,
}

struct Node {
    agent: Agent,
    jobs: Vec<Running>,
}

/// The escrow that a wiped disk leaves behind at the authority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Left {
    granted: i128,
    settled: i128,
}

struct Fleet {
    began: Instant,
    links: Links,
    authority: Authority,
    nodes: Vec<Node>,
    /// By account.
    left: BTreeMap<String, Left>,
}

fn own(nth: usize) -> String {
    format!("own-{nth}")
}

fn credits(nano: i128) -> String {
    format!("{}.{:09}", nano / 1_000_000_000, nano % 1_000_000_000)
}

/// nano-credits that all of this machine's cores can use in so many seconds.
fn machine(secs: i128) -> i128 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    secs * jobs::price_nano(1_000_000_000) * i128::try_from(cores).unwrap()
}

impl Fleet {
    fn start(mut cgroups: Vec<Cgroup>) -> Fleet {
        let began = Instant::now();
        let links = Links::make(NODES);
        let authority = Authority::start_at(links.place(), "", "");
        // Forty minutes of all that the machine can use, so that grants last five.
        authority.account(SHARED, &credits(machine(2_400 * 2)));
        let node = |nth: usize| {
            let credit = if nth == POOR { jobs::price_nano(1_000_000_000) } else { machine(2_400) };
            authority.account(&own(nth), &credits(credit));
            let name = format!("n{nth}");
            let mut agent = authority.agent_over(&links.url(nth), &name, &certificate(&authority.ca.node(&name, &name)));
            agent.before = links.enter(nth);
            agent.spawn();
            let running = |name: String, account: String, cgroup| Running { name, account, cgroup, lost_ns: 0 };
            let jobs = [(format!("shared-{nth}"), SHARED.to_owned()), (format!("alone-{nth}"), own(nth))];
            let jobs = jobs.into_iter().map(|(name, account)| running(name, account, cgroups.pop().unwrap())).collect();
            Node { agent, jobs }
        };
        let mut nodes: Vec<Node> = (0..NODES).map(node).collect();
        for node in &mut nodes {
            node.agent.wait_for("it is ready", |agent| agent.try_ask("GET", "/readyz", None).is_some_and(|(status, _)| status == 200));
            for job in &mut node.jobs {
                job.cgroup.task(TASK);
                job.cgroup.note_baseline();
                report_start(&node.agent, job);
                job.cgroup.go();
            }
        }
        let fleet = Fleet { began, links, authority, nodes, left: BTreeMap::new() };
        let how = match &fleet.links {
            Links::Spaces { .. } => "in network namespaces of their own",
            Links::Relays { .. } => "on loopback ports, behind relays",
        };
        fleet.say(&format!("one authority and {NODES} agents run {how}, with {} jobs on {} accounts", 2 * NODES, NODES + 1));
        fleet
    }

    fn say(&self, what: &str) {
        let millis = self.began.elapsed().as_millis();
        println!("{:>4}.{} s  {what}", millis / 1_000, millis % 1_000 / 100);
    }

    fn kill_authority(&mut self) {
        self.authority.kill();
        std::thread::sleep(Duration::from_secs(1));
        self.authority.launch();
        self.say("the authority was killed, was away for a second and is back");
    }

    fn accounts() -> Vec<String> {
        (0..NODES).map(own).chain([SHARED.to_owned()]).collect()
    }

    /// The minute in which everything happens.
    fn misfortune(&mut self) {
        let cut = Instant::now();
        let until = |secs: u64| std::thread::sleep(Duration::from_secs(secs).saturating_sub(cut.elapsed()));
        for nth in [RICH, POOR] {
            self.links.cut(nth);
        }
        self.say(&format!("the links of n{RICH} and n{POOR} are cut"));
        until(4);
        self.kill_authority();
        until(10);
        self.nodes[KILLED].agent.kill();
        self.say(&format!("the agent of n{KILLED} is killed; its jobs go on"));
        until(13);
        self.nodes[KILLED].agent.launch();
        self.say("it is back");
        until(20);
        self.wipe();
        until(35);
        self.kill_authority();
        // Enough that it is not used up before anybody looks.
        for (account, amount) in [(SHARED.to_owned(), machine(30)), (own(POOR), machine(60))] {
            self.authority.top_up(&account, &credits(amount), "second");
            self.say(&format!("{} come to {account}", credits(amount)));
        }
        until(CUT.as_secs());
        for nth in [RICH, POOR] {
            let fault = link(&self.nodes[nth].agent)["fault"]["code"].clone();
            assert_ne!(fault, Value::Null, "n{nth} does not know that its link is cut");
            self.say(&format!("n{nth}, cut off for {} s: {fault}; its jobs: {}", cut.elapsed().as_secs(), phases(&self.nodes[nth])));
            self.links.mend(nth);
        }
        for nth in [RICH, POOR] {
            let node = &self.nodes[nth];
            node.agent.wait_for("the authority answers again, and all jobs go on", |agent| {
                link(agent)["fault"].is_null() && node.jobs.iter().all(|job| !job.cgroup.is_frozen())
            });
        }
        self.say("both links are whole, the agents are answered, all jobs go on");
    }

    /// Nothing is left of what the agent knew. Its jobs are held by whoever started them until they are reported anew.
    fn wipe(&mut self) {
        let node = &mut self.nodes[WIPED];
        node.agent.kill();
        for job in &mut node.jobs {
            signal(&job.cgroup, "STOP");
            job.lost_ns = stand_still(&job.cgroup);
        }
        let epochs = epochs(&self.authority, &format!("n{WIPED}"));
        self.left = epochs.into_iter().collect();
        assert_eq!(self.left.len(), 2, "one escrow of each account");
        std::fs::remove_dir_all(node.agent.path("state")).unwrap();
        node.agent.launch();
        for job in &mut node.jobs {
            job.cgroup.baseline_ns = job.cgroup.cpu_ns();
            report_start(&node.agent, job);
            signal(&job.cgroup, "CONT");
        }
        self.say(&format!("the disk of n{WIPED} was wiped under two jobs; they were reported anew and go on"));
    }

    /// All credit but a little is taken back; what the wiped disk held cannot be.
    fn take_back(&self) {
        for account in Fleet::accounts() {
            let kept = self.authority.kept(&account);
            let left = self.left.get(&account).copied().unwrap_or_default();
            let amount = nano(&kept["available"]) + nano(&kept["held"]) - (left.granted - left.settled) - 1_000_000;
            let body = json!({ "amount": credits(amount), "revocation": format!("back-{account}") });
            self.authority.admin.done("POST", &format!("/v1/accounts/{account}/revoke"), &body);
        }
        self.say("all credit but 0.001 of each account is taken back");
    }

    fn run_dry(&self) {
        for node in &self.nodes {
            let agent = &node.agent;
            patiently(agent, "everything stands still, by the authority's word", || {
                node.jobs.iter().all(|job| job.cgroup.is_frozen())
                    && node.jobs.iter().all(|job| view(agent, &job.account)["state"] == "exhausted")
            });
        }
        self.say("no account has anything left: all jobs stand still, by the authority's word");
    }

    fn pay_again(&self) {
        let before: Vec<u128> = self.jobs().map(|job| job.cgroup.cpu_ns()).collect();
        for account in Fleet::accounts() {
            let pending = nano(&self.authority.kept(&account)["revoke_pending"]);
            let cpu_ns = if account == SHARED { 6_000_000_000 } else { 900_000_000 };
            self.authority.top_up(&account, &credits(pending + jobs::price_nano(cpu_ns)), "third");
        }
        self.say("a little comes to every account");
        let went_on = |account: &dyn Fn(&str) -> bool, enough: usize| {
            let went = || self.jobs().zip(&before).filter(|(job, before)| account(&job.account) && **before < job.cgroup.cpu_ns()).count();
            patiently(&self.nodes[0].agent, "jobs go on", || enough <= went());
        };
        went_on(&|account| account != SHARED, NODES);
        went_on(&|account| account == SHARED, 1);
        self.say("the jobs of all accounts went on");
    }

    fn jobs(&self) -> impl Iterator<Item = &Running> {
        self.nodes.iter().flat_map(|node| &node.jobs)
    }

    /// Ends every job; what its receipts say, by account.
    fn end_all(&mut self) -> BTreeMap<String, Spent> {
        let receipts = |node: &mut Node| -> Vec<Value> {
            let Node { agent, jobs } = node;
            let end = |job: &mut Running| {
                kill_all(&job.cgroup);
                jobs::end(agent, &mut job.cgroup, &job.name)
            };
            jobs.iter_mut().map(end).collect()
        };
        let receipts: Vec<Vec<Value>> = std::thread::scope(|scope| {
            let ending: Vec<_> = self.nodes.iter_mut().map(|node| scope.spawn(|| receipts(node))).collect();
            ending.into_iter().map(|ending| ending.join().unwrap()).collect()
        });
        let mut spent: BTreeMap<String, Spent> = BTreeMap::new();
        for (node, receipts) in self.nodes.iter().zip(receipts) {
            for (job, receipt) in node.jobs.iter().zip(receipts) {
                let of = spent.entry(job.account.clone()).or_default();
                of.drawn += nano(&receipt["drawn"]);
                of.unfunded += nano(&receipt["unfunded"]);
                of.lost += jobs::price_nano(job.lost_ns);
                for evidence in receipt["steps"].as_array().unwrap().iter().filter_map(|step| step["event"].get("emptied")) {
                    of.stops += 1;
                    assert_eq!(nano(&evidence["in_hand"]), 0, "{} was stopped while its node held credit: {evidence}", job.name);
                }
            }
        }
        self.say("all jobs are ended; each receipt's charge is the price of the kernel's counter");
        spent
    }

    /// Every account, to the last nano-credit.
    fn audit(&self, spent: &BTreeMap<String, Spent>) {
        println!(
            "account   deposited     withdrawn     settled       held          available     receipts      lost disk     unfunded      stops"
        );
        for account in Fleet::accounts() {
            let of = spent[&account];
            let left = self.left.get(&account).copied().unwrap_or_default();
            let kept = || self.authority.kept(&account);
            let settled = of.drawn + left.settled;
            let held = left.granted - left.settled;
            self.authority.wait_for("all is settled and given back", |_| {
                let kept = kept();
                (nano(&kept["settled"]), nano(&kept["held"])) == (settled, held)
            });
            let kept = kept();
            let amount = |key: &str| nano(&kept[key]);
            let shown =
                ["deposited", "withdrawn", "settled", "held", "available"].map(|key| format!("{:<13}", credits(amount(key)))).join(" ");
            let beside = [of.drawn, of.lost, of.unfunded].map(|nano| format!("{:<13}", credits(nano))).join(" ");
            println!("{account:<9} {shown} {beside} {}", of.stops);
            let all = amount("available") + amount("held") + amount("settled") + amount("withdrawn");
            assert_eq!(all, amount("deposited"), "{account}: no nano-credit came or went: {kept}");
            assert_eq!(amount("shortfall"), 0, "{account}: nothing was used that nobody had paid");
            assert!(of.lost <= left.granted, "{account}: what was used under the lost disk was granted to it");
            assert!(left.settled <= of.lost, "{account}: nothing was charged that was not used");
            assert_eq!(self.usage(&account), settled, "{account}: the ledger's lines of use make what is settled");
            assert_ne!(of.stops, 0, "{account}: it ran dry");
        }
    }

    /// The sum of the ledger's lines of use.
    fn usage(&self, account: &str) -> i128 {
        let entries = self.authority.admin.done("GET", &format!("/v1/accounts/{account}/ledger?limit=10000"), &Value::Null);
        let entries = entries["entries"].as_array().unwrap().clone();
        entries.iter().filter(|entry| entry["kind"] == "usage").map(|entry| nano(&entry["amount"])).sum()
    }
}

/// What jobs came to, in nano-credits.
#[derive(Clone, Copy, Default)]
struct Spent {
    drawn: i128,
    unfunded: i128,
    /// The price of what was used under the wiped disk.
    lost: i128,
    stops: usize,
}

fn report_start(agent: &Agent, job: &Running) {
    let body = json!({ "job": job.name, "account": job.account, "cgroups": paths(&job.cgroup) });
    agent.done("POST", "/v1/jobs", Some(&body));
}

fn phases(node: &Node) -> String {
    let shown = |job: &Running| {
        let view = view(&node.agent, &job.account);
        format!("{} {}, {} in hand of {}", job.name, jobs::phase(&node.agent, &job.name), view["in_hand"].as_str().unwrap(), job.account)
    };
    node.jobs.iter().map(shown).collect::<Vec<_>>().join("; ")
}

fn view(agent: &Agent, account: &str) -> Value {
    agent.done("GET", &format!("/v1/accounts/{account}"), None)["node"].clone()
}

/// Longer than an agent is usually waited for: what is waited for is that credit is used up, on a machine that may be busy.
fn patiently(agent: &Agent, what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(5);
    while !holds() {
        assert!(Instant::now() < deadline, "not within five minutes: {what}; a log:\n{}", agent.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn signal(cgroup: &Cgroup, name: &str) {
    let pid = cgroup.tasks[0].id().to_string();
    assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
}

/// Kills what its task has started too.
fn kill_all(cgroup: &Cgroup) {
    let inside = || std::fs::read_to_string(cgroup.v2.join("cgroup.procs")).unwrap();
    let own = cgroup.tasks[0].id().to_string();
    loop {
        let pids = inside();
        let others: Vec<&str> = pids.lines().filter(|pid| *pid != own).collect();
        // The task first: it starts others.
        drop(Command::new("kill").args(["-s", "KILL", &own]).args(&others).output().unwrap());
        if others.is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until its counter stands still; what it has used since its start.
fn stand_still(cgroup: &Cgroup) -> u128 {
    loop {
        let before = cgroup.used_ns();
        std::thread::sleep(Duration::from_millis(200));
        if before == cgroup.used_ns() {
            return before;
        }
    }
}

/// The open escrows of a node, by account, read out of the authority's file.
fn epochs(authority: &Authority, node: &str) -> Vec<(String, Left)> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let file = Connection::open_with_flags(authority.path("state/authority.db"), flags).unwrap();
    let sql = "SELECT account, granted, returned, settled FROM epoch WHERE node = ?1 AND state = 'open'";
    let mut statement = file.prepare(sql).unwrap();
    let rows = statement.query_map([node], |row| {
        let amount = |column: usize| row.get::<_, String>(column).map(|text| nano(&json!(text)));
        Ok((row.get(0)?, Left { granted: amount(1)? - amount(2)?, settled: amount(3)? }))
    });
    rows.unwrap().map(Result::unwrap).collect()
}

/// Somebody who looks on: is a job frozen, and does its node hold credit of its account?
struct Watch {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Seen>>,
}

/// What was seen of one job.
struct Seen {
    job: String,
    socket: PathBuf,
    account: String,
    v2: PathBuf,
    looks: u64,
    frozen: u64,
    holding_since: Option<Instant>,
    /// For how long at most it stood still while credit was in hand.
    longest: Duration,
}

impl Watch {
    fn over(fleet: &Fleet) -> Watch {
        let of = |node: &Node, job: &Running| Seen {
            job: job.name.clone(),
            socket: node.agent.path("run/meterd.sock"),
            account: job.account.clone(),
            v2: job.cgroup.v2.clone(),
            looks: 0,
            frozen: 0,
            holding_since: None,
            longest: Duration::ZERO,
        };
        let mut all: Vec<Seen> = fleet.nodes.iter().flat_map(|node| node.jobs.iter().map(move |job| of(node, job))).collect();
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::SeqCst) {
                all.iter_mut().for_each(Seen::look);
                std::thread::sleep(Duration::from_millis(100));
            }
            all
        });
        Watch { over, thread }
    }

    fn end(self) -> Vec<Seen> {
        self.over.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

impl Seen {
    fn look(&mut self) {
        let frozen = || std::fs::read_to_string(self.v2.join("cgroup.events")).is_ok_and(|text| text.contains("frozen 1"));
        self.looks += 1;
        if !frozen() {
            self.holding_since = None;
            return;
        }
        self.frozen += 1;
        let answer = crate::agent::ask(&self.socket, "GET", &format!("/v1/accounts/{}", self.account), None);
        let in_hand = answer.and_then(|(_, body)| body["node"]["in_hand"].as_str().map(str::to_owned));
        if in_hand.is_some_and(|amount| nano(&json!(amount)) == 0) || !frozen() {
            self.holding_since = None;
            return;
        }
        let since = *self.holding_since.get_or_insert_with(Instant::now);
        self.longest = self.longest.max(since.elapsed());
    }
}

#[test]
fn six_agents_and_one_authority_balance_to_the_last_nano_credit_over_kills_cut_links_and_a_wiped_disk() {
    let Some(cgroups) = cgroups("six", 2 * NODES) else { return };
    let mut fleet = Fleet::start(cgroups);
    let watch = Watch::over(&fleet);
    fleet.misfortune();
    fleet.take_back();
    fleet.run_dry();
    fleet.pay_again();
    fleet.run_dry();
    let seen = watch.end();
    let spent = fleet.end_all();
    fleet.audit(&spent);
    let (looks, frozen): (u64, u64) = seen.iter().fold((0, 0), |(looks, frozen), of| (looks + of.looks, frozen + of.frozen));
    let longest = seen.iter().max_by_key(|of| of.longest).unwrap();
    fleet.say(&format!(
        "{looks} looks at {} jobs found {frozen} times one frozen; with credit in hand for {} ms at most ({})",
        seen.len(),
        longest.longest.as_millis(),
        longest.job
    ));
    assert!(longest.longest < WRONG_AFTER, "{} stood still with credit in hand for {:?}", longest.job, longest.longest);
    fleet.say("every account is in balance to the last nano-credit");
}
