//! Real-time priority for the threads that must act in time on a machine whose every core is busy.

use std::ffi::{c_int, c_long};
use std::io;

use crate::domain::meter::{Missing, Reading};

/// What the calling thread runs at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheduling {
    /// `SCHED_RR` at this priority, reset on fork.
    RoundRobin {
        /// 1 (lowest) to 99.
        priority: i32,
    },
}

/// `struct sched_param` of sched.h.
#[repr(C)]
struct SchedParam {
    sched_priority: c_int,
}

#[expect(unsafe_code, reason = "the one system call that no safe wrapper offers")]
unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}

const SCHED_RR: c_int = 2;
const SCHED_RESET_ON_FORK: c_int = 0x4000_0000;

// By number, since some C libraries stub the function out.
#[cfg(target_arch = "x86_64")]
const SYS_SCHED_SETSCHEDULER: Option<c_long> = Some(144);
#[cfg(any(target_arch = "aarch64", target_arch = "riscv64"))]
const SYS_SCHED_SETSCHEDULER: Option<c_long> = Some(119);
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
const SYS_SCHED_SETSCHEDULER: Option<c_long> = None;

/// Puts the calling thread under `SCHED_RR` at priority 1; children start at nice 0 again (`SCHED_RESET_ON_FORK`, sched(7)).
/// [`Missing::Denied`] without `CAP_SYS_NICE` (or `RLIMIT_RTPRIO`), or in a v1 cpu cgroup without a real-time budget: the thread then runs on as it was.
#[must_use]
pub fn raise_priority() -> Reading<Scheduling> {
    let Some(number) = SYS_SCHED_SETSCHEDULER else { return Reading::Missing(Missing::NotSupported) };
    let param = SchedParam { sched_priority: 1 };
    let this_thread: c_int = 0;
    #[expect(unsafe_code, reason = "no safe wrapper offers sched_setscheduler; the parameter outlives the call, which only reads it")]
    // SAFETY: the arguments are those of sched_setscheduler(2), and the pointer is to a live `sched_param`.
    let result = unsafe { syscall(number, this_thread, SCHED_RR | SCHED_RESET_ON_FORK, &raw const param) };
    if result == 0 {
        return Reading::Seen(Scheduling::RoundRobin { priority: param.sched_priority });
    }
    let error = io::Error::last_os_error();
    Reading::Missing(match error.kind() {
        io::ErrorKind::PermissionDenied => Missing::Denied,
        io::ErrorKind::Unsupported => Missing::NotSupported,
        _ => Missing::Failed(error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_thread_got_is_what_the_kernel_says() {
        std::thread::spawn(|| {
            let got = raise_priority();
            let tid = rustix::thread::gettid().as_raw_nonzero().get();
            let stat = procfs::process::Process::myself().unwrap().task_from_tid(tid).unwrap().stat().unwrap();
            match got {
                Reading::Seen(Scheduling::RoundRobin { priority }) => {
                    assert_eq!((stat.policy, stat.rt_priority), (Some(2), Some(1)));
                    assert_eq!(priority, 1);
                    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
                    let pid = i32::try_from(child.id()).unwrap();
                    let policy = procfs::process::Process::new(pid).unwrap().stat().unwrap().policy;
                    child.kill().unwrap();
                    child.wait().unwrap();
                    assert_eq!(policy, Some(0), "a child must not inherit it");
                }
                Reading::Missing(why) => {
                    assert_eq!(stat.policy, Some(0), "{why}");
                    println!("NOT RUN real-time priority: {why}");
                }
            }
        })
        .join()
        .unwrap();
    }
}
