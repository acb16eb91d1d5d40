//! What the agent and systemd say to each other (`sd_notify(3)`, `sd_listen_fds(3)`). Without systemd every call does nothing.

use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use sd_notify::NotifyState;

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(event = "sd_notify", %error);
    }
}

/// The first tick is published.
pub fn ready() {
    notify(&[NotifyState::Ready, NotifyState::Status("metering")]);
}

/// A tick has gone through: the watchdog may go on waiting.
pub fn alive() {
    notify(&[NotifyState::Watchdog]);
}

/// The configuration is being read again. A [`ready`] follows.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(event = "sd_notify", %error),
    }
}

/// The agent is ending.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// The folder that systemd made for this service (`RuntimeDirectory=`), if it did.
#[must_use]
pub fn runtime_dir() -> Option<PathBuf> {
    std::env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from)
}

/// The socket that systemd holds for the local API (`FileDescriptorName=api`), if it does.
#[must_use]
pub fn unix_listener() -> Option<UnixListener> {
    held("api").map(UnixListener::from)
}

/// The port that systemd holds for the status endpoint (`FileDescriptorName=status`), if it does.
#[must_use]
pub fn tcp_listener() -> Option<TcpListener> {
    held("status").map(TcpListener::from)
}

/// Closes what waits at those sockets unanswered, where this process ends without having served them. What is left waiting there, its
/// callers long gone, would have systemd start the agent again and again, whatever the unit says of restarts.
pub fn turn_away() {
    if TAKEN.load(Ordering::Relaxed) {
        return;
    }
    // Both are taken before one is closed: the list can be read only while all of them are open.
    let (unix, tcp) = (unix_listener(), tcp_listener());
    if let Some(listener) = unix.filter(|listener| listener.set_nonblocking(true).is_ok()) {
        while listener.accept().is_ok() {}
    }
    if let Some(listener) = tcp.filter(|listener| listener.set_nonblocking(true).is_ok()) {
        while listener.accept().is_ok() {}
    }
}

/// Whether a socket was asked for: its descriptor may be another file's by now.
static TAKEN: AtomicBool = AtomicBool::new(false);

fn held(name: &str) -> Option<OwnedFd> {
    let (fd, _) = sd_notify::listen_fds_with_names().ok()?.find(|(_, held)| held == name)?;
    TAKEN.store(true, Ordering::Relaxed);
    #[expect(unsafe_code, reason = "systemd passes the descriptor to this process alone, and each name is asked for once, at start")]
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    Some(owned)
}
