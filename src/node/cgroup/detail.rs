//! What is read of a job's cgroups every ten seconds, at its end and on request, through descriptors that are not kept.
//!
//! Each kind comes from the hierarchy that has its controller: a v1 directory if the job has one there, else cgroup2. Several directories
//! are added up; of peaks the sum is an upper bound, since they need not have come at once.

use crate::domain::detail::{Detail, Io, Pressure};
use crate::domain::meter::{Missing, Reading};
use crate::node::cgroup_dir::{OpenDir, field, missing_for, number, read_all};
use crate::node::layout::{Controller, Hierarchy};

use super::watched::anon_of;
use rustix::io::{Errno, pread};

/// All of it, from the job's open directories.
pub(super) fn read(dirs: &[&OpenDir]) -> Detail {
    let memory = in_hierarchy(dirs, Controller::Memory);
    let blkio = in_hierarchy(dirs, Controller::Blkio);
    let pids = in_hierarchy(dirs, Controller::Pids);
    let v2: Vec<&OpenDir> = dirs.iter().copied().filter(|dir| dir.hierarchy == Hierarchy::V2).collect();
    Detail {
        memory_peak_bytes: sum(&memory, |dir| by(dir, "memory.peak", "memory.max_usage_in_bytes", number)),
        memory_anon_bytes: sum(&memory, anon),
        io: total(&blkio, io, |a: Io, b| Io {
            read_bytes: a.read_bytes.saturating_add(b.read_bytes),
            write_bytes: a.write_bytes.saturating_add(b.write_bytes),
            read_ops: a.read_ops.saturating_add(b.read_ops),
            write_ops: a.write_ops.saturating_add(b.write_ops),
        }),
        pids: sum(&pids, |dir| by(dir, "pids.current", "pids.current", number)),
        pressure: total(&v2, pressure, |a: Pressure, b| Pressure {
            cpu_some_us: a.cpu_some_us.saturating_add(b.cpu_some_us),
            memory_some_us: a.memory_some_us.saturating_add(b.memory_some_us),
            memory_full_us: a.memory_full_us.saturating_add(b.memory_full_us),
            io_some_us: a.io_some_us.saturating_add(b.io_some_us),
            io_full_us: a.io_full_us.saturating_add(b.io_full_us),
        }),
        oom_kills: sum(&memory, oom_kills),
    }
}

/// The job's directories where that controller is: in v1 if it has any there, else in cgroup2.
fn in_hierarchy<'d>(dirs: &[&'d OpenDir], controller: Controller) -> Vec<&'d OpenDir> {
    let v1: Vec<&OpenDir> = dirs.iter().copied().filter(|dir| dir.hierarchy.has(controller)).collect();
    if v1.is_empty() { dirs.iter().copied().filter(|dir| dir.hierarchy == Hierarchy::V2).collect() } else { v1 }
}

/// Missing if one part is.
fn total<T>(dirs: &[&OpenDir], read: impl Fn(&OpenDir) -> Result<T, Missing>, add: impl Fn(T, T) -> T) -> Reading<T> {
    let mut whole = None;
    for dir in dirs {
        match (read(dir), whole.take()) {
            (Ok(part), None) => whole = Some(part),
            (Ok(part), Some(before)) => whole = Some(add(before, part)),
            (Err(why), _) => return Reading::Missing(why),
        }
    }
    whole.map_or(Reading::Missing(Missing::NotSupported), Reading::Seen)
}

fn sum(dirs: &[&OpenDir], read: impl Fn(&OpenDir) -> Result<u64, Missing>) -> Reading<u64> {
    total(dirs, read, u64::saturating_add)
}

/// What `parse` makes of a file's text.
fn by_text<T>(dir: &OpenDir, file: &str, parse: impl FnOnce(&[u8]) -> T) -> Result<T, Missing> {
    let why = |errno| match errno {
        // The same answer for a file that this kernel does not offer, and for any file of a removed cgroup.
        Errno::NOENT if dir.is_there() => Missing::NotSupported,
        errno => missing_for(errno),
    };
    let file = dir.file(file).map_err(why)?;
    let mut page = [0_u8; 4_096];
    // The kernel makes such a file's text in one piece: what leaves room in the page is all of it.
    let length = pread(&file, &mut page, 0).map_err(why)?;
    if length < page.len() { Ok(parse(&page[..length])) } else { Ok(parse(&read_all(&file).map_err(why)?)) }
}

