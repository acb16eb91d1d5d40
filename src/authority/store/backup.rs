//! A copy of the balances while they change, and a copy put in their place.
//!
//! A copy that is put back has forgotten what was granted since it was made. So its store recovers: it grants nothing until every grant that it
//! may have forgotten has run out, and takes what nodes report and prove meanwhile.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rusqlite::backup::Backup;
use rusqlite::{Connection, OpenFlags};

use super::standing::{generation_of, write_forgotten};
use super::{KIND, Store, StoreError};
use crate::domain::ledger::{ClosePolicy, Trust, check};
use crate::domain::time::{Mono, Now};
use crate::sqlite::{open_for_reading, open_untouched};

/// Whoever puts a copy in place by other means makes a file of this name in the state folder: then the next start recovers.
pub const MARKER: &str = "restored";

/// Copies the balances as they are at one instant, also beside a running authority. A file that is there is not replaced.
///
/// # Errors
/// See [`StoreError`]; no file of that name is left then.
pub fn backup(from: &Path, to: &Path) -> Result<usize, StoreError> {
    let source = open_for_reading(from, &KIND)?;
    copy(&source, to)
}

/// Copies all that `source` shows at one instant to a new file, whole and flushed before it has its name.
fn copy(source: &Connection, to: &Path) -> Result<usize, StoreError> {
    let failed = |error: &dyn std::fmt::Display| StoreError::Fatal(format!("{}: {error}", to.display()));
    if to.exists() {
        return Err(failed(&"there is such a file already"));
    }
    let part = with_ending(to, "part");
    let made = (|| {
        let file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part).map_err(|error| failed(&error))?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut target = Connection::open_with_flags(&part, flags).map_err(|error| failed(&error))?;
        let copying = Backup::new(source, &mut target).map_err(|error| failed(&error))?;
        copying.step(-1).map_err(|error| failed(&error))?; // in one step: what is written meanwhile does not begin it anew
        drop(copying);
        super::revoke::make_tables(&target)?; // a copy that an older version made has none
        super::standing::make_tables(&target)?;
        let one_file = target.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()));
        one_file.map_err(|error| failed(&error))?;
        let found: String = target.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(|error| failed(&error))?;
        if found != "ok" {
            return Err(failed(&found));
        }
        drop(target);
        file.sync_all().map_err(|error| failed(&error))
    })();
    let made = made.and_then(|()| {
        let accounts = checked(&part)?;
        std::fs::rename(&part, to).map_err(|error| failed(&error))?;
        if let Some(folder) = to.parent() {
            let flushed = std::fs::File::open(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
                .and_then(|folder| folder.sync_all());
            flushed.map_err(|error| failed(&error))?;
        }
        Ok(accounts)
    });
    if made.is_err() {
        let _ = std::fs::remove_file(&part); // it may not be there
    }
    made
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

/// Do the ledger's rules hold in this file? Gives the number of its accounts.
fn checked(path: &Path) -> Result<usize, StoreError> {
    let connection = open_untouched(path, &KIND, crate::sqlite::Writing::Rests)?;
    let mut store = Store::over(connection, ClosePolicy::OnSuccessor, Mono(0));
    store.check_all()
}

/// Puts a copy in the place of the balances in `state_dir`, of which no authority may be running. What was there before is kept beside it, under
/// the name that comes back; none if nothing was there.
///
/// # Errors
/// See [`StoreError`]; then the balances are as they were.
pub fn restore(state_dir: &Path, from: &Path, trust: Trust, now: Now) -> Result<(usize, Option<PathBuf>), StoreError> {
    let place = state_dir.join("authority.db");
    let failed = |error: std::io::Error| StoreError::Fatal(format!("{}: {error}", state_dir.display()));
    let source = open_untouched(from, &KIND, crate::sqlite::Writing::Rests)?;
    let fresh = state_dir.join(format!("restoring-{}", now.wall.0));
    let accounts = copy(&source, &fresh)?;
    forget(&fresh, &place, trust, now)?;
    let kept = place.exists().then(|| state_dir.join(format!("replaced-{}.db", now.wall.0)));
    if let Some(kept) = &kept {
        for ending in ["", "-wal", "-shm"] {
            let (old, new) = (format!("{}{ending}", place.display()), format!("{}{ending}", kept.display()));
            match std::fs::rename(old, new) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
    }
    std::fs::rename(&fresh, &place).map_err(failed)?;
    std::fs::File::open(state_dir).and_then(|folder| folder.sync_all()).map_err(failed)?;
    Ok((accounts, kept))
}

/// The copy itself says that it is one, before it is in its place.
fn forget(copy: &Path, replaced: &Path, trust: Trust, now: Now) -> Result<(), StoreError> {
    let seen = open_for_reading(replaced, &KIND).ok().and_then(|replaced| generation_of(&replaced)).unwrap_or(0);
    let opened = Connection::open_with_flags(copy, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX);
    let connection = opened.map_err(|error| StoreError::Fatal(format!("{}: {error}", copy.display())))?;
    let written = write_forgotten(&connection, trust, seen, now.wall);
    written.map(drop).map_err(|stop| super::unrefused(stop.into_refusal(&connection)))
}

impl Store {
    /// Do the ledger's rules hold for every account? Reads only. Gives the number of accounts.
    fn check_all(&mut self) -> Result<usize, StoreError> {
        let mut books = super::Books::over(&self.connection, &mut self.heard, &mut self.kept, &mut self.standing);
        let sound = (|| {
            let ids = books.account_ids("SELECT id FROM account ORDER BY id", [])?;
            for id in &ids {
                let account = books.known(id)?;
                check(&account).map_err(|broken| super::Stop::Broken(format!("account {id}: {broken}")))?;
            }
            Ok(ids.len())
        })();
        sound.map_err(|stop: super::Stop| super::unrefused(stop.into_refusal(&self.connection)))
    }
}
