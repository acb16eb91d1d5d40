//! One run: first everything may fail, then nothing does, and what must be true then is looked at.

use std::fmt;

use meterd::domain::id::AccountId;
use meterd::domain::time::Nanos;
use meterd::domain::wire::{AccountPolicy, OnExhaustion};

use crate::bank::Bank;
use crate::machine::CPUS;
use crate::restore::PutBack;
use crate::rng::Rng;
use crate::world::{Ev, Faults, MS, Medium, S, World};

/// The greatest burn of a machine, in nano-credits per second: a thousandth for each nanosecond of each CPU.
pub(crate) const BURN_MAX: i128 = CPUS as i128 * 1_000_000;

/// How many machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// Two to six.
    Small,
}

/// What a run did, for people and for comparing two runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) nodes: usize,
    pub(crate) booked: u64,
    pub(crate) receipts: u64,
    pub(crate) settled_nano: i128,
    pub(crate) unfunded_nano: i128,
    pub(crate) wiped: usize,
    pub(crate) dead: usize,
    pub(crate) restores: usize,
}

impl Outcome {
    pub(crate) fn add(&mut self, other: &Outcome) {
        self.nodes += other.nodes;
        self.booked += other.booked;
        self.receipts += other.receipts;
        self.settled_nano += other.settled_nano;
        self.unfunded_nano += other.unfunded_nano;
        self.wiped += other.wiped;
        self.dead += other.dead;
        self.restores += other.restores;
    }
}

pub(crate) fn tell(seed: u64, size: Size) -> Outcome {
    let Size::Small = size;
    let mut rng = Rng::new(seed);
    let nodes = usize::try_from(rng.range(2, 7)).unwrap();
    let valid_for = if rng.chance(500) { Nanos::from_secs(rng.range(10, 60)) } else { Nanos::from_secs(600) };
    // A clock may be wrong by a thousandth; then what a stop takes, and next to nothing.
    let close_after = Nanos(valid_for.0 + valid_for.0 / 500 + rng.range(200 * MS, 5 * S));
    let mut bank = Bank::new(close_after, valid_for);
    let mut accounts: Vec<AccountId> = (0..rng.range(1, 4)).map(|index| format!("account-{index}").parse().unwrap()).collect();
    let shared = accounts.len();
    let gangs = if rng.chance(300) { rng.range(1, 3) } else { 0 };
    accounts.extend((0..gangs).map(|index| format!("gang-{index}").parse::<AccountId>().unwrap()));
    for id in &accounts {
        let on_exhaustion = rng.pick(&[OnExhaustion::Freeze, OnExhaustion::Freeze, OnExhaustion::Terminate, OnExhaustion::Kill]);
        bank.open(id, AccountPolicy { on_exhaustion, grace: Nanos::from_secs(2), ..AccountPolicy::default() });
    }
    let mut world = World::new(rng, bank, accounts, nodes);
    world.sweep_every = world.rng.range(S, 10 * S);
    world.shared = shared;
    let long = Nanos::from_secs(600) <= valid_for && 0 < gangs && world.rng.chance(400);
    let fades = valid_for < Nanos::from_secs(600) && world.rng.chance(300);
    let length = match (long, fades) {
        (true, _) => world.rng.range(600 * S, 900 * S),
        (_, true) => world.rng.range(150 * S, 240 * S),
        _ => world.rng.range(30 * S, 240 * S),
    };
    world.noise_until = 10 * S + length;
    plan(&mut world, length, if long || fades { 100 } else { 1 });
    if fades {
        // What it holds lasts until it lapses, and the authority has waited for that before all is calm again.
        let (n, at) = (usize::try_from(world.rng.below(nodes as u64)).unwrap(), world.rng.range(12 * S, 40 * S));
        world.after(at, Ev::Fade(n));
    }
    world.run_until(10 * S + length);
    calm(&mut world);
    // Whoever is silent for good is closed in this time; whatever is left is used up or given back.
    let silence = close_after.0 + 60 * S;
    let end = world.now + silence;
    world.run_until(end);
    if world.bank.standing.recovers() {
        let end = world.now + silence;
        world.run_until(end);
    }
    // Epochs that the end of a recovery found void spoke until then: their silence begins there.
    let end = world.bank.standing.over_since().0 + silence;
    world.run_until(end);
    the_exhausted_stand_still(&mut world);
    world.the_gangs_stand_together();
    for account in 0..world.accounts.len() {
        world.after(MS, Ev::TopUp(account, 1_000_000_000_000_000));
    }
    let end = world.now + 60 * S;
    world.run_until(end);
    the_funded_run(&world);
    end_all(&mut world);
    let end = world.now + 120 * S;
    world.run_until(end);
    the_books_balance(&world);
    world.the_gangs_have_one_bill();
    Outcome {
        nodes,
        booked: world.bank.booked,
        receipts: world.audit.receipts,
        settled_nano: world.bank.accounts.values().map(|account| account.settled.nano()).sum(),
        unfunded_nano: (0..nodes).map(|n| world.audit.unfunded(n)).sum(),
        wiped: world.machines.iter().filter(|machine| machine.wiped).count(),
        dead: world.machines.iter().filter(|machine| machine.dead).count(),
        restores: world.bank.standing.restores,
    }
}

