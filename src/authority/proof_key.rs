//! The key of the proofs: a file beside the balances, and never in a copy of them. Who has it can claim any credit.

use std::io::{Error, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::domain::id::Digest;
use crate::domain::proof::ProofKey;

/// Where it is.
#[must_use]
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("proof.key")
}

/// Reads the key; the first time one is made. One that cannot be read is never replaced: what it has proved would be worth nothing.
///
/// # Errors
/// It cannot be read, or not be written.
pub fn load(state_dir: &Path) -> Result<ProofKey, Error> {
    let path = path(state_dir);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let bytes: Digest = text.trim().parse().map_err(|_| Error::new(ErrorKind::InvalidData, "not 64 hexadecimal digits"))?;
            Ok(ProofKey::new(bytes.0))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => make(state_dir, &path),
        Err(error) => Err(error),
    }
}

fn make(state_dir: &Path, path: &Path) -> Result<ProofKey, Error> {
    let mut bytes = [0_u8; 32];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if filled != bytes.len() {
        return Err(Error::other("the kernel gave no random number"));
    }
    // Whole before it has its name: a part of a key would keep the authority from starting.
    let part = path.with_extension("part");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    writeln!(file, "{}", Digest(bytes))?;
    file.sync_all()?;
    std::fs::rename(&part, path)?;
    std::fs::File::open(state_dir)?.sync_all()?;
    Ok(ProofKey::new(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_for_its_owner_alone_and_one_that_is_damaged_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let first = load(dir.path()).unwrap();
        assert_eq!(load(dir.path()).unwrap(), first);
        assert_eq!(std::fs::metadata(path(dir.path())).unwrap().permissions().mode() & 0o777, 0o600);
        assert_ne!(load(tempfile::tempdir().unwrap().path()).unwrap(), first);
        std::fs::write(path(dir.path()), "zz\n").unwrap();
        assert_eq!(load(dir.path()).unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(std::fs::read_to_string(path(dir.path())).unwrap(), "zz\n");
    }
}
