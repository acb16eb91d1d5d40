//! The gates one by one: what goes out before the disk has the facts, and what waits.

mod bids;
mod contracts;
mod every;
mod evidence;
mod gang;
mod ladder;
mod nested;
mod older;
mod policy;
mod rates;
mod refunds;
mod replayed;
mod segments;
mod standing;
mod still;
mod stops;
mod surplus;

use super::*;
use crate::domain::act::{ActOutcome, CgroupDir, Target};
use crate::domain::agent::start::{Novelty, Wanted};
use crate::domain::detail::Detail;
use crate::domain::gang::Gang;
use crate::domain::id::{AccountId, Attempt, BootId, NodeId};
use crate::domain::job::{FrozenBy, GapRule, Phase};
use crate::domain::ladder::{JobPolicy, Ladder};
use crate::domain::meter::{Frozen, Host, Missing, Populated, Reading};
use crate::domain::money::Credits;
use crate::domain::outcome::Outcome;
use crate::domain::time::{Boot, Wall};
use crate::domain::usage::Meter;
use crate::domain::wire::{AccountPolicy, AnswerEntry, Balance, OnExhaustion, PROTOCOL, UNIT, Verdict};

const MS: u64 = 1_000_000;
/// One credit for a core-second; the host has one CPU, so the greatest burn is a credit a second.
const CARD: &str = "card = \"c\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n[[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"1\"\nunit = \"core-second\"\n";

struct Bench {
    turn: Turn,
    now: Now,
    cpu_ns: u64,
    frozen: Frozen,
    out: Vec<Effect>,
    free: i128,
    granted: i128,
    policy: AccountPolicy,
    detail: Option<Detail>,
    time_limit: Option<Nanos>,
    job_policy: JobPolicy,
    thaws: usize,
    /// What the authority keeps for later answers.
    rest: i128,
    /// What was given back, as far as the authority has heard.
    returned: i128,
    /// Its word, where that is not told by the amounts.
    word: Option<Verdict>,
    balances: Vec<Balance>,
    /// Of its store; it proves what it grants from the first one on.
    generation: u64,
    /// The gang that jobs are started in, and what the authority says of it.
    gang: Option<Gang>,
    gang_want: Option<GangWant>,
    bid: Option<Credits>,
    /// How long its word is good for.
    valid_for: Nanos,
    /// Of the account there.
    version: u64,
}

impl Bench {
    fn new() -> Bench {
        let settings = Settings {
            node: "n".parse::<NodeId>().unwrap(),
            boot: BootId([1; 16]),
            enforcement: Enforcement::Enforce,
            interval: Nanos::from_secs(1),
            host: Host { cpu_count: 1, memory_bytes: 1 << 30 },
            ladder: Ladder::default(),
            woke_at: Boot::default(),
            provider: None,
        };
        let now = Now { mono: Mono(1_000 * MS), boot: Boot(1_000 * MS), wall: Wall(1_800_000_000_000) };
        let (turn, out) = Turn::wake(Agent::default(), settings, now, Epoch([7; 16]), &BTreeSet::new());
        let mut bench = Bench {
            turn,
            now,
            cpu_ns: 0,
            frozen: Frozen::No,
            out,
            free: 0,
            granted: 0,
            policy: AccountPolicy::default(),
            detail: None,
            time_limit: None,
            job_policy: JobPolicy::default(),
            thaws: 0,
            rest: 0,
            returned: 0,
            word: None,
            balances: Vec::new(),
            generation: 0,
            gang: None,
            gang_want: None,
            bid: None,
            valid_for: Nanos::from_secs(600),
            version: 1,
        };
        bench.step(Event::CardArrived(Box::new(Card::parse(CARD, "card.toml").unwrap()), Vec::new()));
        bench.durable();
        bench
    }

    fn pass(&mut self, ms: u64) {
        self.now.mono.0 += ms * MS;
        self.now.boot.0 += ms * MS;
        self.now.wall.0 += ms;
    }

