//! One constructed picture of an agent, for the snapshots of what people and machines read.

use std::collections::BTreeMap;

use super::alarm::Alarms;
use super::handle::{Picture, Stats};
use crate::domain::act::{Act, ActOutcome, Acted};
use crate::domain::bucket::Bucket;
use crate::domain::budget::Over;
use crate::domain::correction::Corrections;
use crate::domain::detail::{Detail, Io};
use crate::domain::enforcement::Enforcement;
use crate::domain::id::{Attempt, BootId, Epoch, GpuId, GpuModel, Uid};
use crate::domain::job::{Evidence, FrozenBy, Gap, GapRule, Phase, Step, StepEvent};
use crate::domain::ledger::{
    self, Alerted, Allowance, EntryKind, EntryStatus, LedgerEntry, Lot, LotKey, PendingRefill, RefillTerms, Storage, StorageAtZero, Terms,
    Threshold,
};
use crate::domain::meter::{GpuSample, Host, Missing, Reading};
use crate::domain::money::Credits;
use crate::domain::rates::{Card, Traits, charge};
use crate::domain::receipt::{Measure, Receipt, ReceiptGpu, ReceiptSegment, ReceiptState, VERSION};
use crate::domain::time::{Mono, Nanos, Wall};
use crate::domain::usage::{HeldGpu, Meter, Usage};
use crate::domain::view::{AccountState, AccountView, CardView, JobView, Timestamp, View};
use crate::domain::wire::{AccountPolicy, Balance, Verdict};

const CARD: &str = r#"card = "campus"
version = 3
effective_from = "2026-01-01T00:00:00Z"

[[line]]
id = "gpu"
meter = "gpu_held"
price = "4.00"
unit = "gpu-hour"

[[line]]
id = "cpu"
meter = "cpu_time"
price = "0.02"
unit = "core-hour"
"#;

const HOUR_NS: u128 = 3_600_000_000_000;

fn credits(text: &str) -> Credits {
    text.parse().unwrap()
}

fn gpu() -> HeldGpu {
    held(0)
}

fn held(number: u32) -> HeldGpu {
    let gpu: GpuId = format!("GPU-5f1c3a52-0000-0000-0000-00000000000{number}").parse().unwrap();
    HeldGpu { gpu, model: GpuModel::new("NVIDIA H100 80GB HBM3") }
}

pub(crate) fn card() -> Card {
    Card::parse(CARD, "campus.toml").unwrap()
}

pub(crate) fn view() -> View {
    let card = card();
    View {
        node: "gpu-07".parse().unwrap(),
        at: "2026-03-01T12:00:00.000Z".to_owned(),
        enforcement: Enforcement::Enforce,
        card: Some(CardView {
            name: card.name.clone(),
            version: card.version,
            effective_from: "2026-01-01T00:00:00.000Z".to_owned(),
            digest: card.digest,
        }),
        card_refused: None,
        seq: 1_204,
        durable_seq: 1_203,
        authority_asked: 31,
        authority_unanswered: None,
        accounts: vec![AccountView {
            account: "lab".parse().unwrap(),
            state: AccountState::Funded,
            in_hand: credits("1.5"),
            free: credits("20"),
            spent: credits("64.2"),
            unfunded: Credits::ZERO,
            owed: Credits::ZERO,
            burn_per_hour: credits("32.1"),
            lasts_s: Some(2_411),
            verdict: Some(Verdict::Granted),
            policy: AccountPolicy::default(),
            armed: false,
            balance: Some(Balance {
                account: "lab".parse().unwrap(),
                free: credits("5"),
                paid: credits("16.5"),
                reset: Some(Wall(1_772_409_600_000)),
                refill: credits("50"),
                alerts: 2,
                committed: Credits::ZERO,
            }),
        }],
        corrections: Corrections { missed_start: 1, missed_stop: 2, drift: 0 },
        unmetered: vec!["/sys/fs/cgroup/meterd/stray".to_owned()],
        jobs: vec![job("u1000-train", 7, Phase::Frozen), job("slurm:4711", 6, Phase::Running), job("u1000-old", 5, Phase::Ended)],
    }
}

