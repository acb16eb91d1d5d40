//! The register of a gang: one at the authority for each run of a job on several nodes. See [`crate::domain::gang`].
//!
//! Who belongs to it is whoever has said a word for it and neither left nor fallen silent for so long that its epoch was closed: a node that died
//! holds up the others no longer than its credit. A register is forgotten with its last part.

use std::collections::BTreeMap;

use super::sizing::GrantFor;
use crate::domain::gang::{GangId, GangWant, GangWord, Says, Want};
use crate::domain::id::{AccountId, Attempt, Epoch, NodeId};
use crate::domain::wire::Request;

/// One part of a gang: its node, and that node's number for its job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartId {
    /// On which node.
    pub node: NodeId,
    /// The node's number for its job.
    pub part: Attempt,
}

/// A part's last word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Standing {
    /// In which epoch of its node it was said: once that is closed it counts no more.
    pub epoch: Epoch,
    /// How it stands.
    pub says: Says,
    /// The highest version that it had heard.
    pub version: u64,
}

/// What all of a gang is to do, and how its parts stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Register {
    /// Which gang.
    pub gang: GangId,
    /// What all of it is to do.
    pub want: Want,
    /// Raised with each change; 1 at the beginning.
    pub version: u64,
    /// Who ran dry, while it stands still.
    pub dry: Option<NodeId>,
    /// Its parts.
    pub parts: BTreeMap<PartId, Standing>,
}

impl Register {
    /// A new one: all run.
    #[must_use]
    pub fn new(gang: GangId) -> Register {
        Register { gang, want: Want::Run, version: 1, dry: None, parts: BTreeMap::new() }
    }

    /// Takes a part's word, said in a request that is news; `is_open` tells whether an epoch may still spend. Push what is wanted to the other
    /// nodes after the commit if its version has risen.
    pub fn hear(&mut self, node: &NodeId, epoch: Epoch, word: &GangWord, is_open: impl Fn(Epoch) -> bool) {
        let part = PartId { node: node.clone(), part: word.part };
        self.parts.insert(part, Standing { epoch, says: word.says, version: word.version });
        if self.version < word.version {
            // This register was put back from a copy, or forgotten: it goes on above whatever it had said.
            self.turn(if word.says == Says::Runs { Want::Run } else { Want::Freeze }, word.version);
            self.dry = (word.says == Says::Dry).then(|| node.clone());
        } else if self.version == word.version && heard_under(word).is_some_and(|heard| heard != self.want) {
            // A copy that was put back has come to this number by another way. To that part what is wanted here is no news.
            self.turn(Want::Freeze, self.version);
            self.dry = (word.says == Says::Dry).then(|| node.clone());
        }
        match (self.want, word.says) {
            (Want::Run, Says::Dry) if word.version == self.version => {
                self.turn(Want::Freeze, self.version);
                self.dry = Some(node.clone());
            }
            (Want::Freeze, _) if self.all_ready(&is_open) => self.turn(Want::Run, self.version),
            _ => {}
        }
    }

    /// Another want, under a version above that one.
    fn turn(&mut self, want: Want, above: u64) {
        (self.want, self.version, self.dry) = (want, above.saturating_add(1), None);
    }

    /// Could every part that counts go on, as far as it has heard of the present version?
    fn all_ready(&self, is_open: &impl Fn(Epoch) -> bool) -> bool {
        let mut counted = self.parts.values().filter(|part| part.counts(is_open)).peekable();
        counted.peek().is_some() && counted.all(|part| part.says == Says::Ready && part.version == self.version)
    }

    /// Has its last part gone?
    #[must_use]
    pub fn is_over(&self, is_open: impl Fn(Epoch) -> bool) -> bool {
        !self.parts.values().any(|part| part.counts(&is_open))
    }

    /// Its word, for its nodes.
    #[must_use]
    pub fn word(&self) -> GangWant {
        GangWant { gang: self.gang.clone(), want: self.want, version: self.version, dry: self.dry.clone() }
    }
}

/// What a part was told to do under the version that it has heard; nothing to go by once it has left.
fn heard_under(word: &GangWord) -> Option<Want> {
    match word.says {
        Says::Runs | Says::Dry => Some(Want::Run),
        Says::Waits | Says::Ready => Some(Want::Freeze),
        Says::Left => None,
    }
}

/// What the account's jobs on a node ask for credit for: as the request speaks of gangs.
pub(super) fn granted_for(request: &Request, account: &AccountId) -> GrantFor {
    let words = || request.gangs.iter().filter(|word| word.gang.account == *account && word.says != Says::Left).map(|word| word.says);
    match words().next() {
        None => GrantFor::Single,
        Some(_) if words().any(|says| says != Says::Runs) => GrantFor::HeldGang,
        Some(_) => GrantFor::Gang,
    }
}

impl Standing {
    fn counts(&self, is_open: &impl Fn(Epoch) -> bool) -> bool {
        self.says != Says::Left && is_open(self.epoch)
    }
}

#[cfg(test)]
mod tests;
