//! Several acts in one transaction: so many commits are saved, and each of them waits for the disk.

use super::{Books, Refusal, Stop, Store, StoreError};
use crate::sqlite::classify;

/// Is a transaction open that several acts share?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// No: each act has its own.
    None,
    /// Yes.
    Open,
    /// One of its acts was not done to its end: nothing of it may stay.
    Spoilt,
}

impl Store {
    /// Does several acts in one transaction: all of them are durable when this returns `Ok`. Where one is not done, nothing of any is; do each by
    /// itself then.
    ///
    /// # Errors
    /// That of the act, or of the commit.
    pub fn together<T>(&mut self, acts: impl FnOnce(&mut Store) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let (told, news) = (self.notices.len(), self.gang_news.len());
        self.order("BEGIN IMMEDIATE")?;
        self.group = Group::Open;
        let done = acts(self).and_then(|result| match self.group {
            Group::Spoilt => Err(StoreError::Fatal("an act was not done, and its group went on".to_owned())),
            Group::None | Group::Open => self.order("COMMIT").map(|()| result),
        });
        self.group = Group::None;
        match done {
            Ok(result) => {
                self.copy_back_when_due()?;
                Ok(result)
            }
            Err(error) => {
                self.notices.truncate(told);
                self.gang_news.truncate(news);
                self.recalled.clear();
                // `SQLite` itself ends a transaction after some failures.
                if !self.connection.is_autocommit() {
                    self.order("ROLLBACK")?;
                }
                self.undone();
                Err(error)
            }
        }
    }

    /// A transaction was undone: nothing of it may stay in memory. Where even reading fails, what is in memory errs late, and the next act fails too.
    pub(super) fn undone(&mut self) {
        self.kept.forget();
        if self.standing.read(&self.connection).is_err() {
            tracing::warn!(event = "store_unread", "how the store stands could not be read again");
        }
    }

    fn order(&self, sql: &'static str) -> Result<(), StoreError> {
        let done = self.connection.prepare_cached(sql).and_then(|mut statement| statement.execute([]));
        done.map(drop).map_err(|error| classify(&self.connection, &error).into())
    }

    /// One act of a group.
    pub(super) fn join<T>(&mut self, act: impl FnOnce(&mut Books<'_>) -> Result<T, Stop>) -> Result<T, Refusal> {
        let mut books = Books::over(&self.connection, &mut self.heard, &mut self.kept, &mut self.standing);
        match act(&mut books) {
            Ok(result) => {
                self.notices.append(&mut books.notices);
                self.gang_news.append(&mut books.gang_news);
                Ok(result)
            }
            Err(stop) => {
                self.group = Group::Spoilt;
                Err(stop.into_refusal(&self.connection))
            }
        }
    }
}
