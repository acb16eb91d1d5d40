//! The acts on an account: a request answered, a deposit, a policy, an epoch closed.

use std::collections::BTreeSet;

use super::account::{AMOUNT_MAX, Account, EntryKind, EntryStatus, EpochAccount, EpochState, HourTotals, LedgerEntry, Totals};
use super::gang::granted_for;
use super::keeping::{AccountNotice, Lines};
use super::refund::{EpochRefunds, epochs_named, refund};
use super::revoke::feed;
use super::rules::{Recovery, Rules, Writers};
use super::sizing::{Ask, GrantFor, Size, horizon_for, size};
use super::terms::Terms;
use crate::domain::bucket::Parts;
use crate::domain::id::{AccountId, Digest, Epoch};
use crate::domain::money::Credits;
use crate::domain::proof::Holder;
use crate::domain::time::{Mono, Nanos, Now};
use crate::domain::wire::{AccountPolicy, AnswerEntry, Request, RequestEntry, UNIT, Verdict};

/// For how long a grant may be spent, counted by the node from the first sending of its request. Twice the longest horizon.
pub const VALID_FOR: Nanos = Nanos::from_secs(600);

const HOUR_MS: u64 = 3_600_000;

/// When an epoch's rest is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosePolicy {
    /// As soon as another epoch of the same node speaks. Right where the authority serves one machine and dies with it: nobody else can hold the old epoch.
    OnSuccessor,
    /// When nothing was heard of it for this long; at least [`VALID_FOR`], the greatest error of the clocks' rates, and a minute.
    AfterSilence(Nanos),
}

/// What became of one entry of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// For the node, once it is stored.
    pub entry: AnswerEntry,
    /// For the ledger: each replaces the line with the same key.
    pub ledger: Vec<LedgerEntry>,
    /// For people, once it is stored.
    pub notices: Vec<AccountNotice>,
}

/// Is a request's number news?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    /// Above the last one: new credit may come of it.
    New,
    /// The last one once more.
    Repeated,
    /// The last one's number on another message: two writers. Nothing may come of it.
    Forged,
    /// Below: only its totals count.
    Old,
}

/// Answers one entry of a request. In this order: earlier epochs' last words, epochs to close, this epoch's totals, and only then the size of a grant.
///
/// `now.mono` must be of the clock that wrote every `heard_at`. Store the account and the entries before the answer is sent.
pub fn answer(account: &mut Account, request: &Request, entry: &RequestEntry, rules: &Rules<'_>, now: Now) -> Answered {
    let good_for = good_for(account, request, now);
    let granted_for = granted_for(request, &account.id);
    let mut booking = Booking { granted_for, ..Booking::on(account, now) };
    booking.previous(request, rules);
    let verdict = booking.entry(request, entry, rules);
    let Lines { ledger, notices } = booking.finish();
    let verdict = if request.is_plain() { verdict.plain() } else { verdict };
    let mut said = answer_entry(account, request.epoch, verdict);
    said.valid_for = said.valid_for.min(good_for);
    if let (Some(key), Some(epoch)) = (rules.key, account.epochs.get(&request.epoch).filter(|epoch| epoch.node == request.node)) {
        let holder = Holder { node: &request.node, account: &account.id, epoch: request.epoch };
        said.proof = Some(key.prove(holder, rules.generation, epoch.last_request, epoch.granted));
    }
    Answered { entry: said, ledger, notices }
}

/// Silence is counted from the first hearing of a question, so the word on it is good from then on, and that on an earlier one not at all. A node
/// counts so anyway; the copy of one that was made while it ran may ask in the same words, and much later.
fn good_for(account: &Account, request: &Request, now: Now) -> Nanos {
    match account.epochs.get(&request.epoch) {
        Some(epoch) if request.request < epoch.last_request => Nanos(0),
        Some(epoch) if request.request == epoch.last_request => Nanos(VALID_FOR.0.saturating_sub(now.mono.since(epoch.heard_at).0)),
        _ => VALID_FOR,
    }
}

