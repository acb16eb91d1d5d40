//! Reads small files of cgroups through descriptors that are kept, as far as there is room.

use std::ops::Deref;
use std::sync::Arc;

use rustix::fd::OwnedFd;
use rustix::io::{Errno, pread};

use crate::domain::meter::Missing;
use crate::node::cgroup_dir::{OpenDir, missing_for};
use crate::node::descriptors::{Place, Room};

/// A file's descriptor, if it is kept.
#[derive(Debug, Default)]
pub(super) struct Slot(Option<(OwnedFd, Place)>);

/// A directory that is kept open, or was opened for this once.
pub(super) enum Opened<'d> {
    Kept(&'d OpenDir),
    Once(OpenDir),
}

impl Deref for Opened<'_> {
    type Target = OpenDir;

    fn deref(&self) -> &OpenDir {
        match self {
            Opened::Kept(dir) => dir,
            Opened::Once(dir) => dir,
        }
    }
}

/// The budget of kept descriptors, and the one buffer that all files are read into.
#[derive(Debug)]
pub(super) struct Files {
    kept: usize,
    kept_max: usize,
    pub(super) room: Arc<Room>,
    buffer: Vec<u8>,
    /// Files that were to be kept, and for which there was no place.
    turned_away: usize,
    /// A directory was found gone.
    vanished: bool,
}

impl Files {
    pub(super) fn keeping_at_most(kept_max: usize, room: Arc<Room>) -> Files {
        Files { kept: 0, kept_max, room, buffer: vec![0; 4_096], turned_away: 0, vanished: false }
    }

    /// How many are kept now.
    pub(super) const fn kept(&self) -> usize {
        self.kept
    }

    /// The text of a file of a directory: what fits the buffer (the files read here hold a few lines). The directory is asked for only
    /// where the file is not kept open.
    pub(super) fn read<'d>(
        &mut self,
        slot: &mut Slot,
        name: &str,
        dir: impl FnOnce() -> Result<Opened<'d>, Missing>,
    ) -> Result<&[u8], Missing> {
        let length = if let Some((kept, _)) = &slot.0 {
            pread(kept, &mut self.buffer, 0).map_err(missing_for)?
        } else {
            let dir = dir()?;
            let why = |errno| match errno {
                // The same answer for a file that this kernel does not offer, and for any file of a removed cgroup.
                Errno::NOENT if dir.is_there() => Missing::NotSupported,
                errno => missing_for(errno),
            };
            let file = dir.file(name).map_err(why)?;
            let length = pread(&file, &mut self.buffer, 0).map_err(why)?;
            if self.kept < self.kept_max {
                match self.room.take() {
                    Some(place) => {
                        self.kept += 1;
                        slot.0 = Some((file, place));
                    }
                    None => self.turned_away += 1,
                }
            }
            length
        };
        Ok(&self.buffer[..length])
    }

    /// The same for a file that is seldom read: its descriptor is not kept.
    pub(super) fn read_once<'d>(&mut self, name: &str, dir: impl FnOnce() -> Result<Opened<'d>, Missing>) -> Result<&[u8], Missing> {
        let kept_max = std::mem::replace(&mut self.kept_max, 0);
        let length = self.read(&mut Slot::default(), name, dir).map(<[u8]>::len);
        self.kept_max = kept_max;
        Ok(&self.buffer[..length?])
    }

    /// How many files found no place since this was last asked.
    pub(super) fn take_turned_away(&mut self) -> usize {
        std::mem::take(&mut self.turned_away)
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