    fn step(&mut self, event: Event) {
        let effects = self.turn.step(self.now, event);
        self.out.extend(effects);
    }

    /// The disk takes everything made so far.
    fn durable(&mut self) {
        let seq = self.turn.agent().seq;
        self.step(Event::Durable(seq));
    }

    fn sample(&self, attempt: Attempt) -> JobSample {
        JobSample {
            attempt,
            at: self.now.mono,
            cpu_ns: Reading::Seen(self.cpu_ns),
            memory_bytes: Reading::Missing(Missing::NotSupported),
            populated: Reading::Seen(Populated::Yes),
            frozen: Reading::Seen(self.frozen),
            tail: None,
            memory_anon_bytes: None,
            detail: self.detail.clone().map(Box::new),
            gpus: None,
        }
    }

    fn start(&mut self, caller: u64, account: &str) {
        self.start_named("job", caller, account);
    }

    fn start_named(&mut self, name: &str, caller: u64, account: &str) {
        let wanted = Wanted {
            traits: BTreeMap::new(),
            name: name.parse().unwrap(),
            account: account.parse().unwrap(),
            owner: Uid::ROOT,
            target: Target::Cgroups(vec![CgroupDir { path: "/sys/fs/cgroup/job".to_owned(), inode: 5 }]),
            time_limit: self.time_limit,
            cpus: None,
            memory_bytes: None,
            policy: self.job_policy,
            bid: self.bid,
            storage_bytes: None,
            gang: self.gang.clone(),
        };
        let sample = self.sample(Attempt(u64::MAX));
        self.step(Event::StartAsked(Box::new(PendingStart { caller, wanted, gpus: Vec::new(), sample, at: self.now, asked: None })));
    }

    fn question(&self) -> Option<Request> {
        self.out.iter().rev().find_map(|effect| if let Effect::Send(request) = effect { Some(request.clone()) } else { None })
    }

    /// The authority answers the last question that was sent, granting all that is free.
    fn answer(&mut self) {
        let request = self.question().expect("a question was sent");
        let account: AccountId = request.entries[0].account.clone();
        // What comes back is free again, for this very node.
        let returned = request.entries[0].returned.nano().max(self.returned);
        self.free += returned - std::mem::replace(&mut self.returned, returned);
        self.granted += self.free;
        self.free = 0;
        let spent = request.entries[0].spent.nano() + returned;
        let verdict = if let Some(word) = self.word {
            word
        } else if 0 < self.rest {
            Verdict::Granted
        } else if self.granted == spent {
            Verdict::Exhausted
        } else {
            Verdict::Final
        };
        let entry = AnswerEntry {
            account,
            unit: UNIT.to_owned(),
            granted: Credits::from_nano(self.granted),
            valid_for: self.valid_for,
            verdict,
            settled: request.entries[0].spent,
            free: Credits::from_nano(self.free + self.rest),
            version: self.version,
            policy: self.policy,
            proof: (self.generation != 0).then(|| self.proof(request.request)),
        };
        let answer = Answer {
            protocol: PROTOCOL,
            epoch: request.epoch,
            request: request.request,
            digest: request.digest(),
            acknowledged: Vec::new(),
            entries: vec![entry],
            balances: self.balances.clone(),
            generation: self.generation,
            gangs: self.gang_want.iter().cloned().collect(),
        };
        self.step(Event::Answered(Box::new(answer), Epoch([8; 16])));
    }

    fn proof(&self, request: u64) -> crate::domain::proof::Proof {
        let (generation, granted) = (self.generation, Credits::from_nano(self.granted));
        crate::domain::proof::Proof { generation, request, granted, code: crate::domain::id::Digest([9; 32]) }
    }

    /// What was ordered, without the warnings.
    fn orders(&self) -> Vec<Act> {
        let acts = self.out.iter().filter_map(|effect| if let Effect::Act(order) = effect { Some(order.act) } else { None });
        acts.filter(|act| *act != Act::Warn).collect()
    }

