//! GPUs as NVML tells of them: the real FFI path, a stub library behind it (`stub_nvml/nvml.c`).
//!
//! Most tests step a reader by hand, look by look, with instants of their own; the last ones run the thread.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod stub_nvml;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meterd::domain::id::Attempt;
use meterd::domain::meter::{GpuProcess, GpuSample, Missing, Reading};
use meterd::domain::time::{Mono, Nanos};
use meterd::node::gpu::{GpuConfig, GpuLook, GpuReader};
use stub_nvml::Stub;

#[path = "gpu/attribution.rs"]
mod attribution;
#[path = "gpu/thread.rs"]
mod thread;

const GIB: u64 = 1 << 30;
const SECOND: Nanos = Nanos::from_secs(1);

/// One idle H100, without samples and processes.
const ONE: &str = "gpu 0 GPU-0a 85899345920 1073741824 NVIDIA H100 80GB HBM3";
/// Two of them.
const TWO: &str = "gpu 0 GPU-0a 85899345920 0 NVIDIA H100 80GB HBM3\ngpu 1 GPU-1b 85899345920 0 NVIDIA H100 80GB HBM3\n\
                   sample 0 10000000 10\nsample 1 10000000 20";

fn at(seconds: u64) -> Mono {
    Mono(1_000_000_000 * seconds)
}

/// A reader whose odd pids belong to attempt 7.
fn reader_of(config: GpuConfig) -> GpuReader {
    GpuReader::new(config, Arc::new(|pid| (pid % 2 == 1).then_some(Attempt(7))))
}

fn reader(stub: &Stub) -> GpuReader {
    reader_of(stub.config(SECOND, Nanos::from_secs(3)))
}

fn first_look(script: &str) -> GpuLook {
    reader(&Stub::new(script)).look(at(1))
}

/// The only device of a look.
fn only(look: GpuLook) -> GpuSample {
    match look.gpus {
        Reading::Seen(mut samples) if samples.len() == 1 => samples.remove(0),
        other => panic!("not one device: {other:?}"),
    }
}

fn samples(look: &GpuLook) -> &[GpuSample] {
    look.gpus.seen().unwrap_or_else(|| panic!("no reading: {look:?}"))
}

fn failed<T>(text: &str) -> Reading<T> {
    Reading::Missing(Missing::Failed(text.to_owned()))
}

fn processes(look: GpuLook) -> Vec<GpuProcess> {
    match only(look).processes {
        Reading::Seen(processes) => processes,
        Reading::Missing(why) => panic!("processes: {why}"),
    }
}

#[test]
fn without_a_library_there_is_no_reading_and_it_says_so() {
    let stub = Stub::new(ONE);
    let with = |library: &str| reader_of(GpuConfig { library: library.into(), ..stub.config(SECOND, SECOND) }).look(at(1)).gpus;
    assert_eq!(with("/nowhere/libnvidia-ml.so.1"), Reading::Missing(Missing::NoLibrary));
    assert!(matches!(with("/proc/self/status"), Reading::Missing(Missing::Failed(_))), "a file that is no library is not 'not installed'");
    assert!(
        matches!(with("libm.so.6"), Reading::Missing(Missing::Failed(text)) if text.contains("nvmlInit_v2")),
        "a library, but not NVML"
    );
}

#[test]
fn a_host_without_a_device_is_told_from_one_whose_devices_are_blocked() {
    let stub = Stub::new("");
    assert_eq!(reader(&stub).look(at(1)).gpus, Reading::Missing(Missing::NoDevice));
    std::fs::create_dir(stub.driver_gpus().join("0000:04:00.0")).unwrap();
    assert_eq!(reader(&stub).look(at(1)).gpus, Reading::Missing(Missing::Denied));
}

#[test]
fn a_device_is_known_by_uuid_model_and_memory() {
    let sample = only(first_look(ONE));
    assert_eq!((sample.gpu.as_str(), sample.index, sample.model.as_str()), ("GPU-0a", 0, "NVIDIA H100 80GB HBM3"));
    assert_eq!((sample.memory_used_bytes, sample.memory_total_bytes), (Reading::Seen(GIB), Reading::Seen(80 * GIB)));
    assert_eq!(sample.busy_permyriad, Reading::Missing(Missing::NotYet), "no sample is not idle");
    assert_eq!(sample.processes, Reading::Seen(vec![]));
}

