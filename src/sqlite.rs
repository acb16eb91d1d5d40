//! How this program opens its `SQLite` files, and what a failure of one means.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, Error, ErrorCode, OpenFlags, ffi};
use rustix::io::Errno;

/// A failure, sorted by what can be done about it.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No space: may pass.
    Full(String),
    /// A read-only disk: may pass.
    ReadOnly(String),
    /// Another process holds the file: may pass.
    Blocked(String),
    /// Another program's file, or that of another version. Nothing in it was changed.
    Foreign(String),
    /// The file is not what was written.
    Damaged(String),
    /// The disk failed, or anything else: what is on disk is not known any more.
    Fatal(String),
}

/// What makes a file ours.
pub(crate) struct Kind {
    /// `SQLite`'s `application_id`.
    pub(crate) application_id: i32,
    /// `SQLite`'s `user_version`: the version of the tables.
    pub(crate) version: i32,
    /// Makes the tables.
    pub(crate) schema: &'static str,
    /// Brings the tables of an earlier version to this one, a step a version: the first is from version 1 to 2. Append only.
    pub(crate) steps: &'static [&'static str],
}

/// How long another process may hold the file before that is reported.
const PATIENCE: Duration = Duration::from_secs(5);

/// Opens the file for reading and writing, or makes it. Every commit is flushed. The write-ahead log is copied back by [`copy_back`] only,
/// since `SQLite`'s own way swallows a failed flush.
pub(crate) fn open_for_writing(path: &Path, kind: &Kind) -> Result<Connection, Failure> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|error| Failure::Fatal(format!("{}: {error}", path.display())))?;
    match prepared(&connection, kind) {
        Ok(None) => Ok(connection),
        Ok(Some(foreign)) => Err(Failure::Foreign(format!("{}: {foreign}", path.display()))),
        Err(error) => Err(classify(&connection, &error)),
    }
}

/// Opens the file for reading only, also beside a running writer.
pub(crate) fn open_for_reading(path: &Path, kind: &Kind) -> Result<Connection, Failure> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|error| Failure::Fatal(format!("{}: {error}", path.display())))?;
    let checked = connection.busy_timeout(PATIENCE).and_then(|()| foreign(&connection, kind));
    match checked {
        Ok(None) => Ok(connection),
        Ok(Some(foreign)) => Err(Failure::Foreign(format!("{}: {foreign}", path.display()))),
        Err(error) => Err(classify(&connection, &error)),
    }
}

/// Does another process write the file?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writing {
    /// One does.
    Goes,
    /// None does.
    Rests,
}

/// Opens the file for reading, and leaves it and its folder as they are, also where a writer was killed: neither a log nor an index of it is
/// made, and nothing is copied back.
pub(crate) fn open_untouched(path: &Path, kind: &Kind, writing: Writing) -> Result<Connection, Failure> {
    let log = std::fs::metadata(format!("{}-wal", path.display())).is_ok_and(|log| log.len() != 0);
    let opened = match (writing, log) {
        (Writing::Goes, _) => return open_for_reading(path, kind),
        (Writing::Rests, false) => {
            let escaped: String = path.display().to_string().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
            Connection::open_with_flags(format!("file:{escaped}?immutable=1"), flags)
        }
        // Alone with the file, the index of its log is kept in memory.
        (Writing::Rests, true) => {
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            Connection::open_with_flags(path, flags).and_then(|connection| {
                connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
                connection.execute_batch("PRAGMA locking_mode = EXCLUSIVE; PRAGMA query_only = ON;")?;
                Ok(connection)
            })
        }
    };
    let connection = opened.map_err(|error| Failure::Fatal(format!("{}: {error}", path.display())))?;
    // One of an earlier version is brought up by the next writer.
    let earlier = || connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map(|found: i32| found.clamp(1, kind.version));
    let known = connection.busy_timeout(PATIENCE).and_then(|()| earlier()).map(|version| Kind { version, ..*kind });
    match known.and_then(|kind| foreign(&connection, &kind)) {
        Ok(None) => Ok(connection),
        Ok(Some(foreign)) => Err(Failure::Damaged(format!("{}: {foreign}", path.display()))),
        Err(error) => Err(classify(&connection, &error)),
    }
}

fn prepared(connection: &Connection, kind: &Kind) -> Result<Option<String>, Error> {
    connection.busy_timeout(PATIENCE)?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return Ok(Some(format!("no write-ahead log can be kept there (journal_mode is {mode})")));
    }
    connection.execute_batch("PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0; PRAGMA journal_size_limit = 16777216;")?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables == 0 {
        let Kind { application_id, version, schema, .. } = kind;
        connection.execute_batch(&format!(
            "BEGIN IMMEDIATE; {schema} PRAGMA application_id = {application_id}; PRAGMA user_version = {version}; COMMIT;"
        ))?;
    }
    brought_up(connection, kind)?;
    foreign(connection, kind)
}

/// Takes the steps from the version found to the one known, each whole or not at all. A file of another kind is left alone.
fn brought_up(connection: &Connection, kind: &Kind) -> Result<(), Error> {
    let id: i32 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let found: i32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let first = usize::try_from(found.saturating_sub(1)).unwrap_or(usize::MAX);
    if id != kind.application_id {
        return Ok(());
    }
    for (version, step) in (found.saturating_add(1)..=kind.version).zip(kind.steps.iter().skip(first)) {
        connection.execute_batch(&format!("BEGIN IMMEDIATE; {step} PRAGMA user_version = {version}; COMMIT;"))?;
    }
    Ok(())
}

