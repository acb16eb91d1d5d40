//! Who may do what on the local API, as a table.
//!
//! | | stranger (TCP) | user | hook | operator |
//! |---|---|---|---|---|
//! | probes, metrics, aggregate status | yes | yes | yes | yes |
//! | per-account metrics | | | | yes |
//! | jobs and receipts | | own | all | all |
//! | accounts, ledger | | mapped to the uid | mapped to the uid | all |
//! | start | | own place, own name, no GPU, mapped account, for itself | all | all |
//! | stop | | own | all | all |
//! | change, count | | | all | all |
//! | accounts, credit, enforcement: change | | | | yes |
//!
//! Operators are root, the uid that the agent runs as, and the members of the operators' group. GPUs are named by hooks and operators
//! alone: holding a device is billed to whoever names it, and only the scheduler knows who was given which.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::agent::start::Refusal;
use crate::domain::id::{AccountId, JobName, Uid};
use crate::domain::outcome::Outcome;
use crate::domain::request::{Place, StartRequest};
use crate::node::defence::{Defence, stands};

/// The configured part of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// The user that the agent runs as: it owns the agent, so it is an operator.
    pub agent: Uid,
    /// The group whose members are operators.
    pub operators_gid: Option<u32>,
    /// Users whose scheduler hooks start and stop any job.
    pub hooks: BTreeSet<Uid>,
    /// The accounts that each user may charge and see.
    pub accounts: BTreeMap<Uid, BTreeSet<AccountId>>,
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// Somebody over TCP: no credentials.
    Stranger,
    /// A process on this machine, as the kernel says.
    Local {
        /// Its effective user.
        uid: Uid,
        /// Its groups, the primary one included.
        groups: Vec<u32>,
    },
}

/// The columns of the table, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Without credentials.
    Stranger,
    /// An ordinary user.
    User,
    /// A scheduler's hook.
    Hook,
    /// Root, the agent's own user, or a member of the operators' group.
    Operator,
}