    fn replies(&self) -> Vec<&Reply> {
        self.out.iter().filter_map(|effect| if let Effect::Reply(_, reply) = effect { Some(reply) } else { None }).collect()
    }

    /// A job that runs on this much credit, everything on disk.
    fn running(nano: i128) -> Bench {
        let mut bench = Bench::new();
        bench.free = nano;
        bench.start(1, "a");
        bench.durable();
        bench.answer();
        bench.durable();
        bench.out.clear();
        bench
    }

    /// Its CPU works for this long, and then it is looked at.
    fn work(&mut self, ms: u64) {
        self.pass(ms);
        self.cpu_ns += ms * MS;
        let sample = self.sample(Attempt(1));
        self.step(Event::Looked(vec![sample]));
    }

    fn acted(&mut self, act: Act) {
        self.frozen = if act == Act::Freeze { Frozen::Yes } else { Frozen::No };
        self.confirm(Attempt(1), act, self.cpu_ns, self.frozen);
    }

    fn acted_warn(&mut self) {
        self.confirm(Attempt(1), Act::Warn, self.cpu_ns, self.frozen);
    }

    fn confirm(&mut self, attempt: Attempt, act: Act, cpu_ns: u64, frozen: Frozen) {
        let (asked_at, done_at) = (self.now.mono, self.now.mono);
        let acted = Acted { attempt, act, asked_at, done_at, syscall: String::new(), outcome: ActOutcome::Confirmed };
        let sample = JobSample { cpu_ns: Reading::Seen(cpu_ns), frozen: Reading::Seen(frozen), ..self.sample(attempt) };
        self.step(Event::Acted(vec![(acted, Some(sample))]));
    }

    fn job(&self) -> &crate::domain::job::Job {
        self.turn.agent().job_named("job").expect("the job is known")
    }

    /// A new process goes on from this state, with the marks of these jobs.
    fn wake(&mut self, agent: Agent, marked: &[Attempt]) {
        let settings = self.turn.settings().clone();
        let marked = marked.iter().copied().collect();
        (self.turn, self.out) = Turn::wake(agent, settings, self.now, Epoch([9; 16]), &marked);
    }

    /// What a start after a crash knows: the facts that the disk had.
    fn crashed_at(&self, seq: Seq) -> Agent {
        let mut agent = Agent::default();
        let rows = self.out.iter().filter_map(|effect| if let Effect::Commit(batch) = effect { Some(batch) } else { None });
        for batch in rows {
            for (row, nth) in batch.rows.iter().zip(batch.first_seq..) {
                if nth <= seq.0 {
                    agent.apply(&Fact::decode(&row.bytes).unwrap());
                }
            }
        }
        agent
    }
}

#[test]
fn a_question_waits_for_the_disk_and_is_repeated_word_for_word() {
    let mut bench = Bench::new();
    bench.start(1, "a");
    assert_eq!(bench.question(), None, "its number is not on disk yet");
    bench.durable();
    let first = bench.question().expect("now it is");
    bench.out.clear();
    bench.pass(400);
    bench.step(Event::Looked(Vec::new()));
    assert_eq!(bench.question(), None, "too soon to repeat");
    bench.pass(200);
    bench.step(Event::Looked(Vec::new()));
    assert_eq!(bench.question(), Some(first));
}

#[test]
fn a_start_is_answered_only_once_it_is_on_disk() {
    let mut bench = Bench::new();
    bench.free = 1_000_000_000;
    bench.start(1, "a");
    bench.durable();
    bench.answer();
    assert!(bench.replies().is_empty(), "the job is open in memory and not on disk");
    bench.durable();
    assert!(matches!(bench.replies()[..], [Reply::Started { novelty: Novelty::New, .. }]));
}

