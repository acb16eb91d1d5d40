//! Tells at once when a job has no tasks left, so that the final reading comes before the scheduler removes its cgroup.
//!
//! One thread waits by epoll on `cgroup.events` (`EPOLLPRI`) and, for process trees, on the root's pidfd. It only hastens the next look: the
//! kernel holds a second notification of one file back for about 10 ms, and a cgroup that is removed within that time notifies no more.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::cgroup_dir::{self, OpenError, missing_for, read_events};
use super::descriptors::{Place, Room};
use super::layout::{Hierarchy, Layout};
use super::priority::raise_priority;
use super::process_tree::ProcessTrees;
use super::slurm;
use crate::domain::act::{CgroupDir, ProcessRoot, Target};
use crate::domain::id::Attempt;
use crate::domain::meter::{Missing, Populated};

/// The token of the descriptor that wakes the thread to end it.
const END: u64 = 0;

/// The thread that waits. Dropping it ends the thread.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    layout: Option<Arc<Layout>>,
    trees: ProcessTrees,
    thread: Option<JoinHandle<()>>,
    room: Arc<Room>,
}

#[derive(Debug)]
struct Shared {
    epoll: OwnedFd,
    end: OwnedFd,
    watched: Mutex<Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    last_token: u64,
    spots: BTreeMap<u64, Spot>,
    tokens: BTreeMap<Attempt, Vec<u64>>,
    /// Jobs of which something was notified since that was last asked.
    changed: BTreeSet<Attempt>,
}

/// One descriptor.
#[derive(Debug)]
struct Spot {
    attempt: Attempt,
    fd: OwnedFd,
    kind: Kind,
    populated: Populated,
    _place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Events,
    Process,
}

