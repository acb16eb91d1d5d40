//! Accounts whose balance an engine keeps: what of their use was told to it, in events that never change, and what it said.
//!
//! How much is to be told is no queue but two totals, so that nothing is kept twice: what the ledger charged, and what events hold. An account has one
//! event under way at most; what is used meanwhile waits in the totals, however long that takes, and becomes one event.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Books, Refusal, Stop, Store, StoreError, rows, unrefused};
use crate::domain::id::{AccountId, PaymentId};
use crate::domain::ledger::{AMOUNT_MAX, Account, MIRROR_PREFIX, Terms, follow};
use crate::domain::mirror::{Acknowledged, Drawn, Reading, Usage, fit};
use crate::domain::money::Credits;
use crate::domain::time::{Mono, Nanos, Now, Wall};
use crate::domain::wire::{Push, Request};
use crate::sqlite::{classify, int};

/// Acknowledged events are kept for so long, to be looked at.
const KEPT_FOR: Nanos = Nanos::from_secs(7 * 86_400);
/// So many events are shown one by one.
const SHOWN_MAX: usize = 32;
/// Longest word of an engine on why it refuses an event.
const WHY_CHARS_MAX: usize = 200;

/// Makes the tables where they are not there.
pub(super) fn make_tables(connection: &Connection) -> Result<(), StoreError> {
    let sql = "
        CREATE TABLE IF NOT EXISTS mirror (account TEXT PRIMARY KEY REFERENCES account (id), base TEXT NOT NULL, paused TEXT, told TEXT NOT NULL,
            acknowledged TEXT NOT NULL, shown TEXT NOT NULL, balance TEXT, as_of_ms INTEGER, engine_as_of_ms INTEGER) STRICT;
        CREATE TABLE IF NOT EXISTS usage_event (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, account TEXT NOT NULL REFERENCES account (id),
            amount TEXT NOT NULL, at_ms INTEGER NOT NULL, body TEXT NOT NULL, state TEXT NOT NULL, why TEXT, changed_ms INTEGER NOT NULL) STRICT;
        CREATE INDEX IF NOT EXISTS usage_event_state ON usage_event (state, seq);
        CREATE TABLE IF NOT EXISTS mirror_names (one INTEGER PRIMARY KEY CHECK (one = 1), store TEXT NOT NULL, events INTEGER NOT NULL,
            movements INTEGER NOT NULL) STRICT;
        INSERT OR IGNORE INTO mirror_names (one, store, events, movements) VALUES (1, lower(hex(randomblob(8))), 0, 0);";
    connection.execute_batch(sql).map_err(|error| StoreError::from(classify(connection, &error)))
}

/// By what accounts follow an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mirroring {
    /// The engine's balance shows an event so long after it was acknowledged.
    pub settles_within: Nanos,
    /// Of a balance that is older nothing new is granted.
    pub stale_after: Nanos,
    /// Who else draws on it?
    pub drawn: Drawn,
    /// Between two events of one account.
    pub event_every: Nanos,
    /// An event that is older is not sent any more: the engine might not know any more that it took it before.
    pub event_age_max: Nanos,
}

/// What an event will say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// Its name, for ever.
    pub id: String,
    /// Whose use.
    pub account: AccountId,
    /// How much.
    pub amount: Credits,
    /// When it was put together.
    pub at: Wall,
}

/// Use that an engine is told of. Each time word for word the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageEvent {
    /// What it says.
    pub draft: Draft,
    /// In the engine's words.
    pub body: String,
}

/// What an engine said of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has it, now or since before.
    Taken,
    /// It does not want it. Asked again later.
    Refused {
        /// A stable word.
        code: &'static str,
        /// In its own words.
        why: String,
    },
    /// Nothing: send it again.
    Again,
}

/// What came of an engine's word on a balance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Followed {
    /// The account holds more or less than before: tell its nodes.
    Moved(Push),
    /// It holds that much already.
    Same,
    /// An earlier word was of a later instant.
    Older,
    /// More than an account can hold.
    TooLarge,
    /// Its balance is not the engine's any more.
    NotMirrored,
}

/// What is in memory of one account.
struct Mirrored {
    acknowledged: Acknowledged,
    as_of: Option<Mono>,
    engine_as_of: Option<Wall>,
    /// When the last event was put together.
    told: Option<Mono>,
}

