//! The defences against other users of the node, by name, so that a test can take one of them away: an attempt upon the agent proves
//! something only if it would succeed without the defence that it fails by.
//!
//! `METERD_LACKS=name,name` is heard by builds with debug assertions alone. In a release build [`stands`] is a constant: no variable,
//! file or caller can switch anything off, and the checks compile to what they are without it. A feature of the package would not do:
//! features are chosen by whoever builds, for a release too, and are joined over a whole workspace.

/// A check that keeps other users of the node out. Each is asked for in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defence {
    /// Accounts, credit and the mode of enforcement are changed by operators alone.
    Administer,
    /// A user sees and stops its own jobs alone.
    JobOwner,
    /// A user sees the accounts mapped to it alone.
    AccountOwner,
    /// Metrics by account are for operators.
    AccountMetrics,
    /// Nothing of anybody in particular is told over TCP.
    SocketOnly,
    /// A user names no cgroups, processes or Slurm jobs.
    OwnPlace,
    /// A user names no GPUs.
    NoGpus,
    /// A user starts jobs for itself alone.
    ForItself,
    /// The names of a user's jobs begin with its prefix.
    OwnName,
    /// A user charges the accounts mapped to it alone.
    MappedAccount,
    /// One user holds so many connections at most.
    ConnectionsEach,
    /// All ordinary users together hold so many connections at most.
    ConnectionsInAll,
    /// A request comes, and its answer goes, within some seconds.
    Patience,
    /// One user makes so many calls a second at most.
    CallRate,
    /// One user has so many jobs at once at most.
    JobsEach,
    /// A body has at most 64 KiB.
    BodySize,
    /// The spool is root's or the agent's, and nobody else may write to it.
    SpoolFolder,
    /// A spooled call is said by the file's owner.
    SpoolOwner,
    /// A symbolic link in the spool is not followed.
    SpoolLinks,
    /// A spooled file has one name alone.
    SpoolOneName,
    /// A spooled file is its owner's alone to write.
    SpoolOwnersAlone,
    /// A spooled file is a regular one.
    SpoolRegular,
    /// A spooled file is not longer than a call can be.
    SpoolSize,
    /// A crash of the agent leaves no core.
    NoCore,
    /// What the agent keeps lies where nobody else can read or write it.
    StateFolder,
    /// The socket lies where nobody else can replace it.
    RuntimeFolder,
    /// A cgroup that the agent makes lies directly below its parent.
    CgroupName,
    /// A cgroup is acted on only while it is the one that was named.
    SameCgroup,
    /// Nothing that holds the agent is a job.
    HoldsAgent,
    /// A cgroup is one job's.
    OneHolder,
    /// Nobody knows when the next look comes.
    UnforeseenLooks,
    /// A job is metered until its last task has gone, whatever is reported.
    UntilEmpty,
}

/// Is this defence in place?
#[cfg(not(debug_assertions))]
#[must_use]
#[inline]
pub const fn stands(_: Defence) -> bool {
    true
}

/// Is this defence in place? A test can take it away.
#[cfg(debug_assertions)]
#[must_use]
pub fn stands(defence: Defence) -> bool {
    !lacking().iter().any(|name| *name == format!("{defence:?}"))
}

/// What `METERD_LACKS` names.
#[cfg(debug_assertions)]
fn lacking() -> &'static [String] {
    static LACKING: std::sync::OnceLock<Vec<String>> = std::sync::OnceLock::new();
    LACKING.get_or_init(|| {
        let named = std::env::var("METERD_LACKS").unwrap_or_default();
        let lacking: Vec<String> = named.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        if !lacking.is_empty() {
            tracing::error!(event = "defences_lacking", ?lacking, "a build for tests: these defences are switched off");
        }
        lacking
    })
}
