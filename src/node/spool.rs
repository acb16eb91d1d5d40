//! What scheduler hooks wrote down while the agent did not answer: one file a call, read in the order of their names.
//!
//! A file is called `<milliseconds since 1970, 16 digits>-<pid>-<start|stop|change|count>.json` and holds `{"spool": 1, "call": "start", "job": …,
//! "at_ms": …, "body": …}`. It counts as said by its owner. A hook writes it under a hidden name before it calls, and removes it when the
//! agent has answered; else it synchronises and renames it, so a file that is seen is whole. One that stays hidden for longer than a hook
//! may live is of a hook that was killed meanwhile: it is read too.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, fsync, mkdirat, open, openat, renameat, statat, unlinkat};
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::domain::id::{JobName, Uid};
use crate::domain::request::{BODY_BYTES_MAX, ChangeRequest, StartRequest, StopRequest, read_report, report_to_json};
use crate::domain::terms::Report;
use crate::domain::time::Wall;
use crate::node::defence::{Defence, stands};

/// The version of the files.
pub const VERSION: u64 = 1;
/// Largest file, in bytes: a body and its envelope.
const FILE_BYTES_MAX: usize = BODY_BYTES_MAX + 4_096;
/// A hidden file that is older than this is nobody's any more: a hook ends within two seconds.
const ABANDONED_AFTER: Duration = Duration::from_secs(10);
/// Most files read in one go; the rest comes with the next one.
const FILES_MAX: usize = 4_096;

/// A call that a hook could not make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// A start.
    Start(StartRequest),
    /// A stop of this job.
    Stop(JobName, StopRequest),
    /// This job is given something else.
    Change(JobName, ChangeRequest),
    /// What is counted of this job.
    Report(JobName, Report),
}

/// One spooled call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spooled {
    /// The file's name, for [`Spool::remove`].
    pub file: String,
    /// Who said it: the file's owner. What it may say is checked as if it had called.
    pub owner: Uid,
    /// When the hook was called, by its own wall clock.
    pub at: Wall,
    /// What it wanted.
    pub call: Call,
}

/// A file that holds no call. It is for the log, and then for [`Spool::remove`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("spooled file {file}: {why}")]
pub struct Rejected {
    /// The file's name.
    pub file: String,
    /// What is wrong with it.
    pub why: String,
}

/// The directory of spooled calls, open.
#[derive(Debug)]
pub struct Spool {
    dir: OwnedFd,
}

