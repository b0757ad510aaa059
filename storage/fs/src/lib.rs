//! The file-system seam: every byte that the engine and the safekeeper keep on disk goes through the two
//! traits here, so that tests can stop the world at any call.
//!
//! - [`RealFs`]: the operating system.
//! - [`CrashFs`]: a live and a durable image in memory; after a crash only what was synced is sure to be there.
//! - [`FaultyFs`]: wraps another file system and refuses chosen calls (disk full, failed fsync).
//! - [`DryFs`]: reads another file system and changes nothing.
//!
//! Durability contract, the same for all three: bytes written to a file are durable after its
//! [`File::sync_data`]; a name that was created, renamed or removed is durable after
//! [`FileSystem::sync_dir`] of the directory that holds it. Nothing else is promised.

#![forbid(unsafe_code)]

mod crash;
mod dry;
mod faulty;
mod real;
mod sparse;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use crash::CrashFs;
pub use dry::DryFs;
pub use faulty::{Call, FaultyFs};
pub use real::RealFs;

/// How a file is opened. Every mode but `Read` allows writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// It must exist; writes are refused.
    Read,
    /// It must exist.
    ReadWrite,
    /// It must not exist (`AlreadyExists` otherwise).
    CreateNew,
    /// Opened as it is, or created empty.
    CreateOrOpen,
}

/// Names and directories. Paths are absolute, or relative to the process's directory for [`RealFs`].
pub trait FileSystem: Send + Sync + 'static {
    /// Opens a file. A created name is durable only after [`FileSystem::sync_dir`] of its directory.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>>;
    /// Renames a file or directory, replacing a file of the new name atomically.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name, which must be new (`AlreadyExists` otherwise): the way to create a name with all its bytes, or not
    /// at all. Durable after [`FileSystem::sync_dir`] of the new name's directory. `CrossesDevices` between file systems.
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file; open handles keep working.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Creates a directory and its missing parents; no error when it is there. None is durable before each
    /// new one's parent was synced: see [`create_dir_durably`].
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory with everything below it.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in this directory durable (not those below it, not the files' bytes).
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Names of the files and directories in a directory, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// True for an existing file or directory.
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// Bytes that an unprivileged writer may still use where `path` (which exists) lies. Simulated disks are endless.
    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }
    /// Bytes that the file system of `path` (which exists) has, used and free. Simulated disks are endless.
    fn total_bytes(&self, _path: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }
    /// Length of a file in bytes.
    fn file_len(&self, path: &Path) -> io::Result<u64>;
}

/// An open file. All calls may run from any thread; overlapping writes are the caller's affair.
pub trait File: Send + Sync {
    /// Fills `buf` from `offset`; `UnexpectedEof` when the file ends first.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `buf`; a gap behind the old end reads as zeros. After an error any part may be there.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts the file, or extends it with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// True for a file of no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Makes the bytes and the length durable. After an error nothing is known about unsynced bytes, and a
    /// later success does not cover them: the writer has to stop and start from what is on disk.
    fn sync_data(&self) -> io::Result<()>;
    /// As [`File::sync_data`], with all metadata.
    fn sync_all(&self) -> io::Result<()>;
}

/// Replaces a file so that a crash leaves the old or the new content, never a mix; durable on return.
///
/// Writes `<name>.tmp` beside it, syncs, renames, syncs the directory. One writer per path at a time; a
/// left-over `.tmp` of a crash is overwritten by the next call and must be ignored by readers of the directory.
pub fn write_atomically(fs: &dyn FileSystem, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let file = fs.open(&temporary, OpenMode::CreateOrOpen)?;
    file.set_len(0)?;
    file.write_all_at(bytes, 0)?;
    file.sync_all()?;
    fs.rename(&temporary, path)?;
    fs.sync_dir(parent_of(path))
}

/// Reads a whole file.
pub fn read_file(fs: &dyn FileSystem, path: &Path) -> io::Result<Vec<u8>> {
    let file = fs.open(path, OpenMode::Read)?;
    let len = usize::try_from(file.len()?).map_err(io::Error::other)?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Creates a directory and its missing parents, each durable on return.
pub fn create_dir_durably(fs: &dyn FileSystem, path: &Path) -> io::Result<()> {
    let mut missing: Vec<PathBuf> = Vec::new();
    let mut at = path;
    while !at.as_os_str().is_empty() && !fs.exists(at)? {
        missing.push(at.to_path_buf());
        at = parent_of(at);
    }
    for directory in missing.iter().rev() {
        fs.create_dir_all(directory)?;
        fs.sync_dir(parent_of(directory))?;
    }
    Ok(())
}

/// The directory that holds a name: `.` for a bare relative name.
fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

#[cfg(test)]
mod tests;
