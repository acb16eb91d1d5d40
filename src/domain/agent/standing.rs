//! How a node stands with the authority beside the amounts: which of its questions were answered, the highest generation of the store, and
//! the proofs of what was granted. How that stands in a checkpoint, and how facts change it.

use serde::{Deserialize, Serialize};

use super::super::grant::Grant;
use super::super::id::AccountId;
use super::super::proof::Proof;
use super::super::time::Boot;
use super::super::wire::{History, PreviousEpoch, Request, RequestRest, UNANSWERED_MAX};
use super::{Account, Agent};

/// What is kept of the questions and answers themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The highest generation of a store that was heard of.
    pub generation_seen: u64,
    /// What became of this epoch's questions; none in an epoch that began before that was kept.
    pub history: Option<History>,
}

impl Standing {
    /// So many questions are unanswered that the last one can only be repeated.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.history.as_ref().is_some_and(|history| UNANSWERED_MAX <= history.unanswered.len())
    }

    /// A new epoch.
    pub(super) fn begin(&mut self) {
        self.history = Some(History::default());
    }

    pub(super) fn asked(&mut self, request: &Request) {
        if self.is_full() {
            self.history = None; // an agent that kept no count has asked more
        }
        if let Some(history) = &mut self.history {
            history.unanswered.push(request.said());
        }
    }

    /// The last question says more than its core: those are its words.
    pub(super) fn said_more(&mut self, request: &Request) {
        if let Some(last) = self.history.as_mut().and_then(|history| history.unanswered.last_mut()) {
            *last = request.said();
        }
    }

    pub(super) fn answered(&mut self, request: &Request) {
        if let Some(history) = &mut self.history {
            history.acked = Some(request.said());
            history.unanswered.clear(); // all of them are older
        }
    }
}

/// The checkpoint's part behind all others.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StandingPart {
    standing: Standing,
    proofs: Vec<(AccountId, Proof)>,
    outstanding: Option<RequestRest>,
    /// By earlier epoch, by entry.
    previous: Vec<Vec<Option<Proof>>>,
}

pub(super) fn of(agent: &Agent) -> StandingPart {
    let proofs = |earlier: &PreviousEpoch| earlier.entries.iter().map(|entry| entry.proof).collect();
    StandingPart {
        standing: agent.standing.clone(),
        proofs: agent.accounts.iter().filter_map(|(id, account)| Some((id.clone(), account.grant.proof?))).collect(),
        outstanding: agent.outstanding.as_ref().map(|outstanding| outstanding.request.rest()),
        previous: agent.previous.iter().map(proofs).collect(),
    }
}

pub(super) fn put_back(agent: &mut Agent, part: StandingPart) {
    agent.standing = part.standing;
    for (id, proof) in part.proofs {
        agent.account(&id).grant.proof = Some(proof);
    }
    if let (Some(outstanding), Some(rest)) = (&mut agent.outstanding, part.outstanding) {
        outstanding.request.put_rest(rest);
    }
    for (earlier, proofs) in agent.previous.iter_mut().zip(part.previous) {
        earlier.entries.iter_mut().zip(proofs).for_each(|(entry, proof)| entry.proof = proof);
    }
}

/// Of each account the authority's last word, as far as that stands in no other part.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WordPart {
    account: AccountId,
    hear_again_at: Boot,
    pushed_when_asked: u64,
}

pub(super) fn words_of(agent: &Agent) -> Vec<WordPart> {
    let word = |(id, account): (&AccountId, &Account)| {
        let Grant { hear_again_at, pushed_when_asked, .. } = account.grant;
        WordPart { account: id.clone(), hear_again_at, pushed_when_asked }
    };
    agent.accounts.iter().map(word).collect()
}

pub(super) fn put_back_words(agent: &mut Agent, words: Vec<WordPart>) {
    for WordPart { account, hear_again_at, pushed_when_asked } in words {
        let grant = &mut agent.account(&account).grant;
        (grant.hear_again_at, grant.pushed_when_asked) = (hear_again_at, pushed_when_asked);
    }
}

impl Agent {
    /// The question that was just asked says more: those are its words.
    pub(super) fn take_rest(&mut self, rest: &RequestRest) {
        let Some(outstanding) = &mut self.outstanding else { return };
        outstanding.request.put_rest(rest.clone());
        self.standing.said_more(&outstanding.request);
    }

    pub(super) fn take_proofs(&mut self, generation: u64, proofs: &[(AccountId, Proof)]) {
        self.standing.generation_seen = self.standing.generation_seen.max(generation);
        for (id, proof) in proofs {
            self.account(id).grant.take_proof(*proof);
        }
    }
}
