//! A checked reader over one message body. Every getter fails with the name of what was being read.

use bytes::{Buf, Bytes};

use crate::WireError;

pub(crate) struct Cursor {
    rest: Bytes,
    what: &'static str,
}

impl Cursor {
    pub(crate) fn new(body: Bytes, what: &'static str) -> Cursor {
        Cursor { rest: body, what }
    }

    fn short(&self) -> WireError {
        WireError::Truncated { what: self.what }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, WireError> {
        self.rest.try_get_u8().map_err(|_| self.short())
    }

    pub(crate) fn u16(&mut self) -> Result<u16, WireError> {
        self.rest.try_get_u16().map_err(|_| self.short())
    }

    pub(crate) fn u32(&mut self) -> Result<u32, WireError> {
        self.rest.try_get_u32().map_err(|_| self.short())
    }

    pub(crate) fn i32(&mut self) -> Result<i32, WireError> {
        self.rest.try_get_i32().map_err(|_| self.short())
    }

    pub(crate) fn u64(&mut self) -> Result<u64, WireError> {
        self.rest.try_get_u64().map_err(|_| self.short())
    }

    pub(crate) fn i64(&mut self) -> Result<i64, WireError> {
        self.rest.try_get_i64().map_err(|_| self.short())
    }

    pub(crate) fn take(&mut self, bytes: usize) -> Result<Bytes, WireError> {
        match bytes <= self.rest.len() {
            true => Ok(self.rest.split_to(bytes)),
            false => Err(self.short()),
        }
    }

    pub(crate) fn rest(self) -> Bytes {
        self.rest
    }

    /// Bytes up to a NUL, which is consumed and not returned.
    pub(crate) fn cstr(&mut self) -> Result<Bytes, WireError> {
        let nul = self.rest.iter().position(|byte| *byte == 0).ok_or_else(|| self.short())?;
        let text = self.rest.split_to(nul);
        self.rest.advance(1);
        Ok(text)
    }

    /// [`Cursor::cstr`] as UTF-8.
    pub(crate) fn text(&mut self) -> Result<String, WireError> {
        let bytes = self.cstr()?;
        text_of(&bytes, self.what)
    }

    /// Succeeds only when everything has been read.
    pub(crate) fn end(self) -> Result<(), WireError> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(WireError::Trailing { what: self.what, bytes }),
        }
    }
}

pub(crate) fn text_of(bytes: &[u8], what: &'static str) -> Result<String, WireError> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| WireError::NotText { what })
}
