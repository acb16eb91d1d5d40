//! A disk that can lose its power: `SQLite`'s own file layer, with every write, flush, cut and removal written down, so that the files can
//! be made again as a machine would find them after it lost its power between any two of these.

#![expect(unsafe_code, reason = "SQLite's file layer is a table of C functions")]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use rusqlite::ffi::{self, sqlite3_file, sqlite3_io_methods, sqlite3_vfs};

/// What a disk writes as a whole or not at all.
const SECTOR_BYTES: usize = 512;

/// One thing done to a file.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Open,
    Write { offset: usize, bytes: Vec<u8> },
    Truncate { length: usize },
    Sync,
    Remove,
}

/// One thing done, and to which file.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    pub(crate) file: PathBuf,
    pub(crate) op: Op,
}

/// The folder that is watched, and what was done in it.
#[derive(Default)]
struct Recorder {
    folder: Option<PathBuf>,
    log: Vec<Done>,
}

static RECORDER: Mutex<Recorder> = Mutex::new(Recorder { folder: None, log: Vec::new() });
static BELOW: OnceLock<Below> = OnceLock::new();

/// The file layer below.
struct Below(*mut sqlite3_vfs);

// SAFETY: SQLite's own file layer is a static of its library and may be called from any thread.
unsafe impl Send for Below {}
// SAFETY: as above.
unsafe impl Sync for Below {}

/// Every file that `SQLite` opens in this process from now on goes through this layer; what happens below `folder` is written down.
pub(crate) fn watch(folder: &Path) {
    BELOW.get_or_init(|| {
        // SAFETY: null asks for the default; it is never unregistered. The copy made of it lives for ever.
        unsafe {
            let below = ffi::sqlite3_vfs_find(std::ptr::null());
            let mut ours = *below;
            ours.zName = c"watched".as_ptr();
            ours.szOsFile = c_int::try_from(size_of::<Watched>()).unwrap() + (*below).szOsFile;
            ours.xOpen = Some(open);
            ours.xDelete = Some(remove);
            ours.pNext = std::ptr::null_mut();
            assert_eq!(ffi::sqlite3_vfs_register(Box::into_raw(Box::new(ours)), 1), ffi::SQLITE_OK);
            Below(below)
        }
    });
    let mut recorder = RECORDER.lock().unwrap_or_else(PoisonError::into_inner);
    *recorder = Recorder { folder: Some(folder.to_owned()), log: Vec::new() };
}

/// How much was done so far.
pub(crate) fn done() -> usize {
    RECORDER.lock().unwrap_or_else(PoisonError::into_inner).log.len()
}

/// All that was done; nothing more is written down.
pub(crate) fn take() -> Vec<Done> {
    let mut recorder = RECORDER.lock().unwrap_or_else(PoisonError::into_inner);
    recorder.folder = None;
    std::mem::take(&mut recorder.log)
}

/// How a disk treats what was written and not flushed when its power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unflushed {
    /// All of it is lost.
    Lost,
    /// All of it is there.
    Kept,
    /// Each write is there or not, whatever their order.
    Reordered,
    /// Each sector of each write is there or not.
    Torn,
}

pub(crate) const WAYS: [Unflushed; 4] = [Unflushed::Lost, Unflushed::Kept, Unflushed::Reordered, Unflushed::Torn];

#[derive(Default)]
struct File {
    content: Vec<u8>,
    pending: Vec<Op>,
    /// Its name is on the disk.
    named: bool,
}

/// Writes the files into `to` as they are found after the power went behind the first `count` things done.
pub(crate) fn cut(log: &[Done], count: usize, way: Unflushed, seed: u64, to: &Path) {
    let mut chance = Chance(seed | 1);
    let mut files: BTreeMap<PathBuf, File> = BTreeMap::new();
    for Done { file: name, op } in &log[..count] {
        match op {
            Op::Sync => {
                let file = files.entry(name.clone()).or_default();
                for op in std::mem::take(&mut file.pending) {
                    apply(&mut file.content, &op);
                }
                // SQLite flushes the folder with the first flush of a log; the names that it holds are then on the disk.
                for file in files.values_mut() {
                    file.named = true;
                }
            }
            Op::Remove => drop(files.remove(name)),
            other => files.entry(name.clone()).or_default().pending.push(other.clone()),
        }
    }
    for (name, mut file) in files {
        for op in std::mem::take(&mut file.pending) {
            keep(&mut file.content, &op, way, &mut chance);
        }
        if file.named || !file.content.is_empty() {
            std::fs::write(to.join(name.file_name().unwrap()), file.content).unwrap();
        }
    }
}

fn keep(content: &mut Vec<u8>, op: &Op, way: Unflushed, chance: &mut Chance) {
    match (way, op) {
        (Unflushed::Lost, _) => {}
        (Unflushed::Kept, op) => apply(content, op),
        (Unflushed::Torn, Op::Write { offset, bytes }) => {
            let mut from = 0;
            while from < bytes.len() {
                let sector_end = (offset + from) / SECTOR_BYTES * SECTOR_BYTES + SECTOR_BYTES - offset;
                let to = sector_end.min(bytes.len());
                if chance.even() {
                    apply(content, &Op::Write { offset: offset + from, bytes: bytes[from..to].to_vec() });
                }
                from = to;
            }
        }
        (Unflushed::Reordered | Unflushed::Torn, op) => {
            if chance.even() {
                apply(content, op);
            }
        }
    }
}

