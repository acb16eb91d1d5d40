//! Who is at the other end of a connection, and how long it may take.
//!
//! A connection must have sent its whole request ten seconds after it was accepted or last answered, and must take its answer as fast.
//! Connections are bounded in all, for each ordinary user, and over TCP for each address and all of them together, so that nobody can keep
//! hooks and operators out.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::domain::id::Uid;
use crate::node::access::{Access, Standing, Who};
use crate::node::defence::{Defence, stands};

/// How long a request may take to come, an answer to go, and a connection to be idle.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections of ordinary users and strangers together; operators and hooks have as many again on top.
const ORDINARY_MAX: usize = 192;
/// Connections of hooks and operators.
const TRUSTED_MAX: usize = 64;
/// Connections of one ordinary user, or of one address.
const EACH_MAX: usize = 32;
/// Connections over TCP: whoever has one loopback address has all of them.
const STRANGERS_MAX: usize = 64;

/// The other end of one connection.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) who: Who,
    /// Its process; none over TCP.
    pub(super) local: Option<Arc<LocalPeer>>,
    pub(super) guest: Guest,
    pub(super) activity: Arc<Activity>,
}

/// To whom connections and calls are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Guest {
    /// At the socket: the kernel says who it is.
    User(Uid),
    /// Over TCP: nobody knows more than from where.
    Address(IpAddr),
}

/// A process on this machine.
#[derive(Debug)]
pub(super) struct LocalPeer {
    pub(super) uid: Uid,
    pub(super) pid: u32,
    /// That very process; none where the kernel has no pidfds.
    pub(super) pidfd: Option<OwnedFd>,
}

/// Counts the calls that are being worked on: meanwhile the caller owes nothing.
#[derive(Debug, Default)]
pub(super) struct Activity(AtomicUsize);

impl Activity {
    pub(super) fn handling(self: &Arc<Activity>) -> Handling {
        self.0.fetch_add(1, Ordering::Relaxed);
        Handling(Arc::clone(self))
    }

    fn is_idle(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

/// While it lives, a call is being worked on.
pub(super) struct Handling(Arc<Activity>);

impl Drop for Handling {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Open connections, by who holds them.
#[derive(Debug, Default)]
pub(super) struct Doors(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    trusted: usize,
    ordinary: usize,
    strangers: usize,
    each: BTreeMap<Guest, usize>,
}

/// One open connection; dropping it gives its place back.
#[derive(Debug)]
pub(super) struct Place {
    doors: Arc<Doors>,
    holder: Holder,
}

#[derive(Clone, Copy, Debug)]
enum Holder {
    Trusted,
    Ordinary(Guest),
}

impl Doors {
    fn enter(self: &Arc<Doors>, holder: Holder) -> Option<Place> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room_for = |key| open.each.get(&key).copied().unwrap_or(0) < EACH_MAX || !stands(Defence::ConnectionsEach);
        let is_stranger = matches!(holder, Holder::Ordinary(Guest::Address(_)));
        let in_all = open.ordinary < ORDINARY_MAX && (!is_stranger || open.strangers < STRANGERS_MAX);
        let room = in_all || !stands(Defence::ConnectionsInAll);
        match holder {
            Holder::Trusted if open.trusted < TRUSTED_MAX => open.trusted += 1,
            Holder::Ordinary(key) if room && room_for(key) => {
                open.ordinary += 1;
                open.strangers += usize::from(is_stranger);
                *open.each.entry(key).or_default() += 1;
            }
            _ => return None,
        }
        Some(Place { doors: Arc::clone(self), holder })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.doors.0.lock().unwrap_or_else(PoisonError::into_inner);
        match self.holder {
            Holder::Trusted => open.trusted -= 1,
            Holder::Ordinary(key) => {
                open.ordinary -= 1;
                open.strangers -= usize::from(matches!(key, Guest::Address(_)));
                if let Some(count) = open.each.get_mut(&key) {
                    *count -= 1;
                    if *count == 0 {
                        open.each.remove(&key);
                    }
                }
            }
        }
    }
}

/// Accepts on the Unix socket.
pub(super) struct UnixDoor {
    listener: tokio::net::UnixListener,
    doors: Arc<Doors>,
    access: Access,
}

/// Accepts on TCP.
pub(super) struct TcpDoor {
    listener: tokio::net::TcpListener,
    doors: Arc<Doors>,
}

impl UnixDoor {
    pub(super) fn new(listener: tokio::net::UnixListener, doors: Arc<Doors>, access: Access) -> UnixDoor {
        UnixDoor { listener, doors, access }
    }
}

impl TcpDoor {
    pub(super) fn new(listener: tokio::net::TcpListener, doors: Arc<Doors>) -> TcpDoor {
        TcpDoor { listener, doors }
    }
}

impl Listener for UnixDoor {
    type Io = Timed<tokio::net::UnixStream>;
    type Addr = Peer;

    async fn accept(&mut self) -> (Self::Io, Peer) {
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    wait_after(&error).await;
                    continue;
                }
            };
            let Some((who, local)) = credentials(&stream) else { continue };
            let guest = Guest::User(local.uid);
            let holder = match self.access.standing(&who) {
                Standing::Hook | Standing::Operator => Holder::Trusted,
                Standing::User | Standing::Stranger => Holder::Ordinary(guest),
            };
            // Beyond its bound a connection is closed unheard: an answer would need a place too.
            let Some(place) = self.doors.enter(holder) else { continue };
            let activity = Arc::new(Activity::default());
            let peer = Peer { who, local: Some(Arc::new(local)), guest, activity: Arc::clone(&activity) };
            return (Timed::new(stream, place, activity), peer);
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Listener for TcpDoor {
    type Io = Timed<tokio::net::TcpStream>;
    type Addr = Peer;

    async fn accept(&mut self) -> (Self::Io, Peer) {
        loop {
            let (stream, guest) = match self.listener.accept().await {
                Ok((stream, address)) => (stream, Guest::Address(address.ip().to_canonical())),
                Err(error) => {
                    wait_after(&error).await;
                    continue;
                }
            };
            let Some(place) = self.doors.enter(Holder::Ordinary(guest)) else { continue };
            let activity = Arc::new(Activity::default());
            let peer = Peer { who: Who::Stranger, local: None, guest, activity: Arc::clone(&activity) };
            return (Timed::new(stream, place, activity), peer);
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Connected<IncomingStream<'_, UnixDoor>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixDoor>) -> Peer {
        stream.remote_addr().clone()
    }
}

impl Connected<IncomingStream<'_, TcpDoor>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TcpDoor>) -> Peer {
        stream.remote_addr().clone()
    }
}

/// Without descriptors or memory the next accept would fail at once, and so on: give others time to end.
async fn wait_after(error: &io::Error) {
    let passing = [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset, io::ErrorKind::ConnectionRefused];
    if !passing.contains(&error.kind()) {
        tracing::warn!(%error, "cannot accept a connection");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Who connected (`SO_PEERCRED`), with its pidfd and groups; none if that process is gone, or its pid is another's by now.
fn credentials(stream: &tokio::net::UnixStream) -> Option<(Who, LocalPeer)> {
    let peer = stream.peer_cred().ok()?;
    let pid = peer.pid().filter(|pid| 0 < *pid)?;
    let uid = Uid(peer.uid());
    let pidfd = match pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()) {
        Ok(pidfd) => Some(pidfd),
        Err(rustix::io::Errno::NOSYS) => None,
        Err(_) => return None,
    };
    // The group list is of the process with this pid now; that it is still the caller is checked after it was read.
    let status = procfs::process::Process::new(pid).and_then(|process| process.status()).ok()?;
    if status.euid != uid.0 || pidfd.as_ref().is_some_and(has_ended) {
        return None;
    }
    let mut groups = status.groups;
    groups.push(peer.gid());
    Some((Who::Local { uid, groups }, LocalPeer { uid, pid: u32::try_from(pid).ok()?, pidfd }))
}

/// A pidfd becomes readable when its process ends.
fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut wanted = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut wanted, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) != Ok(0)
}

