//! Accounts as they are stored, in memory: nobody else writes the file while this store is open, so what was read or written once need not be
//! read again. An account that a thousand nodes share has a thousand rows.

use std::collections::BTreeMap;

use super::{Account, AccountId, Epoch};
use crate::domain::ledger::Writer;

/// So many accounts at most, and so many writers; then all of them are forgotten, and read again as they are asked about.
const KEPT_MAX: usize = 16_384;

/// Accounts with their open epochs, and what is to be taken back of them. Each is what the file holds, in the transaction that is open or without one.
#[derive(Default)]
pub(super) struct Kept {
    accounts: BTreeMap<AccountId, Account>,
    writers: BTreeMap<Epoch, Writer>,
    pub(super) gangs: Gangs,
}

/// Does the file hold a part of a gang?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Gangs {
    /// That is not known.
    #[default]
    MayBe,
    /// No.
    None,
}

impl Kept {
    pub(super) fn get(&self, id: &AccountId) -> Option<&Account> {
        self.accounts.get(id)
    }

    /// Takes an account as it has just been read or written.
    pub(super) fn put(&mut self, mut account: Account) {
        account.epochs.drop_closed();
        account.revocations.retain(|revocation| revocation.left().is_positive());
        if KEPT_MAX <= self.accounts.len() && !self.accounts.contains_key(&account.id) {
            self.accounts.clear();
        }
        self.accounts.insert(account.id.clone(), account);
    }

    /// Who writes under an epoch, as far as it is known here. Put it back as it is then.
    pub(super) fn take_writer(&mut self, epoch: Epoch) -> Option<Writer> {
        self.writers.remove(&epoch)
    }

    pub(super) fn put_writer(&mut self, epoch: Epoch, writer: Writer) {
        if KEPT_MAX <= self.writers.len() {
            self.writers.clear();
        }
        self.writers.insert(epoch, writer);
    }

    /// A transaction was undone: what is stored is not known any more.
    pub(super) fn forget(&mut self) {
        self.accounts.clear();
        self.writers.clear();
        self.gangs = Gangs::MayBe;
    }
}
