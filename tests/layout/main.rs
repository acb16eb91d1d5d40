//! Every cgroup layout against the real kernel: v1 alone, hybrid in each mix, cgroup2 without what older kernels lack.
//! `tests/kernel.rs` has what holds in a layout with a whole cgroup2.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod detail;
mod nested;
#[path = "../support/mod.rs"]
mod support;
mod walk;
mod world;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use meterd::domain::act::{Act, ActOutcome, CgroupDir, Target};
use meterd::domain::meter::{Frozen, Missing, Populated, Reading, TailShare};
use meterd::node::cgroup::{AttachError, Which};
use meterd::node::cgroup_dir::identify;
use meterd::node::layout::Controller::{Cpuacct, Freezer, Memory, Pids};
use meterd::node::sibling;

use world::{BUSY, FORKS, JOB, OTHER, Task, World, cpu_ns, in_mount, one, procs, state, wait_until};

#[test]
fn a_v1_job_is_metered_frozen_while_it_forks_and_goes_on_when_thawed() {
    let Some(world) = World::make(&[Memory, Cpuacct, Freezer], None) else { return };
    let dirs = world.own("forks");
    let target = Target::OwnCgroups(dirs.clone());
    let mut sampler = world.sampler();
    sampler.attach(JOB, &target).unwrap();
    assert_eq!(one(&mut sampler, JOB).populated, Reading::Seen(Populated::No));
    let _task = Task::in_job(&dirs, "x=$(head -c 8388608 /dev/zero | tr '\\0' x); while :; do (:) & (:) & wait; done");
    let hands = world.hands();
    wait_until("8 MiB of memory", || one(&mut sampler, JOB).memory_bytes.seen().is_some_and(|bytes| *bytes > 8 << 20));
    for _ in 0..3 {
        let before = cpu_ns(&mut sampler, JOB);
        wait_until("forks", || cpu_ns(&mut sampler, JOB) > before + 5_000_000);
        let frozen = hands.act(&target, Act::Freeze);
        assert_eq!(frozen.outcome, ActOutcome::Confirmed);
        assert!(frozen.syscall.starts_with("write FROZEN to ") && frozen.syscall.ends_with("/freezer.state"), "{}", frozen.syscall);
        assert_eq!(state(in_mount(&dirs, world.layout.v1(Freezer))), "FROZEN");
        let still = one(&mut sampler, JOB);
        assert_eq!((still.frozen, still.populated), (Reading::Seen(Frozen::Yes), Reading::Seen(Populated::Yes)));
        // The kernel adds a task's last slice once the task has left its CPU.
        std::thread::sleep(Duration::from_millis(200));
        let before = cpu_ns(&mut sampler, JOB);
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(cpu_ns(&mut sampler, JOB), before, "no task runs on");
        assert_eq!(hands.act(&target, Act::Thaw).outcome, ActOutcome::Confirmed);
        wait_until("it goes on", || cpu_ns(&mut sampler, JOB) > before);
    }
}

#[test]
fn the_end_of_a_v1_jobs_last_task_is_seen_however_often_it_is_looked_at() {
    let Some(world) = World::make(&[Memory, Cpuacct, Freezer], None) else { return };
    let dirs = world.own("often");
    let mut sampler = world.sampler();
    sampler.attach(JOB, &Target::OwnCgroups(dirs.clone())).unwrap();
    // The kernel keeps its list of tasks for a second after each look, for whoever asks again by the same descriptor.
    for _ in 0..3 {
        let task = Task::in_job(&dirs, BUSY);
        assert_eq!(one(&mut sampler, JOB).populated, Reading::Seen(Populated::Yes));
        drop(task);
        assert_eq!(one(&mut sampler, JOB).populated, Reading::Seen(Populated::No));
    }
}

