//! Where this machine keeps its cgroups: told per controller from `/proc/self/mountinfo`, never guessed from a path.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::{Component, Path, PathBuf};

use procfs::FromBufRead;
use procfs::process::{MountInfos, Process};

/// Where the cgroup file systems are mounted. Every field is a plain path, so a test can name a subtree as its whole world.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The cgroup2 mount: `cpu.stat`, `cgroup.freeze`, `cgroup.kill`, `cgroup.events`.
    pub v2: Option<PathBuf>,
    /// The v1 mount of the memory controller; `None` where v2 has it.
    pub v1_memory: Option<PathBuf>,
    /// The v1 mount of the CPU accounting controller.
    pub v1_cpuacct: Option<PathBuf>,
    /// The v1 mount of the freezer. Told, not used: `cgroup.freeze` is there in a hybrid layout too.
    pub v1_freezer: Option<PathBuf>,
    /// What each mount shows as its `/` (field 4 of mountinfo): `/` unless only a part is mounted, as in some containers.
    pub mount_roots: BTreeMap<PathBuf, String>,
}

/// How the controllers are spread over the hierarchies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All in cgroup2.
    Unified,
    /// A cgroup2 tree beside v1 controllers.
    Hybrid,
    /// v1 only: nothing can be frozen or killed here as a whole.
    Legacy,
}

/// Which of the hierarchies a directory is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hierarchy {
    /// cgroup2.
    V2,
    /// The v1 memory controller.
    V1Memory,
    /// The v1 CPU accounting controller.
    V1Cpuacct,
    /// The v1 freezer.
    V1Freezer,
}

/// A directory told apart: in which hierarchy, and where in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// In which hierarchy.
    pub hierarchy: Hierarchy,
    /// Where that is mounted.
    pub mount: PathBuf,
    /// The way from the mount to the directory; never empty, without `.` and `..`.
    pub relative: PathBuf,
}

/// Why there is no layout.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// No cgroup file system is mounted: jobs can only be followed as process trees.
    #[error("no cgroup file system is mounted here: jobs can only be followed as process trees")]
    NoCgroups,
    /// `/proc/self/mountinfo` cannot be read or is not what proc(5) says.
    #[error("cannot read the mounts: {0}")]
    Mountinfo(String),
}

/// Why a path is not the directory of a job's cgroup.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// Not absolute, or with `.` or `..` in it.
    #[error("{0} is not an absolute path without '.' and '..'")]
    NotPlain(PathBuf),
    /// Below none of the cgroup mounts that are metered (cgroup2, v1 memory, cpuacct, freezer).
    #[error("{0} is not in a cgroup file system that is metered")]
    NotACgroup(PathBuf),
    /// The root of a hierarchy: that is the whole machine.
    #[error("{0} is the root of a cgroup hierarchy")]
    Root(PathBuf),
}

impl Layout {
    /// The layout of this machine, as this process sees it.
    ///
    /// # Errors
    /// When no cgroup file system is mounted, or the mounts cannot be read.
    pub fn detect() -> Result<Layout, LayoutError> {
        let file = std::fs::File::open("/proc/self/mountinfo").map_err(|error| LayoutError::Mountinfo(error.to_string()))?;
        Layout::from_mountinfo(std::io::BufReader::new(file))
    }

    /// The layout that a mountinfo text (proc(5)) tells.
    ///
    /// # Errors
    /// When it names no cgroup file system, or is malformed.
    pub fn from_mountinfo(text: impl BufRead) -> Result<Layout, LayoutError> {
        let mounts = MountInfos::from_buf_read(text).map_err(|error| LayoutError::Mountinfo(error.to_string()))?;
        let mut layout = Layout::default();
        for mount in mounts {
            let slots: Vec<&mut Option<PathBuf>> = match mount.fs_type.as_str() {
                "cgroup2" => vec![&mut layout.v2],
                // Controllers can share one mount (`cpu,cpuacct`): each is a super option of its own.
                "cgroup" => [("memory", &mut layout.v1_memory), ("cpuacct", &mut layout.v1_cpuacct), ("freezer", &mut layout.v1_freezer)]
                    .into_iter()
                    .filter(|(controller, _)| mount.super_options.contains_key(*controller))
                    .map(|(_, slot)| slot)
                    .collect(),
                _ => continue,
            };
            for slot in slots {
                // A mount of the whole hierarchy wins over a bind mount of a part of it; else the first one.
                let whole_known = slot.as_ref().is_some_and(|known| layout.mount_roots.get(known).is_some_and(|root| root == "/"));
                if slot.is_none() || (mount.root == "/" && !whole_known) {
                    *slot = Some(mount.mount_point.clone());
                    layout.mount_roots.insert(mount.mount_point.clone(), mount.root.clone());
                }
            }
        }
        if layout.mode().is_some() { Ok(layout) } else { Err(LayoutError::NoCgroups) }
    }