impl Spool {
    /// Opens the directory.
    ///
    /// # Errors
    /// When it is not there, is a symbolic link, belongs to somebody other than root and the caller, or others may write to it.
    pub fn open(path: &Path) -> io::Result<Spool> {
        let dir = open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let stat = fstat(&dir)?;
        let mine = stat.st_uid == 0 || stat.st_uid == rustix::process::geteuid().as_raw();
        if (!mine || stat.st_mode & 0o022 != 0) && stands(Defence::SpoolFolder) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the spool directory is not the agent's alone"));
        }
        Ok(Spool { dir })
    }

    /// Opens the directory, or makes it (mode 0700).
    ///
    /// # Errors
    /// See [`Spool::open`], and when it cannot be made.
    pub fn open_or_make(path: &Path) -> io::Result<Spool> {
        match mkdirat(rustix::fs::CWD, path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => Spool::open(path),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Writes a call down that is about to be made. It outlives this process, though not yet a power cut: that would take time.
    /// The file's name is for [`Spool::withdraw`] or [`Spool::leave`].
    ///
    /// # Errors
    /// What the kernel says.
    pub fn begin(&self, at: Wall, call: &Call) -> io::Result<String> {
        let (kind, job, body) = match call {
            Call::Start(start) => ("start", &start.job, start.to_json()),
            Call::Stop(job, stop) => ("stop", job, stop.to_json()),
            Call::Change(job, change) => ("change", job, change.to_json()),
            Call::Report(job, report) => ("count", job, report_to_json(report)),
        };
        let text = json!({ "spool": VERSION, "call": kind, "job": job, "at_ms": at.0, "body": body }).to_string();
        let hidden = format!(".{:016}-{}-{kind}.json", at.0, std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(&self.dir, &hidden, flags, Mode::RUSR | Mode::WUSR)?);
        file.write_all(text.as_bytes())?;
        Ok(hidden)
    }

    /// The call is made, or refused for good.
    ///
    /// # Errors
    /// What the kernel says. A file that stays is read once it is old: the same call again has no effect.
    pub fn withdraw(&self, hidden: &str) -> io::Result<()> {
        Ok(unlinkat(&self.dir, hidden, AtFlags::empty())?)
    }

    /// The call could not be made: leaves it to the agent. It is durable when this returns, under the name that this gives.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn leave(&self, hidden: &str) -> io::Result<String> {
        let name = hidden.trim_start_matches('.').to_owned();
        fsync(openat(&self.dir, hidden, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)?;
        renameat(&self.dir, hidden, &self.dir, &name)?;
        fsync(&self.dir)?;
        Ok(name)
    }

    /// What waits, oldest first. Nothing is removed by reading.
    ///
    /// # Errors
    /// When the directory cannot be read; what is wrong with one file is said in its place.
    pub fn read(&self) -> io::Result<Vec<Result<Spooled, Rejected>>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.strip_suffix(".json").is_some() && (!name.starts_with('.') || self.is_abandoned(&name)) {
                names.push(name);
            }
        }
        names.sort_by(|one, two| one.trim_start_matches('.').cmp(two.trim_start_matches('.')));
        names.truncate(FILES_MAX);
        Ok(names.into_iter().map(|file| self.read_one(&file).map_err(|why| Rejected { file, why })).collect())
    }

    /// Removes a file, once its call is made or rejected; one that is gone is no error.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remove(&self, file: &str) -> io::Result<()> {
        match unlinkat(&self.dir, file, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(fsync(self.dir.as_fd())?),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Was the hook that wrote it ended before it could tell what became of the call?
    fn is_abandoned(&self, hidden: &str) -> bool {
        let Ok(stat) = statat(&self.dir, hidden, AtFlags::SYMLINK_NOFOLLOW) else { return false };
        let written = u64::try_from(stat.st_mtime).map(|secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs));
        written.is_ok_and(|written| written.elapsed().is_ok_and(|age| ABANDONED_AFTER < age))
    }

    fn read_one(&self, file: &str) -> Result<Spooled, String> {
        let mut flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
        flags.set(OFlags::NOFOLLOW, stands(Defence::SpoolLinks));
        // Without it a named pipe of this name would keep the agent waiting.
        flags.set(OFlags::NONBLOCK, stands(Defence::SpoolRegular));
        let fd = openat(&self.dir, file, flags, Mode::empty()).map_err(|errno| format!("cannot be opened: {errno}"))?;
        let stat = fstat(&fd).map_err(|errno| errno.to_string())?;
        let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !is_regular && stands(Defence::SpoolRegular) || stat.st_nlink != 1 && stands(Defence::SpoolOneName) {
            return Err("not a regular file with one name".to_owned());
        }
        // Whoever may write to a file says what its owner is then taken to have said.
        if stat.st_mode & 0o022 != 0 && stands(Defence::SpoolOwnersAlone) {
            return Err("others than its owner may write to it".to_owned());
        }
        let mut text = String::new();
        let bound = if stands(Defence::SpoolSize) { u64::try_from(FILE_BYTES_MAX + 1).unwrap_or(u64::MAX) } else { u64::MAX };
        File::from(fd).take(bound).read_to_string(&mut text).map_err(|error| error.to_string())?;
        if FILE_BYTES_MAX < text.len() {
            return Err(format!("longer than {FILE_BYTES_MAX} bytes"));
        }
        let (at, call) = parse(&text)?;
        Ok(Spooled { file: file.to_owned(), owner: Uid(stat.st_uid), at, call })
    }
}

