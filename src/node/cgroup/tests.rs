//! On constructed directories (texts as in cgroup-v2.rst and cpuacct.rst); the real kernel is in `tests/kernel.rs`.

use super::*;
use crate::domain::meter::{Frozen, Populated};
use proptest::prelude::*;
use std::fs;

const JOB: Attempt = Attempt(1);

struct World {
    root: tempfile::TempDir,
    sampler: Sampler,
}

fn world(v1: &[&str]) -> World {
    let root = tempfile::tempdir().unwrap();
    let mount = |name: &str| root.path().join(name);
    for name in ["v2", "memory", "cpuacct", "freezer"] {
        fs::create_dir(mount(name)).unwrap();
    }
    let has = |name: &str| v1.contains(&name).then(|| mount(name));
    let layout = Layout {
        v2: Some(mount("v2")),
        v1_memory: has("memory"),
        v1_cpuacct: has("cpuacct"),
        v1_freezer: has("freezer"),
        ..Layout::default()
    };
    let sampler = Sampler::new(Some(Arc::new(layout)), ProcessTrees::default(), || Mono(7));
    World { root, sampler }
}

impl World {
    fn dir(&self, path: &str, files: &[(&str, &str)]) -> CgroupDir {
        let path = self.root.path().join(path);
        fs::create_dir_all(&path).unwrap();
        for (name, text) in [("cgroup.procs", "")].iter().chain(files) {
            fs::write(path.join(name), text).unwrap();
        }
        let layout = self.sampler.layout.as_ref().unwrap();
        cgroup_dir::inode_of(layout, &path).unwrap()
    }

    fn one(&mut self) -> JobSample {
        self.sampler.sample(Which::All).remove(0)
    }
}

const BUSY: [(&str, &str); 3] = [
    ("cpu.stat", "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n"),
    ("cgroup.events", "populated 1\nfrozen 0\n"),
    ("memory.current", "4096\n"),
];

#[test]
fn a_unified_job_is_read_from_its_own_directory() {
    let mut world = world(&[]);
    let dir = world.dir("v2/jobs/a", &BUSY);
    world.sampler.attach(JOB, &Target::Cgroups(vec![dir])).unwrap();
    let sample = world.one();
    assert_eq!(
        sample,
        JobSample {
            attempt: JOB,
            at: Mono(7),
            cpu_ns: Reading::Seen(1_500_000),
            memory_bytes: Reading::Seen(4_096),
            populated: Reading::Seen(Populated::Yes),
            frozen: Reading::Seen(Frozen::No),
            tail: None,
            memory_anon_bytes: None,
            detail: None,
            gpus: None,
        }
    );
}

#[test]
fn a_job_of_several_directories_is_their_sum_and_frozen_only_when_all_are() {
    let mut world = world(&[]);
    let frozen = [BUSY[0], ("cgroup.events", "populated 1\nfrozen 1\n"), BUSY[2]];
    let dirs = vec![world.dir("v2/a", &BUSY), world.dir("v2/b", &frozen), world.dir("v2/a", &BUSY)];
    world.sampler.attach(JOB, &Target::Cgroups(dirs)).unwrap();
    let sample = world.one();
    assert_eq!(sample.cpu_ns, Reading::Seen(3_000_000), "a directory that is named twice counts once");
    assert_eq!(sample.memory_bytes, Reading::Seen(8_192));
    assert_eq!(sample.frozen, Reading::Seen(Frozen::No));
}

#[test]
fn in_a_hybrid_layout_cpu_time_is_cgroup2s_and_memory_the_v1_controllers() {
    let mut world = world(&["memory", "cpuacct"]);
    let named = vec![
        world.dir("v2/a", &BUSY),
        world.dir("memory/a", &[("memory.usage_in_bytes", "12288\n")]),
        world.dir("cpuacct/a", &[("cpuacct.usage", "999\n")]),
    ];
    world.sampler.attach(JOB, &Target::Cgroups(named)).unwrap();
    let sample = world.one();
    assert_eq!(sample.cpu_ns, Reading::Seen(1_500_000), "not both");
    assert_eq!(sample.memory_bytes, Reading::Seen(12_288));
}