#[test]
fn busy_is_the_exact_mean_of_the_samples_since_the_last_look() {
    let stub = Stub::new(&format!("{ONE}\nsample 0 9000000 100\nsample 0 9800000 10\nsample 0 10000000 21"));
    let mut reader = reader(&stub);
    let mut busy = |seconds| only(reader.look(at(seconds))).busy_permyriad;
    assert_eq!(busy(1), Reading::Seen(1_550), "the first look takes the last interval of the ring, not its 14 s");
    assert_eq!(busy(2), Reading::Missing(Missing::NotYet), "each sample counts once");
    stub.says(&format!("{ONE}\nsample 0 10000000 21\nsample 0 10200000 0\nsample 0 10400000 0\nsample 0 10600000 100"));
    assert_eq!(busy(3), Reading::Seen(3_333));
}

#[test]
fn a_ring_whose_clock_was_set_back_is_read_again_after_a_few_looks() {
    let ring = |stamp: u64, percent: u64| format!("{ONE}\nprocess 0 compute 5 1\nuse 0 5 {stamp} {percent}\nsample 0 {stamp} {percent}");
    let stub = Stub::new(&ring(10_000_000, 10));
    let mut reader = reader(&stub);
    let mut busy = |seconds| {
        let sample = only(reader.look(at(seconds)));
        (sample.busy_permyriad, sample.processes.seen().unwrap()[0].busy_permyriad.clone())
    };
    assert_eq!(busy(1), (Reading::Seen(1_000), Reading::Seen(1_000)));
    stub.says(&ring(5_000_000, 20));
    let seen: Vec<u64> = (2..20).filter(|seconds| busy(*seconds) == (Reading::Seen(2_000), Reading::Seen(2_000))).collect();
    assert_eq!(seen, [7], "five looks without a sample, then once what is there");
}

#[test]
fn a_device_without_a_ring_is_polled_and_named_as_such() {
    for code in [3, 13] {
        let look = first_look(&format!("{ONE}\nerror nvmlDeviceGetSamples {code}\nrate 0 37"));
        assert_eq!(look.polled, BTreeSet::from(["GPU-0a".parse().unwrap()]));
        assert_eq!(only(look).busy_permyriad, Reading::Seen(3_700));
    }
    assert!(first_look(&format!("{ONE}\nsample 0 10000000 1")).polled.is_empty());
}

#[test]
fn f16_an_impossible_value_is_rejected_and_counted() {
    let impossible = |script: &str| {
        let look = first_look(script);
        (look.rejected_count, only(look))
    };
    for ring in ["sample 0 10000000 2287971552", "sample 0 9900000 50\nsample 0 10000000 101", "samples_are double\nsample 0 10000000 50"] {
        let (rejected_count, sample) = impossible(&format!("{ONE}\n{ring}"));
        assert_eq!((rejected_count, sample.busy_permyriad), (1, Reading::Missing(Missing::Implausible)), "{ring}");
    }
    let (rejected_count, sample) = impossible(&format!("{ONE}\nerror nvmlDeviceGetSamples 3\nrate 0 101"));
    assert_eq!((rejected_count, sample.busy_permyriad), (1, Reading::Missing(Missing::Implausible)));
    let (rejected_count, sample) = impossible("gpu 0 GPU-0a 1000 1001 X\nprocess 0 compute 5 1001");
    assert_eq!((rejected_count, &sample.memory_used_bytes), (2, &Reading::Missing(Missing::Implausible)));
    assert_eq!(sample.memory_total_bytes, Reading::Seen(1_000));
    assert_eq!(sample.processes.seen().unwrap()[0].memory_bytes, Reading::Missing(Missing::Implausible));
}

#[test]
fn an_error_takes_away_only_what_it_concerns_and_goes_when_it_goes() {
    let well = format!("{ONE}\nsample 0 10000000 10\nprocess 0 compute 5 {GIB}\nuse 0 5 10000000 10\nrate 0 10");
    let fields = |sample: &GpuSample| {
        let process = sample.processes.seen().map(|list| list[0].busy_permyriad.clone());
        [
            sample.busy_permyriad.seen().is_some(),
            sample.memory_used_bytes.seen().is_some(),
            process.is_some(),
            process.is_some_and(|busy| busy.seen().is_some()),
        ]
    };
    for (function, expected) in [
        ("nvmlDeviceGetSamples", [false, true, true, true]),
        ("nvmlDeviceGetMemoryInfo_v2", [true, false, true, true]),
        ("nvmlDeviceGetComputeRunningProcesses_v3", [true, true, false, false]),
        ("nvmlDeviceGetGraphicsRunningProcesses_v3", [true, true, false, false]),
        ("nvmlDeviceGetMPSComputeRunningProcesses_v3", [true, true, false, false]),
        ("nvmlDeviceGetProcessUtilization", [true, true, true, false]),
    ] {
        let stub = Stub::new(&format!("{well}\nerror {function} 999"));
        let mut reader = reader(&stub);
        assert_eq!(fields(&only(reader.look(at(1)))), expected, "{function}");
        stub.says(&well.replace("10000000", "11000000"));
        assert_eq!(fields(&only(reader.look(at(2)))), [true; 4], "{function}");
    }
}

