//! What is written and not yet durable.
//!
//! Syncing it takes as long as the disk wants, and need not be done where the log is written: a [`SyncJob`] is run on any
//! thread, while the log goes on in the same files. It covers what was written before it was made, whatever else it may
//! happen to cover; its [`UnderWay`] tells the writer how it went. A job that is dropped has failed: nobody knows what is
//! on the disk.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::{Condvar, Mutex};
use treering_fs::{File, FileSystem};

use crate::error::StoreError;

/// What was written in a stretch of time.
pub(crate) struct Unsynced {
    fs: Arc<dyn FileSystem>,
    directory: PathBuf,
    /// Files written.
    files: Vec<(PathBuf, Arc<dyn File>)>,
    /// A file was created, or got its name.
    has_new_names: bool,
}

impl Unsynced {
    pub(crate) fn nothing(fs: Arc<dyn FileSystem>, directory: &Path) -> Unsynced {
        let directory = directory.to_path_buf();
        Unsynced { fs, directory, files: Vec::new(), has_new_names: false }
    }

    pub(crate) fn note_file(&mut self, path: &Path, file: &Arc<dyn File>) {
        if self.files.last().is_none_or(|(last, _)| last != path) {
            self.files.push((path.to_path_buf(), file.clone()));
        }
    }

    pub(crate) fn note_name(&mut self) {
        self.has_new_names = true;
    }

    /// What was written is gone, or was synced otherwise.
    pub(crate) fn forget_files(&mut self) {
        self.files.clear();
    }

    /// After an error nobody may go on with the log before it was opened again.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        for (path, file) in &self.files {
            file.sync_data().map_err(StoreError::sync(path))?;
        }
        if self.has_new_names {
            self.fs.sync_dir(&self.directory).map_err(StoreError::sync(&self.directory))?;
        }
        Ok(())
    }

    /// For another thread.
    pub(crate) fn under_way(self) -> (SyncJob, UnderWay) {
        let outcome = Arc::<Outcome>::default();
        (SyncJob { unsynced: self, outcome: outcome.clone() }, UnderWay { outcome })
    }
}

#[derive(Default)]
struct Outcome {
    synced: Mutex<Option<Result<(), StoreError>>>,
    is_there: Condvar,
}

/// A sync to be done, once.
pub(crate) struct SyncJob {
    unsynced: Unsynced,
    outcome: Arc<Outcome>,
}

impl SyncJob {
    pub(crate) fn run(self) {
        let synced = self.unsynced.sync();
        *self.outcome.synced.lock() = Some(synced);
    }
}

impl Drop for SyncJob {
    /// Also where nobody has run it: the writer must not wait for ever.
    fn drop(&mut self) {
        let given_up = || Err(StoreError::Latched("a sync was given up".into()));
        self.outcome.synced.lock().get_or_insert_with(given_up);
        self.outcome.is_there.notify_one();
    }
}

/// A sync that is somewhere under way.
pub(crate) struct UnderWay {
    outcome: Arc<Outcome>,
}

impl UnderWay {
    pub(crate) fn is_over(&self) -> bool {
        self.outcome.synced.lock().is_some()
    }

    /// Waits for its end.
    pub(crate) fn wait(self) -> Result<(), StoreError> {
        let mut synced = self.outcome.synced.lock();
        loop {
            match synced.take() {
                Some(synced) => return synced,
                None => self.outcome.is_there.wait(&mut synced),
            }
        }
    }
}
