//! On constructed directories that never confirm by themselves; the real kernel is in `tests/kernel.rs`.

use super::*;
use crate::domain::act::{CgroupDir, Target};
use crate::node::cgroup_dir::inode_of;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

struct World {
    root: tempfile::TempDir,
    layout: Layout,
}

impl World {
    fn new() -> World {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout { v2: Some(root.path().to_owned()), ..Layout::default() };
        World { root, layout }
    }

    fn job(&self, name: &str, events: &str) -> (PathBuf, CgroupDir) {
        let path = self.root.path().join(name);
        fs::create_dir(&path).unwrap();
        for (file, text) in [("cgroup.procs", ""), ("cgroup.freeze", "0"), ("cgroup.kill", ""), ("cgroup.events", events)] {
            fs::write(path.join(file), text).unwrap();
        }
        let dir = inode_of(&self.layout, &path).unwrap();
        (path, dir)
    }

    /// Runs a worker over these queues until all is told.
    fn told(&self, freezes: Vec<Numbered>, rest: Vec<Numbered>) -> Vec<Acted> {
        let (freezes_out, freezes_in) = bounded(QUEUE_MAX);
        let (rest_out, rest_in) = bounded(QUEUE_MAX);
        for order in freezes {
            freezes_out.send(order).unwrap();
        }
        for order in rest {
            rest_out.send(order).unwrap();
        }
        drop((freezes_out, rest_out));
        let mut told = Vec::new();
        let layout = Some(Arc::new(self.layout.clone()));
        let mut worker = Worker {
            layout,
            trees: ProcessTrees::default(),
            report: |acted| told.push(acted),
            waiting: Vec::new(),
            last_freeze: BTreeMap::new(),
            own: OwnDirs::default(),
        };
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        worker.run(&freezes_in, &rest_in, &wake);
        drop(worker);
        told
    }
}

fn order(number: u64, attempt: u64, dir: &CgroupDir, act: Act) -> Numbered {
    Numbered { number, order: Order { attempt: Attempt(attempt), target: Target::Cgroups(vec![dir.clone()]), act, signal: None } }
}

const FROZEN: &str = "populated 1\nfrozen 1\n";
const RUNNING: &str = "populated 1\nfrozen 0\n";
const EMPTY: &str = "populated 0\nfrozen 0\n";

#[test]
fn freezes_go_before_whatever_was_asked_earlier() {
    let world = World::new();
    let (_, a) = world.job("a", EMPTY);
    let (_, b) = world.job("b", FROZEN);
    let told = world.told(vec![order(3, 2, &b, Act::Freeze)], vec![order(1, 1, &a, Act::Kill), order(2, 1, &a, Act::Thaw)]);
    let acts: Vec<Act> = told.iter().map(|acted| acted.act).collect();
    assert_eq!(acts, [Act::Freeze, Act::Kill, Act::Thaw]);
    assert!(told.iter().all(|acted| acted.outcome == ActOutcome::Confirmed));
}

#[test]
fn a_thaw_that_a_later_freeze_has_overtaken_is_not_done() {
    let world = World::new();
    let (path, dir) = world.job("a", FROZEN);
    let told = world.told(vec![order(2, 1, &dir, Act::Freeze)], vec![order(1, 1, &dir, Act::Thaw)]);
    assert_eq!(told[1].outcome, ActOutcome::Unconfirmed);
    assert_eq!(fs::read_to_string(path.join("cgroup.freeze")).unwrap(), "1", "it stays frozen");
}

#[test]
fn a_thaw_that_was_asked_after_the_freeze_is_done() {
    let world = World::new();
    let (path, dir) = world.job("a", RUNNING);
    let told = world.told(vec![order(1, 1, &dir, Act::Freeze)], vec![order(2, 1, &dir, Act::Thaw)]);
    assert_eq!(told[0].outcome, ActOutcome::Unconfirmed, "the freeze cannot show any more");
    assert_eq!(told[1].outcome, ActOutcome::Confirmed);
    assert_eq!(fs::read_to_string(path.join("cgroup.freeze")).unwrap(), "0");
}

