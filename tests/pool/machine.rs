//! One simulated machine: its clock, its jobs, its disk, and the agent that runs on it.

use std::collections::BTreeSet;

use meterd::domain::act::{CgroupDir, Target};
use meterd::domain::agent::{Agent, Settings};
use meterd::domain::batch::Batch;
use meterd::domain::enforcement::Enforcement;
use meterd::domain::fact::Fact;
use meterd::domain::gang::Gang;
use meterd::domain::id::{Attempt, BootId, Epoch};
use meterd::domain::ladder::{Blast, Ladder};
use meterd::domain::meter::{Frozen, Host, JobSample, Missing, Populated, Reading};
use meterd::domain::time::{Boot, Mono, Nanos, Now, Wall};
use meterd::domain::turn::Turn;

use crate::rng::Rng;
use crate::world::S;

pub(crate) const CPUS: u32 = 8;

/// A job in a cgroup of its own; all that it does is use CPU time at a steady rate.
#[expect(clippy::struct_excessive_bools, reason = "what is true of a job in the world's own view, each by itself")]
pub(crate) struct Work {
    pub(crate) name: String,
    pub(crate) account: usize,
    pub(crate) inode: u64,
    /// Thousandths of a core.
    pub(crate) rate_milli: u64,
    milli_ns: u64,
    at: u64,
    pub(crate) frozen: bool,
    pub(crate) over: bool,
    pub(crate) attempt: Option<Attempt>,
    /// Its start waits for an answer.
    pub(crate) asked: bool,
    /// Of which job on several machines it is a part.
    pub(crate) gang: Option<Gang>,
    /// When its start was admitted, on the fleet's clock.
    pub(crate) begun_at: u64,
    /// Of a part: when it was last heard and looked at, on the fleet's clock.
    pub(crate) measured_at: u64,
    /// Of a part that ran dry and froze by itself: the version that it had heard then.
    pub(crate) dry_under: Option<u64>,
    /// The call that reports its stop, until that is answered.
    pub(crate) stopping: Option<u64>,
    /// Its boot ended before its end was on the disk: what it used last is known to nobody.
    pub(crate) cut_off: bool,
}

impl Work {
    pub(crate) fn target(&self) -> Target {
        Target::Cgroups(vec![CgroupDir { path: format!("/sys/fs/cgroup/fleet/{}", self.name), inode: self.inode }])
    }

    pub(crate) fn cpu_ns(&self) -> u64 {
        self.milli_ns / 1_000
    }

    /// It runs once its start is admitted: its scheduler waits for that.
    pub(crate) fn runs(&self) -> bool {
        self.attempt.is_some() && !self.frozen && !self.over
    }

    pub(crate) fn advance(&mut self, mono: u64) {
        if self.runs() {
            self.milli_ns += self.rate_milli * mono.saturating_sub(self.at);
        }
        self.at = self.at.max(mono);
    }
}

/// What is durable of an agent.
#[derive(Default)]
pub(crate) struct Disk {
    checkpoint: Option<Vec<u8>>,
    facts: Vec<Vec<u8>>,
    waiting: Vec<Batch>,
    writing: Vec<Batch>,
}

impl Disk {
    pub(crate) fn submit(&mut self, batch: Batch) {
        self.waiting.push(batch);
    }

    /// Begins to write what waits; false if there is nothing to do.
    pub(crate) fn begin(&mut self) -> bool {
        if !self.writing.is_empty() || self.waiting.is_empty() {
            return false;
        }
        self.writing = std::mem::take(&mut self.waiting);
        true
    }

    /// It is durable, up to this row.
    pub(crate) fn finish(&mut self) -> u64 {
        let mut last = 0;
        for batch in std::mem::take(&mut self.writing) {
            last = self.keep(batch);
        }
        last
    }

    fn keep(&mut self, batch: Batch) -> u64 {
        let last = batch.last_seq();
        self.facts.extend(batch.rows.into_iter().map(|row| row.bytes));
        if let Some(checkpoint) = batch.checkpoint {
            self.checkpoint = Some(checkpoint);
            self.facts.clear();
        }
        last
    }

    /// Some of what was being written has become durable without anybody hearing of it; the rest never was.
    pub(crate) fn crash(&mut self, rng: &mut Rng) {
        let writing = std::mem::take(&mut self.writing);
        let kept = usize::try_from(rng.below(writing.len() as u64 + 1)).unwrap();
        for batch in writing.into_iter().take(kept) {
            self.keep(batch);
        }
        self.waiting.clear();
    }

    pub(crate) fn recover(&self) -> Agent {
        let mut agent = self.checkpoint.as_deref().map_or_else(Agent::default, |bytes| Agent::decode(bytes).unwrap());
        for bytes in &self.facts {
            agent.apply(&Fact::decode(bytes).unwrap());
        }
        agent
    }
}

pub(crate) struct Machine {
    pub(crate) settings: Settings,
    boot_at: u64,
    /// How much its clocks are too fast, in millionths.
    drift_ppm: i64,
    /// How much its date is wrong.
    pub(crate) wall_off_ms: i64,
    pub(crate) life: u64,
    pub(crate) turn: Option<Turn>,
    pub(crate) disk: Disk,
    pub(crate) marks: BTreeSet<Attempt>,
    pub(crate) works: Vec<Work>,
    pub(crate) wake_at: Option<u64>,
    /// No message passes before this.
    pub(crate) cut_until: u64,
    /// Until then the next answer is slow, and the line dead from its arrival on.
    pub(crate) fades_until: u64,
    /// It will never come back.
    pub(crate) dead: bool,
    /// Its disk was lost at least once.
    pub(crate) wiped: bool,
    /// Whoever has root on it sends what he likes.
    pub(crate) liar: bool,
    /// Of how many jobs on several machines it has a part.
    pub(crate) gangs: u32,
    /// All that it ever spoke under.
    pub(crate) epochs: Vec<Epoch>,
    pub(crate) sent: u64,
}