impl Watch {
    /// Starts the thread. `on_empty` is called on it when the last task of a job has ended, its cgroup has gone, or the root of its process
    /// tree has ended (others of the tree may live on). A job that is empty when it is added is not called until it has had tasks.
    ///
    /// # Errors
    /// When the kernel gives no thread or descriptor.
    pub fn start(
        layout: Option<Arc<Layout>>,
        trees: ProcessTrees,
        mut on_empty: impl FnMut(Attempt) + Send + 'static,
    ) -> io::Result<Watch> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let end = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &end, epoll::EventData::new_u64(END), epoll::EventFlags::IN)?;
        let shared = Arc::new(Shared { epoll, end, watched: Mutex::default() });
        let waiting = Arc::clone(&shared);
        let run = move || {
            // As good as it gets: without it the call only comes later.
            let _ = raise_priority();
            waiting.run(&mut on_empty);
        };
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(run)?;
        Ok(Watch { shared, layout, trees, thread: Some(thread), room: Room::within_limit() })
    }

    /// The same watcher, keeping only descriptors for which there is room.
    #[must_use]
    pub fn within(mut self, room: Arc<Room>) -> Watch {
        self.room = room;
        self
    }

    /// Watches a job from now on. Adding it again replaces what was watched for it.
    ///
    /// # Errors
    /// Why it cannot be watched: [`Missing::NotYet`] for a Slurm job whose cgroup is not there, [`Missing::Vanished`],
    /// [`Missing::Replaced`], [`Missing::NotSupported`] where there is no cgroup2 directory; and when there is no room for a descriptor.
    pub fn add(&self, attempt: Attempt, target: &Target) -> Result<(), Missing> {
        let found = match target {
            Target::Cgroups(dirs) | Target::OwnCgroups(dirs) => self.open_events(dirs)?,
            Target::SlurmJob(job) => {
                let layout = self.layout.as_ref().ok_or(Missing::NotSupported)?;
                let dirs = slurm::scopes(layout).and_then(|scopes| slurm::job_dirs(&scopes, job)).map_err(missing_for)?;
                let files: Vec<OwnedFd> = dirs.iter().filter_map(|dir| dir.file("cgroup.events").ok()).collect();
                if files.is_empty() { Err(Missing::NotYet) } else { Ok(files) }?
            }
            Target::Processes(root) => return self.add_process(attempt, *root),
        };
        let mut spots = Vec::new();
        for fd in found {
            let populated = read_events(&fd)?.populated;
            spots.push(Spot { attempt, fd, kind: Kind::Events, populated, _place: self.place()? });
        }
        self.shared.replace(attempt, spots)
    }

    fn open_events(&self, dirs: &[CgroupDir]) -> Result<Vec<OwnedFd>, Missing> {
        let layout = self.layout.as_ref().ok_or(Missing::NotSupported)?;
        let (mut files, mut gone) = (Vec::new(), None);
        for dir in dirs {
            match cgroup_dir::open(layout, dir) {
                Ok(open) if open.hierarchy == Hierarchy::V2 => files.push(open.file("cgroup.events").map_err(missing_for)?),
                Ok(_) => {}
                Err(why @ (OpenError::Vanished | OpenError::Replaced)) => gone = Some(Missing::from(why)),
                // One that is there and not watched would change untold.
                Err(why) => return Err(why.into()),
            }
        }
        if files.is_empty() { Err(gone.unwrap_or(Missing::NotSupported)) } else { Ok(files) }
    }

    fn add_process(&self, attempt: Attempt, root: ProcessRoot) -> Result<(), Missing> {
        let pid = i32::try_from(root.pid).ok().and_then(Pid::from_raw).ok_or(Missing::Malformed)?;
        let fd = pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| match errno {
            Errno::SRCH => Missing::Vanished,
            Errno::NOSYS => Missing::NotSupported,
            errno => missing_for(errno),
        })?;
        // The descriptor holds the process; the start time proves that it is the one that was named.
        if self.trees.identify(root.pid)? != root {
            return Err(Missing::Replaced);
        }
        let spot = Spot { attempt, fd, kind: Kind::Process, populated: Populated::Yes, _place: self.place()? };
        self.shared.replace(attempt, vec![spot])
    }

    fn place(&self) -> Result<Place, Missing> {
        self.room.take().ok_or_else(|| Missing::Failed("no descriptor is left to watch it with".to_owned()))
    }

    /// The jobs whose `cgroup.events` have changed since the last call. A change is named here only once the notification is armed
    /// again, so whoever reads the file after this call misses nothing.
    #[must_use]
    pub fn take_changed(&self) -> Vec<Attempt> {
        let mut watched = self.shared.lock();
        std::mem::take(&mut watched.changed).into_iter().collect()
    }

    /// Watches it no more.
    pub fn remove(&self, attempt: Attempt) {
        self.shared.lock().forget(attempt);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // An eventfd that counts to one cannot be full.
        let _ = rustix::io::write(&self.shared.end, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Watched {
    fn forget(&mut self, attempt: Attempt) {
        // Closing the descriptor takes it out of the epoll set: it is never duplicated.
        for token in self.tokens.remove(&attempt).unwrap_or_default() {
            self.spots.remove(&token);
        }
        self.changed.remove(&attempt);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replace(&self, attempt: Attempt, spots: Vec<Spot>) -> Result<(), Missing> {
        let mut watched = self.lock();
        watched.forget(attempt);
        for spot in spots {
            watched.last_token += 1;
            let token = watched.last_token;
            let interest = match spot.kind {
                Kind::Events => epoll::EventFlags::PRI,
                Kind::Process => epoll::EventFlags::IN,
            };
            epoll::add(&self.epoll, &spot.fd, epoll::EventData::new_u64(token), interest).map_err(missing_for)?;
            watched.spots.insert(token, spot);
            watched.tokens.entry(attempt).or_default().push(token);
        }
        Ok(())
    }

    fn run(&self, on_empty: &mut impl FnMut(Attempt)) {
        let mut events = Vec::with_capacity(256);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                // The descriptor is ours and open: the kernel has no other error to give.
                Err(_) => return,
            }
            for event in &events {
                let token = event.data.u64();
                if token == END {
                    return;
                }
                // Never called under the lock: it may add or remove jobs.
                if let Some(attempt) = self.seen(token) {
                    on_empty(attempt);
                }
            }
        }
    }

    /// Takes in a notification; returns the job if it is empty from now on.
    fn seen(&self, token: u64) -> Option<Attempt> {
        let mut watched = self.lock();
        let spot = watched.spots.get_mut(&token)?;
        let attempt = spot.attempt;
        let before = spot.populated;
        let now = match spot.kind {
            Kind::Process => None,
            // The reading also re-arms the notification.
            Kind::Events => read_events(&spot.fd).ok().map(|events| events.populated),
        };
        spot.populated = now.unwrap_or(Populated::No);
        if now.is_none() {
            watched.spots.remove(&token);
        }
        watched.changed.insert(attempt);
        let tokens = watched.tokens.get(&attempt).map_or(&[][..], Vec::as_slice);
        let others_live = tokens.iter().filter_map(|token| watched.spots.get(token)).any(|spot| spot.populated == Populated::Yes);
        let fell = now.is_none() || (before == Populated::Yes && now == Some(Populated::No));
        (fell && !others_live).then_some(attempt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[test]
    fn the_end_of_a_process_trees_root_is_told() {
        let trees = ProcessTrees::default();
        let (sender, receiver) = channel();
        let watch = Watch::start(None, trees.clone(), move |attempt| sender.send(attempt).unwrap()).unwrap();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        watch.add(Attempt(7), &Target::Processes(trees.identify(child.id()).unwrap())).unwrap();
        child.kill().unwrap();
        assert_eq!(receiver.recv_timeout(Duration::from_mins(1)), Ok(Attempt(7)));
        child.wait().unwrap();
    }

    #[test]
    fn a_process_that_took_the_pid_of_another_is_not_watched() {
        let trees = ProcessTrees::default();
        let watch = Watch::start(None, trees.clone(), |_| ()).unwrap();
        let mut other = trees.identify(std::process::id()).unwrap();
        other.start_ticks += 1;
        assert_eq!(watch.add(Attempt(1), &Target::Processes(other)), Err(Missing::Replaced));
    }

    #[test]
    fn without_a_cgroup_file_system_a_cgroup_cannot_be_watched() {
        let watch = Watch::start(None, ProcessTrees::default(), |_| ()).unwrap();
        let dir = CgroupDir { path: "/sys/fs/cgroup/x".into(), inode: 1 };
        assert_eq!(watch.add(Attempt(1), &Target::Cgroups(vec![dir])), Err(Missing::NotSupported));
    }
}
