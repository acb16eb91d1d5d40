//! What is read every ten seconds, from the real kernel: peaks, anonymous memory, I/O, tasks, pressure, kills for memory.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use meterd::domain::act::Target;
use meterd::domain::detail::Detail;
use meterd::domain::meter::{Missing, Reading};
use meterd::node::cgroup::{AnonRead, Sampler, Which};
use meterd::node::layout::Controller::{Blkio, Cpuacct, Freezer, Memory, Pids};

use crate::support;
use crate::world::{BUSY, JOB, Task, World, in_mount, one, wait_until};

fn detail(sampler: &mut Sampler) -> Detail {
    *sampler.sample_closely(&[JOB]).remove(0).detail.unwrap()
}

/// 32 MiB in a shell's variable.
const HOLDS: &str = "x=$(head -c 33554432 /dev/zero | tr '\\0' x); sleep 1000";

#[test]
fn a_v1_job_killed_for_memory_leaves_its_evidence_and_one_below_it_too() {
    let Some(world) = World::make(&[Memory, Cpuacct, Freezer], None) else { return };
    let dirs = world.own("oom");
    let memory = in_mount(&dirs, world.layout.v1(Memory));
    let below = memory.join("below");
    fs::create_dir(&below).unwrap();
    let mut sampler = world.sampler();
    sampler.attach(JOB, &Target::OwnCgroups(dirs.clone())).unwrap();
    assert_eq!(detail(&mut sampler).oom_kills, Reading::Seen(0));
    fs::write(memory.join("memory.limit_in_bytes"), "8388608").unwrap();
    // Where there is swap, it must not help.
    let _ = fs::write(memory.join("memory.memsw.limit_in_bytes"), "8388608");
    let task = Task::in_job(&dirs, HOLDS);
    wait_until("the first kill", || detail(&mut sampler).oom_kills.seen().is_some_and(|count| 0 < *count));
    let first = *detail(&mut sampler).oom_kills.seen().unwrap();
    drop(task);
    let task = Task::run_in(&[&below], HOLDS);
    wait_until("one below", || detail(&mut sampler).oom_kills.seen().is_some_and(|count| first < *count));
    let seen = detail(&mut sampler);
    assert!((4 << 20..=8 << 20).contains(seen.memory_peak_bytes.seen().unwrap()), "{seen:?}");
    assert_eq!(seen.pressure, Reading::Missing(Missing::NotSupported), "v1 has none");
    drop(task);
}

#[test]
fn anonymous_memory_is_what_a_program_holds_and_a_file_in_the_page_cache_is_not() {
    let Some(world) = World::make(&[Memory, Cpuacct, Freezer, Pids], None) else { return };
    let dirs = world.own("anon");
    let mut sampler = world.sampler();
    sampler.attach(JOB, &Target::OwnCgroups(dirs.clone())).unwrap();
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let file = folder.path().join("cache");
    let script = format!("head -c 50331648 /dev/zero > {}; {HOLDS}", file.display());
    let _task = Task::in_job(&dirs, &script);
    wait_until("32 MiB held", || detail(&mut sampler).memory_anon_bytes.seen().is_some_and(|bytes| 32 << 20 < *bytes));
    // The shell copies its variable once; a page cache of 48 MiB is not among it. It may still grow: what is charged is read before the peak.
    let sample = one(&mut sampler, JOB);
    let seen = detail(&mut sampler);
    let (anon, charged) = (*seen.memory_anon_bytes.seen().unwrap(), *sample.memory_bytes.seen().unwrap());
    println!("{anon} anonymous, {charged} charged, {} at the most", seen.memory_peak_bytes.seen().unwrap());
    assert!(anon <= charged && charged <= *seen.memory_peak_bytes.seen().unwrap());
    assert!(40 << 20 < charged - anon, "the page cache is charged and not anonymous");
    assert!(1 <= *seen.pids.seen().unwrap());
}

/// Has the kernel count what is written below `folder` by who is in this blkio cgroup.
fn count_io(folder: &Path, blkio: &Path) -> Result<(), String> {
    let device = fs::metadata(folder).unwrap().dev();
    let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    if !Path::new("/sys/dev/block").join(&device).exists() {
        return Err(format!("{} is on {device}, which is no block device", folder.display()));
    }
    // Since Linux 6.10 v1 counts only on devices that somebody has set a limit for; this one limits nothing.
    let limit = format!("{device} 1000000000000");
    fs::write(blkio.join("blkio.throttle.write_bps_device"), limit).map_err(|error| format!("a limit for {device}: {error}"))
}

#[test]
fn in_a_hybrid_layout_each_reading_comes_from_the_hierarchy_that_has_it() {
    let Some(world) = World::make(&[Memory, Pids, Blkio], Some(&[])) else { return };
    let dirs = world.own("each");
    assert_eq!(dirs.len(), 4);
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let counted = support::need("blkio", count_io(folder.path(), in_mount(&dirs, world.layout.v1(Blkio))));
    let mut sampler = world.sampler();
    sampler.attach(JOB, &Target::OwnCgroups(dirs.clone())).unwrap();
    let script = format!("dd if=/dev/zero of={} bs=65536 count=16 oflag=direct 2>/dev/null; {BUSY}", folder.path().join("x").display());
    let _tasks = [Task::in_job(&dirs, &script), Task::in_job(&dirs, BUSY), Task::in_job(&dirs, BUSY)];
    wait_until("three tasks", || detail(&mut sampler).pids == Reading::Seen(3));
    if counted.is_some() {
        let written = |seen: Detail| seen.io.seen().is_some_and(|io| 1 << 20 <= io.write_bytes && 16 <= io.write_ops);
        wait_until("1 MiB is written", || written(detail(&mut sampler)));
    }
    let seen = detail(&mut sampler);
    println!("{seen:?}");
    assert!(seen.io.seen().is_some() && seen.memory_anon_bytes.seen().is_some() && seen.oom_kills == Reading::Seen(0));
    if Path::new("/proc/pressure/cpu").exists() {
        wait_until("three busy tasks wait for CPUs", || detail(&mut sampler).pressure.seen().is_some_and(|waited| 0 < waited.cpu_some_us));
    }
}

#[test]
fn a_look_at_all_reads_details_when_ten_seconds_are_over_and_anonymous_memory_each_time_if_it_has_a_price() {
    let Some(world) = World::make(&[Memory, Cpuacct, Freezer], None) else { return };
    let dirs = world.own("due");
    let mut sampler = world.sampler();
    sampler.attach(JOB, &Target::OwnCgroups(dirs)).unwrap();
    assert!(sampler.sample_closely(&[JOB])[0].detail.is_some());
    let next = sampler.sample(Which::All).remove(0);
    assert!(next.detail.is_none() && next.memory_anon_bytes.is_none());
    sampler.set_anon(AnonRead::EachLook);
    assert_eq!(sampler.sample(Which::All)[0].memory_anon_bytes, Some(Reading::Seen(0)));
}
