//! A grant's life on the node: what one account may spend here in this epoch, for how long, and what the authority said last.
//!
//! ```text
//!   NEW --ask--> ASKING --granted--> HOLDING --in hand = 0 or deadline--> EMPTY --fresh "exhausted"--> EXHAUSTED
//!                  ^                    |                                   |
//!                  +---- half used -----+------------- push: ask again -----+
//! ```
//!
//! `EMPTY` is a fact that the node knows by itself; only the *reason* needs the authority. Nobody can take credit from a node: it
//! can only give it back.

use serde::{Deserialize, Serialize};

use super::money::Credits;
use super::proof::Proof;
use super::time::{Boot, Nanos, Now, Wall};
use super::wire::{AccountPolicy, AnswerEntry, Validity, Verdict};

/// What one account may spend on this node. Running totals of one epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Moved from the balance into this epoch; raised by the authority alone.
    pub granted: Credits,
    /// Given back; raised by the node alone.
    pub returned: Credits,
    /// Charged; raised by the node alone.
    pub spent: Credits,
    /// Used past zero and written off.
    pub unfunded: Credits,
    /// Until when what is in hand may be spent.
    pub deadline: Boot,
    /// The last accepted answer's word, and to which request; gone once a push says that the account has changed.
    pub verdict: Option<Heard>,
    /// What the authority had settled, at the last answer.
    pub settled: Credits,
    /// What was free for new grants, at the last answer.
    pub free: Credits,
    /// The highest version seen in an answer.
    pub version: u64,
    /// The highest version that a push told of.
    pub pushed_version: u64,
    /// In hand right after the last answer: half of it used means "ask again".
    pub horizon: Credits,
    /// `spent`, `returned` and `unfunded` as last told to the authority.
    pub told: Told,
    /// The account's policy, at the last answer.
    pub policy: AccountPolicy,
    /// Has the authority been asked for credit and not been heard since? It may have granted some.
    pub asked: Asked,
    /// The authority's proof of `granted`. In the checkpoint it stands behind what was there before it.
    #[serde(skip)]
    pub proof: Option<Proof>,
    /// When the authority is to hear of the account again, used or not. In the checkpoint behind the rest, as the next one.
    #[serde(skip)]
    pub hear_again_at: Boot,
    /// `pushed_version` when the last question was asked: its answer was written no earlier than what that push told of.
    #[serde(skip)]
    pub pushed_when_asked: u64,
}

/// The authority hears of each account at least this often: one of which it hears nothing for eleven minutes may be taken for dead there, and with it the
/// epoch, which is that of all accounts.
const HEARD_OF_EVERY: Nanos = Nanos::from_secs(300);

/// Is there a question about an account that has had no answer?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Asked {
    /// None.
    #[default]
    No,
    /// One was sent or is about to be. It may be void by now; what it brought about at the authority is not.
    Yes,
}

/// The totals that an accepted answer has acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Charged.
    pub spent: Credits,
    /// Given back.
    pub returned: Credits,
    /// Written off.
    pub unfunded: Credits,
}

/// A verdict and when it was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// The word.
    pub verdict: Verdict,
    /// In answer to which request.
    pub request: u64,
    /// When, on the clock that goes on while the machine sleeps: a word ages in that time too.
    pub at: Boot,
    /// When, for people.
    pub wall: Wall,
}

impl Grant {
    /// What may be spent now: nothing once the deadline has passed.
    #[must_use]
    pub fn in_hand(&self, now: Boot) -> Credits {
        if now < self.deadline { self.held() } else { Credits::ZERO }
    }

    /// What has been granted and neither spent nor given back, whatever the deadline.
    #[must_use]
    pub fn held(&self) -> Credits {
        self.granted.minus(self.returned).minus(self.spent).or_zero()
    }

    /// What the account has left, as far as is known here: in hand, free at the authority, and on its way back to it.
    #[must_use]
    pub fn left(&self, now: Boot) -> Credits {
        self.in_hand(now).plus(self.free).plus(self.returned.minus(self.told.returned))
    }

    /// Has the authority said, freshly, that there is nothing left?
    #[must_use]
    pub fn exhausted(&self) -> Option<Heard> {
        self.verdict.filter(|heard| heard.verdict == Verdict::Exhausted)
    }

