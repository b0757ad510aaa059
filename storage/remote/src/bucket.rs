//! An S3-compatible bucket, through the `object_store` crate. Everything asynchronous stays in here, on one thread of its own.

use std::{future::Future, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt;
use object_store::{
    ClientOptions, Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    RetryConfig, WriteMultipart, aws::AmazonS3Builder, path::Path as Name,
};
use tokio::runtime::{Builder, Runtime};
use treering_fs::{FileSystem, OpenMode};

use crate::{
    error::{RemoteError, Result},
    store::Store,
};

/// A file larger than this goes up in parts of this size, so many at once: the bound on memory.
const PART_BYTES: u64 = 8 << 20;
const PARTS_AT_ONCE: usize = 4;
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// One request: a part at 1 Mbit/s takes 64 s.
const REQUEST_LIMIT: Duration = Duration::from_secs(90);

/// See the module.
pub struct Bucket {
    /// `None` once dropped.
    runtime: Option<Runtime>,
    store: Arc<dyn ObjectStore>,
    place: String,
    prefix: String,
}

impl Bucket {
    /// A bucket with endpoint, region and credentials from the environment. Nothing is asked of it yet.
    ///
    /// # Errors
    /// `Url` for settings that make no sense.
    pub fn open(bucket: &str, prefix: &str) -> Result<Bucket> {
        let endpoint = std::env::var("AWS_ENDPOINT_URL").or(std::env::var("AWS_ENDPOINT"));
        let plain = endpoint.is_ok_and(|endpoint| endpoint.starts_with("http://"));
        Bucket::with(AmazonS3Builder::from_env(), plain, bucket, prefix)
    }

    /// `plain`: without TLS.
    fn with(settings: AmazonS3Builder, plain: bool, bucket: &str, prefix: &str) -> Result<Bucket> {
        let place = format!("s3://{bucket}/{prefix}");
        let failed = |error: &dyn std::fmt::Display| RemoteError::Url(format!("{place}: {error}"));
        // Chosen once for the process; a second choice changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = ClientOptions::new()
            .with_allow_http(plain)
            .with_connect_timeout(CONNECT_LIMIT)
            .with_timeout(REQUEST_LIMIT);
        // Patience is ours (`retry`): a call that is repeated below us could hide that its first try happened.
        let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        let store = settings
            .with_bucket_name(bucket)
            .with_client_options(client)
            .with_retry(retry)
            .build()
            .map_err(|error| failed(&error))?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("treering-bucket")
            .enable_all()
            .build()
            .map_err(|error| failed(&error))?;
        let (store, prefix) = (Arc::new(store), prefix.to_owned());
        Ok(Bucket { runtime: Some(runtime), store, place: place.clone(), prefix })
    }

    fn path(&self, name: &str) -> Name {
        match self.prefix.is_empty() {
            true => Name::from(name),
            false => Name::from(format!("{}/{name}", self.prefix)),
        }
    }

    /// Runs a request to its end, from any thread.
    fn wait<T: Send + 'static>(
        &self,
        action: &'static str,
        name: &str,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let gone = || unavailable(action, name, &"the store is closed");
        let runtime = self.runtime.as_ref().ok_or_else(gone)?;
        let (done, result) = std::sync::mpsc::sync_channel(1);
        runtime.spawn(async move {
            let _ = done.send(work.await);
        });
        result.recv().map_err(|_| gone())?
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Also from within another runtime.
            runtime.shutdown_background();
        }
    }
}

fn unavailable(action: &'static str, name: &str, cause: &dyn std::fmt::Display) -> RemoteError {
    RemoteError::Unavailable { action, name: name.to_owned(), cause: cause.to_string() }
}

/// What an error of the crate means for us.
fn meaning(
    action: &'static str,
    name: &str,
) -> impl Fn(Error) -> RemoteError + Send + Sync + use<> {
    let name = name.to_owned();
    move |error| match error {
        Error::NotFound { .. } => RemoteError::missing(&name),
        Error::AlreadyExists { .. } | Error::Precondition { .. } => {
            RemoteError::Exists { name: name.clone() }
        }
        other => unavailable(action, &name, &Chain(&other)),
    }
}

/// An error with its causes.
struct Chain<'a>(&'a (dyn std::error::Error + 'static));

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut said = self.0.to_string();
        let mut next = self.0.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            if !said.contains(&text) {
                write!(f, ": {text}")?;
            }
            said = text;
            next = cause.source();
        }
        Ok(())
    }
}

impl Store for Bucket {
    fn describe(&self) -> String {
        self.place.clone()
    }

    fn put_new(&self, name: &str, bytes: Bytes) -> Result<()> {
        let (store, path) = (Arc::clone(&self.store), self.path(name));
        let failed = meaning("creating", name);
        self.wait("creating", name, async move {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            store.put_opts(&path, bytes.into(), options).await.map(drop).map_err(failed)
        })
    }

