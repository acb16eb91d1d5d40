//! Clocks that jump under a running agent: set back an hour, set forward a day, and a machine that slept. No charge and no credit may change.
//!
//! The agent runs in this process, whose clock edge is told what to believe: no test sets a machine's clock.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/cgroup.rs"]
mod cgroup;
#[path = "support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use cgroup::{Cgroup, cgroups, paths};
use meterd::domain::agent::start::Reply;
use meterd::domain::bucket::Bucket;
use meterd::domain::id::{JobName, Uid};
use meterd::domain::job::Ending;
use meterd::domain::ledger::{Expiry, Terms};
use meterd::domain::outcome::Outcome;
use meterd::domain::rates::Card;
use meterd::domain::receipt::{Receipt, ReceiptState, rfc3339};
use meterd::domain::request::{Pay, Place, StartRequest};
use meterd::domain::time::{Nanos, Wall};
use meterd::domain::wire::AccountPolicy;
use meterd::node::clock;
use meterd::node::config::Config;
use meterd::node::daemon::Daemon;
use meterd::node::handle::{Caller, Inbox};

const CARD: &str = "card = \"test\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n\
    [[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"1\"\nunit = \"core-second\"\n\
    [[line]]\nid = \"wall\"\nmeter = \"wall_time\"\nprice = \"1\"\nunit = \"second\"\n";

/// However busy the machine, a step that takes longer than this does not come.
const PATIENCE: Duration = Duration::from_mins(1);

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn ask<T>(daemon: &Daemon, message: impl FnOnce(tokio::sync::oneshot::Sender<T>) -> Inbox) -> T {
    let (reply, answer) = tokio::sync::oneshot::channel();
    daemon.handle().put(message(reply)).unwrap();
    answer.blocking_recv().unwrap()
}

fn start(daemon: &Daemon, job: &JobName, cgroup: &Cgroup) {
    let request = StartRequest {
        traits: std::collections::BTreeMap::new(),
        policy: meterd::domain::ladder::JobPolicy::default(),
        job: job.clone(),
        account: "a".parse().unwrap(),
        owner: None,
        place: Place::Cgroups(paths(cgroup)),
        gpus: Vec::new(),
        time_limit: None,
        cpus: None,
        memory_bytes: None,
        bid: None,
        storage_bytes: None,
        gang: None,
    };
    let caller = Caller { uid: Uid::ROOT, pid: std::process::id(), pidfd: None };
    let reply = ask(daemon, |reply| Inbox::Start { request, caller, reply });
    assert!(matches!(reply, Reply::Started { .. }), "{reply:?}");
}

fn receipt(daemon: &Daemon, job: &JobName) -> Receipt {
    ask(daemon, |reply| Inbox::Receipt { name: job.clone(), reply }).unwrap()
}

