//! Where segments begin and end: what a job is given changes, a date of its card comes, a new card comes. And what is counted in them.

use super::*;
use crate::domain::detail::Io;
use crate::domain::id::{Digest, GpuId, GpuModel, LineId};
use crate::domain::meter::DeviceTotals;
use crate::domain::rates::{Trait, Traits};
use crate::domain::receipt::{Receipt, verify};
use crate::domain::terms::{Change, Report};
use crate::domain::usage::HeldGpu;

const LOTS: i128 = 1_000_000_000_000_000;

fn text(version: u64, lines: &str) -> String {
    format!("card = \"segments\"\nversion = {version}\neffective_from = \"2026-01-01T00:00:00Z\"\n{lines}")
}

fn card(version: u64, lines: &str) -> Card {
    Card::parse(&text(version, lines), "card.toml").unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
}

fn line(id: &str, more: &str) -> String {
    format!("[[line]]\nid = \"{id}\"\n{more}\n")
}

fn gpu(nth: u32) -> HeldGpu {
    HeldGpu { gpu: format!("GPU-{nth}").parse().unwrap(), model: GpuModel::new("NVIDIA H100") }
}

impl Bench {
    /// A job with these GPUs under this card, on much credit.
    fn given(lines: &str, gpus: Vec<HeldGpu>, storage_bytes: Option<u64>) -> Bench {
        let mut bench = Bench::new();
        bench.step(Event::CardArrived(Box::new(card(2, lines)), Vec::new()));
        bench.durable();
        bench.free = LOTS;
        bench.start_given(1, gpus, storage_bytes, None);
        bench.durable();
        if bench.question().is_some() {
            bench.answer();
        }
        bench.durable();
        bench.out.clear();
        bench
    }

    fn start_given(&mut self, caller: u64, gpus: Vec<HeldGpu>, storage_bytes: Option<u64>, bid: Option<Credits>) {
        let wanted = Wanted {
            name: "job".parse().unwrap(),
            account: "a".parse().unwrap(),
            owner: Uid::ROOT,
            target: Target::Cgroups(vec![CgroupDir { path: "/sys/fs/cgroup/job".to_owned(), inode: 5 }]),
            time_limit: None,
            cpus: Some(4),
            memory_bytes: Some(1 << 30),
            policy: JobPolicy::default(),
            traits: Traits::new(),
            storage_bytes,
            bid,
            gang: None,
        };
        let sample = self.sample(Attempt(u64::MAX));
        self.step(Event::StartAsked(Box::new(PendingStart { caller, wanted, gpus, sample, at: self.now, asked: None })));
    }

    fn change(&mut self, change: Change) {
        let sample = Some(self.sample(Attempt(1)));
        self.step(Event::ChangeAsked { caller: 9, name: "job".parse().unwrap(), change, by: Uid::ROOT, sample });
        self.durable();
    }

    fn report(&mut self, report: Report) -> Reply {
        self.out.clear();
        self.step(Event::Reported { caller: 9, name: "job".parse().unwrap(), report });
        self.durable();
        self.replies().last().map(|reply| (*reply).clone()).unwrap()
    }

    fn look(&mut self, ms: u64) {
        self.pass(ms);
        let sample = self.sample(Attempt(1));
        self.step(Event::Looked(vec![sample]));
        self.durable();
    }

    /// Ends the job; the receipt, verified against the cards that priced it, and after the state went through a checkpoint.
    fn receipt(&mut self) -> Receipt {
        let cards: BTreeMap<Digest, Card> = self.turn.agent().cards.clone();
        let agent = Agent::decode(&self.turn.agent().encode()).unwrap();
        assert_eq!(agent, *self.turn.agent(), "a checkpoint holds all of it");
        let gone = JobSample { populated: Reading::Seen(Populated::No), ..self.sample(Attempt(1)) };
        let ending = Ending { outcome: Outcome::Completed, exit_code: Some(0) };
        self.step(Event::StopAsked { caller: 5, name: "job".parse().unwrap(), ending, sample: Some(gone.clone()) });
        self.pass(100);
        self.step(Event::Looked(vec![JobSample { at: self.now.mono, ..gone }]));
        self.durable();
        let receipt = Receipt::of(self.job(), self.turn.agent(), self.turn.settings());
        assert!(receipt.ended.is_some(), "{receipt:#?}");
        assert_eq!(verify(&receipt, &cards), Ok(receipt.charge), "{}", receipt.to_json());
        let read: Receipt = serde_json::from_str(&receipt.to_json()).unwrap();
        assert_eq!(read, receipt);
        receipt
    }
}

