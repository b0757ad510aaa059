//! Where an object store is: a URL.

use std::{path::PathBuf, str::FromStr, sync::Arc};

use treering_fs::FileSystem;

use crate::{
    directory::Directory,
    error::{RemoteError, Result},
    store::Store,
};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// `file:///path` or a plain path.
    Directory(PathBuf),
    /// `s3://bucket/prefix`. Endpoint, region and credentials are those of the usual environment (`AWS_ENDPOINT_URL`, `AWS_REGION`,
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, web identity, container and instance roles).
    Bucket { bucket: String, prefix: String },
}

impl FromStr for Location {
    type Err = RemoteError;

    fn from_str(text: &str) -> Result<Location> {
        let bad = |why: &str| RemoteError::Url(format!("object store \"{text}\": {why}"));
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() {
                return Err(bad("a bucket is missing"));
            }
            let prefix = prefix.trim_matches('/').to_owned();
            return Ok(Location::Bucket { bucket: bucket.to_owned(), prefix });
        }
        let path = match text.strip_prefix("file://") {
            Some(path) => path,
            None if text.contains("://") => {
                return Err(bad("use file:///path or s3://bucket/prefix"));
            }
            None => text,
        };
        match path.starts_with('/') {
            true => Ok(Location::Directory(path.into())),
            false => Err(bad("a path begins with /")),
        }
    }
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Location::Directory(path) => write!(f, "file://{}", path.display()),
            Location::Bucket { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Location::Bucket { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

impl Location {
    /// Opens the store. `fs`: of directories. `nonce`: random, of this process.
    ///
    /// # Errors
    /// `Local`; `Url` for settings that no bucket can be reached with.
    pub fn open(&self, fs: Arc<dyn FileSystem>, nonce: [u8; 16]) -> Result<Arc<dyn Store>> {
        match self {
            Location::Directory(path) => Ok(Arc::new(Directory::open(fs, path, nonce)?)),
            Location::Bucket { .. } => self.join(fs, nonce),
        }
    }

    /// Opens the store beside another process, the one that cleans up.
    ///
    /// # Errors
    /// As [`Location::open`].
    pub fn join(&self, fs: Arc<dyn FileSystem>, nonce: [u8; 16]) -> Result<Arc<dyn Store>> {
        match self {
            Location::Directory(path) => Ok(Arc::new(Directory::join(fs, path, nonce)?)),
            #[cfg(feature = "s3")]
            Location::Bucket { bucket, prefix } => {
                Ok(Arc::new(crate::bucket::Bucket::open(bucket, prefix)?))
            }
            #[cfg(not(feature = "s3"))]
            Location::Bucket { .. } => {
                Err(RemoteError::Url(format!("{self}: this build knows no buckets")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let parse = |text: &str| text.parse::<Location>().map(|at| at.to_string()).ok();
        assert_eq!(parse("file:///a/b").as_deref(), Some("file:///a/b"));
        assert_eq!(parse("/a/b").as_deref(), Some("file:///a/b"));
        assert_eq!(parse("s3://bucket").as_deref(), Some("s3://bucket"));
        assert_eq!(parse("s3://bucket/a/b/").as_deref(), Some("s3://bucket/a/b"));
        for bad in ["", "a", "file://a/b", "s3://", "s3:///a", "http://x/y", "gs://x"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
