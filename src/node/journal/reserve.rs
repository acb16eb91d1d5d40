//! Room on the disk that is kept for the last readings: a file that is given up when the disk is full.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

use super::Reserve;

/// Its size.
pub(super) const RESERVE_BYTES: u64 = 8 * 1024 * 1024;

const CHUNK_BYTES: u64 = 64 * 1024;

/// The file, or its absence.
pub(super) struct ReserveFile {
    path: PathBuf,
    state: Reserve,
}

impl ReserveFile {
    /// Looks for the file, and makes it if there is room.
    pub(super) fn open(dir: &Path) -> ReserveFile {
        let mut reserve = ReserveFile { path: dir.join("journal.reserve"), state: Reserve::InUse };
        let whole = std::fs::metadata(&reserve.path).is_ok_and(|data| data.len() == RESERVE_BYTES);
        if whole {
            reserve.state = Reserve::Kept;
        } else {
            reserve.restore();
        }
        reserve
    }

    pub(super) fn state(&self) -> Reserve {
        self.state
    }

    /// Gives the room up; `true` if there was any to give.
    pub(super) fn release(&mut self) -> bool {
        let had = self.state == Reserve::Kept;
        self.state = Reserve::InUse;
        // Emptied before it is unlinked: an unlink alone frees nothing while a backup has the file open.
        let emptied = OpenOptions::new().write(true).open(&self.path).and_then(|file| file.set_len(0));
        let removed = std::fs::remove_file(&self.path);
        had && (emptied.is_ok() || removed.is_ok())
    }

    /// Makes the file again once there is twice its room, so that it does not come and go.
    pub(super) fn restore(&mut self) {
        if self.state == Reserve::Kept {
            return;
        }
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        let roomy = statvfs(dir).is_ok_and(|disk| 2 * RESERVE_BYTES <= disk.f_bavail.saturating_mul(disk.f_frsize));
        if roomy && allocate(&self.path).is_ok() {
            self.state = Reserve::Kept;
        } else {
            // A part of it would only be in the way.
            self.release();
        }
    }
}

fn allocate(path: &Path) -> std::io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    match fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES) {
        Err(Errno::OPNOTSUPP) => write_zeros(&file)?,
        result => result?,
    }
    file.sync_all()
}

fn write_zeros(mut file: &File) -> std::io::Result<()> {
    let zeros = vec![0; usize::try_from(CHUNK_BYTES).unwrap_or(0)];
    (0..RESERVE_BYTES / CHUNK_BYTES).try_for_each(|_| file.write_all(&zeros))
}