fn credits(text: &str) -> Credits {
    text.parse().unwrap()
}

fn hold(gpus: &[u32]) -> Change {
    Change { gpus: Some(gpus.iter().map(|nth| gpu(*nth)).collect()), ..Change::default() }
}

fn tier(value: &str) -> Traits {
    [(Trait::Tier, value.parse().unwrap())].into()
}

/// The segments meet end to beginning, and their time is all of the job's.
fn assert_no_hole(receipt: &Receipt, whole_ms: u64) {
    for pair in receipt.segments.windows(2) {
        assert_eq!(pair[0].to, pair[1].from);
    }
    let ns = |text: &str| text.parse::<u64>().unwrap();
    let time: u64 = receipt.segments.iter().map(|segment| ns(&segment.running_ns) + ns(&segment.frozen_ns)).sum();
    assert_eq!(time, whole_ms * MS);
}

const GPU_HOUR: &str = "meter = \"gpu_held\"\nprice = \"4\"\nunit = \"gpu-hour\"";
const HOUR_MS: u64 = 3_600_000;

#[test]
fn s14_a_job_that_gives_up_gpus_goes_on_in_a_new_segment_and_pays_for_what_it_holds() {
    let mut bench = Bench::given(&line("g", GPU_HOUR), (0..8).map(gpu).collect(), None);
    bench.look(HOUR_MS);
    bench.pass(HOUR_MS);
    bench.change(hold(&[0, 1]));
    assert!(matches!(bench.replies()[..], [Reply::Changed { attempt: Attempt(1), novelty: Novelty::New }]), "{:?}", bench.replies());
    assert_eq!(bench.job().charge, credits("64"), "8 GPUs for 2 hours, to the instant of the change");
    bench.change(hold(&[0, 1]));
    assert!(matches!(bench.replies().last(), Some(Reply::Changed { novelty: Novelty::Repeated, .. })));
    bench.start_given(3, (0..8).map(gpu).collect(), None, None);
    assert!(
        matches!(bench.replies().last(), Some(Reply::Started { novelty: Novelty::Repeated, .. })),
        "its start, said again, is still known"
    );
    bench.look(HOUR_MS);
    assert_eq!(bench.job().charge, credits("72"), "and 2 for another");
    let receipt = bench.receipt();
    let held: Vec<usize> = receipt.segments.iter().map(|segment| segment.gpus.len()).collect();
    assert_eq!((held, receipt.segments[0].cost, receipt.segments[1].cost), (vec![8, 2], credits("64"), credits("8")));
    assert_no_hole(&receipt, 3 * HOUR_MS);
}

#[test]
fn s14_a_change_to_what_has_no_price_is_refused_and_changes_nothing() {
    let mut bench = Bench::given(&line("g", &format!("{GPU_HOUR}\ngpu_model = \"NVIDIA H100\"")), vec![gpu(0)], None);
    let before = bench.job().clone();
    let other = HeldGpu { model: GpuModel::new("NVIDIA B200"), ..gpu(1) };
    bench.change(Change { gpus: Some(vec![other]), ..Change::default() });
    assert!(matches!(bench.replies()[..], [Reply::Refused(refusal)] if refusal.code == "no_price"), "{:?}", bench.replies());
    assert_eq!(*bench.job(), before);
    bench.step(Event::ChangeAsked { caller: 9, name: "other".parse().unwrap(), change: hold(&[]), by: Uid::ROOT, sample: None });
    assert!(matches!(bench.replies().last(), Some(Reply::Refused(refusal)) if refusal.code == "unknown_job"));
    bench.receipt();
    bench.change(hold(&[]));
    assert!(matches!(bench.replies().last(), Some(Reply::Refused(refusal)) if refusal.code == "job_ended"), "{:?}", bench.replies());
}

#[test]
fn s14_a_job_that_moves_to_another_tier_pays_by_it_from_then_on() {
    let spot = "meter = \"wall_time\"\nprice = \"1\"\nunit = \"hour\"\nselect = { tier = \"spot\" }";
    let lines = line("spot", spot) + &line("other", "meter = \"wall_time\"\nprice = \"3\"\nunit = \"hour\"");
    let mut bench = Bench::given(&lines, Vec::new(), None);
    bench.pass(HOUR_MS);
    bench.change(Change { traits: tier("spot"), ..Change::default() });
    bench.look(2 * HOUR_MS);
    let receipt = bench.receipt();
    assert_eq!((receipt.segments[0].cost, receipt.segments[1].cost), (credits("3"), credits("2")));
    let said: Vec<&str> = receipt.segments.iter().map(|segment| segment.lines[0].line.as_str()).collect();
    assert_eq!(said, ["other", "spot"]);
    assert!(receipt.segments[0].terms.as_ref().is_some_and(|terms| !terms.traits.contains_key(&Trait::Tier)), "what it was until then");
    assert!(receipt.segments[1].terms.is_none() && receipt.traits[&Trait::Tier].as_str() == "spot", "what it is now");
    assert_no_hole(&receipt, 3 * HOUR_MS);
}

