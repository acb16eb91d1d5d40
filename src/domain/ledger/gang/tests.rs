//! Each rule by itself, and then every order of events that a few parts and few dry spells can have: the real register and the real parts, over a
//! network that loses, repeats and reorders.

use std::collections::{HashMap, VecDeque};

use super::*;
use crate::domain::gang::{Gang, Latch, Own, Part};

fn gang() -> GangId {
    GangId { account: "lab".parse().unwrap(), name: "mpi-17".parse().unwrap(), attempt: 0 }
}

fn node(nth: usize) -> NodeId {
    format!("n{nth}").parse().unwrap()
}

fn word(says: Says, version: u64) -> GangWord {
    GangWord { gang: gang(), part: Attempt(1), says, version }
}

fn epoch(nth: usize) -> Epoch {
    Epoch([u8::try_from(nth).unwrap(); 16])
}

/// Says a word for each of some nodes, and gives what is wanted after them.
fn after(register: &mut Register, words: &[(usize, Says, u64)]) -> (Want, u64) {
    for (nth, says, version) in words {
        register.hear(&node(*nth), epoch(*nth), &word(*says, *version), |_| true);
    }
    (register.want, register.version)
}

#[test]
fn g2_whoever_runs_dry_under_the_present_version_freezes_all_once() {
    let mut register = Register::new(gang());
    assert_eq!(after(&mut register, &[(1, Says::Runs, 1), (2, Says::Runs, 1)]), (Want::Run, 1));
    assert_eq!(after(&mut register, &[(1, Says::Dry, 1)]), (Want::Freeze, 2));
    assert_eq!(register.word().dry, Some(node(1)));
    assert_eq!(after(&mut register, &[(1, Says::Dry, 1), (2, Says::Dry, 1)]), (Want::Freeze, 2), "the same spell");
    assert_eq!(register.word().dry, Some(node(1)), "the first one");
}

#[test]
fn g1_a_word_of_an_older_version_freezes_nothing() {
    let mut register = Register::new(gang());
    after(&mut register, &[(1, Says::Dry, 1), (1, Says::Ready, 2)]);
    assert_eq!((register.want, register.version), (Want::Run, 3), "it is alone");
    assert_eq!(after(&mut register, &[(1, Says::Dry, 1), (1, Says::Dry, 2), (1, Says::Dry, 0)]), (Want::Run, 3));
    assert_eq!(after(&mut register, &[(1, Says::Dry, 3)]), (Want::Freeze, 4));
}

#[test]
fn g4_all_ready_under_the_present_version_thaws_all_and_nothing_less() {
    let mut register = Register::new(gang());
    after(&mut register, &[(1, Says::Runs, 1), (2, Says::Runs, 1), (3, Says::Runs, 1), (1, Says::Dry, 1)]);
    assert_eq!(after(&mut register, &[(1, Says::Ready, 2), (2, Says::Ready, 2)]), (Want::Freeze, 2), "the third has not heard of it");
    assert_eq!(after(&mut register, &[(3, Says::Ready, 1)]), (Want::Freeze, 2), "ready under another version");
    assert_eq!(after(&mut register, &[(3, Says::Waits, 2)]), (Want::Freeze, 2));
    assert_eq!(
        after(&mut register, &[(2, Says::Waits, 2), (3, Says::Ready, 2)]),
        (Want::Freeze, 2),
        "a later word takes an earlier one back"
    );
    assert_eq!(after(&mut register, &[(2, Says::Ready, 2)]), (Want::Run, 3));
    assert_eq!(register.word().dry, None);
}

#[test]
fn who_leaves_is_waited_for_no_more_and_the_last_one_ends_it() {
    let mut register = Register::new(gang());
    after(&mut register, &[(1, Says::Runs, 1), (2, Says::Runs, 1), (1, Says::Dry, 1), (2, Says::Ready, 2)]);
    assert!(!register.is_over(|_| true));
    assert_eq!(after(&mut register, &[(1, Says::Left, 2)]), (Want::Run, 3), "the others go on");
    assert_eq!(after(&mut register, &[(2, Says::Left, 3)]), (Want::Run, 3));
    assert!(register.is_over(|_| true));
}

