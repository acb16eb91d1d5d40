//! How the store itself stands: its generation, whether it recovers, who writes under which epoch, and what nodes have proved that it forgot.
//!
//! Tables of their own, made where they are not there yet: a store that was written before them is read and written on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::{Connection, OptionalExtension as _, params};
use schemars::JsonSchema;
use serde::Serialize;

use super::{Books, ClosePolicy, Refusal, Stop, Store, StoreError, rows, unrefused};
use crate::authority::engine::status::EngineView;
use crate::domain::id::{AccountId, Digest, Epoch, NodeId};
use crate::domain::ledger::{Account, AccountNotice, EpochAccount, Recovery, Rules, Trust, Writer, Writers, end_recovery, has_forgotten};
use crate::domain::money::Credits;
use crate::domain::proof::ProofKey;
use crate::domain::time::{Mono, Nanos, Now, Wall};
use crate::domain::wire::{Request, Said};
use crate::sqlite::{classify, int};

/// How long a recovery lasts: no grant that was made before it is good for longer, whatever the clocks' rates, and jobs have stopped by then.
pub const RECOVERY: Nanos = Nanos::from_secs(667);
/// No more claims than this are told in such a time.
const CLAIMS_TOLD_MAX: u32 = 16;
const CLAIMS_TOLD_IN: Nanos = Nanos::from_secs(60);
/// A number and its digest.
const NUMBER_BYTES: usize = 40;

/// Makes the tables where they are not there.
pub(super) fn make_tables(connection: &Connection) -> Result<(), StoreError> {
    let sql = "
        CREATE TABLE IF NOT EXISTS standing (one INTEGER PRIMARY KEY CHECK (one = 1), generation INTEGER NOT NULL, recovery TEXT NOT NULL) STRICT;
        INSERT OR IGNORE INTO standing (one, generation, recovery) VALUES (1, 1, 'over');
        CREATE TABLE IF NOT EXISTS writer (epoch TEXT PRIMARY KEY, node TEXT NOT NULL, last_request INTEGER NOT NULL, numbers BLOB NOT NULL,
            forked_ms INTEGER) STRICT;
        CREATE TABLE IF NOT EXISTS claim (account TEXT NOT NULL REFERENCES account (id), epoch TEXT NOT NULL, proven TEXT NOT NULL,
            PRIMARY KEY (account, epoch)) STRICT;";
    connection.execute_batch(sql).map_err(|error| StoreError::from(classify(connection, &error)))
}

/// What is counted since the process began, and how it stands; for metrics.
#[derive(Debug, Default)]
pub struct Tally {
    /// The store's generation.
    pub generation: AtomicU64,
    /// 1 while it recovers.
    pub recovering: AtomicU64,
    /// Recoveries that a node's proof began.
    pub forgotten: AtomicU64,
    /// Claims that were not believed.
    pub unproven: AtomicU64,
    /// Claims that were.
    pub proven: AtomicU64,
    /// Epochs under which several were found to write.
    pub forked: AtomicU64,
    /// New questions under an epoch of a node that had spoken under a later one.
    pub doubled: AtomicU64,
}

impl Tally {
    pub(super) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// What of it is in memory. `recovery` and `generation` are as stored; where a commit fails they are read again.
pub(super) struct Standing {
    pub(super) key: Option<ProofKey>,
    generation: u64,
    recovery: Recovery,
    began: Mono,
    pub(super) tally: Arc<Tally>,
    /// Under which epoch each node last spoke.
    latest: BTreeMap<NodeId, Epoch>,
    /// How many claims were made since then.
    told: (Mono, u32),
}

impl Standing {
    pub(super) fn new(now: Mono) -> Standing {
        let tally = Arc::new(Tally::default());
        Standing { key: None, generation: 1, recovery: Recovery::Over, began: now, tally, latest: BTreeMap::new(), told: (now, 0) }
    }

