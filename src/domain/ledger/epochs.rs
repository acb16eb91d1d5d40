//! An account's epochs, and kept beside them what an answer asks of all of them together: an account that ten thousand nodes share is answered
//! about nearly as fast as one that has a single node. A copy shares what neither of the two changes, so it costs next to nothing.

use std::fmt;
use std::ops::{Deref, DerefMut, Index};
use std::sync::Arc;

use ethnum::I256;
use imbl::{OrdMap, OrdSet};

use super::account::{EpochAccount, EpochState};
use super::sizing::Together;
use crate::domain::id::{Epoch, NodeId};
use crate::domain::money::{Credits, NANO};
use crate::domain::time::{Mono, Nanos};

/// Epochs by name. All that is kept beside the map follows from it, and from the instant of the last [`Epochs::together`].
#[derive(Clone, Default)]
pub struct Epochs {
    each: OrdMap<Epoch, Arc<EpochAccount>>,
    closed: OrdSet<Epoch>,
    /// Open ones.
    of_node: OrdSet<(NodeId, Epoch)>,
    /// Open ones, by when they were last heard of.
    heard: OrdSet<(Mono, Epoch)>,
    /// Open ones that use something, by when they will have used up what they hold: they count in `running` until then.
    dry: OrdSet<(Mono, Epoch)>,
    running: Running,
    held: Credits,
    unbacked: Credits,
}

/// Sums over the open epochs that are thought to hold something.
#[derive(Clone, Copy, Default)]
struct Running {
    escrow: Credits,
    burn_per_s: Credits,
    /// Of each epoch's burn times the instant of its last word: what they have used since is `burn_per_s * now` less this.
    burn_at_words: I256,
}

impl Running {
    fn add(&mut self, epoch: &EpochAccount) {
        self.escrow = self.escrow.plus(epoch.escrow());
        self.burn_per_s = self.burn_per_s.plus(burn(epoch));
        self.burn_at_words += burn_at_word(epoch);
    }

    fn take(&mut self, epoch: &EpochAccount) {
        self.escrow = self.escrow.minus(epoch.escrow());
        self.burn_per_s = self.burn_per_s.minus(burn(epoch));
        self.burn_at_words -= burn_at_word(epoch);
    }

    fn together(self, now: Mono) -> Together {
        let used = I256::from(self.burn_per_s.nano()) * I256::from(now.0) - self.burn_at_words;
        let used = (used.max(I256::ZERO) + I256::from(NANO - 1)) / I256::from(NANO);
        let used = i128::try_from(used).map_or(self.escrow, Credits::from_nano);
        Together { left: self.escrow.minus(used).or_zero(), burn_per_s: self.burn_per_s }
    }
}

fn burn(epoch: &EpochAccount) -> Credits {
    epoch.burn_per_s.or_zero()
}

fn burn_at_word(epoch: &EpochAccount) -> I256 {
    I256::from(burn(epoch).nano()) * I256::from(epoch.heard_at.0)
}

/// When it will have used up what it holds; `None` if it uses nothing.
fn dry_at(epoch: &EpochAccount) -> Option<Mono> {
    let burn = burn(epoch).nano();
    let lasts = epoch.escrow().or_zero().nano().saturating_mul(NANO).checked_div(burn)?;
    Some(epoch.heard_at.plus(Nanos(u64::try_from(lasts).unwrap_or(u64::MAX))))
}

impl Epochs {
    /// One of them.
    #[must_use]
    pub fn get(&self, id: &Epoch) -> Option<&EpochAccount> {
        self.each.get(id).map(Arc::as_ref)
    }