#[test]
fn a_node_whose_epoch_was_closed_holds_nobody_up() {
    let mut register = Register::new(gang());
    after(&mut register, &[(1, Says::Runs, 1), (2, Says::Runs, 1), (1, Says::Dry, 1)]);
    let dead = |open: Epoch| open != epoch(2);
    register.hear(&node(1), epoch(1), &word(Says::Ready, 2), |_| true);
    assert_eq!(register.want, Want::Freeze, "it may come back");
    register.hear(&node(1), epoch(1), &word(Says::Ready, 2), dead);
    assert_eq!((register.want, register.version), (Want::Run, 3));
    assert!(!register.is_over(dead));
    assert!(register.is_over(|open| open != epoch(2) && open != epoch(1)));
}

#[test]
fn a_register_put_back_from_a_copy_goes_on_above_whatever_was_heard() {
    let restored = || {
        let mut register = Register::new(gang());
        after(&mut register, &[(1, Says::Runs, 1), (2, Says::Runs, 1)]);
        register
    };
    assert_eq!(after(&mut restored(), &[(1, Says::Runs, 7)]), (Want::Run, 8), "who runs may run on");
    let mut register = restored();
    assert_eq!(after(&mut register, &[(1, Says::Ready, 6)]), (Want::Freeze, 7), "who stands still is not run over");
    assert_eq!(after(&mut register, &[(2, Says::Ready, 6), (2, Says::Ready, 7), (1, Says::Ready, 7)]), (Want::Run, 8));
    let mut register = restored();
    assert_eq!(after(&mut register, &[(2, Says::Dry, 7)]), (Want::Freeze, 8));
    assert_eq!(register.word().dry, Some(node(2)));
}

#[test]
fn a_register_put_back_from_a_copy_may_have_come_to_a_version_that_was_heard_with_another_want() {
    // Before the copy was put back, version 3 was "run", and the second node had heard it. The first had only heard of the freeze, so the copy
    // goes on with a freeze under the same number: to the second that is no news.
    let restored = |words: &[(usize, Says, u64)]| {
        let mut register = Register::new(gang());
        after(&mut register, &[(1, Says::Runs, 1), (2, Says::Runs, 1)]);
        after(&mut register, words);
        register
    };
    for says in [Says::Dry, Says::Runs] {
        let mut register = restored(&[(1, Says::Waits, 2)]);
        assert_eq!((register.want, register.version), (Want::Freeze, 3));
        assert_eq!(after(&mut register, &[(2, says, 3)]), (Want::Freeze, 4), "now it is");
        assert_eq!(register.word().dry, (says == Says::Dry).then(|| node(2)));
        assert_eq!(after(&mut register, &[(2, says, 3)]), (Want::Freeze, 4), "said before it was heard");
        assert_eq!(after(&mut register, &[(1, Says::Ready, 4), (2, Says::Ready, 4)]), (Want::Run, 5));
    }
    // The other way round: who stands still under the number is not left behind.
    for says in [Says::Waits, Says::Ready] {
        let mut register = restored(&[(1, Says::Runs, 3)]);
        assert_eq!((register.want, register.version), (Want::Run, 4));
        assert_eq!(after(&mut register, &[(2, says, 4)]), (Want::Freeze, 5));
        assert_eq!(after(&mut register, &[(1, Says::Ready, 5), (2, Says::Ready, 5)]), (Want::Run, 6));
    }
    let mut register = restored(&[(1, Says::Waits, 2)]);
    assert_eq!(after(&mut register, &[(2, Says::Left, 3)]), (Want::Freeze, 3), "whoever leaves has heard enough");
}

/// What goes wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    None,
    /// Whoever is funded again says that he runs, though the others have not heard that he ran dry.
    NoLatch,
    /// "Ready" counts under any version.
    NoVersion,
    /// The first "ready" thaws all.
    FirstReady,
    /// Who was ready once is counted as ready.
    ReadyForEver,
    /// A part that is funded again goes on without a word.
    ThawsAlone,
}

