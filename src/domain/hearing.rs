//! What of an answer can be believed. It came over a network: it may be old, another's, cut, or a lie. What cannot be believed is left out
//! and named; a node loses nothing by it but time, since it spends what it holds until that is used up or lapses.

use super::id::{AccountId, Epoch, JobName};
use super::ledger::AMOUNT_MAX;
use super::money::Credits;
use super::time::Nanos;
use super::wire::{Answer, AnswerEntry, PROTOCOL, Request, RequestEntry, UNIT, Verdict};

/// No grant is good for longer.
const VALID_FOR_MAX: Nanos = Nanos::from_secs(7 * 86_400);

/// Why an answer, or an entry of it, is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Disbelief {
    /// It speaks another protocol.
    #[error("the answer speaks protocol {0}")]
    Protocol(u16),
    /// It is about another epoch.
    #[error("the answer is about epoch {0}")]
    OtherEpoch(Epoch),
    /// It answers another question: an earlier one, or one that was never asked.
    #[error("the answer is to question {answered}, {asked} was asked")]
    OtherQuestion {
        /// The number that was asked.
        asked: u64,
        /// The number that was answered.
        answered: u64,
    },
    /// It answers other words under the same number.
    #[error("the answer is to other words under this question's number")]
    OtherWords,
    /// It acknowledges an epoch that nobody told of.
    #[error("the answer acknowledges epoch {0}, of which it was told nothing")]
    OtherPrevious(Epoch),
    /// It is about an account that was not asked about.
    #[error("the answer is about account {0}, which was not asked about")]
    OtherAccount(AccountId),
    /// An account stands in it twice.
    #[error("the answer speaks of account {0} twice")]
    Doubled(AccountId),
    /// An account that was asked about does not stand in it.
    #[error("the answer says nothing of account {0}")]
    Missing(AccountId),
    /// Its amounts are in another unit.
    #[error("the answer counts account {account} in {unit:?}")]
    OtherUnit {
        /// Whose.
        account: AccountId,
        /// The unit.
        unit: String,
    },
    /// A number that cannot be.
    #[error("the answer's {what} of account {account} cannot be")]
    Impossible {
        /// Whose.
        account: AccountId,
        /// Which.
        what: &'static str,
    },
    /// It says that nothing is left, and by its own figures something is.
    #[error("the answer calls account {0} exhausted, and by its own figures something is left")]
    Contradiction(AccountId),
    /// Its store is older than one that was heard of: it was put back from a copy, or the answer lies.
    #[error("the answer is of a store of generation {0}, and a later one was heard of")]
    OlderStore(u64),
    /// It is about a gang that was not spoken of.
    #[error("the answer is about gang {0}, of which it was told nothing")]
    OtherGang(JobName),
    /// Less is granted in all than was before. Towards a store that was restored the node's own figure holds.
    #[error("the answer grants account {0} less than was granted before")]
    Fell(AccountId),
}

impl Disbelief {
    /// Its name in status and metrics.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Disbelief::Protocol(_) => "other_protocol",
            Disbelief::OtherEpoch(_) => "other_epoch",
            Disbelief::OtherQuestion { .. } => "other_question",
            Disbelief::OtherWords => "other_words",
            Disbelief::OtherPrevious(_) => "other_previous",
            Disbelief::OtherAccount(_) => "other_account",
            Disbelief::Doubled(_) => "doubled_account",
            Disbelief::Missing(_) => "missing_account",
            Disbelief::OtherUnit { .. } => "other_unit",
            Disbelief::Impossible { .. } => "impossible_number",
            Disbelief::Contradiction(_) => "contradiction",
            Disbelief::OlderStore(_) => "older_store",
            Disbelief::OtherGang(_) => "other_gang",
            Disbelief::Fell(_) => "grant_fell",
        }
    }
}

