//! The grant protocol, searched exhaustively: every order in which messages can come, come twice or not at all, with everything that can
//! happen to a node and to its authority, within small bounds.
//!
//! What is searched is the product itself where it decides about money: [`meterd::domain::ledger`] books and answers every request,
//! [`meterd::domain::hearing`] judges every answer, [`meterd::domain::grant::Grant`] takes it. In the model's own words is only what the
//! agent does around them: when to ask (at any time), to spend (whenever something is in hand), to give back (at any time), what it has
//! written down when it starts again, and that a new boot or a lost journal is a new epoch; and, of the authority's store, when a copy of it is
//! made and put back, and that it recovers then.
//!
//! Two machines, one account of a few nano-credits; one tick is half of a grant's validity, and the authority closes an epoch that was
//! silent for three: as long as a grant is good and one tick that the node's clock may miss. Where the store is put back a grant is good for one.
//! `METERD_MODEL=full` searches larger worlds.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod bugs;
mod rest;
mod restore;
mod rules;
mod state;

use bugs::Bug;
use restore::PutBack;
use rules::{Begins, GivesBack, World};
use state::{Left, Power};
use stateright::{Checker, Model};

fn world() -> World {
    World {
        deposit: 2,
        questions: [2, 2],
        lives: 2,
        wants: &[1],
        left: Left::default(),
        valid_ticks: 2,
        put_back: PutBack::Told,
        gives_back: GivesBack::AnyTime,
        begins: Begins::WithNothing,
        second: Power::Off,
        bug: None,
        heals: 0,
    }
}

fn small() -> World {
    World { heals: 50, ..world() }
}

/// A larger world is searched where there is time for it.
fn full() -> bool {
    std::env::var("METERD_MODEL").is_ok_and(|size| size == "full")
}

/// Searches every moment of a world; its rules hold in each. Larger worlds only as far as there is memory for them.
fn holds(name: &str, world: World) {
    let began = std::time::Instant::now();
    let most = if full() { 30_000_000 } else { usize::MAX };
    let checker = world.checker().threads(if full() { 2 } else { 1 }).target_state_count(most).spawn_bfs().join();
    let reached = if checker.state_count() < most { "all" } else { "no more for want of time" };
    println!("{name}: {} moments, {reached}, depth {}, {:.1?}", checker.unique_state_count(), checker.max_depth(), began.elapsed());
    if let Some(path) = checker.discovery("every rule holds") {
        panic!("{name}: {:?}\n{:#?}", path.last_state(), path.clone().into_actions());
    }
    assert!(checker.is_done());
}

/// The bug breaks a rule, in so many steps at least; without it none is broken by that many.
fn finds(bug: Bug, world: &World) {
    let planted = World { bug: Some(bug), heals: 0, ..world.clone() };
    let checker = planted.checker().threads(1).spawn_bfs().join();
    let path = checker.discovery("every rule holds");
    let path = path.unwrap_or_else(|| panic!("{bug:?} is not found in {} moments", checker.unique_state_count()));
    let (last, actions) = (path.last_state().clone(), path.into_actions());
    let (steps, moments) = (actions.len(), checker.unique_state_count());
    println!("{bug:?}: {steps} steps, begun {:?}, {moments} moments: {}", world.begins, last.broken.unwrap_or_default());
    for action in &actions {
        println!("    {action:?}");
    }
}

/// Another node, where there is time for it.
fn beside() -> Power {
    if full() { Power::On } else { Power::Off }
}

/// Everything that may be larger where there is time for it.
fn larger(world: World) -> World {
    if full() {
        let heals = world.heals.min(100);
        World { deposit: 2, questions: world.questions.map(|questions| (questions + 1).min(2)), heals, ..world }
    } else {
        world
    }
}

#[test]
fn one_node_whose_clock_misses_a_tick() {
    let left = Left { missed_ticks: 1, bank_restarts: 1, ..Left::default() };
    holds("one node", larger(World { left, deposit: 1, lives: 1, ..small() }));
}

#[test]
fn a_top_up_that_is_pushed() {
    let left = Left { top_ups: 1, ..Left::default() };
    holds("top-up", larger(World { deposit: 0, left, lives: 1, ..small() }));
}

#[test]
fn a_revocation() {
    let left = Left { revocations: 1, ..Left::default() };
    holds("revocation", larger(World { left, deposit: 1, lives: 1, ..small() }));
}

#[test]
fn two_nodes() {
    holds("two nodes", larger(World { second: Power::On, deposit: 1, questions: [1, 1], lives: 1, ..small() }));
}

#[test]
fn a_reboot() {
    let left = Left { reboots: 1, ..Left::default() };
    holds("reboot", larger(World { left, deposit: 1, questions: [1, 1], second: beside(), ..small() }));
}

#[test]
fn a_lost_disk() {
    let left = Left { lost_disks: 1, ..Left::default() };
    holds("lost disk", larger(World { left, deposit: 1, questions: [1, 1], second: beside(), ..small() }));
}

#[test]
fn a_disk_image_that_boots_elsewhere() {
    let left = Left { image_clones: 1, ..Left::default() };
    holds("image clone", larger(World { left, deposit: 1, questions: [1, 1], heals: 500, ..small() }));
}

/// What the two use is charged to one epoch, so one of them always used more than it is charged: nothing is asked about the rest.
#[test]
fn a_running_machine_that_is_copied() {
    let left = Left { live_clones: 1, ..Left::default() };
    holds("live clone", larger(World { left, deposit: 1, questions: [1, 1], heals: 0, ..small() }));
}