/// What is in memory. Changed only after a commit.
#[derive(Default)]
pub(super) struct Mirrors {
    rules: Option<Mirroring>,
    of: BTreeMap<AccountId, Mirrored>,
}

impl Mirrors {
    /// Those of the accounts that the request asks about whose balance is too old.
    pub(super) fn stale_of(&self, request: &Request, now: Mono) -> Option<BTreeSet<AccountId>> {
        let rules = self.rules.filter(|_| !self.of.is_empty())?;
        let stale = |id: &&AccountId| self.of.get(*id).is_some_and(|mirrored| mirrored.is_stale(&rules, now));
        let stale: BTreeSet<AccountId> = request.entries.iter().map(|entry| &entry.account).filter(stale).cloned().collect();
        (!stale.is_empty()).then_some(stale)
    }

    /// Money comes and goes at the engine.
    pub(super) fn check_pay<'a>(&self, accounts: impl IntoIterator<Item = &'a AccountId>) -> Result<(), Refusal> {
        if accounts.into_iter().any(|id| self.of.contains_key(id)) { Err(Refusal::Mirrored) } else { Ok(()) }
    }

    /// Nor does the authority give credit of its own.
    pub(super) fn check_terms(&self, id: &AccountId, terms: &Terms) -> Result<(), Refusal> {
        if gives_credit(terms) { self.check_pay([id]) } else { Ok(()) }
    }
}

impl Mirrored {
    fn is_stale(&self, rules: &Mirroring, now: Mono) -> bool {
        self.as_of.is_none_or(|as_of| rules.stale_after < now.since(as_of))
    }
}

/// Do these terms give credit that no engine knows of?
fn gives_credit(terms: &Terms) -> bool {
    terms.allowance.is_some() || terms.commitment.is_some() || terms.refill.is_some()
}

/// What is stored of one account.
struct Kept {
    base: Credits,
    paused: Option<Credits>,
    told: Credits,
    acknowledged: Credits,
    shown: Credits,
    balance: Option<Credits>,
    as_of: Option<Wall>,
    engine_as_of: Option<Wall>,
}

impl Kept {
    fn usage(&self, account: &Account) -> Usage {
        Usage { used: account.used().minus(self.base), told: self.told, shown: self.shown }
    }
}

fn kept(connection: &Connection, id: &AccountId) -> Result<Option<Kept>, Stop> {
    let mut statement = connection.prepare_cached("SELECT * FROM mirror WHERE account = ?1")?;
    let mut found = statement.query([id.as_str()])?;
    let Some(row) = found.next()? else { return Ok(None) };
    let amount = |column: &str| rows::parsed::<Credits>(&row.get::<_, String>(column)?);
    let perhaps = |column: &str| row.get::<_, Option<String>>(column)?.map(|text| rows::parsed::<Credits>(&text)).transpose();
    let wall = |column: &str| Ok::<_, Stop>(row.get::<_, Option<i64>>(column)?.map(|at| Wall(u64::try_from(at).unwrap_or(0))));
    Ok(Some(Kept {
        base: amount("base")?,
        paused: perhaps("paused")?,
        told: amount("told")?,
        acknowledged: amount("acknowledged")?,
        shown: amount("shown")?,
        balance: perhaps("balance")?,
        as_of: wall("as_of_ms")?,
        engine_as_of: wall("engine_as_of_ms")?,
    }))
}

fn keep(connection: &Connection, id: &AccountId, kept: &Kept) -> Result<(), Stop> {
    let sql = "INSERT OR REPLACE INTO mirror (account, base, paused, told, acknowledged, shown, balance, as_of_ms, engine_as_of_ms)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    let text = |amount: Option<Credits>| amount.map(|amount| amount.to_string());
    connection.prepare_cached(sql)?.execute(params![
        id.as_str(),
        kept.base.to_string(),
        text(kept.paused),
        kept.told.to_string(),
        kept.acknowledged.to_string(),
        kept.shown.to_string(),
        text(kept.balance),
        kept.as_of.map(|at| int(at.0)),
        kept.engine_as_of.map(|at| int(at.0)),
    ])?;
    Ok(())
}

