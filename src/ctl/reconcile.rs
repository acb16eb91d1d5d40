//! Both sides of a reconciliation, read from the files of one machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::client::Failure;
use super::stored::{Stored, recovered};
use crate::authority::store::read_sides;
use crate::domain::agent::Agent;
use crate::domain::id::{AccountId, NodeId};
use crate::domain::money::Credits;
use crate::domain::receipt::Receipt;
use crate::domain::reconcile::{NodeSide, Reconciled, reconcile};
use crate::domain::time::Wall;

/// How often both are read until the authority has heard nothing in between.
const TRIES: usize = 5;

/// The receipts in the journal against the ledger of the authority, both below `dir`.
pub(super) fn of_files(dir: &Path) -> Result<Reconciled, Failure> {
    let stored = Stored { state_dir: vec![dir.to_owned()] };
    let mut found = None;
    for _ in 0..TRIES {
        let nodes = nodes(&stored.receipts(Path::new(""), Wall(0))?);
        let before = authority(dir, &nodes)?;
        let receipts = stored.receipts(Path::new(""), Wall(0))?;
        let agent = recovered(dir)?;
        let after = authority(dir, &nodes)?;
        let still = before == after;
        found = Some(reconcile(&node_side(&receipts, &agent), &after));
        if still {
            break;
        }
    }
    found.ok_or_else(|| Failure::other("nothing was read"))
}

type Sides = BTreeMap<AccountId, (crate::domain::reconcile::AuthoritySide, crate::domain::reconcile::LedgerSums)>;

fn authority(dir: &Path, nodes: &BTreeSet<NodeId>) -> Result<Sides, Failure> {
    read_sides(&dir.join("authority.db"), nodes).map_err(Failure::other)
}

/// The names that this node has had on its receipts.
fn nodes(receipts: &[Receipt]) -> BTreeSet<NodeId> {
    receipts.iter().map(|receipt| receipt.node.clone()).collect()
}

fn node_side(receipts: &[Receipt], agent: &Agent) -> BTreeMap<AccountId, NodeSide> {
    let mut sides: BTreeMap<AccountId, NodeSide> = BTreeMap::new();
    for receipt in receipts {
        let side = sides.entry(receipt.account.clone()).or_default();
        (side.drawn, side.unfunded) = (side.drawn.plus(receipt.drawn), side.unfunded.plus(receipt.unfunded));
    }
    for side in sides.values_mut() {
        (side.told_drawn, side.told_unfunded) = (side.drawn, side.unfunded);
    }
    let mut untold = |account: &AccountId, drawn: Credits, unfunded: Credits| {
        if let Some(side) = sides.get_mut(account) {
            side.told_drawn = side.told_drawn.minus(drawn);
            side.told_unfunded = side.told_unfunded.minus(unfunded);
        }
    };
    for (id, account) in &agent.accounts {
        let grant = &account.grant;
        untold(id, grant.spent.minus(grant.told.spent), grant.unfunded.minus(grant.told.unfunded));
    }
    for entry in agent.previous.iter().flat_map(|previous| &previous.entries) {
        untold(&entry.account, entry.spent, entry.unfunded);
    }
    sides
}