#[test]
fn a_task_that_is_moved_into_a_frozen_v1_job_stands_still_too() {
    let Some(world) = World::make(&[Memory, Cpuacct, Freezer], None) else { return };
    let dirs = world.own("late");
    let target = Target::OwnCgroups(dirs.clone());
    let _first = Task::in_job(&dirs, BUSY);
    let hands = world.hands();
    assert_eq!(hands.act(&target, Act::Freeze).outcome, ActOutcome::Confirmed);
    let late = Task::run_in::<&str>(&[], BUSY);
    for dir in &dirs {
        fs::write(format!("{}/cgroup.procs", dir.path), late.pid().to_string()).unwrap();
    }
    assert_eq!(hands.act(&target, Act::Freeze).outcome, ActOutcome::Confirmed, "asserted again");
    let mut sampler = world.sampler();
    sampler.attach(JOB, &target).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let before = cpu_ns(&mut sampler, JOB);
    std::thread::sleep(Duration::from_millis(30));
    let after = (cpu_ns(&mut sampler, JOB), one(&mut sampler, JOB).frozen);
    assert_eq!(hands.act(&target, Act::Kill).outcome, ActOutcome::Confirmed);
    assert_eq!(after, (before, Reading::Seen(Frozen::Yes)));
}

#[test]
fn a_v1_job_that_forks_without_end_is_killed_to_the_last_frozen_or_not() {
    let Some(world) = World::make(&[Memory, Cpuacct, Freezer], None) else { return };
    let hands = world.hands();
    for before in [None, Some(Act::Freeze)] {
        let dirs = world.own(if before.is_some() { "frozen" } else { "running" });
        let target = Target::OwnCgroups(dirs.clone());
        let freezer = in_mount(&dirs, world.layout.v1(Freezer));
        let below = freezer.join("below");
        fs::create_dir(&below).unwrap();
        let _tasks = [Task::in_job(&dirs, FORKS), Task::run_in(&[&below], FORKS)];
        wait_until("some processes", || procs(freezer).len() > 5 && procs(&below).len() > 5);
        if let Some(before) = before {
            assert_eq!(hands.act(&target, before).outcome, ActOutcome::Confirmed);
        }
        let killed = hands.act(&target, Act::Kill);
        assert_eq!(killed.outcome, ActOutcome::Confirmed);
        assert!(killed.syscall.contains("FROZEN") && killed.syscall.contains("SIGKILL") && killed.syscall.contains("THAWED"));
        assert_eq!((procs(freezer).len(), procs(&below).len(), state(freezer)), (0, 0, "THAWED".to_owned()));
        fs::remove_dir(below).unwrap();
        assert_eq!(hands.act(&target, Act::Remove).outcome, ActOutcome::Confirmed);
        assert!(dirs.iter().all(|dir| !Path::new(&dir.path).exists()));
    }
}

#[test]
fn a_frozen_v1_job_that_is_asked_to_end_can_do_so() {
    let Some(world) = World::make(&[Memory, Cpuacct, Freezer], None) else { return };
    let dirs = world.own("polite");
    let target = Target::OwnCgroups(dirs.clone());
    let folder = tempfile::tempdir().unwrap();
    let (ready, told) = (folder.path().join("ready"), folder.path().join("told"));
    let script = format!("trap 'echo told > {}; exit 0' TERM; echo > {}; while :; do sleep 0.01; done", told.display(), ready.display());
    let _task = Task::in_job(&dirs, &script);
    wait_until("the trap", || ready.exists());
    let hands = world.hands();
    assert_eq!(hands.act(&target, Act::Freeze).outcome, ActOutcome::Confirmed);
    assert_eq!(hands.act(&target, Act::Terminate).outcome, ActOutcome::Confirmed);
    wait_until("its word", || fs::read_to_string(&told).is_ok_and(|text| text == "told\n"));
}

