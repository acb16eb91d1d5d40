//! By what an answer is given, beside the account itself: how the store stands, who writes under the epoch, what the node may have.

use std::collections::BTreeSet;

use super::account::Account;
use super::booking::ClosePolicy;
use crate::domain::id::{AccountId, Digest, Epoch};
use crate::domain::money::Credits;
use crate::domain::proof::{Holder, ProofKey};
use crate::domain::wire::{Limits, Request, RequestEntry, Validity};

/// A node may hold so many times what it can use while a grant is valid, over all its epochs: after a reboot the epoch before it waits for its
/// silence, so this many reboots in that time are served.
const EPOCHS_HELD: u8 = 4;

/// By what an answer is given.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// When an epoch's rest is taken back.
    pub close: ClosePolicy,
    /// Makes and checks proofs; none: no claim above what the store knows is believed, where that needs a proof.
    pub key: Option<&'a ProofKey>,
    /// The store's generation.
    pub generation: u64,
    /// Is the store recovering?
    pub recovery: Recovery,
    /// Who writes under the request's epoch?
    pub writers: Writers,
    /// What the node may have.
    pub limits: Option<&'a Limits>,
    /// The request's digest, where it is made already.
    pub digest: Option<Digest>,
    /// Accounts whose balance an engine keeps that has not said it for too long.
    pub stale: Option<&'a BTreeSet<AccountId>>,
}

/// Is a store recovering, after it was put back from a copy?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// No: it knows all that it granted, or what it forgot has run out.
    Over,
    /// It grants nothing: it may have forgotten grants that are still good.
    Goes(Trust),
}

/// What is believed of a node that says it was granted more than the store knows?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// What it proves.
    Proofs,
    /// What it says: the key of the proofs was lost, or there is one node alone.
    Words,
}

/// How many write under one epoch?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writers {
    /// One, as far as anybody can tell.
    One,
    /// Several: a machine was copied while it ran, or its journal was.
    Several,
}

impl<'a> Rules<'a> {
    /// Those of a store that is sound, towards a node of which nothing more is known.
    #[must_use]
    pub const fn of(close: ClosePolicy) -> Rules<'a> {
        Rules { close, key: None, generation: 0, recovery: Recovery::Over, writers: Writers::One, limits: None, digest: None, stale: None }
    }

    fn trust(&self) -> Trust {
        match (self.close, self.recovery) {
            (ClosePolicy::OnSuccessor, _) => Trust::Words,
            (ClosePolicy::AfterSilence(_), Recovery::Goes(trust)) => trust,
            (ClosePolicy::AfterSilence(_), Recovery::Over) => Trust::Proofs,
        }
    }

    /// The most that this epoch can have been granted, by what the store knows and by what the node shows.
    pub(super) fn believed(&self, holder: Holder<'_>, entry: &RequestEntry, known: Credits) -> Credits {
        let proved = entry.proof.filter(|proof| self.key.is_some_and(|key| key.made(holder, proof)));
        let shown = match self.trust() {
            Trust::Proofs => proved.map_or(Credits::ZERO, |proof| proof.granted),
            Trust::Words => match self.held_max() {
                None => entry.granted_seen,
                Some(most) => entry.granted_seen.min(entry.spent.plus(entry.returned).plus(most)),
            },
        };
        known.max(shown)
    }

    /// Is this entry of a recovering store's request about an epoch that may have been closed, and its credit given to others, in the part
    /// that is lost?
    pub(super) fn has_lapsed(&self, entry: &RequestEntry, granted: Credits) -> bool {
        let holds = entry.granted_seen.is_positive() || granted.is_positive();
        self.recovery != Recovery::Over && holds && entry.validity == Some(Validity::Lapsed)
    }

    /// May the account be used on this node?
    pub(super) fn admits(&self, account: &Account) -> bool {
        self.limits.and_then(|limits| limits.admitted.as_ref()).is_none_or(|admitted| admitted.contains(&account.id))
    }

    /// Is what the account holds here too old to grant anything of it?
    pub(super) fn is_stale(&self, account: &Account) -> bool {
        self.stale.is_some_and(|stale| stale.contains(&account.id))
    }

    fn held_max(&self) -> Option<Credits> {
        self.limits.and_then(|limits| limits.held_max)
    }

    /// How much more this epoch may hold; `of_node`: what all open epochs of its node hold of the account.
    pub(super) fn room(&self, escrow: Credits, of_node: Credits) -> Option<Credits> {
        let most = self.held_max()?;
        let all = Credits::from_nano(most.nano().saturating_mul(i128::from(EPOCHS_HELD)));
        Some(most.minus(escrow).min(all.minus(of_node)).or_zero())
    }
}

/// Does this request prove that the store has forgotten what it granted? Only by a proof of the store's own generation, or of a later one: of
/// what an earlier one forgot it has recovered, or is about to. `known`: the most that the store knows an epoch to have been granted of an
/// account, and the last number that was taken.
///
/// # Errors
/// Those of `known`.
pub fn has_forgotten<E>(
    request: &Request,
    key: &ProofKey,
    generation: u64,
    mut known: impl FnMut(&AccountId, Epoch) -> Result<(Credits, u64), E>,
) -> Result<bool, E> {
    let own = request.entries.iter().map(|entry| (request.epoch, entry));
    let earlier = request.previous.iter().flat_map(|earlier| earlier.entries.iter().map(|entry| (earlier.epoch, entry)));
    for (epoch, entry) in own.chain(earlier) {
        let Some(proof) = entry.proof.filter(|proof| generation <= proof.generation) else { continue };
        let (granted, last_request) = known(&entry.account, epoch)?;
        let is_news = generation < proof.generation || granted < proof.granted || last_request < proof.request;
        if is_news && key.made(Holder { node: &request.node, account: &entry.account, epoch }, &proof) {
            return Ok(true);
        }
    }
    Ok(false)
}
