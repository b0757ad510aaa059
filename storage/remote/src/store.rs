//! The seam: what Treering asks of an object store, and nothing more.
//!
//! Assumed of every store: an object that was put can be read and listed at once (*read-after-write*, as S3 since 2020, every
//! S3-compatible server worth its name, and any local file system); a name is created by at most one writer. Not assumed: that a
//! call which failed did not happen, or will not happen later; that names come in order; any clock.
//!
//! Calls block: the engine is synchronous, and so the simulator can stop the world at each of them. What is asynchronous about a bucket
//! stays inside [`Bucket`](crate::Bucket).

use std::path::Path;

use bytes::Bytes;
use treering_fs::FileSystem;

use crate::error::Result;

/// See the module. Names are relative, with `/` between their parts.
pub trait Store: Send + Sync + 'static {
    /// For people: a URL without secrets.
    fn describe(&self) -> String;

    /// Creates a small object, durable on return.
    ///
    /// # Errors
    /// `Exists` when the name is taken, perhaps by an earlier call of ours that seemed to have failed. After `Unavailable` it may exist, now
    /// or later.
    fn put_new(&self, name: &str, bytes: Bytes) -> Result<()>;

    /// Creates an object from a file that is durable and does not change any more; durable on return. The name belongs to this content
    /// alone, so doing it twice is harmless.
    ///
    /// # Errors
    /// `Local` when the file cannot be read (NotFound: it is gone), `Unavailable`.
    fn upload(&self, name: &str, fs: &dyn FileSystem, from: &Path) -> Result<()>;

    /// # Errors
    /// `Missing`, `Unavailable`.
    fn get(&self, name: &str) -> Result<Bytes>;

    /// Makes a new file of an object's bytes, or of some of them after an error. The caller checks and syncs it.
    ///
    /// # Errors
    /// `Missing`, `Unavailable`, `Local`.
    fn download(&self, name: &str, fs: &dyn FileSystem, to: &Path) -> Result<()>;

    /// # Errors
    /// `Unavailable`.
    fn exists(&self, name: &str) -> Result<bool>;

    /// Removes an object; one that is not there is fine.
    ///
    /// # Errors
    /// `Unavailable`.
    fn delete(&self, name: &str) -> Result<()>;

    /// What lies directly below a folder (its name ends with `/`; empty for the top), without the folder's name: objects, and folders
    /// with a `/` behind. In no order. A folder that does not exist is empty.
    ///
    /// # Errors
    /// `Unavailable`.
    fn list(&self, folder: &str) -> Result<Vec<String>>;
    /// On return everything that a listing of this folder has shown is durable, whoever made it. Only a directory has something to do
    /// for that: it shows a name a moment before the name is synced.
    ///
    /// # Errors
    /// `Local`.
    fn settle(&self, _folder: &str) -> Result<()> {
        Ok(())
    }
}
