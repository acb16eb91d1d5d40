mod accounts;
mod commitments;
mod protocol;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::domain::bucket::Bucket;
use crate::domain::id::{AccountId, BootId, Epoch, NodeId};
use crate::domain::money::{Credits, NANO};
use crate::domain::time::{Mono, Nanos, Now, Wall};
use crate::domain::wire::{AccountPolicy, AnswerEntry, PROTOCOL, PreviousEpoch, Request, RequestEntry, UNIT, Verdict};

const NEVER: ClosePolicy = ClosePolicy::AfterSilence(Nanos(u64::MAX));

fn credits(whole: i128) -> Credits {
    Credits::from_nano(whole * NANO)
}

fn id() -> AccountId {
    "acme".parse().unwrap()
}

fn at(secs: u64) -> Now {
    Now { mono: Mono(secs * 1_000_000_000), wall: Wall(1_800_000_000_000 + secs * 1_000), ..Now::default() }
}

fn entry() -> RequestEntry {
    RequestEntry {
        account: id(),
        unit: UNIT.to_owned(),
        granted_seen: Credits::ZERO,
        returned: Credits::ZERO,
        spent: Credits::ZERO,
        unfunded: Credits::ZERO,
        owed: Credits::ZERO,
        burn_per_s: credits(1),
        at_least: Credits::ZERO,
        validity: None,
        proof: None,
    }
}

fn request(node: &str, epoch: u8, number: u64, entry: RequestEntry) -> Request {
    Request {
        protocol: PROTOCOL,
        node: node.parse().unwrap(),
        epoch: Epoch([epoch; 16]),
        boot: BootId([epoch; 16]),
        request: number,
        previous: Vec::new(),
        refunds: Vec::new(),
        entries: vec![entry],
        generation_seen: 0,
        history: None,
        gangs: Vec::new(),
    }
}

/// An account and the lines of its ledger, with one request after the other.
struct Bank {
    account: Account,
    ledger: BTreeMap<String, LedgerEntry>,
    notices: Vec<AccountNotice>,
    payments: u32,
}

impl Bank {
    fn with(free: i128, paid: i128) -> Bank {
        let mut bank =
            Bank { account: Account::new(id(), AccountPolicy::default()), ledger: BTreeMap::new(), notices: Vec::new(), payments: 0 };
        for (bucket, amount) in [(Bucket::Free, free), (Bucket::Paid, paid)] {
            if 0 < amount {
                bank.deposit(bucket, credits(amount), at(0));
            }
        }
        bank
    }

    fn deposit(&mut self, bucket: Bucket, amount: Credits, now: Now) {
        self.payments += 1;
        let payment = Payment::deposit(format!("p{}", self.payments).parse().unwrap(), bucket, amount);
        match book(&mut self.account, &payment, PaymentState::Completed, None, now).unwrap() {
            Booked::Now(lines) => self.book(lines),
            Booked::Before => panic!("it was not"),
        }
    }

    fn book(&mut self, lines: Lines) {
        for entry in lines.ledger {
            self.ledger.insert(entry.key(), entry);
        }
        self.notices.extend(lines.notices);
        self.check().unwrap();
    }

    fn ask(&mut self, request: &Request, close: ClosePolicy, now: Now) -> AnswerEntry {
        self.ask_by(request, &Rules::of(close), now)
    }

    fn ask_by(&mut self, request: &Request, rules: &Rules<'_>, now: Now) -> AnswerEntry {
        let before = self.account.clone();
        let answered = answer(&mut self.account, request, &request.entries[0], rules, now);
        self.book(Lines { ledger: answered.ledger, notices: answered.notices });
        check_step(&before, &self.account).unwrap();
        answered.entry
    }