    /// How the controllers are spread; `None` if nothing is mounted.
    #[must_use]
    pub fn mode(&self) -> Option<Mode> {
        let v1 = self.v1_memory.is_some() || self.v1_cpuacct.is_some() || self.v1_freezer.is_some();
        match (&self.v2, v1) {
            (Some(_), false) => Some(Mode::Unified),
            (Some(_), true) => Some(Mode::Hybrid),
            (None, true) => Some(Mode::Legacy),
            (None, false) => None,
        }
    }

    /// The mounts, the longest path first, so that a mount inside another one is found before it.
    fn mounts(&self) -> Vec<(Hierarchy, &Path)> {
        let mut mounts: Vec<(Hierarchy, &Path)> = [
            (Hierarchy::V2, &self.v2),
            (Hierarchy::V1Memory, &self.v1_memory),
            (Hierarchy::V1Cpuacct, &self.v1_cpuacct),
            (Hierarchy::V1Freezer, &self.v1_freezer),
        ]
        .into_iter()
        .filter_map(|(hierarchy, mount)| Some((hierarchy, mount.as_deref()?)))
        .collect();
        mounts.sort_by_key(|(_, mount)| std::cmp::Reverse(mount.as_os_str().len()));
        mounts
    }

    /// Where a directory is. Only the text is looked at: whether it exists is seen when it is opened.
    ///
    /// # Errors
    /// When the path is not plain, is outside the cgroup mounts, or is the root of one.
    pub fn classify(&self, path: &Path) -> Result<Place, PlaceError> {
        let plain = path.is_absolute()
            && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
            // `components` passes over `.` and doubled slashes: the text itself must be in its one canonical form.
            && path.components().collect::<PathBuf>().as_os_str() == path.as_os_str();
        if !plain {
            return Err(PlaceError::NotPlain(path.to_owned()));
        }
        for (hierarchy, mount) in self.mounts() {
            if let Ok(relative) = path.strip_prefix(mount) {
                if relative.as_os_str().is_empty() {
                    return Err(PlaceError::Root(path.to_owned()));
                }
                return Ok(Place { hierarchy, mount: mount.to_owned(), relative: relative.to_owned() });
            }
        }
        Err(PlaceError::NotACgroup(path.to_owned()))
    }

    /// The directories that this process is in (`/proc/self/cgroup`), one for each hierarchy that is metered.
    /// A hierarchy whose path lies outside the mount (`/../…`, another cgroup namespace) is left out: nothing of it can be named here.
    ///
    /// # Errors
    /// When `/proc/self/cgroup` cannot be read.
    pub fn own_dirs(&self) -> Result<Vec<PathBuf>, LayoutError> {
        let unreadable = |error: procfs::ProcError| LayoutError::Mountinfo(error.to_string());
        let lines = Process::myself().and_then(|me| me.cgroups()).map_err(unreadable)?;
        let mut dirs = Vec::new();
        for line in lines {
            let has = |name: &str| line.controllers.iter().any(|controller| controller == name);
            let mount = match line.hierarchy {
                0 => &self.v2,
                _ if has("memory") => &self.v1_memory,
                _ if has("cpuacct") => &self.v1_cpuacct,
                _ if has("freezer") => &self.v1_freezer,
                _ => continue,
            };
            dirs.extend(mount.as_ref().and_then(|mount| self.dir_in(mount, &line.pathname)));
        }
        Ok(dirs)
    }