#[test]
fn the_reason_of_a_missing_reading_is_the_drivers() {
    let memory = |code: u32| only(first_look(&format!("{ONE}\nerror nvmlDeviceGetMemoryInfo_v2 {code}"))).memory_used_bytes;
    assert_eq!(memory(3), Reading::Missing(Missing::NotSupported));
    assert_eq!(memory(4), Reading::Missing(Missing::Denied));
    assert_eq!(memory(10), failed("the provided timeout was reached"));
    assert_eq!(memory(15), failed("device fell off the bus or has otherwise become inacessible"));
    assert_eq!(memory(77), Reading::Missing(Missing::Malformed), "a code that nobody knows");
    let init = |code: u32| first_look(&format!("{ONE}\nerror nvmlInit_v2 {code}")).gpus;
    assert_eq!(init(4), Reading::Missing(Missing::Denied));
    assert_eq!(init(9), failed("NVIDIA driver is not loaded"));
    assert_eq!(init(12), Reading::Missing(Missing::NoLibrary));
}

#[test]
fn an_upgraded_driver_is_read_through_its_new_library() {
    let stub = Stub::new(ONE);
    let mut reader = reader(&stub);
    only(reader.look(at(1)));
    stub.install();
    stub.says(&format!("{ONE}\nerror nvmlDeviceGetCount_v2 18"));
    assert_eq!(reader.look(at(2)).gpus, failed("RM detects a driver/library version mismatch"));
    stub.says(ONE);
    let look = reader.look(at(3));
    assert_eq!((look.init_count, stub.calls_count("nvmlShutdown")), (2, 1));
    only(look);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let library = stub.library().display().to_string();
    let mapped: Vec<&str> = maps.lines().filter(|line| line.contains(&library)).collect();
    assert!(!mapped.is_empty() && mapped.iter().all(|line| !line.contains("(deleted)")), "the old library is still mapped: {mapped:?}");
}

#[test]
fn a_driver_that_stays_away_is_asked_less_and_less_often() {
    let stub = Stub::new(&format!("{ONE}\nerror nvmlInit_v2 9"));
    let mut reader = reader(&stub);
    for seconds in 0..100 {
        assert_eq!(reader.look(at(seconds)).gpus, failed("NVIDIA driver is not loaded"), "and each look says why");
    }
    // At 0, 1, 3, 7, 15, 31 and 63 s.
    assert_eq!(stub.calls_count("nvmlInit_v2"), 7);
    stub.says(ONE);
    let back = (100..300).find(|seconds| reader.look(at(*seconds)).gpus.seen().is_some());
    assert_eq!(back, Some(123), "60 s is the longest pause");
}

#[test]
fn a_lost_device_does_not_hide_the_others_and_keeps_its_name() {
    let stub = Stub::new(TWO);
    let mut reader = reader(&stub);
    assert_eq!(samples(&reader.look(at(1)))[1].busy_permyriad, Reading::Seen(2_000));
    for function in ["nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetUUID"] {
        stub.says(&format!("{TWO}\nerror {function} 15 1"));
        let look = reader.look(at(2));
        let lost = &samples(&look)[1];
        assert_eq!(samples(&look)[0].memory_used_bytes, Reading::Seen(0), "{function}");
        assert_eq!(lost.gpu.as_str(), "GPU-1b");
        assert_eq!(lost.memory_used_bytes, failed("device fell off the bus or has otherwise become inacessible"));
        assert_eq!(lost.processes, failed("device fell off the bus or has otherwise become inacessible"));
        assert!(look.unidentified.is_empty() && look.vanished.is_empty());
    }
    stub.says(&TWO.replace("10000000", "11000000"));
    assert_eq!(samples(&reader.look(at(9)))[1].busy_permyriad, Reading::Seen(2_000), "it is read again");
}

#[test]
fn a_device_that_stays_lost_does_not_make_nvml_be_opened_at_each_look() {
    let stub = Stub::new(&format!("{TWO}\nerror nvmlDeviceGetMemoryInfo_v2 15 1"));
    let mut reader = reader(&stub);
    for seconds in 0..100 {
        assert_eq!(samples(&reader.look(at(seconds)))[0].memory_used_bytes, Reading::Seen(0), "the other one is read at each look");
    }
    // At 0, 1, 3, 7, 15, 31 and 63 s.
    assert_eq!((stub.calls_count("nvmlInit_v2"), stub.calls_count("nvmlShutdown")), (7, 6));
}