#[test]
fn s14_an_allocation_counts_for_as_long_as_it_was_given() {
    let lines = line("c", "meter = \"cpu_time\"\nprice = \"1\"\nunit = \"core-hour\"\nbasis = \"allocated\"");
    for anchor in ["", "anchor = \"job\"\n"] {
        let mut bench = Bench::given(&format!("{lines}{anchor}"), Vec::new(), None);
        bench.pass(HOUR_MS);
        bench.change(Change { cpus: Some(16), ..Change::default() });
        bench.pass(HOUR_MS);
        bench.change(Change { cpus: Some(1), ..Change::default() });
        bench.look(HOUR_MS);
        assert_eq!(bench.receipt().charge, credits("21"), "4 + 16 + 1 core-hours, {anchor}");
    }
}

#[test]
fn s14_a_change_while_the_job_stands_still_splits_its_stillness() {
    let lines = line("w", "meter = \"wall_time\"\nprice = \"1\"\nunit = \"hour\"")
        + &line("g", &format!("{GPU_HOUR}\nstate = {{ frozen = \"0.25\" }}"));
    let mut bench = Bench::given(&lines, vec![gpu(0), gpu(1)], None);
    bench.look(HOUR_MS);
    bench.frozen = Frozen::Yes;
    bench.step(Event::JournalIs(JournalState::Writable));
    bench.confirm(Attempt(1), Act::Freeze, 0, Frozen::Yes);
    bench.pass(HOUR_MS);
    bench.change(hold(&[0]));
    let receipt = bench.receipt();
    let time: Vec<(&str, &str)> =
        receipt.segments.iter().map(|segment| (segment.running_ns.as_str(), segment.frozen_ns.as_str())).collect();
    assert_eq!(time.len(), 2, "{time:?}");
    assert_no_hole(&receipt, 2 * HOUR_MS);
}

#[test]
fn a_new_card_prices_the_stillness_after_it_and_not_the_one_before() {
    let mut bench = Bench::new();
    bench.step(Event::CardArrived(Box::new(card(2, &line("w", "meter = \"wall_time\"\nprice = \"1\"\nunit = \"hour\""))), Vec::new()));
    bench.free = 1_000_000_000;
    bench.start_given(1, Vec::new(), None, None);
    bench.durable();
    bench.answer();
    bench.durable();
    bench.look(HOUR_MS);
    bench.answer();
    bench.durable();
    assert_eq!(bench.orders().last(), Some(&Act::Freeze), "its hour's credit is gone");
    bench.acted(Act::Freeze);
    bench.pass(HOUR_MS);
    let sample = bench.sample(Attempt(1));
    bench.step(Event::Looked(vec![sample]));
    assert_eq!(bench.job().segments[0].usage.frozen_ns, 0, "time that costs nothing is not written down each second");
    let dear = card(3, &line("w", "meter = \"wall_time\"\nprice = \"1\"\nunit = \"hour\"\nstate = { frozen = \"100\", paused = \"100\" }"));
    let sample = bench.sample(Attempt(1));
    bench.step(Event::CardArrived(Box::new(dear), vec![sample]));
    bench.durable();
    assert!(bench.turn.refused_card().is_none());
    let job = bench.job();
    assert_eq!(job.segments.len(), 2);
    assert_eq!(job.segments[0].to, job.segments[1].from);
    let usage = |nth: usize| (job.segments[nth].usage.wall_ns, job.segments[nth].usage.frozen_ns);
    let hour = u128::from(HOUR_MS * MS);
    assert_eq!((usage(0), usage(1)), ((hour, hour), (0, 0)), "all until then stands in the first segment");
    assert_eq!(job.charge, credits("1"));
}

