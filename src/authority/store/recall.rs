//! Recalls: after an answer that came out short, whoever holds much more than he needs is asked to give it back.

use std::collections::BTreeSet;

use super::{ClosePolicy, Lines, Store, StoreError, unrefused};
use crate::domain::id::AccountId;
use crate::domain::ledger::recall;
use crate::domain::time::{Nanos, Now};
use crate::domain::wire::{Answer, Push, Verdict};

/// An account's holders are recalled at most this often.
const RECALL_EVERY: Nanos = Nanos::from_secs(1);

impl Store {
    /// Whom this answer left short: accounts of which nothing is free while some nodes hold more than they need. Push them to all that hold some.
    /// Where the authority serves one machine nobody else holds anything.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn recall(&mut self, answer: &Answer, now: Now) -> Result<Vec<Push>, StoreError> {
        if self.close == ClosePolicy::OnSuccessor {
            return Ok(Vec::new());
        }
        let short = |verdict| matches!(verdict, Verdict::Final | Verdict::Exhausted);
        let lately = |id: &AccountId| self.recalled.get(id).is_some_and(|at| now.mono.since(*at) < RECALL_EVERY);
        let asked = answer.entries.iter().filter(|entry| short(entry.verdict) && !lately(&entry.account));
        let ids: Vec<AccountId> = asked.map(|entry| entry.account.clone()).collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let recalled = self.transact(|books| {
            let mut pushes = Vec::new();
            for id in ids {
                let Some(mut account) = books.load(&id, &BTreeSet::new())? else { continue };
                if recall(&mut account, now.mono).is_empty() {
                    continue;
                }
                books.save(&account, Lines::default(), now)?;
                pushes.push(Push { account: id, version: account.version });
            }
            Ok(pushes)
        });
        let pushes = recalled.map_err(unrefused)?;
        self.recalled.retain(|_, at| now.mono.since(*at) < RECALL_EVERY);
        self.recalled.extend(pushes.iter().map(|push| (push.account.clone(), now.mono)));
        Ok(pushes)
    }
}
