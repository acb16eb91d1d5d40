//! What is held and not needed goes back (N7), so that other nodes of the account can use it.
//!
//! A grant is sized for the burn that was expected when it was asked for: of a job that has just begun, the greatest one possible. Whatever
//! is far beyond what the jobs turn out to use is returned as soon as the authority has been heard.

use super::super::fact::Fact;
use super::super::id::AccountId;
use super::super::ledger::sizing::{HORIZON_MAX, HORIZON_OF_GANGS, HORIZON_OF_THE_LAST, used_in};
use super::super::money::Credits;
use super::super::time::Nanos;
use super::credit::STEP_AHEAD;
use super::draft::Draft;
use super::gang::{Held, Others};
use super::start::PendingStart;

/// Less than this part of what is kept is not worth a message.
const WORTH_PART: i128 = 4;
/// What a part of a gang keeps lasts so long: with what is not worth a message no longer than the others may wait for it.
const KEPT_BY_PARTS: Nanos = Nanos(HORIZON_OF_GANGS.0 / 5 * 4);

impl Draft<'_> {
    /// Of the accounts that the authority was just heard of.
    pub(super) fn give_back_surplus(&mut self, starts: &[PendingStart]) {
        let heard = self.agent.accounts.iter().filter(|(_, account)| account.grant.verdict.is_some_and(|heard| heard.at == self.now.boot));
        let waits = |id: &AccountId| starts.iter().any(|start| start.wanted.account == *id);
        let surpluses: Vec<(AccountId, Credits)> = heard
            .filter(|(id, _)| !waits(id))
            .map(|(id, _)| (id.clone(), self.surplus(id)))
            .filter(|(_, surplus)| surplus.is_positive())
            .collect();
        for (account, surplus) in surpluses {
            let Some(grant) = self.agent.accounts.get(&account).map(|account| &account.grant) else { continue };
            let returned = grant.returned.plus(surplus);
            self.record(Fact::Returned { account, returned });
        }
    }

    /// What of the account's credit in hand is far beyond what its jobs are expected to use.
    fn surplus(&self, id: &AccountId) -> Credits {
        let Some(account) = self.agent.accounts.get(id).filter(|account| !account.jobs.is_empty()) else { return Credits::ZERO };
        let in_hand = account.grant.in_hand(self.now.boot);
        // What stands still with its gang was measured before.
        let held = self.agent.held_of(id).filter(|held| held.others == Others::None);
        if !in_hand.is_positive() || held.is_none() && self.agent.is_unmeasured(id, account, self.now.mono) {
            return Credits::ZERO;
        }
        let longest = if self.agent.has_part(id) { KEPT_BY_PARTS } else { HORIZON_MAX };
        let horizon = if account.grant.free.is_positive() { longest } else { HORIZON_OF_THE_LAST };
        let burn = held.map_or_else(|| self.agent.burn_expected(id, account, self.settings, self.now.mono), Held::burn_per_s);
        let due = self.agent.owed(id).plus(self.agent.kept(id, self.settings, self.now.mono, STEP_AHEAD));
        let kept = used_in(burn, horizon).plus(due);
        let surplus = in_hand.minus(kept);
        if surplus.nano() <= kept.nano() / WORTH_PART { Credits::ZERO } else { surplus }
    }
}
