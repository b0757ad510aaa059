//! LSN leases: requests and answers that travel as CopyData after `lsn_lease_v1 TENANT TIMELINE`.
//!
//! A type byte, then the type's fields, big endian; a text ends with a NUL. Each request is answered before the next
//! is read. The layout in full: `docs/formats/lsn-lease.md`.

use std::{fmt, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use treering_types::Lsn;

use crate::{WireError, cursor::Cursor};

const REQUEST: &str = "lease request";
const ANSWER: &str = "lease answer";
const HOLDER: &str = "lease holder";

/// Who has a lease: a name that stays the same over restarts of whoever speaks for the holder.
///
/// 1 to [`Holder::BYTES_MAX`] bytes of text without control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Holder(String);

impl Holder {
    pub const BYTES_MAX: usize = 100;

    /// # Errors
    /// Empty, too long, or with control characters in it.
    pub fn new(name: impl Into<String>) -> Result<Holder, WireError> {
        let name = name.into();
        if name.is_empty() || name.len() > Holder::BYTES_MAX {
            return Err(WireError::BadValue { what: HOLDER, value: name.len() as i64 });
        }
        match name.chars().any(char::is_control) {
            true => Err(WireError::NotText { what: HOLDER }),
            false => Ok(Holder(name)),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// A lease at `lsn` in place of the one that the holder has, if it has one: taking, renewing and moving are one.
    Take { holder: Holder, lsn: Lsn },
    /// No lease any more.
    Release { holder: Holder },
}

/// What is answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The holder's lease stands at `lsn` and runs out after `left`, in whole milliseconds. Not a time of day: clocks differ.
    Granted {
        lsn: Lsn,
        left: Duration,
    },
    Released,
    /// A sentence. What the holder had before, it still has.
    Refused {
        message: String,
    },
}

impl Request {
    /// Reads the payload of a CopyData.
    ///
    /// # Errors
    /// Another type, a holder that is none, or the wrong size.
    pub fn parse(payload: Bytes) -> Result<Request, WireError> {
        let mut cursor = Cursor::new(payload, REQUEST);
        let request = match cursor.u8()? {
            0 => {
                let lsn = Lsn(cursor.u64()?);
                Request::Take { holder: Holder::new(cursor.text()?)?, lsn }
            }
            1 => Request::Release { holder: Holder::new(cursor.text()?)? },
            tag => return Err(WireError::UnknownTag { what: REQUEST, tag }),
        };
        cursor.end().map(|()| request)
    }

    /// Appends the payload.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Request::Take { holder, lsn } => {
                out.put_u8(0);
                out.put_u64(lsn.0);
                put_text(out, holder.as_str());
            }
            Request::Release { holder } => {
                out.put_u8(1);
                put_text(out, holder.as_str());
            }
        }
    }
}

impl Answer {
    /// Reads the payload of a CopyData.
    ///
    /// # Errors
    /// Another type, or the wrong size.
    pub fn parse(payload: Bytes) -> Result<Answer, WireError> {
        let mut cursor = Cursor::new(payload, ANSWER);
        let answer = match cursor.u8()? {
            100 => {
                let lsn = Lsn(cursor.u64()?);
                Answer::Granted { lsn, left: Duration::from_millis(cursor.u64()?) }
            }
            101 => Answer::Released,
            102 => Answer::Refused { message: String::from_utf8_lossy(&cursor.cstr()?).into() },
            tag => return Err(WireError::UnknownTag { what: ANSWER, tag }),
        };
        cursor.end().map(|()| answer)
    }

    /// Appends the payload.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Answer::Granted { lsn, left } => {
                out.put_u8(100);
                out.put_u64(lsn.0);
                out.put_u64(u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
            }
            Answer::Released => out.put_u8(101),
            Answer::Refused { message } => {
                out.put_u8(102);
                put_text(out, &message.replace('\0', "\u{fffd}"));
            }
        }
    }
}

