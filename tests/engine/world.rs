//! The story: who uses, pays and fails when; and the auditor, who knows what was really used.

use std::collections::BTreeMap;

use meterd::authority::engine::pace::{Asking, Telling};
use meterd::authority::engine::{Failure, FaultOf};
use meterd::authority::store::Store;
use meterd::authority::store::mirror::{Draft, Followed, Mirroring, Outcome as Word, UsageEvent};
use meterd::domain::id::{AccountId, BootId, Epoch};
use meterd::domain::ledger::{ClosePolicy, Terms};
use meterd::domain::mirror::{Drawn, Reading};
use meterd::domain::money::Credits;
use meterd::domain::time::{Boot, Mono, Nanos, Now, Wall};
use meterd::domain::wire::{AccountPolicy, PROTOCOL, Request, RequestEntry, UNIT, Verdict};

use crate::bill::{Bill, Customer};
use crate::rng::Rng;

const STEPS: u64 = 350;
const NODES: usize = 2;
const START_MS: u64 = 1_000_000;
const BORN_MS: u64 = 1_800_000_000_000;
const POLL: Nanos = Nanos::from_secs(5);
const STALE_AFTER_MS: u64 = 60_000;

/// What happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) events: u64,
    pub(crate) repeated: u64,
    pub(crate) crashes: u64,
    pub(crate) moved: u64,
    pub(crate) older: u64,
    pub(crate) stale: u64,
    pub(crate) refused: u64,
    pub(crate) used: i128,
}

impl Outcome {
    pub(crate) fn add(&mut self, other: &Outcome) {
        self.events += other.events;
        self.repeated += other.repeated;
        self.crashes += other.crashes;
        self.moved += other.moved;
        self.older += other.older;
        self.stale += other.stale;
        self.refused += other.refused;
        self.used += other.used;
    }
}

/// A node that uses what it has in hand, tells the truth, and gives back what is recalled.
#[derive(Clone, Copy, Default)]
struct Part {
    granted: i128,
    returned: i128,
    spent: i128,
}

/// Something on its way.
enum Message {
    /// Events to the engine.
    Events(Vec<UsageEvent>),
    /// Its word on them.
    Words(Vec<(String, Word)>),
    NotTold(Failure),
    /// A question for a balance, and when it was sent.
    Question(AccountId, Now),
    /// Its word; the instant, on the true clock, as of which it is.
    Balance(AccountId, Reading, u64),
    NotSaid(AccountId, Failure),
}

pub(crate) struct World {
    rng: Rng,
    folder: tempfile::TempDir,
    store: Option<Store>,
    rules: Mirroring,
    now_ms: u64,
    /// When each arrives. Those of a process that has died arrive nowhere.
    mail: Vec<(u64, u64, Message)>,
    life: u64,
    bill: Bill,
    accounts: Vec<AccountId>,
    nodes: BTreeMap<(usize, AccountId), Part>,
    number: u64,
    telling: Option<Telling>,
    asking: Asking,
    /// As of when, on the true clock, the last word was that an account followed.
    followed_as_of: BTreeMap<AccountId, u64>,
    calm: bool,
    outcome: Outcome,
}

fn fault(code: &'static str) -> Failure {
    Failure::new(code, "the engine is not well")
}

impl World {
    pub(crate) fn new(seed: u64) -> World {
        let mut rng = Rng::new(seed);
        let drawn = if rng.chance(500) { Drawn::HereAlone } else { Drawn::ByOthersToo };
        let rules = Mirroring {
            settles_within: Nanos::from_millis(rng.range(1_000, 30_000)),
            stale_after: Nanos::from_millis(STALE_AFTER_MS),
            drawn,
            event_every: Nanos::from_millis(rng.range(1_000, 8_000)),
            event_age_max: Nanos::from_secs(86_400),
        };
        let accounts: Vec<AccountId> = ["chem", "lab"].map(|id| id.parse().unwrap()).into();
        let mut bill = Bill::default();
        for id in &accounts {
            bill.customers.insert(id.to_string(), Customer { paid: i128::from(rng.below(5_000)), ..Customer::default() });
        }
        // In memory where that can be: what is tested is what commits keep, and thousands of waits for a disk add nothing.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let asking = Asking::new(POLL, Mono(0));
        let mut world = World {
            rng,
            folder,
            store: None,
            rules,
            now_ms: START_MS,
            mail: Vec::new(),
            life: 0,
            bill,
            accounts,
            nodes: BTreeMap::new(),
            number: 0,
            telling: None,
            asking,
            followed_as_of: BTreeMap::new(),
            calm: false,
            outcome: Outcome::default(),
        };
        world.launch();
        let now = world.now();
        for id in world.accounts.clone() {
            world.store().create_account(id, AccountPolicy::default(), Terms::default(), now).unwrap();
        }
        world.enrol();
        world
    }

