//! A fact of the journal as it is told to people and programs: in one sentence, with its particulars, and only to whom it concerns.
//!
//! Operators are told everything. A hook is told of every job; a user of its own jobs; both of the accounts mapped to them.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::access::{Access, Standing, Who};
use crate::domain::act::{ActOutcome, Acted, Target};
use crate::domain::detail::Detailed;
use crate::domain::fact::{Fact, MeteredRow, Opened, Row, SettledRow};
use crate::domain::gang::{Says, Want};
use crate::domain::id::{AccountId, Attempt, JobName, Uid};
use crate::domain::job::{Evidence, FrozenBy, Gap, StepEvent};
use crate::domain::ladder::Rung;
use crate::domain::money::Credits;
use crate::domain::rates::OverBid;
use crate::domain::receipt::{ReceiptMore, rfc3339};
use crate::domain::terms::Report;
use crate::domain::time::{Nanos, Wall};
use crate::domain::wire::GangWord;

/// Rows of one fact that its sentence names; the particulars hold them all.
const ROWS_TOLD: usize = 3;

/// A fact, told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its number in the journal.
    pub seq: u64,
    /// RFC 3339: when it was written.
    pub at: String,
    /// In one word, such as `job_opened`. The words are stable.
    pub kind: String,
    /// Of which job, where it is of one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub job: Option<JobName>,
    /// Which run of it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub attempt: Option<Attempt>,
    /// Of which account, where it is of one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub account: Option<AccountId>,
    /// In a sentence.
    pub text: String,
    /// Its particulars. Amounts and wide counters are decimal strings.
    pub detail: Value,
}

/// Whose job an attempt is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: JobName,
    /// Who pays.
    pub account: AccountId,
    /// Whose it is.
    pub owner: Uid,
}

impl Known {
    /// As its opening says.
    #[must_use]
    pub fn of(opened: &Opened) -> Known {
        Known { name: opened.name.clone(), account: opened.account.clone(), owner: opened.owner }
    }
}

/// For whom facts are told.
#[derive(Clone, Debug)]
pub struct Listener {
    /// The table.
    pub access: Access,
    /// Who asks.
    pub who: Who,
    /// Only of this job.
    pub job: Option<JobName>,
    /// Only of this account and its jobs.
    pub account: Option<AccountId>,
}

impl Listener {
    fn hears_of_node(&self) -> bool {
        self.job.is_none() && self.account.is_none() && self.access.standing(&self.who) == Standing::Operator
    }

    fn hears_of_account(&self, account: &AccountId) -> bool {
        self.job.is_none() && self.account.as_ref().is_none_or(|wanted| wanted == account) && self.access.sees_account(&self.who, account)
    }

    /// A job that nobody knows any more is told to operators alone.
    fn hears_of_job(&self, known: Option<&Known>) -> bool {
        let Some(known) = known else { return self.hears_of_node() };
        let wanted = self.job.as_ref().is_none_or(|job| *job == known.name);
        let of_account = self.account.as_ref().is_none_or(|account| *account == known.account);
        wanted && of_account && self.access.sees_job(&self.who, known.owner)
    }
}

