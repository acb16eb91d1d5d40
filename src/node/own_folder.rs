//! The folders that are the agent's own: made where they are not there, refused where somebody else could read, write or replace them.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::defence::{Defence, stands};

/// What others may do in a folder of the agent's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privacy {
    /// Nothing: balances and journal lie there.
    Secret,
    /// Look and connect: the socket lies there.
    Open,
}

/// What a file system shows for a user that has no number in this user namespace.
const UNMAPPED_UID: u32 = 65_534;

/// Makes the folder, or takes the one that is there: it and all above it belong to root or to this user, nobody else may write to it,
/// and a link on the way to it is theirs too. Others' right to read a secret one is taken away.
///
/// # Errors
/// `PermissionDenied` with the path that is not ours alone, or what the kernel says.
pub fn make(path: &Path, privacy: Privacy) -> io::Result<()> {
    let (mode, defence) = match privacy {
        Privacy::Secret => (0o750, Defence::StateFolder),
        Privacy::Open => (0o755, Defence::RuntimeFolder),
    };
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)?;
    if !stands(defence) {
        return Ok(());
    }
    for above in path.ancestors().skip(1) {
        check_above(above)?;
    }
    check_link(path)?;
    let found = std::fs::metadata(path)?;
    let mine = found.uid() == 0 || found.uid() == rustix::process::geteuid().as_raw();
    if !mine || found.mode() & 0o022 != 0 {
        return Err(refused(path, "it belongs to somebody else, or others may write to it"));
    }
    if privacy == Privacy::Secret && found.mode() & 0o007 != 0 {
        tracing::warn!(event = "folder_closed", path = %path.display(), "others could read it");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(found.mode() & 0o7770))?;
    }
    Ok(())
}

/// Whoever may write to a folder above can put another one in the place of ours; in a sticky one, only its own.
fn check_above(path: &Path) -> io::Result<()> {
    check_link(path)?;
    let found = std::fs::metadata(path)?;
    let open = found.mode() & 0o002 != 0 && found.mode() & 0o1000 == 0;
    if is_strange(found.uid()) || open {
        return Err(refused(path, "who can write there can replace what lies below it"));
    }
    Ok(())
}

fn check_link(path: &Path) -> io::Result<()> {
    let found = std::fs::symlink_metadata(path)?;
    if found.is_symlink() && is_strange(found.uid()) { Err(refused(path, "it is somebody else's symbolic link")) } else { Ok(()) }
}

fn is_strange(uid: u32) -> bool {
    uid != 0 && uid != rustix::process::geteuid().as_raw() && uid != UNMAPPED_UID
}

fn refused(path: &Path, why: &str) -> io::Error {
    let message = format!("{}: {why}; it must be root's or the agent's alone", path.display());
    io::Error::new(io::ErrorKind::PermissionDenied, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_secret_folder_is_made_for_its_owner_and_closed_where_others_could_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("a/state");
        make(&state, Privacy::Secret).unwrap();
        assert_eq!(mode(&state) & 0o027, 0);
        std::fs::set_permissions(&state, Permissions::from_mode(0o755)).unwrap();
        make(&state, Privacy::Secret).unwrap();
        assert_eq!(mode(&state), 0o750);
        let run = folder.path().join("run");
        make(&run, Privacy::Open).unwrap();
        assert_eq!(mode(&run) & 0o022, 0);
    }

    #[test]
    fn a_folder_that_others_may_write_to_or_replace_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (above, inside) = (folder.path().join("above"), folder.path().join("above/state"));
        make(&inside, Privacy::Secret).unwrap();
        std::fs::set_permissions(&inside, Permissions::from_mode(0o770)).unwrap();
        assert_eq!(make(&inside, Privacy::Secret).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        std::fs::set_permissions(&inside, Permissions::from_mode(0o750)).unwrap();
        std::fs::set_permissions(&above, Permissions::from_mode(0o777)).unwrap();
        let error = make(&inside, Privacy::Secret).unwrap_err();
        assert!(error.to_string().starts_with(&format!("{}: ", above.display())), "{error}");
        std::fs::set_permissions(&above, Permissions::from_mode(0o1777)).unwrap();
        make(&inside, Privacy::Secret).unwrap();
    }

    #[test]
    fn the_administrators_own_link_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        make(&real, Privacy::Secret).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        make(&link, Privacy::Secret).unwrap();
    }
}
