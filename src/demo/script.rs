//! The play: each step is done, checked, and told with what was measured.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;

use super::Stop;
use super::kernel::Place;
use super::screen::{millis, seconds};
use super::stage::{AccountDocument, CPU_NS_PER_NANO_CREDIT, JobPlan, Look, Shown, Stage, Tables};
use crate::ctl::why;
use crate::domain::act::{Act, ActOutcome, Acted};
use crate::domain::id::Digest;
use crate::domain::job::{FrozenBy, Phase, Step, StepEvent};
use crate::domain::meter::Frozen;
use crate::domain::money::Credits;
use crate::domain::rates::Card;
use crate::domain::receipt::{Receipt, ReceiptState, verify};
use crate::domain::usage::Meter;
use crate::node::journal;

const ALICE: &str = "alice";
const BOB: &str = "bob";
/// Lasts for a quarter of an hour.
const ALICE_PAYS: &str = "25";
/// Lasts for about eight seconds.
const BOB_PAYS: &str = "0.45";
/// Lasts for far longer than the rest of the demo.
const BOB_TOPS_UP: &str = "5";
/// How long before its end an account's owner is warned.
const WARN_BEFORE_S: u64 = 4;

/// Frozen is frozen: for this long, at least, nothing may grow.
const STILL_FOR: Duration = Duration::from_secs(1);
/// How long all jobs go on after the thaw.
const GO_ON_FOR: Duration = Duration::from_secs(3);

const JOBS: [JobPlan; 3] = [
    JobPlan { name: "alice-sim", account: ALICE, cpu_percent: 30, memory_mib: 16 },
    JobPlan { name: "bob-train", account: BOB, cpu_percent: 30, memory_mib: 16 },
    JobPlan { name: "bob-index", account: BOB, cpu_percent: 20, memory_mib: 192 },
];

/// Bob's jobs.
const BOBS: [&str; 2] = ["bob-train", "bob-index"];

/// Plays it all. The processes that run at the end, of whichever kind, are ended by the caller.
pub(super) fn play(stage: &mut Stage) -> Result<(), Stop> {
    title(stage);
    start_agent(stage)?;
    open_accounts(stage)?;
    start_jobs(stage)?;
    run_dry(stage)?;
    see_it_in_the_kernel(stage)?;
    compare_with_the_kernel(stage)?;
    top_up(stage)?;
    end_jobs(stage)?;
    let receipts = show_receipts(stage)?;
    explain(stage, &receipts)?;
    verify_offline(stage, &receipts)?;
    balance(stage, &receipts)?;
    verify_journal(stage)
}

fn title(stage: &mut Stage) {
    let (folder, mode) = (stage.folder().display().to_string(), stage.mode.clone());
    let screen = &mut stage.screen;
    let title = screen.ink(super::Ink::Bold, "meterd demo: two accounts, three jobs, and credit that runs out");
    screen.line(&title);
    screen.line(&format!("    jobs    {mode}"));
    screen.line(&format!("    folder  {folder}"));
    screen.line("    prices  0.10 credits per core-second, 0.05 per GiB-second of memory: high, so that seconds show");
}

fn start_agent(stage: &mut Stage) -> Result<(), Stop> {
    const STEP: &str = "the agent starts";
    stage.screen.step("The agent starts, its authority embedded");
    let began = Instant::now();
    let pid = stage.start_agent().map_err(|error| Stop::failed(STEP, "a process can be started", error))?;
    stage.until(STEP, "the agent is ready", Tables::Quiet, |stage| {
        Ok(match stage.read::<serde_json::Value>("/readyz") {
            Ok(_) => Look::Done(()),
            Err(error) => Look::NotYet(error.to_string()),
        })
    })?;
    stage.screen.ok(&format!("process {pid} is ready after {} ms", began.elapsed().as_millis()));
    Ok(())
}

