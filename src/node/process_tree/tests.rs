use super::*;
use proptest::prelude::*;

const ROOT: ProcessRoot = ProcessRoot { pid: 10, start_ticks: 100 };

fn process(pid: u32, parent: u32, own_ticks: u64, reaped_ticks: u64) -> Seen {
    let id = ProcessRoot { pid, start_ticks: 100 };
    Seen { id, parent, session: 1, life: Life::Running, own_ticks, reaped_ticks, resident_pages: 1 }
}

fn total(tree: &Tree) -> u64 {
    tree.reading(1, 1).unwrap().cpu_ns
}

#[test]
fn a_child_that_its_parent_waited_for_is_counted_once() {
    let mut tree = Tree::new(ROOT);
    tree.absorb(1, &[process(10, 1, 5, 0), process(11, 10, 7, 0)]);
    assert_eq!(total(&tree), 12);
    tree.absorb(2, &[process(10, 1, 5, 9)]);
    assert_eq!(total(&tree), 14, "the child ran two ticks more before it ended");
}

#[test]
fn what_a_member_took_with_it_is_kept() {
    let mut tree = Tree::new(ROOT);
    tree.absorb(1, &[process(10, 1, 5, 0), process(11, 10, 7, 0)]);
    tree.absorb(2, &[process(10, 1, 6, 0)]);
    assert_eq!(total(&tree), 13, "SIGCHLD was ignored: nobody's cutime shows the child");
    tree.absorb(3, &[]);
    assert_eq!(total(&tree), 13);
    assert_eq!(tree.reading(1, 1).unwrap().populated, Populated::No);
}

#[test]
fn a_member_stays_one_when_it_is_reparented() {
    let mut tree = Tree::new(ROOT);
    tree.absorb(1, &[process(10, 1, 0, 0), process(11, 10, 0, 0)]);
    assert_eq!(tree.absorb(2, &[process(11, 1, 3, 0), process(12, 11, 4, 0)]), 1, "its new child is found too");
    assert_eq!(total(&tree), 7);
}

#[test]
fn an_orphan_of_the_roots_session_is_found_though_its_parent_never_was() {
    let mut tree = Tree::new(ROOT);
    let root = Seen { session: 10, ..process(10, 1, 0, 0) };
    tree.absorb(1, &[root]);
    let orphan = Seen { session: 10, ..process(33, 1, 2, 0) };
    tree.absorb(2, &[root, orphan, process(34, 1, 9, 0)]);
    assert_eq!(total(&tree), 2);
}

#[test]
fn a_stranger_with_a_members_old_pid_is_no_member() {
    let mut tree = Tree::new(ROOT);
    tree.absorb(1, &[process(10, 1, 1, 0), process(11, 10, 1, 0)]);
    let stranger = Seen { id: ProcessRoot { pid: 11, start_ticks: 900 }, ..process(11, 1, 50, 0) };
    let older = Seen { id: ProcessRoot { pid: 40, start_ticks: 50 }, ..process(40, 10, 70, 0) };
    tree.absorb(2, &[process(10, 1, 1, 0), stranger, older]);
    assert_eq!(total(&tree), 2);
}

#[test]
fn an_older_scan_that_comes_late_kills_nobody() {
    let mut tree = Tree::new(ROOT);
    tree.absorb(2, &[process(10, 1, 1, 0), process(11, 10, 1, 0)]);
    tree.absorb(1, &[process(10, 1, 1, 0)]);
    assert_eq!(tree.members.len(), 2);
}

#[test]
fn a_root_that_never_was_seen_is_vanished_and_not_idle() {
    let mut tree = Tree::new(ROOT);
    tree.absorb(1, &[process(99, 1, 1, 0)]);
    assert_eq!(tree.reading(1, 1), Err(Missing::Vanished));
}