#[test]
fn s7_a_running_segment_is_split_at_a_date_of_its_card_and_looked_at_just_then() {
    // The bench begins at 2027-01-15T08:00:00Z.
    let old = line("old", "meter = \"wall_time\"\nprice = \"1\"\nunit = \"hour\"\neffective_to = \"2027-01-15T10:00:00Z\"");
    let new = line("new", "meter = \"wall_time\"\nprice = \"2\"\nunit = \"hour\"\neffective_from = \"2027-01-15T10:00:00Z\"");
    let mut bench = Bench::given(&(old + &new), Vec::new(), None);
    let date = Wall(1_800_000_000_000 + 2 * HOUR_MS);
    let (at, jobs) = bench.turn.agent().dates(bench.now).remove(0);
    assert_eq!((at.since(bench.now.mono).millis(), jobs), (2 * HOUR_MS + 1, vec![Attempt(1)]), "a look is asked for at that instant");
    bench.look(2 * HOUR_MS - 1);
    assert_eq!(bench.job().segments.len(), 1, "a millisecond before");
    bench.look(1);
    assert_eq!(bench.job().segments.len(), 2);
    assert_eq!((bench.job().segments[0].to, bench.job().segments[1].from), (date, date));
    assert!(bench.turn.agent().dates(bench.now).is_empty(), "no date is ahead");
    bench.look(HOUR_MS);
    let receipt = bench.receipt();
    let costs: Vec<Credits> = receipt.segments.iter().map(|segment| segment.cost).collect();
    assert_eq!(costs, [credits("2"), credits("2")], "2 h at 1 and 1 h at 2");
    assert_no_hole(&receipt, 3 * HOUR_MS);
}

#[test]
fn s5_storage_is_prorated_by_the_month_in_which_it_was_provisioned() {
    // 2027: January has 31 days, February 28.
    let by = |month: &str| line("s", &format!("meter = \"storage\"\nprice = \"0.10\"\nunit = \"GB-month\"\nmonth = \"{month}\""));
    let days = |bench: &mut Bench, count: u64| (0..count).for_each(|_| bench.look(24 * HOUR_MS));
    for (month, charge) in [("calendar", "101.382488479"), ("days_30", "100"), ("hours_730", "98.630136986")] {
        let mut bench = Bench::given(&by(month), Vec::new(), Some(1_000_000_000_000));
        days(&mut bench, 16); // to the 31st, 8:00
        bench.look(16 * HOUR_MS); // midnight
        bench.look(8 * HOUR_MS);
        days(&mut bench, 13);
        let receipt = bench.receipt();
        assert_eq!(receipt.segments.len(), if month == "calendar" { 2 } else { 1 });
        // January: 16 d 16 h of 31; February: 13 d 8 h of 28.
        assert_eq!(receipt.charge, credits(charge), "{month}");
        assert_no_hole(&receipt, 30 * 24 * HOUR_MS);
    }
    let mut bench = Bench::given(&line("s", "meter = \"storage\"\nprice = \"1\"\nunit = \"GB-day\""), Vec::new(), Some(3_000_000_000));
    bench.look(48 * HOUR_MS);
    assert_eq!(bench.receipt().charge, credits("6"), "a line that says nothing more counts what was stated all the same");
    let mut bench = Bench::given(&by("days_30"), Vec::new(), Some(0));
    bench.pass(15 * 24 * HOUR_MS);
    bench.change(Change { storage_bytes: Some(2_000_000_000_000), ..Change::default() });
    bench.look(15 * 24 * HOUR_MS);
    assert_eq!(bench.receipt().charge, credits("100"), "none for half a month, 2 TB for the other half");
}

#[test]
fn f19_storage_that_nobody_stated_is_not_zero() {
    let mut bench = Bench::new();
    let lines = line("s", "meter = \"storage\"\nprice = \"0.10\"\nunit = \"GB-month\"\nmonth = \"days_30\"");
    bench.step(Event::CardArrived(Box::new(card(2, &lines)), Vec::new()));
    bench.start_given(1, Vec::new(), None, None);
    bench.durable();
    assert!(matches!(bench.replies()[..], [Reply::Refused(refusal)] if refusal.code == "not_stated"), "{:?}", bench.replies());
}

fn name(text: &str) -> LineId {
    text.parse().unwrap()
}