#[test]
fn an_hour_back_a_day_forward_and_a_sleep_change_no_charge_and_no_credit() {
    let Some(mut jobs) = cgroups("clock", 1) else { return };
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "node = \"t\"\nstate_dir = \"{0}/state\"\nruntime_dir = \"{0}/run\"\nenforcement = \"enforce\"\ninterval_ms = 100\n\
         [status]\nlisten = \"off\"\n[gpu]\nnvml = \"off\"\n",
        dir.path().display()
    );
    // In twelve hours credit lapses and a line begins: a day forward is past that.
    let due = Wall(clock::now().wall.0 + 43_200_000);
    let dated = format!(
        "{CARD}[[line]]\nid = \"later\"\nmeter = \"wall_time\"\nprice = \"1\"\nunit = \"second\"\neffective_from = \"{}\"\n",
        rfc3339(due)
    );
    let daemon = Daemon::start(&Config::parse(&text, "t.toml").unwrap(), Some(Card::parse(&dated, "card.toml").unwrap())).unwrap();
    let account: meterd::domain::id::AccountId = "a".parse().unwrap();
    daemon.authority().create_account(account.clone(), AccountPolicy::default(), Terms::default()).unwrap();
    daemon.authority().top_up(account.clone(), Bucket::Paid, "1000000".parse().unwrap(), "p".parse().unwrap()).unwrap();
    let pay = Pay { expires: Expiry::At(due), ..Pay::deposit("5000".parse().unwrap(), Bucket::Free, None) };
    daemon.authority().pay(account.clone(), pay, "lapses".parse().unwrap()).unwrap();
    let job: JobName = "job".parse().unwrap();
    jobs[0].burn();
    jobs[0].note_baseline();
    wait_for("the card is in force", || daemon.handle().picture().view.as_ref().is_some_and(|view| view.card.is_some()));
    let began = Instant::now();
    start(&daemon, &job, &jobs[0]);
    jobs[0].go();
    let alarm = |code: &str| {
        let views = daemon.handle().picture().stats.alarms.views();
        views.into_iter().find(|alarm| alarm.code == code).map(|alarm| alarm.message)
    };
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(alarm("clock_stepped"), None);
    clock::pretend(-3_600_000, Nanos(0));
    wait_for("an hour back is named", || alarm("clock_stepped").is_some_and(|message| message.contains("by -3")));
    std::thread::sleep(Duration::from_millis(500));
    clock::pretend(86_400_000, Nanos(0));
    wait_for("a day forward is named", || alarm("clock_stepped").is_some_and(|message| message.contains("by 86")));
    // Its push makes the node ask, and an account that is asked about is looked through for what has lapsed.
    daemon.authority().top_up(account.clone(), Bucket::Paid, "1".parse().unwrap(), "p2".parse().unwrap()).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(daemon.authority().show(account.clone()).unwrap().withdrawn.is_zero(), "nothing has lapsed");
    assert!(receipt(&daemon, &job).steps.iter().all(|step| !matches!(step.event, meterd::domain::job::StepEvent::Emptied(_))));
    clock::pretend(3_600_000 - 86_400_000, Nanos(0)); // set right again
    wait_for("it is named too", || alarm("clock_stepped").is_some_and(|message| message.contains("by -8")));
    // Asleep for an hour: grants have aged and are renewed, and the hour is nobody's.
    clock::pretend(3_600_000, Nanos::from_secs(3_600));
    wait_for("the sleep is named", || alarm("suspended").is_some_and(|message| message.contains("3600") || message.contains("3599")));
    std::thread::sleep(Duration::from_millis(500));
    wait_for("the job runs", || !jobs[0].is_frozen());
    jobs[0].end_tasks();
    let ran_at_most = began.elapsed();
    let ending = Ending { outcome: Outcome::Completed, exit_code: Some(0) };
    ask(&daemon, |reply| Inbox::Stop { name: job.clone(), ending, reply });
    wait_for("the receipt is final", || receipt(&daemon, &job).state == ReceiptState::Final);
    let receipt = receipt(&daemon, &job);
    assert_eq!(receipt.segments.len(), 1, "no line has begun");
    let segment = &receipt.segments[0];
    assert_eq!(segment.cpu_ns.parse::<u128>().unwrap(), jobs[0].used_ns(), "the receipt's CPU time is the kernel's");
    let running: u128 = segment.running_ns.parse().unwrap();
    assert!(running <= ran_at_most.as_nanos(), "{running} ns are billed, it ran for {ran_at_most:?} at most");
    let frozen: u128 = segment.frozen_ns.parse().unwrap();
    println!("renewing the grant after the sleep kept the job still for {} ms", frozen / 1_000_000);
    assert!(receipt.unfunded.is_zero(), "an account with credit");
    wait_for("what was drawn is settled", || daemon.authority().show(account.clone()).unwrap().settled == receipt.drawn);
    daemon.handle().report(Inbox::Drain);
    assert_eq!(daemon.wait(), meterd::node::run::Ended::Drained);
}
