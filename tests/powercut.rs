//! The power goes between any two writes or flushes of the journal's and the authority's files, under fifty jobs whose every nanosecond is
//! known, while the disk loses, keeps, reorders or tears what it had not flushed. The real files are then recovered by the real code.
//!
//! `cargo test` cuts at some points of one history; `METERD_POWER_CUTS=4000` at every one; `METERD_POWER_SEED=N` loses other sectors.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test ends at the first surprise")]

#[path = "powercut/disk.rs"]
mod disk;
#[path = "powercut/node.rs"]
mod node;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use disk::{Done, Op, Unflushed, WAYS};
use meterd::domain::ledger::check;
use meterd::domain::rates::charge;
use meterd::domain::receipt::Receipt;
use meterd::node::daemon;
use meterd::node::journal::{self, Journal, Keep, read_receipts};
use node::{History, JOBS, Node, S, World};

/// Cuts in an ordinary `cargo test`.
const CUTS: usize = 60;

const SHORT_NANO: i128 = 120_000_000_000;

/// A history that has everything in it: starts, exhaustion, freezes, a top-up and thaws, ends, checkpoints, and logs copied back.
fn history(dir: &Path) -> (Vec<Done>, History) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _recording = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    disk::watch(dir);
    let mut node = Node::open(dir, World::new(), 1, 1);
    for nth in 0..3 {
        node.open_account(&format!("rich-{nth}"), 1_000_000_000_000_000);
    }
    for nth in 0..2 {
        node.open_account(&format!("short-{nth}"), SHORT_NANO);
    }
    for index in 0..JOBS {
        node.start(index);
    }
    for tick in 0..75 {
        node.tick();
        match tick {
            20 => (0..5).for_each(|index| node.stop(index)),
            45 => node.top_up("short-0", SHORT_NANO, "second"),
            50 => (5..10).for_each(|index| node.stop(index)),
            _ => {}
        }
    }
    assert!(node.world.jobs[30..].iter().any(|job| job.frozen), "the short accounts ran out");
    let history = std::mem::take(&mut node.history);
    drop(node);
    (disk::take(), history)
}

/// In memory where that can be: the power only goes in the test, and no flush need wait for a real disk.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// The world when so much had been done to the disk.
fn world_at(history: &History, count: usize) -> &World {
    let after = history.partition_point(|(done, _)| *done <= count);
    &history[after.saturating_sub(1)].1
}

#[test]
fn g2_a_power_cut_at_any_write_or_flush_charges_nothing_twice_and_loses_at_most_one_tick() {
    let lived = folder();
    let (log, history) = history(lived.path());
    let number = |name: &str, otherwise: usize| std::env::var(name).map_or(otherwise, |text| text.parse().unwrap());
    let (wanted, seed) = (number("METERD_POWER_CUTS", CUTS), number("METERD_POWER_SEED", 1));
    let step = (log.len() / wanted).max(1);
    let flushes = log.iter().filter(|done| matches!(done.op, Op::Sync)).count();
    println!("{} operations on the disk, {flushes} of them flushes; METERD_POWER_SEED={seed}", log.len());
    let (mut cuts, mut most_lost) = (0, 0);
    for (nth, count) in (seed % step..=log.len()).step_by(step).enumerate() {
        let way = WAYS[(nth + seed) % WAYS.len()];
        let cut = Cut { log: &log, history: &history, count, way, seed: (seed * 1_000_003 + count) as u64 };
        match std::panic::catch_unwind(|| cut.survive().max(cut.reboot())) {
            Ok(lost) => most_lost = most_lost.max(lost),
            Err(cause) => {
                eprintln!("failed at operation {count}, what was not flushed was {way:?}, METERD_POWER_SEED={seed}");
                std::panic::resume_unwind(cause);
            }
        }
        cuts += 1;
    }
    println!("{cuts} power cuts: 0 charged twice, 0 counters lost; at most {most_lost} ns of levels lost beside the outage itself");
}

