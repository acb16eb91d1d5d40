//! How the process before this one ended: one small file, written at the beginning of each life and at its orderly end.
//!
//! It only serves people: nothing is billed by it, and without it the agent works as well.

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::alarm::Alarm;
use crate::domain::id::BootId;
use crate::domain::time::{Boot, Nanos, Now};

const FILE: &str = "agent.life";
/// In the folder that systemd makes for the service: a line for each process that ended, by the unit's `ExecStopPost=`.
const SEEN_FILE: &str = "last-end";
/// More of it is not read.
const SEEN_BYTES_MAX: u64 = 4_096;
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

/// How systemd saw a process end, in its own words (systemd.exec(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenEnd {
    /// `SERVICE_RESULT`: `watchdog`, `oom-kill`, `signal` …
    result: String,
    /// `EXIT_STATUS`: a code, or a signal such as `KILL`.
    status: String,
}

impl SeenEnd {
    /// What systemd saw of the process that last began a life, and forgets it; `None` without systemd. `folder` is its `RUNTIME_DIRECTORY`.
    #[must_use]
    pub fn take(folder: &Path) -> Option<SeenEnd> {
        let path = folder.join(SEEN_FILE);
        let mut text = String::new();
        std::fs::File::open(&path).ok()?.take(SEEN_BYTES_MAX).read_to_string(&mut text).ok()?;
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::debug!(event = "last_end_left", %error);
        }
        SeenEnd::parse(&text)
    }

    /// The first line: those behind it are of processes that ended before they began a life.
    fn parse(text: &str) -> Option<SeenEnd> {
        let mut words = text.lines().next()?.split(' ');
        let (result, _code, status) = (words.next()?, words.next()?, words.next()?);
        let is_plain =
            |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'+');
        (words.next().is_none() && is_plain(result) && is_plain(status))
            .then(|| SeenEnd { result: result.to_owned(), status: status.to_owned() })
    }

    fn alarm(&self) -> Alarm {
        if self.result == "watchdog" { Alarm::Watchdog } else { Alarm::Crashed }
    }

    /// Continues "the process before this one ".
    fn told(&self) -> String {
        let status = &self.status;
        match self.result.as_str() {
            "watchdog" => "stood still, and systemd's watchdog ended it".to_owned(),
            "oom-kill" => "was ended by the kernel for lack of memory".to_owned(),
            "signal" | "core-dump" => format!("was ended by SIG{status}"),
            "exit-code" => format!("ended by itself with code {status}"),
            "timeout" => "took too long to start or to stop, and systemd ended it".to_owned(),
            other => format!("ended without having been asked to: {other}"),
        }
    }
}

/// This life's file.
#[derive(Debug)]
pub struct Life {
    path: PathBuf,
    record: Record,
}

impl Life {
    /// Begins a life, and tells what is to be said of the one before, of whose end systemd has seen this.
    #[must_use]
    pub fn begin(dir: &Path, version: &str, boot: BootId, now: Now, seen: Option<&SeenEnd>) -> (Life, Vec<(Alarm, String)>) {
        let path = dir.join(FILE);
        let before: Option<Record> = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let record = Record {
            version: version.to_owned(),
            boot,
            began_unix_ms: now.wall.0,
            end: End::Unknown,
            crashed_boot_ns: before.as_ref().map_or_else(Vec::new, |before| crashes(before, boot, now.boot)),
        };
        let said = before.map_or_else(Vec::new, |before| said_of(&before, &record, seen));
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

fn said_of(before: &Record, this: &Record, seen: Option<&SeenEnd>) -> Vec<(Alarm, String)> {
    let mut said = Vec::new();
    let (alarm, message) = match &before.end {
        _ if before.boot != this.boot => {
            (Alarm::Rebooted, "the machine was booted since the last process; its jobs ended with it".to_owned())
        }
        End::Unknown => seen.map_or_else(
            || (Alarm::Crashed, "the process before this one ended without having been asked to".to_owned()),
            |seen| (seen.alarm(), format!("the process before this one {}", seen.told())),
        ),
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
        let (life, said) = Life::begin(dir, version, boot, now, None);
        (life, said.into_iter().map(|(alarm, _)| alarm).collect())
    }

    /// What is said after a life that was not ended, where systemd wrote this of its end.
    fn said_after(written: &str) -> (Alarm, String) {
        let (dir, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        begin(dir.path(), "1", BOOT, 1);
        std::fs::write(run.path().join(SEEN_FILE), written).unwrap();
        let seen = SeenEnd::take(run.path());
        assert!(!run.path().join(SEEN_FILE).exists(), "what was taken is not told again");
        let (_, mut said) = Life::begin(dir.path(), "1", BOOT, Now::default(), seen.as_ref());
        assert_eq!(said.len(), 1);
        said.remove(0)
    }

    #[test]
    fn an_end_by_the_watchdog_has_a_name_of_its_own_and_any_other_says_how_systemd_saw_it() {
        let before = "the process before this one ";
        for (written, alarm, told) in [
            ("watchdog killed ABRT\n", Alarm::Watchdog, "stood still, and systemd's watchdog ended it"),
            ("oom-kill killed KILL\n", Alarm::Crashed, "was ended by the kernel for lack of memory"),
            ("signal killed KILL\n", Alarm::Crashed, "was ended by SIGKILL"),
            ("core-dump dumped SEGV\n", Alarm::Crashed, "was ended by SIGSEGV"),
            ("exit-code exited 101\n", Alarm::Crashed, "ended by itself with code 101"),
            ("timeout killed TERM\n", Alarm::Crashed, "took too long to start or to stop, and systemd ended it"),
            ("resources exited 0\n", Alarm::Crashed, "ended without having been asked to: resources"),
            // The second line is of a process that ended over its configuration, before it began a life.
            ("watchdog killed ABRT\nexit-code exited 78\n", Alarm::Watchdog, "stood still, and systemd's watchdog ended it"),
        ] {
            assert_eq!(said_after(written), (alarm, format!("{before}{told}")), "{written:?}");
        }
    }

    #[test]
    fn what_systemd_did_not_write_is_not_told() {
        for written in
            ["", "\n", "watchdog", "watchdog killed", "watchdog killed ABRT more", "watch\u{1b}dog killed ABRT", "watchdog killed \n"]
        {
            assert_eq!(SeenEnd::parse(written), None, "{written:?}");
            assert_eq!(said_after(written), (Alarm::Crashed, "the process before this one ended without having been asked to".to_owned()));
        }
        assert_eq!(SeenEnd::take(Path::new("/nonexistent")), None);
    }

    #[test]
    fn an_end_that_was_asked_for_is_not_told_whatever_systemd_wrote() {
        let dir = tempfile::tempdir().unwrap();
        begin(dir.path(), "1", BOOT, 1).0.end(End::Drained);
        let seen = SeenEnd::parse("success exited 0");
        assert_eq!(Life::begin(dir.path(), "1", BOOT, Now::default(), seen.as_ref()).1, []);
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
