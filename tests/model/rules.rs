//! What can happen next, and what comes of it.

use std::fmt;
use std::sync::Arc;

use meterd::domain::bucket::Bucket;
use meterd::domain::grant::{Asked, Grant, Heard, Told};
use meterd::domain::hearing;
use meterd::domain::id::{AccountId, BootId, Epoch, NodeId};
use meterd::domain::ledger::{self, Account, ClosePolicy, EpochState, Payment, PaymentState, VALID_FOR};
use meterd::domain::money::Credits;
use meterd::domain::time::{Boot, Mono, Nanos, Now, Wall};
use meterd::domain::wire::{AccountPolicy, Answer, AnswerEntry, PROTOCOL, PreviousEpoch, Push, Request, RequestEntry, UNIT, Verdict};
use stateright::{Model, Property};

use crate::bugs::{self, Bug};
use crate::restore::{PutBack, Standing};
use crate::state::{Body, Job, Kept, Left, Message, Node, Outstanding, Power, State, TICK, boot, credits, epoch};

/// A world to search: how large it is, what may happen in it, and what is wrong with it.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) deposit: i128,
    /// Questions that an epoch may ask.
    pub(crate) questions: [u64; 2],
    /// Epochs that a machine may have.
    pub(crate) lives: u8,
    /// How much a question may ask for.
    pub(crate) wants: &'static [i128],
    pub(crate) left: Left,
    /// For how many ticks a grant is good.
    pub(crate) valid_ticks: u64,
    /// Does who puts a copy of the store back say so?
    pub(crate) put_back: PutBack,
    pub(crate) gives_back: GivesBack,
    pub(crate) begins: Begins,
    pub(crate) second: Power,
    pub(crate) bug: Option<Bug>,
    /// One moment in so many is also looked at for whether all comes to rest from it; 0 for none.
    pub(crate) heals: u64,
}

/// When does a node give back what it holds?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GivesBack {
    AnyTime,
    Never,
}

/// What has happened before the search begins?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begins {
    WithNothing,
    /// The first machine has asked and was granted something, and a copy of the store was made.
    WithAGrantAndACopy,
}

#[derive(Clone, PartialEq)]
pub(crate) enum Action {
    Ask(usize, i128),
    /// A retransmission, byte for byte: the network repeats by itself, so this only matters where the node makes something of it.
    AskAgain(usize),
    Use(usize),
    GiveBack(usize),
    Stop(usize),
    Hear(usize, Message),
    ToBank(Message),
    Tick,
    TickMissed,
    Sweep,
    BankRestart,
    TopUp,
    Revoke,
    Restart(usize),
    Reboot(usize),
    LoseDisk(usize),
    CloneImage,
    CloneLive,
    /// What changes the store is done, and then a copy of the store is made: all that could be done before it would make the same copy.
    BackUp(Box<Action>),
    /// The copy is put back just before something to which that makes a difference.
    PutBack(Box<Action>),
}

pub(crate) fn account_id() -> AccountId {
    "pool".parse().unwrap()
}

impl World {
    /// The authority waits for as long as the node's validity, one tick that its clock may miss, and no more.
    pub(crate) fn close(&self) -> ClosePolicy {
        match self.bug {
            Some(Bug::CloseIgnoresClockError) => ClosePolicy::AfterSilence(Nanos(self.valid_ticks * TICK.0)),
            Some(Bug::SuccessorReleases) => ClosePolicy::OnSuccessor,
            _ => ClosePolicy::AfterSilence(self.silence()),
        }
    }

    pub(crate) fn silence(&self) -> Nanos {
        Nanos((self.valid_ticks + 1) * TICK.0)
    }