    /// The directory below `mount` that shows the cgroup called `pathname` in `/proc/<pid>/cgroup`.
    #[must_use]
    pub fn dir_in(&self, mount: &Path, pathname: &str) -> Option<PathBuf> {
        let root = self.mount_roots.get(mount).map_or("/", String::as_str);
        let relative = Path::new(pathname).strip_prefix(root).ok()?;
        let inside = relative.components().all(|part| matches!(part, Component::Normal(_)));
        inside.then(|| if relative.as_os_str().is_empty() { mount.to_owned() } else { mount.join(relative) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
    const HYBRID: &str = "\
        31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        37 31 0:34 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n\
        40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    fn layout(text: &str) -> Layout {
        Layout::from_mountinfo(text.as_bytes()).unwrap()
    }

    #[test]
    fn unified_hybrid_and_v1_are_told_apart_by_controller() {
        let unified = layout(UNIFIED);
        assert_eq!((unified.mode(), unified.v1_memory.clone()), (Some(Mode::Unified), None));
        let hybrid = layout(HYBRID);
        assert_eq!(hybrid.mode(), Some(Mode::Hybrid));
        assert_eq!(hybrid.v2, Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(hybrid.v1_memory, Some("/sys/fs/cgroup/memory".into()));
        assert_eq!(hybrid.v1_cpuacct, Some("/sys/fs/cgroup/cpu,cpuacct".into()));
        let legacy = HYBRID.lines().filter(|line| !line.contains("cgroup2")).collect::<Vec<_>>().join("\n");
        assert_eq!(layout(&legacy).mode(), Some(Mode::Legacy));
    }

    #[test]
    fn without_a_cgroup_mount_there_is_no_layout() {
        let text: &[u8] = b"22 1 0:21 / /proc rw - proc proc rw\n";
        assert!(matches!(Layout::from_mountinfo(text), Err(LayoutError::NoCgroups)));
        assert!(matches!(Layout::from_mountinfo(&b"22 1\n"[..]), Err(LayoutError::Mountinfo(_))));
    }

    #[test]
    fn a_mount_of_the_whole_tree_wins_over_a_part_of_it() {
        let part = "30 23 0:28 /docker/x /mnt/part rw - cgroup2 cgroup2 rw\n";
        assert_eq!(layout(&format!("{part}{UNIFIED}")).v2, Some("/sys/fs/cgroup".into()));
        assert_eq!(layout(&format!("{UNIFIED}{part}")).v2, Some("/sys/fs/cgroup".into()));
        let only_part = layout(part);
        assert_eq!(only_part.dir_in(Path::new("/mnt/part"), "/docker/x/job"), Some("/mnt/part/job".into()));
        assert_eq!(only_part.dir_in(Path::new("/mnt/part"), "/elsewhere"), None);
    }

    #[test]
    fn a_path_is_placed_by_its_mount_and_must_be_plain() {
        let hybrid = layout(HYBRID);
        let place = hybrid.classify(Path::new("/sys/fs/cgroup/memory/a/b")).unwrap();
        assert_eq!((place.hierarchy, place.relative), (Hierarchy::V1Memory, "a/b".into()));
        assert_eq!(hybrid.classify(Path::new("/sys/fs/cgroup/unified/j")).unwrap().hierarchy, Hierarchy::V2);
        for bad in ["a", "/sys/fs/cgroup/memory/../x", "/sys/fs/cgroup/memory/./a", "/sys/fs/cgroup/memory//a", "/sys/fs/cgroup/memory/a/"]
        {
            assert!(matches!(hybrid.classify(Path::new(bad)), Err(PlaceError::NotPlain(_))), "{bad}");
        }
        assert!(matches!(hybrid.classify(Path::new("/sys/fs/cgroup/unified")), Err(PlaceError::Root(_))));
        for bad in ["/etc/x", "/sys/fs/cgroup/pids/a", "/sys/fs/cgroup/memoryx/a", "/sys/fs/cgroup"] {
            assert!(matches!(hybrid.classify(Path::new(bad)), Err(PlaceError::NotACgroup(_))), "{bad}");
        }
    }

    #[test]
    fn a_path_outside_this_cgroup_namespace_is_nobodys() {
        assert_eq!(layout(UNIFIED).dir_in(Path::new("/sys/fs/cgroup"), "/../x"), None);
        assert_eq!(layout(UNIFIED).dir_in(Path::new("/sys/fs/cgroup"), "/"), Some("/sys/fs/cgroup".into()));
    }
}