/// Jobs, people and faults of the first part; each payment is so many times as large as an ordinary one.
fn plan(world: &mut World, length: u64, riches: i128) {
    let mut some = |most: u64| if world.rng.chance(500) { world.rng.below(most) } else { 0 };
    world.faults = Faults {
        loss: some(300),
        doubled: some(300),
        slow: some(200),
        late: some(60),
        stall: some(50),
        dies_asking: some(20),
        way_ms: 40 + some(6_000),
    };
    world.calm = false;
    let nodes = world.machines.len();
    world.plan_gangs(length);
    for account in 0..world.accounts.len() {
        let nano = riches * i128::from(world.rng.range(1, 400_000_000));
        world.after(MS, Ev::TopUp(account, nano));
        for _ in 0..world.rng.below(4) {
            let (at, nano) = (world.rng.below(length), i128::from(world.rng.range(1, 200_000_000)));
            world.after(at, Ev::TopUp(account, nano));
        }
    }
    for n in 0..nodes {
        for _ in 0..world.rng.range(1, 4) {
            let at = world.rng.below(length / 2);
            world.after(at, Ev::NewWork(n));
        }
        for _ in 0..world.rng.below(5) {
            let at = world.rng.below(length);
            let what = match world.rng.below(16) {
                0..=3 => Ev::Crash(n),
                4 | 5 => Ev::Reboot(n, Medium::Kept),
                6 => Ev::Reboot(n, Medium::Lost),
                7 => Ev::Exit(n, 0),
                8..=10 => Ev::Cut(n, world.rng.range(S, 90 * S)),
                11 => Ev::CutAll(world.rng.range(S, 60 * S)),
                12 | 13 => Ev::ClockStep(n, step_ms(world)),
                _ if 0 < world.machines[n].gangs => Ev::Cut(n, world.rng.range(S, 90 * S)), // what its parts use is known
                _ => Ev::Rate(n),
            };
            world.after(at, what);
        }
    }
    if world.rng.chance(200) {
        let (n, at) = (usize::try_from(world.rng.below(nodes as u64)).unwrap(), world.rng.below(length));
        world.after(at, Ev::Die(n));
    }
    if world.rng.chance(150) {
        let n = usize::try_from(world.rng.below(nodes as u64)).unwrap();
        world.machines[n].liar = world.machines[n].gangs == 0;
    }
    for _ in 0..world.rng.below(4) {
        let (at, down) = (world.rng.below(length), world.rng.range(100 * MS, 30 * S));
        world.after(at, Ev::BankDown(down));
    }
    if world.rng.chance(200) {
        let (at, times) = (world.rng.below(length), u8::try_from(world.rng.range(5, 30)).unwrap());
        world.after(at, Ev::Flap(times));
    }
    if world.rng.chance(200) {
        let (at, by_ms) = (world.rng.below(length), step_ms(world));
        world.after(at, Ev::BankClockStep(by_ms));
    }
    if world.rng.chance(200) {
        let (copied, put_back) = (world.rng.below(length), world.rng.below(length));
        let how = world.rng.pick(&[PutBack::Told, PutBack::Silently]);
        world.after(copied.min(put_back), Ev::BackUp);
        world.after(copied.max(put_back), Ev::PutBack(how));
    }
    world.after(10 * S, Ev::Sweep);
}