    /// One of them, to be changed: what is kept beside them follows once the handle is dropped.
    pub fn get_mut(&mut self, id: &Epoch) -> Option<Changing<'_>> {
        let now = self.each.get(id)?.clone();
        Some(Changing { id: *id, now, epochs: self })
    }

    /// The same, put in first if there is none.
    pub fn get_or_insert(&mut self, id: Epoch, epoch: EpochAccount) -> Changing<'_> {
        let now = self.each.get(&id).cloned().unwrap_or_else(|| {
            self.insert(id, epoch.clone());
            Arc::new(epoch)
        });
        Changing { id, now, epochs: self }
    }

    /// Is it there?
    #[must_use]
    pub fn contains_key(&self, id: &Epoch) -> bool {
        self.each.contains_key(id)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Epoch, &EpochAccount)> {
        self.each.iter().map(|(id, epoch)| (id, epoch.as_ref()))
    }

    /// All of them, by name.
    pub fn values(&self) -> impl Iterator<Item = &EpochAccount> {
        self.each.values().map(Arc::as_ref)
    }

    /// Those of these epochs that are not the same in others, or are not there: with the other one, if there is one. What the two share is
    /// passed over unseen.
    pub fn changed_since<'a>(
        &'a self,
        before: &'a Epochs,
    ) -> impl Iterator<Item = (&'a Epoch, &'a EpochAccount, Option<&'a EpochAccount>)> {
        before.each.diff(&self.each).filter_map(|difference| match difference {
            imbl::ordmap::DiffItem::Add(id, new) => Some((id, new.as_ref(), None)),
            imbl::ordmap::DiffItem::Update { old: (_, old), new: (id, new) } => Some((id, new.as_ref(), Some(old.as_ref()))),
            imbl::ordmap::DiffItem::Remove(..) => None,
        })
    }

    /// Puts one in, in place of what had its name.
    pub fn insert(&mut self, id: Epoch, epoch: EpochAccount) {
        self.put(id, Arc::new(epoch));
    }

    /// Changes each of them.
    pub fn change_each(&mut self, mut change: impl FnMut(&mut EpochAccount)) {
        let ids: Vec<Epoch> = self.each.keys().copied().collect();
        for id in ids {
            if let Some(mut epoch) = self.get_mut(&id) {
                change(&mut epoch);
            }
        }
    }

    /// Keeps those that are open.
    pub fn drop_closed(&mut self) {
        for id in std::mem::take(&mut self.closed) {
            self.each.remove(&id);
        }
    }

    /// Open epochs of a node.
    pub fn of_node(&self, node: &NodeId) -> impl Iterator<Item = (&Epoch, &EpochAccount)> {
        let all = (node.clone(), Epoch([0; 16]))..=(node.clone(), Epoch([u8::MAX; 16]));
        self.of_node.range(all).filter_map(|(_, id)| Some((id, self.get(id)?)))
    }

    /// Open epochs of which the last word came at this instant or before.
    pub fn heard_until(&self, at: Mono) -> impl Iterator<Item = &Epoch> {
        self.heard.range(..=(at, Epoch([u8::MAX; 16]))).map(|(_, id)| id)
    }

    /// Held by open epochs.
    #[must_use]
    pub const fn held(&self) -> Credits {
        self.held
    }

    /// Granted once, forgotten since, and backed by nothing: of all open epochs.
    #[must_use]
    pub const fn unbacked(&self) -> Credits {
        self.unbacked
    }

    /// What the open epochs still hold and use by now, by estimate, at most so many nano-credits too much as there are epochs. The one that
    /// speaks has just said what it holds. `now` is never before an earlier one.
    pub fn together(&mut self, now: Mono, speaking: Epoch) -> Together {
        self.run_dry(now);
        let mut running = self.running;
        let Some(speaks) = self.get(&speaking).filter(|epoch| is_open(epoch)) else { return running.together(now) };
        if self.is_running(speaking, speaks) {
            running.take(speaks);
        }
        let others = running.together(now);
        Together { left: others.left.plus(speaks.escrow().or_zero()), burn_per_s: others.burn_per_s.plus(speaks.burn_per_s) }
    }

    fn run_dry(&mut self, now: Mono) {
        while let Some((at, id)) = self.dry.get_min().copied() {
            if now < at {
                break;
            }
            self.dry.remove(&(at, id));
            if let Some(epoch) = self.each.get(&id) {
                self.running.take(epoch);
            }
        }
    }

    fn is_running(&self, id: Epoch, epoch: &EpochAccount) -> bool {
        match dry_at(epoch) {
            Some(at) => self.dry.contains(&(at, id)),
            None => is_open(epoch),
        }
    }

    /// Puts one in, and makes what is kept beside follow, as far as it changes.
    fn put(&mut self, id: Epoch, new: Arc<EpochAccount>) {
        let old = self.each.get(&id).cloned();
        let none = Credits::ZERO;
        let of_old = |amount: fn(&EpochAccount) -> Credits| old.as_deref().map_or(none, amount);
        self.held = self.held.plus(new.escrow()).minus(of_old(EpochAccount::escrow));
        self.unbacked = self.unbacked.plus(new.unbacked()).minus(of_old(EpochAccount::unbacked));
        let (was, is) = (old.as_deref().filter(|old| is_open(old)), Some(new.as_ref()).filter(|new| is_open(new)));
        if was.map(|was| &was.node) != is.map(|is| &is.node) {
            follow(&mut self.of_node, was.map(|was| (was.node.clone(), id)), is.map(|is| (is.node.clone(), id)));
        }
        follow(&mut self.closed, old.as_ref().filter(|_| was.is_none()).map(|_| id), Some(id).filter(|_| is.is_none()));
        follow(&mut self.heard, was.map(|was| (was.heard_at, id)), is.map(|is| (is.heard_at, id)));
        if let Some(was) = was.filter(|was| self.is_running(id, was)) {
            self.running.take(was);
        }
        let dry = |epoch: &EpochAccount| dry_at(epoch).map(|at| (at, id));
        follow(&mut self.dry, was.and_then(dry), is.and_then(dry));
        if let Some(is) = is.filter(|is| self.is_running(id, is)) {
            self.running.add(is);
        }
        self.each.insert(id, new);
    }
}