#[test]
fn a_counter_is_cumulative_and_an_event_counts_once() {
    let lines = line("t", "meter = \"counter\"\nname = \"tokens\"\nprice = \"2\"\nunit = \"count\"\nper = 1000")
        + &line("r", "meter = \"events\"\nname = \"request\"\nprice = \"0.5\"\nunit = \"event\"");
    let mut bench = Bench::given(&lines, Vec::new(), None);
    let counter = |total| Report::Counter { name: name("tokens"), total };
    let event = |id: &str| Report::Event { name: name("request"), id: name(id) };
    for (total, charge, novelty) in
        [(500, "1", Novelty::New), (500, "1", Novelty::Repeated), (400, "1", Novelty::Repeated), (501, "1.002", Novelty::New)]
    {
        assert_eq!(bench.report(counter(total)), Reply::Changed { attempt: Attempt(1), novelty }, "{total}");
        assert_eq!(bench.job().charge, credits(charge), "{total}");
    }
    for (id, charge, novelty) in [("a", "1.502", Novelty::New), ("a", "1.502", Novelty::Repeated), ("b", "2.002", Novelty::New)] {
        assert_eq!(bench.report(event(id)), Reply::Changed { attempt: Attempt(1), novelty }, "{id}");
        assert_eq!(bench.job().charge, credits(charge), "{id}");
    }
    // In a new segment both count on.
    bench.change(Change { traits: tier("spot"), ..Change::default() });
    bench.report(counter(1_000));
    bench.report(event("b"));
    let unknown = Report::Counter { name: name("words"), total: 1 };
    assert!(
        matches!(bench.report(unknown), Reply::Refused(refusal) if refusal.code == "no_price"),
        "what has no price is refused, and not 0"
    );
    let receipt = bench.receipt();
    assert_eq!(receipt.charge, credits("3"), "1,000 tokens and 2 requests");
    assert!(matches!(bench.report(counter(2_000)), Reply::Refused(refusal) if refusal.code == "job_ended"));
    assert_eq!(bench.job().charge, credits("3"));
}

fn io(bytes: u64) -> Detail {
    Detail {
        io: Reading::Seen(Io { read_bytes: bytes / 2, write_bytes: bytes - bytes / 2, read_ops: 1, write_ops: 1 }),
        ..Detail::missing(&Missing::NotSupported)
    }
}

#[test]
fn block_io_is_differenced_from_the_start_and_what_was_not_read_is_a_gap() {
    let lines = line("io", "meter = \"io_bytes\"\nprice = \"1\"\nunit = \"GB\"");
    let mut bench = Bench::new();
    bench.step(Event::CardArrived(Box::new(card(2, &lines)), Vec::new()));
    bench.free = LOTS;
    bench.detail = Some(io(5_000_000_000));
    bench.start_given(1, Vec::new(), None, None);
    bench.durable();
    bench.answer();
    bench.durable();
    bench.detail = None;
    bench.look(1_000);
    bench.detail = Some(io(7_000_000_001));
    bench.look(10_000);
    assert_eq!(bench.job().charge, credits("2.000000001"), "what was there before is not its own");
    bench.detail = Some(Detail::missing(&Missing::Denied));
    bench.look(10_000);
    bench.look(10_000);
    let gap = bench.job().gaps.iter().find(|gap| gap.meter == Meter::IoBytes).unwrap().clone();
    assert_eq!((gap.why, gap.rule, gap.to.since(gap.from)), (Missing::Denied, GapRule::CountedLater, Nanos::from_secs(20)));
    bench.detail = Some(io(8_000_000_000));
    bench.look(10_000);
    assert_eq!(bench.job().charge, credits("3"), "the next reading holds it all");
    bench.detail = Some(io(u64::MAX));
    bench.look(10_000);
    assert_eq!(bench.job().charge, credits("3"), "more than any machine can do is rejected");
    assert!(bench.job().gaps.iter().any(|gap| gap.meter == Meter::IoBytes && gap.why == Missing::Implausible));
    bench.receipt();
}

impl Bench {
    /// Looks, with these totals of GPU 0.
    fn look_at_gpu(&mut self, ms: u64, totals: DeviceTotals) {
        self.pass(ms);
        let totals = DeviceTotals { at: self.now.mono, ..totals };
        let gpus = Some(Box::new(Reading::Seen([(gpu(0).gpu, totals)].into())));
        let sample = JobSample { gpus, ..self.sample(Attempt(1)) };
        self.step(Event::Looked(vec![sample]));
        self.durable();
    }
}

fn totals(since_s: u64, busy_s: u64, gib_s: u128, energy_j: u64) -> DeviceTotals {
    DeviceTotals {
        at: Mono(0),
        since: Mono(since_s * 1_000 * MS),
        busy_ns: Reading::Seen(busy_s * 1_000 * MS),
        memory_byte_ns: Reading::Seen((gib_s << 30) * 1_000_000_000),
        energy_mj: Reading::Seen(energy_j * 1_000),
    }
}

const DEVICE: &str = "[[line]]\nid = \"held\"\nmeter = \"gpu_held\"\nprice = \"0\"\nunit = \"gpu-hour\"\n\
     [[line]]\nid = \"busy\"\nmeter = \"gpu_busy\"\nprice = \"1\"\nunit = \"gpu-second\"\n\
     [[line]]\nid = \"memory\"\nmeter = \"gpu_memory\"\nprice = \"0.001\"\nunit = \"GiB-second\"\n\
     [[line]]\nid = \"energy\"\nmeter = \"energy\"\nprice = \"0.000001\"\nunit = \"J\"\n";

