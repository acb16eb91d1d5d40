//! A journal's facts, made by hand: some jobs that start at once, use CPU time and memory, and end. Prices are those of the card.

use meterd::domain::act::{ProcessRoot, Target};
use meterd::domain::fact::{Fact, Opened, Row};
use meterd::domain::id::{Attempt, BootId, Epoch, Uid};
use meterd::domain::job::{Ending, Phase};
use meterd::domain::ladder::JobPolicy;
use meterd::domain::meter::Populated;
use meterd::domain::money::Credits;
use meterd::domain::outcome::{Basis, Outcome};
use meterd::domain::rates::charge::{charge, start_price};
use meterd::domain::rates::{Card, Priced, Stated, Traits};
use meterd::domain::time::{Boot, Mono, Now, Wall};
use meterd::domain::usage::Usage;

pub(crate) const CARD: &str = "card = \"made\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n\
    [[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"0.02\"\nunit = \"core-hour\"\n\
    [[line]]\nid = \"memory\"\nmeter = \"memory_charged\"\nprice = \"0.005\"\nunit = \"GiB-hour\"\n\
    [[line]]\nid = \"wall\"\nmeter = \"wall_time\"\nprice = \"0.01\"\nunit = \"hour\"\n";

pub(crate) const EPOCH: Epoch = Epoch([7; 16]);

const SECOND_NS: u64 = 1_000_000_000;

/// Numbers that look random and are the same every time.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

fn at(second: u64) -> Now {
    Now { mono: Mono(second * SECOND_NS), boot: Boot(second * SECOND_NS), wall: Wall(1_780_000_000_000 + second * 1_000) }
}

/// Hands over the facts of so many jobs over so many seconds, in order: two to begin with, one for each start, one a second, two for each end.
pub(crate) fn facts(card: &Card, jobs: u64, seconds: u64, each: &mut dyn FnMut(Fact)) {
    let mut numbers = Numbers(1);
    each(Fact::EpochOpened { epoch: EPOCH, boot: BootId([3; 16]), at: at(0) });
    each(Fact::CardAdopted { card: Box::new(card.clone()), at: at(0) });
    let traits = Traits::new();
    let stated = Stated { at: at(0).wall, traits: &traits, cpus: Some(4), memory_bytes: Some(8 << 30), ..Stated::NOTHING };
    let price = |usage: &Usage| {
        let priced = Priced { usage, gpus: &[], before: &[], stated, ended: None };
        charge(card, &priced).expect("a price")
    };
    for attempt in 1..=jobs {
        each(Fact::JobOpened(Box::new(opened(attempt, card))));
    }
    let mut usages: Vec<Usage> = (0..jobs).map(|_| Usage { job_starts: 1, ..Usage::default() }).collect();
    for second in 1..=seconds {
        let mut rows = Vec::new();
        for (usage, attempt) in usages.iter_mut().zip(1..) {
            usage.cpu_ns += u128::from(numbers.below(4 * SECOND_NS));
            usage.memory_byte_ns += u128::from(numbers.below(8 << 30)) * u128::from(SECOND_NS);
            usage.wall_ns += u128::from(SECOND_NS);
            rows.push(row(attempt, second, usage, price(usage).cost));
        }
        each(Fact::Counted { wall: at(second).wall, rows });
    }
    for attempt in (1..=jobs).map(Attempt) {
        let ending = Ending { outcome: Outcome::Completed, exit_code: Some(0) };
        each(Fact::JobEnded { attempt, at: at(seconds), ending, basis: Basis::ExitStatus });
        each(Fact::JobClosed { attempt });
    }
}

fn opened(attempt: u64, card: &Card) -> Opened {
    let traits = Traits::new();
    let stated = Stated { at: at(0).wall, traits: &traits, cpus: Some(4), memory_bytes: Some(8 << 30), ..Stated::NOTHING };
    let price = start_price(card, &[], stated);
    Opened {
        attempt: Attempt(attempt),
        name: format!("job-{attempt}").parse().expect("a name"),
        account: format!("account-{}", attempt % 3).parse().expect("a name"),
        owner: Uid(1_000),
        target: Target::Processes(ProcessRoot { pid: 2, start_ticks: 3 }),
        gpus: Vec::new(),
        time_limit: None,
        cpus: Some(4),
        memory_bytes: Some(8 << 30),
        at: at(0),
        cpu_counter_ns: Some(0),
        memory_level_bytes: None,
        card: card.digest,
        charge: price.cost,
        drawn: Credits::ZERO,
        policy: JobPolicy::default(),
        traits: Traits::new(),
        pending: price.pending,
        oom_kills: None,
    }
}

fn row(attempt: u64, second: u64, usage: &Usage, cost: Credits) -> Row {
    Row {
        attempt: Attempt(attempt),
        at: at(second).mono,
        phase: Phase::Running,
        populated: Some(Populated::Yes),
        cpu_counter_ns: u64::try_from(usage.cpu_ns).ok(),
        memory_level_bytes: Some(1 << 30),
        cpu_ns: usage.cpu_ns,
        memory_byte_ns: usage.memory_byte_ns,
        running_ns: usage.wall_ns,
        frozen_ns: 0,
        cost,
        drawn: cost,
        memory_anon_byte_ns: 0,
        memory_anon: None,
        inner_ns: 0,
        paused_ns: 0,
        pending: Credits::ZERO,
    }
}