    /// The rules, and that the lines of the ledger make the balances.
    fn check(&self) -> Result<(), String> {
        check(&self.account).map_err(|broken| broken.to_string())?;
        let accounted = |epoch: &EpochAccount| epoch.claimed.plus(epoch.returned) <= epoch.granted.max(epoch.proven);
        if let Some((id, epoch)) = self.account.epochs.iter().find(|(_, epoch)| !accounted(epoch)) {
            return Err(format!("epoch {id} spent and gave back more than it was granted: {epoch:?}"));
        }
        let mut sums = [Credits::ZERO; 5];
        for entry in self.ledger.values() {
            if entry.amount < Credits::ZERO || entry.free < Credits::ZERO || entry.paid < Credits::ZERO || entry.committed() < Credits::ZERO
            {
                return Err(format!("a negative amount: {entry:?}"));
            }
            let signed = |amount: Credits| match entry.effect() {
                Effect::Adds => amount,
                Effect::Takes => Credits::ZERO.minus(amount),
                Effect::Nothing => Credits::ZERO,
            };
            (sums[0], sums[1]) = (sums[0].plus(signed(entry.free)), sums[1].plus(signed(entry.paid)));
            sums[4] = sums[4].plus(signed(entry.committed()));
            match entry.kind {
                EntryKind::WriteOff { .. } => sums[2] = sums[2].plus(entry.amount),
                EntryKind::Shortfall { .. } => sums[3] = sums[3].plus(entry.amount),
                _ => {}
            }
        }
        let Account { lots, written_off, shortfall, .. } = &self.account;
        let balances = [lots.of(Bucket::Free), lots.of(Bucket::Paid), *written_off, *shortfall, lots.of(Bucket::Committed)];
        if sums == balances { Ok(()) } else { Err(format!("lines make {sums:?}, balances are {balances:?}")) }
    }

    fn epoch(&self, epoch: u8) -> &EpochAccount {
        &self.account.epochs[&Epoch([epoch; 16])]
    }
}

#[test]
fn a_grant_leaves_the_balance_when_it_is_granted() {
    let mut bank = Bank::with(0, 10_000);
    let answer = bank.ask(&request("a", 1, 1, entry()), NEVER, at(1));
    assert_eq!((answer.verdict, answer.granted), (Verdict::Granted, credits(300)));
    assert_eq!((bank.account.available(), bank.account.held()), (credits(9_700), credits(300)));
    assert_eq!(answer.free, credits(9_700));
    assert_eq!(answer.valid_for, VALID_FOR);
}

#[test]
fn a_repeated_request_is_answered_and_granted_nothing() {
    let mut bank = Bank::with(0, 10_000);
    let first = request("a", 1, 1, entry());
    let granted = bank.ask(&first, NEVER, at(1)).granted;
    let again = bank.ask(&first, NEVER, at(200));
    assert_eq!((again.granted, again.verdict), (granted, Verdict::Granted));
    assert_eq!(bank.epoch(1).heard_at, at(1).mono, "nor is it a sign of life");
}

#[test]
fn an_older_request_gives_its_totals_and_gets_nothing() {
    let mut bank = Bank::with(0, 10_000);
    let old = request("a", 1, 1, RequestEntry { spent: credits(5), burn_per_s: credits(9), ..entry() });
    let granted = bank.ask(&request("a", 1, 2, entry()), NEVER, at(1)).granted;
    let answer = bank.ask(&old, NEVER, at(2));
    assert_eq!((answer.granted, answer.settled), (granted, credits(5)));
}

#[test]
fn two_messages_of_one_number_are_two_writers_and_get_nothing() {
    let mut bank = Bank::with(0, 10_000);
    bank.ask(&request("a", 1, 1, entry()), NEVER, at(1));
    let other = request("a", 1, 1, RequestEntry { burn_per_s: credits(20), ..entry() });
    let answer = bank.ask(&other, NEVER, at(1));
    assert_eq!((answer.verdict, answer.granted), (Verdict::Closed, credits(300)), "open a new epoch");
}