/// The authority's store is put back to an earlier copy, both at any moment. A grant is good for one tick here.
fn put_back(questions: [u64; 2]) -> World {
    let left = Left { back_ups: 1, put_backs: 1, ..Left::default() };
    let second = if questions[1] == 0 { Power::Off } else { Power::On };
    World { left, deposit: 1, questions, lives: 1, valid_ticks: 1, second, heals: 200, ..world() }
}

/// Nodes that compete need not give back for that.
fn put_back_and_competing(questions: [u64; 2]) -> World {
    World { gives_back: GivesBack::Never, ..put_back(questions) }
}

#[test]
fn a_store_that_is_put_back_under_one_node() {
    holds("put back, one node", larger(put_back([2, 0])));
}

#[test]
fn a_store_that_is_put_back_under_two_nodes() {
    let world = if full() { put_back([1, 1]) } else { put_back_and_competing([1, 1]) };
    holds("put back, two nodes", world);
}

#[test]
fn a_store_that_is_put_back_and_is_not_told() {
    let world = if full() { put_back([2, 1]) } else { put_back_and_competing([1, 1]) };
    holds("put back silently", World { put_back: PutBack::Silently, ..world });
}

#[test]
fn b01_settled_by_difference() {
    finds(Bug::SettledByDifference, &world());
}

#[test]
fn b02_validity_from_receipt() {
    finds(Bug::ValidFromReceipt, &world());
}

#[test]
fn b03_asking_again_restarts_the_clock() {
    finds(Bug::AskingAgainRestartsTheClock, &world());
}

#[test]
fn b04_close_ignores_clock_error() {
    finds(Bug::CloseIgnoresClockError, &World { left: Left { missed_ticks: 1, ..Left::default() }, ..world() });
}

#[test]
fn b05_epoch_used_again_after_a_disk_was_lost() {
    finds(Bug::EpochUsedAgain, &World { left: Left { lost_disks: 1, ..Left::default() }, ..world() });
}

#[test]
fn b06_old_verdict_obeyed() {
    finds(Bug::OldVerdictObeyed, &World { deposit: 0, left: Left { top_ups: 1, ..Left::default() }, ..world() });
}

#[test]
fn b07_push_leaves_the_question() {
    finds(Bug::PushLeavesTheQuestion, &World { deposit: 0, left: Left { top_ups: 1, ..Left::default() }, ..world() });
}

#[test]
fn b08_close_releases_all() {
    finds(Bug::CloseReleasesAll, &world());
}

#[test]
fn b09_late_report_unchecked() {
    let left = Left { revocations: 1, ..Left::default() };
    finds(Bug::LateReportUnchecked, &World { deposit: 1, lives: 1, left, ..world() });
}

#[test]
fn b10_late_report_again_in_full() {
    finds(Bug::LateReportAgainInFull, &world());
}

#[test]
fn b11_revoke_cuts_the_escrow() {
    finds(Bug::RevokeCutsTheEscrow, &World { deposit: 1, left: Left { revocations: 1, ..Left::default() }, ..world() });
}

#[test]
fn b12_spent_before_journal() {
    finds(Bug::SpentBeforeJournal, &World { left: Left { restarts: 1, ..Left::default() }, ..world() });
}

#[test]
fn b13_returned_before_journal() {
    finds(Bug::ReturnedBeforeJournal, &World { wants: &[0, 1], left: Left { restarts: 1, ..Left::default() }, ..world() });
}

#[test]
fn b14_number_not_durable() {
    finds(Bug::NumberNotDurable, &World { left: Left { restarts: 1, ..Left::default() }, ..world() });
}

#[test]
fn b15_successor_releases() {
    finds(Bug::SuccessorReleases, &World { left: Left { image_clones: 1, ..Left::default() }, lives: 3, ..world() });
}

#[test]
fn b16_deadline_survives_a_reboot() {
    finds(Bug::DeadlineSurvivesAReboot, &World { left: Left { reboots: 1, ..Left::default() }, ..world() });
}

#[test]
fn b17_image_keeps_the_epoch() {
    finds(Bug::ImageKeepsTheEpoch, &World { left: Left { image_clones: 1, ..Left::default() }, lives: 3, ..world() });
}

#[test]
fn b18_no_digest() {
    finds(Bug::NoDigest, &World { left: Left { live_clones: 1, ..Left::default() }, lives: 3, ..world() });
}

#[test]
fn b19_closed_voids_nothing() {
    finds(Bug::ClosedVoidsNothing, &world());
}

#[test]
fn b20_grant_before_totals() {
    finds(Bug::GrantBeforeTotals, &World { second: Power::On, deposit: 1, left: Left { reboots: 1, ..Left::default() }, ..world() });
}

#[test]
fn b21_repeated_late_report_collects() {
    let left = Left { revocations: 1, top_ups: 1, ..Left::default() };
    finds(Bug::RepeatedLateReportCollects, &World { deposit: 1, lives: 1, left, ..world() });
}

#[test]
fn b22_put_back_grants_at_once() {
    finds(Bug::PutBackGrantsAtOnce, &put_back_and_competing([1, 1]));
}

#[test]
fn b23_put_back_ignores_claims() {
    finds(Bug::PutBackIgnoresClaims, &put_back([2, 0]));
}

#[test]
fn b24_put_back_closes_the_unbacked() {
    let world = put_back_and_competing([1, 2]);
    finds(Bug::PutBackClosesTheUnbacked, &World { begins: Begins::WithAGrantAndACopy, ..world });
}

#[test]
fn b25_put_back_renews_the_lapsed() {
    finds(Bug::PutBackRenewsTheLapsed, &put_back([2, 0]));
}

#[test]
fn b26_credit_from_any_answer() {
    finds(Bug::CreditFromAnyAnswer, &put_back([2, 0]));
}