#[test]
fn the_tail_of_a_vanished_v1_job_is_told_by_its_parent() {
    let Some(world) = World::make(&[Memory, Cpuacct, Freezer], None) else { return };
    let dirs = world.own("gone");
    let mut sampler = world.sampler();
    sampler.attach(JOB, &Target::OwnCgroups(dirs.clone())).unwrap();
    sampler.sample(Which::All);
    let task = Task::in_job(&dirs, BUSY);
    let cpuacct = in_mount(&dirs, world.layout.v1(Cpuacct)).to_owned();
    let used = || fs::read_to_string(cpuacct.join("cpuacct.usage")).unwrap().trim().parse::<u64>().unwrap();
    wait_until("20 ms", || used() > 20_000_000);
    let seen = sampler.sample(Which::All)[0].cpu_ns.seen().copied().unwrap();
    wait_until("20 ms more", || used() > seen + 20_000_000);
    drop(task);
    wait_until("empty", || dirs.iter().all(|dir| procs(Path::new(&dir.path)).is_empty()));
    std::thread::sleep(Duration::from_millis(50));
    let end = used();
    for dir in &dirs {
        fs::remove_dir(&dir.path).unwrap();
    }
    let sample = &sampler.sample(Which::All)[0];
    assert_eq!(sample.cpu_ns, Reading::Missing(Missing::Vanished));
    let tail = sample.tail.unwrap();
    assert_eq!(tail.share, TailShare::Exact);
    // What was used while the last look was made is not in it.
    assert!(tail.cpu_ns <= end - seen && (end - seen).abs_diff(tail.cpu_ns) < 10_000_000, "{} of {}", tail.cpu_ns, end - seen);
}

#[test]
fn where_nothing_freezes_a_job_is_stopped_and_ended_by_signals() {
    let Some(world) = World::make(&[Memory, Cpuacct], None) else { return };
    let path = World::path(world.layout.v1(Cpuacct), "jobs/plain");
    let dirs = sibling::resolve(&world.layout, &[&path]).unwrap().dirs;
    assert_eq!(dirs.len(), 1, "there is no memory directory of that name");
    let target = Target::Cgroups(dirs.clone());
    let task = Task::in_job(&dirs, "while :; do (:) & (:) & wait; done");
    let mut sampler = world.sampler();
    sampler.attach(JOB, &target).unwrap();
    assert_eq!(one(&mut sampler, JOB).memory_bytes, Reading::Missing(Missing::NotSupported));
    let hands = world.hands();
    let frozen = hands.act(&target, Act::Freeze);
    assert_eq!(frozen.outcome, ActOutcome::Confirmed);
    assert!(frozen.syscall.contains("SIGSTOP"), "{}", frozen.syscall);
    assert_eq!(one(&mut sampler, JOB).frozen, Reading::Seen(Frozen::Yes));
    // Its owner can let it go on: that is seen, and it is stopped again.
    Command::new("kill").args(["-CONT", &task.pid().to_string()]).status().unwrap();
    wait_until("it goes on", || one(&mut sampler, JOB).frozen == Reading::Seen(Frozen::No));
    assert_eq!(hands.act(&target, Act::Freeze).outcome, ActOutcome::Confirmed);
    assert_eq!(hands.act(&target, Act::Thaw).outcome, ActOutcome::Confirmed);
    wait_until("it goes on", || one(&mut sampler, JOB).frozen == Reading::Seen(Frozen::No));
    assert_eq!(hands.act(&target, Act::Kill).outcome, ActOutcome::Confirmed);
    assert_eq!(one(&mut sampler, JOB).populated, Reading::Seen(Populated::No));
}

#[test]
fn before_linux_5_14_a_job_is_killed_through_pidfds_to_the_last_that_forks() {
    let Some(world) = World::make(&[], Some(&["cgroup.kill"])) else { return };
    let dirs = world.own("forks");
    let below = Path::new(&dirs[0].path).join("below/deeper");
    fs::create_dir_all(&below).unwrap();
    let _tasks = [Task::in_job(&dirs, FORKS), Task::run_in(&[&below], FORKS)];
    wait_until("some processes", || procs(Path::new(&dirs[0].path)).len() > 5 && procs(&below).len() > 5);
    let target = Target::OwnCgroups(dirs.clone());
    let hands = world.hands();
    let killed = hands.act(&target, Act::Kill);
    assert_eq!(killed.outcome, ActOutcome::Confirmed);
    assert!(killed.syscall.contains("pidfd_send_signal SIGKILL") && !killed.syscall.contains("cgroup.kill"), "{}", killed.syscall);
    let events = fs::read_to_string(format!("{}/cgroup.events", dirs[0].path)).unwrap();
    assert!(events.contains("populated 0") && events.contains("frozen 0"), "{events}");
}