#[test]
fn exhausted_is_said_only_when_nothing_is_free_and_nothing_is_held() {
    let mut bank = Bank::with(0, 10);
    let first = bank.ask(&request("a", 1, 1, RequestEntry { owed: credits(10), ..entry() }), NEVER, at(1));
    assert_eq!((first.verdict, first.granted), (Verdict::Final, credits(10)));
    let half = bank.ask(&request("a", 1, 2, RequestEntry { spent: credits(5), ..entry() }), NEVER, at(6));
    assert_eq!(half.verdict, Verdict::Final);
    let other = bank.ask(&request("b", 2, 1, entry()), NEVER, at(6));
    assert_eq!(other.verdict, Verdict::Exhausted, "what another node holds is of no use to this one");
    let empty = request("a", 1, 3, RequestEntry { spent: credits(10), ..entry() });
    assert_eq!(bank.ask(&empty, NEVER, at(11)).verdict, Verdict::Exhausted);
    bank.deposit(Bucket::Paid, credits(1), at(12));
    assert_eq!(bank.ask(&empty, NEVER, at(13)).verdict, Verdict::Granted, "the same message, answered from the present state");
}

#[test]
fn a_late_report_is_merged_before_the_grant_is_sized() {
    let mut bank = Bank::with(0, 10);
    bank.ask(&request("a", 1, 1, RequestEntry { owed: credits(10), ..entry() }), NEVER, at(1));
    let (silence, later) = (ClosePolicy::AfterSilence(Nanos::from_secs(700)), at(800));
    let mut successor = request("a", 2, 1, RequestEntry { owed: credits(10), ..entry() });
    bank.ask(&request("b", 3, 1, RequestEntry { burn_per_s: Credits::ZERO, ..entry() }), silence, later);
    assert_eq!(bank.epoch(1).state, EpochState::Closed);
    let last_word = RequestEntry { spent: credits(9), ..entry() };
    successor.previous = vec![PreviousEpoch { epoch: Epoch([1; 16]), entries: vec![last_word] }];
    let answer = bank.ask(&successor, silence, later);
    assert_eq!((answer.verdict, answer.granted), (Verdict::Final, credits(1)));
    assert_eq!(bank.epoch(1).settled, credits(9));
}

#[test]
fn free_credit_is_drawn_before_paid_credit() {
    let mut bank = Bank::with(3, 100);
    bank.ask(&request("a", 1, 1, entry()), NEVER, at(1));
    bank.ask(&request("a", 1, 2, RequestEntry { spent: credits(5), ..entry() }), NEVER, at(2));
    assert_eq!((bank.account.lots.of(Bucket::Free), bank.account.lots.of(Bucket::Paid)), (Credits::ZERO, credits(98)));
    let usage = bank.ledger.values().find(|entry| matches!(entry.kind, EntryKind::Usage { .. })).unwrap();
    assert_eq!((usage.free, usage.paid, usage.amount), (credits(3), credits(2), credits(5)));
}

#[test]
fn an_hour_of_use_is_one_line_that_stands_once_the_hour_is_over() {
    let mut bank = Bank::with(0, 1_000);
    let mut usage = Vec::new();
    for (number, secs) in [(1, 0), (2, 600), (3, 1_200), (4, 3_700)] {
        let spent = credits(i128::from(number) * 10 - 10);
        bank.ask(&request("a", 1, number, RequestEntry { spent, ..entry() }), NEVER, at(secs));
        let of_use = bank.ledger.values().filter(|entry| matches!(entry.kind, EntryKind::Usage { .. }));
        usage = of_use.map(|entry| (entry.amount, entry.status)).collect();
    }
    assert_eq!(usage, [(credits(20), EntryStatus::Completed), (credits(10), EntryStatus::Accumulating)]);
    // The wall clock is set back: the line that stands is not touched.
    bank.ask(&request("a", 1, 5, RequestEntry { spent: credits(40), ..entry() }), NEVER, Now { mono: at(3_800).mono, ..at(10) });
    let of_use: Vec<Credits> = bank.ledger.values().filter(|e| matches!(e.kind, EntryKind::Usage { .. })).map(|e| e.amount).collect();
    assert_eq!(of_use, [credits(20), credits(20)]);
}