#[test]
fn the_same_start_twice_has_the_same_answer_and_a_changed_one_is_refused() {
    let mut bench = Bench::running(1_000_000_000);
    bench.start(2, "a");
    bench.durable();
    assert!(matches!(bench.replies()[..], [Reply::Started { attempt: Attempt(1), novelty: Novelty::Repeated, .. }]));
    bench.out.clear();
    bench.start(3, "b");
    bench.durable();
    assert!(matches!(bench.replies()[..], [Reply::Refused(refusal)] if refusal.code == "changed_repeat"));
}

#[test]
fn a_stop_before_its_start_is_refused_and_changes_nothing() {
    let mut bench = Bench::new();
    let before = bench.turn.agent().clone();
    let ending = Ending { outcome: Outcome::Completed, exit_code: Some(0) };
    bench.step(Event::StopAsked { caller: 1, name: "job".parse().unwrap(), ending, sample: None });
    assert!(matches!(bench.replies()[..], [Reply::Refused(refusal)] if refusal.code == "unknown_job"));
    assert_eq!(*bench.turn.agent(), before);
}

#[test]
fn a_start_without_credit_is_refused_by_name() {
    let mut bench = Bench::new();
    bench.start(1, "a");
    bench.durable();
    bench.answer();
    bench.durable();
    assert!(matches!(bench.replies()[..], [Reply::Refused(refusal)] if refusal.code == "no_credit"));
    assert!(bench.turn.agent().jobs.is_empty());
}

#[test]
fn a_start_that_the_authority_leaves_unanswered_is_refused_in_time() {
    let mut bench = Bench::new();
    bench.start(1, "a");
    bench.durable();
    bench.pass(1_600);
    bench.step(Event::Looked(Vec::new()));
    bench.durable();
    assert!(matches!(bench.replies()[..], [Reply::Refused(refusal)] if refusal.code == "authority_unreachable"));
}

#[test]
fn g4_a_durably_armed_account_is_frozen_before_the_disk_has_it() {
    let mut bench = Bench::running(1_000_000_000);
    assert!(bench.turn.agent().accounts.values().all(|account| account.armed.is_some()), "a second of burn is near the edge");
    bench.work(1_010);
    assert_eq!(bench.orders(), [Act::Freeze]);
    assert!(bench.turn.durable() < bench.turn.agent().seq, "the disk has not taken it yet");
}

#[test]
fn g4_an_account_that_is_armed_only_in_memory_waits_for_the_disk() {
    let mut bench = Bench::running(30_000_000_000);
    bench.work(20_000);
    assert!(bench.turn.agent().accounts.values().all(|account| account.armed.is_some()), "ten seconds are near the edge");
    bench.work(10_010);
    assert!(bench.orders().is_empty(), "nothing about the edge is on disk");
    bench.durable();
    assert_eq!(bench.orders(), [Act::Freeze]);
}

#[test]
fn a_thaw_waits_for_the_disk() {
    let mut bench = Bench::running(1_000_000_000);
    bench.work(1_010);
    bench.durable();
    bench.acted(Act::Freeze);
    bench.durable();
    bench.answer();
    bench.durable();
    assert_eq!(bench.job().phase, Phase::Frozen);
    bench.out.clear();
    bench.free = 5_000_000_000;
    bench.pass(500);
    bench.step(Event::Pushed(Push { account: "a".parse().unwrap(), version: 1 }));
    bench.step(Event::Pushed(Push { account: "a".parse().unwrap(), version: 2 }));
    bench.durable();
    bench.answer();
    assert!(bench.orders().is_empty(), "the grant is not on disk");
    bench.durable();
    assert_eq!(bench.orders(), [Act::Thaw]);
}

