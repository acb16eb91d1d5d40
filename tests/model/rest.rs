//! From a moment on nothing fails any more: does all come to rest, as it must?

use std::hash::{DefaultHasher, Hash, Hasher};

use meterd::domain::ledger::EpochState;
use stateright::Model as _;

use crate::rules::{Action, World};
use crate::state::{Body, Job, Power, State, credits};

/// Rounds in which everybody asks once: more than what waits, holds and was lost can need.
const ROUNDS: usize = 10;

/// What the jobs do from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Jobs {
    Hungry,
    Finished,
}

/// One moment in `heals` is looked at.
pub(crate) fn comes_to_rest(world: &World, state: &State) -> bool {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    if state.broken.is_some() || !hasher.finish().is_multiple_of(world.heals) {
        return true;
    }
    // Nobody runs out of questions or of names.
    let world = World { questions: [u64::MAX; 2], lives: u8::MAX, ..world.clone() };
    [Jobs::Hungry, Jobs::Finished].into_iter().all(|jobs| match rests(&world, state, jobs) {
        Ok(()) => true,
        Err(why) => {
            eprintln!("{jobs:?}: {why}\n{state:?}");
            false
        }
    })
}

fn rests(world: &World, state: &State, jobs: Jobs) -> Result<(), String> {
    let mut state = state.clone();
    state.net.clear();
    for _ in 0..ROUNDS {
        for n in on(&state) {
            round(world, &mut state, n, jobs)?;
        }
        step(world, &mut state, Action::Tick)?;
        step(world, &mut state, Action::Sweep)?;
    }
    let held = state.bank.held();
    if held.is_positive() {
        return Err(format!("{} are held by nobody who needs them\n{state:?}", held.nano()));
    }
    for n in on(&state) {
        let epoch = state.nodes[n].live.epoch;
        let Some(known) = state.bank.epochs.get(&epoch) else { continue };
        if known.state == EpochState::Open && known.settled.nano() != state.used_by(epoch) {
            return Err(format!("machine {n} used {} and is charged {}\n{state:?}", state.used_by(epoch), known.settled.nano()));
        }
        if jobs == Jobs::Hungry && state.nodes[n].job == Job::Runs {
            return Err(format!("machine {n}'s job runs, and there is nothing\n{state:?}"));
        }
    }
    if jobs == Jobs::Hungry && !on(&state).is_empty() {
        if state.bank.available().is_positive() {
            return Err(format!("{} are free, and somebody is hungry\n{state:?}", state.bank.available().nano()));
        }
        top_up(world, &mut state)?;
    }
    Ok(())
}

/// New credit reaches somebody.
fn top_up(world: &World, state: &mut State) -> Result<(), String> {
    let before = state.bank.settled;
    state.left.top_ups = 1;
    step(world, state, Action::TopUp)?;
    let push = state.net.iter().rev().find(|message| matches!(message.body, Body::Push(_))).cloned();
    for n in on(state) {
        let push = push.clone().ok_or("a top-up is pushed")?;
        step(world, state, Action::Hear(n, push))?;
        for _ in 0..2 {
            round(world, state, n, Jobs::Hungry)?;
        }
    }
    let charged = state.bank.settled.minus(before);
    if charged == credits(1) { Ok(()) } else { Err(format!("of a credit that came {} were used\n{state:?}", charged.nano())) }
}

fn on(state: &State) -> Vec<usize> {
    (0..2).filter(|n| state.nodes[*n].power == Power::On).collect()
}

/// A question, its answer, and what follows.
fn round(world: &World, state: &mut State, n: usize, jobs: Jobs) -> Result<(), String> {
    if jobs == Jobs::Finished && state.nodes[n].live.grant.held().is_positive() {
        step(world, state, Action::GiveBack(n))?;
    }
    step(world, state, Action::Ask(n, i128::from(jobs == Jobs::Hungry)))?;
    let request = state.net.last().cloned().ok_or("a question is under way")?;
    step(world, state, Action::ToBank(request))?;
    let answer = state.net.last().cloned().ok_or("an answer is under way")?;
    step(world, state, Action::Hear(n, answer))?;
    let mut actions = Vec::new();
    world.actions(state, &mut actions);
    while jobs == Jobs::Hungry && actions.iter().any(|action| matches!(action, Action::Use(of) if *of == n)) {
        step(world, state, Action::Use(n))?;
        actions.clear();
        world.actions(state, &mut actions);
    }
    if actions.iter().any(|action| matches!(action, Action::Stop(of) if *of == n)) {
        step(world, state, Action::Stop(n))?;
    }
    state.net.clear();
    Ok(())
}

fn step(world: &World, state: &mut State, action: Action) -> Result<(), String> {
    let said = format!("{action:?}");
    if let Some(next) = world.next_state(state, action) {
        *state = next;
    }
    match &state.broken {
        None => Ok(()),
        Some(rule) => Err(format!("{said}: {rule}")),
    }
}