    /// As the store says.
    pub(super) fn read(&mut self, connection: &Connection) -> Result<(), Stop> {
        let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?));
        let (generation, recovery) = connection.query_row("SELECT generation, recovery FROM standing", [], row)?;
        self.generation = u64::try_from(generation).map_err(|_| Stop::Broken(format!("the store is of generation {generation}")))?;
        self.recovery = match recovery.as_str() {
            "over" => Recovery::Over,
            "proofs" => Recovery::Goes(Trust::Proofs),
            "words" => Recovery::Goes(Trust::Words),
            other => return Err(Stop::Broken(format!("the store recovers by {other:?}"))),
        };
        self.show();
        Ok(())
    }

    fn show(&self) {
        self.tally.generation.store(self.generation, Ordering::Relaxed);
        self.tally.recovering.store(u64::from(self.recovery != Recovery::Over), Ordering::Relaxed);
    }

    /// Claims are counted, and told up to a bound: a node could make any number of them.
    pub(super) fn is_to_be_told(&mut self, notice: &AccountNotice, now: Mono) -> bool {
        let counter = match notice {
            AccountNotice::Unproven { .. } => &self.tally.unproven,
            AccountNotice::Proven { .. } => &self.tally.proven,
            _ => return true,
        };
        Tally::count(counter);
        if CLAIMS_TOLD_IN <= now.since(self.told.0) {
            self.told = (now, 0);
        }
        self.told.1 += 1;
        self.told.1 <= CLAIMS_TOLD_MAX
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// By what a question is answered now. `key` is this one's own.
    pub(super) fn rules<'a>(&self, close: ClosePolicy, key: Option<&'a ProofKey>, writers: Writers) -> Rules<'a> {
        Rules { key, generation: self.generation, recovery: self.recovery, writers, ..Rules::of(close) }
    }
}

/// Writes that the store has forgotten things: it recovers from now on, is of a later generation than any that was seen, and knows nothing of
/// who wrote what. Every account changes its version, to above all that was told of it before.
pub(super) fn write_forgotten(connection: &Connection, trust: Trust, seen: u64, now: Wall) -> Result<u64, Stop> {
    let stored: i64 = connection.query_row("SELECT generation FROM standing", [], |row| row.get(0))?;
    let above = u64::try_from(stored).unwrap_or(0).max(seen).saturating_add(1);
    // The clock alone tells two stores apart that were put back from one copy.
    let generation = above.max(now.0);
    let word = match trust {
        Trust::Proofs => "proofs",
        Trust::Words => "words",
    };
    connection.execute("UPDATE standing SET generation = ?1, recovery = ?2", params![int(generation), word])?;
    connection.execute("DELETE FROM writer", [])?;
    connection.execute("UPDATE account SET version = max(version, ?1) + 1", [int(generation)])?;
    Ok(generation)
}

/// The generation of the store in this file, where it says one.
pub(super) fn generation_of(connection: &Connection) -> Option<u64> {
    let stored: i64 = connection.query_row("SELECT generation FROM standing", [], |row| row.get(0)).ok()?;
    u64::try_from(stored).ok()
}

pub(super) fn load_claims(connection: &Connection, account: &mut Account) -> Result<(), Stop> {
    let mut statement = connection.prepare_cached("SELECT epoch, proven FROM claim WHERE account = ?1")?;
    let mut found = statement.query([account.id.as_str()])?;
    while let Some(row) = found.next()? {
        let epoch: Epoch = rows::parsed(&row.get::<_, String>(0)?)?;
        if let Some(mut epoch) = account.epochs.get_mut(&epoch) {
            epoch.proven = rows::parsed(&row.get::<_, String>(1)?)?;
        }
    }
    Ok(())
}

pub(super) fn save_claim(connection: &Connection, account: &AccountId, id: Epoch, epoch: &EpochAccount) -> Result<(), Stop> {
    if epoch.proven.is_positive() {
        let sql = "INSERT OR REPLACE INTO claim (account, epoch, proven) VALUES (?1, ?2, ?3)";
        connection.prepare_cached(sql)?.execute(params![account.as_str(), id.to_string(), epoch.proven.to_string()])?;
    }
    Ok(())
}

