//! A file system that refuses chosen calls of another one.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use crate::{File, FileSystem, OpenMode};

/// A call that a rule may refuse. Reads and look-ups are never refused but by [`Call::Read`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    Open,
    Read,
    /// The number of bytes about to be written.
    Write(usize),
    SetLen(u64),
    Sync,
    Rename,
    Link,
    Remove,
    CreateDir,
    SyncDir,
}

type Rule = Box<dyn FnMut(Call, &Path) -> Option<io::Error> + Send>;
type SharedRule = Arc<Mutex<Option<Rule>>>;

/// Wraps a file system; a rule decides which calls fail, and with what. Clones share the rule.
pub struct FaultyFs<F> {
    inner: Arc<F>,
    rule: SharedRule,
    /// Most that the file system says to have left.
    free_max: Arc<AtomicU64>,
}

impl<F> Clone for FaultyFs<F> {
    fn clone(&self) -> Self {
        let free_max = self.free_max.clone();
        FaultyFs { inner: self.inner.clone(), rule: self.rule.clone(), free_max }
    }
}

impl<F: FileSystem> FaultyFs<F> {
    pub fn new(inner: F) -> Self {
        let free_max = Arc::new(AtomicU64::new(u64::MAX));
        FaultyFs { inner: Arc::new(inner), rule: Arc::default(), free_max }
    }

    /// From now on the file system says to have no more than this left. Nothing is refused for that.
    pub fn limit_free_bytes(&self, bytes: u64) {
        self.free_max.store(bytes, Ordering::Relaxed);
    }

    /// From now on a call for which `rule` gives an error fails with it and has no effect.
    pub fn set_rule(&self, rule: impl FnMut(Call, &Path) -> Option<io::Error> + Send + 'static) {
        *self.rule.lock() = Some(Box::new(rule));
    }

    /// From now on nothing is refused.
    pub fn clear(&self) {
        *self.rule.lock() = None;
    }

    /// Every write, extension and creation fails with "no space left on device" until [`FaultyFs::clear`].
    pub fn fill_disk(&self) {
        self.set_rule(|call, _| match call {
            Call::Write(_) | Call::CreateDir => Some(io::Error::from_raw_os_error(libc::ENOSPC)),
            Call::SetLen(len) if len > 0 => Some(io::Error::from_raw_os_error(libc::ENOSPC)),
            _ => None,
        });
    }

    fn check(&self, call: Call, path: &Path) -> io::Result<()> {
        check(&self.rule, call, path)
    }
}

fn check(rule: &SharedRule, call: Call, path: &Path) -> io::Result<()> {
    match rule.lock().as_mut().and_then(|rule| rule(call, path)) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

impl<F: FileSystem> FileSystem for FaultyFs<F> {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        self.check(Call::Open, path)?;
        let inner = self.inner.open(path, mode)?;
        Ok(Arc::new(FaultyFile { inner, path: path.to_path_buf(), rule: self.rule.clone() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check(Call::Rename, to)?;
        self.inner.rename(from, to)
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check(Call::Link, to)?;
        self.inner.hard_link(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.check(Call::Remove, path)?;
        self.inner.remove_file(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.check(Call::CreateDir, path)?;
        self.inner.create_dir_all(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.check(Call::Remove, path)?;
        self.inner.remove_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.check(Call::SyncDir, path)?;
        self.inner.sync_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.inner.list(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.inner.exists(path)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let max = self.free_max.load(Ordering::Relaxed);
        Ok(self.inner.free_bytes(path)?.min(max))
    }

    fn total_bytes(&self, path: &Path) -> io::Result<u64> {
        self.inner.total_bytes(path)
    }

    fn file_len(&self, path: &Path) -> io::Result<u64> {
        self.inner.file_len(path)
    }
}

struct FaultyFile {
    inner: Arc<dyn File>,
    path: PathBuf,
    rule: SharedRule,
}

impl File for FaultyFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        check(&self.rule, Call::Read, &self.path)?;
        self.inner.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        check(&self.rule, Call::Write(buf.len()), &self.path)?;
        self.inner.write_all_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        check(&self.rule, Call::SetLen(len), &self.path)?;
        self.inner.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn sync_data(&self) -> io::Result<()> {
        check(&self.rule, Call::Sync, &self.path)?;
        self.inner.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        check(&self.rule, Call::Sync, &self.path)?;
        self.inner.sync_all()
    }
}
