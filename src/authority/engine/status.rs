//! How an engine and the authority get on: counted, and the last faults kept with their reason, for people and metrics.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Failure;
use super::kinds::Kind;
use crate::authority::store::mirror::MirrorView;
use crate::domain::id::AccountId;
use crate::domain::time::{Now, Wall};

/// So many accounts' faults are shown one by one.
const SHOWN_MAX: usize = 32;

/// Keeps count.
#[derive(Debug)]
pub struct EngineStatus {
    kind: Kind,
    url: String,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    mirror: MirrorView,
    taken: u64,
    refused: u64,
    answers: u64,
    movements: u64,
    faults: BTreeMap<&'static str, u64>,
    telling: Option<EngineFault>,
    asking: Option<EngineFault>,
    of_accounts: BTreeMap<AccountId, EngineFault>,
    cannot: Vec<AccountId>,
}

/// What is wrong, while it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EngineFault {
    /// A stable word.
    pub code: String,
    /// In a sentence.
    pub message: String,
    /// Since when.
    #[serde(rename = "since_ms")]
    pub since: Wall,
    /// How often in a row.
    pub count: u64,
}

impl EngineFault {
    fn again(before: Option<EngineFault>, failure: &Failure, now: Now) -> EngineFault {
        let (since, count) = before.map_or((now.wall, 0), |before| (before.since, before.count));
        EngineFault { code: failure.code.to_owned(), message: failure.message.clone(), since, count: count + 1 }
    }
}

/// An engine, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EngineView {
    /// Which one.
    pub kind: String,
    /// Where.
    pub url: String,
    /// Accounts that it keeps, and events that it has not taken.
    pub mirror: MirrorView,
    /// Events that it took, since the process began.
    pub events_taken: u64,
    /// Events that it refused.
    pub events_refused: u64,
    /// Balances that it said.
    pub balances: u64,
    /// How often an account's credit followed one.
    pub movements: u64,
    /// What is no answer, by its code.
    pub faults: BTreeMap<String, u64>,
    /// Why it is not told of use.
    pub telling: Option<EngineFault>,
    /// Why it says no balance at all.
    pub asking: Option<EngineFault>,
    /// Why it says none of an account; the first ones.
    pub accounts: BTreeMap<AccountId, EngineFault>,
    /// Accounts that it does not keep, though it should: their terms give credit that no engine knows of.
    pub not_kept: Vec<AccountId>,
}

impl EngineStatus {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(kind: Kind, url: &str) -> EngineStatus {
        EngineStatus { kind, url: url.to_owned(), inner: Mutex::default() }
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As the store shows it.
    pub fn stands(&self, mirror: MirrorView) {
        self.inner().mirror = mirror;
    }

    /// Which accounts cannot be kept there.
    pub fn cannot(&self, accounts: Vec<AccountId>) {
        self.inner().cannot = accounts;
    }

    /// It had a word for each event of a batch.
    pub fn told(&self, taken: u64, refused: u64) {
        let mut inner = self.inner();
        inner.telling = None;
        (inner.taken, inner.refused) = (inner.taken + taken, inner.refused + refused);
    }

    /// It had none. `true` if that is news.
    pub fn not_told(&self, failure: &Failure, now: Now) -> bool {
        let mut inner = self.inner();
        *inner.faults.entry(failure.code).or_default() += 1;
        let before = inner.telling.take();
        let news = before.as_ref().is_none_or(|before| before.code != failure.code);
        inner.telling = Some(EngineFault::again(before, failure, now));
        news
    }

    /// It said a balance, and the account followed it or held that already.
    pub fn answered(&self, account: &AccountId, moved: bool) {
        let mut inner = self.inner();
        inner.asking = None;
        inner.of_accounts.remove(account);
        inner.answers += 1;
        inner.movements += u64::from(moved);
    }

    /// It did not. `true` if that is news.
    pub fn not_answered(&self, account: &AccountId, failure: &Failure, now: Now) -> bool {
        let mut inner = self.inner();
        *inner.faults.entry(failure.code).or_default() += 1;
        if failure.of == super::FaultOf::Engine {
            let before = inner.asking.take();
            let news = before.as_ref().is_none_or(|before| before.code != failure.code);
            inner.asking = Some(EngineFault::again(before, failure, now));
            return news;
        }
        let before = inner.of_accounts.remove(account);
        let news = before.as_ref().is_none_or(|before| before.code != failure.code);
        inner.of_accounts.insert(account.clone(), EngineFault::again(before, failure, now));
        news
    }

    /// As it is shown.
    #[must_use]
    pub fn view(&self) -> EngineView {
        let inner = self.inner();
        EngineView {
            kind: self.kind.name().to_owned(),
            url: self.url.clone(),
            mirror: inner.mirror.clone(),
            events_taken: inner.taken,
            events_refused: inner.refused,
            balances: inner.answers,
            movements: inner.movements,
            faults: inner.faults.iter().map(|(code, count)| ((*code).to_owned(), *count)).collect(),
            telling: inner.telling.clone(),
            asking: inner.asking.clone(),
            accounts: inner.of_accounts.iter().take(SHOWN_MAX).map(|(id, fault)| (id.clone(), fault.clone())).collect(),
            not_kept: inner.cannot.iter().take(SHOWN_MAX).cloned().collect(),
        }
    }
}
