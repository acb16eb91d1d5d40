use super::*;
use crate::domain::id::GpuModel;

fn sample(gpu: &str, index: u32) -> GpuSample {
    let nothing = || Reading::Missing(Missing::NotSupported);
    GpuSample {
        gpu: gpu.parse().unwrap(),
        index,
        model: GpuModel::new("NVIDIA H100 80GB HBM3"),
        busy_permyriad: Reading::Missing(Missing::NotSupported),
        memory_used_bytes: nothing(),
        memory_total_bytes: nothing(),
        processes: Reading::Missing(Missing::NotSupported),
    }
}

fn look(samples: Vec<GpuSample>, parts: &[(&str, &str)]) -> GpuLook {
    let mig_parents = parts.iter().map(|(part, parent)| (part.parse().unwrap(), parent.parse().unwrap())).collect();
    GpuLook { gpus: Reading::Seen(samples), mig_parents, ..GpuLook::missing(Mono(0), Missing::NotYet) }
}

fn refusal(look: &GpuLook, wanted: &str) -> &'static str {
    wanted.parse().and_then(|wanted| look.resolve(&wanted)).unwrap_err().code()
}

#[test]
fn a_device_is_found_by_index_and_by_uuid() {
    let look = look(vec![sample("GPU-a", 0), sample("GPU-b", 1)], &[]);
    for wanted in ["1", "GPU-b"] {
        assert_eq!(look.resolve(&wanted.parse().unwrap()).unwrap().gpu.as_str(), "GPU-b");
    }
    assert_eq!(refusal(&look, "2"), "gpu_unknown");
    assert_eq!(refusal(&look, "GPU-"), "gpu_unknown", "an abbreviation is not a name");
    for bad in ["", "all", "-1", "0:1", "99999999999", "GPU-\n"] {
        assert_eq!(refusal(&look, bad), "gpu_name_invalid", "{bad:?}");
    }
}

#[test]
fn a_partitioned_device_cannot_be_held_as_a_whole() {
    let look = look(vec![sample("MIG-1", 0), sample("GPU-a", 0), sample("MIG-2", 0)], &[("MIG-1", "GPU-a"), ("MIG-2", "GPU-a")]);
    assert_eq!(refusal(&look, "0"), "gpu_partitioned");
    assert_eq!(refusal(&look, "GPU-a"), "gpu_partitioned");
    assert_eq!(look.resolve(&"MIG-2".parse().unwrap()).unwrap().gpu.as_str(), "MIG-2");
}

#[test]
fn without_a_reading_nobody_knows_which_device_is_meant() {
    assert_eq!(refusal(&GpuLook::missing(Mono(0), Missing::NoLibrary), "0"), "gpu_reading_missing");
}

#[test]
fn a_device_that_two_jobs_hold_is_named_with_both() {
    let held = |gpu: &str| HeldGpu { gpu: gpu.parse().unwrap(), model: GpuModel::new("x") };
    let (one, two) = ([held("GPU-a"), held("GPU-b")], [held("GPU-b"), held("GPU-b")]);
    let shared = sharers([(Attempt(1), &one[..]), (Attempt(2), &two[..]), (Attempt(3), &[])]);
    assert_eq!(shared, BTreeMap::from([("GPU-b".parse().unwrap(), BTreeSet::from([Attempt(1), Attempt(2)]))]));
    assert!(sharers([(Attempt(2), &two[..])]).is_empty(), "one job that names a device twice does not share it");
}

#[test]
fn a_look_that_took_long_is_not_made_up_for() {
    let second = Nanos::from_secs(1);
    assert_eq!(next_due(Mono(0), second, Mono(1)), Mono(1_000_000_000));
    assert_eq!(next_due(Mono(0), second, Mono(3_500_000_000)), Mono(4_000_000_000));
    assert!(next_due(Mono(5), Nanos(0), Mono(5)) > Mono(5), "an interval of nothing would spin");
}
