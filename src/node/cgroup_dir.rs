//! One cgroup directory: opened by its name once, told apart by its inode, and from then on reached through its descriptor alone.

use std::path::Path;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, unlinkat};
use rustix::io::{Errno, pread, write};

use super::defence::{Defence, stands};
use super::layout::{Hierarchy, Layout, LayoutError, PlaceError};
use crate::domain::act::CgroupDir;
use crate::domain::meter::{Frozen, Missing, Populated};

/// Why a directory cannot be named as a job's.
#[derive(Debug, thiserror::Error)]
pub enum IdentifyError {
    /// The path is no cgroup's that may be metered.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The agent itself is in it, or below it.
    #[error("{0} holds the agent itself")]
    HoldsAgent(String),
    /// There is no such directory.
    #[error("{0} is not there")]
    NotThere(String),
    /// The kernel refused to open it.
    #[error("cannot open {path}: {errno}")]
    Refused {
        /// Which directory.
        path: String,
        /// What the kernel said.
        errno: Errno,
    },
    /// The agent's own cgroup cannot be told, so nothing can be proved not to be it.
    #[error(transparent)]
    Own(#[from] LayoutError),
}

/// Why the directory that was named once cannot be opened now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It is gone.
    #[error("it is gone")]
    Vanished,
    /// Another one has taken its name (other inode).
    #[error("another cgroup has taken its name")]
    Replaced,
    /// It could never be a job's here (the mounts have changed).
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The kernel refused.
    #[error("cannot open it: {0}")]
    Failed(Errno),
}

impl From<Errno> for OpenError {
    fn from(errno: Errno) -> OpenError {
        match errno {
            Errno::NOENT | Errno::NODEV => OpenError::Vanished,
            errno => OpenError::Failed(errno),
        }
    }
}

impl From<OpenError> for Missing {
    fn from(error: OpenError) -> Missing {
        match error {
            OpenError::Vanished => Missing::Vanished,
            OpenError::Replaced => Missing::Replaced,
            OpenError::Place(why) => Missing::Failed(why.to_string()),
            OpenError::Failed(errno) => missing_for(errno),
        }
    }
}

/// An open cgroup directory whose inode was checked.
#[derive(Debug)]
pub struct OpenDir {
    /// Which one.
    pub dir: CgroupDir,
    /// In which hierarchy.
    pub hierarchy: Hierarchy,
    /// Its descriptor (`O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC`).
    pub fd: OwnedFd,
}

/// `cgroup.events` of cgroup2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events {
    /// Has it, or anything below it, live tasks?
    pub populated: Populated,
    /// Are they all frozen? `None` on a kernel before 5.2, which cannot freeze in cgroup2.
    pub frozen: Option<Frozen>,
}

/// A sub-cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    /// Its name in the directory.
    pub name: String,
    /// Its `st_ino`.
    pub inode: u64,
}

const OPEN_DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Names the directory at `path` for good: the path with its inode.
///
/// # Errors
/// When it is outside the cgroup mounts, their root, not plain (`..`), not there, or holds the agent.
pub fn identify(layout: &Layout, path: &Path) -> Result<CgroupDir, IdentifyError> {
    let place = layout.classify(path)?;
    let Some(text) = path.to_str() else { return Err(PlaceError::NotPlain(path.to_owned()).into()) };
    if layout.own_dirs()?.iter().any(|own| own.starts_with(path)) && stands(Defence::HoldsAgent) {
        return Err(IdentifyError::HoldsAgent(text.to_owned()));
    }
    let refused = |errno| match errno {
        Errno::NOENT => IdentifyError::NotThere(text.to_owned()),
        errno => IdentifyError::Refused { path: text.to_owned(), errno },
    };
    let (_, inode) = descend(&place.mount, &place.relative).map_err(refused)?;
    Ok(CgroupDir { path: text.to_owned(), inode })
}

/// The directory at `path` as it is now, whoever is in it: for reading, never to act on.
///
/// # Errors
/// When the path is no cgroup's, or cannot be opened.
pub fn inode_of(layout: &Layout, path: &Path) -> Result<CgroupDir, OpenError> {
    let place = layout.classify(path)?;
    let Some(text) = path.to_str() else { return Err(PlaceError::NotPlain(path.to_owned()).into()) };
    let (_, inode) = descend(&place.mount, &place.relative).map_err(OpenError::from)?;
    Ok(CgroupDir { path: text.to_owned(), inode })
}

