//! What the store knows of nodes.

use rusqlite::params;

use super::{Refusal, Store, rows};
use crate::domain::id::NodeId;
use crate::domain::wire::Push;

impl Store {
    /// The accounts on which this node has an open epoch, each with its version.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn accounts_of(&mut self, node: &NodeId) -> Result<Vec<Push>, Refusal> {
        self.transact(|books| {
            let sql = "SELECT DISTINCT a.id, a.version FROM epoch e JOIN account a ON a.id = e.account
                WHERE e.state = 'open' AND e.node = ?1 ORDER BY a.id";
            let mut statement = books.connection.prepare_cached(sql)?;
            let found: Vec<(String, i64)> =
                statement.query_map(params![node.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
            found
                .iter()
                .map(|(id, version)| Ok(Push { account: rows::parsed(id)?, version: u64::try_from(*version).unwrap_or(0) }))
                .collect()
        })
    }
}