#[test]
fn what_a_gpu_does_is_counted_from_the_first_look_after_the_start() {
    let mut bench = Bench::given(DEVICE, vec![gpu(0)], None);
    bench.look_at_gpu(1_000, totals(0, 700, 9_000, 5_000_000));
    assert_eq!(bench.job().charge, Credits::ZERO, "what it did for others before is not this job's");
    bench.look_at_gpu(10_000, totals(0, 705, 9_030, 5_003_000));
    assert_eq!(bench.job().charge, credits("5.033"), "5 s of 10, 30 GiB-s, 3,000 J");
    // The agent was restarted: busy time and memory begin anew, the driver's energy goes on.
    bench.look_at_gpu(10_000, totals(15, 6, 1, 5_004_000));
    assert_eq!(bench.job().charge, credits("5.034"));
    let gap = |meter| bench.job().gaps.iter().find(|gap| gap.meter == meter).map(|gap| (gap.why.clone(), gap.rule));
    assert_eq!(gap(Meter::GpuBusy), Some((Missing::AgentDown, GapRule::NotBilled)));
    assert_eq!(gap(Meter::Energy), None);
    bench.look_at_gpu(10_000, totals(15, 8, 2, 5_005_000));
    assert_eq!(bench.job().charge, credits("7.036"));
    let receipt = bench.receipt();
    let busy: Vec<u128> = receipt.segments[0].lines.iter().filter(|line| line.meter == Meter::GpuBusy).map(|line| line.quantity).collect();
    assert_eq!(busy, [7_000_000_000]);
}

#[test]
fn f16_what_no_gpu_can_do_is_a_gap_and_never_billed_and_what_is_missing_is_not_zero() {
    let mut bench = Bench::given(DEVICE, vec![gpu(0)], None);
    bench.look_at_gpu(1_000, totals(0, 0, 0, 0));
    bench.look_at_gpu(1_000, totals(0, 3, 2_000, 9_000));
    assert_eq!(bench.job().charge, Credits::ZERO);
    let gap = |bench: &Bench, meter, why: &Missing| bench.job().gaps.iter().any(|gap| gap.meter == meter && gap.why == *why);
    for meter in [Meter::GpuBusy, Meter::GpuMemory, Meter::Energy] {
        assert!(gap(&bench, meter, &Missing::Implausible), "{meter}");
    }
    let missing = DeviceTotals {
        energy_mj: Reading::Missing(Missing::NotSupported),
        busy_ns: Reading::Missing(Missing::TimedOut),
        ..totals(0, 3, 2_001, 0)
    };
    bench.look_at_gpu(1_000, missing);
    assert!(gap(&bench, Meter::Energy, &Missing::NotSupported) && gap(&bench, Meter::GpuBusy, &Missing::TimedOut));
    assert_eq!(bench.job().charge, credits("0.001"), "the memory was read");
    bench.look_at_gpu(1_000, totals(0, 4, 2_001, 9_100));
    assert_eq!(bench.job().charge, credits("1.0011"), "counters hold what was missing");
    let hangs = JobSample { gpus: Some(Box::new(Reading::Missing(Missing::TimedOut))), ..bench.sample(Attempt(1)) };
    bench.pass(5_000);
    bench.step(Event::Looked(vec![JobSample { at: bench.now.mono, ..hangs }]));
    assert!(gap(&bench, Meter::GpuMemory, &Missing::TimedOut));
    bench.receipt();
}

#[test]
fn a6_a_bid_below_the_ask_is_refused_and_one_that_meets_it_pays_the_ask() {
    let lines = line("r", "meter = \"job_starts\"\nprice = \"5\"\nunit = \"start\"\ntiming = \"atomic_at_start\"");
    for (bid, accepted) in [("4.999999999", false), ("5", true), ("50", true)] {
        let mut bench = Bench::new();
        bench.step(Event::CardArrived(Box::new(card(2, &lines)), Vec::new()));
        bench.free = LOTS;
        bench.start_given(1, Vec::new(), None, Some(credits(bid)));
        bench.durable();
        bench.answer();
        bench.durable();
        if accepted {
            assert_eq!(bench.job().charge, credits("5"), "the ask, and not the bid of {bid}");
            let receipt = bench.receipt();
            assert_eq!(receipt.offer.map(|offer| (offer.bid, offer.ask)), Some((credits(bid), credits("5"))));
        } else {
            assert!(
                matches!(bench.replies().last(), Some(Reply::Refused(refusal)) if refusal.code == "bid_below_ask"),
                "{:?}",
                bench.replies()
            );
            assert!(bench.turn.agent().jobs.is_empty());
        }
    }
}