fn event(row: &Row<'_>) -> Result<UsageEvent, Stop> {
    let draft = Draft {
        id: row.get("id")?,
        account: rows::parsed(&row.get::<_, String>("account")?)?,
        amount: rows::parsed(&row.get::<_, String>("amount")?)?,
        at: Wall(u64::try_from(row.get::<_, i64>("at_ms")?).unwrap_or(0)),
    };
    Ok(UsageEvent { draft, body: row.get("body")? })
}

fn too_old_before(rules: &Mirroring, now: Now) -> i64 {
    int(now.wall.0.saturating_sub(rules.event_age_max.millis()))
}

impl Store {
    /// Which accounts follow an engine from now on, by these rules; none without. Gives those that do, and those that cannot, since their terms give
    /// credit that no engine knows of. For the start, and for accounts that were made since.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn enrol(
        &mut self,
        rules: Option<Mirroring>,
        wanted: impl Fn(&AccountId) -> bool,
        now: Now,
    ) -> Result<(Vec<AccountId>, Vec<AccountId>), StoreError> {
        let enrolled = self.transact(|books| {
            let (mut on, mut cannot) = (BTreeMap::new(), Vec::new());
            for id in books.account_ids("SELECT id FROM account ORDER BY id", [])? {
                let (account, before) = (books.known(&id)?, kept(books.connection, &id)?);
                let is_wanted = rules.is_some() && wanted(&id);
                if is_wanted && gives_credit(&account.terms) && before.as_ref().is_none_or(|kept| kept.paused.is_some()) {
                    cannot.push(id);
                    continue;
                }
                match enrolled(&account, before, is_wanted) {
                    (Enrolled::Stays, kept) => drop(kept.filter(|_| is_wanted).map(|kept| on.insert(id, kept))),
                    (Enrolled::Changes, Some(kept)) => {
                        keep(books.connection, &id, &kept)?;
                        if is_wanted {
                            on.insert(id, kept);
                        }
                    }
                    (Enrolled::Changes, None) => {}
                }
            }
            Ok((on, cannot))
        });
        let (on, cannot) = enrolled.map_err(unrefused)?;
        self.mirrors.rules = rules;
        self.mirrors.of.retain(|id, _| on.contains_key(id));
        for (id, kept) in &on {
            self.mirrors.of.entry(id.clone()).or_insert_with(|| remembered(kept, now));
        }
        Ok((on.into_keys().collect(), cannot))
    }

    /// How many accounts there are.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn count(&mut self) -> Result<u64, StoreError> {
        let count = self.transact(|books| {
            Ok(books.connection.prepare_cached("SELECT count(*) FROM account")?.query_row([], |row| row.get::<_, i64>(0))?)
        });
        count.map(|count| u64::try_from(count).unwrap_or(0)).map_err(unrefused)
    }

    /// Puts use that no event holds into events; `body` gives their words. How many were made.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn put_into_events(&mut self, body: impl Fn(&Draft) -> String, now: Now) -> Result<usize, StoreError> {
        let Some(rules) = self.mirrors.rules else { return Ok(0) };
        let rests = |mirrored: &Mirrored| mirrored.told.is_some_and(|at| now.mono.since(at) < rules.event_every);
        let due: Vec<AccountId> = self.mirrors.of.iter().filter(|(_, mirrored)| !rests(mirrored)).map(|(id, _)| id.clone()).collect();
        let generation = self.standing.generation();
        let made = self.transact(|books| {
            let under_way = books.under_way(&rules, now)?;
            let mut made = Vec::new();
            for id in due.into_iter().filter(|id| !under_way.contains(id)) {
                let (account, Some(mut kept)) = (books.known(&id)?, kept(books.connection, &id)?) else { continue };
                let usage = kept.usage(&account);
                let amount = usage.used.minus(usage.told);
                if !amount.is_positive() {
                    continue;
                }
                let id = books.new_event(generation, account.id, amount, &body, now)?;
                kept.told = usage.used;
                keep(books.connection, &id, &kept)?;
                made.push(id);
            }
            let sql = "DELETE FROM usage_event WHERE state = 'acknowledged' AND changed_ms < ?1";
            books.connection.prepare_cached(sql)?.execute([int(now.wall.0.saturating_sub(KEPT_FOR.millis()))])?;
            Ok(made)
        });
        let made = made.map_err(unrefused)?;
        for id in &made {
            if let Some(mirrored) = self.mirrors.of.get_mut(id) {
                mirrored.told = Some(now.mono);
            }
        }
        Ok(made.len())
    }

    /// Events that the engine has not acknowledged, the oldest first.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn events_to_send(&mut self, most: usize, now: Now) -> Result<Vec<UsageEvent>, StoreError> {
        let Some(rules) = self.mirrors.rules else { return Ok(Vec::new()) };
        let events = self.transact(|books| {
            let sql = "SELECT * FROM usage_event WHERE state = 'waiting' AND ?1 <= at_ms ORDER BY seq LIMIT ?2";
            let mut statement = books.connection.prepare_cached(sql)?;
            let mut found = statement.query(params![too_old_before(&rules, now), i64::try_from(most).unwrap_or(i64::MAX)])?;
            let mut events = Vec::new();
            while let Some(row) = found.next()? {
                events.push(event(row)?);
            }
            Ok(events)
        });
        events.map_err(unrefused)
    }

    /// Takes the engine's word on events. How many were taken and refused.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn events_told(&mut self, outcomes: &[(String, Outcome)], now: Now) -> Result<(u64, u64), StoreError> {
        let told = self.transact(|books| {
            let (mut taken, mut refused) = (Vec::new(), 0);
            for (id, outcome) in outcomes {
                match outcome {
                    Outcome::Taken => taken.extend(books.acknowledge(id, now)?),
                    Outcome::Refused { code, why } => {
                        let why: String = format!("{code}: {why}").chars().filter(|c| !c.is_control()).take(WHY_CHARS_MAX).collect();
                        let sql = "UPDATE usage_event SET state = 'refused', why = ?2, changed_ms = ?3 WHERE id = ?1 AND state = 'waiting'";
                        refused += books.connection.prepare_cached(sql)?.execute(params![id, why, int(now.wall.0)])? as u64;
                    }
                    Outcome::Again => {}
                }
            }
            Ok((taken, refused))
        });
        let (taken, refused) = told.map_err(unrefused)?;
        let count = taken.len() as u64;
        for (id, amount) in taken {
            if let Some(mirrored) = self.mirrors.of.get_mut(&id) {
                mirrored.acknowledged.add(amount, now.mono);
            }
        }
        Ok((count, refused))
    }

    /// What was refused is to be sent once more: the engine may have been put right.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn try_refused_again(&mut self) -> Result<usize, StoreError> {
        let again = self.transact(|books| {
            Ok(books.connection.prepare_cached("UPDATE usage_event SET state = 'waiting' WHERE state = 'refused'")?.execute([])?)
        });
        again.map_err(unrefused)
    }

    /// Takes the engine's word on a balance: the account follows it.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn follow(&mut self, id: &AccountId, reading: &Reading, now: Now) -> Result<Followed, StoreError> {
        let (Some(rules), Some(mirrored)) = (self.mirrors.rules, self.mirrors.of.get_mut(id)) else { return Ok(Followed::NotMirrored) };
        let as_of = reading.as_of_here();
        let engine_went_back = reading.as_of.zip(mirrored.engine_as_of).is_some_and(|(now, before)| now < before);
        if engine_went_back || mirrored.as_of.is_some_and(|before| as_of < before) {
            return Ok(Followed::Older);
        }
        if AMOUNT_MAX < reading.balance {
            return Ok(Followed::TooLarge);
        }
        let shown = mirrored.acknowledged.shown_by(as_of, rules.settles_within);
        let followed = self.transact(|books| books.follow(id, reading, (shown, &rules), now)).map_err(unrefused)?;
        if let Some(mirrored) = self.mirrors.of.get_mut(id) {
            (mirrored.as_of, mirrored.engine_as_of) = (Some(as_of), reading.as_of.or(mirrored.engine_as_of));
        }
        Ok(followed)
    }

    /// How mirrored accounts and their events stand.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn mirrored(&mut self, now: Now) -> Result<MirrorView, StoreError> {
        let Some(rules) = self.mirrors.rules else { return Ok(MirrorView::default()) };
        let accounts = self.mirrors.of.len() as u64;
        let stale: Vec<AccountId> =
            self.mirrors.of.iter().filter(|(_, mirrored)| mirrored.is_stale(&rules, now.mono)).map(|(id, _)| id.clone()).collect();
        let stale_count = stale.len() as u64;
        let view = self.transact(|books| {
            let sql = "SELECT *, length(body) AS bytes FROM usage_event WHERE state <> 'acknowledged' ORDER BY seq";
            let mut statement = books.connection.prepare_cached(sql)?;
            let mut found = statement.query([])?;
            let mut view = MirrorView { accounts, stale: stale_count, ..MirrorView::default() };
            view.stale_accounts = stale.into_iter().take(SHOWN_MAX).collect();
            let too_old = too_old_before(&rules, now);
            while let Some(row) = found.next()? {
                view.add(row, too_old, now)?;
            }
            Ok(view)
        });
        view.map_err(unrefused)
    }
}