/// How much is searched.
#[derive(Clone, Copy)]
struct Bounds {
    parts: usize,
    spells: u8,
    versions: u64,
    /// Messages on their way to one receiver.
    under_way: usize,
    leaves: u8,
}

/// One part, and what is on its way from it and to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Place {
    want: Want,
    version: u64,
    latch: Latch,
    funded: bool,
    left: bool,
    /// As the register knows it.
    standing: Option<(Says, u64)>,
    ever_ready: bool,
    /// The oldest first. A later one that arrives makes the earlier ones worthless.
    words: Vec<(Says, u64)>,
    /// In rising order of versions.
    wants: Vec<(Want, u64)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    want: Want,
    version: u64,
    places: Vec<Place>,
    spells: u8,
    leaves: u8,
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Say(usize),
    Deliver(usize, usize),
    Hear(usize, usize),
    Dry(usize),
    Fund(usize),
    Leave(usize),
}

impl Place {
    fn part(&self) -> Part {
        let declared = Gang { name: gang().name, attempt: 0, size: None };
        Part { want: self.want, version: self.version, latch: self.latch, ..Part::new(gang().account, &declared) }
    }

    fn own(&self) -> Own {
        if self.funded { Own::Funded } else { Own::Dry }
    }

    fn runs(&self) -> bool {
        !self.left && self.funded && !self.part().is_held()
    }

    fn word(&self, bug: Bug) -> (Says, u64) {
        let says = match self.part().says(self.own()) {
            _ if self.left => Says::Left,
            Says::Dry if bug == Bug::NoLatch && self.funded => Says::Runs,
            says => says,
        };
        (says, self.version)
    }

    fn hear(&mut self, want: Want, version: u64) {
        let mut part = self.part();
        part.hear(want, version, None);
        (self.want, self.version, self.latch) = (part.want, part.version, part.latch);
        self.wants.retain(|(_, version)| self.version < *version);
        self.note_dryness();
    }

    fn note_dryness(&mut self) {
        if !self.left && self.part().runs_dry(self.own()) {
            self.latch = Latch::Dry;
        }
    }
}

impl World {
    fn new(bounds: Bounds) -> World {
        let place = Place {
            want: Want::Run,
            version: 1,
            latch: Latch::Open,
            funded: true,
            left: false,
            standing: Some((Says::Runs, 1)),
            ever_ready: false,
            words: Vec::new(),
            wants: Vec::new(),
        };
        World { want: Want::Run, version: 1, places: vec![place; bounds.parts], spells: 0, leaves: 0 }
    }

    fn register(&self) -> Register {
        let parts = self.places.iter().enumerate().filter_map(|(nth, place)| {
            let (says, version) = place.standing?;
            Some((PartId { node: node(nth), part: Attempt(1) }, Standing { epoch: epoch(nth), says, version }))
        });
        Register { gang: gang(), want: self.want, version: self.version, dry: None, parts: parts.collect() }
    }

    fn acts(&self, bounds: Bounds) -> Vec<Act> {
        let mut acts = Vec::new();
        for (nth, place) in self.places.iter().enumerate() {
            let told = place.standing == Some(place.word(Bug::None)) && place.words.is_empty();
            if !told && place.words.last() != Some(&place.word(Bug::None)) {
                acts.push(Act::Say(nth));
            }
            acts.extend((0..place.words.len()).map(|k| Act::Deliver(nth, k)));
            acts.extend((0..place.wants.len()).map(|k| Act::Hear(nth, k)));
            if !place.left {
                if place.funded && self.spells < bounds.spells {
                    acts.push(Act::Dry(nth));
                }
                if !place.funded {
                    acts.push(Act::Fund(nth));
                }
                if self.leaves < bounds.leaves {
                    acts.push(Act::Leave(nth));
                }
            }
        }
        acts
    }

