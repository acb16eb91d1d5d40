//! What the agent itself costs, as the kernel has it: CPU time of each thread, descriptors.

use std::collections::BTreeMap;
use std::io;

use super::alarm::Alarm;
use super::handle::Stats;
use crate::domain::budget::Over;
use crate::domain::time::Now;

/// CPU time by the thread's name, in nanoseconds: of all that bear it together. `schedstat` is exact, where `stat` counts hundredths of a
/// second. A thread that ends meanwhile is left out.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn threads_cpu_ns() -> io::Result<BTreeMap<String, u64>> {
    let mut threads: BTreeMap<String, u64> = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        let (Ok(name), Ok(stat)) = (std::fs::read_to_string(task.join("comm")), std::fs::read_to_string(task.join("schedstat"))) else {
            continue;
        };
        let ns: u64 = stat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
        *threads.entry(name.trim_end().to_owned()).or_default() += ns;
    }
    Ok(threads)
}

/// How many descriptors are open. Since Linux 6.2 the folder's size says so; before, they are counted.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn descriptors() -> io::Result<u64> {
    let told = std::fs::metadata("/proc/self/fd")?.len();
    if told != 0 {
        return Ok(told);
    }
    std::fs::read_dir("/proc/self/fd").map(|entries| u64::try_from(entries.count()).unwrap_or(u64::MAX))
}

/// Says what the agent costs too much of, for as long as it does.
pub fn tell_over(stats: &mut Stats, now: Now) {
    let interval_ms = stats.interval_ns / 1_000_000;
    match stats.over_budget {
        Some(over) => {
            let what = match over {
                Over::Cpu => "CPU time",
                Over::Memory => "memory",
            };
            stats.alarms.raise(
                Alarm::OverBudget,
                now,
                format!("the agent costs more {what} than [budget] allows; it looks at jobs every {interval_ms} ms"),
            );
        }
        None => stats.alarms.clear(Alarm::OverBudget),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_found_by_its_name_with_the_time_that_it_used() {
        let (ready, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let spin = move || {
            let mut sum = 0_u64;
            (0..1_000_000_u64).for_each(|number| sum = std::hint::black_box(sum.wrapping_add(number)));
            ready.send(sum).unwrap();
            let _ = ended.recv();
        };
        let thread = std::thread::Builder::new().name("counted".to_owned()).spawn(spin).unwrap();
        told.recv().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20)); // off its CPU its time is up to date
        assert!(0 < threads_cpu_ns().unwrap()["counted"]);
        drop(end);
        thread.join().unwrap();
    }

    #[test]
    fn an_open_file_is_counted() {
        let before = descriptors().unwrap();
        let files: Vec<std::fs::File> = (0..200).map(|_| std::fs::File::open("/proc/self/stat").unwrap()).collect();
        // Other tests open and close files at the same time.
        assert!(before + 100 < descriptors().unwrap());
        drop(files);
    }
}
