//! Each meter that a card can price, by itself, brings a job to the end of its credit.

use super::*;
use crate::domain::detail::Io;
use crate::domain::id::{GpuModel, LineId};
use crate::domain::meter::DeviceTotals;
use crate::domain::rates::Traits;
use crate::domain::terms::Report;
use crate::domain::usage::HeldGpu;

const CREDITS: i128 = 5_000_000_000;
const GIB: u64 = 1 << 30;
/// No job of these lasts for longer.
const SECONDS: u64 = 30;

/// A job's whole use, each second the same: all meters but CPU time move, whatever its card prices.
struct Busy {
    bench: Bench,
    began: Mono,
}

impl Busy {
    fn start(card: &Card) -> Busy {
        let mut bench = Bench::new();
        bench.step(Event::CardArrived(Box::new(card.clone()), Vec::new()));
        bench.durable();
        bench.free = CREDITS;
        let held = HeldGpu { gpu: "GPU-0".parse().unwrap(), model: GpuModel::new("NVIDIA H100") };
        let gpus = if card.prices(Meter::GpuHeld) { vec![held] } else { Vec::new() };
        let wanted = Wanted {
            name: "job".parse().unwrap(),
            account: "a".parse().unwrap(),
            owner: Uid::ROOT,
            target: Target::Cgroups(vec![CgroupDir { path: "/sys/fs/cgroup/job".to_owned(), inode: 5 }]),
            time_limit: None,
            cpus: None,
            memory_bytes: None,
            policy: JobPolicy::default(),
            traits: Traits::new(),
            storage_bytes: Some(GIB),
            bid: None,
            gang: None,
        };
        let mut busy = Busy { began: bench.now.mono, bench };
        let sample = JobSample { attempt: Attempt(u64::MAX), ..busy.sample() };
        let at = busy.bench.now;
        busy.bench.step(Event::StartAsked(Box::new(PendingStart { caller: 1, wanted, gpus, sample, at, asked: None })));
        busy.settle();
        busy
    }

    fn sample(&self) -> JobSample {
        let at = self.bench.now.mono;
        let ns = at.since(self.began).0;
        let seconds = ns / 1_000_000_000;
        let gpu = DeviceTotals {
            at,
            since: self.began,
            busy_ns: Reading::Seen(ns),
            memory_byte_ns: Reading::Seen(u128::from(GIB) * u128::from(ns)),
            energy_mj: Reading::Seen(100_000 * seconds),
        };
        let io = Io { read_bytes: GIB * seconds, write_bytes: 0, read_ops: seconds, write_ops: 0 };
        JobSample {
            memory_bytes: Reading::Seen(GIB),
            memory_anon_bytes: Some(Reading::Seen(GIB)),
            detail: Some(Box::new(Detail { io: Reading::Seen(io), ..Detail::missing(&Missing::NotSupported) })),
            gpus: Some(Box::new(Reading::Seen([("GPU-0".parse().unwrap(), gpu)].into()))),
            ..self.bench.sample(Attempt(1))
        }
    }

    fn settle(&mut self) {
        self.bench.durable();
        let outstanding = self.bench.turn.agent().outstanding.as_ref().map(|outstanding| outstanding.request.request);
        if self.bench.question().is_some_and(|question| Some(question.request) == outstanding) {
            self.bench.answer();
            self.bench.durable();
        }
    }

    /// One second of it, a count and an event of its hook's among it. What has no price is refused, and that is all.
    fn live_a_second(&mut self, second: u64) {
        self.bench.pass(1_000);
        let name: LineId = "own".parse().unwrap();
        let event = Report::Event { name: name.clone(), id: format!("e{second}").parse().unwrap() };
        for report in [Report::Counter { name, total: second }, event] {
            self.bench.step(Event::Reported { caller: 9, name: "job".parse().unwrap(), report });
        }
        let sample = self.sample();
        self.bench.step(Event::Looked(vec![sample]));
        self.settle();
    }

    /// After how many seconds its freeze was ordered.
    fn seconds_to_freeze(&mut self) -> Option<u64> {
        (0..=SECONDS).find(|second| {
            if 0 < *second {
                self.live_a_second(*second);
            }
            self.bench.orders().contains(&Act::Freeze)
        })
    }
}

/// A card whose lines price CPU time, of which the job uses none, and this meter.
fn card(meter: Meter, price: &str) -> Card {
    let unit = |meter| match meter {
        Meter::CpuTime => "core-second",
        Meter::MemoryCharged | Meter::MemoryAnon | Meter::GpuMemory | Meter::Storage => "GiB-second",
        Meter::GpuHeld | Meter::GpuBusy => "gpu-second",
        Meter::WallTime => "second",
        Meter::JobStarts => "start",
        Meter::Energy => "J",
        Meter::IoBytes => "GiB",
        Meter::Counter => "count",
        Meter::Events => "event",
    };
    let line = |meter: Meter, price: &str| {
        let name = if meter.is_named() { "name = \"own\"\n" } else { "" };
        format!("[[line]]\nid = \"{meter}\"\nmeter = \"{meter}\"\n{name}price = \"{price}\"\nunit = \"{}\"\n", unit(meter))
    };
    let mut lines = line(meter, price);
    if meter != Meter::CpuTime {
        lines += &line(Meter::CpuTime, "1");
    }
    // A GPU is given to a job where all of its meters have a price.
    let others = Meter::OF_GPUS.into_iter().filter(|other| meter.is_of_gpus() && *other != meter);
    lines.extend(others.map(|other| line(other, "0")));
    let text = format!("card = \"every\"\nversion = 2\neffective_from = \"2026-01-01T00:00:00Z\"\n{lines}");
    Card::parse(&text, "card.toml").unwrap_or_else(|mistakes| panic!("{meter}: {mistakes:?}"))
}

/// A spending cap knew the prices of many meters and looked at one.
#[test]
fn f26_each_meter_by_itself_brings_a_job_to_the_end_of_its_credit() {
    for meter in Meter::ALL.into_iter().filter(|meter| *meter != Meter::CpuTime) {
        let price = match meter {
            Meter::JobStarts => "5",
            Meter::Energy => "0.01",
            _ => "1",
        };
        let mut busy = Busy::start(&card(meter, price));
        let after = busy.seconds_to_freeze();
        // A start is paid at once. The rest are used at a credit a second; what comes in steps of a second may take it a step beyond.
        let expected = if meter == Meter::JobStarts { 0..=0 } else { 4..=6 };
        assert!(after.is_some_and(|second| expected.contains(&second)), "{meter}: {after:?}");
        let charge = busy.bench.job().charge.nano();
        assert!((CREDITS - 1_000_000_000..=CREDITS + 1_000_000_000).contains(&charge), "{meter}: {charge}");

        let mut free = Busy::start(&card(meter, "0"));
        assert_eq!(free.seconds_to_freeze(), None, "{meter} at no price");
        assert_eq!(free.bench.job().charge, Credits::ZERO, "{meter} at no price");
    }
}

/// And CPU time, which the others are held against.
#[test]
fn f26_a_job_that_uses_cpu_time_alone_comes_to_the_end_of_its_credit() {
    let mut busy = Busy::start(&card(Meter::CpuTime, "1"));
    let after = (1..=SECONDS).find(|second| {
        busy.bench.cpu_ns += 1_000 * MS;
        busy.live_a_second(*second);
        busy.bench.orders().contains(&Act::Freeze)
    });
    assert!(after.is_some_and(|second| (4..=6).contains(&second)), "{after:?}");
}
