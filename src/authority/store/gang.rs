//! The registers of gangs, kept in the same transaction as the request that speaks of them.
//!
//! Tables of their own, made where they are not there yet: a store that was written before is read and written on, by old programs too.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::kept::Gangs;
use super::{Books, Stop, Store, StoreError, rows, unrefused};
use crate::domain::gang::{GangId, GangWant, GangWord, Says};
use crate::domain::id::{AccountId, Attempt, Epoch, NodeId};
use crate::domain::ledger::{Account, EpochState, PartId, Register, Standing};
use crate::domain::wire::Request;
use crate::sqlite::{Failure, classify, int};

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS gang (account TEXT NOT NULL, name TEXT NOT NULL, attempt INTEGER NOT NULL, want TEXT NOT NULL, version INTEGER NOT NULL,
        dry TEXT, PRIMARY KEY (account, name, attempt)) STRICT;
    CREATE TABLE IF NOT EXISTS gang_part (account TEXT NOT NULL, name TEXT NOT NULL, attempt INTEGER NOT NULL, node TEXT NOT NULL, part INTEGER NOT NULL,
        epoch TEXT NOT NULL, says TEXT NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (account, name, attempt, node, part)) STRICT;
    CREATE INDEX IF NOT EXISTS gang_part_node ON gang_part (node);";

/// A register's word, and whom it is for: the nodes of its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GangPush {
    /// The word.
    pub want: GangWant,
    /// The nodes, but for the one whose request brought it about: that one hears it in its answer.
    pub nodes: Vec<NodeId>,
}

pub(super) fn prepare(connection: &Connection) -> Result<(), Failure> {
    connection.execute_batch(TABLES).map_err(|error| classify(connection, &error))
}

impl Store {
    /// What is to be told of gangs, in order; each is told once by this. One that is lost is heard in answer to the node's next question.
    pub fn gang_news(&mut self) -> Vec<GangPush> {
        std::mem::take(&mut self.gang_news)
    }

    /// What the gangs are to do that have parts on this node.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn gangs_of(&mut self, node: &NodeId) -> Result<Vec<GangWant>, StoreError> {
        let found = self.transact(|books| {
            let sql =
                "SELECT DISTINCT account, name, attempt FROM gang_part WHERE node = ?1 AND says <> 'left' ORDER BY account, name, attempt";
            let mut statement = books.connection.prepare_cached(sql)?;
            let mut found = statement.query([node.as_str()])?;
            let mut wants = Vec::new();
            while let Some(row) = found.next()? {
                let attempt = small(number(row.get(2)?)?)?;
                let gang =
                    GangId { account: rows::parsed(&row.get::<_, String>(0)?)?, name: rows::parsed(&row.get::<_, String>(1)?)?, attempt };
                wants.extend(load(books.connection, &gang)?.map(|register| register.word()));
            }
            Ok(wants)
        });
        found.map_err(unrefused)
    }
}

impl Books<'_> {
    /// Takes what a request, whose number was news, says of the gangs of one account, and gives what they are to do.
    pub(super) fn hear_gangs(&mut self, request: &Request, account: &Account) -> Result<Vec<GangWant>, Stop> {
        let mut wants: Vec<GangWant> = Vec::new();
        let is_open = |epoch: Epoch| account.epochs.get(&epoch).is_some_and(|of_epoch| of_epoch.state == EpochState::Open);
        for word in request.gangs.iter().filter(|word| word.gang.account == account.id) {
            let known = load(self.connection, &word.gang)?;
            if known.is_none() && word.says == Says::Left {
                wants.push(Register::new(word.gang.clone()).word()); // it has gone with its last part
                continue;
            }
            let before = known.clone().unwrap_or_else(|| Register::new(word.gang.clone()));
            let mut register = before.clone();
            register.hear(&request.node, request.epoch, word, is_open);
            let over = register.is_over(is_open);
            if over {
                forget(self.connection, &register)?;
            } else if known.is_none() || register != before {
                save(self.connection, &register, &PartId { node: request.node.clone(), part: word.part })?;
                self.kept.gangs = Gangs::MayBe;
            }
            if register.version != before.version && !over {
                self.gang_news.push(push(&register, &request.node));
            }
            wants.retain(|want| want.gang != word.gang); // two parts on one node: the later word holds
            wants.push(register.word());
        }
        Ok(wants)
    }
}

