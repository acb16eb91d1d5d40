//! A mark for each job that we may have frozen: an empty file in the runtime folder, there before the freeze is written. All are names of one
//! file: a name is made in a few microseconds, a file takes some file systems ten times as long, and two hundred jobs may stop at once.
//!
//! The folder is in memory: a mark needs no disk, outlives the process, and is gone with the boot, as the freeze itself is. By it the
//! next process tells its own freeze from a scheduler's or a person's when this one did not live to write its freeze down.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::domain::id::Attempt;

/// The folder of the marks.
#[derive(Debug)]
pub struct Marks(PathBuf);

/// The file that the marks are names of.
const FILE: &str = "mark";

impl Marks {
    /// Opens the folder `frozen` of the runtime folder, which is made if it is not there.
    ///
    /// # Errors
    /// When it can neither be found nor made.
    pub fn open(runtime_dir: &Path) -> io::Result<Marks> {
        let dir = runtime_dir.join("frozen");
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            _ => {
                let _ = make(&dir.join(FILE)); // without it each mark is a file of its own
                Ok(Marks(dir))
            }
        }
    }

    /// The jobs that are marked. What is no mark is left alone.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn all(&self) -> io::Result<BTreeSet<Attempt>> {
        let names = fs::read_dir(&self.0)?.map(|entry| entry.map(|entry| entry.file_name()));
        let marks = names.map(|name| name.map(|name| name.to_str().and_then(|name| name.parse().ok()).map(Attempt)));
        marks.filter_map(Result::transpose).collect()
    }

    /// Marks a job. Marking it twice is once.
    ///
    /// # Errors
    /// When no file can be made: the freeze goes on without, and only a crash within the next moments would miss the mark.
    pub fn set(&self, attempt: Attempt) -> io::Result<()> {
        match already(fs::hard_link(self.0.join(FILE), self.of(attempt)), ErrorKind::AlreadyExists) {
            // The file was removed, or has as many names as it can have.
            Err(_) => make(&self.of(attempt)),
            Ok(()) => Ok(()),
        }
    }

    /// Takes a job's mark away, if it has one.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn clear(&self, attempt: Attempt) -> io::Result<()> {
        already(fs::remove_file(self.of(attempt)), ErrorKind::NotFound)
    }

    fn of(&self, attempt: Attempt) -> PathBuf {
        self.0.join(attempt.0.to_string())
    }
}

/// An empty file of this name, if there is none.
fn make(path: &Path) -> io::Result<()> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    already(made.map(drop), ErrorKind::AlreadyExists)
}

/// It is as it should be already: that is no error.
fn already(result: io::Result<()>, kind: ErrorKind) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == kind => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_set_once_outlive_their_maker_and_are_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let marks = Marks::open(dir.path()).unwrap();
        for attempt in [7, 7, 12] {
            marks.set(Attempt(attempt)).unwrap();
        }
        drop(marks);
        let marks = Marks::open(dir.path()).unwrap();
        assert_eq!(marks.all().unwrap(), BTreeSet::from([Attempt(7), Attempt(12)]));
        marks.clear(Attempt(7)).unwrap();
        marks.clear(Attempt(7)).unwrap();
        assert_eq!(marks.all().unwrap(), BTreeSet::from([Attempt(12)]));
    }

    #[test]
    fn without_the_file_that_they_are_names_of_marks_are_set_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let marks = Marks::open(dir.path()).unwrap();
        marks.set(Attempt(1)).unwrap();
        fs::remove_file(dir.path().join("frozen").join(FILE)).unwrap();
        marks.set(Attempt(2)).unwrap();
        marks.set(Attempt(2)).unwrap();
        assert_eq!(marks.all().unwrap(), BTreeSet::from([Attempt(1), Attempt(2)]));
    }

    #[test]
    fn what_is_no_mark_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let marks = Marks::open(dir.path()).unwrap();
        fs::write(dir.path().join("frozen/notes"), "").unwrap();
        assert_eq!(marks.all().unwrap(), BTreeSet::new());
    }
}