/// A crash between the charge and the watermark billed the window again. Here both are one fact: wherever the power goes, what is charged is the
/// price of what lies between the baseline and the counter that was last read.
#[test]
fn f10_charge_and_watermark_are_together_wherever_the_power_goes() {
    let lived = folder();
    let (log, history) = history(lived.path());
    let mut jobs_seen = 0;
    for (nth, count) in (0..=log.len()).step_by(log.len() / 80).enumerate() {
        let dir = folder();
        disk::cut(&log, count, WAYS[nth % WAYS.len()], count as u64, dir.path());
        let (_journal, recovered) = Journal::open(dir.path(), Keep::default()).unwrap();
        let agent = daemon::recover(&recovered).unwrap();
        let world = world_at(&history, count);
        for job in agent.jobs.values().chain(&agent.closed) {
            let known = world.jobs.iter().find(|known| known.name == job.name.as_str()).unwrap();
            let watermark = job.cpu_counter_ns.unwrap();
            assert_eq!(job.usage().cpu_ns, u128::from(watermark - known.baseline_ns), "{} after operation {count}", job.name);
            let card = &agent.cards[&job.segments[0].card];
            assert_eq!(job.charge, charge::total(card, &job.usage(), &[]).unwrap(), "{} after operation {count}", job.name);
            jobs_seen += 1;
        }
    }
    assert!(1_000 < jobs_seen);
}

struct Cut<'a> {
    log: &'a [Done],
    history: &'a History,
    count: usize,
    way: Unflushed,
    seed: u64,
}

impl Cut<'_> {
    fn found(&self) -> tempfile::TempDir {
        let dir = folder();
        disk::cut(self.log, self.count, self.way, self.seed, dir.path());
        dir
    }

    /// The agent and its disk lose what was not flushed; the jobs live on (a virtual machine's disk, a controller's cache). Nothing of their
    /// counters may be lost.
    fn survive(&self) -> u64 {
        let dir = self.found();
        let mut world = world_at(self.history, self.count).clone();
        let told = world.told.clone();
        let outage = [S / 3, S, 7 * S][usize::try_from(self.seed % 3).unwrap()];
        world.pass(outage);
        let mut node = Node::open(dir.path(), world, 1, 2);
        has_what_was_told(&mut node, &told);
        node.look();
        for _ in 0..3 {
            node.tick();
        }
        let live: Vec<usize> = (0..JOBS).filter(|index| is_live(&node, *index)).collect();
        for index in &live {
            let job = &node.world.jobs[*index];
            assert!(!(job.frozen && job.account.starts_with("rich")), "{} has credit and stands still", job.name);
        }
        for index in live {
            node.stop(index);
        }
        settle(&mut node);
        let mut most_lost = 0;
        for (index, receipt) in receipts(dir.path()) {
            let job = &node.world.jobs[index];
            let counted: u64 = receipt.segments.iter().map(|segment| segment.cpu_ns.parse::<u64>().unwrap()).sum();
            assert_eq!(counted, job.cpu_ns - job.baseline_ns, "{}: the receipt's CPU time is the kernel's", job.name);
            let billed_ns = billed_memory_ns(&receipt, job.memory_bytes);
            assert!(billed_ns <= job.ran_ns, "{}: memory of {billed_ns} ns is billed, it ran for {}", job.name, job.ran_ns);
            let lost = (job.ran_ns - billed_ns).saturating_sub(outage);
            assert!(lost <= S, "{}: the memory of {lost} ns beside the outage is lost", job.name);
            most_lost = most_lost.max(lost);
        }
        books_agree(&mut node, dir.path());
        most_lost
    }

    /// The machine loses its power: the jobs are gone with it, and so is what nobody had written down.
    fn reboot(&self) -> u64 {
        let dir = self.found();
        let at_cut = world_at(self.history, self.count).clone();
        let told = at_cut.told.clone();
        let mut world = at_cut.clone();
        world.mono = 5 * S;
        world.jobs.iter_mut().for_each(|job| job.populated = false);
        let mut node = Node::open(dir.path(), world, 2, 3);
        has_what_was_told(&mut node, &told);
        settle(&mut node);
        let mut most_lost = 0;
        for (index, receipt) in receipts(dir.path()) {
            let job = &at_cut.jobs[index];
            let counted: u64 = receipt.segments.iter().map(|segment| segment.cpu_ns.parse::<u64>().unwrap()).sum();
            let truth = job.cpu_ns - job.baseline_ns;
            assert!(counted <= truth, "{}: more is billed than was used", job.name);
            let billed_ns = billed_memory_ns(&receipt, job.memory_bytes);
            assert!(billed_ns <= job.ran_ns, "{}: more memory is billed than was held", job.name);
            let lost = job.ran_ns - billed_ns;
            assert!(lost <= S + S / 100, "{}: {lost} ns are lost, a tick is {S}", job.name);
            assert!(truth - counted <= S + S / 100, "{}: more than a tick of CPU time is lost", job.name);
            most_lost = most_lost.max(lost);
        }
        books_agree(&mut node, dir.path());
        most_lost
    }
}