fn open_accounts(stage: &mut Stage) -> Result<(), Stop> {
    const STEP: &str = "accounts";
    stage.screen.step("Two prepaid accounts");
    for (account, amount) in [(ALICE, ALICE_PAYS), (BOB, BOB_PAYS)] {
        let create = json!({ "account": account, "on_exhaustion": "freeze", "warn_before_s": WARN_BEFORE_S });
        let created = stage.post("/v1/accounts", &create);
        created.map_err(|error| Stop::failed(STEP, format!("account {account} is opened"), error))?;
        pay(stage, STEP, account, amount, "first")?;
        stage.screen.ok(&format!("{account} pays {amount} credits"));
    }
    Ok(())
}

fn pay(stage: &Stage, step: &'static str, account: &str, amount: &str, payment: &str) -> Result<(), Stop> {
    let body = json!({ "amount": amount, "bucket": "paid", "payment": format!("{account}-{payment}") });
    let paid = stage.post(&format!("/v1/accounts/{account}/topup"), &body);
    paid.map_err(|error| Stop::failed(step, format!("{amount} credits are paid into {account}"), error))
}

fn start_jobs(stage: &mut Stage) -> Result<(), Stop> {
    const STEP: &str = "jobs start";
    stage.screen.step("Three jobs start, the way of meterctl run");
    for (index, plan) in JOBS.into_iter().enumerate() {
        stage.start_job(plan).map_err(|error| Stop::failed(STEP, "a process can be started", error))?;
        let what = format!("job {} runs", plan.name);
        stage.until(STEP, &what, Tables::Quiet, |stage| stage.find_process(index))?;
        let place = stage.jobs[index].process.as_ref().map_or_else(String::new, |process| match &process.place {
            Place::Cgroup(dir) => format!("process {}, cgroup {}", process.pid, dir.file_name().unwrap_or_default().to_string_lossy()),
            Place::Process(pid) => format!("process {pid}"),
        });
        let JobPlan { name, account, cpu_percent, memory_mib } = plan;
        stage.screen.ok(&format!("{name} for {account}: {cpu_percent} % of a CPU, {memory_mib} MiB; {place}"));
    }
    stage.let_jobs_go()
}

fn run_dry(stage: &mut Stage) -> Result<(), Stop> {
    const STEP: &str = "bob runs dry";
    stage.screen.step("All run, until bob has nothing left: he is warned, then his jobs are frozen");
    stage.until(STEP, "both of bob's jobs are frozen by the agent", Tables::Shown, |stage| {
        let shown = shown(stage, STEP)?;
        let of_bob = || shown.jobs.iter().filter(|job| job.account.as_str() == BOB);
        let frozen = of_bob().filter(|job| job.phase == Phase::Frozen && job.frozen_by == Some(FrozenBy::Agent)).count();
        let seen = || of_bob().map(|job| format!("{} is {}", job.job, job.phase.name())).collect::<Vec<_>>().join(", ");
        Ok(if frozen == BOBS.len() { Look::Done(()) } else { Look::NotYet(seen()) })
    })?;
    stage.table()?;
    for name in BOBS {
        let receipt = receipt(stage, STEP, name)?;
        let warned = step_at(&receipt, |event| matches!(event, StepEvent::Warned(_)));
        let emptied = step_at(&receipt, |event| matches!(event, StepEvent::Emptied(_)));
        let (Some(warned), Some(emptied), Some(freeze)) = (warned, emptied, acted(&receipt, Act::Freeze)) else {
            let steps: Vec<&Step> = receipt.steps.iter().collect();
            return Err(Stop::failed(STEP, format!("{name} was warned, emptied, and its freeze confirmed"), format!("{steps:?}")));
        };
        if emptied.at < warned.at {
            return Err(Stop::failed(STEP, "the warning comes before the end", format!("{warned:?} and {emptied:?}")));
        }
        let ahead = emptied.at.since(warned.at);
        let (took, hands) = (freeze.done_at.since(emptied.at), freeze.done_at.since(freeze.asked_at));
        stage.screen.ok(&format!(
            "{name}: warned {} s ahead; decision to last task frozen {}, {} of it the freeze itself",
            seconds(u128::from(ahead.0)),
            millis(took.0),
            millis(hands.0)
        ));
    }
    Ok(())
}

