//! The authority's side of a reconciliation, read from its file at one instant.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rusqlite::params;

use super::{KIND, Stop, StoreError, rows, unrefused};
use crate::domain::id::{AccountId, NodeId};
use crate::domain::ledger::LedgerEntry;
use crate::domain::reconcile::{AuthoritySide, Heard, LedgerSums};
use crate::sqlite::open_for_reading;

/// Every account, with what the epochs of these nodes have claimed of it, and the sums of its ledger's lines.
///
/// # Errors
/// See [`StoreError`].
pub fn read_sides(path: &Path, nodes: &BTreeSet<NodeId>) -> Result<BTreeMap<AccountId, (AuthoritySide, LedgerSums)>, StoreError> {
    let connection = open_for_reading(path, &KIND)?;
    sides(&connection, nodes).map_err(|stop| unrefused(stop.into_refusal(&connection)))
}

fn sides(connection: &rusqlite::Connection, nodes: &BTreeSet<NodeId>) -> Result<BTreeMap<AccountId, (AuthoritySide, LedgerSums)>, Stop> {
    // One view of everything that follows, whatever the writer does meanwhile.
    connection.execute_batch("BEGIN")?;
    let mut statement = connection.prepare("SELECT id FROM account ORDER BY id")?;
    let ids: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut found = BTreeMap::new();
    for id in ids {
        let id: AccountId = rows::parsed(&id)?;
        let Some(account) = rows::account(connection, &id)? else { continue };
        let mut side = AuthoritySide {
            settled: account.settled,
            written_off: account.written_off,
            shortfall: account.shortfall,
            deposited: account.deposited,
            withdrawn: account.withdrawn,
            balance: account.lots.total(),
            ..AuthoritySide::default()
        };
        for (name, epoch) in rows::all_epochs(connection, &id)? {
            if nodes.contains(&epoch.node) {
                side.refunded = side.refunded.plus(epoch.refunds.refunded);
                side.heard.push(Heard { node: epoch.node.clone(), epoch: name, request: epoch.last_request, state: epoch.state });
                side.claimed = side.claimed.plus(epoch.claimed);
                side.unfunded = side.unfunded.plus(epoch.unfunded);
                side.epochs_settled = side.epochs_settled.plus(epoch.settled);
                side.epochs_shortfall = side.epochs_shortfall.plus(epoch.shortfall);
            } else {
                side.elsewhere |= epoch.claimed.is_positive() || epoch.unfunded.is_positive();
            }
        }
        let mut statement = connection.prepare_cached("SELECT at_ms, kind, amount, free, paid, status FROM ledger WHERE account = ?1")?;
        let mut lines = statement.query(params![id.as_str()])?;
        let mut entries: Vec<LedgerEntry> = Vec::new();
        while let Some(row) = lines.next()? {
            entries.push(rows::entry(row)?);
        }
        found.insert(id, (side, LedgerSums::of(entries.iter())));
    }
    Ok(found)
}