    fn upload(&self, name: &str, fs: &dyn FileSystem, from: &Path) -> Result<()> {
        let local = |error| RemoteError::local("reading", from, error);
        let file = fs.open(from, OpenMode::Read).map_err(local)?;
        let size = file.len().map_err(local)?;
        let read = move |at: u64| {
            let mut part = vec![0; (size - at).min(PART_BYTES) as usize];
            file.read_exact_at(&mut part, at).map(|()| Bytes::from(part))
        };
        let (store, path, from) = (Arc::clone(&self.store), self.path(name), from.to_owned());
        let failed = meaning("uploading", name);
        self.wait("uploading", name, async move {
            let local = |error| RemoteError::local("reading", &from, error);
            if size <= PART_BYTES {
                let payload = PutPayload::from_bytes(read(0).map_err(local)?);
                return store.put(&path, payload).await.map(drop).map_err(failed);
            }
            let upload = store.put_multipart(&path).await.map_err(&failed)?;
            let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES as usize);
            let mut at = 0;
            let sent = loop {
                if at >= size {
                    break Ok(());
                }
                if let Err(error) = upload.wait_for_capacity(PARTS_AT_ONCE).await {
                    break Err(failed(error));
                }
                match read(at) {
                    Ok(part) => {
                        at += part.len() as u64;
                        upload.put(part);
                    }
                    Err(error) => break Err(local(error)),
                }
            };
            match sent {
                Ok(()) => upload.finish().await.map(drop).map_err(failed),
                Err(error) => {
                    let _ = upload.abort().await;
                    Err(error)
                }
            }
        })
    }

    fn get(&self, name: &str) -> Result<Bytes> {
        let (store, path) = (Arc::clone(&self.store), self.path(name));
        let failed = meaning("reading", name);
        self.wait("reading", name, async move {
            let found = store.get(&path).await.map_err(&failed)?;
            found.bytes().await.map_err(failed)
        })
    }

    fn download(&self, name: &str, fs: &dyn FileSystem, to: &Path) -> Result<()> {
        let failed_here = |error| RemoteError::local("writing", to, error);
        let file = fs.open(to, OpenMode::CreateNew).map_err(failed_here)?;
        let (store, path, to) = (Arc::clone(&self.store), self.path(name), to.to_owned());
        let failed = meaning("reading", name);
        self.wait("reading", name, async move {
            let mut parts = store.get(&path).await.map_err(&failed)?.into_stream();
            let mut at = 0;
            while let Some(part) = parts.next().await {
                let part = part.map_err(&failed)?;
                file.write_all_at(&part, at)
                    .map_err(|error| RemoteError::local("writing", &to, error))?;
                at += part.len() as u64;
            }
            Ok(())
        })
    }

    fn exists(&self, name: &str) -> Result<bool> {
        let (store, path) = (Arc::clone(&self.store), self.path(name));
        let failed = meaning("looking for", name);
        self.wait("looking for", name, async move {
            match store.head(&path).await {
                Ok(_) => Ok(true),
                Err(Error::NotFound { .. }) => Ok(false),
                Err(error) => Err(failed(error)),
            }
        })
    }

    fn delete(&self, name: &str) -> Result<()> {
        let (store, path) = (Arc::clone(&self.store), self.path(name));
        let failed = meaning("deleting", name);
        self.wait("deleting", name, async move {
            match store.delete(&path).await {
                Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(failed(error)),
            }
        })
    }

    fn list(&self, folder: &str) -> Result<Vec<String>> {
        let (store, path) = (Arc::clone(&self.store), self.path(folder));
        let failed = meaning("listing", folder);
        self.wait("listing", folder, async move {
            let found = store.list_with_delimiter(Some(&path)).await.map_err(failed)?;
            let last = |name: &Name| name.filename().map(str::to_owned);
            let folders = found.common_prefixes.iter().filter_map(last);
            let objects = found.objects.iter().filter_map(|object| last(&object.location));
            Ok(folders.map(|name| format!("{name}/")).chain(objects).collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// TLS is there, and a bucket that is not is one that may come.
    #[test]
    fn a_bucket_that_cannot_be_reached_is_unavailable() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        for (scheme, plain) in [("http", true), ("https", false)] {
            let settings = AmazonS3Builder::new()
                .with_endpoint(format!("{scheme}://127.0.0.1:{port}"))
                .with_access_key_id("a")
                .with_secret_access_key("b");
            let bucket = Bucket::with(settings, plain, "bucket", "prefix").unwrap();
            for failed in [
                bucket.put_new("x", Bytes::new()).err(),
                bucket.get("x").err(),
                bucket.exists("x").err(),
                bucket.list("").err(),
                bucket.delete("x").err(),
            ] {
                assert!(matches!(failed, Some(RemoteError::Unavailable { .. })), "{failed:?}");
            }
        }
    }
}