impl Books<'_> {
    /// Looks for what the store has forgotten, and for a second writer; before anything of the request is booked.
    pub(super) fn meet(&mut self, request: &Request, said: Said, close: ClosePolicy, now: Now) -> Result<Writers, Stop> {
        if close == ClosePolicy::OnSuccessor {
            return Ok(Writers::One); // one machine, and its own store
        }
        if let Some(key) = self.standing.key.clone()
            && has_forgotten(request, &key, self.standing.generation, |account, epoch| self.granted(account, epoch))?
        {
            let proofs = request.entries.iter().chain(request.previous.iter().flat_map(|earlier| &earlier.entries));
            let seen = proofs.filter_map(|entry| entry.proof).map(|proof| proof.generation).max().unwrap_or(0);
            let node = &request.node;
            tracing::warn!(event = "store_forgot", %node, "a node has proved that the store forgot what it granted: it recovers, and grants nothing");
            Tally::count(&self.standing.tally.forgotten);
            self.recover(Trust::Proofs, seen, now)?;
        }
        self.hear(request, said, now)
    }

    /// The most that the store knows this epoch to have been granted, and the last number that was taken.
    fn granted(&self, account: &AccountId, epoch: Epoch) -> Result<(Credits, u64), Stop> {
        let sql = "SELECT e.granted, e.last_request, c.proven FROM epoch e LEFT JOIN claim c ON c.account = e.account AND c.epoch = e.epoch
            WHERE e.account = ?1 AND e.epoch = ?2";
        let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, Option<String>>(2)?));
        let found = self.connection.prepare_cached(sql)?.query_row(params![account.as_str(), epoch.to_string()], row).optional()?;
        let Some((granted, last_request, proven)) = found else { return Ok((Credits::ZERO, 0)) };
        let proven: Option<Credits> = proven.as_deref().map(rows::parsed).transpose()?;
        let granted: Credits = rows::parsed(&granted)?;
        Ok((granted.max(proven.unwrap_or(Credits::ZERO)), u64::try_from(last_request).unwrap_or(0)))
    }

    pub(super) fn recover(&mut self, trust: Trust, seen: u64, now: Now) -> Result<(), Stop> {
        let generation = write_forgotten(self.connection, trust, seen, now.wall)?;
        (self.standing.generation, self.standing.recovery, self.standing.began) = (generation, Recovery::Goes(trust), now.mono);
        self.standing.latest.clear();
        self.standing.show();
        self.kept.forget(); // every account's version was raised, and its silence begins anew
        self.heard.at.clear(); // silence counts from now on
        self.heard.opened_at = now.mono;
        Ok(())
    }

    /// Of epochs that are over nothing is told any more.
    pub(super) fn forget_writers(&mut self) -> Result<(), Stop> {
        let sql = "DELETE FROM writer WHERE epoch NOT IN (SELECT epoch FROM epoch WHERE state = 'open')";
        self.connection.prepare_cached(sql)?.execute([])?;
        Ok(())
    }

    fn hear(&mut self, request: &Request, said: Said, now: Now) -> Result<Writers, Stop> {
        let mut writer = match self.kept.take_writer(request.epoch) {
            Some(writer) => writer,
            None => writer(self.connection, request.epoch)?.unwrap_or_else(|| Writer::new(request.node.clone())),
        };
        let (last, was_forked) = (writer.last, writer.forked);
        let writers = writer.hear(request, said, now.wall);
        let (node, epoch) = (&request.node, request.epoch);
        if writer.forked != was_forked {
            Tally::count(&self.standing.tally.forked);
            tracing::warn!(event = "forked", %node, %epoch, "several write under this epoch: a machine or a journal was copied while it ran");
        }
        if last < writer.last {
            let other = self.standing.latest.insert(node.clone(), epoch).filter(|other| *other != epoch && last != 0);
            if let Some(other) = other {
                Tally::count(&self.standing.tally.doubled);
                tracing::warn!(event = "two_live_epochs", %node, %epoch, %other, "two machines speak as this node, or a message was long on its way");
            }
        }
        if last < writer.last || writer.forked != was_forked {
            save_writer(self.connection, request.epoch, &writer)?;
        }
        self.kept.put_writer(request.epoch, writer);
        Ok(writers)
    }
}

