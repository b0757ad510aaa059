//! Reading and writing manifest files: magic, version, length, payload, crc32 over all of it.

use std::path::Path;

use treering_fs::{FileSystem, read_file, write_atomically};

use super::{MANIFEST_FILE, MANIFEST_FORMAT_VERSION};
use crate::{
    binary::{Malformed, Put, Reader},
    error::{EngineError, Result},
};

/// A kind of manifest.
pub(crate) trait Manifest: Sized {
    /// First bytes of the file.
    const MAGIC: [u8; 8];
    fn encode(&self) -> Vec<u8>;
    fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed>;
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

/// Replaces the manifest of a directory; durable on return. After an error the old or the new one is there.
pub(crate) fn save<M: Manifest>(fs: &dyn FileSystem, directory: &Path, manifest: &M) -> Result<()> {
    let path = directory.join(MANIFEST_FILE);
    let saved = write_atomically(fs, &path, &encode_file(manifest));
    saved.map_err(|error| EngineError::io("replacing", path, error))
}

/// The bytes of a manifest file.
pub(crate) fn encode_file<M: Manifest>(manifest: &M) -> Vec<u8> {
    let payload = manifest.encode();
    let mut out = M::MAGIC.to_vec();
    out.put_u32(MANIFEST_FORMAT_VERSION);
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
    if version > MANIFEST_FORMAT_VERSION {
        let (path, known) = (path.to_owned(), MANIFEST_FORMAT_VERSION);
        return Err(EngineError::NewerFormat { path, found: version, known });
    }
    decode_payload(covered, head).map_err(malformed)
}

fn decode_payload<M: Manifest>(covered: &[u8], mut head: Reader<'_>) -> Result<M, Malformed> {
    let payload_len = head.u64()?;
    let payload = covered.get(20..).ok_or(Malformed("ends early"))?;
    if payload.len() as u64 != payload_len {
        return Err(Malformed("length mismatch"));
    }
    let mut reader = Reader::new(payload);
    let manifest = M::decode(&mut reader)?;
    reader.finish()?;
    Ok(manifest)
}
