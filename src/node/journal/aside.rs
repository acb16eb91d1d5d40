//! A journal that is not what was written is set aside: moved into a folder of its own, whole, and never deleted. The next start begins a
//! new one from what verifies of it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension as _};

use super::reader::{checkpoint, walk};
use super::{Damage, FILE, Journal, JournalError, KIND, Keep, Recovered, digest, failed, locked};
use crate::domain::chain::{Head, Verifier};
use crate::domain::id::Digest;
use crate::domain::receipt::rfc3339;
use crate::domain::time::Wall;
use crate::sqlite::{Writing, open_untouched};

/// Below the journal's folder.
const FOLDER: &str = "set-aside";
/// In a folder from which no new journal has begun yet.
const UNREAD: &str = "unread";
/// Beside the journal: what a write met.
const DAMAGED: &str = "journal.damaged";
/// With so many there, the disk is at fault: then nothing more is set aside by itself.
const ASIDE_MAX: usize = 3;

/// What of a damaged journal is what was written, in order.
#[derive(Debug)]
pub enum Kept<'a> {
    /// The state after that fact.
    Checkpoint(u64, &'a [u8]),
    /// A fact.
    Fact(u64, &'a [u8]),
}

impl Journal {
    /// Opens the journal as [`Journal::open`] does; one that is damaged, or was written on another machine, is set aside first, and the reason
    /// given back. `machine` is this one, where it has a name.
    ///
    /// # Errors
    /// As [`Journal::open`]; damage only where too many are set aside already.
    pub fn open_or_set_aside(
        dir: &Path,
        keep: Keep,
        machine: Option<Digest>,
        now: Wall,
    ) -> Result<(Journal, Recovered, Option<String>), JournalError> {
        let lock = locked(dir)?;
        let again = || lock.try_clone().map_err(|error| fatal(dir, &error));
        let damage = match lost(dir).map_or_else(|| open_here(again()?, dir, keep, machine), |lost| Err(lost.into())) {
            Ok((journal, recovered)) => return Ok((journal, recovered, None)),
            Err(JournalError::Damaged(damage)) => damage,
            Err(error) => return Err(error),
        };
        let there = list(dir).len();
        if ASIDE_MAX <= there {
            let text = format!("{damage}; and {there} were set aside before: look at the disk (dmesg), then move {FOLDER}/ elsewhere");
            return Err(JournalError::Damaged(Damage::File(text)));
        }
        let folder = move_aside(dir, now, &lock)?;
        let (journal, recovered) = open_here(again()?, dir, keep, machine)?;
        Ok((journal, recovered, Some(format!("{damage}; it is kept in {}", folder.display()))))
    }
}

fn fatal(dir: &Path, error: &io::Error) -> JournalError {
    JournalError::Fatal(format!("{}: {error}", dir.display()))
}

/// A write met damage, in a place that a start does not read. The next start is to know, or it would end at the same place.
pub(super) fn note_damage(dir: &Path, damage: &Damage) {
    if let Err(error) = std::fs::write(dir.join(DAMAGED), damage.to_string()) {
        tracing::error!(event = "damage_not_noted", %error);
    }
}

/// What a start need not read to know it. An empty file is no journal: it was one, or is the very first moment of one.
fn lost(dir: &Path) -> Option<Damage> {
    if let Ok(noted) = std::fs::read_to_string(dir.join(DAMAGED)) {
        return Some(Damage::File(format!("a write met damage: {noted}")));
    }
    let length = |name: &str| std::fs::metadata(dir.join(name)).map(|file| file.len());
    let is_empty = length(FILE).is_ok_and(|length| length == 0);
    is_empty.then(|| Damage::File("the file is empty".to_owned()))
}

fn open_here(lock: File, dir: &Path, keep: Keep, machine: Option<Digest>) -> Result<(Journal, Recovered), JournalError> {
    let (journal, recovered) = Journal::open_locked(lock, dir, keep)?;
    if let Some(machine) = machine {
        belongs_here(&journal.connection, machine)?;
    }
    Ok((journal, recovered))
}

/// A journal says on which machine it was begun: on another one its jobs, counters and epoch are not those that are here.
fn belongs_here(connection: &Connection, machine: Digest) -> Result<(), JournalError> {
    let fail = |error: rusqlite::Error| failed(connection, &error);
    let sql = "SELECT chain FROM meta WHERE key = 'machine'";
    let named: Option<Vec<u8>> = connection.query_row(sql, [], |row| row.get(0)).optional().map_err(fail)?;
    match named {
        Some(named) if digest(&named)? == machine => Ok(()),
        Some(_) => Err(Damage::OtherMachine.into()),
        None => {
            let sql = "INSERT INTO meta (key, seq, chain) VALUES ('machine', 0, ?1)";
            connection.execute(sql, [machine.0]).map(drop).map_err(fail)
        }
    }
}

/// Moves the files away. Where that is interrupted, the next start finds the rest: no journal, and a folder that is unread.
fn move_aside(dir: &Path, now: Wall, _lock: &File) -> Result<PathBuf, JournalError> {
    let moved = || -> io::Result<PathBuf> {
        let above = dir.join(FOLDER);
        DirBuilder::new().recursive(true).mode(0o700).create(&above)?;
        let name: String = rfc3339(now).chars().filter(|c| *c != ':' && *c != '-').collect();
        let folder = above.join(name);
        DirBuilder::new().mode(0o700).create(&folder)?;
        OpenOptions::new().write(true).create_new(true).open(folder.join(UNREAD))?.sync_all()?;
        // The file first: a log without it is of no use to anybody, and a file without its log would be an older state.
        let [log, index] = ["-wal", "-shm"].map(|ending| format!("{FILE}{ending}"));
        for name in [FILE, &log, &index, DAMAGED] {
            match std::fs::rename(dir.join(name), folder.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        for folder in [&folder, &above, &dir.to_owned()] {
            File::open(folder)?.sync_all()?;
        }
        Ok(folder)
    };
    moved().map_err(|error| fatal(dir, &error))
}

/// Sets the journal in `dir` aside, whatever is in it: for an operator. Gives the folder.
///
/// # Errors
/// [`JournalError::Locked`] while an agent runs; [`JournalError::Absent`]; else see [`JournalError`].
pub fn set_aside(dir: &Path, now: Wall) -> Result<PathBuf, JournalError> {
    let absent = || JournalError::Absent(dir.display().to_string());
    if !dir.join(FILE).exists() {
        return Err(absent());
    }
    let lock = locked(dir)?;
    move_aside(dir, now, &lock)
}

/// The folders of what was set aside, the oldest first.
#[must_use]
pub fn list(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir.join(FOLDER)).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

/// The newest one, if no new journal has begun from it yet.
#[must_use]
pub fn unread(dir: &Path) -> Option<PathBuf> {
    list(dir).pop().filter(|folder| folder.join(UNREAD).exists())
}

/// A new journal has begun from it.
///
/// # Errors
/// What the kernel says.
pub fn read(folder: &Path) -> io::Result<()> {
    std::fs::remove_file(folder.join(UNREAD))
}

/// Hands over what verifies: the checkpoint, then the facts after it up to the first that is not what was written. Nothing is changed by looking.
/// Gives the last one's number.
pub fn good_prefix(folder: &Path, machine: Option<Digest>, mut each: impl FnMut(Kept<'_>)) -> u64 {
    let Ok(connection) = open_untouched(&folder.join(FILE), &KIND, Writing::Rests) else { return 0 };
    let sql = "SELECT chain FROM meta WHERE key = 'machine'";
    let named: Option<Vec<u8>> = connection.query_row(sql, [], |row| row.get(0)).optional().ok().flatten();
    if let (Some(named), Some(machine)) = (named, machine)
        && digest(&named).ok() != Some(machine)
    {
        return 0;
    }
    let from = match checkpoint(&connection) {
        Ok(Some((head, bytes))) => {
            each(Kept::Checkpoint(head.seq, &bytes));
            head
        }
        // Without one, from the very first fact on, if that is still there.
        _ => Head::START,
    };
    let mut verifier = Verifier::behind(from);
    let ended = walk(&connection, from.seq.saturating_add(1), |fact, kept| {
        verifier.row(fact.seq, &fact.bytes, kept).map_err(Damage::Fact)?;
        each(Kept::Fact(fact.seq, &fact.bytes));
        Ok::<(), JournalError>(())
    });
    tracing::debug!(event = "prefix_read", ?ended);
    verifier.head().seq
}