    /// Takes the authority's word: `granted` by maximum, the deadline counted from the request's first sending.
    pub fn take(&mut self, entry: &AnswerEntry, told: Told, request: u64, first_sent: Boot, at: Now) {
        self.granted = self.granted.max(entry.granted);
        // Of the others the authority does not count the epoch as heard of, so they must not prolong it.
        if entry.verdict.prolongs() && !(self.validity(at.boot) == Validity::Lapsed && entry.verdict.may_be_of_a_copy()) {
            self.deadline = self.deadline.max(first_sent.plus(entry.valid_for));
        }
        self.settled = self.settled.max(entry.settled);
        self.free = if entry.verdict == Verdict::Recall { Credits::ZERO } else { entry.free };
        if self.pushed_version <= self.pushed_when_asked {
            self.pushed_version = self.pushed_version.min(entry.version); // a lower one is of a store that was put back
        }
        self.version = entry.version; // only the outstanding question's answer comes here, so none is older than the one before
        self.policy = entry.policy;
        self.told = told;
        let good_for = if entry.verdict.prolongs() { entry.valid_for } else { Nanos(u64::MAX) };
        self.hear_again_at = first_sent.plus(HEARD_OF_EVERY.min(Nanos(good_for.0 / 2)));
        self.horizon = self.held();
        self.verdict = if self.version < self.pushed_version {
            None // written before the change that the push told of
        } else {
            Some(Heard { verdict: entry.verdict, request, at: at.boot, wall: at.wall })
        };
    }

    /// A question about the account is about to be sent.
    pub fn asked(&mut self) {
        self.asked = Asked::Yes;
        self.pushed_when_asked = self.pushed_version;
    }

    /// Takes a proof: the one of the highest `granted` is kept, and of those the latest.
    pub fn take_proof(&mut self, proof: Proof) {
        let rank = |proof: &Proof| (proof.granted, proof.generation, proof.request);
        if proof.granted == self.granted && self.proof.is_none_or(|kept| rank(&kept) <= rank(&proof)) {
            self.proof = Some(proof);
        }
    }

    /// May what is in hand be spent?
    #[must_use]
    pub fn validity(&self, now: Boot) -> Validity {
        if now < self.deadline { Validity::Live } else { Validity::Lapsed }
    }

    /// A push: what the authority said before is no longer its word.
    pub fn pushed(&mut self, version: u64) {
        if self.version < version {
            self.pushed_version = self.pushed_version.max(version);
            self.verdict = None;
        }
    }

    /// Must the authority hear how this epoch ended? Of a question without an answer nobody here knows what it brought.
    #[must_use]
    pub fn has_a_last_word(&self) -> bool {
        self.granted.is_positive() || self.unfunded.is_positive() || self.asked == Asked::Yes
    }

    /// Does a push wait for its question?
    #[must_use]
    pub fn push_unanswered(&self) -> bool {
        self.version < self.pushed_version
    }
}