#[test]
fn a_device_that_never_said_who_it_is_has_no_invented_name() {
    let look = first_look(&format!("{TWO}\nerror nvmlDeviceGetUUID 15 1"));
    assert_eq!(samples(&look).len(), 1);
    assert_eq!(look.unidentified.keys().copied().collect::<Vec<_>>(), [1]);
}

#[test]
fn a_lost_device_does_not_take_the_name_of_one_that_moved_to_its_index() {
    let stub = Stub::new(TWO);
    let mut reader = reader(&stub);
    reader.look(at(1));
    // GPU-1b is device 0 now, and what is device 1 does not say.
    stub.says("gpu 0 GPU-1b 1000 0 X\ngpu 1 GPU-2c 1000 0 X\nerror nvmlDeviceGetUUID 15 1");
    let look = reader.look(at(2));
    assert_eq!(samples(&look).len(), 1);
    assert!(look.unidentified.contains_key(&1));
}

#[test]
fn a_device_that_is_gone_is_named() {
    let stub = Stub::new(TWO);
    let mut reader = reader(&stub);
    reader.look(at(1));
    stub.says(ONE);
    assert_eq!(reader.look(at(2)).vanished, BTreeSet::from(["GPU-1b".parse().unwrap()]));
    stub.says("");
    let look = reader.look(at(3));
    assert_eq!((look.gpus, look.vanished.len()), (Reading::Missing(Missing::NoDevice), 2));
}

#[test]
fn a_process_on_several_lists_is_one_process() {
    let script = format!(
        "{ONE}\nprocess 0 compute 5 {GIB}\nprocess 0 graphics 5 {GIB}\nprocess 0 mps 7 {GIB}\nprocess 0 compute 7 -1\nprocess 0 graphics 8 -1\nprocess 0 compute 0 1"
    );
    let listed: Vec<_> =
        processes(first_look(&script)).into_iter().map(|process| (process.pid, process.attempt, process.memory_bytes)).collect();
    let expected = [
        (5, Some(Attempt(7)), Reading::Seen(GIB)),
        (7, Some(Attempt(7)), Reading::Seen(GIB)),
        (8, None, Reading::Missing(Missing::NotSupported)),
    ];
    assert_eq!(listed, expected, "pid 0 is nobody");
}

#[test]
fn a_device_without_graphics_and_mps_still_lists_its_compute_processes() {
    let lists = "error nvmlDeviceGetGraphicsRunningProcesses_v3 3\nerror nvmlDeviceGetMPSComputeRunningProcesses_v3 13";
    assert_eq!(processes(first_look(&format!("{ONE}\n{lists}\nprocess 0 compute 5 1"))).len(), 1);
}

#[test]
fn a_process_has_the_mean_of_its_own_new_samples() {
    let listed = "process 0 compute 5 1\nprocess 0 compute 6 1\nprocess 0 compute 7 1";
    let stub = Stub::new(&format!("{ONE}\n{listed}\nuse 0 5 1000000 99\nuse 0 5 9900000 10\nuse 0 5 10000000 21\nuse 0 6 9950000 40"));
    let mut reader = reader(&stub);
    let mut busy = |seconds| -> BTreeMap<u32, Reading<u32>> {
        processes(reader.look(at(seconds))).into_iter().map(|process| (process.pid, process.busy_permyriad)).collect()
    };
    let not_yet = || Reading::Missing(Missing::NotYet);
    assert_eq!(busy(1), BTreeMap::from([(5, Reading::Seen(1_550)), (6, Reading::Seen(4_000)), (7, not_yet())]));
    assert_eq!(busy(2), BTreeMap::from([(5, not_yet()), (6, not_yet()), (7, not_yet())]), "nothing new is no error and not idle");
    // 4294967295 is garbage, 99 a process that ended.
    stub.says(&format!(
        "{ONE}\n{listed}\nuse 0 5 11000000 4294967295\nuse 0 6 11000000 4294967295\nuse 0 6 11000001 30\nuse 0 99 11000000 5"
    ));
    assert_eq!(busy(3), BTreeMap::from([(5, Reading::Missing(Missing::Implausible)), (6, Reading::Seen(3_000)), (7, not_yet())]));
    assert_eq!(reader.look(at(4)).rejected_count, 2);
}

