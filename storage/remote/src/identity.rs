//! Who a pageserver's directory is, across its lives: `identity`, a text file beside the tenants.
//!
//! One line `treering pageserver 1`, one line with the directory's own number, then one for each life that may have claimed something: random
//! numbers in hexadecimal. A life is written down before its first claim; earlier ones are forgotten once every tenant is claimed by
//! this one. So a claim by a life that is not in the file was made by somebody else, even if that is a copy of this directory.

use std::{io, path::Path};

use treering_fs::{FileSystem, read_file, write_atomically};

use crate::{
    error::{RemoteError, Result},
    generation::Claimant,
};

const FILE: &str = "identity";
const HEAD: &str = "treering pageserver 1";

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    holder: [u8; 16],
    /// Oldest first; the last is this one.
    lives: Vec<[u8; 16]>,
}

impl Identity {
    /// Begins a life of the directory; durable on return. `fresh`: random, never used before; for the life, and for the directory if it is new.
    ///
    /// # Errors
    /// `Local`; `Corrupt` for a file that is not ours.
    pub fn begin(
        fs: &dyn FileSystem,
        directory: &Path,
        fresh: impl Fn() -> [u8; 16],
    ) -> Result<Identity> {
        let path = directory.join(FILE);
        let mut identity = match read_file(fs, &path) {
            Ok(bytes) => parse(&bytes).ok_or_else(|| {
                RemoteError::corrupt(&path.display().to_string(), "is no identity")
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Identity { holder: fresh(), lives: Vec::new() }
            }
            Err(error) => return Err(RemoteError::local("reading", path, error)),
        };
        identity.lives.push(fresh());
        identity.save(fs, directory)?;
        Ok(identity)
    }

    /// Forgets earlier lives: every tenant of the directory is claimed by this one.
    ///
    /// # Errors
    /// `Local`; then they are remembered, which does no harm.
    pub fn forget_earlier(&mut self, fs: &dyn FileSystem, directory: &Path) -> Result<()> {
        self.lives.drain(..self.lives.len().saturating_sub(1));
        self.save(fs, directory)
    }

    pub fn claimant(&self) -> Claimant {
        let nonce = self.lives.last().copied().unwrap_or_default();
        Claimant { holder: self.holder, nonce }
    }

    /// True for this life and those before it that are not forgotten.
    pub fn knows(&self, claimant: &Claimant) -> bool {
        claimant.holder == self.holder && self.lives.contains(&claimant.nonce)
    }

    fn save(&self, fs: &dyn FileSystem, directory: &Path) -> Result<()> {
        let numbers = std::iter::once(&self.holder).chain(&self.lives);
        let lines = numbers.map(|n| format!("{:032x}\n", u128::from_be_bytes(*n)));
        let text = format!("{HEAD}\n{}", lines.collect::<String>());
        let path = directory.join(FILE);
        write_atomically(fs, &path, text.as_bytes())
            .map_err(|error| RemoteError::local("writing", path, error))
    }
}

fn parse(bytes: &[u8]) -> Option<Identity> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut lines = text.lines();
    let head = lines.next()?;
    let number = |line: &str| u128::from_str_radix(line, 16).ok().map(u128::to_be_bytes);
    let numbers: Option<Vec<_>> = lines.map(number).collect();
    let (holder, lives) = numbers?.split_first().map(|(first, rest)| (*first, rest.to_vec()))?;
    (head == HEAD).then_some(Identity { holder, lives })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use treering_fs::CrashFs;

    use super::*;

    #[test]
    fn lives_are_remembered_until_they_are_forgotten() {
        let (fs, root) = (CrashFs::new(), Path::new("/"));
        let next = Cell::new(0);
        let fresh = || {
            next.set(next.get() + 1);
            [next.get(); 16]
        };
        let first = Identity::begin(&fs, root, fresh).unwrap();
        let second = Identity::begin(&fs, root, fresh).unwrap();
        assert_eq!(first.claimant().holder, second.claimant().holder);
        assert!(second.knows(&first.claimant()) && !first.knows(&second.claimant()));
        // On disk before it is used.
        let mut third = Identity::begin(&fs.crash(0), root, fresh).unwrap();
        assert!(third.knows(&second.claimant()));
        third.forget_earlier(&fs, root).unwrap();
        let fourth = Identity::begin(&fs, root, fresh).unwrap();
        assert!(fourth.knows(&third.claimant()) && !fourth.knows(&second.claimant()));
        fs.open(&root.join(FILE), treering_fs::OpenMode::ReadWrite)
            .unwrap()
            .write_all_at(b"x", 0)
            .unwrap();
        assert!(matches!(Identity::begin(&fs, root, fresh), Err(RemoteError::Corrupt { .. })));
    }
}