#[test]
fn before_linux_5_2_the_v1_freezer_stops_a_hybrid_job() {
    let Some(world) = World::make(&[Memory, Freezer], Some(&["cgroup.freeze", "cgroup.kill"])) else { return };
    let dirs = world.own("old");
    let target = Target::OwnCgroups(dirs.clone());
    let _task = Task::in_job(&dirs, FORKS);
    let mut sampler = world.sampler();
    sampler.attach(JOB, &target).unwrap();
    let hands = world.hands();
    let frozen = hands.act(&target, Act::Freeze);
    assert!(frozen.outcome == ActOutcome::Confirmed && frozen.syscall.contains("freezer.state"), "{frozen:?}");
    assert_eq!(one(&mut sampler, JOB).frozen, Reading::Seen(Frozen::Yes));
    assert_eq!(hands.act(&target, Act::Kill).outcome, ActOutcome::Confirmed);
    assert_eq!(one(&mut sampler, JOB).populated, Reading::Seen(Populated::No));
}

#[test]
fn before_linux_5_2_and_without_the_v1_freezer_signals_stop_a_job_and_kill_it() {
    let Some(world) = World::make(&[], Some(&["cgroup.freeze", "cgroup.kill"])) else { return };
    let path = World::path(world.layout.v2.as_deref(), "old");
    let target = Target::Cgroups(sibling::resolve(&world.layout, &[&path]).unwrap().dirs);
    let _task = Task::run_in(&[&path], FORKS);
    wait_until("some processes", || procs(&path).len() > 5);
    let hands = world.hands();
    assert_eq!(hands.act(&target, Act::Freeze).outcome, ActOutcome::Confirmed);
    assert!(fs::read_to_string(path.join("cgroup.freeze")).unwrap().starts_with('0'));
    let mut sampler = world.sampler();
    sampler.attach(JOB, &target).unwrap();
    assert_eq!(one(&mut sampler, JOB).frozen, Reading::Seen(Frozen::Yes));
    assert_eq!(hands.act(&target, Act::Kill).outcome, ActOutcome::Confirmed);
    assert_eq!(one(&mut sampler, JOB).populated, Reading::Seen(Populated::No));
}

#[test]
fn what_a_scheduler_froze_by_the_v1_freezer_is_seen_in_a_hybrid_layout_and_does_not_outlive_a_kill() {
    let Some(world) = World::make(&[Memory, Freezer], Some(&[])) else { return };
    let freezer = World::path(world.layout.v1(Freezer), "job");
    let v2 = World::path(world.layout.v2.as_deref(), "job");
    let _task = Task::run_in(&[&freezer, &v2], BUSY);
    let resolved = sibling::resolve(&world.layout, &[&freezer]).unwrap();
    assert_eq!(resolved.dirs.len(), 2, "the cgroup2 directory of that name is the job's: {resolved:?}");
    let target = Target::Cgroups(resolved.dirs);
    let mut sampler = world.sampler();
    sampler.attach(JOB, &target).unwrap();
    fs::write(freezer.join("freezer.state"), "FROZEN").unwrap();
    wait_until("frozen", || state(&freezer) == "FROZEN");
    assert_eq!(one(&mut sampler, JOB).frozen, Reading::Seen(Frozen::Yes));
    assert!(fs::read_to_string(v2.join("cgroup.events")).unwrap().contains("frozen 0"));
    let hands = world.hands();
    let killed = hands.act(&target, Act::Kill);
    assert_eq!(killed.outcome, ActOutcome::Confirmed, "a SIGKILL waits in a frozen v1 task until it is thawed");
    assert!(killed.syscall.ends_with("/cgroup.kill"), "{}", killed.syscall);
}

