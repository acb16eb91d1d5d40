//! When an engine is told and asked: spread out, later after each fault in a row, and never two things at once of one kind.

use std::collections::BTreeMap;

use super::{Failure, FaultOf};
use crate::domain::id::AccountId;
use crate::domain::time::{Mono, Nanos};
use crate::node::link::Backoff;

/// An engine may want to be left alone for so long at most.
const WAIT_MAX: Nanos = Nanos::from_secs(600);

fn wait(backoff: &mut Backoff, failure: &Failure, draw: impl FnOnce(Nanos) -> Nanos) -> Nanos {
    let own = u64::try_from(backoff.wait(draw).as_nanos()).unwrap_or(u64::MAX);
    Nanos(own.max(failure.wait.min(WAIT_MAX).0))
}

/// When events are sent, and how many at once.
#[derive(Clone, Debug)]
pub struct Telling {
    every: Nanos,
    most_ever: usize,
    now_most: usize,
    due: Mono,
    backoff: Backoff,
}

impl Telling {
    /// At most so many at once, from now on.
    #[must_use]
    pub fn new(every: Nanos, most: usize, now: Mono) -> Telling {
        Telling { every, most_ever: most, now_most: most, due: now, backoff: Backoff::new() }
    }

    /// When they are sent next.
    #[must_use]
    pub fn due(&self) -> Mono {
        self.due
    }

    /// How many at once.
    #[must_use]
    pub fn most(&self) -> usize {
        self.now_most
    }

    /// So many were sent, and the engine had a word for each.
    pub fn told(&mut self, count: usize, now: Mono) {
        self.backoff.reset();
        let more_wait = count != 0 && self.now_most <= count;
        self.now_most = self.now_most.saturating_mul(2).clamp(1, self.most_ever);
        self.due = if more_wait { now } else { now.plus(self.every) };
    }

    /// It had none.
    pub fn failed(&mut self, failure: &Failure, now: Mono, draw: impl FnOnce(Nanos) -> Nanos) {
        if failure.of == FaultOf::Part && 1 < self.now_most {
            self.now_most /= 2;
            self.due = now;
            return;
        }
        self.due = now.plus(wait(&mut self.backoff, failure, draw));
    }
}

/// When balances are asked for.
#[derive(Clone, Debug)]
pub struct Asking {
    every: Nanos,
    due: BTreeMap<AccountId, Mono>,
    rests_until: Mono,
    backoff: Backoff,
}

impl Asking {
    /// Nobody's yet.
    #[must_use]
    pub fn new(every: Nanos, now: Mono) -> Asking {
        Asking { every, due: BTreeMap::new(), rests_until: now, backoff: Backoff::new() }
    }

    /// Those of these accounts; new ones at once.
    pub fn of(&mut self, accounts: &[AccountId], now: Mono) {
        self.due.retain(|id, _| accounts.binary_search(id).is_ok());
        for id in accounts {
            self.due.entry(id.clone()).or_insert(now);
        }
    }

    /// Those that are due, the longest first, at most so many.
    #[must_use]
    pub fn next(&self, most: usize, now: Mono) -> Vec<AccountId> {
        if now < self.rests_until {
            return Vec::new();
        }
        let mut due: Vec<(Mono, &AccountId)> = self.due.iter().filter(|(_, at)| **at <= now).map(|(id, at)| (*at, id)).collect();
        due.sort();
        due.into_iter().take(most).map(|(_, id)| id.clone()).collect()
    }

    /// When the next one is; none without accounts.
    #[must_use]
    pub fn due(&self) -> Option<Mono> {
        self.due.values().min().map(|due| (*due).max(self.rests_until))
    }

    /// The engine said a balance.
    pub fn answered(&mut self, id: &AccountId, now: Mono, draw: impl FnOnce(Nanos) -> Nanos) {
        self.backoff.reset();
        self.again(id, now, draw);
    }