/// What is asked for; the rows of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask<'a> {
    /// Is it alive, and how many of what: nothing of anybody in particular.
    Aggregates,
    /// Metrics with an account's name in a label.
    AccountMetrics,
    /// Some jobs; which ones tells [`Access::sees_job`].
    Jobs,
    /// Some accounts; which ones tells [`Access::sees_account`].
    Accounts,
    /// To start a job.
    Start(&'a StartRequest),
    /// To stop a job, with its owner if the agent knows it.
    Stop(&'a JobName, Option<Uid>),
    /// To give a job something else, or to report what it counts: both have a price.
    Change,
    /// To say that a job ended so.
    State(Outcome),
    /// To change accounts, credit or the mode of enforcement.
    Administer,
}

impl Access {
    /// In which column somebody stands.
    #[must_use]
    pub fn standing(&self, who: &Who) -> Standing {
        match who {
            Who::Stranger => Standing::Stranger,
            Who::Local { uid, groups } => {
                let member = self.operators_gid.is_some_and(|gid| groups.contains(&gid));
                if *uid == Uid::ROOT || *uid == self.agent || member {
                    Standing::Operator
                } else if self.hooks.contains(uid) {
                    Standing::Hook
                } else {
                    Standing::User
                }
            }
        }
    }

    /// May they?
    ///
    /// # Errors
    /// Why not, and what to do about it. Everything but the aggregates is refused to a stranger with `socket_only`.
    pub fn check(&self, who: &Who, ask: Ask<'_>) -> Result<(), Refusal> {
        let standing = self.standing(who);
        match (who, ask) {
            (_, Ask::Aggregates) => Ok(()),
            (Who::Stranger, _) if stands(Defence::SocketOnly) => Err(socket_only()),
            (_, Ask::Jobs | Ask::Accounts) => Ok(()),
            (_, Ask::AccountMetrics) if standing == Standing::Operator || !stands(Defence::AccountMetrics) => Ok(()),
            (_, Ask::Administer) if standing == Standing::Operator || !stands(Defence::Administer) => Ok(()),
            (_, Ask::AccountMetrics | Ask::Administer) => Err(not_permitted(
                "this is for root and the operators' group",
                "run it as root, or as a member of the group named by operators_group in meterd.toml",
            )),
            (_, Ask::Start(_) | Ask::Stop(..) | Ask::Change) if Standing::Hook <= standing => Ok(()),
            (_, Ask::State(outcome)) if Standing::Hook <= standing || !outcome.is_for_hooks() => Ok(()),
            (_, Ask::State(_)) => Err(not_permitted(
                "only root, operators and scheduler hooks may say so: a rate card may make it free",
                "cancelled, failed, completed, timed_out, out_of_memory or unknown",
            )),
            (_, Ask::Change) => {
                Err(not_permitted("only root, operators and scheduler hooks may say so: it has a price", "ask whoever runs the scheduler"))
            }
            (Who::Local { uid, .. }, Ask::Start(request)) => self.may_start(*uid, request),
            (Who::Local { uid, .. }, Ask::Stop(name, owner)) => may_stop(*uid, name, owner),
            (Who::Stranger, Ask::Start(_) | Ask::Stop(..)) => Err(socket_only()),
        }
    }

    /// Is a job of this owner shown?
    #[must_use]
    pub fn sees_job(&self, who: &Who, owner: Uid) -> bool {
        match who {
            Who::Stranger => !stands(Defence::SocketOnly),
            Who::Local { uid, .. } => Standing::Hook <= self.standing(who) || *uid == owner || !stands(Defence::JobOwner),
        }
    }

    /// Is this account shown?
    #[must_use]
    pub fn sees_account(&self, who: &Who, account: &AccountId) -> bool {
        match who {
            Who::Stranger => !stands(Defence::SocketOnly),
            Who::Local { uid, .. } => {
                self.standing(who) == Standing::Operator || self.is_mapped(*uid, account) || !stands(Defence::AccountOwner)
            }
        }
    }

    fn is_mapped(&self, uid: Uid, account: &AccountId) -> bool {
        self.accounts.get(&uid).is_some_and(|accounts| accounts.contains(account))
    }

    fn may_start(&self, uid: Uid, request: &StartRequest) -> Result<(), Refusal> {
        if request.place != Place::Own && stands(Defence::OwnPlace) {
            return Err(not_permitted(
                "only root, operators and scheduler hooks may name cgroups, Slurm jobs or processes",
                "meterctl run starts a command in a cgroup of its own",
            ));
        }
        if !request.gpus.is_empty() && stands(Defence::NoGpus) {
            return Err(not_permitted("only root, operators and scheduler hooks may name GPUs", "ask for GPUs through the scheduler"));
        }
        if !request.traits.is_empty() {
            return Err(not_permitted("only root, operators and scheduler hooks may state what selects a price", "leave traits out"));
        }
        if request.owner.is_some_and(|owner| owner != uid) && stands(Defence::ForItself) {
            return Err(not_permitted("a user starts jobs for itself alone", "leave uid out"));
        }
        if !is_own_name(uid, &request.job) && stands(Defence::OwnName) {
            let message = format!("the names of this user's jobs begin with {}", prefix(uid));
            return Err(Refusal::new("not_permitted", message, "choose such a name, or leave the name to meterctl run"));
        }
        if request.gang.as_ref().is_some_and(|gang| !is_own_name(uid, &gang.name)) && stands(Defence::OwnName) {
            let message = format!("the names of this user's gangs begin with {}", prefix(uid));
            return Err(Refusal::new("not_permitted", message, "choose such a name: who is of a gang can have all of it stand still"));
        }
        if !self.is_mapped(uid, &request.account) && stands(Defence::MappedAccount) {
            let message = format!("user {} may not charge account {}", uid.0, request.account);
            return Err(Refusal::new("account_not_mapped", message, "an operator maps users to accounts under [users] in meterd.toml"));
        }
        Ok(())
    }
}

/// What the names of a user's own jobs begin with. Nobody but hooks and operators can take such a name from it.
#[must_use]
pub fn prefix(uid: Uid) -> String {
    format!("u{}-", uid.0)
}

fn is_own_name(uid: Uid, name: &JobName) -> bool {
    name.as_str().starts_with(&prefix(uid))
}

fn may_stop(uid: Uid, name: &JobName, owner: Option<Uid>) -> Result<(), Refusal> {
    match owner {
        Some(owner) if owner == uid || !stands(Defence::JobOwner) => Ok(()),
        // Just started, so not in the picture yet: a name of its own kind can only be its own job, or none.
        None if is_own_name(uid, name) => Ok(()),
        // Another's job is as unknown as none: who runs what is nobody's business.
        _ => Err(unknown_job(name)),
    }
}

/// No such job, or none that the caller may know of.
#[must_use]
pub fn unknown_job(name: &JobName) -> Refusal {
    Refusal::new("unknown_job", format!("no job {name} is known here"), "meterctl jobs lists those that are")
}

/// No such account, or none that the caller may know of.
#[must_use]
pub fn unknown_account(account: &AccountId) -> Refusal {
    Refusal::new("unknown_account", format!("there is no account {account}"), "meterctl accounts lists those that are")
}

fn socket_only() -> Refusal {
    Refusal::new(
        "socket_only",
        "jobs and accounts are not shown over TCP",
        "use the Unix socket (meterctl does): it tells the agent who asks",
    )
}

fn not_permitted(message: &str, hint: &str) -> Refusal {
    Refusal::new("not_permitted", message, hint)
}

#[cfg(test)]
mod tests;