/// Not the agent's word: the kernel's. Bob's jobs stand still and use nothing, alice's goes on.
fn see_it_in_the_kernel(stage: &mut Stage) -> Result<(), Stop> {
    const STEP: &str = "frozen, as the kernel says";
    stage.screen.step("The kernel says so too: bob's jobs stand still, alice's runs on");
    let before = look_at_kernel(stage, STEP)?;
    let began = Instant::now();
    stage.pause(STILL_FOR, Tables::Quiet)?;
    let after = wait_for_growth(stage, STEP, &before, &[JOBS[0].name])?;
    let length = seconds(began.elapsed().as_nanos());
    for plan in JOBS {
        let (before, after) = (&before[plan.name], &after[plan.name]);
        let grown = after.cpu_ns.saturating_sub(before.cpu_ns);
        let wanted = if plan.account == BOB { Frozen::Yes } else { Frozen::No };
        let holds = [before, after].iter().all(|seen| seen.frozen == wanted) && (grown == 0) == (wanted == Frozen::Yes);
        let text = format!(
            "{}: frozen {} in {}; {} grew by {}",
            plan.name,
            number(after.frozen),
            before.frozen_source,
            before.cpu_source,
            millis(grown)
        );
        if !holds {
            let expected = format!(
                "{} with frozen {} and CPU time that {}",
                plan.name,
                number(wanted),
                if wanted == Frozen::Yes { "stands" } else { "grows" }
            );
            return Err(Stop::failed(STEP, expected, text));
        }
        stage.screen.ok(&format!("{text} in {length} s"));
    }
    Ok(())
}

const fn number(frozen: Frozen) -> u8 {
    match frozen {
        Frozen::Yes => 1,
        Frozen::No => 0,
    }
}

/// What the kernel shows of a job.
struct Seen {
    cpu_ns: u64,
    frozen: Frozen,
    cpu_source: &'static str,
    frozen_source: &'static str,
}

/// By the jobs' names.
type Kernel = BTreeMap<&'static str, Seen>;

fn look_at_kernel(stage: &Stage, step: &'static str) -> Result<Kernel, Stop> {
    let mut seen = BTreeMap::new();
    for job in &stage.jobs {
        let Some(process) = &job.process else { continue };
        let place = &process.place;
        let unread = |error| Stop::failed(step, format!("the kernel's figures of {} can be read", job.plan.name), error);
        let (cpu_ns, frozen) = (place.cpu_ns().map_err(unread)?, place.frozen().map_err(unread)?);
        seen.insert(job.plan.name, Seen { cpu_ns, frozen, cpu_source: place.cpu_source(), frozen_source: place.frozen_source() });
    }
    Ok(seen)
}

/// Looks at the kernel until these jobs have used CPU time since `before`: on a busy machine that takes a while.
fn wait_for_growth(stage: &mut Stage, step: &'static str, before: &Kernel, names: &[&'static str]) -> Result<Kernel, Stop> {
    stage.until(step, &format!("the CPU time of {} grows", names.join(", ")), Tables::Quiet, |stage| {
        let after = look_at_kernel(stage, step)?;
        let still: Vec<&str> = names.iter().copied().filter(|name| after[name].cpu_ns <= before[name].cpu_ns).collect();
        Ok(if still.is_empty() { Look::Done(after) } else { Look::NotYet(format!("not that of {}", still.join(", "))) })
    })
}

