//! Where this machine keeps its cgroups: told per controller from `/proc/self/mountinfo`, never guessed from a path.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
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
    /// The v1 mount of the freezer: used where a job has no cgroup2 directory that can be frozen.
    pub v1_freezer: Option<PathBuf>,
    /// The v1 mount of the controller that counts tasks.
    pub v1_pids: Option<PathBuf>,
    /// The v1 mount of the controller that counts block I/O.
    pub v1_blkio: Option<PathBuf>,
    /// What each mount shows as its `/` (field 4 of mountinfo): `/` unless only a part is mounted, as in some containers.
    pub mount_roots: BTreeMap<PathBuf, String>,
    /// Files of cgroup2 that are taken as not there, as on a kernel that has none of that name: `cgroup.kill` (before 5.14),
    /// `cgroup.freeze` (before 5.2). Empty on a real machine: there the directories are asked.
    pub hidden_files: BTreeSet<&'static str>,
}

/// How the controllers are spread over the hierarchies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All in cgroup2.
    Unified,
    /// A cgroup2 tree beside v1 controllers.
    Hybrid,
    /// v1 only: frozen by the freezer if it is mounted, by SIGSTOP if not.
    Legacy,
}

/// A v1 controller that is metered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    /// `memory.usage_in_bytes`.
    Memory,
    /// `cpuacct.usage`.
    Cpuacct,
    /// `freezer.state`.
    Freezer,
    /// `pids.current`.
    Pids,
    /// `blkio.throttle.io_service_bytes`.
    Blkio,
}

impl Controller {
    /// Every one of them.
    pub const ALL: [Controller; 5] = [Controller::Memory, Controller::Cpuacct, Controller::Freezer, Controller::Pids, Controller::Blkio];

    /// Its name in mountinfo and `/proc/<pid>/cgroup`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Controller::Memory => "memory",
            Controller::Cpuacct => "cpuacct",
            Controller::Freezer => "freezer",
            Controller::Pids => "pids",
            Controller::Blkio => "blkio",
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// The controllers that one v1 mount has: several can share it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Controllers(u8);

/// Which of the hierarchies a directory is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hierarchy {
    /// cgroup2.
    V2,
    /// A v1 hierarchy with these controllers.
    V1(Controllers),
}

impl Hierarchy {
    /// The v1 hierarchy of one controller alone.
    #[must_use]
    pub const fn v1(controller: Controller) -> Hierarchy {
        Hierarchy::V1(Controllers(controller.bit()))
    }

    /// Is it a v1 hierarchy with this controller?
    #[must_use]
    pub const fn has(self, controller: Controller) -> bool {
        matches!(self, Hierarchy::V1(Controllers(bits)) if bits & controller.bit() != 0)
    }
}

/// What is to be had from a job's cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// CPU time.
    CpuTime,
    /// Memory: what is charged, anonymous, its peak, kills for want of it.
    Memory,
    /// Stopping and ending.
    Freezing,
    /// Bytes and operations of block devices.
    Io,
    /// How many tasks.
    Pids,
    /// How long tasks waited for CPU, memory and I/O.
    Pressure,
}

impl Need {
    /// Every need.
    pub const ALL: [Need; 6] = [Need::CpuTime, Need::Memory, Need::Freezing, Need::Io, Need::Pids, Need::Pressure];

    /// Its name in status documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Need::CpuTime => "cpu_time",
            Need::Memory => "memory",
            Need::Freezing => "freezing",
            Need::Io => "io",
            Need::Pids => "pids",
            Need::Pressure => "pressure",
        }
    }

    /// The v1 controller that serves it; none for pressure, which v1 does not tell.
    const fn v1(self) -> Option<Controller> {
        match self {
            Need::CpuTime => Some(Controller::Cpuacct),
            Need::Memory => Some(Controller::Memory),
            Need::Freezing => Some(Controller::Freezer),
            Need::Io => Some(Controller::Blkio),
            Need::Pids => Some(Controller::Pids),
            Need::Pressure => None,
        }
    }
}