#[test]
fn a_job_named_by_its_memory_directory_alone_is_metered_and_frozen_through_its_siblings() {
    let Some(world) = World::make(&[Memory, Cpuacct, Freezer, Pids], Some(&[])) else { return };
    let mounts = [world.layout.v1(Memory), world.layout.v1(Freezer), world.layout.v2.as_deref()];
    let paths = mounts.map(|mount| World::path(mount, "slurm/uid_0/job_7"));
    let _task = Task::run_in(&paths, BUSY);
    let resolved = sibling::resolve(&world.layout, &[&paths[0]]).unwrap();
    assert_eq!((resolved.dirs.len(), resolved.without.len()), (3, 2), "no directory of that name in cpuacct and pids");
    let target = Target::Cgroups(resolved.dirs);
    let mut sampler = world.sampler();
    sampler.attach(JOB, &target).unwrap();
    wait_until("CPU time by cgroup2", || cpu_ns(&mut sampler, JOB) > 20_000_000);
    assert!(one(&mut sampler, JOB).memory_bytes.seen().is_some());
    assert_eq!(world.hands().act(&target, Act::Freeze).outcome, ActOutcome::Confirmed);
    // With a stranger's process in the freezer's directory, that one is not the job's.
    let _stranger = Task::run_in(&[&paths[1]], BUSY);
    assert_eq!(sibling::resolve(&world.layout, &[&paths[0]]).unwrap().dirs.len(), 2);
}

#[test]
fn two_jobs_cannot_share_a_directory_by_its_names_in_two_hierarchies() {
    let Some(world) = World::make(&[Memory, Cpuacct], Some(&[])) else { return };
    let (v2, memory) = (World::path(world.layout.v2.as_deref(), "a"), World::path(world.layout.v1(Memory), "a"));
    let only = |path: &Path| Target::Cgroups(vec![identify(&world.layout, path).unwrap()]);
    let mut sampler = world.sampler();
    sampler.attach(JOB, &only(&v2)).unwrap();
    assert!(matches!(sampler.attach(OTHER, &only(&memory)), Err(AttachError::Taken { holder: JOB, .. })));
}

#[test]
fn a_set_of_directories_is_metered_frozen_thawed_and_killed_together() {
    let Some(world) = World::make(&[Memory, Cpuacct, Freezer], None) else { return };
    let dirs: Vec<CgroupDir> = ["a", "b", "c"].iter().flat_map(|name| world.own(name)).collect();
    let target = Target::Cgroups(dirs.clone());
    let tasks: Vec<Task> = dirs.chunks(3).take(2).map(|dirs| Task::in_job(dirs, BUSY)).collect();
    let mut sampler = world.sampler();
    sampler.attach(JOB, &target).unwrap();
    let each = || dirs.iter().filter_map(|dir| fs::read_to_string(format!("{}/cpuacct.usage", dir.path)).ok()).collect::<Vec<_>>();
    wait_until("both run", || cpu_ns(&mut sampler, JOB) > 60_000_000);
    let hands = world.hands();
    assert_eq!(hands.act(&target, Act::Freeze).outcome, ActOutcome::Confirmed);
    std::thread::sleep(Duration::from_millis(200));
    let sum: u64 = each().iter().map(|text| text.trim().parse::<u64>().unwrap()).sum();
    let sample = one(&mut sampler, JOB);
    assert_eq!((sample.cpu_ns, sample.frozen), (Reading::Seen(sum), Reading::Seen(Frozen::Yes)));
    // One part runs: the job is not frozen.
    fs::write(in_mount(&dirs, world.layout.v1(Freezer)).join("freezer.state"), "THAWED").unwrap();
    assert_eq!(one(&mut sampler, JOB).frozen, Reading::Seen(Frozen::No));
    assert_eq!(hands.act(&target, Act::Thaw).outcome, ActOutcome::Confirmed);
    assert_eq!(hands.act(&target, Act::Kill).outcome, ActOutcome::Confirmed);
    assert_eq!(one(&mut sampler, JOB).populated, Reading::Seen(Populated::No));
    drop(tasks);
}