/// Opens the directory that was named earlier, and only that one.
///
/// # Errors
/// When it is gone, another one has its name, or the kernel refuses.
pub fn open(layout: &Layout, dir: &CgroupDir) -> Result<OpenDir, OpenError> {
    let place = layout.classify(Path::new(&dir.path))?;
    let (fd, inode) = descend(&place.mount, &place.relative).map_err(OpenError::from)?;
    only(OpenDir { dir: CgroupDir { path: dir.path.clone(), inode }, hierarchy: place.hierarchy, fd }, dir)
}

/// The same, by its name in the directory above it.
///
/// # Errors
/// As those of [`open`].
pub fn open_below(above: &OpenDir, name: &str, dir: &CgroupDir) -> Result<OpenDir, OpenError> {
    only(above.child(name)?, dir)
}

fn only(found: OpenDir, dir: &CgroupDir) -> Result<OpenDir, OpenError> {
    if found.dir.inode == dir.inode || !stands(Defence::SameCgroup) {
        Ok(OpenDir { dir: dir.clone(), ..found })
    } else {
        Err(OpenError::Replaced)
    }
}

/// Goes down from a mount one name at a time, following no link and leaving the file system nowhere.
/// Returns the descriptor and the inode.
fn descend(mount: &Path, relative: &Path) -> Result<(OwnedFd, u64), Errno> {
    let top = openat(CWD, mount, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let device = fstat(&top)?.st_dev;
    let mut fd = top;
    for name in relative.components() {
        fd = openat(&fd, name.as_os_str(), OPEN_DIR, Mode::empty())?;
    }
    let stat = fstat(&fd)?;
    if stat.st_dev == device { Ok((fd, stat.st_ino)) } else { Err(Errno::XDEV) }
}

impl OpenDir {
    /// Opens a sub-cgroup by its name.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn child(&self, name: &str) -> Result<OpenDir, Errno> {
        let fd = openat(&self.fd, name, OPEN_DIR, Mode::empty())?;
        let inode = fstat(&fd)?.st_ino;
        Ok(OpenDir { dir: CgroupDir { path: format!("{}/{name}", self.dir.path), inode }, hierarchy: self.hierarchy, fd })
    }

    /// Its sub-cgroups.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn children(&self) -> Result<Vec<Child>, Errno> {
        list(&self.fd)
    }

    /// How many sub-cgroups it has: the kernel counts them as links.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn child_count(&self) -> Result<usize, Errno> {
        let links = usize::try_from(fstat(&self.fd)?.st_nlink).unwrap_or(0);
        match links.checked_sub(2) {
            Some(children) => Ok(children),
            // A file system that does not count them so.
            None => self.children().map(|children| children.len()),
        }
    }

    /// Opens one of its files for reading.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn file(&self, name: &str) -> Result<OwnedFd, Errno> {
        openat(&self.fd, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    }

    /// Writes one of its files in one call.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn write(&self, name: &str, text: &str) -> Result<(), Errno> {
        let file = openat(&self.fd, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        write(&file, text.as_bytes()).map(|_| ())
    }

    /// `cgroup.events`, read anew.
    ///
    /// # Errors
    /// Why it is not known.
    pub fn events(&self) -> Result<Events, Missing> {
        let file = self.file("cgroup.events").map_err(missing_for)?;
        read_events(&file)
    }

    /// The processes in it and in all that is below it (`cgroup.procs`). One that comes or goes meanwhile may be missed.
    ///
    /// # Errors
    /// What the kernel said; a sub-cgroup that goes meanwhile is no error.
    pub fn processes_below(&self) -> Result<Vec<u32>, Errno> {
        let mut pids = pids_in(&self.file("cgroup.procs")?)?;
        for child in self.children()? {
            match self.child(&child.name).and_then(|child| child.processes_below()) {
                Ok(more) => pids.extend(more),
                Err(Errno::NOENT | Errno::NODEV) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(pids)
    }

    /// Is there a process in it or in anything below it? Of v1, which has no `cgroup.events`; zombies are not listed there.
    ///
    /// # Errors
    /// What the kernel said; a sub-cgroup that goes meanwhile is no error.
    pub fn holds_process(&self) -> Result<bool, Errno> {
        let mut byte = [0_u8; 1];
        if pread(self.file("cgroup.procs")?, &mut byte, 0)? != 0 {
            return Ok(true);
        }
        for child in self.children()? {
            match self.child(&child.name).and_then(|child| child.holds_process()) {
                Ok(true) => return Ok(true),
                Ok(false) | Err(Errno::NOENT | Errno::NODEV) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(false)
    }

    /// Removes the sub-cgroup of that name, what is below it first.
    ///
    /// # Errors
    /// `EBUSY` while it holds a process; what is gone already is no error.
    pub fn remove_child(&self, name: &str) -> Result<(), Errno> {
        let gone_is_fine = |result: Result<(), Errno>| match result {
            Err(Errno::NOENT | Errno::NODEV) => Ok(()),
            other => other,
        };
        let child = match self.child(name) {
            Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
            other => other?,
        };
        for below in gone_is_empty(child.children())? {
            child.remove_child(&below.name)?;
        }
        gone_is_fine(unlinkat(&self.fd, name, AtFlags::REMOVEDIR))
    }

    /// Does this kernel offer this file here? Also `false` once the directory is gone.
    #[must_use]
    pub fn file_exists(&self, name: &str) -> bool {
        openat(&self.fd, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).is_ok()
    }

    /// Is it still linked in the tree? Tells a removed cgroup from one that lacks a file.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.file_exists("cgroup.procs")
    }
}

fn gone_is_empty(children: Result<Vec<Child>, Errno>) -> Result<Vec<Child>, Errno> {
    match children {
        Err(Errno::NOENT | Errno::NODEV) => Ok(Vec::new()),
        other => other,
    }
}

/// The sub-directories of an open directory; a name that is not UTF-8 is shown with `?`, its inode is right.
///
/// # Errors
/// What the kernel said.
pub fn list(dir: impl AsFd) -> Result<Vec<Child>, Errno> {
    let mut children = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy();
        if entry.file_type() == FileType::Directory && name != "." && name != ".." {
            children.push(Child { name: name.into_owned(), inode: entry.ino() });
        }
    }
    Ok(children)
}

/// All of an open file, from its start: `cgroup.procs` can be longer than a page.
///
/// # Errors
/// What the kernel said.
pub fn read_all(file: impl AsFd) -> Result<Vec<u8>, Errno> {
    let mut text = Vec::new();
    let mut page = [0_u8; 4_096];
    loop {
        match pread(&file, &mut page, text.len() as u64)? {
            0 => return Ok(text),
            length => text.extend_from_slice(&page[..length]),
        }
    }
}

/// The pids that an open `cgroup.procs` lists; 0 (a process of another pid namespace) is left out: it cannot be reached from here.
///
/// # Errors
/// What the kernel said; `EINVAL` if it is not a list of numbers.
pub fn pids_in(procs: impl AsFd) -> Result<Vec<u32>, Errno> {
    let text = read_all(procs)?;
    let mut pids = Vec::new();
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let pid = number(line).and_then(|pid| u32::try_from(pid).ok()).ok_or(Errno::INVAL)?;
        if pid != 0 {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// An open `cgroup.events`. Reading it also re-arms `poll(POLLPRI)` on this descriptor.
///
/// # Errors
/// Why it is not known.
pub fn read_events(file: impl AsFd) -> Result<Events, Missing> {
    let mut page = [0_u8; 512];
    let length = pread(file, &mut page, 0).map_err(missing_for)?;
    parse_events(&page[..length]).ok_or(Missing::Malformed)
}

/// The text of `cgroup.events` (cgroup-v2.rst, "Core Interface Files"). A kernel before 5.2 has no `frozen` line.
#[must_use]
pub fn parse_events(text: &[u8]) -> Option<Events> {
    let populated = match field(text, b"populated")? {
        0 => Populated::No,
        1 => Populated::Yes,
        _ => return None,
    };
    let has_frozen = text.split(|byte| *byte == b'\n').any(|line| line.starts_with(b"frozen"));
    let frozen = match field(text, b"frozen") {
        Some(0) => Some(Frozen::No),
        Some(1) => Some(Frozen::Yes),
        None if !has_frozen => None,
        _ => return None,
    };
    Some(Events { populated, frozen })
}

/// The number after `key` in a flat keyed file: lines of `KEY VALUE`.
#[must_use]
pub fn field(text: &[u8], key: &[u8]) -> Option<u64> {
    text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(key)?.strip_prefix(b" ")).and_then(number)
}

/// A whole decimal number, with at most one line feed behind it; nothing else.
#[must_use]
pub fn number(text: &[u8]) -> Option<u64> {
    let digits = text.strip_suffix(b"\n").unwrap_or(text);
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// What an error of reading a cgroup's file says about the reading. The kernel answers `ENODEV` on a kept descriptor and `ENOENT`
/// below a kept directory once the cgroup is removed.
#[must_use]
pub fn missing_for(errno: Errno) -> Missing {
    match errno {
        Errno::NODEV | Errno::NOENT => Missing::Vanished,
        Errno::ACCESS | Errno::PERM => Missing::Denied,
        Errno::OPNOTSUPP => Missing::NotSupported,
        errno => Missing::Failed(errno.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn events_are_read_by_name_and_nothing_is_guessed() {
        let events = parse_events(b"populated 1\nfrozen 0\n").unwrap();
        assert_eq!(events, Events { populated: Populated::Yes, frozen: Some(Frozen::No) });
        assert_eq!(parse_events(b"frozen 1\npopulated 0\n").unwrap().frozen, Some(Frozen::Yes), "the order is not promised");
        assert_eq!(parse_events(b"populated 1\n").unwrap().frozen, None, "before Linux 5.2");
        for bad in [
            "",
            "populated 1\nfrozen\n",
            "populated 1\nfrozen x\n",
            "populated 2\nfrozen 0\n",
            "populated\nfrozen 0\n",
            "populated -1\nfrozen 0\n",
        ] {
            assert_eq!(parse_events(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn a_key_that_begins_like_another_is_not_taken_for_it() {
        let text = b"nr_periods 7\nusage_usec_x 5\nusage_usec 12\n";
        assert_eq!(field(text, b"usage_usec"), Some(12));
        assert_eq!(field(text, b"nr"), None);
    }

    #[test]
    fn a_removed_cgroup_reads_as_vanished_and_never_as_zero() {
        assert_eq!(missing_for(Errno::NODEV), Missing::Vanished);
        assert_eq!(missing_for(Errno::NOENT), Missing::Vanished);
        assert_eq!(missing_for(Errno::ACCESS), Missing::Denied);
    }

    #[test]
    fn below_an_open_directory_only_the_one_that_was_named_is_opened() {
        let top = tempfile::tempdir().unwrap();
        std::fs::create_dir(top.path().join("job")).unwrap();
        let fd = openat(CWD, top.path(), OPEN_DIR, Mode::empty()).unwrap();
        let path = top.path().to_str().unwrap().to_owned();
        let above = OpenDir { dir: CgroupDir { path, inode: fstat(&fd).unwrap().st_ino }, hierarchy: Hierarchy::V2, fd };
        let named = above.child("job").unwrap().dir;
        assert_eq!(open_below(&above, "job", &named).unwrap().dir, named);
        std::fs::rename(top.path().join("job"), top.path().join("old")).unwrap();
        assert_eq!(open_below(&above, "job", &named).unwrap_err(), OpenError::Vanished);
        std::fs::create_dir(top.path().join("job")).unwrap();
        assert_eq!(open_below(&above, "job", &named).unwrap_err(), OpenError::Replaced);
        std::fs::remove_dir(top.path().join("job")).unwrap();
        std::os::unix::fs::symlink("old", top.path().join("job")).unwrap();
        let followed = open_below(&above, "job", &named).unwrap_err();
        assert!(matches!(followed, OpenError::Failed(_)), "the same directory, but by a link: {followed}");
    }

    proptest! {
        #[test]
        fn a_number_reads_back(value: u64) {
            prop_assert_eq!(number(format!("{value}\n").as_bytes()), Some(value));
            prop_assert_eq!(field(format!("a 1\nkey {value}\nb 2\n").as_bytes(), b"key"), Some(value));
        }

        #[test]
        fn what_is_no_number_is_refused_just_as_the_standard_library_does(text in "[-+ 0-9a-f]{0,24}") {
            let expected = if text.starts_with('+') { None } else { text.parse::<u64>().ok() };
            prop_assert_eq!(number(text.as_bytes()), expected);
        }

        #[test]
        fn any_bytes_at_all_are_parsed_without_harm(bytes: Vec<u8>) {
            let _ = parse_events(&bytes);
            let _ = field(&bytes, b"usage_usec");
        }
    }
}
