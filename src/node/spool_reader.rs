//! Makes the calls that hooks could not make while the agent was away: at start, and every ten seconds. Each counts as said by its
//! file's owner, is checked as if that user had called, and its file goes once the call is decided.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::oneshot;

use super::access::{Access, Ask, Who};
use super::defence::{Defence, stands};
use super::handle::{Caller, Handle, Inbox};
use super::spool::{Call, Spool, Spooled};
use crate::domain::agent::start::Reply;
use crate::domain::id::{JobName, Uid};
use crate::domain::job::Ending;
use crate::domain::request::Place;
use crate::domain::time::Wall;

/// Between two looks into the directory.
const EVERY: Duration = Duration::from_secs(10);
/// Refusals that pass: the call is made again at the next look.
const PASSING: [&str; 4] = ["busy", "journal_full", "authority_unreachable", "no_rate_card"];

/// Attends to the directory until the loop has ended.
pub async fn attend(path: PathBuf, access: Access, handle: Handle) {
    loop {
        match Spool::open(&path) {
            Ok(spool) => look(&spool, &access, &handle).await,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(event = "spool_refused", path = %path.display(), %error),
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn look(spool: &Spool, access: &Access, handle: &Handle) {
    let found = match spool.read() {
        Ok(found) => found,
        Err(error) => return tracing::warn!(event = "spool_unreadable", %error),
    };
    for call in found {
        let file = match &call {
            Ok(spooled) => spooled.file.clone(),
            Err(rejected) => rejected.file.clone(),
        };
        let decided = match call {
            Ok(spooled) => make(spooled, access, handle).await,
            Err(rejected) => {
                tracing::warn!(event = "spool_rejected", %rejected);
                Decided::Yes
            }
        };
        if decided == Decided::Yes
            && let Err(error) = spool.remove(&file)
        {
            tracing::warn!(event = "spool_left", %file, %error);
        }
    }
}

/// Is the call done with?
#[derive(PartialEq, Eq)]
enum Decided {
    Yes,
    NotYet,
}

async fn make(spooled: Spooled, access: &Access, handle: &Handle) -> Decided {
    let Spooled { file, owner, at, call } = spooled;
    if matches!(&call, Call::Start(request) if is_begun(handle, &request.job, at)) {
        return Decided::Yes; // its hook was ended after it had called, before it knew the answer
    }
    let owner = if stands(Defence::SpoolOwner) { owner } else { Uid::ROOT };
    let who = Who::Local { uid: owner, groups: Vec::new() };
    let allowed = match &call {
        Call::Start(request) => access.check(&who, Ask::Start(request)),
        Call::Change(..) | Call::Report(..) => access.check(&who, Ask::Change),
        Call::Stop(name, stop) => {
            let named = access.check(&who, Ask::Stop(name, owner_of(handle, name.as_str())));
            named.and_then(|()| access.check(&who, Ask::State(stop.outcome)))
        }
    };
    if matches!(&call, Call::Start(request) if request.place == Place::Own) {
        // The caller's process goes into an own cgroup, and this call's caller is gone.
        tracing::warn!(event = "spool_not_permitted", %file, uid = owner.0, code = "own_needs_its_caller");
        return Decided::Yes;
    }
    if let Err(refusal) = allowed {
        tracing::warn!(event = "spool_not_permitted", %file, uid = owner.0, code = %refusal.code);
        return Decided::Yes;
    }
    let (reply, answer) = oneshot::channel();
    let message = match call {
        Call::Start(request) => Inbox::Start { request, caller: Caller { uid: owner, pid: std::process::id(), pidfd: None }, reply },
        Call::Change(name, request) => Inbox::Change { name, request, by: owner, reply },
        Call::Report(name, report) => Inbox::Report { name, report, reply },
        Call::Stop(name, stop) => Inbox::Stop { name, ending: Ending { outcome: stop.outcome, exit_code: stop.exit_code }, reply },
    };
    if handle.put(message).is_err() {
        return Decided::NotYet;
    }
    match answer.await {
        Ok(Reply::Refused(refusal)) if PASSING.contains(&refusal.code.as_str()) => Decided::NotYet,
        Ok(Reply::Refused(refusal)) => {
            tracing::warn!(event = "spool_call_refused", %file, code = %refusal.code, message = %refusal.message);
            Decided::Yes
        }
        Ok(_) => Decided::Yes,
        Err(_) => Decided::NotYet,
    }
}

/// Is there an attempt of this name that began after that start was called for?
fn is_begun(handle: &Handle, job: &JobName, at: Wall) -> bool {
    let picture = handle.picture();
    picture.view.iter().flat_map(|view| &view.jobs).any(|view| view.job == *job && at <= view.opened.0)
}

fn owner_of(handle: &Handle, job: &str) -> Option<Uid> {
    let picture = handle.picture();
    picture.view.as_ref()?.jobs.iter().find(|view| view.job.as_str() == job).map(|view| view.owner_uid)
}