impl Books<'_> {
    /// A store that was put back from a copy, whether it knows of that or not, may hold parts that have left since. A node speaks of all its parts,
    /// so what it does not speak of has gone.
    pub(super) fn forget_unsaid(&mut self, request: &Request, account: &AccountId) -> Result<(), Stop> {
        if self.has_no_gangs()? {
            return Ok(());
        }
        let sql = "SELECT name, attempt, part FROM gang_part WHERE node = ?1 AND account = ?2 AND epoch = ?3";
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut found = statement.query(params![request.node.as_str(), account.as_str(), request.epoch.to_string()])?;
        while let Some(row) = found.next()? {
            let (name, attempt, part): (String, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let is_it = |word: &GangWord| {
                (word.gang.account.as_str(), word.gang.name.as_str()) == (account.as_str(), name.as_str())
                    && (i64::from(word.gang.attempt), int(word.part.0)) == (attempt, part)
            };
            if !request.gangs.iter().any(is_it) {
                let sql = "DELETE FROM gang_part WHERE node = ?1 AND account = ?2 AND name = ?3 AND attempt = ?4 AND part = ?5";
                let gone = params![request.node.as_str(), account.as_str(), name, attempt, part];
                self.connection.prepare_cached(sql)?.execute(gone)?;
            }
        }
        Ok(())
    }
}

impl Books<'_> {
    /// Is there no part of any gang? Most stores have none, and are not asked again before one comes.
    fn has_no_gangs(&mut self) -> Result<bool, Stop> {
        if self.kept.gangs == Gangs::MayBe {
            let mut statement = self.connection.prepare_cached("SELECT 1 FROM gang_part LIMIT 1")?;
            if statement.query_row([], |_| Ok(())).optional()?.is_none() {
                self.kept.gangs = Gangs::None;
            }
        }
        Ok(self.kept.gangs == Gangs::None)
    }
}

fn push(register: &Register, teller: &NodeId) -> GangPush {
    let mut nodes: Vec<NodeId> = register.parts.iter().filter(|(_, part)| part.says != Says::Left).map(|(id, _)| id.node.clone()).collect();
    nodes.dedup();
    nodes.retain(|node| node != teller);
    GangPush { want: register.word(), nodes }
}

fn load(connection: &Connection, gang: &GangId) -> Result<Option<Register>, Stop> {
    let key = params![gang.account.as_str(), gang.name.as_str(), gang.attempt];
    let sql = "SELECT want, version, dry FROM gang WHERE account = ?1 AND name = ?2 AND attempt = ?3";
    let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, Option<String>>(2)?));
    let Some((want, version, dry)) = connection.prepare_cached(sql)?.query_row(key, read).optional()? else { return Ok(None) };
    let mut register = Register::new(gang.clone());
    register.want = rows::from_word(&want)?;
    register.version = number(version)?;
    register.dry = dry.map(|node| rows::parsed(&node)).transpose()?;
    let sql = "SELECT node, part, epoch, says, version FROM gang_part WHERE account = ?1 AND name = ?2 AND attempt = ?3";
    let mut statement = connection.prepare_cached(sql)?;
    let mut found = statement.query(params![gang.account.as_str(), gang.name.as_str(), gang.attempt])?;
    while let Some(row) = found.next()? {
        let text = |column: usize| row.get::<_, String>(column);
        let id = PartId { node: rows::parsed(&text(0)?)?, part: Attempt(number(row.get(1)?)?) };
        let standing = Standing { epoch: rows::parsed(&text(2)?)?, says: rows::from_word(&text(3)?)?, version: number(row.get(4)?)? };
        register.parts.insert(id, standing);
    }
    Ok(Some(register))
}

/// The register, and the one part of it that has spoken.
fn save(connection: &Connection, register: &Register, spoke: &PartId) -> Result<(), Stop> {
    let GangId { account, name, attempt } = &register.gang;
    let dry = register.dry.as_ref().map(NodeId::as_str);
    let sql = "INSERT OR REPLACE INTO gang (account, name, attempt, want, version, dry) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let values = params![account.as_str(), name.as_str(), attempt, rows::word(&register.want)?, int(register.version), dry];
    connection.prepare_cached(sql)?.execute(values)?;
    let Some(part) = register.parts.get(spoke) else { return Ok(()) };
    let sql = "INSERT OR REPLACE INTO gang_part (account, name, attempt, node, part, epoch, says, version) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    connection.prepare_cached(sql)?.execute(params![
        account.as_str(),
        name.as_str(),
        attempt,
        spoke.node.as_str(),
        int(spoke.part.0),
        part.epoch.to_string(),
        rows::word(&part.says)?,
        int(part.version)
    ])?;
    Ok(())
}

fn forget(connection: &Connection, register: &Register) -> Result<(), Stop> {
    let GangId { account, name, attempt } = &register.gang;
    for table in ["gang", "gang_part"] {
        let sql = format!("DELETE FROM {table} WHERE account = ?1 AND name = ?2 AND attempt = ?3");
        connection.prepare_cached(&sql)?.execute(params![account.as_str(), name.as_str(), attempt])?;
    }
    Ok(())
}

fn number(stored: i64) -> Result<u64, Stop> {
    u64::try_from(stored).map_err(|_| Stop::Broken(format!("the store holds {stored} in a gang")))
}

fn small(stored: u64) -> Result<u32, Stop> {
    u32::try_from(stored).map_err(|_| Stop::Broken(format!("the store holds {stored} as a gang's attempt")))
}

#[cfg(test)]
mod tests;