/// The call that a file's text holds, with the hook's own time.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<(Wall, Call), String> {
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if value["spool"].as_u64() != Some(VERSION) {
        return Err(format!("not of version {VERSION}"));
    }
    let at = Wall(value["at_ms"].as_u64().ok_or("at_ms is not a number")?);
    let body = value["body"].to_string();
    let told = |mistakes: Vec<crate::domain::form::Mistake>| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let job = || value["job"].as_str().unwrap_or_default().parse::<JobName>().map_err(|error| error.to_string());
    let call = match value["call"].as_str() {
        Some("start") => Call::Start(StartRequest::parse(&body).map_err(told)?),
        Some("stop") => Call::Stop(job()?, StopRequest::parse(&body).map_err(told)?),
        Some("change") => Call::Change(job()?, ChangeRequest::parse(&body).map_err(told)?),
        Some("count") => Call::Report(job()?, read_report(&body).map_err(told)?),
        _ => return Err("call is neither start nor stop, change or count".to_owned()),
    };
    Ok((at, call))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::outcome::Outcome;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn stop(job: &str) -> Call {
        Call::Stop(job.parse().unwrap(), StopRequest { outcome: Outcome::Failed, exit_code: Some(3) })
    }

    fn spool() -> (tempfile::TempDir, Spool) {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open_or_make(&folder.path().join("spool")).unwrap();
        (folder, spool)
    }

    fn write(spool: &Spool, at_ms: u64, call: &Call) -> String {
        spool.leave(&spool.begin(Wall(at_ms), call).unwrap()).unwrap()
    }

    #[test]
    fn changes_and_counts_come_back_as_they_were_written() {
        let change = ChangeRequest::parse(r#"{"gpus": [0, "GPU-a"], "cpus": 3, "storage_bytes": 0, "traits": {"tier": "spot"}}"#).unwrap();
        let counter = read_report(r#"{"counter": "tokens", "total": 17}"#).unwrap();
        let event = read_report(r#"{"event": "request", "id": "r-1"}"#).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open_or_make(&folder.path().join("spool")).unwrap();
        let job: JobName = "slurm:7".parse().unwrap();
        let calls = [Call::Change(job.clone(), change), Call::Report(job.clone(), counter), Call::Report(job, event)];
        for (at, call) in (1..).zip(&calls) {
            let hidden = spool.begin(Wall(at), call).unwrap();
            spool.leave(&hidden).unwrap();
        }
        let read: Vec<Call> = spool.read().unwrap().into_iter().map(|spooled| spooled.unwrap().call).collect();
        assert_eq!(read, calls);
    }

    #[test]
    fn a_call_whose_hook_was_killed_before_it_knew_more_is_read_once_no_hook_can_live_any_more() {
        let (folder, spool) = spool();
        let (made, killed) = (spool.begin(Wall(1), &stop("made")).unwrap(), spool.begin(Wall(2), &stop("killed")).unwrap());
        write(&spool, 3, &stop("later"));
        let jobs = || -> Vec<Call> { spool.read().unwrap().into_iter().map(|read| read.unwrap().call).collect() };
        assert_eq!(jobs(), [stop("later")], "the hooks may still be at it");
        spool.withdraw(&made).unwrap();
        let file = File::options().write(true).open(folder.path().join("spool").join(&killed)).unwrap();
        file.set_modified(SystemTime::now() - ABANDONED_AFTER - Duration::from_secs(2)).unwrap();
        assert_eq!(jobs(), [stop("killed"), stop("later")]);
        spool.remove(&killed).unwrap();
        assert_eq!(jobs(), [stop("later")]);
    }

    #[test]
    fn calls_come_back_oldest_first_and_until_they_are_removed() {
        let (_folder, spool) = spool();
        let start = r#"{"job": "a", "account": "lab", "cgroups": ["/sys/fs/cgroup/a"], "gpus": [0], "time_limit_s": 60}"#;
        let start = Call::Start(StartRequest::parse(start).unwrap());
        write(&spool, 2_000, &stop("a"));
        write(&spool, 1_000, &start);
        for _ in 0..2 {
            let read: Vec<Spooled> = spool.read().unwrap().into_iter().map(Result::unwrap).collect();
            assert_eq!(
                read.iter().map(|spooled| (spooled.at, &spooled.call)).collect::<Vec<_>>(),
                [(Wall(1_000), &start), (Wall(2_000), &stop("a"))]
            );
            assert_eq!(read[0].owner, Uid(rustix::process::geteuid().as_raw()));
        }
        for spooled in spool.read().unwrap() {
            spool.remove(&spooled.unwrap().file).unwrap();
        }
        assert!(spool.read().unwrap().is_empty());
        spool.remove("gone.json").unwrap();
    }

    #[test]
    fn what_is_no_whole_regular_file_is_rejected_and_named() {
        let (folder, spool) = spool();
        let dir = folder.path().join("spool");
        let good = write(&spool, 1, &stop("a"));
        std::fs::write(folder.path().join("elsewhere"), "{}").unwrap();
        symlink(folder.path().join("elsewhere"), dir.join("link.json")).unwrap();
        std::fs::hard_link(folder.path().join("elsewhere"), dir.join("hard.json")).unwrap();
        std::fs::create_dir(dir.join("dir.json")).unwrap();
        rustix::fs::mknodat(&spool.dir, "pipe.json", FileType::Fifo, Mode::RUSR, 0).unwrap();
        std::fs::write(dir.join("long.json"), vec![b' '; FILE_BYTES_MAX + 1]).unwrap();
        std::fs::write(dir.join("empty.json"), "").unwrap();
        std::fs::write(dir.join("later.json"), r#"{"spool": 2}"#).unwrap();
        std::fs::copy(dir.join(&good), dir.join("open.json")).unwrap();
        std::fs::set_permissions(dir.join("open.json"), std::fs::Permissions::from_mode(0o602)).unwrap();
        std::fs::write(dir.join(".half.json"), "{").unwrap();
        let (mut whole, mut rejected) = (Vec::new(), Vec::new());
        for read in spool.read().unwrap() {
            match read {
                Ok(spooled) => whole.push(spooled.file),
                Err(why) => rejected.push(why.file),
            }
        }
        assert_eq!(whole, [good]);
        assert_eq!(rejected, ["dir.json", "empty.json", "hard.json", "later.json", "link.json", "long.json", "open.json", "pipe.json"]);
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_no_spool() {
        let (folder, _) = spool();
        let dir = folder.path().join("spool");
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(Spool::open(&dir).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        symlink(folder.path(), folder.path().join("link")).unwrap();
        assert!(Spool::open(&folder.path().join("link")).is_err());
    }

    #[test]
    fn a_whole_start_with_mistakes_is_rejected_with_all_of_them() {
        let text = r#"{"spool": 1, "at_ms": 1, "call": "start", "body": {"job": "-", "account": "-"}}"#;
        let why = parse(text).unwrap_err();
        assert!(why.contains("/job") && why.contains("/account"), "{why}");
    }
}
