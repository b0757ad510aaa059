//! The envelope of small objects: magic, version, length, payload, crc32 over all of it. Integers are little endian.

use bytes::Bytes;

use crate::error::{RemoteError, Result};

/// Bytes before the payload.
const HEAD: usize = 8 + 4 + 8;

/// Writes a payload field by field.
#[derive(Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Writer {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn u32(&mut self, number: u32) -> &mut Writer {
        self.bytes(&number.to_le_bytes())
    }

    pub fn u64(&mut self, number: u64) -> &mut Writer {
        self.bytes(&number.to_le_bytes())
    }

    /// Bytes with their length before them.
    pub fn block(&mut self, bytes: &[u8]) -> &mut Writer {
        self.u64(bytes.len() as u64).bytes(bytes)
    }

    pub fn sealed(self, magic: [u8; 8], version: u32) -> Bytes {
        let mut out = Writer::default();
        out.bytes(&magic).u32(version).block(&self.0);
        let crc = crc32fast::hash(&out.0);
        out.u32(crc);
        out.0.into()
    }
}

/// Reads a payload field by field; whatever does not fit is the object's corruption.
pub struct Reader<'a> {
    name: &'a str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Checks the envelope of the object `name`.
    ///
    /// # Errors
    /// `Corrupt`; `Newer` for a good checksum and a greater version.
    pub fn open(name: &'a str, bytes: &'a [u8], magic: [u8; 8], known: u32) -> Result<Reader<'a>> {
        let corrupt = |what: &str| RemoteError::corrupt(name, what);
        let (covered, crc) = bytes.split_last_chunk::<4>().ok_or_else(|| corrupt("ends early"))?;
        if !covered.starts_with(&magic) {
            return Err(corrupt("is another kind of object"));
        }
        if crc32fast::hash(covered) != u32::from_le_bytes(*crc) {
            return Err(corrupt("checksum mismatch"));
        }
        let mut reader = Reader { name, rest: covered };
        reader.array::<8>()?;
        let found = reader.u32()?;
        if found > known {
            return Err(RemoteError::Newer { name: name.to_owned(), found, known });
        }
        let length = reader.u64()?;
        if length != covered.len().saturating_sub(HEAD) as u64 {
            return Err(corrupt("length mismatch"));
        }
        Ok(reader)
    }

    /// An error that names the object.
    pub fn corrupt(&self, what: &str) -> RemoteError {
        RemoteError::corrupt(self.name, what)
    }

    pub fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) =
            self.rest.split_at_checked(count).ok_or_else(|| self.corrupt("ends early"))?;
        self.rest = rest;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn block(&mut self) -> Result<&'a [u8]> {
        let length = usize::try_from(self.u64()?).map_err(|_| self.corrupt("ends early"))?;
        self.take(length)
    }

    /// A count of things of at least `size` bytes each: a lie cannot make us allocate.
    pub fn count(&mut self, size: usize) -> Result<usize> {
        let count = self.u32()? as usize;
        match count.checked_mul(size).is_some_and(|bytes| bytes <= self.rest.len()) {
            true => Ok(count),
            false => Err(self.corrupt("ends early")),
        }
    }

    pub fn finish(self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.corrupt("has bytes behind its end")) }
    }
}