    pub(crate) fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn node_actions(&self, state: &State, n: usize, actions: &mut Vec<Action>) {
        let node = &state.nodes[n];
        if node.power == Power::Off {
            return;
        }
        let kept = &node.live;
        let in_hand = kept.grant.in_hand(node.clock(state.now));
        if kept.asked < self.questions[n] {
            actions.extend(self.wants.iter().map(|wanted| Action::Ask(n, *wanted)));
        }
        if kept.outstanding.is_some() && self.has(Bug::AskingAgainRestartsTheClock) {
            actions.push(Action::AskAgain(n));
        }
        if in_hand.is_positive() && node.job == Job::Runs {
            actions.push(Action::Use(n));
        }
        if kept.grant.held().is_positive() && self.gives_back == GivesBack::AnyTime {
            actions.push(Action::GiveBack(n));
        }
        if !in_hand.is_positive() && node.job == Job::Runs && self.is_told_to_stop(kept) {
            actions.push(Action::Stop(n));
        }
        for message in &state.net {
            let ours = match &message.body {
                Body::Request(_) => false,
                Body::Push(push) => kept.grant.pushed_version < push.version && kept.grant.version < push.version,
                Body::Answer(answer) => answer.epoch == kept.epoch,
            };
            if ours {
                actions.push(Action::Hear(n, message.clone()));
            }
        }
    }

    fn is_told_to_stop(&self, kept: &Kept) -> bool {
        let any_word = self.has(Bug::OldVerdictObeyed) || self.has(Bug::PushLeavesTheQuestion);
        if any_word {
            kept.grant.verdict.is_some_and(|heard| heard.verdict == Verdict::Exhausted)
        } else {
            kept.grant.exhausted().is_some()
        }
    }

    // ---- the node ----

    pub(crate) fn ask(&self, state: &mut State, n: usize, wanted: i128) {
        let now = state.now;
        let node = state.node(n);
        let first_sent = node.clock(now);
        let boot = boot_of(n, node);
        let kept = node.kept();
        kept.asked += 1;
        kept.grant.asked = Asked::Yes;
        let request = Request {
            protocol: PROTOCOL,
            node: self.name_of(kept.epoch),
            epoch: kept.epoch,
            boot,
            request: kept.asked,
            previous: kept.previous.clone(),
            entries: vec![self.entry(&kept.grant, wanted, Some(first_sent))],
            generation_seen: 0,
            history: None,
            gangs: Vec::new(),
            refunds: Vec::new(),
        };
        let message = Message::request(request.clone());
        kept.outstanding = Some(Outstanding { request: Arc::new(request), key: message.key, first_sent });
        if !self.has(Bug::NumberNotDurable) {
            self.commit(node);
        }
        state.say(message);
    }

    /// A copy of a machine has its name and its certificate.
    fn name_of(&self, epoch: Epoch) -> NodeId {
        let copied = 0 < self.left.image_clones + self.left.live_clones;
        let slot = if copied { 1 } else { epoch.0[0] };
        format!("node-{slot}").parse().unwrap()
    }

    /// What was decided is durable; but for what a bug leaves out.
    fn commit(&self, node: &mut Node) {
        let last = Arc::clone(&node.journal);
        node.journal = Arc::clone(&node.live);
        if self.has(Bug::SpentBeforeJournal) {
            Arc::make_mut(&mut node.journal).grant.spent = last.grant.spent;
        }
        if self.has(Bug::ReturnedBeforeJournal) {
            Arc::make_mut(&mut node.journal).grant.returned = last.grant.returned;
        }
    }

    fn use_one(&self, state: &mut State, n: usize) {
        let epoch = state.nodes[n].live.epoch;
        if !state.may_spend(epoch) {
            state.breaks("something is spent from a closed epoch");
        }
        state.use_one(epoch);
        let node = state.node(n);
        let kept = node.kept();
        kept.grant.spent = kept.grant.spent.plus(credits(1));
        self.commit(node);
    }

    fn give_back(&self, state: &mut State, n: usize) {
        let node = state.node(n);
        let kept = node.kept();
        kept.grant.returned = kept.grant.returned.plus(kept.grant.held());
        self.commit(node);
    }

    fn hear(&self, state: &mut State, n: usize, message: &Message) -> bool {
        match &message.body {
            Body::Request(_) => false,
            Body::Push(push) => {
                let keeps_the_question = self.has(Bug::PushLeavesTheQuestion);
                let node = state.node(n);
                let kept = node.kept();
                kept.grant.pushed(push.version);
                if !keeps_the_question {
                    kept.outstanding = None;
                }
                self.commit(node);
                true
            }
            Body::Answer(answer) => self.hear_answer(state, n, answer),
        }
    }