fn apply(content: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Write { offset, bytes } => {
            let end = offset + bytes.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[*offset..end].copy_from_slice(bytes);
        }
        Op::Truncate { length } => content.resize(*length, 0),
        Op::Open | Op::Sync | Op::Remove => {}
    }
}

struct Chance(u64);

impl Chance {
    fn even(&mut self) -> bool {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 & 1 << 20 == 0
    }
}

fn note(name: *const c_char, op: impl FnOnce() -> Op) {
    if name.is_null() {
        return;
    }
    // SAFETY: SQLite gives a name that ends with a zero and lives as long as the file is open.
    let name = unsafe { CStr::from_ptr(name) };
    let file = PathBuf::from(name.to_str().unwrap());
    let mut recorder = RECORDER.lock().unwrap_or_else(PoisonError::into_inner);
    if recorder.folder.as_ref().is_some_and(|folder| file.starts_with(folder)) {
        recorder.log.push(Done { file, op: op() });
    }
}

/// An open file: ours, and behind it that of the layer below.
#[repr(C)]
struct Watched {
    base: sqlite3_file,
    name: *const c_char,
}

unsafe fn below(file: *mut sqlite3_file) -> (*mut sqlite3_file, &'static sqlite3_io_methods) {
    // SAFETY: every file here was opened by `open`, which put the lower one right behind ours and kept its methods.
    unsafe {
        let lower = file.cast::<Watched>().add(1).cast::<sqlite3_file>();
        (lower, &*(*lower).pMethods)
    }
}

unsafe fn name_of(file: *mut sqlite3_file) -> *const c_char {
    // SAFETY: as above.
    unsafe { (*file.cast::<Watched>()).name }
}

unsafe extern "C" fn open(
    _: *mut sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    let vfs = BELOW.get().unwrap().0;
    // SAFETY: SQLite gives room for `szOsFile` bytes, which is both files.
    unsafe {
        let watched = file.cast::<Watched>();
        (*watched).base.pMethods = std::ptr::null();
        (*watched).name = name.cast();
        let lower = watched.add(1).cast::<sqlite3_file>();
        let result = (*vfs).xOpen.unwrap()(vfs, name, lower, flags, out);
        if result == ffi::SQLITE_OK {
            (*watched).base.pMethods = &raw const METHODS;
            note(name.cast(), || Op::Open);
        }
        result
    }
}

unsafe extern "C" fn remove(_: *mut sqlite3_vfs, name: *const c_char, sync_folder: c_int) -> c_int {
    let vfs = BELOW.get().unwrap().0;
    note(name, || Op::Remove);
    // SAFETY: passed on as it came.
    unsafe { (*vfs).xDelete.unwrap()(vfs, name, sync_folder) }
}

unsafe extern "C" fn write(file: *mut sqlite3_file, bytes: *const c_void, length: c_int, offset: i64) -> c_int {
    // SAFETY: SQLite gives `length` bytes.
    unsafe {
        let given = std::slice::from_raw_parts(bytes.cast::<u8>(), usize::try_from(length).unwrap());
        note(name_of(file), || Op::Write { offset: usize::try_from(offset).unwrap(), bytes: given.to_vec() });
        let (lower, methods) = below(file);
        methods.xWrite.unwrap()(lower, bytes, length, offset)
    }
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, length: i64) -> c_int {
    // SAFETY: passed on as it came.
    unsafe {
        note(name_of(file), || Op::Truncate { length: usize::try_from(length).unwrap() });
        let (lower, methods) = below(file);
        methods.xTruncate.unwrap()(lower, length)
    }
}

unsafe extern "C" fn sync(file: *mut sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: passed on as it came.
    unsafe {
        let (lower, methods) = below(file);
        let result = methods.xSync.unwrap()(lower, flags);
        note(name_of(file), || Op::Sync);
        result
    }
}

/// A function of the table that only passes the call on.
macro_rules! pass_on {
    ($name:ident, $method:ident, ($($argument:ident: $kind:ty),*)) => {
        unsafe extern "C" fn $name(file: *mut sqlite3_file, $($argument: $kind),*) -> c_int {
            // SAFETY: passed on as it came.
            unsafe {
                let (lower, methods) = below(file);
                methods.$method.unwrap()(lower, $($argument),*)
            }
        }
    };
}

pass_on!(close, xClose, ());
pass_on!(read, xRead, (bytes: *mut c_void, length: c_int, offset: i64));
pass_on!(file_size, xFileSize, (size: *mut i64));
pass_on!(lock, xLock, (level: c_int));
pass_on!(unlock, xUnlock, (level: c_int));
pass_on!(is_reserved, xCheckReservedLock, (result: *mut c_int));
pass_on!(control, xFileControl, (operation: c_int, argument: *mut c_void));
pass_on!(sector_size, xSectorSize, ());
pass_on!(characteristics, xDeviceCharacteristics, ());
pass_on!(shm_map, xShmMap, (page: c_int, size: c_int, extend: c_int, out: *mut *mut c_void));
pass_on!(shm_lock, xShmLock, (offset: c_int, count: c_int, flags: c_int));
pass_on!(shm_unmap, xShmUnmap, (remove: c_int));

unsafe extern "C" fn shm_barrier(file: *mut sqlite3_file) {
    // SAFETY: passed on as it came.
    unsafe {
        let (lower, methods) = below(file);
        methods.xShmBarrier.unwrap()(lower);
    }
}

static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(is_reserved),
    xFileControl: Some(control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};