fn put_text(out: &mut BytesMut, text: &str) {
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(encode: impl FnOnce(&mut BytesMut)) -> Bytes {
        let mut out = BytesMut::new();
        encode(&mut out);
        out.freeze()
    }

    fn holders() -> impl Strategy<Value = Holder> {
        "[^\\pC]{1,25}".prop_map(|name| Holder::new(name).unwrap())
    }

    fn requests() -> impl Strategy<Value = Request> {
        prop_oneof![
            (holders(), any::<u64>())
                .prop_map(|(holder, lsn)| Request::Take { holder, lsn: Lsn(lsn) }),
            holders().prop_map(|holder| Request::Release { holder }),
        ]
    }

    fn answers() -> impl Strategy<Value = Answer> {
        prop_oneof![
            (any::<u64>(), any::<u64>()).prop_map(|(lsn, ms)| Answer::Granted {
                lsn: Lsn(lsn),
                left: Duration::from_millis(ms)
            }),
            Just(Answer::Released),
            "[^\\x00]{0,60}".prop_map(|message| Answer::Refused { message }),
        ]
    }

    proptest! {
        #[test]
        fn requests_round_trip_and_a_part_is_none(request in requests()) {
            let bytes = encoded(|out| request.encode(out));
            for cut in 0..bytes.len() {
                prop_assert!(Request::parse(bytes.slice(..cut)).is_err());
            }
            prop_assert_eq!(Request::parse(bytes), Ok(request));
        }

        #[test]
        fn answers_round_trip_and_a_part_is_none(answer in answers()) {
            let bytes = encoded(|out| answer.encode(out));
            for cut in 0..bytes.len() {
                prop_assert!(Answer::parse(bytes.slice(..cut)).is_err());
            }
            prop_assert_eq!(Answer::parse(bytes), Ok(answer));
        }

        #[test]
        fn hostile_bytes_never_panic(
            tag in prop::sample::select(vec![0_u8, 1, 2, 100, 101, 102, 103]),
            mut bytes in prop::collection::vec(any::<u8>(), 0..130),
        ) {
            bytes.insert(0, tag);
            let bytes = Bytes::from(bytes);
            // What is read is written the same way again.
            if let Ok(request) = Request::parse(bytes.clone()) {
                prop_assert_eq!(encoded(|out| request.encode(out)), &bytes);
            }
            let _ = Answer::parse(bytes);
        }
    }

    #[test]
    fn byte_for_byte() {
        let holder = Holder::new("run-1").unwrap();
        let take = Request::Take { holder: holder.clone(), lsn: Lsn(0x16B_3748) };
        assert_eq!(encoded(|out| take.encode(out)), &b"\0\0\0\0\0\x01\x6b\x37\x48run-1\0"[..]);
        let release = Request::Release { holder };
        assert_eq!(encoded(|out| release.encode(out)), &b"\x01run-1\0"[..]);
        let granted =
            Answer::Granted { lsn: Lsn(0x16B_3748), left: Duration::from_micros(600_000_900) };
        assert_eq!(
            encoded(|out| granted.encode(out)),
            &b"\x64\0\0\0\0\x01\x6b\x37\x48\0\0\0\0\0\x09\x27\xc0"[..]
        );
        assert_eq!(encoded(|out| Answer::Released.encode(out)), &b"\x65"[..]);
        let refused = Answer::Refused { message: "no\0".into() };
        assert_eq!(encoded(|out| refused.encode(out)), "\u{66}no\u{fffd}\0".as_bytes());
    }

    #[test]
    fn names_that_are_none() {
        for name in ["", "a\nb", "a\0b", &"x".repeat(Holder::BYTES_MAX + 1)] {
            assert!(Holder::new(name).is_err(), "{name:?}");
        }
        assert!(Holder::new("x".repeat(Holder::BYTES_MAX)).is_ok());
    }
}
