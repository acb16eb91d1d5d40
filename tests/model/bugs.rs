//! Bugs that the search must find. Those of a node are switches in its rules; those of the authority are done to the real ledger's account,
//! before or after the real ledger has booked, so that together they book what the bug would.

use meterd::domain::bucket::Bucket;
use meterd::domain::id::{Epoch, PaymentId};
use meterd::domain::ledger::{self, Account, EpochAccount, EpochState, Lot, LotKey, Recovery, Rules};
use meterd::domain::money::Credits;
use meterd::domain::time::Now;
use meterd::domain::wire::{AnswerEntry, PreviousEpoch, Request, RequestEntry, Validity, Verdict};

/// What is wrong. The numbers are those of the protocol's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Bug {
    /// 1
    SettledByDifference,
    /// 2
    ValidFromReceipt,
    /// 3
    AskingAgainRestartsTheClock,
    /// 4
    CloseIgnoresClockError,
    /// 5
    EpochUsedAgain,
    /// 6
    OldVerdictObeyed,
    /// 7
    PushLeavesTheQuestion,
    /// 8
    CloseReleasesAll,
    /// 9
    LateReportUnchecked,
    /// 10
    LateReportAgainInFull,
    /// 11
    RevokeCutsTheEscrow,
    /// 12
    SpentBeforeJournal,
    /// 13
    ReturnedBeforeJournal,
    /// 14
    NumberNotDurable,
    /// 15
    SuccessorReleases,
    /// 16
    DeadlineSurvivesAReboot,
    /// 17
    ImageKeepsTheEpoch,
    /// 18
    NoDigest,
    /// 19
    ClosedVoidsNothing,
    /// 20
    GrantBeforeTotals,
    /// 21
    RepeatedLateReportCollects,
    /// 22
    PutBackGrantsAtOnce,
    /// 23
    PutBackIgnoresClaims,
    /// 24
    PutBackClosesTheUnbacked,
    /// 25
    PutBackRenewsTheLapsed,
    /// 26
    CreditFromAnyAnswer,
}

impl Bug {
    /// Does a node by itself refuse what comes of it, since of a store that recovers it lets nothing revive that has lapsed? Then the bug is
    /// planted together with a node that believes it: each of the two is there in case the other fails.
    pub(crate) fn is_caught_by_the_node(self) -> bool {
        matches!(self, Bug::PutBackIgnoresClaims | Bug::PutBackRenewsTheLapsed | Bug::CreditFromAnyAnswer)
    }

    /// Is it a bug of a store that was put back? Then its nodes listen to what the product's listen to, and to nothing else.
    pub(crate) fn is_the_stores(self) -> bool {
        use Bug::{PutBackClosesTheUnbacked, PutBackGrantsAtOnce, PutBackIgnoresClaims, PutBackRenewsTheLapsed};
        matches!(self, PutBackGrantsAtOnce | PutBackIgnoresClaims | PutBackClosesTheUnbacked | PutBackRenewsTheLapsed)
    }
}

/// Answers a request as the real ledger does, but for the bug.
pub(crate) fn answer(bug: Bug, account: &mut Account, request: &Request, rules: &Rules<'_>, now: Now) -> AnswerEntry {
    let book = |account: &mut Account, request: &Request| ledger::answer(account, request, &request.entries[0], rules, now).entry;
    // Another entry in the place of the request's; the digest is of what was really said.
    let book_as = |account: &mut Account, entry: RequestEntry| {
        let rules = Rules { digest: Some(request.digest()), ..*rules };
        ledger::answer(account, request, &entry, &rules, now).entry
    };
    match bug {
        Bug::SettledByDifference => {
            let before = account.epochs.get(&request.epoch).map_or(Credits::ZERO, |epoch| epoch.claimed);
            book_as(account, RequestEntry { spent: before.plus(request.entries[0].spent), ..request.entries[0].clone() })
        }
        Bug::PutBackIgnoresClaims => {
            book_as(account, RequestEntry { granted_seen: Credits::ZERO, proof: None, ..request.entries[0].clone() })
        }
        Bug::PutBackRenewsTheLapsed => book_as(account, RequestEntry { validity: Some(Validity::Live), ..request.entries[0].clone() }),
        Bug::PutBackClosesTheUnbacked => {
            let answered = book(account, request);
            let recovers = rules.recovery != Recovery::Over;
            match account.epochs.get_mut(&request.epoch).filter(|epoch| recovers && epoch.unbacked().is_positive()) {
                Some(mut epoch) => {
                    epoch.state = EpochState::Closed;
                    AnswerEntry { verdict: Verdict::Closed, ..answered }
                }
                None => answered,
            }
        }
        Bug::LateReportUnchecked => {
            let short = account.shortfall;
            let answered = book(account, request);
            let news = account.shortfall.minus(short);
            if news.is_positive() {
                let id = late(account, request);
                charge(account, id, news);
            }
            answered
        }
        Bug::LateReportAgainInFull => {
            let known = forget_claims(account, request, |_| Credits::ZERO);
            let answered = book(account, request);
            remember_claims(account, &known);
            answered
        }
        Bug::RepeatedLateReportCollects => {
            let known = forget_claims(account, request, |epoch| epoch.settled);
            let answered = book(account, request);
            remember_claims(account, &known);
            for (id, _) in known {
                let Some(mut epoch) = account.epochs.get_mut(&id) else { continue };
                let short = epoch.claimed.minus(epoch.settled);
                account.shortfall = account.shortfall.minus(epoch.shortfall).plus(short);
                epoch.shortfall = short;
            }
            answered
        }
        Bug::GrantBeforeTotals => {
            // Sized as if the request said nothing new of what was used.
            let mut unaware = account.clone();
            let known = account.epochs.get(&request.epoch);
            let (spent, returned) = known.map_or((Credits::ZERO, Credits::ZERO), |epoch| (epoch.claimed, epoch.returned));
            let old = RequestEntry { spent, returned, ..request.entries[0].clone() };
            let had = known.map_or(Credits::ZERO, |epoch| epoch.granted);
            let sized = book(&mut unaware, &Request { previous: Vec::new(), entries: vec![old], ..request.clone() });
            let wants_nothing = RequestEntry { owed: Credits::ZERO, at_least: Credits::ZERO, ..request.entries[0].clone() };
            let answered = book(account, &Request { entries: vec![wants_nothing], ..request.clone() });
            let Some(mut epoch) = account.epochs.get_mut(&request.epoch) else { return answered };
            epoch.granted = epoch.granted.plus(sized.granted.minus(had).or_zero());
            epoch.last_digest = request.digest();
            AnswerEntry { granted: epoch.granted, verdict: sized.verdict, ..answered }
        }
        _ => book(account, request),
    }
}