#[test]
fn g5_nothing_is_ended_without_the_authoritys_fresh_word() {
    let mut bench = Bench::new();
    bench.policy.on_exhaustion = OnExhaustion::Kill;
    bench.free = 1_000_000_000;
    bench.start(1, "a");
    bench.durable();
    bench.answer();
    bench.durable();
    bench.out.clear();
    bench.work(1_010);
    bench.durable();
    bench.acted(Act::Freeze);
    bench.durable();
    assert!(!bench.orders().contains(&Act::Kill), "the node's own knowledge freezes, and no more");
    bench.answer();
    assert!(!bench.orders().contains(&Act::Kill), "the word is not on disk");
    bench.durable();
    assert!(bench.orders().contains(&Act::Kill));
}

#[test]
fn g3_what_ran_past_zero_is_unfunded_and_the_rest_is_drawn() {
    let mut bench = Bench::running(1_000_000_000);
    bench.work(1_010);
    bench.durable();
    bench.acted(Act::Freeze);
    bench.durable();
    assert_eq!(bench.job().owed(), Credits::from_nano(10_000_000), "not decided before the authority has spoken");
    bench.answer();
    let job = bench.job();
    let nano = |amount: Credits| amount.nano();
    assert_eq!((nano(job.charge), nano(job.drawn), nano(job.unfunded)), (1_010_000_000, 1_000_000_000, 10_000_000));
}

#[test]
fn g2_a_killed_agent_finds_its_own_freeze_by_its_mark() {
    let mut bench = Bench::new();
    bench.free = 1_000_000_000;
    bench.start(1, "a");
    bench.durable();
    bench.answer();
    bench.durable();
    let on_disk = bench.turn.agent().seq;
    bench.work(1_010); // the freeze goes out, its facts do not reach the disk
    let agent = bench.crashed_at(on_disk);
    bench.pass(300);
    bench.frozen = Frozen::Yes;
    bench.wake(agent, &[Attempt(1)]);
    bench.step(Event::Looked(vec![bench.sample(Attempt(1))]));
    assert_eq!(bench.job().frozen_by, Some(FrozenBy::Agent));
    assert_eq!(bench.job().charge, Credits::from_nano(1_010_000_000), "the counter went on while the agent was away");
}

#[test]
fn g7_a_job_found_frozen_without_our_mark_was_frozen_by_another() {
    let mut bench = Bench::new();
    bench.free = 1_000_000_000;
    bench.start(1, "a");
    bench.durable();
    bench.answer();
    bench.durable();
    let on_disk = bench.turn.agent().seq;
    let agent = bench.crashed_at(on_disk);
    let armed = agent.accounts.values().any(|account| account.armed.is_some());
    assert!(armed, "so near its edge that we might have frozen it");
    bench.frozen = Frozen::Yes;
    bench.wake(agent, &[]);
    bench.pass(500);
    bench.step(Event::Looked(vec![bench.sample(Attempt(1))]));
    bench.durable();
    assert_eq!((bench.job().frozen_by, bench.orders()), (Some(FrozenBy::Other), Vec::new()));
}

#[test]
fn a_push_voids_the_question_that_is_outstanding() {
    let mut bench = Bench::new();
    bench.start(1, "a");
    bench.durable();
    let asked = |bench: &Bench| bench.turn.agent().outstanding.as_ref().map(|outstanding| outstanding.request.request);
    let before = asked(&bench);
    assert!(before.is_some());
    let account = bench.turn.agent().accounts.keys().next().cloned().unwrap();
    bench.step(Event::Pushed(Push { account, version: 2 }));
    assert!(before < asked(&bench), "its answer may have been written before the change");
}

#[test]
fn a_mark_goes_with_the_freeze_that_it_stands_for() {
    let mut bench = Bench::running(1_000_000_000);
    let (settings, now) = (bench.turn.settings().clone(), bench.now);
    let agent = bench.turn.agent().clone();
    let (_, out) = Turn::wake(agent, settings, now, Epoch([9; 16]), &BTreeSet::from([Attempt(1), Attempt(77)]));
    let unmarked: Vec<&Effect> = out.iter().filter(|effect| matches!(effect, Effect::Unmark(_))).collect();
    assert_eq!(unmarked, [&Effect::Unmark(Attempt(77))], "nobody needs the mark of a job that is not there");
    bench.step(Event::Ticked(vec![bench.sample(Attempt(1))]));
    assert!(!bench.out.iter().any(|effect| matches!(effect, Effect::Unmark(_))), "nothing was marked");
}

