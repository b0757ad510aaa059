//! Where layers are kept for good: the same options for `up` and for a pageserver that runs alone.

use std::path::{Path, PathBuf, absolute};

use anyhow::Context;
use bytesize::ByteSize;
use clap::Args;
use treering_remote::Location;

#[derive(Debug, Clone, Args)]
pub struct StoreArgs {
    /// The object store: `file:///directory`, `s3://bucket/prefix` (endpoint, region and credentials from AWS_ENDPOINT_URL,
    /// AWS_REGION, AWS_ACCESS_KEY_ID and so on), or `none` [default: `objects` in the data directory].
    #[arg(long, value_name = "URL", env = "TREERING_OBJECT_STORE")]
    object_store: Option<String>,
    /// Most layer files that stay on the local disk once the object store has them [default: all].
    #[arg(long, value_name = "SIZE", env = "TREERING_LAYER_CACHE_BYTES")]
    layer_cache_bytes: Option<ByteSize>,
}

impl StoreArgs {
    /// The store; `None` for `none`. `beside`: where the default one lies.
    ///
    /// # Errors
    /// A URL of another kind.
    pub fn location(&self, beside: &Path) -> anyhow::Result<Option<Location>> {
        match self.object_store.as_deref() {
            Some("none") => Ok(None),
            Some(url) => Ok(Some(url.parse()?)),
            None => {
                let path: PathBuf = absolute(beside.join("objects")).context("data directory")?;
                Ok(Some(Location::Directory(path)))
            }
        }
    }

    pub fn layer_cache_bytes(&self) -> Option<u64> {
        self.layer_cache_bytes.map(|size| size.as_u64())
    }

    /// As a command line that is parsed to the same, whatever lies beside.
    ///
    /// # Errors
    /// As [`StoreArgs::location`].
    pub fn arguments(&self, beside: &Path) -> anyhow::Result<Vec<(&'static str, String)>> {
        let location = self.location(beside)?;
        let url = location.map_or_else(|| "none".to_owned(), |location| location.to_string());
        let mut arguments = vec![("--object-store", url)];
        let bytes = self.layer_cache_bytes();
        arguments.extend(bytes.map(|bytes| ("--layer-cache-bytes", format!("{bytes}B"))));
        Ok(arguments)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        store: StoreArgs,
    }

    #[test]
    fn what_up_passes_on_means_the_same() {
        for (given, url) in [
            (vec!["x"], "file:///data/objects"),
            (vec!["x", "--object-store=none"], "none"),
            (vec!["x", "--object-store=/a"], "file:///a"),
            (vec!["x", "--object-store=s3://b/c", "--layer-cache-bytes=2MiB"], "s3://b/c"),
        ] {
            let line = Line::parse_from(&given);
            let passed = line.store.arguments(Path::new("/data")).unwrap();
            assert_eq!(passed[0].1, url);
            let words = passed.into_iter().flat_map(|(o, v)| [o.to_owned(), v]);
            let again = Line::parse_from(["x".to_owned()].into_iter().chain(words));
            let here = again.store.location(Path::new("/elsewhere")).unwrap();
            assert_eq!(here, line.store.location(Path::new("/data")).unwrap());
            assert_eq!(again.store.layer_cache_bytes(), line.store.layer_cache_bytes());
        }
        let wrong = Line::parse_from(["x", "--object-store=ftp://x"]);
        assert!(wrong.store.location(Path::new("/data")).is_err());
    }
}