#[test]
fn a_v1_job_without_a_freezer_is_told_populated_and_frozen_by_its_processes() {
    let mut world = world(&["memory", "cpuacct"]);
    let mine = format!("{}\n", std::process::id());
    let named = vec![
        world.dir("memory/a", &[("memory.usage_in_bytes", "12288\n")]),
        world.dir("cpuacct/a", &[("cpuacct.usage", "999\n"), ("cgroup.procs", &mine)]),
        world.dir("memory/a", &[("cgroup.procs", &mine)]),
    ];
    world.sampler.attach(JOB, &Target::Cgroups(named)).unwrap();
    let sample = world.one();
    assert_eq!((sample.cpu_ns, sample.memory_bytes), (Reading::Seen(999), Reading::Seen(12_288)));
    assert_eq!((sample.populated, sample.frozen), (Reading::Seen(Populated::Yes), Reading::Seen(Frozen::No)));
}

#[test]
fn freezing_is_not_frozen_and_a_v1_job_with_tasks_below_it_is_populated() {
    let mut world = world(&["memory", "cpuacct", "freezer"]);
    let dirs = vec![world.dir("freezer/a", &[("freezer.state", "FREEZING\n")]), world.dir("cpuacct/a", &[("cpuacct.usage", "5\n")])];
    world.dir("freezer/a/below", &[("cgroup.procs", "7\n")]);
    world.sampler.attach(JOB, &Target::Cgroups(dirs)).unwrap();
    let sample = world.one();
    assert_eq!((sample.populated, sample.frozen), (Reading::Seen(Populated::Yes), Reading::Seen(Frozen::No)));
    world.dir("freezer/a", &[("freezer.state", "FROZEN\n")]);
    world.dir("freezer/a/below", &[]);
    let sample = world.one();
    assert_eq!((sample.populated, sample.frozen), (Reading::Seen(Populated::No), Reading::Seen(Frozen::Yes)));
    world.dir("freezer/a", &[("freezer.state", "MELTING\n")]);
    assert_eq!(world.one().frozen, Reading::Missing(Missing::Malformed));
}

#[test]
fn a_directory_and_one_below_it_in_one_job_are_counted_once() {
    let mut world = world(&[]);
    let dirs = vec![world.dir("v2/a", &BUSY), world.dir("v2/a/b", &BUSY), world.dir("v2/ab", &BUSY)];
    world.sampler.attach(JOB, &Target::Cgroups(dirs)).unwrap();
    let sample = world.one();
    assert_eq!((sample.cpu_ns, sample.memory_bytes), (Reading::Seen(3_000_000), Reading::Seen(8_192)));
}

#[test]
fn of_several_directories_one_that_cannot_be_read_makes_the_reading_missing() {
    let mut world = world(&[]);
    let malformed = [("cpu.stat", "usage_usec -1\n"), BUSY[1], ("memory.current", "none\n")];
    let dirs = vec![world.dir("v2/a", &BUSY), world.dir("v2/b", &malformed)];
    world.sampler.attach(JOB, &Target::Cgroups(dirs)).unwrap();
    let sample = world.one();
    assert_eq!((sample.cpu_ns, sample.memory_bytes), (Reading::Missing(Missing::Malformed), Reading::Missing(Missing::Malformed)));
}

#[test]
fn what_is_malformed_or_not_offered_is_missing_and_never_zero() {
    let mut world = world(&[]);
    let dir = world.dir("v2/a", &[("cpu.stat", "usage_usec x\n"), ("cgroup.events", "")]);
    world.sampler.attach(JOB, &Target::Cgroups(vec![dir])).unwrap();
    let sample = world.one();
    assert_eq!(sample.cpu_ns, Reading::Missing(Missing::Malformed));
    assert_eq!(sample.memory_bytes, Reading::Missing(Missing::NotSupported));
    assert_eq!(sample.populated, Reading::Missing(Missing::Malformed));
}