#[test]
fn one_that_never_confirms_holds_nobody_up_and_is_said_to_be_unconfirmed() {
    let world = World::new();
    let (_, stuck) = world.job("stuck", RUNNING);
    let (_, quick) = world.job("quick", FROZEN);
    let told = world.told(vec![order(1, 1, &stuck, Act::Freeze), order(2, 2, &quick, Act::Freeze)], Vec::new());
    assert_eq!(told.iter().map(|acted| acted.attempt).collect::<Vec<_>>(), [Attempt(2), Attempt(1)]);
    assert_eq!(told[1].outcome, ActOutcome::Unconfirmed);
    assert!(told[1].done_at.since(told[1].asked_at) >= CONFIRM_WITHIN);
}

#[test]
fn on_a_kernel_without_cgroup_kill_each_process_is_killed_while_frozen() {
    let world = World::new();
    let (path, dir) = world.job("old", RUNNING);
    fs::remove_file(path.join("cgroup.kill")).unwrap();
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    fs::write(path.join("cgroup.procs"), format!("{}\n", child.id())).unwrap();
    let events = path.join("cgroup.events");
    let reaper = std::thread::spawn(move || {
        let status = child.wait().unwrap();
        fs::write(events, EMPTY).unwrap();
        status.signal()
    });
    let told = world.told(Vec::new(), vec![order(1, 1, &dir, Act::Kill)]);
    assert_eq!(reaper.join().unwrap(), Some(9));
    assert_eq!(told[0].outcome, ActOutcome::Confirmed);
    assert!(told[0].syscall.contains("/cgroup.freeze; pidfd_send_signal SIGKILL"), "{}", told[0].syscall);
    assert_eq!(fs::read_to_string(path.join("cgroup.freeze")).unwrap(), "0", "thawed again");
}

#[test]
fn a_directory_that_lists_the_agent_is_not_signalled() {
    let world = World::new();
    let (path, dir) = world.job("self", RUNNING);
    fs::write(path.join("cgroup.procs"), format!("{}\n", std::process::id())).unwrap();
    let told = world.told(Vec::new(), vec![order(1, 1, &dir, Act::Terminate)]);
    assert!(matches!(told[0].outcome, ActOutcome::Failed(_)), "{:?}", told[0].outcome);
}

#[test]
fn a_full_queue_gives_the_order_back() {
    let world = World::new();
    let (_, dir) = world.job("a", FROZEN);
    let (release, held) = mpsc::channel::<()>();
    let layout = Some(Arc::new(world.layout.clone()));
    let hands = Hands::start(layout, ProcessTrees::default(), move |_| {
        let _ = held.recv();
    })
    .unwrap();
    let mut refused = None;
    for number in 0..=QUEUE_MAX as u64 + 1 {
        refused = refused.or(hands.submit(order(number, number, &dir, Act::Freeze).order).err());
    }
    let Busy(back) = refused.expect("one more than fits, with one at work");
    assert_eq!(back.act, Act::Freeze);
    drop(release);
}

#[test]
fn what_was_taken_is_done_before_the_hands_end() {
    let world = World::new();
    let (_, dir) = world.job("a", FROZEN);
    let (sender, receiver) = mpsc::channel();
    let layout = Some(Arc::new(world.layout.clone()));
    let hands = Hands::start(layout, ProcessTrees::default(), move |acted| sender.send(acted).unwrap()).unwrap();
    for number in 0..100 {
        hands.submit(order(number, number, &dir, Act::Freeze).order).unwrap();
    }
    drop(hands);
    assert_eq!(std::iter::from_fn(|| receiver.recv_timeout(Duration::ZERO).ok()).count(), 100);
}