    fn hear_answer(&self, state: &mut State, n: usize, answer: &Answer) -> bool {
        let now = state.now;
        let Some(heard) = self.believed(&state.nodes[n].live, answer) else {
            return self.has(Bug::CreditFromAnyAnswer) && self.take_credit(state.node(n), answer);
        };
        let node = state.node(n);
        let clock = node.clock(now);
        let kept = node.kept();
        kept.previous.retain(|earlier| !heard.acknowledged.contains(&earlier.epoch));
        let open = kept.outstanding.take();
        let Some(entry) = heard.entries.into_iter().next() else { return true };
        let (told, first_sent) = match &open {
            Some(open) => (told(&open.request.entries[0]), open.first_sent),
            None => (Told::default(), Boot(0)),
        };
        let first_sent = if self.has(Bug::ValidFromReceipt) { clock } else { first_sent };
        let at = Now { mono: Mono(clock.0), boot: clock, wall: Wall(0) };
        kept.grant.take(&entry, told, heard.request, first_sent, at);
        if self.bug.is_some_and(Bug::is_caught_by_the_node) && entry.verdict.prolongs() {
            kept.grant.deadline = kept.grant.deadline.max(first_sent.plus(entry.valid_for));
        }
        entry.proof.into_iter().for_each(|proof| kept.grant.take_proof(proof));
        self.misread(kept, &entry, first_sent, heard.request, at);
        match entry.verdict {
            Verdict::Recall => {
                let part = kept.grant.held().minus(entry.free).or_zero();
                kept.grant.returned = kept.grant.returned.plus(part);
            }
            verdict if verdict.voids_epoch() && !self.has(Bug::ClosedVoidsNothing) => self.begin_again(node, n),
            _ => {}
        }
        node.word = entry.version;
        if node.live.grant.in_hand(clock).is_positive() {
            node.job = Job::Runs; // there is credit: it thaws
        }
        self.commit(node);
        true
    }

    /// The bug: whatever the authority once granted is taken, whenever the word of it comes.
    fn take_credit(&self, node: &mut Node, answer: &Answer) -> bool {
        let kept = node.kept();
        let most = answer.entries.iter().map(|entry| entry.granted).fold(kept.grant.granted, Credits::max);
        let is_news = kept.grant.granted < most;
        kept.grant.granted = most;
        answer.entries.iter().filter_map(|entry| entry.proof).for_each(|proof| kept.grant.take_proof(proof));
        self.commit(node);
        is_news
    }

    /// What of an answer counts.
    fn believed(&self, kept: &Kept, answer: &Answer) -> Option<Answer> {
        let mut answer = answer.clone();
        let Some(open) = &kept.outstanding else {
            return self.has(Bug::OldVerdictObeyed).then_some(answer);
        };
        if self.has(Bug::NoDigest) && answer.request == open.request.request {
            answer.digest = open.request.digest();
        }
        if self.has(Bug::OldVerdictObeyed) {
            return Some(answer);
        }
        if self.has(Bug::EpochUsedAgain) {
            answer.digest = if answer.request == open.request.request { open.request.digest() } else { answer.digest };
        }
        hearing::hear(&open.request, answer).0
    }

    /// Where two rules guard against the same thing, a bug that leaves out one has to leave out the other.
    fn misread(&self, kept: &mut Kept, entry: &AnswerEntry, first_sent: Boot, request: u64, at: Now) {
        if self.has(Bug::OldVerdictObeyed) || self.has(Bug::PushLeavesTheQuestion) {
            let heard = Heard { verdict: entry.verdict, request, at: at.boot, wall: at.wall };
            kept.grant.verdict = Some(heard);
        }
        if self.has(Bug::ClosedVoidsNothing) && entry.verdict == Verdict::Closed {
            kept.grant.deadline = kept.grant.deadline.max(first_sent.plus(entry.valid_for));
        }
    }