/// What is left of an answer to this question once everything that cannot be believed is out of it, and what that was. None: there is no answer.
#[must_use]
pub fn hear(request: &Request, mut answer: Answer) -> (Option<Answer>, Vec<Disbelief>) {
    if let Some(foreign) = foreign(request, &answer) {
        return (None, vec![foreign]);
    }
    let mut doubts = Vec::new();
    if answer.generation < request.generation_seen {
        doubts.push(Disbelief::OlderStore(answer.generation));
    }
    answer.acknowledged.retain(|epoch| {
        let told = request.previous.iter().any(|earlier| earlier.epoch == *epoch);
        if !told {
            doubts.push(Disbelief::OtherPrevious(*epoch));
        }
        told
    });
    answer.gangs.retain(|want| {
        let told = request.gangs.iter().any(|word| word.gang == want.gang);
        if !told {
            doubts.push(Disbelief::OtherGang(want.gang.name.clone()));
        }
        told
    });
    let mut believed: Vec<AnswerEntry> = Vec::new();
    for mut entry in answer.entries {
        let asked = request.entries.iter().find(|asked| asked.account == entry.account);
        let wrong = match asked {
            None => Some(Disbelief::OtherAccount(entry.account.clone())),
            Some(_) if believed.iter().any(|other| other.account == entry.account) => Some(Disbelief::Doubled(entry.account.clone())),
            Some(asked) => {
                let fell = entry.granted < asked.granted_seen && entry.verdict != Verdict::UnknownAccount;
                if fell && entry.verdict == Verdict::Exhausted {
                    entry.verdict = Verdict::Final; // who has forgotten what it granted does not know that nothing is left
                }
                if entry.verdict.voids_epoch() {
                    entry.settled = entry.settled.min(asked.spent); // whoever else speaks under the epoch may have spent more
                }
                let wrong = wrong(asked, &entry);
                if fell && wrong.is_none() {
                    doubts.push(Disbelief::Fell(entry.account.clone()));
                }
                wrong
            }
        };
        match wrong {
            Some(wrong) => doubts.push(wrong),
            None => believed.push(entry),
        }
    }
    let missing = request.entries.iter().filter(|asked| !believed.iter().any(|entry| entry.account == asked.account));
    let unsaid: Vec<Disbelief> = missing.map(|asked| Disbelief::Missing(asked.account.clone())).collect();
    let nothing = believed.is_empty() && !request.entries.is_empty();
    doubts.extend(unsaid);
    answer.entries = believed;
    (Some(answer).filter(|_| !nothing), doubts)
}

/// Is it an answer to something else?
fn foreign(request: &Request, answer: &Answer) -> Option<Disbelief> {
    if answer.protocol != PROTOCOL {
        return Some(Disbelief::Protocol(answer.protocol));
    }
    if answer.epoch != request.epoch {
        return Some(Disbelief::OtherEpoch(answer.epoch));
    }
    if answer.request != request.request {
        return Some(Disbelief::OtherQuestion { asked: request.request, answered: answer.request });
    }
    (answer.digest != request.digest()).then_some(Disbelief::OtherWords)
}