/// Closed epochs that a request speaks of.
fn spoken_of(account: &Account, request: &Request) -> Vec<Epoch> {
    let named = request.previous.iter().map(|PreviousEpoch { epoch, .. }| *epoch).chain([request.epoch]);
    let closed = |id: &Epoch| account.epochs.get(id).is_some_and(|epoch| epoch.state == EpochState::Closed);
    named.filter(closed).collect()
}

fn late(account: &Account, request: &Request) -> Epoch {
    spoken_of(account, request).first().copied().unwrap_or(request.epoch)
}

/// What closed epochs claimed is taken to be something else; what it was.
fn forget_claims(account: &mut Account, request: &Request, claimed: fn(&EpochAccount) -> Credits) -> Vec<(Epoch, Credits)> {
    let ids = spoken_of(account, request);
    let mut forget = |id: Epoch| {
        let mut epoch = account.epochs.get_mut(&id)?;
        let known = epoch.claimed;
        epoch.claimed = claimed(&epoch);
        Some((id, known))
    };
    ids.into_iter().filter_map(&mut forget).collect()
}

fn remember_claims(account: &mut Account, known: &[(Epoch, Credits)]) {
    for (id, claimed) in known {
        if let Some(mut epoch) = account.epochs.get_mut(id) {
            epoch.claimed = epoch.claimed.max(*claimed);
        }
    }
}

/// Charges an amount, whether it is there or not.
fn charge(account: &mut Account, id: Epoch, amount: Credits) {
    account.lots = vec![Lot { key: LotKey::plain(Bucket::Paid), left: account.lots.total().minus(amount) }].into();
    account.settled = account.settled.plus(amount);
    account.shortfall = account.shortfall.minus(amount);
    if let Some(mut epoch) = account.epochs.get_mut(&id) {
        epoch.settled = epoch.settled.plus(amount);
        epoch.shortfall = epoch.shortfall.minus(amount);
    }
}

/// After the real ledger has closed what was silent.
pub(crate) fn swept(bug: Bug, account: &mut Account, before: &Account) {
    if bug != Bug::CloseReleasesAll {
        return;
    }
    let closed_now = |(id, epoch): (&Epoch, &EpochAccount)| {
        let open_before = before.epochs.get(id).is_some_and(|epoch| epoch.state == EpochState::Open);
        (epoch.state == EpochState::Closed && open_before).then_some(*id)
    };
    let ids: Vec<Epoch> = account.epochs.iter().filter_map(closed_now).collect();
    for id in ids {
        let Some(mut epoch) = account.epochs.get_mut(&id) else { continue };
        let charged = std::mem::take(&mut epoch.settled);
        account.settled = account.settled.minus(charged);
        account.lots = vec![Lot { key: LotKey::plain(Bucket::Paid), left: account.lots.total().plus(charged) }].into();
    }
}

/// Takes credit back; with the bug, also what nodes hold.
pub(crate) fn revoke(bug: Bug, account: &mut Account, id: PaymentId, amount: Credits, now: Now) -> bool {
    if ledger::revoke(account, id, amount, now).is_err() {
        return false;
    }
    if bug == Bug::RevokeCutsTheEscrow {
        account.epochs.change_each(|epoch| {
            if epoch.state == EpochState::Open {
                epoch.returned = epoch.granted.minus(epoch.settled);
            }
        });
    }
    true
}