/// The answer about an account that does not exist. It has no totals, and changes nothing at the node.
#[must_use]
pub fn answer_unknown(account: AccountId) -> AnswerEntry {
    let nobody = Account::new(account, AccountPolicy::default());
    AnswerEntry { version: 0, ..answer_entry(&nobody, Epoch([0; 16]), Verdict::UnknownAccount) }
}

/// Books only what a request says of earlier epochs, and closes what it supersedes: for an account that the request's own entries do not name.
#[must_use]
pub fn book_previous(account: &mut Account, request: &Request, rules: &Rules<'_>, now: Now) -> Lines {
    let mut booking = Booking::on(account, now);
    booking.previous(request, rules);
    if !booking.account.epochs.contains_key(&request.epoch) {
        booking.close_others(request, rules.close);
    }
    booking.finish()
}

/// Closes every open epoch of which nothing was heard for too long, and does what the calendar brings.
#[must_use]
pub fn sweep(account: &mut Account, close: ClosePolicy, now: Now) -> Lines {
    let mut booking = Booking::on(account, now);
    booking.close_silent(None, close);
    booking.finish()
}

/// Ends a recovery that began at this instant: what was silent since then is closed.
#[must_use]
pub fn end_recovery(account: &mut Account, began: Mono, now: Now) -> Lines {
    let mut booking = Booking::on(account, now);
    let ids: Vec<Epoch> = booking.account.epochs.heard_until(began).copied().collect();
    for id in ids {
        booking.close(id);
    }
    booking.finish()
}

/// Gives the account another policy. Raises the version if that changes anything: push after the commit.
pub fn set_policy(account: &mut Account, policy: AccountPolicy) {
    if account.policy != policy {
        account.policy = policy;
        account.version = account.version.saturating_add(1);
    }
}

/// Gives the account other terms. Raises the version if that changes anything: push after the commit.
pub fn set_terms(account: &mut Account, terms: Terms, now: Now) -> Lines {
    if account.terms == terms {
        return Lines::default();
    }
    account.terms = terms;
    account.version = account.version.saturating_add(1);
    Booking::on(account, now).finish()
}

fn answer_entry(account: &Account, epoch: Epoch, verdict: Verdict) -> AnswerEntry {
    let of_epoch = account.epochs.get(&epoch);
    let may_stay = of_epoch.map_or(Credits::ZERO, |epoch| epoch.escrow().minus(account.revoke_pending()).or_zero());
    AnswerEntry {
        account: account.id.clone(),
        unit: UNIT.to_owned(),
        granted: of_epoch.map_or(Credits::ZERO, |epoch| epoch.granted),
        valid_for: VALID_FOR,
        verdict,
        settled: of_epoch.map_or(Credits::ZERO, |epoch| epoch.settled),
        free: if verdict == Verdict::Recall { may_stay } else { account.available() },
        version: account.version,
        policy: account.policy,
        proof: None,
    }
}

/// Is every amount one that a node can mean? Anything else is a mistake or a lie, and nothing of the entry is taken.
fn in_range(entry: &RequestEntry) -> bool {
    let amounts = [entry.granted_seen, entry.returned, entry.spent, entry.unfunded, entry.owed, entry.burn_per_s, entry.at_least];
    amounts.iter().all(|amount| (Credits::ZERO..=AMOUNT_MAX).contains(amount))
}

/// Several acts on one account that are stored together.
struct Booking<'a> {
    account: &'a mut Account,
    now: Now,
    hour: u64,
    /// Epochs whose lines of the running hour are to be written.
    changed: BTreeSet<Epoch>,
    /// Lines of hours that have ended, and of what the calendar brought.
    ended: Vec<LedgerEntry>,
    notices: Vec<AccountNotice>,
    granted_for: GrantFor,
}

