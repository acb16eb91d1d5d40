//! A gang: a job whose parts run on several nodes, each part a job of its node. They freeze and thaw together.
//!
//! The authority keeps one register for each gang: what all of it is to do, under a version. A part that runs dry freezes by itself and
//! says so until it has heard of a newer freeze; the register then says "freeze", version + 1, to all. A part that stands still and could go on
//! says "ready" with the version that it has heard; once all are ready under the *present* version, the register says "run", version + 1. A part
//! follows the highest version only, and runs only if it holds credit itself.
//!
//! Here is what is said, and a part's own state. The register is [`super::ledger::gang`], what the node does about it [`super::agent::gang`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::id::{AccountId, Attempt, JobName, NodeId};
use super::money::Credits;
use super::time::Nanos;

/// A part that stands still waits until it holds credit for so long, as long as there is more to be had: so it does not flap.
pub const THAW_MIN: Nanos = Nanos::from_secs(60);

/// Which gang. Parts that pay from another account are no parts of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub struct GangId {
    /// Who pays.
    pub account: AccountId,
    /// What the whole job is called, on all its nodes.
    pub name: JobName,
    /// Which run of it, as whoever starts it counts.
    pub attempt: u32,
}

/// What all of a gang is to do. The order is the journal's format: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Want {
    /// Run, each part on credit of its own.
    Run,
    /// Stand still.
    Freeze,
}

/// How a part of a gang stands. The order is the journal's format: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Says {
    /// It may run.
    Runs,
    /// It ran dry under the version that it has heard, and stands still.
    Dry,
    /// It stands still with the others, and could not go on.
    Waits,
    /// It stands still with the others, and could go on.
    Ready,
    /// Its job is over.
    Left,
}

/// A node's word on one part of a gang. It may be repeated: it says how things stand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GangWord {
    /// Of which gang.
    pub gang: GangId,
    /// Which part of those on this node: the node's number for its job.
    pub part: Attempt,
    /// How it stands.
    pub says: Says,
    /// The highest version that it has heard; 0 for none.
    pub version: u64,
}

/// The register's word on a gang. Acted on only if its version is above the highest that was heard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GangWant {
    /// Of which gang.
    pub gang: GangId,
    /// What all of it is to do.
    pub want: Want,
    /// Raised with each change.
    pub version: u64,
    /// On which node it ran dry, while it is to stand still; for people.
    pub dry: Option<NodeId>,
}

/// A part of a gang, as a start declares it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gang {
    /// What the whole job is called.
    pub name: JobName,
    /// Which run of it.
    pub attempt: u32,
    /// Of how many parts, where that was said; for people.
    pub size: Option<u32>,
}

/// How a part stands by itself, its gang apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// It could go on, for [`THAW_MIN`] or for as long as there is anything to be had.
    Funded,
    /// It holds something, and asks for more before it goes on.
    Short,
    /// It has to stand still.
    Dry,
}

/// Has a part run dry and not heard of a newer version since?
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Latch {
    /// No.
    Open,
    /// Yes: it says so even if it is funded again.
    Dry,
}

/// A part of a gang, on its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Of which gang.
    pub gang: GangId,
    /// Of how many parts it was said to be.
    pub size: Option<u32>,
    /// What it was told to do, under the highest version heard.
    pub want: Want,
    /// That version; 0 if none was heard.
    pub version: u64,
    /// Who ran dry, by that word.
    pub dry: Option<NodeId>,
    /// Did it run dry under that version?
    pub latch: Latch,
    /// What [`THAW_MIN`] costs, as it was when it came to stand still.
    pub needs: Credits,
    /// Its word and version as the authority has heard them in this epoch.
    pub told: Option<(Says, u64)>,
}

impl Part {
    /// One that has heard nothing yet: it runs.
    #[must_use]
    pub fn new(account: AccountId, gang: &Gang) -> Part {
        Part {
            gang: GangId { account, name: gang.name.clone(), attempt: gang.attempt },
            size: gang.size,
            want: Want::Run,
            version: 0,
            dry: None,
            latch: Latch::Open,
            needs: Credits::ZERO,
            told: None,
        }
    }

    /// As its start declared it.
    #[must_use]
    pub fn declared(&self) -> Gang {
        Gang { name: self.gang.name.clone(), attempt: self.gang.attempt, size: self.size }
    }

    /// Would this word be news?
    #[must_use]
    pub fn is_news(&self, want: &GangWant) -> bool {
        want.gang == self.gang && self.version < want.version
    }

    /// Takes the register's word, if it is news. A newer version ends the latch: whoever is still dry under it says so anew.
    pub fn hear(&mut self, want: Want, version: u64, dry: Option<NodeId>) {
        if self.version < version {
            (self.want, self.version, self.dry, self.latch) = (want, version, dry, Latch::Open);
        }
    }

    /// Does it run dry now, under a version that lets it run?
    #[must_use]
    pub fn runs_dry(&self, own: Own) -> bool {
        self.want == Want::Run && own == Own::Dry && self.latch == Latch::Open
    }

    /// What it says, given how it stands by itself.
    #[must_use]
    pub fn says(&self, own: Own) -> Says {
        match (self.want, own) {
            _ if self.latch == Latch::Dry => Says::Dry,
            (Want::Run, Own::Dry) => Says::Dry,
            (Want::Run, Own::Funded | Own::Short) => Says::Runs,
            (Want::Freeze, Own::Funded) => Says::Ready,
            (Want::Freeze, Own::Short | Own::Dry) => Says::Waits,
        }
    }

    /// Must it stand still, whatever it holds: with the others, or, since it ran dry, until the others are known to? Who has never heard of a
    /// register waits for none: there may be none.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.want == Want::Freeze || self.latch == Latch::Dry && 0 < self.version
    }
}