    /// A new epoch, under a new name; how the last one ended is told until it is heard.
    fn begin_again(&self, node: &mut Node, n: usize) {
        let kept = node.kept();
        let last = std::mem::take(&mut kept.grant);
        if last.has_a_last_word() {
            kept.previous.push(PreviousEpoch { epoch: kept.epoch, entries: vec![self.entry(&last, 0, None)] });
        }
        kept.outstanding = None;
        kept.asked = 0;
        kept.lives += 1;
        kept.epoch = epoch(n, kept.lives);
        if self.lives <= kept.lives {
            node.power = Power::Off; // the world ends here
        }
    }

    fn reboot(&self, state: &mut State, n: usize) {
        let now = state.now;
        let node = state.node(n);
        node.live = Arc::clone(&node.journal);
        node.clock_zero = now;
        (node.job, node.word) = (Job::Runs, 0);
        if !self.has(Bug::DeadlineSurvivesAReboot) {
            self.begin_again(node, n);
        }
        self.commit(node);
    }

    fn lose_disk(&self, state: &mut State, n: usize) {
        let node = state.node(n);
        let kept = node.kept();
        let lives = kept.lives + 1;
        let name = if self.has(Bug::EpochUsedAgain) { kept.epoch } else { epoch(n, lives) };
        *kept = Kept { epoch: name, lives, asked: 0, outstanding: None, grant: Grant::default(), previous: Vec::new() };
        (node.job, node.word) = (Job::Runs, 0);
        if self.lives <= lives {
            node.power = Power::Off;
        }
        self.commit(node);
    }

    /// The first machine's disk, as it is now, boots as a second one.
    fn clone_image(&self, state: &mut State) {
        let image = Arc::clone(&state.nodes[0].journal);
        let (now, zero) = (state.now, state.nodes[0].clock_zero);
        let node = state.node(1);
        *node = Node { power: Power::On, clock_zero: now, live: Arc::clone(&image), journal: image, job: Job::Runs, word: 0 };
        if self.has(Bug::ImageKeepsTheEpoch) {
            node.clock_zero = zero;
        } else {
            self.begin_again(node, 1);
            self.commit(node);
        }
    }

    /// An account's totals as they are sent. Proofs, and whether a grant is good yet, count only with a store that may forget.
    fn entry(&self, grant: &Grant, wanted: i128, at: Option<Boot>) -> RequestEntry {
        RequestEntry {
            account: account_id(),
            unit: UNIT.to_owned(),
            granted_seen: grant.granted,
            returned: grant.returned,
            spent: grant.spent,
            unfunded: grant.unfunded,
            owed: credits(wanted),
            burn_per_s: credits(0),
            at_least: credits(i128::from(0 < wanted)),
            validity: at.filter(|_| self.store_may_forget()).map(|at| grant.validity(at)),
            proof: grant.proof,
        }
    }

    // ---- the authority ----

    fn book(&self, state: &mut State, request: &Request) {
        let now = state.bank_now();
        let before = Arc::clone(&state.bank);
        self.meet(state, request);
        let rules = self.rules(&state.standing);
        let bank = Arc::make_mut(&mut state.bank);
        let mut entry = match self.bug {
            Some(bug) => bugs::answer(bug, bank, request, &rules, now),
            None => ledger::answer(bank, request, &request.entries[0], &rules, now).entry,
        };
        entry.valid_for = Nanos(entry.valid_for.0.saturating_sub(VALID_FOR.0 - self.valid_ticks * TICK.0));
        let answer = Answer {
            protocol: PROTOCOL,
            epoch: request.epoch,
            request: request.request,
            digest: request.digest(),
            acknowledged: request.previous.iter().map(|earlier| earlier.epoch).collect(),
            entries: vec![entry.clone()],
            balances: Vec::new(),
            generation: rules.generation,
            gangs: Vec::new(),
        };
        if entry.verdict == Verdict::Unproven {
            state.breaks("an honest node is taken for a liar");
        }
        if entry.verdict == Verdict::Exhausted {
            let escrow = state.bank.epochs.get(&request.epoch).map_or(credits(0), ledger::EpochAccount::escrow);
            if state.bank.available().is_positive() || escrow.is_positive() {
                state.breaks("the authority says that nothing is left, and something is");
            }
        }
        state.say(Message::answer(answer));
        World::audit_grants(state, &before);
        World::audit_booking(state, &before);
    }

