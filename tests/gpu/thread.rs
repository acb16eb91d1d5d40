//! The GPU thread: it may hang in the driver, and nobody else may.

use std::process::Command;
use std::time::{Duration, Instant};

use meterd::node::clock;
use meterd::node::gpu::{Driver, GpuName, Gpus, gpu_report};

use super::*;

const TICK: Nanos = Nanos::from_millis(5);
/// How long a test waits for what must come. Never reached, unless it does not come.
const PATIENCE: Duration = Duration::from_mins(1);

fn start(stub: &Stub, deadline: Nanos) -> Gpus {
    Gpus::start(stub.config(TICK, deadline), Arc::new(|_| None)).unwrap()
}

fn wait_for(gpus: &Gpus, what: &str, wanted: impl Fn(&GpuLook) -> bool) -> GpuLook {
    let begun = Instant::now();
    loop {
        let look = gpus.look(clock::mono());
        if wanted(&look) {
            return look;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} did not come: {look:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_thread_leaves_the_mean_of_a_ring_that_runs_by_the_real_clock() {
    let stub = Stub::new(&format!("{ONE}\ncycle 0 42\nprocess 0 compute 5 1\nusing 0 5 17"));
    let gpus = start(&stub, Nanos::from_secs(60));
    let look =
        wait_for(&gpus, "a reading of the ring", |look| look.gpus.seen().is_some_and(|samples| samples[0].busy_permyriad.seen().is_some()));
    assert_eq!(samples(&look)[0].busy_permyriad, Reading::Seen(4_200));
    wait_for(&gpus, "a reading of the process", |look| {
        let listed = look.gpus.seen().and_then(|samples| samples[0].processes.seen());
        listed.is_some_and(|list| list[0].busy_permyriad == Reading::Seen(1_700))
    });
}

#[test]
fn a_hanging_driver_blocks_nobody_and_is_a_timeout_once_the_deadline_has_passed() {
    for function in ["nvmlDeviceGetCount_v2", "nvmlDeviceGetUUID", "nvmlDeviceGetSamples", "nvmlDeviceGetProcessUtilization"] {
        let well = format!("{ONE}\ncycle 0 42");
        let stub = Stub::new(&well);
        let deadline = Nanos::from_millis(300);
        let gpus = start(&stub, deadline);
        wait_for(&gpus, "a first look", |look| look.gpus.seen().is_some());
        stub.says(&format!("{well}\nhang {function}"));
        // Only a thread that is known to hang leaves no other look between two of these lines.
        let hung = format!("hangs in {function}");
        wait_for(&gpus, "the hang", |_| stub.calls().last() == Some(&hung));
        let hanging = wait_for(&gpus, "a timeout", |look| look.driver == Driver::Hangs);
        assert_eq!(hanging.gpus, Reading::Missing(Missing::TimedOut), "{function}");
        std::thread::scope(|scope| {
            // Each of these would never return, if it waited for the thread.
            for _ in 0..4 {
                scope.spawn(|| (0..1_000).for_each(|_| assert_eq!(gpus.latest(clock::mono()), Reading::Missing(Missing::TimedOut))));
            }
        });
        let taken = hanging.taken;
        assert!(gpus.look(taken.plus(deadline)).gpus.seen().is_some(), "{function}: up to the deadline the last look holds");
        assert_eq!(gpus.look(taken.plus(Nanos(deadline.0 + 1))).gpus, Reading::Missing(Missing::TimedOut));

        let uuid: GpuName = "GPU-0a".parse().unwrap();
        assert_eq!(gpus.resolve(&uuid, clock::mono()).unwrap().gpu.as_str(), "GPU-0a", "who it is stays known");
        let refusal = gpus.resolve(&GpuName::Index(0), clock::mono()).unwrap_err();
        assert_eq!(refusal.code(), "gpu_reading_missing", "but not which one device 0 is by now");

        stub.says(&well);
        let well_again = wait_for(&gpus, "a look after the hang", |look| look.gpus.seen().is_some() && look.taken > taken);
        assert_eq!(well_again.driver, Driver::Answers, "{function}");
    }
}

#[test]
fn a_driver_that_hangs_from_the_start_is_not_there_yet_and_then_timed_out() {
    let stub = Stub::new(&format!("{ONE}\nhang nvmlInit_v2"));
    let hour = Nanos::from_secs(3_600);
    let gpus = start(&stub, hour);
    let now = clock::mono();
    assert_eq!(gpus.latest(now), Reading::Missing(Missing::NotYet));
    assert_eq!(gpus.latest(now.plus(hour)), Reading::Missing(Missing::TimedOut));
    assert_eq!(gpus.resolve(&GpuName::Index(0), now).unwrap_err().code(), "gpu_reading_missing");
    // Dropped here, with the thread in the driver for good: this must return.
}

#[test]
fn a_dropped_handle_ends_the_thread() {
    let stub = Stub::new(ONE);
    let gpus = start(&stub, SECOND);
    wait_for(&gpus, "a first look", |look| look.gpus.seen().is_some());
    drop(gpus);
    let begun = Instant::now();
    // The thread closes NVML when it ends.
    while stub.calls_count("nvmlShutdown") == 0 {
        assert!(begun.elapsed() < PATIENCE, "the thread runs on");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_missing_library_stays_the_reason_while_the_thread_waits_to_try_again() {
    let stub = Stub::new(ONE);
    let library = stub.library();
    let away = library.with_extension("away");
    std::fs::rename(&library, &away).unwrap();
    let gpus = start(&stub, Nanos::from_secs(60));
    let first = wait_for(&gpus, "a look", |look| look.gpus == Reading::Missing(Missing::NoLibrary));
    wait_for(&gpus, "a later look", |look| look.taken > first.taken && look.gpus == Reading::Missing(Missing::NoLibrary));
    std::fs::rename(&away, &library).unwrap();
    wait_for(&gpus, "the library", |look| look.gpus.seen().is_some());
}

/// Runs itself again, with the stub's script named by the environment, as a demonstration does.
#[test]
fn a_host_reports_its_gpus_as_json() {
    const LIBRARY: &str = "METERD_TEST_NVML_LIBRARY";
    if let Some(library) = std::env::var_os(LIBRARY) {
        let config = GpuConfig { library: library.into(), ..GpuConfig::every(TICK) };
        println!("{}", serde_json::to_string(&gpu_report(&config, 2)).unwrap());
        return;
    }
    let stub = Stub::new("");
    let script = stub.library().with_extension("named");
    std::fs::write(&script, ONE).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "thread::a_host_reports_its_gpus_as_json", "--nocapture"])
        .env(LIBRARY, stub.library())
        .env("METERD_STUB_NVML", &script)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let json = text.lines().find_map(|line| Some(&line[line.find('{')?..])).unwrap_or_else(|| panic!("no report: {text}"));
    let report: serde_json::Value = serde_json::from_str(json).unwrap();
    let gpu = &report["looks"][1]["look"]["gpus"]["Seen"][0];
    assert_eq!(gpu["gpu"], "GPU-0a", "{report}");
    assert_eq!(gpu["memory_used_bytes"]["Seen"], GIB);
    assert!(report["host"]["totals"]["cpu_count"].as_u64().unwrap() > 0);
    assert!(report["looks"][0]["took"].as_u64().unwrap() > 0);
}