enum Enrolled {
    Stays,
    Changes,
}

/// What is to be stored of an account that is to follow an engine, or not any more. While it does not, nothing of its use is told.
fn enrolled(account: &Account, before: Option<Kept>, is_wanted: bool) -> (Enrolled, Option<Kept>) {
    match (before, is_wanted) {
        (None, false) => (Enrolled::Stays, None),
        (None, true) => {
            let none = Credits::ZERO;
            let base = account.used();
            let new =
                Kept { base, paused: None, told: none, acknowledged: none, shown: none, balance: None, as_of: None, engine_as_of: None };
            (Enrolled::Changes, Some(new))
        }
        (Some(kept), true) => match kept.paused {
            None => (Enrolled::Stays, Some(kept)),
            Some(used) => (Enrolled::Changes, Some(Kept { base: account.used().minus(used), paused: None, ..kept })),
        },
        (Some(kept), false) if kept.paused.is_some() => (Enrolled::Stays, Some(kept)),
        (Some(kept), false) => {
            let paused = Some(kept.usage(account).used);
            (Enrolled::Changes, Some(Kept { paused, ..kept }))
        }
    }
}

/// What the process before this one knew. How old the last word is tells the wall clock; of one from before the machine began it is not known.
fn remembered(kept: &Kept, now: Now) -> Mirrored {
    let age = kept.as_of.map(|as_of| Nanos::from_millis(now.wall.0.saturating_sub(as_of.0)));
    Mirrored {
        acknowledged: Acknowledged::remembered(kept.shown, kept.acknowledged, now.mono),
        as_of: age.and_then(|age| now.mono.0.checked_sub(age.0)).map(Mono),
        engine_as_of: kept.engine_as_of,
        told: None,
    }
}