impl<'a> Booking<'a> {
    fn on(account: &'a mut Account, now: Now) -> Booking<'a> {
        let mut ended = Vec::new();
        account.pass_time(now.wall, &mut ended);
        let hour = now.wall.0 / HOUR_MS;
        Booking { account, now, hour, changed: BTreeSet::new(), ended, notices: Vec::new(), granted_for: GrantFor::Single }
    }

    /// What is free backs what was forgotten, and then serves revocations, before anything else.
    fn feed(&mut self) {
        self.account.back_claims();
        self.ended.extend(feed(self.account, self.now));
    }

    fn finish(mut self) -> Lines {
        self.feed();
        let mut entries = std::mem::take(&mut self.ended);
        self.account.lapse(self.now.wall, &mut entries);
        for id in &self.changed {
            if let Some(epoch) = self.account.epochs.get(id) {
                let status = match epoch.state {
                    EpochState::Open => EntryStatus::Accumulating,
                    EpochState::Closed => EntryStatus::Completed,
                };
                entries.extend(hour_lines(*id, &epoch.hour, status, self.now));
            }
        }
        let Lines { ledger, notices } = self.account.review(self.now);
        entries.extend(ledger);
        self.notices.extend(notices);
        Lines { ledger: entries, notices: self.notices }
    }

    fn review(&mut self) {
        let Lines { ledger, notices } = self.account.review(self.now);
        self.ended.extend(ledger);
        self.notices.extend(notices);
    }

    /// What the request says of earlier epochs. Those that the store does not know get a closed record, so that a late first message of theirs finds the door shut.
    fn previous(&mut self, request: &Request, rules: &Rules<'_>) {
        for earlier in &request.previous {
            for entry in &earlier.entries {
                let ours = entry.account == self.account.id && entry.unit == UNIT && in_range(entry);
                if !ours || earlier.epoch == request.epoch {
                    continue;
                }
                let unknown = EpochAccount { state: EpochState::Closed, ..new_epoch(request, self.now) };
                let mut epoch = self.account.epochs.get_or_insert(earlier.epoch, EpochAccount { boot: None, ..unknown });
                if epoch.node != request.node {
                    continue;
                }
                epoch.totals = Totals::Final;
                drop(epoch);
                self.merge(earlier.epoch, entry, rules);
                if rules.close == ClosePolicy::OnSuccessor {
                    self.close(earlier.epoch);
                }
            }
        }
        for id in epochs_named(request, self.account).into_iter().filter(|id| *id != request.epoch) {
            self.refund(request, id);
        }
    }

    /// What jobs of the epoch give back by their outcome.
    fn refund(&mut self, request: &Request, id: Epoch) {
        self.roll(id);
        if refund(self.account, request, id, &request.node) {
            self.changed.insert(id);
        }
    }

    fn entry(&mut self, request: &Request, entry: &RequestEntry, rules: &Rules<'_>) -> Verdict {
        if entry.unit != UNIT {
            return Verdict::UnitMismatch;
        }
        if !in_range(entry) {
            return Verdict::Hold;
        }
        match self.account.epochs.get(&request.epoch) {
            // Whoever said it first has it; the other one, if it is honest, opens one of its own.
            Some(epoch) if epoch.node != request.node => return Verdict::Closed,
            Some(_) => {}
            None if !rules.admits(self.account) => return Verdict::NotAdmitted,
            None => {
                self.close_others(request, rules.close);
                self.account.epochs.insert(request.epoch, new_epoch(request, self.now));
            }
        }
        self.close_silent(Some(request.epoch), rules.close);
        self.merge(request.epoch, entry, rules);
        self.refund(request, request.epoch);
        self.feed();
        if let Some(void) = self.void(request, entry, rules) {
            return void;
        }
        let number = self.accept(request, entry, rules);
        self.grant(request.epoch, entry, number, rules)
    }

    /// Why this epoch is void for whoever speaks, though it is open here: it then waits for its silence like one of which nothing is heard.
    fn void(&self, request: &Request, entry: &RequestEntry, rules: &Rules<'_>) -> Option<Verdict> {
        let epoch = self.account.epochs.get(&request.epoch).filter(|epoch| epoch.state == EpochState::Open)?;
        if rules.writers == Writers::Several {
            return Some(Verdict::Forked);
        }
        if epoch.proven.max(epoch.granted) < entry.granted_seen {
            return Some(Verdict::Unproven);
        }
        let waited = rules.recovery == Recovery::Over && rules.close != ClosePolicy::OnSuccessor;
        let closed = rules.has_lapsed(entry, epoch.granted) || (waited && epoch.unbacked().is_positive());
        closed.then_some(Verdict::Closed)
    }

    /// A new epoch speaks: what was the same node's is over.
    fn close_others(&mut self, request: &Request, close: ClosePolicy) {
        if close != ClosePolicy::OnSuccessor {
            return;
        }
        let of_node = self.account.epochs.of_node(&request.node).map(|(id, _)| *id);
        let ids: Vec<Epoch> = of_node.filter(|id| *id != request.epoch).collect();
        for id in ids {
            self.close(id);
        }
    }

    fn close_silent(&mut self, speaking: Option<Epoch>, close: ClosePolicy) {
        let ClosePolicy::AfterSilence(length) = close else { return };
        let Some(until) = self.now.mono.0.checked_sub(length.0) else { return };
        let silent = self.account.epochs.heard_until(Mono(until)).copied();
        let ids: Vec<Epoch> = silent.filter(|id| Some(*id) != speaking).collect();
        for id in ids {
            self.close(id);
        }
    }

    /// Takes the totals over, whatever the request's number: the maximum counts. What nobody granted, and what was given back,
    /// cannot have been spent.
    fn merge(&mut self, id: Epoch, entry: &RequestEntry, rules: &Rules<'_>) {
        self.take_claim(id, entry, rules);
        if let Some(mut epoch) = self.account.epochs.get_mut(&id).filter(|epoch| epoch.state == EpochState::Open) {
            epoch.take_back(entry.returned);
        }
        self.account.back_claims();
        let Some(mut epoch) = self.account.epochs.get_mut(&id) else { return };
        let spent = entry.spent.min(epoch.granted.max(epoch.proven).minus(epoch.returned).or_zero());
        let unfunded = entry.unfunded.minus(epoch.unfunded).or_zero();
        epoch.unfunded = epoch.unfunded.plus(unfunded);
        let news = spent.minus(epoch.claimed).or_zero();
        epoch.claimed = epoch.claimed.plus(news);
        let due = epoch.claimed.min(epoch.granted.minus(epoch.returned)).minus(epoch.settled);
        let state = epoch.state;
        drop(epoch);
        match state {
            EpochState::Open => self.charge(id, due),
            EpochState::Closed => self.charge_late(id, news),
        }
        self.write_off(id, unfunded);
        self.roll(id);
    }

    /// A node may have been granted more than the store knows, which then was put back from a copy.
    fn take_claim(&mut self, id: Epoch, entry: &RequestEntry, rules: &Rules<'_>) {
        let Some(mut epoch) = self.account.epochs.get_mut(&id) else { return };
        let known = epoch.granted.max(epoch.proven);
        let node = || epoch.node.clone();
        let believed = rules.believed(Holder { node: &epoch.node, account: &self.account.id, epoch: id }, entry, known);
        if believed < entry.granted_seen {
            self.notices.push(AccountNotice::Unproven { node: node(), claimed: entry.granted_seen, known: believed });
        } else if known < believed {
            self.notices.push(AccountNotice::Proven { node: node(), granted: believed, known });
        }
        if known < believed {
            epoch.proven = believed;
        }
    }

    fn accept(&mut self, request: &Request, entry: &RequestEntry, rules: &Rules<'_>) -> Number {
        // Of a node that does not say whether its grant had lapsed nobody knows, while the store recovers, whether it may be prolonged.
        let heard = rules.recovery == Recovery::Over || entry.validity.is_some();
        let Some(mut epoch) = self.account.epochs.get_mut(&request.epoch) else { return Number::Old };
        let digest = rules.digest.unwrap_or_else(|| request.digest());
        if epoch.last_request < request.request {
            epoch.last_request = request.request;
            epoch.last_digest = digest;
            epoch.burn_per_s = entry.burn_per_s;
            if heard {
                epoch.heard_at = self.now.mono;
            }
            Number::New
        } else if request.request < epoch.last_request {
            Number::Old
        } else if digest == epoch.last_digest {
            Number::Repeated
        } else {
            Number::Forged
        }
    }

    /// Sizes a grant from what is free now, moves it, and says in one word how things stand after it.
    fn grant(&mut self, id: Epoch, entry: &RequestEntry, number: Number, rules: &Rules<'_>) -> Verdict {
        self.account.lapse(self.now.wall, &mut self.ended); // what came back just now is not granted again
        self.feed();
        self.review(); // a refill that these very totals ask for is pending from now on
        let may_spend = self.account.may_spend();
        let available = self.account.available();
        let revoking = self.account.revoke_pending();
        let (admitted, stale) = (rules.admits(self.account), rules.is_stale(self.account));
        let of_node = self.account.held_by_node_of(id);
        let together = self.account.epochs.together(self.now.mono, id);
        let Some(mut epoch) = self.account.epochs.get_mut(&id) else { return Verdict::Hold };
        match (epoch.state, number) {
            (EpochState::Closed, _) => return Verdict::Closed,
            (EpochState::Open, Number::Forged) => return Verdict::Forked,
            (EpochState::Open, _) if !admitted => return Verdict::NotAdmitted,
            (EpochState::Open, _) if !may_spend => return Verdict::NotVerified,
            (EpochState::Open, _) if revoking.is_positive() && epoch.escrow().is_positive() => return Verdict::Recall,
            (EpochState::Open, _) if rules.recovery != Recovery::Over => return Verdict::Recovering,
            (EpochState::Open, _) if stale => return Verdict::Stale,
            (EpochState::Open, _) => {}
        }
        let ask = Ask { in_hand: epoch.escrow(), burn_per_s: entry.burn_per_s, owed: entry.owed, at_least: entry.at_least };
        let room = rules.room(epoch.escrow(), of_node).map_or(available, |room| room.min(available));
        let size = size(ask, room, horizon_for(self.granted_for, available, together));
        if let (Size::Grant(amount), Number::New) = (size, number) {
            epoch.granted = epoch.granted.plus(amount);
        }
        let escrow = epoch.escrow();
        drop(epoch);
        let free = self.account.available();
        match size {
            Size::BelowAtLeast => Verdict::BelowAtLeast,
            _ if free.is_positive() => Verdict::Granted,
            _ if escrow.is_positive() => Verdict::Final,
            _ => self.at_zero(),
        }
    }

    /// Nothing is free, and nothing held here: that is the end, unless a refill is under way and not overdue.
    fn at_zero(&mut self) -> Verdict {
        self.account.keeping.empty.get_or_insert(self.now.wall);
        if self.account.waits_for_refill(self.now.wall) { Verdict::RefillPending } else { Verdict::Exhausted }
    }

    /// Ends an epoch: its escrow is what it last reported, the rest is free again. What it claims beyond its grant is charged like a late report.
    fn close(&mut self, id: Epoch) {
        let Some(mut epoch) = self.account.epochs.get_mut(&id) else { return };
        if epoch.state == EpochState::Closed {
            return;
        }
        epoch.state = EpochState::Closed;
        let beyond = epoch.claimed.minus(epoch.settled);
        drop(epoch);
        self.changed.insert(id);
        self.charge_late(id, beyond);
        self.roll(id);
    }

    /// News of a closed epoch: charged as far as something is free, once. The rest is a shortfall, and stays one.
    fn charge_late(&mut self, id: Epoch, news: Credits) {
        let covered = news.min(self.account.available().or_zero());
        self.charge(id, covered);
        self.fall_short(id, news.minus(covered));
    }

    /// Moves an amount that is in escrow, or free, out of the buckets, the first lots first.
    fn charge(&mut self, id: Epoch, amount: Credits) {
        if !amount.is_positive() {
            return;
        }
        self.roll(id);
        let account = &mut *self.account;
        let Some(mut epoch) = account.epochs.get_mut(&id) else { return };
        let Parts { free, paid, committed } = account.lots.draw(amount);
        account.settled = account.settled.plus(amount);
        epoch.settled = epoch.settled.plus(amount);
        epoch.hour.free = epoch.hour.free.plus(free);
        epoch.hour.paid = epoch.hour.paid.plus(paid);
        epoch.hour.committed = epoch.hour.committed.plus(committed);
        epoch.refunds.charged_paid = epoch.refunds.charged_paid.plus(paid);
        epoch.refunds.charged_committed = epoch.refunds.charged_committed.plus(committed);
        self.changed.insert(id);
    }

    fn write_off(&mut self, id: Epoch, amount: Credits) {
        if !amount.is_positive() {
            return;
        }
        self.roll(id);
        let Some(mut epoch) = self.account.epochs.get_mut(&id) else { return };
        epoch.hour.written_off = epoch.hour.written_off.plus(amount);
        self.account.written_off = self.account.written_off.plus(amount);
        self.changed.insert(id);
    }

    fn fall_short(&mut self, id: Epoch, amount: Credits) {
        if !amount.is_positive() {
            return;
        }
        self.roll(id);
        let Some(mut epoch) = self.account.epochs.get_mut(&id) else { return };
        epoch.shortfall = epoch.shortfall.plus(amount);
        epoch.hour.shortfall = epoch.hour.shortfall.plus(amount);
        self.account.shortfall = self.account.shortfall.plus(amount);
        self.changed.insert(id);
    }

    /// Ends an hour's lines once its time is over. A wall clock that was set back goes on in the hour that it had reached.
    fn roll(&mut self, id: Epoch) {
        let Some(mut epoch) = self.account.epochs.get_mut(&id) else { return };
        if epoch.hour.hour < self.hour {
            let over = std::mem::replace(&mut epoch.hour, HourTotals { hour: self.hour, ..HourTotals::default() });
            self.ended.extend(hour_lines(id, &over, EntryStatus::Completed, self.now));
        }
    }
}

fn new_epoch(request: &Request, now: Now) -> EpochAccount {
    EpochAccount {
        node: request.node.clone(),
        boot: Some(request.boot),
        state: EpochState::Open,
        totals: Totals::Reported,
        granted: Credits::ZERO,
        returned: Credits::ZERO,
        settled: Credits::ZERO,
        claimed: Credits::ZERO,
        unfunded: Credits::ZERO,
        shortfall: Credits::ZERO,
        last_request: 0,
        last_digest: Digest([0; 32]),
        burn_per_s: Credits::ZERO,
        heard_at: now.mono,
        hour: HourTotals { hour: now.wall.0 / HOUR_MS, ..HourTotals::default() },
        proven: Credits::ZERO,
        refunds: EpochRefunds::default(),
    }
}

fn hour_lines(epoch: Epoch, totals: &HourTotals, status: EntryStatus, now: Now) -> Vec<LedgerEntry> {
    let hour = totals.hour;
    let none = Credits::ZERO;
    let lines = [
        (EntryKind::Usage { epoch, hour }, totals.free.plus(totals.paid).plus(totals.committed), totals.free, totals.paid),
        (EntryKind::WriteOff { epoch, hour }, totals.written_off, none, none),
        (EntryKind::Shortfall { epoch, hour }, totals.shortfall, none, none),
        (
            EntryKind::OutcomeRefund { epoch, hour },
            totals.refunded_free.plus(totals.refunded_paid).plus(totals.refunded_committed),
            totals.refunded_free,
            totals.refunded_paid,
        ),
    ];
    let used = lines.into_iter().filter(|(_, amount, ..)| amount.is_positive());
    used.map(|(kind, amount, free, paid)| LedgerEntry { at: now.wall, kind, amount, free, paid, status }).collect()
}