#[test]
fn a_list_that_grows_while_it_is_fetched_is_fetched_again() {
    let script = format!("{ONE}\nprocess 0 compute 5 1\nprocess 0 mps 7 1\nuse 0 5 10000000 10\nsample 0 10000000 10");
    let all = |tries: u32| {
        let growing = ["ComputeRunningProcesses_v3", "MPSComputeRunningProcesses_v3", "ProcessUtilization", "Samples"];
        let short: String = growing.map(|name| format!("\nshort nvmlDeviceGet{name} {tries}")).concat();
        only(first_look(&format!("{script}{short}")))
    };
    let sample = all(2);
    assert_eq!(sample.busy_permyriad, Reading::Seen(1_000));
    assert_eq!(sample.processes.seen().unwrap()[0].busy_permyriad, Reading::Seen(1_000));
    assert_eq!(sample.processes.seen().unwrap().len(), 2);
    let sample = all(3);
    assert!(matches!(sample.busy_permyriad, Reading::Missing(Missing::Failed(_))), "three times and no more: {sample:?}");
    assert!(matches!(sample.processes, Reading::Missing(Missing::Failed(_))));
}

#[test]
fn a_partitioned_device_is_read_part_by_part_without_utilisation() {
    let look = first_look(&format!(
        "{ONE}\nmig 0\nrate 0 10\nsample 0 10000000 10\nuse 0 5 10000000 10\nprocess 0.3 compute 5 {GIB}\n\
         part 0 0 MIG-aa 10468982784 0 NVIDIA H100 80GB HBM3 MIG 1g.10gb\npart 0 3 MIG-bb 10334765056 {GIB} -"
    ));
    let parent = || "GPU-0a".parse().unwrap();
    assert_eq!(look.mig_parents, BTreeMap::from([("MIG-aa".parse().unwrap(), parent()), ("MIG-bb".parse().unwrap(), parent())]));
    let [whole, aa, bb] = samples(&look) else { panic!("{look:?}") };
    for sample in [whole, aa, bb] {
        assert_eq!((sample.index, &sample.busy_permyriad), (0, &Reading::Missing(Missing::NotSupported)));
    }
    assert_eq!((aa.gpu.as_str(), aa.model.as_str()), ("MIG-aa", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"));
    assert_eq!(aa.processes, Reading::Seen(vec![]));
    assert_eq!((bb.gpu.as_str(), bb.model.as_str()), ("MIG-bb", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"), "named by its profile");
    assert_eq!(bb.memory_used_bytes, Reading::Seen(GIB));
    let process = GpuProcess {
        pid: 5,
        attempt: Some(Attempt(7)),
        memory_bytes: Reading::Seen(GIB),
        busy_permyriad: Reading::Missing(Missing::NotSupported),
    };
    assert_eq!(bb.processes, Reading::Seen(vec![process.clone()]));
    assert_eq!(whole.processes, Reading::Seen(vec![process]));
    assert_eq!(look.resolve(&"0".parse().unwrap()).unwrap_err().code(), "gpu_partitioned");
    assert_eq!(look.resolve(&"MIG-bb".parse().unwrap()).unwrap().model, bb.model);
}

#[test]
fn a_look_asks_for_the_energy_only_where_a_card_prices_it() {
    let part = "mig 1\npart 1 0 MIG-aa 1000 0 X";
    for (script, called) in [
        (format!("{TWO}\nprocess 0 compute 5 1"), "nvmlDeviceGetSamples"),
        (format!("{TWO}\nerror nvmlDeviceGetSamples 3\nrate 0 1"), "nvmlDeviceGetUtilizationRates"),
        (format!("{TWO}\n{part}"), "nvmlDeviceGetMigDeviceHandleByIndex"),
    ] {
        let stub = Stub::new(&script);
        reader(&stub).look(at(1));
        assert!(stub.calls_count(called) > 0, "the calls are recorded: {:?}", stub.calls());
        assert_eq!(stub.calls_count("nvmlDeviceGetTotalEnergyConsumption"), 0);
    }
    let stub = Stub::new(&format!("{TWO}\nenergy 0 4711000"));
    let mut reader = reader(&stub);
    reader.set_energy(true);
    let energies: Vec<Reading<u64>> = reader.look(at(1)).totals.into_values().map(|totals| totals.energy_mj).collect();
    assert_eq!(energies, [Reading::Seen(4_711_000), Reading::Missing(Missing::NotSupported)]);
    reader.set_energy(false);
    let energies = reader.look(at(2)).totals.into_values().map(|totals| totals.energy_mj);
    assert!(energies.into_iter().all(|energy| energy.seen().is_none()), "what was not asked for is not known");
    assert_eq!(stub.calls_count("nvmlDeviceGetTotalEnergyConsumption"), 2, "one look at two devices");
}