/// While a job stands still its charge for CPU time is the price of the kernel's own counter, to the nano-credit.
fn compare_with_the_kernel(stage: &mut Stage) -> Result<(), Stop> {
    const STEP: &str = "charge against the kernel's counter";
    stage.screen.step("The charge for CPU time is the price of the kernel's counter");
    for name in BOBS {
        let text = stage.until(STEP, &format!("{name} is charged for what the kernel has counted"), Tables::Quiet, |stage| {
            let (used, charged) = cpu_line(&receipt(stage, STEP, name)?);
            let Some(process) = stage.job(name).and_then(|job| job.process.as_ref()) else {
                return Err(Stop::failed(STEP, format!("job {name} has a process"), "none"));
            };
            let counter = process.place.cpu_ns().map_err(|error| Stop::failed(STEP, "the counter can be read", error))?;
            let price = Credits::from_nano(i128::from(used / CPU_NS_PER_NANO_CREDIT));
            // A process has used CPU time before it became a job, the one that stands above it belongs to the job too, and /proc counts in
            // ticks; a job's cgroup is new and exact.
            let (metered, how) = match &process.place {
                Place::Cgroup(_) => (used == counter, String::new()),
                Place::Process(_) => {
                    let tick = 1_000_000_000 / procfs::ticks_per_second().max(1);
                    let least = counter.saturating_sub(process.used_before_ns.saturating_add(tick));
                    let above = process.place.above_ns().map_err(|error| Stop::failed(STEP, "the counter can be read", error))?;
                    let how = format!(
                        ", of which up to {} before it was a job, and the process above it {}",
                        millis(process.used_before_ns),
                        millis(above)
                    );
                    ((least..=counter.saturating_add(above)).contains(&used), how)
                }
            };
            let text = format!(
                "{name}: {} has {counter} ns{how}; metered {used} ns x 0.10 credits per 10^9 ns = {price}, charged {charged}",
                process.place.cpu_source()
            );
            Ok(if metered && price == charged { Look::Done(text) } else { Look::NotYet(text) })
        })?;
        stage.screen.ok(&text);
    }
    Ok(())
}

/// CPU time metered and charged on a receipt.
fn cpu_line(receipt: &Receipt) -> (u64, Credits) {
    let lines = || receipt.segments.iter().flat_map(|segment| &segment.lines).filter(|line| line.meter == Meter::CpuTime);
    let used = lines().map(|line| line.quantity).sum::<u128>();
    (u64::try_from(used).unwrap_or(u64::MAX), lines().map(|line| line.cost).sum())
}

fn top_up(stage: &mut Stage) -> Result<(), Stop> {
    const STEP: &str = "top-up and thaw";
    stage.screen.step(&format!("Bob pays {BOB_TOPS_UP} more: his jobs go on where they stood"));
    let paid_at = Instant::now();
    pay(stage, STEP, BOB, BOB_TOPS_UP, "second")?;
    stage.until(STEP, "the kernel shows both of bob's jobs thawed", Tables::Quiet, |stage| {
        let seen = look_at_kernel(stage, STEP)?;
        let frozen: Vec<&str> = BOBS.into_iter().filter(|name| seen[name].frozen == Frozen::Yes).collect();
        Ok(if frozen.is_empty() { Look::Done(()) } else { Look::NotYet(format!("{} frozen", frozen.join(" and "))) })
    })?;
    let took = paid_at.elapsed();
    stage.until(STEP, "the agent shows both of bob's jobs running", Tables::Quiet, |stage| {
        let shown = shown(stage, STEP)?;
        let frozen = shown.jobs.iter().filter(|job| job.phase == Phase::Frozen).count();
        Ok(if frozen == 0 { Look::Done(()) } else { Look::NotYet(format!("{frozen} frozen")) })
    })?;
    let before = look_at_kernel(stage, STEP)?;
    let began = Instant::now();
    stage.pause(GO_ON_FOR, Tables::Shown)?;
    let after = wait_for_growth(stage, STEP, &before, &JOBS.map(|plan| plan.name))?;
    let length = seconds(began.elapsed().as_nanos());
    for plan in JOBS {
        let grown = after[plan.name].cpu_ns.saturating_sub(before[plan.name].cpu_ns);
        let text = format!("{}: {} grew by {} in {length} s", plan.name, after[plan.name].cpu_source, millis(grown));
        stage.screen.ok(&text);
    }
    for name in BOBS {
        let thawed = acted(&receipt(stage, STEP, name)?, Act::Thaw).cloned();
        if thawed.is_none() {
            return Err(Stop::failed(STEP, format!("the receipt of {name} tells of a confirmed thaw"), "none there"));
        }
    }
    stage.screen.ok(&format!("the kernel showed both of bob's jobs thawed {} ms after the payment was made", took.as_millis()));
    Ok(())
}