/// Which hierarchy serves a need on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Served {
    /// cgroup2.
    V2,
    /// The v1 controller of that name.
    V1(Controller),
    /// Signals: SIGSTOP, SIGCONT and SIGKILL to every process of the job's cgroup.
    Signals,
    /// None: the readings are missing.
    Nothing,
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Served::V2 => f.write_str("cgroup2"),
            Served::V1(controller) => write!(f, "v1 {}", controller.name()),
            Served::Signals => f.write_str("signals"),
            Served::Nothing => f.write_str("nothing"),
        }
    }
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
    pub fn from_mountinfo(mut text: impl BufRead) -> Result<Layout, LayoutError> {
        let mut bytes = Vec::new();
        text.read_to_end(&mut bytes).map_err(|error| LayoutError::Mountinfo(error.to_string()))?;
        // Users may mount too (FUSE), at names of any bytes: their lines must not keep ours from being read.
        let text = String::from_utf8_lossy(&bytes);
        let ours: Vec<&str> = text.lines().filter(|line| line.contains(" - cgroup") || !line.contains(" - ")).collect();
        let mounts = MountInfos::from_buf_read(ours.join("\n").as_bytes()).map_err(|error| LayoutError::Mountinfo(error.to_string()))?;
        let mut layout = Layout::default();
        let mut roots: BTreeMap<PathBuf, String> = BTreeMap::new();
        for mount in mounts {
            let slots: Vec<&mut Option<PathBuf>> = match mount.fs_type.as_str() {
                "cgroup2" => vec![&mut layout.v2],
                // Controllers can share one mount (`cpu,cpuacct`): each is a super option of its own.
                "cgroup" => {
                    let Layout { v1_memory, v1_cpuacct, v1_freezer, v1_pids, v1_blkio, .. } = &mut layout;
                    let slots = [v1_memory, v1_cpuacct, v1_freezer, v1_pids, v1_blkio];
                    // Controllers can share one mount (`cpu,cpuacct`): each is a super option of its own.
                    let mounted = Controller::ALL.into_iter().zip(slots);
                    mounted.filter(|(controller, _)| mount.super_options.contains_key(controller.name())).map(|(_, slot)| slot).collect()
                }
                _ => continue,
            };
            for slot in slots {
                // A mount of the whole hierarchy wins over a bind mount of a part of it; else the first one.
                let whole_known = slot.as_ref().is_some_and(|known| roots.get(known).is_some_and(|root| root == "/"));
                if slot.is_none() || (mount.root == "/" && !whole_known) {
                    *slot = Some(mount.mount_point.clone());
                    roots.insert(mount.mount_point.clone(), mount.root.clone());
                }
            }
        }
        layout.mount_roots = roots;
        if layout.mode().is_some() { Ok(layout) } else { Err(LayoutError::NoCgroups) }
    }

    /// How the controllers are spread; `None` if nothing is mounted.
    #[must_use]
    pub fn mode(&self) -> Option<Mode> {
        let v1 = Controller::ALL.into_iter().any(|controller| self.v1(controller).is_some());
        match (&self.v2, v1) {
            (Some(_), false) => Some(Mode::Unified),
            (Some(_), true) => Some(Mode::Hybrid),
            (None, true) => Some(Mode::Legacy),
            (None, false) => None,
        }
    }

    /// Where a v1 controller is mounted.
    #[must_use]
    pub fn v1(&self, controller: Controller) -> Option<&Path> {
        match controller {
            Controller::Memory => self.v1_memory.as_deref(),
            Controller::Cpuacct => self.v1_cpuacct.as_deref(),
            Controller::Freezer => self.v1_freezer.as_deref(),
            Controller::Pids => self.v1_pids.as_deref(),
            Controller::Blkio => self.v1_blkio.as_deref(),
        }
    }

    /// The mounts, cgroup2 first: one that several controllers share is one hierarchy.
    #[must_use]
    pub fn mounts(&self) -> Vec<(Hierarchy, &Path)> {
        let mut mounts: Vec<(Hierarchy, &Path)> = self.v2.iter().map(|mount| (Hierarchy::V2, mount.as_path())).collect();
        for controller in Controller::ALL {
            let Some(mount) = self.v1(controller) else { continue };
            match mounts.iter_mut().find(|(hierarchy, known)| *known == mount && *hierarchy != Hierarchy::V2) {
                Some((Hierarchy::V1(Controllers(bits)), _)) => *bits |= controller.bit(),
                _ => mounts.push((Hierarchy::v1(controller), mount)),
            }
        }
        mounts
    }

    /// Does this kernel have that file in the directories of cgroup2, as far as the layout says?
    #[must_use]
    pub fn hides(&self, file: &str) -> bool {
        self.hidden_files.contains(file)
    }

    /// Which hierarchy serves a need here, for jobs that have their directories in all of them. cgroup2 where its root offers it, else v1.
    #[must_use]
    pub fn served(&self, need: Need) -> Served {
        let offered = |controller: &str| {
            let list = self.v2.as_ref().and_then(|mount| std::fs::read_to_string(mount.join("cgroup.controllers")).ok());
            list.is_some_and(|list| list.split_whitespace().any(|offered| offered == controller))
        };
        let by_v2 = match need {
            // Counted by the core since Linux 4.15, whoever has the cpu controller.
            Need::CpuTime => self.v2.is_some(),
            Need::Freezing => self.v2.is_some() && !self.hides("cgroup.freeze"),
            Need::Pressure => self.v2.as_ref().is_some_and(|_| Path::new("/proc/pressure/cpu").exists()),
            Need::Memory => self.v1_memory.is_none() && offered("memory"),
            Need::Io => self.v1_blkio.is_none() && offered("io"),
            Need::Pids => self.v1_pids.is_none() && offered("pids"),
        };
        match need.v1().filter(|controller| self.v1(*controller).is_some()) {
            _ if by_v2 => Served::V2,
            Some(controller) => Served::V1(controller),
            None if need == Need::Freezing && self.mode().is_some() => Served::Signals,
            None => Served::Nothing,
        }
    }

    /// The cgroup that a place shows, as `/proc/<pid>/cgroup` names it: the same in every hierarchy for siblings.
    #[must_use]
    pub fn cgroup_name(&self, place: &Place) -> PathBuf {
        let root = self.mount_roots.get(&place.mount).map_or("/", String::as_str);
        Path::new(root).join(&place.relative)
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
        let mut mounts = self.mounts();
        // The longest path first, so that a mount inside another one is found before it.
        mounts.sort_by_key(|(_, mount)| std::cmp::Reverse(mount.as_os_str().len()));
        for (hierarchy, mount) in mounts {
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
            let named = |controller: &Controller| line.controllers.iter().any(|name| name == controller.name());
            let mount = if line.hierarchy == 0 {
                self.v2.as_deref()
            } else {
                Controller::ALL.into_iter().filter(named).find_map(|controller| self.v1(controller))
            };
            dirs.extend(mount.and_then(|mount| self.dir_in(mount, &line.pathname)));
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
    fn a_mount_that_several_controllers_share_is_one_hierarchy() {
        let text = "32 31 0:29 / /cg/all rw - cgroup cgroup rw,cpuacct,freezer,memory\n33 31 0:30 / /cg/pids rw - cgroup cgroup rw,pids\n";
        let layout = layout(text);
        assert_eq!((layout.mode(), layout.mounts().len()), (Some(Mode::Legacy), 2));
        let hierarchy = layout.classify(Path::new("/cg/all/job")).unwrap().hierarchy;
        for controller in Controller::ALL {
            let shared = matches!(controller, Controller::Memory | Controller::Cpuacct | Controller::Freezer);
            assert_eq!(hierarchy.has(controller), shared, "{controller:?}");
        }
        assert!(layout.classify(Path::new("/cg/pids/job")).unwrap().hierarchy.has(Controller::Pids));
    }

    #[test]
    fn which_hierarchy_serves_a_need_is_told_for_each_controller() {
        let of = |layout: &Layout| Need::ALL.map(|need| layout.served(need).to_string()).join(", ");
        let v1 = "32 31 0:29 / /cg/a rw - cgroup cgroup rw,cpuacct\n33 31 0:30 / /cg/m rw - cgroup cgroup rw,memory\n";
        assert_eq!(of(&layout(v1)), "v1 cpuacct, v1 memory, signals, nothing, nothing, nothing");
        let freezer = "34 31 0:31 / /cg/f rw - cgroup cgroup rw,freezer\n";
        assert_eq!(layout(&format!("{v1}{freezer}")).served(Need::Freezing), Served::V1(Controller::Freezer));
        let core_only = "41 31 0:38 / /cg/none rw - cgroup2 cgroup2 rw\n";
        let mut hybrid = layout(&format!("{v1}{freezer}{core_only}"));
        assert_eq!((hybrid.served(Need::CpuTime), hybrid.served(Need::Memory)), (Served::V2, Served::V1(Controller::Memory)));
        assert_eq!(hybrid.served(Need::Freezing), Served::V2);
        hybrid.hidden_files.insert("cgroup.freeze");
        assert_eq!(hybrid.served(Need::Freezing), Served::V1(Controller::Freezer), "before Linux 5.2");
        let unified = tempfile::tempdir().unwrap();
        std::fs::write(unified.path().join("cgroup.controllers"), "cpu io memory\n").unwrap();
        let unified = Layout { v2: Some(unified.path().to_owned()), ..Layout::default() };
        assert_eq!((unified.served(Need::Memory), unified.served(Need::Pids)), (Served::V2, Served::Nothing));
    }

    #[test]
    fn without_a_cgroup_mount_there_is_no_layout() {
        let text: &[u8] = b"22 1 0:21 / /proc rw - proc proc rw\n";
        assert!(matches!(Layout::from_mountinfo(text), Err(LayoutError::NoCgroups)));
        assert!(matches!(Layout::from_mountinfo(&b"22 1\n"[..]), Err(LayoutError::Mountinfo(_))));
    }

    #[test]
    fn what_users_mount_at_names_that_are_no_text_hides_no_cgroups() {
        let fuse = b"90 23 0:90 / /tmp/\xff\\9 rw - fuse.x x rw,x\n".as_slice();
        assert_eq!(Layout::from_mountinfo([fuse, UNIFIED.as_bytes()].concat().as_slice()).unwrap(), layout(UNIFIED));
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
        assert_eq!((place.hierarchy, place.relative), (Hierarchy::v1(Controller::Memory), "a/b".into()));
        assert_eq!(hybrid.classify(Path::new("/sys/fs/cgroup/unified/j")).unwrap().hierarchy, Hierarchy::V2);
        for bad in ["a", "/sys/fs/cgroup/memory/../x", "/sys/fs/cgroup/memory/./a", "/sys/fs/cgroup/memory//a", "/sys/fs/cgroup/memory/a/"]
        {
            assert!(matches!(hybrid.classify(Path::new(bad)), Err(PlaceError::NotPlain(_))), "{bad}");
        }
        assert!(matches!(hybrid.classify(Path::new("/sys/fs/cgroup/unified")), Err(PlaceError::Root(_))));
        for bad in ["/etc/x", "/sys/fs/cgroup/cpuset/a", "/sys/fs/cgroup/memoryx/a", "/sys/fs/cgroup"] {
            assert!(matches!(hybrid.classify(Path::new(bad)), Err(PlaceError::NotACgroup(_))), "{bad}");
        }
    }

    #[test]
    fn a_path_outside_this_cgroup_namespace_is_nobodys() {
        assert_eq!(layout(UNIFIED).dir_in(Path::new("/sys/fs/cgroup"), "/../x"), None);
        assert_eq!(layout(UNIFIED).dir_in(Path::new("/sys/fs/cgroup"), "/"), Some("/sys/fs/cgroup".into()));
    }
}