    fn sweep(&self, state: &mut State) {
        let now = state.bank_now();
        let before = Arc::clone(&state.bank);
        self.end_recovery_when_due(state);
        let bank = Arc::make_mut(&mut state.bank);
        let _lines = ledger::sweep(bank, self.close(), now);
        if let Some(bug) = self.bug {
            bugs::swept(bug, bank, &before);
        }
        World::audit_booking(state, &before);
    }

    fn top_up(state: &mut State) {
        let now = state.bank_now();
        let before = Arc::clone(&state.bank);
        let bank = Arc::make_mut(&mut state.bank);
        World::pay_in(bank, now);
        let push = Push { account: account_id(), version: bank.version };
        state.say(Message::push(push));
        World::audit_booking(state, &before);
    }

    pub(crate) fn pay_in(bank: &mut Account, now: Now) {
        let payment = Payment::deposit(format!("payment-{}", bank.version).parse().unwrap(), Bucket::Paid, credits(1));
        ledger::book(bank, &payment, PaymentState::Completed, None, now).unwrap();
    }

    fn revoke(&self, state: &mut State) -> bool {
        let now = state.bank_now();
        let before = Arc::clone(&state.bank);
        let bank = Arc::make_mut(&mut state.bank);
        let id = format!("revocation-{}", bank.version).parse().unwrap();
        let done = match self.bug {
            Some(bug) => bugs::revoke(bug, bank, id, credits(1), now),
            None => ledger::revoke(bank, id, credits(1), now).is_ok(),
        };
        let push = Push { account: account_id(), version: bank.version };
        state.say(Message::push(push));
        World::audit_booking(state, &before);
        done
    }

    // ---- what must hold ----

    fn audit_booking(state: &mut State, before: &Account) {
        let bank = Arc::clone(&state.bank);
        for (id, epoch) in bank.epochs.iter() {
            let closed_now =
                epoch.state == EpochState::Closed && before.epochs.get(id).is_some_and(|epoch| epoch.state == EpochState::Open);
            if before.epochs.get(id).is_some_and(|before| epoch.shortfall < before.shortfall) {
                state.breaks("what was short is collected later");
            }
            if closed_now {
                let unreported = state.used_by(*id) - epoch.claimed.nano();
                state.unreported += state.standing.note_closed(*id, unreported);
            }
        }
        let rule = ledger::check(&bank).and_then(|()| ledger::check_step(before, &bank));
        if let Err(broken) = rule {
            state.breaks(broken.to_string());
        }
    }

    fn audit(&self, state: &mut State) {
        let bank = Arc::clone(&state.bank);
        for (id, epoch) in bank.epochs.iter() {
            let used = state.used_by(*id);
            if used < epoch.settled.nano() {
                state.breaks("an epoch is charged more than it used");
            }
            if epoch.granted.minus(epoch.returned).nano() < used && !self.two_may_write() && !state.standing.was_put_back() {
                state.breaks("an epoch used more than it was granted and did not give back");
            }
            if epoch.claimed < epoch.settled.plus(epoch.shortfall) {
                state.breaks("what is charged and what is short are more than what was reported");
            }
        }
        let used_in_all: i128 = state.used.iter().map(|(_, used)| used).sum();
        let out = used_in_all + bank.withdrawn.nano();
        if bank.deposited.nano() + state.unreported + state.standing.forgotten() < out && !self.two_may_write() {
            state.breaks("more was used and withdrawn than was paid in, and lost unreported or with the store");
        }
        if !self.two_may_write() {
            self.audit_what_can_be_spent(state);
        }
        if state
            .nodes
            .iter()
            .any(|node| node.live.grant.held() < node.live.grant.granted.minus(node.live.grant.returned).minus(node.live.grant.spent))
        {
            state.breaks("a node spends beyond its grant");
        }
    }

    /// A running machine that is there twice uses one grant twice, until that is seen: a bound, and not none.
    fn two_may_write(&self) -> bool {
        0 < self.left.live_clones
    }
}