#[test]
fn g7_what_somebody_else_froze_is_never_thawed() {
    let mut bench = Bench::running(100_000_000_000);
    bench.frozen = Frozen::Yes;
    bench.pass(1_000);
    bench.step(Event::Looked(vec![bench.sample(Attempt(1))]));
    bench.durable();
    bench.pass(5_000);
    bench.step(Event::Ticked(vec![bench.sample(Attempt(1))]));
    bench.durable();
    assert_eq!((bench.job().frozen_by, bench.orders()), (Some(FrozenBy::Other), Vec::new()));
}

#[test]
fn observing_charges_and_touches_nothing() {
    let mut bench = Bench::running(1_000_000_000);
    bench.step(Event::EnforcementAsked { caller: 9, mode: Enforcement::Observe, by: Uid::ROOT });
    bench.durable();
    bench.work(3_000);
    bench.durable();
    assert!(bench.orders().is_empty());
    assert_eq!(bench.job().charge, Credits::from_nano(3_000_000_000));
}

#[test]
fn g6_a_missing_reading_charges_nothing_and_the_next_one_holds_it_all() {
    let mut bench = Bench::running(100_000_000_000);
    bench.pass(1_000);
    bench.cpu_ns += 1_000 * MS;
    let mut blind = bench.sample(Attempt(1));
    blind.cpu_ns = Reading::Missing(Missing::Denied);
    bench.step(Event::Ticked(vec![blind]));
    assert_eq!(bench.job().charge, Credits::ZERO);
    assert_eq!(bench.job().cpu_counter_ns, Some(0), "the baseline stays");
    bench.work(1_000);
    assert_eq!(bench.job().charge, Credits::from_nano(2_000_000_000));
}

#[test]
fn an_answer_to_another_question_is_dropped_whole() {
    let mut bench = Bench::new();
    bench.free = 1_000_000_000;
    bench.start(1, "a");
    bench.durable();
    let request = bench.question().unwrap();
    let entry = AnswerEntry {
        account: "a".parse().unwrap(),
        unit: UNIT.to_owned(),
        granted: Credits::from_nano(99),
        valid_for: Nanos::from_secs(600),
        verdict: Verdict::Granted,
        settled: Credits::ZERO,
        free: Credits::ZERO,
        version: 1,
        policy: AccountPolicy::default(),
        proof: None,
    };
    let good = Answer {
        protocol: PROTOCOL,
        epoch: request.epoch,
        request: request.request,
        digest: request.digest(),
        acknowledged: Vec::new(),
        entries: vec![entry],
        balances: Vec::new(),
        generation: 0,
        gangs: Vec::new(),
    };
    let mut other_digest = good.clone();
    other_digest.digest.0[0] ^= 1;
    let spoiled = [
        Answer { request: request.request + 1, ..good.clone() },
        Answer { epoch: Epoch([3; 16]), ..good.clone() },
        Answer { protocol: PROTOCOL + 1, ..good.clone() },
        other_digest,
    ];
    let before = bench.turn.agent().clone();
    for answer in spoiled {
        bench.step(Event::Answered(Box::new(answer), Epoch([8; 16])));
        assert_eq!(*bench.turn.agent(), before);
    }
}

#[test]
fn a_full_journal_takes_no_new_job_and_still_freezes() {
    let mut bench = Bench::running(10_000_000_000);
    bench.step(Event::JournalIs(JournalState::Full));
    bench.work(10_010);
    assert_eq!(bench.orders(), [Act::Freeze]);
    bench.out.clear();
    bench.start(5, "a");
    assert!(matches!(bench.replies()[..], [Reply::Refused(refusal)] if refusal.code == "journal_full"), "said at once");
}

