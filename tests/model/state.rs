//! What a moment of the protocol is made of, and how two moments are told to be the same.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use meterd::domain::grant::Grant;
use meterd::domain::id::{BootId, Epoch};
use meterd::domain::ledger::Account;
use meterd::domain::money::Credits;
use meterd::domain::proof::Proof;
use meterd::domain::time::{Boot, Mono, Nanos, Now, Wall};
use meterd::domain::wire::{Answer, PreviousEpoch, Push, Request};

use crate::restore::Standing;

/// One tick is half of a grant's validity.
pub(crate) const TICK: Nanos = Nanos::from_secs(300);

/// One moment.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) bank: Arc<Account>,
    pub(crate) nodes: [Arc<Node>; 2],
    /// Whatever was said can arrive at any time, any number of times, or never.
    pub(crate) net: Vec<Message>,
    /// Ticks that have really passed.
    pub(crate) now: u64,
    pub(crate) left: Left,
    /// What each epoch's jobs have really used.
    pub(crate) used: Vec<(Epoch, i128)>,
    /// Of that, what nobody had reported when the epoch was closed.
    pub(crate) unreported: i128,
    /// The first rule that did not hold.
    pub(crate) broken: Option<String>,
    /// How the authority's store stands beside its account.
    pub(crate) standing: Standing,
    /// What is so many ticks ago may as well be longer ago: all is silent then, and no grant is good.
    pub(crate) long_ago: u64,
}

/// How often something may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Left {
    pub(crate) top_ups: u8,
    pub(crate) revocations: u8,
    pub(crate) restarts: u8,
    pub(crate) reboots: u8,
    pub(crate) lost_disks: u8,
    pub(crate) image_clones: u8,
    pub(crate) live_clones: u8,
    pub(crate) bank_restarts: u8,
    /// Ticks that the first node's clock may miss.
    pub(crate) missed_ticks: u8,
    /// Copies of the authority's store that may be made …
    pub(crate) back_ups: u8,
    /// … and put back.
    pub(crate) put_backs: u8,
}

/// Is a machine there?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Power {
    On,
    Off,
}

/// A node's job: it is hungry for ever, unless it is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Job {
    Runs,
    Stopped,
}

/// One machine.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) power: Power,
    /// The tick at which its clock was zero.
    pub(crate) clock_zero: u64,
    pub(crate) live: Arc<Kept>,
    /// What a restart finds.
    pub(crate) journal: Arc<Kept>,
    pub(crate) job: Job,
    /// The version under which the last verdict was written.
    pub(crate) word: u64,
}

/// What a node keeps in its journal.
#[derive(Clone)]
pub(crate) struct Kept {
    pub(crate) epoch: Epoch,
    /// How many epochs this machine has had.
    pub(crate) lives: u8,
    /// The last request number.
    pub(crate) asked: u64,
    pub(crate) outstanding: Option<Outstanding>,
    pub(crate) grant: Grant,
    pub(crate) previous: Vec<PreviousEpoch>,
}

/// The question that is open.
#[derive(Clone)]
pub(crate) struct Outstanding {
    pub(crate) request: Arc<Request>,
    pub(crate) key: u64,
    pub(crate) first_sent: Boot,
}

/// Something that was said.
#[derive(Clone)]
pub(crate) struct Message {
    pub(crate) key: u64,
    pub(crate) body: Body,
}

#[derive(Clone)]
pub(crate) enum Body {
    Request(Arc<Request>),
    Answer(Arc<Answer>),
    Push(Push),
}

pub(crate) fn credits(nano: i128) -> Credits {
    Credits::from_nano(nano)
}

/// The name of a machine's epoch: random in truth, and never used again.
pub(crate) fn epoch(slot: usize, life: u8) -> Epoch {
    let mut bytes = [0; 16];
    (bytes[0], bytes[1]) = (u8::try_from(slot).unwrap() + 1, life);
    Epoch(bytes)
}

pub(crate) fn boot(slot: usize, life: u8) -> BootId {
    BootId(epoch(slot, life).0)
}

impl State {
    /// The authority's clock.
    pub(crate) fn bank_now(&self) -> Now {
        Now { mono: Mono(self.now * TICK.0), boot: Boot(self.now * TICK.0), wall: Wall(0) }
    }

    pub(crate) fn used_by(&self, epoch: Epoch) -> i128 {
        self.used.iter().find(|(of, _)| *of == epoch).map_or(0, |(_, used)| *used)
    }

    pub(crate) fn use_one(&mut self, epoch: Epoch) {
        if let Some((_, used)) = self.used.iter_mut().find(|(of, _)| *of == epoch) {
            *used += 1;
        } else {
            self.used.push((epoch, 1));
            self.used.sort_unstable_by_key(|(of, _)| *of);
        }
    }

    /// What is said once more is not said twice.
    pub(crate) fn say(&mut self, message: Message) {
        if self.net.iter().all(|other| other.key != message.key) {
            self.net.push(message);
        }
    }

    pub(crate) fn node(&mut self, n: usize) -> &mut Node {
        Arc::make_mut(&mut self.nodes[n])
    }

    pub(crate) fn breaks(&mut self, rule: impl Into<String>) {
        self.broken.get_or_insert_with(|| rule.into());
    }
}

impl Node {
    /// Its clock at a tick.
    pub(crate) fn clock(&self, now: u64) -> Boot {
        Boot((now - self.clock_zero) * TICK.0)
    }

    pub(crate) fn kept(&mut self) -> &mut Kept {
        Arc::make_mut(&mut self.live)
    }
}

fn key(thing: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    thing.hash(&mut hasher);
    hasher.finish()
}

