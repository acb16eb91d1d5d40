//! What the agent and systemd say to each other (`sd_notify(3)`, `sd_listen_fds(3)`). Without systemd every call does nothing.

use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

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

fn held(name: &str) -> Option<OwnedFd> {
    let (fd, _) = sd_notify::listen_fds_with_names().ok()?.find(|(_, held)| held == name)?;
    #[expect(unsafe_code, reason = "systemd passes the descriptor to this process alone, and each name is asked for once, at start")]
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    Some(owned)
}