fn writer(connection: &Connection, epoch: Epoch) -> Result<Option<Writer>, Stop> {
    let sql = "SELECT node, last_request, numbers, forked_ms FROM writer WHERE epoch = ?1";
    let read = |row: &rusqlite::Row<'_>| {
        Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, Vec<u8>>(2)?, row.get::<_, Option<i64>>(3)?))
    };
    let found = connection.prepare_cached(sql)?.query_row([epoch.to_string()], read).optional()?;
    let Some((node, last, numbers, forked)) = found else { return Ok(None) };
    let number = |bytes: &[u8]| -> Option<(u64, Digest)> {
        let (number, digest) = bytes.split_at_checked(8)?;
        Some((u64::from_be_bytes(number.try_into().ok()?), Digest(digest.try_into().ok()?)))
    };
    let broken = || Stop::Broken(format!("the store holds numbers of epoch {epoch} that cannot be read"));
    let numbers: Option<BTreeMap<u64, Digest>> = numbers.chunks(NUMBER_BYTES).map(number).collect();
    Ok(Some(Writer {
        node: rows::parsed(&node)?,
        last: u64::try_from(last).map_err(|_| broken())?,
        numbers: numbers.ok_or_else(broken)?,
        forked: forked.map(|at| Wall(u64::try_from(at).unwrap_or(0))),
    }))
}

/// Of the numbers only the last is stored, which every later question of an honest writer names; the others are in memory. After a restart a second
/// writer is told apart at its first question above that number, and before that one it gets nothing.
fn save_writer(connection: &Connection, epoch: Epoch, writer: &Writer) -> Result<(), Stop> {
    let last = writer.numbers.get_key_value(&writer.last);
    let numbers: Vec<u8> = last.iter().flat_map(|(number, digest)| number.to_be_bytes().into_iter().chain(digest.0)).collect();
    let (epoch, last) = (epoch.to_string(), int(writer.last));
    let forked = writer.forked.map(|at| int(at.0));
    let sql = "UPDATE writer SET last_request = ?2, numbers = ?3, forked_ms = ?4 WHERE epoch = ?1";
    if connection.prepare_cached(sql)?.execute(params![epoch, last, numbers, forked])? == 0 {
        let sql = "INSERT INTO writer (epoch, node, last_request, numbers, forked_ms) VALUES (?1, ?2, ?3, ?4, ?5)";
        connection.prepare_cached(sql)?.execute(params![epoch, writer.node.as_str(), last, numbers, forked])?;
    }
    Ok(())
}

/// How the store stands, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize, JsonSchema)]
pub struct StandingView {
    /// Raised whenever the store was put back from a copy.
    pub generation: u64,
    /// While it recovers: for how many seconds yet it grants nothing.
    pub recovers_for_s: Option<u64>,
    /// Epochs under which several write: they get no further credit, and wait for their silence.
    pub forked: Vec<ForkedEpoch>,
    /// What nodes hold that the store has forgotten, and cannot back.
    pub unbacked: Vec<UnbackedClaim>,
    /// The billing engine that keeps balances, where there is one.
    #[serde(default)]
    pub engine: Option<EngineView>,
}

/// An epoch under which several write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize, JsonSchema)]
pub struct ForkedEpoch {
    /// Whose.
    pub node: NodeId,
    /// Which.
    pub epoch: Epoch,
    /// When that was seen.
    #[serde(rename = "since_ms")]
    pub since: Wall,
}

