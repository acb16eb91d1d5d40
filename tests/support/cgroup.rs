//! Real cgroups for jobs of known burn, with the kernel's own counter to compare with.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Directories of one job, in every hierarchy that this machine has; removed at the end, whatever happens.
pub(crate) struct Cgroup {
    pub(crate) v2: PathBuf,
    pub(crate) all: Vec<PathBuf>,
    pub(crate) tasks: Vec<Child>,
    /// The counter when the job was started: its shell had used a little by then.
    pub(crate) baseline_ns: u128,
}

impl Cgroup {
    pub(crate) fn make(name: &str) -> Result<Cgroup, String> {
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let v2 = PathBuf::from(if unified { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/unified" }).join(name);
        let mut all = vec![v2.clone()];
        if !unified {
            all.push(Path::new("/sys/fs/cgroup/memory").join(name));
        }
        for dir in &all {
            std::fs::create_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        }
        Ok(Cgroup { v2, all, tasks: Vec::new(), baseline_ns: 0 })
    }

    /// A task that burns all it gets.
    pub(crate) fn burn(&mut self) {
        self.task("read go; while :; do :; done");
    }

    /// A task of one's own, for a shell.
    pub(crate) fn task(&mut self, script: &str) {
        let child = Command::new("/bin/sh").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap();
        for dir in &self.all {
            std::fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        self.tasks.push(child);
    }

    pub(crate) fn go(&mut self) {
        self.tasks.iter_mut().for_each(|task| drop(task.stdin.take()));
    }

    /// The kernel's own counter, in nanoseconds.
    pub(crate) fn cpu_ns(&self) -> u128 {
        let text = std::fs::read_to_string(self.v2.join("cpu.stat")).unwrap();
        let usec: u128 = text.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap().parse().unwrap();
        usec * 1_000
    }

    /// What was used since the start, in nanoseconds.
    pub(crate) fn used_ns(&self) -> u128 {
        self.cpu_ns() - self.baseline_ns
    }

    /// Waits until the task waits for its word, and its counter stands still.
    pub(crate) fn note_baseline(&mut self) {
        let waits = |task: &Child| std::fs::read_to_string(format!("/proc/{}/stat", task.id())).unwrap().contains(") S ");
        loop {
            let before = self.cpu_ns();
            std::thread::sleep(Duration::from_millis(30));
            if self.tasks.iter().all(waits) && before == self.cpu_ns() {
                self.baseline_ns = before;
                return;
            }
        }
    }

    pub(crate) fn is_frozen(&self) -> bool {
        std::fs::read_to_string(self.v2.join("cgroup.events")).unwrap().contains("frozen 1")
    }

    pub(crate) fn end_tasks(&mut self) {
        for task in &mut self.tasks {
            task.kill().unwrap();
            task.wait().unwrap();
        }
        self.tasks.clear();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        drop(std::fs::write(self.v2.join("cgroup.freeze"), "0"));
        for task in &mut self.tasks {
            drop(task.kill());
            drop(task.wait());
        }
        for dir in &self.all {
            drop(std::fs::remove_dir(dir));
        }
    }
}

/// So many, or why not.
pub(crate) fn cgroups(prefix: &str, count: usize) -> Option<Vec<Cgroup>> {
    let name = |nth| format!("meterd-test-{prefix}-{}-{nth}", std::process::id());
    let made: Result<Vec<Cgroup>, String> = (0..count).map(|nth| Cgroup::make(&name(nth))).collect();
    crate::support::need("kernel", made)
}

pub(crate) fn paths(cgroup: &Cgroup) -> Vec<String> {
    cgroup.all.iter().map(|dir| dir.display().to_string()).collect()
}
