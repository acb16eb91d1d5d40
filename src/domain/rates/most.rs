//! The most that a machine of a known size can cost under a card: the bound of what it may be granted.

use num_bigint::BigUint;

use super::charge::{GPU_MEMORY_BYTES_MAX, GPU_POWER_MW_MAX};
use super::{Basis, Card, Factor, GpuSelector, Line, Rules};
use crate::domain::id::GpuModel;
use crate::domain::ledger::AMOUNT_MAX;
use crate::domain::money::{Credits, Decimal, NANO};
use crate::domain::time::{Nanos, Wall};
use crate::domain::usage::Meter;

/// No more jobs run at once on a machine, for lines that price each job by time.
const JOBS_MAX: u64 = 4_096;
/// No more jobs start within the time of a grant.
const STARTS_MAX: u64 = 1_024;
/// No machine reads and writes faster, in bytes a second.
const IO_BYTES_PER_S_MAX: u64 = 100_000_000_000;

/// What a machine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// CPUs that the kernel counts.
    pub cpus: u32,
    /// Memory.
    pub memory_bytes: u64,
    /// Storage that jobs may be given.
    pub storage_bytes: u64,
    /// GPUs.
    pub gpus: u32,
    /// Their model; none if it is not known: then every line may price them.
    pub gpu_model: Option<GpuModel>,
}

/// What jobs on the machine can cost in that time, if they use all of it at the dearest prices of the card; rounded up. What hooks count is not in
/// it: nobody can foresee that. Of lines for GPUs the dearest of each meter counts, of others all.
#[must_use]
pub fn most(card: &Card, machine: &Capacity, length: Nanos) -> Credits {
    let mut sum: Credits = card.lines.iter().filter(|line| !line.meter.is_of_gpus()).map(|line| line_most(line, machine, length)).sum();
    for meter in Meter::OF_GPUS {
        let lines = card.lines.iter().filter(|line| line.meter == meter && fits(line, machine));
        sum = sum.plus(lines.map(|line| line_most(line, machine, length)).max().unwrap_or(Credits::ZERO));
    }
    sum.min(AMOUNT_MAX)
}

fn fits(line: &Line, machine: &Capacity) -> bool {
    let Some(model) = &machine.gpu_model else { return true };
    match &line.gpu_model {
        GpuSelector::Any => true,
        GpuSelector::Prefix(prefix) => model.as_str().starts_with(prefix.as_str()),
        GpuSelector::Exact(exact) => exact == model,
    }
}

fn line_most(line: &Line, machine: &Capacity, length: Nanos) -> Credits {
    let rules = line.rules.as_deref();
    let instances = rules.is_some_and(|rules| rules.basis == Basis::Instance);
    let each_ns = |count: u64| BigUint::from(count) * length.0;
    let per_second = |count: u64| each_ns(count) / 1_000_000_000_u64;
    let gpus = u64::from(machine.gpus);
    let (quantity, parts) = match line.meter {
        _ if instances => (each_ns(JOBS_MAX), JOBS_MAX),
        Meter::CpuTime => (each_ns(machine.cpus.into()), machine.cpus.into()),
        Meter::MemoryCharged | Meter::MemoryAnon => (each_ns(machine.memory_bytes), JOBS_MAX),
        Meter::Storage => (each_ns(machine.storage_bytes), JOBS_MAX),
        Meter::WallTime => (each_ns(JOBS_MAX), JOBS_MAX),
        Meter::GpuHeld | Meter::GpuBusy => (each_ns(gpus), gpus),
        Meter::GpuMemory => (each_ns(gpus * GPU_MEMORY_BYTES_MAX), gpus),
        Meter::Energy => (per_second(gpus * GPU_POWER_MW_MAX), gpus),
        Meter::JobStarts => (BigUint::from(STARTS_MAX), STARTS_MAX),
        Meter::IoBytes => (per_second(IO_BYTES_PER_S_MAX), JOBS_MAX),
        Meter::Counter | Meter::Events => (BigUint::ZERO, 0),
    };
    let Some(rules) = rules else { return cost(line, &quantity, &[]) };
    // A step is paid before it is used, by each part at once.
    let quantity = quantity + BigUint::from(rules.increment.max(rules.minimum)) * parts;
    let fees = Credits::from_nano(rules.connect_fee.nano().saturating_mul(i128::from(parts)));
    scaled(cost(line, &quantity, &rules.tiers.iter().map(|tier| tier.price).collect::<Vec<_>>()).plus(fees), rules)
}