/// What keeps this file from being one of ours.
fn foreign(connection: &Connection, kind: &Kind) -> Result<Option<String>, Error> {
    let application_id: i32 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let version: i32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if application_id != kind.application_id {
        return Ok(Some("another program's file".to_owned()));
    }
    Ok((version != kind.version).then(|| {
        format!("its tables have version {version}, this program knows version {}: install the version that wrote it", kind.version)
    }))
}

/// Copies the write-ahead log back into the file, as far as readers allow, and flushes both.
pub(crate) fn copy_back(connection: &Connection) -> Result<(), Failure> {
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).map_err(|error| classify(connection, &error))
}

/// What a failure on this connection means. Call it before anything else is done with the connection.
pub(crate) fn classify(connection: &Connection, error: &Error) -> Failure {
    let text = || error.to_string();
    let Some(failure) = error.sqlite_error() else {
        return match error {
            Error::InvalidColumnType(..)
            | Error::FromSqlConversionFailure(..)
            | Error::IntegralValueOutOfRange(..)
            | Error::QueryReturnedNoRows => Failure::Damaged(text()),
            _ => Failure::Fatal(text()),
        };
    };
    match failure.code {
        ErrorCode::DiskFull => Failure::Full(text()),
        ErrorCode::ReadOnly => Failure::ReadOnly(text()),
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Failure::Blocked(text()),
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Failure::Damaged(text()),
        // Our statements fit our tables: then it is the file whose header or tables are not what was written.
        ErrorCode::Unknown if failure.extended_code == ffi::SQLITE_ERROR => Failure::Damaged(text()),
        ErrorCode::SystemIoFailure => io_failure(failure.extended_code, system_errno(connection), &text()),
        _ => Failure::Fatal(text()),
    }
}

/// A failed flush is fatal whatever its cause: pages may be lost from the cache, and the next flush would say that all is well.
fn io_failure(extended_code: i32, errno: Errno, text: &str) -> Failure {
    let flush = [ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_IOERR_DIR_FSYNC].contains(&extended_code);
    let text = format!("{text} ({errno})");
    match errno {
        _ if flush => Failure::Fatal(text),
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => Failure::Full(text),
        Errno::ROFS => Failure::ReadOnly(text),
        _ => Failure::Fatal(text),
    }
}

/// The operating system's error behind the connection's last failure (`sqlite3_system_errno`).
#[expect(unsafe_code, reason = "rusqlite has no safe call for sqlite3_system_errno")]
fn system_errno(connection: &Connection) -> Errno {
    // SAFETY: the handle is of a live, borrowed connection, and the call only reads a field of it.
    Errno::from_raw_os_error(unsafe { ffi::sqlite3_system_errno(connection.handle()) })
}

/// `SQLite`'s integers are signed. Numbers here count rows, milliseconds and bytes: they never come near the end.
pub(crate) fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_flush_is_fatal_even_for_lack_of_space() {
        let full = |code, errno| matches!(io_failure(code, errno, ""), Failure::Full(_));
        assert!(full(ffi::SQLITE_IOERR_WRITE, Errno::NOSPC));
        assert!(matches!(io_failure(ffi::SQLITE_IOERR_WRITE, Errno::ROFS, ""), Failure::ReadOnly(_)));
        assert!(!full(ffi::SQLITE_IOERR_FSYNC, Errno::ROFS));
        assert!(full(ffi::SQLITE_IOERR_SHMSIZE, Errno::NOSPC));
        assert!(!full(ffi::SQLITE_IOERR_WRITE, Errno::IO));
        assert!(!full(ffi::SQLITE_IOERR_FSYNC, Errno::IO));
        assert!(!full(ffi::SQLITE_IOERR_FSYNC, Errno::NOSPC));
    }

    #[test]
    fn every_commit_is_flushed_and_none_is_copied_back_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let kind = Kind { application_id: 1, version: 1, schema: "CREATE TABLE t (a INTEGER) STRICT;", steps: &[] };
        let connection = open_for_writing(&dir.path().join("x.db"), &kind).unwrap();
        let set = |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(set("synchronous"), 2, "2 is FULL: one flush of the write-ahead log for each commit");
        assert_eq!(set("wal_autocheckpoint"), 0);
    }

    #[test]
    fn an_earlier_versions_tables_are_brought_up_a_step_a_version_and_a_later_ones_are_refused() {
        const STEPS: [&str; 2] = ["ALTER TABLE t ADD COLUMN b INTEGER NOT NULL DEFAULT 7;", "UPDATE t SET b = b + a;"];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        let of = |version: i32, schema| Kind { application_id: 1, version, schema, steps: &STEPS[..usize::try_from(version - 1).unwrap()] };
        let first = open_for_writing(&path, &of(1, "CREATE TABLE t (a INTEGER) STRICT;")).unwrap();
        first.execute_batch("INSERT INTO t VALUES (1);").unwrap();
        drop(first);
        let b = |connection: &Connection| connection.query_row("SELECT b FROM t", [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(b(&open_for_writing(&path, &of(2, "")).unwrap()), 7);
        assert_eq!(b(&open_for_writing(&path, &of(3, "")).unwrap()), 8, "no step is taken twice");
        assert_eq!(b(&open_for_writing(&path, &of(3, "")).unwrap()), 8);
        assert!(matches!(open_for_writing(&path, &of(2, "")), Err(Failure::Foreign(_))));
    }

    #[test]
    fn another_programs_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        let ours = Kind { application_id: 1, version: 1, schema: "CREATE TABLE t (a INTEGER) STRICT;", steps: &[] };
        drop(open_for_writing(&path, &ours).unwrap());
        assert!(matches!(open_for_writing(&path, &Kind { application_id: 2, ..ours }), Err(Failure::Foreign(_))));
        assert!(matches!(
            open_for_reading(&path, &Kind { application_id: 1, version: 2, schema: "", steps: &[] }),
            Err(Failure::Foreign(_))
        ));
    }
}
