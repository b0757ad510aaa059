//! Segment files that have their room before the log comes to them.
//!
//! A write into a hole has to find memory and blocks, and the sync behind it waits for the file system's journal too: several
//! times what a write over blocks that are there takes. So a log that grows gets the file of the next segment
//! ahead: one that it has trimmed, or one that was filled with zeros beside it. The first segment of a log stays
//! sparse: most branches never fill it.
//!
//! Spare files lie beside the segments as `spare.<number>`. No promise rests on them: those that a process leaves behind are
//! removed when the timeline is opened.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use treering_fs::{File, FileSystem, OpenMode};
use treering_types::WAL_SEGMENT_SIZE;

/// Trimmed segments kept for a log: trimming comes in steps of several.
pub(crate) const KEPT_MAX: usize = 8;
const PREFIX: &str = "spare.";
/// Bytes written at once while a file is filled.
const FILL_BYTES: usize = 1024 * 1024;

/// Gives each spare file of this process a name of its own.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// What a spare file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Content {
    Zeros,
    /// The log of an earlier segment.
    OldLog,
}

/// One timeline's.
pub(crate) struct Spares {
    fs: Arc<dyn FileSystem>,
    directory: PathBuf,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    ready: Vec<(PathBuf, Content)>,
    /// The file that a [`Filler`] is at work on. One that finds another here was told to stop.
    filling: Option<PathBuf>,
}

impl Spares {
    pub(crate) fn new(fs: Arc<dyn FileSystem>, directory: PathBuf) -> Spares {
        Spares { fs, directory, state: Arc::default() }
    }

    fn new_path(&self) -> PathBuf {
        self.directory.join(format!("{PREFIX}{}", NUMBER.fetch_add(1, Ordering::Relaxed)))
    }

    /// What all of them take.
    pub(crate) fn bytes(&self) -> u64 {
        let state = self.state.lock();
        (state.ready.len() + usize::from(state.filling.is_some())) as u64 * WAL_SEGMENT_SIZE
    }

    /// Gives one the name `path`. Durable, like a name that is created, once the directory is synced.
    pub(crate) fn take(&self, path: &Path) -> io::Result<Option<Content>> {
        loop {
            let Some((spare, content)) = self.state.lock().ready.pop() else { return Ok(None) };
            match self.fs.rename(&spare, path) {
                Ok(()) => return Ok(Some(content)),
                // Whoever tidies up by hand may have removed it: nothing rests on it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes a spare file of a segment's, if there are not enough yet and it can be done. Otherwise false, and nothing has
    /// happened.
    pub(crate) fn keep(&self, segment: &Path) -> bool {
        let mut state = self.state.lock();
        let spare = self.new_path();
        let is_kept = state.ready.len() < KEPT_MAX && self.fs.rename(segment, &spare).is_ok();
        if is_kept {
            state.ready.push((spare, Content::OldLog));
        }
        is_kept
    }

    /// Begins a file of zeros if there is none to take, and none coming.
    pub(crate) fn filler(&self) -> io::Result<Option<Filler>> {
        let mut state = self.state.lock();
        if !state.ready.is_empty() || state.filling.is_some() {
            return Ok(None);
        }
        let path = self.new_path();
        // Made here and not where it is filled: whoever removes the directory waits for the writer only.
        let file = self.fs.open(&path, OpenMode::CreateNew)?;
        state.filling = Some(path.clone());
        let (fs, state) = (self.fs.clone(), self.state.clone());
        Ok(Some(Filler { fs, path, file, state }))
    }

    /// Removes all but `left` of those that are ready.
    pub(crate) fn shrink(&self, left: usize) -> io::Result<()> {
        let mut state = self.state.lock();
        let left = state.ready.len().min(left);
        let gone = state.ready.split_off(left);
        gone.into_iter().try_for_each(|(path, _)| remove(&*self.fs, &path))
    }

    /// Removes all, those too that another process left, and those that are being made.
    pub(crate) fn remove(&self) -> io::Result<()> {
        *self.state.lock() = State::default();
        let mut problem = None;
        for name in self.fs.list(&self.directory)? {
            if name.starts_with(PREFIX) {
                let removed = remove(&*self.fs, &self.directory.join(name));
                problem = problem.or(removed.err());
            }
        }
        problem.map_or(Ok(()), Err)
    }
}

/// A file that is gone already is as good as removed: its filler may have been faster.
fn remove(fs: &dyn FileSystem, path: &Path) -> io::Result<()> {
    match fs.remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Fills a file with zeros, on whatever thread has the time. Dropped before it is done, it leaves nothing.
pub(crate) struct Filler {
    fs: Arc<dyn FileSystem>,
    path: PathBuf,
    file: Arc<dyn File>,
    state: Arc<Mutex<State>>,
}

impl Filler {
    /// On return the file is there to be taken, unless it is not wanted any more.
    pub(crate) fn run(self) -> io::Result<()> {
        let zeros = vec![0; FILL_BYTES];
        for offset in (0..WAL_SEGMENT_SIZE).step_by(FILL_BYTES) {
            if !self.is_wanted() {
                return Ok(());
            }
            self.file.write_all_at(&zeros, offset)?;
        }
        // Not for a promise: the log's first sync would have to do it.
        self.file.sync_all()?;
        let mut state = self.state.lock();
        if state.filling.take_if(|path| *path == self.path).is_some() {
            state.ready.push((self.path.clone(), Content::Zeros));
        }
        Ok(())
    }

    fn is_wanted(&self) -> bool {
        self.state.lock().filling.as_ref() == Some(&self.path)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if state.filling.take_if(|path| *path == self.path).is_some() {
            // What stays is removed when the timeline is next opened.
            let _ = self.fs.remove_file(&self.path);
        }
    }
}