#[test]
fn a_directory_belongs_to_one_job_at_a_time() {
    let mut world = world(&[]);
    let target = Target::Cgroups(vec![world.dir("v2/a", &BUSY)]);
    world.sampler.attach(JOB, &target).unwrap();
    assert!(matches!(world.sampler.attach(JOB, &target), Err(AttachError::Already(JOB))));
    assert!(matches!(world.sampler.attach(Attempt(2), &target), Err(AttachError::Taken { holder: JOB, .. })));
    assert_eq!(world.sampler.attached().collect::<Vec<_>>(), [JOB], "what was refused is not half attached");
    world.sampler.detach(JOB);
    world.sampler.attach(Attempt(2), &target).unwrap();
    assert!(matches!(world.sampler.attach(Attempt(3), &Target::Cgroups(Vec::new())), Err(AttachError::Empty)));
}

#[test]
fn no_more_files_are_kept_than_allowed_and_none_of_a_detached_job() {
    let mut world = world(&[]);
    world.sampler = Sampler::new(world.sampler.layout.clone(), ProcessTrees::default(), || Mono(7)).keeping_at_most(4);
    for nth in 0..3 {
        let dir = world.dir(&format!("v2/{nth}"), &BUSY);
        world.sampler.attach(Attempt(nth), &Target::Cgroups(vec![dir])).unwrap();
    }
    for _ in 0..2 {
        assert!(world.sampler.sample(Which::All).iter().all(|sample| sample.memory_bytes == Reading::Seen(4_096)));
        assert_eq!(world.sampler.kept_files(), 4);
    }
    (0..3).for_each(|nth| world.sampler.detach(Attempt(nth)));
    assert_eq!(world.sampler.kept_files(), 0);
}

#[test]
fn with_few_descriptors_counters_are_kept_before_directories_and_every_job_is_read() {
    let mut world = world(&[]);
    let room = Room::of(12);
    world.sampler = Sampler::new(world.sampler.layout.clone(), ProcessTrees::default(), || Mono(7)).within(Arc::clone(&room));
    for nth in 0..20 {
        let dir = world.dir(&format!("v2/{nth}"), &BUSY);
        world.sampler.attach(Attempt(nth), &Target::Cgroups(vec![dir])).unwrap();
        let samples = world.sampler.sample(Which::All);
        let usable = |sample: &JobSample| (sample.cpu_ns.seen(), sample.memory_bytes.seen()) == (Some(&1_500_000), Some(&4_096));
        assert!(samples.len() as u64 == nth + 1 && samples.iter().all(usable), "{samples:?}");
        assert!(samples.iter().all(|sample| sample.frozen == Reading::Seen(Frozen::No)));
    }
    world.sampler.sample(Which::All);
    assert_eq!((room.free(), world.sampler.kept_files()), (0, 11), "all but the parent's directory gave way");
    let details = world.sampler.sample_closely(&[Attempt(0), Attempt(19)]);
    assert!(details.iter().all(|sample| sample.detail.is_some()), "a directory that is not kept is opened for it");
    fs::remove_dir_all(world.root.path().join("v2/19")).unwrap();
    assert_eq!(world.sampler.sample(Which::All)[19].cpu_ns, Reading::Missing(Missing::Vanished));
    (0..20).for_each(|nth| world.sampler.detach(Attempt(nth)));
    assert_eq!(room.free(), 12, "everything was given back");
}

#[test]
fn jobs_that_came_while_directories_had_all_places_keep_their_counters_from_the_second_look_on() {
    let mut world = world(&[]);
    let room = Room::of(10);
    world.sampler = Sampler::new(world.sampler.layout.clone(), ProcessTrees::default(), || Mono(7)).within(Arc::clone(&room));
    for nth in 0..5 {
        let dir = world.dir(&format!("v2/{nth}"), &BUSY);
        world.sampler.attach(Attempt(nth), &Target::Cgroups(vec![dir])).unwrap();
    }
    let kept_after = [(); 3].map(|()| {
        world.sampler.sample(Which::All);
        world.sampler.kept_files()
    });
    assert!(kept_after[0] < 9 && kept_after[1..] == [9, 9], "{kept_after:?}; the tenth is the parent's directory");
    assert_eq!(room.free(), 0);
}