/// The earliest instant at which `in_hand` can be used up: the length for which it lasts at the greatest burn, rounded down.
/// `None` if nothing burns.
#[must_use]
pub fn lasts(in_hand: Credits, burn_max_per_s: Credits) -> Option<Nanos> {
    if !burn_max_per_s.is_positive() {
        return None;
    }
    let (nano, burn) = (in_hand.or_zero().nano(), burn_max_per_s.nano());
    // Seconds first, so that no product overflows however rich the account.
    let whole_secs = u64::try_from(nano / burn).unwrap_or(u64::MAX);
    let rest_ns = (nano % burn).checked_mul(1_000_000_000).map_or(0, |product| product / burn);
    Some(Nanos(whole_secs.saturating_mul(1_000_000_000).saturating_add(u64::try_from(rest_ns).unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::super::time::Mono;
    use super::*;
    use proptest::prelude::*;

    const AT: Now = Now { mono: Mono(0), boot: Boot(0), wall: Wall(0) };

    fn entry(granted: i128, verdict: Verdict, version: u64) -> AnswerEntry {
        AnswerEntry {
            account: "a".parse().unwrap(),
            unit: super::super::wire::UNIT.to_owned(),
            granted: Credits::from_nano(granted),
            valid_for: Nanos::from_secs(600),
            verdict,
            settled: Credits::ZERO,
            free: Credits::ZERO,
            version,
            policy: AccountPolicy::default(),
            proof: None,
        }
    }

    #[test]
    fn an_old_answer_never_lowers_what_was_granted() {
        let mut grant = Grant::default();
        grant.take(&entry(100, Verdict::Granted, 1), Told::default(), 2, Boot(10), AT);
        grant.take(&entry(60, Verdict::Granted, 1), Told::default(), 1, Boot(5), AT);
        assert_eq!(grant.granted, Credits::from_nano(100));
        assert_eq!(grant.deadline, Boot(10).plus(Nanos::from_secs(600)));
    }

    #[test]
    fn validity_counts_from_the_first_sending_and_then_nothing_is_in_hand() {
        let mut grant = Grant::default();
        grant.take(&entry(100, Verdict::Granted, 1), Told::default(), 1, Boot(1_000), AT);
        let last = Boot(1_000).plus(Nanos::from_secs(600));
        assert_eq!(grant.in_hand(Boot(last.0 - 1)), Credits::from_nano(100));
        assert_eq!(grant.in_hand(last), Credits::ZERO);
    }

    /// The question said that the grant was live, and was long on its way: meanwhile it lapsed, and the epoch was closed in the part that is lost.
    #[test]
    fn the_word_of_a_store_that_recovers_revives_nothing_that_has_lapsed() {
        for (verdict, revives) in [(Verdict::Recovering, false), (Verdict::Recall, false), (Verdict::Granted, true), (Verdict::Final, true)]
        {
            let mut grant = Grant::default();
            grant.take(&entry(100, Verdict::Granted, 1), Told::default(), 1, Boot(1_000), AT);
            let last = Boot(1_000).plus(Nanos::from_secs(600));
            let mut in_time = grant.clone();
            let before = Now { boot: Boot(last.0 - 1), ..AT };
            in_time.take(&entry(100, verdict, 1), Told::default(), 2, Boot(last.0 - 5), before);
            assert_eq!(in_time.deadline, Boot(last.0 - 5).plus(Nanos::from_secs(600)), "{verdict:?}");
            grant.take(&entry(100, verdict, 1), Told::default(), 2, Boot(last.0 - 5), Now { boot: last, ..AT });
            assert_eq!(grant.in_hand(last).is_positive(), revives, "{verdict:?}");
        }
    }

    #[test]
    fn the_proof_of_the_most_that_was_granted_is_kept_and_of_those_the_latest() {
        let proof = |granted: i128, generation, request| {
            let granted = Credits::from_nano(granted);
            Proof { generation, request, granted, code: super::super::id::Digest([0; 32]) }
        };
        let mut grant = Grant { granted: Credits::from_nano(100), ..Grant::default() };
        grant.take_proof(proof(100, 1, 5));
        grant.take_proof(proof(60, 2, 9)); // of a store that has forgotten some of it
        assert_eq!(grant.proof, Some(proof(100, 1, 5)));
        grant.take_proof(proof(100, 1, 4));
        assert_eq!(grant.proof, Some(proof(100, 1, 5)));
        grant.take_proof(proof(100, 1, 6));
        grant.take_proof(proof(120, 2, 7)); // of more than was taken
        assert_eq!(grant.proof, Some(proof(100, 1, 6)));
        grant.take_proof(proof(100, 2, 1));
        assert_eq!(grant.proof, Some(proof(100, 2, 1)));
    }

    #[test]
    fn a_word_written_before_the_push_is_not_a_verdict() {
        let mut grant = Grant::default();
        grant.pushed(2);
        grant.take(&entry(0, Verdict::Exhausted, 1), Told::default(), 1, Boot(0), AT);
        assert_eq!(grant.exhausted(), None);
        grant.take(&entry(0, Verdict::Exhausted, 2), Told::default(), 2, Boot(0), AT);
        assert!(grant.exhausted().is_some());
        grant.pushed(3);
        assert_eq!(grant.exhausted(), None, "a later push takes the verdict away");
        grant.asked();
        grant.take(&entry(0, Verdict::Exhausted, 1), Told::default(), 3, Boot(0), AT);
        assert!(grant.exhausted().is_some() && !grant.push_unanswered(), "asked after the push: of a store that was put back");
        grant.pushed(2);
        assert_eq!((grant.exhausted(), grant.push_unanswered()), (None, true), "its versions count on from there");
    }

    proptest! {
        #[test]
        fn the_earliest_instant_is_never_late(in_hand in 0_i128..1 << 90, burn in 1_i128..1 << 60) {
            let length = lasts(Credits::from_nano(in_hand), Credits::from_nano(burn)).unwrap();
            if length.0 < u64::MAX {
                let used = i128::from(length.0).checked_mul(burn).map(|product| product / 1_000_000_000);
                prop_assert!(used.is_none_or(|used| used <= in_hand));
            }
        }
    }
}
