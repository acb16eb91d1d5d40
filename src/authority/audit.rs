//! The audit log: what was asked to be changed, by whom, and what came of it. One file of JSON lines, flushed before anything is changed and
//! after it; a wish without an outcome is one that a crash cut off, and the ledger says whether it was done.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::domain::receipt::rfc3339;
use crate::domain::time::Wall;

/// Most of the file that is read back.
const TAIL_BYTES: u64 = 4 << 20;

/// The log, open for appending.
pub struct Audit {
    path: PathBuf,
    open: Mutex<Open>,
}

struct Open {
    file: File,
    last: u64,
}

/// A wish that is written down and has no outcome yet.
#[derive(Debug)]
#[must_use]
pub struct Wish(u64);

impl Audit {
    /// Opens the file, or makes it. A last line that a power cut tore is ended.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(path: &Path) -> io::Result<Audit> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(path)?;
        let length = file.seek(SeekFrom::End(0))?;
        if 0 < length {
            let mut last = [0_u8];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        let last = tail(path)?.iter().filter_map(|line| line["wish"].as_u64()).max().unwrap_or(0);
        Ok(Audit { path: path.to_owned(), open: Mutex::new(Open { file, last }) })
    }

    /// Writes down what is wished, before it is done.
    ///
    /// # Errors
    /// The line is not on disk: then nothing may be changed.
    pub fn wish(&self, at: Wall, by: &str, from: &str, what: &str, body: &Value) -> io::Result<Wish> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let wish = open.last + 1;
        append(&mut open.file, &json!({ "wish": wish, "at": rfc3339(at), "by": by, "from": from, "what": what, "body": body }))?;
        open.last = wish;
        Ok(Wish(wish))
    }

    /// Writes down what came of it: `done`, `before`, or the code of a refusal.
    ///
    /// # Errors
    /// The line is not on disk. What was done is done.
    pub fn outcome(&self, wish: &Wish, at: Wall, outcome: &str) -> io::Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        append(&mut open.file, &json!({ "wish": wish.0, "at": rfc3339(at), "outcome": outcome }))
    }

    /// The last lines, newest first.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn last(&self, limit: usize) -> io::Result<Vec<Value>> {
        Ok(tail(&self.path)?.into_iter().rev().take(limit).collect())
    }
}

fn append(file: &mut File, line: &Value) -> io::Result<()> {
    file.write_all(format!("{line}\n").as_bytes())?;
    file.sync_data()
}

/// The lines at the end of the file, as far as they are whole.
fn tail(path: &Path) -> io::Result<Vec<Value>> {
    let mut file = File::open(path)?;
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_numbered_on_over_restarts_and_torn_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let at = Wall(1_790_000_000_000);
        let audit = Audit::open(&path).unwrap();
        let wish = audit.wish(at, "admin alice", "192.0.2.7", "topup", &json!({ "amount": "5" })).unwrap();
        audit.outcome(&wish, at, "done").unwrap();
        drop(audit);
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"wish\": 9").unwrap();
        let audit = Audit::open(&path).unwrap();
        let second = audit.wish(at, "admin bob", "192.0.2.8", "policy", &json!({})).unwrap();
        assert_eq!(second.0, 2);
        let lines = audit.last(10).unwrap();
        assert_eq!(lines.iter().map(|line| line["wish"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 1, 1]);
        assert_eq!(lines[1]["outcome"], "done");
        assert_eq!(audit.last(1).unwrap().len(), 1);
    }
}
