//! Reading and writing manifest files: magic, version, length, payload, crc32 over all of it.

use std::path::Path;

use treering_fs::{FileSystem, OpenMode, read_file};

use super::MANIFEST_FILE;
use crate::{
    binary::{Malformed, Put, Reader},
    error::{EngineError, Result},
    latch::Latch,
};

/// A kind of manifest.
pub(crate) trait Manifest: Sized {
    /// First bytes of the file.
    const MAGIC: [u8; 8];
    /// Format version that this version writes, and the newest it reads.
    const VERSION: u32;
    fn encode(&self) -> Vec<u8>;
    /// Reads a payload of format `version`, which is at most [`Manifest::VERSION`].
    fn decode(reader: &mut Reader<'_>, version: u32) -> Result<Self, Malformed>;
}

/// Loads the manifest of a directory; `None` when it has none.
///
/// # Errors
/// Corrupt, NewerFormat, Io.
pub(crate) fn load<M: Manifest>(fs: &dyn FileSystem, directory: &Path) -> Result<Option<M>> {
    let path = directory.join(MANIFEST_FILE);
    match read_file(fs, &path) {
        Ok(bytes) => decode_file(&path, &bytes).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(EngineError::io("reading", path, error)),
    }
}

/// Why a manifest was not replaced.
#[derive(Debug)]
pub(crate) enum SaveFailure {
    /// The old one is there for certain: a later try may succeed.
    Retry(EngineError),
    /// The old or the new one is there.
    Latch(EngineError),
}

impl SaveFailure {
    /// Closes the latch if nobody can say what is on disk.
    pub fn latch(self, latch: &Latch) -> EngineError {
        match self {
            SaveFailure::Retry(error) => error,
            SaveFailure::Latch(error) => latch.close(error),
        }
    }
}

/// Replaces the manifest of a directory; durable on return. `<name>.tmp` → sync → rename → sync of the directory.
pub(crate) fn save<M: Manifest>(
    fs: &dyn FileSystem,
    directory: &Path,
    manifest: &M,
) -> Result<(), SaveFailure> {
    let path = directory.join(MANIFEST_FILE);
    let temporary = directory.join(format!("{MANIFEST_FILE}.tmp"));
    let failed = |error| EngineError::io("replacing", path.clone(), error);
    let write = || {
        let file = fs.open(&temporary, OpenMode::CreateOrOpen)?;
        file.set_len(0)?;
        file.write_all_at(&encode_file(manifest), 0)?;
        Ok(file)
    };
    let file = write().map_err(|error| SaveFailure::Retry(failed(error)))?;
    let publish = || {
        file.sync_all()?;
        fs.rename(&temporary, &path)?;
        fs.sync_dir(directory)
    };
    publish().map_err(|error| SaveFailure::Latch(failed(error)))
}

/// The bytes of a manifest file.
pub(crate) fn encode_file<M: Manifest>(manifest: &M) -> Vec<u8> {
    let payload = manifest.encode();
    let mut out = M::MAGIC.to_vec();
    out.put_u32(M::VERSION);
    out.put_u64(payload.len() as u64);
    out.extend_from_slice(&payload);
    out.put_u32(crc32fast::hash(&out));
    out
}

/// Checks and reads the bytes of a manifest file.
pub(crate) fn decode_file<M: Manifest>(path: &Path, bytes: &[u8]) -> Result<M> {
    let malformed = |Malformed(what): Malformed| EngineError::corrupt(path, 0, what);
    let mut head = Reader::new(bytes);
    if head.array::<8>().map_err(malformed)? != M::MAGIC {
        return Err(malformed(Malformed("not a manifest of this kind")));
    }
    let version = head.u32().map_err(malformed)?;
    let (covered, crc) =
        bytes.split_last_chunk::<4>().ok_or_else(|| malformed(Malformed("ends early")))?;
    if crc32fast::hash(covered) != u32::from_le_bytes(*crc) {
        return Err(malformed(Malformed("checksum mismatch")));
    }
    if version > M::VERSION {
        let (path, known) = (path.to_owned(), M::VERSION);
        return Err(EngineError::NewerFormat { path, found: version, known });
    }
    decode_payload(covered, head, version).map_err(malformed)
}

fn decode_payload<M: Manifest>(
    covered: &[u8],
    mut head: Reader<'_>,
    version: u32,
) -> Result<M, Malformed> {
    let payload_len = head.u64()?;
    let payload = covered.get(20..).ok_or(Malformed("ends early"))?;
    if payload.len() as u64 != payload_len {
        return Err(Malformed("length mismatch"));
    }
    let mut reader = Reader::new(payload);
    let manifest = M::decode(&mut reader, version)?;
    reader.finish()?;
    Ok(manifest)
}