#[test]
fn a7_the_receipt_names_the_provider_and_it_earns_by_success_alone() {
    let lines = line("r", "meter = \"job_starts\"\nprice = \"5\"\nunit = \"start\"\ntiming = \"atomic_at_start\"");
    for (outcome, earned) in [(Outcome::Completed, "5"), (Outcome::Failed, "0"), (Outcome::Preempted, "0"), (Outcome::OutOfMemory, "0")] {
        let mut bench = Bench::given(&lines, Vec::new(), None);
        let settings = Settings { provider: Some(name("island-7")), ..bench.turn.settings().clone() };
        bench.turn.set_settings(settings);
        let running = Receipt::of(bench.job(), bench.turn.agent(), bench.turn.settings());
        assert_eq!(running.earned, Some(Credits::ZERO), "nothing yet");
        let gone = JobSample { populated: Reading::Seen(Populated::No), ..bench.sample(Attempt(1)) };
        let ending = Ending { outcome, exit_code: None };
        bench.step(Event::StopAsked { caller: 5, name: "job".parse().unwrap(), ending, sample: Some(gone.clone()) });
        bench.pass(100);
        bench.step(Event::Looked(vec![JobSample { at: bench.now.mono, ..gone }]));
        bench.durable();
        let receipt = Receipt::of(bench.job(), bench.turn.agent(), bench.turn.settings());
        assert_eq!((receipt.outcome, receipt.charge), (Some(outcome), credits("5")));
        assert_eq!((receipt.provider, receipt.earned), (Some(name("island-7")), Some(credits(earned))), "{outcome}");
    }
}

#[test]
fn v5_a_job_that_runs_again_is_another_attempt_with_a_receipt_of_its_own() {
    let mut bench = Bench::given(&line("s", "meter = \"job_starts\"\nprice = \"1\"\nunit = \"start\""), Vec::new(), None);
    let first = bench.receipt();
    bench.free = LOTS;
    bench.start_given(2, Vec::new(), None, None);
    for _ in 0..2 {
        bench.durable();
        bench.answer(); // to what was given back, and to what is asked for
        bench.durable();
        bench.pass(100);
        bench.step(Event::Looked(Vec::new()));
    }
    let second = bench.turn.agent().jobs.values().next().unwrap_or_else(|| panic!("{:?}", bench.replies()));
    assert_eq!((first.attempt, second.attempt), (Attempt(1), Attempt(2)), "a requeue, or a run that is continued");
    assert_eq!((first.charge, second.charge), (credits("1"), credits("1")), "each start is paid, and nothing is merged");
    assert_eq!(second.segments.len(), 1);
}

#[test]
fn a_gpu_id_is_what_marks_are_kept_by() {
    let mut bench = Bench::given(DEVICE, vec![gpu(0), gpu(1)], None);
    bench.look_at_gpu(1_000, totals(0, 0, 0, 0));
    let marked = |bench: &Bench| bench.job().further.as_ref().map(|further| further.marks.gpus.keys().cloned().collect::<Vec<GpuId>>());
    assert_eq!(marked(&bench), Some(vec![gpu(0).gpu]));
    bench.change(hold(&[1]));
    assert_eq!(marked(&bench), Some(Vec::new()), "who gives a device up is not charged for it when it comes back");
}