fn end_jobs(stage: &mut Stage) -> Result<(), Stop> {
    const STEP: &str = "jobs end";
    stage.screen.step("The jobs are asked to end (SIGTERM)");
    stage.ask_jobs_to_end();
    for (index, plan) in JOBS.into_iter().enumerate() {
        let status = stage.until(STEP, &format!("{} ends", plan.name), Tables::Quiet, |stage| {
            let ended = stage.ended(index).map_err(|error| Stop::failed(STEP, "jobs can be waited for", error))?;
            Ok(ended.map_or_else(|| Look::NotYet(format!("{} runs", plan.name)), Look::Done))
        })?;
        if !status.success() {
            return Err(Stop::failed(STEP, format!("{} ends with exit code 0", plan.name), status));
        }
        stage.screen.ok(&format!("{}: exit code 0", plan.name));
    }
    Ok(())
}

fn show_receipts(stage: &mut Stage) -> Result<Vec<Receipt>, Stop> {
    const STEP: &str = "receipts";
    stage.screen.step("Receipts");
    let mut receipts = Vec::new();
    for plan in JOBS {
        let receipt = stage.until(STEP, &format!("the receipt of {} is final", plan.name), Tables::Quiet, |stage| {
            let receipt = receipt(stage, STEP, plan.name)?;
            Ok(match receipt.state {
                ReceiptState::Final => Look::Done(receipt),
                ReceiptState::Provisional => Look::NotYet(format!("it is {}, {} owed", receipt.phase.name(), receipt.owed)),
            })
        })?;
        let path = stage.folder().join(format!("receipts/{}.json", plan.name));
        std::fs::write(&path, receipt.to_json())
            .map_err(|error| Stop::failed(STEP, format!("{} can be written", path.display()), error))?;
        print_receipt(stage, &receipt);
        receipts.push(receipt);
    }
    Ok(receipts)
}

fn print_receipt(stage: &mut Stage, receipt: &Receipt) {
    let sum = |of: fn(&crate::domain::receipt::ReceiptSegment) -> &str| {
        receipt.segments.iter().filter_map(|segment| of(segment).parse::<u128>().ok()).sum::<u128>()
    };
    let exit = receipt.exit_code.map_or_else(String::new, |code| format!(", exit code {code}"));
    let outcome = receipt.outcome.map_or("?", |outcome| outcome.name());
    let (running, frozen) = (sum(|segment| &segment.running_ns), sum(|segment| &segment.frozen_ns));
    let (job, account) = (&receipt.job, &receipt.account);
    stage.screen.line(&format!("    {job} for {account}: {outcome}{exit}; ran {} s, stood frozen {} s", seconds(running), seconds(frozen)));
    for line in receipt.segments.iter().flat_map(|segment| &segment.lines) {
        let unit = if line.meter == Meter::CpuTime { "ns" } else { "byte-ns" };
        stage.screen.line(&format!(
            "        {:<7} {:>24} {unit:<8} at {} per {:<12} {:>14}",
            line.line,
            line.quantity,
            line.price,
            line.unit,
            line.cost.to_string()
        ));
    }
    stage.screen.line(&format!("        charge {} = drawn {} + written off {}", receipt.charge, receipt.drawn, receipt.unfunded));
}

fn explain(stage: &mut Stage, receipts: &[Receipt]) -> Result<(), Stop> {
    const STEP: &str = "why";
    stage.screen.step("Why was bob-train frozen? (meterctl why)");
    let receipt = receipts.iter().find(|receipt| receipt.job.as_str() == BOBS[0]);
    let text = receipt.map(why::text).unwrap_or_default();
    let syscall = receipt.and_then(|receipt| acted(receipt, Act::Freeze)).map(|freeze| freeze.syscall.as_str());
    if !syscall.is_some_and(|syscall| text.contains(syscall)) {
        return Err(Stop::failed(STEP, "an explanation down to the freeze's system call", text));
    }
    text.lines().for_each(|line| stage.screen.line(&format!("    {line}")));
    Ok(())
}