fn is_live(node: &Node, index: usize) -> bool {
    node.turn.agent().job_named(&node.world.jobs[index].name).is_some_and(meterd::domain::job::Job::is_live)
}

/// Nothing that anybody was told is forgotten.
fn has_what_was_told(node: &mut Node, told: &node::Told) {
    assert!(told.durable <= node.turn.durable().0, "fact {} was said to be durable, {:?} are there", told.durable, node.turn.durable());
    for name in &told.started {
        assert!(node.turn.agent().job_named(name).is_some(), "{name} was said to be started");
    }
    for (account, deposited) in &told.deposited {
        let found = node.store.account(&account.parse().unwrap()).expect("an account that was acknowledged is there");
        assert!(*deposited <= found.deposited.nano(), "{account}: a payment that was acknowledged is lost");
        let settled = told.settled.get(account).copied().unwrap_or(0);
        assert!(settled <= found.settled.nano(), "{account}: what was settled is taken back");
    }
}

fn settle(node: &mut Node) {
    for _ in 0..90 {
        if node.is_over() && is_settled(node) {
            return;
        }
        node.tick();
    }
    panic!("not settled within a minute and a half: {:?}", node.turn.agent().jobs.values().map(|job| &job.name).collect::<Vec<_>>());
}

fn is_settled(node: &mut Node) -> bool {
    let spent: Vec<_> = node.turn.agent().accounts.iter().map(|(id, account)| (id.clone(), account.grant.spent)).collect();
    let epoch = node.turn.agent().epoch.unwrap().0;
    let acknowledged = node.turn.agent().previous.is_empty() && node.turn.agent().outstanding.is_none();
    acknowledged
        && spent.into_iter().all(|(id, spent)| {
            let account = node.store.account(&id).unwrap();
            account.epochs.get(&epoch).is_none_or(|of_epoch| of_epoch.settled == spent) || spent.is_zero()
        })
}

/// One receipt for each job that was ever known, final and right by its own card.
fn receipts(dir: &Path) -> Vec<(usize, Receipt)> {
    let mut found = Vec::new();
    for index in 0..JOBS {
        let rows = read_receipts(dir, &format!("job-{index}")).unwrap();
        assert!(rows.len() <= 1, "job-{index} was billed as {} attempts", rows.len());
        for row in rows {
            let receipt: Receipt = serde_json::from_str(&row.json).unwrap();
            assert!(receipt.owed.is_zero(), "job-{index} owes {}", receipt.owed);
            assert_eq!(receipt.charge, receipt.drawn.plus(receipt.unfunded), "job-{index}");
            if index < 30 {
                assert!(receipt.unfunded.is_zero(), "job-{index} had credit all the time");
            }
            found.push((index, receipt));
        }
    }
    found
}

/// What the jobs' receipts say was drawn is what the authority settled, to the nano-credit.
fn books_agree(node: &mut Node, dir: &Path) {
    let mut drawn: BTreeMap<String, i128> = BTreeMap::new();
    for (_, receipt) in receipts(dir) {
        *drawn.entry(receipt.account.to_string()).or_default() += receipt.drawn.nano();
    }
    for view in node.store.list().unwrap() {
        let account = node.store.account(&view.account).unwrap();
        check(&account).unwrap();
        let drawn = drawn.get(view.account.as_str()).copied().unwrap_or(0);
        assert_eq!(account.settled.nano(), drawn, "{}: what is settled is what the receipts say was drawn", view.account);
    }
    journal::verify(dir).expect("the journal is whole");
}

/// For how long the billed memory was held, rounded up to a nanosecond.
fn billed_memory_ns(receipt: &Receipt, memory_bytes: u64) -> u64 {
    let area: u128 = receipt.segments.iter().map(|segment| segment.memory_charged_byte_ns.parse::<u128>().unwrap()).sum();
    u64::try_from(area.div_ceil(u128::from(memory_bytes))).unwrap()
}
