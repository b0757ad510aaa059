//! A store in a local directory: the default, where nothing is needed but a disk.
//!
//! Through the file-system seam and not through the `object_store` crate, for two reasons: a layer file becomes an object by a second name
//! (hard link), so the store costs no second copy; and the crash simulator sees every call. A small object is written under a
//! temporary name, synced, and linked: the link fails when the name is taken, so an object is there whole or not at all, once.
//!
//! After a failed sync of a directory nobody can say which names are durable, so nothing is written until the store is opened again.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use treering_fs::{FileSystem, OpenMode, create_dir_durably, read_file};

use crate::{
    error::{RemoteError, Result},
    store::Store,
};

/// Below the root; no object's name begins with it.
const TEMPORARY: &str = ".tmp";
/// Bytes copied at once where a link is not possible.
const CHUNK: usize = 1 << 20;

/// See the module.
pub struct Directory {
    fs: Arc<dyn FileSystem>,
    root: PathBuf,
    /// Names temporary files: another process may write here too.
    process: String,
    count: AtomicU64,
    /// Why nothing is written any more.
    latched: OnceLock<String>,
}

impl Directory {
    /// Opens a directory, made if need be. `fs`: the file system of this machine, with the files that are uploaded and downloaded on it
    /// too. `nonce`: tells this process from others on it.
    ///
    /// # Errors
    /// `Local`.
    pub fn open(fs: Arc<dyn FileSystem>, root: &Path, nonce: [u8; 16]) -> Result<Directory> {
        let directory = Directory::join(fs, root, nonce)?;
        let (fs, temporary) = (directory.fs.as_ref(), root.join(TEMPORARY));
        // What a crash left. A live process that loses one of these tries again.
        fs.list(&temporary)
            .and_then(|names| {
                names.iter().try_for_each(|name| fs.remove_file(&temporary.join(name)))
            })
            .map_err(|error| RemoteError::local("preparing", root, error))?;
        Ok(directory)
    }

    /// The same for a process that works beside another one, and leaves it to that one to clean up.
    ///
    /// # Errors
    /// `Local`.
    pub fn join(fs: Arc<dyn FileSystem>, root: &Path, nonce: [u8; 16]) -> Result<Directory> {
        let process = nonce.iter().map(|byte| format!("{byte:02x}")).collect();
        create_dir_durably(fs.as_ref(), &root.join(TEMPORARY))
            .map_err(|error| RemoteError::local("preparing", root, error))?;
        let (count, latched) = (AtomicU64::new(0), OnceLock::new());
        Ok(Directory { fs, root: root.to_owned(), process, count, latched })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn check(&self, action: &'static str, name: &str) -> Result<()> {
        match self.latched.get() {
            None => Ok(()),
            Some(cause) => {
                let cause = format!("read-only since {cause}");
                Err(RemoteError::Unavailable { action, name: name.to_owned(), cause })
            }
        }
    }

    /// Makes the name of an object durable.
    fn sync_name(&self, path: &Path) -> Result<()> {
        let directory = path.parent().unwrap_or(&self.root);
        self.fs.sync_dir(directory).map_err(|error| {
            let _ = self.latched.set(format!("syncing {} failed: {error}", directory.display()));
            RemoteError::local("syncing", directory, error)
        })
    }

    /// A synced file under a temporary name.
    fn temporary(&self, fill: impl FnOnce(&Path) -> io::Result<()>) -> Result<PathBuf> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let path = self.root.join(TEMPORARY).join(format!("{}-{number}", self.process));
        match fill(&path) {
            Ok(()) => Ok(path),
            Err(error) => {
                let _ = self.fs.remove_file(&path);
                Err(RemoteError::local("writing", path, error))
            }
        }
    }

    /// Gives a temporary file its name; true when it was free.
    fn name(&self, temporary: &Path, path: &Path) -> Result<bool> {
        let linked = self.fs.hard_link(temporary, path);
        // One that stays is removed when the store is opened again.
        let _ = self.fs.remove_file(temporary);
        let is_new = match linked {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(RemoteError::local("naming", path, error)),
        };
        // Also of a name that was there: whoever made it may not have come so far.
        self.sync_name(path)?;
        Ok(is_new)
    }

    fn make_folder(&self, path: &Path) -> Result<()> {
        let folder = path.parent().unwrap_or(&self.root);
        create_dir_durably(self.fs.as_ref(), folder).map_err(|error| {
            // Once it is there nobody would sync its name again.
            if self.fs.exists(folder).unwrap_or(true) {
                let _ = self.latched.set(format!("creating {} failed: {error}", folder.display()));
            }
            RemoteError::local("creating", folder, error)
        })
    }
}

