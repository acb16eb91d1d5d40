//! One run: safety while everything may fail, then liveness while nothing does.

use meterd::domain::enforcement::Enforcement;
use meterd::domain::job::Ending;
use meterd::domain::ledger::ClosePolicy;
use meterd::domain::outcome::Outcome;
use meterd::domain::turn::Turn;

use crate::receipts;
use crate::tariff::Cards;
use crate::trace::Trace;
use crate::world::{CREDIT, Ev, MS, S, World};

/// Tells the story of a seed, and returns how many receipts were checked.
pub(crate) fn tell(seed: u64, trace: Trace, cards: Cards) -> usize {
    let mut world = World::new(seed, trace, cards);
    let length = world.rng.range(20 * S, 180 * S);
    plan(&mut world, length);
    world.run_until(10 * S + length);
    world.had_unread = world.faults.unread;
    calm(&mut world);
    world.run_until(world.now + 60 * S);
    exhausted_jobs_stand_still(&world);
    for owner in 0..world.owners.len() {
        world.after(MS, Ev::TopUp(owner, 100_000 * CREDIT));
    }
    world.run_until(world.now + 40 * S);
    funded_jobs_run(&world);
    for index in 0..world.jobs.len() {
        world.after(MS, Ev::Rmdir(index));
        world.after(S, Ev::Stop(index, Ending { outcome: Outcome::Unknown, exit_code: None }));
    }
    world.run_until(world.now + 60 * S);
    everything_is_settled(&mut world);
    everything_is_replayed(&world);
    check_receipts(&world)
}

fn plan(world: &mut World, length: u64) {
    let start = world.now;
    for number in 0..world.rng.range(1, 9) {
        let account = usize::try_from(world.rng.below(world.owners.len() as u64)).unwrap();
        let node = usize::try_from(world.rng.below(world.nodes.len() as u64)).unwrap();
        let at = start + S + world.rng.below(length * 2 / 3);
        let lasts = world.rng.range(S, length);
        let index = world.spawn(&format!("job-{number}"), account, node, at);
        world.plan_life(index, at, lasts);
    }
    let rare = |world: &mut World, most: u64| if world.rng.chance(500) { world.rng.below(most + 1) } else { 0 };
    let trouble =
        [rare(world, 4), rare(world, 1), rare(world, 2), rare(world, 2), rare(world, 2), rare(world, 1), rare(world, 1), rare(world, 2)];
    for (kind, count) in trouble.into_iter().enumerate() {
        for _ in 0..count {
            let at = start + world.rng.below(length);
            let node = usize::try_from(world.rng.below(world.nodes.len() as u64)).unwrap();
            let what = match kind {
                0 => Ev::Crash(node),
                1 => Ev::Reboot(node),
                2 => Ev::BankCrash,
                3 => Ev::Partition(world.rng.range(S, 60 * S)),
                4 => Ev::DiskFull(node, true),
                5 => Ev::Suspend(node),
                6 => Ev::WallStep(node),
                _ => Ev::Card,
            };
            world.at(at, what);
        }
    }
    for _ in 0..world.rng.below(5) {
        let at = start + world.rng.below(length);
        let owner = usize::try_from(world.rng.below(world.owners.len() as u64)).unwrap();
        let nano = i128::from(world.rng.below(50_000_000)) + 1;
        world.at(at, Ev::TopUp(owner, nano));
    }
    if world.rng.chance(150) {
        let at = start + world.rng.below(length);
        world.at(at, Ev::Policy(0));
    }
    if world.rng.chance(150) {
        let at = start + world.rng.below(length);
        let mode = world.rng.pick(&Enforcement::ALL);
        world.at(at, Ev::Mode(0, mode));
    }
    if world.rng.chance(100) {
        let at = start + world.rng.below(length);
        world.at(at, Ev::Confirm(0));
    }
    if let ClosePolicy::AfterSilence(_) = world.bank.close {
        for step in 0..4 {
            world.at(start + length * step / 4, Ev::Sweep);
        }
    }
}

/// From here on nothing fails, and other people leave the jobs alone.
fn calm(world: &mut World) {
    world.calm = true;
    world.trace.line(world.now, "calm");
    for n in 0..world.nodes.len() {
        world.after(0, Ev::DiskFull(n, false));
        let life = world.nodes[n].life;
        world.after(0, Ev::Restart(n, life));
        world.audit.rough(n, world.now + 20 * S);
    }
    world.after(0, Ev::BankRestart);
    for index in 0..world.jobs.len() {
        if world.jobs[index].frozen_by_other && world.jobs[index].freeze_bit && !world.jobs[index].frozen_by_us {
            world.after(0, Ev::OtherThaw(index));
        }
    }
}