fn by<T>(dir: &OpenDir, v2_file: &str, v1_file: &str, parse: impl FnOnce(&[u8]) -> Option<T>) -> Result<T, Missing> {
    let file = if dir.hierarchy == Hierarchy::V2 { v2_file } else { v1_file };
    by_text(dir, file, parse)?.ok_or(Missing::Malformed)
}

fn anon(dir: &OpenDir) -> Result<u64, Missing> {
    by(dir, "memory.stat", "memory.stat", |text| anon_of(dir.hierarchy, text))
}

/// `oom_kill` counts what is below too in cgroup2, and only the directory itself in v1: there the sub-directories are added.
fn oom_kills(dir: &OpenDir) -> Result<u64, Missing> {
    if dir.hierarchy == Hierarchy::V2 {
        return by(dir, "memory.events", "memory.events", |text| field(text, b"oom_kill"));
    }
    let own = by_text(dir, "memory.oom_control", |text| field(text, b"oom_kill"))?;
    let mut count = own.ok_or(Missing::NotSupported)?; // before Linux 4.13
    if dir.child_count().map_err(missing_for)? == 0 {
        return Ok(count);
    }
    for child in dir.children().map_err(missing_for)? {
        match dir.child(&child.name).map_err(missing_for).and_then(|child| oom_kills(&child)) {
            Ok(below) => count = count.saturating_add(below),
            Err(Missing::Vanished) => {}
            Err(why) => return Err(why),
        }
    }
    Ok(count)
}

fn io(dir: &OpenDir) -> Result<Io, Missing> {
    if dir.hierarchy == Hierarchy::V2 {
        return by(dir, "io.stat", "io.stat", parse_io_stat);
    }
    let recursive = |name: &str| match by_text(dir, &format!("{name}_recursive"), parse_blkio) {
        Err(Missing::NotSupported) => by_text(dir, name, parse_blkio),
        other => other,
    };
    let bytes = recursive("blkio.throttle.io_service_bytes")?.ok_or(Missing::Malformed)?;
    let ops = recursive("blkio.throttle.io_serviced")?.ok_or(Missing::Malformed)?;
    Ok(Io { read_bytes: bytes.0, write_bytes: bytes.1, read_ops: ops.0, write_ops: ops.1 })
}

/// `io.stat` (cgroup-v2.rst): a line for each device, `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`. A device that did nothing can
/// stand there without figures.
fn parse_io_stat(text: &[u8]) -> Option<Io> {
    let mut io = Io::default();
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        words.next().filter(|device| device.contains(&b':'))?;
        for word in words {
            let at = word.iter().position(|byte| *byte == b'=')?;
            let slot = match &word[..at] {
                b"rbytes" => &mut io.read_bytes,
                b"wbytes" => &mut io.write_bytes,
                b"rios" => &mut io.read_ops,
                b"wios" => &mut io.write_ops,
                _ => continue,
            };
            *slot = slot.checked_add(number(&word[at + 1..])?)?;
        }
    }
    Some(io)
}

/// `blkio.throttle.*` (blkio-controller.rst): lines of `8:0 Read 123`, and a total that is passed over. Reads and writes.
fn parse_blkio(text: &[u8]) -> Option<(u64, u64)> {
    let (mut read, mut write) = (0_u64, 0_u64);
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty() && !line.starts_with(b"Total")) {
        let mut words = line.split(|byte| *byte == b' ');
        let (_device, kind, value) = (words.next()?, words.next()?, number(words.next()?)?);
        match kind {
            b"Read" => read = read.checked_add(value)?,
            b"Write" => write = write.checked_add(value)?,
            _ => {}
        }
    }
    Some((read, write))
}

fn pressure(dir: &OpenDir) -> Result<Pressure, Missing> {
    let some = |text: &[u8]| parse_pressure(text, b"some");
    let both = |text: &[u8]| Some((some(text)?, parse_pressure(text, b"full")?));
    let cpu_some_us = by(dir, "cpu.pressure", "cpu.pressure", some)?;
    let (memory_some_us, memory_full_us) = by(dir, "memory.pressure", "memory.pressure", both)?;
    let (io_some_us, io_full_us) = by(dir, "io.pressure", "io.pressure", both)?;
    Ok(Pressure { cpu_some_us, memory_some_us, memory_full_us, io_some_us, io_full_us })
}