/// As the dearest state and outcome count.
fn scaled(credits: Credits, rules: &Rules) -> Credits {
    let whole = Factor::SCALE;
    let state = rules.state.running.0.max(rules.state.paused.0).max(whole);
    let outcome = rules.outcome.values().map(|factor| factor.0).fold(whole, u64::max);
    let scale = |nano: BigUint, factor: u64| div_ceil(nano * factor, &BigUint::from(whole));
    let nano = BigUint::from(credits.or_zero().nano().unsigned_abs());
    to_credits(&scale(scale(nano, state), outcome))
}

fn cost(line: &Line, quantity: &BigUint, tiers: &[Decimal]) -> Credits {
    let price = |price: &Decimal| {
        let mantissa = BigUint::from(u128::try_from(price.mantissa).unwrap_or(0));
        let divisor = BigUint::from(10_u32).pow(u32::from(price.scale)) * line.base(Wall(0)).max(1) * line.per.max(1);
        to_credits(&div_ceil(quantity * mantissa * NANO.unsigned_abs(), &divisor))
    };
    tiers.iter().chain([&line.price]).map(price).max().unwrap_or(Credits::ZERO)
}

fn to_credits(nano: &BigUint) -> Credits {
    i128::try_from(nano.clone()).map_or(AMOUNT_MAX, Credits::from_nano).min(AMOUNT_MAX)
}

fn div_ceil(number: BigUint, divisor: &BigUint) -> BigUint {
    (number + divisor - 1_u32) / divisor
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(lines: &str) -> Card {
        Card::parse(&format!("card = \"c\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n{lines}"), "c.toml").unwrap()
    }

    fn machine() -> Capacity {
        Capacity { cpus: 8, memory_bytes: 64 << 30, storage_bytes: 0, gpus: 2, gpu_model: None }
    }

    fn credits(text: &str) -> Credits {
        text.parse().unwrap()
    }

    const HOUR: Nanos = Nanos::from_secs(3_600);
    const CPU: &str = "[[line]]\nid = \"cpu\"\nmeter = \"cpu_time\"\nprice = \"0.5\"\nunit = \"core-hour\"\n";

    #[test]
    fn all_that_a_machine_has_at_the_cards_prices_for_that_long() {
        assert_eq!(most(&card(CPU), &machine(), HOUR), credits("4"));
        assert_eq!(most(&card(CPU), &machine(), Nanos::from_secs(600)), credits("0.666666667"), "rounded up");
        let memory = format!("{CPU}[[line]]\nid = \"m\"\nmeter = \"memory_charged\"\nprice = \"0.25\"\nunit = \"GiB-hour\"\n");
        assert_eq!(most(&card(&memory), &machine(), HOUR), credits("20"));
    }

    #[test]
    fn of_gpus_the_dearest_line_counts_that_can_price_the_machines_own() {
        let gpu = |id: &str, model: &str, price: &str| {
            format!("[[line]]\nid = \"{id}\"\nmeter = \"gpu_held\"\nprice = \"{price}\"\nunit = \"gpu-hour\"\n{model}")
        };
        let lines = gpu("any", "", "1") + &gpu("dear", "gpu_model = \"NVIDIA H100\"\n", "5");
        assert_eq!(most(&card(&lines), &machine(), HOUR), credits("10"));
        let own = Capacity { gpu_model: Some(GpuModel::new("Tesla T4")), ..machine() };
        assert_eq!(most(&card(&lines), &own, HOUR), credits("2"));
        assert_eq!(most(&card(&lines), &Capacity { gpus: 0, ..machine() }, HOUR), Credits::ZERO);
    }

    #[test]
    fn a_step_that_is_longer_than_that_can_still_be_paid() {
        let lines = "[[line]]\nid = \"g\"\nmeter = \"gpu_held\"\nprice = \"6\"\nunit = \"gpu-hour\"\nincrement = \"1\"\n";
        let most_of = most(&card(lines), &machine(), Nanos::from_secs(600));
        assert!(credits("12") <= most_of, "an hour of both: {most_of}");
    }

    #[test]
    fn no_size_is_too_large() {
        let huge = Capacity { cpus: u32::MAX, memory_bytes: u64::MAX, storage_bytes: u64::MAX, gpus: u32::MAX, gpu_model: None };
        let lines = "[[line]]\nid = \"m\"\nmeter = \"memory_charged\"\nprice = \"1000000000\"\nunit = \"GiB-hour\"\n";
        assert_eq!(most(&card(lines), &huge, Nanos(u64::MAX)), AMOUNT_MAX);
    }
}