impl Machine {
    pub(crate) fn new(index: usize, rng: &mut Rng, now: u64) -> Machine {
        let settings = Settings {
            node: format!("node-{index}").parse().unwrap(),
            boot: BootId(rng.bytes16()),
            enforcement: Enforcement::Enforce,
            interval: Nanos(S),
            host: Host { cpu_count: CPUS, memory_bytes: 64 << 30 },
            ladder: Ladder { blast: Blast { end_accounts: None, ..Blast::default() }, ..Ladder::default() },
            woke_at: Boot::default(),
            provider: None,
        };
        Machine {
            settings,
            boot_at: now - rng.below(9 * S),
            drift_ppm: i64::try_from(rng.below(1_001)).unwrap() - 500,
            wall_off_ms: 0,
            life: 0,
            turn: None,
            disk: Disk::default(),
            marks: BTreeSet::new(),
            works: Vec::new(),
            wake_at: None,
            cut_until: 0,
            fades_until: 0,
            dead: false,
            wiped: false,
            liar: false,
            gangs: 0,
            epochs: Vec::new(),
            sent: 0,
        }
    }

    /// Its own clocks when the fleet's shows `at`.
    pub(crate) fn now(&self, at: u64) -> Now {
        let since = i128::from(at - self.boot_at);
        let own = u64::try_from(since + since * i128::from(self.drift_ppm) / 1_000_000).unwrap() + S;
        Now { mono: Mono(own), boot: Boot(own), wall: wall(at, self.wall_off_ms) }
    }

    /// When the fleet's clock shows what it is here at `mono`, or a moment later.
    pub(crate) fn at(&self, mono: u64) -> u64 {
        let own = i128::from(mono.saturating_sub(S));
        let since = own * 1_000_000 / (1_000_000 + i128::from(self.drift_ppm));
        self.boot_at + u64::try_from(since).unwrap() + 1
    }

    pub(crate) fn reboot(&mut self, boot: BootId, at: u64) {
        self.boot_at = at;
        self.marks.clear();
        self.works.retain(|work| work.over);
        let kept = self.disk.recover();
        let ended = |attempt| kept.jobs.values().chain(&kept.closed).any(|job| job.attempt == attempt && !job.is_live());
        self.works.iter_mut().for_each(|work| work.cut_off |= !work.attempt.is_some_and(ended));
        self.settings.boot = boot;
    }

    /// Looks at some of its jobs.
    pub(crate) fn look(&mut self, attempts: &[Attempt], at: u64) -> Vec<JobSample> {
        let mono = self.now(at).mono.0;
        attempts.iter().map(|attempt| self.look_at(*attempt, mono)).collect()
    }

    pub(crate) fn live(&self) -> Vec<Attempt> {
        let Some(turn) = &self.turn else { return Vec::new() };
        turn.agent().jobs.values().filter(|job| job.is_live()).map(|job| job.attempt).collect()
    }

    pub(crate) fn work_of(&mut self, attempt: Attempt) -> Option<&mut Work> {
        let target = &self.turn.as_ref()?.agent().jobs.get(&attempt)?.target;
        self.works.iter_mut().find(|work| work.target() == *target)
    }

    fn look_at(&mut self, attempt: Attempt, mono: u64) -> JobSample {
        match self.work_of(attempt) {
            Some(work) => sample(work, attempt, mono),
            None => JobSample {
                attempt,
                at: Mono(mono),
                cpu_ns: Reading::Missing(Missing::Vanished),
                memory_bytes: Reading::Missing(Missing::Vanished),
                populated: Reading::Missing(Missing::Vanished),
                frozen: Reading::Missing(Missing::Vanished),
                tail: None,
                memory_anon_bytes: None,
                detail: None,
                gpus: None,
            },
        }
    }
}

/// The date of somebody whose clock is off by so much.
pub(crate) fn wall(at: u64, off_ms: i64) -> Wall {
    Wall((1_800_000_000_000 + at / 1_000_000).saturating_add_signed(off_ms))
}

/// One look at one job.
pub(crate) fn sample(work: &mut Work, attempt: Attempt, mono: u64) -> JobSample {
    work.advance(mono);
    JobSample {
        attempt,
        at: Mono(mono),
        cpu_ns: Reading::Seen(work.cpu_ns()),
        memory_bytes: Reading::Seen(1 << 20),
        populated: Reading::Seen(if work.over { Populated::No } else { Populated::Yes }),
        frozen: Reading::Seen(if work.frozen { Frozen::Yes } else { Frozen::No }),
        tail: None,
        memory_anon_bytes: None,
        detail: None,
        gpus: None,
    }
}

/// A new job, not started yet.
pub(crate) fn work(name: String, account: usize, inode: u64, rate_milli: u64, mono: u64) -> Work {
    Work {
        name,
        account,
        inode,
        rate_milli,
        milli_ns: 0,
        at: mono,
        frozen: false,
        over: false,
        attempt: None,
        asked: false,
        gang: None,
        begun_at: 0,
        measured_at: 0,
        dry_under: None,
        stopping: None,
        cut_off: false,
    }
}