#[test]
fn a_directory_that_is_not_kept_open_is_never_taken_for_another_of_its_name() {
    let mut world = world(&[]);
    world.sampler = Sampler::new(world.sampler.layout.clone(), ProcessTrees::default(), || Mono(7)).within(Room::of(0));
    let dir = world.dir("v2/a", &BUSY);
    world.sampler.attach(JOB, &Target::Cgroups(vec![dir])).unwrap();
    assert_eq!(world.one().cpu_ns, Reading::Seen(1_500_000));
    fs::rename(world.root.path().join("v2/a"), world.root.path().join("v2/other")).unwrap();
    world.dir("v2/a", &BUSY);
    assert_eq!(world.one().cpu_ns, Reading::Missing(Missing::Replaced));
}

#[test]
fn a_job_whose_one_directory_has_gone_keeps_what_that_one_used() {
    let mut sum = Sum::default();
    sum.add(Reading::Seen(5), Some(5));
    sum.add(Reading::Missing(Missing::Vanished), Some(7));
    assert_eq!(sum.whole(|| Missing::NotSupported), Reading::Seen(12));
    let mut all_gone = Sum::default();
    all_gone.add(Reading::Missing(Missing::Vanished), Some(7));
    assert_eq!(all_gone.whole(|| Missing::NotSupported), Reading::Missing(Missing::Vanished));
    let mut unreadable = Sum::default();
    unreadable.add(Reading::Seen(5), Some(5));
    unreadable.add(Reading::Missing(Missing::Denied), Some(7));
    assert_eq!(unreadable.whole(|| Missing::NotSupported), Reading::Missing(Missing::Denied));
}

/// The parent of `kids`, whose counters are written by hand.
fn family_of(world: &World, parent_usec: u64, kids: &[(&str, u64)]) {
    let stat = |usec: u64| format!("usage_usec {usec}\n");
    world.dir("v2/jobs", &[("cpu.stat", &stat(parent_usec))]);
    for (name, usec) in kids {
        world.dir(&format!("v2/jobs/{name}"), &[("cpu.stat", &stat(*usec)), BUSY[1]]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever siblings use, and whatever went before: the tail is exactly what the vanished one used after it was last read.
    #[test]
    fn a_tail_is_the_parents_growth_less_the_siblings(earlier in 0_u64..1 << 30, gone in 0_u64..1 << 30, tail in 0_u64..1 << 30, sibling in 0_u64..1 << 30, more in 0_u64..1 << 30) {
        let mut world = world(&[]);
        family_of(&world, earlier + gone + sibling, &[("gone", gone), ("sibling", sibling)]);
        for (nth, name) in [(1, "gone"), (2, "sibling")] {
            let dir = world.dir(&format!("v2/jobs/{name}"), &[]);
            world.sampler.attach(Attempt(nth), &Target::Cgroups(vec![dir])).unwrap();
        }
        let first = world.sampler.sample(Which::All);
        prop_assert!(first.iter().all(|sample| sample.tail.is_none()));
        fs::remove_dir_all(world.root.path().join("v2/jobs/gone")).unwrap();
        // A removed directory's kept files still read on an ordinary file system: nothing is kept of it here.
        let key = world.sampler.jobs[&Attempt(1)].keys()[0];
        world.sampler.dirs.get_mut(key).unwrap().release(&mut world.sampler.files);
        family_of(&world, earlier + gone + tail + sibling + more, &[("sibling", sibling + more)]);
        let second = world.sampler.sample(Which::All);
        prop_assert_eq!(second[0].tail, Some(Tail { cpu_ns: tail * 1_000, share: TailShare::Exact }));
        prop_assert_eq!(&second[0].cpu_ns, &Reading::Missing(Missing::Vanished));
        prop_assert_eq!(second[1].tail, None);
    }
}