#[test]
fn unfunded_use_is_written_off_and_never_drawn() {
    let mut bank = Bank::with(0, 100);
    bank.ask(&request("a", 1, 1, RequestEntry { unfunded: credits(2), ..entry() }), NEVER, at(1));
    bank.ask(&request("a", 1, 1, RequestEntry { unfunded: credits(2), ..entry() }), NEVER, at(1));
    assert_eq!((bank.account.written_off, bank.account.settled), (credits(2), Credits::ZERO));
}

#[test]
fn a_closed_epoch_never_opens_and_a_late_report_charges_only_the_news() {
    let mut bank = Bank::with(0, 10);
    bank.ask(&request("a", 1, 1, RequestEntry { owed: credits(10), ..entry() }), ClosePolicy::OnSuccessor, at(1));
    bank.ask(&request("a", 2, 1, RequestEntry { owed: credits(4), burn_per_s: Credits::ZERO, ..entry() }), ClosePolicy::OnSuccessor, at(2));
    assert_eq!(bank.epoch(1).state, EpochState::Closed);
    let late = request("a", 1, 2, RequestEntry { spent: credits(8), ..entry() });
    for _ in 0..2 {
        assert_eq!(bank.ask(&late, ClosePolicy::OnSuccessor, at(3)).verdict, Verdict::Closed);
        assert_eq!((bank.epoch(1).settled, bank.account.shortfall), (credits(6), credits(2)));
        bank.deposit(Bucket::Paid, credits(5), at(4));
    }
}

#[test]
fn silence_closes_an_epoch_and_its_rest_is_free_again() {
    let mut bank = Bank::with(0, 100);
    let close = ClosePolicy::AfterSilence(Nanos::from_secs(667));
    bank.ask(&request("a", 1, 1, entry()), close, at(1));
    bank.ask(&request("a", 1, 2, RequestEntry { spent: credits(1), ..entry() }), close, at(2));
    let entries = sweep(&mut bank.account, close, at(668));
    bank.book(entries);
    assert_eq!(bank.epoch(1).state, EpochState::Open);
    let entries = sweep(&mut bank.account, close, at(669));
    assert!(entries.ledger.iter().all(|entry| entry.status == EntryStatus::Completed));
    bank.book(entries);
    assert_eq!((bank.epoch(1).state, bank.account.available()), (EpochState::Closed, credits(99)));
}

#[test]
fn what_names_another_unit_or_an_impossible_amount_changes_nothing() {
    let mut bank = Bank::with(0, 100);
    let check = |bank: &mut Bank, entry: RequestEntry, verdict: Verdict| {
        let before = bank.account.clone();
        assert_eq!(bank.ask(&request("a", 1, 1, entry), NEVER, at(1)).verdict, verdict);
        assert_eq!(bank.account, before);
    };
    check(&mut bank, RequestEntry { unit: "cent".to_owned(), ..entry() }, Verdict::UnitMismatch);
    check(&mut bank, RequestEntry { spent: Credits::from_nano(-1), ..entry() }, Verdict::Hold);
    check(&mut bank, RequestEntry { unfunded: Credits::from_nano(i128::MAX), ..entry() }, Verdict::Hold);
    assert_eq!(answer_unknown(id()).verdict, Verdict::UnknownAccount);
}

#[test]
fn another_node_cannot_speak_for_an_epoch() {
    let mut bank = Bank::with(0, 100);
    bank.ask(&request("a", 1, 1, entry()), NEVER, at(1));
    let before = bank.account.clone();
    let answer = bank.ask(&request("b", 1, 2, RequestEntry { spent: credits(5), ..entry() }), NEVER, at(2));
    assert_eq!((answer.verdict, &bank.account), (Verdict::Closed, &before), "and who is honest opens another one");
}