fn exhausted_jobs_stand_still(world: &World) {
    for (n, node) in world.nodes.iter().enumerate() {
        let Some(agent) = node.turn.as_ref().map(Turn::agent) else { panic!("L: node {n} did not come back") };
        if agent.enforcement.unwrap_or(node.settings.enforcement) != Enforcement::Enforce {
            continue;
        }
        for job in agent.jobs.values().filter(|job| job.ended.is_none()) {
            let Some(books) = world.bank.books.accounts.get(&job.account) else { continue };
            let owner = world.owners.iter().find(|owner| owner.id == job.account);
            if owner.is_none_or(|owner| owner.policy.on_exhaustion.runs_on()) || books.available().is_positive() {
                continue;
            }
            let account = &agent.accounts[&job.account];
            let held_back = node.settings.ladder.blast.freeze_accounts.is_some() && account.allowed.is_none();
            if held_back || account.grant.policy.enforcement != Enforcement::Enforce {
                continue;
            }
            let mono = node.mono(world.now);
            if account.empty_since.is_none() {
                // What a minimum or an increment has paid for runs on with nothing left.
                assert_eq!(job.owed().nano(), 0, "L: {} owes, and nobody minds", job.account);
            }
            if account.empty_since.is_none_or(|since| mono < since.0 + S) {
                continue; // it is only just running out
            }
            let grant = &account.grant;
            let in_hand = grant.granted.nano() - grant.returned.nano() - grant.spent.nano();
            let truth = &world.jobs[world.audit.metered[&(n, job.attempt)].job];
            let grace = owner.map_or(0, |owner| owner.policy.grace.0) + 3 * S;
            if job.terminated_at.is_some_and(|at| mono < at.0 + grace) {
                continue; // it was told to end, and has that long
            }
            let runs = truth.exists() && truth.populated && !truth.is_frozen(mono);
            assert!(!(in_hand <= 0 && runs), "L: {} has nothing left, and job {} runs on", job.account, job.name);
        }
    }
}

fn funded_jobs_run(world: &World) {
    for job in world.jobs.iter().filter(|job| job.exists() && job.populated && job.frozen_by_us) {
        let node = &world.nodes[job.node];
        let live = node.turn.iter().flat_map(|turn| turn.agent().jobs.values());
        let spared = live.filter(|live| job.is(&live.target)).any(|live| live.victim.is_some());
        let excused = spared || world.audit.was_full(job.node);
        assert!(excused || !job.is_frozen(node.mono(world.now)), "L: job {} is funded, and stands still by our hand", job.name);
    }
}

fn everything_is_settled(world: &mut World) {
    for (n, node) in world.nodes.iter().enumerate() {
        let Some(turn) = &node.turn else { panic!("L: node {n} is down") };
        let open: Vec<_> = turn.agent().jobs.values().map(|job| (job.name.clone(), job.phase, job.owed())).collect();
        assert!(open.is_empty(), "L: ended jobs are not closed: {open:?}");
        assert!(turn.is_settled(), "L: node {n} has something left to say");
        assert!(turn.agent().previous.is_empty(), "L: node {n} still tells of earlier epochs");
    }
    if let ClosePolicy::AfterSilence(length) = world.bank.close {
        let mut now = crate::world::bank_now(world.now);
        now.mono = now.mono.plus(length).plus(length);
        for account in world.bank.books.accounts.values_mut() {
            let _lines = meterd::domain::ledger::sweep(account, world.bank.close, now);
        }
    }
    for (id, account) in &world.bank.books.accounts {
        let late = world.owners.iter().any(|owner| owner.id == *id && owner.late);
        assert!(late || account.held().nano() == 0, "L: {} in escrow of idle account {id}", account.held());
        let spent = world.audit.spent_on(id);
        let told = account.settled.nano() + account.shortfall.nano();
        assert_eq!(told, spent, "L: {id}: settled and shortfall against what its nodes spent");
        let drawn: i128 = world
            .audit
            .receipts
            .iter()
            .map(|closed| serde_json::from_str::<serde_json::Value>(&closed.json).unwrap_or_default())
            .filter(|receipt| receipt["account"] == id.as_str())
            .map(|receipt| receipts::nano(&receipt, "drawn"))
            .sum();
        assert_eq!(drawn, spent, "G2: {id}: what its receipts say was drawn against what its nodes spent");
        let receipts =
            world.audit.receipts.iter().map(|closed| serde_json::from_str::<serde_json::Value>(&closed.json).unwrap_or_default());
        let refunds = receipts.filter(|receipt| receipt["account"] == id.as_str()).filter(|receipt| !receipt["refund"].is_null());
        let refunded: i128 = refunds.map(|receipt| receipts::nano(&receipt["refund"], "refunded")).sum();
        let booked: i128 = account.epochs.values().map(|epoch| epoch.refunds.refunded.nano()).sum();
        assert!(booked <= refunded, "G2: {id}: {booked} given back, and {refunded} by its receipts");
        assert!(booked == refunded || account.shortfall.is_positive(), "L: {id}: {booked} of {refunded} given back");
    }
}

fn everything_is_replayed(world: &World) {
    let jobs: usize = world.nodes.iter().enumerate().map(|(n, node)| receipts::replayed(n, &node.disk, &world.audit.receipts)).sum();
    assert_eq!(jobs, world.audit.receipts.len(), "G9: the beginning of every job that has a receipt was recomputed");
}

fn check_receipts(world: &World) -> usize {
    let mut seen = std::collections::BTreeSet::new();
    for closed in &world.audit.receipts {
        assert!(seen.insert((closed.node, closed.attempt)), "G2: two receipts of attempt {}", closed.attempt);
        let baseline = &world.audit.metered[&(closed.node, closed.attempt)];
        let crashed = baseline.crashes < world.audit.crashes(closed.node) || world.audit.was_full(closed.node) || 0 < world.had_unread;
        receipts::check(closed, baseline, &world.jobs[baseline.job], &world.tariffs, crashed);
    }
    let opened: usize = (0..world.nodes.len()).map(|n| usize::try_from(world.audit.replica(n).attempts).unwrap_or(0)).sum();
    assert_eq!(seen.len(), opened, "L: every job that was opened has a receipt");
    seen.len()
}