/// The `total` of a line of a pressure file (psi.rst): `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
fn parse_pressure(text: &[u8], kind: &[u8]) -> Option<u64> {
    let line = text.split(|byte| *byte == b'\n').find(|line| line.strip_prefix(kind).is_some_and(|rest| rest.starts_with(b" ")))?;
    line.split(|byte| *byte == b' ').find_map(|word| word.strip_prefix(b"total=")).and_then(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::act::CgroupDir;
    use proptest::prelude::*;
    use rustix::fs::{CWD, Mode, OFlags, openat};

    fn dir(hierarchy: Hierarchy, files: &[(&str, &str)]) -> (tempfile::TempDir, OpenDir) {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in [("cgroup.procs", "")].iter().chain(files) {
            std::fs::create_dir_all(root.path().join(name).parent().unwrap()).unwrap();
            std::fs::write(root.path().join(name), text).unwrap();
        }
        let fd = openat(CWD, root.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let dir = CgroupDir { path: root.path().display().to_string(), inode: 0 };
        (root, OpenDir { dir, hierarchy, fd })
    }

    #[test]
    fn cgroup2_tells_everything_of_one_directory() {
        let psi = "some avg10=0.00 avg60=1.50 avg300=0.00 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n";
        let (_root, dir) = dir(
            Hierarchy::V2,
            &[
                ("memory.peak", "8192\n"),
                ("memory.stat", "anon 4096\nfile 100\nanon_thp 9\n"),
                ("memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 0\n"),
                ("io.stat", "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=5 dios=5\n7:0\n8:16 rbytes=1 wbytes=0 rios=1 wios=0\n"),
                ("pids.current", "4\n"),
                ("cpu.pressure", psi),
                ("memory.pressure", psi),
                ("io.pressure", psi),
            ],
        );
        let detail = read(&[&dir]);
        assert_eq!((detail.memory_peak_bytes, detail.memory_anon_bytes), (Reading::Seen(8_192), Reading::Seen(4_096)));
        assert_eq!((detail.oom_kills, detail.pids), (Reading::Seen(2), Reading::Seen(4)));
        assert_eq!(detail.io, Reading::Seen(Io { read_bytes: 11, write_bytes: 20, read_ops: 2, write_ops: 2 }));
        let expected = Pressure { cpu_some_us: 7, memory_some_us: 7, memory_full_us: 3, io_some_us: 7, io_full_us: 3 };
        assert_eq!(detail.pressure, Reading::Seen(expected));
    }

    #[test]
    fn v1_adds_the_kills_of_what_is_below_and_has_no_pressure() {
        let oom = "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n";
        let files = [("memory.oom_control", oom), ("below/memory.oom_control", oom), ("memory.stat", "rss 1\ntotal_rss 5\n")];
        let (_memory_root, memory) = dir(Hierarchy::v1(Controller::Memory), &files);
        let bytes = "8:0 Read 10\n8:0 Write 20\n8:0 Sync 30\n8:0 Total 30\n8:16 Read 5\nTotal 35\n";
        let files = [("blkio.throttle.io_service_bytes", bytes), ("blkio.throttle.io_serviced", "Total 0\n")];
        let (_blkio_root, blkio) = dir(Hierarchy::v1(Controller::Blkio), &files);
        let detail = read(&[&memory, &blkio]);
        assert_eq!((detail.oom_kills, detail.memory_anon_bytes), (Reading::Seen(2), Reading::Seen(5)));
        assert_eq!(detail.io, Reading::Seen(Io { read_bytes: 15, write_bytes: 20, read_ops: 0, write_ops: 0 }));
        assert_eq!(detail.pressure, Reading::Missing(Missing::NotSupported));
        assert_eq!(detail.pids, Reading::Missing(Missing::NotSupported));
        assert_eq!(detail.memory_peak_bytes, Reading::Missing(Missing::NotSupported), "the file is not there");
    }

    #[test]
    fn of_several_directories_one_that_is_malformed_makes_the_reading_missing() {
        let (_a_root, a) = dir(Hierarchy::V2, &[("pids.current", "4\n")]);
        let (_b_root, b) = dir(Hierarchy::V2, &[("pids.current", "many\n")]);
        assert_eq!(read(&[&a, &b]).pids, Reading::Missing(Missing::Malformed));
        assert_eq!(read(&[&a, &a]).pids, Reading::Seen(8));
    }

    proptest! {
        #[test]
        fn any_bytes_at_all_are_parsed_without_harm(bytes: Vec<u8>) {
            let _ = (parse_io_stat(&bytes), parse_blkio(&bytes), parse_pressure(&bytes, b"some"));
        }
    }
}
