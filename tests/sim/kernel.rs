//! The simulated machine's jobs, with what they truly used. All instants are nanoseconds of the machine's monotonic clock.

use meterd::domain::act::{CgroupDir, SlurmJob, Target};
use meterd::domain::usage::HeldGpu;

/// Where a job's tasks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Named,
    Own,
    Slurm,
}

/// A change of state that no look has shown.
#[derive(Clone, Copy, Debug)]
struct Change {
    number: u64,
    at: u64,
}

/// When somebody looked, and how many changes there had been.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    at: u64,
    changes: u64,
}

/// One incarnation of one cgroup and its true history.
#[derive(Clone, Debug)]
pub(crate) struct KernelJob {
    pub(crate) name: String,
    pub(crate) account: usize,
    pub(crate) node: usize,
    pub(crate) place: Place,
    pub(crate) path: String,
    pub(crate) inode: u64,
    pub(crate) gpus: Vec<HeldGpu>,
    pub(crate) made: bool,
    pub(crate) gone: bool,
    pub(crate) populated: bool,
    pub(crate) rate_milli: u64,
    pub(crate) memory: u64,
    pub(crate) memory_min: u64,
    pub(crate) memory_max: u64,
    /// CPU time in thousandths of nanoseconds.
    cpu_milli_ns: u128,
    pub(crate) at: u64,
    pub(crate) freeze_bit: bool,
    pub(crate) frozen_from: Option<u64>,
    pub(crate) frozen_by_us: bool,
    pub(crate) frozen_by_other: bool,
    /// An other's freeze fell into a time in which the agent could not tell it from its own.
    pub(crate) in_doubt: bool,
    /// Populated and not frozen.
    pub(crate) run_least: u128,
    /// The same, with stretches without tasks that were followed by tasks.
    pub(crate) run_most: u128,
    empty_run: u128,
    /// The true counter at every instant that mattered.
    history: Vec<(u64, u64)>,
    /// A change of state that no sample has shown yet.
    unseen: Vec<Change>,
    pub(crate) changes: u64,
    pub(crate) late_ns: u128,
    pub(crate) exit_for_good: bool,
    pub(crate) stop_said: bool,
    pub(crate) ignores_term: bool,
    was_populated: bool,
}

impl KernelJob {
    pub(crate) fn new(name: &str, account: usize, node: usize, place: Place, inode: u64, at: u64) -> KernelJob {
        KernelJob {
            name: name.to_owned(),
            account,
            node,
            place,
            path: format!("/sys/fs/cgroup/sim/{node}/{name}"),
            inode,
            gpus: Vec::new(),
            made: place != Place::Slurm,
            gone: false,
            populated: place == Place::Named,
            rate_milli: 0,
            memory: 0,
            memory_min: u64::MAX,
            memory_max: 0,
            cpu_milli_ns: 0,
            at,
            freeze_bit: false,
            frozen_from: None,
            frozen_by_us: false,
            frozen_by_other: false,
            in_doubt: false,
            run_least: 0,
            run_most: 0,
            empty_run: 0,
            history: vec![(at, 0)],
            unseen: Vec::new(),
            changes: 0,
            late_ns: 0,
            exit_for_good: false,
            stop_said: false,
            ignores_term: false,
            was_populated: place == Place::Named,
        }
    }

    pub(crate) fn target(&self) -> Target {
        let dir = CgroupDir { path: self.path.clone(), inode: self.inode };
        match self.place {
            Place::Named => Target::Cgroups(vec![dir]),
            Place::Own => Target::OwnCgroups(vec![dir]),
            Place::Slurm => Target::SlurmJob(SlurmJob { job_id: self.inode, sluid: None }),
        }
    }

    /// Is this order's target this very cgroup?
    pub(crate) fn is(&self, target: &Target) -> bool {
        *target == self.target()
    }

    pub(crate) fn exists(&self) -> bool {
        self.made && !self.gone
    }

    pub(crate) fn cpu_ns(&self) -> u64 {
        u64::try_from(self.cpu_milli_ns / 1_000).unwrap_or(u64::MAX)
    }