#[test]
fn a_policy_raises_the_version_only_if_it_is_another() {
    let mut account = Account::new(id(), AccountPolicy::default());
    let before = account.version;
    set_policy(&mut account, AccountPolicy::default());
    assert_eq!(account.version, before);
    set_policy(&mut account, AccountPolicy { grace: Nanos(1), ..AccountPolicy::default() });
    assert_eq!(account.version, before + 1);
}

/// One thing that happens. Indexes and parts are taken modulo what is there.
#[derive(Clone, Debug)]
enum Event {
    Ask { node: usize, burn: i128, at_least: i128 },
    Deliver { message: usize, copy: bool },
    DeliverAnswer { message: usize, copy: bool },
    Lose { message: usize },
    Spend { node: usize, percent: i128 },
    Return { node: usize, percent: i128 },
    Unfunded { node: usize, amount: i128 },
    Reboot { node: usize, journal_lost: bool },
    Deposit { free: bool, amount: i128 },
    Wait { secs: u64 },
    Sweep,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let node = 0..2_usize;
    let event = prop_oneof![
        6 => (node.clone(), 0..50_i128, prop_oneof![Just(0), 0..200_i128]).prop_map(|(node, burn, at_least)| Event::Ask { node, burn, at_least }),
        8 => (any::<usize>(), prop::bool::weighted(0.2)).prop_map(|(message, copy)| Event::Deliver { message, copy }),
        8 => (any::<usize>(), prop::bool::weighted(0.2)).prop_map(|(message, copy)| Event::DeliverAnswer { message, copy }),
        1 => any::<usize>().prop_map(|message| Event::Lose { message }),
        6 => (node.clone(), 1..=100_i128).prop_map(|(node, percent)| Event::Spend { node, percent }),
        2 => (node.clone(), 1..=100_i128).prop_map(|(node, percent)| Event::Return { node, percent }),
        1 => (node.clone(), 1..10_i128).prop_map(|(node, amount)| Event::Unfunded { node, amount }),
        1 => (node, prop::bool::weighted(0.3)).prop_map(|(node, journal_lost)| Event::Reboot { node, journal_lost }),
        1 => (any::<bool>(), 1..500_i128).prop_map(|(free, amount)| Event::Deposit { free, amount }),
        2 => (0..900_u64).prop_map(|secs| Event::Wait { secs }),
        1 => Just(Event::Sweep),
    ];
    prop::collection::vec(event, 1..120)
}

/// An honest node, as far as the ledger sees it.
#[derive(Clone)]
struct Node {
    name: NodeId,
    epoch: Epoch,
    number: u64,
    totals: RequestEntry,
    outstanding: Option<(u64, crate::domain::id::Digest)>,
    previous: Vec<PreviousEpoch>,
}

impl Node {
    fn new(name: &str, epoch: Epoch) -> Node {
        Node { name: name.parse().unwrap(), epoch, number: 0, totals: entry(), outstanding: None, previous: Vec::new() }
    }

    fn in_hand(&self) -> Credits {
        self.totals.granted_seen.minus(self.totals.returned).minus(self.totals.spent)
    }

    fn part(&self, percent: i128) -> Credits {
        Credits::from_nano(self.in_hand().nano() * percent / 100)
    }
}

struct World {
    bank: Bank,
    close: ClosePolicy,
    nodes: [Node; 2],
    requests: Vec<Request>,
    answers: Vec<(Epoch, u64, crate::domain::id::Digest, AnswerEntry, Vec<Epoch>)>,
    /// What each epoch used, whatever anybody reported.
    used: BTreeMap<Epoch, Credits>,
    lost: Vec<Epoch>,
    epochs: u8,
    now: Now,
}

