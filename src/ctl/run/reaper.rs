//! Where no cgroup can be made, a job is a process tree, and a process that is orphaned would leave it. So the child that asked the agent
//! does not become the command: it stays above it as the *subreaper* of all that the command starts (`PR_SET_CHILD_SUBREAPER`). Whatever
//! is orphaned, in whichever session, becomes a child of this process, which is the tree's root, and what it used is in this process's
//! `cutime` once it has been waited for. It ends when the last of them has.
//!
//! It hands the command to its parent as a pidfd, which signals it directly. Where this process is killed, its children become those of
//! that parent, which ends them: who takes the root of its job away ends the job.

use std::ffi::OsString;
use std::io::{IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use procfs::process::all_processes;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{DumpableBehavior, Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, set_dumpable_behavior, wait};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};

use super::super::complain;
use super::super::exit::Exit;
use super::not_run;
use crate::node::process_tree::adopt_orphans;

/// The word that the command's pidfd comes with.
const KEPT: &[u8] = b"kept\n";
/// Before the exit status, as wait(2) gives it.
const ENDED: &str = "ended ";
/// For how long the orphans of a killed reaper are killed.
const ORPHANS_WITHIN: Duration = Duration::from_secs(10);

/// Runs the command below this process, tells the parent, and stays until the last descendant has ended.
pub(super) fn keep(mut parent: UnixStream, command: &[OsString]) -> ExitCode {
    let Some((program, rest)) = command.split_first() else { return Exit::Failed.into() };
    let child = match prepare().and_then(|()| Command::new(program).args(rest).spawn()) {
        Ok(child) => child,
        Err(error) => return not_run(&mut parent, program, &error),
    };
    if let Err(error) = tell(&parent, &child) {
        complain(&format!("the parent is gone: {error}"));
    }
    reap(parent, Pid::from_child(&child));
    Exit::Done.into()
}

fn prepare() -> std::io::Result<()> {
    adopt_orphans()?;
    // Nobody traces it into letting go. (It has no secrets; a process that may not be traced may not dump core either.)
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // What is sent to the whole group, or to the whole job, is for the command. These handlers do nothing; the command begins without them.
    for number in [SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGINT, SIGQUIT] {
        signal_hook::flag::register(number, Arc::new(AtomicBool::new(false)))?;
    }
    Ok(())
}

fn tell(parent: &UnixStream, child: &Child) -> std::io::Result<()> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    let descriptors = [pidfd.as_fd()];
    message.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(parent, &[IoSlice::new(KEPT)], &mut message, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Waits for every descendant; says how the command ended.
fn reap(parent: UnixStream, command: Pid) {
    let mut parent = Some(parent);
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == command => {
                if let Some(mut parent) = parent.take() {
                    // A parent that is gone reports nothing.
                    let _ = parent.write_all(format!("{ENDED}{}\n", status.as_raw()).as_bytes());
                }
                let_go_of_the_terminal();
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// Who waits for the end of what the command wrote must not wait for this process.
fn let_go_of_the_terminal() {
    if let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}

/// What the parent has heard so far.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) text: String,
    /// The command, where a reaper stands above it.
    pub(super) command: Option<OwnedFd>,
}

impl Heard {
    /// Waits for more; false if nothing more comes.
    pub(super) fn more(&mut self, stream: &UnixStream) -> bool {
        let mut bytes = [0_u8; 128];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut messages = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut messages, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                received => break received,
            }
        };
        for message in messages.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.command = descriptors.last();
            }
        }
        let count = received.map_or(0, |received| received.bytes);
        self.text.push_str(&String::from_utf8_lossy(&bytes[..count]));
        count != 0
    }

    /// How the command ended, once the reaper has said so.
    pub(super) fn ended(&self) -> Option<ExitStatus> {
        let line = self.text.split_inclusive('\n').find_map(|line| line.strip_prefix(ENDED)?.strip_suffix('\n'))?;
        line.parse().ok().map(ExitStatus::from_raw)
    }
}

/// Kills what came to this process when the reaper below it was killed.
pub(super) fn end_orphans() {
    let until = Instant::now() + ORPHANS_WITHIN;
    loop {
        let me = rustix::process::getpid();
        for process in all_processes().into_iter().flatten().flatten() {
            // A child of this process keeps its pid until this process has waited for it.
            if process.stat().is_ok_and(|stat| Pid::from_raw(stat.ppid) == Some(me))
                && let Some(pid) = Pid::from_raw(process.pid)
            {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
        if until < Instant::now() {
            return complain("the command's reaper was killed, and not all of its processes end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_and_its_end_come_through_the_socket() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut heard = Heard::default();
        tell(&there, &child).unwrap();
        assert!(heard.more(&here));
        rustix::process::pidfd_send_signal(heard.command.take().unwrap(), Signal::KILL).unwrap();
        let status = child.wait().unwrap();
        (&there).write_all(format!("{ENDED}{}\n", status.into_raw()).as_bytes()).unwrap();
        drop(there);
        assert_eq!(heard.ended(), None);
        while heard.more(&here) {}
        assert_eq!(heard.ended().and_then(|status| status.signal()), Some(9));
    }
}
