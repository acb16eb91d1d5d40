//! Accounts as they are stored, in memory: nobody else writes the file while this store is open, so what was read or written once need not be
//! read again. An account that a thousand nodes share has a thousand rows.

use std::collections::BTreeMap;

use super::{Account, AccountId, EpochState};

/// So many accounts at most; then all are forgotten, and read again as they are asked about.
const KEPT_MAX: usize = 16_384;

/// Accounts with their open epochs, and what is to be taken back of them. Each is what the file holds, in the transaction that is open or without one.
#[derive(Default)]
pub(super) struct Kept(BTreeMap<AccountId, Account>);

impl Kept {
    pub(super) fn get(&self, id: &AccountId) -> Option<&Account> {
        self.0.get(id)
    }

    /// Takes an account as it has just been read or written.
    pub(super) fn put(&mut self, mut account: Account) {
        account.epochs.retain(|_, epoch| epoch.state == EpochState::Open);
        account.revocations.retain(|revocation| revocation.left().is_positive());
        if KEPT_MAX <= self.0.len() && !self.0.contains_key(&account.id) {
            self.forget();
        }
        self.0.insert(account.id.clone(), account);
    }

    /// A transaction was undone: what is stored is not known any more.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}