impl World {
    fn new(close: ClosePolicy) -> World {
        let nodes = [Node::new("a", Epoch([1; 16])), Node::new("b", Epoch([2; 16]))];
        let bank = Bank::with(5, 50);
        World {
            bank,
            close,
            nodes,
            requests: Vec::new(),
            answers: Vec::new(),
            used: BTreeMap::new(),
            lost: Vec::new(),
            epochs: 2,
            now: at(0),
        }
    }

    fn ask(&mut self, node: usize, burn: i128, at_least: i128) {
        let node = &mut self.nodes[node];
        node.number += 1;
        let entry = RequestEntry { burn_per_s: Credits::from_nano(burn * NANO / 10), at_least: credits(at_least), ..node.totals.clone() };
        let mut request = request("x", 0, node.number, entry);
        (request.node, request.epoch) = (node.name.clone(), node.epoch);
        request.previous.clone_from(&node.previous);
        node.outstanding = Some((request.request, request.digest()));
        self.requests.push(request);
    }

    fn deliver(&mut self, message: usize, copy: bool) {
        if self.requests.is_empty() {
            return;
        }
        let message = message % self.requests.len();
        let request = if copy { self.requests[message].clone() } else { self.requests.swap_remove(message) };
        let answer = self.bank.ask(&request, self.close, self.now);
        let acknowledged = request.previous.iter().map(|earlier| earlier.epoch).collect();
        self.answers.push((request.epoch, request.request, request.digest(), answer, acknowledged));
    }

    fn deliver_answer(&mut self, message: usize, copy: bool) {
        if self.answers.is_empty() {
            return;
        }
        let message = message % self.answers.len();
        let (epoch, number, digest, answer, acknowledged) =
            if copy { self.answers[message].clone() } else { self.answers.swap_remove(message) };
        let taken = |node: &Node| node.epoch == epoch && node.outstanding == Some((number, digest));
        let Some(at) = self.nodes.iter().position(taken) else { return };
        let node = &mut self.nodes[at];
        node.outstanding = None;
        node.previous.retain(|earlier| !acknowledged.contains(&earlier.epoch));
        node.totals.granted_seen = node.totals.granted_seen.max(answer.granted);
        if answer.verdict == Verdict::Closed {
            self.reboot(at, false);
        }
        if answer.verdict == Verdict::Exhausted {
            assert!(answer.free.is_zero() && answer.granted.minus(answer.settled) <= self.nodes[at].totals.granted_seen);
        }
    }