#[test]
fn a_start_has_a_bounded_number_of_facts_to_replay() {
    let mut bench = Bench::running(1 << 60);
    for _ in 0..3 * REPLAY_MAX {
        bench.work(1); // looked at between two ticks, as near an edge
        bench.durable();
    }
    let made = bench.turn.agent().seq.0;
    assert!(2 * REPLAY_MAX < made, "only {made} facts");
    let mut checkpoint = 0;
    for batch in bench.out.iter().filter_map(|effect| if let Effect::Commit(batch) = effect { Some(batch) } else { None }) {
        let longest = batch.last_seq() - checkpoint;
        assert!(batch.checkpoint.is_some() || longest <= REPLAY_MAX + batch.rows.len() as u64, "{longest} facts since the last checkpoint");
        if batch.checkpoint.is_some() {
            checkpoint = batch.last_seq();
        }
    }
    let agent = bench.turn.agent().clone();
    let (mut next, _) = Turn::wake(agent, bench.turn.settings().clone(), bench.now, Epoch([9; 16]), &BTreeSet::new());
    let sample = JobSample { cpu_ns: Reading::Seen(bench.cpu_ns + MS), ..bench.sample(Attempt(1)) };
    let first = next.step(bench.now, Event::Looked(vec![sample]));
    let saved = first.iter().any(|effect| matches!(effect, Effect::Commit(batch) if batch.checkpoint.is_some()));
    assert!(saved, "short lives in a row do not make the replay longer: {first:?}");
}

#[test]
fn a_picture_made_over_another_is_the_same_as_one_made_afresh() {
    use crate::domain::view::{JobView, View};
    let afresh = |bench: &Bench| View::of(bench.turn.agent(), bench.turn.settings(), 0, None, bench.now);
    let over = |jobs: Vec<JobView>, bench: &Bench| View::over(jobs, bench.turn.agent(), bench.turn.settings(), 0, None, bench.now);
    let mut bench = Bench::running(1_000_000_000);
    let mut last = afresh(&bench).jobs;
    let mut same = |bench: &Bench| {
        last = over(std::mem::take(&mut last), bench).jobs;
        assert_eq!(last, afresh(bench).jobs);
    };
    bench.work(500);
    same(&bench);
    bench.work(600);
    bench.acted(Act::Freeze);
    same(&bench);
    bench.step(Event::StopAsked {
        caller: 2,
        name: "job".parse().unwrap(),
        ending: Ending { outcome: Outcome::Cancelled, exit_code: None },
        sample: None,
    });
    bench.pass(20_000);
    bench.step(Event::Looked(vec![JobSample { cpu_ns: Reading::Missing(Missing::Vanished), ..bench.sample(Attempt(1)) }]));
    assert!(bench.job().ended.is_some(), "it is over");
    same(&bench);
    let others = crate::node::sample::view().jobs;
    assert_eq!(over(others, &bench).jobs, afresh(&bench).jobs, "whatever was there before");
}

#[test]
fn an_account_at_its_edge_does_not_keep_another_from_its_look() {
    let mut bench = Bench::new();
    for (caller, name, nano) in [(1, "one", 5_000_000), (2, "two", 6_000_000)] {
        (bench.free, bench.granted) = (nano, 0);
        bench.start_named(name, caller, name);
        bench.durable();
        bench.answer();
        bench.durable();
    }
    bench.pass(1);
    bench.step(Event::Looked(vec![bench.sample(Attempt(1)), bench.sample(Attempt(2))]));
    // The one may be empty in 5 ms, the other in 6: both before the next look is allowed.
    let (_, jobs) = bench.turn.next_look(bench.now).expect("both are near their edge");
    assert_eq!(jobs, [Attempt(1), Attempt(2)]);
}