/// The fact as its listener may hear it; none if it concerns it not. `known` says whose job an attempt is.
pub fn tell(fact: &Fact, seq: u64, wall: Wall, listener: &Listener, known: &mut dyn FnMut(Attempt) -> Option<Known>) -> Option<Event> {
    let event = |text: String, detail: Value| Event {
        seq,
        at: rfc3339(wall),
        kind: kind(fact).to_owned(),
        job: None,
        attempt: None,
        account: None,
        text,
        detail,
    };
    match subject(fact) {
        Subject::Node => listener.hears_of_node().then(|| {
            let (text, detail) = of_node(fact);
            event(text, detail)
        }),
        Subject::Account(account) => listener.hears_of_account(account).then(|| {
            let (text, detail) = of_account(fact);
            Event { account: Some(account.clone()), ..event(format!("{account}: {text}"), detail) }
        }),
        Subject::Job(attempt) => {
            let job = known(attempt);
            listener.hears_of_job(job.as_ref()).then(|| {
                let (text, detail) = of_job(fact);
                let name = job.as_ref().map_or("a job".to_owned(), |job| job.name.to_string());
                let told = event(format!("{name} #{attempt}: {text}"), detail);
                let (job, account) = job.map(|job| (job.name, job.account)).unzip();
                Event { job, account, attempt: Some(attempt), ..told }
            })
        }
        Subject::Counted(rows) => {
            let (text, rows) = told_rows(rows.iter().map(|row| (row.attempt, row)), listener, known, counted)?;
            Some(event(text, json!({ "rows": rows })))
        }
        Subject::Settled(rows) => {
            let (text, rows) = told_rows(rows.iter().map(|row| (row.attempt, row)), listener, known, settled)?;
            Some(event(text, json!({ "rows": rows })))
        }
        Subject::Detailed(rows) => {
            let (text, rows) = told_rows(rows.iter().map(|(attempt, row)| (*attempt, row)), listener, known, detailed)?;
            Some(event(text, json!({ "rows": rows })))
        }
        Subject::Jobs(rows) => {
            let (text, rows) = told_rows(rows.iter().map(|(attempt, row)| (*attempt, row)), listener, known, <(String, Value)>::clone)?;
            Some(event(text, json!({ "rows": rows })))
        }
        Subject::Accounts(accounts) => {
            let heard: Vec<&(&AccountId, Value)> = accounts.iter().filter(|(account, _)| listener.hears_of_account(account)).collect();
            if heard.is_empty() && !listener.hears_of_node() {
                return None;
            }
            let names: Vec<&str> = heard.iter().map(|(account, _)| account.as_str()).collect();
            let (text, mut detail) = of_node(fact);
            detail["accounts"] = heard.iter().map(|(_, entry)| entry.clone()).collect();
            Some(event(format!("{text}: {}", listed(&names)), detail))
        }
    }
}

/// A record that this version cannot read: named, never left out. For operators.
#[must_use]
pub fn tell_unreadable(why: &str, seq: u64, wall: Wall, listener: &Listener) -> Option<Event> {
    let text = format!("cannot be read by this version: {why}");
    let (kind, detail) = ("unreadable".to_owned(), json!({}));
    listener.hears_of_node().then(|| Event { seq, at: rfc3339(wall), kind, job: None, attempt: None, account: None, text, detail })
}