/// A date is set: by up to three hours, either way.
fn step_ms(world: &mut World) -> i64 {
    i64::try_from(world.rng.below(21_600_000)).unwrap() - 10_800_000
}

fn calm(world: &mut World) {
    world.calm = true;
    world.calm_since = world.now;
    world.machines.iter_mut().for_each(|machine| machine.cut_until = 0);
    if !world.bank.up {
        world.after(MS, Ev::BankUp);
    }
    for n in 0..world.machines.len() {
        let life = world.machines[n].life;
        world.after(2 * MS, Ev::Restart(n, life));
        let rate = world.rng.range(200, 2_000);
        let mono = world.machines[n].now(world.now).mono.0;
        for work in &mut world.machines[n].works {
            work.advance(mono);
            work.rate_milli = rate;
        }
    }
}

/// What liveness means once nothing fails: whose account is empty stands still.
fn the_exhausted_stand_still(world: &mut World) {
    for (index, id) in world.accounts.clone().iter().enumerate() {
        let account = &world.bank.accounts[id];
        let in_hand: i128 = account.epochs.values().map(|epoch| epoch.escrow().nano()).sum();
        if account.available().is_positive() || 0 < in_hand {
            continue;
        }
        for (n, machine) in world.machines.iter().enumerate().filter(|(_, machine)| !machine.dead && !machine.liar) {
            for work in machine.works.iter().filter(|work| work.account == index && work.attempt.is_some()) {
                assert!(!work.runs(), "node {n}: {} runs, and {id} has nothing left", work.name);
            }
        }
    }
}

/// … and whose account is full runs.
fn the_funded_run(world: &World) {
    for (n, machine) in world.machines.iter().enumerate().filter(|(_, machine)| !machine.dead && !machine.liar) {
        for work in machine.works.iter().filter(|work| !work.over) {
            assert!(work.attempt.is_some(), "node {n}: {} was not started", work.name);
            let said = || {
                machine
                    .turn
                    .as_ref()
                    .and_then(|turn| turn.agent().accounts.get(&world.accounts[work.account]))
                    .map(|account| &account.grant)
            };
            let asked = || machine.turn.as_ref().map(|turn| &turn.agent().outstanding);
            assert!(work.runs(), "node {n}: {} stands still, and its account is full: {:?}, {:?}", work.name, said(), asked());
        }
    }
}

fn end_all(world: &mut World) {
    for n in 0..world.machines.len() {
        for index in 0..world.machines[n].works.len() {
            if !world.machines[n].dead && !world.machines[n].works[index].over {
                world.after(MS, Ev::Exit(n, index));
            }
        }
    }
}

/// All is over: nothing is held, every node was charged what its jobs drew, and every job what it used.
fn the_books_balance(world: &World) {
    let (mut unfunded, mut lost) = (0, 0);
    for (n, machine) in world.machines.iter().enumerate().filter(|(_, machine)| !machine.liar) {
        let settled = world.bank.settled_of(&machine.epochs);
        let (kept, all) = world.audit.drawn(n);
        let shortfall: i128 = machine
            .epochs
            .iter()
            .flat_map(|epoch| world.bank.accounts.values().filter_map(|account| account.epochs.get(epoch)))
            .map(|epoch| epoch.shortfall.nano())
            .sum();
        if machine.wiped || machine.dead {
            assert!(settled <= all, "node {n} is charged {settled}, and its jobs drew {all}");
        } else if 0 < world.bank.standing.restores {
            assert!(settled + shortfall <= kept, "node {n}: charged {settled}, short {shortfall}; its jobs drew {kept}");
            lost += kept - settled - shortfall;
        } else {
            assert_eq!(settled + shortfall, kept, "node {n}: charged {settled}, short {shortfall}; its jobs drew {kept}");
        }
        unfunded += world.audit.unfunded(n);
        for work in &machine.works {
            let Some(told) = work.attempt.and_then(|attempt| world.audit.told(n, attempt)) else { continue };
            let used = i128::from(work.cpu_ns() - world.audit.begun(n, &work.name));
            let beyond = told.charge - used / 1_000;
            assert!(
                beyond <= 1 && (work.cut_off || -1 <= beyond),
                "node {n}: {} used {used} ns of CPU time and costs {}",
                work.name,
                told.charge
            );
            assert_eq!(told.drawn + told.unfunded, told.charge, "node {n}: {} is settled", work.name);
        }
        if !machine.dead {
            let held: i128 = machine
                .epochs
                .iter()
                .flat_map(|epoch| world.bank.accounts.values().filter_map(|account| account.epochs.get(epoch)))
                .map(|epoch| epoch.escrow().nano())
                .sum();
            assert_eq!(held, 0, "node {n} holds what nobody uses");
        }
    }
    let lost_at_most = world.bank.standing.lost_at_most();
    assert!(lost <= lost_at_most, "the store that was put back lost {lost}, and had granted {lost_at_most} since the copy");
    // Past zero: a quarter of a second of each machine's greatest burn, for each time that an account ran dry on it.
    let stops = i128::try_from(world.machines.len() * world.accounts.len() * 64).unwrap();
    assert!(unfunded <= stops * BURN_MAX / 4, "{unfunded} ran past zero");
}