#[test]
fn a_job_that_stopped_somewhere_in_a_long_silence_is_billed_for_none_of_it() {
    let mut bench = Bench::running(100_000_000_000);
    bench.work(100);
    let before = bench.job().ran_ns();
    bench.pass(30_000);
    bench.frozen = Frozen::Yes;
    bench.step(Event::Looked(vec![bench.sample(Attempt(1))]));
    assert_eq!((bench.job().frozen_by, bench.job().ran_ns()), (Some(FrozenBy::Other), before));
    let gap = bench.job().gaps.iter().find(|gap| gap.meter == Meter::WallTime).expect("and that is said");
    assert_eq!((gap.rule, gap.to.since(gap.from)), (GapRule::NotBilled, Nanos::from_secs(30)));
}

#[test]
fn a_wider_interval_does_not_put_off_the_edge_of_an_account() {
    let look = |interval: Nanos| {
        let mut bench = Bench::running(5_000_000_000);
        let settings = Settings { interval, ..bench.turn.settings().clone() };
        bench.turn.set_settings(settings);
        bench.work(1_000);
        bench.turn.next_look(bench.now)
    };
    assert!(look(Nanos::from_secs(1)).is_some(), "five seconds of burn are near the edge");
    assert_eq!(look(Nanos::from_secs(1)), look(crate::domain::budget::INTERVAL_MAX));
}

type Garble<'a> = &'a dyn Fn(&Request) -> Answer;

/// A missing balance was read as zero, and any error in billing stopped what ran. Here none of them is news.
#[test]
fn f13_a_balance_that_is_missing_or_garbled_is_never_zero_and_stops_nothing() {
    let entry = |account: &str, unit: &str, verdict| AnswerEntry {
        account: account.parse().unwrap(),
        unit: unit.to_owned(),
        granted: Credits::ZERO,
        valid_for: Nanos(0),
        verdict,
        settled: Credits::ZERO,
        free: Credits::ZERO,
        version: 1,
        policy: AccountPolicy { on_exhaustion: OnExhaustion::Kill, ..AccountPolicy::default() },
        proof: None,
    };
    let right = |request: &Request, entries| Answer {
        protocol: PROTOCOL,
        epoch: request.epoch,
        request: request.request,
        digest: request.digest(),
        acknowledged: Vec::new(),
        entries,
        balances: Vec::new(),
        generation: 0,
        gangs: Vec::new(),
    };
    let zero = || entry("a", UNIT, Verdict::Exhausted);
    let garbled: [(&str, Garble); 6] = [
        ("no entry", &|request| right(request, Vec::new())),
        ("another account", &|request| right(request, vec![entry("b", UNIT, Verdict::Exhausted)])),
        ("another unit", &|request| right(request, vec![entry("a", "cent", Verdict::UnitMismatch)])),
        ("another question", &|request| Answer { request: request.request + 1, ..right(request, vec![zero()]) }),
        ("another digest", &|request| Answer { digest: crate::domain::id::Digest([0; 32]), ..right(request, vec![zero()]) }),
        ("another protocol", &|request| Answer { protocol: 99, ..right(request, vec![zero()]) }),
    ];
    for (what, answer) in garbled {
        let mut bench = Bench::running(60_000_000_000);
        while bench.question().is_none() {
            bench.work(500);
            bench.durable();
        }
        let in_hand = |bench: &Bench| bench.turn.agent().accounts[&"a".parse::<AccountId>().unwrap()].grant.in_hand(bench.now.boot);
        let before = in_hand(&bench);
        let answer = answer(&bench.question().unwrap());
        bench.step(Event::Answered(Box::new(answer), Epoch([8; 16])));
        bench.durable();
        assert_eq!(in_hand(&bench), before, "{what}");
        bench.work(100);
        bench.durable();
        assert_eq!((bench.orders(), bench.job().phase), (Vec::new(), Phase::Running), "{what}");
    }
}
