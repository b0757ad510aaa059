//! Layers are checked before they leave the disk: what was damaged here must not become the truth.

use std::path::Path;

use sha2::{Digest, Sha256};
use treering_fs::{FileSystem, OpenMode};

use crate::{
    error::{RemoteError, Result},
    snapshot::UNDIGESTED,
};

/// Bytes read at once.
const CHUNK: u64 = 1 << 20;

/// Compares a local layer file with what its manifest says.
///
/// # Errors
/// `Corrupt`, `Local`.
pub fn digest(fs: &dyn FileSystem, path: &Path, size: u64, expected: &[u8; 32]) -> Result<()> {
    let failed = |error| RemoteError::local("reading", path, error);
    let file = fs.open(path, OpenMode::Read).map_err(failed)?;
    let corrupt = |what: &str| RemoteError::corrupt(&path.display().to_string(), what);
    if file.len().map_err(failed)? != size {
        return Err(corrupt("is not as long as its manifest says"));
    }
    let end = size.saturating_sub(UNDIGESTED);
    let mut hasher = Sha256::new();
    let mut at = 0;
    let mut chunk = vec![0; end.min(CHUNK) as usize];
    while at < end {
        chunk.truncate((end - at).min(CHUNK) as usize);
        file.read_exact_at(&mut chunk, at).map_err(failed)?;
        hasher.update(&chunk);
        at += chunk.len() as u64;
    }
    let found: [u8; 32] = hasher.finalize().into();
    match found == *expected {
        true => Ok(()),
        false => Err(corrupt("its digest is not what its manifest says")),
    }
}