fn wrong(asked: &RequestEntry, entry: &AnswerEntry) -> Option<Disbelief> {
    let account = || entry.account.clone();
    if entry.unit != UNIT {
        return Some(Disbelief::OtherUnit { account: account(), unit: entry.unit.chars().take(32).collect() });
    }
    let bounded = |amount: Credits| (Credits::ZERO..=AMOUNT_MAX).contains(&amount);
    let impossible = [
        ("granted", !bounded(entry.granted)),
        ("settled", !bounded(entry.settled) || asked.spent < entry.settled),
        ("free", !bounded(entry.free)),
        ("valid_for_ns", VALID_FOR_MAX < entry.valid_for),
        ("proof", entry.proof.is_some_and(|proof| proof.granted != entry.granted)),
    ];
    if let Some((what, _)) = impossible.into_iter().find(|(_, is)| *is) {
        return Some(Disbelief::Impossible { account: account(), what });
    }
    let left = entry.free.is_positive() || asked.returned.plus(entry.settled) < entry.granted;
    (entry.verdict == Verdict::Exhausted && left).then(|| Disbelief::Contradiction(account()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::{BootId, Digest};
    use crate::domain::proof::Proof;
    use crate::domain::wire::{AccountPolicy, PreviousEpoch};

    const CREDIT: i128 = 1_000_000_000;

    fn credits(whole: i128) -> Credits {
        Credits::from_nano(whole * CREDIT)
    }

    fn asked(account: &str) -> RequestEntry {
        RequestEntry {
            account: account.parse().unwrap(),
            unit: UNIT.to_owned(),
            granted_seen: credits(10),
            returned: credits(1),
            spent: credits(5),
            unfunded: Credits::ZERO,
            owed: Credits::ZERO,
            burn_per_s: credits(1),
            at_least: Credits::from_nano(1),
            validity: None,
            proof: None,
        }
    }

    fn request() -> Request {
        Request {
            protocol: PROTOCOL,
            node: "n".parse().unwrap(),
            epoch: Epoch([1; 16]),
            boot: BootId([2; 16]),
            request: 7,
            previous: vec![PreviousEpoch { epoch: Epoch([9; 16]), entries: Vec::new() }],
            refunds: Vec::new(),
            entries: vec![asked("a"), asked("b")],
            generation_seen: 3,
            history: None,
            gangs: Vec::new(),
        }
    }

    fn entry(account: &str) -> AnswerEntry {
        AnswerEntry {
            account: account.parse().unwrap(),
            unit: UNIT.to_owned(),
            granted: credits(20),
            valid_for: Nanos::from_secs(600),
            verdict: Verdict::Granted,
            settled: credits(5),
            free: credits(3),
            version: 1,
            policy: AccountPolicy::default(),
            proof: Some(proof(20)),
        }
    }

    fn proof(granted: i128) -> Proof {
        Proof { generation: 3, request: 7, granted: credits(granted), code: Digest([0; 32]) }
    }

    fn answer() -> Answer {
        Answer {
            protocol: PROTOCOL,
            epoch: Epoch([1; 16]),
            request: 7,
            digest: request().digest(),
            acknowledged: vec![Epoch([9; 16])],
            entries: vec![entry("a"), entry("b")],
            balances: Vec::new(),
            generation: 3,
            gangs: Vec::new(),
        }
    }

    fn codes(doubts: &[Disbelief]) -> Vec<&'static str> {
        doubts.iter().map(Disbelief::code).collect()
    }

    #[test]
    fn an_honest_answer_is_believed_whole() {
        assert_eq!(hear(&request(), answer()), (Some(answer()), Vec::new()));
        let exhausted = AnswerEntry { verdict: Verdict::Exhausted, granted: credits(10), free: Credits::ZERO, proof: None, ..entry("a") };
        let spent = RequestEntry { returned: credits(5), ..asked("a") };
        let request = Request { entries: vec![spent], ..request() };
        let honest = Answer { digest: request.digest(), entries: vec![exhausted], ..answer() };
        assert_eq!(hear(&request, honest.clone()), (Some(honest), Vec::new()));
    }

    #[test]
    fn what_answers_something_else_is_no_answer() {
        let cases = [
            ("other_protocol", Answer { protocol: 2, ..answer() }),
            ("other_epoch", Answer { epoch: Epoch([3; 16]), ..answer() }),
            ("other_question", Answer { request: 6, ..answer() }),
            ("other_question", Answer { request: 8, ..answer() }),
            ("other_words", Answer { digest: Digest([0; 32]), ..answer() }),
        ];
        for (code, wrong) in cases {
            let (left, doubts) = hear(&request(), wrong);
            assert_eq!((left, codes(&doubts)), (None, vec![code]));
        }
    }

    #[test]
    fn an_entry_that_cannot_be_believed_is_left_out_and_the_other_counts() {
        let exhausted = AnswerEntry { verdict: Verdict::Exhausted, free: Credits::ZERO, granted: credits(6), proof: None, ..entry("a") };
        let cases = [
            ("other_unit", AnswerEntry { unit: "cent".to_owned(), ..entry("a") }),
            ("impossible_number", AnswerEntry { granted: Credits::from_nano(-1), proof: None, ..entry("a") }),
            ("impossible_number", AnswerEntry { free: AMOUNT_MAX.plus(Credits::from_nano(1)), ..entry("a") }),
            ("impossible_number", AnswerEntry { settled: credits(5).plus(Credits::from_nano(1)), ..entry("a") }),
            ("impossible_number", AnswerEntry { valid_for: VALID_FOR_MAX.max(Nanos(VALID_FOR_MAX.0 + 1)), ..entry("a") }),
            ("impossible_number", AnswerEntry { proof: Some(proof(21)), ..entry("a") }),
            ("contradiction", AnswerEntry { verdict: Verdict::Exhausted, free: Credits::ZERO, ..entry("a") }),
            ("contradiction", AnswerEntry { granted: credits(20), free: Credits::from_nano(1), ..exhausted.clone() }),
        ];
        for (code, wrong) in cases {
            let (left, doubts) = hear(&request(), Answer { entries: vec![wrong, entry("b")], ..answer() });
            assert_eq!(left.unwrap().entries, [entry("b")], "{code}");
            assert_eq!(codes(&doubts), [code, "missing_account"]);
        }
    }

    #[test]
    fn accounts_that_are_foreign_doubled_or_missing_are_named() {
        let (left, doubts) = hear(&request(), Answer { entries: vec![entry("a"), entry("c"), entry("a")], ..answer() });
        assert_eq!(left.unwrap().entries, [entry("a")]);
        assert_eq!(codes(&doubts), ["other_account", "doubled_account", "missing_account"]);
        let (left, doubts) = hear(&request(), Answer { entries: Vec::new(), ..answer() });
        assert_eq!((left, codes(&doubts)), (None, vec!["missing_account", "missing_account"]), "nothing said is no answer");
        let (left, doubts) = hear(&request(), Answer { acknowledged: vec![Epoch([8; 16])], ..answer() });
        assert_eq!((left.unwrap().acknowledged, codes(&doubts)), (Vec::new(), vec!["other_previous"]));
    }

    #[test]
    fn who_is_one_of_two_hears_it_whatever_the_other_has_spent() {
        for verdict in [Verdict::Forked, Verdict::Closed, Verdict::Unproven] {
            let forked = AnswerEntry { verdict, settled: credits(6), ..entry("a") };
            let (left, doubts) = hear(&request(), Answer { entries: vec![forked.clone(), entry("b")], ..answer() });
            assert_eq!((left.unwrap().entries[0].clone(), doubts), (AnswerEntry { settled: credits(5), ..forked }, Vec::new()));
        }
    }

    #[test]
    fn a_store_that_is_older_than_one_heard_of_is_named_and_heard_all_the_same() {
        let (left, doubts) = hear(&request(), Answer { generation: 2, ..answer() });
        assert_eq!((left.unwrap().entries.len(), codes(&doubts)), (2, vec!["older_store"]));
        assert_eq!(hear(&request(), Answer { generation: 4, ..answer() }).1, Vec::new());
    }

    #[test]
    fn who_has_forgotten_a_grant_is_not_believed_that_nothing_is_left() {
        let zero = AnswerEntry {
            granted: Credits::ZERO,
            settled: Credits::ZERO,
            free: Credits::ZERO,
            verdict: Verdict::Exhausted,
            proof: None,
            ..entry("a")
        };
        let (left, doubts) = hear(&request(), Answer { entries: vec![zero, entry("b")], ..answer() });
        assert_eq!(left.unwrap().entries[0].verdict, Verdict::Final);
        assert_eq!(codes(&doubts), ["grant_fell"]);
    }
}
