//! From a pid that the driver lists to the job whose cgroup holds it, on this machine's real cgroups.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use meterd::domain::act::ProcessRoot;
use meterd::node::gpu_owner::{CgroupTree, OwnerTable, Owners};
use procfs::process::Process;

use super::*;

/// A process that sleeps, ended with the test.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Sleeper {
        Sleeper(Command::new("sleep").arg("600").spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A cgroup of our own, removed with the test.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make(mount: &Path, name: &str) -> std::io::Result<Cgroup> {
        let folder = mount.join(format!("meterd-test-gpu-{}-{name}", std::process::id()));
        std::fs::create_dir(&folder)?;
        Ok(Cgroup(folder))
    }

    fn take(&self, pid: u32) -> std::io::Result<()> {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Where the tree is mounted, and the pid's path in it.
fn mount(tree: CgroupTree) -> Option<PathBuf> {
    let mounts = Process::myself().unwrap().mountinfo().unwrap();
    let of_tree = |mount: &procfs::process::MountInfo| match tree {
        CgroupTree::V2 => mount.fs_type == "cgroup2",
        CgroupTree::V1Memory => mount.fs_type == "cgroup" && mount.super_options.contains_key("memory"),
    };
    mounts.into_iter().find(of_tree).map(|mount| mount.mount_point)
}

fn path_of(pid: u32, tree: CgroupTree) -> String {
    let groups = Process::new(i32::try_from(pid).unwrap()).unwrap().cgroups().unwrap();
    let of_tree = |group: &&procfs::ProcessCGroup| match tree {
        CgroupTree::V2 => group.hierarchy == 0,
        CgroupTree::V1Memory => group.controllers.iter().any(|controller| controller == "memory"),
    };
    groups.0.iter().find(of_tree).unwrap().pathname.clone()
}

/// Says that a part ran or did not. One that `METERD_REQUIRE` names must run.
fn not_run(part: &str, reason: &str) {
    println!("NOT RUN {part}: {reason}");
    let required = std::env::var("METERD_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|word| word == "kernel"), "METERD_REQUIRE names kernel, but {part}: {reason}");
}

fn attributed_in(tree: CgroupTree) -> Result<(), String> {
    let mount = mount(tree).ok_or("not mounted here")?;
    let cgroup = Cgroup::make(&mount, "job").map_err(|error| format!("{}: {error}", mount.display()))?;
    let (inside, outside) = (Sleeper::start(), Sleeper::start());
    cgroup.take(inside.pid()).map_err(|error| error.to_string())?;

    let owners = Owners::default();
    let mut table = OwnerTable::default();
    table.cgroup(tree, &path_of(inside.pid(), tree), Attempt(3)).unwrap();
    owners.replace(table);
    let stub = Stub::new(&format!("{ONE}\nprocess 0 compute {} 1\nprocess 0 compute {} 1", inside.pid(), outside.pid()));
    let mut reader = GpuReader::new(stub.config(SECOND, SECOND), owners.as_owner());
    let mut seen = |seconds| -> BTreeMap<u32, Option<Attempt>> {
        processes(reader.look(at(seconds))).into_iter().map(|process| (process.pid, process.attempt)).collect()
    };
    assert_eq!(seen(1), BTreeMap::from([(inside.pid(), Some(Attempt(3))), (outside.pid(), None)]));
    owners.replace(OwnerTable::default());
    assert_eq!(seen(2)[&inside.pid()], None, "the job has ended");
    drop((inside, outside));
    Ok(())
}

#[test]
fn a_gpu_process_belongs_to_the_job_whose_cgroup_holds_it() {
    let trees = [("cgroup v2", CgroupTree::V2), ("cgroup v1 memory", CgroupTree::V1Memory)];
    // A machine has one of them or both.
    let here: Vec<_> = trees.into_iter().filter(|(_, tree)| mount(*tree).is_some()).collect();
    if here.is_empty() {
        not_run("cgroups", "none is mounted");
    }
    for (part, tree) in here {
        match attributed_in(tree) {
            Ok(()) => println!("RAN {part}"),
            Err(reason) => not_run(part, &reason),
        }
    }
}

#[test]
fn a_gpu_process_belongs_to_the_job_whose_process_tree_it_is_in() {
    let (inside, later) = (Sleeper::start(), Sleeper::start());
    let root = |pid: u32, after: u64| {
        let start_ticks = Process::new(i32::try_from(pid).unwrap()).unwrap().stat().unwrap().starttime;
        ProcessRoot { pid, start_ticks: start_ticks + after }
    };
    let owners = Owners::default();
    let mut table = OwnerTable::default();
    // The job's process had `later`'s pid before.
    table.processes([root(inside.pid(), 0), root(later.pid(), 1)], Attempt(4));
    owners.replace(table);
    let stub = Stub::new(&format!("{ONE}\nprocess 0 compute {} 1\nprocess 0 compute {} 1", inside.pid(), later.pid()));
    let listed = processes(GpuReader::new(stub.config(SECOND, SECOND), owners.as_owner()).look(at(1)));
    let seen: BTreeMap<u32, Option<Attempt>> = listed.into_iter().map(|process| (process.pid, process.attempt)).collect();
    assert_eq!(seen, BTreeMap::from([(inside.pid(), Some(Attempt(4))), (later.pid(), None)]));
}
