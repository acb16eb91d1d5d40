//! Reads small files of cgroups through descriptors that are kept, up to a cap.

use rustix::fd::OwnedFd;
use rustix::io::{Errno, pread};

use crate::domain::meter::Missing;
use crate::node::cgroup_dir::{OpenDir, missing_for};

/// A file's descriptor, if it is kept.
#[derive(Debug, Default)]
pub(super) struct Slot(Option<OwnedFd>);

/// The budget of kept descriptors, and the one buffer that all files are read into.
#[derive(Debug)]
pub(super) struct Files {
    kept: usize,
    kept_max: usize,
    buffer: Vec<u8>,
    /// A directory was found gone.
    vanished: bool,
}

impl Files {
    pub(super) fn keeping_at_most(kept_max: usize) -> Files {
        Files { kept: 0, kept_max, buffer: vec![0; 4_096], vanished: false }
    }

    /// How many are kept now.
    pub(super) const fn kept(&self) -> usize {
        self.kept
    }

    /// The text of a file of that directory: what fits the buffer (the files read here hold a few lines).
    pub(super) fn read(&mut self, dir: &OpenDir, name: &str, slot: &mut Slot) -> Result<&[u8], Missing> {
        let why = |errno| match errno {
            // The same answer for a file that this kernel does not offer, and for any file of a removed cgroup.
            Errno::NOENT if dir.is_there() => Missing::NotSupported,
            errno => missing_for(errno),
        };
        let length = if let Some(kept) = &slot.0 {
            pread(kept, &mut self.buffer, 0).map_err(why)?
        } else {
            let file = dir.file(name).map_err(why)?;
            let length = pread(&file, &mut self.buffer, 0).map_err(why)?;
            if self.kept < self.kept_max {
                self.kept += 1;
                slot.0 = Some(file);
            }
            length
        };
        Ok(&self.buffer[..length])
    }

    /// The same for a file that is seldom read: its descriptor is not kept.
    pub(super) fn read_once(&mut self, dir: &OpenDir, name: &str) -> Result<&[u8], Missing> {
        let kept_max = std::mem::replace(&mut self.kept_max, 0);
        let length = self.read(dir, name, &mut Slot::default()).map(<[u8]>::len);
        self.kept_max = kept_max;
        Ok(&self.buffer[..length?])
    }

    /// A directory was found gone.
    pub(super) fn note_vanished(&mut self) {
        self.vanished = true;
    }

    /// Was one found gone since that was last forgotten?
    pub(super) const fn vanished(&self) -> bool {
        self.vanished
    }

    /// Whatever was found gone has been told.
    pub(super) fn forget_vanished(&mut self) {
        self.vanished = false;
    }

    /// Closes it.
    pub(super) fn release(&mut self, slot: &mut Slot) {
        if slot.0.take().is_some() {
            self.kept -= 1;
        }
    }
}