/// From the receipts and the card's text alone: no agent, no journal.
fn verify_offline(stage: &mut Stage, receipts: &[Receipt]) -> Result<(), Stop> {
    const STEP: &str = "offline verification";
    stage.screen.step("Every receipt is computed again from its file and the rate card's file alone");
    let path = stage.card_path();
    let text = std::fs::read_to_string(&path).map_err(|error| Stop::failed(STEP, "the rate card can be read", error))?;
    let card = Card::parse(&text, "ratecard.toml")
        .map_err(|mistakes| Stop::failed(STEP, "a rate card without mistakes", format!("{mistakes:?}")))?;
    let cards: BTreeMap<Digest, Card> = BTreeMap::from([(card.digest, card)]);
    for receipt in receipts {
        let path = stage.folder().join(format!("receipts/{}.json", receipt.job));
        let read = std::fs::read_to_string(&path).map_err(|error| error.to_string());
        let read = read.and_then(|text| serde_json::from_str::<Receipt>(&text).map_err(|error| error.to_string()));
        let read = read.map_err(|error| Stop::failed(STEP, format!("{} can be read", path.display()), error))?;
        let computed = verify(&read, &cards).map_err(|found| {
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            Stop::failed(STEP, format!("the receipt of {} agrees with the card", receipt.job), found.join("; "))
        })?;
        stage.screen.ok(&format!("{}: {computed}, to the nano-credit", receipt.job));
    }
    Ok(())
}

/// What was paid in is what was charged and what is left.
fn balance(stage: &mut Stage, receipts: &[Receipt]) -> Result<(), Stop> {
    const STEP: &str = "ledger";
    stage.screen.step("The authority's ledger: paid in = charged + left, to the last nano-credit");
    for account in [ALICE, BOB] {
        let drawn: Credits = receipts.iter().filter(|receipt| receipt.account.as_str() == account).map(|receipt| receipt.drawn).sum();
        let expected = format!("{account} is charged {drawn}, what its receipts say, and no node holds anything");
        let view = stage.until(STEP, &expected, Tables::Quiet, |stage| {
            let document: Result<AccountDocument, _> = stage.read(&format!("/v1/accounts/{account}"));
            let view = document.map_err(|error| Stop::failed(STEP, "the agent answers", error))?.authority;
            let settled = view.settled == drawn && view.held.is_zero();
            Ok(if settled { Look::Done(view) } else { Look::NotYet(format!("charged {}, held {}", view.settled, view.held)) })
        })?;
        let left = view.free.plus(view.paid);
        let text =
            format!("{account}: {} paid in = {} charged + {left} left; written off {}", view.deposited, view.settled, view.written_off);
        if view.deposited != view.settled.plus(left) {
            return Err(Stop::failed(STEP, "paid in = charged + left", text));
        }
        stage.screen.ok(&text);
    }
    Ok(())
}

fn verify_journal(stage: &mut Stage) -> Result<(), Stop> {
    const STEP: &str = "journal";
    stage.screen.step("The agent ends; its journal is checked link by link");
    let ended = stage.end_agent().map_err(|seen| Stop::failed(STEP, "the agent ends", seen))?;
    if !ended.success() {
        return Err(Stop::failed(STEP, "the agent ends with exit code 0", ended));
    }
    let verified = journal::verify(&stage.state_dir()).map_err(|error| Stop::failed(STEP, "an undamaged journal", error))?;
    let link = verified.head.link.to_string();
    stage.screen.ok(&format!("{} facts in one chain, the last link {}…", verified.rows, &link[..link.len().min(16)]));
    Ok(())
}

fn shown(stage: &Stage, step: &'static str) -> Result<Shown, Stop> {
    stage.shown().map_err(|error| Stop::failed(step, "the agent answers", error))
}

/// A job's receipt as it now stands.
fn receipt(stage: &Stage, step: &'static str, job: &str) -> Result<Receipt, Stop> {
    let read = stage.read(&format!("/v1/jobs/{job}/receipt"));
    read.map_err(|error| Stop::failed(step, format!("the agent gives the receipt of {job}"), error))
}

fn step_at(receipt: &Receipt, is: impl Fn(&StepEvent) -> bool) -> Option<&Step> {
    receipt.steps.iter().find(|step| is(&step.event))
}

/// The first such act that the kernel confirmed.
fn acted(receipt: &Receipt, act: Act) -> Option<&Acted> {
    receipt.steps.iter().find_map(|step| match &step.event {
        StepEvent::Acted(acted) if acted.act == act && acted.outcome == ActOutcome::Confirmed => Some(acted),
        _ => None,
    })
}