/// The job stops on one host and goes on on another: each has a receipt of its own.
#[test]
fn s6_a_job_that_moves_to_another_host_is_billed_there_from_where_it_was_billed_here() {
    let lines = line("w", "meter = \"wall_time\"\nprice = \"3.6\"\nunit = \"hour\"")
        + &line("g", "meter = \"gpu_held\"\nprice = \"3.6\"\nunit = \"gpu-hour\"");
    let stop = |bench: &mut Bench, outcome| {
        let gone = JobSample { populated: Reading::Seen(Populated::No), ..bench.sample(Attempt(1)) };
        let ending = Ending { outcome, exit_code: None };
        bench.step(Event::StopAsked { caller: 5, name: "job".parse().unwrap(), ending, sample: Some(gone.clone()) });
        bench.pass(60);
        bench.step(Event::Looked(vec![JobSample { at: bench.now.mono, ..gone }]));
        bench.durable();
        for _ in 0..2 {
            bench.durable();
            if bench.question().is_some() {
                bench.answer(); // the grant is as old as the job
            }
            bench.durable();
            bench.pass(100);
            bench.step(Event::Looked(Vec::new()));
        }
        let receipt = Receipt::of(bench.job(), bench.turn.agent(), bench.turn.settings());
        assert_eq!(verify(&receipt, &bench.turn.agent().cards), Ok(receipt.charge));
        receipt
    };
    for moved_after_ms in [1, HOUR_MS - 1, HOUR_MS, HOUR_MS + 1] {
        let mut here = Bench::given(&lines, vec![gpu(0)], None);
        here.look(moved_after_ms);
        let moved = here.now.wall;
        let first = stop(&mut here, Outcome::Preempted);
        let mut there = Bench::given(&lines, vec![gpu(7)], None);
        let (node, provider) = ("there".parse().unwrap(), Some(name("other")));
        there.turn.set_settings(Settings { node, provider, ..there.turn.settings().clone() });
        there.look(3 * HOUR_MS - moved_after_ms);
        let second = stop(&mut there, Outcome::Completed);
        assert_eq!(first.ended.as_deref(), Some(crate::domain::receipt::rfc3339(moved).as_str()), "not a moment longer");
        assert_eq!(first.charge.plus(second.charge), credits("21.6"), "3 hours on two hosts, split after {moved_after_ms} ms");
        let told = |receipt: &Receipt| (receipt.node.to_string(), receipt.outcome, receipt.segments[0].gpus[0].gpu.to_string());
        assert_eq!(told(&first), ("n".to_owned(), Some(Outcome::Preempted), "GPU-0".to_owned()));
        assert_eq!(told(&second), ("there".to_owned(), Some(Outcome::Completed), "GPU-7".to_owned()));
        assert_eq!((first.earned, second.earned), (None, Some(second.charge)), "who finishes it earns");
    }
}

#[derive(Clone, Copy, Debug)]
enum Happens {
    Look,
    Change,
    Card,
    Crash,
    Pause,
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    /// At 3.60 an hour a millisecond is a whole number of nano-credits, so that no split rounds anything. Nobody is silent for so long that
    /// what happened meanwhile is not known.
    #[test]
    fn s14_ticks_segments_cards_and_crashes_never_change_what_a_job_costs(
        happens in proptest::collection::vec(
            (1..2_900_u64, proptest::sample::select(vec![Happens::Look, Happens::Look, Happens::Change, Happens::Card, Happens::Crash, Happens::Pause])),
            1..40,
        ),
    ) {
        let lines = line("w", "meter = \"wall_time\"\nprice = \"3.6\"\nunit = \"hour\"")
            + &line("g", "meter = \"gpu_held\"\nprice = \"3.6\"\nunit = \"gpu-hour\"\nselect = { tier = \"spot\" }")
            + &line("h", "meter = \"gpu_held\"\nprice = \"3.6\"\nunit = \"gpu-hour\"");
        let mut bench = Bench::given(&lines, vec![gpu(0)], None);
        let (mut whole_ms, mut version) = (0, 2);
        for (ms, what) in happens {
            whole_ms += ms;
            match what {
                Happens::Look => bench.look(ms),
                Happens::Change => {
                    bench.pass(ms);
                    let spot = bench.job().traits.get(&Trait::Tier).is_some_and(|tier| tier.as_str() == "spot");
                    bench.change(Change { traits: tier(if spot { "other" } else { "spot" }), cpus: Some(1), ..Change::default() });
                }
                Happens::Card => {
                    bench.pass(ms);
                    version += 1;
                    let sample = bench.sample(Attempt(1));
                    bench.step(Event::CardArrived(Box::new(card(version, &lines)), vec![sample]));
                    bench.durable();
                }
                Happens::Crash => {
                    bench.pass(ms);
                    let agent = Agent::decode(&bench.turn.agent().encode()).unwrap();
                    bench.wake(agent, &[]);
                    bench.look(0);
                }
                Happens::Pause => {
                    bench.frozen = if bench.frozen == Frozen::Yes { Frozen::No } else { Frozen::Yes };
                    bench.look(ms);
                }
            }
        }
        bench.frozen = Frozen::No;
        bench.look(0);
        let job = bench.job().clone();
        let sum: u128 = job.segments.iter().map(|segment| segment.usage.wall_ns).sum();
        proptest::prop_assert_eq!(sum, u128::from(whole_ms * MS), "the segments' time is the job's");
        proptest::prop_assert_eq!(job.charge, Credits::from_nano(i128::from(whole_ms) * 2_000));
        for pair in job.segments.windows(2) {
            proptest::prop_assert_eq!(pair[0].to, pair[1].from);
        }
        bench.receipt();
    }
}