impl Store for Directory {
    fn describe(&self) -> String {
        format!("file://{}", self.root.display())
    }

    fn put_new(&self, name: &str, bytes: Bytes) -> Result<()> {
        self.check("creating", name)?;
        let path = self.path(name);
        self.make_folder(&path)?;
        let temporary = self.temporary(|path| {
            let file = self.fs.open(path, OpenMode::CreateNew)?;
            file.write_all_at(&bytes, 0)?;
            file.sync_all()
        })?;
        match self.name(&temporary, &path)? {
            true => Ok(()),
            false => Err(RemoteError::Exists { name: name.to_owned() }),
        }
    }

    fn upload(&self, name: &str, fs: &dyn FileSystem, from: &Path) -> Result<()> {
        self.check("creating", name)?;
        let path = self.path(name);
        self.make_folder(&path)?;
        match self.fs.hard_link(from, &path) {
            Ok(()) => return self.sync_name(&path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return self.sync_name(&path);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RemoteError::local("linking", from, error));
            }
            // Another file system, or too many links: a copy does as well.
            Err(error) => tracing::debug!(%error, name, "copied instead of linked"),
        }
        let temporary = self.temporary(|path| copy(fs, from, self.fs.as_ref(), path))?;
        self.name(&temporary, &path).map(drop)
    }

    fn get(&self, name: &str) -> Result<Bytes> {
        let path = self.path(name);
        match read_file(self.fs.as_ref(), &path) {
            Ok(bytes) => Ok(bytes.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(RemoteError::missing(name))
            }
            Err(error) => Err(RemoteError::local("reading", path, error)),
        }
    }

    fn download(&self, name: &str, fs: &dyn FileSystem, to: &Path) -> Result<()> {
        let path = self.path(name);
        match self.fs.hard_link(&path, to) {
            Ok(()) => return Ok(()),
            Err(_) if !self.exists(name)? => return Err(RemoteError::missing(name)),
            Err(error) => tracing::debug!(%error, name, "copied instead of linked"),
        }
        copy(self.fs.as_ref(), &path, fs, to)
            .map_err(|error| RemoteError::local("copying", to, error))
    }

    fn exists(&self, name: &str) -> Result<bool> {
        let path = self.path(name);
        self.fs.exists(&path).map_err(|error| RemoteError::local("looking for", path, error))
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.check("deleting", name)?;
        let path = self.path(name);
        match self.fs.remove_file(&path) {
            // Not synced: an object that comes back after a crash is named by nothing, and found by the next sweep.
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(RemoteError::local("deleting", path, error)),
        }
    }

    fn list(&self, folder: &str) -> Result<Vec<String>> {
        let path = self.path(folder);
        let names = match self.fs.list(&path) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(RemoteError::local("listing", path, error)),
        };
        // A file cannot be listed, a directory can.
        let is_folder = |name: &str| self.fs.list(&path.join(name)).is_ok();
        let names = names.into_iter().filter(|name| name != TEMPORARY);
        Ok(names.map(|name| if is_folder(&name) { format!("{name}/") } else { name }).collect())
    }

    fn settle(&self, folder: &str) -> Result<()> {
        self.check("syncing", folder)?;
        let path = self.path(folder);
        if !self
            .fs
            .exists(&path)
            .map_err(|error| RemoteError::local("looking for", &path, error))?
        {
            // Nothing was shown of it.
            return Ok(());
        }
        // Its own name, and those above it, may be as new as what is in it.
        let within = path.ancestors().take_while(|above| above.starts_with(&self.root));
        within.into_iter().try_for_each(|above| self.sync_name(&above.join("any")))
    }
}

/// A synced copy.
fn copy(
    from_fs: &dyn FileSystem,
    from: &Path,
    to_fs: &dyn FileSystem,
    to: &Path,
) -> io::Result<()> {
    let source = from_fs.open(from, OpenMode::Read)?;
    let copy = to_fs.open(to, OpenMode::CreateNew)?;
    let (length, mut at) = (source.len()?, 0);
    while at < length {
        let mut chunk = vec![0; (length - at).min(CHUNK as u64) as usize];
        source.read_exact_at(&mut chunk, at)?;
        copy.write_all_at(&chunk, at)?;
        at += chunk.len() as u64;
    }
    copy.sync_all()
}

#[cfg(test)]
mod tests;