    /// It did not.
    pub fn failed(&mut self, id: &AccountId, failure: &Failure, now: Mono, mut draw: impl FnMut(Nanos) -> Nanos) {
        if failure.of == FaultOf::Engine {
            // Several questions are on their way at once, and fail for one reason.
            if self.rests_until <= now {
                self.rests_until = now.plus(wait(&mut self.backoff, failure, &mut draw));
            }
        } else {
            self.again(id, now, draw);
        }
    }

    /// Between nine and eleven tenths of the time from now.
    fn again(&mut self, id: &AccountId, now: Mono, draw: impl FnOnce(Nanos) -> Nanos) {
        let tenth = self.every.0 / 10;
        let pause = self.every.0 - tenth + draw(Nanos(2 * tenth)).0.min(2 * tenth);
        if let Some(due) = self.due.get_mut(id) {
            *due = now.plus(Nanos(pause));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn at(secs: u64) -> Mono {
        Mono(secs * SECOND)
    }

    #[test]
    fn a_batch_that_is_refused_is_halved_until_the_guilty_event_is_alone() {
        let mut telling = Telling::new(Nanos::from_secs(10), 4, at(0));
        let part = Failure { of: FaultOf::Part, ..Failure::new("refused_422", "one of them") };
        telling.failed(&part, at(1), |most| most);
        assert_eq!((telling.most(), telling.due()), (2, at(1)));
        telling.failed(&part, at(1), |most| most);
        assert_eq!((telling.most(), telling.due()), (1, at(1)));
        telling.failed(&part, at(1), |most| most);
        assert_eq!(telling.due(), Mono(SECOND + SECOND / 4), "one that still is not told apart waits");
        telling.told(1, at(2));
        assert_eq!((telling.most(), telling.due()), (2, at(2)), "others may wait");
        telling.told(1, at(2));
        assert_eq!((telling.most(), telling.due()), (4, at(12)));
    }

    #[test]
    fn an_engine_that_wants_to_be_left_alone_is_and_not_for_ever() {
        let mut telling = Telling::new(Nanos::from_secs(10), 4, at(0));
        telling.failed(&Failure { wait: Nanos::from_secs(30), ..Failure::new("refused_429", "") }, at(0), |most| most);
        assert_eq!(telling.due(), at(30));
        telling.failed(&Failure { wait: Nanos::from_secs(1 << 30), ..Failure::new("refused_429", "") }, at(0), |most| most);
        assert_eq!(telling.due(), at(600));
    }

    #[test]
    fn one_account_s_fault_holds_up_no_other_and_the_engine_s_holds_up_all_once() {
        let ids: Vec<AccountId> = ["a", "b", "c"].map(|id| id.parse().unwrap()).into();
        let mut asking = Asking::new(Nanos::from_secs(10), at(0));
        asking.of(&ids, at(0));
        assert_eq!(asking.next(2, at(0)), ids[..2]);
        asking.answered(&ids[0], at(0), |_| Nanos(0));
        asking.failed(&ids[1], &Failure::of_account("unknown_customer", ""), at(0), |most| most);
        assert_eq!(asking.next(9, at(0)), ids[2..]);
        asking.failed(&ids[2], &Failure::new("unreachable", ""), at(0), |most| most);
        asking.failed(&ids[2], &Failure::new("unreachable", ""), at(0), |most| most);
        assert_eq!((asking.next(9, at(0)), asking.due()), (vec![], Some(Mono(SECOND / 4))));
        assert_eq!(asking.next(9, at(9)), [ids[2].clone(), ids[0].clone()], "nine tenths of ten seconds");
        assert_eq!(asking.next(9, at(11)).len(), 3);
        asking.of(&ids[1..2], at(11));
        assert_eq!(asking.next(9, at(11)), ids[1..2]);
        asking.of(&[], at(11));
        assert_eq!(asking.due(), None);
    }
}
