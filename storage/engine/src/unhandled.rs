//! Which relations hold records that this version cannot redo: the value at an `Unhandled` key.

use treering_types::{Lsn, RelTag};

use crate::binary::{Malformed, Put, Reader};

/// What could not be handled for one relation fork so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unhandled {
    /// Resource manager and info of the latest such record.
    pub rmid: u8,
    pub info: u8,
    /// How many such records there were.
    pub count: u32,
}

/// A relation that cannot be read in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable {
    pub rel: RelTag,
    /// End of the latest record that could not be handled.
    pub lsn: Lsn,
    pub what: Unhandled,
}

impl Unhandled {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(6);
        out.put_u8(self.rmid);
        out.put_u8(self.info);
        out.put_u32(self.count);
        out
    }

    /// # Errors
    /// What is wrong with the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Unhandled, &'static str> {
        let parse = || {
            let mut reader = Reader::new(bytes);
            let value = Unhandled { rmid: reader.u8()?, info: reader.u8()?, count: reader.u32()? };
            reader.finish()?;
            Ok(value)
        };
        parse().map_err(|Malformed(what)| what)
    }
}