    fn now(&self) -> Now {
        let nanos = Nanos::from_millis(self.now_ms).0;
        Now { mono: Mono(nanos), boot: Boot(nanos), wall: Wall(BORN_MS + self.now_ms) }
    }

    fn store(&mut self) -> &mut Store {
        self.store.as_mut().unwrap()
    }

    /// The process begins, over what the one before it left.
    fn launch(&mut self) {
        let close = ClosePolicy::AfterSilence(Nanos::from_secs(7 * 86_400));
        let (path, now) = (self.folder.path().join("authority.db"), self.now());
        self.store = Some(Store::open(&path, close, now.mono).unwrap());
        self.telling = Some(Telling::new(Nanos::from_secs(1), 3, now.mono));
        self.asking = Asking::new(POLL, now.mono);
        self.life += 1;
        self.enrol();
    }

    fn enrol(&mut self) {
        let (rules, now) = (self.rules, self.now());
        let (accounts, cannot) = self.store().enrol(Some(rules), |_| true, now).unwrap();
        assert!(cannot.is_empty());
        self.asking.of(&accounts, now.mono);
    }

    fn crash(&mut self) {
        self.store = None;
        self.outcome.crashes += 1;
        self.now_ms += self.rng.below(20_000);
        self.launch();
    }

    fn send(&mut self, message: Message, within_ms: u64) {
        let arrives = self.now_ms + self.rng.below(within_ms);
        self.mail.push((arrives, self.life, message));
    }

    pub(crate) fn live(mut self) -> Outcome {
        for _ in 0..STEPS {
            self.now_ms += self.rng.range(50, 1_500);
            self.turn();
            self.mishaps();
            self.audit();
        }
        self.heal();
        self.outcome.events = self.bill.events();
        self.outcome.repeated = self.bill.repeated;
        self.outcome
    }

    /// What the engine's thread and the nodes do.
    fn turn(&mut self) {
        self.deliver();
        let now = self.now();
        let sending =
            self.mail.iter().any(|(_, life, message)| *life == self.life && matches!(message, Message::Events(_) | Message::Words(_)));
        if !sending && self.telling.as_ref().unwrap().due() <= now.mono {
            self.tell(now);
        }
        for account in self.asking.next(8, now.mono) {
            let on_its_way = self.mail.iter().any(|(_, life, message)| {
                *life == self.life
                    && matches!(message, Message::Question(of, _) | Message::Balance(of, ..) | Message::NotSaid(of, _) if *of == account)
            });
            if !on_its_way {
                self.send(Message::Question(account, now), 400);
            }
        }
        for node in 0..NODES {
            for account in self.accounts.clone() {
                if self.calm || self.rng.chance(600) {
                    self.speak(node, &account);
                }
            }
        }
    }

    fn tell(&mut self, now: Now) {
        let most = self.telling.as_ref().unwrap().most();
        let body = |draft: &Draft| format!("{}:{}:{}:{}", draft.id, draft.account, draft.amount, draft.at.0);
        if self.rng.chance(30) {
            self.store().try_refused_again().unwrap();
        }
        self.store().put_into_events(body, now).unwrap();
        let events = self.store().events_to_send(most, now).unwrap();
        if events.is_empty() {
            self.telling.as_mut().unwrap().told(0, now.mono);
        } else {
            self.send(Message::Events(events), 400);
        }
    }

    fn deliver(&mut self) {
        self.mail.sort_by_key(|(arrives, ..)| *arrives);
        while let Some((arrives, ..)) = self.mail.first() {
            if self.now_ms < *arrives {
                break;
            }
            let (_, life, message) = self.mail.remove(0);
            self.arrived(message, life == self.life);
        }
    }

    fn is_ill(&mut self) -> bool {
        !self.calm && self.rng.chance(150)
    }