    /// The world after an act; an error if it did what must not be.
    fn after(&self, act: Act, bug: Bug, bounds: Bounds) -> Result<World, String> {
        let mut next = self.clone();
        match act {
            Act::Say(nth) => {
                let word = self.places[nth].word(bug);
                next.places[nth].words.push(word);
                if bounds.under_way < next.places[nth].words.len() {
                    next.places[nth].words.remove(0); // lost
                }
            }
            Act::Deliver(nth, k) => {
                let (says, version) = self.places[nth].words[k];
                next.places[nth].words.drain(..=k);
                next.deliver(nth, says, version, bug, bounds)?;
            }
            Act::Hear(nth, k) => {
                let (want, version) = self.places[nth].wants[k];
                next.places[nth].wants.remove(k);
                next.places[nth].hear(want, version);
            }
            Act::Dry(nth) => {
                next.spells += 1;
                next.places[nth].funded = false;
                next.places[nth].note_dryness();
            }
            Act::Fund(nth) => {
                next.places[nth].funded = true;
                if bug == Bug::ThawsAlone {
                    (next.places[nth].want, next.places[nth].latch) = (Want::Run, Latch::Open);
                }
            }
            Act::Leave(nth) => {
                next.leaves += 1;
                next.places[nth].left = true;
            }
        }
        Ok(next)
    }

    fn deliver(&mut self, nth: usize, says: Says, version: u64, bug: Bug, bounds: Bounds) -> Result<(), String> {
        let before = (self.want, self.version);
        let version = if bug == Bug::NoVersion && says == Says::Ready { self.version } else { version };
        let mut register = self.register();
        register.hear(&node(nth), epoch(nth), &word(says, version), |_| true);
        self.places[nth].standing = Some((says, version));
        self.places[nth].ever_ready |= says == Says::Ready;
        let has_left = |place: &Place| place.standing.is_some_and(|(says, _)| says == Says::Left);
        let counted_ready = self.places.iter().all(|place| place.ever_ready || has_left(place));
        let too_soon = match bug {
            Bug::FirstReady => says == Says::Ready,
            Bug::ReadyForEver => counted_ready,
            _ => false,
        };
        if register.want == Want::Freeze && too_soon {
            (register.want, register.version) = (Want::Run, register.version + 1);
        }
        (self.want, self.version) = (register.want, register.version);
        if self.version < before.1 {
            return Err("the version fell".to_owned());
        }
        if (before.0, self.want) == (Want::Freeze, Want::Run) {
            let unheard =
                |place: &&Place| place.standing.is_some_and(|(says, _)| says != Says::Left) && (place.want, place.version) != before;
            if let Some(place) = self.places.iter().find(unheard) {
                return Err(format!("all may run, and one has not heard of the freeze: {place:?}"));
            }
        }
        let news = (self.want, self.version);
        for (other, place) in self.places.iter_mut().enumerate() {
            let told = other == nth || news != before;
            if told && place.version < news.1 && !place.wants.contains(&news) {
                place.wants.push(news);
                if bounds.under_way < place.wants.len() {
                    place.wants.remove(0); // lost
                }
            }
        }
        Ok(())
    }

    /// A round in which nothing is lost: each says its word, and all hear what comes of it at once.
    fn round(&mut self, bug: Bug, bounds: Bounds) -> Result<(), String> {
        for nth in 0..self.places.len() {
            let (says, version) = self.places[nth].word(bug);
            self.deliver(nth, says, version, bug, bounds)?;
            for place in &mut self.places {
                while let Some((want, version)) = place.wants.pop() {
                    place.hear(want, version);
                }
            }
        }
        Ok(())
    }