impl Books<'_> {
    /// Accounts that have an event which is not acknowledged, and may yet be.
    fn under_way(&self, rules: &Mirroring, now: Now) -> Result<BTreeSet<AccountId>, Stop> {
        let sql = "SELECT DISTINCT account FROM usage_event WHERE state IN ('waiting', 'refused') AND ?1 <= at_ms";
        Ok(self.account_ids(sql, [too_old_before(rules, now)])?.into_iter().collect())
    }

    fn new_event(
        &mut self,
        generation: u64,
        account: AccountId,
        amount: Credits,
        body: impl Fn(&Draft) -> String,
        now: Now,
    ) -> Result<AccountId, Stop> {
        let names = "UPDATE mirror_names SET events = events + 1 RETURNING store, events";
        let read = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?));
        let (store, seq) = self.connection.prepare_cached(names)?.query_row([], read)?;
        let draft = Draft { id: format!("{store}-{generation}-{seq}"), account, amount, at: now.wall };
        let sql =
            "INSERT INTO usage_event (id, account, amount, at_ms, body, state, changed_ms) VALUES (?1, ?2, ?3, ?4, ?5, 'waiting', ?4)";
        self.connection.prepare_cached(sql)?.execute(params![
            draft.id,
            draft.account.as_str(),
            amount.to_string(),
            int(now.wall.0),
            body(&draft)
        ])?;
        Ok(draft.account)
    }

    /// Whose use it was, and how much; nothing where that is known already.
    fn acknowledge(&mut self, id: &str, now: Now) -> Result<Option<(AccountId, Credits)>, Stop> {
        let sql = "UPDATE usage_event SET state = 'acknowledged', why = NULL, changed_ms = ?2 WHERE id = ?1 AND state <> 'acknowledged'
            RETURNING account, amount";
        let read = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?));
        let Some((account, amount)) = self.connection.prepare_cached(sql)?.query_row(params![id, int(now.wall.0)], read).optional()? else {
            return Ok(None);
        };
        let (account, amount): (AccountId, Credits) = (rows::parsed(&account)?, rows::parsed(&amount)?);
        let Some(mut kept) = kept(self.connection, &account)? else { return Ok(None) };
        kept.acknowledged = kept.acknowledged.plus(amount);
        keep(self.connection, &account, &kept)?;
        Ok(Some((account, amount)))
    }

    fn follow(&mut self, id: &AccountId, reading: &Reading, (shown, rules): (Credits, &Mirroring), now: Now) -> Result<Followed, Stop> {
        let (mut account, Some(mut kept)) = (self.known(id)?, kept(self.connection, id)?) else { return Ok(Followed::NotMirrored) };
        kept.shown = shown;
        let target = fit(account.holds(), reading.balance, &kept.usage(&account), rules.drawn);
        (kept.balance, kept.as_of) =
            (Some(reading.balance), Some(Wall(reading.asked_wall.0.min(reading.as_of.unwrap_or(reading.asked_wall).0))));
        kept.engine_as_of = reading.as_of.or(kept.engine_as_of);
        keep(self.connection, id, &kept)?;
        let movements: i64 = self.connection.prepare_cached("SELECT movements + 1 FROM mirror_names")?.query_row([], |row| row.get(0))?;
        let name: PaymentId = rows::parsed(&format!("{MIRROR_PREFIX}{movements}"))?;
        let version = account.version;
        let Some(lines) = follow(&mut account, target, &name, now) else { return Ok(Followed::Same) };
        self.connection.prepare_cached("UPDATE mirror_names SET movements = ?1")?.execute([movements])?;
        if account.revocations.iter().any(|revocation| revocation.id == name) {
            let sql =
                "INSERT INTO revocation (id, account, wanted, asked, taken, open, at_ms) VALUES (?1, ?2, 'mirrored', '0', '0', 1, ?3)";
            self.connection.prepare_cached(sql)?.execute(params![name.as_str(), id.as_str(), int(now.wall.0)])?;
        }
        self.save(&account, lines, now)?;
        if account.version == version {
            return Ok(Followed::Same);
        }
        Ok(Followed::Moved(Push { account: id.clone(), version: account.version }))
    }
}

