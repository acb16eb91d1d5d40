//! Who writes under an epoch. An honest node gives each of its questions a number of its own, and tells with each what became of those before.
//! Who was copied while it ran, or whose journal was, tells another story under the same numbers: then there are two of it.

use std::collections::BTreeMap;

use super::rules::Writers;
use crate::domain::id::{Digest, NodeId};
use crate::domain::time::Wall;
use crate::domain::wire::{Request, Said};

/// So many of an epoch's numbers are remembered, the highest ones.
pub const NUMBERS_MAX: usize = 64;

/// What is known of the questions under one epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// Who speaks for it.
    pub node: NodeId,
    /// The highest number that was taken; 0 for none.
    pub last: u64,
    /// The words behind numbers that were taken, or named by one that was.
    pub numbers: BTreeMap<u64, Digest>,
    /// Since when it is known that several write.
    pub forked: Option<Wall>,
}

impl Writer {
    /// Of whom nothing was heard.
    #[must_use]
    pub const fn new(node: NodeId) -> Writer {
        Writer { node, last: 0, numbers: BTreeMap::new(), forked: None }
    }

    /// Hears a question. A repeated one changes nothing. `said`: its own number and words.
    pub fn hear(&mut self, request: &Request, said: Said, now: Wall) -> Writers {
        if self.node != request.node {
            return Writers::One; // it may not speak here at all, and that is said elsewhere
        }
        if self.forked.is_none() && self.is_another(request, said) {
            self.forked = Some(now);
        }
        if self.forked.is_some() {
            return Writers::Several;
        }
        if self.last < request.request {
            self.last = request.request;
            self.numbers.extend(told(request).chain([said]).map(|said| (said.request, said.digest)));
            while NUMBERS_MAX < self.numbers.len() {
                self.numbers.pop_first();
            }
        }
        Writers::One
    }

    /// Does it contradict what was heard?
    fn is_another(&self, request: &Request, own: Said) -> bool {
        let differs = |said: Said| self.numbers.get(&said.request).is_some_and(|known| *known != said.digest);
        if differs(own) || told(request).any(differs) {
            return true;
        }
        let Some(history) = &request.history else { return false };
        // Who was answered above the last number heard it from a store that has since forgotten: what was heard here was long on its way.
        let remembered = history.acked.is_none_or(|acked| acked.request <= self.last);
        let knows_the_last = || told(request).any(|said| said.request == self.last);
        remembered && 0 < self.last && self.last < request.request && !knows_the_last()
    }
}

/// What a question tells of those before it.
fn told(request: &Request) -> impl Iterator<Item = Said> + '_ {
    request.history.iter().flat_map(|history| history.acked.into_iter().chain(history.unanswered.iter().copied()))
}