fn is_open(epoch: &EpochAccount) -> bool {
    epoch.state == EpochState::Open
}

/// One entry of a set becomes another one.
fn follow<K: Ord + Clone>(set: &mut OrdSet<K>, old: Option<K>, new: Option<K>) {
    if old != new {
        old.map(|old| set.remove(&old));
        new.map(|new| set.insert(new));
    }
}

/// One epoch while it is changed.
pub struct Changing<'a> {
    epochs: &'a mut Epochs,
    id: Epoch,
    now: Arc<EpochAccount>,
}

impl Deref for Changing<'_> {
    type Target = EpochAccount;

    fn deref(&self) -> &EpochAccount {
        &self.now
    }
}

impl DerefMut for Changing<'_> {
    fn deref_mut(&mut self) -> &mut EpochAccount {
        Arc::make_mut(&mut self.now)
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        if self.epochs.each.get(&self.id) != Some(&self.now) {
            self.epochs.put(self.id, self.now.clone());
        }
    }
}

impl Index<&Epoch> for Epochs {
    type Output = EpochAccount;

    fn index(&self, id: &Epoch) -> &EpochAccount {
        &self.each[id]
    }
}

impl Extend<(Epoch, EpochAccount)> for Epochs {
    fn extend<I: IntoIterator<Item = (Epoch, EpochAccount)>>(&mut self, epochs: I) {
        for (id, epoch) in epochs {
            self.insert(id, epoch);
        }
    }
}

impl PartialEq for Epochs {
    fn eq(&self, other: &Epochs) -> bool {
        self.each == other.each
    }
}

impl Eq for Epochs {}