/// Whom a fact concerns.
enum Subject<'f> {
    Node,
    Account(&'f AccountId),
    Job(Attempt),
    Counted(&'f [Row]),
    Settled(&'f [SettledRow]),
    Detailed(&'f [(Attempt, Detailed)]),
    /// Several jobs, each with its particulars.
    Jobs(Vec<(Attempt, (String, Value))>),
    /// Several accounts, each with its particulars.
    Accounts(Vec<(&'f AccountId, Value)>),
}

fn subject(fact: &Fact) -> Subject<'_> {
    match fact {
        Fact::EpochOpened { .. }
        | Fact::CardAdopted { .. }
        | Fact::EnforcementSet { .. }
        | Fact::Corrected { .. }
        | Fact::AskedRest { .. }
        | Fact::AnsweredRest { .. }
        | Fact::RungsConfirmed { .. } => Subject::Node,
        Fact::GangsSaid { words, .. } => Subject::Jobs(words.iter().map(|word| (word.part, gang_said(word))).collect()),
        Fact::JobOpened(opened) => Subject::Job(opened.attempt),
        Fact::SegmentsOpened { attempts, .. } => {
            let goes_on = |attempt: &Attempt| (*attempt, ("goes on in a new segment".to_owned(), json!({})));
            Subject::Jobs(attempts.iter().map(goes_on).collect())
        }
        Fact::Metered { rows } => {
            let more = |row: &MeteredRow| {
                let more = ReceiptMore::of(&row.more);
                (row.attempt, (format!("has read and written {} bytes", more.io_bytes), json!({ "more": more })))
            };
            Subject::Jobs(rows.iter().map(more).collect())
        }
        Fact::Counted { rows, .. } => Subject::Counted(rows),
        Fact::Settled { rows } => Subject::Settled(rows),
        Fact::Detailed { rows } => Subject::Detailed(rows),
        Fact::GapSeen { attempt, .. }
        | Fact::Stepped { attempt, .. }
        | Fact::VictimSet { attempt, .. }
        | Fact::FrozenBySet { attempt, .. }
        | Fact::StopReported { attempt, .. }
        | Fact::JobEnded { attempt, .. }
        | Fact::ChargedAtEnd { attempt, .. }
        | Fact::Refunded { attempt, .. }
        | Fact::JobStated { attempt, .. }
        | Fact::JobChanged { attempt, .. }
        | Fact::Reported { attempt, .. }
        | Fact::GangJoined { attempt, .. }
        | Fact::GangDry { attempt, .. }
        | Fact::GangHeard { attempt, .. }
        | Fact::JobClosed { attempt } => Subject::Job(*attempt),
        Fact::HandsActed { acted, .. } => Subject::Job(acted.attempt),
        Fact::Armed { account, .. }
        | Fact::Disarmed { account }
        | Fact::EmptySet { account, .. }
        | Fact::WarnedSet { account, .. }
        | Fact::RungAllowed { account, .. }
        | Fact::AccountTold { account, .. }
        | Fact::Pushed { account, .. }
        | Fact::Returned { account, .. } => Subject::Account(account),
        Fact::Asked { request, .. } => {
            let entry = |entry: &crate::domain::wire::RequestEntry| {
                json!({ "account": entry.account, "granted_seen": entry.granted_seen, "returned": entry.returned, "spent": entry.spent,
                    "unfunded": entry.unfunded, "owed": entry.owed })
            };
            Subject::Accounts(request.entries.iter().map(|asked| (&asked.account, entry(asked))).collect())
        }
        Fact::Answered { entries, .. } => {
            let entry = |entry: &crate::domain::wire::AnswerEntry| json!({ "account": entry.account, "verdict": entry.verdict, "granted": entry.granted, "settled": entry.settled, "free": entry.free });
            Subject::Accounts(entries.iter().map(|answered| (&answered.account, entry(answered))).collect())
        }
    }
}

/// The stable word for a fact.
const fn kind(fact: &Fact) -> &'static str {
    match fact {
        Fact::EpochOpened { .. } => "epoch_opened",
        Fact::CardAdopted { .. } => "card_adopted",
        Fact::EnforcementSet { .. } => "enforcement_set",
        Fact::JobOpened(_) => "job_opened",
        Fact::Counted { .. } => "counted",
        Fact::GapSeen { .. } => "gap_seen",
        Fact::Settled { .. } => "settled",
        Fact::Detailed { .. } => "detailed",
        Fact::Stepped { .. } => "stepped",
        Fact::Armed { .. } => "armed",
        Fact::Disarmed { .. } => "disarmed",
        Fact::EmptySet { since: Some(_), .. } => "account_empty",
        Fact::EmptySet { since: None, .. } => "account_funded",
        Fact::WarnedSet { warned: Some(_), .. } => "account_warned",
        Fact::WarnedSet { warned: None, .. } => "warning_lifted",
        Fact::Asked { .. } => "asked",
        Fact::Answered { .. } => "answered",
        Fact::Pushed { .. } => "pushed",
        Fact::Returned { .. } => "returned",
        Fact::HandsActed { .. } => "acted",
        Fact::FrozenBySet { .. } => "frozen_by_set",
        Fact::StopReported { .. } => "stop_reported",
        Fact::JobEnded { .. } => "job_ended",
        Fact::JobClosed { .. } => "job_closed",
        Fact::Corrected { .. } => "corrected",
        Fact::RungAllowed { .. } => "rung_allowed",
        Fact::RungsConfirmed { .. } => "rungs_confirmed",
        Fact::VictimSet { victim: Some(_), .. } => "victim",
        Fact::VictimSet { victim: None, .. } => "victim_no_more",
        Fact::ChargedAtEnd { .. } => "charged_at_end",
        Fact::JobStated { .. } => "job_stated",
        Fact::JobChanged { .. } => "job_changed",
        Fact::SegmentsOpened { .. } => "segment_opened",
        Fact::Metered { .. } => "metered",
        Fact::Reported { .. } => "reported",
        Fact::AskedRest { .. } => "asked_rest",
        Fact::AnsweredRest { .. } => "answered_rest",
        Fact::GangJoined { .. } => "gang_joined",
        Fact::GangDry { .. } => "gang_dry",
        Fact::GangHeard { .. } => "gang_heard",
        Fact::GangsSaid { .. } => "gang_said",
        Fact::Refunded { .. } => "refunded",
        Fact::AccountTold { news, .. } => news.name(),
    }
}

fn of_node(fact: &Fact) -> (String, Value) {
    match fact {
        Fact::EpochOpened { epoch, boot, .. } => {
            (format!("a new spending life {epoch} began"), json!({ "epoch": epoch.to_string(), "boot": boot.to_string() }))
        }
        Fact::CardAdopted { card, .. } => (
            format!("rate card {} version {} is in force", card.name, card.version),
            json!({ "card": card.name, "version": card.version, "digest": card.digest }),
        ),
        Fact::EnforcementSet { mode, by } => (format!("enforcement is now {mode}, set by uid {}", by.0), json!({ "mode": mode, "by": by })),
        Fact::Asked { request, .. } => (format!("question {} to the authority", request.request), json!({ "request": request.request })),
        Fact::Answered { request, .. } => (format!("the authority answered question {request}"), json!({ "request": request })),
        Fact::AskedRest { .. } => ("the question's history and proofs".to_owned(), json!({})),
        Fact::AnsweredRest { generation, proofs } => (
            format!("the authority's store is of generation {generation}; proofs of {} grants came", proofs.len()),
            json!({ "generation": generation, "proofs": proofs.len() }),
        ),
        Fact::RungsConfirmed { by } => (format!("uid {} lets the next accounts be stopped", by.0), json!({ "by": by })),
        Fact::Corrected { correction, .. } => (correction.to_string(), json!({ "correction": correction })),
        _ => (String::new(), json!({})),
    }
}

fn of_account(fact: &Fact) -> (String, Value) {
    match fact {
        Fact::Armed { evidence, .. } => {
            let lasts = evidence.lasts.map_or(String::new(), |lasts| format!(", which lasts {lasts} at the greatest burn"));
            (format!("armed: {} in hand{lasts}", evidence.in_hand), json!({ "evidence": evidence }))
        }
        Fact::Disarmed { .. } => ("not near its edge any more".to_owned(), json!({})),
        Fact::EmptySet { since: Some(_), .. } => ("nothing in hand".to_owned(), json!({})),
        Fact::EmptySet { since: None, .. } => ("something in hand again".to_owned(), json!({})),
        Fact::WarnedSet { warned: Some(warned), .. } => {
            (format!("warned: {} credits are left, less than for {}", warned.left, warned.before), json!({ "warned": warned }))
        }
        Fact::RungAllowed { rung: Rung::Freeze, .. } => ("its jobs may be frozen".to_owned(), json!({ "rung": Rung::Freeze })),
        Fact::RungAllowed { rung: Rung::End, .. } => ("its jobs may be ended".to_owned(), json!({ "rung": Rung::End })),
        Fact::WarnedSet { warned: None, .. } => ("the warning is lifted".to_owned(), json!({})),
        Fact::Pushed { version, .. } => ("changed at the authority".to_owned(), json!({ "version": version })),
        Fact::AccountTold { news, .. } => (news.text(), json!({ "news": news })),
        Fact::Returned { returned, .. } => (format!("{returned} given back in this epoch"), json!({ "returned": returned })),
        _ => (String::new(), json!({})),
    }
}

fn of_job(fact: &Fact) -> (String, Value) {
    match fact {
        Fact::JobOpened(opened) => of_opening(opened),
        Fact::GapSeen { gap, .. } => (gap_text(gap), json!({ "gap": gap })),
        Fact::Stepped { event, .. } => (step_text(event), json!({ "step": event })),
        Fact::HandsActed { acted, .. } => (acted_text(acted), json!({ "acted": acted })),
        Fact::FrozenBySet { by, .. } => (
            match by {
                Some(FrozenBy::Agent) => "found frozen by the agent".to_owned(),
                Some(FrozenBy::Other) => "found frozen by somebody else".to_owned(),
                None => "found running".to_owned(),
            },
            json!({ "by": by }),
        ),
        Fact::StopReported { ending, .. } => {
            (format!("said to have ended ({}), and has tasks", ending.outcome), json!({ "ending": ending }))
        }
        Fact::JobEnded { ending, .. } => {
            let code = ending.exit_code.map_or(String::new(), |code| format!(", exit code {code}"));
            (format!("ended: {}{code}", ending.outcome), json!({ "ending": ending }))
        }
        Fact::VictimSet { victim: Some(victim), .. } => {
            ("stands still so that others of its account can go on".to_owned(), json!({ "victim": victim }))
        }
        Fact::VictimSet { victim: None, .. } => ("need not stand still for others any more".to_owned(), json!({})),
        Fact::ChargedAtEnd { costs, drawn, .. } => {
            let charge: Credits = costs.iter().copied().sum();
            (format!("charged by its outcome: {charge} in all"), json!({ "charge": charge, "drawn": drawn }))
        }
        Fact::JobStated { storage_bytes, offer, .. } => {
            ("stated more of it".to_owned(), json!({ "storage_bytes": storage_bytes, "offer": offer }))
        }
        Fact::JobChanged { terms, by, .. } => {
            let gpus: Vec<String> = terms.gpus.iter().map(|held| held.gpu.to_string()).collect();
            let detail = json!({ "gpus": gpus, "cpus": terms.cpus, "memory_bytes": terms.memory_bytes, "storage_bytes": terms.storage_bytes,
                "traits": terms.traits, "by": by });
            (format!("given something else by uid {}, in a new segment", by.0), detail)
        }
        Fact::Reported { report: Report::Counter { name, total }, .. } => {
            (format!("a hook counted {total} {name}"), json!({ "counter": name, "total": total }))
        }
        Fact::Reported { report: Report::Event { name, id }, .. } => {
            (format!("a hook reported {name} {id}"), json!({ "event": name, "id": id }))
        }
        Fact::Refunded { segments, waived, given, .. } => {
            let (reduced, refunded): (Credits, Credits) = (segments.iter().copied().sum(), given.iter().map(|(_, amount)| *amount).sum());
            let text = format!("its outcome gives back {reduced} of the charge: {refunded} were paid and come back");
            (text, json!({ "reduced": reduced, "refunded": refunded, "waived": waived }))
        }
        Fact::JobClosed { .. } => ("closed: its receipt is final".to_owned(), json!({})),
        Fact::GangJoined { gang, .. } => (format!("a part of gang {}, run {}", gang.name, gang.attempt), json!({ "gang": gang })),
        Fact::GangDry { needs, .. } => {
            (format!("its gang is told that it ran dry; it goes on with {needs} in hand"), json!({ "needs": needs }))
        }
        Fact::GangHeard { want, version, dry, .. } => {
            let text = match want {
                Want::Run => "its gang may run",
                Want::Freeze => "its gang stands still",
            };
            (format!("{text}, by the authority's word {version}"), json!({ "want": want, "version": version, "dry": dry }))
        }
        _ => (String::new(), json!({})),
    }
}

fn gang_said(word: &GangWord) -> (String, Value) {
    let GangWord { gang, says, version, .. } = word;
    let how = match says {
        Says::Runs => "it runs",
        Says::Dry => "it ran dry",
        Says::Waits => "it stands still, and cannot go on yet",
        Says::Ready => "it stands still, and could go on",
        Says::Left => "it is over",
    };
    (format!("said of gang {}, run {}: {how}", gang.name, gang.attempt), json!({ "says": says, "version": version }))
}

fn of_opening(opened: &Opened) -> (String, Value) {
    let place = match &opened.target {
        Target::Cgroups(dirs) | Target::OwnCgroups(dirs) => dirs.first().map_or("no cgroup".to_owned(), |dir| dir.path.clone()),
        Target::SlurmJob(job) => format!("Slurm job {}", job.job_id),
        Target::Processes(root) => format!("process {}", root.pid),
    };
    let gpus = if opened.gpus.is_empty() { String::new() } else { format!(", {} GPUs", opened.gpus.len()) };
    let text = format!("opened on {} for uid {} in {place}{gpus}", opened.account, opened.owner.0);
    let gpus: Vec<String> = opened.gpus.iter().map(|held| held.gpu.to_string()).collect();
    let detail = json!({ "owner_uid": opened.owner, "target": opened.target, "gpus": gpus, "cpus": opened.cpus, "memory_bytes": opened.memory_bytes,
        "time_limit_s": opened.time_limit.map(|Nanos(ns)| ns / 1_000_000_000), "card": opened.card, "charge": opened.charge });
    (text, detail)
}

/// What happens to a job whose bid is below what is asked.
#[must_use]
pub fn outbid_text(rule: OverBid, bid: Credits, ask: Credits) -> String {
    let then = match rule {
        OverBid::Cap => "it goes on at its bid",
        OverBid::Freeze => "it stands still until less is asked",
        OverBid::Stop => "it is asked to end",
    };
    format!("{ask} credits are asked by now, and {bid} were bid: {then}")
}

fn gap_text(gap: &Gap) -> String {
    format!("{} could not be read for {}: {}", gap.meter, gap.to.since(gap.from), gap.why)
}

fn step_text(step: &StepEvent) -> String {
    let left = |evidence: &Evidence| format!("{} in hand, charge {}", evidence.in_hand, evidence.charge);
    match step {
        StepEvent::Warned(evidence) => format!("warned: {}", left(evidence)),
        StepEvent::Armed(evidence) => format!("armed: {}", left(evidence)),
        StepEvent::Emptied(evidence) => format!("its account is empty: {}", left(evidence)),
        StepEvent::Exhausted(evidence) => format!("its account is exhausted, says the authority: {}", left(evidence)),
        StepEvent::Funded(evidence) => format!("its account is funded again: {}", left(evidence)),
        StepEvent::StoodAside(evidence) => format!("stands still so that others of its account can go on: {}", left(evidence)),
        StepEvent::StepsBack(evidence) => format!("need not stand aside any more: {}", left(evidence)),
        StepEvent::OverBid { rule, bid, ask } => outbid_text(*rule, *bid, *ask),
        StepEvent::WithinBid { bid } => format!("no more is asked than the {bid} credits that were bid"),
        StepEvent::FrozenTooLong(evidence) => format!("has stood still for as long as it may: {}", left(evidence)),
        StepEvent::WouldAct(act) => format!("not enforced: {act} would have been done"),
        StepEvent::WouldRefuse(code) => format!("not enforced: its start would have been refused: {code}"),
        StepEvent::Acted(acted) => acted_text(acted),
        StepEvent::FrozenByOther => "frozen by somebody else".to_owned(),
        StepEvent::Corrected(correction) => format!("not as believed; {correction}"),
        StepEvent::FoundThawed => "found running while it was to be frozen".to_owned(),
        StepEvent::GangHeld { dry: Some(node), .. } => format!("its gang stands still: the job ran dry on node {node}"),
        StepEvent::GangHeld { dry: None, .. } => "its gang stands still: another part of the job ran dry".to_owned(),
        StepEvent::GangRuns { .. } => "its gang may run again".to_owned(),
    }
}

fn acted_text(acted: &Acted) -> String {
    let took = acted.done_at.since(acted.asked_at);
    let outcome = match &acted.outcome {
        ActOutcome::Confirmed => format!("confirmed after {took}"),
        ActOutcome::Unconfirmed => format!("not confirmed within {took}"),
        ActOutcome::Gone => "there was nothing left".to_owned(),
        ActOutcome::Refused(why) => format!("not touched: {why}"),
        ActOutcome::Failed(why) => format!("failed: {why}"),
    };
    format!("{}: {outcome}", acted.act)
}

fn counted(row: &Row) -> (String, Value) {
    let text = format!("{}, {} drawn", row.phase.name(), row.drawn);
    let detail = json!({ "phase": row.phase, "cpu_ns": row.cpu_ns.to_string(), "memory_bytes": row.memory_level_bytes,
        "memory_byte_ns": row.memory_byte_ns.to_string(), "running_ns": row.running_ns.to_string(), "frozen_ns": row.frozen_ns.to_string(),
        "cost": row.cost, "drawn": row.drawn });
    (text, detail)
}

fn settled(row: &SettledRow) -> (String, Value) {
    (format!("{} drawn, {} written off", row.drawn, row.unfunded), json!({ "drawn": row.drawn, "unfunded": row.unfunded }))
}

fn detailed(row: &Detailed) -> (String, Value) {
    let peak = row.detail.memory_peak_bytes.seen().map_or("unknown".to_owned(), ToString::to_string);
    let tasks = row.detail.pids.seen().map_or("unknown".to_owned(), ToString::to_string);
    (format!("{tasks} tasks, {peak} bytes of memory at most"), json!({ "read": row.detail }))
}

/// The rows that the listener may hear of; none if there are none.
fn told_rows<'r, R: 'r>(
    rows: impl Iterator<Item = (Attempt, &'r R)>,
    listener: &Listener,
    known: &mut dyn FnMut(Attempt) -> Option<Known>,
    row: impl Fn(&R) -> (String, Value),
) -> Option<(String, Vec<Value>)> {
    let mut texts: Vec<String> = Vec::new();
    let mut details = Vec::new();
    for (attempt, found) in rows {
        let job = known(attempt);
        if !listener.hears_of_job(job.as_ref()) {
            continue;
        }
        let (text, mut detail) = row(found);
        detail["attempt"] = json!(attempt);
        let (name, account) = job.map(|job| (job.name, job.account)).unzip();
        detail["job"] = json!(name);
        detail["account"] = json!(account);
        if texts.len() < ROWS_TOLD {
            texts.push(format!("{} #{attempt} {text}", name.map_or("a job".to_owned(), |name| name.to_string())));
        }
        details.push(detail);
    }
    let more = details.len() - texts.len();
    let more = if more == 0 { String::new() } else { format!("; and {more} more") };
    (!details.is_empty()).then(|| (format!("{}{more}", texts.join("; ")), details))
}

fn listed(names: &[&str]) -> String {
    match names.len() {
        0 => "none of today's accounts".to_owned(),
        count if ROWS_TOLD < count => format!("{} and {} more", names[..ROWS_TOLD].join(", "), count - ROWS_TOLD),
        _ => names.join(", "),
    }
}

#[cfg(test)]
mod tests;