    /// The true counter at an instant at which somebody looked.
    pub(crate) fn cpu_ns_at(&self, mono: u64) -> Option<u64> {
        self.history.iter().rev().find(|(at, _)| *at == mono).map(|(_, cpu)| *cpu)
    }

    pub(crate) fn is_frozen(&self, mono: u64) -> bool {
        self.frozen_from.is_some_and(|from| from <= mono)
    }

    /// Lets time pass up to `mono`.
    pub(crate) fn advance(&mut self, mono: u64) {
        if mono <= self.at {
            return;
        }
        let until = self.frozen_from.map_or(mono, |from| from.clamp(self.at, mono));
        let ran = u128::from(until - self.at);
        if self.exists() && self.populated {
            self.cpu_milli_ns += ran * u128::from(self.rate_milli);
            self.run_least += ran;
            self.run_most += ran;
            // Held by another's hand: charged while its account has something, which only the agent knows.
            self.run_most += if self.frozen_by_other { u128::from(mono - until) } else { 0 };
        } else if !self.gone && self.was_populated {
            self.empty_run += ran;
        } else if self.exists() {
            self.run_most += ran; // named before its tasks came: held
        }
        self.at = mono;
        let cpu = self.cpu_ns();
        self.history.push((mono, cpu));
    }

    pub(crate) fn changed(&mut self, mono: u64) {
        self.changes += 1;
        self.unseen.push(Change { number: self.changes, at: mono });
    }

    /// Is there a change of state that no look has shown for good?
    pub(crate) fn is_unseen(&self) -> bool {
        !self.unseen.is_empty()
    }

    /// What was looked at shows all changes up to then.
    pub(crate) fn seen(&mut self, look: Look) {
        let shown = |change: &Change| change.number <= look.changes && change.at <= look.at;
        let first = self.unseen.iter().filter(|change| shown(change)).map(|change| change.at).min();
        self.late_ns += first.map_or(0, |first| u128::from(look.at - first));
        self.unseen.retain(|change| !shown(change));
    }

    /// A look now; it shows what is by then.
    pub(crate) fn look(&self, at: u64) -> Look {
        Look { at, changes: self.changes }
    }

    /// Tasks come.
    pub(crate) fn populate(&mut self, mono: u64) {
        self.advance(mono);
        self.made = true;
        self.populated = true;
        self.was_populated = true;
        self.run_most += std::mem::take(&mut self.empty_run);
        self.changed(mono);
    }

    /// What was before is not metered.
    pub(crate) fn forget_emptiness(&mut self) {
        self.empty_run = 0;
        self.was_populated = self.populated;
    }

    /// The last task goes.
    pub(crate) fn empty(&mut self, mono: u64) {
        self.advance(mono);
        if self.populated {
            self.populated = false;
            self.changed(mono);
        }
    }

    pub(crate) fn work(&mut self, mono: u64, rate_milli: u64, memory: u64) {
        self.advance(mono);
        self.rate_milli = rate_milli;
        self.memory = memory;
        self.memory_min = self.memory_min.min(memory);
        self.memory_max = self.memory_max.max(memory);
    }

    /// `1` into `cgroup.freeze`; the last task stands still at `from`.
    pub(crate) fn freeze(&mut self, mono: u64, from: u64) {
        self.advance(mono);
        if !self.freeze_bit {
            self.freeze_bit = true;
            self.frozen_from = Some(from);
            self.changed(from);
        }
    }

    pub(crate) fn thaw(&mut self, mono: u64) {
        self.advance(mono);
        if self.freeze_bit {
            // A stretch that nobody saw from either side is one in which the job ran, as far as anybody knows.
            if let Some(from) = self.frozen_from.filter(|from| *from < mono && self.unseen.iter().any(|change| change.at == *from)) {
                self.run_most += u128::from(mono - from);
            }
            self.freeze_bit = false;
            self.frozen_from = None;
            self.changed(mono);
        }
        self.frozen_by_us = false;
        self.frozen_by_other = false;
        self.in_doubt = false;
    }
}