/// How mirrored accounts and their events stand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MirrorView {
    /// Accounts whose balance an engine keeps.
    pub accounts: u64,
    /// How many of their balances are too old to grant anything of.
    pub stale: u64,
    /// The first of them.
    pub stale_accounts: Vec<AccountId>,
    /// Events that are to be sent.
    pub waiting: u64,
    /// Events that the engine refused, and that are sent again later.
    pub refused: u64,
    /// Events that were not acknowledged before they were too old to be sent: nobody knows whether the engine has them.
    pub too_old: u64,
    /// All of these, in bytes.
    pub bytes: u64,
    /// The age of the oldest one that is waiting or refused.
    pub oldest_s: Option<u64>,
    /// The first that were refused or are too old.
    pub troubled: Vec<TroubledEvent>,
}

/// An event that an engine has not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TroubledEvent {
    /// Its name.
    pub id: String,
    /// Whose use.
    pub account: AccountId,
    /// How much.
    pub amount: Credits,
    /// When it was put together.
    #[serde(rename = "at_ms")]
    pub at: Wall,
    /// Why.
    pub why: String,
}

impl MirrorView {
    fn add(&mut self, row: &Row<'_>, too_old_before: i64, now: Now) -> Result<(), Stop> {
        let UsageEvent { draft: Draft { id, account, amount, at }, .. } = event(row)?;
        let state: String = row.get("state")?;
        self.bytes += u64::try_from(row.get::<_, i64>("bytes")?).unwrap_or(0);
        let why = if int(at.0) < too_old_before {
            self.too_old += 1;
            Some("too_old: the engine did not acknowledge it in time".to_owned())
        } else {
            let age_s = now.wall.0.saturating_sub(at.0) / 1_000;
            self.oldest_s = Some(self.oldest_s.unwrap_or(0).max(age_s));
            let counter = if state == "refused" { &mut self.refused } else { &mut self.waiting };
            *counter += 1;
            (state == "refused").then(|| row.get::<_, Option<String>>("why")).transpose()?.map(Option::unwrap_or_default)
        };
        if let Some(why) = why.filter(|_| self.troubled.len() < SHOWN_MAX) {
            self.troubled.push(TroubledEvent { id, account, amount, at, why });
        }
        Ok(())
    }
}