/// What nobody will ever listen to any more makes no difference: answers to questions that are not open, and pushes that all have heard. Only
/// numbers above the last one are asked, and no name is used again; that the product drops such answers is looked at here.
fn forget_the_dead(state: &mut State) {
    let State { nodes, net, broken, .. } = state;
    let on = || nodes.iter().filter(|node| node.power == Power::On);
    net.retain(|message| match &message.body {
        Body::Request(_) => true,
        Body::Push(push) => on().any(|node| node.live.grant.pushed_version.max(node.live.grant.version) < push.version),
        Body::Answer(answer) => on().filter(|node| node.live.epoch == answer.epoch).any(|node| {
            let open = node.live.outstanding.as_ref();
            let asked = open.filter(|open| open.request.request != answer.request);
            if asked.is_some_and(|open| hearing::hear(&open.request, (**answer).clone()).0.is_some()) {
                broken.get_or_insert_with(|| "an answer to another question counts".to_owned());
            }
            open.is_some_and(|open| open.request.request == answer.request)
        }),
    });
}

fn boot_of(n: usize, node: &Node) -> BootId {
    boot(n, node.live.lives)
}

fn told(entry: &RequestEntry) -> Told {
    Told { spent: entry.spent, returned: entry.returned, unfunded: entry.unfunded }
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut bank = Account::new(account_id(), AccountPolicy::default());
        if 0 < self.deposit {
            let payment = Payment::deposit("first".parse().unwrap(), Bucket::Paid, credits(self.deposit));
            ledger::book(&mut bank, &payment, PaymentState::Completed, None, Now::default()).unwrap();
        }
        let node = |n: usize| {
            let kept =
                Arc::new(Kept { epoch: epoch(n, 0), lives: 0, asked: 0, outstanding: None, grant: Grant::default(), previous: Vec::new() });
            let power = if n == 0 { Power::On } else { self.second };
            Arc::new(Node { power, clock_zero: 0, live: Arc::clone(&kept), journal: kept, job: Job::Runs, word: 0 })
        };
        let state = State {
            bank: Arc::new(bank),
            nodes: [node(0), node(1)],
            net: Vec::new(),
            now: 0,
            left: self.left,
            used: Vec::new(),
            unreported: 0,
            broken: None,
            standing: Standing::default(),
            long_ago: self.valid_ticks + 1,
        };
        self.beginnings(state)
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for n in 0..2 {
            self.node_actions(state, n, actions);
        }
        let requests = state.net.iter().filter(|message| matches!(message.body, Body::Request(_)));
        actions.extend(requests.map(|message| Action::ToBank(message.clone())));
        actions.extend([Action::Tick, Action::Sweep]);
        let left = state.left;
        let rare = [
            (left.missed_ticks, Action::TickMissed),
            (left.bank_restarts, Action::BankRestart),
            (left.top_ups, Action::TopUp),
            (left.revocations, Action::Revoke),
            (left.restarts, Action::Restart(0)),
            (left.reboots, Action::Reboot(0)),
            (left.lost_disks, Action::LoseDisk(0)),
            (left.image_clones, Action::CloneImage),
            (left.live_clones, Action::CloneLive),
        ];
        actions.extend(rare.into_iter().filter(|(times, _)| 0 < *times).map(|(_, action)| action));
        if self.store_may_forget() {
            World::copies(state, actions);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        if last.broken.is_some() {
            return None;
        }
        let mut state = last.clone();
        if !self.happens(&mut state, action) {
            return None;
        }
        if self.bug.is_none_or(Bug::is_the_stores) {
            forget_the_dead(&mut state);
        }
        self.audit(&mut state);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<World>> {
        vec![Property::always("every rule holds", |world: &World, state: &State| {
            state.broken.is_none() && (world.heals == 0 || crate::rest::comes_to_rest(world, state))
        })]
    }
}

impl World {
    /// Does it make a difference?
    pub(crate) fn happens(&self, state: &mut State, action: Action) -> bool {
        match action {
            Action::Ask(n, wanted) => {
                self.ask(state, n, wanted);
                true
            }
            Action::AskAgain(n) => {
                let clock = state.nodes[n].clock(state.now);
                let kept = state.node(n).kept();
                kept.outstanding.as_mut().is_some_and(|open| std::mem::replace(&mut open.first_sent, clock) != clock)
            }
            Action::Use(n) => {
                self.use_one(state, n);
                true
            }
            Action::GiveBack(n) => {
                self.give_back(state, n);
                true
            }
            Action::Stop(n) => {
                let node = state.node(n);
                node.job = Job::Stopped;
                if node.word < node.live.grant.pushed_version {
                    state.breaks("a job is stopped by a word from before what its node was told");
                }
                true
            }
            Action::Hear(n, message) => self.hear(state, n, &message),
            Action::ToBank(message) => {
                if let Body::Request(request) = &message.body {
                    self.book(state, request);
                }
                true
            }
            Action::Tick => {
                state.now += 1;
                true
            }
            Action::TickMissed => {
                state.left.missed_ticks -= 1;
                state.now += 1;
                state.node(0).clock_zero += 1;
                true
            }
            Action::Sweep => {
                self.sweep(state);
                true
            }
            Action::BackUp(first) => {
                let before = Arc::clone(&state.bank);
                let changed = self.happens(state, *first) && before != state.bank;
                state.back_up();
                changed
            }
            Action::PutBack(next) => {
                self.put_back(state);
                self.happens(state, *next)
            }
            rare => self.rare(state, &rare),
        }
    }

    fn rare(&self, state: &mut State, action: &Action) -> bool {
        let left = &mut state.left;
        match action {
            Action::BankRestart => {
                left.bank_restarts -= 1;
                state.watch_anew();
                state.standing.began = state.now; // a recovery begins anew too
            }
            Action::TopUp => {
                left.top_ups -= 1;
                World::top_up(state);
            }
            Action::Revoke => {
                left.revocations -= 1;
                return self.revoke(state);
            }
            Action::Restart(n) => {
                left.restarts -= 1;
                let node = state.node(*n);
                node.live = Arc::clone(&node.journal);
            }
            Action::Reboot(n) => {
                left.reboots -= 1;
                self.reboot(state, *n);
            }
            Action::LoseDisk(n) => {
                left.lost_disks -= 1;
                self.lose_disk(state, *n);
            }
            Action::CloneImage => {
                left.image_clones -= 1;
                self.clone_image(state);
            }
            Action::CloneLive => {
                left.live_clones -= 1;
                state.nodes[1] = Arc::clone(&state.nodes[0]);
            }
            _ => return false,
        }
        true
    }
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Ask(n, wanted) => write!(f, "machine {n} asks for {wanted}"),
            Action::AskAgain(n) => write!(f, "machine {n} asks again"),
            Action::Use(n) => write!(f, "machine {n} uses one"),
            Action::GiveBack(n) => write!(f, "machine {n} gives back"),
            Action::Stop(n) => write!(f, "machine {n} stops its job"),
            Action::Hear(n, message) => write!(f, "machine {n} hears {message:?}"),
            Action::ToBank(message) => write!(f, "the authority books {message:?}"),
            Action::Tick => write!(f, "a tick"),
            Action::TickMissed => write!(f, "a tick that machine 0 misses"),
            Action::Sweep => write!(f, "the authority closes what is silent"),
            Action::BankRestart => write!(f, "the authority starts again"),
            Action::TopUp => write!(f, "a top-up"),
            Action::Revoke => write!(f, "a revocation"),
            Action::Restart(n) => write!(f, "machine {n}'s agent starts again"),
            Action::Reboot(n) => write!(f, "machine {n} reboots"),
            Action::LoseDisk(n) => write!(f, "machine {n} loses its disk"),
            Action::CloneImage => write!(f, "machine 0's disk boots elsewhere"),
            Action::CloneLive => write!(f, "machine 0 is copied while it runs"),
            Action::BackUp(first) => write!(f, "{first:?}, and a copy of the store is made"),
            Action::PutBack(next) => write!(f, "the copy of the store is put back, and {next:?}"),
        }
    }
}