fn job(name: &str, attempt: u64, phase: Phase) -> JobView {
    JobView {
        attempt: Attempt(attempt),
        job: name.parse().unwrap(),
        account: "lab".parse().unwrap(),
        owner_uid: Uid(if name.starts_with("u1000") { 1000 } else { 1001 }),
        phase,
        frozen_by: (phase == Phase::Frozen).then_some(FrozenBy::Agent),
        opened: Timestamp(Wall(1_772_359_200_000)), // 2026-03-01T10:00:00Z
        ended: (phase == Phase::Ended).then_some(Timestamp(Wall(1_772_362_800_000))),
        cpu_ns: 36_000_000_000_000,
        memory_bytes: (phase != Phase::Ended).then_some(12 << 30),
        gpus: vec![gpu()],
        running_ms: 7_200_000,
        frozen_ms: 61_500,
        charge: credits("64.2"),
        drawn: credits("64.2"),
        unfunded: Credits::ZERO,
        missing: if phase == Phase::Running { vec![Missing::Denied] } else { Vec::new() },
        gang: None,
        outbid: None,
        waived: None,
        refunded: None,
    }
}

pub(crate) fn picture() -> Picture {
    Picture {
        view: Some(view()),
        taken_at_ns: 5_000_000_000,
        gpus: Some(Reading::Seen(vec![GpuSample {
            gpu: gpu().gpu,
            index: 0,
            model: gpu().model,
            busy_permyriad: Reading::Seen(8_750),
            memory_used_bytes: Reading::Seen(42 << 30),
            memory_total_bytes: Reading::Seen(80 << 30),
            processes: Reading::Missing(Missing::NotSupported),
        }])),
        host: Host { cpu_count: 64, memory_bytes: 512 << 30 },
        stats: Stats {
            link: None,
            tick_count: 7_322,
            tick_missed_count: 2,
            tick_ns: 1_420_500,
            tick_late_ns: 62_000,
            tick_late_max_ns: 104_000,
            interval_ns: 2_000_000_000,
            over_budget: Some(Over::Cpu),
            widened_count: 1,
            threads_cpu_ns: BTreeMap::from([("journal".to_owned(), 560_000_000), ("meterd-loop".to_owned(), 9_100_000_000)]),
            descriptors: 61,
            commit_count: 8_011,
            commit_bytes: 1_204_000,
            cpu_ns: 9_870_000_000,
            resident_bytes: 21 << 20,
            acted: BTreeMap::from([(("freeze", "confirmed"), 3), (("thaw", "confirmed"), 2)]),
            asked_count: 33,
            missing: BTreeMap::from([("permission denied".to_owned(), 4)]),
            journal_full: false,
            alarms: Alarms::default(),
            loop_scheduling: "SCHED_RR 1".to_owned(),
            hands_scheduling: "SCHED_RR 1".to_owned(),
            cgroup_layout: "unified".to_owned(),
            cgroup_needs: [("cpu_time", "cgroup2"), ("freezing", "cgroup2"), ("memory", "cgroup2"), ("io", "nothing")]
                .map(|(need, served)| (need.to_owned(), served.to_owned()))
                .into(),
            cgroup_reads: "walk".to_owned(),
        },
    }
}

