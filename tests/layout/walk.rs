//! Cgroups that stand side by side, read by a program in the kernel: it must tell what their files tell.

use std::fs;

use meterd::domain::act::{Act, ActOutcome, CgroupDir, Target};
use meterd::domain::id::Attempt;
use meterd::domain::meter::{Missing, Reading, TailShare};
use meterd::node::cgroup::{Sampler, Walker, Which};
use meterd::node::layout::Controller::Memory;
use meterd::node::layout::Layout;

use crate::support;
use crate::world::{BUSY, Task, World, wait_until};

/// A world with cgroup2, and with the memory controller wherever this machine has it; jobs in it; and the walker.
struct Walked {
    world: World,
    jobs: Vec<Vec<CgroupDir>>,
    walking: Sampler,
}

fn walked(count: usize) -> Option<Walked> {
    // Made by root alone; where the kernel has no such walk, the agent does not walk either.
    let walker = support::need("kernel", Walker::load().map_err(|error| error.to_string()))?;
    let v1 = Layout::detect().is_ok_and(|layout| layout.v1_memory.is_some());
    let world = World::make(if v1 { &[Memory] } else { &[] }, Some(&[]))?;
    let jobs: Vec<Vec<CgroupDir>> = (0..count).map(|nth| world.own(&format!("job-{nth}"))).collect();
    let mut walking = world.sampler().walking(walker);
    attach(&mut walking, &jobs);
    Some(Walked { world, jobs, walking })
}

fn attach(sampler: &mut Sampler, jobs: &[Vec<CgroupDir>]) {
    for (attempt, dirs) in (1..).map(Attempt).zip(jobs) {
        sampler.attach(attempt, &Target::OwnCgroups(dirs.clone())).unwrap();
    }
}

fn freeze(world: &World, dirs: &[CgroupDir], act: Act) {
    assert_eq!(world.hands().act(&Target::OwnCgroups(dirs.to_vec()), act).outcome, ActOutcome::Confirmed);
}

#[test]
fn a_walk_tells_what_the_files_tell_and_opens_none() {
    let Some(Walked { world, jobs, mut walking }) = walked(24) else { return };
    let mut reading = world.sampler();
    attach(&mut reading, &jobs);
    // Two that work, one of them in a directory below its own.
    let below: Vec<_> = jobs[7].iter().map(|dir| World::path(Some(dir.path.as_ref()), "below")).collect();
    let work = format!("x=$(head -c 8388608 /dev/zero | tr '\\0' x); {BUSY}");
    let _tasks = (Task::in_job(&jobs[3], &work), Task::run_in(&below, &work));
    let busy = |samples: &[meterd::domain::meter::JobSample], nth: usize| *samples[nth].cpu_ns.seen().unwrap();
    let mut last = (0, 0);
    for _ in 0..3 {
        wait_until("both work", || {
            let samples = walking.sample(Which::All);
            let now = (busy(&samples, 3), busy(&samples, 7));
            let more = last.0 + 20_000_000 < now.0 && last.1 + 20_000_000 < now.1;
            last = if more { now } else { last };
            more
        });
    }
    // The work begins before all of the memory is there.
    let has_memory = |sample: &meterd::domain::meter::JobSample| 8 << 20 < *sample.memory_bytes.seen().unwrap();
    wait_until("both have their memory", || {
        let samples = walking.sample(Which::All);
        has_memory(&samples[3]) && has_memory(&samples[7])
    });
    freeze(&world, &jobs[3], Act::Freeze);
    freeze(&world, &jobs[7], Act::Freeze);
    let both = |walking: &mut Sampler, reading: &mut Sampler| (walking.sample(Which::All), reading.sample(Which::All));
    // The kernel adds a task's last slice once the task has left its CPU, and gives memory back when it likes.
    wait_until("a walk and the files agree", || {
        let (by_walk, by_files) = both(&mut walking, &mut reading);
        let told =
            |sample: &meterd::domain::meter::JobSample| (sample.cpu_ns.clone(), sample.memory_bytes.clone(), sample.populated.clone());
        by_walk.iter().zip(&by_files).all(|(one, other)| told(one) == told(other))
    });
    let (samples, _) = both(&mut walking, &mut reading);
    assert!(has_memory(&samples[3]) && has_memory(&samples[7]), "{samples:?}");
    assert!(samples.iter().all(|sample| sample.cpu_ns.seen().is_some()));
    // But for `cgroup.events`, of whose changes nobody tells here.
    assert_eq!(
        walking.kept_files() + 2 * jobs.len(),
        reading.kept_files() + 2,
        "two counters a job are not opened, but for what is checked"
    );
}

