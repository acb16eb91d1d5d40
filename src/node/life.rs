//! How the process before this one ended: one small file, written at the beginning of each life and at its orderly end.
//!
//! It only serves people: nothing is billed by it, and without it the agent works as well.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::alarm::Alarm;
use crate::domain::id::BootId;
use crate::domain::time::{Boot, Nanos, Now};

const FILE: &str = "agent.life";
/// So many ends that nobody asked for …
const LOOP_ENDS: usize = 5;
/// … within this time are a crash loop.
const LOOP_WITHIN: Nanos = Nanos::from_secs(600);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: String,
    boot: BootId,
    began_unix_ms: u64,
    end: End,
    /// Ends that nobody asked for, in this boot, the last few.
    crashed_boot_ns: Vec<u64>,
}

/// How a life ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// It goes on, or nobody knows.
    Unknown,
    /// As asked, everything on disk.
    Drained,
    /// By itself, and why.
    Fatal(String),
}

/// This life's file.
#[derive(Debug)]
pub struct Life {
    path: PathBuf,
    record: Record,
}

impl Life {
    /// Begins a life, and tells what is to be said of the one before.
    #[must_use]
    pub fn begin(dir: &Path, version: &str, boot: BootId, now: Now) -> (Life, Vec<(Alarm, String)>) {
        let path = dir.join(FILE);
        let before: Option<Record> = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let record = Record {
            version: version.to_owned(),
            boot,
            began_unix_ms: now.wall.0,
            end: End::Unknown,
            crashed_boot_ns: before.as_ref().map_or_else(Vec::new, |before| crashes(before, boot, now.boot)),
        };
        let said = before.map_or_else(Vec::new, |before| said_of(&before, &record));
        let life = Life { path, record };
        life.save();
        (life, said)
    }

    /// Ends it.
    pub fn end(mut self, end: End) {
        self.record.end = end;
        self.save();
    }

    fn save(&self) {
        // A full disk must not keep the agent from working.
        if let Err(error) = self.try_save() {
            tracing::warn!(event = "life_not_written", %error);
        }
    }

    fn try_save(&self) -> io::Result<()> {
        let new = self.path.with_extension("life.new");
        let mut file = std::fs::File::create(&new)?;
        file.write_all(&serde_json::to_vec(&self.record)?)?;
        let flushed = file.sync_all();
        std::fs::rename(&new, &self.path)?; // also where the disk cannot flush: that may be just what there is to tell
        flushed
    }
}

fn crashes(before: &Record, boot: BootId, now: Boot) -> Vec<u64> {
    if before.boot != boot {
        return Vec::new();
    }
    let ended_now = (before.end != End::Drained).then_some(now.0);
    let mut ends: Vec<u64> = before.crashed_boot_ns.iter().copied().chain(ended_now).collect();
    ends.drain(..ends.len().saturating_sub(LOOP_ENDS));
    ends
}

fn said_of(before: &Record, this: &Record) -> Vec<(Alarm, String)> {
    let mut said = Vec::new();
    let (alarm, message) = match &before.end {
        _ if before.boot != this.boot => {
            (Alarm::Rebooted, "the machine was booted since the last process; its jobs ended with it".to_owned())
        }
        End::Unknown => (Alarm::Crashed, "the process before this one ended without having been asked to".to_owned()),
        End::Fatal(why) => (Alarm::JournalFailed, format!("the process before this one could not go on: {why}")),
        End::Drained => return with_upgrade(said, before, this),
    };
    said.push((alarm, message));
    if let [first, .., last] = this.crashed_boot_ns[..]
        && this.crashed_boot_ns.len() == LOOP_ENDS
        && Boot(last).since(Boot(first)) <= LOOP_WITHIN
    {
        said.push((
            Alarm::CrashLoop,
            format!("{LOOP_ENDS} processes ended without having been asked to, within {}", Boot(last).since(Boot(first))),
        ));
    }
    with_upgrade(said, before, this)
}

fn with_upgrade(mut said: Vec<(Alarm, String)>, before: &Record, this: &Record) -> Vec<(Alarm, String)> {
    if before.version != this.version {
        said.push((Alarm::Upgraded, format!("version {} follows version {}", this.version, before.version)));
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: BootId = BootId([1; 16]);

    fn begin(dir: &Path, version: &str, boot: BootId, secs: u64) -> (Life, Vec<Alarm>) {
        let now = Now { boot: Boot(secs * 1_000_000_000), ..Now::default() };
        let (life, said) = Life::begin(dir, version, boot, now);
        (life, said.into_iter().map(|(alarm, _)| alarm).collect())
    }

    #[test]
    fn each_end_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let (life, said) = begin(dir.path(), "1", BOOT, 1);
        assert_eq!(said, [], "the first of all");
        life.end(End::Drained);
        let (life, said) = begin(dir.path(), "1", BOOT, 2);
        assert_eq!(said, [], "ended as asked");
        drop(life);
        let (life, said) = begin(dir.path(), "2", BOOT, 3);
        assert_eq!(said, [Alarm::Crashed, Alarm::Upgraded]);
        life.end(End::Fatal("journal: disk I/O error".to_owned()));
        let (life, said) = begin(dir.path(), "2", BOOT, 4);
        assert_eq!(said, [Alarm::JournalFailed]);
        drop(life);
        assert_eq!(begin(dir.path(), "2", BootId([2; 16]), 1).1, [Alarm::Rebooted]);
    }

    #[test]
    fn five_ends_within_ten_minutes_are_a_loop_and_five_in_a_day_are_not() {
        for (apart, last) in [(60, vec![Alarm::Crashed, Alarm::CrashLoop]), (3_600, vec![Alarm::Crashed])] {
            let dir = tempfile::tempdir().unwrap();
            let lives: Vec<Vec<Alarm>> = (0..6).map(|nth| begin(dir.path(), "1", BOOT, nth * apart).1).collect();
            assert_eq!(lives[4], [Alarm::Crashed]);
            assert_eq!(lives[5], last);
        }
    }

    #[test]
    fn a_torn_file_says_nothing_and_harms_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), b"{\"version\":").unwrap();
        assert_eq!(begin(dir.path(), "1", BOOT, 1).1, []);
        assert_eq!(begin(dir.path(), "1", BOOT, 2).1, [Alarm::Crashed]);
    }
}