#[test]
fn a_tree_is_frozen_only_when_every_live_member_is_stopped() {
    let stopped = |pid, parent| Seen { life: Life::Stopped, ..process(pid, parent, 0, 0) };
    let zombie = Seen { life: Life::Zombie, ..process(12, 10, 0, 0) };
    let mut tree = Tree::new(ROOT);
    tree.absorb(1, &[stopped(10, 1), process(11, 10, 0, 0), zombie]);
    assert_eq!(tree.reading(1, 1).unwrap().frozen, Frozen::No);
    tree.absorb(2, &[stopped(10, 1), stopped(11, 10), zombie]);
    assert_eq!(tree.reading(1, 1).unwrap().frozen, Frozen::Yes);
}

#[derive(Clone, Debug)]
enum Step {
    Run { who: usize, ticks: u64 },
    Fork { who: usize },
    Exit { who: usize, waited: bool },
    Look,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0_usize..8, 1_u64..50).prop_map(|(who, ticks)| Step::Run { who, ticks }),
        (0_usize..8).prop_map(|who| Step::Fork { who }),
        (0_usize..8, any::<bool>()).prop_map(|(who, waited)| Step::Exit { who, waited }),
        Just(Step::Look),
    ];
    proptest::collection::vec(step, 0..80)
}

proptest! {
    /// A little kernel: processes run, fork, end (waited for or not); orphans go to pid 1. Looks come at any time.
    #[test]
    fn the_total_never_decreases_and_never_exceeds_what_was_used(steps in steps()) {
        let mut alive = vec![process(10, 1, 0, 0)];
        let (mut used, mut next_pid, mut number, mut last) = (0_u64, 11, 0, 0);
        let mut tree = Tree::new(ROOT);
        for step in steps.into_iter().chain([Step::Look]) {
            match step {
                Step::Run { who, ticks } => {
                    let count = alive.len();
                    if let Some(process) = alive.get_mut(who % count.max(1)) {
                        process.own_ticks += ticks;
                        used += ticks;
                    }
                }
                Step::Fork { who } => {
                    if let Some(parent) = alive.get(who % alive.len().max(1)).map(|parent| parent.id.pid) {
                        alive.push(process(next_pid, parent, 0, 0));
                        next_pid += 1;
                    }
                }
                Step::Exit { who, waited } if !alive.is_empty() => {
                    let gone = alive.remove(who % alive.len());
                    for process in &mut alive {
                        if process.id.pid == gone.parent && waited {
                            process.reaped_ticks += gone.own_ticks + gone.reaped_ticks;
                        }
                        if process.parent == gone.id.pid {
                            process.parent = 1;
                        }
                    }
                }
                Step::Exit { .. } => {}
                Step::Look => {
                    number += 1;
                    tree.absorb(number, &alive);
                    if tree.ever_seen {
                        let now = total(&tree);
                        prop_assert!(now >= last, "{now} after {last}");
                        prop_assert!(now <= used, "{now} of {used} used");
                        last = now;
                    }
                }
            }
        }
    }
}

/// Found by fuzzing: the parser behind this counts on the parentheses.
#[test]
fn a_line_without_a_name_in_parentheses_is_malformed_and_no_end_of_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("1")).unwrap();
    let trees = ProcessTrees::in_proc(folder.path());
    for text in [")(", "(", ")", "(a)", "1 (a)", "1 (a) ", "1 (\u{fffd})\u{fffd}", ""] {
        std::fs::write(folder.path().join("1/stat"), text).unwrap();
        assert!(trees.identify(1).is_err(), "{text:?}");
    }
}

#[test]
fn a_process_whose_name_is_no_text_is_seen_like_any_other() {
    let mut task = std::process::Command::new("perl")
        .args(["-e", "$0 = \"\\xff) Z 1 (\\xfe\"; print qq(named\\n); $| = 1; print qq(\\n); sleep 1000"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(task.stdout.as_mut().unwrap(), &mut [0_u8; 6]).unwrap();
    let trees = ProcessTrees::default();
    let root = trees.identify(task.id()).unwrap();
    let reading = trees.read(&[root]).remove(0).unwrap();
    assert_eq!((reading.populated, reading.frozen), (Populated::Yes, Frozen::No));
    for act in [Act::Freeze, Act::Kill] {
        while trees.round(root, act).unwrap().to_do != 0 {}
    }
    task.wait().unwrap();
}