#[test]
fn a_job_that_vanishes_between_two_walks_is_told_with_its_tail() {
    let Some(Walked { world, jobs, mut walking }) = walked(20) else { return };
    let task = Task::in_job(&jobs[5], BUSY);
    wait_until("it works", || 20_000_000 < *walking.sample(Which::All)[5].cpu_ns.seen().unwrap());
    freeze(&world, &jobs[5], Act::Freeze);
    let mut seen = 0;
    wait_until("it stands still", || {
        let now = *walking.sample(Which::All)[5].cpu_ns.seen().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        std::mem::replace(&mut seen, now) == now
    });
    let v2 = jobs[5].iter().find(|dir| fs::exists(format!("{}/cgroup.freeze", dir.path)).unwrap()).unwrap().path.clone();
    let usage_ns = || {
        let text = fs::read_to_string(format!("{v2}/cpu.stat")).unwrap();
        text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1_000
    };
    freeze(&world, &jobs[5], Act::Thaw);
    wait_until("it goes on", || seen + 20_000_000 < usage_ns());
    drop(task);
    let events = || fs::read_to_string(format!("{v2}/cgroup.events")).unwrap();
    wait_until("its last task has gone", || events().contains("populated 0"));
    std::thread::sleep(std::time::Duration::from_millis(50)); // and its last slice is counted
    let end = usage_ns();
    jobs[5].iter().for_each(|dir| fs::remove_dir(&dir.path).unwrap());
    let samples = walking.sample(Which::All);
    assert_eq!(samples[5].cpu_ns, Reading::Missing(Missing::Vanished));
    let tail = samples[5].tail.unwrap();
    assert_eq!(tail.share, TailShare::Exact);
    // Both sides are whole microseconds, rounded down once for each of parent and child.
    assert!(tail.cpu_ns.abs_diff(end - seen) <= 4_000, "{} instead of {}", tail.cpu_ns, end - seen);
    // Another one of the same name is not it.
    let again = world.own("job-5");
    assert_ne!(again[0].inode, jobs[5][0].inode);
    assert_eq!(walking.sample(Which::All)[5].cpu_ns, Reading::Missing(Missing::Vanished));
}

#[test]
fn a_few_jobs_are_read_by_their_files_and_those_that_come_later_are_walked_too() {
    let Some(Walked { world, jobs, mut walking }) = walked(15) else { return };
    assert!(walking.sample(Which::All).iter().all(|sample| sample.cpu_ns.seen().is_some()));
    assert!(30 <= walking.kept_files(), "two counters each: {}", walking.kept_files());
    let later = world.own("later");
    let attempt = Attempt(1 + jobs.len() as u64);
    walking.attach(attempt, &Target::OwnCgroups(later.clone())).unwrap();
    let kept = walking.kept_files() + 1; // its `cgroup.events`
    let task = Task::in_job(&later, BUSY);
    wait_until("the sixteenth works", || 20_000_000 < *walking.sample(Which::All)[15].cpu_ns.seen().unwrap());
    assert_eq!(walking.kept_files(), kept, "its counters are not opened");
    drop(task);
    walking.detach(attempt);
    assert_eq!(walking.sample(Which::All).len(), 15);
}