/// How a pool ends.
pub(crate) struct Drained {
    lasted_s: u64,
    questions: u64,
    pub(crate) stranded_ppm: i128,
    /// From the first job to the last one that stood still.
    spread_ms: u64,
    messages_per_node: u64,
    messages_per_s: u64,
    past_zero_ppm: i128,
}

impl fmt::Display for Drained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} s, {} questions; stranded {} ppm of the balance when the last job froze; first to last node {} ms; past zero {} ppm; {} messages a \
             node, {} a second",
            self.lasted_s,
            self.questions,
            self.stranded_ppm,
            self.spread_ms,
            self.past_zero_ppm,
            self.messages_per_node,
            self.messages_per_s
        )
    }
}

/// A fleet of machines on one account of so many minutes' burn, until the last job stands still.
pub(crate) fn drain(seed: u64, nodes: usize, minutes: u64) -> Drained {
    let mut rng = Rng::new(seed);
    let id: AccountId = "pool".parse().unwrap();
    let mut bank = Bank::new(Nanos::from_secs(667), Nanos::from_secs(600));
    bank.open(&id, AccountPolicy::default());
    let rates: Vec<u64> = (0..nodes).map(|_| rng.range(50, 7_000)).collect();
    let balance = rates.iter().map(|rate| i128::from(*rate) * 1_000).sum::<i128>() * i128::from(minutes * 60);
    let mut world = World::new(rng, bank, vec![id.clone()], nodes);
    world.after(1, Ev::TopUp(0, balance));
    for (n, rate) in rates.into_iter().enumerate() {
        world.add_work(n, 0, rate);
    }
    let began = world.now;
    world.calm_since = 0;
    let mut first = None;
    loop {
        let next = world.now + 100 * MS;
        world.run_until(next);
        let running = world.machines.iter().flat_map(|machine| &machine.works).filter(|work| work.runs()).count();
        if running < nodes && first.is_none() && began + 60 * S < world.now {
            first = Some(world.now);
        }
        if running == 0 {
            break;
        }
        assert!(world.now < began + 2 * minutes * 60 * S, "{running} of {nodes} still run");
    }
    let account = &world.bank.accounts[&id];
    let in_hand: i128 = world.machines.iter().map(|machine| hand(machine, &id)).sum();
    let spent: i128 = world.machines.iter().flat_map(|machine| &machine.works).map(|work| i128::from(work.cpu_ns()) / 1_000).sum();
    let sent: u64 = world.machines.iter().map(|machine| machine.sent).sum();
    Drained {
        lasted_s: (world.now - began) / S,
        questions: world.bank.booked,
        stranded_ppm: (account.available().nano() + in_hand) * 1_000_000 / balance,
        spread_ms: (world.now - first.unwrap_or(world.now)) / MS,
        messages_per_node: sent / nodes as u64,
        messages_per_s: sent * S / (world.now - began),
        past_zero_ppm: (spent - balance).max(0) * 1_000_000 / balance,
    }
}

/// What a node holds and has not spent.
fn hand(machine: &crate::machine::Machine, id: &AccountId) -> i128 {
    let Some(turn) = &machine.turn else { return 0 };
    let grant = turn.agent().accounts.get(id).map(|account| &account.grant);
    grant.map_or(0, |grant| grant.granted.minus(grant.returned).minus(grant.spent).nano())
}