/// Eight GPUs for two hours at 4 and ten core-hours at 0.02, frozen at the end.
pub(crate) fn receipt() -> Receipt {
    let card = card();
    let gpus: Vec<HeldGpu> = (0..8).map(held).collect();
    let usage = Usage {
        cpu_ns: 10 * HOUR_NS,
        memory_byte_ns: 2 * HOUR_NS * (12 << 30),
        gpu_held_ns: gpus.iter().map(|held| (held.gpu.clone(), 2 * HOUR_NS)).collect(),
        wall_ns: 2 * HOUR_NS,
        job_starts: 1,
        frozen_ns: 61_500_000_000,
        paused_ns: 1_500_000_000,
        memory_anon_byte_ns: 2 * HOUR_NS * (8 << 30),
        more: None,
    };
    let lines = charge::lines(&card, &usage, &gpus).unwrap();
    let cost: Credits = lines.iter().map(|line| line.cost).sum();
    let segment = ReceiptSegment {
        card: card.name.clone(),
        card_version: card.version,
        card_digest: card.digest,
        from: "2026-03-01T10:00:00.000Z".to_owned(),
        to: "2026-03-01T12:00:00.000Z".to_owned(),
        cpu_ns: usage.cpu_ns.to_string(),
        memory_charged_byte_ns: usage.memory_byte_ns.to_string(),
        running_ns: usage.wall_ns.to_string(),
        frozen_ns: usage.frozen_ns.to_string(),
        paused_ns: usage.paused_ns.to_string(),
        job_starts: 1,
        gpus: gpus
            .iter()
            .map(|held| ReceiptGpu { gpu: held.gpu.clone(), model: held.model.clone(), held_ns: (2 * HOUR_NS).to_string() })
            .collect(),
        lines,
        cost,
        memory_anon_byte_ns: usage.memory_anon_byte_ns.to_string(),
        more: None,
        terms: None,
    };
    Receipt {
        receipt: VERSION,
        state: ReceiptState::Provisional,
        node: "gpu-07".parse().unwrap(),
        boot: BootId([7; 16]),
        attempt: Attempt(7),
        job: "u1000-train".parse().unwrap(),
        account: "lab".parse().unwrap(),
        owner_uid: Uid(1000),
        phase: Phase::Frozen,
        opened: "2026-03-01T10:00:00.000Z".to_owned(),
        ended: None,
        outcome: None,
        exit_code: None,
        segments: vec![segment],
        charge: cost,
        drawn: cost,
        unfunded: Credits::ZERO,
        owed: Credits::ZERO,
        gaps: vec![Gap {
            meter: Meter::MemoryCharged,
            from: Mono(1_000_000_000),
            to: Mono(4_500_000_000),
            why: Missing::AgentDown,
            rule: GapRule::NotBilled,
        }],
        steps: steps(),
        notes_dropped: 0,
        basis: None,
        reported: None,
        readings: Some(detail().shown()),
        measure: Some(Measure::Cgroups),
        cpus: Some(16),
        memory_bytes: None,
        traits: Traits::new(),
        pending: Credits::ZERO,
        earned: None,
        offer: None,
        provider: None,
        storage_bytes: None,
        gang: None,
        refund: None,
    }
}

fn detail() -> Detail {
    Detail {
        memory_peak_bytes: Reading::Seen(13 << 30),
        memory_anon_bytes: Reading::Seen(8 << 30),
        io: Reading::Seen(Io { read_bytes: 5 << 30, write_bytes: 3 << 20, read_ops: 41_000, write_ops: 96 }),
        pids: Reading::Seen(17),
        pressure: Reading::Missing(Missing::NotSupported),
        oom_kills: Reading::Seen(0),
    }
}