impl Message {
    pub(crate) fn request(request: Request) -> Message {
        Message { key: key(&request.digest().0), body: Body::Request(Arc::new(request)) }
    }

    pub(crate) fn answer(answer: Answer) -> Message {
        let word = |entry: &meterd::domain::wire::AnswerEntry| {
            let proof = entry.proof.map(|proof| (proof.generation, proof.request));
            (entry.granted.nano(), entry.settled.nano(), entry.free.nano(), entry.version, entry.verdict as u8, proof)
        };
        let said = (answer.epoch.0, answer.request, answer.digest.0, answer.entries.iter().map(word).collect::<Vec<_>>());
        Message { key: key(&said), body: Body::Answer(Arc::new(answer)) }
    }

    pub(crate) fn push(push: Push) -> Message {
        Message { key: push.version, body: Body::Push(push) }
    }
}

// Two moments are the same if all that can come of them is: how long ago something was counts, not when.

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (self.left, self.unreported, self.broken.is_some()).hash(hasher);
        self.used.hash(hasher);
        // The network is a set.
        self.net.iter().fold(0_u64, |sum, message| sum.wrapping_add(message.key)).hash(hasher);
        hash_bank(&self.bank, |heard_at| (self.now - heard_at.0 / TICK.0).min(self.long_ago), hasher);
        self.standing.hash_at(self.now, self.long_ago, hasher);
        for node in &self.nodes {
            (node.power, node.job, node.word).hash(hasher);
            let clock = node.clock(self.now);
            hash_kept(&node.live, clock, self.long_ago, hasher);
            if !Arc::ptr_eq(&node.live, &node.journal) {
                hash_kept(&node.journal, clock, self.long_ago, hasher);
            }
        }
    }
}

/// `silent`: for how many ticks nothing was heard of who was last heard then.
pub(crate) fn hash_bank(bank: &Account, silent: impl Fn(Mono) -> u64, hasher: &mut impl Hasher) {
    let totals = (bank.version, bank.lots.total().nano(), bank.deposited.nano(), bank.withdrawn.nano(), bank.settled.nano());
    (totals, bank.revoke_pending().nano()).hash(hasher);
    for (id, epoch) in bank.epochs.iter() {
        let amounts = [epoch.granted, epoch.returned, epoch.settled, epoch.claimed, epoch.shortfall, epoch.proven].map(Credits::nano);
        let silent = silent(epoch.heard_at);
        (id.0, epoch.node.as_str(), epoch.state as u8, epoch.totals as u8, amounts, silent).hash(hasher);
        (epoch.last_request, epoch.last_digest.0).hash(hasher);
    }
}

fn hash_kept(kept: &Kept, clock: Boot, long_ago: u64, hasher: &mut impl Hasher) {
    let grant = &kept.grant;
    let amounts = [grant.granted, grant.returned, grant.spent].map(Credits::nano);
    let lasts = grant.deadline.since(clock).0 / TICK.0;
    let word = grant.verdict.map(|heard| heard.verdict as u8);
    (kept.epoch.0, kept.lives, kept.asked, amounts, lasts, word, grant.version, grant.pushed_version).hash(hasher);
    grant.proof.map(shown).hash(hasher);
    let open = kept.outstanding.as_ref();
    open.map(|open| (open.key, (clock.since(open.first_sent).0 / TICK.0).min(long_ago))).hash(hasher);
    for earlier in &kept.previous {
        let totals = |entry: &meterd::domain::wire::RequestEntry| {
            ([entry.granted_seen, entry.returned, entry.spent].map(Credits::nano), entry.proof.map(shown))
        };
        (earlier.epoch.0, earlier.entries.iter().map(totals).collect::<Vec<_>>()).hash(hasher);
    }
}

fn shown(proof: Proof) -> (u64, u64, i128) {
    (proof.generation, proof.request, proof.granted.nano())
}

impl PartialEq for State {
    fn eq(&self, other: &State) -> bool {
        key(self) == key(other)
    }
}

impl PartialEq for Message {
    fn eq(&self, other: &Message) -> bool {
        self.key == other.key
    }
}

// For people.

fn name(epoch: Epoch) -> String {
    format!("{}.{}", epoch.0[0], epoch.0[1])
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.body {
            Body::Push(push) => write!(f, "push {}", push.version),
            Body::Request(request) => {
                write!(f, "request {} of {}", request.request, name(request.epoch))?;
                for entry in &request.entries {
                    let (spent, back, wants) = (entry.spent.nano(), entry.returned.nano(), entry.owed.nano());
                    write!(f, ": spent {spent}, back {back}, wants {wants}")?;
                }
                for earlier in &request.previous {
                    write!(f, ", and {} ended at {}", name(earlier.epoch), earlier.entries[0].spent.nano())?;
                }
                Ok(())
            }
            Body::Answer(answer) => {
                write!(f, "answer {} to {}", answer.request, name(answer.epoch))?;
                for entry in &answer.entries {
                    write!(f, ": {:?}, granted {}, version {}", entry.verdict, entry.granted.nano(), entry.version)?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "tick {}, available {}, settled {}", self.now, self.bank.available().nano(), self.bank.settled.nano())?;
        for (id, epoch) in self.bank.epochs.iter() {
            let amounts = [epoch.granted, epoch.returned, epoch.settled, epoch.claimed, epoch.shortfall].map(Credits::nano);
            let used = self.used_by(*id);
            writeln!(f, "  {} {:?}: granted, returned, settled, claimed, short {amounts:?}; used {used}", name(*id), epoch.state)?;
        }
        writeln!(f, "  {:?}", self.standing)?;
        write!(f, "  {}", self.broken.as_deref().unwrap_or("all rules hold"))
    }
}