    /// What arrives at the engine does so whether the process lives that sent it or not.
    fn arrived(&mut self, message: Message, alive: bool) {
        let now = self.now();
        match message {
            Message::Events(events) => {
                let reply = self.take(&events);
                if alive {
                    self.send(reply, 400);
                }
            }
            Message::Question(account, asked) => {
                let reply = self.say(account, asked);
                if alive {
                    let within = if self.rng.chance(100) { 8_000 } else { 400 };
                    self.send(reply, within);
                }
            }
            _ if !alive => {}
            Message::Words(words) => {
                let count = words.len();
                let (_, refused) = self.store().events_told(&words, now).unwrap();
                self.outcome.refused += refused;
                self.telling.as_mut().unwrap().told(count, now.mono);
            }
            Message::NotTold(failure) => self.telling.as_mut().unwrap().failed(&failure, now.mono, |most| Nanos(most.0 / 2)),
            Message::Balance(account, reading, true_as_of) => {
                match self.store().follow(&account, &reading, now).unwrap() {
                    Followed::Older => self.outcome.older += 1,
                    Followed::Moved(_) => {
                        self.outcome.moved += 1;
                        self.followed_as_of.insert(account.clone(), true_as_of);
                    }
                    Followed::Same => drop(self.followed_as_of.insert(account.clone(), true_as_of)),
                    other => panic!("{other:?}"),
                }
                self.asking.answered(&account, now.mono, |most| Nanos(most.0 / 2));
            }
            Message::NotSaid(account, failure) => self.asking.failed(&account, &failure, now.mono, |most| Nanos(most.0 / 2)),
        }
    }

    /// The engine is told: it may fail before, between or after taking them, refuse some, or not be heard.
    fn take(&mut self, events: &[UsageEvent]) -> Message {
        if self.is_ill() {
            return Message::NotTold(fault("failed_5xx"));
        }
        if 1 < events.len() && self.is_ill() {
            return Message::NotTold(Failure { of: FaultOf::Part, ..fault("refused_422") });
        }
        let lost = self.is_ill();
        let mut words = Vec::new();
        for event in events {
            if self.is_ill() {
                let word = if self.rng.chance(500) { Word::Again } else { Word::Refused { code: "refused_422", why: String::new() } };
                words.push((event.draft.id.clone(), word));
                continue;
            }
            let lag_ms = self.rng.below(self.rules.settles_within.millis());
            self.bill.take(event, self.now_ms, lag_ms);
            words.push((event.draft.id.clone(), Word::Taken));
        }
        if lost { Message::NotTold(fault("timed_out")) } else { Message::Words(words) }
    }

    /// The engine is asked: it says how things stand now, or stood a while ago where it says when.
    fn say(&mut self, account: AccountId, asked: Now) -> Message {
        if self.is_ill() {
            return Message::NotSaid(account, fault("failed_5xx"));
        }
        if self.is_ill() {
            return Message::NotSaid(account, Failure::of_account("malformed_balance", ""));
        }
        let says_when = self.rng.chance(300);
        let at_ms = if says_when && !self.calm { self.now_ms - self.rng.below(20_000).min(self.now_ms - START_MS) } else { self.now_ms };
        let balance = Credits::from_nano(self.bill.balance(account.as_str(), at_ms));
        let as_of = says_when.then_some(Wall(BORN_MS + at_ms));
        let true_as_of = at_ms.min(asked.mono.0 / 1_000_000);
        Message::Balance(account, Reading { balance, asked: asked.mono, asked_wall: asked.wall, as_of }, true_as_of)
    }