/// Credit that a node holds by proof and that the store cannot back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize, JsonSchema)]
pub struct UnbackedClaim {
    /// Of which account.
    pub account: AccountId,
    /// Which node.
    pub node: NodeId,
    /// Under which epoch.
    pub epoch: Epoch,
    /// How much.
    pub amount: Credits,
}

impl Store {
    /// Proofs are made and checked with this key from now on.
    pub fn prove_with(&mut self, key: ProofKey) {
        self.standing.key = Some(key);
    }

    /// What is counted, for metrics.
    #[must_use]
    pub fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.standing.tally)
    }

    /// The balances were put back from a copy: nothing is granted before every grant that may be forgotten has run out.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn recover(&mut self, trust: Trust, now: Now) -> Result<(), StoreError> {
        self.transact(|books| books.recover(trust, 0, now)).map_err(unrefused)
    }

    /// Is it recovering?
    #[must_use]
    pub fn recovery(&self) -> Recovery {
        self.standing.recovery
    }

    /// Ends a recovery whose time is over: in one transaction with closing what was silent all the while.
    pub(super) fn end_recovery_when_due(&mut self, now: Now) -> Result<(), StoreError> {
        let began = self.standing.began;
        if self.standing.recovery == Recovery::Over || now.mono.since(began) < RECOVERY {
            return Ok(());
        }
        let ended = self.transact(|books| {
            for id in books.account_ids("SELECT DISTINCT account FROM epoch WHERE state = 'open' ORDER BY account", params![])? {
                if let Some(mut account) = books.load(&id, &std::collections::BTreeSet::new())? {
                    let lines = end_recovery(&mut account, began, now);
                    books.save(&account, lines, now)?;
                }
            }
            books.connection.execute("UPDATE standing SET recovery = 'over'", [])?;
            Ok(())
        });
        ended.map_err(unrefused)?;
        self.standing.recovery = Recovery::Over;
        self.standing.show();
        tracing::info!(event = "recovered", "credit is granted again");
        Ok(())
    }

    /// How it stands.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn standing(&mut self, now: Mono) -> Result<StandingView, Refusal> {
        let left = RECOVERY.0.saturating_sub(now.since(self.standing.began).0).div_ceil(1_000_000_000);
        let recovers_for_s = (self.standing.recovery != Recovery::Over).then_some(left);
        let generation = self.standing.generation;
        self.transact(|books| {
            let (forked, unbacked) = (forked(books.connection)?, unbacked(books)?);
            Ok(StandingView { generation, recovers_for_s, forked, unbacked, engine: None })
        })
    }
}

fn forked(connection: &Connection) -> Result<Vec<ForkedEpoch>, Stop> {
    let mut statement =
        connection.prepare("SELECT node, epoch, forked_ms FROM writer WHERE forked_ms IS NOT NULL ORDER BY forked_ms, epoch")?;
    let mut found = statement.query([])?;
    let mut epochs = Vec::new();
    while let Some(row) = found.next()? {
        let (node, epoch): (String, String) = (row.get(0)?, row.get(1)?);
        let since = Wall(u64::try_from(row.get::<_, i64>(2)?).unwrap_or(0));
        epochs.push(ForkedEpoch { node: rows::parsed(&node)?, epoch: rows::parsed(&epoch)?, since });
    }
    Ok(epochs)
}

fn unbacked(books: &mut Books<'_>) -> Result<Vec<UnbackedClaim>, Stop> {
    let mut claims = Vec::new();
    for account in books.account_ids("SELECT DISTINCT account FROM claim ORDER BY account", [])? {
        let Account { epochs, .. } = books.known(&account)?;
        claims.extend(epochs.iter().filter(|(_, epoch)| epoch.unbacked().is_positive()).map(|(id, epoch)| UnbackedClaim {
            account: account.clone(),
            amount: epoch.unbacked(),
            node: epoch.node.clone(),
            epoch: *id,
        }));
    }
    Ok(claims)
}