impl fmt::Debug for Epochs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::sizing::Holding;
    use super::*;
    use crate::domain::id::Digest;
    use crate::domain::ledger::{EpochRefunds, HourTotals, Totals};
    use proptest::prelude::*;

    const S: u64 = 1_000_000_000;

    fn epoch(node: u8, escrow: i128, burn: i128, heard_at: u64) -> EpochAccount {
        EpochAccount {
            node: format!("n{node}").parse().unwrap(),
            boot: None,
            state: EpochState::Open,
            totals: Totals::Reported,
            granted: Credits::from_nano(escrow),
            returned: Credits::ZERO,
            settled: Credits::ZERO,
            claimed: Credits::ZERO,
            unfunded: Credits::ZERO,
            shortfall: Credits::ZERO,
            last_request: 0,
            last_digest: Digest([0; 32]),
            burn_per_s: Credits::from_nano(burn),
            heard_at: Mono(heard_at),
            hour: HourTotals::default(),
            proven: Credits::ZERO,
            refunds: EpochRefunds::default(),
        }
    }

    fn name(id: u8) -> Epoch {
        Epoch([id; 16])
    }

    #[derive(Clone, Debug)]
    enum Deed {
        Insert { id: u8, node: u8, escrow: i128, burn: i128 },
        Use { id: u8, used: i128 },
        Hear { id: u8, burn: i128 },
        Prove { id: u8, proven: i128 },
        Close(u8),
        DropClosed,
        Pass(u64),
    }

    fn deeds() -> impl Strategy<Value = Vec<Deed>> {
        let (id, amount) = (0_u8..6, 0_i128..40_000_000_000);
        let burn = prop_oneof![Just(0), 1_i128..5_000_000_000, Just(1)];
        let deed = prop_oneof![
            (id.clone(), 0_u8..3, amount.clone(), burn.clone()).prop_map(|(id, node, escrow, burn)| Deed::Insert {
                id,
                node,
                escrow,
                burn
            }),
            (id.clone(), amount.clone()).prop_map(|(id, used)| Deed::Use { id, used }),
            (id.clone(), burn).prop_map(|(id, burn)| Deed::Hear { id, burn }),
            (id.clone(), amount).prop_map(|(id, proven)| Deed::Prove { id, proven }),
            id.prop_map(Deed::Close),
            Just(Deed::DropClosed),
            (0_u64..20 * S).prop_map(Deed::Pass),
        ];
        proptest::collection::vec(deed, 1..60)
    }

    fn change(epochs: &mut Epochs, id: u8, change: impl FnOnce(&mut EpochAccount)) {
        if let Some(mut epoch) = epochs.get_mut(&name(id)) {
            change(&mut epoch);
        }
    }

    fn perform(epochs: &mut Epochs, now: &mut u64, deed: &Deed) {
        match *deed {
            Deed::Insert { id, node, escrow, burn } => epochs.insert(name(id), epoch(node, escrow, burn, *now)),
            Deed::Use { id, used } => {
                change(epochs, id, |epoch| epoch.settled = epoch.settled.plus(epoch.escrow().min(Credits::from_nano(used))));
            }
            Deed::Hear { id, burn } => {
                change(epochs, id, |epoch| (epoch.heard_at, epoch.burn_per_s) = (Mono(*now), Credits::from_nano(burn)));
            }
            Deed::Prove { id, proven } => change(epochs, id, |epoch| epoch.proven = epoch.proven.max(Credits::from_nano(proven))),
            Deed::Close(id) => change(epochs, id, |epoch| epoch.state = EpochState::Closed),
            Deed::DropClosed => epochs.drop_closed(),
            Deed::Pass(ns) => *now += ns,
        }
    }

    /// What is kept, counted anew.
    fn assert_kept(epochs: &mut Epochs, now: Mono, speaking: Epoch) {
        let each = epochs.clone();
        let open = || each.iter().filter(|(_, epoch)| epoch.state == EpochState::Open);
        assert_eq!(epochs.held(), each.values().map(EpochAccount::escrow).sum());
        assert_eq!(epochs.unbacked(), each.values().map(EpochAccount::unbacked).sum());
        for node in ["n0", "n1", "n2"].map(|node| node.parse::<NodeId>().unwrap()) {
            assert!(each.of_node(&node).eq(open().filter(|(_, epoch)| epoch.node == node)), "{node}");
        }
        let heard: std::collections::BTreeSet<&Epoch> = each.heard_until(now).collect();
        assert!(heard.into_iter().eq(open().map(|(id, _)| id)));
        let holding = |(id, epoch): (&Epoch, &EpochAccount)| {
            let age = if *id == speaking { Nanos(0) } else { now.since(epoch.heard_at) };
            // One that has nothing left holds and uses nothing, if it was heard of this very instant or not.
            let age = if *id != speaking && !epoch.escrow().is_positive() { age.max(Nanos(1)) } else { age };
            Holding { escrow: epoch.escrow(), burn_per_s: epoch.burn_per_s, age }
        };
        let expected: Together = open().map(holding).collect();
        let found = epochs.together(now, speaking);
        let slack = i128::try_from(each.iter().count()).unwrap();
        let left = found.left.nano() - expected.left.nano();
        // Fractions are rounded once and not for each; and what one uses in a nanosecond may be left when it is taken to be dry.
        assert!((-6 * slack..=slack).contains(&left), "{found:?} {expected:?}");
        // Where the last nano-credit is being used, a fraction decides.
        let last = |epoch: &EpochAccount| u64::try_from(NANO / burn(epoch).nano().max(1)).unwrap();
        let edge = || open().any(|(_, epoch)| dry_at(epoch).is_some_and(|at| at.0.abs_diff(now.0) <= 1 + last(epoch)));
        assert!(found.burn_per_s == expected.burn_per_s || edge(), "{found:?} {expected:?}");
    }

    proptest! {
        #[test]
        fn what_is_kept_beside_the_epochs_is_what_they_add_up_to(deeds in deeds(), speaking in 0_u8..6) {
            let (mut epochs, mut now) = (Epochs::default(), S);
            for deed in &deeds {
                let before = epochs.clone();
                perform(&mut epochs, &mut now, deed);
                assert_kept(&mut epochs, Mono(now), name(speaking));
                let told: Vec<Epoch> = epochs.changed_since(&before).map(|(id, ..)| *id).collect();
                let differs = |(id, epoch): (&Epoch, &EpochAccount)| (before.get(id) != Some(epoch)).then_some(*id);
                prop_assert_eq!(told, epochs.iter().filter_map(differs).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn an_epoch_counts_until_what_it_holds_must_be_used_up_and_again_once_it_is_heard_of() {
        let mut epochs = Epochs::default();
        epochs.insert(name(1), epoch(1, 10_000, 1_000, 0));
        let me = name(9);
        let both = |together: Together| (together.left.nano(), together.burn_per_s.nano());
        assert_eq!(both(epochs.together(Mono(4 * S), me)), (6_000, 1_000));
        assert_eq!(both(epochs.together(Mono(10 * S - 1), me)), (0, 1_000));
        assert_eq!(both(epochs.together(Mono(10 * S), me)), (0, 0));
        change(&mut epochs, 1, |epoch| (epoch.granted, epoch.heard_at) = (Credits::from_nano(12_000), Mono(10 * S)));
        assert_eq!(both(epochs.together(Mono(11 * S), me)), (11_000, 1_000));
        assert_eq!(both(epochs.together(Mono(60 * S), name(1))), (12_000, 1_000), "it has just said so itself");
    }

    #[test]
    fn extremes_do_not_overflow() {
        let mut epochs = Epochs::default();
        for id in 0..4 {
            epochs.insert(name(id), epoch(id, i128::MAX, i128::MAX, u64::MAX - 1));
        }
        let together = epochs.together(Mono(u64::MAX), name(0));
        assert!(together.left <= epochs.held());
    }
}