    /// Whatever has happened: where nothing more is lost, all run once all are funded, and none once one is not.
    fn heals(&self, bug: Bug, bounds: Bounds) -> Result<(), String> {
        let mut calm = self.clone();
        for place in &mut calm.places {
            place.words.clear();
            place.wants.clear();
        }
        let settle = |world: &mut World| (0..5).try_for_each(|_| world.round(bug, bounds));
        let mut funded = calm.clone();
        for nth in 0..funded.places.len() {
            funded = funded.after(Act::Fund(nth), bug, bounds)?;
        }
        settle(&mut funded)?;
        if let Some(place) = funded.places.iter().find(|place| !place.left && !place.runs()) {
            return Err(format!("all are funded, and one stands still for good: {place:?}"));
        }
        let Some(dry) = calm.places.iter().position(|place| !place.left) else { return Ok(()) };
        let mut short = calm;
        short.places[dry].funded = false;
        short.places[dry].note_dryness();
        settle(&mut short)?;
        if let Some(place) = short.places.iter().find(|place| place.runs()) {
            return Err(format!("one is dry for good, and another runs: {place:?}"));
        }
        Ok(())
    }
}

/// Every world that can be reached. The number of them, or the shortest way to one that is wrong.
fn search(bounds: Bounds, bug: Bug) -> Result<usize, (Vec<Act>, String)> {
    let first = World::new(bounds);
    let mut from: HashMap<World, Option<(World, Act)>> = HashMap::from([(first.clone(), None)]);
    let mut waiting = VecDeque::from([first]);
    while let Some(world) = waiting.pop_front() {
        let way = |last: Option<Act>| {
            let (mut at, mut acts) = (&world, Vec::from_iter(last));
            while let Some(Some((before, act))) = from.get(at) {
                acts.push(*act);
                at = before;
            }
            acts.reverse();
            acts
        };
        world.heals(bug, bounds).map_err(|why| (way(None), why))?;
        if bounds.versions <= world.version {
            continue;
        }
        let mut found = Vec::new();
        for act in world.acts(bounds) {
            let next = world.after(act, bug, bounds).map_err(|why| (way(Some(act)), why))?;
            if !from.contains_key(&next) {
                found.push((next, act));
            }
        }
        for (next, act) in found {
            from.insert(next.clone(), Some((world.clone(), act)));
            waiting.push_back(next);
        }
    }
    Ok(from.len())
}

const TWO: Bounds = Bounds { parts: 2, spells: 2, versions: 5, under_way: 2, leaves: 1 };
const THREE: Bounds = Bounds { parts: 3, spells: 1, versions: 4, under_way: 2, leaves: 1 };

#[test]
fn two_parts_neither_stand_still_for_ever_nor_run_apart_whatever_is_lost_repeated_or_late() {
    let worlds = search(TWO, Bug::None).unwrap();
    println!("{worlds} worlds of two parts");
    assert!(10_000 < worlds, "the search is a search");
}

#[test]
fn three_parts_neither() {
    let worlds = search(THREE, Bug::None).unwrap();
    println!("{worlds} worlds of three parts");
    assert!(5_000 < worlds, "the search is a search");
}

#[test]
fn each_planted_bug_is_found() {
    for bug in [Bug::NoLatch, Bug::NoVersion, Bug::FirstReady, Bug::ReadyForEver, Bug::ThawsAlone] {
        let (way, why) = search(TWO, bug).err().unwrap_or_else(|| panic!("{bug:?} was not found"));
        println!("{bug:?} after {} steps: {why}\n  {way:?}", way.len());
    }
}

#[test]
fn while_all_are_connected_one_round_trip_ends_a_mixed_state() {
    for parts in 2..=6 {
        let bounds = Bounds { parts, ..TWO };
        for dry in 0..parts {
            let mut world = World::new(bounds).after(Act::Dry(dry), Bug::None, bounds).unwrap();
            let (says, version) = world.places[dry].word(Bug::None);
            world.deliver(dry, says, version, Bug::None, bounds).unwrap();
            for place in &mut world.places {
                assert_eq!(place.wants, [(Want::Freeze, 2)]);
                place.hear(Want::Freeze, 2);
            }
            assert!(world.places.iter().all(|place| !place.runs()), "its word there, the register's back");
            world.places[dry].funded = true;
            world.round(Bug::None, bounds).unwrap();
            assert!(world.places.iter().all(Place::runs), "and all go on together");
        }
    }
}
