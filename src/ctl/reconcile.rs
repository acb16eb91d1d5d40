//! Both sides of a reconciliation: from the files of one machine, or from what the nodes of a fleet have written down and the authority's file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::client::Failure;
use super::stored::{Stored, recovered};
use crate::authority::store::read_sides;
use crate::domain::agent::Agent;
use crate::domain::id::{AccountId, NodeId};
use crate::domain::money::Credits;
use crate::domain::receipt::Receipt;
use crate::domain::reconcile::{NodeExport, NodeSide, Reconciled, VERSION, reconcile, reconcile_fleet};
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

/// A node's side as a document.
pub(super) fn export(dir: &Path) -> Result<NodeExport, Failure> {
    let stored = Stored { state_dir: vec![dir.to_owned()] };
    let receipts = stored.receipts(Path::new(""), Wall(0))?;
    let agent = recovered(dir)?;
    let asked = agent.epoch.map(|(epoch, _)| (epoch, agent.asked));
    Ok(NodeExport { reconcile: VERSION, nodes: nodes(&receipts), asked, accounts: node_side(&receipts, &agent) })
}

/// The sides of several nodes against the ledger of their authority.
pub(super) fn of_fleet(files: &[PathBuf], ledger: &Path) -> Result<Reconciled, Failure> {
    let read = |file: &PathBuf| -> Result<NodeExport, Failure> {
        let place = |error: &dyn std::fmt::Display| Failure::Other(format!("{}: {error}", file.display()));
        let text = std::fs::read_to_string(file).map_err(|error| place(&error))?;
        let export: NodeExport = serde_json::from_str(&text).map_err(|error| place(&error))?;
        if export.reconcile != VERSION {
            return Err(place(&format!("of version {}, which this program does not know", export.reconcile)));
        }
        Ok(export)
    };
    let exports: Vec<NodeExport> = files.iter().map(read).collect::<Result<_, _>>()?;
    let names: BTreeSet<NodeId> = exports.iter().flat_map(|export| export.nodes.iter().cloned()).collect();
    let authority = read_sides(ledger, &names).map_err(Failure::other)?;
    reconcile_fleet(&exports, &authority).map_err(|node| Failure::Other(format!("two of the files are of node {node}: each node once")))
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
        side.refunded = side.refunded.plus(receipt.refunded());
    }
    for side in sides.values_mut() {
        (side.told_drawn, side.told_unfunded, side.told_refunded) = (side.drawn, side.unfunded, side.refunded);
    }
    for ((_, id), back) in &agent.refunds {
        if let Some(side) = sides.get_mut(id) {
            side.told_refunded = side.told_refunded.minus(back.total.minus(back.told));
        }
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