/// A stream that gives up on a peer that keeps it waiting.
pub(super) struct Timed<S> {
    stream: S,
    _place: Place,
    activity: Arc<Activity>,
    patience: Pin<Box<Sleep>>,
}

impl<S> Timed<S> {
    fn new(stream: S, place: Place, activity: Arc<Activity>) -> Timed<S> {
        Timed { stream, _place: place, activity, patience: Box::pin(tokio::time::sleep(PATIENCE)) }
    }

    fn renew(&mut self) {
        self.patience.as_mut().reset(Instant::now() + PATIENCE);
    }

    /// Pending, or an error once the peer has kept us waiting too long. While a call is worked on it is we who are slow.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            ready!(self.patience.as_mut().poll(context));
            if self.activity.is_idle() && stands(Defence::Patience) {
                return Poll::Ready(io::ErrorKind::TimedOut.into());
            }
            self.renew();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            // Bytes that trickle in do not renew the patience: only a finished request, by its answer, does.
            Poll::Pending => self.wait(context).map(Err),
            done @ Poll::Ready(_) => done,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(context, bytes) {
            Poll::Pending => self.wait(context).map(Err),
            Poll::Ready(Ok(count)) => {
                self.renew();
                Poll::Ready(Ok(count))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u8) -> Guest {
        Guest::Address(IpAddr::from([127, 0, 0, number]))
    }

    #[test]
    fn one_address_cannot_take_every_connection_of_strangers_nor_all_of_them_those_of_users() {
        let doors = Arc::new(Doors::default());
        let enter = |number| doors.enter(Holder::Ordinary(address(number)));
        let one: Vec<Place> = std::iter::from_fn(|| enter(1)).collect();
        assert_eq!(one.len(), EACH_MAX);
        let others: Vec<Place> = (2..50).flat_map(|number| (0..EACH_MAX).map(move |_| number)).filter_map(enter).collect();
        assert_eq!(one.len() + others.len(), STRANGERS_MAX);
        assert!(doors.enter(Holder::Ordinary(Guest::User(Uid(1)))).is_some());
        drop(others);
        assert!(enter(3).is_some());
    }

    #[test]
    fn one_user_cannot_take_every_connection() {
        let doors = Arc::new(Doors::default());
        let one: Vec<Place> = std::iter::from_fn(|| doors.enter(Holder::Ordinary(Guest::User(Uid(1))))).collect();
        assert_eq!(one.len(), EACH_MAX);
        let others: Vec<Place> = (2..50_u32)
            .flat_map(|uid| (0..EACH_MAX).map(move |_| uid))
            .filter_map(|uid| doors.enter(Holder::Ordinary(Guest::User(Uid(uid)))))
            .collect();
        assert_eq!(one.len() + others.len(), ORDINARY_MAX);
        assert!(doors.enter(Holder::Ordinary(address(1))).is_none());
        assert!(doors.enter(Holder::Trusted).is_some(), "hooks and operators still come in");
        drop(one);
        assert!(doors.enter(Holder::Ordinary(Guest::User(Uid(1)))).is_some());
    }
}