    /// A node uses some of what it has, tells all of it, and takes what comes.
    fn speak(&mut self, node: usize, account: &AccountId) {
        let mut part = self.nodes.get(&(node, account.clone())).copied().unwrap_or_default();
        let in_hand = u64::try_from(part.granted - part.returned - part.spent).unwrap();
        part.spent += if self.calm { 0 } else { i128::from(self.rng.below(in_hand.min(60) + 1)) };
        let wants = if self.calm { 0 } else { self.rng.range(1, 150) };
        self.number += 1;
        let entry = RequestEntry {
            account: account.clone(),
            unit: UNIT.to_owned(),
            granted_seen: Credits::from_nano(part.granted),
            returned: Credits::from_nano(part.returned),
            spent: Credits::from_nano(part.spent),
            unfunded: Credits::ZERO,
            owed: Credits::from_nano(i128::from(wants)),
            burn_per_s: Credits::ZERO,
            at_least: Credits::from_nano(1),
            validity: None,
            proof: None,
        };
        let request = Request {
            protocol: PROTOCOL,
            node: format!("n{node}").parse().unwrap(),
            epoch: Epoch([u8::try_from(node).unwrap() + 1; 16]),
            boot: BootId([1; 16]),
            request: self.number,
            previous: Vec::new(),
            refunds: Vec::new(),
            entries: vec![entry],
            generation_seen: 1,
            history: None,
            gangs: Vec::new(),
        };
        let now = self.now();
        let answer = self.store().answer(&request, now).unwrap();
        let said = &answer.entries[0];
        let granted = said.granted.nano();
        let read_ms = self.followed_as_of.get(account).copied();
        let stale = read_ms.is_none_or(|at| STALE_AFTER_MS < self.now_ms - at);
        if stale {
            assert_eq!(granted, part.granted, "of a balance that is too old nothing is granted");
            self.outcome.stale += u64::from(said.verdict == Verdict::Stale);
        }
        part.granted = granted;
        if said.verdict == Verdict::Recall {
            part.returned += (part.granted - part.returned - part.spent - said.free.nano()).max(0);
        }
        self.nodes.insert((node, account.clone()), part);
    }

    fn mishaps(&mut self) {
        let account = self.rng.pick(&self.accounts).to_string();
        if self.rng.chance(20) {
            self.crash();
        }
        // Now and then the engine is away for longer than a balance may be old.
        if self.rng.chance(5) {
            self.now_ms += 2 * STALE_AFTER_MS;
        }
        if self.rng.chance(30) {
            self.bill.customers.get_mut(&account).unwrap().paid += i128::from(self.rng.below(2_000));
        }
        if self.rules.drawn == Drawn::ByOthersToo && self.rng.chance(40) {
            let amount = i128::from(self.rng.below(300));
            self.bill.customers.get_mut(&account).unwrap().outside.push((self.now_ms, amount));
        }
    }

    /// What an account may still use and has used is never more than what was paid, less what others drew by the instant of the engine's last word.
    fn audit(&mut self) {
        for id in self.accounts.clone() {
            let account = self.store().account(&id).unwrap();
            let customer = &self.bill.customers[id.as_str()];
            let known_ms = self.followed_as_of.get(&id).copied().unwrap_or(0);
            let most = customer.paid - customer.outside_by(known_ms);
            let (used, holds) = (account.used().nano(), account.holds().nano());
            assert!(used + holds.max(0) <= most.max(used), "{id}: {used} used and {holds} held of {most}");
            let really: i128 = (0..NODES).filter_map(|node| self.nodes.get(&(node, id.clone()))).map(|part| part.spent).sum();
            assert!(self.bill.taken(id.as_str()) <= really, "{id}: more is told than was used");
        }
    }

    /// Nothing fails any more, nobody uses any more: all is told once, and both sides say the same.
    fn heal(&mut self) {
        self.calm = true;
        let healed_ms = self.now_ms + 4 * self.rules.settles_within.millis() + 120_000;
        while self.now_ms < healed_ms {
            self.now_ms += 700;
            if self.rng.chance(50) {
                self.store().try_refused_again().unwrap();
            }
            self.turn();
            self.audit();
        }
        for id in self.accounts.clone() {
            let really: i128 = (0..NODES).filter_map(|node| self.nodes.get(&(node, id.clone()))).map(|part| part.spent).sum();
            let account = self.store().account(&id).unwrap();
            assert_eq!(account.used().nano(), really, "{id}: what was used is charged");
            assert_eq!(self.bill.taken(id.as_str()), really, "{id}: each unit of it is at the engine once");
            let balance = self.bill.balance(id.as_str(), self.now_ms);
            assert_eq!(account.holds().nano(), balance.max(0), "{id}: both sides say the same");
            assert_eq!(account.revoke_pending(), Credits::ZERO, "{id}: what was recalled has come");
            self.outcome.used += really;
        }
        let now = self.now();
        let view = self.store().mirrored(now).unwrap();
        assert_eq!((view.accounts, view.stale, view.waiting, view.refused, view.too_old), (2, 0, 0, 0, 0));
    }
}