fn steps() -> Vec<Step> {
    let zero = Wall(1_772_366_400_000); // 2026-03-01T12:00:00Z
    let evidence = |in_hand: &str, verdict| Evidence {
        cpu_counter_ns: Some(36_000_000_000_000),
        charge: credits("64.2"),
        granted: credits("65"),
        returned: credits("0.8").minus(credits(in_hand)),
        spent: credits("64.2"),
        in_hand: credits(in_hand),
        burn_max_per_s: credits("0.009"),
        lasts: Some(Nanos::from_millis(if in_hand == "0" { 0 } else { 22_000 })),
        verdict: Some((verdict, 31)),
        free: Credits::ZERO,
    };
    let step = |after_ms: u64, event| Step { wall: Wall(zero.0 + after_ms), at: Mono(after_ms * 1_000_000), event };
    vec![
        step(0, StepEvent::Warned(evidence("0.2", Verdict::Final))),
        step(20_000, StepEvent::Armed(evidence("0.2", Verdict::Final))),
        step(22_000, StepEvent::Emptied(evidence("0", Verdict::Final))),
        step(
            22_002,
            StepEvent::Acted(Acted {
                attempt: Attempt(7),
                act: Act::Freeze,
                asked_at: Mono(22_000_200_000),
                done_at: Mono(22_001_450_000),
                syscall: "write 1 to /sys/fs/cgroup/meterd/job-7/cgroup.freeze".to_owned(),
                outcome: ActOutcome::Confirmed,
            }),
        ),
    ]
}

pub(crate) fn ledger_account() -> ledger::AccountView {
    ledger::AccountView {
        account: "lab".parse().unwrap(),
        available: credits("20"),
        held: credits("1.5"),
        free: credits("5"),
        paid: credits("16.5"),
        lots: [(Bucket::Free, "5"), (Bucket::Paid, "16.5")]
            .map(|(bucket, left)| Lot { key: LotKey::plain(bucket), left: credits(left) })
            .into(),
        deposited: credits("85.7"),
        withdrawn: Credits::ZERO,
        settled: credits("64.2"),
        written_off: Credits::ZERO,
        shortfall: Credits::ZERO,
        version: 2,
        policy: AccountPolicy::default(),
        terms: Terms::default(),
        reset: None,
        verified: None,
        refill: None,
        alerted: Vec::new(),
        storage: Storage::Attached,
        revoked: Credits::ZERO,
        revoke_pending: Credits::ZERO,
        committed: Credits::ZERO,
        committed_until: None,
    }
}

/// An account for which the authority does everything that it can.
pub(crate) fn tended_account() -> ledger::AccountView {
    let text = include_str!("../../packaging/policies/per-request.toml");
    let (policy, terms) = crate::domain::request::parse_policy(text, "per-request.toml").unwrap();
    let at = Wall(1_772_366_400_000);
    let lot =
        |bucket, expires: Option<Wall>, left| Lot { key: LotKey { expires: expires.into(), ..LotKey::plain(bucket) }, left: credits(left) };
    let allowance = Some(Allowance { amount: credits("3"), day: 1 });
    let refill = Some(RefillTerms { below: credits("30"), amount: credits("500"), wait: Nanos::from_secs(600) });
    ledger::AccountView {
        lots: vec![lot(Bucket::Free, Some(at), "5"), lot(Bucket::Paid, None, "16.5")],
        withdrawn: credits("1"),
        policy,
        terms: Terms { allowance, refill, storage: StorageAtZero::Detach, ..terms },
        reset: Some(at),
        refill: Some(PendingRefill { payment: "refill/lab/2".parse().unwrap(), amount: credits("500"), asked: at }),
        alerted: vec![Alerted { threshold: Threshold::Below(credits("10")), at }],
        ..ledger_account()
    }
}

pub(crate) fn ledger_entries() -> Vec<LedgerEntry> {
    let at = Wall(1_772_366_400_000);
    let entry = |kind, amount: &str, free: &str, paid: &str, status| LedgerEntry {
        at,
        kind,
        amount: credits(amount),
        free: credits(free),
        paid: credits(paid),
        status,
    };
    let hour = at.0 / 3_600_000;
    let epoch = Epoch([9; 16]);
    vec![
        entry(EntryKind::Usage { epoch, hour }, "64.2", "5", "59.2", EntryStatus::Accumulating),
        entry(EntryKind::WriteOff { epoch, hour }, "0.000000001", "0", "0", EntryStatus::Completed),
        entry(EntryKind::Deposit { bucket: Bucket::Paid, payment: "inv-7".parse().unwrap() }, "80.7", "0", "80.7", EntryStatus::Completed),
    ]
}