    fn reboot(&mut self, node: usize, journal_lost: bool) {
        self.epochs += 1;
        let old = &self.nodes[node];
        let mut new = Node::new(old.name.as_str(), Epoch([self.epochs; 16]));
        if journal_lost {
            self.lost.push(old.epoch);
            self.lost.extend(old.previous.iter().map(|earlier| earlier.epoch));
        } else {
            new.previous.clone_from(&old.previous);
            new.previous.push(PreviousEpoch { epoch: old.epoch, entries: vec![old.totals.clone()] });
        }
        self.nodes[node] = new;
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Ask { node, burn, at_least } => self.ask(node, burn, at_least),
            Event::Deliver { message, copy } => self.deliver(message, copy),
            Event::DeliverAnswer { message, copy } => self.deliver_answer(message, copy),
            Event::Lose { message } if !self.requests.is_empty() => {
                self.requests.swap_remove(message % self.requests.len());
            }
            Event::Lose { .. } => {}
            Event::Spend { node, percent } => {
                let node = &mut self.nodes[node];
                node.totals.spent = node.totals.spent.plus(node.part(percent));
                if node.totals.spent.is_positive() {
                    self.used.insert(node.epoch, node.totals.spent);
                }
            }
            Event::Return { node, percent } => {
                let node = &mut self.nodes[node];
                node.totals.returned = node.totals.returned.plus(node.part(percent));
            }
            Event::Unfunded { node, amount } => {
                let totals = &mut self.nodes[node].totals;
                totals.unfunded = totals.unfunded.plus(credits(amount));
            }
            Event::Reboot { node, journal_lost } => {
                if self.epochs < 250 {
                    self.reboot(node, journal_lost);
                }
            }
            Event::Deposit { free, amount } => {
                let bucket = if free { Bucket::Free } else { Bucket::Paid };
                self.bank.deposit(bucket, credits(amount), self.now);
            }
            Event::Wait { secs } => {
                self.now = Now { mono: self.now.mono.plus(Nanos::from_secs(secs)), wall: Wall(self.now.wall.0 + secs * 1_000), ..self.now }
            }
            Event::Sweep => {
                let entries = sweep(&mut self.bank.account, self.close, self.now);
                self.bank.book(entries);
            }
        }
    }

    fn used_in_all(&self) -> Credits {
        self.used.values().copied().sum()
    }

    /// The network heals, and each node says how all that it remembers ended.
    fn settle_up(&mut self) {
        self.requests.clear();
        for node in 0..2 {
            self.ask(node, 0, 0);
            self.deliver(0, false);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// The rules and the sums of the ledger's lines are checked after each act, in `Bank::book` and `Bank::ask`.
    #[test]
    fn the_rules_hold_whatever_is_lost_doubled_or_reordered(events in events(), on_successor in any::<bool>()) {
        let close = if on_successor { ClosePolicy::OnSuccessor } else { ClosePolicy::AfterSilence(Nanos::from_secs(667)) };
        let mut world = World::new(close);
        for event in &events {
            world.happen(event);
        }
        world.settle_up();
        for (epoch, used) in &world.used {
            let Some(of_epoch) = world.bank.account.epochs.get(epoch) else {
                prop_assert!(false, "epoch {} used credit that nobody granted", epoch);
                continue;
            };
            let booked = of_epoch.settled.plus(of_epoch.shortfall);
            if world.lost.contains(epoch) {
                prop_assert!(booked <= *used);
            } else {
                prop_assert_eq!(booked, *used, "what was used is charged once, or shown as a shortfall: {}", epoch);
            }
        }
    }

    #[test]
    fn nothing_is_used_beyond_the_deposit_and_all_of_it_is_charged_while_no_epoch_is_given_up(events in events()) {
        let mut world = World::new(NEVER);
        for event in &events {
            world.happen(event);
            prop_assert!(world.used_in_all() <= world.bank.account.deposited);
        }
        world.settle_up();
        prop_assert_eq!(world.bank.account.shortfall, Credits::ZERO);
        if world.lost.is_empty() {
            prop_assert_eq!(world.bank.account.settled, world.used_in_all());
        }
    }

    #[test]
    fn a_lying_node_cannot_break_the_rules(
        amounts in prop::collection::vec((any::<u8>(), 0..3_u64, prop::array::uniform7(prop_oneof![0..400_i128, -5..5_i128, Just(i128::MAX)])), 1..40),
        on_successor in any::<bool>(),
    ) {
        let close = if on_successor { ClosePolicy::OnSuccessor } else { ClosePolicy::AfterSilence(Nanos::from_secs(667)) };
        let mut bank = Bank::with(50, 500);
        for (epoch, number, [granted, returned, spent, unfunded, owed, burn, at_least]) in amounts {
            let amount = |whole: i128| Credits::from_nano(whole.saturating_mul(NANO));
            let lie = RequestEntry {
                granted_seen: amount(granted), returned: amount(returned), spent: amount(spent), unfunded: amount(unfunded),
                owed: amount(owed), burn_per_s: amount(burn), at_least: amount(at_least), ..entry()
            };
            bank.ask(&request("a", epoch % 3, number, lie), close, at(u64::from(epoch) * 60));
        }
    }
}
